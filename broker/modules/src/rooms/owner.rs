//! What an owner does with a room (XEP-0045 §10.1, §10.2, §10.9), and what it tells of itself (§6.4, §6.5).

use super::{
    config::Config,
    kept,
    room::{Affiliation, Room, Turn},
    wire,
};
use crate::{
    disco::{identity, info},
    form,
};
use tavi_core::Envelope;
use tavi_store::Op;
use tavi_xmpp_proto::{Condition, Element, Jid, MessageType, PresenceType, Stanza, StanzaError, ns, stanza::Head};

/// What every room can do.
const FEATURES: [&str; 7] = [
    ns::MUC,
    "http://jabber.org/protocol/muc#stable_id",
    "http://jabber.org/protocol/muc#self-ping-optimization",
    ns::DISCO_INFO,
    ns::DISCO_ITEMS,
    ns::STANZA_ID,
    ns::PING,
];
/// XEP-0045 §7.11, §18.1.1.
const RESERVED_NICK: &str = "x-roomuser-item";
const TRAFFIC: &str = "http://jabber.org/protocol/muc#traffic";

impl Room {
    /// XEP-0045 §6.4.
    pub(super) fn info(&self, node: Option<&str>) -> Result<Element, StanzaError> {
        match node {
            None => {}
            // XEP-0045 §7.11: nobody has one.
            Some(RESERVED_NICK) => {
                return Ok(Element::new(ns::DISCO_INFO, "query").attr("node", RESERVED_NICK));
            }
            // XEP-0045 §18.1.1: nothing is held back.
            Some(TRAFFIC) => return Err(Condition::ServiceUnavailable.into()),
            Some(_) => return Err(Condition::ItemNotFound.into()),
        }
        let name = if self.config.name.is_empty() { self.jid.local().unwrap_or_default() } else { &self.config.name };
        let features = FEATURES.into_iter().chain(self.config.features());
        Ok(info([identity("conference", "text", name)], features).child(self.facts()))
    }

    /// XEP-0045 §15.5.4. What is said inside a room that is not open to all stays there.
    fn facts(&self) -> Element {
        let closed = self.config.members_only || !self.config.password.is_empty();
        let subject = if closed { String::new() } else { self.subject.text.clone() };
        let fields = [
            ("muc#roominfo_description", self.config.description.clone()),
            ("muc#roominfo_subject", subject),
            ("muc#roominfo_occupants", self.occupants.len().to_string()),
            ("muc#maxhistoryfetch", self.limits.history_items.to_string()),
        ];
        let fields = fields.map(|(var, value)| form::field(var, None, [value]));
        form::form("result", "http://jabber.org/protocol/muc#roominfo", fields)
    }

    /// XEP-0045 §6.5: who is here is told to those who are.
    pub(super) fn items(&self, from: &Jid, node: Option<&str>) -> Result<Element, StanzaError> {
        if node.is_some() {
            return Err(Condition::ItemNotFound.into());
        }
        let inside = self.seat(from).is_some();
        let there = self.occupants.iter().filter(|_| inside);
        let item = |jid: &Jid| Element::new(ns::DISCO_ITEMS, "item").attr("jid", jid.to_string());
        Ok(Element::new(ns::DISCO_ITEMS, "query").children(there.map(|occupant| item(&occupant.jid))))
    }

    /// XEP-0045 §10.1.3, §10.2: the form.
    pub(super) fn settings(&self, from: &Jid) -> Result<Element, StanzaError> {
        self.expect_owner(from)?;
        Ok(Element::new(ns::MUC_OWNER, "query").child(self.config.form("form")))
    }

    fn expect_owner(&self, from: &Jid) -> Result<(), StanzaError> {
        if self.affiliation(&from.to_bare()) == Affiliation::Owner {
            return Ok(());
        }
        Err(StanzaError::new(Condition::Forbidden).text("only an owner of the room may do this"))
    }

    /// A form that was sent in or given up, or the order to destroy the room.
    pub(super) fn own(&mut self, from: &Jid, query: &Element, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        self.expect_owner(from)?;
        if let Some(order) = query.get_child(ns::MUC_OWNER, "destroy") {
            self.destroy(order, turn);
        } else if let Some(form) = form::of(query) {
            match form.get_attr("type") {
                Some("submit") => self.configure(self.config.with(form)?, turn),
                // XEP-0045 §10.1.3: a new room that nobody wants to configure is none.
                Some("cancel") if self.locked => self.destroy(query, turn),
                Some("cancel") => {}
                _ => return Err(Condition::BadRequest.into()),
            }
        } else {
            return Err(Condition::BadRequest.into());
        }
        turn.reply(None);
        Ok(())
    }

    /// XEP-0045 §10.2. A form without fields takes the room as it is (§10.1.2).
    fn configure(&mut self, config: Config, turn: &mut Turn<'_>) {
        let before = std::mem::replace(&mut self.config, config);
        let was_locked = std::mem::take(&mut self.locked);
        match (before.persistent, self.config.persistent) {
            (false, true) => turn.ops.extend(self.rows()),
            (true, false) => turn.ops.push(Op::Purge),
            (true, true) if before != self.config => turn.ops.push(kept::config(self)),
            _ => {}
        }
        if self.config.members_only && !before.members_only {
            self.expel_strangers(&mut turn.out);
        }
        if !was_locked && before != self.config {
            self.announce(&before, turn);
        }
    }

    /// XEP-0045 §10.2.1.
    fn announce(&self, before: &Config, turn: &mut Turn<'_>) {
        let codes: &[u16] = match (before.open_jids, self.config.open_jids) {
            (false, true) => &[172],
            (true, false) => &[173],
            _ => &[104],
        };
        let head = Head::message(MessageType::Groupchat).from(self.address.clone());
        let message: Envelope = Stanza::new(head, [wire::statuses(codes)]).into();
        turn.out.extend(self.everybody().map(|session| message.readdressed(session.clone())));
    }

    /// XEP-0045 §10.9: everybody hears of it once.
    fn destroy(&mut self, order: &Element, turn: &mut Turn<'_>) {
        let told = wire::destroyed(order);
        for occupant in std::mem::take(&mut self.occupants) {
            let head = Head::presence(PresenceType::Unavailable).from(occupant.jid);
            let mut gone: Envelope = Stanza::new(head, None).into();
            gone.add_fragment(told.clone());
            turn.out.extend(occupant.sessions.iter().map(|session| gone.readdressed(session.jid.clone())));
        }
        if self.config.persistent {
            turn.ops.push(Op::Purge);
        }
        self.destroyed = true;
    }
}
