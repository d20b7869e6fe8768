//! Presence (RFC 6121 §4): who is there, who is told, and from when on a session takes messages.

use crate::{blocking::block_list, capabilities::Capabilities, contacts::contacts};
use std::sync::Arc;
use tavi_core::{
    AccountState, Effect, Effects, Envelope, Ev, Flow, Registry, SessionEntry,
    hooks::{OnReceived, OnSent, OnSession, Phase, Place, SessionEvent},
};
use tavi_xmpp_proto::{BareJid, Condition, Jid, PresenceType, Stanza, StanzaError, StanzaType, ns, stanza::Head};

/// Recipients of directed presence that a session may have.
const MAX_DIRECTED: usize = 1000;

/// The largest presence in bytes: it is kept for each session and sent to each contact.
const MAX_BYTES: usize = 32 * 1024;

/// Registers it.
pub fn register(registry: &mut Registry, capabilities: Arc<Capabilities>) {
    let presence = Arc::new(Presence { capabilities });
    registry.on_sent(Phase::Filter, presence.clone());
    registry.on_received(Phase::Filter, presence.clone());
    registry.on_session(presence);
}

struct Presence {
    /// Presence tells what clients can do.
    capabilities: Arc<Capabilities>,
}

impl OnSent for Presence {
    fn on_sent(&self, ev: &mut Ev<'_>) -> Flow {
        let StanzaType::Presence(type_) = ev.env.head().type_ else { return Flow::Continue };
        let Some(from) = ev.env.from().cloned() else { return Flow::Stop };
        let Some(session) = ev.state.session_at(&from).map(|session| session.id) else { return Flow::Continue };
        match (type_, ev.env.to().cloned()) {
            (PresenceType::Available, None) => came(ev, session, &self.capabilities),
            (PresenceType::Unavailable, None) => went(ev, session),
            (PresenceType::Available, Some(to)) => directed(ev, session, to),
            (PresenceType::Unavailable, Some(to)) => undirected(ev, session, &to),
            _ => Flow::Continue,
        }
    }
}

/// RFC 6121 §4.2 and §4.4: initial and later presence.
fn came(ev: &mut Ev<'_>, id: u64, capabilities: &Capabilities) -> Flow {
    let priority = match priority(ev.env) {
        Ok(priority) => priority,
        Err(error) => return Flow::Refuse(error),
    };
    if size(ev.env) > MAX_BYTES {
        return Flow::Refuse(StanzaError::new(Condition::PolicyViolation).text("presence has at most 32 KiB"));
    }
    let Some(session) = ev.state.session(id) else { return Flow::Stop };
    let first = !std::mem::replace(&mut session.available, true);
    session.priority = priority;
    session.presence = Some(ev.env.stanza.clone());
    // From the queue it takes what it may from now on, or gives it up (XEP-0160 §3).
    let flush = (priority >= 0) != session.receiving;
    session.receiving &= priority >= 0;
    let (seat, open) = (session.seat(), session.is_open());
    let gives_up = flush && priority < 0;
    if gives_up && open {
        // At once, however much waits for the session to read.
        ev.fx.push(Effect::Flush { seat: seat.clone() });
    }
    broadcast(ev.env, ev.state, ev.fx);
    if first {
        meet(ev.state, ev.fx, id);
        let event = SessionEvent::Available;
        ev.fx.push(Effect::Event { seat: seat.clone(), event });
    }
    if flush && open && !gives_up {
        ev.fx.push(Effect::Flush { seat });
    }
    capabilities.announced(ev, id, first);
    Flow::Stop
}

/// What a session is told when it comes: RFC 6121 §4.2.2 its siblings, §4.3 its contacts, §3.1.3 open requests.
fn meet(state: &AccountState, fx: &mut Effects, id: u64) {
    let Some(me) = state.sessions.iter().find(|session| session.id == id) else { return };
    for other in state.available().filter(|other| other.id != id) {
        fx.deliver(me, shown(other, &me.jid));
    }
    // XEP-0191 §3.3: whoever is blocked is told nothing, and nothing is told of him.
    let others = || contacts(state).iter().filter(|(contact, _)| !block_list(state).covers_account(contact));
    for (contact, _) in others().filter(|(_, contact)| contact.subscription.to) {
        fx.route(probe(me, contact));
    }
    let requests = others().filter_map(|(_, contact)| contact.request.as_ref());
    for request in requests.filter_map(|bytes| Stanza::parse(bytes).ok()) {
        fx.deliver(me, request);
    }
}

fn probe(session: &SessionEntry, contact: &BareJid) -> Stanza {
    Stanza::new(Head::presence(PresenceType::Probe).from(session.jid.clone()).to(contact), None)
}

/// RFC 6121 §4.5: the session stays connected but is not there any more.
fn went(ev: &mut Ev<'_>, id: u64) -> Flow {
    let Some(session) = ev.state.session(id) else { return Flow::Stop };
    let received = std::mem::take(&mut session.receiving);
    (session.presence, session.priority) = (None, 0);
    let was_available = std::mem::take(&mut session.available);
    let directed = std::mem::take(&mut session.directed);
    let seat = session.seat();
    if received && session.is_open() {
        ev.fx.push(Effect::Flush { seat: seat.clone() });
    }
    if was_available {
        broadcast(ev.env, ev.state, ev.fx);
    }
    tell_directed(ev.env, &directed, (ev.state, was_available), ev.fx);
    if was_available {
        // RFC 6121 §4.5.2: the session itself hears it too; last, since nobody else waits until it reads.
        ev.fx.push(Effect::Deliver { seat, envelope: ev.env.readdressed(&ev.account.jid) });
    }
    Flow::Stop
}

/// RFC 6121 §4.6.3: who got directed presence hears of the end, too.
fn directed(ev: &mut Ev<'_>, id: u64, to: Jid) -> Flow {
    let subscribed = sees(ev.state, &to.to_bare());
    let Some(session) = ev.state.session(id) else { return Flow::Continue };
    let told_anyway = subscribed && session.available;
    if !told_anyway && !session.directed.contains(&to) {
        if session.directed.len() >= MAX_DIRECTED {
            let error = StanzaError::new(Condition::ResourceConstraint).text("directed presence to too many");
            return Flow::Refuse(error);
        }
        session.directed.push(to);
    }
    Flow::Continue
}

/// All that its sender chose of it: it is kept, and sent to each contact.
fn size(env: &Envelope) -> usize {
    let attribute = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
    env.stanza.raw().len() + attribute(&env.head().id) + attribute(&env.head().lang)
}

fn undirected(ev: &mut Ev<'_>, id: u64, to: &Jid) -> Flow {
    if let Some(session) = ev.state.session(id) {
        session.directed.retain(|jid| jid != to);
    }
    Flow::Continue
}

/// RFC 6121 §4.7.2.3: -128 to 127, 0 if it is not there.
fn priority(env: &Envelope) -> Result<i8, StanzaError> {
    let Some(element) = env.element(ns::CLIENT, "priority") else { return Ok(0) };
    let text = element.text_content();
    text.trim()
        .parse()
        .map_err(|_| StanzaError::new(Condition::BadRequest).text("a priority is a number from -128 to 127"))
}

/// RFC 6121 §4.2.2, §4.4.2, §4.5.2: to all who may see it, and to all own sessions that are there.
fn broadcast(env: &Envelope, state: &AccountState, fx: &mut Effects) {
    for contact in audience(state) {
        fx.push(Effect::Route(env.readdressed(contact)));
    }
    // Last the session itself: nobody else waits until it reads.
    let (own, others): (Vec<_>, Vec<_>) = state.available().partition(|session| env.from() == Some(&session.jid));
    for session in others.into_iter().chain(own) {
        fx.deliver(session, env.readdressed(session.jid.to_bare()));
    }
}

/// All who see the account, but those whom it has blocked (XEP-0191 §3.3).
fn audience(state: &AccountState) -> impl Iterator<Item = &BareJid> {
    let seeing = contacts(state).iter().filter(|(_, contact)| contact.subscription.from).map(|(contact, _)| contact);
    seeing.filter(|contact| !block_list(state).covers_account(contact))
}

/// RFC 6121 §4.6.3: the end is told to whom a presence was directed, unless they heard it as contacts.
fn tell_directed(env: &Envelope, directed: &[Jid], (state, broadcasted): (&AccountState, bool), fx: &mut Effects) {
    let left = directed.iter().filter(|to| !broadcasted || !sees(state, &to.to_bare()));
    for to in left.filter(|to| !block_list(state).covers(to)) {
        fx.push(Effect::Route(env.readdressed(to.clone())));
    }
}

fn sees(state: &AccountState, contact: &BareJid) -> bool {
    contacts(state).get(contact).is_some_and(|contact| contact.subscription.from)
}

/// A session's presence as somebody else sees it. A bot's session has none of its own and is simply there.
fn shown(session: &SessionEntry, to: &Jid) -> Envelope {
    let empty = || Arc::new(Stanza::new(Head::presence(PresenceType::Available).from(session.jid.clone()), None));
    let env: Envelope = session.presence.clone().unwrap_or_else(empty).into();
    env.readdressed(to.clone())
}

/// Shows all sessions that are there to somebody (RFC 6121 §3.1.5, §4.3.2).
pub(crate) fn show(state: &AccountState, to: &Jid, fx: &mut Effects) {
    state.available().for_each(|session| fx.push(Effect::Route(shown(session, to))));
}

/// Tells somebody that all sessions are gone, since it may not see them any more (RFC 6121 §3.2.1, §3.3.3). Whoever is
/// blocked was told already.
pub(crate) fn hide(state: &AccountState, contact: &BareJid, fx: &mut Effects) {
    for session in state.available().filter(|_| !block_list(state).covers_account(contact)) {
        fx.route(Stanza::new(gone(session).to(contact), None));
    }
}

/// Somebody whom an account blocks or unblocks.
pub(crate) struct Others<'a> {
    /// The addresses that were named.
    pub(crate) named: &'a [Jid],
    /// Whether it is one of them.
    pub(crate) are: &'a dyn Fn(&Jid) -> bool,
}

impl Others<'_> {
    /// Those of them who may see the account: contacts, and contacts' sessions that were named alone.
    fn seeing(&self, state: &AccountState) -> Vec<Jid> {
        let contacts = contacts(state).iter().filter(|(_, contact)| contact.subscription.from);
        let mut seeing: Vec<Jid> =
            contacts.map(|(contact, _)| Jid::from(contact)).filter(|jid| (self.are)(jid)).collect();
        let is_alone =
            |jid: &&Jid| (self.are)(jid) && sees(state, &jid.to_bare()) && !(self.are)(&jid.to_bare().into());
        seeing.extend(self.named.iter().filter(is_alone).cloned());
        seeing
    }
}

/// Tells them that all sessions are gone (XEP-0191 §3.3): those who may see them, and those who were shown them.
pub(crate) fn vanish(state: &mut AccountState, others: &Others<'_>, fx: &mut Effects) {
    let seeing = others.seeing(state);
    for session in &mut state.sessions {
        let (mut told, left): (Vec<_>, _) = std::mem::take(&mut session.directed).into_iter().partition(others.are);
        session.directed = left;
        if session.available {
            told.extend(seeing.iter().cloned());
        }
        told.into_iter().for_each(|to| fx.route(Stanza::new(gone(session).to(to), None)));
    }
}

/// Shows all sessions again to those who may see them (XEP-0191 §3.4), and asks how they are whom the account sees.
pub(crate) fn reappear(state: &AccountState, others: &Others<'_>, fx: &mut Effects) {
    others.seeing(state).iter().for_each(|to| show(state, to, fx));
    let seen = contacts(state).iter().filter(|(_, contact)| contact.subscription.to).map(|(contact, _)| contact);
    for contact in seen.filter(|contact| (others.are)(&Jid::from(*contact))) {
        state.available().for_each(|session| fx.route(probe(session, contact)));
    }
}

fn gone(session: &SessionEntry) -> Head {
    Head::presence(PresenceType::Unavailable).from(session.jid.clone())
}

impl OnReceived for Presence {
    fn on_received(&self, ev: &mut Ev<'_>) -> Flow {
        if ev.env.head().type_ != StanzaType::Presence(PresenceType::Probe) {
            return Flow::Continue;
        }
        if let Some(from) = ev.env.from().cloned() {
            probed(ev, &from);
        }
        Flow::Stop
    }
}

/// RFC 6121 §4.3.2.
fn probed(ev: &mut Ev<'_>, from: &Jid) {
    let asker = from.to_bare();
    let answer = |type_, to: Jid| Stanza::new(Head::presence(type_).from(&ev.account.jid).to(to), None);
    if asker != ev.account.jid && !sees(ev.state, &asker) {
        // A request that still waits is not to be denied by this.
        if contacts(ev.state).get(&asker).is_none_or(|contact| contact.request.is_none()) {
            ev.fx.route(answer(PresenceType::Unsubscribed, asker.into()));
        }
    } else if ev.state.available().next().is_none() {
        ev.fx.route(answer(PresenceType::Unavailable, from.clone()));
    } else {
        show(ev.state, from, ev.fx);
    }
}

impl OnSession for Presence {
    fn on_session(&self, event: SessionEvent, id: u64, at: &mut Place<'_>) {
        match event {
            SessionEvent::Available => opened(id, at),
            SessionEvent::Returned => returned(id, at),
            SessionEvent::Ended => ended(id, at),
        }
    }
}

/// A bot's session sends no presence: that it is open is its presence.
fn opened(id: u64, at: &mut Place<'_>) {
    let Some(session) = at.state.session(id).filter(|session| session.presence.is_none()) else { return };
    let head = Head::presence(PresenceType::Available).from(session.jid.clone());
    broadcast(&Stanza::new(head, None).into(), at.state, at.fx);
}

/// As if it had come just now; to those who know it already nothing is new.
fn returned(id: u64, at: &mut Place<'_>) {
    let Some(session) = at.state.session(id).filter(|session| session.available) else { return };
    let Some(presence) = session.presence.clone() else { return };
    broadcast(&presence.into(), at.state, at.fx);
    meet(at.state, at.fx, id);
}

/// RFC 6121 §4.5.2: the server speaks for a session that ended.
fn ended(id: u64, at: &mut Place<'_>) {
    let Some(session) = at.state.session(id) else { return };
    session.receiving = false;
    let was_available = std::mem::take(&mut session.available);
    let directed = std::mem::take(&mut session.directed);
    let env: Envelope = Stanza::new(gone(session), None).into();
    let jid = session.jid.clone();
    // RFC 6120 §7.7.2.2: a session with the same resource took its place; to contacts nothing has ended. Others know
    // only the presence that was directed to them, and the successor may have directed its own already.
    if let Some(successor) = at.state.available().find(|other| other.jid == jid && other.id != id) {
        let left: Vec<Jid> = directed.into_iter().filter(|to| !successor.directed.contains(to)).collect();
        return tell_directed(&env, &left, (at.state, true), at.fx);
    }
    if was_available {
        broadcast(&env, at.state, at.fx);
    }
    tell_directed(&env, &directed, (at.state, was_available), at.fx);
}

#[cfg(test)]
mod tests {
    use crate::tests::world::World;

    #[tokio::test]
    async fn friends_see_each_other_come_change_and_go() {
        let world = World::new().await;
        let (mut romeo, mut juliet) = world.friends().await;
        juliet.sends("<presence><show>away</show><priority>3</priority></presence>").await;
        romeo.sees("<presence from='juliet@localhost/balcony' to='romeo@localhost'><show>away</show></presence>");
        juliet.sees("<presence from='juliet@localhost/balcony'><show>away</show></presence>");
        juliet.sends("<presence type='unavailable'><status>Good night</status></presence>").await;
        romeo.sees(
            "<presence from='juliet@localhost/balcony' type='unavailable'><status>Good night</status></presence>",
        );
        juliet.sees("<presence type='unavailable'/>");
        juliet.sends("<presence/>").await;
        romeo.sees("<presence from='juliet@localhost/balcony'/>");
        juliet.sees("<presence from='juliet@localhost/balcony'/>");
        juliet.sees("<presence from='romeo@localhost/orchard'/>");
        juliet.ends().await;
        romeo.sees("<presence from='juliet@localhost/balcony' type='unavailable'/>");
        romeo.sees_nothing();
    }

    #[tokio::test]
    async fn one_s_own_sessions_see_each_other() {
        let world = World::new().await;
        let mut orchard = world.online("romeo/orchard").await;
        let mut home = world.bind("romeo/home").await;
        home.sends("<presence><show>dnd</show></presence>").await;
        orchard.sees("<presence from='romeo@localhost/home'><show>dnd</show></presence>");
        home.sees("<presence from='romeo@localhost/home'/>");
        home.sees("<presence from='romeo@localhost/orchard'/>");
        home.sees_nothing();
        home.ends().await;
        orchard.sees("<presence from='romeo@localhost/home' type='unavailable'/>");
    }

    #[tokio::test]
    async fn strangers_see_nothing_and_a_probe_tells_them_nothing() {
        let world = World::new().await;
        let mut juliet = world.online("juliet/balcony").await;
        let mut paris = world.online("paris/street").await;
        paris.sends("<presence type='probe' to='juliet@localhost'/>").await;
        paris.sees_nothing();
        juliet.sends("<presence><show>chat</show></presence>").await;
        paris.sees_nothing();
    }

    #[tokio::test]
    async fn directed_presence_ends_with_the_session() {
        let world = World::new().await;
        let mut juliet = world.online("juliet/balcony").await;
        let mut paris = world.online("paris/street").await;
        juliet.sends("<presence to='paris@localhost/street'/>").await;
        paris.sees("<presence from='juliet@localhost/balcony' to='paris@localhost/street'/>");
        juliet.ends().await;
        paris.sees("<presence from='juliet@localhost/balcony' to='paris@localhost/street' type='unavailable'/>");
        paris.sees_nothing();
    }

    #[tokio::test]
    async fn a_contact_hears_the_end_of_a_session_that_only_directed_its_presence() {
        let world = World::new().await;
        let (_romeo, mut juliet) = world.friends().await;
        let mut second = world.bind("romeo/home").await;
        second.sends("<presence to='juliet@localhost'/>").await;
        juliet.sees("<presence from='romeo@localhost/home'/>");
        second.ends().await;
        juliet.sees("<presence from='romeo@localhost/home' type='unavailable'/>");
        juliet.sees_nothing();
    }

    #[tokio::test]
    async fn a_session_that_was_replaced_ends_for_those_to_whom_it_directed_its_presence() {
        let world = World::new().await;
        let mut romeo = world.online("romeo/orchard").await;
        let mut paris = world.online("paris/street").await;
        romeo.sends("<presence to='paris@localhost/street'/>").await;
        paris.sees("<presence from='romeo@localhost/orchard'/>");
        let _successor = world.online("romeo/orchard").await;
        romeo.ends().await;
        paris.sees("<presence from='romeo@localhost/orchard' type='unavailable'/>");
        paris.sees_nothing();
    }

    #[tokio::test]
    async fn a_negative_priority_takes_no_messages_for_the_account() {
        let world = World::new().await;
        let mut romeo = world.online("romeo/orchard").await;
        let mut juliet = world.bind("juliet/balcony").await;
        juliet.sends("<presence><priority>-1</priority></presence>").await;
        juliet.skip();
        romeo.sends("<message to='juliet@localhost' type='chat'><body>psst</body></message>").await;
        juliet.sees_nothing();
        romeo.sends("<message to='juliet@localhost/balcony' type='chat'><body>direct</body></message>").await;
        juliet.sees("<message><body>direct</body></message>");
        juliet.sends("<presence><priority>0</priority></presence>").await;
        juliet.sees("<message><body>psst</body><delay xmlns='urn:xmpp:delay'/></message>");
        juliet.sees("<presence/>");
        romeo.sends("<message to='juliet@localhost' type='chat'><body>now</body></message>").await;
        juliet.sees("<message><body>now</body></message>");
        juliet.sends("<presence><priority>900</priority></presence>").await;
        juliet.sees_error("bad-request");
    }

    #[tokio::test]
    async fn a_friend_who_is_away_answers_a_probe_with_unavailable() {
        let world = World::new().await;
        let (romeo, juliet) = world.friends().await;
        juliet.ends().await;
        romeo.ends().await;
        let mut romeo = world.bind("romeo/orchard").await;
        romeo.sends("<presence/>").await;
        romeo.sees("<presence from='romeo@localhost/orchard'/>");
        romeo.sees("<presence from='juliet@localhost' to='romeo@localhost/orchard' type='unavailable'/>");
        romeo.sees_nothing();
    }
}
