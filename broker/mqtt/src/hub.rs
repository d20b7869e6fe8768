//! All MQTT sessions of a node: who sits where, takeover, expiry, wills.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tavi_core::metrics::{Outcome, Protocol};
use tavi_core::node::Attached;
use tavi_core::permit::Action;
use tavi_core::topics::{SubOptions, Subscriber};
use tavi_core::{Closed, Mailbox, Node, Principal, Ticket};
use tavi_store::{Op, Owner, QueueRow, StoreError};
use tokio::sync::{OwnedMutexGuard, watch};

use crate::config::Config;
use crate::packet::{Connect, Reason, Will};
use crate::record::{self, SessionRecord};
use crate::render;
use crate::seat::{KeptSeat, LiveSeat, Parcel};

/// Session key: who, and which of their clients. One principal can not take over another's session.
type Key = (Box<str>, Box<str>);

/// How long [`Hub::stopped`] waits.
const FAREWELL: Duration = Duration::from_secs(2);

/// All MQTT sessions of a node.
pub struct Hub {
    node: Node,
    config: Config,
    entries: Mutex<Entries>,
    due: Mutex<BTreeMap<(u64, u64), Due>>,
    stop: watch::Sender<bool>,
    connections: watch::Sender<usize>,
}

/// Ordered, so that a principal's sessions stand together.
type Entries = BTreeMap<Key, Entry>;

/// The key before all sessions of a principal.
fn first_of(subject: &str) -> Key {
    (subject.into(), "".into())
}

struct Entry {
    seat: Seat,
    /// The connected client's.
    mailbox: Option<Arc<Mailbox<Parcel>>>,
    /// Counts the connections of this key, so that what was meant for an older one is recognised.
    generation: u64,
    /// A will is stored for the connected client.
    has_will: bool,
}

/// Where publications for a session arrive.
#[derive(Clone)]
pub enum Seat {
    /// Ends with the connection.
    Live(Arc<LiveSeat>),
    /// Durable.
    Kept(Arc<KeptSeat>),
}

impl Seat {
    /// Its subscriber number.
    pub fn id(&self) -> u64 {
        match self {
            Seat::Live(seat) => seat.id,
            Seat::Kept(seat) => Subscriber::id(&**seat),
        }
    }

    /// Whose it is.
    pub fn principal(&self) -> &Principal {
        match self {
            Seat::Live(seat) => &seat.principal,
            Seat::Kept(seat) => Subscriber::principal(&**seat),
        }
    }

    /// The durable one.
    pub fn kept(&self) -> Option<&Arc<KeptSeat>> {
        match self {
            Seat::Live(_) => None,
            Seat::Kept(seat) => Some(seat),
        }
    }

    /// As the core sees it.
    pub fn subscriber(&self) -> Arc<dyn Subscriber> {
        match self {
            Seat::Live(seat) => seat.clone(),
            Seat::Kept(seat) => seat.clone(),
        }
    }
}

/// A connected client's hold on its session.
pub struct Place {
    /// Where it receives.
    pub seat: Seat,
    /// What waits for it.
    pub mailbox: Arc<Mailbox<Parcel>>,
    /// The session's partition of the store.
    pub owner: Owner,
    /// Session expiry in seconds.
    pub expiry: u32,
    client_id: Box<str>,
    will: Option<Box<Will>>,
    filters: Vec<Box<str>>,
    generation: u64,
    attached: Option<Attached>,
    /// While it lives, what this connection began is not done, and no other one goes on with the session.
    _pen: Option<OwnedMutexGuard<()>>,
}

impl Place {
    /// How many subscriptions the session has.
    pub fn filter_count(&self) -> usize {
        match &self.seat {
            Seat::Live(_) => self.filters.len(),
            Seat::Kept(seat) => seat.filter_count(),
        }
    }

    /// Whether the session has that subscription.
    pub fn has_filter(&self, filter: &str) -> bool {
        match &self.seat {
            Seat::Live(_) => self.filters.iter().any(|f| **f == *filter),
            Seat::Kept(seat) => seat.has_filter(filter),
        }
    }

    /// Notes a subscription; what has to be saved for it is added to `ops`.
    pub fn add_filter(&mut self, filter: &str, options: SubOptions, ops: &mut Vec<Op>) {
        match &self.seat {
            Seat::Live(_) if self.filters.iter().any(|f| **f == *filter) => {}
            Seat::Live(_) => self.filters.push(filter.into()),
            Seat::Kept(seat) => {
                seat.add_filter(filter, options);
                ops.push(record::put(&record::subscription_item(filter), record::encode_options(&options)));
            }
        }
    }

    /// Forgets a subscription; what has to be saved for that is added to `ops`.
    pub fn remove_filter(&mut self, filter: &str, ops: &mut Vec<Op>) {
        match &self.seat {
            Seat::Live(_) => self.filters.retain(|f| **f != *filter),
            Seat::Kept(seat) => {
                seat.remove_filter(filter);
                ops.push(record::delete(&record::subscription_item(filter)));
            }
        }
    }

    fn key(&self) -> Key {
        (self.seat.principal().subject().into(), self.client_id.clone())
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// DISCONNECT with reason 0: the will is dropped (MQTT 5.0 §3.1.2.5).
    InOrder,
    /// Anything else: the will is published.
    Cut,
}

/// What a session does when its time has come.
enum Due {
    /// It ends.
    Expiry { key: Key, generation: u64 },
    /// Its will is published.
    Will { key: Key, generation: u64, principal: Principal, will: Box<Will> },
}

/// A connection's turn at a durable session that was there before.
struct Turn {
    seat: Arc<KeptSeat>,
    wish: u64,
    pen: OwnedMutexGuard<()>,
}

/// What a connection finds at its seat: the mailbox, the QoS 2 publishes not released, the right to go on.
fn sit_down(
    seat: &Seat,
    pen: Option<OwnedMutexGuard<()>>,
) -> (Arc<Mailbox<Parcel>>, Vec<u16>, Option<OwnedMutexGuard<()>>) {
    match seat {
        Seat::Live(seat) => (seat.mailbox.clone(), Vec::new(), None),
        // A new seat's pen is free.
        Seat::Kept(seat) => (seat.attach(), seat.held(), pen.or_else(|| seat.pen().try_lock_owned().ok())),
    }
}

/// What becomes of a will when its connection is cut.
enum Fate {
    Dropped,
    Now,
    Later { seconds: u32 },
}

/// MQTT 5.0 §3.1.3.2.2: published when the delay has passed or the session ends, whichever comes first, unless a new
/// connection goes on with the session before.
fn fate(will: &Will, place: &Place, current: bool, goes_on: bool) -> Fate {
    match (will.delay, goes_on) {
        (0, _) | (_, false) => Fate::Now,
        (seconds, true) if current => Fate::Later { seconds: seconds.min(place.expiry) },
        (_, true) => Fate::Dropped,
    }
}

/// What [`Hub::enter`] gives.
pub struct Entered {
    /// The client's hold on its session.
    pub place: Place,
    /// The session was there before (MQTT 5.0 §3.2.2.1.1).
    pub session_present: bool,
    /// Packet ids of its QoS 2 publishes that it has not released.
    pub held: Vec<u16>,
    /// To be awaited before CONNACK.
    pub ticket: Ticket,
}

impl Hub {
    /// A hub without sessions; [`Hub::recall`](crate::restart) brings back those in the store.
    pub fn new(node: Node, config: Config) -> Arc<Self> {
        let (stop, connections) = (watch::Sender::new(false), watch::Sender::new(0));
        Arc::new(Self { node, config, entries: Mutex::default(), due: Mutex::default(), stop, connections })
    }

    /// The node that it is part of.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its limits.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.node.parts.clock.now_ms()
    }

    /// A fresh message id.
    pub fn next_id(&self) -> u64 {
        self.node.parts.ids.next(self.now_ms())
    }

    /// A session expiry interval within the operator's bound (MQTT 5.0 §3.2.2.3.2).
    pub fn bounded_expiry(&self, wanted: u32) -> u32 {
        wanted.min(self.config.max_session_expiry)
    }

    /// Counts messages.
    pub fn count(&self, outcome: Outcome, count: u64) {
        if count > 0 {
            self.node.parts.metrics.messages(Protocol::Mqtt, outcome).add(count);
        }
    }

    /// Reads a page of a session's queue.
    pub fn read_queue(
        &self,
        owner: Owner,
        after: u64,
        limit: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<QueueRow>, StoreError>> + Send>> {
        let store = self.node.parts.store.clone();
        Box::pin(async move { store.queue(&owner, after, limit).await })
    }

    /// Lets a client in that has logged in: takes the session over, resumes it or begins a new one. `connect.client_id`
    /// is not empty.
    ///
    /// # Errors
    /// [`Reason::QUOTA`] if the principal has as many durable sessions as it may have.
    pub async fn enter(&self, principal: &Principal, connect: &mut Connect) -> Result<Entered, Reason> {
        let key: Key = (principal.subject().into(), connect.client_id.as_str().into());
        loop {
            let turn = match self.displace(&key, connect.clean) {
                Some((seat, wish)) => Some(Turn { pen: seat.pen().lock_owned().await, seat, wish }),
                None => None,
            };
            if let Some(entered) = self.try_enter(principal, connect, &key, turn)? {
                return Ok(entered);
            }
        }
    }

    /// Tells the connected client of the key to go. If its session goes on, gives it and the number of this wish: the
    /// session has to be waited for until all that its former connection began is done.
    fn displace(&self, key: &Key, clean: bool) -> Option<(Arc<KeptSeat>, u64)> {
        let entries = self.entries.lock();
        let entry = entries.get(key)?;
        if let Some(mailbox) = &entry.mailbox {
            mailbox.close(Closed::Replaced);
        }
        match &entry.seat {
            Seat::Kept(seat) if !clean => Some((seat.clone(), seat.wish())),
            _ => None,
        }
    }

    /// Takes the place, unless the session that was waited for is not the one that is there now (`None`).
    fn try_enter(
        &self,
        principal: &Principal,
        connect: &mut Connect,
        key: &Key,
        turn: Option<Turn>,
    ) -> Result<Option<Entered>, Reason> {
        let mut entries = self.entries.lock();
        let there = entries.get(key).and_then(|entry| entry.seat.kept()).filter(|_| !connect.clean);
        if there.map(Arc::as_ptr) != turn.as_ref().map(|turn| Arc::as_ptr(&turn.seat)) {
            return Ok(None);
        }
        let owner = Owner::mqtt(&key.0, &key.1);
        let expiry = self.bounded_expiry(connect.expiry);
        if expiry > 0 && entries.get(key).is_none_or(|entry| entry.seat.kept().is_none()) {
            self.check_quota(&entries, &key.0)?;
        }
        let will = connect.will.take().map(Box::new);
        let former = entries.remove(key);
        let generation = former.as_ref().map_or(1, |entry| entry.generation + 1);
        let had_will = former.as_ref().is_some_and(|entry| entry.has_will);
        let mut ops = Vec::new();
        let resumed = former.and_then(|entry| self.take_over(entry, connect.clean, &mut ops));
        let session_present = resumed.is_some();
        let seat = resumed.map_or_else(|| self.new_seat(principal, &owner, expiry), Seat::Kept);
        if let Seat::Kept(_) = seat {
            ops.push(record::put(record::SESSION, SessionRecord { expiry, left_ms: 0 }.encode()));
        }
        match &will {
            Some(will) => ops.push(record::put(record::WILL, record::encode_will(will))),
            None if had_will => ops.push(record::delete(record::WILL)),
            None => {}
        }
        let has_will = will.is_some();
        let outdated = turn.as_ref().is_some_and(|turn| turn.seat.is_outdated(turn.wish));
        let (mailbox, held, pen) = sit_down(&seat, turn.map(|turn| turn.pen));
        if outdated {
            // Somebody came while this one waited, and waits now.
            mailbox.close(Closed::Replaced);
        }
        if self.is_stopping() {
            mailbox.close(Closed::Shutdown);
        }
        entries.insert(key.clone(), Entry { seat: seat.clone(), mailbox: Some(mailbox.clone()), generation, has_will });
        let ticket = self.commit(&owner, ops);
        drop(entries);
        let (attached, client_id) = (Some(self.node.attach(principal)), key.1.clone());
        let filters = Vec::new();
        let place = Place { seat, mailbox, owner, expiry, client_id, will, filters, generation, attached, _pen: pen };
        Ok(Some(Entered { place, session_present, held, ticket }))
    }

    /// A durable session costs memory and rows while nobody is connected, so nobody may have any number of them.
    fn check_quota(&self, entries: &Entries, subject: &str) -> Result<(), Reason> {
        let own = entries.range(first_of(subject)..).take_while(|(key, _)| *key.0 == *subject);
        if own.filter(|(_, entry)| matches!(entry.seat, Seat::Kept(_))).count() < self.config.max_durable_sessions {
            return Ok(());
        }
        tracing::warn!(subject, "MQTT session refused: the principal has too many durable sessions");
        Err(Reason::QUOTA)
    }

    /// Ends the connection of a former client of the same key, and gives its session if that goes on.
    fn take_over(&self, entry: Entry, clean: bool, ops: &mut Vec<Op>) -> Option<Arc<KeptSeat>> {
        if let Some(mailbox) = entry.mailbox {
            mailbox.close(Closed::Replaced);
        }
        match entry.seat {
            Seat::Kept(seat) if !clean => Some(seat),
            Seat::Kept(seat) => {
                self.end_seat(&seat);
                ops.push(Op::Purge);
                None
            }
            // Its own connection leaves the topics when it notices.
            Seat::Live(_) => None,
        }
    }

    fn new_seat(&self, principal: &Principal, owner: &Owner, expiry: u32) -> Seat {
        let id = self.node.parts.topics.next_subscriber();
        let (room, metrics) = (self.config.room(), self.node.parts.metrics.clone());
        if expiry == 0 {
            let mailbox = room.mailbox();
            return Seat::Live(Arc::new(LiveSeat { id, principal: principal.clone(), mailbox, metrics }));
        }
        Seat::Kept(Arc::new(KeptSeat::new(id, principal.clone(), owner.clone(), room, metrics)))
    }

    /// A durable session ends: nothing is kept for it any more, and nothing that it began is noted any more.
    fn end_seat(&self, seat: &KeptSeat) {
        seat.end();
        for (filter, _) in seat.filters() {
            self.node.parts.topics.unsubscribe(Subscriber::id(seat), &filter);
        }
    }

    /// One commit of the session's own rows; nothing to save is complete at once.
    pub(crate) fn commit(&self, owner: &Owner, ops: Vec<Op>) -> Ticket {
        let mut ticket = Ticket::done();
        if !ops.is_empty() {
            ticket.wait_for(self.node.parts.store.commit(owner, ops));
        }
        ticket
    }

    /// A connection has ended; `unwritten` are the parcels that it took from its mailbox and did not write.
    pub fn leave(self: &Arc<Self>, place: &mut Place, parting: Parting, unwritten: &[Parcel]) {
        drop(place.attached.take());
        let key = place.key();
        let will = place.will.take();
        // All that is committed for a key is committed under this lock, so that no end overtakes a new beginning.
        let mut entries = self.entries.lock();
        let current = entries.get(&key).is_some_and(|entry| entry.generation == place.generation);
        let goes_on = self.leave_seat(place, unwritten);
        let mut ops = Vec::new();
        if current {
            self.settle(&mut entries, &key, place, goes_on, &mut ops);
        }
        let Some(will) = will else {
            drop(self.commit(&place.owner, ops));
            return;
        };
        let fate = if parting == Parting::Cut { fate(&will, place, current, goes_on) } else { Fate::Dropped };
        if current && !matches!(fate, Fate::Later { .. }) {
            ops.push(record::delete(record::WILL));
        }
        let principal = place.seat.principal().clone();
        match fate {
            Fate::Now => self.part_with(principal, &will, &place.owner, ops),
            Fate::Dropped => drop(self.commit(&place.owner, ops)),
            Fate::Later { seconds } => {
                drop(self.commit(&place.owner, ops));
                let at_ms = self.now_ms() + u64::from(seconds) * 1000;
                self.schedule(at_ms, Due::Will { key, generation: place.generation, principal, will });
            }
        }
    }

    /// Takes the connection off its seat; gives whether the session goes on without it.
    fn leave_seat(&self, place: &Place, unwritten: &[Parcel]) -> bool {
        match &place.seat {
            Seat::Live(seat) => {
                for filter in &place.filters {
                    self.node.parts.topics.unsubscribe(seat.id, filter);
                }
                false
            }
            Seat::Kept(seat) => {
                seat.detach(&place.mailbox, unwritten);
                place.expiry > 0
            }
        }
    }

    /// The session of a connection that nobody took over: it waits for its client, or it ends.
    fn settle(&self, entries: &mut Entries, key: &Key, place: &Place, goes_on: bool, ops: &mut Vec<Op>) {
        if !goes_on {
            entries.remove(key);
            if let Seat::Kept(seat) = &place.seat {
                self.end_seat(seat);
                ops.push(Op::Purge);
            }
            return;
        }
        if let Some(entry) = entries.get_mut(key) {
            entry.mailbox = None;
        }
        let record = SessionRecord { expiry: place.expiry, left_ms: self.now_ms() };
        ops.push(record::put(record::SESSION, record.encode()));
        if let Some(at) = record.ends_ms() {
            self.schedule(at, Due::Expiry { key: key.clone(), generation: place.generation });
        }
    }

    /// Publishes a will. `ops` are committed with its own record, under which the next start finds it if this one ends
    /// before it is published; the caller holds the lock on the entries.
    fn part_with(self: &Arc<Self>, principal: Principal, will: &Will, owner: &Owner, mut ops: Vec<Op>) {
        let item = record::parted_item(self.next_id());
        ops.push(record::put(&item, record::encode_will(will)));
        let saved = self.commit(owner, ops);
        self.publish_will(principal, will, (owner.clone(), item), saved);
    }

    /// Publishes a will in a task of its own, after `saved`; then its record is deleted.
    pub(crate) fn publish_will(
        self: &Arc<Self>,
        principal: Principal,
        will: &Will,
        record: (Owner, String),
        saved: Ticket,
    ) {
        let draft = render::draft(will.body.topic().into(), &will.body, will.qos, will.retain, self.now_ms());
        // A refused will is logged by the access model and gone.
        let mut ticket = self.node.parts.topics.publish_as(&principal, Action::Publish, draft).unwrap_or_default();
        ticket.join(saved);
        let hub = self.clone();
        hub.node.parts.metrics.draining.add(1);
        tokio::spawn(async move {
            match ticket.complete().await {
                Ok(()) => {
                    // Without this the next start publishes it again.
                    let _ = hub.node.parts.store.commit(&record.0, vec![record::delete(&record.1)]).await;
                }
                Err(error) => tracing::error!(%error, "a will could not be saved; the next start publishes it"),
            }
            hub.node.parts.metrics.draining.sub(1);
        });
    }

    fn schedule(&self, at_ms: u64, due: Due) {
        let mut all = self.due.lock();
        let mut number = 0;
        while all.contains_key(&(at_ms, number)) {
            number += 1;
        }
        all.insert((at_ms, number), due);
    }

    /// Does what is due: sessions expire, delayed wills are published. To be called about once a second.
    pub fn tick(self: &Arc<Self>) {
        let now_ms = self.now_ms();
        loop {
            let mut all = self.due.lock();
            let Some(first) = all.first_entry().filter(|first| first.key().0 <= now_ms) else { return };
            let due = first.remove();
            drop(all);
            match due {
                Due::Expiry { key, generation } => self.expire(&key, generation),
                Due::Will { key, generation, principal, will } => self.will_is_due(&key, generation, principal, &will),
            }
        }
    }

    fn will_is_due(self: &Arc<Self>, key: &Key, generation: u64, principal: Principal, will: &Will) {
        let entries = self.entries.lock();
        if entries.get(key).is_some_and(|e| e.generation == generation && e.mailbox.is_none()) {
            let owner = Owner::mqtt(&key.0, &key.1);
            self.part_with(principal, will, &owner, vec![record::delete(record::WILL)]);
        }
    }

    fn expire(&self, key: &Key, generation: u64) {
        let mut entries = self.entries.lock();
        let waiting = entries.get(key).is_some_and(|e| e.generation == generation && e.mailbox.is_none());
        if waiting && let Some(Entry { seat: Seat::Kept(seat), .. }) = entries.remove(key) {
            self.end_seat(&seat);
            // If this is lost in a crash, the session is found expired at the next start.
            drop(self.node.parts.store.commit(seat.owner(), vec![Op::Purge]));
        }
    }

    /// Ends all sessions of a principal, connected or not: it was removed or revoked.
    pub fn revoke(&self, subject: &str) {
        let mut entries = self.entries.lock();
        let own = entries.range(first_of(subject)..).map(|(key, _)| key).take_while(|key| *key.0 == *subject);
        let own: Vec<Key> = own.cloned().collect();
        for key in own {
            let Some(Entry { seat, mailbox, has_will, .. }) = entries.remove(&key) else { continue };
            if let Some(mailbox) = mailbox {
                mailbox.close(Closed::Revoked);
            }
            if let Seat::Kept(seat) = &seat {
                self.end_seat(seat);
            }
            if has_will || matches!(seat, Seat::Kept(_)) {
                drop(self.commit(&Owner::mqtt(&key.0, &key.1), vec![Op::Purge]));
            }
        }
    }

    /// Looks after revocations of which too many came at once: sessions of accounts and devices that are gone end.
    pub(crate) async fn revoke_unknown(&self) {
        let subjects: BTreeSet<Box<str>> = self.entries.lock().keys().map(|key| key.0.clone()).collect();
        for subject in subjects {
            let Ok(jid) = subject.parse() else { continue };
            if let Ok(false) = self.node.parts.accounts.exists(&jid).await {
                self.revoke(&subject);
            }
        }
    }

    /// Stops accepting and tells all connected clients that the broker stops.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        for entry in self.entries.lock().values() {
            if let Some(mailbox) = &entry.mailbox {
                mailbox.close(Closed::Shutdown);
            }
        }
    }

    /// Waits until no connection is left, at most two seconds: a peer that takes nothing or has not even said CONNECT
    /// does not hold up the stop.
    pub async fn stopped(&self) {
        let mut connections = self.connections.subscribe();
        let gone = connections.wait_for(|open| *open == 0);
        let _ = tokio::time::timeout(FAREWELL, gone).await;
    }

    /// Resolves when [`Hub::stop`] was called.
    pub(crate) async fn stopping(&self) {
        // The sender lives as long as the hub, so waiting can not fail.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Whether [`Hub::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Publications that wait in memory for connected clients, all together.
    pub fn waiting(&self) -> usize {
        let mailboxes: Vec<_> = self.entries.lock().values().filter_map(|entry| entry.mailbox.clone()).collect();
        mailboxes.iter().map(|mailbox| mailbox.len()).sum()
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    pub(crate) fn connected(&self) {
        self.connections.send_modify(|open| *open += 1);
    }

    pub(crate) fn disconnected(&self) {
        self.connections.send_modify(|open| *open -= 1);
    }

    /// Puts a session of the store back, unconnected.
    pub(crate) fn seat_again(&self, client_id: &str, seat: Arc<KeptSeat>, record: SessionRecord, has_will: bool) {
        let key: Key = (Subscriber::principal(&*seat).subject().into(), client_id.into());
        if let Some(at) = record.ends_ms() {
            self.schedule(at, Due::Expiry { key: key.clone(), generation: 0 });
        }
        self.entries.lock().insert(key, Entry { seat: Seat::Kept(seat), mailbox: None, generation: 0, has_will });
    }

    /// Has the will of a session that was cut by the end of the process published after its delay.
    pub(crate) fn schedule_will(&self, key: (&str, &str), principal: Principal, will: Will, at_ms: u64) {
        let key = (key.0.into(), key.1.into());
        self.schedule(at_ms, Due::Will { key, generation: 0, principal, will: Box::new(will) });
    }
}
