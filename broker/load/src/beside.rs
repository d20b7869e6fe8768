//! How long chat takes while publications go to thousands of durable MQTT sessions.
//!
//! The sessions are away, so that each publication is a row for each of them. The chat has a thread of its own: what the
//! publisher does here does not count as the server's.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::Target;
use crate::chat;
use crate::chat::Management;
use crate::churn::part;
use crate::compare::program;
use crate::meter::Cost;
use crate::mqtt;
use crate::mqtt_client::{self as client, Template};
use crate::peers;
use crate::report::{Report, Row};
use crate::told;
use crate::window::Window;
use crate::xmpp_client::Wire;

/// Chat beside which fan-outs.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The broker's program; without it, the one beside this.
    #[arg(long)]
    tavi: Option<PathBuf>,
    /// Its engine; without it, the default.
    #[arg(long)]
    engine: Option<String>,
    /// Only these fan-outs.
    #[arg(long, value_delimiter = ',')]
    only: Vec<FanOut>,
    /// Messages of the chat; the fan-out goes on meanwhile.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    messages: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FanOut {
    /// Nothing: what to compare with.
    Nothing,
    /// 8 KiB to 10,000 sessions.
    Wide,
    /// 1 KiB to 1,100 sessions, 64 in flight.
    Pipelined,
    /// 1 MiB to 1,000 sessions.
    Large,
}

/// A fan-out's measures.
struct Measures {
    title: &'static str,
    sessions: u32,
    payload: usize,
    in_flight: u64,
}

impl FanOut {
    fn measures(self) -> Measures {
        let (title, sessions, payload, in_flight) = match self {
            Self::Nothing => ("chat alone", 0, 0, 1),
            Self::Wide => ("chat beside 8 KiB to 10,000 durable sessions", 10_000, 8 << 10, 1),
            Self::Pipelined => ("chat beside 64 in flight to 1,100 durable sessions", 1_100, 1 << 10, 64),
            // A packet may have 1 MiB by default, its head taken in.
            Self::Large => ("chat beside 1 MiB to 1,000 durable sessions", 1_000, (1 << 20) - 64, 1),
        };
        Measures { title, sessions, payload, in_flight }
    }
}

/// Runs each fan-out on a broker of its own.
pub async fn run(plan: &Plan) -> anyhow::Result<Report> {
    let mut report = Report::default();
    for fan_out in FanOut::value_variants().iter().filter(|one| plan.only.is_empty() || plan.only.contains(one)) {
        let measures = fan_out.measures();
        report.rows.push(row(plan, &measures).await.context(measures.title)?);
    }
    Ok(report)
}

async fn row(plan: &Plan, measures: &Measures) -> anyhow::Result<Row> {
    let sessions = mqtt::Plan::durable(measures.sessions.max(1));
    let mut accounts = mqtt::accounts(&sessions);
    accounts.extend(CHATTERS.map(String::from).into_iter().filter(|name| !accounts.contains(name)).collect::<Vec<_>>());
    let server = peers::tavi(&program(plan.tavi.as_ref())?, &accounts, (plan.engine.as_deref(), false))?;
    let publisher = server.target("mqtt")?;
    for n in 0..measures.sessions {
        let mut stream = mqtt::subscriber(&publisher, &sessions, n).await.with_context(|| format!("subscriber {n}"))?;
        client::subscribe(&mut stream, TOPIC, 1).await?;
    }
    let enough = Arc::new(AtomicBool::new(false));
    let (target, messages, ending) = (server.target("xmpp")?, plan.messages, enough.clone());
    let chat = thread::spawn(move || {
        let cost = talk_apart(&target, messages);
        ending.store(true, Ordering::Relaxed);
        cost
    });
    let start = Instant::now();
    let published = publish(&publisher, measures, &enough).await;
    let seconds = start.elapsed().as_secs_f64();
    // The other thread has a runtime of its own; nothing else is to be done in this one.
    let cost = chat.join().map_err(|_| anyhow!("the chat panicked"))??;
    let load = match published? {
        0 => measures.title.to_owned(),
        count => format!("{} ({count} published in {seconds:.1} s)", measures.title),
    };
    Ok(Row { load, costs: vec![cost], peer: None, bar: None })
}

const TOPIC: &str = "u/load/beside";
/// Who writes to whom.
const CHATTERS: [&str; 2] = ["load1", "load2"];
/// Between a message that has come and the next one.
const PAUSE: Duration = Duration::from_millis(2);

/// Publishes until there was enough chat; gives how much it was.
async fn publish(target: &Target, measures: &Measures, enough: &AtomicBool) -> anyhow::Result<u64> {
    if measures.sessions == 0 {
        return Ok(0);
    }
    let (read, mut write) = mqtt::connect(target, "beside-pub").await?.into_split();
    let acked = Window::new(measures.in_flight, 1);
    let acks = tokio::spawn(told("the publisher", mqtt::count_acks(read, Arc::clone(&acked))));
    let template = Template::new(TOPIC, &vec![b'x'; measures.payload], 1);
    let (mut sent, mut batch) = (0, Vec::new());
    while !enough.load(Ordering::Relaxed) {
        let room = acked.room(sent).await?;
        batch.clear();
        (sent..sent + room).for_each(|n| template.write(n, &mut batch));
        write.write_all(&batch).await?;
        sent += room;
    }
    acked.drained(sent).await?;
    acks.abort();
    Ok(sent)
}

fn talk_apart(target: &Target, messages: u32) -> anyhow::Result<Cost> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(talk(target, messages))
}

/// One message at a time, both sides with stream management: how long each takes from the one to the other.
async fn talk(target: &Target, messages: u32) -> anyhow::Result<Cost> {
    let wire = async |user| -> anyhow::Result<Pin<Box<dyn Wire>>> { chat::client(target, Management::On, user).await };
    let (receiver, answers) = tokio::io::split(wire(CHATTERS[1]).await?);
    let (read, mut write) = tokio::io::split(wire(CHATTERS[0]).await?);
    let window = Window::new(1, 1);
    let mut readers = JoinSet::new();
    readers.spawn(told("the sender", chat::watch(read)));
    readers.spawn(told("the receiver", chat::receive(receiver, answers, Arc::clone(&window))));
    let message = chat::Message::new(&format!("{}@{}", CHATTERS[1], target.host), 64);
    let (mut taken, mut bytes) = (Vec::new(), Vec::new());
    while taken.len() < messages as usize {
        bytes.clear();
        message.write(taken.len() as u64, &mut bytes);
        bytes.extend_from_slice(b"<r xmlns='urn:xmpp:sm:3'/>");
        let start = Instant::now();
        write.write_all(&bytes).await?;
        window.drained(taken.len() as u64 + 1).await?;
        taken.push(start.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    taken.sort_unstable();
    Ok(Cost::Latency { publications: taken.len() as u64, p50_us: part(&taken, 50), p99_us: part(&taken, 99) })
}
