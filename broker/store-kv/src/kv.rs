//! The small seam between the store's rows and an embedded engine.

use crate::{StoreError, keys::Place, young::Value};
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
    /// The greatest id under which this batch writes a row of a queue.
    greatest: u64,
    /// What most batches have most of waits here unsorted, and is put among the others only if somebody has to see it.
    plain: Plain,
}

/// Plain rows of queues, which have nothing outside of themselves: new ones, and deleted ones that were written once, ever.
#[derive(Default)]
pub(crate) struct Plain {
    pub new: Vec<(Place, Value)>,
    pub gone: Vec<Place>,
}

/// How to take changes back: the rows and what was there before.
pub(crate) type Undo = Vec<(Family, Key, Replaced)>;

impl Default for Rows {
    fn default() -> Rows {
        Rows {
            families: Default::default(),
            once: HashSet::new(),
            last: u64::MAX,
            greatest: 0,
            plain: Plain::default(),
        }
    }
}

impl Rows {
    /// An empty batch; no row of a queue with an id above `last` was ever written before.
    pub fn above(last: u64) -> Rows {
        Rows { last, ..Rows::default() }
    }

    /// The rows of one family, in key order.
    pub fn of(&self, family: Family) -> &BTreeMap<Key, Option<Vec<u8>>> {
        debug_assert!(family != Family::Queue || self.plain.is_empty(), "queues are settled before they are looked at");
        &self.families[family as usize]
    }

    /// Takes the rows of one family out.
    pub fn take(&mut self, family: Family) -> BTreeMap<Key, Option<Vec<u8>>> {
        if family == Family::Queue {
            self.settle(self.mark(), &mut Vec::new());
        }
        std::mem::take(&mut self.families[family as usize])
    }

    /// A plain row of a queue, under an id above all that this batch or an earlier one has written there.
    pub fn push_new(&mut self, place: Place, value: Value) {
        self.saw(place as u64);
        self.plain.new.push((place, value));
    }

    /// Notes that a row of a queue is written under this id.
    pub fn saw(&mut self, id: u64) {
        self.greatest = self.greatest.max(id);
    }

    /// Whether [`Rows::push_new`] may be told of an id.
    pub fn is_above(&self, id: u64) -> bool {
        id > self.last && id > self.greatest
    }

    /// A plain row of a queue that an earlier batch has written goes; see [`Rows::once`].
    pub fn lose(&mut self, place: Place) {
        self.plain.gone.push(place);
    }

    /// How many plain rows came and went so far.
    pub fn mark(&self) -> (usize, usize) {
        (self.plain.new.len(), self.plain.gone.len())
    }

    /// Forgets the plain rows that came and went since a mark.
    pub fn reset(&mut self, (new, gone): (usize, usize)) {
        self.plain.new.truncate(new);
        self.plain.gone.truncate(gone);
    }

    /// Puts the plain rows among the others; those since `mark` are noted for being taken back.
    pub fn settle(&mut self, (new, gone): (usize, usize), undo: &mut Undo) {
        let plain = self.take_plain();
        let new =
            plain.new.into_iter().enumerate().map(|(at, (place, value))| (at >= new, place, Some(value.to_vec())));
        let gone = plain.gone.into_iter().enumerate().map(|(at, place)| (at >= gone, place, None));
        for (is_undone, place, row) in new.chain(gone) {
            let key = place.to_be_bytes().to_vec();
            if row.is_none() {
                self.once(key.clone());
            }
            let before = self.set(Family::Queue, key.clone(), row);
            if is_undone {
                undo.push((Family::Queue, key, before));
            }
        }
    }

    /// All rows in their families, for an engine to which plain ones are as the others.
    pub fn settled(mut self) -> Rows {
        self.settle(self.mark(), &mut Vec::new());
        self
    }

    /// Takes the plain rows out.
    pub fn take_plain(&mut self) -> Plain {
        std::mem::take(&mut self.plain)
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
        self.families.iter().map(BTreeMap::len).sum::<usize>() + self.plain.new.len() + self.plain.gone.len()
    }
}

impl Plain {
    fn is_empty(&self) -> bool {
        self.new.is_empty() && self.gone.is_empty()
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
