//! The stage of a scenario: the broker, the actors, their sessions.

use std::collections::HashMap;

use anyhow::{Context, ensure};

use crate::broker::Broker;
use crate::coap::CoapClient;
use crate::mqtt::MqttClient;
use crate::xmpp::XmppClient;

/// Everything that a step can touch.
#[derive(Default)]
pub struct Stage {
    broker: Option<Broker>,
    config: Option<String>,
    scripts: Vec<(String, String)>,
    actors: HashMap<String, Actor>,
    sessions: HashMap<Key, Session>,
    /// Ids of messages by their text, for receipts.
    pub message_ids: HashMap<String, String>,
}

/// An actor's name and session, as `("Pump", "mqtt 3.1.1")`.
pub type Key = (String, String);

/// Who somebody is.
#[derive(Clone, Debug)]
pub struct Actor {
    /// What topics call it: a device's id, an account's local part, a bot's name.
    pub id: String,
    /// The bare JID; empty for somebody without one.
    pub jid: String,
    /// Password or generated secret.
    pub secret: String,
}

/// One open connection.
pub enum Session {
    /// An XMPP stream.
    Xmpp(XmppClient),
    /// An MQTT connection.
    Mqtt(MqttClient),
    /// A CoAP endpoint.
    Coap(CoapClient),
}

impl Stage {
    /// The broker, started by the first step that needs it.
    pub fn broker(&mut self) -> anyhow::Result<&mut Broker> {
        if self.broker.is_none() {
            self.broker = Some(self.start()?);
        }
        self.broker.as_mut().context("the broker was started just now")
    }

    fn start(&mut self) -> anyhow::Result<Broker> {
        let scripts = std::mem::take(&mut self.scripts);
        Broker::start_with(self.config.as_deref().unwrap_or(""), &scripts)
    }

    /// Sets the configuration of a broker that does not run yet.
    pub fn configure(&mut self, config: String) -> anyhow::Result<()> {
        ensure!(self.broker.is_none(), "the broker runs already");
        self.config = Some(config);
        Ok(())
    }

    /// Gives the broker a bot, before its start or while it runs.
    pub fn add_bot(&mut self, name: String, script: String) -> anyhow::Result<()> {
        let jid = format!("{name}@bots.localhost");
        self.add(&name, Actor { id: name.clone(), jid, secret: String::new() });
        match &self.broker {
            Some(broker) => broker.write_bot(&name, &script)?,
            None => self.scripts.push((name, script)),
        }
        Ok(())
    }

    /// Adds an actor, or changes who the name is.
    pub fn add(&mut self, name: &str, actor: Actor) {
        self.actors.insert(name.into(), actor);
    }

    /// Who this is.
    pub fn actor(&self, name: &str) -> anyhow::Result<Actor> {
        self.actors.get(name).cloned().with_context(|| format!("nobody said who {name} is"))
    }

    /// Who this is, as a JID; a name with an `@` is one already.
    pub fn jid(&self, name: &str) -> anyhow::Result<String> {
        if name.contains('@') { Ok(name.into()) } else { Ok(self.actor(name)?.jid) }
    }

    /// Keeps a session; one of the same key is dropped, which cuts its connection.
    pub fn keep(&mut self, key: &Key, session: Session) {
        self.sessions.insert(key.clone(), session);
    }

    /// Takes a session away.
    pub fn remove(&mut self, key: &Key) -> anyhow::Result<Session> {
        self.sessions.remove(key).with_context(|| format!("{} ({}) has no connection", key.0, key.1))
    }

    /// A session that is open.
    pub fn session(&self, key: &Key) -> anyhow::Result<&Session> {
        self.sessions.get(key).with_context(|| format!("{} ({}) has no connection", key.0, key.1))
    }

    /// Drops every session.
    pub fn hang_up(&mut self) {
        self.sessions.clear();
    }

    /// Replaces `{Name}` by that actor's id and `{Name.jid}` by its JID.
    pub fn resolve(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (name, actor) in &self.actors {
            out = out.replace(&format!("{{{name}}}"), &actor.id).replace(&format!("{{{name}.jid}}"), &actor.jid);
        }
        out
    }

    /// The end of the broker's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.broker.as_ref().map(Broker::log).unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        let tail = all[all.len().saturating_sub(lines)..].join("\n  ");
        format!("  the broker's log ends with\n  {tail}")
    }
}
