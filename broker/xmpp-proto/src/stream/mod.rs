//! Streams: headers, features, errors (RFC 6120 §4), and the negotiation of a client stream in [`c2s`].

pub mod c2s;
mod features;
mod framing;
mod sasl2;

pub use framing::Framing;
pub use sasl2::Greeting;

/// The end tag of a stream, RFC 6120 §4.4.
const CLOSE: &[u8] = b"</stream:stream>";

/// What we say in the header of a stream, RFC 6120 §4.7.
#[derive(Debug, Clone, Copy, Default)]
pub struct Open<'a> {
    /// Who speaks.
    pub from: Option<&'a str>,
    /// To whom.
    pub to: Option<&'a str>,
    /// The stream id, made by the server; unpredictable (RFC 6120 §4.7.3).
    pub id: Option<&'a str>,
}
