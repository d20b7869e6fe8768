//! The store in memory: for tests, and the plainest statement of what a backend must do.

use crate::{limits, *};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    future::ready,
    ops::Bound,
};

/// A store that forgets everything when it is dropped.
///
/// Commits resolve at once, or, in a store made by [`MemoryStore::delayed`], when the test says so: then nothing of a
/// commit is visible before its release.
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
    waiting: Option<Mutex<VecDeque<Waiting>>>,
}

struct Waiting {
    owner: Owner,
    ops: Vec<Op>,
    slot: CommitSlot,
}

impl MemoryStore {
    /// A store whose commits wait for [`release`](MemoryStore::release).
    pub fn delayed() -> MemoryStore {
        MemoryStore { waiting: Some(Mutex::default()), ..MemoryStore::default() }
    }

    /// How many commits wait.
    pub fn waiting(&self) -> usize {
        self.waiting.as_ref().map_or(0, |waiting| waiting.lock().len())
    }

    /// The owners of the waiting commits, oldest first.
    pub fn waiting_owners(&self) -> Vec<Owner> {
        self.waiting.as_ref().map(|w| w.lock().iter().map(|w| w.owner.clone()).collect()).unwrap_or_default()
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

    fn take(&self, index: usize) -> Option<Waiting> {
        self.waiting.as_ref()?.lock().remove(index)
    }

    fn read<T: Send + 'static>(&self, look: impl FnOnce(&State) -> T) -> Read<'static, T> {
        Box::pin(ready(Ok(look(&self.state.lock()))))
    }
}

impl Store for MemoryStore {
    fn commit(&self, owner: &Owner, ops: Vec<Op>) -> Commit {
        if let Err(error) = limits::validate(owner, &ops) {
            return Commit::ready(Err(error));
        }
        let Some(waiting) = &self.waiting else {
            return Commit::ready(self.state.lock().commit(owner, ops));
        };
        let (slot, commit) = Commit::pending();
        waiting.lock().push_back(Waiting { owner: owner.clone(), ops, slot });
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
        self.read(|state| {
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
        self.read(|state| {
            let range = (Bound::Excluded((owner.clone(), after)), Bound::Included((owner.clone(), u64::MAX)));
            let rows = state.queue.range(range).take(limit.min(limits::MAX_PAGE));
            rows.map(|((_, id), value)| QueueRow { id: *id, value: value.clone() }).collect()
        })
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
        old.iter().for_each(|key| drop(state.archive.remove(key)));
        Box::pin(ready(Ok(old.len())))
    }

    fn last_id(&self) -> u64 {
        self.state.lock().last
    }
}

#[derive(Default)]
struct State {
    records: BTreeMap<(Table, Owner, Box<str>), Record>,
    queue: BTreeMap<(Owner, u64), Bytes>,
    archive: BTreeMap<(Owner, u64), ArchiveRow>,
    inbox: BTreeMap<(Owner, Box<str>), InboxRow>,
    outbox: BTreeSet<(u64, Owner)>,
    last: u64,
}

impl State {
    fn commit(&mut self, owner: &Owner, ops: Vec<Op>) -> Result<(), StoreError> {
        self.expectations_hold(owner, &ops)?;
        ops.into_iter().for_each(|op| self.apply(owner, op));
        Ok(())
    }

    /// Walks through the records' versions as the commit would change them, without changing anything.
    fn expectations_hold(&self, owner: &Owner, ops: &[Op]) -> Result<(), StoreError> {
        let mut changed: HashMap<(Table, &str), u64> = HashMap::new();
        let mut purged = false;
        for op in ops {
            let (table, item) = match op {
                Op::Purge => {
                    changed.clear();
                    purged = true;
                    continue;
                }
                Op::Put { table, item, .. } | Op::Delete { table, item, .. } | Op::Restore { table, item, .. } => {
                    (*table, &**item)
                }
                _ => continue,
            };
            let stored = if purged { 0 } else { self.version(owner, table, item) };
            let now = changed.entry((table, item)).or_insert(stored);
            *now = op.version_after(*now)?;
        }
        Ok(())
    }

    /// A record's version, 0 if there is none.
    fn version(&self, owner: &Owner, table: Table, item: &str) -> u64 {
        self.records.get(&(table, owner.clone(), item.into())).map_or(0, |record| record.version)
    }

    fn apply(&mut self, owner: &Owner, op: Op) {
        self.last = self.last.max(op.id().unwrap_or(0));
        match op {
            Op::Put { table, item, value, .. } => {
                let record = self.records.entry((table, owner.clone(), item));
                let record = record.or_insert(Record { version: 0, value: Bytes::new() });
                *record = Record { version: record.version + 1, value };
            }
            Op::Restore { table, item, version, value } => {
                self.records.insert((table, owner.clone(), item), Record { version, value });
            }
            Op::Delete { table, item, .. } => drop(self.records.remove(&(table, owner.clone(), item))),
            Op::QueuePush { id, value } => drop(self.queue.insert((owner.clone(), id), value)),
            Op::QueueDelete { id } => drop(self.queue.remove(&(owner.clone(), id))),
            Op::QueueAck { upto } => self.queue.retain(|key, _| key.0 != *owner || key.1 > upto),
            Op::Archive { id, with, value } => {
                self.archive.insert((owner.clone(), id), ArchiveRow { id, with, retracted: false, value });
            }
            Op::Retract { id, tombstone } => {
                if let Some(row) = self.archive.get_mut(&(owner.clone(), id)) {
                    *row = ArchiveRow { retracted: true, value: tombstone, ..row.clone() };
                }
            }
            Op::Inbox { with, last, unread, preview } => self.apply_inbox(owner, with, (last, unread, preview)),
            Op::Outbox { id } => drop(self.outbox.insert((id, owner.clone()))),
            Op::OutboxDelete { id } => drop(self.outbox.remove(&(id, owner.clone()))),
            Op::Drawn { .. } => {}
            Op::Purge => self.purge(owner),
        }
    }

    fn apply_inbox(&mut self, owner: &Owner, with: Box<str>, (last, unread, preview): (u64, Option<u32>, Box<str>)) {
        let row = self.inbox.entry((owner.clone(), with.clone()));
        let row = row.or_insert(InboxRow { with, last: 0, unread: 0, preview: "".into() });
        row.merge(last, unread, &preview);
    }

    fn purge(&mut self, owner: &Owner) {
        self.records.retain(|(_, of, _), _| of != owner);
        self.queue.retain(|(of, _), _| of != owner);
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
    use std::sync::Arc;

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
}
