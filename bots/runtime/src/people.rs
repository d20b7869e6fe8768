//! The people of one bot, in memory: who they are, whose question ends when, who waits on which version.

use crate::conversation::{Conversation, OLD_VERSION_MS};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// Everybody that a bot has talked with.
#[derive(Debug, Default)]
pub struct People {
    all: HashMap<Arc<str>, Person>,
    due: BTreeSet<(i64, Arc<str>)>,
}

#[derive(Debug, Default)]
struct Person {
    deadline_ms: Option<i64>,
    /// The version that the open dialogue waits on, and when it began.
    version: Option<(Box<str>, i64)>,
}

impl People {
    /// Takes note of what a conversation has become.
    pub fn note(&mut self, who: &Arc<str>, conversation: &Conversation) {
        let person = self.all.entry(who.clone()).or_default();
        if let Some(former) = person.deadline_ms.take() {
            self.due.remove(&(former, who.clone()));
        }
        person.deadline_ms = conversation.deadline_ms();
        person.version = conversation.version().map(Into::into).zip(conversation.since_ms());
        if let Some(deadline) = person.deadline_ms {
            self.due.insert((deadline, who.clone()));
        }
    }

    /// Whether the bot has talked with this person.
    pub fn knows(&self, who: &str) -> bool {
        self.all.contains_key(who)
    }

    /// All of them.
    pub fn everybody(&self) -> Vec<Arc<str>> {
        self.all.keys().cloned().collect()
    }

    /// How many wait on a version.
    pub fn waiting_on(&self, version: &str) -> usize {
        let waits = |person: &&Person| person.version.as_ref().is_some_and(|(waited_on, _)| **waited_on == *version);
        self.all.values().filter(waits).count()
    }

    /// The versions that somebody waits on, and may still go on with.
    pub fn versions(&self, now_ms: i64) -> BTreeSet<String> {
        let open = self.all.values().filter_map(|person| person.version.as_ref());
        open.filter(|(_, since_ms)| now_ms - since_ms <= OLD_VERSION_MS)
            .map(|(version, _)| version.to_string())
            .collect()
    }

    /// When the next question's time is over, in milliseconds since 1970.
    pub fn next_ms(&self) -> Option<i64> {
        self.due.first().map(|(deadline, _)| *deadline)
    }

    /// Takes those whose time is over out of the list.
    pub fn take_due(&mut self, now_ms: i64) -> Vec<Arc<str>> {
        let mut taken = Vec::new();
        while self.next_ms().is_some_and(|deadline| deadline <= now_ms) {
            taken.extend(self.due.pop_first().map(|(_, who)| who));
        }
        taken
    }
}
