//! Clients that go away while much waits for them: it takes effect at once.

use crate::client::{Broker, Client};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tavi_core::homes::SessionLimits;
use tavi_core::hooks::{OnSent, Phase};
use tavi_core::{Ev, Flow, Hosts, Node, Parts, Registry, SystemClock};
use tavi_store::{MemoryStore, SharedStore};
use tavi_xmpp::Config;
use tavi_xmpp_proto::{Incoming, Kind, PresenceType, StanzaType};
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
    let hosts = Hosts::new("localhost").unwrap();
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

#[tokio::test]
async fn who_does_not_acknowledge_goes_away_at_once_with_requests_before_it() {
    for away in AWAY {
        let limits = SessionLimits { inbox_items: 8, ..SessionLimits::default() };
        let (broker, went) = broker(Config { unacknowledged: 3, ..Config::default() }, limits).await;
        let mut romeo = broker.login("romeo", "phone").await;
        romeo.say("<enable xmlns='urn:xmpp:sm:3'/>").await;
        assert_eq!(romeo.hear_element().await.name(), "enabled");
        let mut juliet = broker.login("juliet", "balcony").await;
        for n in 0..3 {
            says(&mut juliet, &n.to_string()).await;
            while !matches!(romeo.hear().await, Some(Incoming::Stanza(_))) {}
            while broker.node.parts.homes.waiting() > 0 {
                tokio::task::yield_now().await;
            }
        }
        for _ in 0..4 {
            says(&mut juliet, "more").await;
        }
        waiting(&broker, 4, async || {}).await;
        // His window is full, and half of the room behind it.
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
