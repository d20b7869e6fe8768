//! The small seam between the store's rows and an embedded engine.

use crate::StoreError;
use std::{
    collections::{BTreeMap, HashSet, btree_map::Entry},
    ops::{Bound, ControlFlow},
};

/// The families of rows. Their names are stored: never rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// Schema version, counters, purged owners.
    System,
    /// Name of an owner or correspondent to its number.
    Name,
    /// Number to name.
    Owner,
    /// Versioned records of all tables.
    Record,
    /// Archived stanzas.
    Archive,
    /// Archive by correspondent.
    ArchiveWith,
    /// Conversations.
    Inbox,
    /// Conversations, newest first.
    InboxTime,
    /// Queued packets.
    Queue,
    /// Rows for the search index.
    Outbox,
    /// Pieces of large values.
    Chunk,
    /// Bodies that queued rows share, each with the number of its rows.
    Body,
    /// How much each owner's queue holds.
    QueueSize,
    /// Topics with a record of a walked table, by name.
    Walk,
}

impl Family {
    /// All families, in the order of their index.
    pub const ALL: [Family; 14] = [
        Family::System,
        Family::Name,
        Family::Owner,
        Family::Record,
        Family::Archive,
        Family::ArchiveWith,
        Family::Inbox,
        Family::InboxTime,
        Family::Queue,
        Family::Outbox,
        Family::Chunk,
        Family::Body,
        Family::QueueSize,
        Family::Walk,
    ];

    /// The name under which an engine keeps the family.
    pub fn name(self) -> &'static str {
        match self {
            Family::System => "system",
            Family::Name => "name",
            Family::Owner => "owner",
            Family::Record => "record",
            Family::Archive => "arch",
            Family::ArchiveWith => "arch_with",
            Family::Inbox => "inbox",
            Family::InboxTime => "inbox_t",
            Family::Queue => "queue",
            Family::Outbox => "outbox",
            Family::Chunk => "chunk",
            Family::Body => "body",
            Family::QueueSize => "queue_s",
            Family::Walk => "walk",
        }
    }
}

/// Greatest length of a stored value: larger ones made sled unopenable in the power-loss model (storage.md, rule 2).
pub(crate) const MAX_ROW: usize = 4_096;

/// The key of a row.
pub(crate) type Key = Vec<u8>;

/// What a batch held for a row before: nothing, a deletion, or a value.
pub(crate) type Replaced = Option<Option<Vec<u8>>>;

/// The rows that one batch writes (`Some`) and deletes (`None`).
pub(crate) struct Rows {
    families: [BTreeMap<Key, Option<Vec<u8>>>; Family::ALL.len()],
    /// Deleted rows of queues that were written once, ever.
    once: HashSet<Key>,
    /// No row of a queue with a greater id was ever written before this batch.
    pub last: u64,
}

impl Default for Rows {
    fn default() -> Rows {
        Rows { families: Default::default(), once: HashSet::new(), last: u64::MAX }
    }
}

impl Rows {
    /// An empty batch; no row of a queue with an id above `last` was ever written before.
    pub fn above(last: u64) -> Rows {
        Rows { last, ..Rows::default() }
    }

    /// The rows of one family, in key order.
    pub fn of(&self, family: Family) -> &BTreeMap<Key, Option<Vec<u8>>> {
        &self.families[family as usize]
    }

    /// Takes the rows of one family out.
    pub fn take(&mut self, family: Family) -> BTreeMap<Key, Option<Vec<u8>>> {
        std::mem::take(&mut self.families[family as usize])
    }

    /// Sets a row; gives what the batch held for it before.
    pub fn set(&mut self, family: Family, key: Key, value: Option<Vec<u8>>) -> Replaced {
        assert!(value.as_ref().is_none_or(|value| value.len() <= MAX_ROW), "larger values are chunked");
        match self.families[family as usize].entry(key) {
            Entry::Occupied(mut row) => Some(row.insert(value)),
            Entry::Vacant(row) => {
                row.insert(value);
                None
            }
        }
    }

    /// Puts back what [`Rows::set`] gave.
    pub fn unset(&mut self, family: Family, key: Key, before: Replaced) {
        match before {
            Some(value) => drop(self.families[family as usize].insert(key, value)),
            None => drop(self.families[family as usize].remove(&key)),
        }
    }

    /// Tells the engine that a row of a queue, which this batch deletes, was written once, ever: it need not look for
    /// older ones.
    pub fn once(&mut self, key: Key) {
        self.once.insert(key);
    }

    /// Takes the keys that [`Rows::once`] was told. One that is written again is not among them.
    pub fn take_once(&mut self) -> HashSet<Key> {
        let queue = &self.families[Family::Queue as usize];
        self.once.retain(|key| matches!(queue.get(key), Some(None)));
        std::mem::take(&mut self.once)
    }

    /// How many rows are written or deleted.
    pub fn len(&self) -> usize {
        self.families.iter().map(BTreeMap::len).sum()
    }
}

/// A range of keys.
pub(crate) type Span<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// Sees one row of a range; `Break` ends the walk.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// An embedded engine. Reads may come from any thread, writes come from one.
pub(crate) trait Kv: Send + Sync + 'static {
    /// One row.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Walks through a range in key order.
    fn range(&self, family: Family, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError>;

    /// Walks through a range against key order.
    fn range_back(&self, family: Family, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError>;

    /// How many commits one batch should hold at most. A group is made durable as a whole, however many batches it has.
    fn batch(&self) -> usize {
        usize::MAX
    }

    /// Applies a batch, all of it or, after a crash, perhaps nothing of it.
    fn write(&self, rows: Rows) -> Result<(), StoreError>;

    /// Returns when all that was written before is on the disk.
    fn sync(&self) -> Result<(), StoreError>;
}
