//! Rooms and people: dialogues over a real node.

use crate::tests::world::{Person, World};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tavi_core::FakeClock;
use tavi_store::MemoryStore;
use tokio::task::JoinSet;

const ROOM: &str = "verona@rooms.localhost";

async fn enters(person: &mut Person, nick: &str) {
    person.sends(&format!("<presence to='{ROOM}/{nick}'><x xmlns='http://jabber.org/protocol/muc'/></presence>")).await;
}

async fn says(person: &mut Person, body: &str) {
    person.sends(&format!("<message to='{ROOM}' type='groupchat'><body>{body}</body></message>")).await;
}

async fn configures(person: &mut Person, fields: &[(&str, &str)]) {
    let field =
        |(var, value): &(&str, &str)| format!("<field var='muc#roomconfig_{var}'><value>{value}</value></field>");
    let fields: String = fields.iter().map(field).collect();
    let form = format!("<x xmlns='jabber:x:data' type='submit'>{fields}</x>");
    let query = format!("<query xmlns='http://jabber.org/protocol/muc#owner'>{form}</query>");
    person.sends(&format!("<iq to='{ROOM}' type='set' id='c'>{query}</iq>")).await;
    person.sees("<iq type='result' id='c'/>");
}

/// Romeo's room, and Juliet in it.
async fn meeting(world: &World, fields: &[(&str, &str)]) -> (Person, Person) {
    let mut romeo = world.online("romeo/orchard").await;
    let mut juliet = world.online("juliet/balcony").await;
    enters(&mut romeo, "Romeo").await;
    romeo.skip();
    configures(&mut romeo, fields).await;
    enters(&mut juliet, "Juliet").await;
    (romeo, juliet)
}

fn went(nick: &str) -> String {
    format!(
        "<presence from='{ROOM}/{nick}' type='unavailable'>
         <x xmlns='http://jabber.org/protocol/muc#user'><item role='none'/></x></presence>"
    )
}

#[tokio::test]
async fn two_people_meet_in_a_room_talk_and_part() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = meeting(&world, &[]).await;
    romeo.sees(&format!("<presence from='{ROOM}/Juliet' to='romeo@localhost/orchard'/>"));
    juliet.sees(&format!("<presence from='{ROOM}/Romeo'/>"));
    juliet.sees(&format!(
        "<presence from='{ROOM}/Juliet'><x xmlns='http://jabber.org/protocol/muc#user'><status code='110'/></x></presence>"
    ));
    juliet.sees("<message type='groupchat'><subject/></message>");
    says(&mut juliet, "Good night").await;
    for person in [&mut romeo, &mut juliet] {
        person.sees(&format!("<message from='{ROOM}/Juliet' type='groupchat'><body>Good night</body><stanza-id xmlns='urn:xmpp:sid:0' by='{ROOM}' id='*'/></message>"));
    }
    juliet.sends(&format!("<presence to='{ROOM}/Juliet' type='unavailable'/>")).await;
    juliet.sees(&went("Juliet"));
    romeo.sees(&went("Juliet"));
    says(&mut juliet, "still here?").await;
    juliet.sees_error("not-acceptable");
    romeo.sees_nothing();
    // The last one to leave a temporary room ends it.
    romeo.sends("<presence type='unavailable'/>").await;
    romeo.skip();
    juliet
        .sends(&format!(
            "<iq to='{ROOM}' type='get' id='i'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>"
        ))
        .await;
    juliet.sees_error("item-not-found");
}

#[tokio::test]
async fn whoever_is_cut_off_has_left_the_room() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = meeting(&world, &[]).await;
    // A client that only ever was in rooms has sent no other presence.
    let mut quiet = world.bind("nurse/hall").await;
    enters(&mut quiet, "Nurse").await;
    romeo.skip();
    juliet.skip();
    juliet.ends().await;
    romeo.sees(&went("Juliet"));
    quiet.ends().await;
    romeo.sees(&went("Nurse"));
    romeo.sees_nothing();
}

#[tokio::test]
async fn a_session_that_another_one_replaced_has_left_unless_its_successor_is_in_the_room() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = meeting(&world, &[]).await;
    romeo.skip();
    juliet.skip();
    let mut successor = world.bind("juliet/balcony").await;
    juliet.ends().await;
    romeo.sees(&went("Juliet"));
    says(&mut successor, "Hi").await;
    // To the room it is the same address.
    successor.sees(&went("Juliet"));
    successor.sees_error("not-acceptable");
    enters(&mut successor, "Juliet").await;
    romeo.sees(&format!("<presence from='{ROOM}/Juliet'/>"));
    // Now the successor is there before the old one has ended.
    let mut third = world.bind("juliet/balcony").await;
    third.sends("<presence/>").await;
    enters(&mut third, "Juliet").await;
    successor.ends().await;
    romeo.sees_nothing();
    third.skip();
    says(&mut third, "Hi").await;
    third.sees("<message type='groupchat'><body>Hi</body></message>");
    romeo.sees("<message type='groupchat'><body>Hi</body></message>");
}

#[tokio::test]
async fn an_account_that_is_revoked_has_left() {
    let world = World::new().await;
    let (mut romeo, juliet) = meeting(&world, &[]).await;
    romeo.skip();
    world.node.parts.revoke(&juliet.jid().to_bare());
    // As its front end does when the seat is closed.
    juliet.ends().await;
    romeo.sees(&went("Juliet"));
}

#[tokio::test]
async fn an_account_that_was_made_later_inherits_nothing_of_its_name() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = meeting(&world, &[("persistentroom", "1"), ("membersonly", "0")]).await;
    romeo.sends(&format!("<iq to='{ROOM}' type='set' id='m'><query xmlns='http://jabber.org/protocol/muc#admin'><item jid='nurse@localhost' affiliation='owner'/></query></iq>")).await;
    romeo.skip();
    juliet.skip();
    world.clock.advance(1_000);
    let nurse = "nurse@localhost".parse().unwrap();
    world.node.parts.accounts.create(&nurse, "a long password").await.unwrap();
    let mut nurse = world.online("nurse/hall").await;
    enters(&mut nurse, "Nurse").await;
    juliet.sees("<presence><x xmlns='http://jabber.org/protocol/muc#user'><item affiliation='none'/></x></presence>");
    let query = "<query xmlns='http://jabber.org/protocol/muc#owner'/>";
    nurse.skip();
    nurse.sends(&format!("<iq to='{ROOM}' type='get' id='o'>{query}</iq>")).await;
    nurse.sees_error("forbidden");
}

#[tokio::test]
async fn after_a_restart_a_persistent_room_is_there_with_what_was_said_and_nobody_in_it() {
    let world = World::new().await;
    let (mut romeo, mut juliet) =
        meeting(&world, &[("persistentroom", "1"), ("roomname", "Verona"), ("publicroom", "1")]).await;
    says(&mut romeo, "Good morrow").await;
    romeo.sends(&format!("<message to='{ROOM}' type='groupchat'><subject>Feuds</subject></message>")).await;
    juliet.skip();
    let world = world.restart().await;
    let mut juliet = world.online("juliet/balcony").await;
    juliet.sees_nothing();
    says(&mut juliet, "lost").await;
    juliet.sees_error("not-acceptable");
    juliet
        .sends(
            "<iq to='rooms.localhost' type='get' id='l'><query xmlns='http://jabber.org/protocol/disco#items'/></iq>",
        )
        .await;
    juliet.sees(&format!("<iq type='result'><query xmlns='http://jabber.org/protocol/disco#items'><item jid='{ROOM}' name='Verona'/></query></iq>"));
    enters(&mut juliet, "Juliet").await;
    juliet.sees(&format!("<presence from='{ROOM}/Juliet'><x xmlns='http://jabber.org/protocol/muc#user'><item affiliation='none' role='participant'/></x></presence>"));
    juliet.sees(&format!("<message from='{ROOM}/Romeo' to='juliet@localhost/balcony'><body>Good morrow</body><delay xmlns='urn:xmpp:delay' from='{ROOM}' stamp='2026-11-22T15:00:00.000Z'/></message>"));
    juliet.sees(&format!("<message from='{ROOM}/Romeo'><subject>Feuds</subject></message>"));
    // It is Romeo's still, and stays when Juliet leaves.
    juliet.ends().await;
    let mut romeo = world.online("romeo/orchard").await;
    configures(&mut romeo, &[("roomname", "Mantua")]).await;
}

#[tokio::test]
async fn where_a_history_is_kept_nobody_hears_what_is_not_saved() {
    let store = Arc::new(MemoryStore::default());
    let world = World::over(store.clone(), Arc::new(FakeClock::at(1_795_359_600_000)), Default::default()).await;
    let (mut romeo, mut juliet) = meeting(&world, &[("persistentroom", "1")]).await;
    romeo.skip();
    juliet.skip();
    store.hold();
    let said = romeo.begins(&format!("<message to='{ROOM}' type='groupchat'><body>Hi</body></message>")).await;
    let acknowledged = tokio::spawn(said.complete());
    while store.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!acknowledged.is_finished(), "the sender's acknowledgement waits");
    juliet.sees_nothing();
    store.release_all();
    acknowledged.await.unwrap().unwrap();
    juliet.sees("<message><body>Hi</body></message>");
    romeo.sees("<message><body>Hi</body></message>");
}

#[tokio::test]
async fn a_burst_to_somebody_who_is_gone_holds_up_nobody() {
    let world = World::new().await;
    let (mut romeo, juliet) = meeting(&world, &[]).await;
    romeo.skip();
    // Her sessions are closed, and nobody has said so yet.
    world.node.parts.homes.expel(&juliet.jid().to_bare());
    let mut said = Vec::new();
    for n in 0..200 {
        let message = format!("<message to='{ROOM}' type='groupchat'><body>{n}</body></message>");
        said.push(romeo.begins(&message).await);
    }
    let all = async {
        for ticket in said {
            ticket.complete().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("no message is stuck");
    let heard = romeo.takes(201);
    let left: Vec<_> = heard.iter().filter(|text| !text.contains("<body>")).collect();
    assert!(left.len() == 1 && left[0].contains("code='333'"), "the room goes on without her: {left:?}");
}

#[tokio::test]
async fn accounts_make_rooms_and_not_too_many() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    for n in 0..20 {
        romeo
            .sends(&format!(
                "<presence to='r{n}@rooms.localhost/R'><x xmlns='http://jabber.org/protocol/muc'/></presence>"
            ))
            .await;
    }
    romeo.skip();
    let entry = "<presence to='r20@rooms.localhost/R'><x xmlns='http://jabber.org/protocol/muc'/></presence>";
    romeo.sends(entry).await;
    let error = romeo.sees_error("resource-constraint");
    assert!(error.contains("you have made 20 rooms"), "{error}");
    romeo.sends("<presence to='r0@rooms.localhost/R' type='unavailable'/>").await;
    romeo.skip();
    romeo.sends(entry).await;
    romeo.sees("<presence from='r20@rooms.localhost/R'/>");
    let mut bot = world.bot("herald").await;
    bot.sends("<presence to='bots@rooms.localhost/R'><x xmlns='http://jabber.org/protocol/muc'/></presence>").await;
    bot.sees_error("not-allowed");
}

#[tokio::test]
async fn what_is_not_there_answers_and_the_service_tells_what_it_is() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    romeo.sends("<message to='nowhere@rooms.localhost' type='groupchat'><body>Hi</body></message>").await;
    romeo.sees_error("item-not-found");
    romeo.sends("<presence to='nowhere@rooms.localhost/Romeo'/>").await;
    romeo.sees("<presence type='unavailable'><x xmlns='http://jabber.org/protocol/muc#user'><status code='333'/></x></presence>");
    romeo.sends("<iq to='nowhere@rooms.localhost/Romeo' type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    romeo.sees_error("not-acceptable");
    romeo
        .sends("<iq to='rooms.localhost' type='get' id='i'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>")
        .await;
    romeo.sees("<iq type='result'><query xmlns='http://jabber.org/protocol/disco#info'><identity category='conference' type='text'/><feature var='http://jabber.org/protocol/muc'/></query></iq>");
    romeo
        .sends("<iq to='localhost' type='get' id='d'><query xmlns='http://jabber.org/protocol/disco#items'/></iq>")
        .await;
    romeo.sees("<iq type='result'><query xmlns='http://jabber.org/protocol/disco#items'><item jid='rooms.localhost'/></query></iq>");
    romeo.sends("<message to='rooms.localhost'><body>Hi</body></message>").await;
    romeo.sees_error("service-unavailable");
    romeo.sends("<iq to='rooms.localhost' type='set' id='s'><query xmlns='jabber:iq:register'/></iq>").await;
    romeo.sees_error("service-unavailable");
}

const CROWD: usize = 200;

/// Everybody of a crowd is in the room.
async fn crowd(world: &World, fields: &[(&str, &str)]) -> Vec<Person> {
    let mut people = Vec::new();
    for n in 0..CROWD {
        let mut person = world.online(&format!("p{n}/r")).await;
        enters(&mut person, &format!("p{n}")).await;
        if n == 0 {
            person.skip();
            configures(&mut person, fields).await;
        }
        people.push(person);
    }
    people.iter_mut().for_each(Person::skip);
    people
}

/// Two hundred people write at once, and everybody reads all of it in one and the same order.
async fn all_speak_at_once(fields: &[(&str, &str)]) {
    let world = World::new().await;
    let mut speaking = JoinSet::new();
    for (n, mut person) in crowd(&world, fields).await.into_iter().enumerate() {
        speaking.spawn(async move {
            for line in 0..2 {
                says(&mut person, &format!("{n} {line}")).await;
            }
            person
        });
    }
    let mut people = speaking.join_all().await;
    let heard: Vec<Vec<String>> = people.iter_mut().map(Person::reads_bodies).collect();
    assert_eq!(heard[0].len(), CROWD * 2);
    let differs = heard.iter().filter(|lines| **lines != heard[0]).count();
    assert_eq!(differs, 0, "people heard another order than the first one");
    let mut next: HashMap<&str, u32> = HashMap::new();
    for line in &heard[0] {
        let (who, number) = line.split_once(' ').unwrap();
        let expected = next.entry(who).or_default();
        assert_eq!(number, expected.to_string(), "{who} is heard in the order of writing");
        *expected += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_speak_at_once_and_all_hear_one_order() {
    all_speak_at_once(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_where_everything_is_kept() {
    all_speak_at_once(&[("persistentroom", "1")]).await;
}
