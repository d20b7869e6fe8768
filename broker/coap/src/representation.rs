//! What a resource answers with: a value's bytes, their Content-Format and their entity tag (RFC 7252 §5.4.5, §5.10.6).

use bytes::Bytes;

use crate::block::{Block, put_body};
use crate::message::{Code, Message, option};

/// One state of a resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Representation {
    /// What tells this state from any other of the same resource: the publication's id, or a digest.
    pub version: u64,
    /// The Content-Format number; `None` when the type has none.
    pub format: Option<u16>,
    /// The whole body.
    pub body: Bytes,
    /// When it is over, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

impl Representation {
    /// Whether `tag` is the entity tag of this state.
    pub fn is_tagged(&self, tag: &[u8]) -> bool {
        tag == self.tag().as_slice()
    }

    /// For how many seconds it may be taken for the newest at `unix_ms`, `most` at most (RFC 7252 §5.10.5).
    pub fn max_age(&self, most: u32, unix_ms: u64) -> u32 {
        let left = self.expires_ms.map(|at| at.saturating_sub(unix_ms) / 1000);
        left.map_or(most, |left| most.min(u32::try_from(left).unwrap_or(most)))
    }

    /// The answer 2.05 with the block that was asked for, and with `max_age` seconds (RFC 7252 §5.10.5).
    pub fn content(&self, wanted: Option<Block>, max_age: u32) -> Message {
        let mut response = Message::new(Code::CONTENT);
        response.add(option::ETAG, &self.tag());
        response.add_uint(option::MAX_AGE, u64::from(max_age));
        if let Some(format) = self.format {
            response.add_uint(option::CONTENT_FORMAT, u64::from(format));
        }
        put_body(&mut response, &self.body, wanted);
        response
    }

    /// The answer 2.03: the peer has this state already (RFC 7252 §5.9.1.3).
    pub fn valid(&self, max_age: u32) -> Message {
        let mut response = Message::new(Code::VALID);
        response.add(option::ETAG, &self.tag());
        response.add_uint(option::MAX_AGE, u64::from(max_age));
        response
    }

    /// The version without leading zeros, 1 to 8 bytes (RFC 7252 §5.10.6).
    fn tag(&self) -> Vec<u8> {
        let zeros = (self.version.leading_zeros() as usize / 8).min(7);
        self.version.to_be_bytes()[zeros..].to_vec()
    }
}

/// An answer that is an error now may be another one in a moment; unsaid, caches take it for fresh for a minute (RFC 7252
/// §5.9.2, §5.10.5).
pub fn fresh_only_now(mut answer: Message) -> Message {
    if answer.code().class() >= 4 && answer.value(option::MAX_AGE).is_none() {
        answer.add_uint(option::MAX_AGE, 0);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_changes_with_the_version_and_is_never_empty() {
        let mut value = Representation { version: 0, format: None, body: Bytes::new(), expires_ms: None };
        assert!(value.is_tagged(&[0]));
        value.version = 0x100;
        assert!(value.is_tagged(&[1, 0]) && !value.is_tagged(&[0]));
        assert_eq!(value.valid(0).value(option::ETAG), Some(&[1, 0][..]));
    }
}
