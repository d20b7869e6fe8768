//! The `tavi-xtask` binary.

fn main() {}
