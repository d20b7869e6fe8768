//! The MQTT front end, 3.1.1 and 5.0: a guarded codec, sessions without IO, and the listeners that drive them.
//!
//! Inside out: `frame` and `walk` prove a packet's bytes, `codec` decodes them, `publish` shares one encoded body among
//! all receivers, `reply` writes the broker's packets. `session` and `flight` are the protocol; `link` is a client's end
//! of the line to its seat, `sitting` the seat's end, on the core's topics, `client` both on one node; `words` are the bytes of
//! what they say and `distant` is the home's end where they are on two; `entry` decides
//! who has a session and when it ends, `hub` does it; `seat`, `kept`, `place`, `granted`, `record` and `restart` are what
//! outlives a connection; `operator` is what an administrator sees of it.
//! `greet` lets a client in, `conn` drives it over a stream, `serving` is one after the other, `listener` accepts.

pub mod client;
pub mod codec;
pub mod config;
pub mod conn;
pub mod distant;
pub mod entry;
pub mod error;
pub mod flight;
pub mod frame;
mod granted;
pub mod greet;
pub mod hub;
pub mod kept;
pub mod link;
mod listener;
pub mod operator;
pub mod packet;
mod place;
pub mod publish;
pub mod record;
pub mod render;
pub mod reply;
pub mod restart;
pub mod seat;
mod serving;
pub mod session;
pub mod sitting;
mod walk;
pub mod words;

pub use codec::fuzz_codec;
pub use config::Config;
pub use error::Fault;
pub use greet::{Link, Peer};
pub use hub::Hub;
pub use serving::serve;
