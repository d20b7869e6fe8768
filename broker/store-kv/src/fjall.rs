//! fjall 3: a maintained log-structured engine with a real fsync and LZ4.

use crate::{
    StoreError,
    kv::{Family, Key, Kv, Plain, Rows, Span, Visit},
    young::{self, Value, Young},
};
use fjall::{Database, Error, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::{
    cmp::Ordering,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
};

/// Background threads for flushes and compactions (storage.md: one or two).
const WORKERS: usize = 2;
/// The journals are flushed to tables when they pass this size; what they hold is in memory too.
const MAX_JOURNAL: u64 = 64 << 20;
/// What one family holds in memory before it is flushed to a table. Up to three times that is in memory: what is being
/// flushed, and what was flushed last, stay until the next flush.
fn memtable(family: Family) -> u64 {
    match family {
        Family::Queue | Family::Record | Family::Chunk | Family::Body | Family::Archive => 4 << 20,
        _ => 2 << 20,
    }
}

/// The keyspace of young rows of queues. Its name is stored: never rename.
const LOG: &str = "queue_l";
/// What the log holds in memory. Most of it is deleted before it is ever flushed, if there is room for so much.
const LOG_MEMTABLE: u64 = 8 << 20;
/// So many bytes of the log are kept; what is older gets its own rows.
pub(crate) const YOUNG: usize = 8 << 20;

/// An open fjall.
pub(crate) struct Fjall {
    keyspaces: Vec<Keyspace>,
    young: Young,
    db: Database,
}

impl Fjall {
    /// Opens or creates the database in `folder` with a cache of `cache` bytes, and at most `young` bytes of young rows.
    pub fn open(folder: &Path, cache: u64, young: usize) -> Result<Fjall, StoreError> {
        let builder = Database::builder(folder).cache_size(cache).worker_threads(WORKERS);
        let builder = builder.max_journaling_size(MAX_JOURNAL).manual_journal_persist(true);
        // It meets some damage with a panic; to us that is an error like the others.
        let opened = panic::catch_unwind(AssertUnwindSafe(|| builder.open()));
        let db = opened.map_err(|_| StoreError::Corrupt("fjall panicked while it opened".into()))?.map_err(fault)?;
        let options = |family| move || KeyspaceCreateOptions::default().max_memtable_size(memtable(family));
        let keyspaces = Family::ALL.iter().map(|family| db.keyspace(family.name(), options(*family)));
        let keyspaces = keyspaces.collect::<Result<_, _>>().map_err(fault)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(LOG_MEMTABLE);
        let young = Young::open(db.keyspace(LOG, options).map_err(fault)?, young)?;
        Ok(Fjall { keyspaces, young, db })
    }

    fn keyspace(&self, family: Family) -> &Keyspace {
        &self.keyspaces[family as usize]
    }

    #[cfg(test)]
    pub fn log_len(&self) -> usize {
        self.young.log_len()
    }

    /// Young rows are looked at before the others: those that get old meanwhile are then found twice, never not at all.
    fn young(&self, family: Family, span: Span<'_>) -> Vec<(Key, Vec<u8>)> {
        if family == Family::Queue { self.young.range(span) } else { Vec::new() }
    }
}

impl Kv for Fjall {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if family == Family::Queue
            && let Some(row) = self.young.get(key)
        {
            return Ok(Some(row));
        }
        self.keyspace(family).get(key).map(|row| row.map(|row| row.to_vec())).map_err(fault)
    }

    fn range(&self, family: Family, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let young = self.young(family, span);
        young::walk(self.keyspace(family).range::<&[u8], _>(span), young, (Ordering::Less, visit))
    }

    fn range_back(&self, family: Family, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let young = self.young(family, span);
        young::walk(self.keyspace(family).range::<&[u8], _>(span).rev(), young, (Ordering::Greater, visit))
    }

    fn write(&self, mut rows: Rows) -> Result<(), StoreError> {
        let mut batch = self.db.batch();
        let mut change = self.young.change(rows.last);
        let queue = self.keyspace(Family::Queue);
        let Plain { new, gone } = rows.take_plain();
        change.reserve(new.len());
        new.into_iter().for_each(|(place, value)| change.put(place, value));
        // A row and its deletion go as one: neither is ever written to a table.
        for place in gone.into_iter().filter(|place| !change.take(*place)) {
            batch.remove_weak(queue, place.to_be_bytes());
        }
        let once = rows.take_once();
        for (key, value) in rows.take(Family::Queue) {
            let place = young::place(&key)?;
            let (is_new, was_young) = (change.is_new(place), change.take(place));
            match value {
                Some(value) if is_new => change.put(place, Value::Whole(value.into())),
                Some(value) => batch.insert(queue, key, value),
                // What came with this very batch is nowhere.
                None if is_new || was_young => {}
                None if once.contains(&key) => batch.remove_weak(queue, key),
                None => batch.remove(queue, key),
            }
        }
        for family in Family::ALL {
            let keyspace = self.keyspace(family);
            for (key, value) in rows.take(family) {
                match value {
                    Some(value) => batch.insert(keyspace, key, value),
                    None => batch.remove(keyspace, key),
                }
            }
        }
        change.write(&mut batch, queue);
        batch.durability(Some(PersistMode::Buffer)).commit().map_err(fault)?;
        change.show();
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db.persist(PersistMode::SyncData).map_err(fault)
    }
}

/// What ends each batch of fjall's journal.
const TRAILER: &[u8] = b"FJL\x03";
/// Where the end of the batch before the last is looked for, in bytes from the journal's end.
const WINDOW: u64 = 16 << 20;

/// Cuts the last batch off the newest journal.
///
/// A power loss in the middle of a flush can leave a batch of which some pages are on the disk and others, before
/// them, are not. fjall drops a batch without an end, but refuses one whose check fails. Such a batch was never
/// acknowledged, because the next one is written only after its flush, so nothing stands behind it.
pub(crate) fn cut_journal(folder: &Path, _copy: &Path) -> io::Result<()> {
    let Some(journal) = newest_journal(folder)? else { return Ok(()) };
    let file = File::options().read(true).write(true).open(journal)?;
    let end = written(&file)?;
    let start = end.saturating_sub(WINDOW);
    let mut tail = vec![0; (end - start) as usize];
    file.read_exact_at(&mut tail, start)?;
    let before = &tail[..tail.len().saturating_sub(TRAILER.len())];
    let cut = match before.windows(TRAILER.len()).rposition(|bytes| bytes == TRAILER) {
        Some(at) => start + (at + TRAILER.len()) as u64,
        // It is the only one: without its end it is dropped as a batch that was never finished.
        None => end.saturating_sub(1),
    };
    file.set_len(cut)?;
    file.sync_all()
}

fn newest_journal(folder: &Path) -> io::Result<Option<PathBuf>> {
    let paths = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let paths = paths.collect::<io::Result<Vec<_>>>()?;
    let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
    let journals = paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "jnl"));
    Ok(journals.filter_map(|path| Some((number(&path)?, path))).max().map(|(_, path)| path))
}

/// How much of a journal is written: fjall makes the file longer beforehand, with zeros, and no batch ends with one.
fn written(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = [0; 1 << 16];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..(end - start) as usize];
        file.read_exact_at(part, start)?;
        if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

pub(crate) fn fault(error: Error) -> StoreError {
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
