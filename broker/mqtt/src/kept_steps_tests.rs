//! The seat step by step, where the model's weather seldom comes: failures, damage, expiry under pressure, ids in use.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use tavi_store::id::first_at;

fn publication(id: u64, qos: Qos, expires_ms: Option<u64>) -> Arc<Publication> {
    Arc::new(Publication {
        id,
        time_ms: 1,
        topic: "home/a".into(),
        change: Change::Value,
        payload: vec![b'x'; 50].into(),
        content_type: None,
        qos,
        retain: false,
        from: Principal::Anon { loopback: true },
        from_session: 0,
        item: None,
        properties: expires_ms.map(|at| Box::new(Properties { expires_ms: Some(at), ..Properties::default() })),
        rendered: Rendered::default(),
    })
}

fn narrow(store: &Arc<MemoryStore>, rows: usize) -> Arc<KeptSeat> {
    let who = Principal::Account("reader@localhost".parse().unwrap());
    let owner = Owner::mqtt("reader@localhost", "reader");
    let room = (Room { rows, ..ROOM }, Arc::default());
    let make = |seating| KeptSeat::new(seating, (owner, store.clone()), room, Recalled::default());
    Arc::<Seats>::default().make((7, &who), make)
}

fn options(qos: Qos) -> [SubOptions; 1] {
    [SubOptions { qos, ..SubOptions::default() }]
}

/// It is owed from now on, and stands in the store.
fn keeps(seat: &KeptSeat, store: &MemoryStore, publication: &Arc<Publication>) {
    let (owner, ops) = seat.store(publication, &options(publication.qos)).expect("there is room");
    now(store.commit(&owner, ops)).unwrap();
    seat.deliver(publication, &options(publication.qos));
}

fn reads(seat: &KeptSeat, store: &MemoryStore) -> Vec<Op> {
    let after = seat.wants().expect("there is something to read");
    seat.page(after, now(store.queue_page(seat.owner(), after, PageBound { rows: 100, bytes: 1 << 20 })).unwrap())
}

fn next(seat: &KeptSeat, may: bool, now_ms: u64) -> String {
    match seat.next(|_, _| may, now_ms) {
        Next::Live(parcel) => format!("live {}", parcel.publication.id),
        Next::Owed(Sending { row, owing, dup }) => {
            let what = if owing.publication.is_some() { "publish" } else { "release" };
            format!("{what} {row} as {}{}", owing.packet_id, if dup { " dup" } else { "" })
        }
        Next::Gone(op) => format!("{op:?}"),
        Next::Nothing => "nothing".into(),
    }
}

#[test]
fn a_connection_that_was_followed_by_another_takes_nothing_away_when_it_leaves() {
    let store = Arc::new(MemoryStore::default());
    let seat = seat(&store, Recalled::default());
    let (first, second) = (seat.attach(WINDOW), seat.attach(WINDOW));
    keeps(&seat, &store, &publication(1, Qos::AtLeastOnce, None));
    assert_eq!(next(&seat, true, 1), "publish 1 as 1");
    seat.detach(&first);
    assert!(seat.mailbox().is_some_and(|now| Arc::ptr_eq(&now, &second)));
    assert_eq!(next(&seat, true, 1), "nothing", "it is in flight");
}

#[test]
fn a_page_that_was_being_read_when_the_connection_ended_is_wanted_again() {
    let store = Arc::new(MemoryStore::default());
    let seat = seat(&store, Recalled::default());
    keeps(&seat, &store, &publication(1, Qos::AtLeastOnce, None));
    let first = seat.attach(WINDOW);
    assert_eq!(seat.wants(), Some(0));
    seat.detach(&first);
    seat.attach(WINDOW);
    assert!(reads(&seat, &store).is_empty());
    assert_eq!(next(&seat, true, 1), "publish 1 as 1");
}

#[test]
fn what_is_owed_already_is_not_kept_twice() {
    let store = Arc::new(MemoryStore::default());
    let seat = seat(&store, Recalled::default());
    seat.attach(WINDOW);
    let publication = publication(1, Qos::AtLeastOnce, None);
    keeps(&seat, &store, &publication);
    assert!(seat.store(&publication, &options(Qos::AtLeastOnce)).is_none());
    assert_eq!(seat.size().rows, 1);
}

#[test]
fn a_row_of_a_fan_out_that_failed_is_not_read_unless_it_is_published_again() {
    let store = Arc::new(MemoryStore::delayed());
    let seat = seat(&store, Recalled::default());
    let saves = |publication: &Arc<Publication>| {
        let (owner, ops) = seat.store(publication, &options(Qos::AtLeastOnce)).unwrap();
        let _row = store.commit(&owner, ops);
        assert!(store.release_at(store.waiting() - 1));
    };
    let [first, failing, third] = [1, 2, 3].map(|id| publication(id, Qos::AtLeastOnce, None));
    saves(&first);
    seat.deliver(&first, &options(Qos::AtLeastOnce));
    saves(&failing);
    seat.abandon(&failing);
    assert_eq!(store.waiting(), 1, "its deletion is on its way");
    saves(&third);
    seat.deliver(&third, &options(Qos::AtLeastOnce));
    let link = seat.attach(WINDOW);
    reads(&seat, &store);
    assert_eq!([0; 3].map(|_| next(&seat, true, 1)), ["publish 1 as 1", "publish 3 as 3", "nothing"]);
    seat.detach(&link);
    store.release_all();
    saves(&failing);
    seat.deliver(&failing, &options(Qos::AtLeastOnce));
    seat.attach(WINDOW);
    reads(&seat, &store);
    let order = [0; 3].map(|_| next(&seat, true, 1));
    assert_eq!(order, ["publish 1 as 1 dup", "publish 2 as 4", "publish 3 as 3 dup"]);
}

#[test]
fn of_what_failed_only_so_much_is_remembered() {
    let store = Arc::new(MemoryStore::default());
    let seat = narrow(&store, 10);
    for id in 1..=ABANDONED as u64 + 10 {
        let failing = publication(id, Qos::AtLeastOnce, None);
        assert!(seat.store(&failing, &options(Qos::AtLeastOnce)).is_some(), "it takes no room");
        seat.abandon(&failing);
    }
    assert_eq!(seat.kept.lock().abandoned.len(), ABANDONED);
}

#[test]
fn a_damaged_row_is_left_out_deleted_and_takes_no_room() {
    let store = Arc::new(MemoryStore::default());
    let seat = seat(&store, Recalled::default());
    let owner = seat.owner().clone();
    keeps(&seat, &store, &publication(1, Qos::AtLeastOnce, None));
    let size = seat.size();
    let damaged = Op::QueuePush { id: 1, value: vec![0xFF; size.bytes as usize].into() };
    now(store.commit(&owner, vec![Op::QueueDelete { id: 1 }, damaged])).unwrap();
    seat.attach(WINDOW);
    assert!(matches!(reads(&seat, &store)[..], [Op::QueueDelete { id: 1 }]));
    assert_eq!((next(&seat, true, 1), seat.size()), ("nothing".into(), QueueSize::default()));
}

#[test]
fn what_is_not_kept_overtakes_neither_what_is_being_saved_nor_what_is_not_read() {
    let store = Arc::new(MemoryStore::default());
    let seat = seat(&store, Recalled::default());
    let live = |id| Parcel { publication: publication(id, Qos::AtMostOnce, None), qos: Qos::AtMostOnce, retain: false };
    keeps(&seat, &store, &publication(1, Qos::AtLeastOnce, None));
    seat.attach(WINDOW);
    seat.put_fleeting(live(2));
    assert_eq!(next(&seat, true, 1), "nothing", "the first one is in the store");
    reads(&seat, &store);
    assert_eq!([next(&seat, true, 1), next(&seat, true, 1)], ["publish 1 as 1", "live 2"]);
    let saving = publication(3, Qos::AtLeastOnce, None);
    let (owner, ops) = seat.store(&saving, &options(Qos::AtLeastOnce)).unwrap();
    keeps(&seat, &store, &publication(4, Qos::AtLeastOnce, None));
    seat.put_fleeting(live(5));
    assert_eq!(next(&seat, true, 1), "nothing");
    now(store.commit(&owner, ops)).unwrap();
    seat.deliver(&saving, &options(Qos::AtLeastOnce));
    let order = [0; 3].map(|_| next(&seat, true, 1));
    assert_eq!(order, ["publish 3 as 2", "publish 4 as 3", "live 5"]);
}

#[derive(Default)]
struct Count(AtomicUsize);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn retained_values_are_read_on_when_those_before_are_saved_and_one_that_fails_holds_nobody_up() {
    let store = Arc::new(MemoryStore::default());
    let seat = seat(&store, Recalled::default());
    let mailbox = seat.attach(WINDOW);
    let (count, mut nothing) = (Arc::new(Count::default()), Vec::new());
    let waker = Waker::from(count.clone());
    assert!(mailbox.poll_drain(&mut Context::from_waker(&waker), &mut nothing).is_pending());
    assert!(seat.wants_granted());
    let retained = publication(first_at(5) + 1, Qos::AtLeastOnce, None);
    let (place, _) = seat.keep_retained(&retained, Qos::AtLeastOnce, || unreachable!("its own place is free"));
    assert!(!seat.wants_granted());
    keeps(&seat, &store, &publication(first_at(5) + 2, Qos::AtLeastOnce, None));
    assert!(mailbox.poll_drain(&mut Context::from_waker(&waker), &mut nothing).is_pending());
    let before = count.0.load(Ordering::Relaxed);
    assert_eq!(next(&seat, true, 1), "nothing", "it waits for the value");
    seat.land_retained(vec![(place, retained, Qos::AtLeastOnce)], false);
    assert!(count.0.load(Ordering::Relaxed) > before, "the connection is told");
    assert_eq!(next(&seat, true, 1), format!("publish {} as 2", first_at(5) + 2));
}

#[test]
fn a_retained_value_does_not_take_the_place_of_a_row_that_is_not_read() {
    let store = Arc::new(MemoryStore::default());
    let seat = seat(&store, Recalled::default());
    let delivered = publication(first_at(5) + 1, Qos::AtLeastOnce, None);
    keeps(&seat, &store, &delivered);
    seat.attach(WINDOW);
    let (place, _) = seat.keep_retained(&delivered, Qos::AtLeastOnce, || 77);
    assert_eq!(place, 77, "nobody knows which others are taken");
}

#[test]
fn what_the_client_has_received_is_released_though_it_may_not_have_it_any_more() {
    let store = Arc::new(MemoryStore::default());
    let seat = seat(&store, Recalled::default());
    let first = seat.attach(WINDOW);
    keeps(&seat, &store, &publication(1, Qos::ExactlyOnce, Some(1_000)));
    assert_eq!(next(&seat, true, 1), "publish 1 as 1");
    let _unsaved = seat.received(1);
    seat.detach(&first);
    seat.attach(WINDOW);
    reads(&seat, &store);
    assert_eq!(next(&seat, false, 2_000), "release 1 as 1 dup", "MQTT 5.0 §4.3.3");
}

#[test]
fn the_id_of_a_qos_2_row_that_is_being_deleted_is_in_use() {
    let store = Arc::new(MemoryStore::default());
    let seat = seat(&store, Recalled::default());
    seat.attach(WINDOW);
    keeps(&seat, &store, &publication(1, Qos::ExactlyOnce, None));
    assert_eq!(next(&seat, true, 1), "publish 1 as 1");
    assert!(seat.taken(1).is_some());
    // As after 65,535 others.
    seat.kept.lock().last_packet_id = 0;
    keeps(&seat, &store, &publication(2, Qos::ExactlyOnce, None));
    assert_eq!(next(&seat, true, 1), "nothing", "a crash would bring the first one back");
    seat.deleted(&[1]);
    assert_eq!(next(&seat, true, 1), "publish 2 as 1");
}

#[test]
fn what_expired_makes_room_and_is_counted_out_once() {
    let store = Arc::new(MemoryStore::default());
    let seat = narrow(&store, 2);
    seat.attach(WINDOW);
    keeps(&seat, &store, &publication(1, Qos::AtLeastOnce, Some(10)));
    keeps(&seat, &store, &publication(2, Qos::AtLeastOnce, None));
    let third =
        Arc::new(Publication { time_ms: 20, ..Arc::into_inner(publication(3, Qos::AtLeastOnce, None)).unwrap() });
    keeps(&seat, &store, &third);
    let order = [0; 3].map(|_| next(&seat, true, 20));
    assert_eq!(order, ["QueueDelete { id: 1 }", "publish 2 as 2", "publish 3 as 3"]);
    assert_eq!(seat.size().rows, 2);
    assert_eq!(now(store.queue_size(seat.owner())).unwrap(), seat.size());
}

#[test]
fn a_row_that_made_room_while_nobody_is_connected_is_forgotten_when_the_other_one_is_saved() {
    let store = Arc::new(MemoryStore::default());
    let seat = narrow(&store, 1);
    keeps(&seat, &store, &publication(1, Qos::AtLeastOnce, Some(10)));
    let second =
        Arc::new(Publication { time_ms: 20, ..Arc::into_inner(publication(2, Qos::AtLeastOnce, None)).unwrap() });
    keeps(&seat, &store, &second);
    assert!(!seat.kept.lock().backlog.has(1), "nothing is remembered of it");
    assert_eq!(seat.size().rows, 1);
}

#[test]
fn what_a_second_attempt_replaces_goes_with_its_row() {
    let store = Arc::new(MemoryStore::default());
    let seat = seat(&store, Recalled::default());
    let mut second = Arc::into_inner(publication(2, Qos::AtLeastOnce, None)).unwrap();
    second.rendered.replaces = Some(1);
    let (_, ops) = seat.store(&Arc::new(second), &options(Qos::AtLeastOnce)).unwrap();
    assert!(matches!(ops[..], [Op::QueueDelete { id: 1 }, Op::QueuePush { id: 2, .. }]), "{ops:?}");
}
