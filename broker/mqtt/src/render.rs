//! Between MQTT's publishes and the core's publications: one shared body, made when first needed.

use std::sync::Arc;

use bytes::Bytes;
use tavi_core::{Change, Properties, Publication, topics::Draft};

use crate::packet::{Body, PublishProperties, Qos, Version};

/// The bytes of a publication for all receivers, of either version; made once. What each receiver splices in is in its
/// [`Head`](crate::publish::Head), the [`expiry`] too.
pub fn body(publication: &Publication) -> &Bytes {
    publication.rendered.mqtt.get_or_init(|| {
        let properties = wire_properties(publication);
        Body::encode(Version::V5, &publication.topic, &properties, &publication.payload).into_bytes()
    })
}

/// The seconds that a publication has left at `now_ms`, if it expires at all (MQTT 5.0 §3.3.2.3.3).
pub fn expiry(publication: &Publication, now_ms: u64) -> Option<u32> {
    let at = publication.properties.as_ref()?.expires_ms?;
    Some((at.saturating_sub(now_ms) / 1000).min(u64::from(u32::MAX)) as u32)
}

fn wire_properties(publication: &Publication) -> PublishProperties {
    let content_type = publication.content_type.as_ref().map(|t| bounded(t));
    let Some(own) = publication.properties.as_deref() else {
        return PublishProperties { content_type, ..PublishProperties::default() };
    };
    PublishProperties {
        utf8: own.utf8,
        expiry: None,
        content_type,
        response_topic: own.response_topic.as_ref().map(|t| bounded(t)),
        correlation: own.correlation.clone(),
        user: own.user.iter().map(|(name, value)| (bounded(name), bounded(value))).collect(),
    }
}

/// A string of MQTT has at most 65,535 bytes (§1.5.4); other protocols may have brought a longer one.
fn bounded(text: &str) -> Bytes {
    Bytes::copy_from_slice(&text.as_bytes()[..text.floor_char_boundary(usize::from(u16::MAX))])
}

/// The draft of what a client published or left as its will. `topic` is the body's, perhaps shared with earlier drafts.
pub fn draft(topic: Arc<str>, body: &Body, qos: Qos, retain: bool, now_ms: u64) -> Draft {
    let payload = body.payload();
    // semantics.md, values: RETAIN with an empty payload clears the topic.
    let change = if retain && payload.is_empty() { Change::Clear } else { Change::Value };
    let mut draft = Draft { topic, change, payload, qos, retain, ..Draft::default() };
    if body.has_properties() {
        let found = body.properties();
        draft.content_type = found.content_type.as_deref().map(|t| text(t).into());
        draft.properties = core_properties(found, now_ms);
    }
    draft
}

fn core_properties(found: PublishProperties, now_ms: u64) -> Option<Box<Properties>> {
    let properties = Properties {
        response_topic: found.response_topic.as_deref().map(|t| text(t).into()),
        correlation: found.correlation,
        utf8: found.utf8,
        expires_ms: found.expiry.map(|seconds| now_ms + u64::from(seconds) * 1000),
        user: found.user.iter().map(|(name, value)| (text(name).into(), text(value).into())).collect(),
    };
    (properties != Properties::default()).then(|| Box::new(properties))
}

/// The walk proved it to be text.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}
