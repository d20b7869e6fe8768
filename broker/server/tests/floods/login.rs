//! Logins that go on for ever, byte by byte, and guessed passwords.

use std::time::{Duration, Instant};

use tavi_testkit::Broker;
use tavi_testkit::mqtt::MqttClient;
use tavi_testkit::xmpp::XmppClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{PATIENCE, flooded, people};

const DEADLINE: Duration = Duration::from_secs(15);
const CONFIG: &str = "[limits.xmpp]\nlogin_seconds = 15\n[limits.mqtt]\nconnect_seconds = 15\n";
/// Between two bytes: far less than any time for which a connection may be silent.
const DRIP: Duration = Duration::from_millis(200);

const HEADER: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
                      to='localhost' version='1.0'>";
const AUTH: &str = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-256'>";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dripped_stream_header_meets_the_deadline() {
    let (broker, _turn) = flooded(CONFIG).await;
    let farewell = drip(&broker, "xmpp", "<?xml version='1.0'?>").await;
    assert!(farewell.contains("<connection-timeout"), "{farewell}");
}

/// The deadline is for the whole login: neither progress nor single bytes put it off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dripped_sasl_exchange_meets_the_deadline() {
    let (broker, _turn) = flooded(CONFIG).await;
    let farewell = drip(&broker, "xmpp", &format!("{HEADER}{AUTH}")).await;
    assert!(farewell.contains("<stream:features"), "{farewell}");
    assert!(farewell.contains("<connection-timeout"), "{farewell}");
    assert!(!farewell.contains("<challenge"), "{farewell}");
}

/// MQTT 5 §3.1: half a CONNECT is none, so there is no CONNACK.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dripped_connect_meets_the_deadline() {
    let (broker, _turn) = flooded(CONFIG).await;
    let farewell = drip(&broker, "mqtt", "\x10\x7f\x7f\x00\x04MQTT\x05\x02\x00\x3c\x00").await;
    assert_eq!(farewell, "");
}

/// Each failure is counted and answered later than the one before; a right password is still one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessed_passwords_are_delayed_and_counted() {
    let (broker, _turn) = flooded("").await;
    people::settle_in(&broker);
    let (counted, start) = (broker.metric("tavi_login_failures_total").unwrap(), Instant::now());
    for _ in 0..3 {
        let mut guesser = XmppClient::connect(broker.address("xmpp").unwrap(), "localhost").await.unwrap();
        assert_eq!(guesser.log_in("reader", "a guess").await.unwrap_err().to_string(), "not-authorized");
    }
    // One count for all protocols.
    let guess = people::connect("reader", "guesser", "a guess");
    assert_eq!(MqttClient::connect(broker.address("mqtt").unwrap(), &guess).await.unwrap_err().to_string(), "0x86");
    // 0.1, 0.2, 0.4 and 0.8 s.
    assert!(start.elapsed() >= Duration::from_millis(1_500), "four guesses took only {:?}", start.elapsed());
    assert_eq!(broker.metric("tavi_login_failures_total").unwrap(), counted + 4.0);
    people::chat(&broker).await;
}

/// Sends `beginning` and then one byte after the other until the broker ends the connection; what it said.
async fn drip(broker: &Broker, key: &str, beginning: &str) -> String {
    let start = Instant::now();
    let mut stream = TcpStream::connect(broker.address(key).unwrap()).await.unwrap();
    stream.write_all(beginning.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    loop {
        match timeout(DRIP, stream.read_buf(&mut said)).await {
            // Bytes that arrive after the end make it a reset.
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(_)) => {}
            Err(_) => drop(stream.write_all(b" ").await),
        }
        assert!(start.elapsed() < PATIENCE, "still open after {:?}", start.elapsed());
    }
    assert!(start.elapsed() >= DEADLINE, "closed already after {:?}", start.elapsed());
    String::from_utf8_lossy(&said).into_owned()
}
