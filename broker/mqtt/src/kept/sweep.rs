//! Expired rows that nobody takes leave the store in the background (MQTT 5.0 §3.3.2.3.3), a bounded number at a time.

use std::sync::Arc;
use std::time::Duration;

use tavi_core::Publication;
use tavi_store::{Op, PageBound, QueuePage, QueueRow, StoreError};

use super::KeptSeat;
use super::expiring::Due;
use super::queue::Kept;
use crate::entry::Key;
use crate::hub::Hub;
use crate::record::RowHead;

/// Time between two steps.
const STEP: Duration = Duration::from_secs(1);
/// Sessions that one step looks at.
const SESSIONS: usize = 256;
/// Pages that it reads at most.
const PAGES: usize = 8;
/// What a page holds at most.
const PAGE: PageBound = PageBound { rows: 1000, bytes: 256 << 10 };

impl Hub {
    /// Sweeps for ever.
    pub(crate) async fn keep_swept(self: Arc<Self>) {
        let mut after = None;
        loop {
            tokio::time::sleep(STEP).await;
            after = self.sweep(after).await;
        }
    }

    /// One step over the sessions behind `after`; gives where the next one goes on.
    pub async fn sweep(&self, after: Option<Key>) -> Option<Key> {
        let found = self.looks_behind(None, after.as_ref(), SESSIONS);
        let last = if found.len() < SESSIONS { None } else { found.last().map(|look| look.key.clone()) };
        let mut pages = PAGES;
        for seat in found.iter().filter_map(|look| look.seat.kept()) {
            while pages > 0 {
                match seat.sweep_once(self.now_ms()).await {
                    Ok(true) => pages -= 1,
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(%error, "expired rows of an MQTT session stay for now");
                        break;
                    }
                }
            }
        }
        last
    }
}

impl KeptSeat {
    /// Deletes the expired rows that are remembered, and those of one page if it is time to look; false if there was
    /// nothing to do.
    async fn sweep_once(&self, now_ms: u64) -> Result<bool, StoreError> {
        let (mut gone, after) = self.expired(now_ms);
        if let Some(after) = after {
            let page = self.store.queue_page(&self.owner, after, PAGE).await?;
            gone.extend(self.kept.lock().look_through(after, page, now_ms));
        }
        let any = !gone.is_empty() || after.is_some();
        if !gone.is_empty() {
            let ops = gone.iter().map(|id| Op::QueueDelete { id: *id }).collect();
            let deleted = self.save(|| self.store.commit(&self.owner, ops)).await;
            self.deleted(&gone);
            // Something may have waited for the packet id of one of them.
            self.wake();
            deleted?;
        }
        Ok(any)
    }

    /// Rows to be deleted, and behind which to look for more.
    pub(super) fn expired(&self, now_ms: u64) -> (Vec<u64>, Option<u64>) {
        let mut kept = self.kept.lock();
        if kept.ended { (Vec::new(), None) } else { (kept.pop_expired(now_ms), kept.expiring.wants(now_ms)) }
    }
}

impl Kept {
    fn pop_expired(&mut self, now_ms: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        while let Some((_, id, due)) = self.expiring.pop(now_ms) {
            self.evict(id, due);
            gone.push(id);
        }
        gone
    }

    /// Gives the rows of a page that nobody gets any more.
    pub(super) fn look_through(&mut self, after: u64, page: QueuePage, now_ms: u64) -> Vec<u64> {
        let upto = page.rows.last().map_or(after, |row| row.id);
        let mut gone = Vec::new();
        for row in page.rows {
            let (id, size) = (row.id, row.len());
            // What may have been sent is finished (MQTT 5.0 §4.4).
            let expires = expires(row).filter(|_| id > self.sent || self.again.contains(&id));
            let Some((at_ms, packet_id)) = expires else { continue };
            let due = Due { size, packet_id };
            if self.backlog.has(id) || self.abandoned.contains(&id) {
                self.expiring.found_busy(at_ms);
            } else if at_ms > now_ms {
                self.expiring.found(at_ms, id, due);
            } else {
                self.expiring.remove(at_ms, id);
                self.evict(id, due);
                gone.push(id);
            }
        }
        self.expiring.looked(upto, page.end, now_ms);
        gone
    }

    /// A row that expired is being deleted. Nothing else goes under its packet id until it is gone: if a crash brings it
    /// back, it is sent as something that was perhaps sent before.
    pub(super) fn evict(&mut self, id: u64, Due { size, packet_id }: Due) {
        self.leaving.insert(id, packet_id);
        if self.backlog.has(id) {
            self.evicted.insert(id);
        } else {
            self.backlog.discard(id);
        }
        self.empty(size);
    }
}

/// When a row expires, and its packet id.
fn expires(row: QueueRow) -> Option<(u64, u16)> {
    let mut value = row.value;
    let head = RowHead::decode(&mut value).filter(|head| !head.released)?;
    Some((Publication::decode(row.body.unwrap_or(value))?.properties?.expires_ms?, head.packet_id))
}
