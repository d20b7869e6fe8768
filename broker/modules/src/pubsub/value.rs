//! Values as XML and back (semantics.md, Values): what stands inside an `<item/>`.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use tavi_core::{Change, ContentType, Publication};
use tavi_xmpp_proto::{
    Condition, Element, Incoming, Ingress, Limits, StanzaError,
    element::{escape_attr, escape_text},
    ns,
};

/// The most levels that a value in XML may have to become part of a stanza.
const MAX_DEPTH: usize = 48;
/// The largest event with a value, in bytes: about what a client may send itself. Subscribers ask for a larger one.
const MAX_EVENT: usize = 256 * 1024;
/// The longest media type in bytes.
const MAX_TYPE: usize = 255;
/// No namespace: none can hold this character.
pub(crate) const NOWHERE: &str = "\u{0}";

/// What a publisher put into an item: the bytes and what they are.
///
/// # Errors
/// `<invalid-payload/>` if it is our own wrapper and not well made.
pub(super) fn read(payload: &Element) -> Result<(Bytes, Option<ContentType>), StanzaError> {
    if payload.is(ns::TAVI_DATA, "data") {
        return read_data(payload);
    }
    if payload.is(ns::JSON, "json") {
        // XEP-0335 §3.
        return Ok((payload.text_content().into(), Some("application/json".into())));
    }
    let mut bytes = Vec::new();
    payload.write_to(&mut bytes, NOWHERE);
    Ok((bytes.into(), Some("application/xml".into())))
}

fn read_data(data: &Element) -> Result<(Bytes, Option<ContentType>), StanzaError> {
    let invalid = |text: &'static str| super::specific(Condition::BadRequest, "invalid-payload").text(text);
    let type_ = data.get_attr("type").filter(|type_| !type_.is_empty());
    if type_.is_some_and(|type_| type_.len() > MAX_TYPE) {
        return Err(invalid("the type is too long"));
    }
    if data.elements().next().is_some() {
        return Err(invalid("a data element holds only text"));
    }
    let text = data.text_content();
    let bytes = match data.get_attr("encoding") {
        None | Some("utf-8") => text.into_bytes(),
        Some("base64") => {
            let packed: String = text.split_ascii_whitespace().collect();
            STANDARD.decode(packed).map_err(|_| invalid("that is no base64"))?
        }
        Some(_) => return Err(invalid("an encoding is utf-8 or base64")),
    };
    Ok((bytes.into(), type_.map(Into::into)))
}

/// What a clearing names that was asked for as a purge of the node; no item has this id.
pub(super) const ALL: &str = "";

/// The `<event/>` of a publication (XEP-0060 §7.1.2, §7.2.2), written once for all receivers. Empty if a value was
/// cleared and there was none.
pub(super) fn event(publication: &Publication) -> Bytes {
    publication.rendered.event.get_or_init(|| write_event(publication).into()).clone()
}

fn write_event(publication: &Publication) -> Vec<u8> {
    let mut out = Vec::with_capacity(publication.payload.len() + publication.topic.len() + 256);
    match (publication.change, &publication.item) {
        (Change::Clear, None) => return out,
        (Change::Clear, Some(item)) if &**item == ALL => {
            // XEP-0060 §8.5.2.
            out.extend_from_slice(b"<event");
            attr(&mut out, "xmlns", ns::PUBSUB_EVENT);
            out.extend_from_slice(b"><purge");
            attr(&mut out, "node", &publication.topic);
            out.extend_from_slice(b"/></event>");
            return out;
        }
        (Change::Clear, Some(item)) => {
            open_items(&mut out, "event", ns::PUBSUB_EVENT, &publication.topic);
            out.extend_from_slice(b"<retract");
            attr(&mut out, "id", item);
            out.extend_from_slice(b"/>");
        }
        (Change::Value, _) => {
            open_items(&mut out, "event", ns::PUBSUB_EVENT, &publication.topic);
            let start = out.len();
            if publication.payload.len() <= MAX_EVENT {
                item(&mut out, publication);
            }
            if out.len() == start || out.len() > MAX_EVENT {
                // XEP-0060 §7.1.2.1: the item alone.
                out.truncate(start);
                announcement(&mut out, publication);
                out.shrink_to_fit();
            }
        }
    }
    out.extend_from_slice(b"</items></event>");
    out
}

/// The answer of XEP-0060 §6.5.2.
pub(super) fn items(node: &str, publications: &[&Publication]) -> Bytes {
    let mut out = Vec::new();
    open_items(&mut out, "pubsub", ns::PUBSUB, node);
    publications.iter().for_each(|publication| item(&mut out, publication));
    out.extend_from_slice(b"</items></pubsub>");
    out.into()
}

/// The start tags of a list of a node's items.
pub(crate) fn open_items(out: &mut Vec<u8>, name: &str, namespace: &str, node: &str) {
    out.push(b'<');
    out.extend_from_slice(name.as_bytes());
    attr(out, "xmlns", namespace);
    out.extend_from_slice(b"><items");
    attr(out, "node", node);
    out.push(b'>');
}

fn announcement(out: &mut Vec<u8>, publication: &Publication) {
    open_item(out, publication);
    out.extend_from_slice(b"/>");
}

fn open_item(out: &mut Vec<u8>, publication: &Publication) {
    out.extend_from_slice(b"<item");
    attr(out, "id", &publication.item_id());
    if let Some(publisher) = publication.from.jid() {
        attr(out, "publisher", publisher.as_str());
    }
}

fn item(out: &mut Vec<u8>, publication: &Publication) {
    open_item(out, publication);
    out.push(b'>');
    value(out, publication);
    out.extend_from_slice(b"</item>");
}

/// The value itself: its own XML if it is that, else wrapped.
fn value(out: &mut Vec<u8>, publication: &Publication) {
    let type_ = publication.content_type.as_deref();
    if type_.is_some_and(is_xml_type) && stands_alone(&publication.payload) {
        return out.extend_from_slice(publication.payload.trim_ascii());
    }
    out.extend_from_slice(b"<data");
    attr(out, "xmlns", ns::TAVI_DATA);
    if let Some(type_) = type_ {
        attr(out, "type", type_);
    }
    match std::str::from_utf8(&publication.payload).ok().filter(|text| text.chars().all(is_xml_char)) {
        Some(text) => {
            attr(out, "encoding", "utf-8");
            out.push(b'>');
            escape_text(out, text);
        }
        None => {
            attr(out, "encoding", "base64");
            out.push(b'>');
            out.extend_from_slice(STANDARD.encode(&publication.payload).as_bytes());
        }
    }
    out.extend_from_slice(b"</data>");
}

/// One attribute.
pub(crate) fn attr(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(b' ');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"='");
    escape_attr(out, value);
    out.push(b'\'');
}

/// RFC 7303 §3 and §4.2.
fn is_xml_type(type_: &str) -> bool {
    let essence = type_.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(&*essence, "application/xml" | "text/xml") || essence.ends_with("+xml")
}

/// XML 1.0 §2.2.
fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..)
}

/// Whether these bytes are one strictly valid element that declares all its namespaces, so that they can stand in
/// any stanza as they are.
fn stands_alone(payload: &[u8]) -> bool {
    let payload = payload.trim_ascii();
    // Room for the stream header and the stanza round it.
    let limits = Limits { stanza: payload.len() + 256, depth: MAX_DEPTH, attributes: 64 };
    passes_ingress(payload, limits) && Element::parse(payload, NOWHERE).is_ok_and(|element| declares_all(&element))
}

/// The one strict judge of XML: what a peer may send us as the only child of a stanza.
fn passes_ingress(payload: &[u8], limits: Limits) -> bool {
    const HEADER: &[u8] =
        b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";
    let mut ingress = Ingress::new(limits);
    let whole = [HEADER, b"<message>", payload, b"</message>"].concat();
    let mut input = &whole[..];
    let Ok(Some(Incoming::Header(_))) = ingress.next(&mut input) else { return false };
    match ingress.next(&mut input) {
        Ok(Some(Incoming::Stanza(stanza))) => match stanza.children() {
            // Nothing before, behind or between, and nothing that ingress had to complete.
            [only] => input.is_empty() && stanza.child_bytes(only) == payload,
            _ => false,
        },
        _ => false,
    }
}

fn declares_all(element: &Element) -> bool {
    element.ns() != NOWHERE && element.elements().all(declares_all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tavi_core::{Draft, Principal, Qos};
    use tavi_xmpp_proto::Stanza;

    fn publication(payload: &[u8], content_type: Option<&str>) -> Publication {
        let from = Principal::Device("abc@things.localhost".parse().unwrap());
        let Draft { topic, change, .. } = Draft { topic: "d/abc/up/t".into(), ..Draft::default() };
        Publication {
            id: 7,
            time_ms: 0,
            topic,
            change,
            payload: Bytes::copy_from_slice(payload),
            content_type: content_type.map(Into::into),
            qos: Qos::AtLeastOnce,
            retain: true,
            from,
            from_session: 0,
            item: None,
            properties: None,
            rendered: Default::default(),
        }
    }

    fn written(payload: &[u8], content_type: Option<&str>) -> String {
        let mut out = Vec::new();
        value(&mut out, &publication(payload, content_type));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_xml_that_stands_alone_is_written_as_xml() {
        let own = "<a xmlns='urn:a'><b/><c:d xmlns:c='urn:c' c:e='1'/></a>";
        for type_ in ["application/xml", "text/xml; charset=utf-8", "Application/Atom+XML"] {
            assert_eq!(written(own.as_bytes(), Some(type_)), own);
        }
        assert_eq!(written(format!(" {own}\n").as_bytes(), Some("text/xml")), own);
        assert_eq!(written(b"<a xmlns=''/>", Some("text/xml")), "<a xmlns=''/>");
        let deep = ["<a xmlns='urn:a'>".repeat(60), "</a>".repeat(60)].concat();
        let wrapped = [
            "<a/>",
            "<a xmlns='urn:a'/><b xmlns='urn:a'/>",
            "text",
            "",
            "<p:a xmlns:p='urn:a'><b/></p:a>",
            "<a xmlns='urn:a'>",
            "<a xmlns='urn:a'/>text",
            "<a xmlns='urn:a'>&nbsp;</a>",
            "<!-- c --><a xmlns='urn:a'/>",
            "<stream:a/>",
            "<?xml version='1.0'?><a xmlns='urn:a'/>",
            "<a xmlns='urn:a'/></message><message><a xmlns='urn:a'/>",
            &deep,
            "<a xmlns='urn:a'><b xmlns:p='urn:p' p:x='<'/></a>",
        ];
        for xml in wrapped {
            let text = written(xml.as_bytes(), Some("text/xml"));
            assert!(
                text.starts_with("<data xmlns='urn:tavi:data:0' type='text/xml' encoding='utf-8'>"),
                "{xml}: {text}"
            );
        }
        assert!(written(own.as_bytes(), Some("text/plain")).starts_with("<data"));
        assert!(written(own.as_bytes(), None).starts_with("<data xmlns='urn:tavi:data:0' encoding='utf-8'>&lt;a"));
    }

    #[test]
    fn each_value_comes_back_as_it_was() {
        let values: [(&[u8], Option<&str>); 8] = [
            (b"21.5", Some("text/plain")),
            (b"", None),
            (b"a\r\nb\tc <&> ' \"", Some("text/plain;charset=utf-8")),
            (&[0, 1, 2, 255], Some("application/octet-stream")),
            (b"\x01", None),
            ("\u{fffe}".as_bytes(), None),
            ("\u{1f600}\u{fffd}".as_bytes(), Some("it's \"odd\"")),
            (b"<a xmlns='urn:a'><b/>x</a>", Some("application/xml")),
        ];
        for (payload, type_) in values {
            let text = written(payload, type_);
            let (bytes, back) = read(&Element::parse(text.as_bytes(), "urn:other").unwrap()).unwrap();
            assert_eq!((&*bytes, back.as_deref()), (payload, type_), "{text}");
        }
        assert!(written(b"a\rb", None).contains("a&#13;b"));
        assert!(written(&[0xff], None).contains("encoding='base64'>/w==<"));
    }

    #[test]
    fn json_containers_and_foreign_elements_are_read() {
        let element = |xml: &str| Element::parse(xml.as_bytes(), ns::PUBSUB).unwrap();
        let (bytes, type_) = read(&element("<json xmlns='urn:xmpp:json:0'>{\"t\": 1}</json>")).unwrap();
        assert_eq!((&*bytes, type_.as_deref()), (&b"{\"t\": 1}"[..], Some("application/json")));
        let (bytes, type_) = read(&element("<entry><title xmlns='urn:t'>x</title></entry>")).unwrap();
        assert_eq!(type_.as_deref(), Some("application/xml"));
        assert_eq!(&*bytes, b"<entry xmlns='http://jabber.org/protocol/pubsub'><title xmlns='urn:t'>x</title></entry>");
        assert_eq!(&*read(&element("<a xmlns=''/>")).unwrap().0, b"<a xmlns=''/>");
    }

    #[test]
    fn a_wrapper_that_is_not_well_made_is_refused() {
        for attrs in ["encoding='base64'>!", "encoding='odd'>x", "><a/>"] {
            let xml = format!("<data xmlns='urn:tavi:data:0' {attrs}</data>");
            let error = read(&Element::parse(xml.as_bytes(), ns::PUBSUB).unwrap()).unwrap_err();
            assert_eq!(error.specific.map(|e| e.name().to_owned()).as_deref(), Some("invalid-payload"), "{xml}");
        }
    }

    #[test]
    fn an_event_names_topic_item_and_publisher() {
        let event = event(&publication(b"21.5", Some("text/plain")));
        assert_eq!(
            std::str::from_utf8(&event).unwrap(),
            "<event xmlns='http://jabber.org/protocol/pubsub#event'><items node='d/abc/up/t'>\
             <item id='7' publisher='abc@things.localhost'>\
             <data xmlns='urn:tavi:data:0' type='text/plain' encoding='utf-8'>21.5</data></item></items></event>"
        );
    }

    #[test]
    fn an_event_with_a_large_value_names_the_item_alone() {
        let named = "<item id='7' publisher='abc@things.localhost'/></items></event>";
        let (text, raw) = (vec![b'x'; MAX_EVENT - 1_000], vec![0xff; MAX_EVENT - 1_000]);
        let small = event(&publication(&text, Some("text/plain")));
        assert!(small.len() > text.len() && small.len() <= MAX_EVENT);
        // As it stands, escaped, in base64, and too large before that.
        for payload in [&vec![b'x'; MAX_EVENT][..], &vec![b'&'; MAX_EVENT / 4], &raw, &vec![b'x'; 16 << 20]] {
            let event = event(&publication(payload, Some("text/plain")));
            let event = std::str::from_utf8(&event).unwrap();
            assert!(event.ends_with(named) && event.len() < 500, "{event}");
        }
    }

    /// What a subscriber finds in the event, read as a client reads it.
    fn received(publication: &Publication) -> Element {
        let event = event(publication);
        let message = [b"<message>", &event[..], b"</message>"].concat();
        let stanza = Stanza::parse(&message).unwrap_or_else(|error| panic!("{error}: {event:?}"));
        assert_eq!(stanza.children().len(), 1, "{event:?}");
        let event = stanza.element(ns::PUBSUB_EVENT, "event").unwrap();
        let items = event.get_child(ns::PUBSUB_EVENT, "items").unwrap();
        assert_eq!(items.get_attr("node"), Some(&*publication.topic));
        let item = items.get_child(ns::PUBSUB_EVENT, "item").unwrap();
        assert_eq!(item.elements().count(), 1);
        item.elements().next().unwrap().clone()
    }

    proptest! {
        #[test]
        fn any_value_of_any_type_comes_back(payload: Vec<u8>, type_ in proptest::option::of("[ -~]{1,40}")) {
            let publication = publication(&payload, type_.as_deref());
            let (bytes, back) = read(&received(&publication)).unwrap();
            prop_assert_eq!(&*bytes, &payload[..]);
            prop_assert_eq!(back.as_deref(), type_.as_deref());
        }

        #[test]
        fn what_calls_itself_xml_never_breaks_out(payload in "(</?[abp:]{1,3}( xmlns(:p)?='[ux]?')?/?>|[a&;<>'\"\\[\\]!?-]|</item>|</message>|<message>){0,8}") {
            let publication = publication(payload.as_bytes(), Some("application/xml"));
            let found = received(&publication);
            if found.is(ns::TAVI_DATA, "data") {
                prop_assert_eq!(found.text_content(), payload);
            } else {
                prop_assert_eq!(Ok(found), Element::parse(payload.as_bytes(), "urn:nothing"));
            }
        }
    }
}
