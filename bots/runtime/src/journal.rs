//! The journal of a dialogue: what its script has already been told, and how much it has already done.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

/// At most this many entries in one dialogue; then the script has to return and go on from `state`.
pub const MAX_ENTRIES: usize = 200;
/// At most this many encoded bytes in one dialogue's journal.
pub const MAX_BYTES: usize = 64 * 1024;

/// At most this many encoded bytes of changes by others in one dialogue; later ones it does not see.
pub const MAX_CHANGES: usize = 1024 * 1024;

/// Everything that a handler has learnt from outside since it was called, in order.
///
/// Calls with a result (`ask`, `now`, `random`, `publish`) have an [`Entry`] each. Calls without one (`say`,
/// `send_to`) are only counted: a replay skips the first [`Journal::done`] of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    #[serde(rename = "e", default)]
    entries: Vec<Entry>,
    #[serde(rename = "d", default)]
    done: u32,
    #[serde(rename = "b", default)]
    bytes: usize,
    #[serde(rename = "c", default, skip_serializing_if = "is_zero")]
    changes: usize,
}

/// One answer that the script was given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Which call it was.
    #[serde(rename = "k")]
    pub kind: Kind,
    /// The line of the call in the script.
    #[serde(rename = "l")]
    pub line: u32,
    /// How many effects came before it.
    #[serde(rename = "n")]
    pub effects: u32,
    /// What the call returned.
    #[serde(rename = "v")]
    pub value: Given,
    /// What topic handlers did to the conversation's state while the script waited.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
}

/// What is different between two states. It does not count to the length of its dialogue: telemetry is not its doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// New and changed values.
    #[serde(rename = "s", default, skip_serializing_if = "Map::is_empty")]
    pub set: Map<String, Value>,
    /// Values that are there no more.
    #[serde(rename = "g", default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<String>,
}

/// A result as the script sees it: a value, or an error that it may catch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Given {
    /// The call returned this.
    #[serde(rename = "v")]
    Value(Value),
    /// The call raised this text.
    #[serde(rename = "e")]
    Error(String),
}

/// The host calls that have a journal entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `ask`: a person's answer, or `()` when the time was over.
    Ask,
    /// `confirm`: yes or no.
    Confirm,
    /// `now`: the clock.
    Now,
    /// `random`: a random number.
    Random,
    /// `publish`: permitted or refused.
    Publish,
}

/// Why a replay or a new entry is not possible.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JournalError {
    /// The script does something else than it did: it was changed.
    #[error("the script changed while a dialogue waited: line {was} called {kind:?}, now line {now} calls {found:?}")]
    Changed {
        /// The journal's line.
        was: u32,
        /// The journal's call.
        kind: Kind,
        /// The running script's line.
        now: u32,
        /// The running script's call.
        found: Kind,
    },
    /// The dialogue is too long ([`MAX_ENTRIES`], [`MAX_BYTES`]).
    #[error(
        "this dialogue has grown too long ({MAX_ENTRIES} answers or {} KiB); let the handler return and go on from `state`",
        MAX_BYTES / 1024
    )]
    Full,
}

/// A position in a journal while its script runs.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    /// The journal, growing once the replay has passed its end.
    pub journal: Journal,
    next: usize,
    effects: u32,
}

impl Journal {
    /// How many effects are done.
    pub fn done(&self) -> u32 {
        self.done
    }

    /// The answers so far.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether there is room for what others changed.
    pub fn bears(&self, change: &Change) -> bool {
        self.changes + encoded_len(change) <= MAX_CHANGES
    }

    /// Adds an answer. Fails with [`JournalError::Full`].
    pub fn push(&mut self, entry: Entry) -> Result<(), JournalError> {
        let changed = entry.change.as_ref().map_or(0, encoded_len);
        let bytes = self.bytes + encoded_len(&entry).saturating_sub(changed);
        if self.entries.len() >= MAX_ENTRIES || bytes > MAX_BYTES {
            return Err(JournalError::Full);
        }
        self.bytes = bytes;
        self.changes += changed;
        self.entries.push(entry);
        Ok(())
    }
}

impl Replay {
    /// Starts at the top of `journal`.
    pub fn new(journal: Journal) -> Replay {
        Replay { journal, next: 0, effects: 0 }
    }

    /// How many effects the running script has come past.
    pub fn effects(&self) -> u32 {
        self.effects
    }

    /// Whether the replay has come to the end of the journal.
    pub fn is_live(&self) -> bool {
        self.next >= self.journal.entries.len()
    }

    /// Counts an effect; tells whether it is new and has to be done now.
    pub fn effect(&mut self) -> bool {
        self.effects += 1;
        let new = self.effects > self.journal.done;
        self.journal.done = self.journal.done.max(self.effects);
        new
    }

    /// The recorded answer of the next call, if it is recorded. Fails with [`JournalError::Changed`].
    pub fn recorded(&mut self, kind: Kind, line: u32) -> Result<Option<Entry>, JournalError> {
        let Some(entry) = self.journal.entries.get(self.next) else { return Ok(None) };
        if (entry.kind, entry.line, entry.effects) != (kind, line, self.effects) {
            return Err(JournalError::Changed { was: entry.line, kind: entry.kind, now: line, found: kind });
        }
        self.next += 1;
        Ok(Some(entry.clone()))
    }

    /// Records the answer of a call that is made for the first time. Fails with [`JournalError::Full`].
    pub fn record(&mut self, kind: Kind, line: u32, value: Given) -> Result<(), JournalError> {
        self.journal.push(Entry { kind, line, effects: self.effects, value, change: None })?;
        self.next = self.journal.entries.len();
        Ok(())
    }
}

impl Change {
    /// From one state to another; `None` if they are the same.
    pub fn between(old: &Map<String, Value>, new: &Map<String, Value>) -> Option<Change> {
        let set = new.iter().filter(|(key, value)| old.get(*key) != Some(value));
        let set = set.map(|(key, value)| (key.clone(), value.clone())).collect();
        let gone = old.keys().filter(|key| !new.contains_key(*key)).cloned().collect();
        Some(Change { set, gone }).filter(|change| *change != Change::default())
    }
}

fn encoded_len(part: &impl Serialize) -> usize {
    // Serialising plain JSON values into memory has no way to fail; should it, the part counts as too long.
    serde_json::to_vec(part).map_or(MAX_CHANGES + 1, |bytes| bytes.len())
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Given {
        Given::Value(text.into())
    }

    #[test]
    fn a_replay_gives_the_answers_back_and_skips_what_was_done() {
        let mut first = Replay::new(Journal::default());
        assert!(first.effect());
        assert_eq!(first.recorded(Kind::Ask, 3), Ok(None));
        first.record(Kind::Ask, 3, answer("ham")).unwrap();
        assert!(first.effect());

        let mut again = Replay::new(first.journal);
        assert!(!again.effect());
        assert_eq!(again.recorded(Kind::Ask, 3).unwrap().unwrap().value, answer("ham"));
        assert!(!again.effect());
        assert!(again.effect());
    }

    #[test]
    fn another_line_kind_or_count_of_effects_is_noticed() {
        let mut replay = Replay::new(Journal::default());
        replay.record(Kind::Ask, 3, answer("ham")).unwrap();
        let journal = replay.journal;
        assert!(Replay::new(journal.clone()).recorded(Kind::Ask, 4).is_err());
        assert!(Replay::new(journal.clone()).recorded(Kind::Confirm, 3).is_err());
        let mut talkative = Replay::new(journal);
        talkative.effect();
        assert!(talkative.recorded(Kind::Ask, 3).is_err());
    }

    #[test]
    fn it_is_bounded_by_count_and_by_size() {
        let mut replay = Replay::new(Journal::default());
        for _ in 0..MAX_ENTRIES {
            replay.record(Kind::Now, 1, Given::Value(1.into())).unwrap();
        }
        assert_eq!(replay.record(Kind::Now, 1, Given::Value(1.into())), Err(JournalError::Full));
        let mut replay = Replay::new(Journal::default());
        assert_eq!(replay.record(Kind::Ask, 1, answer(&"x".repeat(MAX_BYTES))), Err(JournalError::Full));
    }
}
