//! Blocking, as people and their servers see it.

use crate::tests::world::{Person, World};
use tavi_core::Draft;

const GET: &str = "<iq type='get' id='list'><blocklist xmlns='urn:xmpp:blocking'/></iq>";

/// `<block/>` or `<unblock/>` with these addresses.
fn change(name: &str, jids: &[&str]) -> String {
    let items: String = jids.iter().map(|jid| format!("<item jid='{jid}'/>")).collect();
    format!("<iq type='set' id='{name}'><{name} xmlns='urn:xmpp:blocking'>{items}</{name}></iq>")
}

impl Person {
    async fn blocks(&mut self, jid: &str) {
        self.sends(&change("block", &[jid])).await;
        self.sees("<iq type='result' id='block'/>");
    }

    async fn unblocks(&mut self, jid: &str) {
        self.sends(&change("unblock", &[jid])).await;
    }
}

#[tokio::test]
async fn a_list_is_asked_for_changed_pushed_and_still_there_after_a_restart() {
    let world = World::new().await;
    let mut balcony = world.bind("juliet/balcony").await;
    let mut chamber = world.bind("juliet/chamber").await;
    let mut deaf = world.bind("juliet/deaf").await;
    for session in [&mut balcony, &mut chamber] {
        session.sends(GET).await;
        let answer = session.sees("<iq type='result' id='list'><blocklist xmlns='urn:xmpp:blocking'/></iq>");
        assert!(!answer.contains("<item"), "{answer}");
    }
    balcony.sends(&change("block", &["Romeo@localhost", "elsewhere.example"])).await;
    let push = "<iq type='set' from='juliet@localhost'><block xmlns='urn:xmpp:blocking'>
        <item jid='romeo@localhost'/><item jid='elsewhere.example'/></block></iq>";
    balcony.sees(push);
    balcony.sees("<iq type='result' id='block'/>");
    chamber.sees(push);
    deaf.sees_nothing();

    let world = world.restart().await;
    let mut balcony = world.bind("juliet/balcony").await;
    balcony.sends(GET).await;
    balcony.sees(
        "<iq type='result'><blocklist xmlns='urn:xmpp:blocking'>
         <item jid='romeo@localhost'/><item jid='elsewhere.example'/></blocklist></iq>",
    );
    balcony.sends(&change("unblock", &["elsewhere.example"])).await;
    balcony.sees("<iq type='set'><unblock xmlns='urn:xmpp:blocking'><item jid='elsewhere.example'/></unblock></iq>");
    balcony.sees("<iq type='result' id='unblock'/>");
    balcony.sends(&change("unblock", &[])).await;
    let push = balcony.sees("<iq type='set'><unblock xmlns='urn:xmpp:blocking'/></iq>");
    assert!(!push.contains("<item"), "{push}");
    balcony.sees("<iq type='result' id='unblock'/>");

    let world = world.restart().await;
    let mut balcony = world.bind("juliet/balcony").await;
    balcony.sends(GET).await;
    let answer = balcony.sees("<iq type='result'><blocklist xmlns='urn:xmpp:blocking'/></iq>");
    assert!(!answer.contains("<item"), "{answer}");
}

#[tokio::test]
async fn a_change_is_told_when_it_is_saved() {
    let (world, store) = World::delayed().await;
    let mut romeo = world.bind("romeo/orchard").await;
    romeo.sends(GET).await;
    romeo.skip();
    let ticket = romeo.begins(&change("block", &["juliet@localhost"])).await;
    romeo.sees_nothing();
    store.release_all();
    ticket.complete().await.unwrap();
    romeo.sees("<iq type='set'><block xmlns='urn:xmpp:blocking'><item jid='juliet@localhost'/></block></iq>");
    romeo.sees("<iq type='result' id='block'/>");
}

#[tokio::test]
async fn what_is_no_proper_change_is_refused_and_the_list_is_bounded() {
    let world = World::new().await;
    let mut juliet = world.bind("juliet/balcony").await;
    let cases = [
        ("<iq type='set' id='1'><block xmlns='urn:xmpp:blocking'/></iq>", "bad-request"),
        ("<iq type='set' id='1'><block xmlns='urn:xmpp:blocking'><item/></block></iq>", "bad-request"),
        ("<iq type='set' id='1'><block xmlns='urn:xmpp:blocking'><item jid='@'/></block></iq>", "jid-malformed"),
        ("<iq type='set' id='1'><unblock xmlns='urn:xmpp:blocking'><item jid='@'/></unblock></iq>", "jid-malformed"),
        ("<iq type='get' id='1'><block xmlns='urn:xmpp:blocking'><item jid='a@b'/></block></iq>", "bad-request"),
        ("<iq type='set' id='1'><blocklist xmlns='urn:xmpp:blocking'/></iq>", "bad-request"),
    ];
    for (iq, condition) in cases {
        juliet.sends(iq).await;
        juliet.sees_error(condition);
    }
    let many: Vec<String> = (0..super::MAX_BLOCKED).map(|n| format!("user{n}@elsewhere.example")).collect();
    juliet.sends(&change("block", &many.iter().map(String::as_str).collect::<Vec<_>>())).await;
    juliet.sees("<iq type='result'/>");
    juliet.sends(&change("block", &["one@more.example"])).await;
    juliet.sees_error("resource-constraint");
    // What stands there already needs no room.
    juliet.blocks("user0@elsewhere.example").await;
    juliet.sends("<message to='one@more.example' type='chat'><body>Hi</body></message>").await;
    juliet.sees_error("remote-server-not-found");
}

#[tokio::test]
async fn nobody_sees_or_changes_another_s_list() {
    let world = World::new().await;
    let _juliet = world.bind("juliet/balcony").await;
    let mut romeo = world.bind("romeo/orchard").await;
    romeo.sends("<iq type='get' to='juliet@localhost' id='1'><blocklist xmlns='urn:xmpp:blocking'/></iq>").await;
    romeo.sees("<iq type='error' id='1'/>");
    let block = "<block xmlns='urn:xmpp:blocking'><item jid='nurse@localhost'/></block>";
    romeo.sends(&format!("<iq type='set' to='juliet@localhost' id='2'>{block}</iq>")).await;
    romeo.sees("<iq type='error' id='2'/>");
}

/// All that romeo can send to an address, from whose answers he might see that somebody is there.
const KNOCKS: [&str; 18] = [
    "<message to='TO' type='chat' id='k'><body>Hi</body></message>",
    "<message to='TO/balcony' type='chat' id='k'><body>Hi</body></message>",
    "<message to='TO' id='k'><received xmlns='urn:xmpp:receipts' id='x'/></message>",
    "<message to='TO' type='headline' id='k'><body>Hi</body></message>",
    "<message to='TO' type='groupchat' id='k'><body>Hi</body></message>",
    "<message to='TO' type='error' id='k'><body>Hi</body></message>",
    "<iq to='TO/balcony' type='get' id='k'><ping xmlns='urn:xmpp:ping'/></iq>",
    "<iq to='TO/balcony' type='result' id='k'/>",
    "<iq to='TO' type='get' id='k'><ping xmlns='urn:xmpp:ping'/></iq>",
    "<iq to='TO' type='get' id='k'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>",
    "<iq to='TO' type='get' id='k'><query xmlns='http://jabber.org/protocol/disco#items'/></iq>",
    "<iq to='TO' type='set' id='k'><query xmlns='http://jabber.org/protocol/disco#items'/></iq>",
    "<iq to='TO' type='get' id='k'><query xmlns='jabber:iq:roster'/></iq>",
    "<iq to='TO' type='get' id='k'><odd xmlns='urn:example'/></iq>",
    "<presence to='TO' type='subscribe'/>",
    "<presence to='TO' type='probe'/>",
    "<presence to='TO/balcony'/>",
    "<presence to='TO' type='unavailable'/>",
];

#[tokio::test]
async fn who_is_blocked_finds_nobody_there_and_is_not_heard() {
    for online in [true, false] {
        let world = World::new().await;
        let mut juliet = world.online("juliet/balcony").await;
        juliet.blocks("romeo@localhost").await;
        let juliet = if online {
            Some(juliet)
        } else {
            juliet.ends().await;
            None
        };
        let mut romeo = world.online("romeo/orchard").await;
        for knock in KNOCKS {
            romeo.sends(&knock.replace("TO", "juliet@localhost")).await;
            let answers = romeo.takes_all();
            romeo.sends(&knock.replace("TO", "nobody@localhost")).await;
            let wanted: Vec<String> =
                romeo.takes_all().iter().map(|answer| answer.replace("nobody@", "juliet@")).collect();
            assert_eq!(answers, wanted, "{knock}, online: {online}");
        }
        if let Some(mut juliet) = juliet {
            juliet.sees_nothing();
        } else {
            let mut juliet = world.online("juliet/balcony").await;
            juliet.sees_nothing();
        }
    }
}

#[tokio::test]
async fn nothing_goes_to_whom_one_has_blocked() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    let mut chamber = world.online("juliet/chamber").await;
    chamber.sends("<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await;
    juliet.skip();
    romeo.skip();
    chamber.skip();
    juliet.blocks("romeo@localhost").await;
    romeo.skip();
    let refused = "<error type='cancel'><not-acceptable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>
        <blocked xmlns='urn:xmpp:blocking:errors'/></error>";
    for to in ["romeo@localhost", "romeo@localhost/orchard"] {
        for (name, stanza) in [
            ("message", "<message to='TO' type='chat' id='1'><body>Hi</body></message>"),
            ("iq", "<iq to='TO' type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>"),
            ("presence", "<presence to='TO' id='1'/>"),
            ("presence", "<presence to='TO' type='subscribe' id='1'/>"),
        ] {
            juliet.sends(&stanza.replace("TO", to)).await;
            juliet.sees(&format!(
                "<{name} from='{to}' to='juliet@localhost/balcony' type='error' id='1'>{refused}</{name}>"
            ));
        }
        juliet.sends(&format!("<iq to='{to}' type='result' id='1'/>")).await;
        juliet.sees_nothing();
    }
    romeo.sees_nothing();
    // Copies of the refusals, but none of what was not sent.
    let copies = chamber.takes_all();
    assert!(copies.len() == 2 && copies.iter().all(|copy| copy.contains("<received")), "{copies:?}");
}

#[tokio::test]
async fn contacts_vanish_for_each_other_and_come_back_when_unblocked() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    juliet.blocks("romeo@localhost").await;
    romeo.sees("<presence from='juliet@localhost/balcony' to='romeo@localhost' type='unavailable'/>");
    romeo.sees_nothing();
    // Neither what she does nor what he does is told.
    juliet.sends("<presence><show>away</show></presence>").await;
    juliet.sees("<presence from='juliet@localhost/balcony'/>");
    let mut chamber = world.online("juliet/chamber").await;
    chamber.sees("<presence from='juliet@localhost/balcony'/>");
    juliet.sees("<presence from='juliet@localhost/chamber'/>");
    romeo.sees_nothing();
    romeo.sends("<presence><show>dnd</show></presence>").await;
    romeo.sees("<presence from='romeo@localhost/orchard'/>");
    romeo.sends("<presence to='juliet@localhost' type='probe'/>").await;
    romeo.sees_nothing();
    let mut home = world.online("romeo/home").await;
    home.sees("<presence from='romeo@localhost/orchard'/>");
    home.sees_nothing();
    romeo.sees("<presence from='romeo@localhost/home'/>");
    chamber.ends().await;
    juliet.sees("<presence from='juliet@localhost/chamber' type='unavailable'/>");
    home.ends().await;
    romeo.sees("<presence from='romeo@localhost/home' type='unavailable'/>");
    juliet.sees_nothing();
    romeo.sees_nothing();

    juliet.unblocks("romeo@localhost").await;
    romeo.sees("<presence from='juliet@localhost/balcony' to='romeo@localhost'><show>away</show></presence>");
    juliet.sees("<presence from='romeo@localhost/orchard'><show>dnd</show></presence>");
    juliet.sees("<iq type='result' id='unblock'/>");
    romeo.sends("<message to='juliet@localhost' type='chat'><body>At last</body></message>").await;
    juliet.sees("<message><body>At last</body></message>");
    romeo.sees_nothing();
}

#[tokio::test]
async fn blocking_a_domain_one_session_or_everybody_shown_hides_from_each() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    let mut nurse = world.online("nurse/chamber").await;
    juliet.sends("<presence to='nurse@localhost'/>").await;
    nurse.sees("<presence from='juliet@localhost/balcony'/>");
    juliet.blocks("localhost").await;
    nurse.sees("<presence from='juliet@localhost/balcony' type='unavailable'/>");
    romeo.sees("<presence from='juliet@localhost/balcony' type='unavailable'/>");
    // The server itself and she herself are not cut off.
    juliet.sends("<iq to='localhost' type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    juliet.sees("<iq from='localhost' type='result' id='p'/>");
    juliet.sends("<message to='juliet@localhost' type='chat'><body>note</body></message>").await;
    juliet.sees("<message><body>note</body></message>");
    juliet.unblocks("localhost").await;
    romeo.sees("<presence from='juliet@localhost/balcony'/>");
    nurse.sees_nothing();
    juliet.sees("<presence from='romeo@localhost/orchard'/>");
    juliet.sees("<iq type='result' id='unblock'/>");

    juliet.blocks("romeo@localhost/orchard").await;
    romeo.sees("<presence from='juliet@localhost/balcony' to='romeo@localhost/orchard' type='unavailable'/>");
    romeo.sends("<message to='juliet@localhost' type='chat'><body>Hi</body></message>").await;
    romeo.sees_error("service-unavailable");
    let mut home = world.online("romeo/home").await;
    home.sends("<message to='juliet@localhost' type='chat'><body>from home</body></message>").await;
    juliet.sees("<presence from='romeo@localhost/home'/>");
    juliet.sees("<message><body>from home</body></message>");
    romeo.skip();
    home.skip();
    juliet.unblocks("romeo@localhost/orchard").await;
    juliet.sees("<iq type='result' id='unblock'/>");
    romeo.sees("<presence from='juliet@localhost/balcony' to='romeo@localhost/orchard'/>");
    home.sees_nothing();
}

#[tokio::test]
async fn a_blocked_contact_hears_no_presence_over_logins_and_requests_wait_unseen() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    let mut nurse = world.online("nurse/chamber").await;
    nurse.sends("<presence to='juliet@localhost' type='subscribe'/>").await;
    juliet.sees("<presence from='nurse@localhost' type='subscribe'/>");
    juliet.sends(&change("block", &["romeo@localhost", "nurse@localhost"])).await;
    juliet.sees("<iq type='result'/>");
    juliet.ends().await;
    romeo.skip();
    let mut juliet = world.online("juliet/balcony").await;
    romeo.sees_nothing();
    nurse.skip();
    // Neither the request nor romeo's presence.
    juliet.sees_nothing();
    juliet.sends("<iq type='set' id='r'><query xmlns='jabber:iq:roster'><item jid='romeo@localhost' subscription='remove'/></query></iq>").await;
    juliet.sees("<iq type='result' id='r'/>");
    let told = romeo.takes_all();
    assert!(!told.iter().any(|stanza| stanza.contains("unavailable")), "not whether she is there: {told:?}");
}

#[tokio::test]
async fn events_of_a_blocked_host_do_not_come_nor_its_last_items() {
    let world = World::new().await;
    world.grant("juliet@localhost", "subscribe,retrieve", "d/abc/up/#").await;
    let publish = async |payload: &'static str| {
        let draft = Draft { topic: "d/abc/up/t".into(), payload: payload.into(), retain: true, ..Draft::default() };
        world.node.parts.topics.publish(&world.device("abc"), draft).unwrap().complete().await.unwrap();
    };
    let mut juliet = world.online("juliet/balcony").await;
    let subscribe = "<subscribe node='d/abc/up/t' jid='juliet@localhost'/>";
    juliet.sends(&format!("<iq type='set' to='pubsub.localhost' id='s'><pubsub xmlns='http://jabber.org/protocol/pubsub'>{subscribe}</pubsub></iq>")).await;
    juliet.sees("<iq type='result' id='s'/>");
    publish("21").await;
    juliet.sees("<message from='pubsub.localhost' type='headline'/>");
    juliet.blocks("pubsub.localhost").await;
    publish("22").await;
    let mut chamber = world.online("juliet/chamber").await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    chamber.sees("<presence from='juliet@localhost/balcony'/>");
    chamber.sees_nothing();
    juliet.sees("<presence from='juliet@localhost/chamber'/>");
    juliet.sees_nothing();
    juliet.unblocks("pubsub.localhost").await;
    juliet.sees("<iq type='result' id='unblock'/>");
    publish("23").await;
    juliet.sees("<message from='pubsub.localhost' type='headline'/>");
    chamber.sees("<message from='pubsub.localhost' type='headline'/>");
}
