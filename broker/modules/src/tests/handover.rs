//! Messages that change hands: whose row is on its way, being deleted, in flight or given up, when sessions come, end,
//! are replaced or go away.

use super::world::{Person, World};
use std::{
    future::Future,
    sync::Arc,
    task::{Context, Waker},
};
use tavi_core::{Bound as Room, Closed, FakeClock, Ticket, homes::SessionLimits};
use tavi_store::{MemoryStore, Owner, Store, StoreError};

/// A message that is kept and not archived: whose row is stored when is what this is about.
fn says(to: &str, text: impl ToString) -> String {
    let hint = "<no-permanent-store xmlns='urn:xmpp:hints'/>";
    format!("<message to='{to}' type='chat'><body>{}</body>{hint}</message>", text.to_string())
}

fn numbers(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|n| n.to_string()).collect()
}

async fn goes_on() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

/// All that comes as somebody reads on.
async fn reads_all(person: &mut Person) -> Vec<String> {
    let mut read = Vec::new();
    for _ in 0..20 {
        goes_on().await;
        read.extend(person.reads_bodies());
    }
    read
}

/// Comes online; what is on its way for it may stand before its own presence.
async fn comes(world: &World, who: &str) -> Person {
    let mut person = world.bind(who).await;
    person.sends("<presence/>").await;
    person
}

async fn lands(store: &MemoryStore, ticket: Ticket) {
    store.release_all();
    ticket.complete().await.unwrap();
    goes_on().await;
}

/// A world of small inboxes in which few messages are kept.
async fn narrow(inbox_items: usize, kept_items: usize) -> (World, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::default());
    let limits = SessionLimits { inbox_items, kept_items, ..SessionLimits::default() };
    (World::over(store.clone(), Arc::new(FakeClock::at(1)), limits).await, store)
}

#[tokio::test]
async fn who_comes_while_a_message_is_being_kept_gets_it_and_newer_ones_behind_it() {
    let (world, store) = World::with_store(100).await;
    let mut juliet = world.online("juliet/balcony").await;
    let mut paris = world.online("paris/street").await.plain();
    world.account("romeo").await;
    store.hold();
    let kept = juliet.begins(&says("romeo@localhost", 0)).await;
    let mut romeo = comes(&world, "romeo/orchard").await;
    paris.sends(&says("romeo@localhost", 1)).await;
    assert!(romeo.reads_bodies().is_empty());
    lands(&store, kept).await;
    assert_eq!(romeo.reads_bodies(), numbers(0..2));
}

#[tokio::test]
async fn what_was_on_its_way_to_a_session_that_ended_is_for_the_next_one() {
    let (world, store) = World::with_store(100).await;
    let mut juliet = world.online("juliet/balcony").await;
    let orchard = world.online("romeo/orchard").await;
    store.hold();
    let coming = juliet.begins(&says("romeo@localhost", 0)).await;
    orchard.ends().await;
    let mut garden = comes(&world, "romeo/garden").await;
    assert!(garden.reads_bodies().is_empty());
    lands(&store, coming).await;
    assert_eq!(garden.reads_bodies(), numbers(0..1));
}

#[tokio::test]
async fn what_is_on_its_way_to_a_session_that_is_cut_off_goes_to_another_one_when_it_lands() {
    let (world, store) = World::with_store(100).await;
    let mut juliet = world.online("juliet/balcony").await;
    let orchard = world.online("romeo/orchard").await;
    store.hold();
    let coming = juliet.begins(&says("romeo@localhost", 0)).await;
    orchard.link.close(Closed::Overflow);
    let mut garden = comes(&world, "romeo/garden").await;
    lands(&store, coming).await;
    assert_eq!(garden.reads_bodies(), numbers(0..1), "before the other one has ended");
    orchard.ends().await;
    assert!(reads_all(&mut garden).await.is_empty());
}

#[tokio::test]
async fn a_row_that_is_being_deleted_is_nobody_s_any_more() {
    let (world, store) = World::with_store(100).await;
    let mut juliet = world.online("juliet/balcony").await;
    let mut orchard = world.online("romeo/orchard").await;
    juliet.sends(&says("romeo@localhost", 0)).await;
    store.hold();
    assert_eq!(orchard.reads_bodies(), numbers(0..1));
    assert_eq!(store.waiting(), 1, "its deletion");
    let mut garden = world.online("romeo/garden").await;
    assert!(garden.reads_bodies().is_empty());
    orchard.ends().await;
    assert!(reads_all(&mut garden).await.is_empty());
}

#[tokio::test]
async fn nobody_waits_for_the_row_of_what_another_session_has_settled() {
    let (world, store) = World::with_store(2).await;
    let (mut orchard, mut garden) = (world.online("romeo/orchard").await, world.online("romeo/garden").await);
    orchard.skip();
    garden.skip();
    let mut paris = world.online("paris/street").await.plain();
    for n in 0..2 {
        paris.sends(&says("romeo@localhost", n)).await;
        assert_eq!(orchard.reads_bodies(), [n.to_string()]);
    }
    store.hold();
    paris.sends(&says("romeo@localhost", 2)).await;
    assert_eq!(orchard.reads_bodies(), ["2"]);
    assert_eq!(store.waiting(), 2, "the garden had no room: its row, and its deletion");
    assert_eq!(garden.reads_bodies(), numbers(0..2));
    paris.sends(&says("romeo@localhost", 3)).await;
    assert_eq!(garden.reads_bodies(), ["3"]);
}

#[tokio::test]
async fn all_that_a_session_had_goes_to_another_one_that_has_newer_ones_already() {
    let (world, _) = World::with_store(4).await;
    let mut juliet = world.online("juliet/balcony").await;
    let (mut orchard, mut garden) = (world.online("romeo/orchard").await, world.online("romeo/garden").await);
    orchard.skip();
    garden.skip();
    for n in 0..8 {
        juliet.sends(&says("romeo@localhost/orchard", n)).await;
    }
    juliet.sends(&says("romeo@localhost/garden", 8)).await;
    assert_eq!(garden.reads_bodies(), ["8"]);
    orchard.ends().await;
    goes_on().await;
    let first = garden.takes(1).remove(0);
    assert!(first.contains("<body>0</body>") && first.contains("urn:xmpp:delay"), "{first}");
    garden.acks();
    assert_eq!(reads_all(&mut garden).await, numbers(1..8));
}

#[tokio::test]
async fn a_page_for_a_session_that_was_replaced_is_its_successor_s_though_it_has_not_ended() {
    let (world, store) = World::with_store(100).await;
    let mut juliet = world.online("juliet/balcony").await;
    world.account("romeo").await;
    for n in 0..3 {
        juliet.sends(&says("romeo@localhost", n)).await;
    }
    store.hold_pages();
    let mut replaced = world.bind("romeo/orchard").await;
    let link = replaced.link.clone();
    let mut coming = Box::pin(replaced.begins("<presence/>"));
    assert!(coming.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "its page is being read");
    let mut romeo = world.bind("romeo/orchard").await;
    store.release_pages();
    let _ = coming.await.complete().await;
    romeo.sends("<presence/>").await;
    assert_eq!(romeo.reads_bodies(), numbers(0..3));
    link.end(Vec::new()).await.complete().await.unwrap();
    assert!(reads_all(&mut romeo).await.is_empty());
}

#[tokio::test]
async fn who_goes_away_keeps_what_is_in_flight_and_gives_the_rest_to_another_session() {
    let (world, _) = World::with_store(4).await;
    let mut juliet = world.online("juliet/balcony").await;
    let mut orchard = world.bind("romeo/orchard").await;
    orchard.link.manage(Room { items: 5, bytes: 1 << 20 });
    orchard.sends("<presence/>").await;
    orchard.sees("<presence/>");
    for n in 0..12 {
        juliet.sends(&says("romeo@localhost", n)).await;
    }
    let in_flight = orchard.takes(4);
    assert!(in_flight[3].contains("<body>3</body>"), "{in_flight:?}");
    let mut garden = world.online("romeo/garden").await;
    assert!(reads_all(&mut garden).await.is_empty(), "all are somebody's");
    orchard.sends("<presence type='unavailable'/>").await;
    assert_eq!(reads_all(&mut garden).await, numbers(4..12));
    orchard.ends().await;
    assert_eq!(reads_all(&mut garden).await, numbers(0..4));
}

#[tokio::test]
async fn what_could_not_be_kept_takes_no_room_and_holds_nobody_up() {
    let (world, store) = narrow(100, 3).await;
    let mut juliet = world.online("juliet/balcony").await;
    let mut paris = world.online("paris/street").await.plain();
    world.account("romeo").await;
    store.hold();
    for _ in 0..3 {
        let lost = juliet.begins(&says("romeo@localhost", "lost")).await;
        assert!(store.refuse(StoreError::Unavailable("a test says so".into())));
        assert!(lost.complete().await.is_err());
    }
    for n in 0..3 {
        let kept = juliet.begins(&says("romeo@localhost", n)).await;
        lands(&store, kept).await;
    }
    juliet.sees_nothing();
    let mut romeo = world.online("romeo/orchard").await;
    assert_eq!(romeo.reads_bodies(), numbers(0..3));
    store.release_all();
    let lost = juliet.begins(&says("romeo@localhost", "lost")).await;
    paris.sends(&says("romeo@localhost", 3)).await;
    romeo.sees_nothing();
    assert!(store.refuse(StoreError::Unavailable("a test says so".into())));
    assert!(lost.complete().await.is_err());
    assert_eq!(romeo.reads_bodies(), ["3"]);
}

#[tokio::test]
async fn for_a_session_that_does_not_read_no_more_is_kept_than_for_one_that_is_away() {
    for managed in [true, false] {
        let (world, store) = narrow(2, 3).await;
        let mut romeo = world.online("romeo/orchard").await;
        romeo.skip();
        let mut juliet = world.online("juliet/balcony").await;
        if !managed {
            juliet = juliet.plain();
        }
        // What needs no row takes room in memory first, behind rows that are not read once more as much.
        let room = if managed { 3 } else { 3 + 2 * 2 };
        for n in 0..room {
            juliet.sends(&says("romeo@localhost", n)).await;
            juliet.sees_nothing();
        }
        juliet.sends(&says("romeo@localhost", "too many")).await;
        goes_on().await;
        juliet.sees_error("service-unavailable");
        assert_eq!(store.queue_size(&Owner::account("romeo@localhost")).await.unwrap().rows, 3);
        assert_eq!(reads_all(&mut romeo).await, numbers(0..room), "managed: {managed}");
    }
}

#[tokio::test]
async fn nothing_is_kept_for_an_account_that_was_removed() {
    let (world, store) = World::with_store(100).await;
    let mut paris = world.online("paris/street").await.plain();
    let romeo = world.online("romeo/orchard").await;
    paris.sends(&says("romeo@localhost", "unread")).await;
    world.node.parts.homes.expel(&romeo.jid().to_bare());
    assert_eq!(romeo.link.closed(), Some(Closed::Revoked));
    romeo.ends().await;
    goes_on().await;
    assert_eq!(store.queue_size(&Owner::account("romeo@localhost")).await.unwrap().rows, 0);
}

#[tokio::test]
async fn what_a_replaced_session_asks_for_is_not_done() {
    let world = World::new().await;
    let mut replaced = world.online("romeo/orchard").await;
    let mut romeo = world.online("romeo/orchard").await;
    let item = "<iq type='set' id='1'><query xmlns='jabber:iq:roster'><item jid='paris@localhost'/></query></iq>";
    replaced.writes(item).await.complete().await.unwrap();
    romeo.sends("<iq type='get' id='2'><query xmlns='jabber:iq:roster'/></iq>").await;
    let roster = romeo.sees("<iq type='result' id='2'/>");
    assert!(!roster.contains("paris@localhost"), "{roster}");
}
