//! QoS 1 and 2 from a durable publisher to a durable reader while connections break, the process dies, and the store
//! saves what it likes of the commits that wait: nothing acknowledged may be lost, nothing of QoS 2 may come twice.
#![allow(missing_docs)]

mod stage;

use proptest::prelude::*;
use stage::{Actor, World, durable};
use std::collections::BTreeSet;
use std::sync::Arc;
use tavi_mqtt::Config;
use tavi_store::{MemoryStore, StoreError};
use tokio::runtime::Runtime;

/// A small publisher with a memory of its own, as a device has it.
#[derive(Default)]
struct Pump {
    qos: u8,
    sent: u16,
    open: Vec<Open>,
}

struct Open {
    id: u16,
    number: u16,
    released: bool,
}

impl Pump {
    fn sends(&mut self, actor: &mut Actor) {
        self.sent += 1;
        let id = (1..).find(|id| self.open.iter().all(|open| open.id != *id)).unwrap();
        self.open.push(Open { id, number: self.sent, released: false });
        actor.publishes(self.qos, id, "home/a", &self.sent.to_string());
    }

    fn connects_again(&mut self, actor: &mut Actor) {
        for open in &self.open {
            if open.released {
                actor.pubrel(open.id);
            } else {
                actor.publishes_with(8 | self.qos << 1, open.id, "home/a", &open.number.to_string());
            }
        }
    }

    fn hears(&mut self, actor: &mut Actor) {
        for line in actor.hears() {
            let (word, id) = parse(&line);
            let Some(at) = self.open.iter().position(|open| open.id == id) else { continue };
            match word {
                "PUBREC" => {
                    self.open[at].released = true;
                    actor.pubrel(id);
                }
                "PUBACK" | "PUBCOMP" => drop(self.open.remove(at)),
                _ => {}
            }
        }
    }
}

/// A small reader with a memory of its own.
#[derive(Default)]
struct Reader {
    seen: Vec<u16>,
    held: BTreeSet<u16>,
}

impl Reader {
    fn hears(&mut self, actor: &mut Actor) {
        for line in actor.hears() {
            let (word, id) = parse(&line);
            if word == "PUBREL" {
                self.held.remove(&id);
                actor.pubcomp(id);
            }
            let Some((_, rest)) = line.split_once('=') else { continue };
            let number = rest.split(' ').next().unwrap().parse().unwrap();
            if line.starts_with("PUBLISH q1") {
                self.seen.push(number);
                actor.puback(id);
            } else {
                if self.held.insert(id) {
                    self.seen.push(number);
                }
                actor.pubrec(id);
            }
        }
    }
}

/// "PUBREC #4" and "PUBLISH q2 #4 …": the word and the packet id.
fn parse(line: &str) -> (&str, u16) {
    let word = line.split(' ').next().unwrap();
    let id = line.split(' ').find_map(|part| part.strip_prefix('#')).and_then(|id| id.parse().ok());
    (word, id.unwrap_or(0))
}

/// One life of the broker's process: when it is dropped, all its tasks are gone.
struct Life {
    runtime: Runtime,
    world: World,
    pump: Option<Actor>,
    reader: Option<Actor>,
}

struct Storm {
    store: Arc<MemoryStore>,
    pump: Pump,
    reader: Reader,
    life: Option<Life>,
}

impl Storm {
    fn new(qos: u8) -> Self {
        let mut storm = Self {
            store: Arc::new(MemoryStore::delayed()),
            pump: Pump { qos, ..Pump::default() },
            reader: Reader::default(),
            life: None,
        };
        storm.starts();
        storm.connects();
        storm.life().reader.as_mut().unwrap().subscribes(1, "home/#", qos);
        storm.store.release_all();
        storm.works();
        storm
    }

    fn life(&mut self) -> &mut Life {
        self.life.as_mut().unwrap()
    }

    fn starts(&mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let opening = World::over(self.store.clone(), Config::default(), stage::NOW);
        let world = runtime.block_on(released(&self.store, opening));
        self.life = Some(Life { runtime, world, pump: None, reader: None });
    }

    /// kill -9: what the store has not saved is lost.
    fn dies(&mut self) {
        self.life = None;
        while self.store.refuse(StoreError::Unavailable("killed".into())) {}
        self.starts();
    }

    fn connects(&mut self) {
        let store = self.store.clone();
        let Life { runtime, world, pump, reader } = self.life.as_mut().unwrap();
        if pump.is_none() {
            let actor = runtime.block_on(released(&store, world.old("pump", durable())));
            let _entered = runtime.enter();
            self.pump.connects_again(pump.insert(actor));
        }
        if reader.is_none() {
            *reader = Some(runtime.block_on(released(&store, world.old("reader", durable()))));
        }
    }

    /// Everybody reads what has come; tasks of the broker get their turn.
    fn works(&mut self) {
        let Life { runtime, world, pump, reader } = self.life.as_mut().unwrap();
        runtime.block_on(async {
            world.settle().await;
            if let Some(actor) = pump {
                self.pump.hears(actor);
            }
            if let Some(actor) = reader {
                self.reader.hears(actor);
            }
        });
    }

    /// The store saves the oldest waiting commit of some owner.
    fn saves(&mut self, choice: u8) {
        let owners = self.store.waiting_owners();
        let Some(owner) = owners.get(usize::from(choice) % owners.len().max(1)) else { return };
        let first = owners.iter().position(|other| other == owner).unwrap();
        self.store.release_at(first);
    }

    fn suffers(&mut self, action: u8, choice: u8) {
        match action {
            0..4 if self.pump.sent < 200 && self.pump.open.len() < 5 => {
                let Life { runtime, pump, .. } = self.life.as_mut().unwrap();
                if let Some(actor) = pump {
                    let _entered = runtime.enter();
                    self.pump.sends(actor);
                }
            }
            4..8 => self.works(),
            8..14 => self.saves(choice),
            14 => {
                let Life { runtime, pump, .. } = self.life();
                let _entered = runtime.enter();
                pump.take().into_iter().for_each(|mut actor| actor.is_cut());
            }
            15 => {
                let Life { runtime, reader, .. } = self.life();
                let _entered = runtime.enter();
                reader.take().into_iter().for_each(|mut actor| actor.is_cut());
            }
            16 | 17 => self.connects(),
            18 => self.dies(),
            _ => {}
        }
    }

    /// Calm weather: everybody is there and all commits land.
    fn ends(mut self) -> (u16, Vec<u16>) {
        self.connects();
        for _ in 0..50 {
            self.store.release_all();
            self.works();
        }
        assert!(self.pump.open.is_empty(), "everything is acknowledged in the end");
        (self.pump.sent, self.reader.seen)
    }
}

async fn released<T>(store: &MemoryStore, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::task::yield_now() => { store.release(1); }
        }
    }
}

proptest! {
    #[test]
    fn qos_2_comes_exactly_once(weather in proptest::collection::vec((0u8..20, any::<u8>()), 0..150)) {
        let mut storm = Storm::new(2);
        for (action, choice) in weather {
            storm.suffers(action, choice);
        }
        let (sent, mut seen) = storm.ends();
        seen.sort_unstable();
        prop_assert_eq!(seen, (1..=sent).collect::<Vec<_>>());
    }

    #[test]
    fn qos_1_comes_at_least_once(weather in proptest::collection::vec((0u8..20, any::<u8>()), 0..150)) {
        let mut storm = Storm::new(1);
        for (action, choice) in weather {
            storm.suffers(action, choice);
        }
        let (sent, seen) = storm.ends();
        let seen: BTreeSet<u16> = seen.into_iter().collect();
        prop_assert_eq!(seen, (1..=sent).collect::<BTreeSet<_>>());
    }
}
