//! A scenario file as steps: who, over which protocol, which words, which block of text.

use anyhow::{Context, ensure};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Line in the file, from one.
    pub line: usize,
    /// The step as written.
    pub text: String,
    /// Who acts, and as what: `("Pump", "mqtt 3.1.1")`. `None` for a step about the world.
    pub actor: Option<(String, String)>,
    /// The words after the actor.
    pub words: Vec<Word>,
    /// The indented lines after a step that ends in a colon.
    pub block: String,
}

/// One word, or a quoted text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Without its quotes, escapes resolved.
    pub text: String,
    quoted: bool,
}

/// Reads a file. Empty lines and lines that begin with `#` are for the reader.
///
/// # Errors
/// A quote without an end, or a block without a step; the line is named.
pub fn parse(file: &str) -> anyhow::Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    for (at, text) in file.lines().enumerate() {
        let number = at + 1;
        if let Some(inner) = text.strip_prefix("    ") {
            let step = steps.last_mut().filter(|step| step.text.ends_with(':'));
            let block = &mut step.with_context(|| format!("line {number}: a block without a step"))?.block;
            block.push_str(inner);
            block.push('\n');
        } else if !text.trim().is_empty() && !text.starts_with('#') {
            steps.push(step(number, text).with_context(|| format!("line {number}: {text}"))?);
        }
    }
    Ok(steps)
}

fn step(line: usize, text: &str) -> anyhow::Result<Step> {
    let (actor, rest) = actor(text.trim_end_matches(':'));
    Ok(Step { line, text: text.into(), actor, words: words(rest)?, block: String::new() })
}

/// `Pump (mqtt 3.1.1) publishes …`: a name, then the session in parentheses.
fn actor(text: &str) -> (Option<(String, String)>, &str) {
    let split = text.split_once(" (").and_then(|(name, rest)| Some((name, rest.split_once(") ")?)));
    match split {
        Some((name, (session, rest))) if name.chars().all(char::is_alphanumeric) => {
            (Some((name.into(), session.into())), rest)
        }
        _ => (None, text),
    }
}

fn words(text: &str) -> anyhow::Result<Vec<Word>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (word, tail) = if rest.starts_with('"') { quoted(rest)? } else { plain(rest) };
        words.push(word);
        rest = tail.trim_start_matches([' ', ',']);
    }
    Ok(words)
}

fn plain(text: &str) -> (Word, &str) {
    let end = text.find(' ').unwrap_or(text.len());
    (Word { text: text[..end].trim_end_matches(',').into(), quoted: false }, &text[end..])
}

fn quoted(text: &str) -> anyhow::Result<(Word, &str)> {
    let mut inside = text[1..].char_indices();
    let mut out = String::new();
    while let Some((at, c)) = inside.next() {
        match c {
            '"' => return Ok((Word { text: out, quoted: true }, &text[at + 2..])),
            '\\' => out.push(escape(&mut inside)?),
            c => out.push(c),
        }
    }
    anyhow::bail!("a quote without an end")
}

/// `\n`, `\r`, `\"`, `\\`, and `\xNN` for the byte NN (as the character of that number).
fn escape(inside: &mut std::str::CharIndices<'_>) -> anyhow::Result<char> {
    match inside.next().map(|(_, c)| c) {
        Some('n') => Ok('\n'),
        Some('r') => Ok('\r'),
        Some('x') => {
            let digits: String = inside.take(2).map(|(_, c)| c).collect();
            Ok(char::from(u8::from_str_radix(&digits, 16)?))
        }
        Some(c) => Ok(c),
        None => anyhow::bail!("a backslash at the end"),
    }
}

/// Compares words with a pattern: `{}` stands for any one word, quoted words fit only there.
/// The words at the `{}`.
pub fn fit(words: &[Word], pattern: &str) -> Option<Vec<String>> {
    let wanted: Vec<&str> = pattern.split(' ').collect();
    if wanted.len() != words.len() {
        return None;
    }
    let mut found = Vec::new();
    for (word, wanted) in words.iter().zip(wanted) {
        match wanted {
            "{}" => found.push(word.text.clone()),
            literal if !word.quoted && word.text == literal => {}
            _ => return None,
        }
    }
    Some(found)
}

/// Removes the first run of words that fits the pattern, and returns the words at its `{}`.
pub fn cut(words: &mut Vec<Word>, pattern: &str) -> Option<Vec<String>> {
    let length = pattern.split(' ').count();
    let (at, found) = words.windows(length).enumerate().find_map(|(at, run)| Some((at, fit(run, pattern)?)))?;
    words.drain(at..at + length);
    Some(found)
}

/// The first entry of a vocabulary whose pattern fits all words.
///
/// # Errors
/// None does; the patterns are in the error.
pub fn find<T: Copy>(words: &[Word], vocabulary: &[(&str, T)]) -> anyhow::Result<(T, Vec<String>)> {
    let found = vocabulary.iter().find_map(|(pattern, verb)| Some((*verb, fit(words, pattern)?)));
    let known = || vocabulary.iter().map(|(pattern, _)| *pattern).collect::<Vec<_>>().join("\n  ");
    found.with_context(|| format!("no such step; the steps here are\n  {}", known()))
}

/// The words of a step as bytes: each character one byte, for texts with `\xNN`.
///
/// # Errors
/// A character above 0xFF.
pub fn bytes(text: &str) -> anyhow::Result<Vec<u8>> {
    ensure!(text.chars().all(|c| u32::from(c) < 256), "only \\xNN and ASCII make bytes");
    Ok(text.chars().map(|c| c as u8).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_an_actor_a_session_and_words() {
        let steps = parse("# title\n\nPump (mqtt 3.1.1) publishes \"a \\\"b\\\"\" to \"d/x\", retained\n").unwrap();
        assert_eq!(steps[0].line, 3);
        assert_eq!(steps[0].actor, Some(("Pump".into(), "mqtt 3.1.1".into())));
        let mut words = steps[0].words.clone();
        assert_eq!(cut(&mut words, "retained"), Some(vec![]));
        assert_eq!(fit(&words, "publishes {} to {}"), Some(vec!["a \"b\"".into(), "d/x".into()]));
    }

    #[test]
    fn a_quoted_word_is_never_a_keyword() {
        let steps = parse("Caller (xmpp) sends \"retained\" to Reader").unwrap();
        assert_eq!(cut(&mut steps[0].words.clone(), "retained"), None);
        assert_eq!(fit(&steps[0].words, "sends retained to Reader"), None);
    }

    #[test]
    fn a_block_belongs_to_the_step_with_the_colon() {
        let steps = parse("the bot porter is:\n    say(\"x\");\n      y();\nCaller is an account\n").unwrap();
        assert_eq!(steps[0].block, "say(\"x\");\n  y();\n");
        assert_eq!(steps.len(), 2);
        assert!(parse("    lost").is_err());
    }

    #[test]
    fn unknown_steps_name_the_known_ones() {
        let steps = parse("Caller (xmpp) dances").unwrap();
        let error = find(&steps[0].words, &[("logs in", 1)]).unwrap_err().to_string();
        assert!(error.contains("logs in"), "{error}");
    }
}
