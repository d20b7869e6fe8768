//! `cargo xtask sheet`: the figures of the code's shape, each with its bar.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::functions::functions;
use crate::layers;
use crate::source::Source;
use crate::tree::Tree;

/// Crates that implement somebody's specification.
const PROTOCOL: &[&str] = &["broker/xmpp-proto/", "broker/xmpp/", "broker/mqtt/", "broker/coap/", "broker/modules/"];

/// Prints the sheet. True if every bar holds.
pub fn print(tree: &Tree) -> anyhow::Result<bool> {
    let sources = sources(tree)?;
    let mut sheet = Sheet { held: true };
    sheet.functions(&sources);
    sheet.files(&sources);
    sheet.citations(&sources);
    sheet.marks(&sources);
    sheet.unwraps(&sources);
    sheet.line("layer breaks", layers::breaks(tree).len(), Some(0));
    sheet.crates(tree, &sources);
    sheet.tests(&sources);
    sheet.line("fuzz targets", fuzz_targets(&tree.root), None);
    sheet.readme(tree);
    Ok(sheet.held)
}

/// Prints lines and remembers whether a bar was missed.
struct Sheet {
    held: bool,
}

impl Sheet {
    /// One figure; `most` is the highest value that the bar allows.
    fn line(&mut self, name: &str, value: usize, most: Option<usize>) {
        let holds = most.is_none_or(|most| value <= most);
        let bar = most.map_or(String::new(), |most| format!("(bar: at most {most})"));
        self.verdict(name, &value.to_string(), &bar, holds);
    }

    fn verdict(&mut self, name: &str, value: &str, bar: &str, holds: bool) {
        self.held &= holds;
        println!("{} {name:<44} {value:>8} {bar}", if holds { " " } else { "!" });
    }

    fn functions(&mut self, sources: &[Source]) {
        let mut all: Vec<(usize, String)> = Vec::new();
        for source in sources {
            all.extend(
                functions(source).into_iter().map(|f| (f.length, format!("{}:{} {}", source.path, f.line, f.name))),
            );
        }
        all.sort();
        let lengths: Vec<usize> = all.iter().map(|(length, _)| *length).collect();
        let long = lengths.iter().filter(|length| **length > 60).count();
        let share = 100.0 * long as f64 / lengths.len().max(1) as f64;
        self.line("functions", lengths.len(), None);
        self.line("function length p50", percentile(&lengths, 50), Some(7));
        self.line("function length p90", percentile(&lengths, 90), Some(30));
        self.verdict("functions over 60 lines, %", &format!("{share:.1}"), "(bar: at most 2)", share <= 2.0);
        for (length, place) in all.iter().rev().take(3) {
            println!("    longest: {length} lines, {place}");
        }
    }

    fn files(&mut self, sources: &[Source]) {
        let mut lengths: Vec<usize> = sources.iter().map(Source::len).collect();
        lengths.sort_unstable();
        self.line("file length p50", percentile(&lengths, 50), None);
        self.line("file length p90", percentile(&lengths, 90), None);
        self.line("file length max", lengths.last().copied().unwrap_or(0), Some(1000));
        let bare: Vec<String> = sources.iter().filter(|s| !s.has_header()).map(|s| s.path.clone()).collect();
        self.places("files without a //! line", &bare, Some(0));
    }

    /// A figure with the places that it counts.
    fn places(&mut self, name: &str, places: &[String], most: Option<usize>) {
        self.line(name, places.len(), most);
        for place in places.iter().take(20) {
            println!("    {place}");
        }
    }

    fn citations(&mut self, sources: &[Source]) {
        for folder in PROTOCOL {
            let own = || sources.iter().filter(|s| s.path.starts_with(folder));
            let lines: usize = own().map(|s| s.lines().count()).sum();
            let cited = own().flat_map(Source::lines).filter(|(_, text, code)| cites(text, code)).count();
            let rate = 1000.0 * cited as f64 / lines.max(1) as f64;
            let name = format!("citations per 1,000 lines, {folder}");
            self.verdict(&name, &format!("{rate:.1}"), "(bar: at least 8)", rate >= 8.0);
        }
    }

    fn marks(&mut self, sources: &[Source]) {
        let marked = |s: &Source| {
            let lines = s.text.lines().zip(s.code.lines()).enumerate();
            lines
                .filter(|(n, (text, code))| s.commented[*n] && is_mark(text, code))
                .map(|(n, _)| place(s, n))
                .collect::<Vec<_>>()
        };
        self.places("TODO/FIXME", &sources.iter().flat_map(marked).collect::<Vec<_>>(), Some(0));
    }

    fn unwraps(&mut self, sources: &[Source]) {
        let bare: Vec<String> = sources.iter().flat_map(unexplained).collect();
        self.places("unwrap/expect without a comment", &bare, Some(0));
    }

    fn crates(&mut self, tree: &Tree, sources: &[Source]) {
        for member in &tree.members {
            let folder = format!("{}/", member.folder);
            let own = || sources.iter().filter(|s| s.path.starts_with(&folder));
            let (code, tests) = (own().map(|s| s.lines().count()).sum::<usize>(), own().map(tests_in).sum::<usize>());
            println!("    {:<22} {code:>6} lines, {tests:>4} tests", member.folder);
        }
    }

    fn tests(&mut self, sources: &[Source]) {
        let lines: usize = sources.iter().map(|s| s.lines().count()).sum();
        let tests: usize = sources.iter().map(tests_in).sum();
        self.line("lines outside tests", lines, None);
        self.line("tests", tests, None);
        self.line("tests per 1,000 lines", 1000 * tests / lines.max(1), None);
        let ignored = sources.iter().flat_map(|s| {
            let lines = s.code.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("#[ignore"));
            lines.map(|(n, _)| place(s, n)).collect::<Vec<_>>()
        });
        self.places("skipped tests", &ignored.collect::<Vec<_>>(), None);
    }

    fn readme(&mut self, tree: &Tree) {
        let readme = fs::read_to_string(tree.root.join("README.md")).unwrap_or_default();
        let shown = folders_of(&readme);
        let absent: Vec<String> =
            tree.members.iter().map(|m| m.folder.clone()).filter(|folder| !shown.contains(folder)).collect();
        self.places("crates absent from README's tree", &absent, Some(0));
    }
}

/// Every Rust file of the workspace's packages.
fn sources(tree: &Tree) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for member in &tree.members {
        collect(&tree.root, &tree.root.join(&member.folder), &mut sources)?;
    }
    Ok(sources)
}

fn collect(root: &Path, folder: &Path, sources: &mut Vec<Source>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            collect(root, &path, sources)?;
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            sources.push(Source::new(path.strip_prefix(root)?.display().to_string(), text));
        }
    }
    Ok(())
}

fn percentile(sorted: &[usize], percent: usize) -> usize {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or(0)
}

fn place(source: &Source, line: usize) -> String {
    format!("{}:{}", source.path, line + 1)
}

/// A comment that names an RFC, a XEP or a section.
fn cites(text: &str, code: &str) -> bool {
    text != code && ["RFC ", "XEP-", "§", "[MQTT-"].iter().any(|sign| text.contains(sign) && !code.contains(sign))
}

fn is_mark(text: &str, code: &str) -> bool {
    ["TODO", "FIXME"].iter().any(|mark| text.contains(mark) && !code.contains(mark))
}

fn tests_in(source: &Source) -> usize {
    source.code.matches("#[test]").count() + source.code.matches("#[tokio::test").count()
}

fn unexplained(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.code.lines().collect();
    let bare = source.lines().filter(|(n, _, code)| panics(code) && !explained(source, &lines, *n));
    bare.map(|(n, ..)| place(source, n)).collect()
}

fn panics(code: &str) -> bool {
    [".unwrap()", ".expect("].iter().any(|call| code.contains(call))
}

/// A comment on the line, above it, or above the start of the chain of calls that it continues.
fn explained(source: &Source, lines: &[&str], line: usize) -> bool {
    let start = (0..=line).rev().find(|n| !lines[*n].trim_start().starts_with('.')).unwrap_or(0);
    (start.saturating_sub(1)..=line).any(|n| source.commented[n])
}

fn fuzz_targets(root: &Path) -> usize {
    fs::read_dir(root.join("broker/fuzz/fuzz_targets")).map_or(0, |entries| entries.flatten().count())
}

/// The folders that an annotated tree shows, as paths: `broker/` with `core/` indented below is `broker/core`.
fn folders_of(readme: &str) -> Vec<String> {
    let mut above: BTreeMap<usize, String> = BTreeMap::new();
    let mut folders = Vec::new();
    for line in readme.lines() {
        let depth = line.len() - line.trim_start().len();
        let Some(name) = line.split_whitespace().next().and_then(|word| word.strip_suffix('/')) else { continue };
        above.retain(|other, _| *other < depth);
        above.insert(depth, name.into());
        folders.push(above.values().map(String::as_str).collect::<Vec<_>>().join("/"));
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("broker/core/src/x.rs".into(), text.into())
    }

    #[test]
    fn an_unwrap_wants_its_reason() {
        assert_eq!(unexplained(&source("fn a() {\n    b().unwrap();\n}\n")), ["broker/core/src/x.rs:2"]);
        assert!(unexplained(&source("fn a() {\n    // b is set above.\n    b().unwrap();\n}\n")).is_empty());
        assert!(
            unexplained(&source("fn a() {\n    // why\n    b()\n        .c()\n        .unwrap();\n}\n")).is_empty()
        );
        assert!(unexplained(&source("#[test]\nfn a() {\n    b().unwrap();\n}\n")).is_empty());
    }

    #[test]
    fn a_citation_stands_in_a_comment() {
        assert!(cites("x(); // RFC 6120 §8.1", "x();                 "));
        assert!(!cites("x();", "x();"));
    }

    #[test]
    fn reads_the_folders_of_an_annotated_tree() {
        let tree = "broker/\n  core/      vocabulary\n  store/     traits\nbots/\n  runtime/   engine\n";
        let folders = folders_of(tree);
        assert!(folders.contains(&"broker/store".into()) && folders.contains(&"bots/runtime".into()), "{folders:?}");
        assert!(!folders.contains(&"broker/runtime".into()));
    }

    #[test]
    fn percentiles_of_few_and_none() {
        assert_eq!(percentile(&[], 50), 0);
        assert_eq!(percentile(&[1, 2, 3], 50), 2);
        assert_eq!(percentile(&[1, 2, 3], 100), 3);
    }
}
