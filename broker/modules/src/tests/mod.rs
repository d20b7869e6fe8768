//! Dialogues over several modules: the proof that the hook model holds.

mod documents;
mod handover;
mod hooks;
mod owed;
mod restart;
mod resumption;
pub(crate) mod world;
mod worlds;

use std::{
    future::Future,
    task::{Context, Poll, Waker},
};
use tavi_core::metrics::{Outcome, Protocol};
use world::World;

#[tokio::test]
async fn the_table_of_extensions_is_in_order_and_names_each_once() {
    let xeps = World::new().await.node.router.registry().xeps();
    assert!(xeps.len() > 10 && xeps.windows(2).all(|pair| pair[0].number < pair[1].number), "{xeps:?}");
}

#[tokio::test]
async fn two_people_chat_and_receipts_pass() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    romeo.sends(
        "<message to='juliet@localhost' type='chat' id='m1'><body>Hello</body><request xmlns='urn:xmpp:receipts'/></message>",
    ).await;
    juliet.sees(
        "<message from='romeo@localhost/orchard' to='juliet@localhost' type='chat' id='m1'><body>Hello</body>
         <request xmlns='urn:xmpp:receipts'/></message>",
    );
    juliet
        .sends("<message to='romeo@localhost/orchard' id='r1'><received xmlns='urn:xmpp:receipts' id='m1'/></message>")
        .await;
    romeo.sees(
        "<message from='juliet@localhost/balcony' id='r1'><received xmlns='urn:xmpp:receipts' id='m1'/></message>",
    );
    romeo.sees_nothing();
    juliet.sees_nothing();
}

#[tokio::test]
async fn more_than_an_inbox_holds_is_handed_over_piece_by_piece_and_newer_messages_follow() {
    let world = World::with_inboxes_of(8).await;
    let mut juliet = world.online("juliet/balcony").await;
    world.account("romeo").await;
    let says = |n: u32| format!("<message to='romeo@localhost' type='chat'><body>{n}</body></message>");
    for n in 0..300 {
        juliet.sends(&says(n)).await;
    }
    let mut romeo = world.online("romeo/orchard").await;
    let mut read = romeo.reads_bodies();
    assert!(!read.is_empty() && read.len() <= 8, "no more than the inbox: {read:?}");
    juliet.sends(&says(300)).await;
    // Each acknowledgement makes room; the hand-over goes on in a task of its own.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
        read.extend(romeo.reads_bodies());
    }
    let all: Vec<String> = (0..=300).map(|n: u32| n.to_string()).collect();
    assert_eq!(read, all);
    juliet.sends(&says(301)).await;
    assert_eq!(romeo.reads_bodies(), ["301"], "now it takes part in everything");
}

#[tokio::test]
async fn a_sender_who_reads_nothing_holds_up_nobody_to_whom_he_wrote() {
    let (world, store) = World::with_store(8).await;
    let mut balcony = world.online("juliet/balcony").await;
    let mut kitchen = world.online("juliet/kitchen").await;
    kitchen.sends("<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await;
    balcony.skip();
    kitchen.skip();
    let mut romeo = world.online("romeo/orchard").await;
    for n in 0..6 {
        balcony.sends(&format!("<message to='romeo@localhost/orchard' type='chat'><body>{n}</body></message>")).await;
    }
    kitchen.skip();
    store.hold();
    let mut route = Box::pin(
        romeo.writes("<message to='juliet@localhost/balcony' type='chat'><body>Art thou there?</body></message>"),
    );
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(mut ticket) = route.as_mut().poll(&mut cx) else {
        panic!("what is for others waits for no room of his")
    };
    balcony.sees_nothing();
    kitchen.sees_nothing();
    store.release_all();
    assert!(ticket.poll_done(&mut cx).is_ready(), "he still has no room");
    kitchen.sees("<message><received xmlns='urn:xmpp:carbons:2'/></message>");
    balcony.sees("<message from='romeo@localhost/orchard'><body>Art thou there?</body></message>");
}

#[tokio::test]
async fn who_comes_back_gets_what_was_kept_in_order() {
    let world = World::new().await;
    let (mut romeo, juliet) = world.friends().await;
    juliet.ends().await;
    romeo.skip();
    for n in 1..=3 {
        romeo.sends(&format!("<message to='juliet@localhost' type='chat'><body>{n}</body></message>")).await;
        world.clock.advance(1000);
    }
    romeo.sees_nothing();
    let world = world.restart().await;
    let mut juliet = world.online("juliet/balcony").await;
    juliet.sees(
        "<message from='romeo@localhost/orchard' type='chat'><body>1</body>
         <delay xmlns='urn:xmpp:delay' from='localhost' stamp='2026-11-22T15:00:00.000Z'/></message>",
    );
    juliet.sees("<message><body>2</body><delay xmlns='urn:xmpp:delay' stamp='2026-11-22T15:00:01.000Z'/></message>");
    juliet.sees("<message><body>3</body></message>");
    juliet.sees("<presence from='romeo@localhost' type='unavailable'/>");
    juliet.sees_nothing();

    // It was not acknowledged: the next session gets it again, and after the acknowledgement nobody does.
    juliet.ends().await;
    let mut juliet = world.online("juliet/chamber").await;
    juliet.skip();
    juliet.ends().await;
    let mut juliet = world.online("juliet/balcony").await;
    juliet.sees("<presence type='unavailable'/>");
    juliet.sees_nothing();
}

#[tokio::test]
async fn a_dead_session_s_messages_go_to_another_one_in_order() {
    let world = World::new().await;
    let (mut romeo, balcony) = world.friends().await;
    let mut plain = world.online("paris/street").await.plain();
    for n in 1..=3 {
        romeo.sends(&format!("<message to='juliet@localhost/balcony' type='chat'><body>{n}</body></message>")).await;
        plain.sends(&format!("<message to='juliet@localhost/balcony' type='chat'><body>p{n}</body></message>")).await;
    }
    let mut chamber = world.online("juliet/chamber").await;
    chamber.skip();
    balcony.ends().await;
    for body in ["1", "p1", "2", "p2", "3", "p3"] {
        chamber.sees(&format!("<message><body>{body}</body></message>"));
    }
    chamber.sees("<presence from='juliet@localhost/balcony' type='unavailable'/>");
    chamber.ends().await;
    let mut chamber = world.online("juliet/chamber").await;
    for body in ["1", "p1", "2", "p2", "3", "p3"] {
        chamber.sees(&format!("<message><body>{body}</body><delay xmlns='urn:xmpp:delay'/></message>"));
    }
    chamber.sees("<presence from='romeo@localhost/orchard'/>");
}

#[tokio::test]
async fn what_two_sessions_got_is_not_given_again_to_the_one_that_lives() {
    let world = World::new().await;
    let (mut romeo, mut balcony) = world.friends().await;
    let mut chamber = world.online("juliet/chamber").await;
    chamber.skip();
    balcony.skip();
    romeo.sends("<message to='juliet@localhost' type='chat'><body>Both of you</body></message>").await;
    chamber.sees("<message><body>Both of you</body></message>");
    balcony.sees("<message><body>Both of you</body></message>");
    balcony.ends().await;
    chamber.sees("<presence from='juliet@localhost/balcony' type='unavailable'/>");
    chamber.sees_nothing();
    chamber.ends().await;
    let mut balcony = world.online("juliet/balcony").await;
    balcony.sees("<message><body>Both of you</body></message>");
    balcony.sees("<presence from='romeo@localhost/orchard'/>");
    balcony.sees_nothing();
}

#[tokio::test]
async fn what_a_session_that_does_not_read_has_no_room_for_is_kept_and_comes_in_order() {
    let world = World::with_inboxes_of(3).await;
    let mut romeo = world.online("romeo/orchard").await;
    let mut paris = world.online("paris/street").await.plain();
    let mut juliet = world.online("juliet/balcony").await;
    for n in 1..=9 {
        romeo.sends(&format!("<message to='juliet@localhost' type='chat'><body>{n}</body></message>")).await;
        paris.sends(&format!("<message to='juliet@localhost' type='chat'><body>p{n}</body></message>")).await;
    }
    let all: Vec<String> = (1..=9).flat_map(|n: u32| [n.to_string(), format!("p{n}")]).collect();
    assert_eq!(juliet.link.closed(), None);
    let mut read = Vec::new();
    while read.len() < 9 {
        read.extend(juliet.reads_bodies());
        tokio::task::yield_now().await;
    }
    juliet.ends().await;
    romeo.sees_nothing();
    paris.sees_nothing();
    let world = world.restart().await;
    let mut juliet = world.online("juliet/balcony").await;
    while read.len() < all.len() {
        read.extend(juliet.reads_bodies());
        tokio::task::yield_now().await;
    }
    assert_eq!(read, all);
}

#[tokio::test]
async fn a_session_that_does_not_read_is_cut_off_by_what_is_neither_kept_nor_dropped() {
    let world = World::with_inboxes_of(3).await;
    let mut romeo = world.online("romeo/orchard").await;
    let juliet = world.online("juliet/balcony").await;
    for n in 1..=4 {
        let ping = "<ping xmlns='urn:xmpp:ping'/>";
        romeo.sends(&format!("<iq to='juliet@localhost/balcony' type='get' id='{n}'>{ping}</iq>")).await;
    }
    assert_eq!(juliet.link.closed(), Some(tavi_core::Closed::Overflow));
    romeo.sees_error("service-unavailable");
}

#[tokio::test]
async fn a_session_that_does_not_read_goes_without_headlines_copies_and_events_and_is_not_ended() {
    let world = World::with_inboxes_of(8).await;
    let mut juliet = world.online("juliet/balcony").await;
    let (mut romeo, mut garden) = (world.online("romeo/orchard").await, world.online("romeo/garden").await);
    romeo.sends("<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await;
    let events = "http://jabber.org/protocol/pubsub";
    world.grant("romeo@localhost", "subscribe,publish", "news/#").await;
    let subscribe = "<subscribe node='news/today' jid='romeo@localhost'/>";
    romeo
        .sends(&format!(
            "<iq type='set' to='pubsub.localhost' id='s'><pubsub xmlns='{events}'>{subscribe}</pubsub></iq>"
        ))
        .await;
    for person in [&mut romeo, &mut garden, &mut juliet] {
        person.skip();
    }
    for n in 0..30 {
        juliet
            .sends(&format!("<message to='romeo@localhost/orchard' type='headline'><body>{n}</body></message>"))
            .await;
        juliet.sends(&format!("<message to='romeo@localhost/garden' type='chat'><body>{n}</body></message>")).await;
        let item = format!("<publish node='news/today'><item id='i'><a xmlns='urn:a'>{n}</a></item></publish>");
        garden
            .sends(&format!(
                "<iq type='set' to='pubsub.localhost' id='p'><pubsub xmlns='{events}'>{item}</pubsub></iq>"
            ))
            .await;
        assert_eq!(garden.reads_bodies(), [n.to_string()]);
    }
    assert_eq!(romeo.link.closed(), None);
    let dropped = || world.node.parts.metrics.messages(Protocol::Xmpp, Outcome::Dropped).get();
    assert_eq!(dropped(), 90 - 8);
    // What is kept, and presence, finds its room.
    juliet.sends("<presence to='romeo@localhost/orchard'/>").await;
    juliet.sends("<message to='romeo@localhost/orchard' type='chat'><body>for you</body></message>").await;
    romeo.sees("<presence from='juliet@localhost/balcony'/>");
    romeo.sees("<message><body>for you</body></message>");
    romeo.sees_nothing();
    assert_eq!(dropped(), 90);
}

#[tokio::test]
async fn a_request_to_a_session_that_went_away_is_answered() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    let juliet = world.online("juliet/balcony").await;
    romeo.sends("<iq type='get' to='juliet@localhost/balcony' id='1'><query xmlns='jabber:iq:version'/></iq>").await;
    romeo.sees_nothing();
    juliet.ends().await;
    romeo.sees_error("service-unavailable");
    romeo.sends("<iq type='get' to='juliet@localhost/balcony' id='2'><query xmlns='jabber:iq:version'/></iq>").await;
    romeo.sees_error("service-unavailable");
}

#[tokio::test]
async fn what_only_tells_of_an_earlier_message_comes_back_from_nobody_as_an_error() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    world.account("juliet").await;
    let normal = |what: &str| format!("<message to='juliet@localhost/gone' id='1'>{what}</message>");
    for notice in [
        "<received xmlns='urn:xmpp:receipts' id='m1'/>",
        "<displayed xmlns='urn:xmpp:chat-markers:0' id='m1'/>",
        "<paused xmlns='http://jabber.org/protocol/chatstates'/>",
    ] {
        romeo.sends(&normal(notice)).await;
        romeo.sees_nothing();
    }
    for message in [
        "<body>Hello</body>",
        "<body>Hello</body><request xmlns='urn:xmpp:receipts'/>",
        "<x xmlns='jabber:x:conference'/>",
    ] {
        romeo.sends(&normal(message)).await;
        romeo.sees_error("service-unavailable");
    }
}

#[tokio::test]
async fn a_new_session_with_the_same_resource_takes_the_place_of_the_old_one() {
    let world = World::new().await;
    let (mut romeo, old) = world.friends().await;
    romeo.sends("<message to='juliet@localhost/balcony' type='chat'><body>1</body></message>").await;
    let mut new = world.online("juliet/balcony").await;
    assert_eq!(old.link.closed(), Some(tavi_core::Closed::Replaced));
    new.sees("<message><body>1</body><delay xmlns='urn:xmpp:delay'/></message>");
    romeo.skip();
    new.skip();
    old.ends().await;
    new.sees_nothing();
    romeo.sends("<message to='juliet@localhost/balcony' type='chat'><body>2</body></message>").await;
    new.sees("<message><body>2</body></message>");
    romeo.sees_nothing();
}

#[tokio::test]
async fn a_removed_account_is_seen_to_go_and_gets_nothing_more() {
    let world = World::new().await;
    let (mut romeo, juliet) = world.friends().await;
    world.node.parts.accounts.remove(&juliet.jid().to_bare()).await.unwrap();
    world.node.parts.revoke(&juliet.jid().to_bare());
    juliet.ends().await;
    romeo.sees("<presence from='juliet@localhost/balcony' type='unavailable'/>");
    romeo.sends("<message to='juliet@localhost' type='chat'><body>Hello?</body></message>").await;
    romeo.sees_error("service-unavailable");
}

#[tokio::test]
async fn a_message_counts_only_when_it_is_durable() {
    let (world, store) = World::delayed().await;
    let mut romeo = world.bind("romeo/orchard").await;
    let mut home = world.bind("romeo/home").await;
    home.begins("<presence/>").await.complete().await.unwrap();
    home.skip();
    let ticket = romeo.begins("<message to='romeo@localhost' type='chat'><body>1</body></message>").await;
    // The key of his archive's ids, and the message with its row.
    assert_eq!(store.waiting(), 2);
    home.sees_nothing();
    store.release(1);
    home.sees_nothing();
    store.release_all();
    ticket.complete().await.unwrap();
    home.sees("<message><body>1</body></message>");
}
