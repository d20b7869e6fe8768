//! Names become 64-bit numbers, so that keys are short: a bounded cache before the families name and owner.

use crate::{
    StoreError,
    keys::{self, Kind, Number},
    kv::{Family, Kv},
    value,
};
use std::collections::HashMap;

/// How many names one generation of the cache holds.
const GENERATION: usize = 32_768;

/// The committer's cache of numbers: two generations, the older one is dropped when the younger is full.
#[derive(Default)]
pub(crate) struct NameCache {
    young: HashMap<Box<str>, Number>,
    old: HashMap<Box<str>, Number>,
}

impl NameCache {
    /// The number under `key`, a name with its kind in front.
    pub fn get(&mut self, key: &str) -> Option<Number> {
        if let Some(number) = self.young.get(key) {
            return Some(*number);
        }
        let (key, number) = self.old.remove_entry(key)?;
        self.insert(key, number);
        Some(number)
    }

    pub fn insert(&mut self, key: Box<str>, number: Number) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, number);
    }

    pub fn forget(&mut self, key: &str) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

/// The number of a name, as readers look it up.
pub(crate) fn number_of(kv: &dyn Kv, kind: Kind, name: &str) -> Result<Option<Number>, StoreError> {
    let row = kv.get(Family::Name, &keys::name(kind, name))?;
    row.map(|row| value::number(Family::Name, &row)).transpose()
}

/// The kind and name behind a number.
pub(crate) fn name_of(kv: &dyn Kv, number: Number) -> Result<Option<(Kind, Box<str>)>, StoreError> {
    kv.get(Family::Owner, &keys::owner(number))?.map(|row| decode(&row)).transpose()
}

/// Reads a row of the family owner.
pub(crate) fn decode(row: &[u8]) -> Result<(Kind, Box<str>), StoreError> {
    let (kind, name) = match row.split_first() {
        Some((0, name)) => (Kind::Owner, name),
        Some((1, name)) => (Kind::With, name),
        _ => return Err(StoreError::Corrupt("a name without its kind".into())),
    };
    let name = std::str::from_utf8(name).map_err(|_| StoreError::Corrupt("a name that is not UTF-8".into()))?;
    Ok((kind, name.into()))
}

/// The names met on one page: a page names few correspondents many times.
pub(crate) struct Page<'a> {
    kv: &'a dyn Kv,
    met: HashMap<Number, Option<Box<str>>>,
}

impl<'a> Page<'a> {
    pub fn new(kv: &'a dyn Kv) -> Page<'a> {
        Page { kv, met: HashMap::new() }
    }

    /// The name behind a number; `None` if its owner was purged.
    pub fn name(&mut self, number: Number) -> Result<Option<Box<str>>, StoreError> {
        if let Some(name) = self.met.get(&number) {
            return Ok(name.clone());
        }
        let name = name_of(self.kv, number)?.map(|(_, name)| name);
        self.met.insert(number, name.clone());
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_forgets_what_was_not_asked_for_and_keeps_what_was() {
        let mut cache = NameCache::default();
        cache.insert("kept".into(), 1);
        cache.insert("lost".into(), 2);
        for round in 0..4u64 {
            (0..GENERATION as u64 / 2 + 1).for_each(|n| cache.insert(format!("{round} {n}").into(), n));
            assert_eq!(cache.get("kept"), Some(1));
        }
        assert_eq!(cache.get("lost"), None);
        assert!(cache.young.len() + cache.old.len() <= 2 * GENERATION);
    }
}
