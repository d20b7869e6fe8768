//! SCRAM-SHA-256 as a client speaks it (RFC 5802, RFC 7677), written apart from the broker's own as its check.

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

type Key = [u8; 32];

/// One exchange.
pub struct Scram {
    first_bare: String,
    password: String,
    server_signature: Option<Key>,
}

impl Scram {
    /// An exchange for a user with this password. The nonce need not be secret, only new.
    pub fn new(user: &str, password: &str, nonce: &str) -> Self {
        // RFC 5802 §5.1: `=` and `,` are written as =3D and =2C.
        let user = user.replace('=', "=3D").replace(',', "=2C");
        Self { first_bare: format!("n={user},r={nonce}"), password: password.into(), server_signature: None }
    }

    /// The client's first message, in base64.
    pub fn first(&self) -> String {
        BASE64.encode(format!("n,,{}", self.first_bare))
    }

    /// Answers the server's challenge (base64) with the client's final message (base64).
    ///
    /// # Errors
    /// The challenge is malformed or was not made for our nonce.
    pub fn answer(&mut self, challenge: &str) -> anyhow::Result<String> {
        let server_first = decoded(challenge)?;
        let nonce = attribute(&server_first, "r")?;
        let own = self.first_bare.rsplit_once("r=").map_or("", |(_, nonce)| nonce);
        ensure!(nonce.starts_with(own), "the server's nonce does not continue ours");
        let salt = BASE64.decode(attribute(&server_first, "s")?)?;
        let rounds = attribute(&server_first, "i")?.parse()?;
        let mut salted = Key::default();
        pbkdf2::pbkdf2_hmac::<Sha256>(self.password.as_bytes(), &salt, rounds, &mut salted);
        // RFC 5802 §3: biws is base64 of the header `n,,`.
        let last = format!("c=biws,r={nonce}");
        let message = format!("{},{server_first},{last}", self.first_bare);
        self.server_signature = Some(mac(&mac(&salted, "Server Key"), &message));
        let proof = proof(&mac(&salted, "Client Key"), &message);
        Ok(BASE64.encode(format!("{last},p={}", BASE64.encode(proof))))
    }

    /// Checks the server's final message (base64).
    ///
    /// # Errors
    /// The server does not know the password's keys.
    pub fn verify(&self, success: &str) -> anyhow::Result<()> {
        let signature = BASE64.decode(attribute(&decoded(success)?, "v")?)?;
        let expected = self.server_signature.context("no challenge came before")?;
        ensure!(signature == expected, "the server's signature is wrong");
        Ok(())
    }
}

/// RFC 5802 §3: ClientProof := ClientKey XOR HMAC(H(ClientKey), AuthMessage).
fn proof(client_key: &Key, message: &str) -> Key {
    let stored: Key = Sha256::digest(client_key).into();
    let signature = mac(&stored, message);
    std::array::from_fn(|n| client_key[n] ^ signature[n])
}

fn mac(key: &Key, message: &str) -> Key {
    // HMAC takes a key of any length (RFC 2104 §2).
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes any key");
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().into()
}

fn decoded(text: &str) -> anyhow::Result<String> {
    Ok(String::from_utf8(BASE64.decode(text.trim())?)?)
}

fn attribute<'a>(message: &'a str, name: &str) -> anyhow::Result<&'a str> {
    let mut parts = message.split(',').filter_map(|part| part.split_once('='));
    parts.find(|(found, _)| *found == name).map(|(_, value)| value).with_context(|| format!("no {name}= in {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677 §3.
    #[test]
    fn speaks_the_standards_example() {
        let mut scram = Scram::new("user", "pencil", "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(BASE64.decode(scram.first()).unwrap(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let answer = scram.answer(&BASE64.encode(format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"))).unwrap();
        let expected = format!("c=biws,r={nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        assert_eq!(String::from_utf8(BASE64.decode(answer).unwrap()).unwrap(), expected);
        scram.verify(&BASE64.encode("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")).unwrap();
        assert!(scram.verify(&BASE64.encode("v=AAAATRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")).is_err());
    }

    #[test]
    fn refuses_a_nonce_that_is_not_ours() {
        let mut scram = Scram::new("user", "pencil", "ours");
        assert!(scram.answer(&BASE64.encode("r=theirs,s=AAAA,i=4096")).is_err());
    }
}
