//! The version of the layout, what is brought up to it, and the marks that the committer starts from.

use crate::{
    OpenError, StoreError,
    group::{Marks, topic_of},
    keys::{self, Kind, Number},
    kv::{Family, Key, Kv, Rows},
    names,
    value::{self, Cell},
};
use std::ops::{Bound, ControlFlow};
use tavi_store::{QueueSize, Table};

/// How many rows of an older layout are looked at for one batch.
const STEP: usize = 1_000;

/// Reads what the committer must know; a new store gets its version, one of an older layout what that lacks.
pub(crate) fn marks(kv: &dyn Kv) -> Result<Marks, OpenError> {
    match system(kv, keys::SCHEMA)? {
        Some(keys::SCHEMA_VERSION) => {}
        Some(2 | 3) => write_version(kv, Rows::default())?,
        Some(1) => upgrade(kv)?,
        Some(found) => return Err(OpenError::NewerLayout { found, known: keys::SCHEMA_VERSION }),
        None => write_version(kv, Rows::default())?,
    }
    let mut marks = Marks {
        next: system(kv, keys::NEXT)?.unwrap_or(1),
        last: system(kv, keys::LAST)?.unwrap_or(0),
        ..Marks::default()
    };
    let end = keys::end_of(keys::DEAD);
    kv.range(Family::System, keys::span(keys::DEAD, end.as_deref()), &mut |key, _| {
        marks.dead.extend(keys::number_at(key, keys::DEAD.len()));
        ControlFlow::Continue(())
    })?;
    Ok(marks)
}

fn system(kv: &dyn Kv, key: &[u8]) -> Result<Option<u64>, StoreError> {
    kv.get(Family::System, key)?.map(|row| value::number(Family::System, &row)).transpose()
}

fn write_version(kv: &dyn Kv, mut rows: Rows) -> Result<(), StoreError> {
    rows.set(Family::System, keys::SCHEMA.to_vec(), Some(keys::SCHEMA_VERSION.to_be_bytes().to_vec()));
    kv.write(rows)?;
    kv.sync()
}

/// From layout 1: what queues hold, and the walks. What 3 and 4 have beyond 2 comes by use. If it is cut short, the next
/// start begins it again; the version is written last.
fn upgrade(kv: &dyn Kv) -> Result<(), StoreError> {
    tracing::info!(
        "the store is brought from layout 1 to layout {}; older releases will not open it",
        keys::SCHEMA_VERSION
    );
    size_queues(kv)?;
    let mut counts = Rows::default();
    for table in Table::WALKED {
        let topics = index_topics(kv, table)?;
        counts.set(Family::System, keys::count(table), Some(topics.to_be_bytes().to_vec()));
    }
    write_version(kv, counts)
}

fn size_queues(kv: &dyn Kv) -> Result<(), StoreError> {
    let mut held: Option<(Number, QueueSize)> = None;
    each_page(kv, Family::Queue, &[], &mut |key, row| {
        let owner = keys::number_at(key, 0).ok_or_else(short)?;
        let len = Cell::decode(Family::Queue, row.to_vec())?.len();
        let size = held.filter(|(of, _)| *of == owner).map_or(QueueSize::default(), |(_, size)| size);
        let size = QueueSize { rows: size.rows + 1, bytes: size.bytes + len };
        held = Some((owner, size));
        Ok(Some((Family::QueueSize, keys::owner(owner), value::encode_size(size))))
    })
}

/// Enters the topics of a table into its walk; gives how many there are.
fn index_topics(kv: &dyn Kv, table: Table) -> Result<u64, StoreError> {
    let mut topics = 0;
    each_page(kv, Family::Record, &[table.code()], &mut |key, _| {
        let owner = keys::number_at(key, 1).ok_or_else(short)?;
        let name = if key.len() == 9 { names::name_of(kv, owner)? } else { None };
        let Some((Kind::Owner, name)) = name else { return Ok(None) };
        let Some(topic) = topic_of(&name) else { return Ok(None) };
        topics += 1;
        Ok(Some((Family::Walk, keys::walk(table, topic), owner.to_be_bytes().to_vec())))
    })?;
    Ok(topics)
}

/// A row that is to be written, if there is one.
type Made = Result<Option<(Family, Key, Vec<u8>)>, StoreError>;

/// Writes what `make` gives for each row of a family under `prefix`, page by page.
fn each_page(
    kv: &dyn Kv,
    family: Family,
    prefix: &[u8],
    make: &mut dyn FnMut(&[u8], &[u8]) -> Made,
) -> Result<(), StoreError> {
    let end = keys::end_of(prefix);
    let mut from = Bound::Included(prefix.to_vec());
    loop {
        let mut page = Vec::new();
        let start = from.as_ref().map(|key| &key[..]);
        let span = (start, end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        kv.range(family, span, &mut |key, row| {
            page.push((key.to_vec(), row.to_vec()));
            if page.len() < STEP { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        from = Bound::Excluded(last.clone());
        let mut rows = Rows::default();
        for (key, row) in &page {
            if let Some((family, key, row)) = make(key, row)? {
                rows.set(family, key, Some(row));
            }
        }
        kv.write(rows)?;
    }
}

fn short() -> StoreError {
    StoreError::Corrupt("a key is too short".into())
}
