//! Pure provisioning rules and the admin API types.
//!
//! No IO, no clock, no random source: the broker and the command line hand those in. The proof is that this
//! crate builds for `wasm32-unknown-unknown`.
#![forbid(unsafe_code)]

pub mod admin;
pub mod device;
pub mod grant;
pub mod key;
pub mod replay;
pub mod route;
pub mod secret;
pub mod token;

pub use secret::Secret;
pub use tavi_wire::DeviceId;
