//! What a stream is wrapped in, apart from what is said in it: the stream of RFC 6120 §4, WebSocket messages (RFC 7395),
//! a component's stream (XEP-0114).
//!
//! Negotiation and sessions write top-level elements one after the other, in the form of the stream; header, features,
//! errors and the end are written here. For WebSockets [`Framing::messages`] cuts what was written into messages, so
//! that a stanza is written once for all its receivers, whatever they came over.

use std::borrow::Cow;

use super::{CLOSE, Open};
use crate::element::Element;
use crate::element::write_attr;
use crate::error::StreamError;
use crate::framing::{Frame, Framer, Limits};
use crate::ns;

/// How a stream's parts are told apart on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// `<stream:stream>` around everything, RFC 6120 §4.
    #[default]
    Stream,
    /// Messages of one element each, between `<open/>` and `<close/>`, RFC 7395 §3.3.
    WebSocket,
    /// `<stream:stream>` of an external component, XEP-0114 §3.
    Component,
}

impl Framing {
    /// The namespace that stanzas have without declaring one.
    pub(crate) fn content(self) -> &'static str {
        match self {
            Framing::Stream | Framing::WebSocket => ns::CLIENT,
            Framing::Component => ns::COMPONENT,
        }
    }

    /// Appends our header.
    pub fn write_open(self, open: &Open<'_>, out: &mut Vec<u8>) {
        match self {
            Framing::Stream | Framing::Component => {
                out.extend_from_slice(b"<?xml version='1.0'?><stream:stream");
                write_attr(out, "xmlns", self.content());
                write_attr(out, "xmlns:stream", ns::STREAM);
            }
            Framing::WebSocket => {
                out.extend_from_slice(b"<open");
                write_attr(out, "xmlns", ns::FRAMING);
            }
        }
        for (name, value) in [("from", open.from), ("to", open.to), ("id", open.id)] {
            if let Some(value) = value {
                write_attr(out, name, value);
            }
        }
        out.extend_from_slice(match self {
            Framing::Stream => b" version='1.0' xml:lang='en'>",
            Framing::WebSocket => b" version='1.0' xml:lang='en'/>",
            // XEP-0114 §3: it is older than versions.
            Framing::Component => b">",
        });
    }

    /// Appends what is offered (RFC 6120 §4.3.2).
    pub fn write_features(self, list: &[Element], out: &mut Vec<u8>) {
        self.write_prefixed("features", list, out);
    }

    /// Appends a stream error and the end of the stream, RFC 6120 §4.9.1.1, RFC 7395 §3.5. Our header must have been sent.
    pub fn write_error(self, error: &StreamError, out: &mut Vec<u8>) {
        let element = error.to_element();
        let parts: Vec<Element> = element.elements().cloned().collect();
        self.write_prefixed("error", &parts, out);
        self.write_close(out);
    }

    /// Appends the end of the stream, RFC 6120 §4.4, RFC 7395 §3.6.
    pub fn write_close(self, out: &mut Vec<u8>) {
        match self {
            Framing::Stream | Framing::Component => out.extend_from_slice(CLOSE),
            Framing::WebSocket => Element::new(ns::FRAMING, "close").write_to(out, ns::CLIENT),
        }
    }

    /// Appends an element of the stream's own namespace; without a header its prefix is declared here (RFC 7395 §3.3.3).
    fn write_prefixed(self, name: &str, children: &[Element], out: &mut Vec<u8>) {
        out.extend_from_slice(b"<stream:");
        out.extend_from_slice(name.as_bytes());
        if self == Framing::WebSocket {
            write_attr(out, "xmlns:stream", ns::STREAM);
        }
        out.push(b'>');
        children.iter().for_each(|child| child.write_to(out, ns::CLIENT));
        out.extend_from_slice(b"</stream:");
        out.extend_from_slice(name.as_bytes());
        out.push(b'>');
    }

    /// What was written, as it goes on the wire: the bytes as they are, or one message an element, each complete in itself
    /// (RFC 7395 §3.3.3).
    pub fn messages(self, written: &[u8]) -> Vec<Cow<'_, [u8]>> {
        if self != Framing::WebSocket {
            return if written.is_empty() { Vec::new() } else { vec![Cow::Borrowed(written)] };
        }
        let limits = Limits { stanza: usize::MAX, depth: usize::MAX - 1, attributes: usize::MAX };
        let (mut framer, mut rest, mut messages) = (Framer::inside(&limits), written, Vec::new());
        loop {
            let before = rest;
            // Only we wrote this, so it is elements and nothing else; were it not, what follows is left out.
            let Ok(Some(Frame::Element(_))) = framer.next(&mut rest) else { return messages };
            messages.push(complete(&before[..before.len() - rest.len()]));
        }
    }
}

/// One element with its namespace. Whatever we write declares it first, or not at all.
fn complete(element: &[u8]) -> Cow<'_, [u8]> {
    let name_end = element.iter().position(|byte| matches!(byte, b' ' | b'/' | b'>')).unwrap_or(element.len());
    let (name, rest) = element.split_at(name_end);
    if name.contains(&b':') || rest.starts_with(b" xmlns='") {
        return Cow::Borrowed(element);
    }
    let mut complete = name.to_vec();
    write_attr(&mut complete, "xmlns", ns::CLIENT);
    complete.extend_from_slice(rest);
    Cow::Owned(complete)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StreamCondition;
    use crate::ingress::{Incoming, Ingress};
    use crate::stanza::{Head, MessageType, Stanza};
    use proptest::prelude::*;

    fn text(framing: Framing, written: &[u8]) -> Vec<String> {
        framing.messages(written).iter().map(|message| String::from_utf8(message.to_vec()).unwrap()).collect()
    }

    #[test]
    fn each_element_becomes_a_message_that_declares_its_namespace() {
        let mut out = b"<message id=' xmlns='><body>a<b/></body></message><r xmlns='urn:xmpp:sm:3'/>".to_vec();
        Framing::WebSocket.write_features(&[Element::new(ns::SM, "sm")], &mut out);
        let error = StreamError::new(StreamCondition::Conflict);
        Framing::WebSocket.write_error(&error, &mut out);
        out.splice(0..0, *b"<presence/>");
        assert_eq!(
            text(Framing::WebSocket, &out),
            [
                "<presence xmlns='jabber:client'/>",
                "<message xmlns='jabber:client' id=' xmlns='><body>a<b/></body></message>",
                "<r xmlns='urn:xmpp:sm:3'/>",
                "<stream:features xmlns:stream='http://etherx.jabber.org/streams'><sm xmlns='urn:xmpp:sm:3'/></stream:features>",
                "<stream:error xmlns:stream='http://etherx.jabber.org/streams'><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>",
                "<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>",
            ]
        );
        assert_eq!(text(Framing::Stream, b"<a/><b/>"), ["<a/><b/>"]);
        assert!(Framing::Stream.messages(b"").is_empty() && Framing::WebSocket.messages(b"").is_empty());
    }

    fn read(framing: Framing, messages: &[&str]) -> Vec<String> {
        let mut ingress = Ingress::framed(framing, Limits::default());
        let mut seen = Vec::new();
        for message in messages {
            let mut input = message.as_bytes();
            loop {
                match ingress.next(&mut input) {
                    Ok(Some(Incoming::Header(header))) => seen.push(format!("to {:?}", header.to.as_deref())),
                    Ok(Some(Incoming::Stanza(stanza))) => seen.push(stanza.body().unwrap_or_default()),
                    Ok(Some(Incoming::Element(element))) => seen.push(element.name().to_owned()),
                    Ok(Some(Incoming::Refused(_))) => seen.push("refused".into()),
                    Ok(Some(Incoming::Close)) => seen.push("end".into()),
                    Ok(None) => break,
                    Err(error) => {
                        seen.push(error.condition.name().into());
                        return seen;
                    }
                }
            }
        }
        seen
    }

    #[test]
    fn messages_of_a_websocket_are_one_complete_element_each() {
        let open = "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='tavi.example' version='1.0'/>";
        let good = [
            open,
            "<message xmlns='jabber:client'><body>Hi</body></message>",
            "<c:message xmlns:c='jabber:client'><c:body>there</c:body></c:message>",
            "<r xmlns='urn:xmpp:sm:3'/>",
            "<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>",
        ];
        assert_eq!(read(Framing::WebSocket, &good), ["to Some(\"tavi.example\")", "Hi", "there", "r", "end"]);
        for (wrong, condition) in [
            ("<message><body>x</body></message>", "invalid-namespace"),
            (" <presence xmlns='jabber:client'/>", "bad-format"),
            ("<presence xmlns='jabber:client'/><presence xmlns='jabber:client'/>", "not-well-formed"),
            ("<presence xmlns='jabber:client'>", "not-well-formed"),
            ("<?xml version='1.0'?><presence xmlns='jabber:client'/>", "bad-format"),
            ("<stream:features/>", "not-well-formed"),
            ("\u{0}", "bad-format"),
        ] {
            assert_eq!(read(Framing::WebSocket, &[wrong]), [condition], "{wrong}");
        }
        let long = format!("<a xmlns='urn:a'>{}</a>", "x".repeat(300 * 1024));
        assert_eq!(read(Framing::WebSocket, &[&long]), ["policy-violation"]);
        let stream = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";
        assert_eq!(read(Framing::WebSocket, &[stream]), ["not-well-formed"], "RFC 7395 §3.3.2: it is no <open/>");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_over_a_websocket(said in prop::collection::vec(("[ -~]{0,12}", "[ -~é\\n]{0,20}"), 0..6)) {
            let mut out = Vec::new();
            for (id, body) in &said {
                let body = Element::new(ns::CLIENT, "body").text(body.clone());
                Stanza::new(Head::message(MessageType::Chat).id(id), [body]).write(&mut out);
                out.extend_from_slice(b"<r xmlns='urn:xmpp:sm:3'/>");
            }
            let messages = text(Framing::WebSocket, &out);
            let read = read(Framing::WebSocket, &messages.iter().map(String::as_str).collect::<Vec<_>>());
            let wanted: Vec<_> = said.into_iter().flat_map(|(_, body)| [body, "r".into()]).collect();
            prop_assert_eq!(read, wanted);
        }

        #[test]
        fn no_message_panics(message in "(<open|<iq|<c:a| xmlns='jabber:client'| xmlns:c='u'|/>|>|</iq>|[<>/a'\"!\\[\\]&; -]|\u{0}|é){0,20}") {
            read(Framing::WebSocket, &[&message]);
        }
    }

    #[test]
    fn a_component_s_stream_has_a_namespace_of_its_own() {
        let mut out = Vec::new();
        Framing::Component.write_open(&Open { from: Some("a.tavi.example"), to: None, id: Some("7") }, &mut out);
        let header = "<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' \
            xmlns:stream='http://etherx.jabber.org/streams' from='a.tavi.example' id='7'>";
        assert_eq!(text(Framing::Component, &out), [header]);
        let theirs = header.replace("from=", "to=");
        let stream = [&*theirs, "<handshake>ab</handshake><message><body>Hi</body></message></stream:stream>"];
        assert_eq!(read(Framing::Component, &stream), ["to Some(\"a.tavi.example\")", "handshake", "Hi", "end"]);
        assert_eq!(read(Framing::Stream, &[&theirs]), ["invalid-namespace"]);
        assert_eq!(
            read(Framing::Stream, &[&theirs.replace("component:accept", "client"), "<handshake/>"])[1],
            "unsupported-stanza-type"
        );
    }
}
