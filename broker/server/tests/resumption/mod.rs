//! XEP-0198 §5 over a broker that is killed or stopped and started again: each client goes on with its stream, and no
//! message is lost, doubled or reordered.

use std::collections::VecDeque;
use tavi_testkit::{
    Broker,
    xmpp::{XmppClient, condition},
};
use tavi_xmpp_proto::Element;

const PASSWORD: &str = "a password of the tests";
const NAMES: [&str; 2] = ["romeo", "juliet"];

/// Small random numbers, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

struct Phone {
    client: XmppClient,
    user: &'static str,
    other: &'static str,
    stream: String,
    /// Stanzas that the server is not known to have handled, and how many it is.
    said: VecDeque<Element>,
    counted: u32,
    /// Messages said so far.
    last: u32,
    heard: Vec<u32>,
}

impl Phone {
    async fn new(broker: &Broker, who: usize) -> Phone {
        let (user, other) = (NAMES[who], NAMES[1 - who]);
        let mut client = XmppClient::connect(broker.address("xmpp").unwrap(), "localhost").await.unwrap();
        client.log_in(user, PASSWORD).await.unwrap();
        let stream = client.manage_resumable().await.unwrap();
        let mut phone =
            Phone { client, user, other, stream, said: VecDeque::new(), counted: 0, last: 0, heard: Vec::new() };
        phone.sends(Element::new("jabber:client", "presence"));
        phone
    }

    fn sends(&mut self, stanza: Element) {
        self.said.push_back(stanza.clone());
        // The broker may be gone already.
        let _ = self.client.send(&stanza);
    }

    fn says(&mut self, dice: &mut Dice) {
        self.last += 1;
        let body = Element::new("jabber:client", "body").text(self.last.to_string());
        let message = Element::new("jabber:client", "message").attr("type", "chat");
        self.sends(message.attr("to", format!("{}@localhost", self.other)).child(body));
        if dice.below(4) == 0 {
            let _ = self.client.send_bytes(b"<r xmlns='urn:xmpp:sm:3'/>".to_vec());
        }
    }

    /// Takes what has come.
    fn hears(&mut self) {
        let body = |e: &Element| e.get_child("jabber:client", "body").map(|body| body.text_content().parse().unwrap());
        while let Some(number) = self.client.take_now(body) {
            self.heard.push(number);
        }
        let h = |e: &Element| e.is("urn:xmpp:sm:3", "a").then(|| e.get_attr("h")?.parse().ok()).flatten();
        while let Some(h) = self.client.take_now(h) {
            self.server_has(h);
        }
    }

    fn server_has(&mut self, h: u32) {
        let new = h.checked_sub(self.counted).expect("what is handled stays handled");
        self.said.drain(..new as usize);
        self.counted = h;
    }

    /// Waits for one more message.
    async fn hears_one(&mut self) {
        let body = |e: &Element| e.get_child("jabber:client", "body").map(|body| body.text_content().parse().unwrap());
        let number = self.client.take("a message", body).await.unwrap();
        self.heard.push(number);
    }

    async fn resumes(&mut self, broker: &Broker) {
        self.client.closed().await.unwrap();
        self.hears();
        let mut client = XmppClient::connect(broker.address("xmpp").unwrap(), "localhost").await.unwrap();
        let h = client.resume(self.user, PASSWORD, &self.stream, self.client.handled()).await.unwrap();
        self.client = client;
        self.server_has(h);
        for stanza in &self.said {
            self.client.send(stanza).unwrap();
        }
    }
}

/// XEP-0198 §5: `h` of `<resumed/>` is what was handled, so the client does not ask for it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_before_the_broker_was_killed_counts_afterwards() {
    let mut broker = Broker::start().unwrap();
    broker.add_user("romeo@localhost", PASSWORD).unwrap();
    let mut romeo = Phone::new(&broker, 0).await;
    romeo.client.settle().await.unwrap();
    let message = Element::new("jabber:client", "message").attr("type", "chat").attr("to", "nobody@localhost");
    romeo.sends(message.child(Element::new("jabber:client", "body").text("is somebody there?")));
    let refused = |e: &Element| (e.name() == "message").then(|| condition(e)).flatten();
    assert_eq!(romeo.client.take("a refusal", refused).await.unwrap(), "service-unavailable");
    broker.kill9().unwrap();
    broker.start_again().unwrap();
    romeo.client.closed().await.unwrap();
    let mut client = XmppClient::connect(broker.address("xmpp").unwrap(), "localhost").await.unwrap();
    let h = client.resume("romeo", PASSWORD, &romeo.stream, romeo.client.handled()).await.unwrap();
    assert_eq!(h, 3, "his presence, what he asked and what he said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_go_on_with_their_streams_however_often_the_broker_is_killed() {
    let mut broker = Broker::start().unwrap();
    for user in NAMES {
        broker.add_user(&format!("{user}@localhost"), PASSWORD).unwrap();
    }
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut phones = [Phone::new(&broker, 0).await, Phone::new(&broker, 1).await];
    for round in 0..12 {
        for _ in 0..10 + dice.below(60) {
            let who = dice.below(2) as usize;
            phones[who].says(&mut dice);
            if dice.below(3) == 0 {
                phones[1 - who].hears();
            }
        }
        // Killed at once, or in the middle of what is under way.
        let other = dice.below(2) as usize;
        for _ in 0..dice.below(30) {
            if phones[other].heard.len() < phones[1 - other].last as usize {
                phones[other].hears_one().await;
            }
        }
        if round % 4 == 3 {
            broker.stop().unwrap()
        } else {
            broker.kill9().unwrap()
        }
        broker.start_again().unwrap();
        let first = dice.below(2) as usize;
        phones[first].resumes(&broker).await;
        phones[first].says(&mut dice);
        // Sometimes the other comes only after the next kill.
        if dice.below(4) == 0 {
            broker.kill9().unwrap();
            broker.start_again().unwrap();
            phones[first].resumes(&broker).await;
        }
        phones[1 - first].resumes(&broker).await;
    }
    for who in 0..2 {
        while phones[who].heard.len() < phones[1 - who].last as usize {
            phones[who].hears_one().await;
        }
    }
    for phone in &mut phones {
        phone.client.settle().await.unwrap();
        phone.hears();
    }
    for who in 0..2 {
        assert_eq!(phones[who].heard, (1..=phones[1 - who].last).collect::<Vec<_>>(), "{} heard", NAMES[who]);
    }
}

/// Whoever has the name afterwards is somebody else: what was in flight to the one before is not for him.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_goes_on_with_a_stream_of_an_account_that_was_removed_meanwhile() {
    let mut broker = Broker::start().unwrap();
    for user in NAMES {
        broker.add_user(&format!("{user}@localhost"), PASSWORD).unwrap();
    }
    let romeo = Phone::new(&broker, 0).await;
    let juliet = Phone::new(&broker, 1).await;
    juliet.client.settle().await.unwrap();
    broker.stop().unwrap();
    broker.tavi(&["user", "remove", "romeo@localhost"]).unwrap();
    let made = broker.tavi(&["user", "add", "romeo@localhost"]).unwrap();
    broker.start_again().unwrap();
    romeo.client.closed().await.unwrap();
    let mut client = XmppClient::connect(broker.address("xmpp").unwrap(), "localhost").await.unwrap();
    let password = made["password"].as_str().unwrap();
    let refused = client.resume("romeo", password, &romeo.stream, romeo.client.handled()).await.unwrap_err();
    assert!(refused.to_string().contains("item-not-found"), "{refused}");
    juliet.client.closed().await.unwrap();
    let mut client = XmppClient::connect(broker.address("xmpp").unwrap(), "localhost").await.unwrap();
    client.resume("juliet", PASSWORD, &juliet.stream, juliet.client.handled()).await.unwrap();
}

/// The rows and the streams are of one store: with another one, clients log in anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_store_has_no_streams_of_the_one_before() {
    let mut broker = Broker::start().unwrap();
    broker.add_user("romeo@localhost", PASSWORD).unwrap();
    let romeo = Phone::new(&broker, 0).await;
    romeo.client.settle().await.unwrap();
    broker.stop().unwrap();
    let export = broker.data().join("export");
    broker.tavi(&["store", "export", export.to_str().unwrap()]).unwrap();
    std::fs::rename(broker.data().join("store"), broker.data().join("store.old")).unwrap();
    broker.tavi(&["store", "import", export.to_str().unwrap()]).unwrap();
    broker.start_again().unwrap();
    romeo.client.closed().await.unwrap();
    let mut client = XmppClient::connect(broker.address("xmpp").unwrap(), "localhost").await.unwrap();
    let refused = client.resume("romeo", PASSWORD, &romeo.stream, romeo.client.handled()).await.unwrap_err();
    assert!(refused.to_string().contains("item-not-found"), "{refused}");
}
