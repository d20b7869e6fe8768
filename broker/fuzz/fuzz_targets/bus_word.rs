//! The words between nodes: damaged bytes are refused, what is read is written and read again alike.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tavi_core::bus::Word;

fuzz_target!(|data: &[u8]| {
    let Ok(word) = Word::decode(Bytes::copy_from_slice(data)) else { return };
    let again = Word::decode(word.encode()).expect("what was written is read");
    assert_eq!(word.encode(), again.encode());
});
