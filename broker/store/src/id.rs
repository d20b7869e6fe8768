//! Ids that grow with time: 42 bits of milliseconds, 10 bits of node, 12 bits of sequence.

use parking_lot::Mutex;

/// The moment that ids count from: 2024-01-01T00:00:00Z in milliseconds of Unix time. 42 bits last until 2163.
pub const EPOCH_MS: u64 = 1_704_067_200_000;

const SEQUENCE_BITS: u32 = 12;
const NODE_BITS: u32 = 10;

/// Draws ids for one node, each greater than all before it, whatever the clock does.
///
/// Start it above [`Store::last_id`](crate::Store::last_id), so that ids grow over restarts too.
#[derive(Debug)]
pub struct IdSource {
    node: u64,
    last: Mutex<u64>,
}

impl IdSource {
    /// A source for `node` (its low 10 bits count) whose ids are all greater than `last`.
    pub fn new(node: u16, last: u64) -> IdSource {
        IdSource { node: u64::from(node) & ((1 << NODE_BITS) - 1), last: Mutex::new(last) }
    }

    /// The next id at `now_ms`, milliseconds of Unix time: that of the clock, or the one behind the last id if the
    /// clock has not passed it.
    pub fn next(&self, now_ms: u64) -> u64 {
        let mut last = self.last.lock();
        *last = self.at(now_ms).max(self.behind(*last));
        *last
    }

    /// Nothing up to `id` is drawn from now on.
    pub fn raise(&self, id: u64) {
        let mut last = self.last.lock();
        *last = id.max(*last);
    }

    /// The first id of this node at `now_ms`.
    fn at(&self, now_ms: u64) -> u64 {
        let ms = now_ms.saturating_sub(EPOCH_MS) & (u64::MAX >> (SEQUENCE_BITS + NODE_BITS));
        (ms << (NODE_BITS + SEQUENCE_BITS) | self.node << SEQUENCE_BITS).max(1)
    }

    /// The least id of this node that is greater than `last`.
    fn behind(&self, last: u64) -> u64 {
        let next = last.saturating_add(1);
        let (ms, node) = (next >> (NODE_BITS + SEQUENCE_BITS), next >> SEQUENCE_BITS & ((1 << NODE_BITS) - 1));
        let first = |ms: u64| ms << (NODE_BITS + SEQUENCE_BITS) | self.node << SEQUENCE_BITS;
        match node.cmp(&self.node) {
            std::cmp::Ordering::Equal => next,
            std::cmp::Ordering::Less => first(ms),
            std::cmp::Ordering::Greater => first(ms + 1),
        }
    }
}

/// The time of an id in milliseconds of Unix time.
pub fn time_of(id: u64) -> u64 {
    EPOCH_MS + (id >> (NODE_BITS + SEQUENCE_BITS))
}

/// The first id that any node can draw at `ms`, milliseconds of Unix time: the bound for a read or an expiry by time.
pub fn first_at(ms: u64) -> u64 {
    ms.saturating_sub(EPOCH_MS) << (NODE_BITS + SEQUENCE_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEQUENCE_MASK: u64 = (1 << SEQUENCE_BITS) - 1;
    const NOW: u64 = EPOCH_MS + 90 * 24 * 3_600_000;

    #[test]
    fn an_id_carries_its_time_and_node() {
        let id = IdSource::new(5, 0).next(NOW);
        assert_eq!(time_of(id), NOW);
        assert_eq!(id >> SEQUENCE_BITS & 1_023, 5);
        assert_eq!(id & SEQUENCE_MASK, 0);
        assert!(first_at(NOW) <= id && id < first_at(NOW + 1));
    }

    #[test]
    fn ids_grow_when_the_clock_stands_still_or_goes_back() {
        let source = IdSource::new(5, 0);
        let first = source.next(NOW);
        let second = source.next(NOW);
        let third = source.next(NOW - 60_000);
        assert_eq!((second, third), (first + 1, first + 2));
    }

    #[test]
    fn a_full_millisecond_runs_over_into_the_next_of_the_same_node() {
        let source = IdSource::new(5, 0);
        let ids: Vec<u64> = (0..10_000).map(|_| source.next(NOW)).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(ids.iter().all(|id| id >> SEQUENCE_BITS & 1_023 == 5));
        assert_eq!(time_of(ids[9_999]), NOW + 2);
    }

    #[test]
    fn a_restarted_source_starts_above_what_any_node_stored() {
        let stored = IdSource::new(900, 0).next(NOW + 5_000);
        for node in [0, 5, 900, 1_023] {
            let id = IdSource::new(node, stored).next(NOW);
            assert!(id > stored, "node {node}");
            assert_eq!(id >> SEQUENCE_BITS & 1_023, u64::from(node));
        }
    }

    #[test]
    fn no_id_is_zero() {
        assert_eq!(IdSource::new(0, 0).next(0), 1);
    }
}
