//! What can go wrong on a connection, and the reason code that tells the client.

use tavi_wire::topic::TopicError;

use crate::packet::Reason;

/// A fault of the client (unless it says otherwise) that ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a packet: reserved bits, wrong lengths, bad UTF-8 (MQTT 5.0 §4.13.1).
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// A packet that may not come here or now.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// Over the packet limit of this side of the login.
    #[error("packet too large")]
    TooLarge,
    /// CONNECT with another protocol level than 4 and 5; the level.
    #[error("protocol level {0} is not offered, only 4 (3.1.1) and 5")]
    Version(u8),
    /// A password that is not UTF-8 text: no password or token of ours is like that.
    #[error("the password is not text")]
    PasswordNotText,
    /// A topic that is none (semantics.md, topics).
    #[error("not a topic: {0}")]
    Topic(TopicError),
    /// A subscription identifier, though CONNACK said that there are none (MQTT 5.0 §3.2.2.3.12).
    #[error("subscription identifiers are not offered")]
    SubscriptionIdentifier,
    /// A shared subscription, though CONNACK said that there are none (MQTT 5.0 §3.2.2.3.13).
    #[error("shared subscriptions are not offered")]
    SharedSubscription,
    /// The answer would be larger than what the client takes (MQTT 5.0 §3.1.2.11.4).
    #[error("the answer is over the client's maximum packet size")]
    AnswerTooLarge,
    /// A topic alias, though CONNACK allowed none.
    #[error("topic alias without permission")]
    TopicAlias,
    /// More QoS 1 and 2 publishes open than Receive Maximum allows.
    #[error("more unacknowledged publishes than the receive maximum")]
    ReceiveMaximum,
    /// Silence for one and a half times the keep-alive.
    #[error("keep-alive timeout")]
    KeepAlive,
    /// Another connection of the same principal uses the client id.
    #[error("session taken over")]
    TakenOver,
    /// The reader is too slow for what it subscribed to at QoS 1 or 2.
    #[error("the client does not take what it subscribed to")]
    SlowReader,
    /// The operator ended it: revoked, removed.
    #[error("ended by the operator")]
    Administrative,
    /// The broker stops.
    #[error("the broker stops")]
    Stopping,
    /// Our fault: the store failed.
    #[error("the store failed")]
    Store,
}

impl Fault {
    /// Whether the client broke the protocol or a limit, as opposed to having been silent, slow or replaced.
    pub fn is_breach(self) -> bool {
        let harmless = matches!(self, Self::KeepAlive | Self::TakenOver | Self::Administrative);
        !harmless && !matches!(self, Self::Stopping | Self::Store | Self::SlowReader)
    }

    /// The reason code of DISCONNECT (MQTT 5.0 §3.14.2.1) that fits.
    pub fn reason(self) -> Reason {
        match self {
            Self::Malformed(_) => Reason::MALFORMED,
            Self::Protocol(_) => Reason::PROTOCOL_ERROR,
            Self::TooLarge => Reason::TOO_LARGE,
            Self::Version(_) => Reason::UNSUPPORTED_VERSION,
            Self::PasswordNotText => Reason::BAD_CREDENTIALS,
            Self::Topic(_) => Reason::TOPIC_INVALID,
            Self::SubscriptionIdentifier => Reason::SUBSCRIPTION_ID_UNSUPPORTED,
            Self::SharedSubscription => Reason::SHARED_UNSUPPORTED,
            Self::AnswerTooLarge => Reason::TOO_LARGE,
            Self::TopicAlias => Reason::TOPIC_ALIAS,
            Self::ReceiveMaximum => Reason::RECEIVE_MAXIMUM,
            Self::KeepAlive => Reason::KEEP_ALIVE,
            Self::TakenOver => Reason::TAKEN_OVER,
            Self::SlowReader => Reason::QUOTA,
            Self::Administrative => Reason::ADMINISTRATIVE,
            Self::Stopping => Reason::SHUTTING_DOWN,
            Self::Store => Reason::UNSPECIFIED,
        }
    }
}
