//! MQTT 3.1.1 and 5 packets as a client needs them, few properties: a test's own view of the wire, apart from the broker's.

use anyhow::{Context, bail, ensure};

/// The protocol level in CONNECT (MQTT 5 §3.1.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1.
    V4,
    /// MQTT 5.
    V5,
}

/// What a client says when it connects.
#[derive(Clone, Debug)]
pub struct Connect {
    /// The protocol version.
    pub version: Version,
    /// The client identifier.
    pub client_id: String,
    /// User name and password.
    pub login: Option<(String, String)>,
    /// Clean session, or clean start without a session that outlives the connection.
    pub clean: bool,
    /// Topic and payload of the will, sent at QoS 1.
    pub will: Option<(String, Vec<u8>)>,
    /// Keep-alive in seconds.
    pub keep_alive: u16,
}

/// One publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Topic name.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// Quality of service, 0 to 2.
    pub qos: u8,
    /// The RETAIN flag.
    pub retain: bool,
    /// The DUP flag.
    pub duplicate: bool,
    /// Packet identifier; 0 at QoS 0.
    pub id: u16,
}

/// A packet that a server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// CONNACK with its code and whether a session was there.
    Connack {
        /// Return code or reason code.
        code: u8,
        /// Session present.
        present: bool,
    },
    /// PUBLISH.
    Publish(Publish),
    /// PUBACK, PUBREC, PUBREL or PUBCOMP: packet type, packet identifier, reason code.
    Ack(u8, u16, u8),
    /// SUBACK or UNSUBACK: packet type, packet identifier, codes.
    Codes(u8, u16, Vec<u8>),
    /// PINGRESP.
    Pong,
    /// DISCONNECT with its reason code (MQTT 5).
    Disconnect(u8),
}

/// Packet types of MQTT 5 §2.1.2.
pub mod kind {
    /// PUBACK.
    pub const PUBACK: u8 = 4;
    /// PUBREC.
    pub const PUBREC: u8 = 5;
    /// PUBREL.
    pub const PUBREL: u8 = 6;
    /// PUBCOMP.
    pub const PUBCOMP: u8 = 7;
    /// SUBACK.
    pub const SUBACK: u8 = 9;
}

/// PINGREQ (MQTT 5 §3.12).
pub const PING: [u8; 2] = [0xC0, 0];

impl Connect {
    /// CONNECT (MQTT 5 §3.1).
    pub fn encode(&self) -> Vec<u8> {
        let mut body = text("MQTT");
        body.push(if self.version == Version::V5 { 5 } else { 4 });
        body.push(self.flags());
        body.extend(self.keep_alive.to_be_bytes());
        if self.version == Version::V5 {
            // MQTT 5 §3.1.2.11.2: Session Expiry Interval, an hour if the session is to stay.
            let expiry: u32 = if self.clean { 0 } else { 3600 };
            body.extend([5, 0x11]);
            body.extend(expiry.to_be_bytes());
        }
        body.extend(text(&self.client_id));
        if let Some((topic, payload)) = &self.will {
            body.extend(properties(self.version));
            body.extend(text(topic));
            body.extend(binary(payload));
        }
        if let Some((user, password)) = &self.login {
            body.extend(text(user));
            body.extend(text(password));
        }
        frame(0x10, &body)
    }

    fn flags(&self) -> u8 {
        let login = if self.login.is_some() { 0b1100_0000 } else { 0 };
        let will = if self.will.is_some() { 0b0000_1100 } else { 0 };
        login | will | u8::from(self.clean) << 1
    }
}

impl Publish {
    /// PUBLISH (MQTT 5 §3.3).
    pub fn encode(&self, version: Version) -> Vec<u8> {
        let mut body = text(&self.topic);
        if self.qos > 0 {
            body.extend(self.id.to_be_bytes());
        }
        body.extend(properties(version));
        body.extend(&self.payload);
        frame(0x30 | u8::from(self.duplicate) << 3 | self.qos << 1 | u8::from(self.retain), &body)
    }

    fn decode(first: u8, body: &[u8], version: Version) -> anyhow::Result<Self> {
        let mut input = Input(body);
        let qos = first >> 1 & 3;
        let topic = input.text()?;
        let id = if qos > 0 { input.number()? } else { 0 };
        if version == Version::V5 {
            input.skip_properties()?;
        }
        let (retain, duplicate) = (first & 1 != 0, first & 8 != 0);
        Ok(Self { topic, payload: input.0.to_vec(), qos, retain, duplicate, id })
    }
}

/// SUBSCRIBE to one filter (MQTT 5 §3.8).
pub fn subscribe(version: Version, id: u16, filter: &str, qos: u8) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend(properties(version));
    body.extend(text(filter));
    body.push(qos);
    frame(0x82, &body)
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP with success (MQTT 5 §3.4 to §3.7).
pub fn ack(kind: u8, id: u16) -> Vec<u8> {
    let flags = if kind == kind::PUBREL { 2 } else { 0 };
    frame(kind << 4 | flags, &id.to_be_bytes())
}

/// DISCONNECT without a reason (MQTT 5 §3.14).
pub fn disconnect() -> [u8; 2] {
    [0xE0, 0]
}

/// Takes the first whole packet off the buffer. `None` until more bytes come.
///
/// # Errors
/// What is there is no packet that a server sends.
pub fn decode(buffer: &mut Vec<u8>, version: Version) -> anyhow::Result<Option<Packet>> {
    let Some((length, header)) = remaining_length(buffer)? else { return Ok(None) };
    if buffer.len() < header + length {
        return Ok(None);
    }
    let packet: Vec<u8> = buffer.drain(..header + length).collect();
    packet_of(packet[0], &packet[header..], version).map(Some)
}

fn packet_of(first: u8, body: &[u8], version: Version) -> anyhow::Result<Packet> {
    let mut input = Input(body);
    Ok(match first >> 4 {
        2 => Packet::Connack { present: input.byte()? & 1 != 0, code: input.byte()? },
        3 => Packet::Publish(Publish::decode(first, body, version)?),
        kind @ 4..=7 => Packet::Ack(kind, input.number()?, input.byte().unwrap_or(0)),
        kind @ (9 | 11) => Packet::Codes(kind, input.number()?, input.codes(version)?),
        13 => Packet::Pong,
        14 => Packet::Disconnect(input.byte().unwrap_or(0)),
        other => bail!("a server sends no packet of type {other}"),
    })
}

/// MQTT 5 §2.1.4: the length and where the body begins.
fn remaining_length(buffer: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let mut length = 0;
    for (at, byte) in buffer.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((length, at + 2)));
        }
    }
    ensure!(buffer.len() < 5, "a remaining length of more than four bytes");
    Ok(None)
}

/// A whole packet from its first byte and its body.
pub fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    loop {
        let byte = (length % 128) as u8;
        length /= 128;
        packet.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

fn text(text: &str) -> Vec<u8> {
    binary(text.as_bytes())
}

fn binary(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), &bytes[..usize::from(length)]].concat()
}

/// No properties: one zero byte in MQTT 5, nothing before.
fn properties(version: Version) -> &'static [u8] {
    if version == Version::V5 { &[0] } else { &[] }
}

/// Bytes not yet read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> anyhow::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).context("the packet is too short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> anyhow::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> anyhow::Result<u16> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn text(&mut self) -> anyhow::Result<String> {
        let length = self.number()?;
        Ok(String::from_utf8(self.take(length.into())?.to_vec())?)
    }

    fn skip_properties(&mut self) -> anyhow::Result<()> {
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.byte()?;
            length |= usize::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 || shift > 21 {
                return self.take(length).map(drop);
            }
        }
    }

    fn codes(&mut self, version: Version) -> anyhow::Result<Vec<u8>> {
        if version == Version::V5 {
            self.skip_properties()?;
        }
        Ok(self.0.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish() -> Publish {
        Publish { topic: "d/1/up/t".into(), payload: vec![7; 200], qos: 1, retain: true, duplicate: false, id: 9 }
    }

    #[test]
    fn reads_its_own_publish_back_in_both_versions() {
        for version in [Version::V4, Version::V5] {
            let mut bytes = publish().encode(version);
            bytes.extend([0xD0, 0, 0x40]);
            assert_eq!(decode(&mut bytes, version).unwrap(), Some(Packet::Publish(publish())));
            assert_eq!(decode(&mut bytes, version).unwrap(), Some(Packet::Pong));
            assert_eq!(decode(&mut bytes, version).unwrap(), None);
        }
    }

    /// Bytes written by hand from MQTT 3.1.1 §3.1 and §3.9.
    #[test]
    fn matches_the_standards_layout() {
        let login = Some(("u".into(), "p".into()));
        let connect =
            Connect { version: Version::V4, client_id: "c".into(), login, clean: true, will: None, keep_alive: 10 };
        let expected = [0x10, 19, 0, 4, b'M', b'Q', b'T', b'T', 4, 0xC2, 0, 10, 0, 1, b'c', 0, 1, b'u', 0, 1, b'p'];
        assert_eq!(connect.encode(), expected);
        let mut suback = vec![0x90, 3, 0, 5, 0x80];
        let expected = Packet::Codes(kind::SUBACK, 5, vec![0x80]);
        assert_eq!(decode(&mut suback, Version::V4).unwrap(), Some(expected));
    }

    #[test]
    fn refuses_what_no_server_sends() {
        assert!(decode(&mut vec![0x10, 0], Version::V4).is_err());
        assert!(decode(&mut vec![0x30, 0xFF, 0xFF, 0xFF, 0xFF, 1], Version::V4).is_err());
    }
}
