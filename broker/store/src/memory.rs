//! The store in memory: for tests, and the plainest statement of what a backend must do.

use crate::{limits, *};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    future::{poll_fn, ready},
    ops::Bound,
    sync::Arc,
    task::{Poll, Waker},
};

/// A store that forgets everything when it is dropped.
///
/// Commits resolve at once, or, in a store made by [`MemoryStore::delayed`] or told to [`hold`](MemoryStore::hold) them,
/// when the test says so: then nothing of a commit is visible before its release.
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
    waiting: Mutex<Option<VecDeque<Waiting>>>,
    /// Who waits for a page, while pages are held.
    readers: Arc<Mutex<Option<Vec<Waker>>>>,
    gate: Arc<Gate>,
}

struct Waiting {
    owner: Owner,
    ops: Vec<Op>,
    slot: CommitSlot,
}

impl MemoryStore {
    /// A store whose commits wait for [`release`](MemoryStore::release).
    pub fn delayed() -> MemoryStore {
        MemoryStore { waiting: Mutex::new(Some(VecDeque::new())), ..MemoryStore::default() }
    }

    /// From now on commits wait, too.
    pub fn hold(&self) {
        self.waiting.lock().get_or_insert_default();
    }

    /// From now on pages of queues and of records are looked up at once, and come when
    /// [`release_pages`](MemoryStore::release_pages) lets them.
    pub fn hold_pages(&self) {
        self.readers.lock().get_or_insert_default();
    }

    /// Pages that were held come, and all others at once.
    pub fn release_pages(&self) {
        self.readers.lock().take().into_iter().flatten().for_each(Waker::wake);
    }

    /// How many commits wait.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().as_ref().map_or(0, VecDeque::len)
    }

    /// The owners of the waiting commits, oldest first.
    pub fn waiting_owners(&self) -> Vec<Owner> {
        self.waiting.lock().iter().flatten().map(|w| w.owner.clone()).collect()
    }

    /// Applies and resolves the `count` oldest waiting commits, in order; gives how many there were.
    pub fn release(&self, count: usize) -> usize {
        (0..count).take_while(|_| self.release_at(0)).count()
    }

    /// Applies and resolves all waiting commits, also those that arrive meanwhile; gives how many there were.
    pub fn release_all(&self) -> usize {
        self.release(usize::MAX)
    }

    /// Applies and resolves the commit at `index` of the waiting ones (0 is the oldest), as a backend with several
    /// writers may; false if there is none.
    pub fn release_at(&self, index: usize) -> bool {
        let Some(next) = self.take(index) else { return false };
        let result = self.state.lock().commit(&next.owner, next.ops);
        next.slot.resolve(result);
        true
    }

    /// Refuses the oldest waiting commit with `error`; false if there is none.
    pub fn refuse(&self, error: StoreError) -> bool {
        self.take(0).map(|next| next.slot.resolve(Err(error))).is_some()
    }

    /// Tells senders whether there is room, as a backend does with whom much waits.
    pub fn set_room(&self, room: bool) {
        self.gate.set_open(room);
    }

    fn take(&self, index: usize) -> Option<Waiting> {
        self.waiting.lock().as_mut()?.remove(index)
    }

    fn read<T: Send + 'static>(&self, look: impl FnOnce(&State) -> T) -> Read<'static, T> {
        Box::pin(ready(Ok(look(&self.state.lock()))))
    }

    /// The same for what [`hold_pages`](MemoryStore::hold_pages) holds.
    fn read_page<T: Send + 'static>(&self, look: impl FnOnce(&State) -> T) -> Read<'static, T> {
        let (page, readers) = (look(&self.state.lock()), self.readers.clone());
        Box::pin(async move {
            poll_fn(|cx| match &mut *readers.lock() {
                Some(readers) => {
                    readers.push(cx.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(()),
            })
            .await;
            Ok(page)
        })
    }
}

impl Store for MemoryStore {
    fn commit(&self, owner: &Owner, ops: Vec<Op>) -> Commit {
        if let Err(error) = limits::validate(owner, &ops) {
            return Commit::ready(Err(error));
        }
        let mut waiting = self.waiting.lock();
        let Some(waiting) = &mut *waiting else {
            return Commit::ready(self.state.lock().commit(owner, ops));
        };
        let (slot, commit) = Commit::pending();
        waiting.push_back(Waiting { owner: owner.clone(), ops, slot });
        commit
    }

    fn load<'a>(&'a self, owner: &'a Owner, table: Table, item: &'a str) -> Read<'a, Option<Record>> {
        self.read(|state| state.records.get(&(table, owner.clone(), item.into())).cloned())
    }

    fn list<'a>(
        &'a self,
        owner: &'a Owner,
        table: Table,
        after: Option<&'a str>,
        limit: usize,
    ) -> Read<'a, Vec<(Box<str>, Record)>> {
        self.read_page(|state| {
            let from = match after {
                Some(item) => Bound::Excluded((table, owner.clone(), item.into())),
                None => Bound::Included((table, owner.clone(), "".into())),
            };
            let rows = state.records.range((from, Bound::Unbounded));
            rows.take_while(|(key, _)| key.0 == table && key.1 == *owner)
                .take(limit.min(limits::MAX_PAGE))
                .map(|(key, record)| (key.2.clone(), record.clone()))
                .collect()
        })
    }

    fn scan<'a>(&'a self, table: Table, after: Option<(&'a Owner, &'a str)>, limit: usize) -> Read<'a, Vec<Row>> {
        self.read(|state| {
            let from = match after {
                Some((owner, item)) => Bound::Excluded((table, owner.clone(), item.into())),
                None => Bound::Included((table, Owner::from_key(""), "".into())),
            };
            let rows = state.records.range((from, Bound::Unbounded));
            rows.take_while(|(key, _)| key.0 == table)
                .take(limit.min(limits::MAX_PAGE))
                .map(|((_, owner, item), record)| Row {
                    owner: owner.clone(),
                    item: item.clone(),
                    record: record.clone(),
                })
                .collect()
        })
    }

    fn queue<'a>(&'a self, owner: &'a Owner, after: u64, limit: usize) -> Read<'a, Vec<QueueRow>> {
        self.read(|state| state.queue_page(owner, after, PageBound { rows: limit, bytes: usize::MAX }).rows)
    }

    fn queue_page<'a>(&'a self, owner: &'a Owner, after: u64, bound: PageBound) -> Read<'a, QueuePage> {
        self.read_page(|state| state.queue_page(owner, after, bound))
    }

    fn queue_size<'a>(&'a self, owner: &'a Owner) -> Read<'a, QueueSize> {
        self.read(|state| {
            let rows = state.queue_rows(owner, 0);
            rows.fold(QueueSize::default(), |size, row| QueueSize {
                rows: size.rows + 1,
                bytes: size.bytes + row.len() as u64,
            })
        })
    }

    fn walk<'a>(&'a self, table: Table, names: NameRange<'a>, bound: PageBound) -> Read<'a, Vec<(Box<str>, Record)>> {
        self.read(|state| {
            let behind = state.topics(table).filter(|(name, _)| names.after.is_none_or(|after| *name > after));
            let mut bytes = 0;
            let page = behind.filter(|(name, _)| name.starts_with(names.prefix)).take_while(|(_, record)| {
                let more = bytes < bound.bytes.max(1);
                bytes += record.value.len().max(1);
                more
            });
            page.take(bound.rows.min(limits::MAX_PAGE)).map(|(name, record)| (name.into(), record.clone())).collect()
        })
    }

    fn count(&self, table: Table) -> Read<'_, u64> {
        self.read(|state| state.topics(table).count() as u64)
    }

    fn has_room(&self) -> bool {
        self.gate.is_open()
    }

    fn room(&self) -> Room {
        self.gate.room()
    }

    fn archive<'a>(&'a self, owner: &'a Owner, query: &'a ArchiveQuery) -> Read<'a, Vec<ArchiveRow>> {
        self.read(|state| state.archive_page(owner, query))
    }

    fn inbox<'a>(&'a self, owner: &'a Owner, before: Option<u64>, limit: usize) -> Read<'a, Vec<InboxRow>> {
        self.read(|state| {
            let rows = state.inbox.range((owner.clone(), "".into())..).take_while(|(key, _)| key.0 == *owner);
            let rows = rows.map(|(_, row)| row).filter(|row| before.is_none_or(|id| row.last < id));
            let mut rows: Vec<_> = rows.cloned().collect();
            rows.sort_by_key(|row| std::cmp::Reverse(row.last));
            rows.truncate(limit.min(limits::MAX_PAGE));
            rows
        })
    }

    fn outbox<'a>(&'a self, after: u64, limit: usize) -> Read<'a, Vec<(u64, Owner)>> {
        self.read(|state| {
            let rows = state.outbox.iter().filter(|(id, _)| *id > after);
            rows.take(limit.min(limits::MAX_PAGE)).cloned().collect()
        })
    }

    fn owners<'a>(&'a self, after: Option<&'a Owner>, limit: usize) -> Read<'a, Vec<Owner>> {
        self.read(|state| {
            let mut all: BTreeSet<&Owner> = state.records.keys().map(|key| &key.1).collect();
            all.extend(state.queue.keys().map(|key| &key.0));
            all.extend(state.archive.keys().map(|key| &key.0));
            all.extend(state.inbox.keys().map(|key| &key.0));
            let behind = all.into_iter().filter(|owner| after.is_none_or(|after| *owner > after));
            behind.take(limit.min(limits::MAX_PAGE)).cloned().collect()
        })
    }

    fn expire<'a>(&'a self, before: u64, limit: usize) -> Read<'a, usize> {
        let mut state = self.state.lock();
        let old = state.archive.keys().filter(|key| key.1 < before).take(limit).cloned().collect::<Vec<_>>();
        old.iter().for_each(|key| state.expire(key));
        Box::pin(ready(Ok(old.len())))
    }

    fn forget<'a>(&'a self, before: u64, limit: usize) -> Read<'a, usize> {
        let mut state = self.state.lock();
        let old = state.deleted.iter().filter(|(_, id)| **id < before).map(|(key, _)| key.clone());
        let old: Vec<_> = old.take(limit).collect();
        for key in &old {
            state.deleted.remove(key);
        }
        Box::pin(ready(Ok(old.len())))
    }

    fn last_id(&self) -> u64 {
        self.state.lock().last
    }
}

#[derive(Default)]
struct State {
    records: BTreeMap<(Table, Owner, Box<str>), Record>,
    /// What [`Op::DeleteOlder`] left behind.
    deleted: BTreeMap<(Table, Owner, Box<str>), u64>,
    queue: BTreeMap<(Owner, u64), Queued>,
    /// Shared bodies, with the number of rows that name them.
    bodies: HashMap<u64, (u64, Bytes)>,
    archive: BTreeMap<(Owner, u64), ArchiveRow>,
    inbox: BTreeMap<(Owner, Box<str>), InboxRow>,
    outbox: BTreeSet<(u64, Owner)>,
    last: u64,
}

/// A row of a queue.
struct Queued {
    value: Bytes,
    body: Option<u64>,
    /// Its bytes are those of the archived stanza with its id.
    archived: bool,
}

impl State {
    fn commit(&mut self, owner: &Owner, ops: Vec<Op>) -> Result<(), StoreError> {
        self.expectations_hold(owner, &ops)?;
        ops.into_iter().for_each(|op| self.apply(owner, op));
        Ok(())
    }

    /// Walks through the records' places as the commit would change them, without changing anything.
    fn expectations_hold(&self, owner: &Owner, ops: &[Op]) -> Result<(), StoreError> {
        let mut changed: HashMap<(Table, &str), Place> = HashMap::new();
        let mut purged = false;
        for op in ops {
            if matches!(op, Op::Purge) {
                changed.clear();
                purged = true;
            }
            let Some((table, item)) = op.record() else { continue };
            let stored = if purged { Place::default() } else { self.place(&(table, owner.clone(), item.into())) };
            let now = changed.entry((table, item)).or_insert(stored);
            *now = op.place_after(*now)?;
        }
        Ok(())
    }

    fn place(&self, key: &(Table, Owner, Box<str>)) -> Place {
        let version = self.records.get(key).map_or(0, |record| record.version);
        Place { version, deleted: self.deleted.get(key).copied().unwrap_or(0) }
    }

    fn apply(&mut self, owner: &Owner, op: Op) {
        self.last = self.last.max(op.id().unwrap_or(0));
        match op {
            Op::Put { .. }
            | Op::Delete { .. }
            | Op::Restore { .. }
            | Op::PutNewer { .. }
            | Op::DeleteOlder { .. }
            | Op::DeleteThis { .. } => self.apply_record(owner, op),
            Op::QueuePush { id, value } => self.push(owner, id, Queued { value, body: None, archived: false }),
            Op::QueueShare { id, head, body } => {
                self.bodies.entry(body.id).or_insert((0, body.bytes)).0 += 1;
                self.push(owner, id, Queued { value: head, body: Some(body.id), archived: false });
            }
            Op::QueueArchived { id } => {
                if self.archive.get(&(owner.clone(), id)).is_some_and(|row| !row.retracted) {
                    self.push(owner, id, Queued { value: Bytes::new(), body: None, archived: true });
                }
            }
            Op::QueueDelete { id } => self.drop_row(owner, id),
            Op::QueueAck { upto } => self.ids(owner, upto).into_iter().for_each(|id| self.drop_row(owner, id)),
            Op::Archive { id, with, value } => {
                self.archive.insert((owner.clone(), id), ArchiveRow { id, with, retracted: false, value });
            }
            Op::Retract { id, tombstone } => {
                let key = (owner.clone(), id);
                if let Some(row) = self.archive.get_mut(&key) {
                    *row = ArchiveRow { retracted: true, value: tombstone, ..row.clone() };
                    if self.queue.get(&key).is_some_and(|row| row.archived) {
                        self.queue.remove(&key);
                    }
                }
            }
            Op::Inbox { with, last, unread, preview } => self.apply_inbox(owner, with, (last, unread, preview)),
            Op::Outbox { id } => drop(self.outbox.insert((id, owner.clone()))),
            Op::OutboxDelete { id } => drop(self.outbox.remove(&(id, owner.clone()))),
            Op::Drawn { .. } => {}
            Op::Purge => self.purge(owner),
        }
    }

    fn apply_record(&mut self, owner: &Owner, op: Op) {
        let Some((table, item)) = op.record() else { return };
        let key = (table, owner.clone(), Box::from(item));
        let now = self.place(&key);
        // A conflict was found before anything was applied.
        let Ok(after) = op.place_after(now) else { return };
        match op {
            Op::PutNewer { .. } | Op::DeleteOlder { .. } if after == now => return,
            Op::Put { value, .. } | Op::Restore { value, .. } | Op::PutNewer { value, .. } => {
                self.records.insert(key.clone(), Record { version: after.version, value });
            }
            _ => drop(self.records.remove(&key)),
        }
        match after.deleted {
            0 => drop(self.deleted.remove(&key)),
            id => drop(self.deleted.insert(key, id)),
        }
    }

    fn push(&mut self, owner: &Owner, id: u64, row: Queued) {
        if let Some(old) = self.queue.insert((owner.clone(), id), row) {
            self.release(&old);
        }
    }

    fn drop_row(&mut self, owner: &Owner, id: u64) {
        if let Some(old) = self.queue.remove(&(owner.clone(), id)) {
            self.release(&old);
        }
    }

    /// One row less names the body of `row`.
    fn release(&mut self, row: &Queued) {
        let Some(body) = row.body else { return };
        if let Some((count, _)) = self.bodies.get_mut(&body) {
            *count -= 1;
            if *count == 0 {
                self.bodies.remove(&body);
            }
        }
    }

    /// A queued row that is a view of the stanza takes over its bytes.
    fn expire(&mut self, key: &(Owner, u64)) {
        let Some(stanza) = self.archive.remove(key) else { return };
        if let Some(row) = self.queue.get_mut(key).filter(|row| row.archived) {
            *row = Queued { value: stanza.value, body: None, archived: false };
        }
    }

    /// The ids of an owner's rows up to one.
    fn ids(&self, owner: &Owner, upto: u64) -> Vec<u64> {
        let range = self.queue.range((owner.clone(), 0)..=(owner.clone(), upto));
        range.map(|((_, id), _)| *id).collect()
    }

    fn queue_rows(&self, owner: &Owner, after: u64) -> impl Iterator<Item = QueueRow> {
        let range = (Bound::Excluded((owner.clone(), after)), Bound::Included((owner.clone(), u64::MAX)));
        self.queue.range(range).map(|(key, row)| QueueRow {
            id: key.1,
            value: self.archive.get(key).filter(|_| row.archived).map_or(&row.value, |stanza| &stanza.value).clone(),
            body: row.body.and_then(|body| self.bodies.get(&body)).map(|(_, bytes)| bytes.clone()),
            body_id: row.body,
            archived: row.archived,
        })
    }

    fn queue_page(&self, owner: &Owner, after: u64, bound: PageBound) -> QueuePage {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for row in self.queue_rows(owner, after) {
            if rows.len() >= bound.rows.min(limits::MAX_PAGE) || (bytes >= bound.bytes && !rows.is_empty()) {
                return QueuePage { rows, end: false };
            }
            bytes += row.len();
            rows.push(row);
        }
        QueuePage { rows, end: true }
    }

    /// The records that a walk meets.
    fn topics(&self, table: Table) -> impl Iterator<Item = (&str, &Record)> {
        let rows = self.records.range((table, Owner::topic(""), "".into())..);
        let rows = rows.take_while(move |(key, _)| key.0 == table && key.1.starts_with("t:"));
        rows.filter(|(key, _)| key.2.is_empty()).map(|(key, record)| (key.1.name(), record))
    }

    fn apply_inbox(&mut self, owner: &Owner, with: Box<str>, (last, unread, preview): (u64, Option<u32>, Box<str>)) {
        let row = self.inbox.entry((owner.clone(), with.clone()));
        let row = row.or_insert(InboxRow { with, last: 0, unread: 0, preview: "".into() });
        row.merge(last, unread, &preview);
    }

    fn purge(&mut self, owner: &Owner) {
        self.records.retain(|(_, of, _), _| of != owner);
        self.deleted.retain(|(_, of, _), _| of != owner);
        self.ids(owner, u64::MAX).into_iter().for_each(|id| self.drop_row(owner, id));
        self.archive.retain(|(of, _), _| of != owner);
        self.inbox.retain(|(of, _), _| of != owner);
        self.outbox.retain(|(_, of)| of != owner);
    }

    fn archive_page(&self, owner: &Owner, query: &ArchiveQuery) -> Vec<ArchiveRow> {
        let from = Bound::Excluded((owner.clone(), query.after.unwrap_or(0)));
        let rows = self.archive.range((from, Bound::Included((owner.clone(), u64::MAX)))).map(|(_, row)| row);
        let rows = rows.filter(|row| query.before.is_none_or(|before| row.id < before));
        let rows = rows.filter(|row| query.with.as_ref().is_none_or(|with| row.with == *with));
        let limit = query.limit.min(limits::MAX_PAGE);
        if !query.newest {
            return rows.take(limit).cloned().collect();
        }
        let mut page: Vec<_> = rows.rev().take(limit).cloned().collect();
        page.reverse();
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, wait};

    struct Memory;

    impl conformance::Backend for Memory {
        fn fresh(&self) -> SharedStore {
            Arc::new(MemoryStore::default())
        }

        fn reopen(&self, store: SharedStore) -> SharedStore {
            store
        }
    }

    crate::conformance_tests!(Memory);

    #[test]
    fn delayed_commits_land_when_the_test_says_so_and_in_the_order_that_it_says() {
        let store = MemoryStore::delayed();
        let (first, second) = (Owner::topic("first"), Owner::topic("second"));
        let push = |id| vec![Op::QueuePush { id, value: Bytes::new() }];
        let mut commits =
            [store.commit(&first, push(1)), store.commit(&second, push(2)), store.commit(&first, push(3))];
        assert_eq!(store.waiting_owners(), [first.clone(), second.clone(), first.clone()]);
        assert_eq!(wait(store.queue(&second, 0, 9)), Ok(vec![]));
        assert!(store.release_at(1));
        assert_eq!(wait(&mut commits[1]), Ok(()));
        assert_eq!(wait(store.queue(&second, 0, 9)).map(|rows| rows.len()), Ok(1));
        assert!(store.refuse(StoreError::Unavailable("full".into())));
        assert_eq!(wait(&mut commits[0]), Err(StoreError::Unavailable("full".into())));
        assert_eq!(store.release_all(), 1);
        assert_eq!(wait(store.queue(&first, 0, 9)).map(|rows| rows[0].id), Ok(3));
    }

    #[test]
    fn a_body_goes_with_the_last_row_that_names_it() {
        let store = MemoryStore::default();
        let owners = [Owner::topic("a"), Owner::topic("b"), Owner::topic("c")];
        let share = |id| {
            let body = Body { id: 9, bytes: Bytes::from_static(b"body") };
            vec![Op::QueueShare { id, head: Bytes::new(), body }]
        };
        owners.iter().for_each(|owner| wait(store.commit(owner, share(9))).unwrap());
        wait(store.commit(&owners[0], share(9))).unwrap();
        wait(store.commit(&owners[0], vec![Op::QueueDelete { id: 9 }])).unwrap();
        wait(store.commit(&owners[1], vec![Op::QueueAck { upto: 9 }])).unwrap();
        assert_eq!(store.state.lock().bodies[&9].0, 1);
        wait(store.commit(&owners[2], vec![Op::Purge])).unwrap();
        assert!(store.state.lock().bodies.is_empty());
    }
}
