//! The validating pass over one frame: well-formed XML 1.0, namespaces and the restrictions of RFC 6120 §11.
//!
//! Raw bytes are forwarded to other clients, so what this pass lets through must be right for every parser. It
//! allocates nothing for ordinary stanzas.

use std::borrow::Cow;
use std::ops::Range;

use smallvec::SmallVec;

use crate::error::{StreamCondition, StreamError};
use crate::framing::Limits;
use crate::{names, ns};

/// One attribute as written; `value` is between the quotes, still escaped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawAttr<'a> {
    pub prefix: &'a str,
    pub local: &'a str,
    pub value: &'a str,
}

/// A start tag.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tag<'a> {
    pub prefix: &'a str,
    pub local: &'a str,
    /// Where the qualified name ends.
    pub name_end: usize,
    empty: bool,
}

/// A prefix in scope; `prefix` is empty for the default namespace.
#[derive(Debug, Clone)]
pub(crate) struct Binding<'a> {
    pub prefix: &'a str,
    pub uri: Cow<'a, str>,
    /// How deep the element that declares it lies: 0 outside the frame, 1 its root, …
    depth: usize,
}

/// A direct child of the root.
#[derive(Debug, Clone)]
pub(crate) struct Found<'a> {
    pub local: &'a str,
    pub ns: Cow<'a, str>,
    pub range: Range<usize>,
    /// Where declarations can be put in: behind its name.
    pub name_end: usize,
    /// Whether its start tag declares the default namespace.
    pub declares_default: bool,
}

/// What the pass learnt about a frame.
#[derive(Debug)]
pub(crate) struct Checked<'a> {
    pub tag: Tag<'a>,
    pub ns: Cow<'a, str>,
    pub attrs: SmallVec<[RawAttr<'a>; 8]>,
    /// Between the root's start and end tag.
    pub inner: Range<usize>,
    pub children: SmallVec<[Found<'a>; 4]>,
    pub bindings: SmallVec<[Binding<'a>; 6]>,
    /// Pairs (child, binding): prefixes used in a child that are declared outside it.
    pub borrowed: SmallVec<[(usize, usize); 2]>,
    /// The same for the root: bindings from outside the frame used anywhere in it.
    pub outside: SmallVec<[usize; 2]>,
}

/// Checks one complete element. `outer` are the prefixes that the stream header declared.
pub(crate) fn element<'a>(
    frame: &'a [u8],
    outer: &'a [(Box<str>, Box<str>)],
    limits: &Limits,
) -> Result<Checked<'a>, StreamError> {
    let mut pass = Pass::new(utf8(frame)?, outer, limits);
    let checked = pass.root()?;
    pass.at_end()?;
    Ok(checked)
}

/// Checks a stream header: a start tag alone. Gives the tag, its namespace, attributes and declarations.
pub(crate) fn header<'a>(frame: &'a [u8], limits: &Limits) -> Result<Checked<'a>, StreamError> {
    let mut pass = Pass::new(utf8(frame)?, &[], limits);
    pass.take_byte(b'<')?;
    let tag = pass.start_tag()?;
    pass.at_end()?;
    Ok(pass.finish(tag, frame.len()..frame.len()))
}

/// The name in an end tag that has no start tag in the frame.
pub(crate) fn end_tag(frame: &[u8]) -> Result<&str, StreamError> {
    let mut pass = Pass::new(utf8(frame)?, &[], &Limits::BEFORE_LOGIN);
    pass.take(b"</")?;
    let name = pass.qualified_name()?;
    pass.white_space();
    pass.take_byte(b'>')?;
    pass.at_end()?;
    Ok(&pass.text[name.0..name.2])
}

/// The attributes of `<?xml …?>`, XML 1.0 §2.8.
pub(crate) fn declaration(frame: &[u8]) -> Result<SmallVec<[RawAttr<'_>; 8]>, StreamError> {
    let mut pass = Pass::new(utf8(frame)?, &[], &Limits::BEFORE_LOGIN);
    pass.take(b"<?xml")?;
    while pass.attribute()? {}
    pass.take(b"?>")?;
    pass.at_end()?;
    Ok(pass.attrs)
}

/// Undoes references and white space in an attribute value that passed the check (XML 1.0 §3.3.3).
pub(crate) fn decode(value: &str) -> Cow<'_, str> {
    if !value.bytes().any(|byte| matches!(byte, b'&' | b'\t' | b'\n' | b'\r')) {
        return Cow::Borrowed(value);
    }
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find(['&', '\t', '\n', '\r']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (char, len) = match rest.as_bytes() {
            [b'&', ..] => reference(rest).unwrap_or(('\u{fffd}', 1)),
            // XML 1.0 §2.11: CR LF is one line end.
            [b'\r', b'\n', ..] => (' ', 2),
            _ => (' ', 1),
        };
        out.push(char);
        rest = &rest[len..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Reads the reference at the start of `text`: its character and its length in octets.
fn reference(text: &str) -> Result<(char, usize), StreamError> {
    // The longest legal reference, with some leading zeros.
    let window = &text.as_bytes()[..text.len().min(16)];
    let end = memchr::memchr(b';', window).ok_or(StreamCondition::NotWellFormed)?;
    let name = &text[1..end];
    let char = match name {
        "lt" => '<',
        "gt" => '>',
        "amp" => '&',
        "apos" => '\'',
        "quot" => '"',
        _ => char_reference(name)?,
    };
    Ok((char, end + 1))
}

/// XML 1.0 §4.1. Other entities are restricted (RFC 6120 §11.1).
fn char_reference(name: &str) -> Result<char, StreamError> {
    let digits = name.strip_prefix('#').ok_or(StreamCondition::RestrictedXml)?;
    let (digits, radix) = match digits.strip_prefix('x') {
        Some(digits) => (digits, 16),
        None => (digits, 10),
    };
    // from_str_radix would take a sign.
    let plain = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    let code = u32::from_str_radix(digits, radix).ok().filter(|_| plain);
    code.and_then(char::from_u32).filter(|c| is_xml_char(*c)).ok_or_else(malformed)
}

/// XML 1.0 §2.2, Char.
fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Direct children of a stanza. Each costs an index entry of ten times the shortest child's octets.
const MAX_CHILDREN: usize = 256;
/// Namespace declarations in scope at the same place; each prefix is looked up among them.
const MAX_BINDINGS: usize = 64;

const TEXT_STOP: u8 = 1;
const VALUE_STOP: u8 = 2;
const NAME_START: u8 = 4;
const NAME_CHAR: u8 = 8;

/// What each octet means, so that scanning is one look-up an octet.
const CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        table[at] = match byte {
            b'\t' | b'\n' | b'\r' => 0,
            0..0x20 => TEXT_STOP | VALUE_STOP,
            b'<' | b'&' => TEXT_STOP | VALUE_STOP,
            b']' => TEXT_STOP,
            b'"' | b'\'' => VALUE_STOP,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => NAME_START | NAME_CHAR,
            b'0'..=b'9' | b'-' | b'.' => NAME_CHAR,
            // U+FFFE and U+FFFF begin so.
            0xEF => TEXT_STOP | VALUE_STOP,
            _ => 0,
        };
        at += 1;
    }
    table
}

/// The state of the pass. All positions are octets of the frame and lie on character boundaries.
struct Pass<'a> {
    text: &'a str,
    at: usize,
    limits: Limits,
    /// Qualified names of the open elements.
    open: SmallVec<[(usize, usize); 16]>,
    attrs: SmallVec<[RawAttr<'a>; 8]>,
    bindings: SmallVec<[Binding<'a>; 6]>,
    children: SmallVec<[Found<'a>; 4]>,
    borrowed: SmallVec<[(usize, usize); 2]>,
    outside: SmallVec<[usize; 2]>,
    declared_default: bool,
}

/// RFC 6120 §4.9.3.22: a violation of UTF-8 is an unsupported encoding.
fn utf8(frame: &[u8]) -> Result<&str, StreamError> {
    std::str::from_utf8(frame).map_err(|_| StreamCondition::UnsupportedEncoding.into())
}

/// RFC 6120 §13.12: a limit is passed.
#[cold]
fn excess(what: &'static str) -> StreamError {
    StreamError::new(StreamCondition::PolicyViolation).text(what)
}

#[cold]
fn malformed() -> StreamError {
    StreamCondition::NotWellFormed.into()
}

impl<'a> Pass<'a> {
    // Inlined, like the other two that make or move large values once a stanza.
    #[inline(always)]
    fn new(text: &'a str, outer: &'a [(Box<str>, Box<str>)], limits: &Limits) -> Pass<'a> {
        let outer = outer.iter().map(|(prefix, uri)| Binding { prefix, uri: Cow::Borrowed(uri), depth: 0 });
        Pass {
            text,
            at: 0,
            limits: *limits,
            open: SmallVec::new(),
            attrs: SmallVec::new(),
            bindings: outer.collect(),
            children: SmallVec::new(),
            borrowed: SmallVec::new(),
            outside: SmallVec::new(),
            declared_default: false,
        }
    }

    #[inline(always)]
    fn root(&mut self) -> Result<Checked<'a>, StreamError> {
        self.take_byte(b'<')?;
        let tag = self.start_tag()?;
        let start = self.at;
        // The root's attributes and namespace must not be overwritten by its children's.
        let attrs = std::mem::take(&mut self.attrs);
        let ns = self.element_namespace(tag.prefix)?;
        let inner = start..if tag.empty { start } else { self.content()? };
        let mut checked = self.finish(tag, inner);
        (checked.attrs, checked.ns) = (attrs, ns);
        Ok(checked)
    }

    #[inline(always)]
    fn finish(&mut self, tag: Tag<'a>, inner: Range<usize>) -> Checked<'a> {
        Checked {
            tag,
            ns: self.element_namespace(tag.prefix).unwrap_or_default(),
            attrs: std::mem::take(&mut self.attrs),
            inner,
            children: std::mem::take(&mut self.children),
            bindings: std::mem::take(&mut self.bindings),
            borrowed: std::mem::take(&mut self.borrowed),
            outside: std::mem::take(&mut self.outside),
        }
    }

    /// Everything up to the root's end tag; gives where that begins.
    fn content(&mut self) -> Result<usize, StreamError> {
        loop {
            self.character_data()?;
            let start = self.at;
            self.take_byte(b'<')?;
            match self.peek() {
                Some(b'/') => {
                    self.close()?;
                    if self.open.is_empty() {
                        return Ok(start);
                    }
                }
                Some(b'!') => self.cdata()?,
                Some(b'?') => return Err(StreamCondition::RestrictedXml.into()),
                _ => self.child(start)?,
            }
        }
    }

    /// A start tag inside the root, its `<` at `start`.
    fn child(&mut self, start: usize) -> Result<(), StreamError> {
        let is_direct = self.open.len() == 1;
        if is_direct {
            if self.children.len() >= MAX_CHILDREN {
                return Err(excess("too many elements in one stanza"));
            }
            let nothing =
                Found { local: "", ns: Cow::Borrowed(""), range: start..start, name_end: 0, declares_default: false };
            self.children.push(nothing);
        }
        let tag = self.start_tag()?;
        if is_direct {
            let ns = self.element_namespace(tag.prefix)?;
            self.found(tag, ns);
        }
        if tag.empty {
            self.closed(self.open.len() + 1);
        }
        Ok(())
    }

    fn found(&mut self, tag: Tag<'a>, ns: Cow<'a, str>) {
        let declares_default = self.declared_default;
        if let Some(child) = self.children.last_mut() {
            (child.local, child.ns, child.name_end) = (tag.local, ns, tag.name_end);
            child.declares_default = declares_default;
        }
    }

    /// The element at `depth` ended: its declarations go, and a direct child is complete.
    fn closed(&mut self, depth: usize) {
        if depth > 1 {
            while self.bindings.last().is_some_and(|binding| binding.depth >= depth) {
                self.bindings.pop();
            }
        }
        if depth == 2
            && let Some(child) = self.children.last_mut()
        {
            child.range.end = self.at;
        }
    }

    /// XML 1.0 §3.1: the name, then attributes. The `<` was taken.
    fn start_tag(&mut self) -> Result<Tag<'a>, StreamError> {
        self.attrs.clear();
        self.declared_default = false;
        let (start, colon, end) = self.qualified_name()?;
        while self.attribute()? {}
        let empty = self.peek() == Some(b'/');
        if empty {
            self.at += 1;
        }
        self.take_byte(b'>')?;
        let depth = self.open.len() + 1;
        if depth > self.limits.depth {
            return Err(excess("elements are nested too deep"));
        }
        self.declare(depth)?;
        let (prefix, local) = split_name(&self.text[start..end], colon - start);
        self.check_names(prefix)?;
        if !empty {
            self.open.push((start, end));
        }
        Ok(Tag { prefix, local, name_end: end, empty })
    }

    /// White space and one attribute; false when the tag has no more.
    fn attribute(&mut self) -> Result<bool, StreamError> {
        let spaces = self.white_space();
        if !matches!(self.peek(), Some(byte) if CLASS[byte as usize] & NAME_START != 0 || byte >= 0x80) {
            return Ok(false);
        }
        if !spaces {
            return Err(malformed());
        }
        let (start, colon, end) = self.qualified_name()?;
        self.white_space();
        self.take_byte(b'=')?;
        self.white_space();
        let value = self.value()?;
        let (prefix, local) = split_name(&self.text[start..end], colon - start);
        if self.attrs.len() >= self.limits.attributes {
            return Err(excess("too many attributes"));
        }
        self.attrs.push(RawAttr { prefix, local, value });
        Ok(true)
    }

    /// XML 1.0 §2.3, AttValue: legal characters, no `<`, known references.
    fn value(&mut self) -> Result<&'a str, StreamError> {
        let quote = self.peek().filter(|byte| matches!(byte, b'"' | b'\'')).ok_or_else(malformed)?;
        self.at += 1;
        let start = self.at;
        loop {
            match self.run(VALUE_STOP)? {
                byte if byte == quote => {
                    self.at += 1;
                    return Ok(&self.text[start..self.at - 1]);
                }
                b'"' | b'\'' => self.at += 1,
                b'<' => return Err(malformed()),
                byte => self.special(byte)?,
            }
        }
    }

    /// XML 1.0 §2.4: up to the next `<`, without `]]>`.
    fn character_data(&mut self) -> Result<(), StreamError> {
        loop {
            match self.run(TEXT_STOP)? {
                b'<' => return Ok(()),
                b']' if self.text[self.at..].starts_with("]]>") => return Err(malformed()),
                b']' => self.at += 1,
                byte => self.special(byte)?,
            }
        }
    }

    /// XML 1.0 §2.7. The `<` was taken; a comment or DTD is restricted (RFC 6120 §11.1).
    fn cdata(&mut self) -> Result<(), StreamError> {
        let rest = &self.text[self.at..];
        let body = rest.strip_prefix("![CDATA[").ok_or(StreamCondition::RestrictedXml)?;
        let end = memchr::memmem::find(body.as_bytes(), b"]]>").ok_or_else(malformed)?;
        if !body[..end].chars().all(is_xml_char) {
            return Err(malformed());
        }
        self.at += "![CDATA[".len() + end + "]]>".len();
        Ok(())
    }

    /// Skips octets that do not stop `class`; gives the one that does. The frame must not end before.
    fn run(&mut self, class: u8) -> Result<u8, StreamError> {
        let rest = &self.text.as_bytes()[self.at..];
        let len = rest.iter().position(|&byte| CLASS[byte as usize] & class != 0).ok_or_else(malformed)?;
        self.at += len;
        Ok(rest[len])
    }

    /// Octets that need a closer look in text and in values: references, the end of the BMP, controls.
    fn special(&mut self, byte: u8) -> Result<(), StreamError> {
        let rest = &self.text[self.at..];
        self.at += match byte {
            b'&' => reference(rest)?.1,
            0xEF if !rest.starts_with(['\u{fffe}', '\u{ffff}']) => 3,
            _ => return Err(malformed()),
        };
        Ok(())
    }

    /// An end tag must name the element that is open. The `<` was taken.
    fn close(&mut self) -> Result<(), StreamError> {
        let (start, end) = self.open.pop().ok_or_else(malformed)?;
        self.take_byte(b'/')?;
        self.take(&self.text.as_bytes()[start..end])?;
        self.white_space();
        self.take_byte(b'>')?;
        self.closed(self.open.len() + 1);
        Ok(())
    }

    /// A name with at most one colon: where it starts, its colon (or its start) and its end.
    fn qualified_name(&mut self) -> Result<(usize, usize, usize), StreamError> {
        let start = self.at;
        self.name_part()?;
        if self.peek() != Some(b':') {
            return Ok((start, start, self.at));
        }
        let colon = self.at;
        self.at += 1;
        self.name_part()?;
        Ok((start, colon, self.at))
    }

    /// Namespaces in XML 1.0 §3, NCName.
    fn name_part(&mut self) -> Result<(), StreamError> {
        match self.peek().ok_or_else(malformed)? {
            byte if CLASS[byte as usize] & NAME_START != 0 => self.at += 1,
            0x80.. => self.wide_name_char(names::is_letter)?,
            _ => return Err(malformed()),
        }
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            self.at += rest.iter().position(|&byte| CLASS[byte as usize] & NAME_CHAR == 0).unwrap_or(rest.len());
            match self.peek() {
                Some(0x80..) => self.wide_name_char(names::is_name_char)?,
                _ => return Ok(()),
            }
        }
    }

    fn wide_name_char(&mut self, legal: fn(char) -> bool) -> Result<(), StreamError> {
        let char = self.text[self.at..].chars().next().filter(|c| legal(*c)).ok_or_else(malformed)?;
        self.at += char.len_utf8();
        Ok(())
    }

    /// Takes the namespace declarations of the tag that was just read into scope.
    fn declare(&mut self, depth: usize) -> Result<(), StreamError> {
        for at in 0..self.attrs.len() {
            let attr = self.attrs[at];
            let prefix = match (attr.prefix, attr.local) {
                ("", "xmlns") => "",
                ("xmlns", local) => local,
                _ => continue,
            };
            let uri = decode(attr.value);
            check_declaration(prefix, &uri)?;
            if self.bindings.len() >= MAX_BINDINGS {
                return Err(excess("too many namespace declarations"));
            }
            self.declared_default |= prefix.is_empty();
            self.bindings.push(Binding { prefix, uri, depth });
        }
        Ok(())
    }

    /// Every prefix of the tag is bound, and no attribute is there twice (Namespaces in XML 1.0 §5 and §6.3).
    fn check_names(&mut self, element_prefix: &str) -> Result<(), StreamError> {
        if element_prefix == "xmlns" {
            return Err(malformed());
        }
        self.use_prefix(element_prefix)?;
        for at in 0..self.attrs.len() {
            let attr = self.attrs[at];
            if attr.prefix != "xmlns" {
                self.use_prefix(attr.prefix)?;
            }
            if self.attrs[..at].iter().any(|before| before.local == attr.local && self.same_namespace(before, &attr)) {
                return Err(malformed());
            }
        }
        Ok(())
    }

    fn same_namespace(&self, one: &RawAttr<'_>, other: &RawAttr<'_>) -> bool {
        one.prefix == other.prefix
            || !one.prefix.is_empty() && !other.prefix.is_empty() && self.uri(one.prefix) == self.uri(other.prefix)
    }

    fn uri(&self, prefix: &str) -> Option<&str> {
        match prefix {
            "xml" => Some(ns::XML),
            "xmlns" => Some(ns::XMLNS),
            _ => self.bindings.iter().rfind(|binding| binding.prefix == prefix).map(|binding| &*binding.uri),
        }
    }

    /// Notes where a prefix comes from, so that a child can be made complete in itself.
    fn use_prefix(&mut self, prefix: &str) -> Result<(), StreamError> {
        if prefix.is_empty() || prefix == "xml" {
            return Ok(());
        }
        let from = self.bindings.iter().rposition(|binding| binding.prefix == prefix).ok_or_else(malformed)?;
        let depth = self.bindings[from].depth;
        if depth == 0 && !self.outside.contains(&from) {
            self.outside.push(from);
        }
        if let Some(child) = self.children.len().checked_sub(1).filter(|_| depth < 2) {
            // Those of this child are the last ones.
            let mut known = self.borrowed.iter().rev().take_while(|(of, _)| *of == child);
            if !known.any(|(_, binding)| *binding == from) {
                self.borrowed.push((child, from));
            }
        }
        Ok(())
    }

    /// The namespace of an element with this prefix; without any declaration it is the stream's.
    fn element_namespace(&self, prefix: &str) -> Result<Cow<'a, str>, StreamError> {
        if prefix == "xml" {
            return Ok(Cow::Borrowed(ns::XML));
        }
        match self.bindings.iter().rfind(|binding| binding.prefix == prefix) {
            Some(binding) => Ok(binding.uri.clone()),
            None if prefix.is_empty() => Ok(Cow::Borrowed(ns::CLIENT)),
            None => Err(malformed()),
        }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[inline]
    fn take_byte(&mut self, expected: u8) -> Result<(), StreamError> {
        if self.peek() != Some(expected) {
            return Err(malformed());
        }
        self.at += 1;
        Ok(())
    }

    fn take(&mut self, expected: &[u8]) -> Result<(), StreamError> {
        if !self.text.as_bytes()[self.at..].starts_with(expected) {
            return Err(malformed());
        }
        self.at += expected.len();
        Ok(())
    }

    /// Skips white space; whether there was any.
    fn white_space(&mut self) -> bool {
        let start = self.at;
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        self.at > start
    }

    fn at_end(&self) -> Result<(), StreamError> {
        if self.at == self.text.len() { Ok(()) } else { Err(malformed()) }
    }
}

/// `colon` is 0 for a name without a prefix.
fn split_name(name: &str, colon: usize) -> (&str, &str) {
    if colon == 0 { ("", name) } else { (&name[..colon], &name[colon + 1..]) }
}

/// Namespaces in XML 1.0 §3: the reserved prefixes, and a prefix can not be undeclared.
fn check_declaration(prefix: &str, uri: &str) -> Result<(), StreamError> {
    let legal = match prefix {
        "xmlns" => false,
        "xml" => uri == ns::XML,
        "" => uri != ns::XML && uri != ns::XMLNS,
        _ => !uri.is_empty() && uri != ns::XML && uri != ns::XMLNS,
    };
    if legal { Ok(()) } else { Err(malformed()) }
}
