//! Homes by owner, let go of by use: a clock hand looks at a few of them whenever one comes, never at all.

use hashbrown::HashMap;
use std::hash::Hash;

/// So many homes are looked at, at most, when one comes.
const LOOKS: usize = 8;

/// Homes by owner. Above `most` of them the hand lets go of those that nobody needs.
pub(super) struct Table<K, H> {
    places: HashMap<K, usize>,
    ring: Vec<(K, H)>,
    hand: usize,
    most: usize,
}

impl<K: Eq + Hash + Clone, H: Clone> Table<K, H> {
    pub(super) fn new(most: usize) -> Table<K, H> {
        Table { places: HashMap::new(), ring: Vec::new(), hand: 0, most }
    }

    pub(super) fn get(&self, owner: &K) -> Option<&H> {
        self.places.get(owner).map(|at| &self.ring[*at].1)
    }

    /// Puts a home into the table, unless one is there, and gives what is there. Those that `may_go` go first, as far
    /// as the hand comes.
    pub(super) fn admit(&mut self, owner: &K, home: H, may_go: impl FnMut(&H) -> bool) -> H {
        if let Some(known) = self.get(owner) {
            return known.clone();
        }
        self.sweep(may_go);
        self.places.insert(owner.clone(), self.ring.len());
        self.ring.push((owner.clone(), home.clone()));
        home
    }

    /// The hand moves on by a few homes: so over time it sees each, and no admission pays for all.
    fn sweep(&mut self, mut may_go: impl FnMut(&H) -> bool) {
        for _ in 0..LOOKS.min(self.ring.len()) {
            if self.ring.len() < self.most {
                return;
            }
            self.hand %= self.ring.len();
            if may_go(&self.ring[self.hand].1) {
                self.take_out(self.hand);
            } else {
                self.hand += 1;
            }
        }
    }

    pub(super) fn remove(&mut self, owner: &K) -> Option<H> {
        let at = *self.places.get(owner)?;
        Some(self.take_out(at))
    }

    /// The last one takes its place, so that nothing has to be moved up.
    fn take_out(&mut self, at: usize) -> H {
        let (owner, home) = self.ring.swap_remove(at);
        self.places.remove(&owner);
        if let Some((moved, _)) = self.ring.get(at) {
            self.places.insert(moved.clone(), at);
        }
        if self.ring.len() * 4 < self.ring.capacity() {
            self.ring.shrink_to(self.ring.len() * 2);
            self.places.shrink_to(self.ring.len() * 2);
        }
        home
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &H> {
        self.ring.iter().map(|(_, home)| home)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, collections::HashSet};

    #[test]
    fn an_admission_looks_at_a_bounded_number_of_others() {
        let (mut table, looks, mut most_looks) = (Table::new(1_000), Cell::new(0), 0);
        for owner in 0..100_000 {
            looks.set(0);
            // Nobody may go: the worst case.
            table.admit(&owner, owner, |_| {
                looks.set(looks.get() + 1);
                false
            });
            most_looks = most_looks.max(looks.get());
        }
        assert_eq!(table.values().count(), 100_000);
        assert_eq!(most_looks, LOOKS, "the 100,000th pays what the 2,000th paid");
    }

    #[test]
    fn whoever_is_needed_stays_and_the_others_go() {
        let mut table = Table::new(100);
        let needed: HashSet<u32> = (0..5_000).filter(|owner| owner % 50 == 0).collect();
        for owner in 0..5_000 {
            table.admit(&owner, owner, |home| !needed.contains(home));
        }
        assert!(needed.iter().all(|owner| table.get(owner) == Some(owner)));
        let left = table.values().count();
        assert!(left <= needed.len() + 100, "{left}");
        for (at, (owner, _)) in table.ring.iter().enumerate() {
            assert_eq!(table.places[owner], at);
        }
        assert_eq!(table.places.len(), left);
    }

    #[test]
    fn the_first_one_stands() {
        let mut table = Table::new(10);
        assert_eq!(table.admit(&1, 'a', |_| true), 'a');
        assert_eq!(table.admit(&1, 'b', |_| true), 'a');
        assert_eq!((table.remove(&1), table.remove(&1)), (Some('a'), None));
    }
}
