//! The limits that the operator can set, each with its default and unit.

use serde::Deserialize;
use std::time::Duration;
use tavi_core::homes::SessionLimits;

/// `[limits]`; what is not set keeps the default of its front end.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    grants_per_subject: Option<usize>,
    retained_topics: Option<u64>,
    retained_bytes: Option<u64>,
    #[serde(default)]
    xmpp: Xmpp,
    #[serde(default)]
    mqtt: Mqtt,
    #[serde(default)]
    coap: Coap,
    #[serde(default)]
    rooms: Rooms,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Xmpp {
    stanza_bytes: Option<usize>,
    login_seconds: Option<u64>,
    connections: Option<usize>,
    unacknowledged: Option<usize>,
    unacknowledged_bytes: Option<usize>,
    acknowledge_seconds: Option<u64>,
    resume_seconds: Option<u64>,
    inbox_stanzas: Option<usize>,
    inbox_bytes: Option<usize>,
    sessions_per_account: Option<usize>,
    kept_messages: Option<usize>,
    kept_bytes: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mqtt {
    packet_bytes: Option<u32>,
    connect_seconds: Option<u64>,
    connections: Option<usize>,
    receive_maximum: Option<u16>,
    in_flight: Option<u16>,
    queue_messages: Option<usize>,
    queue_bytes: Option<usize>,
    stored_messages: Option<usize>,
    stored_bytes: Option<usize>,
    durable_sessions: Option<usize>,
    session_expiry_seconds: Option<u32>,
    subscriptions: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Coap {
    observers_per_peer: Option<usize>,
    observers: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rooms {
    occupants: Option<usize>,
    history_messages: Option<usize>,
    history_bytes: Option<usize>,
    affiliations: Option<usize>,
    rooms_per_account: Option<usize>,
    rooms: Option<usize>,
}

/// RFC 6120 §13.12: a stanza limit may not be smaller.
const LEAST_STANZA: u64 = 10_000;
/// The most of what is counted in items, and in bytes.
const ITEMS: u64 = 100_000_000;
const BYTES: u64 = 1 << 40;
/// MQTT 5 §2.1.4: the longest remaining length, and so the largest packet.
const MQTT_PACKET: u64 = 268_435_455;
const DAY: u64 = 86_400;

impl Limits {
    /// Whether every key that is set is in its range.
    ///
    /// # Errors
    /// The first that is not, with its name and range.
    pub fn check(&self) -> anyhow::Result<()> {
        let (x, m, c, r) = (&self.xmpp, &self.mqtt, &self.coap, &self.rooms);
        let size = |n: Option<usize>| n.map(|n| n as u64);
        for (key, value, least, most) in [
            ("[limits] grants_per_subject", size(self.grants_per_subject), 1, ITEMS),
            ("[limits] retained_topics", self.retained_topics, 1, ITEMS),
            ("[limits] retained_bytes", self.retained_bytes, 1, BYTES),
            ("[limits.xmpp] stanza_bytes", size(x.stanza_bytes), LEAST_STANZA, 1 << 30),
            ("[limits.xmpp] login_seconds", x.login_seconds, 1, DAY),
            ("[limits.xmpp] connections", size(x.connections), 1, ITEMS),
            ("[limits.xmpp] unacknowledged", size(x.unacknowledged), 1, ITEMS),
            ("[limits.xmpp] inbox_stanzas", size(x.inbox_stanzas), 1, ITEMS),
            ("[limits.xmpp] inbox_bytes", size(x.inbox_bytes), 1, BYTES),
            ("[limits.xmpp] sessions_per_account", size(x.sessions_per_account), 1, ITEMS),
            ("[limits.mqtt] packet_bytes", m.packet_bytes.map(u64::from), 128, MQTT_PACKET),
            ("[limits.mqtt] connect_seconds", m.connect_seconds, 1, DAY),
            ("[limits.mqtt] connections", size(m.connections), 1, ITEMS),
            ("[limits.mqtt] receive_maximum", m.receive_maximum.map(u64::from), 1, 65_535),
            ("[limits.mqtt] in_flight", m.in_flight.map(u64::from), 1, 65_535),
            ("[limits.mqtt] queue_messages", size(m.queue_messages), 1, ITEMS),
            ("[limits.mqtt] queue_bytes", size(m.queue_bytes), 1, BYTES),
            ("[limits.mqtt] stored_messages", size(m.stored_messages), 1, 10_000_000),
            ("[limits.mqtt] subscriptions", size(m.subscriptions), 1, ITEMS),
            ("[limits.coap] observers_per_peer", size(c.observers_per_peer), 1, ITEMS),
            ("[limits.coap] observers", size(c.observers), 1, ITEMS),
            ("[limits.rooms] occupants", size(r.occupants), 1, 100_000),
            ("[limits.rooms] history_messages", size(r.history_messages), 0, 1_000),
            ("[limits.rooms] history_bytes", size(r.history_bytes), 0, BYTES),
            ("[limits.rooms] affiliations", size(r.affiliations), 1, 5_000),
            ("[limits.rooms] rooms_per_account", size(r.rooms_per_account), 0, ITEMS),
            ("[limits.rooms] rooms", size(r.rooms), 0, ITEMS),
        ] {
            if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
                anyhow::bail!("{key} = {value}: it has to be from {least} to {most}");
            }
        }
        Ok(())
    }

    /// How many grants one subject may have, those of the nodes that it created among them.
    pub fn grants_per_subject(&self) -> usize {
        self.grants_per_subject.unwrap_or(tavi_core::permit::DEFAULT_QUOTA)
    }

    /// What one person, device or bot may keep in topics.
    pub fn retained(&self) -> tavi_core::topics::Quota {
        let mut quota = tavi_core::topics::Quota::default();
        set(&mut quota.topics, self.retained_topics);
        set(&mut quota.bytes, self.retained_bytes);
        quota
    }

    /// Those of XMPP streams.
    pub fn xmpp(&self) -> tavi_xmpp::Config {
        let mut config = tavi_xmpp::Config::default();
        set(&mut config.stanza.stanza, self.xmpp.stanza_bytes);
        set(&mut config.login_deadline, self.xmpp.login_seconds.map(Duration::from_secs));
        set(&mut config.max_connections, self.xmpp.connections);
        set(&mut config.unacknowledged, self.xmpp.unacknowledged);
        set(&mut config.unacknowledged_bytes, self.xmpp.unacknowledged_bytes);
        set(&mut config.acknowledge_deadline, self.xmpp.acknowledge_seconds.map(Duration::from_secs));
        set(&mut config.resume, self.xmpp.resume_seconds.map(Duration::from_secs));
        config
    }

    /// Those of what waits for XMPP sessions and bots.
    pub fn sessions(&self) -> SessionLimits {
        let mut limits = SessionLimits::default();
        set(&mut limits.inbox_items, self.xmpp.inbox_stanzas);
        set(&mut limits.inbox_bytes, self.xmpp.inbox_bytes);
        set(&mut limits.per_account, self.xmpp.sessions_per_account);
        set(&mut limits.kept_items, self.xmpp.kept_messages);
        set(&mut limits.kept_bytes, self.xmpp.kept_bytes);
        limits
    }

    /// Those of MQTT.
    pub fn mqtt(&self) -> tavi_mqtt::Config {
        let mut config = tavi_mqtt::Config::default();
        set(&mut config.max_packet, self.mqtt.packet_bytes);
        set(&mut config.connect_timeout, self.mqtt.connect_seconds.map(Duration::from_secs));
        set(&mut config.max_connections, self.mqtt.connections);
        set(&mut config.receive_maximum, self.mqtt.receive_maximum);
        set(&mut config.in_flight, self.mqtt.in_flight);
        set(&mut config.queue_messages, self.mqtt.queue_messages);
        set(&mut config.queue_bytes, self.mqtt.queue_bytes);
        set(&mut config.stored_messages, self.mqtt.stored_messages);
        set(&mut config.stored_bytes, self.mqtt.stored_bytes);
        set(&mut config.max_durable_sessions, self.mqtt.durable_sessions);
        set(&mut config.max_session_expiry, self.mqtt.session_expiry_seconds);
        set(&mut config.max_subscriptions, self.mqtt.subscriptions);
        config
    }

    /// Those of modules.
    pub fn modules(&self) -> tavi_modules::Settings {
        let mut settings = tavi_modules::Settings::default();
        let (rooms, own) = (&mut settings.rooms, &self.rooms);
        set(&mut rooms.occupants, own.occupants);
        set(&mut rooms.history_items, own.history_messages);
        set(&mut rooms.history_bytes, own.history_bytes);
        set(&mut rooms.affiliations, own.affiliations);
        set(&mut rooms.rooms_per_account, own.rooms_per_account);
        set(&mut rooms.rooms, own.rooms);
        settings
    }

    /// Those of one CoAP socket.
    pub fn coap(&self) -> tavi_coap::service::Limits {
        let mut limits = tavi_coap::service::Limits::default();
        set(&mut limits.observers.per_peer, self.coap.observers_per_peer);
        set(&mut limits.observers.all, self.coap.observers);
        limits
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_used_and_the_rest_keeps_its_default() {
        let limits: Limits = toml::from_str(
            "[xmpp]\nlogin_seconds = 3\nstanza_bytes = 20000\n[mqtt]\nin_flight = 7\n[rooms]\nrooms = 0\n",
        )
        .unwrap();
        assert_eq!((limits.modules().rooms.rooms, limits.modules().rooms.occupants), (0, 1_000));
        assert_eq!(limits.xmpp().login_deadline, Duration::from_secs(3));
        assert_eq!(limits.xmpp().stanza.stanza, 20_000);
        assert_eq!(limits.mqtt().in_flight, 7);
        assert_eq!(limits.mqtt().max_packet, tavi_mqtt::Config::default().max_packet);
        assert!(toml::from_str::<Limits>("[coap]\nobserver = 1\n").is_err());
    }
}
