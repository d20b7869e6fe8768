//! `tavi-load`: puts load on a broker on this machine and says what it cost, alone or beside its peers.
// A command line tool speaks on stdout.
#![allow(clippy::print_stdout)]

mod beside;
mod chat;
mod churn;
mod compare;
mod idle;
mod meter;
mod mqtt;
mod mqtt_client;
mod peers;
mod report;
mod room;
mod window;
mod xmpp_client;

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};

use crate::report::Report;

/// Load injector. Loopback only, bounded, ends by itself.
#[derive(Parser)]
#[command(name = "tavi-load")]
struct Cli {
    #[command(subcommand)]
    load: Load,
    /// Prints JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Load {
    /// One-to-one XMPP chat. The accounts load0, load1 … must exist, all with the same password.
    Chat {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        plan: chat::Plan,
    },
    /// A room in which one speaks and all hear it. The accounts load0, load1 … must exist, all with the same password.
    Room {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        plan: room::Plan,
    },
    /// Many MQTT publishers, one subscriber.
    MqttFanIn {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        plan: mqtt::Plan,
    },
    /// One MQTT publisher, many subscribers.
    MqttFanOut {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        plan: mqtt::Plan,
    },
    /// Publications one at a time, while thousands are subscribed and others subscribe: how long each takes.
    MqttChurn {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        plan: churn::Plan,
    },
    /// Retained topics, and what the server weighs with them.
    MqttRetained {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        plan: churn::Retained,
    },
    /// Connections that log in and then do nothing.
    Idle {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        plan: idle::Plan,
    },
    /// How long chat takes while publications go to thousands of durable MQTT sessions. Starts tavi by itself.
    ChatBesideFanout(beside::Plan),
    /// Starts ejabberd, mosquitto and tavi, gives each the same load in turn, prints a table of medians.
    Compare(compare::Plan),
}

/// Whom the load goes to.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Where the server listens; loopback.
    #[arg(long)]
    address: SocketAddr,
    /// The XMPP domain.
    #[arg(long, default_value = "localhost")]
    host: String,
    /// Password of every account.
    #[arg(long, default_value = "load")]
    password: String,
    /// Process id of the server, whose cost is measured.
    #[arg(long)]
    pid: u32,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    meter::raise_file_limit();
    // One thread: the second core belongs to the server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(run(cli.load))?;
    println!("{}", if cli.json { report.json() } else { report.markdown() });
    Ok(())
}

async fn run(load: Load) -> anyhow::Result<Report> {
    match load {
        Load::Chat { target, plan } => Ok(Report::of("chat", chat::run(&checked(target)?, &plan).await?)),
        Load::Room { target, plan } => Ok(Report::of("room", room::run(&checked(target)?, &plan).await?)),
        Load::MqttFanIn { target, plan } => {
            Ok(Report::of("mqtt-fan-in", mqtt::fan_in(&checked(target)?, &plan).await?))
        }
        Load::MqttFanOut { target, plan } => {
            Ok(Report::of("mqtt-fan-out", mqtt::fan_out(&checked(target)?, &plan).await?))
        }
        Load::MqttChurn { target, plan } => Ok(Report::of("mqtt-churn", churn::run(&checked(target)?, &plan).await?)),
        Load::MqttRetained { target, plan } => {
            Ok(Report::of("mqtt-retained", churn::retained(&checked(target)?, &plan).await?))
        }
        Load::Idle { target, plan } => Ok(Report::of("idle", idle::run(&checked(target)?, &plan).await?)),
        Load::ChatBesideFanout(plan) => beside::run(&plan).await,
        Load::Compare(plan) => compare::run(&plan).await,
    }
}

/// An injector that can be pointed at other people's machines is a weapon.
fn checked(target: Target) -> anyhow::Result<Target> {
    anyhow::ensure!(target.address.ip().is_loopback(), "only servers on loopback are put under load");
    Ok(target)
}

/// Runs a reader; what ends it is said on stderr, because the sender only sees that nothing comes any more.
async fn told(who: &str, reader: impl Future<Output = anyhow::Result<()>>) {
    if let Err(error) = reader.await {
        eprintln!("{who}: {error:#}");
    }
}
