//! A room (XEP-0045): one occupant speaks with a window of messages in flight, everybody hears it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::task::JoinSet;

use crate::Target;
use crate::chat::Counter;
use crate::meter::{Cost, Meter};
use crate::told;
use crate::window::Window;
use crate::xmpp_client::{Login, Wire, XmppClient};

/// How large a room, and how much is said in it.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Occupants.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub occupants: u32,
    /// Messages of the one who speaks.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub messages: u64,
    /// Messages that are on their way at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub in_flight: u64,
    /// Bytes of a message's text.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub body: u32,
}

/// Accounts that a room needs.
pub fn accounts(plan: &Plan) -> Vec<String> {
    (0..plan.occupants).map(|n| format!("load{n}")).collect()
}

/// Fills a room, has one speak, and measures it.
pub async fn run(target: &Target, plan: &Plan) -> anyhow::Result<Cost> {
    // Those of an earlier run may still be leaving theirs.
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let room = format!("load{}@rooms.{}", RUNS.fetch_add(1, Ordering::Relaxed), target.host);
    let window = Window::new(plan.in_flight, plan.occupants as usize);
    let mut readers = JoinSet::new();
    let mut writers = Vec::new();
    for n in 0..plan.occupants {
        let wire = occupant(target, &room, n).await.with_context(|| format!("occupant {n}"))?;
        let (read, write) = tokio::io::split(wire);
        writers.push(write);
        readers.spawn(told("an occupant", hear(read, n as usize, Arc::clone(&window))));
    }
    let meter = Meter::start(target.pid)?;
    speak(&mut writers[0], &room, plan, &window).await?;
    meter.stop(plan.messages * u64::from(plan.occupants))
}

async fn occupant(target: &Target, room: &str, n: u32) -> anyhow::Result<Pin<Box<dyn Wire>>> {
    let user = format!("load{n}");
    let mut client = XmppClient::connect(target.address, &target.host).await?;
    client.log_in(Login { user: &user, password: &target.password, resource: "load" }).await?;
    client.enter(room, &user, n == 0).await?;
    Ok(client.into_wire())
}

async fn speak(
    write: &mut WriteHalf<Pin<Box<dyn Wire>>>,
    room: &str,
    plan: &Plan,
    window: &Window,
) -> anyhow::Result<()> {
    let text = "x".repeat(plan.body as usize);
    let mut sent = 0;
    while sent < plan.messages {
        let free = window.room(sent).await?.min(plan.messages - sent);
        let message = |n| format!("<message to='{room}' type='groupchat' id='m{n}'><body>{text}</body></message>");
        let batch: String = (sent..sent + free).map(message).collect();
        write.write_all(batch.as_bytes()).await?;
        sent += free;
    }
    window.drained(plan.messages).await
}

/// Counts messages by their end tags, also where a read cuts one.
async fn hear(mut read: ReadHalf<Pin<Box<dyn Wire>>>, n: usize, window: Arc<Window>) -> anyhow::Result<()> {
    let messages = Counter::new(b"</message>");
    let (mut buffer, mut kept) = (vec![0; 64 * 1024], 0);
    loop {
        let length = read.read(&mut buffer[kept..]).await?;
        if length == 0 {
            bail!("the server closed an occupant's stream");
        }
        let end = kept + length;
        window.deliver(n, messages.count(&buffer[..end], kept));
        kept = end.min(16);
        buffer.copy_within(end - kept..end, 0);
    }
}
