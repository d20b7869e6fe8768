//! One person and one bot: the saved state, the open dialogue, and what something heard makes of them.
//!
//! Nothing here does IO: each step changes the conversation in memory and gives the actions. Whoever calls commits
//! both in one transaction before anything goes out.

use crate::{
    dispatch::{Meaning, help, meaning},
    engine::{Call, Effect, End, Engine, Gate, Moment, Payload, Question, Ran, Script, ScriptError},
    journal::{Change, Entry, Given, Journal},
    prompt::Expected,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// How long the version of a script that a dialogue began with is kept.
pub const OLD_VERSION_MS: i64 = 7 * 24 * 3_600_000;
/// What a person reads whose dialogue cannot go on with the script as it is now.
pub const UPDATED: &str = "I was updated, let's start again.";

/// What a bot remembers of one person.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    #[serde(rename = "s", default)]
    state: Map<String, Value>,
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    dialogue: Option<Dialogue>,
}

/// A handler that waits for an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Dialogue {
    /// The version of the script that runs it.
    #[serde(rename = "v")]
    version: String,
    #[serde(rename = "f")]
    function: String,
    #[serde(rename = "a")]
    args: Vec<Value>,
    #[serde(rename = "j")]
    journal: Journal,
    /// The conversation's state when the handler was called.
    #[serde(rename = "b")]
    before: Map<String, Value>,
    #[serde(rename = "q")]
    question: Question,
    #[serde(rename = "t")]
    since_ms: i64,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<i64>,
    /// The state that this one left, if a topic handler has changed it since.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    left: Option<Map<String, Value>>,
}

/// The versions of one bot: the newest, and those that dialogues still wait on.
#[derive(Clone, Debug)]
pub struct Versions {
    /// New calls run on this.
    pub current: Arc<Script>,
    /// By hash.
    pub old: BTreeMap<String, Arc<Script>>,
}

/// What a step needs to know besides the conversation.
#[derive(Clone, Copy)]
pub struct World<'a> {
    /// Runs scripts.
    pub engine: &'a Engine,
    /// The bot's scripts.
    pub versions: &'a Versions,
    /// The bot's permissions.
    pub gate: &'a Arc<dyn Gate>,
    /// The person's bare JID.
    pub user: &'a str,
    /// Now.
    pub moment: Moment,
}

/// Something that others will see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// A chat message.
    #[serde(rename = "m")]
    Message {
        /// A bare JID.
        to: String,
        /// What it says.
        text: String,
        /// What may be answered, if it is a question.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected: Option<Expected>,
    },
    /// A publication.
    #[serde(rename = "p")]
    Publish {
        /// Where.
        topic: String,
        /// What, in UTF-8.
        payload: String,
        /// Its media type.
        content_type: String,
        /// Whether it stays as the topic's value.
        retain: bool,
    },
}

/// What a step came to.
#[derive(Debug, Default)]
pub struct Step {
    /// What has to go out, in order, once the conversation is saved.
    pub actions: Vec<Action>,
    /// What went wrong in the script, for its author.
    pub failures: Vec<Failure>,
    /// The broker stops, and this step was never taken: nothing of it may be kept.
    pub stopped: bool,
}

/// A failed run.
#[derive(Debug)]
pub struct Failure {
    /// The number that the person was given.
    pub reference: String,
    /// What the author needs.
    pub error: Box<ScriptError>,
}

impl Versions {
    /// Only the newest.
    pub fn new(current: Arc<Script>) -> Versions {
        Versions { current, old: BTreeMap::new() }
    }

    /// Takes a newer version; the former one stays for its dialogues.
    pub fn update(&mut self, script: Arc<Script>) {
        let former = std::mem::replace(&mut self.current, script);
        self.old.remove(&self.current.hash);
        if former.hash != self.current.hash {
            self.old.insert(former.hash.clone(), former);
        }
    }

    fn find(&self, hash: &str) -> Option<&Arc<Script>> {
        if self.current.hash == hash { Some(&self.current) } else { self.old.get(hash) }
    }
}

impl Conversation {
    /// Its stored form.
    pub fn encode(&self) -> Vec<u8> {
        // Maps with text keys and finite numbers always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the stored form; `None` if it is damaged.
    pub fn decode(bytes: &[u8]) -> Option<Conversation> {
        serde_json::from_slice(bytes).ok()
    }

    /// The saved state.
    pub fn state(&self) -> &Map<String, Value> {
        &self.state
    }

    /// The open question.
    pub fn question(&self) -> Option<&Question> {
        self.dialogue.as_ref().map(|dialogue| &dialogue.question)
    }

    /// When the open question's time is over, in milliseconds since 1970.
    pub fn deadline_ms(&self) -> Option<i64> {
        self.dialogue.as_ref()?.deadline_ms
    }

    /// The version that the open dialogue waits on.
    pub fn version(&self) -> Option<&str> {
        self.dialogue.as_ref().map(|dialogue| dialogue.version.as_str())
    }

    /// When the open dialogue began, in milliseconds since 1970.
    pub fn since_ms(&self) -> Option<i64> {
        self.dialogue.as_ref().map(|dialogue| dialogue.since_ms)
    }

    /// The person wrote something.
    pub fn hear(&mut self, world: &World<'_>, text: &str) -> Step {
        let mut step = self.tick(world);
        step.then(match meaning(&world.versions.current, self.question(), text) {
            Meaning::Answer(value) => self.answer(world, value),
            Meaning::Unclear => self.unclear(world),
            Meaning::Call { function, args } => self.call(world, function, args),
            Meaning::Help => Step::say(world, help(&world.versions.current)),
            Meaning::Stop => {
                self.dialogue = None;
                Step::say(world, "Stopped.")
            }
        });
        step
    }

    /// A topic handler of the current version that is about this person.
    pub fn event(&mut self, world: &World<'_>, function: &str, event: &Value) -> Step {
        let script = &world.versions.current;
        let ran = run(world, script, &Begun::by_event(function, event, self.state.clone()), Journal::default());
        let step = quiet(world, &ran, &script.file);
        if let Some(state) = ran.state.filter(|state| *state != self.state) {
            let left = std::mem::replace(&mut self.state, state);
            if let Some(dialogue) = &mut self.dialogue {
                dialogue.left.get_or_insert(left);
            }
        }
        step
    }

    /// Ends the open question if its time is over.
    pub fn tick(&mut self, world: &World<'_>) -> Step {
        match self.deadline_ms() {
            Some(deadline) if deadline <= world.moment.now_ms => self.answer(world, Value::Null),
            _ => Step::default(),
        }
    }

    fn unclear(&self, world: &World<'_>) -> Step {
        let Some(question) = self.question() else { return Step::default() };
        let retry = question.retry.clone();
        let text = retry.unwrap_or_else(|| format!("Please choose one of these. {}", question.text));
        let expected = Some(question.expected.clone());
        Step { actions: vec![Action::Message { to: world.user.into(), text, expected }], ..Step::default() }
    }

    fn call(&mut self, world: &World<'_>, function: String, args: Vec<Value>) -> Step {
        self.dialogue = None;
        let fresh = Begun {
            version: world.versions.current.hash.clone(),
            function,
            args,
            before: self.state.clone(),
            since_ms: world.moment.now_ms,
        };
        self.run(world, &world.versions.current, fresh, Journal::default())
    }

    fn answer(&mut self, world: &World<'_>, value: Value) -> Step {
        let Some(dialogue) = self.dialogue.take() else { return Step::default() };
        let Some(script) = dialogue.script(world) else { return Step::say(world, UPDATED) };
        let (question, mut journal) = (dialogue.question, dialogue.journal);
        let change = dialogue.left.and_then(|left| Change::between(&left, &self.state));
        let change = change.filter(|change| journal.bears(change));
        let (kind, line, effects) = (question.kind, question.line, question.effects);
        if let Err(full) = journal.push(Entry { kind, line, effects, value: Given::Value(value), change }) {
            return failed(world, ScriptError::at_line(&script.file, &script.source, line, full.to_string()));
        }
        let begun = Begun {
            version: dialogue.version,
            function: dialogue.function,
            args: dialogue.args,
            before: dialogue.before,
            since_ms: dialogue.since_ms,
        };
        self.run(world, script, begun, journal)
    }

    fn run(&mut self, world: &World<'_>, script: &Script, begun: Begun, journal: Journal) -> Step {
        let ran = run(world, script, &begun, journal);
        let mut step = Step { actions: actions(world, ran.effects), ..Step::default() };
        if let Some(state) = ran.state {
            self.state = state;
        }
        match ran.end {
            End::Done => {}
            End::Waits(question) => step.actions.push(self.wait(world, begun, ran.journal, question)),
            End::Changed(_) => step.then(Step::say(world, UPDATED)),
            End::Failed(error) => step.then(failed(world, *error)),
            End::Stopped => step.stopped = true,
        }
        step
    }

    /// Opens a question; gives the message that asks it.
    fn wait(&mut self, world: &World<'_>, begun: Begun, journal: Journal, question: Question) -> Action {
        let (text, expected) = (question.text.clone(), Some(question.expected.clone()));
        let deadline = |timeout: u64| world.moment.now_ms.saturating_add(i64::try_from(timeout).unwrap_or(i64::MAX));
        self.dialogue = Some(Dialogue {
            deadline_ms: question.timeout.map(deadline),
            version: begun.version,
            function: begun.function,
            args: begun.args,
            before: begun.before,
            since_ms: begun.since_ms,
            journal,
            question,
            left: None,
        });
        Action::Message { to: world.user.into(), text, expected }
    }
}

/// How a handler was called.
struct Begun {
    version: String,
    function: String,
    args: Vec<Value>,
    before: Map<String, Value>,
    since_ms: i64,
}

impl Begun {
    /// A topic handler: it runs on the newest version and cannot wait, so neither version nor time matter.
    fn by_event(function: &str, event: &Value, before: Map<String, Value>) -> Begun {
        Begun { version: String::new(), function: function.into(), args: vec![event.clone()], before, since_ms: 0 }
    }
}

impl Dialogue {
    /// The version that runs it, unless that is gone or too old.
    fn script<'a>(&self, world: &World<'a>) -> Option<&'a Arc<Script>> {
        let script = world.versions.find(&self.version)?;
        let newest = script.hash == world.versions.current.hash;
        (newest || world.moment.now_ms - self.since_ms <= OLD_VERSION_MS).then_some(script)
    }
}

impl Step {
    fn say(world: &World<'_>, text: impl Into<String>) -> Step {
        let message = Action::Message { to: world.user.into(), text: text.into(), expected: None };
        Step { actions: vec![message], ..Step::default() }
    }

    /// Adds what came after it.
    pub fn then(&mut self, next: Step) {
        self.actions.extend(next.actions);
        self.failures.extend(next.failures);
        self.stopped |= next.stopped;
    }
}

/// A topic handler that is about nobody: it runs once, without `state` and `user`.
pub fn event_for_nobody(world: &World<'_>, function: &str, event: &Value) -> Step {
    let script = &world.versions.current;
    let ran = run(world, script, &Begun::by_event(function, event, Map::new()), Journal::default());
    quiet(world, &ran, &script.file)
}

fn run(world: &World<'_>, script: &Script, begun: &Begun, journal: Journal) -> Ran {
    let name = world.user.split('@').next().unwrap_or_default();
    let user = if world.user.is_empty() { Value::Null } else { json!({"jid": world.user, "name": name}) };
    let call = Call {
        function: &begun.function,
        args: &begun.args,
        user: &user,
        state: &begun.before,
        journal,
        moment: world.moment,
        gate: world.gate.clone(),
    };
    world.engine.run(script, &call)
}

/// A run that nobody waits for: its failure goes to the author only.
fn quiet(world: &World<'_>, ran: &Ran, file: &str) -> Step {
    let error = match &ran.end {
        End::Done | End::Stopped => None,
        End::Failed(error) => Some(error.clone()),
        End::Waits(_) | End::Changed(_) => {
            Some(Box::new(ScriptError::of_file(file, "a topic handler cannot wait for an answer; use say")))
        }
    };
    let failures = error.map(|error| Failure { reference: reference(world), error }).into_iter().collect();
    Step { actions: actions(world, ran.effects.clone()), failures, stopped: matches!(ran.end, End::Stopped) }
}

fn failed(world: &World<'_>, error: ScriptError) -> Step {
    let reference = reference(world);
    let mut step = Step::say(world, format!("Sorry, something went wrong in this bot (reference {reference})."));
    step.failures.push(Failure { reference, error: Box::new(error) });
    step
}

fn reference(world: &World<'_>) -> String {
    let mut moment = world.moment;
    format!("{:06x}", moment.draw() & 0xff_ffff)
}

fn actions(world: &World<'_>, effects: Vec<Effect>) -> Vec<Action> {
    let action = |effect| match effect {
        Effect::Say { text } => Action::Message { to: world.user.into(), text, expected: None },
        Effect::SendTo { jid, text } => Action::Message { to: jid, text, expected: None },
        Effect::Publish { topic, payload: Payload { bytes, content_type }, retain } => {
            Action::Publish { topic, payload: bytes, content_type: content_type.into(), retain }
        }
    };
    effects.into_iter().map(action).collect()
}
