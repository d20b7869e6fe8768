//! Topic filters in a trie: who subscribed to what a topic matches (MQTT 5 §4.7).
//!
//! Each place where filters end has a version, so that what was found for a topic can be kept: it holds until one of
//! the places that the topic visits changes, whatever happens in other branches.

use hashbrown::HashMap;

/// Filters, each with any number of subscriptions that are told apart by a key.
#[derive(Debug)]
pub struct Trie<T> {
    root: Level<T>,
    len: usize,
    changes: u64,
}

#[derive(Debug)]
struct Level<T> {
    /// Next levels by name.
    named: HashMap<Box<str>, Level<T>>,
    /// The next level is `+`.
    plus: Option<Box<Level<T>>>,
    /// Filters that end here.
    here: Slot<T>,
    /// Filters that end here with `#`.
    below: Slot<T>,
}

/// The subscriptions of one filter.
#[derive(Debug)]
struct Slot<T> {
    entries: Vec<(u64, T)>,
    /// Where each key stands, once there are many.
    index: Option<Box<HashMap<u64, usize>>>,
    /// The number of the last change; no other slot ever has the same.
    version: u64,
}

/// Up to so many entries are searched one by one.
const FEW: usize = 16;

impl<T> Default for Slot<T> {
    fn default() -> Slot<T> {
        Slot { entries: Vec::new(), index: None, version: 0 }
    }
}

impl<T> Default for Level<T> {
    fn default() -> Level<T> {
        Level { named: HashMap::new(), plus: None, here: Slot::default(), below: Slot::default() }
    }
}

impl<T> Default for Trie<T> {
    fn default() -> Trie<T> {
        Trie { root: Level::default(), len: 0, changes: 0 }
    }
}

impl<T> Trie<T> {
    /// Adds a subscription; gives the former one of this filter and key. Costs the same however many there are.
    pub fn insert(&mut self, filter: &str, key: u64, value: T) -> Option<T> {
        self.changes += 1;
        let slot = self.root.slot_mut(filter);
        slot.version = self.changes;
        let former = slot.insert(key, value);
        self.len += usize::from(former.is_none());
        former
    }

    /// Removes a subscription and the levels that nobody needs any more.
    pub fn remove(&mut self, filter: &str, key: u64) -> Option<T> {
        let mut levels = filter.split('/');
        let removed = self.root.remove(&mut levels, key, self.changes + 1)?;
        self.changes += 1;
        self.len -= 1;
        Some(removed)
    }

    /// Calls `found` for each subscription whose filter matches the topic.
    pub fn each_match<'a>(&'a self, topic: &str, found: &mut impl FnMut(u64, &'a T)) {
        self.each_slot(topic, &mut |slot| slot.entries.iter().for_each(|(key, value)| found(*key, value)));
    }

    /// A number that stays while nothing changes among the filters that match the topic, and is another one after any
    /// such change (but for one chance in 2^64).
    pub fn signature(&self, topic: &str) -> u64 {
        let mut sum = 0u64;
        self.each_slot(topic, &mut |slot| {
            if !slot.entries.is_empty() {
                sum = sum.wrapping_add(mix(slot.version));
            }
        });
        sum
    }

    /// How many changes there were: it grows with each.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How many subscriptions there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn each_slot<'a>(&'a self, topic: &str, visit: &mut impl FnMut(&'a Slot<T>)) {
        // MQTT 5 §4.7.2: wildcards in the first level do not match names that begin with `$`.
        let hidden = topic.starts_with('$');
        let (first, rest) = split(topic);
        if let Some(level) = self.root.named.get(first) {
            level.each_slot(rest, visit);
        }
        if !hidden {
            visit(&self.root.below);
            if let Some(plus) = &self.root.plus {
                plus.each_slot(rest, visit);
            }
        }
    }
}

impl<T> Slot<T> {
    fn insert(&mut self, key: u64, value: T) -> Option<T> {
        if let Some(at) = self.position(key) {
            return Some(std::mem::replace(&mut self.entries[at].1, value));
        }
        self.entries.push((key, value));
        match &mut self.index {
            Some(index) => drop(index.insert(key, self.entries.len() - 1)),
            None if self.entries.len() > FEW => {
                let places = self.entries.iter().enumerate().map(|(at, (key, _))| (*key, at));
                self.index = Some(Box::new(places.collect()));
            }
            None => {}
        }
        None
    }

    fn remove(&mut self, key: u64, version: u64) -> Option<T> {
        let at = self.position(key)?;
        self.version = version;
        let (_, value) = self.entries.swap_remove(at);
        if let Some(index) = &mut self.index {
            index.remove(&key);
            if let Some((moved, _)) = self.entries.get(at) {
                index.insert(*moved, at);
            }
        }
        if self.entries.len() <= FEW / 2 {
            self.index = None;
            self.entries.shrink_to(FEW);
        }
        Some(value)
    }

    fn position(&self, key: u64) -> Option<usize> {
        match &self.index {
            Some(index) => index.get(&key).copied(),
            None => self.entries.iter().position(|(k, _)| *k == key),
        }
    }
}

impl<T> Level<T> {
    fn slot_mut(&mut self, filter: &str) -> &mut Slot<T> {
        let mut level = self;
        for name in filter.split('/') {
            level = match name {
                "#" => return &mut level.below,
                "+" => level.plus.get_or_insert_with(Box::default),
                name => level.named.entry_ref(name).or_default(),
            };
        }
        &mut level.here
    }

    fn remove(&mut self, levels: &mut std::str::Split<'_, char>, key: u64, version: u64) -> Option<T> {
        match levels.next() {
            None => self.here.remove(key, version),
            Some("#") => self.below.remove(key, version),
            Some("+") => {
                let removed = self.plus.as_mut()?.remove(levels, key, version);
                self.plus.take_if(|level| level.is_empty());
                removed
            }
            Some(name) => {
                let next = self.named.get_mut(name)?;
                let removed = next.remove(levels, key, version);
                if next.is_empty() {
                    self.named.remove(name);
                }
                removed
            }
        }
    }

    fn each_slot<'a>(&'a self, rest: Option<&str>, visit: &mut impl FnMut(&'a Slot<T>)) {
        // "a/#" matches "a" itself as well (MQTT 5 §4.7.1.2).
        visit(&self.below);
        let Some(rest) = rest else { return visit(&self.here) };
        let (name, rest) = split(rest);
        if let Some(level) = self.named.get(name) {
            level.each_slot(rest, visit);
        }
        if let Some(plus) = &self.plus {
            plus.each_slot(rest, visit);
        }
    }

    fn is_empty(&self) -> bool {
        self.named.is_empty() && self.plus.is_none() && self.here.entries.is_empty() && self.below.entries.is_empty()
    }
}

fn split(topic: &str) -> (&str, Option<&str>) {
    topic.split_once('/').map_or((topic, None), |(first, rest)| (first, Some(rest)))
}

/// Spreads a version over all bits (the finaliser of SplitMix64), so that sums of different sets differ.
fn mix(version: u64) -> u64 {
    let x = version.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use tavi_wire::topic::matches;

    fn name() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["a", "b", "", "$s", "c"])
    }

    fn topic() -> impl Strategy<Value = String> {
        prop::collection::vec(name(), 1..5).prop_map(|l| l.join("/")).prop_filter("not empty", |t| !t.is_empty())
    }

    fn filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![3 => name(), 1 => Just("+")];
        (prop::collection::vec(level, 1..5), any::<bool>())
            .prop_map(|(l, hash)| l.join("/") + if hash { "/#" } else { "" })
            .prop_filter("not empty", |t| !t.is_empty())
    }

    proptest! {
        #[test]
        fn finds_what_comparing_with_each_filter_finds(
            filters in prop::collection::vec(filter(), 0..30), removed in prop::collection::vec(0usize..30, 0..10),
            topics in prop::collection::vec(topic(), 1..10)
        ) {
            let mut trie = Trie::default();
            for (n, filter) in filters.iter().enumerate() {
                prop_assert!(trie.insert(filter, n as u64, ()).is_none());
            }
            for n in &removed {
                if let Some(filter) = filters.get(*n) {
                    trie.remove(filter, *n as u64);
                }
            }
            for topic in &topics {
                let mut got = BTreeSet::new();
                trie.each_match(topic, &mut |key, ()| { got.insert(key as usize); });
                let want: BTreeSet<usize> =
                    (0..filters.len()).filter(|n| !removed.contains(n) && matches(&filters[*n], topic)).collect();
                prop_assert_eq!(got, want);
            }
        }

        #[test]
        fn what_was_kept_for_a_topic_holds_as_long_as_its_signature(
            steps in prop::collection::vec((filter(), 0u64..4, any::<bool>()), 1..60), topic in topic()
        ) {
            let mut trie = Trie::default();
            let found = |trie: &Trie<usize>| {
                let mut found = BTreeSet::new();
                trie.each_match(&topic, &mut |key, value| { found.insert((key, *value)); });
                found
            };
            let mut kept = (trie.signature(&topic), found(&trie));
            for (n, (filter, key, add)) in steps.iter().enumerate() {
                let changed = if *add { trie.insert(filter, *key, n); true } else { trie.remove(filter, *key).is_some() };
                let now = (trie.signature(&topic), found(&trie));
                let concerns = changed && matches(filter, &topic);
                prop_assert_eq!(kept.0 != now.0, concerns, "a signature falls for its own branch only");
                prop_assert!(concerns || kept.1 == now.1);
                kept = now;
            }
        }

        #[test]
        fn a_slot_finds_its_entries_however_many_there_are(
            steps in prop::collection::vec((0u64..60, any::<bool>()), 1..400)
        ) {
            let (mut trie, mut model) = (Trie::default(), std::collections::BTreeMap::new());
            for (n, (key, add)) in steps.iter().enumerate() {
                if *add {
                    prop_assert_eq!(trie.insert("a/+", *key, n), model.insert(*key, n));
                } else {
                    prop_assert_eq!(trie.remove("a/+", *key), model.remove(key));
                }
                prop_assert_eq!(trie.len(), model.len());
            }
            let mut found = std::collections::BTreeMap::new();
            trie.each_match("a/b", &mut |key, value| { found.insert(key, *value); });
            prop_assert_eq!(found, model);
        }

        #[test]
        fn is_empty_again_when_all_are_removed(filters in prop::collection::vec(filter(), 0..30)) {
            let mut trie = Trie::default();
            for (n, filter) in filters.iter().enumerate() {
                trie.insert(filter, n as u64, n);
            }
            for (n, filter) in filters.iter().enumerate() {
                prop_assert_eq!(trie.remove(filter, n as u64), Some(n));
            }
            prop_assert!(trie.is_empty() && trie.root.is_empty());
        }
    }
}
