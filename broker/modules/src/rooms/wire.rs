//! How rooms write: the extended presence of XEP-0045 §7.2.2, lists of §8 and §9, invitations of §7.8.

use super::room::{Affiliation, Role};
use bytes::Bytes;
use tavi_core::Envelope;
use tavi_xmpp_proto::{BareJid, Element, Jid, Kind, Stanza, StanzaError, ns};

/// What everybody is told of an occupant.
#[derive(Clone, Copy)]
pub(super) struct Note<'a> {
    pub(super) affiliation: Affiliation,
    pub(super) role: Role,
    /// Who it is; told to those only who may see it.
    pub(super) jid: &'a Jid,
    /// The nick that it has from now on (XEP-0045 §7.6).
    pub(super) nick: Option<&'a str>,
    /// The nick of who did it.
    pub(super) actor: Option<&'a str>,
    pub(super) reason: Option<&'a str>,
    /// XEP-0045 §15.6.
    pub(super) codes: &'a [u16],
    /// Codes for the occupant itself.
    pub(super) own_codes: &'a [u16],
}

/// Who reads a note.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// The occupant that it is about.
    Itself,
    /// Somebody who may see who it is.
    Sees,
    /// Somebody who may not.
    SeesNot,
}

impl Note<'_> {
    /// The `<x/>` of a presence, written once for many readers.
    pub(super) fn write(&self, reader: Reader) -> Bytes {
        let jid = (reader != Reader::SeesNot).then(|| self.jid.to_string());
        let own: &[u16] = if reader == Reader::Itself { self.own_codes } else { &[] };
        let item = Element::new(ns::MUC_USER, "item")
            .attr("affiliation", self.affiliation.name())
            .attr("role", self.role.name())
            .attr_opt("jid", jid)
            .attr_opt("nick", self.nick.map(str::to_owned))
            .child_opt(self.actor.map(|nick| Element::new(ns::MUC_USER, "actor").attr("nick", nick.to_owned())))
            .child_opt(self.reason.map(|reason| Element::new(ns::MUC_USER, "reason").text(reason.to_owned())));
        let codes = self.codes.iter().chain(own).map(|code| status(*code));
        fragment(&Element::new(ns::MUC_USER, "x").child(item).children(codes))
    }
}

/// A stanza that a room refuses. Clients know by the `<x/>` that the error is a room's (XEP-0045 §7.2.5 to §7.2.10).
pub(super) fn refusal(env: &Envelope, error: &StanzaError) -> Option<Envelope> {
    let refusal = env.refuse(error)?;
    if env.stanza.kind() != Kind::Presence {
        return Some(refusal);
    }
    let room = env.to().map(|to| to.bare().to_owned());
    let children = [Element::new(ns::MUC, "x"), error.to_element().attr_opt("by", room)];
    Some(Stanza::new(refusal.head().clone(), children).into())
}

/// An element as a child of a stanza.
pub(super) fn fragment(element: &Element) -> Bytes {
    let mut out = Vec::new();
    element.write_to(&mut out, ns::CLIENT);
    out.into()
}

pub(super) fn status(code: u16) -> Element {
    Element::new(ns::MUC_USER, "status").attr("code", code.to_string())
}

/// XEP-0045 §10.2.1: settings have changed.
pub(super) fn statuses(codes: &[u16]) -> Element {
    Element::new(ns::MUC_USER, "x").children(codes.iter().map(|code| status(*code)))
}

/// XEP-0045 §7.8.2: an invitation as the room hands it on.
pub(super) fn invitation(from: &Jid, reason: Option<String>, password: &str) -> Element {
    let password = (!password.is_empty()).then(|| Element::new(ns::MUC_USER, "password").text(password.to_owned()));
    Element::new(ns::MUC_USER, "x").child(letter("invite", from, reason)).child_opt(password)
}

/// XEP-0045 §7.8.2: the answer to one.
pub(super) fn declined(from: &BareJid, reason: Option<String>) -> Element {
    Element::new(ns::MUC_USER, "x").child(letter("decline", &from.into(), reason))
}

fn letter(name: &'static str, from: &Jid, reason: Option<String>) -> Element {
    let reason = reason.map(|reason| Element::new(ns::MUC_USER, "reason").text(reason));
    Element::new(ns::MUC_USER, name).attr("from", from.to_string()).child_opt(reason)
}

/// XEP-0045 §10.9: the room is no more, and where to go instead.
pub(super) fn destroyed(order: &Element) -> Bytes {
    let text = |name: &'static str| {
        let found = order.get_child(ns::MUC_OWNER, name).map(Element::text_content);
        found.map(|text| Element::new(ns::MUC_USER, name).text(text))
    };
    let alternate = order.get_attr("jid").filter(|jid| jid.parse::<Jid>().is_ok()).map(str::to_owned);
    let destroy = Element::new(ns::MUC_USER, "destroy").attr_opt("jid", alternate);
    let destroy = destroy.child_opt(text("password")).child_opt(text("reason"));
    let item = Element::new(ns::MUC_USER, "item").attr("affiliation", "none").attr("role", "none");
    fragment(&Element::new(ns::MUC_USER, "x").child(item).child(destroy))
}

/// XEP-0359 §3: the place of a message in this room.
pub(super) fn stanza_id(room: &str, id: u64) -> Bytes {
    fragment(&Element::new(ns::STANZA_ID, "stanza-id").attr("id", id.to_string()).attr("by", room.to_owned()))
}
