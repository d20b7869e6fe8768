//! The link of a connection, or of a bot's runtime, to its seat: all that a front end holds of an account.
//!
//! Link and seat talk in few words: *sent*, *deliver*, *acked*, *detach*, *attach*, *end*. On one node they are plain
//! calls; a seat elsewhere gets them over the [bus](crate::bus). A link knows no account, no lock and no other seat.

use crate::{
    backlog::Bound,
    bus::Far,
    envelope::Envelope,
    homes::{Account, SeatId},
    hooks::BoxFuture,
    inbox::Inbox,
    journal::Notes,
    mailbox::Closed,
    router::Router,
    ticket::Ticket,
};
use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tavi_store::StoreError;
use tavi_xmpp_proto::{element::Element, jid::Jid};

/// Closes a seat for whoever stops.
#[derive(Clone)]
pub struct Closer(Arc<Inbox>);

impl Closer {
    /// Closes it for senders. The first reason stands.
    pub fn close(&self, why: Closed) {
        self.0.close(why);
    }
}

/// A session's link to its seat. Cloning shares the seat.
#[derive(Clone)]
pub struct Link {
    seat: SeatId,
    jid: Jid,
    /// The seat's own; or its mirror, which the home's words fill.
    inbox: Arc<Inbox>,
    way: Way,
}

/// How words reach the seat.
#[derive(Clone)]
enum Way {
    /// It is on this node.
    Near {
        account: Arc<Account>,
        router: Arc<Router>,
    },
    Far(Far),
}

impl Link {
    pub(crate) fn new(
        router: Arc<Router>,
        account: Arc<Account>,
        (seat, jid): (SeatId, Jid),
        inbox: Arc<Inbox>,
    ) -> Link {
        Link { seat, jid, inbox, way: Way::Near { account, router } }
    }

    pub(crate) fn far(far: Far, (seat, jid): (SeatId, Jid), mirror: Arc<Inbox>) -> Link {
        Link { seat, jid, inbox: mirror, way: Way::Far(far) }
    }

    /// Which seat.
    pub fn seat(&self) -> &SeatId {
        &self.seat
    }

    /// The session's full JID.
    pub fn jid(&self) -> &Jid {
        &self.jid
    }

    /// The word *sent*: a stanza of this session, with `from` stamped. The ticket completes when all that must be durable
    /// is, and then delivers.
    pub fn sent(&self, mut envelope: Envelope) -> BoxFuture<'static, Ticket> {
        envelope.meta.sender = self.seat.number;
        match &self.way {
            Way::Near { router, .. } => {
                let router = router.clone();
                Box::pin(async move { router.route(envelope).await })
            }
            Way::Far(far) => {
                let ticket = far.sent(envelope);
                Box::pin(async move { ticket })
            }
        }
    }

    /// The session may take messages for the account from now on, first what was kept. For bots; people's sessions get
    /// there by presence.
    pub async fn open(&self) -> Ticket {
        match &self.way {
            Way::Near { router, .. } => router.open(&self.seat).await,
            Way::Far(_) => Ticket::failed(StoreError::Unavailable("a bot runs where it is home".into())),
        }
    }

    /// From now on what is taken stays in flight until it is acknowledged, and so much may be in flight (XEP-0198).
    pub fn manage(&self, window: Bound) {
        self.inbox.manage(window);
        if let Way::Far(far) = &self.way {
            far.manage(window);
        }
    }

    /// What is taken stays in flight, whether the client acknowledges or not: for a link that is elsewhere.
    pub(crate) fn keep_in_flight(&self, window: Bound) {
        self.inbox.manage(window);
    }

    /// Where the session's stream is noted, so that it can be resumed after the process was started anew; `None` if
    /// nothing is noted, or its home is elsewhere.
    pub fn notes(&self) -> Option<Notes> {
        match &self.way {
            Way::Near { router, .. } => router.parts.journal.stream(self.seat.number),
            Way::Far(_) => None,
        }
    }

    /// Notes how the session stands.
    pub fn note(&self, notes: &Notes) {
        if let Way::Near { account, .. } = &self.way {
            notes.stands(&mut account.lock());
        }
    }

    /// The client is back after the process was started anew: it and others may have missed who came and went.
    pub fn returned(&self) -> BoxFuture<'static, Ticket> {
        match &self.way {
            Way::Near { router, .. } => {
                let (router, seat, inbox) = (router.clone(), self.seat.clone(), self.inbox.clone());
                Box::pin(async move { router.returned(&seat, inbox).await })
            }
            Way::Far(_) => Box::pin(async { Ticket::done() }),
        }
    }

    /// The broker stops, and the session goes on with the next process.
    pub fn suspend(&self) -> Ticket {
        match &self.way {
            Way::Near { account, router } => router.suspend(account, (self.seat.number, &self.inbox)),
            Way::Far(_) => Ticket::done(),
        }
    }

    /// What the client asked for with its binding, of what modules offer there (XEP-0386 §4).
    pub fn begin(&self, requests: &[Element]) {
        match &self.way {
            Way::Near { account, router } => {
                if let Some(session) = account.lock().session(self.seat.number) {
                    router.registry.begin(requests, session);
                }
            }
            Way::Far(far) => far.begin(requests),
        }
    }

    /// The word *deliver*: moves what may leave into `out`, with its places, as far as about `bytes`. Ready with `Err`
    /// once the seat is closed and empty; pending when nothing may leave.
    pub fn poll_deliver(
        &self,
        cx: &mut Context<'_>,
        bytes: usize,
        out: &mut Vec<(u64, Envelope)>,
    ) -> Poll<Result<(), Closed>> {
        let before = out.len();
        let polled = self.inbox.poll_take(cx, bytes, out);
        if let Poll::Ready(Ok(())) = polled {
            self.taken(&out[before..]);
        }
        polled
    }

    /// What is taken is seen from now on.
    pub(crate) fn flush_notes(&self) {
        if let Way::Near { router, .. } = &self.way {
            router.parts.journal.flush();
        }
    }

    fn taken(&self, taken: &[(u64, Envelope)]) {
        match &self.way {
            Way::Near { account, router } => router.feed_soon(account, self.seat.number, &self.inbox),
            // To the home everything is in flight.
            Way::Far(far) if !self.inbox.is_managed() => {
                far.acked(
                    taken.iter().filter(|(_, envelope)| !envelope.is_lasting()).map(|(place, _)| *place).collect(),
                );
            }
            Way::Far(_) => {}
        }
    }

    /// Waits for envelopes and moves all that may leave into `out`.
    ///
    /// # Errors
    /// The reason, once the seat is closed and nothing may leave.
    pub async fn drain(&self, out: &mut Vec<Envelope>) -> Result<(), Closed> {
        let mut taken = Vec::new();
        poll_fn(|cx| self.poll_deliver(cx, usize::MAX, &mut taken)).await?;
        self.flush_notes();
        out.extend(taken.into_iter().map(|(_, envelope)| envelope));
        Ok(())
    }

    /// Takes what may leave, without waiting.
    pub fn take(&self) -> Vec<Envelope> {
        let mut taken = Vec::new();
        // Nobody waits: there is nothing, or it is closed.
        let _ = self.poll_deliver(&mut Context::from_waker(Waker::noop()), usize::MAX, &mut taken);
        self.flush_notes();
        taken.into_iter().map(|(_, envelope)| envelope).collect()
    }

    /// The word *acked*: the client has these for good, by their places. Their rows are deleted, and more is read if the
    /// seat is behind.
    pub fn acked(&self, places: &[u64]) {
        let lasting = |place: &&u64| self.inbox.acknowledge(**place).is_none_or(|envelope| envelope.is_lasting());
        match &self.way {
            Way::Near { account, router } => {
                let ids: Vec<u64> = places.iter().filter(lasting).copied().collect();
                router.acknowledge(account, &ids);
                router.feed_soon(account, self.seat.number, &self.inbox);
            }
            Way::Far(far) => {
                places.iter().for_each(|place| drop(self.inbox.acknowledge(*place)));
                far.acked(places.to_vec());
            }
        }
    }

    /// Puts what the session itself answers behind what it is owed; a session without room is cut off.
    pub fn answer(&self, envelope: Envelope) {
        self.inbox.push_or_close(envelope);
    }

    /// Whether the client has to acknowledge before it gets more.
    pub fn is_held_up(&self) -> bool {
        self.inbox.is_held_up()
    }

    /// What the client has to acknowledge, with its places, in the order in which it was taken.
    pub fn in_flight(&self) -> Vec<(u64, Envelope)> {
        self.inbox.sent()
    }

    /// Ready when the session may make more for itself.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.inbox.poll_room(cx)
    }

    /// The session says that it goes away, behind what it makes for itself: for that it may take all of its room.
    pub fn hurry(&self, on: bool) {
        self.inbox.hurry(on);
    }

    /// Ready with the reason once the seat is closed, whatever still waits.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<Closed> {
        self.inbox.poll_closed(cx)
    }

    /// Why the seat is closed, if it is.
    pub fn closed(&self) -> Option<Closed> {
        self.inbox.closed()
    }

    /// Closes the seat for senders.
    pub fn close(&self, why: Closed) {
        self.inbox.close(why);
    }

    /// What can close this seat, and nothing else.
    pub fn closer(&self) -> Closer {
        Closer(self.inbox.clone())
    }

    /// The word *detach*: the connection is gone, the session waits for another one.
    pub fn detach(&self) {
        self.inbox.detach();
        if let Way::Far(far) = &self.way {
            far.detach(true);
        }
    }

    /// The word *attach*: there is a connection again.
    pub fn attach(&self) {
        self.inbox.attach();
        match &self.way {
            // After a restart nothing was read for it yet.
            Way::Near { account, router } => router.feed_soon(account, self.seat.number, &self.inbox),
            Way::Far(far) => far.detach(false),
        }
    }

    /// The word *end*: the session is over. What it did not acknowledge and what still waits go, in order, to another
    /// session or are kept; `left` is what it took without having to acknowledge it and did not deal with.
    pub async fn end(&self, left: Vec<Envelope>) -> Ticket {
        match &self.way {
            Way::Near { account, router } => router.end(account, (self.seat.number, &self.inbox), left).await,
            // The home has all that was not acknowledged.
            Way::Far(far) => far.end(&self.inbox),
        }
    }
}
