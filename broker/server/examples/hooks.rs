//! What hooks cost a message: the routing of one chat message with the modules that there are, and with 20 more that look
//! at everything and do nothing.
//!
//! `cargo run --release -p tavi-server --example hooks [MESSAGES]` routes from one session to another one over a store in
//! memory, in turns, and prints the median of nine rounds each.

use std::sync::Arc;
use tavi_core::{
    Envelope, Ev, Flow, Hosts, Link, Node, Origin, Parts, Registry, SystemClock,
    homes::SessionLimits,
    hooks::{OnKept, OnReceived, OnSent, OnSession, OnUndelivered, Phase, Place, SessionEvent},
};
use tavi_store::{Expect, MemoryStore, Op, Owner, Store, Table};
use tavi_xmpp_proto::{Jid, Stanza};

/// Looks on.
struct Idle;

impl OnSent for Idle {
    fn on_sent(&self, _: &mut Ev<'_>) -> Flow {
        Flow::Continue
    }
}

impl OnReceived for Idle {
    fn on_received(&self, _: &mut Ev<'_>) -> Flow {
        Flow::Continue
    }
}

impl OnUndelivered for Idle {
    fn on_undelivered(&self, _: &mut Ev<'_>) -> Flow {
        Flow::Continue
    }
}

impl OnKept for Idle {
    fn on_kept(&self, _: &mut Ev<'_>) {}
}

impl OnSession for Idle {
    fn on_session(&self, _: SessionEvent, _: u64, _: &mut Place<'_>) {}
}

struct World {
    node: Node,
    romeo: Link,
    juliet: Link,
}

impl World {
    async fn new(idle: usize) -> anyhow::Result<World> {
        let store = Arc::new(MemoryStore::default());
        for who in ["romeo", "juliet"] {
            let account = Op::Put { table: Table::Account, item: "".into(), value: "x".into(), expect: Expect::Any };
            store.commit(&Owner::account(&format!("{who}@localhost")), vec![account]).await?;
        }
        let hosts = Hosts::new("localhost", &tavi_modules::HOSTS)?;
        let parts = Parts::load(hosts, store, Arc::new(SystemClock), SessionLimits::default()).await?;
        let mut registry = Registry::default();
        tavi_modules::register(&mut registry, &parts)?;
        for _ in 0..idle {
            registry.on_sent(Phase::Annotate, Arc::new(Idle));
            registry.on_received(Phase::Annotate, Arc::new(Idle));
            registry.on_undelivered(Arc::new(Idle));
            registry.on_kept(Arc::new(Idle));
            registry.on_session(Arc::new(Idle));
        }
        let node = Node::new(parts, registry);
        let (romeo, _) =
            node.bind(&"romeo@localhost/orchard".parse()?).await.map_err(|_| anyhow::anyhow!("no seat"))?;
        let (juliet, _) =
            node.bind(&"juliet@localhost/balcony".parse()?).await.map_err(|_| anyhow::anyhow!("no seat"))?;
        Ok(World { node, romeo, juliet })
    }

    /// Nanoseconds of CPU for one message, from `route` to where the receiver's session takes it.
    async fn round(&self, messages: usize) -> anyhow::Result<f64> {
        let to: Jid = self.juliet.jid().clone();
        let text =
            format!("<message to='{}' type='chat' id='m'><body>{}</body></message>", to.as_str(), "x".repeat(100));
        let mut stanza = Stanza::parse(text.as_bytes())?;
        stanza.head.from = Some(self.romeo.jid().clone());
        let stanza = Arc::new(stanza);
        let start = on_cpu()?;
        for _ in 0..messages {
            let env = Envelope::received(stanza.clone(), Origin::Plain, 0);
            self.node.route(env).await.complete().await?;
            anyhow::ensure!(self.juliet.take().len() == 1, "the message did not come");
        }
        Ok((on_cpu()? - start) / messages as f64)
    }
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
async fn main() -> anyhow::Result<()> {
    let messages: usize = std::env::args().nth(1).map_or(Ok(100_000), |n| n.parse())?;
    let (with, more) = (World::new(0).await?, World::new(20).await?);
    let (mut base, mut idle) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        base.push(with.round(messages).await?);
        idle.push(more.round(messages).await?);
    }
    let (base, idle) = (median(base), median(idle));
    println!(
        "a chat message: {base:.0} ns; with 20 modules that do nothing {idle:.0} ns ({:+.1} ns each)",
        (idle - base) / 20.0
    );
    Ok(())
}

/// How long this process's first thread was on a CPU, in nanoseconds.
fn on_cpu() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/schedstat")?;
    Ok(stat.split_whitespace().next().unwrap_or_default().parse()?)
}

fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}
