//! QoS 1 and 2 from a durable publisher to a durable reader while connections break, the process dies, and the store
//! saves what it likes of the commits that wait: nothing acknowledged may be lost, nothing of QoS 2 may come twice. Beside
//! them a sensor retains values while the reader subscribes again and again, and a lamp with a will comes and goes: the
//! last value that is seen is the one that is kept, each will of a cut connection comes, none of an orderly one does.
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
    kept: Vec<u16>,
    wills: BTreeSet<u16>,
    held: BTreeSet<u16>,
    asked: u16,
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
            let fresh = line.starts_with("PUBLISH q1") || self.held.insert(id);
            match topic(&line) {
                _ if !fresh => {}
                "home/kept" => self.kept.push(number),
                "home/will" => drop(self.wills.insert(number)),
                _ => self.seen.push(number),
            }
            if line.starts_with("PUBLISH q1") {
                actor.puback(id);
            } else {
                actor.pubrec(id);
            }
        }
    }

    /// Subscribes again, so that the retained value comes again.
    fn subscribes(&mut self, actor: &mut Actor, qos: u8) {
        self.asked = self.asked % 1_000 + 1;
        actor.subscribes(self.asked, "home/#", qos);
    }
}

/// The topic of a PUBLISH line.
fn topic(line: &str) -> &str {
    line.split(' ').find_map(|part| part.split_once('=')).map_or("", |(topic, _)| topic)
}

/// What becomes of connections that have a will.
#[derive(Default)]
struct Lamp {
    connections: u16,
    cut: BTreeSet<u16>,
    left: BTreeSet<u16>,
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
    sensor: Option<Actor>,
    lamp: Option<Actor>,
}

struct Storm {
    qos: u8,
    values: u16,
    lamp: Lamp,
    store: Arc<MemoryStore>,
    pump: Pump,
    reader: Reader,
    life: Option<Life>,
}

impl Storm {
    fn new(qos: u8) -> Self {
        let mut storm = Self {
            qos,
            values: 0,
            lamp: Lamp::default(),
            store: Arc::new(MemoryStore::delayed()),
            pump: Pump { qos, ..Pump::default() },
            reader: Reader::default(),
            life: None,
        };
        storm.starts();
        storm.connects();
        storm.subscribes();
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
        self.life = Some(Life { runtime, world, pump: None, reader: None, sensor: None, lamp: None });
    }

    /// kill -9: what the store has not saved is lost.
    fn dies(&mut self) {
        if self.life().lamp.is_some() {
            self.lamp.cut.insert(self.lamp.connections);
        }
        self.life = None;
        while self.store.refuse(StoreError::Unavailable("killed".into())) {}
        self.starts();
    }

    fn connects(&mut self) {
        let store = self.store.clone();
        let Life { runtime, world, pump, reader, sensor, .. } = self.life.as_mut().unwrap();
        if sensor.is_none() {
            *sensor = Some(runtime.block_on(released(&store, world.old("sensor", stage::clean()))));
        }
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
        let Life { runtime, world, pump, reader, sensor, .. } = self.life.as_mut().unwrap();
        runtime.block_on(async {
            world.settle().await;
            sensor.iter_mut().for_each(|actor| drop(actor.hears()));
            if let Some(actor) = pump {
                self.pump.hears(actor);
            }
            if let Some(actor) = reader {
                self.reader.hears(actor);
            }
        });
    }

    fn subscribes(&mut self) {
        let Life { runtime, reader, .. } = self.life.as_mut().unwrap();
        let _entered = runtime.enter();
        if let Some(actor) = reader {
            self.reader.subscribes(actor, self.qos);
        }
    }

    fn retains(&mut self) {
        let Life { runtime, sensor, .. } = self.life.as_mut().unwrap();
        let _entered = runtime.enter();
        if let Some(actor) = sensor {
            self.values += 1;
            actor.retains("home/kept", &self.values.to_string());
        }
    }

    fn lamp_connects(&mut self) {
        let store = self.store.clone();
        let Life { runtime, world, lamp, .. } = self.life.as_mut().unwrap();
        if lamp.is_none() {
            self.lamp.connections += 1;
            let payload = Box::leak(self.lamp.connections.to_string().into_boxed_str());
            let connect = stage::Connect { will: stage::with_will("home/will", payload, 0), ..stage::clean() };
            *lamp = Some(runtime.block_on(released(&store, world.old("lamp", connect))));
        }
    }

    fn lamp_goes(&mut self, in_order: bool) {
        let Life { runtime, lamp, .. } = self.life.as_mut().unwrap();
        let _entered = runtime.enter();
        let Some(mut actor) = lamp.take() else { return };
        if in_order {
            actor.disconnects();
            self.lamp.left.insert(self.lamp.connections);
        } else {
            actor.is_cut();
            self.lamp.cut.insert(self.lamp.connections);
        }
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
            19 => self.subscribes(),
            20 | 21 => self.retains(),
            22 => self.lamp_connects(),
            23 => self.lamp_goes(choice.is_multiple_of(2)),
            _ => {}
        }
    }

    /// Calm weather: everybody is there and all commits land.
    fn ends(mut self) -> (u16, Vec<u16>) {
        self.lamp_goes(false);
        self.connects();
        self.retains();
        for _ in 0..50 {
            self.store.release_all();
            self.works();
        }
        assert!(self.pump.open.is_empty(), "everything is acknowledged in the end");
        let kept = self.life().world.hub.node().parts.topics.clone();
        let who = tavi_core::Principal::Account("reader@localhost".parse().unwrap());
        let kept = kept.retained_value(&who, "home/kept").unwrap();
        let kept = kept.map(|kept| String::from_utf8_lossy(&kept.payload).parse::<u16>().unwrap());
        assert_eq!(self.reader.kept.last().copied(), kept, "{:?}", self.reader.kept);
        let lost: Vec<_> = self.lamp.cut.difference(&self.reader.wills).collect();
        assert!(lost.is_empty(), "wills lost: {lost:?}");
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
    fn qos_2_comes_exactly_once(weather in proptest::collection::vec((0u8..24, any::<u8>()), 0..150)) {
        let mut storm = Storm::new(2);
        for (action, choice) in weather {
            storm.suffers(action, choice);
        }
        let (sent, mut seen) = storm.ends();
        seen.sort_unstable();
        prop_assert_eq!(seen, (1..=sent).collect::<Vec<_>>());
    }

    #[test]
    fn qos_1_comes_at_least_once(weather in proptest::collection::vec((0u8..24, any::<u8>()), 0..150)) {
        let mut storm = Storm::new(1);
        for (action, choice) in weather {
            storm.suffers(action, choice);
        }
        let (sent, seen) = storm.ends();
        let seen: BTreeSet<u16> = seen.into_iter().collect();
        prop_assert_eq!(seen, (1..=sent).collect::<BTreeSet<_>>());
    }
}
