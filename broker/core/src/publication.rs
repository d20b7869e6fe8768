//! One value on its way to all who subscribed, in any protocol; and the one codec of its stored form.

use crate::principal::Principal;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::sync::{Arc, OnceLock};
use tavi_store::{Body, Op};
use tavi_xmpp_proto::jid::BareJid;

/// Delivery guarantee of MQTT 5 §4.3; XMPP and CoAP publish as at least once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// QoS 0.
    #[default]
    AtMostOnce,
    /// QoS 1.
    AtLeastOnce,
    /// QoS 2.
    ExactlyOnce,
}

impl Qos {
    /// The guarantee with that number; `None` above 2.
    pub fn from_u8(n: u8) -> Option<Qos> {
        [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce].get(usize::from(n)).copied()
    }
}

/// Whether a publication brings a value or takes it away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change {
    /// A value, which may be empty.
    #[default]
    Value,
    /// The topic's values are cleared: MQTT's empty retained message, XMPP's retraction, CoAP's DELETE.
    Clear,
}

/// A media type, such as `application/senml+json`.
pub type ContentType = Arc<str>;

/// What MQTT 5 §3.3.2.3 lets a publisher say besides the value; others ignore what they do not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// Where an answer is wanted (§3.3.2.3.5).
    pub response_topic: Option<Box<str>>,
    /// What the answer carries back (§3.3.2.3.6).
    pub correlation: Option<Bytes>,
    /// Whether the payload is declared to be UTF-8 or just bytes (§3.3.2.3.2); `None`: the publisher did not say.
    pub utf8: Option<bool>,
    /// When the value expires, in milliseconds since 1970 (§3.3.2.3.3 gives seconds from now).
    pub expires_ms: Option<u64>,
    /// User properties, in order (§3.3.2.3.7).
    pub user: Vec<(Box<str>, Box<str>)>,
}

/// Bytes that are kept of the strings of so many properties besides their text.
const PAIR: usize = size_of::<(Box<str>, Box<str>)>();

impl Properties {
    /// The bytes of their text: what a value brings besides its payload.
    pub fn len(&self) -> usize {
        let texts = [self.response_topic.as_ref().map(|t| t.len()), self.correlation.as_ref().map(Bytes::len)];
        let user: usize = self.user.iter().map(|(name, value)| name.len() + value.len()).sum();
        texts.into_iter().flatten().sum::<usize>() + user
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn weight(&self) -> usize {
        size_of::<Properties>() + self.len() + PAIR * self.user.len()
    }

    fn is_default(&self) -> bool {
        self.response_topic.is_none()
            && self.correlation.is_none()
            && self.utf8.is_none()
            && self.expires_ms.is_none()
            && self.user.is_empty()
    }
}

/// The shared encoded bodies, one per wire form, each made at most once by the front end that needs it. Receivers add
/// their own heads.
#[derive(Debug, Default)]
pub struct Rendered {
    /// MQTT, in the form of version 5.
    pub mqtt: OnceLock<Bytes>,
    /// The `<event/>` of XEP-0060.
    pub event: OnceLock<Bytes>,
    /// CoAP options and payload.
    pub coap: OnceLock<Bytes>,
    /// As it is stored.
    pub stored: OnceLock<Bytes>,
    /// Whether there are several receivers, so that their rows share one body.
    pub is_shared: bool,
    /// The id of an attempt to publish the same that failed: its rows, if there are any, go when this one's come.
    pub replaces: Option<u64>,
    /// About how many bytes it holds: it is asked for each receiver.
    pub(crate) weight: OnceLock<usize>,
}

/// One value on its way.
#[derive(Debug)]
pub struct Publication {
    /// Drawn under the topic's lock; grows within a topic.
    pub id: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// Where.
    pub topic: Arc<str>,
    /// A value, or its end.
    pub change: Change,
    /// The bytes.
    pub payload: Bytes,
    /// What they are; `None` if the publisher did not say.
    pub content_type: Option<ContentType>,
    /// The publisher's guarantee.
    pub qos: Qos,
    /// Whether it becomes (or ends) the topic's retained value.
    pub retain: bool,
    /// Who published.
    pub from: Principal,
    /// The session that published, for MQTT's "no local"; 0 if none.
    pub from_session: u64,
    /// The item id that an XMPP publisher chose; else the message id serves.
    pub item: Option<Box<str>>,
    /// MQTT 5 properties; boxed since most have none.
    pub properties: Option<Box<Properties>>,
    /// Shared encoded forms.
    pub rendered: Rendered,
}

impl Publication {
    /// The item id of XEP-0060: the publisher's own, else the message id.
    pub fn item_id(&self) -> String {
        self.item.as_deref().map_or_else(|| self.id.to_string(), str::to_owned)
    }

    /// About how many bytes it holds, all that its publisher sent with it taken in, but without its shared encoded forms.
    pub fn weight(&self) -> usize {
        *self.rendered.weight.get_or_init(|| {
            let texts = self.content_type.as_ref().map_or(0, |t| t.len()) + self.item.as_ref().map_or(0, |i| i.len());
            let properties = self.properties.as_ref().map_or(0, |properties| properties.weight());
            self.payload.len() + self.topic.len() + 128 + texts + properties
        })
    }

    /// About how many bytes it takes in memory as it is now.
    pub fn resident(&self) -> usize {
        let Rendered { mqtt, event, coap, stored, .. } = &self.rendered;
        let forms = [mqtt, event, coap, stored].into_iter().filter_map(OnceLock::get);
        size_of::<Publication>() + self.weight() + forms.map(Bytes::len).sum::<usize>()
    }

    /// Whether it has expired at `now_ms` (MQTT 5 §3.3.2.3.3).
    pub fn expired(&self, now_ms: u64) -> bool {
        self.properties.as_ref().and_then(|p| p.expires_ms).is_some_and(|at| at <= now_ms)
    }

    /// Its stored form, made once.
    pub fn stored(&self) -> &Bytes {
        self.rendered.stored.get_or_init(|| self.encode())
    }

    /// A durable receiver's row: its own head and the stored form, which many receivers share in the store as well.
    /// One row alone is cheaper if it holds all.
    pub fn queue_row(&self, id: u64, head: Bytes) -> Op {
        let stored = self.stored();
        if self.rendered.is_shared || stored.len() > SHARED_FROM {
            return Op::QueueShare { id, head, body: Body { id: self.id, bytes: stored.clone() } };
        }
        let mut value = BytesMut::with_capacity(head.len() + stored.len());
        value.put_slice(&head);
        value.put_slice(stored);
        Op::QueuePush { id, value: value.freeze() }
    }

    /// Its stored form: a version byte, then length-prefixed fields.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.payload.len() + self.topic.len() + 96);
        out.put_u8(FORMAT);
        out.put_u64(self.id);
        out.put_u64(self.time_ms);
        out.put_u8(self.qos as u8 | u8::from(self.retain) << 2 | u8::from(self.change == Change::Clear) << 3);
        put(&mut out, self.topic.as_bytes());
        put_opt(&mut out, self.content_type.as_deref().map(str::as_bytes));
        put_principal(&mut out, &self.from);
        put_opt(&mut out, self.item.as_deref().map(str::as_bytes));
        put_properties(&mut out, self.properties.as_deref());
        put(&mut out, &self.payload);
        out.freeze()
    }

    /// Reads a stored form; `None` if it is damaged. The payload shares `bytes`.
    pub fn decode(mut bytes: Bytes) -> Option<Publication> {
        let input = &mut bytes;
        if input.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let id = input.try_get_u64().ok()?;
        let time_ms = input.try_get_u64().ok()?;
        let flags = input.try_get_u8().ok()?;
        let topic = get_str(input)?.into();
        let content_type = get_text(input)?.map(Into::into);
        let from = get_principal(input)?;
        let item = get_text(input)?;
        let properties = get_properties(input)?;
        let payload = get(input)?;
        Some(Publication {
            id,
            time_ms,
            topic,
            change: if flags & 8 != 0 { Change::Clear } else { Change::Value },
            payload,
            content_type,
            qos: Qos::from_u8(flags & 3)?,
            retain: flags & 4 != 0,
            from,
            from_session: 0,
            item,
            properties,
            rendered: Rendered::default(),
        })
    }
}

const FORMAT: u8 = 1;
/// A larger stored form is shared even by a single row: it then is written apart, and deleted without being read.
const SHARED_FROM: usize = 4096;

fn put(out: &mut BytesMut, bytes: &[u8]) {
    // Nothing that is published reaches 4 GiB: packets and stanzas are bounded far below.
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

fn put_opt(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        None => out.put_u32(u32::MAX),
        Some(bytes) => put(out, bytes),
    }
}

fn put_principal(out: &mut BytesMut, from: &Principal) {
    let kind = match from {
        Principal::Account(_) => 0,
        Principal::Device(_) => 1,
        Principal::Bot(_) => 2,
        Principal::Anon { loopback: false } => 3,
        Principal::Anon { loopback: true } => 4,
    };
    out.put_u8(kind);
    put(out, from.jid().map_or("", |jid| jid.as_str()).as_bytes());
}

fn put_properties(out: &mut BytesMut, properties: Option<&Properties>) {
    let Some(p) = properties.filter(|p| !p.is_default()) else { return out.put_u8(0) };
    out.put_u8(1);
    put_opt(out, p.response_topic.as_deref().map(str::as_bytes));
    put_opt(out, p.correlation.as_deref());
    // 0 and 1 are what was written before the two kinds of "not UTF-8" were told apart.
    out.put_u8(p.utf8.map_or(0, |utf8| if utf8 { 1 } else { 2 }));
    out.put_u64(p.expires_ms.unwrap_or(0));
    out.put_u32(p.user.len() as u32);
    for (name, value) in &p.user {
        put(out, name.as_bytes());
        put(out, value.as_bytes());
    }
}

fn get_opt(input: &mut Bytes) -> Option<Option<Bytes>> {
    let len = input.try_get_u32().ok()?;
    if len == u32::MAX {
        return Some(None);
    }
    let len = len as usize;
    (len <= input.len()).then(|| Some(input.split_to(len)))
}

fn get(input: &mut Bytes) -> Option<Bytes> {
    get_opt(input)?
}

fn text(bytes: Bytes) -> Option<Box<str>> {
    std::str::from_utf8(&bytes).ok().map(Into::into)
}

fn get_text(input: &mut Bytes) -> Option<Option<Box<str>>> {
    match get_opt(input)? {
        None => Some(None),
        Some(bytes) => text(bytes).map(Some),
    }
}

fn get_str(input: &mut Bytes) -> Option<Box<str>> {
    text(get(input)?)
}

fn get_principal(input: &mut Bytes) -> Option<Principal> {
    let kind = input.try_get_u8().ok()?;
    let name = get_str(input)?;
    let jid = || name.parse::<BareJid>().ok();
    Some(match kind {
        0 => Principal::Account(jid()?),
        1 => Principal::Device(jid()?),
        2 => Principal::Bot(jid()?),
        3 => Principal::Anon { loopback: false },
        4 => Principal::Anon { loopback: true },
        _ => return None,
    })
}

fn get_properties(input: &mut Bytes) -> Option<Option<Box<Properties>>> {
    if input.try_get_u8().ok()? == 0 {
        return Some(None);
    }
    let response_topic = get_text(input)?;
    let correlation = get_opt(input)?;
    let utf8 = [None, Some(true), Some(false)].get(usize::from(input.try_get_u8().ok()?)).copied()?;
    let expires_ms = Some(input.try_get_u64().ok()?).filter(|ms| *ms != 0);
    let mut user = Vec::new();
    for _ in 0..input.try_get_u32().ok()? {
        user.push((get_str(input)?, get_str(input)?));
    }
    Some(Some(Box::new(Properties { response_topic, correlation, utf8, expires_ms, user })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn publication(
        payload: Vec<u8>,
        content_type: Option<String>,
        (utf8, user): (Option<bool>, Vec<(String, String)>),
    ) -> Publication {
        let user = user.into_iter().map(|(a, b)| (a.into(), b.into())).collect();
        Publication {
            id: 7,
            time_ms: 1_700_000_000_000,
            topic: "d/x/up/t".into(),
            change: Change::Value,
            payload: payload.into(),
            content_type: content_type.map(Into::into),
            qos: Qos::ExactlyOnce,
            retain: true,
            from: Principal::Account("juliet@localhost".parse().unwrap()),
            from_session: 0,
            item: Some("current".into()),
            properties: Some(Box::new(Properties { utf8, user, ..Properties::default() })).filter(|p| !p.is_default()),
            rendered: Rendered::default(),
        }
    }

    #[test]
    fn all_that_a_publisher_sends_weighs() {
        let bare = publication(Vec::new(), None, (None, Vec::new())).weight();
        let typed = publication(Vec::new(), Some("x".repeat(1_000)), (None, Vec::new())).weight();
        let pair = publication(Vec::new(), None, (None, vec![("n".repeat(300), "v".repeat(700))])).weight();
        let empty = publication(Vec::new(), None, (None, vec![Default::default(); 1_000])).weight();
        assert!(
            typed >= bare + 1_000 && pair >= bare + 1_000 && empty >= bare + 32_000,
            "{bare} {typed} {pair} {empty}"
        );
    }

    proptest! {
        #[test]
        fn what_was_stored_is_read_back(
            payload: Vec<u8>, content_type: Option<String>, utf8: Option<bool>, user: Vec<(String, String)>
        ) {
            let before = publication(payload, content_type, (utf8, user));
            let after = Publication::decode(before.encode()).unwrap();
            prop_assert_eq!(format!("{before:?}"), format!("{after:?}"));
        }

        #[test]
        fn damaged_bytes_are_refused_without_panic(bytes: Vec<u8>) {
            let _ = Publication::decode(bytes.into());
        }
    }
}
