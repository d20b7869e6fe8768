//! Bots in a whole broker: a person writes, buttons, grants, topics, reloads, and the power goes at every commit.

use parking_lot::Mutex;
use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tavi_bots::Bots;
use tavi_core::{
    Draft, Effect, Envelope, Ev, Flow, Node, Origin, Parts, Principal, Qos, Registry, SubOptions, Subscriber,
    SystemClock, homes::SessionLimits, hooks::OnUndelivered, link::Link, permit::Grant, principal::Hosts,
    publication::Publication,
};
use tavi_store::{
    ArchiveQuery, ArchiveRow, Commit, InboxRow, MemoryStore, NameRange, Op, Owner, PageBound, QueuePage, QueueRow,
    QueueSize, Read, Record, Row, SharedStore, Store, StoreError, Table,
};
use tavi_xmpp_proto::{
    element::Element,
    jid::{BareJid, Jid},
    ns,
    stanza::{Head, MessageType, Stanza},
};

#[global_allocator]
static ALLOCATOR: tavi_bots::Metered = tavi_bots::Metered::system();

const BOT: &str = "doorbell@bots.localhost";
const LIBRARY: &str = include_str!("../../library/doorbell.rhai");

/// A store whose process dies at a given commit: it and all later ones never happen.
struct Mortal {
    inner: SharedStore,
    commits_left: AtomicUsize,
}

impl Mortal {
    fn new(inner: &SharedStore, commits_left: usize) -> Arc<Mortal> {
        Arc::new(Mortal { inner: inner.clone(), commits_left: AtomicUsize::new(commits_left) })
    }

    fn dead(&self) -> bool {
        self.commits_left.load(Ordering::SeqCst) == 0
    }
}

impl Store for Mortal {
    fn commit(&self, owner: &Owner, ops: Vec<Op>) -> Commit {
        let alive = self.commits_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match alive {
            Ok(left) if left > 1 => self.inner.commit(owner, ops),
            _ => Commit::ready(Err(StoreError::Unavailable("the power is gone".into()))),
        }
    }
    fn load<'a>(&'a self, owner: &'a Owner, table: Table, item: &'a str) -> Read<'a, Option<Record>> {
        self.inner.load(owner, table, item)
    }
    fn list<'a>(
        &'a self,
        owner: &'a Owner,
        table: Table,
        after: Option<&'a str>,
        limit: usize,
    ) -> Read<'a, Vec<(Box<str>, Record)>> {
        self.inner.list(owner, table, after, limit)
    }
    fn scan<'a>(&'a self, table: Table, after: Option<(&'a Owner, &'a str)>, limit: usize) -> Read<'a, Vec<Row>> {
        self.inner.scan(table, after, limit)
    }
    fn queue<'a>(&'a self, owner: &'a Owner, after: u64, limit: usize) -> Read<'a, Vec<QueueRow>> {
        self.inner.queue(owner, after, limit)
    }
    fn queue_page<'a>(&'a self, owner: &'a Owner, after: u64, bound: PageBound) -> Read<'a, QueuePage> {
        self.inner.queue_page(owner, after, bound)
    }
    fn queue_size<'a>(&'a self, owner: &'a Owner) -> Read<'a, QueueSize> {
        self.inner.queue_size(owner)
    }
    fn walk<'a>(&'a self, table: Table, names: NameRange<'a>, bound: PageBound) -> Read<'a, Vec<(Box<str>, Record)>> {
        self.inner.walk(table, names, bound)
    }
    fn count(&self, table: Table) -> Read<'_, u64> {
        self.inner.count(table)
    }
    fn archive<'a>(&'a self, owner: &'a Owner, query: &'a ArchiveQuery) -> Read<'a, Vec<ArchiveRow>> {
        self.inner.archive(owner, query)
    }
    fn inbox<'a>(&'a self, owner: &'a Owner, before: Option<u64>, limit: usize) -> Read<'a, Vec<InboxRow>> {
        self.inner.inbox(owner, before, limit)
    }
    fn outbox<'a>(&'a self, after: u64, limit: usize) -> Read<'a, Vec<(u64, Owner)>> {
        self.inner.outbox(after, limit)
    }
    fn owners<'a>(&'a self, after: Option<&'a Owner>, limit: usize) -> Read<'a, Vec<Owner>> {
        self.inner.owners(after, limit)
    }
    fn expire<'a>(&'a self, before: u64, limit: usize) -> Read<'a, usize> {
        self.inner.expire(before, limit)
    }
    fn forget<'a>(&'a self, before: u64, limit: usize) -> Read<'a, usize> {
        self.inner.forget(before, limit)
    }
    fn last_id(&self) -> u64 {
        self.inner.last_id()
    }
}

/// A device's MQTT session, as far as a bot notices.
struct Device {
    id: u64,
    principal: Principal,
    seen: Mutex<Vec<String>>,
}

impl Subscriber for Device {
    fn id(&self) -> u64 {
        self.id
    }
    fn principal(&self) -> &Principal {
        &self.principal
    }
    fn deliver(&self, publication: &Arc<Publication>, _: &[SubOptions]) {
        let value = String::from_utf8_lossy(&publication.payload).into_owned();
        self.seen.lock().push(format!("{} = {value}", publication.topic));
    }
}

/// One life of a broker.
struct Life {
    node: Node,
    bots: Bots,
    person: Link,
    device: Arc<Device>,
}

fn jid(name: &str) -> BareJid {
    format!("{name}@localhost").parse().unwrap()
}

async fn grant(node: &Node, actions: &str, filter: &str) {
    allow(node, BOT, actions, filter).await;
}

async fn allow(node: &Node, who: &str, actions: &str, filter: &str) {
    let grant = Grant::new(node.parts.ids.next(0), who, actions.parse().unwrap(), filter).unwrap();
    node.parts.permit.add(grant).await.unwrap();
}

async fn node(store: SharedStore) -> Node {
    let hosts = Hosts::new("localhost", &[]).unwrap();
    let parts = Parts::load(hosts, store, Arc::new(SystemClock), SessionLimits::default()).await.unwrap();
    let mut registry = Registry::default();
    registry.on_undelivered(Arc::new(KeepOffline));
    Node::new(parts, registry)
}

/// Messages wait for people who are away, as with the offline module.
struct KeepOffline;

impl OnUndelivered for KeepOffline {
    fn on_undelivered(&self, ev: &mut Ev<'_>) -> Flow {
        ev.fx.push(Effect::Keep { account: ev.account.jid.clone(), envelope: ev.env.clone() });
        Flow::Stop
    }
}

/// The account of the person and the grants, made once.
async fn prepare(store: &SharedStore) {
    let node = node(store.clone()).await;
    store.commit(&Owner::account("anna@localhost"), vec![node.parts.accounts.account_op()]).await.unwrap();
    grant(&node, "publish", "d/lamp/cmd/power").await;
    grant(&node, "subscribe", "d/lamp/up/#").await;
    allow(&node, "anna@localhost", "publish,subscribe", "d/+/+/#").await;
}

impl Life {
    async fn begin(store: SharedStore, folder: PathBuf) -> Life {
        let node = node(store).await;
        let bots = Bots::start(node.clone(), vec![folder]).await.unwrap();
        let account = node.parts.homes.account(&jid("anna")).await.unwrap().unwrap();
        let person = node.router.bind(&account, "anna@localhost/phone".parse().unwrap()).unwrap();
        // What waited for her is handed over, as on initial presence.
        person.open().await.complete().await.unwrap();
        let principal = Principal::Device("lamp@things.localhost".parse().unwrap());
        let device = Arc::new(Device { id: node.parts.topics.next_subscriber(), principal, seen: Mutex::default() });
        let handle: Arc<dyn Subscriber> = device.clone();
        node.parts.topics.subscribe(&handle, "d/lamp/cmd/#", SubOptions::default()).unwrap();
        Life { node, bots, person, device }
    }

    /// Anna writes to the bot; whether the broker took it for good.
    async fn write(&self, id: &str, text: &str) -> Result<(), StoreError> {
        let head = Head::message(MessageType::Chat).id(id).from(self.person.jid().clone());
        let head = head.to(Jid::from(BOT.parse::<BareJid>().unwrap()));
        let stanza = Stanza::new(head, [Element::new(ns::CLIENT, "body").text(text.to_owned())]);
        self.node.route(Envelope::received(stanza, Origin::Managed, 0)).await.complete().await
    }

    async fn publish(&self, value: &str) -> Result<(), StoreError> {
        let qos = Qos::AtLeastOnce;
        let draft =
            Draft { topic: "d/lamp/up/temperature".into(), payload: value.to_owned().into(), qos, ..Draft::default() };
        self.node.parts.topics.publish(&self.device.principal, draft).unwrap().complete().await
    }

    /// What Anna gets next.
    async fn next(&self) -> Vec<Envelope> {
        let mut got = Vec::new();
        let drained = tokio::time::timeout(Duration::from_secs(20), self.person.drain(&mut got)).await;
        drained.expect("something arrives").expect("the session is open");
        let ids: Vec<u64> = got.iter().filter_map(|envelope| envelope.meta.queued).collect();
        self.person.acked(&ids);
        got
    }

    async fn reads(&self) -> String {
        let got = self.next().await;
        got.iter().map(|e| e.stanza.body().unwrap()).collect::<Vec<_>>().join(" | ")
    }

    async fn says(&self, text: &str) -> String {
        self.write("m", text).await.unwrap();
        self.reads().await
    }
}

fn folder(script: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("doorbell.rhai"), script).unwrap();
    let path = folder.path().to_path_buf();
    (folder, path)
}

async fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    while !test() {
        assert!(tokio::time::Instant::now() < give_up, "{what} did not happen");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_switches_a_device_and_hears_its_telemetry() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    prepare(&store).await;
    let (_folder, path) = folder(LIBRARY);
    let life = Life::begin(store, path).await;

    assert!(life.says("hello").await.starts_with("/watch - Choose your device: /watch ID\n/power - "));
    assert_eq!(life.says("/watch lamp").await, "I watch lamp for you and tell you its temperature.");
    life.write("m", "power").await.unwrap();
    let question = life.next().await.remove(0);
    assert_eq!(question.stanza.body().unwrap(), "What shall lamp do?\n1. on\n2. off");
    let xml = String::from_utf8(question.to_bytes().to_vec()).unwrap();
    assert!(xml.contains("<response xmlns='urn:xmpp:tmp:quick-response' value='on' label='on'/>"), "{xml}");
    assert_eq!(life.says("on").await, "I told lamp: on.");
    eventually("the command", || !life.device.seen.lock().is_empty()).await;
    assert_eq!(*life.device.seen.lock(), ["d/lamp/cmd/power = on"]);
    life.publish("21.5").await.unwrap();
    assert_eq!(life.reads().await, "lamp: 21.5 degrees");
    life.bots.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_granted_is_refused_by_name_until_it_is_granted() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    prepare(&store).await;
    let (_folder, path) = folder(LIBRARY);
    let life = Life::begin(store, path).await;
    life.says("/watch door").await;
    life.says("/power").await;
    assert_eq!(
        life.says("2").await,
        "I may not do that: publish: doorbell@bots.localhost may not publish to \"d/door/cmd/power\"; \
         this would allow it: tavi-fleet grant add doorbell@bots.localhost publish 'd/door/cmd/power'"
    );
    grant(&life.node, "publish", "d/door/cmd/#").await;
    life.says("/power").await;
    assert_eq!(life.says("off").await, "I told door: off.");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_script_is_taken_and_a_bad_one_is_not() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    prepare(&store).await;
    let (_folder, path) =
        folder("command(\"hi\", \"Greet\", \"hi\"); fn hi() { let n = ask(\"Name?\"); say(`Old ${n}`); }");
    let file = path.join("doorbell.rhai");
    let life = Life::begin(store.clone(), path.clone()).await;
    life.bots.watch().unwrap();
    assert_eq!(life.says("hi").await, "Name?");

    let before = life.bots.list().await;
    fs::write(&file, "fn on_message(t) { say(\"New\"); }").unwrap();
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    while life.bots.list().await == before {
        assert!(tokio::time::Instant::now() < give_up, "the folder is watched");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(life.says("Anna").await, "Old Anna", "a dialogue ends on the version that it began with");
    assert_eq!(life.says("hi").await, "New");

    let good = life.bots.list().await;
    fs::write(&file, "fn on_message(t) { sya(\"Bad\"); }").unwrap();
    life.bots.reload().await;
    assert_eq!(life.bots.list().await, good);
    assert_eq!(life.says("hi").await, "New");

    // The last good version runs after a restart too.
    life.bots.stop().await;
    let life = Life::begin(store, path).await;
    assert_eq!(life.says("hi").await, "New");

    // Whoever writes to one that was removed hears that nobody is there, until it is there again.
    fs::remove_file(&file).unwrap();
    life.bots.reload().await;
    assert!(life.bots.list().await.is_empty());
    life.write("late", "hi").await.unwrap();
    let answer = life.next().await;
    assert!(answer.len() == 1 && answer[0].head().type_.is_error(), "{answer:?}");
    fs::write(&file, "fn on_message(t) { say(\"Back\"); }").unwrap();
    life.bots.reload().await;
    assert_eq!(life.says("hi").await, "Back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_s_time_runs_on_over_a_restart() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    prepare(&store).await;
    let script =
        "command(\"hi\", \"Greet\", \"hi\"); fn hi() { say(`${ask(\"Name?\", #{ timeout: \"1s\" }) == ()}`); }";
    let (_folder, path) = folder(script);
    let life = Life::begin(store.clone(), path.clone()).await;
    assert_eq!(life.says("hi").await, "Name?");
    life.bots.stop().await;
    let life = Life::begin(store, path).await;
    assert_eq!(life.reads().await, "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dialogue_finishes_on_its_version_after_a_restart_too() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    prepare(&store).await;
    let (_folder, path) =
        folder("command(\"hi\", \"Greet\", \"hi\"); fn hi() { let n = ask(\"Name?\"); say(`Old ${n}`); }");
    let life = Life::begin(store.clone(), path.clone()).await;
    assert_eq!(life.says("hi").await, "Name?");
    life.bots.stop().await;
    fs::write(path.join("doorbell.rhai"), "fn on_message(t) { say(\"New\"); }").unwrap();
    let life = Life::begin(store, path).await;
    assert_eq!(life.says("Anna").await, "Old Anna");
    assert_eq!(life.says("Anna").await, "New");
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_answered_in_order() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    prepare(&store).await;
    let (_folder, path) = folder(
        "fn on_message(n) { state.sum = if state.sum == () { 0 } else { state.sum }; state.sum += n.parse_int(); say(`${n} ${state.sum}`); }",
    );
    let life = Life::begin(store.clone(), path).await;
    let people: Vec<String> = (0..20).map(|n| format!("p{n}")).collect();
    let mut tasks = Vec::new();
    for name in people {
        store.commit(&Owner::account(jid(&name).as_str()), vec![life.node.parts.accounts.account_op()]).await.unwrap();
        tasks.push(tokio::spawn(count_to_ten(life.node.clone(), name)));
    }
    for task in tasks {
        task.await.unwrap();
    }
    life.bots.stop().await;
}

async fn count_to_ten(node: Node, name: String) {
    let account = node.parts.homes.account(&jid(&name)).await.unwrap().unwrap();
    let person = node.router.bind(&account, format!("{name}@localhost/x").parse().unwrap()).unwrap();
    person.open().await.complete().await.unwrap();
    for n in 1..=10 {
        let head =
            Head::message(MessageType::Chat).from(person.jid().clone()).to(Jid::from(BOT.parse::<BareJid>().unwrap()));
        let stanza = Stanza::new(head, [Element::new(ns::CLIENT, "body").text(n.to_string())]);
        node.route(Envelope::received(stanza, Origin::Managed, 0)).await.complete().await.unwrap();
    }
    let mut got = Vec::new();
    while got.len() < 10 {
        let waiting = tokio::time::timeout(Duration::from_secs(20), person.drain(&mut got));
        waiting.await.expect("everybody is answered").unwrap();
    }
    let texts: Vec<String> = got.iter().map(|e| e.stanza.body().unwrap()).collect();
    let expected: Vec<String> = (1..=10).map(|n| format!("{n} {}", n * (n + 1) / 2)).collect();
    assert_eq!(texts, expected, "{name}");
}

/// Where numbers that should count up from 0 do not: place, what should stand there, what does.
fn astray(got: &[usize]) -> String {
    let wrong: Vec<_> = got.iter().enumerate().filter(|(at, n)| at != *n).map(|(at, n)| (at, *n)).collect();
    let missing: Vec<usize> = (0..got.len()).filter(|n| !got.contains(n)).collect();
    format!("{} values; (place, value): {:?}; missing: {missing:?}", got.len(), &wrong[..wrong.len().min(50)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_acknowledged_values_reaches_the_script_in_order() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    prepare(&store).await;
    let (_folder, path) =
        folder("on_topic(\"d/+/up/temperature\", \"f\"); fn f(t) { send_to(\"anna@localhost\", t.text); }");
    let life = Life::begin(store, path).await;
    const COUNT: usize = 6_000;
    for n in 0..COUNT {
        life.publish(&n.to_string()).await.unwrap();
    }
    let mut got = Vec::new();
    while got.len() < COUNT {
        got.extend(life.next().await.iter().filter_map(|e| e.stanza.body()?.parse::<usize>().ok()));
    }
    assert!(got.iter().copied().eq(0..COUNT), "{}", astray(&got));
    life.bots.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_waited_over_a_restart_reach_the_script_in_order() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    prepare(&store).await;
    let (_folder, path) =
        folder("on_topic(\"d/+/up/temperature\", \"f\"); fn f(t) { send_to(\"anna@localhost\", t.text); }");
    const COUNT: usize = 700;
    let life = Life::begin(store.clone(), path.clone()).await;
    for n in 0..COUNT {
        life.publish(&n.to_string()).await.unwrap();
    }
    life.bots.stop().await;
    drop(life);
    let life = Life::begin(store, path).await;
    let mut got = Vec::new();
    while got.len() < COUNT {
        got.extend(life.next().await.iter().filter_map(|e| e.stanza.body()?.parse::<usize>().ok()));
    }
    assert!(got.iter().copied().eq(0..COUNT), "{}", astray(&got));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_begins_nothing_while_the_store_has_no_room() {
    let memory = Arc::new(MemoryStore::default());
    let store: SharedStore = memory.clone();
    prepare(&store).await;
    let (_folder, path) = folder("fn on_message(t) { say(t); }");
    let life = Life::begin(store.clone(), path).await;
    memory.set_room(false);
    life.write("m", "hello").await.unwrap();
    let quiet = tokio::time::timeout(Duration::from_millis(200), life.next()).await;
    assert!(quiet.is_err(), "it waits");
    assert_eq!(store.queue(&Owner::account(BOT), 0, 10).await.unwrap().len(), 1, "the message is kept meanwhile");
    memory.set_room(true);
    assert_eq!(life.reads().await, "hello");
    memory.set_room(false);
    life.write("m", "again").await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), life.bots.stop()).await.expect("the stop waits for no room");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_that_begins_to_listen_hears_what_is_being_saved() {
    let memory = Arc::new(MemoryStore::default());
    let store: SharedStore = memory.clone();
    prepare(&store).await;
    let (_folder, path) = folder(LIBRARY);
    let life = Life::begin(store.clone(), path).await;
    let heard = "d/door/up/temperature";
    allow(&life.node, "anna@localhost", "publish,subscribe", "d/door/#").await;
    assert_eq!(life.says("/watch door").await, "I watch door for you and tell you its temperature.");
    memory.hold();
    let draft =
        Draft { topic: heard.into(), payload: "19".into(), retain: true, qos: Qos::AtLeastOnce, ..Draft::default() };
    let door = Principal::Device("door@things.localhost".parse().unwrap());
    let saving = life.node.parts.topics.publish_unasked(&door, draft);
    let grant = Grant::new(life.node.parts.ids.next(0), BOT, "subscribe".parse().unwrap(), heard).unwrap();
    let granted = life.node.parts.permit.add(grant);
    eventually("the bot listens", || {
        memory.release_at(1);
        life.node.parts.topics.counts().0 > 2
    })
    .await;
    let release = {
        let memory = memory.clone();
        tokio::spawn(async move {
            loop {
                memory.release_all();
                tokio::task::yield_now().await;
            }
        })
    };
    granted.await.unwrap();
    saving.complete().await.unwrap();
    assert_eq!(life.reads().await, "door: 19 degrees");
    release.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_does_not_get_what_the_bot_may_do() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    prepare(&store).await;
    let (_folder, path) = folder(LIBRARY);
    let life = Life::begin(store, path).await;
    let (removed, commit) = life.node.parts.permit.remove(|grant| &*grant.subject == "anna@localhost");
    commit.await.unwrap();
    assert_eq!(removed.len(), 1);
    life.says("/watch lamp").await;
    life.says("/power").await;
    let told = life.says("on").await;
    assert!(
        told.starts_with("I may not do that: publish: anna@localhost may not publish to \"d/lamp/cmd/power\""),
        "{told}"
    );
    life.publish("21.5").await.unwrap();
    assert_eq!(life.says("/status").await, "lamp has not said anything yet.");
    assert!(life.device.seen.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_conversation_begins_anew_and_is_set_aside() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    prepare(&store).await;
    let (_folder, path) = folder(LIBRARY);
    let value = bytes::Bytes::from_static(b"{#");
    let put = Op::Put { table: Table::Bot, item: "c/anna@localhost".into(), value, expect: tavi_store::Expect::Any };
    store.commit(&Owner::account(BOT), vec![put]).await.unwrap();
    let life = Life::begin(store.clone(), path).await;
    assert_eq!(life.says("/status").await, "I watch nothing for you. Send /watch ID.");
    let aside = store.load(&Owner::account(BOT), Table::Bot, "x/anna@localhost").await.unwrap();
    assert_eq!(&aside.unwrap().value[..], b"{#");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_neither_for_endless_runs_nor_for_what_is_queued() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    prepare(&store).await;
    let (_folder, path) = folder("fn on_message(t) { let k = 0; while k < 20000 { k += 1; } say(t); }");
    let life = Life::begin(store.clone(), path.clone()).await;
    const COUNT: usize = 700;
    for n in 0..COUNT {
        life.write("m", &n.to_string()).await.unwrap();
    }
    tokio::time::timeout(Duration::from_secs(60), life.bots.stop()).await.expect("it waits for no endless run");
    drop(life);
    fs::write(path.join("doorbell.rhai"), "fn on_message(t) { say(t); }").unwrap();
    let life = Life::begin(store, path).await;
    let mut texts = std::collections::BTreeMap::new();
    while texts.len() < COUNT {
        let got = life.next().await;
        texts.extend(got.iter().map(|e| (e.head().id.clone().unwrap(), e.stanza.body().unwrap())));
    }
    let answered: std::collections::BTreeSet<String> = texts.into_values().collect();
    assert_eq!(answered.len(), COUNT, "each is answered, none twice");
}

/// What Anna and the lamp do, whatever happens to the broker: each repeats what was not acknowledged.
const TALK: &[&str] = &["/watch lamp", "power", "on", "=19", "/limit", "20", "=25", "=15", "/status"];

/// Does all of the talk, beginning a new life whenever the power goes at a commit.
async fn talk(power: impl Fn(usize) -> usize) -> (Vec<String>, usize) {
    let store: SharedStore = Arc::new(MemoryStore::default());
    prepare(&store).await;
    let (_folder, path) = folder(LIBRARY);
    let (mut lives, mut seen, mut turn) = (0, Vec::<(String, String)>::new(), 0);
    while turn < TALK.len() {
        let mortal = Mortal::new(&store, power(lives));
        lives += 1;
        let life = Life::begin_or_die(mortal.clone(), path.clone()).await;
        let Some(life) = life else { continue };
        life.wait_quiet(&mortal).await;
        while turn < TALK.len() && !mortal.dead() {
            let done = match TALK[turn].strip_prefix('=') {
                Some(value) => life.publish(value).await,
                None => life.write(&format!("m{turn}"), TALK[turn]).await,
            };
            if done.is_err() {
                break;
            }
            turn += 1;
            life.wait_quiet(&mortal).await;
        }
        // What reached her before the power went she has read.
        seen.extend(life.read_all());
    }
    // The last life: what was acknowledged and not yet answered is answered now.
    let life = Life::begin(store.clone(), path).await;
    let quiet = Mortal::new(&store, usize::MAX);
    life.wait_quiet(&quiet).await;
    seen.extend(life.read_all());
    life.bots.stop().await;
    let mut ids = std::collections::HashSet::new();
    let once = seen.into_iter().filter(|(id, _)| ids.insert(id.clone())).map(|(_, body)| body).collect();
    (once, lives)
}

impl Life {
    /// Ids and texts of all that waits for her. She acknowledges nothing, so a later life brings it again.
    fn read_all(&self) -> Vec<(String, String)> {
        let text =
            |e: &Envelope| (e.head().id.as_deref().unwrap_or_default().into(), e.stanza.body().unwrap_or_default());
        self.person.take().iter().map(text).collect()
    }

    async fn begin_or_die(store: Arc<Mortal>, folder: PathBuf) -> Option<Life> {
        let life = Life::begin(store.clone(), folder).await;
        (!store.dead()).then_some(life)
    }

    /// Until no run is under way: the bot's queue and outbox are empty, or the power is gone.
    async fn wait_quiet(&self, store: &Mortal) {
        let owner = Owner::account(BOT);
        let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let queue = store.inner.queue(&owner, 0, 10).await.unwrap();
            let rows = store.inner.list(&owner, Table::Bot, None, 1000).await.unwrap();
            let open = rows.iter().any(|(item, _)| item.starts_with("o/") || item.starts_with("t/"));
            if store.dead() || (queue.is_empty() && !open) {
                return;
            }
            assert!(tokio::time::Instant::now() < give_up, "the bot does not come to rest: {queue:?} {rows:?}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_power_may_go_at_every_commit() {
    let (expected, _) = talk(|_| usize::MAX).await;
    assert_eq!(expected.len(), 8, "{expected:?}");
    for at in 2..60 {
        // The power goes once, at this commit of the first life.
        let (seen, lives) = talk(|life| if life == 0 { at } else { usize::MAX }).await;
        assert_eq!(seen, expected, "the power went at commit {at}");
        if lives == 1 {
            return;
        }
    }
    panic!("the talk has fewer commits than that");
}
