//! What is counted, and its text for Prometheus.

use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count since the start.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Raises it.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Lowers it.
    pub fn sub(&self, n: i64) {
        self.0.fetch_sub(n, Relaxed);
    }

    /// Sets it.
    pub fn set(&self, n: i64) {
        self.0.store(n, Relaxed);
    }

    /// Its value now.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// The protocols that a count is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// XMPP client streams.
    Xmpp,
    /// MQTT.
    Mqtt,
    /// CoAP.
    Coap,
    /// Bots inside the broker.
    Bot,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It came in.
    Received,
    /// It went out to a receiver.
    Delivered,
    /// It was kept for a receiver who was away.
    Stored,
    /// It was dropped because a receiver was too slow, or, in MQTT 3.1.1, was not permitted.
    Dropped,
    /// It was refused with an error.
    Refused,
}

const PROTOCOLS: [&str; 4] = ["xmpp", "mqtt", "coap", "bot"];
const OUTCOMES: [&str; 5] = ["received", "delivered", "stored", "dropped", "refused"];

/// The node's counts. All are cheap enough for each message.
#[derive(Debug, Default)]
pub struct Metrics {
    connections: [Gauge; 4],
    messages: [[Counter; 5]; 4],
    /// Logins that failed.
    pub login_failures: Counter,
    /// Connections that were refused or cut for breaking a protocol or a limit.
    pub protocol_errors: Counter,
    /// Sessions that ended and whose last tickets are still open.
    pub draining: Gauge,
}

impl Metrics {
    /// The open connections (CoAP: known peers) of a protocol.
    pub fn connections(&self, protocol: Protocol) -> &Gauge {
        &self.connections[protocol as usize]
    }

    /// The messages of a protocol with an outcome.
    pub fn messages(&self, protocol: Protocol, outcome: Outcome) -> &Counter {
        &self.messages[protocol as usize][outcome as usize]
    }

    /// Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(2048);
        family(&mut out, "tavi_connections", "gauge", "Open connections.");
        for (gauge, name) in self.connections.iter().zip(PROTOCOLS) {
            line(&mut out, &format!("tavi_connections{{protocol=\"{name}\"}}"), gauge.get());
        }
        family(&mut out, "tavi_messages_total", "counter", "Messages by protocol and outcome.");
        for (row, protocol) in self.messages.iter().zip(PROTOCOLS) {
            for (counter, outcome) in row.iter().zip(OUTCOMES) {
                let name = format!("tavi_messages_total{{protocol=\"{protocol}\",outcome=\"{outcome}\"}}");
                line(&mut out, &name, counter.get());
            }
        }
        family(&mut out, "tavi_login_failures_total", "counter", "Logins that failed.");
        line(&mut out, "tavi_login_failures_total", self.login_failures.get());
        family(&mut out, "tavi_protocol_errors_total", "counter", "Connections cut for breaking a protocol or limit.");
        line(&mut out, "tavi_protocol_errors_total", self.protocol_errors.get());
        family(&mut out, "tavi_sessions_draining", "gauge", "Ended sessions whose last messages are being saved.");
        line(&mut out, "tavi_sessions_draining", self.draining.get());
        out
    }
}

/// Writes the two comment lines of a metric family.
pub fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String can not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Writes one sample.
pub fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    // Writing to a String can not fail.
    let _ = writeln!(out, "{name} {value}");
}
