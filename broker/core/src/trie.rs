//! Topic filters in a trie: who subscribed to what a topic matches (MQTT 5 §4.7).

use hashbrown::HashMap;

/// Filters, each with any number of subscriptions that are told apart by a key.
#[derive(Debug)]
pub struct Trie<T> {
    root: Level<T>,
    len: usize,
}

#[derive(Debug)]
struct Level<T> {
    /// Next levels by name.
    named: HashMap<Box<str>, Level<T>>,
    /// The next level is `+`.
    plus: Option<Box<Level<T>>>,
    /// Filters that end here.
    here: Vec<(u64, T)>,
    /// Filters that end here with `#`.
    below: Vec<(u64, T)>,
}

impl<T> Default for Level<T> {
    fn default() -> Level<T> {
        Level { named: HashMap::new(), plus: None, here: Vec::new(), below: Vec::new() }
    }
}

impl<T> Default for Trie<T> {
    fn default() -> Trie<T> {
        Trie { root: Level::default(), len: 0 }
    }
}

impl<T> Trie<T> {
    /// Adds a subscription; gives the former one of this filter and key.
    pub fn insert(&mut self, filter: &str, key: u64, value: T) -> Option<T> {
        let slot = self.root.slot_mut(filter);
        if let Some((_, old)) = slot.iter_mut().find(|(k, _)| *k == key) {
            return Some(std::mem::replace(old, value));
        }
        slot.push((key, value));
        self.len += 1;
        None
    }

    /// Removes a subscription and the levels that nobody needs any more.
    pub fn remove(&mut self, filter: &str, key: u64) -> Option<T> {
        let mut levels = filter.split('/');
        let removed = self.root.remove(&mut levels, key);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Calls `found` for each subscription whose filter matches the topic.
    pub fn each_match<'a>(&'a self, topic: &str, found: &mut impl FnMut(u64, &'a T)) {
        // MQTT 5 §4.7.2: wildcards in the first level do not match names that begin with `$`.
        let hidden = topic.starts_with('$');
        let (first, rest) = split(topic);
        if let Some(level) = self.root.named.get(first) {
            level.each_match(rest, found);
        }
        if !hidden {
            each(&self.root.below, found);
            if let Some(plus) = &self.root.plus {
                plus.each_match(rest, found);
            }
        }
    }

    /// How many subscriptions there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<T> Level<T> {
    fn slot_mut(&mut self, filter: &str) -> &mut Vec<(u64, T)> {
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

    fn remove(&mut self, levels: &mut std::str::Split<'_, char>, key: u64) -> Option<T> {
        match levels.next() {
            None => take(&mut self.here, key),
            Some("#") => take(&mut self.below, key),
            Some("+") => {
                let removed = self.plus.as_mut()?.remove(levels, key);
                self.plus.take_if(|level| level.is_empty());
                removed
            }
            Some(name) => {
                let next = self.named.get_mut(name)?;
                let removed = next.remove(levels, key);
                if next.is_empty() {
                    self.named.remove(name);
                }
                removed
            }
        }
    }

    fn each_match<'a>(&'a self, rest: Option<&str>, found: &mut impl FnMut(u64, &'a T)) {
        // "a/#" matches "a" itself as well (MQTT 5 §4.7.1.2).
        each(&self.below, found);
        let Some(rest) = rest else { return each(&self.here, found) };
        let (name, rest) = split(rest);
        if let Some(level) = self.named.get(name) {
            level.each_match(rest, found);
        }
        if let Some(plus) = &self.plus {
            plus.each_match(rest, found);
        }
    }

    fn is_empty(&self) -> bool {
        self.named.is_empty() && self.plus.is_none() && self.here.is_empty() && self.below.is_empty()
    }
}

fn split(topic: &str) -> (&str, Option<&str>) {
    topic.split_once('/').map_or((topic, None), |(first, rest)| (first, Some(rest)))
}

fn each<'a, T>(entries: &'a [(u64, T)], found: &mut impl FnMut(u64, &'a T)) {
    for (key, value) in entries {
        found(*key, value);
    }
}

fn take<T>(entries: &mut Vec<(u64, T)>, key: u64) -> Option<T> {
    let at = entries.iter().position(|(k, _)| *k == key)?;
    Some(entries.swap_remove(at).1)
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
