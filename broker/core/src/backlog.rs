//! What is owed to one seat, without IO: rows in the store, items in memory, what is in flight.
//!
//! Everything owed has an id, its place, drawn under the owner's lock; items leave in the order of their ids. An id may
//! be *coming* (drawn, its commit not landed): what lies behind it waits. What does not fit into memory stays in the
//! owner's queue in the store and is read again page by page, from behind a cursor. A window bounds what may be in
//! flight; a full one is back pressure, nothing more.
//!
//! In memory lie at most twice the memory bound and once the window, and a few bytes for each id that is coming or
//! being deleted; never something for each stored row.

mod look;
mod ordered;

use crate::mailbox::Weigh;
use hashbrown::HashMap;
use ordered::Ordered;
use std::collections::{BTreeSet, VecDeque};

/// Something that can be owed to a seat. A clone is kept while it is in flight, so it should be cheap.
pub trait Owed: Weigh + Clone {
    /// Whether it has a row in the owner's queue, under its id: then memory may let go of it.
    fn is_stored(&self) -> bool;

    /// Whether it counts towards no bound of memory, because its maker waits for room before it makes more.
    fn is_free(&self) -> bool {
        false
    }
}

/// A bound by count and by bytes. A single item is always within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Items.
    pub items: usize,
    /// Bytes, as [`Weigh`] has them.
    pub bytes: usize,
}

/// An item for the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given<T> {
    /// Its place.
    pub id: u64,
    /// The item.
    pub item: T,
    /// It was in flight before, on a link that was cut.
    pub repeated: bool,
}

/// What is owed to one seat.
#[derive(Debug)]
pub struct Backlog<T> {
    memory: Bound,
    window: Bound,
    /// Drawn, and neither landed nor failed.
    coming: BTreeSet<u64>,
    /// In memory: the next to go.
    waiting: Pile<T>,
    /// In memory only, above the cursor: rows that are not read yet go before.
    later: Pile<T>,
    flight: Flight<T>,
    /// All stored rows up to here are in memory, in flight, coming or done with.
    cursor: u64,
    /// There may be rows above the cursor.
    behind: bool,
    reading: Option<Reading>,
    /// Dropped from memory after they had been in flight.
    repeated: BTreeSet<u64>,
    /// Acknowledged; the row may still be read.
    deleting: BTreeSet<u64>,
}

/// A page that is being read.
#[derive(Debug)]
struct Reading {
    after: u64,
    /// The least row that landed meanwhile and was left in the store: the page may lack it.
    missed: Option<u64>,
    /// Rows that were deleted meanwhile: the page may still have them.
    deleted: Vec<u64>,
}

impl<T: Owed> Backlog<T> {
    /// Nothing is owed, nothing is stored.
    pub fn new(memory: Bound, window: Bound) -> Backlog<T> {
        Backlog {
            memory,
            window,
            coming: BTreeSet::new(),
            waiting: Pile::default(),
            later: Pile::default(),
            flight: Flight::default(),
            cursor: 0,
            behind: false,
            reading: None,
            repeated: BTreeSet::new(),
            deleting: BTreeSet::new(),
        }
    }

    /// A queue is handed to this seat: its rows above `after` are owed too. What waits without a row goes first, as it was
    /// owed before.
    pub fn hand_over(&mut self, after: u64) {
        for (id, held) in std::mem::take(&mut self.waiting).items {
            // Up to `after` nothing is read again.
            if id > after && held.item.is_stored() {
                self.leave(id, held);
            } else {
                self.waiting.put(id, held);
            }
        }
        self.cursor = self.cursor.min(after);
        self.behind = true;
    }

    /// The rows above `after` are owed, after a restart.
    pub fn read_from(&mut self, after: u64) {
        self.cursor = self.cursor.min(after);
        self.behind = true;
        for (id, held) in self.waiting.split_above(self.cursor) {
            self.leave(id, held);
        }
    }

    /// This id was drawn for the seat and its commit is on its way. Nothing behind it leaves before
    /// [`landed`](Self::landed) or [`failed`](Self::failed).
    pub fn coming(&mut self, id: u64) {
        self.coming.insert(id);
    }

    /// The item is owed from now on; it was announced as coming, or needs no commit.
    ///
    /// # Errors
    /// The item, if there is no room for it and it is not stored.
    pub fn landed(&mut self, id: u64, item: T) -> Result<(), T> {
        self.coming.remove(&id);
        if self.knows(id) {
            return Ok(());
        }
        let unread = self.behind && id > self.cursor;
        let stored = item.is_stored();
        let pile = if unread { &mut self.later } else { &mut self.waiting };
        if (unread && stored) || !pile.has_room(&item, self.memory) {
            return if stored { self.stays_stored(id) } else { Err(item) };
        }
        let repeated = self.repeated.remove(&id);
        pile.put(id, Box::new(Held { item, repeated }));
        if !unread {
            self.cursor = self.cursor.max(id);
        }
        Ok(())
    }

    /// The commit of a coming id failed: it is not owed.
    pub fn failed(&mut self, id: u64) {
        self.coming.remove(&id);
    }

    /// A row that memory does not take is read again when its turn comes.
    fn stays_stored(&mut self, id: u64) -> Result<(), T> {
        if id <= self.cursor {
            self.read_from(id - 1);
        }
        self.behind = true;
        if let Some(reading) = &mut self.reading {
            reading.missed = Some(reading.missed.map_or(id, |other| other.min(id)));
        }
        Ok(())
    }

    /// The id behind which a page is to be read now, if there is room for one; the answer is [`page`](Self::page).
    pub fn wants(&mut self) -> Option<u64> {
        let wants = self.behind && self.reading.is_none() && self.waiting.is_half_empty(self.memory);
        if !wants {
            return None;
        }
        self.reading = Some(Reading { after: self.cursor, missed: None, deleted: Vec::new() });
        Some(self.cursor)
    }

    /// The page that was wanted: rows in the order of their ids, those left out that are another seat's. `upto` is the
    /// last id that was looked at; `end`: there was none behind it.
    pub fn page(&mut self, rows: Vec<(u64, T)>, upto: u64, end: bool) {
        let Some(reading) = self.reading.take() else { return };
        // The cursor was set back meanwhile: the next page begins there.
        if reading.after != self.cursor {
            return;
        }
        let mut whole = reading.missed.is_none();
        let upto = reading.missed.map_or(upto, |missed| upto.min(missed - 1));
        let mut reached = upto;
        for (id, item) in rows.into_iter().filter(|(id, _)| *id > self.cursor && *id <= upto) {
            // What is coming lands of its own.
            if self.coming.contains(&id) || self.knows(id) || reading.deleted.contains(&id) {
                continue;
            }
            if !self.waiting.has_room(&item, self.memory) {
                (reached, whole) = (id - 1, false);
                break;
            }
            let repeated = self.repeated.remove(&id);
            self.waiting.put(id, Box::new(Held { item, repeated }));
        }
        self.cursor = self.cursor.max(reached);
        self.behind = !(end && whole);
        self.catch_up();
    }

    /// The page could not be read; it will be wanted again.
    pub fn page_failed(&mut self) {
        self.reading = None;
    }

    /// What waited behind rows that are read now.
    fn catch_up(&mut self) {
        let above = if self.behind { self.later.split_above(self.cursor) } else { Ordered::default() };
        for (id, held) in std::mem::take(&mut self.later).items {
            self.cursor = self.cursor.max(id);
            self.waiting.put(id, held);
        }
        above.into_iter().for_each(|(id, held)| self.later.put(id, held));
    }

    /// The next item, which is in flight from now on; `None` if nothing is ready or the window is full.
    #[expect(clippy::should_implement_trait, reason = "an iterator would promise that the end is the end")]
    pub fn next(&mut self) -> Option<Given<T>> {
        let (id, held) = self.waiting.items.first()?;
        let blocked = self.coming.first().is_some_and(|coming| *coming < id);
        if blocked || !self.flight.has_room(&held.item, self.window) {
            return None;
        }
        let (id, held) = self.waiting.pop()?;
        let given = Given { id, item: held.item.clone(), repeated: held.repeated };
        self.flight.put(id, held);
        Some(given)
    }

    /// The peer has this one for good. Its row, if there is one, is to be deleted; once that is durable,
    /// [`deleted`](Self::deleted) must be told.
    pub fn acknowledge(&mut self, id: u64) -> Option<T> {
        let item = self.flight.take(id)?;
        if item.is_stored() {
            self.deleting.insert(id);
        }
        Some(item)
    }

    /// The peer has the first `count` of what is in flight, in the order of sending (XEP-0198 §4).
    pub fn acknowledge_first(&mut self, count: usize) -> Vec<(u64, T)> {
        let ids: Vec<u64> = self.flight.iter().take(count).map(|(id, _)| id).collect();
        ids.into_iter().filter_map(|id| self.acknowledge(id).map(|item| (id, item))).collect()
    }

    /// A stored row that memory does not have is not owed any more, and is being deleted; once that is durable,
    /// [`deleted`](Self::deleted) must be told.
    pub fn discard(&mut self, id: u64) {
        self.repeated.remove(&id);
        self.deleting.insert(id);
    }

    /// The row of something acknowledged is gone from the store.
    pub fn deleted(&mut self, id: u64) {
        if self.deleting.remove(&id)
            && let Some(reading) = &mut self.reading
        {
            reading.deleted.push(id);
        }
    }

    /// The link is gone: everything in flight is owed again, in order.
    pub fn cut(&mut self) {
        for (id, mut held) in self.flight.clear() {
            held.repeated = true;
            if self.behind && id > self.cursor {
                self.leave(id, held);
            } else {
                self.cursor = self.cursor.max(id);
                self.waiting.put(id, held);
            }
        }
    }

    /// It was in flight when an earlier process ended; in the order of sending.
    pub fn was_sent(&mut self, id: u64, item: T) {
        self.flight.put(id, Box::new(Held { item, repeated: true }));
    }

    /// A new link: from now on so much may be in flight.
    pub fn attach(&mut self, window: Bound) {
        self.window = window;
    }

    /// Lets go of everything that can be read again: for a seat that waits for its link.
    pub fn shed(&mut self) {
        let first = self.waiting.items.iter().find(|(_, held)| held.item.is_stored()).map(|(id, _)| id);
        if let Some(first) = first {
            self.read_from(first - 1);
        }
    }

    /// The seat ends: all that was owed and is in memory, what was in flight first, each in order. Rows that were not
    /// read stay in the store.
    pub fn end(&mut self) -> Vec<(u64, T)> {
        self.coming.clear();
        self.behind = false;
        let mut owed = self.flight.clear();
        for pile in [&mut self.waiting, &mut self.later] {
            owed.extend(std::mem::take(pile).items);
        }
        owed.into_iter().map(|(id, held)| (id, held.item)).collect()
    }

    /// How many items wait in memory.
    pub fn len(&self) -> usize {
        self.waiting.items.len() + self.later.items.len()
    }

    /// Whether nothing waits in memory; something may be coming, stored or in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes wait in memory.
    pub fn bytes(&self) -> usize {
        self.waiting.bytes + self.later.bytes
    }

    /// What is in flight, in the order of sending.
    pub fn sent(&self) -> impl Iterator<Item = (u64, &T)> {
        self.flight.iter()
    }

    /// How many items are in flight.
    pub fn in_flight(&self) -> usize {
        self.flight.seqs.len()
    }

    /// Whether something could go out if the window were larger.
    pub fn is_held_up(&self) -> bool {
        let next = self.waiting.items.first();
        next.is_some_and(|(id, held)| {
            self.coming.first().is_none_or(|coming| *coming > id) && !self.flight.has_room(&held.item, self.window)
        })
    }

    /// Whether the next item is ready, window or not.
    pub fn is_ready(&self) -> bool {
        let next = self.waiting.items.first();
        next.is_some_and(|(id, _)| self.coming.first().is_none_or(|coming| *coming > id))
    }

    /// Whether rows of the store may still have to be read.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// A part of memory is let go of: what is stored is read again, the rest waits for what is read before it.
    fn leave(&mut self, id: u64, held: Box<Held<T>>) {
        if !held.item.is_stored() {
            self.later.put(id, held);
        } else if held.repeated {
            self.repeated.insert(id);
        }
    }

    /// Whether it is in memory, in flight or being deleted.
    pub fn knows(&self, id: u64) -> bool {
        let piles = [&self.waiting, &self.later];
        self.flight.seqs.contains_key(&id)
            || self.deleting.contains(&id)
            || piles.iter().any(|pile| pile.items.contains(id))
    }
}

#[derive(Debug)]
struct Held<T> {
    item: T,
    repeated: bool,
}

/// Items in the order of their ids, with their weight.
#[derive(Debug)]
struct Pile<T> {
    items: Ordered<Held<T>>,
    bytes: usize,
    /// How many of them, and of their bytes, count towards no bound.
    free: (usize, usize),
}

impl<T> Default for Pile<T> {
    fn default() -> Pile<T> {
        Pile { items: Ordered::default(), bytes: 0, free: (0, 0) }
    }
}

impl<T: Owed> Pile<T> {
    fn put(&mut self, id: u64, held: Box<Held<T>>) {
        let weight = held.item.weight();
        self.bytes += weight;
        if held.item.is_free() {
            self.free = (self.free.0 + 1, self.free.1 + weight);
        }
        self.items.insert(id, held);
    }

    fn pop(&mut self) -> Option<(u64, Box<Held<T>>)> {
        let (id, held) = self.items.pop_first()?;
        self.left(&held);
        Some((id, held))
    }

    fn left(&mut self, held: &Held<T>) {
        let weight = held.item.weight();
        self.bytes -= weight;
        if held.item.is_free() {
            self.free = (self.free.0 - 1, self.free.1 - weight);
        }
    }

    /// Items and bytes that count.
    fn counted(&self) -> (usize, usize) {
        (self.items.len() - self.free.0, self.bytes - self.free.1)
    }

    fn has_room(&self, item: &T, bound: Bound) -> bool {
        item.is_free() || has_room(self.counted(), item, bound)
    }

    fn is_half_empty(&self, bound: Bound) -> bool {
        let (items, bytes) = self.counted();
        items == 0 || (items * 2 <= bound.items && bytes * 2 <= bound.bytes)
    }

    fn split_above(&mut self, id: u64) -> Ordered<Held<T>> {
        let above = self.items.split_above(id);
        above.iter().for_each(|(_, held)| self.left(held));
        above
    }
}

/// What is in flight, in the order of sending. It is acknowledged from the front, but for what others have settled.
#[derive(Debug)]
struct Flight<T> {
    /// From the number `first` on; a hole is what was acknowledged out of turn. The front is none.
    sent: VecDeque<Option<(u64, Box<Held<T>>)>>,
    first: u64,
    /// The number under which each id was sent.
    seqs: HashMap<u64, u64>,
    bytes: usize,
}

impl<T> Default for Flight<T> {
    fn default() -> Flight<T> {
        Flight { sent: VecDeque::new(), first: 0, seqs: HashMap::new(), bytes: 0 }
    }
}

impl<T: Owed> Flight<T> {
    fn has_room(&self, item: &T, bound: Bound) -> bool {
        has_room((self.seqs.len(), self.bytes), item, bound)
    }

    fn put(&mut self, id: u64, held: Box<Held<T>>) {
        self.bytes += held.item.weight();
        if self.sent.capacity() == 0 {
            self.sent.reserve(16);
            self.seqs.reserve(16);
        }
        self.seqs.insert(id, self.first + self.sent.len() as u64);
        self.sent.push_back(Some((id, held)));
    }

    fn take(&mut self, id: u64) -> Option<T> {
        let seq = self.seqs.remove(&id)?;
        let (_, held) = self.sent.get_mut((seq - self.first) as usize)?.take()?;
        self.bytes -= held.item.weight();
        while let Some(None) = self.sent.front() {
            self.sent.pop_front();
            self.first += 1;
        }
        if self.seqs.is_empty() {
            // An idle seat keeps no memory for this.
            (self.sent, self.seqs) = (VecDeque::new(), HashMap::new());
        } else if self.sent.len() > 2 * self.seqs.len() + 64 {
            self.close_holes();
        }
        Some(held.item)
    }

    /// One that is never acknowledged must not keep the places of all behind it.
    fn close_holes(&mut self) {
        self.sent.retain(Option::is_some);
        for (at, (id, _)) in self.sent.iter().flatten().enumerate() {
            self.seqs.insert(*id, self.first + at as u64);
        }
    }

    fn get(&self, id: u64) -> Option<&T> {
        let seq = self.seqs.get(&id)?;
        self.sent.get((seq - self.first) as usize)?.as_ref().map(|(_, held)| &held.item)
    }

    fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.sent.iter().flatten().map(|(id, held)| (*id, &held.item))
    }

    fn clear(&mut self) -> Vec<(u64, Box<Held<T>>)> {
        std::mem::take(self).sent.into_iter().flatten().collect()
    }
}

/// A single item always has room.
fn has_room<T: Weigh>((items, bytes): (usize, usize), item: &T, bound: Bound) -> bool {
    items == 0 || (items < bound.items && bytes + item.weight() <= bound.bytes)
}

#[cfg(test)]
mod tests;
