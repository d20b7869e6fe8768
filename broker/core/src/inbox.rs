//! The seat of one XMPP session or bot, as senders and its connection see it: a [`Backlog`] behind a lock, with wakers.

use crate::{
    backlog::{Backlog, Bound},
    envelope::Envelope,
    mailbox::Closed,
    metrics::{Metrics, Outcome, Protocol},
};
use hashbrown::HashSet;
use parking_lot::Mutex;
use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tavi_store::IdSource;
use tavi_xmpp_proto::jid::Jid;

/// What is owed to one session or bot. No sender ever waits.
pub struct Inbox {
    state: Mutex<State>,
    ids: Arc<IdSource>,
    memory: Bound,
    /// Where it is counted what was dropped.
    counts: Option<(Arc<Metrics>, Protocol)>,
}

struct State {
    backlog: Backlog<Envelope>,
    /// Everything taken is in flight until acknowledged (XEP-0198); else only messages.
    managed: bool,
    /// Nobody takes anything for now.
    detached: bool,
    /// Its own session goes away, behind what it makes for itself.
    hurried: bool,
    /// Something was dropped, and the log says so.
    lossy: bool,
    closed: Option<Closed>,
    waker: Option<Waker>,
    /// The receiver, when it waits for nothing but the end.
    closer: Option<Waker>,
    /// Its own sender, when it waits for room.
    maker: Option<Waker>,
    /// Others who wait for space.
    feeders: Vec<Waker>,
}

/// Without acknowledgements the receiver itself is the window: it takes what it can write.
const OPEN: Bound = Bound { items: usize::MAX, bytes: usize::MAX };

impl Inbox {
    /// An empty one, with so much room in memory. `ids` draws places for what has none.
    pub fn new(memory: Bound, ids: Arc<IdSource>) -> Inbox {
        let state = State {
            backlog: Backlog::new(memory, OPEN),
            managed: false,
            detached: false,
            hurried: false,
            lossy: false,
            closed: None,
            waker: None,
            closer: None,
            maker: None,
            feeders: Vec::new(),
        };
        Inbox { state: Mutex::new(state), ids, memory, counts: None }
    }

    /// The same, and it is counted what is dropped.
    pub(crate) fn counted(mut self, metrics: Arc<Metrics>, protocol: Protocol) -> Inbox {
        self.counts = Some((metrics, protocol));
        self
    }

    /// From now on what is taken stays in flight until it is acknowledged, and so much may be in flight.
    pub fn manage(&self, window: Bound) {
        let mut state = self.state.lock();
        state.managed = true;
        state.backlog.attach(window);
    }

    /// Whether everything taken is in flight until it is acknowledged.
    pub(crate) fn is_managed(&self) -> bool {
        self.state.lock().managed
    }

    /// Puts an envelope at the end.
    ///
    /// # Errors
    /// The envelope, if the seat is closed or has no room and it is not stored.
    pub fn push(&self, envelope: Envelope) -> Result<(), Box<Envelope>> {
        let mut state = self.state.lock();
        let id = self.place(&envelope);
        self.put(&mut state, id, envelope)
    }

    /// The same for what nobody keeps: see [`give_up`](Self::give_up).
    pub fn push_or_close(&self, envelope: Envelope) {
        if let Err(envelope) = self.push(envelope) {
            // It ends here either way.
            let _ = self.give_up(envelope);
        }
    }

    /// There is no room for something that nobody keeps. What is fleeting is dropped and counted; anything else cuts the
    /// receiver off and comes back.
    pub(crate) fn give_up(&self, envelope: Box<Envelope>) -> Result<(), Box<Envelope>> {
        let mut state = self.state.lock();
        if state.closed.is_none() && envelope.is_fleeting() {
            self.dropped(&mut state, 1, &envelope);
            return Ok(());
        }
        state.close(Closed::Overflow);
        Err(envelope)
    }

    fn dropped(&self, state: &mut State, count: usize, envelope: &Envelope) {
        if let Some((metrics, protocol)) = &self.counts {
            metrics.messages(*protocol, Outcome::Dropped).add(count as u64);
        }
        if count > 0 && !std::mem::replace(&mut state.lossy, true) {
            let to = envelope.to().map(Jid::as_str).unwrap_or_default();
            tracing::warn!(to, "a session does not read: headlines, events and copies for it are dropped");
        }
    }

    /// Notes that something is coming under `id`; nothing behind it leaves before. False if the seat is closed.
    pub(crate) fn coming(&self, id: u64) -> bool {
        let mut state = self.state.lock();
        if state.closed.is_none() {
            state.backlog.coming(id);
        }
        state.closed.is_none()
    }

    /// Draws the next place and notes that something is coming under it; `None` if the seat is closed.
    pub(crate) fn reserve(&self) -> Option<u64> {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return None;
        }
        let id = self.ids.next(0);
        state.backlog.coming(id);
        Some(id)
    }

    /// What was coming is there; gives it back like [`push`](Self::push).
    pub(crate) fn landed(&self, id: u64, envelope: Envelope) -> Result<(), Box<Envelope>> {
        self.put(&mut self.state.lock(), id, envelope)
    }

    /// What was coming will not come.
    pub(crate) fn failed(&self, id: u64) {
        let mut state = self.state.lock();
        state.backlog.failed(id);
        state.wake_receiver();
    }

    fn place(&self, envelope: &Envelope) -> u64 {
        match envelope.meta.place {
            place if place != 0 && envelope.is_lasting() => place,
            _ => self.ids.next(0),
        }
    }

    fn put(&self, state: &mut State, id: u64, envelope: Envelope) -> Result<(), Box<Envelope>> {
        if state.closed.is_some() {
            return Err(Box::new(envelope));
        }
        let mut result = state.backlog.landed(id, envelope).map_err(Box::new);
        // What is fleeting itself pushes nothing out.
        if let Err(envelope) = result {
            let (thinned, fleeting) =
                if envelope.is_fleeting() { (false, 0) } else { thin_out(&mut state.backlog, &envelope) };
            self.dropped(state, fleeting, &envelope);
            result = if thinned { state.backlog.landed(id, *envelope).map_err(Box::new) } else { Err(envelope) };
        }
        // What was behind it may go even if it itself did not stay.
        state.wake_receiver();
        result
    }

    /// The rows behind `after` are for this seat.
    pub(crate) fn hand_over(&self, after: u64) {
        self.state.lock().backlog.hand_over(after);
    }

    /// See [`Backlog::knows`].
    pub(crate) fn has(&self, id: u64) -> bool {
        self.state.lock().backlog.knows(id)
    }

    /// See [`Backlog::wants`].
    pub(crate) fn wants(&self) -> Option<u64> {
        let mut state = self.state.lock();
        if state.closed.is_some() { None } else { state.backlog.wants() }
    }

    /// Whether rows have to be read for it, now or when there is room.
    pub fn is_behind(&self) -> bool {
        self.state.lock().backlog.is_behind()
    }

    /// See [`Backlog::page`].
    pub(crate) fn page(&self, rows: Vec<(u64, Envelope)>, upto: u64, end: bool) {
        let mut state = self.state.lock();
        state.backlog.page(rows, upto, end);
        state.wake_receiver();
    }

    /// See [`Backlog::page_failed`].
    pub(crate) fn page_failed(&self) {
        self.state.lock().backlog.page_failed();
    }

    /// The receiver has this one for good.
    pub fn acknowledge(&self, id: u64) -> Option<Envelope> {
        self.state.lock().acknowledge(id)
    }

    /// Another session of the account has it for good. A managed receiver's count does not change by that; for nobody
    /// it is coming any more.
    pub(crate) fn settled(&self, id: u64) {
        let mut state = self.state.lock();
        state.backlog.failed(id);
        if state.managed {
            state.wake_receiver();
        } else {
            state.acknowledge(id);
        }
    }

    /// It was taken before the process was started anew.
    pub(crate) fn was_sent(&self, id: u64, envelope: Envelope) {
        self.state.lock().backlog.was_sent(id, envelope);
    }

    /// What the receiver has to acknowledge, in the order in which it was taken.
    pub fn sent(&self) -> Vec<(u64, Envelope)> {
        self.state.lock().backlog.sent().map(|(place, envelope)| (place, envelope.clone())).collect()
    }

    /// The connection is gone: what its own session still makes waits for no room.
    pub fn detach(&self) {
        let mut state = self.state.lock();
        state.detached = true;
        if let Some(maker) = state.maker.take() {
            maker.wake();
        }
    }

    /// There is a connection again.
    pub fn attach(&self) {
        self.state.lock().detached = false;
    }

    /// The session says that it goes away, behind what it makes for itself: for that it may take the other half of the room,
    /// too.
    pub(crate) fn hurry(&self, on: bool) {
        let mut state = self.state.lock();
        state.hurried = on;
        if let Some(maker) = state.maker.take() {
            maker.wake();
        }
    }

    /// Whether the session waits for a connection.
    pub(crate) fn is_detached(&self) -> bool {
        self.state.lock().detached
    }

    /// Closes it for senders. What waits can still be received. The first reason stands.
    pub fn close(&self, why: Closed) {
        self.state.lock().close(why);
    }

    /// Why it is closed, if it is.
    pub fn closed(&self) -> Option<Closed> {
        self.state.lock().closed
    }

    /// The end of the seat: all that is owed and in memory, with its places.
    pub(crate) fn end(&self) -> Vec<(u64, Envelope)> {
        self.state.lock().backlog.end()
    }

    /// Moves what may leave into `out`, with its places, as far as about `bytes`. Ready with `Err` once it is closed
    /// and empty; pending when nothing may leave.
    pub fn poll_take(
        &self,
        cx: &mut Context<'_>,
        bytes: usize,
        out: &mut Vec<(u64, Envelope)>,
    ) -> Poll<Result<(), Closed>> {
        let mut state = self.state.lock();
        if state.take(bytes, out) {
            return Poll::Ready(Ok(()));
        }
        if let Some(why) = state.closed {
            return Poll::Ready(Err(why));
        }
        keep(&mut state.waker, cx);
        Poll::Pending
    }

    /// Ready with the reason once it is closed, whatever still waits in it. For a receiver that can not take anything
    /// just now: items do not wake it, the end does.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<Closed> {
        let mut state = self.state.lock();
        if let Some(why) = state.closed {
            return Poll::Ready(why);
        }
        keep(&mut state.closer, cx);
        Poll::Pending
    }

    /// Takes what may leave, without waiting.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Vec<Envelope> {
        let mut taken = Vec::new();
        self.state.lock().take(usize::MAX, &mut taken);
        taken.into_iter().map(|(_, envelope)| envelope).collect()
    }

    /// Whether its own session may make more for it: less than half the room in memory is taken (of one that goes away,
    /// less than all), it is closed, or what takes the room cannot leave yet.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        let (backlog, full) = (&state.backlog, state.has_taken(self.memory, if state.hurried { 1 } else { 2 }));
        if !full || state.detached || state.closed.is_some() || !backlog.is_ready() {
            return Poll::Ready(());
        }
        keep(&mut state.maker, cx);
        Poll::Pending
    }

    /// Ready when less than half the room in memory is taken and there is room for so many `bytes` more, or nothing waits,
    /// whatever the receiver has to do for that: for somebody who hands over a long list.
    ///
    /// # Errors
    /// The reason, once it is closed.
    pub fn poll_space(&self, bytes: usize, cx: &Context<'_>) -> Poll<Result<(), Closed>> {
        let mut state = self.state.lock();
        if let Some(why) = state.closed {
            return Poll::Ready(Err(why));
        }
        let fits = state.backlog.bytes().saturating_add(bytes) <= self.memory.bytes;
        if state.backlog.is_empty() || (fits && !state.has_taken(self.memory, 2)) {
            return Poll::Ready(Ok(()));
        }
        if !state.feeders.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.feeders.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether the receiver has to acknowledge before it gets more.
    pub fn is_held_up(&self) -> bool {
        self.state.lock().backlog.is_held_up()
    }

    /// How many envelopes wait in memory.
    pub fn len(&self) -> usize {
        self.state.lock().backlog.len()
    }
}

impl State {
    /// Whether one part of so many of the room is taken: 2 for a half.
    fn has_taken(&self, memory: Bound, parts: usize) -> bool {
        self.backlog.len() * parts >= memory.items.max(2) || self.backlog.bytes() * parts >= memory.bytes
    }

    fn close(&mut self, why: Closed) {
        self.closed.get_or_insert(why);
        self.wake_all();
    }

    /// True if something left.
    fn take(&mut self, bytes: usize, out: &mut Vec<(u64, Envelope)>) -> bool {
        use crate::mailbox::Weigh;
        let (before, mut taken) = (out.len(), 0);
        while taken < bytes
            && let Some(given) = self.backlog.next()
        {
            taken += given.item.weight();
            if !self.managed && !given.item.is_lasting() {
                self.backlog.acknowledge(given.id);
            }
            out.push((given.id, given.item));
        }
        let makers = self.maker.take().into_iter().chain(self.feeders.drain(..));
        makers.for_each(Waker::wake);
        out.len() > before
    }

    fn acknowledge(&mut self, id: u64) -> Option<Envelope> {
        let envelope = self.backlog.acknowledge(id);
        // The account remembers what is being deleted.
        self.backlog.deleted(id);
        self.wake_receiver();
        envelope
    }

    fn wake_receiver(&mut self) {
        if self.backlog.is_ready()
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }

    fn wake_all(&mut self) {
        let wakers = [self.waker.take(), self.closer.take(), self.maker.take()];
        wakers.into_iter().flatten().chain(self.feeders.drain(..)).for_each(Waker::wake);
    }
}

/// When there is no room, what is fleeting goes; and of presences that wait, only the last of each sender says anything
/// (RFC 6121 §4), so those before it go. Whether that gave enough room to be worth looking through all of it, and how much
/// of it was fleeting.
fn thin_out(backlog: &mut Backlog<Envelope>, coming: &Envelope) -> (bool, usize) {
    let (waited, mut fleeting) = (backlog.len(), 0);
    let mut seen: HashSet<Jid> = coming.own_presence().into_iter().cloned().collect();
    let went = backlog.thin_out(|envelope| {
        fleeting += usize::from(envelope.is_fleeting());
        !envelope.is_fleeting() && envelope.own_presence().is_none_or(|from| seen.insert(from.clone()))
    });
    (went > waited / 16 || fleeting > 0, fleeting)
}

fn keep(slot: &mut Option<Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

#[cfg(test)]
mod tests;
