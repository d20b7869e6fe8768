//! Accounts in memory and their sessions. One lock per account guards its sessions, its roster and its offline mode.

use crate::{
    backlog,
    clock::Clock,
    envelope::Envelope,
    ledger::Ledger,
    mailbox::Closed,
    principal::{Host, Hosts, Principal},
    roster::Roster,
};
use hashbrown::HashMap;
use parking_lot::{Mutex, MutexGuard};
use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tavi_store::{IdSource, Owner, SharedStore, StoreError, Table};
use tavi_xmpp_proto::{
    jid::{BareJid, Jid},
    stanza::Stanza,
};

pub use crate::inbox::Inbox;

/// One session of an account.
pub struct SessionEntry {
    /// Its number; unique on this node.
    pub id: u64,
    /// Its full JID.
    pub jid: Jid,
    /// What waits for it.
    pub inbox: Arc<Inbox>,
    /// Whether it acknowledges what it gets (XEP-0198), so that rows are deleted on its word.
    pub managed: bool,
    /// It sent available presence.
    pub available: bool,
    /// It takes messages for the account: available with priority ≥ 0; what was kept comes first.
    pub receiving: bool,
    /// RFC 6121 §4.7.2.3, -128 to 127.
    pub priority: i8,
    /// Its last available presence, as it was sent.
    pub presence: Option<Box<Stanza>>,
    /// It asked for the roster and gets pushes (RFC 6121 §2.2).
    pub interested: bool,
    /// It wants copies (XEP-0280).
    pub carbons: bool,
    /// Who got its directed presence and must hear that it went (RFC 6121 §4.6).
    pub directed: Vec<Jid>,
}

/// What an account's lock guards.
#[derive(Default)]
pub struct AccountState {
    /// Its sessions, oldest first.
    pub sessions: Vec<SessionEntry>,
    /// Its contacts.
    pub roster: Roster,
    /// What is kept in its queue.
    pub kept: Kept,
    /// Which messages its sessions have.
    pub(crate) ledger: Ledger,
}

/// How much is kept in an account's queue; about, for the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    items: usize,
    bytes: usize,
    max: SessionLimits,
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
        self.sessions.iter_mut().find(|session| session.jid == *jid && session.inbox.closed().is_none())
    }

    /// Sessions that take messages for the account.
    pub fn receivers(&self) -> impl Iterator<Item = &SessionEntry> {
        self.sessions.iter().filter(|session| session.receiving && session.inbox.closed().is_none())
    }

    /// Sessions that sent available presence.
    pub fn available(&self) -> impl Iterator<Item = &SessionEntry> {
        self.sessions.iter().filter(|session| session.available && session.inbox.closed().is_none())
    }
}

/// An account, device or bot that somebody has to do with just now.
pub struct Account {
    /// Its bare JID.
    pub jid: BareJid,
    /// Who it is.
    pub principal: Principal,
    /// Its partition in the store.
    pub owner: Owner,
    state: Mutex<AccountState>,
    touched_ms: AtomicU64,
    store: SharedStore,
}

impl Account {
    pub(crate) fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Locks it. Nothing may be awaited while the guard lives.
    pub fn lock(&self) -> MutexGuard<'_, AccountState> {
        self.state.lock()
    }
}

/// A session just bound.
#[derive(Clone)]
pub struct Bound {
    /// Whose it is.
    pub account: Arc<Account>,
    /// Its number.
    pub id: u64,
    /// Its full JID.
    pub jid: Jid,
    /// What waits for it.
    pub inbox: Arc<Inbox>,
}

/// How much may wait for one session, and how many sessions an account may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Stanzas in an inbox.
    pub inbox_items: usize,
    /// Bytes in an inbox.
    pub inbox_bytes: usize,
    /// Sessions of one account.
    pub per_account: usize,
    /// Messages kept for one account.
    pub kept_items: usize,
    /// Bytes kept for one account.
    pub kept_bytes: usize,
}

impl Default for SessionLimits {
    fn default() -> SessionLimits {
        SessionLimits {
            inbox_items: 10_000,
            inbox_bytes: 4 << 20,
            per_account: 64,
            kept_items: 1000,
            kept_bytes: 16 << 20,
        }
    }
}

const SHARDS: usize = 16;
/// Accounts without sessions that stay in memory.
const MAX_IDLE: usize = 16 * 1024;
/// An account stays in memory this long after its last use: all its saves have landed by then.
const IDLE_MS: u64 = 60_000;

/// The accounts in memory.
pub struct Sessions {
    shards: [Mutex<HashMap<BareJid, Arc<Account>>>; SHARDS],
    hasher: RandomState,
    next: AtomicU64,
    hosts: Arc<Hosts>,
    store: SharedStore,
    ids: Arc<IdSource>,
    clock: Arc<dyn Clock>,
    limits: SessionLimits,
}

impl Sessions {
    /// No accounts yet.
    pub fn new(
        hosts: Arc<Hosts>,
        (store, ids): (SharedStore, Arc<IdSource>),
        clock: Arc<dyn Clock>,
        limits: SessionLimits,
    ) -> Sessions {
        let (shards, hasher) = (Default::default(), RandomState::new());
        Sessions { shards, hasher, next: AtomicU64::new(1), hosts, store, ids, clock, limits }
    }

    /// The account if it is in memory.
    pub fn known(&self, jid: &BareJid) -> Option<Arc<Account>> {
        let account = self.shard(jid).lock().get(jid).cloned()?;
        account.touched_ms.store(self.clock.now_ms(), Ordering::Relaxed);
        Some(account)
    }

    /// The account, read from the store if need be; `None` if there is no such account.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn account(&self, jid: &BareJid) -> Result<Option<Arc<Account>>, StoreError> {
        if let Some(account) = self.known(jid) {
            return Ok(Some(account));
        }
        let owner = Owner::account(jid.as_str());
        if self.store.load(&owner, Table::Account, "").await?.is_none() {
            return Ok(None);
        }
        self.read(jid, owner).await
    }

    /// A bot's account: it exists because its script does.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn seat(&self, jid: &BareJid) -> Result<Option<Arc<Account>>, StoreError> {
        match self.known(jid) {
            Some(account) => Ok(Some(account)),
            None => self.read(jid, Owner::account(jid.as_str())).await,
        }
    }

    async fn read(&self, jid: &BareJid, owner: Owner) -> Result<Option<Arc<Account>>, StoreError> {
        let Some(principal) = self.hosts.principal(jid) else { return Ok(None) };
        let size = self.store.queue_size(&owner).await?;
        let bytes = size.bytes as usize + size.rows as usize * 256;
        let kept = Kept { items: size.rows as usize, bytes, max: self.limits };
        let mut state = AccountState { kept, ..AccountState::default() };
        let mut after: Option<Box<str>> = None;
        loop {
            let rows = self.store.list(&owner, Table::Roster, after.as_deref(), 1000).await?;
            let Some((last, _)) = rows.last() else { break };
            after = Some(last.clone());
            rows.iter().for_each(|(item, record)| state.roster.take_row(item, &record.value));
        }
        let touched_ms = AtomicU64::new(self.clock.now_ms());
        let (store, state) = (self.store.clone(), Mutex::new(state));
        let fresh = Account { jid: jid.clone(), principal, owner, state, touched_ms, store };
        Ok(Some(self.admit(fresh)))
    }

    /// Puts an account into memory, unless somebody else just did.
    fn admit(&self, fresh: Account) -> Arc<Account> {
        let mut shard = self.shard(&fresh.jid).lock();
        if shard.len() >= MAX_IDLE / SHARDS {
            let now = self.clock.now_ms();
            shard.retain(|_, account| in_use(account, now));
        }
        shard.entry(fresh.jid.clone()).or_insert_with(|| Arc::new(fresh)).clone()
    }

    /// Gives a session a place in its account, which is locked; closes a former one with the same resource.
    pub(crate) fn enter(&self, account: &Arc<Account>, state: &mut AccountState, jid: Jid) -> Option<Bound> {
        let memory = backlog::Bound { items: self.limits.inbox_items, bytes: self.limits.inbox_bytes };
        let inbox = Arc::new(Inbox::new(memory, self.ids.clone()));
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(former) = state.session_at(&jid) {
            former.inbox.close(Closed::Replaced);
        } else if state.sessions.len() >= self.limits.per_account {
            return None;
        }
        let bound = Bound { account: account.clone(), id, jid: jid.clone(), inbox: inbox.clone() };
        state.sessions.push(SessionEntry {
            id,
            jid,
            inbox,
            managed: false,
            available: false,
            receiving: false,
            priority: 0,
            presence: None,
            interested: false,
            carbons: false,
            directed: Vec::new(),
        });
        Some(bound)
    }

    /// Closes all sessions of an account and forgets it: it was removed, or its rights were revoked.
    pub fn expel(&self, jid: &BareJid) {
        let account = self.shard(jid).lock().remove(jid);
        // The front ends end the sessions: so whoever saw them hears that they are gone.
        account.iter().for_each(|a| a.lock().sessions.iter().for_each(|session| session.inbox.close(Closed::Revoked)));
    }

    /// How many stanzas wait for sessions and bots, all together.
    pub fn waiting(&self) -> usize {
        let of = |account: &Arc<Account>| account.lock().sessions.iter().map(|s| s.inbox.len()).sum::<usize>();
        self.shards.iter().map(|shard| shard.lock().values().map(of).sum::<usize>()).sum()
    }

    /// The bots that have a seat, in order; at most `limit` from behind `after`.
    pub fn bots(&self, after: Option<&BareJid>, limit: usize) -> Vec<BareJid> {
        let mut bots = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let seated = shard.values().filter(|account| matches!(account.principal, Principal::Bot(_)));
            bots.extend(seated.map(|account| account.jid.clone()).filter(|jid| after.is_none_or(|after| jid > after)));
        }
        bots.sort_unstable();
        bots.truncate(limit);
        bots
    }

    /// Hands a stanza to all sessions of an account that take messages, if any; nothing is kept. For headlines that
    /// the broker makes (RFC 6121 §8.5.2.1.1).
    pub fn headline(&self, jid: &BareJid, envelope: &Envelope) -> usize {
        let Some(account) = self.known(jid) else { return 0 };
        let state = account.lock();
        let mut sent = 0;
        for session in state.receivers() {
            // Whoever does not read is cut off, and reads the last items when it comes back.
            session.inbox.push_or_close(envelope.clone());
            sent += 1;
        }
        sent
    }

    /// The main host's name, which stamps delays.
    pub(crate) fn domain(&self) -> &str {
        self.hosts.name(Host::Main)
    }

    fn shard(&self, jid: &BareJid) -> &Mutex<HashMap<BareJid, Arc<Account>>> {
        &self.shards[self.hasher.hash_one(jid) as usize % SHARDS]
    }
}

fn in_use(account: &Arc<Account>, now_ms: u64) -> bool {
    let idle = now_ms.saturating_sub(account.touched_ms.load(Ordering::Relaxed)) > IDLE_MS;
    // Somebody else may hold its lock, but then he also holds a reference.
    !idle || Arc::strong_count(account) > 1 || account.lock().sessions.iter().any(|s| s.inbox.closed().is_none())
}
