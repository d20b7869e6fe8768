//! `cargo xtask ci`: every check of the tree that is not a test.

use std::process::Command;

use crate::counts::Counts;
use crate::process::{run, succeeds};
use crate::tree::{Tree, cargo};
use crate::{layers, paths, sheet};

/// Crates that must do no IO, each with a target that has none.
const PORTABLE: &[(&str, &str)] = &[
    ("tavi-wire", "thumbv7em-none-eabi"),
    ("tavi-xmpp-proto", "wasm32-unknown-unknown"),
    ("tavi-enrol", "wasm32-unknown-unknown"),
];

/// Runs every chore, prints its outcome, returns the sums.
pub fn run_all(tree: &Tree) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    let mut note = |name: &str, held: bool| {
        println!("{} {name}", if held { "ok  " } else { "FAIL" });
        counts += Counts::from(held);
    };
    note("layers", layers::check(tree)?);
    note("paths", paths::check(tree)?);
    note("sheet", sheet::print(tree)?);
    note("formatting", run(cargo_in(tree).args(["fmt", "--all", "--check"])));
    note("lints", lints(tree));
    note("documentation", documentation(tree));
    for (package, target) in PORTABLE {
        note(&format!("{package} builds for {target}"), portable(tree, package, target));
    }
    Ok(counts)
}

fn cargo_in(tree: &Tree) -> Command {
    let mut command = Command::new(cargo());
    command.current_dir(&tree.root);
    command
}

fn lints(tree: &Tree) -> bool {
    run(cargo_in(tree).args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))
}

fn documentation(tree: &Tree) -> bool {
    run(cargo_in(tree).args(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings"))
}

fn portable(tree: &Tree, package: &str, target: &str) -> bool {
    if !succeeds(Command::new("rustup").args(["target", "add", target])) {
        println!("cannot install it; try: rustup target add {target}");
        return false;
    }
    run(cargo_in(tree).args(["check", "--quiet", "--package", package, "--target", target]))
}
