//! The engine: Rhai with its limits, and nothing of Rhai outside this module.
//!
//! [`Engine::load`] checks a script and runs its top level once; [`Engine::run`] runs one call of one handler, from
//! the top, with a journal. Closed: files, modules, `eval`, `sleep`, the clock, output. Randomness and time come in
//! as a [`Moment`].

mod api;
mod check;
mod closed;
mod error;
mod meter;
mod run;
mod script;
mod value;

pub use closed::Limits;
pub use error::ScriptError;
pub use meter::{Metered, held, is_installed};
pub use script::{Call, Command, Effect, End, Gate, Moment, Payload, Question, Ran, Script, TopicHandler};

use crate::journal::{JournalError, Replay};
use closed::{Closed, closed_engine};
use rhai::{AST, CallFnOptions, Dynamic, EvalAltResult, Position, Scope};
use run::{Declared, Halt, Outcome, Phase, Run};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// The longest script, in bytes.
pub const MAX_SCRIPT: usize = 256 * 1024;
/// The largest state of a conversation, in encoded bytes.
pub const MAX_STATE: usize = 64 * 1024;

/// Rhai, set up three times: for running, for compiling in strict mode, and slower for finding where a runaway script
/// was.
pub struct Engine {
    rhai: rhai::Engine,
    strict: rhai::Engine,
    traced: rhai::Engine,
    builtins: check::Arities,
    limits: Limits,
    stop: Arc<AtomicBool>,
}

impl Default for Engine {
    fn default() -> Engine {
        Engine::new(Limits::default())
    }
}

impl Engine {
    /// An engine whose runs have these limits.
    pub fn new(limits: Limits) -> Engine {
        let rhai = closed_engine(limits);
        let mut traced = closed_engine(limits);
        // Rhai marks the debugger interface as subject to change; the version is pinned.
        #[allow(deprecated)]
        traced.register_debugger(
            |_, debugger| debugger,
            |_, event, _, _, at| {
                // The end of a function is no step of it.
                if matches!(event, rhai::debugger::DebuggerEvent::Step) && !at.is_none() {
                    run::with(|run| run.last = at);
                }
                Ok(rhai::debugger::DebuggerCommand::StepInto)
            },
        );
        let mut strict = closed_engine(limits);
        strict.set_strict_variables(true);
        Engine { builtins: check::builtins(&rhai), rhai, strict, traced, limits, stop: Arc::default() }
    }

    /// Checks a script and runs its top level. All mistakes that can be found are given at once.
    pub fn load(&self, name: &str, source: &str) -> Result<Script, Vec<ScriptError>> {
        let file = format!("{name}.rhai");
        if source.len() > MAX_SCRIPT {
            let message = format!("a script has at most {} KiB", MAX_SCRIPT / 1024);
            return Err(vec![ScriptError::of_file(&file, message)]);
        }
        let ast = self.compile(&file, source).map_err(|e| vec![e])?;
        let checker =
            check::Checker { file: &file, source, ast: &ast, builtins: &self.builtins, uses: Default::default() };
        none(checker.calls())?;
        let (declared, constants) = self.declare(&file, source, &ast).map_err(|e| vec![e])?;
        none(checker.handlers(&declared))?;
        let personal = |mut t: TopicHandler| {
            t.per_person = checker.per_person(&t.function);
            t
        };
        let most = |arities: &std::collections::BTreeSet<usize>| arities.last().copied().unwrap_or(0);
        Ok(Script {
            commands: declared.commands.into_iter().map(|(command, _)| command).collect(),
            topics: declared.topics.into_iter().map(|(topic, _)| personal(topic)).collect(),
            served: declared.served,
            functions: checker.functions().iter().map(|(name, arities)| (name.clone(), most(arities))).collect(),
            constants: Arc::new(constants),
            name: name.into(),
            hash: version_hash(source),
            source: source.into(),
            file,
            ast,
        })
    }

    /// Runs a handler from its top until it returns, waits or fails.
    pub fn run(&self, script: &Script, call: &Call<'_>) -> Ran {
        let (result, run) = self.attempt(&self.rhai, script, call);
        let end = self.end(script, call, result, &run);
        match end {
            End::Changed(_) | End::Stopped => {
                Ran { end, journal: call.journal.clone(), state: None, effects: Vec::new() }
            }
            end => finish(script, end, run),
        }
    }

    /// Ends all runs, now and from now on, as if they had not been ([`End::Stopped`]): the broker stops.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Compiles in strict mode: an unknown variable is an error, a constant of the top level is not.
    fn compile(&self, file: &str, source: &str) -> Result<AST, ScriptError> {
        let lenient =
            self.rhai.compile(source).map_err(|e| parse_error(file, source, &e, &check::TopLevel::default(), &[]))?;
        let top = check::top_level(&lenient);
        let mut names = vec!["state", "user"];
        names.extend(top.constants.iter().map(String::as_str));
        let mut scope = Scope::new();
        for name in &names {
            scope.push(*name, ());
        }
        let ast = self.strict.compile_with_scope(&scope, source);
        ast.map_err(|e| parse_error(file, source, &e, &top, &names))
    }

    /// Runs the top level: its declarations and constants.
    fn declare(&self, file: &str, source: &str, ast: &AST) -> Result<(Declared, rhai::Map), ScriptError> {
        let mut scope = Scope::new();
        let run = self.new_run(Phase::Loading(Declared::default()), Arc::default(), None);
        let (result, run) = run::within(run, || self.rhai.run_ast_with_scope(&mut scope, ast));
        if let Err(error) = result {
            let (inner, at) = error::innermost(&error);
            return Err(ScriptError::at(file, source, at, error::run_message(inner)));
        }
        let constants = scope.iter().filter(|(_, constant, _)| *constant);
        let constants = constants.map(|(name, _, value)| (name.into(), value.flatten())).collect();
        match run.phase {
            Phase::Loading(declared) => Ok((declared, constants)),
            Phase::Handling => Ok((Declared::default(), constants)),
        }
    }

    fn attempt(&self, rhai: &rhai::Engine, script: &Script, call: &Call<'_>) -> (Outcome<Dynamic>, Run) {
        let held = meter::held();
        let person = call.user.get("jid").and_then(Value::as_str);
        let asker = person.filter(|person| !script.serves(person)).map(Box::from);
        let run = Run { held, asker, ..self.new_run(Phase::Handling, script.constants.clone(), Some(call)) };
        let arity = script.arity(call.function).unwrap_or(0);
        let mut args: Vec<Dynamic> = call.args.iter().take(arity).map(value::from_json).collect();
        args.resize(arity, Dynamic::UNIT);
        let options = CallFnOptions::new().eval_ast(false);
        run::within(run, || {
            rhai.call_fn_with_options::<Dynamic>(options, &mut Scope::new(), &script.ast, call.function, args)
        })
    }

    fn new_run(&self, phase: Phase, constants: Arc<rhai::Map>, call: Option<&Call<'_>>) -> Run {
        let state = call.map_or_else(rhai::Map::new, |call| value::from_object(call.state));
        Run {
            phase,
            constants,
            state: Dynamic::from_map(state).into_shared(),
            user: call.map_or(Dynamic::UNIT, |call| value::from_json(call.user)),
            replay: Replay::new(call.map(|call| call.journal.clone()).unwrap_or_default()),
            moment: call.map_or(Moment { now_ms: 0, random: 0 }, |call| call.moment),
            gate: call.map_or_else(|| Arc::new(Closed) as Arc<dyn Gate>, |call| call.gate.clone()),
            effects: Vec::new(),
            halt: None,
            deadline: Instant::now() + self.limits.wall,
            asker: None,
            stop: self.stop.clone(),
            held: meter::held(),
            replayed: 0,
            prints: 0,
            last: Position::NONE,
        }
    }

    fn end(&self, script: &Script, call: &Call<'_>, result: Outcome<Dynamic>, run: &Run) -> End {
        let error = match (result, &run.halt) {
            (_, Some(Halt::Stopped)) => return End::Stopped,
            (Ok(_), None) => return End::Done,
            // It was over before the halt was looked at, but its messages are not whole.
            (Ok(_), Some(_)) => halted(),
            (Err(_), Some(Halt::Waits(question))) => return End::Waits(question.clone()),
            (Err(_), Some(Halt::Journal(changed @ JournalError::Changed { .. }))) => {
                return End::Changed(changed.clone());
            }
            (Err(error), _) => error,
        };
        End::Failed(Box::new(self.failure(script, call, &error, &run.halt)))
    }

    fn failure(&self, script: &Script, call: &Call<'_>, error: &EvalAltResult, halt: &Option<Halt>) -> ScriptError {
        let (inner, at) = error::innermost(error);
        let (message, known) = match halt {
            Some(halt) => (self.limit(halt), matches!(halt, Halt::Journal(_) | Halt::Effects)),
            None => (error::run_message(inner), true),
        };
        let at = if at.is_none() || !known { self.trace(script, call) } else { at };
        let last = if known { String::new() } else { format!(", last at line {}", at.line().unwrap_or(0)) };
        ScriptError::at(&script.file, &script.source, at, format!("{message}{last}"))
    }

    /// Which limit it was, in an author's words.
    fn limit(&self, halt: &Halt) -> String {
        match halt {
            Halt::Journal(full) => full.to_string(),
            Halt::Effects => format!("one run may send and publish at most {} times", run::MAX_EFFECTS),
            Halt::Memory(bytes) => format!("stopped: a run may hold {} MiB", bytes >> 20),
            Halt::Printed => "stopped: a list or map is too large to be made into a text".into(),
            Halt::Steps(steps) => format!("stopped after {} steps", thousands(*steps)),
            Halt::Dialogue(steps) => format!(
                "stopped after {} steps in this dialogue; let the handler return and go on from `state`",
                thousands(*steps)
            ),
            Halt::TooSlow => format!("stopped after {} ms", self.limits.wall.as_millis()),
            Halt::Waits(_) | Halt::Stopped => "stopped".into(),
        }
    }

    /// Where a run that hit a limit was. Rhai does not tell; runs are deterministic, so a slower second one finds it.
    fn trace(&self, script: &Script, call: &Call<'_>) -> Position {
        self.attempt(&self.traced, script, call).1.last
    }
}

fn halted() -> Box<EvalAltResult> {
    EvalAltResult::ErrorTerminated(Dynamic::UNIT, Position::NONE).into()
}

fn finish(script: &Script, end: End, run: Run) -> Ran {
    let journal = run.replay.journal;
    match kept_state(&run.state) {
        Ok(state) => Ran { end, journal, state: Some(state), effects: run.effects },
        Err(_) if matches!(end, End::Failed(_)) => Ran { end, journal, state: None, effects: run.effects },
        Err(message) => {
            let line = if let End::Waits(question) = &end { question.line } else { 0 };
            let error = ScriptError::at_line(&script.file, &script.source, line, message);
            Ran { end: End::Failed(Box::new(error)), journal, state: None, effects: run.effects }
        }
    }
}

fn kept_state(state: &Dynamic) -> Result<Map<String, Value>, String> {
    let state = value::to_object("state", state)?;
    let size = serde_json::to_vec(&state).map_or(usize::MAX, |bytes| bytes.len());
    if size > MAX_STATE {
        return Err(format!("state has grown to {} KiB; at most {} are kept", size / 1024, MAX_STATE / 1024));
    }
    Ok(state)
}

fn none(errors: Vec<ScriptError>) -> Result<(), Vec<ScriptError>> {
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn parse_error(
    file: &str,
    source: &str,
    error: &rhai::ParseError,
    top: &check::TopLevel,
    known: &[&str],
) -> ScriptError {
    ScriptError::at(file, source, error.position(), error::parse_message(error, top, known))
}

/// The names of the functions that a bot has beyond the language itself.
pub fn call_names() -> Vec<&'static str> {
    api::CALLS.iter().map(|call| call.name).collect()
}

/// The version of a script: the first 16 hex digits of its SHA-256.
pub fn version_hash(source: &str) -> String {
    Sha256::digest(source.as_bytes())[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap_or("")).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests;
