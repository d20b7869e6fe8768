//! Sums of passed, failed and skipped checks, read from the lines that test programs print.

use std::fmt;
use std::ops::AddAssign;

/// How many checks passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Checks that ran and held.
    pub passed: u64,
    /// Checks that ran and did not hold, or had to run and could not.
    pub failed: u64,
    /// Checks that did not run.
    pub skipped: u64,
}

impl Counts {
    /// Reads a line of libtest (`test result: ok. 3 passed; 0 failed; 1 ignored; …`) or one of our own
    /// (`3 passed, 0 failed, 1 skipped`). `None` for every other line.
    pub fn parse(line: &str) -> Option<Self> {
        match line.trim().strip_prefix("test result: ") {
            Some(rest) => Self::from_parts(rest.split_once(". ")?.1.split("; "), "ignored"),
            None => Self::from_parts(line.trim().split(", "), "skipped"),
        }
    }

    fn from_parts<'a>(mut parts: impl Iterator<Item = &'a str>, last: &str) -> Option<Self> {
        let mut next = |word: &str| parts.next()?.strip_suffix(word)?.trim_end().parse().ok();
        Some(Self { passed: next("passed")?, failed: next("failed")?, skipped: next(last)? })
    }
}

/// One check that held or did not.
impl From<bool> for Counts {
    fn from(held: bool) -> Self {
        Self { passed: held.into(), failed: (!held).into(), skipped: 0 }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_libtest_line() {
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(Counts::parse(line), Some(Counts { passed: 3, failed: 2, skipped: 1 }));
    }

    #[test]
    fn reads_its_own_line_back() {
        let counts = Counts { passed: 12, failed: 0, skipped: 4 };
        assert_eq!(Counts::parse(&counts.to_string()), Some(counts));
    }

    #[test]
    fn other_lines_are_not_counts() {
        assert_eq!(Counts::parse("running 3 tests"), None);
        assert_eq!(Counts::parse("3 passed, many failed"), None);
        assert_eq!(Counts::parse(""), None);
    }
}
