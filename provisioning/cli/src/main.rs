//! The `tavi-fleet` binary.

fn main() {}
