//! Dialogues about order: what clients publish to one topic lands in one order for every reader, at any QoS, and its
//! last value is the one that is kept.

use super::*;
use std::collections::BTreeMap;
use tavi_core::bus::Dice;

/// Lets one commit land, as a store with several writers may: of one owner in order.
pub fn release_one(store: &MemoryStore, dice: &mut Dice) {
    let owners = store.waiting_owners();
    if !owners.is_empty() {
        let owner = &owners[dice.below(owners.len())];
        store.release_at(owners.iter().position(|other| other == owner).unwrap());
    }
}

/// The values of each topic, in the order in which they came.
fn by_topic(lines: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::<String, Vec<String>>::new();
    for line in lines.iter().filter(|line| line.starts_with("PUBLISH")) {
        let (topic, value) = line.split(' ').find_map(|part| part.split_once('=')).unwrap();
        found.entry(topic.into()).or_default().push(value.into());
    }
    found
}

#[tokio::test]
async fn whatever_lands_first_all_readers_and_the_store_agree_on_the_order() {
    for seed in 0..300 {
        let dice = &mut Dice(seed);
        let store = Arc::new(MemoryStore::delayed());
        let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
        let world = release_until(&store, opening).await;
        let coming = async {
            let pumps = [world.old("one", durable()).await, world.old("two", durable()).await];
            let near = world.old("near", durable()).await;
            (pumps, world.old("live", clean()).await, near, world.old("away", durable()).await)
        };
        let (mut pumps, mut live, mut near, mut away) = release_while(&store, coming).await;
        for reader in [&mut live, &mut near, &mut away] {
            reader.subscribes(1, "home/#", 2);
            store.release_all();
            reader.hears();
        }
        away.is_cut();
        store.release_all();
        let (mut heard, mut heard_near) = (Vec::new(), Vec::new());
        for number in 1..60u16 {
            let (pump, qos, topic) = (dice.below(2), [0, 1, 2, 2][dice.below(4)], ["home/a", "home/b"][dice.below(2)]);
            // at QoS 0 nobody keeps it for who is away
            let value = if qos == 0 { format!("{number}-") } else { number.to_string() };
            pumps[pump].publishes_with(1 | qos << 1, number, topic, &value);
            for _ in 0..dice.below(6) {
                release_one(&store, dice);
                pumps.iter_mut().for_each(|pump| drop(pump.hears()));
                heard.extend(live.hears());
                if dice.below(3) == 0 {
                    heard_near.extend(near.hears());
                }
                tokio::task::yield_now().await;
            }
        }
        while store.waiting() > 0 {
            tokio::task::yield_now().await;
            release_one(&store, dice);
            pumps.iter_mut().for_each(|pump| drop(pump.hears()));
        }
        for _ in 0..60 {
            // What is far behind in its topic waits for those before it.
            pumps.iter_mut().for_each(|pump| drop(pump.hears()));
        }
        heard.extend(live.hears());
        heard_near.extend(near.hears());
        let seen = by_topic(&heard);
        assert_eq!(by_topic(&heard_near), seen, "seed {seed}: a durable session that is connected");
        let (mut away, mut fresh) =
            release_while(&store, async { (world.old("away", durable()).await, world.old("fresh", clean()).await) })
                .await;
        fresh.subscribes(1, "home/#", 2);
        let kept: Vec<String> = (0..4).flat_map(|_| fresh.hears()).collect();
        let kept = by_topic(&kept);
        let kept_of_all = seen.iter().map(|(topic, values)| (topic.clone(), values[values.len() - 1..].to_vec()));
        assert_eq!(kept, kept_of_all.collect(), "seed {seed}: the kept value is the last that was seen");
        let stored = seen.iter().map(|(topic, values)| {
            (topic.clone(), values.iter().filter(|value| !value.ends_with('-')).cloned().collect::<Vec<_>>())
        });
        let stored = stored.filter(|(_, values)| !values.is_empty());
        assert_eq!(by_topic(&away.hears()), stored.collect(), "seed {seed}: whoever was away gets the same order");
    }
}

#[tokio::test]
async fn pipelined_publishes_of_one_client_land_in_their_order_whatever_their_qos() {
    let world = World::new().await;
    let mut away = world.old("away", durable()).await;
    away.subscribes(1, "home/#", 2);
    away.is_cut();
    let mut pump = world.old("pump", durable()).await;
    let publish = |flags: u8, id: u8, value: u8| [flags, 11, 0, 6, b'h', b'o', b'm', b'e', b'/', b'a', 0, id, value];
    pump.says(&[publish(0x35, 1, b'a'), publish(0x33, 2, b'b'), publish(0x35, 3, b'c')].concat());
    assert_eq!(pump.hears(), ["CONNACK new", "PUBREC #1", "PUBACK #2", "PUBREC #3"]);
    let mut fresh = world.old("fresh", clean()).await;
    fresh.subscribes(1, "home/a", 2);
    assert_eq!(fresh.hears()[2], "PUBLISH q2 #1 home/a=c retain");
    let world = world.crash().await;
    let mut away = world.old("away", durable()).await;
    let heard = by_topic(&away.hears());
    assert_eq!(heard["home/a"], ["a", "b", "c"], "also for who was away, after a restart");
}

#[tokio::test]
async fn a_second_attempt_lands_behind_what_others_published_meanwhile() {
    let store = Arc::new(MemoryStore::delayed());
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let coming = async { (world.old("away", durable()).await, world.old("live", clean()).await) };
    let (mut away, mut live) = release_while(&store, coming).await;
    for reader in [&mut away, &mut live] {
        reader.subscribes(1, "home/#", 2);
        store.release_all();
        reader.hears();
    }
    away.is_cut();
    store.release_all();
    let mut pump = release_while(&store, world.old("pump", durable())).await;
    pump.publishes_with(0x05, 1, "home/a", "first");
    store.release(1);
    pump.hears();
    // the topic's own row and that of the reader; the latter is refused
    assert!(store.release_at(0) && store.refuse(tavi_store::StoreError::Unavailable("full".into())));
    pump.hears();
    assert!(!pump.is_connected());
    let mut other = release_while(&store, world.old("other", clean())).await;
    other.publishes_with(0x03, 1, "home/a", "meanwhile");
    store.release_all();
    other.hears();
    let mut pump = release_while(&store, world.old("pump", durable())).await;
    pump.publishes_with(0x0D, 1, "home/a", "second");
    for _ in 0..4 {
        store.release_all();
        pump.hears();
    }
    assert_eq!(by_topic(&live.hears())["home/a"], ["meanwhile", "second"]);
    let mut fresh = release_while(&store, world.old("fresh", clean())).await;
    fresh.subscribes(1, "home/a", 0);
    assert_eq!(fresh.hears()[2], "PUBLISH q0 home/a=second retain");
    let mut away = release_while(&store, world.old("away", durable())).await;
    assert_eq!(by_topic(&away.hears())["home/a"], ["meanwhile", "second"]);
}

#[tokio::test]
async fn a_session_that_ends_while_something_is_saved_for_it_leaves_no_row() {
    let store = Arc::new(MemoryStore::delayed());
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let coming = async { (world.old("reader", durable()).await, world.old("pump", durable()).await) };
    let (mut reader, mut pump) = release_while(&store, coming).await;
    reader.subscribes(1, "home/#", 2);
    store.release_all();
    reader.hears();
    pump.publishes(2, 1, "home/a", "x");
    let next = release_while(&store, world.old("reader", Connect { clean: true, ..durable() })).await;
    for _ in 0..4 {
        store.release_all();
        pump.hears();
    }
    drop(next);
    let owner = Owner::mqtt("reader@localhost", "reader");
    assert_eq!(store.queue_size(&owner).await.unwrap().rows, 0, "the new session gets nothing of the former");
}

#[tokio::test]
async fn expiry_goes_on_over_a_restart_and_what_was_never_sent_is_no_duplicate() {
    let store = Arc::new(MemoryStore::delayed());
    for (seconds, heard) in [(5, Some("PUBLISH q2 #2 home/a=v")), (11, None)] {
        let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
        let world = release_until(&store, opening).await;
        let connect = Connect { clean: true, ..durable() };
        let coming = async {
            (world.new_style("reader", connect.clone()).await, world.new_style("pump", connect.clone()).await)
        };
        let (mut reader, mut pump) = release_while(&store, coming).await;
        reader.subscribes(1, "home/#", 2);
        store.release_all();
        reader.hears();
        pump.says(b"\x34\x11\0\x06home/a\0\x01\x05\x02\0\0\0\x0av");
        store.release(1);
        pump.hears();
        store.release(1);
        // the process ends: the row of the reader is there, the note that all is published is not
        pump.hears();
        while store.refuse(tavi_store::StoreError::Unavailable("crash".into())) {}
        let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW + seconds * 1000));
        let world = release_until(&store, opening).await;
        let size = store.queue_size(&Owner::mqtt("reader@localhost", "reader")).await.unwrap();
        let mut reader = release_while(&store, world.new_style("reader", durable())).await;
        let lines = reader.hears();
        assert_eq!(lines.get(1).map(String::as_str), heard, "after {seconds} s");
        let seats = world.hub.kept("reader@localhost", "reader").unwrap();
        assert_eq!(seats.size(), if heard.is_some() { size } else { Default::default() }, "each row counts once");
        reader.disconnects();
        store.release_all();
    }
}
