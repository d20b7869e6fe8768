//! Both ends of the admin socket that are not the API itself: where it is, and the client that speaks to it.
//!
//! The `tavi-fleet` binary and `tavi user …` use [`client`]; the broker binds its listener with [`socket::bind`].
#![forbid(unsafe_code)]

pub mod client;
pub mod socket;

pub use client::{Client, ClientError};
