//! Services that own hosts: a mailbox for each thing of theirs (a room, a node), served one stanza at a time. No sender
//! waits for a service; what a stanza leads to is completed in the order of the stanzas.

use crate::{
    effects::Effects,
    envelope::Envelope,
    hooks::{BoxFuture, Service},
    mailbox::Weigh,
    principal::Host,
    router::{Router, Run, too_long},
    ticket::{Ticket, TicketQueue},
};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tavi_store::{Commit, CommitSlot};
use tavi_xmpp_proto::error::{Condition, StanzaError};

/// What may wait in one mailbox, in bytes. Each sender has a window of its own, so only many fill it.
const MAX_WAITING: usize = 16 * 1024 * 1024;

/// Which mailbox.
type Key = (Host, Box<str>);

/// The mailboxes that are being served. One that is empty is let go of.
#[derive(Default)]
pub(crate) struct Services(Mutex<HashMap<Key, Waiting>>);

#[derive(Default)]
struct Waiting {
    items: VecDeque<(Envelope, CommitSlot)>,
    bytes: usize,
    /// Who serves it, while he waits.
    waker: Option<Waker>,
}

/// One who serves a mailbox until it is empty.
struct Worker {
    router: Arc<Router>,
    service: Arc<dyn Service>,
    key: Key,
    serving: Option<(BoxFuture<'static, Ticket>, CommitSlot)>,
    open: TicketQueue<CommitSlot>,
    /// The mailbox is let go of.
    done: bool,
}

impl Drop for Worker {
    /// A service that panics fails what waits for it, and begins anew with the next stanza.
    fn drop(&mut self) {
        if !self.done {
            tracing::error!(host = ?self.key.0, "a service ended in the middle of its work");
            self.router.services.0.lock().remove(&self.key);
        }
    }
}

impl Services {
    /// Puts a stanza into its mailbox. The commit resolves when all that it leads to is durable and delivered.
    ///
    /// # Errors
    /// What the sender gets if the mailbox is full.
    pub(crate) fn enqueue(
        &self,
        router: &Arc<Router>,
        (host, service): (Host, &Arc<dyn Service>),
        env: &Envelope,
    ) -> Result<Commit, StanzaError> {
        let key = (host, service.key(env));
        let (slot, commit) = Commit::pending();
        let mut boxes = self.0.lock();
        let served = boxes.contains_key(&key);
        let waiting = boxes.entry(key.clone()).or_default();
        if waiting.bytes >= MAX_WAITING {
            let full = StanzaError::new(Condition::ResourceConstraint);
            return Err(full.text("too much waits here already: try again later"));
        }
        waiting.bytes += env.weight();
        waiting.items.push_back((env.clone(), slot));
        waiting.waker.take().into_iter().for_each(Waker::wake);
        drop(boxes);
        if !served {
            let (router, service) = (router.clone(), service.clone());
            let mut worker = Worker { router, service, key, serving: None, open: TicketQueue::default(), done: false };
            tokio::spawn(async move { poll_fn(|cx| worker.poll(cx)).await });
        }
        Ok(commit)
    }
}

impl Worker {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            while let Poll::Ready(Some((slot, result))) = self.open.poll_next(cx) {
                slot.resolve(result);
            }
            if let Some((serving, _)) = &mut self.serving {
                let Poll::Ready(ticket) = serving.as_mut().poll(cx) else { return Poll::Pending };
                if let Some((_, slot)) = self.serving.take() {
                    self.open.push(ticket, slot, 0);
                }
                continue;
            }
            if self.open.is_full() {
                return Poll::Pending;
            }
            let mut boxes = self.router.services.0.lock();
            let Some(waiting) = boxes.get_mut(&self.key) else {
                self.done = true;
                return Poll::Ready(());
            };
            let Some((env, slot)) = waiting.items.pop_front() else {
                if self.open.is_empty() {
                    boxes.remove(&self.key);
                    self.done = true;
                    return Poll::Ready(());
                }
                waiting.waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            waiting.bytes -= env.weight();
            drop(boxes);
            self.serving = Some((Box::pin(serve(self.router.clone(), self.service.clone(), env)), slot));
        }
    }
}

async fn serve(router: Arc<Router>, service: Arc<dyn Service>, env: Envelope) -> Ticket {
    let mut run = Run::of_service();
    match tokio::time::timeout(router.registry.deadline(), service.serve(env.clone())).await {
        Ok(fx) => run.take(fx),
        Err(_) => {
            let mut fx = Effects::default();
            env.refuse(&too_long()).into_iter().for_each(|error| fx.route(error));
            run.take(fx);
        }
    }
    router.finish(run).await
}
