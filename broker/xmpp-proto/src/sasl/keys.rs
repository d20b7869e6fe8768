//! What the server stores of a password: the SCRAM keys (RFC 5802 §3), and the arithmetic that both sides share.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use precis_core::profile::PrecisFastInvocation;
use precis_profiles::OpaqueString;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The hash of a SCRAM mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hash {
    /// SCRAM-SHA-1, RFC 5802.
    Sha1,
    /// SCRAM-SHA-256, RFC 7677.
    Sha256,
}

/// Octets of the longest hash.
const MAX_LEN: usize = 32;
/// Octets of the salts that we make.
const SALT_LEN: usize = 16;
/// The first octet of the stored form.
const FORMAT: u8 = 1;

/// A hash value; octets beyond the hash's length are zero.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Digested {
    bytes: [u8; MAX_LEN],
    len: usize,
}

/// What the server keeps of a password. It verifies the client's proof but can not be used to log in.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    hash: Hash,
    iterations: u32,
    salt: Box<[u8]>,
    pub(crate) stored_key: Digested,
    pub(crate) server_key: Digested,
}

/// The password can not be used: it is empty or has characters that RFC 8265 §4 forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the password is empty or has characters that passwords can not have")]
pub struct BadPassword;

impl Hash {
    /// Octets of a hash value.
    pub(crate) fn size(self) -> usize {
        match self {
            Hash::Sha1 => 20,
            Hash::Sha256 => 32,
        }
    }

    /// RFC 5802 §2.2, H(str).
    pub(crate) fn digest(self, data: &[u8]) -> Digested {
        match self {
            Hash::Sha1 => Digested::new(&Sha1::digest(data)),
            Hash::Sha256 => Digested::new(&Sha256::digest(data)),
        }
    }

    /// RFC 5802 §2.2, HMAC(key, str).
    pub(crate) fn hmac(self, key: &[u8], data: &[u8]) -> Digested {
        match self {
            Hash::Sha1 => Digested::new(&mac::<Hmac<Sha1>>(key, data)),
            Hash::Sha256 => Digested::new(&mac::<Hmac<Sha256>>(key, data)),
        }
    }

    /// RFC 5802 §2.2, Hi(str, salt, i): PBKDF2 with one block.
    pub(crate) fn salted_password(self, password: &[u8], salt: &[u8], iterations: u32) -> Digested {
        let mut salted = Digested { bytes: [0; MAX_LEN], len: self.size() };
        let out = &mut salted.bytes[..self.size()];
        match self {
            Hash::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(password, salt, iterations, out),
            Hash::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, iterations, out),
        }
        salted
    }
}

fn mac<M: Mac + KeyInit>(key: &[u8], data: &[u8]) -> Vec<u8> {
    // HMAC takes keys of any length.
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

impl Digested {
    fn new(bytes: &[u8]) -> Digested {
        let mut all = [0; MAX_LEN];
        all[..bytes.len()].copy_from_slice(bytes);
        Digested { bytes: all, len: bytes.len() }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// RFC 5802 §3: ClientProof = ClientKey XOR ClientSignature, and back.
    pub(crate) fn xor(&self, other: &[u8]) -> Digested {
        let mut result = self.clone();
        for (byte, with) in result.bytes.iter_mut().zip(other) {
            *byte ^= with;
        }
        result
    }

    /// Compares in constant time.
    pub(crate) fn same(&self, other: &Digested) -> bool {
        self.bytes.ct_eq(&other.bytes).into()
    }
}

impl PartialEq for Digested {
    fn eq(&self, other: &Digested) -> bool {
        self.same(other)
    }
}
impl Eq for Digested {}

/// RFC 8265 §4.2, OpaqueString; RFC 5802 §5.1 wanted its predecessor, SASLprep.
pub(crate) fn prepare(password: &str) -> Result<Zeroizing<String>, BadPassword> {
    let prepared = OpaqueString::enforce(password).map_err(|_| BadPassword)?;
    Ok(Zeroizing::new(prepared.into_owned()))
}

impl ScramKeys {
    /// Derives the keys of a password; costs `iterations` rounds of HMAC.
    ///
    /// # Errors
    /// [`BadPassword`].
    pub fn derive(hash: Hash, password: &str, salt: &[u8], iterations: u32) -> Result<ScramKeys, BadPassword> {
        let password = prepare(password)?;
        let salted = hash.salted_password(password.as_bytes(), salt, iterations);
        Ok(ScramKeys::from_salted(hash, &salted, salt, iterations))
    }

    fn from_salted(hash: Hash, salted: &Digested, salt: &[u8], iterations: u32) -> ScramKeys {
        let client_key = hash.hmac(salted.as_slice(), b"Client Key");
        ScramKeys {
            hash,
            iterations,
            salt: salt.into(),
            stored_key: hash.digest(client_key.as_slice()),
            server_key: hash.hmac(salted.as_slice(), b"Server Key"),
        }
    }

    /// Keys for a user who does not exist: always the same for the same name, so that the salt tells nothing, and
    /// no password fits, because they come from no password. `secret` is the server's.
    pub fn dummy(hash: Hash, user: &str, secret: &[u8], iterations: u32) -> ScramKeys {
        let made = |what: &str| hash.hmac(secret, format!("{what}\0{user}").as_bytes());
        ScramKeys {
            hash,
            iterations,
            salt: made("salt").as_slice()[..SALT_LEN].into(),
            stored_key: made("stored key"),
            server_key: made("server key"),
        }
    }

    /// Whether this is the password, compared in constant time; costs as much as [`ScramKeys::derive`].
    pub fn verify_password(&self, password: &str) -> bool {
        // An unusable password costs the same time as a wrong one.
        let (prepared, usable) = match prepare(password) {
            Ok(prepared) => (prepared, true),
            Err(BadPassword) => (Zeroizing::new(String::from("unusable")), false),
        };
        let salted = self.hash.salted_password(prepared.as_bytes(), &self.salt, self.iterations);
        ScramKeys::from_salted(self.hash, &salted, &self.salt, self.iterations).stored_key.same(&self.stored_key)
            && usable
    }

    /// The hash.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Rounds of PBKDF2.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }

    /// The salt, which the client is told.
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// The stored form: format, hash, iterations, salt, both keys.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT, if self.hash == Hash::Sha1 { 1 } else { 2 }];
        out.extend_from_slice(&self.iterations.to_be_bytes());
        // Salts are ours, 16 octets, or came from a stored form with such a length octet.
        out.push(self.salt.len() as u8);
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(self.stored_key.as_slice());
        out.extend_from_slice(self.server_key.as_slice());
        out
    }

    /// Reads the stored form; `None` when it is damaged.
    pub fn decode(bytes: &[u8]) -> Option<ScramKeys> {
        let (&[FORMAT, hash, i0, i1, i2, i3, salt_len], rest) = bytes.split_first_chunk()? else { return None };
        let hash = match hash {
            1 => Hash::Sha1,
            2 => Hash::Sha256,
            _ => return None,
        };
        let (salt, keys) = rest.split_at_checked(salt_len as usize)?;
        let (stored, server) = keys.split_at_checked(hash.size()).filter(|(_, server)| server.len() == hash.size())?;
        let iterations = u32::from_be_bytes([i0, i1, i2, i3]);
        Some(ScramKeys {
            hash,
            iterations,
            salt: salt.into(),
            stored_key: Digested::new(stored),
            server_key: Digested::new(server),
        })
    }
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramKeys")
            .field("hash", &self.hash)
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Digested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_is_read_back_and_damage_is_noticed() {
        for hash in [Hash::Sha1, Hash::Sha256] {
            let keys = ScramKeys::derive(hash, "pencil", b"0123456789abcdef", 4096).unwrap();
            let bytes = keys.encode();
            assert_eq!(ScramKeys::decode(&bytes), Some(keys));
            assert_eq!(ScramKeys::decode(&bytes[..bytes.len() - 1]), None);
            assert_eq!(ScramKeys::decode(&[&bytes[..], b"x"].concat()), None);
        }
        assert_eq!(ScramKeys::decode(b""), None);
    }

    #[test]
    fn passwords_are_normalised_before_they_are_compared() {
        let keys = ScramKeys::derive(Hash::Sha256, "caf\u{e9} \u{2003}x", b"salt", 10).unwrap();
        assert!(keys.verify_password("cafe\u{301}  x"));
        assert!(!keys.verify_password("cafe  x"));
        assert!(!keys.verify_password(""));
        assert_eq!(ScramKeys::derive(Hash::Sha1, "\u{7}", b"salt", 10), Err(BadPassword));
    }

    #[test]
    fn unknown_users_always_get_the_same_salt_and_no_password_fits() {
        let keys = ScramKeys::dummy(Hash::Sha1, "nobody", b"secret", 10);
        assert_eq!(keys.salt(), ScramKeys::dummy(Hash::Sha1, "nobody", b"secret", 10).salt());
        assert_ne!(keys.salt(), ScramKeys::dummy(Hash::Sha1, "someone", b"secret", 10).salt());
        assert!(!keys.verify_password("nobody"));
        assert!(!format!("{keys:?}").contains("salt"));
    }
}
