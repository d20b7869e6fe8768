//! The `tavi-fleet` binary: devices and grants of a running broker, on the same machine.
#![forbid(unsafe_code)]

mod add;
mod args;
mod devices;
mod grants;
mod keyfile;
mod output;
mod token;

use std::process::ExitCode;

use clap::Parser;
use tavi_fleet::Client;

use crate::args::{Args, Command, Device, Grant, Which};
use crate::output::{Failure, Output};

/// 0: done. 1: refused. 2 (from clap): not understood.
fn main() -> ExitCode {
    let args = Args::parse();
    let output = Output::new(args.json);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(args, &output)),
        Err(error) => Err(Failure::new(format!("this program could not start: {error}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.fail(&failure);
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let client = Client::new(args.local);
    match args.command {
        Command::Device(Device::Add(add)) => add::run(&client, &add, output).await,
        Command::Device(Device::List(page)) => devices::list(&client, page, output).await,
        Command::Device(Device::Remove { id }) => devices::remove(&client, id, output).await,
        Command::Device(Device::Token(token)) => token::run(&client, &token, output).await,
        Command::Grant(Grant::Add(grant)) => grants::add(&client, grant, output).await,
        Command::Grant(Grant::List(page)) => grants::list(&client, page, output).await,
        Command::Grant(Grant::Remove { which }) => grants::remove(&client, Which::parse_or_exit(&which), output).await,
    }
}
