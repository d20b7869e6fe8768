//! Rhai with everything closed that a bot must not have, and a limit on everything that it has.

use super::{
    Gate, MAX_STATE, api, meter,
    run::{self, Halt, Outcome, Phase, Run},
    value,
};
use rhai::{Dynamic, EvalAltResult, EvalContext, ImmutableString, OptimizationLevel, Position};
use std::{
    fmt::Write,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// How much one run may hold, in bytes.
const MAX_MEMORY: isize = 4 * 1024 * 1024;
/// How often one run can print.
const MAX_PRINTS: u32 = 50;
/// How many characters are printed.
const MAX_PRINTED: usize = 1_000;
/// The longest text, and the sum of the texts in one list or map, in bytes: more than a state may have when encoded,
/// so that a state that has grown too large is told as such.
const MAX_STRING: usize = 2 * MAX_STATE;
/// Call depth; a 2 MiB stack bears eight times as many.
const MAX_CALLS: usize = 32;
/// Steps between two looks at the limits that are not memory.
const LOOK: u64 = 64;

/// What one run may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Steps of the script since the last answer, about one for each expression.
    pub operations: u64,
    /// Steps from the top of the handler, those of the replay too: the cost of a long dialogue's next answer.
    pub dialogue: u64,
    /// Time on the thread. No script comes near it by its steps, however busy the machine: only a true hang does.
    pub wall: Duration,
}

impl Default for Limits {
    /// 100,000 steps, five million in one dialogue, and ten seconds.
    fn default() -> Limits {
        Limits { operations: 100_000, dialogue: 5_000_000, wall: Duration::from_secs(10) }
    }
}

/// Nothing is allowed while a script is loaded.
pub struct Closed;

impl Gate for Closed {
    fn publish(&self, _: Option<&str>, _: &str) -> Result<(), String> {
        Err("the bot is not running".into())
    }

    fn hear(&self, _: &str, _: &str) -> bool {
        false
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
    bound_printing(&mut engine);
    engine.on_print(|text| print(text, Position::NONE));
    engine.on_debug(|text, _, at| print(text, at));
    set_limits(&mut engine);
    engine.on_progress(move |count| progress(count, limits));
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

/// Rhai builds the whole result of `replace` before it looks at its length: 128 KiB by 128 KiB are 16 GiB.
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
fn set_limits(engine: &mut rhai::Engine) {
    engine.set_optimization_level(OptimizationLevel::None);
    // Counted by `progress`: Rhai's own count would add up over replays.
    engine.set_max_operations(0);
    engine.set_max_call_levels(MAX_CALLS);
    engine.set_max_expr_depths(64, 64);
    engine.set_max_string_size(MAX_STRING);
    engine.set_max_array_size(1_000);
    engine.set_max_map_size(500);
    engine.set_max_variables(128);
    engine.set_max_functions(500);
    engine.set_max_modules(0);
}

/// Asked at each step; an answer stops the script, whatever it tries to catch.
fn progress(count: u64, limits: Limits) -> Option<Dynamic> {
    let halt = run::with(|run| {
        run.look(count, limits);
        run.halt.is_some()
    });
    (halt == Some(true)).then_some(Dynamic::UNIT)
}

impl Run {
    fn look(&mut self, count: u64, limits: Limits) {
        if meter::held() - self.held > MAX_MEMORY {
            return self.halt_with(Halt::Memory(MAX_MEMORY as u64));
        }
        if !count.is_multiple_of(LOOK) {
            return;
        }
        if !self.replay.is_live() {
            self.replayed = count;
        }
        if count - self.replayed > limits.operations {
            self.halt_with(Halt::Steps(limits.operations));
        } else if count > limits.dialogue.max(limits.operations) {
            self.halt_with(Halt::Dialogue(limits.dialogue));
        } else if self.stop.load(Ordering::Relaxed) {
            self.halt_with(Halt::Stopped);
        } else if Instant::now() > self.deadline {
            self.halt_with(Halt::TooSlow);
        }
    }

    /// Has the script stopped at its next step. The first reason stands.
    fn halt_with(&mut self, halt: Halt) {
        self.halt.get_or_insert(halt);
    }
}

/// Serves `state`, `user` and the constants; a local variable of the same name goes first.
fn resolve(name: &str, context: &EvalContext<'_, '_, '_, '_, '_, '_>) -> Outcome<Option<Dynamic>> {
    run::with(|run| {
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

/// Rhai builds the text of a list or map without looking at its length: a text that is shared a thousand times counts
/// as one in memory and as a thousand here.
fn bound_printing(engine: &mut rhai::Engine) {
    for name in ["to_string", "print", "to_debug", "debug"] {
        engine.register_fn(name, |list: &mut rhai::Array| printed(&Dynamic::from_array(list.clone())));
        engine.register_fn(name, |map: &mut rhai::Map| printed(&Dynamic::from_map(map.clone())));
    }
    engine.register_fn("to_json", |map: &mut rhai::Map| -> Outcome<ImmutableString> {
        let value = Dynamic::from_map(map.clone());
        printable(&value)?;
        value::to_json("the map", &value).map(|json| json.to_string().into()).or_else(run::raise)
    });
}

/// Refuses what would make too long a text. Rhai drops the error of a function that prints, so the run is also halted.
fn printable(value: &Dynamic) -> Outcome<()> {
    if value::size(value, MAX_STRING) <= MAX_STRING {
        return Ok(());
    }
    run::with(|run| run.halt_with(Halt::Printed));
    Err(EvalAltResult::ErrorDataTooLarge("Length of string".into(), Position::NONE).into())
}

fn printed(value: &Dynamic) -> Outcome<ImmutableString> {
    printable(value)?;
    let mut text = String::new();
    print_into(&mut text, value);
    Ok(text.into())
}

/// As Rhai prints it: `[1, "a"]`, `#{"k": 2.0}`.
fn print_into(text: &mut String, value: &Dynamic) {
    if let Some(list) = value.read_lock::<rhai::Array>() {
        text.push('[');
        for (n, item) in list.iter().enumerate() {
            text.push_str(if n == 0 { "" } else { ", " });
            print_into(text, item);
        }
        text.push(']');
    } else if let Some(map) = value.read_lock::<rhai::Map>() {
        text.push_str("#{");
        for (n, (key, item)) in map.iter().enumerate() {
            text.push_str(if n == 0 { "" } else { ", " });
            // Writing into a String does not fail.
            let _ = write!(text, "{key:?}: ");
            print_into(text, item);
        }
        text.push('}');
    } else {
        let _ = write!(text, "{value:?}");
    }
}
