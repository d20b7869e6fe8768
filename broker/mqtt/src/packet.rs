//! The packets a client may send and the values in them: Tavi's own types, already checked by the codec.

use bytes::Bytes;

pub use crate::publish::{Body, Publish};
pub use tavi_core::Qos;

/// The protocol level of a connection, fixed by its CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4 (MQTT 3.1.1 §3.1.2.2).
    #[default]
    V4,
    /// MQTT 5.0, protocol level 5 (MQTT 5.0 §3.1.2.2).
    V5,
}

/// A reason code (MQTT 5.0 §2.4). Codes below 0x80 are successes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub u8);

impl Reason {
    /// Done; also a normal disconnection.
    pub const SUCCESS: Self = Self(0x00);
    /// A client leaves but wants its will published (MQTT 5.0 §3.14.2.1).
    pub const DISCONNECT_WITH_WILL: Self = Self(0x04);
    /// UNSUBACK: there was no such subscription.
    pub const NO_SUBSCRIPTION_EXISTED: Self = Self(0x11);
    /// Nobody says why.
    pub const UNSPECIFIED: Self = Self(0x80);
    /// The bytes are not a packet of this protocol.
    pub const MALFORMED: Self = Self(0x81);
    /// A well-formed packet that may not be sent here.
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    /// The protocol level is not 4 or 5.
    pub const UNSUPPORTED_VERSION: Self = Self(0x84);
    /// The client identifier is not acceptable.
    pub const CLIENT_ID: Self = Self(0x85);
    /// Wrong user name or password.
    pub const BAD_CREDENTIALS: Self = Self(0x86);
    /// Not allowed.
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    /// The store does not answer.
    pub const UNAVAILABLE: Self = Self(0x88);
    /// Too much to do.
    pub const BUSY: Self = Self(0x89);
    /// The broker stops.
    pub const SHUTTING_DOWN: Self = Self(0x8B);
    /// An authentication method was asked for; there is none.
    pub const BAD_AUTH_METHOD: Self = Self(0x8C);
    /// One and a half times the keep-alive passed in silence.
    pub const KEEP_ALIVE: Self = Self(0x8D);
    /// Another connection took this session.
    pub const TAKEN_OVER: Self = Self(0x8E);
    /// Not a filter that this broker accepts.
    pub const FILTER_INVALID: Self = Self(0x8F);
    /// Not a topic that this broker accepts.
    pub const TOPIC_INVALID: Self = Self(0x90);
    /// A new use of a packet id that is still in use.
    pub const PACKET_ID_IN_USE: Self = Self(0x91);
    /// PUBREL or PUBREC for an unknown packet id.
    pub const PACKET_ID_NOT_FOUND: Self = Self(0x92);
    /// More unacknowledged publishes than Receive Maximum.
    pub const RECEIVE_MAXIMUM: Self = Self(0x93);
    /// A topic alias, though none may be used.
    pub const TOPIC_ALIAS: Self = Self(0x94);
    /// Over Maximum Packet Size.
    pub const TOO_LARGE: Self = Self(0x95);
    /// A limit was reached: a full mailbox, too many subscriptions.
    pub const QUOTA: Self = Self(0x97);
    /// An operator ended it: a revoked device, a removed account.
    pub const ADMINISTRATIVE: Self = Self(0x98);
    /// Shared subscriptions are not offered.
    pub const SHARED_UNSUPPORTED: Self = Self(0x9E);
    /// Subscription identifiers are not offered.
    pub const SUBSCRIPTION_ID_UNSUPPORTED: Self = Self(0xA1);

    /// True for codes from 0x80 on (MQTT 5.0 §2.4).
    pub fn is_failure(self) -> bool {
        self.0 >= 0x80
    }
}

/// A packet from a client.
#[derive(Debug)]
pub enum Packet {
    /// The first packet of a connection, and no other (MQTT 5.0 §3.1).
    Connect(Box<Connect>),
    /// A value for a topic.
    Publish(Publish),
    /// The client has our QoS 1 publish.
    PubAck(Ack),
    /// The client has our QoS 2 publish.
    PubRec(Ack),
    /// The client releases its own QoS 2 packet id.
    PubRel(Ack),
    /// The client has released ours.
    PubComp(Ack),
    /// Filters to subscribe to.
    Subscribe(Subscribe),
    /// Filters to leave.
    Unsubscribe(Unsubscribe),
    /// The client is alive.
    PingReq,
    /// The client leaves in order.
    Disconnect(Disconnect),
}

/// CONNECT (MQTT 3.1.1 §3.1, MQTT 5.0 §3.1).
pub struct Connect {
    /// Protocol level.
    pub version: Version,
    /// Empty: the broker assigns one.
    pub client_id: String,
    /// 3.1.1 clean session, 5 clean start.
    pub clean: bool,
    /// Seconds; 0 is off.
    pub keep_alive: u16,
    /// Seconds; 0 ends the session with the connection, `u32::MAX` never. In 3.1.1 derived from clean session.
    pub expiry: u32,
    /// How many QoS 1 and 2 publishes the client takes unacknowledged; 1 to 65,535.
    pub receive_maximum: u16,
    /// Bytes of the largest packet the client takes; `u32::MAX` when it did not say.
    pub maximum_packet: u32,
    /// The client asked for an authentication method (MQTT 5.0 §3.1.2.11.9); none is offered.
    pub auth_method: bool,
    /// Published when the connection is cut.
    pub will: Option<Will>,
    /// User name.
    pub user: Option<String>,
    /// Password, wiped when dropped.
    pub password: Option<Password>,
}

// A password must never reach a log, so Debug is written by hand.
impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect")
            .field("version", &self.version)
            .field("client_id", &self.client_id)
            .field("clean", &self.clean)
            .finish_non_exhaustive()
    }
}

/// A password as it came, wiped when dropped.
pub struct Password(pub(crate) zeroize::Zeroizing<String>);

impl Password {
    /// The secret itself: compare it in constant time, never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// A will: topic and payload as the wire form that a publish would have, and when to publish it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// Topic, properties and payload.
    pub body: Body,
    /// Quality of service of the publish.
    pub qos: Qos,
    /// Whether it is retained.
    pub retain: bool,
    /// Seconds between the cut and the publish (MQTT 5.0 §3.1.3.2.2).
    pub delay: u32,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Never 0.
    pub packet_id: u16,
    /// Always success in 3.1.1.
    pub reason: Reason,
}

/// SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// Never 0.
    pub packet_id: u16,
    /// A Subscription Identifier was sent although CONNACK said there are none (MQTT 5.0 §3.2.2.3.12).
    pub has_identifier: bool,
    /// At least one.
    pub filters: Vec<Wish>,
}

/// One filter of a SUBSCRIBE with its options (MQTT 5.0 §3.8.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// As it came: UTF-8 without NUL, not yet checked to be a filter.
    pub filter: String,
    /// The rest of it.
    pub options: Options,
}

/// Subscription options; 3.1.1 has only the QoS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// The most that the subscriber wants.
    pub qos: Qos,
    /// Not what this very session published.
    pub no_local: bool,
    /// Keep the RETAIN flag of the publisher.
    pub retain_as_published: bool,
    /// What of the retained values to send now.
    pub retain_handling: RetainHandling,
}

/// Retain Handling (MQTT 5.0 §3.8.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RetainHandling {
    /// 0: send retained values at every subscribe.
    #[default]
    Always,
    /// 1: only if the subscription did not exist.
    IfNew,
    /// 2: never.
    Never,
}

/// UNSUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Never 0.
    pub packet_id: u16,
    /// At least one, as they came.
    pub filters: Vec<String>,
}

/// DISCONNECT from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// Why.
    pub reason: Reason,
    /// A new session expiry interval in seconds (MQTT 5.0 §3.14.2.2.2).
    pub expiry: Option<u32>,
}

/// What a v5 PUBLISH or will carries beside its payload. Slices of the packet's one buffer.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PublishProperties {
    /// Payload Format Indicator: whether the payload is UTF-8 or just bytes, if the publisher said.
    pub utf8: Option<bool>,
    /// Seconds of life.
    pub expiry: Option<u32>,
    /// MIME type or whatever the publisher calls it.
    pub content_type: Option<Bytes>,
    /// Where an answer is expected.
    pub response_topic: Option<Bytes>,
    /// To be repeated in the answer.
    pub correlation: Option<Bytes>,
    /// Name and value, in order.
    pub user: Vec<(Bytes, Bytes)>,
}
