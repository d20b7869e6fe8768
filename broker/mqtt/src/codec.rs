//! The guard round rumqttd's codec: checks every byte first, lets the crate decode what it decodes well, hides its types.
//!
//! What is checked before the crate sees a packet, and why it does not do so itself (read in its source, 0.20.0):
//! - the packet's type, flags and length ([`Frame::scan`]): its dispatch has arms for packets of a server that stop
//!   the process, and it ignores reserved flags;
//! - each field lies inside the packet and each property inside its section: its property loops compare a running
//!   count with the section's length only between properties;
//! - each property belongs to the packet and stands there once: it takes the last of several;
//! - reserved bits of the connect flags and of subscription options, packet id 0, U+0000 in strings, flags that are
//!   neither 0 nor 1, nothing after the last field: it looks at none of them;
//! - a Subscription Identifier never reaches it: its running count goes wrong on it.
//!
//! Decoded here and not by the crate: PUBLISH (see `publish.rs`), PINGREQ, and the four acknowledgements, whose
//! decoders differ between versions for no reason and are shorter than their guard.
//! Whatever the crate still refuses afterwards is answered as a malformed packet; it is never asked for a cut one.

use bytes::BytesMut;
use rumqttd::protocol::{self as wire, Protocol};
use zeroize::Zeroizing;

use crate::error::Fault;
use crate::frame::{Frame, Kind};
use crate::packet::{
    Ack, Body, Connect, Disconnect, Options, Packet, Password, Publish, PublishProperties, Qos, Reason, RetainHandling,
    Subscribe, Unsubscribe, Version, Will, Wish,
};
use crate::publish::check_property;
use crate::walk::{Allowed, Walk, each_property, id};

/// The decoder of one connection: knows how far the connection is and which version it speaks.
#[derive(Clone, Copy, Debug)]
pub struct Codec {
    version: Option<Version>,
    limit: u32,
}

impl Codec {
    /// Before CONNECT: packets of at most `limit` bytes, and only a CONNECT.
    pub fn new(limit: u32) -> Self {
        Self { version: None, limit }
    }

    /// After login: packets of up to `limit` bytes.
    pub fn raise_limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    /// The version that CONNECT fixed.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Decodes the packet that `bytes` begins with and tells how long it was. `None`: not whole yet.
    ///
    /// # Errors
    /// The peer's fault; the connection is over. Bytes are only looked at, so any way of cutting a stream into
    /// pieces gives the same packets and the same fault.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Option<(Packet, usize)>, Fault> {
        self.expect_connect(bytes)?;
        let Some(frame) = Frame::scan(bytes, self.limit as usize)? else { return Ok(None) };
        let packet = &bytes[..frame.total];
        let decoded = match self.version {
            None => connect(packet, frame, &mut self.version)?,
            Some(version) => after_connect(packet, frame, version)?,
        };
        Ok(Some((decoded, frame.total)))
    }

    /// MQTT 5.0 §3.1: a stranger whose first byte is no CONNECT is refused for that, before anything else is looked at.
    fn expect_connect(&self, bytes: &[u8]) -> Result<(), Fault> {
        match bytes.first() {
            Some(first) if self.version.is_none() && first >> 4 != Kind::Connect as u8 => {
                Err(Fault::Protocol("the first packet is not CONNECT"))
            }
            _ => Ok(()),
        }
    }
}

fn after_connect(packet: &[u8], frame: Frame, version: Version) -> Result<Packet, Fault> {
    let body = Walk::new(&packet[frame.header..]);
    match frame.kind {
        Kind::Publish => Publish::decode(packet, frame, version).map(Packet::Publish),
        Kind::PubAck => ack(body, version).map(Packet::PubAck),
        Kind::PubRec => ack(body, version).map(Packet::PubRec),
        Kind::PubRel => ack(body, version).map(Packet::PubRel),
        Kind::PubComp => ack(body, version).map(Packet::PubComp),
        Kind::Subscribe => subscribe(packet, body, version),
        Kind::Unsubscribe => unsubscribe(packet, body, version),
        Kind::PingReq => body.end().map(|()| Packet::PingReq),
        Kind::Disconnect => disconnect(packet, body, version),
        // MQTT 5.0 §3.1, 3.1.1 §3.1: a second CONNECT is a protocol error.
        Kind::Connect => Err(Fault::Protocol("a second CONNECT")),
    }
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP (MQTT 3.1.1 §3.4 to §3.7, MQTT 5.0 §3.4 to §3.7): a packet id; in 5 perhaps a
/// reason code (absent: success), then perhaps properties.
fn ack(mut body: Walk<'_>, version: Version) -> Result<Ack, Fault> {
    let packet_id = body.packet_id()?;
    if version == Version::V4 || body.left() == 0 {
        return body.end().map(|()| Ack { packet_id, reason: Reason::SUCCESS });
    }
    let reason = Reason(body.byte()?);
    if body.left() > 0 {
        each_property(body.properties()?, IN_ACK, |_, _| Ok(()))?;
    }
    body.end()?;
    Ok(Ack { packet_id, reason })
}

const IN_ACK: Allowed = Allowed::of(&[id::REASON, id::USER]);
/// MQTT 5.0 §3.1.2.11.
const IN_CONNECT: Allowed = Allowed::of(&[
    id::SESSION_EXPIRY,
    id::RECEIVE_MAXIMUM,
    id::MAXIMUM_PACKET,
    id::ALIAS_MAXIMUM,
    id::RESPONSE_INFO,
    id::PROBLEM_INFO,
    id::USER,
    id::AUTH_METHOD,
    id::AUTH_DATA,
]);
/// MQTT 5.0 §3.1.3.2.
const IN_WILL: Allowed = Allowed::of(&[
    id::WILL_DELAY,
    id::PAYLOAD_FORMAT,
    id::MESSAGE_EXPIRY,
    id::CONTENT_TYPE,
    id::RESPONSE_TOPIC,
    id::CORRELATION,
    id::USER,
]);

// --- CONNECT ---

const FLAG_RESERVED: u8 = 0x01;
const FLAG_WILL: u8 = 0x04;
const FLAG_PASSWORD: u8 = 0x40;
const FLAG_USER: u8 = 0x80;

fn connect(packet: &[u8], frame: Frame, version: &mut Option<Version>) -> Result<Packet, Fault> {
    let Checked { version: level, has_user, password } = check_connect(Walk::new(&packet[frame.header..]), version)?;
    // The password is the last field. The crate would keep copies that nobody wipes, so it gets none.
    let mut copy = BytesMut::from(packet);
    let secret = password.map_or(0, str::len);
    copy[packet.len() - secret..].fill(b'*');
    match crate_decode(copy, level)? {
        wire::Packet::Connect(connect, properties, will, will_properties, login) => {
            let will = will.map(|will| own_will(level, will, will_properties));
            let own = own_connect(level, connect, properties.unwrap_or(NO_CONNECT_PROPERTIES));
            // The crate turns an absent and an empty user name into one; the flags tell them apart.
            let user = has_user.then(|| login.map(|login| login.username).unwrap_or_default());
            let password = password.map(|text| Password(Zeroizing::new(text.to_owned())));
            Ok(Packet::Connect(Box::new(Connect { will, user, password, ..own })))
        }
        _ => Err(NOT_WHAT_IT_WAS),
    }
}

/// What the walk over a CONNECT found.
struct Checked<'a> {
    version: Version,
    has_user: bool,
    password: Option<&'a str>,
}

/// Walks the whole CONNECT; gives its version by `known` too, so that a refusal speaks it.
fn check_connect<'a>(mut body: Walk<'a>, known: &mut Option<Version>) -> Result<Checked<'a>, Fault> {
    // MQTT 5.0 §3.1.2.1: any other protocol name may end the connection without an answer; 3.1 is told its level.
    match body.string()? {
        "MQTT" => {}
        "MQIsdp" => return Err(Fault::Version(body.byte()?)),
        _ => return Err(Fault::Malformed("the protocol is not MQTT")),
    }
    let version = match body.byte()? {
        4 => Version::V4,
        5 => Version::V5,
        other => return Err(Fault::Version(other)),
    };
    *known = Some(version);
    let flags = body.byte()?;
    check_connect_flags(flags, version)?;
    body.two()?;
    if version == Version::V5 {
        check_connect_properties(body.properties()?)?;
    }
    body.string()?;
    if flags & FLAG_WILL != 0 {
        check_will(&mut body, version)?;
    }
    if flags & FLAG_USER != 0 {
        body.string()?;
    }
    let password = if flags & FLAG_PASSWORD != 0 {
        // §3.1.3.6 allows any bytes; the crate wants text, and so do our passwords and tokens.
        Some(std::str::from_utf8(body.binary()?).map_err(|_| Fault::PasswordNotText)?)
    } else {
        None
    };
    body.end()?;
    Ok(Checked { version, has_user: flags & FLAG_USER != 0, password })
}

fn check_connect_flags(flags: u8, version: Version) -> Result<(), Fault> {
    let will_bits = flags & 0x38;
    if flags & FLAG_RESERVED != 0 {
        return Err(Fault::Malformed("reserved connect flag")); // §3.1.2.3
    }
    if flags & FLAG_WILL == 0 && will_bits != 0 {
        return Err(Fault::Malformed("will flags without a will")); // §3.1.2.6, §3.1.2.7
    }
    if will_bits & 0x18 == 0x18 {
        return Err(Fault::Malformed("will of QoS 3")); // §3.1.2.6
    }
    if version == Version::V4 && flags & FLAG_PASSWORD != 0 && flags & FLAG_USER == 0 {
        return Err(Fault::Malformed("password without user name")); // MQTT 3.1.1 §3.1.2.9
    }
    Ok(())
}

/// §3.1.2.11.10: authentication data without a method is a protocol error.
fn check_connect_properties(section: Walk<'_>) -> Result<(), Fault> {
    let (mut method, mut data) = (false, false);
    each_property(section, IN_CONNECT, |id, _| {
        method |= id == id::AUTH_METHOD;
        data |= id == id::AUTH_DATA;
        Ok(())
    })?;
    if data && !method { Err(Fault::Protocol("authentication data without a method")) } else { Ok(()) }
}

fn check_will(body: &mut Walk<'_>, version: Version) -> Result<(), Fault> {
    if version == Version::V5 {
        each_property(body.properties()?, IN_WILL, check_property)?;
    }
    body.string()?;
    body.binary()?;
    Ok(())
}

const NO_CONNECT_PROPERTIES: wire::ConnectProperties = wire::ConnectProperties {
    session_expiry_interval: None,
    receive_maximum: None,
    max_packet_size: None,
    topic_alias_max: None,
    request_response_info: None,
    request_problem_info: None,
    user_properties: Vec::new(),
    authentication_method: None,
    authentication_data: None,
};

fn own_connect(version: Version, connect: wire::Connect, properties: wire::ConnectProperties) -> Connect {
    // MQTT 3.1.1 §3.1.2.4: without clean session the state outlives the connection, with no end of its own.
    let legacy_expiry = if connect.clean_session { 0 } else { u32::MAX };
    let expiry = match version {
        Version::V4 => legacy_expiry,
        Version::V5 => properties.session_expiry_interval.unwrap_or(0),
    };
    Connect {
        version,
        client_id: connect.client_id,
        clean: connect.clean_session,
        keep_alive: connect.keep_alive,
        expiry,
        receive_maximum: properties.receive_maximum.unwrap_or(u16::MAX),
        maximum_packet: properties.max_packet_size.unwrap_or(u32::MAX),
        auth_method: properties.authentication_method.is_some(),
        will: None,
        user: None,
        password: None,
    }
}

fn own_will(version: Version, will: wire::LastWill, properties: Option<wire::LastWillProperties>) -> Will {
    let delay = properties.as_ref().and_then(|p| p.delay_interval).unwrap_or(0);
    let properties = properties.map(own_will_properties).unwrap_or_default();
    // The walk proved the topic to be text.
    let topic = std::str::from_utf8(&will.topic).unwrap_or_default();
    let body = Body::encode(version, topic, &properties, &will.message);
    Will { body, qos: own_qos(will.qos), retain: will.retain, delay }
}

fn own_will_properties(from: wire::LastWillProperties) -> PublishProperties {
    PublishProperties {
        utf8: from.payload_format_indicator.map(|flag| flag == 1),
        expiry: from.message_expiry_interval,
        content_type: from.content_type.map(Into::into),
        response_topic: from.response_topic.map(Into::into),
        correlation: from.correlation_data,
        user: from.user_properties.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
    }
}

fn own_qos(qos: wire::QoS) -> Qos {
    match qos {
        wire::QoS::AtMostOnce => Qos::AtMostOnce,
        wire::QoS::AtLeastOnce => Qos::AtLeastOnce,
        wire::QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

// --- SUBSCRIBE, UNSUBSCRIBE, DISCONNECT ---

fn subscribe(packet: &[u8], mut body: Walk<'_>, version: Version) -> Result<Packet, Fault> {
    let packet_id = body.packet_id()?;
    if version == Version::V5 && has_identifier(body.properties()?)? {
        return Ok(Packet::Subscribe(Subscribe {
            packet_id,
            has_identifier: true,
            filters: walk_filters(body, version)?,
        }));
    }
    check_filters(body, version)?;
    match crate_decode(BytesMut::from(packet), version)? {
        wire::Packet::Subscribe(found, _) => {
            let filters = found.filters.into_iter().map(own_wish).collect();
            Ok(Packet::Subscribe(Subscribe { packet_id, has_identifier: false, filters }))
        }
        _ => Err(NOT_WHAT_IT_WAS),
    }
}

fn has_identifier(section: Walk<'_>) -> Result<bool, Fault> {
    let mut found = false;
    each_property(section, Allowed::of(&[id::SUBSCRIPTION_ID, id::USER]), |id, _| {
        found |= id == id::SUBSCRIPTION_ID;
        Ok(())
    })?;
    Ok(found)
}

/// MQTT 5.0 §3.8.3: at least one filter; §3.8.3.1: QoS 3, retain handling 3 and set reserved bits are errors.
fn check_filters(mut body: Walk<'_>, version: Version) -> Result<(), Fault> {
    let reserved = if version == Version::V5 { 0xC0 } else { 0xFC };
    if body.left() == 0 {
        return Err(Fault::Protocol("SUBSCRIBE without a filter"));
    }
    while body.left() > 0 {
        body.string()?;
        let options = body.byte()?;
        if options & reserved != 0 || options & 0x03 == 0x03 || options & 0x30 == 0x30 {
            return Err(Fault::Malformed("reserved subscription options"));
        }
    }
    Ok(())
}

/// The filters of a SUBSCRIBE that is refused as a whole: only their number matters for the answer.
fn walk_filters(mut body: Walk<'_>, version: Version) -> Result<Vec<Wish>, Fault> {
    check_filters(body, version)?;
    let mut filters = Vec::new();
    while body.left() > 0 {
        filters.push(Wish { filter: body.string()?.to_owned(), options: Options::default() });
        body.byte()?;
    }
    Ok(filters)
}

fn own_wish(filter: wire::Filter) -> Wish {
    let retain_handling = match filter.retain_forward_rule {
        wire::RetainForwardRule::OnEverySubscribe => RetainHandling::Always,
        wire::RetainForwardRule::OnNewSubscribe => RetainHandling::IfNew,
        wire::RetainForwardRule::Never => RetainHandling::Never,
    };
    let options = Options {
        qos: own_qos(filter.qos),
        no_local: filter.nolocal,
        retain_as_published: filter.preserve_retain,
        retain_handling,
    };
    Wish { filter: filter.path, options }
}

fn unsubscribe(packet: &[u8], mut body: Walk<'_>, version: Version) -> Result<Packet, Fault> {
    let packet_id = body.packet_id()?;
    if version == Version::V5 {
        each_property(body.properties()?, Allowed::of(&[id::USER]), |_, _| Ok(()))?;
    }
    // MQTT 5.0 §3.10.3: at least one filter.
    if body.left() == 0 {
        return Err(Fault::Protocol("UNSUBSCRIBE without a filter"));
    }
    while body.left() > 0 {
        body.string()?;
    }
    match crate_decode(BytesMut::from(packet), version)? {
        wire::Packet::Unsubscribe(found, _) => {
            Ok(Packet::Unsubscribe(Unsubscribe { packet_id, filters: found.filters }))
        }
        _ => Err(NOT_WHAT_IT_WAS),
    }
}

/// MQTT 5.0 §3.14.2: reason and properties may both be absent, or the properties alone; the crate cannot read the
/// latter, so a bare reason is read here.
fn disconnect(packet: &[u8], mut body: Walk<'_>, version: Version) -> Result<Packet, Fault> {
    if version == Version::V4 || body.left() < 2 {
        let reason = if version == Version::V5 && body.left() == 1 { body.byte()? } else { 0 };
        body.end()?;
        return Ok(Packet::Disconnect(Disconnect { reason: Reason(reason), expiry: None }));
    }
    let reason = Reason(body.byte()?);
    each_property(body.properties()?, Allowed::of(&[id::SESSION_EXPIRY, id::REASON, id::USER]), |_, _| Ok(()))?;
    body.end()?;
    match crate_decode(BytesMut::from(packet), version)? {
        wire::Packet::Disconnect(_, properties) => {
            let expiry = properties.and_then(|p| p.session_expiry_interval);
            Ok(Packet::Disconnect(Disconnect { reason, expiry }))
        }
        _ => Err(NOT_WHAT_IT_WAS),
    }
}

// --- the crate ---

const NOT_WHAT_IT_WAS: Fault = Fault::Malformed("the packet decodes as another one");

/// Lets the crate decode one whole packet that a walk has proved.
fn crate_decode(mut packet: BytesMut, version: Version) -> Result<wire::Packet, Fault> {
    let size = packet.len();
    let decoded = match version {
        Version::V4 => wire::v4::V4.read_mut(&mut packet, size),
        Version::V5 => wire::v5::V5.read_mut(&mut packet, size),
    };
    // Whatever it says, the packet was whole: "more bytes needed" would be a lie as well.
    decoded.map_err(|_| Fault::Malformed("refused by the decoder"))
}

/// For fuzzing: decodes a stream whole and cut in two at a place that its first byte chooses; the packets and the
/// fault must be the same, and every publish must survive a round trip. Never panics unless the codec is wrong.
pub fn fuzz_codec(data: &[u8]) {
    let Some((&cut, stream)) = data.split_first() else { return };
    let whole = transcript(&[stream]);
    let middle = stream.len() * usize::from(cut) / 256;
    let (front, back) = stream.split_at(middle);
    assert_eq!(whole, transcript(&[front, back]), "a cut at {middle} changes what is decoded");
}

/// What a stream decodes to, as text, when it comes in these pieces.
fn transcript(pieces: &[&[u8]]) -> Vec<String> {
    let mut codec = Codec::new(4096);
    let (mut buffer, mut lines) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match codec.decode(&buffer) {
                Ok(None) => break,
                Ok(Some((packet, used))) => {
                    buffer.drain(..used);
                    codec.raise_limit(1 << 16);
                    lines.push(describe(&packet));
                }
                Err(fault) => {
                    lines.push(fault.to_string());
                    return lines;
                }
            }
        }
    }
    lines
}

fn describe(packet: &Packet) -> String {
    if let Packet::Publish(publish) = packet {
        let body = &publish.body;
        let again = Body::encode(body.version(), body.topic(), &body.properties(), &body.payload());
        assert_eq!(again.payload(), body.payload());
        assert_eq!(again.properties(), body.properties());
    }
    format!("{packet:?}")
}
