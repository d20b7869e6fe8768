//! Requests as operations on topics: paths, methods, formats, preconditions and the answers to them (RFC 7252 §5, RFC 7641 §2).

use std::str::from_utf8;

use bytes::Bytes;
use tavi_wire::topic::check_topic;

use crate::block::Block;
use crate::format;
use crate::links::Filter;
use crate::message::{Code, MAX_PAYLOAD, Message, option};
use crate::representation::Representation;

/// What a request asks for.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// GET of a topic, perhaps to observe it.
    Read {
        /// The topic, which is legal.
        topic: String,
        /// The conditions and wishes of the reader.
        reading: Reading,
    },
    /// GET of `/.well-known/core` (RFC 6690 §4).
    Discover {
        /// Which links are wanted.
        filter: Filter,
        /// The conditions and wishes of the reader.
        reading: Reading,
    },
    /// PUT or POST to a topic: a new value.
    Write {
        /// The topic, which is legal.
        topic: String,
        /// The value's type.
        content_type: Option<&'static str>,
        /// The value.
        payload: Bytes,
    },
    /// DELETE of a topic: its values go.
    Clear {
        /// The topic, which is legal.
        topic: String,
    },
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// The answer that refuses it.
    pub fn parse(message: &Message) -> Result<Self, Box<Message>> {
        check_body(message)?;
        let path = path(message)?;
        match path.split_first() {
            Some((&".well-known", ["core"])) => discover(message),
            Some((&"t", levels)) => on_topic(message, levels),
            _ => Err(refusal(Code::NOT_FOUND, "topics are under /t/, a list is at /.well-known/core")),
        }
    }
}

/// What a reader wants besides the path.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// The Content-Format wanted (RFC 7252 §5.10.4).
    pub accept: Option<u16>,
    /// The states that the reader has (RFC 7252 §5.10.6.2).
    pub tags: Vec<Vec<u8>>,
    /// The block wanted (RFC 7959 §2.4).
    pub block: Option<Block>,
    /// Whether to begin or end an observation.
    pub observe: Observe,
}

/// The Observe option of a request (RFC 7641 §2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Observe {
    /// Not present, or a value that means nothing: an ordinary GET.
    #[default]
    Absent,
    /// 0: begin.
    Register,
    /// 1: end.
    Deregister,
}

impl Reading {
    fn parse(message: &Message) -> Result<Self, Box<Message>> {
        let block = message.value(option::BLOCK2).map(Block::parse).transpose();
        let block = block.map_err(|bad| refusal(Code::BAD_REQUEST, &bad.to_string()))?;
        let observe = match message.uint(option::OBSERVE) {
            // RFC 7959 §2.6: an observation concerns the whole; a request for a later block can not begin one.
            Some(0) if block.is_none_or(|block| block.number == 0) => Observe::Register,
            Some(1) => Observe::Deregister,
            _ => Observe::Absent,
        };
        let accept = message.uint(option::ACCEPT).map(|number| number as u16);
        // More than a handful of tags is no cache that we need to serve.
        let tags = message.values(option::ETAG).take(8).map(<[u8]>::to_vec).collect();
        Ok(Self { accept, tags, block, observe })
    }

    /// The answer with `value`: 2.05, or 2.03 if the reader has it, or 4.06 if it wants another format.
    pub fn answer(&self, value: &Representation, max_age: u32) -> Message {
        match self.refuse_format(value) {
            Some(refusal) => refusal,
            None if self.tags.iter().any(|tag| value.is_tagged(tag)) => value.valid(max_age),
            None => value.content(self.block, max_age),
        }
    }

    /// RFC 7252 §5.10.4: 4.06 if the value can not be had in the format wanted.
    pub fn refuse_format(&self, value: &Representation) -> Option<Message> {
        let mismatch = self.accept.is_some_and(|accept| value.format != Some(accept));
        mismatch.then(|| *refusal(Code::NOT_ACCEPTABLE, "the value has another format"))
    }
}

/// A refusal with a diagnostic payload that a person can act on (RFC 7252 §5.5.2).
pub fn refusal(code: Code, diagnostic: &str) -> Box<Message> {
    let mut response = Message::new(code);
    response.set_payload(diagnostic.as_bytes());
    Box::new(response)
}

/// The answer to somebody who may not (semantics: missing and forbidden answer alike): 4.01 for a peer without a name, 4.03 otherwise.
///
/// Without a diagnostic, so that a forged address gets no more bytes than were sent for it (RFC 7252 §11.3).
pub fn forbidden(is_named: Named) -> Message {
    Message::new(match is_named {
        Named::Yes => Code::FORBIDDEN,
        Named::No => Code::UNAUTHORIZED,
    })
}

/// Whether a peer has an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// It has.
    Yes,
    /// It is `Anon`.
    No,
}

/// Requests carry one payload of at most 1,024 bytes.
///
/// With Block1, RFC 7959 §2.9.3 has 4.13 for "a body larger than this server is willing to take", at any block, and §4
/// has Size1 for how large it may be. That tells a client what to do. 4.02 would only tell that Block1 is unknown, which
/// is not so: a transfer that consists of a single block is an ordinary request and is served.
fn check_body(message: &Message) -> Result<(), Box<Message>> {
    let block = message.value(option::BLOCK1).map(Block::parse).transpose();
    let block = block.map_err(|bad| refusal(Code::BAD_REQUEST, &bad.to_string()))?;
    let is_part = block.is_some_and(|block| block.number > 0 || block.more);
    if !is_part && message.payload_size() <= MAX_PAYLOAD {
        return Ok(());
    }
    let mut response = refusal(Code::TOO_LARGE, "a request carries one payload of at most 1024 bytes");
    response.add_uint(option::SIZE1, MAX_PAYLOAD as u64);
    Err(response)
}

fn path(message: &Message) -> Result<Vec<&str>, Box<Message>> {
    let segments = message.values(option::URI_PATH).map(from_utf8).collect::<Result<Vec<_>, _>>();
    segments.map_err(|_| refusal(Code::BAD_REQUEST, "the path is not UTF-8"))
}

fn discover(message: &Message) -> Result<Request, Box<Message>> {
    if message.code() != Code::GET {
        return Err(refusal(Code::METHOD_NOT_ALLOWED, "the list can only be read"));
    }
    let queries = message.values(option::URI_QUERY).map(from_utf8).collect::<Result<Vec<_>, _>>();
    let filter = queries.ok().and_then(|queries| Filter::parse(queries.into_iter()));
    let filter = filter.ok_or_else(|| refusal(Code::BAD_REQUEST, "a query is attribute=value"))?;
    let reading = Reading { observe: Observe::Absent, ..Reading::parse(message)? };
    Ok(Request::Discover { filter, reading })
}

fn on_topic(message: &Message, levels: &[&str]) -> Result<Request, Box<Message>> {
    let topic = topic(levels)?;
    if message.value(option::URI_QUERY).is_some() {
        return Err(refusal(Code::BAD_REQUEST, "a topic takes no query"));
    }
    match message.code() {
        Code::GET => Ok(Request::Read { topic, reading: Reading::parse(message)? }),
        Code::PUT | Code::POST => write(message, topic),
        Code::DELETE => Ok(Request::Clear { topic }),
        _ => Err(refusal(Code::METHOD_NOT_ALLOWED, "a topic takes GET, PUT, POST and DELETE")),
    }
}

fn write(message: &Message, topic: String) -> Result<Request, Box<Message>> {
    let number = message.uint(option::CONTENT_FORMAT);
    let known = number.map(|number| u16::try_from(number).ok().and_then(format::content_type));
    let Some(content_type) = known.map_or(Some(None), |known| known.map(Some)) else {
        return Err(refusal(Code::UNSUPPORTED_FORMAT, "this content format is not known here"));
    };
    Ok(Request::Write { topic, content_type, payload: Bytes::copy_from_slice(message.payload()) })
}

/// One level is one raw Uri-Path segment; so a `/` inside a segment would make another topic of it.
fn topic(levels: &[&str]) -> Result<String, Box<Message>> {
    if levels.iter().any(|level| level.contains('/')) {
        return Err(refusal(Code::BAD_REQUEST, "a level of a topic has no '/'"));
    }
    let topic = levels.join("/");
    match check_topic(&topic) {
        Ok(()) => Ok(topic),
        Err(error) => Err(refusal(Code::BAD_REQUEST, &error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(code: Code, path: &[&str]) -> Message {
        let mut message = Message::new(code);
        path.iter().for_each(|segment| message.add(option::URI_PATH, segment.as_bytes()));
        message
    }

    fn refused(message: &Message) -> Code {
        Request::parse(message).unwrap_err().code()
    }

    #[test]
    fn a_segment_is_a_level_and_empty_levels_count() {
        let topic = |path: &[&str]| match Request::parse(&request(Code::GET, path)) {
            Ok(Request::Read { topic, .. }) => topic,
            other => panic!("{other:?}"),
        };
        assert_eq!(topic(&["t", "d", "1", "up", "temp"]), "d/1/up/temp");
        assert_eq!(topic(&["t", "a", "", "b", ""]), "a//b/");
        assert_eq!(topic(&["t", "t"]), "t");
        assert_eq!(topic(&["t", "50 %"]), "50 %");
    }

    #[test]
    fn paths_that_are_no_topics_are_refused() {
        assert_eq!(refused(&request(Code::GET, &["t", "a/b"])), Code::BAD_REQUEST);
        assert_eq!(refused(&request(Code::GET, &["t"])), Code::BAD_REQUEST);
        assert_eq!(refused(&request(Code::GET, &["t", ""])), Code::BAD_REQUEST);
        assert_eq!(refused(&request(Code::GET, &["t", "a", "+"])), Code::BAD_REQUEST);
        assert_eq!(refused(&request(Code::GET, &["t", "..", "a"])), Code::BAD_REQUEST);
        assert_eq!(refused(&request(Code::GET, &["t", "a\u{1}"])), Code::BAD_REQUEST);
        assert_eq!(refused(&request(Code::GET, &["x"])), Code::NOT_FOUND);
        assert_eq!(refused(&request(Code::GET, &[])), Code::NOT_FOUND);
        assert_eq!(refused(&request(Code::PUT, &[".well-known", "core"])), Code::METHOD_NOT_ALLOWED);
        let mut latin = request(Code::GET, &["t"]);
        latin.add(option::URI_PATH, b"\xE9");
        assert_eq!(refused(&latin), Code::BAD_REQUEST);
    }

    #[test]
    fn a_put_carries_its_content_type() {
        let mut put = request(Code::PUT, &["t", "a"]);
        put.add_uint(option::CONTENT_FORMAT, 112);
        put.set_payload(b"\x80");
        let wanted = Request::Write {
            topic: "a".into(),
            content_type: Some("application/senml+cbor"),
            payload: Bytes::from_static(b"\x80"),
        };
        assert_eq!(Request::parse(&put).unwrap(), wanted);
        let mut unknown = request(Code::POST, &["t", "a"]);
        unknown.add_uint(option::CONTENT_FORMAT, 65_000);
        assert_eq!(refused(&unknown), Code::UNSUPPORTED_FORMAT);
    }

    #[test]
    fn a_body_that_is_too_large_is_told_how_large_it_may_be() {
        let mut put = request(Code::PUT, &["t", "a"]);
        put.set_payload(&[0; MAX_PAYLOAD]);
        assert!(Request::parse(&put).is_ok());
        put.set_payload(&[0; MAX_PAYLOAD + 1]);
        let response = Request::parse(&put).unwrap_err();
        assert_eq!((response.code(), response.uint(option::SIZE1)), (Code::TOO_LARGE, Some(1024)));
    }

    #[test]
    fn the_first_block_of_many_is_too_large_and_a_single_block_is_served() {
        let with_block = |number, more| {
            let mut put = request(Code::PUT, &["t", "a"]);
            put.add_uint(option::BLOCK1, Block { number, more, ..Block::FIRST }.emit());
            Request::parse(&put).map_err(|response| response.code())
        };
        assert!(with_block(0, false).is_ok());
        assert_eq!(with_block(0, true), Err(Code::TOO_LARGE));
        assert_eq!(with_block(1, false), Err(Code::TOO_LARGE));
    }

    #[test]
    fn a_reader_gets_the_value_or_hears_that_it_has_it() {
        let value = Representation { version: 9, format: Some(50), body: Bytes::from_static(b"{}"), expires_ms: None };
        let reading = |accept, tags: &[&[u8]]| Reading {
            accept,
            tags: tags.iter().map(|tag| tag.to_vec()).collect(),
            ..Reading::default()
        };
        assert_eq!(reading(None, &[]).answer(&value, 0).code(), Code::CONTENT);
        assert_eq!(reading(Some(50), &[&[8]]).answer(&value, 0).payload(), b"{}");
        assert_eq!(reading(None, &[&[8], &[9]]).answer(&value, 0).code(), Code::VALID);
        assert_eq!(reading(Some(60), &[]).answer(&value, 0).code(), Code::NOT_ACCEPTABLE);
    }
}
