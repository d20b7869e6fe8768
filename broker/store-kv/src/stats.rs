//! What the committer did, for /metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the latency buckets in microseconds; a last bucket holds what took longer.
pub const LATENCY_BOUNDS_US: [u64; 14] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000];

/// Upper bounds of the batch size buckets in commits; a last bucket holds larger ones.
pub const BATCH_BOUNDS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024];

/// A histogram at one moment. Bucket `i` counts what was at most `bounds[i]`, and more than the bound before it; the
/// last bucket what was above all bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Upper bounds, ascending.
    pub bounds: &'static [u64],
    /// One count a bucket; one more than there are bounds.
    pub counts: Vec<u64>,
    /// The sum of all that was counted.
    pub sum: u64,
}

/// What the committer did since the store was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitStats {
    /// From the hand-in of a commit to its durability, in microseconds.
    pub latency_us: Histogram,
    /// Commits per durable batch.
    pub batch: Histogram,
    /// Commits refused because of a conflict.
    pub conflicts: u64,
    /// Commits refused because the store was stopping.
    pub refused: u64,
    /// Commits that failed because the engine did.
    pub failed: u64,
    /// Commits that wait now.
    pub waiting: u64,
}

impl Histogram {
    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    latency_sum: AtomicU64,
    batch: [AtomicU64; BATCH_BOUNDS.len() + 1],
    batch_sum: AtomicU64,
    pub conflicts: AtomicU64,
    pub refused: AtomicU64,
    pub failed: AtomicU64,
    pub waiting: AtomicU64,
}

impl Counters {
    pub fn landed(&self, took: Duration) {
        let us = took.as_micros() as u64;
        self.latency[LATENCY_BOUNDS_US.partition_point(|bound| *bound < us)].fetch_add(1, Relaxed);
        self.latency_sum.fetch_add(us, Relaxed);
    }

    pub fn batch(&self, commits: usize) {
        let commits = commits as u64;
        self.batch[BATCH_BOUNDS.partition_point(|bound| *bound < commits)].fetch_add(1, Relaxed);
        self.batch_sum.fetch_add(commits, Relaxed);
    }

    pub fn snapshot(&self) -> CommitStats {
        CommitStats {
            latency_us: histogram(&LATENCY_BOUNDS_US, &self.latency, &self.latency_sum),
            batch: histogram(&BATCH_BOUNDS, &self.batch, &self.batch_sum),
            conflicts: self.conflicts.load(Relaxed),
            refused: self.refused.load(Relaxed),
            failed: self.failed.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
        }
    }
}

fn histogram(bounds: &'static [u64], counts: &[AtomicU64], sum: &AtomicU64) -> Histogram {
    Histogram { bounds, counts: counts.iter().map(|count| count.load(Relaxed)).collect(), sum: sum.load(Relaxed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_the_bucket_whose_bound_they_do_not_pass() {
        let counters = Counters::default();
        [100, 101, 6_000_000].into_iter().for_each(|us| counters.landed(Duration::from_micros(us)));
        counters.batch(1_024);
        let stats = counters.snapshot();
        assert_eq!(stats.latency_us.counts[..2], [1, 1]);
        assert_eq!(stats.latency_us.counts[14], 1);
        assert_eq!((stats.latency_us.count(), stats.latency_us.sum), (3, 6_000_201));
        assert_eq!(stats.batch.counts[10], 1);
    }
}
