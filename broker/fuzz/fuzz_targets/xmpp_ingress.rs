//! XML from an XMPP peer: what ingress accepts, a strict parser accepts too and reads alike; splits change nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| tavi_xmpp_proto::fuzz::fuzz_ingress(data));
