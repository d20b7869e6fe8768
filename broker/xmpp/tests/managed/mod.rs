//! Stream management (XEP-0198) where a client does the unusual, and what a session leaves to the next one.

use crate::client::{Broker, Client};
use tavi_store::Owner;
use tavi_xmpp_proto::sasl::{ClientBinding, Hash, Mechanism};
use tavi_xmpp_proto::{Element, Incoming, ns};
use tokio::net::TcpStream;

const SM: &str = "xmlns='urn:xmpp:sm:3'";

fn condition(failed: &Element) -> &str {
    assert_eq!(failed.name(), "failed");
    failed.elements().find(|child| child.ns() == ns::STANZA_ERRORS).map_or("", Element::name)
}

async fn enables(client: &mut Client<TcpStream>) {
    client.say(&format!("<enable {SM}/>")).await;
    assert_eq!(element(client).await.name(), "enabled");
}

fn message(to: &str, text: u32) -> String {
    format!("<message to='{to}' type='chat'><body>{text}</body></message>")
}

/// The next thing that is neither a stanza nor a question.
async fn element(client: &mut Client<TcpStream>) -> Element {
    loop {
        match client.hear().await {
            Some(Incoming::Element(element)) if element.name() != "r" => return element,
            Some(Incoming::Element(_) | Incoming::Stanza(_) | Incoming::Refused(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The bodies of the next messages, and whether they say that they come late; other stanzas are passed over.
async fn hears(client: &mut Client<TcpStream>, count: usize) -> Vec<(String, bool)> {
    let mut bodies = Vec::new();
    while bodies.len() < count {
        if let Some(Incoming::Stanza(stanza)) = client.hear().await
            && let Some(body) = stanza.body()
        {
            bodies.push((body, stanza.child(ns::DELAY, "delay").is_some()));
        }
    }
    bodies
}

#[tokio::test]
async fn a_second_enable_fails_and_changes_nothing() {
    let broker = Broker::start().await;
    let mut romeo = broker.login("romeo", "orchard").await;
    enables(&mut romeo).await;
    romeo.say(&message("juliet@localhost", 1)).await;
    // XEP-0198 §3.
    romeo.say(&format!("<enable {SM} resume='true'/><r {SM}/>")).await;
    assert_eq!(condition(&element(&mut romeo).await), "unexpected-request");
    let answer = element(&mut romeo).await;
    assert_eq!((answer.name(), answer.get_attr("h")), ("a", Some("1")), "it counts on");
    romeo.say(&format!("<resume {SM} previd='any' h='0'/>")).await;
    assert_eq!(condition(&element(&mut romeo).await), "unexpected-request", "§5: before binding only");
}

#[tokio::test]
async fn nothing_is_counted_before_it_is_enabled() {
    let broker = Broker::start().await;
    let mut romeo = broker.login("romeo", "orchard").await;
    romeo.say(&message("juliet@localhost", 1)).await;
    romeo.say(&format!("<r {SM}/>")).await;
    assert_eq!(condition(&element(&mut romeo).await), "unexpected-request");
    enables(&mut romeo).await;
    // What the session answers itself is handled, too; RFC 6120 §8.2.3: a request has an id.
    romeo.say("<iq type='set' id='1'><session xmlns='urn:ietf:params:xml:ns:xmpp-session'/></iq>").await;
    romeo.say("<iq type='get'/>").await;
    romeo.say(&format!("<r {SM}/>")).await;
    let answer = element(&mut romeo).await;
    assert_eq!((answer.name(), answer.get_attr("h")), ("a", Some("2")));
}

#[tokio::test]
async fn an_enable_before_binding_fails_and_the_login_goes_on() {
    let broker = Broker::start().await;
    let mut romeo = broker.connect().await;
    romeo.open().await;
    let mechanism = Mechanism::Scram(Hash::Sha256);
    romeo.scram(mechanism, ("romeo", "oemor"), ClientBinding::Unsupported).await.unwrap();
    romeo.say(&format!("<enable {SM}/>")).await;
    assert_eq!(condition(&romeo.hear_element().await), "unexpected-request");
    romeo.bind("orchard").await;
    enables(&mut romeo).await;
}

#[tokio::test]
async fn what_a_dead_session_did_not_acknowledge_comes_late_to_the_next_one_and_nothing_else_does() {
    for managed in [true, false] {
        let broker = Broker::start().await;
        let mut romeo = broker.login("romeo", "orchard").await;
        enables(&mut romeo).await;
        let mut juliet = broker.login("juliet", "balcony").await;
        if managed {
            enables(&mut juliet).await;
        }
        for n in 1..=3 {
            romeo.say(&message("juliet@localhost/balcony", n)).await;
        }
        let heard = hears(&mut juliet, 3).await;
        assert_eq!(heard, [1, 2, 3].map(|n| (n.to_string(), false)));
        if managed {
            juliet.say(&format!("<a {SM} h='1'/>")).await;
        }
        drop(juliet);
        let account = broker.node.parts.homes.known(&"juliet@localhost".parse().unwrap()).unwrap();
        while account.session_count() > 0 {
            tokio::task::yield_now().await;
        }
        let queue = broker.store.queue(&Owner::account("juliet@localhost"), 0, 10).await.unwrap();
        // Without stream management she has what was written.
        assert_eq!(queue.len(), if managed { 2 } else { 0 }, "managed: {managed}");
    }
}
