//! The author API: the functions that a script can call, in one visible table.

use super::{
    Command, Effect, Payload, Question, TopicHandler,
    error::did_you_mean,
    run::{self, Outcome, Phase, handling, raise},
    script::EVERYONE,
    value,
};
use crate::{
    journal::{Given, Kind},
    prompt::{Choice, Expected, MAX_CHOICES, wire_value},
};
use rhai::{Dynamic, Engine, FnPtr, ImmutableString, Map, NativeCallContext};
use std::collections::HashSet;
use tavi_wire::topic::check_filter;
use tavi_xmpp_proto::jid::BareJid;

/// At most this many commands and topic handlers in one script.
const MAX_DECLARED: usize = 100;
/// The longest time that a question can wait: a year.
const MAX_TIMEOUT_MS: u64 = 365 * 24 * 3_600_000;

/// The longest text that a host function takes, in bytes.
const MAX_TEXT: usize = 16 * 1024;

/// A host function: its name and how many values it takes.
pub struct HostCall {
    /// The name in scripts.
    pub name: &'static str,
    /// The fewest and the most values.
    pub takes: (usize, usize),
    register: fn(&mut Engine),
}

/// Every function that a bot has beyond the language itself.
pub const CALLS: &[HostCall] = &[
    HostCall {
        name: "command",
        takes: (3, 3),
        register: |e| {
            e.register_fn("command", command);
        },
    },
    HostCall {
        name: "on_topic",
        takes: (2, 2),
        register: |e| {
            e.register_fn("on_topic", on_topic);
        },
    },
    HostCall {
        name: "serves",
        takes: (1, 1),
        register: |e| {
            e.register_fn("serves", serves);
        },
    },
    HostCall {
        name: "say",
        takes: (1, 1),
        register: |e| {
            e.register_fn("say", say);
        },
    },
    HostCall {
        name: "send_to",
        takes: (2, 2),
        register: |e| {
            e.register_fn("send_to", send_to);
        },
    },
    HostCall { name: "ask", takes: (1, 3), register: register_ask },
    HostCall {
        name: "confirm",
        takes: (1, 1),
        register: |e| {
            e.register_fn("confirm", confirm);
        },
    },
    HostCall { name: "publish", takes: (2, 3), register: register_publish },
    HostCall {
        name: "now",
        takes: (0, 0),
        register: |e| {
            e.register_fn("now", now);
        },
    },
    HostCall { name: "random", takes: (0, 2), register: register_random },
];

/// Makes all of them known to Rhai.
pub fn register(engine: &mut Engine) {
    CALLS.iter().for_each(|call| (call.register)(engine));
}

fn register_ask(e: &mut Engine) {
    e.register_fn("ask", |ctx: NativeCallContext<'_>, text: Dynamic| ask(&ctx, text, Dynamic::UNIT, Dynamic::UNIT))
        .register_fn("ask", |ctx: NativeCallContext<'_>, text: Dynamic, choices: Dynamic| {
            // ask(text, #{timeout: …}) has options and no choices
            if choices.is_map() {
                ask(&ctx, text, Dynamic::UNIT, choices)
            } else {
                ask(&ctx, text, choices, Dynamic::UNIT)
            }
        })
        .register_fn("ask", |ctx: NativeCallContext<'_>, text: Dynamic, choices: Dynamic, options: Dynamic| {
            ask(&ctx, text, choices, options)
        });
}

fn register_publish(e: &mut Engine) {
    e.register_fn("publish", |ctx: NativeCallContext<'_>, topic: Dynamic, value: Dynamic| {
        publish(&ctx, topic, value, Dynamic::UNIT)
    })
    .register_fn("publish", |ctx: NativeCallContext<'_>, topic: Dynamic, value: Dynamic, options: Dynamic| {
        publish(&ctx, topic, value, options)
    });
}

fn register_random(e: &mut Engine) {
    e.register_fn("random", |ctx: NativeCallContext<'_>| random(&ctx, unit_interval)).register_fn(
        "random",
        |ctx: NativeCallContext<'_>, low: i64, high: i64| {
            if low > high {
                return raise(format!("random wants the lower number first, got {low} and {high}"));
            }
            random(&ctx, |bits| between(bits, low, high).into())
        },
    );
}

fn command(ctx: NativeCallContext<'_>, name: Dynamic, help: Dynamic, function: Dynamic) -> Outcome<()> {
    let name = text("command", &name)?.trim_start_matches('/').to_lowercase();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return raise(format!("command wants a name of one word, got {name:?}"));
    }
    let command = Command { name, help: text("command", &help)?, function: function_name("command", &function)? };
    declare(&ctx, |declared, at| declared.commands.push((command, at)))
}

fn on_topic(ctx: NativeCallContext<'_>, filter: Dynamic, function: Dynamic) -> Outcome<()> {
    let (filter, function) = (text("on_topic", &filter)?, function_name("on_topic", &function)?);
    if let Err(error) = check_filter(&filter) {
        return raise(format!("on_topic: {filter:?} is no legal topic filter: {error}"));
    }
    let handler = TopicHandler { filter, function, per_person: false };
    declare(&ctx, |declared, at| declared.topics.push((handler, at)))
}

/// Whom the bot lets use its own grants: a bare JID, or all people.
fn serves(ctx: NativeCallContext<'_>, person: Dynamic) -> Outcome<()> {
    let person = text("serves", &person)?;
    let legal = person == EVERYONE || person.parse().is_ok_and(|jid: BareJid| jid.local().is_some());
    if !legal {
        return raise(format!("serves wants a person such as \"anna@example.org\", or \"{EVERYONE}\", got {person:?}"));
    }
    let person = person.parse().map_or(person, |jid: BareJid| jid.to_string());
    declare(&ctx, |declared, _| declared.served.push(person))
}

fn declare(ctx: &NativeCallContext<'_>, add: impl FnOnce(&mut run::Declared, rhai::Position)) -> Outcome<()> {
    let (name, at) = (ctx.fn_name(), ctx.call_position());
    let done = run::with(|run| match &mut run.phase {
        Phase::Loading(declared) if declared.count() >= MAX_DECLARED => {
            raise(format!("a script has at most {MAX_DECLARED} commands, topics and people"))
        }
        Phase::Loading(declared) => {
            add(declared, at);
            Ok(())
        }
        Phase::Handling => raise(format!("{name} belongs to the top level of the script, outside of functions")),
    });
    done.unwrap_or(Ok(()))
}

fn say(ctx: NativeCallContext<'_>, message: Dynamic) -> Outcome<()> {
    let text = text("say", &message)?;
    handling(&ctx, |run, _| {
        // The checker has not seen this call: the function's name was made at run time.
        if run.user.is_unit() {
            return raise("say: this run is about nobody; call say by its name, or send_to somebody");
        }
        run.effect(Effect::Say { text })
    })
}

fn send_to(ctx: NativeCallContext<'_>, jid: Dynamic, message: Dynamic) -> Outcome<()> {
    let (jid, text) = (text("send_to", &jid)?, text("send_to", &message)?);
    handling(&ctx, |run, _| {
        if let Err(error) = run.gate.address(&jid) {
            return raise(format!("send_to: {error}"));
        }
        run.effect(Effect::SendTo { jid, text })
    })
}

fn ask(ctx: &NativeCallContext<'_>, message: Dynamic, choices: Dynamic, options: Dynamic) -> Outcome<Dynamic> {
    let text = text("ask", &message)?;
    let expected = expected(&choices)?;
    let (timeout, retry) = ask_options(&options)?;
    handling(ctx, |run, line| {
        let effects = run.replay.effects();
        run.answer(Question { kind: Kind::Ask, line, effects, text, expected, timeout, retry })
    })
}

fn confirm(ctx: NativeCallContext<'_>, message: Dynamic) -> Outcome<bool> {
    let text = text("confirm", &message)?;
    handling(&ctx, |run, line| {
        let effects = run.replay.effects();
        let expected = Expected::Confirm;
        let question = Question { kind: Kind::Confirm, line, effects, text, expected, timeout: None, retry: None };
        run.answer(question).map(|answer| answer.as_bool().unwrap_or(false))
    })
}

fn publish(ctx: &NativeCallContext<'_>, topic: Dynamic, value: Dynamic, options: Dynamic) -> Outcome<()> {
    let topic = text("publish", &topic)?;
    let payload = payload(&value)?;
    let retain = retain_option(&options)?;
    handling(ctx, |run, line| {
        run.result(Kind::Publish, line, |run| match run.gate.publish(run.asker.as_deref(), &topic) {
            Err(refused) => Ok(Given::Error(format!("publish: {refused}"))),
            Ok(()) => {
                run.act(Effect::Publish { topic, payload, retain })?;
                Ok(Given::Value(serde_json::Value::Null))
            }
        })
    })
    .map(drop)
}

/// Seconds since 1970, as the run started.
fn now(ctx: NativeCallContext<'_>) -> Outcome<Dynamic> {
    handling(&ctx, |run, line| run.result(Kind::Now, line, |run| Ok(Given::Value((run.moment.now_ms / 1000).into()))))
}

fn random(ctx: &NativeCallContext<'_>, shape: impl FnOnce(u64) -> serde_json::Value) -> Outcome<Dynamic> {
    handling(ctx, |run, line| run.result(Kind::Random, line, |run| Ok(Given::Value(shape(run.moment.draw())))))
}

/// 53 of the bits as a fraction in [0, 1).
fn unit_interval(bits: u64) -> serde_json::Value {
    ((bits >> 11) as f64 / (1u64 << 53) as f64).into()
}

fn between(bits: u64, low: i64, high: i64) -> i64 {
    let width = high.wrapping_sub(low) as u64;
    let offset = if width == u64::MAX { bits } else { bits % (width + 1) };
    low.wrapping_add(offset as i64)
}

fn text(function: &str, value: &Dynamic) -> Outcome<String> {
    if let Some(text) = value.read_lock::<ImmutableString>() {
        if text.len() > MAX_TEXT {
            return raise(format!("{function} takes texts of at most {} KiB", MAX_TEXT / 1024));
        }
        return Ok(text.to_string());
    }
    if let Ok(c) = value.as_char() {
        return Ok(c.into());
    }
    raise(format!("{function} wants text, got {}; write {function}(`${{x}}`)", value::describe(value)))
}

/// A handler is named by a text, or by the function's bare name.
fn function_name(function: &str, value: &Dynamic) -> Outcome<String> {
    match value.read_lock::<FnPtr>() {
        Some(pointer) if pointer.is_anonymous() => raise(format!(
            "{function} wants the name of a function of this file, not a closure: closures cannot be saved"
        )),
        Some(pointer) => Ok(pointer.fn_name().into()),
        None => text(function, value),
    }
}

fn expected(choices: &Dynamic) -> Outcome<Expected> {
    if choices.is_unit() {
        return Ok(Expected::Text);
    }
    let Some(list) = choices.read_lock::<rhai::Array>() else {
        return raise(format!("ask wants a list of choices, got {}; write [\"a\", \"b\"]", value::describe(choices)));
    };
    if list.is_empty() || list.len() > MAX_CHOICES {
        return raise(format!("ask wants 1 to {MAX_CHOICES} choices, got {}", list.len()));
    }
    let choices = list.iter().map(choice).collect::<Outcome<Vec<_>>>()?;
    let mut seen = HashSet::new();
    match choices.iter().find(|c| !seen.insert(wire_value(&c.value))) {
        Some(twice) => raise(format!("ask: two choices have the value {}", wire_value(&twice.value))),
        None => Ok(Expected::Choices(choices)),
    }
}

/// A choice is a text, a number, true or false, or `#{label: "On", value: 1}`.
fn choice(item: &Dynamic) -> Outcome<Choice> {
    if let Some(map) = item.read_lock::<Map>() {
        only_options("a choice", &map, &["label", "value"])?;
        let value = map.get("value").or_else(|| map.get("label")).cloned().unwrap_or_default();
        let plain = choice(&value)?;
        let label = map.get("label").map_or(Ok(plain.label), |label| text("ask", label))?;
        return Ok(Choice { label, value: plain.value });
    }
    match value::to_json("a choice", item) {
        Ok(value @ (serde_json::Value::String(_) | serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => {
            Ok(Choice { label: wire_value(&value), value })
        }
        _ => raise(format!("a choice is a text, a number or #{{label: …, value: …}}, got {}", value::describe(item))),
    }
}

fn ask_options(options: &Dynamic) -> Outcome<(Option<u64>, Option<String>)> {
    if options.is_unit() {
        return Ok((None, None));
    }
    let Some(map) = options.read_lock::<Map>() else {
        return raise(format!("ask wants its options as #{{timeout: \"5m\"}}, got {}", value::describe(options)));
    };
    only_options("ask", &map, &["timeout", "retry"])?;
    let timeout = map.get("timeout").map(duration_ms).transpose()?;
    let retry = map.get("retry").map(|retry| text("ask", retry)).transpose()?;
    Ok((timeout, retry))
}

fn retain_option(options: &Dynamic) -> Outcome<bool> {
    if options.is_unit() {
        return Ok(false);
    }
    let Some(map) = options.read_lock::<Map>() else {
        return raise(format!("publish wants its options as #{{retain: true}}, got {}", value::describe(options)));
    };
    only_options("publish", &map, &["retain"])?;
    Ok(map.get("retain").is_some_and(|retain| retain.as_bool().unwrap_or(false)))
}

fn only_options(function: &str, map: &Map, known: &[&str]) -> Outcome<()> {
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => raise(format!("{function} has no option \"{key}\"{}", did_you_mean(key, known.iter().copied()))),
    }
}

/// `"90s"`, `"5m"`, `"1h30m"`, `"2d"`, or a number of seconds, in milliseconds.
fn duration_ms(value: &Dynamic) -> Outcome<u64> {
    let wrong = || format!("a time is written \"30s\", \"5m\", \"2h\" or \"1d\", got {}", value::describe(value));
    let ms = match value.as_int() {
        Ok(seconds) => u64::try_from(seconds).ok().and_then(|s| s.checked_mul(1000)),
        Err(_) => value.read_lock::<ImmutableString>().and_then(|text| parse_duration(&text)),
    };
    match ms {
        Some(ms @ 1..=MAX_TIMEOUT_MS) => Ok(ms),
        Some(_) => raise("a question waits between one second and a year"),
        None => raise(wrong()),
    }
}

fn parse_duration(text: &str) -> Option<u64> {
    let mut total = 0u64;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = match rest.as_bytes()[digits] {
            b's' => 1_000,
            b'm' => 60_000,
            b'h' => 3_600_000,
            b'd' => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[digits + 1..];
    }
    (total > 0).then_some(total)
}

/// Text and numbers go out as they are written, lists and maps as JSON.
fn payload(value: &Dynamic) -> Outcome<Payload> {
    use serde_json::Value;
    match value::to_json("the value", value) {
        Ok(Value::String(text)) => Ok(Payload { bytes: text, content_type: "text/plain" }),
        Ok(Value::Null) => raise("publish wants a value, got nothing, ()"),
        Ok(plain @ (Value::Bool(_) | Value::Number(_))) => {
            Ok(Payload { bytes: plain.to_string(), content_type: "text/plain" })
        }
        Ok(nested) => Ok(Payload { bytes: nested.to_string(), content_type: "application/json" }),
        Err(error) => raise(format!("publish: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        assert_eq!(parse_duration("5m"), Some(300_000));
        assert_eq!(parse_duration("1h30m"), Some(5_400_000));
        for wrong in ["", "5", "m", "5x", "5 m", "-5m", "99999999999999999999d", "0s", "5ä"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn random_numbers_stay_between_their_bounds() {
        assert_eq!(between(7, 3, 3), 3);
        assert_eq!(between(u64::MAX, i64::MIN, i64::MAX), i64::MAX);
        assert!((0..100u64).all(|bits| (1..=6).contains(&between(bits.wrapping_mul(0x9e3779b97f4a7c15), 1, 6))));
    }
}
