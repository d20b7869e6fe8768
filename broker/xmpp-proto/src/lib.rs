//! XMPP without IO: addresses, framing, stanzas, stream negotiation, SASL, stream management (RFC 6120, 6121, 7622).
//!
//! Nothing here reads a socket, a clock or a random source: bytes, time and randomness are arguments.

mod check;
pub mod element;
pub mod error;
pub mod framing;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod ingress;
pub mod jid;
mod names;
pub mod ns;
pub mod sasl;
pub mod sm;
pub mod stanza;
pub mod stream;

pub use element::Element;
pub use error::{Condition, ErrorType, StanzaError, StreamCondition, StreamError};
pub use framing::Limits;
pub use ingress::{Header, Incoming, Ingress, Refused};
pub use jid::{BareJid, Jid, JidError};
pub use ns::Atom;
pub use stanza::{Child, Children, Head, IqType, Kind, MessageType, PresenceType, Stanza, StanzaType};
