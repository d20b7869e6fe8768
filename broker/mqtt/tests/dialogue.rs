//! Dialogues between clients and the broker in virtual time, over the memory store.
#![allow(missing_docs)]

mod order;
mod outliving;
mod owed;
mod stage;
mod start;
mod subscribing;
mod worlds;

use stage::{Connect, World, clean, durable, with_will};
use std::sync::Arc;
use tavi_mqtt::Config;
use tavi_mqtt::packet::{Reason, Version};
use tavi_store::{MemoryStore, Owner, Store};

const NOTHING: [&str; 0] = [];

#[tokio::test]
async fn a_value_reaches_each_subscriber_at_the_lower_qos() {
    let world = World::new().await;
    let mut pump = world.old("pump", clean()).await;
    let mut reader = world.new_style("reader", clean()).await;
    assert_eq!(reader.hears(), ["CONNACK new"]);
    reader.subscribes(1, "home/+/t", 1);
    assert_eq!(reader.hears(), ["SUBACK #1 [01]"]);
    pump.publishes(0, 0, "home/a/t", "20");
    pump.publishes(1, 7, "home/a/t", "21");
    pump.publishes(2, 8, "home/a/t", "22");
    pump.pubrel(8);
    assert_eq!(pump.hears(), ["CONNACK new", "PUBACK #7", "PUBREC #8", "PUBCOMP #8"]);
    let seen = ["PUBLISH q0 home/a/t=20", "PUBLISH q1 #1 home/a/t=21", "PUBLISH q1 #2 home/a/t=22"];
    assert_eq!(reader.hears(), seen);
    reader.unsubscribes(2, "home/+/t");
    reader.unsubscribes(3, "home/+/t");
    assert_eq!(reader.hears(), ["UNSUBACK #2 [00]", "UNSUBACK #3 [11]"]);
    pump.publishes(0, 0, "home/a/t", "23");
    assert_eq!(reader.hears(), NOTHING);
}

#[tokio::test]
async fn a_clean_qos_1_path_saves_nothing() {
    let world = World::new().await;
    let before = world.store.last_id();
    let mut pump = world.old("pump", clean()).await;
    let mut reader = world.old("reader", clean()).await;
    reader.subscribes(1, "home/#", 1);
    pump.publishes(1, 7, "home/a", "21");
    assert_eq!(pump.hears(), ["CONNACK new", "PUBACK #7"]);
    assert_eq!(reader.hears().len(), 3);
    assert_eq!(world.store.last_id(), before);
    assert_eq!(world.store.owners(None, 10).await.unwrap(), [Owner::system("grants")]);
}

#[tokio::test]
async fn qos_2_is_delivered_once_however_often_it_is_sent() {
    let world = World::new().await;
    let mut pump = world.new_style("pump", clean()).await;
    let mut reader = world.old("reader", clean()).await;
    reader.subscribes(1, "home/#", 2);
    reader.hears();
    pump.publishes(2, 5, "home/a", "x");
    pump.publishes_with(0x0C, 5, "home/a", "x");
    pump.pubrel(5);
    pump.pubrel(5);
    assert_eq!(pump.hears(), ["CONNACK new", "PUBREC #5", "PUBREC #5", "PUBCOMP #5", "PUBCOMP #5 0x92"]);
    assert_eq!(reader.hears(), ["PUBLISH q2 #1 home/a=x"]);
    reader.pubrec(1);
    reader.pubrec(1);
    reader.pubcomp(1);
    reader.pubrec(1);
    assert_eq!(reader.hears(), ["PUBREL #1", "PUBREL #1", "PUBREL #1"]);
}

#[tokio::test]
async fn a_durable_session_gets_what_came_while_it_was_away() {
    let world = World::new().await;
    let mut pump = world.old("pump", clean()).await;
    let mut reader = world.new_style("reader", durable()).await;
    reader.subscribes(1, "home/#", 2);
    assert_eq!(reader.hears(), ["CONNACK new", "SUBACK #1 [02]"]);
    reader.disconnects();
    pump.publishes(0, 0, "home/a", "0");
    pump.publishes(1, 1, "home/a", "1");
    pump.publishes(2, 2, "home/a", "2");
    assert_eq!(pump.hears(), ["CONNACK new", "PUBACK #1", "PUBREC #2"]);
    let mut reader = world.new_style("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present", "PUBLISH q1 #1 home/a=1", "PUBLISH q2 #2 home/a=2"]);
    reader.puback(1);
    reader.pubrec(2);
    assert_eq!(reader.hears(), ["PUBREL #2"]);
    reader.pubcomp(2);
    reader.is_cut();
    let mut reader = world.new_style("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present"]);
    assert!(world.store.queue(&Owner::mqtt("reader@localhost", "reader"), 0, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_again_under_the_same_packet_id() {
    let world = World::new().await;
    let mut pump = world.old("pump", clean()).await;
    let mut reader = world.old("reader", durable()).await;
    reader.subscribes(1, "home/#", 2);
    for n in 1..=3 {
        pump.publishes(2, n, "home/a", &n.to_string());
    }
    reader.hears();
    reader.pubrec(2);
    assert_eq!(reader.hears(), ["PUBREL #2"]);
    reader.is_cut();
    let mut reader = world.old("reader", durable()).await;
    let again = ["CONNACK present", "PUBREL #2", "PUBLISH q2 #1 home/a=1 dup", "PUBLISH q2 #3 home/a=3 dup"];
    let mut heard = reader.hears();
    heard[1..].sort_by_key(|line| !line.starts_with("PUBREL"));
    assert_eq!(heard, again);
    // and after kill -9 as well
    let world = world.crash().await;
    let mut reader = world.old("reader", durable()).await;
    let mut heard = reader.hears();
    heard[1..].sort_by_key(|line| !line.starts_with("PUBREL"));
    assert_eq!(heard, again);
    for id in [1, 3] {
        reader.pubrec(id);
    }
    for id in 1..=3 {
        reader.pubcomp(id);
    }
    assert_eq!(reader.hears(), ["PUBREL #1", "PUBREL #3"]);
    let world = world.crash().await;
    assert_eq!(world.old("reader", durable()).await.hears(), ["CONNACK present"]);
}

#[tokio::test]
async fn a_durable_publisher_s_qos_2_survives_a_crash_and_is_published_once() {
    let world = World::new().await;
    let mut pump = world.new_style("pump", durable()).await;
    let mut reader = world.old("reader", durable()).await;
    reader.subscribes(1, "home/#", 2);
    pump.publishes(2, 9, "home/a", "x");
    assert_eq!(pump.hears(), ["CONNACK new", "PUBREC #9"]);
    assert_eq!(reader.hears().len(), 3);
    reader.pubrec(1);
    reader.pubcomp(1);
    let world = world.crash().await;
    let mut pump = world.new_style("pump", durable()).await;
    let mut reader = world.old("reader", durable()).await;
    // the client did not see PUBREC and repeats itself
    pump.publishes_with(0x0C, 9, "home/a", "x");
    pump.pubrel(9);
    assert_eq!(pump.hears(), ["CONNACK present", "PUBREC #9", "PUBCOMP #9"]);
    assert_eq!(reader.hears(), ["CONNACK present"]);
    // now the packet id means a new message
    pump.publishes(2, 9, "home/a", "y");
    assert_eq!(reader.hears(), ["PUBLISH q2 #1 home/a=y"]);
}

#[tokio::test]
async fn an_unfinished_qos_2_publish_is_finished_at_the_next_start() {
    let store = Arc::new(MemoryStore::delayed());
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let connecting = async {
        let reader = world.old("reader", durable()).await;
        let pump = world.old("pump", durable()).await;
        (reader, pump)
    };
    let (mut reader, mut pump) = release_while(&store, connecting).await;
    reader.subscribes(1, "home/#", 2);
    store.release_all();
    assert_eq!(reader.hears(), ["CONNACK new", "SUBACK #1 [02]"]);
    pump.publishes(2, 4, "home/a", "x");
    assert_eq!(store.waiting(), 1, "first the publisher's own row");
    store.release(1);
    assert_eq!(pump.hears(), ["CONNACK new"], "then the fan-out, and no PUBREC yet");
    assert_eq!(store.waiting(), 1);
    // the process ends here; what was not released is lost
    while store.refuse(tavi_store::StoreError::Unavailable("crash".into())) {}
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let mut reader = release_while(&store, world.old("reader", durable())).await;
    assert_eq!(reader.hears(), ["CONNACK present", "PUBLISH q2 #1 home/a=x"]);
    let mut pump = release_while(&store, world.old("pump", durable())).await;
    pump.publishes_with(0x0C, 4, "home/a", "x");
    store.release_all();
    assert_eq!(pump.hears(), ["CONNACK present", "PUBREC #4"]);
    assert_eq!(reader.hears(), NOTHING);
}

async fn release_until<T: Send + 'static>(store: &MemoryStore, task: tokio::task::JoinHandle<T>) -> T {
    while !task.is_finished() {
        store.release_all();
        tokio::task::yield_now().await;
    }
    task.await.unwrap()
}

async fn release_while<T>(store: &MemoryStore, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::task::yield_now() => { store.release_all(); }
        }
    }
}

#[tokio::test]
async fn acknowledgements_wait_for_the_store_and_keep_their_order() {
    let store = Arc::new(MemoryStore::delayed());
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let (mut reader, mut pump) =
        release_while(&store, async { (world.old("reader", durable()).await, world.old("pump", clean()).await) }).await;
    reader.subscribes(1, "home/kept", 1);
    store.release_all();
    reader.hears();
    pump.publishes(1, 1, "home/kept", "a");
    pump.publishes(1, 2, "home/free", "b");
    assert_eq!(pump.hears(), ["CONNACK new"], "the second waits for the first");
    assert_eq!(reader.hears(), NOTHING, "nothing is delivered before it is saved");
    store.release_all();
    assert_eq!(pump.hears(), ["PUBACK #1", "PUBACK #2"]);
    assert_eq!(reader.hears(), ["PUBLISH q1 #1 home/kept=a"]);
}

#[tokio::test]
async fn a_full_window_stops_reading_and_a_closing_session_drains_it() {
    let store = Arc::new(MemoryStore::delayed());
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let (mut reader, mut pump) =
        release_while(&store, async { (world.old("reader", durable()).await, world.old("pump", clean()).await) }).await;
    reader.subscribes(1, "home/#", 1);
    store.release_all();
    for id in 1..=70 {
        pump.publishes(1, id, "home/a", &id.to_string());
    }
    assert_eq!(store.waiting(), 64);
    pump.is_cut();
    store.release_all();
    world.settle().await;
    assert_eq!(reader.hears().len(), 2 + 64, "what was read is delivered though the publisher is gone");
}

#[tokio::test]
async fn a_durable_publisher_that_is_cut_off_early_is_heard_all_the_same() {
    let store = Arc::new(MemoryStore::delayed());
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let (mut reader, mut pump) =
        release_while(&store, async { (world.old("reader", durable()).await, world.old("pump", durable()).await) })
            .await;
    reader.subscribes(1, "home/#", 2);
    store.release_all();
    pump.publishes(2, 1, "home/a", "x");
    pump.subscribes(2, "home/b", 0);
    pump.is_cut();
    let mut pump = release_while(&store, world.old("pump", durable())).await;
    assert_eq!(reader.hears(), ["CONNACK new", "SUBACK #1 [02]", "PUBLISH q2 #1 home/a=x"]);
    pump.publishes_with(0x0C, 1, "home/a", "x");
    assert_eq!(pump.hears(), ["CONNACK present", "PUBREC #1"]);
}

#[tokio::test]
async fn a_qos_2_publish_that_could_not_be_saved_may_be_tried_again() {
    let store = Arc::new(MemoryStore::delayed());
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let mut pump = release_while(&store, world.new_style("pump", durable())).await;
    pump.publishes(2, 1, "home/a", "x");
    store.refuse(tavi_store::StoreError::Unavailable("full".into()));
    assert_eq!(pump.hears(), ["CONNACK new", "DISCONNECT 0x80"]);
    let mut pump = release_while(&store, world.new_style("pump", durable())).await;
    pump.publishes_with(0x0C, 1, "home/a", "x");
    let before = store.waiting_owners().len();
    store.release_all();
    pump.hears();
    assert_eq!((before, store.waiting()), (1, 1), "it is saved and fanned out as a new one");
}

#[tokio::test]
async fn a_store_that_fails_ends_the_connection_without_an_acknowledgement() {
    let store = Arc::new(MemoryStore::delayed());
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let mut pump = release_while(&store, world.new_style("pump", clean())).await;
    pump.retains("home/a", "kept");
    store.refuse(tavi_store::StoreError::Unavailable("full".into()));
    assert_eq!(pump.hears(), ["CONNACK new", "DISCONNECT 0x80"]);
}

#[tokio::test]
async fn the_second_connection_takes_the_session_over() {
    let world = World::new().await;
    let mut first = world.new_style("reader", durable()).await;
    first.subscribes(1, "home/#", 1);
    assert_eq!(first.hears().len(), 2);
    let coming = world.new_style("reader", durable());
    tokio::pin!(coming);
    assert!(waits(&mut coming).await, "what the first one began has to be done first");
    assert_eq!(first.hears(), ["DISCONNECT 0x8e"]);
    assert!(!first.is_connected());
    let mut second = coming.await;
    let mut pump = world.old("pump", clean()).await;
    pump.publishes(1, 1, "home/a", "x");
    assert_eq!(second.hears(), ["CONNACK present", "PUBLISH q1 #1 home/a=x"]);
    let mut third = world.new_style("reader", clean()).await;
    assert_eq!(second.hears(), ["DISCONNECT 0x8e"]);
    pump.publishes(1, 2, "home/a", "y");
    assert_eq!(third.hears(), ["CONNACK new"], "clean start forgets subscriptions and rows");
}

/// Whether the work can not be done just now.
async fn waits(work: &mut (impl Future + Unpin)) -> bool {
    tokio::select! {
        biased;
        _ = work => false,
        () = tokio::task::yield_now() => true,
    }
}

#[tokio::test]
async fn of_three_that_want_a_session_the_last_gets_it() {
    let world = World::new().await;
    let mut first = world.old("reader", durable()).await;
    let third = world.new_style("reader", durable());
    let second = world.tries(("reader", "reader"), Version::V5, durable());
    tokio::pin!(second, third);
    assert!(waits(&mut second).await && waits(&mut third).await);
    first.hears();
    assert_eq!(second.await.err(), Some(Reason::BUSY));
    let mut third = third.await;
    assert_eq!(third.hears(), ["CONNACK present"]);
    assert!(third.is_connected());
}

#[tokio::test]
async fn nobody_takes_over_somebody_else_s_session() {
    let world = World::new().await;
    let mut romeo = world.join_as("romeo", "lamp", Version::V5, durable()).await;
    romeo.subscribes(1, "home/#", 1);
    let mut juliet = world.join_as("juliet", "lamp", Version::V5, durable()).await;
    assert_eq!(juliet.hears(), ["CONNACK new"]);
    assert!(romeo.is_connected());
    juliet.publishes(1, 1, "home/a", "x");
    assert_eq!(juliet.hears(), ["PUBACK #1"]);
    assert_eq!(romeo.hears().len(), 3);
}

#[tokio::test]
async fn what_was_kept_is_delivered_only_while_it_is_permitted() {
    let world = World::new().await;
    world.grant("reader@localhost", "subscribe", "yard/#").await;
    world.grant("pump@localhost", "publish", "yard/#").await;
    let mut reader = world.old("reader", durable()).await;
    reader.subscribes(1, "yard/#", 1);
    reader.subscribes(2, "home/#", 1);
    reader.is_cut();
    let mut pump = world.old("pump", clean()).await;
    pump.publishes(1, 1, "yard/a", "x");
    pump.publishes(1, 2, "home/a", "y");
    world.hub.node().parts.permit.remove(|grant| &*grant.filter == "yard/#").1.await.unwrap();
    let mut reader = world.old("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present", "PUBLISH q1 #2 home/a=y"]);
}

#[tokio::test]
async fn a_message_that_expired_while_it_waited_is_not_delivered() {
    let world = World::new().await;
    let mut reader = world.new_style("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.is_cut();
    let mut pump = world.new_style("pump", clean()).await;
    for (id, seconds) in [(1, 10), (2, 100)] {
        let mut packet = b"\x32\x11\0\x06home/a\0\0\x05\x02\0\0\0\0v".to_vec();
        (packet[11], packet[17]) = (id, seconds);
        pump.says(&packet);
    }
    assert_eq!(pump.hears(), ["CONNACK new", "PUBACK #1", "PUBACK #2"]);
    world.pass(60).await;
    let mut reader = world.new_style("reader", durable()).await;
    assert_eq!(reader.raw(), b"\x32\x11\0\x06home/a\0\x02\x05\x02\0\0\0\x28v", "and 40 seconds are left");
}

#[tokio::test]
async fn nobody_has_any_number_of_durable_sessions() {
    let world = World::with(Config { max_durable_sessions: 2, ..Config::default() }).await;
    let _one = world.join_as("romeo", "1", Version::V4, durable()).await;
    world.join_as("romeo", "2", Version::V4, durable()).await.is_cut();
    let _again = world.join_as("romeo", "2", Version::V4, durable()).await;
    let _clean = world.join_as("romeo", "3", Version::V4, clean()).await;
    let _other = world.join_as("juliet", "3", Version::V4, durable()).await;
    let mut third = tavi_mqtt::packet::Connect {
        version: Version::V4,
        client_id: "4".into(),
        clean: false,
        keep_alive: 0,
        expiry: u32::MAX,
        receive_maximum: 1,
        maximum_packet: 1000,
        auth_method: false,
        will: None,
        user: None,
        password: None,
    };
    let romeo = tavi_core::Principal::Account("romeo@localhost".parse().unwrap());
    assert_eq!(world.hub.enter(&romeo, &mut third).await.err(), Some(Reason::QUOTA));
}

#[tokio::test]
async fn the_end_reaches_a_client_that_acknowledges_nothing() {
    let world = World::with(Config { in_flight: 1, queue_messages: 5, ..Config::default() }).await;
    let mut pump = world.old("pump", clean()).await;
    for end in ["revoked", "taken over", "overflow"] {
        let mut reader = world.new_style("reader", clean()).await;
        reader.subscribes(1, "home/#", 1);
        for id in 1..=3 {
            pump.publishes(1, id, "home/a", "x");
            reader.hears();
        }
        let reason = match end {
            "revoked" => {
                world.hub.revoke("reader@localhost");
                "DISCONNECT 0x98"
            }
            "taken over" => {
                world.new_style("reader", clean()).await.is_cut();
                "DISCONNECT 0x8e"
            }
            _ => {
                for id in 4..=20 {
                    pump.publishes(1, id, "home/a", "x");
                }
                "DISCONNECT 0x97"
            }
        };
        assert_eq!(reader.hears(), [reason], "{end}");
    }
}

#[tokio::test]
async fn retained_values_come_as_the_options_say() {
    let world = World::new().await;
    let mut pump = world.old("pump", clean()).await;
    pump.retains("home/a", "kept");
    assert_eq!(pump.hears(), ["CONNACK new", "PUBACK #900"]);
    let mut reader = world.new_style("reader", clean()).await;
    reader.hears();
    reader.subscribes(1, "home/+", 0x01);
    assert_eq!(reader.hears(), ["SUBACK #1 [01]", "PUBLISH q1 #1 home/a=kept retain"]);
    reader.subscribes(2, "home/+", 0x11);
    assert_eq!(reader.hears(), ["SUBACK #2 [01]"], "1: only if the subscription is new");
    reader.subscribes(3, "home/a", 0x21);
    assert_eq!(reader.hears(), ["SUBACK #3 [01]"], "2: never");
    reader.unsubscribes(4, "home/a");
    reader.hears();
    pump.retains("home/a", "newer");
    assert_eq!(reader.hears(), ["PUBLISH q1 #2 home/a=newer"], "a live value has no RETAIN flag");
    reader.subscribes(5, "home/+", 0x29);
    reader.hears();
    pump.retains("home/a", "");
    assert_eq!(reader.hears(), ["PUBLISH q1 #3 home/a= retain"], "retain as published, and it is cleared");
    let mut late = world.old("late", clean()).await;
    late.subscribes(1, "home/+", 0);
    assert_eq!(late.hears(), ["CONNACK new", "SUBACK #1 [00]"]);
}

#[tokio::test]
async fn a_kept_value_without_bytes_never_comes_as_retained() {
    let world = World::new().await;
    let mut reader = world.new_style("reader", clean()).await;
    reader.subscribes(1, "home/+", 0x09);
    reader.hears();
    let who = tavi_core::Principal::Anon { loopback: true };
    let draft = tavi_core::topics::Draft { topic: "home/a".into(), retain: true, ..Default::default() };
    world.hub.node().parts.topics.publish_unasked(&who, draft).complete().await.unwrap();
    world.settle().await;
    assert_eq!(
        reader.hears(),
        ["PUBLISH q0 home/a="],
        "RFC 7252 knows an empty value, MQTT 3.3.1.3 no empty retained one"
    );
    let mut late = world.old("late", clean()).await;
    late.subscribes(1, "home/+", 0);
    assert_eq!(late.hears(), ["CONNACK new", "SUBACK #1 [00]"]);
}

#[tokio::test]
async fn a_durable_session_keeps_retained_values_until_it_has_them() {
    let world = World::new().await;
    world.old("pump", clean()).await.retains("home/a", "kept");
    let mut reader = world.old("reader", durable()).await;
    reader.subscribes(1, "home/+", 1);
    assert_eq!(reader.hears(), ["CONNACK new", "SUBACK #1 [01]", "PUBLISH q1 #1 home/a=kept retain"]);
    let world = world.crash().await;
    let mut reader = world.old("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present", "PUBLISH q1 #1 home/a=kept dup retain"]);
    reader.puback(1);
    let world = world.crash().await;
    assert_eq!(world.old("reader", durable()).await.hears(), ["CONNACK present"]);
}

#[tokio::test]
async fn no_local_keeps_ones_own_words_away() {
    let world = World::new().await;
    let mut talker = world.new_style("talker", clean()).await;
    talker.subscribes(1, "home/#", 0x05);
    talker.publishes(1, 1, "home/a", "me");
    assert_eq!(talker.hears(), ["CONNACK new", "SUBACK #1 [01]", "PUBACK #1"]);
}

#[tokio::test]
async fn what_is_not_permitted_is_refused_as_the_version_allows() {
    let world = World::new().await;
    let mut old = world.old("old", clean()).await;
    let mut new = world.new_style("new", clean()).await;
    for (actor, granted) in [(&mut old, "80"), (&mut new, "87")] {
        actor.hears();
        actor.subscribes(1, "secret/#", 1);
        assert_eq!(actor.hears(), [format!("SUBACK #1 [{granted}]")]);
        actor.publishes(0, 0, "secret/a", "x");
        assert_eq!(actor.hears(), NOTHING);
        actor.publishes(1, 2, "secret/a", "x");
        actor.publishes(2, 3, "secret/a", "x");
    }
    assert_eq!(old.hears(), ["PUBACK #2", "PUBREC #3"], "3.1.1 can not say no");
    assert_eq!(new.hears(), ["PUBACK #2 0x87", "PUBREC #3 0x87"]);
    new.publishes(2, 3, "home/a", "x");
    assert_eq!(new.hears(), ["PUBREC #3"], "after a refusal the packet id is free");
}

#[tokio::test]
async fn who_keeps_as_much_as_one_may_keep_is_told_so_as_the_version_allows() {
    let world = World::new().await;
    world.hub.node().parts.topics.set_quota(tavi_core::topics::Quota { topics: 1, bytes: 100 });
    let mut old = world.old("old", clean()).await;
    let mut new = world.new_style("new", durable()).await;
    old.hears();
    new.hears();
    for (n, actor) in [&mut old, &mut new].into_iter().enumerate() {
        actor.publishes_with(0b0011, 1, "home/first", "x");
        actor.publishes_with(0b0011, 2, "home/second", "x");
        actor.publishes_with(0b0101, 3, "home/third", "x");
        actor.publishes_with(0b0001, 0, "home/fourth", "x");
        actor.publishes(1, 4, "home/second", "passing");
        let fifth = if n == 0 { "" } else { " 0x97" };
        let [second, third] = [format!("PUBACK #2{fifth}"), format!("PUBREC #3{fifth}")];
        assert_eq!(actor.hears(), ["PUBACK #1", &second, &third, "PUBACK #4"]);
    }
    assert_eq!(world.hub.node().parts.topics.counts().1, 1);
    new.publishes_with(0b0011, 5, "home/first", "");
    new.publishes_with(0b0101, 3, "home/third", "x");
    assert_eq!(new.hears(), ["PUBACK #5", "PUBREC #3"], "what is cleared makes room");
}

#[tokio::test]
async fn illegal_topics_and_filters_are_refused() {
    let world = World::new().await;
    let mut new = world.new_style("new", clean()).await;
    new.publishes(1, 1, "home/../x", "x");
    new.publishes(1, 2, "home/+", "x");
    new.subscribes(3, "home/#/x", 0);
    assert_eq!(new.hears(), ["CONNACK new", "PUBACK #1 0x90", "PUBACK #2 0x90", "SUBACK #3 [8f]"]);
    new.publishes(0, 0, "home/#", "x");
    assert_eq!(new.hears(), ["DISCONNECT 0x90"]);
    let mut old = world.old("old", clean()).await;
    old.publishes(1, 1, "home/+", "x");
    assert_eq!((old.hears(), old.is_connected()), (vec!["CONNACK new".to_owned()], false));
    let mut old = world.old("old", clean()).await;
    old.subscribes(1, "home/a+", 0);
    old.unsubscribes(2, "home/a+");
    assert_eq!(old.hears(), ["CONNACK new", "SUBACK #1 [80]", "UNSUBACK #2 []"]);
    for qos in 0..3 {
        let mut new = world.new_style("new", clean()).await;
        new.publishes(qos, 1, "", "x");
        assert_eq!(new.hears(), ["CONNACK new", "DISCONNECT 0x82"], "an empty topic is a protocol error");
    }
}

#[tokio::test]
async fn subscriptions_are_bounded() {
    let world = World::with(Config { max_subscriptions: 2, ..Config::default() }).await;
    let mut reader = world.new_style("reader", clean()).await;
    for id in 1..=3 {
        reader.subscribes(id, &format!("home/{id}"), 0);
    }
    assert_eq!(reader.hears()[1..], ["SUBACK #1 [00]", "SUBACK #2 [00]", "SUBACK #3 [97]"]);
    let mut greedy = world.new_style("greedy", clean()).await;
    greedy.says(b"\x82\x1b\0\x01\0\0\x05yes/a\0\0\x05yes/b\0\0\x05yes/c\0");
    assert_eq!(greedy.hears()[1..], ["SUBACK #1 [87, 87, 97]"]);
}

#[tokio::test]
async fn what_connack_ruled_out_ends_the_connection() {
    let world = World::new().await;
    let mut new = world.new_style("new", clean()).await;
    new.says(b"\x82\x0e\0\x01\x02\x0b\x07\0\x06home/a\x00");
    assert_eq!(new.hears(), ["CONNACK new", "DISCONNECT 0xa1"]);
    let mut new = world.new_style("new", clean()).await;
    new.subscribes(4, "$share/g/home/x", 0);
    assert_eq!(new.hears(), ["CONNACK new", "DISCONNECT 0x9e"]);
}

#[tokio::test]
async fn a_filter_that_exists_may_be_subscribed_to_again_at_the_limit() {
    let world = World::with(Config { max_subscriptions: 2, ..Config::default() }).await;
    let mut reader = world.new_style("reader", clean()).await;
    for (id, filter) in [(1, "home/a"), (2, "home/b"), (3, "home/a"), (4, "home/c")] {
        reader.subscribes(id, filter, 1);
    }
    assert_eq!(reader.hears()[1..], ["SUBACK #1 [01]", "SUBACK #2 [01]", "SUBACK #3 [01]", "SUBACK #4 [97]"]);
}

#[tokio::test]
async fn an_answer_over_the_client_s_maximum_is_not_sent() {
    let world = World::new().await;
    let mut reader = world.new_style("reader", Connect { maximum_packet: 8, ..clean() }).await;
    reader.hears();
    reader.says(b"\x82\x1b\0\x01\0\0\x05yes/a\0\0\x05yes/b\0\0\x05yes/c\0");
    assert_eq!(reader.hears(), ["SUBACK #1 [87, 87, 87]"], "eight bytes");
    reader.says(b"\x82\x23\0\x01\0\0\x05yes/a\0\0\x05yes/b\0\0\x05yes/c\0\0\x05yes/d\0");
    assert_eq!(reader.hears(), ["DISCONNECT 0x95"]);
}

#[tokio::test]
async fn what_an_old_client_never_releases_is_bounded() {
    let world = World::with(Config { receive_maximum: 3, ..Config::default() }).await;
    let mut pump = world.old("pump", clean()).await;
    for id in 1..=3 {
        pump.publishes(2, id, "home/a", "x");
    }
    pump.publishes(1, 9, "home/a", "x");
    assert_eq!(pump.hears(), ["CONNACK new", "PUBREC #1", "PUBREC #2", "PUBREC #3", "PUBACK #9"]);
    pump.publishes(2, 4, "home/a", "x");
    assert!(!pump.is_connected());
}

#[tokio::test]
async fn what_a_client_publishes_lands_in_order_whatever_its_qos() {
    let store = Arc::new(MemoryStore::delayed());
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let (mut reader, mut pump) =
        release_while(&store, async { (world.old("reader", clean()).await, world.old("pump", durable()).await) }).await;
    reader.subscribes(1, "home/#", 2);
    reader.hears();
    pump.publishes(2, 1, "home/a", "first");
    pump.publishes_with(0x03, 2, "home/a", "second");
    pump.publishes(0, 0, "home/a", "third");
    pump.subscribes(3, "home/+", 0);
    for _ in 0..10 {
        store.release_all();
        pump.hears();
    }
    let seen = ["PUBLISH q2 #1 home/a=first", "PUBLISH q1 #2 home/a=second", "PUBLISH q0 home/a=third"];
    assert_eq!(reader.hears(), seen);
}

#[tokio::test]
async fn one_s_own_retained_value_is_there_for_the_subscription_behind_it() {
    let store = Arc::new(MemoryStore::delayed());
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let mut pump = release_while(&store, world.old("pump", clean())).await;
    pump.retains("home/a", "new");
    pump.subscribes(3, "home/+", 0);
    assert_eq!(pump.hears(), ["CONNACK new"]);
    store.release_all();
    assert_eq!(pump.hears(), ["PUBACK #900", "SUBACK #3 [00]", "PUBLISH q0 home/a=new retain"]);
}

#[tokio::test]
async fn no_local_holds_for_what_a_restart_publishes() {
    let store = Arc::new(MemoryStore::delayed());
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let mut talker = release_while(&store, world.new_style("talker", durable())).await;
    talker.subscribes(1, "home/#", 0x06);
    store.release_all();
    talker.publishes(2, 4, "home/a", "me");
    store.release(1);
    assert_eq!(talker.hears(), ["CONNACK new", "SUBACK #1 [02]"], "it is saved and not published");
    while store.refuse(tavi_store::StoreError::Unavailable("crash".into())) {}
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let mut talker = release_while(&store, world.new_style("talker", durable())).await;
    assert_eq!(talker.hears(), ["CONNACK present"]);
}

#[tokio::test]
async fn a_step_of_the_wall_clock_ends_nothing() {
    let world = World::new().await;
    let mut pump = world.new_style("pump", Connect { keep_alive: 10, ..durable() }).await;
    let lamp = Connect { will: with_will("home/gone", "lamp", 30), ..durable() };
    world.new_style("lamp", lamp).await.is_cut();
    let mut reader = world.old("reader", clean()).await;
    reader.subscribes(1, "home/#", 0);
    world.clock.step(30 * 24 * 3_600_000);
    world.pass(10).await;
    pump.silence();
    assert!(pump.is_connected());
    assert_eq!(reader.hears().len(), 2, "the will waits");
    world.clock.step(-60 * 24 * 3_600_000);
    world.pass(20).await;
    pump.silence();
    assert!(!pump.is_connected());
    assert_eq!(reader.hears(), ["PUBLISH q0 home/gone=lamp"]);
    assert_eq!(world.new_style("lamp", durable()).await.hears(), ["CONNACK present"]);
}

#[tokio::test]
async fn a_clean_start_publishes_the_will_that_waits() {
    let world = World::new().await;
    let mut reader = world.old("reader", clean()).await;
    reader.subscribes(1, "home/#", 0);
    reader.hears();
    let connect = Connect { will: with_will("home/gone", "lamp", 30), ..durable() };
    world.new_style("lamp", connect.clone()).await.is_cut();
    let mut lamp = world.new_style("lamp", Connect { clean: true, ..connect.clone() }).await;
    world.settle().await;
    assert_eq!(reader.hears(), ["PUBLISH q0 home/gone=lamp"]);
    let _next = world.new_style("lamp", Connect { clean: true, ..connect }).await;
    assert_eq!(lamp.hears(), ["CONNACK new", "DISCONNECT 0x8e"]);
    world.settle().await;
    assert_eq!(reader.hears(), ["PUBLISH q0 home/gone=lamp"]);
}

#[tokio::test]
async fn silence_beyond_the_keep_alive_ends_the_connection() {
    let world = World::new().await;
    let mut pump = world.new_style("pump", Connect { keep_alive: 10, ..clean() }).await;
    world.pass(14).await;
    pump.silence();
    assert!(pump.is_connected());
    pump.says(&[0xC0, 0]);
    assert_eq!(pump.hears(), ["CONNACK new", "PINGRESP"]);
    world.pass(15).await;
    pump.silence();
    assert_eq!(pump.hears(), ["DISCONNECT 0x8d"]);
}

#[tokio::test]
async fn a_will_is_published_when_the_connection_is_cut_and_only_then() {
    let world = World::new().await;
    let mut reader = world.old("reader", clean()).await;
    reader.subscribes(1, "home/#", 0);
    reader.hears();
    let connect = Connect { will: with_will("home/gone", "pump", 0), ..clean() };
    let mut pump = world.old("pump", connect.clone()).await;
    pump.disconnects();
    world.settle().await;
    assert_eq!(reader.hears(), NOTHING);
    world.old("pump", connect.clone()).await.is_cut();
    world.settle().await;
    assert_eq!(reader.hears(), ["PUBLISH q0 home/gone=pump"]);
    let mut pump = world.new_style("pump", connect.clone()).await;
    pump.says(&[0xE0, 1, 4]);
    world.settle().await;
    assert_eq!(reader.hears(), ["PUBLISH q0 home/gone=pump"], "reason 0x04 wants it");
    let mut pump = world.new_style("pump", connect.clone()).await;
    let mut second = world.new_style("pump", connect).await;
    pump.hears();
    world.settle().await;
    assert_eq!(reader.hears(), ["PUBLISH q0 home/gone=pump"], "a takeover is a cut as well");
    assert_eq!(world.store.owners(None, 10).await.unwrap().len(), 2, "the second one's will is stored");
    second.is_cut();
    world.settle().await;
    assert_eq!(reader.hears(), ["PUBLISH q0 home/gone=pump"]);
    assert_eq!(world.store.owners(None, 10).await.unwrap(), [Owner::system("grants")], "nothing is left of them");
}

#[tokio::test]
async fn a_delayed_will_waits_and_is_dropped_if_the_client_comes_back() {
    let world = World::new().await;
    let mut reader = world.old("reader", clean()).await;
    reader.subscribes(1, "home/#", 0);
    reader.hears();
    let connect = Connect { will: with_will("home/gone", "pump", 30), ..durable() };
    world.new_style("pump", connect.clone()).await.is_cut();
    world.pass(29).await;
    assert_eq!(reader.hears(), NOTHING);
    let mut pump = world.new_style("pump", connect.clone()).await;
    world.pass(60).await;
    assert_eq!(reader.hears(), NOTHING);
    pump.is_cut();
    world.pass(31).await;
    assert_eq!(reader.hears(), ["PUBLISH q0 home/gone=pump"]);
    world.pass(31).await;
    assert_eq!(reader.hears(), NOTHING);
}

#[tokio::test]
async fn wills_of_the_cut_are_published_at_the_next_start() {
    let world = World::new().await;
    let mut reader = world.old("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.hears();
    let connect = Connect { will: with_will("home/gone", "pump", 0), ..clean() };
    let _pump = world.old("pump", connect.clone()).await;
    let _lamp = world.new_style("lamp", Connect { expiry: 600, clean: false, ..connect }).await;
    let world = world.crash().await;
    world.pass(1).await;
    let mut reader = world.old("reader", durable()).await;
    let seen = ["CONNACK present", "PUBLISH q1 #1 home/gone=pump", "PUBLISH q1 #2 home/gone=pump"];
    assert_eq!(reader.hears(), seen);
    let world = world.crash().await;
    world.pass(1).await;
    reader = world.old("reader", durable()).await;
    assert_eq!(reader.hears().len(), 3, "each is published once");
}

#[tokio::test]
async fn a_session_ends_when_its_time_has_passed() {
    let world = World::new().await;
    let mut reader = world.new_style("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.disconnects();
    world.pass(3601).await;
    assert_eq!(world.new_style("reader", durable()).await.hears(), ["CONNACK new"]);
    // over a restart too
    let mut reader = world.new_style("reader", durable()).await;
    reader.disconnects();
    world.clock.advance(3_601_000);
    let world = world.crash().await;
    assert_eq!(world.new_style("reader", durable()).await.hears(), ["CONNACK new"]);
}

#[tokio::test]
async fn a_disconnect_may_shorten_a_session_but_not_prolong_a_clean_one() {
    let world = World::new().await;
    let mut reader = world.new_style("reader", durable()).await;
    reader.says(b"\xe0\x07\x00\x05\x11\0\0\0\0");
    assert_eq!(world.new_style("reader", durable()).await.hears(), ["CONNACK new"]);
    let mut other = world.new_style("other", clean()).await;
    other.says(b"\xe0\x07\x00\x05\x11\0\0\0\x09");
    assert_eq!(other.hears(), ["CONNACK new", "DISCONNECT 0x82"]);
}

#[tokio::test]
async fn subscriptions_come_back_after_a_crash() {
    let world = World::new().await;
    let mut reader = world.old("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.subscribes(2, "home/b", 1);
    reader.unsubscribes(3, "home/b");
    let world = world.crash().await;
    world.old("pump", clean()).await.publishes(1, 1, "home/b", "x");
    let world = world.crash().await;
    let mut reader = world.old("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present", "PUBLISH q1 #1 home/b=x"], "it was never sent before");
    reader.unsubscribes(4, "home/b");
    assert_eq!(reader.hears(), ["UNSUBACK #4 []"]);
}

#[tokio::test]
async fn the_client_s_receive_maximum_is_kept() {
    let world = World::new().await;
    let mut reader = world.new_style("reader", Connect { receive_maximum: 2, ..clean() }).await;
    reader.subscribes(1, "home/#", 1);
    let mut pump = world.old("pump", clean()).await;
    for n in 1..=4 {
        pump.publishes(1, n, "home/a", &n.to_string());
    }
    reader.hears();
    pump.publishes(0, 0, "home/a", "behind");
    assert_eq!(reader.hears(), NOTHING);
    reader.puback(1);
    assert_eq!(reader.hears(), ["PUBLISH q1 #3 home/a=3"]);
    reader.puback(2);
    reader.puback(3);
    assert_eq!(reader.hears(), ["PUBLISH q1 #4 home/a=4", "PUBLISH q0 home/a=behind"]);
}

#[tokio::test]
async fn the_broker_s_receive_maximum_is_enforced() {
    let world = World::with(Config { receive_maximum: 2, ..Config::default() }).await;
    let mut pump = world.new_style("pump", clean()).await;
    for id in 1..=3 {
        pump.publishes(2, id, "home/a", "x");
    }
    assert_eq!(pump.hears(), ["CONNACK new", "PUBREC #1", "PUBREC #2", "DISCONNECT 0x93"]);
}

#[tokio::test]
async fn packets_over_the_client_s_maximum_are_skipped() {
    let world = World::new().await;
    let mut reader = world.new_style("reader", Connect { maximum_packet: 64, ..durable() }).await;
    reader.subscribes(1, "home/#", 1);
    reader.hears();
    let mut pump = world.old("pump", clean()).await;
    pump.publishes(1, 1, "home/a", &"x".repeat(100));
    pump.publishes(1, 2, "home/a", "small");
    assert_eq!(reader.hears(), ["PUBLISH q1 #2 home/a=small"]);
    reader.puback(2);
    assert!(world.store.queue(&Owner::mqtt("reader@localhost", "reader"), 0, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_oversized_packet_ends_the_connection() {
    let world = World::new().await;
    let mut pump = world.new_style("pump", clean()).await;
    pump.says(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F]);
    assert_eq!(pump.hears(), ["CONNACK new", "DISCONNECT 0x95"]);
}

#[tokio::test]
async fn packets_of_a_server_and_malformed_ones_end_the_connection() {
    let world = World::new().await;
    for (bytes, reason) in [
        (&b"\x20\x02\0\0"[..], "0x82"),
        (b"\x90\x03\0\x01\0", "0x82"),
        (b"\xb0\x02\0\x01", "0x82"),
        (b"\xd0\x00", "0x82"),
        (b"\xf0\x00", "0x82"),
        (b"\x00\x00", "0x81"),
        (b"\x36\x05\0\x01a\0\x01", "0x81"),
        (b"\x80\x06\0\x01\0\x01a\x00", "0x81"),
        (b"\x32\x05\0\x01a\0\x00", "0x82"),
        (b"\x30\x07\0\x01a\x03\x23\0\x01", "0x94"),
        (b"\x10\x0e\0\x04MQTT\x05\x02\0\x3c\0\0\x01p", "0x82"),
    ] {
        let mut pump = world.new_style("pump", clean()).await;
        pump.says(bytes);
        assert_eq!(pump.hears(), ["CONNACK new".to_owned(), format!("DISCONNECT {reason}")], "{bytes:x?}");
    }
}

#[tokio::test]
async fn a_slow_clean_reader_loses_qos_0_and_is_cut_off_for_qos_1() {
    let world = World::with(Config { queue_messages: 3, in_flight: 1, ..Config::default() }).await;
    let mut pump = world.old("pump", clean()).await;
    let mut reader = world.new_style("reader", clean()).await;
    reader.subscribes(1, "home/#", 1);
    reader.hears();
    for n in 0..6 {
        pump.publishes(0, 0, "home/a", &n.to_string());
    }
    assert_eq!(reader.hears(), ["PUBLISH q0 home/a=3", "PUBLISH q0 home/a=4", "PUBLISH q0 home/a=5"]);
    for id in 1..=9 {
        pump.publishes(1, id, "home/a", "x");
    }
    assert_eq!(pump.hears().len(), 1 + 9, "nobody waits for a receiver");
    assert_eq!(reader.hears(), ["PUBLISH q1 #1 home/a=x", "DISCONNECT 0x97"]);
}

#[tokio::test]
async fn a_slow_durable_reader_gets_the_rest_from_the_store_in_order() {
    let world = World::with(Config { queue_messages: 3, in_flight: 2, ..Config::default() }).await;
    let mut pump = world.old("pump", clean()).await;
    let mut reader = world.new_style("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.hears();
    for id in 1..=40 {
        pump.publishes(1, id, "home/a", &id.to_string());
    }
    let mut next = 1;
    while next <= 40 {
        let heard = reader.hears();
        assert!(!heard.is_empty(), "stuck before {next}");
        for line in heard {
            assert_eq!(line, format!("PUBLISH q1 #{next} home/a={next}"));
            reader.puback(next);
            next += 1;
        }
    }
    pump.publishes(1, 99, "home/a", "live");
    assert_eq!(reader.hears(), ["PUBLISH q1 #41 home/a=live"]);
}

#[tokio::test]
async fn revocation_and_shutdown_are_told() {
    let world = World::new().await;
    let mut romeo = world.new_style("romeo", durable()).await;
    let mut juliet = world.new_style("juliet", clean()).await;
    world.hub.revoke("romeo@localhost");
    assert_eq!(romeo.hears(), ["CONNACK new", "DISCONNECT 0x98"]);
    world.hub.stop();
    assert_eq!(juliet.hears(), ["CONNACK new", "DISCONNECT 0x8b"]);
    let world = world.crash().await;
    assert_eq!(world.new_style("romeo", durable()).await.hears(), ["CONNACK new"]);
}
