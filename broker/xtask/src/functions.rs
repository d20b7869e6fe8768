//! Lengths of functions, measured on the masked text of a source file.

use crate::source::{Source, closing_brace};

/// One function with a body.
pub struct Function {
    /// Its name.
    pub name: String,
    /// Line of its `fn`, from one.
    pub line: usize,
    /// Lines from `fn` to the closing brace, both included.
    pub length: usize,
}

/// The functions of a file that are not tests. A nested function counts for itself and within its outer one.
pub fn functions(source: &Source) -> Vec<Function> {
    let code = &source.code;
    let found = code.match_indices("fn ").filter(|(at, _)| starts_word(code, *at));
    let all = found.filter_map(|(at, _)| function(code, at));
    all.filter(|function| !source.tested[function.line - 1]).collect()
}

fn starts_word(code: &str, at: usize) -> bool {
    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

fn function(code: &str, at: usize) -> Option<Function> {
    let name: String = code[at + 3..].trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let open = body(code, at).filter(|_| !name.is_empty())?;
    let end = closing_brace(code, open).min(code.len());
    let line = code[..at].matches('\n').count() + 1;
    Some(Function { name, line, length: code[at..end].matches('\n').count() + 1 })
}

/// The brace that opens the body; `None` for a declaration without one.
fn body(code: &str, start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'{' if depth == 0 => return Some(at),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(text: &str) -> Vec<(String, usize)> {
        let source = Source::new("broker/core/src/x.rs".into(), text.into());
        functions(&source).into_iter().map(|f| (f.name, f.length)).collect()
    }

    #[test]
    fn counts_from_the_fn_to_the_closing_brace() {
        let text = "pub fn one() {}\nasync fn three() -> [u8; 2] {\n    \"}\"\n}\n";
        assert_eq!(lengths(text), [("one".into(), 1), ("three".into(), 3)]);
    }

    #[test]
    fn types_declarations_and_tests_do_not_count() {
        let text = "type F = fn (u8);\ntrait T { fn a(&self); }\n#[test]\nfn t() {\n}\n// fn c() {\n";
        assert_eq!(lengths(text), []);
    }
}
