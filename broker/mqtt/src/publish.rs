//! PUBLISH (MQTT 3.1.1 §3.3, MQTT 5.0 §3.3): decoded into one allocation, encoded once for all receivers.
//!
//! The packet id stands between topic and properties, so a [`Body`] is everything *but* the packet id, in wire order.
//! One body in the form of version 5 serves all receivers: a packet is the receiver's head, the topic, its packet id, its
//! own properties, the shared ones (none in 3.1.1), the payload.

use bytes::Bytes;
use smallvec::SmallVec;
use tavi_wire::topic::is_filter;

use crate::error::Fault;
use crate::frame::{Frame, length_width, put_length};
use crate::packet::{PublishProperties, Qos, Version};
use crate::walk::{Allowed, Value, Walk, each_property, id};

/// A received PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The sender thinks that it may have sent it before.
    pub dup: bool,
    /// Quality of service.
    pub qos: Qos,
    /// To be retained.
    pub retain: bool,
    /// 0 at QoS 0, else never.
    pub packet_id: u16,
    /// Topic, properties, payload.
    pub body: Body,
}

/// Topic, properties (v5) and payload of a publish in wire order, shared by all receivers of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    bytes: Bytes,
    payload_at: u32,
    version: Version,
}

/// What one receiver adds to a [`Body`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Head<'a> {
    /// Sent before on an earlier connection.
    pub dup: bool,
    /// Quality of service of this delivery.
    pub qos: Qos,
    /// The RETAIN flag of this delivery.
    pub retain: bool,
    /// Ignored at QoS 0.
    pub packet_id: u16,
    /// The version that the receiver speaks. In 3.1.1 there are no properties.
    pub version: Version,
    /// The seconds that the message has left (MQTT 5.0 §3.3.2.3.3); the body then holds none.
    pub expiry: Option<u32>,
    /// The subscription identifiers of the filters that matched (MQTT 5.0 §3.3.2.3.8).
    pub identifiers: &'a [u32],
}

impl Publish {
    /// Decodes a whole packet. The topic is UTF-8 without NUL and without wildcards' meaning being judged: the
    /// session asks `tavi_wire::topic`.
    ///
    /// This is our own and not the crate's decoder: the crate keeps QoS and packet id of a publish private, and
    /// copies where one shared allocation is enough.
    pub(crate) fn decode(packet: &[u8], frame: Frame, version: Version) -> Result<Self, Fault> {
        let mut walk = Walk::new(&packet[frame.header..frame.total]);
        let qos = Qos::from_u8(frame.flags >> 1 & 3).ok_or(Fault::Malformed("QoS 3"))?;
        let topic_bytes = 2 + walk.string()?.len();
        let packet_id = if qos == Qos::AtMostOnce { 0 } else { walk.packet_id()? };
        let rest_at = frame.total - walk.left();
        if version == Version::V5 {
            check_properties(walk.properties()?)?;
        }
        let topic = &packet[frame.header..frame.header + topic_bytes];
        let body = Body::join(topic, &packet[rest_at..frame.total], walk.left(), version);
        Ok(Self { dup: frame.flags & 8 != 0, qos, retain: frame.flags & 1 != 0, packet_id, body })
    }
}

impl Body {
    /// The topic with its length, then all that follows the packet id; the last `payload` bytes are the payload.
    fn join(topic: &[u8], rest: &[u8], payload: usize, version: Version) -> Self {
        let total = topic.len() + rest.len();
        let mut bytes = Vec::with_capacity(total);
        bytes.extend_from_slice(topic);
        bytes.extend_from_slice(rest);
        Self { bytes: bytes.into(), payload_at: (total - payload) as u32, version }
    }

    /// Encodes a value for receivers of `version`. The topic is legal, so it has at most 1,024 bytes; each property
    /// came from a packet or was cut to 65,535 bytes by whoever made it.
    pub fn encode(version: Version, topic: &str, properties: &PublishProperties, payload: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(topic.len() + payload.len() + 16);
        put_text(&mut bytes, topic.as_bytes());
        if version == Version::V5 {
            put_properties(&mut bytes, properties);
        }
        let payload_at = bytes.len() as u32;
        bytes.extend_from_slice(payload);
        Self { bytes: bytes.into(), payload_at, version }
    }

    /// A body from the bytes of [`Body::as_bytes`], as stored or shared by the core. `None`: they are not such bytes.
    pub fn from_bytes(version: Version, bytes: Bytes) -> Option<Self> {
        let mut walk = Walk::new(&bytes);
        walk.string().ok()?;
        if version == Version::V5 {
            check_properties(walk.properties().ok()?).ok()?;
        }
        let payload_at = (bytes.len() - walk.left()) as u32;
        Some(Self { bytes, payload_at, version })
    }

    /// The shared bytes: topic with its length, properties with theirs (v5 only), payload.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The shared bytes alone.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Whether there is any property to read.
    pub fn has_properties(&self) -> bool {
        self.payload_at as usize > self.topic_end() + 1
    }

    /// The version whose wire form this is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        // Both constructors checked or wrote a string there, so the default is never taken.
        std::str::from_utf8(&self.bytes[2..self.topic_end()]).unwrap_or_default()
    }

    /// The payload, sharing this body's memory.
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(self.payload_at as usize..)
    }

    /// The properties; empty in 3.1.1.
    pub fn properties(&self) -> PublishProperties {
        let mut found = PublishProperties::default();
        let mut walk = Walk::new(&self.bytes[self.topic_end()..self.payload_at as usize]);
        if let Ok(section) = walk.properties() {
            // Already walked when the body was made: no error is left to happen.
            let _ = each_property(section, IN_PUBLISH, |id, value| self.keep(&mut found, id, value));
        }
        found
    }

    fn topic_end(&self) -> usize {
        topic_end(&self.bytes)
    }

    fn keep(&self, found: &mut PublishProperties, id: u8, value: Value<'_>) -> Result<(), Fault> {
        match (id, value) {
            (id::PAYLOAD_FORMAT, Value::Byte(flag)) => found.utf8 = Some(flag == 1),
            (id::MESSAGE_EXPIRY, Value::Four(seconds)) => found.expiry = Some(seconds),
            (id::CONTENT_TYPE, Value::Text(text)) => found.content_type = Some(self.bytes.slice_ref(text.as_bytes())),
            (id::RESPONSE_TOPIC, Value::Text(text)) => {
                found.response_topic = Some(self.bytes.slice_ref(text.as_bytes()));
            }
            (id::CORRELATION, Value::Binary(data)) => found.correlation = Some(self.bytes.slice_ref(data)),
            (id::USER, Value::Pair(name, value)) => {
                found.user.push((self.bytes.slice_ref(name.as_bytes()), self.bytes.slice_ref(value.as_bytes())))
            }
            _ => {}
        }
        Ok(())
    }
}

/// Bytes of the whole packet that [`put`] writes for these bytes of a [`Body`] of version 5.
pub fn packet_len(body: &[u8], head: &Head<'_>) -> usize {
    let remaining = Spliced::new(body, head).len();
    1 + length_width(remaining) + remaining
}

/// Appends one receiver's packet; `body` are the bytes of [`Body::as_bytes`], of version 5. Nothing of them is encoded
/// anew: what is the receiver's own stands between topic and properties.
pub fn put(out: &mut Vec<u8>, body: &[u8], head: Head<'_>) {
    let spliced = Spliced::new(body, &head);
    let remaining = spliced.len();
    out.reserve(remaining + 5);
    out.push(0x30 | u8::from(head.dup) << 3 | (head.qos as u8) << 1 | u8::from(head.retain));
    put_length(out, remaining);
    spliced.put(out, head);
}

/// A body taken apart, and the properties that are a receiver's own.
struct Spliced<'a> {
    topic: &'a [u8],
    own: SmallVec<[u8; 16]>,
    section: &'a [u8],
    payload: &'a [u8],
    packet_id: usize,
    has_section: bool,
}

impl<'a> Spliced<'a> {
    fn new(body: &'a [u8], head: &Head<'_>) -> Self {
        let (topic, rest) = body.split_at(topic_end(body));
        let (length, width) = section_length(rest);
        let (section, payload) = rest[width..].split_at(length);
        let packet_id = if head.qos == Qos::AtMostOnce { 0 } else { 2 };
        let has_section = head.version == Version::V5;
        let own = if has_section { own_properties(head) } else { SmallVec::new() };
        let section = if has_section { section } else { &[] };
        Self { topic, own, section, payload, packet_id, has_section }
    }

    /// The remaining length (MQTT 5.0 §2.1.4).
    fn len(&self) -> usize {
        let section = self.own.len() + self.section.len();
        let width = if self.has_section { length_width(section) } else { 0 };
        self.topic.len() + self.packet_id + width + section + self.payload.len()
    }

    fn put(&self, out: &mut Vec<u8>, head: Head<'_>) {
        out.extend_from_slice(self.topic);
        if self.packet_id > 0 {
            out.extend_from_slice(&head.packet_id.to_be_bytes());
        }
        if self.has_section {
            put_length(out, self.own.len() + self.section.len());
            out.extend_from_slice(&self.own);
            out.extend_from_slice(self.section);
        }
        out.extend_from_slice(self.payload);
    }
}

fn own_properties(head: &Head<'_>) -> SmallVec<[u8; 16]> {
    let mut own = SmallVec::new();
    if let Some(seconds) = head.expiry {
        own.push(id::MESSAGE_EXPIRY);
        own.extend_from_slice(&seconds.to_be_bytes());
    }
    for identifier in head.identifiers {
        let mut bytes = Vec::with_capacity(5);
        bytes.push(id::SUBSCRIPTION_ID);
        put_length(&mut bytes, *identifier as usize);
        own.extend_from_slice(&bytes);
    }
    own
}

/// The value and the width of the variable byte integer (MQTT 5.0 §1.5.5) at the beginning; a body has a whole one.
fn section_length(bytes: &[u8]) -> (usize, usize) {
    let width = bytes.iter().take(4).take_while(|byte| **byte & 0x80 != 0).count() + 1;
    let value = bytes.iter().take(width).rev().fold(0, |value, byte| value << 7 | usize::from(byte & 0x7F));
    (value, width)
}

/// Where the topic ends; a body always begins with one.
fn topic_end(body: &[u8]) -> usize {
    2 + usize::from(u16::from_be_bytes([body[0], body[1]]))
}

/// MQTT 5.0 §3.3.2.3: what a PUBLISH may carry. Topic Alias and Subscription Identifier are walked, then refused.
const IN_PUBLISH: Allowed = Allowed::of(&[
    id::PAYLOAD_FORMAT,
    id::MESSAGE_EXPIRY,
    id::CONTENT_TYPE,
    id::RESPONSE_TOPIC,
    id::CORRELATION,
    id::USER,
    id::TOPIC_ALIAS,
]);

fn check_properties(section: Walk<'_>) -> Result<(), Fault> {
    each_property(section, IN_PUBLISH, |id, value| check_property(id, value))
}

pub(crate) fn check_property(id: u8, value: Value<'_>) -> Result<(), Fault> {
    match (id, value) {
        // §3.3.2.3.4: CONNACK said that the Topic Alias Maximum is 0.
        (id::TOPIC_ALIAS, _) => Err(Fault::TopicAlias),
        // §3.3.2.3.5: the Response Topic MUST NOT contain wildcard characters.
        (id::RESPONSE_TOPIC, Value::Text(topic)) if topic.is_empty() || is_filter(topic) => {
            Err(Fault::Protocol("a response topic that is a filter"))
        }
        _ => Ok(()),
    }
}

fn put_properties(out: &mut Vec<u8>, properties: &PublishProperties) {
    let mut section = Vec::new();
    if let Some(utf8) = properties.utf8 {
        section.extend_from_slice(&[id::PAYLOAD_FORMAT, u8::from(utf8)]);
    }
    if let Some(seconds) = properties.expiry {
        section.push(id::MESSAGE_EXPIRY);
        section.extend_from_slice(&seconds.to_be_bytes());
    }
    let texts = [
        (id::CONTENT_TYPE, &properties.content_type),
        (id::RESPONSE_TOPIC, &properties.response_topic),
        (id::CORRELATION, &properties.correlation),
    ];
    for (id, text) in texts.into_iter().filter_map(|(id, text)| Some((id, text.as_ref()?))) {
        section.push(id);
        put_text(&mut section, text);
    }
    for (name, value) in &properties.user {
        section.push(id::USER);
        put_text(&mut section, name);
        put_text(&mut section, value);
    }
    put_length(out, section.len());
    out.extend_from_slice(&section);
}

/// Two bytes of length, then the bytes; never more than 65,535 of them.
fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    let text = &text[..text.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}
