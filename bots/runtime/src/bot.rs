//! One whole bot without IO: for tests, and to see how the parts fit together.
//!
//! The broker runs the same [`Conversation`] steps, with rows in the store in place of the map here.

use crate::{
    conversation::{Action, Conversation, Failure, Step, Versions, World, event_for_nobody},
    engine::{Engine, Gate, Moment, Script},
    event::{event, matches},
};
use std::{collections::BTreeMap, sync::Arc};

/// A bot with its people.
pub struct Bot {
    engine: Arc<Engine>,
    gate: Arc<dyn Gate>,
    versions: Versions,
    people: BTreeMap<String, Conversation>,
    /// Failed runs, oldest first.
    pub failures: Vec<Failure>,
}

/// A publication for a bot.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// Where.
    pub topic: &'a str,
    /// The bytes.
    pub payload: &'a [u8],
    /// The publisher's bare JID, or empty.
    pub from: &'a str,
}

impl Bot {
    /// A bot that nobody has talked with.
    pub fn new(engine: Arc<Engine>, gate: Arc<dyn Gate>, script: Script) -> Bot {
        let versions = Versions::new(Arc::new(script));
        Bot { engine, gate, versions, people: BTreeMap::new(), failures: Vec::new() }
    }

    /// The script was changed.
    pub fn update(&mut self, script: Script) {
        self.versions.update(Arc::new(script));
    }

    /// A person, by bare JID, wrote something.
    pub fn hear(&mut self, user: &str, text: &str, moment: Moment) -> Vec<Action> {
        self.step(user, moment, |conversation, world| conversation.hear(world, text))
    }

    /// Something was published.
    pub fn topic(&mut self, heard: Heard<'_>, moment: Moment) -> Vec<Action> {
        let event = event(heard.topic, heard.payload, heard.from, moment.now_ms);
        let handlers = self.versions.current.clone();
        let mut actions = Vec::new();
        for handler in handlers.topics.iter().filter(|handler| matches(&handler.filter, heard.topic)) {
            if handler.per_person {
                let hears = |user: &&String| handlers.serves(user) || self.gate.hear(user, heard.topic);
                for user in self.people.keys().filter(hears).cloned().collect::<Vec<_>>() {
                    actions.extend(self.step(&user, moment, |c, world| c.event(world, &handler.function, &event)));
                }
            } else {
                let step = event_for_nobody(&self.world("", moment), &handler.function, &event);
                actions.extend(self.done(step));
            }
        }
        actions
    }

    /// Ends the questions whose time is over.
    pub fn tick(&mut self, moment: Moment) -> Vec<Action> {
        let due = |c: &Conversation| c.deadline_ms().is_some_and(|deadline| deadline <= moment.now_ms);
        let users: Vec<String> = self.people.iter().filter(|(_, c)| due(c)).map(|(user, _)| user.clone()).collect();
        users.iter().flat_map(|user| self.step(user, moment, |c, world| c.tick(world))).collect()
    }

    /// When the next question's time is over.
    pub fn next_deadline_ms(&self) -> Option<i64> {
        self.people.values().filter_map(Conversation::deadline_ms).min()
    }

    /// What is stored of this person.
    pub fn conversation(&self, user: &str) -> Option<&Conversation> {
        self.people.get(user)
    }

    /// What the store would hold of it.
    pub fn rows(&self) -> BTreeMap<String, Vec<u8>> {
        self.people.iter().map(|(user, conversation)| (user.clone(), conversation.encode())).collect()
    }

    /// Forgets everything in memory and reads it back from `rows`; a damaged row is left out.
    pub fn restart(&mut self, rows: &BTreeMap<String, Vec<u8>>) {
        let read = |(user, row): (&String, &Vec<u8>)| Some((user.clone(), Conversation::decode(row)?));
        self.people = rows.iter().filter_map(read).collect();
    }

    fn world<'a>(&'a self, user: &'a str, moment: Moment) -> World<'a> {
        World { engine: &self.engine, versions: &self.versions, gate: &self.gate, user, moment }
    }

    fn step(
        &mut self,
        user: &str,
        moment: Moment,
        work: impl FnOnce(&mut Conversation, &World<'_>) -> Step,
    ) -> Vec<Action> {
        let mut conversation = self.people.remove(user).unwrap_or_default();
        let step = work(&mut conversation, &self.world(user, moment));
        self.people.insert(user.to_owned(), conversation);
        self.done(step)
    }

    fn done(&mut self, step: Step) -> Vec<Action> {
        self.failures.extend(step.failures);
        step.actions
    }
}

#[cfg(test)]
#[path = "bot_tests.rs"]
mod tests;
