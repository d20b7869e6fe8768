//! Resumption (XEP-0198 §5) over real connections: cut, taken over, too late.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::client::{Broker, Client};
use tavi_core::bus::Dice;
use tavi_core::homes::SessionLimits;
use tavi_core::journal::{Book, Medium};
use tavi_core::{Hosts, Journal, Node, Parts, Registry, SystemClock};
use tavi_store::MemoryStore;
use tavi_xmpp::Config;
use tavi_xmpp_proto::ingress::Incoming;
use tavi_xmpp_proto::ns;
use tavi_xmpp_proto::sasl::{ClientBinding, Hash, Mechanism};
use tokio::net::TcpStream;

async fn logged_in(broker: &Broker, user: &str) -> Client<TcpStream> {
    let mut client = broker.connect().await;
    client.open().await;
    let password: String = user.chars().rev().collect();
    client.scram(Mechanism::Scram(Hash::Sha256), (user, &password), ClientBinding::Unsupported).await.unwrap();
    client
}

/// A client with stream management that keeps its session over connections.
struct Phone {
    client: Client<TcpStream>,
    name: String,
    /// Stanzas that it has handled.
    handled: u32,
    /// What it said and is not acknowledged, oldest first, and how many were acknowledged before.
    said: VecDeque<String>,
    acknowledged: u32,
    heard: Vec<String>,
}

impl Phone {
    async fn new(broker: &Broker, user: &str) -> Phone {
        let mut client = broker.login(user, "phone").await;
        client.say("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
        let enabled = client.hear_element().await;
        assert_eq!((enabled.name(), enabled.get_attr("resume")), ("enabled", Some("true")));
        let name = enabled.get_attr("id").unwrap().to_owned();
        let (said, heard) = (VecDeque::new(), Vec::new());
        Phone { client, name, handled: 0, said, acknowledged: 0, heard }
    }

    async fn says(&mut self, to: &str, text: &str) {
        let message = format!("<message to='{to}@localhost/phone' type='chat'><body>{text}</body></message>");
        self.client.say(&message).await;
        self.said.push_back(message);
    }

    /// Hears one thing; it acknowledges when it is asked to.
    async fn hears(&mut self) {
        match self.client.hear().await {
            Some(Incoming::Stanza(stanza)) => {
                self.handled += 1;
                self.heard.extend(stanza.body());
            }
            Some(Incoming::Element(element)) if element.name() == "r" => {
                let answer = format!("<a xmlns='urn:xmpp:sm:3' h='{}'/>", self.handled);
                self.client.say(&answer).await;
            }
            Some(Incoming::Element(element)) if element.name() == "a" => {
                self.server_has(element.get_attr("h").unwrap().parse().unwrap());
            }
            other => panic!("{other:?}"),
        }
    }

    fn server_has(&mut self, h: u32) {
        self.said.drain(..(h - self.acknowledged) as usize);
        self.acknowledged = h;
    }

    /// Another connection; what the server did not count is said again. The former one is given back.
    async fn resumes(&mut self, broker: &Broker, user: &str) -> Client<TcpStream> {
        let mut client = logged_in(broker, user).await;
        client.say(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{}' h='{}'/>", self.name, self.handled)).await;
        let resumed = client.hear_element().await;
        assert_eq!((resumed.name(), resumed.get_attr("previd")), ("resumed", Some(&*self.name)));
        self.server_has(resumed.get_attr("h").unwrap().parse().unwrap());
        for message in &self.said {
            client.say(message).await;
        }
        std::mem::replace(&mut self.client, client)
    }
}

#[tokio::test]
async fn nothing_is_lost_doubled_or_reordered_however_often_the_connection_changes() {
    let broker = Broker::start().await;
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let (mut romeo, mut juliet) = (Phone::new(&broker, "romeo").await, Phone::new(&broker, "juliet").await);
    let (mut sent, mut answered) = (0, 0);
    for _ in 0..150 {
        for _ in 0..dice.below(6) {
            romeo.says("juliet", &sent.to_string()).await;
            sent += 1;
        }
        for _ in 0..dice.below(4) {
            juliet.says("romeo", &answered.to_string()).await;
            answered += 1;
        }
        // She reads some of what is there.
        let until = juliet.heard.len() + (dice.below(4)).min(sent - juliet.heard.len());
        while juliet.heard.len() < until {
            juliet.hears().await;
        }
        if dice.below(2) == 0 {
            // The former connection is cut first, or is still open when the next one comes.
            if dice.below(2) == 0 {
                use tokio::io::AsyncWriteExt;
                let _ = juliet.client.stream.shutdown().await;
            }
            drop(juliet.resumes(&broker, "juliet").await);
        }
    }
    while juliet.heard.len() < sent {
        juliet.hears().await;
    }
    while romeo.heard.len() < answered {
        romeo.hears().await;
    }
    let numbers = |n: usize| (0..n).map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(juliet.heard, numbers(sent));
    assert_eq!(romeo.heard, numbers(answered));
}

#[tokio::test]
async fn a_connection_that_was_taken_over_hears_of_a_conflict() {
    let broker = Broker::start().await;
    let mut juliet = Phone::new(&broker, "juliet").await;
    let mut former = juliet.resumes(&broker, "juliet").await;
    assert_eq!(former.hear_the_end().await, "conflict");
    let mut romeo = broker.login("romeo", "orchard").await;
    romeo.say("<message to='juliet@localhost/phone' type='chat'><body>still there?</body></message>").await;
    juliet.hears().await;
    assert_eq!(juliet.heard, ["still there?"]);
}

#[tokio::test]
async fn who_comes_too_late_or_is_somebody_else_binds_a_resource_instead() {
    let config = Config { resume: Duration::from_secs(1), ..Config::default() };
    let broker = Broker::with(config, SessionLimits::default()).await;
    let mut juliet = Phone::new(&broker, "juliet").await;
    juliet.says("romeo", "a").await;
    juliet.says("romeo", "b").await;
    let mut romeo = broker.login("romeo", "orchard").await;
    romeo.say("<message to='juliet@localhost/phone' type='chat'><body>1</body></message>").await;
    let resume = format!("<resume xmlns='urn:xmpp:sm:3' previd='{}' h='0'/>", juliet.name);
    drop(juliet);
    let mut paris = logged_in(&broker, "romeo").await;
    paris.say(&resume).await;
    let failed = paris.hear_element().await;
    assert_eq!((failed.name(), failed.get_attr("h")), ("failed", None), "and nothing of hers");
    let account = broker.node.parts.homes.account(&"juliet@localhost".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(account.session_count(), 1, "her session waits for her");
    while account.session_count() > 0 {
        tokio::task::yield_now().await;
    }
    let mut late = logged_in(&broker, "juliet").await;
    late.say(&resume).await;
    let failed = late.hear_element().await;
    assert_eq!((failed.name(), failed.get_attr("h")), ("failed", Some("2")), "she is told what was handled");
    late.bind("phone").await;
}

#[tokio::test]
async fn a_server_that_resumes_nothing_says_so() {
    let broker = Broker::with(Config { resume: Duration::ZERO, ..Config::default() }, SessionLimits::default()).await;
    let mut romeo = broker.login("romeo", "orchard").await;
    romeo.say("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
    let enabled = romeo.hear_element().await;
    assert_eq!((enabled.name(), enabled.get_attr("resume")), ("enabled", None));
    let mut romeo = logged_in(&broker, "romeo").await;
    romeo.say("<resume xmlns='urn:xmpp:sm:3' previd='any' h='0'/>").await;
    let failed = romeo.hear_element().await;
    assert!(failed.get_child(ns::STANZA_ERRORS, "feature-not-implemented").is_some(), "{}", failed.to_xml(""));
    romeo.bind("phone").await;
}

#[tokio::test]
async fn a_session_that_is_ending_is_not_gone_on_with_and_the_client_hears_that() {
    let broker = Broker::start().await;
    let mut romeo = Phone::new(&broker, "romeo").await;
    // RFC 6120 §4.9.3.25: it ends, and its client does not hang up.
    romeo.client.say("<nonsense xmlns='urn:example:nothing'/>").await;
    let mut client = logged_in(&broker, "romeo").await;
    client.say(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{}' h='0'/>", romeo.name)).await;
    assert_eq!(client.hear_element().await.name(), "failed");
}

#[tokio::test]
async fn an_acknowledgement_behind_much_that_was_sent_is_read() {
    let config = Config { unacknowledged: 3, ..Config::default() };
    let limits = SessionLimits { inbox_items: 6, ..SessionLimits::default() };
    let broker = Broker::with(config, limits).await;
    let (mut romeo, mut juliet) = (Phone::new(&broker, "romeo").await, Phone::new(&broker, "juliet").await);
    for n in 0..8 {
        juliet.says("romeo", &n.to_string()).await;
    }
    juliet.client.say("<r xmlns='urn:xmpp:sm:3'/>").await;
    while !juliet.said.is_empty() {
        juliet.hears().await;
    }
    while romeo.handled < 3 {
        if let Some(Incoming::Stanza(stanza)) = romeo.client.hear().await {
            romeo.handled += 1;
            romeo.heard.extend(stanza.body());
        }
    }
    // His window is full, and more waits for him than lets him make something for himself.
    let long = "x".repeat(10_000);
    for _ in 0..20 {
        romeo.says("juliet", &long).await;
    }
    romeo.client.say("<iq type='get' id='p' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    for _ in 0..20 {
        romeo.says("juliet", &long).await;
    }
    romeo.client.say("<a xmlns='urn:xmpp:sm:3' h='3'/>").await;
    while romeo.heard.len() < 8 {
        romeo.hears().await;
    }
    assert_eq!(romeo.heard, (0..8).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_session_without_a_connection_is_none_and_no_more_of_them_wait_than_may_be_connected() {
    let broker = Broker::with(Config { max_connections: 2, ..Config::default() }, SessionLimits::default()).await;
    let (mut romeo, mut juliet) = (Phone::new(&broker, "romeo").await, Phone::new(&broker, "juliet").await);
    for phone in [&mut romeo, &mut juliet] {
        cut(phone).await;
    }
    let gone = async |connections| {
        while broker.xmpp.connections() > connections {
            tokio::task::yield_now().await;
        }
    };
    gone(0).await;
    let connections = broker.node.parts.metrics.connections(tavi_core::metrics::Protocol::Xmpp);
    assert_eq!(connections.get(), 0);
    // There is room for two others; whose session is too much ends with its connection.
    let mut third = broker.login("romeo", "orchard").await;
    third.say("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
    let name = third.hear_element().await.get_attr("id").unwrap().to_owned();
    drop(third);
    let account = broker.node.parts.homes.known(&"romeo@localhost".parse().unwrap()).unwrap();
    while account.session_count() > 1 {
        tokio::task::yield_now().await;
    }
    gone(0).await;
    let mut late = logged_in(&broker, "romeo").await;
    late.say(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{name}' h='0'/>")).await;
    assert_eq!(late.hear_element().await.name(), "failed");
    drop(late);
    gone(0).await;
    // The others go on.
    drop(romeo.resumes(&broker, "romeo").await);
    drop(juliet.resumes(&broker, "juliet").await);
    romeo.says("juliet", "still there?").await;
    juliet.hears().await;
    assert_eq!((juliet.heard.as_slice(), connections.get()), (&["still there?".to_owned()][..], 2));
    cut(&mut juliet).await;
    broker.xmpp.stop().await;
    assert_eq!((broker.xmpp.connections(), connections.get(), account.session_count()), (0, 0, 0));
}

async fn cut(phone: &mut Phone) {
    use tokio::io::AsyncWriteExt;
    phone.client.stream.shutdown().await.unwrap();
}

/// A broker whose commits wait when they are held.
async fn on_a_store(config: Config, journal: Journal) -> (Broker, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::default());
    let hosts = Hosts::new("localhost", &[]).unwrap();
    let mut parts = Parts::load(hosts, store.clone(), Arc::new(SystemClock), SessionLimits::default()).await.unwrap();
    journal.open();
    parts.journal = Arc::new(journal);
    for (user, password) in [("romeo", "oemor"), ("juliet", "teiluj")] {
        parts.accounts.create(&format!("{user}@localhost").parse().unwrap(), password).await.unwrap();
    }
    (Broker::on(Node::new(parts, Registry::default()), store.clone(), config).await, store)
}

#[tokio::test]
async fn who_comes_while_the_session_ends_hears_what_was_handled_and_keeps_the_connection() {
    let (broker, store) = on_a_store(Config::default(), Journal::none()).await;
    let (mut romeo, _juliet) = (Phone::new(&broker, "romeo").await, Phone::new(&broker, "juliet").await);
    store.hold();
    romeo.says("juliet", "a").await;
    // RFC 6120 §4.9.3.25: it ends, and what it said is not durable yet.
    romeo.client.say("<nonsense xmlns='urn:example:nothing'/>").await;
    let account = broker.node.parts.homes.known(&"romeo@localhost".parse().unwrap()).unwrap();
    while account.at_home(|state| state.sessions.iter().any(|session| session.is_open())) {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.waiting(), 1);
    let mut late = logged_in(&broker, "romeo").await;
    late.say(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{}' h='0'/>", romeo.name)).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    store.release_all();
    let failed = late.hear_element().await;
    assert_eq!((failed.name(), failed.get_attr("h")), ("failed", Some("1")));
    late.bind("phone").await;
}

#[tokio::test]
async fn a_store_that_does_not_answer_keeps_no_session_from_ending_and_no_client_from_coming_back() {
    let config = Config { farewell_deadline: Duration::from_millis(50), ..Config::default() };
    let (broker, store) = on_a_store(config, Journal::none()).await;
    let (mut romeo, _juliet) = (Phone::new(&broker, "romeo").await, Phone::new(&broker, "juliet").await);
    store.hold();
    romeo.says("juliet", "a").await;
    romeo.client.say("<nonsense xmlns='urn:example:nothing'/>").await;
    let account = broker.node.parts.homes.known(&"romeo@localhost".parse().unwrap()).unwrap();
    let ended = async {
        while account.session_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it ends");
    let resume = format!("<resume xmlns='urn:xmpp:sm:3' previd='{}' h='0'/>", romeo.name);
    let mut late = logged_in(&broker, "romeo").await;
    late.say(&resume).await;
    let failed = late.hear_element().await;
    assert_eq!((failed.name(), failed.get_attr("h")), ("failed", None), "nobody knows yet");
    late.bind("phone").await;
    store.release_all();
    // Later it is known.
    let known = async {
        loop {
            let mut later = logged_in(&broker, "romeo").await;
            later.say(&resume).await;
            if later.hear_element().await.get_attr("h") == Some("1") {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), known).await.expect("what was handled is known at last");
}

/// Where notes go that are read at once.
#[derive(Clone, Default)]
struct Paper(Arc<std::sync::Mutex<Vec<u8>>>);

impl Medium for Paper {
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(())
    }

    fn renew(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        *self.0.lock().unwrap() = bytes.to_vec();
        Ok(())
    }

    fn give_up(&mut self) {
        self.0.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn what_is_handled_while_a_session_waits_for_its_client_outlives_the_process() {
    let paper = Paper::default();
    let (broker, store) = on_a_store(Config::default(), Journal::over(Box::new(paper.clone()))).await;
    let (mut romeo, _juliet) = (Phone::new(&broker, "romeo").await, Phone::new(&broker, "juliet").await);
    store.hold();
    romeo.says("juliet", "a").await;
    cut(&mut romeo).await;
    while store.waiting() == 0 || broker.xmpp.connections() > 1 {
        tokio::task::yield_now().await;
    }
    store.release_all();
    let is_noted = || {
        let (streams, _) = Book::read(paper.0.lock().unwrap().clone()).unwrap().close();
        streams.iter().any(|noted| (&*noted.name, noted.handled) == (&*romeo.name, 1))
    };
    let noted = async {
        while !is_noted() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), noted).await.expect("the next process can say so");
}

#[tokio::test]
async fn who_resumes_with_a_full_window_hears_first_that_it_is_resumed() {
    let broker = Broker::with(Config { unacknowledged: 3, ..Config::default() }, SessionLimits::default()).await;
    let (mut romeo, mut juliet) = (Phone::new(&broker, "romeo").await, Phone::new(&broker, "juliet").await);
    for n in 0..6 {
        juliet.says("romeo", &n.to_string()).await;
    }
    let mut read = 0;
    while read < 3 {
        read += usize::from(matches!(romeo.client.hear().await, Some(Incoming::Stanza(_))));
    }
    // It counts nothing of that, so the window stays full.
    drop(romeo.resumes(&broker, "romeo").await);
    while romeo.heard.len() < 6 {
        romeo.hears().await;
    }
    assert_eq!(romeo.heard, (0..6).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_does_not_acknowledge_in_time_loses_its_connection_and_not_its_session() {
    let deadline = Duration::from_millis(50);
    let config = Config { unacknowledged: 1, acknowledge_deadline: deadline, ..Config::default() };
    let broker = Broker::with(config, SessionLimits::default()).await;
    let (mut romeo, mut juliet) = (Phone::new(&broker, "romeo").await, Phone::new(&broker, "juliet").await);
    for n in 0..3 {
        juliet.says("romeo", &n.to_string()).await;
    }
    while let Some(incoming) = romeo.client.hear().await {
        let is_error = matches!(&incoming, Incoming::Element(element) if element.is(ns::STREAM, "error"));
        assert!(!is_error, "it goes on: {incoming:?}");
    }
    drop(romeo.resumes(&broker, "romeo").await);
    while romeo.heard.len() < 3 {
        romeo.hears().await;
    }
    assert_eq!(romeo.heard, ["0", "1", "2"]);
}

#[tokio::test]
async fn a_request_waits_for_what_was_sent_before_it() {
    let (broker, store) = on_a_store(Config::default(), Journal::none()).await;
    let (mut romeo, _juliet) = (Phone::new(&broker, "romeo").await, Phone::new(&broker, "juliet").await);
    store.hold();
    romeo.says("juliet", "a").await;
    romeo.client.say("<iq type='get' id='q' to='localhost'><unknown xmlns='urn:x'/></iq>").await;
    for _ in 0..2_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.waiting(), 1);
    let nothing = romeo.client.stream.try_read(&mut [0; 64]).map_err(|error| error.kind());
    assert_eq!(nothing, Err(std::io::ErrorKind::WouldBlock), "its answer says that the message is durable");
    store.release_all();
    while !matches!(romeo.client.hear().await, Some(Incoming::Stanza(_))) {}
}

#[tokio::test]
async fn a_session_without_a_connection_ends_when_its_account_is_removed() {
    let broker = Broker::start().await;
    let mut romeo = Phone::new(&broker, "romeo").await;
    let user = "romeo@localhost".parse().unwrap();
    let account = broker.node.parts.homes.known(&user).unwrap();
    cut(&mut romeo).await;
    while broker.xmpp.connections() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(account.session_count(), 1);
    broker.node.parts.homes.expel(&user);
    let ended = async {
        while account.session_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it ends");
}

#[tokio::test]
async fn who_resumes_a_session_that_the_store_ends_keeps_the_connection() {
    let (broker, store) = on_a_store(Config::default(), Journal::none()).await;
    let (mut romeo, _juliet) = (Phone::new(&broker, "romeo").await, Phone::new(&broker, "juliet").await);
    store.hold();
    romeo.says("juliet", "a").await;
    while store.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    let mut late = logged_in(&broker, "romeo").await;
    late.say(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{}' h='0'/>", romeo.name)).await;
    // It waits for what is under way.
    for _ in 0..2_000 {
        tokio::task::yield_now().await;
    }
    assert!(store.refuse(tavi_store::StoreError::Unavailable("a test says so".into())));
    assert_eq!(late.hear_element().await.name(), "failed");
    late.bind("phone").await;
}
