//! All MQTT sessions of a node: what their entries decide is done here, on seats, topics and store.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tavi_core::metrics::{Outcome, Protocol};
use tavi_core::permit::Action;
use tavi_core::topics::Subscriber;
use tavi_core::{Closed, Lines, Mailbox, Node, Principal, Ticket};
use tavi_store::{Op, Owner, PageBound, QueuePage, StoreError};
use tokio::sync::{Notify, oneshot, watch};

use crate::config::Config;
use crate::entry::{Arrival, Due, Entrance, Entries, Former, Key, LastWill, LinkId, Look};
use crate::kept::{KeptSeat, Recalled};
use crate::packet::{Connect, Reason, Will};
use crate::place::Turn;
use crate::record::{self, SessionRecord};
use crate::render;
use crate::seat::{LiveSeat, Parcel};

pub use crate::entry::Parting;
pub use crate::place::{Place, Seat};

static TOO_MANY: Lines = Lines::new();

/// How long [`Hub::stopped`] waits.
const FAREWELL: Duration = Duration::from_secs(2);
/// What one wake-up of [`Hub::run`](crate::listener) does at most before others get their turn.
const DUE_AT_ONCE: usize = 64;
/// What is read of a queue at a time.
const PAGE: PageBound = PageBound { rows: 64, bytes: 256 << 10 };

/// All MQTT sessions of a node.
pub struct Hub {
    node: Node,
    config: Config,
    /// All that is committed for a key is committed under this lock, so that no end overtakes a new beginning.
    sessions: Mutex<Sessions>,
    /// There is an earlier deadline than before.
    sooner: Notify,
    stop: watch::Sender<bool>,
    connections: watch::Sender<usize>,
}

#[derive(Default)]
pub(crate) struct Sessions {
    pub(crate) entries: Entries<Seat, Box<Will>>,
    links: LinkId,
    waiting: HashMap<LinkId, oneshot::Sender<()>>,
    /// Wills that wait until what their connections began is done.
    parted: HashMap<LinkId, Parted>,
}

/// A will that is on its way, saved under a record of its own.
struct Parted {
    principal: Principal,
    will: Box<Will>,
    record: (Owner, String),
    saved: Ticket,
}

impl Sessions {
    pub(crate) fn wake(&mut self, links: impl IntoIterator<Item = LinkId>) {
        for link in links {
            // Whoever is not there any more gave up, or is about to.
            self.waiting.remove(&link).map(|waiting| waiting.send(()));
        }
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

/// The time, once for all that one wake-up brings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Milliseconds since 1970: for what is stored and for what clients are told.
    pub wall_ms: u64,
    /// Milliseconds on the monotonic clock: for deadlines.
    pub monotonic_ms: u64,
}

/// A connection that waits to enter: if it goes, nobody waits.
struct Waiting<'a> {
    hub: &'a Hub,
    key: &'a Key,
    link: LinkId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut sessions = self.hub.sessions.lock();
        sessions.waiting.remove(&self.link);
        sessions.entries.give_up(self.key, self.link);
        drop(sessions);
        self.hub.sooner.notify_one();
    }
}

/// What a connection finds at its seat: the mailbox and the QoS 2 publishes not released.
fn sit_down(seat: &Seat, window: u16) -> (Arc<Mailbox<Parcel>>, Vec<u16>) {
    match seat {
        Seat::Live(seat) => (seat.mailbox.clone(), Vec::new()),
        Seat::Kept(seat) => (seat.attach(window.into()), seat.held()),
    }
}

impl Hub {
    /// A hub without sessions; [`Hub::recall`](crate::restart) brings back those in the store.
    pub fn new(node: Node, config: Config) -> Arc<Self> {
        let (stop, connections) = (watch::Sender::new(false), watch::Sender::new(0));
        let (sessions, sooner) = (Mutex::default(), Notify::new());
        Arc::new(Self { node, config, sessions, sooner, stop, connections })
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

    /// Milliseconds on the clock of deadlines.
    pub fn monotonic_ms(&self) -> u64 {
        self.node.parts.clock.monotonic_ms()
    }

    /// Both times.
    pub fn now(&self) -> Now {
        Now { wall_ms: self.now_ms(), monotonic_ms: self.monotonic_ms() }
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
    ) -> Pin<Box<dyn Future<Output = Result<QueuePage, StoreError>> + Send>> {
        let store = self.node.parts.store.clone();
        Box::pin(async move { store.queue_page(&owner, after, PAGE).await })
    }

    // --- entering ---

    /// Lets a client in that has logged in: takes the session over, resumes it or begins a new one. `connect.client_id`
    /// is not empty.
    ///
    /// # Errors
    /// [`Reason::QUOTA`] if the principal has as many durable sessions as it may have; [`Reason::BUSY`] if a later
    /// connection came while this one waited for the session.
    pub async fn enter(self: &Arc<Self>, principal: &Principal, connect: &mut Connect) -> Result<Entered, Reason> {
        let key: Key = (principal.subject().into(), connect.client_id.as_str().into());
        let (mut waiting, mut link) = (None, None);
        loop {
            let turn = {
                let mut sessions = self.sessions.lock();
                let link = *link.get_or_insert_with(|| {
                    sessions.links += 1;
                    sessions.links
                });
                match sessions.entries.arrive(&key, link, connect.clean) {
                    Arrival::Enter => {
                        let entered = self.let_in(&mut sessions, (principal, &key, link), connect);
                        drop(sessions);
                        return entered;
                    }
                    Arrival::Outdated => Err(Reason::BUSY)?,
                    Arrival::Wait(former, overtaken) => {
                        former.tell(Closed::Replaced);
                        sessions.wake(overtaken);
                        let (sender, turn) = oneshot::channel();
                        sessions.waiting.insert(link, sender);
                        turn
                    }
                }
            };
            waiting.get_or_insert(Waiting { hub: self, key: &key, link: link.unwrap_or_default() });
            // Woken or forgotten: either way it arrives again.
            let _ = turn.await;
        }
    }

    fn let_in(
        self: &Arc<Self>,
        sessions: &mut Sessions,
        (principal, key, link): (&Principal, &Key, LinkId),
        connect: &mut Connect,
    ) -> Result<Entered, Reason> {
        let expiry = self.bounded_expiry(connect.expiry);
        if expiry > 0 && !sessions.entries.is_durable(key) {
            self.check_quota(sessions, &key.0)?;
        }
        let owner = Owner::mqtt(&key.0, &key.1);
        let will = connect.will.take().map(Box::new);
        let saved_will = will.as_deref().map(record::encode_will);
        let will = will.map(|will| LastWill { delay: will.delay, what: will });
        let entrance = Entrance { link, clean: connect.clean, durable: expiry > 0, will };
        let entry = sessions.entries.enter(key, entrance, || self.new_seat(principal, &owner, expiry));
        sessions.wake(entry.woken);
        let mut ops = Vec::new();
        if let Some(former) = entry.former {
            self.end_former(&former, &mut ops);
        }
        if let Some(will) = entry.will {
            let parted = self.part_with((principal, &owner), will, std::mem::take(&mut ops));
            self.publish_after(sessions, entry.after, parted);
        }
        if let Seat::Kept(_) = entry.seat {
            ops.push(record::put(record::SESSION, SessionRecord { expiry, left_ms: 0, sent: 0 }.encode()));
        }
        match saved_will {
            Some(value) => ops.push(record::put(record::WILL, value)),
            None if entry.had_will => ops.push(record::delete(record::WILL)),
            None => {}
        }
        let window = self.config.in_flight.min(connect.receive_maximum);
        let (mailbox, held) = sit_down(&entry.seat, window);
        if self.is_stopping() {
            mailbox.close(Closed::Shutdown);
        }
        let ticket = self.commit(&owner, ops);
        let turn = Turn { hub: self.clone(), key: key.clone(), link };
        let (attached, filters) = (Some(self.node.attach(principal)), BTreeSet::new());
        let window = window.into();
        let place = Place { seat: entry.seat, mailbox, owner, window, expiry, filters, attached, turn };
        Ok(Entered { place, session_present: entry.resumed, held, ticket })
    }

    /// A durable session costs memory and rows while nobody is connected, so nobody may have any number of them.
    fn check_quota(&self, sessions: &Sessions, subject: &str) -> Result<(), Reason> {
        if sessions.entries.durable_of(subject) < self.config.max_durable_sessions {
            return Ok(());
        }
        TOO_MANY.write(|| tracing::warn!(subject, "MQTT session refused: the principal has too many durable sessions"));
        Err(Reason::QUOTA)
    }

    /// A session ends because its client begins a new one.
    fn end_former(&self, former: &Former<Seat>, ops: &mut Vec<Op>) {
        if former.held {
            former.seat.tell(Closed::Replaced);
        }
        // A live one's own connection leaves the topics when it notices.
        self.end_seat(&former.seat, ops);
    }

    fn new_seat(&self, principal: &Principal, owner: &Owner, expiry: u32) -> Seat {
        if expiry == 0 {
            let id = self.node.parts.topics.next_subscriber();
            let (mailbox, metrics) = (self.config.room().mailbox(), self.node.parts.metrics.clone());
            return Seat::Live(Arc::new(LiveSeat { id, principal: principal.clone(), mailbox, metrics }));
        }
        Seat::Kept(self.kept_seat(principal, owner, Recalled::default()))
    }

    /// The seat of a durable session.
    pub(crate) fn kept_seat(&self, who: &Principal, owner: &Owner, recalled: Recalled) -> Arc<KeptSeat> {
        let parts = &self.node.parts;
        let room = (self.config.room(), parts.metrics.clone());
        let make = |seating| KeptSeat::new(seating, (owner.clone(), parts.store.clone()), room, recalled);
        parts.topics.seat(who, make)
    }

    /// A durable session ends: nothing is kept for it any more, and nothing that it began is noted any more.
    fn end_seat(&self, seat: &Seat, ops: &mut Vec<Op>) {
        let Seat::Kept(seat) = seat else { return };
        seat.end();
        for (filter, _) in seat.filters() {
            self.node.parts.topics.unsubscribe(Subscriber::id(&**seat), &filter);
        }
        ops.push(Op::Purge);
    }

    /// One commit of the session's own rows; nothing to save is complete at once.
    pub(crate) fn commit(&self, owner: &Owner, ops: Vec<Op>) -> Ticket {
        let mut ticket = Ticket::done();
        if !ops.is_empty() {
            ticket.wait_for(self.node.parts.store.commit(owner, ops));
        }
        ticket
    }

    // --- leaving ---

    /// A connection has ended.
    pub fn leave(self: &Arc<Self>, place: &mut Place, parting: Parting) {
        drop(place.attached.take());
        let mut sessions = self.sessions.lock();
        let sent = self.leave_seat(place);
        let Turn { key, link, .. } = &place.turn;
        let left = sessions.entries.leave(key, *link, (parting, place.expiry), self.monotonic_ms());
        // Its session is another connection's, or ended before.
        let Some(left) = left else { return };
        sessions.wake(left.woken);
        let mut ops = Vec::new();
        match &left.ended {
            Some(seat) => self.end_seat(seat, &mut ops),
            None => {
                let record = SessionRecord { expiry: place.expiry, left_ms: self.now_ms(), sent };
                ops.push(record::put(record::SESSION, record.encode()));
            }
        }
        if left.will_gone {
            ops.push(record::delete(record::WILL));
        }
        match left.will {
            Some(will) => {
                let parted = self.part_with((place.seat.principal(), &place.owner), will, ops);
                self.publish_after(&mut sessions, Some(*link), parted);
            }
            None => drop(self.commit(&place.owner, ops)),
        }
        drop(sessions);
        self.sooner.notify_one();
    }

    /// Takes the connection off its seat; gives the greatest row that was sent.
    fn leave_seat(&self, place: &Place) -> u64 {
        match &place.seat {
            Seat::Live(seat) => {
                for filter in &place.filters {
                    self.node.parts.topics.unsubscribe(seat.id, filter);
                }
                seat.end();
                0
            }
            Seat::Kept(seat) => seat.detach(&place.mailbox),
        }
    }

    /// All that a connection began is saved: the next one may go on.
    pub(crate) fn done(self: &Arc<Self>, key: &Key, link: LinkId) {
        let mut sessions = self.sessions.lock();
        // Before the next one may publish anything.
        if let Some(parted) = sessions.parted.remove(&link) {
            self.publish_will(parted);
        }
        let next = sessions.entries.done(key, link);
        sessions.wake(next);
    }

    // --- wills ---

    /// A will is going to be published. `ops` are committed with its own record, under which the next start finds it if
    /// this one ends before it is published; the caller holds the lock on the sessions.
    fn part_with(&self, (principal, owner): (&Principal, &Owner), will: Box<Will>, mut ops: Vec<Op>) -> Parted {
        let item = record::parted_item(self.next_id());
        ops.push(record::put(&item, record::encode_will(&will)));
        let saved = self.commit(owner, ops);
        Parted { principal: principal.clone(), will, record: (owner.clone(), item), saved }
    }

    /// A will is its client's last word (semantics.md, order): it is published when what the connection began is done.
    fn publish_after(self: &Arc<Self>, sessions: &mut Sessions, link: Option<LinkId>, parted: Parted) {
        match link {
            Some(link) => drop(sessions.parted.insert(link, parted)),
            None => self.publish_will(parted),
        }
    }

    /// Publishes a will in a task of its own, after it is saved; then its record is deleted.
    fn publish_will(self: &Arc<Self>, parted: Parted) {
        // Outside a runtime (the very end of the process) the next start publishes it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let Parted { principal, will, record, saved } = parted;
        let draft = render::draft(will.body.topic().into(), &will.body, will.qos, will.retain, self.now_ms());
        // A refused will is logged by the access model and gone.
        let mut ticket = self.node.parts.topics.publish_as(&principal, Action::Publish, draft).unwrap_or_default();
        ticket.join(saved);
        let hub = self.clone();
        hub.node.parts.metrics.draining.add(1);
        runtime.spawn(async move {
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

    // --- deadlines ---

    /// Does all that is due now: sessions end, delayed wills are published.
    pub fn tick(self: &Arc<Self>) {
        while self.do_due() {}
    }

    /// Does some of what is due; true if there may be more.
    fn do_due(self: &Arc<Self>) -> bool {
        let now_ms = self.monotonic_ms();
        (0..DUE_AT_ONCE).all(|_| self.do_next(now_ms))
    }

    fn do_next(self: &Arc<Self>, now_ms: u64) -> bool {
        let mut sessions = self.sessions.lock();
        let Some(due) = sessions.entries.due(now_ms) else { return false };
        if let Due::End { key, seat, .. } = &due {
            let stored = seat.kept().map_or(0, |seat| seat.size().rows);
            tracing::info!(subject = key.0, client = key.1, stored, "an MQTT session ends: its client stayed away");
        }
        self.act(&mut sessions, due);
        true
    }

    /// Does what is due; the caller holds the lock on the sessions.
    pub(crate) fn act(self: &Arc<Self>, sessions: &mut Sessions, due: Due<Seat, Box<Will>>) {
        let mut ops = Vec::new();
        let (key, seat, will, after) = match due {
            Due::Will { key, seat, will, after } => {
                ops.push(record::delete(record::WILL));
                (key, seat, Some(will), after)
            }
            Due::End { key, seat, will, after } => {
                // If this is lost in a crash, the session is found expired at the next start.
                self.end_seat(&seat, &mut ops);
                (key, seat, will, after)
            }
        };
        let owner = Owner::mqtt(&key.0, &key.1);
        match will {
            Some(will) => {
                let parted = self.part_with((seat.principal(), &owner), will, ops);
                self.publish_after(sessions, after, parted);
            }
            None => drop(self.commit(&owner, ops)),
        }
    }

    /// Waits until something is due and does it; returns earlier if something else is due sooner.
    pub(crate) async fn next_due(self: &Arc<Self>) {
        let due = self.sessions.lock().entries.next_deadline();
        let sleep = async {
            match due {
                Some(at) => tokio::time::sleep(Duration::from_millis(at.saturating_sub(self.monotonic_ms()))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => drop(self.do_due()),
            () = self.sooner.notified() => {}
        }
    }

    // --- the operator ---

    /// Ends all sessions of a principal, connected or not: it was removed or revoked.
    pub fn revoke(&self, subject: &str) {
        let mut sessions = self.sessions.lock();
        for revoked in sessions.entries.revoke(subject) {
            sessions.wake(revoked.woken);
            revoked.seat.tell(Closed::Revoked);
            let mut ops = Vec::new();
            self.end_seat(&revoked.seat, &mut ops);
            if revoked.stored && ops.is_empty() {
                ops.push(Op::Purge);
            }
            drop(self.commit(&Owner::mqtt(&revoked.key.0, &revoked.key.1), ops));
        }
    }

    /// Looks after revocations of which too many came at once: sessions of accounts and devices that are gone end.
    pub(crate) async fn revoke_unknown(&self) {
        let subjects: BTreeSet<Box<str>> = self.sessions.lock().entries.each().map(|(key, ..)| key.0.clone()).collect();
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
        for (_, seat, _) in self.sessions.lock().entries.each() {
            seat.tell(Closed::Shutdown);
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

    /// The seats of all durable sessions.
    pub(crate) fn kept_seats(&self) -> Vec<Arc<KeptSeat>> {
        self.sessions.lock().entries.each().filter_map(|(_, seat, _)| seat.kept().cloned()).collect()
    }

    /// So many sessions behind a key, of all or of one principal.
    pub(crate) fn looks_behind(&self, subject: Option<&str>, after: Option<&Key>, limit: usize) -> Vec<Look<Seat>> {
        self.sessions.lock().entries.behind(subject, after).take(limit).collect()
    }

    /// One session.
    pub(crate) fn look(&self, key: &Key) -> Option<Look<Seat>> {
        self.sessions.lock().entries.look(key)
    }

    /// The lock under which all that is committed for a key is committed.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock()
    }

    /// The durable session of a client, if it has one.
    pub fn kept(&self, subject: &str, client_id: &str) -> Option<Arc<KeptSeat>> {
        self.look(&(subject.into(), client_id.into()))?.seat.kept().cloned()
    }

    /// Publications that wait in memory for connected clients, all together.
    pub fn waiting(&self) -> usize {
        let seats: Vec<Seat> = self.sessions.lock().entries.each().map(|(_, seat, _)| seat.clone()).collect();
        seats.iter().map(Seat::waiting).sum()
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

    /// Puts a session of the store back, unconnected, with the milliseconds after which it ends and its will comes.
    pub(crate) fn seat_again(
        &self,
        client_id: &str,
        seat: Arc<KeptSeat>,
        ends_in: Option<u64>,
        will: Option<(u64, Will)>,
    ) {
        let key: Key = (Subscriber::principal(&*seat).subject().into(), client_id.into());
        let now_ms = self.monotonic_ms();
        let at = |ms: u64| now_ms.saturating_add(ms);
        let will = will.map(|(ms, will)| (at(ms), Box::new(will)));
        self.sessions.lock().entries.restore(key, Seat::Kept(seat), ends_in.map(at), will);
    }
}
