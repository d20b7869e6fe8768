//! A small owned XML tree for payloads: built in code or parsed from bytes that the ingress pass accepted.

use std::borrow::Cow;

use quick_xml::XmlVersion;
use quick_xml::events::attributes::Attribute;
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::name::{Namespace, PrefixDeclaration, ResolveResult};
use quick_xml::reader::NsReader;

use crate::ns;

/// A name or namespace: static when written in code, owned when it came from a peer.
pub type Name = Cow<'static, str>;

/// One element with its attributes and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    ns: Name,
    name: Name,
    attrs: Vec<Attr>,
    children: Vec<Node>,
}

/// One attribute; `ns` is empty for attributes without a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// The namespace, empty for none.
    pub ns: Name,
    /// The local name.
    pub name: Name,
    /// The value, unescaped.
    pub value: Name,
}

/// What an element contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A child element.
    Element(Element),
    /// Character data, unescaped.
    Text(Name),
}

/// The bytes are no single well-formed element. (Bytes that passed ingress never give this.)
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not one well-formed XML element: {0}")]
pub struct ParseError(String);

impl Element {
    /// An empty element.
    pub fn new(ns: impl Into<Name>, name: impl Into<Name>) -> Element {
        Element { ns: ns.into(), name: name.into(), attrs: Vec::new(), children: Vec::new() }
    }

    /// Adds or replaces an attribute. `xml:lang` and other `xml:` names get the namespace of `xml`.
    #[must_use]
    pub fn attr(mut self, name: impl Into<Name>, value: impl Into<Name>) -> Element {
        self.set_attr(name, value);
        self
    }

    /// Adds an attribute if there is a value.
    #[must_use]
    pub fn attr_opt(self, name: impl Into<Name>, value: Option<impl Into<Name>>) -> Element {
        match value {
            Some(value) => self.attr(name, value),
            None => self,
        }
    }

    /// Adds an attribute that has a namespace.
    #[must_use]
    pub fn attr_ns(mut self, ns: impl Into<Name>, name: impl Into<Name>, value: impl Into<Name>) -> Element {
        self.put_attr(ns.into(), name.into(), value.into());
        self
    }

    /// Adds character data.
    #[must_use]
    pub fn text(mut self, text: impl Into<Name>) -> Element {
        self.push_text(text.into());
        self
    }

    /// Adds a child element.
    #[must_use]
    pub fn child(mut self, child: Element) -> Element {
        self.children.push(Node::Element(child));
        self
    }

    /// Adds a child element if there is one.
    #[must_use]
    pub fn child_opt(self, child: Option<Element>) -> Element {
        match child {
            Some(child) => self.child(child),
            None => self,
        }
    }

    /// Adds child elements in order.
    #[must_use]
    pub fn children(mut self, children: impl IntoIterator<Item = Element>) -> Element {
        self.children.extend(children.into_iter().map(Node::Element));
        self
    }

    /// Adds or replaces an attribute in place.
    pub fn set_attr(&mut self, name: impl Into<Name>, value: impl Into<Name>) {
        let name = name.into();
        match name.strip_prefix("xml:") {
            Some(local) => self.put_attr(ns::XML.into(), local.to_owned().into(), value.into()),
            None => self.put_attr("".into(), name, value.into()),
        }
    }

    /// Adds a child element in place.
    pub fn push(&mut self, child: Element) {
        self.children.push(Node::Element(child));
    }

    /// The local name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace.
    pub fn ns(&self) -> &str {
        &self.ns
    }

    /// Whether this is `name` in namespace `ns`.
    pub fn is(&self, ns: &str, name: &str) -> bool {
        self.name == name && self.ns == ns
    }

    /// The value of an attribute without a namespace, or of an `xml:` attribute.
    pub fn get_attr(&self, name: &str) -> Option<&str> {
        match name.strip_prefix("xml:") {
            Some(local) => self.get_attr_ns(ns::XML, local),
            None => self.get_attr_ns("", name),
        }
    }

    /// The value of an attribute with a namespace.
    pub fn get_attr_ns(&self, ns: &str, name: &str) -> Option<&str> {
        self.attrs.iter().find(|attr| attr.name == name && attr.ns == ns).map(|attr| &*attr.value)
    }

    /// All attributes.
    pub fn attrs(&self) -> &[Attr] {
        &self.attrs
    }

    /// The first child element `name` in `ns`.
    pub fn get_child(&self, ns: &str, name: &str) -> Option<&Element> {
        self.elements().find(|child| child.is(ns, name))
    }

    /// The child elements.
    pub fn elements(&self) -> impl Iterator<Item = &Element> {
        self.children.iter().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        })
    }

    /// Elements and text, in document order.
    pub fn nodes(&self) -> &[Node] {
        &self.children
    }

    /// The character data directly inside this element, joined.
    pub fn text_content(&self) -> String {
        self.children
            .iter()
            .filter_map(|node| match node {
                Node::Text(text) => Some(&**text),
                Node::Element(_) => None,
            })
            .collect()
    }

    /// Parses exactly one element. `default_ns` is the default namespace where it stands (in a client stream
    /// `jabber:client`). Adjacent text is joined; comments and instructions are refused like any restricted XML.
    ///
    /// # Errors
    /// The bytes are not one well-formed element.
    pub fn parse(bytes: &[u8], default_ns: &str) -> Result<Element, ParseError> {
        let text = std::str::from_utf8(bytes).map_err(ParseError::of)?;
        let mut reader = NsReader::from_str(text);
        reader.resolver_mut().add(PrefixDeclaration::Default, Namespace(default_ns)).map_err(ParseError::of)?;
        TreeBuilder::default().build(&mut reader)
    }

    /// Appends the element to `out`. `default_ns` is the default namespace where it will stand; namespaces that
    /// differ are declared, so that the element is complete in itself.
    pub fn write_to(&self, out: &mut Vec<u8>, default_ns: &str) {
        out.push(b'<');
        out.extend_from_slice(self.name.as_bytes());
        if self.ns != default_ns {
            write_attr(out, "xmlns", &self.ns);
        }
        for (at, attr) in self.attrs.iter().enumerate() {
            attr.write_to(out, at);
        }
        if self.children.is_empty() {
            out.extend_from_slice(b"/>");
            return;
        }
        out.push(b'>');
        self.write_children(out);
        out.extend_from_slice(b"</");
        out.extend_from_slice(self.name.as_bytes());
        out.push(b'>');
    }

    /// The element as text, for logs and tests.
    pub fn to_xml(&self, default_ns: &str) -> String {
        let mut out = Vec::new();
        self.write_to(&mut out, default_ns);
        String::from_utf8_lossy(&out).into_owned()
    }

    fn write_children(&self, out: &mut Vec<u8>) {
        for node in &self.children {
            match node {
                Node::Element(child) => child.write_to(out, &self.ns),
                Node::Text(text) => escape_text(out, text),
            }
        }
    }

    fn put_attr(&mut self, ns: Name, name: Name, value: Name) {
        match self.attrs.iter_mut().find(|attr| attr.name == name && attr.ns == ns) {
            Some(attr) => attr.value = value,
            None => self.attrs.push(Attr { ns, name, value }),
        }
    }

    fn push_text(&mut self, text: Name) {
        match self.children.last_mut() {
            Some(Node::Text(before)) => before.to_mut().push_str(&text),
            _ if text.is_empty() => {}
            _ => self.children.push(Node::Text(text)),
        }
    }
}

impl Attr {
    /// A namespaced attribute declares a prefix of its own, `a` and its place, which nothing else uses.
    fn write_to(&self, out: &mut Vec<u8>, at: usize) {
        if self.ns.is_empty() {
            write_attr(out, &self.name, &self.value);
        } else if self.ns == ns::XML {
            write_attr(out, &format!("xml:{}", self.name), &self.value);
        } else {
            write_attr(out, &format!("xmlns:a{at}"), &self.ns);
            write_attr(out, &format!("a{at}:{}", self.name), &self.value);
        }
    }
}

/// Appends ` name='value'`, escaped.
pub(crate) fn write_attr(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(b' ');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"='");
    escape_attr(out, value);
    out.push(b'\'');
}

/// Appends character data. CR is written as a reference, because a parser would turn it into LF (XML 1.0 §2.11).
pub fn escape_text(out: &mut Vec<u8>, text: &str) {
    escape(out, text, |byte| match byte {
        b'<' => Some("&lt;"),
        b'>' => Some("&gt;"),
        b'&' => Some("&amp;"),
        b'\r' => Some("&#13;"),
        _ => None,
    });
}

/// Appends an attribute value. White space other than a space is written as a reference (XML 1.0 §3.3.3).
pub fn escape_attr(out: &mut Vec<u8>, text: &str) {
    escape(out, text, |byte| match byte {
        b'<' => Some("&lt;"),
        b'>' => Some("&gt;"),
        b'&' => Some("&amp;"),
        b'\'' => Some("&apos;"),
        b'"' => Some("&quot;"),
        b'\r' => Some("&#13;"),
        b'\n' => Some("&#10;"),
        b'\t' => Some("&#9;"),
        _ => None,
    });
}

/// Octets that stand for themselves everywhere; of the others some do.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0x20;
    while byte < 256 {
        plain[byte] = !matches!(byte as u8, b'<' | b'>' | b'&' | b'\'' | b'"' | 0xEF);
        byte += 1;
    }
    plain
};

/// Appends `text`, with references where `reference` says so; what no XML document can hold becomes U+FFFD.
fn escape(out: &mut Vec<u8>, text: &str, reference: impl Fn(u8) -> Option<&'static str>) {
    let bytes = text.as_bytes();
    if bytes.iter().all(|byte| PLAIN[*byte as usize]) {
        return out.extend_from_slice(bytes);
    }
    let mut done = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let Some(with) = reference(byte).or_else(|| illegal_at(bytes, at)) else { continue };
        out.extend_from_slice(&bytes[done..at]);
        out.extend_from_slice(with.as_bytes());
        done = at + if byte == 0xEF { 3 } else { 1 };
    }
    out.extend_from_slice(&bytes[done..]);
}

/// XML 1.0 §2.2: no control characters except TAB, LF, CR; no U+FFFE and U+FFFF (EF BF BE, EF BF BF).
fn illegal_at(bytes: &[u8], at: usize) -> Option<&'static str> {
    let illegal = match bytes[at] {
        b'\t' | b'\n' | b'\r' => false,
        0..0x20 => true,
        0xEF => bytes[at + 1] == 0xBF && bytes[at + 2] >= 0xBE,
        _ => false,
    };
    illegal.then_some("\u{fffd}")
}

/// The open elements while parsing, innermost last.
#[derive(Default)]
struct TreeBuilder {
    open: Vec<Element>,
    root: Option<Element>,
}

impl TreeBuilder {
    fn build(mut self, reader: &mut NsReader<&[u8]>) -> Result<Element, ParseError> {
        loop {
            let event = reader.read_event().map_err(ParseError::of)?;
            match event {
                Event::Start(start) => {
                    let element = read_start(reader, &start)?;
                    self.start(element)?;
                }
                Event::Empty(start) => {
                    let element = read_start(reader, &start)?;
                    self.start(element)?;
                    self.end();
                }
                Event::End(_) => self.end(),
                Event::Text(text) => self.text(text.xml10_content())?,
                Event::CData(text) => self.text(text.xml10_content())?,
                Event::GeneralRef(reference) => self.text(resolve(&reference)?)?,
                Event::Eof => break,
                _ => return Err(ParseError("restricted XML".into())),
            }
        }
        self.root.filter(|_| self.open.is_empty()).ok_or_else(|| ParseError("no complete element".into()))
    }

    fn start(&mut self, element: Element) -> Result<(), ParseError> {
        if self.root.is_some() {
            return Err(ParseError("more than one element".into()));
        }
        self.open.push(element);
        Ok(())
    }

    fn end(&mut self) {
        let Some(element) = self.open.pop() else { return };
        match self.open.last_mut() {
            Some(parent) => parent.push(element),
            None => self.root = Some(element),
        }
    }

    fn text(&mut self, text: Cow<'_, str>) -> Result<(), ParseError> {
        match self.open.last_mut() {
            Some(parent) => parent.push_text(text.into_owned().into()),
            None if text.trim_ascii().is_empty() => {}
            None => return Err(ParseError("text outside the element".into())),
        }
        Ok(())
    }
}

fn read_start(reader: &NsReader<&[u8]>, start: &BytesStart<'_>) -> Result<Element, ParseError> {
    let (space, name) = reader.resolver().resolve_element(start.name());
    let mut element = Element::new(read_ns(space)?, name.into_inner().to_owned());
    for attribute in start.attributes() {
        let attribute = attribute.map_err(ParseError::of)?;
        if attribute.key.as_namespace_binding().is_none() {
            read_attr(reader, &mut element, &attribute)?;
        }
    }
    Ok(element)
}

fn read_attr(reader: &NsReader<&[u8]>, element: &mut Element, attribute: &Attribute<'_>) -> Result<(), ParseError> {
    let (space, name) = reader.resolver().resolve_attribute(attribute.key);
    let value = attribute.normalized_value(XmlVersion::Explicit1_0).map_err(ParseError::of)?;
    element.put_attr(read_ns(space)?, name.into_inner().to_owned().into(), value.into_owned().into());
    Ok(())
}

/// quick-xml gives the namespace as it was written; known ones become static.
fn read_ns(space: ResolveResult<'_>) -> Result<Name, ParseError> {
    match space {
        ResolveResult::Unbound => Ok("".into()),
        ResolveResult::Bound(Namespace(uri)) => Ok(ns::known(&crate::check::decode(uri))),
        ResolveResult::Unknown(prefix) => Err(ParseError(format!("unbound prefix {prefix:?}"))),
    }
}

/// XML 1.0 §4.6: the five predefined entities; §4.1: character references.
fn resolve(reference: &BytesRef<'_>) -> Result<Cow<'static, str>, ParseError> {
    if let Some(char) = reference.resolve_char_ref().map_err(ParseError::of)? {
        return Ok(char.to_string().into());
    }
    quick_xml::escape::resolve_predefined_entity(reference)
        .map(Cow::Borrowed)
        .ok_or_else(|| ParseError("unknown entity".into()))
}

impl ParseError {
    fn of(error: impl std::fmt::Display) -> ParseError {
        ParseError(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(xml: &str) -> Element {
        Element::parse(xml.as_bytes(), ns::CLIENT).unwrap_or_else(|error| panic!("{xml}: {error}"))
    }

    #[test]
    fn namespaces_are_declared_where_they_change() {
        let iq =
            Element::new(ns::CLIENT, "x").child(Element::new(ns::PING, "ping").child(Element::new(ns::PING, "in")));
        assert_eq!(iq.to_xml(ns::CLIENT), "<x><ping xmlns='urn:xmpp:ping'><in/></ping></x>");
        assert_eq!(parse(&iq.to_xml(ns::CLIENT)), iq);
        assert_eq!(parse("<p:ping xmlns:p='urn:xmpp:ping'><p:in/></p:ping>").to_xml(ns::PING), "<ping><in/></ping>");
    }

    #[test]
    fn attributes_and_text_are_escaped() {
        let element = Element::new("urn:x", "a")
            .attr("q", "'\"<&\n")
            .attr("xml:lang", "de")
            .attr_ns("urn:y", "b", "c")
            .text("1 < 2\r\n");
        let xml = element.to_xml("");
        assert_eq!(
            xml,
            "<a xmlns='urn:x' q='&apos;&quot;&lt;&amp;&#10;' xml:lang='de' xmlns:a2='urn:y' a2:b='c'>1 &lt; 2&#13;\n</a>"
        );
        assert_eq!(parse(&xml), element);
        assert_eq!(element.get_attr("xml:lang"), Some("de"));
        assert_eq!(element.get_attr_ns("urn:y", "b"), Some("c"));
    }

    #[test]
    fn entities_and_cdata_become_text() {
        assert_eq!(parse("<b>a&amp;b&#x41;<![CDATA[<c>]]></b>").text_content(), "a&bA<c>");
        assert_eq!(parse("<b a='x\n y&#10;'/>").get_attr("a"), Some("x  y\n"));
    }

    #[test]
    fn what_is_not_one_element_is_refused() {
        for xml in ["", "text", "<a>", "<a/><b/>", "<!-- c --><a/>", "<a>&nbsp;</a>", "<p:a/>", "<?pi?><a/>"] {
            assert!(Element::parse(xml.as_bytes(), "").is_err(), "{xml}");
        }
    }

    #[test]
    fn control_characters_can_not_be_written() {
        assert_eq!(Element::new("", "a").text("\u{0}\u{b}\u{ffff}ok").to_xml(""), "<a>\u{fffd}\u{fffd}\u{fffd}ok</a>");
    }

    proptest! {
        #[test]
        fn any_text_survives_the_wire(text in "[\\t\\n\\r -\u{d7ff}\u{e000}-\u{fffd}]{0,20}", value in "[\\t\\n\\r -\u{d7ff}]{0,20}") {
            let element = Element::new("urn:x", "a").attr("v", value).text(text);
            prop_assert_eq!(parse(&element.to_xml("")), element);
        }
    }
}
