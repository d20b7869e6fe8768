//! One node and the words that it hears and says, one by one: what a way that loses nothing brings in any order.

use super::*;
use crate::{
    clock::FakeClock,
    envelope::Origin,
    homes::SessionLimits,
    hooks::Registry,
    node::{Node, Parts},
    principal::{Hosts, Principal},
    publication::{Change, Publication, Qos, Rendered},
    topics::{Draft, Rows, SeatName, Seating, SubOptions, Subscriber},
};
use std::task::{Context, Poll, Waker};
use tavi_store::{Expect, MemoryStore, Op, Owner, SharedStore, Store, Table};
use tavi_xmpp_proto::stanza::Stanza;

/// Writes down what is said. Juliet is home on node 1.
#[derive(Default)]
struct Paper(Mutex<Vec<Word>>);

impl Bus for Paper {
    fn node(&self) -> NodeId {
        0
    }

    fn away(&self, owner: &BareJid) -> Option<NodeId> {
        (owner.local() == Some("juliet")).then_some(1)
    }

    fn send(&self, to: NodeId, word: Word) {
        assert_eq!(to, 1);
        self.0.lock().push(word);
    }
}

struct World {
    node: Node,
    paper: Arc<Paper>,
    store: Arc<MemoryStore>,
}

async fn world() -> World {
    let (store, paper) = (Arc::new(MemoryStore::default()), Arc::new(Paper::default()));
    for name in ["romeo", "paris"] {
        let account = Op::Put { table: Table::Account, item: "".into(), value: "x".into(), expect: Expect::Any };
        store.commit(&Owner::account(&format!("{name}@localhost")), vec![account]).await.unwrap();
    }
    let shared: SharedStore = store.clone();
    let hosts = (Hosts::new("localhost", &[]).unwrap(), shared);
    let parts = Parts::load_for(0, hosts, Arc::new(FakeClock::at(1)), SessionLimits::default()).await.unwrap();
    let node = Node::on(paper.clone(), parts, Registry::default());
    World { node, paper, store }
}

async fn goes_on() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

fn jid(text: &str) -> Jid {
    text.parse().unwrap()
}

fn message(from: &str, to: &str, text: impl ToString) -> Envelope {
    let text = text.to_string();
    let xml = format!("<message from='{from}' to='{to}' type='chat'><body>{text}</body></message>");
    Envelope::received(Stanza::parse(xml.as_bytes()).unwrap(), Origin::Managed, 1)
}

/// The same, of which nothing is kept.
fn passing(from: &str, to: &str, text: &str) -> Envelope {
    let hint = "<no-store xmlns='urn:xmpp:hints'/>";
    let xml = format!("<message from='{from}' to='{to}' type='chat'><body>{text}</body>{hint}</message>");
    Envelope::received(Stanza::parse(xml.as_bytes()).unwrap(), Origin::Managed, 1)
}

impl World {
    fn said(&self) -> Vec<Word> {
        std::mem::take(&mut self.paper.0.lock())
    }

    /// The bodies of what was said to be delivered, with their places.
    fn delivered(&self) -> Vec<(u64, String)> {
        let deliver = |word: Word| match word {
            Word::Deliver { link: 7, place, envelope } => envelope.stanza.body().map(|body| (place, body)),
            _ => None,
        };
        self.said().into_iter().filter_map(deliver).collect()
    }

    /// Romeo comes in on node 1, under the link 7.
    async fn admits(&self) {
        self.node.hear(1, Word::Attach { link: 7, jid: jid("romeo@localhost/orchard") });
        goes_on().await;
        let said = self.said();
        assert!(matches!(said[..], [Word::Attached { link: 7, seat: Ok(_) }]), "{said:?}");
    }

    async fn romeo_is_told(&self, count: usize) {
        for n in 0..count {
            let told = self.node.route(message("paris@localhost/street", "romeo@localhost/orchard", n)).await;
            told.complete().await.unwrap();
        }
        goes_on().await;
    }

    fn is_detached(&self) -> bool {
        let romeo = self.node.parts.homes.known(&jid("romeo@localhost").to_bare()).unwrap();
        romeo.at_home(|state| state.sessions[0].inbox.is_detached())
    }
}

#[tokio::test]
async fn what_is_asked_of_another_home_is_answered_as_it_says_or_fails_when_it_goes() {
    let world = world().await;
    for saved in [Some(true), Some(false), None] {
        let asked = world.node.route(message("romeo@localhost/a", "juliet@localhost", "?")).await;
        let [Word::Route { number, .. }] = world.said()[..] else { panic!("one word") };
        match saved {
            Some(saved) => world.node.hear(1, Word::Answered { number, saved }),
            None => world.node.departed(1),
        }
        let done = tokio::time::timeout(std::time::Duration::from_secs(20), asked.complete()).await;
        assert_eq!(done.expect("it is answered").is_ok(), saved == Some(true), "{saved:?}");
    }
    assert!(world.node.router.exchange.answers.lock().is_empty());
}

#[tokio::test]
async fn whoever_is_refused_a_seat_leaves_no_mirror() {
    let world = world().await;
    let node = world.node.clone();
    let coming = tokio::spawn(async move { node.bind(&jid("juliet@localhost/balcony")).await.err() });
    goes_on().await;
    let [Word::Attach { link, .. }] = world.said()[..] else { panic!("one word") };
    world.node.hear(1, Word::Attached { link, seat: Err(NoSeat::TooMany) });
    assert_eq!(coming.await.unwrap(), Some(NoSeat::TooMany));
    assert!(world.node.router.exchange.mirrors.lock().is_empty());
}

#[tokio::test]
async fn a_link_says_what_its_client_does_and_hears_places() {
    let world = world().await;
    let node = world.node.clone();
    let coming = tokio::spawn(async move { node.bind(&jid("juliet@localhost/balcony")).await.unwrap().0 });
    goes_on().await;
    let [Word::Attach { link: number, .. }] = world.said()[..] else { panic!("one word") };
    world.node.hear(1, Word::Attached { link: number, seat: Ok(3) });
    let link = coming.await.unwrap();
    link.manage(Bound { items: 5, bytes: 9_000 });
    for place in [70, 71] {
        let envelope = message("romeo@localhost/a", "juliet@localhost/balcony", place);
        world.node.hear(1, Word::Deliver { link: number, place, envelope });
    }
    let places: Vec<u64> = link.take().iter().map(|envelope| envelope.meta.place).collect();
    assert_eq!(places, [70, 71]);
    link.acked(&[70]);
    link.detach();
    link.attach();
    let end = link.end(Vec::new()).await;
    let said: Vec<String> = world.said().iter().map(|word| format!("{word:?}")).collect();
    let wanted = [
        "Manage { link: 1, window: Bound { items: 5, bytes: 9000 } }",
        "Acked { link: 1, places: [70] }",
        "Detach { link: 1, gone: true }",
        "Detach { link: 1, gone: false }",
        "End { link: 1, number: ",
    ];
    assert_eq!(said.len(), wanted.len(), "{said:?}");
    assert!(said.iter().zip(wanted).all(|(said, wanted)| said.starts_with(wanted)), "{said:?}");
    assert!(!end.is_ready(), "it waits for the home's answer");
}

#[tokio::test]
async fn so_much_is_on_its_way_to_a_guest_as_it_has_room_for() {
    let world = world().await;
    world.admits().await;
    world.romeo_is_told(300).await;
    let first = world.delivered();
    assert_eq!(first.len(), 256, "before its client says how much it takes");
    let places: Vec<u64> = first.iter().map(|(place, _)| *place).collect();
    world.node.hear(1, Word::Manage { link: 7, window: Bound { items: 3, bytes: 1 << 20 } });
    world.node.hear(1, Word::Acked { link: 7, places: places[..254].to_vec() });
    goes_on().await;
    assert_eq!(world.delivered().len(), 1, "two are not acknowledged");
    world.node.hear(1, Word::Detach { link: 7, gone: true });
    assert!(world.is_detached());
    world.node.hear(1, Word::Detach { link: 7, gone: false });
    assert!(!world.is_detached());
}

#[tokio::test]
async fn whoever_is_not_home_here_gets_no_seat_here() {
    let world = world().await;
    world.node.hear(1, Word::Attach { link: 7, jid: jid("juliet@localhost/balcony") });
    goes_on().await;
    let said = world.said();
    assert!(matches!(said[..], [Word::Attached { link: 7, seat: Err(NoSeat::Unavailable) }]), "{said:?}");
}

#[tokio::test]
async fn what_a_guest_sends_goes_on_while_others_of_it_are_saved_and_no_more_than_a_window_is_open() {
    let world = world().await;
    world.admits().await;
    let (paris, _seat) = world.node.bind(&jid("paris@localhost/street")).await.unwrap();
    world.store.hold();
    let sent = |number, envelope| world.node.hear(1, Word::Sent { link: 7, number, envelope });
    sent(1, message("romeo@localhost/orchard", "romeo@localhost/nowhere-else", "kept"));
    sent(2, message("romeo@localhost/orchard", "paris@localhost/street", "kept"));
    goes_on().await;
    assert_eq!(world.store.waiting(), 1, "nobody keeps what is for nobody");
    // The lane waits for that commit, and is woken.
    sent(3, message("romeo@localhost/orchard", "paris@localhost/street", "kept"));
    goes_on().await;
    assert_eq!(world.store.waiting(), 2);
    assert!(paris.take().is_empty());
    for number in 4..200 {
        sent(number, message("romeo@localhost/orchard", "paris@localhost/street", "kept"));
    }
    goes_on().await;
    assert_eq!(world.store.waiting(), 64);
    world.store.release_all();
    for _ in 0..20 {
        goes_on().await;
        world.store.release_all();
    }
    assert_eq!(paris.take().len(), 198);
}

#[tokio::test]
async fn an_answer_of_one_home_waits_for_no_other_answer() {
    let world = world().await;
    let (_paris, _seat) = world.node.bind(&jid("paris@localhost/street")).await.unwrap();
    world.store.hold();
    let from = "juliet@localhost/balcony";
    world.node.hear(1, Word::Route { number: 5, envelope: message(from, "paris@localhost/street", "kept") });
    goes_on().await;
    assert!(world.said().is_empty() && world.store.waiting() == 1);
    world.node.hear(1, Word::Route { number: 6, envelope: passing(from, "paris@localhost/street", "passing") });
    goes_on().await;
    let said = world.said();
    assert!(matches!(said[..], [Word::Answered { number: 6, saved: true }]), "{said:?}");
    world.store.release_all();
    goes_on().await;
    let said = world.said();
    assert!(matches!(said[..], [Word::Answered { number: 5, saved: true }]), "{said:?}");
}

/// A durable seat that writes down what it is told.
struct Seat {
    seating: Seating,
    owner: Owner,
    told: Mutex<Vec<(u64, bool)>>,
}

impl Subscriber for Seat {
    fn id(&self) -> u64 {
        self.seating.number()
    }

    fn principal(&self) -> &Principal {
        self.seating.principal()
    }

    fn partition(&self) -> Option<&Owner> {
        Some(&self.owner)
    }

    fn store(&self, p: &Arc<Publication>, _: &[SubOptions]) -> Option<Rows> {
        Some((self.owner.clone(), vec![Op::QueuePush { id: p.id, value: p.encode() }]))
    }

    fn deliver(&self, p: &Arc<Publication>, _: &[SubOptions]) {
        self.told.lock().push((p.id, true));
    }

    fn abandon(&self, p: &Arc<Publication>) {
        self.told.lock().push((p.id, false));
    }
}

impl World {
    fn seat(&self) -> (Arc<Seat>, SeatName) {
        let romeo = Principal::Account(jid("romeo@localhost").to_bare());
        let owner = Owner::mqtt("romeo@localhost", "lamp");
        let make = |seating| Seat { seating, owner: owner.clone(), told: Mutex::default() };
        let seat = self.node.parts.topics.seat(&romeo, make);
        let name = SeatName { owner, number: seat.id() };
        (seat, name)
    }
}

async fn publication(world: &World, id: u64) -> Arc<Publication> {
    let topics = &world.node.parts.topics;
    let romeo = Principal::Account(jid("romeo@localhost").to_bare());
    let draft =
        Draft { topic: "u/romeo/a".into(), payload: "v".into(), retain: true, id: Some(id), ..Draft::default() };
    topics.publish(&romeo, draft).unwrap().complete().await.unwrap();
    topics.kept_value("u/romeo/a").unwrap().unwrap()
}

#[tokio::test]
async fn what_a_node_that_goes_had_begun_lands_once_if_it_is_saved_and_is_abandoned_if_nothing_was() {
    let world = world().await;
    let (seat, name) = world.seat();
    let options = || vec![SubOptions { qos: Qos::AtLeastOnce, ..SubOptions::default() }];
    let [placed, saving, saved] =
        [publication(&world, 11).await, publication(&world, 12).await, publication(&world, 13).await];
    world.store.hold();
    for publication in [&placed, &saving, &saved] {
        world.node.hear(1, Word::Owe { seat: name.clone(), options: options(), publication: publication.clone() });
    }
    world.node.hear(1, Word::Keep { number: 1, seat: name.clone(), id: 13 });
    world.store.release_all();
    goes_on().await;
    world.node.hear(1, Word::Keep { number: 2, seat: name.clone(), id: 12 });
    assert!(seat.told.lock().is_empty(), "their turns in the topic have not come");
    world.node.departed(1);
    let mut told = seat.told.lock().clone();
    told.sort_unstable();
    assert_eq!(told, [(11, false), (13, true)], "of the third it is not known");
    world.store.release_all();
    goes_on().await;
    assert_eq!(seat.told.lock().last(), Some(&(12, true)));
    for id in [11, 12, 13] {
        world.node.hear(1, Word::Land { seat: name.clone(), id, saved: true });
    }
    assert_eq!(seat.told.lock().len(), 3, "each once");
}

#[tokio::test]
async fn a_word_for_a_seat_of_an_earlier_process_is_for_nobody() {
    let world = world().await;
    let (seat, name) = world.seat();
    let other = SeatName { owner: Owner::mqtt("romeo@localhost", "other"), ..name };
    let publication = publication(&world, 11).await;
    let options = vec![SubOptions { qos: Qos::AtLeastOnce, ..SubOptions::default() }];
    world.node.hear(1, Word::Owe { seat: other.clone(), options: options.clone(), publication: publication.clone() });
    world.node.hear(1, Word::Keep { number: 4, seat: other.clone(), id: 11 });
    world.node.hear(1, Word::Land { seat: other.clone(), id: 11, saved: true });
    world.node.hear(1, Word::Pass { seat: other, options, publication });
    goes_on().await;
    assert!(seat.told.lock().is_empty());
    assert!(matches!(world.said()[..], [Word::Answered { number: 4, .. }]), "and nobody waits for ever");
    assert_eq!(world.store.queue_size(&seat.owner).await.unwrap().rows, 0);
}

#[tokio::test]
async fn a_far_seat_is_owed_what_is_kept_and_passed_what_is_not() {
    let world = world().await;
    let juliet = Principal::Account(jid("juliet@localhost").to_bare());
    let name = SeatName { owner: Owner::mqtt("juliet@localhost", "lamp"), number: 9 };
    let far = world.node.far_seat(1, name, &juliet);
    for (qos, wanted, kept) in [
        (Qos::AtLeastOnce, Qos::AtLeastOnce, true),
        (Qos::AtLeastOnce, Qos::AtMostOnce, false),
        (Qos::AtMostOnce, Qos::ExactlyOnce, false),
    ] {
        let publication = Arc::new(Publication {
            id: 11,
            time_ms: 1,
            topic: "u/romeo/a".into(),
            change: Change::Value,
            payload: "v".into(),
            content_type: None,
            qos,
            retain: false,
            from: Principal::Anon { loopback: true },
            from_session: 0,
            item: None,
            properties: None,
            rendered: Rendered::default(),
        });
        let options = [SubOptions { qos: wanted, ..SubOptions::default() }];
        assert_eq!(far.store(&publication, &options).is_some(), kept, "{qos:?} {wanted:?}");
        far.deliver(&publication, &options);
        let said = world.said();
        if kept {
            assert!(matches!(said[..], [Word::Owe { .. }, Word::Land { saved: true, .. }]), "{said:?}");
            far.abandon(&publication);
            assert!(matches!(world.said()[..], [Word::Land { saved: false, .. }]));
        } else {
            assert!(matches!(said[..], [Word::Pass { .. }]), "{said:?}");
        }
    }
    let mut save = far.save(&world.node.parts.store, 11, (Owner::topic("x"), Vec::new()));
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(matches!(std::pin::Pin::new(&mut save).poll(cx), Poll::Pending), "the home answers");
}
