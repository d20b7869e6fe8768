//! The command line: what can be said, and its help.

use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use tavi_enrol::DeviceId;
use tavi_enrol::device::DeviceName;
use tavi_enrol::grant::{Filter, GrantError, Rights, Subject};
use tavi_enrol::route::ListQuery;

const EXAMPLES: &str = "\
Examples:
  tavi-fleet device add --name Pump
  tavi-fleet device list
  tavi-fleet grant add ann@localhost subscribe,publish 'd/+/up/#'
  tavi-fleet grant add ann@localhost '!subscribe' 'd/+/up/position'
  tavi-fleet grant add anon-clear retrieve,subscribe,publish 'd/+/up/#'

Exit status: 0 done, 1 refused, 2 not understood.";

/// Devices and grants of a running Tavi broker.
#[derive(Parser)]
#[command(name = "tavi-fleet", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    /// The data folder of the running broker
    #[arg(long, value_name = "DIR", default_value = "./tavi-data", global = true)]
    pub local: PathBuf,
    /// Print one line of JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Devices: who they are, and what they log in with
    #[command(subcommand)]
    Device(Device),
    /// Grants: who may do what to which topics
    #[command(subcommand)]
    Grant(Grant),
}

#[derive(Subcommand)]
pub enum Device {
    /// Add a device: make its key pair, or take the public key that it made itself
    Add(Add),
    /// List all devices, or some of them
    List(Page),
    /// Remove a device: its sessions end and it can not log in again
    Remove {
        /// The device's id
        id: DeviceId,
    },
    /// Sign a token with a device's private key: a password that is good once, for ten minutes at most
    Token(Token),
}

/// Which part of a list.
#[derive(clap::Args)]
pub struct Page {
    /// Only what stands behind this id
    #[arg(long, value_name = "ID")]
    pub after: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: Option<u16>,
}

impl Page {
    /// The query for it; none where all is wanted.
    pub fn query(self) -> Option<ListQuery> {
        let limit = self.limit.map(usize::from);
        (self.after.is_some() || limit.is_some()).then_some(ListQuery { after: self.after, limit, subject: None })
    }
}

#[derive(clap::Args)]
pub struct Add {
    /// A name for people; it can change, the id can not
    #[arg(long)]
    pub name: Option<DeviceName>,
    /// The device's public key (PEM, DER, 64 hexadecimal digits or 32 bytes); no key pair is made here then
    #[arg(long, value_name = "FILE")]
    pub public_key: Option<PathBuf>,
    /// The folder for the private key's file, ID.key
    #[arg(long, value_name = "DIR", default_value = ".", conflicts_with = "public_key")]
    pub out: PathBuf,
}

#[derive(clap::Args)]
pub struct Token {
    /// The device's id
    pub id: DeviceId,
    /// Its private key (PKCS#8 in PEM)
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Which service the token is for
    #[arg(long = "for", value_enum, default_value = "mqtt")]
    pub service: Service,
    /// The broker's domain [default: what the running broker says]
    #[arg(long)]
    pub domain: Option<String>,
    /// For how many seconds it is good
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub lifetime: u64,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Service {
    Mqtt,
    Xmpp,
}

#[derive(Subcommand)]
pub enum Grant {
    /// Allow SUBJECT to do ACTIONS to the topics that FILTER matches, or deny it
    Add(GrantParts),
    /// List all grants, or some of them
    List(Page),
    /// Remove one grant, by its id or by its three parts
    #[command(override_usage = "tavi-fleet grant remove ID\n       tavi-fleet grant remove SUBJECT ACTIONS FILTER")]
    Remove {
        /// The grant's id as `grant list` shows it, or its SUBJECT, ACTIONS and FILTER
        #[arg(required = true, num_args = 1..=3, value_names = ["ID or SUBJECT", "ACTIONS", "FILTER"])]
        which: Vec<String>,
    },
}

#[derive(clap::Args)]
pub struct GrantParts {
    /// A JID, a device's id, a group like @everyone, or anon-clear (plain CoAP on the broker's machine)
    pub subject: Who,
    /// A comma list of retrieve, subscribe (or notify), publish (or update), delete, create, invoke; with ! in front it
    /// denies them, whatever other grants allow
    pub actions: Rights,
    /// An MQTT topic filter; quote it, so that the shell leaves # and + alone
    pub filter: Filter,
}

/// The grant that `grant remove` means.
pub enum Which {
    Id(String),
    Parts(GrantParts),
}

impl Which {
    /// Reads the words of `grant remove`; ends the program with a usage error, like clap, if they make no sense.
    pub fn parse_or_exit(words: &[String]) -> Self {
        Self::parse(words).unwrap_or_else(|text| Args::command().error(ErrorKind::ValueValidation, text).exit())
    }

    fn parse(words: &[String]) -> Result<Self, String> {
        match words {
            [id] => Ok(Self::Id(id.clone())),
            [subject, actions, filter] => {
                let parts =
                    || Ok(GrantParts { subject: subject.parse()?, actions: actions.parse()?, filter: filter.parse()? });
                parts().map(Self::Parts).map_err(|error: GrantError| error.to_string())
            }
            _ => Err("name the grant by its ID, or by its SUBJECT, ACTIONS and FILTER".into()),
        }
    }
}

/// A subject as an operator writes it: a device's id alone means its JID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    Subject(Subject),
    Device(DeviceId),
}

impl FromStr for Who {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        text.parse().map(Self::Device).or_else(|_| text.parse().map(Self::Subject))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        for line in ["tavi-fleet --local x --json device list", "tavi-fleet device list --json --local x"] {
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            assert!(args.json && args.local == Path::new("x"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_done() {
        let lines = [
            "device remove pump",
            "grant add nobody publish a/b",
            "grant add ann@localhost read a/b",
            "grant add ann@localhost publish a#",
            "grant add ann@localhost publish",
            "grant remove",
            "device add --public-key k --out d",
            "device token 61e02c02-b7d0-849a-bcbd-b5e93fbe5b76 --key k --lifetime 601",
        ];
        for line in lines {
            let words = std::iter::once("tavi-fleet").chain(line.split(' '));
            assert!(Args::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn a_grant_is_named_by_its_id_or_its_three_parts() {
        let parse = |line: &str| Which::parse(&line.split(' ').map(String::from).collect::<Vec<_>>());
        assert!(matches!(parse("7"), Ok(Which::Id(id)) if id == "7"));
        assert!(matches!(parse("@everyone publish a/#"), Ok(Which::Parts(_))));
        assert!(parse("@everyone publish").is_err() && parse("@everyone publish a#").is_err());
    }

    #[test]
    fn a_device_id_is_a_subject() {
        let id = "61e02c02-b7d0-849a-bcbd-b5e93fbe5b76";
        assert_eq!(id.parse(), Ok(Who::Device(id.parse().unwrap())));
        assert_eq!("anon-clear".parse(), Ok(Who::Subject(Subject::AnonClear)));
    }
}
