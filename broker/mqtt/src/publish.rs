//! PUBLISH (MQTT 3.1.1 §3.3, MQTT 5.0 §3.3): decoded into one allocation, encoded once for all receivers.
//!
//! The packet id stands between topic and properties, so the shared [`Body`] is everything *but* the packet id, in
//! wire order; each receiver's packet is its own head, the topic part, its own packet id, the rest. A received
//! packet's body is in that form already: what one client sent at one version goes to the others of that version as it came.

use bytes::Bytes;
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
pub struct Head {
    /// Sent before on an earlier connection.
    pub dup: bool,
    /// Quality of service of this delivery.
    pub qos: Qos,
    /// The RETAIN flag of this delivery.
    pub retain: bool,
    /// Ignored at QoS 0.
    pub packet_id: u16,
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

/// Bytes of the whole packet that [`put`] writes for a body of `body` bytes.
pub fn packet_len(body: usize, qos: Qos) -> usize {
    let remaining = remaining(body, qos);
    1 + length_width(remaining) + remaining
}

/// Appends one receiver's packet; `body` are the bytes of [`Body::as_bytes`].
pub fn put(out: &mut Vec<u8>, body: &[u8], head: Head) {
    let Head { dup, qos, retain, packet_id } = head;
    let remaining = remaining(body.len(), qos);
    out.reserve(remaining + 5);
    out.push(0x30 | u8::from(dup) << 3 | (qos as u8) << 1 | u8::from(retain));
    put_length(out, remaining);
    if qos == Qos::AtMostOnce {
        out.extend_from_slice(body);
        return;
    }
    let (topic, rest) = body.split_at(topic_end(body));
    out.extend_from_slice(topic);
    out.extend_from_slice(&packet_id.to_be_bytes());
    out.extend_from_slice(rest);
}

fn remaining(body: usize, qos: Qos) -> usize {
    body + if qos == Qos::AtMostOnce { 0 } else { 2 }
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
