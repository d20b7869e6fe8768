//! What a SUBSCRIBE finds, and what a client publishes behind it.

use crate::stage::{World, clean, durable};

#[tokio::test]
async fn a_filter_that_one_packet_names_often_finds_what_is_retained_once() {
    let world = World::new().await;
    world.old("pump", clean()).await.retains("home/a", "kept");
    for (name, connect) in [("clean", clean()), ("durable", durable())] {
        let mut reader = world.old(name, connect).await;
        reader.says(b"\x82\x1d\0\x01\0\x06home/a\x01\0\x06home/a\0\0\x06home/a\x01");
        let heard = ["CONNACK new", "SUBACK #1 [01, 00, 01]", "PUBLISH q1 #1 home/a=kept retain"];
        assert_eq!(reader.hears(), heard, "{name}");
        reader.puback(1);
        assert!(reader.hears().is_empty());
    }
    let mut new = world.new_style("new", clean()).await;
    new.says(b"\x82\x15\0\x01\0\0\x06home/a\x10\0\x06home/a\x10");
    let heard = ["CONNACK new", "SUBACK #1 [00, 00]", "PUBLISH q0 home/a=kept retain"];
    assert_eq!(new.hears(), heard, "only the first of them is new");
}

#[tokio::test]
async fn what_a_client_publishes_behind_a_subscription_comes_to_it() {
    let world = World::new().await;
    let mut pump = world.old("pump", clean()).await;
    pump.hears();
    world.store.hold();
    pump.retains("home/a", "saved");
    pump.subscribes(2, "home/b", 1);
    pump.publishes(0, 0, "home/b", "now");
    pump.publishes(1, 3, "home/b", "too");
    pump.unsubscribes(4, "home/b");
    pump.publishes(1, 5, "home/b", "not any more");
    assert!(pump.hears().is_empty(), "it is not saved yet");
    world.store.release_all();
    let mut heard = pump.hears();
    heard.extend(pump.hears());
    heard.sort();
    let all = ["PUBACK #3", "PUBACK #5", "PUBACK #900", "PUBLISH q0 home/b=now", "PUBLISH q1 #1 home/b=too"];
    assert_eq!(heard, [&all[..], &["SUBACK #2 [01]", "UNSUBACK #4 []"]].concat());
}
