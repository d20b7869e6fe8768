//! Looking at a backlog without changing it, and letting go of what is outdated.

use super::{Backlog, Owed};

impl<T: Owed> Backlog<T> {
    /// The next item, if nothing that is coming goes before it; whether the window has room for it is not asked.
    pub fn peek(&self) -> Option<(u64, &T)> {
        let (id, held) = self.waiting.items.first()?;
        self.coming.first().is_none_or(|coming| *coming > id).then_some((id, &held.item))
    }

    /// The place of the next item in memory, whether something that is coming goes before it or not.
    pub fn first(&self) -> Option<u64> {
        self.waiting.items.first().map(|(id, _)| id)
    }

    /// Whether this id is coming, in memory, in flight or being deleted. What is not may still be a stored row, if
    /// [`is_behind`](Self::is_behind).
    pub fn has(&self, id: u64) -> bool {
        self.coming.contains(&id) || self.knows(id)
    }

    /// What is in flight under this id.
    pub fn flying(&self, id: u64) -> Option<&T> {
        self.flight.get(id)
    }

    /// Whether a row with this id may be in the store that memory knows nothing of.
    pub fn may_have_stored(&self, id: u64) -> bool {
        self.behind && id > self.cursor
    }

    /// Lets go of what waits in memory without a row and is not worth sending any more: `keep` is asked from the newest
    /// to the oldest. How many went.
    pub fn thin_out(&mut self, mut keep: impl FnMut(&T) -> bool) -> usize {
        let before = self.len();
        for pile in [&mut self.later, &mut self.waiting] {
            let all: Vec<_> = std::mem::take(pile).items.into_iter().collect();
            let mut kept: Vec<_> =
                all.into_iter().rev().filter(|(_, held)| held.item.is_stored() || keep(&held.item)).collect();
            kept.reverse();
            kept.into_iter().for_each(|(id, held)| pile.put(id, held));
        }
        before - self.len()
    }
}
