//! Receivers that stop reading: whoever sends to them does not wait, and what waits for them is bounded.

use tavi_testkit::Broker;
use tavi_testkit::mqtt::MqttClient;
use tavi_testkit::xmpp::XmppClient;

use super::link::Link;
use super::people::{self, message, payload, publication};
use super::{Memory, connections, eventually, flooded};

/// 1 MiB may wait for one client, and 16 deliveries may be on their way to it.
const MQTT: &str = "[limits.mqtt]\nqueue_bytes = 1048576\nin_flight = 16\n";
/// 1 MiB may wait in memory for one session, and its client may be still for 15 s. The store's cache is full soon.
const XMPP: &str = "[store]\ncache_mib = 4\n[limits.xmpp]\ninbox_bytes = 1048576\nacknowledge_seconds = 15\n";

const PUBLICATIONS: u32 = 1_000;
const PAYLOAD: usize = 32 * 1024;
const MESSAGES: usize = 600;
const BODY: usize = 16 * 1024;

/// What a stalled receiver may cost, in KiB: its queue, what is being written, the store's part; a fraction of what is sent.
const ALLOWED_KIB: u64 = 10 * 1024;

/// MQTT 5 §4.3.1: at QoS 0 what does not fit is lost, the oldest first, and counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_qos_0_subscriber_loses_the_oldest() {
    let (broker, _turn) = flooded(MQTT).await;
    let (screen, link, sensor) = stalled_subscriber(&broker, 0).await;
    let memory = Memory::of(&broker);
    for n in 0..PUBLICATIONS {
        sensor.publish(publication("u/reader/t", 1, numbered(n))).await.unwrap();
    }
    let grown = memory.grown(&broker);
    assert!(grown < ALLOWED_KIB, "{grown} KiB for a subscriber that does not read");
    let dropped = broker.metric("tavi_messages_total").unwrap();
    assert!(dropped > 0.0, "drops are counted");
    link.resume();
    let mut seen = 0;
    while number(&payload(&screen).await) != PUBLICATIONS - 1 {
        seen += 1;
    }
    assert!(seen < PUBLICATIONS - 1, "nothing was dropped: the test shows nothing");
    println!("{grown} KiB; {} of {PUBLICATIONS} came", seen + 1);
}

/// semantics.md, order: a clean session that does not take its QoS 1 deliveries is closed, nobody waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_qos_1_subscriber_is_closed() {
    let (broker, _turn) = flooded(MQTT).await;
    let (_screen, _link, sensor) = stalled_subscriber(&broker, 1).await;
    let memory = Memory::of(&broker);
    for n in 0..PUBLICATIONS {
        sensor.publish(publication("u/reader/t", 1, numbered(n))).await.unwrap();
    }
    let grown = memory.grown(&broker);
    assert!(grown < ALLOWED_KIB, "{grown} KiB for a subscriber that does not read");
    eventually("only the publisher is left", || async { connections(&broker) == 1 }).await;
    println!("{grown} KiB");
}

/// semantics.md, order: the stream of a stalled session ends, and its messages are kept for the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_xmpp_session_keeps_its_messages_offline() {
    let (broker, _turn) = flooded(XMPP).await;
    people::settle_in(&broker);
    let address = broker.address("xmpp").unwrap();
    let caller = people::xmpp(address, "caller").await;
    caller.manage_stream().await.unwrap();
    // To somebody who is away, until the store's cache and its tables in memory have their size: of what is written it
    // keeps some megabytes, in up to three tables.
    for _ in 0..3 {
        send_all(&caller).await;
        take_all(&broker).await;
    }
    let memory = Memory::of(&broker);
    let link = Link::to(address).await;
    let reader = people::xmpp(link.address, "reader").await;
    reader.manage_stream().await.unwrap();
    link.stall();
    send_all(&caller).await;
    eventually("only the sender is left", || async { connections(&broker) == 1 }).await;
    let peak = broker.resident_kib().unwrap();
    take_all(&broker).await;
    memory.returns(&broker, peak).await;
}

/// Sends the messages; done when all are acknowledged.
async fn send_all(caller: &XmppClient) {
    let filling = "x".repeat(BODY);
    for n in 0..MESSAGES {
        caller.send(&message("reader@localhost", &format!("{n} {filling}"))).unwrap();
    }
    caller.acknowledged().await.unwrap();
}

/// All messages come in order. A session that is handed more than may wait for it is ended; the next one goes on, and
/// may repeat what was being written. In the end the reader is away: what is written to somebody without stream management
/// whose hanging up was not noticed is lost.
async fn take_all(broker: &Broker) {
    let (address, mut seen) = (broker.address("xmpp").unwrap(), 0);
    while seen < MESSAGES {
        let reader = people::log_in(address, "reader").await;
        while seen < MESSAGES
            && let Ok(body) = people::next_body(&reader).await
        {
            let n: usize = body.split(' ').next().unwrap().parse().unwrap();
            assert!(n <= seen, "{n} instead of {seen}");
            seen = seen.max(n + 1);
        }
    }
    eventually("the reader is away", || async { connections(broker) == 1 }).await;
}

/// A subscriber behind a link that stands still, and who publishes to it.
async fn stalled_subscriber(broker: &Broker, qos: u8) -> (MqttClient, Link, MqttClient) {
    people::settle_in(broker);
    let (address, link) = (broker.address("mqtt").unwrap(), Link::to(broker.address("mqtt").unwrap()).await);
    let (sensor, screen) =
        (people::mqtt(address, "reader", "sensor").await, people::mqtt(link.address, "reader", "screen").await);
    screen.subscribe("u/reader/#", qos).await.unwrap();
    link.stall();
    (screen, link, sensor)
}

fn numbered(n: u32) -> Vec<u8> {
    let mut payload = n.to_be_bytes().to_vec();
    payload.resize(PAYLOAD, 0);
    payload
}

fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().unwrap())
}
