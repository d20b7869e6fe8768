//! One bound session: reads stanzas into the router, writes what waits for it, acknowledges in ticket order.
//!
//! The loop polls by hand and holds no buffer while nothing happens: bytes are read into a buffer that the thread's
//! connections share, output exists only until it is written, and whatever is rare is boxed.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use tavi_core::metrics::{Outcome, Protocol};
use tavi_core::node::Attached;
use tavi_core::sessions::Bound;
use tavi_core::{Closed, Envelope, Origin, Ticket, TicketQueue};
use tavi_store::StoreError;
use tavi_xmpp_proto::ingress::{Incoming, Ingress};
use tavi_xmpp_proto::sm::{self, SmRequest, StreamManagement};
use tavi_xmpp_proto::stream::{self, c2s};
use tavi_xmpp_proto::{Condition, Element, Stanza, StreamCondition, StreamError, ns};

use crate::listener::{Entered, Shared};
use crate::negotiate::Negotiated;
use crate::wire::Wire;

/// With this much output waiting a session reads nothing, neither from its client nor from its inbox.
const HIGH_WATER: usize = 64 * 1024;

/// What is owed to the client when a ticket completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// Nothing: stream management was off when the stanza came.
    Nothing,
    /// The stanza counts as handled (XEP-0198 §4).
    Count,
    /// The client asked how many are handled; everything before its question is durable now.
    Answer,
}

/// Why a session ends.
#[derive(Debug)]
enum End {
    /// The connection broke.
    Broken,
    /// The client closed its stream, or its side of the connection.
    Closed,
    /// The stream ends with this error.
    Error(StreamError),
}

impl From<StreamError> for End {
    fn from(error: StreamError) -> End {
        End::Error(error)
    }
}

/// A stanza that a client with stream management has not acknowledged; None for what is not sent again.
type Unacknowledged = Option<Box<Envelope>>;

/// The session of one connection.
pub(crate) struct Session {
    shared: Arc<Shared>,
    wire: Wire,
    ingress: Ingress,
    bound: Bound,
    entered: Entered,
    _attached: Attached,
    /// The default language of the client's stream (RFC 6120 §4.7.4).
    lang: Option<Box<str>>,
    tickets: TicketQueue<Due>,
    /// Read, but not dealt with yet.
    pending: VecDeque<Incoming>,
    /// The end that comes behind what is pending.
    ending: Option<End>,
    out: Vec<u8>,
    written: usize,
    /// Messages in `out`, when there is no stream management to say that they arrived.
    writing: Vec<Envelope>,
    management: Option<Box<StreamManagement<Unacknowledged>>>,
}

impl Session {
    /// The session behind a negotiation.
    pub fn new(shared: Arc<Shared>, negotiated: Negotiated) -> Session {
        let Negotiated { wire, ingress, bound, attached, lang, out, rest } = negotiated;
        let mut session = Session {
            entered: Entered::new(shared.clone(), bound.id, bound.inbox.clone()),
            shared,
            wire,
            ingress,
            bound,
            _attached: attached,
            lang,
            tickets: TicketQueue::default(),
            pending: VecDeque::new(),
            ending: None,
            out,
            written: 0,
            writing: Vec::new(),
            management: None,
        };
        session.take_bytes(&rest);
        session
    }

    /// Lives until the stream ends.
    pub async fn run(mut self) {
        let end = loop {
            match poll_fn(|cx| self.poll_turn(cx)).await {
                Ok(()) => {}
                Err(end) => break end,
            }
            if let Err(end) = Box::pin(self.work_off()).await {
                break end;
            }
        };
        Box::pin(self.end(end)).await;
    }

    /// Does everything that can be done without waiting; ready when stanzas are to be routed or the session ends.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            self.poll_tickets(cx)?;
            let stuck = self.poll_write(cx)?;
            if self.can_work() {
                return Poll::Ready(Ok(()));
            }
            if self.pending.is_empty()
                && let Some(end) = self.ending.take()
            {
                return Poll::Ready(Err(end));
            }
            let moved = if stuck { self.poll_only_close(cx)? } else { self.poll_inbox(cx)? };
            let read = self.can_read() && self.poll_read(cx)?;
            if !moved && !read {
                return Poll::Pending;
            }
        }
    }

    fn can_work(&self) -> bool {
        !self.pending.is_empty() && !self.tickets.is_full()
    }

    fn can_read(&self) -> bool {
        self.pending.is_empty() && self.ending.is_none() && !self.tickets.is_full() && self.out.len() < HIGH_WATER
    }

    /// Acknowledges and delivers what has become durable, in order.
    fn poll_tickets(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        while let Poll::Ready(Some((due, result))) = self.tickets.poll_next(cx) {
            self.complete(due, result)?;
        }
        Ok(())
    }

    /// Ready when no ticket is open, or when the store has failed.
    fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let failed = self.poll_tickets(cx).is_err();
        if failed || self.tickets.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn complete(&mut self, due: Due, result: Result<(), StoreError>) -> Result<(), End> {
        if let Err(error) = result {
            tracing::error!(%error, jid = %self.bound.jid, "a stanza could not be saved");
            return Err(StreamError::new(StreamCondition::InternalServerError).text("the store failed").into());
        }
        match (due, &mut self.management) {
            (Due::Count, Some(management)) => management.count_handled(),
            (Due::Answer, Some(management)) => management.answer(&mut self.out),
            _ => {}
        }
        Ok(())
    }

    /// Writes; true when the connection takes no more and much is waiting.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.out.is_empty() {
            return Ok(false);
        }
        match self.wire.poll_write_all(cx, &self.out, &mut self.written) {
            Poll::Ready(Ok(())) => {
                (self.out, self.written) = (Vec::new(), 0);
                self.all_written();
                Ok(false)
            }
            Poll::Ready(Err(_)) => Err(End::Broken),
            Poll::Pending => Ok(self.out.len() >= HIGH_WATER),
        }
    }

    /// semantics.md: a recipient without stream management has a message when it is written.
    fn all_written(&mut self) {
        if self.writing.is_empty() {
            return;
        }
        let ids: Vec<u64> = self.writing.drain(..).filter_map(|envelope| envelope.meta.queued).collect();
        self.writing = Vec::new();
        self.shared.node.router.acknowledge(&self.bound.account, &ids);
    }

    /// Takes everything that waits in the inbox and makes one write of it.
    fn poll_inbox(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut envelopes = Vec::new();
        match self.bound.inbox.poll_drain(cx, &mut envelopes) {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(why)) => Err(closed(why)),
            Poll::Ready(Ok(())) => {
                self.deliver(envelopes)?;
                Ok(true)
            }
        }
    }

    /// While the client does not read, only the end of the session matters.
    fn poll_only_close(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        match self.bound.inbox.poll_closed(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(why) => Err(closed(why)),
        }
    }

    fn deliver(&mut self, envelopes: Vec<Envelope>) -> Result<(), End> {
        let delivered = self.shared.node.parts.metrics.messages(Protocol::Xmpp, Outcome::Delivered);
        let mut fits = Ok(());
        for envelope in envelopes {
            let is_message = envelope.stanza.kind() == tavi_xmpp_proto::Kind::Message;
            delivered.add(u64::from(is_message));
            envelope.write(&mut self.out);
            match &mut self.management {
                Some(management) => fits = fits.and(management.sent(is_message.then(|| Box::new(envelope)))),
                None if is_message => self.writing.push(envelope),
                None => {}
            }
        }
        if let Some(management) = &mut self.management {
            management.ask(&mut self.out);
        }
        fits.map_err(|error| StreamError::new(StreamCondition::ResourceConstraint).text(error.to_string()).into())
    }

    /// Reads once; true when something came.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let Session { wire, ingress, pending, ending, .. } = self;
        match wire.poll_read(cx, |bytes| read_all(bytes, ingress, pending, ending)) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(Some(()))) => Ok(true),
            Poll::Ready(Ok(None)) => Err(End::Closed),
            Poll::Ready(Err(error)) => Err(broken(&error)),
        }
    }

    fn take_bytes(&mut self, bytes: &[u8]) {
        read_all(bytes, &mut self.ingress, &mut self.pending, &mut self.ending);
    }

    /// Routes what was read, as far as the window allows. The only place that waits for the core.
    async fn work_off(&mut self) -> Result<(), End> {
        while self.can_work() {
            let Some(incoming) = self.pending.pop_front() else { break };
            match incoming {
                Incoming::Stanza(stanza) => self.stanza(stanza).await?,
                Incoming::Refused(refused) => self.answer(refused.reply()),
                // RFC 6120 §4.9.1.1: an error ends the stream, and is not answered with another.
                Incoming::Element(element) if element.is(ns::STREAM, "error") => return Err(End::Closed),
                Incoming::Element(element) => self.element(&element)?,
                Incoming::Close => return Err(End::Closed),
                Incoming::Header(_) => return Err(StreamError::from(StreamCondition::NotWellFormed).into()),
            }
        }
        if self.pending.is_empty() {
            // An idle session keeps no memory for this.
            self.pending = VecDeque::new();
        }
        Ok(())
    }

    async fn stanza(&mut self, mut stanza: Stanza) -> Result<(), End> {
        c2s::stamp(&mut stanza.head, (&self.bound.jid, self.lang.as_deref()))?;
        if let Some(reply) = c2s::session_reply(&stanza) {
            self.answer(Some(reply));
            return Ok(());
        }
        let parts = &self.shared.node.parts;
        if stanza.kind() == tavi_xmpp_proto::Kind::Message {
            parts.metrics.messages(Protocol::Xmpp, Outcome::Received).add(1);
        }
        let origin = if self.management.is_some() { Origin::Managed } else { Origin::Plain };
        let size = stanza.raw().len() + 128;
        let ticket = self.shared.node.route(Envelope::received(stanza, origin, parts.clock.now_ms())).await;
        self.tickets.push(ticket, self.due(), size);
        Ok(())
    }

    /// What a stanza is owed.
    fn due(&self) -> Due {
        if self.management.is_some() { Due::Count } else { Due::Nothing }
    }

    /// An answer that the session itself gives, to a stanza that is dealt with by that.
    fn answer(&mut self, reply: Option<Stanza>) {
        self.tickets.push(Ticket::done(), self.due(), 0);
        if let Some(mut reply) = reply {
            reply.head.to = Some(self.bound.jid.clone());
            self.bound.inbox.push(reply.into(), tavi_core::Overflow::Detach);
        }
    }

    /// Elements beside stanzas: stream management (XEP-0198); client state (XEP-0352) is taken and means nothing.
    fn element(&mut self, element: &Element) -> Result<(), End> {
        match SmRequest::read(element) {
            Some(SmRequest::Enable) => self.enable(),
            Some(SmRequest::Resume) => sm::write_failed(&mut self.out, Condition::ItemNotFound),
            Some(SmRequest::Ask) if self.management.is_some() => self.tickets.push(Ticket::done(), Due::Answer, 0),
            // XEP-0198 §3: nothing is counted before it is enabled.
            Some(SmRequest::Ask) => sm::write_failed(&mut self.out, Condition::UnexpectedRequest),
            Some(SmRequest::Answer(h)) => self.acknowledged(h)?,
            None if element.ns() == ns::CSI => {}
            _ => return Err(StreamError::from(StreamCondition::UnsupportedStanzaType).into()),
        }
        Ok(())
    }

    fn enable(&mut self) {
        if self.management.is_some() {
            return sm::write_failed(&mut self.out, Condition::UnexpectedRequest);
        }
        self.management = Some(Box::new(StreamManagement::new(self.shared.config.unacknowledged)));
        if let Some(session) = self.bound.account.lock().session(self.bound.id) {
            session.managed = true;
        }
        sm::write_enabled(&mut self.out);
    }

    fn acknowledged(&mut self, h: u32) -> Result<(), End> {
        let Some(management) = &mut self.management else { return Ok(()) };
        let ids: Vec<u64> = management.acknowledge(h)?.flatten().filter_map(|envelope| envelope.meta.queued).collect();
        self.shared.node.router.acknowledge(&self.bound.account, &ids);
        Ok(())
    }

    /// Says goodbye, lets the open tickets complete, and gives back what the client did not get.
    async fn end(mut self, end: End) {
        note(&end, &self.bound, &self.shared);
        let deadline = self.shared.config.farewell_deadline;
        // A client that does not read its last words loses them.
        if let Ok(true) = tokio::time::timeout(deadline, self.farewell(&end)).await {
            self.all_written();
        }
        let Session { shared, mut wire, bound, entered, tickets, writing, management, .. } = self;
        tickets.drain(shared.node.parts.metrics.clone());
        let unacknowledged = match management {
            Some(management) => management.into_unacknowledged().flatten().map(|envelope| *envelope).collect(),
            None => writing,
        };
        if let Err(error) = shared.node.router.end(&bound, unacknowledged).await.complete().await {
            tracing::error!(%error, jid = %bound.jid, "what a session left could not be kept");
        }
        drop(entered);
        let mut said = false;
        let _ = tokio::time::timeout(deadline, poll_fn(|cx| wire.poll_hang_up(cx, &mut said))).await;
    }

    /// Writes what is still to be written, and the end of the stream; whether all of it went out. A managed stream
    /// ends with a last count of what is durable (XEP-0198 §4), so that the client does not send it again.
    async fn farewell(&mut self, end: &End) -> bool {
        if let End::Broken = end {
            return false;
        }
        poll_fn(|cx| self.poll_settled(cx)).await;
        if let Some(management) = &self.management {
            management.answer(&mut self.out);
        }
        match end {
            End::Broken => {}
            End::Closed => self.out.extend_from_slice(stream::CLOSE),
            End::Error(error) => stream::write_error(&mut self.out, error),
        }
        poll_fn(|cx| self.wire.poll_write_all(cx, &self.out, &mut self.written)).await.is_ok()
    }
}

/// Reads everything that is complete.
fn read_all(bytes: &[u8], ingress: &mut Ingress, pending: &mut VecDeque<Incoming>, ending: &mut Option<End>) {
    let mut input = bytes;
    while ending.is_none() {
        match ingress.next(&mut input) {
            Ok(Some(incoming)) => pending.push_back(incoming),
            Ok(None) => return,
            Err(error) => *ending = Some(End::Error(error)),
        }
    }
}

/// A TLS peer that hangs up without `close_notify` is gone all the same.
fn broken(error: &io::Error) -> End {
    if error.kind() == io::ErrorKind::UnexpectedEof { End::Closed } else { End::Broken }
}

/// What the end of an inbox means for the stream.
fn closed(why: Closed) -> End {
    let error = |condition: StreamCondition, text: &'static str| End::Error(StreamError::new(condition).text(text));
    match why {
        Closed::Gone => End::Closed,
        Closed::Overflow => error(StreamCondition::ResourceConstraint, "too much is waiting for this session"),
        Closed::Replaced => error(StreamCondition::Conflict, "this resource was bound by another session"),
        Closed::Shutdown => error(StreamCondition::SystemShutdown, "the server stops"),
        Closed::Revoked => error(StreamCondition::NotAuthorized, "this account was removed or its rights were revoked"),
    }
}

fn note(end: &End, bound: &Bound, shared: &Shared) {
    match end {
        End::Error(error) => {
            // These two are no fault of the client.
            let blameless = [StreamCondition::SystemShutdown, StreamCondition::Conflict].contains(&error.condition);
            shared.node.parts.metrics.protocol_errors.add(u64::from(!blameless));
            tracing::debug!(jid = %bound.jid, %error, "a stream ended");
        }
        End::Broken => tracing::debug!(jid = %bound.jid, "a connection broke"),
        End::Closed => {}
    }
}
