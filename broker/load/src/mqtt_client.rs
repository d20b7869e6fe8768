//! MQTT 3.1.1 as far as an injector needs it: log in, subscribe, then packets cut out of a buffer without copies.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

/// Who connects.
#[derive(Clone, Copy, Debug)]
pub struct Login<'a> {
    /// Client identifier.
    pub client_id: &'a str,
    /// User name.
    pub user: &'a str,
    /// Password.
    pub password: &'a str,
    /// Whether the session ends with the connection (MQTT 3.1.1 §3.1.2.4).
    pub clean: bool,
}

/// Packet types, MQTT 3.1.1 §2.2.1, as the high half of the first byte.
pub mod kind {
    /// PUBLISH.
    pub const PUBLISH: u8 = 0x30;
    /// PUBACK.
    pub const PUBACK: u8 = 0x40;
}

/// Connects and logs in.
pub async fn connect(address: SocketAddr, login: Login<'_>) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // MQTT 3.1.1 §3.1: user name, password, whether the session is clean; keep-alive ten minutes.
    let mut body = text("MQTT");
    body.extend([4, 0b1100_0000 | u8::from(login.clean) << 1, 2, 88]);
    [login.client_id, login.user, login.password].iter().for_each(|part| body.extend(text(part)));
    stream.write_all(&frame(0x10, &body)).await?;
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).await.context("no CONNACK")?;
    ensure!(connack[0] == 0x20 && connack[3] == 0, "CONNECT was refused with {}", connack[3]);
    Ok(stream)
}

/// The bytes of a SUBSCRIBE with one filter.
pub fn subscribe_packet(filter: &str, qos: u8) -> Vec<u8> {
    let mut body = vec![0, 1];
    body.extend(text(filter));
    body.push(qos);
    frame(0x82, &body)
}

/// Subscribes to one filter.
pub async fn subscribe(stream: &mut TcpStream, filter: &str, qos: u8) -> anyhow::Result<()> {
    stream.write_all(&subscribe_packet(filter, qos)).await?;
    let mut suback = [0; 5];
    stream.read_exact(&mut suback).await.context("no SUBACK")?;
    ensure!(suback[0] == 0x90 && suback[4] == qos, "SUBSCRIBE was answered with {}", suback[4]);
    Ok(())
}

/// The bytes of a publication; its packet identifier, at QoS 1, is put in for each copy.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    id_at: Option<usize>,
}

impl Template {
    /// A publication at QoS 0 or 1.
    pub fn new(topic: &str, payload: &[u8], qos: u8) -> Self {
        Self::flagged(topic, payload, qos << 1)
    }

    /// A publication with RETAIN at QoS 1.
    pub fn retained(topic: &str, payload: &[u8]) -> Self {
        Self::flagged(topic, payload, 0b11)
    }

    fn flagged(topic: &str, payload: &[u8], flags: u8) -> Self {
        let mut body = text(topic);
        let topic_end = body.len();
        if flags & 0b10 != 0 {
            body.extend([0, 0]);
        }
        body.extend(payload);
        let bytes = frame(kind::PUBLISH | flags, &body);
        let id_at = (flags & 0b10 != 0).then(|| bytes.len() - body.len() + topic_end);
        Self { bytes, id_at }
    }

    /// Appends a copy with the number as identifier.
    pub fn write(&self, number: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        if let Some(at) = self.id_at {
            // MQTT 3.1.1 §2.3.1: an identifier is never 0.
            let id = (number % 65_535 + 1) as u16;
            out[start + at..start + at + 2].copy_from_slice(&id.to_be_bytes());
        }
    }
}

/// PUBACK for an identifier.
pub fn puback(id: [u8; 2], out: &mut Vec<u8>) {
    out.extend([kind::PUBACK, 2, id[0], id[1]]);
}

/// Packets as they come from a server.
pub struct Packets {
    read: OwnedReadHalf,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Packets {
    /// Reads packets from here.
    pub fn new(read: OwnedReadHalf) -> Self {
        Self { read, buffer: vec![0; 256 * 1024], start: 0, end: 0 }
    }

    /// Waits for bytes. Call it when [`Packets::take`] has no more.
    pub async fn fill(&mut self) -> anyhow::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        ensure!(self.end < self.buffer.len(), "a packet of more than {} bytes", self.buffer.len());
        let length = self.read.read(&mut self.buffer[self.end..]).await?;
        ensure!(length > 0, "the server closed the connection");
        self.end += length;
        Ok(())
    }

    /// The next whole packet: its first byte and its body.
    pub fn take(&mut self) -> Option<(u8, &[u8])> {
        let bytes = &self.buffer[self.start..self.end];
        let first = *bytes.first()?;
        let (mut length, mut at) = (0, 1);
        loop {
            let byte = *bytes.get(at)?;
            length |= usize::from(byte & 0x7F) << (7 * (at - 1));
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let body = self.start + at..self.start + at + length;
        if body.end > self.end {
            return None;
        }
        self.start = body.end;
        Some((first, &self.buffer[body]))
    }
}

/// The identifier and the payload of a publication.
pub fn parts(first: u8, body: &[u8]) -> Option<([u8; 2], &[u8])> {
    let topic = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
    let rest = body.get(2 + topic..)?;
    if first & 0b110 == 0 {
        return Some(([0, 0], rest));
    }
    Some(([*rest.first()?, *rest.get(1)?], &rest[2..]))
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    while length > 127 {
        packet.push((length % 128) as u8 | 0x80);
        length /= 128;
    }
    packet.push(length as u8);
    packet.extend(body);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_gets_its_identifier() {
        let mut out = Vec::new();
        Template::new("a/b", b"xy", 1).write(65_535, &mut out);
        assert_eq!(out, [0x32, 9, 0, 3, b'a', b'/', b'b', 0, 1, b'x', b'y']);
        assert_eq!(parts(out[0], &out[2..]), Some(([0, 1], &b"xy"[..])));
    }

    #[test]
    fn long_packets_have_a_long_length() {
        let mut out = Vec::new();
        Template::new("a", &[7; 200], 0).write(1, &mut out);
        assert_eq!(out[..3], [0x30, 0xCB, 1]);
        assert_eq!(out.len(), 3 + 203);
    }
}
