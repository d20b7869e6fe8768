//! What a person's text means to a bot: an answer, a command, or a message for `on_message`.

use crate::engine::{Question, Script};
use serde_json::Value;

/// The catch-all handler of a script.
pub const ON_MESSAGE: &str = "on_message";

/// What a text asks the bot to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// It answers the open question.
    Answer(Value),
    /// It is none of the open question's choices.
    Unclear,
    /// It calls a handler; an open question is dropped.
    Call {
        /// Which function.
        function: String,
        /// Its values.
        args: Vec<Value>,
    },
    /// The person wants to know what the bot can do.
    Help,
    /// The person wants to leave the open question.
    Stop,
}

/// Finds out what `text` means.
///
/// `/command` always means the command, so that nobody is caught in a dialogue; then comes the open question; then
/// a command without its slash, `on_message`, and the list of commands.
pub fn meaning(script: &Script, open: Option<&Question>, text: &str) -> Meaning {
    let text = text.trim();
    if let Some(call) = text.strip_prefix('/').and_then(|rest| slashed(script, open.is_some(), rest)) {
        return call;
    }
    if let Some(question) = open {
        return question.expected.understand(text).map_or(Meaning::Unclear, Meaning::Answer);
    }
    if let Some(call) = command(script, text).filter(|call| fits(script, call, text)) {
        return call;
    }
    match script.arity(ON_MESSAGE) {
        Some(_) => Meaning::Call { function: ON_MESSAGE.into(), args: vec![text.into()] },
        None => Meaning::Help,
    }
}

/// The list of a bot's commands, as a person reads it.
pub fn help(script: &Script) -> String {
    if script.commands.is_empty() {
        return "This bot has no commands.".into();
    }
    let lines = script.commands.iter().map(|command| format!("/{} - {}", command.name, command.help));
    lines.collect::<Vec<_>>().join("\n")
}

fn slashed(script: &Script, asking: bool, rest: &str) -> Option<Meaning> {
    if let Some(call) = command(script, rest) {
        return Some(call);
    }
    match rest.trim().to_lowercase().as_str() {
        "help" | "start" => Some(Meaning::Help),
        "stop" | "cancel" if asking => Some(Meaning::Stop),
        _ => None,
    }
}

fn command(script: &Script, text: &str) -> Option<Meaning> {
    let (word, rest) = split_word(text);
    let word = word.to_lowercase();
    let found = script.commands.iter().find(|command| command.name == word)?;
    let arity = script.arity(&found.function)?;
    Some(Meaning::Call { function: found.function.clone(), args: words(rest, arity) })
}

/// Without its slash a command counts only if the words fit: what takes no value stands alone.
fn fits(script: &Script, call: &Meaning, text: &str) -> bool {
    let Meaning::Call { function, .. } = call else { return false };
    let given = text.split_whitespace().count() - 1;
    match script.arity(function).unwrap_or(0) {
        0 => given == 0,
        1 => true,
        arity => given <= arity,
    }
}

/// One word for each value; the last value gets the rest of the text, missing ones are empty.
fn words(mut rest: &str, arity: usize) -> Vec<Value> {
    let mut args = Vec::with_capacity(arity);
    while args.len() < arity {
        let (word, behind) = if args.len() + 1 == arity { (rest.trim(), "") } else { split_word(rest) };
        args.push(word.into());
        rest = behind;
    }
    args
}

fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::Engine, journal::Kind, prompt::Expected};

    const SCRIPT: &str = r#"
        command("order", "Order a pizza", "order");
        command("/Watch", "Watch a device", "watch");
        command("set", "Set a value", "set");
        fn order() {} fn watch(id) {} fn set(key, value) {} fn on_message(text) {}
    "#;

    fn script() -> Script {
        Engine::default().load("t", SCRIPT).unwrap()
    }

    fn call(function: &str, args: &[&str]) -> Meaning {
        Meaning::Call { function: function.into(), args: args.iter().map(|a| (*a).into()).collect() }
    }

    fn question(expected: Expected) -> Question {
        Question { kind: Kind::Ask, line: 1, effects: 0, text: "?".into(), expected, timeout: None, retry: None }
    }

    #[test]
    fn commands_are_found_with_and_without_their_slash() {
        let script = script();
        for (text, expected) in [
            ("/order", call("order", &[])),
            ("ORDER", call("order", &[])),
            ("/order please", call("order", &[])),
            ("order me a pizza", call("on_message", &["order me a pizza"])),
            ("/watch", call("watch", &[""])),
            ("watch  the door ", call("watch", &["the door"])),
            ("/set a b c", call("set", &["a", "b c"])),
            ("hello", call("on_message", &["hello"])),
            ("/unknown", call("on_message", &["/unknown"])),
            ("/help", Meaning::Help),
            ("", call("on_message", &[""])),
        ] {
            assert_eq!(meaning(&script, None, text), expected, "{text}");
        }
    }

    #[test]
    fn an_open_question_goes_first_but_a_slash_leads_out() {
        let (script, open) = (script(), question(Expected::Text));
        assert_eq!(meaning(&script, Some(&open), "order"), Meaning::Answer("order".into()));
        assert_eq!(meaning(&script, Some(&open), "/order"), call("order", &[]));
        assert_eq!(meaning(&script, Some(&open), "/cancel"), Meaning::Stop);
        assert_eq!(meaning(&script, Some(&open), "/path/to"), Meaning::Answer("/path/to".into()));
        let sure = question(Expected::Confirm);
        assert_eq!(meaning(&script, Some(&sure), "yes"), Meaning::Answer(true.into()));
        assert_eq!(meaning(&script, Some(&sure), "perhaps"), Meaning::Unclear);
    }

    proptest::proptest! {
        #[test]
        fn any_text_means_something(text in "(/|\\PC|order|watch|set|\\s|\u{0}){0,12}") {
            static SCRIPT_ONCE: std::sync::OnceLock<Script> = std::sync::OnceLock::new();
            let script = SCRIPT_ONCE.get_or_init(script);
            let open = question(Expected::Text);
            meaning(script, None, &text);
            proptest::prop_assert_ne!(meaning(script, Some(&open), &text), Meaning::Unclear);
        }
    }

    #[test]
    fn the_commands_are_listed() {
        let text = "/order - Order a pizza\n/watch - Watch a device\n/set - Set a value";
        assert_eq!(help(&script()), text);
    }
}
