//! A store for tests whose commits lie still until they are told to land or to fail.

use parking_lot::Mutex;
use std::collections::VecDeque;
use tavi_store::{
    ArchiveQuery, ArchiveRow, Commit, CommitSlot, InboxRow, MemoryStore, NameRange, Op, Owner, PageBound, QueuePage,
    QueueRow, QueueSize, Read, Record, Row, Store, StoreError, Table,
};

type Waiting = (Owner, Vec<Op>, CommitSlot);

#[derive(Default)]
pub(super) struct SlowStore {
    inner: MemoryStore,
    waiting: Mutex<Option<VecDeque<Waiting>>>,
}

impl SlowStore {
    /// From now on commits wait.
    pub(super) fn hold(&self) {
        self.waiting.lock().get_or_insert_default();
    }

    /// The oldest commit that waits is on the disk; whether there was one.
    pub(super) fn save(&self) -> bool {
        let Some((owner, ops, slot)) = self.next() else { return false };
        drop(self.inner.commit(&owner, ops));
        slot.resolve(Ok(()));
        true
    }

    /// The oldest commit that waits fails.
    pub(super) fn fail(&self) {
        if let Some((.., slot)) = self.next() {
            slot.resolve(Err(StoreError::Unavailable("a test says so".into())));
        }
    }

    fn next(&self) -> Option<Waiting> {
        self.waiting.lock().as_mut()?.pop_front()
    }
}

impl Store for SlowStore {
    fn commit(&self, owner: &Owner, ops: Vec<Op>) -> Commit {
        let mut waiting = self.waiting.lock();
        let Some(waiting) = &mut *waiting else { return self.inner.commit(owner, ops) };
        let (slot, commit) = Commit::pending();
        waiting.push_back((owner.clone(), ops, slot));
        commit
    }
    fn load<'a>(&'a self, owner: &'a Owner, table: Table, item: &'a str) -> Read<'a, Option<Record>> {
        self.inner.load(owner, table, item)
    }
    fn list<'a>(
        &'a self,
        owner: &'a Owner,
        table: Table,
        after: Option<&'a str>,
        limit: usize,
    ) -> Read<'a, Vec<(Box<str>, Record)>> {
        self.inner.list(owner, table, after, limit)
    }
    fn scan<'a>(&'a self, table: Table, after: Option<(&'a Owner, &'a str)>, limit: usize) -> Read<'a, Vec<Row>> {
        self.inner.scan(table, after, limit)
    }
    fn queue<'a>(&'a self, owner: &'a Owner, after: u64, limit: usize) -> Read<'a, Vec<QueueRow>> {
        self.inner.queue(owner, after, limit)
    }
    fn queue_page<'a>(&'a self, owner: &'a Owner, after: u64, bound: PageBound) -> Read<'a, QueuePage> {
        self.inner.queue_page(owner, after, bound)
    }
    fn queue_size<'a>(&'a self, owner: &'a Owner) -> Read<'a, QueueSize> {
        self.inner.queue_size(owner)
    }
    fn walk<'a>(&'a self, table: Table, names: NameRange<'a>, bound: PageBound) -> Read<'a, Vec<(Box<str>, Record)>> {
        self.inner.walk(table, names, bound)
    }
    fn count(&self, table: Table) -> Read<'_, u64> {
        self.inner.count(table)
    }
    fn archive<'a>(&'a self, owner: &'a Owner, query: &'a ArchiveQuery) -> Read<'a, Vec<ArchiveRow>> {
        self.inner.archive(owner, query)
    }
    fn inbox<'a>(&'a self, owner: &'a Owner, before: Option<u64>, limit: usize) -> Read<'a, Vec<InboxRow>> {
        self.inner.inbox(owner, before, limit)
    }
    fn outbox<'a>(&'a self, after: u64, limit: usize) -> Read<'a, Vec<(u64, Owner)>> {
        self.inner.outbox(after, limit)
    }
    fn owners<'a>(&'a self, after: Option<&'a Owner>, limit: usize) -> Read<'a, Vec<Owner>> {
        self.inner.owners(after, limit)
    }
    fn expire<'a>(&'a self, before: u64, limit: usize) -> Read<'a, usize> {
        self.inner.expire(before, limit)
    }
    fn last_id(&self) -> u64 {
        self.inner.last_id()
    }
}
