//! The bounded reads, straight from the engine.

use crate::{
    StoreError,
    cache::Bodies,
    group::sum_rows,
    keys::{self, Kind, Number},
    kv::{Family, Key, Kv, Span},
    names::{self, Page},
    value::{self, Body, Cell, InboxCell},
};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::{
    ops::{Bound, ControlFlow},
    sync::Arc,
};
use tavi_store::{
    ArchiveQuery, ArchiveRow, InboxRow, NameRange, Owner, PageBound, QueuePage, QueueRow, QueueSize, Record, Row,
    Table, limits::MAX_PAGE,
};

/// How often a value is read again when it was replaced while its chunks were being read.
const TRIES: usize = 8;

/// Reads rows of an engine, beside its writer.
#[derive(Clone)]
pub(crate) struct Reader {
    kv: Arc<dyn Kv>,
    bodies: Arc<Mutex<Bodies>>,
}

/// A row with all its bytes.
struct Whole {
    key: Key,
    cell: Cell,
    value: Bytes,
}

/// Old stanzas by owner and id, and the owner to go on with; `None` behind the last.
pub(crate) type Old = (Vec<(Number, u64)>, Option<Number>);

/// In which direction a range is walked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Forth,
    Back,
}

impl Reader {
    pub fn new(kv: Arc<dyn Kv>) -> Reader {
        Reader { kv, bodies: Arc::default() }
    }

    pub fn load(&self, owner: &Owner, table: Table, item: &str) -> Result<Option<Record>, StoreError> {
        let Some(owner) = self.number(owner)? else { return Ok(None) };
        let row = self.whole(Family::Record, keys::record(table, owner, item), None)?;
        Ok(row.map(Whole::into_record))
    }

    pub fn list(
        &self,
        owner: &Owner,
        (table, after): (Table, Option<&str>),
        limit: usize,
    ) -> Result<Vec<(Box<str>, Record)>, StoreError> {
        let Some(owner) = self.number(owner)? else { return Ok(Vec::new()) };
        let prefix = keys::record(table, owner, "");
        let after = after.map(|item| keys::record(table, owner, item));
        let rows = self.records(&prefix, after.as_deref(), limit)?;
        rows.into_iter().map(|row| Ok((row.item()?, row.into_record()))).collect()
    }

    /// `after` is the number of its owner, and its item.
    pub fn scan(&self, table: Table, after: Option<(Number, &str)>, limit: usize) -> Result<Vec<Row>, StoreError> {
        let mut after = after.map(|(owner, item)| keys::record(table, owner, item));
        let mut page = Page::new(&*self.kv);
        let mut found = Vec::new();
        loop {
            let rows = self.records(&[table.code()], after.as_deref(), limit - found.len())?;
            let Some(last) = rows.last() else { return Ok(found) };
            after = Some(last.key.clone());
            for row in rows {
                // An owner without a name was purged; its rows are still to be swept.
                let Some(owner) = page.name(row.number_at(1)?)? else { continue };
                found.push(Row { owner: Owner::from_key(&owner), item: row.item()?, record: row.into_record() });
            }
            if found.len() >= limit {
                return Ok(found);
            }
        }
    }

    pub fn queue(&self, owner: &Owner, after: u64, bound: PageBound) -> Result<QueuePage, StoreError> {
        let Some(owner) = self.number(owner)? else { return Ok(QueuePage { rows: Vec::new(), end: true }) };
        let (from, to) = (keys::dated(owner, after), keys::dated(owner, u64::MAX));
        let span = (Bound::Excluded(&from[..]), Bound::Included(&to[..]));
        let (mut cells, mut bytes, mut fault) = (Vec::new(), 0, Ok(()));
        let mut end = after == u64::MAX;
        if !end {
            end = true;
            self.kv.range(Family::Queue, span, &mut |key, row| {
                if cells.len() >= bound.rows.min(MAX_PAGE) || (bytes >= bound.bytes as u64 && !cells.is_empty()) {
                    end = false;
                    return ControlFlow::Break(());
                }
                match Cell::decode(Family::Queue, row.to_vec()) {
                    Ok(cell) => bytes += cell.len(),
                    Err(error) => fault = Err(error),
                }
                cells.push((key.to_vec(), row.to_vec()));
                if fault.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        fault?;
        let mut rows = Vec::with_capacity(cells.len());
        for (key, row) in cells {
            rows.extend(self.queued(key, row)?);
        }
        Ok(QueuePage { rows, end })
    }

    /// A row of a queue with its bytes and those that it shares; `None` if it was deleted meanwhile.
    fn queued(&self, key: Key, row: Vec<u8>) -> Result<Option<QueueRow>, StoreError> {
        let id = number_at(&key, 8)?;
        let mut row = Some(row);
        for _ in 0..TRIES {
            let Some(whole) = self.whole(Family::Queue, key.clone(), row.take())? else { return Ok(None) };
            if whole.cell.is_view() {
                let stanza = self.whole(Family::Archive, key.clone(), None)?.filter(|stanza| !stanza.cell.retracted);
                if let Some(Whole { value, .. }) = stanza {
                    return Ok(Some(QueueRow { id, value, archived: true, ..QueueRow::default() }));
                }
                // It was retracted or has expired: the row is gone too, or has the bytes now, as is soon to be seen.
                std::thread::yield_now();
                continue;
            }
            let Some(share) = whole.cell.share else {
                return Ok(Some(QueueRow { id, value: whole.value, ..QueueRow::default() }));
            };
            if let Some(body) = self.shared(share.id)? {
                let (body, body_id) = (Some(body), Some(share.id));
                return Ok(Some(QueueRow { id, value: whole.value, body, body_id, archived: false }));
            }
            // The body is gone: so is the row, else the store is damaged.
            if self.kv.get(Family::Queue, &key)?.is_some_and(|now| now == whole.cell.encode(Family::Queue)) {
                return Err(StoreError::Corrupt(format!("a queued row lacks its body {}", share.id).into()));
            }
        }
        Err(unsteady())
    }

    /// A shared body; receivers that read at about the same time share its memory too.
    fn shared(&self, id: u64) -> Result<Option<Bytes>, StoreError> {
        if let Some(body) = self.bodies.lock().get(id) {
            return Ok(Some(body));
        }
        let body = self.whole(Family::Body, keys::body(id), None)?.map(|whole| whole.value);
        body.iter().for_each(|body| self.bodies.lock().insert(id, body.clone()));
        Ok(body)
    }

    pub fn queue_size(&self, owner: &Owner) -> Result<QueueSize, StoreError> {
        let Some(owner) = self.number(owner)? else { return Ok(QueueSize::default()) };
        if let Some(row) = self.kv.get(Family::QueueSize, &keys::owner(owner))? {
            return value::decode_size(&row);
        }
        let (prefix, mut rows) = (keys::owner(owner), Vec::new());
        let end = keys::end_of(&prefix);
        self.kv.range(Family::Queue, keys::span(&prefix, end.as_deref()), &mut |_, row| {
            rows.push(row.to_vec());
            ControlFlow::Continue(())
        })?;
        sum_rows(rows.into_iter())
    }

    pub fn walk(
        &self,
        table: Table,
        names: NameRange<'_>,
        bound: PageBound,
    ) -> Result<Vec<(Box<str>, Record)>, StoreError> {
        let (prefix, limit) = (keys::walk(table, names.prefix), bound.rows.min(MAX_PAGE));
        let end = keys::end_of(&prefix);
        let mut from = names.after.map(|after| keys::walk(table, after)).filter(|after| *after >= prefix);
        let (mut found, mut bytes) = (Vec::new(), 0);
        loop {
            let start = from.as_deref().map_or(Bound::Included(&prefix[..]), Bound::Excluded);
            let span = (start, end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
            let page = self.rows(Family::Walk, span, (Way::Forth, limit - found.len()))?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            from = Some(last.clone());
            for (key, row) in page {
                if bytes >= bound.bytes && !found.is_empty() {
                    return Ok(found);
                }
                let owner = value::number(Family::Walk, &row)?;
                // A topic that is not there was cleared since the names were read.
                let Some(whole) = self.whole(Family::Record, keys::record(table, owner, ""), None)? else { continue };
                bytes += whole.value.len();
                found.push((topic(&key)?, whole.into_record()));
            }
        }
    }

    pub fn count(&self, table: Table) -> Result<u64, StoreError> {
        let row = self.kv.get(Family::System, &keys::count(table))?;
        row.map_or(Ok(0), |row| value::number(Family::System, &row))
    }

    pub fn archive(&self, owner: &Owner, query: &ArchiveQuery) -> Result<Vec<ArchiveRow>, StoreError> {
        let Some(owner) = self.number(owner)? else { return Ok(Vec::new()) };
        let way = if query.newest { Way::Back } else { Way::Forth };
        let mut rows = match &query.with {
            None => {
                let (from, to) = bounds(query, |id| keys::dated(owner, id));
                self.cells(Family::Archive, (Bound::Excluded(&from), Bound::Excluded(&to)), (way, query.limit))?
            }
            Some(with) => self.archive_with(owner, with, (query, way))?,
        };
        if query.newest {
            rows.reverse();
        }
        let mut page = Page::new(&*self.kv);
        rows.into_iter().map(|row| row.into_archive(&mut page)).collect()
    }

    fn archive_with(
        &self,
        owner: Number,
        with: &str,
        (query, way): (&ArchiveQuery, Way),
    ) -> Result<Vec<Whole>, StoreError> {
        let Some(with) = names::number_of(&*self.kv, Kind::With, with)? else { return Ok(Vec::new()) };
        let (from, to) = bounds(query, |id| keys::archive_with(owner, with, id));
        let span = (Bound::Excluded(&from[..]), Bound::Excluded(&to[..]));
        let index = self.rows(Family::ArchiveWith, span, (way, query.limit))?;
        let mut rows = Vec::with_capacity(index.len());
        for (key, _) in index {
            let key = keys::dated(owner, number_at(&key, 16)?);
            // A stanza that is not there has expired since the index was read.
            rows.extend(self.whole(Family::Archive, key, None)?);
        }
        Ok(rows)
    }

    pub fn inbox(&self, owner: &Owner, before: Option<u64>, limit: usize) -> Result<Vec<InboxRow>, StoreError> {
        let Some(owner) = self.number(owner)? else { return Ok(Vec::new()) };
        let from = before.map_or(keys::owner(owner), |before| keys::inbox_time(owner, before, u64::MAX));
        let to = keys::end_of(&keys::owner(owner));
        let span = (Bound::Excluded(&from[..]), to.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        let mut page = Page::new(&*self.kv);
        let mut rows = Vec::new();
        for (key, _) in self.rows(Family::InboxTime, span, (Way::Forth, limit))? {
            let with = number_at(&key, 16)?;
            let Some(row) = self.kv.get(Family::Inbox, &keys::inbox(owner, with))? else { continue };
            let cell = InboxCell::decode(&row)?;
            let with = page.name(with)?.ok_or_else(nameless)?;
            rows.push(InboxRow { with, last: cell.last, unread: cell.unread, preview: cell.preview });
        }
        Ok(rows)
    }

    pub fn outbox(&self, after: u64, limit: usize) -> Result<Vec<(u64, Owner)>, StoreError> {
        let mut from = keys::outbox(after, u64::MAX);
        let mut page = Page::new(&*self.kv);
        let mut found = Vec::new();
        loop {
            let span = (Bound::Excluded(&from[..]), Bound::Unbounded);
            let rows = self.rows(Family::Outbox, span, (Way::Forth, limit - found.len()))?;
            let Some((last, _)) = rows.last() else { return Ok(found) };
            let next = last.clone();
            for (key, _) in rows {
                let Some(owner) = page.name(number_at(&key, 8)?)? else { continue };
                found.push((number_at(&key, 0)?, Owner::from_key(&owner)));
            }
            if found.len() >= limit {
                return Ok(found);
            }
            from = next;
        }
    }

    /// Owners in the order of their numbers, from behind number `after`.
    pub fn owners(&self, after: Number, limit: usize) -> Result<Vec<Owner>, StoreError> {
        let from = keys::owner(after);
        let mut found = Vec::new();
        let mut fault = Ok(());
        self.kv.range(Family::Owner, (Bound::Excluded(&from), Bound::Unbounded), &mut |_, row| {
            match names::decode(row) {
                Ok((Kind::Owner, name)) => found.push(Owner::from_key(&name)),
                Ok((Kind::With, _)) => {}
                Err(error) => fault = Err(error),
            }
            if found.len() < limit && fault.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        fault.map(|()| found)
    }

    /// The number of an owner, if it has rows.
    pub fn number(&self, owner: &Owner) -> Result<Option<Number>, StoreError> {
        names::number_of(&*self.kv, Kind::Owner, owner.as_str())
    }

    /// Archived stanzas older than id `before`, at most `limit`, looking at owners from number `from` on.
    pub fn older_than(&self, before: u64, from: Number, limit: usize) -> Result<Old, StoreError> {
        let mut found = Vec::new();
        let mut at = keys::dated(from, 0);
        loop {
            let mut next = None;
            self.kv.range(Family::Archive, (Bound::Included(&at), Bound::Unbounded), &mut |key, _| {
                let (Some(owner), Some(id)) = (keys::number_at(key, 0), keys::number_at(key, 8)) else {
                    return ControlFlow::Continue(());
                };
                if id < before && found.len() < limit {
                    found.push((owner, id));
                    return ControlFlow::Continue(());
                }
                next = Some(if id < before { owner } else { owner + 1 });
                ControlFlow::Break(())
            })?;
            match next {
                Some(owner) if found.len() < limit => at = keys::dated(owner, 0),
                next => return Ok((found, next)),
            }
        }
    }

    /// Marks of deletions with an id below `before`, the oldest first, at most `limit`.
    pub fn marks(&self, before: u64, limit: usize) -> Result<Vec<Key>, StoreError> {
        let (from, to) = (keys::mark(0, &[]), keys::mark(before, &[]));
        let rows = self.rows(Family::System, keys::span(&from, Some(&to)), (Way::Forth, limit))?;
        Ok(rows.into_iter().map(|(key, _)| key).collect())
    }

    fn records(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Whole>, StoreError> {
        let end = keys::end_of(prefix);
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let span = (from, end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        self.cells(Family::Record, span, (Way::Forth, limit))
    }

    fn cells(&self, family: Family, span: Span<'_>, how: (Way, usize)) -> Result<Vec<Whole>, StoreError> {
        let mut found = Vec::new();
        for (key, row) in self.rows(family, span, how)? {
            // A row that is not there was deleted while its chunks were being read.
            found.extend(self.whole(family, key, Some(row))?);
        }
        Ok(found)
    }

    fn rows(
        &self,
        family: Family,
        span: Span<'_>,
        (way, limit): (Way, usize),
    ) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        let limit = limit.min(MAX_PAGE);
        let mut rows = Vec::new();
        if limit == 0 || is_empty(span) {
            return Ok(rows);
        }
        let visit = &mut |key: &[u8], row: &[u8]| {
            if value::is_deleted(family, row) {
                return ControlFlow::Continue(());
            }
            rows.push((key.to_vec(), row.to_vec()));
            if rows.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        match way {
            Way::Forth => self.kv.range(family, span, visit)?,
            Way::Back => self.kv.range_back(family, span, visit)?,
        }
        Ok(rows)
    }

    /// A row with all its bytes; `row` is the row if it was read already. `None` if there is none, or no longer.
    fn whole(&self, family: Family, key: Key, mut row: Option<Vec<u8>>) -> Result<Option<Whole>, StoreError> {
        for _ in 0..TRIES {
            if row.is_none() {
                row = self.kv.get(family, &key)?;
            }
            let Some(bytes) = row.take() else { return Ok(None) };
            let cell = Cell::decode(family, bytes)?;
            if cell.deleted {
                return Ok(None);
            }
            if let Some(value) = self.body(&cell.body)? {
                return Ok(Some(Whole { key, cell, value }));
            }
            // Chunks are missing: the value was replaced meanwhile, else the store is damaged.
            row = self.kv.get(family, &key)?;
            if row.clone().map(|row| Cell::decode(family, row)).transpose()?.is_some_and(|now| now.body == cell.body) {
                return Err(StoreError::Corrupt(format!("a value of family {} lacks chunks", family.name()).into()));
            }
        }
        Err(unsteady())
    }

    /// The bytes of a body; `None` if chunks are missing.
    pub fn body(&self, body: &Body) -> Result<Option<Bytes>, StoreError> {
        let (blob, len) = match body {
            Body::Inline(value) => return Ok(Some(value.clone())),
            // The bytes are the archive's.
            Body::Archived { .. } => return Ok(Some(Bytes::new())),
            Body::Chunked { blob, len } => (*blob, *len),
        };
        let (from, to) = (keys::chunk(blob, 0), keys::chunk(blob, value::chunks(len)));
        let mut value = BytesMut::with_capacity((len as usize).min(tavi_store::limits::MAX_VALUE));
        self.kv.range(Family::Chunk, keys::span(&from, Some(&to)), &mut |_, chunk| {
            value.extend_from_slice(chunk);
            if value.len() < len as usize { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok((value.len() == len as usize).then(|| value.freeze()))
    }
}

impl Whole {
    fn number_at(&self, at: usize) -> Result<u64, StoreError> {
        number_at(&self.key, at)
    }

    /// The item in the key of a record.
    fn item(&self) -> Result<Box<str>, StoreError> {
        item(&self.key)
    }

    fn into_record(self) -> Record {
        Record { version: self.cell.number, value: self.value }
    }

    fn into_archive(self, page: &mut Page<'_>) -> Result<ArchiveRow, StoreError> {
        let with = page.name(self.cell.number)?.ok_or_else(nameless)?;
        Ok(ArchiveRow { id: self.number_at(8)?, with, retracted: self.cell.retracted, value: self.value })
    }
}

/// The item in the key of a record.
pub(crate) fn item(key: &[u8]) -> Result<Box<str>, StoreError> {
    let item = key.get(9..).and_then(|item| std::str::from_utf8(item).ok());
    item.map(Box::from).ok_or_else(|| StoreError::Corrupt("a record's key has a wrong form".into()))
}

fn number_at(key: &[u8], at: usize) -> Result<u64, StoreError> {
    keys::number_at(key, at).ok_or_else(|| StoreError::Corrupt("a key is too short".into()))
}

/// The topic in the key of a walk.
fn topic(key: &[u8]) -> Result<Box<str>, StoreError> {
    let topic = key.get(1..).and_then(|topic| std::str::from_utf8(topic).ok());
    topic.map(Box::from).ok_or_else(|| StoreError::Corrupt("a walk's key has a wrong form".into()))
}

fn unsteady() -> StoreError {
    StoreError::Unavailable("a value changes faster than it can be read".into())
}

fn nameless() -> StoreError {
    StoreError::Corrupt("a correspondent has no name".into())
}

/// The keys before and behind the wanted part of an archive.
fn bounds(query: &ArchiveQuery, key: impl Fn(u64) -> Key) -> (Key, Key) {
    (key(query.after.unwrap_or(0)), key(query.before.unwrap_or(u64::MAX)))
}

/// Engines refuse or panic at ranges that end before they begin.
fn is_empty((from, to): Span<'_>) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => from >= to,
        _ => false,
    }
}
