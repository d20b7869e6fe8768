//! One run of a handler: what the host functions read and write while Rhai executes on this thread.
//!
//! Rhai's progress and print hooks get no context, so the run lies in a thread-local for as long as it lasts.

use super::{Effect, Gate, Moment, Question, value};
use crate::journal::{Change, Given, JournalError, Kind, Replay};
use rhai::{Dynamic, EvalAltResult, NativeCallContext};
use std::{
    cell::RefCell,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

/// At most this many messages and publications in one run.
pub const MAX_EFFECTS: usize = 64;

/// What a host function returns to Rhai.
pub type Outcome<T> = Result<T, Box<EvalAltResult>>;

/// A run, from the call of the handler to its end or suspension.
pub struct Run {
    pub phase: Phase,
    pub replay: Replay,
    pub state: Dynamic,
    pub user: Dynamic,
    /// The person for whom it runs, unless the bot serves them with its own grants.
    pub asker: Option<Box<str>>,
    pub constants: Arc<rhai::Map>,
    pub moment: Moment,
    pub gate: Arc<dyn Gate>,
    pub effects: Vec<Effect>,
    pub halt: Option<Halt>,
    pub deadline: Instant,
    /// Set when the broker stops: the run ends and was never there.
    pub stop: Arc<AtomicBool>,
    /// What the thread held when the run began; see [`super::meter`].
    pub held: isize,
    /// The steps of the replay so far.
    pub replayed: u64,
    /// How often the script has printed.
    pub prints: u32,
    /// The last line that a traced run came past.
    pub last: rhai::Position,
}

/// Whether the top level declares, or a handler acts.
pub enum Phase {
    Loading(Declared),
    Handling,
}

/// What the top level declared: names and functions are checked afterwards, with their positions.
#[derive(Default)]
pub struct Declared {
    pub commands: Vec<(super::Command, rhai::Position)>,
    pub topics: Vec<(super::TopicHandler, rhai::Position)>,
    pub served: Vec<String>,
}

impl Declared {
    /// How many declarations there are.
    pub fn count(&self) -> usize {
        self.commands.len() + self.topics.len() + self.served.len()
    }
}

/// Why a run was stopped from outside the script.
#[derive(Debug)]
pub enum Halt {
    Waits(Question),
    Journal(JournalError),
    /// More messages and publications than one run may send.
    Effects,
    /// More bytes than a run may hold.
    Memory(u64),
    /// A list or map too long to be printed.
    Printed,
    /// More steps than a run may take.
    Steps(u64),
    /// More steps than a dialogue may take from its top.
    Dialogue(u64),
    TooSlow,
    /// The broker stops.
    Stopped,
}

thread_local! {
    static CURRENT: RefCell<Option<Run>> = const { RefCell::new(None) };
}

/// Makes `run` this thread's run while `work` executes, and gives it back.
pub fn within<T>(run: Run, work: impl FnOnce() -> T) -> (T, Run) {
    let before = CURRENT.replace(Some(run));
    let result = work();
    let run = CURRENT.replace(before);
    // `with` only lends the run; nothing else takes it out of its place.
    (result, run.expect("the run is still in its place"))
}

/// Lends this thread's run, if there is one.
pub fn with<T>(work: impl FnOnce(&mut Run) -> T) -> Option<T> {
    CURRENT.with_borrow_mut(|run| run.as_mut().map(work))
}

/// Lends the run of a handler to the host function `name`; at the top level the author is told where it belongs.
pub fn handling<T>(ctx: &NativeCallContext<'_>, work: impl FnOnce(&mut Run, u32) -> Outcome<T>) -> Outcome<T> {
    let line = ctx.call_position().line().unwrap_or(0) as u32;
    let name = ctx.fn_name();
    with(|run| match run.phase {
        Phase::Handling => work(run, line),
        Phase::Loading(_) => raise(format!("{name} works only inside a function; the top level only declares")),
    })
    .unwrap_or_else(|| raise(format!("{name} works only in a running bot")))
}

/// An error that the script may catch.
pub fn raise<T>(message: impl Into<String>) -> Outcome<T> {
    Err(EvalAltResult::ErrorRuntime(message.into().into(), rhai::Position::NONE).into())
}

impl Run {
    /// Stops the script; no `try` catches this.
    pub fn halt<T>(&mut self, halt: Halt) -> Outcome<T> {
        self.halt = Some(halt);
        Err(EvalAltResult::ErrorTerminated(Dynamic::UNIT, rhai::Position::NONE).into())
    }

    /// Does an effect unless a replay has come past it already.
    pub fn effect(&mut self, effect: Effect) -> Outcome<()> {
        if self.replay.effect() { self.act(effect) } else { Ok(()) }
    }

    /// Does an effect.
    pub fn act(&mut self, effect: Effect) -> Outcome<()> {
        if self.effects.len() >= MAX_EFFECTS {
            // Not an error that a script may catch: a replay, which does not send again, would not raise it.
            return self.halt(Halt::Effects);
        }
        self.effects.push(effect);
        Ok(())
    }

    /// The recorded result of a call, or the one that `make` gives now, which is then recorded.
    pub fn result(&mut self, kind: Kind, line: u32, make: impl FnOnce(&mut Run) -> Outcome<Given>) -> Outcome<Dynamic> {
        if let Some(given) = self.recorded(kind, line)? {
            return give(given);
        }
        let given = make(self)?;
        match self.replay.record(kind, line, given.clone()) {
            Ok(()) => give(given),
            Err(full) => self.halt(Halt::Journal(full)),
        }
    }

    /// The recorded answer to a question, or a stop until there is one.
    pub fn answer(&mut self, question: Question) -> Outcome<Dynamic> {
        match self.recorded(question.kind, question.line)? {
            Some(given) => give(given),
            None => self.halt(Halt::Waits(question)),
        }
    }

    fn recorded(&mut self, kind: Kind, line: u32) -> Outcome<Option<Given>> {
        match self.replay.recorded(kind, line) {
            Ok(None) => Ok(None),
            Ok(Some(entry)) => {
                if let Some(change) = &entry.change {
                    self.change_state(change);
                }
                Ok(Some(entry.value))
            }
            Err(changed) => self.halt(Halt::Journal(changed)),
        }
    }
}

impl Run {
    /// What others did to the state while the script waited. A new map: the script may hold parts of the old one.
    fn change_state(&mut self, change: &Change) {
        let mut state = self.state.read_lock::<rhai::Map>().map(|map| map.clone()).unwrap_or_default();
        change.gone.iter().for_each(|key| drop(state.remove(key.as_str())));
        state.extend(value::from_object(&change.set));
        self.state = Dynamic::from_map(state).into_shared();
    }
}

fn give(given: Given) -> Outcome<Dynamic> {
    match given {
        Given::Value(value) => Ok(value::from_json(&value)),
        Given::Error(message) => raise(message),
    }
}
