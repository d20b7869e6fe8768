//! A small MQTT client for tests: connects, subscribes, publishes at each QoS, acknowledges what it receives.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::inbox::Inbox;
use crate::mqtt_wire::{self as wire, Connect, Packet, Publish, Version, kind};

/// A connection.
#[derive(Debug)]
pub struct MqttClient {
    version: Version,
    inbox: Inbox<Packet>,
    writer: mpsc::UnboundedSender<Vec<u8>>,
    last_id: AtomicU16,
    tasks: [JoinHandle<()>; 2],
}

impl MqttClient {
    /// Connects the socket and says nothing.
    ///
    /// # Errors
    /// The connection is refused.
    pub async fn connect_silently(address: SocketAddr, version: Version) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let (writer, outgoing) = mpsc::unbounded_channel();
        let inbox = Inbox::new();
        let reading = tokio::spawn(read_all(read, inbox.clone(), writer.clone(), version));
        let tasks = [reading, tokio::spawn(write_all(write, outgoing))];
        Ok(Self { version, inbox, writer, last_id: AtomicU16::new(0), tasks })
    }

    /// Connects and logs in; tells whether the server had a session.
    ///
    /// # Errors
    /// The server refuses; the text is its code, as `0x87`.
    pub async fn connect(address: SocketAddr, connect: &Connect) -> anyhow::Result<(Self, bool)> {
        let client = Self::connect_silently(address, connect.version).await?;
        client.send_bytes(connect.encode())?;
        let connack = |packet: &Packet| match packet {
            Packet::Connack { code, present } => Some((*code, *present)),
            _ => None,
        };
        let (code, present) = client.inbox.take("CONNACK", connack).await?;
        success(code)?;
        Ok((client, present))
    }

    /// Subscribes to one filter; the code that was granted.
    ///
    /// # Errors
    /// The server refuses; the text is its code.
    pub async fn subscribe(&self, filter: &str, qos: u8) -> anyhow::Result<u8> {
        let id = self.next_id();
        self.send_bytes(wire::subscribe(self.version, id, filter, qos))?;
        let suback = |packet: &Packet| match packet {
            Packet::Codes(kind::SUBACK, found, codes) if *found == id => codes.first().copied(),
            _ => None,
        };
        let code = self.take("SUBACK", suback).await?;
        success(if code <= 2 { 0 } else { code })?;
        Ok(code)
    }

    /// Publishes and waits until the server has taken it over (at QoS 0: until it has read it).
    ///
    /// # Errors
    /// The server refuses; the text is its code.
    pub async fn publish(&self, mut publish: Publish) -> anyhow::Result<()> {
        publish.id = if publish.qos > 0 { self.next_id() } else { 0 };
        self.send_bytes(publish.encode(self.version))?;
        match publish.qos {
            0 => self.settle().await,
            1 => self.acked(kind::PUBACK, publish.id).await,
            _ => {
                self.acked(kind::PUBREC, publish.id).await?;
                self.send_bytes(wire::ack(kind::PUBREL, publish.id))?;
                self.acked(kind::PUBCOMP, publish.id).await
            }
        }
    }

    /// Takes the first received packet for which `pick` gives a value.
    ///
    /// # Errors
    /// It does not come; see [`Inbox::take`].
    pub async fn take<R>(&self, what: &str, pick: impl Fn(&Packet) -> Option<R>) -> anyhow::Result<R> {
        self.inbox.take(what, pick).await
    }

    /// As [`MqttClient::take`], of what is already there.
    pub fn take_now<R>(&self, pick: impl Fn(&Packet) -> Option<R>) -> Option<R> {
        self.inbox.take_now(pick)
    }

    /// Waits until the server has read everything that was sent: PINGRESP comes after it.
    ///
    /// # Errors
    /// The connection ends.
    pub async fn settle(&self) -> anyhow::Result<()> {
        self.send_bytes(wire::PING.to_vec())?;
        self.take("PINGRESP", |packet| (*packet == Packet::Pong).then_some(())).await
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send_bytes(&self, bytes: Vec<u8>) -> anyhow::Result<()> {
        self.writer.send(bytes).ok().context("the connection is gone")
    }

    /// Waits until the server closes the connection.
    ///
    /// # Errors
    /// It stays open.
    pub async fn closed(&self) -> anyhow::Result<()> {
        self.inbox.closed().await.map(drop)
    }

    /// Disconnects in order, so that no will is sent.
    ///
    /// # Errors
    /// The server does not close.
    pub async fn disconnect(self) -> anyhow::Result<()> {
        self.send_bytes(wire::disconnect().to_vec())?;
        self.closed().await
    }

    async fn acked(&self, kind: u8, id: u16) -> anyhow::Result<()> {
        let ack = |packet: &Packet| match packet {
            Packet::Ack(found, of, code) if (*found, *of) == (kind, id) => Some(*code),
            _ => None,
        };
        success(self.take("an acknowledgement", ack).await?)
    }

    fn next_id(&self) -> u16 {
        self.last_id.fetch_add(1, Ordering::SeqCst) % 0x7FFF + 1
    }
}

impl Drop for MqttClient {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// 0 is success; 0x10 (no matching subscribers) too.
fn success(code: u8) -> anyhow::Result<()> {
    ensure!(code == 0 || code == 0x10, "0x{code:02x}");
    Ok(())
}

async fn write_all(mut write: OwnedWriteHalf, mut outgoing: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(bytes) = outgoing.recv().await {
        if write.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn read_all(
    mut read: OwnedReadHalf,
    inbox: Inbox<Packet>,
    writer: mpsc::UnboundedSender<Vec<u8>>,
    version: Version,
) {
    let (mut unread, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match read.read(&mut buffer).await {
            Ok(0) => return inbox.close("closed by the server"),
            Err(error) => return inbox.close(error.to_string()),
            Ok(length) => unread.extend_from_slice(&buffer[..length]),
        }
        if let Err(error) = receive(&mut unread, version, &inbox, &writer) {
            return inbox.close(error.to_string());
        }
    }
}

fn receive(
    unread: &mut Vec<u8>,
    version: Version,
    inbox: &Inbox<Packet>,
    writer: &mpsc::UnboundedSender<Vec<u8>>,
) -> anyhow::Result<()> {
    while let Some(packet) = wire::decode(unread, version)? {
        if let Some(answer) = answer(&packet) {
            // A writer that is gone means a connection that is gone.
            let _ = writer.send(answer);
        }
        match packet {
            Packet::Ack(kind::PUBREL, ..) => {}
            Packet::Publish(publish) if publish.qos > 2 => bail!("a publication at QoS 3"),
            packet => inbox.push(packet),
        }
    }
    Ok(())
}

fn answer(packet: &Packet) -> Option<Vec<u8>> {
    match packet {
        Packet::Publish(publish) if publish.qos == 1 => Some(wire::ack(kind::PUBACK, publish.id)),
        Packet::Publish(publish) if publish.qos == 2 => Some(wire::ack(kind::PUBREC, publish.id)),
        Packet::Ack(kind::PUBREL, id, _) => Some(wire::ack(kind::PUBCOMP, *id)),
        _ => None,
    }
}
