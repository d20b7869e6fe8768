//! One run of a handler: what the host functions read and write while Rhai executes on this thread.
//!
//! Rhai's progress and print hooks get no context, so the run lies in a thread-local for as long as it lasts.

use super::{Effect, Gate, Moment, Question, value};
use crate::journal::{Given, JournalError, Kind, Replay};
use rhai::{Dynamic, EvalAltResult, NativeCallContext};
use std::{cell::RefCell, sync::Arc, time::Instant};

/// At most this many messages and publications in one run.
const MAX_EFFECTS: usize = 64;

/// What a host function returns to Rhai.
pub type Outcome<T> = Result<T, Box<EvalAltResult>>;

/// A run, from the call of the handler to its end or suspension.
pub struct Run {
    pub phase: Phase,
    pub replay: Replay,
    pub state: Dynamic,
    pub user: Dynamic,
    pub constants: Arc<rhai::Map>,
    pub moment: Moment,
    pub gate: Arc<dyn Gate>,
    pub effects: Vec<Effect>,
    pub halt: Option<Halt>,
    pub deadline: Instant,
    /// How often a variable was looked up; the memory check runs at each 256th.
    pub lookups: u32,
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
}

/// Why a run was stopped from outside the script.
#[derive(Debug)]
pub enum Halt {
    Waits(Question),
    Journal(JournalError),
    TooSlow,
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
    pub fn stop<T>(&mut self, halt: Halt) -> Outcome<T> {
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
            return raise(format!("one run may send and publish at most {MAX_EFFECTS} times"));
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
            Err(full) => self.stop(Halt::Journal(full)),
        }
    }

    /// The recorded answer to a question, or a stop until there is one.
    pub fn answer(&mut self, question: Question) -> Outcome<Dynamic> {
        match self.recorded(question.kind, question.line)? {
            Some(given) => give(given),
            None => self.stop(Halt::Waits(question)),
        }
    }

    fn recorded(&mut self, kind: Kind, line: u32) -> Outcome<Option<Given>> {
        match self.replay.recorded(kind, line) {
            Ok(None) => Ok(None),
            Ok(Some(entry)) => {
                if let Some(state) = &entry.state {
                    self.state = Dynamic::from_map(value::from_object(state)).into_shared();
                }
                Ok(Some(entry.value))
            }
            Err(changed) => self.stop(Halt::Journal(changed)),
        }
    }
}

fn give(given: Given) -> Outcome<Dynamic> {
    match given {
        Given::Value(value) => Ok(value::from_json(&value)),
        Given::Error(message) => raise(message),
    }
}
