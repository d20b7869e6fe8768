//! A client that keeps to MQTT's promises over all its connections: on its link in the other world, or at home.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use tavi_core::bus::Channel;
use tavi_mqtt::Hub;
use tavi_mqtt::codec::Codec;
use tavi_mqtt::hub::Parting;
use tavi_mqtt::link::Link;
use tavi_mqtt::packet::{Connect, Packet, Version};
use tavi_mqtt::reply::{self, Welcome};
use tavi_mqtt::session::{Bounds, Session};
use tavi_mqtt::words::{Attach, ToLink, ToSeat};

use super::WINDOW;
use crate::stage::{self, Actor, frame, text};

/// A connection.
pub enum Conn {
    /// Its seat is in the same world.
    Near(Box<Actor>),
    /// Its seat is elsewhere.
    Far(Box<Far>),
}

impl Conn {
    fn says(&mut self, bytes: &[u8]) {
        match self {
            Conn::Near(actor) => actor.says(bytes),
            Conn::Far(far) => far.says(bytes),
        }
    }

    fn hears(&mut self) -> Vec<String> {
        match self {
            Conn::Near(actor) => actor.hears(),
            Conn::Far(far) => stage::lines(std::mem::take(&mut far.out), false),
        }
    }

    pub fn is_open(&self) -> bool {
        match self {
            Conn::Near(actor) => actor.is_connected(),
            Conn::Far(far) => !far.is_closed,
        }
    }
}

/// A link whose seat is elsewhere.
pub struct Far {
    pub number: u64,
    pub end: Channel,
    codec: Codec,
    connect: Connect,
    hub: Arc<Hub>,
    bounds: Bounds,
    link: Option<Link>,
    inbox: Vec<u8>,
    out: Vec<u8>,
    pub is_closed: bool,
}

impl Far {
    pub fn new(number: u64, name: &str, hub: &Arc<Hub>, bounds: Bounds) -> Far {
        let mut codec = Codec::new(1 << 20);
        let bytes = stage::durable().encode(name, Version::V4);
        let Ok(Some((Packet::Connect(connect), _))) = codec.decode(&bytes) else { panic!("a bad CONNECT") };
        let mut end = Channel::default();
        let attach = Attach {
            subject: format!("{name}@localhost"),
            client_id: name.into(),
            version: connect.version,
            clean: connect.clean,
            expiry: connect.expiry,
            receive_maximum: connect.receive_maximum,
            will: None,
        };
        end.say(ToSeat::Attach(attach).encode());
        let (inbox, out) = (Vec::new(), Vec::new());
        let (link, hub) = (None, hub.clone());
        Far { number, end, codec, connect: *connect, hub, bounds, link, inbox, out, is_closed: false }
    }

    fn says(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        self.turn();
    }

    /// Takes what the client said, as long as the way has room, and what the seat said.
    pub fn turn(&mut self) {
        while let Some(word) = self.end.hear() {
            self.heeds(ToLink::decode(word).expect("a word"));
        }
        let Some(link) = self.link.as_mut().filter(|_| !self.is_closed) else { return };
        if self.end.open() >= WINDOW {
            return;
        }
        let Ok(Some((packet, size))) = self.codec.decode(&self.inbox) else { return };
        self.inbox.drain(..size);
        let word = link.take(packet, self.hub.monotonic_ms(), &mut self.out).expect("no breach");
        word.into_iter().for_each(|word| self.end.say(ToSeat::Word(word, size).encode()));
        self.turn();
    }

    fn heeds(&mut self, word: ToLink) {
        match (word, &mut self.link) {
            (ToLink::Attached(session_present, held), link) => {
                let session = Session::new(&self.connect, self.bounds, &held, self.hub.monotonic_ms());
                *link = Some(Link::new(session));
                let welcome = Welcome { session_present, receive_maximum: 10, ..Welcome::default() };
                reply::welcome(&mut self.out, self.connect.version, &welcome, u32::MAX).unwrap();
            }
            (ToLink::Said(said), Some(link)) => assert!(link.hear(said, self.hub.now_ms(), &mut self.out)),
            (ToLink::Said(said), None) => panic!("said before it was attached: {said:?}"),
            (ToLink::Refused(_) | ToLink::Close(_), _) => self.is_closed = true,
        }
    }

    /// The client's connection is gone, and the node says so.
    pub fn detaches(&mut self) {
        self.is_closed = true;
        self.end.say(ToSeat::Detach(Parting::Cut).encode());
    }
}

/// Something that the party publishes.
struct Publish {
    id: u16,
    qos: u8,
    value: u32,
    sent: bool,
    released: bool,
}

/// What a client remembers over its connections.
#[derive(Default)]
pub struct Party {
    pub conn: Option<Conn>,
    is_connected: bool,
    pub seen: Vec<(u8, u32)>,
    held: BTreeSet<u16>,
    outbox: VecDeque<Publish>,
    last_id: u16,
    topic: &'static str,
}

impl Party {
    pub fn new(conn: Conn, topic: &'static str) -> Party {
        Party { conn: Some(conn), topic, ..Party::default() }
    }

    pub fn wants_to_publish(&mut self, qos: u8, value: u32) {
        self.last_id = self.last_id % 60_000 + 1;
        self.outbox.push_back(Publish { id: self.last_id, qos, value, sent: false, released: false });
    }

    pub fn is_done(&self) -> bool {
        self.outbox.is_empty()
    }

    pub fn connects(&mut self, conn: Conn) -> Option<Conn> {
        self.is_connected = false;
        self.conn.replace(conn)
    }

    pub fn loses_connection(&mut self) -> Option<Conn> {
        self.is_connected = false;
        self.conn.take()
    }

    /// The connection, if the broker has ended it.
    pub fn takes_closed(&mut self) -> Option<Conn> {
        if self.conn.as_ref()?.is_open() { None } else { self.loses_connection() }
    }

    /// Hears and answers; true if there was something to do.
    pub fn acts(&mut self) -> bool {
        let Some(conn) = &mut self.conn else { return false };
        let lines = conn.hears();
        let any = !lines.is_empty();
        for line in lines {
            self.heeds(&line);
        }
        any | self.publishes()
    }

    fn says(&mut self, first: u8, id: u16) {
        let bytes = frame(first, &id.to_be_bytes());
        self.conn.iter_mut().for_each(|conn| conn.says(&bytes));
    }

    /// MQTT 3.1.1 §4.3, §4.4.
    fn heeds(&mut self, line: &str) {
        let id = line.split(' ').find_map(|part| part.strip_prefix('#')).map_or(0, |id| id.parse().unwrap());
        let value = || line.split(' ').find_map(|part| part.split_once('=')).unwrap().1.parse().unwrap();
        match line.split(' ').next().unwrap() {
            "CONNACK" => {
                self.is_connected = true;
                self.outbox.iter_mut().for_each(|publish| publish.sent = false);
            }
            "PUBLISH" if line.starts_with("PUBLISH q1") => {
                self.seen.push((1, value()));
                self.says(0x40, id);
            }
            "PUBLISH" => {
                if self.held.insert(id) {
                    self.seen.push((2, value()));
                }
                self.says(0x50, id);
            }
            "PUBREL" => {
                self.held.remove(&id);
                self.says(0x70, id);
            }
            "PUBACK" | "PUBCOMP" => self.outbox.retain(|publish| publish.id != id),
            "PUBREC" => {
                self.outbox.iter_mut().filter(|publish| publish.id == id).for_each(|publish| publish.released = true);
                self.says(0x62, id);
            }
            "SUBACK" | "DISCONNECT" => {}
            other => panic!("{other}"),
        }
    }

    /// Sends what it has not sent on this connection, a few at a time.
    fn publishes(&mut self) -> bool {
        if !self.is_connected {
            return false;
        }
        let mut bytes = Vec::new();
        for publish in self.outbox.iter_mut().take(5).filter(|publish| !publish.sent) {
            publish.sent = true;
            if publish.released {
                bytes.extend(frame(0x62, &publish.id.to_be_bytes()));
                continue;
            }
            let mut body = Vec::new();
            text(&mut body, self.topic);
            body.extend(publish.id.to_be_bytes());
            body.extend(publish.value.to_string().into_bytes());
            // Whether it was sent before is not remembered: DUP is always right to say so.
            bytes.extend(frame(0x38 | publish.qos << 1, &body));
        }
        let conn = self.conn.iter_mut().filter(|_| !bytes.is_empty());
        conn.map(|conn| conn.says(&bytes)).count() > 0
    }

    pub fn subscribes(&mut self, filter: &str) {
        let mut body = vec![0, 1];
        text(&mut body, filter);
        body.push(2);
        self.conn.iter_mut().for_each(|conn| conn.says(&frame(0x82, &body)));
    }
}
