//! One sender's rate over a durable path, with and without pipelined tickets.
//!
//! `cargo run --release -p tavi-server --example pipeline [sled|fjall] [MESSAGES]` publishes retained values to one
//! topic on the real store: first each awaited before the next, then through a session's window of open tickets.

use std::{future::poll_fn, sync::Arc, time::Instant};
use tavi_core::{Hosts, Parts, Principal, SystemClock, TicketQueue, homes::SessionLimits, topics::Draft};
use tavi_store_kv::{Engine, Options};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let engine: Engine =
        args.next().unwrap_or_else(|| "fjall".into()).parse().map_err(|_| anyhow::anyhow!("sled or fjall"))?;
    let count: usize = args.next().map_or(Ok(5_000), |n| n.parse())?;
    let folder = tempfile::tempdir()?;
    let store = tavi_store_kv::open(&folder.path().join("store"), &Options { engine, ..Options::default() })?;
    let parts =
        Parts::load(Hosts::new("localhost", &[])?, store, Arc::new(SystemClock), SessionLimits::default()).await?;
    let sender = Principal::Account("juliet@localhost".parse()?);

    let start = Instant::now();
    for n in 0..count {
        parts.topics.publish(&sender, draft(n))?.complete().await?;
    }
    let alone = rate(count, start);
    let start = Instant::now();
    let mut window = TicketQueue::default();
    for n in 0..count {
        while window.is_full() {
            next(&mut window).await?;
        }
        window.push(parts.topics.publish(&sender, draft(n))?, (), 300);
    }
    while !window.is_empty() {
        next(&mut window).await?;
    }
    let pipelined = rate(count, start);
    println!(
        "{engine}: one sender, 300-byte retained values, durable: {alone:.0}/s one at a time, {pipelined:.0}/s pipelined ({:.1}x)",
        pipelined / alone
    );
    Ok(())
}

fn draft(n: usize) -> Draft {
    Draft { topic: "u/juliet/bench".into(), payload: format!("{n:0300}").into(), retain: true, ..Draft::default() }
}

async fn next(window: &mut TicketQueue<()>) -> anyhow::Result<()> {
    match poll_fn(|cx| window.poll_next(cx)).await {
        Some(((), result)) => Ok(result?),
        None => Ok(()),
    }
}

fn rate(count: usize, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}
