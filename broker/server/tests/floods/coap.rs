//! Datagrams from a thousand ports, good ones and malformed ones.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tavi_testkit::coap::{CoapClient, Method};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Memory, flooded};

const PORTS: usize = 1_000;
const TASKS: usize = 4;
/// Ports that send before one task waits for an answer. All tasks together stay below what a socket's queue holds by
/// default: what the system drops says nothing of the broker.
const BURST: usize = 25;
/// Of requests that the quiet client gets through before the flood ends.
const PAIRS: usize = 50;

/// RFC 7252 §4.2: what is no CoAP is ignored or reset; §5.2: requests are answered. Neither is remembered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_client_is_answered_in_a_flood_of_datagrams() {
    let (broker, _turn) = flooded("").await;
    broker.fleet(&["grant", "add", "anon-clear", "retrieve,publish,create", "lamp/#"]).unwrap();
    let quiet = CoapClient::connect(broker.address("coap").unwrap()).await.unwrap();
    turn_on(&quiet, 0).await;
    let memory = Memory::of(&broker);
    let (going_on, sent) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let flood: JoinSet<()> =
        (0..TASKS).map(|_| send_all(broker.address("coap").unwrap(), going_on.clone(), sent.clone())).collect();
    for n in 0..PAIRS {
        turn_on(&quiet, n).await;
    }
    going_on.store(false, Relaxed);
    flood.join_all().await;
    let peak = broker.resident_kib().unwrap();
    println!("{PAIRS} pairs of requests answered among {} datagrams", sent.load(Relaxed));
    memory.returns(&broker, peak).await;
    turn_on(&quiet, PAIRS).await;
}

/// Sets a value and reads it.
async fn turn_on(client: &CoapClient, n: usize) {
    let value = n.to_string();
    assert!(client.request(Method::Put, "lamp/1", value.as_bytes()).await.unwrap().code.starts_with("2."));
    assert_eq!(client.request(Method::Get, "lamp/1", b"").await.unwrap().text().unwrap(), value);
}

/// One task's share of the ports; each sends requests and malformed datagrams, and hardly one reads.
async fn send_all(broker: SocketAddr, going_on: Arc<AtomicBool>, sent: Arc<AtomicUsize>) {
    let mut sockets = Vec::new();
    for _ in 0..PORTS / TASKS {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(broker).await.unwrap();
        sockets.push(socket);
    }
    for round in (0..=u16::MAX).cycle().take_while(|_| going_on.load(Relaxed)) {
        for burst in sockets.chunks(BURST) {
            for socket in burst {
                send(socket, &malformed(round)).await;
                send(socket, &request(round)).await;
            }
            sent.fetch_add(2 * burst.len(), Relaxed);
            // As fast as the broker answers; an answer may be lost all the same.
            let _ = timeout(Duration::from_millis(100), burst[burst.len() - 1].recv(&mut [0; 64])).await;
        }
    }
}

async fn send(socket: &UdpSocket, datagram: &[u8]) {
    // A full queue loses it: that is UDP, and a flood.
    let _ = socket.send(datagram).await;
}

/// A confirmable GET of `/t/lamp/1`.
fn request(round: u16) -> Vec<u8> {
    let [high, low] = round.to_be_bytes();
    [&[0x41, 1, high, low, 7][..], b"\xb1t\x04lamp\x011"].concat()
}

/// In turn: the wrong version, a token that is not there, an option that is not there, a marker without payload.
fn malformed(round: u16) -> Vec<u8> {
    let [high, low] = round.to_be_bytes();
    match round % 4 {
        0 => vec![0xC0, 1, high, low],
        1 => vec![0x48, 1, high, low, 1],
        2 => vec![0x40, 1, high, low, 0xBD],
        _ => vec![0x40, 1, high, low, 0xFF],
    }
}
