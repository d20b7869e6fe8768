//! The rows of a durable MQTT session: the first byte picks the kind; what is read is written and read again alike.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tavi_mqtt::record::{Inbound, RowHead, SessionRecord, decode_options, decode_will, encode_options, encode_will};

fuzz_target!(|data: &[u8]| {
    let Some((kind, row)) = data.split_first() else { return };
    let mut bytes = Bytes::copy_from_slice(row);
    match kind % 5 {
        0 => {
            let Some(read) = SessionRecord::decode(row) else { return };
            assert_eq!(SessionRecord::decode(&read.encode()), Some(read));
            let _ = read.ends_ms();
        }
        1 => {
            let Some(read) = decode_options(row) else { return };
            assert_eq!(decode_options(&encode_options(&read)), Some(read));
        }
        2 => {
            let Some(read) = decode_will(bytes) else { return };
            assert_eq!(decode_will(encode_will(&read)), Some(read));
        }
        3 => {
            let Some(read) = Inbound::decode(bytes) else { return };
            assert_eq!(Inbound::decode(read.encode()), Some(read));
        }
        _ => {
            let Some(head) = RowHead::decode(&mut bytes) else { return };
            assert_eq!(RowHead::decode(&mut head.encode(None)), Some(head));
        }
    }
});
