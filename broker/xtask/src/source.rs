//! A Rust source file as the sheet sees it: code with comments and strings blanked out, comments, test regions.

/// One source file.
pub struct Source {
    /// Path relative to the workspace root.
    pub path: String,
    /// The text as written.
    pub text: String,
    /// The text with the insides of comments, strings and characters replaced by spaces; same length, same lines.
    pub code: String,
    /// By line: it holds (part of) a comment.
    pub commented: Vec<bool>,
    /// By line: it belongs to a test.
    pub tested: Vec<bool>,
}

impl Source {
    /// Reads a file's text. `is_test` is true for a file that holds nothing but tests.
    pub fn new(path: String, text: String) -> Self {
        let (code, commented) = mask(&text);
        let tested = if is_test_file(&path) { vec![true; commented.len()] } else { test_lines(&code) };
        Self { path, text, code, commented, tested }
    }

    /// Number of lines.
    pub fn len(&self) -> usize {
        self.text.lines().count()
    }

    /// True if the first line is a `//!` header.
    pub fn has_header(&self) -> bool {
        self.text.trim_start().starts_with("//!")
    }

    /// Lines outside tests, with their numbers from zero: as written, and as code only.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str, &str)> {
        let lines = self.text.lines().zip(self.code.lines()).enumerate();
        lines.map(|(n, (text, code))| (n, text, code)).filter(|(n, ..)| !self.tested[*n])
    }
}

/// Integration tests, benches, examples, and modules named `tests.rs` or `…_tests.rs`.
fn is_test_file(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    path.ends_with("_tests.rs")
        || parts.iter().any(|part| matches!(*part, "tests" | "benches" | "examples" | "tests.rs"))
}

/// What the masking walks through.
#[derive(Clone, Copy)]
enum State {
    Code,
    LineComment,
    BlockComment(usize),
    Text,
    RawText(usize),
}

fn mask(text: &str) -> (String, Vec<bool>) {
    let bytes = text.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut commented = vec![false; text.lines().count() + 1];
    let (mut state, mut line, mut at) = (State::Code, 0, 0);
    while at < bytes.len() {
        let (next, taken, shown) = step(state, &bytes[at..], code.last().copied());
        let comment = matches!(next, State::LineComment | State::BlockComment(_));
        for &byte in &bytes[at..at + taken] {
            commented[line] |= comment && byte != b'\n';
            line += usize::from(byte == b'\n');
            code.push(if shown || byte == b'\n' { byte } else { b' ' });
        }
        state = next;
        at += taken;
    }
    (String::from_utf8_lossy(&code).into_owned(), commented)
}

/// From one state over the next bytes: the state after them, how many they are, and whether they are code.
fn step(state: State, rest: &[u8], before: Option<u8>) -> (State, usize, bool) {
    match state {
        State::Code => code_step(rest, before),
        State::LineComment if rest[0] == b'\n' => (State::Code, 1, true),
        State::BlockComment(depth) if rest.starts_with(b"/*") => (State::BlockComment(depth + 1), 2, false),
        State::BlockComment(1) if rest.starts_with(b"*/") => (State::Code, 2, false),
        State::BlockComment(depth) if rest.starts_with(b"*/") => (State::BlockComment(depth - 1), 2, false),
        State::Text if rest[0] == b'\\' => (state, rest.len().min(2), false),
        State::Text if rest[0] == b'"' => (State::Code, 1, true),
        State::RawText(hashes) if closes_raw(rest, hashes) => (State::Code, 1 + hashes, true),
        same => (same, 1, false),
    }
}

fn code_step(rest: &[u8], before: Option<u8>) -> (State, usize, bool) {
    let in_word = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match rest {
        [b'/', b'/', ..] => (State::LineComment, 2, false),
        [b'/', b'*', ..] => (State::BlockComment(1), 2, false),
        [b'"', ..] => (State::Text, 1, true),
        [b'\'', ..] => character(rest),
        [b'r' | b'b' | b'c', ..] if !in_word => text_prefix(rest),
        _ => (State::Code, 1, true),
    }
}

/// `r"`, `r#"`, `br"`, `b"`, `b'` …; anything else is a word.
fn text_prefix(rest: &[u8]) -> (State, usize, bool) {
    let letters = rest.iter().take_while(|byte| matches!(byte, b'r' | b'b' | b'c')).count();
    let hashes = rest[letters..].iter().take_while(|byte| **byte == b'#').count();
    let raw = rest[..letters].contains(&b'r');
    match rest.get(letters + hashes) {
        Some(b'"') if raw => (State::RawText(hashes), letters + hashes + 1, true),
        Some(b'"') if hashes == 0 => (State::Text, letters + 1, true),
        _ => (State::Code, 1, true),
    }
}

fn closes_raw(rest: &[u8], hashes: usize) -> bool {
    rest[0] == b'"' && rest.len() > hashes && rest[1..=hashes].iter().all(|byte| *byte == b'#')
}

/// A character literal is passed over whole, so that `'{'` is no brace; a lifetime's quote is code.
fn character(rest: &[u8]) -> (State, usize, bool) {
    let length = match rest {
        [_, b'\\', _, tail @ ..] => tail.iter().position(|byte| *byte == b'\'').map_or(1, |end| end + 4),
        [_, _, b'\'', ..] => 3,
        [_, first, tail @ ..] if !first.is_ascii() => {
            tail.iter().position(|byte| *byte == b'\'').map_or(1, |end| end + 3)
        }
        _ => 1,
    };
    (State::Code, length, length == 1)
}

/// Lines of items under `#[cfg(test)]` and `#[test]`.
fn test_lines(code: &str) -> Vec<bool> {
    let mut tested = vec![false; code.lines().count() + 1];
    for (start, _) in code.match_indices("#[") {
        if is_test_attribute(&code[start..]) {
            let end = item_end(code, start);
            let first = code[..start].matches('\n').count();
            let last = first + code[start..end].matches('\n').count();
            tested[first..=last].fill(true);
        }
    }
    tested
}

fn is_test_attribute(code: &str) -> bool {
    let attribute = code.split(']').next().unwrap_or(code);
    let words = || attribute.split(|c: char| !c.is_alphanumeric() && c != '_');
    words().any(|word| word == "test") && !words().any(|word| word == "not" || word == "cfg_attr")
}

/// Where the item after an attribute ends: its closing brace, or a semicolon before any brace.
fn item_end(code: &str, start: usize) -> usize {
    match code[start..].find(['{', ';']).map(|at| start + at) {
        Some(at) if code.as_bytes()[at] == b'{' => closing_brace(code, at),
        Some(at) => at,
        None => code.len(),
    }
}

/// The index of the brace that closes the one at `open`; the end of the text if there is none.
pub fn closing_brace(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("broker/core/src/x.rs".into(), text.into())
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        let file = source("let a = \"fn x() {\"; // fn y() {\n/* { /* { */ */ let b = r#\"}\"}\"#; let c = b'{';\n");
        assert!(!file.code.contains("fn"));
        assert_eq!(file.code.matches('"').count(), 4);
        assert_eq!(file.code.len(), file.text.len());
        assert_eq!(file.commented[..2], [true, true]);
    }

    #[test]
    fn a_brace_character_is_no_brace() {
        let file = source("fn a() { x == '{' || y == '\\'' || z == '\"' }\nfn b<'a>(x: &'a str) {}\n");
        let open = file.code.find('{').unwrap();
        assert_eq!(closing_brace(&file.code, open), file.text.find("}\nfn b").unwrap());
    }

    #[test]
    fn test_modules_and_test_files_are_tests() {
        let file = source("fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n");
        assert_eq!(file.tested[..6], [false, true, true, true, true, false]);
        assert!(Source::new("broker/core/tests/x.rs".into(), "fn a() {}\n".into()).tested[0]);
        assert!(!source("#[cfg(not(test))]\nfn a() {}\n").tested[0]);
    }
}
