//! Seats by their names: the topics, and whatever is on its way through them, know a seat's name only. A name finds its
//! seat where that is home, each time that something is said to it; who has gone is not found.
//!
//! Here a name finds its seat without looking its number up: that is asked for each delivery. A word from another node
//! brings the number.

use super::{Rows, SubOptions, Subscriber};
use crate::{principal::Principal, publication::Publication};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use tavi_store::{Commit, SharedStore};

/// The seats of this node by their numbers. They belong to whoever made them: here is only where they are found.
#[derive(Default)]
pub struct Seats(Mutex<HashMap<u64, Weak<dyn Subscriber>>>);

impl Seats {
    /// A seat that `make` makes under this number, which no other has.
    pub fn make<S: Subscriber + 'static>(
        self: &Arc<Self>,
        (number, who): (u64, &Principal),
        make: impl FnOnce(Seating) -> S,
    ) -> Arc<S> {
        Arc::new_cyclic(|seat: &Weak<S>| {
            let name = Arc::new(Name { number, principal: who.clone(), seat: seat.clone() });
            self.0.lock().insert(number, seat.clone());
            make(Seating { name, seats: self.clone() })
        })
    }

    /// The seat of that number.
    pub(crate) fn find(&self, number: u64) -> Option<Arc<dyn Subscriber>> {
        self.0.lock().get(&number)?.upgrade()
    }
}

/// A seat's hold on its name: when it goes, nobody is found under that name any more.
pub struct Seating {
    name: Arc<Name>,
    seats: Arc<Seats>,
}

impl Seating {
    /// The seat's number.
    pub fn number(&self) -> u64 {
        self.name.number
    }

    /// On whose behalf it receives.
    pub fn principal(&self) -> &Principal {
        &self.name.principal
    }

    /// What the topics know of the seat.
    pub fn name(&self) -> Arc<dyn Subscriber> {
        self.name.clone()
    }
}

impl Drop for Seating {
    fn drop(&mut self) {
        let mut seats = self.seats.0.lock();
        seats.remove(&self.name.number);
        if seats.len() * 4 < seats.capacity() {
            seats.shrink_to_fit();
        }
    }
}

/// A seat by its name.
struct Name {
    number: u64,
    principal: Principal,
    seat: Weak<dyn Subscriber>,
}

impl Subscriber for Name {
    fn id(&self) -> u64 {
        self.number
    }

    fn principal(&self) -> &Principal {
        &self.principal
    }

    fn store(&self, publication: &Arc<Publication>, options: &[SubOptions]) -> Option<Rows> {
        self.seat.upgrade()?.store(publication, options)
    }

    fn save(&self, store: &SharedStore, id: u64, rows: Rows) -> Commit {
        self.seat.upgrade().map_or_else(|| Commit::ready(Ok(())), |seat| seat.save(store, id, rows))
    }

    fn deliver(&self, publication: &Arc<Publication>, options: &[SubOptions]) {
        self.seat.upgrade().iter().for_each(|seat| seat.deliver(publication, options));
    }

    fn abandon(&self, publication: &Arc<Publication>) {
        self.seat.upgrade().iter().for_each(|seat| seat.abandon(publication));
    }
}
