//! The rows of a publication's receivers, made part by part: those of the first receivers at once, the others by a task of
//! the topic's, one publication after the other, with turns for others between. So a publication to ten thousand holds
//! neither a thread nor the topic's lock for long, and each receiver gets its rows in the order of the topic all the same.

use super::{
    Topics,
    landing::Open,
    place::{Place, State},
    subscriber::{Rows, Subscriber},
};
use crate::ticket::Ticket;
use std::sync::Arc;
use tavi_store::{Commit, CommitSlot, SharedStore, StoreError};
use tokio::{
    runtime::Handle,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

/// What one part may cost: a receiver who wants no row costs 1.
const PART: usize = 2_048;
/// A receiver whose row is made and saved.
const ROW: usize = 8;

/// Rows to be saved, and whose; the topic's own come without a receiver.
type Owed = (Option<Arc<dyn Subscriber>>, Rows);

/// Rows that were made, and what becomes of them.
pub(super) enum Part {
    /// They are on their way to the store.
    Begun(Vec<Commit>),
    /// They wait until the publication's note is saved.
    Held(Vec<Owed>),
}

/// The rest of a publication's rows.
pub(super) struct Making {
    at: usize,
    noted: bool,
    parts: UnboundedSender<Part>,
    /// Resolved when all are made.
    made: CommitSlot,
}

impl Part {
    fn empty(noted: bool) -> Part {
        if noted { Part::Held(Vec::new()) } else { Part::Begun(Vec::new()) }
    }

    fn add(&mut self, store: &SharedStore, id: u64, (whose, rows): Owed) {
        match self {
            Part::Begun(commits) => commits.push(save(store, id, (whose, rows))),
            Part::Held(held) => held.push((whose, rows)),
        }
    }

    /// Makes the rows of the receivers from `at` on, while `left` is enough; gives where it ended.
    fn make(&mut self, store: &SharedStore, open: &Open, (mut at, mut left): (usize, usize)) -> usize {
        let publication = &open.publication;
        while at < open.audience.receivers() && left > 0 {
            let to = open.audience.get(at).filter(|to| to.wants(publication));
            let rows =
                to.and_then(|to| Some((Some(to.subscriber.clone()), to.subscriber.store(publication, &to.options)?)));
            left = left.saturating_sub(if rows.is_some() { ROW } else { 1 });
            rows.into_iter().for_each(|owed| self.add(store, publication.id, owed));
            at += 1;
        }
        at
    }

    /// All that is to be waited for; what was held is saved now.
    fn begin(self, store: &SharedStore, id: u64) -> Vec<Commit> {
        match self {
            Part::Begun(commits) => commits,
            Part::Held(held) => held.into_iter().map(|owed| save(store, id, owed)).collect(),
        }
    }
}

fn save(store: &SharedStore, id: u64, (whose, rows): Owed) -> Commit {
    match whose {
        Some(subscriber) => subscriber.save(store, id, rows),
        None => store.commit(&rows.0, rows.1),
    }
}

impl Topics {
    /// Makes the rows of a publication, or lets them be made behind those of its topic that are being made. The ticket
    /// waits for them; `note` has to be saved before the first of them is. The topic's lock is held.
    pub(super) fn make_rows(
        &self,
        state: &mut State,
        (open, own): (&mut Open, Option<Rows>),
        (ticket, note): (&mut Ticket, Option<Commit>),
    ) {
        let (id, store, noted) = (open.publication.id, &self.store, note.is_some());
        note.into_iter().for_each(|note| ticket.wait_for(note));
        let mut part = Part::empty(noted);
        own.into_iter().for_each(|rows| part.add(store, id, (None, rows)));
        let receivers = open.audience.receivers();
        let mut at = if state.making { 0 } else { part.make(store, open, (0, PART)) };
        if at < receivers {
            if let Ok(runtime) = Handle::try_current() {
                let ((parts, coming), (made, is_made)) = (unbounded_channel(), Commit::pending());
                // Its other end is here.
                let _ = parts.send(part);
                open.making = Some(Making { at, noted, parts, made });
                ticket.is_made(is_made);
                return gathered((runtime, coming), (store, id, noted), ticket);
            }
            while self.make_some(state, usize::MAX) {}
            at = part.make(store, open, (at, usize::MAX));
        }
        debug_assert_eq!(at, receivers, "all are made");
        whole(part, (store, id), ticket);
    }

    /// Makes rows on, of the first publication that lacks some; gives whether there is more to do.
    fn make_some(&self, state: &mut State, left: usize) -> bool {
        let Some(open) = state.open.iter_mut().find(|open| open.making.is_some()) else { return false };
        let Some(mut making) = open.making.take() else { return false };
        if !open.has_failed() {
            let mut part = Part::empty(making.noted);
            making.at = part.make(&self.store, open, (making.at, left));
            // Nobody waits for a ticket that was dropped.
            let _ = making.parts.send(part);
            if making.at < open.audience.receivers() {
                open.making = Some(making);
                return true;
            }
        }
        making.made.resolve(Ok(()));
        state.open.iter().any(|open| open.making.is_some())
    }
}

/// The only part of a publication.
fn whole(part: Part, (store, id): (&SharedStore, u64), ticket: &mut Ticket) {
    match part {
        Part::Begun(commits) => commits.into_iter().for_each(|commit| ticket.wait_for(commit)),
        held => {
            let store = store.clone();
            ticket.save_next(Box::new(move || held.begin(&store, id)));
        }
    }
}

/// The ticket waits for parts that come.
fn gathered(
    (runtime, coming): (Handle, UnboundedReceiver<Part>),
    (store, id, noted): (&SharedStore, u64, bool),
    ticket: &mut Ticket,
) {
    let ((slot, all), store) = (Commit::pending(), store.clone());
    if noted {
        ticket.save_next(Box::new(move || {
            runtime.spawn(gather(coming, (store, id), slot));
            vec![all]
        }));
    } else {
        runtime.spawn(gather(coming, (store, id), slot));
        ticket.wait_for(all);
    }
}

/// Begins what was held, and waits for all.
async fn gather(mut coming: UnboundedReceiver<Part>, (store, id): (SharedStore, u64), slot: CommitSlot) {
    let mut begun = Vec::new();
    while let Some(part) = coming.recv().await {
        begun.extend(part.begin(&store, id));
        tokio::task::yield_now().await;
    }
    let mut result = Ok::<(), StoreError>(());
    for commit in begun {
        result = result.and(commit.await);
    }
    slot.resolve(result);
}

/// Makes on what lacks rows, with turns for others between.
pub(super) async fn make_on(topics: Arc<Topics>, place: Arc<Place>) {
    loop {
        tokio::task::yield_now().await;
        let mut state = place.state.lock();
        let more = topics.make_some(&mut state, PART);
        // It may have been decided meanwhile.
        topics.settle(&place, &mut state);
        if !more {
            state.making = false;
            return;
        }
    }
}
