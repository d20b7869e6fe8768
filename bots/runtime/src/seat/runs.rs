//! One run: on the pool, into the store, and only then out.

use super::Seat;
use crate::{
    actions::send,
    conversation::{Conversation, Step, Versions, World, event_for_nobody},
    ear::lasting,
    engine::{Moment, Script, TopicHandler},
    event::{event, matches},
    pool::Turn,
    store::{Kept, Outgoing, delete_publication, put_conversation, put_damaged},
};
use serde_json::Value;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tavi_core::{Publication, Subscriber, metrics::Outcome, publication::Change};
use tavi_store::{Commit, Op, StoreError};
use tokio::sync::watch;

/// How long to wait before a store that was not available is tried again.
const PAUSES: [Duration; 3] = [Duration::from_millis(10), Duration::from_millis(100), Duration::from_secs(1)];

/// How many publications share a commit: at most 64 messages come from each.
const BATCH: usize = 32;

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

/// Where a run comes from, and what is over once it is durable.
#[derive(Clone, Default)]
pub struct Source {
    /// The message's row in the bot's queue.
    pub queued: Option<u64>,
    /// The publications, each of which may have other handlers.
    pub publications: Vec<Arc<Handling>>,
}

/// A publication whose handlers run.
pub struct Handling {
    id: u64,
    lasting: bool,
    /// Runs that are not durable yet.
    left: AtomicUsize,
    /// Whether the last run's own commit deletes the row.
    forgotten: AtomicBool,
}

/// What a run has committed: the operations, to be repeated if need be, and what goes out after them.
struct Committed {
    commit: Commit,
    ops: Vec<Op>,
    outgoing: Vec<Outgoing>,
    source: Source,
}

impl Handling {
    fn new(publication: &Publication, runs: usize) -> Handling {
        let (left, forgotten) = (AtomicUsize::new(runs), AtomicBool::new(false));
        Handling { id: publication.id, lasting: lasting(publication), left, forgotten }
    }

    /// The row's deletion, if only one run is left: then both are one commit, and the handler runs exactly once.
    fn ends_with_this(&self) -> Option<Op> {
        let last = self.lasting && self.left.load(Ordering::Acquire) == 1;
        last.then(|| {
            self.forgotten.store(true, Ordering::Release);
            delete_publication(self.id)
        })
    }
}

/// The runs about nobody of some publications: one job, one commit, in their order.
#[derive(Default)]
struct Common {
    handlings: Vec<Arc<Handling>>,
    calls: Vec<(String, Arc<Value>)>,
}

impl Common {
    fn add(&mut self, handling: Arc<Handling>, event: &Arc<Value>, handlers: Vec<&TopicHandler>) {
        self.handlings.push(handling);
        self.calls.extend(handlers.into_iter().map(|handler| (handler.function.clone(), event.clone())));
    }

    async fn submit(self, seat: &Arc<Seat>) {
        let Common { handlings, calls } = self;
        if calls.is_empty() {
            return;
        }
        let work = move |_: &mut Conversation, world: &World<'_>| {
            let (mut moment, mut all) = (world.moment, Step::default());
            for (function, event) in &calls {
                moment.random = moment.draw();
                all.then(event_for_nobody(&World { moment, ..*world }, function, event));
            }
            all
        };
        seat.submit(&"".into(), Source { queued: None, publications: handlings }, work).await;
    }
}

impl Seat {
    /// Has the handlers of publications run: those about people once for each of them, the others together, so that a
    /// burst costs few commits.
    pub(super) async fn published(self: &Arc<Self>, publications: Vec<Arc<Publication>>) {
        let script = self.script();
        for some in publications.chunks(BATCH) {
            let mut common = Common::default();
            for publication in some {
                self.personal(&script, publication, &mut common).await;
            }
            common.submit(self).await;
        }
    }

    /// Has the handlers about people run; gives the others to `common`.
    async fn personal(self: &Arc<Self>, script: &Script, publication: &Publication, common: &mut Common) {
        let wanted = |handler: &&TopicHandler| {
            publication.change == Change::Value && matches(&handler.filter, &publication.topic)
        };
        let (personal, nobodys): (Vec<_>, Vec<_>) = script.topics.iter().filter(wanted).partition(|h| h.per_person);
        let people = if personal.is_empty() { Vec::new() } else { self.listeners(script, &publication.topic) };
        let runs = people.len() * personal.len() + usize::from(!nobodys.is_empty());
        let handling = Arc::new(Handling::new(publication, runs));
        if runs == 0 {
            return self.forget(&handling);
        }
        let from = publication.from.jid().map_or("", |jid| jid.as_str());
        let event = Arc::new(event(&publication.topic, &publication.payload, from, publication.time_ms as i64));
        if !nobodys.is_empty() {
            common.add(handling.clone(), &event, nobodys);
        }
        let source = Source { queued: None, publications: vec![handling] };
        for person in &people {
            for handler in &personal {
                let (event, function) = (event.clone(), handler.function.clone());
                self.submit(person, source.clone(), move |c, world| c.event(world, &function, &event)).await;
            }
        }
    }

    /// Those whom a publication may concern: they may hear its topic themselves, or the bot serves them.
    fn listeners(&self, script: &Script, topic: &str) -> Vec<Arc<str>> {
        let mut people = self.people.lock().everybody();
        people.retain(|person| script.serves(person) || self.gate.hear(person, topic));
        people
    }

    /// Whoever makes commits waits while the store has no room (semantics.md): then a bot takes nothing more from its inbox,
    /// and sends nothing. At the stop nobody waits any more.
    async fn room(&self) {
        tokio::select! {
            () = self.shared.node.parts.store.room() => {}
            () = self.shared.pool.closed() => {}
        }
    }

    /// Has a step run on the pool, in its conversation's turn; waits while the pool is full or the store busy. Tells whether
    /// it was taken: not when the broker stops.
    pub(super) async fn submit(
        self: &Arc<Self>,
        person: &Arc<str>,
        source: Source,
        work: impl FnOnce(&mut Conversation, &World<'_>) -> Step + Send + 'static,
    ) -> bool {
        let (seat, who) = (self.clone(), person.clone());
        let job = move |turn| match seat.run(&who, source, work) {
            Ok(Some(committed)) => seat.clone().finish_soon(turn, committed),
            Ok(None) => {}
            Err(error) => tracing::error!(bot = %seat.jid, %error, "a conversation cannot be read"),
        };
        self.room().await;
        self.shared.pool.submit(&self.key, person, Box::new(job)).await
    }

    /// One step on a thread of the pool: read, run, hand in the commit. `None` if nothing has changed.
    fn run(
        &self,
        person: &Arc<str>,
        source: Source,
        work: impl FnOnce(&mut Conversation, &World<'_>) -> Step,
    ) -> Result<Option<Committed>, StoreError> {
        let Kept { conversation: before, damaged } = self.read(person)?;
        let mut conversation = before.clone();
        let step = work(&mut conversation, &self.world(&self.versions(), person));
        if step.stopped {
            return Ok(None);
        }
        self.report(&step);
        let new = damaged.is_some() || !self.people.lock().knows(person);
        let changed = !person.is_empty() && (conversation != before || new);
        let outgoing = self.outgoing(step);
        let mut ops: Vec<Op> = outgoing.iter().map(Outgoing::put).collect();
        ops.extend(outgoing.last().map(|last| Op::Drawn { id: last.id }));
        ops.extend(changed.then(|| put_conversation(person, &conversation)));
        ops.extend(source.queued.map(|id| Op::QueueDelete { id }));
        ops.extend(source.publications.iter().filter_map(|handling| handling.ends_with_this()));
        ops.extend(damaged.map(|value| put_damaged(person, value)));
        if ops.is_empty() {
            self.handled(&source);
            return Ok(None);
        }
        let commit = self.rows.commit(ops.clone());
        if changed {
            self.people.lock().note(person, &conversation);
            self.timer.notify_one();
        }
        Ok(Some(Committed { commit, ops, outgoing, source }))
    }

    /// A conversation as it was last committed: its turn ends only when its commit has landed.
    fn read(&self, person: &str) -> Result<Kept, StoreError> {
        if person.is_empty() {
            return Ok(Kept::default());
        }
        let kept = self.runtime.block_on(self.rows.conversation(person))?;
        if kept.damaged.is_some() {
            tracing::error!(bot = %self.jid, person, "a damaged conversation is set aside; a new one begins");
        }
        Ok(kept)
    }

    fn finish_soon(self: Arc<Self>, turn: Turn, committed: Committed) {
        let unfinished = self.shared.busy.enter();
        self.runtime.clone().spawn(async move {
            self.finish(committed).await;
            drop(turn);
            drop(unfinished);
        });
    }

    /// Once the commit has landed, what it holds goes out.
    async fn finish(&self, Committed { commit, ops, outgoing, source }: Committed) {
        if let Err(error) = self.landed(commit, ops).await {
            tracing::error!(bot = %self.jid, %error, "a run of a bot could not be saved; it runs again after a restart");
            return;
        }
        if let Some(id) = source.queued {
            self.shared.node.router.settle(&self.jid, &[id]);
        }
        self.send(outgoing).await;
        self.handled(&source);
    }

    /// Waits for a commit; hands it in again while the store is not available for a moment.
    async fn landed(&self, commit: Commit, ops: Vec<Op>) -> Result<(), StoreError> {
        let mut result = commit.await;
        for pause in PAUSES {
            let Err(StoreError::Unavailable(_)) = result else { break };
            tokio::time::sleep(pause).await;
            result = self.rows.commit(ops.clone()).await;
        }
        result
    }

    /// Sends actions in order; each keeps its row until its receivers have it.
    pub(super) async fn send(&self, outgoing: Vec<Outgoing>) {
        let mut left = self.try_to_send(outgoing).await;
        for pause in PAUSES {
            if left.is_empty() {
                return;
            }
            tokio::time::sleep(pause).await;
            left = self.try_to_send(left).await;
        }
        if !left.is_empty() {
            tracing::error!(bot = %self.jid, messages = left.len(), "messages of a bot are sent after the next start");
        }
    }

    /// Gives those that could not be saved for their receivers.
    async fn try_to_send(&self, outgoing: Vec<Outgoing>) -> Vec<Outgoing> {
        let mut tickets = Vec::with_capacity(outgoing.len());
        for one in outgoing {
            self.room().await;
            let ticket = send(&self.shared.node, &self.principal, self.ear.id(), &one).await;
            tickets.push((ticket, one));
        }
        let (mut sent, mut left) = (Vec::new(), Vec::new());
        for (ticket, one) in tickets {
            match ticket.complete().await {
                Ok(()) => sent.push(one.delete()),
                Err(_) => left.push(one),
            }
        }
        sent.iter().for_each(|_| self.count(Outcome::Delivered));
        if !sent.is_empty() {
            // Nobody waits for this: if it is lost with the power, the same is sent once more.
            drop(self.rows.commit(sent));
        }
        left
    }

    /// One handler of each publication has run; after the last one its row goes.
    fn handled(&self, source: &Source) {
        let over = source.publications.iter().filter(|handling| handling.left.fetch_sub(1, Ordering::AcqRel) == 1);
        over.for_each(|handling| self.forget(handling));
    }

    /// Deletes the row if no run did. If that is lost with the power, the handlers run once more.
    fn forget(&self, handling: &Handling) {
        let id = handling.id;
        if !handling.lasting {
            return;
        }
        if handling.forgotten.load(Ordering::Acquire) {
            return self.ear.done(id);
        }
        let (commit, ear) = (self.rows.commit(vec![delete_publication(id)]), self.ear.clone());
        // Until the row is gone it could be read again.
        self.runtime.spawn(async move {
            if commit.await.is_ok() {
                ear.done(id);
            }
        });
    }

    fn outgoing(&self, step: Step) -> Vec<Outgoing> {
        let ids = &self.shared.node.parts.ids;
        let now = self.shared.node.parts.clock.now_ms();
        step.actions.into_iter().map(|action| Outgoing { id: ids.next(now), action }).collect()
    }

    fn report(&self, step: &Step) {
        for failure in &step.failures {
            let reference = &failure.reference;
            tracing::warn!(bot = %self.jid, reference, "a script failed: {}", failure.error);
        }
    }

    fn world<'a>(&'a self, versions: &'a Versions, user: &'a str) -> World<'a> {
        let moment = Moment { now_ms: self.now_ms(), random: next_seed(&self.seeds) };
        World { engine: &self.shared.engine, versions, gate: &self.gate, user, moment }
    }
}

fn next_seed(seeds: &AtomicU64) -> u64 {
    Moment { now_ms: 0, random: seeds.fetch_add(1, Ordering::Relaxed) }.draw()
}
