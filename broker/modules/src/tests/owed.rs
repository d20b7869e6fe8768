//! What is owed to sessions that die, are replaced, go away or do not read: nobody else loses by it.

use super::world::World;
use std::{
    future::Future,
    sync::Arc,
    task::{Context, Waker},
};
use tavi_core::metrics::{Outcome, Protocol};
use tavi_core::{Bound as Room, Closed, FakeClock, homes::SessionLimits};
use tavi_store::MemoryStore;

fn says(to: &str, text: &str) -> String {
    format!("<message to='{to}' type='chat'><body>{text}</body></message>")
}

async fn goes_on() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_page_that_comes_after_the_end_of_its_session_is_for_the_next_one() {
    for replaced in [false, true] {
        let (world, store) = World::with_store(100).await;
        let mut juliet = world.online("juliet/balcony").await;
        world.account("romeo").await;
        for n in 0..3 {
            juliet.sends(&says("romeo@localhost", &n.to_string())).await;
        }
        store.hold_pages();
        let mut cut = world.bind("romeo/orchard").await;
        let link = cut.link.clone();
        let mut coming = Box::pin(cut.begins("<presence/>"));
        assert!(coming.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "its page is being read");
        let successor = if replaced { Some(world.bind("romeo/orchard").await) } else { None };
        link.end(Vec::new()).await.complete().await.unwrap();
        store.release_pages();
        let _ = coming.await.complete().await;
        let mut romeo = match successor {
            Some(mut romeo) => {
                romeo.sends("<presence/>").await;
                romeo
            }
            None => world.online("romeo/orchard").await,
        };
        assert_eq!(romeo.reads_bodies(), ["0", "1", "2"], "replaced: {replaced}");
    }
}

#[tokio::test]
async fn what_one_session_got_is_not_refused_for_want_of_room_in_another() {
    let (world, _) = World::with_store(4).await;
    let mut fast = world.online("romeo/orchard").await;
    let mut slow = world.online("romeo/garden").await;
    fast.skip();
    slow.skip();
    let mut juliet = world.online("juliet/balcony").await;
    let hint = "<no-store xmlns='urn:xmpp:hints'/>";
    let says = |n: u32| format!("<message to='romeo@localhost' type='chat'><body>{n}</body>{hint}</message>");
    for n in 0..6 {
        juliet.sends(&says(n)).await;
        assert_eq!(fast.reads_bodies(), [n.to_string()]);
    }
    juliet.sees_nothing();
    fast.ends().await;
    juliet.sends(&says(6)).await;
    juliet.sees_error("service-unavailable");
}

#[tokio::test]
async fn a_normal_message_that_was_not_acknowledged_is_kept_and_not_refused() {
    for managed in [true, false] {
        let world = World::new().await;
        let mut juliet = world.online("juliet/balcony").await;
        if !managed {
            juliet = juliet.plain();
        }
        let romeo = world.online("romeo/orchard").await;
        juliet.sends("<message to='romeo@localhost/orchard'><body>normal</body></message>").await;
        romeo.ends().await;
        goes_on().await;
        juliet.sees_nothing();
        let mut romeo = world.online("romeo/garden").await;
        assert_eq!(romeo.reads_bodies(), ["normal"], "managed: {managed}");
        juliet.sends("<message to='romeo@localhost/orchard'><body>too late</body></message>").await;
        juliet.sees_error("service-unavailable");
        romeo.sees_nothing();
    }
}

#[tokio::test]
async fn what_a_replaced_session_still_told_others_comes_and_its_presence_does_not() {
    let world = World::new().await;
    let (romeo, mut juliet) = world.friends().await;
    let mut romeo = romeo;
    let _successor = world.bind("romeo/orchard").await;
    romeo.writes(&says("juliet@localhost", "before I go")).await.complete().await.unwrap();
    romeo.writes("<presence><show>away</show></presence>").await.complete().await.unwrap();
    assert_eq!(juliet.reads_bodies(), ["before I go"]);
    juliet.sees_nothing();
}

#[tokio::test]
async fn who_goes_unavailable_reads_no_more_of_the_queue() {
    for gone in ["<presence type='unavailable'/>", "<presence><priority>-1</priority></presence>"] {
        let (world, _) = World::with_store(8).await;
        let mut juliet = world.online("juliet/balcony").await;
        world.account("romeo").await;
        for n in 0..40 {
            juliet.sends(&says("romeo@localhost", &n.to_string())).await;
        }
        let mut romeo = world.bind("romeo/orchard").await;
        romeo.link.manage(Room { items: 5, bytes: 1 << 20 });
        romeo.sends("<presence/>").await;
        let mut read = romeo.reads_bodies();
        goes_on().await;
        romeo.sends(gone).await;
        juliet.sends(&says("romeo@localhost", "40")).await;
        for _ in 0..40 {
            goes_on().await;
            read.extend(romeo.reads_bodies());
        }
        assert!(read.len() <= 16, "{gone}: no more than memory had: {read:?}");
        // What is for the session itself comes all the same.
        juliet.sends(&says("romeo@localhost/orchard", "only you")).await;
        assert_eq!(romeo.reads_bodies(), ["only you"]);
        romeo.sends("<presence/>").await;
        for _ in 0..40 {
            goes_on().await;
            read.extend(romeo.reads_bodies());
        }
        assert_eq!(read, (0..=40).map(|n: u32| n.to_string()).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn who_goes_away_with_much_unread_is_gone_for_all_others_at_once() {
    for gone in ["<presence type='unavailable'/>", "<presence><priority>-1</priority></presence>"] {
        let world = World::with_inboxes_of(8).await;
        let (mut romeo, mut juliet) = world.friends().await;
        let mut garden = world.online("romeo/garden").await;
        let mut paris = world.online("paris/street").await;
        romeo.sends("<presence to='paris@localhost/street'/>").await;
        for person in [&mut romeo, &mut juliet, &mut garden, &mut paris] {
            person.skip();
        }
        for n in 0..6 {
            juliet.sends(&says("romeo@localhost/orchard", &n.to_string())).await;
        }
        // More than half of what waits for him may wait.
        let link = romeo.link.clone();
        let mut going = Box::pin(romeo.writes(gone));
        for _ in 0..100 {
            let told = going.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(told.is_pending(), "he is told when he reads");
            tokio::task::yield_now().await;
        }
        juliet.sees("<presence from='romeo@localhost/orchard'/>");
        garden.sees("<presence from='romeo@localhost/orchard'/>");
        if gone.contains("unavailable") {
            paris.sees("<presence from='romeo@localhost/orchard' type='unavailable'/>");
        }
        juliet.sends(&says("romeo@localhost", "for those who are there")).await;
        assert_eq!(garden.reads_bodies(), ["for those who are there"]);
        assert_eq!(link.take().iter().filter_map(|env| env.stanza.body()).count(), 6, "{gone}");
        going.await.complete().await.unwrap();
        romeo.sees("<presence from='romeo@localhost/orchard'/>");
        romeo.sees_nothing();
    }
}

#[tokio::test]
async fn a_message_for_which_two_sessions_have_no_room_is_kept_and_counted_once() {
    let limits = SessionLimits { inbox_items: 2, kept_items: 4, ..SessionLimits::default() };
    let world = World::over(Arc::new(MemoryStore::default()), Arc::new(FakeClock::at(1)), limits).await;
    let (mut orchard, mut garden) = (world.online("romeo/orchard").await, world.online("romeo/garden").await);
    orchard.skip();
    garden.skip();
    let mut paris = world.online("paris/street").await.plain();
    let stored = || world.node.parts.metrics.messages(Protocol::Xmpp, Outcome::Stored).get();
    for round in 1..=5 {
        for n in 0..6 {
            paris.sends(&says("romeo@localhost", &n.to_string())).await;
        }
        paris.sees_nothing();
        assert_eq!(stored(), round * 2);
        let mut read = [Vec::new(), Vec::new()];
        for _ in 0..20 {
            goes_on().await;
            read[0].extend(orchard.reads_bodies());
            read[1].extend(garden.reads_bodies());
        }
        assert_eq!(read[0], ["0", "1", "2", "3", "4", "5"]);
        assert_eq!(read[1].last().map(String::as_str), Some("5"), "it does not wait for what is settled");
    }
}

#[tokio::test]
async fn what_is_kept_and_what_is_refused_is_counted() {
    let world = World::new().await;
    let mut juliet = world.online("juliet/balcony").await;
    world.account("romeo").await;
    let count = |outcome| world.node.parts.metrics.messages(Protocol::Xmpp, outcome).get();
    juliet.sends(&says("romeo@localhost", "kept")).await;
    assert_eq!((count(Outcome::Stored), count(Outcome::Refused)), (1, 0));
    for to in ["nobody@localhost", "nobody@bots.localhost", "elsewhere.example", "pubsub.localhost"] {
        juliet.sends(&says(to, "refused")).await;
        juliet.skip();
    }
    juliet.sends("<message to='romeo@localhost' type='error'><body>hers</body></message>").await;
    assert_eq!((count(Outcome::Stored), count(Outcome::Refused)), (1, 4));
}

#[tokio::test]
async fn the_oldest_session_without_a_connection_gives_way() {
    let limits = SessionLimits { per_account: 3, ..SessionLimits::default() };
    let world = World::over(Arc::new(MemoryStore::default()), Arc::new(FakeClock::at(1)), limits).await;
    let sessions = [world.bind("romeo/1").await, world.bind("romeo/2").await, world.bind("romeo/3").await];
    let account = world.node.parts.homes.account(&sessions[0].jid().to_bare()).await.unwrap().unwrap();
    let bind = |name: &str| {
        let jid = sessions[0].jid().to_bare().with_resource(name).unwrap();
        world.node.router.bind(&account, jid)
    };
    assert!(bind("4").is_none(), "all three have connections");
    sessions[1].link.detach();
    sessions[2].link.detach();
    assert!(bind("4").is_some());
    let closed: Vec<_> = sessions.iter().map(|session| session.link.closed()).collect();
    assert_eq!(closed, [None, Some(Closed::Gone), None]);
    let fifth = bind("5").unwrap();
    assert!(bind("6").is_none(), "nobody else waits for a connection");
    fifth.detach();
    assert!(bind("6").is_some());
    sessions[0].link.detach();
    assert!(bind("7").is_none(), "as many as there may be are ending already");
}
