//! What the committer remembers of rows that it would else read again and again.

use bytes::Bytes;
use hashbrown::{Equivalent, HashMap};
use std::hash::Hash;

/// How many entries one generation holds.
const GENERATION: usize = 32_768;

/// A bounded cache of two generations: what is asked for moves into the younger one, and the older one is dropped
/// when the younger is full.
pub(crate) struct Cache<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Cache<K, V> {
        Cache { young: HashMap::new(), old: HashMap::new() }
    }
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    pub fn get<Q: Equivalent<K> + Hash + ?Sized>(&mut self, key: &Q) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.insert(key, value.clone());
        Some(value)
    }

    pub fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    pub fn forget<Q: Equivalent<K> + Hash + ?Sized>(&mut self, key: &Q) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

/// How many bytes of shared bodies one generation holds.
const BODY_BYTES: usize = 8 << 20;

/// Shared bodies that were read lately, in two generations. A body never changes under its id.
#[derive(Default)]
pub(crate) struct Bodies {
    young: HashMap<u64, Bytes>,
    old: HashMap<u64, Bytes>,
    bytes: usize,
}

impl Bodies {
    pub fn get(&mut self, id: u64) -> Option<Bytes> {
        if let Some(body) = self.young.get(&id) {
            return Some(body.clone());
        }
        let body = self.old.remove(&id)?;
        self.insert(id, body.clone());
        Some(body)
    }

    pub fn insert(&mut self, id: u64, body: Bytes) {
        if self.bytes >= BODY_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += body.len() + 64;
        self.young.insert(id, body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_forgets_what_was_not_asked_for_and_keeps_what_was() {
        let mut cache: Cache<Box<str>, u64> = Cache::default();
        cache.insert("kept".into(), 1);
        cache.insert("lost".into(), 2);
        for round in 0..4u64 {
            (0..GENERATION as u64 / 2 + 1).for_each(|n| cache.insert(format!("{round} {n}").into(), n));
            assert_eq!(cache.get("kept"), Some(1));
        }
        assert_eq!(cache.get("lost"), None);
        assert!(cache.young.len() + cache.old.len() <= 2 * GENERATION);
    }

    #[test]
    fn a_newer_value_is_not_shadowed_by_an_older_one() {
        let mut cache: Cache<u64, u64> = Cache::default();
        cache.insert(1, 1);
        (2..=GENERATION as u64 + 1).for_each(|n| cache.insert(n, n));
        cache.insert(1, 9);
        assert_eq!(cache.get(&1), Some(9));
        cache.forget(&1);
        assert_eq!(cache.get(&1), None);
    }
}
