//! The `tavi-load` binary.

fn main() {}
