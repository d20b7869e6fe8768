//! Topics: who subscribes, what was published last, and the one law of publishing.
//!
//! Permit, id, retain, rows for durable subscribers; then, when all is saved, the deliveries.

use crate::{
    clock::Clock,
    permit::{Action, Permit},
    principal::Principal,
    publication::{Change, ContentType, Properties, Publication, Qos, Rendered},
    ticket::Ticket,
    trie::Trie,
};
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tavi_store::{Expect, IdSource, Op, Owner, SharedStore, StoreError, Table};
use tavi_wire::topic::{check_filter, check_topic, is_filter, matches};

/// Why a verb of topics was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not permitted, or not there: both answer alike.
    #[error("not permitted")]
    Forbidden,
    /// No legal topic or filter.
    #[error("{0}")]
    IllegalTopic(tavi_wire::topic::TopicError),
}

/// What a subscriber asked for with one filter (MQTT 5 §3.8.3.1). XMPP, CoAP and bots use the default with QoS 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubOptions {
    /// The best guarantee that it wants.
    pub qos: Qos,
    /// Whether its own publications do not come back.
    pub no_local: bool,
    /// Whether the retain flag stays as it was published.
    pub retain_as_published: bool,
    /// Subscription identifier (MQTT 5 §3.8.2.1.2); 0 for none.
    pub identifier: u32,
}

/// Rows that must be durable before a delivery: whose, and what.
pub type Rows = (Owner, Vec<Op>);

/// Somebody who gets publications: an MQTT session, a CoAP observation, a JID, a bot.
pub trait Subscriber: Send + Sync {
    /// Its number, from [`Topics::next_subscriber`]; the same as `from_session` of what it publishes.
    fn id(&self) -> u64;

    /// On whose behalf it receives.
    fn principal(&self) -> &Principal;

    /// What has to be saved before [`Subscriber::deliver`]; `None` for a live subscriber.
    fn store(&self, _publication: &Arc<Publication>, _options: &[SubOptions]) -> Option<Rows> {
        None
    }

    /// Takes a publication. `options` are those of all its filters that matched. Must neither block nor wait.
    fn deliver(&self, publication: &Arc<Publication>, options: &[SubOptions]);
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
    /// The id that an unfinished publication (MQTT QoS 2) already has.
    pub id: Option<u64>,
    /// The item id that the publisher chose.
    pub item: Option<Box<str>>,
    /// MQTT 5 properties.
    pub properties: Option<Box<Properties>>,
}

/// What a subscription found.
#[derive(Debug, Default)]
pub struct Subscribed {
    /// Whether this subscriber already had this filter.
    pub existed: bool,
    /// Retained values that the filter matches and the subscriber may retrieve, in topic order.
    pub retained: Vec<Arc<Publication>>,
}

/// One receiver of a publication with the options of all its matching filters.
struct Match {
    subscriber: Arc<dyn Subscriber>,
    options: SmallVec<[SubOptions; 1]>,
}

#[derive(Clone)]
struct Entry {
    subscriber: Arc<dyn Subscriber>,
    options: SubOptions,
}

/// What is kept of a topic in memory.
#[derive(Default)]
struct TopicState {
    latest: Option<Arc<Publication>>,
    retained_id: u64,
    matches: Option<(u64, u64, Arc<[Match]>)>,
}

type Shard = Mutex<HashMap<Arc<str>, Arc<Mutex<TopicState>>>>;

const SHARDS: usize = 16;
/// Topics kept in memory for their latest value and their receivers; beyond it those without use go.
const MAX_CACHED: usize = 64 * 1024;
/// A value larger than this is not kept as `latest`; its retained form is.
const MAX_LATEST_BYTES: usize = 64 * 1024;

/// All topics of a node.
pub struct Topics {
    trie: RwLock<Trie<Entry>>,
    generation: AtomicU64,
    subscribers: AtomicU64,
    shards: [Shard; SHARDS],
    hasher: RandomState,
    retained: RwLock<BTreeMap<Arc<str>, Arc<Publication>>>,
    permit: Arc<Permit>,
    store: SharedStore,
    ids: Arc<IdSource>,
    clock: Arc<dyn Clock>,
}

impl Topics {
    /// Reads the retained values of the store.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn load(
        store: SharedStore,
        permit: Arc<Permit>,
        ids: Arc<IdSource>,
        clock: Arc<dyn Clock>,
    ) -> Result<Topics, StoreError> {
        let retained = RwLock::new(load_retained(&store).await?);
        Ok(Topics {
            trie: RwLock::default(),
            generation: AtomicU64::new(1),
            subscribers: AtomicU64::new(1),
            shards: Default::default(),
            hasher: RandomState::new(),
            retained,
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

    /// Publishes. The ticket completes when all that must be durable is, and then delivers.
    ///
    /// # Errors
    /// An illegal topic, or a publisher who may not.
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
        check_topic(&draft.topic).map_err(Refusal::IllegalTopic)?;
        if !self.permit.may(from, action, &draft.topic) {
            self.permit.log_refusal(from, action, &draft.topic);
            return Err(Refusal::Forbidden);
        }
        Ok(self.publish_unasked(from, draft))
    }

    /// Publishes without asking the access model: for what only the broker writes, such as a device's `state`, and
    /// for publications that were permitted before a restart.
    pub fn publish_unasked(self: &Arc<Self>, from: &Principal, draft: Draft) -> Ticket {
        let entry = self.entry(&draft.topic);
        let mut state = entry.lock();
        let mut draft = draft;
        if draft.change == Change::Clear && draft.item.is_none() {
            draft.item = self.ended_item(&state, &draft.topic);
        }
        let publication = Arc::new(self.publication(from, draft));
        let matches = self.matches(&mut state, &publication.topic);
        let mut ticket = Ticket::done();
        if publication.retain {
            ticket.wait_for(self.store.commit(
                &Owner::topic(&publication.topic),
                vec![retained_op(&publication), Op::Drawn { id: publication.id }],
            ));
        }
        for m in matches.iter().filter(|m| m.wants(&publication)) {
            if let Some((owner, ops)) = m.subscriber.store(&publication, &m.options) {
                ticket.wait_for(self.store.commit(&owner, ops));
            }
        }
        drop(state);
        let topics = self.clone();
        ticket.then(Box::new(move || topics.land(&entry, &publication, &matches)));
        ticket
    }

    /// Subscribes to a filter; the subscriber gets everything that lands from now on.
    ///
    /// # Errors
    /// An illegal filter, or one that matches a topic to which the subscriber has no right.
    pub fn subscribe(
        &self,
        subscriber: &Arc<dyn Subscriber>,
        filter: &str,
        options: SubOptions,
    ) -> Result<Subscribed, Refusal> {
        check_filter(filter).map_err(Refusal::IllegalTopic)?;
        let who = subscriber.principal();
        if !self.permit.may_filter(who, Action::Subscribe, filter) {
            self.permit.log_refusal(who, Action::Subscribe, filter);
            return Err(Refusal::Forbidden);
        }
        let existed = self.restore(subscriber, filter, options);
        let mut retained = self.retained(filter);
        // Reading what is retained is an action of its own (semantics.md, permissions).
        retained.retain(|p| self.permit.may(who, Action::Retrieve, &p.topic));
        Ok(Subscribed { existed, retained })
    }

    /// Puts a subscription back that was permitted before a restart; each delivery asks the access model all the
    /// same. Gives whether it was there.
    pub fn restore(&self, subscriber: &Arc<dyn Subscriber>, filter: &str, options: SubOptions) -> bool {
        let entry = Entry { subscriber: subscriber.clone(), options };
        let former = self.trie.write().insert(filter, subscriber.id(), entry);
        self.generation.fetch_add(1, Ordering::Release);
        former.is_some()
    }

    /// Ends a subscription; gives whether there was one.
    pub fn unsubscribe(&self, subscriber: u64, filter: &str) -> bool {
        let former = self.trie.write().remove(filter, subscriber);
        self.generation.fetch_add(1, Ordering::Release);
        former.is_some()
    }

    /// The newer of a topic's retained and latest value, for GET and an observation's first notification. `None` if
    /// there is none or it was cleared.
    ///
    /// # Errors
    /// An illegal topic, or an asker who may not retrieve it.
    pub fn value(&self, who: &Principal, topic: &str) -> Result<Option<Arc<Publication>>, Refusal> {
        self.ask_retrieve(who, topic)?;
        let retained = self.retained.read().get(topic).cloned();
        let latest = self.known(topic).and_then(|entry| entry.lock().latest.clone());
        let newer = match (retained, latest) {
            (Some(r), Some(l)) => Some(if l.id > r.id { l } else { r }),
            (r, l) => r.or(l),
        };
        let now = self.clock.now_ms();
        Ok(newer.filter(|p| p.change == Change::Value && !p.expired(now)))
    }

    /// A topic's retained value.
    ///
    /// # Errors
    /// An illegal topic, or an asker who may not retrieve it.
    pub fn retained_value(&self, who: &Principal, topic: &str) -> Result<Option<Arc<Publication>>, Refusal> {
        self.ask_retrieve(who, topic)?;
        let now = self.clock.now_ms();
        Ok(self.retained.read().get(topic).filter(|p| !p.expired(now)).cloned())
    }

    /// The retained values that a legal filter matches, in topic order. The caller has asked the access model.
    pub fn retained(&self, filter: &str) -> Vec<Arc<Publication>> {
        let now = self.clock.now_ms();
        let retained = self.retained.read();
        if !is_filter(filter) {
            return retained.get(filter).filter(|p| !p.expired(now)).cloned().into_iter().collect();
        }
        let prefix = literal_prefix(filter);
        let start = retained.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let near = start.take_while(|(topic, _)| topic.starts_with(prefix));
        near.filter(|(topic, p)| matches(filter, topic) && !p.expired(now)).map(|(_, p)| p.clone()).collect()
    }

    /// At most `limit` topics behind `after` that have a retained value which `who` may retrieve.
    pub fn listed(&self, who: &Principal, after: Option<&str>, limit: usize) -> Vec<Arc<str>> {
        let retained = self.retained.read();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let topics = retained.range::<str, _>((from, Bound::Unbounded)).map(|(topic, _)| topic);
        topics.filter(|t| self.permit.may(who, Action::Retrieve, t)).take(limit).cloned().collect()
    }

    /// How many subscriptions and retained values there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.trie.read().len(), self.retained.read().len())
    }

    fn ask_retrieve(&self, who: &Principal, topic: &str) -> Result<(), Refusal> {
        check_topic(topic).map_err(Refusal::IllegalTopic)?;
        if self.permit.may(who, Action::Retrieve, topic) {
            return Ok(());
        }
        self.permit.log_refusal(who, Action::Retrieve, topic);
        Err(Refusal::Forbidden)
    }

    /// The item that a publication ends: that of the newer of the two values.
    fn ended_item(&self, state: &TopicState, topic: &str) -> Option<Box<str>> {
        let retained = self.retained.read().get(topic).cloned();
        let newest = [retained, state.latest.clone()].into_iter().flatten().max_by_key(|p| p.id);
        newest.filter(|p| p.change == Change::Value).map(|p| p.item_id().into())
    }

    fn publication(&self, from: &Principal, draft: Draft) -> Publication {
        let time_ms = self.clock.now_ms();
        Publication {
            id: draft.id.unwrap_or_else(|| self.ids.next(time_ms)),
            time_ms,
            topic: draft.topic,
            change: draft.change,
            payload: draft.payload,
            content_type: draft.content_type,
            qos: draft.qos,
            retain: draft.retain || draft.change == Change::Clear,
            from: from.clone(),
            from_session: draft.from_session,
            item: draft.item,
            properties: draft.properties,
            rendered: Rendered::default(),
        }
    }

    /// Everything is saved: the values change and the receivers get it.
    fn land(&self, entry: &Mutex<TopicState>, publication: &Arc<Publication>, matches: &[Match]) {
        {
            let mut state = entry.lock();
            // An older publication that lands late changes no value (semantics: ids decide).
            if state.latest.as_ref().is_none_or(|latest| latest.id < publication.id) {
                let small = publication.payload.len() <= MAX_LATEST_BYTES;
                state.latest = (small || publication.change == Change::Clear).then(|| publication.clone());
            }
            if publication.retain && publication.id > state.retained_id {
                state.retained_id = publication.id;
                self.set_retained(publication);
            }
        }
        for m in matches.iter().filter(|m| m.wants(publication)) {
            m.subscriber.deliver(publication, &m.options);
        }
    }

    fn set_retained(&self, publication: &Arc<Publication>) {
        let mut retained = self.retained.write();
        if retained.get(&publication.topic).is_some_and(|now| now.id > publication.id) {
            return;
        }
        match publication.change {
            Change::Value => retained.insert(publication.topic.clone(), publication.clone()),
            Change::Clear => retained.remove(&publication.topic),
        };
    }

    /// The receivers of a topic; asked again only after a change of subscriptions or grants.
    fn matches(&self, state: &mut TopicState, topic: &str) -> Arc<[Match]> {
        let now = (self.generation.load(Ordering::Acquire), self.permit.generation());
        if let Some((subscriptions, grants, found)) = &state.matches
            && (*subscriptions, *grants) == now
        {
            return found.clone();
        }
        let found = self.find_matches(topic);
        state.matches = Some((now.0, now.1, found.clone()));
        found
    }

    fn find_matches(&self, topic: &str) -> Arc<[Match]> {
        let mut found: Vec<Match> = Vec::new();
        let mut by_id: HashMap<u64, usize> = HashMap::new();
        let mut refused: HashSet<u64> = HashSet::new();
        self.trie.read().each_match(topic, &mut |id, entry: &Entry| {
            if let Some(at) = by_id.get(&id) {
                found[*at].options.push(entry.options);
            } else if refused.contains(&id) || !self.may_receive(entry, topic) {
                refused.insert(id);
            } else {
                by_id.insert(id, found.len());
                let options = SmallVec::from_elem(entry.options, 1);
                found.push(Match { subscriber: entry.subscriber.clone(), options });
            }
        });
        found.into()
    }

    fn may_receive(&self, entry: &Entry, topic: &str) -> bool {
        self.permit.may(entry.subscriber.principal(), Action::Subscribe, topic)
    }

    fn shard(&self, topic: &str) -> &Shard {
        &self.shards[self.hasher.hash_one(topic) as usize % SHARDS]
    }

    fn known(&self, topic: &str) -> Option<Arc<Mutex<TopicState>>> {
        self.shard(topic).lock().get(topic).cloned()
    }

    fn entry(&self, topic: &Arc<str>) -> Arc<Mutex<TopicState>> {
        let mut shard = self.shard(topic).lock();
        if let Some(entry) = shard.get(topic) {
            return entry.clone();
        }
        if shard.len() >= MAX_CACHED / SHARDS {
            // Whoever publishes just now holds a second reference; all others only lose their latest value.
            shard.retain(|_, entry| Arc::strong_count(entry) > 1);
        }
        let retained_id = self.retained.read().get(topic).map_or(0, |p| p.id);
        let entry = Arc::new(Mutex::new(TopicState { retained_id, ..TopicState::default() }));
        shard.insert(topic.clone(), entry.clone());
        entry
    }
}

impl Match {
    fn wants(&self, publication: &Publication) -> bool {
        publication.from_session != self.subscriber.id() || self.options.iter().any(|o| !o.no_local)
    }
}

async fn load_retained(store: &SharedStore) -> Result<BTreeMap<Arc<str>, Arc<Publication>>, StoreError> {
    let mut retained = BTreeMap::new();
    let mut after: Option<(Owner, Box<str>)> = None;
    loop {
        let rows = store.scan(Table::Retained, after.as_ref().map(|(o, i)| (o, &**i)), 1000).await?;
        let Some(last) = rows.last() else { return Ok(retained) };
        after = Some((last.owner.clone(), last.item.clone()));
        for row in rows {
            let damaged = || StoreError::Corrupt(format!("retained value of {:?}", row.owner.name()).into());
            let publication = Publication::decode(row.record.value).ok_or_else(damaged)?;
            retained.insert(publication.topic.clone(), Arc::new(publication));
        }
    }
}

fn retained_op(publication: &Publication) -> Op {
    let (table, item, expect) = (Table::Retained, Box::from(""), Expect::Any);
    match publication.change {
        Change::Value => Op::Put { table, item, value: publication.encode(), expect },
        Change::Clear => Op::Delete { table, item, expect },
    }
}

/// The part of a filter before its first wildcard level, with its slash.
fn literal_prefix(filter: &str) -> &str {
    let end = filter.find(['+', '#']).unwrap_or(filter.len());
    // "a/#" matches "a" too, so the last slash is not part of what all matches begin with.
    filter[..end].trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::FakeClock, permit::Grant};
    use tavi_store::MemoryStore;

    struct Reader {
        id: u64,
        who: Principal,
        seen: Mutex<Vec<String>>,
        keeps: bool,
    }

    impl Subscriber for Reader {
        fn id(&self) -> u64 {
            self.id
        }
        fn principal(&self) -> &Principal {
            &self.who
        }
        fn store(&self, p: &Arc<Publication>, _: &[SubOptions]) -> Option<Rows> {
            self.keeps.then(|| (Owner::mqtt("reader", "one"), vec![Op::QueuePush { id: p.id, value: p.encode() }]))
        }
        fn deliver(&self, p: &Arc<Publication>, _: &[SubOptions]) {
            self.seen.lock().push(format!("{}={}", p.topic, String::from_utf8_lossy(&p.payload)));
        }
    }

    struct World {
        topics: Arc<Topics>,
        permit: Arc<Permit>,
        store: SharedStore,
    }

    const NOW: u64 = 1_760_000_000_000;

    async fn world() -> World {
        let store: SharedStore = Arc::new(MemoryStore::default());
        reopen(store).await
    }

    async fn reopen(store: SharedStore) -> World {
        let permit = Arc::new(Permit::load(store.clone()).await.unwrap());
        let ids = Arc::new(IdSource::new(0, store.last_id()));
        let topics = Topics::load(store.clone(), permit.clone(), ids, Arc::new(FakeClock::at(NOW))).await.unwrap();
        World { topics: Arc::new(topics), permit, store }
    }

    fn who(name: &str) -> Principal {
        Principal::Account(format!("{name}@localhost").parse().unwrap())
    }

    impl World {
        fn reader(&self, name: &str, keeps: bool) -> (Arc<Reader>, Arc<dyn Subscriber>) {
            let reader = Reader { id: self.topics.next_subscriber(), who: who(name), seen: Mutex::default(), keeps };
            let reader = Arc::new(reader);
            (reader.clone(), reader)
        }

        async fn publish(&self, name: &str, topic: &str, value: &'static str, retain: bool) -> Result<(), Refusal> {
            let draft = Draft { topic: topic.into(), payload: value.into(), retain, ..Draft::default() };
            self.topics.publish(&who(name), draft)?.complete().await.unwrap();
            Ok(())
        }

        async fn grant(&self, subject: &str, actions: &str, filter: &str) {
            let grant = Grant::new(self.permit.generation(), subject, actions.parse().unwrap(), filter).unwrap();
            self.permit.add(grant).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_reader_sees_what_its_filter_matches_once() {
        let world = world().await;
        let (reader, handle) = world.reader("romeo", false);
        world.topics.subscribe(&handle, "u/romeo/#", SubOptions::default()).unwrap();
        world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap();
        world.publish("romeo", "u/romeo/a", "1", false).await.unwrap();
        assert_eq!(*reader.seen.lock(), ["u/romeo/a=1"]);
        assert!(world.topics.unsubscribe(reader.id, "u/romeo/#"));
        assert!(world.topics.unsubscribe(reader.id, "u/romeo/+"));
        world.publish("romeo", "u/romeo/a", "2", false).await.unwrap();
        assert_eq!(reader.seen.lock().len(), 1);
    }

    #[tokio::test]
    async fn strangers_are_refused_and_a_lost_grant_ends_deliveries_at_once() {
        let world = world().await;
        let (reader, handle) = world.reader("juliet", false);
        let refused = world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default());
        assert_eq!(refused.unwrap_err(), Refusal::Forbidden);
        assert_eq!(world.publish("juliet", "u/romeo/a", "1", false).await, Err(Refusal::Forbidden));
        world.grant("juliet@localhost", "subscribe", "u/romeo/#").await;
        world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap();
        world.publish("romeo", "u/romeo/a", "1", false).await.unwrap();
        world.permit.remove(|_| true).1.await.unwrap();
        world.publish("romeo", "u/romeo/a", "2", false).await.unwrap();
        assert_eq!(*reader.seen.lock(), ["u/romeo/a=1"]);
    }

    #[tokio::test]
    async fn clearing_needs_delete_except_where_there_is_no_such_verb() {
        let world = world().await;
        world.publish("romeo", "u/romeo/a", "kept", true).await.unwrap();
        world.grant("juliet@localhost", "publish", "u/romeo/#").await;
        let clear = || Draft { topic: "u/romeo/a".into(), change: Change::Clear, ..Draft::default() };
        assert_eq!(world.topics.publish(&who("juliet"), clear()).err(), Some(Refusal::Forbidden));
        let by_mqtt = world.topics.publish_as(&who("juliet"), Action::Publish, clear()).unwrap();
        by_mqtt.complete().await.unwrap();
        assert!(world.topics.retained("u/romeo/a").is_empty());
    }

    #[tokio::test]
    async fn who_may_only_subscribe_does_not_get_what_is_retained() {
        let world = world().await;
        world.publish("romeo", "u/romeo/a", "kept", true).await.unwrap();
        world.grant("juliet@localhost", "subscribe", "u/romeo/#").await;
        let (_, handle) = world.reader("juliet", false);
        assert!(world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap().retained.is_empty());
        world.grant("juliet@localhost", "retrieve", "u/romeo/a").await;
        assert_eq!(world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap().retained.len(), 1);
    }

    #[tokio::test]
    async fn retained_values_survive_a_restart_and_end_when_cleared() {
        let world = world().await;
        world.publish("romeo", "u/romeo/a", "kept", true).await.unwrap();
        world.publish("romeo", "u/romeo/a", "passing", false).await.unwrap();
        let latest = world.topics.value(&who("romeo"), "u/romeo/a").unwrap().unwrap();
        assert_eq!(&*latest.payload, b"passing");

        let world = reopen(world.store).await;
        let value = world.topics.value(&who("romeo"), "u/romeo/a").unwrap().unwrap();
        assert_eq!(&*value.payload, b"kept");
        assert_eq!(world.topics.retained("u/+/a").len(), 1);
        let clear = Draft { topic: "u/romeo/a".into(), change: Change::Clear, ..Draft::default() };
        world.topics.publish(&who("romeo"), clear).unwrap().complete().await.unwrap();
        assert!(world.topics.value(&who("romeo"), "u/romeo/a").unwrap().is_none());
        assert!(reopen(world.store).await.topics.retained("#").is_empty());
    }

    #[tokio::test]
    async fn a_durable_reader_s_row_is_saved_before_it_is_delivered() {
        let world = world().await;
        let (reader, handle) = world.reader("romeo", true);
        world.topics.subscribe(&handle, "u/romeo/+", SubOptions::default()).unwrap();
        let draft = Draft { topic: "u/romeo/a".into(), payload: "x".into(), qos: Qos::AtLeastOnce, ..Draft::default() };
        let ticket = world.topics.publish(&who("romeo"), draft).unwrap();
        assert!(!ticket.is_ready() && reader.seen.lock().is_empty());
        ticket.complete().await.unwrap();
        assert_eq!(reader.seen.lock().len(), 1);
        assert_eq!(world.store.queue(&Owner::mqtt("reader", "one"), 0, 10).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn an_older_publication_that_lands_late_changes_no_value() {
        let world = world().await;
        let draft =
            |v: &'static str| Draft { topic: "u/romeo/a".into(), payload: v.into(), retain: true, ..Draft::default() };
        let first = world.topics.publish(&who("romeo"), draft("old")).unwrap();
        let second = world.topics.publish(&who("romeo"), draft("new")).unwrap();
        second.complete().await.unwrap();
        first.complete().await.unwrap();
        let value = world.topics.value(&who("romeo"), "u/romeo/a").unwrap().unwrap();
        assert_eq!(&*value.payload, b"new");
    }

    #[tokio::test]
    async fn no_local_keeps_one_s_own_publications_away() {
        let world = world().await;
        let (reader, handle) = world.reader("romeo", false);
        let options = SubOptions { no_local: true, ..SubOptions::default() };
        world.topics.subscribe(&handle, "u/romeo/+", options).unwrap();
        let draft = Draft { topic: "u/romeo/a".into(), from_session: reader.id, ..Draft::default() };
        world.topics.publish(&who("romeo"), draft).unwrap().complete().await.unwrap();
        assert!(reader.seen.lock().is_empty());
    }
}
