//! SASL: the SCRAM family with channel binding, and PLAIN (RFC 6120 §6, RFC 5802, RFC 7677, RFC 4616).

mod keys;

pub use keys::{BadPassword, Hash, ScramKeys};
