//! What is kept of a topic in memory: a cache, bounded by bytes.

use super::{kept::Kept, landing::Open, quota::Paid, receivers::Found};
use crate::publication::Publication;
use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
    task::Waker,
};

const SHARDS: usize = 16;
/// Bytes of all places together, about; beyond it those go that were not used of late.
const MAX_BYTES: usize = 16 << 20;

/// A topic's place: its lock is the one under which ids are drawn and values change.
#[derive(Default)]
pub(super) struct Place {
    pub(super) state: Mutex<State>,
    /// Since the last round of forgetting.
    used: AtomicBool,
    /// Publications are open, and come back to it by its name.
    expects: AtomicBool,
    /// What it counts for in its shard.
    charged: AtomicUsize,
    /// Of its topic's name.
    pub(super) hash: u64,
}

/// What is known of a topic.
#[derive(Default)]
pub(super) struct State {
    /// The newest value that landed, retained or not, unless it is large.
    pub(super) latest: Option<Arc<Publication>>,
    /// Its retained value.
    pub(super) kept: Kept,
    /// Who pays for the retained value, what is being saved taken in.
    pub(super) paid: Paid,
    /// The greatest id of a retained change that is known; 0: none is.
    pub(super) retained_id: u64,
    /// Which subscriptions had part in the retained change that landed last.
    pub(super) retained_seen: u64,
    /// Publications that were begun and have not landed, in their order.
    pub(super) open: VecDeque<Open>,
    /// The number of the first of them.
    pub(super) first: u64,
    /// Somebody makes the rows of open publications just now, and takes along what is begun meanwhile.
    pub(super) making: bool,
    /// Somebody delivers just now, and takes along what lands meanwhile.
    pub(super) delivering: bool,
    /// What has landed and was not handed out to all yet; the number of the first open one is the next.
    pub(super) handing: Option<Box<Open>>,
    /// Readers that wait until what is being saved has landed.
    pub(super) waiting: Vec<Waker>,
    /// Its receivers.
    pub(super) found: Option<Found>,
}

impl Place {
    /// Notes whether something is open; its lock is held.
    pub(super) fn expects(&self, state: &State) {
        self.expects.store(!state.open.is_empty(), Ordering::Relaxed);
    }

    /// Somebody is at it just now, or comes back to it. Nobody can come newly: the lock on its shard is held.
    fn is_needed(place: &Arc<Place>) -> bool {
        Arc::strong_count(place) > 1 || {
            // What whoever was at it has left behind.
            fence(Ordering::Acquire);
            place.expects.load(Ordering::Relaxed)
        }
    }
}

impl State {
    fn weight(&self, topic: usize) -> usize {
        let latest = self.latest.as_ref().map_or(0, |p| p.resident());
        let kept = match (&self.kept, &self.latest) {
            (Kept::Here(kept), Some(latest)) if Arc::ptr_eq(kept, latest) => 0,
            (Kept::Here(kept), _) => kept.resident(),
            _ => 0,
        };
        EMPTY + topic + latest + kept + self.found.as_ref().map_or(0, Found::weight)
    }
}

/// About what a place without anything takes.
const EMPTY: usize = size_of::<Place>() + 96;

/// The places of all topics that were used of late.
pub(super) struct Places {
    shards: [Shard; SHARDS],
    hasher: DefaultHashBuilder,
    max_bytes: usize,
}

/// A topic with its hash, and its place.
type Known = (u64, Arc<str>, Arc<Place>);

#[derive(Default)]
struct Shard {
    places: Mutex<HashTable<Known>>,
    bytes: AtomicUsize,
    /// How often something was let go of.
    forgotten: AtomicU64,
}

impl Default for Places {
    fn default() -> Places {
        Places::with_room(MAX_BYTES)
    }
}

impl Places {
    /// Places that together hold about so many bytes.
    pub(super) fn with_room(max_bytes: usize) -> Places {
        Places { shards: Default::default(), hasher: DefaultHashBuilder::default(), max_bytes }
    }

    /// A topic's place, if it is in memory.
    pub(super) fn known(&self, topic: &str) -> Option<Arc<Place>> {
        self.named((topic, self.hasher.hash_one(topic)))
    }

    /// The same for a name that carries its hash.
    pub(super) fn named(&self, (topic, hash): (&str, u64)) -> Option<Arc<Place>> {
        let places = self.shards[shard(hash)].places.lock();
        places.find(hash, |(_, of, _)| **of == *topic).map(|(.., place)| place.clone())
    }

    /// Grows whenever places are let go of: whoever found none may be wrong since.
    pub(super) fn forgotten(&self) -> u64 {
        self.shards.iter().map(|shard| shard.forgotten.load(Ordering::Acquire)).sum()
    }

    /// A topic's place; an empty one if it is not in memory.
    pub(super) fn at(&self, topic: &Arc<str>) -> Arc<Place> {
        let hash = self.hasher.hash_one(&**topic);
        let shard = &self.shards[shard(hash)];
        let mut places = shard.places.lock();
        if let Some((.., place)) = places.find(hash, |(_, of, _)| of == topic) {
            place.used.store(true, Ordering::Relaxed);
            return place.clone();
        }
        let most = self.max_bytes / SHARDS;
        if shard.bytes.load(Ordering::Relaxed) >= most {
            shard.forget(&mut places, most);
        }
        let place = Place { hash, ..Place::default() };
        place.charged.store(EMPTY + topic.len(), Ordering::Relaxed);
        shard.bytes.fetch_add(EMPTY + topic.len(), Ordering::Relaxed);
        let place = Arc::new(place);
        places.insert_unique(hash, (hash, topic.clone(), place.clone()), |(hash, ..)| *hash);
        place
    }

    /// Lets go of all that nobody holds.
    #[cfg(test)]
    pub(super) fn forget_unused(&self) {
        self.shards.iter().for_each(|shard| shard.keep(&mut shard.places.lock(), |_| false));
    }

    /// Counts anew what a place takes; its lock is held.
    pub(super) fn charge(&self, place: &Place, state: &State, topic: usize) {
        let now = state.weight(topic);
        let before = place.charged.swap(now, Ordering::Relaxed);
        let bytes = &self.shards[shard(place.hash)].bytes;
        bytes.fetch_add(now, Ordering::Relaxed);
        bytes.fetch_sub(before, Ordering::Relaxed);
    }

    /// Lets go of the receivers that are kept for places which nobody used since the last call, so that no dead
    /// subscriber is held for long.
    pub(super) fn forget_receivers(&self) {
        for shard in &self.shards {
            for (_, topic, place) in shard.places.lock().iter() {
                // Whoever holds the lock uses it.
                if !place.used.swap(false, Ordering::Relaxed)
                    && let Some(mut state) = place.state.try_lock()
                {
                    state.found = None;
                    self.charge(place, &state, topic.len());
                }
            }
        }
    }
}

/// The table within takes the other bits.
fn shard(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

impl Shard {
    /// Lets go of what was not used since the last time; if that is not enough, of all that nobody holds.
    fn forget(&self, places: &mut HashTable<Known>, most: usize) {
        self.keep(places, |place| place.used.swap(false, Ordering::Relaxed));
        if self.bytes.load(Ordering::Relaxed) > most / 4 * 3 {
            self.keep(places, |_| false);
        }
    }

    fn keep(&self, places: &mut HashTable<Known>, wanted: impl Fn(&Place) -> bool) {
        self.forgotten.fetch_add(1, Ordering::Release);
        places.retain(|(.., place)| {
            let keep = wanted(place) || Place::is_needed(place);
            if !keep {
                self.bytes.fetch_sub(place.charged.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            keep
        });
    }
}
