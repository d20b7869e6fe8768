//! The endpoint over real sockets: IPv4 and IPv6, a flood beside a quiet client, an orderly stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tavi_coap::datagram::{Datagram, Kind};
use tavi_coap::message::{Code, Token, option};
use tavi_coap::{Endpoint, Seams};
use tavi_core::permit::{Grant, Permit};
use tavi_core::{SystemClock, Topics};
use tavi_store::{IdSource, MemoryStore, SharedStore};
use tokio::net::UdpSocket;

async fn seams() -> Seams {
    let store: SharedStore = Arc::new(MemoryStore::default());
    let permit = Arc::new(Permit::load(store.clone()).await.unwrap());
    let actions = "retrieve,subscribe,publish,delete".parse().unwrap();
    permit.add(Grant::new(1, "anon-clear", actions, "d/#").unwrap()).await.unwrap();
    let (ids, clock) = (Arc::new(IdSource::new(0, 0)), Arc::new(SystemClock));
    let topics = Topics::load(store.clone(), permit.clone(), ids, clock.clone()).await.unwrap();
    Seams { topics: Arc::new(topics), store, permit, metrics: Arc::default(), clock }
}

struct Client {
    socket: UdpSocket,
    next_id: u16,
}

impl Client {
    async fn of(endpoint: &Endpoint) -> Self {
        let mut local = endpoint.local_addr();
        local.set_port(0);
        let socket = UdpSocket::bind(local).await.unwrap();
        socket.connect(endpoint.local_addr()).await.unwrap();
        Self { socket, next_id: 0 }
    }

    fn request(&mut self, code: Code) -> Datagram {
        self.next_id += 1;
        let mut message = Datagram::new(Kind::Confirmable, code);
        message.id = self.next_id;
        message.set_token(Token::new(b"t"));
        ["t", "d", "lamp"].iter().for_each(|segment| message.add(option::URI_PATH, segment.as_bytes()));
        message
    }

    async fn asks(&mut self, message: Datagram) -> Datagram {
        self.socket.send(&message.encode()).await.unwrap();
        self.hears().await
    }

    /// The next message, acknowledged if that is wanted.
    async fn hears(&mut self) -> Datagram {
        let mut buffer = [0; 2048];
        let received = tokio::time::timeout(Duration::from_secs(60), self.socket.recv(&mut buffer)).await;
        let message = Datagram::decode(&buffer[..received.expect("an answer in time").unwrap()]).unwrap();
        if message.kind == Kind::Confirmable {
            let acknowledgement = Datagram::empty(Kind::Acknowledgement, message.id);
            self.socket.send(&acknowledgement.encode()).await.unwrap();
        }
        message
    }
}

async fn pair() -> (Endpoint, Endpoint) {
    let seams = seams().await;
    let four = Endpoint::bind(seams.clone(), SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let six = Endpoint::bind(seams, "[::1]:0".parse().unwrap()).await.unwrap();
    (four, six)
}

#[tokio::test]
async fn a_value_put_over_ipv6_is_observed_over_ipv4() {
    let (four, six) = pair().await;
    let (mut lamp, mut switch) = (Client::of(&four).await, Client::of(&six).await);
    let mut put = switch.request(Code::PUT);
    put.set_payload(b"off");
    assert_eq!(switch.asks(put).await.code(), Code::CREATED);
    let mut observe = lamp.request(Code::GET);
    observe.add_uint(option::OBSERVE, 0);
    assert_eq!(lamp.asks(observe).await.payload(), b"off");
    for body in [&b"on"[..], b"dim", b"off"] {
        let mut put = switch.request(Code::PUT);
        put.set_payload(body);
        assert_eq!(switch.asks(put).await.code(), Code::CHANGED);
        let seen = lamp.hears().await;
        assert_eq!((seen.code(), seen.payload()), (Code::CONTENT, body));
    }
    six.stop().await;
    four.stop().await;
    let end = lamp.hears().await;
    assert_eq!(end.code(), Code::UNAVAILABLE, "the stop is told to the observer");
}

#[tokio::test]
async fn a_flood_of_one_client_leaves_room_for_another() {
    let (four, _six) = pair().await;
    let (mut flood, mut quiet) = (Client::of(&four).await, Client::of(&four).await);
    let flooding = tokio::spawn(async move {
        loop {
            let mut put = flood.request(Code::PUT);
            put.set_payload(b"x");
            // A full buffer drops the datagram, which is what a flood deserves.
            let _ = flood.socket.try_send(&put.encode());
            tokio::task::yield_now().await;
        }
    });
    let mut repeated = 0;
    for _ in 0..200 {
        let get = quiet.request(Code::GET).encode();
        quiet.socket.send(&get).await.unwrap();
        let mut buffer = [0; 2048];
        while tokio::time::timeout(Duration::from_millis(500), quiet.socket.recv(&mut buffer)).await.is_err() {
            quiet.socket.send(&get).await.unwrap();
            repeated += 1;
        }
    }
    assert!(repeated < 20, "{repeated} of 200 requests were lost in the flood");
    flooding.abort();
    four.stop().await;
}

#[tokio::test]
async fn a_busy_port_is_the_operator_s_error() {
    let (four, _six) = pair().await;
    let error = Endpoint::bind(seams().await, four.local_addr()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}
