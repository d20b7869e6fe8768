//! Which rows of a queue expire next: the first few in memory, and when to look for others in the store.
//!
//! However many rows there are, this takes the same memory. What it does not remember it finds again by looking through
//! the queue, a page at a time, with a pause between two rounds.

use std::collections::BTreeMap;

/// So many rows are remembered.
const SOON: usize = 64;
/// Milliseconds between two rounds.
const PAUSE_MS: u64 = 60_000;

/// What is known of a row that expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// Its bytes.
    pub(super) size: usize,
    pub(super) packet_id: u16,
}

/// When rows expire; times in milliseconds since 1970.
#[derive(Debug)]
pub(super) struct Expiring {
    /// When, and which.
    soon: BTreeMap<(u64, u64), Due>,
    /// No other row expires before this.
    rest_ms: u64,
    round: Option<Round>,
    pause_ms: u64,
}

/// A look through the queue.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// It has come so far.
    after: u64,
    /// No row that it has seen, or that came meanwhile, and is not remembered, expires before this.
    rest_ms: u64,
}

impl Expiring {
    /// Of a queue that may have rows of which nothing is known, or of an empty one.
    pub(super) fn new(unknown: bool) -> Expiring {
        let rest_ms = if unknown { 0 } else { u64::MAX };
        Expiring { soon: BTreeMap::new(), rest_ms, round: None, pause_ms: 0 }
    }

    /// The row `id` expires.
    pub(super) fn add(&mut self, at_ms: u64, id: u64, due: Due) {
        self.soon.insert((at_ms, id), due);
        if self.soon.len() > SOON
            && let Some(((at_ms, _), _)) = self.soon.pop_last()
        {
            self.leave(at_ms);
        }
    }

    /// A row that is not remembered expires at `at_ms`.
    fn leave(&mut self, at_ms: u64) {
        self.rest_ms = self.rest_ms.min(at_ms);
        if let Some(round) = &mut self.round {
            round.rest_ms = round.rest_ms.min(at_ms);
        }
    }

    /// The row does not expire any more.
    pub(super) fn remove(&mut self, at_ms: u64, id: u64) {
        self.soon.remove(&(at_ms, id));
    }

    /// The same, whenever it expires.
    pub(super) fn forget(&mut self, id: u64) {
        self.soon.retain(|(_, other), _| *other != id);
    }

    /// A row that has expired: when, which, and what is known of it.
    pub(super) fn pop(&mut self, now_ms: u64) -> Option<(u64, u64, Due)> {
        let first = self.soon.first_entry().filter(|first| first.key().0 <= now_ms)?;
        let ((at_ms, id), due) = first.remove_entry();
        Some((at_ms, id, due))
    }

    /// There may be expired rows that stand in somebody's way: no pause.
    pub(super) fn hurry(&mut self) {
        self.pause_ms = 0;
    }

    /// Behind which row to look for expired ones now, if it is time.
    pub(super) fn wants(&mut self, now_ms: u64) -> Option<u64> {
        if self.round.is_none() && (self.rest_ms > now_ms || self.pause_ms > now_ms) {
            return None;
        }
        Some(self.round.get_or_insert(Round { after: 0, rest_ms: u64::MAX }).after)
    }

    /// A look found a row that expires later.
    pub(super) fn found(&mut self, at_ms: u64, id: u64, due: Due) {
        if !self.soon.contains_key(&(at_ms, id)) {
            self.add(at_ms, id, due);
        }
    }

    /// A look found a row that expires, or has expired, and has to stay for now.
    pub(super) fn found_busy(&mut self, at_ms: u64) {
        self.leave(at_ms);
    }

    /// It has come to the row `upto`, or to the end.
    pub(super) fn looked(&mut self, upto: u64, end: bool, now_ms: u64) {
        let Some(round) = &mut self.round else { return };
        round.after = upto;
        if end {
            self.rest_ms = round.rest_ms;
            self.pause_ms = now_ms + PAUSE_MS;
            self.round = None;
        }
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.soon.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUE: Due = Due { size: 10, packet_id: 1 };

    #[test]
    fn few_are_remembered_and_the_others_found_again() {
        let mut expiring = Expiring::new(false);
        assert_eq!(expiring.wants(1_000_000), None, "an empty queue is not looked through");
        for id in 1..=1000 {
            expiring.add(1000 + id, id, DUE);
        }
        assert_eq!(expiring.remembered(), SOON);
        assert_eq!(expiring.pop(1000), None);
        assert_eq!(expiring.pop(1001), Some((1001, 1, DUE)));
        assert_eq!(expiring.wants(1000 + SOON as u64), None, "those that expire first are remembered");
        assert_eq!(expiring.wants(1001 + SOON as u64), Some(0));
        expiring.looked(500, false, 2000);
        expiring.add(1400, 2000, DUE);
        assert_eq!(expiring.wants(2000), Some(500));
        expiring.found(9000, 999, DUE);
        expiring.looked(2000, true, 2000);
        assert_eq!(expiring.wants(8999), None, "the next round waits until something is left to expire");
        assert_eq!(expiring.wants(9000), None, "and for the pause");
        expiring.hurry();
        assert_eq!(expiring.wants(9000), Some(0));
    }

    #[test]
    fn a_queue_of_an_earlier_process_is_looked_through_once() {
        let mut expiring = Expiring::new(true);
        assert_eq!(expiring.wants(5), Some(0));
        expiring.looked(7, true, 5);
        expiring.hurry();
        assert_eq!(expiring.wants(u64::MAX - 1), None);
    }
}
