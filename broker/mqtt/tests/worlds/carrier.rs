//! The way between two worlds: it loses, repeats, delays and reorders what it carries; both ends number their words and
//! say them again until they are heard.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

use crate::order::Dice;

/// Words that one end has said and that were not heard, at most.
const WINDOW: usize = 8;

/// One end of the way between a link and its home.
#[derive(Default)]
pub struct End {
    /// The number of the next word.
    next: u64,
    unheard: BTreeMap<u64, Bytes>,
    /// All words of the other end before this one were heard.
    heard: u64,
    early: BTreeMap<u64, Bytes>,
}

/// What is on its way.
#[derive(Clone)]
pub struct Piece {
    pub link: u64,
    pub to_home: bool,
    word: Option<(u64, Bytes)>,
    heard: u64,
}

impl End {
    pub fn has_room(&self) -> bool {
        self.unheard.len() < WINDOW
    }

    pub fn is_quiet(&self) -> bool {
        self.unheard.is_empty() && self.early.is_empty()
    }

    pub fn says(&mut self, word: Bytes) {
        self.unheard.insert(self.next, word);
        self.next += 1;
    }

    /// All that was not heard, once more, and how far this end has heard.
    pub fn pieces(&self, link: u64, to_home: bool) -> impl Iterator<Item = Piece> {
        let words = self.unheard.iter().map(|(number, word)| Some((*number, word.clone())));
        words.chain([None]).map(move |word| Piece { link, to_home, word, heard: self.heard })
    }

    pub fn takes(&mut self, piece: Piece) {
        self.unheard = self.unheard.split_off(&piece.heard);
        if let Some((number, word)) = piece.word.filter(|(number, _)| *number >= self.heard) {
            self.early.insert(number, word);
        }
    }

    /// The next word in order.
    pub fn hears(&mut self) -> Option<Bytes> {
        let word = self.early.remove(&self.heard)?;
        self.heard += 1;
        Some(word)
    }
}

/// The way itself.
#[derive(Default)]
pub struct Way {
    pieces: Vec<Piece>,
    pub lossless: bool,
}

impl Way {
    pub fn carries(&mut self, pieces: impl Iterator<Item = Piece>) {
        self.pieces.extend(pieces);
    }

    /// What nodes said that have gone does not arrive any more.
    pub fn keeps(&mut self, links: &BTreeSet<u64>) {
        self.pieces.retain(|piece| links.contains(&piece.link));
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Any of the pieces arrives, or is lost, or arrives and stays under way.
    pub fn next(&mut self, dice: &mut Dice) -> Option<Piece> {
        if self.pieces.is_empty() {
            return None;
        }
        let at = dice.below(self.pieces.len());
        match dice.below(10) {
            0..=1 if !self.lossless => drop(self.pieces.swap_remove(at)),
            2 if !self.lossless => return Some(self.pieces[at].clone()),
            _ => return Some(self.pieces.swap_remove(at)),
        }
        None
    }
}
