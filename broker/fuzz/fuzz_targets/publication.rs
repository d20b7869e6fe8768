//! The stored form of a publication: damaged bytes are refused, what is read is written and read again alike.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tavi_core::Publication;

fuzz_target!(|data: &[u8]| {
    let Some(publication) = Publication::decode(Bytes::copy_from_slice(data)) else { return };
    let again = Publication::decode(publication.encode()).expect("what was written is read");
    assert_eq!(format!("{publication:?}"), format!("{again:?}"));
});
