//! What is owed to sessions that die, are replaced, go away or do not read: nobody else loses by it.

use super::world::World;
use std::{
    future::Future,
    task::{Context, Waker},
};

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
