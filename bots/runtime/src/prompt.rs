//! Questions in a chat: XEP-0439 quick responses, a readable text for every client, and what an answer means.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{borrow::Cow, fmt::Write};

/// At most this many choices in one question.
pub const MAX_CHOICES: usize = 50;

/// An answer that a person may pick.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// What the person sees.
    #[serde(rename = "l")]
    pub label: String,
    /// What the script gets.
    #[serde(rename = "v")]
    pub value: Value,
}

/// What a question wants to hear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Expected {
    /// Any text.
    #[serde(rename = "t")]
    Text,
    /// One of these.
    #[serde(rename = "c")]
    Choices(Vec<Choice>),
    /// Yes or no.
    #[serde(rename = "y")]
    Confirm,
}

impl Expected {
    /// The choices as a person sees them; none for free text.
    pub fn choices(&self) -> Cow<'_, [Choice]> {
        match self {
            Expected::Text => Cow::Borrowed(&[]),
            Expected::Choices(choices) => Cow::Borrowed(choices),
            Expected::Confirm => Cow::Owned(vec![choice("Yes", true), choice("No", false)]),
        }
    }

    /// What `answer` means: by value or label, whatever the case, or by number. `None` if it is none of the choices.
    pub fn understand(&self, answer: &str) -> Option<Value> {
        let answer = answer.trim();
        match self {
            Expected::Text => Some(answer.into()),
            Expected::Choices(choices) => pick(choices, answer),
            Expected::Confirm => yes_or_no(answer),
        }
    }
}

/// The text that every client can show: the question and its numbered choices.
pub fn readable(text: &str, choices: &[Choice]) -> String {
    let mut body = text.to_owned();
    for (n, choice) in choices.iter().enumerate() {
        // Writing into a String does not fail.
        let _ = write!(body, "\n{}. {}", n + 1, choice.label);
    }
    body
}

/// The text of a choice's value on the wire; a client that shows buttons sends it back as the message's body.
pub fn wire_value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        other => other.to_string(),
    }
}

fn choice(label: &str, value: bool) -> Choice {
    Choice { label: label.into(), value: value.into() }
}

fn pick(choices: &[Choice], answer: &str) -> Option<Value> {
    let same = |text: &str| text.trim().to_lowercase() == answer.to_lowercase();
    let by_name = |c: &&Choice| same(&wire_value(&c.value)) || same(&c.label);
    let exact = choices.iter().find(|c| wire_value(&c.value) == answer || c.label == answer);
    exact.or_else(|| choices.iter().find(by_name)).or_else(|| by_number(choices, answer)).map(|c| c.value.clone())
}

fn by_number<'a>(choices: &'a [Choice], answer: &str) -> Option<&'a Choice> {
    let number: usize = answer.trim_end_matches(['.', ')']).parse().ok()?;
    choices.get(number.checked_sub(1)?)
}

fn yes_or_no(answer: &str) -> Option<Value> {
    match answer.to_lowercase().as_str() {
        "yes" | "y" | "1" | "true" | "ok" => Some(true.into()),
        "no" | "n" | "2" | "false" => Some(false.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sizes() -> Expected {
        let choice = |label: &str, value: Value| Choice { label: label.into(), value };
        Expected::Choices(vec![choice("Small", json!("s")), choice("Large", json!("l")), choice("3", json!(30))])
    }

    #[test]
    fn an_answer_is_understood_by_value_label_and_number() {
        for text in ["s", "S", " small ", "1", "1."] {
            assert_eq!(sizes().understand(text), Some(json!("s")), "{text}");
        }
        assert_eq!(sizes().understand("2)"), Some(json!("l")));
        assert_eq!(sizes().understand("30"), Some(json!(30)));
        assert_eq!(sizes().understand("3"), Some(json!(30)), "a label goes before a number");
        for text in ["", "0", "4", "medium", "99999999999999999999"] {
            assert_eq!(sizes().understand(text), None, "{text}");
        }
    }

    #[test]
    fn yes_and_no_are_understood() {
        assert_eq!(Expected::Confirm.understand("YES"), Some(json!(true)));
        assert_eq!(Expected::Confirm.understand("2"), Some(json!(false)));
        assert_eq!(Expected::Confirm.understand("maybe"), None);
    }

    #[test]
    fn every_client_gets_a_readable_text() {
        let expected = Expected::Choices(vec![Choice { label: "Tom & Jerry's".into(), value: json!("<t>") }]);
        assert_eq!(readable("Which film?", &expected.choices()), "Which film?\n1. Tom & Jerry's");
    }
}
