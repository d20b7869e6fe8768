//! One CoAP message apart from any transport: code, token, options and payload (RFC 7252 §3, §5).
//!
//! Over UDP a message has a type and an id besides ([`datagram`](crate::datagram)); over TCP it has a length
//! (RFC 8323 §3.2), inside OSCORE it is encrypted (RFC 8613 §5.3). The encoding of options and payload is the same in all
//! of them: [`Message::decode_body`] and [`Message::encode_body`].

/// The largest payload of one request, in bytes: what RFC 7252 §4.6 recommends, and the largest block (RFC 7959 §2.2).
pub const MAX_PAYLOAD: usize = 1024;
/// The most options that one message may carry: 64 levels of a topic, `t`, and room for all the others.
pub(crate) const MAX_OPTIONS: usize = 96;
/// The longest value of any option that is defined (Proxy-Uri, RFC 7252 §5.10).
const MAX_OPTION_LENGTH: usize = 1034;
/// The byte between options and payload (RFC 7252 §3).
const PAYLOAD_MARKER: u8 = 0xFF;

/// Numbers of the options that this end knows (RFC 7252 §5.10, RFC 7641 §2, RFC 7959 §2.1 and §4).
pub mod option {
    /// Uri-Host, RFC 7252 §5.10.1.
    pub const URI_HOST: u16 = 3;
    /// ETag, RFC 7252 §5.10.6.
    pub const ETAG: u16 = 4;
    /// Observe, RFC 7641 §2.
    pub const OBSERVE: u16 = 6;
    /// Uri-Port, RFC 7252 §5.10.1.
    pub const URI_PORT: u16 = 7;
    /// Uri-Path, RFC 7252 §5.10.1.
    pub const URI_PATH: u16 = 11;
    /// Content-Format, RFC 7252 §5.10.3.
    pub const CONTENT_FORMAT: u16 = 12;
    /// Max-Age, RFC 7252 §5.10.5.
    pub const MAX_AGE: u16 = 14;
    /// Uri-Query, RFC 7252 §5.10.1.
    pub const URI_QUERY: u16 = 15;
    /// Accept, RFC 7252 §5.10.4.
    pub const ACCEPT: u16 = 17;
    /// Block2, RFC 7959 §2.1.
    pub const BLOCK2: u16 = 23;
    /// Block1, RFC 7959 §2.1.
    pub const BLOCK1: u16 = 27;
    /// Size2, RFC 7959 §4.
    pub const SIZE2: u16 = 28;
    /// Proxy-Uri, RFC 7252 §5.10.2.
    pub const PROXY_URI: u16 = 35;
    /// Proxy-Scheme, RFC 7252 §5.10.2.
    pub const PROXY_SCHEME: u16 = 39;
    /// Size1, RFC 7252 §5.10.9.
    pub const SIZE1: u16 = 60;
}

/// One CoAP message, well-formed (RFC 7252 §3).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    code: Code,
    token: Token,
    options: Vec<(u16, Vec<u8>)>,
    payload: Vec<u8>,
    payload_size: usize,
}

impl Message {
    /// A request or response with `code`; no token, no options, no payload.
    pub fn new(code: Code) -> Self {
        Self { code, ..Self::default() }
    }

    /// Reads options and payload: all that follows the token. `None` for a format error.
    ///
    /// A payload over [`MAX_PAYLOAD`] bytes is left out, so that nothing large is copied;
    /// [`payload_size`](Self::payload_size) still tells its size, for the 4.13 answer.
    pub fn decode_body(code: Code, token: Token, body: &[u8]) -> Option<Self> {
        let mut message = Self { code, token, ..Self::default() };
        let mut rest = Rest(body);
        let mut number = 0u32;
        while let Some(first) = rest.byte() {
            if first == PAYLOAD_MARKER {
                // RFC 7252 §3: a marker followed by a zero-length payload is a format error.
                return (!rest.0.is_empty()).then(|| message.with_payload(rest.0));
            }
            number += rest.extended(first >> 4)?;
            let length = rest.extended(first & 0x0F)? as usize;
            if length > MAX_OPTION_LENGTH || message.options.len() == MAX_OPTIONS {
                return None;
            }
            message.options.push((u16::try_from(number).ok()?, rest.take(length)?.to_vec()));
        }
        Some(message)
    }

    /// Appends options and payload to `out`.
    pub fn encode_body(&self, out: &mut Vec<u8>) {
        let mut before = 0;
        for (number, value) in &self.options {
            let (delta, length) = (usize::from(number - before), value.len());
            out.push(nibble(delta) << 4 | nibble(length));
            extend(out, delta);
            extend(out, length);
            out.extend_from_slice(value);
            before = *number;
        }
        if !self.payload.is_empty() {
            out.push(PAYLOAD_MARKER);
            out.extend_from_slice(&self.payload);
        }
    }

    fn with_payload(mut self, payload: &[u8]) -> Self {
        self.payload_size = payload.len();
        if payload.len() <= MAX_PAYLOAD {
            self.payload = payload.to_vec();
        }
        self
    }

    /// The code: empty, a method or a response code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The token (RFC 7252 §5.3.1).
    pub fn token(&self) -> Token {
        self.token
    }

    /// Sets the token.
    pub fn set_token(&mut self, token: Token) {
        self.token = token;
    }

    /// The payload; empty also when it was too large to be kept.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Sets the payload.
    pub fn set_payload(&mut self, payload: &[u8]) {
        self.payload_size = payload.len();
        self.payload = payload.to_vec();
    }

    /// The size of the payload on the wire, in bytes; larger than `payload().len()` when that was left out.
    pub fn payload_size(&self) -> usize {
        self.payload_size
    }

    /// Adds one option value, behind those of the same number and before those of a higher one.
    pub fn add(&mut self, number: u16, value: &[u8]) {
        let at = self.options.partition_point(|(other, _)| *other <= number);
        self.options.insert(at, (number, value.to_vec()));
    }

    /// Adds one option with an unsigned value, without leading zeros (RFC 7252 §3.2).
    pub fn add_uint(&mut self, number: u16, value: u64) {
        let bytes = value.to_be_bytes();
        let zeros = value.leading_zeros() as usize / 8;
        self.add(number, &bytes[zeros..]);
    }

    /// All options in order: number and value.
    pub fn options(&self) -> impl Iterator<Item = (u16, &[u8])> {
        self.options.iter().map(|(number, value)| (*number, value.as_slice()))
    }

    /// All values of the option `number`, in order.
    pub fn values(&self, number: u16) -> impl Iterator<Item = &[u8]> {
        self.options().filter(move |(other, _)| *other == number).map(|(_, value)| value)
    }

    /// The first value of the option `number`.
    pub fn value(&self, number: u16) -> Option<&[u8]> {
        self.values(number).next()
    }

    /// The first value of the option `number` as an unsigned number; `None` also when it is longer than 4 bytes.
    pub fn uint(&self, number: u16) -> Option<u32> {
        let value = self.value(number)?;
        (value.len() <= 4).then(|| value.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }
}

/// What was not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// An option's delta or length with its extension bytes (RFC 7252 §3.1); 15 is reserved.
    fn extended(&mut self, nibble: u8) -> Option<u32> {
        match nibble {
            13 => self.byte().map(|byte| u32::from(byte) + 13),
            14 => self.take(2).map(|bytes| u32::from(bytes[0]) << 8 | u32::from(bytes[1])).map(|value| value + 269),
            15 => None,
            _ => Some(u32::from(nibble)),
        }
    }
}

/// The four bits of a delta or length (RFC 7252 §3.1).
fn nibble(value: usize) -> u8 {
    match value {
        0..13 => value as u8,
        13..269 => 13,
        _ => 14,
    }
}

/// The extension bytes of a delta or length (RFC 7252 §3.1).
fn extend(out: &mut Vec<u8>, value: usize) {
    match value {
        0..13 => {}
        13..269 => out.push((value - 13) as u8),
        // Numbers end at 65,535, and no value that is put in is longer than that.
        _ => out.extend_from_slice(&((value - 269) as u16).to_be_bytes()),
    }
}

/// A message code `c.dd` (RFC 7252 §12.1).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Code(u8);

impl Code {
    /// 0.00, the empty message.
    pub const EMPTY: Self = Self::of(0, 0);
    /// 0.01 GET.
    pub const GET: Self = Self::of(0, 1);
    /// 0.02 POST.
    pub const POST: Self = Self::of(0, 2);
    /// 0.03 PUT.
    pub const PUT: Self = Self::of(0, 3);
    /// 0.04 DELETE.
    pub const DELETE: Self = Self::of(0, 4);
    /// 2.01 Created.
    pub const CREATED: Self = Self::of(2, 1);
    /// 2.02 Deleted.
    pub const DELETED: Self = Self::of(2, 2);
    /// 2.03 Valid.
    pub const VALID: Self = Self::of(2, 3);
    /// 2.04 Changed.
    pub const CHANGED: Self = Self::of(2, 4);
    /// 2.05 Content.
    pub const CONTENT: Self = Self::of(2, 5);
    /// 4.00 Bad Request.
    pub const BAD_REQUEST: Self = Self::of(4, 0);
    /// 4.01 Unauthorized.
    pub const UNAUTHORIZED: Self = Self::of(4, 1);
    /// 4.02 Bad Option.
    pub const BAD_OPTION: Self = Self::of(4, 2);
    /// 4.03 Forbidden.
    pub const FORBIDDEN: Self = Self::of(4, 3);
    /// 4.04 Not Found.
    pub const NOT_FOUND: Self = Self::of(4, 4);
    /// 4.05 Method Not Allowed.
    pub const METHOD_NOT_ALLOWED: Self = Self::of(4, 5);
    /// 4.06 Not Acceptable.
    pub const NOT_ACCEPTABLE: Self = Self::of(4, 6);
    /// 4.13 Request Entity Too Large.
    pub const TOO_LARGE: Self = Self::of(4, 13);
    /// 4.15 Unsupported Content-Format.
    pub const UNSUPPORTED_FORMAT: Self = Self::of(4, 15);
    /// 5.00 Internal Server Error.
    pub const INTERNAL: Self = Self::of(5, 0);
    /// 5.03 Service Unavailable.
    pub const UNAVAILABLE: Self = Self::of(5, 3);
    /// 5.05 Proxying Not Supported.
    pub const NO_PROXYING: Self = Self::of(5, 5);

    const fn of(class: u8, detail: u8) -> Self {
        Self(class << 5 | detail)
    }

    /// The code of the byte of a header.
    pub const fn from_byte(byte: u8) -> Self {
        Self(byte)
    }

    /// The byte of a header.
    pub const fn byte(self) -> u8 {
        self.0
    }

    /// The class: 0 request or empty, 2 success, 4 client error, 5 server error.
    pub const fn class(self) -> u8 {
        self.0 >> 5
    }

    /// True for a method code, known or not.
    pub const fn is_request(self) -> bool {
        self.class() == 0 && self.0 != 0
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:02}", self.class(), self.0 & 0x1F)
    }
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// A request's token: 0 to 8 bytes that the client chose (RFC 7252 §5.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    length: u8,
    bytes: [u8; 8],
}

impl Token {
    /// The token of the first 8 bytes of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut token = Self::default();
        for (slot, byte) in token.bytes.iter_mut().zip(bytes) {
            *slot = *byte;
            token.length += 1;
        }
        token
    }

    /// The bytes of the token.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}
