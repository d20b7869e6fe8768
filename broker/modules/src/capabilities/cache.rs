//! What verified hashes stand for, shared by all sessions: bounded in bytes, the oldest goes first.

use super::verification::Interests;
use std::collections::{HashMap, VecDeque};

/// All that is remembered, in bytes.
const MAX_BYTES: usize = 4 << 20;

#[derive(Default)]
pub(super) struct Cache {
    known: HashMap<Box<str>, Interests>,
    /// The oldest first.
    order: VecDeque<Box<str>>,
    bytes: usize,
}

impl Cache {
    pub(super) fn get(&self, ver: &str) -> Option<Interests> {
        self.known.get(ver).cloned()
    }

    /// Remembers what a hash stands for that was verified.
    pub(super) fn insert(&mut self, ver: &str, interests: Interests) {
        if self.known.contains_key(ver) {
            return;
        }
        self.bytes += weight(ver, &interests);
        self.known.insert(ver.into(), interests);
        self.order.push_back(ver.into());
        while self.bytes > MAX_BYTES {
            let Some(oldest) = self.order.pop_front() else { return };
            let interests = self.known.remove(&oldest);
            self.bytes -= interests.map_or(0, |interests| weight(&oldest, &interests));
        }
    }
}

fn weight(ver: &str, interests: &Interests) -> usize {
    2 * ver.len() + 128 + interests.iter().map(|node| node.len() + 32).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_when_there_is_no_room() {
        let mut cache = Cache::default();
        let nodes: Interests = (0..100).map(|n| format!("{n:1000}").into()).collect::<Vec<_>>().into();
        for n in 0..100 {
            cache.insert(&format!("hash-{n}"), nodes.clone());
            cache.insert(&format!("hash-{n}"), nodes.clone());
        }
        assert!(cache.bytes <= MAX_BYTES && cache.known.len() == cache.order.len());
        assert!(cache.get("hash-0").is_none() && cache.get("hash-99").is_some());
        assert!(cache.known.len() > 30, "{}", cache.known.len());
    }
}
