//! A small CoAP client for tests (RFC 7252): GET, PUT, DELETE, Observe (RFC 7641), Block2 (RFC 7959).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::inbox::Inbox;

/// Methods of RFC 7252 §5.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// 0.01
    Get = 1,
    /// 0.03
    Put = 3,
    /// 0.04
    Delete = 4,
}

/// A response or notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The code as it is written: `2.05`.
    pub code: String,
    /// The body, whole.
    pub payload: Vec<u8>,
    token: Vec<u8>,
    block: Option<Block>,
    /// The Observe option's number.
    pub observe: Option<u32>,
}

/// RFC 7959 §2.2: the value of Block2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    number: u32,
    more: bool,
    exponent: u32,
}

const OBSERVE: u16 = 6;
const URI_PATH: u16 = 11;
const BLOCK2: u16 = 23;

const CONFIRMABLE: u8 = 0;
const ACKNOWLEDGEMENT: u8 = 2;

/// An endpoint with its own port.
#[derive(Debug)]
pub struct CoapClient {
    socket: Arc<UdpSocket>,
    inbox: Inbox<Response>,
    serial: AtomicU16,
    reader: JoinHandle<()>,
}

impl CoapClient {
    /// An endpoint that speaks to this server.
    ///
    /// # Errors
    /// No socket can be had.
    pub async fn connect(server: SocketAddr) -> anyhow::Result<Self> {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        socket.connect(server).await?;
        let inbox = Inbox::new();
        let reader = tokio::spawn(read_all(Arc::clone(&socket), inbox.clone()));
        Ok(Self { socket, inbox, serial: AtomicU16::new(1), reader })
    }

    /// Sends a request to `/t/TOPIC` and returns the answer with its whole body, read block by block.
    ///
    /// # Errors
    /// No answer comes.
    pub async fn request(&self, method: Method, topic: &str, payload: &[u8]) -> anyhow::Result<Response> {
        let mut response = self.exchange(&self.fresh_token(), &request(method, topic), payload).await?;
        while let Some(Block { number, more: true, exponent }) = response.block {
            let mut next = request(method, topic);
            next.options.push((BLOCK2, uint((number + 1) << 4 | exponent)));
            let part = self.exchange(&self.fresh_token(), &next, &[]).await?;
            ensure!(part.block.is_some_and(|block| block.number == number + 1), "the wrong block came: {part:?}");
            response.payload.extend(part.payload);
            response.block = part.block;
        }
        Ok(response)
    }

    /// Registers as an observer of `/t/TOPIC`; later values come through [`CoapClient::notification`].
    ///
    /// # Errors
    /// No answer comes.
    pub async fn observe(&self, topic: &str) -> anyhow::Result<Response> {
        let mut request = request(Method::Get, topic);
        request.options.insert(0, (OBSERVE, Vec::new()));
        self.exchange(&observer_token(topic), &request, &[]).await
    }

    /// Takes the first notification about the topic for which `pick` gives a value.
    ///
    /// # Errors
    /// None comes.
    pub async fn notification<R>(&self, topic: &str, pick: impl Fn(&Response) -> Option<R>) -> anyhow::Result<R> {
        let token = observer_token(topic);
        self.inbox.take("a notification", |got| if got.token == token { pick(got) } else { None }).await
    }

    /// Sends a datagram as it is.
    ///
    /// # Errors
    /// The socket is gone.
    pub async fn send_bytes(&self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.socket.send(bytes).await.map(drop)?)
    }

    fn fresh_token(&self) -> [u8; 3] {
        let [high, low] = self.serial.fetch_add(1, Ordering::SeqCst).to_be_bytes();
        [0xA1, high, low]
    }

    async fn exchange(&self, token: &[u8], request: &Request, payload: &[u8]) -> anyhow::Result<Response> {
        let id = self.serial.fetch_add(1, Ordering::SeqCst);
        let datagram = request.encode(id, token, payload);
        let answer = self.inbox.take("a response", |got| (got.token == token).then(|| got.clone()));
        tokio::pin!(answer);
        // RFC 7252 §4.2: a confirmable message is sent again while nothing answers; loopback needs no back-off.
        loop {
            self.send_bytes(&datagram).await?;
            if let Ok(answer) = timeout(Duration::from_secs(4), &mut answer).await {
                return answer;
            }
        }
    }
}

impl Drop for CoapClient {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Request {
    method: Method,
    options: Vec<(u16, Vec<u8>)>,
}

fn request(method: Method, topic: &str) -> Request {
    let path = std::iter::once("t").chain(topic.split('/'));
    Request { method, options: path.map(|segment| (URI_PATH, segment.as_bytes().to_vec())).collect() }
}

impl Request {
    /// RFC 7252 §3: header, token, options in order, payload.
    fn encode(&self, id: u16, token: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0x40 | CONFIRMABLE << 4 | token.len() as u8, self.method as u8];
        out.extend(id.to_be_bytes());
        out.extend(token);
        let mut last = 0;
        for (number, value) in &self.options {
            write_option(&mut out, number - last, value);
            last = *number;
        }
        if !payload.is_empty() {
            out.push(0xFF);
            out.extend(payload);
        }
        out
    }
}

/// One observation a topic: its token is a hash of the name, so that a repeated request has the same one.
fn observer_token(topic: &str) -> Vec<u8> {
    let hash = topic.bytes().fold(0xcbf2_9ce4_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.to_be_bytes().to_vec()
}

/// RFC 7252 §3.1: delta and length as nibbles with one or two bytes of extension.
fn write_option(out: &mut Vec<u8>, delta: u16, value: &[u8]) {
    let (delta, delta_more) = nibble(delta);
    let (length, length_more) = nibble(value.len() as u16);
    out.push(delta << 4 | length);
    out.extend(delta_more);
    out.extend(length_more);
    out.extend(value);
}

fn nibble(number: u16) -> (u8, Vec<u8>) {
    match number {
        0..=12 => (number as u8, Vec::new()),
        13..=268 => (13, vec![(number - 13) as u8]),
        _ => (14, (number - 269).to_be_bytes().to_vec()),
    }
}

/// RFC 7252 §3.2: an unsigned number without leading zeros.
fn uint(number: u32) -> Vec<u8> {
    number.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect()
}

fn number(value: &[u8]) -> u32 {
    value.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

async fn read_all(socket: Arc<UdpSocket>, inbox: Inbox<Response>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut seen = Vec::new();
    loop {
        // An ICMP error while the broker restarts is no end: UDP has none.
        let Ok(length) = socket.recv(&mut buffer).await else { continue };
        let Some(message) = Message::decode(&buffer[..length]) else { continue };
        if message.kind == CONFIRMABLE {
            let [high, low] = message.id.to_be_bytes();
            let _ = socket.send(&[0x40 | ACKNOWLEDGEMENT << 4, 0, high, low]).await;
            if seen.contains(&message.id) {
                continue;
            }
            seen.push(message.id);
        }
        if message.code != 0 {
            inbox.push(message.response());
        }
    }
}

struct Message {
    kind: u8,
    code: u8,
    id: u16,
    token: Vec<u8>,
    options: Vec<(u16, Vec<u8>)>,
    payload: Vec<u8>,
}

impl Message {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let [first, code, high, low, rest @ ..] = bytes else { return None };
        let (token, mut rest) = rest.split_at_checked(usize::from(first & 15))?;
        let mut message = Self {
            kind: first >> 4 & 3,
            code: *code,
            id: u16::from_be_bytes([*high, *low]),
            token: token.to_vec(),
            options: Vec::new(),
            payload: Vec::new(),
        };
        let mut last = 0;
        while let [first, tail @ ..] = rest {
            if *first == 0xFF {
                message.payload = tail.to_vec();
                break;
            }
            let (delta, tail) = extended(first >> 4, tail)?;
            let (length, tail) = extended(first & 15, tail)?;
            let (value, tail) = tail.split_at_checked(length.into())?;
            last += delta;
            message.options.push((last, value.to_vec()));
            rest = tail;
        }
        Some(message)
    }

    fn option(&self, wanted: u16) -> Option<u32> {
        self.options.iter().find(|(found, _)| *found == wanted).map(|(_, value)| number(value))
    }

    fn response(self) -> Response {
        let block = |value| Block { number: value >> 4, more: value & 8 != 0, exponent: value & 7 };
        Response {
            code: format!("{}.{:02}", self.code >> 5, self.code & 31),
            block: self.option(BLOCK2).map(block),
            observe: self.option(OBSERVE),
            payload: self.payload,
            token: self.token,
        }
    }
}

fn extended(nibble: u8, rest: &[u8]) -> Option<(u16, &[u8])> {
    match (nibble, rest) {
        (0..=12, _) => Some((nibble.into(), rest)),
        (13, [more, rest @ ..]) => Some((u16::from(*more) + 13, rest)),
        (14, [high, low, rest @ ..]) => Some((u16::from_be_bytes([*high, *low]).checked_add(269)?, rest)),
        _ => None,
    }
}

impl Response {
    /// The payload as text.
    ///
    /// # Errors
    /// It is no UTF-8.
    pub fn text(&self) -> anyhow::Result<&str> {
        std::str::from_utf8(&self.payload).context("the payload is no text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_message_back() {
        let mut request = request(Method::Put, "d/1/up/temperature of the room");
        request.options.push((BLOCK2, uint(3 << 4 | 6)));
        let message = Message::decode(&request.encode(7, &[1, 2], b"22.5")).unwrap();
        assert_eq!((message.kind, message.code, message.id), (CONFIRMABLE, 3, 7));
        assert_eq!(message.options, request.options);
        assert_eq!(message.option(BLOCK2), Some(0x36));
        assert_eq!(message.payload, b"22.5");
    }

    /// RFC 7252, figure 16: a piggybacked 2.05 with the token 0x20 and the payload "22.3 C".
    #[test]
    fn reads_the_standards_example() {
        let bytes = b"\x61\x45\x7d\x35\x20\xff22.3 C";
        let message = Message::decode(bytes).unwrap();
        assert_eq!((message.kind, message.id), (ACKNOWLEDGEMENT, 0x7D35));
        let response = message.response();
        assert_eq!((response.code.as_str(), response.text().unwrap()), ("2.05", "22.3 C"));
    }

    #[test]
    fn short_messages_are_none() {
        assert!(Message::decode(&[0x48, 1, 0, 0, 1]).is_none());
        assert!(Message::decode(&[0x40, 1, 0, 0, 0xD0]).is_none());
    }
}
