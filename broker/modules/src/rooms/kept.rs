//! The rows of a persistent room: its settings, subject, affiliations and what was said in it.

use super::{
    config::{Config, STORED},
    room::{Affiliation, Limits, Room, Subject},
};
use bytes::Bytes;
use tavi_core::Envelope;
use tavi_store::{ArchiveQuery, Expect, Op, Owner, SharedStore, StoreError, Table, id::time_of};
use tavi_xmpp_proto::{BareJid, Element, Stanza};

/// Rows of one page.
const PAGE: usize = 1_000;
/// The rows in [`Table::Room`].
pub(super) const CONFIG: &str = "";
const SUBJECT: &str = "subject";

/// Whose rows they are.
pub(super) fn owner(room: &BareJid) -> Owner {
    Owner::room(room.as_str())
}

fn put(table: Table, item: &str, value: Bytes) -> Op {
    Op::Put { table, item: item.into(), value, expect: Expect::Any }
}

pub(super) fn config(room: &Room) -> Op {
    put(Table::Room, CONFIG, room.config.to_row(&room.creator))
}

pub(super) fn subject(subject: &Subject) -> Op {
    let row = Element::new(STORED, "subject").text(subject.text.clone());
    let set = subject.set.as_ref();
    let row = row.attr_opt("by", set.map(|(by, _)| by.to_string()));
    let row = row.attr_opt("time", set.map(|(_, time_ms)| time_ms.to_string()));
    put(Table::Room, SUBJECT, row.to_xml("").into())
}

fn read_subject(row: &[u8]) -> Option<Subject> {
    let row = Element::parse(row, "").ok()?;
    let set = row.get_attr("by").zip(row.get_attr("time"));
    let set = set.and_then(|(by, time)| Some((by.parse().ok()?, time.parse().ok()?)));
    Some(Subject { text: row.text_content(), set })
}

/// The row of an affiliation, or that there is none any more.
pub(super) fn affiliation(user: &BareJid, affiliation: Affiliation, given_ms: u64) -> Op {
    if affiliation == Affiliation::None {
        return unaffiliated(user);
    }
    put(Table::Affiliation, user.as_str(), format!("{} {given_ms}", affiliation.name()).into())
}

pub(super) fn unaffiliated(user: &BareJid) -> Op {
    Op::Delete { table: Table::Affiliation, item: user.as_str().into(), expect: Expect::Any }
}

fn read_affiliation(row: &[u8]) -> Option<(Affiliation, u64)> {
    let (name, given_ms) = std::str::from_utf8(row).ok()?.split_once(' ')?;
    Some((Affiliation::from_name(name)?, given_ms.parse().ok()?))
}

/// What was said, in the room's archive under its place.
pub(super) fn said(id: u64, by: &BareJid, said: &Envelope) -> Op {
    Op::Archive { id, with: by.as_str().into(), value: said.to_bytes() }
}

impl Room {
    /// All rows of a room that is to last from now on. What was said in it before stays with those who heard it.
    pub(super) fn rows(&self) -> Vec<Op> {
        let affiliations = self.affiliations.iter().map(|(user, (what, given_ms))| affiliation(user, *what, *given_ms));
        [config(self), subject(&self.subject)].into_iter().chain(affiliations).collect()
    }
}

/// A persistent room as its rows have it; `None` if there is none.
pub(super) async fn load(store: &SharedStore, jid: &BareJid, limits: &Limits) -> Result<Option<Room>, StoreError> {
    let owner = owner(jid);
    // What was handed in for this room before is there when this is.
    store.commit(&owner, Vec::new()).await?;
    let Some(row) = store.load(&owner, Table::Room, CONFIG).await? else { return Ok(None) };
    let Some(read) = Config::of_row(&row.value) else {
        return Err(StoreError::Corrupt(format!("the settings of the room {jid}").into()));
    };
    let mut room = Room::kept(jid, read, limits.clone());
    let subject = store.load(&owner, Table::Room, SUBJECT).await?;
    room.subject = subject.and_then(|row| read_subject(&row.value)).unwrap_or_default();
    let mut after: Option<Box<str>> = None;
    loop {
        let rows = store.list(&owner, Table::Affiliation, after.as_deref(), PAGE).await?;
        let full = rows.len() == PAGE;
        for (user, record) in &rows {
            let read = user.parse().ok().zip(read_affiliation(&record.value));
            room.affiliations.extend(read);
        }
        after = rows.last().map(|(user, _)| user.clone());
        if !full || room.affiliations.len() >= limits.affiliations {
            break;
        }
    }
    let query = ArchiveQuery { newest: true, limit: limits.history_items, ..ArchiveQuery::default() };
    for row in store.archive(&owner, &query).await? {
        let Some(said) = Stanza::parse(&row.value).ok().filter(|_| !row.retracted) else { continue };
        room.history.push(jid.as_str(), &said.into(), time_of(row.id), (limits.history_items, limits.history_bytes));
    }
    Ok(Some(room))
}
