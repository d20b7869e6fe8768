//! A bounds-checked walk over a packet's fields: proves each length, string and property before anything relies on it.

use crate::error::Fault;
use crate::frame::remaining_length;

/// What is left of a packet or of its property section.
#[derive(Clone, Copy)]
pub(crate) struct Walk<'a> {
    rest: &'a [u8],
}

impl<'a> Walk<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not walked over yet.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Fault::Malformed("a field is cut"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    /// MQTT 5.0 §1.5.2: big-endian.
    pub(crate) fn two(&mut self) -> Result<u16, Fault> {
        let b = self.take(2)?;
        Ok(u16::from_be_bytes([b[0], b[1]]))
    }

    pub(crate) fn four(&mut self) -> Result<u32, Fault> {
        let b = self.take(4)?;
        Ok(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// MQTT 5.0 §1.5.6: binary data, two bytes of length.
    pub(crate) fn binary(&mut self) -> Result<&'a [u8], Fault> {
        let length = self.two()?;
        self.take(usize::from(length))
    }

    /// MQTT 5.0 §1.5.4, 3.1.1 §1.5.3: well-formed UTF-8 (so no surrogates) without U+0000.
    pub(crate) fn string(&mut self) -> Result<&'a str, Fault> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| Fault::Malformed("a string is not UTF-8"))?;
        if text.as_bytes().contains(&0) { Err(Fault::Malformed("U+0000 in a string")) } else { Ok(text) }
    }

    /// MQTT 5.0 §2.2.1: a packet id is never 0.
    pub(crate) fn packet_id(&mut self) -> Result<u16, Fault> {
        match self.two()? {
            0 => Err(Fault::Protocol("packet id 0")),
            id => Ok(id),
        }
    }

    /// MQTT 5.0 §1.5.5.
    pub(crate) fn variable(&mut self) -> Result<usize, Fault> {
        let (value, width) = remaining_length(self.rest)?.ok_or(Fault::Malformed("a length is cut"))?;
        self.take(width)?;
        Ok(value)
    }

    /// Nothing may follow the last field.
    pub(crate) fn end(self) -> Result<(), Fault> {
        if self.rest.is_empty() { Ok(()) } else { Err(Fault::Malformed("bytes after the last field")) }
    }

    /// The property section (MQTT 5.0 §2.2.2): its length, then a walk over exactly its bytes.
    pub(crate) fn properties(&mut self) -> Result<Walk<'a>, Fault> {
        let length = self.variable()?;
        Ok(Walk::new(self.take(length)?))
    }
}

/// Property identifiers (MQTT 5.0 §2.2.2.2) that a client may send.
pub(crate) mod id {
    pub(crate) const PAYLOAD_FORMAT: u8 = 1;
    pub(crate) const MESSAGE_EXPIRY: u8 = 2;
    pub(crate) const CONTENT_TYPE: u8 = 3;
    pub(crate) const RESPONSE_TOPIC: u8 = 8;
    pub(crate) const CORRELATION: u8 = 9;
    pub(crate) const SUBSCRIPTION_ID: u8 = 11;
    pub(crate) const SESSION_EXPIRY: u8 = 17;
    pub(crate) const AUTH_METHOD: u8 = 21;
    pub(crate) const AUTH_DATA: u8 = 22;
    pub(crate) const PROBLEM_INFO: u8 = 23;
    pub(crate) const WILL_DELAY: u8 = 24;
    pub(crate) const RESPONSE_INFO: u8 = 25;
    pub(crate) const REASON: u8 = 31;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 33;
    pub(crate) const ALIAS_MAXIMUM: u8 = 34;
    pub(crate) const TOPIC_ALIAS: u8 = 35;
    pub(crate) const USER: u8 = 38;
    pub(crate) const MAXIMUM_PACKET: u8 = 39;
}

/// One property, already in bounds and of a legal value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Byte(u8),
    Two,
    Four(u32),
    Variable,
    Text(&'a str),
    Binary(&'a [u8]),
    Pair(&'a str, &'a str),
}

/// A set of property identifiers; all of them are below 64.
#[derive(Clone, Copy)]
pub(crate) struct Allowed(u64);

impl Allowed {
    pub(crate) const fn of(ids: &[u8]) -> Self {
        let (mut set, mut at) = (0u64, 0);
        while at < ids.len() {
            set |= 1 << ids[at];
            at += 1;
        }
        Self(set)
    }

    fn has(self, id: u8) -> bool {
        id < 64 && self.0 >> id & 1 == 1
    }
}

/// Walks a property section and shows each property to `each`. Refused: an identifier not in `allowed`, a second
/// one where only one may be (all but User Property, MQTT 5.0 §2.2.2.2 and the sections of the packets), a cut value.
pub(crate) fn each_property<'a>(
    mut section: Walk<'a>,
    allowed: Allowed,
    mut each: impl FnMut(u8, Value<'a>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut seen = 0u64;
    while section.left() > 0 {
        let id = section.byte()?;
        if !allowed.has(id) {
            return Err(Fault::Protocol("a property that does not belong here"));
        }
        if id != id::USER && seen >> id & 1 == 1 {
            return Err(Fault::Protocol("a property twice"));
        }
        seen |= 1 << id;
        each(id, value(&mut section, id)?)?;
    }
    Ok(())
}

/// The value types of MQTT 5.0 table 2-4, with the ranges that the properties' own sections set.
fn value<'a>(section: &mut Walk<'a>, property: u8) -> Result<Value<'a>, Fault> {
    Ok(match property {
        id::PAYLOAD_FORMAT | id::PROBLEM_INFO | id::RESPONSE_INFO => match section.byte()? {
            flag @ 0..=1 => Value::Byte(flag),
            _ => return Err(Fault::Protocol("a flag that is neither 0 nor 1")),
        },
        id::MESSAGE_EXPIRY | id::SESSION_EXPIRY | id::WILL_DELAY => Value::Four(section.four()?),
        // §3.1.2.11.4: a Maximum Packet Size of 0 is a protocol error.
        id::MAXIMUM_PACKET => match section.four()? {
            0 => return Err(Fault::Protocol("maximum packet size 0")),
            size => Value::Four(size),
        },
        // §3.1.2.11.3: a Receive Maximum of 0 is a protocol error.
        id::RECEIVE_MAXIMUM if section.two()? == 0 => return Err(Fault::Protocol("receive maximum 0")),
        id::RECEIVE_MAXIMUM => Value::Two,
        id::ALIAS_MAXIMUM | id::TOPIC_ALIAS => section.two().map(|_| Value::Two)?,
        // §3.8.2.1.2: a Subscription Identifier is 1 to 268,435,455.
        id::SUBSCRIPTION_ID => match section.variable()? {
            0 => return Err(Fault::Protocol("subscription identifier 0")),
            _ => Value::Variable,
        },
        id::CORRELATION | id::AUTH_DATA => Value::Binary(section.binary()?),
        id::USER => Value::Pair(section.string()?, section.string()?),
        id::CONTENT_TYPE | id::RESPONSE_TOPIC | id::AUTH_METHOD | id::REASON => Value::Text(section.string()?),
        _ => return Err(Fault::Protocol("an unknown property")),
    })
}
