//! How guesses at passwords are slowed down: by account and address together, and by address alone.
//!
//! Once one guess at an account from an address was wrong, only a few more of them are looked at at a time, and a wrong one
//! keeps its place until it is answered: side by side they are little faster than one after the other. A right one frees
//! the others, those who wait in the line too, so thousands of clients of one account come in together. Who finds no place within [`PATIENCE`], or too many in front, is told
//! to come again: nobody waits longer, and nobody's hanging up costs others more. The table is bounded; when it is full
//! the least guilty entry goes, so a flood of other names frees nobody who guesses at one.

use hashbrown::HashMap;
use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, futures::Notified},
    time::Instant,
};

const FORGET_MS: u64 = 600_000;
const MAX_REMEMBERED: usize = 10_000;
/// Failures that an address has free: behind one there may be many people.
const FREE_OF_ADDRESS: u32 = 4;

/// Guesses at one account from one address that are looked at, or whose answers are held back, at the same time.
const AT_ONCE: usize = 2;
/// How many more may wait for that.
const WAITING: usize = 64;
/// Lines that may stand empty.
const MIN_SWEPT: usize = 256;
/// How long they wait; longer than an answer is held back.
pub(crate) const PATIENCE: Duration = Duration::from_secs(6);

/// The guesses at one account from one address that are under way.
#[derive(Debug)]
pub(crate) struct Line {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Told to those who wait when nobody has to any more.
    freed: Notify,
}

/// What came of standing in a line.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A place.
    Place(Place),
    /// Somebody's guess was right: a place may be needed no more.
    Freed,
    /// There is no place within the time, or too many wait already.
    Full,
}

impl Default for Line {
    fn default() -> Line {
        Line { places: Arc::new(Semaphore::new(AT_ONCE)), waiting: AtomicUsize::new(0), freed: Notify::new() }
    }
}

impl Line {
    /// Ready when a guess is right from now on.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Stands in the line until there is a place, nobody needs one, or it is `until`.
    pub(crate) async fn enter(self: &Arc<Line>, freed: Notified<'_>, until: Instant) -> Entry {
        let place = |permit| Entry::Place(Place { _permit: permit, _line: self.clone() });
        if let Ok(permit) = self.places.clone().try_acquire_owned() {
            return place(permit);
        }
        let Some(_waits) = Waits::begin(&self.waiting) else { return Entry::Full };
        tokio::select! {
            biased;
            // The semaphore is never closed.
            permit = self.places.clone().acquire_owned() => permit.map_or(Entry::Full, place),
            () = freed => Entry::Freed,
            () = tokio::time::sleep_until(until) => Entry::Full,
        }
    }
}

/// A guess's place; while it lives, so does the line.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    _line: Arc<Line>,
}

/// Somebody who waits counts until he stops, for whatever reason.
struct Waits<'a>(&'a AtomicUsize);

impl Waits<'_> {
    fn begin(count: &AtomicUsize) -> Option<Waits<'_>> {
        let waits = Waits(count);
        (count.fetch_add(1, Ordering::Relaxed) < WAITING).then_some(waits)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One guess.
#[derive(Debug)]
pub(crate) struct Turn {
    pair: u64,
    address: u64,
    pub(crate) line: Arc<Line>,
}

/// Failures by account and address, and by address, forgotten after ten minutes.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    hasher: RandomState,
    counts: HashMap<u64, Count>,
    /// All entries, least guilty first.
    order: BTreeSet<(u32, u64, u64)>,
    /// Who guesses just now.
    lines: HashMap<u64, Arc<Line>>,
    sweep_at: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    failures: u32,
    /// When the last one was, in milliseconds.
    until: u64,
}

impl Throttle {
    /// A guess begins.
    pub(crate) fn begin(&mut self, account: &str, address: IpAddr) -> Turn {
        self.sweep();
        let address = network(address);
        let (pair, address) = (self.hasher.hash_one((account, address)), self.hasher.hash_one(address));
        Turn { pair, address, line: self.lines.entry(pair).or_default().clone() }
    }

    /// Whether there were wrong ones lately at this account from this address: then this one needs a place in the line.
    pub(crate) fn is_suspect(&self, turn: &Turn, now_ms: u64) -> bool {
        self.recall(turn.pair, now_ms).failures > 0
    }

    /// It was wrong; gives how long to hold the answer back.
    pub(crate) fn failed(&mut self, turn: &Turn, now_ms: u64) -> Duration {
        let pair = self.fails(turn.pair, now_ms);
        let address = self.fails(turn.address, now_ms);
        delay(pair).max(delay(address.saturating_sub(FREE_OF_ADDRESS)))
    }

    fn fails(&mut self, key: u64, now_ms: u64) -> u32 {
        let failures = self.recall(key, now_ms).failures.saturating_add(1);
        self.keep(key, Count { failures, until: now_ms });
        failures
    }

    /// It was right: the failures before it are forgotten, and who waits behind them is told.
    pub(crate) fn succeeded(&mut self, turn: &Turn) {
        self.forget(turn.pair);
        turn.line.freed.notify_waiters();
    }

    /// Lines in which nobody stands any more go, when there are twice as many as after the last time.
    fn sweep(&mut self) {
        if self.lines.len() >= self.sweep_at.max(MIN_SWEPT) {
            self.lines.retain(|_, line| Arc::strong_count(line) > 1);
            self.sweep_at = self.lines.len() * 2;
        }
    }

    fn recall(&self, key: u64, now_ms: u64) -> Count {
        let known = self.counts.get(&key).filter(|count| now_ms < count.until + FORGET_MS);
        known.copied().unwrap_or_default()
    }

    fn keep(&mut self, key: u64, count: Count) {
        self.forget(key);
        if self.counts.len() >= MAX_REMEMBERED
            && let Some(&(.., least)) = self.order.first()
        {
            self.forget(least);
        }
        self.counts.insert(key, count);
        self.order.insert((count.failures, count.until, key));
    }

    fn forget(&mut self, key: u64) {
        if let Some(count) = self.counts.remove(&key) {
            self.order.remove(&(count.failures, count.until, key));
        }
    }
}

/// 100 ms, doubled with each failure, at most 5 s.
fn delay(failures: u32) -> Duration {
    Duration::from_millis((100u64 << failures.saturating_sub(1).min(6)).min(5_000))
}

/// Who has one IPv6 address usually has its whole /64 (RFC 4291 §2.5.4).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn away(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn guess(throttle: &mut Throttle, account: &str, address: IpAddr, now: &mut u64) -> u64 {
        let turn = throttle.begin(account, address);
        let hold = throttle.failed(&turn, *now).as_millis() as u64;
        *now += hold;
        hold
    }

    #[test]
    fn failures_are_answered_ever_more_slowly_and_forgotten_in_time_or_by_success() {
        let (mut throttle, mut now) = (Throttle::default(), 1_000_000);
        let delays: Vec<u64> = (0..8).map(|n| guess(&mut throttle, "romeo", away(n), &mut now)).collect();
        assert_eq!(delays, [100; 8], "the owner elsewhere is not held up");
        let delays: Vec<u64> = (0..8).map(|_| guess(&mut throttle, "romeo", HOME, &mut now)).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        let turn = throttle.begin("romeo", HOME);
        throttle.succeeded(&turn);
        now += FORGET_MS + 5_000;
        assert_eq!(guess(&mut throttle, "romeo", HOME, &mut now), 100);
    }

    #[tokio::test]
    async fn guesses_side_by_side_wait_for_a_place_and_not_for_long() {
        let mut throttle = Throttle::default();
        let line = throttle.begin("romeo", HOME).line.clone();
        let late = Instant::now() + Duration::from_secs(3_600);
        let (first, second) = (line.enter(line.freed(), late).await, line.enter(line.freed(), late).await);
        assert!(matches!((&first, &second), (Entry::Place(_), Entry::Place(_))));
        assert!(Arc::ptr_eq(&line, &throttle.begin("romeo", HOME).line), "all guesses stand in one line");
        assert!(matches!(line.enter(line.freed(), Instant::now()).await, Entry::Full), "two places are held");
        let enter = || {
            tokio::spawn({
                let line = line.clone();
                async move { matches!(line.enter(line.freed(), late).await, Entry::Place(_)) }
            })
        };
        let waiting: Vec<_> = (0..WAITING).map(|_| enter()).collect();
        while line.waiting.load(Ordering::Relaxed) < WAITING {
            tokio::task::yield_now().await;
        }
        assert!(matches!(line.enter(line.freed(), late).await, Entry::Full), "too many wait already");
        // Somebody who hangs up makes room for another one.
        waiting[0].abort();
        while line.waiting.load(Ordering::Relaxed) == WAITING {
            tokio::task::yield_now().await;
        }
        let last = enter();
        drop(first);
        for (n, waits) in waiting.into_iter().enumerate().skip(1) {
            assert!(waits.await.unwrap(), "number {n} comes in behind those whose guess was right");
        }
        assert!(last.await.unwrap());
        drop(second);
    }

    #[test]
    fn a_flood_of_names_frees_nobody_and_stays_bounded() {
        let (mut throttle, mut now) = (Throttle::default(), 0);
        for _ in 0..8 {
            guess(&mut throttle, "romeo", HOME, &mut now);
        }
        for n in 0..50_000 {
            let mut then = now;
            guess(&mut throttle, &format!("name{n}"), away(n as u8), &mut then);
        }
        assert_eq!((throttle.counts.len(), throttle.order.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
        assert!(throttle.lines.len() <= MIN_SWEPT);
        assert_eq!(guess(&mut throttle, "romeo", HOME, &mut now), 5_000);
    }

    #[test]
    fn one_address_that_tries_many_names_is_slowed_too_after_a_few() {
        let mut throttle = Throttle::default();
        let holds: Vec<u64> = (0..7).map(|n| guess(&mut throttle, &format!("name{n}"), HOME, &mut 0)).collect();
        assert_eq!(holds, [100, 100, 100, 100, 100, 200, 400]);
        assert_eq!(network("2001:db8::1".parse().unwrap()), network("2001:db8::ffff".parse().unwrap()));
    }
}
