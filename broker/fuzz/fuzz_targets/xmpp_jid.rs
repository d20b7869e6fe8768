//! JIDs (RFC 7622): what parses is its own normal form.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| tavi_xmpp_proto::fuzz::fuzz_jid(data));
