//! The words of MQTT links and seats on two nodes: the first byte picks who hears it; what is read is written and read
//! again alike.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tavi_mqtt::words::{ToLink, ToSeat};

fuzz_target!(|data: &[u8]| {
    let Some((kind, word)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(word);
    if kind % 2 == 0 {
        let Some(word) = ToSeat::decode(bytes) else { return };
        let again = ToSeat::decode(word.encode()).expect("what was written is read");
        assert_eq!(word.encode(), again.encode());
    } else {
        let Some(word) = ToLink::decode(bytes) else { return };
        let again = ToLink::decode(word.encode()).expect("what was written is read");
        assert_eq!(word.encode(), again.encode());
    }
});
