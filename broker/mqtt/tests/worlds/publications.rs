//! What is published in one world for durable sessions of the other, a step at a time.

use super::wire::{Wire, knows};
use super::*;

struct Pair {
    home: World,
    abroad: World,
    wire: Wire,
    now_ms: u64,
    dice: Dice,
}

impl Pair {
    async fn new() -> Pair {
        let (store, mut wire) = (Arc::new(MemoryStore::default()), Wire::default());
        let home = World::beside(wire.end(0), store.clone(), (config(), stage::NOW)).await;
        let abroad = World::beside(wire.end(1), store, (config(), stage::NOW)).await;
        wire.joins([&home, &abroad]);
        wire.way.is_calm = true;
        Pair { home, abroad, wire, now_ms: 0, dice: Dice(1) }
    }

    /// All words arrive.
    async fn talk(&mut self) {
        for _ in 0..20 {
            self.now_ms += 100;
            self.wire.carries(self.now_ms);
            while !self.wire.way.is_empty() {
                self.wire.arrives(&mut self.dice);
            }
            self.home.settle().await;
        }
    }
}

#[tokio::test]
async fn a_publisher_waits_until_a_durable_session_of_another_world_has_it_on_disk() {
    let mut pair = Pair::new().await;
    let mut reader = pair.home.old("reader", durable()).await;
    let mut pump = pair.abroad.old("pump", durable()).await;
    knows([&pair.home, &pair.abroad], "reader", "home/+");
    pump.publishes(1, 1, "home/a", "1");
    pair.talk().await;
    assert_eq!(pump.hears(), ["CONNACK new", "PUBACK #1"]);
    pair.talk().await;
    assert_eq!(reader.hears(), ["CONNACK new", "PUBLISH q1 #1 home/a=1"]);
    // What is not kept is not waited for.
    pump.publishes(0, 0, "home/b", "2");
    assert!(pump.hears().is_empty());
    pair.talk().await;
    assert_eq!(reader.hears(), ["PUBLISH q0 home/b=2"]);
    pair.home.store.hold();
    pump.publishes(1, 2, "home/c", "3");
    pair.talk().await;
    assert!(pump.hears().is_empty() && reader.hears().is_empty(), "it is not on disk");
    pair.home.store.release_all();
    pair.talk().await;
    assert_eq!(pump.hears(), ["PUBACK #2"]);
    pair.talk().await;
    assert_eq!(reader.hears(), ["PUBLISH q1 #2 home/c=3"]);
}

#[tokio::test]
async fn of_what_a_departed_node_began_a_session_gets_what_is_saved_and_waits_for_nothing_else() {
    let mut pair = Pair::new().await;
    let mut reader = pair.home.old("reader", durable()).await;
    let mut pump = pair.abroad.old("pump", durable()).await;
    let mut neighbour = pair.home.old("neighbour", clean()).await;
    knows([&pair.home, &pair.abroad], "reader", "home/+");
    reader.subscribes(1, "home/near", 1);
    assert_eq!(reader.hears().len(), 2);
    pair.home.store.hold();
    pump.publishes(1, 1, "home/a", "saving");
    // Its note is not on disk, so it is not saved anywhere.
    pump.publishes(2, 2, "home/b", "noting");
    pair.talk().await;
    pair.home.hub.node().departed(1);
    pair.home.clock.advance(1);
    neighbour.publishes(1, 1, "home/near", "behind them");
    pair.home.store.release_all();
    pair.home.settle().await;
    assert_eq!(neighbour.hears().len(), 2);
    assert_eq!(reader.hears(), ["PUBLISH q1 #1 home/a=saving", "PUBLISH q1 #3 home/near=behind them"]);
}
