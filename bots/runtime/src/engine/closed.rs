//! Rhai with everything closed that a bot must not have, and a limit on everything that it has.

use super::{
    Gate, api,
    run::{self, Halt, Outcome, Phase, Run},
};
use rhai::{Dynamic, EvalAltResult, EvalContext, ImmutableString, OptimizationLevel, Position, Scope};
use std::time::{Duration, Instant};

/// The largest sum of what the variables of a running function hold, in bytes.
const MAX_MEMORY: usize = 4 * 1024 * 1024;
/// How often one run can print.
const MAX_PRINTS: u32 = 50;
/// How many characters are printed.
const MAX_PRINTED: usize = 1_000;
/// The longest text, in bytes.
const MAX_STRING: usize = 16 * 1024;
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

/// Nothing is allowed while a script is loaded.
pub struct Closed;

impl Gate for Closed {
    fn publish(&self, _: &str) -> Result<(), String> {
        Err("the bot is not running".into())
    }

    fn address(&self, _: &str) -> Result<(), String> {
        Err("the bot is not running".into())
    }
}

/// A closed engine.
pub fn closed_engine(limits: Limits) -> rhai::Engine {
    let mut engine = rhai::Engine::new();
    engine.set_module_resolver(rhai::module_resolvers::DummyModuleResolver::new());
    for symbol in ["eval", "import", "export"] {
        engine.disable_symbol(symbol);
    }
    close_functions(&mut engine);
    bound_replace(&mut engine);
    engine.on_print(|text| print(text, Position::NONE));
    engine.on_debug(|text, _, at| print(text, at));
    set_limits(&mut engine, limits);
    engine.on_progress(|count| if count % 1024 == 0 { stop_if_late() } else { None });
    // Rhai marks the variable resolver as subject to change; the version is pinned.
    #[allow(deprecated)]
    engine.on_var(|name, _, context| resolve(name, &context));
    api::register(&mut engine);
    engine
}

/// What a script prints goes to the log, once: not again in a replay, and not without end.
fn print(text: &str, at: Position) {
    let shown = run::with(|run| {
        run.prints += 1;
        run.replay.is_live() && run.prints <= MAX_PRINTS
    });
    if shown == Some(true) {
        let text: String = text.chars().take(MAX_PRINTED).collect();
        tracing::info!(target: "tavi_bots::print", line = at.line(), "{text}");
    }
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

/// Rhai builds the whole result of `replace` before it looks at its length: 16 KiB by 16 KiB are 256 MiB.
fn bound_replace(engine: &mut rhai::Engine) {
    fn replace(text: &mut ImmutableString, find: &str, with: &str) -> Outcome<()> {
        let growth = with.len().saturating_sub(find.len());
        if text.len() + text.matches(find).count() * growth > MAX_STRING {
            return Err(EvalAltResult::ErrorDataTooLarge("Length of string".into(), Position::NONE).into());
        }
        *text = text.replace(find, with).into();
        Ok(())
    }
    engine.register_fn("replace", |t: &mut ImmutableString, f: &str, w: &str| replace(t, f, w));
    engine.register_fn("replace", |t: &mut ImmutableString, f: char, w: &str| replace(t, &f.to_string(), w));
}

/// All set explicitly: Rhai's defaults differ between debug and release builds.
fn set_limits(engine: &mut rhai::Engine, limits: Limits) {
    engine.set_optimization_level(OptimizationLevel::None);
    engine.set_max_operations(limits.operations);
    engine.set_max_call_levels(MAX_CALLS);
    engine.set_max_expr_depths(64, 64);
    engine.set_max_string_size(MAX_STRING);
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
