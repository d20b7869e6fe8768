//! All that the notes together say: kept beside the journal, so that it can be written anew, and read by the next
//! process.

use super::note::{Note, Sent, Standing};
use crate::backlog::Bound;
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use std::collections::VecDeque;
use tavi_xmpp_proto::jid::{BareJid, Jid};

/// What is known of all streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    streams: HashMap<u64, Noted>,
    /// Rows that were acknowledged and may not be deleted yet, and whose they are.
    settled: HashMap<u64, BareJid>,
}

/// What is known of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Its name, which nobody can guess.
    pub name: Box<str>,
    /// The full JID of its session.
    pub jid: Jid,
    /// How much may be in flight.
    pub window: Bound,
    /// Stanzas that its client has acknowledged, modulo 2³².
    pub acknowledged: u32,
    /// What was sent and is not acknowledged, in order.
    pub flight: VecDeque<Sent>,
    /// How many stanzas its client may know to be handled, modulo 2³².
    pub handled: u32,
    /// How its session stands.
    pub(crate) standing: Standing,
    /// Stanzas behind those, as they came.
    pub(crate) under_way: VecDeque<UnderWay>,
}

/// A client's stanza that is not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnderWay {
    /// Its number on the stream.
    pub(crate) number: u32,
    /// The row that it was to get, and whose; `None` if there is none.
    pub(crate) row: Option<(u64, BareJid)>,
    /// It is where it is to be.
    pub(crate) landed: bool,
}

impl Noted {
    pub(crate) fn new(name: &str, jid: Jid, window: Bound) -> Noted {
        Noted {
            name: name.into(),
            jid,
            window,
            acknowledged: 0,
            flight: VecDeque::new(),
            handled: 0,
            standing: Standing::default(),
            under_way: VecDeque::new(),
        }
    }

    /// A number that is counted is behind us, modulo 2³².
    fn is_counted(&self, number: u32) -> bool {
        self.handled.wrapping_sub(number) < u32::MAX / 2
    }

    fn remains(&mut self, places: &[u64]) {
        let places: HashSet<u64> = places.iter().copied().collect();
        self.flight.retain(|sent| places.contains(&sent.place()));
    }

    fn coming(&mut self, number: u32, row: (u64, BareJid)) {
        if let Some(stanza) = self.under_way(number).filter(|stanza| !stanza.landed) {
            stanza.row = Some(row);
        }
    }

    fn landed(&mut self, number: u32) {
        if let Some(stanza) = self.under_way(number) {
            (stanza.landed, stanza.row) = (true, None);
        }
    }

    /// The stanza of this number, unless it is counted.
    fn under_way(&mut self, number: u32) -> Option<&mut UnderWay> {
        if self.is_counted(number) {
            return None;
        }
        let found = self.under_way.iter().rposition(|other| other.number == number);
        if found.is_none() {
            self.under_way.push_back(UnderWay { number, row: None, landed: false });
        }
        self.under_way.get_mut(found.unwrap_or(self.under_way.len() - 1))
    }

    fn counted(&mut self, handled: u32) {
        self.handled = handled;
        self.under_way.retain(|stanza| handled.wrapping_sub(stanza.number) >= u32::MAX / 2);
        if self.under_way.is_empty() {
            self.under_way = VecDeque::new();
        }
    }

    fn notes(&self, stream: u64, out: &mut Vec<u8>) {
        Note::Begins { stream, noted: Box::new(self.clone()) }.encode(out);
        Note::Stands { stream, standing: Box::new(self.standing.clone()) }.encode(out);
        self.flight.iter().for_each(|sent| Note::Sent { stream, sent: sent.clone() }.encode(out));
        for UnderWay { number, row, landed } in &self.under_way {
            if let Some((row, owner)) = row.clone() {
                Note::Coming { stream, number: *number, row, owner }.encode(out);
            }
            if *landed {
                Note::Landed { stream, number: *number }.encode(out);
            }
        }
    }
}

impl Book {
    /// Reads the notes of an earlier process; what is cut off at the end never was seen by anybody. `None` if they are
    /// damaged.
    pub fn read(bytes: impl Into<Bytes>) -> Option<Book> {
        let (mut book, mut input) = (Book::default(), bytes.into());
        loop {
            match Note::read(&mut input) {
                Ok(Some(note)) => book.apply(note),
                Ok(None) => return Some(book),
                Err(_) => return None,
            }
        }
    }

    /// An account is removed: whoever has its name later inherits nothing.
    pub fn forget(&mut self, account: &BareJid) {
        self.streams.retain(|_, noted| noted.jid.to_bare() != *account);
        self.settled.retain(|_, owner| owner != account);
    }

    /// The streams, in the order in which they began, and the rows that are to be deleted.
    pub fn close(self) -> (Vec<Noted>, Vec<(u64, BareJid)>) {
        let mut streams: Vec<_> = self.streams.into_iter().collect();
        streams.sort_unstable_by_key(|(number, _)| *number);
        (streams.into_iter().map(|(_, noted)| noted).collect(), self.settled.into_iter().collect())
    }

    /// All of it as notes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.streams.iter().for_each(|(stream, noted)| noted.notes(*stream, &mut out));
        // Each as its own: only that it is settled matters, not whose stream had it.
        for (row, owner) in &self.settled {
            Note::Settled { row: *row, owner: owner.clone() }.encode(&mut out);
        }
        out
    }

    /// Whether a note says anything new.
    pub(super) fn wants(&self, note: &Note) -> bool {
        match note {
            Note::Begins { .. } | Note::Settled { .. } => true,
            Note::Deleted { rows } => rows.iter().any(|row| self.settled.contains_key(row)),
            Note::Stands { stream, standing } => {
                self.streams.get(stream).is_some_and(|noted| noted.standing != **standing)
            }
            Note::Sent { stream, .. }
            | Note::Acked { stream, .. }
            | Note::Remains { stream, .. }
            | Note::Coming { stream, .. }
            | Note::Landed { stream, .. }
            | Note::Counted { stream, .. }
            | Note::Ends { stream } => self.streams.contains_key(stream),
        }
    }

    pub(super) fn apply(&mut self, note: Note) {
        let (stream, note) = match note {
            Note::Begins { stream, noted } => return drop(self.streams.insert(stream, *noted)),
            Note::Deleted { rows } => return rows.iter().for_each(|row| drop(self.settled.remove(row))),
            Note::Settled { row, owner } => return drop(self.settled.insert(row, owner)),
            Note::Ends { stream } => return drop(self.streams.remove(&stream)),
            Note::Acked { stream, count } => return self.acknowledge(stream, count),
            Note::Stands { stream, .. }
            | Note::Sent { stream, .. }
            | Note::Remains { stream, .. }
            | Note::Coming { stream, .. }
            | Note::Landed { stream, .. }
            | Note::Counted { stream, .. } => (stream, note),
        };
        let Some(noted) = self.streams.get_mut(&stream) else { return };
        match note {
            Note::Stands { standing, .. } => noted.standing = *standing,
            Note::Sent { sent, .. } => noted.flight.push_back(sent),
            Note::Remains { places, .. } => noted.remains(&places),
            Note::Coming { number, row, owner, .. } => noted.coming(number, (row, owner)),
            Note::Landed { number, .. } => noted.landed(number),
            Note::Counted { handled, .. } => noted.counted(handled),
            _ => {}
        }
    }

    fn acknowledge(&mut self, stream: u64, count: u32) {
        let Some(noted) = self.streams.get_mut(&stream) else { return };
        noted.acknowledged = noted.acknowledged.wrapping_add(count);
        for sent in noted.flight.drain(..noted.flight.len().min(count as usize)) {
            if let Sent::Row(row) = sent {
                self.settled.insert(row, noted.jid.to_bare());
            }
        }
        if noted.flight.is_empty() {
            noted.flight = VecDeque::new();
        }
    }
}
