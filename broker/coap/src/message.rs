//! One CoAP message: the guard round the codec, so that a datagram is checked before it is decoded (RFC 7252 §3).
//!
//! The codec of `coap-lite` turns bytes into a packet and back; its types stay inside this file. It is lenient
//! (any version, a payload marker without payload, any number of options), so [`Message::decode`] walks the
//! datagram first, without allocating, and lets only a well-formed, bounded one through.

use coap_lite::{CoapOption, MessageClass, MessageType, Packet};

/// The largest payload of one request, in bytes: what RFC 7252 §4.6 recommends, and the largest block (RFC 7959 §2.2).
pub const MAX_PAYLOAD: usize = 1024;
/// The most options that one datagram may carry: 64 levels of a topic, `t`, and room for all the others.
const MAX_OPTIONS: usize = 96;
/// The longest value of any option that is defined (Proxy-Uri, RFC 7252 §5.10).
const MAX_OPTION_LENGTH: usize = 1034;

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

/// One CoAP message, decoded and well-formed (RFC 7252 §3).
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    packet: Packet,
    payload_size: usize,
}

impl Message {
    /// A message of `kind` with `code`; id 0, no token, no options, no payload.
    pub fn new(kind: Kind, code: Code) -> Self {
        let mut packet = Packet::new();
        packet.header.set_version(1);
        packet.header.set_type(kind.into());
        packet.header.code = MessageClass::from(code.0);
        Self { packet, payload_size: 0 }
    }

    /// An empty message of `kind` with the id `id`: acknowledgement, reset or ping (RFC 7252 §4.1).
    pub fn empty(kind: Kind, id: u16) -> Self {
        let mut message = Self::new(kind, Code::EMPTY);
        message.set_id(id);
        message
    }

    /// A response with `code`, to be given its type, id and token by the message layer.
    pub fn response(code: Code) -> Self {
        Self::new(Kind::NonConfirmable, code)
    }

    /// Decodes one datagram.
    ///
    /// A payload over [`MAX_PAYLOAD`] bytes is left out, so that nothing large is copied;
    /// [`payload_size`](Self::payload_size) still tells its size, for the 4.13 answer.
    ///
    /// # Errors
    /// [`Fault`] tells what RFC 7252 §3 and §4.2 want done with a datagram that is no message.
    pub fn decode(datagram: &[u8]) -> Result<Self, Fault> {
        let head = Head::parse(datagram)?;
        let body = head.options_end(datagram).ok_or(head.fault())?;
        let payload_size = datagram.len().saturating_sub(body + 1);
        let kept = if payload_size > MAX_PAYLOAD { body } else { datagram.len() };
        let packet = Packet::from_bytes(&datagram[..kept]).map_err(|_| head.fault())?;
        let message = Self { packet, payload_size };
        // RFC 7252 §4.1: an empty message has neither token nor bytes after the id.
        if message.code() == Code::EMPTY && datagram.len() > 4 {
            return Err(head.fault());
        }
        // RFC 7252 §4.2: the classes 1, 6 and 7 are reserved, such a message is a format error.
        if matches!(message.code().class(), 1 | 6 | 7) {
            return Err(head.fault());
        }
        Ok(message)
    }

    /// The bytes of the message. Never longer than what was put into it plus its option headers.
    pub fn encode(&self) -> Vec<u8> {
        // Without a size limit the codec fails only on a buffer below 4 bytes, which it makes itself.
        self.packet.to_bytes_unlimited().unwrap_or_default()
    }

    /// The message type (RFC 7252 §4).
    pub fn kind(&self) -> Kind {
        self.packet.header.get_type().into()
    }

    /// Sets the message type.
    pub fn set_kind(&mut self, kind: Kind) {
        self.packet.header.set_type(kind.into());
    }

    /// The code: empty, a method or a response code.
    pub fn code(&self) -> Code {
        Code(self.packet.header.code.into())
    }

    /// The message id.
    pub fn id(&self) -> u16 {
        self.packet.header.message_id
    }

    /// Sets the message id.
    pub fn set_id(&mut self, id: u16) {
        self.packet.header.message_id = id;
    }

    /// The token (RFC 7252 §5.3.1).
    pub fn token(&self) -> Token {
        Token::new(self.packet.get_token())
    }

    /// Sets the token.
    pub fn set_token(&mut self, token: Token) {
        self.packet.set_token(token.as_slice().to_vec());
    }

    /// The payload; empty also when it was too large to be kept.
    pub fn payload(&self) -> &[u8] {
        &self.packet.payload
    }

    /// Sets the payload.
    pub fn set_payload(&mut self, payload: &[u8]) {
        self.payload_size = payload.len();
        self.packet.payload = payload.to_vec();
    }

    /// The size of the payload on the wire, in bytes; larger than `payload().len()` when that was left out.
    pub fn payload_size(&self) -> usize {
        self.payload_size
    }

    /// Adds one option value.
    pub fn add(&mut self, number: u16, value: &[u8]) {
        self.packet.add_option(CoapOption::from(number), value.to_vec());
    }

    /// Adds one option with an unsigned value, without leading zeros (RFC 7252 §3.2).
    pub fn add_uint(&mut self, number: u16, value: u64) {
        let bytes = value.to_be_bytes();
        let zeros = value.leading_zeros() as usize / 8;
        self.add(number, &bytes[zeros..]);
    }

    /// All options in order: number and value.
    pub fn options(&self) -> impl Iterator<Item = (u16, &[u8])> {
        self.packet.options().flat_map(|(number, values)| values.iter().map(move |value| (*number, value.as_slice())))
    }

    /// All values of the option `number`, in order.
    pub fn values(&self, number: u16) -> impl Iterator<Item = &[u8]> {
        self.packet.get_option(CoapOption::from(number)).into_iter().flatten().map(Vec::as_slice)
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

/// The four message types (RFC 7252 §4.2, §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Wants an acknowledgement.
    Confirmable,
    /// Wants none.
    NonConfirmable,
    /// Acknowledges a confirmable message.
    Acknowledgement,
    /// Says that a message could not be used.
    Reset,
}

impl From<Kind> for MessageType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Confirmable => Self::Confirmable,
            Kind::NonConfirmable => Self::NonConfirmable,
            Kind::Acknowledgement => Self::Acknowledgement,
            Kind::Reset => Self::Reset,
        }
    }
}

impl From<MessageType> for Kind {
    fn from(kind: MessageType) -> Self {
        match kind {
            MessageType::Confirmable => Self::Confirmable,
            MessageType::NonConfirmable => Self::NonConfirmable,
            MessageType::Acknowledgement => Self::Acknowledgement,
            MessageType::Reset => Self::Reset,
        }
    }
}

/// A message code `c.dd` (RFC 7252 §12.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
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

/// A datagram that is no message, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// RFC 7252 §3, §4.2, §4.3: not CoAP version 1, or a type that is never answered: drop it in silence.
    Ignore,
    /// RFC 7252 §4.2: a confirmable message with a format error: answer with a Reset of this id.
    Reset(u16),
}

/// The four fixed bytes (RFC 7252 §3).
struct Head {
    confirmable: bool,
    token_length: usize,
    id: u16,
}

impl Head {
    fn parse(datagram: &[u8]) -> Result<Self, Fault> {
        let [first, _, high, low, ..] = *datagram else { return Err(Fault::Ignore) };
        // RFC 7252 §3: messages with unknown version numbers MUST be silently ignored.
        if first >> 6 != 1 {
            return Err(Fault::Ignore);
        }
        Ok(Self {
            confirmable: first >> 4 & 3 == 0,
            token_length: usize::from(first & 0x0F),
            id: u16::from_be_bytes([high, low]),
        })
    }

    fn fault(&self) -> Fault {
        if self.confirmable { Fault::Reset(self.id) } else { Fault::Ignore }
    }

    /// Where the options end: at the payload marker or at the end. `None` for a format error.
    fn options_end(&self, datagram: &[u8]) -> Option<usize> {
        // RFC 7252 §3: token lengths 9-15 are reserved and a format error.
        if self.token_length > 8 {
            return None;
        }
        let mut at = 4 + self.token_length;
        datagram.get(..at)?;
        let (mut number, mut count) = (0u32, 0);
        while let Some(first) = datagram.get(at) {
            if *first == 0xFF {
                // RFC 7252 §3: a marker followed by a zero-length payload is a format error.
                return (at + 1 < datagram.len()).then_some(at);
            }
            at += 1;
            number += extended(datagram, &mut at, first >> 4)?;
            let length = extended(datagram, &mut at, first & 0x0F)? as usize;
            at = at.checked_add(length)?;
            count += 1;
            let bounded = number <= 0xFFFF && length <= MAX_OPTION_LENGTH && count <= MAX_OPTIONS;
            if !bounded || at > datagram.len() {
                return None;
            }
        }
        Some(at)
    }
}

/// An option's delta or length with its extension bytes (RFC 7252 §3.1); 15 is reserved.
fn extended(datagram: &[u8], at: &mut usize, nibble: u8) -> Option<u32> {
    match nibble {
        13 => {
            let value = u32::from(*datagram.get(*at)?) + 13;
            *at += 1;
            Some(value)
        }
        14 => {
            let bytes = datagram.get(*at..*at + 2)?;
            *at += 2;
            Some(u32::from(bytes[0]) << 8 | u32::from(bytes[1])).map(|value| value + 269)
        }
        15 => None,
        _ => Some(u32::from(nibble)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_wire() {
        let mut put = Message::new(Kind::Confirmable, Code::PUT);
        put.set_id(0x1234);
        put.set_token(Token::new(b"tok"));
        put.add(option::URI_PATH, b"t");
        put.add(option::URI_PATH, b"");
        put.add_uint(option::CONTENT_FORMAT, 0);
        put.add_uint(option::SIZE1, 70_000);
        put.set_payload(b"21.5");
        let back = Message::decode(&put.encode()).unwrap();
        assert_eq!(back.code(), Code::PUT);
        assert_eq!((back.id(), back.token()), (0x1234, Token::new(b"tok")));
        assert_eq!(back.values(option::URI_PATH).collect::<Vec<_>>(), [b"t".as_slice(), b""]);
        assert_eq!(back.uint(option::CONTENT_FORMAT), Some(0));
        assert_eq!(back.uint(option::SIZE1), Some(70_000));
        assert_eq!(back.payload(), b"21.5");
    }

    #[test]
    fn a_large_payload_is_measured_but_not_kept() {
        let mut datagram = vec![0x40, 3, 0, 7, 0xFF];
        datagram.resize(5 + MAX_PAYLOAD, b'x');
        assert_eq!(Message::decode(&datagram).unwrap().payload().len(), MAX_PAYLOAD);
        datagram.push(b'x');
        let message = Message::decode(&datagram).unwrap();
        assert_eq!((message.payload().len(), message.payload_size()), (0, MAX_PAYLOAD + 1));
    }

    #[test]
    fn format_errors_are_reset_when_confirmable_and_ignored_otherwise() {
        let cases: [(&str, &[u8]); 9] = [
            ("reserved token length", &[0x49, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("token cut off", &[0x44, 1, 0, 9, 1]),
            ("marker without payload", &[0x40, 1, 0, 9, 0xFF]),
            ("reserved delta", &[0x40, 1, 0, 9, 0xF0]),
            ("reserved length", &[0x40, 1, 0, 9, 0x0F]),
            ("option cut off", &[0x40, 1, 0, 9, 0xB5, b'a']),
            ("extension cut off", &[0x40, 1, 0, 9, 0xE0, 0]),
            ("empty with a token", &[0x41, 0, 0, 9, 1]),
            ("reserved class", &[0x40, 0x20, 0, 9]),
        ];
        for (what, bytes) in cases {
            assert_eq!(Message::decode(bytes), Err(Fault::Reset(9)), "{what}");
            let mut non = bytes.to_vec();
            non[0] |= 0x10;
            assert_eq!(Message::decode(&non), Err(Fault::Ignore), "{what}");
        }
        assert_eq!(Message::decode(&[0x80, 1, 0, 9]), Err(Fault::Ignore), "version 2");
        assert_eq!(Message::decode(&[0x40, 1, 0]), Err(Fault::Ignore), "short");
    }

    #[test]
    fn too_many_options_or_a_too_high_number_are_refused() {
        let mut datagram = vec![0x40, 1, 0, 9];
        datagram.extend(std::iter::repeat_n(0u8, MAX_OPTIONS));
        assert!(Message::decode(&datagram).is_ok());
        datagram.push(0);
        assert_eq!(Message::decode(&datagram), Err(Fault::Reset(9)));
        let high = [0x40, 1, 0, 9, 0xE0, 0xFF, 0xFF];
        assert_eq!(Message::decode(&high), Err(Fault::Reset(9)));
    }
}
