//! How long messages stay in archives (XEP-0313 §3.2).

use std::{sync::Arc, time::Duration};
use tavi_core::{Parts, clock::Clock};
use tavi_store::{SharedStore, StoreError, id};

/// What one step deletes at most.
const STEP: usize = 1_000;
/// Between two steps while there is something to delete, and while there is nothing.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3_600));

/// The one who deletes what is too old. The oldest go first, so no archive gets a gap; what somebody has not received yet
/// stays in the queue.
pub struct Retention {
    store: SharedStore,
    clock: Arc<dyn Clock>,
    keep_ms: u64,
}

impl Retention {
    /// Messages stay for so long.
    pub fn new(parts: &Parts, keep: Duration) -> Retention {
        let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        Retention { store: parts.store.clone(), clock: parts.clock.clone(), keep_ms }
    }

    /// One step; gives how long to wait before the next one.
    ///
    /// # Errors
    /// If the store can be neither read nor written; the next step tries again.
    pub async fn step(&self) -> Result<Duration, StoreError> {
        let before = id::first_at(self.clock.now_ms().saturating_sub(self.keep_ms));
        let deleted = self.store.expire(before, STEP).await?;
        Ok(if deleted == STEP { PAUSES.0 } else { PAUSES.1 })
    }
}
