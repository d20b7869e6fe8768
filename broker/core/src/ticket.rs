//! The promise that all that must be durable is: what `route` and `publish` return, and the window of open ones.

use crate::metrics::Metrics;
use smallvec::SmallVec;
use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tavi_store::{Commit, StoreError};

/// What is done once everything of a ticket is saved: the deliveries. It must not block.
pub type Deliver = Box<dyn FnOnce() + Send>;

/// A save that may begin only when all others have landed.
pub type LastSave = Box<dyn FnOnce() -> Commit + Send>;

/// Complete when all that must be durable is. Saves come first, then the deliveries, then the acknowledgement.
///
/// The holder polls it; on completion the deliveries run inside that poll. A ticket must not be dropped
/// unfinished: a session that ends hands its window to [`TicketQueue::drain`].
#[must_use = "the deliveries run when the ticket is polled to its end"]
#[derive(Default)]
pub struct Ticket {
    commits: SmallVec<[Commit; 2]>,
    last: Vec<LastSave>,
    landings: SmallVec<[Deliver; 1]>,
    deliveries: SmallVec<[Deliver; 1]>,
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

    /// Adds a save that begins when all commits have landed, still before the deliveries: the note that nothing of
    /// this has to be repeated after a crash.
    pub fn save_last(&mut self, save: LastSave) {
        self.last.push(save);
    }

    /// Adds something that is done as soon as all commits have landed, though other tickets of the same sender are
    /// open before this one: what has its place in the receiver's order already. If it is dropped instead, it fails.
    pub fn land(&mut self, landing: Deliver) {
        self.landings.push(landing);
    }

    /// Adds something to be done after all commits, and after what the sender's earlier tickets deliver.
    pub fn then(&mut self, deliver: Deliver) {
        self.deliveries.push(deliver);
    }

    /// Adds all of another ticket.
    pub fn join(&mut self, other: Ticket) {
        self.commits.extend(other.commits);
        self.last.extend(other.last);
        self.landings.extend(other.landings);
        self.deliveries.extend(other.deliveries);
        self.failed = self.failed.take().or(other.failed);
    }

    /// Whether nothing has to be saved: polling it completes it at once.
    pub fn is_ready(&self) -> bool {
        self.commits.is_empty() && self.last.is_empty()
    }

    /// Advances it; when the last commit has landed, the deliveries run and the result is given. A failed save
    /// delivers nothing, so that the sender may repeat it.
    pub fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StoreError>> {
        ready!(self.poll_commits(cx));
        if self.failed.is_none() && !self.last.is_empty() {
            self.commits.extend(self.last.drain(..).map(|save| save()));
            ready!(self.poll_commits(cx));
        }
        Poll::Ready(self.finish())
    }

    /// Lets land what waits for nothing but commits that have landed.
    fn poll_landings(&mut self, cx: &mut Context<'_>) {
        let done = !self.landings.is_empty() && self.last.is_empty() && self.poll_commits(cx).is_ready();
        if done && self.failed.is_none() {
            self.landings.drain(..).for_each(|land| land());
        }
    }

    fn poll_commits(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let failed = &mut self.failed;
        self.commits.retain(|commit| match Pin::new(commit).poll(cx) {
            Poll::Pending => true,
            Poll::Ready(result) => {
                if let Err(error) = result {
                    failed.get_or_insert(error);
                }
                false
            }
        });
        if self.commits.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        if let Some(error) = self.failed.take() {
            self.landings.clear();
            self.deliveries.clear();
            return Err(error);
        }
        for deliver in self.landings.drain(..).chain(self.deliveries.drain(..)) {
            deliver();
        }
        Ok(())
    }

    /// Waits for it.
    ///
    /// # Errors
    /// The first commit that failed; then nothing was delivered.
    pub async fn complete(mut self) -> Result<(), StoreError> {
        poll_fn(|cx| self.poll_done(cx)).await
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
        self.open.push_back((ticket, ack, bytes));
    }

    /// Whether the session must stop reading until a ticket completes.
    pub fn is_full(&self) -> bool {
        self.open.len() >= WINDOW_TICKETS || self.bytes >= WINDOW_BYTES
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
            self.open.iter_mut().skip(1).for_each(|(ticket, ..)| ticket.poll_landings(cx));
            return Poll::Pending;
        };
        let Some((_, ack, bytes)) = self.open.pop_front() else { return Poll::Ready(None) };
        self.bytes -= bytes;
        if self.open.is_empty() {
            self.open.shrink_to(4);
        }
        Poll::Ready(Some((ack, result)))
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

    fn says(log: &Log, word: &'static str) -> Deliver {
        let log = log.clone();
        Box::new(move || log.lock().push(word))
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
    fn the_last_save_waits_for_the_others_and_the_deliveries_for_it() {
        let log = Log::default();
        let ((slot, commit), (last_slot, last)) = (Commit::pending(), Commit::pending());
        let mut ticket = Ticket::done();
        ticket.wait_for(commit);
        let begun = says(&log, "last save");
        ticket.save_last(Box::new(move || {
            begun();
            last
        }));
        ticket.then(says(&log, "delivery"));
        assert!(!ticket.is_ready());
        let mut queue = TicketQueue::default();
        queue.push(ticket, (), 1);
        assert!(poll(&mut queue).is_none() && log.lock().is_empty());
        slot.resolve(Ok(()));
        assert!(poll(&mut queue).is_none());
        assert_eq!(*log.lock(), ["last save"]);
        last_slot.resolve(Ok(()));
        assert_eq!(poll(&mut queue), Some(((), Ok(()))));
        assert_eq!(*log.lock(), ["last save", "delivery"]);
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
