//! Device identity and topic rules that both ends agree on, without allocation.
