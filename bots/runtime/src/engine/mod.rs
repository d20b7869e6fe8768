//! The engine: Rhai with its limits, and nothing of Rhai outside this module.
//!
//! [`Engine::load`] checks a script and runs its top level once; [`Engine::run`] runs one call of one handler, from
//! the top, with a journal. Closed: files, modules, `eval`, `sleep`, the clock, output. Randomness and time come in
//! as a [`Moment`].

mod api;
mod check;
mod error;
mod run;
mod value;

pub use error::ScriptError;

use crate::{
    journal::{Journal, JournalError, Kind, Replay},
    prompt::Expected,
};
use rhai::{AST, CallFnOptions, Dynamic, EvalAltResult, EvalContext, OptimizationLevel, Position, Scope};
use run::{Declared, Halt, Outcome, Phase, Run};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// The longest script, in bytes.
pub const MAX_SCRIPT: usize = 256 * 1024;
/// The largest state of a conversation, in encoded bytes.
pub const MAX_STATE: usize = 64 * 1024;
/// The largest sum of what the variables of a running function hold, in bytes.
const MAX_MEMORY: usize = 4 * 1024 * 1024;
/// Call depth; a 2 MiB stack bears eight times as many.
const MAX_CALLS: usize = 32;

/// What one run may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Steps of the script, about one for each expression.
    pub operations: u64,
    /// Time on the thread.
    pub wall: Duration,
}

impl Default for Limits {
    /// 100,000 steps and 50 ms; unoptimised builds of the broker get ten times as long.
    fn default() -> Limits {
        let wall = if cfg!(debug_assertions) { 500 } else { 50 };
        Limits { operations: 100_000, wall: Duration::from_millis(wall) }
    }
}

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
    /// Whether the bot may publish to `topic`; the error names the grant that is missing.
    fn publish(&self, topic: &str) -> Result<(), String>;

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
    functions: BTreeMap<String, usize>,
    constants: Arc<rhai::Map>,
    ast: AST,
}

impl Script {
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
}

/// Rhai, set up twice: for running, and slower for finding where a runaway script was.
pub struct Engine {
    rhai: rhai::Engine,
    traced: rhai::Engine,
    builtins: check::Arities,
    limits: Limits,
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
        let builtins = check::builtins(&rhai);
        Engine { rhai, traced, builtins, limits }
    }

    /// Checks a script and runs its top level. All mistakes that can be found are given at once.
    pub fn load(&self, name: &str, source: &str) -> Result<Script, Vec<ScriptError>> {
        let file = format!("{name}.rhai");
        if source.len() > MAX_SCRIPT {
            let message = format!("a script has at most {} KiB", MAX_SCRIPT / 1024);
            return Err(vec![ScriptError::of_file(&file, message)]);
        }
        let ast = self.compile(&file, source).map_err(|e| vec![e])?;
        let checker = check::Checker { file: &file, source, ast: &ast, builtins: &self.builtins };
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
            End::Changed(_) => {
                Ran { end, journal: call.journal.clone(), state: None, effects: Vec::new() }
            }
            end => finish(script, end, run),
        }
    }

    /// Compiles in strict mode: an unknown variable is an error, a constant of the top level is not.
    fn compile(&self, file: &str, source: &str) -> Result<AST, ScriptError> {
        let lenient = self.rhai.compile(source).map_err(|e| parse_error(file, source, &e, &check::TopLevel::default(), &[]))?;
        let top = check::top_level(&lenient);
        let mut names = vec!["state", "user"];
        names.extend(top.constants.iter().map(String::as_str));
        let mut strict = closed_engine(self.limits);
        strict.set_strict_variables(true);
        let mut scope = Scope::new();
        for name in &names {
            scope.push(*name, ());
        }
        let ast = strict.compile_with_scope(&scope, source);
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
        let run = self.new_run(Phase::Handling, script.constants.clone(), Some(call));
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
            lookups: 0,
            last: Position::NONE,
        }
    }

    fn end(&self, script: &Script, call: &Call<'_>, result: Outcome<Dynamic>, run: &Run) -> End {
        let error = match (result, &run.halt) {
            (Ok(_), _) => return End::Done,
            (Err(_), Some(Halt::Waits(question))) => return End::Waits(question.clone()),
            (Err(_), Some(Halt::Journal(changed @ JournalError::Changed { .. }))) => {
                return End::Changed(changed.clone());
            }
            (Err(error), _) => error,
        };
        let (inner, at) = error::innermost(&error);
        let (at, message) = match (inner, &run.halt) {
            (_, Some(Halt::Journal(full))) => (at, full.to_string()),
            (_, Some(Halt::TooSlow)) => self.runaway(script, call, format!("{} ms", self.limits.wall.as_millis())),
            (EvalAltResult::ErrorTooManyOperations(_), _) => {
                self.runaway(script, call, format!("{} steps", thousands(self.limits.operations)))
            }
            (inner, _) => (at, error::run_message(inner)),
        };
        End::Failed(Box::new(ScriptError::at(&script.file, &script.source, at, message)))
    }

    /// Rhai tells no inner position when a limit is hit; runs are deterministic, so a slower second one finds it.
    fn runaway(&self, script: &Script, call: &Call<'_>, limit: String) -> (Position, String) {
        let (_, run) = self.attempt(&self.traced, script, call);
        let line = run.last.line().unwrap_or(0);
        (run.last, format!("stopped after {limit}, last at line {line}"))
    }
}

/// Nothing is allowed while a script is loaded.
struct Closed;

impl Gate for Closed {
    fn publish(&self, _: &str) -> Result<(), String> {
        Err("the bot is not running".into())
    }

    fn address(&self, _: &str) -> Result<(), String> {
        Err("the bot is not running".into())
    }
}

fn closed_engine(limits: Limits) -> rhai::Engine {
    let mut engine = rhai::Engine::new();
    engine.set_module_resolver(rhai::module_resolvers::DummyModuleResolver::new());
    for symbol in ["eval", "import", "export"] {
        engine.disable_symbol(symbol);
    }
    close_functions(&mut engine);
    engine.on_print(|text| tracing::info!(target: "tavi_bots::print", "{text}"));
    engine.on_debug(|text, _, at| tracing::debug!(target: "tavi_bots::print", "{at:?}: {text}"));
    set_limits(&mut engine, limits);
    engine.on_progress(|count| if count % 1024 == 0 { stop_if_late() } else { None });
    // Rhai marks the variable resolver as subject to change; the version is pinned.
    #[allow(deprecated)]
    engine.on_var(|name, _, context| resolve(name, &context));
    api::register(&mut engine);
    engine
}

/// `sleep` blocks the thread and counts no steps; `timestamp` is a clock past the journal. A name can also be called
/// through a text, so it is not enough that the checker does not know them.
fn close_functions(engine: &mut rhai::Engine) {
    let closed = || run::raise::<()>("there is no such function");
    engine.register_fn("sleep", move |_: i64| closed());
    engine.register_fn("sleep", move |_: f64| closed());
    engine.register_fn("timestamp", closed);
    engine.register_fn("exit", closed);
    engine.register_fn("exit", move |_: Dynamic| closed());
}

/// All set explicitly: Rhai's defaults differ between debug and release builds.
fn set_limits(engine: &mut rhai::Engine, limits: Limits) {
    engine.set_optimization_level(OptimizationLevel::None);
    engine.set_max_operations(limits.operations);
    engine.set_max_call_levels(MAX_CALLS);
    engine.set_max_expr_depths(64, 64);
    engine.set_max_string_size(16 * 1024);
    engine.set_max_array_size(1_000);
    engine.set_max_map_size(500);
    engine.set_max_variables(128);
    engine.set_max_functions(500);
    engine.set_max_modules(0);
}

fn stop_if_late() -> Option<Dynamic> {
    run::with(|run| {
        let late = Instant::now() > run.deadline;
        late.then(|| {
            run.halt = Some(Halt::TooSlow);
            Dynamic::UNIT
        })
    })
    .flatten()
}

/// Serves `state`, `user` and the constants; a local variable of the same name goes first.
fn resolve(name: &str, context: &EvalContext<'_, '_, '_, '_, '_, '_>) -> Outcome<Option<Dynamic>> {
    run::with(|run| {
        run.lookups = run.lookups.wrapping_add(1);
        if run.lookups % 256 == 0 {
            check_memory(run, context.scope())?;
        }
        if context.scope().contains(name) {
            return Ok(None);
        }
        Ok(match name {
            "state" if matches!(run.phase, Phase::Handling) => Some(run.state.clone()),
            "user" if matches!(run.phase, Phase::Handling) => Some(run.user.clone()),
            name => run.constants.get(name).cloned(),
        })
    })
    .unwrap_or(Ok(None))
}

/// Rhai 1.27 lets `map[key] = value` grow past its limit, and limits no sum; this does both.
fn check_memory(run: &Run, scope: &Scope<'_>) -> Outcome<()> {
    let mut left = MAX_MEMORY;
    let values = scope.iter_raw().map(|(_, _, value)| value).chain([&run.state]);
    for value in values {
        match left.checked_sub(size(value, left, 0)) {
            Some(rest) => left = rest,
            None => return Err(too_large()),
        }
    }
    Ok(())
}

fn too_large() -> Box<EvalAltResult> {
    EvalAltResult::ErrorDataTooLarge("the variables together".into(), Position::NONE).into()
}

/// About how many bytes a value holds; stops counting behind `limit`.
fn size(value: &Dynamic, limit: usize, depth: usize) -> usize {
    if depth > 64 {
        return limit + 1;
    }
    let own = std::mem::size_of::<Dynamic>();
    if let Some(text) = value.read_lock::<rhai::ImmutableString>() {
        return own + text.len();
    }
    let sum = |total: usize, part: usize| {
        let total = total + part;
        if total > limit { Err(total) } else { Ok(total) }
    };
    let counted = if let Some(list) = value.read_lock::<rhai::Array>() {
        list.iter().try_fold(own, |total, item| sum(total, size(item, limit, depth + 1)))
    } else if let Some(map) = value.read_lock::<rhai::Map>() {
        map.iter().try_fold(own, |total, (key, item)| sum(total, 32 + key.len() + size(item, limit, depth + 1)))
    } else if let Some(blob) = value.read_lock::<rhai::Blob>() {
        Ok(own + blob.len())
    } else {
        Ok(own)
    };
    counted.unwrap_or_else(|total| total)
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

fn parse_error(file: &str, source: &str, error: &rhai::ParseError, top: &check::TopLevel, known: &[&str]) -> ScriptError {
    ScriptError::at(file, source, error.position(), error::parse_message(error, top, known))
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
