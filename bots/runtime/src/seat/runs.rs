//! One run: on the pool, into the store, and only then out.

use super::Seat;
use crate::{
    actions::send,
    conversation::{Conversation, Step, Versions, World, event_for_nobody},
    ear::lasting,
    engine::{Moment, TopicHandler},
    event::{event, matches},
    pool::Turn,
    store::{Outgoing, delete_publication, put_conversation},
};
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
    /// The publication, which may have other handlers.
    pub publication: Option<Arc<Handling>>,
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

impl Seat {
    /// Has the handlers of a publication run: those about people once for each of them.
    pub(super) async fn published(self: &Arc<Self>, publication: Arc<Publication>) {
        let script = self.script();
        let wanted = |handler: &&TopicHandler| {
            publication.change == Change::Value && matches(&handler.filter, &publication.topic)
        };
        let (personal, common): (Vec<_>, Vec<_>) = script.topics.iter().filter(wanted).partition(|h| h.per_person);
        let people = if personal.is_empty() { Vec::new() } else { self.people.lock().everybody() };
        let handling = Arc::new(Handling::new(&publication, common.len() + people.len() * personal.len()));
        if handling.left.load(Ordering::Acquire) == 0 {
            return self.forget(&handling);
        }
        let source = Source { queued: None, publication: Some(handling) };
        let from = publication.from.jid().map_or("", |jid| jid.as_str());
        let event = Arc::new(event(&publication.topic, &publication.payload, from, publication.time_ms as i64));
        for handler in common {
            let (event, function) = (event.clone(), handler.function.clone());
            let run = move |_: &mut Conversation, world: &World<'_>| event_for_nobody(world, &function, &event);
            self.submit(&"".into(), source.clone(), run).await;
        }
        for person in &people {
            for handler in &personal {
                let (event, function) = (event.clone(), handler.function.clone());
                self.submit(person, source.clone(), move |c, world| c.event(world, &function, &event)).await;
            }
        }
    }

    /// Has a step run on the pool, in its conversation's turn; waits while the pool is full.
    pub(super) async fn submit(
        self: &Arc<Self>,
        person: &Arc<str>,
        source: Source,
        work: impl FnOnce(&mut Conversation, &World<'_>) -> Step + Send + 'static,
    ) {
        let (seat, who) = (self.clone(), person.clone());
        let job = move |turn| match seat.run(&who, source, work) {
            Ok(Some(committed)) => seat.clone().finish_soon(turn, committed),
            Ok(None) => {}
            Err(error) => tracing::error!(bot = %seat.jid, %error, "a conversation cannot be read"),
        };
        self.shared.pool.submit(&self.key, person, Box::new(job)).await;
    }

    /// One step on a thread of the pool: read, run, hand in the commit. `None` if nothing has changed.
    fn run(
        &self,
        person: &Arc<str>,
        source: Source,
        work: impl FnOnce(&mut Conversation, &World<'_>) -> Step,
    ) -> Result<Option<Committed>, StoreError> {
        let before = self.read(person)?;
        let mut conversation = before.clone();
        let step = work(&mut conversation, &self.world(&self.versions(), person));
        self.report(&step);
        let changed = !person.is_empty() && (conversation != before || !self.people.lock().knows(person));
        let outgoing = self.outgoing(step);
        let mut ops: Vec<Op> = outgoing.iter().map(Outgoing::put).collect();
        ops.extend(outgoing.last().map(|last| Op::Drawn { id: last.id }));
        ops.extend(changed.then(|| put_conversation(person, &conversation)));
        ops.extend(source.queued.map(|id| Op::QueueDelete { id }));
        ops.extend(source.publication.as_ref().and_then(|handling| handling.ends_with_this()));
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
    fn read(&self, person: &str) -> Result<Conversation, StoreError> {
        if person.is_empty() {
            return Ok(Conversation::default());
        }
        self.runtime.block_on(self.rows.conversation(person))
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
        if let (Some(id), Some(account)) = (source.queued, self.shared.node.parts.sessions.known(&self.jid)) {
            self.shared.node.router.settle(&account, &[id]);
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
        let moment = Moment { now_ms: self.now_ms(), random: next_seed(&self.seeds) };
        World { engine: &self.shared.engine, versions, gate: &self.gate, user, moment }
    }
}

fn next_seed(seeds: &AtomicU64) -> u64 {
    Moment { now_ms: 0, random: seeds.fetch_add(1, Ordering::Relaxed) }.draw()
}
