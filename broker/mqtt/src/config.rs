//! The limits of the MQTT front end, each with its default and unit.

use std::time::Duration;

use crate::seat::Room;
use crate::session::Bounds;

/// Limits; what a client can be told of, CONNACK tells it.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Largest packet in bytes; 1 MiB.
    pub max_packet: u32,
    /// Largest CONNECT in bytes; 64 KiB.
    pub max_connect: u32,
    /// Time from connect to CONNECT; 10 s.
    pub connect_timeout: Duration,
    /// Time for which a client may take nothing of what is written to it; 30 s.
    pub write_timeout: Duration,
    /// Silence after which the system asks whether the peer's machine is there; 120 s.
    pub tcp_keepalive: Duration,
    /// QoS 1 and 2 publishes of one client that may be open at once (Receive Maximum); 1,000.
    pub receive_maximum: u16,
    /// QoS 1 and 2 deliveries to one client that may be unacknowledged, if it takes that many; 256.
    pub in_flight: u16,
    /// Deliveries that may wait in memory for one client; 20,000.
    pub queue_messages: usize,
    /// Bytes of deliveries that may wait in memory for one client; 16 MiB.
    pub queue_bytes: usize,
    /// QoS 1 and 2 deliveries that are stored for one durable session; 1,000,000. More are dropped, logged and counted.
    pub stored_messages: usize,
    /// Bytes of them; 1 GiB.
    pub stored_bytes: usize,
    /// Subscriptions of one session; 10,000.
    pub max_subscriptions: usize,
    /// Durable sessions of one principal; 100.
    pub max_durable_sessions: usize,
    /// Longest session expiry in seconds, also of 3.1.1, which names none; 90 days.
    pub max_session_expiry: u32,
    /// Connections at once; 100,000.
    pub max_connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_packet: 1 << 20,
            max_connect: 64 << 10,
            connect_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            tcp_keepalive: Duration::from_secs(120),
            receive_maximum: 1_000,
            in_flight: 256,
            queue_messages: 20_000,
            queue_bytes: 16 << 20,
            stored_messages: 1_000_000,
            stored_bytes: 1 << 30,
            max_subscriptions: 10_000,
            max_durable_sessions: 100,
            max_session_expiry: 90 * 86_400,
            max_connections: 100_000,
        }
    }
}

impl Config {
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { receive_maximum: self.receive_maximum, in_flight: self.in_flight }
    }

    pub(crate) fn room(&self) -> Room {
        let (parcels, bytes) = (self.queue_messages, self.queue_bytes);
        Room { parcels, bytes, rows: self.stored_messages, row_bytes: self.stored_bytes }
    }
}
