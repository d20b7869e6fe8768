//! `tavi`: the broker and its administration.

mod admin;
mod certificate;
mod cli;
mod client_certificate;
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
mod streams;
mod tls;
mod tokens;
mod users;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        None => serve::run(&cli.serve),
        Some(Command::Serve(args)) => serve::run(&args),
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
