//! What goes into a run and what comes out of it, in plain values.

use super::ScriptError;
use crate::{
    journal::{Journal, JournalError, Kind},
    prompt::Expected,
};
use rhai::AST;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};

/// Time and randomness of one run.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Milliseconds since 1970.
    pub now_ms: i64,
    /// The seed of the run's random numbers.
    pub random: u64,
}

impl Moment {
    /// The next random number (SplitMix64).
    pub fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What a bot is allowed to do, asked while its script runs.
pub trait Gate: Send + Sync {
    /// Whether the bot may publish to `topic`, for its own purposes or for the person with the bare JID `asker`, who
    /// must be allowed to do it as well; the error names the grant that is missing.
    fn publish(&self, asker: Option<&str>, topic: &str) -> Result<(), String>;

    /// Whether this person may hear `topic`.
    fn hear(&self, person: &str, topic: &str) -> bool;

    /// Whether `jid` is an address that a message can be sent to; the error tells what is wrong with it.
    fn address(&self, jid: &str) -> Result<(), String>;
}

/// What a script did that others will see.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// A message to the person of this conversation.
    Say {
        /// The message.
        text: String,
    },
    /// A message to somebody.
    SendTo {
        /// A bare JID.
        jid: String,
        /// The message.
        text: String,
    },
    /// A publication.
    Publish {
        /// Where.
        topic: String,
        /// What.
        payload: Payload,
        /// Whether it stays as the topic's value.
        retain: bool,
    },
}

/// A published value in its wire form.
#[derive(Clone, Debug, PartialEq)]
pub struct Payload {
    /// UTF-8.
    pub bytes: String,
    /// `text/plain` or `application/json`.
    pub content_type: &'static str,
}

/// An open question: where the script stands and what it wants to hear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// The call.
    #[serde(rename = "k")]
    pub kind: Kind,
    /// Its line.
    #[serde(rename = "l")]
    pub line: u32,
    /// How many effects came before it.
    #[serde(rename = "n")]
    pub effects: u32,
    /// The question as the person reads it.
    #[serde(rename = "t")]
    pub text: String,
    /// What answers it.
    #[serde(rename = "x")]
    pub expected: Expected,
    /// How long it stays open, in milliseconds.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// What to say to an answer that is none of the choices.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<String>,
}

/// A command that a bot offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// One word, lower case, without the slash.
    pub name: String,
    /// One line for the person.
    pub help: String,
    /// The handler.
    pub function: String,
}

/// A topic that a bot listens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicHandler {
    /// The filter, with `+` and `#`.
    pub filter: String,
    /// The handler.
    pub function: String,
    /// Whether it uses `say`, `state` or `user`: then it runs once for each person that talks with the bot.
    pub per_person: bool,
}

/// A script, checked and ready; one version of a bot.
#[derive(Debug)]
pub struct Script {
    /// The bot's name.
    pub name: String,
    /// The file's name, for errors.
    pub file: String,
    /// The text.
    pub source: String,
    /// The first 16 hex digits of the text's SHA-256: the version.
    pub hash: String,
    /// Commands in the order of their declaration.
    pub commands: Vec<Command>,
    /// Topic handlers in the order of their declaration.
    pub topics: Vec<TopicHandler>,
    /// Who may use the bot's own grants: bare JIDs, or `@everyone`.
    pub served: Vec<String>,
    pub(super) functions: BTreeMap<String, usize>,
    pub(super) constants: Arc<rhai::Map>,
    pub(super) ast: AST,
}

/// All people, as in grants.
pub const EVERYONE: &str = "@everyone";

impl Script {
    /// Whether this person may use the bot's own grants. Others have the bot do what they may do themselves.
    pub fn serves(&self, person: &str) -> bool {
        self.served.iter().any(|served| served == person || served == EVERYONE)
    }

    /// How many values `function` takes, if the script has it.
    pub fn arity(&self, function: &str) -> Option<usize> {
        self.functions.get(function).copied()
    }
}

/// One call of a handler.
pub struct Call<'a> {
    /// Which function.
    pub function: &'a str,
    /// Its values; surplus ones are dropped, missing ones are `()`.
    pub args: &'a [Value],
    /// What `user` shows; null where nobody is concerned.
    pub user: &'a Value,
    /// The conversation's state as it was when the handler was first called.
    pub state: &'a Map<String, Value>,
    /// What the handler was told so far.
    pub journal: Journal,
    /// Now.
    pub moment: Moment,
    /// The bot's permissions.
    pub gate: Arc<dyn Gate>,
}

/// What a run came to.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub end: End,
    /// The journal, longer by what was new.
    pub journal: Journal,
    /// The state that the script left; `None` if it is not to be kept.
    pub state: Option<Map<String, Value>>,
    /// What is new to be done, in order.
    pub effects: Vec<Effect>,
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// The handler returned.
    Done,
    /// It waits for an answer.
    Waits(Question),
    /// The journal does not fit to the script any more.
    Changed(JournalError),
    /// The script failed.
    Failed(Box<ScriptError>),
    /// The broker stops: nothing of this run counts.
    Stopped,
}
