//! Topics as their users see them, over a store in memory.

use super::*;
use crate::{clock::FakeClock, permit::Grant};
use proptest::prelude::*;
use std::task::{Context, Poll, Waker};
use tavi_store::{MemoryStore, Op, Store};

mod values;

struct Reader {
    id: u64,
    who: Principal,
    seen: Mutex<Vec<String>>,
    keeps: bool,
    abandoned: Mutex<Vec<u64>>,
}

impl Subscriber for Reader {
    fn id(&self) -> u64 {
        self.id
    }
    fn principal(&self) -> &Principal {
        &self.who
    }
    fn store(&self, p: &Arc<Publication>, _: &[SubOptions]) -> Option<Rows> {
        self.keeps.then(|| (Owner::mqtt("reader", "one"), vec![Op::QueuePush { id: p.id, value: p.encode() }]))
    }
    fn deliver(&self, p: &Arc<Publication>, _: &[SubOptions]) {
        self.seen.lock().push(format!("{}={}", p.topic, String::from_utf8_lossy(&p.payload)));
    }
    fn abandon(&self, p: &Arc<Publication>) {
        self.abandoned.lock().push(p.id);
    }
}

struct World {
    topics: Arc<Topics>,
    permit: Arc<Permit>,
    store: Arc<MemoryStore>,
    clock: Arc<FakeClock>,
}

const NOW: u64 = 1_760_000_000_000;

async fn world() -> World {
    reopen(Arc::default()).await
}

async fn reopen(store: Arc<MemoryStore>) -> World {
    let permit = Arc::new(Permit::load(store.clone()).await.unwrap());
    let ids = Arc::new(IdSource::new(0, store.last_id()));
    let clock = Arc::new(FakeClock::at(NOW));
    let topics = Topics::load(store.clone(), permit.clone(), ids, clock.clone()).await.unwrap();
    World { topics: Arc::new(topics), permit, store, clock }
}

fn who(name: &str) -> Principal {
    Principal::Account(format!("{name}@localhost").parse().unwrap())
}

impl World {
    fn reader(&self, name: &str, keeps: bool) -> (Arc<Reader>, Arc<dyn Subscriber>) {
        let (id, who) = (self.topics.next_subscriber(), who(name));
        let reader = Reader { id, who, seen: Mutex::default(), keeps, abandoned: Mutex::default() };
        let reader = Arc::new(reader);
        (reader.clone(), reader)
    }

    async fn publish(&self, name: &str, topic: &str, value: &'static str, retain: bool) -> Result<(), Refusal> {
        let draft = Draft { topic: topic.into(), payload: value.into(), retain, ..Draft::default() };
        self.topics.publish(&who(name), draft)?.complete().await.unwrap();
        Ok(())
    }

    /// The oldest commit that waits fails.
    fn fail(&self) {
        self.store.refuse(StoreError::Unavailable("a test says so".into()));
    }

    async fn grant(&self, subject: &str, actions: &str, filter: &str) {
        let grant = Grant::new(self.permit.generation(), subject, actions.parse().unwrap(), filter).unwrap();
        self.permit.add(grant).await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_sees_what_its_filter_matches_once() {
    let world = world().await;
    let (reader, handle) = world.reader("romeo", false);
    world.topics.subscribe(&handle, "u/romeo/#", SubOptions::default()).unwrap();
    world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap();
    world.publish("romeo", "u/romeo/a", "1", false).await.unwrap();
    assert_eq!(*reader.seen.lock(), ["u/romeo/a=1"]);
    assert!(world.topics.unsubscribe(reader.id, "u/romeo/#"));
    assert!(world.topics.unsubscribe(reader.id, "u/romeo/+"));
    world.publish("romeo", "u/romeo/a", "2", false).await.unwrap();
    assert_eq!(reader.seen.lock().len(), 1);
}

#[tokio::test]
async fn strangers_are_refused_and_a_lost_grant_ends_deliveries_at_once() {
    let world = world().await;
    let (reader, handle) = world.reader("juliet", false);
    let refused = world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default());
    assert_eq!(refused.unwrap_err(), Refusal::Forbidden);
    assert_eq!(world.publish("juliet", "u/romeo/a", "1", false).await, Err(Refusal::Forbidden));
    world.grant("juliet@localhost", "subscribe", "u/romeo/#").await;
    world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap();
    world.publish("romeo", "u/romeo/a", "1", false).await.unwrap();
    world.permit.remove(|_| true).1.await.unwrap();
    world.publish("romeo", "u/romeo/a", "2", false).await.unwrap();
    assert_eq!(*reader.seen.lock(), ["u/romeo/a=1"]);
}

#[tokio::test]
async fn clearing_needs_delete_except_where_there_is_no_such_verb() {
    let world = world().await;
    world.publish("romeo", "u/romeo/a", "kept", true).await.unwrap();
    world.grant("juliet@localhost", "publish", "u/romeo/#").await;
    let clear = || Draft { topic: "u/romeo/a".into(), change: Change::Clear, ..Draft::default() };
    assert_eq!(world.topics.publish(&who("juliet"), clear()).err(), Some(Refusal::Forbidden));
    let by_mqtt = world.topics.publish_as(&who("juliet"), Action::Publish, clear()).unwrap();
    by_mqtt.complete().await.unwrap();
    assert!(world.topics.retained("u/romeo/a").is_empty());
}

#[tokio::test]
async fn who_may_only_subscribe_does_not_get_what_is_retained() {
    let world = world().await;
    world.publish("romeo", "u/romeo/a", "kept", true).await.unwrap();
    world.grant("juliet@localhost", "subscribe", "u/romeo/#").await;
    let (_, handle) = world.reader("juliet", false);
    assert!(world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap().retained.is_empty());
    world.grant("juliet@localhost", "retrieve", "u/romeo/a").await;
    assert_eq!(world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap().retained.len(), 1);
}

#[tokio::test]
async fn what_is_retained_is_read_by_those_who_may_retrieve_it_and_denied_topics_are_left_out() {
    let world = world().await;
    for (topic, value) in [("u/romeo/a", "1"), ("u/romeo/b", "2"), ("u/romeo/c", "3")] {
        world.publish("romeo", topic, value, true).await.unwrap();
    }
    world.grant("juliet@localhost", "subscribe", "u/romeo/#").await;
    world.grant("juliet@localhost", "retrieve", "u/romeo/+").await;
    world.grant("juliet@localhost", "!retrieve", "u/romeo/b").await;
    let listed = |who: &str| {
        let values = world.topics.listed(&self::who(who), None, 10).unwrap().values;
        values.iter().map(|value| value.topic.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(listed("juliet"), ["u/romeo/a", "u/romeo/c"]);
    assert_eq!(listed("paris"), [""; 0]);
    let (_, handle) = world.reader("juliet", false);
    let mut joined = world.topics.join(&handle, "u/romeo/#", SubOptions::default()).unwrap();
    assert_eq!(pull(&mut joined.retained), Poll::Ready(Some("1".into())));
    assert_eq!(pull(&mut joined.retained), Poll::Ready(Some("3".into())));
    assert_eq!(pull(&mut joined.retained), Poll::Ready(None));
    // Who may subscribe and not retrieve gets what comes, and nothing of what was.
    world.grant("paris@localhost", "subscribe", "u/romeo/#").await;
    let (reader, handle) = world.reader("paris", false);
    let mut joined = world.topics.join(&handle, "u/romeo/#", SubOptions::default()).unwrap();
    assert_eq!(pull(&mut joined.retained), Poll::Ready(None));
    world.publish("romeo", "u/romeo/b", "4", true).await.unwrap();
    assert_eq!(*reader.seen.lock(), ["u/romeo/b=4"]);
}

#[tokio::test]
async fn retained_values_survive_a_restart_and_end_when_cleared() {
    let world = world().await;
    world.publish("romeo", "u/romeo/a", "kept", true).await.unwrap();
    world.publish("romeo", "u/romeo/a", "passing", false).await.unwrap();
    let latest = world.topics.value(&who("romeo"), "u/romeo/a").unwrap().unwrap();
    assert_eq!(&*latest.payload, b"passing");

    let world = reopen(world.store).await;
    let value = world.topics.value(&who("romeo"), "u/romeo/a").unwrap().unwrap();
    assert_eq!(&*value.payload, b"kept");
    assert_eq!(world.topics.retained("u/+/a").len(), 1);
    let clear = Draft { topic: "u/romeo/a".into(), change: Change::Clear, ..Draft::default() };
    world.topics.publish(&who("romeo"), clear).unwrap().complete().await.unwrap();
    assert!(world.topics.value(&who("romeo"), "u/romeo/a").unwrap().is_none());
    assert!(reopen(world.store).await.topics.retained("#").is_empty());
}

#[tokio::test]
async fn a_durable_reader_s_row_is_saved_before_it_is_delivered() {
    let world = world().await;
    let (reader, handle) = world.reader("romeo", true);
    world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap();
    let draft = Draft { topic: "u/romeo/a".into(), payload: "x".into(), qos: Qos::AtLeastOnce, ..Draft::default() };
    let ticket = world.topics.publish(&who("romeo"), draft).unwrap();
    assert!(!ticket.is_ready() && reader.seen.lock().is_empty());
    ticket.complete().await.unwrap();
    assert_eq!(reader.seen.lock().len(), 1);
    assert_eq!(world.store.queue(&Owner::mqtt("reader", "one"), 0, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_older_publication_that_lands_late_changes_no_value() {
    let world = world().await;
    let draft =
        |v: &'static str| Draft { topic: "u/romeo/a".into(), payload: v.into(), retain: true, ..Draft::default() };
    let first = world.topics.publish(&who("romeo"), draft("old")).unwrap();
    let second = world.topics.publish(&who("romeo"), draft("new")).unwrap();
    second.complete().await.unwrap();
    first.complete().await.unwrap();
    let value = world.topics.value(&who("romeo"), "u/romeo/a").unwrap().unwrap();
    assert_eq!(&*value.payload, b"new");
}

#[tokio::test]
async fn no_local_keeps_one_s_own_publications_away() {
    let world = world().await;
    let (reader, handle) = world.reader("romeo", false);
    let options = SubOptions { no_local: true, ..SubOptions::default() };
    world.topics.subscribe(&handle, "u/romeo/+", options).unwrap();
    let draft = Draft { topic: "u/romeo/a".into(), from_session: reader.id, ..Draft::default() };
    world.topics.publish(&who("romeo"), draft).unwrap().complete().await.unwrap();
    assert!(reader.seen.lock().is_empty());
}

fn retained(value: impl Into<Bytes>) -> Draft {
    Draft { topic: "u/romeo/a".into(), payload: value.into(), retain: true, ..Draft::default() }
}

fn pull(stream: &mut RetainedStream) -> Poll<Option<String>> {
    let next = stream.poll_next(&mut Context::from_waker(Waker::noop()));
    next.map(|found| found.unwrap().map(|p| String::from_utf8_lossy(&p.payload).into_owned()))
}

#[tokio::test]
async fn who_joins_while_a_value_is_saved_waits_for_it() {
    let world = world().await;
    world.publish("romeo", "u/romeo/a", "old", true).await.unwrap();
    world.store.hold();
    let saving = world.topics.publish(&who("romeo"), retained("new")).unwrap();
    let (reader, handle) = world.reader("romeo", false);
    let mut joined = world.topics.join(&handle, "u/romeo/#", SubOptions::default()).unwrap();
    assert!(pull(&mut joined.retained).is_pending());
    assert!(world.store.release_at(0));
    assert!(pull(&mut joined.retained).is_pending(), "on the disk, but not landed");
    saving.complete().await.unwrap();
    assert_eq!(pull(&mut joined.retained), Poll::Ready(Some("new".into())));
    assert_eq!(pull(&mut joined.retained), Poll::Ready(None));
    assert!(reader.seen.lock().is_empty(), "it comes once");
}

#[tokio::test]
async fn a_first_value_that_is_being_saved_is_waited_for_too() {
    let world = world().await;
    world.store.hold();
    let saving = world.topics.publish(&who("romeo"), retained("first")).unwrap();
    let mut joined = ["u/romeo/a", "u/romeo/+"].map(|filter| {
        let (_, handle) = world.reader("romeo", false);
        world.topics.join(&handle, filter, SubOptions::default()).unwrap()
    });
    assert!(joined.iter_mut().all(|joined| pull(&mut joined.retained).is_pending()));
    world.fail();
    assert!(saving.complete().await.is_err());
    let ends = Poll::Ready(None);
    assert!(joined.iter_mut().all(|joined| pull(&mut joined.retained) == ends), "it was never saved");
}

#[tokio::test]
async fn what_was_delivered_since_is_not_handed_out_again() {
    let world = world().await;
    world.publish("romeo", "u/romeo/a", "old", true).await.unwrap();
    let (reader, handle) = world.reader("romeo", false);
    let mut joined = world.topics.join(&handle, "u/romeo/#", SubOptions::default()).unwrap();
    world.publish("romeo", "u/romeo/a", "new", true).await.unwrap();
    assert_eq!(*reader.seen.lock(), ["u/romeo/a=new"]);
    assert_eq!(pull(&mut joined.retained), Poll::Ready(None));
}

#[tokio::test]
async fn who_subscribes_at_once_gets_what_is_being_saved_as_a_delivery() {
    let world = world().await;
    world.publish("romeo", "u/romeo/a", "old", true).await.unwrap();
    world.store.hold();
    let saving = world.topics.publish(&who("romeo"), retained("new")).unwrap();
    let (live, handle) = world.reader("romeo", false);
    let (kept, durable) = world.reader("romeo", true);
    let found = world.topics.subscribe(&handle, "u/romeo/#", SubOptions::default()).unwrap();
    assert_eq!((found.retained.len(), &*found.retained[0].payload), (1, &b"old"[..]));
    let found = world.topics.subscribe(&durable, "u/romeo/#", SubOptions::default()).unwrap();
    assert!(!found.ticket.is_ready());
    while world.store.release_at(0) {}
    found.ticket.complete().await.unwrap();
    saving.complete().await.unwrap();
    assert_eq!(*live.seen.lock(), ["u/romeo/a=new"]);
    assert_eq!(*kept.seen.lock(), ["u/romeo/a=new"]);
    assert_eq!(world.store.queue(&Owner::mqtt("reader", "one"), 0, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn whoever_joins_while_a_value_is_saved_and_cannot_keep_it_is_told() {
    let world = world().await;
    world.store.hold();
    let saving = world.topics.publish(&who("romeo"), retained("new")).unwrap();
    let (kept, durable) = world.reader("romeo", true);
    let ticket = world.topics.listen(&durable, "u/romeo/#", SubOptions::default()).unwrap();
    assert!(world.store.release_at(0));
    world.fail();
    saving.complete().await.unwrap();
    assert!(ticket.complete().await.is_err());
    assert!(kept.seen.lock().is_empty());
    assert_eq!(kept.abandoned.lock().len(), 1, "its place in what it is owed is free again");
}

#[tokio::test]
async fn who_only_listens_gets_what_is_being_saved_and_nothing_older() {
    let world = world().await;
    world.publish("romeo", "u/romeo/b", "kept", true).await.unwrap();
    world.store.hold();
    let saving = world.topics.publish(&who("romeo"), retained("new")).unwrap();
    let failing = world.topics.publish(&who("romeo"), Draft { topic: "u/romeo/b".into(), ..retained("lost") }).unwrap();
    let (live, handle) = world.reader("romeo", false);
    assert!(world.topics.listen(&handle, "u/romeo/#", SubOptions::default()).unwrap().is_ready());
    assert!(world.store.release_at(0));
    world.fail();
    saving.complete().await.unwrap();
    assert!(failing.complete().await.is_err());
    assert_eq!(*live.seen.lock(), ["u/romeo/a=new"]);
}

#[tokio::test]
async fn who_listens_with_overlapping_filters_gets_what_is_being_saved_once() {
    for keeps in [false, true] {
        let world = world().await;
        let (before, first) = world.reader("romeo", keeps);
        world.topics.listen(&first, "u/romeo/+", SubOptions::default()).unwrap().complete().await.unwrap();
        world.store.hold();
        let saving = world.topics.publish(&who("romeo"), retained("new")).unwrap();
        let (during, second) = world.reader("romeo", keeps);
        let also = [(&first, "u/romeo/#"), (&second, "u/romeo/+"), (&second, "u/romeo/#")];
        let tickets = also.map(|(who, filter)| world.topics.listen(who, filter, SubOptions::default()).unwrap());
        world.store.release_all();
        saving.complete().await.unwrap();
        for ticket in tickets {
            ticket.complete().await.unwrap();
        }
        assert_eq!([before.seen.lock().len(), during.seen.lock().len()], [1, 1], "keeps rows: {keeps}");
    }
}

#[tokio::test]
async fn publications_of_a_topic_leave_in_the_order_in_which_they_were_begun() {
    let world = world().await;
    let (reader, handle) = world.reader("romeo", false);
    world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap();
    world.store.hold();
    let [first, second, third] = ["1", "2", "3"].map(|v| world.topics.publish(&who("romeo"), retained(v)).unwrap());
    world.fail();
    while world.store.release_at(0) {}
    third.complete().await.unwrap();
    assert!(reader.seen.lock().is_empty(), "it waits for those before it");
    assert!(first.complete().await.is_err());
    assert!(reader.seen.lock().is_empty(), "the first failed, the second is still being saved");
    second.complete().await.unwrap();
    assert_eq!(*reader.seen.lock(), ["u/romeo/a=2", "u/romeo/a=3"]);
    assert_eq!(&*world.topics.retained("u/romeo/a")[0].payload, b"3");
}

/// A reader whose first delivery takes until it is let go.
struct Slow {
    id: u64,
    who: Principal,
    seen: Mutex<Vec<std::thread::ThreadId>>,
    begun: std::sync::Barrier,
    go: std::sync::Barrier,
}

impl Subscriber for Slow {
    fn id(&self) -> u64 {
        self.id
    }
    fn principal(&self) -> &Principal {
        &self.who
    }
    fn deliver(&self, _: &Arc<Publication>, _: &[SubOptions]) {
        let mut seen = self.seen.lock();
        seen.push(std::thread::current().id());
        let is_first = seen.len() == 1;
        drop(seen);
        if is_first {
            self.begun.wait();
            self.go.wait();
        }
    }
}

#[tokio::test]
async fn nobody_publishes_faster_than_it_is_delivered_and_nobody_delivers_for_others_for_ever() {
    let world = world().await;
    let (begun, go) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    let slow = Slow { id: world.topics.next_subscriber(), who: who("romeo"), seen: Mutex::default(), begun, go };
    let slow = Arc::new(slow);
    let handle: Arc<dyn Subscriber> = slow.clone();
    world.topics.subscribe(&handle, "u/romeo/a", SubOptions::default()).unwrap();
    let publish = {
        let topics = world.topics.clone();
        move || topics.publish(&who("romeo"), Draft { topic: "u/romeo/a".into(), ..Draft::default() }).unwrap()
    };
    let (first, runtime) = (publish.clone(), tokio::runtime::Handle::current());
    let first = std::thread::spawn(move || {
        let (_runtime, mut ticket) = (runtime.enter(), first());
        assert!(ticket.poll_done(&mut Context::from_waker(Waker::noop())).is_ready(), "its own is delivered at once");
        std::thread::current().id()
    });
    slow.begun.wait();
    let mut behind: Vec<Ticket> = (0..5_000).map(|_| publish()).collect();
    let mut cx = Context::from_waker(Waker::noop());
    let open = behind.iter_mut().filter_map(|ticket| ticket.poll_done(&mut cx).is_pending().then_some(())).count();
    assert!(open > 4_900, "but for a few, what is not delivered is open: {open}");
    slow.go.wait();
    let first = first.join().unwrap();
    for ticket in behind {
        ticket.complete().await.unwrap();
    }
    let seen = slow.seen.lock();
    let of_first = seen.iter().filter(|thread| **thread == first).count();
    assert!(seen.len() == 5_001 && of_first <= 1_100, "{of_first} of {}", seen.len());
}

#[tokio::test]
async fn what_is_open_finds_its_topic_by_name_though_unused_ones_are_forgotten() {
    let world = world().await;
    let (reader, handle) = world.reader("romeo", false);
    world.topics.subscribe(&handle, "u/romeo/a", SubOptions::default()).unwrap();
    let publish = |value: &'static str| {
        let draft = Draft { topic: "u/romeo/a".into(), payload: value.into(), ..Draft::default() };
        world.topics.publish(&who("romeo"), draft).unwrap()
    };
    let (first, second) = (publish("1"), publish("2"));
    world.topics.places.forget_unused();
    second.complete().await.unwrap();
    assert!(reader.seen.lock().is_empty(), "the first one is open");
    world.topics.places.forget_unused();
    let third = publish("3");
    first.complete().await.unwrap();
    world.topics.places.forget_unused();
    third.complete().await.unwrap();
    assert_eq!(*reader.seen.lock(), ["u/romeo/a=1", "u/romeo/a=2", "u/romeo/a=3"]);
    world.topics.places.forget_unused();
    assert!(world.topics.places.known("u/romeo/a").is_none(), "nothing is open");
}

#[tokio::test]
async fn a_late_publication_with_an_older_id_changes_no_value_in_the_store_either() {
    let world = world().await;
    world.publish("romeo", "u/romeo/a", "first", true).await.unwrap();
    let late = world.topics.ids.next(NOW);
    world.publish("romeo", "u/romeo/a", "newer", true).await.unwrap();
    let draft = Draft { id: Some(late), ..retained("late") };
    world.topics.publish(&who("romeo"), draft).unwrap().complete().await.unwrap();
    assert_eq!(&*world.topics.retained("u/romeo/a")[0].payload, b"newer");
    let world = reopen(world.store).await;
    assert_eq!(&*world.topics.retained("u/romeo/a")[0].payload, b"newer");
}

#[tokio::test]
async fn of_a_group_one_member_receives() {
    let world = world().await;
    let readers: Vec<_> = (0..3).map(|_| world.reader("romeo", false)).collect();
    for (_, handle) in &readers {
        assert!(!world.topics.share(handle, "g", ("u/romeo/+", SubOptions::default())).unwrap());
    }
    let (alone, handle) = &readers[0];
    world.topics.subscribe(handle, "u/romeo/a", SubOptions::default()).unwrap();
    for _ in 0..6 {
        world.publish("romeo", "u/romeo/a", "x", false).await.unwrap();
    }
    let counts: Vec<usize> = readers.iter().map(|(reader, _)| reader.seen.lock().len()).collect();
    assert_eq!(counts, [6 + 2, 2, 2]);
    assert!(world.topics.unshare(alone.id, "g", "u/romeo/+") && !world.topics.unshare(alone.id, "g", "u/romeo/+"));
    assert_eq!(world.topics.counts().0, 3);
}

#[tokio::test]
async fn receivers_of_a_topic_are_kept_while_others_subscribe_elsewhere() {
    let world = world().await;
    let (_, handle) = world.reader("romeo", false);
    world.topics.subscribe(&handle, "u/romeo/a", SubOptions::default()).unwrap();
    let mut kept = None;
    let before = world.topics.receivers(&mut kept, "u/romeo/a").0;
    world.topics.subscribe(&handle, "u/romeo/b", SubOptions::default()).unwrap();
    world.topics.unsubscribe(handle.id(), "u/romeo/b");
    assert!(Arc::ptr_eq(&before, &world.topics.receivers(&mut kept, "u/romeo/a").0));
    world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap();
    assert!(!Arc::ptr_eq(&before, &world.topics.receivers(&mut kept, "u/romeo/a").0));
}

#[test]
fn places_are_bounded_by_bytes() {
    let places = Places::with_room(1 << 20);
    for n in 0..20_000 {
        let topic: Arc<str> = format!("t/{n}").into();
        let place = places.at(&topic);
        let mut state = place.state.lock();
        state.retained_id = 1;
        places.charge(&place, &state, topic.len());
    }
    let known = (0..20_000).filter(|n| places.known(&format!("t/{n}")).is_some()).count();
    assert!((1_000..6_000).contains(&known), "{known} places are left");
}

/// A step of the world in which readers come while values are being saved.
#[derive(Clone, Debug)]
enum Step {
    Publish,
    /// The oldest commit reaches the disk, or does not.
    Save(bool),
    /// A publisher looks whether its publication is saved.
    Poll(usize),
    Join(bool),
    Pull(usize),
    Forget,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Publish),
        4 => prop::bool::weighted(0.8).prop_map(Step::Save),
        4 => (0usize..8).prop_map(Step::Poll),
        2 => any::<bool>().prop_map(Step::Join),
        4 => (0usize..4).prop_map(Step::Pull),
        1 => Just(Step::Forget),
    ]
}

/// One who joined: what came, in its order, and what is still to be read.
struct Joiner {
    reader: Arc<Reader>,
    stream: Option<RetainedStream>,
}

impl Joiner {
    fn new(world: &World, filter: &str) -> Joiner {
        let (reader, handle) = world.reader("romeo", false);
        let joined = world.topics.join(&handle, filter, SubOptions::default()).unwrap();
        Joiner { reader, stream: Some(joined.retained) }
    }

    fn pull(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        match pull(stream) {
            Poll::Ready(Some(value)) => self.reader.seen.lock().push(format!("u/romeo/a={value}")),
            Poll::Ready(None) => self.stream = None,
            Poll::Pending => {}
        }
    }

    /// A value whose delivery was forgotten may come as the retained one again, at once behind itself.
    fn values(&self, forgotten: bool) -> Vec<usize> {
        let seen = self.reader.seen.lock();
        let mut values: Vec<usize> = seen.iter().map(|seen| seen["u/romeo/a=".len()..].parse().unwrap()).collect();
        if forgotten {
            values.dedup();
        }
        values
    }
}

/// Publications that were begun, and those that were acknowledged.
#[derive(Default)]
struct Publisher {
    count: usize,
    open: Vec<(usize, Ticket)>,
    landed: Vec<usize>,
}

impl Publisher {
    fn publish(&mut self, world: &World) {
        self.count += 1;
        self.open.push((self.count, world.topics.publish(&who("romeo"), retained(self.count.to_string())).unwrap()));
    }

    fn poll(&mut self, at: usize) {
        let Some((value, ticket)) = self.open.get_mut(at) else { return };
        if let Poll::Ready(result) = ticket.poll_done(&mut Context::from_waker(Waker::noop())) {
            self.landed.extend(result.is_ok().then_some(*value));
            drop(self.open.remove(at));
        }
    }
}

/// Each joiner sees values in their order, each once, none missing behind the first, and the kept one last.
async fn play(steps: Vec<Step>) {
    let world = world().await;
    world.store.hold();
    let (mut publisher, mut joiners, mut forgotten) = (Publisher::default(), Vec::<Joiner>::new(), false);
    for step in steps {
        match step {
            Step::Publish => publisher.publish(&world),
            Step::Save(true) => drop(world.store.release_at(0)),
            Step::Save(false) => world.fail(),
            Step::Poll(at) => publisher.poll(at),
            Step::Join(wild) => joiners.push(Joiner::new(&world, if wild { "u/romeo/#" } else { "u/romeo/a" })),
            Step::Pull(n) => joiners.get_mut(n).into_iter().for_each(Joiner::pull),
            Step::Forget => {
                forgotten = true;
                world.topics.places.forget_unused();
            }
        }
    }
    while world.store.release_at(0) {}
    while !publisher.open.is_empty() {
        publisher.poll(0);
    }
    let mut landed = publisher.landed;
    landed.sort_unstable();
    for joiner in &mut joiners {
        while joiner.stream.is_some() {
            joiner.pull();
        }
        let values = joiner.values(forgotten);
        let from = values.first().map_or(landed.len(), |first| landed.binary_search(first).unwrap());
        assert_eq!(values, landed[from..], "of {landed:?}");
        assert_eq!(values.last(), landed.last());
    }
    let kept = world.topics.retained("u/romeo/#").pop();
    assert_eq!(kept.map(|p| p.payload.to_vec()), landed.last().map(|last| last.to_string().into_bytes()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_joiner_misses_a_value_or_sees_an_older_one_last(steps in prop::collection::vec(step(), 1..40)) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(play(steps));
    }
}

#[tokio::test]
async fn a_wildcard_finds_all_that_comparing_each_topic_finds_in_order() {
    let world = world().await;
    let levels = ["a", "b", "a-b", "a!", ""];
    let mut topics: Vec<String> = Vec::new();
    for first in levels {
        for second in levels {
            topics.push(format!("u/romeo/{first}/{second}"));
            topics.push(format!("u/romeo/{first}/{second}/z"));
        }
    }
    topics.extend((0..300).map(|n| format!("u/romeo/n/{n}")));
    topics.sort();
    for topic in &topics {
        world.publish("romeo", topic, "v", true).await.unwrap();
    }
    world.topics.places.forget_unused();
    for filter in ["u/romeo/#", "u/romeo/+/b", "u/romeo/a/#", "u/romeo/+/+/z", "u/romeo/n/+", "u/romeo/+/+"] {
        let mut stream = world.topics.read_retained(filter);
        let mut found = Vec::new();
        while let Some(publication) = stream.next().await.unwrap() {
            found.push(publication.topic.to_string());
        }
        let all: Vec<String> = topics.iter().filter(|t| tavi_wire::topic::matches(filter, t)).cloned().collect();
        assert_eq!(found, all, "{filter}");
        assert_eq!(world.topics.retained(filter).len(), all.len());
    }
    assert_eq!(world.topics.counts().1, topics.len());
}

#[tokio::test]
async fn a_list_shows_what_may_be_read_page_by_page() {
    let world = world().await;
    for (owner, count) in [("romeo", 300), ("juliet", 300)] {
        for n in 0..count {
            world.publish(owner, &format!("u/{owner}/{n:03}"), "v", true).await.unwrap();
        }
    }
    world.grant("romeo@localhost", "retrieve", "u/juliet/100").await;
    let (mut seen, mut after) = (Vec::new(), None::<Box<str>>);
    loop {
        let page = world.topics.listed_whole(&who("romeo"), after.as_deref(), 50).await.unwrap();
        seen.extend(page.values.iter().map(|p| p.topic.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((seen.len(), &*seen[0]), (301, "u/juliet/100"));
    assert!(seen.is_sorted());
}

/// Publishes what expires in a second.
async fn publish_passing(world: &World, topic: &str) {
    let properties = Properties { expires_ms: Some(NOW + 1_000), ..Properties::default() };
    let draft = Draft {
        topic: topic.into(),
        payload: "v".into(),
        retain: true,
        properties: Some(Box::new(properties)),
        ..Draft::default()
    };
    world.topics.publish(&who("romeo"), draft).unwrap().complete().await.unwrap();
}

async fn tidy_all(tidy: &mut Tidy) {
    while tidy.step().await.unwrap().as_millis() < 1_000 {}
}

#[tokio::test]
async fn expired_values_go_and_newer_ones_stay_and_lists_walk_over_few_of_them() {
    let world = world().await;
    for n in 0..3_000 {
        publish_passing(&world, &format!("u/romeo/{n:04}")).await;
    }
    let mut tidy = Tidy::new(&world.topics);
    tidy_all(&mut tidy).await;
    assert_eq!((world.topics.counts().1, world.topics.kept_by(&who("romeo")).0), (3_000, 3_000));
    world.publish("romeo", "u/romeo/0007", "newer", true).await.unwrap();
    world.publish("romeo", "u/romeo/a", "lasting", true).await.unwrap();
    world.clock.advance(2_000);
    // One list looks at a part, deletes nothing itself, and says that there is more.
    let listing = world.topics.listed(&who("romeo"), None, 10).unwrap();
    let names = |listing: &Listing| listing.values.iter().map(|p| p.topic.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&listing), ["u/romeo/0007"]);
    assert!(listing.next.is_some_and(|next| *next < *"u/romeo/2000"));
    let whole = world.topics.listed_whole(&who("romeo"), None, 10).await.unwrap();
    assert_eq!((names(&whole), whole.next), (vec!["u/romeo/0007".into(), "u/romeo/a".into()], None));
    tidy_all(&mut tidy).await;
    let kept = world.topics.kept_by(&who("romeo"));
    assert_eq!((world.topics.counts().1, kept), (2, (2, (12 + 5 + 9 + 7))));
    // The marks go when nothing older can come any more.
    assert_eq!(world.store.forget(u64::MAX, 1).await, Ok(1));
    world.clock.advance(20 * 60_000);
    tidy_all(&mut tidy).await;
    assert_eq!(world.store.forget(u64::MAX, 9_999).await, Ok(0));
}

#[tokio::test]
async fn a_value_that_expires_later_goes_then() {
    let world = world().await;
    let mut tidy = Tidy::new(&world.topics);
    tidy_all(&mut tidy).await;
    publish_passing(&world, "u/romeo/a").await;
    tidy_all(&mut tidy).await;
    assert_eq!(world.topics.counts().1, 1);
    world.clock.advance(1_000);
    tidy_all(&mut tidy).await;
    assert_eq!((world.topics.counts().1, world.topics.kept_by(&who("romeo"))), (0, (0, 0)));
}

#[tokio::test]
async fn what_one_may_keep_is_bounded_in_topics_and_bytes() {
    let world = world().await;
    let quota = Quota { topics: 3, bytes: 60 };
    world.topics.set_quota(quota);
    let mut tidy = Tidy::new(&world.topics);
    tidy_all(&mut tidy).await;
    for topic in ["u/romeo/a", "u/romeo/b", "u/romeo/c"] {
        world.publish("romeo", topic, "v", true).await.unwrap();
    }
    let more = |topic, value| world.publish("romeo", topic, value, true);
    let refused = more("u/romeo/d", "v").await.unwrap_err();
    assert!(refused.to_string().contains("retained_topics"), "{refused}");
    assert_eq!(world.topics.kept_by(&who("romeo")), (3, 30));
    // What is not kept, what replaces one's own, and others are not touched.
    world.publish("romeo", "u/romeo/d", "v", false).await.unwrap();
    world.publish("juliet", "u/juliet/a", "v", true).await.unwrap();
    more("u/romeo/a", "0123456789012345678901234567890").await.unwrap();
    let refused = more("u/romeo/a", "01234567890123456789012345678901234567890").await.unwrap_err();
    assert!(refused.to_string().contains("retained_bytes"), "{refused}");
    assert_eq!(world.topics.kept_by(&who("romeo")), (3, 60));
    world.publish("romeo", "u/romeo/b", "", true).await.unwrap();
    let clear = Draft { topic: "u/romeo/a".into(), change: Change::Clear, ..Draft::default() };
    world.topics.publish(&who("romeo"), clear).unwrap().complete().await.unwrap();
    assert_eq!(world.topics.kept_by(&who("romeo")), (2, 19));
    // Whoever writes a value last pays for it.
    world.grant("juliet@localhost", "publish", "u/romeo/#").await;
    world.publish("juliet", "u/romeo/b", "mine", true).await.unwrap();
    assert_eq!((world.topics.kept_by(&who("romeo")), world.topics.kept_by(&who("juliet")).0), ((1, 10), 2));
    // After a restart all are counted again, also those that are written while that is done.
    let world = reopen(world.store).await;
    world.topics.set_quota(quota);
    world.publish("romeo", "u/romeo/c", "longer", true).await.unwrap();
    tidy_all(&mut Tidy::new(&world.topics)).await;
    assert_eq!(world.topics.kept_by(&who("romeo")), (1, 15));
    assert_eq!(world.topics.kept_by(&who("juliet")), (2, 11 + 13));
}

#[tokio::test]
async fn what_properties_say_is_kept_and_paid_for_like_the_value() {
    let world = world().await;
    world.topics.set_quota(Quota { topics: 10, bytes: 100_000 });
    let pair = || ("n".into(), "v".repeat(99_000).into());
    let large = || Some(Box::new(Properties { user: vec![pair()], ..Properties::default() }));
    let draft = |topic: &str| Draft { topic: topic.into(), retain: true, properties: large(), ..Draft::default() };
    world.topics.publish(&who("romeo"), draft("u/romeo/a")).unwrap().complete().await.unwrap();
    assert_eq!(world.topics.kept_by(&who("romeo")), (1, 9 + 99_001));
    assert!(matches!(world.topics.publish(&who("romeo"), draft("u/romeo/b")), Err(Refusal::OverQuota(_))));
    let place = world.topics.places.known("u/romeo/a").unwrap();
    let state = place.state.lock();
    assert!(state.latest.is_none() && matches!(state.kept, kept::Kept::InStore), "what is large is in the store only");
}

#[tokio::test]
async fn a_grant_touches_only_the_topics_whose_receivers_it_can_change() {
    let world = world().await;
    world.grant("juliet@localhost", "subscribe", "u/romeo/#").await;
    let (_, juliet) = world.reader("juliet", false);
    let (nurse, handle) = world.reader("nurse", false);
    world.topics.subscribe(&juliet, "u/romeo/+", SubOptions::default()).unwrap();
    world.topics.restore(&handle, "u/romeo/+", SubOptions::default());
    let topic: Arc<str> = "u/romeo/a".into();
    let place = world.topics.places.at(&topic);
    let found = || world.topics.receivers(&mut place.state.lock().found, &topic).0;
    let first = found();
    world.grant("tybalt@localhost", "subscribe", "#").await;
    world.grant("juliet@localhost", "subscribe", "u/tybalt/#").await;
    world.grant("juliet@localhost", "publish", "u/romeo/#").await;
    assert!(Arc::ptr_eq(&first, &found()));
    // It lets somebody in who was refused before, or ends what somebody had.
    world.grant("nurse@localhost", "subscribe", "u/romeo/a").await;
    let second = found();
    assert!(!Arc::ptr_eq(&first, &second));
    world.permit.remove_subject("tybalt@localhost").1.await.unwrap();
    assert!(Arc::ptr_eq(&second, &found()));
    world.permit.remove_subject("nurse@localhost").1.await.unwrap();
    world.publish("romeo", "u/romeo/a", "1", false).await.unwrap();
    assert!(!Arc::ptr_eq(&second, &found()) && nurse.seen.lock().is_empty());
    world.grant("@everyone", "!subscribe", "u/+/a").await;
    let third = found();
    // More changes than are remembered.
    for n in 0..1_100 {
        world.grant(&format!("p{n}@localhost"), "subscribe", "#").await;
    }
    assert!(!Arc::ptr_eq(&third, &found()));
}

#[tokio::test]
async fn a_quiet_topic_holds_no_subscriber_that_has_gone() {
    let world = world().await;
    let mut tidy = Tidy::new(&world.topics);
    let (reader, handle) = world.reader("romeo", false);
    world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap();
    world.publish("romeo", "u/romeo/a", "1", false).await.unwrap();
    assert!(world.topics.unsubscribe(reader.id, "u/romeo/+"));
    drop(handle);
    assert_eq!(Arc::strong_count(&reader), 2);
    tidy_all(&mut tidy).await;
    tidy_all(&mut tidy).await;
    assert_eq!(Arc::strong_count(&reader), 1);
}

#[tokio::test]
async fn the_topics_know_a_seat_by_its_name_and_hold_nothing_of_it() {
    struct Seat(Seating, Mutex<Vec<u64>>);
    impl Subscriber for Seat {
        fn id(&self) -> u64 {
            self.0.number()
        }
        fn principal(&self) -> &Principal {
            self.0.principal()
        }
        fn store(&self, p: &Arc<Publication>, _: &[SubOptions]) -> Option<Rows> {
            Some((Owner::mqtt("reader", "one"), vec![Op::QueuePush { id: p.id, value: p.encode() }]))
        }
        fn deliver(&self, p: &Arc<Publication>, _: &[SubOptions]) {
            self.1.lock().push(p.id);
        }
    }
    let world = world().await;
    let seat = world.topics.seat(&who("romeo"), |seating| Seat(seating, Mutex::default()));
    world.topics.subscribe(&seat.0.name(), "u/romeo/#", SubOptions::default()).unwrap();
    world.publish("romeo", "u/romeo/a", "1", false).await.unwrap();
    assert_eq!(seat.1.lock().len(), 1);
    // It goes while something is under way for it.
    world.store.hold();
    let draft = Draft { topic: "u/romeo/a".into(), ..Draft::default() };
    let under_way = world.topics.publish(&who("romeo"), draft).unwrap();
    let (number, gone) = (seat.0.number(), Arc::downgrade(&seat));
    assert!(world.topics.seats().find(number).is_some());
    drop(seat);
    assert!(gone.upgrade().is_none() && world.topics.seats().find(number).is_none());
    world.store.release_all();
    under_way.complete().await.unwrap();
    world.publish("romeo", "u/romeo/a", "3", false).await.unwrap();
    let rows = world.store.queue(&Owner::mqtt("reader", "one"), 0, 10).await.unwrap();
    assert_eq!(rows.len(), 2, "nothing is saved for whoever has gone");
}

mod crowds;
