//! Clients for which much waits: they go away at once, and who asks on without acknowledging hears that that is too much.

use crate::client::{Broker, Client};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tavi_core::homes::SessionLimits;
use tavi_core::hooks::{OnSent, Phase};
use tavi_core::{Ev, Flow, Hosts, Node, Parts, Registry, SystemClock};
use tavi_store::{MemoryStore, SharedStore};
use tavi_xmpp::Config;
use tavi_xmpp_proto::sasl::{ClientBinding, Hash, Mechanism};
use tavi_xmpp_proto::{Incoming, Kind, PresenceType, StanzaType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const AWAY: [&str; 2] = ["<presence type='unavailable'/>", "<presence><priority> -1 </priority></presence>"];

/// Stands for the presence module: it notes that somebody went away.
#[derive(Default)]
struct Went(AtomicBool);

impl OnSent for Went {
    fn on_sent(&self, ev: &mut Ev<'_>) -> Flow {
        if ev.env.stanza.kind() != Kind::Presence {
            return Flow::Continue;
        }
        let gone = ev.env.head().type_ == StanzaType::Presence(PresenceType::Unavailable);
        self.0.fetch_or(gone || !ev.env.stanza.children().is_empty(), Ordering::Relaxed);
        ev.state.sessions.iter_mut().for_each(|session| session.receiving = !gone);
        Flow::Stop
    }
}

impl Went {
    async fn comes(&self) {
        let waits = async {
            while !self.0.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), waits)
            .await
            .expect("it went away and nobody heard it");
    }
}

async fn broker(config: Config, limits: SessionLimits) -> (Broker, Arc<Went>) {
    let (store, went): (SharedStore, _) = (Arc::new(MemoryStore::default()), Arc::new(Went::default()));
    let hosts = Hosts::new("localhost", &[]).unwrap();
    let parts = Parts::load(hosts, store.clone(), Arc::new(SystemClock), limits).await.unwrap();
    for (user, password) in [("romeo", "oemor"), ("juliet", "teiluj")] {
        parts.accounts.create(&format!("{user}@localhost").parse().unwrap(), password).await.unwrap();
    }
    let mut registry = Registry::default();
    registry.on_sent(Phase::Filter, went.clone());
    (Broker::on(Node::new(parts, registry), store, config).await, went)
}

async fn waiting(broker: &Broker, at_least: usize, mut more: impl AsyncFnMut()) {
    while broker.node.parts.homes.waiting() < at_least {
        more().await;
        tokio::task::yield_now().await;
    }
}

async fn says(client: &mut Client<TcpStream>, text: &str) {
    client.say(&format!("<message to='romeo@localhost/phone' type='headline'><body>{text}</body></message>")).await;
}

async fn small_broker() -> (Broker, Arc<Went>) {
    let limits = SessionLimits { inbox_items: 8, ..SessionLimits::default() };
    broker(Config { unacknowledged: 3, ..Config::default() }, limits).await
}

/// Romeo, whose window is full, and half of the room behind it; and the name of his session.
async fn held_up(broker: &Broker, enable: &str) -> (Client<TcpStream>, Option<String>) {
    let mut romeo = broker.login("romeo", "phone").await;
    romeo.say(enable).await;
    let enabled = romeo.hear_element().await;
    assert_eq!(enabled.name(), "enabled");
    let mut juliet = broker.login("juliet", "balcony").await;
    for n in 0..3 {
        says(&mut juliet, &n.to_string()).await;
        while !matches!(romeo.hear().await, Some(Incoming::Stanza(_))) {}
        while broker.node.parts.homes.waiting() > 0 {
            tokio::task::yield_now().await;
        }
    }
    for n in 3..7 {
        says(&mut juliet, &n.to_string()).await;
    }
    waiting(broker, 4, async || {}).await;
    (romeo, enabled.get_attr("id").map(str::to_owned))
}

#[tokio::test]
async fn who_does_not_acknowledge_goes_away_at_once_with_requests_before_it() {
    for away in AWAY {
        let (broker, went) = small_broker().await;
        let (mut romeo, _) = held_up(&broker, "<enable xmlns='urn:xmpp:sm:3'/>").await;
        romeo.say("<iq type='get' id='p' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>").await;
        romeo.say(away).await;
        went.comes().await;
    }
}

#[tokio::test]
async fn who_does_not_read_at_all_goes_away_at_once() {
    for away in AWAY {
        let limits = SessionLimits { inbox_bytes: 4 << 20, ..SessionLimits::default() };
        let (broker, went) = broker(Config::default(), limits).await;
        let mut romeo = broker.login("romeo", "phone").await;
        let mut juliet = broker.login("juliet", "balcony").await;
        let long = "x".repeat(60_000);
        // The socket buffers take some megabytes; then his inbox fills up.
        waiting(&broker, 40, async || says(&mut juliet, &long).await).await;
        romeo.say(away).await;
        went.comes().await;
    }
}

/// Somebody with a full window asks on and on, and the acknowledgement comes behind all that; gives what it hears.
async fn asks_on(romeo: &mut Client<TcpStream>) -> String {
    let ping = "<iq type='get' id='p' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>".repeat(50_000);
    let all = format!("{ping}<a xmlns='urn:xmpp:sm:3' h='3'/>");
    let (mut reading, mut writing) = romeo.stream.split();
    let (mut heard, mut bytes) = (Vec::new(), [0; 4096]);
    // It is cut off at some time.
    let saying = async { drop(writing.write_all(all.as_bytes()).await) };
    let hearing = async {
        while let Ok(len) = reading.read(&mut bytes).await
            && len > 0
        {
            heard.extend_from_slice(&bytes[..len]);
        }
    };
    let patience = std::time::Duration::from_secs(20);
    tokio::time::timeout(patience, async { tokio::join!(saying, hearing) }).await.expect("it stalls");
    String::from_utf8(heard).unwrap()
}

#[tokio::test]
async fn who_asks_too_much_before_an_acknowledgement_is_told_so() {
    let (broker, _) = small_broker().await;
    let (mut romeo, _) = held_up(&broker, "<enable xmlns='urn:xmpp:sm:3'/>").await;
    let heard = asks_on(&mut romeo).await;
    assert!(heard.contains("<resource-constraint") && heard.ends_with("</stream:stream>"), "{heard}");
}

#[tokio::test]
async fn who_can_resume_says_then_what_was_received_and_loses_nothing() {
    let (broker, _) = small_broker().await;
    let (mut romeo, name) = held_up(&broker, "<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
    asks_on(&mut romeo).await;
    let mut romeo = broker.connect().await;
    romeo.open().await;
    romeo.scram(Mechanism::Scram(Hash::Sha256), ("romeo", "oemor"), ClientBinding::Unsupported).await.unwrap();
    romeo.say(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{}' h='3'/>", name.unwrap())).await;
    assert_eq!(romeo.hear_element().await.name(), "resumed");
    let mut heard = Vec::new();
    while heard.len() < 4 {
        if let Some(Incoming::Stanza(stanza)) = romeo.hear().await {
            heard.extend(stanza.body());
        }
        romeo.say(&format!("<a xmlns='urn:xmpp:sm:3' h='{}'/>", 3 + heard.len())).await;
    }
    assert_eq!(heard, ["3", "4", "5", "6"]);
}
