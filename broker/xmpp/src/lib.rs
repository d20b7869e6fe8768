//! XMPP front end: client streams over TCP and TLS.
//!
//! A connection is accepted ([`listener`]), negotiated, and becomes a session; each is one small task (`life`). What goes over
//! the wire is decided in `tavi-xmpp-proto`, what happens to a stanza in `tavi-core`.

pub mod config;
mod life;
pub mod listener;
mod negotiate;
mod resume;
mod session;
mod tls;
mod wire;

pub use config::Config;
pub use listener::Xmpp;
pub use tls::Tls;
