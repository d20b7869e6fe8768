//! Stanzas: the head normalised once, the children as the bytes that were received (RFC 6120 §8).
//!
//! Three rules keep forwarding of raw bytes right:
//! 1. every child is complete in itself: a prefix that was declared outside it is declared inside by ingress;
//! 2. the default namespace around the children is `jabber:client`, on every stream that they are written to;
//! 3. a slice of a read buffer would pin the whole buffer, so ingress copies the children into their own `Bytes`.

use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::element::{Element, write_attr};
use crate::error::{Condition, StanzaError, StreamError};
use crate::jid::Jid;
use crate::ns::{self, Atom};

/// The three stanzas, RFC 6120 §8.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `<message/>`
    Message,
    /// `<presence/>`
    Presence,
    /// `<iq/>`
    Iq,
}

/// Declares an enum of `type` attribute values.
macro_rules! types {
    ($(#[$doc:meta])* $type:ident { $($(#[$vdoc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[$vdoc])* $variant,)* }

        impl $type {
            /// The value of the `type` attribute; empty means that it is left out.
            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name,)* }
            }

            /// The type with this attribute value (empty for a missing attribute).
            pub fn from_name(name: &str) -> Option<$type> {
                match name { $($name => Some($type::$variant),)* _ => None }
            }
        }
    };
}

types! {
    /// RFC 6121 §5.2.2.
    MessageType {
        /// One message outside a conversation; the default.
        Normal = "",
        /// One of a conversation of two.
        Chat = "chat",
        /// One in a room.
        Groupchat = "groupchat",
        /// A notice that expects no reply and is not kept.
        Headline = "headline",
        /// An answer to a message that failed.
        Error = "error",
    }
}

types! {
    /// RFC 6121 §4.7.1.
    PresenceType {
        /// The sender is there.
        Available = "",
        /// The sender went away.
        Unavailable = "unavailable",
        /// The sender asks to see the recipient's presence.
        Subscribe = "subscribe",
        /// The sender lets the recipient see its presence.
        Subscribed = "subscribed",
        /// The sender no longer wants to see the recipient's presence.
        Unsubscribe = "unsubscribe",
        /// The recipient may not, or no longer, see the sender's presence.
        Unsubscribed = "unsubscribed",
        /// A server asks for the current presence.
        Probe = "probe",
        /// An answer to a presence that failed.
        Error = "error",
    }
}

types! {
    /// RFC 6120 §8.2.3.
    IqType {
        /// A question.
        Get = "get",
        /// An order.
        Set = "set",
        /// The answer to a get or set.
        Result = "result",
        /// The answer to one that failed.
        Error = "error",
    }
}

/// Kind and type of a stanza; only legal pairs can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StanzaType {
    /// A message of a type.
    Message(MessageType),
    /// A presence of a type.
    Presence(PresenceType),
    /// An IQ of a type.
    Iq(IqType),
}

impl Kind {
    /// The name of the element.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Message => "message",
            Kind::Presence => "presence",
            Kind::Iq => "iq",
        }
    }

    /// The kind whose element is called `name`.
    pub fn from_name(name: &str) -> Option<Kind> {
        match name {
            "message" => Some(Kind::Message),
            "presence" => Some(Kind::Presence),
            "iq" => Some(Kind::Iq),
            _ => None,
        }
    }
}

impl StanzaType {
    /// Message, presence or IQ.
    pub fn kind(self) -> Kind {
        match self {
            StanzaType::Message(_) => Kind::Message,
            StanzaType::Presence(_) => Kind::Presence,
            StanzaType::Iq(_) => Kind::Iq,
        }
    }

    /// The value of the `type` attribute; empty means that it is left out.
    pub fn name(self) -> &'static str {
        match self {
            StanzaType::Message(type_) => type_.name(),
            StanzaType::Presence(type_) => type_.name(),
            StanzaType::Iq(type_) => type_.name(),
        }
    }

    /// Reads a `type` attribute. A message of an unknown type is `normal` (RFC 6121 §5.2.2); a presence or IQ of an
    /// unknown type is an error of the sender (RFC 6121 §4.7.1, RFC 6120 §8.2.3).
    pub fn parse(kind: Kind, name: Option<&str>) -> Option<StanzaType> {
        let name = name.unwrap_or("");
        match kind {
            Kind::Message => Some(StanzaType::Message(MessageType::from_name(name).unwrap_or(MessageType::Normal))),
            Kind::Presence => PresenceType::from_name(name).map(StanzaType::Presence),
            Kind::Iq => IqType::from_name(name).map(StanzaType::Iq),
        }
    }

    /// Whether this is an answer of type `error`, which must never be answered with an error (RFC 6120 §8.3.1).
    pub fn is_error(self) -> bool {
        matches!(
            self,
            StanzaType::Message(MessageType::Error)
                | StanzaType::Presence(PresenceType::Error)
                | StanzaType::Iq(IqType::Error)
        )
    }
}

/// The start tag of a stanza: everything that routing looks at. Attributes other than these are dropped at ingress
/// (RFC 6120 §8.1 defines no others).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Kind and type.
    pub type_: StanzaType,
    /// The sender's identifier of this stanza, RFC 6120 §8.1.3.
    pub id: Option<Box<str>>,
    /// The sender, stamped by the server, RFC 6120 §8.1.2.1.
    pub from: Option<Jid>,
    /// The recipient; none means the sender's own account or server, RFC 6120 §8.1.1.1.
    pub to: Option<Jid>,
    /// Language of the human-readable content, RFC 6120 §8.1.5.
    pub lang: Option<Box<str>>,
}

impl Head {
    /// A head with only its type.
    pub fn new(type_: StanzaType) -> Head {
        Head { type_, id: None, from: None, to: None, lang: None }
    }

    /// A message of a type.
    pub fn message(type_: MessageType) -> Head {
        Head::new(StanzaType::Message(type_))
    }

    /// A presence of a type.
    pub fn presence(type_: PresenceType) -> Head {
        Head::new(StanzaType::Presence(type_))
    }

    /// An IQ of a type. Every IQ has an id (RFC 6120 §8.2.3).
    pub fn iq(type_: IqType, id: &str) -> Head {
        Head::new(StanzaType::Iq(type_)).id(id)
    }

    /// The same with an id.
    #[must_use]
    pub fn id(mut self, id: &str) -> Head {
        self.id = Some(id.into());
        self
    }

    /// The same with a sender.
    #[must_use]
    pub fn from(mut self, from: impl Into<Jid>) -> Head {
        self.from = Some(from.into());
        self
    }

    /// The same with a recipient.
    #[must_use]
    pub fn to(mut self, to: impl Into<Jid>) -> Head {
        self.to = Some(to.into());
        self
    }

    /// Message, presence or IQ.
    pub fn kind(&self) -> Kind {
        self.type_.kind()
    }

    /// The head of an answer of type `error` or of an IQ's result: same id, addresses swapped (RFC 6120 §8.1.2, §8.3.1).
    #[must_use]
    pub fn reply(&self, type_: StanzaType) -> Head {
        Head { type_, id: self.id.clone(), from: self.to.clone(), to: self.from.clone(), lang: None }
    }

    /// Appends the start tag without its last `>`: `<message to='…'`. The caller closes it.
    pub fn write_start(&self, out: &mut Vec<u8>) {
        out.push(b'<');
        out.extend_from_slice(self.kind().name().as_bytes());
        let type_ = Some(self.type_.name()).filter(|name| !name.is_empty());
        let attrs = [
            ("from", self.from.as_ref().map(Jid::as_str)),
            ("to", self.to.as_ref().map(Jid::as_str)),
            ("type", type_),
            ("id", self.id.as_deref()),
            ("xml:lang", self.lang.as_deref()),
        ];
        for (name, value) in attrs {
            if let Some(value) = value {
                write_attr(out, name, value);
            }
        }
    }

    /// Appends the end tag.
    pub fn write_end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"</");
        out.extend_from_slice(self.kind().name().as_bytes());
        out.push(b'>');
    }
}

/// Where a direct child of a stanza lies in its raw bytes, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Its namespace.
    pub ns: Atom,
    /// Its local name.
    pub name: Atom,
    /// Its bytes, from `<` to the end of its end tag, in [`Stanza::raw`].
    pub range: Range<u32>,
}

impl Child {
    /// Whether this is `name` in namespace `ns`.
    pub fn is(&self, ns: &str, name: &str) -> bool {
        self.name == name && self.ns == ns
    }

    /// The range as indices.
    pub fn span(&self) -> Range<usize> {
        self.range.start as usize..self.range.end as usize
    }
}

/// The children of a stanza; up to four without an allocation.
pub type Children = SmallVec<[Child; 4]>;

/// A stanza on its way. Cloning copies the head and shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stanza {
    /// The start tag.
    pub head: Head,
    raw: Bytes,
    children: Children,
}

impl Stanza {
    /// Builds a stanza from elements.
    pub fn new(head: Head, children: impl IntoIterator<Item = Element>) -> Stanza {
        let mut raw = Vec::new();
        let children = children.into_iter().map(|element| append(&mut raw, &element)).collect();
        Stanza { head, raw: raw.into(), children }
    }

    /// Puts a stanza together from checked parts: every range of `children` is one complete element of `raw`.
    pub(crate) fn from_checked(head: Head, raw: Bytes, children: Children) -> Stanza {
        Stanza { head, raw, children }
    }

    /// Parses one stored stanza, as [`Stanza::write`] wrote it.
    ///
    /// # Errors
    /// The bytes are not one well-formed stanza; the condition says what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Stanza, StreamError> {
        crate::ingress::parse_stored(bytes)
    }

    /// The result of an IQ, RFC 6120 §8.2.3: its id, addresses swapped, at most one payload.
    pub fn iq_result(request: &Head, payload: Option<Element>) -> Stanza {
        Stanza::new(request.reply(StanzaType::Iq(IqType::Result)), payload)
    }

    /// The answer of type `error` to a stanza, RFC 6120 §8.3.1. It does not repeat what was sent.
    pub fn error(request: &Head, error: &StanzaError) -> Stanza {
        let type_ = match request.kind() {
            Kind::Message => StanzaType::Message(MessageType::Error),
            Kind::Presence => StanzaType::Presence(PresenceType::Error),
            Kind::Iq => StanzaType::Iq(IqType::Error),
        };
        Stanza::new(request.reply(type_), [error.to_element()])
    }

    /// Message, presence or IQ.
    pub fn kind(&self) -> Kind {
        self.head.kind()
    }

    /// The bytes between start and end tag.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The direct children, in order.
    pub fn children(&self) -> &[Child] {
        &self.children
    }

    /// The first child `name` in namespace `ns`.
    pub fn child(&self, ns: &str, name: &str) -> Option<&Child> {
        self.children.iter().find(|child| child.is(ns, name))
    }

    /// The bytes of a child of this stanza; empty for a child of another.
    pub fn child_bytes(&self, child: &Child) -> &[u8] {
        self.raw.get(child.span()).unwrap_or_default()
    }

    /// The first child `name` in namespace `ns`, parsed.
    pub fn element(&self, ns: &str, name: &str) -> Option<Element> {
        self.child(ns, name).and_then(|child| self.parse_bytes(child).ok())
    }

    /// Parses the child at `index`.
    ///
    /// # Errors
    /// There is no such child. (Its bytes have passed ingress, so they parse.)
    pub fn parse_child(&self, index: usize) -> Result<Element, StanzaError> {
        let child = self.children.get(index).ok_or(Condition::BadRequest)?;
        self.parse_bytes(child)
    }

    /// The text of `<body/>`, the first one.
    pub fn body(&self) -> Option<String> {
        self.element(ns::CLIENT, "body").map(|body| body.text_content())
    }

    /// Appends the whole stanza as it goes onto a client stream.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.head.write_start(out);
        if self.raw.is_empty() {
            out.extend_from_slice(b"/>");
            return;
        }
        out.push(b'>');
        out.extend_from_slice(&self.raw);
        self.head.write_end(out);
    }

    /// The whole stanza as bytes.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.raw.len() + 192);
        self.write(&mut out);
        out.into()
    }

    /// Lets the children lie in `whole`, which is what [`write`](Self::write) wrote of this stanza: so their bytes are in
    /// memory once. Does nothing if it is something else.
    pub fn lie_in(&mut self, whole: &Bytes) {
        let end = "</>".len() + self.kind().name().len();
        let to = whole.len().saturating_sub(end);
        let at = to.saturating_sub(self.raw.len())..to;
        if !self.raw.is_empty() && whole[at.clone()] == self.raw {
            self.raw = whole.slice(at);
        }
    }

    /// Head, bytes and children.
    pub fn into_parts(self) -> (Head, Bytes, Children) {
        (self.head, self.raw, self.children)
    }

    fn parse_bytes(&self, child: &Child) -> Result<Element, StanzaError> {
        Element::parse(self.child_bytes(child), ns::CLIENT)
            .map_err(|error| StanzaError::new(Condition::BadRequest).text(error.to_string()))
    }
}

/// Writes `element` at the end of `raw` and says where. Lengths are far below 4 GiB: stanzas are bounded.
fn append(raw: &mut Vec<u8>, element: &Element) -> Child {
    let start = raw.len() as u32;
    element.write_to(raw, ns::CLIENT);
    Child { ns: Atom::namespace(element.ns()), name: Atom::name(element.name()), range: start..raw.len() as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jid(text: &str) -> Jid {
        text.parse().unwrap()
    }

    #[test]
    fn a_message_built_in_code() {
        let head = Head::message(MessageType::Chat).id("m1").from(jid("a@x/1")).to(jid("b@x"));
        let stanza = Stanza::new(
            head,
            [Element::new(ns::CLIENT, "body").text("Hi & bye"), Element::new(ns::RECEIPTS, "request")],
        );
        let mut out = Vec::new();
        stanza.write(&mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "<message from='a@x/1' to='b@x' type='chat' id='m1'><body>Hi &amp; bye</body><request xmlns='urn:xmpp:receipts'/></message>"
        );
        assert!(stanza.child(ns::RECEIPTS, "request").is_some());
        assert_eq!(stanza.body().as_deref(), Some("Hi & bye"));
    }

    #[test]
    fn answers_swap_the_addresses() {
        let request = Head::iq(IqType::Get, "q").from(jid("a@x/1")).to(jid("x"));
        let result = Stanza::iq_result(&request, None).to_bytes();
        assert_eq!(&result[..], b"<iq from='x' to='a@x/1' type='result' id='q'/>");
        let error = Stanza::error(&request, &StanzaError::new(Condition::ItemNotFound));
        assert!(error.head.type_.is_error());
        assert_eq!(
            error.parse_child(0).unwrap().get_child(ns::STANZA_ERRORS, "item-not-found").map(Element::name),
            Some("item-not-found")
        );
    }

    #[test]
    fn types_are_read_as_the_rfcs_say() {
        assert_eq!(StanzaType::parse(Kind::Message, Some("odd")), Some(StanzaType::Message(MessageType::Normal)));
        assert_eq!(StanzaType::parse(Kind::Message, Some("normal")), Some(StanzaType::Message(MessageType::Normal)));
        assert_eq!(StanzaType::parse(Kind::Presence, Some("odd")), None);
        assert_eq!(StanzaType::parse(Kind::Iq, None), None);
    }
}
