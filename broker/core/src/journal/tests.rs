//! The journal alone: what is noted is read again, wherever the process was killed.

use super::{Book, Journal, Medium, Sent, Standing, note::Note};
use crate::{Bound, journal::Noted};
use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};
use tavi_xmpp_proto::jid::{BareJid, Jid};

/// A medium that can be looked at and made to fail.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Sheet>>);

#[derive(Default)]
struct Sheet {
    bytes: Vec<u8>,
    renewed: usize,
    fails: bool,
    torn: bool,
}

impl Medium for Paper {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut sheet = self.0.lock();
        if sheet.fails {
            return Err(io::ErrorKind::StorageFull.into());
        }
        sheet.bytes.extend(bytes);
        Ok(())
    }

    fn renew(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut sheet = self.0.lock();
        sheet.bytes = bytes.to_vec();
        sheet.renewed += 1;
        Ok(())
    }

    fn give_up(&mut self) {
        self.0.lock().torn = true;
    }
}

const WINDOW: Bound = Bound { items: 10, bytes: 1_000 };

fn jid(stream: u64) -> Jid {
    format!("user{stream}@localhost/phone").parse().unwrap()
}

fn note() -> impl Strategy<Value = Note> {
    let (stream, number, row) = (0..4u64, 0..12u32, 0..20u64);
    let owner = (0..3u64).prop_map(|n| BareJid::new(&format!("owner{n}"), "localhost").unwrap());
    let text = proptest::option::of(prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from));
    let sent = prop_oneof![
        row.clone().prop_map(Sent::Row),
        (row.clone(), any::<bool>(), text.clone()).prop_map(|(place, copy, text)| Sent::Stanza { place, copy, text }),
    ];
    let standing = (any::<[bool; 4]>(), any::<i8>(), text, 0..3u64, 0..3u64).prop_map(
        |(flags, priority, presence, directed, marks)| {
            let [available, receiving, interested, carbons] = flags;
            let directed = (0..directed).map(jid).collect();
            let marks = (0..marks).map(|mark| format!("mark {mark}").into()).collect();
            Standing { available, receiving, interested, carbons, priority, presence, directed, marks }
        },
    );
    prop_oneof![
        1 => stream.clone().prop_map(|stream| {
            Note::Begins { stream, noted: Box::new(Noted::new(&format!("name{stream}"), jid(stream), WINDOW)) }
        }),
        1 => (stream.clone(), standing).prop_map(|(stream, standing)| Note::Stands { stream, standing: Box::new(standing) }),
        4 => (stream.clone(), sent).prop_map(|(stream, sent)| Note::Sent { stream, sent }),
        2 => (stream.clone(), 0..4u32).prop_map(|(stream, count)| Note::Acked { stream, count }),
        1 => (stream.clone(), prop::collection::vec(row.clone(), 0..5))
            .prop_map(|(stream, places)| Note::Remains { stream, places }),
        1 => prop::collection::vec(row.clone(), 0..5).prop_map(|rows| Note::Deleted { rows }),
        4 => (stream.clone(), number.clone(), row, owner)
            .prop_map(|(stream, number, row, owner)| Note::Coming { stream, number, row, owner }),
        2 => (stream.clone(), number.clone()).prop_map(|(stream, number)| Note::Landed { stream, number }),
        2 => (stream.clone(), number).prop_map(|(stream, handled)| Note::Counted { stream, handled }),
        1 => stream.prop_map(|stream| Note::Ends { stream }),
    ]
}

proptest! {
    #[test]
    fn what_was_written_is_read_and_a_page_that_is_written_anew_says_the_same(
        notes in prop::collection::vec(note(), 0..60),
    ) {
        let (mut book, mut bytes) = (Book::default(), Vec::new());
        for note in notes {
            note.encode(&mut bytes);
            book.apply(note);
        }
        prop_assert!(Book::read(bytes) == Some(book.clone()));
        prop_assert_eq!(Book::read(book.encode()), Some(book));
    }

    #[test]
    fn a_page_that_is_cut_off_says_what_its_whole_notes_say(
        notes in prop::collection::vec(note(), 1..20), cut in any::<prop::sample::Index>(),
    ) {
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for note in &notes {
            note.encode(&mut bytes);
            ends.push(bytes.len());
        }
        let cut = cut.index(bytes.len() + 1);
        let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
        let mut book = Book::default();
        notes.into_iter().take(whole).for_each(|note| book.apply(note));
        prop_assert_eq!(Book::read(bytes[..cut].to_vec()), Some(book));
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Book::read(bytes);
    }
}

fn opened(paper: &Paper) -> Arc<Journal> {
    let journal = Arc::new(Journal::over(Box::new(paper.clone())));
    journal.open();
    journal
}

fn streams(paper: &Paper) -> Vec<Noted> {
    Book::read(paper.0.lock().bytes.clone()).unwrap().close().0
}

#[test]
fn nothing_is_written_before_it_is_opened_and_then_all_that_was_noted() {
    let paper = Paper::default();
    let journal = Arc::new(Journal::over(Box::new(paper.clone())));
    journal.stream(1).unwrap().begin_new("a", &jid(1), WINDOW);
    journal.flush();
    assert_eq!(paper.0.lock().renewed, 0);
    journal.open();
    assert_eq!(streams(&paper).len(), 1);
}

#[test]
fn a_long_page_is_written_anew_and_stays_as_short_as_what_it_says() {
    let paper = Paper::default();
    let journal = opened(&paper);
    let notes = journal.stream(1).unwrap();
    notes.begin_new("a", &jid(1), WINDOW);
    for handled in 0..4_000_000 {
        notes.counted(handled);
        if handled % 1_000 == 0 {
            journal.flush();
        }
    }
    journal.flush();
    assert!(paper.0.lock().renewed > 1);
    assert!(paper.0.lock().bytes.len() < 2 * super::RENEW_BYTES);
    assert_eq!(streams(&paper)[0].handled, 3_999_999);
}

#[test]
fn a_journal_that_cannot_be_written_is_taken_away_and_the_broker_goes_on() {
    let paper = Paper::default();
    let journal = opened(&paper);
    let notes = journal.stream(1).unwrap();
    notes.begin_new("a", &jid(1), WINDOW);
    paper.0.lock().fails = true;
    journal.flush();
    assert!(paper.0.lock().torn);
    notes.counted(1);
    notes.end();
    journal.flush();
    journal.open();
}

#[test]
fn who_has_no_journal_notes_nothing() {
    let journal = Arc::new(Journal::none());
    assert!(journal.stream(1).is_none());
    journal.deleted(vec![1]);
    journal.open();
    journal.flush();
}

/// Writes when it is let, and says when it was asked.
struct Slow {
    asked: mpsc::Sender<()>,
    let_go: mpsc::Receiver<()>,
    written: Arc<AtomicBool>,
}

impl Medium for Slow {
    fn append(&mut self, _: &[u8]) -> io::Result<()> {
        self.asked.send(()).unwrap();
        self.let_go.recv().unwrap();
        self.written.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn renew(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn give_up(&mut self) {}
}

/// Two threads flush at once: the second one's note is on its way with the first one's write, and it may not go on before.
#[test]
fn a_flush_waits_for_the_write_of_another_that_carries_its_note() {
    let ((asked, was_asked), (let_it, let_go)) = (mpsc::channel(), mpsc::channel());
    let written = Arc::new(AtomicBool::new(false));
    let journal = Arc::new(Journal::over(Box::new(Slow { asked, let_go, written: written.clone() })));
    journal.open();
    let jid = "romeo@localhost/orchard".parse().unwrap();
    journal.stream(1).unwrap().begin_new("first", &jid, Bound { items: 1, bytes: 1 });
    let flush = || {
        let (journal, written) = (journal.clone(), written.clone());
        thread::spawn(move || {
            journal.flush();
            written.load(Ordering::SeqCst)
        })
    };
    let first = flush();
    was_asked.recv().unwrap();
    assert!(journal.dirty.load(Ordering::Acquire), "what is being written is not with the kernel yet");
    let second = flush();
    let_it.send(()).unwrap();
    assert!(first.join().unwrap());
    assert!(second.join().unwrap());
    assert!(!journal.dirty.load(Ordering::Acquire));
}
