//! Homes: where an owner's state is in memory and all that needs an order is decided, one after the other.
//!
//! An account is found by its bare JID, read on first use with the parts that modules registered, and let go of when
//! nobody has used it for a while. Whoever is not at home names a [`SeatId`] and asks here; nobody else holds a lock or
//! an inbox.

mod account;
mod marks;
mod part;
mod table;

pub use account::{Account, AccountState, Kept, SeatId, SessionEntry};
pub use marks::Marks;
pub use part::AccountPart;
pub(crate) use part::{Loader, loader};

use crate::{
    backlog,
    clock::Clock,
    envelope::Envelope,
    inbox::Inbox,
    journal::Journal,
    landing::Post,
    mailbox::Closed,
    metrics::{Metrics, Protocol},
    principal::{Host, Hosts, Principal},
};
use hashbrown::DefaultHashBuilder;
use parking_lot::Mutex;
use part::PartsOf;
use std::{
    array,
    hash::BuildHasher,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};
use table::Table;
use tavi_store::{IdSource, Owner, SharedStore, StoreError};
use tavi_xmpp_proto::jid::{BareJid, Jid};

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
/// With more homes than this in memory, those that nobody needs are let go of.
const MAX_IDLE: usize = 16 * 1024;

type Shard = Mutex<Table<BareJid, Arc<Account>>>;

/// The homes in memory.
pub struct Homes {
    shards: [Shard; SHARDS],
    hasher: DefaultHashBuilder,
    next: AtomicU64,
    hosts: Arc<Hosts>,
    store: SharedStore,
    ids: Arc<IdSource>,
    clock: Arc<dyn Clock>,
    limits: SessionLimits,
    metrics: Arc<Metrics>,
    loaders: OnceLock<Vec<Loader>>,
    journal: OnceLock<Arc<Journal>>,
    post: Arc<Post>,
}

impl Homes {
    /// Nobody is at home yet.
    pub fn new(
        hosts: Arc<Hosts>,
        (store, ids): (SharedStore, Arc<IdSource>),
        clock: Arc<dyn Clock>,
        (limits, metrics): (SessionLimits, Arc<Metrics>),
    ) -> Homes {
        Homes {
            shards: array::from_fn(|_| Mutex::new(Table::new(MAX_IDLE / SHARDS))),
            hasher: DefaultHashBuilder::default(),
            next: AtomicU64::new(1),
            hosts,
            store,
            ids,
            clock,
            limits,
            metrics,
            loaders: OnceLock::new(),
            journal: OnceLock::new(),
            post: Arc::default(),
        }
    }

    /// What modules registered and where streams are noted, before anybody comes home.
    pub(crate) fn furnish(&self, loaders: Vec<Loader>, journal: Arc<Journal>) {
        if self.loaders.set(loaders).is_err() || self.journal.set(journal).is_err() {
            tracing::error!("a second node over the same homes");
        }
    }

    pub(crate) fn post(&self) -> &Arc<Post> {
        &self.post
    }

    /// The account if it is in memory.
    pub fn known(&self, jid: &BareJid) -> Option<Arc<Account>> {
        let account = self.shard(jid).lock().get(jid).cloned()?;
        account.touch();
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
        if self.store.load(&owner, tavi_store::Table::Account, "").await?.is_none() {
            return Ok(None);
        }
        self.read(jid, owner).await
    }

    /// A bot's account: it exists because its script does.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn bot(&self, jid: &BareJid) -> Result<Option<Arc<Account>>, StoreError> {
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
        let loaders = self.loaders.get().map(Vec::as_slice).unwrap_or_default();
        let parts = PartsOf::load(loaders, &self.store, &owner).await?;
        let state = Mutex::new(AccountState { kept, parts, ..AccountState::default() });
        let (used, seen_ms) = (AtomicBool::new(true), AtomicU64::new(self.clock.now_ms()));
        let (store, post) = (self.store.clone(), self.post.clone());
        let journal = self.journal.get().cloned().unwrap_or_else(|| Arc::new(Journal::none()));
        let fresh = Account { jid: jid.clone(), principal, owner, state, used, seen_ms, store, post, journal };
        Ok(Some(self.admit(fresh)))
    }

    /// Puts an account into memory, unless somebody else just did.
    fn admit(&self, fresh: Account) -> Arc<Account> {
        let (now, jid) = (self.clock.now_ms(), fresh.jid.clone());
        self.shard(&jid).lock().admit(&jid, Arc::new(fresh), |account| account.may_go(now))
    }

    /// Gives a session a place in its account, which is locked; closes a former one with the same resource.
    pub(crate) fn enter(&self, state: &mut AccountState, jid: Jid) -> Option<(SeatId, Arc<Inbox>)> {
        let memory = backlog::Bound { items: self.limits.inbox_items, bytes: self.limits.inbox_bytes };
        let is_bot = matches!(self.hosts.principal(&jid.to_bare()), Some(Principal::Bot(_)));
        let protocol = if is_bot { Protocol::Bot } else { Protocol::Xmpp };
        let inbox = Arc::new(Inbox::new(memory, self.ids.clone()).counted(self.metrics.clone(), protocol));
        if let Some(former) = state.session_at(&jid) {
            former.inbox.close(Closed::Replaced);
        } else if state.sessions.len() >= self.limits.per_account && !make_way(state, self.limits.per_account) {
            return None;
        }
        let seat = SeatId { owner: jid.to_bare(), number: self.next.fetch_add(1, Ordering::Relaxed) };
        state.sessions.push(SessionEntry::new(seat.number, jid, inbox.clone()));
        Some((seat, inbox))
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

    /// Hands a notice that the broker made to a session, or with a bare JID to all that take messages (RFC 6121
    /// §8.5.2.1.1), wherever they are home; nothing is kept. Filters see it first.
    pub fn notify(&self, to: &Jid, envelope: Envelope) {
        if let Err(envelope) = self.notify_here(to, envelope) {
            self.post.notify(&to.to_bare(), *envelope);
        }
    }

    /// The same for those who are home here; back comes what is for an account that is not in memory.
    pub(crate) fn notify_here(&self, to: &Jid, mut envelope: Envelope) -> Result<(), Box<Envelope>> {
        let Some(account) = self.known(&to.to_bare()) else { return Err(Box::new(envelope)) };
        let mut state = account.lock();
        if !self.post.lets_in(&mut envelope, (&account, &mut state)) {
            return Ok(());
        }
        // Whoever does not read goes without, and finds the last items when it comes back.
        if to.is_bare() {
            state.receivers().for_each(|session| session.inbox.push_or_close(envelope.clone()));
        } else if let Some(session) = state.session_at(to) {
            session.inbox.push_or_close(envelope);
        }
        Ok(())
    }

    /// The sessions of a JID that take messages: that of a full one, or all of a bare one.
    pub fn receivers(&self, jid: &Jid) -> Vec<SeatId> {
        let Some(account) = self.known(&jid.to_bare()) else { return Vec::new() };
        let state = account.lock();
        let wanted = state.receivers().filter(|session| jid.is_bare() || session.jid == *jid);
        wanted.map(SessionEntry::seat).collect()
    }

    /// Puts something that is not kept into a session's backlog; back comes what it does not take.
    ///
    /// # Errors
    /// The envelope, if the session has ended or has no room.
    pub fn put(&self, seat: &SeatId, envelope: Envelope) -> Result<(), Box<Envelope>> {
        match self.inbox(seat) {
            Some(inbox) => inbox.push(envelope),
            None => Err(Box::new(envelope)),
        }
    }

    /// Ready when less than half the room of a session is taken: for somebody who hands over a long list.
    ///
    /// # Errors
    /// The reason, once it has ended.
    pub fn poll_space(&self, seat: &SeatId, bytes: usize, cx: &Context<'_>) -> Poll<Result<(), Closed>> {
        self.inbox(seat).map_or(Poll::Ready(Err(Closed::Gone)), |inbox| inbox.poll_space(bytes, cx))
    }

    pub(crate) fn inbox(&self, seat: &SeatId) -> Option<Arc<Inbox>> {
        let account = self.known(&seat.owner)?;
        let inbox = account.lock().session(seat.number)?.inbox.clone();
        Some(inbox)
    }

    /// The main host's name, which stamps delays.
    pub(crate) fn domain(&self) -> &str {
        self.hosts.name(Host::Main)
    }

    fn shard(&self, jid: &BareJid) -> &Shard {
        &self.shards[self.hasher.hash_one(jid) as usize % SHARDS]
    }
}

/// Too many sessions: the oldest one without a connection ends, so that its owner can come in. False if there is none, or if
/// as many as there may be are ending already.
fn make_way(state: &AccountState, most: usize) -> bool {
    let gone = state.sessions.iter().find(|session| session.is_open() && session.inbox.is_detached());
    let way = gone.filter(|_| state.sessions.len() < 2 * most);
    way.iter().for_each(|session| session.inbox.close(Closed::Gone));
    way.is_some()
}
