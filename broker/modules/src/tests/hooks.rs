//! The hooks themselves, with modules that exist for these tests only.

use super::world::World;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tavi_core::{
    Effects, Envelope, Ev, Flow, Registry, Ticket,
    hooks::{
        BoxFuture, Handle, Iq, IqPayload, OnKept, OnReceived, OnSent, Phase, Remote, Reply, Scope, Service, TwoOwners,
    },
};
use tavi_store::{ArchiveQuery, MemoryStore, Op, Owner, Store};
use tavi_xmpp_proto::{Condition, Element, Jid, Kind, Stanza, StanzaError, ns};
use tokio::sync::Semaphore;

/// `<work xmlns='urn:example:work'/>`.
struct Work;

impl IqPayload for Work {
    const NS: &'static str = "urn:example:work";
    const NAME: &'static str = "work";

    fn parse(_: &Element) -> Result<Work, StanzaError> {
        Ok(Work)
    }
}

/// Answers when it is let.
struct Slow(Arc<Semaphore>);

impl Handle<Work> for Slow {
    fn handle(&self, _: Iq<Work>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async {
            self.0.acquire().await.map_err(|_| Condition::InternalServerError)?.forget();
            Ok(Reply::default())
        })
    }
}

const WORK: &str = "<work xmlns='urn:example:work'/>";
/// A deadline that is over soon: what never comes needs no long one.
const SOON: Duration = Duration::from_millis(20);
const PING: &str = "<ping xmlns='urn:xmpp:ping'/>";

async fn with_slow_work() -> (World, Arc<Semaphore>) {
    let may = Arc::new(Semaphore::new(0));
    let slow = Arc::new(Slow(may.clone()));
    let world = World::with(Arc::new(MemoryStore::default()), |registry| {
        registry.handle::<Work>(Scope::Own, slow).unwrap();
    });
    (world.await, may)
}

#[tokio::test]
async fn a_slow_answer_holds_up_nothing_but_itself() {
    let (world, may) = with_slow_work().await;
    let (mut romeo, mut juliet) = world.friends().await;
    let slow = romeo.begins(&format!("<iq type='get' id='1'>{WORK}</iq>")).await;
    romeo.sends("<message to='juliet@localhost' type='chat'><body>meanwhile</body></message>").await;
    juliet.sees("<message><body>meanwhile</body></message>");
    romeo.sends(&format!("<iq type='get' to='localhost' id='2'>{PING}</iq>")).await;
    romeo.sees("<iq type='result' id='2'/>");
    romeo.sees_nothing();
    may.add_permits(1);
    slow.complete().await.unwrap();
    romeo.sees("<iq type='result' id='1'/>");
}

#[tokio::test]
async fn an_answer_that_never_comes_is_an_error_when_its_time_is_over() {
    let never = Arc::new(Slow(Arc::new(Semaphore::new(0))));
    let world = World::with(Arc::new(MemoryStore::default()), |registry| {
        registry.handle::<Work>(Scope::Own, never).unwrap();
        registry.set_deadline(SOON);
    })
    .await;
    let mut romeo = world.bind("romeo/orchard").await;
    romeo.sends(&format!("<iq type='get' id='1'>{WORK}</iq>")).await;
    romeo.sees_error("resource-constraint");
}

/// Says whose account it is asked about.
struct Whose;

impl Handle<Work> for Whose {
    fn handle(&self, iq: Iq<Work>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        let whose = iq.account.map_or("nobody".to_owned(), |account| account.jid.to_string());
        Box::pin(async { Ok(Element::new("urn:example:work", "work").text(whose).into()) })
    }

    fn nobody(&self, _: Iq<Work>) -> Result<Reply, StanzaError> {
        Err(Condition::ItemNotFound.into())
    }

    fn not_yours(&self) -> StanzaError {
        Condition::Forbidden.into()
    }
}

#[tokio::test]
async fn a_handler_answers_in_its_scope_and_nowhere_else() {
    let asked = |to: &str| format!("<iq type='get'{to} id='1'>{WORK}</iq>");
    let (none, own, other, missing) = ("", " to='romeo@localhost'", " to='juliet@localhost'", " to='nobody@localhost'");
    let server = " to='localhost'";
    // What each scope answers, or the error of who asks elsewhere.
    let cases = [
        (
            Scope::Server,
            [Err("service-unavailable"), Err("service-unavailable"), Err("service-unavailable"), Ok("romeo@localhost")],
        ),
        (Scope::Own, [Ok("romeo@localhost"), Err("forbidden"), Err("forbidden"), Err("service-unavailable")]),
        (
            Scope::Account,
            [Ok("romeo@localhost"), Ok("juliet@localhost"), Err("item-not-found"), Err("service-unavailable")],
        ),
    ];
    for (scope, answers) in cases {
        let world = World::with(Arc::new(MemoryStore::default()), |registry| {
            registry.handle::<Work>(scope, Arc::new(Whose)).unwrap();
        })
        .await;
        world.account("juliet").await;
        let mut romeo = world.bind("romeo/orchard").await;
        for (to, answer) in [none, other, missing, server].into_iter().zip(answers) {
            romeo.sends(&asked(to)).await;
            match answer {
                Ok(whose) => {
                    drop(romeo.sees(&format!("<iq type='result'><work xmlns='urn:example:work'>{whose}</work></iq>")))
                }
                Err(condition) => drop(romeo.sees_error(condition)),
            }
        }
        romeo.sends(&asked(own)).await;
        let is_answered = scope != Scope::Server;
        romeo.sees(if is_answered { "<iq type='result'/>" } else { "<iq type='error'/>" });
    }
}

#[tokio::test]
async fn one_s_own_handler_comes_before_the_one_for_all() {
    let world = World::with(Arc::new(MemoryStore::default()), |registry| {
        registry.handle::<Work>(Scope::Account, Arc::new(Slow(Arc::new(Semaphore::new(0))))).unwrap();
        registry.handle::<Work>(Scope::Own, Arc::new(Whose)).unwrap();
        let twice = registry.handle::<Work>(Scope::Own, Arc::new(Whose));
        assert!(matches!(twice, Err(TwoOwners(what)) if what.contains("urn:example:work")));
    })
    .await;
    let mut romeo = world.bind("romeo/orchard").await;
    romeo.sends(&format!("<iq type='get' id='1'>{WORK}</iq>")).await;
    romeo.sees("<iq type='result' id='1'/>");
}

/// Ends the chain of whatever Paris sends.
struct Deaf;

impl OnReceived for Deaf {
    fn on_received(&self, ev: &mut Ev<'_>) -> Flow {
        match ev.env.from().and_then(Jid::local) {
            Some("paris") => Flow::Refuse(Condition::ServiceUnavailable.into()),
            _ => Flow::Continue,
        }
    }
}

#[tokio::test]
async fn whoever_is_filtered_gets_no_answer_for_an_account_either() {
    let world = World::with(Arc::new(MemoryStore::default()), |registry| {
        registry.handle::<Work>(Scope::Account, Arc::new(Whose)).unwrap();
        registry.on_received(Phase::Filter, Arc::new(Deaf));
    })
    .await;
    world.account("juliet").await;
    for (who, seen) in [("romeo/orchard", "result"), ("paris/street", "error")] {
        let mut asker = world.bind(who).await;
        asker.sends(&format!("<iq type='get' to='juliet@localhost' id='1'>{WORK}</iq>")).await;
        asker.sees(&format!("<iq type='{seen}' id='1'/>"));
    }
}

/// Archives all messages, on both sides, and looks on.
#[derive(Default)]
struct Keeper {
    kept: Mutex<Vec<(String, u64)>>,
}

impl Keeper {
    fn archive(ev: &mut Ev<'_>) -> Flow {
        if ev.env.stanza.kind() == Kind::Message && ev.id != 0 {
            ev.ops.push(Op::Archive { id: ev.id, with: "somebody".into(), value: ev.env.to_bytes() });
        }
        Flow::Continue
    }
}

impl OnSent for Keeper {
    fn on_sent(&self, ev: &mut Ev<'_>) -> Flow {
        Keeper::archive(ev)
    }
}

impl OnReceived for Keeper {
    fn on_received(&self, ev: &mut Ev<'_>) -> Flow {
        Keeper::archive(ev)
    }
}

impl OnKept for Keeper {
    fn on_kept(&self, ev: &mut Ev<'_>) {
        self.kept.lock().push((ev.account.jid.to_string(), ev.id));
        ev.ops.push(Op::Outbox { id: ev.id });
    }
}

async fn archived(store: &MemoryStore, who: &str) -> Vec<u64> {
    let query = ArchiveQuery { limit: 100, ..ArchiveQuery::default() };
    store.archive(&Owner::account(who), &query).await.unwrap().iter().map(|row| row.id).collect()
}

#[tokio::test]
async fn what_hooks_save_is_one_commit_with_the_message_s_row_and_carries_its_id() {
    let (store, keeper) = (Arc::new(MemoryStore::delayed()), Arc::new(Keeper::default()));
    for who in ["romeo@localhost", "juliet@localhost"] {
        let account = Op::Put {
            table: tavi_store::Table::Account,
            item: "".into(),
            value: "x".into(),
            expect: tavi_store::Expect::Any,
        };
        drop(store.commit(&Owner::account(who), vec![account]));
    }
    store.release_all();
    let world = World::with(store.clone(), |registry| {
        registry.on_received(Phase::Store, keeper.clone());
        registry.on_kept(keeper.clone());
    })
    .await;
    let mut romeo = world.bind("romeo/orchard").await;
    // To somebody away, and to somebody who takes no messages: the row, the archive and the index are one change.
    // The archive of accounts keeps out of it.
    let message = "<message to='juliet@localhost' type='chat'><body>Hi</body>
        <no-permanent-store xmlns='urn:xmpp:hints'/></message>";
    let ticket = romeo.begins(message).await;
    assert_eq!(store.waiting(), 1);
    assert!(archived(&store, "juliet@localhost").await.is_empty());
    store.release_all();
    ticket.complete().await.unwrap();
    let ids = archived(&store, "juliet@localhost").await;
    let queued = store.queue(&Owner::account("juliet@localhost"), 0, 10).await.unwrap();
    assert_eq!(ids, queued.iter().map(|row| row.id).collect::<Vec<_>>());
    assert_eq!(*keeper.kept.lock(), [("juliet@localhost".to_owned(), ids[0])]);
    assert_eq!(store.outbox(0, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_hooks_save_is_durable_before_anybody_sees_the_message_though_it_gets_no_row() {
    let (store, keeper) = (Arc::new(MemoryStore::default()), Arc::new(Keeper::default()));
    let world = World::with(store.clone(), |registry| {
        registry.on_sent(Phase::Store, keeper.clone());
        registry.on_received(Phase::Store, keeper.clone());
        registry.on_kept(keeper.clone());
    })
    .await;
    let (romeo, mut juliet) = world.friends().await;
    let mut romeo = romeo.plain();
    for kind in ["chat", "headline"] {
        romeo.sends(&format!("<message to='juliet@localhost' type='{kind}'><body>Hi</body></message>")).await;
        juliet.sees("<message><body>Hi</body></message>");
    }
    for who in ["romeo@localhost", "juliet@localhost"] {
        let ids = archived(&store, who).await;
        let told: Vec<u64> = keeper.kept.lock().iter().filter(|(of, _)| of == who).map(|(_, id)| *id).collect();
        assert!(ids.len() == 2 && ids == told, "{who}: {ids:?} {told:?}");
    }
    // RFC 6121 §8.5.3.2.1: a normal message to a session that is gone is refused, and leaves nothing at its recipient.
    romeo.sends("<message to='juliet@localhost/gone'><body>Hi</body></message>").await;
    romeo.sees_error("service-unavailable");
    assert_eq!(archived(&store, "juliet@localhost").await.len(), 2);
}

/// Serves rooms, one message after the other: `wait` until it is let. What it has served is told to Romeo.
struct Desk {
    may: Arc<Semaphore>,
}

impl Service for Desk {
    fn serve(&self, env: Envelope) -> BoxFuture<'_, Effects> {
        Box::pin(async move {
            let body = env.stanza.body().unwrap_or_default();
            if body == "wait"
                && let Ok(permit) = self.may.acquire().await
            {
                permit.forget();
            }
            let mut fx = Effects::default();
            if let (Some(from), Some(to)) = (env.from().cloned(), env.to().cloned()) {
                let mut told = env.readdressed(from);
                if body.len() > 100 {
                    told.drop_children(|_| true);
                    told.add(&Element::new(ns::CLIENT, "body").text("large"));
                }
                told.head_mut().from = Some(to);
                fx.route(told);
            }
            fx
        })
    }
}

async fn with_desk(deadline: Option<Duration>) -> (World, Arc<Semaphore>) {
    let may = Arc::new(Semaphore::new(0));
    let desk = Arc::new(Desk { may: may.clone() });
    let world = World::with(Arc::new(MemoryStore::default()), |registry| {
        registry.service(tavi_core::Host::Service("upload"), desk).unwrap();
        deadline.into_iter().for_each(|deadline| registry.set_deadline(deadline));
    });
    (world.await, may)
}

fn says(to: &str, body: &str) -> String {
    format!("<message to='{to}@upload.localhost' type='chat'><body>{body}</body></message>")
}

#[tokio::test]
async fn a_service_serves_each_key_in_order_and_nobody_waits_for_another_key() {
    let (world, may) = with_desk(None).await;
    let mut romeo = world.online("romeo/orchard").await;
    let mut open: Vec<Ticket> = Vec::new();
    for (to, body) in [("a", "wait"), ("a", "second"), ("b", "other"), ("a", "third")] {
        open.push(romeo.begins(&says(to, body)).await);
    }
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    romeo.sees("<message from='b@upload.localhost'><body>other</body></message>");
    romeo.sees_nothing();
    may.add_permits(1);
    for ticket in open {
        ticket.complete().await.unwrap();
    }
    for body in ["wait", "second", "third"] {
        romeo.sees(&format!("<message from='a@upload.localhost'><body>{body}</body></message>"));
    }
}

#[tokio::test]
async fn a_service_that_takes_too_long_is_an_error_and_the_next_stanza_s_turn() {
    let (world, _never) = with_desk(Some(SOON)).await;
    let mut romeo = world.online("romeo/orchard").await;
    let slow = romeo.begins(&says("a", "wait")).await;
    romeo.sends(&says("a", "second")).await;
    slow.complete().await.unwrap();
    romeo.sees_error("resource-constraint");
    romeo.sees("<message from='a@upload.localhost'><body>second</body></message>");
}

#[tokio::test]
async fn a_full_mailbox_refuses_and_loses_nothing_that_it_has() {
    let (world, may) = with_desk(None).await;
    let mut romeo = world.online("romeo/orchard").await;
    let large = says("a", &"x".repeat(1 << 20));
    let mut open = vec![romeo.begins(&says("a", "wait")).await];
    tokio::task::yield_now().await;
    for _ in 0..17 {
        open.push(romeo.begins(&large).await);
    }
    // It waits for nothing but what its sender archives.
    open.pop().unwrap().complete().await.unwrap();
    romeo.sees_error("resource-constraint");
    romeo.sends(&says("b", "other")).await;
    romeo.sees("<message from='b@upload.localhost'/>");
    may.add_permits(1);
    let mut seen = Vec::new();
    for ticket in open {
        ticket.complete().await.unwrap();
        seen.extend(romeo.reads_bodies());
    }
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
        seen.extend(romeo.reads_bodies());
    }
    assert_eq!(seen.len(), 17, "the one that waited and 16 MiB");
}

/// Asks Juliet, in its own name, who takes long to answer; and panics when it is told to.
struct Curious;

impl Service for Curious {
    fn serve(&self, env: Envelope) -> BoxFuture<'_, Effects> {
        Box::pin(async move {
            let mut fx = Effects::default();
            assert!(env.stanza.body().as_deref() != Some("panic"), "it was told to");
            if env.stanza.kind() == Kind::Message {
                let asked =
                    format!("<iq type='get' from='a@upload.localhost' to='juliet@localhost' id='1'>{WORK}</iq>");
                fx.route(Stanza::parse(asked.as_bytes()).unwrap());
            }
            fx
        })
    }
}

async fn with_curious(may: Arc<Semaphore>) -> World {
    let world = World::with(Arc::new(MemoryStore::default()), |registry| {
        registry.handle::<Work>(Scope::Account, Arc::new(Slow(may))).unwrap();
        registry.service(tavi_core::Host::Service("upload"), Arc::new(Curious)).unwrap();
    })
    .await;
    world.account("juliet").await;
    world
}

#[tokio::test]
async fn a_service_that_asks_somebody_does_not_wait_for_the_answer_in_its_own_mailbox() {
    let may = Arc::new(Semaphore::new(0));
    let world = with_curious(may.clone()).await;
    let mut romeo = world.bind("romeo/orchard").await;
    for _ in 0..100 {
        romeo.sends(&says("a", "Hi")).await;
    }
    may.add_permits(100);
    romeo.sends(&says("a", "Hi")).await;
}

#[tokio::test]
async fn a_service_that_panics_serves_the_next_stanza() {
    let world = with_curious(Arc::new(Semaphore::new(0))).await;
    let mut romeo = world.bind("romeo/orchard").await;
    assert!(romeo.begins(&says("a", "panic")).await.complete().await.is_err());
    romeo.sends(&says("a", "Hi")).await;
}

/// Sends each message back to a session that is not there, and counts the errors.
struct Echo(Arc<Mutex<usize>>);

impl Service for Echo {
    fn serve(&self, env: Envelope) -> BoxFuture<'_, Effects> {
        Box::pin(async move {
            let mut fx = Effects::default();
            if env.head().type_.is_error() {
                *self.0.lock() += 1;
            } else if let (Ok(gone), Some(to)) = ("romeo@localhost/gone".parse::<Jid>(), env.to().cloned()) {
                let mut echo = env.readdressed(gone);
                echo.head_mut().from = Some(to);
                fx.route(echo);
            }
            fx
        })
    }
}

#[tokio::test]
async fn what_comes_back_to_a_service_does_not_wait_for_itself() {
    let errors = Arc::new(Mutex::new(0));
    let echo = Arc::new(Echo(errors.clone()));
    let world = World::with(Arc::new(MemoryStore::default()), |registry| {
        registry.service(tavi_core::Host::Service("upload"), echo).unwrap();
    })
    .await;
    let mut romeo = world.bind("romeo/orchard").await;
    for _ in 0..100 {
        romeo.sends("<message to='a@upload.localhost' type='groupchat'><body>Hi</body></message>").await;
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(*errors.lock(), 100);
}

/// Another network.
#[derive(Default)]
struct Far(Mutex<Vec<String>>);

impl Remote for Far {
    fn serves(&self, domain: &str) -> bool {
        domain == "far.example"
    }

    fn send(&self, env: Envelope) -> Ticket {
        self.0.lock().push(String::from_utf8_lossy(&env.to_bytes()).into_owned());
        Ticket::done()
    }
}

#[tokio::test]
async fn stanzas_to_other_domains_go_to_who_serves_them() {
    let far = Arc::new(Far::default());
    let remote = far.clone();
    let world = World::with(Arc::new(MemoryStore::default()), |registry: &mut Registry| registry.remote(remote)).await;
    let mut romeo = world.bind("romeo/orchard").await;
    romeo.sends("<message to='mercutio@far.example' type='chat'><body>Hi</body></message>").await;
    assert!(far.0.lock()[0].contains("from='romeo@localhost/orchard'"), "{:?}", far.0.lock());
    romeo.sends("<message to='mercutio@other.example' type='chat'><body>Hi</body></message>").await;
    romeo.sees_error("remote-server-not-found");
    assert_eq!(far.0.lock().len(), 1);
}
