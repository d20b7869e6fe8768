//! The link of a connection, or of a bot's runtime, to its seat: all that a front end holds of an account.
//!
//! Link and seat talk in few words: *sent*, *deliver*, *acked*, *detach*, *attach*, *end*. On one node they are plain
//! calls. A link knows no account, no lock and no other seat.

use crate::{
    backlog::Bound,
    envelope::Envelope,
    homes::{Account, SeatId},
    hooks::BoxFuture,
    inbox::Inbox,
    mailbox::Closed,
    router::Router,
    ticket::Ticket,
};
use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};
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
    inbox: Arc<Inbox>,
    account: Arc<Account>,
    router: Arc<Router>,
}

impl Link {
    pub(crate) fn new(
        router: Arc<Router>,
        account: Arc<Account>,
        (seat, jid): (SeatId, Jid),
        inbox: Arc<Inbox>,
    ) -> Link {
        Link { seat, jid, inbox, account, router }
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
        let router = self.router.clone();
        Box::pin(async move { router.route(envelope).await })
    }

    /// The session may take messages for the account from now on, first what was kept. For bots; people's sessions get
    /// there by presence.
    pub async fn open(&self) -> Ticket {
        self.router.open(&self.seat).await
    }

    /// From now on what is taken stays in flight until it is acknowledged, and so much may be in flight (XEP-0198).
    pub fn manage(&self, window: Bound) {
        self.inbox.manage(window);
        self.acknowledges();
    }

    /// What the client asked for with its binding, of what modules offer there (XEP-0386 §4).
    pub fn begin(&self, requests: &[Element]) {
        if let Some(session) = self.account.lock().session(self.seat.number) {
            self.router.registry.begin(requests, session);
        }
    }

    /// The session acknowledges what it gets.
    pub fn acknowledges(&self) {
        if let Some(session) = self.account.lock().session(self.seat.number) {
            session.managed = true;
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
        let polled = self.inbox.poll_take(cx, bytes, out);
        if let Poll::Ready(Ok(())) = polled {
            self.more();
        }
        polled
    }

    /// Waits for envelopes and moves all that may leave into `out`.
    ///
    /// # Errors
    /// The reason, once the seat is closed and nothing may leave.
    pub async fn drain(&self, out: &mut Vec<Envelope>) -> Result<(), Closed> {
        let mut taken = Vec::new();
        poll_fn(|cx| self.inbox.poll_take(cx, usize::MAX, &mut taken)).await?;
        out.extend(taken.into_iter().map(|(_, envelope)| envelope));
        Ok(())
    }

    /// Takes what may leave, without waiting.
    pub fn take(&self) -> Vec<Envelope> {
        self.inbox.take()
    }

    /// The word *acked*: the client has these for good, by their places. Their rows are deleted, and more is read if the
    /// seat is behind.
    pub fn acked(&self, places: &[u64]) {
        let lasting = |place: &&u64| self.inbox.acknowledge(**place).is_none_or(|envelope| envelope.is_lasting());
        let ids: Vec<u64> = places.iter().filter(lasting).copied().collect();
        self.router.acknowledge(&self.account, &ids);
        self.more();
    }

    fn more(&self) {
        self.router.feed_soon(&self.account, self.seat.number, &self.inbox);
    }

    /// Puts what the session itself answers behind what it is owed; a session without room is cut off.
    pub fn answer(&self, envelope: Envelope) {
        self.inbox.push_or_close(envelope);
    }

    /// Whether the client has to acknowledge before it gets more.
    pub fn is_held_up(&self) -> bool {
        self.inbox.is_held_up()
    }

    /// What the client has to acknowledge, in the order in which it was taken.
    pub fn in_flight(&self) -> Vec<Envelope> {
        self.inbox.sent()
    }

    /// Ready when the session may make more for itself.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.inbox.poll_room(cx)
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
    }

    /// The word *attach*: there is a connection again.
    pub fn attach(&self) {
        self.inbox.attach();
    }

    /// The word *end*: the session is over. What it did not acknowledge and what still waits go, in order, to another
    /// session or are kept; `left` is what it took without having to acknowledge it and did not deal with.
    pub async fn end(&self, left: Vec<Envelope>) -> Ticket {
        self.router.end(&self.account, (self.seat.number, &self.inbox), left).await
    }
}
