//! The domain store on an embedded engine.

use crate::{
    CommitStats, Engine, OpenError, Options, StoreError,
    committer::Committer,
    fjall::{self, Fjall},
    folder::{self, Current, Folder},
    keys::Number,
    kv::Kv,
    layout::marks,
    read::Reader,
    sled::{self, Sled},
    waiting::Bounds,
};
use std::{
    future::ready,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use tavi_store::{
    ArchiveQuery, ArchiveRow, Commit, InboxRow, NameRange, Op, Owner, PageBound, QueuePage, QueueRow, QueueSize, Read,
    Record, Room, Row, Store, Table, limits,
};
use tokio::sync::oneshot;

/// At most so many archived stanzas are deleted in one batch, so that commits wait for few.
const EXPIRE_STEP: usize = 1_000;

/// A store on an embedded engine. Reads run in the caller's thread; commits are gathered by a thread of the store.
///
/// Dropping it commits all that waits and closes the engine; [`KvStore::close`] does so at a chosen moment.
pub struct KvStore {
    committer: Arc<Committer>,
    reader: Reader,
    engine: Engine,
    /// The owner from which the next expiry goes on.
    expiry: Arc<AtomicU64>,
    // Declared last, so that the lock outlives the engine.
    folder: Arc<Folder>,
}

/// Opens the store in the folder `path`, or makes one there. Blocks while the engine recovers.
pub fn open(path: &Path, options: &Options) -> Result<Arc<KvStore>, OpenError> {
    let folder = Folder::lock(path)?;
    let current = folder.current()?;
    let chosen = match &current {
        Some(Current { engine: found, .. }) if *found != options.engine => {
            return Err(OpenError::OtherEngine { path: path.into(), found: *found, wanted: options.engine });
        }
        Some(current) => current.clone(),
        None => Current { engine: options.engine, folder: folder.unused(options.engine) },
    };
    let store = KvStore::inside(&Arc::new(folder), &chosen, options)?;
    if current.is_none() {
        store.folder.set_current(&chosen)?;
    }
    Ok(Arc::new(store))
}

/// The engine of the store in the folder `path`; `None` if there is no store yet.
pub fn engine_of(path: &Path) -> Result<Option<Engine>, OpenError> {
    Ok(folder::read_current(path)?.map(|current| current.engine))
}

pub(crate) fn open_engine(folder: &Folder, current: &Current, cache: u64) -> Result<Arc<dyn Kv>, OpenError> {
    let path = folder.inside(&current.folder);
    Ok(match current.engine {
        Engine::Sled => Arc::new(folder::open_or_mend(&path, |path| Sled::open(path, cache), sled::move_snapshots)?),
        Engine::Fjall => {
            Arc::new(folder::open_or_mend(&path, |path| Fjall::open(path, cache, fjall::YOUNG), fjall::cut_journal)?)
        }
    })
}

impl KvStore {
    /// Opens one of the stores inside a folder.
    pub(crate) fn inside(folder: &Arc<Folder>, current: &Current, options: &Options) -> Result<KvStore, OpenError> {
        let kv = open_engine(folder, current, options.cache)?;
        let marks = marks(&*kv)?;
        let bounds = Bounds { commits: options.queue, bytes: options.queue_bytes };
        let committer = Committer::start(kv.clone(), marks, bounds);
        let committer = committer.map_err(|error| StoreError::Unavailable(error.to_string().into()))?;
        Ok(KvStore {
            committer: Arc::new(committer),
            reader: Reader::new(kv),
            engine: current.engine,
            expiry: Arc::default(),
            folder: folder.clone(),
        })
    }

    /// Commits all that waits, then refuses later commits; blocks meanwhile. Reads go on.
    pub fn close(&self) {
        self.committer.stop();
    }

    /// What the committer did so far, for /metrics.
    pub fn stats(&self) -> CommitStats {
        self.committer.shared.counters.snapshot()
    }

    /// Resolves with the reason when the engine could not write: nothing more is taken in then, since nobody knows
    /// what is on the disk. A new start finds out.
    pub fn failure(&self) -> impl Future<Output = StoreError> + use<> {
        let shared = self.committer.shared.clone();
        async move {
            shared.failed.room().await;
            let fault = shared.fault.lock().clone();
            fault.unwrap_or_else(|| StoreError::Unavailable("the store has failed".into()))
        }
    }

    /// The engine below.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The number of an owner, also of one that was purged lately, so that a scan goes on where it stood.
    fn number(&self, owner: &Owner) -> Result<Option<Number>, StoreError> {
        if let Some(number) = self.reader.number(owner)? {
            return Ok(Some(number));
        }
        let purged = self.committer.shared.purged.lock();
        Ok(purged.iter().rev().find(|(name, _)| name == owner).map(|(_, number)| *number))
    }
}

impl Drop for KvStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for KvStore {
    fn commit(&self, owner: &Owner, ops: Vec<Op>) -> Commit {
        match limits::validate(owner, &ops) {
            Ok(()) => self.committer.commit(owner, ops),
            Err(error) => Commit::ready(Err(error)),
        }
    }

    fn load<'a>(&'a self, owner: &'a Owner, table: Table, item: &'a str) -> Read<'a, Option<Record>> {
        now(self.reader.load(owner, table, item))
    }

    fn list<'a>(
        &'a self,
        owner: &'a Owner,
        table: Table,
        after: Option<&'a str>,
        limit: usize,
    ) -> Read<'a, Vec<(Box<str>, Record)>> {
        now(self.reader.list(owner, (table, after), limit))
    }

    fn scan<'a>(&'a self, table: Table, after: Option<(&'a Owner, &'a str)>, limit: usize) -> Read<'a, Vec<Row>> {
        now(match after {
            None => self.reader.scan(table, None, limit),
            Some((owner, item)) => self.number(owner).and_then(|number| {
                let after = number.map(|number| (number, item));
                self.reader.scan(table, after, limit)
            }),
        })
    }

    fn queue<'a>(&'a self, owner: &'a Owner, after: u64, limit: usize) -> Read<'a, Vec<QueueRow>> {
        let bound = PageBound { rows: limit, bytes: usize::MAX };
        now(self.reader.queue(owner, after, bound).map(|page| page.rows))
    }

    fn queue_page<'a>(&'a self, owner: &'a Owner, after: u64, bound: PageBound) -> Read<'a, QueuePage> {
        now(self.reader.queue(owner, after, bound))
    }

    fn queue_size<'a>(&'a self, owner: &'a Owner) -> Read<'a, QueueSize> {
        now(self.reader.queue_size(owner))
    }

    fn walk<'a>(&'a self, table: Table, names: NameRange<'a>, bound: PageBound) -> Read<'a, Vec<(Box<str>, Record)>> {
        now(self.reader.walk(table, names, bound))
    }

    fn count(&self, table: Table) -> Read<'_, u64> {
        now(self.reader.count(table))
    }

    fn archive<'a>(&'a self, owner: &'a Owner, query: &'a ArchiveQuery) -> Read<'a, Vec<ArchiveRow>> {
        now(self.reader.archive(owner, query))
    }

    fn inbox<'a>(&'a self, owner: &'a Owner, before: Option<u64>, limit: usize) -> Read<'a, Vec<InboxRow>> {
        now(self.reader.inbox(owner, before, limit))
    }

    fn outbox<'a>(&'a self, after: u64, limit: usize) -> Read<'a, Vec<(u64, Owner)>> {
        now(self.reader.outbox(after, limit))
    }

    fn owners<'a>(&'a self, after: Option<&'a Owner>, limit: usize) -> Read<'a, Vec<Owner>> {
        now(match after {
            None => self.reader.owners(0, limit),
            Some(owner) => self.number(owner).and_then(|number| self.reader.owners(number.unwrap_or(0), limit)),
        })
    }

    /// Looks for old stanzas in a thread of its own, since it may have to look at every owner.
    fn expire<'a>(&'a self, before: u64, limit: usize) -> Read<'a, usize> {
        let (answer, done) = oneshot::channel();
        let job = Expiry { reader: self.reader.clone(), committer: self.committer.clone(), from: self.expiry.clone() };
        let started = thread::Builder::new().name("tavi-expire".into()).spawn(move || {
            // Nobody may be waiting any more; the stanzas are deleted all the same.
            let _ = answer.send(job.run(before, limit));
        });
        let failed = |error: &dyn std::fmt::Display| StoreError::Unavailable(error.to_string().into());
        match started {
            Ok(_) => Box::pin(async move { done.await.unwrap_or_else(|error| Err(failed(&error))) }),
            Err(error) => now(Err(failed(&error))),
        }
    }

    fn forget<'a>(&'a self, before: u64, limit: usize) -> Read<'a, usize> {
        Box::pin(async move {
            let marks = self.reader.marks(before, limit)?;
            if marks.is_empty() { Ok(0) } else { self.committer.forget(marks).await }
        })
    }

    fn has_room(&self) -> bool {
        self.committer.gate().is_open()
    }

    fn room(&self) -> Room {
        self.committer.gate().room()
    }

    fn last_id(&self) -> u64 {
        self.committer.shared.last.load(Ordering::Acquire)
    }
}

fn now<'a, T: Send + 'a>(result: Result<T, StoreError>) -> Read<'a, T> {
    Box::pin(ready(result))
}

/// One step of expiry.
struct Expiry {
    reader: Reader,
    committer: Arc<Committer>,
    from: Arc<AtomicU64>,
}

impl Expiry {
    /// Goes round the owners once, from where the step before ended, until `limit` stanzas are deleted.
    fn run(&self, before: u64, limit: usize) -> Result<usize, StoreError> {
        let start = self.from.load(Ordering::Relaxed);
        let mut deleted = self.walk(before, limit, start)?;
        if deleted < limit && start != 0 {
            deleted += self.walk(before, limit - deleted, 0)?;
        }
        Ok(deleted)
    }

    /// Deletes from owner `from` on to the last.
    fn walk(&self, before: u64, limit: usize, mut from: Number) -> Result<usize, StoreError> {
        let mut deleted = 0;
        while deleted < limit {
            let (rows, next) = self.reader.older_than(before, from, EXPIRE_STEP.min(limit - deleted))?;
            if !rows.is_empty() {
                deleted += self.committer.expire(rows)?;
            }
            self.from.store(next.unwrap_or(0), Ordering::Relaxed);
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(deleted)
    }
}
