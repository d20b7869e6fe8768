//! Device tokens (RFC 9052): checking ends, and nothing passes without the private key.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| tavi_enrol::token::fuzz_token(data));
