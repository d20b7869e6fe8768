//! A bot's place in the broker: a local session that hears messages, topics and the clock, and has handlers run.
//!
//! Nothing that was acknowledged is lost. A message from a sender with stream management lies in the bot's queue
//! before the sender is told so. Its run then commits, at once: the row's deletion, state and journal, and what is to
//! go out. Only then that goes out, each with an id that stays the same when it is sent again after a restart.

use crate::{
    actions::{complete, heard, send},
    conversation::{Conversation, Step, Versions, World, event_for_nobody},
    ear::{Ear, Granted, Waiting, lasting},
    engine::{Engine, Gate, Moment, Script},
    event::{event, matches},
    people::People,
    pool::{Pool, Turn},
    store::{Outgoing, Rows, delete_publication, delete_script, put_conversation, put_current, put_script},
};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tavi_core::{Closed, Envelope, Node, Principal, Publication, Subscriber, publication::Change, sessions::Bound};
use tavi_store::{Commit, Op, StoreError};
use tavi_xmpp_proto::{
    error::Condition,
    jid::{BareJid, Jid},
    stanza::{Head, IqType, MessageType, PresenceType, Stanza, StanzaType},
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

/// How many runs are on their way to the store or to their receivers.
#[derive(Clone, Default)]
pub struct Busy(Arc<watch::Sender<usize>>);

/// One run that is not finished.
struct Unfinished(Busy);

impl Busy {
    /// Waits until nothing is unfinished.
    pub async fn done(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }

    fn enter(&self) -> Unfinished {
        self.0.send_modify(|count| *count += 1);
        Unfinished(self.clone())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
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

/// Where a run comes from, and what is over once it is durable.
#[derive(Clone, Default)]
struct Source {
    /// The message's row in the bot's queue.
    queued: Option<u64>,
    /// The publication, which may have other handlers.
    publication: Option<Arc<Handling>>,
}

/// A publication whose handlers run.
struct Handling {
    id: u64,
    lasting: bool,
    /// Runs that are not durable yet.
    left: AtomicUsize,
    /// Whether the last run's own commit deletes the row.
    forgotten: AtomicBool,
}

impl Handling {
    /// The row's deletion, if only one run is left: then both are one commit, and the handler runs exactly once.
    fn ends_with_this(&self) -> Option<Op> {
        let last = self.lasting && self.left.load(Ordering::Acquire) == 1;
        last.then(|| {
            self.forgotten.store(true, Ordering::Release);
            delete_publication(self.id)
        })
    }
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
        let versions = stored_versions(&shared.engine, &rows, script, &people).await?;
        let permit = shared.node.parts.permit.clone();
        let seat = Arc::new(Seat {
            key: jid.as_str().into(),
            ear: Ear::new(&shared.node, principal.clone(), rows.owner().clone()),
            gate: Arc::new(Granted { permit, principal: principal.clone() }),
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
        for publication in seat.rows.publications().await? {
            seat.ear.mailbox().push(Waiting(publication), tavi_core::Overflow::Refuse);
        }
        seat.listen();
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

    /// Serves its place until `stop` says so.
    pub async fn serve(self: Arc<Self>, place: Bound, mut stop: watch::Receiver<bool>) {
        let mut place = Some(place);
        while let Some(bound) = place.take() {
            let left = self.hear(&bound, &mut stop).await;
            let why = bound.inbox.closed();
            if let Err(error) = self.shared.node.router.end(&bound, left).await.complete().await {
                tracing::error!(bot = %self.jid, %error, "what waited for a bot could not be kept");
            }
            // A bot that was too slow for a moment takes its place again; what it missed lies in its queue.
            if matches!(why, Some(Closed::Overflow)) && !*stop.borrow() {
                place = self.bind().await;
            }
        }
        self.ear.close(&self.shared.node);
    }

    /// Takes its place: from now on it gets messages, first those that waited. `None` if the store cannot be read.
    pub async fn bind(&self) -> Option<Bound> {
        let parts = &self.shared.node.parts;
        let account = parts.sessions.seat(&self.jid).await.inspect_err(|error| self.unreadable(error)).ok()??;
        let bound = parts.sessions.bind(&account, self.jid.with_resource(RESOURCE).ok()?)?;
        if let Some(session) = account.lock().session(bound.id) {
            session.managed = true;
        }
        let opened = self.shared.node.router.open(&bound).await.complete().await;
        opened.inspect_err(|error| self.unreadable(error)).ok()?;
        Some(bound)
    }

    fn unreadable(&self, error: &StoreError) {
        tracing::error!(bot = %self.jid, %error, "a bot cannot take its place");
    }

    /// Hears until the session is closed or `stop` says so; gives the stanzas that were not dealt with.
    async fn hear(self: &Arc<Self>, bound: &Bound, stop: &mut watch::Receiver<bool>) -> Vec<Envelope> {
        let (mut stanzas, mut publications) = (Vec::new(), Vec::new());
        loop {
            tokio::select! {
                _ = stop.changed() => return stanzas,
                open = bound.inbox.drain(&mut stanzas) => {
                    for stanza in stanzas.drain(..) {
                        self.stanza(bound, stanza).await;
                    }
                    if open.is_err() {
                        return stanzas;
                    }
                }
                _ = self.ear.mailbox().drain(&mut publications) => {
                    for Waiting(publication) in publications.drain(..) {
                        self.published(publication).await;
                    }
                }
                () = self.next_deadline() => self.deadlines().await,
            }
        }
    }

    async fn stanza(self: &Arc<Self>, bound: &Bound, stanza: Envelope) {
        let from = stanza.from().map(Jid::to_bare).filter(|from| from.local().is_some() && *from != self.jid);
        match (stanza.head().type_, from) {
            (StanzaType::Message(MessageType::Chat | MessageType::Normal), Some(from)) => {
                match heard(&stanza) {
                    Some(text) => self.message(from, text, stanza.meta.queued).await,
                    None => self.settle(bound, &stanza),
                }
            }
            (StanzaType::Presence(PresenceType::Subscribe), Some(from)) => self.befriend(from).await,
            (StanzaType::Iq(IqType::Get | IqType::Set), _) => {
                self.route(stanza.refuse(&Condition::ServiceUnavailable.into())).await;
            }
            _ => self.settle(bound, &stanza),
        }
    }

    fn settle(&self, bound: &Bound, stanza: &Envelope) {
        if let Some(id) = stanza.meta.queued {
            self.shared.node.router.acknowledge(&bound.account, &[id]);
        }
    }

    /// A bot lets everybody see that it is there (RFC 6121 §3.1.4).
    async fn befriend(&self, from: BareJid) {
        for type_ in [PresenceType::Subscribed, PresenceType::Available] {
            let head = Head::presence(type_).from(Jid::from(self.jid.clone())).to(Jid::from(from.clone()));
            self.route(Some(Stanza::new(head, []).into())).await;
        }
    }

    async fn route(&self, stanza: Option<Envelope>) {
        let Some(stanza) = stanza else { return };
        if let Err(error) = self.shared.node.route(stanza).await.complete().await {
            tracing::error!(bot = %self.jid, %error, "an answer of a bot could not be saved");
        }
    }

    async fn message(self: &Arc<Self>, from: BareJid, text: String, queued: Option<u64>) {
        let source = Source { queued, publication: None };
        self.submit(&from.as_str().into(), source, move |conversation, world| conversation.hear(world, &text)).await;
    }

    async fn published(self: &Arc<Self>, publication: Arc<Publication>) {
        let script = self.script();
        let (mut personal, mut common) = (Vec::new(), Vec::new());
        for handler in script.topics.iter().filter(|handler| matches(&handler.filter, &publication.topic)) {
            if handler.per_person { &mut personal } else { &mut common }.push(handler.function.clone());
        }
        if publication.change == Change::Clear {
            (personal, common) = Default::default();
        }
        let people = if personal.is_empty() { Vec::new() } else { self.people.lock().everybody() };
        let runs = common.len() + people.len() * personal.len();
        let left = AtomicUsize::new(runs);
        let handling = Handling { id: publication.id, lasting: lasting(&publication), left, forgotten: AtomicBool::new(false) };
        let source = Source { queued: None, publication: Some(Arc::new(handling)) };
        let from = publication.from.jid().map_or("", |jid| jid.as_str());
        let event = Arc::new(event(&publication.topic, &publication.payload, from, publication.time_ms as i64));
        for function in common {
            let event = event.clone();
            let run = move |_: &mut Conversation, world: &World<'_>| event_for_nobody(world, &function, &event);
            self.submit(&"".into(), source.clone(), run).await;
        }
        for person in &people {
            for function in &personal {
                let (event, function): (Arc<Value>, _) = (event.clone(), function.clone());
                self.submit(person, source.clone(), move |c, world| c.event(world, &function, &event)).await;
            }
        }
        if let (0, Some(handling)) = (runs, source.publication) {
            self.forget(&handling);
        }
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

    /// Has a step run on the pool, in its conversation's turn; waits while the pool is full.
    async fn submit(
        self: &Arc<Self>,
        person: &Arc<str>,
        source: Source,
        work: impl FnOnce(&mut Conversation, &World<'_>) -> Step + Send + 'static,
    ) {
        let (seat, who) = (self.clone(), person.clone());
        let job = move |turn| {
            if let Err(error) = seat.run(turn, &who, source, work) {
                tracing::error!(bot = %seat.jid, %error, "a conversation cannot be read");
            }
        };
        self.shared.pool.submit(&self.key, person, Box::new(job)).await;
    }

    /// One step on a thread of the pool: read, run, hand in the commit. The rest happens once it has landed.
    fn run(
        self: &Arc<Self>,
        turn: Turn,
        person: &Arc<str>,
        source: Source,
        work: impl FnOnce(&mut Conversation, &World<'_>) -> Step,
    ) -> Result<(), StoreError> {
        let nobody = person.is_empty();
        let before = match nobody {
            true => Conversation::default(),
            false => self.runtime.block_on(self.rows.conversation(person))?,
        };
        let mut conversation = before.clone();
        let step = work(&mut conversation, &self.world(&self.versions(), person));
        self.report(&step);
        let changed = !nobody && (conversation != before || !self.people.lock().knows(person));
        let outgoing = self.outgoing(step);
        let mut ops: Vec<Op> = outgoing.iter().map(Outgoing::put).collect();
        ops.extend(changed.then(|| put_conversation(person, &conversation)));
        ops.extend(source.queued.map(|id| Op::QueueDelete { id }));
        ops.extend(source.publication.as_ref().and_then(|handling| handling.ends_with_this()));
        if ops.is_empty() {
            self.handled(&source);
            return Ok(());
        }
        let unfinished = self.shared.busy.enter();
        let commit = self.rows.commit(ops);
        if changed {
            self.people.lock().note(person, &conversation);
            self.timer.notify_one();
        }
        let finish = self.clone().finish(turn, commit, source, outgoing);
        self.runtime.spawn(async move {
            finish.await;
            drop(unfinished);
        });
        Ok(())
    }

    /// The commit has landed: what it holds goes out, then the conversation may go on.
    async fn finish(self: Arc<Self>, turn: Turn, commit: Commit, source: Source, outgoing: Vec<Outgoing>) {
        if let Err(error) = commit.await {
            tracing::error!(bot = %self.jid, %error, "a run of a bot could not be saved; it runs again after a restart");
            return;
        }
        if let (Some(id), Some(account)) = (source.queued, self.shared.node.parts.sessions.known(&self.jid)) {
            self.shared.node.router.settle(&account, &[id]);
        }
        self.send(outgoing).await;
        self.handled(&source);
        drop(turn);
    }

    /// Sends actions in order; each keeps its row until its receivers have it.
    async fn send(&self, outgoing: Vec<Outgoing>) {
        if outgoing.is_empty() {
            return;
        }
        let mut tickets = Vec::with_capacity(outgoing.len());
        for one in &outgoing {
            tickets.push(send(&self.shared.node, &self.principal, (self.ear.id(), one)).await);
        }
        match complete(tickets).await {
            // Nobody waits for this: if it is lost with the power, the same is sent once more.
            Ok(()) => drop(self.rows.commit(outgoing.iter().map(Outgoing::delete).collect())),
            Err(error) => tracing::error!(bot = %self.jid, %error, "a bot's message is sent after the next start"),
        }
    }

    /// One handler of a publication has run; after the last one its row goes.
    fn handled(&self, source: &Source) {
        let Some(handling) = &source.publication else { return };
        if handling.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.forget(handling);
        }
    }

    fn forget(&self, handling: &Handling) {
        if handling.lasting && !handling.forgotten.load(Ordering::Acquire) {
            // Nobody waits for this: if it is lost with the power, the handlers run once more.
            drop(self.rows.commit(vec![delete_publication(handling.id)]));
        }
    }

    fn outgoing(&self, step: Step) -> Vec<Outgoing> {
        let ids = &self.shared.node.parts.ids;
        let now = self.shared.node.parts.clock.now_ms();
        step.actions.into_iter().map(|action| Outgoing { id: ids.next(now), action }).collect()
    }

    fn report(&self, step: &Step) {
        if let Some(failure) = &step.failure {
            let reference = &failure.reference;
            tracing::warn!(bot = %self.jid, reference, "a script failed: {}", failure.error);
        }
    }

    fn world<'a>(&'a self, versions: &'a Versions, user: &'a str) -> World<'a> {
        let mut moment = Moment { now_ms: self.now_ms(), random: self.seeds.fetch_add(1, Ordering::Relaxed) };
        moment.random = moment.draw();
        World { engine: &self.shared.engine, versions, gate: &self.gate, user, moment }
    }

    fn versions(&self) -> Arc<Versions> {
        self.versions.read().clone()
    }

    fn now_ms(&self) -> i64 {
        self.shared.node.parts.clock.now_ms() as i64
    }

    /// Keeps the newest version, and no others than those that somebody waits on.
    async fn save_version(&self) -> Result<(), StoreError> {
        let current = self.script();
        let waited_on = self.people.lock().versions();
        let mut ops = vec![put_script(&current.hash, &current.source), put_current(&current.hash)];
        let stored = self.rows.scripts().await?;
        let unused = stored.iter().filter(|hash| **hash != current.hash && !waited_on.contains(*hash));
        ops.extend(unused.map(|hash| delete_script(hash)));
        self.rows.commit(ops).await
    }
}

/// The versions that somebody waits on, as far as they are still stored.
async fn stored_versions(
    engine: &Engine,
    rows: &Rows,
    current: Arc<Script>,
    people: &People,
) -> Result<Versions, StoreError> {
    let mut old = BTreeMap::new();
    for hash in people.versions().into_iter().filter(|hash| *hash != current.hash) {
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
