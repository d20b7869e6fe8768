//! `tavi`: the broker and its administration.

mod admin;
mod certificate;
mod cli;
mod config;
mod data;
mod front;
mod limits;
mod listen;
mod logs;
mod memory;
mod people;
mod removal;
mod serve;
mod sessions;
mod signals;
mod stored;
mod tls;
mod tokens;
mod users;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

/// Counts for each thread what it holds: so bots' scripts are bounded.
#[global_allocator]
static ALLOCATOR: tavi_bots::Metered = tavi_bots::Metered::system();

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        None => serve(&cli.serve),
        Some(Command::Serve(args)) => serve(&args),
        Some(Command::User { command }) => users::run(command),
        Some(Command::Session { command }) => sessions::run(command),
        Some(Command::Store { command }) => stored::run(command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tavi: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &cli::ServeArgs) -> anyhow::Result<()> {
    memory::watch();
    serve::run(args)
}
