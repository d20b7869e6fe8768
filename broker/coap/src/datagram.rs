//! A message over UDP: its type, its id, and the four bytes that carry them (RFC 7252 §3, §4).

use std::ops::{Deref, DerefMut};

use crate::message::{Code, Message, Token};

/// One CoAP message with what UDP needs besides (RFC 7252 §3).
#[derive(Clone, Debug, PartialEq)]
pub struct Datagram {
    /// The type.
    pub kind: Kind,
    /// The message id.
    pub id: u16,
    /// The message.
    pub message: Message,
}

impl Datagram {
    /// A datagram of `kind` with `code`; id 0, no token, no options, no payload.
    pub fn new(kind: Kind, code: Code) -> Self {
        Self { kind, id: 0, message: Message::new(code) }
    }

    /// An empty message of `kind` with the id `id`: acknowledgement, reset or ping (RFC 7252 §4.1).
    pub fn empty(kind: Kind, id: u16) -> Self {
        Self { kind, id, message: Message::new(Code::EMPTY) }
    }

    /// Decodes one datagram.
    ///
    /// # Errors
    /// [`Fault`] tells what RFC 7252 §3 and §4.2 want done with a datagram that is no message.
    pub fn decode(datagram: &[u8]) -> Result<Self, Fault> {
        let head = Head::parse(datagram)?;
        let message = head.message(datagram).ok_or(head.fault())?;
        // RFC 7252 §4.1: an empty message has neither token nor bytes after the id.
        let is_long = head.code == Code::EMPTY && datagram.len() > 4;
        // RFC 7252 §4.2: the classes 1, 6 and 7 are reserved, such a message is a format error.
        if is_long || matches!(head.code.class(), 1 | 6 | 7) {
            return Err(head.fault());
        }
        Ok(Self { kind: head.kind, id: head.id, message })
    }

    /// The bytes of the datagram.
    pub fn encode(&self) -> Vec<u8> {
        let token = self.token();
        let first = 1 << 6 | self.kind.bits() << 4 | token.as_slice().len() as u8;
        let mut bytes = vec![first, self.code().byte()];
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(token.as_slice());
        self.message.encode_body(&mut bytes);
        bytes
    }
}

impl Deref for Datagram {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl DerefMut for Datagram {
    fn deref_mut(&mut self) -> &mut Message {
        &mut self.message
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

impl Kind {
    fn bits(self) -> u8 {
        match self {
            Self::Confirmable => 0,
            Self::NonConfirmable => 1,
            Self::Acknowledgement => 2,
            Self::Reset => 3,
        }
    }

    fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Confirmable,
            1 => Self::NonConfirmable,
            2 => Self::Acknowledgement,
            _ => Self::Reset,
        }
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
    kind: Kind,
    token_length: usize,
    code: Code,
    id: u16,
}

impl Head {
    fn parse(datagram: &[u8]) -> Result<Self, Fault> {
        let [first, code, high, low, ..] = *datagram else { return Err(Fault::Ignore) };
        // RFC 7252 §3: messages with unknown version numbers MUST be silently ignored.
        if first >> 6 != 1 {
            return Err(Fault::Ignore);
        }
        Ok(Self {
            kind: Kind::from_bits(first >> 4),
            token_length: usize::from(first & 0x0F),
            code: Code::from_byte(code),
            id: u16::from_be_bytes([high, low]),
        })
    }

    fn message(&self, datagram: &[u8]) -> Option<Message> {
        // RFC 7252 §3: token lengths 9-15 are reserved and a format error.
        if self.token_length > 8 {
            return None;
        }
        let (token, body) = datagram[4..].split_at_checked(self.token_length)?;
        Message::decode_body(self.code, Token::new(token), body)
    }

    fn fault(&self) -> Fault {
        if self.kind == Kind::Confirmable { Fault::Reset(self.id) } else { Fault::Ignore }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{MAX_OPTIONS, MAX_PAYLOAD, option};
    use proptest::prelude::*;

    #[test]
    fn a_message_survives_the_wire() {
        let mut put = Datagram::new(Kind::Confirmable, Code::PUT);
        put.id = 0x1234;
        put.set_token(Token::new(b"tok"));
        put.add(option::URI_PATH, b"t");
        put.add(option::URI_PATH, b"");
        put.add_uint(option::CONTENT_FORMAT, 0);
        put.add_uint(option::SIZE1, 70_000);
        put.set_payload(b"21.5");
        let back = Datagram::decode(&put.encode()).unwrap();
        assert_eq!(back.code(), Code::PUT);
        assert_eq!((back.id, back.token()), (0x1234, Token::new(b"tok")));
        assert_eq!(back.values(option::URI_PATH).collect::<Vec<_>>(), [b"t".as_slice(), b""]);
        assert_eq!(back.uint(option::CONTENT_FORMAT), Some(0));
        assert_eq!(back.uint(option::SIZE1), Some(70_000));
        assert_eq!(back.payload(), b"21.5");
    }

    #[test]
    fn a_large_payload_is_measured_but_not_kept() {
        let mut datagram = vec![0x40, 3, 0, 7, 0xFF];
        datagram.resize(5 + MAX_PAYLOAD, b'x');
        assert_eq!(Datagram::decode(&datagram).unwrap().payload().len(), MAX_PAYLOAD);
        datagram.push(b'x');
        let message = Datagram::decode(&datagram).unwrap();
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
            assert_eq!(Datagram::decode(bytes), Err(Fault::Reset(9)), "{what}");
            let mut non = bytes.to_vec();
            non[0] |= 0x10;
            assert_eq!(Datagram::decode(&non), Err(Fault::Ignore), "{what}");
        }
        assert_eq!(Datagram::decode(&[0x80, 1, 0, 9]), Err(Fault::Ignore), "version 2");
        assert_eq!(Datagram::decode(&[0x40, 1, 0]), Err(Fault::Ignore), "short");
    }

    #[test]
    fn too_many_options_or_a_too_high_number_are_refused() {
        let mut datagram = vec![0x40, 1, 0, 9];
        datagram.extend(std::iter::repeat_n(0u8, MAX_OPTIONS));
        assert!(Datagram::decode(&datagram).is_ok());
        datagram.push(0);
        assert_eq!(Datagram::decode(&datagram), Err(Fault::Reset(9)));
        let high = [0x40, 1, 0, 9, 0xE0, 0xFF, 0xFF];
        assert_eq!(Datagram::decode(&high), Err(Fault::Reset(9)));
    }

    proptest! {
        /// Two codecs of different origin agree on what a datagram is.
        #[test]
        fn what_is_encoded_reads_alike_elsewhere(
            id: u16, token in proptest::collection::vec(any::<u8>(), 0..9),
            options in proptest::collection::vec((any::<u16>(), proptest::collection::vec(any::<u8>(), 0..400)), 0..8),
            payload in proptest::collection::vec(any::<u8>(), 0..40)
        ) {
            let mut datagram = Datagram { id, ..Datagram::new(Kind::NonConfirmable, Code::CONTENT) };
            datagram.set_token(Token::new(&token));
            options.iter().for_each(|(number, value)| datagram.add(*number, value));
            datagram.set_payload(&payload);
            let packet = coap_lite::Packet::from_bytes(&datagram.encode()).unwrap();
            prop_assert_eq!((packet.header.message_id, packet.get_token()), (id, token.as_slice()));
            prop_assert_eq!(&packet.payload, &payload);
            let theirs: Vec<_> = packet.options().flat_map(|(number, values)| values.iter().map(|value| (*number, value.clone()))).collect();
            let ours: Vec<_> = datagram.options().map(|(number, value)| (number, value.to_vec())).collect();
            prop_assert_eq!(theirs, ours);
            prop_assert_eq!(Datagram::decode(&datagram.encode()), Ok(datagram));
        }
    }
}
