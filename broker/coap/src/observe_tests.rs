//! Dialogues of observations in virtual time (RFC 7641).

use super::*;
use bytes::Bytes;
use proptest::prelude::*;

struct Dialogue {
    observers: Observers,
    now: Instant,
    unix_ms: u64,
    next_id: u16,
    there: HashMap<String, Update>,
}

const SECOND: Duration = Duration::from_secs(1);

fn peer(port: u16) -> PeerId {
    PeerId::Udp(([127, 0, 0, 1], port).into())
}

fn lamp(token: u8) -> Observer {
    Observer { peer: peer(4000), token: Token::new(&[token]) }
}

fn value(version: u64, body: &'static [u8]) -> Representation {
    Representation { version, format: Some(0), body: Bytes::from_static(body), expires_ms: None }
}

/// A notification that went out: its id, type, code, Observe number and payload.
#[derive(Debug)]
struct Seen {
    id: u16,
    kind: Kind,
    code: Code,
    number: Option<u32>,
    body: Vec<u8>,
    observer: Observer,
}

impl Dialogue {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self {
            observers: Observers::new(limits),
            now: Instant::now(),
            unix_ms: 1_000_000,
            next_id: 0,
            there: HashMap::new(),
        }
    }

    fn registers(&mut self, observer: Observer, topic: &str) -> bool {
        let registration = Registration { topic: topic.into(), value: value(1, b"first"), size: BlockSize::MAX };
        self.observers.register(self.now, observer, registration)
    }

    fn publishes(&mut self, topic: &str, version: u64, body: &'static [u8]) {
        let update = Update::Value(value(version, body));
        self.observers.changed(topic, &update);
        self.there.insert(topic.to_owned(), update);
    }

    fn sees(&mut self) -> Option<Seen> {
        let notification = self.observers.poll_notification(self.now, self.unix_ms)?;
        self.next_id += 1;
        let message = notification.message;
        self.observers.sent(self.now, (notification.observer, notification.kind), self.next_id);
        Some(Seen {
            id: self.next_id,
            kind: notification.kind,
            code: message.code(),
            number: message.uint(option::OBSERVE),
            body: message.payload().to_vec(),
            observer: notification.observer,
        })
    }

    fn acknowledges(&mut self, seen: &Seen) {
        self.observers.acknowledged(self.now, (seen.observer.peer, seen.id), Some(Duration::from_millis(1)));
    }

    fn passes(&mut self, time: Duration) {
        self.now += time;
        self.unix_ms += time.as_millis() as u64;
        while let Some((observer, topic)) = self.observers.poll_refresh(self.now) {
            if let Some(update) = self.there.get(&*topic) {
                self.observers.refresh(observer, update);
            }
        }
    }

    /// Registers and gets the first confirmable notification through, so that the peer's round trip is known.
    fn proven(&mut self, observer: Observer, topic: &str) {
        self.registers(observer, topic);
        self.publishes(topic, 2, b"second");
        let seen = self.sees().unwrap();
        assert_eq!(seen.kind, Kind::Confirmable);
        self.acknowledges(&seen);
    }
}

#[test]
fn the_first_notification_is_confirmable_and_the_next_are_not() {
    let mut d = Dialogue::new();
    d.proven(lamp(1), "a");
    d.publishes("a", 3, b"third");
    let seen = d.sees().unwrap();
    assert_eq!((seen.kind, seen.code, seen.body.as_slice()), (Kind::NonConfirmable, Code::CONTENT, &b"third"[..]));
}

#[test]
fn while_one_is_unacknowledged_the_newest_value_waits_and_replaces_older_ones() {
    let mut d = Dialogue::new();
    d.registers(lamp(1), "a");
    d.publishes("a", 2, b"second");
    let first = d.sees().unwrap();
    d.publishes("a", 3, b"third");
    d.publishes("a", 5, b"fifth");
    d.publishes("a", 4, b"fourth, late");
    assert!(d.sees().is_none());
    d.acknowledges(&first);
    let second = d.sees().unwrap();
    assert_eq!(second.body, b"fifth");
    assert!(second.number > first.number);
    assert!(d.sees().is_none());
}

#[test]
fn two_observations_of_one_peer_share_its_pace_and_take_turns() {
    let mut d = Dialogue::new();
    d.proven(lamp(1), "a");
    d.registers(lamp(2), "b");
    for version in [3, 4] {
        d.publishes("a", version, b"a");
        d.publishes("b", version, b"b");
    }
    let turns = std::iter::from_fn(|| {
        let seen = d.sees();
        seen.iter().for_each(|seen| d.acknowledges(seen));
        d.passes(Duration::from_millis(1));
        seen.map(|seen| seen.body)
    });
    let turns: Vec<_> = turns.collect();
    assert_eq!(turns, [b"a", b"b"]);
}

#[test]
fn non_confirmable_ones_go_once_per_round_trip() {
    let mut d = Dialogue::new();
    d.proven(lamp(1), "a");
    d.publishes("a", 3, b"third");
    assert!(d.sees().is_some());
    d.publishes("a", 4, b"fourth");
    assert!(d.sees().is_none());
    assert_eq!(d.observers.poll_timeout(), Some(d.now + Duration::from_millis(1)));
    d.passes(Duration::from_millis(1));
    assert_eq!(d.sees().unwrap().body, b"fourth");
}

#[test]
fn every_twentieth_and_one_in_a_minute_is_confirmable() {
    let mut d = Dialogue::new();
    d.proven(lamp(1), "a");
    let mut kinds = Vec::new();
    for version in 3..43 {
        d.publishes("a", version, b"x");
        let seen = d.sees().unwrap();
        if seen.kind == Kind::Confirmable {
            d.acknowledges(&seen);
        }
        kinds.push(seen.kind == Kind::Confirmable);
        d.passes(SECOND);
    }
    assert_eq!(kinds.iter().filter(|confirmable| **confirmable).count(), 2);
    d.passes(CONFIRM_AFTER);
    d.publishes("a", 100, b"x");
    assert_eq!(d.sees().unwrap().kind, Kind::Confirmable);
}

#[test]
fn a_quiet_topic_is_refreshed_before_its_value_grows_stale() {
    let mut d = Dialogue::new();
    d.proven(lamp(1), "a");
    d.passes(REFRESH - SECOND);
    assert!(d.sees().is_none());
    d.passes(SECOND);
    let seen = d.sees().unwrap();
    assert_eq!((seen.kind, seen.body.as_slice()), (Kind::Confirmable, &b"second"[..]));
    assert!(REFRESH.as_secs() < u64::from(MAX_AGE));
    d.acknowledges(&seen);
    assert_eq!(d.observers.poll_timeout(), Some(d.now + REFRESH));
}

#[test]
fn a_refresh_says_what_the_topic_has_now_and_never_something_older() {
    let mut d = Dialogue::new();
    d.proven(lamp(1), "a");
    d.there.insert("a".to_owned(), Update::Value(value(1, b"first, read late")));
    d.passes(REFRESH);
    let seen = d.sees().unwrap();
    assert_eq!(seen.body, b"second");
    d.acknowledges(&seen);
    d.there.insert("a".to_owned(), Update::Value(value(9, b"missed")));
    d.passes(REFRESH);
    let seen = d.sees().unwrap();
    assert_eq!(seen.body, b"missed");
    d.acknowledges(&seen);
    d.there.insert("a".to_owned(), Update::Cleared(u64::MAX));
    d.passes(REFRESH);
    assert_eq!(d.sees().unwrap().code, Code::NOT_FOUND, "its value expired");
    assert!(d.observers.is_empty());
}

#[test]
fn a_reset_or_silence_ends_the_observation() {
    let mut d = Dialogue::new();
    d.proven(lamp(1), "a");
    d.publishes("a", 3, b"third");
    let non = d.sees().unwrap();
    d.observers.lost(d.now, (non.observer.peer, non.id));
    assert_eq!((d.observers.len(), d.observers.poll_unwatched().as_deref()), (0, Some("a")));

    d.registers(lamp(2), "a");
    d.publishes("a", 4, b"fourth");
    let con = d.sees().unwrap();
    d.observers.lost(d.now, (con.observer.peer, con.id));
    assert!(d.observers.is_empty() && d.observers.flows.is_empty() && d.observers.due.is_empty());
    assert_eq!(d.observers.poll_timeout(), None);
}

#[test]
fn a_reset_of_something_else_ends_nothing() {
    let mut d = Dialogue::new();
    d.proven(lamp(1), "a");
    d.observers.lost(d.now, (lamp(1).peer, 999));
    assert_eq!(d.observers.len(), 1);
}

#[test]
fn the_end_of_a_value_or_of_a_permission_is_told_and_ends_the_observation() {
    for (update, code) in [(Update::Cleared(3), Code::NOT_FOUND), (Update::End(Code::UNAUTHORIZED), Code::UNAUTHORIZED)]
    {
        let mut d = Dialogue::new();
        d.proven(lamp(1), "a");
        d.observers.changed("a", &update);
        d.publishes("a", 4, b"too late");
        let seen = d.sees().unwrap();
        assert_eq!((seen.kind, seen.code, seen.number), (Kind::Confirmable, code, None));
        assert!(d.observers.is_empty() && !d.observers.watches("a"));
        d.acknowledges(&seen);
        assert!(d.observers.flows.is_empty());
    }
}

#[test]
fn the_format_of_the_first_answer_stays_or_the_observation_ends() {
    let mut d = Dialogue::new();
    d.proven(lamp(1), "a");
    let json = Representation { format: Some(50), ..value(3, b"{}") };
    d.observers.changed("a", &Update::Value(json.clone()));
    assert_eq!(d.sees().unwrap().code, Code::NOT_ACCEPTABLE);
    assert!(d.observers.is_empty());

    let mut d = Dialogue::new();
    let untyped = Representation { format: None, ..value(1, b"1") };
    d.observers.register(d.now, lamp(1), Registration { topic: "a".into(), value: untyped, size: BlockSize::MAX });
    d.observers.changed("a", &Update::Value(json));
    let notification = d.observers.poll_notification(d.now, d.unix_ms).unwrap();
    assert_eq!((notification.message.payload(), notification.message.uint(option::CONTENT_FORMAT)), (&b"{}"[..], None));
}

#[test]
fn a_clearing_that_is_older_than_the_value_ends_nothing() {
    let mut d = Dialogue::new();
    d.proven(lamp(1), "a");
    d.observers.changed("a", &Update::Cleared(1));
    assert!(d.sees().is_none());
}

#[test]
fn registering_again_renews_and_bounds_hold() {
    let mut d = Dialogue::with(Limits { per_peer: 2, all: 3 });
    assert!(d.registers(lamp(1), "a") && d.registers(lamp(1), "b") && d.registers(lamp(2), "b"));
    assert_eq!((d.observers.len(), d.observers.watches("a")), (2, false));
    assert!(!d.registers(lamp(3), "b"), "two for one peer");
    let other = |port| Observer { peer: peer(port), ..lamp(1) };
    assert!(d.registers(other(1), "b") && !d.registers(other(2), "b"), "three in all");
    d.observers.remove(lamp(1));
    assert!(d.registers(other(2), "b"));
}

#[test]
fn numbers_grow_also_over_a_restart() {
    let mut before = Observers::new(Limits::default());
    let drawn: Vec<_> = (0..5).map(|_| before.draw_number(0x0100_0010)).collect();
    assert_eq!(drawn, [0x10, 0x11, 0x12, 0x13, 0x14]);
    let mut after = Observers::new(Limits::default());
    assert!(after.draw_number(0x0100_0010 + 500) > drawn[4]);
}

#[test]
fn a_large_value_is_notified_with_its_first_block_at_the_size_asked_for() {
    let mut d = Dialogue::new();
    let size = BlockSize::from_exponent(2).unwrap();
    let registration = Registration { topic: "a".into(), value: value(1, b""), size };
    d.observers.register(d.now, lamp(1), registration);
    d.publishes("a", 2, &[7; 100]);
    let notification = d.observers.poll_notification(d.now, d.unix_ms).unwrap();
    let block = Block::parse(notification.message.value(option::BLOCK2).unwrap()).unwrap();
    assert_eq!((block.number, block.more, notification.message.payload().len()), (0, true, 64));
    assert_eq!(notification.message.uint(option::SIZE2), Some(100));
}

/// One thing that may happen to the observations.
#[derive(Clone, Debug)]
enum Step {
    Register(u8, u16, u8),
    Remove(u8, u16),
    Publish(u8),
    End(u8),
    Notify,
    Acknowledge,
    Lose,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..4, 1u16..4, 0u8..3).prop_map(|(token, port, topic)| Step::Register(token, port, topic)),
        (0u8..4, 1u16..4).prop_map(|(token, port)| Step::Remove(token, port)),
        (0u8..3).prop_map(Step::Publish),
        (0u8..3).prop_map(Step::End),
        Just(Step::Notify),
        Just(Step::Notify),
        Just(Step::Acknowledge),
        Just(Step::Lose),
        (0u64..100_000).prop_map(Step::Wait),
    ]
}

const TOPICS: [&str; 3] = ["a", "b", "c"];

impl Dialogue {
    fn does(&mut self, step: &Step, version: u64, waiting: &mut Vec<Seen>) {
        let at = |token: u8, port: u16| Observer { peer: peer(port), token: Token::new(&[token]) };
        match *step {
            Step::Register(token, port, topic) => drop(self.registers(at(token, port), TOPICS[usize::from(topic)])),
            Step::Remove(token, port) => self.observers.remove(at(token, port)),
            Step::Publish(topic) => self.publishes(TOPICS[usize::from(topic)], version, b"x"),
            Step::End(topic) => {
                self.observers.changed(TOPICS[usize::from(topic)], &Update::Cleared(version));
            }
            Step::Notify => waiting.extend(self.sees()),
            Step::Acknowledge => {
                let seen = waiting.pop();
                seen.iter().for_each(|seen| self.acknowledges(seen));
            }
            Step::Lose => {
                if let Some(seen) = waiting.pop() {
                    self.observers.lost(self.now, (seen.observer.peer, seen.id));
                }
            }
            Step::Wait(ms) => self.passes(Duration::from_millis(ms)),
        }
    }

    /// What must hold at every moment.
    fn holds(&self) {
        let o = &self.observers;
        assert_eq!(o.entries.len(), o.topics.values().map(Vec::len).sum::<usize>());
        assert_eq!(o.entries.len(), o.flows.values().map(|flow| flow.observers).sum::<usize>());
        assert_eq!(o.entries.len(), o.refresh.len());
        for (observer, entry) in &o.entries {
            let flow = &o.flows[&observer.peer];
            assert_eq!(entry.queued, flow.ready.contains(&observer.token), "{observer:?}");
        }
        for (peer, flow) in &o.flows {
            let can_go = !flow.ready.is_empty() && flow.unacknowledged.is_none();
            assert!(!can_go || o.due.contains(&(flow.scheduled, *peer)), "{peer} would wait for ever");
            assert!(flow.observers > 0 || flow.unacknowledged.is_some(), "{peer} is kept for nothing");
        }
        assert!(o.due.len() <= o.flows.len());
    }
}

proptest! {
    #[test]
    fn no_order_of_events_leaves_an_observer_waiting_or_anything_behind(
        steps in proptest::collection::vec(step(), 0..200)
    ) {
        let mut d = Dialogue::with(Limits { per_peer: 3, all: 6 });
        let mut waiting = Vec::new();
        for (version, step) in steps.iter().enumerate() {
            d.does(step, version as u64 + 10, &mut waiting);
            d.holds();
        }
        while let Some(seen) = waiting.pop() {
            d.observers.lost(d.now, (seen.observer.peer, seen.id));
            d.holds();
        }
        for observer in d.observers.all().copied().collect::<Vec<_>>() {
            d.observers.remove(observer);
        }
        d.holds();
        prop_assert!(d.observers.flows.is_empty() && d.observers.due.is_empty() && d.observers.topics.is_empty());
    }
}
