//! The `tavi` binary.

fn main() {}
