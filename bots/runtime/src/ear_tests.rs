//! A bot's ear between the topics and the store: whatever lands when, each value is heard once and in its topic's order.

use super::*;
use crate::store::{Rows, delete_publication};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::pin,
    task::{Context, Waker},
};
use tavi_core::{Draft, Parts, Registry, SystemClock, homes::SessionLimits, permit::Grant};
use tavi_store::{MemoryStore, Store};

const TOPICS: [&str; 2] = ["d/door/up/a", "d/door/up/b"];

/// How many publications wait in memory.
const ROOM: usize = 6;
/// A few of this size fill it, too.
const LARGE: usize = 1 << 10;

/// A bot that hears two topics, with what is on its way to it.
struct World {
    store: Arc<MemoryStore>,
    node: Node,
    ear: Arc<Ear>,
    rows: Rows,
    /// Not yet told that all is saved.
    open: Vec<Ticket>,
    /// What its handlers run, oldest first.
    running: VecDeque<u64>,
    heard: Vec<(Box<str>, usize)>,
    published: BTreeMap<Box<str>, usize>,
}

#[derive(Clone, Debug)]
enum Move {
    /// Begins to publish a small or a large value to a topic.
    Publish(usize, bool),
    /// The store takes this one of the commits that wait.
    Save(usize),
    /// This one of the publishers looks after what it published.
    Land(usize),
    /// The seat takes what waits in memory.
    Drain,
    /// The seat looks into the store.
    Late,
    /// The oldest run ends.
    Done,
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        4 => (0..TOPICS.len(), prop::bool::weighted(0.4)).prop_map(|(topic, large)| Move::Publish(topic, large)),
        6 => (0..4_usize).prop_map(Move::Save),
        4 => (0..4_usize).prop_map(Move::Land),
        1 => Just(Move::Drain),
        2 => Just(Move::Late),
        2 => Just(Move::Done),
    ]
}

fn device() -> Principal {
    Principal::Device("door@things.localhost".parse().unwrap())
}

async fn world() -> World {
    let store = Arc::new(MemoryStore::default());
    let hosts = Hosts::new("localhost", &[]).unwrap();
    let parts = Parts::load(hosts, store.clone(), Arc::new(SystemClock), SessionLimits::default()).await.unwrap();
    let node = Node::new(parts, Registry::default());
    let bot: BareJid = "bot@bots.localhost".parse().unwrap();
    let grant = Grant::new(node.parts.ids.next(0), bot.as_str(), "subscribe".parse().unwrap(), "d/#").unwrap();
    node.parts.permit.add(grant).await.unwrap();
    let rows = Rows::new(store.clone(), bot.as_str());
    let ear = Ear::bounded(&node, (Principal::Bot(bot), rows.owner().clone()), (ROOM, 4 << 10));
    let handle: Arc<dyn Subscriber> = ear.clone();
    node.parts.topics.listen(&handle, "d/#", SubOptions::default()).unwrap().complete().await.unwrap();
    let (open, running, heard, published) = Default::default();
    World { store, node, ear, rows, open, running, heard, published }
}

impl World {
    /// Values count up in each topic.
    fn draft(&mut self, topic: &str, size: usize) -> Draft {
        let count = self.published.entry(topic.into()).or_default();
        let payload = format!("{}{count}", "0".repeat(size));
        *count += 1;
        Draft { topic: topic.into(), payload: payload.into(), qos: Qos::AtLeastOnce, ..Draft::default() }
    }

    fn publish(&mut self, topic: &str, size: usize) {
        let draft = self.draft(topic, size);
        self.open.push(self.node.parts.topics.publish_unasked(&device(), draft));
    }

    /// Its row is saved only when a note of it is.
    fn publish_noted(&mut self, topic: &str) {
        let (draft, store) = (self.draft(topic, 1), self.store.clone());
        let note = |id| store.commit(&Owner::account("door@things.localhost"), vec![Op::Drawn { id }]);
        let begun = self.node.parts.topics.publish_noted((&device(), Action::Publish), draft, note);
        self.open.push(begun.unwrap());
    }

    /// The publisher of an open one looks: if all is saved, it is delivered.
    fn land(&mut self, at: usize) {
        let Some(ticket) = self.open.get_mut(at) else { return };
        if ticket.poll_done(&mut Context::from_waker(Waker::noop())).is_ready() {
            drop(self.open.remove(at));
        }
    }

    fn hear(&mut self, publications: impl IntoIterator<Item = Arc<Publication>>) {
        for publication in publications {
            let number = String::from_utf8_lossy(&publication.payload).parse().unwrap();
            self.heard.push((publication.topic.as_ref().into(), number));
            self.running.push_back(publication.id);
        }
    }

    fn drain(&mut self) {
        let waiting = self.ear.mailbox().take();
        self.hear(waiting.into_iter().map(|Waiting(publication)| publication));
    }

    async fn late(&mut self) {
        let found = self.ear.late(&self.rows).await;
        self.hear(found);
    }

    fn is_late(&self) -> bool {
        self.ear.lasting.lock().late.is_some()
    }

    async fn done(&mut self) {
        let Some(id) = self.running.pop_front() else { return };
        let gone = self.rows.commit(vec![delete_publication(id)]);
        self.store.release_all();
        gone.await.unwrap();
        self.ear.done(id);
    }

    async fn make(&mut self, step: Move) {
        match step {
            Move::Publish(topic, large) => self.publish(TOPICS[topic], if large { LARGE } else { 1 }),
            Move::Save(at) => _ = self.store.release_at(at),
            Move::Land(at) => self.land(at),
            Move::Drain => self.drain(),
            Move::Late => self.late().await,
            Move::Done => self.done().await,
        }
    }

    /// All lands, runs, and is over.
    async fn finish(&mut self) {
        while !self.open.is_empty() || !self.running.is_empty() || self.is_late() || !self.ear.mailbox().is_empty() {
            self.store.release_all();
            (0..self.open.len()).rev().for_each(|at| self.land(at));
            self.drain();
            self.late().await;
            self.done().await;
            // Much that lands at once is a task's.
            tokio::task::yield_now().await;
        }
    }

    fn check(&self) {
        for (topic, count) in &self.published {
            let heard = self.heard.iter().filter(|(of, _)| of == topic).map(|(_, n)| *n);
            assert_eq!(heard.collect::<Vec<usize>>(), (0..*count).collect::<Vec<_>>(), "{topic}");
        }
    }
}

#[tokio::test]
async fn a_row_that_is_being_saved_is_not_read_before_its_turn() {
    let mut world = world().await;
    world.publish(TOPICS[0], 1);
    // Its row is there, and its publisher has not looked yet.
    world.late().await;
    assert!(world.heard.is_empty(), "{:?}", world.heard);
    world.finish().await;
    world.check();
}

#[tokio::test]
async fn what_is_read_is_behind_what_waits_in_memory() {
    let mut world = world().await;
    world.late().await;
    assert!(!world.is_late(), "the store has nothing");
    for _ in 0..6 {
        world.publish(TOPICS[0], LARGE);
        world.land(0);
    }
    assert!(world.is_late() && !world.ear.mailbox().is_empty(), "not all have room");
    world.late().await;
    world.finish().await;
    world.check();
}

#[tokio::test]
async fn what_lands_while_the_store_is_read_comes_later() {
    let mut world = world().await;
    let (ear, rows) = (world.ear.clone(), world.rows.clone());
    // The note of a QoS 2 publication is saved before the row of it, and that of the next one at once.
    world.store.hold();
    world.publish_noted(TOPICS[0]);
    world.publish(TOPICS[0], 1);
    assert!(world.store.release_at(1), "the second has its row");
    world.store.hold_pages();
    let mut read = pin!(ear.late(&rows));
    assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    while !world.open.is_empty() {
        world.store.release_all();
        (0..world.open.len()).for_each(|_| world.land(0));
    }
    world.store.release_pages();
    world.hear(read.await);
    world.finish().await;
    world.check();
}

#[tokio::test]
async fn more_than_a_page_that_is_being_saved_hides_nothing_behind_it() {
    let mut world = world().await;
    for _ in 0..1_200 {
        world.publish(TOPICS[0], 1);
    }
    world.publish(TOPICS[1], 1);
    world.land(1_200);
    world.late().await;
    assert_eq!(world.heard, [(TOPICS[1].into(), 0)], "the others are being saved");
    world.finish().await;
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]
    #[test]
    fn each_value_is_heard_once_and_in_its_topic_s_order(steps in prop::collection::vec(moves(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = world().await;
            world.store.hold();
            for step in steps {
                world.make(step).await;
            }
            world.finish().await;
            world.check();
        });
    }
}
