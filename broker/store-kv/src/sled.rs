//! sled 0.34.7, by the rules of storage.md: one `Db`, multi-tree transactions, our own `fdatasync`.

use crate::{
    StoreError,
    kv::{Family, Kv, Rows, Span, Visit},
};
use sled::{
    Db, Error, IVec, Mode, Tree,
    transaction::{
        ConflictableTransactionError, TransactionError, Transactional, TransactionalTree, UnabortableTransactionError,
    },
};
use std::{
    fs::{self, File},
    io,
    ops::ControlFlow,
    panic::{self, AssertUnwindSafe},
    path::Path,
    thread,
    time::Duration,
};

/// A transaction locks readers out, so it is kept short.
const BATCH: usize = 128;

/// How long to wait for sled's threads to let its lock go.
const LOCK_TRIES: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// An open sled.
pub(crate) struct Sled {
    trees: Vec<Tree>,
    db: Db,
    /// Our own handle to sled's file `db`: sled's flush on Linux is `sync_file_range`, which survives no power loss.
    file: File,
}

impl Sled {
    /// Opens or creates the database in `folder` with a cache of `cache` bytes.
    pub fn open(folder: &Path, cache: u64) -> Result<Sled, StoreError> {
        let config = sled::Config::new()
            .path(folder)
            .mode(Mode::HighThroughput)
            .cache_capacity(cache)
            .flush_every_ms(None)
            .use_compression(false);
        await_unlocked(&folder.join("db"));
        let db = open_caught(&config)?;
        let trees = Family::ALL.iter().map(|family| db.open_tree(family.name())).collect::<Result<_, _>>();
        let file = File::options().write(true).open(folder.join("db")).map_err(|error| fault(error.into()))?;
        let sled = Sled { trees: trees.map_err(fault)?, db, file };
        sled.sync()?;
        sync_folder(folder)?;
        Ok(sled)
    }

    fn tree(&self, family: Family) -> &Tree {
        &self.trees[family as usize]
    }
}

impl Kv for Sled {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.tree(family).get(key).map(|row| row.map(|row| row.to_vec())).map_err(fault)
    }

    fn range(&self, family: Family, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        walk(self.tree(family).range::<&[u8], _>(span), visit)
    }

    fn range_back(&self, family: Family, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        walk(self.tree(family).range::<&[u8], _>(span).rev(), visit)
    }

    fn batch(&self) -> usize {
        BATCH
    }

    fn write(&self, rows: Rows) -> Result<(), StoreError> {
        let rows = rows.settled();
        let touched = Family::ALL.iter().filter(|family| !rows.of(**family).is_empty());
        let touched: Vec<Family> = touched.copied().collect();
        let trees: Vec<&Tree> = touched.iter().map(|family| self.tree(*family)).collect();
        let done = trees.as_slice().transaction(|trees| {
            let mut each = trees.iter().zip(&touched);
            each.try_for_each(|(tree, family)| apply(tree, &rows, *family)).map_err(ConflictableTransactionError::from)
        });
        done.map_err(|error| match error {
            TransactionError::Abort(error) | TransactionError::Storage(error) => fault(error),
        })
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(fault)?;
        self.file.sync_data().map_err(|error| fault(error.into()))
    }
}

/// sled holds its own lock a moment longer than its `Db`, until its background threads let go. We hold the lock of the
/// whole folder, so there is nobody else to wait for.
fn await_unlocked(db: &Path) {
    let Ok(file) = File::open(db) else { return };
    // Dropping the file gives our own trial lock back.
    while_busy(|| file.try_lock().is_err());
}

/// sled meets some damage with a panic; to us that is an error like the others.
fn open_caught(config: &sled::Config) -> Result<Db, StoreError> {
    let opened = panic::catch_unwind(AssertUnwindSafe(|| config.open()));
    opened.unwrap_or_else(|_| Err(Error::ReportableBug("sled panicked while it opened".into()))).map_err(fault)
}

fn while_busy(busy: impl Fn() -> bool) {
    for _ in 0..LOCK_TRIES {
        if !busy() {
            return;
        }
        thread::sleep(LOCK_PAUSE);
    }
}

fn apply(tree: &TransactionalTree, rows: &Rows, family: Family) -> Result<(), UnabortableTransactionError> {
    rows.of(family).iter().try_for_each(|(key, value)| match value {
        Some(value) => tree.insert(key.as_slice(), value.as_slice()).map(drop),
        None => tree.remove(key.as_slice()).map(drop),
    })
}

fn walk(mut rows: impl Iterator<Item = Result<(IVec, IVec), Error>>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
    rows.try_for_each(|row| match row {
        Ok((key, value)) => match visit(&key, &value) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(None),
        },
        Err(error) => Err(Some(fault(error))),
    })
    .or_else(|stop| stop.map_or(Ok(()), Err))
}

/// Makes the names of new files in a folder durable.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| fault(error.into()))
}

/// Moves sled's snapshots into the copy: it can do without them, and reads its whole log instead.
pub(crate) fn move_snapshots(folder: &Path, copy: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("snap.") {
            fs::rename(entry.path(), copy.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn fault(error: Error) -> StoreError {
    match error {
        Error::Corruption { .. } | Error::ReportableBug(_) => StoreError::Corrupt(error.to_string().into()),
        _ => StoreError::Unavailable(error.to_string().into()),
    }
}
