//! Writes that are on their way to the store: those of one peer are answered in their order, nobody waits for another's.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use tavi_core::{Metrics, Ticket, TicketQueue};
use tavi_store::StoreError;

use crate::peer::PeerId;

/// The open writes of all peers, each with what answers it. A peer without one costs nothing.
pub(crate) struct Writes<A> {
    peers: HashMap<PeerId, (TicketQueue<A>, Waker)>,
    woken: Arc<Woken>,
}

/// The peers to look at: those whose commits may have landed, and those that began a write.
#[derive(Default)]
struct Woken {
    peers: Mutex<VecDeque<PeerId>>,
    task: Mutex<Option<Waker>>,
}

/// Wakes one peer's queue, so that a landing commit does not have all of them polled.
struct Wakes(PeerId, Arc<Woken>);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.1.note(self.0);
        if let Some(task) = self.1.task.lock().take() {
            task.wake();
        }
    }
}

impl Woken {
    fn note(&self, peer: PeerId) {
        self.peers.lock().push_back(peer);
    }
}

impl<A> Default for Writes<A> {
    fn default() -> Self {
        Self { peers: HashMap::new(), woken: Arc::default() }
    }
}

impl<A> Writes<A> {
    /// A write of `peer` begins.
    pub fn push(&mut self, peer: PeerId, ticket: Ticket, answer: A, bytes: usize) {
        let waker = || Waker::from(Arc::new(Wakes(peer, self.woken.clone())));
        let (queue, _) = self.peers.entry(peer).or_insert_with(|| (TicketQueue::default(), waker()));
        queue.push(ticket, answer, bytes);
        self.woken.note(peer);
    }

    /// Whether a peer has as many open as one may have.
    pub fn is_full(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|(queue, _)| queue.is_full())
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// The next that is complete. Pending also when none is open.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(A, Result<(), StoreError>)> {
        *self.woken.task.lock() = Some(cx.waker().clone());
        loop {
            let Some(peer) = self.woken.peers.lock().pop_front() else { return Poll::Pending };
            // One that was woken more than once has gone already.
            let Some((queue, waker)) = self.peers.get_mut(&peer) else { continue };
            let Poll::Ready(done) = queue.poll_next(&mut Context::from_waker(waker)) else { continue };
            if queue.is_empty() {
                self.peers.remove(&peer);
            } else {
                self.woken.note(peer);
            }
            if let Some(done) = done {
                return Poll::Ready(done);
            }
        }
    }

    /// The end: what is open completes in tasks of its own.
    pub fn drain(self, metrics: &Arc<Metrics>)
    where
        A: Send + 'static,
    {
        self.peers.into_values().for_each(|(queue, _)| queue.drain(metrics.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tavi_store::{Commit, CommitSlot};

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn peer(last: u8) -> PeerId {
        PeerId::Udp(([192, 0, 2, last], 5683).into())
    }

    fn pending() -> (CommitSlot, Ticket) {
        let ((slot, commit), mut ticket) = (Commit::pending(), Ticket::done());
        ticket.wait_for(commit);
        (slot, ticket)
    }

    #[test]
    fn one_peer_s_slow_commit_delays_nobody_else_and_its_own_come_in_order() {
        let (mut writes, counted) = (Writes::default(), Arc::new(Counted::default()));
        let waker = Waker::from(counted.clone());
        let mut cx = Context::from_waker(&waker);
        let (slow, first) = pending();
        let (quick, other) = pending();
        writes.push(peer(1), first, "a1", 1);
        writes.push(peer(1), Ticket::done(), "a2", 1);
        writes.push(peer(2), other, "b1", 1);
        assert!(writes.poll_next(&mut cx).is_pending());
        quick.resolve(Ok(()));
        assert_eq!(counted.0.load(Ordering::Relaxed), 1, "the task is woken");
        assert_eq!(writes.poll_next(&mut cx), Poll::Ready(("b1", Ok(()))));
        assert!(writes.poll_next(&mut cx).is_pending() && !writes.is_empty());
        slow.resolve(Ok(()));
        assert_eq!(writes.poll_next(&mut cx), Poll::Ready(("a1", Ok(()))));
        assert_eq!(writes.poll_next(&mut cx), Poll::Ready(("a2", Ok(()))));
        assert!(writes.poll_next(&mut cx).is_pending() && writes.is_empty());
    }

    #[test]
    fn each_peer_has_a_window_of_its_own() {
        let (mut writes, mut slots) = (Writes::default(), Vec::new());
        while !writes.is_full(peer(1)) {
            let (slot, ticket) = pending();
            slots.push(slot);
            writes.push(peer(1), ticket, (), 1);
        }
        assert_eq!((slots.len(), writes.is_full(peer(2))), (tavi_core::ticket::WINDOW_TICKETS, false));
    }
}
