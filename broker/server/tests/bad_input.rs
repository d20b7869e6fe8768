//! Peers that harm by what they do not say: silent connections, slow logins, guessed passwords.
//! (What they say wrongly is in the scenarios `malformed_…` and `too_large`.)

use std::time::{Duration, Instant};

use tavi_testkit::Broker;
use tavi_testkit::mqtt::MqttClient;
use tavi_testkit::mqtt_wire::Version;
use tavi_testkit::xmpp::XmppClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than the longest login deadline (XMPP, 30 s), with room for a busy machine.
const CLOSED_BY: Duration = Duration::from_secs(90);
/// What may stay of the memory of 10,000 connections, in KiB: allocators keep some pages.
const MAY_STAY: u64 = 16 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_silent_connections_are_closed_and_their_memory_returns() {
    let most = 10_000.min(raise_file_limit().saturating_sub(500));
    let broker = Broker::start().unwrap();
    let before = broker.resident_kib().unwrap();
    let mut open = Vec::new();
    for n in 0..most {
        let address = broker.address(if n % 2 == 0 { "xmpp" } else { "mqtt" }).unwrap();
        open.push((n % 2 == 0, TcpStream::connect(address).await.unwrap()));
    }
    let peak = broker.resident_kib().unwrap();
    println!("{most} connections: {before} KiB before, {peak} KiB with all open");
    timeout(CLOSED_BY, read_farewells(open)).await.expect("each silent connection is closed");
    let limit = before + MAY_STAY;
    let after = wait_until(|| broker.resident_kib().unwrap(), |now| now <= limit).await;
    println!("{after} KiB after");
    assert!(after <= limit, "{before} KiB before, {peak} KiB with all open, {after} KiB after");
    assert_eq!(broker.metric("tavi_connections").unwrap(), 0.0);
}

/// Reads each connection to its end. XMPP says why it closes (RFC 6120 §4.9.3.4); MQTT has no word for it.
async fn read_farewells(open: Vec<(bool, TcpStream)>) {
    for (is_xmpp, mut stream) in open {
        let mut farewell = Vec::new();
        // A reset is an end, too.
        let _ = stream.read_to_end(&mut farewell).await;
        let farewell = String::from_utf8_lossy(&farewell);
        assert!(!is_xmpp || farewell.contains("connection-timeout"), "{farewell}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_never_ends_meets_its_deadline() {
    let broker = Broker::start().unwrap();
    let start = Instant::now();
    let opened = XmppClient::connect(broker.address("xmpp").unwrap(), "localhost").await.unwrap();
    let dripping = tokio::spawn(drip(TcpStream::connect(broker.address("xmpp").unwrap()).await.unwrap()));
    let silent = MqttClient::connect_silently(broker.address("mqtt").unwrap(), Version::V5).await.unwrap();
    silent.closed().await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(9), "MQTT waited only {:?}", start.elapsed());
    let farewell = timeout(CLOSED_BY, dripping).await.expect("a peer that drips bytes is closed").unwrap();
    assert!(farewell.contains("connection-timeout"), "{farewell}");
    assert_eq!(opened.stream_error().await.unwrap(), "connection-timeout");
    opened.closed().await.unwrap();
}

/// Sends a stream header one byte a second; what came back before the end.
async fn drip(mut stream: TcpStream) -> String {
    let header =
        "<?xml version='1.0'?><stream:stream to='localhost' xmlns='jabber:client' version='1.0' xml:lang='en' ";
    let mut farewell = Vec::with_capacity(8192);
    for byte in header.bytes() {
        let answer = timeout(Duration::from_secs(1), stream.read_buf(&mut farewell)).await;
        if answer.is_ok() || stream.write_all(&[byte]).await.is_err() {
            break;
        }
    }
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut farewell).await;
    String::from_utf8_lossy(&farewell).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessed_passwords_are_delayed_and_counted() {
    let broker = Broker::start().unwrap();
    broker.add_user("reader@localhost", "right").unwrap();
    let failures = broker.metric("tavi_login_failures_total").unwrap();
    let start = Instant::now();
    for _ in 0..4 {
        let mut guesser = XmppClient::connect(broker.address("xmpp").unwrap(), "localhost").await.unwrap();
        let refusal = guesser.log_in("reader", "wrong").await.unwrap_err();
        assert_eq!(refusal.to_string(), "not-authorized");
    }
    // 0.1, 0.2, 0.4 and 0.8 s.
    assert!(start.elapsed() >= Duration::from_millis(1500), "four guesses took only {:?}", start.elapsed());
    assert_eq!(broker.metric("tavi_login_failures_total").unwrap(), failures + 4.0);
    let mut reader = XmppClient::connect(broker.address("xmpp").unwrap(), "localhost").await.unwrap();
    reader.log_in("reader", "right").await.unwrap();
}

async fn wait_until(mut value: impl FnMut() -> u64, holds: impl Fn(u64) -> bool) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let now = value();
        if holds(now) || Instant::now() > deadline {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Raises our limit of open files to the highest that is allowed, for us and the broker that we start.
fn raise_file_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one rlimit that lives on this stack.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
    limit.rlim_cur
}
