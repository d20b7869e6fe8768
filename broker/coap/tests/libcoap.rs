//! libcoap's client against the endpoint: read, write, observe and a 50 KB body by blocks.
//!
//! Ignored by default, since it needs `coap-client-notls` (Debian: libcoap3-bin): `cargo test -p tavi-coap --test libcoap -- --ignored`.

use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tavi_coap::{Endpoint, Seams};
use tavi_core::permit::{Grant, Permit};
use tavi_core::topics::Draft;
use tavi_core::{Principal, SystemClock, Topics};
use tavi_store::{IdSource, MemoryStore, SharedStore};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

struct World {
    endpoint: Endpoint,
    seams: Seams,
}

async fn world() -> World {
    let store: SharedStore = Arc::new(MemoryStore::default());
    let permit = Arc::new(Permit::load(store.clone()).await.unwrap());
    let actions = "retrieve,subscribe,publish,delete".parse().unwrap();
    permit.add(Grant::new(1, "anon-clear", actions, "d/#").unwrap()).await.unwrap();
    let (ids, clock) = (Arc::new(IdSource::new(0, 0)), Arc::new(SystemClock));
    let topics = Arc::new(Topics::load(store.clone(), permit.clone(), ids, clock.clone()).await.unwrap());
    let seams = Seams { topics, store, permit, metrics: Arc::default(), clock };
    let endpoint = Endpoint::bind(seams.clone(), SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    World { endpoint, seams }
}

impl World {
    fn client(&self, arguments: &[&str], path: &str) -> Command {
        let mut command = Command::new("coap-client-notls");
        command.args(arguments).arg(format!("coap://{}{path}", self.endpoint.local_addr()));
        command.kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str], path: &str) -> (String, String) {
        let run = self.client(arguments, path).output();
        let output: Output = tokio::time::timeout(Duration::from_secs(60), run).await.expect("it ends").unwrap();
        (text(&output.stdout), text(&output.stderr))
    }

    async fn pumps(&self, body: Vec<u8>) {
        let draft = Draft { topic: "d/1/up/temp".into(), payload: body.into(), retain: true, ..Draft::default() };
        self.seams.topics.publish_unasked(&Principal::Anon { loopback: true }, draft).complete().await.unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const PATH: &str = "/t/d/1/up/temp";

#[tokio::test]
#[ignore = "needs coap-client-notls of libcoap3-bin"]
async fn it_reads_what_it_wrote_and_hears_why_it_may_not() {
    let world = world().await;
    let (_, complaint) = world.run(&["-m", "put", "-t", "50", "-e", "{\"t\":21}"], PATH).await;
    assert_eq!(complaint, "");
    assert_eq!(world.run(&["-m", "get"], PATH).await.0.trim(), "{\"t\":21}");
    assert_eq!(world.run(&["-N", "-m", "get"], PATH).await.0.trim(), "{\"t\":21}", "non-confirmable");
    assert!(world.run(&["-m", "get", "-A", "60"], PATH).await.1.contains("4.06"));
    assert!(world.run(&["-m", "get"], "/t/u/juliet/diary").await.1.contains("4.01"));
    assert!(world.run(&["-m", "get"], "/.well-known/core").await.0.contains("</t/d/1/up/temp>"));
    assert_eq!(world.run(&["-m", "delete"], PATH).await.1, "");
    assert!(world.run(&["-m", "get"], PATH).await.1.contains("4.04"));
}

#[tokio::test]
#[ignore = "needs coap-client-notls of libcoap3-bin"]
async fn it_reads_a_large_body_by_blocks_of_any_size_and_is_refused_one() {
    let world = world().await;
    let body: String = (0..12_500).map(|n| format!("{:04}", n % 10_000)).collect();
    world.pumps(body.clone().into_bytes()).await;
    assert_eq!(world.run(&["-m", "get"], PATH).await.0.trim(), body);
    assert_eq!(world.run(&["-m", "get", "-b", "256"], PATH).await.0.trim(), body);
    let large = tempfile(&body);
    let (_, complaint) = world.run(&["-m", "put", "-f", large.to_str().unwrap()], PATH).await;
    assert!(complaint.contains("4.13"), "{complaint}");
}

fn tempfile(body: &str) -> std::path::PathBuf {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("large-body");
    std::fs::write(&path, body).unwrap();
    path
}

#[tokio::test]
#[ignore = "needs coap-client-notls of libcoap3-bin"]
async fn it_observes() {
    let world = world().await;
    world.pumps(b"value 0\n".to_vec()).await;
    let mut observing = world.client(&["-s", "20", "-m", "get"], PATH);
    let mut child = observing.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for number in 0..30 {
        let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await.expect("in time");
        assert_eq!(line.unwrap().unwrap(), format!("value {number}"));
        world.pumps(format!("value {}\n", number + 1).into_bytes()).await;
    }
    child.kill().await.unwrap();
}
