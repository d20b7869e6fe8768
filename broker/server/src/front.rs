//! The front ends: started over the open sockets, stopped in order.

use crate::{
    admin::Office,
    config::{Config, Key},
    listen::Open,
    tls::Tls,
};
use anyhow::Result;
use std::{future::Future, sync::Arc};
use tavi_core::{Node, journal::Book, metrics};
use tavi_store_kv::{CommitStats, Histogram, KvStore};
use tavi_web::{
    Limits,
    http::{Health, Pages},
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

/// What the front ends are made of.
pub struct Start<'a> {
    pub node: &'a Node,
    pub tls: &'a Tls,
    pub config: &'a Config,
    pub store: &'a Arc<KvStore>,
    pub office: Arc<Office>,
}

/// The running front ends.
pub struct Fronts {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    coap: Vec<tavi_coap::Endpoint>,
    mqtt: Arc<tavi_mqtt::Hub>,
    xmpp: Arc<tavi_xmpp::Xmpp>,
    bots: tavi_bots::Bots,
}

/// Starts everything that listens; streams of an earlier process go on.
pub async fn start(start: Start<'_>, streams: Book, open: Vec<(Key, Open)>) -> Result<Fronts> {
    let xmpp = xmpp(&start);
    xmpp.restore(start.node.restore(streams).await?);
    start.node.parts.journal.open();
    let mqtt = tavi_mqtt::Hub::recall(start.node.clone(), start.config.limits.mqtt()).await?;
    start.office.set_mqtt(mqtt.clone());
    let bots = tavi_bots::Bots::start(start.node.clone(), start.config.bots.clone()).await?;
    if let Err(error) = bots.watch() {
        tracing::warn!(%error, "changes of bots are read on SIGHUP only");
    }
    let mut fronts =
        Fronts { stop: watch::Sender::new(false), tasks: JoinSet::new(), coap: Vec::new(), mqtt, xmpp, bots };
    fronts.tasks.spawn(fronts.mqtt.clone().run());
    for (key, sockets) in open {
        match sockets {
            Open::Udp(sockets) => {
                for socket in sockets {
                    fronts.coap.push(tavi_coap::Endpoint::serve(
                        (&start.node.parts).into(),
                        start.config.limits.coap(),
                        socket,
                    )?);
                }
            }
            Open::Tcp(listeners) => listeners.into_iter().for_each(|listener| fronts.listen(&start, key, listener)),
        }
    }
    let admin = tavi_fleet::socket::bind(&start.config.data)?;
    let stopped = fronts.stopped();
    fronts.tasks.spawn(tavi_web::admin::serve(admin, start.office.clone(), Limits::default(), stopped));
    Ok(fronts)
}

fn xmpp(start: &Start<'_>) -> Arc<tavi_xmpp::Xmpp> {
    let tls = tavi_xmpp::Tls {
        starttls: start.tls.starttls.clone(),
        direct: start.tls.xmpps.clone(),
        certificate: start.tls.certificate.clone(),
    };
    tavi_xmpp::Xmpp::new(start.node.clone(), Some(tls), start.config.limits.xmpp())
}

impl Fronts {
    fn listen(&mut self, start: &Start<'_>, key: Key, listener: TcpListener) {
        let mqtt = self.mqtt.clone();
        let stop = self.stop.subscribe();
        let site = || Arc::new(Site { node: start.node.clone(), store: start.store.clone(), mqtt, stop });
        match key {
            Key::Http => {
                let stopped = self.stopped();
                self.tasks.spawn(tavi_web::http::serve(listener, site(), Limits::default(), stopped));
            }
            Key::Https => {
                let listener = tavi_web::Tls::new(listener, start.tls.https.clone());
                let stopped = self.stopped();
                self.tasks.spawn(tavi_web::http::serve(listener, site(), Limits::default(), stopped));
            }
            Key::Mqtt => {
                self.tasks.spawn(self.mqtt.clone().listen(listener));
            }
            Key::Mqtts => {
                self.tasks.spawn(self.mqtt.clone().listen_tls(listener, start.tls.mqtts.clone()));
            }
            Key::Xmpp => {
                self.tasks.spawn(self.xmpp.clone().listen(listener));
            }
            Key::Xmpps => {
                self.tasks.spawn(self.xmpp.clone().listen_tls(listener));
            }
            Key::Coap => unreachable!("CoAP's sockets are UDP"),
        }
    }

    /// Ready when the broker stops.
    fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stop = self.stop.subscribe();
        async move {
            // The sender lives as long as the broker.
            let _ = stop.wait_for(|stop| *stop).await;
        }
    }

    /// Stops accepting, ends the streams, and waits for their sessions.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.mqtt.stop();
        self.xmpp.stop().await;
        for endpoint in self.coap {
            endpoint.stop().await;
        }
        self.mqtt.stopped().await;
        while self.tasks.join_next().await.is_some() {}
        self.bots.stop().await;
    }

    /// Reads the bots again.
    pub async fn reload_bots(&self) {
        self.bots.reload().await;
    }
}

/// `/metrics`, `/healthz` and `/readyz`.
struct Site {
    node: Node,
    store: Arc<KvStore>,
    mqtt: Arc<tavi_mqtt::Hub>,
    stop: watch::Receiver<bool>,
}

impl Pages for Site {
    fn metrics(&self) -> String {
        let mut out = self.node.parts.metrics.render();
        let (subscriptions, retained) = self.node.parts.topics.counts();
        metrics::family(&mut out, "tavi_queue_length", "gauge", "What waits in memory for receivers.");
        metrics::line(&mut out, "tavi_queue_length{protocol=\"xmpp\"}", self.node.parts.homes.waiting());
        metrics::line(&mut out, "tavi_queue_length{protocol=\"mqtt\"}", self.mqtt.waiting());
        metrics::family(&mut out, "tavi_subscriptions", "gauge", "Topic subscriptions.");
        metrics::line(&mut out, "tavi_subscriptions", subscriptions);
        metrics::family(&mut out, "tavi_retained", "gauge", "Topics with a retained value.");
        metrics::line(&mut out, "tavi_retained", retained);
        commit_metrics(&mut out, &self.store.stats());
        out
    }

    fn health(&self) -> Health {
        if self.store.stats().failed > 0 {
            Health::Bad("the store has failed; see the log".into())
        } else {
            Health::Good
        }
    }

    fn ready(&self) -> Health {
        if *self.stop.borrow() { Health::Bad("the broker stops".into()) } else { self.health() }
    }
}

fn commit_metrics(out: &mut String, stats: &CommitStats) {
    metrics::family(out, "tavi_commit_seconds", "histogram", "From handing a commit in to its being on disk.");
    histogram(out, "tavi_commit_seconds", &stats.latency_us, 1e6);
    metrics::family(out, "tavi_commit_batch", "histogram", "Commits that shared one flush.");
    histogram(out, "tavi_commit_batch", &stats.batch, 1.0);
    metrics::family(out, "tavi_commits_waiting", "gauge", "Commits handed in and not yet on disk.");
    metrics::line(out, "tavi_commits_waiting", stats.waiting);
}

/// `per_unit` is how many of the histogram's units make one of the metric's.
fn histogram(out: &mut String, name: &str, histogram: &Histogram, per_unit: f64) {
    let mut below = 0;
    for (n, count) in histogram.counts.iter().enumerate() {
        below += count;
        let bound = histogram.bounds.get(n).map_or("+Inf".to_owned(), |bound| (*bound as f64 / per_unit).to_string());
        metrics::line(out, &format!("{name}_bucket{{le=\"{bound}\"}}"), below);
    }
    metrics::line(out, &format!("{name}_sum"), histogram.sum as f64 / per_unit);
    metrics::line(out, &format!("{name}_count"), below);
}
