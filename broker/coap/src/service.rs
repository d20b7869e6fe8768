//! Requests and observations over the core's verbs: what one socket serves, without the socket (RFC 7252 §5, RFC 7641 §4).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tavi_core::metrics::{Outcome, Protocol};
use tavi_core::node::Parts;
use tavi_core::publication::{Change, Publication};
use tavi_core::topics::{Draft, Listing, Refusal, SubOptions, Subscriber};
use tavi_core::{Action, Clock, Metrics, Permit, Principal, Qos, Topics};
use tavi_store::{SharedStore, StoreError};

use crate::block::BlockSize;
use crate::datagram::Kind;
use crate::exchange::{Event, Exchange, Exchanges, Transmit};
use crate::inbox::Inbox;
use crate::links::{self, Filter, Link};
use crate::message::{Code, Message, Token, option};
use crate::observe::{self, Notification, Observer, Observers, Registration, Update};
use crate::peer::{PeerId, Principals};
use crate::representation::{Representation, fresh_only_now};
use crate::resource::{Named, Observe, Reading, Request, forbidden, refusal};
use crate::writes::Writes;
use crate::{exchange, format};

/// How often the permissions of observations are asked again; a change must act within 2 s (identity).
const PERMISSION_CHECK: Duration = Duration::from_secs(1);
/// Max-Age of an ordinary answer: a topic may change at any moment, so it is fresh only now (RFC 7252 §5.10.5).
const MAX_AGE: u32 = 0;
/// Topics looked at for one list: pages, and topics on a page.
const LIST_PAGES: (usize, usize) = (16, 200);

/// The parts of the core that CoAP uses.
#[derive(Clone)]
pub struct Seams {
    /// Topics: value, publish, subscribe.
    pub topics: Arc<Topics>,
    /// Asked whether a write may begin.
    pub store: SharedStore,
    /// The access model.
    pub permit: Arc<Permit>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Time for the Observe numbers.
    pub clock: Arc<dyn Clock>,
}

impl From<&Parts> for Seams {
    fn from(parts: &Parts) -> Self {
        Self {
            topics: parts.topics.clone(),
            store: parts.store.clone(),
            permit: parts.permit.clone(),
            metrics: parts.metrics.clone(),
            clock: parts.clock.clone(),
        }
    }
}

/// Bounds of one socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Of the message layer.
    pub exchanges: exchange::Limits,
    /// Of the observations.
    pub observers: observe::Limits,
}

/// What one socket serves.
pub struct Service {
    seams: Seams,
    exchanges: Exchanges,
    observers: Observers,
    principals: Principals,
    inbox: Arc<Inbox>,
    writes: Writes<Written>,
    generation: u64,
    next_check: Option<Instant>,
    counted_peers: i64,
}

/// A write whose ticket is open, and the answer that it gets.
struct Written {
    exchange: Exchange,
    code: Code,
}

impl Service {
    /// A service that draws message ids and timeouts from `seed`.
    pub fn new(seams: Seams, limits: Limits, seed: u64) -> Self {
        let inbox = Arc::new(Inbox::new(seams.topics.next_subscriber(), Principal::Anon { loopback: true }));
        Self {
            exchanges: Exchanges::new(limits.exchanges, seed),
            observers: Observers::new(limits.observers),
            principals: Principals::default(),
            writes: Writes::default(),
            generation: seams.permit.generation(),
            next_check: None,
            counted_peers: 0,
            inbox,
            seams,
        }
    }

    /// Takes one datagram of `peer`.
    pub fn receive(&mut self, now: Instant, peer: impl Into<PeerId>, datagram: &[u8]) {
        self.exchanges.receive(now, peer, datagram);
        self.settle(now);
    }

    /// Takes what the core has: finished writes and new values. Pending when there is nothing.
    pub fn poll_core(&mut self, now: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let mut progress = false;
        while let Poll::Ready((written, result)) = self.writes.poll_next(cx) {
            self.exchanges.respond(now, written.exchange, outcome(written.code, result));
            progress = true;
        }
        if let Poll::Ready(publications) = self.inbox.poll_take(cx) {
            publications
                .iter()
                .for_each(|publication| self.observers.changed(&publication.topic, &update(publication)));
            progress = true;
        }
        if !progress {
            return Poll::Pending;
        }
        self.settle(now);
        Poll::Ready(())
    }

    /// When [`tick`](Self::tick) must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = [self.exchanges.poll_timeout(), self.observers.poll_timeout(), self.next_check];
        due.into_iter().flatten().min()
    }

    /// Does what is due at `now`.
    pub fn tick(&mut self, now: Instant) {
        self.exchanges.tick(now);
        while let Some((observer, topic)) = self.observers.poll_refresh(now) {
            let update = self.state(&topic);
            self.observers.refresh(observer, &update);
        }
        if self.next_check.is_some_and(|at| at <= now) {
            self.next_check = None;
            self.check_permissions();
        }
        self.settle(now);
    }

    /// The next datagram to be sent.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.exchanges.poll_transmit()
    }

    /// Whether no write is on its way to the store.
    pub fn is_idle(&self) -> bool {
        self.writes.is_empty()
    }

    /// Ends all observations with a 5.03, once and unconfirmed, so that observers come back elsewhere or later
    /// (RFC 7641 §4.2). Called when the broker stops.
    pub fn end_observations(&mut self, now: Instant) {
        let observers: Vec<Observer> = self.observers.all().copied().collect();
        for observer in observers {
            self.observers.remove(observer);
            let mut message = Message::new(Code::UNAVAILABLE);
            message.set_token(observer.token);
            message.add_uint(option::MAX_AGE, 5);
            self.exchanges.send(now, observer.peer, (Kind::NonConfirmable, message));
        }
        self.settle(now);
    }

    /// The end: open tickets complete in a task of their own.
    pub fn close(mut self) {
        self.seams.metrics.connections(Protocol::Coap).sub(std::mem::take(&mut self.counted_peers));
        std::mem::take(&mut self.writes).drain(&self.seams.metrics);
    }

    /// Handles all events and sends what may go out, until nothing is left to do now.
    fn settle(&mut self, now: Instant) {
        while let Some(event) = self.exchanges.poll_event() {
            match event {
                Event::Request { exchange, message } => self.request(now, exchange, &message),
                Event::Acknowledged { peer, id, round_trip } => {
                    self.observers.acknowledged(now, (peer, id), round_trip);
                }
                Event::Rejected { peer, id } | Event::GaveUp { peer, id } => self.observers.lost(now, (peer, id)),
            }
        }
        self.notify(now);
        while let Some(topic) = self.observers.poll_unwatched() {
            self.unsubscribe_if_unwatched(&topic);
        }
        if !self.observers.is_empty() {
            self.next_check.get_or_insert(now + PERMISSION_CHECK);
        }
        self.count_peers();
    }

    fn notify(&mut self, now: Instant) {
        let unix_ms = self.seams.clock.now_ms();
        while let Some(Notification { observer, kind, message }) = self.observers.poll_notification(now, unix_ms) {
            let id = self.exchanges.send(now, observer.peer, (kind, message));
            self.observers.sent(now, (observer, kind), id);
            self.count(Outcome::Delivered);
        }
    }

    fn request(&mut self, now: Instant, exchange: Exchange, message: &Message) {
        self.count(Outcome::Received);
        let who = self.principals.of(exchange.peer);
        let answer = match Request::parse(message) {
            // Nothing can be granted to a nameless peer elsewhere; so it costs neither a look-up nor a log line, and
            // a forged address gets no diagnostic (RFC 7252 §11.3).
            _ if who == (Principal::Anon { loopback: false }) => Some(forbidden(Named::No)),
            Err(refusal) => Some(*refusal),
            Ok(request) => self.serve(now, (exchange, message.token(), &who), request),
        };
        if let Some(answer) = answer {
            if answer.code().class() == 4 {
                self.count(Outcome::Refused);
            }
            self.exchanges.respond(now, exchange, answer);
        }
    }

    /// The answer, or `None` when it follows with a ticket.
    fn serve(
        &mut self,
        now: Instant,
        (exchange, token, who): (Exchange, Token, &Principal),
        request: Request,
    ) -> Option<Message> {
        match request {
            Request::Read { topic, reading } => {
                let observer = Observer { peer: exchange.peer, token };
                let answer = self.read(now, (observer, who), (&topic, &reading));
                Some(fresh_only_now(answer.unwrap_or_else(|refusal| refuse(who, refusal))))
            }
            Request::Discover { filter, reading } => {
                Some(fresh_only_now(reading.answer(&self.list(who, &filter), MAX_AGE)))
            }
            Request::Write { topic, content_type, payload } => {
                let change = Change::Value;
                let content_type = content_type.map(Into::into);
                let draft = Draft { topic: topic.into(), change, payload, content_type, ..draft() };
                self.publish(who, exchange, draft)
            }
            Request::Clear { topic } => {
                let draft = Draft { topic: topic.into(), change: Change::Clear, ..draft() };
                self.publish(who, exchange, draft)
            }
        }
    }

    fn read(
        &mut self,
        now: Instant,
        (observer, who): (Observer, &Principal),
        (topic, reading): (&str, &Reading),
    ) -> Result<Message, Refusal> {
        match reading.observe {
            Observe::Deregister => self.observers.remove(observer),
            // RFC 7641 §4.1: a server that takes no more observers answers an ordinary GET.
            Observe::Register if self.may_register(observer, who) => {
                let answer = self.observe(now, observer, (topic, reading));
                self.unsubscribe_if_unwatched(topic);
                return answer;
            }
            Observe::Register | Observe::Absent => {}
        }
        Ok(match self.value(who, topic)? {
            Some(value) => reading.answer(&value, MAX_AGE),
            None => no_value(),
        })
    }

    /// Observations act as the principal of the inbox that they share.
    fn may_register(&self, observer: Observer, who: &Principal) -> bool {
        who == self.inbox.principal() && self.observers.has_room(observer)
    }

    /// Subscribes before it reads: a value that lands in between is read or comes as a notification, and what comes late
    /// is dropped by its version.
    fn observe(
        &mut self,
        now: Instant,
        observer: Observer,
        (topic, reading): (&str, &Reading),
    ) -> Result<Message, Refusal> {
        let subscriber: Arc<dyn Subscriber> = self.inbox.clone();
        let options = SubOptions { qos: Qos::AtLeastOnce, ..SubOptions::default() };
        if self.observers.watches(topic) {
            self.ask_subscribe(topic)?;
        } else {
            self.seams.topics.subscribe(&subscriber, topic, options)?;
        }
        let Some(value) = self.value(self.inbox.principal(), topic)? else { return Ok(no_value()) };
        let mut answer = reading.answer(&value, value.max_age(observe::MAX_AGE, self.seams.clock.now_ms()));
        let size = reading.block.map_or(BlockSize::MAX, |block| block.size);
        let registration = Registration { topic: topic.into(), value, size };
        // RFC 7641 §4.1: only a 2.xx answer begins an observation.
        if answer.code().class() == 2 && self.observers.register(now, observer, registration) {
            let number = self.observers.draw_number(self.seams.clock.now_ms());
            answer.add_uint(option::OBSERVE, u64::from(number));
        }
        Ok(answer)
    }

    fn ask_subscribe(&self, topic: &str) -> Result<(), Refusal> {
        let who = self.inbox.principal();
        if self.seams.permit.may(who, Action::Subscribe, topic) {
            return Ok(());
        }
        self.seams.permit.log_refusal(who, Action::Subscribe, topic);
        Err(Refusal::Forbidden)
    }

    fn value(&self, who: &Principal, topic: &str) -> Result<Option<Representation>, Refusal> {
        let value = self.seams.topics.value(who, topic)?;
        Ok(value.map(|publication| representation(&publication)))
    }

    /// What an observed topic has now, for a refresh.
    fn state(&self, topic: &str) -> Update {
        match self.value(self.inbox.principal(), topic) {
            Ok(Some(value)) => Update::Value(value),
            // It expired, or went in a way that told nobody: there is nothing that it could be older than.
            Ok(None) => Update::Cleared(u64::MAX),
            Err(_) => Update::End(Code::UNAUTHORIZED),
        }
    }

    /// RFC 7252 §5.8.2, §5.8.3: 2.01 when the topic had no value to keep, 2.04 when it had, 2.02 for DELETE.
    fn publish(&mut self, who: &Principal, exchange: Exchange, draft: Draft) -> Option<Message> {
        let code = match draft.change {
            Change::Clear => Code::DELETED,
            Change::Value if matches!(self.seams.topics.kept_value(&draft.topic), Ok(None)) => Code::CREATED,
            Change::Value => Code::CHANGED,
        };
        let weight = draft.payload.len() + draft.topic.len();
        // A session would be read no more (semantics.md); a datagram can only be told to come again (RFC 7252 §5.9.3.4).
        if !self.seams.store.has_room() || self.writes.is_full(exchange.peer) {
            return Some(busy());
        }
        match self.seams.topics.publish(who, draft) {
            Ok(ticket) => self.writes.push(exchange.peer, ticket, Written { exchange, code }, weight),
            Err(refusal) => return Some(refuse(who, refusal)),
        }
        None
    }

    fn list(&self, who: &Principal, filter: &Filter) -> Representation {
        let format = |p: &Publication| format::number(p.content_type.as_deref()?);
        let (listed, next) = self.listed(who, filter);
        // RFC 6690 §4: only what a GET answers; an expired value is listed no more.
        let links = listed.iter().map(|p| Link { topic: &p.topic, format: format(p) });
        let body = links::list(links, filter, next.as_deref());
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let (version, format) = (hasher.finish(), Some(format::LINK_FORMAT));
        Representation { version, format, body: Bytes::from(body), expires_ms: None }
    }

    /// What is listed, and behind which topic more may stand. Bounded in what is looked at: nobody else is served
    /// meanwhile.
    fn listed(&self, who: &Principal, filter: &Filter) -> (Vec<Arc<Publication>>, Option<Box<str>>) {
        let (mut all, mut after) = (Vec::new(), filter.after().map(Box::from));
        for _ in 0..LIST_PAGES.0 {
            let page = self.seams.topics.listed(who, after.as_deref(), LIST_PAGES.1).unwrap_or_else(|error| {
                tracing::error!(%error, "the topics could not be listed");
                Listing::default()
            });
            let looked_in_vain = page.values.is_empty();
            all.extend(page.values);
            after = page.next;
            if after.is_none() || looked_in_vain {
                break;
            }
        }
        (all, after)
    }

    /// Ends the observations of topics that may not be read any more, when the access model has changed.
    fn check_permissions(&mut self) {
        let generation = self.seams.permit.generation();
        if std::mem::replace(&mut self.generation, generation) == generation {
            return;
        }
        let may = |action, topic: &str| self.seams.permit.may(self.inbox.principal(), action, topic);
        let may_observe = |topic: &str| may(Action::Subscribe, topic) && may(Action::Retrieve, topic);
        let lost: Vec<_> = self.observers.topics().filter(|topic| !may_observe(topic)).cloned().collect();
        for topic in lost {
            self.observers.changed(&topic, &Update::End(Code::UNAUTHORIZED));
        }
    }

    fn unsubscribe_if_unwatched(&self, topic: &str) {
        if !self.observers.watches(topic) {
            self.seams.topics.unsubscribe(self.inbox.id(), topic);
        }
    }

    fn count(&self, outcome: Outcome) {
        self.seams.metrics.messages(Protocol::Coap, outcome).add(1);
    }

    fn count_peers(&mut self) {
        let peers = i64::try_from(self.exchanges.peers().max(self.observers.peers())).unwrap_or(i64::MAX);
        self.seams.metrics.connections(Protocol::Coap).add(peers - self.counted_peers);
        self.counted_peers = peers;
    }
}

/// XMPP and CoAP publish what is kept, with QoS 1 (semantics).
fn draft() -> Draft {
    Draft { qos: Qos::AtLeastOnce, retain: true, ..Draft::default() }
}

fn representation(publication: &Publication) -> Representation {
    Representation {
        version: publication.id,
        format: publication.content_type.as_deref().and_then(format::number),
        body: publication.payload.clone(),
        expires_ms: publication.properties.as_ref().and_then(|properties| properties.expires_ms),
    }
}

fn update(publication: &Publication) -> Update {
    match publication.change {
        Change::Value => Update::Value(representation(publication)),
        Change::Clear => Update::Cleared(publication.id),
    }
}

fn no_value() -> Message {
    *refusal(Code::NOT_FOUND, "this topic has no value")
}

fn refuse(who: &Principal, refused: Refusal) -> Message {
    let named = if who.jid().is_some() { Named::Yes } else { Named::No };
    match refused {
        Refusal::Forbidden => forbidden(named),
        Refusal::IllegalTopic(error) => *refusal(Code::BAD_REQUEST, &error.to_string()),
        // RFC 7252 §5.9.2.9: the server does not want to keep so much.
        Refusal::OverQuota(why) => *refusal(Code::TOO_LARGE, &why.to_string()),
        Refusal::Unavailable(error) => unavailable(&error),
    }
}

/// The answer to a write whose ticket is complete. What the store refused is not acknowledged.
fn outcome(code: Code, result: Result<(), StoreError>) -> Message {
    match result {
        Ok(()) => Message::new(code),
        Err(error) => unavailable(&error),
    }
}

/// Too much waits for the store, or for this peer: nothing was begun.
fn busy() -> Message {
    let mut response = refusal(Code::UNAVAILABLE, "too much is being written now");
    response.add_uint(option::MAX_AGE, 1);
    *response
}

fn unavailable(error: &StoreError) -> Message {
    if !matches!(error, StoreError::Unavailable(_)) {
        return *refusal(Code::INTERNAL, "the store failed");
    }
    let mut response = refusal(Code::UNAVAILABLE, "the store is not available now");
    response.add_uint(option::MAX_AGE, 5);
    *response
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
