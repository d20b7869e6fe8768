//! Time as an argument: the clock that a node was given.
//!
//! Two readings: the wall clock, for what is stored or told to others, and the monotonic one, for deadlines. The wall
//! clock may be set while the process runs; no deadline may come early or late for that.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Where a node gets the time from.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01 UTC; may step forward and back.
    fn now_ms(&self) -> u64;

    /// Milliseconds that have passed since some moment of this process's life; never goes back. Deadlines are of it.
    fn monotonic_ms(&self) -> u64;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// The first reading is not 0, so that 0 is before everything.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }

    fn monotonic_ms(&self) -> u64 {
        START.elapsed().as_millis() as u64 + 1
    }
}

/// A clock that stands still until a test moves it.
#[derive(Debug, Default)]
pub struct FakeClock {
    start_ms: u64,
    passed_ms: AtomicU64,
    stepped_ms: AtomicI64,
}

impl FakeClock {
    /// A clock that shows `ms` since 1970.
    pub fn at(ms: u64) -> FakeClock {
        FakeClock { start_ms: ms, ..FakeClock::default() }
    }

    /// Lets time pass.
    pub fn advance(&self, ms: u64) {
        self.passed_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Sets the wall clock forward or back, though no time passes.
    pub fn step(&self, ms: i64) {
        self.stepped_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for FakeClock {
    fn now_ms(&self) -> u64 {
        let unset = self.start_ms + self.passed_ms.load(Ordering::Relaxed);
        unset.saturating_add_signed(self.stepped_ms.load(Ordering::Relaxed))
    }

    fn monotonic_ms(&self) -> u64 {
        self.passed_ms.load(Ordering::Relaxed) + 1
    }
}

/// Writes milliseconds since 1970 as an XMPP date and time in UTC (XEP-0082 §3.2), such as `2026-11-22T14:00:00.000Z`.
pub fn xmpp_time(ms: u64) -> String {
    let (days, day_ms) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil(days as i64);
    let (h, m, s) = (day_ms / 3_600_000, day_ms / 60_000 % 60, day_ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", day_ms % 1000)
}

/// Year, month and day of a day number counted from 1970-01-01, in the Gregorian calendar with years from 1 March.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_the_wall_clock_moves_no_deadline() {
        let clock = FakeClock::at(5_000);
        clock.advance(10);
        clock.step(-3_000);
        assert_eq!((clock.now_ms(), clock.monotonic_ms()), (2_010, 11));
        clock.step(9_000);
        assert_eq!((clock.now_ms(), clock.monotonic_ms()), (11_010, 11));
    }

    #[test]
    fn dates_are_written_as_xep_0082_wants() {
        assert_eq!(xmpp_time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(xmpp_time(1_709_210_096_789), "2024-02-29T12:34:56.789Z");
        assert_eq!(xmpp_time(1_735_689_599_999), "2024-12-31T23:59:59.999Z");
    }
}
