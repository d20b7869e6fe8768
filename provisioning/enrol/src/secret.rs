//! A password on its way: wiped after use, never printed by accident.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The alphabet of RFC 4648 §6 in lower case: no pair that looks alike, nothing that a shell or an URL minds.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A password or generated secret. `Debug` hides it and dropping it wipes it.
#[derive(Clone, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// A secret of 26 characters out of 128 random bits, which the caller draws.
    pub fn from_entropy(random: &[u8; 16]) -> Self {
        let bits = Zeroizing::new(u128::from_be_bytes(*random));
        let symbol = |shift: u32| char::from(ALPHABET[((*bits >> shift) & 31) as usize]);
        Self(Zeroizing::new((0..26).map(|i| symbol(5 * (25 - i))).collect()))
    }

    /// The text itself: to derive SCRAM keys from (RFC 5802 §3), or to show it once.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// In constant time for texts of one length.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_secrets_hold_all_their_bits() {
        assert_eq!(Secret::from_entropy(&[0; 16]).expose(), "a".repeat(26));
        assert_eq!(Secret::from_entropy(&[0xff; 16]).expose(), format!("h{}", "7".repeat(25)));
        let mut last = [0; 16];
        last[15] = 1;
        assert_eq!(Secret::from_entropy(&last).expose(), format!("{}b", "a".repeat(25)));
    }

    #[test]
    fn debug_hides_and_json_shows() {
        let secret = Secret::from(String::from("hunter2"));
        assert_eq!(format!("{secret:?}"), "Secret(hidden)");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"hunter2\"");
    }
}
