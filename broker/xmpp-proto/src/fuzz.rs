//! Bodies of the fuzz targets, also run as property tests: ingress against a strict parser, and JIDs.

use rxml::error::EndOrError;
use rxml::parser::{Options, WithOptions};
use rxml::{Event, Parse, Parser};

use crate::element::{Element, Node};
use crate::framing::Limits;
use crate::ingress::{Incoming, Ingress};
use crate::jid::Jid;
use crate::stanza::{Head, Stanza};

const HEADER: &[u8] =
    b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' xmlns:p='urn:p' version='1.0'>";

/// Feeds bytes to ingress. Panics when it accepts what the strict parser refuses or reads otherwise, when a split
/// changes anything, or when a stanza does not survive being written. The first octet says whether a stream header
/// is put in front of the rest.
pub fn fuzz_ingress(data: &[u8]) {
    let Some((&selector, rest)) = data.split_first() else { return };
    let header = if selector & 1 == 1 { HEADER } else { b"" };
    let stream = [header, rest].concat();
    let (whole, consumed) = run(&stream, stream.len().max(1));
    let pieces = 1 + (selector >> 1) as usize % 7;
    assert_eq!(format!("{whole:?}"), format!("{:?}", run(&stream, pieces).0), "a split changes the outcome");
    compare(&whole, &stream[..consumed]);
}

/// Parses a text as a JID. Panics when what comes out is not its own normal form.
pub fn fuzz_jid(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(jid) = Jid::parse(text) else { return };
    let again = Jid::parse(jid.as_str());
    assert_eq!(again.as_ref(), Ok(&jid), "{text:?}");
    let parts = (jid.local(), jid.domain(), jid.resource());
    assert_eq!(Jid::from_parts(parts.0, parts.1, parts.2).as_ref(), Ok(&jid), "{text:?}");
    assert_eq!(jid.to_bare().as_str(), jid.bare());
}

/// What ingress gives for bytes that come in pieces; the last entry may be an error. And how many octets of the
/// stream made up what was accepted.
fn run(stream: &[u8], piece: usize) -> (Vec<Result<Incoming, String>>, usize) {
    let mut ingress = Ingress::new(Limits::default());
    let (mut seen, mut accepted, mut fed) = (Vec::new(), 0, 0);
    for part in stream.chunks(piece) {
        fed += part.len();
        let mut input = part;
        loop {
            match ingress.next(&mut input) {
                Ok(Some(incoming)) => {
                    accepted = fed - input.len();
                    let last = matches!(incoming, Incoming::Close);
                    seen.push(Ok(incoming));
                    if last {
                        return (seen, accepted);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    seen.push(Err(error.condition.name().to_owned()));
                    return (seen, accepted);
                }
            }
        }
    }
    (seen, accepted)
}

/// The accepted bytes must give the same elements in the strict parser.
fn compare(ours: &[Result<Incoming, String>], accepted: &[u8]) {
    let theirs = strict(accepted).unwrap_or_else(|error| {
        panic!("the strict parser refuses {:?}: {error}", String::from_utf8_lossy(accepted));
    });
    let elements: Vec<&Incoming> =
        ours.iter().flatten().filter(|incoming| !matches!(incoming, Incoming::Header(_) | Incoming::Close)).collect();
    assert_eq!(elements.len(), theirs.len(), "number of elements in {:?}", String::from_utf8_lossy(accepted));
    for (ours, theirs) in elements.iter().zip(&theirs) {
        match ours {
            Incoming::Stanza(stanza) => same_stanza(stanza, theirs),
            Incoming::Element(element) => assert_eq!(canonical(element), canonical(theirs)),
            _ => {}
        }
    }
}

fn same_stanza(ours: &Stanza, theirs: &Element) {
    same_head(&ours.head, theirs);
    let expected: Vec<String> = theirs.elements().map(canonical).collect();
    // A panic here is what the fuzzer looks for: a child that ingress accepted must parse.
    let parse = |at| ours.parse_child(at).expect("a child that ingress accepted parses");
    let found: Vec<String> = (0..ours.children().len()).map(|at| canonical(&parse(at))).collect();
    assert_eq!(found, expected);
    let names: Vec<_> = ours.children().iter().map(|child| (&*child.ns, &*child.name)).collect();
    assert_eq!(names, theirs.elements().map(|element| (element.ns(), element.name())).collect::<Vec<_>>());
    let written = ours.to_bytes();
    // Again a finding: what we wrote must be read.
    let again = Stanza::parse(&written).expect("a stanza that was written is read back");
    assert_eq!(&again, ours);
    // And the strict parser must take what we forward.
    let forwarded = strict(&[HEADER, &written[..]].concat()).expect("what we forward is well-formed");
    assert_eq!(forwarded[0].elements().map(canonical).collect::<Vec<_>>(), expected, "forwarding changes the children");
}

fn same_head(ours: &Head, theirs: &Element) {
    assert_eq!(ours.kind().name(), theirs.name());
    assert_eq!(ours.id.as_deref(), theirs.get_attr("id"));
    assert_eq!(ours.lang.as_deref(), theirs.get_attr("xml:lang"));
    // Ingress answers other addresses with an error and gives no stanza.
    assert_eq!(ours.to, theirs.get_attr("to").map(|to| Jid::parse(to).expect("ingress refuses other addresses")));
}

/// Text that does not depend on the order of attributes.
fn canonical(element: &Element) -> String {
    let mut attrs: Vec<String> =
        element.attrs().iter().map(|attr| format!("{{{}}}{}={:?}", attr.ns, attr.name, attr.value)).collect();
    attrs.sort();
    let nodes: String = element
        .nodes()
        .iter()
        .map(|node| match node {
            Node::Element(child) => canonical(child),
            Node::Text(text) => format!("{text:?}"),
        })
        .collect();
    format!("<{{{}}}{} {}>{nodes}</>", element.ns(), element.name(), attrs.join(" "))
}

/// The children of the stream as the strict parser sees them.
fn strict(stream: &[u8]) -> Result<Vec<Element>, String> {
    let options = Options { max_token_length: 1 << 20, ..Options::default() };
    let mut parser = Parser::with_options(options);
    // We are lenient with white space before the declaration, and the strict parser refuses a lone CR.
    let stream = crate::ingress::line_ends(stream.trim_ascii_start());
    let mut input = &*stream;
    let (mut open, mut done): (Vec<Element>, Vec<Element>) = (Vec::new(), Vec::new());
    loop {
        match parser.parse(&mut input, false) {
            Ok(Some(event)) => note(event, &mut open, &mut done),
            Ok(None) | Err(EndOrError::NeedMoreData) => return Ok(done),
            Err(EndOrError::Error(error)) => return Err(error.to_string()),
        }
    }
}

fn note(event: Event, open: &mut Vec<Element>, done: &mut Vec<Element>) {
    match event {
        Event::StartElement(_, (ns, name), attrs) => {
            let mut element = Element::new(ns.as_str().to_owned(), name.to_string());
            for ((ns, name), value) in attrs {
                element = element.attr_ns(ns.as_str().to_owned(), name.to_string(), value);
            }
            open.push(element);
        }
        Event::EndElement(_) => end(open, done),
        Event::Text(_, text) if open.len() > 1 => {
            if let Some(parent) = open.pop() {
                open.push(parent.text(text));
            }
        }
        _ => {}
    }
}

fn end(open: &mut Vec<Element>, done: &mut Vec<Element>) {
    let Some(element) = open.pop() else { return };
    match open.len() {
        0 => {}
        1 => done.push(element),
        _ => {
            if let Some(parent) = open.last_mut() {
                parent.push(element);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: &str = "\u{1}<message to='b@x' id='&amp;\"' xml:lang='de'><body a='1' p:b=\"2\">T&#xe4;xt \u{e9}\r\n]] ></body>\
        <p:x xmlns:q='urn:q' q:y='&lt;'><q:z/><![CDATA[<&]]]]></p:x></message> <r xmlns='urn:xmpp:sm:3'/><iq id='1' type='get'><q xmlns='u'/></iq>";

    #[test]
    fn the_sample_is_accepted_whole() {
        let (seen, consumed) = run(&[HEADER, &SAMPLE.as_bytes()[1..]].concat(), 10_000);
        assert_eq!(seen.iter().flatten().count(), 4, "{seen:?}");
        assert_eq!(consumed, HEADER.len() + SAMPLE.len() - 1);
        fuzz_ingress(SAMPLE.as_bytes());
    }

    /// Pieces of XML from which random documents are put together.
    const PIECE: &str = "(<message>|</message>|<message to='a@b'|<iq type='set' id='i'>|</iq>|<presence/>|<a|<a>|</a>|<p:a>|</p:a>|/>|>|<|&|;|&amp;|&#|&#x41;|\
        x|\u{e9}|\u{ffff}| xmlns='u'| xmlns=''| xmlns:p='v'| xmlns:xml='w'| p:b='1'| b='2'| xml:lang=\"e\"|'|\"|=| |\r|\n|\t|\u{0}|\\]|\\]\\]>|<!\\[CDATA\\[|<!--|<\\?xml version='1.0'\\?>|:|\\.|-|7|\u{b7}|\u{300})";

    /// Four hundred cases each, or more when the environment's `PROPTEST_CASES` says so.
    fn config() -> ProptestConfig {
        let config = ProptestConfig::default();
        ProptestConfig { cases: config.cases.max(400), failure_persistence: None, ..config }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn random_documents(selector in any::<u8>(), pieces in prop::collection::vec(PIECE, 0..25)) {
            fuzz_ingress(&[&[selector], pieces.concat().as_bytes()].concat());
        }

        #[test]
        fn a_good_document_with_changes(selector in any::<u8>(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 0..4)) {
            let mut bytes = SAMPLE.as_bytes().to_vec();
            bytes[0] = selector | 1;
            for (at, byte, what) in changes {
                let at = 1 + at.index(bytes.len() - 1);
                match what {
                    0 => bytes[at] = byte & 0x7f,
                    1 => bytes.insert(at, byte),
                    _ => { bytes.remove(at); }
                }
            }
            fuzz_ingress(&bytes);
        }

        #[test]
        fn a_good_document_with_pieces_put_in(selector in any::<u8>(), at in any::<prop::sample::Index>(), piece in PIECE) {
            let mut bytes = SAMPLE.as_bytes().to_vec();
            bytes[0] = selector | 1;
            let at = 1 + at.index(bytes.len() - 1);
            bytes.splice(at..at, piece.bytes());
            fuzz_ingress(&bytes);
        }

        #[test]
        fn random_jids(text in "([a-z\u{e9}\u{ff21}\u{3a3}\u{5d0}\u{660}]|\\PC){0,6}@?([a-z0-9.\u{fc}\u{3002}-]|xn--|\\PC){0,8}(/\\PC{0,6})?") {
            fuzz_jid(text.as_bytes());
        }
    }
}
