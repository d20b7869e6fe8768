//! The device id: a UUID made from the device's first public key, and the topics that belong to it.

use core::fmt;
use core::ops::Deref;
use core::str::FromStr;

use sha2::{Digest, Sha256};

use crate::topic;

/// What the hash begins with, so that this use of SHA-256 can not be confused with another one.
const CONTEXT: &[u8] = b"tavi device id 1\0";
const HYPHENS: [usize; 4] = [8, 13, 18, 23];
const ROOT: &str = "d/";

/// A device's id for life: UUID version 8 (RFC 9562 §5.8) from the SHA-256 of its first Ed25519 public key.
///
/// An id names a device; it does not authenticate one. Authorisation compares the whole 32-byte key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId([u8; 16]);

impl DeviceId {
    /// The id that belongs to this Ed25519 public key (RFC 8032 §5.1.2, 32 bytes).
    pub fn from_public_key(key: &[u8; 32]) -> Self {
        let hash = Sha256::new().chain_update(CONTEXT).chain_update(key).finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        // RFC 9562 §4.1 and §4.2: the variant is 0b10, the version 0b1000.
        id[6] = (id[6] & 0x0f) | 0x80;
        id[8] = (id[8] & 0x3f) | 0x80;
        Self(id)
    }

    /// The id with these 16 bytes.
    ///
    /// # Errors
    /// [`IdError::NotUuid8`] if the version or variant bits are others.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, IdError> {
        let is_uuid8 = bytes[6] >> 4 == 8 && bytes[8] >> 6 == 0b10;
        if is_uuid8 { Ok(Self(bytes)) } else { Err(IdError::NotUuid8) }
    }

    /// The 16 bytes, as in a token's key id.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The 36 characters of the id, lower case with hyphens (RFC 9562 §4).
    pub fn text(&self) -> Text<36> {
        let mut text = [b'-'; 36];
        let mut at = 0;
        for nibble in self.0.iter().flat_map(|byte| [byte >> 4, byte & 0x0f]) {
            if HYPHENS.contains(&at) {
                at += 1;
            }
            text[at] = b"0123456789abcdef"[usize::from(nibble)];
            at += 1;
        }
        Text(text)
    }

    /// What each topic of this device begins with: `d/<id>/`.
    pub fn topic_prefix(&self) -> Text<39> {
        let mut text = [b'/'; 39];
        text[..2].copy_from_slice(ROOT.as_bytes());
        text[2..38].copy_from_slice(self.text().as_bytes());
        Text(text)
    }

    /// The filter that matches the device's own topics and no others: `d/<id>/#`.
    pub fn own_filter(&self) -> Text<40> {
        let mut text = [b'#'; 40];
        text[..39].copy_from_slice(self.topic_prefix().as_bytes());
        Text(text)
    }

    /// Whether a legal topic is the device's own: whether [`own_filter`](Self::own_filter) matches it.
    pub fn owns(&self, topic: &str) -> bool {
        topic::matches(&self.own_filter(), topic)
    }

    /// The device whose own topic this is, if it is one.
    pub fn owner_of(topic: &str) -> Option<Self> {
        let rest = topic.strip_prefix(ROOT)?;
        topic::levels(rest).next()?.parse().ok()
    }

    /// Whether the topic is a device's `d/<id>/state`, which only the broker writes.
    pub fn is_state_topic(topic: &str) -> bool {
        Self::owner_of(topic).is_some_and(|id| topic.strip_prefix(&*id.topic_prefix()) == Some("state"))
    }
}

/// Short ASCII text in place, readable as `&str`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const N: usize>([u8; N]);

impl<const N: usize> Deref for Text<N> {
    type Target = str;

    fn deref(&self) -> &str {
        // Only this file makes one, out of ASCII; the fallback is never taken.
        core::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text())
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({self})")
    }
}

/// Why a text or bytes are no device id; the fault of whoever wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdError {
    /// Not 36 characters.
    Length,
    /// A character that is no lower-case hexadecimal digit, or a hyphen out of place.
    Character,
    /// A UUID, but not of version 8 (RFC 9562 §5.8).
    NotUuid8,
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Length => "a device id has 36 characters, like 01234567-89ab-8cde-8f01-23456789abcd",
            Self::Character => "a device id has lower-case hexadecimal digits and hyphens at 9, 14, 19 and 24",
            Self::NotUuid8 => "a device id is a UUID of version 8; this one is of another version",
        })
    }
}

impl core::error::Error for IdError {}

impl FromStr for DeviceId {
    type Err = IdError;

    /// Reads the one legal spelling, so that equal ids are equal strings everywhere.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let text: &[u8; 36] = text.as_bytes().try_into().map_err(|_| IdError::Length)?;
        let mut bytes = [0; 16];
        let mut nibbles = 0;
        for (at, byte) in text.iter().enumerate() {
            if HYPHENS.contains(&at) {
                if *byte != b'-' {
                    return Err(IdError::Character);
                }
                continue;
            }
            bytes[nibbles / 2] = bytes[nibbles / 2] << 4 | nibble(*byte)?;
            nibbles += 1;
        }
        Self::from_bytes(bytes)
    }
}

fn nibble(byte: u8) -> Result<u8, IdError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(IdError::Character),
    }
}

#[cfg(feature = "serde")]
mod serialised {
    use super::{DeviceId, fmt};
    use serde::de::{Error, Visitor};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    impl Serialize for DeviceId {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str(&self.text())
        }
    }

    impl<'de> Deserialize<'de> for DeviceId {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_str(TextVisitor)
        }
    }

    struct TextVisitor;

    impl Visitor<'_> for TextVisitor {
        type Value = DeviceId;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a device id")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<DeviceId, E> {
            text.parse().map_err(E::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    /// Lines of `public key in hex, id`, made with another program.
    const VECTORS: &str = include_str!("../testdata/device-id.txt");

    fn vectors() -> impl Iterator<Item = ([u8; 32], &'static str)> {
        let lines = VECTORS.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.map(|line| {
            let (key, id) = line.split_once(' ').unwrap();
            (core::array::from_fn(|i| u8::from_str_radix(&key[2 * i..2 * i + 2], 16).unwrap()), id)
        })
    }

    #[test]
    fn ids_are_those_of_the_vectors() {
        assert_eq!(vectors().count(), 3);
        for (key, id) in vectors() {
            assert_eq!(DeviceId::from_public_key(&key).to_string(), id);
        }
    }

    #[test]
    fn text_and_bytes_round_trip() {
        for (key, text) in vectors() {
            let id = DeviceId::from_public_key(&key);
            assert_eq!(text.parse(), Ok(id));
            assert_eq!(DeviceId::from_bytes(*id.as_bytes()), Ok(id));
        }
    }

    #[test]
    fn only_the_one_spelling_is_read() {
        let (_, good) = vectors().next().unwrap();
        assert_eq!(good.to_uppercase().parse::<DeviceId>(), Err(IdError::Character));
        assert_eq!(good.replace('-', "").parse::<DeviceId>(), Err(IdError::Length));
        assert_eq!(good.replace('-', "0").parse::<DeviceId>(), Err(IdError::Character));
        assert_eq!("".parse::<DeviceId>(), Err(IdError::Length));
        assert_eq!("8d2c8a4f-0000-4000-8000-000000000000".parse::<DeviceId>(), Err(IdError::NotUuid8));
        assert_eq!("8d2c8a4f-0000-8000-c000-000000000000".parse::<DeviceId>(), Err(IdError::NotUuid8));
    }

    #[test]
    fn a_device_owns_its_topics_and_no_others() {
        let mut ids = vectors().map(|(key, _)| DeviceId::from_public_key(&key));
        let (mine, other) = (ids.next().unwrap(), ids.next().unwrap());
        let topic = std::format!("{}up/temp", mine.topic_prefix());
        assert!(mine.owns(&topic) && !other.owns(&topic));
        assert_eq!(DeviceId::owner_of(&topic), Some(mine));
        assert_eq!(DeviceId::owner_of("d/nobody/up"), None);
        assert!(!mine.owns(&std::format!("d/{mine}0/up")));
        assert!(mine.owns(&std::format!("d/{mine}")));
        assert_eq!(topic::check_filter(&mine.own_filter()), Ok(()));
    }

    #[test]
    fn the_state_topic_is_known() {
        let id = DeviceId::from_public_key(&[7; 32]);
        assert!(DeviceId::is_state_topic(&std::format!("d/{id}/state")));
        for other in ["d/x/state", "state", "d/state"] {
            assert!(!DeviceId::is_state_topic(other));
        }
        assert!(!DeviceId::is_state_topic(&std::format!("d/{id}/up/state")));
        assert!(!DeviceId::is_state_topic(&std::format!("d/{id}")));
    }
}
