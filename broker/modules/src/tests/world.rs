//! A world for the modules' tests: a real node over a store in memory, and people who send and see stanzas.

use std::sync::Arc;
use tavi_core::{
    Envelope, FakeClock, Journal, Node, Origin, Parts, Principal, Registry, Ticket, homes::SessionLimits, link::Link,
    permit::Grant, principal::Hosts,
};
use tavi_store::{Expect, MemoryStore, Op, Owner, SharedStore, Store, Table};
use tavi_xmpp_proto::{BareJid, Element, Jid, Kind, Stanza, element::Node as XmlNode, ns};

/// 2026-11-22T15:00:00Z.
const NOW: u64 = 1_795_359_600_000;

pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) clock: Arc<FakeClock>,
    store: SharedStore,
}

impl World {
    pub(crate) async fn new() -> World {
        World::over(Arc::new(MemoryStore::default()), Arc::new(FakeClock::at(NOW)), SessionLimits::default()).await
    }

    /// A world in which at most `items` stanzas wait for a session.
    pub(crate) async fn with_inboxes_of(items: usize) -> World {
        let limits = SessionLimits { inbox_items: items, ..SessionLimits::default() };
        World::over(Arc::new(MemoryStore::default()), Arc::new(FakeClock::at(NOW)), limits).await
    }

    /// A world whose commits wait until the test lets them land; Romeo has an account already.
    pub(crate) async fn delayed() -> (World, Arc<MemoryStore>) {
        let store = Arc::new(MemoryStore::delayed());
        let account = Op::Put { table: Table::Account, item: "".into(), value: "x".into(), expect: Expect::Any };
        drop(store.commit(&Owner::account("romeo@localhost"), vec![account]));
        store.release_all();
        (World::over(store.clone(), Arc::new(FakeClock::at(NOW)), SessionLimits::default()).await, store)
    }

    /// A world like [`World::new`] with the store beneath it, and inboxes of `items` stanzas.
    pub(crate) async fn with_store(items: usize) -> (World, Arc<MemoryStore>) {
        let store = Arc::new(MemoryStore::default());
        let limits = SessionLimits { inbox_items: items, ..SessionLimits::default() };
        (World::over(store.clone(), Arc::new(FakeClock::at(NOW)), limits).await, store)
    }

    /// The same store after the broker was cut off and started again.
    pub(crate) async fn restart(&self) -> World {
        World::over(self.store.clone(), self.clock.clone(), SessionLimits::default()).await
    }

    pub(crate) async fn over(store: SharedStore, clock: Arc<FakeClock>, limits: SessionLimits) -> World {
        World::noted(store, clock, limits, Arc::new(Journal::none())).await
    }

    /// A world whose streams are noted.
    pub(crate) async fn noted(
        store: SharedStore,
        clock: Arc<FakeClock>,
        limits: SessionLimits,
        journal: Arc<Journal>,
    ) -> World {
        World::made((store, clock), limits, journal, |_| {}).await
    }

    /// A world with more than the modules' own hooks.
    pub(crate) async fn with(store: SharedStore, more: impl FnOnce(&mut Registry)) -> World {
        let (clock, journal) = (Arc::new(FakeClock::at(NOW)), Arc::new(Journal::none()));
        World::made((store, clock), SessionLimits::default(), journal, more).await
    }

    async fn made(
        (store, clock): (SharedStore, Arc<FakeClock>),
        limits: SessionLimits,
        journal: Arc<Journal>,
        more: impl FnOnce(&mut Registry),
    ) -> World {
        let hosts = Hosts::new("localhost", &crate::HOSTS).unwrap();
        let mut parts = Parts::load(hosts, store.clone(), clock.clone(), limits).await.unwrap();
        parts.journal = journal;
        let mut registry = Registry::default();
        crate::register(&mut registry, &parts).unwrap();
        more(&mut registry);
        let node = Node::new(parts, registry);
        crate::start(&node).await.unwrap();
        World { node, clock, store }
    }

    /// Makes an account; no harm if there is one.
    pub(crate) async fn account(&self, local: &str) -> BareJid {
        let jid = BareJid::new(local, "localhost").unwrap();
        let op = Op::Put { table: Table::Account, item: "".into(), value: "x".into(), expect: Expect::Any };
        self.store.commit(&Owner::account(jid.as_str()), vec![op]).await.unwrap();
        jid
    }

    /// A session of `local/resource` that has sent nothing yet.
    pub(crate) async fn bind(&self, who: &str) -> Person {
        let (local, resource) = who.split_once('/').unwrap();
        let jid = BareJid::new(local, "localhost").unwrap();
        if !self.node.parts.accounts.exists(&jid).await.unwrap() {
            self.account(local).await;
        }
        let account = self.node.parts.homes.account(&jid).await.unwrap().unwrap();
        self.person(self.node.router.bind(&account, jid.with_resource(resource).unwrap()).unwrap())
    }

    /// Whoever has this seat.
    pub(crate) fn person(&self, link: Link) -> Person {
        Person {
            node: self.node.clone(),
            link,
            unread: Vec::new(),
            unacknowledged: Vec::new(),
            origin: Origin::Managed,
        }
    }

    /// A session that has sent its presence and seen it.
    pub(crate) async fn online(&self, who: &str) -> Person {
        let mut person = self.bind(who).await;
        person.sends("<presence/>").await;
        person.read();
        let own = |env: &Envelope| env.from() == Some(person.link.jid()) && env.stanza.kind() == Kind::Presence;
        let at = person.unread.iter().position(own).expect("everybody sees their own presence");
        person.unread.remove(at);
        person
    }

    pub(crate) async fn bot(&self, name: &str) -> Person {
        let jid = BareJid::new(name, "bots.localhost").unwrap();
        let account = self.node.parts.homes.bot(&jid).await.unwrap().unwrap();
        let link = self.node.router.bind(&account, jid.with_resource("bot").unwrap()).unwrap();
        link.open().await.complete().await.unwrap();
        let mut bot = Person {
            node: self.node.clone(),
            link,
            unread: Vec::new(),
            unacknowledged: Vec::new(),
            origin: Origin::Broker,
        };
        bot.skip();
        bot
    }

    /// Romeo in the orchard and Juliet on the balcony, who see each other and want roster pushes.
    pub(crate) async fn friends(&self) -> (Person, Person) {
        let mut romeo = self.online("romeo/orchard").await;
        let mut juliet = self.online("juliet/balcony").await;
        for person in [&mut romeo, &mut juliet] {
            person.sends("<iq type='get' id='roster'><query xmlns='jabber:iq:roster'/></iq>").await;
        }
        romeo.sends("<presence to='juliet@localhost' type='subscribe'/>").await;
        juliet.sends("<presence to='romeo@localhost' type='subscribed'/>").await;
        juliet.sends("<presence to='romeo@localhost' type='subscribe'/>").await;
        romeo.sends("<presence to='juliet@localhost' type='subscribed'/>").await;
        romeo.skip();
        juliet.skip();
        (romeo, juliet)
    }

    pub(crate) async fn grant(&self, subject: &str, actions: &str, filter: &str) {
        let permit = &self.node.parts.permit;
        let grant = Grant::new(permit.generation(), subject, actions.parse().unwrap(), filter).unwrap();
        permit.add(grant).await.unwrap();
    }

    pub(crate) fn device(&self, id: &str) -> Principal {
        Principal::Device(BareJid::new(id, "things.localhost").unwrap())
    }
}

/// One session and its reader.
pub(crate) struct Person {
    node: Node,
    pub(crate) link: Link,
    unread: Vec<Envelope>,
    unacknowledged: Vec<Envelope>,
    origin: Origin,
}

impl Person {
    /// The same without stream management.
    pub(crate) fn plain(mut self) -> Person {
        self.origin = Origin::Plain;
        self
    }

    /// Sends a stanza; its `from` is stamped as a session does. Gives back when it is durable and delivered.
    pub(crate) async fn sends(&mut self, xml: &str) {
        self.begins(xml).await.complete().await.unwrap();
        // What was bounced is routed again in tasks of its own.
        tokio::task::yield_now().await;
    }

    /// As [`Person::begins`], as a session's task does it: it waits for room in its own inbox.
    pub(crate) async fn writes(&mut self, xml: &str) -> Ticket {
        let mut env = self.envelope(xml);
        env.meta.sender = self.link.seat().number;
        self.node.route(env).await
    }

    /// Sends a stanza; what it leads to waits in the ticket.
    pub(crate) async fn begins(&mut self, xml: &str) -> Ticket {
        self.node.route(self.envelope(xml)).await
    }

    fn envelope(&self, xml: &str) -> Envelope {
        let mut stanza = Stanza::parse(xml.as_bytes()).unwrap_or_else(|error| panic!("{xml}: {error}"));
        stanza.head.from = Some(self.link.jid().clone());
        Envelope::received(stanza, self.origin, self.node.parts.clock.now_ms())
    }

    /// The next stanza has all that `pattern` has; gives its text. White space between elements does not count.
    #[track_caller]
    pub(crate) fn sees(&mut self, pattern: &str) -> String {
        self.read();
        assert!(!self.unread.is_empty(), "{} sees nothing, wanted {pattern}", self.link.jid());
        let env = self.unread.remove(0);
        let text = text(&env);
        self.unacknowledged.push(env);
        let seen = Element::parse(text.as_bytes(), ns::CLIENT).unwrap_or_else(|error| panic!("{text}: {error}"));
        let wanted =
            Element::parse(pattern.as_bytes(), ns::CLIENT).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        if let Err(difference) = compare(&wanted, &seen) {
            panic!("{} sees {text}\nwanted {pattern}\n{difference}", self.link.jid());
        }
        text
    }

    /// The next stanza is a roster push of this item.
    #[track_caller]
    pub(crate) fn sees_push(&mut self, item: &str) {
        self.sees(&format!("<iq type='set'><query xmlns='jabber:iq:roster'>{item}</query></iq>"));
    }

    /// The next stanza is of type error with this condition; gives its text.
    #[track_caller]
    pub(crate) fn sees_error(&mut self, condition: &str) -> String {
        self.read();
        let kind = self.unread.first().map_or("iq", |env| env.stanza.kind().name());
        let error = format!("<error><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>");
        self.sees(&format!("<{kind} type='error'>{error}</{kind}>"))
    }

    #[track_caller]
    pub(crate) fn sees_nothing(&mut self) {
        self.read();
        let seen: Vec<_> = self.unread.iter().map(text).collect();
        assert!(seen.is_empty(), "{} sees {seen:#?}", self.link.jid());
    }

    /// The next `count` stanzas as texts.
    pub(crate) fn takes(&mut self, count: usize) -> Vec<String> {
        self.read();
        assert!(self.unread.len() >= count, "{} of {count}", self.unread.len());
        let taken: Vec<_> = self.unread.drain(..count).collect();
        let texts = taken.iter().map(text).collect();
        self.unacknowledged.extend(taken);
        texts
    }

    /// All that has come, as texts.
    pub(crate) fn takes_all(&mut self) -> Vec<String> {
        self.read();
        self.takes(self.unread.len())
    }

    /// What has come and was not looked at, as texts.
    pub(crate) fn unread(&mut self) -> Vec<String> {
        self.read();
        self.unread.iter().map(text).collect()
    }

    /// Passes over the presence that has come.
    pub(crate) fn skips_presence(&mut self) {
        self.read();
        self.unread.retain(|env| env.stanza.kind() != Kind::Presence);
    }

    /// The bodies of all messages that have come, which are acknowledged.
    pub(crate) fn reads_bodies(&mut self) -> Vec<String> {
        self.read();
        let bodies = self.unread.iter().filter_map(|env| env.stanza.body()).collect();
        self.skip();
        bodies
    }

    /// Reads and acknowledges what has come.
    pub(crate) fn skip(&mut self) {
        self.read();
        self.unacknowledged.append(&mut self.unread);
        self.acks();
    }

    /// Acknowledges what it has seen (XEP-0198).
    pub(crate) fn acks(&mut self) {
        let ids: Vec<u64> =
            self.unacknowledged.drain(..).filter(Envelope::is_lasting).map(|env| env.meta.place).collect();
        self.link.acked(&ids);
    }

    /// The connection is cut; what was not acknowledged is handed back.
    pub(crate) async fn ends(mut self) {
        let mut left = std::mem::take(&mut self.unacknowledged);
        left.append(&mut self.unread);
        self.link.end(left).await.complete().await.unwrap();
    }

    pub(crate) fn jid(&self) -> &Jid {
        self.link.jid()
    }

    fn read(&mut self) {
        self.unread.extend(self.link.take());
    }
}

fn text(env: &Envelope) -> String {
    String::from_utf8(env.to_bytes().to_vec()).unwrap()
}

/// Whether `seen` has all attributes, children and text of `wanted`; `*` in an attribute is anything.
fn compare(wanted: &Element, seen: &Element) -> Result<(), String> {
    if !seen.is(wanted.ns(), wanted.name()) {
        return Err(format!("<{}> is not <{}>", seen.name(), wanted.name()));
    }
    for attr in wanted.attrs() {
        let found = seen.get_attr_ns(&attr.ns, &attr.name);
        if found.is_none() || (attr.value != "*" && found != Some(&*attr.value)) {
            return Err(format!("{} of <{}> is {found:?}, wanted {:?}", attr.name, seen.name(), attr.value));
        }
    }
    let words = |e: &Element| e.text_content().split_whitespace().collect::<Vec<_>>().join(" ");
    if !words(wanted).is_empty() && words(wanted) != words(seen) {
        return Err(format!("<{}> says {:?}", seen.name(), seen.text_content()));
    }
    let children =
        wanted.nodes().iter().filter_map(|node| if let XmlNode::Element(child) = node { Some(child) } else { None });
    for child in children {
        if !seen.elements().any(|candidate| compare(child, candidate).is_ok()) {
            let tries: Vec<_> = seen.elements().filter_map(|candidate| compare(child, candidate).err()).collect();
            return Err(format!("<{}> is missing in <{}>: {}", child.name(), seen.name(), tries.join("; ")));
        }
    }
    Ok(())
}
