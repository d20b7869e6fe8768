//! Starts over a store with many sessions.

use super::*;
use tavi_core::topics::SubOptions;
use tavi_mqtt::packet::{Body, PublishProperties, Qos, Will};
use tavi_mqtt::record::{self, Inbound, SessionRecord};

/// A session as a process leaves it that is killed: connected, with a will, and every third with a QoS 2 publish that is
/// not finished. Of the kinds, one ends with its connection.
async fn leaves(store: &MemoryStore, number: u64, durable: bool) {
    let body = || Body::encode(Version::V5, "home/will", &PublishProperties::default(), b"gone");
    let will = Will { body: body(), qos: Qos::AtLeastOnce, retain: false, delay: 0 };
    let mut ops = vec![record::put(record::WILL, record::encode_will(&will))];
    if durable {
        let session = SessionRecord { expiry: 3600, left_ms: 0, sent: 0 };
        let options = SubOptions { qos: Qos::AtLeastOnce, ..SubOptions::default() };
        ops.push(record::put(record::SESSION, session.encode()));
        ops.push(record::put(&record::subscription_item("home/mine"), record::encode_options(&options)));
    }
    if durable && number.is_multiple_of(3) {
        let inbound = Inbound { id: number + 1, unfinished: Some((body(), false)) };
        ops.push(record::put(&record::inbound_item(1), inbound.encode()));
    }
    let owner = Owner::mqtt(&format!("u{number}@localhost"), "device");
    store.commit(&owner, ops).await.unwrap();
}

/// Starts a broker; gives how often it waited for the disk.
async fn start(store: &Arc<MemoryStore>) -> (World, usize) {
    store.hold();
    let starting = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let (mut syncs, mut before) = (0, usize::MAX);
    while !starting.is_finished() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        // It waits, and hands in nothing more.
        if store.waiting() > 0 && before == store.waiting() {
            syncs += 1;
            store.release(before);
        }
        before = store.waiting();
    }
    (starting.await.unwrap(), syncs)
}

#[tokio::test]
async fn a_start_waits_for_the_disk_a_few_times_however_many_sessions_there_are() {
    let mut syncs = Vec::new();
    for count in [10, 10_000] {
        let store = Arc::new(MemoryStore::default());
        for number in 0..count {
            leaves(&store, number, number % 2 == 0).await;
        }
        let (world, waited) = start(&store).await;
        assert_eq!(world.hub.sessions(None, None, 20_000).len() as u64, count / 2);
        syncs.push(waited);
    }
    assert!(syncs[0] < 10 && syncs[1] < syncs[0] + 40, "{syncs:?}");
}
