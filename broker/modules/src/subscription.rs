//! Presence subscriptions (RFC 6121 §3): who sees whose presence, as a table and as hooks.
//!
//! `State::step` is Appendix A of the RFC; everything else moves stanzas, saves contacts and pushes items.

use crate::{
    contacts::{Contact, Subscription, contacts},
    personal, presence,
    push::Book,
    roster,
};
use std::sync::Arc;
use tavi_core::{
    Account, AccountState, Effects, Envelope, Ev, Flow, Parts, Principal, Registry,
    hooks::{OnReceived, OnSent, Phase, Place, Stage, StreamFeature},
};
use tavi_xmpp_proto::{
    BareJid, Condition, Element, Jid, PresenceType, Stanza, StanzaError, StanzaType, ns, stanza::Head,
};

/// A request is kept with its text, but not with more than this (bytes).
const MAX_REQUEST: usize = 4096;
/// Requests that wait for one account's answer.
const MAX_REQUESTS: usize = 500;

/// Registers it.
pub fn register(registry: &mut Registry, _: &Parts) {
    registry.on_sent(Phase::Filter, Arc::new(Subscriptions));
    registry.on_received(Phase::Filter, Arc::new(Subscriptions));
    registry.stream_feature(Arc::new(Subscriptions));
}

impl StreamFeature for Subscriptions {
    /// RFC 6121 §3.4.1: approvals are taken beforehand.
    fn offer(&self, stage: Stage) -> Option<Element> {
        (stage == Stage::AfterLogin).then(|| Element::new(ns::PRE_APPROVAL, "sub"))
    }
}

/// The four stanzas that change subscriptions (RFC 6121 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
}

impl Change {
    fn of(env: &Envelope) -> Option<Change> {
        match env.head().type_ {
            StanzaType::Presence(PresenceType::Subscribe) => Some(Change::Subscribe),
            StanzaType::Presence(PresenceType::Subscribed) => Some(Change::Subscribed),
            StanzaType::Presence(PresenceType::Unsubscribe) => Some(Change::Unsubscribe),
            StanzaType::Presence(PresenceType::Unsubscribed) => Some(Change::Unsubscribed),
            _ => None,
        }
    }
}

/// Which way a change goes, seen from the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

/// One of the states of RFC 6121 Appendix A.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    to: bool,
    from: bool,
    pending_out: bool,
    pending_in: bool,
}

impl State {
    fn of(contact: Option<&Contact>) -> State {
        contact.map_or(State::default(), |c| State {
            to: c.subscription.to,
            from: c.subscription.from,
            pending_out: c.ask,
            pending_in: c.request.is_some(),
        })
    }

    /// RFC 6121 Appendix A.2 and A.3: the next state, and whether the stanza is routed on or delivered.
    fn step(self, way: Way, change: Change) -> (State, bool) {
        let mut next = self;
        let passes = match (way, change) {
            (Way::Out, Change::Subscribe) => {
                next.pending_out = !self.to;
                true
            }
            (Way::Out, Change::Unsubscribe) => {
                (next.to, next.pending_out) = (false, false);
                true
            }
            (Way::Out, Change::Subscribed) => {
                (next.from, next.pending_in) = (self.from || self.pending_in, false);
                self.pending_in
            }
            (Way::Out, Change::Unsubscribed) | (Way::In, Change::Unsubscribe) => {
                (next.from, next.pending_in) = (false, false);
                self.from || self.pending_in
            }
            (Way::In, Change::Subscribe) => {
                next.pending_in = !self.from;
                !self.from && !self.pending_in
            }
            (Way::In, Change::Subscribed) => {
                (next.to, next.pending_out) = (self.to || self.pending_out, false);
                self.pending_out
            }
            (Way::In, Change::Unsubscribed) => {
                (next.to, next.pending_out) = (false, false);
                self.to || self.pending_out
            }
        };
        (next, passes)
    }

    /// Writes it into a contact; a request that is answered goes.
    fn put(self, contact: &mut Contact) {
        contact.subscription = Subscription { to: self.to, from: self.from };
        contact.ask = self.pending_out;
        if !self.pending_in {
            contact.request = None;
        }
        contact.added |= self.to || self.from || self.pending_out;
    }
}

struct Subscriptions;

impl OnSent for Subscriptions {
    fn on_sent(&self, ev: &mut Ev<'_>) -> Flow {
        let Some(change) = Change::of(ev.env) else { return Flow::Continue };
        let Some(contact) = ev.env.to().map(Jid::to_bare) else {
            return Flow::Refuse(
                StanzaError::new(Condition::BadRequest).text("a subscription needs somebody: no 'to'"),
            );
        };
        if contact == ev.account.jid {
            return Flow::Stop;
        }
        if contacts(ev.state).get(&contact).is_none() && contacts(ev.state).len() >= roster::MAX_CONTACTS {
            return Flow::Refuse(StanzaError::new(Condition::ResourceConstraint).text("the roster is full"));
        }
        // RFC 6121 §3.1.2: from bare JID to bare JID.
        ev.env.head_mut().from = Some((&ev.account.jid).into());
        ev.env.head_mut().to = Some((&contact).into());
        sent(ev, change, &contact)
    }
}

/// The contact changes, the stanza goes on, and then whatever follows from it.
fn sent(ev: &mut Ev<'_>, change: Change, contact: &BareJid) -> Flow {
    let before = State::of(contacts(ev.state).get(contact));
    if change == Change::Subscribed && !before.pending_in && !before.from {
        return approve_beforehand(ev, contact);
    }
    let (after, passes) = before.step(Way::Out, change);
    let approved = contacts(ev.state).get(contact).is_some_and(|c| c.approved);
    // RFC 6121 §3.4.3: who is denied is no longer approved beforehand either.
    let withdrawn = change == Change::Unsubscribed && approved;
    if after != before || withdrawn {
        Book::of(ev).change(contact, |entry| {
            after.put(entry);
            entry.approved &= !withdrawn;
        });
    }
    if !passes {
        return Flow::Stop;
    }
    if change == Change::Unsubscribed && before.from {
        // RFC 6121 §3.2.1: who may not see it any more sees it go first.
        presence::hide(ev.state, contact, ev.fx);
    }
    ev.fx.route(ev.env.clone());
    if change == Change::Subscribed {
        // RFC 6121 §3.1.5: whoever was let in sees what there is to see.
        presence::show(ev.state, &contact.into(), ev.fx);
    }
    Flow::Stop
}

/// RFC 6121 §3.4: approval before the request. It goes no further than here.
fn approve_beforehand(ev: &mut Ev<'_>, contact: &BareJid) -> Flow {
    Book::of(ev).change(contact, |entry| (entry.approved, entry.added) = (true, true));
    Flow::Stop
}

impl OnReceived for Subscriptions {
    fn on_received(&self, ev: &mut Ev<'_>) -> Flow {
        let Some(change) = Change::of(ev.env) else { return Flow::Continue };
        let Some(contact) = ev.env.from().map(|from| from.to_bare()) else { return Flow::Stop };
        ev.env.head_mut().to = Some((&ev.account.jid).into());
        let before = State::of(contacts(ev.state).get(&contact));
        if change == Change::Subscribe {
            requested(ev, &contact, before)
        } else {
            answered(ev, change, &contact, before)
        }
        Flow::Stop
    }
}

/// RFC 6121 §3.1.3: a request is answered, or kept until somebody answers it.
fn requested(ev: &mut Ev<'_>, contact: &BareJid, before: State) {
    if before.from {
        return reply(ev, contact, PresenceType::Subscribed);
    }
    let approved = contacts(ev.state).get(contact).is_some_and(|c| c.approved);
    if approved || matches!(ev.account.principal, Principal::Bot(_)) {
        return let_in(ev, contact);
    }
    let (_, passes) = before.step(Way::In, Change::Subscribe);
    if !passes || waiting(ev.state) >= MAX_REQUESTS {
        return;
    }
    let request = kept_form(ev.env);
    Book::of(ev).change(contact, |entry| entry.request = Some(request));
    for session in ev.state.available() {
        ev.fx.deliver(session, ev.env.clone());
    }
}

/// RFC 6121 §3.4.2: somebody who was approved beforehand, or whom a bot meets.
fn let_in(ev: &mut Ev<'_>, contact: &BareJid) {
    Book::of(ev).change(contact, |entry| {
        entry.subscription.from = true;
        (entry.approved, entry.added, entry.request) = (false, true, None);
    });
    reply(ev, contact, PresenceType::Subscribed);
    presence::show(ev.state, &contact.into(), ev.fx);
}

/// RFC 6121 §3.1.6, §3.2.3, §3.3.3: an answer or the end of a subscription.
fn answered(ev: &mut Ev<'_>, change: Change, contact: &BareJid, before: State) {
    let (after, passes) = before.step(Way::In, change);
    if !passes {
        return;
    }
    // The stanza goes out before the push.
    for session in ev.state.sessions.iter().filter(|session| session.interested) {
        ev.fx.deliver(session, ev.env.clone());
    }
    Book::of(ev).change(contact, |entry| after.put(entry));
    if after.to && !before.to {
        // XEP-0163 §4.3.4: a new subscriber gets the last items.
        let mut at = Place { account: ev.account, state: ev.state, fx: ev.fx, hosts: ev.hosts };
        personal::ask_one(contact, &mut at);
    }
    if change == Change::Unsubscribe && before.from {
        presence::hide(ev.state, contact, ev.fx);
    }
}

/// The end of both subscriptions with a contact who is removed (RFC 6121 §2.5.2).
pub(crate) fn end_both(account: &Account, state: &AccountState, contact: &BareJid, fx: &mut Effects) {
    let now = State::of(contacts(state).get(contact));
    let mut tell = |type_| fx.route(Stanza::new(head(account, contact, type_), None));
    if now.to || now.pending_out {
        tell(PresenceType::Unsubscribe);
    }
    if now.from || now.pending_in {
        tell(PresenceType::Unsubscribed);
    }
    if now.from {
        presence::hide(state, contact, fx);
    }
}

fn reply(ev: &mut Ev<'_>, contact: &BareJid, type_: PresenceType) {
    ev.fx.route(Stanza::new(head(ev.account, contact, type_), None));
}

fn head(account: &Account, contact: &BareJid, type_: PresenceType) -> Head {
    Head::presence(type_).from(&account.jid).to(contact)
}

fn waiting(state: &AccountState) -> usize {
    contacts(state).iter().filter(|(_, contact)| contact.request.is_some()).count()
}

/// A request as it is kept: whole if it is small, else without its extensions.
fn kept_form(env: &Envelope) -> bytes::Bytes {
    let whole = env.to_bytes();
    if whole.len() <= MAX_REQUEST {
        return whole;
    }
    let status = env.element(ns::CLIENT, "status").filter(|status| status.text_content().len() <= MAX_REQUEST / 2);
    Stanza::new(env.head().clone(), status).to_bytes()
}

#[cfg(test)]
mod tests;
