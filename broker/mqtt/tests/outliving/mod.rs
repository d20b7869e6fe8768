//! Dialogues about what outlives a connection or the process, and what does not.

use super::*;

async fn opened(store: &Arc<MemoryStore>) -> World {
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    release_until(store, opening).await
}

/// The process ends; what was not saved is lost.
async fn killed(store: &Arc<MemoryStore>) -> World {
    while store.refuse(tavi_store::StoreError::Unavailable("crash".into())) {}
    opened(store).await
}

#[tokio::test]
async fn a_released_id_means_another_message_on_the_next_connection() {
    let world = World::new().await;
    let mut reader = world.old("reader", clean()).await;
    reader.subscribes(1, "home/#", 0);
    reader.hears();
    let mut pump = world.new_style("pump", durable()).await;
    pump.publishes(2, 5, "home/a", "one");
    pump.pubrel(5);
    pump.is_cut();
    let mut pump = world.new_style("pump", durable()).await;
    pump.publishes(2, 5, "home/a", "two");
    assert_eq!(pump.hears(), ["CONNACK present", "PUBREC #5"]);
    assert_eq!(reader.hears(), ["PUBLISH q0 home/a=one", "PUBLISH q0 home/a=two"]);
}

#[tokio::test]
async fn a_release_is_answered_when_it_is_saved() {
    let store = Arc::new(MemoryStore::delayed());
    let world = opened(&store).await;
    let mut pump = release_while(&store, world.new_style("pump", durable())).await;
    pump.publishes(2, 5, "home/a", "x");
    for _ in 0..4 {
        store.release_all();
        pump.hears();
    }
    pump.pubrel(5);
    assert_eq!(pump.hears(), NOTHING, "after a crash the id would still be held");
    store.release_all();
    assert_eq!(pump.hears(), ["PUBCOMP #5"]);
}

#[tokio::test]
async fn an_old_client_s_refused_message_is_not_published_by_its_repetition() {
    let world = World::new().await;
    let mut reader = world.old("reader", clean()).await;
    world.grant("reader@localhost", "subscribe", "secret/#").await;
    reader.subscribes(1, "secret/#", 0);
    reader.hears();
    let mut pump = world.old("pump", durable()).await;
    pump.publishes(2, 5, "secret/a", "x");
    assert_eq!(pump.hears(), ["CONNACK new", "PUBREC #5"]);
    pump.is_cut();
    world.grant("pump@localhost", "publish", "secret/#").await;
    let mut pump = world.old("pump", durable()).await;
    pump.publishes_with(0x0C, 5, "secret/a", "x");
    pump.pubrel(5);
    assert_eq!(pump.hears(), ["CONNACK present", "PUBREC #5", "PUBCOMP #5"]);
    assert_eq!(reader.hears(), NOTHING);
}

#[tokio::test]
async fn who_comes_back_waits_until_what_was_acknowledged_before_is_deleted() {
    let store = Arc::new(MemoryStore::delayed());
    let world = opened(&store).await;
    let coming = async { (world.old("reader", durable()).await, world.old("pump", clean()).await) };
    let (mut reader, mut pump) = release_while(&store, coming).await;
    reader.subscribes(1, "home/#", 2);
    store.release_all();
    pump.publishes(1, 1, "home/a", "x");
    store.release_all();
    pump.hears();
    assert_eq!(reader.hears()[2], "PUBLISH q1 #1 home/a=x");
    reader.puback(1);
    reader.is_cut();
    let before = store.waiting();
    let next = world.old("reader", durable());
    tokio::pin!(next);
    assert!(waits(&mut next).await);
    assert_eq!(store.waiting(), before, "it has not entered");
    let mut reader = release_while(&store, next).await;
    assert_eq!(reader.hears(), ["CONNACK present"]);
}

#[tokio::test]
async fn a_client_that_is_gone_subscribes_to_nothing_any_more() {
    let store = Arc::new(MemoryStore::delayed());
    let world = opened(&store).await;
    let coming = async { (world.old("reader", durable()).await, world.old("other", durable()).await) };
    let (mut reader, mut other) = release_while(&store, coming).await;
    other.subscribes(1, "home/a", 1);
    store.release_all();
    reader.publishes(1, 1, "home/a", "x");
    reader.subscribes(2, "home/#", 1);
    reader.is_cut();
    let mut reader = release_while(&store, world.old("reader", durable())).await;
    other.publishes(1, 3, "home/b", "y");
    store.release_all();
    other.hears();
    assert_eq!(reader.hears(), ["CONNACK present"]);
}

#[tokio::test]
async fn retained_values_that_were_not_read_yet_come_over_the_next_connection() {
    let world = World::with(Config { in_flight: 20, ..Config::default() }).await;
    let mut pump = world.old("pump", clean()).await;
    for number in 0..400 {
        pump.retains(&format!("home/{number:03}"), "kept");
    }
    let mut reader = world.new_style("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    assert_eq!(reader.hears().len(), 2 + 20);
    reader.is_cut();
    let mut reader = world.new_style("reader", durable()).await;
    let mut seen = std::collections::BTreeSet::new();
    loop {
        let heard = reader.hears();
        let publishes: Vec<_> = heard.iter().filter(|line| line.starts_with("PUBLISH")).collect();
        if publishes.is_empty() {
            break;
        }
        for line in publishes {
            let part = |begin: &str| line.split(' ').find(|part| part.starts_with(begin)).unwrap();
            assert!(seen.insert(part("home/").to_owned()), "{line}");
            reader.puback(part("#")[1..].parse().unwrap());
        }
    }
    assert_eq!(seen.len(), 400);
}

#[tokio::test]
async fn what_is_retained_is_read_on_only_for_a_subscription_that_stands() {
    for subscribes in [false, true] {
        let world = World::new().await;
        let mut pump = world.old("pump", clean()).await;
        for topic in ["home/a", "home/b", "home/c"] {
            pump.retains(topic, "kept");
        }
        let mut reader = world.new_style("reader", Connect { receive_maximum: 1, ..clean() }).await;
        reader.subscribes(1, "home/#", 1);
        assert_eq!(reader.hears()[2..], ["PUBLISH q1 #1 home/a=kept retain"]);
        let mut expected: Vec<&str> = if subscribes {
            reader.subscribes(2, "home/#", 1);
            vec!["home/a", "home/b", "home/c"]
        } else {
            reader.unsubscribes(2, "home/#");
            // One was read already, as there is room for one in a window.
            vec![]
        };
        reader.hears();
        let mut heard = Vec::new();
        for id in 1..10 {
            reader.puback(id);
            heard.extend(reader.hears());
        }
        // One more of the first subscription may have been on its way.
        if heard.len() > expected.len() {
            expected.insert(0, "home/b");
        }
        let topics: Vec<_> =
            heard.iter().map(|line| line.split(' ').nth(3).unwrap().trim_end_matches("=kept")).collect();
        assert_eq!(topics, expected, "subscribes again: {subscribes}");
    }
}

#[tokio::test]
async fn a_value_that_waits_behind_a_full_window_is_the_newest_when_it_comes() {
    let world = World::new().await;
    let mut pump = world.old("pump", clean()).await;
    for topic in ["home/a", "home/b", "home/c", "home/d"] {
        pump.retains(topic, "old");
    }
    let mut reader = world.new_style("reader", Connect { receive_maximum: 1, ..clean() }).await;
    reader.subscribes(1, "home/+", 1);
    assert_eq!(reader.hears()[2..], ["PUBLISH q1 #1 home/a=old retain"]);
    pump.retains("home/d", "new");
    let mut heard = Vec::new();
    for id in 1..10 {
        reader.puback(id);
        heard.extend(reader.hears().into_iter().filter(|line| line.contains("home/d")));
    }
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert!(heard[0].contains("home/d=new"), "{heard:?}");
}

#[tokio::test]
async fn what_may_have_been_sent_is_not_swept_though_it_expired() {
    let world = World::new().await;
    let mut reader = world.new_style("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.hears();
    let mut pump = world.new_style("pump", clean()).await;
    let expiring = b"\x32\x11\0\x06home/a\0\x01\x05\x02\0\0\0\x0av";
    pump.says(expiring);
    assert_eq!(reader.hears(), ["PUBLISH q1 #1 home/a=v"]);
    reader.is_cut();
    pump.says(expiring);
    let world = world.crash().await;
    world.pass(11).await;
    for _ in 0..9 {
        world.hub.sweep(None).await;
    }
    let mut reader = world.new_style("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present", "PUBLISH q1 #1 home/a=v dup"], "MQTT 5.0 §4.4");
}

#[tokio::test]
async fn what_may_have_been_sent_before_two_crashes_is_a_duplicate() {
    let world = World::new().await;
    let mut reader = world.old("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    world.old("pump", clean()).await.publishes(1, 1, "home/a", "x");
    assert_eq!(reader.hears().last().unwrap(), "PUBLISH q1 #1 home/a=x");
    let world = world.crash().await.crash().await;
    let mut reader = world.old("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present", "PUBLISH q1 #1 home/a=x dup"]);
}

#[tokio::test]
async fn unfinished_publishes_are_finished_in_the_order_in_which_they_came() {
    let store = Arc::new(MemoryStore::delayed());
    let world = opened(&store).await;
    let coming = async { (world.old("reader", durable()).await, world.old("pump", durable()).await) };
    let (mut reader, mut pump) = release_while(&store, coming).await;
    reader.subscribes(1, "home/#", 2);
    store.release_all();
    for (id, value) in [(9, "first"), (2, "second"), (10, "third")] {
        pump.publishes(2, id, "home/a", value);
    }
    let own = store.waiting_owners().len();
    assert_eq!((store.release(own), own), (3, 3), "the publisher's own rows");
    let world = killed(&store).await;
    let mut reader = release_while(&store, world.old("reader", durable())).await;
    let heard = reader.hears();
    let values: Vec<_> = heard[1..].iter().map(|line| line.rsplit('=').next().unwrap()).collect();
    assert_eq!(values, ["first", "second", "third"]);
}

#[tokio::test]
async fn a_second_attempt_takes_the_row_of_the_first_along() {
    let store = Arc::new(MemoryStore::delayed());
    let world = opened(&store).await;
    let coming = async { (world.old("one", durable()).await, world.old("two", durable()).await) };
    let (mut one, mut two) = release_while(&store, coming).await;
    for reader in [&mut one, &mut two] {
        reader.subscribes(1, "home/#", 2);
        store.release_all();
        reader.hears();
    }
    let mut pump = release_while(&store, world.old("pump", durable())).await;
    pump.publishes(2, 1, "home/a", "x");
    store.release(1);
    pump.hears();
    assert!(store.release_at(0), "one of the two readers has its row");
    let full = || tavi_store::StoreError::Unavailable("full".into());
    assert!(store.refuse(full()));
    pump.hears();
    assert!(!pump.is_connected());
    // So is the deletion of that row.
    while store.refuse(full()) {}
    let mut pump = release_while(&store, world.old("pump", durable())).await;
    pump.publishes_with(0x0C, 1, "home/a", "x");
    for _ in 0..4 {
        store.release_all();
        pump.hears();
    }
    for name in ["one", "two"] {
        let owner = Owner::mqtt(&format!("{name}@localhost"), name);
        assert_eq!(store.queue_size(&owner).await.unwrap().rows, 1, "{name}");
    }
}

#[tokio::test]
async fn of_a_session_that_ended_with_the_process_nothing_is_left() {
    let world = World::new().await;
    let mut reader = world.new_style("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.disconnects();
    world.old("pump", clean()).await.publishes(1, 1, "home/a", "x");
    world.clock.advance(3_601_000);
    let world = world.crash().await;
    let owner = Owner::mqtt("reader@localhost", "reader");
    let records = world.store.list(&owner, tavi_store::Table::Session, None, 10).await.unwrap();
    assert_eq!((records.len(), world.store.queue_size(&owner).await.unwrap().rows), (0, 0));
}

#[tokio::test]
async fn the_operator_s_bound_ends_sessions_of_a_disconnect_and_of_an_earlier_process_too() {
    let config = Config { max_session_expiry: 100, ..Config::default() };
    let world = World::with(config).await;
    let mut reader = world.new_style("reader", durable()).await;
    // DISCONNECT with an expiry of an hour.
    reader.says(b"\xe0\x07\x00\x05\x11\0\0\x0e\x10");
    world.pass(101).await;
    let mut reader = world.new_style("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK new"]);
    reader.subscribes(1, "home/#", 1);
    let none = Config { max_session_expiry: 0, ..config };
    let world = World::over(world.store.clone(), none, stage::NOW + 102_000).await;
    assert!(world.hub.kept("reader@localhost", "reader").is_none());
    let owner = Owner::mqtt("reader@localhost", "reader");
    assert!(world.store.list(&owner, tavi_store::Table::Session, None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_delay_of_a_will_goes_on_over_a_restart() {
    let world = World::new().await;
    let mut reader = world.old("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.disconnects();
    let connect = Connect { will: with_will("home/gone", "lamp", 60), ..durable() };
    world.new_style("lamp", connect).await.is_cut();
    world.clock.advance(20_000);
    let world = world.crash().await;
    world.pass(1).await;
    let mut reader = world.old("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present"]);
    world.pass(40).await;
    assert_eq!(reader.hears(), ["PUBLISH q1 #1 home/gone=lamp"]);
}

#[tokio::test]
async fn a_will_that_its_client_took_back_does_not_come_after_a_crash() {
    let world = World::new().await;
    let mut reader = world.old("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.disconnects();
    let connect = Connect { will: with_will("home/gone", "lamp", 60), ..durable() };
    world.new_style("lamp", connect).await.is_cut();
    let _lamp = world.new_style("lamp", durable()).await;
    let world = world.crash().await;
    world.pass(61).await;
    assert_eq!(world.old("reader", durable()).await.hears(), ["CONNACK present"]);
}

#[tokio::test]
async fn a_revoked_client_s_will_does_not_come_after_a_crash() {
    let world = World::new().await;
    let mut reader = world.old("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.disconnects();
    let connect = Connect { will: with_will("home/gone", "lamp", 0), ..clean() };
    let mut lamp = world.new_style("lamp", connect).await;
    world.hub.revoke("lamp@localhost");
    assert_eq!(lamp.hears().last().unwrap(), "DISCONNECT 0x98");
    let world = world.crash().await;
    world.pass(1).await;
    assert_eq!(world.old("reader", durable()).await.hears(), ["CONNACK present"]);
}

#[tokio::test]
async fn a_will_does_not_overtake_what_its_client_published_to_another_topic() {
    let store = Arc::new(MemoryStore::delayed());
    let world = opened(&store).await;
    let mut reader = release_while(&store, world.old("reader", clean())).await;
    reader.subscribes(1, "home/#", 0);
    reader.hears();
    let connect = Connect { will: with_will("home/lamp", "offline", 0), ..durable() };
    let mut lamp = release_while(&store, world.new_style("lamp", connect)).await;
    lamp.publishes(2, 1, "home/b", "last but one");
    lamp.is_cut();
    for _ in 0..9 {
        store.release_at(store.waiting().saturating_sub(1));
        world.settle().await;
    }
    for _ in 0..9 {
        store.release_all();
        world.settle().await;
    }
    assert_eq!(reader.hears(), ["PUBLISH q0 home/b=last but one", "PUBLISH q0 home/lamp=offline"]);
}
