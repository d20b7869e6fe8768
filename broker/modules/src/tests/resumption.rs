//! Two people with stream management (XEP-0198) who write to each other over connections that are cut and resumed,
//! sessions that end, and a broker that is killed, against a model. Time is what the test says; nothing waits.
//!
//! Over cuts and resumptions each message comes once and in order. Over the end of a session the sender knows what was
//! handled and doubles nothing. Over a kill nothing is lost and the order stands; what comes twice is what its sender had
//! no acknowledgement for, or its receiver had not acknowledged for good.

use super::world::World;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tavi_core::{
    Bound as Room, Clock, Envelope, FakeClock, Origin, TicketQueue, homes::SessionLimits, link::Link as Seat,
};
use tavi_store::{Expect, MemoryStore, Op, Owner, PageBound, Store, StoreError, Table};
use tavi_xmpp_proto::{Stanza, sm::StreamManagement};
use tokio::runtime::Runtime;

const NAMES: [&str; 2] = ["romeo", "juliet"];
/// What a client sends first; messages have numbers from 1 on.
const PRESENCE: usize = 0;

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
    /// The connection is cut or taken over; the client resumes.
    Resume,
    /// The session ends, and its client knows what was handled.
    End,
    /// A client without a session binds one.
    Come,
    /// So many commits land, and then the broker is killed.
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
        2 => Just(Step::Resume),
        1 => Just(Step::End),
        3 => Just(Step::Come),
        1 => (0..9usize).prop_map(Step::Kill),
    ];
    (0..2usize, step)
}

/// A session and its connection.
struct Link {
    seat: Seat,
    management: StreamManagement<u64>,
    tickets: TicketQueue<()>,
    /// Under way to the server, and to the client.
    up: VecDeque<usize>,
    down: VecDeque<Envelope>,
}

#[derive(Default)]
struct Client {
    link: Option<Link>,
    /// Messages said so far, and stanzas without an acknowledgement.
    last: usize,
    said: VecDeque<usize>,
    /// Stanzas of this session that the server is known to have handled, and that the client has.
    counted: u32,
    handled: u32,
    heard: Vec<usize>,
    /// Of these the server does not know yet that they were heard.
    unacknowledged: Vec<usize>,
    /// The server knows that these were heard; and their rows are gone for good.
    acknowledged: BTreeSet<usize>,
    settled: BTreeSet<usize>,
    /// Its sender said this again, so that it may have two rows.
    twice: BTreeSet<usize>,
    /// How often something may come once more.
    excused: BTreeMap<usize, usize>,
}

impl Client {
    fn server_has(&mut self, h: u32) {
        let new = h.checked_sub(self.counted).expect("what is handled stays handled");
        self.said.drain(..new as usize);
        self.counted = h;
    }

    fn excuse(&mut self, message: usize) {
        *self.excused.entry(message).or_default() += 1;
    }

    /// Its session is gone.
    fn lose(&mut self) -> Option<Link> {
        self.said.retain(|said| *said != PRESENCE);
        (self.counted, self.handled) = (0, 0);
        self.link.take()
    }
}

struct Life {
    runtime: Runtime,
    world: World,
}

impl Life {
    fn begin(store: Arc<MemoryStore>) -> Life {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let clock = Arc::new(FakeClock::at(1_795_359_600_000));
        let world = runtime.block_on(World::over(store, clock, SessionLimits::default()));
        Life { runtime, world }
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
        let mut play = Play { life: Some(Life::begin(store.clone())), store, clients: Default::default() };
        (0..2).for_each(|who| play.comes(who));
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
            Step::End => self.ends(who),
            Step::Come => self.comes(who),
            Step::Kill(landed) => self.is_killed(*landed),
        }
        self.life().goes_on();
        (0..2).for_each(|who| self.completes(who));
        if self.store.waiting() == 0 {
            self.clients.iter_mut().for_each(|client| client.settled.extend(&client.acknowledged));
        }
    }

    fn says(&mut self, who: usize) {
        let client = &mut self.clients[who];
        client.last += 1;
        client.said.push_back(client.last);
        if let Some(link) = &mut client.link {
            link.up.push_back(client.last);
        }
    }

    fn routes(&mut self, who: usize) {
        let life = self.life.as_ref().unwrap();
        let Some(link) = &mut self.clients[who].link else { return };
        let Some(said) = link.up.pop_front() else { return };
        // To the session and to the account.
        let to = format!("{}@localhost{}", NAMES[1 - who], if said.is_multiple_of(2) { "/phone" } else { "" });
        let xml = match said {
            PRESENCE => "<presence/>".to_owned(),
            _ => format!("<message to='{to}' type='chat'><body>{said}</body></message>"),
        };
        let mut stanza = Stanza::parse(xml.as_bytes()).unwrap();
        stanza.head.from = Some(link.seat.jid().clone());
        let envelope = Envelope::received(stanza, Origin::Managed, life.world.clock.now_ms());
        let ticket = life.runtime.block_on(link.seat.sent(envelope));
        link.tickets.push(ticket, (), 1);
    }

    fn completes(&mut self, who: usize) {
        let Some(link) = &mut self.clients[who].link else { return };
        let _inside = self.life.as_ref().unwrap().runtime.enter();
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(((), result))) = link.tickets.poll_next(&mut cx) {
            result.expect("the store lives");
            link.management.count_handled();
        }
    }

    fn writes(&mut self, who: usize) {
        let life = self.life.as_ref().unwrap();
        let Some(link) = &mut self.clients[who].link else { return };
        let (mut taken, mut cx) = (Vec::new(), Context::from_waker(Waker::noop()));
        let _inside = life.runtime.enter();
        let _ = link.seat.poll_deliver(&mut cx, 1 << 16, &mut taken);
        for (place, envelope) in taken {
            link.management.sent(place);
            link.down.push_back(envelope);
        }
    }

    fn reads(&mut self, who: usize) {
        let client = &mut self.clients[who];
        let Some(envelope) = client.link.as_mut().and_then(|link| link.down.pop_front()) else { return };
        client.handled += 1;
        if let Some(body) = envelope.stanza.body() {
            let message = body.parse().unwrap();
            client.heard.push(message);
            client.unacknowledged.push(message);
        }
    }

    fn acknowledges(&mut self, who: usize) {
        let life = self.life.as_ref().unwrap();
        let client = &mut self.clients[who];
        let Some(link) = &mut client.link else { return };
        let places: Vec<u64> = link.management.acknowledge(client.handled).unwrap().collect();
        let _inside = life.runtime.enter();
        link.seat.acked(&places);
        client.acknowledged.extend(client.unacknowledged.drain(..));
    }

    fn counts(&mut self, who: usize) {
        let client = &mut self.clients[who];
        let Some(h) = client.link.as_ref().map(|link| link.management.handled()) else { return };
        client.server_has(h);
    }

    /// Everything that the server has read is dealt with.
    fn settles(&mut self, who: usize) {
        for _ in 0..3 {
            self.store.release_all();
            self.life().goes_on();
            self.completes(who);
        }
        assert!(self.clients[who].link.as_ref().is_none_or(|link| link.tickets.is_empty()));
    }

    fn resumes(&mut self, who: usize) {
        self.settles(who);
        self.acknowledges(who);
        self.counts(who);
        let client = &mut self.clients[who];
        let Some(link) = &mut client.link else { return };
        assert_eq!(link.seat.in_flight().len(), link.management.waiting());
        link.down = link.seat.in_flight().into_iter().map(|(_, envelope)| envelope).collect();
        link.up = client.said.clone();
    }

    fn ends(&mut self, who: usize) {
        self.settles(who);
        self.counts(who);
        let client = &mut self.clients[who];
        for message in std::mem::take(&mut client.unacknowledged) {
            client.excuse(message);
        }
        let Some(link) = client.lose() else { return };
        let life = self.life();
        life.runtime.block_on(async {
            tokio::spawn(link.seat.end(Vec::new()).await.complete());
        });
    }

    fn comes(&mut self, who: usize) {
        if self.clients[who].link.is_some() {
            return;
        }
        let jid = format!("{}/phone", NAMES[who]);
        let life = self.life();
        let seat = life.runtime.block_on(life.world.bind(&jid)).link;
        seat.manage(Room { items: 4, bytes: 4_000 });
        let client = &mut self.clients[who];
        client.said.push_front(PRESENCE);
        let (up, down) = (client.said.clone(), VecDeque::new());
        client.link =
            Some(Link { seat, management: StreamManagement::new(), tickets: TicketQueue::default(), up, down });
        // Before that a message to the session goes another way than one to the account (RFC 6121 §8.5).
        self.routes(who);
    }

    /// kill -9: what is in memory is gone, and all commits but the first so many.
    fn is_killed(&mut self, landed: usize) {
        let landed = landed.min(self.store.waiting());
        self.store.release(landed);
        for who in 0..2 {
            drop(self.clients[who].lose());
            self.clients[who].unacknowledged.clear();
        }
        self.life = None;
        while self.store.refuse(StoreError::Unavailable("killed".into())) {}
        (0..2).for_each(|who| self.excuses(who));
        self.life = Some(Life::begin(self.store.clone()));
    }

    /// What may come again after a kill: rows of what was heard, and what a sender says again that is stored or was heard.
    fn excuses(&mut self, who: usize) {
        let stored = self.rows(who);
        let again: Vec<usize> = self.clients[1 - who].said.iter().copied().collect();
        let client = &mut self.clients[who];
        for message in &stored {
            let gone = client.settled.contains(message) && !client.twice.contains(message);
            assert!(!gone, "{message} was acknowledged for good");
            client.acknowledged.remove(message);
        }
        let heard: BTreeSet<usize> = client.heard.iter().copied().collect();
        stored.iter().filter(|message| heard.contains(message)).for_each(|message| client.excuse(*message));
        again.iter().for_each(|message| client.excuse(*message));
        client.twice.extend(again);
    }

    fn rows(&self, who: usize) -> Vec<usize> {
        let bound = PageBound { rows: 1_000, bytes: 1 << 20 };
        let owner = owner(NAMES[who]);
        let mut read = self.store.queue_page(&owner, 0, bound);
        let Poll::Ready(page) = read.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { panic!("it waits") };
        let page = page.unwrap();
        let body = |value: &[u8]| Stanza::parse(value).unwrap().body().unwrap().parse().unwrap();
        page.rows.iter().map(|row| body(&row.value)).collect()
    }

    /// All that is under way arrives.
    fn ends_well(&mut self) {
        (0..2).for_each(|who| self.comes(who));
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
        let idle = client.link.as_ref().is_some_and(|link| link.up.is_empty());
        idle && client.said.is_empty() && self.store.waiting() == 0 && self.rows(who).is_empty()
    }

    fn is_right(&self, who: usize) -> Result<(), TestCaseError> {
        let (client, sender) = (&self.clients[who], &self.clients[1 - who]);
        let mut times: BTreeMap<usize, usize> = BTreeMap::new();
        let mut firsts = Vec::new();
        for message in &client.heard {
            let times = times.entry(*message).or_default();
            *times += 1;
            if *times == 1 {
                firsts.push(*message);
            }
        }
        prop_assert_eq!(firsts, (1..=sender.last).collect::<Vec<_>>(), "all, in order: {:?}", &client.heard);
        for (message, times) in times {
            let excused = client.excused.get(&message).copied().unwrap_or_default();
            prop_assert!(times <= 1 + excused, "{} came {} times: {:?}", message, times, &client.heard);
        }
        prop_assert!(sender.said.is_empty(), "everything is handled");
        prop_assert_eq!(self.rows(who), Vec::<usize>::new(), "everything is deleted");
        Ok(())
    }
}

fn owner(name: &str) -> Owner {
    Owner::account(&format!("{name}@localhost"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_doubled_or_reordered(steps in prop::collection::vec(step(), 0..60)) {
        let mut play = Play::new();
        steps.iter().for_each(|(who, step)| play.step(*who, step));
        play.ends_well();
        (0..2).try_for_each(|who| play.is_right(who))?;
    }
}
