//! The well-behaved, who must not feel a flood: two people who chat, and a pair of MQTT clients.

use std::net::SocketAddr;

use tavi_testkit::Broker;
use tavi_testkit::mqtt::MqttClient;
use tavi_testkit::mqtt_wire::{Connect, Packet, Publish, Version};
use tavi_testkit::xmpp::XmppClient;
use tavi_xmpp_proto::Element;

const CLIENT: &str = "jabber:client";
const PASSWORD: &str = "a password of the tests";

/// Makes the two accounts.
pub fn settle_in(broker: &Broker) {
    for jid in ["caller@localhost", "reader@localhost"] {
        broker.add_user(jid, PASSWORD).unwrap();
    }
}

/// A session of the account on XMPP, available.
pub async fn xmpp(address: SocketAddr, user: &str) -> XmppClient {
    let client = log_in(address, user).await;
    client.settle().await.unwrap();
    client
}

/// As [`xmpp`], but whether the broker has heard of the presence is not waited for.
pub async fn log_in(address: SocketAddr, user: &str) -> XmppClient {
    let mut client = XmppClient::connect(address, "localhost").await.unwrap();
    client.log_in(user, PASSWORD).await.unwrap();
    client.send(&Element::new(CLIENT, "presence")).unwrap();
    client
}

/// A clean session of the account on MQTT 5.
pub async fn mqtt(address: SocketAddr, user: &str, client_id: &str) -> MqttClient {
    MqttClient::connect(address, &connect(user, client_id, PASSWORD)).await.unwrap().0
}

pub fn connect(user: &str, client_id: &str, password: &str) -> Connect {
    Connect {
        version: Version::V5,
        client_id: client_id.into(),
        login: Some((user.into(), password.into())),
        clean: true,
        will: None,
        keep_alive: 0,
    }
}

pub fn message(to: &str, body: &str) -> Element {
    let text = Element::new(CLIENT, "body").text(body.to_owned());
    Element::new(CLIENT, "message").attr("type", "chat").attr("to", to.to_owned()).child(text)
}

/// The body of the next message, unless the stream ends.
pub async fn next_body(reader: &XmppClient) -> anyhow::Result<String> {
    let body = |e: &Element| e.get_child(CLIENT, "body").filter(|_| e.is(CLIENT, "message")).map(Element::text_content);
    reader.take("a message", body).await
}

pub fn publication(topic: &str, qos: u8, payload: Vec<u8>) -> Publish {
    Publish { topic: topic.into(), payload, qos, retain: false, duplicate: false, id: 0 }
}

/// Two people log in and chat.
pub async fn chat(broker: &Broker) {
    let address = broker.address("xmpp").unwrap();
    let (caller, reader) = (xmpp(address, "caller").await, xmpp(address, "reader").await);
    for n in 0..10 {
        caller.send(&message("reader@localhost", &format!("line {n}"))).unwrap();
        assert_eq!(next_body(&reader).await.unwrap(), format!("line {n}"));
    }
    caller.close().await.unwrap();
    reader.close().await.unwrap();
}

/// A client publishes what another one of the same person has subscribed to.
pub async fn telemetry(broker: &Broker) {
    let address = broker.address("mqtt").unwrap();
    let (sensor, screen) = (mqtt(address, "reader", "sensor").await, mqtt(address, "reader", "screen").await);
    screen.subscribe("u/reader/#", 1).await.unwrap();
    for n in 0..10_u8 {
        sensor.publish(publication("u/reader/t", 1, vec![n])).await.unwrap();
        assert_eq!(payload(&screen).await, [n]);
    }
    sensor.disconnect().await.unwrap();
    screen.disconnect().await.unwrap();
}

/// The payload of the next publication.
pub async fn payload(client: &MqttClient) -> Vec<u8> {
    let payload = |packet: &Packet| match packet {
        Packet::Publish(publish) => Some(publish.payload.clone()),
        _ => None,
    };
    client.take("a publication", payload).await.unwrap()
}
