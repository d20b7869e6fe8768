//! The conflating mailbox between the core and the observations: of each topic only the newest publication waits.
//!
//! It is bounded by the number of observed topics. No publisher waits for it (RFC 7641 §1.3: eventual consistency).

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tavi_core::Principal;
use tavi_core::publication::Publication;
use tavi_core::topics::{SubOptions, Subscriber};

/// The one subscriber of all observations on a socket.
#[derive(Debug)]
pub struct Inbox {
    id: u64,
    principal: Principal,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    newest: HashMap<Arc<str>, Arc<Publication>>,
    waker: Option<Waker>,
}

impl Inbox {
    /// An empty inbox of the subscriber with number `id`, which receives on behalf of `principal`.
    pub fn new(id: u64, principal: Principal) -> Self {
        Self { id, principal, state: Mutex::default() }
    }

    /// Everything that waits; pending when there is nothing.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Vec<Arc<Publication>>> {
        let mut state = self.state.lock();
        if state.newest.is_empty() {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut state.newest).into_values().collect())
    }
}

impl Subscriber for Inbox {
    fn id(&self) -> u64 {
        self.id
    }

    fn principal(&self) -> &Principal {
        &self.principal
    }

    fn deliver(&self, publication: &Arc<Publication>, _options: &[SubOptions]) {
        let mut state = self.state.lock();
        if state.newest.get(&publication.topic).is_some_and(|known| known.id >= publication.id) {
            return;
        }
        state.newest.insert(publication.topic.clone(), publication.clone());
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tavi_core::publication::{Change, Qos, Rendered};

    fn publication(id: u64, topic: &str) -> Arc<Publication> {
        Arc::new(Publication {
            id,
            time_ms: 0,
            topic: topic.into(),
            change: Change::Value,
            payload: Default::default(),
            content_type: None,
            qos: Qos::AtMostOnce,
            retain: false,
            from: Principal::Anon { loopback: true },
            from_session: 0,
            item: None,
            properties: None,
            rendered: Rendered::default(),
        })
    }

    #[test]
    fn of_each_topic_only_the_newest_waits() {
        let inbox = Inbox::new(1, Principal::Anon { loopback: true });
        for (id, topic) in [(1, "a"), (5, "a"), (4, "a"), (2, "b")] {
            inbox.deliver(&publication(id, topic), &[]);
        }
        let cx = &mut Context::from_waker(Waker::noop());
        let Poll::Ready(taken) = inbox.poll_take(cx) else { panic!("two wait") };
        let mut ids: Vec<_> = taken.iter().map(|publication| publication.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, [2, 5]);
        assert!(inbox.poll_take(cx).is_pending());
    }
}
