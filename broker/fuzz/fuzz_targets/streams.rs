//! The notes of streams that can be resumed: a damaged file harms nobody, what is read is written and read again alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tavi_core::journal::Book;

fuzz_target!(|data: &[u8]| {
    let Some(book) = Book::read(data.to_vec()) else { return };
    assert_eq!(Book::read(book.encode()), Some(book));
});
