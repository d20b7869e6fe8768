//! The comparison: each load in turn on the peer and on tavi, n rounds, medians side by side.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::chat;
use crate::churn;
use crate::idle::{self, Protocol};
use crate::meter::Cost;
use crate::mqtt;
use crate::peers::{self, Server};
use crate::report::{Report, Row};
use crate::room;

/// What to compare.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Rounds of each load on each server.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=15))]
    rounds: u8,
    /// The tavi program; beside this one by default.
    #[arg(long)]
    tavi: Option<PathBuf>,
    /// Only these loads.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Load>,
    /// Messages on their way at once, of each pair or publisher. The bars are meant for 16.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1000))]
    in_flight: u64,
    /// Tavi's engine for a new store; its own default if it is not given.
    #[arg(long)]
    engine: Option<String>,
    /// Only the peers, to know what the bars are.
    #[arg(long)]
    peers_only: bool,
}

/// The loads of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Load {
    Chat,
    ChatManaged,
    ChatResumable,
    ChatArchived,
    Room,
    MqttIn0,
    MqttIn1,
    MqttOut0,
    MqttOut1,
    MqttDurable,
    MqttChurn,
    MqttRetained,
    IdleXmpp,
    IdleXmpps,
    IdleMqtt,
}

/// What one load is: its title, its bar, and whether the bar is a ratio to a peer.
struct Terms {
    title: &'static str,
    bar: f64,
    peer: Option<Peer>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Ejabberd,
    Prosody,
    Mosquitto,
    MosquittoOnDisk,
}

impl Load {
    fn terms(self) -> Terms {
        let (title, bar, peer) = match self {
            Self::Chat => ("chat", 0.25, Some(Peer::Ejabberd)),
            Self::ChatManaged => ("chat, stream management", 0.10, Some(Peer::Ejabberd)),
            Self::ChatResumable => ("chat, streams that can be resumed", 0.10, Some(Peer::Ejabberd)),
            Self::ChatArchived => ("chat, archived", 0.05, Some(Peer::Prosody)),
            Self::Room => ("a room of 100", 1.0 / 7.0, Some(Peer::Ejabberd)),
            Self::MqttIn0 => ("MQTT fan-in, QoS 0", 1.0, Some(Peer::Mosquitto)),
            Self::MqttIn1 => ("MQTT fan-in, QoS 1", 1.0, Some(Peer::Mosquitto)),
            Self::MqttOut0 => ("MQTT fan-out, QoS 0", 1.0, Some(Peer::Mosquitto)),
            Self::MqttOut1 => ("MQTT fan-out, QoS 1", 1.0, Some(Peer::Mosquitto)),
            Self::MqttDurable => ("MQTT to 1,000 durable sessions, QoS 1, 1 KiB", 1.0, Some(Peer::MosquittoOnDisk)),
            Self::MqttChurn => ("MQTT latency with 10,000 subscribers and more coming", 1.0, Some(Peer::Mosquitto)),
            Self::MqttRetained => ("1,000,000 retained topics", 150.0, None),
            Self::IdleXmpp => ("idle XMPP", 12.0, None),
            Self::IdleXmpps => ("idle XMPP over TLS", 25.0, None),
            Self::IdleMqtt => ("idle MQTT", 4.0, None),
        };
        Terms { title, bar, peer }
    }

    fn accounts(self) -> Vec<String> {
        match self {
            Self::Chat | Self::ChatManaged | Self::ChatResumable | Self::ChatArchived => chat::accounts(&self.chat(1)),
            Self::IdleXmpp | Self::IdleXmpps => idle::accounts(&self.idle()),
            Self::Room => room::accounts(&self.room(1)),
            _ => mqtt::accounts(&self.mqtt(1)),
        }
    }

    fn chat(self, in_flight: u64) -> chat::Plan {
        let (managed, resumable) = (self == Self::ChatManaged, self == Self::ChatResumable);
        // Prosody writes each message into two files: fewer take it long enough.
        let messages = if self == Self::ChatArchived { 200 } else { 2000 };
        chat::Plan { pairs: 50, messages, in_flight, body: 64, managed, resumable }
    }

    fn room(self, in_flight: u64) -> room::Plan {
        room::Plan { occupants: 100, messages: 1000, in_flight, body: 64 }
    }

    fn mqtt(self, in_flight: u64) -> mqtt::Plan {
        let fan_in = matches!(self, Self::MqttIn0 | Self::MqttIn1);
        let durable = self == Self::MqttDurable;
        let qos = u8::from(durable || matches!(self, Self::MqttIn1 | Self::MqttOut1));
        let (clients, payload) = if durable { (1000, 1024) } else { (50, 64) };
        let messages = if durable { 100 } else { [8000, 4000][usize::from(fan_in)] };
        mqtt::Plan { qos, clients, messages, in_flight, payload, durable }
    }

    fn idle(self) -> idle::Plan {
        let (protocol, connections) = match self {
            Self::IdleMqtt => (Protocol::Mqtt, 5000),
            Self::IdleXmpps => (Protocol::Xmpps, 1000),
            _ => (Protocol::Xmpp, 1000),
        };
        idle::Plan { protocol, connections }
    }

    async fn run(self, server: &Server, in_flight: u64) -> anyhow::Result<Cost> {
        match self {
            Self::Chat | Self::ChatManaged | Self::ChatResumable | Self::ChatArchived => {
                chat::run(&server.target("xmpp")?, &self.chat(in_flight)).await
            }
            Self::Room => room::run(&server.target("xmpp")?, &self.room(in_flight)).await,
            Self::MqttIn0 | Self::MqttIn1 => mqtt::fan_in(&server.target("mqtt")?, &self.mqtt(in_flight)).await,
            Self::MqttOut0 | Self::MqttOut1 | Self::MqttDurable => {
                mqtt::fan_out(&server.target("mqtt")?, &self.mqtt(in_flight)).await
            }
            Self::MqttChurn => {
                let plan = churn::Plan { subscribers: 10_000, publications: 300, restless: 2 };
                churn::run(&server.target("mqtt")?, &plan).await
            }
            Self::MqttRetained => {
                churn::retained(&server.target("mqtt")?, &churn::Retained { topics: 1_000_000, payload: 64 }).await
            }
            Self::IdleXmpp => idle::run(&server.target("xmpp")?, &self.idle()).await,
            Self::IdleXmpps => idle::run(&server.target("xmpps")?, &self.idle()).await,
            Self::IdleMqtt => idle::run(&server.target("mqtt")?, &self.idle()).await,
        }
    }

    async fn peer(self) -> anyhow::Result<Option<(&'static str, Server)>> {
        Ok(match self.terms().peer {
            Some(Peer::Ejabberd) => Some(("ejabberd", peers::ejabberd(&self.accounts()).await?)),
            Some(Peer::Prosody) => Some(("Prosody", peers::prosody(&self.accounts()).await?)),
            Some(Peer::Mosquitto) => Some(("mosquitto", peers::mosquitto("")?)),
            // It saves by the clock only: at most a second after a change, and without fsync.
            Some(Peer::MosquittoOnDisk) => {
                Some(("mosquitto with persistence", peers::mosquitto("persistence true\nautosave_interval 1\n")?))
            }
            None => None,
        })
    }
}

/// Runs the comparison. Progress goes to stderr.
pub async fn run(plan: &Plan) -> anyhow::Result<Report> {
    let mut report = Report::default();
    for load in Load::value_variants().iter().filter(|load| plan.only.is_empty() || plan.only.contains(load)) {
        report.rows.push(row(plan, *load).await.with_context(|| load.terms().title)?);
    }
    Ok(report)
}

async fn row(plan: &Plan, load: Load) -> anyhow::Result<Row> {
    let terms = load.terms();
    let peer = load.peer().await?;
    let tavi = if plan.peers_only {
        None
    } else {
        let archive = load == Load::ChatArchived;
        Some(peers::tavi(&program(plan.tavi.as_ref())?, &load.accounts(), (plan.engine.as_deref(), archive))?)
    };
    let (mut own, mut others) = (Vec::new(), Vec::new());
    // A first round warms both up and does not count; what is about memory has its own warm-up and one round.
    let once = matches!(load, Load::IdleXmpp | Load::IdleXmpps | Load::IdleMqtt | Load::MqttRetained);
    let rounds = if once { 0 } else { plan.rounds };
    for round in 0..=rounds {
        eprintln!("{}, round {round} of {rounds}", terms.title);
        if let Some((_, server)) = &peer {
            others.push(load.run(server, plan.in_flight).await?);
        }
        if let Some(server) = &tavi {
            own.push(load.run(server, plan.in_flight).await?);
        }
    }
    if rounds > 0 {
        others = others.split_off(1.min(others.len()));
        own = own.split_off(1.min(own.len()));
    }
    let load = if rounds > 0 { format!("{}, {} in flight", terms.title, plan.in_flight) } else { terms.title.into() };
    Ok(Row { load, costs: own, peer: peer.map(|(name, _)| (name, others)), bar: Some(terms.bar) })
}

/// The broker's program: the one that was named, or the one beside this.
pub fn program(named: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    match named {
        Some(path) => Ok(path.clone()),
        None => Ok(std::env::current_exe()?.parent().context("a program without a folder")?.join("tavi")),
    }
}
