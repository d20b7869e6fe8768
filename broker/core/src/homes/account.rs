//! The home of an account, device or bot: its sessions' seats, its modules' parts, what is kept; one lock for all.

use super::{
    SessionLimits,
    marks::Marks,
    part::{AccountPart, PartsOf},
};
use crate::{inbox::Inbox, journal::Journal, landing::Post, ledger::Ledger, principal::Principal};
use parking_lot::{Mutex, MutexGuard};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tavi_store::{Owner, SharedStore};
use tavi_xmpp_proto::{
    jid::{BareJid, Jid},
    stanza::Stanza,
};

/// Which session is meant, from wherever: its owner, who has one home, and its number there. Cloning copies a pointer.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SeatId {
    /// Whose session.
    pub owner: BareJid,
    /// Its number; unique on the home's node.
    pub number: u64,
}

impl fmt::Debug for SeatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.owner, self.number)
    }
}

/// One session of an account.
pub struct SessionEntry {
    /// Its number; unique on this node.
    pub id: u64,
    /// Its full JID.
    pub jid: Jid,
    /// What it is owed.
    pub(crate) inbox: Arc<Inbox>,
    /// It sent available presence.
    pub available: bool,
    /// It takes messages for the account: available with priority ≥ 0; what was kept comes first.
    pub receiving: bool,
    /// RFC 6121 §4.7.2.3, -128 to 127.
    pub priority: i8,
    /// Its last available presence, as it was sent.
    pub presence: Option<Arc<Stanza>>,
    /// It asked for the roster and gets pushes (RFC 6121 §2.2).
    pub interested: bool,
    /// It wants copies (XEP-0280).
    pub carbons: bool,
    /// Who got its directed presence and must hear that it went (RFC 6121 §4.6).
    pub directed: Vec<Jid>,
    /// What else modules know of it.
    pub marks: Marks,
}

impl SessionEntry {
    pub(crate) fn new(id: u64, jid: Jid, inbox: Arc<Inbox>) -> SessionEntry {
        SessionEntry {
            id,
            jid,
            inbox,
            available: false,
            receiving: false,
            priority: 0,
            presence: None,
            interested: false,
            carbons: false,
            directed: Vec::new(),
            marks: Marks::default(),
        }
    }

    /// How others name it.
    pub fn seat(&self) -> SeatId {
        SeatId { owner: self.jid.to_bare(), number: self.id }
    }

    /// Whether it may take messages for the account (RFC 6121 §8.5.2, XEP-0160 §3).
    pub(crate) fn may_receive(&self) -> bool {
        self.is_open() && self.available && self.priority >= 0
    }

    /// Whether it has not ended, nor been replaced or cut off.
    pub fn is_open(&self) -> bool {
        self.inbox.closed().is_none()
    }
}

/// What an account's lock guards.
#[derive(Default)]
pub struct AccountState {
    /// Its sessions, oldest first.
    pub sessions: Vec<SessionEntry>,
    /// What is kept in its queue.
    pub kept: Kept,
    /// Which messages its sessions have.
    pub(crate) ledger: Ledger,
    pub(super) parts: PartsOf,
}

/// How much is kept in an account's queue; about, for the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    pub(super) items: usize,
    pub(super) bytes: usize,
    pub(super) max: SessionLimits,
}

impl Kept {
    /// Whether there is no room for one more.
    pub fn is_full(&self) -> bool {
        self.items >= self.max.kept_items || self.bytes >= self.max.kept_bytes
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.items += 1;
        self.bytes += bytes;
    }

    pub(crate) fn remove(&mut self, bytes: usize) {
        self.items = self.items.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl AccountState {
    /// The session with that number.
    pub fn session(&mut self, id: u64) -> Option<&mut SessionEntry> {
        self.sessions.iter_mut().find(|session| session.id == id)
    }

    /// The live session with that full JID; one that was replaced may stand beside it for a moment.
    pub fn session_at(&mut self, jid: &Jid) -> Option<&mut SessionEntry> {
        self.sessions.iter_mut().find(|session| session.jid == *jid && session.is_open())
    }

    /// Sessions that take messages for the account.
    pub fn receivers(&self) -> impl Iterator<Item = &SessionEntry> {
        self.sessions.iter().filter(|session| session.receiving && session.is_open())
    }

    /// Sessions that sent available presence.
    pub fn available(&self) -> impl Iterator<Item = &SessionEntry> {
        self.sessions.iter().filter(|session| session.available && session.is_open())
    }

    /// A module's part; `None` only if it was not registered.
    pub fn part<T: AccountPart>(&self) -> Option<&T> {
        self.parts.get()
    }

    /// A module's part to be changed; an empty one if it was not registered.
    pub fn part_mut<T: AccountPart>(&mut self) -> &mut T {
        if self.parts.get::<T>().is_none() {
            self.parts.insert(T::default());
        }
        // It was inserted just now if it was not there.
        self.parts.get_mut().expect("the part is there")
    }

    /// Whether nobody would miss it: no session, no message that is decided and not in the store or acknowledged.
    fn is_idle(&mut self) -> bool {
        self.ledger.is_idle() && self.sessions.iter().all(|session| !session.is_open())
    }
}

/// An account, device or bot that somebody has to do with just now: its home.
pub struct Account {
    /// Its bare JID.
    pub jid: BareJid,
    /// Who it is.
    pub principal: Principal,
    /// Its partition in the store.
    pub owner: Owner,
    pub(super) state: Mutex<AccountState>,
    /// Somebody has had to do with it since the hand came by.
    pub(super) used: AtomicBool,
    /// When the hand last found it used.
    pub(super) seen_ms: AtomicU64,
    pub(super) store: SharedStore,
    pub(super) post: Arc<Post>,
    pub(super) journal: Arc<Journal>,
}

/// An account stays in memory this long after the hand found it used: all its saves have landed by then.
const IDLE_MS: u64 = 60_000;

impl Account {
    pub(crate) fn store(&self) -> &SharedStore {
        &self.store
    }

    pub(crate) fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    pub(crate) fn post(&self) -> &Arc<Post> {
        &self.post
    }

    /// Locks it. Nothing may be awaited while the guard lives.
    pub(crate) fn lock(&self) -> MutexGuard<'_, AccountState> {
        self.state.lock()
    }

    /// Decides something at the home of the account, under its lock. For what runs at the home anyway: handlers of its
    /// own requests, services, operators' questions.
    pub fn at_home<T>(&self, decide: impl FnOnce(&mut AccountState) -> T) -> T {
        decide(&mut self.lock())
    }

    /// How many sessions it has.
    pub fn session_count(&self) -> usize {
        self.lock().sessions.len()
    }

    fn is_idle(&self, state: &mut AccountState) -> bool {
        let idle = state.is_idle();
        self.journal.deleted(state.ledger.take_deleted());
        idle
    }

    pub(super) fn touch(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Whether its home may be let go of.
    pub(super) fn may_go(self: &Arc<Self>, now_ms: u64) -> bool {
        if self.used.swap(false, Ordering::Relaxed) {
            self.seen_ms.store(now_ms, Ordering::Relaxed);
        }
        let rested = now_ms.saturating_sub(self.seen_ms.load(Ordering::Relaxed)) > IDLE_MS;
        // Somebody else may hold its lock, but then he also holds a reference.
        rested
            && Arc::strong_count(self) == 1
            && self.state.try_lock().is_some_and(|mut state| self.is_idle(&mut state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_not_let_go_of_while_a_message_is_decided_and_not_saved() {
        let mut state = AccountState::default();
        assert!(state.is_idle());
        state.ledger.owe(1, &[], Some(10), true);
        assert!(!state.is_idle());
        state.ledger.settle(1);
        assert!(state.is_idle());
    }
}
