//! How long a publication takes while thousands are subscribed and others come and go, and what retained topics weigh.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Target;
use crate::meter::{Cost, resident_kib};
use crate::mqtt;
use crate::mqtt_client::{self as client, Template, kind};
use crate::told;
use crate::window::Window;

/// What all are subscribed to.
const TOPIC: &str = "u/load/churn";
/// Publications without PUBACK at once, of those that only fill the server.
const FILLING: usize = 64;

/// How much comes and goes.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Subscribers, each with a connection of its own.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    pub subscribers: u32,
    /// Publications whose latency is taken.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    pub publications: u32,
    /// Clients that subscribe to other topics meanwhile, one packet each millisecond.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=16))]
    pub restless: u32,
}

/// Publishes at QoS 1, each time when all subscribers have got the publication before, while others subscribe.
pub async fn run(target: &Target, plan: &Plan) -> anyhow::Result<Cost> {
    // One count for all subscribers: a window with one receiver.
    let all = Window::new(1, 1);
    let mut others = Vec::new();
    for n in 0..plan.subscribers {
        let mut stream =
            mqtt::connect(target, &format!("churn-{n}")).await.with_context(|| format!("subscriber {n}"))?;
        client::subscribe(&mut stream, TOPIC, 0).await?;
        let credit = Arc::clone(&all);
        others.push(tokio::spawn(told("a subscriber", count(stream, move || credit.deliver(0, 1)))));
    }
    for n in 0..plan.restless {
        let stream = mqtt::connect(target, &format!("restless-{n}")).await?;
        others.push(tokio::spawn(told("a restless client", fidget(stream, n))));
    }
    let mut publisher = mqtt::connect(target, "churn-pub").await?;
    let (template, mut taken) = (Template::new(TOPIC, b"0123456789", 1), Vec::new());
    for n in 0..u64::from(plan.publications) {
        let start = Instant::now();
        publish(&mut publisher, &template, n).await?;
        taken.push(start.elapsed());
        all.drained((n + 1) * u64::from(plan.subscribers)).await?;
    }
    others.iter().for_each(tokio::task::JoinHandle::abort);
    taken.sort_unstable();
    Ok(Cost::Latency { publications: plan.publications.into(), p50_us: part(&taken, 50), p99_us: part(&taken, 99) })
}

/// Counts publications: all that comes is alike.
async fn count(mut stream: TcpStream, tell: impl Fn()) -> anyhow::Result<()> {
    let mut packet = [0; 2 + 2 + TOPIC.len() + 10];
    loop {
        stream.read_exact(&mut packet).await?;
        tell();
    }
}

/// The time that `percent` of the sorted times do not exceed, in µs.
pub fn part(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

async fn publish(stream: &mut TcpStream, template: &Template, number: u64) -> anyhow::Result<()> {
    let mut packet = Vec::new();
    template.write(number, &mut packet);
    stream.write_all(&packet).await?;
    puback(stream).await
}

async fn puback(stream: &mut TcpStream) -> anyhow::Result<()> {
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.context("no PUBACK")?;
    ensure!(answer[0] == kind::PUBACK, "PUBLISH was answered with a packet of type {}", answer[0] >> 4);
    Ok(())
}

/// Subscribes to one topic after the other; the server answers, nobody looks at it.
async fn fidget(mut stream: TcpStream, number: u32) -> anyhow::Result<()> {
    let mut pause = tokio::time::interval(Duration::from_millis(1));
    for n in 0_u64.. {
        pause.tick().await;
        client::subscribe(&mut stream, &format!("u/load/restless/{number}/{}", n % 200), 0).await?;
    }
    Ok(())
}

/// How much is retained.
#[derive(Args, Clone, Debug)]
pub struct Retained {
    /// Retained topics.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub topics: u64,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(4..=100_000))]
    pub payload: u32,
}

/// Publishes retained topics and looks at the server's memory, which it has a moment to give back.
pub async fn retained(target: &Target, plan: &Retained) -> anyhow::Result<Cost> {
    let mut stream = mqtt::connect(target, "retained-pub").await?;
    let payload = vec![b'x'; plan.payload as usize];
    let (mut batch, mut answers) = (Vec::new(), vec![0; 4 * FILLING]);
    let mut sent = 0;
    while sent < plan.topics {
        let count = plan.topics.min(sent + FILLING as u64) - sent;
        batch.clear();
        for n in sent..sent + count {
            Template::retained(&format!("u/load/kept/{}/{n}", n % 1000), &payload).write(n, &mut batch);
        }
        stream.write_all(&batch).await?;
        let answers = &mut answers[..4 * count as usize];
        stream.read_exact(answers).await.context("no PUBACK")?;
        ensure!(answers.chunks(4).all(|answer| answer[0] == kind::PUBACK), "PUBLISH was not answered with PUBACK");
        sent += count;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    Ok(Cost::Held { topics: plan.topics, resident_mib: resident_kib(target.pid)? / 1024.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_of_the_times_that_is_asked_for() {
        let times: Vec<_> = (1..=100).map(Duration::from_micros).collect();
        assert_eq!((part(&times, 50).round(), part(&times, 99).round()), (51.0, 100.0));
        assert_eq!(part(&[], 50), 0.0);
    }
}
