//! The listeners over real sockets: login, deadlines, limits, the good-bye.
#![allow(missing_docs)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tavi_core::homes::SessionLimits;
use tavi_core::hooks::{BoxFuture, Registry};
use tavi_core::login::Certificates;
use tavi_core::metrics::Protocol;
use tavi_core::node::Parts;
use tavi_core::{Hosts, Node, Principal, SystemClock};
use tavi_mqtt::{Config, Hub, Link, Peer, serve};
use tavi_store::MemoryStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(20);

async fn broker(config: Config) -> (Arc<Hub>, SocketAddr) {
    let hosts = Hosts::new("localhost", &[]).unwrap();
    let store = Arc::new(MemoryStore::default());
    let parts = Parts::load(hosts, store, Arc::new(SystemClock), SessionLimits::default()).await.unwrap();
    parts.accounts.create(&"romeo@localhost".parse().unwrap(), "secret").await.unwrap();
    let hub = Hub::recall(Node::new(parts, Registry::default()), config).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(hub.clone().listen(listener));
    tokio::spawn(hub.clone().run());
    (hub, address)
}

fn connect(version: u8, client: &str, user: &str, password: &str) -> Vec<u8> {
    let mut body = b"\0\x04MQTT".to_vec();
    body.extend([version, 0xC2, 0, 60]);
    if version == 5 {
        body.push(0);
    }
    for text in [client, user, password] {
        body.extend((text.len() as u16).to_be_bytes());
        body.extend(text.as_bytes());
    }
    let mut out = vec![0x10, body.len() as u8];
    out.extend(body);
    out
}

struct Peer4(TcpStream);

impl Peer4 {
    async fn open(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    async fn romeo(address: SocketAddr, version: u8) -> Self {
        let mut peer = Self::open(address).await;
        peer.says(&connect(version, &format!("client{version}"), "romeo", "secret")).await;
        let head = peer.hears(2).await;
        assert_eq!(head[0], 0x20);
        let rest = peer.hears(usize::from(head[1])).await;
        assert_eq!(rest[1], 0, "let in");
        peer
    }

    async fn says(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    async fn hears(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        tokio::time::timeout(PATIENCE, self.0.read_exact(&mut bytes)).await.expect("in time").expect("open");
        bytes
    }

    /// Everything up to the end of the stream.
    async fn hears_the_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let end = tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut bytes)).await.expect("in time");
        end.expect("closed, not reset");
        bytes
    }
}

#[tokio::test]
async fn two_clients_talk_over_tcp() {
    let (hub, address) = broker(Config::default()).await;
    let mut reader = Peer4::romeo(address, 4).await;
    reader.says(b"\x82\x0d\0\x01\0\x08u/romeo/\x01").await;
    assert_eq!(reader.hears(5).await, b"\x90\x03\0\x01\x01");
    let mut writer = Peer4::romeo(address, 5).await;
    // in pieces, as a network may deliver it
    for byte in b"\x32\x10\0\x08u/romeo/\0\x09\0abc" {
        writer.says(&[*byte]).await;
    }
    assert_eq!(writer.hears(4).await, b"\x40\x02\0\x09");
    assert_eq!(reader.hears(17).await, b"\x32\x0f\0\x08u/romeo/\0\x01abc");
    assert_eq!(hub.connections(), 2);
    hub.stop();
    assert_eq!(reader.hears_the_end().await, b"", "3.1.1 is just closed");
    assert_eq!(writer.hears_the_end().await, b"\xe0\x02\x8b\x00");
    tokio::time::timeout(PATIENCE, hub.stopped()).await.unwrap();
}

#[tokio::test]
async fn a_large_payload_goes_through_and_an_oversized_packet_does_not() {
    let (_hub, address) = broker(Config::default()).await;
    let mut reader = Peer4::romeo(address, 4).await;
    reader.says(b"\x82\x0d\0\x01\0\x08u/romeo/\x00").await;
    reader.hears(5).await;
    let mut writer = Peer4::romeo(address, 5).await;
    let payload = vec![7u8; 1_000_000];
    let mut packet = b"\x30\xcb\x84\x3d\0\x08u/romeo/\0".to_vec();
    packet.extend(&payload);
    writer.says(&packet).await;
    let head = reader.hears(4 + 10).await;
    assert_eq!(&head[4..], b"\0\x08u/romeo/");
    assert_eq!(reader.hears(payload.len()).await, payload);
    writer.says(b"\x30\x80\x80\x80\x01").await;
    assert_eq!(writer.hears_the_end().await, b"\xe0\x02\x95\x00");
}

#[tokio::test]
async fn who_may_not_in_is_told_so() {
    let (hub, address) = broker(Config::default()).await;
    for (bytes, answer) in [
        (connect(4, "c", "romeo", "wrong"), &b"\x20\x02\0\x04"[..]),
        (connect(5, "c", "romeo", "wrong"), b"\x20\x03\0\x86\0"),
        (connect(5, "c", "nobody", "wrong"), b"\x20\x03\0\x86\0"),
        (b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01p".to_vec(), b"\x20\x02\0\x05"),
        (b"\x10\x0e\0\x04MQTT\x05\x02\0\x3c\0\0\x01p".to_vec(), b"\x20\x03\0\x87\0"),
        (b"\x10\x0c\0\x04MQTT\x04\x00\0\x3c\0\0".to_vec(), b"\x20\x02\0\x02"),
        (b"\x10\x0c\0\x04MQTT\x07\x02\0\x3c\0\0".to_vec(), b"\x20\x03\0\x84\0"),
        (b"\x10\x0e\0\x06MQIsdp\x03\x02\0\x3c\0\0".to_vec(), b"\x20\x02\0\x01"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), b""),
        (b"\xc0\x00".to_vec(), b""),
        (b"\x10\xff\xff\xff\x7f".to_vec(), b""),
    ] {
        let mut peer = Peer4::open(address).await;
        peer.says(&bytes).await;
        assert_eq!(peer.hears_the_end().await, answer, "{bytes:x?}");
    }
    assert_eq!(hub.node().parts.metrics.login_failures.get(), 3);
    assert_eq!(hub.node().parts.metrics.protocol_errors.get(), 5);
}

#[tokio::test]
async fn a_password_in_clear_is_taken_from_this_machine_only() {
    let (hub, _) = broker(Config::default()).await;
    for (link, version, answer) in [
        (Link::Clear, 4, &b"\x20\x02\0\x05"[..]),
        (Link::Clear, 5, b"\x20\x03\0\x86\0"),
        (Link::Encrypted, 4, b"\x20\x02\0\0"),
    ] {
        let (mut near, far) = tokio::io::duplex(1024);
        let peer = Peer::at("192.0.2.1".parse().unwrap(), link);
        tokio::spawn(serve(hub.clone(), far, peer));
        near.write_all(&connect(version, "c", "romeo", "secret")).await.unwrap();
        let mut bytes = vec![0; answer.len()];
        tokio::time::timeout(PATIENCE, near.read_exact(&mut bytes)).await.unwrap().unwrap();
        assert_eq!(bytes, answer);
    }
}

#[tokio::test]
async fn an_empty_client_id_gets_one() {
    let (_hub, address) = broker(Config::default()).await;
    let mut peer = Peer4::open(address).await;
    peer.says(&connect(5, "", "romeo", "secret")).await;
    let head = peer.hears(2).await;
    let rest = peer.hears(usize::from(head[1])).await;
    assert!(String::from_utf8_lossy(&rest).contains("auto-"));
}

#[tokio::test]
async fn silent_connections_are_closed_and_forgotten() {
    let config = Config { connect_timeout: Duration::from_millis(300), ..Config::default() };
    let (hub, address) = broker(config).await;
    let mut silent = Vec::new();
    for n in 0..200 {
        let mut peer = Peer4::open(address).await;
        if n % 2 == 0 {
            peer.says(b"\x10\x40\0\x04MQ").await;
        }
        silent.push(peer);
    }
    for peer in &mut silent {
        assert_eq!(peer.hears_the_end().await, b"");
    }
    assert_eq!(hub.node().parts.metrics.connections(Protocol::Mqtt).get(), 0);
    assert_eq!(hub.connections(), 0);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut_off_in_time() {
    let config = Config { write_timeout: Duration::from_millis(300), ..Config::default() };
    let (hub, address) = broker(config).await;
    let mut reader = Peer4::romeo(address, 4).await;
    reader.says(b"\x82\x0d\0\x01\0\x08u/romeo/\x00").await;
    reader.hears(5).await;
    let mut writer = Peer4::romeo(address, 5).await;
    let mut packet = b"\x30\xab\x86\x03\0\x08u/romeo/\0".to_vec();
    packet.resize(4 + 49_963, 1);
    for _ in 0..400 {
        writer.says(&packet).await;
    }
    writer.says(b"\xc0\x00").await;
    assert_eq!(writer.hears(2).await, b"\xd0\x00");
    let gone = async {
        while hub.connections() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the reader is cut off, the writer is not");
}

#[tokio::test]
async fn the_keep_alive_runs_over_sockets_too() {
    let (_hub, address) = broker(Config::default()).await;
    let mut peer = Peer4::open(address).await;
    let mut bytes = connect(5, "c", "romeo", "secret");
    bytes[11] = 1;
    peer.says(&bytes).await;
    let heard = peer.hears_the_end().await;
    assert_eq!(&heard[heard.len() - 4..], b"\xe0\x02\x8d\x00");
}

/// Takes one certificate for the pump's.
struct OnePump(Vec<u8>);

const PUMP: &str = "32dda035-ad8f-8818-9747-e3f78c18cc86";

impl Certificates for OnePump {
    fn device<'a>(&'a self, chain: &'a [Vec<u8>]) -> BoxFuture<'a, Option<Principal>> {
        let known = chain.first() == Some(&self.0);
        Box::pin(async move { known.then(|| Principal::Device(format!("{PUMP}@things.localhost").parse().unwrap())) })
    }
}

/// CONNECT without a password, of MQTT 3.1.1, with or without a user name.
fn connect_bare(user: Option<&str>) -> Vec<u8> {
    let mut body = b"\0\x04MQTT\x04\x02\0\x3c\0\x01c".to_vec();
    if let Some(user) = user {
        body[7] |= 0x80;
        body.extend((user.len() as u16).to_be_bytes());
        body.extend(user.as_bytes());
    }
    [vec![0x10, body.len() as u8], body].concat()
}

#[tokio::test]
async fn a_certificate_is_a_credential_for_its_device_only() {
    let (hub, clear) = broker(Config::default()).await;
    let (pump, stranger) = (identity("pump"), identity("stranger"));
    hub.node().parts.login.set_certificates(Arc::new(OnePump(pump.0.to_vec())));
    let (server, client) = tls_with(&[&pump, &stranger]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(hub.clone().listen_tls(listener, Arc::new(arc_swap::ArcSwap::from_pointee(server))));
    for (shown, user, code) in [
        (Some(&pump), None, 0),
        (Some(&pump), Some(PUMP), 0),
        (Some(&pump), Some("romeo"), 4),
        (Some(&stranger), None, 4),
        (None, None, 5),
        (None, Some(PUMP), 5),
    ] {
        let name = "localhost".try_into().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client(shown)));
        let mut secret = connector.connect(name, stream).await.unwrap();
        secret.write_all(&connect_bare(user)).await.unwrap();
        let mut heard = [0; 4];
        tokio::time::timeout(PATIENCE, secret.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(heard, [0x20, 2, 0, code], "{user:?}");
    }
    let mut bare = Peer4::open(clear).await;
    bare.says(&connect_bare(Some(PUMP))).await;
    assert_eq!(bare.hears_the_end().await, [0x20, 2, 0, 5]);
}

/// A certificate that signed itself, and its key.
type Identity = (rustls::pki_types::CertificateDer<'static>, Vec<u8>);

fn identity(name: &str) -> Identity {
    let made = rcgen::generate_simple_self_signed(vec![name.into()]).unwrap();
    (made.cert.der().clone(), made.signing_key.serialize_der())
}

/// A server that asks for certificates and takes these, and its clients with one of them or none.
fn tls_with(
    trusted: &[&Identity],
) -> (rustls::ServerConfig, impl Fn(Option<&Identity>) -> rustls::ClientConfig + use<>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let own = identity("localhost");
    let key = |identity: &Identity| rustls::pki_types::PrivateKeyDer::try_from(identity.1.clone()).unwrap();
    let mut anchors = rustls::RootCertStore::empty();
    trusted.iter().for_each(|one| anchors.add(one.0.clone()).unwrap());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(anchors.into(), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![own.0.clone()], key(&own))
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(own.0).unwrap();
    let client = move |shown: Option<&Identity>| {
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone());
        match shown {
            Some(one) => builder.with_client_auth_cert(vec![one.0.clone()], key(one)).unwrap(),
            None => builder.with_no_client_auth(),
        }
    };
    (server, client)
}

/// A server configuration with a certificate of its own, and a client that trusts it.
fn tls() -> (rustls::ServerConfig, rustls::ClientConfig) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (server, client)
}

#[tokio::test]
async fn tls_works_and_a_client_without_it_is_dropped() {
    let (hub, _) = broker(Config::default()).await;
    let (server, client) = tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(hub.listen_tls(listener, Arc::new(arc_swap::ArcSwap::from_pointee(server))));

    let mut clear = Peer4::open(address).await;
    clear.says(&connect(4, "c", "romeo", "secret")).await;
    let answer = clear.hears_the_end().await;
    assert!(answer.is_empty() || answer[0] == 21, "a TLS alert at most: {answer:x?}");

    let name = "localhost".try_into().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let mut secret = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await.unwrap();
    secret.write_all(&connect(4, "c", "romeo", "secret")).await.unwrap();
    secret.write_all(b"\x82\x0d\0\x01\0\x08u/romeo/\x00\x30\x0d\0\x08u/romeo/abc").await.unwrap();
    let mut heard = vec![0; 4 + 5 + 15];
    tokio::time::timeout(PATIENCE, secret.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, b"\x20\x02\0\0\x90\x03\0\x01\x00\x30\x0d\0\x08u/romeo/abc");
}
