//! What a durable session leaves in the store: the one place that knows these bytes.
//!
//! All rows of a session belong to `Owner::mqtt(principal, client id)`. Records (table `Session`): `session` itself,
//! `sub:FILTER` per subscription, `will` of the
//! connection that is there or may come back, `parted:ID` of one that is gone, `in:PACKETID` per QoS 2 publish of the client that is not
//! released yet, `ret:ID` per subscription whose retained values have no rows yet. Its
//! queue holds one row per QoS 1 or 2 publish that the client has not acknowledged.

use bytes::{Buf, BufMut, Bytes};
use tavi_core::topics::SubOptions;
use tavi_store::{Expect, Op, Owner, Table};

use crate::packet::{Body, Qos, Version, Will};

/// The record of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// Seconds that it lives without a connection; `u32::MAX` for ever.
    pub expiry: u32,
    /// When its connection ended, milliseconds since 1970; 0 while it is connected.
    pub left_ms: u64,
    /// The greatest row of its queue that was sent when its connection ended.
    pub sent: u64,
}

/// Key of [`SessionRecord`].
pub const SESSION: &str = "session";
/// Key of the will.
pub const WILL: &str = "will";
/// Keys of wills whose connection is gone begin so; an id follows.
pub const PARTED: &str = "parted:";
/// Keys of subscriptions begin so; the filter follows.
pub const SUBSCRIPTION: &str = "sub:";
/// Keys of retained values that are still to be read for a subscription begin so; an id follows.
pub const GRANTED: &str = "ret:";
/// Keys of unreleased QoS 2 publishes begin so; five digits follow.
pub const INBOUND: &str = "in:";

const FORMAT: u8 = 1;

/// Writes a record.
pub fn put(item: &str, value: Bytes) -> Op {
    Op::Put { table: Table::Session, item: item.into(), value, expect: Expect::Any }
}

/// Removes a record.
pub fn delete(item: &str) -> Op {
    Op::Delete { table: Table::Session, item: item.into(), expect: Expect::Any }
}

/// A session's owner as people read it: whose, and which client.
pub(crate) fn shown(owner: &Owner) -> String {
    owner.name().replace('\0', " ")
}

impl SessionRecord {
    /// Its bytes.
    pub fn encode(self) -> Bytes {
        let mut out = Vec::with_capacity(21);
        out.put_u8(FORMAT);
        out.put_u32(self.expiry);
        out.put_u64(self.left_ms);
        out.put_u64(self.sent);
        out.into()
    }

    /// From its bytes; `None` if they are damaged.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let format = bytes.try_get_u8().ok()?;
        (format == FORMAT).then_some(())?;
        let (expiry, left_ms) = (bytes.try_get_u32().ok()?, bytes.try_get_u64().ok()?);
        // An earlier release did not say what was sent.
        let sent = if bytes.is_empty() { u64::MAX } else { bytes.try_get_u64().ok()? };
        Some(Self { expiry, left_ms, sent })
    }

    /// Milliseconds that are left at `now_ms` of so many seconds since its connection ended. What the wall clock says
    /// is believed only as far as it makes sense: never more than all of them.
    pub fn remains_ms(self, seconds: u32, now_ms: u64) -> u64 {
        let all_ms = u64::from(seconds) * 1000;
        self.left_ms.saturating_add(all_ms).saturating_sub(now_ms).min(all_ms)
    }

    /// When it ends, milliseconds since 1970; `None`: never, or not while it is connected.
    pub fn ends_ms(self) -> Option<u64> {
        (self.left_ms > 0 && self.expiry < u32::MAX).then(|| self.left_ms.saturating_add(u64::from(self.expiry) * 1000))
    }
}

/// Key of a will whose connection is gone.
pub fn parted_item(id: u64) -> String {
    format!("{PARTED}{id}")
}

/// Key of a subscription.
pub fn subscription_item(filter: &str) -> String {
    format!("{SUBSCRIPTION}{filter}")
}

/// Bytes of a subscription's options.
pub fn encode_options(options: &SubOptions) -> Bytes {
    let bits = options.qos as u8 | u8::from(options.no_local) << 2 | u8::from(options.retain_as_published) << 3;
    let mut out = vec![FORMAT, bits];
    out.put_u32(options.identifier);
    out.into()
}

/// Options from their bytes; `None` if they are damaged.
pub fn decode_options(mut bytes: &[u8]) -> Option<SubOptions> {
    let format = bytes.try_get_u8().ok()?;
    (format == FORMAT).then_some(())?;
    let bits = bytes.try_get_u8().ok()?;
    Some(SubOptions {
        qos: Qos::from_u8(bits & 3)?,
        no_local: bits & 4 != 0,
        retain_as_published: bits & 8 != 0,
        identifier: bytes.try_get_u32().ok()?,
    })
}

/// Bytes of a will.
pub fn encode_will(will: &Will) -> Bytes {
    let mut out = Vec::with_capacity(will.body.as_bytes().len() + 8);
    out.put_u8(FORMAT);
    out.put_u32(will.delay);
    put_body(&mut out, &will.body, will.qos, will.retain);
    out.into()
}

/// A will from its bytes; `None` if they are damaged.
pub fn decode_will(mut bytes: Bytes) -> Option<Will> {
    let format = bytes.try_get_u8().ok()?;
    (format == FORMAT).then_some(())?;
    let delay = bytes.try_get_u32().ok()?;
    let (body, qos, retain) = get_body(bytes)?;
    Some(Will { body, qos, retain, delay })
}

/// Key of retained values that are still to be read.
pub fn granted_item(id: u64) -> String {
    format!("{GRANTED}{id}")
}

/// Retained values that a subscription was granted and that have no rows yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRecord {
    /// The subscription's filter.
    pub filter: Box<str>,
    /// The most that it wants.
    pub wanted: Qos,
    /// The topic up to which they have rows.
    pub after: Option<Box<str>>,
}

impl GrantRecord {
    /// Its bytes. A topic has no NUL, so none stands for "none".
    pub fn encode(&self) -> Bytes {
        let mut out = vec![FORMAT, self.wanted as u8];
        out.extend_from_slice(self.filter.as_bytes());
        if let Some(after) = &self.after {
            out.push(0);
            out.extend_from_slice(after.as_bytes());
        }
        out.into()
    }

    /// From its bytes; `None` if they are damaged.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let format = bytes.try_get_u8().ok()?;
        (format == FORMAT).then_some(())?;
        let wanted = Qos::from_u8(bytes.try_get_u8().ok()?)?;
        let text = std::str::from_utf8(bytes).ok()?;
        let (filter, after) =
            text.split_once('\0').map_or((text, None), |(filter, after)| (filter, Some(after.into())));
        Some(Self { filter: filter.into(), wanted, after })
    }
}

/// A QoS 2 publish of the client between PUBLISH and PUBREL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// The id that its publication has.
    pub id: u64,
    /// Topic, properties, payload and RETAIN while the fan-out may have to be repeated; then nothing.
    pub unfinished: Option<(Body, bool)>,
}

/// Key of an inbound QoS 2 publish.
pub fn inbound_item(packet_id: u16) -> String {
    format!("{INBOUND}{packet_id:05}")
}

impl Inbound {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![FORMAT];
        out.put_u64(self.id);
        if let Some((body, retain)) = &self.unfinished {
            put_body(&mut out, body, Qos::ExactlyOnce, *retain);
        }
        out.into()
    }

    /// From its bytes; `None` if they are damaged.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        let format = bytes.try_get_u8().ok()?;
        (format == FORMAT).then_some(())?;
        let id = bytes.try_get_u64().ok()?;
        if bytes.is_empty() {
            return Some(Self { id, unfinished: None });
        }
        let (body, _, retain) = get_body(bytes)?;
        Some(Self { id, unfinished: Some((body, retain)) })
    }
}

pub(crate) fn put_body(out: &mut Vec<u8>, body: &Body, qos: Qos, retain: bool) {
    let version = u8::from(body.version() == Version::V5);
    out.put_u8(qos as u8 | u8::from(retain) << 2 | version << 3);
    out.extend_from_slice(body.as_bytes());
}

pub(crate) fn get_body(mut bytes: Bytes) -> Option<(Body, Qos, bool)> {
    let bits = bytes.try_get_u8().ok()?;
    let version = if bits & 8 != 0 { Version::V5 } else { Version::V4 };
    Some((Body::from_bytes(version, bytes)?, Qos::from_u8(bits & 3)?, bits & 4 != 0))
}

/// Bytes of a [`RowHead`].
pub const HEAD: usize = 4;

/// The fixed part of a row of a durable session's queue; the publication follows unless it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowHead {
    /// The packet id of its delivery, drawn when it was queued, so that it stays the same over reconnects and restarts
    /// (MQTT 5.0 §4.4).
    pub packet_id: u16,
    /// QoS of the delivery, 1 or 2.
    pub qos: Qos,
    /// RETAIN flag of the delivery.
    pub retain: bool,
    /// The client sent PUBREC: only PUBREL and PUBCOMP are missing.
    pub released: bool,
}

impl RowHead {
    /// The bytes of the head. The publication follows them, or is shared with other rows; once released there is none.
    pub fn encode(self) -> Bytes {
        let mut out = Vec::with_capacity(HEAD);
        out.put_u8(FORMAT);
        out.put_u8(self.qos as u8 | u8::from(self.retain) << 2 | u8::from(self.released) << 3);
        out.put_u16(self.packet_id);
        out.into()
    }

    /// The head of a row's bytes; `None` if they are damaged. The publication follows.
    pub fn decode(bytes: &mut Bytes) -> Option<Self> {
        let format = bytes.try_get_u8().ok()?;
        (format == FORMAT).then_some(())?;
        let bits = bytes.try_get_u8().ok()?;
        let packet_id = bytes.try_get_u16().ok().filter(|id| *id != 0)?;
        Some(Self { packet_id, qos: Qos::from_u8(bits & 3)?, retain: bits & 4 != 0, released: bits & 8 != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::PublishProperties;

    fn body() -> Body {
        let properties = PublishProperties { expiry: Some(9), ..PublishProperties::default() };
        Body::encode(Version::V5, "d/pump/up/x", &properties, b"value")
    }

    #[test]
    fn what_is_written_is_read_back() {
        let session = SessionRecord { expiry: 60, left_ms: 1_000, sent: 7 };
        assert_eq!(SessionRecord::decode(&session.encode()), Some(session));
        assert_eq!(session.ends_ms(), Some(61_000));
        let remains = [0, 1_000, 41_000, 61_001].map(|now_ms| session.remains_ms(60, now_ms));
        assert_eq!(remains, [60_000, 60_000, 20_000, 0]);
        let will = Will { body: body(), qos: Qos::AtLeastOnce, retain: true, delay: 3 };
        assert_eq!(decode_will(encode_will(&will)), Some(will));
        let options = SubOptions { qos: Qos::ExactlyOnce, no_local: true, retain_as_published: true, identifier: 7 };
        assert_eq!(decode_options(&encode_options(&options)), Some(options));
        for after in [None, Some("d/pump/up/x".into())] {
            let granted = GrantRecord { filter: "d/+/up/#".into(), wanted: Qos::AtLeastOnce, after };
            assert_eq!(GrantRecord::decode(&granted.encode()), Some(granted));
        }
        for unfinished in [None, Some((body(), true))] {
            let inbound = Inbound { id: 5, unfinished };
            assert_eq!(Inbound::decode(inbound.encode()), Some(inbound));
        }
        let head = RowHead { packet_id: 9, qos: Qos::ExactlyOnce, retain: false, released: true };
        assert_eq!(RowHead::decode(&mut head.encode()), Some(head));
    }

    #[test]
    fn damaged_rows_are_refused() {
        for bytes in [&b""[..], b"\x02", b"\x01\x00", b"\x01\x03\x00\x01", b"\x01\x01\x00\x00"] {
            assert_eq!(RowHead::decode(&mut Bytes::copy_from_slice(bytes)), None);
        }
        assert_eq!(SessionRecord::decode(b"\x01\0"), None);
        assert_eq!(SessionRecord { expiry: 60, left_ms: u64::MAX, sent: 0 }.ends_ms(), Some(u64::MAX));
        assert_eq!(decode_will(Bytes::from_static(b"\x01\0\0\0\0\x01")), None);
    }
}
