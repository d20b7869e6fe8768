//! Message Carbons (XEP-0280): all sessions of an account see both sides of its conversations, as long as they read: a copy
//! is kept nowhere.

use crate::archive;
use std::sync::Arc;
use tavi_core::{
    AccountState, Effect, Envelope, Ev, Flow, Registry, SessionEntry,
    hooks::{
        BoxFuture, Handle, Iq, IqPayload, OnReceived, OnSent, Phase, Reply, Scope, Stage, StreamFeature, TwoOwners, Xep,
    },
    principal::Host,
};
use tavi_xmpp_proto::{Condition, Element, Jid, MessageType, Stanza, StanzaError, StanzaType, ns, stanza::Head};

/// The line of the table of extensions.
const XEP: Xep = Xep { number: 280, name: "Message Carbons", version: "1.0.1", module: "carbons" };
/// The envelope of a copy.
const FORWARDING: Xep = Xep { number: 297, name: "Stanza Forwarding", version: "1.0", module: "carbons" };

/// Registers it.
///
/// # Errors
/// If a payload has an owner already.
pub fn register(registry: &mut Registry) -> Result<(), TwoOwners> {
    [XEP, FORWARDING].into_iter().for_each(|xep| registry.xep(xep));
    registry.feature(Host::Main, ns::CARBONS);
    registry.feature(Host::Main, "urn:xmpp:carbons:rules:0");
    registry.stream_feature(Arc::new(Carbons));
    registry.on_sent(Phase::Copy, Arc::new(Carbons));
    registry.on_received(Phase::Copy, Arc::new(Carbons));
    registry.handle::<Enable>(Scope::Own, Arc::new(Carbons))?;
    registry.handle::<Disable>(Scope::Own, Arc::new(Carbons))
}

/// XEP-0280 §4.
struct Enable;
/// XEP-0280 §5.
struct Disable;

impl IqPayload for Enable {
    const NS: &'static str = ns::CARBONS;
    const NAME: &'static str = "enable";

    fn parse(_: &Element) -> Result<Enable, StanzaError> {
        Ok(Enable)
    }
}

impl IqPayload for Disable {
    const NS: &'static str = ns::CARBONS;
    const NAME: &'static str = "disable";

    fn parse(_: &Element) -> Result<Disable, StanzaError> {
        Ok(Disable)
    }
}

struct Carbons;

impl StreamFeature for Carbons {
    fn offer(&self, _: Stage) -> Option<Element> {
        None
    }

    fn inline(&self) -> Option<&'static str> {
        Some(ns::CARBONS)
    }

    /// XEP-0386 §4: as the request of XEP-0280 §4.
    fn begin(&self, request: &Element, session: &mut SessionEntry) {
        session.carbons |= request.is(ns::CARBONS, "enable");
    }
}

impl Handle<Enable> for Carbons {
    fn handle(&self, iq: Iq<Enable>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move { switch(&iq, Copies::Wanted) })
    }
}

impl Handle<Disable> for Carbons {
    fn handle(&self, iq: Iq<Disable>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move { switch(&iq, Copies::Unwanted) })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Copies {
    Wanted,
    Unwanted,
}

fn switch<T>(iq: &Iq<T>, copies: Copies) -> Result<Reply, StanzaError> {
    if !iq.is_set() {
        return Err(Condition::BadRequest.into());
    }
    let from = iq.from().ok_or(Condition::BadRequest)?;
    iq.account()?.at_home(|state| {
        if let Some(session) = state.session_at(from) {
            session.carbons = copies == Copies::Wanted;
        }
    });
    Ok(Reply::default())
}

impl OnSent for Carbons {
    fn on_sent(&self, ev: &mut Ev<'_>) -> Flow {
        if wanted(ev.state) && eligible(ev.env, Side::Sent) {
            let own: Jid = (&ev.account.jid).into();
            // RFC 6120 §10.3.1: without a recipient, one's own account is meant.
            let to = Some(ev.env.to().cloned().unwrap_or_else(|| own.clone()));
            let to_self = to.as_ref().is_some_and(|to| to.bare() == own.bare());
            let (from, ev_type) = (ev.env.from().cloned(), ev.env.head().type_);
            let others = |jid: &Jid, state: &AccountState| {
                Some(jid) != from.as_ref() && !(to_self && gets_it(jid, (ev_type, to.as_ref()), state))
            };
            // XEP-0313 §3.4.
            let id = archive::sent_id(ev);
            copy_to("sent", ev, (id, others));
        }
        Flow::Continue
    }
}

impl OnReceived for Carbons {
    fn on_received(&self, ev: &mut Ev<'_>) -> Flow {
        let own = ev.env.from().is_some_and(|from| from.bare() == ev.account.jid.as_str());
        // XEP-0280 §7: what one sends to oneself was copied as sent already.
        if !own && wanted(ev.state) && eligible(ev.env, Side::Received) {
            let (to, type_) = (ev.env.to().cloned(), ev.env.head().type_);
            let gets = |jid: &Jid, state: &AccountState| gets_it(jid, (type_, to.as_ref()), state);
            // What nobody gets now is kept for all, or refused: a copy would be the second or a lie.
            if ev.state.sessions.iter().any(|session| gets(&session.jid, ev.state)) {
                copy_to("received", ev, (None, |jid: &Jid, state: &AccountState| !gets(jid, state)));
            }
        }
        // XEP-0280 §9: the mark is between the sender and the servers.
        ev.env.drop_children(|child| child.is(ns::CARBONS, "private"));
        Flow::Continue
    }
}

/// Most accounts have no session that wants copies.
fn wanted(state: &AccountState) -> bool {
    state.sessions.iter().any(|session| session.carbons)
}

/// Whether the router gives the message itself to the session at `jid` (RFC 6121 §8.5.2, §8.5.3).
fn gets_it(jid: &Jid, (type_, to): (StanzaType, Option<&Jid>), state: &AccountState) -> bool {
    if state.sessions.iter().any(|s| Some(&s.jid) == to && s.is_open()) {
        return Some(jid) == to;
    }
    let for_all = match type_ {
        StanzaType::Message(MessageType::Chat) => true,
        StanzaType::Message(MessageType::Normal | MessageType::Headline) => to.is_none_or(Jid::is_bare),
        _ => false,
    };
    for_all && state.receivers().any(|session| session.jid == *jid)
}

/// Which way a message goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Sent,
    Received,
}

/// XEP-0280 §6.1: what is copied.
fn eligible(env: &Envelope, side: Side) -> bool {
    let StanzaType::Message(type_) = env.head().type_ else { return false };
    let private = env.has(ns::CARBONS, "private") || env.has(ns::HINTS, "no-copy");
    let copy = env.has(ns::CARBONS, "sent") || env.has(ns::CARBONS, "received");
    // A room gives its private messages to each session that is in it by itself; an invitation is for the person.
    let room = env.element(ns::MUC_USER, "x").is_some_and(|x| x.get_child(ns::MUC_USER, "invite").is_none());
    let belongs_to_one = private || copy || (room && side == Side::Received);
    !belongs_to_one && matters(env, type_)
}

fn matters(env: &Envelope, type_: MessageType) -> bool {
    /// What clients say to each other without a body, invitations into rooms too (XEP-0249, XEP-0045 §7.8.2).
    const TALK: [&str; 6] =
        [ns::RECEIPTS, ns::MARKERS, ns::CHAT_STATES, ns::OMEMO, "jabber:x:conference", ns::MUC_USER];
    let talk = || env.stanza.children().iter().any(|child| TALK.contains(&&*child.ns));
    match type_ {
        MessageType::Chat => true,
        // Of an error it can not be seen what it answers, and most are about messages that were copied.
        MessageType::Error => true,
        MessageType::Normal => env.has(ns::CLIENT, "body") || talk(),
        MessageType::Headline => talk(),
        MessageType::Groupchat => false,
    }
}

/// XEP-0280 §7 and §8: a copy, with one more child inside, for each session that wants it and that `others` picks.
fn copy_to(
    name: &'static str,
    ev: &mut Ev<'_>,
    (inside, others): (Option<Element>, impl Fn(&Jid, &AccountState) -> bool),
) {
    let wants = |s: &&SessionEntry| s.carbons && s.is_open() && others(&s.jid, ev.state);
    let wanting: Vec<_> = ev.state.sessions.iter().filter(wants).map(|s| (s.jid.clone(), s.seat())).collect();
    if wanting.is_empty() {
        return;
    }
    let Some(forwarded) = forwarded(ev.env, inside) else { return };
    let copy = Element::new(ns::CARBONS, name).child(forwarded);
    // XEP-0280 §7: of the same type, from the account itself.
    let head = Head::new(ev.env.head().type_).from(&ev.account.jid);
    let envelope: Envelope = Stanza::new(head, [copy]).into();
    let envelope = envelope.as_copy();
    for (jid, seat) in wanting {
        ev.fx.push(Effect::Deliver { seat, envelope: envelope.readdressed(jid) });
    }
}

/// XEP-0297 §3.1: the message as it was, in the namespace of client streams.
fn forwarded(env: &Envelope, inside: Option<Element>) -> Option<Element> {
    let message = Element::parse(&env.to_bytes(), ns::CLIENT).ok()?;
    Some(Element::new(ns::FORWARD, "forwarded").child(message.child_opt(inside)))
}

#[cfg(test)]
mod tests {
    use crate::tests::world::{Person, World};
    use tavi_xmpp_proto::{Element, ns};

    async fn three(world: &World) -> (Person, Person, Person) {
        let mut romeo = world.online("romeo/orchard").await;
        let mut home = world.online("romeo/home").await;
        for session in [&mut romeo, &mut home] {
            session.sends("<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await;
            session.skip();
        }
        romeo.skip();
        (romeo, home, world.online("juliet/balcony").await)
    }

    #[tokio::test]
    async fn a_session_may_begin_with_them_as_it_binds() {
        let world = World::new().await;
        let (mut romeo, mut juliet) = (world.online("romeo/orchard").await, world.online("juliet/balcony").await);
        let mut late = world.online("romeo/late").await;
        late.skip();
        romeo.skip();
        assert_eq!(world.node.router.registry().inline(), [ns::CARBONS]);
        let requests = [Element::new("urn:unknown", "enable"), Element::new(ns::CARBONS, "enable")];
        late.link.begin(&requests);
        juliet.sends("<message to='romeo@localhost/orchard' type='chat'><body>Who is there?</body></message>").await;
        romeo.sees("<message><body>Who is there?</body></message>");
        late.sees("<message><received xmlns='urn:xmpp:carbons:2'/></message>");
    }

    #[tokio::test]
    async fn both_sides_of_a_conversation_reach_the_other_session() {
        let world = World::new().await;
        let (mut romeo, mut home, mut juliet) = three(&world).await;
        romeo.sends("<message to='juliet@localhost/balcony' type='chat' id='1'><body>Hello</body></message>").await;
        juliet.sees("<message from='romeo@localhost/orchard' type='chat'><body>Hello</body></message>");
        home.sees(
            "<message from='romeo@localhost' to='romeo@localhost/home' type='chat'><sent xmlns='urn:xmpp:carbons:2'>
             <forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client' from='romeo@localhost/orchard'
             to='juliet@localhost/balcony' id='1'><body>Hello</body></message></forwarded></sent></message>",
        );
        romeo.sees_nothing();
        juliet.sends("<message to='romeo@localhost/orchard' type='chat'><body>Who is there?</body></message>").await;
        romeo.sees("<message from='juliet@localhost/balcony'><body>Who is there?</body></message>");
        home.sees(
            "<message from='romeo@localhost'><received xmlns='urn:xmpp:carbons:2'><forwarded xmlns='urn:xmpp:forward:0'>
             <message xmlns='jabber:client' from='juliet@localhost/balcony'><body>Who is there?</body></message></forwarded></received></message>",
        );
        romeo.sees_nothing();
        juliet.sends("<message to='romeo@localhost' type='chat'><body>All of you</body></message>").await;
        romeo.sees("<message><body>All of you</body></message>");
        home.sees("<message><body>All of you</body></message>");
        romeo.sees_nothing();
        home.sees_nothing();
        juliet.sees_nothing();
    }

    #[tokio::test]
    async fn who_writes_to_oneself_is_heard_once() {
        let world = World::new().await;
        let (mut romeo, mut home, _juliet) = three(&world).await;
        for to in ["to='romeo@localhost'", ""] {
            romeo.sends(&format!("<message {to} type='chat'><body>Remember</body></message>")).await;
            home.sees("<message from='romeo@localhost/orchard'><body>Remember</body></message>");
            home.sees_nothing();
            romeo.sees("<message from='romeo@localhost/orchard'><body>Remember</body></message>");
            romeo.sees_nothing();
        }
    }

    #[tokio::test]
    async fn private_messages_and_those_of_other_kinds_are_not_copied() {
        let world = World::new().await;
        let (mut romeo, mut home, mut juliet) = three(&world).await;
        let not_copied = [
            ("chat", "<body>x</body><private xmlns='urn:xmpp:carbons:2'/>"),
            ("chat", "<body>x</body><no-copy xmlns='urn:xmpp:hints'/>"),
            ("headline", "<body>x</body>"),
            ("error", "<body>x</body><private xmlns='urn:xmpp:carbons:2'/>"),
            ("normal", "<x xmlns='urn:example'/>"),
        ];
        for (type_, content) in not_copied {
            romeo.sends(&format!("<message to='juliet@localhost/balcony' type='{type_}'>{content}</message>")).await;
            let seen = juliet.sees("<message from='romeo@localhost/orchard'/>");
            assert!(!seen.contains("private"), "{seen}");
            juliet.sends(&format!("<message to='romeo@localhost/orchard' type='{type_}'>{content}</message>")).await;
            romeo.sees("<message from='juliet@localhost/balcony'/>");
            home.sees_nothing();
        }
    }

    #[tokio::test]
    async fn what_people_say_without_a_body_is_copied_and_a_room_s_private_message_only_to_it() {
        let world = World::new().await;
        let (mut romeo, mut home, mut juliet) = three(&world).await;
        let copied = [
            ("normal", "<x xmlns='jabber:x:conference' jid='room@rooms.localhost'/>"),
            ("normal", "<x xmlns='http://jabber.org/protocol/muc#user'><invite from='paris@localhost'/></x>"),
            ("headline", "<received xmlns='urn:xmpp:receipts' id='1'/>"),
            ("error", "<error type='cancel'/>"),
        ];
        for (type_, content) in copied {
            juliet.sends(&format!("<message to='romeo@localhost/orchard' type='{type_}'>{content}</message>")).await;
            romeo.sees("<message from='juliet@localhost/balcony'/>");
            home.sees("<message><received xmlns='urn:xmpp:carbons:2'/></message>");
        }
        let private = "<body>pm</body><x xmlns='http://jabber.org/protocol/muc#user'/>";
        romeo.sends(&format!("<message to='juliet@localhost/balcony' type='chat'>{private}</message>")).await;
        juliet.sees("<message><body>pm</body></message>");
        home.sees("<message><sent xmlns='urn:xmpp:carbons:2'/></message>");
        juliet.sends(&format!("<message to='romeo@localhost/orchard' type='chat'>{private}</message>")).await;
        romeo.sees("<message><body>pm</body></message>");
        home.sees_nothing();
    }

    #[tokio::test]
    async fn what_is_kept_for_a_session_comes_to_it_once() {
        let world = World::new().await;
        let mut juliet = world.online("juliet/balcony").await;
        let mut home = world.bind("romeo/home").await;
        home.sends("<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await;
        home.skip();
        juliet.sends("<message to='romeo@localhost' type='chat'><body>once</body></message>").await;
        home.sees_nothing();
        home.sends("<presence/>").await;
        home.sees("<message><body>once</body></message>");
        home.sees("<presence/>");
        home.sees_nothing();
    }

    #[tokio::test]
    async fn who_switches_copies_off_gets_none_and_a_dead_session_s_copies_end_with_it() {
        let world = World::new().await;
        let (mut romeo, home, mut juliet) = three(&world).await;
        romeo.sends("<message to='juliet@localhost/balcony' type='chat'><body>1</body></message>").await;
        home.ends().await;
        romeo.sees("<presence from='romeo@localhost/home' type='unavailable'/>");
        romeo.sees_nothing();
        juliet.skip();
        let mut home = world.online("romeo/home").await;
        romeo.skip();
        home.skip();
        home.sends("<iq type='set' id='c'><disable xmlns='urn:xmpp:carbons:2'/></iq>").await;
        home.sees("<iq type='result' id='c'/>");
        romeo.sends("<message to='juliet@localhost/balcony' type='chat'><body>2</body></message>").await;
        juliet.sees("<message><body>2</body></message>");
        home.sees_nothing();
    }
}
