//! A stanza on its way through the router.
//!
//! Three traps. Raw forwarding is right only because ingress made every child declare its own prefixes. The default
//! namespace is the stream's, `jabber:client`. A slice of the read buffer pins the whole buffer, so ingress copies
//! each stanza into bytes of its own.

use crate::{backlog::Owed, clock::xmpp_time, mailbox::Weigh};
use bytes::Bytes;
use smallvec::SmallVec;
use std::sync::Arc;
use tavi_xmpp_proto::{
    element::Element,
    error::StanzaError,
    jid::Jid,
    ns,
    stanza::{Child, Head, IqType, MessageType, PresenceType, Stanza, StanzaType},
};

/// Where a stanza entered the router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// A client session without stream management: a message to somebody online is stored nowhere.
    Plain,
    /// A client session with stream management (XEP-0198): a message counts as handled only when it is durable.
    Managed,
    /// The broker itself: a module, a service, a bot's seat.
    #[default]
    Broker,
}

/// What becomes of a stanza if its session ends without acknowledging it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// If nobody else has it, it goes to another session or is kept.
    #[default]
    Owed,
    /// A mere copy or notice (carbons, pubsub events): it ends with its session.
    Copy,
}

/// What the broker knows of a stanza besides its text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Where it entered.
    pub origin: Origin,
    /// When it entered, milliseconds since 1970.
    pub time_ms: u64,
    /// Its place among the recipient's messages, drawn before the recipient's hooks see it: whenever it is kept, its row
    /// has this id. 0 before.
    pub place: u64,
    /// Sessions were chosen for it before.
    pub(crate) chosen: bool,
    /// It is in the recipient's archive, under its place.
    pub(crate) archived: bool,
    /// Those who look on have heard that it is kept.
    pub(crate) told: bool,
    /// Its row in the recipient's queue, if it has one.
    pub queued: Option<u64>,
    /// Whether it is owed beyond its session.
    pub reach: Reach,
    /// The session that sent it; 0 if none did.
    pub sender: u64,
    /// Its number on the sender's stream (XEP-0198 §4), if that is to outlive the process; else 0.
    pub number: u32,
    /// Made in the turn of the very session that it is for, which waits for room.
    pub(crate) own: bool,
    /// It carries a delay that was added here.
    delayed: bool,
    dropped: SmallVec<[u16; 2]>,
    added: SmallVec<[Bytes; 1]>,
    /// All of it as it was written into its row, while nothing of it has changed since.
    sealed: Option<Bytes>,
}

/// A stanza with what the broker knows of it. The children's bytes are never edited: hooks mark children as dropped
/// or add fragments.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// Head, raw children and their index. Shared, since envelopes are moved and cloned often.
    pub stanza: Arc<Stanza>,
    /// What the broker knows.
    pub meta: Meta,
}

impl From<Stanza> for Envelope {
    fn from(stanza: Stanza) -> Envelope {
        Arc::new(stanza).into()
    }
}

impl From<Arc<Stanza>> for Envelope {
    fn from(stanza: Arc<Stanza>) -> Envelope {
        Envelope { stanza, meta: Meta::default() }
    }
}

impl Envelope {
    /// A stanza from a client session.
    pub fn received(stanza: impl Into<Arc<Stanza>>, origin: Origin, time_ms: u64) -> Envelope {
        Envelope { stanza: stanza.into(), meta: Meta { origin, time_ms, ..Meta::default() } }
    }

    /// Its start tag.
    pub fn head(&self) -> &Head {
        &self.stanza.head
    }

    /// Its start tag, to be changed.
    pub fn head_mut(&mut self) -> &mut Head {
        self.meta.sealed = None;
        &mut Arc::make_mut(&mut self.stanza).head
    }

    /// Its sender; every stanza in the router has one.
    pub fn from(&self) -> Option<&Jid> {
        self.stanza.head.from.as_ref()
    }

    /// Its recipient.
    pub fn to(&self) -> Option<&Jid> {
        self.stanza.head.to.as_ref()
    }

    /// A copy for another recipient, with the same children.
    pub fn readdressed(&self, to: impl Into<Jid>) -> Envelope {
        let mut copy = self.clone();
        copy.head_mut().to = Some(to.into());
        copy
    }

    /// The first child with this namespace and name that no hook has dropped.
    pub fn child(&self, ns: &str, name: &str) -> Option<&Child> {
        self.kept().find(|child| child.is(ns, name))
    }

    /// Whether there is such a child.
    pub fn has(&self, ns: &str, name: &str) -> bool {
        self.child(ns, name).is_some()
    }

    /// Whether it says nothing itself: it tells how far an earlier message came, or that somebody writes (XEP-0184, XEP-0333,
    /// XEP-0085). An error for one would look like an error for what it tells of.
    pub fn is_notice(&self) -> bool {
        const NOTICES: [&str; 3] = [ns::RECEIPTS, ns::MARKERS, ns::CHAT_STATES];
        let tells = self.kept().any(|child| NOTICES.contains(&child.ns.as_str()));
        tells && !self.has(ns::CLIENT, "body")
    }

    /// The first such child, parsed.
    pub fn element(&self, ns: &str, name: &str) -> Option<Element> {
        let child = self.child(ns, name)?;
        Element::parse(self.stanza.child_bytes(child), ns::CLIENT).ok()
    }

    /// Marks all children that `which` picks as dropped.
    pub fn drop_children(&mut self, which: impl Fn(&Child) -> bool) {
        self.meta.sealed = None;
        for (at, child) in self.stanza.children().iter().enumerate() {
            let at = at as u16;
            if which(child) && !self.meta.dropped.contains(&at) {
                self.meta.dropped.push(at);
            }
        }
    }

    /// Marks as dropped those children that `which` picks and whose content `condemned` does not like.
    pub fn drop_elements(&mut self, which: impl Fn(&Child) -> bool, condemned: impl Fn(&Element) -> bool) {
        let is_bad = |child: &Child| {
            which(child) && Element::parse(self.stanza.child_bytes(child), ns::CLIENT).is_ok_and(|e| condemned(&e))
        };
        let bad: Vec<u16> =
            (0u16..).zip(self.stanza.children()).filter(|(_, child)| is_bad(child)).map(|(at, _)| at).collect();
        self.meta.sealed = None;
        self.meta.dropped.extend(bad);
    }

    /// Adds a child behind the others.
    pub fn add(&mut self, element: &Element) {
        let mut fragment = Vec::new();
        element.write_to(&mut fragment, ns::CLIENT);
        self.add_fragment(fragment.into());
    }

    /// Adds a child that is written already and declares all its namespaces: shared bytes, one encoding for many
    /// receivers.
    pub fn add_fragment(&mut self, fragment: Bytes) {
        self.meta.sealed = None;
        self.meta.added.push(fragment);
    }

    /// The same as a mere copy, which ends with the session that gets it.
    #[must_use]
    pub fn as_copy(mut self) -> Envelope {
        self.meta.reach = Reach::Copy;
        self
    }

    /// Whether it is handed on or kept when it cannot be delivered.
    pub fn is_lasting(&self) -> bool {
        let lasts = matches!(self.head().type_, StanzaType::Message(MessageType::Chat | MessageType::Normal));
        lasts && self.meta.reach == Reach::Owed
    }

    /// Whether it is worth nothing later, so that a receiver who does not read goes without it: a headline, an event, a copy.
    pub(crate) fn is_fleeting(&self) -> bool {
        self.meta.reach == Reach::Copy || self.head().type_ == StanzaType::Message(MessageType::Headline)
    }

    /// Its sender, if it says no more than that he is available, or is not.
    pub(crate) fn own_presence(&self) -> Option<&Jid> {
        let own =
            matches!(self.head().type_, StanzaType::Presence(PresenceType::Available | PresenceType::Unavailable));
        self.from().filter(|_| own)
    }

    /// Adds the time at which it was sent (XEP-0203), said by `host`.
    pub fn add_delay(&mut self, host: &str, time_ms: u64) {
        self.meta.delayed = true;
        let stamp = xmpp_time(time_ms);
        self.add(&Element::new(ns::DELAY, "delay").attr("from", host.to_owned()).attr("stamp", stamp));
    }

    /// Whether a delay was added here.
    pub(crate) fn was_delayed(&self) -> bool {
        self.meta.delayed
    }

    /// The answer of type error, from the recipient to the sender; `None` if this is itself an error or a result.
    pub fn refuse(&self, error: &StanzaError) -> Option<Envelope> {
        let is_answer = matches!(self.head().type_, StanzaType::Iq(IqType::Result));
        (!is_answer && !self.head().type_.is_error()).then(|| Stanza::error(self.head(), error).into())
    }

    /// Appends it as it goes onto a client stream: start tag, children but the dropped ones, added fragments, end tag.
    pub fn write(&self, out: &mut Vec<u8>) {
        if let Some(sealed) = &self.meta.sealed {
            return out.extend_from_slice(sealed);
        }
        if self.meta.dropped.is_empty() && self.meta.added.is_empty() {
            return self.stanza.write(out);
        }
        self.head().write_start(out);
        out.push(b'>');
        if self.meta.dropped.is_empty() {
            out.extend_from_slice(self.stanza.raw());
        } else {
            self.kept().for_each(|child| out.extend_from_slice(self.stanza.child_bytes(child)));
        }
        self.meta.added.iter().for_each(|fragment| out.extend_from_slice(fragment));
        self.head().write_end(out);
    }

    /// Its bytes as they are stored; its receivers get the same ones.
    pub(crate) fn seal(&mut self) -> Bytes {
        let bytes = self.to_bytes();
        // Its children lie in them from now on, so that they are in memory once. What hooks have changed is written anew.
        if self.meta.dropped.is_empty() && self.meta.added.is_empty() {
            Arc::make_mut(&mut self.stanza).lie_in(&bytes);
            self.meta.sealed = Some(bytes.clone());
        }
        bytes
    }

    /// Its bytes as they are stored.
    pub fn to_bytes(&self) -> Bytes {
        if let Some(sealed) = &self.meta.sealed {
            return sealed.clone();
        }
        let mut out = Vec::with_capacity(self.content() + 96);
        self.write(&mut out);
        out.into()
    }

    /// About how much there is to write, but for names and quotes.
    fn content(&self) -> usize {
        let head = self.head();
        let jid = |jid: &Option<Jid>| jid.as_ref().map_or(0, |jid| jid.as_str().len());
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let tag = jid(&head.from) + jid(&head.to) + text(&head.id) + text(&head.lang);
        self.stanza.raw().len() + self.meta.added.iter().map(Bytes::len).sum::<usize>() + tag
    }

    fn kept(&self) -> impl Iterator<Item = &Child> {
        let children = self.stanza.children().iter().enumerate();
        children.filter(|(at, _)| !self.meta.dropped.contains(&(*at as u16))).map(|(_, child)| child)
    }
}

impl Weigh for Envelope {
    /// All that it holds: a start tag can be as large as its content.
    fn weight(&self) -> usize {
        self.content() + 256
    }
}

impl Owed for Envelope {
    fn is_stored(&self) -> bool {
        self.meta.queued.is_some()
    }

    fn is_free(&self) -> bool {
        self.meta.own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(xml: &str) -> Envelope {
        Stanza::parse(xml.as_bytes()).unwrap().into()
    }

    fn written(envelope: &Envelope) -> String {
        String::from_utf8(envelope.to_bytes().to_vec()).unwrap()
    }

    #[test]
    fn dropped_children_vanish_and_added_ones_follow() {
        let mut envelope = envelope("<message to='a@b'><body>hi</body><x xmlns='urn:x'/><y xmlns='urn:y'/></message>");
        envelope.drop_children(|child| child.is("urn:x", "x"));
        assert!(!envelope.has("urn:x", "x") && envelope.has("urn:y", "y"));
        envelope.add_delay("localhost", 0);
        let text = written(&envelope);
        assert!(text.contains("<body>hi</body><y xmlns='urn:y'/><delay"), "{text}");
        assert!(text.contains("1970-01-01T00:00:00.000Z") && !text.contains("urn:x'"), "{text}");
        Stanza::parse(text.as_bytes()).unwrap();
    }

    #[test]
    fn what_changes_behind_a_seal_is_written() {
        let mut sealed = envelope("<message to='a@b'><body>hi</body><x xmlns='urn:x'/></message>");
        let row = sealed.seal();
        assert_eq!(sealed.to_bytes(), row);
        assert_eq!(row, written(&envelope("<message to='a@b'><body>hi</body><x xmlns='urn:x'/></message>")));
        assert!(written(&sealed.readdressed(Jid::parse("c@d").unwrap())).contains("to='c@d'"));
        let changes: [fn(&mut Envelope); 4] = [
            |envelope| envelope.drop_children(|child| child.is("urn:x", "x")),
            |envelope| envelope.drop_elements(|child| child.is("urn:x", "x"), |_| true),
            |envelope| envelope.add_delay("localhost", 0),
            |envelope| envelope.head_mut().id = Some("7".into()),
        ];
        for change in changes {
            let mut copy = sealed.clone();
            change(&mut copy);
            assert_ne!(copy.to_bytes(), row);
        }
        assert_eq!(sealed.to_bytes(), row, "a copy's change is its own");
    }

    #[test]
    fn errors_and_results_are_not_answered_with_errors() {
        let error = StanzaError::new(tavi_xmpp_proto::error::Condition::ServiceUnavailable);
        assert!(envelope("<message from='a@b' to='c@d'/>").refuse(&error).is_some());
        assert!(envelope("<message type='error' from='a@b' to='c@d'/>").refuse(&error).is_none());
        assert!(envelope("<iq type='result' id='1' from='a@b' to='c@d'/>").refuse(&error).is_none());
    }
}
