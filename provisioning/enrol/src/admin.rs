//! What is said over the admin API: requests, answers and errors, as JSON. Its paths are in [`crate::route`].
//!
//! Times are seconds since 1970 in UTC. A request with a field that is not known is refused; an answer may
//! gain fields.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use tavi_wire::DeviceId;

use crate::device::{DeviceName, DeviceState};
use crate::grant::Grant;
use crate::key::PublicKey;
use crate::secret::Secret;

/// The longest body of a request, in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;
/// The longest body of an answer that a client reads, in bytes.
pub const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// The file name of the API's socket in the broker's data folder.
pub const SOCKET_NAME: &str = "admin.sock";

/// `GET /v1/status`: what the broker is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The broker's version.
    pub version: String,
    /// The domain that it serves.
    pub domain: String,
    /// For how many seconds it has been running.
    pub uptime: u64,
    /// Listener key (`xmpp`, `mqtt`, …) to `ADDRESS:PORT`.
    pub listeners: BTreeMap<String, String>,
}

/// `POST /v1/users`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// The bare JID.
    pub jid: String,
    /// The password; the broker makes one if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
}

/// `PUT /v1/users/JID/password`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    /// The password; the broker makes one if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
}

/// The answer to [`NewUser`] and [`NewPassword`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserPassword {
    /// The bare JID, normalised.
    pub jid: String,
    /// The password, only if the broker made it; it is not shown again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
}

/// `GET /v1/users`: accounts in a stable order, page by page.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserList {
    /// One row each.
    pub users: Vec<UserRow>,
    /// What to ask for as `after` ([`crate::route::ListQuery`]) to get the next rows; none behind the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRow {
    /// The bare JID.
    pub jid: String,
    /// When it was made, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<u64>,
    /// How many sessions it has now; none if no broker runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u32>,
}

/// `POST /v1/devices`. The private key never travels: the device, or the operator's machine, made the pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDevice {
    /// The device's first public key, of which its id is made.
    pub public_key: PublicKey,
    /// A changeable alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<DeviceName>,
}

/// The answer to [`NewDevice`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedDevice {
    /// The device.
    #[serde(flatten)]
    pub device: DeviceRow,
    /// The generated secret for clients that know only passwords; it is not shown again.
    pub secret: Secret,
}

/// `GET /v1/devices`: devices in a stable order, page by page.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeviceList {
    /// One row each.
    pub devices: Vec<DeviceRow>,
    /// What to ask for as `after` ([`crate::route::ListQuery`]) to get the next rows; none behind the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `GET /v1/devices/ID`: one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRow {
    /// Its id, which is also its MQTT client id and user name.
    pub id: DeviceId,
    /// `ID@things.DOMAIN`.
    pub jid: String,
    /// Its alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<DeviceName>,
    /// Whether it may log in.
    pub state: DeviceState,
    /// Its current key.
    pub public_key: PublicKey,
    /// When it was added.
    pub created: u64,
}

/// `POST /v1/grants`: the body is a [`Grant`]; adding one that is there already answers the old row.
pub type NewGrant = Grant;

/// `GET /v1/grants`: grants in the order in which they were made, page by page.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GrantList {
    /// One row each.
    pub grants: Vec<GrantRow>,
    /// What to ask for as `after` ([`crate::route::ListQuery`]) to get the next rows; none behind the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One grant, as the broker keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRow {
    /// The broker's name for the row.
    pub id: String,
    /// Who may do what to which topics.
    #[serde(flatten)]
    pub grant: Grant,
    /// What the operator is to know of a grant that was just added, such as that nobody has that address yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// `GET /v1/sessions`: MQTT sessions, also those whose client is away, in a stable order, page by page.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SessionList {
    /// One row each.
    pub sessions: Vec<SessionRow>,
    /// What to ask for as `after` ([`crate::route::ListQuery`]) to get the next rows; none behind the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One MQTT session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Whose: a bare JID.
    pub subject: String,
    /// The client id.
    pub client: String,
    /// Whether the client is connected.
    pub connected: bool,
    /// Whether it outlives its connection.
    pub durable: bool,
    /// In how many seconds it ends if the client does not come back; none while it is connected, or if it never ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_in: Option<u64>,
    /// How many subscriptions it has; known of durable sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscriptions: Option<u64>,
    /// How many deliveries are stored for it.
    pub stored: u64,
    /// How many bytes they have.
    pub stored_bytes: u64,
    /// How many deliveries wait for it in memory.
    pub waiting: u64,
    /// Whether a will is published if the client does not come back, or is cut off.
    pub will: bool,
}

/// `GET /v1/sessions/SUBJECT/CLIENT`: one session with what it subscribes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDetail {
    /// The session.
    #[serde(flatten)]
    pub session: SessionRow,
    /// The first 1,000 subscriptions of a durable session.
    pub filters: Vec<SessionFilter>,
}

/// One subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionFilter {
    /// The topic filter.
    pub filter: String,
    /// The greatest QoS of its deliveries.
    pub qos: u8,
}

/// The answer to a `DELETE`: what was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The JID or id.
    pub removed: String,
}

/// Any refusal: the body of an answer whose status is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct ApiError {
    /// For programs.
    pub error: ErrorCode,
    /// For people: what is wrong.
    pub message: String,
    /// For people: what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// A refusal without advice.
    pub fn new(error: ErrorCode, message: impl Into<String>) -> Self {
        Self { error, message: message.into(), hint: None }
    }

    /// The same, with advice.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, " ({hint})"))
    }
}

/// Whose fault a refusal is, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The caller's: the request makes no sense.
    BadRequest,
    /// The caller's: no such path, user, device or grant.
    NotFound,
    /// The caller's: the path has no such method.
    MethodNotAllowed,
    /// The caller's: it exists already, or the name is taken.
    Conflict,
    /// The caller's: the body is too long.
    TooLarge,
    /// The caller's: the body came too slowly.
    Timeout,
    /// Nobody's: the broker stops or is full; later it may work.
    Unavailable,
    /// The broker's; its log has the cause.
    Internal,
    /// A code of a newer broker.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The HTTP status of the answer (RFC 9110 §15).
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Internal | Self::Unknown => 500,
            Self::Unavailable => 503,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_refuse_unknown_fields() {
        assert!(serde_json::from_str::<NewUser>(r#"{"jid":"a@b","pasword":"x"}"#).is_err());
        assert!(serde_json::from_str::<NewDevice>(r#"{"name":"x"}"#).is_err());
    }

    #[test]
    fn no_secret_shows_in_debug() {
        let user: NewUser = serde_json::from_str(r#"{"jid":"a@b","password":"hunter2"}"#).unwrap();
        assert!(!format!("{user:?}").contains("hunter2"));
    }

    #[test]
    fn an_added_device_is_one_flat_object() {
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let json = format!(
            r#"{{"id":"61e02c02-b7d0-849a-bcbd-b5e93fbe5b76","jid":"x@things.localhost","state":"active","public_key":"{key}","created":5,"secret":"s"}}"#
        );
        let added: AddedDevice = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&added).unwrap(), json);
    }

    #[test]
    fn errors_tell_people_and_programs() {
        let error = ApiError::new(ErrorCode::Conflict, "ann@localhost exists").hint("tavi user passwd changes it");
        let json = serde_json::to_string(&error).unwrap();
        assert_eq!(
            json,
            r#"{"error":"conflict","message":"ann@localhost exists","hint":"tavi user passwd changes it"}"#
        );
        assert_eq!(error.to_string(), "ann@localhost exists (tavi user passwd changes it)");
        let newer: ApiError = serde_json::from_str(r#"{"error":"teapot","message":"x"}"#).unwrap();
        assert_eq!((newer.error, newer.error.status()), (ErrorCode::Unknown, 500));
    }
}
