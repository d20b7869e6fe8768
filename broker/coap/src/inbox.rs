//! The conflating mailbox between the core and the observations: of each topic only the newest publication waits.
//!
//! It is bounded by the number of observed topics. No publisher waits for it (RFC 7641 §1.3: eventual consistency).

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tavi_core::publication::Publication;
use tavi_core::topics::{SubOptions, Subscriber};
use tavi_core::Principal;

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
