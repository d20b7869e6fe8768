//! How guesses at passwords are slowed down: by account and address together, and by address alone.
//!
//! Guesses at one account from one address take turns: each begins when the one before it is answered, so side by side
//! they are no faster than one after the other. The table is bounded; when it is full the least guilty entry goes, so
//! a flood of other names frees nobody who guesses at one.

use hashbrown::HashMap;
use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

const FORGET_MS: u64 = 600_000;
const MAX_REMEMBERED: usize = 10_000;
/// Failures that an address has free: behind one there may be many people.
const FREE_OF_ADDRESS: u32 = 4;

/// One guess's place in the row of those at the same account from the same address.
#[derive(Debug)]
pub struct Turn {
    pair: u64,
    address: u64,
    /// How long to wait before the credential is looked at.
    pub wait: Duration,
    hold: Duration,
}

/// Failures by account and address, and by address, forgotten after ten minutes.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    hasher: RandomState,
    counts: HashMap<u64, Count>,
    /// All entries, least guilty first.
    order: BTreeSet<(u32, u64, u64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    failures: u32,
    /// When the last guess is answered, in milliseconds.
    until: u64,
}

impl Throttle {
    /// A guess begins. It counts as a failure until it [`succeeded`](Self::succeeded).
    pub(crate) fn begin(&mut self, account: &str, address: IpAddr, now_ms: u64) -> Turn {
        let address = network(address);
        let (pair, address) = (self.hasher.hash_one((account, address)), self.hasher.hash_one(address));
        let before = self.recall(pair, now_ms);
        let (from, failures) = (before.until.max(now_ms), before.failures.saturating_add(1));
        let hold = delay(failures);
        self.keep(pair, Count { failures, until: from + hold.as_millis() as u64 });
        Turn { pair, address, wait: Duration::from_millis(from - now_ms), hold }
    }

    /// It was wrong; gives how long to hold the answer back.
    pub(crate) fn failed(&mut self, turn: &Turn, now_ms: u64) -> Duration {
        let failures = self.recall(turn.address, now_ms).failures.saturating_add(1);
        self.keep(turn.address, Count { failures, until: now_ms });
        turn.hold.max(delay(failures.saturating_sub(FREE_OF_ADDRESS)))
    }

    /// It was right: the failures before it are forgotten.
    pub(crate) fn succeeded(&mut self, turn: &Turn) {
        self.forget(turn.pair);
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

    /// One guess after the other: the next begins when this one is answered.
    fn guess(throttle: &mut Throttle, account: &str, address: IpAddr, now: &mut u64) -> u64 {
        let turn = throttle.begin(account, address, *now);
        *now += turn.wait.as_millis() as u64;
        let hold = throttle.failed(&turn, *now).as_millis() as u64;
        *now += hold;
        hold
    }

    #[test]
    fn failures_are_answered_ever_more_slowly_and_forgotten_in_time_or_by_success() {
        let (mut throttle, mut now) = (Throttle::default(), 1_000_000);
        let delays: Vec<u64> = (0..8).map(|_| guess(&mut throttle, "romeo", HOME, &mut now)).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        let turn = throttle.begin("romeo", HOME, now);
        throttle.succeeded(&turn);
        assert_eq!(throttle.begin("romeo", HOME, now).hold, delay(1));
        now += FORGET_MS + 5_000;
        assert_eq!(guess(&mut throttle, "romeo", HOME, &mut now), 100);
    }

    #[test]
    fn guesses_side_by_side_take_turns() {
        let mut throttle = Throttle::default();
        let waits: Vec<u64> = (0..5).map(|_| throttle.begin("romeo", HOME, 0).wait.as_millis() as u64).collect();
        assert_eq!(waits, [0, 100, 300, 700, 1500]);
        assert_eq!(throttle.begin("romeo", away(1), 0).wait, Duration::ZERO, "the owner elsewhere is not held up");
        assert_eq!(throttle.begin("juliet", HOME, 0).wait, Duration::ZERO);
    }

    #[test]
    fn a_flood_of_names_frees_nobody_and_stays_bounded() {
        let (mut throttle, mut now) = (Throttle::default(), 0);
        for _ in 0..8 {
            guess(&mut throttle, "romeo", HOME, &mut now);
        }
        for n in 0..50_000 {
            let turn = throttle.begin(&format!("name{n}"), away(n as u8), now);
            throttle.failed(&turn, now);
        }
        assert_eq!((throttle.counts.len(), throttle.order.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
        assert_eq!(throttle.begin("romeo", HOME, now).hold, Duration::from_secs(5));
    }

    #[test]
    fn one_address_that_tries_many_names_is_slowed_too_after_a_few() {
        let mut throttle = Throttle::default();
        let holds: Vec<u64> = (0..7)
            .map(|n| {
                let turn = throttle.begin(&format!("name{n}"), HOME, 0);
                throttle.failed(&turn, 0).as_millis() as u64
            })
            .collect();
        assert_eq!(holds, [100, 100, 100, 100, 100, 200, 400]);
        assert_eq!(network("2001:db8::1".parse().unwrap()), network("2001:db8::ffff".parse().unwrap()));
    }
}
