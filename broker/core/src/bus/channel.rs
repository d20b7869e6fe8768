//! One end of the way between two nodes, without IO: words are numbered, heard once and in order, and said again until
//! the other end says that it heard them. A window bounds what is under way; the rest waits here.

use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Words that are said and not known to be heard, at most.
const WINDOW: u64 = 64;
/// So long an end waits before it says again what was not heard, in milliseconds.
const AGAIN_MS: u64 = 200;

/// So many of them, the oldest: the others may have been heard, and a way that is full is not filled further.
const AGAIN: usize = 4;

/// What travels: a word with its number, if any, and how far the sender has heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The word.
    pub word: Option<(u64, Bytes)>,
    /// All words of the other end before this number are heard.
    pub heard: u64,
}

/// One end.
#[derive(Debug, Default)]
pub struct Channel {
    waiting: VecDeque<Bytes>,
    /// The number of the next word.
    next: u64,
    unheard: BTreeMap<u64, Bytes>,
    /// When what is unheard is said again.
    again_ms: u64,
    heard: u64,
    early: BTreeMap<u64, Bytes>,
    /// The other end does not know how far this one has heard.
    owes: bool,
}

impl Channel {
    /// Takes a word to be said.
    pub fn say(&mut self, word: Bytes) {
        self.waiting.push_back(word);
    }

    /// How many words wait or are not known to be heard: a sender may hold back by that.
    pub fn open(&self) -> usize {
        self.waiting.len() + self.unheard.len()
    }

    /// What is to be sent at `now_ms`.
    pub fn pieces(&mut self, now_ms: u64) -> Vec<Piece> {
        let mut numbers = Vec::new();
        if !self.unheard.is_empty() && now_ms >= self.again_ms {
            numbers.extend(self.unheard.keys().take(AGAIN).copied());
        }
        while (self.unheard.len() as u64) < WINDOW
            && let Some(word) = self.waiting.pop_front()
        {
            self.unheard.insert(self.next, word);
            numbers.push(self.next);
            self.next += 1;
        }
        if !numbers.is_empty() {
            self.again_ms = now_ms + AGAIN_MS;
        }
        let heard = self.heard;
        let said = |number| self.unheard.get(&number).map(|word| Piece { word: Some((number, word.clone())), heard });
        let mut pieces: Vec<Piece> = numbers.into_iter().filter_map(said).collect();
        if std::mem::take(&mut self.owes) && pieces.is_empty() {
            pieces.push(Piece { word: None, heard });
        }
        pieces
    }

    /// When [`pieces`](Self::pieces) has something to say again.
    pub fn next_ms(&self) -> Option<u64> {
        (!self.unheard.is_empty()).then_some(self.again_ms)
    }

    /// Takes what arrived. A piece that makes no sense is passed over.
    pub fn take(&mut self, piece: Piece) {
        if piece.heard <= self.next {
            self.unheard = self.unheard.split_off(&piece.heard);
        }
        let Some((number, word)) = piece.word else { return };
        self.owes = true;
        if (self.heard..self.heard + WINDOW).contains(&number) {
            self.early.insert(number, word);
        }
    }

    /// The next word in order.
    pub fn hear(&mut self) -> Option<Bytes> {
        let word = self.early.remove(&self.heard)?;
        self.heard += 1;
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_word_is_heard_once_and_in_order(
            dice in prop::collection::vec((any::<prop::sample::Index>(), 0..10u8), 0..600),
            words in 0..200u32,
        ) {
            let (mut one, mut other, mut way, mut now) = (Channel::default(), Channel::default(), Vec::new(), 0);
            let mut heard = Vec::new();
            (0..words).for_each(|n| one.say(n.to_be_bytes().to_vec().into()));
            let mut dice = dice.into_iter();
            while one.open() > 0 {
                now += 50;
                way.extend(one.pieces(now).into_iter().map(|piece| (true, piece)));
                way.extend(other.pieces(now).into_iter().map(|piece| (false, piece)));
                // When the dice are used up, the way is a good one.
                for _ in 0..way.len() {
                    let (at, fate) = dice.next().map_or((0, 9), |(at, fate)| (at.index(way.len()), fate));
                    let (there, piece) = if fate == 8 { way[at].clone() } else { way.remove(at) };
                    if fate < 3 {
                        continue;
                    }
                    if there { &mut other } else { &mut one }.take(piece);
                    heard.extend(std::iter::from_fn(|| other.hear()));
                    prop_assert!(one.unheard.len() as u64 <= WINDOW && other.early.len() as u64 <= WINDOW);
                }
            }
            prop_assert_eq!(heard, (0..words).map(|n| Bytes::from(n.to_be_bytes().to_vec())).collect::<Vec<_>>());
        }
    }
}
