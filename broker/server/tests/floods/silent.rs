//! Thousands of connections that send nothing, or never finish a TLS handshake, until the login deadline.

use std::net::SocketAddr;
use std::time::Instant;

use tavi_testkit::Broker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Memory, PATIENCE, affordable, connections, eventually, flooded, people};

const MANY: usize = 10_000;
/// Opened at the same time; more would only fill the queue of connections that wait to be accepted.
const AT_ONCE: usize = 50;
/// The deadlines are long enough to open all before the first one ends, also on a slow and busy machine.
const CONFIG: &str = "[limits.xmpp]\nlogin_seconds = 30\n[limits.mqtt]\nconnect_seconds = 30\n";

/// RFC 6120 §4.9.3.4: a silent client is told `<connection-timeout/>`, inside a stream (§4.9.1.2).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_xmpp_connections_are_told_and_let_go() {
    let (broker, _turn) = flooded(CONFIG).await;
    people::settle_in(&broker);
    people::chat(&broker).await;
    let flood = Flood::open(&broker, &["xmpp"], affordable(MANY), b"").await;
    people::chat(&broker).await;
    flood
        .ends(&broker, |farewell| {
            let farewell = String::from_utf8_lossy(farewell);
            assert!(farewell.contains("<stream:stream"), "{farewell}");
            assert!(farewell.contains("<connection-timeout"), "{farewell}");
            assert!(farewell.ends_with("</stream:stream>"), "{farewell}");
        })
        .await;
    people::chat(&broker).await;
}

/// MQTT 5 §4.13 has no word for a client that has not said CONNECT: the connection is closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_mqtt_connections_are_let_go() {
    let (broker, _turn) = flooded(CONFIG).await;
    people::settle_in(&broker);
    people::telemetry(&broker).await;
    let flood = Flood::open(&broker, &["mqtt"], affordable(MANY), b"").await;
    people::telemetry(&broker).await;
    flood.ends(&broker, |farewell| assert!(farewell.is_empty(), "{farewell:?}")).await;
    people::telemetry(&broker).await;
}

/// The deadline holds for the handshake too. What was received is the begin of a ClientHello (RFC 8446 §5.1, §4).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_tls_handshakes_are_let_go() {
    let (broker, _turn) = flooded(CONFIG).await;
    people::settle_in(&broker);
    people::chat(&broker).await;
    let flood = Flood::open(&broker, &["xmpps", "mqtts"], 1_000, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    people::telemetry(&broker).await;
    flood.ends(&broker, |farewell| assert!(farewell.is_empty(), "{farewell:?}")).await;
    people::chat(&broker).await;
}

/// Connections that have said `hello` and say no more.
struct Flood {
    streams: Vec<TcpStream>,
    memory: Memory,
    start: Instant,
}

impl Flood {
    /// Opens `count` connections, in turn to each of these listeners, and checks that the broker holds them all at once.
    async fn open(broker: &Broker, listeners: &[&str], count: usize, hello: &'static [u8]) -> Self {
        let memory = Memory::of(broker);
        let addresses: Vec<SocketAddr> = listeners.iter().map(|key| broker.address(key).unwrap()).collect();
        let start = Instant::now();
        let mut opening: JoinSet<Vec<TcpStream>> =
            (0..AT_ONCE).map(|nth| open_share(addresses[nth % addresses.len()], count / AT_ONCE, hello)).collect();
        let mut streams = Vec::with_capacity(count);
        while let Some(opened) = opening.join_next().await {
            streams.extend(opened.unwrap());
        }
        let opened = streams.len();
        eventually("all are accepted", || async { connections(broker) >= opened }).await;
        println!("{opened} connections open after {:?}", start.elapsed());
        Self { streams, memory, start }
    }

    /// Reads each connection to its end, hands what came to `check`, and waits for the memory.
    async fn ends(self, broker: &Broker, check: impl Fn(&[u8])) {
        let peak = broker.resident_kib().unwrap();
        for mut stream in self.streams {
            let mut farewell = Vec::new();
            let ended = timeout(PATIENCE, stream.read_to_end(&mut farewell)).await;
            ended.expect("a silent connection is closed").expect("it is closed in order");
            check(&farewell);
        }
        println!("all closed after {:?}", self.start.elapsed());
        eventually("the broker counts no connection", || async { connections(broker) == 0 }).await;
        self.memory.returns(broker, peak).await;
    }
}

async fn open_share(address: SocketAddr, count: usize, hello: &'static [u8]) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(hello).await.unwrap();
        streams.push(stream);
    }
    streams
}
