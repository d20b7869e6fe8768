//! The MQTT front end, 3.1.1 and 5.0: a guarded codec, sessions without IO, and the listeners that drive them.
//!
//! `frame` and `walk` prove a packet's bytes, `codec` decodes them, `publish` shares one encoded body among all
//! receivers, `reply` writes the broker's packets.

pub mod codec;
pub mod error;
pub mod frame;
pub mod packet;
pub mod publish;
pub mod reply;
mod walk;

pub use codec::fuzz_codec;
pub use error::Fault;
