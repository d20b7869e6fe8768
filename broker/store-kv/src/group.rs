//! Turns the operations of many commits into the rows of one batch.

use crate::{
    StoreError,
    cache::Cache,
    keys::{self, Kind, Number},
    kv::{Family, Key, Kv, Rows, Undo},
    names,
    value::{self, Body, CHUNK, Cell, InboxCell, Share},
    young::Value,
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};
use tavi_store::{InboxRow, Op, Owner, Place, QueueSize, Table};

/// What the committer knows from one group to the next.
#[derive(Default)]
pub(crate) struct Marks {
    /// The next number for a name or a chunked value.
    pub next: Number,
    /// The greatest id that is on disk.
    pub last: u64,
    /// Purged owners whose rows are still to be swept.
    pub dead: BTreeSet<Number>,
    /// Numbers of names.
    pub names: Cache<Named, Number>,
    /// Conversations by owner and correspondent. A purged owner's number never comes again, so his need no care.
    pub inbox: Cache<(Number, Number), InboxCell>,
    /// How much the queues of owners hold; of a purged owner as with conversations.
    pub queues: Cache<Number, Held>,
    /// Rows that were queued lately, under ids that nothing was ever queued under, and have all they are in themselves;
    /// with their lengths. Most are deleted soon, need not be read for that, and leave no trace.
    pub pushed: Cache<(Number, u64), u64>,
}

/// Whose number is remembered: asked for as `(Kind, &str)`.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Named(Kind, Box<str>);

impl hashbrown::Equivalent<Named> for (Kind, &str) {
    fn equivalent(&self, named: &Named) -> bool {
        self.0 == named.0 && *self.1 == *named.1
    }
}

/// The size of a queue of at most so many rows is written nowhere: they are counted when somebody asks. Nearly all
/// queues are so short, and their sizes would be as many rows again as their messages.
pub(crate) const SHORT: u64 = 64;

/// What a queue holds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Held {
    size: QueueSize,
    /// There is a row that says so.
    written: bool,
}

/// A batch in the making: each commit sees what those before it in the batch wrote.
pub(crate) struct Group<'a> {
    kv: &'a dyn Kv,
    marks: &'a mut Marks,
    rows: Rows,
    /// How to take the commit in progress back.
    undo: Undo,
    /// Where the plain rows of the commit in progress begin.
    began: (usize, usize),
    /// The conversations that the commit in progress has changed.
    talked: Vec<(Number, Number)>,
    /// The owners whose queues the commit in progress has changed.
    queued: Vec<Number>,
    /// The rows of queues that the commit in progress has written or deleted.
    touched: Vec<(Number, u64)>,
    next: Number,
    last: u64,
    purged: Vec<(Owner, Number)>,
}

/// A finished batch, and what is true once it is durable.
pub(crate) struct Finished {
    pub rows: Rows,
    pub last: u64,
    /// Owners that it purges, with the numbers that they had.
    pub purged: Vec<(Owner, Number)>,
}

impl<'a> Group<'a> {
    pub fn new(kv: &'a dyn Kv, marks: &'a mut Marks) -> Group<'a> {
        let (next, last) = (marks.next, marks.last);
        let (undo, talked, queued, purged) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let rows = Rows::above(last);
        let began = (0, 0);
        Group { kv, marks, rows, undo, began, talked, queued, touched: Vec::new(), next, last, purged }
    }

    /// Takes in one commit: all of it, or nothing and the reason.
    pub fn commit(&mut self, owner: &Owner, ops: &[Op]) -> Result<(), StoreError> {
        self.undo.clear();
        self.began = self.rows.mark();
        self.talked.clear();
        self.queued.clear();
        self.touched.clear();
        let purged = self.purged.len();
        let mut part = Part { number: None, group: self, owner };
        let done = ops.iter().try_for_each(|op| part.apply(op));
        if done.is_err() {
            self.take_back(owner, ops, purged);
        } else {
            self.last = ops.iter().filter_map(Op::id).fold(self.last, u64::max);
        }
        done
    }

    /// The batch with its marks.
    pub fn finish(mut self) -> Finished {
        if self.next != self.marks.next {
            self.set(Family::System, keys::NEXT.to_vec(), Some(self.next.to_be_bytes().to_vec()));
        }
        if self.last != self.marks.last {
            self.set(Family::System, keys::LAST.to_vec(), Some(self.last.to_be_bytes().to_vec()));
        }
        self.marks.next = self.next;
        Finished { rows: self.rows, last: self.last, purged: self.purged }
    }

    fn take_back(&mut self, owner: &Owner, ops: &[Op], purged: usize) {
        self.rows.reset(self.began);
        while let Some((family, key, before)) = self.undo.pop() {
            self.rows.unset(family, key, before);
        }
        self.purged.truncate(purged);
        // The commit may have given numbers to these names, or taken them away.
        self.marks.names.forget(&(Kind::Owner, owner.as_str()));
        for op in ops {
            if let Op::Archive { with, .. } | Op::Inbox { with, .. } = op {
                self.marks.names.forget(&(Kind::With, &**with));
            }
        }
        self.talked.iter().for_each(|row| self.marks.inbox.forget(row));
        self.queued.iter().for_each(|owner| self.marks.queues.forget(owner));
        self.touched.iter().for_each(|row| self.marks.pushed.forget(row));
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.rows.of(family).get(key) {
            Some(row) => Ok(row.clone()),
            None => self.kv.get(family, key),
        }
    }

    fn set(&mut self, family: Family, key: Key, value: Option<Vec<u8>>) {
        let before = self.rows.set(family, key.clone(), value);
        self.undo.push((family, key, before));
    }

    /// Before rows of queues are looked at.
    fn settle(&mut self) {
        self.rows.settle(std::mem::take(&mut self.began), &mut self.undo);
    }

    fn draw(&mut self) -> Number {
        self.next += 1;
        self.next - 1
    }

    fn number(&mut self, kind: Kind, name: &str) -> Result<Option<Number>, StoreError> {
        if let Some(number) = self.marks.names.get(&(kind, name)) {
            return Ok(Some(number));
        }
        let Some(row) = self.get(Family::Name, &keys::name(kind, name))? else { return Ok(None) };
        let number = value::number(Family::Name, &row)?;
        self.marks.names.insert(Named(kind, name.into()), number);
        Ok(Some(number))
    }

    fn number_or_new(&mut self, kind: Kind, name: &str) -> Result<Number, StoreError> {
        if let Some(number) = self.number(kind, name)? {
            return Ok(number);
        }
        let number = self.draw();
        let key = keys::name(kind, name);
        self.set(Family::Owner, keys::owner(number), Some(key.clone()));
        self.set(Family::Name, key, Some(number.to_be_bytes().to_vec()));
        self.marks.names.insert(Named(kind, name.into()), number);
        Ok(number)
    }

    fn cell(&self, family: Family, key: &[u8]) -> Result<Option<Cell>, StoreError> {
        self.get(family, key)?.map(|row| Cell::decode(family, row)).transpose()
    }

    /// As [`Group::cell`], for rows keyed by ids of the caller: an id above all that are on disk has no row there.
    fn dated_cell(&self, family: Family, key: &[u8], id: u64) -> Result<Option<Cell>, StoreError> {
        if id <= self.marks.last {
            return self.cell(family, key);
        }
        let row = self.rows.of(family).get(key).cloned().flatten();
        row.map(|row| Cell::decode(family, row)).transpose()
    }

    /// Writes a cell with `value` as its body, in chunks where it is too long for the row.
    fn write_cell(&mut self, family: Family, key: Key, cell: Cell, value: &Bytes) {
        let fits = cell.fits(family, value.len());
        let body = if fits { Body::Inline(value.clone()) } else { self.write_chunks(value) };
        self.set(family, key, Some(Cell { body, ..cell }.encode(family)));
    }

    fn write_chunks(&mut self, value: &Bytes) -> Body {
        let blob = self.draw();
        for (index, chunk) in value.chunks(CHUNK).enumerate() {
            self.set(Family::Chunk, keys::chunk(blob, index as u32), Some(chunk.to_vec()));
        }
        Body::Chunked { blob, len: value.len() as u32 }
    }

    fn delete_chunks(&mut self, cell: &Cell) {
        if let Body::Chunked { blob, len } = cell.body {
            (0..value::chunks(len)).for_each(|index| self.set(Family::Chunk, keys::chunk(blob, index), None));
        }
    }

    /// Deletes a row, and its chunks.
    pub fn delete_cell(&mut self, family: Family, key: Key, cell: &Cell) {
        self.delete_chunks(cell);
        self.set(family, key, None);
    }

    /// A number that is kept in a row; 0 if there is none.
    fn kept(&self, family: Family, key: &[u8]) -> Result<u64, StoreError> {
        self.get(family, key)?.map_or(Ok(0), |row| value::number(family, &row))
    }

    fn keep(&mut self, family: Family, key: Key, number: u64) {
        self.set(family, key, (number != 0).then(|| number.to_be_bytes().to_vec()));
    }

    /// One row more names the body; the first one writes it.
    fn share(&mut self, body: &tavi_store::Body) -> Result<Share, StoreError> {
        let mut now = self.shared(body.id)?;
        if now.rows == 0 {
            now.bytes = body.bytes.len() as u64;
            self.write_cell(Family::Body, keys::body(body.id), Cell::head(0), &body.bytes);
        }
        now.rows += 1;
        self.set(Family::Body, keys::body_count(body.id), Some(value::encode_size(now)));
        Ok(Share { id: body.id, len: now.bytes as u32 })
    }

    /// One row less names the body; the last one takes it along.
    fn release(&mut self, share: Share) -> Result<(), StoreError> {
        let mut now = self.shared(share.id)?;
        now.rows = now.rows.saturating_sub(1);
        self.set(Family::Body, keys::body_count(share.id), (now.rows != 0).then(|| value::encode_size(now)));
        let key = keys::body(share.id);
        let body = if now.rows == 0 { self.cell(Family::Body, &key)? } else { None };
        body.iter().for_each(|body| self.delete_cell(Family::Body, key.clone(), body));
        Ok(())
    }

    /// How many rows name a body, and how long it is.
    fn shared(&self, id: u64) -> Result<QueueSize, StoreError> {
        let row = self.get(Family::Body, &keys::body_count(id))?;
        row.map_or(Ok(QueueSize::default()), |row| value::decode_size(&row))
    }

    /// What a row of a queue has outside itself: its chunks, and its part in a shared body.
    fn unqueue(&mut self, cell: &Cell) -> Result<(), StoreError> {
        self.delete_chunks(cell);
        cell.share.map_or(Ok(()), |share| self.release(share))
    }

    /// The usual case of a new row, `len` bytes long: nothing is there, and it has nothing outside itself. False if it is
    /// another case.
    fn push_new(&mut self, (owner, id): (Number, u64), row: Value, len: u64) -> Result<bool, StoreError> {
        if !self.rows.is_above(id) {
            return Ok(false);
        }
        let before = self.queue_size(owner)?;
        self.rows.push_new(keys::place(owner, id), row);
        self.note_row((owner, id), Some(len));
        self.resize(owner, before, (None, Some(len)));
        Ok(true)
    }

    /// The usual case of a row that goes: a plain one that an earlier batch wrote lately; gives its length.
    fn lose_plain(&mut self, owner: Number, id: u64) -> Option<u64> {
        let len = self.marks.pushed.get(&(owner, id)).filter(|_| id <= self.rows.last)?;
        self.rows.lose(keys::place(owner, id));
        Some(len)
    }

    /// Notes that a row of a queue has all that it is in itself, and how long it is; or that nothing is known of it.
    fn note_row(&mut self, row: (Number, u64), len: Option<u64>) {
        match len {
            Some(len) => self.marks.pushed.insert(row, len),
            None => self.marks.pushed.forget(&row),
        }
        self.touched.push(row);
    }

    /// If the queued row is a view of an archived stanza, `now` stands there instead, or nothing; gives whether it is.
    fn change_view(&mut self, (owner, id): (Number, u64), now: Option<Cell>) -> Result<bool, StoreError> {
        self.settle();
        let Some(view) = self.cell(Family::Queue, &keys::dated(owner, id))?.filter(Cell::is_view) else {
            return Ok(false);
        };
        let before = self.queue_size(owner)?;
        self.replace_row((owner, id), before, (Some(&view), now));
        Ok(true)
    }

    /// Sets a queued row that has nothing to be written outside itself, or deletes it; the queue held `before`.
    fn replace_row(&mut self, (owner, id): (Number, u64), before: Held, (old, now): (Option<&Cell>, Option<Cell>)) {
        let lens = (old.map(Cell::len), now.as_ref().map(Cell::len));
        self.note_row((owner, id), None);
        self.set(Family::Queue, keys::dated(owner, id), now.map(|now| now.encode(Family::Queue)));
        self.resize(owner, before, lens);
    }

    /// Notes what a queue holds after one row of it was taken away and another one came; it held `before`.
    fn resize(&mut self, owner: Number, before: Held, (gone, come): (Option<u64>, Option<u64>)) {
        let mut size = before.size;
        size.rows = (size.rows + u64::from(come.is_some())).saturating_sub(u64::from(gone.is_some()));
        size.bytes = (size.bytes + come.unwrap_or(0)).saturating_sub(gone.unwrap_or(0));
        let written = size.rows > SHORT;
        if written || before.written {
            self.set(Family::QueueSize, keys::owner(owner), written.then(|| value::encode_size(size)));
        }
        self.marks.queues.insert(owner, Held { size, written });
        self.queued.push(owner);
    }

    fn queue_size(&mut self, owner: Number) -> Result<Held, StoreError> {
        if let Some(held) = self.marks.queues.get(&owner) {
            return Ok(held);
        }
        match self.get(Family::QueueSize, &keys::owner(owner))? {
            Some(row) => Ok(Held { size: value::decode_size(&row)?, written: true }),
            None => Ok(Held { size: self.count_queue(owner)?, written: false }),
        }
    }

    /// Counts a short queue, row by row, as this batch leaves it.
    fn count_queue(&mut self, owner: Number) -> Result<QueueSize, StoreError> {
        self.settle();
        let prefix = keys::owner(owner);
        let end = keys::end_of(&prefix);
        let span = keys::span(&prefix, end.as_deref());
        let mut rows = BTreeMap::new();
        self.kv.range(Family::Queue, span, &mut |key, row| {
            rows.insert(key.to_vec(), row.to_vec());
            ControlFlow::Continue(())
        })?;
        for (key, row) in self.rows.of(Family::Queue).range::<[u8], _>(span) {
            match row {
                Some(row) => drop(rows.insert(key.clone(), row.clone())),
                None => drop(rows.remove(key)),
            }
        }
        sum_rows(rows.into_values())
    }

    /// Enters a topic into the walk of a table, or strikes it out.
    fn walked(&mut self, (table, topic): (Table, &str), number: Option<Number>) -> Result<(), StoreError> {
        let count = keys::count(table);
        let topics = self.kept(Family::System, &count)?;
        let topics = if number.is_some() { topics + 1 } else { topics.saturating_sub(1) };
        self.keep(Family::System, count, topics);
        self.set(Family::Walk, keys::walk(table, topic), number.map(|number| number.to_be_bytes().to_vec()));
        Ok(())
    }

    /// Deletes the rows of a purged owner, at most `limit`; gives whether any may be left.
    pub fn sweep(&mut self, dead: Number, limit: usize) -> Result<bool, StoreError> {
        for (family, prefix, at) in ranges(dead) {
            let mut found = Vec::new();
            let end = keys::end_of(&prefix);
            self.kv.range(family, keys::span(&prefix, end.as_deref()), &mut |key, row| {
                if keys::number_at(key, at) == Some(dead) {
                    found.push((key.to_vec(), row.to_vec()));
                }
                if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            let any = !found.is_empty();
            found.into_iter().try_for_each(|(key, row)| self.sweep_row(family, key, row))?;
            if any {
                return Ok(true);
            }
        }
        self.set(Family::System, keys::dead(dead), None);
        Ok(false)
    }

    fn sweep_row(&mut self, family: Family, key: Key, row: Vec<u8>) -> Result<(), StoreError> {
        if matches!(family, Family::Record | Family::Archive | Family::Queue) {
            let cell = Cell::decode(family, row)?;
            self.unqueue(&cell)?;
            if family == Family::Record {
                self.unmark(&cell, &key);
            }
        }
        self.set(family, key, None);
        Ok(())
    }

    /// What stood in a record's place goes; if that is a mark, nobody has to look for it any more.
    fn unmark(&mut self, old: &Cell, record: &[u8]) {
        if old.deleted {
            self.set(Family::System, keys::mark(old.number, record), None);
        }
    }

    /// Forgets a mark, and the topic that it stands at if that has nothing else.
    pub fn forget(&mut self, mark: Key) -> Result<(), StoreError> {
        let (id, record) =
            keys::marked(&mark).ok_or_else(|| StoreError::Corrupt("a mark's key is too short".into()))?;
        let (record, owner) = (record.to_vec(), keys::number_at(record, 1));
        self.set(Family::System, mark, None);
        if self.cell(Family::Record, &record)?.is_none_or(|cell| !cell.deleted || cell.number != id) {
            return Ok(());
        }
        self.set(Family::Record, record, None);
        owner.map_or(Ok(()), |owner| self.forget_topic(owner))
    }

    /// Takes a topic's number back if it has no rows. Other owners keep theirs: they may stand in the outbox.
    fn forget_topic(&mut self, owner: Number) -> Result<(), StoreError> {
        let Some(key) = self.get(Family::Owner, &keys::owner(owner))? else { return Ok(()) };
        let (Kind::Owner, name) = names::decode(&key)? else { return Ok(()) };
        if topic_of(&name).is_none() || self.has_rows(owner)? {
            return Ok(());
        }
        self.set(Family::Name, key, None);
        self.set(Family::Owner, keys::owner(owner), None);
        self.marks.names.forget(&(Kind::Owner, &*name));
        Ok(())
    }

    fn has_rows(&mut self, owner: Number) -> Result<bool, StoreError> {
        self.settle();
        let mut any = false;
        for (family, prefix, _) in ranges(owner).into_iter().filter(|(family, ..)| *family != Family::Outbox) {
            let end = keys::end_of(&prefix);
            let span = keys::span(&prefix, end.as_deref());
            let rows = self.rows.of(family);
            any |= rows.range::<[u8], _>(span).any(|(_, row)| row.is_some());
            self.kv.range(family, span, &mut |key, _| {
                // This batch may have deleted it.
                any |= !rows.contains_key(key);
                if any { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if any {
                break;
            }
        }
        Ok(any)
    }

    /// Deletes an archived stanza whatever its age; gives whether there was one.
    pub fn expire(&mut self, owner: Number, id: u64) -> Result<bool, StoreError> {
        let key = keys::dated(owner, id);
        let Some(cell) = self.cell(Family::Archive, &key)? else { return Ok(false) };
        self.set(Family::ArchiveWith, keys::archive_with(owner, cell.number, id), None);
        // A queued row that is a view of it takes over its bytes, wherever they are.
        let by_value = Cell { body: cell.body.clone(), ..Cell::head(0) };
        if self.change_view((owner, id), Some(by_value))? {
            self.set(Family::Archive, key, None);
        } else {
            self.delete_cell(Family::Archive, key, &cell);
        }
        Ok(true)
    }
}

/// How many rows of a queue these are, and how long.
pub(crate) fn sum_rows(rows: impl Iterator<Item = Vec<u8>>) -> Result<QueueSize, StoreError> {
    let mut size = QueueSize::default();
    for row in rows {
        size.rows += 1;
        size.bytes += Cell::decode(Family::Queue, row)?.len();
    }
    Ok(size)
}

/// Where rows of a purged owner can be: family, prefix of their keys, and where the owner's number stands in them.
fn ranges(dead: Number) -> Vec<(Family, Key, usize)> {
    let records = Table::ALL.map(|table| (Family::Record, keys::record(table, dead, ""), 1));
    let own = [Family::Queue, Family::Archive, Family::ArchiveWith, Family::Inbox, Family::InboxTime];
    let own = own.into_iter().chain([Family::QueueSize]);
    let own = own.map(|family| (family, keys::owner(dead), 0));
    records.into_iter().chain(own).chain([(Family::Outbox, Key::new(), 8)]).collect()
}

/// One commit's share of the group.
struct Part<'g, 'a> {
    group: &'g mut Group<'a>,
    owner: &'g Owner,
    /// The owner's number, once it was looked up.
    number: Option<Number>,
}

impl Part<'_, '_> {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::Put { table, item, value, .. }
            | Op::Restore { table, item, value, .. }
            | Op::PutNewer { table, item, value, .. } => self.put(op, (*table, item), value),
            Op::Delete { table, item, .. } => self.delete(op, (*table, item)),
            Op::DeleteOlder { table, item, .. } | Op::DeleteThis { table, item, .. } => {
                self.delete_marked(op, (*table, item))
            }
            Op::QueuePush { id, value } => self.push(*id, value, None),
            Op::QueueShare { id, head, body } => {
                let share = self.group.share(body)?;
                self.push(*id, head, Some(share))
            }
            Op::QueueArchived { id } => self.push_view(*id),
            Op::QueueDelete { id } => self.queue_delete(*id),
            Op::QueueAck { upto } => self.queue_ack(*upto),
            Op::Archive { id, with, value } => self.archive(*id, with, value),
            Op::Retract { id, tombstone } => self.retract(*id, tombstone),
            Op::Inbox { with, last, unread, preview } => self.inbox(with, (*last, *unread, preview)),
            Op::Outbox { id } => {
                let owner = self.made()?;
                self.group.set(Family::Outbox, keys::outbox(*id, owner), Some(Vec::new()));
                Ok(())
            }
            Op::OutboxDelete { id } => self.if_known(|group, owner| {
                group.set(Family::Outbox, keys::outbox(*id, owner), None);
                Ok(())
            }),
            Op::Drawn { .. } => Ok(()),
            Op::Purge => self.purge(),
        }
    }

    /// The owner's number, if it has one.
    fn known(&mut self) -> Result<Option<Number>, StoreError> {
        if self.number.is_none() {
            self.number = self.group.number(Kind::Owner, self.owner.as_str())?;
        }
        Ok(self.number)
    }

    /// The owner's number, made where there was none.
    fn made(&mut self) -> Result<Number, StoreError> {
        if let Some(number) = self.known()? {
            return Ok(number);
        }
        let number = self.group.number_or_new(Kind::Owner, self.owner.as_str())?;
        self.number = Some(number);
        Ok(number)
    }

    /// An owner without a number has no rows, so there is nothing to do for it.
    fn if_known(
        &mut self,
        change: impl FnOnce(&mut Group<'_>, Number) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        match self.known()? {
            Some(owner) => change(self.group, owner),
            None => Ok(()),
        }
    }

    /// The row of a record, and what its place holds.
    fn place(&mut self, table: Table, item: &str) -> Result<(Option<Cell>, Place), StoreError> {
        let old = match self.known()? {
            Some(owner) => self.group.cell(Family::Record, &keys::record(table, owner, item))?,
            None => None,
        };
        let place = match &old {
            Some(cell) if cell.deleted => Place { version: 0, deleted: cell.number },
            Some(cell) => Place { version: cell.number, deleted: 0 },
            None => Place::default(),
        };
        Ok((old, place))
    }

    fn put(&mut self, op: &Op, (table, item): (Table, &str), value: &Bytes) -> Result<(), StoreError> {
        let (old, now) = self.place(table, item)?;
        let after = op.place_after(now)?;
        if matches!(op, Op::PutNewer { .. }) && after == now {
            return Ok(());
        }
        let owner = self.made()?;
        let key = keys::record(table, owner, item);
        if let Some(old) = old {
            self.group.delete_chunks(&old);
            self.group.unmark(&old, &key);
        }
        self.group.write_cell(Family::Record, key, Cell::head(after.version), value);
        self.walked((table, item), (now, after))
    }

    fn delete(&mut self, op: &Op, (table, item): (Table, &str)) -> Result<(), StoreError> {
        let (old, now) = self.place(table, item)?;
        let after = op.place_after(now)?;
        let (Some(owner), Some(old)) = (self.known()?, old.filter(|_| now.version != 0)) else { return Ok(()) };
        self.group.delete_cell(Family::Record, keys::record(table, owner, item), &old);
        self.walked((table, item), (now, after))
    }

    /// Leaves a mark in the record's place, so that what is older is ignored.
    fn delete_marked(&mut self, op: &Op, (table, item): (Table, &str)) -> Result<(), StoreError> {
        let (old, now) = self.place(table, item)?;
        let after = op.place_after(now)?;
        if after == now {
            return Ok(());
        }
        let owner = self.made()?;
        let key = keys::record(table, owner, item);
        if let Some(old) = old {
            self.group.delete_chunks(&old);
            self.group.unmark(&old, &key);
        }
        let mark = Cell { deleted: true, ..Cell::head(after.deleted) }.encode(Family::Record);
        self.group.set(Family::System, keys::mark(after.deleted, &key), Some(Vec::new()));
        self.group.set(Family::Record, key, Some(mark));
        self.walked((table, item), (now, after))
    }

    /// Keeps the walk through a table true to what a record's place held and holds.
    fn walked(&mut self, (table, item): (Table, &str), (now, after): (Place, Place)) -> Result<(), StoreError> {
        let (was, is) = (now.version != 0, after.version != 0);
        if was == is || !item.is_empty() || !Table::WALKED.contains(&table) {
            return Ok(());
        }
        let Some(topic) = topic_of(self.owner) else { return Ok(()) };
        let number = self.made()?;
        self.group.walked((table, topic), is.then_some(number))
    }

    fn push(&mut self, id: u64, value: &Bytes, share: Option<Share>) -> Result<(), StoreError> {
        let owner = self.made()?;
        let plain = share.is_none() && Cell::head(0).fits(Family::Queue, value.len());
        if plain && self.group.push_new((owner, id), Value::Plain(value.clone()), value.len() as u64)? {
            return Ok(());
        }
        self.group.settle();
        self.group.rows.saw(id);
        let key = keys::dated(owner, id);
        let before = self.group.queue_size(owner)?;
        let never = id > self.group.marks.last && !self.group.rows.of(Family::Queue).contains_key(&key);
        let old = if never { None } else { self.group.dated_cell(Family::Queue, &key, id)? };
        old.iter().try_for_each(|old| self.group.unqueue(old))?;
        let come = value.len() as u64 + share.map_or(0, |share| u64::from(share.len));
        let cell = Cell { share, ..Cell::head(0) };
        let plain = never && share.is_none() && cell.fits(Family::Queue, value.len());
        self.group.note_row((owner, id), plain.then_some(come));
        self.group.write_cell(Family::Queue, key, cell, value);
        self.group.resize(owner, before, (old.map(|old| old.len()), Some(come)));
        Ok(())
    }

    /// A row that is a view of the archived stanza; none if that is not there.
    fn push_view(&mut self, id: u64) -> Result<(), StoreError> {
        let Some(owner) = self.known()? else { return Ok(()) };
        let key = keys::dated(owner, id);
        let stanza = self.group.dated_cell(Family::Archive, &key, id)?.filter(|stanza| !stanza.retracted);
        let Some(stanza) = stanza else { return Ok(()) };
        let view = Cell { body: Body::Archived { len: stanza.len() as u32 }, ..Cell::head(0) };
        let row = view.encode(Family::Queue);
        if self.group.push_new((owner, id), Value::Whole(row.into()), view.len())? {
            return Ok(());
        }
        self.group.settle();
        self.group.rows.saw(id);
        let before = self.group.queue_size(owner)?;
        let old = self.group.dated_cell(Family::Queue, &key, id)?;
        old.iter().try_for_each(|old| self.group.unqueue(old))?;
        self.group.replace_row((owner, id), before, (old.as_ref(), Some(view)));
        Ok(())
    }

    fn queue_delete(&mut self, id: u64) -> Result<(), StoreError> {
        self.if_known(|group, owner| {
            let before = group.queue_size(owner)?;
            let gone = match group.lose_plain(owner, id) {
                Some(len) => len,
                None => {
                    group.settle();
                    let key = keys::dated(owner, id);
                    let Some(old) = group.dated_cell(Family::Queue, &key, id)? else { return Ok(()) };
                    group.unqueue(&old)?;
                    group.set(Family::Queue, key, None);
                    old.len()
                }
            };
            group.note_row((owner, id), None);
            group.resize(owner, before, (Some(gone), None));
            Ok(())
        })
    }

    fn queue_ack(&mut self, upto: u64) -> Result<(), StoreError> {
        self.if_known(|group, owner| {
            group.settle();
            let (first, end) = (keys::dated(owner, 0), keys::end_of(&keys::dated(owner, upto)));
            let span = keys::span(&first, end.as_deref());
            let mut ids: BTreeSet<Key> = BTreeSet::new();
            group.kv.range(Family::Queue, span, &mut |key, _| {
                ids.insert(key.to_vec());
                ControlFlow::Continue(())
            })?;
            ids.extend(group.rows.of(Family::Queue).range::<[u8], _>(span).map(|(key, _)| key.clone()));
            for key in ids {
                let Some(old) = group.cell(Family::Queue, &key)? else { continue };
                let before = group.queue_size(owner)?;
                group.unqueue(&old)?;
                keys::number_at(&key, 8).into_iter().for_each(|id| group.note_row((owner, id), None));
                group.set(Family::Queue, key, None);
                group.resize(owner, before, (Some(old.len()), None));
            }
            Ok(())
        })
    }

    fn archive(&mut self, id: u64, with: &str, value: &Bytes) -> Result<(), StoreError> {
        let owner = self.made()?;
        let with = self.group.number_or_new(Kind::With, with)?;
        let key = keys::dated(owner, id);
        if let Some(old) = self.group.dated_cell(Family::Archive, &key, id)? {
            self.group.delete_chunks(&old);
            self.group.set(Family::ArchiveWith, keys::archive_with(owner, old.number, id), None);
            let view = Cell { body: Body::Archived { len: value.len() as u32 }, ..Cell::head(0) };
            self.group.change_view((owner, id), Some(view))?;
        }
        self.group.write_cell(Family::Archive, key, Cell::head(with), value);
        self.group.set(Family::ArchiveWith, keys::archive_with(owner, with, id), Some(Vec::new()));
        Ok(())
    }

    fn retract(&mut self, id: u64, tombstone: &Bytes) -> Result<(), StoreError> {
        self.if_known(|group, owner| {
            let key = keys::dated(owner, id);
            let Some(old) = group.cell(Family::Archive, &key)? else { return Ok(()) };
            group.delete_chunks(&old);
            group.write_cell(Family::Archive, key, Cell { retracted: true, ..Cell::head(old.number) }, tombstone);
            group.change_view((owner, id), None).map(drop)
        })
    }

    fn inbox(&mut self, with: &str, (last, unread, preview): (u64, Option<u32>, &str)) -> Result<(), StoreError> {
        let owner = self.made()?;
        let number = self.group.number_or_new(Kind::With, with)?;
        let key = keys::inbox(owner, number);
        let old = match self.group.marks.inbox.get(&(owner, number)) {
            Some(cell) => Some(cell),
            None => self.group.get(Family::Inbox, &key)?.map(|row| InboxCell::decode(&row)).transpose()?,
        };
        let mut row = InboxRow { with: "".into(), last: 0, unread: 0, preview: "".into() };
        if let Some(old) = old {
            self.group.set(Family::InboxTime, keys::inbox_time(owner, old.last, number), None);
            row = InboxRow { last: old.last, unread: old.unread, preview: old.preview, ..row };
        }
        row.merge(last, unread, preview);
        let cell = InboxCell { last: row.last, unread: row.unread, preview: row.preview };
        self.group.set(Family::Inbox, key, Some(cell.encode()));
        self.group.set(Family::InboxTime, keys::inbox_time(owner, cell.last, number), Some(Vec::new()));
        self.group.marks.inbox.insert((owner, number), cell);
        self.group.talked.push((owner, number));
        Ok(())
    }

    /// A topic that is purged is not met any more.
    fn leave_walks(&mut self) -> Result<(), StoreError> {
        let Some(topic) = topic_of(self.owner) else { return Ok(()) };
        for table in Table::WALKED {
            if self.place(table, "")?.1.version != 0 {
                self.group.walked((table, topic), None)?;
            }
        }
        Ok(())
    }

    /// The owner loses its number, and its rows are swept later, so a purge is one small change however much it
    /// removes.
    fn purge(&mut self) -> Result<(), StoreError> {
        let Some(owner) = self.known()? else { return Ok(()) };
        self.leave_walks()?;
        self.group.set(Family::Name, keys::name(Kind::Owner, self.owner.as_str()), None);
        self.group.set(Family::Owner, keys::owner(owner), None);
        self.group.set(Family::System, keys::dead(owner), Some(Vec::new()));
        self.group.marks.names.forget(&(Kind::Owner, self.owner.as_str()));
        self.group.purged.push((self.owner.clone(), owner));
        self.number = None;
        Ok(())
    }
}

/// The topic that an owner is, if it is one.
pub(crate) fn topic_of(owner: &str) -> Option<&str> {
    owner.strip_prefix("t:")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fjall::Fjall;
    use tavi_store::Expect;

    struct World {
        kv: Fjall,
        marks: Marks,
        _dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let kv = Fjall::open(dir.path(), 1 << 20, 1 << 20).unwrap();
            World { kv, marks: Marks { next: 1, ..Marks::default() }, _dir: dir }
        }

        /// One batch of these commits, and what became of them.
        fn batch(&mut self, commits: &[Vec<Op>]) -> Vec<bool> {
            let mut group = Group::new(&self.kv, &mut self.marks);
            let done = commits.iter().map(|ops| group.commit(&Owner::topic("t"), ops).is_ok()).collect();
            let finished = group.finish();
            self.kv.write(finished.rows).unwrap();
            self.marks.last = finished.last;
            done
        }

        /// How many rows the queue says that it has, and how many there are.
        fn rows(&mut self) -> (u64, u64) {
            let owner = Owner::topic("t");
            let mut group = Group::new(&self.kv, &mut self.marks);
            let number = group.number(Kind::Owner, owner.as_str()).unwrap().unwrap();
            let (said, counted) = (group.queue_size(number).unwrap(), group.count_queue(number).unwrap());
            (said.size.rows, counted.rows)
        }
    }

    fn push(id: u64) -> Op {
        Op::QueuePush { id, value: Bytes::from_static(b"a row") }
    }

    fn conflict() -> Op {
        let expect = Expect::Version(77);
        Op::Put { table: Table::Retained, item: "".into(), value: Bytes::new(), expect }
    }

    #[test]
    fn of_a_commit_that_is_refused_nothing_is_remembered() {
        let mut world = World::new();
        assert_eq!(world.batch(&[vec![push(1)], vec![push(2), push(3), conflict()]]), [true, false]);
        assert_eq!(world.rows(), (1, 1));
        assert_eq!(world.batch(&[vec![push(4)]]), [true]);
        assert_eq!(world.batch(&[vec![Op::QueueDelete { id: 2 }]]), [true]);
        assert_eq!(world.rows(), (2, 2), "what was never there cannot go");
        assert_eq!(world.batch(&[vec![Op::QueueDelete { id: 1 }, conflict()]]), [false]);
        assert_eq!(world.batch(&[vec![Op::QueueDelete { id: 1 }]]), [true]);
        assert_eq!(world.rows(), (1, 1));
    }

    #[test]
    fn a_row_goes_once_and_one_of_the_same_batch_too() {
        let mut world = World::new();
        world.batch(&[vec![push(1), push(2)]]);
        for _ in 0..2 {
            world.batch(&[vec![Op::QueueDelete { id: 1 }]]);
            assert_eq!(world.rows(), (1, 1));
        }
        world.batch(&[vec![push(3)], vec![Op::QueueDelete { id: 3 }], vec![push(4), Op::QueueDelete { id: 4 }]]);
        assert_eq!(world.rows(), (1, 1));
        // Under an id that was there before.
        world.batch(&[vec![push(2)], vec![push(1)]]);
        assert_eq!(world.rows(), (2, 2));
        world.batch(&[vec![Op::QueueDelete { id: 1 }], vec![Op::QueueDelete { id: 2 }]]);
        assert_eq!(world.rows(), (0, 0));
    }
}
