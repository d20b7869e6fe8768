//! Steps of MQTT clients. `(mqtt)` speaks version 5, `(mqtt 3.1.1)` that one.

use anyhow::{bail, ensure};

use super::cast::{Actor, Key, Session, Stage};
use super::script::{Step, Word, bytes, cut, find};
use crate::mqtt::MqttClient;
use crate::mqtt_wire::{Connect, Packet, Publish, Version};

#[derive(Clone, Copy)]
enum Verb {
    Connects,
    ConnectsSilently,
    Subscribes,
    Publishes,
    PublishesSize,
    Sees,
    SeesNothing,
    IsDisconnected,
    Bytes,
    Disconnects,
    Loses,
}

const VOCABULARY: &[(&str, Verb)] = &[
    ("connects", Verb::Connects),
    ("connects and says nothing", Verb::ConnectsSilently),
    ("subscribes to {}", Verb::Subscribes),
    ("publishes {} to {}", Verb::Publishes),
    ("publishes {} bytes to {}", Verb::PublishesSize),
    ("sees {} on {}", Verb::Sees),
    ("sees nothing more", Verb::SeesNothing),
    ("is disconnected", Verb::IsDisconnected),
    ("sends the bytes {}", Verb::Bytes),
    ("disconnects", Verb::Disconnects),
    ("loses the connection", Verb::Loses),
];

/// What a step says besides its verb.
struct Manner {
    qos: u8,
    retained: bool,
    durable: bool,
    session_present: bool,
    will: Option<(String, Vec<u8>)>,
    password: Option<String>,
    code: Option<String>,
}

impl Manner {
    fn cut(words: &mut Vec<Word>) -> anyhow::Result<Self> {
        let qos = cut(words, "at QoS {}").map_or(Ok(1), |found| found[0].parse())?;
        let will = cut(words, "with the will {} on {}").map(|found| (found[1].clone(), found[0].clone().into_bytes()));
        Ok(Self {
            qos,
            will,
            retained: cut(words, "retained").is_some(),
            durable: cut(words, "with a durable session").is_some(),
            session_present: cut(words, "and finds the session").is_some(),
            password: cut(words, "with the password {}").map(|mut found| found.remove(0)),
            code: cut(words, "with {}").map(|mut found| found.remove(0)),
        })
    }
}

/// Performs a step of an actor's MQTT session.
pub async fn act(stage: &mut Stage, key: &Key, mut step: Step) -> anyhow::Result<()> {
    let manner = Manner::cut(&mut step.words)?;
    let (verb, words) = find(&step.words, VOCABULARY)?;
    match verb {
        Verb::Connects => connect(stage, key, manner).await,
        Verb::ConnectsSilently => {
            let client = MqttClient::connect_silently(stage.broker()?.address("mqtt")?, version(key)).await?;
            stage.keep(key, Session::Mqtt(client));
            Ok(())
        }
        Verb::Disconnects => client(stage.remove(key)?)?.disconnect().await,
        Verb::Loses => stage.remove(key).map(drop),
        _ => {
            let Session::Mqtt(client) = stage.session(key)? else { bail!("not an MQTT session") };
            perform(client, verb, &words, &manner).await
        }
    }
}

async fn perform(client: &MqttClient, verb: Verb, words: &[String], manner: &Manner) -> anyhow::Result<()> {
    match verb {
        Verb::Subscribes => client.subscribe(&words[0], manner.qos).await.map(drop),
        Verb::Publishes => client.publish(publish(&words[1], words[0].clone().into_bytes(), manner)).await,
        Verb::PublishesSize => client.publish(publish(&words[1], vec![b'x'; words[0].parse()?], manner)).await,
        Verb::Sees => sees(client, words, manner).await,
        Verb::SeesNothing => nothing_more(client).await,
        Verb::IsDisconnected => is_disconnected(client, manner).await,
        _ => client.send_bytes(bytes(&words[0])?),
    }
}

fn client(session: Session) -> anyhow::Result<MqttClient> {
    let Session::Mqtt(client) = session else { bail!("not an MQTT session") };
    Ok(client)
}

fn version(key: &Key) -> Version {
    if key.1.contains("3.1.1") { Version::V4 } else { Version::V5 }
}

async fn connect(stage: &mut Stage, key: &Key, manner: Manner) -> anyhow::Result<()> {
    let actor = stage.actor(&key.0)?;
    let address = stage.broker()?.address("mqtt")?;
    let wanted = manner.session_present;
    let (client, present) = MqttClient::connect(address, &hello(&actor, key, manner)).await?;
    stage.keep(key, Session::Mqtt(client));
    ensure!(present == wanted, "session present is {present}");
    Ok(())
}

/// A device's client id is its own id; an account may have any.
fn hello(actor: &Actor, key: &Key, manner: Manner) -> Connect {
    let device = actor.jid.ends_with("@things.localhost");
    Connect {
        version: version(key),
        client_id: if device { actor.id.clone() } else { format!("{} {}", key.0, key.1) },
        login: (!actor.id.is_empty()).then(|| (actor.id.clone(), manner.password.unwrap_or(actor.secret.clone()))),
        clean: !manner.durable,
        will: manner.will,
        keep_alive: 600,
    }
}

fn publish(topic: &str, payload: Vec<u8>, manner: &Manner) -> Publish {
    Publish { topic: topic.into(), payload, qos: manner.qos, retain: manner.retained, duplicate: false, id: 0 }
}

async fn sees(client: &MqttClient, words: &[String], manner: &Manner) -> anyhow::Result<()> {
    let wanted = |packet: &Packet| match packet {
        Packet::Publish(got) if got.payload == words[0].as_bytes() && got.topic == words[1] => Some(got.retain),
        _ => None,
    };
    let retained = client.take(&format!("{:?} on {}", words[0], words[1]), wanted).await?;
    ensure!(retained == manner.retained, "its RETAIN flag is {retained}");
    Ok(())
}

async fn nothing_more(client: &MqttClient) -> anyhow::Result<()> {
    client.settle().await?;
    let publish = |packet: &Packet| matches!(packet, Packet::Publish(_)).then(|| packet.clone());
    match client.take_now(publish) {
        None => Ok(()),
        Some(packet) => bail!("it sees {packet:?}"),
    }
}

async fn is_disconnected(client: &MqttClient, manner: &Manner) -> anyhow::Result<()> {
    if let Some(code) = &manner.code {
        let reason = |packet: &Packet| match packet {
            Packet::Disconnect(reason) | Packet::Connack { code: reason, .. } => Some(format!("0x{reason:02x}")),
            _ => None,
        };
        let reason = client.take("a reason", reason).await?;
        ensure!(reason == *code, "the reason is {reason}");
    }
    client.closed().await
}
