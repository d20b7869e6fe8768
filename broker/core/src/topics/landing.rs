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

/// A publication's claim to its turn. Dropped without [`Turn::land`], it failed.
pub(crate) struct Turn {
    topics: Arc<Topics>,
    place: Arc<Place>,
    number: u64,
    fate: Fate,
}

impl Turn {
    /// Puts a publication behind those of its topic that are open; the topic's lock is held.
    pub(super) fn begin(topics: &Arc<Topics>, place: &Arc<Place>, state: &mut State, open: Open) -> Turn {
        let number = state.first + state.open.len() as u64;
        state.open.push_back(open);
        Turn { topics: topics.clone(), place: place.clone(), number, fate: Fate::Failed }
    }

    /// All is saved. It lands now, or as soon as those before it have.
    pub(crate) fn land(mut self) {
        self.fate = Fate::Saved;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.place.state.lock();
        let at = (self.number - state.first) as usize;
        if let Some(open) = state.open.get_mut(at) {
            open.fate = self.fate;
        }
        self.topics.settle(&self.place, state);
    }
}

/// A publication that was being saved when somebody with a queue of his own subscribed: his rows are saved now, too.
pub(crate) struct Late {
    pub(super) to: Match,
    pub(super) publication: Arc<Publication>,
}

impl Late {
    /// All is saved.
    pub(crate) fn deliver(self) {
        self.to.subscriber.deliver(&self.publication, &self.to.options);
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
        for m in self.audience.of(&self.publication) {
            match self.fate {
                Fate::Saved => m.subscriber.deliver(&self.publication, &m.options),
                _ => m.subscriber.abandon(&self.publication),
            }
        }
    }
}
