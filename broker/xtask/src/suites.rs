//! `cargo xtask test`: set-up, `cargo test` over the workspace, the foreign-client suites, one line of sums.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::counts::Counts;
use crate::process::{Outcome, run, stream};
use crate::setup::{self, Missing};
use crate::tree::{Tree, cargo};

/// `cargo test` with its builds takes about ten minutes on two cores; twice that means that something hangs.
const TEST_LIMIT: Duration = Duration::from_secs(25 * 60);
/// Each foreign-client check has its own deadline; this one ends the runner itself.
const FOREIGN_LIMIT: Duration = Duration::from_secs(10 * 60);

/// How much of the tests is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `cargo test` alone.
    Quick,
    /// Everything that this machine can run.
    Possible,
    /// Everything; what cannot be run is a failure.
    Required,
}

/// Runs the tests and prints the last line. False if one failed.
pub fn test(tree: &Tree, scope: Scope) -> anyhow::Result<bool> {
    let counts = count(tree, scope)?;
    println!("{counts}");
    Ok(counts.failed == 0)
}

/// Only the set-up; names what stays missing. False if anything does.
pub fn set_up(tree: &Tree) -> bool {
    let missing = setup::install(tree);
    report(&[], &missing);
    missing.is_empty()
}

/// Runs the tests and returns their sums; prints everything but the last line.
pub fn count(tree: &Tree, scope: Scope) -> anyhow::Result<Counts> {
    let start = Instant::now();
    let missing = if scope == Scope::Quick { Vec::new() } else { setup::install(tree) };
    if !build(tree) {
        println!("the build failed, nothing was tested");
        return Ok(Counts::from(false));
    }
    let mut rust = rust_tests(tree)?;
    if missing.is_empty() && scope != Scope::Quick && !rust.ignored.is_empty() {
        rust = with_ignored(tree, rust)?;
    }
    let mut counts = rust.counts;
    if scope == Scope::Required {
        counts.failed += std::mem::take(&mut counts.skipped) + missing.len() as u64;
    }
    if scope == Scope::Quick {
        println!("not run: foreign-client suites (--quick)");
        counts.skipped += 1;
    } else {
        counts += foreign(tree, scope)?;
    }
    report(&rust.ignored, &missing);
    println!("finished in {} s", start.elapsed().as_secs());
    Ok(counts)
}

/// Scenario tests and foreign clients run the real programs.
fn build(tree: &Tree) -> bool {
    println!("building the programs");
    run(Command::new(cargo()).current_dir(&tree.root).args(["build", "--workspace", "--bins", "--quiet"]))
}

fn rust_tests(tree: &Tree) -> anyhow::Result<Outcome> {
    println!("unit, doc and scenario tests");
    let mut command = Command::new(cargo());
    command.current_dir(&tree.root).args(["test", "--workspace", "--no-fail-fast"]);
    Ok(honest(stream(&mut command, TEST_LIMIT)?))
}

/// Tests that are ignored because they need a program of somebody else run too, when the set-up has brought them all.
fn with_ignored(tree: &Tree, mut outcome: Outcome) -> anyhow::Result<Outcome> {
    println!("tests that need other people's programs");
    let mut command = Command::new(cargo());
    command.current_dir(&tree.root).args(["test", "--workspace", "--no-fail-fast", "--quiet"]);
    command.args(["--lib", "--bins", "--tests", "--", "--ignored"]);
    let needy = honest(stream(&mut command, TEST_LIMIT)?);
    outcome.counts.skipped = outcome.counts.skipped.saturating_sub(needy.counts.passed + needy.counts.failed);
    outcome.counts += needy.counts;
    outcome.ignored.clear();
    Ok(outcome)
}

/// A program that fails without a count (it did not compile, it aborted) is one failure.
fn honest(mut outcome: Outcome) -> Outcome {
    if !outcome.succeeded && outcome.counts.failed == 0 {
        outcome.counts.failed = 1;
    }
    outcome
}

fn foreign(tree: &Tree, scope: Scope) -> anyhow::Result<Counts> {
    println!("foreign-client suites");
    let python = setup::python(tree);
    if !python.is_file() {
        return Ok(unrun(scope, "foreign-client suites: no Python environment"));
    }
    let mut command = Command::new(python);
    command.arg(tree.root.join("broker/interop/run.py")).arg("--programs").arg(tree.target.join("debug"));
    let mut counts = honest(stream(&mut command, FOREIGN_LIMIT)?).counts;
    if scope == Scope::Required && counts.skipped > 0 {
        println!("--require-all: {} foreign-client checks were not run", counts.skipped);
        counts.failed += std::mem::take(&mut counts.skipped);
    }
    Ok(counts)
}

fn unrun(scope: Scope, what: &str) -> Counts {
    println!("not run: {what}");
    let required = scope == Scope::Required;
    Counts { passed: 0, failed: required.into(), skipped: (!required).into() }
}

fn report(ignored: &[String], missing: &[Missing]) {
    for name in ignored {
        println!("skipped: {name}");
    }
    for Missing { what, command } in missing {
        println!("not run for want of {what}; install it with: {command}");
    }
}
