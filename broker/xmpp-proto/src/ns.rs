//! Namespaces that the broker meets often, as constants and as a table of interned strings.

/// Declares the namespace constants and the table in which [`intern`] finds them.
macro_rules! namespaces {
    ($($(#[$doc:meta])* $name:ident = $uri:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $uri;)*
        /// Every namespace above, in the order of the source.
        pub const KNOWN: &[&str] = &[$($uri),*];
    };
}

namespaces! {
    /// Client streams, RFC 6120 §4.8.2. The default namespace inside a stream.
    CLIENT = "jabber:client";
    /// Server streams, RFC 6120 §4.8.2.
    SERVER = "jabber:server";
    /// Streams of components, XEP-0114 §3.
    COMPONENT = "jabber:component:accept";
    /// Streams over WebSockets, RFC 7395 §3.3.2.
    FRAMING = "urn:ietf:params:xml:ns:xmpp-framing";
    /// The stream element, RFC 6120 §4.8.1.
    STREAM = "http://etherx.jabber.org/streams";
    /// Stream error conditions, RFC 6120 §4.9.2.
    STREAM_ERRORS = "urn:ietf:params:xml:ns:xmpp-streams";
    /// Stanza error conditions, RFC 6120 §8.3.2.
    STANZA_ERRORS = "urn:ietf:params:xml:ns:xmpp-stanzas";
    /// STARTTLS, RFC 6120 §5.
    TLS = "urn:ietf:params:xml:ns:xmpp-tls";
    /// SASL, RFC 6120 §6.
    SASL = "urn:ietf:params:xml:ns:xmpp-sasl";
    /// Extensible SASL, XEP-0388 §2.
    SASL2 = "urn:xmpp:sasl:2";
    /// Resource binding inside it, XEP-0386 §3.
    BIND2 = "urn:xmpp:bind:0";
    /// Channel-binding types announced by the server, XEP-0440 §3.
    SASL_CB = "urn:xmpp:sasl-cb:0";
    /// Resource binding, RFC 6120 §7.
    BIND = "urn:ietf:params:xml:ns:xmpp-bind";
    /// The session that RFC 3921 §3 asked for; a no-op today.
    SESSION = "urn:ietf:params:xml:ns:xmpp-session";
    /// Stream management, XEP-0198 §2.
    SM = "urn:xmpp:sm:3";
    /// The `xml` prefix, always bound (Namespaces in XML 1.0 §3).
    XML = "http://www.w3.org/XML/1998/namespace";
    /// The `xmlns` prefix itself (Namespaces in XML 1.0 §3).
    XMLNS = "http://www.w3.org/2000/xmlns/";
    /// Roster, RFC 6121 §2.
    ROSTER = "jabber:iq:roster";
    /// Roster versioning feature, RFC 6121 §2.6.
    ROSTER_VERSIONING = "urn:xmpp:features:rosterver";
    /// Subscription pre-approval feature, RFC 6121 §3.4.
    PRE_APPROVAL = "urn:xmpp:features:pre-approval";
    /// Service discovery, information, XEP-0030 §3.
    DISCO_INFO = "http://jabber.org/protocol/disco#info";
    /// Service discovery, items, XEP-0030 §4.
    DISCO_ITEMS = "http://jabber.org/protocol/disco#items";
    /// Entity capabilities, XEP-0115 §4.
    CAPS = "http://jabber.org/protocol/caps";
    /// Ping, XEP-0199 §4.
    PING = "urn:xmpp:ping";
    /// Software version, XEP-0092 §2.
    VERSION = "jabber:iq:version";
    /// Entity time, XEP-0202 §3.
    TIME = "urn:xmpp:time";
    /// Last activity, XEP-0012 §3.
    LAST = "jabber:iq:last";
    /// Delayed delivery, XEP-0203 §4.
    DELAY = "urn:xmpp:delay";
    /// Stanza forwarding, XEP-0297 §3.
    FORWARD = "urn:xmpp:forward:0";
    /// Message carbons, XEP-0280 §5.
    CARBONS = "urn:xmpp:carbons:2";
    /// What is said of a stanza to somebody whom its sender has blocked, XEP-0191 §3.3.
    BLOCKING_ERRORS = "urn:xmpp:blocking:errors";
    /// Chat states, XEP-0085 §4.
    CHAT_STATES = "http://jabber.org/protocol/chatstates";
    /// Delivery receipts, XEP-0184 §5.
    RECEIPTS = "urn:xmpp:receipts";
    /// Chat markers, XEP-0333 §4.
    MARKERS = "urn:xmpp:chat-markers:0";
    /// Processing hints, XEP-0334 §4.
    HINTS = "urn:xmpp:hints";
    /// Stanza ids, XEP-0359 §3.
    STANZA_ID = "urn:xmpp:sid:0";
    /// Last message correction, XEP-0308 §3.
    CORRECT = "urn:xmpp:message-correct:0";
    /// Message archive, XEP-0313 §4.
    MAM = "urn:xmpp:mam:2";
    /// Result set management, XEP-0059 §2.
    RSM = "http://jabber.org/protocol/rsm";
    /// Publish-subscribe, XEP-0060 §6.
    PUBSUB = "http://jabber.org/protocol/pubsub";
    /// Publish-subscribe events, XEP-0060 §7.1.2.
    PUBSUB_EVENT = "http://jabber.org/protocol/pubsub#event";
    /// Publish-subscribe, owner's side, XEP-0060 §8.
    PUBSUB_OWNER = "http://jabber.org/protocol/pubsub#owner";
    /// Publish-subscribe error conditions, XEP-0060 §16.
    PUBSUB_ERRORS = "http://jabber.org/protocol/pubsub#errors";
    /// Data forms, XEP-0004 §3.
    DATA_FORMS = "jabber:x:data";
    /// Ad-hoc commands, XEP-0050 §2.
    COMMANDS = "http://jabber.org/protocol/commands";
    /// Quick responses, XEP-0439 §3.
    QUICK_RESPONSE = "urn:xmpp:tmp:quick-response";
    /// JSON containers, XEP-0335 §3.
    JSON = "urn:xmpp:json:0";
    /// Multi-user chat, XEP-0045 §7.2.
    MUC = "http://jabber.org/protocol/muc";
    /// Multi-user chat, what an occupant is told, XEP-0045 §7.2.
    MUC_USER = "http://jabber.org/protocol/muc#user";
    /// Multi-user chat, administration, XEP-0045 §9.
    MUC_ADMIN = "http://jabber.org/protocol/muc#admin";
    /// Multi-user chat, the owner's side, XEP-0045 §10.
    MUC_OWNER = "http://jabber.org/protocol/muc#owner";
    /// Blocking, XEP-0191 §3.
    BLOCKING = "urn:xmpp:blocking";
    /// Client state indication, XEP-0352 §4.
    CSI = "urn:xmpp:csi:0";
    /// Avatar hash in presence, XEP-0153 §4.
    VCARD_UPDATE = "vcard-temp:x:update";
    /// vCards, XEP-0054 §3.
    VCARD = "vcard-temp";
    /// Private XML storage, XEP-0049 §2.
    PRIVATE = "jabber:iq:private";
    /// In-band registration, XEP-0077 §3.
    REGISTER = "jabber:iq:register";
    /// Idle time in presence, XEP-0319 §2.
    IDLE = "urn:xmpp:idle:1";
    /// Out-of-band data, XEP-0066 §3.
    OOB = "jabber:x:oob";
    /// File upload, XEP-0363 §4.
    UPLOAD = "urn:xmpp:http:upload:0";
    /// Reactions, XEP-0444 §4.
    REACTIONS = "urn:xmpp:reactions:0";
    /// Replies, XEP-0461 §3.
    REPLY = "urn:xmpp:reply:0";
    /// Fallback indication, XEP-0428 §2.
    FALLBACK = "urn:xmpp:fallback:0";
    /// Explicit encryption, XEP-0380 §3.
    EME = "urn:xmpp:eme:0";
    /// OMEMO as most clients speak it, XEP-0384 version 0.3 §4.
    OMEMO = "eu.siacs.conversations.axolotl";
    /// Our own wrapper of values that are not XML.
    TAVI_DATA = "urn:tavi:data:0";
}

/// Names of elements that are frequent as direct children of a stanza.
const NAMES: &[&str] = &[
    "body",
    "subject",
    "thread",
    "active",
    "composing",
    "paused",
    "inactive",
    "gone",
    "request",
    "received",
    "displayed",
    "markable",
    "origin-id",
    "stanza-id",
    "delay",
    "query",
    "ping",
    "error",
    "private",
    "sent",
    "enable",
    "disable",
    "c",
    "x",
    "show",
    "status",
    "priority",
    "pubsub",
    "event",
    "bind",
    "session",
    "replace",
    "encrypted",
    "encryption",
    "store",
    "no-store",
    "no-copy",
    "no-permanent-store",
    "result",
    "forwarded",
    "data",
    "command",
    "json",
    "response",
    "action",
    "time",
    "fin",
    "idle",
    "vCard",
    "blocklist",
    "block",
    "unblock",
    "reactions",
    "reply",
    "fallback",
    "starttls",
    "auth",
    "r",
    "a",
];

/// A short string that is usually one of a known set: then it costs no allocation.
#[derive(Clone)]
pub struct Atom(Repr);

#[derive(Clone)]
enum Repr {
    Static(u16, Table),
    Owned(Box<str>),
}

#[derive(Clone, Copy)]
enum Table {
    Namespaces,
    Names,
}

impl Atom {
    /// The namespace `uri`, interned if it is one of [`KNOWN`].
    pub fn namespace(uri: &str) -> Atom {
        Atom::of(uri, Table::Namespaces)
    }

    /// The element name `name`, interned if it is frequent.
    pub fn name(name: &str) -> Atom {
        Atom::of(name, Table::Names)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Static(at, table) => table.sorted().0[*at as usize],
            Repr::Owned(text) => text,
        }
    }

    fn of(text: &str, table: Table) -> Atom {
        match table.find(text) {
            Some(at) => Atom(Repr::Static(at, table)),
            None => Atom(Repr::Owned(text.into())),
        }
    }
}

/// A namespace; one of [`KNOWN`] costs no allocation.
pub(crate) fn known(uri: &str) -> std::borrow::Cow<'static, str> {
    match Table::Namespaces.find(uri) {
        Some(at) => Table::Namespaces.sorted().0[at as usize].into(),
        None => uri.to_owned().into(),
    }
}

impl Table {
    /// The strings by length, then by bytes; and where each length starts (so that a look-up compares few).
    fn sorted(self) -> &'static (Vec<&'static str>, Vec<u16>) {
        static NS: std::sync::LazyLock<(Vec<&'static str>, Vec<u16>)> = std::sync::LazyLock::new(|| sort(KNOWN));
        static NAME: std::sync::LazyLock<(Vec<&'static str>, Vec<u16>)> = std::sync::LazyLock::new(|| sort(NAMES));
        match self {
            Table::Namespaces => &NS,
            Table::Names => &NAME,
        }
    }

    fn find(self, text: &str) -> Option<u16> {
        let (sorted, starts) = self.sorted();
        let from = *starts.get(text.len())?;
        let to = *starts.get(text.len() + 1)?;
        (from..to).find(|&at| sorted[at as usize] == text)
    }
}

fn sort(list: &[&'static str]) -> (Vec<&'static str>, Vec<u16>) {
    let mut sorted = list.to_vec();
    sorted.sort_unstable_by_key(|text| (text.len(), *text));
    let longest = sorted.last().map_or(0, |text| text.len());
    let starts = (0..=longest + 1).map(|len| sorted.partition_point(|text| text.len() < len) as u16).collect();
    (sorted, starts)
}

impl PartialEq for Atom {
    fn eq(&self, other: &Atom) -> bool {
        self.as_str() == other.as_str()
    }
}
impl Eq for Atom {}
impl PartialEq<str> for Atom {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}
impl PartialEq<&str> for Atom {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}
impl std::ops::Deref for Atom {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}
impl std::fmt::Debug for Atom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_string_is_found_without_an_allocation() {
        assert!(KNOWN.iter().all(|uri| matches!(Atom::namespace(uri).0, Repr::Static(..))));
        assert!(NAMES.iter().all(|name| matches!(Atom::name(name).0, Repr::Static(..)) && Atom::name(name) == *name));
        assert!(KNOWN.iter().all(|uri| Atom::namespace(uri) == *uri));
    }

    #[test]
    fn an_unknown_string_keeps_its_text() {
        assert_eq!(Atom::namespace("urn:example:1"), "urn:example:1");
        assert_eq!(Atom::name(""), "");
        assert_eq!(std::mem::size_of::<Atom>(), 16);
    }
}
