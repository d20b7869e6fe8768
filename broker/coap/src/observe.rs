//! Observation without IO: who watches which topic, and when a notification goes out and how (RFC 7641).
//!
//! A peer has at most one notification on its way that is not acknowledged (RFC 7641 §4.5.1, NSTART), and at most one
//! non-confirmable one per round trip; meanwhile the newest value of each topic replaces the older (§4.5.2).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::block::{Block, BlockSize};
use crate::datagram::Kind;
use crate::message::{Code, Message, Token, option};
use crate::peer::PeerId;
use crate::representation::{Representation, fresh_only_now};

/// After how many notifications one is confirmable, so that a peer that went away is found (RFC 7641 §4.5).
const CONFIRM_EVERY: u32 = 20;
/// After what time a notification is confirmable.
const CONFIRM_AFTER: Duration = Duration::from_secs(60);
/// After what silence the value is sent again, confirmable. RFC 7641 §4.5 wants it within 24 hours.
const REFRESH: Duration = Duration::from_secs(1800);
/// Max-Age of a notification: until the refresh has had its time to arrive (RFC 7641 §4.3.1).
pub const MAX_AGE: u32 = 1900;
/// How many ids of non-confirmable notifications are remembered for a late Reset.
const REMEMBERED_IDS: usize = 16;

/// Bounds of the observations of one socket.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Observations of one peer.
    pub per_peer: usize,
    /// Observations of all peers.
    pub all: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_peer: 64, all: 4096 }
    }
}

/// Who observes: a peer and the token that it chose (RFC 7641 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Observer {
    /// The peer.
    pub peer: PeerId,
    /// The token of its request.
    pub token: Token,
}

/// What is observed and how.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The topic.
    pub topic: Arc<str>,
    /// The value that the answer to the registration carries.
    pub value: Representation,
    /// The block size that the peer asked for.
    pub size: BlockSize,
}

/// What became of a topic.
#[derive(Clone, Debug)]
pub enum Update {
    /// It has a new value.
    Value(Representation),
    /// The value of that version took all former ones away: the observation ends with 4.04.
    Cleared(u64),
    /// The observation ends with this code: 4.01 or 4.03 when the permission is gone (RFC 7641 §4.2).
    End(Code),
}

/// A notification to be sent with [`Exchanges::send`](crate::exchange::Exchanges::send); tell the id to [`Observers::sent`].
#[derive(Debug)]
pub struct Notification {
    /// To whom.
    pub observer: Observer,
    /// The type under which it goes out.
    pub kind: Kind,
    /// The response, with its token.
    pub message: Message,
}

/// The observations of one socket.
#[derive(Debug)]
pub struct Observers {
    limits: Limits,
    clock: u64,
    entries: HashMap<Observer, Entry>,
    topics: HashMap<Arc<str>, Vec<Observer>>,
    flows: HashMap<PeerId, Flow>,
    due: BTreeSet<(Instant, PeerId)>,
    refresh: BTreeSet<(Instant, PeerId, Token)>,
    unwatched: Vec<Arc<str>>,
}

impl Observers {
    /// No observations.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            clock: 0,
            entries: HashMap::new(),
            topics: HashMap::new(),
            flows: HashMap::new(),
            due: BTreeSet::new(),
            refresh: BTreeSet::new(),
            unwatched: Vec::new(),
        }
    }

    /// Whether `observer` may be added (or renewed).
    pub fn has_room(&self, observer: Observer) -> bool {
        let of_peer = self.flows.get(&observer.peer).map_or(0, |flow| flow.observers);
        self.entries.contains_key(&observer) || (of_peer < self.limits.per_peer && self.entries.len() < self.limits.all)
    }

    /// Adds an observation or renews it (RFC 7641 §4.1); `false` if a bound is reached.
    pub fn register(&mut self, now: Instant, observer: Observer, registration: Registration) -> bool {
        if !self.has_room(observer) {
            return false;
        }
        self.remove(observer);
        let Registration { topic, value, size } = registration;
        self.topics.entry(topic.clone()).or_default().push(observer);
        self.unwatched.retain(|unwatched| *unwatched != topic);
        self.flows.entry(observer.peer).or_insert_with(|| Flow::new(now)).observers += 1;
        let refresh = now + REFRESH;
        self.refresh.insert((refresh, observer.peer, observer.token));
        let entry = Entry { topic, value, size, end: None, queued: false, confirmed: None, unconfirmed: 0, refresh };
        self.entries.insert(observer, entry);
        true
    }

    /// Ends an observation at the peer's wish (RFC 7641 §4.1).
    pub fn remove(&mut self, observer: Observer) {
        let Some(entry) = self.entries.remove(&observer) else { return };
        self.refresh.remove(&(entry.refresh, observer.peer, observer.token));
        if let Some(watchers) = self.topics.get_mut(&entry.topic) {
            watchers.retain(|watcher| *watcher != observer);
            if watchers.is_empty() {
                self.topics.remove(&entry.topic);
                self.unwatched.push(entry.topic);
            }
        }
        if let Some(flow) = self.flows.get_mut(&observer.peer) {
            flow.observers -= 1;
            flow.ready.retain(|ready| *ready != observer.token);
            if flow.observers == 0 && flow.unacknowledged.is_none() {
                self.forget_flow(observer.peer);
            }
        }
    }

    /// Whether anybody observes `topic`.
    pub fn watches(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    /// The topics that are observed.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<str>> {
        self.topics.keys()
    }

    /// The observers of all topics.
    pub fn all(&self) -> impl Iterator<Item = &Observer> {
        self.entries.keys()
    }

    /// A topic that lost its last observer, to be unsubscribed from.
    pub fn poll_unwatched(&mut self) -> Option<Arc<str>> {
        self.unwatched.pop()
    }

    /// Tells all observers of `topic`. Values that are not newer than the one known are ignored.
    pub fn changed(&mut self, topic: &str, update: &Update) {
        for observer in self.topics.get(topic).cloned().unwrap_or_default() {
            let news = self.entries.get_mut(&observer).is_some_and(|entry| entry.take(update));
            if news {
                self.queue(observer);
            }
        }
    }

    /// The next notification that may go out at `now`. `unix_ms` is the clock of the Observe numbers.
    pub fn poll_notification(&mut self, now: Instant, unix_ms: u64) -> Option<Notification> {
        loop {
            let &(at, peer) = self.due.first()?;
            if at > now {
                return None;
            }
            self.due.pop_first();
            if let Some(observer) = self.take_ready(peer) {
                return self.notify(now, observer, unix_ms);
            }
        }
    }

    /// The number for the Observe option of an answer or notification: milliseconds, 24 bits of them, never
    /// repeated, and growing over a restart (RFC 7641 §4.4).
    pub fn draw_number(&mut self, unix_ms: u64) -> u32 {
        self.clock = unix_ms.max(self.clock + 1);
        (self.clock & 0xFF_FFFF) as u32
    }

    /// Tells the message id under which the notification to `observer` went out, and of which type it was.
    pub fn sent(&mut self, now: Instant, (observer, kind): (Observer, Kind), id: u16) {
        let Observer { peer, token } = observer;
        let Some(flow) = self.flows.get_mut(&peer) else { return };
        if kind == Kind::Confirmable {
            flow.unacknowledged = Some((id, token));
            return;
        }
        flow.ids.truncate(REMEMBERED_IDS - 1);
        flow.ids.push_front((id, token));
        flow.next = now + flow.round_trip.unwrap_or_default();
        self.schedule(peer);
    }

    /// Our notification `id` was acknowledged; `round_trip` paces the next ones.
    pub fn acknowledged(&mut self, now: Instant, (peer, id): (PeerId, u16), round_trip: Option<Duration>) {
        if let Some(flow) = self.settle(peer, id) {
            flow.round_trip = round_trip.or(flow.round_trip);
            flow.next = now;
            self.schedule(peer);
        }
    }

    /// Our notification `id` was rejected or never acknowledged: the observation ends (RFC 7641 §3.6, §4.5).
    pub fn lost(&mut self, now: Instant, (peer, id): (PeerId, u16)) {
        let Some(flow) = self.flows.get(&peer) else { return };
        let remembered = flow.unacknowledged.iter().chain(&flow.ids).find(|(known, _)| *known == id);
        let Some(&(_, token)) = remembered else { return };
        if let Some(flow) = self.settle(peer, id) {
            flow.next = now;
        }
        self.remove(Observer { peer, token });
        self.schedule(peer);
    }

    /// When [`poll_notification`](Self::poll_notification) or [`poll_refresh`](Self::poll_refresh) has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = self.due.first().map(|(at, _)| *at);
        let refresh = self.refresh.first().map(|(at, ..)| *at);
        due.into_iter().chain(refresh).min()
    }

    /// An observation whose refresh is due at `now`, and its topic. Read the value and tell [`refresh`](Self::refresh): what
    /// was notified last may have gone stale in silence.
    pub fn poll_refresh(&mut self, now: Instant) -> Option<(Observer, Arc<str>)> {
        loop {
            let &(at, peer, token) = self.refresh.first().filter(|(at, ..)| *at <= now)?;
            let observer = Observer { peer, token };
            self.refresh.remove(&(at, peer, token));
            self.put_off_refresh(now, observer);
            if let Some(entry) = self.entries.get(&observer) {
                return Some((observer, entry.topic.clone()));
            }
        }
    }

    /// Sends what the topic has now to one observer, whether it is news or not (RFC 7641 §4.5). A value that is older than
    /// the one notified last is not sent: its number would be newer (RFC 7641 §4.4).
    pub fn refresh(&mut self, observer: Observer, update: &Update) {
        if let Some(entry) = self.entries.get_mut(&observer) {
            entry.take(update);
            self.queue(observer);
        }
    }

    /// The number of peers that observe.
    pub fn peers(&self) -> usize {
        self.flows.len()
    }

    /// The number of observations.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn queue(&mut self, observer: Observer) {
        let Some(entry) = self.entries.get_mut(&observer) else { return };
        if std::mem::replace(&mut entry.queued, true) {
            return;
        }
        if let Some(flow) = self.flows.get_mut(&observer.peer) {
            flow.ready.push_back(observer.token);
        }
        self.schedule(observer.peer);
    }

    fn take_ready(&mut self, peer: PeerId) -> Option<Observer> {
        let flow = self.flows.get_mut(&peer)?;
        if flow.unacknowledged.is_some() {
            return None;
        }
        let token = flow.ready.pop_front()?;
        Some(Observer { peer, token })
    }

    fn notify(&mut self, now: Instant, observer: Observer, unix_ms: u64) -> Option<Notification> {
        let number = self.draw_number(unix_ms);
        let proven = self.flows.get(&observer.peer).is_some_and(|flow| flow.round_trip.is_some());
        let entry = self.entries.get_mut(&observer)?;
        let (mut message, kind) = entry.notification((now, unix_ms), number, proven);
        message.set_token(observer.token);
        if entry.end.is_some() {
            self.detach(observer);
        } else {
            self.put_off_refresh(now, observer);
        }
        Some(Notification { observer, kind, message })
    }

    /// Removes an entry whose last notification is about to be sent, but keeps the peer's flow for it.
    fn detach(&mut self, observer: Observer) {
        if let Some(flow) = self.flows.get_mut(&observer.peer) {
            flow.unacknowledged = Some((0, observer.token));
        }
        self.remove(observer);
    }

    /// Ends the wait for `id`; forgets the peer's flow if nothing else needs it.
    fn settle(&mut self, peer: PeerId, id: u16) -> Option<&mut Flow> {
        let flow = self.flows.get_mut(&peer)?;
        flow.unacknowledged.take_if(|(waited, _)| *waited == id)?;
        if flow.observers == 0 {
            self.forget_flow(peer);
        }
        self.flows.get_mut(&peer)
    }

    fn forget_flow(&mut self, peer: PeerId) {
        if let Some(flow) = self.flows.remove(&peer) {
            self.due.remove(&(flow.scheduled, peer));
        }
    }

    fn schedule(&mut self, peer: PeerId) {
        let Some(flow) = self.flows.get_mut(&peer) else { return };
        if !flow.ready.is_empty() && flow.unacknowledged.is_none() {
            self.due.remove(&(flow.scheduled, peer));
            flow.scheduled = flow.next;
            self.due.insert((flow.scheduled, peer));
        }
    }

    fn put_off_refresh(&mut self, now: Instant, observer: Observer) {
        let Some(entry) = self.entries.get_mut(&observer) else { return };
        self.refresh.remove(&(entry.refresh, observer.peer, observer.token));
        entry.refresh = now + REFRESH;
        self.refresh.insert((entry.refresh, observer.peer, observer.token));
    }
}

/// One observation.
#[derive(Debug)]
struct Entry {
    topic: Arc<str>,
    value: Representation,
    size: BlockSize,
    end: Option<Code>,
    queued: bool,
    confirmed: Option<Instant>,
    unconfirmed: u32,
    refresh: Instant,
}

impl Entry {
    /// Takes the update in; tells whether it is news.
    fn take(&mut self, update: &Update) -> bool {
        let known = self.value.version;
        match update {
            _ if self.end.is_some() => return false,
            Update::Value(value) if value.version > known => self.replace(value),
            Update::Cleared(version) if *version > known => self.end = Some(Code::NOT_FOUND),
            Update::End(code) => self.end = Some(*code),
            Update::Value(_) | Update::Cleared(_) => return false,
        }
        true
    }

    /// RFC 7641 §4.2: all notifications have the Content-Format of the first answer, or the observation ends with 4.06.
    /// One that began without a format goes on without one.
    fn replace(&mut self, value: &Representation) {
        let format = self.value.format;
        if format.is_some() && value.format != format {
            self.end = Some(Code::NOT_ACCEPTABLE);
        } else {
            self.value = Representation { format, ..value.clone() };
        }
    }

    fn notification(&mut self, (now, unix_ms): (Instant, u64), number: u32, proven: bool) -> (Message, Kind) {
        self.queued = false;
        if let Some(code) = self.end {
            // RFC 7641 §4.2: a notification that is no 2.xx carries no Observe option, and is the last one.
            return (fresh_only_now(Message::new(code)), Kind::Confirmable);
        }
        let first = Block { size: self.size, ..Block::FIRST };
        let wanted = (self.size != BlockSize::MAX).then_some(first);
        let mut message = self.value.content(wanted, self.value.max_age(MAX_AGE, unix_ms));
        message.add_uint(option::OBSERVE, u64::from(number));
        (message, self.kind(now, proven))
    }

    /// RFC 7641 §4.5: confirmable at first (which proves the peer and measures the round trip), then now and then.
    fn kind(&mut self, now: Instant, proven: bool) -> Kind {
        let fresh = self.confirmed.is_some_and(|at| now.saturating_duration_since(at) < CONFIRM_AFTER);
        self.unconfirmed += 1;
        if proven && fresh && self.unconfirmed < CONFIRM_EVERY {
            return Kind::NonConfirmable;
        }
        self.confirmed = Some(now);
        self.unconfirmed = 0;
        Kind::Confirmable
    }
}

/// What is on its way to one peer.
#[derive(Debug)]
struct Flow {
    observers: usize,
    ready: VecDeque<Token>,
    unacknowledged: Option<(u16, Token)>,
    ids: VecDeque<(u16, Token)>,
    round_trip: Option<Duration>,
    next: Instant,
    scheduled: Instant,
}

impl Flow {
    fn new(now: Instant) -> Self {
        Self {
            observers: 0,
            ready: VecDeque::new(),
            unacknowledged: None,
            ids: VecDeque::new(),
            round_trip: None,
            next: now,
            scheduled: now,
        }
    }
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
