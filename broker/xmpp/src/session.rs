//! One bound session: reads stanzas into the router, writes what waits for it, acknowledges in ticket order.
//!
//! The loop polls by hand and holds no buffer while nothing happens: bytes are read into a buffer that the thread's
//! connections share, output exists only until it is written, and whatever is rare is boxed.

use std::collections::{BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tavi_core::journal::Notes;
use tavi_core::link::Link;
use tavi_core::metrics::{Metrics, Outcome, Protocol};
use tavi_core::node::Attached;
use tavi_core::restore::Restored;
use tavi_core::{Bound, Closed, Envelope, Origin, Ticket, TicketQueue, Weigh};
use tavi_store::StoreError;
use tavi_xmpp_proto::ingress::{Incoming, Ingress};
use tavi_xmpp_proto::sm::{self, SmRequest, StreamManagement};
use tavi_xmpp_proto::stream::{Framing, c2s};
use tavi_xmpp_proto::{
    Condition, Element, Jid, Kind, Limits, PresenceType, Stanza, StanzaType, StreamCondition, StreamError, ns,
};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::listener::{Connection, Entered, Shared};
use crate::negotiate::Negotiated;
use crate::resume::{Managed, Resume, Resumption};
use crate::wire::Wire;

/// With this much output waiting a session takes nothing from its inbox, and answers nothing itself.
const HIGH_WATER: usize = 64 * 1024;

/// With this much read and not routed a session reads no more. Acknowledgements among it are heeded at once.
const READ_AHEAD: usize = 128 * 1024;

/// The same while the client has to acknowledge before it gets more. Beyond it that is hopeless if the session cannot go on
/// either.
const READ_FOR_ROOM: usize = 1024 * 1024;

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

/// Why a session ends, or its connection.
pub(crate) enum End {
    /// The connection broke.
    Broken,
    /// The client closed its stream, or its side of the connection.
    Closed,
    /// Another connection goes on with the session.
    Resumed(Box<Resume>),
    /// The stream ends with this error.
    Error(StreamError),
}

impl From<StreamError> for End {
    fn from(error: StreamError) -> End {
        End::Error(error)
    }
}

/// A stanza that is being routed, its size, and what it is owed.
struct Routing {
    route: Pin<Box<dyn Future<Output = Ticket> + Send>>,
    size: usize,
    due: Due,
    /// What comes of it is for the session itself, and waits for room.
    own: bool,
    /// It may change how the session stands.
    changes: bool,
}

/// The session of one connection.
pub(crate) struct Session {
    shared: Arc<Shared>,
    wire: Wire,
    ingress: Ingress,
    link: Link,
    entered: Entered,
    connection: Connection,
    _attached: Attached,
    /// The default language of the client's stream (RFC 6120 §4.7.4).
    lang: Option<Box<str>>,
    tickets: TicketQueue<Due>,
    /// While too much waits for the disk, nothing is read.
    disk: tavi_store::Room,
    /// One stanza at a time is with the core; writes, acknowledgements and the inbox do not wait for it.
    routing: Option<Routing>,
    /// Read, but not dealt with yet.
    pending: Pending,
    /// The end that comes behind what is pending.
    ending: Option<Box<End>>,
    /// The core knows that the session is about to go away.
    hurried: bool,
    out: Vec<u8>,
    written: usize,
    /// Places of the messages in `out`, when there is no stream management to say that they arrived.
    writing: Vec<u64>,
    /// The places of what the client has not acknowledged.
    management: Option<Box<StreamManagement<u64>>>,
    /// The number of the last stanza of the client that was dealt with or is being (XEP-0198 §4).
    number: u32,
    /// So many of them are noted as handled.
    noted: u32,
    /// It outlives its connection.
    resumption: Option<Box<Resumption>>,
    /// It outlives the process.
    notes: Option<Notes>,
    /// What it outlived the process with.
    past: Option<Box<Past>>,
    /// Runs while the client has to acknowledge before it gets more.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// What a session still has of an earlier process.
struct Past {
    /// Stanzas, by their numbers, that were handled there.
    landed: BTreeSet<u32>,
    /// Its client has come back.
    over: bool,
}

/// What was read and is not dealt with.
#[derive(Default)]
struct Pending {
    items: VecDeque<Incoming>,
    bytes: usize,
    /// `h` of the client's last acknowledgement.
    acknowledged: Option<u32>,
    /// How many of them say that the session goes away.
    leaves: usize,
}

impl Pending {
    fn push(&mut self, incoming: Incoming) {
        if let Incoming::Element(element) = &incoming
            && let Some(SmRequest::Answer(h)) = SmRequest::read(element)
        {
            // It says nothing of what stands before it; who waits for it need not wait for that.
            self.acknowledged = Some(h);
            return;
        }
        self.bytes += size(&incoming);
        self.leaves += usize::from(is_leave(&incoming));
        if self.items.capacity() == 0 {
            // What comes often comes in numbers.
            self.items.reserve(16);
        }
        self.items.push_back(incoming);
    }

    fn pop(&mut self) -> Option<Incoming> {
        let incoming = self.items.pop_front()?;
        self.bytes -= size(&incoming);
        self.leaves -= usize::from(is_leave(&incoming));
        if self.items.is_empty() {
            // An idle session keeps no memory for this.
            self.items = VecDeque::new();
        }
        Some(incoming)
    }
}

impl Pending {
    fn begins_with(&self, kind: Kind) -> bool {
        let is_it = |incoming: &Incoming| matches!(incoming, Incoming::Stanza(stanza) if stanza.kind() == kind);
        self.items.front().is_some_and(is_it)
    }

    fn begins_for_others(&self, own: &Jid) -> bool {
        matches!(self.items.front(), Some(Incoming::Stanza(stanza)) if is_for_others(stanza, own))
    }

    /// With what the session answers itself, beside its inbox.
    fn begins_beside(&self) -> bool {
        matches!(self.items.front(), Some(Incoming::Element(_)))
    }

    fn has_close(&self) -> bool {
        self.items.iter().any(|incoming| matches!(incoming, Incoming::Close))
    }
}

/// Whether it is for others: a message, or where the session is. What that makes for the session itself waits for room
/// while it is routed.
fn is_for_others(stanza: &Stanza, own: &Jid) -> bool {
    match stanza.head.type_ {
        StanzaType::Message(_) => stanza.head.to.as_ref().is_some_and(|to| to.to_bare() != own.to_bare()),
        StanzaType::Presence(type_) => matches!(type_, PresenceType::Available | PresenceType::Unavailable),
        StanzaType::Iq(_) => false,
    }
}

/// Whether it says that the session takes no more for its account (RFC 6121 §4.5, §4.7.2.3).
fn is_leave(incoming: &Incoming) -> bool {
    let Incoming::Stanza(stanza) = incoming else { return false };
    let negative = || {
        let priority = stanza.element(ns::CLIENT, "priority").map(|priority| priority.text_content());
        priority.is_some_and(|text| text.trim().starts_with('-'))
    };
    match stanza.head.type_ {
        StanzaType::Presence(PresenceType::Unavailable) => stanza.head.to.is_none(),
        StanzaType::Presence(PresenceType::Available) => stanza.head.to.is_none() && negative(),
        _ => false,
    }
}

/// About how much something that was read holds.
fn size(incoming: &Incoming) -> usize {
    match incoming {
        Incoming::Stanza(stanza) => stanza.raw().len() + 128,
        _ => 128,
    }
}

impl Session {
    /// The session behind a negotiation.
    pub fn new(connection: Connection, negotiated: Negotiated) -> Session {
        let shared = connection.shared();
        let Negotiated { wire, ingress, link, attached, lang, managed, out, rest } = negotiated;
        let mut session = Session {
            entered: Entered::new(shared.clone(), &link),
            connection,
            shared,
            wire,
            ingress,
            link,
            _attached: attached,
            lang,
            tickets: TicketQueue::default(),
            disk: tavi_store::Room::default(),
            routing: None,
            pending: Pending::default(),
            ending: None,
            hurried: false,
            out,
            written: 0,
            writing: Vec::new(),
            management: None,
            number: 0,
            noted: 0,
            resumption: None,
            notes: None,
            past: None,
            deadline: None,
        };
        if let Some(managed) = managed {
            session.manage(managed);
        }
        session.take_bytes(&rest);
        session
    }

    /// A session of an earlier process, which waits for a connection.
    pub fn restored(connection: Connection, restored: Restored) -> Session {
        let shared = connection.shared();
        let Restored { name, link, attached, notes, handled, landed, acknowledged, sent } = restored;
        let resumption = shared.resumable.enter_as(name, link.seat().owner.clone());
        let (wire, ingress) = (Wire::Gone, Ingress::new(Limits::BEFORE_LOGIN));
        let (lang, managed, out, rest) = (None, None, Vec::new(), Vec::new());
        let negotiated = Negotiated { wire, ingress, link, attached, lang, managed, out, rest };
        Session {
            management: Some(Box::new(StreamManagement::restored(handled, acknowledged, sent))),
            number: handled,
            noted: handled,
            resumption: Some(Box::new(resumption)),
            notes: Some(notes),
            past: Some(Box::new(Past { landed, over: false })),
            ..Session::new(connection, negotiated)
        }
    }

    /// Waits for a first connection; `None` if none came.
    pub async fn wait_first(self: Box<Self>) -> Option<Box<Session>> {
        self.go_on(End::Broken).await
    }

    /// Behind an end: the session with another connection, or `None` when all is over.
    pub async fn go_on(mut self: Box<Self>, end: End) -> Option<Box<Session>> {
        match self.outlive(end).await {
            Ok(()) => Some(self),
            // Boxed, because it is large and a session that waits for a connection does not need it.
            Err(end) => {
                Box::pin(self.end(end)).await;
                None
            }
        }
    }

    /// Goes on with another connection, if one comes.
    async fn outlive(&mut self, end: End) -> Result<(), End> {
        let resume = match end {
            End::Resumed(resume) => {
                let former = std::mem::replace(&mut self.wire, Wire::Gone);
                tokio::spawn(take_leave(former, self.ingress.framing(), self.shared.config.farewell_deadline));
                resume
            }
            // A stream that was closed is not resumed, also if nobody got as far as reading that.
            End::Broken if self.resumption.is_some() && !self.pending.has_close() => {
                self.wire = Wire::Gone;
                self.heed()?;
                self.wait().await?
            }
            end => return Err(end),
        };
        self.resume(*resume).await
    }

    /// Waits for another connection; what was being routed is completed meanwhile.
    async fn wait(&mut self) -> Result<Box<Resume>, End> {
        if !self.connection.part() {
            tracing::warn!(jid = %self.link.jid(), "a session ends with its connection: too many wait to be resumed");
            return Err(End::Broken);
        }
        let resume = self.wait_for_resume().await?;
        self.connection.join();
        Ok(resume)
    }

    async fn wait_for_resume(&mut self) -> Result<Box<Resume>, End> {
        self.link.detach();
        let mut expiry = std::pin::pin!(tokio::time::sleep(self.shared.config.resume));
        poll_fn(|cx| {
            self.poll_routing(cx);
            if let Err(end) = self.poll_tickets(cx) {
                return Poll::Ready(Err(end));
            }
            // Nothing is written that would do so, and others see what was handled.
            self.flush_notes();
            if let Poll::Ready(why) = self.link.poll_closed(cx) {
                return Poll::Ready(Err(closed(why)));
            }
            match self.poll_resume(cx) {
                Some(resume) => Poll::Ready(Ok(resume)),
                None => expiry.as_mut().poll(cx).map(|()| Err(End::Broken)),
            }
        })
        .await
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>) -> Option<Box<Resume>> {
        match self.resumption.as_mut()?.connections.poll_recv(cx) {
            Poll::Ready(resume) => resume,
            Poll::Pending => None,
        }
    }

    /// XEP-0198 §5: tells the client what is handled, and sends again what it lacks. What it sent and was not counted it
    /// sends again, so nothing of that may still be under way.
    async fn resume(&mut self, resume: Resume) -> Result<(), End> {
        self.link.detach();
        let settled = poll_fn(|cx| {
            self.poll_routing(cx);
            match self.poll_tickets(cx) {
                Ok(()) if self.tickets.is_empty() && self.routing.is_none() => Poll::Ready(Ok(())),
                Ok(()) => Poll::Pending,
                Err(end) => Poll::Ready(Err(end)),
            }
        });
        if let Err(end) = settled.await {
            resume.give_back(None);
            return Err(end);
        }
        self.link.attach();
        let Resume { wire, peer, ingress, rest, lang, handled, greeting, back: _ } = resume;
        self.connection.peer = Some(peer);
        (self.wire, self.ingress, self.lang) = (wire, ingress, lang);
        (self.pending, self.ending, self.deadline) =
            (Pending { acknowledged: Some(handled), ..Pending::default() }, None, None);
        (self.out, self.written) = (Vec::new(), 0);
        // Who knows the name of the stream has read what was written before it.
        self.all_written();
        self.heed()?;
        self.catch_up();
        let (Some(management), Some(resumption)) = (&mut self.management, &self.resumption) else { return Ok(()) };
        self.out.clear();
        self.number = management.handled();
        greeting.write(management.resume(&resumption.name), &mut self.out);
        self.link.in_flight().iter().for_each(|(_, envelope)| envelope.write(&mut self.out));
        management.ask(&mut self.out);
        self.take_bytes(&rest);
        Ok(())
    }

    /// The first connection after the process was started anew. What others have dealt with meanwhile does not come any
    /// more, and who came and went was not told.
    fn catch_up(&mut self) {
        let Some(past) = self.past.as_mut().filter(|past| !past.over) else { return };
        past.over = true;
        let there: BTreeSet<u64> = self.link.in_flight().into_iter().map(|(place, _)| place).collect();
        if let Some(management) = &mut self.management {
            management.retain(|place| there.contains(place));
        }
        self.notes.iter().for_each(|notes| notes.remains(there.iter().copied().collect()));
        self.routing =
            Some(Routing { route: self.link.returned(), size: 0, due: Due::Nothing, own: true, changes: false });
    }

    /// Lives until the stream ends or breaks, or another connection comes.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            match self.turn(cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(end) => return Poll::Ready(end),
            }
        }
    }

    /// Does everything that can be done without waiting, once; true if something was done.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if let Some(resume) = self.poll_resume(cx) {
            return Err(End::Resumed(resume));
        }
        self.poll_tickets(cx)?;
        let stuck = self.poll_write(cx)?;
        let mut moved = self.heed()?;
        self.hurry();
        moved |= self.poll_routing(cx);
        moved |= self.work_off(cx)?;
        if self.pending.items.is_empty()
            && self.routing.is_none()
            && let Some(end) = self.ending.take()
        {
            return Err(*end);
        }
        moved |= if stuck { self.poll_only_close(cx)? } else { self.poll_inbox(cx)? };
        self.poll_deadline(cx, stuck)?;
        moved |= self.can_read(cx) && self.poll_read(cx);
        if !moved && self.is_hopeless(cx) {
            return Err(self.sent_too_much());
        }
        Ok(moved)
    }

    /// The client's next acknowledgement stands behind more than is read, and that waits for the acknowledgement.
    fn is_hopeless(&self, cx: &mut Context<'_>) -> bool {
        self.is_held_up_by_much()
            && match &self.routing {
                Some(routing) => routing.own,
                None => !self.pending.begins_for_others(self.link.jid()),
            }
            && self.link.poll_room(cx).is_pending()
    }

    fn is_held_up_by_much(&self) -> bool {
        self.pending.bytes >= READ_FOR_ROOM && self.management.is_some() && self.link.is_held_up()
    }

    /// A client that can resume says then what it has, and loses nothing.
    fn sent_too_much(&self) -> End {
        let peer = self.connection.peer.map(tracing::field::display);
        tracing::info!(jid = %self.link.jid(), peer, "a client sends on and acknowledges nothing: its connection is cut");
        if self.resumption.is_some() {
            return End::Broken;
        }
        let text = "too much was sent before what was received is acknowledged";
        StreamError::new(StreamCondition::ResourceConstraint).text(text).into()
    }

    /// Whoever goes away is not to be fed on because what it makes for itself before has no room; and an acknowledgement
    /// makes room, however much stands before it.
    fn hurry(&mut self) {
        let hurries = self.pending.leaves > 0 || self.is_held_up_by_much();
        if hurries != self.hurried {
            self.hurried = hurries;
            self.link.hurry(hurries);
        }
    }

    fn can_read(&mut self, cx: &mut Context<'_>) -> bool {
        // The acknowledgement that it waits for stands behind what was sent before.
        let ahead = if self.management.is_some() && self.link.is_held_up() { READ_FOR_ROOM } else { READ_AHEAD };
        let wants = self.pending.bytes < ahead && self.ending.is_none();
        wants && self.disk.poll_open(&*self.shared.node.parts.store, cx)
    }

    /// Acknowledges and delivers what has become durable, in order.
    fn poll_tickets(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        while let Poll::Ready(Some((due, result))) = self.tickets.poll_next(cx) {
            self.complete(due, result)?;
        }
        Ok(())
    }

    /// Ready when nothing is being routed and no ticket is open, or when the store has failed.
    fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_routing(cx);
        let failed = self.poll_tickets(cx).is_err();
        let settled = self.tickets.is_empty() && self.routing.is_none();
        if failed || settled { Poll::Ready(()) } else { Poll::Pending }
    }

    fn complete(&mut self, due: Due, result: Result<(), StoreError>) -> Result<(), End> {
        if let Err(error) = result {
            tracing::error!(%error, jid = %self.link.jid(), "a stanza could not be saved");
            return Err(StreamError::new(StreamCondition::InternalServerError).text("the store failed").into());
        }
        let Some(management) = &mut self.management else { return Ok(()) };
        match due {
            Due::Nothing => return Ok(()),
            Due::Count => management.count_handled(),
            Due::Answer => management.answer(&mut self.out),
        }
        // What is not noted as handled is remembered one by one.
        if management.handled().is_multiple_of(32) {
            self.note_count();
        }
        Ok(())
    }

    /// Writes; true when the connection takes no more and much is waiting.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.out.is_empty() {
            return Ok(false);
        }
        self.flush_notes();
        let before = self.written;
        match self.wire.poll_write_all(cx, &self.out, &mut self.written) {
            Poll::Ready(Ok(())) => {
                (self.out, self.written) = (Vec::new(), 0);
                self.all_written();
                Ok(false)
            }
            Poll::Ready(Err(_)) => Err(End::Broken),
            Poll::Pending => {
                let stuck = self.out.len() >= HIGH_WATER;
                if stuck && self.written > before {
                    self.deadline = None;
                }
                Ok(stuck)
            }
        }
    }

    /// What is written is seen from now on; and whoever sees what came of a stanza does not have to send it again.
    fn flush_notes(&mut self) {
        self.note_count();
        self.shared.node.parts.journal.flush();
    }

    fn note_count(&mut self) {
        let (Some(notes), Some(management)) = (&self.notes, &self.management) else { return };
        let handled = management.handled();
        if self.noted != handled {
            self.noted = handled;
            notes.counted(handled);
        }
    }

    /// semantics.md: a recipient without stream management has a message when it is written.
    fn all_written(&mut self) {
        if self.writing.is_empty() {
            return;
        }
        let ids = std::mem::take(&mut self.writing);
        // Also what another session of the account had first, of which the account knows nothing any more.
        self.link.acked(&ids);
    }

    /// Takes what waits in the inbox and makes one write of it.
    fn poll_inbox(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut taken = Vec::new();
        match self.link.poll_deliver(cx, HIGH_WATER, &mut taken) {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(why)) => Err(closed(why)),
            Poll::Ready(Ok(())) => {
                self.deliver(taken);
                Ok(true)
            }
        }
    }

    /// While the client does not read, only the end of the session matters.
    fn poll_only_close(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        match self.link.poll_closed(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(why) => Err(closed(why)),
        }
    }

    fn deliver(&mut self, taken: Vec<(u64, Envelope)>) {
        if let Some(notes) = &self.notes {
            notes.sent(&taken);
        }
        let delivered = self.shared.node.parts.metrics.messages(Protocol::Xmpp, Outcome::Delivered);
        self.out.reserve(taken.iter().map(|(_, envelope)| envelope.weight()).sum());
        for (place, envelope) in taken {
            delivered.add(u64::from(envelope.stanza.kind() == Kind::Message));
            envelope.write(&mut self.out);
            match &mut self.management {
                Some(management) => management.sent(place),
                None if envelope.is_lasting() => self.writing.push(place),
                None => {}
            }
        }
        if let Some(management) = &mut self.management {
            management.ask(&mut self.out);
        }
    }

    /// Who has to acknowledge before it gets more, or takes nothing of what is being written, has so much time for it. It
    /// loses nothing.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, stuck: bool) -> Result<(), End> {
        let held_up = self.management.is_some() && self.link.is_held_up();
        if !held_up && !stuck {
            self.deadline = None;
            return Ok(());
        }
        let after = self.shared.config.acknowledge_deadline;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(after)));
        match deadline.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) if self.resumption.is_some() => Err(End::Broken),
            Poll::Ready(()) => {
                let text = "what was sent is not taken";
                Err(StreamError::new(StreamCondition::ConnectionTimeout).text(text).into())
            }
        }
    }

    /// Reads once; true when something came.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> bool {
        let Session { wire, ingress, pending, ending, .. } = self;
        let end = match wire.poll_read(cx, |bytes| read_all(bytes, ingress, pending, ending)) {
            Poll::Pending => return false,
            Poll::Ready(Ok(Some(()))) => return true,
            // A stream that can be resumed ends only when it is closed.
            Poll::Ready(_) if self.resumption.is_some() => End::Broken,
            Poll::Ready(Ok(None)) => End::Closed,
            Poll::Ready(Err(error)) => broken(&error),
        };
        // What was read before is dealt with first.
        self.ending.get_or_insert_with(|| Box::new(end));
        true
    }

    fn take_bytes(&mut self, bytes: &[u8]) {
        read_all(bytes, &mut self.ingress, &mut self.pending, &mut self.ending);
    }

    /// The stanza that is with the core; true when it is routed.
    fn poll_routing(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(routing) = &mut self.routing else { return false };
        let Poll::Ready(ticket) = routing.route.as_mut().poll(cx) else { return false };
        let Some(Routing { due, size, changes, .. }) = self.routing.take() else { return false };
        if let Some(notes) = self.notes.as_ref().filter(|_| changes) {
            self.link.note(notes);
        }
        self.tickets.push(ticket, due, size);
        true
    }

    /// Deals with what was read, as far as the window allows and there is room for the answers.
    fn work_off(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        while self.can_work(cx)
            && let Some(incoming) = self.pending.pop()
        {
            moved = true;
            match incoming {
                Incoming::Stanza(stanza) => self.stanza(stanza)?,
                Incoming::Refused(refused) => self.answer(refused.reply()),
                // RFC 6120 §4.9.1.1: an error ends the stream, and is not answered with another.
                Incoming::Element(element) if element.is(ns::STREAM, "error") => return Err(End::Closed),
                Incoming::Element(element) => self.element(&element)?,
                Incoming::Close => {
                    self.pending = Pending::default();
                    return Err(End::Closed);
                }
                Incoming::Header(_) => return Err(StreamError::from(StreamCondition::NotWellFormed).into()),
            }
            self.poll_routing(cx);
        }
        Ok(moved)
    }

    fn can_work(&self, cx: &mut Context<'_>) -> bool {
        !self.pending.items.is_empty()
            && self.routing.is_none()
            && !self.tickets.is_full()
            // The answer to a request tells that what was sent before it is durable.
            && (self.tickets.is_settled() || !self.pending.begins_with(Kind::Iq))
            && (self.out.len() < HIGH_WATER || !self.pending.begins_beside())
            && (self.pending.begins_for_others(self.link.jid()) || self.link.poll_room(cx).is_ready())
    }

    /// Another session has its resource.
    fn is_replaced(&self) -> bool {
        self.link.closed() == Some(Closed::Replaced)
    }

    fn stanza(&mut self, mut stanza: Arc<Stanza>) -> Result<(), End> {
        // What would act on the successor is not routed any more (RFC 6120 §7.7.2.2), so it must not count as handled.
        if self.management.is_some() && stanza.kind() != Kind::Message && self.is_replaced() {
            return Err(closed(Closed::Replaced));
        }
        c2s::stamp(&mut Arc::make_mut(&mut stanza).head, (self.link.jid(), self.lang.as_deref()))?;
        if let Some(reply) = c2s::session_reply(&stanza) {
            self.answer(Some(reply));
            return Ok(());
        }
        if stanza.kind() == Kind::Message {
            self.shared.node.parts.metrics.messages(Protocol::Xmpp, Outcome::Received).add(1);
        }
        let origin = if self.management.is_some() { Origin::Managed } else { Origin::Plain };
        let (size, due, own) = (stanza.raw().len() + 128, self.due(), !is_for_others(&stanza, self.link.jid()));
        if let Some(past) = &mut self.past
            && past.landed.remove(&self.number)
        {
            // It was handled before the process was started anew.
            self.tickets.push(Ticket::done(), due, 0);
            return Ok(());
        }
        let changes = stanza.kind() != Kind::Message;
        let mut envelope = Envelope::received(stanza, origin, self.shared.node.parts.clock.now_ms());
        if self.notes.is_some() {
            envelope.meta.number = self.number;
        }
        self.routing = Some(Routing { route: self.link.sent(envelope), size, due, own, changes });
        Ok(())
    }

    /// What the next stanza is owed.
    fn due(&mut self) -> Due {
        if self.management.is_none() {
            return Due::Nothing;
        }
        self.number = self.number.wrapping_add(1);
        Due::Count
    }

    /// An answer that the session itself gives, to a stanza that is dealt with by that.
    fn answer(&mut self, reply: Option<Stanza>) {
        let due = self.due();
        self.tickets.push(Ticket::done(), due, 0);
        if let Some(mut reply) = reply {
            reply.head.to = Some(self.link.jid().clone());
            self.link.answer(reply.into());
        }
    }

    /// Elements beside stanzas: stream management (XEP-0198); client state (XEP-0352) is taken and means nothing.
    fn element(&mut self, element: &Element) -> Result<(), End> {
        match SmRequest::read(element) {
            Some(SmRequest::Enable { resume }) => self.enable(resume),
            // XEP-0198 §5: before binding.
            Some(SmRequest::Resume { .. }) => sm::write_failed(&mut self.out, Condition::UnexpectedRequest),
            Some(SmRequest::Ask) if self.management.is_some() => self.tickets.push(Ticket::done(), Due::Answer, 0),
            // XEP-0198 §3: nothing is counted before it is enabled.
            Some(SmRequest::Ask) => sm::write_failed(&mut self.out, Condition::UnexpectedRequest),
            // Heeded when it was read.
            Some(SmRequest::Answer(_)) => {}
            None if element.ns() == ns::CSI => {}
            _ => return Err(StreamError::from(StreamCondition::UnsupportedStanzaType).into()),
        }
        Ok(())
    }

    fn enable(&mut self, resume: bool) {
        if self.management.is_some() {
            return sm::write_failed(&mut self.out, Condition::UnexpectedRequest);
        }
        // XEP-0198 §4: what goes out before the answer is not counted; it stays owed until it is written.
        let managed = Managed::new(&self.shared, &self.link.seat().owner, resume);
        sm::write_enabled(&mut self.out, managed.resumable(&self.shared));
        self.manage(managed);
    }

    /// From here on what is sent and received is counted (XEP-0198 §4).
    fn manage(&mut self, managed: Managed) {
        let config = &self.shared.config;
        let window = Bound { items: config.unacknowledged, bytes: config.unacknowledged_bytes };
        self.link.manage(window);
        self.management = Some(Box::default());
        self.resumption = managed.resumption;
        self.notes = self.resumption.as_ref().and_then(|resumption| {
            let notes = self.link.notes()?;
            notes.begin_new(&resumption.name, self.link.jid(), window);
            self.link.note(&notes);
            Some(notes)
        });
    }

    /// Heeds the client's last acknowledgement, wherever it stands in what was read; true if there was one.
    fn heed(&mut self) -> Result<bool, End> {
        let Some(h) = self.pending.acknowledged.take() else { return Ok(false) };
        let Some(management) = &mut self.management else { return Ok(true) };
        let places: Vec<u64> = management.acknowledge(h)?.collect();
        if !places.is_empty() {
            self.deadline = None;
        }
        if let Some(notes) = &self.notes {
            notes.acknowledged(places.len());
        }
        self.link.acked(&places);
        // While the client does not read, it is not asked again and again.
        if self.link.is_held_up() && self.out.len() < HIGH_WATER {
            management.ask(&mut self.out);
        }
        Ok(true)
    }

    /// Says goodbye, lets the open tickets complete, and gives back what the client did not get.
    async fn end(mut self: Box<Self>, end: End) {
        note(&end, &self.link, &self.connection);
        let deadline = self.shared.config.farewell_deadline;
        let concluding = self.resumption.take().map(|resumption| resumption.conclude(2 * deadline));
        // The next process goes on with it (XEP-0198 §5).
        let stops = self.link.closed() == Some(Closed::Shutdown) && !matches!(end, End::Closed);
        if let Some(notes) = self.notes.as_ref().filter(|_| !stops) {
            notes.end();
        }
        // What is still being routed waits for no room from here on.
        self.link.close(Closed::Gone);
        // Without stream management nobody hears what was not heeded.
        let unheard = self.is_replaced() && self.management.is_none();
        if matches!(end, End::Broken | End::Closed) || unheard {
            self.route_rest().await;
        }
        // A client that does not read its last words loses them.
        if let Ok(true) = tokio::time::timeout(deadline, self.farewell(&end)).await {
            self.all_written();
        }
        let handled = self.management.as_ref().map_or(0, |management| management.handled());
        let Session { shared, mut wire, link, entered, tickets, routing, notes, .. } = *self;
        drain((tickets, routing), (handled, concluding), shared.node.parts.metrics.clone());
        let left = match notes.filter(|_| stops) {
            Some(_) => link.suspend(),
            None => link.end(Vec::new()).await,
        };
        if let Err(error) = left.complete().await {
            tracing::error!(%error, jid = %link.jid(), "what a session left could not be kept");
        }
        drop(entered);
        let mut said = false;
        let _ = tokio::time::timeout(deadline, poll_fn(|cx| wire.poll_hang_up(cx, &mut said))).await;
    }

    /// Whatever was read before the connection broke is routed, so that nothing depends on how soon that is noticed.
    async fn route_rest(&mut self) {
        while let Some(incoming) = self.pending.pop() {
            let Incoming::Stanza(stanza) = incoming else { continue };
            poll_fn(|cx| self.poll_settled(cx)).await;
            if self.stanza(stanza).is_err() {
                return;
            }
        }
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
        self.flush_notes();
        match end {
            End::Broken | End::Resumed(_) => {}
            End::Closed => self.ingress.framing().write_close(&mut self.out),
            End::Error(error) => self.ingress.framing().write_error(error, &mut self.out),
        }
        poll_fn(|cx| self.wire.poll_write_all(cx, &self.out, &mut self.written)).await.is_ok()
    }
}

/// XEP-0198 §5: the former connection of a session that was resumed ends with a conflict.
async fn take_leave(mut wire: Wire, framing: Framing, deadline: Duration) {
    let (mut out, mut done, mut said) = (Vec::new(), 0, false);
    let text = "the stream was resumed over another connection";
    framing.write_error(&StreamError::new(StreamCondition::Conflict).text(text), &mut out);
    // A client that does not read its last words loses them.
    let _ = tokio::time::timeout(deadline, async {
        let _ = poll_fn(|cx| wire.poll_write_all(cx, &out, &mut done)).await;
        poll_fn(|cx| wire.poll_hang_up(cx, &mut said)).await;
    })
    .await;
}

/// Completes what is open, in order, in a task of its own, and says how much was `handled` then (XEP-0198 §5).
fn drain(
    (mut tickets, mut routing): (TicketQueue<Due>, Option<Routing>),
    (mut handled, concluding): (u32, Option<oneshot::Sender<u32>>),
    metrics: Arc<Metrics>,
) {
    // Nobody may wait for that any more.
    let conclude = |handled| concluding.map(|say| say.send(handled));
    if tickets.is_empty() && routing.is_none() {
        conclude(handled);
        return;
    }
    metrics.draining.add(1);
    tokio::spawn(async move {
        while let Some((due, result)) = poll_fn(|cx| poll_rest(cx, &mut tickets, &mut routing)).await {
            match result {
                Ok(()) => handled = handled.wrapping_add(u32::from(due == Due::Count)),
                // What is behind it does not count.
                Err(_) => break,
            }
        }
        conclude(handled);
        while poll_fn(|cx| poll_rest(cx, &mut tickets, &mut routing)).await.is_some() {}
        metrics.draining.sub(1);
    });
}

/// The next ticket that is complete, that of what is being routed last.
fn poll_rest(
    cx: &mut Context<'_>,
    tickets: &mut TicketQueue<Due>,
    routing: &mut Option<Routing>,
) -> Poll<Option<(Due, Result<(), StoreError>)>> {
    if let Some(open) = routing
        && let Poll::Ready(ticket) = open.route.as_mut().poll(cx)
    {
        tickets.push(ticket, open.due, open.size);
        *routing = None;
    }
    match tickets.poll_next(cx) {
        Poll::Ready(None) if routing.is_some() => Poll::Pending,
        polled => polled,
    }
}

/// Reads everything that is complete.
fn read_all(bytes: &[u8], ingress: &mut Ingress, pending: &mut Pending, ending: &mut Option<Box<End>>) {
    let mut input = bytes;
    while ending.is_none() {
        match ingress.next(&mut input) {
            Ok(Some(incoming)) => pending.push(incoming),
            Ok(None) => return,
            Err(error) => *ending = Some(Box::new(End::Error(error))),
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

fn note(end: &End, link: &Link, connection: &Connection) {
    let (jid, peer) = (link.jid().as_str(), connection.peer.map(tracing::field::display));
    match end {
        End::Error(error) => {
            // These two are no fault of the client.
            let blameless = [StreamCondition::SystemShutdown, StreamCondition::Conflict].contains(&error.condition);
            connection.shared().node.parts.metrics.protocol_errors.add(u64::from(!blameless));
            match error.condition {
                StreamCondition::SystemShutdown => tracing::debug!(jid, peer, %error, "a stream ended"),
                StreamCondition::Conflict => tracing::info!(jid, peer, %error, "a session was replaced"),
                _ => tracing::info!(jid, peer, %error, "a stream was ended"),
            }
        }
        End::Broken => tracing::debug!(jid = %link.jid(), "a connection broke"),
        End::Closed | End::Resumed(_) => {}
    }
}
