//! What an operator does with MQTT sessions: lists, shows and ends them, page by page, over a restart too.

use serde_json::{Value, json};
use tavi_testkit::Broker;
use tavi_testkit::mqtt::MqttClient;
use tavi_testkit::mqtt_wire::{Connect, Packet, Publish, Version};

const PASSWORD: &str = "a password of the tests";

fn connect(client_id: &str, version: Version, clean: bool) -> Connect {
    let login = Some(("reader".into(), PASSWORD.into()));
    Connect { version, client_id: client_id.into(), login, clean, will: None, keep_alive: 0 }
}

/// Client ids of a page, and where the next one begins.
fn clients(page: &Value) -> (Vec<&str>, Option<&str>) {
    let sessions = page["sessions"].as_array().unwrap().iter();
    (sessions.map(|session| session["client"].as_str().unwrap()).collect(), page["next"].as_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_listed_shown_and_ended() {
    let mut broker = Broker::start().unwrap();
    for user in ["reader", "other"] {
        broker.add_user(&format!("{user}@localhost"), PASSWORD).unwrap();
    }
    let address = broker.address("mqtt").unwrap();
    for client in ["away", "gone/for ever"] {
        let (client, _) = MqttClient::connect(address, &connect(client, Version::V4, false)).await.unwrap();
        client.subscribe("u/reader/t", 1).await.unwrap();
        client.disconnect().await.unwrap();
    }
    let (here, _) = MqttClient::connect(address, &connect("here", Version::V5, true)).await.unwrap();
    let payload = b"kept".to_vec();
    let publish = Publish { topic: "u/reader/t".into(), payload, qos: 1, retain: false, duplicate: false, id: 0 };
    here.publish(publish).await.unwrap();
    let list = broker.tavi(&["session", "list"]).unwrap();
    assert_eq!(clients(&list), (vec!["away", "gone/for ever", "here"], None));
    let page = broker.tavi(&["session", "list", "--limit", "2", "--of", "reader@localhost"]).unwrap();
    assert_eq!(clients(&page), (vec!["away", "gone/for ever"], Some("reader@localhost/gone/for ever")));
    let next = broker.tavi(&["session", "list", "--after", page["next"].as_str().unwrap()]).unwrap();
    assert_eq!(clients(&next), (vec!["here"], None));
    assert_eq!(clients(&broker.tavi(&["session", "list", "--of", "other@localhost"]).unwrap()), (vec![], None));
    let shown = broker.tavi(&["session", "show", "reader@localhost", "away"]).unwrap();
    assert_eq!(shown["filters"], json!([{"filter": "u/reader/t", "qos": 1}]));
    assert_eq!((&shown["connected"], &shown["durable"], &shown["stored"]), (&json!(false), &json!(true), &json!(1)));
    let ends_in = shown["ends_in"].as_u64().unwrap();
    assert!((7_775_000..=7_776_000).contains(&ends_in), "a session of 3.1.1 ends some day: {ends_in}");

    let ended = broker.tavi(&["session", "end", "reader@localhost", "gone/for ever"]).unwrap();
    assert_eq!(ended, json!({"removed": "reader@localhost gone/for ever"}));
    broker.tavi(&["session", "end", "reader@localhost", "here"]).unwrap();
    let code = |packet: &Packet| if let Packet::Disconnect(code) = packet { Some(*code) } else { None };
    assert_eq!(here.take("DISCONNECT", code).await.unwrap(), 0x98);
    let refused = broker.tavi(&["session", "end", "reader@localhost", "nobody"]).unwrap_err().to_string();
    assert!(refused.contains("no MQTT session"), "{refused}");
    let log = broker.log();
    assert!(log.contains("tavi::audit") && log.contains("the administrator ended an MQTT session"), "{log}");

    broker.kill9().unwrap();
    broker.start_again().unwrap();
    assert_eq!(clients(&broker.tavi(&["session", "list"]).unwrap()), (vec!["away"], None));
    let address = broker.address("mqtt").unwrap();
    let again = connect("gone/for ever", Version::V4, false);
    let (_client, present) = MqttClient::connect(address, &again).await.unwrap();
    assert!(!present, "what was ended does not come back");
}

#[test]
fn without_a_broker_the_command_says_what_to_do() {
    let mut broker = Broker::start().unwrap();
    broker.stop().unwrap();
    let error = broker.tavi(&["session", "list"]).unwrap_err().to_string();
    assert!(error.contains("no broker is running"), "{error}");
}

#[test]
fn the_first_password_lies_in_a_file_of_the_broker_s_user_and_not_in_the_log() {
    use std::os::unix::fs::PermissionsExt;
    let broker = Broker::start().unwrap();
    let file = broker.data().join("admin-password");
    let log = broker.log();
    assert!(log.contains("made the first account") && log.contains(file.to_str().unwrap()), "{log}");
    assert!(!log.contains("\"password\""), "{log}");
    let password = std::fs::read_to_string(&file).unwrap();
    assert!(password.trim().len() > 16 && !log.contains(password.trim()));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}
