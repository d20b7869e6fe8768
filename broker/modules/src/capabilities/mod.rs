//! Entity Capabilities (XEP-0115): what the clients of an account's sessions want to be notified of.
//!
//! A client's presence names what it can do by a hash. What the hash stands for the broker asks the client itself, and
//! remembers it for all who give the same one once it is verified; an answer that proves nothing counts for its own
//! session only. Nobody waits for another's client.

mod cache;
mod verification;

pub(crate) use verification::Interests;

use crate::personal;
use cache::Cache;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tavi_core::{
    AccountPart, AccountState, Effect, Envelope, Ev, Flow, Registry,
    hooks::{BoxFuture, OnReceived, OnSession, Phase, Place, SessionEvent, Xep},
};
use tavi_store::{Owner, SharedStore, StoreError};
use tavi_xmpp_proto::{Element, IqType, Jid, Stanza, StanzaType, ns, stanza::Head};
use verification::Verification;

/// The line of the table of extensions.
const XEP: Xep = Xep { number: 115, name: "Entity Capabilities", version: "1.6.0", module: "capabilities" };

/// The longest name, hash or algorithm of a client's capabilities, in bytes.
const MAX_TEXT: usize = 1023;

/// Registers it; the presence module tells what sessions announce.
pub fn register(registry: &mut Registry) -> Arc<Capabilities> {
    let capabilities = Arc::new(Capabilities::default());
    registry.xep(XEP);
    registry.part::<Clients>();
    registry.on_received(Phase::Filter, capabilities.clone());
    registry.on_session(capabilities.clone());
    capabilities
}

/// What is known of all hashes.
#[derive(Default)]
pub struct Capabilities {
    cache: Mutex<Cache>,
}

/// The clients of an account's sessions.
#[derive(Default)]
pub(crate) struct Clients {
    sessions: HashMap<u64, Client>,
    asked: u64,
}

impl AccountPart for Clients {
    fn load<'a>(_: &'a SharedStore, _: &'a Owner) -> BoxFuture<'a, Result<Clients, StoreError>> {
        Box::pin(async { Ok(Clients::default()) })
    }
}

struct Client {
    announced: Announced,
    wishes: Wishes,
}

/// The `<c/>` of a presence (XEP-0115 §4).
#[derive(Clone, PartialEq, Eq)]
struct Announced {
    node: Box<str>,
    ver: Box<str>,
    hash: Box<str>,
}

enum Wishes {
    /// The client was asked with this id.
    Asked(Box<str>),
    /// It wants to be notified of these.
    Known(Interests),
}

impl Announced {
    fn of(env: &Envelope) -> Option<Announced> {
        let c = env.element(ns::CAPS, "c")?;
        let text = |name| c.get_attr(name).unwrap_or_default();
        let (node, ver, hash) = (text("node"), text("ver"), text("hash"));
        let fits = !ver.is_empty() && [node, ver, hash].iter().all(|text| text.len() <= MAX_TEXT);
        fits.then(|| Announced { node: node.into(), ver: ver.into(), hash: hash.into() })
    }

    /// Whether a hash of this kind can be verified here (XEP-0115 §5.4).
    fn is_verifiable(&self) -> bool {
        &*self.hash == "sha-1"
    }

    /// XEP-0115 §6.2.
    fn question(&self, id: &str, from: impl Into<Jid>, to: &Jid) -> Stanza {
        let query = Element::new(ns::DISCO_INFO, "query").attr("node", format!("{}#{}", self.node, self.ver));
        Stanza::new(Head::iq(IqType::Get, id).from(from).to(to.clone()), [query])
    }
}

/// What a session wants to be notified of; `None` if that is not known, or it is not there.
pub(crate) fn interests(state: &AccountState, session: u64) -> Option<&Interests> {
    match &state.part::<Clients>()?.sessions.get(&session)?.wishes {
        Wishes::Known(interests) => Some(interests),
        Wishes::Asked(_) => None,
    }
}

/// Whether a session wants to be notified of a node.
pub(crate) fn wants(state: &AccountState, session: u64, node: &str) -> bool {
    interests(state, session).is_some_and(|interests| interests.binary_search_by(|name| (**name).cmp(node)).is_ok())
}

impl Capabilities {
    /// A session sent its presence; `first` if it was not there before.
    pub(crate) fn announced(&self, ev: &mut Ev<'_>, id: u64, first: bool) {
        let Some(announced) = Announced::of(ev.env) else {
            return drop(ev.state.part_mut::<Clients>().sessions.remove(&id));
        };
        let before = ev.state.part::<Clients>().and_then(|clients| clients.sessions.get(&id));
        if before.is_some_and(|before| before.announced == announced) {
            return;
        }
        let former = interests(ev.state, id).cloned();
        let mut at = Place { account: ev.account, state: ev.state, fx: ev.fx, hosts: ev.hosts };
        if self.learn(&mut at, id, announced) && !first {
            // XEP-0163 §4.3.3: later presence brings no items again, but what is wanted now for the first time comes.
            tell_last(&mut at, id, former.as_ref());
        }
    }

    /// Whether it is known at once what the session wants; else its client is asked.
    fn learn(&self, at: &mut Place<'_>, id: u64, announced: Announced) -> bool {
        let known = if announced.is_verifiable() { self.cache.lock().get(&announced.ver) } else { None };
        if let Some(interests) = known {
            at.state.part_mut::<Clients>().sessions.insert(id, Client { announced, wishes: Wishes::Known(interests) });
            return true;
        }
        let clients = at.state.part_mut::<Clients>();
        clients.asked += 1;
        let number = format!("caps-{}", clients.asked);
        let Some(session) = at.state.sessions.iter().find(|session| session.id == id) else { return false };
        let question: Envelope = announced.question(&number, &at.account.jid, &session.jid).into();
        at.fx.push(Effect::Deliver { seat: session.seat(), envelope: question.as_copy() });
        let client = Client { announced, wishes: Wishes::Asked(number.into()) };
        at.state.part_mut::<Clients>().sessions.insert(id, client);
        false
    }

    /// XEP-0115 §5.4: an answer of a client that was asked.
    fn answered(&self, announced: &Announced, answer: Option<&Element>) -> Interests {
        let Some(query) = answer else { return Interests::default() };
        let said = Verification::of(query);
        let interests = said.interests();
        if announced.is_verifiable() && said.proves(&announced.ver) {
            self.cache.lock().insert(&announced.ver, interests.clone());
        }
        interests
    }
}

impl OnReceived for Capabilities {
    /// The answer of a session's client.
    fn on_received(&self, ev: &mut Ev<'_>) -> Flow {
        if !matches!(ev.env.head().type_, StanzaType::Iq(IqType::Result | IqType::Error)) {
            return Flow::Continue;
        }
        let Some(id) = asked_session(ev) else { return Flow::Continue };
        let answer = ev.env.element(ns::DISCO_INFO, "query");
        let Some(client) = ev.state.part_mut::<Clients>().sessions.get_mut(&id) else { return Flow::Stop };
        client.wishes = Wishes::Known(self.answered(&client.announced, answer.as_ref()));
        let mut at = Place { account: ev.account, state: ev.state, fx: ev.fx, hosts: ev.hosts };
        tell_last(&mut at, id, None);
        Flow::Stop
    }
}

/// The session that was asked with the id of this answer.
fn asked_session(ev: &mut Ev<'_>) -> Option<u64> {
    let from = ev.env.from()?.clone();
    if from.to_bare() != ev.account.jid || ev.env.to()? != &Jid::from(&ev.account.jid) {
        return None;
    }
    let id = ev.state.session_at(&from)?.id;
    let client = ev.state.part::<Clients>()?.sessions.get(&id)?;
    let asked = matches!(&client.wishes, Wishes::Asked(number) if ev.env.head().id.as_ref() == Some(number));
    asked.then_some(id)
}

impl OnSession for Capabilities {
    fn on_session(&self, event: SessionEvent, id: u64, at: &mut Place<'_>) {
        match event {
            SessionEvent::Available => tell_last(at, id, None),
            SessionEvent::Returned => self.returned(id, at),
            SessionEvent::Ended => drop(at.state.part_mut::<Clients>().sessions.remove(&id)),
        }
    }
}

impl Capabilities {
    /// What was known before the restart is forgotten, and what was published meanwhile was not told.
    fn returned(&self, id: u64, at: &mut Place<'_>) {
        let session = at.state.session(id).filter(|session| session.available);
        let presence = session.and_then(|session| session.presence.clone());
        let announced = presence.and_then(|presence| Announced::of(&presence.into()));
        if announced.is_some_and(|announced| self.learn(at, id, announced)) {
            tell_last(at, id, None);
        }
    }
}

/// It is known what a session wants: it gets the last items of that, but for what it wanted before.
fn tell_last(at: &mut Place<'_>, id: u64, former: Option<&Interests>) {
    let Some(interests) = interests(at.state, id).cloned() else { return };
    let Some(session) = at.state.session(id).filter(|session| session.available) else { return };
    let jid = session.jid.clone();
    let is_old = |node: &str| former.is_some_and(|former| former.binary_search_by(|old| (**old).cmp(node)).is_ok());
    let nodes: Vec<Box<str>> = interests.iter().filter(|node| !is_old(node)).cloned().collect();
    personal::ask_all((&jid, &nodes), at);
}

/// What the available sessions of an account want to be notified of.
pub(crate) fn wishes(state: &AccountState) -> Vec<(Jid, Interests)> {
    let known = |session: &tavi_core::SessionEntry| Some((session.jid.clone(), interests(state, session.id)?.clone()));
    state.available().filter_map(known).collect()
}
