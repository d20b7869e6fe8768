//! The crash suites: what was acknowledged survives SIGKILL at any moment, and a power loss in which only synced
//! bytes survive. Both run [`writer`] as a child process, this same program, and judge what they find.
#![allow(clippy::print_stdout, reason = "a failing run is told by its rounds and its seed")]

mod judge;
mod kill;
mod power;
mod writer;

/// The child's body; in an ordinary run of the tests there is nothing to write.
#[test]
fn the_writer_of_the_suites() {
    writer::run_if_child();
}
