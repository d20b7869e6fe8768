//! Child processes: output passed on as it comes, counted while it passes, and a deadline for all of it.

use std::io::{BufRead, BufReader, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::counts::Counts;

/// What a streamed command left behind.
pub struct Outcome {
    /// It exited with zero, in time.
    pub succeeded: bool,
    /// Sum of the count lines it printed.
    pub counts: Counts,
    /// Names of the tests that libtest reported as ignored.
    pub ignored: Vec<String>,
}

/// Runs a command to its end with its output shown live, and counts what it reports.
/// After `limit` the command (off a terminal: its whole process group) is killed and has failed.
pub fn stream(command: &mut Command, limit: Duration) -> anyhow::Result<Outcome> {
    let own_group = !std::io::stdin().is_terminal();
    if own_group {
        command.process_group(0);
    }
    let shown = format!("{command:?}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {shown}"))?;
    let lines = read_lines(&mut child);
    let mut outcome = Outcome { succeeded: false, counts: Counts::default(), ignored: Vec::new() };
    let deadline = Instant::now() + limit;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => outcome.note(&line),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => return late(child, own_group, outcome, limit),
        }
    }
    outcome.succeeded = child.wait()?.success();
    Ok(outcome)
}

impl Outcome {
    fn note(&mut self, line: &str) {
        println!("{line}");
        if let Some(counts) = Counts::parse(line) {
            self.counts += counts;
        }
        if let Some(name) = line.strip_prefix("test ").and_then(ignored_name) {
            self.ignored.push(name);
        }
    }
}

fn ignored_name(rest: &str) -> Option<String> {
    let (name, outcome) = rest.split_once(" ... ")?;
    outcome.strip_prefix("ignored").map(|reason| format!("{name}{reason}"))
}

fn read_lines(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    // The caller piped stdout, so it is there.
    let output = child.stdout.take().expect("stdout is piped");
    thread::spawn(move || {
        let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
        lines.map(|line| String::from_utf8_lossy(&line).into_owned()).try_for_each(|line| sender.send(line))
    });
    receiver
}

fn late(mut child: Child, own_group: bool, mut outcome: Outcome, limit: Duration) -> anyhow::Result<Outcome> {
    println!("stopped: not finished after {} s", limit.as_secs());
    if own_group {
        Command::new("kill").args(["-9", "--", &format!("-{}", child.id())]).status()?;
    }
    child.kill()?;
    child.wait()?;
    outcome.counts.failed += 1;
    Ok(outcome)
}

/// Runs a command quietly. True if it exits with zero; false also when it does not exist.
pub fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// Runs a command with its output shown. True if it exits with zero.
pub fn run(command: &mut Command) -> bool {
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            println!("cannot start {:?}: {error}", command.get_program());
            false
        }
    }
}

/// True if a program of this name is on PATH.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_a_command_prints() {
        let outcome = stream(Command::new("echo").arg("2 passed, 1 failed, 0 skipped"), Duration::from_secs(10));
        let outcome = outcome.unwrap();
        assert!(outcome.succeeded);
        assert_eq!(outcome.counts, Counts { passed: 2, failed: 1, skipped: 0 });
    }

    #[test]
    fn a_command_that_does_not_end_has_failed() {
        let outcome = stream(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap();
        assert!(!outcome.succeeded);
        assert_eq!(outcome.counts.failed, 1);
    }

    #[test]
    fn names_ignored_tests_with_their_reason() {
        assert_eq!(ignored_name("a::b ... ignored, needs a disk"), Some("a::b, needs a disk".into()));
        assert_eq!(ignored_name("a::b ... ok"), None);
    }
}
