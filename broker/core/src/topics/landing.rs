//! How publications land: of one topic in the order in which they were begun, whoever publishes and whatever is saved
//! first. So the last event that a reader sees is the value that is kept.

use super::{
    Topics,
    kept::{Kept, LARGE},
    place::{Place, State},
    quota::Paid,
    receivers::{Audience, Match},
};
use crate::publication::{Change, Publication};
use parking_lot::MutexGuard;
use std::{collections::VecDeque, sync::Arc};

/// A publication that was begun.
pub(super) struct Open {
    pub(super) publication: Arc<Publication>,
    pub(super) audience: Audience,
    /// Whoever subscribed with this change or an earlier one is in the audience.
    pub(super) seen: u64,
    /// Its id was drawn when it was begun, so it is newer than all that landed before.
    fresh: bool,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Saving,
    Saved,
    Failed,
}

impl Open {
    pub(super) fn new(publication: Arc<Publication>, fresh: bool, (audience, seen): (Audience, u64)) -> Open {
        Open { publication, audience, seen, fresh, fate: Fate::Saving }
    }

    /// Whether it will be a retained value that a subscriber who came with change `since` has no part in.
    pub(super) fn is_missed(&self, since: u64) -> bool {
        self.publication.retain && self.seen < since && self.fate != Fate::Failed
    }
}

/// The word of a publication to its topic's home: its turn, by the topic's name and its number there. Dropped without
/// [`Turn::land`], it failed.
pub(crate) struct Turn {
    topics: Arc<Topics>,
    topic: Arc<str>,
    hash: u64,
    number: u64,
    fate: Fate,
}

impl Turn {
    /// Puts a publication behind those of its topic that are open; the topic's lock is held.
    pub(super) fn begin(topics: &Arc<Topics>, place: &Place, state: &mut State, open: Open) -> Turn {
        let (number, topic) = (state.first + state.open.len() as u64, open.publication.topic.clone());
        state.open.push_back(open);
        place.expects(state);
        Turn { topics: topics.clone(), topic, hash: place.hash, number, fate: Fate::Failed }
    }

    /// All is saved. It lands now, or as soon as those before it have.
    pub(crate) fn land(mut self) {
        self.fate = Fate::Saved;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // It stays where it is as long as it has something open.
        let Some(place) = self.topics.places.named((&self.topic, self.hash)) else { return };
        let mut state = place.state.lock();
        let at = self.number.checked_sub(state.first).map(|at| at as usize);
        if let Some(open) = at.and_then(|at| state.open.get_mut(at)) {
            open.fate = self.fate;
        }
        self.topics.settle(&place, state);
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
    /// topic.
    fn settle(&self, place: &Place, mut state: MutexGuard<'_, State>) {
        if state.delivering {
            return;
        }
        while let Some(open) = state.open.pop_front_if(|open| open.fate != Fate::Saving) {
            state.first += 1;
            match open.fate {
                Fate::Saved => self.change_value(&mut state, &open),
                // Nobody knows what of it the store has.
                _ if open.publication.retain => (state.kept, state.paid) = (Kept::InStore, Paid::Unknown),
                _ => {}
            }
            self.places.charge(place, &state, open.publication.topic.len());
            if open.publication.retain {
                self.saving.leave(&open.publication.topic);
                state.waiting.drain(..).for_each(|waker| waker.wake());
            }
            state.delivering = true;
            MutexGuard::unlocked(&mut state, || open.hand_out());
            state.delivering = false;
        }
        place.expects(&state);
        if state.open.is_empty() {
            // Most topics are quiet most of the time, and there are many.
            state.open = VecDeque::new();
        }
    }

    fn change_value(&self, state: &mut State, open: &Open) {
        let publication = &open.publication;
        // An older publication that lands late changes no value (semantics.md: ids decide).
        if state.latest.as_ref().is_none_or(|latest| latest.id < publication.id) {
            let small = publication.payload.len() <= LARGE;
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

impl Open {
    fn hand_out(&self) {
        self.audience.of(&self.publication).for_each(|to| to.tell(&self.publication, self.fate));
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
