//! Items in the order of their ids, in one piece of memory: nearly all come at the end and go from the front. An
//! empty one holds no memory, since most seats are idle.

use std::collections::VecDeque;

/// Boxed, so that moving a neighbour is cheap whatever the items are.
#[derive(Debug)]
pub(super) struct Ordered<T> {
    items: VecDeque<(u64, Box<T>)>,
}

impl<T> Default for Ordered<T> {
    fn default() -> Ordered<T> {
        Ordered { items: VecDeque::new() }
    }
}

impl<T> Ordered<T> {
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Puts an item at its place; what was there before is given back.
    pub fn insert(&mut self, id: u64, item: Box<T>) -> Option<Box<T>> {
        if self.items.back().is_none_or(|(last, _)| *last < id) {
            if self.items.capacity() == 0 {
                // What comes often comes in numbers.
                self.items.reserve(16);
            }
            self.items.push_back((id, item));
            return None;
        }
        match self.position(id) {
            Ok(at) => Some(std::mem::replace(&mut self.items[at].1, item)),
            Err(at) => {
                self.items.insert(at, (id, item));
                None
            }
        }
    }

    pub fn contains(&self, id: u64) -> bool {
        self.position(id).is_ok()
    }

    pub fn first(&self) -> Option<(u64, &T)> {
        self.items.front().map(|(id, item)| (*id, &**item))
    }

    pub fn pop_first(&mut self) -> Option<(u64, Box<T>)> {
        let first = self.items.pop_front();
        self.forget_if_empty();
        first
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.items.iter().map(|(id, item)| (*id, &**item))
    }

    /// Takes out all above `id`.
    pub fn split_above(&mut self, id: u64) -> Ordered<T> {
        let at = self.items.partition_point(|(other, _)| *other <= id);
        let above = Ordered { items: self.items.split_off(at) };
        self.forget_if_empty();
        above
    }

    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.items.capacity()
    }

    fn position(&self, id: u64) -> Result<usize, usize> {
        self.items.binary_search_by_key(&id, |(id, _)| *id)
    }

    fn forget_if_empty(&mut self) {
        if self.items.is_empty() {
            self.items = VecDeque::new();
        }
    }
}

impl<T> IntoIterator for Ordered<T> {
    type Item = (u64, Box<T>);
    type IntoIter = std::collections::vec_deque::IntoIter<(u64, Box<T>)>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}
