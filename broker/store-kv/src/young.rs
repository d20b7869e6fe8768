//! Young rows of queues, for fjall: those of one batch are one row of a log, until they are deleted or get old.
//!
//! Most rows of queues are deleted soon after they were written. As rows of their own each would cost two entries in
//! the engine's memory and journal, and a walk through both when that memory is flushed. In the log a batch is one
//! entry, its deletion another; what is deleted of it before is noted in a third. A row that gets old moves to its own
//! place. All of that happens in the batch that causes it, so a crash finds each row in one place or in none.
//! Reads see the two together.

use crate::{
    StoreError,
    keys::{self, Place},
    kv::{Key, Span, Visit},
    value::PLAIN,
};
use bytes::{Buf, BufMut, Bytes};
use fjall::{Guard, Keyspace, OwnedWriteBatch as WriteBatch};
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

/// A batch is cut into packs of about so many bytes.
const PACK: usize = 64 << 10;
/// Before each row in a pack: its key and its length.
const HEAD: usize = 20;

/// The young rows, and where they are in the log.
pub(crate) struct Young {
    log: Keyspace,
    rows: RwLock<BTreeMap<Place, Row>>,
    packs: Mutex<Packs>,
    /// So many bytes the packs may hold.
    most: usize,
}

/// The bytes of a row.
pub(crate) enum Value {
    /// All but its head, which is that of a plain row.
    Plain(Bytes),
    Whole(Bytes),
}

impl Value {
    fn len(&self) -> usize {
        match self {
            Value::Plain(value) => 1 + value.len(),
            Value::Whole(value) => value.len(),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::Plain(value) => {
                out.push(PLAIN);
                out.extend_from_slice(value);
            }
            Value::Whole(value) => out.extend_from_slice(value),
        }
    }

    /// The whole row.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut row = Vec::with_capacity(self.len());
        self.write(&mut row);
        row
    }
}

/// A young row.
struct Row {
    value: Value,
    pack: u64,
    index: usize,
}

/// What the log holds, by its numbers.
#[derive(Default)]
struct Packs {
    next: u64,
    packs: BTreeMap<u64, Pack>,
    bytes: usize,
    /// The pack being made; fjall takes a copy.
    making: Vec<u8>,
}

/// A row of the log.
struct Pack {
    places: Vec<Place>,
    /// One bit for each place, set when its row is gone.
    gone: Vec<u8>,
    live: usize,
    bytes: usize,
    /// There is a row beside it that has `gone`.
    noted: bool,
}

impl Pack {
    fn new(places: Vec<Place>, bytes: usize) -> Pack {
        let gone = vec![0; places.len().div_ceil(8)];
        Pack { live: places.len(), places, gone, bytes, noted: false }
    }

    fn is_gone(&self, index: usize) -> bool {
        self.gone.get(index / 8).is_some_and(|bits| bits & 1 << (index % 8) != 0)
    }

    fn lose(&mut self, index: usize) {
        if let Some(bits) = self.gone.get_mut(index / 8)
            && *bits & 1 << (index % 8) == 0
        {
            *bits |= 1 << (index % 8);
            self.live -= 1;
        }
    }
}

impl Young {
    /// Reads what is in the log. When its packs hold more than `most` bytes, the oldest rows move to their own places.
    pub fn open(log: Keyspace, most: usize) -> Result<Young, StoreError> {
        let (mut packs, mut rows) = (Packs::default(), BTreeMap::new());
        for row in log.iter() {
            let (key, value) = row.into_inner().map_err(super::fjall::fault)?;
            let number = number(&key)?;
            match key.get(8) {
                None => packs.read(number, Bytes::copy_from_slice(&value), &mut rows)?,
                Some(_) => packs.note(number, &value, &mut rows)?,
            }
        }
        Ok(Young { log, rows: RwLock::new(rows), packs: Mutex::new(packs), most })
    }

    /// The row of a key.
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.rows.read().get(&place(key).ok()?).map(|row| row.value.to_vec())
    }

    /// The rows of a span, in the order of their keys.
    pub fn range(&self, span: Span<'_>) -> Vec<(Key, Vec<u8>)> {
        let span = (from(span.0), to(span.1));
        if is_empty(span) {
            return Vec::new();
        }
        let rows = self.rows.read();
        rows.range(span).map(|(place, row)| (place.to_be_bytes().to_vec(), row.value.to_vec())).collect()
    }

    #[cfg(test)]
    pub fn log_len(&self) -> usize {
        self.log.iter().count()
    }

    /// Begins the change that a batch makes. The ids above `last` are new: there is no row with one of them.
    pub fn change(&self, last: u64) -> Change<'_> {
        let packs = self.packs.lock();
        let (come, shown, went, touched) = (Vec::new(), Vec::new(), Vec::new(), BTreeSet::new());
        Change { young: self, packs, last, come, shown, went, touched }
    }
}

impl Packs {
    fn add(&mut self, number: u64, pack: Pack) {
        self.next = self.next.max(number + 1);
        self.bytes += pack.bytes;
        self.packs.insert(number, pack);
    }

    fn remove(&mut self, number: u64) -> Option<Pack> {
        self.packs.remove(&number).inspect(|pack| self.bytes -= pack.bytes)
    }

    fn lose(&mut self, number: u64, index: usize) {
        if let Some(pack) = self.packs.get_mut(&number) {
            pack.lose(index);
        }
    }

    fn read(&mut self, number: u64, bytes: Bytes, rows: &mut BTreeMap<Place, Row>) -> Result<(), StoreError> {
        let (mut rest, mut places) = (bytes.clone(), Vec::new());
        while !rest.is_empty() {
            if rest.len() < HEAD {
                return Err(damaged());
            }
            let (place, len) = (rest.get_u128(), rest.get_u32() as usize);
            if rest.len() < len {
                return Err(damaged());
            }
            let value = Value::Whole(Bytes::copy_from_slice(&rest.split_to(len)));
            rows.insert(place, Row { value, pack: number, index: places.len() });
            places.push(place);
        }
        self.add(number, Pack::new(places, bytes.len()));
        Ok(())
    }

    fn note(&mut self, number: u64, gone: &[u8], rows: &mut BTreeMap<Place, Row>) -> Result<(), StoreError> {
        let pack = self.packs.get_mut(&number).filter(|pack| pack.gone.len() == gone.len()).ok_or_else(damaged)?;
        pack.noted = true;
        for index in 0..pack.places.len() {
            if gone[index / 8] & 1 << (index % 8) != 0 {
                pack.lose(index);
                rows.remove(&pack.places[index]);
            }
        }
        Ok(())
    }
}

/// What a batch changes in the young rows. It is seen once the batch is written and [`Change::show`] was called.
pub(crate) struct Change<'a> {
    young: &'a Young,
    packs: MutexGuard<'a, Packs>,
    last: u64,
    come: Vec<(Place, Value)>,
    shown: Vec<(Place, Row)>,
    went: Vec<Place>,
    /// Packs that have lost rows.
    touched: BTreeSet<u64>,
}

impl Change<'_> {
    /// Whether no row was ever written here before, so that it may be young.
    pub fn is_new(&self, place: Place) -> bool {
        place as u64 > self.last
    }

    /// So many new rows will come.
    pub fn reserve(&mut self, rows: usize) {
        self.come.reserve(rows);
        self.shown.reserve(rows);
    }

    /// A row at a new place.
    pub fn put(&mut self, place: Place, value: Value) {
        self.come.push((place, value));
    }

    /// A row goes, or gets its own place; false if it is not young.
    pub fn take(&mut self, place: Place) -> bool {
        let rows = self.young.rows.read();
        let Some(row) = rows.get(&place) else { return false };
        self.packs.lose(row.pack, row.index);
        self.touched.insert(row.pack);
        self.went.push(place);
        true
    }

    /// Adds to the batch what the log needs; rows that are old go to `queue`.
    pub fn write(&mut self, batch: &mut WriteBatch, queue: &Keyspace) {
        let first = self.packs.next;
        while !self.come.is_empty() {
            self.pack(batch);
        }
        while self.packs.bytes > self.young.most
            && let Some(oldest) = self.packs.packs.keys().next().copied().filter(|oldest| *oldest < first)
        {
            self.age(oldest, batch, queue);
        }
        for number in std::mem::take(&mut self.touched) {
            self.note(number, batch);
        }
    }

    /// Makes a pack of the first rows that came.
    fn pack(&mut self, batch: &mut WriteBatch) {
        let mut bytes = 0;
        let full = self.come.iter().position(|(_, value)| {
            let before = bytes;
            bytes += HEAD + value.len();
            before >= PACK
        });
        let (count, number) = (full.unwrap_or(self.come.len()), self.packs.next);
        let (mut pack, mut places) = (std::mem::take(&mut self.packs.making), Vec::with_capacity(count));
        pack.clear();
        for (index, (place, value)) in self.come.drain(..count).enumerate() {
            pack.put_u128(place);
            pack.put_u32(value.len() as u32);
            value.write(&mut pack);
            places.push(place);
            self.shown.push((place, Row { value, pack: number, index }));
        }
        self.packs.add(number, Pack::new(places, pack.len()));
        batch.insert(&self.young.log, pack_key(number), &pack[..]);
        self.packs.making = pack;
    }

    /// The rows of a pack get their own places.
    fn age(&mut self, number: u64, batch: &mut WriteBatch, queue: &Keyspace) {
        let Some(pack) = self.packs.packs.get_mut(&number) else { return };
        let rows = self.young.rows.read();
        for index in 0..pack.places.len() {
            let place = pack.places[index];
            if !pack.is_gone(index)
                && let Some(row) = rows.get(&place)
            {
                batch.insert(queue, place.to_be_bytes(), row.value.to_vec());
                self.went.push(place);
            }
        }
        pack.live = 0;
        self.note(number, batch);
    }

    /// A pack has lost rows: that is written beside it, or the pack goes.
    fn note(&mut self, number: u64, batch: &mut WriteBatch) {
        let Some(pack) = self.packs.packs.get_mut(&number) else { return };
        let (log, noted) = (&self.young.log, pack.noted);
        if pack.live > 0 {
            pack.noted = true;
            batch.insert(log, note_key(number), &pack.gone[..]);
            return;
        }
        self.packs.remove(number);
        // A pack is written once, ever: it and its deletion go as one, and neither is written to a table.
        batch.remove_weak(log, pack_key(number));
        if noted {
            batch.remove(log, note_key(number));
        }
    }

    /// The batch is written.
    pub fn show(self) {
        let mut rows = self.young.rows.write();
        self.went.iter().for_each(|place| drop(rows.remove(place)));
        rows.extend(self.shown);
    }
}

/// Walks through the rows of a queue that have their own places, and the young ones of the same span, in key order, or,
/// `back`, against it.
pub(crate) fn walk(
    rows: impl Iterator<Item = Guard>,
    mut young: Vec<(Key, Vec<u8>)>,
    (way, visit): (Ordering, &mut Visit<'_>),
) -> Result<(), StoreError> {
    // The last is the next.
    if way == Ordering::Less {
        young.reverse();
    }
    for row in rows {
        let (key, value) = row.into_inner().map_err(super::fjall::fault)?;
        while let Some((key, value)) = young.pop_if(|(next, _)| next[..].cmp(&key) == way) {
            if visit(&key, &value).is_break() {
                return Ok(());
            }
        }
        // It got its own place while the walk began.
        young.pop_if(|(next, _)| next[..] == *key);
        if visit(&key, &value).is_break() {
            return Ok(());
        }
    }
    while let Some((key, value)) = young.pop() {
        if visit(&key, &value).is_break() {
            break;
        }
    }
    Ok(())
}

/// The place that a key names.
pub(crate) fn place(key: &[u8]) -> Result<Place, StoreError> {
    key.try_into()
        .map(Place::from_be_bytes)
        .map_err(|_| StoreError::Corrupt("a key of a queue has a wrong form".into()))
}

/// The least place that is not below a bound's key, and whether the two are the same.
fn padded(key: &[u8]) -> (Place, bool) {
    let mut place = [0; 16];
    let len = key.len().min(16);
    place[..len].copy_from_slice(&key[..len]);
    (Place::from_be_bytes(place), key.len() == 16)
}

fn from(bound: Bound<&[u8]>) -> Bound<Place> {
    match bound {
        Bound::Unbounded => Bound::Unbounded,
        Bound::Included(key) => Bound::Included(padded(key).0),
        Bound::Excluded(key) => match padded(key) {
            (place, true) => Bound::Excluded(place),
            // A shorter key stands before all that begin with it.
            (place, false) => Bound::Included(place),
        },
    }
}

fn to(bound: Bound<&[u8]>) -> Bound<Place> {
    match bound {
        Bound::Unbounded => Bound::Unbounded,
        Bound::Excluded(key) => Bound::Excluded(padded(key).0),
        Bound::Included(key) => match padded(key) {
            (place, true) => Bound::Included(place),
            (place, false) => Bound::Excluded(place),
        },
    }
}

/// A map panics at ranges that end before they begin.
fn is_empty((from, to): (Bound<Place>, Bound<Place>)) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => from >= to,
        _ => false,
    }
}

fn pack_key(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// Behind its pack.
fn note_key(number: u64) -> Vec<u8> {
    [&number.to_be_bytes()[..], &[1]].concat()
}

fn number(key: &[u8]) -> Result<u64, StoreError> {
    keys::number_at(key, 0).ok_or_else(damaged)
}

fn damaged() -> StoreError {
    StoreError::Corrupt("the log of young rows is damaged".into())
}

#[cfg(test)]
mod tests {
    use crate::{
        fjall::Fjall,
        kv::{Family, Kv, Rows},
    };
    use proptest::prelude::*;
    use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    /// So few bytes of young rows that many get old.
    fn opened(folder: &Path) -> Fjall {
        Fjall::open(folder, 1 << 20, 2_000).unwrap()
    }

    fn all(fjall: &Fjall, span: crate::kv::Span<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        let mut visit = |key: &[u8], row: &[u8]| {
            found.push((key.to_vec(), row.to_vec()));
            ControlFlow::Continue(())
        };
        fjall.range(Family::Queue, span, &mut visit).unwrap();
        let mut back = Vec::new();
        let mut visit = |key: &[u8], row: &[u8]| {
            back.push((key.to_vec(), row.to_vec()));
            ControlFlow::Continue(())
        };
        fjall.range_back(Family::Queue, span, &mut visit).unwrap();
        back.reverse();
        assert_eq!(found, back);
        found
    }

    /// New rows, by their owner and length, and changes of old ones: which, and whether they are deleted.
    type Batch = (Vec<(u8, usize)>, Vec<(usize, bool)>);

    #[derive(Clone, Debug)]
    enum Step {
        Batch(Batch),
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        let come = prop::collection::vec((0..4u8, 0..300usize), 0..12);
        let changes = prop::collection::vec((0..1_000usize, any::<bool>()), 0..8);
        prop_oneof![9 => (come, changes).prop_map(Step::Batch), 1 => Just(Step::Reopen)]
    }

    fn write(fjall: &Fjall, model: &mut Model, last: &mut u64, (come, changes): Batch) {
        let mut rows = Rows::above(*last);
        for (which, delete) in changes {
            let Some(key) = model.keys().nth(which % model.len().max(1)).cloned() else { continue };
            if delete {
                let row = model.remove(&key);
                rows.set(Family::Queue, key.clone(), None);
                if row != Some(vec![7; 3]) {
                    rows.once(key);
                }
            } else {
                // It is not written once any more.
                rows.set(Family::Queue, key.clone(), Some(vec![7; 3]));
                model.insert(key, vec![7; 3]);
            }
        }
        for (owner, len) in come {
            *last += 1;
            let key = crate::keys::dated(u64::from(owner), *last);
            rows.set(Family::Queue, key.clone(), Some(vec![owner; len]));
            model.insert(key, vec![owner; len]);
        }
        fjall.write(rows).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn young_and_old_rows_are_one_queue(steps in prop::collection::vec(step(), 1..60)) {
            let dir = tempfile::tempdir().unwrap();
            let (mut fjall, mut model, mut last) = (opened(dir.path()), Model::new(), 0);
            for step in steps {
                match step {
                    Step::Batch(batch) => write(&fjall, &mut model, &mut last, batch),
                    Step::Reopen => {
                        drop(fjall);
                        fjall = opened(dir.path());
                    }
                }
                let rows: Vec<_> = model.clone().into_iter().collect();
                prop_assert_eq!(all(&fjall, crate::keys::span(&[], None)), rows);
            }
            for owner in 0..4 {
                let (from, to) = (crate::keys::dated(owner, last / 2), crate::keys::owner(owner + 1));
                let rows: Vec<_> = model.range(from.clone()..to.clone()).map(|(key, row)| (key.clone(), row.clone())).collect();
                prop_assert_eq!(all(&fjall, crate::keys::span(&from, Some(&to))), rows);
            }
            for (key, row) in &model {
                prop_assert_eq!(&fjall.get(Family::Queue, key).unwrap(), &Some(row.clone()));
            }
        }
    }

    #[test]
    fn a_queue_that_is_emptied_leaves_nothing_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let fjall = Fjall::open(dir.path(), 1 << 20, 1 << 20).unwrap();
        let (mut model, mut last) = (Model::new(), 0);
        // Packs of several sizes; they are emptied row by row, which is noted beside them.
        write(&fjall, &mut model, &mut last, (vec![(1, 4_000); 40], Vec::new()));
        write(&fjall, &mut model, &mut last, (vec![(2, 10); 9], Vec::new()));
        assert_eq!(fjall.log_len(), 4);
        while !model.is_empty() {
            let middle = vec![(model.len() / 2, true)];
            write(&fjall, &mut model, &mut last, (Vec::new(), middle));
        }
        assert_eq!(fjall.log_len(), 0);
    }

    #[test]
    fn what_was_deleted_before_a_restart_is_known_to_be_gone_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut model, mut last) = (Model::new(), 0);
        for _ in 0..3 {
            let fjall = Fjall::open(dir.path(), 1 << 20, 1 << 20).unwrap();
            let rows: Vec<_> = model.clone().into_iter().collect();
            assert_eq!(all(&fjall, crate::keys::span(&[], None)), rows);
            write(&fjall, &mut model, &mut last, (vec![(1, 30); 10], Vec::new()));
            write(&fjall, &mut model, &mut last, (Vec::new(), vec![(3, true), (0, true)]));
        }
        let fjall = Fjall::open(dir.path(), 1 << 20, 1 << 20).unwrap();
        assert_eq!((model.len(), fjall.log_len()), (24, 4), "three packs, and a note beside the first");
        let gone = vec![(0, true); model.len()];
        write(&fjall, &mut model, &mut last, (Vec::new(), gone));
        assert_eq!(fjall.log_len(), 0, "nor a note of what is gone at once");
    }

    #[test]
    fn the_log_is_bounded_and_what_went_takes_no_room_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let fjall = opened(dir.path());
        let (mut model, mut last) = (Model::new(), 0);
        for _ in 0..100 {
            write(&fjall, &mut model, &mut last, (vec![(1, 100)], Vec::new()));
        }
        assert_eq!(fjall.log_len(), 2_000 / 120, "the others got places of their own");
        let gone = vec![(0, true); model.len()];
        write(&fjall, &mut model, &mut last, (Vec::new(), gone));
        assert_eq!((model.len(), fjall.log_len()), (0, 0));
        for _ in 0..10 {
            write(&fjall, &mut model, &mut last, (vec![(1, 100)], Vec::new()));
        }
        assert_eq!(fjall.log_len(), 10, "there is room again");
        assert_eq!(all(&fjall, crate::keys::span(&[], None)).len(), 10);
    }

    #[test]
    fn a_damaged_log_is_an_error_and_brings_nobody_down() {
        let (mut packs, mut rows) = (super::Packs::default(), BTreeMap::new());
        let mut pack = [&[0; 16][..], &[0, 0, 0, 3], b"abc"].concat();
        packs.read(1, pack.clone().into(), &mut rows).unwrap();
        assert!(packs.note(1, &[1, 0], &mut rows).is_err(), "a note of another length");
        assert!(packs.note(2, &[1], &mut rows).is_err(), "a note of no pack");
        packs.note(1, &[1], &mut rows).unwrap();
        assert!(rows.is_empty());
        while pack.pop().is_some_and(|_| !pack.is_empty()) {
            assert!(packs.read(3, pack.clone().into(), &mut rows).is_err(), "{} bytes", pack.len());
        }
    }
}
