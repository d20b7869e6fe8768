//! Looks at every row of a closed store: whether it can be read, and whether the rows agree with each other.

use crate::{
    Engine, OpenError, StoreError,
    folder::Folder,
    group::{SHORT, topic_of},
    keys::{self, Kind, Number},
    kv::{Family, Kv},
    layout, names, read,
    store::open_engine,
    value::{self, Body, CHUNK, Cell, InboxCell},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::{Bound, ControlFlow},
    path::Path,
};
use tavi_store::{QueueSize, Table};

/// At most so many problems are described; all are counted.
const DESCRIBED: usize = 100;
/// The progress is told every so many rows.
const STEP: u64 = 10_000;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The engine of the store.
    pub engine: Engine,
    /// How many rows were looked at.
    pub rows: u64,
    /// How many problems were found.
    pub problems: u64,
    /// The first hundred of them.
    pub described: Vec<String>,
}

/// Checks the store in the folder `path`, which no process may have open; `cache` is the engine's cache in bytes.
/// `progress` is called with the number of rows now and then. A damaged store gives a report, not an error.
pub fn check(path: &Path, cache: u64, progress: &mut dyn FnMut(u64)) -> Result<Report, OpenError> {
    let folder = Folder::lock(path)?;
    let current = folder.current()?.ok_or(OpenError::Empty { path: path.into() })?;
    let kv = open_engine(&folder, &current, cache)?;
    let report = Report { engine: current.engine, rows: 0, problems: 0, described: Vec::new() };
    let mut check = Check {
        kv: &*kv,
        names: HashMap::new(),
        dead: HashSet::new(),
        blobs: BTreeMap::new(),
        queues: BTreeMap::new(),
        bodies: BTreeMap::new(),
        walked: BTreeMap::new(),
        report,
        progress,
    };
    check.all()?;
    Ok(check.report)
}

struct Check<'a> {
    kv: &'a dyn Kv,
    /// All numbers with the kind of their names.
    names: HashMap<Number, Kind>,
    /// Numbers of purged owners whose rows are being swept.
    dead: HashSet<Number>,
    /// Lengths of the chunked values that rows speak of.
    blobs: BTreeMap<Number, u32>,
    /// What queues hold, by owner, and bodies that queued rows share, by id, as the rows say.
    queues: BTreeMap<Number, QueueSize>,
    bodies: BTreeMap<u64, QueueSize>,
    /// How many topics a walk must meet, by the table's code.
    walked: BTreeMap<u8, u64>,
    report: Report,
    progress: &'a mut dyn FnMut(u64),
}

type Row<'r> = (&'r [u8], &'r [u8]);

impl Check<'_> {
    fn all(&mut self) -> Result<(), OpenError> {
        let marks = layout::marks(self.kv)?;
        self.dead = marks.dead.iter().copied().collect();
        self.each(Family::Owner, Check::owner)?;
        self.each(Family::Name, Check::name)?;
        self.each(Family::Record, Check::record)?;
        self.each(Family::Walk, Check::walk)?;
        self.each(Family::Queue, Check::queued)?;
        self.each(Family::Body, Check::body)?;
        self.each(Family::QueueSize, Check::queue_size)?;
        self.each(Family::Archive, Check::archive)?;
        self.each(Family::ArchiveWith, Check::archive_with)?;
        self.each(Family::Inbox, Check::inbox)?;
        self.each(Family::InboxTime, Check::inbox_time)?;
        self.each(Family::Outbox, |check, (key, _)| check.owned(Family::Outbox, keys::number_at(key, 8)))?;
        self.sums()?;
        self.chunks()?;
        self.marks(marks.next, marks.last)
    }

    /// Shows each row of a family to `look`, which says what is wrong with it.
    fn each(
        &mut self,
        family: Family,
        look: impl Fn(&mut Self, Row<'_>) -> Result<(), String>,
    ) -> Result<(), OpenError> {
        let kv = self.kv;
        kv.range(family, (Bound::Unbounded, Bound::Unbounded), &mut |key, row| {
            self.report.rows += 1;
            if self.report.rows.is_multiple_of(STEP) {
                (self.progress)(self.report.rows);
            }
            if let Err(problem) = look(self, (key, row)) {
                self.problem(format!("{} {}: {problem}", family.name(), hex(key)));
            }
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    fn problem(&mut self, problem: String) {
        self.report.problems += 1;
        if self.report.described.len() < DESCRIBED {
            self.report.described.push(problem);
        }
    }

    fn owner(&mut self, (key, row): Row<'_>) -> Result<(), String> {
        let number = keys::number_at(key, 0).ok_or("the key is too short")?;
        let (kind, name) = names::decode(row).map_err(text)?;
        self.names.insert(number, kind);
        match names::number_of(self.kv, kind, &name).map_err(text)? {
            Some(other) if other == number => Ok(()),
            other => Err(format!("the name {name:?} leads to {other:?}")),
        }
    }

    fn name(&mut self, (_, row): Row<'_>) -> Result<(), String> {
        let number = value::number(Family::Name, row).map_err(text)?;
        if self.names.contains_key(&number) { Ok(()) } else { Err(format!("number {number} has no name")) }
    }

    fn record(&mut self, (key, row): Row<'_>) -> Result<(), String> {
        let table = key.first().and_then(|code| Table::from_code(*code)).ok_or("no such table")?;
        let item = read::item(key).map_err(text)?;
        if item.is_empty() && Table::WALKED.contains(&table) && !value::is_deleted(Family::Record, row) {
            self.walkable(table, keys::number_at(key, 1).ok_or("no owner")?)?;
        }
        let version = self.cell(Family::Record, (key, row), keys::number_at(key, 1)).map(|()| row[1..9] != [0; 8])?;
        if version { Ok(()) } else { Err("version 0".into()) }
    }

    /// A record of a topic stands in its table's walk.
    fn walkable(&mut self, table: Table, owner: Number) -> Result<(), String> {
        let Some((Kind::Owner, name)) = names::name_of(self.kv, owner).map_err(text)? else { return Ok(()) };
        let Some(topic) = topic_of(&name) else { return Ok(()) };
        *self.walked.entry(table.code()).or_default() += 1;
        self.exists(Family::Walk, &keys::walk(table, topic), owner)
    }

    fn walk(&mut self, (key, row): Row<'_>) -> Result<(), String> {
        let table = key.first().and_then(|code| Table::from_code(*code)).ok_or("no such table")?;
        let owner = value::number(Family::Walk, row).map_err(text)?;
        let record = self.kv.get(Family::Record, &keys::record(table, owner, "")).map_err(text)?;
        match record {
            Some(record) if !value::is_deleted(Family::Record, &record) => Ok(()),
            _ => Err("its record is missing".into()),
        }
    }

    fn queued(&mut self, (key, row): Row<'_>) -> Result<(), String> {
        let owner = keys::number_at(key, 0);
        self.cell(Family::Queue, (key, row), owner)?;
        let cell = Cell::decode(Family::Queue, row.to_vec()).map_err(text)?;
        let size = self.queues.entry(owner.unwrap_or(0)).or_default();
        *size = QueueSize { rows: size.rows + 1, bytes: size.bytes + cell.len() };
        self.viewed(&cell, key)?;
        if let Some(share) = cell.share {
            let rows = self.bodies.get(&share.id).map_or(0, |body| body.rows);
            self.bodies.insert(share.id, QueueSize { rows: rows + 1, bytes: u64::from(share.len) });
        }
        Ok(())
    }

    /// A view has its stanza, of the length that it says.
    fn viewed(&self, cell: &Cell, key: &[u8]) -> Result<(), String> {
        if !cell.is_view() || keys::number_at(key, 0).is_some_and(|owner| self.dead.contains(&owner)) {
            return Ok(());
        }
        let stanza = self.kv.get(Family::Archive, key).map_err(text)?.ok_or("its archived stanza is missing")?;
        let stanza = Cell::decode(Family::Archive, stanza).map_err(text)?;
        if !stanza.retracted && stanza.len() == cell.len() {
            return Ok(());
        }
        Err(format!("{} bytes, but its archived stanza has {}", cell.len(), stanza.len()))
    }

    /// A shared body, or the number of the rows that name it.
    fn body(&mut self, (key, row): Row<'_>) -> Result<(), String> {
        let id = keys::number_at(key, 0).ok_or("the key is too short")?;
        let named = self.bodies.get(&id).copied().ok_or("no row names it")?;
        if key.get(8) == Some(&0) {
            let kept = value::decode_size(row).map_err(text)?;
            return if kept == named { Ok(()) } else { Err(format!("{kept:?}, but the rows say {named:?}")) };
        }
        self.bodies.remove(&id);
        if self.kv.get(Family::Body, &keys::body_count(id)).map_err(text)?.is_none() {
            return Err("the number of its rows is missing".into());
        }
        let cell = Cell::decode(Family::Body, row.to_vec()).map_err(text)?;
        if cell.len() != named.bytes {
            return Err(format!("{} bytes, but the rows say {}", cell.len(), named.bytes));
        }
        self.chunked(&cell)
    }

    fn queue_size(&mut self, (key, row): Row<'_>) -> Result<(), String> {
        let owner = keys::number_at(key, 0).ok_or("the key is too short")?;
        let (kept, is) = (value::decode_size(row).map_err(text)?, self.queues.remove(&owner).unwrap_or_default());
        if kept == is || self.dead.contains(&owner) { Ok(()) } else { Err(format!("{kept:?}, but there are {is:?}")) }
    }

    fn archive(&mut self, (key, row): Row<'_>) -> Result<(), String> {
        let owner = keys::number_at(key, 0);
        self.cell(Family::Archive, (key, row), owner)?;
        let with = Cell::decode(Family::Archive, row.to_vec()).map_err(text)?.number;
        self.correspondent(with)?;
        let (owner, id) = (owner.ok_or("no owner")?, keys::number_at(key, 8).ok_or("no id")?);
        self.exists(Family::ArchiveWith, &keys::archive_with(owner, with, id), owner)
    }

    fn archive_with(&mut self, (key, _): Row<'_>) -> Result<(), String> {
        let [owner, with, id] = triple(key)?;
        self.owned(Family::ArchiveWith, Some(owner))?;
        let row = self.kv.get(Family::Archive, &keys::dated(owner, id)).map_err(text)?;
        let cell = row.map(|row| Cell::decode(Family::Archive, row)).transpose().map_err(text)?;
        let there = cell.is_some_and(|cell| cell.number == with) || self.dead.contains(&owner);
        if there { Ok(()) } else { Err("no such stanza in the archive".into()) }
    }

    fn inbox(&mut self, (key, row): Row<'_>) -> Result<(), String> {
        let (owner, with) = (keys::number_at(key, 0).ok_or("no owner")?, keys::number_at(key, 8).ok_or("no one")?);
        self.owned(Family::Inbox, Some(owner))?;
        self.correspondent(with)?;
        let cell = InboxCell::decode(row).map_err(text)?;
        self.exists(Family::InboxTime, &keys::inbox_time(owner, cell.last, with), owner)
    }

    fn inbox_time(&mut self, (key, _): Row<'_>) -> Result<(), String> {
        let [owner, inverted, with] = triple(key)?;
        self.owned(Family::InboxTime, Some(owner))?;
        match self.kv.get(Family::Inbox, &keys::inbox(owner, with)).map_err(text)? {
            Some(row) if InboxCell::decode(&row).map_err(text)?.last == !inverted => Ok(()),
            _ if self.dead.contains(&owner) => Ok(()),
            _ => Err("no such conversation in the inbox".into()),
        }
    }

    /// A row with a value: it can be read, its owner is known, its chunks are remembered.
    fn cell(&mut self, family: Family, (_, row): Row<'_>, owner: Option<Number>) -> Result<(), String> {
        self.owned(family, owner)?;
        self.chunked(&Cell::decode(family, row.to_vec()).map_err(text)?)
    }

    fn chunked(&mut self, cell: &Cell) -> Result<(), String> {
        match cell.body {
            Body::Chunked { blob, .. } if self.blobs.contains_key(&blob) => {
                Err("another row has the same chunks".into())
            }
            Body::Chunked { blob, len } => {
                self.blobs.insert(blob, len);
                Ok(())
            }
            Body::Inline(_) | Body::Archived { .. } => Ok(()),
        }
    }

    fn owned(&self, family: Family, owner: Option<Number>) -> Result<(), String> {
        let owner = owner.ok_or_else(|| format!("a key of {} is too short", family.name()))?;
        let known = self.names.get(&owner) == Some(&Kind::Owner) || self.dead.contains(&owner);
        if known { Ok(()) } else { Err(format!("owner {owner} is unknown")) }
    }

    fn correspondent(&self, with: Number) -> Result<(), String> {
        let known = self.names.get(&with) == Some(&Kind::With);
        if known { Ok(()) } else { Err(format!("correspondent {with} is unknown")) }
    }

    fn exists(&self, family: Family, key: &[u8], owner: Number) -> Result<(), String> {
        let there = self.kv.get(family, key).map_err(text)?.is_some() || self.dead.contains(&owner);
        if there { Ok(()) } else { Err(format!("its row in {} is missing", family.name())) }
    }

    /// What rows speak of and no row told.
    fn sums(&mut self) -> Result<(), OpenError> {
        for id in std::mem::take(&mut self.bodies).into_keys() {
            self.problem(format!("body {id}: rows name it, but it is missing"));
        }
        for (owner, size) in std::mem::take(&mut self.queues) {
            if size.rows > SHORT && !self.dead.contains(&owner) {
                self.problem(format!("queue_s: owner {owner} has {size:?}, but there is no row for it"));
            }
        }
        for table in Table::WALKED {
            let topics = self.walked.get(&table.code()).copied().unwrap_or(0);
            let kept = self.kv.get(Family::System, &keys::count(table))?;
            let kept = kept.map_or(Ok(0), |row| value::number(Family::System, &row))?;
            if kept != topics {
                self.problem(format!("system: {kept} topics of {table:?} are counted, there are {topics}"));
            }
        }
        Ok(())
    }

    /// Each chunked value is whole, and each chunk belongs to a value.
    fn chunks(&mut self) -> Result<(), OpenError> {
        let mut found: BTreeMap<Number, u64> = BTreeMap::new();
        let kv = self.kv;
        kv.range(Family::Chunk, (Bound::Unbounded, Bound::Unbounded), &mut |key, chunk| {
            self.report.rows += 1;
            let (blob, index) = (keys::number_at(key, 0).unwrap_or(0), key.get(8..).unwrap_or_default());
            let bytes = found.entry(blob).or_default();
            // Chunks come in order, and all but the last are full.
            let place = (bytes.div_ceil(CHUNK as u64) as u32).to_be_bytes();
            if index != place || !bytes.is_multiple_of(CHUNK as u64) {
                self.problem(format!("chunk {}: out of its place", hex(key)));
            }
            *found.entry(blob).or_default() += chunk.len() as u64;
            ControlFlow::Continue(())
        })?;
        for (blob, len) in std::mem::take(&mut self.blobs) {
            let bytes = found.remove(&blob).unwrap_or(0);
            if bytes != u64::from(len) {
                self.problem(format!("value {blob} has {bytes} bytes of {len}"));
            }
        }
        found.into_keys().for_each(|blob| self.problem(format!("chunks of value {blob} belong to no row")));
        Ok(())
    }

    /// The counters stand above everything that was drawn from them.
    fn marks(&mut self, next: Number, last: u64) -> Result<(), OpenError> {
        let mut greatest = 0;
        let newest = [(Family::Queue, 8), (Family::Archive, 8), (Family::Outbox, 0)];
        for (family, at) in newest {
            let mut see = |key: &[u8], _: &[u8]| {
                greatest = greatest.max(keys::number_at(key, at).unwrap_or(0));
                ControlFlow::Continue(())
            };
            self.kv.range(family, (Bound::Unbounded, Bound::Unbounded), &mut see)?;
        }
        if greatest > last {
            self.problem(format!("system: the last id is {last}, but there is a row with {greatest}"));
        }
        if let Some(number) = self.names.keys().max().filter(|number| **number >= next) {
            self.problem(format!("system: the next number is {next}, but {number} is given"));
        }
        Ok(())
    }
}

fn triple(key: &[u8]) -> Result<[u64; 3], String> {
    let at = |at| keys::number_at(key, at).ok_or("the key is too short");
    Ok([at(0)?, at(8)?, at(16)?])
}

fn text(error: StoreError) -> String {
    error.to_string()
}

fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
