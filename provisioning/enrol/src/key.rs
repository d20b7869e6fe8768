//! A device's Ed25519 public key: 32 bytes, checked once, written as 64 hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey};
use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use tavi_wire::DeviceId;

/// A public key that decodes to a curve point and is none of the weak ones (RFC 8032 §5.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes the 32 bytes of RFC 8032 §5.1.2.
    ///
    /// # Errors
    /// [`KeyError::NotAKey`] for bytes that are no point of the curve, [`KeyError::Weak`] for one of small order,
    /// for which anybody can make signatures.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::NotAKey)?;
        if key.is_weak() { Err(KeyError::Weak) } else { Ok(Self(bytes)) }
    }

    /// Reads what an operator has in a file: PEM (RFC 8410 §4, what `openssl pkey -pubout` writes), its DER,
    /// 64 hexadecimal digits, or the 32 bytes themselves.
    ///
    /// # Errors
    /// [`KeyError::PrivateKey`] if the file holds a private key, else what is wrong with it.
    pub fn from_file(content: &[u8]) -> Result<Self, KeyError> {
        if let Ok(bytes) = content.try_into() {
            return Self::from_bytes(bytes);
        }
        if let Ok(key) = VerifyingKey::from_public_key_der(content) {
            return Self::from_bytes(key.to_bytes());
        }
        if SigningKey::from_pkcs8_der(content).is_ok() {
            return Err(KeyError::PrivateKey);
        }
        let text = std::str::from_utf8(content).map_err(|_| KeyError::NotAKey)?.trim();
        if text.contains("PRIVATE KEY-----") {
            return Err(KeyError::PrivateKey);
        }
        match VerifyingKey::from_public_key_pem(text) {
            Ok(key) => Self::from_bytes(key.to_bytes()),
            Err(_) => text.parse(),
        }
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id of the device whose first key this is.
    pub fn device_id(&self) -> DeviceId {
        DeviceId::from_public_key(&self.0)
    }
}

/// Why something is no usable public key; the fault of whoever gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No Ed25519 public key in any form that is read.
    #[error("this is not an Ed25519 public key (PEM, DER, 64 hexadecimal digits or 32 bytes)")]
    NotAKey,
    /// A point of small order.
    #[error("this public key is weak: anybody can make signatures for it")]
    Weak,
    /// A private key where a public one belongs.
    #[error("this is a private key, which never leaves its device; give the public half")]
    PrivateKey,
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(KeyError::NotAKey);
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| KeyError::NotAKey)?;
        }
        Self::from_bytes(bytes)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032 §7.1, test 1, and its PEM as OpenSSL writes it.
    const HEX: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    const PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn each_form_is_the_same_key() {
        let key: PublicKey = HEX.parse().unwrap();
        assert_eq!(key.to_string(), HEX);
        assert_eq!(key.device_id().to_string(), "61e02c02-b7d0-849a-bcbd-b5e93fbe5b76");
        let der = [b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", &key.as_bytes()[..]].concat();
        let pem_crlf = PEM.replace('\n', "\r\n");
        let forms =
            [HEX.as_bytes(), HEX.to_uppercase().as_bytes(), PEM.as_bytes(), pem_crlf.as_bytes(), &der, key.as_bytes()]
                .map(<[u8]>::to_vec);
        for form in &forms {
            assert_eq!(PublicKey::from_file(form), Ok(key));
        }
        assert_eq!(PublicKey::from_file(format!("{HEX}\n").as_bytes()), Ok(key));
    }

    #[test]
    fn bad_keys_are_refused() {
        assert_eq!(PublicKey::from_bytes([0; 32]), Err(KeyError::Weak));
        assert_eq!(PublicKey::from_bytes([2; 32]), Err(KeyError::NotAKey));
        assert_eq!(PublicKey::from_file(b"-----BEGIN PRIVATE KEY-----\nMC4"), Err(KeyError::PrivateKey));
        assert_eq!(PublicKey::from_file(b"ssh-ed25519 AAAA"), Err(KeyError::NotAKey));
        assert_eq!(PublicKey::from_file(b""), Err(KeyError::NotAKey));
        assert!(serde_json::from_str::<PublicKey>("\"00\"").is_err());
    }
}
