//! SCRAM, the client's side: for the load injector, bots outside the broker, and tests (RFC 5802 §5).

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use super::keys::{Digested, prepare};
use super::{BadPassword, BindingKind, Hash, attribute, escape_name};

/// What a client does about channel binding, RFC 5802 §6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientBinding {
    /// It can not bind.
    Unsupported,
    /// It can, but the server did not offer a -PLUS mechanism.
    NotOffered,
    /// It binds to this data of the connection.
    Bound(BindingKind, Vec<u8>),
}

/// Why a client gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The server's message does not follow RFC 5802 §7.
    #[error("the server's message is malformed")]
    Malformed,
    /// The nonce is not ours with something added (RFC 5802 §5.1, `r`).
    #[error("the server's nonce does not continue ours")]
    Nonce,
    /// Too few or absurdly many rounds.
    #[error("the server asks for an unacceptable number of rounds")]
    Iterations,
    /// The server does not know the password: it is not the server.
    #[error("the server's proof is wrong")]
    ServerProof,
}

/// A client that sent its first message.
pub struct ScramClient {
    hash: Hash,
    password: Zeroizing<String>,
    first_bare: String,
    binding_input: Vec<u8>,
    nonce: String,
}

/// A client that sent its proof and waits for the server's.
#[derive(Debug)]
pub struct ScramClientFirst {
    server_signature: Digested,
}

impl ScramClient {
    /// Makes the first message and the state behind it. `nonce` is random printable ASCII without a comma.
    ///
    /// # Errors
    /// [`BadPassword`].
    pub fn start(
        hash: Hash,
        (user, password): (&str, &str),
        nonce: &str,
        binding: ClientBinding,
    ) -> Result<(Vec<u8>, ScramClient), BadPassword> {
        let (header, data) = match binding {
            ClientBinding::Unsupported => ("n,,".to_owned(), Vec::new()),
            ClientBinding::NotOffered => ("y,,".to_owned(), Vec::new()),
            ClientBinding::Bound(kind, data) => (format!("p={},,", kind.name()), data),
        };
        let first_bare = format!("n={},r={nonce}", escape_name(user));
        let message = format!("{header}{first_bare}").into_bytes();
        let binding_input = [header.as_bytes(), &data].concat();
        Ok((
            message,
            ScramClient { hash, password: prepare(password)?, first_bare, binding_input, nonce: nonce.into() },
        ))
    }

    /// Answers the server's challenge with the proof.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn respond(self, server_first: &[u8]) -> Result<(Vec<u8>, ScramClientFirst), ClientError> {
        let text = std::str::from_utf8(server_first).map_err(|_| ClientError::Malformed)?;
        let (nonce, salt, iterations) = read_challenge(text).ok_or(ClientError::Malformed)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ClientError::Nonce);
        }
        // RFC 7677 §4 asks for 4,096 at least; the upper bound keeps a server from burning our time.
        if !(4_096..=10_000_000).contains(&iterations) {
            return Err(ClientError::Iterations);
        }
        let without_proof = format!("c={},r={nonce}", BASE64.encode(&self.binding_input));
        let auth_message = format!("{},{text},{without_proof}", self.first_bare);
        let salted = self.hash.salted_password(self.password.as_bytes(), &salt, iterations);
        let client_key = self.hash.hmac(salted.as_slice(), b"Client Key");
        let stored_key = self.hash.digest(client_key.as_slice());
        let signature = self.hash.hmac(stored_key.as_slice(), auth_message.as_bytes());
        let proof = client_key.xor(signature.as_slice());
        let server_key = self.hash.hmac(salted.as_slice(), b"Server Key");
        let message = format!("{without_proof},p={}", BASE64.encode(proof.as_slice())).into_bytes();
        Ok((
            message,
            ScramClientFirst { server_signature: self.hash.hmac(server_key.as_slice(), auth_message.as_bytes()) },
        ))
    }
}

fn read_challenge(text: &str) -> Option<(&str, Vec<u8>, u32)> {
    let mut rest = Some(text);
    let nonce = attribute(&mut rest, "r")?;
    let salt = BASE64.decode(attribute(&mut rest, "s")?).ok()?;
    Some((nonce, salt, attribute(&mut rest, "i")?.parse().ok()?))
}

impl ScramClientFirst {
    /// Checks the server's proof, which came with `<success/>`.
    ///
    /// # Errors
    /// [`ClientError::ServerProof`].
    pub fn verify(self, server_final: &[u8]) -> Result<(), ClientError> {
        let expected = format!("v={}", BASE64.encode(self.server_signature.as_slice()));
        let same: bool = subtle::ConstantTimeEq::ct_eq(expected.as_bytes(), server_final).into();
        if same { Ok(()) } else { Err(ClientError::ServerProof) }
    }
}
