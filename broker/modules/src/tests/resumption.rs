//! Two people with two devices each and stream management (XEP-0198), and a nurse without, who write to each other over
//! connections that are cut and resumed, sessions that end, and a broker that is killed, against a model. Time is what the
//! test says; nothing waits.
//!
//! Over cuts and resumptions each message comes once and in order. Over the end of a session the sender knows what was
//! handled and doubles nothing; what the last session that had a message did not acknowledge goes on, and may come behind
//! what others had before. Over a kill nothing is lost and the order stands; what comes twice is what its sender had
//! no acknowledgement for, or its receiver had not acknowledged for good. Nobody promised that for what the nurse says, or
//! for what is not to be stored; but neither is lost while nobody is killed and whoever it is for is there.

use super::world::World;
use proptest::{prelude::*, test_runner::RngAlgorithm};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tavi_core::{
    Bound as Room, Clock, Envelope, FakeClock, Origin, TicketQueue, homes::SessionLimits, link::Link as Seat,
};
use tavi_store::{Expect, MemoryStore, Op, Owner, PageBound, Store, StoreError, Table};
use tavi_xmpp_proto::{
    Stanza,
    sm::StreamManagement,
    stanza::{MessageType, StanzaType},
};
use tokio::runtime::Runtime;

const NAMES: [&str; 2] = ["romeo", "juliet"];
const DEVICES: [&str; 2] = ["phone", "laptop"];
/// Clients 0 and 1 are the first person's devices, 2 and 3 the second one's.
const CLIENTS: usize = 4;
const NURSE: usize = CLIENTS;

/// Who said it and its number among what he said, from 1 on. All else about it follows from these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Message {
    by: usize,
    number: usize,
}

impl Message {
    /// What a client sends first.
    fn presence(by: usize) -> Message {
        Message { by, number: 0 }
    }

    fn is_presence(self) -> bool {
        self.number == 0
    }

    /// Which person gets it.
    fn account(self) -> usize {
        if self.by == NURSE { self.number / 7 % 2 } else { 1 - self.by / 2 }
    }

    /// To which of his devices; else to his account.
    fn device(self) -> Option<usize> {
        (!self.number.is_multiple_of(3)).then_some(self.number / 3 % 2)
    }

    /// It says that it is not to be stored (XEP-0334).
    fn is_light(self) -> bool {
        self.number % 4 == 2
    }

    /// Whoever counts it as handled answers for it.
    fn is_promised(self) -> bool {
        self.by != NURSE && !self.is_light()
    }

    fn xml(self) -> String {
        if self.is_presence() {
            return "<presence/>".to_owned();
        }
        let device = self.device().map_or(String::new(), |device| format!("/{}", DEVICES[device]));
        let to = format!("{}@localhost{device}", NAMES[self.account()]);
        let hint = if self.is_light() { "<no-store xmlns='urn:xmpp:hints'/>" } else { "" };
        format!("<message to='{to}' type='chat'><body>{}.{}</body>{hint}</message>", self.by, self.number)
    }

    /// `None` if it is no message, or one that came back.
    fn of(stanza: &Stanza) -> Option<Message> {
        let came_back = stanza.head.type_ == StanzaType::Message(MessageType::Error);
        let body = stanza.body().filter(|_| !came_back)?;
        let (by, number) = body.split_once('.').unwrap();
        Some(Message { by: by.parse().unwrap(), number: number.parse().unwrap() })
    }
}

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
    let of_a_client = prop_oneof![
        6 => Just(Step::Say),
        5 => (1..5usize).prop_map(Step::Route),
        4 => (1..5usize).prop_map(Step::Land),
        4 => Just(Step::Write),
        4 => (1..5usize).prop_map(Step::Read),
        3 => Just(Step::Acknowledge),
        2 => Just(Step::Count),
        2 => Just(Step::Resume),
        2 => Just(Step::End),
        4 => Just(Step::Come),
        1 => (0..9usize).prop_map(Step::Kill),
    ];
    let of_the_nurse = prop_oneof![Just(Step::Say), (1..5usize).prop_map(Step::Route)];
    prop_oneof![8 => (0..CLIENTS, of_a_client), 1 => of_the_nurse.prop_map(|step| (NURSE, step))]
}

/// A session and its connection.
struct Link {
    seat: Seat,
    management: StreamManagement<u64>,
    tickets: TicketQueue<()>,
    /// Under way to the server, and to the client.
    up: VecDeque<Message>,
    down: VecDeque<Envelope>,
}

/// A device, over all its sessions.
#[derive(Default)]
struct Client {
    link: Option<Link>,
    /// Messages said so far, and stanzas without an acknowledgement.
    last: usize,
    said: VecDeque<Message>,
    /// Stanzas of this session that the server is known to have handled, and that the client has.
    counted: u32,
    handled: u32,
    heard: Vec<Message>,
    /// Of these the server does not know yet that they were heard.
    unacknowledged: Vec<Message>,
    /// What was routed to this session.
    due: BTreeSet<Message>,
    /// How often something may come once more.
    excused: BTreeMap<Message, usize>,
    /// What another session had: it may come behind so many of those that were heard.
    late: BTreeMap<Message, usize>,
}

impl Client {
    fn server_has(&mut self, h: u32) {
        let new = h.checked_sub(self.counted).expect("what is handled stays handled");
        self.said.drain(..new as usize);
        self.counted = h;
    }

    fn excuse(&mut self, message: Message) {
        *self.excused.entry(message).or_default() += 1;
    }

    /// Its session is gone.
    fn lose(&mut self) -> Option<Link> {
        self.said.retain(|said| !said.is_presence());
        self.due.clear();
        (self.counted, self.handled) = (0, 0);
        self.link.take()
    }

    /// How many messages were heard or are on their way.
    fn given(&self) -> usize {
        let down = self.link.iter().flat_map(|link| &link.down);
        self.heard.len() + down.filter(|envelope| Message::of(&envelope.stanza).is_some()).count()
    }

    /// Each comes behind what its sender said before, but for what others had.
    fn is_in_order(&self, unordered: &BTreeSet<Message>) -> Result<(), TestCaseError> {
        let mut before: Vec<(usize, Message)> = Vec::new();
        for (at, message) in self.heard.iter().enumerate() {
            if unordered.contains(message) || before.iter().any(|(_, other)| other == message) {
                continue;
            }
            let late = self.late.get(message).copied().unwrap_or_default();
            let overtook = |(at, other): &&(usize, Message)| other.by == message.by && other > message && *at >= late;
            let overtaken = before.iter().find(overtook);
            prop_assert!(overtaken.is_none(), "{:?} came before {:?}: {:?}", overtaken, message, &self.heard);
            before.push((at, *message));
        }
        Ok(())
    }

    fn is_not_doubled(&self) -> Result<(), TestCaseError> {
        let mut times: BTreeMap<Message, usize> = BTreeMap::new();
        self.heard.iter().for_each(|message| *times.entry(*message).or_default() += 1);
        for (message, times) in times {
            let excused = self.excused.get(&message).copied().unwrap_or_default();
            prop_assert!(times <= 1 + excused, "{:?} came {} times: {:?}", message, times, &self.heard);
        }
        Ok(())
    }
}

/// What one person's devices know together.
#[derive(Default)]
struct Person {
    /// The server knows that these were heard; and their rows are gone for good.
    acknowledged: BTreeSet<Message>,
    settled: BTreeSet<Message>,
    /// Its sender said this again, so that it may have two rows.
    twice: BTreeSet<Message>,
    /// The same without a row when the broker was killed: it may come behind those that have one.
    unordered: BTreeSet<Message>,
    /// What was in memory only when the broker was killed.
    forgotten: BTreeSet<Message>,
}

struct Life {
    runtime: Runtime,
    world: World,
    nurse: Link,
}

impl Life {
    fn begin(store: Arc<MemoryStore>) -> Life {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let clock = Arc::new(FakeClock::at(1_795_359_600_000));
        let world = runtime.block_on(World::over(store, clock, SessionLimits::default()));
        let nurse = Link::to(runtime.block_on(world.bind("nurse/garden")).link);
        Life { runtime, world, nurse }
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

impl Link {
    fn to(seat: Seat) -> Link {
        let (up, down) = Default::default();
        Link { seat, management: StreamManagement::new(), tickets: TicketQueue::default(), up, down }
    }
}

struct Play {
    store: Arc<MemoryStore>,
    life: Option<Life>,
    clients: [Client; CLIENTS],
    people: [Person; 2],
    /// How much the nurse has said.
    nursed: usize,
}

impl Play {
    fn new() -> Play {
        let store = Arc::new(MemoryStore::delayed());
        for name in NAMES.into_iter().chain(["nurse"]) {
            let account = Op::Put { table: Table::Account, item: "".into(), value: "x".into(), expect: Expect::Any };
            drop(store.commit(&owner(name), vec![account]));
        }
        store.release_all();
        let life = Some(Life::begin(store.clone()));
        let mut play = Play { life, store, clients: Default::default(), people: Default::default(), nursed: 0 };
        (0..CLIENTS).for_each(|who| play.comes(who));
        play
    }

    fn life(&self) -> &Life {
        self.life.as_ref().unwrap()
    }

    fn link(&mut self, who: usize) -> Option<&mut Link> {
        match who {
            NURSE => self.life.as_mut().map(|life| &mut life.nurse),
            _ => self.clients[who].link.as_mut(),
        }
    }

    fn step(&mut self, who: usize, step: &Step) {
        match step {
            Step::Say if who == NURSE => self.nurse_says(),
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
        self.goes_on();
    }

    fn goes_on(&mut self) {
        self.life().goes_on();
        (0..=NURSE).for_each(|who| self.completes(who));
        if self.store.waiting() == 0 {
            self.people.iter_mut().for_each(|person| person.settled.extend(&person.acknowledged));
        }
    }

    fn says(&mut self, who: usize) {
        let client = &mut self.clients[who];
        client.last += 1;
        let message = Message { by: who, number: client.last };
        client.said.push_back(message);
        if let Some(link) = &mut client.link {
            link.up.push_back(message);
        }
    }

    fn nurse_says(&mut self) {
        self.nursed += 1;
        let message = Message { by: NURSE, number: self.nursed };
        self.life.as_mut().unwrap().nurse.up.push_back(message);
    }

    fn routes(&mut self, who: usize) {
        let Some(message) = self.link(who).and_then(|link| link.up.pop_front()) else { return };
        if !message.is_presence() {
            self.is_due(message);
        }
        let (life, origin) = (self.life(), if who == NURSE { Origin::Plain } else { Origin::Managed });
        let mut stanza = Stanza::parse(message.xml().as_bytes()).unwrap();
        let seat = self.clients.get(who).map_or(&life.nurse, |client| client.link.as_ref().unwrap()).seat.clone();
        stanza.head.from = Some(seat.jid().clone());
        let envelope = Envelope::received(stanza, origin, life.world.clock.now_ms());
        let ticket = life.runtime.block_on(seat.sent(envelope));
        self.link(who).unwrap().tickets.push(ticket, (), 1);
    }

    /// RFC 6121 §8.5.2.1.1, §8.5.3.1: to that session if it is there, else to all that are.
    fn is_due(&mut self, message: Message) {
        let both = [0, 1].map(|device| 2 * message.account() + device);
        let named = message.device().map(|device| both[device]).filter(|who| self.clients[*who].link.is_some());
        for who in both {
            if self.clients[who].link.is_some() && named.is_none_or(|named| named == who) {
                self.clients[who].due.insert(message);
            }
        }
    }

    fn completes(&mut self, who: usize) {
        let handle = self.life().runtime.handle().clone();
        let Some(link) = self.link(who) else { return };
        let _inside = handle.enter();
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
        if let Some(message) = Message::of(&envelope.stanza) {
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
        self.people[who / 2].acknowledged.extend(client.unacknowledged.drain(..));
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
        let unacknowledged = std::mem::take(&mut client.unacknowledged);
        let Some(link) = client.lose() else { return };
        let had: BTreeSet<Message> = client.heard.iter().copied().filter(|m| !unacknowledged.contains(m)).collect();
        unacknowledged.into_iter().for_each(|message| client.excuse(message));
        let left: Vec<Message> = self.all_for(who / 2).filter(|message| !had.contains(message)).collect();
        self.may_be_late(who ^ 1, &left);
        self.life().runtime.block_on(async {
            tokio::spawn(link.seat.end(Vec::new()).await.complete());
        });
    }

    /// All that was said to a person so far.
    fn all_for(&self, person: usize) -> impl Iterator<Item = Message> {
        let last = self.clients.iter().map(|client| client.last).chain([self.nursed]).enumerate();
        let all: Vec<_> = last.flat_map(|(by, last)| (1..=last).map(move |number| Message { by, number })).collect();
        all.into_iter().filter(move |message| message.account() == person)
    }

    fn may_be_late(&mut self, who: usize, messages: &[Message]) {
        let client = &mut self.clients[who];
        let given = client.given();
        client.late.extend(messages.iter().map(|message| (*message, given)));
    }

    fn comes(&mut self, who: usize) {
        if self.clients[who].link.is_some() {
            return;
        }
        let jid = format!("{}/{}", NAMES[who / 2], DEVICES[who % 2]);
        let life = self.life();
        let seat = life.runtime.block_on(life.world.bind(&jid)).link;
        seat.manage(Room { items: 4, bytes: 4_000 });
        let client = &mut self.clients[who];
        client.said.push_front(Message::presence(who));
        client.link = Some(Link { up: client.said.clone(), ..Link::to(seat) });
        // Before that a message to the session goes another way than one to the account (RFC 6121 §8.5).
        self.routes(who);
    }

    /// kill -9: what is in memory is gone, and all commits but the first so many.
    fn is_killed(&mut self, landed: usize) {
        let landed = landed.min(self.store.waiting());
        self.store.release(landed);
        for client in &mut self.clients {
            drop(client.lose());
            client.unacknowledged.clear();
        }
        self.life = None;
        while self.store.refuse(StoreError::Unavailable("killed".into())) {}
        (0..2).for_each(|person| self.excuses(person));
        self.life = Some(Life::begin(self.store.clone()));
    }

    /// What may come again after a kill: rows of what was heard, and what a sender says again that is stored or was heard.
    fn excuses(&mut self, person: usize) {
        let (stored, all) = (self.rows(person), self.all_for(person).collect::<Vec<_>>());
        let again: Vec<Message> = self.clients.iter().flat_map(|client| client.said.clone()).collect();
        let again: Vec<Message> = again.into_iter().filter(|message| message.account() == person).collect();
        for who in [2 * person, 2 * person + 1] {
            self.may_be_late(who, &all);
            let client = &mut self.clients[who];
            let heard: BTreeSet<Message> = client.heard.iter().copied().collect();
            stored.iter().filter(|message| heard.contains(message)).for_each(|message| client.excuse(*message));
            again.iter().for_each(|message| client.excuse(*message));
        }
        let person = &mut self.people[person];
        for message in &stored {
            let gone = person.settled.contains(message) && !person.twice.contains(message);
            assert!(!gone, "{message:?} was acknowledged for good");
            person.acknowledged.remove(message);
        }
        person.twice.extend(&again);
        let acknowledged = &person.acknowledged;
        person.unordered.extend(again.iter().filter(|m| m.is_light() || acknowledged.contains(m)));
        person.forgotten.extend(all.iter().filter(|message| !message.is_promised()));
    }

    fn rows(&self, person: usize) -> Vec<Message> {
        let bound = PageBound { rows: 1_000, bytes: 1 << 20 };
        let owner = owner(NAMES[person]);
        let mut read = self.store.queue_page(&owner, 0, bound);
        let Poll::Ready(page) = read.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { panic!("it waits") };
        let page = page.unwrap();
        page.rows.iter().map(|row| Message::of(&Stanza::parse(&row.value).unwrap()).unwrap()).collect()
    }

    /// All that is under way arrives, be it at one of the devices only; then the others come.
    fn ends_well(&mut self) -> Result<(), TestCaseError> {
        for person in 0..2 {
            let is_there = self.clients[2 * person..][..2].iter().any(|client| client.link.is_some());
            if !is_there {
                self.comes(2 * person);
            }
        }
        self.arrives();
        for person in 0..2 {
            prop_assert_eq!(self.rows(person), Vec::new(), "somebody is there, so nothing waits");
        }
        (0..CLIENTS).for_each(|who| self.comes(who));
        self.arrives();
        (0..2).try_for_each(|person| self.is_right(person))
    }

    fn arrives(&mut self) {
        for _ in 0..60 {
            let before = self.handled();
            (0..=NURSE).for_each(|who| (0..9).for_each(|_| self.routes(who)));
            self.store.release_all();
            self.goes_on();
            for who in 0..CLIENTS {
                self.acknowledges(who);
                self.writes(who);
                (0..9).for_each(|_| self.reads(who));
                self.acknowledges(who);
                self.counts(who);
            }
            self.store.release_all();
            self.goes_on();
            let links = self.clients.iter().filter_map(|client| client.link.as_ref());
            let is_read = links.chain([&self.life().nurse]).all(|link| link.up.is_empty());
            if is_read && self.handled() == before && self.store.waiting() == 0 {
                return;
            }
        }
    }

    fn handled(&self) -> u32 {
        self.clients.iter().map(|client| client.handled).sum()
    }

    fn is_right(&self, person: usize) -> Result<(), TestCaseError> {
        let (rows, Person { unordered, forgotten, .. }) = (self.rows(person), &self.people[person]);
        let devices = &self.clients[2 * person..][..2];
        let heard: BTreeSet<Message> = devices.iter().flat_map(|client| client.heard.iter().copied()).collect();
        for message in self.all_for(person) {
            let promised = message.is_promised() || !(message.is_light() || forgotten.contains(&message));
            prop_assert!(!promised || heard.contains(&message), "{:?} is lost", message);
        }
        for client in devices {
            client.is_in_order(unordered)?;
            client.is_not_doubled()?;
            prop_assert!(client.said.is_empty(), "everything is handled");
            let missed: Vec<_> = client.due.iter().filter(|message| !client.heard.contains(message)).collect();
            prop_assert!(missed.is_empty(), "{:?} did not come to each session: {:?}", missed, &client.heard);
        }
        prop_assert_eq!(rows, Vec::new(), "everything is deleted");
        Ok(())
    }
}

fn owner(name: &str) -> Owner {
    Owner::account(&format!("{name}@localhost"))
}

/// A quick generator: the steps need no secrets.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 10_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_is_lost_doubled_or_reordered(steps in prop::collection::vec(step(), 0..80)) {
        let mut play = Play::new();
        steps.iter().for_each(|(who, step)| play.step(*who, step));
        play.ends_well()?;
    }
}
