//! How publications land: of one topic in the order in which they were begun, whoever publishes and whatever is saved
//! first. So the last event that a reader sees is the value that is kept.

use super::{
    Topics,
    kept::{Kept, LARGE},
    making::{self, Making},
    place::{Place, State},
    quota::Paid,
    receivers::{Audience, Match},
};
use crate::publication::{Change, Publication};
use parking_lot::MutexGuard;
use std::{collections::VecDeque, mem, sync::Arc};
use tavi_store::{Commit, CommitSlot};
use tokio::runtime::Handle;

/// So many small publications of a topic may be saved and not yet handed out before their publishers wait.
const AHEAD: usize = 16;
/// A larger one's publisher always waits.
const SMALL: usize = 16 * 1024;
/// Deliveries that one publisher makes at most, and of what others published meanwhile; the rest is a task's.
const AT_ONCE: usize = 1024;

/// A publication that was begun.
pub(super) struct Open {
    pub(super) publication: Arc<Publication>,
    pub(super) audience: Audience,
    /// Whoever subscribed with this change or an earlier one is in the audience.
    pub(super) seen: u64,
    /// Its id was drawn when it was begun, so it is newer than all that landed before.
    fresh: bool,
    /// The rows that it lacks.
    pub(super) making: Option<Making>,
    fate: Fate,
    /// So many receivers were told of its fate.
    told: usize,
    /// Its publisher waits until it is handed out.
    waits: Option<CommitSlot>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Saving,
    Saved,
    Failed,
}

impl Open {
    pub(super) fn new(publication: Arc<Publication>, fresh: bool, (audience, seen): (Audience, u64)) -> Open {
        Open { publication, audience, seen, fresh, making: None, fate: Fate::Saving, told: 0, waits: None }
    }

    /// Whether it will be a retained value that a subscriber who came with change `since` has no part in.
    pub(super) fn is_missed(&self, since: u64) -> bool {
        self.publication.retain && self.seen < since && self.fate != Fate::Failed
    }

    /// Something of it could not be saved.
    pub(super) fn has_failed(&self) -> bool {
        self.fate == Fate::Failed
    }

    /// Whether its fate is to be told: it is decided, and nobody makes rows of it any more.
    fn is_due(&self) -> bool {
        self.fate != Fate::Saving && self.making.is_none()
    }
}

/// The word of a publication to its topic's home: its turn, by the topic's name and its number there. Dropped without
/// [`Turn::land`], it failed.
pub(crate) struct Turn {
    topics: Arc<Topics>,
    topic: Arc<str>,
    hash: u64,
    number: u64,
    decided: bool,
}

impl Turn {
    /// Puts a publication behind those of its topic that are open; the topic's lock is held.
    pub(super) fn begin(topics: &Arc<Topics>, place: &Arc<Place>, state: &mut State, open: Open) -> Turn {
        let (number, topic) = (state.first + state.open.len() as u64, open.publication.topic.clone());
        let lacks = open.making.is_some();
        state.open.push_back(open);
        place.expects(state);
        if lacks
            && !state.making
            && let Ok(runtime) = Handle::try_current()
        {
            state.making = true;
            runtime.spawn(making::make_on(topics.clone(), place.clone()));
        }
        Turn { topics: topics.clone(), topic, hash: place.hash, number, decided: false }
    }

    /// All is saved. It lands now, or as soon as those before it have: that is to be waited for if there are many, so that
    /// nobody publishes faster than it is delivered.
    pub(crate) fn land(mut self) -> Option<Commit> {
        self.decide(Fate::Saved)
    }

    fn decide(&mut self, fate: Fate) -> Option<Commit> {
        if mem::replace(&mut self.decided, true) {
            return None;
        }
        // It stays where it is as long as it has something open.
        let place = self.topics.places.named((&self.topic, self.hash))?;
        let mut state = place.state.lock();
        self.of(&mut state)?.1.fate = fate;
        self.topics.settle(&place, &mut state);
        let (before, open) = self.of(&mut state)?;
        if before < AHEAD && open.publication.weight() <= SMALL {
            return None;
        }
        let (slot, handed_out) = Commit::pending();
        open.waits = Some(slot);
        Some(handed_out)
    }

    /// The publication, with how many of its topic are before it; `None` when it is handed out.
    fn of<'a>(&self, state: &'a mut State) -> Option<(usize, &'a mut Open)> {
        if self.number + 1 == state.first {
            return state.handing.as_mut().map(|open| (0, &mut **open));
        }
        let at = self.number.checked_sub(state.first)? as usize;
        state.open.get_mut(at).map(|open| (at, open))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Nobody waits for what failed.
        drop(self.decide(Fate::Failed));
    }
}

/// The word to somebody with a queue of his own who subscribed while a publication was being saved: his rows are saved
/// now, too. Dropped without [`Late::land`], they could not be.
pub(crate) struct Late {
    to: Match,
    publication: Arc<Publication>,
    fate: Fate,
}

impl Late {
    pub(super) fn new(to: Match, publication: Arc<Publication>) -> Late {
        Late { to, publication, fate: Fate::Failed }
    }

    /// All is saved.
    pub(crate) fn land(mut self) {
        self.fate = Fate::Saved;
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.to.tell(&self.publication, self.fate);
    }
}

impl Topics {
    /// Whatever is at the front and decided takes its effect, one after the other; one thread at a time does this for a
    /// topic, and if there is much to do, a task of its own.
    pub(super) fn settle(self: &Arc<Self>, place: &Arc<Place>, state: &mut MutexGuard<'_, State>) {
        if mem::replace(&mut state.delivering, true) {
            return;
        }
        if !self.settle_some(place, state) {
            state.delivering = false;
        } else if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(settle_on(self.clone(), place.clone()));
        } else {
            while self.settle_some(place, state) {}
            state.delivering = false;
        }
    }

    /// Gives whether there is more to do. The caller delivers.
    fn settle_some(&self, place: &Place, state: &mut MutexGuard<'_, State>) -> bool {
        let mut left = AT_ONCE;
        while let Some(mut open) = state.handing.take().map(|open| *open).or_else(|| self.take_due(place, state)) {
            let is_done = MutexGuard::unlocked(state, || open.hand_out(&mut left));
            if !is_done {
                state.handing = Some(Box::new(open));
                return true;
            }
            if left == 0 && state.open.front().is_some_and(Open::is_due) {
                return true;
            }
        }
        place.expects(state);
        if state.open.is_empty() {
            // Most topics are quiet most of the time, and there are many.
            state.open = VecDeque::new();
        }
        false
    }

    /// The first publication, if it is decided: it is the topic's value, or will never be.
    fn take_due(&self, place: &Place, state: &mut State) -> Option<Open> {
        let open = state.open.pop_front_if(|open| open.is_due())?;
        state.first += 1;
        match open.fate {
            Fate::Saved => self.change_value(state, &open),
            // Nobody knows what of it the store has.
            _ if open.publication.retain => (state.kept, state.paid) = (Kept::InStore, Paid::Unknown),
            _ => {}
        }
        self.places.charge(place, state, open.publication.topic.len());
        if open.publication.retain {
            self.saving.leave(&open.publication.topic);
            state.waiting.drain(..).for_each(|waker| waker.wake());
        }
        Some(open)
    }

    fn change_value(&self, state: &mut State, open: &Open) {
        let publication = &open.publication;
        // An older publication that lands late changes no value (semantics.md: ids decide).
        if state.latest.as_ref().is_none_or(|latest| latest.id < publication.id) {
            let small = publication.weight() <= LARGE;
            state.latest = (small || publication.change == Change::Clear).then(|| publication.clone());
        }
        let newest = if state.retained_id > 0 { publication.id > state.retained_id } else { open.fresh };
        if publication.retain && newest {
            state.retained_id = publication.id;
            state.retained_seen = open.seen;
            state.kept = Kept::of(publication);
        }
    }
}

/// Hands out on, with turns for others between.
async fn settle_on(topics: Arc<Topics>, place: Arc<Place>) {
    loop {
        tokio::task::yield_now().await;
        let mut state = place.state.lock();
        if !topics.settle_some(&place, &mut state) {
            state.delivering = false;
            return;
        }
    }
}

impl Open {
    /// Tells the next receivers, at most `left`; gives whether all were told.
    fn hand_out(&mut self, left: &mut usize) -> bool {
        while *left > 0
            && let Some(to) = self.audience.get(self.told)
        {
            if to.wants(&self.publication) {
                to.tell(&self.publication, self.fate);
            }
            (self.told, *left) = (self.told + 1, *left - 1);
        }
        if self.audience.get(self.told).is_some() {
            return false;
        }
        *left = left.saturating_sub(1);
        if let Some(publisher) = self.waits.take() {
            publisher.resolve(Ok(()));
        }
        true
    }
}

impl Match {
    fn tell(&self, publication: &Arc<Publication>, fate: Fate) {
        match fate {
            Fate::Saved => self.subscriber.deliver(publication, &self.options),
            _ => self.subscriber.abandon(publication),
        }
    }
}
