//! From received bytes to stanzas: framing, the validating pass, the head (RFC 6120 §4, §8, §11).

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use crate::check::{self, Checked, Found, RawAttr, decode};
use crate::element::{Element, write_attr};
use crate::error::{Condition, StanzaError, StreamCondition, StreamError};
use crate::framing::{Frame, Framer, Limits};
use crate::jid::Jid;
use crate::ns::{self, Atom};
use crate::stanza::{Child, Children, Head, IqType, Kind, MessageType, PresenceType, Stanza, StanzaType};
use crate::stream::Framing;

/// Reads one incoming stream. Bytes are fed in any pieces; between stanzas it holds no buffer.
///
/// ```
/// use tavi_xmpp_proto::{Incoming, Ingress, Limits, ns};
///
/// let mut ingress = Ingress::new(Limits::default());
/// let pieces = [
///     "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='x'>",
///     "<message to='juliet@x'><bo",
///     "dy>Hi</body></message>",
/// ];
/// let mut bodies = Vec::new();
/// for piece in pieces {
///     let mut input = piece.as_bytes();
///     while let Some(incoming) = ingress.next(&mut input)? {
///         if let Incoming::Stanza(stanza) = incoming {
///             assert!(stanza.child(ns::CLIENT, "body").is_some());
///             bodies.extend(stanza.body());
///         }
///     }
/// }
/// assert_eq!(bodies, ["Hi"]);
/// # Ok::<(), tavi_xmpp_proto::StreamError>(())
/// ```
#[derive(Debug)]
pub struct Ingress {
    framing: Framing,
    framer: Framer,
    limits: Limits,
    /// Prefixes that the stream header declared; `None` means only `stream`.
    prefixes: Option<Prefixes>,
}

type Prefixes = Box<[(Box<str>, Box<str>)]>;

/// What a peer sent.
#[derive(Debug)]
pub enum Incoming {
    /// The stream header.
    Header(Box<Header>),
    /// A stanza that is in order.
    Stanza(Arc<Stanza>),
    /// A stanza with a wrong head; the stream goes on.
    Refused(Box<Refused>),
    /// Another element: negotiation, stream management.
    Element(Element),
    /// The end of the stream.
    Close,
}

/// A start tag `<stream:stream>`, RFC 6120 §4.7.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// Which host the peer wants.
    pub to: Option<Box<str>>,
    /// Who the peer says it is.
    pub from: Option<Box<str>>,
    /// The stream id, only from a server.
    pub id: Option<Box<str>>,
    /// `1.0` for XMPP as it is today.
    pub version: Option<Box<str>>,
    /// Default language of the stream.
    pub lang: Option<Box<str>>,
}

/// A stanza with a wrong head, and the error to answer it with.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// What could be read of the head.
    pub head: Head,
    /// Why.
    pub error: StanzaError,
}

impl Refused {
    /// The answer, unless the stanza is itself an answer (RFC 6120 §8.3.1).
    pub fn reply(&self) -> Option<Stanza> {
        let is_answer = self.head.type_.is_error() || self.head.type_ == StanzaType::Iq(IqType::Result);
        (!is_answer).then(|| Stanza::error(&self.head, &self.error))
    }
}

impl Ingress {
    /// Reads a new stream (RFC 6120 §4).
    pub fn new(limits: Limits) -> Ingress {
        Ingress::framed(Framing::Stream, limits)
    }

    /// Reads a new stream that is wrapped like this. Over a WebSocket what is fed must be one whole message.
    pub fn framed(framing: Framing, limits: Limits) -> Ingress {
        Ingress { framing, framer: Framer::new(&limits), limits, prefixes: None }
    }

    /// What the stream is wrapped in.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// The next bytes belong to a new stream (after STARTTLS and after SASL, RFC 6120 §4.3.3).
    pub fn restart(&mut self) {
        self.framer.restart();
        self.prefixes = None;
    }

    /// Takes new limits, as after login.
    pub fn set_limits(&mut self, limits: Limits) {
        self.framer.set_limits(&limits);
        self.limits = limits;
    }

    /// Octets of an unfinished element that are held.
    pub fn held(&self) -> usize {
        self.framer.held()
    }

    /// Takes the next thing off the front of `input`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// The stream error to close the stream with; afterwards this must not be used.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Incoming>, StreamError> {
        if self.framing == Framing::WebSocket {
            return self.message(std::mem::take(input));
        }
        loop {
            let Some(frame) = self.framer.next(input)? else { return Ok(None) };
            return match frame {
                Frame::Declaration(frame) => {
                    declaration(frame)?;
                    continue;
                }
                Frame::Header(frame) => {
                    let (header, prefixes) = header(frame, self.framing.content(), &self.limits)?;
                    self.prefixes = prefixes;
                    Ok(Some(Incoming::Header(Box::new(header))))
                }
                Frame::Element(frame) => {
                    let outer = outer(self.prefixes.as_deref());
                    element(frame, outer, (self.framing, &self.limits)).map(Some)
                }
                Frame::Close(frame) => close(frame, self.prefixes.as_deref()).map(|()| Some(Incoming::Close)),
            };
        }
    }

    /// RFC 7395 §3.3.3: a message is one element, complete in itself; §3.3.2 and §3.6: two of them frame the stream.
    fn message(&mut self, message: &[u8]) -> Result<Option<Incoming>, StreamError> {
        match message.first() {
            None => return Ok(None),
            Some(b'<') if message.get(1) != Some(&b'?') => {}
            Some(_) => return Err(StreamError::new(StreamCondition::BadFormat).text("a message is one element")),
        }
        if message.len() > self.limits.stanza {
            let text = format!("a message may have at most {} octets", self.limits.stanza);
            return Err(StreamError::new(StreamCondition::PolicyViolation).text(text));
        }
        let incoming = element(message, &*BARE, (self.framing, &self.limits))?;
        Ok(Some(match incoming {
            Incoming::Element(open) if open.is(ns::FRAMING, "open") => Incoming::Header(Box::new(Header::of(&open))),
            Incoming::Element(close) if close.is(ns::FRAMING, "close") => Incoming::Close,
            incoming => incoming,
        }))
    }
}

impl Header {
    /// RFC 7395 §3.4: `<open/>` has the attributes of a stream's start tag.
    fn of(open: &Element) -> Header {
        let attr = |name: &str| open.get_attr(name).map(Into::into);
        let lang = open.get_attr_ns(ns::XML, "lang").map(Into::into);
        Header { to: attr("to"), from: attr("from"), id: attr("id"), version: attr("version"), lang }
    }
}

/// RFC 6120 §11.6: UTF-8, and §11.4: XML 1.0.
fn declaration(frame: &[u8]) -> Result<(), StreamError> {
    let attrs = check::declaration(frame)?;
    let order = ["version", "encoding", "standalone"];
    let places: Vec<_> = attrs.iter().map(|attr| order.iter().position(|name| *name == attr.local)).collect();
    if places.first() != Some(&Some(0)) || !places.is_sorted_by(|one, other| one < other) || places.contains(&None) {
        return Err(StreamCondition::NotWellFormed.into());
    }
    match (value(&attrs, "version"), value(&attrs, "encoding"), value(&attrs, "standalone")) {
        (Some("1.0"), Some(encoding), _) if !encoding.eq_ignore_ascii_case("utf-8") => {
            Err(StreamCondition::UnsupportedEncoding.into())
        }
        (Some("1.0"), _, None | Some("yes" | "no")) => Ok(()),
        _ => Err(StreamCondition::NotWellFormed.into()),
    }
}

/// A declaration's value is taken as it stands: it has no references.
fn value<'a>(attrs: &[RawAttr<'a>], name: &str) -> Option<&'a str> {
    attrs.iter().find(|attr| attr.prefix.is_empty() && attr.local == name).map(|attr| attr.value)
}

/// The standard prefixes of a client stream: kept once for everybody.
static STANDARD: std::sync::LazyLock<[(Box<str>, Box<str>); 1]> =
    std::sync::LazyLock::new(|| [("stream".into(), ns::STREAM.into())]);

/// Around a message there is nothing: without a declaration it has no namespace.
static BARE: std::sync::LazyLock<[(Box<str>, Box<str>); 1]> = std::sync::LazyLock::new(|| [("".into(), "".into())]);

fn outer(prefixes: Option<&[(Box<str>, Box<str>)]>) -> &[(Box<str>, Box<str>)] {
    prefixes.unwrap_or(&*STANDARD)
}

/// RFC 6120 §4.8: the stream's namespaces.
fn header(frame: &[u8], own: &str, limits: &Limits) -> Result<(Header, Option<Prefixes>), StreamError> {
    let checked = check::header(frame, limits)?;
    let content = checked.bindings.iter().find(|binding| binding.prefix.is_empty());
    if checked.ns != ns::STREAM || content.is_none_or(|binding| binding.uri != own) {
        return Err(StreamCondition::InvalidNamespace.into());
    }
    // RFC 6120 §4.9.3.1: another root is a bad format. §4.8.5: the prefix is `stream`.
    match (checked.tag.local, checked.tag.prefix) {
        ("stream", "stream") => {}
        ("stream", _) => return Err(StreamCondition::BadNamespacePrefix.into()),
        _ => return Err(StreamCondition::BadFormat.into()),
    }
    Ok((read_header(&checked), own_prefixes(&checked)))
}

fn read_header(checked: &Checked<'_>) -> Header {
    let mut header = Header::default();
    for attr in &checked.attrs {
        let place = match (attr.prefix, attr.local) {
            ("", "to") => &mut header.to,
            ("", "from") => &mut header.from,
            ("", "id") => &mut header.id,
            ("", "version") => &mut header.version,
            ("xml", "lang") => &mut header.lang,
            _ => continue,
        };
        *place = Some(decode(attr.value).into());
    }
    header
}

/// What the header declared, if it is not just the usual.
fn own_prefixes(checked: &Checked<'_>) -> Option<Prefixes> {
    let prefixed = checked.bindings.iter().filter(|binding| !binding.prefix.is_empty());
    let list: Vec<(Box<str>, Box<str>)> =
        prefixed.map(|binding| (binding.prefix.into(), (&*binding.uri).into())).collect();
    (list.len() != 1).then(|| list.into())
}

/// The end tag repeats the header's name, which is always `stream:stream`.
fn close(frame: &[u8], _prefixes: Option<&[(Box<str>, Box<str>)]>) -> Result<(), StreamError> {
    match check::end_tag(frame)? {
        "stream:stream" => Ok(()),
        _ => Err(StreamCondition::NotWellFormed.into()),
    }
}

/// One complete child of the stream.
fn element(
    frame: &[u8],
    outer: &[(Box<str>, Box<str>)],
    (framing, limits): (Framing, &Limits),
) -> Result<Incoming, StreamError> {
    let frame = &*line_ends(frame);
    let checked = check::element(frame, outer, limits)?;
    if checked.ns.is_empty() && framing == Framing::WebSocket {
        return Err(StreamError::new(StreamCondition::InvalidNamespace).text("an element without a namespace"));
    }
    if checked.ns != ns::CLIENT {
        return other(frame, &checked).map(Incoming::Element);
    }
    let kind = match Kind::from_name(checked.tag.local) {
        Some(kind) => kind,
        // XEP-0114 §3: a component's handshake has no namespace of its own.
        None if framing == Framing::Component => return other(frame, &checked).map(Incoming::Element),
        // RFC 6120 §4.9.3.24: only the three stanzas live in this namespace.
        None => return Err(StreamCondition::UnsupportedStanzaType.into()),
    };
    let parts = read_head(kind, &checked.attrs)?;
    let head = match parts.verdict(&checked) {
        Ok(head) => head,
        Err(refused) => return Ok(Incoming::Refused(refused)),
    };
    let (raw, children) = content(frame, &checked);
    Ok(Incoming::Stanza(Arc::new(Stanza::from_checked(head, raw, children))))
}

/// XML 1.0 §2.11: CR and CR LF mean LF. Done before anything is forwarded, because some clients' parsers stumble
/// over a lone CR.
pub(crate) fn line_ends(frame: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\r', frame).is_none() {
        return Cow::Borrowed(frame);
    }
    let mut out = Vec::with_capacity(frame.len());
    for (at, &byte) in frame.iter().enumerate() {
        match byte {
            b'\r' if frame.get(at + 1) == Some(&b'\n') => {}
            b'\r' => out.push(b'\n'),
            byte => out.push(byte),
        }
    }
    Cow::Owned(out)
}

/// Parses one stored stanza, as [`Stanza::write`] wrote it. Limits were kept when it came in; the head that the
/// server wrote may be longer, so none are applied.
pub(crate) fn parse_stored(bytes: &[u8]) -> Result<Stanza, StreamError> {
    let limits = Limits { stanza: usize::MAX, depth: usize::MAX, attributes: usize::MAX };
    match element(bytes, &*STANDARD, (Framing::Stream, &limits))? {
        Incoming::Stanza(stanza) => Ok(Arc::unwrap_or_clone(stanza)),
        Incoming::Refused(refused) => Err(StreamError::new(StreamCondition::BadFormat).text(refused.error.to_string())),
        _ => Err(StreamCondition::UnsupportedStanzaType.into()),
    }
}

/// An element of negotiation; prefixes of the header are declared inside it first.
fn other(frame: &[u8], checked: &Checked<'_>) -> Result<Element, StreamError> {
    if let Some(element) = empty(checked) {
        return Ok(element);
    }
    let mut own = Cow::Borrowed(frame);
    if !checked.outside.is_empty() {
        let mut bytes = frame[..checked.tag.name_end].to_vec();
        for &binding in &checked.outside {
            declare(&mut bytes, checked.bindings[binding].prefix, &checked.bindings[binding].uri);
        }
        bytes.extend_from_slice(&frame[checked.tag.name_end..]);
        own = Cow::Owned(bytes);
    }
    // What the pass accepted parses; should the parsers ever differ, the peer's bytes are to blame, not the process.
    Element::parse(&own, ns::CLIENT)
        .map_err(|error| StreamError::new(StreamCondition::NotWellFormed).text(error.to_string()))
}

/// An element without content, as those of stream management are, of which the pass told all that there is to know.
fn empty(checked: &Checked<'_>) -> Option<Element> {
    if !checked.inner.is_empty() {
        return None;
    }
    let mut element = Element::new(ns::known(&checked.ns), checked.tag.local.to_owned());
    for attr in &checked.attrs {
        match (attr.prefix, attr.local) {
            ("", "xmlns") | ("xmlns", _) => {}
            ("", local) => element.set_attr(local.to_owned(), decode(attr.value).into_owned()),
            _ => return None,
        }
    }
    Some(element)
}

/// The head's attributes, read but not judged.
struct HeadParts<'a> {
    kind: Kind,
    type_: Option<Cow<'a, str>>,
    to: Option<Cow<'a, str>>,
    from: Option<Jid>,
    id: Option<Box<str>>,
    lang: Option<Box<str>>,
}

fn read_head<'a>(kind: Kind, attrs: &[RawAttr<'a>]) -> Result<HeadParts<'a>, StreamError> {
    let mut parts = HeadParts { kind, type_: None, to: None, from: None, id: None, lang: None };
    for attr in attrs {
        match (attr.prefix, attr.local) {
            ("", "type") => parts.type_ = Some(decode(attr.value)),
            ("", "to") => parts.to = Some(decode(attr.value)),
            ("", "id") => parts.id = Some(decode(attr.value).into()),
            ("xml", "lang") => parts.lang = Some(decode(attr.value).into()),
            // RFC 6120 §4.9.3.9: a sender that can not be right ends the stream.
            ("", "from") => {
                parts.from = Some(Jid::parse(&decode(attr.value)).map_err(|_| StreamCondition::InvalidFrom)?)
            }
            _ => {}
        }
    }
    Ok(parts)
}

impl HeadParts<'_> {
    fn verdict(self, checked: &Checked<'_>) -> Result<Head, Box<Refused>> {
        let (to, malformed) = match self.to.as_deref().map(Jid::parse).transpose() {
            Ok(to) => (to, None),
            Err(error) => (None, Some(error)),
        };
        let type_ = StanzaType::parse(self.kind, self.type_.as_deref().map(plain_default));
        let head =
            Head { type_: type_.unwrap_or(fallback(self.kind)), id: self.id, from: self.from, to, lang: self.lang };
        if let Some(error) = malformed {
            let error = StanzaError::new(Condition::JidMalformed).text(error.to_string());
            return Err(Box::new(Refused { head, error }));
        }
        match type_.ok_or("an unknown type").and_then(|type_| iq_rules(type_, &head, checked.children.len())) {
            Ok(()) => Ok(head),
            Err(text) => Err(Box::new(Refused { head, error: StanzaError::new(Condition::BadRequest).text(text) })),
        }
    }
}

/// An empty `type` is no type, except that it must not pass for a missing one of an IQ or presence.
fn plain_default(type_: &str) -> &str {
    if type_.is_empty() { "(empty)" } else { type_ }
}

/// The type under which a stanza without a legal one is answered.
fn fallback(kind: Kind) -> StanzaType {
    match kind {
        Kind::Message => StanzaType::Message(MessageType::Normal),
        Kind::Presence => StanzaType::Presence(PresenceType::Available),
        Kind::Iq => StanzaType::Iq(IqType::Get),
    }
}

/// RFC 6120 §8.2.3: rules 1 to 6 of IQ.
fn iq_rules(type_: StanzaType, head: &Head, children: usize) -> Result<(), &'static str> {
    let StanzaType::Iq(type_) = type_ else { return Ok(()) };
    if head.id.is_none() {
        return Err("an IQ needs an id");
    }
    match type_ {
        IqType::Get | IqType::Set if children != 1 => Err("a get or set needs exactly one child"),
        IqType::Result if children > 1 => Err("a result has at most one child"),
        _ => Ok(()),
    }
}

/// The children as bytes of their own. Usually one copy; declarations are put in where a child leans on its parents.
fn content(frame: &[u8], checked: &Checked<'_>) -> (Bytes, Children) {
    let default = checked.bindings.iter().rfind(|binding| binding.prefix.is_empty()).map(|binding| &*binding.uri);
    let foreign_default = default.filter(|uri| *uri != ns::CLIENT);
    if checked.children.is_empty() {
        return (Bytes::new(), Children::new());
    }
    if checked.borrowed.is_empty() && foreign_default.is_none() {
        let start = checked.inner.start;
        let children =
            checked.children.iter().map(|found| place(found, found.range.start - start, found.range.end - start));
        return (Bytes::copy_from_slice(&frame[checked.inner.clone()]), children.collect());
    }
    completed(frame, checked, foreign_default)
}

/// Writes each child with the declarations that it borrows from outside; text between them is left out.
fn completed(frame: &[u8], checked: &Checked<'_>, default: Option<&str>) -> (Bytes, Children) {
    let mut raw = Vec::with_capacity(checked.inner.len() + 64);
    let mut children = Children::new();
    for (at, found) in checked.children.iter().enumerate() {
        let start = raw.len();
        raw.extend_from_slice(&frame[found.range.start..found.name_end]);
        if let Some(uri) = default.filter(|_| !found.declares_default) {
            declare(&mut raw, "", uri);
        }
        for &(_, binding) in checked.borrowed.iter().filter(|(child, _)| *child == at) {
            declare(&mut raw, checked.bindings[binding].prefix, &checked.bindings[binding].uri);
        }
        raw.extend_from_slice(&frame[found.name_end..found.range.end]);
        children.push(place(found, start, raw.len()));
    }
    (raw.into(), children)
}

fn declare(out: &mut Vec<u8>, prefix: &str, uri: &str) {
    match prefix {
        "" => write_attr(out, "xmlns", uri),
        prefix => write_attr(out, &format!("xmlns:{prefix}"), uri),
    }
}

/// Positions fit into 32 bits because stanzas are bounded far below 4 GiB.
fn place(found: &Found<'_>, start: usize, end: usize) -> Child {
    Child { ns: Atom::namespace(&found.ns), name: Atom::name(found.local), range: start as u32..end as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str =
        "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='x' version='1.0'>";

    /// What comes of `xml` inside a stream with `header`.
    fn read_in(header: &str, xml: &str) -> Result<Incoming, StreamError> {
        let mut ingress = Ingress::new(Limits::default());
        let mut input = header.as_bytes();
        assert!(matches!(ingress.next(&mut input), Ok(Some(Incoming::Header(_)))), "{header}");
        let mut input = xml.as_bytes();
        ingress.next(&mut input).map(|incoming| incoming.expect("a complete element"))
    }

    fn stanza(xml: &str) -> Stanza {
        match read_in(HEADER, xml) {
            Ok(Incoming::Stanza(stanza)) => Arc::unwrap_or_clone(stanza),
            other => panic!("{xml}: {other:?}"),
        }
    }

    fn stream_error(xml: &str) -> &'static str {
        match read_in(HEADER, xml) {
            Err(error) => error.condition.name(),
            other => panic!("{xml}: {other:?}"),
        }
    }

    fn refusal(xml: &str) -> Condition {
        match read_in(HEADER, xml) {
            Ok(Incoming::Refused(refused)) => refused.error.condition,
            other => panic!("{xml}: {other:?}"),
        }
    }

    #[test]
    fn a_message_keeps_its_children_as_received() {
        let xml = "<message to='B@X' type='chat' id='1&amp;2' odd='y'><body >Hi</body> <request xmlns='urn:xmpp:receipts'/></message>";
        let stanza = stanza(xml);
        assert_eq!(stanza.head.to.as_ref().map(Jid::as_str), Some("b@x"));
        assert_eq!(stanza.head.id.as_deref(), Some("1&2"));
        assert_eq!(&stanza.raw()[..], b"<body >Hi</body> <request xmlns='urn:xmpp:receipts'/>");
        assert!(stanza.children()[0].is(ns::CLIENT, "body"));
        assert!(stanza.children()[1].is(ns::RECEIPTS, "request"));
        assert_eq!(stanza.child_bytes(&stanza.children()[0]), b"<body >Hi</body>");
    }

    #[test]
    fn a_stored_stanza_is_read_back() {
        let stanza =
            stanza("<message to='b@x' from='a@x/1' xml:lang='de'><body>Hi</body><p:a xmlns:p='urn:p'/></message>");
        assert_eq!(Stanza::parse(&stanza.to_bytes()), Ok(stanza));
    }

    #[test]
    fn a_child_that_leans_on_its_parents_is_completed() {
        let header = HEADER.replace(" to=", " xmlns:p='urn:p&amp;q' to=");
        let xml = "<c:message xmlns:c='jabber:client' xmlns='urn:d' xmlns:r='urn:r'>t<a/><p:b r:x='1'><c:body/></p:b><d xmlns='urn:e'/></c:message>";
        let Ok(Incoming::Stanza(stanza)) = read_in(&header, xml) else { panic!("refused") };
        assert_eq!(
            std::str::from_utf8(stanza.raw()).unwrap(),
            "<a xmlns='urn:d'/><p:b xmlns='urn:d' xmlns:p='urn:p&amp;q' xmlns:r='urn:r' xmlns:c='jabber:client' r:x='1'><c:body/></p:b><d xmlns='urn:e'/>"
        );
        assert!(stanza.children()[1].is("urn:p&q", "b"));
        assert_eq!(stanza.parse_child(1).unwrap().get_attr_ns("urn:r", "x"), Some("1"));
    }

    #[test]
    fn malformed_xml_ends_the_stream() {
        let malformed = [
            "<message><a></b></message>",
            "<message a='<'/>",
            "<message a='1' a='2'/>",
            "<message>]]></message>",
            "<message><p:a/></message>",
            "<message p:a='1'/>",
            "<message>&#0;</message>",
            "<message>\u{1}</message>",
            "<message>\u{ffff}</message>",
            "<message a=1/>",
            "<message a='1'b='2'/>",
            "<1message/>",
            "<message><-/></message>",
            "<message>&amp</message>",
            "<message><a xmlns:p=''/></message>",
            "<message xmlns:xml='urn:x'/>",
            "<message><a xmlns:p='u' xmlns:q='u' p:x='1' q:x='2'/></message>",
            "<message><a:b:c/></message>",
            "<message><xmlns:a/></message>",
            "<message>&#xD800;</message>",
            "<message a='&lt'/>",
            "<message><a b/></message>",
            "<message><\u{10000} xmlns='x'/></message>",
        ];
        for xml in malformed {
            assert_eq!(stream_error(xml), "not-well-formed", "{xml}");
        }
    }

    #[test]
    fn restricted_xml_ends_the_stream() {
        for xml in ["<message>&nbsp;</message>", "<message><!-- x --></message>", "<message><?pi x?></message>"] {
            assert_eq!(stream_error(xml), "restricted-xml", "{xml}");
        }
        assert_eq!(stream_error("<odd/>"), "unsupported-stanza-type");
        assert_eq!(stream_error("<message from='@'/>"), "invalid-from");
    }

    #[test]
    fn a_wrong_head_is_answered_and_the_stream_goes_on() {
        assert_eq!(refusal("<message to='a@b@c'/>"), Condition::JidMalformed);
        assert_eq!(refusal("<iq type='get'><ping xmlns='urn:xmpp:ping'/></iq>"), Condition::BadRequest);
        assert_eq!(refusal("<iq type='get' id='1'/>"), Condition::BadRequest);
        assert_eq!(refusal("<iq id='1'><a/></iq>"), Condition::BadRequest);
        assert_eq!(refusal("<presence type='odd'/>"), Condition::BadRequest);
        let Ok(Incoming::Refused(refused)) = read_in(HEADER, "<message type='error' to='@'/>") else { panic!() };
        assert_eq!(refused.reply(), None);
    }

    #[test]
    fn the_header_is_judged() {
        let judge = |header: &str| {
            let mut input = header.as_bytes();
            Ingress::new(Limits::default()).next(&mut input).map(|_| ()).map_err(|error| error.condition.name())
        };
        assert_eq!(judge(HEADER), Ok(()));
        assert_eq!(judge(&format!("<?xml version='1.0' encoding='UTF-8'?>\n{HEADER}")), Ok(()));
        assert_eq!(judge(&format!("<?xml version='1.0' encoding='latin1'?>{HEADER}")), Err("unsupported-encoding"));
        assert_eq!(judge(&format!("<?xml version='1.1'?>{HEADER}")), Err("not-well-formed"));
        assert_eq!(judge(&HEADER.replace("jabber:client", "jabber:odd")), Err("invalid-namespace"));
        assert_eq!(judge(&HEADER.replace("etherx", "other")), Err("invalid-namespace"));
        assert_eq!(
            judge(&HEADER.replace("stream:stream", "s:stream").replace("xmlns:stream", "xmlns:s")),
            Err("bad-namespace-prefix")
        );
        assert_eq!(judge(&HEADER.replace("stream:stream", "stream:strm")), Err("bad-format"));
    }

    #[test]
    fn an_element_of_negotiation_is_a_tree() {
        let header = HEADER.replace(" to=", " xmlns:t='urn:ietf:params:xml:ns:xmpp-tls' to=");
        let Ok(Incoming::Element(element)) = read_in(&header, "<t:starttls/>") else { panic!() };
        assert!(element.is(ns::TLS, "starttls"));
    }

    #[test]
    fn a_new_stream_has_limits_and_prefixes_of_its_own() {
        let mut ingress = Ingress::new(Limits::BEFORE_LOGIN);
        let reads = |ingress: &mut Ingress, xml: &str| match ingress.next(&mut xml.as_bytes()) {
            Ok(Some(incoming)) => format!("{incoming:?}").chars().take_while(char::is_ascii_alphabetic).collect(),
            Ok(None) => "nothing".to_owned(),
            Err(error) => error.condition.name().to_owned(),
        };
        let prefixed = HEADER.replace(" to=", " xmlns:t='urn:ietf:params:xml:ns:xmpp-tls' to=");
        assert_eq!(reads(&mut ingress, &prefixed), "Header");
        assert_eq!(reads(&mut ingress, "<t:starttls/>"), "Element");
        ingress.restart();
        ingress.set_limits(Limits::default());
        assert_eq!(reads(&mut ingress, HEADER), "Header");
        let attrs: String = (0..40).map(|n| format!(" a{n}=''")).collect();
        assert_eq!(reads(&mut ingress, &format!("<message{attrs}/>")), "Stanza");
        assert_eq!(reads(&mut ingress, "<t:starttls/>"), "not-well-formed", "nobody declared that");
        let mut early = Ingress::new(Limits::BEFORE_LOGIN);
        assert_eq!(reads(&mut early, HEADER), "Header");
        assert_eq!(reads(&mut early, &format!("<message{attrs}/>")), "policy-violation");
    }

    #[test]
    fn too_many_attributes_and_levels_are_refused() {
        let attrs: String = (0..65).map(|n| format!(" a{n}=''")).collect();
        assert_eq!(stream_error(&format!("<message{attrs}/>")), "policy-violation");
        assert_eq!(stream_error(&format!("<message>{}", "<a>".repeat(100))), "policy-violation");
        assert_eq!(stream_error(&format!("<message>{}</message>", "<a/>".repeat(257))), "policy-violation");
        let nested: String = (0..70).map(|n| format!("<a xmlns:p{n}='u'>")).collect();
        assert_eq!(stream_error(&format!("<message>{nested}{}</message>", "</a>".repeat(70))), "policy-violation");
    }
}
