//! A bot's place in the broker: a local session that hears messages, topics and the clock, and has handlers run.
//!
//! Nothing that was acknowledged is lost. A message from a sender with stream management lies in the bot's queue
//! before the sender is told so. Its run then commits, at once: the row's deletion, state and journal, and what is to
//! go out. Only then that goes out, each with an id that stays the same when it is sent again after a restart.

mod runs;

pub use runs::Busy;

use crate::{
    actions::heard,
    conversation::Versions,
    ear::{Ear, Granted, Waiting},
    engine::{Engine, Gate, Script},
    people::People,
    pool::Pool,
    store::{Rows, delete_script, put_current, put_script},
};
use parking_lot::{Mutex, RwLock};
use runs::Source;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};
use tavi_core::{
    Closed, Envelope, Node, Principal,
    link::Link,
    metrics::{Outcome, Protocol},
};
use tavi_store::StoreError;
use tavi_xmpp_proto::{
    error::Condition,
    jid::{BareJid, Jid},
    stanza::{IqType, MessageType, StanzaType},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
};

/// The resource of a bot's session.
const RESOURCE: &str = "bot";
/// The longest sleep until the clock is looked at again.
const MAX_SLEEP: Duration = Duration::from_secs(3600);

/// What all bots of a broker share.
#[derive(Clone)]
pub struct Shared {
    /// The broker.
    pub node: Node,
    /// Runs scripts.
    pub engine: Arc<Engine>,
    /// On these threads.
    pub pool: Arc<Pool>,
    /// Counts what is not finished yet.
    pub busy: Busy,
}

/// One bot in the broker.
pub struct Seat {
    shared: Shared,
    key: Arc<str>,
    jid: BareJid,
    principal: Principal,
    rows: Rows,
    gate: Arc<dyn Gate>,
    versions: RwLock<Arc<Versions>>,
    people: Mutex<People>,
    timer: Notify,
    ear: Arc<Ear>,
    seeds: AtomicU64,
    runtime: Handle,
}

impl Seat {
    /// Reads a bot's rows, sends what a former process did not send any more, and listens.
    pub async fn open(shared: Shared, script: Arc<Script>, jid: BareJid) -> Result<Arc<Seat>, StoreError> {
        let principal = Principal::Bot(jid.clone());
        let rows = Rows::new(shared.node.parts.store.clone(), jid.as_str());
        let mut people = People::default();
        for (person, conversation) in rows.conversations().await? {
            people.note(&person.into(), &conversation);
        }
        let waited_on = people.versions(shared.node.parts.clock.now_ms() as i64);
        let versions = stored_versions(&shared.engine, &rows, script, waited_on).await?;
        let (permit, hosts) = (shared.node.parts.permit.clone(), shared.node.parts.hosts.clone());
        let seat = Arc::new(Seat {
            key: jid.as_str().into(),
            ear: Ear::new(&shared.node, principal.clone(), rows.owner().clone()),
            gate: Arc::new(Granted { permit, hosts, principal: principal.clone() }),
            versions: RwLock::new(Arc::new(versions)),
            people: Mutex::new(people),
            timer: Notify::new(),
            seeds: AtomicU64::new(seed()),
            runtime: Handle::current(),
            shared,
            jid,
            principal,
            rows,
        });
        seat.save_version().await?;
        seat.send(seat.rows.outgoing().await?).await;
        seat.listen();
        seat.ear.look();
        Ok(seat)
    }

    /// The newest version of its script.
    pub fn script(&self) -> Arc<Script> {
        self.versions().current.clone()
    }

    /// Takes a newer version; dialogues that wait finish on theirs.
    pub async fn update(&self, script: Arc<Script>) -> Result<(), StoreError> {
        let former = self.script();
        let mut versions = Versions::clone(&self.versions());
        versions.update(script);
        // The former version stays even if nobody waits: a run may just be about to ask.
        let waited_on = self.people.lock().versions(self.now_ms());
        versions.old.retain(|hash, _| *hash == former.hash || waited_on.contains(hash));
        *self.versions.write() = Arc::new(versions);
        let waiting = self.people.lock().waiting_on(&former.hash);
        if waiting > 0 {
            tracing::info!(bot = %self.jid, waiting, "people wait on the previous version; they will finish on it");
        }
        self.save_version().await?;
        self.listen();
        Ok(())
    }

    /// Subscribes to what its handlers want and its grants allow.
    pub fn listen(&self) {
        self.ear.listen(&self.shared.node, &self.script());
    }

    fn count(&self, outcome: Outcome) {
        self.shared.node.parts.metrics.messages(Protocol::Bot, outcome).add(1);
    }

    /// Serves its place until `stop` says so.
    pub async fn serve(self: Arc<Self>, place: Link, mut stop: watch::Receiver<bool>) {
        let connections = self.shared.node.parts.metrics.connections(Protocol::Bot);
        connections.add(1);
        let mut place = Some(place);
        while let Some(link) = place.take() {
            let left = self.hear(&link, &mut stop).await;
            let why = link.closed();
            if let Err(error) = link.end(left).await.complete().await {
                tracing::error!(bot = %self.jid, %error, "what waited for a bot could not be kept");
            }
            // A bot that was too slow for a moment takes its place again; what it missed lies in its queue.
            if matches!(why, Some(Closed::Overflow)) && !*stop.borrow() {
                place = self.bind().await;
            }
        }
        self.ear.close(&self.shared.node);
        connections.sub(1);
    }

    /// Takes its place: from now on it gets messages, first those that waited. `None` if the store cannot be read.
    pub async fn bind(&self) -> Option<Link> {
        let parts = &self.shared.node.parts;
        let account = parts.homes.bot(&self.jid).await.inspect_err(|error| self.unreadable(error)).ok()??;
        let link = self.shared.node.router.bind(&account, self.jid.with_resource(RESOURCE).ok()?)?;
        let opened = link.open().await.complete().await;
        opened.inspect_err(|error| self.unreadable(error)).ok()?;
        Some(link)
    }

    fn unreadable(&self, error: &StoreError) {
        tracing::error!(bot = %self.jid, %error, "a bot cannot take its place");
    }

    /// Hears until the session is closed or `stop` says so; gives the stanzas that were not dealt with.
    async fn hear(self: &Arc<Self>, link: &Link, stop: &mut watch::Receiver<bool>) -> Vec<Envelope> {
        let (mut stanzas, mut publications) = (Vec::new(), Vec::new());
        loop {
            tokio::select! {
                _ = stop.changed() => return stanzas,
                open = link.drain(&mut stanzas) => {
                    let left = self.stanzas(link, std::mem::take(&mut stanzas)).await;
                    if open.is_err() || !left.is_empty() {
                        return left;
                    }
                }
                _ = self.ear.mailbox().drain(&mut publications) => {
                    self.published(publications.drain(..).map(|Waiting(publication)| publication).collect()).await;
                }
                () = self.ear.more() => self.published(self.ear.late(&self.rows).await).await,
                () = self.next_deadline() => self.deadlines().await,
            }
        }
    }

    /// Deals with what was heard; gives what came too late, when the broker stops.
    async fn stanzas(self: &Arc<Self>, link: &Link, stanzas: Vec<Envelope>) -> Vec<Envelope> {
        let mut left = Vec::new();
        for stanza in stanzas {
            if !left.is_empty() || !self.stanza(link, &stanza).await {
                left.push(stanza);
            } else if stanza.is_lasting() && stanza.meta.queued.is_none() {
                // It has no row that a run could delete: from here on it is the bot's.
                link.acked(&[stanza.meta.place]);
            }
        }
        left
    }

    /// Whether it was dealt with.
    async fn stanza(self: &Arc<Self>, link: &Link, stanza: &Envelope) -> bool {
        // Bots do not answer bots: two of them would go on for ever.
        let bots = self.jid.domain();
        let from = stanza.from().map(Jid::to_bare).filter(|from| from.local().is_some() && from.domain() != bots);
        match (stanza.head().type_, from) {
            (StanzaType::Message(MessageType::Chat | MessageType::Normal), Some(from)) => match heard(stanza) {
                Some(text) => return self.message(from, text, stanza.meta.queued).await,
                None => self.settle(link, stanza),
            },
            (StanzaType::Iq(IqType::Get | IqType::Set), _) => {
                self.route(stanza.refuse(&Condition::ServiceUnavailable.into())).await;
            }
            _ => self.settle(link, stanza),
        }
        true
    }

    fn settle(&self, link: &Link, stanza: &Envelope) {
        if let Some(id) = stanza.meta.queued {
            link.acked(&[id]);
        }
    }

    async fn route(&self, stanza: Option<Envelope>) {
        let Some(stanza) = stanza else { return };
        if let Err(error) = self.shared.node.route(stanza).await.complete().await {
            tracing::error!(bot = %self.jid, %error, "an answer of a bot could not be saved");
        }
    }

    async fn message(self: &Arc<Self>, from: BareJid, text: String, queued: Option<u64>) -> bool {
        let source = Source { queued, ..Source::default() };
        self.count(Outcome::Received);
        self.submit(&from.as_str().into(), source, move |conversation, world| conversation.hear(world, &text)).await
    }

    async fn next_deadline(&self) {
        let next = self.people.lock().next_ms();
        let sleep = next.map(|at| Duration::from_millis(at.saturating_sub(self.now_ms()).max(0) as u64));
        tokio::select! {
            () = tokio::time::sleep(sleep.unwrap_or(MAX_SLEEP).min(MAX_SLEEP)) => {}
            () = self.timer.notified() => {}
        }
    }

    async fn deadlines(self: &Arc<Self>) {
        let due = self.people.lock().take_due(self.now_ms());
        for person in due {
            self.submit(&person, Source::default(), |conversation, world| conversation.tick(world)).await;
        }
    }

    fn versions(&self) -> Arc<Versions> {
        self.versions.read().clone()
    }

    fn now_ms(&self) -> i64 {
        self.shared.node.parts.clock.now_ms() as i64
    }

    /// Keeps the newest version, and no others than those that dialogues may need.
    async fn save_version(&self) -> Result<(), StoreError> {
        let versions = self.versions();
        let current = &versions.current;
        let mut ops = vec![put_script(&current.hash, &current.source), put_current(&current.hash)];
        let stored = self.rows.scripts().await?;
        let unused = stored.iter().filter(|hash| **hash != current.hash && !versions.old.contains_key(*hash));
        ops.extend(unused.map(|hash| delete_script(hash)));
        self.rows.commit(ops).await
    }
}

/// The versions that somebody waits on, as far as they are still stored.
async fn stored_versions(
    engine: &Engine,
    rows: &Rows,
    current: Arc<Script>,
    waited_on: BTreeSet<String>,
) -> Result<Versions, StoreError> {
    let mut old = BTreeMap::new();
    for hash in waited_on.into_iter().filter(|hash| *hash != current.hash) {
        let Some(source) = rows.script(&hash).await? else { continue };
        if let Ok(script) = engine.load(&current.name, &source) {
            old.insert(hash, Arc::new(script));
        }
    }
    Ok(Versions { current, old })
}

/// Where a bot's random numbers start.
fn seed() -> u64 {
    // Without the system's randomness the process's own hash keys serve; scripts' numbers guard no secret.
    getrandom::u64().unwrap_or_else(|_| {
        use std::hash::BuildHasher;
        std::hash::RandomState::new().hash_one("bots")
    })
}
