//! MQTT fan-in (many publishers, one subscriber) and fan-out (one publisher, many subscribers).

use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;

use crate::Target;
use crate::meter::{Cost, Meter};
use crate::mqtt_client::{self as client, Login, Packets, Template, kind};
use crate::told;
use crate::window::Window;

/// The account that all clients use, except for durable sessions.
pub const ACCOUNT: &str = "load";
/// Durable sessions of one account: a broker bounds them.
const DURABLE_PER_ACCOUNT: u32 = 100;

/// How much MQTT.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Quality of service of publishers and subscribers.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub qos: u8,
    /// Publishers (fan-in) or subscribers (fan-out).
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: u32,
    /// Messages of each publisher.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub messages: u64,
    /// Messages of a publisher that are on their way at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub in_flight: u64,
    /// Bytes of a payload, at least 4.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(4..=100_000))]
    pub payload: u32,
    /// The subscribers' sessions are durable (fan-out). They use the accounts load, load1, load2 …, 100 sessions each; all
    /// may subscribe to `u/load/#`.
    #[arg(long)]
    pub durable: bool,
}

impl Plan {
    /// So many durable sessions.
    pub fn durable(clients: u32) -> Plan {
        Plan { qos: 1, clients, messages: 1, in_flight: 1, payload: 4, durable: true }
    }
}

/// Accounts that the clients need, the publisher's first.
pub fn accounts(plan: &Plan) -> Vec<String> {
    let count = if plan.durable { plan.clients.div_ceil(DURABLE_PER_ACCOUNT) } else { 1 };
    (0..count).map(account).collect()
}

fn account(number: u32) -> String {
    if number == 0 { ACCOUNT.into() } else { format!("{ACCOUNT}{number}") }
}

/// Many publishers, one subscriber.
pub async fn fan_in(target: &Target, plan: &Plan) -> anyhow::Result<Cost> {
    let windows: Vec<_> = (0..plan.clients).map(|_| Window::new(plan.in_flight, 1)).collect();
    let mut subscriber = connect(target, "fan-in-sub").await?;
    client::subscribe(&mut subscriber, "u/load/in/#", plan.qos).await?;
    let mut publishers = Vec::new();
    for n in 0..plan.clients {
        publishers.push(connect(target, &format!("fan-in-{n}")).await.with_context(|| format!("publisher {n}"))?);
    }
    let meter = Meter::start(target.pid)?;
    let (read, write) = subscriber.into_split();
    let credit = windows.clone();
    // The first four bytes of a payload name its publisher.
    let receiving = tokio::spawn(told(
        "the subscriber",
        receive(read, write, move |payload| {
            let number = payload.first_chunk().map_or(usize::MAX, |bytes| u32::from_be_bytes(*bytes) as usize);
            if let Some(window) = credit.get(number) {
                window.deliver(0, 1);
            }
        }),
    ));
    let publishing = publishers.into_iter().zip(windows).enumerate().map(|(n, (stream, window))| {
        let topic = format!("u/load/in/{n}");
        tokio::spawn(publish(stream, Template::new(&topic, &payload(n, plan.payload), plan.qos), window, plan.clone()))
    });
    finish(publishing.collect(), &[receiving]).await?;
    meter.stop(u64::from(plan.clients) * plan.messages)
}

/// One publisher, many subscribers.
pub async fn fan_out(target: &Target, plan: &Plan) -> anyhow::Result<Cost> {
    let window = Window::new(plan.in_flight, plan.clients as usize);
    let mut subscribers = Vec::new();
    for n in 0..plan.clients {
        let mut stream = subscriber(target, plan, n).await.with_context(|| format!("subscriber {n}"))?;
        client::subscribe(&mut stream, "u/load/out", plan.qos).await?;
        subscribers.push(stream);
    }
    let publisher = connect(target, "fan-out-pub").await?;
    let meter = Meter::start(target.pid)?;
    let receiving = subscribers.into_iter().enumerate().map(|(n, stream)| {
        let (read, write) = stream.into_split();
        let credit = Arc::clone(&window);
        tokio::spawn(told("a subscriber", receive(read, write, move |_| credit.deliver(n, 1))))
    });
    let receiving: Vec<_> = receiving.collect();
    let template = Template::new("u/load/out", &payload(0, plan.payload), plan.qos);
    finish(vec![tokio::spawn(publish(publisher, template, window, plan.clone()))], &receiving).await?;
    meter.stop(u64::from(plan.clients) * plan.messages)
}

/// Connects with a clean session.
pub async fn connect(target: &Target, client_id: &str) -> anyhow::Result<TcpStream> {
    client::connect(target.address, Login { client_id, user: ACCOUNT, password: &target.password, clean: true }).await
}

/// Connects a subscriber, to a durable session if the plan says so.
pub async fn subscriber(target: &Target, plan: &Plan, n: u32) -> anyhow::Result<TcpStream> {
    let number = if plan.durable { n / DURABLE_PER_ACCOUNT } else { 0 };
    let (client_id, user) = (&*format!("fan-out-{n}"), &*account(number));
    client::connect(target.address, Login { client_id, user, password: &target.password, clean: !plan.durable }).await
}

fn payload(number: usize, length: u32) -> Vec<u8> {
    let mut payload = (number as u32).to_be_bytes().to_vec();
    payload.resize(length as usize, b'x');
    payload
}

/// Waits for the publishers. The halves that they return stay open until all are done: closing costs, too.
async fn finish(
    publishing: Vec<JoinHandle<anyhow::Result<OwnedWriteHalf>>>,
    receiving: &[JoinHandle<()>],
) -> anyhow::Result<()> {
    let mut open = Vec::new();
    for task in publishing {
        open.push(task.await??);
    }
    receiving.iter().for_each(JoinHandle::abort);
    Ok(())
}

async fn publish(
    stream: TcpStream,
    template: Template,
    window: Arc<Window>,
    plan: Plan,
) -> anyhow::Result<OwnedWriteHalf> {
    let (read, mut write) = stream.into_split();
    let acked = Window::new(plan.in_flight, 1);
    let acks = tokio::spawn(told("a publisher", count_acks(read, Arc::clone(&acked))));
    let (mut sent, mut batch) = (0, Vec::new());
    while sent < plan.messages {
        let mut room = window.room(sent).await?.min(plan.messages - sent);
        if plan.qos > 0 {
            room = room.min(acked.room(sent).await?);
        }
        batch.clear();
        (sent..sent + room).for_each(|n| template.write(n, &mut batch));
        write.write_all(&batch).await?;
        sent += room;
    }
    window.drained(plan.messages).await?;
    if plan.qos > 0 {
        acked.drained(plan.messages).await?;
    }
    acks.abort();
    Ok(write)
}

/// Counts PUBACKs.
pub async fn count_acks(read: OwnedReadHalf, acked: Arc<Window>) -> anyhow::Result<()> {
    let mut packets = Packets::new(read);
    loop {
        packets.fill().await?;
        let mut count = 0;
        while let Some((first, _)) = packets.take() {
            count += u64::from(first == kind::PUBACK);
        }
        acked.deliver(0, count);
    }
}

/// Takes publications, acknowledges them, and tells of each payload.
pub async fn receive(read: OwnedReadHalf, mut write: OwnedWriteHalf, deliver: impl Fn(&[u8])) -> anyhow::Result<()> {
    let (mut packets, mut acks) = (Packets::new(read), Vec::new());
    loop {
        packets.fill().await?;
        while let Some((first, body)) = packets.take() {
            if first & 0xF0 != kind::PUBLISH {
                bail!("a packet of type {}", first >> 4);
            }
            let (id, payload) = client::parts(first, body).context("a publication that is cut short")?;
            if id != [0, 0] {
                client::puback(id, &mut acks);
            }
            deliver(payload);
        }
        if !acks.is_empty() {
            write.write_all(&acks).await?;
            acks.clear();
        }
    }
}
