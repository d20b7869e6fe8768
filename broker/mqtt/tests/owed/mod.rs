//! Dialogues about what is owed to a durable session: in the store, in memory, after a crash, when it is refused.

use super::*;

#[tokio::test]
async fn what_is_owed_lies_in_the_store_and_none_of_it_is_lost() {
    let world = World::with(Config { in_flight: 20, ..Config::default() }).await;
    let mut reader = world.new_style("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.hears();
    let mut pump = world.old("pump", clean()).await;
    for number in 0..3_000 {
        pump.publishes(1, 1, "home/a", &number.to_string());
    }
    let (mut next, mut heard) = (0, reader.hears());
    while !heard.is_empty() {
        for line in &heard {
            assert!(line.ends_with(&format!("home/a={next}")), "{line}, not {next}");
            let id = line.split(' ').find_map(|part| part.strip_prefix('#')).unwrap().parse().unwrap();
            reader.puback(id);
            next += 1;
        }
        heard = reader.hears();
    }
    assert_eq!(next, 3_000);
    let owner = Owner::mqtt("reader@localhost", "reader");
    assert_eq!(world.store.queue_size(&owner).await.unwrap().rows, 0);
}

#[tokio::test]
async fn retained_values_of_wide_filters_all_come_and_go_on_after_a_crash() {
    let world = World::with(Config { in_flight: 50, stored_messages: 10, ..Config::default() }).await;
    let mut pump = world.old("pump", clean()).await;
    for number in 0..700 {
        pump.retains(&format!("home/{number:03}"), "kept");
    }
    let mut reader = world.new_style("reader", durable()).await;
    for id in 1..=2 {
        reader.subscribes(id, if id == 1 { "home/#" } else { "home/+" }, 1);
    }
    let (mut seen, mut world) = (std::collections::BTreeMap::new(), world);
    for round in 0.. {
        let heard = reader.hears();
        let publishes: Vec<_> = heard.iter().filter(|line| line.starts_with("PUBLISH")).collect();
        if publishes.is_empty() {
            break;
        }
        for line in publishes {
            assert!(line.ends_with("=kept retain") || line.ends_with("=kept dup retain"), "{line}");
            let id = line.split(' ').find_map(|part| part.strip_prefix('#')).unwrap().parse().unwrap();
            *seen.entry(line.split(' ').find(|part| part.contains('=')).unwrap().to_owned()).or_insert(0) += 1;
            reader.puback(id);
        }
        if round % 9 == 5 {
            world = world.crash().await;
            reader = world.new_style("reader", durable()).await;
        }
    }
    assert_eq!((seen.len(), seen.values().find(|count| **count != 2)), (700, None));
    let owner = Owner::mqtt("reader@localhost", "reader");
    let records = world.store.list(&owner, tavi_store::Table::Session, None, 10).await.unwrap();
    let items: Vec<_> = records.iter().map(|(item, _)| &**item).collect();
    assert_eq!(items, ["session", "sub:home/#", "sub:home/+"]);
}

#[tokio::test]
async fn what_has_expired_takes_no_room_and_what_is_over_is_dropped() {
    let world = World::with(Config { stored_messages: 2, ..Config::default() }).await;
    let mut reader = world.new_style("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.is_cut();
    let mut pump = world.new_style("pump", clean()).await;
    let expiring = |id: u8| [&b"\x32\x11\0\x06home/a\0"[..], &[id], b"\x05\x02\0\0\0\x0ao"].concat();
    pump.says(&expiring(1));
    pump.says(&expiring(2));
    pump.publishes(1, 3, "home/a", "over");
    world.pass(11).await;
    pump.publishes(1, 4, "home/a", "fresh");
    let owner = Owner::mqtt("reader@localhost", "reader");
    assert_eq!(world.store.queue_size(&owner).await.unwrap().rows, 2, "one made room");
    let mut reader = world.new_style("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present", "PUBLISH q1 #3 home/a=fresh"]);
    reader.puback(3);
    assert_eq!(world.store.queue_size(&owner).await.unwrap().rows, 0);
}

#[tokio::test]
async fn expired_rows_that_nobody_takes_leave_the_store_also_after_a_restart() {
    let world = World::new().await;
    let mut reader = world.new_style("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.is_cut();
    let mut pump = world.new_style("pump", clean()).await;
    for number in 0..3_000u32 {
        if number % 1_000 == 500 {
            pump.publishes(1, 1, "home/b", "stays");
        }
        let seconds = if number % 2 == 0 { 10 } else { 40 };
        pump.says(&[b"\x32\x11\0\x06home/a\0\x01\x05\x02\0\0\0", &[seconds][..], b"x"].concat());
    }
    let owner = Owner::mqtt("reader@localhost", "reader");
    let rows = async |world: &World| world.store.queue_size(&owner).await.unwrap().rows;
    let sweep = async |world: &World| {
        for _ in 0..9 {
            world.hub.sweep(None).await;
        }
    };
    sweep(&world).await;
    assert_eq!(rows(&world).await, 3_003);
    world.pass(11).await;
    sweep(&world).await;
    assert_eq!(rows(&world).await, 1_503);
    let seat = world.hub.kept("reader@localhost", "reader").unwrap();
    assert_eq!(seat.size().rows, 1_503);
    let world = world.crash().await;
    sweep(&world).await;
    assert_eq!(rows(&world).await, 1_503);
    world.pass(60).await;
    sweep(&world).await;
    assert_eq!(rows(&world).await, 3);
    let mut reader = world.new_style("reader", durable()).await;
    let heard = reader.hears();
    assert!(heard.len() == 4 && heard[1..].iter().all(|line| line.ends_with("home/b=stays")), "{heard:?}");
}

#[tokio::test]
async fn a_delivery_that_began_is_finished_though_it_expires() {
    let world = World::new().await;
    let mut reader = world.new_style("reader", durable()).await;
    reader.subscribes(1, "home/#", 2);
    reader.hears();
    let mut pump = world.new_style("pump", clean()).await;
    pump.says(b"\x34\x11\0\x06home/a\0\x01\x05\x02\0\0\0\x0av");
    assert_eq!(reader.hears(), ["PUBLISH q2 #1 home/a=v"]);
    world.pass(11).await;
    reader.is_cut();
    let mut reader = world.new_style("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present", "PUBLISH q2 #1 home/a=v dup"]);
    drop(reader);
    let world = world.crash().await;
    let mut reader = world.new_style("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present", "PUBLISH q2 #1 home/a=v dup"]);
}

#[tokio::test]
async fn a_failed_fan_out_takes_no_room_and_comes_once() {
    let store = Arc::new(MemoryStore::delayed());
    let config = Config { stored_messages: 2, ..Config::default() };
    let opening = tokio::spawn(World::over(store.clone(), config, stage::NOW));
    let world = release_until(&store, opening).await;
    let (mut one, mut two) =
        release_while(&store, async { (world.old("one", durable()).await, world.old("two", durable()).await) }).await;
    for reader in [&mut one, &mut two] {
        reader.subscribes(1, "home/#", 2);
        store.release_all();
        reader.hears();
    }
    for _ in 0..4 {
        let mut pump = release_while(&store, world.old("pump", durable())).await;
        pump.publishes_with(0x0C, 1, "home/a", "x");
        store.release(1);
        pump.hears();
        assert!(store.release_at(0), "one of the two readers has its row");
        assert!(store.refuse(tavi_store::StoreError::Unavailable("full".into())));
        pump.hears();
        assert!(!pump.is_connected());
        store.release_all();
    }
    let mut pump = release_while(&store, world.old("pump", durable())).await;
    pump.publishes_with(0x0C, 1, "home/a", "x");
    for _ in 0..4 {
        store.release_all();
        pump.hears();
    }
    for (reader, name) in [(one, "one"), (two, "two")] {
        let mut reader = reader;
        assert_eq!(reader.hears().len(), 1, "{name} gets it once");
        let owner = Owner::mqtt(&format!("{name}@localhost"), name);
        assert_eq!(store.queue(&owner, 0, 10).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn an_acknowledgement_and_the_same_subscription_in_one_segment() {
    let world = World::new().await;
    world.old("pump", clean()).await.retains("home/a", "kept");
    let mut reader = world.old("reader", durable()).await;
    reader.subscribes(1, "home/a", 1);
    assert_eq!(reader.hears(), ["CONNACK new", "SUBACK #1 [01]", "PUBLISH q1 #1 home/a=kept retain"]);
    reader.says(b"\x40\x02\0\x01\x82\x0b\0\x02\0\x06home/a\x01");
    assert_eq!(reader.hears(), ["SUBACK #2 [01]", "PUBLISH q1 #2 home/a=kept retain"]);
    reader.is_cut();
    let mut reader = world.old("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present", "PUBLISH q1 #2 home/a=kept dup retain"]);
    reader.puback(2);
    assert_eq!(reader.hears(), NOTHING);
}

#[tokio::test]
async fn a_subscribe_that_is_refused_as_a_whole_leaves_nothing_behind() {
    let world = World::new().await;
    let mut pump = world.old("pump", clean()).await;
    pump.retains("home/old", "kept");
    let mut reader = world.new_style("reader", durable()).await;
    reader.subscribes(1, "home/a", 1);
    reader.says(b"\x82\x1b\0\x02\0\0\x08home/old\x01\0\x0a$share/g/x\x01");
    assert!(!reader.is_connected());
    pump.publishes(1, 1, "home/a", "new");
    let mut reader = world.new_style("reader", durable()).await;
    assert_eq!(reader.hears(), ["CONNACK present", "PUBLISH q1 #1 home/a=new"]);
}

#[tokio::test]
async fn a_will_is_its_client_s_last_word() {
    let store = Arc::new(MemoryStore::delayed());
    let opening = tokio::spawn(World::over(store.clone(), Config::default(), stage::NOW));
    let world = release_until(&store, opening).await;
    let connect = Connect { will: with_will("home/lamp", "offline", 0), ..durable() };
    let mut reader = release_while(&store, world.old("reader", clean())).await;
    reader.subscribes(1, "home/lamp", 0);
    reader.hears();
    for way in ["cut", "taken over", "clean start"] {
        let mut lamp = release_while(&store, world.new_style("lamp", connect.clone())).await;
        lamp.publishes(2, 1, "home/b", "first");
        lamp.publishes_with(0x03, 2, "home/lamp", "online");
        let next = match way {
            "cut" => None,
            "taken over" => Some(durable()),
            _ => Some(Connect { clean: true, ..durable() }),
        };
        let coming = async {
            if let Some(connect) = next {
                let coming = world.new_style("lamp", connect);
                tokio::pin!(coming);
                if waits(&mut coming).await {
                    lamp.hears();
                    coming.await.disconnects();
                } else {
                    lamp.hears();
                }
            } else {
                lamp.is_cut();
            }
        };
        release_while(&store, coming).await;
        for _ in 0..9 {
            store.release_all();
            world.settle().await;
        }
        assert_eq!(reader.hears(), ["PUBLISH q0 home/lamp=online", "PUBLISH q0 home/lamp=offline"], "{way}");
    }
}

#[tokio::test]
async fn a_session_that_was_ended_subscribes_to_nothing() {
    let world = World::new().await;
    let mut reader = world.new_style("reader", durable()).await;
    let before = world.hub.node().parts.topics.counts().0;
    let _next = world.new_style("reader", Connect { clean: true, ..durable() }).await;
    // what was read before the end was noticed
    reader.subscribes(1, "home/#", 1);
    assert_eq!(reader.hears()[1..], ["DISCONNECT 0x8e"]);
    assert_eq!(world.hub.node().parts.topics.counts().0, before);
}

#[tokio::test]
async fn who_acknowledges_nothing_gets_few_rows_however_often_it_subscribes() {
    let world = World::with(Config { in_flight: 10, ..Config::default() }).await;
    let mut pump = world.old("pump", clean()).await;
    for number in 0..300 {
        pump.retains(&format!("home/{number}"), "kept");
    }
    let mut reader = world.old("reader", durable()).await;
    for id in 1..=100 {
        reader.subscribes(id, "home/#", 1);
        reader.hears();
    }
    let size = world.store.queue_size(&Owner::mqtt("reader@localhost", "reader")).await.unwrap();
    assert!(size.rows <= 256, "{size:?}");
}

#[tokio::test]
async fn what_waits_in_memory_is_not_delivered_when_the_right_is_gone() {
    let world = World::with(Config { in_flight: 2, ..Config::default() }).await;
    world.grant("reader@localhost", "subscribe", "yard/#").await;
    world.grant("pump@localhost", "publish", "yard/#").await;
    let mut pump = world.old("pump", clean()).await;
    let mut readers = [world.old("reader", clean()).await, world.join_as("reader", "d", Version::V4, durable()).await];
    for reader in &mut readers {
        reader.subscribes(1, "yard/#", 1);
    }
    for id in 1..=9 {
        pump.publishes(1, id, "yard/a", "x");
        readers.iter_mut().for_each(|reader| drop(reader.hears()));
    }
    world.hub.node().parts.permit.remove(|grant| &*grant.filter == "yard/#").1.await.unwrap();
    for reader in &mut readers {
        reader.puback(1);
        reader.puback(2);
        assert_eq!(reader.hears(), NOTHING);
    }
}

#[tokio::test]
async fn an_operator_ends_a_session_with_all_that_is_kept_and_its_will_is_published() {
    let world = World::new().await;
    let mut watcher = world.old("watcher", clean()).await;
    watcher.subscribes(1, "home/#", 0);
    watcher.hears();
    let connect = Connect { will: with_will("home/will", "gone", 600), ..durable() };
    let key = ("reader@localhost".into(), "reader".into());
    let topics = world.hub.node().parts.topics.clone();
    for away in [true, false] {
        let before = topics.counts().0;
        let mut reader = world.new_style("reader", connect.clone()).await;
        reader.subscribes(1, "home/+", 1);
        reader.hears();
        if away {
            reader.is_cut();
            world.old("pump", clean()).await.publishes(1, 1, "home/a", "kept");
            assert_eq!(watcher.hears(), ["PUBLISH q0 home/a=kept"]);
        }
        let (info, filters) = world.hub.session(&key).unwrap();
        assert_eq!((info.connected, info.stored.rows, filters.len()), (!away, u64::from(away), 1));
        assert!(info.will && info.durable && info.ends_in_ms == away.then_some(3_600_000));
        world.hub.end_session(&key).unwrap().complete().await.unwrap();
        if !away {
            assert_eq!(reader.hears(), ["DISCONNECT 0x98"]);
        }
        world.settle().await;
        assert_eq!(watcher.hears(), ["PUBLISH q0 home/will=gone"], "away: {away}");
        assert!(world.hub.session(&key).is_none() && world.hub.end_session(&key).is_none());
        let owner = Owner::mqtt("reader@localhost", "reader");
        let records = world.store.list(&owner, tavi_store::Table::Session, None, 10).await.unwrap();
        assert!(records.is_empty() && world.store.queue_size(&owner).await.unwrap().rows == 0, "{records:?}");
        assert_eq!(topics.counts().0, before);
    }
    assert_eq!(world.new_style("reader", durable()).await.hears(), ["CONNACK new"]);
}

#[tokio::test]
async fn sessions_are_listed_page_by_page() {
    let world = World::new().await;
    let mut actors = Vec::new();
    for (name, client_id) in [("b", "2"), ("a", "1"), ("b", "1"), ("c", "x")] {
        actors.push(world.join_as(name, client_id, Version::V5, durable()).await);
    }
    let list = |subject: Option<&str>, after: Option<(&str, &str)>, limit| -> Vec<String> {
        let after = after.map(|(subject, client)| (subject.into(), client.into()));
        let found = world.hub.sessions(subject, after.as_ref(), limit);
        found.iter().map(|info| format!("{}/{}", info.key.0, info.key.1)).collect()
    };
    assert_eq!(list(None, None, 3), ["a@localhost/1", "b@localhost/1", "b@localhost/2"]);
    assert_eq!(list(None, Some(("b@localhost", "1")), 3), ["b@localhost/2", "c@localhost/x"]);
    assert_eq!(list(Some("b@localhost"), None, 9), ["b@localhost/1", "b@localhost/2"]);
    assert_eq!(list(Some("b@localhost"), Some(("b@localhost", "1")), 9), ["b@localhost/2"]);
    assert_eq!(list(Some("b@localhost"), Some(("a@localhost", "1")), 9), ["b@localhost/1", "b@localhost/2"]);
    assert!(list(Some("b@localhost"), Some(("c@localhost", "1")), 9).is_empty());
}

#[tokio::test]
async fn a_session_of_an_old_client_ends_when_the_bound_is_over() {
    let world = World::new().await;
    let mut reader = world.old("reader", durable()).await;
    reader.subscribes(1, "home/#", 1);
    reader.is_cut();
    world.pass(90 * 86_400 - 1).await;
    assert!(world.hub.kept("reader@localhost", "reader").is_some());
    world.pass(1).await;
    assert!(world.hub.kept("reader@localhost", "reader").is_none());
}

#[tokio::test]
async fn each_pubcomp_lets_the_client_send_one_more_whatever_it_says() {
    let world = World::with(Config { receive_maximum: 2, ..Config::default() }).await;
    let mut pump = world.new_style("pump", durable()).await;
    pump.publishes(2, 1, "home/a", "x");
    pump.publishes(2, 2, "home/a", "x");
    pump.pubrel(99);
    assert_eq!(pump.hears(), ["CONNACK new", "PUBREC #1", "PUBREC #2", "PUBCOMP #99 0x92"]);
    pump.publishes(2, 3, "home/a", "x");
    assert_eq!(pump.hears(), ["PUBREC #3"], "MQTT 5.0 §4.9");
    pump.publishes(2, 4, "home/a", "x");
    assert_eq!(pump.hears(), ["DISCONNECT 0x93"]);
}
