//! Who holds each session, who waits for it, and what becomes of it when its time has come: a state machine without IO.
//!
//! One entry per client id of a principal. A connection arrives, waits its turn, enters, leaves, and is done when all
//! that it began is saved. The entry owns its deadlines, the end of the session and the delay of the will; both are of
//! the monotonic clock, so that setting the wall clock ends nothing. Each entry has at most one place in the order of
//! deadlines, so reconnects leave nothing behind.
//!
//! `S` is the seat that outlives connections, `W` what is published as a will.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Session key: who, and which of their clients. One principal can not take over another's session.
pub type Key = (Box<str>, Box<str>);

/// A connection, by a number that grows with its arrival.
pub type LinkId = u64;

/// Session expiry interval that never ends (MQTT 5.0 §3.1.2.11.2).
pub const NEVER: u32 = u32::MAX;

/// The key before all sessions of a principal.
fn first_of(subject: &str) -> Key {
    (subject.into(), "".into())
}

/// What is published when a connection is cut, and how many seconds later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastWill<W> {
    /// The publish.
    pub what: W,
    /// Will Delay Interval (MQTT 5.0 §3.1.3.2.2).
    pub delay: u32,
}

/// All sessions of a node.
pub struct Entries<S, W> {
    all: BTreeMap<Key, Entry<S, W>>,
    deadlines: BTreeSet<(u64, Key)>,
}

struct Entry<S, W> {
    seat: S,
    durable: bool,
    lease: Lease<W>,
    /// The connection whose work is not done: it holds the session or has just left it.
    busy: Option<LinkId>,
    /// The connection that waits for the session; a later one takes its place.
    next: Option<LinkId>,
}

/// Whether a connection has the session.
enum Lease<W> {
    Held { link: LinkId, will: Option<LastWill<W>> },
    Left { ends_ms: Option<u64>, will: Option<(u64, W)> },
}

/// What a connection that arrives is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<S> {
    /// It may enter now.
    Enter,
    /// It waits until the former one is done; that one's seat is to be told that it is replaced, and whoever waited
    /// before is to be woken.
    Wait(S, Option<LinkId>),
    /// A later one has the session or waits for it.
    Outdated,
}

/// A connection that enters.
pub struct Entrance<W> {
    /// Its number.
    pub link: LinkId,
    /// Clean start: a former session ends (MQTT 5.0 §3.1.2.4).
    pub clean: bool,
    /// Whether a new session would outlive the connection.
    pub durable: bool,
    /// Its will.
    pub will: Option<LastWill<W>>,
}

/// What entering came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Entered<S, W> {
    /// The session's seat, new or not.
    pub seat: S,
    /// The session was there before.
    pub resumed: bool,
    /// The session that ended for this, with its will, which is published now (§3.1.3.2.2: the session ended).
    pub former: Option<Former<S>>,
    /// A will that is published now.
    pub will: Option<W>,
    /// The connection that has to be done before the will is published: a will is its client's last word.
    pub after: Option<LinkId>,
    /// The former connection or session had a will, published or not: its record is there.
    pub had_will: bool,
    /// A connection that has to arrive again.
    pub woken: Option<LinkId>,
}

/// A session that is no more.
#[derive(Debug, PartialEq, Eq)]
pub struct Former<S> {
    /// Its seat.
    pub seat: S,
    /// Whether it had outlived connections, so that something of it is stored.
    pub durable: bool,
    /// Whether a connection had it, which is to be told.
    pub held: bool,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// DISCONNECT with reason 0: the will is dropped (MQTT 5.0 §3.1.2.5).
    InOrder,
    /// Anything else: the will is published.
    Cut,
}

/// What a connection leaves.
#[derive(Debug, PartialEq, Eq)]
pub struct Left<S, W> {
    /// The session, if it ended with the connection.
    pub ended: Option<S>,
    /// A will that is published now.
    pub will: Option<W>,
    /// There was a will and it does not wait: its record is not needed any more.
    pub will_gone: bool,
    /// A connection that has to arrive again.
    pub woken: Option<LinkId>,
}

/// What has to be done because its time has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Due<S, W> {
    /// The delay of a will is over; the session goes on.
    Will {
        /// Whose.
        key: Key,
        /// Its seat.
        seat: S,
        /// The will.
        will: W,
        /// The connection that has to be done first.
        after: Option<LinkId>,
    },
    /// A session ends, and with it the delay of its will.
    End {
        /// Whose.
        key: Key,
        /// Its seat.
        seat: S,
        /// Its will.
        will: Option<W>,
        /// The connection that has to be done first.
        after: Option<LinkId>,
    },
}

/// A session that was taken away.
pub struct Revoked<S> {
    /// Whose.
    pub key: Key,
    /// Its seat.
    pub seat: S,
    /// Whether anything of it is stored.
    pub stored: bool,
    /// A connection that has to arrive again.
    pub woken: Option<LinkId>,
}

/// A session as it stands.
pub struct Look<S> {
    /// Whose.
    pub key: Key,
    /// Its seat.
    pub seat: S,
    /// Whether it outlives its connection.
    pub durable: bool,
    /// Whether a connection has it.
    pub held: bool,
    /// When it ends if no connection goes on with it.
    pub ends_ms: Option<u64>,
    /// Whether it has a will.
    pub will: bool,
}

impl<S, W> Default for Entries<S, W> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), deadlines: BTreeSet::new() }
    }
}

impl<S: Clone, W> Entries<S, W> {
    /// A connection wants the session. It asks again when it is woken, under the same number.
    pub fn arrive(&mut self, key: &Key, link: LinkId, clean: bool) -> Arrival<S> {
        let Some(entry) = self.all.get(key) else { return Arrival::Enter };
        if entry.holder().max(entry.next).is_some_and(|later| later > link) {
            return Arrival::Outdated;
        }
        if clean || !entry.durable || entry.is_turn_of(link) {
            return Arrival::Enter;
        }
        let seat = entry.seat.clone();
        // Whoever waits was there in time: neither session nor will ends over it.
        let mut overtaken = None;
        self.change(key, |entry| overtaken = entry.next.replace(link));
        Arrival::Wait(seat, overtaken.filter(|overtaken| *overtaken != link))
    }

    /// A connection that waited does not wait any more.
    pub fn give_up(&mut self, key: &Key, link: LinkId) {
        self.change(key, |entry| entry.next = entry.next.filter(|next| *next != link));
    }

    /// A connection whose turn it is enters; `new_seat` makes a seat if no session goes on.
    pub fn enter(&mut self, key: &Key, entrance: Entrance<W>, new_seat: impl FnOnce() -> S) -> Entered<S, W> {
        let former = self.take_out(key);
        let Entrance { link, clean, durable, will } = entrance;
        let mut entered = match former {
            Some(entry) if entry.durable && !clean => return self.resume(key, entry, link, will),
            Some(entry) => entry.end_for(new_seat),
            None => Entered::new(new_seat()),
        };
        entered.woken = entered.woken.filter(|woken| *woken != link);
        let lease = Lease::Held { link, will };
        let entry = Entry { seat: entered.seat.clone(), durable, lease, busy: Some(link), next: None };
        self.put_in(key, entry);
        entered
    }

    fn resume(&mut self, key: &Key, mut entry: Entry<S, W>, link: LinkId, will: Option<LastWill<W>>) -> Entered<S, W> {
        let had_will = entry.has_will();
        let woken = entry.next.take().filter(|next| *next != link);
        (entry.lease, entry.busy) = (Lease::Held { link, will }, Some(link));
        let seat = entry.seat.clone();
        self.put_in(key, entry);
        Entered { resumed: true, had_will, woken, ..Entered::new(seat) }
    }

    /// A connection is over. `None`: it did not hold the session any more. `expiry`: seconds that the session lives on.
    pub fn leave(
        &mut self,
        key: &Key,
        link: LinkId,
        (parting, expiry): (Parting, u32),
        now_ms: u64,
    ) -> Option<Left<S, W>> {
        if self.all.get(key)?.holder() != Some(link) {
            return None;
        }
        let mut entry = self.take_out(key)?;
        let will = entry.take_will();
        let had_will = will.is_some();
        let will = will.filter(|_| parting == Parting::Cut);
        if expiry == 0 || !entry.durable {
            let (ended, woken) = (Some(entry.seat), entry.next);
            return Some(Left { ended, will: will.map(|will| will.what), will_gone: had_will, woken });
        }
        let (now, later) = entry.decide(will);
        let will_gone = had_will && later.is_none();
        let ends_ms = (expiry != NEVER).then(|| after(now_ms, expiry));
        let will = later.map(|will| (after(now_ms, will.delay), will.what));
        entry.lease = Lease::Left { ends_ms, will };
        self.put_in(key, entry);
        Some(Left { ended: None, will: now, will_gone, woken: None })
    }

    /// All that a connection began is saved; gives whose turn it is now.
    pub fn done(&mut self, key: &Key, link: LinkId) -> Option<LinkId> {
        let entry = self.all.get_mut(key).filter(|entry| entry.busy == Some(link))?;
        entry.busy = None;
        entry.next
    }

    /// Puts back a session that an earlier process left, with the moments of its end and of its will.
    pub fn restore(&mut self, key: Key, seat: S, ends_ms: Option<u64>, will: Option<(u64, W)>) {
        let lease = Lease::Left { ends_ms, will };
        self.put_in(&key, Entry { seat, durable: true, lease, busy: None, next: None });
    }

    /// When there is something to be done.
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The next thing whose time has come.
    pub fn due(&mut self, now_ms: u64) -> Option<Due<S, W>> {
        let (at, key) = self.deadlines.first().filter(|(at, _)| *at <= now_ms)?.clone();
        if self.all.get(&key).and_then(Entry::ends_ms) == Some(at) {
            let mut entry = self.take_out(&key)?;
            let will = entry.take_will().map(|will| will.what);
            return Some(Due::End { key, seat: entry.seat, will, after: entry.busy });
        }
        let mut due = None;
        self.change(&key, |entry| due = entry.take_will().map(|will| (entry.seat.clone(), will.what, entry.busy)));
        due.map(|(seat, will, after)| Due::Will { key, seat, will, after })
    }

    /// Takes away all sessions of a principal.
    pub fn revoke(&mut self, subject: &str) -> Vec<Revoked<S>> {
        let own: Vec<Key> = self.of(subject).map(|(key, _)| key.clone()).collect();
        own.into_iter().filter_map(|key| self.revoke_one(key)).collect()
    }

    /// Takes away one session.
    pub fn revoke_one(&mut self, key: Key) -> Option<Revoked<S>> {
        let entry = self.take_out(&key)?;
        let stored = entry.durable || entry.has_will();
        Some(Revoked { key, seat: entry.seat, stored, woken: entry.next })
    }

    /// How many sessions of a principal outlive their connections.
    pub fn durable_of(&self, subject: &str) -> usize {
        self.of(subject).filter(|(_, entry)| entry.durable).count()
    }

    /// Whether there is a session that outlives its connections.
    pub fn is_durable(&self, key: &Key) -> bool {
        self.all.get(key).is_some_and(|entry| entry.durable)
    }

    /// The sessions behind a key, of all or of one principal, in order.
    pub fn behind<'a>(&'a self, subject: Option<&'a str>, after: Option<&Key>) -> impl Iterator<Item = Look<S>> + 'a {
        let first = subject.map(first_of);
        let from = match (after, &first) {
            (Some(after), Some(first)) if after < first => Bound::Included(first),
            (Some(after), _) => Bound::Excluded(after),
            (None, Some(first)) => Bound::Included(first),
            (None, None) => Bound::Unbounded,
        };
        let behind = self.all.range::<Key, _>((from, Bound::Unbounded));
        behind
            .take_while(move |(key, _)| subject.is_none_or(|subject| *key.0 == *subject))
            .map(|(key, entry)| entry.look(key))
    }

    /// One session.
    pub fn look(&self, key: &Key) -> Option<Look<S>> {
        self.all.get(key).map(|entry| entry.look(key))
    }

    /// Ends a session before its time; gives its seat and a connection that has to arrive again.
    pub fn end(&mut self, key: &Key) -> Option<(Due<S, W>, S, Option<LinkId>)> {
        let mut entry = self.take_out(key)?;
        let will = entry.take_will().map(|will| will.what);
        let (seat, woken) = (entry.seat.clone(), entry.next);
        Some((Due::End { key: key.clone(), seat: entry.seat, will, after: entry.busy }, seat, woken))
    }

    /// All sessions: whose, the seat, and whether a connection has it.
    pub fn each(&self) -> impl Iterator<Item = (&Key, &S, bool)> {
        self.all.iter().map(|(key, entry)| (key, &entry.seat, entry.holder().is_some()))
    }

    fn of(&self, subject: &str) -> impl Iterator<Item = (&Key, &Entry<S, W>)> {
        self.all.range(first_of(subject)..).take_while(move |(key, _)| *key.0 == *subject)
    }

    /// Changes an entry; its place in the order of deadlines follows.
    fn change(&mut self, key: &Key, change: impl FnOnce(&mut Entry<S, W>)) {
        if let Some(mut entry) = self.take_out(key) {
            change(&mut entry);
            self.put_in(key, entry);
        }
    }

    fn take_out(&mut self, key: &Key) -> Option<Entry<S, W>> {
        let entry = self.all.remove(key)?;
        if let Some(at) = entry.deadline() {
            self.deadlines.remove(&(at, key.clone()));
        }
        Some(entry)
    }

    fn put_in(&mut self, key: &Key, entry: Entry<S, W>) {
        if let Some(at) = entry.deadline() {
            self.deadlines.insert((at, key.clone()));
        }
        self.all.insert(key.clone(), entry);
    }
}

impl<S: Clone, W> Entry<S, W> {
    fn look(&self, key: &Key) -> Look<S> {
        let (held, ends_ms) = (self.holder().is_some(), self.ends_ms());
        let Entry { seat, durable, .. } = self;
        Look { key: key.clone(), seat: seat.clone(), durable: *durable, held, ends_ms, will: self.has_will() }
    }
}

impl<S, W> Entry<S, W> {
    fn holder(&self) -> Option<LinkId> {
        match &self.lease {
            Lease::Held { link, .. } => Some(*link),
            Lease::Left { .. } => None,
        }
    }

    fn is_turn_of(&self, link: LinkId) -> bool {
        self.busy.is_none() && self.next.is_none_or(|next| next <= link)
    }

    fn has_will(&self) -> bool {
        match &self.lease {
            Lease::Held { will, .. } => will.is_some(),
            Lease::Left { will, .. } => will.is_some(),
        }
    }

    /// The will, whether it waits or not.
    fn take_will(&mut self) -> Option<LastWill<W>> {
        match &mut self.lease {
            Lease::Held { will, .. } => will.take(),
            Lease::Left { will, .. } => will.take().map(|(_, what)| LastWill { what, delay: 0 }),
        }
    }

    /// The connection is over and the session goes on: a will that is published now, or one that waits. MQTT 5.0
    /// §3.1.3.2.2: it is dropped if a new connection goes on with the session before its delay has passed.
    fn decide(&self, will: Option<LastWill<W>>) -> (Option<W>, Option<LastWill<W>>) {
        match will {
            Some(will) if will.delay == 0 => (Some(will.what), None),
            Some(will) if self.next.is_none() => (None, Some(will)),
            _ => (None, None),
        }
    }

    fn ends_ms(&self) -> Option<u64> {
        match &self.lease {
            Lease::Left { ends_ms, .. } => *ends_ms,
            Lease::Held { .. } => None,
        }
    }

    /// The will's moment or the end, whichever comes first.
    fn deadline(&self) -> Option<u64> {
        match &self.lease {
            Lease::Left { ends_ms, will } if self.next.is_none() => {
                let will_ms = will.as_ref().map(|(at, _)| *at);
                will_ms.into_iter().chain(*ends_ms).min()
            }
            _ => None,
        }
    }

    /// The session ends because a connection begins a new one.
    fn end_for(mut self, new_seat: impl FnOnce() -> S) -> Entered<S, W> {
        let held = self.holder().is_some();
        let will = self.take_will().map(|will| will.what);
        let (had_will, woken, after) = (will.is_some(), self.next, self.busy);
        let former = Some(Former { seat: self.seat, durable: self.durable, held });
        Entered { former, will, after, had_will, woken, ..Entered::new(new_seat()) }
    }
}

impl<S, W> Entered<S, W> {
    fn new(seat: S) -> Self {
        Self { seat, resumed: false, former: None, will: None, after: None, had_will: false, woken: None }
    }
}

fn after(now_ms: u64, seconds: u32) -> u64 {
    now_ms.saturating_add(u64::from(seconds) * 1000)
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
