//! Back pressure: whether those who make commits may go on, and how they wait until they may.

use crate::Store;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// The backend's end: open while there is room, shut while too much waits.
#[derive(Debug, Default)]
pub struct Gate {
    shut: AtomicBool,
    drawn: AtomicU64,
    waiting: Mutex<HashMap<u64, Waker>>,
}

/// Resolves when a [`Gate`] is open; that of a store without a bound is ready at once.
#[derive(Debug, Default)]
#[must_use = "a future does nothing unless it is awaited"]
pub struct Room {
    gate: Option<Arc<Gate>>,
    /// Under which number the waker waits; 0: it does not.
    ticket: u64,
}

impl Gate {
    /// Whether there is room.
    pub fn is_open(&self) -> bool {
        !self.shut.load(Ordering::Acquire)
    }

    /// Opens or shuts the gate; those who wait are woken when it opens.
    pub fn set_open(&self, open: bool) {
        if self.shut.swap(!open, Ordering::AcqRel) && open {
            let waiting = std::mem::take(&mut *self.waiting.lock());
            waiting.into_values().for_each(Waker::wake);
        }
    }

    /// A future that is ready when the gate is open.
    pub fn room(self: &Arc<Self>) -> Room {
        Room { gate: Some(self.clone()), ticket: 0 }
    }
}

impl Room {
    /// Whether a store has room; if not, the task is woken when it has. For a session that polls its parts in turn.
    pub fn poll_open(&mut self, store: &dyn Store, cx: &mut Context<'_>) -> bool {
        if store.has_room() {
            return true;
        }
        *self = store.room();
        Pin::new(self).poll(cx).is_ready()
    }
}

impl Future for Room {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(gate) = self.gate.clone().filter(|gate| !gate.is_open()) else { return Poll::Ready(()) };
        if self.ticket == 0 {
            self.ticket = gate.drawn.fetch_add(1, Ordering::Relaxed) + 1;
        }
        gate.waiting.lock().insert(self.ticket, cx.waker().clone());
        // It may have opened between the question and the entry.
        if gate.is_open() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.as_ref().filter(|_| self.ticket != 0) {
            gate.waiting.lock().remove(&self.ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_session_that_polls_is_woken_when_there_is_room() {
        let (store, woken) = (crate::MemoryStore::default(), Arc::new(Woken::default()));
        let waker = Waker::from(woken.clone());
        let (mut room, mut cx) = (Room::default(), Context::from_waker(&waker));
        assert!(room.poll_open(&store, &mut cx));
        store.set_room(false);
        assert!(!room.poll_open(&store, &mut cx) && !room.poll_open(&store, &mut cx));
        store.set_room(true);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(room.poll_open(&store, &mut cx));
    }

    #[test]
    fn a_shut_gate_wakes_each_who_still_waits_once_when_it_opens() {
        let (gate, woken) = (Arc::new(Gate::default()), Arc::new(Woken::default()));
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut gate.room()).poll(&mut cx).is_ready());
        gate.set_open(false);
        let (mut first, mut gone) = (gate.room(), gate.room());
        for room in [&mut first, &mut gone] {
            assert!(Pin::new(&mut *room).poll(&mut cx).is_pending());
            assert!(Pin::new(room).poll(&mut cx).is_pending());
        }
        drop(gone);
        gate.set_open(true);
        gate.set_open(true);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(Pin::new(&mut first).poll(&mut cx).is_ready() && gate.waiting.lock().is_empty());
    }
}
