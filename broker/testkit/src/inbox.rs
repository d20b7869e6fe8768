//! What a test client received and nobody has looked at yet; a waiter takes the first item that fits.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::bail;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// How long a client waits for what it expects. Long, because a passing test never waits it out.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A shared queue of received things.
#[derive(Debug)]
pub struct Inbox<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    closed: Option<String>,
}

impl<T: Debug> Inbox<T> {
    /// An empty inbox.
    pub fn new() -> Self {
        let state = Mutex::new(State { items: VecDeque::new(), closed: None });
        Self(Arc::new(Shared { state, changed: Notify::new() }))
    }

    /// Adds what was received.
    pub fn push(&self, item: T) {
        self.lock().items.push_back(item);
        self.0.changed.notify_waiters();
    }

    /// Nothing more will come, for this reason.
    pub fn close(&self, why: impl Into<String>) {
        self.lock().closed.get_or_insert(why.into());
        self.0.changed.notify_waiters();
    }

    /// Removes and returns the first item for which `pick` gives a value; waits for it up to [`PATIENCE`].
    ///
    /// # Errors
    /// It does not come, or the connection ends before; what came instead is in the error.
    pub async fn take<R>(&self, what: &str, pick: impl Fn(&T) -> Option<R>) -> anyhow::Result<R> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let changed = self.0.changed.notified();
            if let Some(found) = self.take_now(&pick) {
                return Ok(found);
            }
            if let Some(why) = self.end() {
                bail!("{what} did not come before the connection ended ({why}); there was {}", self.shown());
            }
            if timeout_at(deadline, changed).await.is_err() {
                bail!("{what} did not come within {} s; there was {}", PATIENCE.as_secs(), self.shown());
            }
        }
    }

    /// Removes and returns the first fitting item that is already there.
    pub fn take_now<R>(&self, pick: impl Fn(&T) -> Option<R>) -> Option<R> {
        let mut state = self.lock();
        let (at, found) = state.items.iter().enumerate().find_map(|(at, item)| Some((at, pick(item)?)))?;
        state.items.remove(at);
        Some(found)
    }

    /// Waits until the other side has closed the connection.
    ///
    /// # Errors
    /// It stays open for [`PATIENCE`].
    pub async fn closed(&self) -> anyhow::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let changed = self.0.changed.notified();
            if let Some(why) = self.end() {
                return Ok(why);
            }
            if timeout_at(deadline, changed).await.is_err() {
                bail!("the connection is still open after {} s; there was {}", PATIENCE.as_secs(), self.shown());
            }
        }
    }

    /// The items that nobody took, for a failure's text.
    pub fn shown(&self) -> String {
        let state = self.lock();
        if state.items.is_empty() { "nothing".into() } else { format!("{:?}", state.items) }
    }

    fn end(&self) -> Option<String> {
        self.lock().closed.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Inbox<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Debug> Default for Inbox<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn even(n: &u32) -> Option<u32> {
        n.is_multiple_of(2).then_some(*n)
    }

    #[tokio::test]
    async fn takes_the_first_that_fits_and_leaves_the_rest() {
        let inbox = Inbox::new();
        [1, 2, 4].into_iter().for_each(|n| inbox.push(n));
        assert_eq!(inbox.take("an even number", even).await.unwrap(), 2);
        assert_eq!(inbox.shown(), "[1, 4]");
    }

    #[tokio::test]
    async fn waits_for_what_comes_later() {
        let inbox = Inbox::new();
        let sender = inbox.clone();
        let waiter = tokio::spawn(async move { inbox.take("an even number", even).await });
        sender.push(3);
        sender.push(6);
        assert_eq!(waiter.await.unwrap().unwrap(), 6);
    }

    #[tokio::test]
    async fn says_what_came_instead() {
        let inbox = Inbox::new();
        inbox.push(1);
        inbox.close("reset");
        let error = inbox.take("an even number", even).await.unwrap_err().to_string();
        assert_eq!(error, "an even number did not come before the connection ended (reset); there was [1]");
    }
}
