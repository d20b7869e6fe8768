//! CoAP datagrams through decoder, message layer and request parser (RFC 7252); what decodes survives a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| tavi_coap::fuzz_message(data));
