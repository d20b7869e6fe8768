//! The session entry in virtual time: dialogues, and a storm against what the standard says of wills.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};

type World = Entries<u32, u64>;

fn key() -> Key {
    ("romeo@localhost".into(), "lamp".into())
}

fn durable(link: LinkId, will: Option<(u64, u32)>) -> Entrance<u64> {
    let will = will.map(|(what, delay)| LastWill { what, delay });
    Entrance { link, clean: false, durable: true, will }
}

fn enter(world: &mut World, entrance: Entrance<u64>) -> Entered<u32, u64> {
    let seat = entrance.link as u32;
    world.enter(&key(), entrance, || seat)
}

fn cut(world: &mut World, link: LinkId, expiry: u32, now_ms: u64) -> Option<Left<u32, u64>> {
    let left = world.leave(&key(), link, (Parting::Cut, expiry), now_ms);
    world.done(&key(), link);
    left
}

#[test]
fn a_will_waits_for_its_delay_or_for_the_end_of_the_session() {
    for (delay, expiry, at_ms) in [(5, 9, 5_000), (9, 9, 9_000), (30, 9, 9_000)] {
        let mut world = World::default();
        enter(&mut world, durable(1, Some((7, delay))));
        let left = cut(&mut world, 1, expiry, 0).unwrap();
        assert_eq!((left.will, left.will_gone), (None, false));
        assert_eq!(world.next_deadline(), Some(at_ms));
        assert_eq!(world.due(at_ms - 1), None);
        let end = |will| Due::End { key: key(), seat: 1, will, after: None };
        if at_ms < 9_000 {
            assert_eq!(world.due(at_ms), Some(Due::Will { key: key(), seat: 1, will: 7, after: None }));
            assert_eq!(world.due(9_000), Some(end(None)));
        } else {
            assert_eq!(world.due(at_ms), Some(end(Some(7))));
        }
        assert_eq!((world.next_deadline(), world.all.len()), (None, 0));
    }
}

#[test]
fn a_client_that_comes_back_in_time_takes_its_will_back() {
    let mut world = World::default();
    enter(&mut world, durable(1, Some((7, 5))));
    cut(&mut world, 1, 60, 0);
    let again = enter(&mut world, durable(2, None));
    assert_eq!((again.seat, again.resumed, again.will, again.had_will), (1, true, None, true));
    assert_eq!(world.due(u64::MAX), None);
}

#[test]
fn a_clean_start_ends_the_session_and_publishes_its_will() {
    for held in [true, false] {
        let mut world = World::default();
        enter(&mut world, durable(1, Some((7, 300))));
        if !held {
            cut(&mut world, 1, 600, 0);
        }
        assert_eq!(world.arrive(&key(), 2, true), Arrival::Enter);
        let clean = enter(&mut world, Entrance { clean: true, ..durable(2, None) });
        assert_eq!(clean.former, Some(Former { seat: 1, durable: true, held }));
        assert_eq!((clean.will, clean.seat, clean.resumed), (Some(7), 2, false));
        assert!(world.leave(&key(), 1, (Parting::Cut, 600), 0).is_none(), "it has nothing any more");
        assert_eq!(world.next_deadline(), None);
    }
}

#[test]
fn of_a_takeover_the_undelayed_will_is_published_and_the_delayed_one_is_not() {
    for (delay, published) in [(0, Some(7)), (5, None)] {
        let mut world = World::default();
        enter(&mut world, durable(1, Some((7, delay))));
        assert_eq!(world.arrive(&key(), 2, false), Arrival::Wait(1, None));
        let left = world.leave(&key(), 1, (Parting::Cut, 60), 0).unwrap();
        assert_eq!((left.will, left.will_gone), (published, true));
        assert_eq!(world.arrive(&key(), 2, false), Arrival::Wait(1, None), "what it began is not done");
        assert_eq!(world.done(&key(), 1), Some(2));
        assert_eq!(world.arrive(&key(), 2, false), Arrival::Enter);
        assert!(enter(&mut world, durable(2, None)).resumed);
    }
}

#[test]
fn who_waits_keeps_the_session_alive_and_who_gives_up_lets_it_end() {
    let mut world = World::default();
    enter(&mut world, durable(1, None));
    world.leave(&key(), 1, (Parting::Cut, 5), 0);
    world.arrive(&key(), 2, false);
    assert_eq!(world.due(6_000), None);
    world.give_up(&key(), 2);
    assert!(matches!(world.due(6_000), Some(Due::End { seat: 1, .. })));
}

#[test]
fn who_waited_while_a_later_one_began_anew_is_outdated() {
    let mut world = World::default();
    enter(&mut world, durable(1, None));
    world.arrive(&key(), 2, false);
    let third = enter(&mut world, Entrance { clean: true, ..durable(3, None) });
    assert_eq!(third.woken, Some(2));
    assert_eq!(world.arrive(&key(), 2, false), Arrival::Outdated);
}

#[test]
fn of_two_that_wait_the_later_one_gets_the_session() {
    let mut world = World::default();
    enter(&mut world, durable(1, None));
    assert_eq!(world.arrive(&key(), 2, false), Arrival::Wait(1, None));
    assert_eq!(world.arrive(&key(), 3, false), Arrival::Wait(1, Some(2)));
    assert_eq!(world.arrive(&key(), 2, false), Arrival::Outdated);
    world.leave(&key(), 1, (Parting::Cut, 60), 0);
    assert_eq!(world.done(&key(), 1), Some(3));
    assert_eq!(world.arrive(&key(), 3, false), Arrival::Enter);
    assert!(enter(&mut world, durable(3, None)).resumed);
}

#[test]
fn who_was_overtaken_while_it_waited_and_gives_up_takes_nobody_else_along() {
    let mut world = World::default();
    enter(&mut world, durable(1, None));
    world.arrive(&key(), 2, false);
    world.arrive(&key(), 3, false);
    world.give_up(&key(), 2);
    world.leave(&key(), 1, (Parting::Cut, 60), 0);
    assert_eq!(world.done(&key(), 1), Some(3));
}

#[test]
fn of_a_session_that_is_taken_away_a_will_is_stored_too() {
    for (durable_, will, stored) in [(false, None, false), (false, Some((7, 0)), true), (true, None, true)] {
        let mut world = World::default();
        enter(&mut world, Entrance { durable: durable_, ..durable(1, will) });
        let revoked = world.revoke("romeo@localhost");
        assert_eq!((revoked.len(), revoked[0].stored, world.all.len()), (1, stored, 0));
    }
}

#[test]
fn a_disconnect_in_order_drops_the_will_and_an_expiry_of_nothing_ends_the_session() {
    let mut world = World::default();
    enter(&mut world, durable(1, Some((7, 0))));
    let left = world.leave(&key(), 1, (Parting::InOrder, 60), 0).unwrap();
    assert_eq!((left.will, left.will_gone, left.ended), (None, true, None));
    world.done(&key(), 1);
    enter(&mut world, durable(2, Some((8, 40))));
    let left = world.leave(&key(), 2, (Parting::Cut, 0), 0).unwrap();
    assert_eq!((left.will, left.ended), (Some(8), Some(1)));
    assert!(world.all.is_empty());
}

/// What a will has still to come to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    With(LinkId),
    Between(u64, u64),
    Dropped,
    Published,
}

/// A storm of connections on one key, and what the standard says of their wills.
#[derive(Default)]
struct Storm {
    world: World,
    now_ms: u64,
    links: u64,
    holder: Option<(LinkId, u32)>,
    undone: Vec<LinkId>,
    next: Option<LinkId>,
    wills: BTreeMap<u64, Fate>,
    delays: HashMap<u64, u32>,
}

impl Storm {
    fn arrives(&mut self, link: LinkId, clean: bool, (expiry, delay): (u32, Option<u32>)) {
        match self.world.arrive(&key(), link, clean) {
            Arrival::Enter => self.enters(link, clean, (expiry, delay)),
            Arrival::Wait(_, overtaken) => {
                assert_eq!(self.next.replace(link), overtaken);
                self.wake(overtaken);
            }
            Arrival::Outdated => {}
        }
    }

    fn enters(&mut self, link: LinkId, clean: bool, (expiry, delay): (u32, Option<u32>)) {
        let will = delay.map(|delay| (link, delay));
        let entrance = Entrance { clean, durable: expiry > 0, ..durable(link, will) };
        let entered = enter(&mut self.world, entrance);
        for fate in self.wills.values_mut() {
            match *fate {
                // A clean start ends the session; one that resumes is in time, for the end is looked at first.
                Fate::With(_) => *fate = Fate::Between(self.now_ms, self.now_ms),
                Fate::Between(..) if entered.resumed => *fate = Fate::Dropped,
                Fate::Between(..) => *fate = Fate::Between(self.now_ms, self.now_ms),
                _ => {}
            }
        }
        entered.will.into_iter().for_each(|will| self.is_published(will));
        if let Some(delay) = delay {
            self.wills.insert(link, Fate::With(link));
            self.delays.insert(link, delay);
        }
        self.holder = Some((link, expiry));
        self.undone.push(link);
        self.next = None;
        self.wake(entered.woken);
    }

    fn leaves(&mut self, parting: Parting) {
        let Some((link, expiry)) = self.holder.take() else { return };
        let resumable = expiry > 0;
        for fate in self.wills.values_mut().filter(|fate| **fate == Fate::With(link)) {
            let delay = u64::from(self.delays[&link].min(expiry)) * 1000;
            *fate = match parting {
                Parting::InOrder => Fate::Dropped,
                Parting::Cut if resumable && delay > 0 && self.next.is_some() => Fate::Dropped,
                Parting::Cut if resumable => Fate::Between(self.now_ms + delay, self.now_ms + delay),
                Parting::Cut => Fate::Between(self.now_ms, self.now_ms),
            };
        }
        let left = self.world.leave(&key(), link, (parting, expiry), self.now_ms).unwrap();
        left.will.into_iter().for_each(|will| self.is_published(will));
        self.wake(left.woken);
    }

    fn wake(&mut self, woken: impl IntoIterator<Item = LinkId>) {
        for link in woken {
            self.arrives(link, false, (60, None));
        }
    }

    fn is_done(&mut self) {
        let over = |link: &LinkId| self.holder.is_none_or(|(holder, _)| holder != *link);
        let Some(at) = self.undone.iter().position(over) else { return };
        let link = self.undone.remove(at);
        let next = self.world.done(&key(), link);
        self.wake(next);
    }

    fn gives_up(&mut self) {
        let Some(link) = self.next.take() else { return };
        self.world.give_up(&key(), link);
        self.looks();
    }

    fn passes(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while let Some(at) = self.world.next_deadline().filter(|at| *at <= until) {
            self.now_ms = self.now_ms.max(at);
            self.looks();
        }
        self.now_ms = until;
    }

    fn looks(&mut self) {
        while let Some(due) = self.world.due(self.now_ms) {
            match due {
                Due::Will { will, .. } => self.is_published(will),
                Due::End { will, .. } => will.into_iter().for_each(|will| self.is_published(will)),
            }
        }
    }

    fn is_published(&mut self, will: u64) {
        let fate = self.wills.insert(will, Fate::Published).unwrap();
        let Fate::Between(from, to) = fate else { panic!("{will} is published, though {fate:?}") };
        // Whoever waited in line held it back.
        assert!(from <= self.now_ms && (self.now_ms <= to || self.links > will), "{will} at {}: {fate:?}", self.now_ms);
    }

    fn is_sound(&self) {
        let entry = self.world.all.get(&key());
        assert!(self.world.deadlines.len() <= self.world.all.len());
        assert_eq!(entry.and_then(Entry::holder), self.holder.map(|(link, _)| link));
        assert_eq!(entry.and_then(|entry| entry.next), self.next);
        assert!(self.next.is_none() || entry.unwrap().busy.is_some(), "who waits, waits for somebody");
    }

    fn suffers(&mut self, action: u8, choice: u8) {
        let expiry = [0, 5, 60, NEVER][usize::from(choice) % 4];
        let delay = [None, Some(0), Some(3), Some(100)][usize::from(choice / 4) % 4];
        match action {
            0..=3 => {
                self.links += 1;
                self.arrives(self.links, choice >= 128, (expiry, delay));
            }
            4 | 5 => self.leaves(Parting::Cut),
            6 => self.leaves(Parting::InOrder),
            7 | 8 => self.is_done(),
            9 => self.gives_up(),
            _ => self.passes(u64::from(choice) * 40),
        }
        self.is_sound();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn each_will_comes_once_in_time_and_nothing_is_left(
        weather in proptest::collection::vec((0u8..12, any::<u8>()), 0..120)
    ) {
        let mut storm = Storm::default();
        for (action, choice) in weather {
            storm.suffers(action, choice);
        }
        while storm.holder.is_some() || !storm.undone.is_empty() {
            storm.leaves(Parting::Cut);
            storm.is_done();
            storm.is_sound();
        }
        storm.passes(200_000);
        prop_assert_eq!(storm.world.next_deadline(), None);
        let open = |fate: &&Fate| !matches!(fate, Fate::Dropped | Fate::Published);
        prop_assert_eq!(storm.wills.values().find(open), None);
    }
}
