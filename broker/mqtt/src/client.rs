//! One connected client over the core, without IO: packets in, bytes out, tickets and mailbox polled in between.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tavi_core::metrics::Outcome;
use tavi_core::permit::Action;
use tavi_core::topics::{Refusal, SubOptions};
use tavi_core::{Closed, Publication, Ticket, TicketQueue};
use tavi_store::{Commit, Op, QueueRow, StoreError};
use tavi_wire::topic::check_filter;

use crate::error::Fault;
use crate::hub::{Hub, Now, Parting, Place, Seat};
use crate::packet::{
    Disconnect, Options, Packet, Publish, Qos, Reason, RetainHandling, Subscribe, Unsubscribe, Version, Wish,
};
use crate::publish::Head;
use crate::record::{self, Inbound};
use crate::render;
use crate::reply;
use crate::seat::{Due, KeptSeat, Parcel, is_empty_value};
use crate::session::{Answer, Sent, Session, Step};

/// Deliveries stop while so many bytes wait to be written.
pub const WRITE_AHEAD: usize = 64 * 1024;
/// Rows of the store that are read at a time.
const PAGE: usize = 16;

/// Whether a durable session's stored rows are all sent.
enum CaughtUp {
    Yes,
    NotYet,
}

type Reading = Pin<Box<dyn Future<Output = Result<Vec<QueueRow>, StoreError>> + Send>>;

/// A client that was let in.
pub struct Client {
    hub: Arc<Hub>,
    place: Place,
    session: Session,
    tickets: TicketQueue<Pending>,
    waiting: Vec<Parcel>,
    next: usize,
    topic: Option<Arc<str>>,
    deletes: Vec<Op>,
    cursor: u64,
    reading: Option<Reading>,
    now: Now,
}

/// What happens when a ticket of this client completes.
enum Pending {
    /// The client is answered.
    Answer(Answer),
    /// A durable session's QoS 2 publish is saved: now it is published.
    FanOut(Box<Unpublished>),
    /// Subscriptions are saved.
    Subscribed(Box<Subscribed>),
    /// They are gone from the store.
    Unsubscribed(Box<(u16, Vec<bool>)>),
}

impl Pending {
    /// The packet id of the QoS 2 publish that it is for.
    fn publish_id(&self) -> Option<u16> {
        match self {
            Self::FanOut(unpublished) => Some(unpublished.publish.packet_id),
            Self::Answer(answer) => answer.received_id(),
            _ => None,
        }
    }
}

struct Unpublished {
    id: u64,
    publish: Publish,
}

#[derive(Default)]
struct Subscribed {
    packet_id: u16,
    grants: Vec<Result<Qos, Reason>>,
    retained: Vec<(Arc<Publication>, Qos)>,
    /// The rows of what was being published just then.
    coming: Ticket,
}

impl Client {
    /// A client at its place.
    pub fn new(hub: Arc<Hub>, place: Place, session: Session) -> Self {
        let now = hub.now();
        Self {
            hub,
            place,
            session,
            tickets: TicketQueue::default(),
            waiting: Vec::new(),
            next: 0,
            topic: None,
            deletes: Vec::new(),
            cursor: 0,
            reading: None,
            now,
        }
    }

    /// The time, once for all that one wake-up brings.
    pub fn set_time(&mut self, now: Now) {
        self.now = now;
    }

    /// Nothing is read from the client now, for reasons of ours: it is not silent.
    pub fn is_not_read(&mut self) {
        self.session.is_not_read(self.now.monotonic_ms);
    }

    /// The version that it speaks.
    pub fn version(&self) -> Version {
        self.session.version()
    }

    /// Whether reading has to stop until a ticket completes.
    pub fn is_full(&self) -> bool {
        self.tickets.is_full()
    }

    /// When the keep-alive runs out, on the monotonic clock.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.session.deadline_ms()
    }

    /// # Errors
    /// [`Fault::KeepAlive`] if it was silent for too long.
    pub fn check_alive(&self, now_ms: u64) -> Result<(), Fault> {
        self.session.check_alive(now_ms)
    }

    /// Takes a packet of `size` bytes. Gives the DISCONNECT, if it was one.
    ///
    /// # Errors
    /// The connection is over.
    pub fn take(&mut self, packet: Packet, size: usize, out: &mut Vec<u8>) -> Result<Option<Disconnect>, Fault> {
        match self.session.receive(packet, self.now.monotonic_ms, out)? {
            Step::Idle => {}
            Step::Publish(publish) => self.publish(publish, size, out)?,
            Step::Repeated(answer) => self.after(Ticket::done(), Pending::Answer(answer), size, out)?,
            Step::Release(answer) => self.release(answer, size, out)?,
            Step::Taken { row } => self.taken(row),
            Step::Received { row, answer } => self.received(row, answer, size, out)?,
            Step::Subscribe(subscribe) => self.subscribe(subscribe, size, out)?,
            Step::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe, size, out)?,
            Step::Leave(disconnect) => return self.check_leave(disconnect).map(Some),
        }
        Ok(None)
    }

    /// Completes tickets, writes what waits for the client, reads stored rows. `Ready` if there may be more to do at
    /// once; `Pending` when everything that can happen now has happened and the context will be woken.
    pub fn poll(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Result<(), Fault>> {
        let mut more = self.poll_tickets(cx, out)?;
        more |= self.deliver(cx, out)?;
        self.flush_deletes();
        if more { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// What goes on while the peer takes nothing: what it published is delivered to others, and it is told to go.
    pub fn poll_stalled(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.poll_tickets(cx, out)?;
        self.check_open(cx)
    }

    /// Completes tickets in order; true if there was one, so that there is room in the window for what is read already.
    fn poll_tickets(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<bool, Fault> {
        let mut any = false;
        while let Poll::Ready(Some((pending, result))) = self.tickets.poll_next(cx) {
            self.complete(pending, result, out)?;
            any = true;
        }
        self.flush_deletes();
        Ok(any)
    }

    /// The end reaches a client too that takes nothing from its mailbox now.
    fn check_open(&self, cx: &mut Context<'_>) -> Result<(), Fault> {
        match self.place.mailbox.poll_closed(cx) {
            Poll::Ready(why) => Err(closed(why)),
            Poll::Pending => Ok(()),
        }
    }

    /// The connection is over: the seat is left, and what the open tickets are for goes on in a task of its own, so
    /// that whatever was read is published.
    pub fn leave(mut self, parting: Parting) {
        self.flush_deletes();
        let mut unwritten = self.waiting.split_off(self.next.min(self.waiting.len()));
        unwritten.extend(self.place.mailbox.take());
        self.hub.leave(&mut self.place, parting, &unwritten);
        if !self.tickets.is_empty() {
            self.hub.node().parts.metrics.draining.add(1);
            tokio::spawn(self.drain());
        }
    }

    async fn drain(mut self) {
        let mut unheard = Vec::new();
        poll_fn(|cx| {
            // A ticket that failed was logged, and is gone from the queue.
            while self.poll_tickets(cx, &mut unheard).is_err() {}
            unheard.clear();
            if self.tickets.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.hub.node().parts.metrics.draining.sub(1);
    }

    // --- publishing ---

    fn publish(&mut self, publish: Publish, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.count(Outcome::Received);
        if let (Qos::ExactlyOnce, Seat::Kept(seat)) = (publish.qos, &self.place.seat) {
            seat.hold(publish.packet_id);
            return self.publish_kept(publish, size, out);
        }
        let answer = |reason| Pending::Answer(Answer::published(publish.qos, publish.packet_id, reason));
        match self.publish_as(&publish, None) {
            Ok(ticket) => self.after(ticket, answer(Reason::SUCCESS), size, out),
            Err(refusal) => {
                let reason = self.refused(refusal, publish.qos)?;
                self.after(Ticket::done(), answer(reason), size, out)
            }
        }
    }

    /// semantics.md, order: a durable session's QoS 2 publish is first saved under its id, then published, so that a
    /// restart can repeat the fan-out under the same id.
    fn publish_kept(&mut self, publish: Publish, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        let id = self.hub.next_id();
        let unfinished = Some((publish.body.clone(), publish.retain));
        let value = Inbound { id, unfinished }.encode();
        let ops = vec![record::put(&record::inbound_item(publish.packet_id), value), Op::Drawn { id }];
        let ticket = self.commit(ops);
        self.after(ticket, Pending::FanOut(Box::new(Unpublished { id, publish })), size, out)
    }

    fn publish_as(&mut self, publish: &Publish, id: Option<u64>) -> Result<Ticket, Refusal> {
        let topic = self.shared_topic(publish.body.topic());
        let mut draft = render::draft(topic, &publish.body, publish.qos, publish.retain, self.now.wall_ms);
        draft.from_session = self.place.seat.id();
        draft.id = id;
        self.hub.node().parts.topics.publish_as(self.place.seat.principal(), Action::Publish, draft)
    }

    /// Clients mostly publish to the topic that they published to before: its name is shared.
    fn shared_topic(&mut self, name: &str) -> Arc<str> {
        match &self.topic {
            Some(topic) if **topic == *name => topic.clone(),
            _ => self.topic.insert(name.into()).clone(),
        }
    }

    /// semantics.md: an illegal topic is 0x90 or, in 3.1.1 and where there is no answer, the end; a refused publish is
    /// 0x87 or, in 3.1.1 and at QoS 0, dropped and counted.
    fn refused(&self, refusal: Refusal, qos: Qos) -> Result<Reason, Fault> {
        let answerable = self.version() == Version::V5 && qos != Qos::AtMostOnce;
        match refusal {
            Refusal::IllegalTopic(error) if !answerable => Err(Fault::Topic(error)),
            Refusal::IllegalTopic(_) => Ok(Reason::TOPIC_INVALID),
            Refusal::Forbidden => {
                self.count(if answerable { Outcome::Refused } else { Outcome::Dropped });
                Ok(if answerable { Reason::NOT_AUTHORIZED } else { Reason::SUCCESS })
            }
        }
    }

    fn release(&mut self, answer: Answer, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        if self.place.seat.kept().is_none() || answer.is_failure() {
            self.session.answer(answer, out);
            return Ok(());
        }
        // Only when this is gone may the packet id mean another message, so PUBCOMP waits for it.
        let op = self.forget_inbound(answer.packet_id());
        let ticket = self.commit(vec![op]);
        self.after(ticket, Pending::Answer(answer), size, out)
    }

    // --- acknowledgements of deliveries ---

    fn taken(&mut self, row: u64) {
        if let (Seat::Kept(seat), true) = (&self.place.seat, row != 0) {
            self.deletes.extend(seat.taken(row));
        }
    }

    fn received(&mut self, row: u64, answer: Answer, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        let op = match &self.place.seat {
            Seat::Kept(seat) if row != 0 => seat.received(row),
            _ => None,
        };
        match op {
            Some(op) => {
                let ticket = self.commit(vec![op]);
                self.after(ticket, Pending::Answer(answer), size, out)
            }
            None => {
                self.session.answer(answer, out);
                Ok(())
            }
        }
    }

    /// Acknowledged rows go in one commit for all that came together. Nobody waits for it: a row that comes back after
    /// a crash is sent again under its packet id.
    fn flush_deletes(&mut self) {
        if !self.deletes.is_empty() {
            let ops = std::mem::take(&mut self.deletes);
            drop(self.saver()(ops));
        }
    }

    // --- subscribing ---

    fn subscribe(&mut self, subscribe: Subscribe, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        let mut done = Subscribed { packet_id: subscribe.packet_id, ..Subscribed::default() };
        let mut ops = Vec::new();
        for wish in &subscribe.filters {
            let grant = if subscribe.has_identifier {
                Err(Reason::SUBSCRIPTION_ID_UNSUPPORTED)
            } else {
                self.subscribe_one(wish, &mut done, &mut ops)?
            };
            done.grants.push(grant);
        }
        let mut ticket = self.commit(ops);
        ticket.join(std::mem::take(&mut done.coming));
        self.after(ticket, Pending::Subscribed(Box::new(done)), size, out)
    }

    fn subscribe_one(
        &mut self,
        wish: &Wish,
        done: &mut Subscribed,
        ops: &mut Vec<Op>,
    ) -> Result<Result<Qos, Reason>, Fault> {
        // MQTT 5.0 §4.8.2: CONNACK said that there are no shared subscriptions.
        if self.version() == Version::V5 && wish.filter.starts_with("$share/") {
            return Ok(Err(Reason::SHARED_UNSUPPORTED));
        }
        if let Err(error) = check_filter(&wish.filter) {
            return if self.version() == Version::V5 {
                Ok(Err(Reason::FILTER_INVALID))
            } else {
                Err(Fault::Filter(error))
            };
        }
        if self.is_over_quota(done) {
            return Ok(Err(Reason::QUOTA));
        }
        let options = core_options(wish.options);
        let subscriber = self.place.seat.subscriber();
        match self.hub.node().parts.topics.subscribe(&subscriber, &wish.filter, options) {
            Err(_) => Ok(Err(Reason::NOT_AUTHORIZED)),
            Ok(found) => {
                self.place.add_filter(&wish.filter, options, ops);
                done.coming.join(found.ticket);
                if wants_retained(wish.options.retain_handling, found.existed) {
                    self.keep_retained(found.retained, wish.options.qos, done, ops);
                }
                Ok(Ok(wish.options.qos))
            }
        }
    }

    /// What subscriptions and the retained values that they find may take is bounded for a client that reads nothing.
    fn is_over_quota(&self, done: &Subscribed) -> bool {
        let (config, waiting) = (self.hub.config(), self.waiting.len() - self.next + done.retained.len());
        let filters = self.place.filter_count().max(done.grants.len());
        filters >= config.max_subscriptions || waiting > config.queue_messages
    }

    /// Retained values at QoS 1 and 2 are promised as any other delivery, so a durable session gets rows for them.
    fn keep_retained(&self, found: Vec<Arc<Publication>>, wanted: Qos, done: &mut Subscribed, ops: &mut Vec<Op>) {
        for publication in found.into_iter().filter(|found| !is_empty_value(found)) {
            let qos = wanted.min(publication.qos);
            match &self.place.seat {
                Seat::Kept(seat) if qos != Qos::AtMostOnce => ops.extend(seat.keep_retained(&publication, qos)),
                _ => {}
            }
            done.retained.push((publication, qos));
        }
    }

    fn subscribed(&mut self, done: Subscribed, out: &mut Vec<u8>) {
        reply::suback(out, self.version(), done.packet_id, &done.grants);
        for (publication, qos) in done.retained {
            match &self.place.seat {
                Seat::Kept(seat) => seat.deliver_retained(&publication, qos),
                // Not through the mailbox: what a filter finds may be more than it holds.
                Seat::Live(_) => {
                    self.waiting.push(Parcel { publication, qos, retain: true, packet_id: 0, dup: false });
                }
            }
        }
    }

    fn unsubscribe(&mut self, unsubscribe: Unsubscribe, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        let mut ops = Vec::new();
        let mut existed = Vec::with_capacity(unsubscribe.filters.len());
        for filter in &unsubscribe.filters {
            if let (Err(error), Version::V4) = (check_filter(filter), self.version()) {
                return Err(Fault::Filter(error));
            }
            // Asked here first: a change of subscriptions costs all publishers something.
            let found =
                self.place.has_filter(filter) && self.hub.node().parts.topics.unsubscribe(self.place.seat.id(), filter);
            if found {
                self.place.remove_filter(filter, &mut ops);
            }
            existed.push(found);
        }
        let ticket = self.commit(ops);
        self.after(ticket, Pending::Unsubscribed(Box::new((unsubscribe.packet_id, existed))), size, out)
    }

    // --- tickets ---

    /// Saves what belongs to this session, as long as it is there.
    fn saver(&self) -> impl FnOnce(Vec<Op>) -> Commit + Send + 'static {
        let (store, owner, seat) =
            (self.hub.node().parts.store.clone(), self.place.owner.clone(), self.place.seat.clone());
        move |ops| match seat.kept() {
            Some(seat) => seat.save(|| store.commit(&owner, ops)),
            None => store.commit(&owner, ops),
        }
    }

    fn commit(&self, ops: Vec<Op>) -> Ticket {
        let mut ticket = Ticket::done();
        // One commit takes a bounded number of operations; a filter may have found more retained values than that.
        let mut rest = ops;
        while !rest.is_empty() {
            let more = rest.split_off(rest.len().min(1000));
            ticket.wait_for(self.saver()(rest));
            rest = more;
        }
        ticket
    }

    /// Does `pending` when the ticket completes, in the order of the client's packets: at once if nothing is open.
    fn after(&mut self, mut ticket: Ticket, pending: Pending, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        if self.tickets.is_empty()
            && ticket.is_ready()
            && let Poll::Ready(result) = ticket.poll_done(&mut Context::from_waker(Waker::noop()))
        {
            return self.complete(pending, result, out);
        }
        self.tickets.push(ticket, pending, size);
        Ok(())
    }

    fn complete(&mut self, pending: Pending, result: Result<(), StoreError>, out: &mut Vec<u8>) -> Result<(), Fault> {
        if let Err(error) = result {
            tracing::error!(%error, "an MQTT session ends because the store failed");
            if let (Some(packet_id), Seat::Kept(seat)) = (pending.publish_id(), &self.place.seat) {
                // It may not have reached everybody: the client's next attempt is a new one.
                seat.let_go(packet_id);
            }
            return Err(Fault::Store);
        }
        match pending {
            Pending::Answer(answer) => self.session.answer(answer, out),
            Pending::FanOut(unpublished) => return self.fan_out(*unpublished, out),
            Pending::Subscribed(done) => self.subscribed(*done, out),
            Pending::Unsubscribed(done) => reply::unsuback(out, self.version(), done.0, &done.1),
        }
        Ok(())
    }

    /// That it is published is saved before anybody gets it, so that no restart publishes it to somebody who has it.
    fn fan_out(&mut self, unpublished: Unpublished, out: &mut Vec<u8>) -> Result<(), Fault> {
        let Unpublished { id, publish } = unpublished;
        let answer = |reason| Pending::Answer(Answer::published(publish.qos, publish.packet_id, reason));
        let done = record::put(&record::inbound_item(publish.packet_id), Inbound { id, unfinished: None }.encode());
        match self.publish_as(&publish, Some(id)) {
            Ok(mut ticket) => {
                let save = self.saver();
                ticket.save_last(Box::new(move || save(vec![done])));
                self.after(ticket, answer(Reason::SUCCESS), 0, out)
            }
            Err(refusal) => {
                let refused = self.refused(refusal, publish.qos);
                // 3.1.1 goes on to PUBREL as if nothing had happened.
                let goes_on = refused == Ok(Reason::SUCCESS);
                let op = if goes_on { done } else { self.forget_inbound(publish.packet_id) };
                let ticket = self.commit(vec![op]);
                self.after(ticket, answer(refused?), 0, out)
            }
        }
    }

    fn forget_inbound(&self, packet_id: u16) -> Op {
        if let Seat::Kept(seat) = &self.place.seat {
            seat.let_go(packet_id);
        }
        record::delete(&record::inbound_item(packet_id))
    }

    // --- deliveries ---

    /// Writes what may be written; true if more is there than was written now.
    fn deliver(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<bool, Fault> {
        loop {
            if !self.write_waiting(out) {
                self.check_open(cx)?;
                return Ok(out.len() >= WRITE_AHEAD);
            }
            // The mailbox first: what is only in the store was refused by it, so it is younger.
            match self.place.mailbox.poll_drain(cx, &mut self.waiting) {
                Poll::Ready(Ok(())) => continue,
                Poll::Ready(Err(why)) => return Err(closed(why)),
                Poll::Pending => {}
            }
            match self.read_rows(cx, out) {
                Poll::Ready(Ok(CaughtUp::Yes)) | Poll::Pending => return Ok(false),
                Poll::Ready(Ok(CaughtUp::NotYet)) => {}
                Poll::Ready(Err(fault)) => return Err(fault),
            }
        }
    }

    /// Writes parcels until none waits (true), the window is full or enough is written (false).
    fn write_waiting(&mut self, out: &mut Vec<u8>) -> bool {
        let before = self.next;
        while let Some(parcel) = self.waiting.get(self.next) {
            if out.len() >= WRITE_AHEAD || !self.session.has_room(parcel.qos) {
                break;
            }
            self.next += 1;
            if let Some(row) = write_parcel(&mut self.session, parcel, self.now.wall_ms, out) {
                self.hub.count(Outcome::Dropped, 1);
                if let (Seat::Kept(seat), true) = (&self.place.seat, row != 0) {
                    self.deletes.extend(seat.taken(row));
                }
            }
        }
        self.hub.count(Outcome::Delivered, (self.next - before) as u64);
        if self.next < self.waiting.len() {
            return false;
        }
        self.waiting.clear();
        self.waiting.shrink_to(16);
        self.next = 0;
        true
    }

    /// Reads what a durable session has in the store, a page at a time, until it has caught up with its mailbox.
    fn read_rows(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Result<CaughtUp, Fault>> {
        let Seat::Kept(seat) = &self.place.seat else { return Poll::Ready(Ok(CaughtUp::Yes)) };
        let seat = seat.clone();
        if self.reading.is_none() {
            let Some(after) = seat.behind(self.cursor) else { return Poll::Ready(Ok(CaughtUp::Yes)) };
            self.cursor = after;
            self.reading = Some(self.hub.read_queue(seat.owner().clone(), after, PAGE));
        }
        let Some(Poll::Ready(page)) = self.reading.as_mut().map(|reading| reading.as_mut().poll(cx)) else {
            return Poll::Pending;
        };
        self.reading = None;
        let Ok(rows) = page else { return Poll::Ready(Err(Fault::Store)) };
        self.take_rows(&seat, rows, out);
        Poll::Ready(Ok(CaughtUp::NotYet))
    }

    fn take_rows(&mut self, seat: &KeptSeat, rows: Vec<QueueRow>, out: &mut Vec<u8>) {
        if rows.is_empty() {
            seat.forget_lost(self.cursor);
        }
        for row in rows {
            self.cursor = row.id;
            match seat.due(row.id, row.value) {
                Some(Due::Publish(parcel)) if self.may_receive(&parcel) => self.waiting.push(parcel),
                Some(Due::Publish(parcel)) => {
                    self.hub.count(Outcome::Dropped, 1);
                    self.deletes.extend(seat.taken(parcel.publication.id));
                }
                Some(Due::Release { packet_id, row }) => self.session.release_again(packet_id, row, out),
                None => {}
            }
        }
    }

    /// semantics.md, permissions: asked at each delivery; what was kept while it was permitted may not be so any more.
    fn may_receive(&self, parcel: &Parcel) -> bool {
        let permit = &self.hub.node().parts.permit;
        permit.may(self.place.seat.principal(), Action::Subscribe, &parcel.publication.topic)
    }

    // --- the end ---

    /// MQTT 5.0 §3.14.2.2.2: a session that was to end with the connection can not be prolonged.
    fn check_leave(&mut self, disconnect: Disconnect) -> Result<Disconnect, Fault> {
        match disconnect.expiry {
            Some(expiry) if expiry > 0 && self.place.expiry == 0 => {
                Err(Fault::Protocol("a session expiry out of nothing"))
            }
            Some(expiry) => {
                self.place.expiry = self.hub.bounded_expiry(expiry);
                Ok(disconnect)
            }
            None => Ok(disconnect),
        }
    }

    fn count(&self, outcome: Outcome) {
        self.hub.count(outcome, 1);
    }
}

/// Writes one parcel; gives its row (0: none) if it went nowhere: expired or over the client's maximum.
fn write_parcel(session: &mut Session, parcel: &Parcel, now_ms: u64, out: &mut Vec<u8>) -> Option<u64> {
    let publication = &*parcel.publication;
    let row = if parcel.packet_id == 0 { 0 } else { publication.id };
    // MQTT 5.0 §3.3.2.3.3: what has expired is not delivered any more.
    if publication.expired(now_ms) {
        return Some(row);
    }
    let body = render::body(publication, session.version(), now_ms);
    let head = Head { dup: parcel.dup, qos: parcel.qos, retain: parcel.retain, packet_id: parcel.packet_id };
    (session.deliver(&body, head, row, out) == Sent::TooLarge).then_some(row)
}

fn core_options(options: Options) -> SubOptions {
    SubOptions {
        qos: options.qos,
        no_local: options.no_local,
        retain_as_published: options.retain_as_published,
        identifier: 0,
    }
}

fn wants_retained(handling: RetainHandling, existed: bool) -> bool {
    match handling {
        RetainHandling::Always => true,
        RetainHandling::IfNew => !existed,
        RetainHandling::Never => false,
    }
}

/// Why a mailbox was closed, as the client is told.
fn closed(why: Closed) -> Fault {
    match why {
        Closed::Gone => Fault::Protocol("the session is gone"),
        Closed::Overflow => Fault::SlowReader,
        Closed::Replaced => Fault::TakenOver,
        Closed::Shutdown => Fault::Stopping,
        Closed::Revoked => Fault::Administrative,
    }
}
