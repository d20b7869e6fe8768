//! Scenarios of the archive, as people see it.

use crate::tests::world::{Person, World};
use std::{
    task::{Context, Waker},
    time::Duration,
};
use tavi_store::{ArchiveQuery, Expect, Op, Owner, Store, StoreError, Table};
use tavi_xmpp_proto::{Element, ns};

const HINTS: &str = "urn:xmpp:hints";

/// A query with a form of these fields, and what stands beside the form.
fn query(fields: &[(&str, &str)], beside: &str) -> String {
    let fields: String =
        fields.iter().map(|(var, value)| format!("<field var='{var}'><value>{value}</value></field>")).collect();
    format!(
        "<iq type='set' id='m'><query xmlns='urn:xmpp:mam:2' queryid='q&lt;1'>
         <x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>urn:xmpp:mam:2</value></field>{fields}</x>
         {beside}</query></iq>"
    )
}

fn set(rsm: &str) -> String {
    format!("<set xmlns='http://jabber.org/protocol/rsm'>{rsm}</set>")
}

/// What came for a query.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    ids: Vec<String>,
    bodies: Vec<String>,
    first: Option<String>,
    last: Option<String>,
    complete: bool,
}

impl Person {
    /// Asks, and reads the messages up to the answer.
    async fn archived(&mut self, fields: &[(&str, &str)], beside: &str) -> Seen {
        self.archived_by(&query(fields, beside)).await
    }

    async fn archived_by(&mut self, iq: &str) -> Seen {
        self.sends(iq).await;
        let mut seen = Seen::default();
        loop {
            let text = self.takes(1).remove(0);
            let stanza = Element::parse(text.as_bytes(), ns::CLIENT).unwrap_or_else(|error| panic!("{text}: {error}"));
            if let Some(result) = stanza.get_child(ns::MAM, "result") {
                assert_eq!(stanza.get_attr("to"), Some(self.jid().as_str()), "{text}");
                assert_eq!(stanza.get_attr("from"), Some(self.jid().bare()), "{text}");
                assert_eq!(result.get_attr("queryid"), Some("q<1"), "{text}");
                let forwarded = result.get_child(ns::FORWARD, "forwarded").unwrap_or_else(|| panic!("{text}"));
                assert!(forwarded.get_child(ns::DELAY, "delay").is_some_and(|delay| delay.get_attr("stamp").is_some()));
                let message = forwarded.get_child(ns::CLIENT, "message").unwrap_or_else(|| panic!("{text}"));
                seen.ids.push(result.get_attr("id").unwrap().into());
                seen.bodies.extend(message.get_child(ns::CLIENT, "body").map(Element::text_content));
                continue;
            }
            let fin = stanza.get_child(ns::MAM, "fin").unwrap_or_else(|| panic!("{text}"));
            let set = fin.get_child(ns::RSM, "set").unwrap_or_else(|| panic!("{text}"));
            let end = |name| set.get_child(ns::RSM, name).map(Element::text_content);
            (seen.first, seen.last) = (end("first"), end("last"));
            seen.complete = fin.get_attr("complete") == Some("true");
            return seen;
        }
    }

    /// A chat message.
    async fn chats(&mut self, to: &str, body: &str) {
        self.sends(&format!("<message to='{to}' type='chat'><body>{body}</body></message>")).await;
    }
}

/// The stanza id that a message carries.
fn stanza_id(text: &str, by: &str) -> Option<String> {
    let stanza = Element::parse(text.as_bytes(), ns::CLIENT).unwrap();
    let ids: Vec<_> = stanza.elements().filter(|child| child.is(ns::STANZA_ID, "stanza-id")).collect();
    let own: Vec<_> = ids.into_iter().filter(|id| id.get_attr("by") == Some(by)).collect();
    assert!(own.len() <= 1, "{text}");
    own.first().and_then(|id| id.get_attr("id")).map(str::to_owned)
}

async fn couple() -> (World, Person, Person) {
    let world = World::new().await;
    let (romeo, juliet) = (world.online("romeo/orchard").await, world.online("juliet/balcony").await);
    (world, romeo, juliet)
}

#[tokio::test]
async fn a_broker_without_archives_says_so() {
    let world = World::new().await;
    let settings = crate::Settings { archive: false, ..crate::Settings::default() };
    let mut registry = tavi_core::Registry::default();
    crate::register_with(&mut registry, &world.node.parts, &settings).unwrap();
    assert!(registry.xeps().iter().all(|xep| xep.number != 313));
    assert!(registry.features().iter().all(|feature| feature.var != tavi_xmpp_proto::ns::MAM));
}

#[tokio::test]
async fn both_sides_find_what_they_said_and_the_id_is_the_one_that_came_with_it() {
    let (_world, mut romeo, mut juliet) = couple().await;
    romeo.chats("juliet@localhost", "Call me but love").await;
    let first = juliet.takes(1).remove(0);
    juliet.chats("romeo@localhost/orchard", "What man art thou").await;
    let second = romeo.takes(1).remove(0);
    let hers = juliet.archived(&[], "").await;
    let his = romeo.archived(&[], "").await;
    for seen in [&hers, &his] {
        assert_eq!(seen.bodies, ["Call me but love", "What man art thou"]);
        assert!(seen.complete);
        assert_eq!((&seen.first, &seen.last), (&Some(seen.ids[0].clone()), &Some(seen.ids[1].clone())));
    }
    assert_eq!(stanza_id(&first, "juliet@localhost").as_ref(), Some(&hers.ids[0]));
    assert_eq!(stanza_id(&second, "romeo@localhost").as_ref(), Some(&his.ids[1]));
    // XEP-0313 §3.4: nobody learns the ids of another one's archive.
    assert_eq!((stanza_id(&first, "romeo@localhost"), stanza_id(&second, "juliet@localhost")), (None, None));
    assert!(hers.ids.iter().all(|id| !his.ids.contains(id)));
}

#[tokio::test]
async fn a_message_is_archived_before_its_sender_s_acknowledgement_in_one_commit_with_its_row() {
    let (world, store) = World::delayed().await;
    let (mut romeo, juliet) = (world.bind("romeo/orchard").await, Owner::account("juliet@localhost"));
    let account = Op::Put { table: Table::Account, item: "".into(), value: "x".into(), expect: Expect::Any };
    drop(store.commit(&juliet, vec![account]));
    store.release_all();
    let mut ticket = romeo.begins("<message to='juliet@localhost' type='chat'><body>Hi</body></message>").await;
    let owners = store.waiting_owners();
    // Each account's key, then the message at both.
    assert_eq!((owners.len(), owners.iter().filter(|owner| **owner == juliet).count()), (4, 2));
    let all = ArchiveQuery { limit: 10, ..ArchiveQuery::default() };
    for left in (0..4).rev() {
        let done = ticket.poll_done(&mut Context::from_waker(Waker::noop()));
        assert!(done.is_pending(), "{left} commits wait");
        store.release(1);
    }
    ticket.complete().await.unwrap();
    let archived = store.archive(&juliet, &all).await.unwrap();
    let queued = store.queue(&juliet, 0, 10).await.unwrap();
    assert_eq!((archived.len(), queued.len()), (1, 1));
    assert!(queued[0].archived && queued[0].id == archived[0].id && queued[0].value == archived[0].value);
    assert_eq!(store.archive(&Owner::account("romeo@localhost"), &all).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_was_cut_before_its_commit_is_nowhere_and_was_never_acknowledged() {
    let (world, store) = World::with_store(100).await;
    let mut romeo = world.online("romeo/orchard").await;
    world.account("juliet").await;
    romeo.chats("juliet@localhost", "kept").await;
    store.hold();
    let _unacknowledged = romeo.begins("<message to='juliet@localhost' type='chat'><body>lost</body></message>").await;
    assert_eq!(store.waiting(), 2);
    // The power fails: what waits is gone.
    while store.refuse(StoreError::Unavailable("cut".into())) {}
    let world = world.restart().await;
    let mut juliet = world.bind("juliet/balcony").await;
    assert_eq!(juliet.archived(&[], "").await.bodies, ["kept"]);
    let mut romeo = world.bind("romeo/orchard").await;
    assert_eq!(romeo.archived(&[], "").await.bodies, ["kept"]);
}

#[tokio::test]
async fn offline_delivery_is_a_view_of_the_archive() {
    let (world, store) = World::with_store(100).await;
    let mut romeo = world.online("romeo/orchard").await;
    world.account("juliet").await;
    for n in 0..3 {
        romeo.chats("juliet@localhost", &n.to_string()).await;
    }
    let owner = Owner::account("juliet@localhost");
    let queued = store.queue(&owner, 0, 10).await.unwrap();
    assert!(queued.len() == 3 && queued.iter().all(|row| row.archived));
    // Its process ends before she comes.
    let world = world.restart().await;
    let mut juliet = world.online("juliet/balcony").await;
    let messages = juliet.takes(3);
    let seen = juliet.archived(&[], "").await;
    assert_eq!(seen.bodies, ["0", "1", "2"]);
    for (message, id) in messages.iter().zip(&seen.ids) {
        assert_eq!(stanza_id(message, "juliet@localhost").as_ref(), Some(id), "{message}");
        assert!(message.contains("<delay"), "{message}");
    }
    juliet.acks();
    assert!(store.queue(&owner, 0, 10).await.unwrap().is_empty());
    assert_eq!(juliet.archived(&[], "").await.ids, seen.ids);
}

#[tokio::test]
async fn copies_carry_the_ids_of_the_archive_of_whoever_gets_them() {
    let (world, mut romeo, mut juliet) = couple().await;
    let mut chamber = world.online("juliet/chamber").await;
    juliet.skip();
    for session in [&mut juliet, &mut chamber] {
        session.sends("<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await;
        session.skip();
    }
    let forwarded = |text: &str, name: &str| {
        let copy = Element::parse(text.as_bytes(), ns::CLIENT).unwrap();
        let copy = copy.get_child(ns::CARBONS, name).unwrap_or_else(|| panic!("{text}"));
        let message = copy.get_child(ns::FORWARD, "forwarded").unwrap().get_child(ns::CLIENT, "message").unwrap();
        message.to_xml(ns::CLIENT)
    };
    romeo.chats("juliet@localhost/balcony", "one").await;
    let received = forwarded(&chamber.takes(1)[0], "received");
    juliet.skip();
    juliet.chats("romeo@localhost", "two").await;
    let sent = forwarded(&chamber.takes(1)[0], "sent");
    let there = romeo.takes(1).remove(0);
    let seen = juliet.archived(&[], "").await;
    assert_eq!(seen.bodies, ["one", "two"]);
    assert_eq!(stanza_id(&received, "juliet@localhost").as_ref(), Some(&seen.ids[0]));
    assert_eq!(stanza_id(&sent, "juliet@localhost").as_ref(), Some(&seen.ids[1]));
    assert_eq!(stanza_id(&there, "juliet@localhost"), None);
}

#[tokio::test]
async fn what_one_sends_to_oneself_is_archived_once_and_found_under_one_s_own_address() {
    let (world, mut romeo, mut juliet) = couple().await;
    let mut home = world.online("romeo/home").await;
    romeo.skip();
    romeo.chats("juliet@localhost", "to her").await;
    juliet.skip();
    let to_self = [
        "<message to='romeo@localhost' type='chat'><body>bare</body></message>",
        "<message to='romeo@localhost/home' type='chat'><body>full</body></message>",
        "<message type='chat'><body>nobody</body></message>",
    ];
    for message in to_self {
        romeo.sends(message).await;
    }
    home.skip();
    romeo.skip();
    let all = romeo.archived(&[], "").await;
    assert_eq!(all.bodies, ["to her", "bare", "full", "nobody"]);
    let own = romeo.archived(&[("with", "romeo@localhost")], "").await;
    assert_eq!(own.bodies, ["bare", "full", "nobody"]);
}

#[tokio::test]
async fn forged_ids_are_taken_away_and_others_stay() {
    let (_world, mut romeo, mut juliet) = couple().await;
    let ids = "<stanza-id xmlns='urn:xmpp:sid:0' by='juliet@localhost' id='forged'/>
        <stanza-id xmlns='urn:xmpp:sid:0' by='JULIET@LOCALHOST' id='forged'/>
        <stanza-id xmlns='urn:xmpp:sid:0' by='romeo@localhost' id='forged'/>
        <stanza-id xmlns='urn:xmpp:sid:0' by='room@rooms.example' id='other'/>
        <origin-id xmlns='urn:xmpp:sid:0' id='mine'/>";
    romeo.sends(&format!("<message to='juliet@localhost' type='chat'><body>Hi</body>{ids}</message>")).await;
    let seen = juliet.takes(1).remove(0);
    assert!(!seen.contains("forged") && seen.contains("mine"), "{seen}");
    assert_eq!(stanza_id(&seen, "room@rooms.example").as_deref(), Some("other"));
    // A message that is not archived is no exception.
    romeo.sends(&format!("<message to='juliet@localhost' type='headline'><body>Hi</body>{ids}</message>")).await;
    let seen = juliet.takes(1).remove(0);
    assert!(!seen.contains("forged") && seen.contains("other"), "{seen}");
}

#[tokio::test]
async fn what_does_not_last_or_must_not_be_stored_is_not_archived() {
    let (_world, mut romeo, mut juliet) = couple().await;
    let cases = [
        "<body>no</body><no-store xmlns='urn:xmpp:hints'/>".to_owned(),
        format!("<body>no</body><no-permanent-store xmlns='{HINTS}'/>"),
        "<composing xmlns='http://jabber.org/protocol/chatstates'/>".to_owned(),
    ];
    for inside in cases {
        romeo.sends(&format!("<message to='juliet@localhost' type='chat'>{inside}</message>")).await;
    }
    for type_ in ["headline", "error", "groupchat"] {
        romeo.sends(&format!("<message to='juliet@localhost/balcony' type='{type_}'><body>no</body></message>")).await;
    }
    romeo.sends("<message to='juliet@localhost/gone'><body>refused</body></message>").await;
    romeo
        .sends(&format!(
            "<message to='juliet@localhost' type='chat'><x xmlns='urn:x'/><store xmlns='{HINTS}'/></message>"
        ))
        .await;
    juliet.skip();
    let seen = juliet.archived(&[], "").await;
    assert_eq!((seen.ids.len(), seen.bodies.len()), (1, 0));
}

#[tokio::test]
async fn pages_go_both_ways_and_say_when_there_is_no_more() {
    let (_world, mut romeo, mut juliet) = couple().await;
    for n in 0..10 {
        romeo.chats("juliet@localhost", &n.to_string()).await;
    }
    juliet.skip();
    let all = juliet.archived(&[], "").await;
    let id = |n: usize| all.ids[n].clone();
    let numbers = |range: std::ops::Range<usize>| range.map(|n| n.to_string()).collect::<Vec<_>>();
    let cases = [
        ("<max>3</max>".to_owned(), 0..3, false),
        (format!("<max>3</max><after>{}</after>", id(2)), 3..6, false),
        (format!("<max>4</max><after>{}</after>", id(5)), 6..10, true),
        (format!("<max>4</max><after>{}</after>", id(9)), 0..0, true),
        ("<max>3</max><before/>".to_owned(), 7..10, false),
        (format!("<max>3</max><before>{}</before>", id(7)), 4..7, false),
        (format!("<max>4</max><before>{}</before>", id(4)), 0..4, true),
        ("<max>10</max><before/>".to_owned(), 0..10, true),
        ("<max>0</max>".to_owned(), 0..0, false),
    ];
    for (rsm, range, complete) in cases {
        let seen = juliet.archived(&[], &set(&rsm)).await;
        assert_eq!((seen.bodies, seen.complete), (numbers(range.clone()), complete), "{rsm}");
        let ends = (!range.is_empty()).then(|| (id(range.start), id(range.end - 1)));
        assert_eq!(seen.first.zip(seen.last), ends, "{rsm}");
        let flipped = juliet.archived(&[], &format!("{}<flip-page/>", set(&rsm))).await;
        assert_eq!(flipped.bodies, numbers(range.clone()).into_iter().rev().collect::<Vec<_>>(), "{rsm}");
        assert_eq!(flipped.first.zip(flipped.last), (!range.is_empty()).then(|| (id(range.start), id(range.end - 1))));
    }
    let between = juliet.archived(&[("after-id", &id(2)), ("before-id", &id(6))], "").await;
    assert_eq!(between.bodies, numbers(3..6));
    let between = juliet.archived(&[("after-id", &id(2))], &set("<max>2</max><before/>")).await;
    assert_eq!((between.bodies, between.complete), (numbers(8..10), false));
    let ids = format!("<value>{}</value><value>{}</value><value>{}</value>", id(7), id(3), id(7));
    let named = query(&[("ids", "")], "").replace("<value></value>", &ids);
    assert_eq!(juliet.archived_by(&named).await.bodies, ["3", "7"]);
    let first = named.replace("</x>", "</x><set xmlns='http://jabber.org/protocol/rsm'><max>1</max></set>");
    let seen = juliet.archived_by(&first).await;
    assert_eq!((seen.bodies, seen.complete), (numbers(3..4), false));
}

#[tokio::test]
async fn an_id_that_is_not_in_the_archive_is_an_error() {
    let (_world, mut romeo, mut juliet) = couple().await;
    let unknown = "0123456789abcdef0123456789abcdef";
    juliet.sends(&query(&[], &set(&format!("<after>{unknown}</after>")))).await;
    juliet.sees_error("item-not-found");
    romeo.chats("juliet@localhost", "Hi").await;
    juliet.skip();
    let his = romeo.archived(&[], "").await.ids.remove(0);
    let too_many = format!("<value>{unknown}</value>");
    for wrong in [unknown, &his, "x", &"é".repeat(16)] {
        for name in ["after-id", "before-id", "ids"] {
            juliet.sends(&query(&[(name, wrong)], "")).await;
            juliet.sees_error("item-not-found");
        }
        for name in ["after", "before"] {
            juliet.sends(&query(&[], &set(&format!("<{name}>{wrong}</{name}>")))).await;
            juliet.sees_error("item-not-found");
        }
    }
    juliet.sends(&query(&[("ids", "")], "").replace("<value></value>", &too_many.repeat(251))).await;
    juliet.sees_error("resource-constraint");
}

#[tokio::test]
async fn messages_are_found_by_correspondent_and_time() {
    let (world, mut romeo, mut juliet) = couple().await;
    let mut nurse = world.online("nurse/room").await;
    let start = tavi_core::clock::xmpp_time(1_795_359_600_000);
    for n in 0..3 {
        romeo.chats("juliet@localhost", &format!("romeo {n}")).await;
        nurse.chats("juliet@localhost", &format!("nurse {n}")).await;
        juliet.chats("romeo@localhost/orchard", &format!("juliet {n}")).await;
        world.clock.advance(60_000);
    }
    juliet.skip();
    let with = |who: &'static str| [("with", who)];
    assert_eq!(juliet.archived(&with("nurse@localhost"), "").await.bodies, ["nurse 0", "nurse 1", "nurse 2"]);
    let romeos = juliet.archived(&with("romeo@localhost"), "").await.bodies;
    assert_eq!(romeos, ["romeo 0", "juliet 0", "romeo 1", "juliet 1", "romeo 2", "juliet 2"]);
    assert_eq!(juliet.archived(&with("romeo@localhost/orchard"), "").await.bodies, romeos);
    let page = juliet.archived(&with("romeo@localhost/orchard"), &set("<max>2</max><before/>")).await;
    assert_eq!((page.bodies, page.complete), (romeos[4..].to_vec(), false));
    let none = juliet.archived(&with("romeo@localhost/elsewhere"), "").await;
    assert_eq!((none.ids.len(), none.complete), (0, true));
    assert!(juliet.archived(&with("paris@localhost"), "").await.complete);
    let minute = tavi_core::clock::xmpp_time(1_795_359_660_000);
    let within = juliet.archived(&[("start", &minute), ("end", &minute)], "").await;
    assert_eq!(within.bodies, ["romeo 1", "nurse 1", "juliet 1"]);
    let from = juliet.archived(&[("start", &start), ("with", "nurse@localhost")], "").await;
    assert_eq!(from.bodies.len(), 3);
    let later = minute.replace(".000Z", ".0001Z");
    assert_eq!(juliet.archived(&[("start", &later), ("with", "nurse@localhost")], "").await.bodies, ["nurse 2"]);
    let stamps = juliet.archived(&[("end", &start), ("with", "nurse@localhost")], "").await;
    assert_eq!(stamps.bodies, ["nurse 0"]);
}

#[tokio::test]
async fn the_archive_tells_its_ends_and_its_form() {
    let (_world, mut romeo, mut juliet) = couple().await;
    let metadata = "<iq type='get' id='1'><metadata xmlns='urn:xmpp:mam:2'/></iq>";
    juliet.sends(metadata).await;
    let empty = juliet.sees("<iq type='result' id='1'><metadata xmlns='urn:xmpp:mam:2'/></iq>");
    assert!(!empty.contains("start"), "{empty}");
    for n in 0..3 {
        romeo.chats("juliet@localhost", &n.to_string()).await;
    }
    juliet.skip();
    let ids = juliet.archived(&[], "").await.ids;
    juliet.sends(metadata).await;
    juliet.sees(&format!(
        "<iq type='result' id='1'><metadata xmlns='urn:xmpp:mam:2'>
         <start id='{}' timestamp='2026-11-22T15:00:00.000Z'/><end id='{}' timestamp='2026-11-22T15:00:00.000Z'/></metadata></iq>",
        ids[0], ids[2]
    ));
    juliet.sends("<iq type='get' to='juliet@localhost' id='2'><query xmlns='urn:xmpp:mam:2'/></iq>").await;
    juliet.sees(
        "<iq type='result' id='2'><query xmlns='urn:xmpp:mam:2'><x xmlns='jabber:x:data' type='form'>
         <field type='hidden' var='FORM_TYPE'><value>urn:xmpp:mam:2</value></field>
         <field type='jid-single' var='with'/><field type='text-single' var='start'/><field type='text-single' var='end'/>
         <field type='text-single' var='before-id'/><field type='text-single' var='after-id'/>
         <field type='list-multi' var='ids'><validate xmlns='http://jabber.org/protocol/xdata-validate' datatype='xs:string'><open/></validate></field>
         </x></query></iq>",
    );
    juliet
        .sends(
            "<iq type='get' to='juliet@localhost' id='3'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>",
        )
        .await;
    juliet.sees(
        "<iq type='result' id='3'><query xmlns='http://jabber.org/protocol/disco#info'><feature var='urn:xmpp:mam:2'/>
         <feature var='urn:xmpp:mam:2#extended'/><feature var='urn:xmpp:sid:0'/></query></iq>",
    );
}

#[tokio::test]
async fn an_archive_is_its_owner_s_alone() {
    let (world, mut romeo, _juliet) = couple().await;
    world.account("nurse").await;
    for who in ["juliet", "nurse", "nobody"] {
        for payload in ["query", "metadata", "prefs"] {
            let type_ = if payload == "query" { "set" } else { "get" };
            romeo
                .sends(&format!(
                    "<iq type='{type_}' to='{who}@localhost' id='1'><{payload} xmlns='urn:xmpp:mam:2'/></iq>"
                ))
                .await;
            romeo.sees_error("forbidden");
        }
    }
}

#[tokio::test]
async fn whoever_does_not_want_it_is_not_archived_and_still_gets_everything() {
    let (world, mut romeo, mut juliet) = couple().await;
    let prefs = |default: &str, always: &str, never: &str| {
        let list = |name: &str, jids: &str| {
            let jids: String = jids.split_whitespace().map(|jid| format!("<jid>{jid}</jid>")).collect();
            format!("<{name}>{jids}</{name}>")
        };
        format!(
            "<prefs xmlns='urn:xmpp:mam:2' default='{default}'>{}{}</prefs>",
            list("always", always),
            list("never", never)
        )
    };
    const GET: &str = "<iq type='get' id='g'><prefs xmlns='urn:xmpp:mam:2'/></iq>";
    juliet.sends(GET).await;
    juliet.sees(&format!("<iq type='result' id='g'>{}</iq>", prefs("always", "", "")));
    let cases = [
        (prefs("always", "", ""), true),
        (prefs("never", "", ""), false),
        (prefs("roster", "", ""), false),
        (prefs("never", "romeo@localhost", ""), true),
        (prefs("never", "romeo@localhost/orchard", ""), true),
        (prefs("never", "romeo@localhost/elsewhere", ""), false),
        (prefs("roster", "romeo@localhost", ""), true),
        (prefs("always", "", "romeo@localhost"), false),
        (prefs("always", "romeo@localhost", "romeo@localhost/orchard"), false),
        (prefs("always", "", "paris@localhost"), true),
    ];
    let mut count = 0;
    for (n, (prefs, archived)) in cases.into_iter().enumerate() {
        juliet.sends(&format!("<iq type='set' id='s'>{prefs}</iq>")).await;
        juliet.sees(&format!("<iq type='result' id='s'>{prefs}</iq>"));
        romeo.chats("juliet@localhost", &n.to_string()).await;
        let seen = juliet.takes(1).remove(0);
        count += usize::from(archived);
        assert_eq!(stanza_id(&seen, "juliet@localhost").is_some(), archived, "{prefs}");
        assert_eq!(juliet.archived(&[], "").await.ids.len(), count, "{prefs}");
    }
    assert_eq!(romeo.archived(&[], "").await.ids.len(), 10);
    juliet
        .sends("<iq type='set' id='r'><query xmlns='jabber:iq:roster'><item jid='romeo@localhost'/></query></iq>")
        .await;
    juliet.sends(&format!("<iq type='set' id='s'>{}</iq>", prefs("roster", "", "nurse@localhost"))).await;
    juliet.skip();
    juliet.ends().await;
    romeo.chats("juliet@localhost", "known").await;
    let mut nurse = world.online("nurse/room").await;
    nurse.chats("juliet@localhost", "unknown").await;
    // The settings, and the key of the ids, outlive the process.
    let world = world.restart().await;
    let mut juliet = world.online("juliet/balcony").await;
    let kept = juliet.takes(2);
    let seen = juliet.archived(&[], "").await;
    assert_eq!(seen.bodies.last().map(String::as_str), Some("known"));
    assert_eq!(stanza_id(&kept[0], "juliet@localhost").as_ref(), seen.ids.last());
    assert_eq!(stanza_id(&kept[1], "juliet@localhost"), None);
    juliet.sends(GET).await;
    juliet.sees(&format!("<iq type='result' id='g'>{}</iq>", prefs("roster", "", "nurse@localhost")));
    for (wrong, condition) in [
        ("<prefs xmlns='urn:xmpp:mam:2'/>".to_owned(), "bad-request"),
        (prefs("sometimes", "", ""), "bad-request"),
        (prefs("always", "@", ""), "jid-malformed"),
        (prefs("always", &"a@b ".repeat(1_001), ""), "resource-constraint"),
    ] {
        juliet.sends(&format!("<iq type='set' id='s'>{wrong}</iq>")).await;
        juliet.sees_error(condition);
    }
}

#[tokio::test]
async fn expiry_takes_the_oldest_and_their_ids_and_a_removed_account_takes_all() {
    let (world, store) = World::with_store(100).await;
    let mut romeo = world.online("romeo/orchard").await;
    let mut juliet = world.online("juliet/balcony").await;
    for n in 0..4 {
        romeo.chats("juliet@localhost", &n.to_string()).await;
        world.clock.advance(60_000);
    }
    juliet.skip();
    let before = juliet.archived(&[], "").await;
    // Four minutes have passed.
    let retention = super::Retention::new(&world.node.parts, Duration::from_secs(120));
    assert!(retention.step().await.unwrap() > Duration::from_secs(1));
    let seen = juliet.archived(&[], "").await;
    assert_eq!(seen.ids, before.ids[2..]);
    juliet.sends(&query(&[], &set(&format!("<after>{}</after>", before.ids[1])))).await;
    juliet.sees_error("item-not-found");
    juliet.ends().await;
    store.commit(&Owner::account("juliet@localhost"), vec![Op::Purge]).await.unwrap();
    let world = world.restart().await;
    // A namesake inherits nothing.
    let mut juliet = world.bind("juliet/balcony").await;
    assert!(juliet.archived(&[], "").await.ids.is_empty());
}

#[tokio::test]
async fn a_page_is_bounded_in_bytes_and_goes_on_where_it_ended() {
    let (_world, mut romeo, mut juliet) = couple().await;
    let long = "x".repeat(300 << 10);
    for n in 0..9 {
        romeo.chats("juliet@localhost", &format!("{n}{long}")).await;
        juliet.skip();
    }
    let (mut bodies, mut after) = (Vec::new(), String::new());
    loop {
        let seen = juliet.archived(&[], &set(&after)).await;
        assert!(seen.ids.len() <= 4, "{}", seen.ids.len());
        bodies.extend(seen.bodies.iter().map(|body| body[..1].to_owned()));
        after = format!("<after>{}</after>", seen.last.unwrap());
        if seen.complete {
            break;
        }
    }
    assert_eq!(bodies, ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
}
