//! HTTP: health, metrics and the admin API.
//!
//! This crate reads requests and writes answers. What they mean is decided by whoever implements [`admin::Admin`]
//! and [`http::Pages`]; which sockets there are is decided by whoever binds them.
#![forbid(unsafe_code)]

pub mod admin;
pub mod http;
mod reply;
pub mod serve;

pub use serve::{Limits, Tls};
