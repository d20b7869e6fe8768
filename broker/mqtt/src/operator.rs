//! What an operator sees of the sessions, and that he may end one.

use std::sync::Arc;

use tavi_core::topics::SubOptions;
use tavi_core::{Closed, Ticket};
use tavi_store::{Owner, QueueSize};

use crate::entry::{Key, Look};
use crate::hub::{Hub, Seat};
use crate::record;

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Whose, and of which client.
    pub key: Key,
    /// Whether the client is connected.
    pub connected: bool,
    /// Whether it outlives its connection.
    pub durable: bool,
    /// In how many milliseconds it ends if the client does not come back; `None`: never, or it is connected.
    pub ends_in_ms: Option<u64>,
    /// How many subscriptions it has; known of durable ones.
    pub subscriptions: Option<usize>,
    /// What is stored for it.
    pub stored: QueueSize,
    /// How many deliveries wait for it in memory.
    pub waiting: usize,
    /// Whether it has a will.
    pub will: bool,
}

/// What a session subscribes to.
pub type Filters = Vec<(Box<str>, SubOptions)>;

impl SessionInfo {
    fn new(look: &Look<Seat>, now_ms: u64) -> Self {
        let kept = look.seat.kept();
        Self {
            key: look.key.clone(),
            connected: look.held,
            durable: look.durable,
            ends_in_ms: look.ends_ms.map(|at| at.saturating_sub(now_ms)),
            subscriptions: kept.map(|seat| seat.filter_count()),
            stored: kept.map_or_else(QueueSize::default, |seat| seat.size()),
            waiting: look.seat.waiting(),
            will: look.will,
        }
    }
}

impl Hub {
    /// At most `limit` sessions behind a key, of all or of one principal, in the order of their keys.
    pub fn sessions(&self, subject: Option<&str>, after: Option<&Key>, limit: usize) -> Vec<SessionInfo> {
        let looks = self.looks_behind(subject, after, limit);
        let now_ms = self.monotonic_ms();
        looks.iter().map(|look| SessionInfo::new(look, now_ms)).collect()
    }

    /// One session, with its subscriptions if it is durable.
    pub fn session(&self, key: &Key) -> Option<(SessionInfo, Filters)> {
        let look = self.look(key)?;
        let filters = look.seat.kept().map(|seat| seat.filters()).unwrap_or_default();
        Some((SessionInfo::new(&look, self.monotonic_ms()), filters))
    }

    /// Ends a session as if its time had come: its client, if connected, is told so (MQTT 5.0 §3.14.2.1: 0x98), its
    /// will is published, and what is stored for it goes. `None`: there is none. The ticket completes when that is
    /// durable.
    pub fn end_session(self: &Arc<Self>, key: &Key) -> Option<Ticket> {
        let mut sessions = self.lock();
        let (due, seat, woken) = sessions.entries.end(key)?;
        sessions.wake(woken);
        seat.tell(Closed::Revoked);
        self.act(&mut sessions, due);
        // Of one owner what comes later lands later. A clean session has nothing but a will.
        Some(self.commit(&Owner::mqtt(&key.0, &key.1), vec![record::delete(record::WILL)]))
    }
}
