//! A commit on its way to the disk.

use crate::StoreError;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::oneshot;

/// A commit that was handed in; resolves when it is durable or refused. Dropping it does not undo the commit.
#[derive(Debug)]
#[must_use = "nothing may be acknowledged before the commit has resolved"]
pub struct Commit(State);

#[derive(Debug)]
enum State {
    Done(Option<Result<(), StoreError>>),
    Waiting(oneshot::Receiver<Result<(), StoreError>>),
}

/// The backend's end of a [`Commit`].
#[derive(Debug)]
pub struct CommitSlot(oneshot::Sender<Result<(), StoreError>>);

impl Commit {
    /// A commit that is decided already.
    pub fn ready(result: Result<(), StoreError>) -> Commit {
        Commit(State::Done(Some(result)))
    }

    /// A commit and the slot through which the backend resolves it.
    pub fn pending() -> (CommitSlot, Commit) {
        let (tx, rx) = oneshot::channel();
        (CommitSlot(tx), Commit(State::Waiting(rx)))
    }
}

impl CommitSlot {
    /// Tells the waiting side; it does not matter whether anybody still waits.
    pub fn resolve(self, result: Result<(), StoreError>) {
        // The waiting session may have gone away; the commit stands all the same.
        let _ = self.0.send(result);
    }
}

impl Future for Commit {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Done(result) => Poll::Ready(result.take().unwrap_or(Ok(()))),
            State::Waiting(rx) => Pin::new(rx).poll(cx).map(|answer| {
                answer.unwrap_or_else(|_| Err(StoreError::Unavailable("the committer has stopped".into())))
            }),
        }
    }
}
