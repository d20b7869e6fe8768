//! Compares a reopened store with what was acknowledged: nothing lost, nothing half done.

use crate::writer::{OWNERS, is_view, owner, shared, with};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};
use tavi_store::{
    ArchiveQuery, InboxRow, Owner, Store, Table,
    conformance::{body, wait},
};
use tavi_store_kv::{Engine, KvStore, OpenError, Options, check, open};

/// What the child said.
#[derive(Default)]
pub struct Said {
    pub acked: BTreeSet<u64>,
    pub deleting: BTreeSet<u64>,
}

/// What the store holds.
#[derive(Default)]
struct Found {
    archive: BTreeSet<u64>,
    queue: BTreeSet<u64>,
    records: BTreeSet<u64>,
    outbox: BTreeSet<u64>,
    inbox: Vec<(Owner, InboxRow)>,
}

impl Said {
    /// Takes in a line of the child; true for an acknowledgement.
    pub fn hear(&mut self, line: &str) -> bool {
        let id = |rest: &str| rest.parse::<u64>().ok();
        if let Some(id) = line.strip_prefix("del ").and_then(id) {
            self.deleting.insert(id);
        }
        line.strip_prefix("ack ").and_then(id).is_some_and(|id| self.acked.insert(id))
    }
}

pub fn reopen(folder: &Path, engine: Engine) -> Arc<KvStore> {
    loop {
        match open(folder, &Options { engine, cache: 16 << 20, ..Options::default() }) {
            // A child that another test starts at this moment holds our locks' files until it runs its own program.
            Err(OpenError::Locked { .. }) => std::thread::yield_now(),
            Err(error) if error.to_string().contains("could not acquire lock") => std::thread::yield_now(),
            opened => break opened.unwrap_or_else(|error| panic!("{} does not open: {error}", folder.display())),
        }
    }
}

/// Closes a store and looks at each of its rows: counts and bodies agree with the rows that they are about.
pub fn inspect(store: Arc<KvStore>, folder: &Path) {
    drop(store);
    let report = loop {
        match check(folder, 16 << 20, &mut |_| ()) {
            // A child that another test starts at this moment holds our lock's file until it runs its own program.
            Err(OpenError::Locked { .. }) => std::thread::yield_now(),
            report => break report.unwrap(),
        }
    };
    assert_eq!(report.problems, 0, "{:#?}", report.described);
}

/// Panics with what is lost or half done; gives the greatest id that the store has seen.
pub fn judge(store: &KvStore, said: &Said, size: usize) -> u64 {
    let found = Found::read(store, size);
    let lost: Vec<_> = said.acked.difference(&found.archive).collect();
    assert!(
        lost.is_empty(),
        "{} of {} acknowledged writes are lost, such as {:?}",
        lost.len(),
        said.acked.len(),
        &lost[..1]
    );
    assert_eq!(found.archive, found.records, "archive and records differ");
    assert_eq!(found.archive, found.outbox, "archive and outbox differ");
    assert!(found.queue.is_subset(&found.archive), "the queue has more than the archive");
    let missing: BTreeSet<_> = found.archive.difference(&found.queue).copied().collect();
    assert!(missing.is_subset(&said.deleting), "the queue lacks rows that nobody deleted");
    found.judge_inbox();
    let last = found.archive.last().copied().unwrap_or(0);
    assert!(store.last_id() >= last, "the last id is behind");
    store.last_id()
}

impl Found {
    fn read(store: &KvStore, size: usize) -> Found {
        let mut found = Found::default();
        for owner in (0..OWNERS).map(owner) {
            found.read_archive(store, &owner, size);
            found.read_queue(store, &owner, size);
            found.read_records(store, &owner, size);
            let rows = wait(store.inbox(&owner, None, 100)).unwrap();
            found.inbox.extend(rows.into_iter().map(|row| (owner.clone(), row)));
        }
        let mut after = 0;
        while let Some((last, _)) = page(wait(store.outbox(after, 1_000)), |(id, _)| found.outbox.insert(*id)) {
            after = last;
        }
        found
    }

    fn read_archive(&mut self, store: &KvStore, owner: &Owner, size: usize) {
        let mut query = ArchiveQuery { limit: 1_000, ..ArchiveQuery::default() };
        while let Some(last) = page(wait(store.archive(owner, &query)), |row| {
            assert_eq!((row.value == body(row.id, size), &*row.with), (true, &*with(row.id)), "stanza {}", row.id);
            self.archive.insert(row.id)
        }) {
            query.after = Some(last.id);
        }
    }

    fn read_queue(&mut self, store: &KvStore, owner: &Owner, size: usize) {
        let mut after = 0;
        while let Some(last) = page(wait(store.queue(owner, after, 1_000)), |row| {
            let whole = match shared(row.id) {
                None => row.body.is_none() && row.value == body(row.id, size),
                Some(id) => row.value == body(row.id, 20) && row.body == Some(body(id, size)),
            };
            assert!(whole && row.archived == is_view(row.id), "queued packet {}", row.id);
            self.queue.insert(row.id)
        }) {
            after = last.id;
        }
    }

    fn read_records(&mut self, store: &KvStore, owner: &Owner, size: usize) {
        let mut after: Option<Box<str>> = None;
        while let Some((item, _)) =
            page(wait(store.list(owner, Table::Item, after.as_deref(), 1_000)), |(item, record)| {
                let id = item.parse().unwrap();
                assert!(record.value == body(id, size) && record.version == 1, "record {id}");
                self.records.insert(id)
            })
        {
            after = Some(item);
        }
    }

    /// Each message added one to its conversation's count, and is the last one or has a later one behind it.
    fn judge_inbox(&self) {
        let mut expected: BTreeMap<(Owner, String), (u64, u32)> = BTreeMap::new();
        for id in &self.archive {
            let entry = expected.entry((owner(*id), with(*id))).or_default();
            *entry = (*id, entry.1 + 1);
        }
        let seen =
            self.inbox.iter().map(|(owner, row)| ((owner.clone(), row.with.to_string()), (row.last, row.unread)));
        assert_eq!(seen.collect::<BTreeMap<_, _>>(), expected, "inbox and archive differ");
        assert!(self.inbox.iter().all(|(_, row)| *row.preview == *row.last.to_string()));
    }
}

/// Shows each row of a page; gives the last one, if there is any.
fn page<T, E: std::fmt::Debug>(rows: Result<Vec<T>, E>, mut see: impl FnMut(&T) -> bool) -> Option<T> {
    let mut rows = rows.unwrap();
    for row in &rows {
        assert!(see(row), "a row came twice");
    }
    rows.pop()
}
