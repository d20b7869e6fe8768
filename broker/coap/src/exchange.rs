//! The message layer of CoAP without IO: ids, acknowledgement, retransmission and deduplication (RFC 7252 §4).
//!
//! [`Exchanges`] takes datagrams and the time, and gives datagrams and [`Event`]s. One value serves one socket.
//! Memory is bounded for each peer and in all; a peer that stays within the protocol is not refused.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::datagram::{Datagram, Fault, Kind};
use crate::ids::{Ids, Random};
use crate::message::{Code, Message, Token, option};
use crate::options::refuse_options;
use crate::peer::PeerId;

/// How long an acknowledgement is waited for at first (RFC 7252 §4.8); times 1 to 1.5, doubled at each repetition.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a confirmable message is repeated (RFC 7252 §4.8).
pub const MAX_RETRANSMIT: u8 = 4;
/// How long a message id means the same message (RFC 7252 §4.8.2).
pub const EXCHANGE_LIFETIME: Duration = Duration::from_secs(247);
/// How long an answer may take before an empty acknowledgement goes first (RFC 7252 §5.2.2; below ACK_TIMEOUT).
pub const PIGGYBACK_DELAY: Duration = Duration::from_millis(200);

/// The table of peers does not shrink below this many.
const KEPT_CAPACITY: usize = 1024;

/// Bounds of the message layer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests being answered, plus confirmable messages of ours that are not acknowledged, for one peer.
    pub open_per_peer: usize,
    /// Requests being answered, for all peers together. What peers do not acknowledge does not count here: a silent
    /// peer costs itself, and nobody else.
    pub open: usize,
    /// Separate responses that are repeated until acknowledged, for all peers together; beyond it they go out once.
    pub separate: usize,
    /// Answers kept for repeated requests of one peer; the oldest goes first.
    pub answers_per_peer: usize,
    /// The same for all peers together; the peer that has most loses its oldest.
    pub answers: usize,
}

/// So many kept answers a peer has for sure. When all have no more and the table is full, new writes are refused
/// rather than old ones forgotten, which would let a repetition run again (RFC 7252 §4.5).
const SURE_ANSWERS: usize = 4;
/// An answer to an address that may be forged has at most so many times the bytes of its request (RFC 9175 §2.4).
const AMPLIFICATION: usize = 3;

impl Default for Limits {
    fn default() -> Self {
        Self { open_per_peer: 64, open: 4096, separate: 4096, answers_per_peer: 2048, answers: 65_536 }
    }
}

/// What the message layer tells the one above.
#[derive(Debug)]
pub enum Event {
    /// A request that was not seen before, to be answered with [`Exchanges::respond`].
    Request {
        /// The exchange, for the answer.
        exchange: Exchange,
        /// The request.
        message: Message,
    },
    /// A confirmable message of ours was acknowledged.
    Acknowledged {
        /// Who acknowledged.
        peer: PeerId,
        /// The id of our message.
        id: u16,
        /// The round trip, unless the message was repeated (then the answer's time says nothing).
        round_trip: Option<Duration>,
    },
    /// A message of ours was rejected with a Reset (RFC 7252 §4.2, §4.3).
    Rejected {
        /// Who rejected.
        peer: PeerId,
        /// The id of our message.
        id: u16,
    },
    /// A confirmable message of ours was never acknowledged.
    GaveUp {
        /// Who is silent.
        peer: PeerId,
        /// The id of our message.
        id: u16,
    },
}

/// A request that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Who asked.
    pub peer: PeerId,
    id: u16,
    serial: u64,
}

/// A datagram to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Transmit {
    /// To whom.
    pub to: PeerId,
    /// The bytes.
    pub bytes: Bytes,
}

/// A moment, made unique by a serial number: a key of the ordered tables.
type When = (Instant, u64);

/// The message layer of one socket.
#[derive(Debug)]
pub struct Exchanges {
    limits: Limits,
    random: Random,
    ids: Ids,
    serial: u64,
    open: usize,
    separate: usize,
    sizes: BTreeSet<(usize, PeerId)>,
    peers: HashMap<PeerId, Peer>,
    timers: BTreeMap<When, Timer>,
    answers: BTreeMap<When, (PeerId, u16)>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Exchanges {
    /// A message layer that draws its message ids and timeouts from `seed`.
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            random: Random(seed),
            ids: Ids::default(),
            serial: 0,
            open: 0,
            separate: 0,
            sizes: BTreeSet::new(),
            peers: HashMap::new(),
            timers: BTreeMap::new(),
            answers: BTreeMap::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes one datagram of `peer`. What comes of it is found by `poll_event` and `poll_transmit`.
    pub fn receive(&mut self, now: Instant, peer: impl Into<PeerId>, datagram: &[u8]) {
        let peer = peer.into();
        // RFC 7252 §8.1, §11.3: nothing is sent to a group or to an address that can only be forged.
        if !answerable(peer) {
            return;
        }
        match Datagram::decode(datagram) {
            Err(Fault::Ignore) => {}
            Err(Fault::Reset(id)) => self.send_empty(peer, Kind::Reset, id),
            Ok(message) => {
                let origin = Origin { digest: digest(datagram), size: datagram.len() };
                self.dispatch(now, peer, (message, origin));
            }
        }
    }

    /// Answers a request. The token of `response` is set here. An error to a peer whose address is not proven loses its
    /// diagnostic if it would be longer than three times the request (RFC 7252 §11.3, RFC 9175 §2.4).
    ///
    /// Nothing happens if the exchange is over: the peer has reused the id, or was forgotten.
    pub fn respond(&mut self, now: Instant, exchange: Exchange, mut response: Message) {
        let Exchange { peer, id, serial } = exchange;
        let Some(pending) = self.take_pending(peer, id, serial) else { return };
        response.set_token(pending.token);
        if pending.confirmable && !pending.acknowledged {
            self.piggyback(now, (peer, id), (&pending, response));
        } else {
            self.answer_separately(now, (peer, id), (&pending, response));
        }
        self.forget_if_idle(peer);
    }

    /// RFC 7252 §5.2.1.
    fn piggyback(&mut self, now: Instant, (peer, id): (PeerId, u16), (pending, response): (&Pending, Message)) {
        let must_remember = pending.must_remember(response.code());
        let datagram = Datagram { kind: Kind::Acknowledgement, id, message: response };
        let bytes = Bytes::from(self.fitted(peer, pending.origin.size, datagram));
        if must_remember {
            self.remember(now, (peer, id), Answer { digest: pending.origin.digest, bytes: bytes.clone() });
        }
        self.transmits.push_back(Transmit { to: peer, bytes });
    }

    /// RFC 7252 §5.2.2, §5.2.3: of the type of the request; unconfirmed where too many others wait already.
    fn answer_separately(&mut self, now: Instant, (peer, id): (PeerId, u16), (pending, response): (&Pending, Message)) {
        let must_remember = pending.must_remember(response.code());
        if pending.confirmable || must_remember {
            self.remember(now, (peer, id), pending.separate(id));
        }
        let confirmable = pending.confirmable && self.separate < self.limits.separate;
        let kind = if confirmable { Kind::Confirmable } else { Kind::NonConfirmable };
        let id = self.draw_id(now, peer);
        let bytes = Bytes::from(self.fitted(peer, pending.origin.size, Datagram { kind, id, message: response }));
        if confirmable {
            self.separate += 1;
            self.wait_for_acknowledgement(now, (peer, id), (bytes.clone(), Purpose::Response));
        }
        self.transmits.push_back(Transmit { to: peer, bytes });
    }

    /// The bytes of an answer, without its diagnostic payload if the peer could have been forged to send them elsewhere.
    fn fitted(&self, peer: PeerId, request: usize, mut answer: Datagram) -> Vec<u8> {
        let bytes = answer.encode();
        let proven = self.peers.get(&peer).is_some_and(|state| state.proven);
        if proven || answer.code().class() < 4 || bytes.len() <= AMPLIFICATION * request {
            return bytes;
        }
        answer.set_payload(b"");
        answer.encode()
    }

    /// Sends `message` to `peer` under a new id, which is returned; repeats it until acknowledged if it is confirmable.
    ///
    /// The caller bounds the number of its confirmable messages (NSTART, RFC 7252 §4.7).
    pub fn send(&mut self, now: Instant, peer: impl Into<PeerId>, (kind, message): (Kind, Message)) -> u16 {
        let peer = peer.into();
        let id = self.draw_id(now, peer);
        let bytes = Bytes::from(Datagram { kind, id, message }.encode());
        if kind == Kind::Confirmable {
            self.wait_for_acknowledgement(now, (peer, id), (bytes.clone(), Purpose::Notification));
        }
        self.transmits.push_back(Transmit { to: peer, bytes });
        id
    }

    fn wait_for_acknowledgement(
        &mut self,
        now: Instant,
        (peer, id): (PeerId, u16),
        (bytes, purpose): (Bytes, Purpose),
    ) {
        let timeout = ACK_TIMEOUT + ACK_TIMEOUT.mul_f64(self.random.fraction() / 2.0);
        let timer = self.set_timer(now + timeout, Timer::Repeat(peer, id));
        let outgoing = Outgoing { bytes, purpose, sent: now, timeout, repeated: 0, timer };
        self.peers.entry(peer).or_default().outgoing.insert(id, outgoing);
    }

    /// The next datagram to be sent.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`tick`](Self::tick) must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timer = self.timers.keys().next();
        let answer = self.answers.keys().next();
        timer.into_iter().chain(answer).map(|(at, _)| *at).min()
    }

    /// Does what is due at `now`.
    pub fn tick(&mut self, now: Instant) {
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            match entry.remove() {
                Timer::Acknowledge(peer, id) => self.acknowledge(peer, id),
                Timer::Repeat(peer, id) => self.repeat(now, peer, id),
            }
        }
        while self.answers.first_key_value().is_some_and(|((at, _), _)| *at <= now) {
            self.forget_oldest_answer();
        }
    }

    /// The number of peers that anything is remembered of.
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    fn dispatch(&mut self, now: Instant, peer: PeerId, (message, origin): (Datagram, Origin)) {
        let (kind, code, id) = (message.kind, message.code(), message.id);
        match kind {
            Kind::Acknowledgement => self.acknowledged(now, peer, id),
            Kind::Reset if code == Code::EMPTY => self.rejected(peer, id),
            Kind::Reset => {}
            _ if code.is_request() => self.request(now, peer, (message, origin)),
            // RFC 7252 §4.3: an empty confirmable message is a ping; §4.2: a response that nobody asked for is rejected alike.
            Kind::Confirmable => self.send_empty(peer, Kind::Reset, id),
            Kind::NonConfirmable => {}
        }
    }

    fn request(&mut self, now: Instant, peer: PeerId, (message, origin): (Datagram, Origin)) {
        if self.is_repeated(peer, &message, origin.digest) {
            return;
        }
        if let Some(refusal) = refuse_options(&message) {
            return self.refuse(peer, (&message, origin), refusal);
        }
        if self.is_full(peer, message.code()) {
            return self.refuse(peer, (&message, origin), overloaded());
        }
        let exchange = self.open_exchange(now, peer, (&message, origin));
        self.events.push_back(Event::Request { exchange, message: message.message });
    }

    fn open_exchange(&mut self, now: Instant, peer: PeerId, (message, origin): (&Datagram, Origin)) -> Exchange {
        let id = message.id;
        let confirmable = message.kind == Kind::Confirmable;
        let serial = self.next_serial();
        let timer = confirmable.then(|| self.set_timer(now + PIGGYBACK_DELAY, Timer::Acknowledge(peer, id)));
        let token = message.token();
        let safe = message.code() == Code::GET;
        let pending = Pending { serial, origin, token, confirmable, safe, acknowledged: false, timer };
        let replaced = self.peers.entry(peer).or_default().pending.insert(id, pending);
        match replaced {
            Some(old) => drop(old.timer.map(|timer| self.timers.remove(&timer))),
            None => self.open += 1,
        }
        Exchange { peer, id, serial }
    }

    /// RFC 7252 §4.5: a repeated confirmable request gets the stored answer again, other repetitions are silent.
    ///
    /// The digest tells a repetition from a peer that started anew on the same port with the same id.
    fn is_repeated(&mut self, peer: PeerId, message: &Datagram, digest: u64) -> bool {
        let Some(state) = self.peers.get(&peer) else { return false };
        if let Some(pending) = state.pending.get(&message.id) {
            let repeated = pending.origin.digest == digest;
            if repeated && pending.acknowledged {
                self.send_empty(peer, Kind::Acknowledgement, message.id);
            }
            return repeated;
        }
        let Some((_, answer)) = state.answers.get(&message.id) else { return false };
        if answer.digest != digest {
            return false;
        }
        if message.kind == Kind::Confirmable && !answer.bytes.is_empty() {
            self.transmits.push_back(Transmit { to: peer, bytes: answer.bytes.clone() });
        }
        true
    }

    fn is_full(&self, peer: PeerId, code: Code) -> bool {
        let open = self.peers.get(&peer).map_or(0, |state| state.pending.len() + state.outgoing.len());
        let no_memory = || self.answers.len() >= self.limits.answers && self.most_answers() <= SURE_ANSWERS;
        self.open >= self.limits.open || open >= self.limits.open_per_peer || (code != Code::GET && no_memory())
    }

    /// The number of answers of the peer that has most.
    fn most_answers(&self) -> usize {
        self.sizes.last().map_or(0, |(count, _)| *count)
    }

    /// Refuses a request without remembering it: asked again it is refused again.
    fn refuse(&mut self, peer: PeerId, (request, origin): (&Datagram, Origin), mut response: Message) {
        // RFC 7252 §5.4.1: with unknown critical options a non-confirmable request is rejected, which means silence.
        if request.kind != Kind::Confirmable {
            return;
        }
        response.set_token(request.token());
        let answer = Datagram { kind: Kind::Acknowledgement, id: request.id, message: response };
        let bytes = self.fitted(peer, origin.size, answer).into();
        self.transmits.push_back(Transmit { to: peer, bytes });
    }

    fn send_empty(&mut self, peer: PeerId, kind: Kind, id: u16) {
        let bytes = Datagram::empty(kind, id).encode().into();
        self.transmits.push_back(Transmit { to: peer, bytes });
    }

    fn acknowledged(&mut self, now: Instant, peer: PeerId, id: u16) {
        let Some(outgoing) = self.take_outgoing(peer, id) else { return };
        // Who names the id of what we sent receives at its address (RFC 9175 §2.4 counts a round trip as proof).
        self.peers.entry(peer).or_default().proven = true;
        // A repeated message's acknowledgement may belong to any of its copies (Karn's rule, RFC 6298 §3).
        let round_trip = (outgoing.repeated == 0).then(|| now.saturating_duration_since(outgoing.sent));
        self.events.push_back(Event::Acknowledged { peer, id, round_trip });
        self.forget_if_idle(peer);
    }

    fn rejected(&mut self, peer: PeerId, id: u16) {
        self.take_outgoing(peer, id);
        // Also for a message that is not waited for: RFC 7641 §3.6 ends an observation by it.
        self.events.push_back(Event::Rejected { peer, id });
        self.forget_if_idle(peer);
    }

    /// RFC 7252 §5.2.2: the answer takes its time, so the request is acknowledged before the peer repeats it.
    fn acknowledge(&mut self, peer: PeerId, id: u16) {
        let Some(pending) = self.peers.get_mut(&peer).and_then(|state| state.pending.get_mut(&id)) else { return };
        pending.acknowledged = true;
        pending.timer = None;
        self.send_empty(peer, Kind::Acknowledgement, id);
    }

    /// RFC 7252 §4.2: repeated MAX_RETRANSMIT times, the timeout doubled each time, then given up.
    fn repeat(&mut self, now: Instant, peer: PeerId, id: u16) {
        let serial = self.next_serial();
        let Some(outgoing) = self.peers.get_mut(&peer).and_then(|state| state.outgoing.get_mut(&id)) else { return };
        if outgoing.repeated < MAX_RETRANSMIT {
            outgoing.repeated += 1;
            outgoing.timeout *= 2;
            outgoing.timer = (now + outgoing.timeout, serial);
            self.timers.insert(outgoing.timer, Timer::Repeat(peer, id));
            self.transmits.push_back(Transmit { to: peer, bytes: outgoing.bytes.clone() });
        } else {
            self.take_outgoing(peer, id);
            self.events.push_back(Event::GaveUp { peer, id });
            self.forget_if_idle(peer);
        }
    }

    /// Keeps an answer for EXCHANGE_LIFETIME (RFC 7252 §4.5), dropping the oldest where a bound is reached.
    fn remember(&mut self, now: Instant, (peer, id): (PeerId, u16), answer: Answer) {
        let when = (now + EXCHANGE_LIFETIME, self.next_serial());
        let state = self.peers.entry(peer).or_default();
        let before = state.answers.len();
        let replaced = state.answers.insert(id, (when, answer)).map(|(old, _)| old);
        if let Some(at) = replaced.and_then(|old| state.order.binary_search(&(old, id)).ok()) {
            state.order.remove(at);
        }
        state.order.push_back((when, id));
        let oldest = state.over(self.limits.answers_per_peer);
        self.answers.insert(when, (peer, id));
        for gone in replaced.into_iter().chain(oldest) {
            self.answers.remove(&gone);
        }
        self.resized(peer, before);
        if self.answers.len() > self.limits.answers {
            self.forget_answer_of_largest();
        }
    }

    /// Whoever has most answers loses its oldest, so that no flood of one peer makes another's repetitions run again.
    fn forget_answer_of_largest(&mut self) {
        let Some(&(before, peer)) = self.sizes.last() else { return };
        let Some(state) = self.peers.get_mut(&peer) else { return };
        if let Some(oldest) = state.over(before - 1) {
            self.answers.remove(&oldest);
        }
        self.resized(peer, before);
    }

    fn forget_oldest_answer(&mut self) {
        let Some((_, (peer, id))) = self.answers.pop_first() else { return };
        if let Some(state) = self.peers.get_mut(&peer) {
            let before = state.answers.len();
            state.answers.remove(&id);
            state.order.pop_front();
            self.resized(peer, before);
        }
        self.forget_if_idle(peer);
    }

    /// Keeps the order of the peers by the number of their answers.
    fn resized(&mut self, peer: PeerId, before: usize) {
        let now = self.peers.get(&peer).map_or(0, |state| state.answers.len());
        self.sizes.remove(&(before, peer));
        if now > 0 {
            self.sizes.insert((now, peer));
        }
    }

    fn take_pending(&mut self, peer: PeerId, id: u16, serial: u64) -> Option<Pending> {
        let state = self.peers.get_mut(&peer)?;
        state.pending.get(&id).filter(|pending| pending.serial == serial)?;
        let pending = state.pending.remove(&id)?;
        self.open -= 1;
        pending.timer.map(|timer| self.timers.remove(&timer));
        Some(pending)
    }

    fn take_outgoing(&mut self, peer: PeerId, id: u16) -> Option<Outgoing> {
        let outgoing = self.peers.get_mut(&peer)?.outgoing.remove(&id)?;
        self.separate -= usize::from(outgoing.purpose == Purpose::Response);
        self.timers.remove(&outgoing.timer);
        Some(outgoing)
    }

    fn draw_id(&mut self, now: Instant, peer: PeerId) -> u16 {
        let first = self.random.next() as u16;
        loop {
            let id = self.ids.draw(now, peer, first);
            // Ends: a peer's messages on their way are bounded far below 65,536.
            if !self.peers.get(&peer).is_some_and(|state| state.outgoing.contains_key(&id)) {
                return id;
            }
        }
    }

    fn forget_if_idle(&mut self, peer: PeerId) {
        if self.peers.get(&peer).is_some_and(Peer::is_idle) {
            self.peers.remove(&peer);
            // After a flood the table gives its memory back.
            if self.peers.capacity() > KEPT_CAPACITY && self.peers.len() < self.peers.capacity() / 8 {
                self.peers.shrink_to(KEPT_CAPACITY);
            }
        }
    }

    fn set_timer(&mut self, at: Instant, timer: Timer) -> When {
        let when = (at, self.next_serial());
        self.timers.insert(when, timer);
        when
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

#[derive(Debug)]
enum Timer {
    Acknowledge(PeerId, u16),
    Repeat(PeerId, u16),
}

/// What is remembered of one peer.
#[derive(Debug, Default)]
struct Peer {
    pending: HashMap<u16, Pending>,
    outgoing: HashMap<u16, Outgoing>,
    answers: HashMap<u16, (When, Answer)>,
    order: VecDeque<(When, u16)>,
    proven: bool,
}

impl Peer {
    /// Drops the oldest answer if there are more than `limit`.
    fn over(&mut self, limit: usize) -> Option<When> {
        if self.answers.len() <= limit {
            return None;
        }
        let (when, id) = self.order.pop_front()?;
        self.answers.remove(&id);
        Some(when)
    }

    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.outgoing.is_empty() && self.answers.is_empty()
    }
}

/// What is kept of a request's datagram: what tells a repetition, and how many bytes it had.
#[derive(Clone, Copy, Debug)]
struct Origin {
    digest: u64,
    size: usize,
}

/// A request that was not answered yet.
#[derive(Debug)]
struct Pending {
    serial: u64,
    origin: Origin,
    token: Token,
    confirmable: bool,
    safe: bool,
    acknowledged: bool,
    timer: Option<When>,
}

impl Pending {
    /// RFC 7252 §4.5 lets idempotent requests be done again: a GET, and what was refused without effect.
    fn must_remember(&self, code: Code) -> bool {
        !self.safe && code.class() != 4
    }

    /// What a repetition gets after a separate response: the acknowledgement again, or silence (RFC 7252 §5.2.2).
    fn separate(&self, id: u16) -> Answer {
        let acknowledgement = self.confirmable.then(|| Datagram::empty(Kind::Acknowledgement, id).encode());
        Answer { digest: self.origin.digest, bytes: acknowledgement.unwrap_or_default().into() }
    }
}

/// A confirmable message of ours that waits for its acknowledgement.
#[derive(Debug)]
struct Outgoing {
    bytes: Bytes,
    purpose: Purpose,
    sent: Instant,
    timeout: Duration,
    repeated: u8,
    timer: When,
}

/// What a confirmable message of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Response,
    Notification,
}

/// What a repeated request gets; without bytes it gets silence.
#[derive(Debug)]
struct Answer {
    digest: u64,
    bytes: Bytes,
}

fn digest(datagram: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    datagram.hash(&mut hasher);
    hasher.finish()
}

fn answerable(peer: PeerId) -> bool {
    let ip = peer.address().ip();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    peer.address().port() != 0 && !ip.is_multicast() && !ip.is_unspecified() && !broadcast
}

/// RFC 7252 §5.9.3.4: come again after Max-Age seconds.
fn overloaded() -> Message {
    let mut response = Message::new(Code::UNAVAILABLE);
    response.add_uint(option::MAX_AGE, 2);
    response
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
