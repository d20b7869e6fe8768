//! The promise that all that must be durable is: what `route` and `publish` return, and the window of open ones.

use crate::{landing::Deed, metrics::Metrics};
use smallvec::SmallVec;
use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tavi_store::{Commit, StoreError};

/// Saves that may begin only when all before them have landed.
pub type Stage = Box<dyn FnOnce() -> Vec<Commit> + Send>;

/// Complete when all that must be durable is. Saves come first, then the deliveries, then the acknowledgement.
///
/// The holder polls it; on completion the deliveries run inside that poll. A ticket must not be dropped
/// unfinished: a session that ends hands its window to [`TicketQueue::drain`].
#[must_use = "the deliveries run when the ticket is polled to its end"]
#[derive(Default)]
pub struct Ticket {
    commits: SmallVec<[Commit; 2]>,
    stages: VecDeque<Stage>,
    landings: SmallVec<[Deed; 1]>,
    deliveries: SmallVec<[Deed; 1]>,
    /// What is dealt with elsewhere: only the acknowledgement waits for it.
    late: Vec<Commit>,
    /// Resolves when all its saves are handed in.
    made: Option<Commit>,
    failed: Option<StoreError>,
}

impl Ticket {
    /// A ticket with nothing to wait for.
    pub fn done() -> Ticket {
        Ticket::default()
    }

    /// A ticket that already failed.
    pub fn failed(error: StoreError) -> Ticket {
        Ticket { failed: Some(error), ..Ticket::default() }
    }

    /// Adds a commit to be waited for.
    pub fn wait_for(&mut self, commit: Commit) {
        self.commits.push(commit);
    }

    /// Not all of its saves are handed in; that they are is told here.
    pub(crate) fn is_made(&mut self, made: Commit) {
        self.made = Some(made);
    }

    /// Adds saves that begin when all that was added before has landed, still before the deliveries: what a restart
    /// repeats, or the note that nothing of this has to be repeated.
    pub fn save_next(&mut self, stage: Stage) {
        self.stages.push_back(stage);
    }

    /// Adds something that is dealt with in a task of its own, such as a slow answer: neither the deliveries nor anything
    /// behind this ticket wait for it, only the acknowledgement does.
    pub fn wait_late(&mut self, commit: Commit) {
        self.late.push(commit);
    }

    /// Adds something that is done as soon as all commits have landed, though other tickets of the same sender are
    /// open before this one: what has its place in the receiver's order already. If it is dropped instead, it fails.
    pub(crate) fn land(&mut self, landing: impl Into<Deed>) {
        self.landings.push(landing.into());
    }

    /// Adds something to be done after all commits, and after what the sender's earlier tickets deliver.
    pub(crate) fn then(&mut self, deliver: impl Into<Deed>) {
        self.deliveries.push(deliver.into());
    }

    /// Adds all of another ticket.
    pub fn join(&mut self, other: Ticket) {
        self.commits.extend(other.commits);
        self.stages.extend(other.stages);
        self.landings.extend(other.landings);
        self.deliveries.extend(other.deliveries);
        self.late.extend(other.late);
        self.made = other.made.or(self.made.take());
        self.failed = self.failed.take().or(other.failed);
    }

    /// Whether nothing has to be saved before the deliveries.
    pub fn is_ready(&self) -> bool {
        self.commits.is_empty() && self.stages.is_empty()
    }

    /// Whether nobody has to wait: polling it completes it at once.
    pub(crate) fn is_done(&self) -> bool {
        self.is_ready() && self.late.is_empty()
    }

    /// Advances it; when the last commit has landed, the deliveries run and the result is given. A publication waits besides
    /// if many before it in its topic are not delivered, so that its sender is not faster than its receivers are served. A failed save delivers nothing, so that the sender may repeat it.
    pub fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StoreError>> {
        ready!(self.poll_delivered(cx));
        let Ticket { late, failed, .. } = self;
        if failed.is_none() {
            late.retain_mut(|commit| is_open(commit, failed, cx));
            if !late.is_empty() {
                return Poll::Pending;
            }
        }
        Poll::Ready(self.failed.take().map_or(Ok(()), Err))
    }

    fn is_delivered(&self) -> bool {
        self.is_ready() && self.landings.is_empty() && self.deliveries.is_empty() && self.failed.is_none()
    }

    /// Ready when all is saved and delivered that is not late, or has failed.
    fn poll_delivered(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.poll_saves(cx));
            if self.finish() {
                return Poll::Ready(());
            }
        }
    }

    /// Saves on, though tickets before it are open, and lets land what waits for nothing else.
    fn poll_landings(&mut self, cx: &mut Context<'_>) {
        if self.poll_saves(cx).is_ready() && self.failed.is_none() {
            self.landings.drain(..).for_each(|landing| drop(landing.run()));
        }
    }

    /// For a ticket that still grows, while its sender has to wait: lets land, or fail, what has its place with others and
    /// waits for nothing but commits that have landed.
    pub(crate) fn land_early(&mut self, cx: &mut Context<'_>) {
        if self.landings.is_empty() || !self.stages.is_empty() || self.poll_commits(cx).is_pending() {
            return;
        }
        match self.failed {
            None => self.landings.drain(..).for_each(|landing| drop(landing.run())),
            Some(_) => self.landings.clear(),
        }
    }

    fn poll_saves(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.poll_commits(cx));
            let stage = if self.failed.is_none() { self.stages.pop_front() } else { None };
            let Some(stage) = stage else { return Poll::Ready(()) };
            self.commits.extend(stage());
        }
    }

    /// Polls the first commit only, until it has landed: they land in about their order, and there may be thousands.
    fn poll_commits(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.made.as_mut().is_some_and(|made| Pin::new(made).poll(cx).is_ready()) {
            self.made = None;
            // Its sender may go on.
            cx.waker().wake_by_ref();
        }
        let Ticket { commits, failed, .. } = self;
        let first = commits.iter_mut().position(|commit| is_open(commit, failed, cx));
        commits.drain(..first.unwrap_or(commits.len()));
        if commits.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Delivers what is left, or nothing after a failure. False: something is still to be waited for.
    fn finish(&mut self) -> bool {
        if self.failed.is_some() {
            self.stages.clear();
            self.landings.clear();
            self.deliveries.clear();
            return true;
        }
        self.commits.extend(self.landings.drain(..).chain(self.deliveries.drain(..)).filter_map(Deed::run));
        self.commits.is_empty()
    }

    /// Waits for it.
    ///
    /// # Errors
    /// The first commit that failed; then nothing was delivered.
    pub async fn complete(mut self) -> Result<(), StoreError> {
        poll_fn(|cx| self.poll_done(cx)).await
    }
}

/// Polls a commit: whether it is still open. The first failure stays.
fn is_open(commit: &mut Commit, failed: &mut Option<StoreError>, cx: &mut Context<'_>) -> bool {
    match Pin::new(commit).poll(cx) {
        Poll::Pending => true,
        Poll::Ready(result) => {
            if let Err(error) = result {
                failed.get_or_insert(error);
            }
            false
        }
    }
}

/// The most tickets that a session keeps open.
pub const WINDOW_TICKETS: usize = 64;
/// The most bytes of the sender's stanzas or packets that a session keeps open.
pub const WINDOW_BYTES: usize = 256 * 1024;

/// A session's open tickets, in the order of their senders' packets, each with what acknowledges it.
pub struct TicketQueue<A> {
    open: VecDeque<(Ticket, A, usize)>,
    bytes: usize,
}

impl<A> Default for TicketQueue<A> {
    fn default() -> TicketQueue<A> {
        TicketQueue { open: VecDeque::new(), bytes: 0 }
    }
}

impl<A> TicketQueue<A> {
    /// Puts a ticket at the end. `bytes` is the size of the packet that it is for.
    pub fn push(&mut self, ticket: Ticket, ack: A, bytes: usize) {
        self.bytes += bytes;
        if self.open.len() == 4 {
            // More than a few: soon half a window.
            self.open.reserve(WINDOW_TICKETS / 2);
        }
        self.open.push_back((ticket, ack, bytes));
    }

    /// Whether the session must stop reading until a ticket completes, or until the last one's saves are handed in.
    pub fn is_full(&self) -> bool {
        let is_making = self.open.back().is_some_and(|(ticket, ..)| ticket.made.is_some());
        self.open.len() >= WINDOW_TICKETS || self.bytes >= WINDOW_BYTES || is_making
    }

    /// Whether no ticket is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// How many tickets are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// The next ticket in order that is complete, with its result. `Ready(None)` if none is open.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(A, Result<(), StoreError>)>> {
        let Some((ticket, ..)) = self.open.front_mut() else { return Poll::Ready(None) };
        let Poll::Ready(result) = ticket.poll_done(cx) else {
            self.poll_others(cx);
            return Poll::Pending;
        };
        let Some((_, ack, bytes)) = self.open.pop_front() else { return Poll::Ready(None) };
        self.bytes -= bytes;
        if self.open.is_empty() {
            // An idle session keeps no memory for this.
            self.open = VecDeque::new();
        }
        Poll::Ready(Some((ack, result)))
    }

    /// Those behind the first deliver in their order as soon as all before them have delivered; what has its place lands
    /// before that.
    fn poll_others(&mut self, cx: &mut Context<'_>) {
        let mut in_turn = true;
        for (ticket, ..) in &mut self.open {
            if in_turn {
                in_turn = ticket.poll_delivered(cx).is_ready() && ticket.failed.is_none();
            } else {
                ticket.poll_landings(cx);
            }
        }
    }

    /// Whether all that was pushed is saved and delivered, as far as anybody has to wait for it: what is open still waits
    /// for late answers only. To be asked after [`poll_next`](Self::poll_next).
    pub fn is_settled(&self) -> bool {
        self.open.iter().all(|(ticket, ..)| ticket.is_delivered())
    }

    /// The end of a session: completes all open tickets in order, in a task of its own.
    pub fn drain(mut self, metrics: Arc<Metrics>)
    where
        A: Send + 'static,
    {
        if self.is_empty() {
            return;
        }
        metrics.draining.add(1);
        tokio::spawn(async move {
            while poll_fn(|cx| self.poll_next(cx)).await.is_some() {}
            metrics.draining.sub(1);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::task::Waker;

    type Log = Arc<Mutex<Vec<&'static str>>>;

    fn says(log: &Log, word: &'static str) -> Deed {
        let log = log.clone();
        Deed::Test(Box::new(move || log.lock().push(word)))
    }

    fn poll<A>(queue: &mut TicketQueue<A>) -> Option<(A, Result<(), StoreError>)> {
        match queue.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => done,
            Poll::Pending => None,
        }
    }

    #[test]
    fn deliveries_and_acknowledgements_keep_the_sender_s_order() {
        let log = Log::default();
        let mut queue = TicketQueue::default();
        let (slot, commit) = Commit::pending();
        let mut first = Ticket::done();
        first.wait_for(commit);
        first.then(says(&log, "first"));
        let mut second = Ticket::done();
        second.then(says(&log, "second"));
        queue.push(first, 1, 10);
        queue.push(second, 2, 10);

        assert!(poll(&mut queue).is_none(), "the second waits behind the first");
        slot.resolve(Ok(()));
        assert_eq!(poll(&mut queue), Some((1, Ok(()))));
        assert_eq!(poll(&mut queue), Some((2, Ok(()))));
        assert_eq!(*log.lock(), ["first", "second"]);
    }

    #[test]
    fn a_queue_without_tickets_holds_no_memory() {
        let mut queue = TicketQueue::default();
        queue.push(Ticket::done(), 1, 10);
        assert!(queue.open.capacity() > 0);
        assert_eq!(poll(&mut queue), Some((1, Ok(()))));
        assert_eq!(queue.open.capacity(), 0);
    }

    #[test]
    fn what_has_its_place_lands_with_its_own_commit() {
        let log = Log::default();
        let ((_slot, commit), (second_slot, second_commit)) = (Commit::pending(), Commit::pending());
        let mut first = Ticket::done();
        first.wait_for(commit);
        let mut second = Ticket::done();
        second.wait_for(second_commit);
        second.land(says(&log, "landed"));
        second.then(says(&log, "never"));
        let mut queue = TicketQueue::default();
        queue.push(first, 1, 10);
        queue.push(second, 2, 10);
        assert!(poll(&mut queue).is_none() && log.lock().is_empty());
        second_slot.resolve(Ok(()));
        assert!(poll(&mut queue).is_none(), "the first is open");
        assert_eq!(*log.lock(), ["landed"]);
    }

    #[test]
    fn a_ticket_that_still_grows_holds_no_place_longer_than_its_commits_take() {
        let (log, mut cx) = (Log::default(), Context::from_waker(Waker::noop()));
        let ((slot, commit), mut ticket) = (Commit::pending(), Ticket::done());
        ticket.wait_for(commit);
        ticket.land(says(&log, "landed"));
        ticket.then(says(&log, "delivery"));
        ticket.land_early(&mut cx);
        assert!(log.lock().is_empty());
        slot.resolve(Ok(()));
        ticket.land_early(&mut cx);
        assert_eq!(*log.lock(), ["landed"]);
        let (_, commit) = Commit::pending();
        ticket.wait_for(commit);
        assert!(!ticket.is_ready(), "it goes on");

        let (place, mut ticket) = (Arc::new(()), Ticket::done());
        ticket.wait_for(Commit::ready(Err(StoreError::Unavailable("full".into()))));
        let held = place.clone();
        ticket.land(Deed::Test(Box::new(move || drop(held))));
        ticket.land_early(&mut cx);
        assert_eq!(Arc::strong_count(&place), 1, "what failed holds no place either");
        assert!(matches!(ticket.poll_done(&mut cx), Poll::Ready(Err(_))));
    }

    #[test]
    fn what_is_late_holds_up_nothing_but_its_own_acknowledgement_and_those_behind() {
        let log = Log::default();
        let (slot, late) = Commit::pending();
        let (second_slot, second_commit) = Commit::pending();
        let mut first = Ticket::done();
        first.then(says(&log, "first"));
        first.wait_late(late);
        assert!(first.is_ready() && !first.is_done());
        let mut second = Ticket::done();
        second.wait_for(second_commit);
        second.then(says(&log, "second"));
        let mut queue = TicketQueue::default();
        queue.push(first, 1, 1);
        queue.push(second, 2, 1);
        assert!(poll(&mut queue).is_none() && !queue.is_settled());
        assert_eq!(*log.lock(), ["first"]);
        second_slot.resolve(Ok(()));
        assert!(poll(&mut queue).is_none() && queue.is_settled());
        assert_eq!(*log.lock(), ["first", "second"]);
        slot.resolve(Err(StoreError::Unavailable("full".into())));
        assert!(matches!(poll(&mut queue), Some((1, Err(_)))));
        assert_eq!(poll(&mut queue), Some((2, Ok(()))));
    }

    #[test]
    fn a_failed_save_delivers_nothing() {
        let log = Log::default();
        let mut ticket = Ticket::done();
        ticket.wait_for(Commit::ready(Err(StoreError::Unavailable("full".into()))));
        ticket.then(says(&log, "never"));
        let mut queue = TicketQueue::default();
        queue.push(ticket, (), 1);
        assert!(matches!(poll(&mut queue), Some(((), Err(StoreError::Unavailable(_))))));
        assert!(log.lock().is_empty());
    }

    #[test]
    fn each_stage_waits_for_the_one_before_and_the_deliveries_for_all() {
        let log = Log::default();
        let (slots, commits): (Vec<_>, Vec<_>) = (0..3).map(|_| Commit::pending()).unzip();
        let mut ticket = Ticket::done();
        for (number, commit) in commits.into_iter().enumerate() {
            let begun = says(&log, ["first", "second", "third"][number]);
            ticket.save_next(Box::new(move || {
                begun.run();
                vec![commit]
            }));
        }
        ticket.then(says(&log, "delivery"));
        assert!(!ticket.is_ready());
        let (first_slot, first) = Commit::pending();
        let mut before = Ticket::done();
        before.wait_for(first);
        let mut queue = TicketQueue::default();
        queue.push(before, 0, 1);
        queue.push(ticket, 1, 1);
        for (slot, so_far) in slots.into_iter().zip(1..) {
            assert!(poll(&mut queue).is_none(), "a ticket saves on behind another that is open");
            assert_eq!(log.lock().len(), so_far);
            slot.resolve(Ok(()));
        }
        assert!(poll(&mut queue).is_none());
        assert_eq!(*log.lock(), ["first", "second", "third"]);
        first_slot.resolve(Ok(()));
        assert_eq!(poll(&mut queue), Some((0, Ok(()))));
        assert_eq!(poll(&mut queue), Some((1, Ok(()))));
        assert_eq!(log.lock().last(), Some(&"delivery"));
    }

    #[test]
    fn what_follows_a_failed_stage_is_not_begun() {
        let log = Log::default();
        let mut ticket = Ticket::done();
        ticket.save_next(Box::new(|| vec![Commit::ready(Err(StoreError::Unavailable("full".into())))]));
        let begun = says(&log, "never");
        ticket.save_next(Box::new(move || {
            begun.run();
            Vec::new()
        }));
        ticket.then(says(&log, "never"));
        let mut queue = TicketQueue::default();
        queue.push(ticket, (), 1);
        assert!(matches!(poll(&mut queue), Some(((), Err(StoreError::Unavailable(_))))));
        assert!(log.lock().is_empty());
    }

    #[test]
    fn the_window_is_bounded_by_count_and_by_bytes() {
        let mut queue = TicketQueue::default();
        for n in 0..WINDOW_TICKETS {
            assert!(!queue.is_full());
            queue.push(Ticket::done(), n, 1);
        }
        assert!(queue.is_full());
        let mut queue = TicketQueue::default();
        queue.push(Ticket::done(), 0, WINDOW_BYTES);
        assert!(queue.is_full());
    }
}
