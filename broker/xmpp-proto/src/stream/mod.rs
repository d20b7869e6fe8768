//! Streams: headers, features, errors (RFC 6120 §4), and the negotiation of a client stream in [`c2s`].

pub mod c2s;
mod features;

use crate::element::write_attr;
use crate::error::StreamError;
use crate::ns;

/// The end tag of a stream, RFC 6120 §4.4.
pub const CLOSE: &[u8] = b"</stream:stream>";

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

impl Open<'_> {
    /// Appends the XML declaration and the stream's start tag.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"<?xml version='1.0'?><stream:stream xmlns='jabber:client'");
        write_attr(out, "xmlns:stream", ns::STREAM);
        for (name, value) in [("from", self.from), ("to", self.to), ("id", self.id)] {
            if let Some(value) = value {
                write_attr(out, name, value);
            }
        }
        out.extend_from_slice(b" version='1.0' xml:lang='en'>");
    }
}

/// Appends a stream error and the end of the stream, RFC 6120 §4.9.1.1. Our header must have been sent.
pub fn write_error(out: &mut Vec<u8>, error: &StreamError) {
    out.extend_from_slice(b"<stream:error>");
    for part in error.to_element().elements() {
        part.write_to(out, ns::CLIENT);
    }
    out.extend_from_slice(b"</stream:error>");
    out.extend_from_slice(CLOSE);
}
