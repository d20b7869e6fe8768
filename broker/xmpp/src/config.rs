//! Limits of the XMPP front end.

use std::time::Duration;

use tavi_xmpp_proto::Limits;

/// What clients may take. Each number can be set by the operator.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// From the connection to a bound resource; 30 s by default.
    pub login_deadline: Duration,
    /// How long the last words to a client may take; 2 s by default.
    pub farewell_deadline: Duration,
    /// Connections at the same time; 100,000 by default. As many sessions may wait without one, to be resumed.
    pub max_connections: usize,
    /// Of stanzas after login (RFC 6120 §13.12); 256 KiB, 100 levels, 64 attributes by default.
    pub stanza: Limits,
    /// Stanzas that may be on their way to a client with stream management, unacknowledged; 1,000 by default. It gets
    /// more when it acknowledges.
    pub unacknowledged: usize,
    /// The same in bytes; 4 MiB by default.
    pub unacknowledged_bytes: usize,
    /// How long a client may take to acknowledge when it gets nothing more before, or to take any of what is written to
    /// it; 60 s by default.
    pub acknowledge_deadline: Duration,
    /// How long a session whose connection is gone waits to be resumed (XEP-0198 §5); 300 s by default, 0 for never.
    pub resume: Duration,
    /// Silence after which TCP itself asks whether the peer is alive; 120 s by default.
    pub tcp_keepalive: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            login_deadline: Duration::from_secs(30),
            farewell_deadline: Duration::from_secs(2),
            max_connections: 100_000,
            stanza: Limits::default(),
            unacknowledged: 1_000,
            unacknowledged_bytes: 4 << 20,
            acknowledge_deadline: Duration::from_secs(60),
            resume: Duration::from_secs(300),
            tcp_keepalive: Duration::from_secs(120),
        }
    }
}
