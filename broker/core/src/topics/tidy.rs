//! What goes by itself, in small steps beside everything else: retained values that have expired, marks of deletions that
//! nobody needs any more, and receivers that are kept for quiet topics.

use super::{Topics, kept::decode};
use crate::publication::Publication;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tavi_store::{NameRange, Op, Owner, PageBound, StoreError, Table, id::first_at};

/// What one step looks at.
const STEP: PageBound = PageBound { rows: 128, bytes: 256 * 1024 };
/// Between two steps while there is something to look at, and while there is nothing.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// A deletion's mark is needed while an older value may still be on its way: at most so long after it, or after a start,
/// which repeats what the last process did not finish.
const MARKED_MS: u64 = 10 * 60 * 1000;
/// Expired values that readers met, remembered for the next step.
const MET: usize = 1_024;

/// The one who tidies up.
pub struct Tidy {
    topics: Arc<Topics>,
    began_ms: u64,
    /// Where the round through all values stands; `None`: there is none under way.
    round: Option<Box<str>>,
    /// All values were counted.
    counted: bool,
    removals: u64,
    /// How often receivers are still to be looked through.
    leaving: u8,
}

impl Tidy {
    /// For one process's life.
    pub fn new(topics: &Arc<Topics>) -> Tidy {
        let began_ms = topics.clock.now_ms();
        Tidy { topics: topics.clone(), began_ms, round: None, counted: false, removals: 0, leaving: 0 }
    }

    /// One step; gives how long to wait before the next one.
    ///
    /// # Errors
    /// If the store can be neither read nor written; the next step tries again.
    pub async fn step(&mut self) -> Result<Duration, StoreError> {
        let now = self.topics.clock.now_ms();
        self.forget_receivers();
        let met = std::mem::take(&mut *self.topics.met.lock());
        let mut busy = !met.is_empty();
        self.bury(met).await?;
        if now >= self.began_ms + MARKED_MS {
            busy |= self.topics.store.forget(first_at(now - MARKED_MS), STEP.rows).await? == STEP.rows;
        }
        if self.round.is_none() && self.topics.soonest.load(Ordering::Relaxed) <= now {
            self.topics.soonest.store(u64::MAX, Ordering::Relaxed);
            self.round = Some("".into());
        }
        if let Some(after) = self.round.take() {
            busy = true;
            self.look(&after, now).await?;
        }
        Ok(if busy { PAUSES.0 } else { PAUSES.1 })
    }

    /// A quiet topic holds no subscriber that has gone for longer than two steps.
    fn forget_receivers(&mut self) {
        let removals = self.topics.removals.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.removals, removals) != removals {
            // The first look only sees which topics are used.
            self.leaving = 2;
        }
        if self.leaving > 0 {
            self.leaving -= 1;
            self.topics.places.forget_receivers();
        }
    }

    /// Looks at the values behind a name.
    async fn look(&mut self, after: &str, now: u64) -> Result<(), StoreError> {
        let topics = self.topics.clone();
        let names = NameRange { prefix: "", after: (!after.is_empty()).then_some(after) };
        let rows = topics.store.walk(Table::Retained, names, STEP).await?;
        self.round = rows.last().map(|(name, _)| name.clone());
        let values: Vec<_> = rows.into_iter().map(|(name, record)| decode(&name, record)).collect::<Result<_, _>>()?;
        if !self.counted {
            topics.count(&values, self.round.as_deref());
            self.counted = self.round.is_none();
        }
        let (expired, left) = values.into_iter().partition::<Vec<_>, _>(|publication| publication.expired(now));
        left.iter().for_each(|publication| topics.expires(publication));
        self.bury(expired).await
    }

    /// Deletes values, each unless a newer one stands in its place.
    async fn bury(&self, expired: Vec<Arc<Publication>>) -> Result<(), StoreError> {
        let delete = |publication: Arc<Publication>| {
            let op = Op::DeleteThis { table: Table::Retained, item: "".into(), id: publication.id };
            (self.topics.store.commit(&Owner::topic(&publication.topic), vec![op]), publication)
        };
        for (commit, publication) in expired.into_iter().map(delete).collect::<Vec<_>>() {
            match commit.await {
                Ok(()) => self.topics.unpaid(&publication),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Topics {
    /// Somebody met a value that has expired: it goes with the next step.
    pub(super) fn met(&self, expired: &Arc<Publication>) {
        let mut met = self.met.lock();
        if met.len() < MET {
            met.push(expired.clone());
        }
    }

    /// Notes when a retained value expires, if it does.
    pub(super) fn expires(&self, publication: &Publication) {
        if let Some(at) = publication.properties.as_ref().and_then(|p| p.expires_ms) {
            self.soonest.fetch_min(at, Ordering::Relaxed);
        }
    }
}
