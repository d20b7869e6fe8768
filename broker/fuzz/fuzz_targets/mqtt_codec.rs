//! A client's MQTT byte stream: no panic, cuts change nothing, every publish survives a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| tavi_mqtt::fuzz_codec(data));
