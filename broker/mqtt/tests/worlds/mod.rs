//! Two worlds in one process: links and a publisher in one, seats in the other, and between them a way that loses,
//! repeats, delays and reorders the words, all of which travel as bytes. A durable session publishes and receives at QoS
//! 1 and 2, is cut, taken over and comes back on either side; what it gets is published in the other world. Nothing is lost
//! or out of order, and at QoS 2 nothing comes twice.

mod party;
mod publications;
mod wire;

use super::*;
use crate::order::release_one;
use party::{Conn, Far, Party};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tavi_core::bus::{BadWay, Channel, Dice, Piece};
use tavi_mqtt::distant::Reception;
use tavi_mqtt::hub::Parting;
use tavi_mqtt::words::ToSeat;
use wire::Wire;

/// Words of one link that are not known to be heard, at most.
const WINDOW: usize = 8;

/// What is under way: of which link, whether to its home, and what.
type Carried = (u64, bool, Piece);

type Coming<'a> = Pin<Box<dyn Future<Output = Result<stage::Actor, Reason>> + 'a>>;

struct Worlds<'a> {
    world: &'a World,
    store: Arc<MemoryStore>,
    reception: Reception,
    /// The home's ends, by the number of the link.
    ends: BTreeMap<u64, Channel>,
    way: BadWay<Carried>,
    /// Between the two nodes.
    wire: Wire,
    now_ms: u64,
    /// Links whose client has left them.
    ghosts: Vec<Far>,
    left: Vec<stage::Actor>,
    roamer: Party,
    /// The roamer on its way to a seat in its own world.
    coming: Option<Coming<'a>>,
    /// The roamer thought better of it.
    given_up: Vec<Coming<'a>>,
    pump: Party,
    sink: Party,
    links: u64,
    values: u32,
    is_inward: BTreeMap<u32, bool>,
}

impl<'a> Worlds<'a> {
    /// What is to be said is carried, and what was not heard in time once more.
    fn carries(&mut self) {
        self.now_ms += 100;
        for (link, end) in &mut self.ends {
            self.way.carry(end.pieces(self.now_ms).into_iter().map(|piece| (*link, false, piece)));
        }
        let far = self.roamer.conn.iter_mut();
        let far = far.filter_map(|conn| if let Conn::Far(far) = conn { Some(&mut **far) } else { None });
        for far in far.chain(&mut self.ghosts) {
            self.way.carry(far.end.pieces(self.now_ms).into_iter().map(|piece| (far.number, true, piece)));
        }
        self.wire.carries(self.now_ms);
    }

    fn arrives(&mut self, dice: &mut Dice) {
        let Some((link, is_to_home, piece)) = self.way.arrive(dice) else { return };
        if is_to_home {
            return self.ends.entry(link).or_default().take(piece);
        }
        if let Some(far) = self.far(link) {
            far.end.take(piece);
            far.turn();
        }
    }

    fn far(&mut self, number: u64) -> Option<&mut Far> {
        let conn = self.roamer.conn.as_mut();
        let far = conn.and_then(|conn| if let Conn::Far(far) = conn { Some(&mut **far) } else { None });
        far.into_iter().chain(&mut self.ghosts).find(|far| far.number == number)
    }

    /// The home heeds what it has heard, and says what there is to say.
    fn attends(&mut self) {
        for (link, end) in &mut self.ends {
            while self.reception.has_room(*link)
                && let Some(word) = end.hear()
            {
                self.reception.hear(*link, ToSeat::decode(word).expect("a word"));
            }
        }
        self.reception.poll(&mut Context::from_waker(Waker::noop()));
        for (link, end) in &mut self.ends {
            while end.open() < WINDOW
                && let Some(word) = self.reception.next_said(*link)
            {
                end.say(word.encode());
            }
        }
        self.left.iter_mut().for_each(|actor| drop(actor.hears()));
        self.left.retain(|actor| actor.is_connected());
        let cx = &mut Context::from_waker(Waker::noop());
        self.given_up.retain_mut(|coming| match coming.as_mut().poll(cx) {
            Poll::Pending => true,
            Poll::Ready(actor) => {
                actor.into_iter().for_each(|mut actor| actor.is_cut());
                false
            }
        });
        if let Some(coming) = &mut self.coming
            && let Poll::Ready(actor) = coming.as_mut().poll(cx)
        {
            self.coming = None;
            actor.into_iter().for_each(|actor| self.comes(Conn::Near(Box::new(actor))));
        }
    }

    fn comes(&mut self, conn: Conn) {
        // The former connection hears of it from the broker.
        match self.roamer.connects(conn) {
            Some(Conn::Far(far)) => self.ghosts.push(*far),
            Some(Conn::Near(actor)) => self.left.push(*actor),
            None => {}
        }
    }

    fn roams(&mut self) -> bool {
        let any = self.roamer.acts();
        if let Some(Conn::Far(far)) = self.roamer.takes_closed() {
            self.ghosts.push(*far);
        }
        any
    }

    fn connects(&mut self, far: bool) {
        if far {
            self.links += 1;
            let far = Far::new(self.links, "roamer", &self.world.hub, self.world.bounds);
            self.given_up.extend(self.coming.take());
            self.comes(Conn::Far(Box::new(far)));
        } else if self.coming.is_none() {
            self.coming = Some(Box::pin(self.world.tries(("roamer", "roamer"), Version::V4, durable())));
        }
    }

    fn is_cut(&mut self, is_told: bool) {
        match self.roamer.loses_connection() {
            Some(Conn::Far(mut far)) if is_told => {
                far.detaches();
                self.ghosts.push(*far);
            }
            // Its node has gone with it.
            Some(Conn::Far(_)) | None => {}
            Some(Conn::Near(mut actor)) => actor.is_cut(),
        }
    }

    fn publishes(&mut self, qos: u8, inward: bool) {
        self.values += 1;
        self.is_inward.insert(self.values, inward);
        let party = if inward { &mut self.pump } else { &mut self.roamer };
        party.wants_to_publish(qos, self.values);
    }

    fn suffers(&mut self, dice: &mut Dice) {
        match dice.below(40) {
            0..=3 => self.publishes(1 + dice.below(2) as u8, dice.below(2) == 0),
            4..=11 => self.arrives(dice),
            12..=15 => self.wire.arrives(dice),
            16..=18 => self.carries(),
            19..=24 => release_one(&self.store, dice),
            25..=30 => self.attends(),
            31..=34 => drop(self.roams()),
            35 => drop(self.pump.acts()),
            36 => drop(self.sink.acts()),
            37 => self.is_cut(dice.below(2) == 0),
            _ if self.roamer.conn.is_none() || dice.below(6) == 0 => self.connects(dice.below(3) > 0),
            _ => {}
        }
    }

    /// Calm weather: everything arrives.
    async fn ends(&mut self, dice: &mut Dice) {
        self.way.is_calm = true;
        self.wire.way.is_calm = true;
        self.is_cut(true);
        // Nodes that have gone are known to have.
        let ghosts: BTreeSet<u64> = self.ghosts.iter().map(|far| far.number).collect();
        for link in self.ends.keys().filter(|link| !ghosts.contains(link)) {
            self.reception.hear(*link, ToSeat::Detach(Parting::Cut));
        }
        self.ends.retain(|link, _| ghosts.contains(link));
        self.way.retain(|(link, ..)| ghosts.contains(link));
        self.connects(dice.below(2) == 0);
        for round in 0..3_000 {
            assert!(round < 2_999, "it comes to no end: {:?}", self.state());
            tokio::task::yield_now().await;
            self.store.release_all();
            self.carries();
            while !self.way.is_empty() {
                self.arrives(dice);
            }
            while !self.wire.way.is_empty() {
                self.wire.arrives(dice);
            }
            self.attends();
            if self.roamer.conn.is_none() && self.coming.is_none() {
                // Overtaken by one that it had given up.
                self.connects(dice.below(2) == 0);
            }
            let busy = self.roams() | self.pump.acts() | self.sink.acts();
            let parties = [&self.roamer, &self.pump, &self.sink];
            let quiet = self.loud().next().is_none() && self.wire.is_quiet();
            let quiet = quiet && self.coming.is_none() && self.store.waiting() == 0;
            if !busy && quiet && parties.iter().all(|party| party.is_done()) && round > 20 {
                return;
            }
        }
    }

    fn state(&self) -> (bool, usize, [bool; 3], Vec<u64>) {
        let parties = [&self.roamer, &self.pump, &self.sink].map(|party| party.is_done());
        (self.coming.is_some(), self.store.waiting(), parties, self.loud().collect())
    }

    /// Links one of whose ends has said what is not known to be heard.
    fn loud(&self) -> impl Iterator<Item = u64> {
        let home = self.ends.iter().map(|(link, end)| (*link, end));
        let far =
            self.roamer.conn.iter().filter_map(|conn| if let Conn::Far(far) = conn { Some(&**far) } else { None });
        let far = far.chain(&self.ghosts).map(|far| (far.number, &far.end));
        home.chain(far).filter(|(_, end)| end.open() > 0).map(|(link, _)| link)
    }

    fn check(&self, seen: &[(u8, u32)], inward: bool, seed: u64) {
        let mut first = BTreeSet::new();
        for (qos, value) in seen {
            if first.insert(*value) {
                assert_eq!(first.last(), Some(value), "seed {seed}: {value} came late: {seen:?}");
            } else {
                assert_eq!(*qos, 1, "seed {seed}: {value} came twice at QoS 2: {seen:?}");
            }
        }
        let sent = self.is_inward.iter().filter(|(_, is_inward)| **is_inward == inward);
        let all: BTreeSet<u32> = sent.map(|(value, _)| *value).collect();
        assert_eq!(first, all, "seed {seed}");
    }
}

fn config() -> Config {
    Config { in_flight: 4, ..Config::default() }
}

#[tokio::test]
async fn a_durable_session_keeps_its_promises_with_its_link_in_another_world() {
    let mut reconnects = 0;
    for seed in 0..300 {
        let dice = &mut Dice(seed);
        let store = Arc::new(MemoryStore::delayed());
        let mut wire = Wire::default();
        let opening = tokio::spawn(World::beside(wire.end(0), store.clone(), (config(), stage::NOW)));
        let world = release_until(&store, opening).await;
        let opening = tokio::spawn(World::beside(wire.end(1), store.clone(), (config(), stage::NOW)));
        let abroad = release_until(&store, opening).await;
        let coming = async {
            (
                world.old("roamer", durable()).await,
                abroad.old("pump", durable()).await,
                world.old("sink", durable()).await,
            )
        };
        let actors = release_while(&store, coming).await;
        wire.joins([&world, &abroad]);
        wire::knows([&world, &abroad], "roamer", "home/in");
        let conns = [actors.0, actors.1, actors.2].map(|actor| Conn::Near(Box::new(actor)));
        let topics = ["home/out", "home/in", "home/none"];
        let parties = conns.into_iter().zip(topics).map(|(conn, topic)| Party::new(conn, topic));
        let [roamer, pump, sink] = parties.collect::<Vec<_>>().try_into().ok().unwrap();
        let mut worlds = Worlds {
            world: &world,
            store: store.clone(),
            reception: Reception::new(world.hub.clone()),
            ends: BTreeMap::new(),
            way: BadWay::default(),
            wire,
            now_ms: 0,
            ghosts: Vec::new(),
            left: Vec::new(),
            roamer,
            coming: None,
            given_up: Vec::new(),
            pump,
            sink,
            links: 0,
            values: 0,
            is_inward: BTreeMap::new(),
        };
        worlds.roamer.subscribes("home/in");
        worlds.sink.subscribes("home/out");
        store.release_all();
        for _ in 0..600 {
            worlds.suffers(dice);
            tokio::task::yield_now().await;
        }
        worlds.ends(dice).await;
        worlds.check(&worlds.roamer.seen, true, seed);
        worlds.check(&worlds.sink.seen, false, seed);
        reconnects += worlds.links;
    }
    assert!(reconnects > 1_000, "{reconnects}");
}
