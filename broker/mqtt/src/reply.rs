//! The broker's own packets: CONNACK, SUBACK and UNSUBACK through the crate, the small hot ones written here.

use bytes::BytesMut;
use rumqttd::protocol::{self as wire, Protocol};

use crate::frame::length_width;
use crate::packet::{Qos, Reason, Version};

/// What CONNACK tells a client that was let in (MQTT 5.0 §3.2.2.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Welcome {
    /// The session was there before.
    pub session_present: bool,
    /// The client identifier that the broker chose.
    pub assigned_id: Option<String>,
    /// How many QoS 1 and 2 publishes the broker takes unacknowledged.
    pub receive_maximum: u16,
    /// Bytes of the largest packet that it takes.
    pub maximum_packet: u32,
    /// The session expiry interval, where it differs from what the client asked for.
    pub expiry: Option<u32>,
    /// The keep-alive, where the broker wants another one than the client.
    pub keep_alive: Option<u16>,
}

/// A packet that has to be sent does not fit into the client's Maximum Packet Size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

/// Appends the CONNACK that lets a client in, within `maximum` bytes: what only repeats a default is left out if it must.
///
/// # Errors
/// What has to be said is larger (MQTT 5.0 §3.1.2.11.4); nothing was appended.
pub fn welcome(out: &mut Vec<u8>, version: Version, welcome: &Welcome, maximum: u32) -> Result<(), TooLarge> {
    let fits = [Some(1), None].into_iter().find_map(|default| {
        let mut packet = Vec::new();
        connack(&mut packet, version, welcome, default);
        (packet.len() <= maximum as usize).then_some(packet)
    });
    out.extend_from_slice(&fits.ok_or(TooLarge)?);
    Ok(())
}

/// `default`: what is said of things that are as the standard assumes them anyway.
fn connack(out: &mut Vec<u8>, version: Version, welcome: &Welcome, default: Option<u8>) {
    let connack = wire::ConnAck { session_present: welcome.session_present, code: wire::ConnectReturnCode::Success };
    let properties = wire::ConnAckProperties {
        session_expiry_interval: welcome.expiry,
        receive_max: Some(welcome.receive_maximum),
        max_packet_size: Some(welcome.maximum_packet),
        assigned_client_identifier: welcome.assigned_id.clone(),
        server_keep_alive: welcome.keep_alive,
        retain_available: default,
        wildcard_subscription_available: default,
        // §3.2.2.3.12, §3.2.2.3.13: what is not offered has to be said.
        subscription_identifiers_available: Some(0),
        shared_subscription_available: Some(0),
        topic_alias_max: default.map(|_| 0),
        ..wire::ConnAckProperties::default()
    };
    let properties = (version == Version::V5).then_some(properties);
    crate_encode(out, version, wire::Packet::ConnAck(connack, properties));
}

/// Appends the CONNACK that refuses a client. 3.1.1 knows five codes (§3.2.2.3); a reason without one sends nothing,
/// as §3.1.4 wants for everything else: the connection is just closed.
pub fn refuse(out: &mut Vec<u8>, version: Version, reason: Reason) {
    let code = match version {
        // Written by hand: the crate has no encoding for all of them.
        Version::V5 => return out.extend_from_slice(&[0x20, 3, 0, reason.0, 0]),
        Version::V4 => legacy_code(reason),
    };
    if let Some(code) = code {
        let connack = wire::ConnAck { session_present: false, code };
        crate_encode(out, version, wire::Packet::ConnAck(connack, None));
    }
}

fn legacy_code(reason: Reason) -> Option<wire::ConnectReturnCode> {
    Some(match reason {
        Reason::UNSUPPORTED_VERSION => wire::ConnectReturnCode::RefusedProtocolVersion,
        Reason::CLIENT_ID => wire::ConnectReturnCode::ClientIdentifierNotValid,
        Reason::UNAVAILABLE | Reason::BUSY | Reason::QUOTA | Reason::SHUTTING_DOWN => {
            wire::ConnectReturnCode::ServiceUnavailable
        }
        Reason::BAD_CREDENTIALS => wire::ConnectReturnCode::BadUserNamePassword,
        Reason::NOT_AUTHORIZED => wire::ConnectReturnCode::NotAuthorized,
        _ => return None,
    })
}

/// Bytes of a SUBACK or UNSUBACK for so many filters.
pub fn suback_len(version: Version, filters: usize) -> usize {
    let remaining = filters + if version == Version::V5 { 3 } else { 2 };
    1 + length_width(remaining) + remaining
}

/// Appends a SUBACK: for each filter the granted QoS or why not.
pub fn suback(out: &mut Vec<u8>, version: Version, packet_id: u16, grants: &[Result<Qos, Reason>]) {
    let return_codes = grants.iter().map(|grant| grant_code(version, *grant)).collect();
    let packet = wire::SubAck { pkid: packet_id, return_codes };
    crate_encode(out, version, wire::Packet::SubAck(packet, None));
}

fn grant_code(version: Version, grant: Result<Qos, Reason>) -> wire::SubscribeReasonCode {
    use wire::SubscribeReasonCode as Code;
    match (grant, version) {
        (Ok(Qos::AtMostOnce), _) => Code::QoS0,
        (Ok(Qos::AtLeastOnce), _) => Code::QoS1,
        (Ok(Qos::ExactlyOnce), _) => Code::QoS2,
        // MQTT 3.1.1 §3.9.3: 0x80 is the only failure.
        (Err(_), Version::V4) => Code::Failure,
        (Err(Reason::NOT_AUTHORIZED), _) => Code::NotAuthorized,
        (Err(Reason::FILTER_INVALID | Reason::TOPIC_INVALID), _) => Code::TopicFilterInvalid,
        (Err(Reason::QUOTA), _) => Code::QuotaExceeded,
        (Err(_), _) => Code::Unspecified,
    }
}

/// Appends an UNSUBACK: in 5 with, for each filter, whether there was such a subscription.
pub fn unsuback(out: &mut Vec<u8>, version: Version, packet_id: u16, existed: &[bool]) {
    let reason = |existed: &bool| match existed {
        true => wire::UnsubAckReason::Success,
        false => wire::UnsubAckReason::NoSubscriptionExisted,
    };
    let packet = wire::UnsubAck { pkid: packet_id, reasons: existed.iter().map(reason).collect() };
    crate_encode(out, version, wire::Packet::UnsubAck(packet, None));
}

/// The four acknowledgements by the first byte of their packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AckKind {
    /// PUBACK (§3.4).
    PubAck = 0x40,
    /// PUBREC (§3.5).
    PubRec = 0x50,
    /// PUBREL (§3.6), whose flags are 2.
    PubRel = 0x62,
    /// PUBCOMP (§3.7).
    PubComp = 0x70,
}

impl AckKind {
    /// The kind whose packets begin so.
    pub(crate) fn from_bits(bits: u8) -> Option<Self> {
        [Self::PubAck, Self::PubRec, Self::PubRel, Self::PubComp].into_iter().find(|kind| *kind as u8 == bits)
    }
}

/// Appends an acknowledgement. MQTT 5.0 §3.4.2.1: the reason is left out when it is success; 3.1.1 has none.
pub fn ack(out: &mut Vec<u8>, version: Version, kind: AckKind, packet_id: u16, reason: Reason) {
    let [high, low] = packet_id.to_be_bytes();
    if version == Version::V4 || reason == Reason::SUCCESS {
        out.extend_from_slice(&[kind as u8, 2, high, low]);
    } else {
        out.extend_from_slice(&[kind as u8, 3, high, low, reason.0]);
    }
}

/// Appends a PINGRESP (§3.13).
pub fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xD0, 0]);
}

/// Appends a DISCONNECT; a server of 3.1.1 sends none (MQTT 3.1.1 §3.14). Written here: the crate's length is
/// wrong when there are no properties.
pub fn disconnect(out: &mut Vec<u8>, version: Version, reason: Reason) {
    if version == Version::V5 {
        out.extend_from_slice(&[0xE0, 2, reason.0, 0]);
    }
}

/// Lets the crate encode. It fails only over 256 MiB, which no packet of ours comes near.
fn crate_encode(out: &mut Vec<u8>, version: Version, packet: wire::Packet) {
    let mut buffer = BytesMut::with_capacity(64);
    let written = match version {
        Version::V4 => wire::v4::V4.write(packet, &mut buffer),
        Version::V5 => wire::v5::V5.write(packet, &mut buffer),
    };
    if written.is_ok() {
        out.extend_from_slice(&buffer);
    }
}
