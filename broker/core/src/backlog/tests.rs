//! The backlog against a model: a store, commits and reads that land late, links that are cut, restarts.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
struct Item {
    id: u64,
    weight: usize,
    stored: bool,
}

impl Weigh for Item {
    fn weight(&self) -> usize {
        self.weight
    }
}

impl Owed for Item {
    fn is_stored(&self) -> bool {
        self.stored
    }
}

const MEMORY: Bound = Bound { items: 6, bytes: 60 };
const LARGEST: usize = 40;

#[derive(Clone, Debug)]
enum Step {
    /// An id is drawn, with its weight, for something that is stored.
    Draw(usize),
    /// Something that needs no row.
    Push(usize),
    /// The commit at this place lands in the store; the seat hears of it later.
    Commit(usize),
    /// The commit at this place fails.
    Fail(usize),
    /// The seat hears of a landed commit.
    Hear(usize),
    Read(usize),
    Page,
    PageFailed,
    Next(usize),
    Acknowledge(usize),
    AcknowledgeFirst(usize),
    /// A deletion lands.
    Delete(usize),
    Cut,
    Shed,
    Attach(usize, usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let some = 0..8usize;
    prop_oneof![
        6 => (1..LARGEST).prop_map(Step::Draw),
        3 => (1..LARGEST).prop_map(Step::Push),
        5 => some.clone().prop_map(Step::Commit),
        1 => some.clone().prop_map(Step::Fail),
        5 => some.clone().prop_map(Step::Hear),
        4 => (1..5usize).prop_map(Step::Read),
        4 => Just(Step::Page),
        1 => Just(Step::PageFailed),
        6 => (1..4usize).prop_map(Step::Next),
        3 => some.clone().prop_map(Step::Acknowledge),
        2 => (0..4usize).prop_map(Step::AcknowledgeFirst),
        4 => some.prop_map(Step::Delete),
        1 => Just(Step::Cut),
        1 => Just(Step::Shed),
        1 => (1..5usize, 20..80usize).prop_map(|(items, bytes)| Step::Attach(items, bytes)),
        1 => Just(Step::Restart),
    ]
}

/// Rows, the last id that was looked at, and whether there was none behind it.
type Page = (Vec<(u64, Item)>, u64, bool);

struct World {
    backlog: Backlog<Item>,
    window: Bound,
    last: u64,
    store: BTreeMap<u64, Item>,
    /// Drawn; neither in the store nor failed.
    committing: Vec<Item>,
    /// In the store; the seat has not heard.
    landed: Vec<Item>,
    /// What must arrive, unless it is acknowledged.
    owed: BTreeMap<u64, Item>,
    page: Option<Page>,
    flight: Vec<u64>,
    deleting: Vec<u64>,
    /// Given since the last restart.
    given: BTreeSet<u64>,
    /// Acknowledged, and the deletion was lost in a restart: may come again.
    twice: BTreeSet<u64>,
    last_given: u64,
}

impl World {
    fn new() -> World {
        let window = Bound { items: 3, bytes: 50 };
        World {
            backlog: Backlog::new(MEMORY, window),
            window,
            last: 0,
            store: BTreeMap::new(),
            committing: Vec::new(),
            landed: Vec::new(),
            owed: BTreeMap::new(),
            page: None,
            flight: Vec::new(),
            deleting: Vec::new(),
            given: BTreeSet::new(),
            twice: BTreeSet::new(),
            last_given: 0,
        }
    }

    fn draw(&mut self, weight: usize, stored: bool) -> Item {
        self.last += 1;
        Item { id: self.last, weight, stored }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Draw(weight) => {
                let item = self.draw(weight, true);
                self.backlog.coming(item.id);
                self.committing.push(item);
            }
            Step::Push(weight) => {
                let item = self.draw(weight, false);
                if self.backlog.landed(item.id, item.clone()).is_ok() {
                    self.owed.insert(item.id, item);
                }
            }
            Step::Commit(at) if at < self.committing.len() => {
                let item = self.committing.remove(at);
                self.store.insert(item.id, item.clone());
                self.owed.insert(item.id, item.clone());
                self.landed.push(item);
            }
            Step::Fail(at) if at < self.committing.len() => {
                let item = self.committing.remove(at);
                self.backlog.failed(item.id);
            }
            Step::Hear(at) if at < self.landed.len() => {
                let item = self.landed.remove(at);
                self.backlog.landed(item.id, item).unwrap();
            }
            Step::Read(rows) if self.page.is_none() => self.read(rows),
            Step::Page => {
                if let Some((rows, upto, end)) = self.page.take() {
                    self.backlog.page(rows, upto, end);
                }
            }
            Step::PageFailed if self.page.take().is_some() => self.backlog.page_failed(),
            Step::Next(count) => (0..count).for_each(|_| self.next()),
            Step::Acknowledge(at) if at < self.flight.len() => {
                let id = self.flight.remove(at);
                assert!(self.backlog.acknowledge(id).is_some());
                self.acknowledged(id);
            }
            Step::AcknowledgeFirst(count) => {
                for (id, _) in self.backlog.acknowledge_first(count) {
                    assert_eq!(self.flight.remove(0), id, "acknowledged in the order of sending");
                    self.acknowledged(id);
                }
            }
            Step::Delete(at) if at < self.deleting.len() => {
                let id = self.deleting.remove(at);
                self.store.remove(&id);
                self.backlog.deleted(id);
            }
            Step::Cut => self.cut(),
            Step::Shed => {
                self.cut();
                self.backlog.shed();
                assert!(self.backlog.waiting.items.iter().all(|(_, held)| !held.item.stored));
            }
            Step::Attach(items, bytes) => {
                self.window = Bound { items, bytes };
                self.backlog.attach(self.window);
            }
            Step::Restart => self.restart(),
            _ => {}
        }
        self.check_bounds();
    }

    fn read(&mut self, rows: usize) {
        let Some(after) = self.backlog.wants() else { return };
        let all: Vec<_> = self.store.range(after + 1..).map(|(id, item)| (*id, item.clone())).collect();
        let end = all.len() <= rows;
        let page: Vec<_> = all.into_iter().take(rows).collect();
        let upto = page.last().map_or(after, |(id, _)| *id);
        self.page = Some((page, upto, end));
    }

    fn next(&mut self) {
        let Some(given) = self.backlog.next() else { return };
        let id = given.id;
        assert!(id > self.last_given, "{id} comes behind {}", self.last_given);
        assert!(self.owed.contains_key(&id) || self.twice.contains(&id), "{id} is owed no more");
        assert!(self.committing.iter().all(|item| item.id > id), "{id} overtakes what is coming");
        assert_eq!(!self.given.insert(id), given.repeated, "{id} is marked as what it is");
        self.last_given = id;
        self.flight.push(id);
    }

    fn acknowledged(&mut self, id: u64) {
        self.owed.remove(&id);
        if self.store.contains_key(&id) {
            self.deleting.push(id);
        }
    }

    fn cut(&mut self) {
        self.backlog.cut();
        self.flight.clear();
        self.last_given = 0;
    }

    fn restart(&mut self) {
        self.owed.retain(|_, item| item.stored);
        self.twice.extend(self.deleting.drain(..));
        self.twice.retain(|id| self.store.contains_key(id));
        self.committing.clear();
        self.landed.clear();
        self.flight.clear();
        self.given.clear();
        (self.page, self.last_given) = (None, 0);
        self.backlog = Backlog::new(MEMORY, self.window);
        self.backlog.read_from(0);
    }

    fn check_bounds(&self) {
        let backlog = &self.backlog;
        // The greatest window ever, since a smaller one does not take back what is in flight.
        let window = Bound { items: 5, bytes: 80 };
        let bytes = backlog.bytes() + backlog.flight.bytes;
        assert!(bytes <= 2 * MEMORY.bytes + window.bytes + 3 * LARGEST, "{bytes} bytes are held");
        assert!(backlog.len() + backlog.in_flight() <= 2 * MEMORY.items + window.items);
        assert!(backlog.flight.bytes <= window.bytes.max(LARGEST));
        assert_eq!(backlog.waiting.bytes, backlog.waiting.items.iter().map(|(_, h)| h.item.weight).sum::<usize>());
        assert_eq!(backlog.later.bytes, backlog.later.items.iter().map(|(_, h)| h.item.weight).sum::<usize>());
    }

    /// Everything lands, is read, given and acknowledged: then nothing may be left.
    fn settle(mut self) {
        while !self.committing.is_empty() {
            self.step(Step::Commit(0));
        }
        while !self.landed.is_empty() {
            self.step(Step::Hear(0));
        }
        for _ in 0..2_000 {
            let idle = self.backlog.is_empty() && !self.backlog.is_behind() && self.flight.is_empty();
            if idle && self.deleting.is_empty() {
                break;
            }
            self.step(Step::Page);
            self.step(Step::Read(3));
            self.step(Step::Next(1));
            self.step(Step::Acknowledge(0));
            self.step(Step::Delete(0));
        }
        assert!(self.owed.is_empty(), "never came: {:?}\n{:?}", self.owed.keys(), self.backlog);
        assert!(self.backlog.is_empty() && self.backlog.in_flight() == 0 && !self.backlog.is_behind());
        assert!(self.store.is_empty(), "rows are left in the store");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn each_item_comes_once_in_order_and_none_is_lost(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.settle();
    }
}

fn item(id: u64, stored: bool) -> Item {
    Item { id, weight: 10, stored }
}

fn given(backlog: &mut Backlog<Item>) -> Vec<u64> {
    std::iter::from_fn(|| backlog.next()).map(|given| given.id).collect()
}

#[test]
fn what_lies_behind_a_coming_id_waits_for_it() {
    let mut backlog = Backlog::new(MEMORY, Bound { items: 10, bytes: 1000 });
    backlog.coming(1);
    backlog.coming(2);
    backlog.landed(3, item(3, false)).unwrap();
    assert!(given(&mut backlog).is_empty());
    backlog.landed(1, item(1, true)).unwrap();
    assert_eq!(given(&mut backlog), [1]);
    backlog.failed(2);
    assert_eq!(given(&mut backlog), [3]);
}

#[test]
fn a_full_window_holds_up_and_an_acknowledgement_lets_go() {
    let mut backlog = Backlog::new(MEMORY, Bound { items: 2, bytes: 1000 });
    (1..=3).for_each(|id| backlog.landed(id, item(id, false)).unwrap());
    assert_eq!(given(&mut backlog), [1, 2]);
    assert!(backlog.is_held_up());
    assert_eq!(backlog.acknowledge_first(1), [(1, item(1, false))]);
    assert_eq!(given(&mut backlog), [3]);
    backlog.cut();
    assert!(backlog.next().unwrap().repeated);
}

#[test]
fn what_memory_does_not_take_is_read_again_and_what_has_no_row_comes_back() {
    let mut backlog = Backlog::new(Bound { items: 1, bytes: 1000 }, Bound { items: 9, bytes: 1000 });
    (1..=3).for_each(|id| backlog.landed(id, item(id, true)).unwrap());
    assert_eq!(backlog.landed(4, item(4, false)), Ok(()), "it waits behind the rows");
    assert_eq!(backlog.landed(5, item(5, false)), Err(item(5, false)));
    assert_eq!(given(&mut backlog), [1]);
    assert_eq!(backlog.wants(), Some(1));
    assert_eq!(backlog.wants(), None, "one page at a time");
    backlog.page(vec![(2, item(2, true)), (3, item(3, true))], 3, true);
    assert_eq!(given(&mut backlog), [2]);
    assert_eq!(backlog.wants(), Some(2));
    backlog.page(vec![(3, item(3, true))], 3, true);
    assert_eq!(given(&mut backlog), [3, 4]);
}

#[test]
fn one_that_is_never_acknowledged_keeps_no_place_of_others() {
    let mut backlog = Backlog::new(MEMORY, Bound { items: 2, bytes: 1000 });
    for id in 1..=10_000 {
        backlog.landed(id, item(id, false)).unwrap();
        assert_eq!(given(&mut backlog), [id]);
        if id > 1 {
            assert!(backlog.acknowledge(id).is_some());
        }
    }
    assert!(backlog.flight.sent.len() < 100, "{} places for one", backlog.flight.sent.len());
    assert_eq!(backlog.sent().map(|(id, _)| id).collect::<Vec<_>>(), [1]);
    assert_eq!(backlog.flying(1), Some(&item(1, false)));
}

#[test]
fn an_idle_one_holds_no_memory() {
    let mut backlog = Backlog::new(MEMORY, Bound { items: 2, bytes: 1000 });
    backlog.landed(1, item(1, false)).unwrap();
    assert_eq!(given(&mut backlog), [1]);
    backlog.acknowledge(1);
    assert_eq!((backlog.waiting.items.capacity(), backlog.flight.sent.capacity()), (0, 0));
    assert_eq!(backlog.flight.seqs.capacity(), 0);
}

#[test]
fn a_row_that_came_with_a_page_does_not_come_again_when_it_lands() {
    let mut backlog = Backlog::new(MEMORY, Bound { items: 10, bytes: 1000 });
    backlog.read_from(0);
    assert_eq!(backlog.wants(), Some(0));
    backlog.page(vec![(1, item(1, true)), (2, item(2, true))], 2, true);
    backlog.landed(2, item(2, true)).unwrap();
    assert_eq!(given(&mut backlog), [1, 2]);
    backlog.landed(1, item(1, true)).unwrap();
    backlog.acknowledge(1);
    backlog.landed(1, item(1, true)).unwrap();
    assert!(given(&mut backlog).is_empty(), "in flight, and then being deleted");
}

#[test]
fn a_row_that_is_deleted_while_a_page_is_read_does_not_come_again() {
    let mut backlog = Backlog::new(MEMORY, Bound { items: 10, bytes: 1000 });
    backlog.landed(1, item(1, true)).unwrap();
    assert_eq!(given(&mut backlog), [1]);
    backlog.hand_over(0);
    assert_eq!(backlog.wants(), Some(0));
    backlog.acknowledge(1);
    backlog.deleted(1);
    backlog.page(vec![(1, item(1, true)), (2, item(2, true))], 2, true);
    assert_eq!(given(&mut backlog), [2]);
}

#[test]
fn what_is_handed_over_from_the_middle_on_takes_nothing_away_that_stands_before_it() {
    let mut backlog = Backlog::new(MEMORY, Bound { items: 10, bytes: 1000 });
    for id in [1, 2, 5] {
        backlog.landed(id, item(id, true)).unwrap();
    }
    backlog.hand_over(2);
    assert_eq!(backlog.wants(), Some(2));
    backlog.page([3, 4, 5].map(|id| (id, item(id, true))).to_vec(), 5, true);
    assert_eq!(given(&mut backlog), [1, 2, 3, 4, 5]);
}
