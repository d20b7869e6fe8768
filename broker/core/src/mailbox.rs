//! What waits for one receiver: bounded by count and bytes; no sender ever waits.

use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll, Waker},
};

/// How much room an item takes, in bytes.
pub trait Weigh {
    /// About how many bytes it holds.
    fn weight(&self) -> usize;

    /// Whether it may be dropped for a newer one; not so for what was promised, such as MQTT's QoS 1.
    fn droppable(&self) -> bool {
        true
    }
}

/// What happens to an item for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The receiver is cut off; the item comes back to be kept elsewhere.
    Detach,
    /// The oldest droppable items go, and are counted; if there is none, the item comes back.
    DropOldest,
    /// The item comes back; the receiver stays.
    Refuse,
    /// The receiver is cut off; the item is lost with it.
    Close,
}

impl Overflow {
    fn cuts_off(self) -> bool {
        matches!(self, Overflow::Detach | Overflow::Close)
    }
}

/// What became of a pushed item.
#[derive(Debug)]
pub enum Pushed<T> {
    /// It waits for the receiver.
    Queued,
    /// It waits; this many older ones were dropped for it.
    Dropped(usize),
    /// The receiver is gone or was just cut off: here is the item.
    Refused(T),
}

/// Why a mailbox is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The receiver went away.
    Gone,
    /// It was too slow.
    Overflow,
    /// Another session took its place.
    Replaced,
    /// The broker stops.
    Shutdown,
    /// Its account was removed or its rights were revoked.
    Revoked,
}

/// A bounded queue with one receiver and any number of senders.
pub struct Mailbox<T> {
    state: Mutex<State<T>>,
    max_items: usize,
    max_bytes: usize,
}

struct State<T> {
    items: VecDeque<T>,
    bytes: usize,
    closed: Option<Closed>,
    waker: Option<Waker>,
    /// The receiver, when it waits for nothing but the end.
    closer: Option<Waker>,
}

/// An empty queue keeps no more room than this many items.
const KEPT_CAPACITY: usize = 4;

impl<T: Weigh> Mailbox<T> {
    /// An empty mailbox for at most `max_items` items of `max_bytes` together. One item is always accepted.
    pub fn new(max_items: usize, max_bytes: usize) -> Mailbox<T> {
        let state = State { items: VecDeque::new(), bytes: 0, closed: None, waker: None, closer: None };
        Mailbox { state: Mutex::new(state), max_items, max_bytes }
    }

    /// Puts an item at the end; `overflow` tells what to do if there is no room.
    pub fn push(&self, item: T, overflow: Overflow) -> Pushed<T> {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return Pushed::Refused(item);
        }
        let weight = item.weight();
        let mut dropped = 0;
        while !state.items.is_empty() && (state.items.len() >= self.max_items || state.bytes + weight > self.max_bytes)
        {
            let made_room = overflow == Overflow::DropOldest && state.drop_oldest();
            if !made_room {
                let waker = if overflow.cuts_off() { state.close(Closed::Overflow) } else { None };
                drop(state);
                wake(waker);
                return Pushed::Refused(item);
            }
            dropped += 1;
        }
        state.bytes += weight;
        state.items.push_back(item);
        let waker = state.waker.take();
        drop(state);
        wake(waker);
        if dropped == 0 { Pushed::Queued } else { Pushed::Dropped(dropped) }
    }

    /// Wakes the receiver, though nothing was put in: there is something for it elsewhere.
    pub fn wake(&self) {
        let waker = self.state.lock().wakers();
        wake(waker);
    }

    /// Closes it for senders. What waits can still be received. The first reason stands.
    pub fn close(&self, why: Closed) {
        let waker = self.state.lock().close(why);
        wake(waker);
    }

    /// Why it is closed, if it is.
    pub fn closed(&self) -> Option<Closed> {
        self.state.lock().closed
    }

    /// Moves everything that waits into `out`. Ready with `Err` once it is closed and empty; pending when empty.
    pub fn poll_drain(&self, cx: &mut Context<'_>, out: &mut Vec<T>) -> Poll<Result<(), Closed>> {
        let mut state = self.state.lock();
        if !state.items.is_empty() {
            state.drain(out);
            return Poll::Ready(Ok(()));
        }
        if let Some(why) = state.closed {
            return Poll::Ready(Err(why));
        }
        if !state.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Ready with the reason once it is closed, whatever still waits in it. For a receiver that can not take anything
    /// just now: items do not wake it, the end does.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<Closed> {
        let mut state = self.state.lock();
        if let Some(why) = state.closed {
            return Poll::Ready(why);
        }
        if !state.closer.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            state.closer = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits for items and moves all of them into `out`.
    ///
    /// # Errors
    /// The reason, once it is closed and empty.
    pub async fn drain(&self, out: &mut Vec<T>) -> Result<(), Closed> {
        poll_fn(|cx| self.poll_drain(cx, out)).await
    }

    /// Takes what waits without waiting.
    pub fn take(&self) -> Vec<T> {
        let mut out = Vec::new();
        self.state.lock().drain(&mut out);
        out
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.state.lock().items.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Weigh> State<T> {
    fn close(&mut self, why: Closed) -> Option<Waker> {
        self.closed.get_or_insert(why);
        self.wakers()
    }

    /// The receiver's, whichever it waits with.
    fn wakers(&mut self) -> Option<Waker> {
        let closer = self.closer.take();
        self.waker.take().or(closer)
    }

    /// Drops the oldest item that may be dropped; gives whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let found = self.items.iter().position(T::droppable).and_then(|at| self.items.remove(at));
        self.bytes -= found.as_ref().map_or(0, T::weight);
        found.is_some()
    }

    fn drain(&mut self, out: &mut Vec<T>) {
        out.extend(self.items.drain(..));
        self.bytes = 0;
        self.items.shrink_to(KEPT_CAPACITY);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weigh for &str {
        fn weight(&self) -> usize {
            self.len()
        }
    }

    #[test]
    fn a_full_mailbox_detaches_its_receiver_and_gives_the_item_back() {
        let mailbox = Mailbox::new(2, 100);
        assert!(matches!(mailbox.push("one", Overflow::Detach), Pushed::Queued));
        assert!(matches!(mailbox.push("two", Overflow::Detach), Pushed::Queued));
        assert!(matches!(mailbox.push("three", Overflow::Detach), Pushed::Refused("three")));
        assert_eq!(mailbox.closed(), Some(Closed::Overflow));
        assert_eq!(mailbox.take(), ["one", "two"], "what waited before is still there");
    }

    #[test]
    fn bytes_bound_it_too_and_the_oldest_go_first() {
        let mailbox = Mailbox::new(10, 8);
        mailbox.push("aaaa", Overflow::DropOldest);
        mailbox.push("bbbb", Overflow::DropOldest);
        assert!(matches!(mailbox.push("cccccc", Overflow::DropOldest), Pushed::Dropped(2)));
        assert_eq!(mailbox.take(), ["cccccc"]);
    }

    #[test]
    fn what_was_promised_is_not_dropped_for_something_newer() {
        struct Item(bool);
        impl Weigh for Item {
            fn weight(&self) -> usize {
                1
            }
            fn droppable(&self) -> bool {
                self.0
            }
        }
        let mailbox = Mailbox::new(2, 100);
        mailbox.push(Item(false), Overflow::Close);
        mailbox.push(Item(true), Overflow::DropOldest);
        assert!(matches!(mailbox.push(Item(false), Overflow::DropOldest), Pushed::Dropped(1)));
        assert!(matches!(mailbox.push(Item(true), Overflow::DropOldest), Pushed::Refused(_)));
        assert!(matches!(mailbox.push(Item(false), Overflow::Refuse), Pushed::Refused(_)));
        assert_eq!((mailbox.closed(), mailbox.len()), (None, 2));
    }

    #[test]
    fn one_item_larger_than_all_room_is_accepted_when_nothing_else_waits() {
        let mailbox = Mailbox::new(10, 2);
        assert!(matches!(mailbox.push("large", Overflow::Close), Pushed::Queued));
    }

    #[test]
    fn a_receiver_that_takes_nothing_still_hears_of_the_end() {
        let mailbox = Mailbox::new(4, 100);
        let mut cx = Context::from_waker(Waker::noop());
        mailbox.push("waits", Overflow::Close);
        assert!(mailbox.poll_closed(&mut cx).is_pending());
        mailbox.close(Closed::Revoked);
        assert_eq!(mailbox.poll_closed(&mut cx), Poll::Ready(Closed::Revoked));
    }

    #[tokio::test]
    async fn a_receiver_that_takes_nothing_is_told_of_what_is_elsewhere() {
        let mailbox = std::sync::Arc::new(Mailbox::<&str>::new(4, 100));
        let looks = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let receiver = tokio::spawn({
            let (mailbox, looks) = (mailbox.clone(), looks.clone());
            poll_fn(move |cx| {
                looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                mailbox.poll_closed(cx)
            })
        });
        tokio::task::yield_now().await;
        mailbox.wake();
        tokio::task::yield_now().await;
        assert_eq!(looks.load(std::sync::atomic::Ordering::Relaxed), 2);
        receiver.abort();
    }

    #[tokio::test]
    async fn the_receiver_is_woken_and_told_why_it_ended() {
        let mailbox = std::sync::Arc::new(Mailbox::new(4, 100));
        let receiver = tokio::spawn({
            let mailbox = mailbox.clone();
            async move {
                let mut got = Vec::new();
                loop {
                    if let Err(why) = mailbox.drain(&mut got).await {
                        return (got, why);
                    }
                }
            }
        });
        tokio::task::yield_now().await;
        mailbox.push("hello", Overflow::Close);
        mailbox.close(Closed::Replaced);
        assert_eq!(receiver.await.unwrap(), (vec!["hello"], Closed::Replaced));
    }
}
