//! JIDs as subscribers of topics: who subscribed to what, durably, and how events reach them.

use super::value;
use crate::blocking::block_list;
use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, HashMap},
    future::poll_fn,
    sync::Arc,
};
use tavi_core::{
    Envelope, Homes, Hosts, Parts, Principal, Publication, Qos, Refusal, SeatId, SubOptions, Subscriber, Topics, Weigh,
    accounts::Accounts,
    hooks::{OnSession, Place, SessionEvent},
    topics::RetainedStream,
};
use tavi_store::{Commit, Expect, Op, Owner, Row, SharedStore, StoreError, Table};
use tavi_wire::topic::matches;
use tavi_xmpp_proto::{BareJid, Jid, MessageType, Stanza, stanza::Head};
use tokio::sync::{
    Semaphore,
    broadcast::{self, error::RecvError},
};

/// Subscriptions of one account, device or bot.
const MAX_SUBSCRIPTIONS: usize = 1000;
/// Searches for last items that run at once.
const SEARCHES: usize = 2;
/// The longest JID that can be kept as an item's key, in bytes.
const MAX_JID: usize = 2000;
/// In front of the JID in the key of a subscription's row; the row's owner is the node.
const ROW: &str = "sub:";

/// All subscriptions of JIDs.
pub(super) struct Subscribers {
    subscribed: Mutex<HashMap<BareJid, Vec<Held>>>,
    topics: Arc<Topics>,
    homes: Arc<Homes>,
    hosts: Arc<Hosts>,
    store: SharedStore,
    accounts: Arc<Accounts>,
    /// So many search for last items at once; all others have their turns between.
    searches: Arc<Semaphore>,
}

/// One subscribed JID with its filters.
struct Held {
    jid: Jid,
    subscriber: Arc<dyn Subscriber>,
    filters: BTreeSet<Arc<str>>,
}

/// Why somebody cannot subscribe.
pub(super) enum Refused {
    /// The topics say no.
    Topics(Refusal),
    /// There are too many already.
    TooMany,
    /// The JID is too long to be kept.
    LongJid,
}

impl Subscribers {
    pub(super) fn new(parts: &Parts) -> Subscribers {
        Subscribers {
            subscribed: Mutex::default(),
            topics: parts.topics.clone(),
            homes: parts.homes.clone(),
            hosts: parts.hosts.clone(),
            store: parts.store.clone(),
            accounts: parts.accounts.clone(),
            searches: Arc::new(Semaphore::new(SEARCHES)),
        }
    }

    /// Puts back what was subscribed before the last stop.
    pub(super) async fn restore(&self) -> Result<(), StoreError> {
        let mut after: Option<(Owner, Box<str>)> = None;
        loop {
            let rows = self.store.scan(Table::Node, after.as_ref().map(|(o, i)| (o, &**i)), 1000).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some((last.owner.clone(), last.item.clone()));
            for row in rows.iter().filter(|row| row.item.starts_with(ROW)) {
                self.restore_row(row).await?;
            }
        }
    }

    async fn restore_row(&self, row: &Row) -> Result<(), StoreError> {
        let node = row.owner.name();
        let jid = row.item.strip_prefix(ROW).and_then(|jid| jid.parse::<Jid>().ok());
        let who = jid.and_then(|jid| self.hosts.principal(&jid.to_bare()).map(|who| (jid, who)));
        match who {
            Some((jid, who)) if self.exists(&who).await? => {
                let subscriber = self.subscriber(&jid, &who, node);
                self.topics.restore(&subscriber, node, OPTIONS);
                Ok(())
            }
            // The account was removed, or the domain is another one now.
            _ => {
                let op = Op::Delete { table: Table::Node, item: row.item.clone(), expect: Expect::Any };
                self.store.commit(&row.owner, vec![op]).await
            }
        }
    }

    async fn forget_if_gone(&self, account: &BareJid) -> Result<(), StoreError> {
        let Some(who) = self.hosts.principal(account) else { return Ok(()) };
        if self.exists(&who).await? {
            return Ok(());
        }
        for (jid, node) in self.of_account(account) {
            if let Some(commit) = self.remove(&jid, &node) {
                commit.await?;
            }
        }
        Ok(())
    }

    /// A bot is there when its script is, which is not known yet.
    async fn exists(&self, who: &Principal) -> Result<bool, StoreError> {
        match who {
            Principal::Account(jid) | Principal::Device(jid) => self.accounts.exists(jid).await,
            _ => Ok(true),
        }
    }

    /// Subscribes a JID; gives what is retained for it and the commit of the row.
    pub(super) fn add(&self, jid: &Jid, who: &Principal, node: &str) -> Result<(RetainedStream, Commit), Refused> {
        if jid.as_str().len() > MAX_JID {
            return Err(Refused::LongJid);
        }
        let all = self.of_account(&jid.to_bare());
        if all.len() >= MAX_SUBSCRIPTIONS && !all.iter().any(|(of, filter)| of == jid && **filter == *node) {
            return Err(Refused::TooMany);
        }
        let subscriber = self.known(jid).unwrap_or_else(|| self.make(jid, who));
        let joined = self.topics.join(&subscriber, node, OPTIONS).map_err(Refused::Topics)?;
        self.hold(jid, subscriber, node);
        let op = Op::Put { table: Table::Node, item: row(jid), value: Default::default(), expect: Expect::Any };
        Ok((joined.retained, self.store.commit(&Owner::topic(node), vec![op])))
    }

    /// Ends a subscription; `None` if there is none.
    pub(super) fn remove(&self, jid: &Jid, node: &str) -> Option<Commit> {
        let mut subscribed = self.subscribed.lock();
        let held = subscribed.get_mut(&jid.to_bare())?;
        let at = held.iter().position(|held| held.jid == *jid)?;
        if !held[at].filters.remove(node) {
            return None;
        }
        self.topics.unsubscribe(held[at].subscriber.id(), node);
        if held[at].filters.is_empty() {
            held.remove(at);
        }
        if held.is_empty() {
            subscribed.remove(&jid.to_bare());
        }
        let op = Op::Delete { table: Table::Node, item: row(jid), expect: Expect::Any };
        Some(self.store.commit(&Owner::topic(node), vec![op]))
    }

    /// All subscriptions of an account's JIDs: JID and node.
    pub(super) fn of_account(&self, account: &BareJid) -> Vec<(Jid, Arc<str>)> {
        let subscribed = self.subscribed.lock();
        let held = subscribed.get(account).into_iter().flatten();
        held.flat_map(|held| held.filters.iter().map(|filter| (held.jid.clone(), filter.clone()))).collect()
    }

    /// Who subscribed to exactly this node.
    pub(super) fn of_node(&self, node: &str) -> Vec<Jid> {
        let subscribed = self.subscribed.lock();
        subscribed.values().flatten().filter(|held| held.filters.contains(node)).map(|held| held.jid.clone()).collect()
    }

    /// The last item as a message to a subscriber (XEP-0060 §6.1.7).
    pub(super) fn last_item(&self, jid: &Jid, last: &Publication) -> Envelope {
        last_item(self.hosts.jid(crate::PUBSUB), jid, last)
    }

    /// Gives what a new subscription to a filter finds to the sessions of the JID, as they have room.
    pub(super) fn feed(&self, jid: &Jid, retained: &RetainedStream) {
        for seat in self.homes.receivers(jid) {
            let source = Source { jid: jid.clone(), filter: Arc::from(""), stream: retained.clone() };
            self.spawn_feed(seat, vec![source]);
        }
    }

    fn spawn_feed(&self, seat: SeatId, sources: Vec<Source>) {
        let pubsub = self.hosts.jid(crate::PUBSUB).clone();
        tokio::spawn(feed((pubsub, self.searches.clone()), (self.homes.clone(), seat), sources));
    }

    fn subscriber(&self, jid: &Jid, who: &Principal, node: &str) -> Arc<dyn Subscriber> {
        let subscriber = self.known(jid).unwrap_or_else(|| self.make(jid, who));
        self.hold(jid, subscriber.clone(), node);
        subscriber
    }

    fn known(&self, jid: &Jid) -> Option<Arc<dyn Subscriber>> {
        let subscribed = self.subscribed.lock();
        subscribed.get(&jid.to_bare())?.iter().find(|held| held.jid == *jid).map(|held| held.subscriber.clone())
    }

    fn make(&self, jid: &Jid, who: &Principal) -> Arc<dyn Subscriber> {
        Arc::new(Reader {
            id: self.topics.next_subscriber(),
            principal: who.clone(),
            jid: jid.clone(),
            pubsub: self.hosts.jid(crate::PUBSUB).clone(),
            homes: self.homes.clone(),
        })
    }

    fn hold(&self, jid: &Jid, subscriber: Arc<dyn Subscriber>, node: &str) {
        let mut subscribed = self.subscribed.lock();
        let held = subscribed.entry(jid.to_bare()).or_default();
        match held.iter_mut().find(|held| held.jid == *jid) {
            Some(held) => drop(held.filters.insert(node.into())),
            None => held.push(Held { jid: jid.clone(), subscriber, filters: BTreeSet::from([node.into()]) }),
        }
    }
}

/// Whoever is removed leaves no subscriptions to a successor of the same name. Ends with the broker.
pub(super) async fn forget_removed(subscribers: Arc<Subscribers>, mut revoked: broadcast::Receiver<BareJid>) {
    loop {
        let suspects = match revoked.recv().await {
            Ok(jid) => vec![jid],
            Err(RecvError::Lagged(_)) => subscribers.subscribed.lock().keys().cloned().collect(),
            Err(RecvError::Closed) => return,
        };
        for jid in suspects {
            if let Err(error) = subscribers.forget_if_gone(&jid).await {
                tracing::error!(%error, %jid, "the subscriptions of a removed account could not be deleted");
            }
        }
    }
}

/// XMPP publishes and receives as QoS 1 (semantics.md).
const OPTIONS: SubOptions =
    SubOptions { qos: Qos::AtLeastOnce, no_local: false, retain_as_published: false, identifier: 0 };

fn row(jid: &Jid) -> Box<str> {
    format!("{ROW}{jid}").into()
}

/// A message of the pubsub host: never kept, never copied (semantics.md).
pub(crate) fn notice(pubsub: &Jid, to: &Jid, event: bytes::Bytes) -> Envelope {
    let head = Head::message(MessageType::Headline).from(pubsub.clone()).to(to.clone());
    let mut env: Envelope = Stanza::new(head, None).into();
    env.add_fragment(event);
    env.as_copy()
}

/// One subscribed JID.
struct Reader {
    id: u64,
    principal: Principal,
    jid: Jid,
    pubsub: Jid,
    homes: Arc<Homes>,
}

impl Subscriber for Reader {
    fn id(&self) -> u64 {
        self.id
    }

    fn principal(&self) -> &Principal {
        &self.principal
    }

    fn deliver(&self, publication: &Arc<Publication>, _: &[SubOptions]) {
        let event = value::event(publication);
        if !event.is_empty() {
            self.homes.notify(&self.jid, notice(&self.pubsub, &self.jid, event));
        }
    }
}

impl OnSession for Subscribers {
    /// The last item on presence (XEP-0060 §12.1): by the account's own events, nobody sends presence to topics.
    fn on_session(&self, event: SessionEvent, id: u64, at: &mut Place<'_>) {
        let is_blocked = block_list(at.state).covers(self.hosts.jid(crate::PUBSUB));
        let wanted = event == SessionEvent::Available && !is_blocked;
        let Some(session) = at.state.session(id).filter(|_| wanted) else { return };
        let mut sources = Vec::new();
        for (jid, filter) in self.of_account(&at.account.jid) {
            if jid.is_bare() || jid == session.jid {
                let stream = self.topics.read_retained_as(&filter, &at.account.principal);
                sources.push(Source { jid, filter, stream });
            }
        }
        if !sources.is_empty() {
            self.spawn_feed(session.seat(), sources);
        }
    }
}

/// What is retained for one subscription.
struct Source {
    jid: Jid,
    filter: Arc<str>,
    stream: RetainedStream,
}

/// Hands last items to a session, each topic's once, as the session has room: there is no limit that cuts off, and
/// nobody waits for it. Ends with the session.
async fn feed(
    (pubsub, searches): (Jid, Arc<Semaphore>),
    (homes, seat): (Arc<Homes>, SeatId),
    mut sources: Vec<Source>,
) {
    for at in 0..sources.len() {
        let (before, rest) = sources.split_at_mut(at);
        let Source { jid, stream, .. } = &mut rest[0];
        // What the item that found no room weighs.
        let mut wanted = 0;
        loop {
            if poll_fn(|cx| homes.poll_space(&seat, wanted, cx)).await.is_err() {
                return;
            }
            let mut take = |last: &Arc<Publication>| {
                let fed = before.iter().any(|source| matches(&source.filter, &last.topic));
                fed || homes
                    .put(&seat, last_item(&pubsub, jid, last))
                    .inspect_err(|refused| wanted = refused.weight())
                    .is_ok()
            };
            // It is never closed; while one waits for room, another searches.
            let Ok(turn) = searches.acquire().await else { return };
            let given = poll_fn(|cx| stream.poll_give(cx, &mut take)).await;
            drop(turn);
            match given {
                Ok(given) if given || !stream.is_at_end() => {}
                Ok(_) => break,
                Err(error) => return tracing::error!(%error, to = %jid, "last items could not be read"),
            }
        }
    }
}

fn last_item(pubsub: &Jid, to: &Jid, last: &Publication) -> Envelope {
    let mut env = notice(pubsub, to, value::event(last));
    env.add_delay(pubsub.domain(), last.time_ms);
    env
}
