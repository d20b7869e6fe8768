//! fjall 3: a maintained log-structured engine with a real fsync and LZ4.

use crate::{
    StoreError,
    kv::{Family, Kv, Rows, Span, Visit},
};
use fjall::{Database, Error, Guard, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::{ops::ControlFlow, path::Path};

/// Background threads for flushes and compactions (storage.md: one or two).
const WORKERS: usize = 2;
/// The journals are flushed to tables when they pass this size.
const MAX_JOURNAL: u64 = 128 << 20;

/// An open fjall.
pub(crate) struct Fjall {
    keyspaces: Vec<Keyspace>,
    db: Database,
}

impl Fjall {
    /// Opens or creates the database in `folder` with a cache of `cache` bytes.
    pub fn open(folder: &Path, cache: u64) -> Result<Fjall, StoreError> {
        let builder = Database::builder(folder).cache_size(cache).worker_threads(WORKERS);
        let db = builder.max_journaling_size(MAX_JOURNAL).manual_journal_persist(true).open().map_err(fault)?;
        let keyspaces = Family::ALL.iter().map(|family| db.keyspace(family.name(), KeyspaceCreateOptions::default));
        let keyspaces = keyspaces.collect::<Result<_, _>>().map_err(fault)?;
        Ok(Fjall { keyspaces, db })
    }

    fn keyspace(&self, family: Family) -> &Keyspace {
        &self.keyspaces[family as usize]
    }
}

impl Kv for Fjall {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.keyspace(family).get(key).map(|row| row.map(|row| row.to_vec())).map_err(fault)
    }

    fn range(&self, family: Family, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        walk(self.keyspace(family).range::<&[u8], _>(span), visit)
    }

    fn range_back(&self, family: Family, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        walk(self.keyspace(family).range::<&[u8], _>(span).rev(), visit)
    }

    fn write(&self, mut rows: Rows) -> Result<(), StoreError> {
        let mut batch = self.db.batch();
        for family in Family::ALL {
            let keyspace = self.keyspace(family);
            for (key, value) in rows.take(family) {
                match value {
                    Some(value) => batch.insert(keyspace, key, value),
                    None => batch.remove(keyspace, key),
                }
            }
        }
        batch.durability(Some(PersistMode::Buffer)).commit().map_err(fault)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db.persist(PersistMode::SyncData).map_err(fault)
    }
}

fn walk(mut rows: impl Iterator<Item = Guard>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
    rows.try_for_each(|row| match row.into_inner() {
        Ok((key, value)) => match visit(&key, &value) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(None),
        },
        Err(error) => Err(Some(fault(error))),
    })
    .or_else(|stop| stop.map_or(Ok(()), Err))
}

fn fault(error: Error) -> StoreError {
    let reason = error.to_string().into();
    match error {
        Error::JournalRecovery(_)
        | Error::Decompress(_)
        | Error::InvalidTrailer
        | Error::InvalidTag(_)
        | Error::Unrecoverable => StoreError::Corrupt(reason),
        _ => StoreError::Unavailable(reason),
    }
}
