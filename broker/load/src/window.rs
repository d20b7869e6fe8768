//! How many messages may be in flight between a sender and its receivers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Notify;
use tokio::time::timeout;

/// Without a delivery for this long, messages are lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// The window of one sender.
#[derive(Debug)]
pub struct Window {
    size: u64,
    /// What each receiver of this sender has got.
    delivered: Vec<AtomicU64>,
    changed: Notify,
}

impl Window {
    /// At most `size` messages that one of `receivers` has not got yet.
    pub fn new(size: u64, receivers: usize) -> Arc<Self> {
        let delivered = (0..receivers).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { size, delivered, changed: Notify::new() })
    }

    /// A receiver has got some more.
    pub fn deliver(&self, receiver: usize, count: u64) {
        if count > 0 {
            self.delivered[receiver].fetch_add(count, Ordering::Relaxed);
            self.changed.notify_one();
        }
    }

    /// Waits until at least one more may be sent after `sent`; how many may.
    pub async fn room(&self, sent: u64) -> anyhow::Result<u64> {
        self.wait(|slowest| (slowest + self.size).checked_sub(sent).filter(|room| *room > 0)).await
    }

    /// Waits until every receiver has got `total`.
    pub async fn drained(&self, total: u64) -> anyhow::Result<()> {
        self.wait(|slowest| (slowest >= total).then_some(())).await
    }

    async fn wait<R>(&self, ready: impl Fn(u64) -> Option<R>) -> anyhow::Result<R> {
        loop {
            let slowest = self.delivered.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap_or(u64::MAX);
            if let Some(result) = ready(slowest) {
                return Ok(result);
            }
            let late = || format!("no delivery for {} s after {slowest}", PATIENCE.as_secs());
            timeout(PATIENCE, self.changed.notified()).await.with_context(late)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_slowest_receiver_decides() {
        let window = Window::new(4, 2);
        assert_eq!(window.room(0).await.unwrap(), 4);
        window.deliver(0, 4);
        window.deliver(1, 1);
        assert_eq!(window.room(4).await.unwrap(), 1);
        window.drained(1).await.unwrap();
    }
}
