//! The registry's record of a device: its state and its credential rows (`identity.md` §Registry).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tavi_wire::DeviceId;

use crate::key::PublicKey;

/// What the registry knows of one device. Times are seconds since 1970 in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// For life; made from the first public key.
    pub id: DeviceId,
    /// A changeable alias, unique in its domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<DeviceName>,
    /// What the device may do at all.
    pub state: DeviceState,
    /// When the record was made.
    pub created: u64,
    /// What it may log in with.
    pub credentials: Vec<Credential>,
}

impl DeviceRecord {
    /// A device that an operator adds: active at once, with its key and a generated secret.
    pub fn added(key: PublicKey, name: Option<DeviceName>, now: u64) -> Self {
        let row = |kind| Credential { kind, not_before: now, grace_end: None };
        let credentials = vec![row(CredentialKind::Ed25519 { key }), row(CredentialKind::Secret)];
        Self { id: key.device_id(), name, state: DeviceState::Active, created: now, credentials }
    }

    /// The keys whose signatures count now: none unless the device is active, two during a rotation.
    pub fn keys(&self, now: u64) -> impl Iterator<Item = PublicKey> {
        let rows = self.credentials.iter().filter(move |row| self.state.may_log_in() && row.is_valid(now));
        rows.filter_map(|row| match row.kind {
            CredentialKind::Ed25519 { key } => Some(key),
            CredentialKind::Secret => None,
        })
    }

    /// Whether the generated secret counts now.
    pub fn accepts_secret(&self, now: u64) -> bool {
        let mut rows = self.credentials.iter().filter(|row| row.kind == CredentialKind::Secret);
        self.state.may_log_in() && rows.any(|row| row.is_valid(now))
    }
}

/// A device's life; the order is that of the states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// Announced by its maker or operator, not seen yet.
    Expected,
    /// Has shown its claim, waits for approval.
    Claimed,
    /// May log in.
    Active,
    /// Suspected: known, but kept out.
    Quarantined,
    /// Kept out for good.
    Revoked,
    /// Only its id is remembered, so that it can not come back.
    Forgotten,
}

impl DeviceState {
    /// Whether a device in this state may log in.
    pub fn may_log_in(self) -> bool {
        self == Self::Active
    }

    /// Whether the registry may move a device from this state to the other one. States go forward; only a
    /// quarantine can be lifted.
    pub fn may_become(self, next: Self) -> bool {
        next > self || (self == Self::Quarantined && next == Self::Active)
    }
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Expected => "expected",
            Self::Claimed => "claimed",
            Self::Active => "active",
            Self::Quarantined => "quarantined",
            Self::Revoked => "revoked",
            Self::Forgotten => "forgotten",
        })
    }
}

/// One row of what a device may log in with. Times are seconds since 1970 in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Which credential.
    #[serde(flatten)]
    pub kind: CredentialKind,
    /// From when it counts.
    pub not_before: u64,
    /// Until when it counts, if it is being rotated out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_end: Option<u64>,
}

impl Credential {
    /// Whether the row counts now.
    pub fn is_valid(&self, now: u64) -> bool {
        self.not_before <= now && self.grace_end.is_none_or(|end| now < end)
    }
}

/// The kinds of credentials that this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum CredentialKind {
    /// A key of the device's own; it signs tokens and certificates carry it.
    Ed25519 {
        /// The public half.
        key: PublicKey,
    },
    /// A generated secret. Only its SCRAM keys (RFC 5802 §3) are kept, beside the broker's other passwords.
    Secret,
}

/// A device's name: 1 to 64 characters, none of them a control character, no space at its ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName(String);

impl DeviceName {
    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is no device name; the fault of whoever gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a device name has 1 to 64 characters, no control characters, and no space at its ends")]
pub struct NameError;

impl FromStr for DeviceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let size = (1..=64).contains(&text.chars().count());
        let legal = size && text.trim() == text && !text.contains(char::is_control);
        if legal { Ok(Self(text.into())) } else { Err(NameError) }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for DeviceName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> DeviceRecord {
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a".parse().unwrap();
        DeviceRecord::added(key, Some("Pump".parse().unwrap()), 100)
    }

    #[test]
    fn only_an_active_device_has_keys() {
        let mut device = record();
        assert_eq!((device.keys(100).count(), device.accepts_secret(100)), (1, true));
        assert_eq!((device.keys(99).count(), device.accepts_secret(99)), (0, false));
        device.state = DeviceState::Revoked;
        assert_eq!((device.keys(100).count(), device.accepts_secret(100)), (0, false));
    }

    #[test]
    fn a_rotated_key_counts_until_its_grace_ends() {
        let mut device = record();
        device.credentials[0].grace_end = Some(200);
        assert_eq!((device.keys(199).count(), device.keys(200).count()), (1, 0));
    }

    #[test]
    fn states_go_forward() {
        use DeviceState::*;
        assert!(Active.may_become(Revoked) && Quarantined.may_become(Active) && Revoked.may_become(Forgotten));
        assert!(!Revoked.may_become(Active) && !Forgotten.may_become(Active) && !Active.may_become(Active));
    }

    #[test]
    fn the_record_round_trips_in_json() {
        let json = serde_json::to_string(&record()).unwrap();
        assert!(json.contains(r#""state":"active""#) && json.contains(r#"{"kind":"ed25519","key":"d75a"#), "{json}");
        assert_eq!(serde_json::from_str::<DeviceRecord>(&json).unwrap(), record());
    }

    #[test]
    fn names_are_short_and_printable() {
        assert!("Pump 1, größer".parse::<DeviceName>().is_ok());
        for bad in ["", " x", "x ", "a\nb", &"x".repeat(65)] {
            assert_eq!(bad.parse::<DeviceName>(), Err(NameError));
        }
    }
}
