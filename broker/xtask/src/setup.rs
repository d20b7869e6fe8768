//! Set-up of the foreign-client suites: Debian packages where we may install them, and a private Python environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{on_path, run, succeeds};
use crate::tree::Tree;

/// Something that a suite needs and this machine has not.
pub struct Missing {
    /// The program or module.
    pub what: String,
    /// The command that would bring it.
    pub command: String,
}

/// Programs of other people that the suites run, each with the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("mosquitto_pub", "mosquitto-clients"),
    ("mosquitto_sub", "mosquitto-clients"),
    ("coap-client-notls", "libcoap3-bin"),
    ("profanity", "profanity"),
    ("tmux", "tmux"),
    ("python3", "python3"),
];

/// The Python that runs the suites.
pub fn python(tree: &Tree) -> PathBuf {
    environment(tree).join("bin/python")
}

fn environment(tree: &Tree) -> PathBuf {
    tree.root.join("build/venv")
}

/// Installs what is not there yet and may be installed; returns what stays missing.
pub fn install(tree: &Tree) -> Vec<Missing> {
    install_packages();
    let mut missing: Vec<Missing> = absent().map(|(program, package)| lacking(program, package)).collect();
    missing.extend(install_python(tree));
    missing
}

fn absent() -> impl Iterator<Item = (&'static str, &'static str)> {
    PROGRAMS.iter().copied().filter(|(program, _)| !on_path(program))
}

fn lacking(program: &str, package: &str) -> Missing {
    Missing { what: program.into(), command: format!("sudo apt-get install --no-install-recommends {package}") }
}

fn install_packages() {
    let mut packages: Vec<&str> = absent().map(|(_, package)| package).collect();
    // A Python that is yet to be installed lacks it as well: Debian keeps it in a package of its own.
    if !succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"])) {
        packages.push("python3-venv");
    }
    packages.dedup();
    if packages.is_empty() || !may_install() {
        return;
    }
    println!("installing {}", packages.join(" "));
    if !apt_install(&packages) {
        // A fresh container has no package lists yet.
        run(Command::new("apt-get").args(["-qq", "update"]));
        apt_install(&packages);
    }
}

fn may_install() -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    root && on_path("apt-get")
}

fn apt_install(packages: &[&str]) -> bool {
    let mut apt = Command::new("apt-get");
    apt.args(["-qq", "install", "-y", "--no-install-recommends"]).args(packages);
    run(apt.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::process::Stdio::null()))
}

fn install_python(tree: &Tree) -> Option<Missing> {
    let requirements = tree.root.join("broker/interop/requirements.txt");
    let folder = environment(tree);
    if is_current(&folder, &requirements) && works(tree) {
        return None;
    }
    println!("making the Python environment of the foreign-client suites in build/venv");
    let made = run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))
        && run(pip(tree).args(["install", "--quiet", "--requirement"]).arg(&requirements))
        && works(tree)
        && std::fs::copy(&requirements, folder.join("installed.txt")).is_ok();
    let command = "python3 -m venv build/venv && build/venv/bin/pip install -r broker/interop/requirements.txt";
    (!made).then(|| Missing { what: "slixmpp".into(), command: command.into() })
}

/// The environment remembers the list that it was made from.
fn is_current(folder: &Path, requirements: &Path) -> bool {
    let installed = std::fs::read(folder.join("installed.txt"));
    installed.is_ok_and(|installed| std::fs::read(requirements).is_ok_and(|wanted| wanted == installed))
}

/// An environment counts by what can be done with it, not by the names of packages.
fn works(tree: &Tree) -> bool {
    succeeds(Command::new(python(tree)).args(["-c", "import slixmpp"]))
}

fn pip(tree: &Tree) -> Command {
    let mut pip = Command::new(python(tree));
    pip.args(["-m", "pip", "--disable-pip-version-check"]);
    pip
}
