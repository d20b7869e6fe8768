//! What streams that can be resumed know (XEP-0198 §5), noted as it happens, so that they outlive the process.
//!
//! The rows of messages are durable before anything is acknowledged. This journal says the rest: which stanzas of a client
//! are dealt with, what is in flight to it in which order, and how its session stands. It is handed to the kernel, not
//! to the disk, so nobody waits for it: a process that is killed loses nothing of it; a machine that loses its power
//! loses all of it, and then clients bind anew and get what is stored.
//!
//! Two rules make it exact. A note is with the kernel before anything that it tells of can be seen outside:
//! [`Journal::flush`] comes before each write to a client. And where a message goes is noted before its row is saved, so
//! that the next process can see whether the row is there.

mod book;
mod note;

pub use book::{Book, Noted};
pub use note::{Sent, Standing};

use crate::{backlog::Bound, envelope::Envelope, homes::AccountState};
use note::Note;
use parking_lot::Mutex;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tavi_xmpp_proto::{
    jid::{BareJid, Jid},
    stanza::{PresenceType, StanzaType},
};

/// Where notes go.
pub trait Medium: Send {
    /// Adds bytes at the end. When it returns they outlive the process.
    ///
    /// # Errors
    /// They may be there in part; the journal is given up then.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// These bytes take the place of all that is there, in one step.
    ///
    /// # Errors
    /// What was there before stands.
    fn renew(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Removes all that is there: it is not true any more.
    fn give_up(&mut self);
}

/// So many bytes are added before the journal is written anew, at least; and so many times what it then needs.
const RENEW_BYTES: usize = 32 << 20;
const RENEW_TIMES: usize = 4;

/// The journal of a node.
pub struct Journal {
    /// There is one: else streams end with the process.
    kept: bool,
    /// Something is not with the kernel yet.
    dirty: AtomicBool,
    pages: Mutex<Pages>,
}

struct Pages {
    /// `None` before it is opened and after it was given up.
    medium: Option<Box<dyn Medium>>,
    open: bool,
    book: Book,
    out: Vec<u8>,
    /// Bytes since it was written anew, and when that is due.
    added: usize,
    due: usize,
}

impl Journal {
    /// None: streams end with the process.
    pub fn none() -> Journal {
        Journal::with(None)
    }

    /// One that is kept there; nothing is written before [`open`](Self::open).
    pub fn over(medium: Box<dyn Medium>) -> Journal {
        Journal::with(Some(medium))
    }

    fn with(medium: Option<Box<dyn Medium>>) -> Journal {
        let pages = Pages { open: false, book: Book::default(), out: Vec::new(), added: 0, due: RENEW_BYTES, medium };
        Journal { kept: pages.medium.is_some(), dirty: AtomicBool::new(false), pages: Mutex::new(pages) }
    }

    /// All that an earlier process left is restored: from now on this journal stands in its place.
    pub fn open(&self) {
        let mut pages = self.pages.lock();
        pages.open = true;
        pages.renew();
    }

    /// Hands all notes to the kernel. Comes before each write to a client.
    pub fn flush(&self) {
        if self.dirty.load(Ordering::Acquire) {
            let mut pages = self.pages.lock();
            pages.write_out();
            // Not before: who finds nothing to flush goes on as if all of it were with the kernel.
            self.dirty.store(false, Ordering::Release);
        }
    }

    /// A stream's notes; `None` if there is no journal.
    pub fn stream(self: &Arc<Self>, number: u64) -> Option<Notes> {
        self.kept.then(|| Notes { journal: self.clone(), number })
    }

    /// The row of a stream's message is about to be saved.
    pub(crate) fn coming(&self, envelope: &Envelope, owner: &BareJid) {
        if let Some((stream, number)) = origin(envelope) {
            self.note(Note::Coming { stream, number, row: envelope.meta.place, owner: owner.clone() });
            // Its row may be on the disk at any time from now on.
            self.flush();
        }
    }

    /// A stream's message is where it is to be, or needs not to be saved.
    pub(crate) fn landed(&self, envelope: &Envelope) {
        if let Some((stream, number)) = origin(envelope) {
            self.note(Note::Landed { stream, number });
        }
    }

    /// The rows of acknowledged messages are gone for good.
    pub(crate) fn deleted(&self, rows: Vec<u64>) {
        if self.kept && !rows.is_empty() {
            self.note(Note::Deleted { rows });
        }
    }

    fn note(&self, note: Note) {
        if !self.kept {
            return;
        }
        let mut pages = self.pages.lock();
        if pages.note(note) {
            self.dirty.store(true, Ordering::Release);
        }
    }
}

/// The stream that a stanza came on, if it is noted, and its number there.
fn origin(envelope: &Envelope) -> Option<(u64, u32)> {
    (envelope.meta.number != 0).then_some((envelope.meta.sender, envelope.meta.number))
}

impl Pages {
    /// True if there is something to be written.
    fn note(&mut self, note: Note) -> bool {
        if self.medium.is_none() || !self.book.wants(&note) {
            return false;
        }
        if self.open {
            note.encode(&mut self.out);
        }
        self.book.apply(note);
        self.open
    }

    fn write_out(&mut self) {
        let out = std::mem::take(&mut self.out);
        let Some(medium) = self.medium.as_mut().filter(|_| !out.is_empty()) else { return };
        self.added += out.len();
        if self.added > self.due {
            return self.renew();
        }
        if let Err(error) = medium.append(&out) {
            return self.give_up(&error);
        }
        self.out = out;
        self.out.clear();
        self.out.shrink_to(64 * 1024);
    }

    fn renew(&mut self) {
        let Some(medium) = &mut self.medium else { return };
        let all = self.book.encode();
        self.out.clear();
        (self.added, self.due) = (0, RENEW_BYTES.max(RENEW_TIMES * all.len()));
        if let Err(error) = medium.renew(&all) {
            self.give_up(&error);
        }
    }

    /// Half a journal would lie.
    fn give_up(&mut self, error: &io::Error) {
        tracing::error!(%error, "what streams need to outlive the process cannot be written; after the next start clients log in anew");
        if let Some(mut medium) = self.medium.take() {
            medium.give_up();
        }
        (self.book, self.out) = (Book::default(), Vec::new());
    }
}

/// The notes of one stream.
pub struct Notes {
    journal: Arc<Journal>,
    /// The number of its seat.
    number: u64,
}

impl Notes {
    /// The stream begins, or goes on in this process.
    pub(crate) fn begin(&self, noted: Noted) {
        self.journal.note(Note::Begins { stream: self.number, noted: Box::new(noted) });
    }

    /// A stream of this name begins for a session: nothing is in flight.
    pub fn begin_new(&self, name: &str, jid: &Jid, window: Bound) {
        self.begin(Noted::new(name, jid.clone(), window));
    }

    /// How its session stands.
    pub(crate) fn stands(&self, state: &mut AccountState) {
        if let Some(session) = state.session(self.number) {
            self.journal.note(Note::Stands { stream: self.number, standing: Box::new(Standing::of(session)) });
        }
    }

    /// These are about to be sent, with their places.
    pub fn sent(&self, items: &[(u64, Envelope)]) {
        for (place, envelope) in items {
            self.journal.note(Note::Sent { stream: self.number, sent: sent(*place, envelope) });
        }
    }

    /// The client has the first `count` of what is in flight.
    pub fn acknowledged(&self, count: usize) {
        if count > 0 {
            self.journal.note(Note::Acked { stream: self.number, count: count as u32 });
        }
    }

    /// Of what is in flight only these are there to be sent again, by their places.
    pub fn remains(&self, places: Vec<u64>) {
        self.journal.note(Note::Remains { stream: self.number, places });
    }

    /// The client is told that so many of its stanzas are handled.
    pub fn counted(&self, handled: u32) {
        self.journal.note(Note::Counted { stream: self.number, handled });
    }

    /// The stream has ended: nobody resumes it.
    pub fn end(&self) {
        self.journal.note(Note::Ends { stream: self.number });
    }

    /// The journal itself.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }
}

/// What has a row is read from there. Who comes back asks for the presences of others, so they are only counted.
fn sent(place: u64, envelope: &Envelope) -> Sent {
    if envelope.meta.queued.is_some() {
        return Sent::Row(place);
    }
    let known =
        matches!(envelope.head().type_, StanzaType::Presence(PresenceType::Available | PresenceType::Unavailable));
    let text = (!known).then(|| envelope.to_bytes());
    Sent::Stanza { place, copy: !envelope.is_lasting(), text }
}

#[cfg(test)]
mod tests;
