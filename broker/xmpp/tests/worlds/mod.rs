//! Real connections to two nodes: Romeo is home on the first, Juliet on the second, and each connects to the other's node.
//! The way between the nodes loses, repeats, delays and reorders.

use crate::client::{Broker, Client};
use parking_lot::Mutex;
use std::sync::Arc;
use tavi_core::bus::{BadWay, Bus, Channel, Dice, NodeId, Piece, Word};
use tavi_core::homes::SessionLimits;
use tavi_core::{Hosts, Node, Parts, Registry, SystemClock};
use tavi_store::{MemoryStore, SharedStore};
use tavi_xmpp::Config;
use tavi_xmpp_proto::sm::SmRequest;
use tavi_xmpp_proto::{BareJid, Incoming};
use tokio::net::TcpStream;

type Ends = [Arc<Mutex<Channel>>; 2];

struct End(NodeId, Ends);

impl Bus for End {
    fn node(&self) -> NodeId {
        self.0
    }

    fn away(&self, owner: &BareJid) -> Option<NodeId> {
        let home = if owner.local() == Some("romeo") { 0 } else { 1 };
        (home != self.0).then_some(home)
    }

    fn send(&self, _: NodeId, word: Word) {
        self.1[usize::from(self.0)].lock().say(word.encode());
    }
}

/// Carries what the nodes say, badly, for as long as the test runs.
async fn carry(nodes: [Node; 2], ends: Ends, mut dice: Dice) {
    let (mut way, mut now_ms): (BadWay<(usize, Piece)>, u64) = (BadWay::default(), 0);
    loop {
        now_ms += 10;
        for (from, end) in ends.iter().enumerate() {
            let pieces = end.lock().pieces(now_ms);
            way.carry(pieces.into_iter().map(|piece| (1 - from, piece)));
        }
        for _ in 0..way.len().min(4) {
            let Some((to, piece)) = way.arrive(&mut dice) else { continue };
            ends[to].lock().take(piece);
            while let Some(word) = { ends[to].lock().hear() } {
                nodes[to].hear(1 - to as NodeId, Word::decode(word).unwrap());
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn two_brokers(seed: u64) -> [Broker; 2] {
    let store: SharedStore = Arc::new(MemoryStore::default());
    let ends: Ends = Default::default();
    let mut brokers = Vec::new();
    for number in 0..2 {
        let hosts = Hosts::new("localhost", &[]).unwrap();
        let limits = SessionLimits::default();
        let parts = Parts::load_for(number, (hosts, store.clone()), Arc::new(SystemClock), limits).await.unwrap();
        if number == 0 {
            for (user, password) in [("romeo", "oemor"), ("juliet", "teiluj")] {
                parts.accounts.create(&format!("{user}@localhost").parse().unwrap(), password).await.unwrap();
            }
        }
        let node = Node::on(Arc::new(End(number, ends.clone())), parts, Registry::default());
        brokers.push(Broker::on(node, store.clone(), Config::default()).await);
    }
    let brokers: [Broker; 2] = brokers.try_into().ok().unwrap();
    tokio::spawn(carry(brokers.each_ref().map(|broker| broker.node.clone()), ends, Dice(seed)));
    brokers
}

/// Hears so many messages in order, each once, and acknowledges them; gives how many of its own are handled by then.
async fn converse(client: &mut Client<TcpStream>, count: usize) {
    let (mut heard, mut handled) = (0, 0);
    while heard < count || handled < count {
        match client.hear().await.expect("the stream goes on") {
            Incoming::Stanza(stanza) => {
                assert_eq!(stanza.body(), Some(heard.to_string()));
                heard += 1;
            }
            Incoming::Element(element) => match SmRequest::read(&element) {
                Some(SmRequest::Ask) => client.say(&format!("<a xmlns='urn:xmpp:sm:3' h='{heard}'/>")).await,
                Some(SmRequest::Answer(h)) => handled = h as usize,
                _ => {}
            },
            other => panic!("{other:?}"),
        }
    }
}

fn messages(to: &str, count: usize) -> String {
    let message = |n| format!("<message to='{to}' type='chat'><body>{n}</body></message>");
    let all: String = (0..count).map(message).collect();
    format!("{all}<r xmlns='urn:xmpp:sm:3'/>")
}

#[tokio::test]
async fn connections_talk_over_two_nodes_in_order_and_a_resource_is_taken_over() {
    for seed in 0..6 {
        let [first, second] = two_brokers(seed).await;
        let mut romeo = second.login("romeo", "orchard").await;
        let mut juliet = first.login("juliet", "balcony").await;
        for client in [&mut romeo, &mut juliet] {
            client.say("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
            assert_eq!(client.hear_element().await.name(), "enabled");
        }
        romeo.say(&messages("juliet@localhost/balcony", 150)).await;
        juliet.say(&messages("romeo@localhost/orchard", 150)).await;
        tokio::join!(converse(&mut romeo, 150), converse(&mut juliet, 150));
        let mut again = first.login("romeo", "orchard").await;
        assert_eq!(romeo.hear_the_end().await, "conflict");
        juliet.say("<message to='romeo@localhost/orchard' type='chat'><body>Who is there?</body></message>").await;
        let mut last = again.hear_stanza().await;
        // What the former connection heard and had not acknowledged comes first (XEP-0198 §5), as something old.
        while last.body().as_deref() != Some("Who is there?") {
            assert!(last.child("urn:xmpp:delay", "delay").is_some(), "{:?}", last.body());
            last = again.hear_stanza().await;
        }
    }
}
