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

pub use commit::{Commit, CommitSlot};
pub use error::StoreError;
pub use id::IdSource;
pub use memory::MemoryStore;
pub use op::{Expect, Op, Record, Table};
pub use owner::Owner;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRow {
    /// The id that its maker drew; rows come in ascending id order.
    pub id: u64,
    /// The queued bytes.
    pub value: Bytes,
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
    /// Hands in `ops`, all of `owner`, as one atomic change. Never blocks and never waits: the returned [`Commit`]
    /// resolves once the change is durable, or tells why it was refused as a whole.
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
    /// many were deleted.
    fn expire<'a>(&'a self, before: u64, limit: usize) -> Read<'a, usize>;

    /// The greatest id that any committed queue, archive or outbox row has carried, deleted rows included, or that
    /// [`Op::Drawn`] named; 0 in an empty store. The id source starts above it.
    fn last_id(&self) -> u64;
}
