//! The store as the broker sees it: one owner's operations in one durable commit, and bounded reads.
//!
//! Backends own group commit. A [`Commit`] that resolved with `Ok` is on disk. Commits of one caller are applied in
//! the order in which they were submitted.

mod commit;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod error;
pub mod export;
pub mod id;
pub mod limits;
mod memory;
mod op;
mod owner;
mod room;

pub use commit::{Commit, CommitSlot};
pub use error::StoreError;
pub use id::IdSource;
pub use memory::MemoryStore;
pub use op::{Body, Expect, Op, Place, Record, Table};
pub use owner::Owner;
pub use room::{Gate, Room};

use bytes::Bytes;
use std::{future::Future, pin::Pin, sync::Arc};

/// The result of a read; embedded engines answer at once, a database over the network later.
pub type Read<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A store that is shared by all parts of the broker.
pub type SharedStore = Arc<dyn Store>;

/// One row of a table, as [`Store::scan`] gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The partition that the row belongs to.
    pub owner: Owner,
    /// The key inside the partition.
    pub item: Box<str>,
    /// Version and value.
    pub record: Record,
}

/// One row of an owner's queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueRow {
    /// The id that its maker drew; rows come in ascending id order.
    pub id: u64,
    /// The queued bytes; of a row that shares a body its head.
    pub value: Bytes,
    /// The body of a row that was pushed with [`Op::QueueShare`].
    pub body: Option<Bytes>,
    /// The id of that body.
    pub body_id: Option<u64>,
    /// It is a view of the archived stanza with its id ([`Op::QueueArchived`]): the bytes are that one's.
    pub archived: bool,
}

impl QueueRow {
    /// How many bytes the row has, those that it shares counted too.
    pub fn len(&self) -> usize {
        self.value.len() + self.body.as_ref().map_or(0, Bytes::len)
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How much a page may hold: it ends with the row that reaches one of the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBound {
    /// At most so many rows (and never more than 1,000).
    pub rows: usize,
    /// No further row behind so many bytes; a row that is larger comes alone.
    pub bytes: usize,
}

/// Which topics a walk meets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameRange<'a> {
    /// Those whose names begin so.
    pub prefix: &'a str,
    /// Those behind this name, which need not exist.
    pub after: Option<&'a str>,
}

/// A part of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuePage {
    /// The rows, in ascending id order.
    pub rows: Vec<QueueRow>,
    /// Whether nothing stood behind them.
    pub end: bool,
}

/// How much an owner's queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSize {
    /// Its rows.
    pub rows: u64,
    /// Their bytes; a shared body counts for each row that names it.
    pub bytes: u64,
}

/// Which part of an archive is wanted.
#[derive(Clone, Debug, Default)]
pub struct ArchiveQuery {
    /// Only rows with this correspondent (a bare JID).
    pub with: Option<Box<str>>,
    /// Only rows with a greater id.
    pub after: Option<u64>,
    /// Only rows with a smaller id.
    pub before: Option<u64>,
    /// The last rows of the range rather than the first; the rows themselves always come in ascending order.
    pub newest: bool,
    /// At most this many rows; a backend may bound it further (1,000).
    pub limit: usize,
}

/// One archived stanza.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveRow {
    /// Archive id, 64 bit, time-ordered.
    pub id: u64,
    /// The correspondent.
    pub with: Box<str>,
    /// Whether a tombstone replaced the stanza.
    pub retracted: bool,
    /// The stanza, or the tombstone.
    pub value: Bytes,
}

/// One conversation in an owner's inbox, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxRow {
    /// The correspondent.
    pub with: Box<str>,
    /// Id of the newest message.
    pub last: u64,
    /// How many messages came since the owner last read.
    pub unread: u32,
    /// The beginning of the newest message.
    pub preview: Box<str>,
}

impl InboxRow {
    /// Takes in a newer message, as [`Op::Inbox`] describes it. The same id again changes no count, so a repeated
    /// commit changes nothing; an older id is counted, but does not move the conversation.
    pub fn merge(&mut self, last: u64, unread: Option<u32>, preview: &str) {
        let added = if last == self.last { unread.map(|_| 0) } else { unread };
        self.unread = added.map_or(0, |added| self.unread.saturating_add(added));
        if last >= self.last {
            self.last = last;
            self.preview = limits::preview(preview).into();
        }
    }
}

/// The domain store: what every backend offers, and all that the broker may ask of one.
pub trait Store: Send + Sync + 'static {
    /// Hands in `ops`, all of `owner`, as one atomic change. Never blocks and never waits, and is not refused because
    /// the store is busy ([`Store::has_room`]): the returned [`Commit`] resolves once the change is durable, or tells
    /// why it was refused as a whole. Commits of one owner are applied in the order of their hand-in.
    fn commit(&self, owner: &Owner, ops: Vec<Op>) -> Commit;

    /// One record.
    fn load<'a>(&'a self, owner: &'a Owner, table: Table, item: &'a str) -> Read<'a, Option<Record>>;

    /// An owner's records in key order, from behind `after`, at most `limit`.
    fn list<'a>(
        &'a self,
        owner: &'a Owner,
        table: Table,
        after: Option<&'a str>,
        limit: usize,
    ) -> Read<'a, Vec<(Box<str>, Record)>>;

    /// All owners' records of a table, in a stable order, from behind `after`, at most `limit`. For start-up and
    /// administration. If the owner of `after` was purged long since, the scan may begin again: it never misses a row.
    fn scan<'a>(&'a self, table: Table, after: Option<(&'a Owner, &'a str)>, limit: usize) -> Read<'a, Vec<Row>>;

    /// An owner's queue in id order, from behind id `after`, at most `limit` rows.
    fn queue<'a>(&'a self, owner: &'a Owner, after: u64, limit: usize) -> Read<'a, Vec<QueueRow>>;

    /// As [`Store::queue`], bounded in bytes as well.
    fn queue_page<'a>(&'a self, owner: &'a Owner, after: u64, bound: PageBound) -> Read<'a, QueuePage>;

    /// How much an owner's queue holds, known without reading its rows.
    fn queue_size<'a>(&'a self, owner: &'a Owner) -> Read<'a, QueueSize>;

    /// The records with item `""` of the topics in `names`, in the byte order of the names, for the tables of
    /// [`Table::WALKED`]. Bounded as a queue's page is; the
    /// end is where nothing comes. A topic that is written all the while is met once, as it was at some moment.
    fn walk<'a>(&'a self, table: Table, names: NameRange<'a>, bound: PageBound) -> Read<'a, Vec<(Box<str>, Record)>>;

    /// How many records [`Store::walk`] would meet in all: a number that is kept, not counted.
    fn count(&self, table: Table) -> Read<'_, u64>;

    /// Whether those who make commits may go on. A commit is never refused because many wait; who reads from a peer
    /// stops reading while there is no room, so that what waits is bounded by the number of peers.
    fn has_room(&self) -> bool {
        true
    }

    /// Resolves as soon as [`Store::has_room`] is true.
    fn room(&self) -> Room {
        Room::default()
    }

    /// A page of an owner's archive, in id order.
    fn archive<'a>(&'a self, owner: &'a Owner, query: &'a ArchiveQuery) -> Read<'a, Vec<ArchiveRow>>;

    /// An owner's conversations, newest first, from behind the one whose last id is `before`, at most `limit`.
    fn inbox<'a>(&'a self, owner: &'a Owner, before: Option<u64>, limit: usize) -> Read<'a, Vec<InboxRow>>;

    /// Rows for the search index: (id, owner), in id order, from behind `after`. One id may stand under several
    /// owners, so the index reads from 0 and deletes what it has committed.
    fn outbox<'a>(&'a self, after: u64, limit: usize) -> Read<'a, Vec<(u64, Owner)>>;

    /// All owners that have or had rows, in a stable order, from behind `after`, at most `limit`. For export.
    fn owners<'a>(&'a self, after: Option<&'a Owner>, limit: usize) -> Read<'a, Vec<Owner>>;

    /// Deletes archive rows with an id below `before`, at most `limit` of them, durable when it returns; gives how
    /// many were deleted. What is still queued as a view of one ([`Op::QueueArchived`]) stays in the queue, by value.
    fn expire<'a>(&'a self, before: u64, limit: usize) -> Read<'a, usize>;

    /// Forgets marks of deletions ([`Op::DeleteOlder`], [`Op::DeleteThis`]) with an id below `before`, at most `limit` of
    /// them, and topics that had nothing else, durable when it returns; gives how many marks there were. A write that is
    /// older than such a mark is no longer ignored: none may be under way any more.
    fn forget<'a>(&'a self, before: u64, limit: usize) -> Read<'a, usize>;

    /// The greatest id that any committed queue, archive or outbox row has carried, deleted rows included, or that
    /// [`Op::Drawn`] named; 0 in an empty store. The id source starts above it.
    fn last_id(&self) -> u64;
}
