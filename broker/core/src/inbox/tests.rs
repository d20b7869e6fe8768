//! A managed receiver whose connection is cut and resumed at any moment (XEP-0198 §5), against a model.

use super::*;
use crate::mailbox::Weigh;
use proptest::prelude::*;
use std::collections::VecDeque;
use tavi_xmpp_proto::{sm::StreamManagement, stanza::Stanza};

#[derive(Clone, Debug)]
enum Step {
    /// Somebody writes.
    Push,
    /// The session takes what may leave, up to so many bytes, and writes it.
    Write(usize),
    /// The client reads so many stanzas.
    Read(usize),
    /// It acknowledges what it has read.
    Acknowledge,
    /// What was written and not read is lost; the client resumes.
    Resume,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Push),
        3 => (1..2_000usize).prop_map(Step::Write),
        3 => (1..5usize).prop_map(Step::Read),
        2 => Just(Step::Acknowledge),
        1 => Just(Step::Resume),
    ]
}

struct World {
    inbox: Inbox,
    management: StreamManagement<u64>,
    wire: VecDeque<Envelope>,
    pushed: u32,
    heard: Vec<String>,
}

impl World {
    fn new() -> World {
        let inbox = Inbox::new(Bound { items: 1_000, bytes: 1 << 20 }, Arc::new(IdSource::new(0, 0)));
        inbox.manage(Bound { items: 4, bytes: 1_500 });
        World { inbox, management: StreamManagement::new(), wire: VecDeque::new(), pushed: 0, heard: Vec::new() }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Push => {
                let xml = format!("<message><body>{}</body></message>", self.pushed);
                self.pushed += 1;
                self.inbox.push(Stanza::parse(xml.as_bytes()).unwrap().into()).unwrap();
            }
            Step::Write(bytes) => self.write(bytes),
            Step::Read(count) => {
                let count = count.min(self.wire.len());
                self.heard.extend(self.wire.drain(..count).filter_map(|envelope| envelope.stanza.body()));
            }
            Step::Acknowledge => self.acknowledge(),
            Step::Resume => {
                self.wire.clear();
                self.acknowledge();
                self.wire.extend(self.inbox.sent().into_iter().map(|(_, envelope)| envelope));
            }
        }
        assert!(self.inbox.sent().len() <= 4, "the window holds");
        assert_eq!(self.inbox.sent().len(), self.management.waiting());
    }

    fn write(&mut self, bytes: usize) {
        let mut taken = Vec::new();
        let _ = self.inbox.poll_take(&mut Context::from_waker(Waker::noop()), bytes, &mut taken);
        for (place, envelope) in taken {
            self.management.sent(place);
            self.wire.push_back(envelope);
        }
    }

    fn acknowledge(&mut self) {
        for place in self.management.acknowledge(self.heard.len() as u32).unwrap() {
            assert!(self.inbox.acknowledge(place).is_some());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn each_stanza_is_heard_once_and_in_order_over_cuts(steps in prop::collection::vec(step(), 0..40)) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        while world.heard.len() < world.pushed as usize {
            [Step::Write(500), Step::Read(1), Step::Acknowledge].into_iter().for_each(|step| world.step(step));
        }
        prop_assert_eq!(&world.heard, &(0..world.pushed).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}

fn said(text: &str) -> Envelope {
    Stanza::parse(format!("<message><body>{text}</body></message>").as_bytes()).unwrap().into()
}

#[test]
fn who_hands_over_a_long_list_waits_for_room_for_the_next_item() {
    let inbox = Inbox::new(Bound { items: 10, bytes: 4_000 }, Arc::new(IdSource::new(0, 0)));
    let cx = Context::from_waker(Waker::noop());
    let large = said(&"x".repeat(4_000));
    assert!(inbox.poll_space(large.weight(), &cx).is_ready(), "nothing waits: it takes anything");
    inbox.push(said("small")).unwrap();
    assert!(inbox.poll_space(0, &cx).is_ready());
    assert!(inbox.push(large.clone()).is_err());
    assert!(inbox.poll_space(large.weight(), &cx).is_pending(), "to try again at once would help nobody");
    assert_eq!(inbox.take().len(), 1);
    assert!(inbox.poll_space(large.weight(), &cx).is_ready());
    inbox.push(large).unwrap();
}

#[test]
fn what_another_session_has_settled_holds_nobody_up() {
    for managed in [true, false] {
        let inbox = Inbox::new(Bound { items: 10, bytes: 1 << 20 }, Arc::new(IdSource::new(0, 0)));
        if managed {
            inbox.manage(Bound { items: 10, bytes: 1 << 20 });
        }
        let stored = inbox.reserve().unwrap();
        inbox.push(said("behind it")).unwrap();
        assert!(inbox.take().is_empty());
        inbox.settled(stored);
        assert_eq!(inbox.take().len(), 1, "managed: {managed}");
    }
}

fn presence(from: &str, status: usize) -> Envelope {
    let xml = format!("<presence from='{from}'><status>{status}</status></presence>");
    Stanza::parse(xml.as_bytes()).unwrap().into()
}

#[test]
fn of_the_presences_of_many_the_last_of_each_stays() {
    let inbox = Inbox::new(Bound { items: 50, bytes: 1 << 20 }, Arc::new(IdSource::new(0, 0)));
    inbox.push(said("first")).unwrap();
    for status in 0..1_000 {
        for friend in ["a@x/1", "a@x/2", "b@x/1"] {
            inbox.push_or_close(presence(friend, status));
        }
        if status == 500 {
            inbox.push(said("between")).unwrap();
        }
    }
    assert_eq!(inbox.closed(), None);
    let texts: Vec<String> = inbox.take().iter().map(|envelope| format!("{:?}", envelope.to_bytes())).collect();
    assert!(texts.len() <= 50);
    let at = |what: &str| texts.iter().position(|text| text.contains(what));
    assert_eq!(at("first"), Some(0), "messages stay where they were");
    assert!(at("between").is_some());
    for friend in ["a@x/1", "a@x/2", "b@x/1"] {
        let last = texts.iter().rfind(|text| text.contains(friend)).unwrap();
        assert!(last.contains(">999<"), "{last}");
    }
}

#[test]
fn requests_of_contacts_are_not_thinned_out_and_too_many_senders_end_it() {
    let inbox = Inbox::new(Bound { items: 50, bytes: 1 << 20 }, Arc::new(IdSource::new(0, 0)));
    for _ in 0..10 {
        inbox.push(Stanza::parse(b"<presence from='a@x' type='subscribe'/>").unwrap().into()).unwrap();
    }
    (0..100).for_each(|n| inbox.push_or_close(presence(&format!("a@x/{n}"), 0)));
    assert_eq!(inbox.closed(), Some(Closed::Overflow));
    let asked = inbox.take().iter().filter(|envelope| envelope.own_presence().is_none()).count();
    assert_eq!(asked, 10);
}

#[test]
fn headlines_and_copies_without_room_are_dropped_and_end_nobody() {
    let metrics = Arc::new(Metrics::default());
    let inbox = Inbox::new(Bound { items: 10, bytes: 1 << 20 }, Arc::new(IdSource::new(0, 0)))
        .counted(metrics.clone(), Protocol::Xmpp);
    let headline = || -> Envelope { Stanza::parse(b"<message to='b@x' type='headline'/>").unwrap().into() };
    (0..50).for_each(|_| inbox.push_or_close(headline()));
    (0..50).for_each(|n| inbox.push_or_close(said(&n.to_string()).as_copy()));
    let dropped = || metrics.messages(Protocol::Xmpp, Outcome::Dropped).get();
    assert_eq!((inbox.len(), inbox.closed(), dropped()), (10, None, 90));
    // What says more finds room.
    inbox.push_or_close(presence("a@x/1", 0));
    inbox.push(said("a message")).unwrap();
    assert_eq!((inbox.len(), inbox.closed(), dropped()), (2, None, 100));
    // Whoever has no room for what cannot be dropped is cut off as ever.
    (0..8).for_each(|n| inbox.push(said(&n.to_string())).unwrap());
    inbox.push_or_close(headline());
    assert_eq!((inbox.closed(), dropped()), (None, 101));
    inbox.push_or_close(presence("a@x/2", 0));
    assert_eq!((inbox.closed(), dropped()), (Some(Closed::Overflow), 101));
    inbox.push_or_close(headline());
    assert_eq!(dropped(), 101, "nobody is there");
}

#[test]
fn a_closed_one_takes_nothing_and_its_first_reason_stands() {
    let inbox = Inbox::new(Bound { items: 10, bytes: 1 << 20 }, Arc::new(IdSource::new(0, 0)));
    let coming = inbox.reserve().unwrap();
    inbox.push(said("before")).unwrap();
    inbox.close(Closed::Replaced);
    inbox.close(Closed::Gone);
    assert_eq!(inbox.closed(), Some(Closed::Replaced));
    assert!(inbox.push(said("after")).is_err() && inbox.landed(coming, said("coming")).is_err());
    assert!(inbox.reserve().is_none() && !inbox.coming(7) && inbox.wants().is_none());
    inbox.failed(coming);
    assert_eq!(inbox.take().len(), 1, "what waited can still be received");
}

#[test]
fn what_has_a_place_stands_there_whenever_it_comes() {
    let inbox = Inbox::new(Bound { items: 10, bytes: 1 << 20 }, Arc::new(IdSource::new(0, 0)));
    let [first, second] = [inbox.ids.next(0), inbox.ids.next(0)];
    for (place, text) in [(second, "2"), (first, "1")] {
        let mut envelope = said(text);
        envelope.meta.place = place;
        inbox.push(envelope).unwrap();
    }
    let bodies: Vec<_> = inbox.take().iter().filter_map(|envelope| envelope.stanza.body()).collect();
    assert_eq!(bodies, ["1", "2"]);
}

/// Counts how often it is woken.
#[derive(Default)]
struct Count(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn who_waits_for_room_is_woken_when_something_leaves_and_waits_for_no_connection() {
    let inbox = Inbox::new(Bound { items: 4, bytes: 1 << 20 }, Arc::new(IdSource::new(0, 0)));
    let count = Arc::new(Count::default());
    let (waker, woken) = (Waker::from(count.clone()), || count.0.load(std::sync::atomic::Ordering::Relaxed));
    let mut cx = Context::from_waker(&waker);
    for _ in 0..2 {
        inbox.push(said("waits")).unwrap();
    }
    assert!(inbox.poll_room(&mut cx).is_pending() && inbox.poll_space(0, &cx).is_pending());
    assert_eq!((inbox.take().len(), woken()), (2, 2));
    assert!(inbox.poll_room(&mut cx).is_ready() && inbox.poll_space(0, &cx).is_ready());
    for _ in 0..2 {
        inbox.push(said("waits")).unwrap();
    }
    assert!(inbox.poll_room(&mut cx).is_pending());
    inbox.detach();
    assert_eq!(woken(), 3);
    assert!(inbox.poll_room(&mut cx).is_ready(), "nobody takes anything");
    inbox.attach();
    assert!(inbox.poll_room(&mut cx).is_pending());
}
