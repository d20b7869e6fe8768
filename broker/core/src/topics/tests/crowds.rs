//! Publications to so many that their rows are made, and their deliveries handed out, part by part.

use super::*;
use crate::ticket::TicketQueue;
use std::{future::poll_fn, sync::atomic::AtomicUsize};
use tokio::task::yield_now;

/// One of many; the numbers of publications are their payloads.
struct One {
    id: u64,
    who: Principal,
    owner: Option<Owner>,
    work: Arc<AtomicUsize>,
    stored: Mutex<Vec<u32>>,
    seen: Mutex<Vec<u32>>,
    abandoned: Mutex<Vec<u32>>,
}

fn number(p: &Publication) -> u32 {
    String::from_utf8_lossy(&p.payload).parse().unwrap()
}

impl Subscriber for One {
    fn id(&self) -> u64 {
        self.id
    }
    fn principal(&self) -> &Principal {
        &self.who
    }
    fn store(&self, p: &Arc<Publication>, _: &[SubOptions]) -> Option<Rows> {
        self.work.fetch_add(1, Ordering::Relaxed);
        let owner = self.owner.clone()?;
        self.stored.lock().push(number(p));
        Some((owner, vec![Op::QueuePush { id: p.id, value: p.encode() }]))
    }
    fn deliver(&self, p: &Arc<Publication>, _: &[SubOptions]) {
        self.work.fetch_add(1, Ordering::Relaxed);
        self.seen.lock().push(number(p));
    }
    fn abandon(&self, p: &Arc<Publication>) {
        self.abandoned.lock().push(number(p));
    }
}

struct Crowd {
    all: Vec<Arc<One>>,
    work: Arc<AtomicUsize>,
    published: u32,
}

/// So many have a row before anybody else has a turn.
const FIRST: usize = 256;

impl Crowd {
    /// Of `many` receivers each has a queue but, with `live`, every third.
    fn new(world: &World, many: usize, live: bool) -> Crowd {
        let work = Arc::new(AtomicUsize::new(0));
        let all = (0..many).map(|n| {
            let owner = (!live || n % 3 > 0).then(|| Owner::mqtt("romeo", &n.to_string()));
            let (id, who, work) = (world.topics.next_subscriber(), who("romeo"), work.clone());
            let (stored, seen, abandoned) = Default::default();
            let one = Arc::new(One { id, who, owner, work, stored, seen, abandoned });
            let handle: Arc<dyn Subscriber> = one.clone();
            world.topics.restore(&handle, "u/romeo/+", SubOptions::default());
            one
        });
        Crowd { all: all.collect(), work, published: 0 }
    }

    fn draft(&mut self, retain: bool) -> Draft {
        self.published += 1;
        let payload = self.published.to_string().into();
        Draft { topic: "u/romeo/a".into(), payload, qos: Qos::AtLeastOnce, retain, ..Draft::default() }
    }

    fn publish(&mut self, world: &World) -> Ticket {
        let draft = self.draft(false);
        world.topics.publish(&who("romeo"), draft).unwrap()
    }

    /// A note of the publisher's has to be saved before anybody's row.
    fn publish_noted(&mut self, world: &World) -> Ticket {
        let (draft, romeo) = (self.draft(false), who("romeo"));
        let note = |id| world.store.commit(&Owner::mqtt("romeo", "notes"), vec![Op::Drawn { id }]);
        world.topics.publish_noted((&romeo, Action::Publish), draft, note).unwrap()
    }

    fn stored(&self, number: u32) -> usize {
        self.all.iter().filter(|one| one.stored.lock().contains(&number)).count()
    }

    fn all_saw(&self, numbers: &[u32]) -> bool {
        self.all.iter().all(|one| *one.seen.lock() == numbers)
    }

    fn all_abandoned(&self, numbers: &[u32]) -> bool {
        self.all.iter().all(|one| *one.abandoned.lock() == numbers)
    }
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        yield_now().await;
    }
}

#[tokio::test]
async fn others_have_turns_while_thousands_get_a_publication() {
    let world = world().await;
    let mut crowd = Crowd::new(&world, 5_000, false);
    let work = crowd.work.clone();
    // How much was done between two turns of somebody else, until each has a row and a delivery.
    let other = tokio::spawn(async move {
        let (mut before, mut most) = (0, 0);
        while before < 10_000 {
            yield_now().await;
            let now = work.load(Ordering::Relaxed);
            (before, most) = (now, most.max(now - before));
        }
        most
    });
    crowd.publish(&world).complete().await.unwrap();
    let most = other.await.unwrap();
    // Two parts may come in a row.
    assert!(most <= 2_100 && crowd.all_saw(&[1]), "{most} of 10,000");
}

#[tokio::test]
async fn what_is_published_while_rows_are_made_comes_behind_for_each_receiver() {
    let world = world().await;
    let mut crowd = Crowd::new(&world, 1_000, false);
    world.store.hold();
    let (first, second) = (crowd.publish(&world), crowd.publish(&world));
    assert_eq!((crowd.stored(1), crowd.stored(2)), (FIRST, 0));
    until(|| world.store.waiting() == 2_000).await;
    assert!(crowd.all.iter().all(|one| *one.stored.lock() == [1, 2]));
    // The store takes them in another order.
    while world.store.waiting() > 0 {
        world.store.release_at(world.store.waiting() - 1);
    }
    second.complete().await.unwrap();
    assert!(crowd.all_saw(&[]), "the first is open");
    first.complete().await.unwrap();
    until(|| crowd.all_saw(&[1, 2])).await;
}

#[tokio::test]
async fn a_publisher_s_next_packet_waits_until_all_rows_are_handed_in() {
    let world = world().await;
    let mut crowd = Crowd::new(&world, 1_000, false);
    world.store.hold();
    let mut window = TicketQueue::default();
    window.push(crowd.publish(&world), 1, 10);
    assert!(window.is_full());
    let open = poll_fn(|cx| match window.poll_next(cx) {
        Poll::Ready(_) => Poll::Ready(false),
        Poll::Pending if window.is_full() => Poll::Pending,
        Poll::Pending => Poll::Ready(true),
    });
    assert!(open.await, "it is woken, and its ticket is open");
    assert_eq!(world.store.waiting(), 1_000);
    window.push(crowd.publish(&world), 2, 10);
    assert!(window.is_full());
    until(|| world.store.waiting() == 2_000).await;
    world.store.release_all();
    assert_eq!(poll_fn(|cx| window.poll_next(cx)).await, Some((1, Ok(()))));
    assert_eq!(poll_fn(|cx| window.poll_next(cx)).await, Some((2, Ok(()))));
    until(|| crowd.all_saw(&[1, 2])).await;
}

#[tokio::test]
async fn rows_of_a_noted_publication_have_their_places_and_are_saved_behind_the_note() {
    let world = world().await;
    let mut crowd = Crowd::new(&world, 1_000, false);
    world.store.hold();
    let (noted, plain) = (crowd.publish_noted(&world), crowd.publish(&world));
    until(|| crowd.stored(2) == 1_000).await;
    assert!(crowd.all.iter().all(|one| *one.stored.lock() == [1, 2]));
    assert_eq!(world.store.waiting(), 1_001, "the note, and the rows of the other");
    let noted = tokio::spawn(noted.complete());
    world.store.release_all();
    plain.complete().await.unwrap();
    assert!(crowd.all_saw(&[]));
    until(|| world.store.waiting() == 1_000).await;
    world.store.release_all();
    noted.await.unwrap().unwrap();
    until(|| crowd.all_saw(&[1, 2])).await;
}

#[tokio::test]
async fn one_row_that_cannot_be_saved_fails_it_for_all_and_holds_nobody_up() {
    let world = world().await;
    let mut crowd = Crowd::new(&world, 1_000, true);
    world.store.hold();
    let (first, second) = (crowd.publish(&world), crowd.publish(&world));
    until(|| crowd.stored(2) == 666).await;
    world.fail();
    world.store.release_all();
    assert!(first.complete().await.is_err());
    second.complete().await.unwrap();
    until(|| crowd.all_saw(&[2])).await;
    assert!(crowd.all_abandoned(&[1]));
}

#[tokio::test]
async fn a_ticket_that_is_dropped_while_rows_are_made_fails_and_holds_nobody_up() {
    let world = world().await;
    let mut crowd = Crowd::new(&world, 1_000, true);
    drop(crowd.publish(&world));
    crowd.publish(&world).complete().await.unwrap();
    until(|| crowd.all_saw(&[2])).await;
    assert!(crowd.all_abandoned(&[1]) && crowd.stored(1) < 400, "no more rows are made of what has failed");
}

#[test]
fn where_no_task_can_be_begun_all_is_made_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let world = runtime.block_on(world());
    let mut crowd = Crowd::new(&world, 1_000, true);
    world.store.hold();
    let first = runtime.block_on(async { crowd.publish(&world) });
    let second = crowd.publish(&world);
    assert!(crowd.all.iter().all(|one| one.owner.is_none() || *one.stored.lock() == [1, 2]));
    world.store.release_all();
    runtime.block_on(async {
        first.complete().await.unwrap();
        second.complete().await.unwrap();
        until(|| crowd.all_saw(&[1, 2])).await;
    });
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish,
    Noted,
    Retained,
    Turns(usize),
    Save(usize),
    Refuse,
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Publish),
        2 => Just(Step::Noted),
        2 => Just(Step::Retained),
        4 => (1..6usize).prop_map(Step::Turns),
        4 => (1..1_500usize).prop_map(Step::Save),
        1 => Just(Step::Refuse),
        1 => (0..8usize).prop_map(Step::Drop),
    ]
}

async fn play(steps: Vec<Step>) {
    let world = world().await;
    let mut crowd = Crowd::new(&world, 700, true);
    world.store.hold();
    let mut tickets = Vec::new();
    for step in steps {
        match step {
            Step::Publish => tickets.push(Some(tokio::spawn(crowd.publish(&world).complete()))),
            Step::Noted => tickets.push(Some(tokio::spawn(crowd.publish_noted(&world).complete()))),
            Step::Retained => {
                let draft = crowd.draft(true);
                let ticket = world.topics.publish(&who("romeo"), draft).unwrap();
                tickets.push(Some(tokio::spawn(ticket.complete())));
            }
            Step::Turns(turns) => {
                for _ in 0..turns {
                    yield_now().await;
                }
            }
            Step::Save(count) => _ = world.store.release(count),
            Step::Refuse => world.fail(),
            // Its task, and with it the ticket, goes.
            Step::Drop(at) => {
                tickets.get_mut(at).and_then(Option::take).into_iter().for_each(|ticket| ticket.abort());
            }
        }
    }
    let mut landed = Vec::new();
    for (ticket, number) in tickets.into_iter().zip(1..) {
        let Some(ticket) = ticket else { continue };
        until(|| world.store.release_all() == 0 && ticket.is_finished()).await;
        landed.extend(ticket.await.unwrap().is_ok().then_some(number));
    }
    // What was dropped may have landed before.
    until(|| {
        crowd.all.iter().all(|one| one.seen.lock().len() + one.abandoned.lock().len() == crowd.published as usize)
    })
    .await;
    let seen = crowd.all[0].seen.lock().clone();
    assert!(seen.is_sorted() && landed.iter().all(|number| seen.contains(number)), "{seen:?} of {landed:?}");
    assert!(crowd.all_saw(&seen));
    assert!(crowd.all.iter().all(|one| one.stored.lock().is_sorted()));
    let value = world.topics.retained("u/romeo/a").first().map(|value| number(value));
    assert!(value.is_none_or(|value| value <= crowd.published));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn each_of_many_gets_what_landed_once_in_the_order_in_which_it_was_begun(
        steps in prop::collection::vec(step(), 1..24),
    ) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(play(steps));
    }
}
