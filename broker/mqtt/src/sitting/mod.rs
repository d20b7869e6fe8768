//! One link's time at its seat, without IO: the link's words in, the seat's words out, tickets and mailbox polled in
//! between. All that a connected client asks for and gets is decided here, at the session's home.
//!
//! `publish` and `subscribe` are what the client asks for, `deliver` is what it gets.

mod deliver;
mod publish;
mod subscribe;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tavi_core::metrics::Outcome;
use tavi_core::{Closed, Ticket, TicketQueue};
use tavi_store::{Commit, Op, QueuePage, StoreError};

use crate::error::Fault;
use crate::granted::Granted;
use crate::hub::{Hub, Now, Parting, Place, Seat};
use crate::link::{Line, Said, Word};
use crate::packet::{Disconnect, Publish, Subscribe, Unsubscribe, Version};
use crate::seat::Parcel;
use crate::session::Answer;
use deliver::Granting;
use subscribe::Subscribed;

type Reading = Pin<Box<dyn Future<Output = Result<QueuePage, StoreError>> + Send>>;

/// A link at its seat.
pub struct Sitting {
    hub: Arc<Hub>,
    place: Place,
    version: Version,
    tickets: TicketQueue<Pending>,
    /// How many packets wait among them for their turn.
    turns: usize,
    waiting: Vec<Parcel>,
    next: usize,
    topic: Option<Arc<str>>,
    deletes: Vec<Op>,
    /// Deletions on their way, with their rows.
    deleting: VecDeque<(Commit, Vec<u64>)>,
    /// A page of a durable session's queue, and behind which row.
    reading: Option<(u64, Reading)>,
    /// Retained values that subscriptions found.
    granted: VecDeque<Granted>,
    granting: Option<Box<Granting>>,
    now: Now,
    /// The access model when the client came.
    generation: u64,
    /// The connection is over: nobody subscribes any more.
    left: bool,
    /// Deliveries of a clean session at QoS 1 and 2 that are not acknowledged.
    flying: usize,
}

/// What happens when a ticket of this client completes.
enum Pending {
    /// The client is answered.
    Answer(Answer),
    /// It comes behind everything that the client published before.
    Turn(Box<Later>),
    /// Subscriptions are saved.
    Subscribed(Box<Subscribed>),
    /// They are gone from the store.
    Unsubscribed(Box<(u16, Vec<bool>)>),
}

impl Pending {
    /// The packet id of the QoS 2 publish that it is for.
    fn publish_id(&self) -> Option<u16> {
        match self {
            Self::Answer(answer) => answer.received_id(),
            _ => None,
        }
    }
}

/// A packet that waits for those before it, and its size.
struct Later(Waiting, usize);

enum Waiting {
    Publish(Publish),
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
}

impl Sitting {
    /// The link of a client that speaks this version, at its place.
    pub fn new(hub: Arc<Hub>, place: Place, version: Version) -> Self {
        let (now, generation) = (hub.now(), hub.node().parts.permit.generation());
        let granted = place.seat.kept().map(|seat| seat.take_granted()).unwrap_or_default();
        Self {
            hub,
            place,
            version,
            tickets: TicketQueue::default(),
            turns: 0,
            waiting: Vec::new(),
            next: 0,
            topic: None,
            deletes: Vec::new(),
            deleting: VecDeque::new(),
            reading: None,
            granted,
            granting: None,
            now,
            generation,
            left: false,
            flying: 0,
        }
    }

    /// The time, once for all that one wake-up brings.
    pub fn set_time(&mut self, now: Now) {
        self.now = now;
    }

    /// The time that it was told last.
    pub fn now(&self) -> Now {
        self.now
    }

    /// Whether reading has to stop until a ticket completes.
    pub fn is_full(&self) -> bool {
        self.tickets.is_full()
    }

    /// Heeds a word of the link, for a packet of `size` bytes. Gives the DISCONNECT, if it was one.
    ///
    /// # Errors
    /// The connection is over.
    pub fn take(&mut self, word: Word, size: usize, line: &mut dyn Line) -> Result<Option<Disconnect>, Fault> {
        match word {
            // What came before it is not begun yet.
            Word::Publish(publish) if self.turns > 0 => self.in_turn(Waiting::Publish(publish), size, line)?,
            Word::Publish(publish) => self.publish(publish, size, line)?,
            Word::Repeated(answer) => self.after(Ticket::done(), Pending::Answer(answer), size, line)?,
            Word::Release(answer) => self.release(answer, size, line)?,
            Word::Taken(row) => self.taken(row),
            Word::Skipped(row, qos) => self.skipped(row, qos),
            Word::Received(row, answer) => self.received(row, answer, size, line)?,
            Word::Subscribe(subscribe) => self.in_turn(Waiting::Subscribe(subscribe), size, line)?,
            Word::Unsubscribe(unsubscribe) => self.in_turn(Waiting::Unsubscribe(unsubscribe), size, line)?,
            Word::Leave(disconnect) => return self.check_leave(disconnect).map(Some),
        }
        Ok(None)
    }

    /// Completes tickets, writes what waits for the client, reads stored rows. `Ready` if there may be more to do at
    /// once; `Pending` when everything that can happen now has happened and the context will be woken.
    pub fn poll(&mut self, cx: &mut Context<'_>, line: &mut dyn Line) -> Poll<Result<(), Fault>> {
        let mut more = self.poll_tickets(cx, line)?;
        more |= self.deliver(cx, line)?;
        self.flush_deletes();
        more |= self.poll_deletes(cx);
        if more { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// What goes on while the peer takes nothing: what it published is delivered to others, and it is told to go.
    pub fn poll_stalled(&mut self, cx: &mut Context<'_>, line: &mut dyn Line) -> Result<(), Fault> {
        self.poll_tickets(cx, line)?;
        self.check_open(cx)
    }

    /// Completes tickets in order; true if there was one, so that there is room in the window for what is read already.
    fn poll_tickets(&mut self, cx: &mut Context<'_>, line: &mut dyn Line) -> Result<bool, Fault> {
        let mut any = false;
        while let Poll::Ready(Some((pending, result))) = self.tickets.poll_next(cx) {
            self.complete(pending, result, line)?;
            any = true;
        }
        self.flush_deletes();
        Ok(any)
    }

    /// Rows of the session that are on their way; true if none is.
    fn poll_rows(&mut self, cx: &mut Context<'_>) -> bool {
        if let Seat::Kept(seat) = self.place.seat.clone() {
            // What failed was told to the seat.
            let _ = self.land_granted(&seat, cx);
        }
        self.poll_deletes(cx);
        self.deleting.is_empty() && self.granting.is_none()
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
        self.left = true;
        if let Seat::Kept(seat) = &self.place.seat {
            seat.leave_granted(std::mem::take(&mut self.granted));
        }
        self.hub.leave(&mut self.place, parting);
        if !self.tickets.is_empty() || !self.deleting.is_empty() || self.granting.is_some() {
            self.hub.node().parts.metrics.draining.add(1);
            tokio::spawn(self.drain());
        }
    }

    async fn drain(mut self) {
        poll_fn(|cx| {
            // A ticket that failed was logged, and is gone from the queue.
            while self.poll_tickets(cx, &mut Unheard).is_err() {}
            let landed = self.poll_rows(cx);
            if landed && self.tickets.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.hub.node().parts.metrics.draining.sub(1);
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
    fn after(&mut self, mut ticket: Ticket, pending: Pending, size: usize, line: &mut dyn Line) -> Result<(), Fault> {
        if self.tickets.is_empty()
            && ticket.is_ready()
            && let Poll::Ready(result) = ticket.poll_done(&mut Context::from_waker(Waker::noop()))
        {
            return self.complete(pending, result, line);
        }
        self.tickets.push(ticket, pending, size);
        Ok(())
    }

    fn complete(&mut self, pending: Pending, result: Result<(), StoreError>, line: &mut dyn Line) -> Result<(), Fault> {
        if let Err(error) = result {
            tracing::error!(%error, "an MQTT session ends because the store failed");
            if let (Some(packet_id), Seat::Kept(seat)) = (pending.publish_id(), &self.place.seat) {
                // It may not have reached everybody: the client's next attempt begins anew, under the same id.
                seat.let_go(packet_id);
            }
            if let Pending::Subscribed(done) = pending {
                self.not_subscribed(*done);
            }
            return Err(Fault::Store);
        }
        match pending {
            Pending::Answer(answer) => self.answer(answer, line),
            Pending::Turn(later) => {
                self.turns -= 1;
                return self.go_on(*later, line);
            }
            Pending::Subscribed(done) => self.subscribed(*done, line),
            Pending::Unsubscribed(done) => drop(line.say(Said::Unsubscribed(done.0, done.1))),
        }
        Ok(())
    }

    /// Writes an answer whose turn has come.
    fn answer(&mut self, answer: Answer, line: &mut dyn Line) {
        if let (Some(packet_id), Seat::Kept(seat)) = (answer.received_id(), &self.place.seat) {
            seat.finish(packet_id);
        }
        line.say(Said::Answer(answer));
    }

    // --- the order of the client's packets ---

    /// semantics.md, order: what a client publishes goes out in the order in which it came, whatever its QoS: its
    /// tickets see to that. What it subscribes to comes behind what it published before, and what it publishes then behind
    /// that.
    fn in_turn(&mut self, packet: Waiting, size: usize, line: &mut dyn Line) -> Result<(), Fault> {
        let later = Later(packet, size);
        if self.tickets.is_empty() {
            return self.go_on(later, line);
        }
        self.turns += 1;
        self.tickets.push(Ticket::done(), Pending::Turn(Box::new(later)), size);
        Ok(())
    }

    fn go_on(&mut self, Later(packet, size): Later, line: &mut dyn Line) -> Result<(), Fault> {
        match packet {
            // Whatever was read is published, also behind its client's back.
            Waiting::Publish(publish) => self.publish(publish, size, line),
            _ if self.left => Ok(()),
            Waiting::Subscribe(subscribe) => self.subscribe(subscribe, size, line),
            Waiting::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe, size, line),
        }
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

/// Nobody is there any more who could be told.
struct Unheard;

impl Line for Unheard {
    fn say(&mut self, _: Said) -> bool {
        true
    }

    fn is_full(&self) -> bool {
        true
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
