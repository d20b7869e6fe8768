//! What the log tells at its default level.

use crate::client::Broker;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use tavi_xmpp_proto::sasl::{ClientBinding, Hash, Mechanism};
use tracing::field::Field;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The lines of this thread, as texts.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = String::new();
        event.record(&mut |field: &Field, value: &dyn Debug| line.push_str(&format!("{field}={value:?} ")));
        self.0.lock().unwrap().push(line);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Lines {
    async fn tell(&self, of: &[&str]) {
        let told = async {
            while !self.0.lock().unwrap().iter().any(|line| of.iter().all(|what| line.contains(what))) {
                tokio::task::yield_now().await;
            }
        };
        let patience = std::time::Duration::from_secs(20);
        tokio::time::timeout(patience, told).await.unwrap_or_else(|_| panic!("{of:?} is not in {:#?}", self.0.lock()));
    }
}

#[tokio::test]
async fn a_takeover_a_refused_login_and_a_cut_are_told_with_the_peer() {
    let lines = Lines::default();
    // With one dispatcher alone, what another thread's test is the first to log is asked of that thread, which has none, and
    // is left out for all.
    let _second = tracing::Dispatch::new(lines.clone());
    let _guard = tracing::subscriber::set_default(lines.clone());
    let broker = Broker::start().await;
    let mut first = broker.login("romeo", "orchard").await;
    let mut second = broker.login("romeo", "orchard").await;
    assert_eq!(first.hear_the_end().await, "conflict");
    lines.tell(&["a session was replaced", "romeo@localhost/orchard", "127.0.0.1"]).await;
    second.say("<nonsense xmlns='urn:example:nothing'/>").await;
    assert_eq!(second.hear_the_end().await, "unsupported-stanza-type");
    lines.tell(&["a stream was ended", "unsupported-stanza-type", "romeo@localhost/orchard", "127.0.0.1"]).await;
    let mut third = broker.connect().await;
    third.open().await;
    let wrong = third.scram(Mechanism::Scram(Hash::Sha256), ("romeo", "wrong"), ClientBinding::Unsupported).await;
    assert_eq!(wrong.unwrap_err(), "not-authorized");
    lines.tell(&["login failed", "romeo", "127.0.0.1"]).await;
}
