//! Topics: who subscribes, what was published last, and the one law of publishing.
//!
//! Permit, receivers, id, retain, rows for durable subscribers; then, when all is saved, the deliveries, in the order in
//! which the publications of a topic were begun.

mod kept;
mod landing;
mod making;
mod place;
mod quota;
mod receivers;
mod retained;
mod seats;
mod subscriber;
mod tidy;

pub use kept::Listing;
pub use quota::{OverQuota, Quota};
pub use retained::RetainedStream;
pub use seats::{Seating, Seats};
pub use subscriber::{Rows, SeatName, SubOptions, Subscriber};
pub use tidy::Tidy;

use crate::{
    clock::Clock,
    landing::Deed,
    permit::{Action, Permit},
    principal::Principal,
    publication::{Change, ContentType, Properties, Publication, Qos, Rendered},
    ticket::Ticket,
    trie::Trie,
};
use bytes::Bytes;
use hashbrown::HashMap;
use kept::{at_once, retained_op};
use landing::Open;
pub(crate) use landing::{Late, Turn};
use parking_lot::{Mutex, RwLock};
use place::Places;
use quota::{Bound, Purses};
use receivers::{Entry, Match};
use retained::Saving;
use smallvec::SmallVec;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tavi_store::id::time_of;
use tavi_store::{Commit, IdSource, Owner, SharedStore, StoreError, Table};
use tavi_wire::topic::{check_filter, check_topic};

/// Why a verb of topics was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not permitted, or not there: both answer alike.
    #[error("not permitted")]
    Forbidden,
    /// No legal topic or filter.
    #[error("{0}")]
    IllegalTopic(tavi_wire::topic::TopicError),
    /// The publisher keeps as much as one may keep.
    #[error("{0}")]
    OverQuota(OverQuota),
    /// The store cannot be read.
    #[error("{0}")]
    Unavailable(#[from] StoreError),
}

/// A publication to be made; the broker adds id and time.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Where.
    pub topic: Arc<str>,
    /// A value, or its end.
    pub change: Change,
    /// The bytes.
    pub payload: Bytes,
    /// What they are.
    pub content_type: Option<ContentType>,
    /// The publisher's guarantee.
    pub qos: Qos,
    /// Whether it becomes the retained value.
    pub retain: bool,
    /// The publishing subscriber's number, for "no local"; 0 if none.
    pub from_session: u64,
    /// The id that a publication already has which the last process did not finish (MQTT QoS 2).
    pub id: Option<u64>,
    /// The id of an attempt that failed.
    pub replaces: Option<u64>,
    /// The item id that the publisher chose.
    pub item: Option<Box<str>>,
    /// MQTT 5 properties.
    pub properties: Option<Box<Properties>>,
}

/// What a subscription found.
#[derive(Default)]
pub struct Subscribed {
    /// Whether this subscriber already had this filter.
    pub existed: bool,
    /// Retained values that the filter matches and the subscriber may retrieve, in topic order.
    pub retained: Vec<Arc<Publication>>,
    /// Complete when a durable subscriber's rows are saved of what was being published just then: to be waited for
    /// before the subscription is acknowledged.
    pub ticket: Ticket,
}

impl fmt::Debug for Subscribed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribed")
            .field("existed", &self.existed)
            .field("retained", &self.retained)
            .finish_non_exhaustive()
    }
}

/// A subscription, and what is retained for it.
#[derive(Debug)]
pub struct Joined {
    /// Whether this subscriber already had this filter.
    pub existed: bool,
    /// The retained values that it finds. Whoever wants none drops it.
    pub retained: RetainedStream,
}

/// Whose subscription it is, by which group, with which filter.
type Share = (u64, Arc<str>, Arc<str>);

/// All topics of a node.
pub struct Topics {
    trie: RwLock<Trie<Entry>>,
    /// The key in the trie of each subscription of a group.
    shares: Mutex<HashMap<Share, u64>>,
    subscribers: AtomicU64,
    seats: Arc<Seats>,
    turns: AtomicU64,
    removals: AtomicU64,
    places: Places,
    saving: Saving,
    purses: Purses,
    /// Expired values that readers met.
    met: Mutex<Vec<Arc<Publication>>>,
    /// When the next retained value expires, as far as it is known.
    soonest: AtomicU64,
    permit: Arc<Permit>,
    store: SharedStore,
    ids: Arc<IdSource>,
    clock: Arc<dyn Clock>,
}

/// After so many ended subscriptions, receivers that are kept for quiet topics are let go.
const REMOVALS: u64 = 4096;

impl Topics {
    /// The topics whose retained values are in `store`; none is read before somebody asks for it.
    ///
    /// # Errors
    /// None today; a store that has to be prepared may have some.
    pub async fn load(
        store: SharedStore,
        permit: Arc<Permit>,
        ids: Arc<IdSource>,
        clock: Arc<dyn Clock>,
    ) -> Result<Topics, StoreError> {
        Ok(Topics {
            trie: RwLock::default(),
            shares: Mutex::default(),
            subscribers: AtomicU64::new(1),
            seats: Arc::default(),
            turns: AtomicU64::new(0),
            removals: AtomicU64::new(0),
            places: Places::default(),
            saving: Saving::default(),
            purses: Purses::default(),
            met: Mutex::default(),
            // Nobody knows before all were looked at.
            soonest: AtomicU64::new(0),
            permit,
            store,
            ids,
            clock,
        })
    }

    /// A number for a new subscriber.
    pub fn next_subscriber(&self) -> u64 {
        self.subscribers.fetch_add(1, Ordering::Relaxed)
    }

    /// The seats that are known by name.
    pub fn seats(&self) -> &Arc<Seats> {
        &self.seats
    }

    /// A seat that `make` makes, and that the topics know by its name only.
    pub fn seat<S: Subscriber + 'static>(&self, who: &Principal, make: impl FnOnce(Seating) -> S) -> Arc<S> {
        self.seats.make((self.next_subscriber(), who), make)
    }

    /// Publishes. The ticket completes when all that must be durable is, and then delivers.
    ///
    /// # Errors
    /// An illegal topic, a publisher who may not, or one who keeps too much already.
    pub fn publish(self: &Arc<Self>, from: &Principal, draft: Draft) -> Result<Ticket, Refusal> {
        let action = if draft.change == Change::Clear { Action::Delete } else { Action::Publish };
        self.publish_as(from, action, draft)
    }

    /// The same for MQTT, which has no verb to delete: who may publish a retained value may also take it away with an
    /// empty one, so it asks for [`Action::Publish`] always.
    ///
    /// # Errors
    /// As for [`Topics::publish`].
    pub fn publish_as(self: &Arc<Self>, from: &Principal, action: Action, draft: Draft) -> Result<Ticket, Refusal> {
        self.ask_publish(from, action, &draft.topic)?;
        self.begin((from, Bound::Quota), draft, None::<fn(u64) -> Commit>)
    }

    /// The same for what has to be noted before anybody gets it: `first` saves the note under the id that is drawn.
    /// The publication has its place in its topic and with its receivers from now on, and is saved when the note is.
    ///
    /// # Errors
    /// As for [`Topics::publish`]; then `first` was not called.
    pub fn publish_noted(
        self: &Arc<Self>,
        (from, action): (&Principal, Action),
        draft: Draft,
        first: impl FnOnce(u64) -> Commit,
    ) -> Result<Ticket, Refusal> {
        self.ask_publish(from, action, &draft.topic)?;
        self.begin((from, Bound::Quota), draft, Some(first))
    }

    fn ask_publish(&self, from: &Principal, action: Action, topic: &str) -> Result<(), Refusal> {
        check_topic(topic).map_err(Refusal::IllegalTopic)?;
        if self.permit.may(from, action, topic) {
            return Ok(());
        }
        self.permit.log_refusal(from, action, topic);
        Err(Refusal::Forbidden)
    }

    /// Publishes without asking the access model: for what only the broker writes, such as a device's `state`, and
    /// for publications that were permitted before a restart.
    pub fn publish_unasked(self: &Arc<Self>, from: &Principal, draft: Draft) -> Ticket {
        self.begin((from, Bound::None), draft, None::<fn(u64) -> Commit>).unwrap_or_else(|refusal| {
            Ticket::failed(match refusal {
                Refusal::Unavailable(error) => error,
                other => StoreError::Invalid(other.to_string().into()),
            })
        })
    }

    fn begin(
        self: &Arc<Self>,
        (from, bound): (&Principal, Bound),
        mut draft: Draft,
        first: Option<impl FnOnce(u64) -> Commit>,
    ) -> Result<Ticket, Refusal> {
        if draft.change == Change::Clear {
            draft.retain = true;
            draft.item = self.ended_item(&mut draft)?;
        }
        let fresh = draft.id.is_none();
        let place = self.places.at(&draft.topic);
        let mut state = place.state.lock();
        if draft.retain {
            self.pay(&mut state, (from, &draft), if fresh { bound } else { Bound::None })?;
            // Before the receivers are taken: who is not among them finds the topic here.
            self.saving.enter(&draft.topic);
        }
        let (audience, seen) = self.audience(&mut state.found, &draft.topic);
        let mut publication = self.publication(from, draft);
        publication.rendered.is_shared = audience.is_many();
        let publication = Arc::new(publication);
        if publication.retain {
            self.paid(&mut state, &publication, fresh);
            self.expires(&publication);
        }
        let mut ticket = Ticket::done();
        let own = publication.retain.then(|| (Owner::topic(&publication.topic), vec![retained_op(&publication)]));
        let note = first.map(|first| first(publication.id));
        let mut open = Open::new(publication, fresh, (audience, seen));
        self.make_rows(&mut state, (&mut open, own), (&mut ticket, note));
        let turn = Turn::begin(self, &place, &mut state, open);
        drop(state);
        ticket.then(Deed::Turn(turn));
        Ok(ticket)
    }

    /// Subscribes to a filter; the subscriber gets everything that is published from now on, and the stream gives what
    /// was published before.
    ///
    /// # Errors
    /// An illegal filter, or one that matches a topic to which the subscriber has no right.
    pub fn join(
        self: &Arc<Self>,
        subscriber: &Arc<dyn Subscriber>,
        filter: &str,
        options: SubOptions,
    ) -> Result<Joined, Refusal> {
        self.ask_filter(subscriber.principal(), filter)?;
        let (existed, since) = self.insert(subscriber, filter, options);
        Ok(Joined { existed, retained: RetainedStream::new(self, filter, Some(subscriber.principal()), since) })
    }

    /// Subscribes to a filter and gives all retained values at once: for a filter that finds few. The subscriber also
    /// gets what is just being saved, as a delivery.
    ///
    /// # Errors
    /// An illegal filter, or one that matches a topic to which the subscriber has no right.
    pub fn subscribe(
        &self,
        subscriber: &Arc<dyn Subscriber>,
        filter: &str,
        options: SubOptions,
    ) -> Result<Subscribed, Refusal> {
        let who = subscriber.principal();
        self.ask_filter(who, filter)?;
        let (existed, coming, ticket) = self.begin_at_once(subscriber, (filter, options), |_| true);
        let mut retained = self.all_retained(filter)?;
        // Reading what is retained is an action of its own (semantics.md, permissions).
        retained.retain(|p| !coming.contains(&p.id) && self.permit.may(who, Action::Retrieve, &p.topic));
        Ok(Subscribed { existed, retained, ticket })
    }

    /// Subscribes one to whom what is kept already is no news. What is just being saved is news: it comes as a delivery,
    /// once, though another filter finds it too.
    ///
    /// # Errors
    /// As for [`Topics::join`].
    pub fn listen(
        &self,
        subscriber: &Arc<dyn Subscriber>,
        filter: &str,
        options: SubOptions,
    ) -> Result<Ticket, Refusal> {
        self.ask_filter(subscriber.principal(), filter)?;
        let id = subscriber.id();
        Ok(self.begin_at_once(subscriber, (filter, options), |open| !open.audience.has(id)).2)
    }

    /// Whether it was subscribed, the ids of what is being saved and will be delivered, and the ticket of that.
    fn begin_at_once(
        &self,
        subscriber: &Arc<dyn Subscriber>,
        (filter, options): (&str, SubOptions),
        is_news: impl Fn(&Open) -> bool,
    ) -> (bool, Vec<u64>, Ticket) {
        let (existed, since) = self.insert(subscriber, filter, options);
        let mut ticket = Ticket::done();
        let joining = Match { subscriber: subscriber.clone(), options: SmallVec::from_elem(options, 1) };
        let is_missed = |open: &Open| open.is_missed(since) && joining.wants(&open.publication) && is_news(open);
        let coming = self.join_open(&joining, filter, is_missed, &mut ticket);
        (existed, coming, ticket)
    }

    /// Subscribes as a member of a group: of its members one gets each publication (MQTT 5 §4.8.2, which gives them no
    /// retained values). Gives whether it was a member.
    ///
    /// # Errors
    /// As for [`Topics::join`].
    pub fn share(
        &self,
        subscriber: &Arc<dyn Subscriber>,
        group: &str,
        (filter, options): (&str, SubOptions),
    ) -> Result<bool, Refusal> {
        self.ask_filter(subscriber.principal(), filter)?;
        let share: Share = (subscriber.id(), group.into(), filter.into());
        let entry = Entry { subscriber: subscriber.clone(), options, group: Some(share.1.clone()) };
        let key = *self.shares.lock().entry(share).or_insert_with(|| self.next_subscriber());
        Ok(self.trie.write().insert(filter, key, entry).is_some())
    }

    /// Ends a membership; gives whether there was one.
    pub fn unshare(&self, subscriber: u64, group: &str, filter: &str) -> bool {
        let key = self.shares.lock().remove(&(subscriber, group.into(), filter.into()));
        key.is_some_and(|key| self.unsubscribe(key, filter))
    }

    /// Puts a subscription back that was permitted before a restart; each delivery asks the access model all the
    /// same. Gives whether it was there.
    pub fn restore(&self, subscriber: &Arc<dyn Subscriber>, filter: &str, options: SubOptions) -> bool {
        self.insert(subscriber, filter, options).0
    }

    /// Ends a subscription; gives whether there was one.
    pub fn unsubscribe(&self, subscriber: u64, filter: &str) -> bool {
        let former = self.trie.write().remove(filter, subscriber);
        if former.is_none() {
            return false;
        }
        if let Some(place) = self.places.known(filter)
            && let Some(mut state) = place.state.try_lock()
        {
            state.found = None;
        }
        if self.removals.fetch_add(1, Ordering::Relaxed) % REMOVALS == REMOVALS - 1 {
            self.places.forget_receivers();
        }
        true
    }

    /// The retained values that a legal filter finds, whoever may read them.
    pub fn read_retained(self: &Arc<Self>, filter: &str) -> RetainedStream {
        RetainedStream::new(self, filter, None, 0)
    }

    /// Those that `who` may read.
    pub fn read_retained_as(self: &Arc<Self>, filter: &str, who: &Principal) -> RetainedStream {
        RetainedStream::new(self, filter, Some(who), 0)
    }

    /// All at once, for a filter that finds few; a store that cannot be read is logged, and nothing is found.
    pub fn retained(&self, filter: &str) -> Vec<Arc<Publication>> {
        self.all_retained(filter).unwrap_or_else(|error| {
            tracing::error!(%error, filter, "retained values could not be read");
            Vec::new()
        })
    }

    fn all_retained(&self, filter: &str) -> Result<Vec<Arc<Publication>>, StoreError> {
        let (mut found, mut after) = (Vec::new(), None::<Box<str>>);
        let now = self.clock.now_ms();
        loop {
            let page = self.page(filter, after.as_deref())?;
            found.extend(page.values.into_iter().filter(|p| !p.expired(now)));
            after = page.next;
            if after.is_none() {
                return Ok(found);
            }
        }
    }

    /// How many subscriptions and retained values there are.
    pub fn counts(&self) -> (usize, usize) {
        let retained = at_once(self.store.count(Table::Retained)).unwrap_or_default();
        (self.trie.read().len(), retained as usize)
    }

    fn insert(&self, subscriber: &Arc<dyn Subscriber>, filter: &str, options: SubOptions) -> (bool, u64) {
        let entry = Entry { subscriber: subscriber.clone(), options, group: None };
        let mut trie = self.trie.write();
        let existed = trie.insert(filter, subscriber.id(), entry).is_some();
        (existed, trie.changes())
    }

    /// Whoever subscribes has part in what was begun before, is being saved and would be missed. Gives the ids.
    fn join_open(
        &self,
        joining: &Match,
        filter: &str,
        is_missed: impl Fn(&Open) -> bool,
        ticket: &mut Ticket,
    ) -> Vec<u64> {
        let mut ids = Vec::new();
        for topic in self.saving.matching(filter) {
            let Some(place) = self.places.known(&topic) else { continue };
            let mut state = place.state.lock();
            for open in state.open.iter_mut().filter(|open| is_missed(open)) {
                ids.push(open.publication.id);
                match joining.subscriber.store(&open.publication, &joining.options) {
                    None => open.audience.joined.push(joining.clone()),
                    Some(rows) => {
                        open.audience.late.push(joining.subscriber.id());
                        ticket.wait_for(joining.subscriber.save(&self.store, open.publication.id, rows));
                        let publication = open.publication.clone();
                        ticket.then(Deed::Late(Late::new(joining.clone(), publication)));
                    }
                }
            }
        }
        ids
    }

    fn ask_filter(&self, who: &Principal, filter: &str) -> Result<(), Refusal> {
        check_filter(filter).map_err(Refusal::IllegalTopic)?;
        if self.permit.may_filter(who, Action::Subscribe, filter) {
            return Ok(());
        }
        self.permit.log_refusal(who, Action::Subscribe, filter);
        Err(Refusal::Forbidden)
    }

    /// The item that a publication ends: that of the newer of the two values, unless it names one.
    fn ended_item(&self, draft: &mut Draft) -> Result<Option<Box<str>>, StoreError> {
        if draft.item.is_some() {
            return Ok(draft.item.take());
        }
        let latest = self.places.known(&draft.topic).and_then(|place| place.state.lock().latest.clone());
        let newest = [self.kept(&draft.topic)?, latest].into_iter().flatten().max_by_key(|p| p.id);
        Ok(newest.filter(|p| p.change == Change::Value).map(|p| p.item_id().into()))
    }

    fn next_turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    fn publication(&self, from: &Principal, draft: Draft) -> Publication {
        // An interval of expiry that began before a restart does not begin anew (MQTT 5 §3.3.2.3.3).
        let time_ms = draft.id.map_or_else(|| self.clock.now_ms(), time_of);
        let rendered = Rendered { replaces: draft.replaces, ..Rendered::default() };
        Publication {
            id: draft.id.unwrap_or_else(|| self.ids.next(time_ms)),
            time_ms,
            topic: draft.topic,
            change: draft.change,
            payload: draft.payload,
            content_type: draft.content_type,
            qos: draft.qos,
            retain: draft.retain,
            from: from.clone(),
            from_session: draft.from_session,
            item: draft.item,
            properties: draft.properties,
            rendered,
        }
    }
}

#[cfg(test)]
mod tests;
