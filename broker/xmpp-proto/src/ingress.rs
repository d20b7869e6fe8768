//! The validating pass over one received element.

use crate::error::StreamError;
use crate::stanza::Stanza;

/// Parses one stored stanza.
pub(crate) fn parse_stored(_bytes: &[u8]) -> Result<Stanza, StreamError> {
    Err(StreamError::new(crate::error::StreamCondition::NotWellFormed))
}
