//! Two people with stream management (XEP-0198) who write to each other over connections that are cut and a broker that is
//! killed and started again; both streams are resumed each time. Whatever the moments: each message comes once, in order.

use super::world::{Person, World};
use proptest::prelude::*;
use std::{
    collections::{BTreeSet, VecDeque},
    io,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};
use tavi_core::{
    Bound as Room, Clock, Envelope, FakeClock, Journal, Origin, TicketQueue,
    homes::SessionLimits,
    journal::{Book, Medium, Notes},
    link::Link as Seat,
    restore::Restored,
};
use tavi_store::{Expect, MemoryStore, Op, Owner, PageBound, SharedStore, Store, StoreError, Table};
use tavi_xmpp_proto::{Stanza, sm::StreamManagement};
use tokio::runtime::Runtime;

const NAMES: [&str; 2] = ["romeo", "juliet"];
/// What a client sends first; messages have numbers from 1 on.
const PRESENCE: usize = 0;
const WINDOW: Room = Room { items: 4, bytes: 4_000 };

#[derive(Clone, Debug)]
enum Step {
    /// A client writes a message.
    Say,
    /// The server reads so many stanzas.
    Route(usize),
    /// So many commits land.
    Land(usize),
    /// The server writes what may leave.
    Write,
    /// The client reads so many stanzas.
    Read(usize),
    /// It acknowledges them.
    Acknowledge,
    /// The server tells it what is handled.
    Count,
    /// The connection is cut or taken over, or there was none; the client resumes.
    Resume,
    /// So many commits land, and then the broker is killed and started again.
    Kill(usize),
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let step = prop_oneof![
        6 => Just(Step::Say),
        5 => (1..5usize).prop_map(Step::Route),
        4 => (1..5usize).prop_map(Step::Land),
        4 => Just(Step::Write),
        4 => (1..5usize).prop_map(Step::Read),
        3 => Just(Step::Acknowledge),
        2 => Just(Step::Count),
        3 => Just(Step::Resume),
        2 => (0..9usize).prop_map(Step::Kill),
    ];
    (0..2usize, step)
}

/// What the kernel has of the journal.
#[derive(Clone, Default)]
struct Kernel(Arc<Mutex<Vec<u8>>>);

impl Medium for Kernel {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().extend(bytes);
        Ok(())
    }

    fn renew(&mut self, bytes: &[u8]) -> io::Result<()> {
        *self.0.lock().unwrap() = bytes.to_vec();
        Ok(())
    }

    fn give_up(&mut self) {
        panic!("it never fails");
    }
}

/// A session, as its front end has it.
struct Session {
    seat: Seat,
    notes: Notes,
    management: StreamManagement<u64>,
    tickets: TicketQueue<()>,
    /// The number of the last stanza that was routed, and those behind it that an earlier process dealt with.
    number: u32,
    landed: BTreeSet<u32>,
    /// No connection has come since the broker was started.
    restored: bool,
    connected: bool,
    /// Under way to the server, and to the client.
    up: VecDeque<usize>,
    down: VecDeque<Envelope>,
}

impl Session {
    fn new(seat: Seat) -> Session {
        seat.manage(WINDOW);
        let notes = seat.notes().unwrap();
        notes.begin_new(seat.jid().as_str(), seat.jid(), WINDOW);
        notes.journal().flush();
        let up = VecDeque::from([PRESENCE]);
        let (management, tickets) = (StreamManagement::new(), TicketQueue::default());
        let (landed, down) = Default::default();
        Session { seat, notes, management, tickets, number: 0, landed, restored: false, connected: true, up, down }
    }

    fn again(restored: Restored) -> Session {
        let Restored { link: seat, notes, handled, landed, acknowledged, sent, .. } = restored;
        let management = StreamManagement::restored(handled, acknowledged, sent);
        let (tickets, up, down) = Default::default();
        Session {
            seat,
            notes,
            management,
            tickets,
            number: handled,
            landed,
            restored: true,
            connected: false,
            up,
            down,
        }
    }
}

#[derive(Default)]
struct Client {
    session: Option<Session>,
    /// Messages said so far, and stanzas without an acknowledgement.
    last: usize,
    said: VecDeque<usize>,
    /// Stanzas that the server is known to have handled, and that the client has.
    counted: u32,
    handled: u32,
    heard: Vec<usize>,
}

impl Client {
    fn server_has(&mut self, h: u32) {
        let new = h.checked_sub(self.counted).expect("what is handled stays handled");
        self.said.drain(..new as usize);
        self.counted = h;
    }
}

struct Life {
    runtime: Runtime,
    world: World,
}

impl Life {
    fn begin(store: Arc<MemoryStore>, kernel: Kernel) -> (Life, Vec<Restored>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let clock = Arc::new(FakeClock::at(1_795_359_600_000));
        let book = Book::read(kernel.0.lock().unwrap().clone()).expect("the journal is whole");
        let journal = Arc::new(Journal::over(Box::new(kernel)));
        let (world, restored) = runtime.block_on(async {
            let world = World::noted(store.clone(), clock, SessionLimits::default(), journal.clone()).await;
            // Deletions are waited for.
            let restored = {
                let mut restoring = std::pin::pin!(world.node.restore(book));
                std::future::poll_fn(|cx| {
                    let polled = restoring.as_mut().poll(cx);
                    store.release_all();
                    cx.waker().wake_by_ref();
                    polled
                })
                .await
                .unwrap()
            };
            (world, restored)
        });
        journal.open();
        (Life { runtime, world }, restored)
    }

    /// Lets everything go on that waits for nothing.
    fn goes_on(&self) {
        self.runtime.block_on(async {
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        });
    }
}

struct Play {
    store: Arc<MemoryStore>,
    kernel: Kernel,
    life: Option<Life>,
    clients: [Client; 2],
}

impl Play {
    fn new() -> Play {
        let store = Arc::new(MemoryStore::delayed());
        for name in NAMES {
            let account = Op::Put { table: Table::Account, item: "".into(), value: "x".into(), expect: Expect::Any };
            drop(store.commit(&owner(name), vec![account]));
        }
        store.release_all();
        let kernel = Kernel::default();
        let (life, _) = Life::begin(store.clone(), kernel.clone());
        let mut play = Play { life: Some(life), store, kernel, clients: Default::default() };
        for (who, name) in NAMES.into_iter().enumerate() {
            let jid = format!("{name}/phone");
            let life = play.life();
            let seat = life.runtime.block_on(life.world.bind(&jid)).link;
            play.clients[who].session = Some(Session::new(seat));
            play.clients[who].said.push_back(PRESENCE);
            // Before that a message to the session goes another way than one to the account (RFC 6121 §8.5).
            play.routes(who);
            play.settles(who);
            play.counts(who);
        }
        play
    }

    fn life(&self) -> &Life {
        self.life.as_ref().unwrap()
    }

    fn step(&mut self, who: usize, step: &Step) {
        match step {
            Step::Say => self.says(who),
            Step::Route(count) => (0..*count).for_each(|_| self.routes(who)),
            Step::Land(count) => drop(self.store.release(*count)),
            Step::Write => self.writes(who),
            Step::Read(count) => (0..*count).for_each(|_| self.reads(who)),
            Step::Acknowledge => self.acknowledges(who),
            Step::Count => self.counts(who),
            Step::Resume => self.resumes(who),
            Step::Kill(landed) => self.is_killed(*landed),
        }
        self.life().goes_on();
        (0..2).for_each(|who| self.completes(who));
    }

    fn says(&mut self, who: usize) {
        let client = &mut self.clients[who];
        client.last += 1;
        client.said.push_back(client.last);
        if let Some(session) = client.session.as_mut().filter(|session| session.connected) {
            session.up.push_back(client.last);
        }
    }

    fn routes(&mut self, who: usize) {
        let life = self.life.as_ref().unwrap();
        let Some(session) = &mut self.clients[who].session else { return };
        let Some(said) = session.up.pop_front() else { return };
        session.number += 1;
        if session.landed.remove(&session.number) {
            return session.tickets.push(tavi_core::Ticket::done(), (), 1);
        }
        // To the session and to the account.
        let to = format!("{}@localhost{}", NAMES[1 - who], if said.is_multiple_of(2) { "/phone" } else { "" });
        let xml = match said {
            PRESENCE => "<presence/>".to_owned(),
            _ => format!("<message to='{to}' type='chat'><body>{said}</body></message>"),
        };
        let mut stanza = Stanza::parse(xml.as_bytes()).unwrap();
        stanza.head.from = Some(session.seat.jid().clone());
        let mut envelope = Envelope::received(stanza, Origin::Managed, life.world.clock.now_ms());
        envelope.meta.number = session.number;
        let ticket = life.runtime.block_on(session.seat.sent(envelope));
        session.seat.note(&session.notes);
        session.tickets.push(ticket, (), 1);
    }

    fn completes(&mut self, who: usize) {
        let Some(session) = &mut self.clients[who].session else { return };
        let _inside = self.life.as_ref().unwrap().runtime.enter();
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(((), result))) = session.tickets.poll_next(&mut cx) {
            result.expect("the store lives");
            session.management.count_handled();
        }
    }

    fn writes(&mut self, who: usize) {
        let life = self.life.as_ref().unwrap();
        let Some(session) = self.clients[who].session.as_mut().filter(|session| session.connected) else { return };
        let (mut taken, mut cx) = (Vec::new(), Context::from_waker(Waker::noop()));
        let _inside = life.runtime.enter();
        let _ = session.seat.poll_deliver(&mut cx, 1 << 16, &mut taken);
        session.notes.sent(&taken);
        session.notes.journal().flush();
        for (place, envelope) in taken {
            session.management.sent(place);
            session.down.push_back(envelope);
        }
    }

    fn reads(&mut self, who: usize) {
        let client = &mut self.clients[who];
        let Some(envelope) = client.session.as_mut().and_then(|session| session.down.pop_front()) else { return };
        client.handled += 1;
        client.heard.extend(envelope.stanza.body().map(|body| body.parse::<usize>().unwrap()));
    }

    fn acknowledges(&mut self, who: usize) {
        let life = self.life.as_ref().unwrap();
        let client = &mut self.clients[who];
        let Some(session) = client.session.as_mut().filter(|session| session.connected) else { return };
        let places: Vec<u64> = session.management.acknowledge(client.handled).unwrap().collect();
        let _inside = life.runtime.enter();
        session.notes.acknowledged(places.len());
        session.seat.acked(&places);
    }

    fn counts(&mut self, who: usize) {
        let client = &mut self.clients[who];
        let Some(session) = client.session.as_ref().filter(|session| session.connected) else { return };
        let h = session.management.handled();
        session.notes.counted(h);
        session.notes.journal().flush();
        client.server_has(h);
    }

    /// Everything that the server has read is dealt with.
    fn settles(&mut self, who: usize) {
        for _ in 0..3 {
            self.store.release_all();
            self.life().goes_on();
            self.completes(who);
        }
        assert!(self.clients[who].session.as_ref().is_none_or(|session| session.tickets.is_empty()));
    }

    fn resumes(&mut self, who: usize) {
        self.settles(who);
        if let Some(session) = &mut self.clients[who].session {
            session.seat.detach();
            let _inside = self.life.as_ref().unwrap().runtime.enter();
            session.seat.attach();
            session.connected = true;
        }
        self.acknowledges(who);
        let client = &mut self.clients[who];
        let Some(session) = &mut client.session else { return };
        let flight = session.seat.in_flight();
        if std::mem::take(&mut session.restored) {
            session.management.retain(|place| flight.iter().any(|(there, _)| there == place));
            session.notes.remains(flight.iter().map(|(place, _)| *place).collect());
            let returned = self.life.as_ref().unwrap().runtime.block_on(session.seat.returned());
            let _inside = self.life.as_ref().unwrap().runtime.enter();
            drop(self.life.as_ref().unwrap().runtime.spawn(returned.complete()));
        }
        assert_eq!(flight.len(), session.management.waiting());
        session.number = session.management.handled();
        session.down = flight.into_iter().map(|(_, envelope)| envelope).collect();
        self.counts(who);
        let client = &mut self.clients[who];
        let up = client.said.clone();
        client.session.iter_mut().for_each(|session| session.up.clone_from(&up));
    }

    /// kill -9: what is in memory is gone, and all commits but the first so many. The kernel keeps what it has.
    fn is_killed(&mut self, landed: usize) {
        let landed = landed.min(self.store.waiting());
        self.store.release(landed);
        let kernel = Kernel(Arc::new(Mutex::new(self.kernel.0.lock().unwrap().clone())));
        self.clients.iter_mut().for_each(|client| drop(client.session.take()));
        self.life = None;
        while self.store.refuse(StoreError::Unavailable("killed".into())) {}
        self.kernel = kernel.clone();
        let (life, restored) = Life::begin(self.store.clone(), kernel);
        self.life = Some(life);
        for restored in restored {
            let local = restored.link.jid().local().unwrap().to_owned();
            let who = NAMES.iter().position(|name| *name == local).unwrap();
            self.clients[who].session = Some(Session::again(restored));
        }
    }

    fn rows(&self, who: usize) -> usize {
        let bound = PageBound { rows: 1_000, bytes: 1 << 20 };
        let owner = owner(NAMES[who]);
        let mut read = self.store.queue_page(&owner, 0, bound);
        let Poll::Ready(page) = read.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { panic!("it waits") };
        page.unwrap().rows.len()
    }

    /// All that is under way arrives.
    fn ends_well(&mut self) {
        for who in 0..2 {
            if self.clients[who].session.as_ref().is_none_or(|session| !session.connected) {
                self.step(who, &Step::Resume);
            }
        }
        let round = [Step::Route(9), Step::Land(99), Step::Write, Step::Read(9), Step::Acknowledge, Step::Count];
        for _ in 0..60 {
            for who in 0..2 {
                round.iter().for_each(|step| self.step(who, step));
            }
            if (0..2).all(|who| self.is_done(who)) {
                return;
            }
        }
    }

    fn is_done(&self, who: usize) -> bool {
        let client = &self.clients[who];
        let idle = client.session.as_ref().is_some_and(|session| session.up.is_empty() && session.down.is_empty());
        idle && client.said.is_empty() && self.store.waiting() == 0 && self.rows(who) == 0
    }

    fn is_right(&self, who: usize) -> Result<(), TestCaseError> {
        let (client, sender) = (&self.clients[who], &self.clients[1 - who]);
        prop_assert_eq!(&client.heard, &(1..=sender.last).collect::<Vec<_>>(), "each once, in order");
        prop_assert!(sender.said.is_empty(), "everything is handled");
        prop_assert_eq!(self.rows(who), 0, "everything is deleted");
        Ok(())
    }
}

/// A world whose journal the kernel has.
async fn noted(store: SharedStore, kernel: &Kernel) -> (World, Vec<Restored>) {
    let book = Book::read(kernel.0.lock().unwrap().clone()).unwrap();
    let journal = Arc::new(Journal::over(Box::new(kernel.clone())));
    let clock = Arc::new(FakeClock::at(1_795_359_600_000));
    let world = World::noted(store, clock, SessionLimits::default(), journal.clone()).await;
    let restored = world.node.restore(book).await.unwrap();
    journal.open();
    (world, restored)
}

/// The session's stream is noted from now on, and the kernel has all of it.
fn note(person: &Person) {
    let notes = person.link.notes().unwrap();
    notes.begin_new(person.jid().as_str(), person.jid(), Room { items: 100, bytes: 100_000 });
    person.link.note(&notes);
    notes.journal().flush();
}

#[tokio::test]
async fn a_session_stands_as_it_stood_and_who_is_gone_is_told() {
    let (store, kernel): (SharedStore, _) = (Arc::new(MemoryStore::default()), Kernel::default());
    let (world, _) = noted(store.clone(), &kernel).await;
    let (mut romeo, mut juliet) = world.friends().await;
    let mut home = world.online("romeo/home").await;
    romeo.sends("<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await;
    romeo.sends("<iq type='get' id='b'><blocklist xmlns='urn:xmpp:blocking'/></iq>").await;
    romeo.sends("<presence><show>away</show><priority>3</priority></presence>").await;
    home.sends("<presence><priority>-1</priority></presence>").await;
    juliet.skip();
    [&romeo, &home].into_iter().for_each(note);
    drop((romeo, juliet, home, world));

    let (world, restored) = noted(store.clone(), &kernel).await;
    let mut people: Vec<Person> = restored.into_iter().map(|restored| world.person(restored.link)).collect();
    let [romeo, home] = &mut people[..] else { panic!("{}", people.len()) };
    romeo.link.attach();
    home.link.attach();
    let mut paris = world.online("paris/street").await;
    paris.sends("<message to='romeo@localhost' type='chat'><body>Who is there?</body></message>").await;
    tokio::task::yield_now().await;
    romeo.sees("<message><body>Who is there?</body></message>");
    home.sees_nothing();
    home.sends("<message to='paris@localhost' type='chat'><body>I am</body></message>").await;
    romeo.sees("<message><sent xmlns='urn:xmpp:carbons:2'/></message>");
    paris.sees("<message><body>I am</body></message>");
    // Juliet has not come back.
    romeo.link.returned().await.complete().await.unwrap();
    romeo.sees("<presence from='romeo@localhost/orchard'><show>away</show><priority>3</priority></presence>");
    romeo.sees("<presence from='romeo@localhost/home'/>");
    romeo.sees("<presence from='juliet@localhost' type='unavailable'/>");
    romeo.sees_nothing();
    home.skip();
    let mut juliet = world.online("juliet/balcony").await;
    romeo.sees("<presence from='juliet@localhost/balcony'/>");
    juliet.sees("<presence from='romeo@localhost/orchard'><show>away</show></presence>");
    // Roster changes are pushed to whoever asked for the roster before.
    romeo.sends("<iq type='set' id='n'><query xmlns='jabber:iq:roster'><item jid='juliet@localhost' name='J'/></query></iq>").await;
    romeo.sees_push("<item jid='juliet@localhost' name='J'/>");
    // Changes of the block list, too.
    romeo.skip();
    home.sends("<iq type='set' id='b'><block xmlns='urn:xmpp:blocking'><item jid='a@b'/></block></iq>").await;
    romeo.sees("<iq type='set'><block xmlns='urn:xmpp:blocking'><item jid='a@b'/></block></iq>");
}

#[tokio::test]
async fn of_a_long_list_of_directed_presences_the_first_are_noted() {
    let (store, kernel): (SharedStore, _) = (Arc::new(MemoryStore::default()), Kernel::default());
    let (world, _) = noted(store.clone(), &kernel).await;
    let mut romeo = world.online("romeo/orchard").await;
    let mut juliet = world.online("juliet/balcony").await;
    romeo.sends("<presence to='juliet@localhost/balcony'/>").await;
    let many: String = (0..900)
        .map(|n| format!("<presence to='{}{n}@elsewhere.example'/>", "x".repeat(900)))
        .collect::<Vec<_>>()
        .join("\n");
    for presence in many.lines() {
        romeo.sends(presence).await;
    }
    note(&romeo);
    assert!(kernel.0.lock().unwrap().len() < 8_000, "{}", kernel.0.lock().unwrap().len());
    juliet.skip();
    drop((romeo, juliet, world));
    let (world, restored) = noted(store, &kernel).await;
    let mut juliet = world.online("juliet/balcony").await;
    for restored in restored {
        world.person(restored.link).ends().await;
    }
    juliet.sees("<presence from='romeo@localhost/orchard' type='unavailable'/>");
}

#[tokio::test]
async fn a_stopped_broker_gives_a_row_to_what_was_not_sent_and_an_ended_stream_does_not_come_back() {
    let (store, kernel): (SharedStore, _) = (Arc::new(MemoryStore::default()), Kernel::default());
    let (world, _) = noted(store.clone(), &kernel).await;
    let (mut romeo, juliet) = (world.online("romeo/orchard").await, world.online("juliet/balcony").await);
    let ended = world.online("romeo/ended").await;
    [&romeo, &ended].into_iter().for_each(note);
    ended.link.notes().unwrap().end();
    ended.ends().await;
    romeo.skip();
    // From a session without stream management: no row while somebody is there.
    let mut juliet = juliet.plain();
    juliet.sends("<message to='romeo@localhost/orchard' type='chat'><body>1</body></message>").await;
    let account = Owner::account("romeo@localhost");
    assert_eq!(store.queue_size(&account).await.unwrap().rows, 0);
    romeo.link.suspend().complete().await.unwrap();
    assert_eq!(store.queue_size(&account).await.unwrap().rows, 1);
    romeo.link.notes().unwrap().journal().flush();
    drop((romeo, juliet, world));

    let (world, restored) = noted(store.clone(), &kernel).await;
    let names: Vec<&str> = restored.iter().map(|restored| &*restored.name).collect();
    assert_eq!(names, ["romeo@localhost/orchard"]);
    let mut people: Vec<Person> = restored.into_iter().map(|restored| world.person(restored.link)).collect();
    people[0].link.attach();
    tokio::task::yield_now().await;
    people[0].sees("<message><body>1</body><delay xmlns='urn:xmpp:delay'/></message>");
    people[0].sees_nothing();
}

fn owner(name: &str) -> Owner {
    Owner::account(&format!("{name}@localhost"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn streams_outlive_the_broker_and_nothing_is_lost_doubled_or_reordered(
        steps in prop::collection::vec(step(), 0..60)
    ) {
        let mut play = Play::new();
        steps.iter().for_each(|(who, step)| play.step(*who, step));
        play.ends_well();
        (0..2).try_for_each(|who| play.is_right(who))?;
    }
}
