//! One note, as bytes: its length, a kind, the fields.

use super::book::Noted;
use crate::{
    backlog::Bound,
    bus::word::{Damaged, byte, number, put_bytes, read_bytes, read_jid},
    homes::{Marks, SessionEntry},
};
use bytes::{Buf, BufMut, Bytes};
use std::sync::Arc;
use tavi_xmpp_proto::{
    jid::{BareJid, Jid},
    stanza::Stanza,
};

/// One thing that happened to the stream of this number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// It began, or was taken over from an earlier process.
    Begins { stream: u64, noted: Box<Noted> },
    /// How its session stands.
    Stands { stream: u64, standing: Box<Standing> },
    /// Something is about to be sent.
    Sent { stream: u64, sent: Sent },
    /// Its client has the first so many of what is in flight.
    Acked { stream: u64, count: u32 },
    /// Of what was in flight only these are there to be sent again, by their places.
    Remains { stream: u64, places: Vec<u64> },
    /// The rows of acknowledged messages are gone for good.
    Deleted { rows: Vec<u64> },
    /// This row was acknowledged and may not be deleted yet.
    Settled { row: u64, owner: BareJid },
    /// Its stanza of this number is about to be saved as this row of this owner.
    Coming { stream: u64, number: u32, row: u64, owner: BareJid },
    /// Its stanza of this number is where it is to be.
    Landed { stream: u64, number: u32 },
    /// Its client may know that so many of its stanzas are handled.
    Counted { stream: u64, handled: u32 },
    /// It has ended.
    Ends { stream: u64 },
}

/// Something in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A row of the owner's queue, with this id.
    Row(u64),
    /// What has no row.
    Stanza {
        /// Its place.
        place: u64,
        /// It ends with its session.
        copy: bool,
        /// Its text; `None`: it is only counted.
        text: Option<Bytes>,
    },
}

/// How a session stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// See [`SessionEntry`], as the others.
    pub(crate) available: bool,
    pub(crate) receiving: bool,
    pub(crate) interested: bool,
    pub(crate) carbons: bool,
    pub(crate) priority: i8,
    /// Its presence, as text.
    pub(crate) presence: Option<Bytes>,
    pub(crate) directed: Vec<Jid>,
    pub(crate) marks: Marks,
}

impl Standing {
    pub(super) fn of(session: &SessionEntry) -> Standing {
        let text = |presence: &Stanza| {
            let mut out = Vec::new();
            presence.write(&mut out);
            Bytes::from(out)
        };
        Standing {
            available: session.available,
            receiving: session.receiving,
            interested: session.interested,
            carbons: session.carbons,
            priority: session.priority,
            presence: session.presence.as_deref().map(text),
            directed: few(&session.directed),
            marks: session.marks.clone(),
        }
    }

    /// The session stands so again.
    pub(crate) fn restore(&self, session: &mut SessionEntry) {
        session.available = self.available;
        session.receiving = self.receiving;
        session.interested = self.interested;
        session.carbons = self.carbons;
        session.priority = self.priority;
        session.presence = self.presence.as_ref().and_then(|text| Stanza::parse(text).ok()).map(Arc::new);
        session.directed.clone_from(&self.directed);
        session.marks.clone_from(&self.marks);
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (presence, marked) = (self.presence.is_some(), self.marks.iter().len() > 0);
        let flags = [self.available, self.receiving, self.interested, self.carbons, presence, marked];
        out.put_u8(flags.iter().rev().fold(0, |bits, flag| bits << 1 | u8::from(*flag)));
        out.put_i8(self.priority);
        put_bytes(out, self.presence.as_deref().unwrap_or_default());
        out.put_u32(self.directed.len() as u32);
        self.directed.iter().for_each(|jid| put_bytes(out, jid.as_str().as_bytes()));
        if marked {
            out.put_u32(self.marks.iter().len() as u32);
            self.marks.iter().for_each(|mark| put_bytes(out, mark.as_bytes()));
        }
    }

    fn decode(input: &mut Bytes) -> Result<Standing, Damaged> {
        let flags = byte(input)?;
        let has = |bit: u8| flags & 1 << bit != 0;
        let priority = byte(input)? as i8;
        let presence = Some(read_bytes(input)?).filter(|_| has(4));
        let directed = (0..count(input)?).map(|_| read_jid(input)).collect::<Result<_, _>>()?;
        // A page of an earlier version has none.
        let marks = if has(5) { count(input)? } else { 0 };
        let marks = (0..marks).map(|_| read_mark(input)).collect::<Result<_, _>>()?;
        let (available, receiving, interested, carbons) = (has(0), has(1), has(2), has(3));
        Ok(Standing { available, receiving, interested, carbons, priority, presence, directed, marks })
    }
}

fn read_mark(input: &mut Bytes) -> Result<Box<str>, Damaged> {
    let text = read_bytes(input)?;
    std::str::from_utf8(&text).map(Box::from).map_err(|_| Damaged)
}

/// The first of many: all of it is noted anew whenever the session changes how it stands. Who is not among them does not
/// hear of the end of a session that outlived the process.
fn few(directed: &[Jid]) -> Vec<Jid> {
    let mut bytes = 0;
    let fits = |jid: &&Jid| {
        bytes += jid.as_str().len();
        bytes <= NOTED_DIRECTED
    };
    directed.iter().take_while(fits).cloned().collect()
}

/// Bytes of the names to whom a session has directed its presence that are noted.
const NOTED_DIRECTED: usize = 4 * 1024;

impl Sent {
    /// Its place.
    pub fn place(&self) -> u64 {
        match self {
            Sent::Row(place) | Sent::Stanza { place, .. } => *place,
        }
    }

    /// The id of its row, if it has one.
    pub(crate) fn row(&self) -> Option<u64> {
        match self {
            Sent::Row(id) => Some(*id),
            Sent::Stanza { .. } => None,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.place());
        match self {
            Sent::Row(_) => out.put_u8(0),
            Sent::Stanza { copy, text, .. } => {
                out.put_u8(1 | u8::from(*copy) << 1 | u8::from(text.is_some()) << 2);
                put_bytes(out, text.as_deref().unwrap_or_default());
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Sent, Damaged> {
        let place = number(input)?;
        match byte(input)? {
            0 => Ok(Sent::Row(place)),
            flags => {
                let text = Some(read_bytes(input)?).filter(|_| flags & 4 != 0);
                Ok(Sent::Stanza { place, copy: flags & 2 != 0, text })
            }
        }
    }
}

impl Note {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.put_u32(0);
        out.put_u8(self.kind());
        match self {
            Note::Begins { stream, noted } => {
                out.put_u64(*stream);
                put_noted(out, noted);
            }
            Note::Stands { stream, standing } => {
                out.put_u64(*stream);
                standing.encode(out);
            }
            Note::Sent { stream, sent } => {
                out.put_u64(*stream);
                sent.encode(out);
            }
            Note::Deleted { rows } => put_ids(out, rows),
            Note::Remains { stream, places } => {
                out.put_u64(*stream);
                put_ids(out, places);
            }
            Note::Settled { row, owner } => {
                out.put_u64(*row);
                put_bytes(out, owner.as_str().as_bytes());
            }
            Note::Coming { stream, number, row, owner } => {
                out.put_u64(*stream);
                out.put_u32(*number);
                out.put_u64(*row);
                put_bytes(out, owner.as_str().as_bytes());
            }
            Note::Acked { stream, count: number }
            | Note::Landed { stream, number }
            | Note::Counted { stream, handled: number } => {
                out.put_u64(*stream);
                out.put_u32(*number);
            }
            Note::Ends { stream } => out.put_u64(*stream),
        }
        let len = (out.len() - begin - 4) as u32;
        out[begin..begin + 4].copy_from_slice(&len.to_be_bytes());
    }

    /// Reads the next one; `None` at the end, and where a note is cut off: the process was killed just there.
    pub(super) fn read(input: &mut Bytes) -> Result<Option<Note>, Damaged> {
        let Some(len) = input.get(..4).and_then(|len| len.try_into().ok()).map(u32::from_be_bytes) else {
            return Ok(None);
        };
        if input.len() - 4 < len as usize {
            return Ok(None);
        }
        input.advance(4);
        Note::decode(&mut input.split_to(len as usize)).map(Some)
    }

    fn decode(input: &mut Bytes) -> Result<Note, Damaged> {
        Ok(match byte(input)? {
            1 => Note::Begins { stream: number(input)?, noted: Box::new(read_noted(input)?) },
            2 => Note::Stands { stream: number(input)?, standing: Box::new(Standing::decode(input)?) },
            3 => Note::Sent { stream: number(input)?, sent: Sent::decode(input)? },
            4 => Note::Acked { stream: number(input)?, count: count(input)? },
            5 => Note::Deleted { rows: read_ids(input)? },
            6 => Note::Coming {
                stream: number(input)?,
                number: count(input)?,
                row: number(input)?,
                owner: read_jid(input)?.to_bare(),
            },
            7 => Note::Landed { stream: number(input)?, number: count(input)? },
            8 => Note::Counted { stream: number(input)?, handled: count(input)? },
            9 => Note::Ends { stream: number(input)? },
            11 => Note::Remains { stream: number(input)?, places: read_ids(input)? },
            10 => Note::Settled { row: number(input)?, owner: read_jid(input)?.to_bare() },
            _ => return Err(Damaged),
        })
    }

    fn kind(&self) -> u8 {
        match self {
            Note::Begins { .. } => 1,
            Note::Stands { .. } => 2,
            Note::Sent { .. } => 3,
            Note::Acked { .. } => 4,
            Note::Deleted { .. } => 5,
            Note::Coming { .. } => 6,
            Note::Landed { .. } => 7,
            Note::Counted { .. } => 8,
            Note::Ends { .. } => 9,
            Note::Settled { .. } => 10,
            Note::Remains { .. } => 11,
        }
    }
}

fn put_ids(out: &mut Vec<u8>, ids: &[u64]) {
    out.put_u32(ids.len() as u32);
    ids.iter().for_each(|id| out.put_u64(*id));
}

fn read_ids(input: &mut Bytes) -> Result<Vec<u64>, Damaged> {
    (0..count(input)?).map(|_| number(input)).collect()
}

fn put_noted(out: &mut Vec<u8>, noted: &Noted) {
    put_bytes(out, noted.name.as_bytes());
    put_bytes(out, noted.jid.as_str().as_bytes());
    out.put_u64(noted.window.items as u64);
    out.put_u64(noted.window.bytes as u64);
    out.put_u32(noted.acknowledged);
    out.put_u32(noted.handled);
}

/// What is in flight, how the session stands and what is under way follow as notes of their own.
fn read_noted(input: &mut Bytes) -> Result<Noted, Damaged> {
    let name = read_bytes(input)?;
    let name = std::str::from_utf8(&name).map_err(|_| Damaged)?;
    let jid = read_jid(input)?;
    let window = Bound { items: number(input)? as usize, bytes: number(input)? as usize };
    let mut noted = Noted::new(name, jid, window);
    (noted.acknowledged, noted.handled) = (count(input)?, count(input)?);
    Ok(noted)
}

fn count(input: &mut Bytes) -> Result<u32, Damaged> {
    input.try_get_u32().map_err(|_| Damaged)
}
