//! The http listener as its clients see it, over real sockets.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::{Stop, ask, exchange, read_all};
use tavi_web::http::{Health, Pages, serve};
use tavi_web::{Limits, Tls};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

struct Site(Health);

impl Pages for Site {
    fn metrics(&self) -> String {
        "# TYPE tavi_sessions gauge\ntavi_sessions 3\n".into()
    }

    fn health(&self) -> Health {
        self.0.clone()
    }

    fn ready(&self) -> Health {
        self.health()
    }
}

async fn start(health: Health, limits: Limits) -> (std::net::SocketAddr, Stop) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Stop::spawn(|stop| serve(listener, Arc::new(Site(health)), limits, stop));
    (address, stop)
}

async fn get(address: std::net::SocketAddr, request: &str) -> String {
    ask(TcpStream::connect(address).await.unwrap(), request).await
}

#[tokio::test]
async fn a_probe_asks_for_health_and_a_scraper_for_metrics() {
    let (address, _stop) = start(Health::Good, Limits::default()).await;
    let health = get(address, "GET /healthz").await;
    assert!(health.starts_with("HTTP/1.1 200 OK\r\n") && health.ends_with("\r\n\r\nok\n"), "{health}");
    let metrics = get(address, "GET /metrics?x=1").await;
    assert!(metrics.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{metrics}");
    assert!(metrics.ends_with("\r\n\r\n# TYPE tavi_sessions gauge\ntavi_sessions 3\n"), "{metrics}");
}

#[tokio::test]
async fn a_sick_broker_says_why() {
    let (address, _stop) = start(Health::Bad("the store is full".into()), Limits::default()).await;
    let health = get(address, "GET /healthz").await;
    assert!(health.starts_with("HTTP/1.1 503 ") && health.ends_with("the store is full\n"), "{health}");
}

#[tokio::test]
async fn other_requests_are_told_what_there_is() {
    let (address, _stop) = start(Health::Good, Limits::default()).await;
    let missing = get(address, "GET /").await;
    assert!(missing.starts_with("HTTP/1.1 404 ") && missing.contains("/healthz, /readyz and /metrics"), "{missing}");
    let posted = get(address, "POST /metrics").await;
    assert!(posted.starts_with("HTTP/1.1 405 ") && posted.contains("allow: GET, HEAD\r\n"), "{posted}");
    let head = get(address, "HEAD /healthz").await;
    assert!(head.contains("content-length: 3\r\n") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn what_is_not_http_gets_a_400_and_a_huge_head_a_431() {
    let (address, _stop) = start(Health::Good, Limits::default()).await;
    let garbage = exchange(TcpStream::connect(address).await.unwrap(), b"\x16\x03\x01\x02\x00 hello\r\n\r\n").await;
    assert!(garbage.starts_with("HTTP/1.1 400 "), "{garbage}");
    let huge = format!("GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    let refused = exchange(TcpStream::connect(address).await.unwrap(), huge.as_bytes()).await;
    assert!(refused.starts_with("HTTP/1.1 431 "), "{refused}");
}

#[tokio::test]
async fn who_says_nothing_is_disconnected() {
    let limits = Limits { head: Duration::from_millis(50), ..Limits::default() };
    let (address, _stop) = start(Health::Good, limits).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    silent.write_all(b"GET /healthz HT").await.unwrap();
    let last_words = read_all(&mut silent).await;
    assert!(!last_words.contains("200 OK"), "{last_words}");
    assert!(get(address, "GET /healthz").await.contains("200 OK"));
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_the_others_are_served() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let (address, _stop) = start(Health::Good, limits).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    let mut third = TcpStream::connect(address).await.unwrap();
    assert_eq!(read_all(&mut third).await, "");
    for held in [&mut first, &mut second] {
        held.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(read_all(held).await.contains("200 OK"));
    }
    assert!(get(address, "GET /healthz").await.contains("200 OK"));
}

#[tokio::test]
async fn a_stop_ends_the_listener_and_idle_connections() {
    let (address, stop) = start(Health::Good, Limits::default()).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    assert!(get(address, "GET /healthz").await.contains("200 OK"));
    stop.and_wait().await;
    assert_eq!(read_all(&mut idle).await, "");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn https_serves_the_same_pages() {
    let made = rcgen::generate_simple_self_signed(vec![String::from("localhost")]).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.clone()], key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = Tls::new(listener, Arc::new(arc_swap::ArcSwap::from_pointee(config)));
    let _stop = Stop::spawn(|stop| serve(tls, Arc::new(Site(Health::Good)), Limits::default(), stop));

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let plain = TcpStream::connect(address).await.unwrap();
    let secured = connector.connect("localhost".try_into().unwrap(), plain).await.unwrap();
    assert!(ask(secured, "GET /healthz").await.ends_with("ok\n"));
}
