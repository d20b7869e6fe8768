//! Lines of the log that others can cause by what they send: so many of a kind in a minute, so that nobody fills the disk
//! with them.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Lines of one kind that a minute takes.
const IN_A_MINUTE: u32 = 100;
const MINUTE: Duration = Duration::from_secs(60);
/// The most of a text of somebody else's that a line shows, in bytes.
const SHOWN: usize = 256;

/// The lines of one kind; a static beside what writes them.
#[derive(Debug, Default)]
pub struct Lines(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Lines {
    /// None yet.
    pub const fn new() -> Lines {
        Lines(Mutex::new(State { since: None, written: 0, left_out: 0 }))
    }

    /// Writes a line, unless this minute has had its share. How many were left out is told behind the next one that is
    /// written.
    pub fn write(&self, line: impl FnOnce()) {
        let Some(left_out) = self.0.lock().next(Instant::now()) else { return };
        line();
        if left_out > 0 {
            tracing::warn!(left_out, "lines like the one before were left out of the log: there were too many");
        }
    }
}

impl State {
    /// How many were left out since the last one, if the next may be written.
    fn next(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= MINUTE) {
            (self.since, self.written) = (Some(now), 0);
        }
        if self.written == IN_A_MINUTE {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// The beginning of somebody else's text.
pub fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(SHOWN)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_takes_so_many_and_the_next_line_tells_how_many_were_left_out() {
        let (now, mut state) = (Instant::now(), State::default());
        let written = (0..1_000_000).filter(|_| state.next(now) == Some(0)).count();
        assert_eq!(written, IN_A_MINUTE as usize);
        assert_eq!(state.next(now + MINUTE), Some(999_900));
        assert_eq!(state.next(now + MINUTE), Some(0));
    }

    #[test]
    fn a_long_text_is_shown_in_part() {
        assert_eq!((shown("romeo"), shown(&"é".repeat(60_000)).len()), ("romeo", SHOWN));
    }
}
