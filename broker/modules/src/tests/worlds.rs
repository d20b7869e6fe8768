//! Two nodes in one process over a way that loses, repeats, delays and reorders: Romeo is home on the first, Juliet on the
//! second, and each comes in on the other's node.

use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    future::Future,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tavi_core::{
    Bound, Closed, Draft, Envelope, FakeClock, Link, Node, Origin, Parts, Registry, Ticket, TicketQueue,
    bus::{BadWay, Bus, Channel, Dice, NodeId, Piece, Word},
    homes::SessionLimits,
    hooks::BoxFuture,
    permit::Grant,
    principal::Hosts,
};
use tavi_store::{Expect, MemoryStore, Op, Owner, SharedStore, Store, Table};
use tavi_xmpp_proto::{BareJid, Jid, Kind, Stanza};

use crate::contacts::{Contact, Subscription};

/// A node's end of the way: every word is bytes on it.
struct End {
    node: NodeId,
    channel: Arc<Mutex<Channel>>,
}

impl Bus for End {
    fn node(&self) -> NodeId {
        self.node
    }

    fn away(&self, owner: &BareJid) -> Option<NodeId> {
        let home = if owner.local() == Some("romeo") { 0 } else { 1 };
        (home != self.node).then_some(home)
    }

    fn send(&self, to: NodeId, word: Word) {
        assert_ne!(to, self.node);
        self.channel.lock().say(word.encode());
    }
}

struct Worlds {
    nodes: [Node; 2],
    ends: [Arc<Mutex<Channel>>; 2],
    way: BadWay<(usize, Piece)>,
    dice: Dice,
    now_ms: u64,
    store: Arc<MemoryStore>,
}

impl Worlds {
    async fn new(seed: u64) -> Worlds {
        let store = Arc::new(MemoryStore::default());
        for (one, other) in [("romeo", "juliet"), ("juliet", "romeo")] {
            let [one, other] = [one, other].map(|name| BareJid::new(name, "localhost").unwrap());
            let subscription = Subscription { to: true, from: true };
            let contact = Contact { subscription, added: true, ..Contact::default() };
            let account = Op::Put { table: Table::Account, item: "".into(), value: "x".into(), expect: Expect::Any };
            store.commit(&Owner::account(one.as_str()), vec![account, contact.save(&other)]).await.unwrap();
        }
        let ends = [0, 1].map(|_| Arc::<Mutex<Channel>>::default());
        let nodes = [node(0, &store, &ends).await, node(1, &store, &ends).await];
        Worlds { nodes, ends, way: BadWay::default(), dice: Dice(seed), now_ms: 0, store }
    }

    /// A little time goes by: something arrives, or is lost, or arrives and stays under way.
    async fn turn(&mut self) {
        self.now_ms += 20;
        for (from, end) in self.ends.iter().enumerate() {
            let pieces = end.lock().pieces(self.now_ms);
            self.way.carry(pieces.into_iter().map(|piece| (1 - from, piece)));
        }
        for _ in 0..self.way.len().min(3) {
            if let Some((to, piece)) = self.way.arrive(&mut self.dice) {
                self.arrives(to, piece);
            }
        }
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    fn arrives(&self, to: usize, piece: Piece) {
        self.ends[to].lock().take(piece);
        loop {
            let Some(word) = self.ends[to].lock().hear() else { return };
            self.nodes[to].hear(1 - to as NodeId, Word::decode(word).unwrap());
        }
    }

    async fn until<T: Send + 'static>(&mut self, what: impl Future<Output = T> + Send + 'static) -> T {
        let task = tokio::spawn(what);
        for _ in 0..20_000 {
            if task.is_finished() {
                return task.await.unwrap();
            }
            self.turn().await;
        }
        let open = self.ends.each_ref().map(|end| end.lock().open());
        panic!("it never comes; open {open:?}, {} under way", self.way.len());
    }

    async fn comes(&mut self, jid: &str, at: usize) -> Client {
        let (node, jid) = (self.nodes[at].clone(), jid.parse::<Jid>().unwrap());
        let (link, _) = self.until(async move { node.bind(&jid).await.unwrap() }).await;
        link.manage(Bound { items: 6, bytes: 100_000 });
        let mut client = Client::new(link);
        client.says("<presence/>");
        client
    }
}

async fn node(number: NodeId, store: &Arc<MemoryStore>, ends: &[Arc<Mutex<Channel>>; 2]) -> Node {
    let store: SharedStore = store.clone();
    let (hosts, clock) = (Hosts::new("localhost", &crate::HOSTS).unwrap(), Arc::new(FakeClock::at(1_795_359_600_000)));
    let parts = Parts::load_for(number, (hosts, store), clock, SessionLimits::default()).await.unwrap();
    let mut registry = Registry::default();
    crate::register(&mut registry, &parts).unwrap();
    Node::on(Arc::new(End { node: number, channel: ends[usize::from(number)].clone() }), parts, registry)
}

/// A connection with stream management: it knows nothing but its link.
struct Client {
    link: Link,
    sending: VecDeque<BoxFuture<'static, Ticket>>,
    tickets: TicketQueue<()>,
    handled: usize,
    seen: Vec<u64>,
    bodies: Vec<String>,
    presences: Vec<String>,
    headlines: Vec<String>,
    closed: Option<Closed>,
}

impl Client {
    fn new(link: Link) -> Client {
        let (tickets, seen, bodies) = (TicketQueue::default(), Vec::new(), Vec::new());
        let (presences, headlines, sending) = (Vec::new(), Vec::new(), VecDeque::new());
        Client { link, sending, tickets, handled: 0, seen, bodies, presences, headlines, closed: None }
    }

    fn says(&mut self, xml: &str) {
        let mut stanza = Stanza::parse(xml.as_bytes()).unwrap();
        stanza.head.from = Some(self.link.jid().clone());
        self.sending.push_back(self.link.sent(Envelope::received(stanza, Origin::Managed, 0)));
        self.sends();
    }

    /// One after the other. Over the bus it is said at once; at home something may have to be read first.
    fn sends(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        while let Some(sent) = self.sending.front_mut()
            && let Poll::Ready(ticket) = sent.as_mut().poll(cx)
        {
            self.sending.pop_front();
            self.tickets.push(ticket, (), 0);
        }
    }

    fn chat(&mut self, to: &str, number: usize) {
        self.says(&format!("<message to='{to}@localhost' type='chat'><body>{number}</body></message>"));
    }

    /// Reads what has come; acknowledges it if `acks`.
    fn turn(&mut self, acks: bool) {
        self.sends();
        let (cx, mut taken) = (&mut Context::from_waker(Waker::noop()), Vec::new());
        while let Poll::Ready(Some(((), result))) = self.tickets.poll_next(cx) {
            result.unwrap();
            self.handled += 1;
        }
        if let Poll::Ready(Err(why)) = self.link.poll_deliver(cx, usize::MAX, &mut taken) {
            self.closed = Some(why);
        }
        for (place, envelope) in taken {
            self.seen.push(place);
            match envelope.stanza.kind() {
                Kind::Message if envelope.stanza.body().is_none() => {
                    self.headlines.push(String::from_utf8(envelope.to_bytes().to_vec()).unwrap());
                }
                Kind::Message => self.bodies.extend(envelope.stanza.body()),
                _ => self.presences.push(String::from_utf8(envelope.to_bytes().to_vec()).unwrap()),
            }
        }
        if acks {
            self.link.acked(&std::mem::take(&mut self.seen));
        }
    }

    fn saw(&self, from: &str, type_: &str) -> bool {
        self.presences.iter().any(|p| p.contains(&format!("from='{from}")) && p.contains(type_))
    }
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

/// So many messages go each way.
const TALK: usize = 12;

async fn talk(seed: u64) {
    let mut worlds = Worlds::new(seed).await;
    let (mut romeo, mut juliet) =
        (worlds.comes("romeo@localhost/orchard", 1).await, worlds.comes("juliet@localhost/balcony", 0).await);
    let (mut said, mut turns) = ([0, 0], 0);
    while romeo.bodies.len() < TALK || juliet.bodies.len() < TALK || romeo.handled < TALK + 1 || juliet.handled <= TALK
    {
        let [to_juliet, to_romeo] = &mut said;
        for (who, to, said) in [(&mut romeo, "juliet", to_juliet), (&mut juliet, "romeo", to_romeo)] {
            // Not before both are there: what comes earlier is told elsewhere.
            if turns > 200 && *said < TALK && worlds.dice.below(3) == 0 {
                who.chat(to, *said);
                *said += 1;
            }
            who.turn(worlds.dice.below(2) == 0);
        }
        worlds.turn().await;
        turns += 1;
        assert!(turns < 20_000, "seed {seed}: {:?} {:?}", romeo.bodies, juliet.bodies);
    }
    assert_eq!((&romeo.bodies, &juliet.bodies), (&numbers(TALK), &numbers(TALK)), "seed {seed}");
    assert!(juliet.saw("romeo@localhost/orchard", "") && romeo.saw("juliet@localhost/balcony", ""), "seed {seed}");
    let link = romeo.link.clone();
    worlds.until(async move { link.end(Vec::new()).await.complete().await.unwrap() }).await;
    for _ in 0..400 {
        worlds.turn().await;
        juliet.turn(true);
    }
    assert!(juliet.saw("romeo@localhost/orchard", "unavailable"), "seed {seed}");
    assert!(worlds.nodes[0].parts.homes.receivers(&"romeo@localhost".parse().unwrap()).is_empty(), "seed {seed}");
}

#[tokio::test]
async fn two_homes_talk_over_a_bad_way_and_lose_double_and_turn_round_nothing() {
    for seed in 0..300 {
        talk(seed).await;
    }
}

/// Romeo comes again with the same resource, on either node, while Juliet writes.
async fn takeover(seed: u64) {
    let mut worlds = Worlds::new(seed).await;
    let (mut old, mut juliet) =
        (worlds.comes("romeo@localhost/orchard", 1).await, worlds.comes("juliet@localhost/balcony", 0).await);
    for n in 0..TALK {
        juliet.chat("romeo", n);
        worlds.turn().await;
        old.turn(worlds.dice.below(3) == 0);
        juliet.turn(true);
    }
    let at = worlds.dice.below(2);
    let node = worlds.nodes[at].clone();
    let (link, _) =
        worlds.until(async move { node.bind(&"romeo@localhost/orchard".parse().unwrap()).await.unwrap() }).await;
    link.manage(Bound { items: 6, bytes: 100_000 });
    let mut new = Client::new(link.clone());
    let presence = Stanza::parse(b"<presence from='romeo@localhost/orchard'/>").unwrap();
    let sent = link.sent(Envelope::received(presence, Origin::Managed, 0));
    worlds.until(async move { sent.await.complete().await.unwrap() }).await;
    for turn in 0.. {
        worlds.turn().await;
        juliet.turn(true);
        new.turn(true);
        old.turn(false);
        let mut heard: Vec<String> = old.bodies.clone();
        heard.extend(new.bodies.iter().filter(|body| !old.bodies.contains(body)).cloned());
        if heard == numbers(TALK) && old.closed == Some(Closed::Replaced) && juliet.handled == TALK + 1 {
            break;
        }
        assert!(turn < 20_000, "seed {seed}: {:?} {:?} {:?}", old.closed, old.bodies, new.bodies);
    }
    let once: std::collections::BTreeSet<_> = new.bodies.iter().collect();
    assert_eq!(once.len(), new.bodies.len(), "seed {seed}: nothing twice on one link");
    assert!(new.bodies.is_sorted_by_key(|body| body.parse::<usize>().unwrap()), "seed {seed}: {:?}", new.bodies);
    assert_eq!(new.closed, None, "seed {seed}");
}

#[tokio::test]
async fn a_resource_that_is_taken_over_from_another_node_sends_the_old_link_away_and_loses_nothing() {
    for seed in 0..200 {
        takeover(seed).await;
    }
}

#[tokio::test]
async fn nothing_counts_as_handled_before_the_other_home_has_it_on_disk() {
    for seed in 0..20 {
        let mut worlds = Worlds::new(seed).await;
        let (mut romeo, mut juliet) =
            (worlds.comes("romeo@localhost/orchard", 1).await, worlds.comes("juliet@localhost/balcony", 0).await);
        for _ in 0..300 {
            worlds.turn().await;
            romeo.turn(true);
            juliet.turn(true);
        }
        assert_eq!(juliet.handled, 1, "her presence");
        worlds.store.hold();
        juliet.chat("romeo", 0);
        for _ in 0..600 {
            worlds.turn().await;
            romeo.turn(true);
            juliet.turn(true);
        }
        assert_eq!((juliet.handled, romeo.bodies.len()), (1, 0), "seed {seed}: it is not on disk");
        worlds.store.release_all();
        while juliet.handled < 2 || romeo.bodies.is_empty() {
            worlds.turn().await;
            romeo.turn(true);
            juliet.turn(true);
        }
    }
}

#[tokio::test]
async fn who_is_not_there_has_no_seat_on_any_node() {
    let mut worlds = Worlds::new(1).await;
    let node = worlds.nodes[0].clone();
    let refused = worlds.until(async move { node.bind(&"paris@localhost/x".parse().unwrap()).await.err() }).await;
    assert_eq!(refused, Some(tavi_core::bus::NoSeat::Nobody));
}

/// What is published on one node for somebody whose home, and whose subscription's row, is another's.
async fn headlines(seed: u64) {
    let mut worlds = Worlds::new(seed).await;
    let row = Op::Put {
        table: Table::Node,
        item: "sub:juliet@localhost".into(),
        value: Default::default(),
        expect: Expect::Any,
    };
    worlds.store.commit(&Owner::topic("u/romeo/mood"), vec![row]).await.unwrap();
    let parts = worlds.nodes[0].parts.clone();
    let grant = Grant::new(1, "juliet@localhost", "subscribe".parse().unwrap(), "u/romeo/#").unwrap();
    parts.permit.add(grant).await.unwrap();
    crate::start(&worlds.nodes[0]).await.unwrap();
    let at = worlds.dice.below(2);
    let mut juliet = worlds.comes("juliet@localhost/balcony", at).await;
    while juliet.handled == 0 {
        worlds.turn().await;
        juliet.turn(true);
    }
    let romeo = parts.hosts.principal(&"romeo@localhost".parse().unwrap()).unwrap();
    for mood in ["glad", "sad"] {
        let draft = Draft { topic: "u/romeo/mood".into(), payload: mood.into(), ..Draft::default() };
        parts.topics.publish(&romeo, draft).unwrap().complete().await.unwrap();
    }
    for _ in 0..600 {
        worlds.turn().await;
        juliet.turn(true);
    }
    let said = juliet.headlines.iter().map(|event| (event.contains(">glad<"), event.contains(">sad<")));
    assert_eq!(said.collect::<Vec<_>>(), [(true, false), (false, true)], "seed {seed}: {:?}", juliet.headlines);
    assert!(juliet.headlines.iter().all(|event| event.contains("to='juliet@localhost'")), "{:?}", juliet.headlines);
}

#[tokio::test]
async fn an_event_reaches_who_subscribed_on_another_node() {
    for seed in 0..40 {
        headlines(seed).await;
    }
}

/// Juliet's balcony is on the node that goes, her desk at home.
async fn departure(seed: u64) {
    let mut worlds = Worlds::new(seed).await;
    let mut desk = worlds.comes("juliet@localhost/desk", 1).await;
    let mut balcony = worlds.comes("juliet@localhost/balcony", 0).await;
    while balcony.handled == 0 || !desk.saw("juliet@localhost/balcony", "") {
        worlds.turn().await;
        desk.turn(true);
        balcony.turn(true);
    }
    let mut acked = 0;
    for n in 0..TALK {
        desk.says(&format!("<message to='juliet@localhost/balcony' type='chat'><body>{n}</body></message>"));
        worlds.turn().await;
        desk.turn(true);
        let acks = n < TALK / 2 && worlds.dice.below(3) == 0;
        balcony.turn(acks);
        if acks {
            acked = balcony.bodies.len();
        }
    }
    worlds.nodes[1].departed(0);
    worlds.nodes[0].departed(1);
    balcony.turn(false);
    assert_eq!(balcony.closed, Some(Closed::Gone), "seed {seed}");
    // Whoever still speaks there is told so, and ends without its home.
    let stanza = Stanza::parse(b"<presence from='juliet@localhost/balcony'/>").unwrap();
    let said = balcony.link.sent(Envelope::received(stanza, Origin::Managed, 0)).await;
    assert!(said.complete().await.is_err(), "seed {seed}");
    balcony.link.end(Vec::new()).await.complete().await.unwrap();
    for turn in 0.. {
        tokio::task::yield_now().await;
        desk.turn(true);
        if desk.saw("juliet@localhost/balcony", "unavailable") && desk.bodies.last() == numbers(TALK).last() {
            break;
        }
        assert!(turn < 2_000, "seed {seed}: {:?} {:?}", desk.bodies, desk.presences);
    }
    // What it acknowledged may not have been heard of any more; what it did not is not lost.
    assert!(desk.bodies.len() >= TALK - acked, "seed {seed}: {:?}", desk.bodies);
    assert!(desk.bodies.iter().eq(numbers(TALK)[TALK - desk.bodies.len()..].iter()), "seed {seed}: {:?}", desk.bodies);
    let seats = worlds.nodes[1].parts.homes.receivers(&"juliet@localhost".parse().unwrap());
    assert_eq!(seats, [desk.link.seat().clone()], "seed {seed}");
}

#[tokio::test]
async fn a_node_that_goes_takes_its_guests_along_and_nothing_they_were_owed() {
    for seed in 0..100 {
        departure(seed).await;
    }
}

#[tokio::test]
async fn whoever_was_coming_from_a_node_that_has_gone_gets_no_seat() {
    let worlds = Worlds::new(1).await;
    let home = &worlds.nodes[1];
    let jid: Jid = "juliet@localhost/balcony".parse().unwrap();
    home.hear(0, Word::Attach { link: 7, jid: jid.clone() });
    home.departed(0);
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert_eq!(home.parts.homes.known(&jid.to_bare()).unwrap().session_count(), 0);
}
