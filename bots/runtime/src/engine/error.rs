//! Errors as a bot's author sees them: file, line, column, what is wrong, the source line and a caret.

use super::check::TopLevel;
use rhai::{EvalAltResult, ParseError, ParseErrorType, Position};
use std::fmt;

/// One mistake in a script, found when it was loaded or while it ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptError {
    /// The file's name, such as `lamp.rhai`.
    pub file: String,
    /// Line, from 1; 0 if it is not known.
    pub line: usize,
    /// Column in characters, from 1; 0 if it is not known.
    pub column: usize,
    /// What is wrong and, where possible, what to write instead.
    pub message: String,
    /// The line of the script.
    pub source_line: Option<String>,
}

impl ScriptError {
    /// An error at a position of `source`.
    pub fn at(file: &str, source: &str, position: Position, message: impl Into<String>) -> ScriptError {
        let line = position.line().unwrap_or(0);
        ScriptError {
            file: file.into(),
            line,
            column: position.position().unwrap_or(0),
            message: message.into(),
            source_line: line.checked_sub(1).and_then(|n| source.lines().nth(n)).map(str::to_owned),
        }
    }

    /// An error of a line, 0 for none in particular.
    pub fn at_line(file: &str, source: &str, line: u32, message: impl Into<String>) -> ScriptError {
        let at =
            u16::try_from(line).ok().filter(|line| *line > 0).map_or(Position::NONE, |line| Position::new(line, 0));
        ScriptError::at(file, source, at, message)
    }

    /// An error of the whole file.
    pub fn of_file(file: &str, message: impl Into<String>) -> ScriptError {
        ScriptError::at(file, "", Position::NONE, message)
    }
}

impl std::error::Error for ScriptError {}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (0, _) => write!(f, "{}: {}", self.file, self.message)?,
            (line, 0) => return write!(f, "{}:{line}: {}", self.file, self.message),
            (line, column) => write!(f, "{}:{line}:{column}: {}", self.file, self.message)?,
        }
        let Some(source) = &self.source_line else { return Ok(()) };
        let number = self.line.to_string();
        let indent = caret_indent(source, self.column);
        write!(f, "\n  {number} | {source}\n  {:w$} | {indent}^", "", w = number.len())
    }
}

/// Whitespace that brings a caret under `column`, with the tabs of the line above.
fn caret_indent(source: &str, column: usize) -> String {
    let before = source.chars().take(column.saturating_sub(1));
    before.map(|c| if c == '\t' { '\t' } else { ' ' }).collect()
}

/// What the parser complains about, in an author's words.
pub fn parse_message(error: &ParseError, top: &TopLevel, known: &[&str]) -> String {
    match error.err_type() {
        ParseErrorType::VariableUndefined(name) if top.functions.contains(name) => {
            format!("\"{name}\" is a function; name it as a text: \"{name}\" in quotes")
        }
        ParseErrorType::VariableUndefined(name) if top.variables.contains(name) => format!(
            "\"{name}\" is a variable of the top level, which functions do not see; write `const {name} = …`, or keep it in `state`"
        ),
        ParseErrorType::VariableUndefined(name) => {
            format!("there is no variable \"{name}\"{}", did_you_mean(name, known.iter().copied()))
        }
        ParseErrorType::BadInput(rhai::LexError::UnterminatedString) => {
            "this text is never closed; its quote is missing".into()
        }
        other => lower_first(&other.to_string()),
    }
}

/// The innermost error and its position, out of the chain of calls around it.
pub fn innermost(error: &EvalAltResult) -> (&EvalAltResult, Position) {
    match error {
        EvalAltResult::ErrorInFunctionCall(_, _, inner, at) | EvalAltResult::ErrorInModule(_, inner, at) => {
            let (deepest, position) = innermost(inner);
            (deepest, if position.is_none() { *at } else { position })
        }
        other => (other, other.position()),
    }
}

/// What went wrong in a run, in an author's words, without the position.
pub fn run_message(error: &EvalAltResult) -> String {
    match error {
        EvalAltResult::ErrorRuntime(text, _) => text.to_string(),
        EvalAltResult::ErrorFunctionNotFound(signature, _) => {
            format!("there is no function that takes these values: {signature}")
        }
        EvalAltResult::ErrorVariableNotFound(name, _) => format!("there is no variable \"{name}\""),
        EvalAltResult::ErrorStackOverflow(_) => "functions call each other too deeply".into(),
        EvalAltResult::ErrorDataTooLarge(what, _) => format!("too large: {}", size_limit(what)),
        other => {
            let text = other.to_string();
            lower_first(text.rsplit_once(" (line").map_or(text.as_str(), |(message, _)| message))
        }
    }
}

/// Rhai checks the sum over all that a list or map holds, not only the value itself.
fn size_limit(what: &str) -> String {
    match what {
        "Length of string" => "a text, or the texts in one list or map together, are longer than 128 KiB".into(),
        "Size of array/BLOB" => "a list, with the lists in it, has more than 1,000 values".into(),
        "Size of object map" => "a map, with the maps in it, has more than 500 values".into(),
        other => lower_first(other),
    }
}

/// `; did you mean "x"?`, or nothing if no name is near. Of two equally near names the first is taken.
pub fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = known.map(|k| (distance(name, k), k)).min_by_key(|(d, _)| *d);
    match near {
        Some((d, k)) if d > 0 && d <= 1 + name.len() / 4 => format!("; did you mean \"{k}\"?"),
        _ => String::new(),
    }
}

/// The number of inserted, removed, changed or swapped characters between two names.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_the_place() {
        let error = ScriptError::at("lamp.rhai", "fn a() {\n\tsya(1);\n}", Position::new(2, 2), "oh");
        assert_eq!(error.to_string(), "lamp.rhai:2:2: oh\n  2 | \tsya(1);\n    | \t^");
        assert_eq!(ScriptError::of_file("a.rhai", "oh").to_string(), "a.rhai: oh");
    }

    #[test]
    fn near_names_are_offered() {
        let known = || ["say", "ask", "publish"].into_iter();
        assert_eq!(did_you_mean("sya", known()), "; did you mean \"say\"?");
        assert_eq!(did_you_mean("publsih", known()), "; did you mean \"publish\"?");
        assert_eq!(did_you_mean("telephone", known()), "");
    }
}
