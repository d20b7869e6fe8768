//! Repository chores behind `cargo xtask`: tests with their set-up, CI checks, layer rules, the code sheet.
// A command line tool speaks on stdout.
#![allow(clippy::print_stdout)]

mod chores;
mod counts;
mod functions;
mod layers;
mod paths;
mod process;
mod setup;
mod sheet;
mod source;
mod suites;
mod tree;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::suites::Scope;
use crate::tree::Tree;

/// Chores of the Tavi repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Installs what the foreign-client suites need, then runs unit, doc, scenario and foreign-client tests.
    Test {
        /// Anything that cannot be run is a failure.
        #[arg(long)]
        require_all: bool,
        /// Only `cargo test`: no set-up and no foreign clients (counted as skipped).
        #[arg(long, conflicts_with = "require_all")]
        quick: bool,
    },
    /// Only installs what the foreign-client suites need, and names what stays missing.
    Setup,
    /// Formatting, lints, layers, paths, sheet, documentation, portable builds; then the tests with everything required.
    Ci {
        /// Stops before the tests.
        #[arg(long)]
        chores_only: bool,
    },
    /// Fails on an upward or sideways dependency between crates.
    Layers,
    /// Writes broker/docs/xeps.md and broker/docs/tavi.doap from what the modules register. The tests compare them.
    Doap,
    /// Fails when a file named in broker/docs/paths.md is gone.
    Paths,
    /// Prints the figures of the code's shape with their bars.
    Sheet {
        /// A missed bar is a failure.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().chore) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> anyhow::Result<bool> {
    let tree = Tree::load()?;
    match chore {
        Chore::Test { require_all: true, .. } => suites::test(&tree, Scope::Required),
        Chore::Test { quick: true, .. } => suites::test(&tree, Scope::Quick),
        Chore::Test { .. } => suites::test(&tree, Scope::Possible),
        Chore::Setup => Ok(suites::set_up(&tree)),
        Chore::Ci { chores_only } => ci(&tree, chores_only),
        Chore::Doap => doap(),
        Chore::Layers => layers::check(&tree),
        Chore::Paths => paths::check(&tree),
        Chore::Sheet { check } => Ok(sheet::print(&tree)? || !check),
    }
}

/// The test that compares the documents writes them, if it is told to.
fn doap() -> anyhow::Result<bool> {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args(["test", "-q", "-p", "tavi-modules", "--lib", "the_documents_tell_what_is_registered"]);
    Ok(cargo.env("TAVI_WRITE_DOCUMENTS", "1").status()?.success())
}

fn ci(tree: &Tree, chores_only: bool) -> anyhow::Result<bool> {
    let mut counts = chores::run_all(tree)?;
    if !chores_only {
        counts += suites::count(tree, Scope::Required)?;
    }
    println!("{counts}");
    Ok(counts.failed == 0)
}
