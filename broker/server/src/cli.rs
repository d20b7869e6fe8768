//! The command line of `tavi`.

use crate::{
    config::{Config, Key},
    data,
};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// A messaging broker for people, bots and things: XMPP, MQTT and CoAP over one core.
///
/// Without a command it serves, with everything in ./tavi-data and on this machine's loopback only.
#[derive(Parser)]
#[command(name = "tavi", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub serve: ServeArgs,
}

#[derive(Subcommand)]
pub enum Command {
    /// Runs the broker (the default).
    Serve(ServeArgs),
    /// Manages people's accounts, in a running broker or in the data folder of a stopped one.
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Shows and ends the MQTT sessions of a running broker, also of clients that are away.
    Session {
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// Exports, imports, checks or moves the store of a stopped broker.
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
}

#[derive(Args, Clone, Default)]
pub struct ServeArgs {
    /// Configuration file [default: tavi.toml in the data folder].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data folder [default: ./tavi-data].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The domain of people's addresses [default: localhost].
    #[arg(long, value_name = "NAME")]
    pub domain: Option<String>,
    /// Where to listen, such as xmpp=0.0.0.0:5222, mqtt=localhost:0 or coap=off. KEYs: xmpp, xmpps, mqtt, mqtts,
    /// coap, http, https. Port 0 picks a free one.
    #[arg(long, value_name = "KEY=ADDR:PORT", value_parser = parse_listen)]
    pub listen: Vec<(Key, String)>,
    /// A further folder of bots (NAME.rhai) beside `bots` in the data folder.
    #[arg(long, value_name = "DIR")]
    pub bots: Option<PathBuf>,
    /// Print one JSON line when ready, and log in JSON.
    #[arg(long)]
    pub json: bool,
    /// Check the configuration and end, without starting.
    #[arg(long)]
    pub check: bool,
}

fn parse_listen(text: &str) -> Result<(Key, String), String> {
    let (key, address) = text.split_once('=').ok_or("write KEY=ADDR:PORT, for example xmpp=127.0.0.1:5222")?;
    Ok((key.parse()?, address.to_owned()))
}

/// Options of every command that works on a data folder.
#[derive(Args, Clone)]
pub struct Place {
    /// Data folder.
    #[arg(long, value_name = "DIR", default_value = "./tavi-data")]
    pub data: PathBuf,
    /// Configuration file of the broker [default: tavi.toml in the data folder].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The domain of people's addresses [default: the one that the broker has last served].
    #[arg(long, value_name = "NAME")]
    pub domain: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl Place {
    /// What the broker of this data folder would run with.
    pub fn config(&self) -> anyhow::Result<Config> {
        let served = || data::served(&self.data);
        Config::load(&ServeArgs {
            data: Some(self.data.clone()),
            config: self.config.clone(),
            domain: self.domain.clone().or_else(|| self.config.is_none().then(served).flatten()),
            ..ServeArgs::default()
        })
    }
}

#[derive(Subcommand)]
pub enum UserCommand {
    /// Makes an account. Without --password-stdin a password is generated and shown once.
    Add {
        /// The address, such as juliet@localhost.
        jid: String,
        /// Read the password from the first line of standard input.
        #[arg(long)]
        password_stdin: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Lists the accounts.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Changes a password. Without --password-stdin one is generated and shown once. Sessions that are logged in stay.
    Passwd {
        /// The address.
        jid: String,
        /// Read the password from the first line of standard input.
        #[arg(long)]
        password_stdin: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Removes an account with all that is stored for it, and ends its sessions.
    Remove {
        /// The address.
        jid: String,
        #[command(flatten)]
        place: Place,
    },
}

/// Options of every command that needs a running broker.
#[derive(Args, Clone)]
pub struct Running {
    /// Data folder of the broker.
    #[arg(long, value_name = "DIR", default_value = "./tavi-data")]
    pub data: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum SessionCommand {
    /// Lists MQTT sessions, in the order of their addresses and client ids.
    List {
        /// Only those of this person, device or bot, such as juliet@localhost.
        #[arg(long, value_name = "ADDRESS")]
        of: Option<String>,
        /// At most so many, 1 to 1,000; the answer tells where the next ones begin [default: all].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: Option<u16>,
        /// Only those behind this one, as an earlier answer named it: ADDRESS/CLIENT.
        #[arg(long, value_name = "NEXT")]
        after: Option<String>,
        #[command(flatten)]
        running: Running,
    },
    /// Shows one MQTT session and what it subscribes to.
    Show {
        /// Whose, such as juliet@localhost.
        address: String,
        /// The client id.
        client: String,
        #[command(flatten)]
        running: Running,
    },
    /// Ends an MQTT session: its client, if connected, is told to go, its will is published, and what is stored for it
    /// goes. The client may come back with a new session.
    End {
        /// Whose.
        address: String,
        /// The client id.
        client: String,
        #[command(flatten)]
        running: Running,
    },
}

#[derive(Subcommand)]
pub enum StoreCommand {
    /// Writes everything that is stored to a file.
    Export {
        /// The new file.
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Reads an export into an empty store.
    Import {
        /// The file that `export` wrote.
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Reads every row and reports damage.
    Check {
        #[command(flatten)]
        place: Place,
    },
    /// Moves the store to another engine; the old one is kept aside.
    Migrate {
        /// The engine: sled or fjall.
        #[arg(long)]
        to: String,
        #[command(flatten)]
        place: Place,
    },
}
