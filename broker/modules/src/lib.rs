//! The XEPs as modules: one file each and one registry.
