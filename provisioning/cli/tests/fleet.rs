//! `tavi-fleet` as an operator runs it, against a broker that is played by a thread on a unix socket.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use tavi_enrol::key::PublicKey;
use tavi_enrol::token::{Attempt, Audience, verify};
use tempfile::TempDir;

/// A data folder with a played broker on it, and an empty folder that the operator works in.
struct Stage {
    data: TempDir,
    work: TempDir,
    heard: Arc<Mutex<Vec<String>>>,
}

type Play = fn(&str, Value) -> Option<(u16, Value)>;

impl Stage {
    /// `play` gets `METHOD PATH` and the body; `None` breaks the connection off without an answer.
    fn with(play: Play) -> Self {
        let stage = Self::empty();
        let listener = UnixListener::bind(stage.data.path().join("admin.sock")).unwrap();
        let heard = Arc::clone(&stage.heard);
        thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), play, &heard);
            }
        });
        stage
    }

    fn empty() -> Self {
        let folder = || tempfile::tempdir().unwrap();
        Self { data: folder(), work: folder(), heard: Arc::default() }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tavi-fleet"));
        command.args(arguments).arg("--local").arg(self.data.path()).current_dir(self.work.path());
        command.output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs what has to be refused with this status, and gives what stands on stderr.
    fn refused(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.work.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

fn serve(stream: UnixStream, play: Play, heard: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    let (mut request, mut length) = (String::new(), 0);
    reader.read_line(&mut request).unwrap();
    for line in reader.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()) {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let request = request.trim_end().trim_end_matches(" HTTP/1.1");
    heard.lock().unwrap().push(request.into());
    let Some((status, answer)) = play(request, serde_json::from_slice(&body).unwrap_or_default()) else { return };
    let (answer, mut stream) = (answer.to_string(), reader.into_inner());
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{answer}", answer.len()).unwrap();
}

const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
const ID: &str = "61e02c02-b7d0-849a-bcbd-b5e93fbe5b76";

/// A broker for `localhost` that takes each device and knows one grant.
fn willing(request: &str, body: Value) -> Option<(u16, Value)> {
    let grant = json!({"id": "7", "subject": "ann@localhost", "actions": "publish", "filter": "a/#"});
    Some(match request {
        "GET /v1/status" => {
            let listeners = json!({"mqtt": "127.0.0.1:1884"});
            (200, json!({"version": "0.1.0", "domain": "localhost", "uptime": 1, "listeners": listeners}))
        }
        "POST /v1/devices" => (201, row(&body, json!("s3cret"))),
        "GET /v1/devices" => (200, json!({"devices": [row(&json!({"public_key": KEY, "name": "Pump"}), Value::Null)]})),
        "GET /v1/grants?limit=1" => (200, json!({"grants": [grant], "next": "7"})),
        "GET /v1/grants" | "GET /v1/grants?subject=Ann%40Localhost" | "GET /v1/grants?subject=ann%40localhost" => {
            (200, json!({"grants": [grant]}))
        }
        "GET /v1/grants?subject=bob%40localhost" | "GET /v1/grants?after=7" => (200, json!({"grants": []})),
        "POST /v1/grants" => (201, [json!({"id": "8"}), body].into_iter().fold(json!({}), merge)),
        "DELETE /v1/grants/7" => (200, grant),
        _ if request == format!("DELETE /v1/devices/{ID}") => (200, json!({"removed": ID})),
        _ => (404, json!({"error": "not-found", "message": format!("no {request}")})),
    })
}

fn row(device: &Value, secret: Value) -> Value {
    let key: PublicKey = device["public_key"].as_str().unwrap().parse().unwrap();
    let id = key.device_id().to_string();
    let jid = format!("{id}@things.localhost");
    let row = json!({"id": id, "jid": jid, "state": "active", "created": 5, "secret": secret});
    merge(row, device.clone())
}

fn merge(mut into: Value, from: Value) -> Value {
    into.as_object_mut().unwrap().extend(from.as_object().unwrap().clone());
    into
}

/// Takes nothing.
fn refusing(request: &str, body: Value) -> Option<(u16, Value)> {
    match request {
        "POST /v1/devices" => {
            Some((409, json!({"error": "conflict", "message": "Pump is taken", "hint": "use another"})))
        }
        _ => willing(request, body),
    }
}

/// Dies while it adds a device.
fn dying(request: &str, body: Value) -> Option<(u16, Value)> {
    if request == "POST /v1/devices" { None } else { willing(request, body) }
}

#[test]
fn a_device_is_added_with_a_key_made_here() {
    let stage = Stage::with(willing);
    let added = stage.json(&["device", "add", "--name", "Pump"]);
    let id = added["id"].as_str().unwrap();
    let key: PublicKey = added["public_key"].as_str().unwrap().parse().unwrap();
    assert_eq!(key.device_id().to_string(), id);
    assert_eq!(added["jid"], format!("{id}@things.localhost"));
    assert_eq!((&added["secret"], &added["name"]), (&json!("s3cret"), &json!("Pump")));
    let file = Path::new(added["private_key_file"].as_str().unwrap());
    assert!(file.is_absolute() && stage.files() == [format!("{id}.key")]);
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(file).unwrap().starts_with("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw"));
}

#[test]
fn a_person_is_told_how_to_go_on() {
    let stage = Stage::with(willing);
    let output = stage.run(&["device", "add"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("mosquitto_pub -h 127.0.0.1 -p 1884 -i "), "{text}");
    assert!(text.contains(" -P s3cret -t d/"), "{text}");
}

#[test]
fn openssl_reads_the_private_key() {
    let stage = Stage::with(willing);
    let added = stage.json(&["device", "add"]);
    let file = added["private_key_file"].as_str().unwrap();
    let Ok(output) = Command::new("openssl").args(["pkey", "-in", file, "-pubout", "-outform", "DER"]).output() else {
        eprintln!("skipped: there is no openssl here");
        return;
    };
    assert_eq!(PublicKey::from_file(&output.stdout).unwrap().to_string(), added["public_key"].as_str().unwrap());
}

#[test]
fn a_device_that_made_its_key_itself_gets_no_private_key() {
    let stage = Stage::with(willing);
    fs::write(stage.work.path().join("pump.pub"), KEY).unwrap();
    let added = stage.json(&["device", "add", "--public-key", "pump.pub"]);
    assert_eq!((&added["id"], &added["private_key_file"]), (&json!(ID), &Value::Null));
    assert_eq!(stage.files(), ["pump.pub"]);
}

#[test]
fn a_private_key_never_leaves_the_machine() {
    let stage = Stage::with(willing);
    let added = stage.json(&["device", "add"]);
    let file = added["private_key_file"].as_str().unwrap();
    let told = stage.refused(1, &["device", "add", "--public-key", file]);
    assert!(told.contains("private key"), "{told}");
    let posts = stage.heard().into_iter().filter(|request| request.starts_with("POST")).count();
    assert_eq!(posts, 1);
}

#[test]
fn a_refused_device_leaves_no_file() {
    let stage = Stage::with(refusing);
    let told = stage.refused(1, &["device", "add", "--name", "Pump"]);
    assert_eq!(told, "tavi-fleet: Pump is taken\n  use another\n");
    let told: Value = serde_json::from_str(&stage.refused(1, &["device", "add", "--json"])).unwrap();
    assert_eq!(told, json!({"error": "conflict", "message": "Pump is taken", "hint": "use another"}));
    assert!(stage.files().is_empty());
}

#[test]
fn a_device_that_may_have_been_added_keeps_its_key() {
    let stage = Stage::with(dying);
    let told = stage.refused(1, &["device", "add"]);
    assert!(told.contains("not known") && told.contains("the private key is kept in /"), "{told}");
    assert_eq!(stage.files().len(), 1);
}

#[test]
fn a_key_that_can_not_be_written_adds_no_device() {
    let stage = Stage::with(willing);
    let told = stage.refused(1, &["device", "add", "--out", "missing"]);
    assert!(told.contains("could not be written"), "{told}");
    assert_eq!(stage.heard(), ["GET /v1/status"]);
}

#[test]
fn a_secret_that_can_not_be_shown_is_not_lost_silently() {
    let stage = Stage::with(willing);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tavi-fleet"));
    command.args(["device", "add", "--local"]).arg(stage.data.path()).current_dir(stage.work.path());
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command.stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("its secret is lost: remove it and add it again"));
}

#[test]
fn without_a_broker_the_operator_is_told_to_start_one() {
    let stage = Stage::empty();
    for command in [&["device", "add"][..], &["device", "list"], &["grant", "list"]] {
        let told = stage.refused(1, command);
        let expected =
            format!("no broker is running on {0}: start it with `tavi serve --data {0}`", stage.data.path().display());
        assert!(told.contains(&expected), "{told}");
    }
    // A killed broker leaves its socket behind.
    drop(UnixListener::bind(stage.data.path().join("admin.sock")).unwrap());
    let told: Value = serde_json::from_str(&stage.refused(1, &["device", "list", "--json"])).unwrap();
    assert_eq!(told["error"], "not-running");
    assert!(stage.files().is_empty());
}

#[test]
fn a_folder_that_does_not_exist_is_named() {
    let stage = Stage::empty();
    let output = Command::new(env!("CARGO_BIN_EXE_tavi-fleet"))
        .args(["--local", "nowhere", "device", "list"])
        .current_dir(stage.work.path())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("there is no data folder nowhere"), "{told}");
}

#[test]
fn devices_are_listed_and_removed() {
    let stage = Stage::with(willing);
    assert_eq!(stage.json(&["device", "list"])["devices"][0]["id"], ID);
    let text = String::from_utf8(stage.run(&["device", "list"]).stdout).unwrap();
    assert!(text.ends_with(&format!("{ID}  active       Pump\n")), "{text}");
    assert_eq!(stage.json(&["device", "remove", ID]), json!({"removed": ID}));
    let other = ID.replace('0', "1");
    assert!(stage.refused(1, &["device", "remove", &other]).contains("no DELETE"));
    assert!(stage.refused(2, &["device", "remove", "pump"]).contains("36 characters"));
}

#[test]
fn grants_are_added_listed_and_removed() {
    let stage = Stage::with(willing);
    let added = stage.json(&["grant", "add", "@everyone", "update,notify", "site/+/temp"]);
    let expected = json!({"id": "8", "subject": "@everyone", "actions": "subscribe,publish", "filter": "site/+/temp"});
    assert_eq!(added, expected);
    let device = stage.json(&["grant", "add", ID, "publish", "a"]);
    assert_eq!(device["subject"], format!("{ID}@things.localhost"));
    let text = String::from_utf8(stage.run(&["grant", "list"]).stdout).unwrap();
    assert_eq!(text, "ID  SUBJECT        ACTIONS  FILTER\n7   ann@localhost  publish  a/#\n");
    let page = String::from_utf8(stage.run(&["grant", "list", "--limit", "1"]).stdout).unwrap();
    assert!(page.ends_with("a/#\nThere is more: --after 7\n"), "{page}");
    assert_eq!(stage.json(&["grant", "list", "--after", "7"])["grants"], json!([]));
    let denied = stage.json(&["grant", "add", "ann@localhost", "!update", "a/b"]);
    assert_eq!(denied["actions"], "!publish");
    // The broker normalises the subject.
    assert_eq!(stage.json(&["grant", "remove", "Ann@Localhost", "publish", "a/#"])["id"], "7");
    assert_eq!(stage.json(&["grant", "remove", "7"])["id"], "7");
    assert_eq!(stage.json(&["grant", "remove", "ann@localhost", "update", "a/#"])["id"], "7");
    assert_eq!(stage.heard().last().unwrap(), "DELETE /v1/grants/7");
}

#[test]
fn a_grant_that_is_not_there_is_not_removed() {
    let stage = Stage::with(willing);
    let near = stage.refused(1, &["grant", "remove", "ann@localhost", "publish,delete", "a/#"]);
    assert!(near.contains("there is 7: ann@localhost publish a/#"), "{near}");
    let far = stage.refused(1, &["grant", "remove", "bob@localhost", "publish", "a/#"]);
    assert!(far.contains("grant list"), "{far}");
    assert!(stage.heard().iter().all(|request| !request.starts_with("DELETE")));
}

#[test]
fn usage_errors_say_what_is_legal_and_ask_nobody() {
    let stage = Stage::with(willing);
    let cases: [(&[&str], &str); 5] = [
        (&["grant", "add", "nobody", "publish", "a"], "anon-clear"),
        (&["grant", "add", "anon-clear", "read", "a"], "retrieve, subscribe"),
        (&["grant", "add", "anon-clear", "publish", "a#"], "whole level"),
        (&["grant", "remove", "anon-clear", "publish"], "SUBJECT, ACTIONS and FILTER"),
        (&["device", "add", "--name", " "], "1 to 64 characters"),
    ];
    for (command, text) in cases {
        let told = stage.refused(2, command);
        assert!(told.contains(text), "{told}");
    }
    assert!(stage.heard().is_empty());
}

#[test]
fn a_token_is_good_for_the_brokers_domain() {
    let stage = Stage::with(willing);
    let added = stage.json(&["device", "add"]);
    let (id, file) = (added["id"].as_str().unwrap(), added["private_key_file"].as_str().unwrap());
    let key: PublicKey = added["public_key"].as_str().unwrap().parse().unwrap();
    let signed = stage.json(&["device", "token", id, "--key", file, "--lifetime", "60"]);
    let (token, expires) = (signed["token"].as_str().unwrap(), signed["expires"].as_u64().unwrap());
    let (device, audience) = (key.device_id(), Audience::Mqtt("localhost"));
    let verified = verify(token, &Attempt { device, audience, now: expires - 1 }, &[key]).unwrap();
    assert_eq!((verified.device.to_string().as_str(), verified.expires), (id, expires));
    let text = stage.run(&["device", "token", id, "--key", file, "--for", "xmpp", "--domain", "example.org"]).stdout;
    let token = String::from_utf8(text).unwrap();
    let attempt = Attempt { device, audience: Audience::Xmpp("example.org"), now: expires - 60 };
    assert!(verify(token.trim_end(), &attempt, &[key]).is_ok());
    let told = Stage::empty().refused(1, &["device", "token", id, "--key", file]);
    assert!(told.contains("--domain"), "{told}");
}
