//! A broker without sockets and with a clock of its own, and actors who speak MQTT to it byte by byte.
#![allow(dead_code)]

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tavi_core::bus::{Bus, InProcess};
use tavi_core::homes::SessionLimits;
use tavi_core::hooks::Registry;
use tavi_core::node::Parts;
use tavi_core::permit::Grant;
use tavi_core::{FakeClock, Hosts, Node, Principal};
use tavi_mqtt::client::Client;
use tavi_mqtt::codec::Codec;
use tavi_mqtt::hub::{Entered, Parting};
use tavi_mqtt::packet::{Packet, Reason, Version};
use tavi_mqtt::reply::{self, Welcome};
use tavi_mqtt::session::{Bounds, Session};
use tavi_mqtt::{Config, Fault, Hub};
use tavi_store::{MemoryStore, SharedStore};

pub struct World {
    pub store: Arc<MemoryStore>,
    pub clock: Arc<FakeClock>,
    pub hub: Arc<Hub>,
    pub bounds: Bounds,
}

pub const NOW: u64 = 1_780_000_000_000;

impl World {
    pub async fn new() -> World {
        World::over(Arc::new(MemoryStore::default()), Config::default(), NOW).await
    }

    pub async fn with(config: Config) -> World {
        World::over(Arc::new(MemoryStore::default()), config, NOW).await
    }

    pub async fn over(store: Arc<MemoryStore>, config: Config, now_ms: u64) -> World {
        World::beside(Arc::new(InProcess), store, (config, now_ms)).await
    }

    /// One of several, with its way to the others.
    pub async fn beside(bus: Arc<dyn Bus>, store: Arc<MemoryStore>, (config, now_ms): (Config, u64)) -> World {
        let clock = Arc::new(FakeClock::at(now_ms));
        let shared: SharedStore = store.clone();
        let hosts = (Hosts::new("localhost", &[]).unwrap(), shared);
        let parts = Parts::load_for(bus.node(), hosts, clock.clone(), SessionLimits::default()).await.unwrap();
        let node = Node::on(bus, parts, Registry::default());
        let hub = Hub::recall(node, config).await.unwrap();
        let bounds = Bounds { receive_maximum: config.receive_maximum, in_flight: config.in_flight };
        let world = World { store, clock, hub, bounds };
        if world.hub.node().parts.permit.list(None).is_empty() {
            world.grant("@everyone", "subscribe,retrieve,publish", "home/#").await;
        }
        world
    }

    /// The process ends here and now; another one starts over what the store has.
    pub async fn crash(self) -> World {
        use tavi_core::Clock;
        let (store, now, config) = (self.store.clone(), self.clock.now_ms(), *self.hub.config());
        World::over(store, config, now).await
    }

    pub async fn grant(&self, subject: &str, actions: &str, filter: &str) {
        let id = self.hub.next_id();
        let grant = Grant::new(id, subject, actions.parse().unwrap(), filter).unwrap();
        self.hub.node().parts.permit.add(grant).await.unwrap();
    }

    /// Time passes; what is due is done.
    pub async fn pass(&self, seconds: u64) {
        self.clock.advance(seconds * 1000);
        self.hub.tick();
        self.settle().await;
    }

    /// Tasks that wait for the store get their turn.
    pub async fn settle(&self) {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    pub async fn old(&self, name: &str, connect: Connect) -> Actor {
        self.join(name, Version::V4, connect).await
    }

    pub async fn new_style(&self, name: &str, connect: Connect) -> Actor {
        self.join(name, Version::V5, connect).await
    }

    async fn join(&self, name: &str, version: Version, connect: Connect) -> Actor {
        self.join_as(name, name, version, connect).await
    }

    /// `name` connects with the client identifier `client_id`.
    pub async fn join_as(&self, name: &str, client_id: &str, version: Version, connect: Connect) -> Actor {
        self.tries((name, client_id), version, connect).await.unwrap()
    }

    /// The same, and perhaps is not let in.
    pub async fn tries(
        &self,
        (name, client_id): (&str, &str),
        version: Version,
        connect: Connect,
    ) -> Result<Actor, Reason> {
        let mut codec = Codec::new(1 << 20);
        let bytes = connect.encode(client_id, version);
        let Ok(Some((Packet::Connect(mut connect), _))) = codec.decode(&bytes) else { panic!("a bad CONNECT") };
        let who = Principal::Account(format!("{name}@localhost").parse().unwrap());
        let Entered { place, session_present, held, ticket } = self.hub.enter(&who, &mut connect).await?;
        ticket.complete().await.unwrap();
        let session = Session::new(&connect, self.bounds, &held, self.hub.monotonic_ms());
        let client = Client::new(self.hub.clone(), place, session);
        let mut out = Vec::new();
        let welcome = Welcome { session_present, receive_maximum: 10, maximum_packet: 1 << 20, ..Welcome::default() };
        reply::welcome(&mut out, version, &welcome, u32::MAX).unwrap();
        let (hub, inbox) = (self.hub.clone(), Vec::new());
        Ok(Actor { name: name.into(), hub, client: Some(client), codec, version, inbox, out })
    }
}

/// What an actor connects with.
#[derive(Clone)]
pub struct Connect {
    pub clean: bool,
    pub expiry: u32,
    pub keep_alive: u16,
    pub receive_maximum: u16,
    pub maximum_packet: u32,
    pub will: Option<Will>,
}

#[derive(Clone)]
pub struct Will {
    pub topic: &'static str,
    pub payload: &'static str,
    pub delay: u32,
}

/// Ends with the connection.
pub fn clean() -> Connect {
    Connect { clean: true, expiry: 0, keep_alive: 0, receive_maximum: 100, maximum_packet: 1 << 20, will: None }
}

/// Goes on for an hour.
pub fn durable() -> Connect {
    Connect { clean: false, expiry: 3600, ..clean() }
}

pub fn with_will(topic: &'static str, payload: &'static str, delay: u32) -> Option<Will> {
    Some(Will { topic, payload, delay })
}

impl Connect {
    pub fn encode(&self, name: &str, version: Version) -> Vec<u8> {
        let five = version == Version::V5;
        let mut body = b"\0\x04MQTT".to_vec();
        let will = if self.will.is_some() { 0x0C } else { 0 };
        body.extend([if five { 5 } else { 4 }, u8::from(self.clean) << 1 | will]);
        body.extend(self.keep_alive.to_be_bytes());
        if five {
            let mut section = vec![17];
            section.extend(self.expiry.to_be_bytes());
            section.push(33);
            section.extend(self.receive_maximum.to_be_bytes());
            section.push(39);
            section.extend(self.maximum_packet.to_be_bytes());
            body.push(section.len() as u8);
            body.extend(section);
        }
        text(&mut body, name);
        if let Some(will) = &self.will {
            if five {
                body.extend([5, 24]);
                body.extend(will.delay.to_be_bytes());
            }
            text(&mut body, will.topic);
            text(&mut body, will.payload);
        }
        frame(0x10, &body)
    }
}

pub fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

pub fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut rest = body.len();
    loop {
        let more = rest >= 0x80;
        out.push((rest & 0x7F) as u8 | u8::from(more) << 7);
        rest >>= 7;
        if !more {
            break;
        }
    }
    out.extend(body);
    out
}

/// Somebody with a client.
pub struct Actor {
    name: String,
    hub: Arc<Hub>,
    client: Option<Client>,
    codec: Codec,
    version: Version,
    inbox: Vec<u8>,
    out: Vec<u8>,
}

impl Actor {
    fn five(&self) -> bool {
        self.version == Version::V5
    }

    /// Sends raw bytes.
    pub fn says(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        if let Err(fault) = self.take_all() {
            self.ends(fault);
        }
        self.turn();
    }

    fn take_all(&mut self) -> Result<(), Fault> {
        let Some(client) = &mut self.client else { return Ok(()) };
        client.set_time(self.hub.now());
        while !client.is_full() {
            let Some((packet, size)) = self.codec.decode(&self.inbox)? else { return Ok(()) };
            self.inbox.drain(..size);
            if let Some(disconnect) = client.take(packet, size, &mut self.out)? {
                let parting = if disconnect.reason == Reason::SUCCESS { Parting::InOrder } else { Parting::Cut };
                self.leaves(parting);
                return Ok(());
            }
        }
        Ok(())
    }

    fn turn(&mut self) {
        for _ in 0..1000 {
            let Some(client) = &mut self.client else { return };
            client.set_time(self.hub.now());
            match client.poll(&mut Context::from_waker(Waker::noop()), &mut self.out) {
                Poll::Ready(Err(fault)) => return self.ends(fault),
                Poll::Ready(Ok(())) => {
                    if let Err(fault) = self.take_all() {
                        return self.ends(fault);
                    }
                }
                Poll::Pending => return,
            }
        }
        panic!("{} never comes to rest", self.name);
    }

    fn ends(&mut self, fault: Fault) {
        reply::disconnect(&mut self.out, self.version, fault.reason());
        self.leaves(Parting::Cut);
    }

    fn leaves(&mut self, parting: Parting) {
        if let Some(client) = self.client.take() {
            client.leave(parting);
        }
    }

    /// The network breaks.
    pub fn is_cut(&mut self) {
        self.leaves(Parting::Cut);
        self.out.clear();
        self.inbox.clear();
    }

    pub fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    pub fn silence(&mut self) {
        let alive = self.client.as_ref().map(|client| client.check_alive(self.hub.monotonic_ms()));
        if let Some(Err(fault)) = alive {
            self.ends(fault);
        }
    }

    pub fn publishes(&mut self, qos: u8, id: u16, topic: &str, payload: &str) {
        self.publishes_with(qos << 1, id, topic, payload);
    }

    /// `flags`: the low bits of the fixed header.
    pub fn publishes_with(&mut self, flags: u8, id: u16, topic: &str, payload: &str) {
        let mut body = Vec::new();
        text(&mut body, topic);
        if flags & 6 != 0 {
            body.extend(id.to_be_bytes());
        }
        if self.five() {
            body.push(0);
        }
        body.extend(payload.as_bytes());
        self.says(&frame(0x30 | flags, &body));
    }

    pub fn retains(&mut self, topic: &str, payload: &str) {
        self.publishes_with(0x03, 900, topic, payload);
    }

    /// `options`: the byte behind the filter.
    pub fn subscribes(&mut self, id: u16, filter: &str, options: u8) {
        let mut body = id.to_be_bytes().to_vec();
        if self.five() {
            body.push(0);
        }
        text(&mut body, filter);
        body.push(options);
        self.says(&frame(0x82, &body));
    }

    pub fn unsubscribes(&mut self, id: u16, filter: &str) {
        let mut body = id.to_be_bytes().to_vec();
        if self.five() {
            body.push(0);
        }
        text(&mut body, filter);
        self.says(&frame(0xA2, &body));
    }

    pub fn puback(&mut self, id: u16) {
        self.says(&frame(0x40, &id.to_be_bytes()));
    }

    pub fn pubrec(&mut self, id: u16) {
        self.says(&frame(0x50, &id.to_be_bytes()));
    }

    pub fn pubrel(&mut self, id: u16) {
        self.says(&frame(0x62, &id.to_be_bytes()));
    }

    pub fn pubcomp(&mut self, id: u16) {
        self.says(&frame(0x70, &id.to_be_bytes()));
    }

    pub fn disconnects(&mut self) {
        self.says(&[0xE0, 0]);
    }

    /// What has come since the last look.
    pub fn hears(&mut self) -> Vec<String> {
        self.turn();
        lines(std::mem::take(&mut self.out), self.five())
    }

    /// What has come since the last look, byte for byte, without the CONNACK.
    pub fn raw(&mut self) -> Vec<u8> {
        self.turn();
        let bytes = std::mem::take(&mut self.out);
        let connack = 2 + usize::from(bytes[1]);
        bytes[if bytes[0] == 0x20 { connack } else { 0 }..].to_vec()
    }
}

/// What these packets say.
pub fn lines(mut rest: Vec<u8>, five: bool) -> Vec<String> {
    let mut lines = Vec::new();
    while !rest.is_empty() {
        let (length, width) = length(&rest[1..]);
        let packet: Vec<u8> = rest.drain(..1 + width + length).collect();
        lines.push(describe(packet[0], &packet[1 + width..], five));
    }
    lines
}

fn length(bytes: &[u8]) -> (usize, usize) {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return (value, at + 1);
        }
    }
    panic!("a cut length");
}

fn describe(first: u8, body: &[u8], five: bool) -> String {
    let id = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let ack = |name: &str| match body.get(2) {
        Some(reason) if *reason != 0 => format!("{name} #{} 0x{reason:02x}", id(0)),
        _ => format!("{name} #{}", id(0)),
    };
    match first >> 4 {
        2 => format!("CONNACK {}", if body[0] == 1 { "present" } else { "new" }),
        3 => publish(first, body, five),
        4 => ack("PUBACK"),
        5 => ack("PUBREC"),
        6 => ack("PUBREL"),
        7 => ack("PUBCOMP"),
        9 => format!("SUBACK #{} {:02x?}", id(0), &body[if five { 3 } else { 2 }..]),
        11 => format!("UNSUBACK #{} {:02x?}", id(0), if five { &body[3..] } else { &[] }),
        13 => "PINGRESP".into(),
        14 => format!("DISCONNECT 0x{:02x}", body[0]),
        other => panic!("packet type {other}"),
    }
}

fn publish(first: u8, body: &[u8], five: bool) -> String {
    let qos = first >> 1 & 3;
    let topic_end = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
    let mut at = topic_end;
    let mut line = format!("PUBLISH q{qos}");
    if qos > 0 {
        line += &format!(" #{}", u16::from_be_bytes([body[at], body[at + 1]]));
        at += 2;
    }
    if five {
        let (section, width) = length(&body[at..]);
        at += section + width;
    }
    line += &format!(" {}={}", String::from_utf8_lossy(&body[2..topic_end]), String::from_utf8_lossy(&body[at..]));
    if first & 8 != 0 {
        line += " dup";
    }
    if first & 1 != 0 {
        line += " retain";
    }
    line
}
