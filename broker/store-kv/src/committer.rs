//! Group commit: one thread gathers what waits, writes one batch, makes it durable, and wakes all.

use crate::{
    StoreError,
    group::{Finished, Group, Marks},
    keys::Number,
    kv::{Key, Kv},
    stats::Counters,
    waiting::{Bounds, Expiry, Made, Next, Old, Request, Waiting},
};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tavi_store::{Commit, CommitSlot, Gate, Op, Owner};
use tokio::sync::oneshot;

/// How many purged owners are remembered, so that a scan that stands at one can go on.
const REMEMBERED: usize = 4_096;
/// Whoever comes while a group is made waits at most so long for others' sake, however slow the disk is.
const PATIENCE: Duration = Duration::from_millis(10);
/// How many rows of a purged owner are deleted in one step.
const SWEEP: usize = 1_000;

/// What the committer tells the readers.
#[derive(Default)]
pub(crate) struct Shared {
    pub last: AtomicU64,
    pub counters: Counters,
    /// Lately purged owners with the numbers that they had.
    pub purged: Mutex<VecDeque<(Owner, Number)>>,
    /// Shut until the engine fails; then it stays open.
    pub failed: Arc<Gate>,
    pub fault: Mutex<Option<StoreError>>,
}

/// The front of the committer's thread.
pub(crate) struct Committer {
    waiting: Arc<Waiting>,
    thread: Mutex<Option<JoinHandle<()>>>,
    pub shared: Arc<Shared>,
}

impl Committer {
    /// Starts the thread on `kv`, from the marks that are stored there.
    pub fn start(kv: Arc<dyn Kv>, marks: Marks, bounds: Bounds) -> std::io::Result<Committer> {
        let shared = Arc::new(Shared { last: marks.last.into(), ..Shared::default() });
        shared.failed.set_open(false);
        let waiting = Arc::new(Waiting::new(bounds));
        let (unsynced, flush, broken) = (false, Duration::ZERO, None);
        let worker = Worker { kv, marks, waiting: waiting.clone(), shared: shared.clone(), unsynced, flush, broken };
        let thread = std::thread::Builder::new().name("tavi-commit".into()).spawn(move || worker.run())?;
        Ok(Committer { waiting, thread: Mutex::new(Some(thread)), shared })
    }

    /// Hands a commit in, however much waits; refuses it at once when the store is stopping.
    pub fn commit(&self, owner: &Owner, ops: Vec<Op>) -> Commit {
        let (slot, commit) = Commit::pending();
        self.shared.counters.waiting.fetch_add(1, Ordering::Relaxed);
        let request = Request { owner: owner.clone(), ops, slot, since: Instant::now() };
        if let Err(request) = self.waiting.push(request) {
            self.shared.counters.refused.fetch_add(1, Ordering::Relaxed);
            self.shared.counters.waiting.fetch_sub(1, Ordering::Relaxed);
            request.slot.resolve(Err(stopped()));
        }
        commit
    }

    /// Open while senders may go on.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.waiting.gate
    }

    /// Deletes archived stanzas, by owner and id; blocks until that is durable. Gives how many there were.
    pub fn expire(&self, rows: Vec<(Number, u64)>) -> Result<usize, StoreError> {
        self.delete(Old::Stanzas(rows))?.blocking_recv().map_err(|_| stopped())?
    }

    /// Forgets marks of deletions; resolves when that is durable, with how many there were.
    pub fn forget(&self, marks: Vec<Key>) -> impl Future<Output = Result<usize, StoreError>> + use<> {
        let done = self.delete(Old::Marks(marks));
        async move { done?.await.map_err(|_| stopped())? }
    }

    fn delete(&self, old: Old) -> Result<oneshot::Receiver<Result<usize, StoreError>>, StoreError> {
        let (answer, done) = oneshot::channel();
        self.waiting.expire(Expiry { old, answer }).map_err(|_| stopped())?;
        Ok(done)
    }

    /// Commits all that waits, then ends the thread; blocks meanwhile. Later commits are refused.
    pub fn stop(&self) {
        self.waiting.stop();
        let Some(thread) = self.thread.lock().take() else { return };
        if thread.join().is_err() {
            tracing::error!("the committer has panicked");
        }
    }
}

fn stopped() -> StoreError {
    StoreError::Unavailable("the store is stopping".into())
}

/// The thread's own side.
struct Worker {
    kv: Arc<dyn Kv>,
    marks: Marks,
    waiting: Arc<Waiting>,
    shared: Arc<Shared>,
    /// Whether something was written that is not durable yet.
    unsynced: bool,
    /// How long a flush takes, about.
    flush: Duration,
    /// Why nothing more can be written: after a failed write or flush nobody knows what is on the disk.
    broken: Option<StoreError>,
}

/// A commit of the group being made that was taken in.
struct Taken {
    slot: CommitSlot,
    since: Instant,
}

impl Worker {
    fn run(mut self) {
        loop {
            match self.next() {
                Next::Group(made) => self.group(made),
                // Nobody may be waiting any more; the stanzas are deleted all the same.
                Next::Expire(Expiry { old, answer }) => drop(answer.send(self.expire(old))),
                Next::End => return,
            }
        }
    }

    /// What is next; while there is nothing, purged owners are swept.
    fn next(&mut self) -> Next {
        while let Some(dead) = self.marks.dead.first().copied().filter(|_| self.broken.is_none()) {
            match self.waiting.try_next() {
                Some(next) => return next,
                None => self.sweep(dead),
            }
        }
        self.waiting.next()
    }

    /// Writes a group, makes all of it durable at once, and tells it. Only an engine that wants short batches gets
    /// more than one of them before the flush.
    fn group(&mut self, made: Made) {
        let (waiting, most) = (self.waiting.clone(), self.kv.batch());
        let (begun, patience) = (Instant::now(), self.flush.min(PATIENCE));
        let mut taken = Vec::new();
        let mut requests = waiting.requests(made, || begun.elapsed() < patience).fuse().peekable();
        while requests.peek().is_some() {
            self.batch(requests.by_ref().take(most), &mut taken);
        }
        let written = Instant::now();
        let done = self.sync();
        self.flush = (self.flush * 3 + written.elapsed()) / 4;
        self.shared.tell(taken, &done);
    }

    fn batch(&mut self, requests: impl Iterator<Item = Request>, taken: &mut Vec<Taken>) {
        let kv = self.kv.clone();
        let mut group = Group::new(&*kv, &mut self.marks);
        for Request { owner, ops, slot, since } in requests {
            let done = self.broken.clone().map_or(Ok(()), Err).and_then(|()| group.commit(&owner, &ops));
            match done {
                Ok(()) => taken.push(Taken { slot, since }),
                Err(error) => self.shared.refused(slot, error),
            }
        }
        let finished = group.finish();
        self.write(finished);
    }

    /// Writes a batch. If that fails, `broken` tells why, as it will to all who come later.
    fn write(&mut self, finished: Finished) {
        if self.broken.is_some() || finished.rows.len() == 0 {
            return;
        }
        match self.kv.write(finished.rows) {
            Ok(()) => {
                self.marks.last = finished.last;
                self.marks.dead.extend(finished.purged.iter().map(|(_, number)| *number));
                self.shared.remember(finished.purged);
                self.unsynced = true;
            }
            Err(error) => self.breaks(error),
        }
    }

    /// Makes durable what was written.
    fn sync(&mut self) -> Result<(), StoreError> {
        if self.broken.is_none() && std::mem::take(&mut self.unsynced) {
            match self.kv.sync() {
                Ok(()) => _ = self.shared.last.fetch_max(self.marks.last, Ordering::Release),
                Err(error) => self.breaks(error),
            }
        }
        self.broken.clone().map_or(Ok(()), Err)
    }

    fn breaks(&mut self, error: StoreError) {
        tracing::error!(%error, "the store cannot be written any more");
        *self.shared.fault.lock() = Some(error.clone());
        self.shared.failed.set_open(true);
        self.broken = Some(error);
    }

    fn expire(&mut self, old: Old) -> Result<usize, StoreError> {
        let kv = self.kv.clone();
        let mut group = Group::new(&*kv, &mut self.marks);
        let mut count = 0;
        match old {
            Old::Stanzas(rows) => {
                for (owner, id) in rows {
                    count += usize::from(group.expire(owner, id)?);
                }
            }
            Old::Marks(marks) => {
                count = marks.len();
                marks.into_iter().try_for_each(|mark| group.forget(mark))?;
            }
        }
        let finished = group.finish();
        self.write(finished);
        self.sync().map(|()| count)
    }

    fn sweep(&mut self, dead: Number) {
        let kv = self.kv.clone();
        let mut group = Group::new(&*kv, &mut self.marks);
        let swept = group.sweep(dead, SWEEP);
        let finished = group.finish();
        let done = swept.and_then(|more| {
            self.write(finished);
            self.sync().map(|()| more)
        });
        if let Err(error) = &done {
            tracing::warn!(%error, "a purged owner's rows could not be deleted; the next start tries again");
        }
        if !matches!(done, Ok(true)) {
            self.marks.dead.remove(&dead);
        }
    }
}

impl Shared {
    fn refused(&self, slot: CommitSlot, error: StoreError) {
        let counter = match error {
            StoreError::Conflict { .. } => &self.counters.conflicts,
            _ => &self.counters.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
        slot.resolve(Err(error));
    }

    fn tell(&self, taken: Vec<Taken>, done: &Result<(), StoreError>) {
        if !taken.is_empty() && done.is_ok() {
            self.counters.batch(taken.len());
        }
        let now = Instant::now();
        for Taken { slot, since } in taken {
            match done {
                Ok(()) => {
                    self.counters.landed(now.saturating_duration_since(since));
                    self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
                    slot.resolve(Ok(()));
                }
                Err(error) => self.refused(slot, error.clone()),
            }
        }
    }

    fn remember(&self, purged: Vec<(Owner, Number)>) {
        if purged.is_empty() {
            return;
        }
        let mut remembered = self.purged.lock();
        remembered.extend(purged);
        let over = remembered.len().saturating_sub(REMEMBERED);
        remembered.drain(..over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keys,
        kv::{Family, Rows, Span, Visit},
    };
    use bytes::Bytes;
    use std::{collections::BTreeMap, sync::atomic::AtomicBool, thread};
    use tavi_store::conformance::{body, wait};

    type Held = BTreeMap<(Family, Vec<u8>), Vec<u8>>;

    /// An engine in memory whose disk can be made to fail.
    #[derive(Default)]
    struct Fake {
        rows: Mutex<Held>,
        failing: AtomicBool,
    }

    impl Fake {
        fn count(&self, family: Family) -> usize {
            self.rows.lock().keys().filter(|(of, _)| *of == family).count()
        }
    }

    impl Kv for Fake {
        fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(self.rows.lock().get(&(family, key.to_vec())).cloned())
        }

        fn range(&self, family: Family, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
            let whole = |bound: std::ops::Bound<&[u8]>| bound.map(|key| (family, key.to_vec()));
            let rows: Vec<_> =
                self.rows.lock().range((whole(span.0), whole(span.1))).map(|(k, v)| (k.clone(), v.clone())).collect();
            let rows = rows.iter().filter(|((of, _), _)| *of == family);
            let _ = rows.into_iter().try_for_each(|((_, key), row)| visit(key, row));
            Ok(())
        }

        fn range_back(&self, _: Family, _: Span<'_>, _: &mut Visit<'_>) -> Result<(), StoreError> {
            Err(StoreError::Unavailable("the committer walks forth only".into()))
        }

        fn write(&self, mut batch: Rows) -> Result<(), StoreError> {
            let mut rows = self.rows.lock();
            for family in Family::ALL {
                for (key, value) in batch.take(family) {
                    match value {
                        Some(value) => drop(rows.insert((family, key), value)),
                        None => drop(rows.remove(&(family, key))),
                    }
                }
            }
            Ok(())
        }

        fn sync(&self) -> Result<(), StoreError> {
            match self.failing.load(Ordering::Acquire) {
                true => Err(StoreError::Unavailable("no space left".into())),
                false => Ok(()),
            }
        }
    }

    fn started(kv: &Arc<Fake>) -> Committer {
        let marks = Marks { next: 1, ..Marks::default() };
        Committer::start(kv.clone(), marks, Bounds { commits: 1_000, bytes: 1 << 30 }).unwrap()
    }

    fn push(id: u64) -> Vec<Op> {
        vec![Op::QueuePush { id, value: Bytes::from_static(b"x") }]
    }

    #[test]
    fn after_a_failed_flush_nothing_is_acknowledged_any_more() {
        let kv = Arc::new(Fake::default());
        let committer = started(&kv);
        let owner = Owner::topic("t");
        assert_eq!(wait(committer.commit(&owner, push(1))), Ok(()));
        assert!(!committer.shared.failed.is_open());
        kv.failing.store(true, Ordering::Release);
        let failed = Err(StoreError::Unavailable("no space left".into()));
        assert_eq!(wait(committer.commit(&owner, push(2))), failed);
        // The disk seems to work again, but nobody knows what became of the write before.
        kv.failing.store(false, Ordering::Release);
        assert_eq!(wait(committer.commit(&owner, push(3))), failed);
        assert_eq!(committer.expire(vec![(1, 1)]), Err(StoreError::Unavailable("no space left".into())));
        wait(committer.shared.failed.room());
        assert_eq!(committer.shared.last.load(Ordering::Acquire), 1);
        assert_eq!(committer.shared.counters.snapshot().failed, 2);
    }

    #[test]
    fn the_rows_of_a_purged_owner_are_swept_and_nobody_elses() {
        let kv = Arc::new(Fake::default());
        let committer = started(&kv);
        let fill = |owner: &Owner, first: u64| {
            let rows = (first..first + 1_500).map(|id| Op::Archive { id, with: "w".into(), value: body(id, 10) });
            let large = [Op::QueuePush { id: 1, value: body(1, 50_000) }, Op::Outbox { id: 1 }];
            let inbox = Op::Inbox { with: "w".into(), last: 1, unread: Some(1), preview: "p".into() };
            wait(committer.commit(owner, rows.chain(large).chain([inbox]).collect())).unwrap();
        };
        fill(&Owner::topic("kept"), 1);
        fill(&Owner::topic("gone"), 1);
        assert_eq!((kv.count(Family::Archive), kv.count(Family::Chunk)), (3_000, 26));
        let number = crate::names::number_of(&*kv, keys::Kind::Owner, "t:gone").unwrap().unwrap();
        wait(committer.commit(&Owner::topic("gone"), vec![Op::Purge])).unwrap();
        while kv.get(Family::System, &keys::dead(number)).unwrap().is_some() {
            thread::yield_now();
        }
        let left = [Family::Archive, Family::ArchiveWith, Family::Chunk, Family::Queue, Family::Outbox, Family::Inbox];
        assert_eq!(left.map(|family| kv.count(family)), [1_500, 1_500, 13, 1, 1, 1]);
    }
}
