//! SCRAM, the server's side: RFC 5802 §5, one type per state.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::keys::Digested;
use super::{BindingKind, ChannelBindings, Hash, Mechanism, SaslFailure, ScramKeys, attribute, unescape_name};

/// The client's first message was read: now its keys are needed.
#[derive(Debug)]
pub struct ScramStart {
    hash: Hash,
    user: String,
    authzid: Option<String>,
    client_nonce: String,
    client_first_bare: String,
    /// What `c=` must decode to: the GS2 header and the channel binding data.
    expected_binding: Vec<u8>,
}

/// The challenge was sent: the client must prove that it knows the password.
#[derive(Debug)]
pub struct ScramChallenged {
    start: ScramStart,
    keys: ScramKeys,
    pub(super) nonce: String,
    pub(super) server_first: String,
}

/// The client proved it.
#[derive(Debug, PartialEq, Eq)]
pub struct ScramSuccess {
    /// The server's proof, sent with `<success/>`.
    pub message: Vec<u8>,
    /// The user name.
    pub user: String,
    /// Whom the client wants to act as.
    pub authzid: Option<String>,
}

impl ScramStart {
    /// Reads the client's first message, RFC 5802 §7. `mechanism` is the one that the client chose, `bindings` are
    /// what this connection offers.
    ///
    /// # Errors
    /// The message is malformed, or somebody tampered with the list of mechanisms (RFC 5802 §6).
    pub fn parse(mechanism: Mechanism, message: &[u8], bindings: &ChannelBindings) -> Result<ScramStart, SaslFailure> {
        let (hash, plus) = match mechanism {
            Mechanism::Scram(hash) => (hash, false),
            Mechanism::ScramPlus(hash) => (hash, true),
            Mechanism::Plain | Mechanism::External => return Err(SaslFailure::InvalidMechanism),
        };
        let text = std::str::from_utf8(message).map_err(|_| SaslFailure::MalformedRequest)?;
        let (flag, rest) = text.split_once(',').ok_or(SaslFailure::MalformedRequest)?;
        let (authzid, bare) = rest.split_once(',').ok_or(SaslFailure::MalformedRequest)?;
        let data = binding_data(flag, plus, bindings)?;
        let header = &text[..text.len() - bare.len()];
        let (user, client_nonce) = first_bare(bare).ok_or(SaslFailure::MalformedRequest)?;
        Ok(ScramStart {
            hash,
            user,
            authzid: read_authzid(authzid)?,
            client_nonce,
            client_first_bare: bare.to_owned(),
            expected_binding: [header.as_bytes(), data].concat(),
        })
    }

    /// The user name that the client gave, unescaped, not normalised.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whom the client wants to act as, if it says so.
    pub fn authzid(&self) -> Option<&str> {
        self.authzid.as_deref()
    }

    /// The hash for which keys are needed.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Makes the challenge (RFC 5802 §7, server-first-message). `keys` are the user's, or dummy ones; `entropy` are
    /// fresh random octets.
    pub fn challenge(self, keys: ScramKeys, entropy: [u8; 18]) -> (Vec<u8>, ScramChallenged) {
        let nonce = format!("{}{}", self.client_nonce, BASE64.encode(entropy));
        let server_first = format!("r={nonce},s={},i={}", BASE64.encode(keys.salt()), keys.iterations());
        (server_first.clone().into_bytes(), ScramChallenged { start: self, keys, nonce, server_first })
    }
}

/// RFC 5802 §6: which channel binding the client uses, and that nobody hid ours from it.
fn binding_data<'a>(flag: &str, plus: bool, bindings: &'a ChannelBindings) -> Result<&'a [u8], SaslFailure> {
    match (flag, plus) {
        ("n", false) => Ok(b""),
        // The client can bind and believes that we can not; if we can, the list it saw was changed on the way.
        ("y", false) if bindings.is_empty() => Ok(b""),
        ("y", false) => Err(SaslFailure::NotAuthorized),
        (flag, true) => {
            let kind = flag.strip_prefix("p=").ok_or(SaslFailure::MalformedRequest)?;
            BindingKind::from_name(kind).and_then(|kind| bindings.get(kind)).ok_or(SaslFailure::NotAuthorized)
        }
        _ => Err(SaslFailure::MalformedRequest),
    }
}

fn read_authzid(text: &str) -> Result<Option<String>, SaslFailure> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = text.strip_prefix("a=").and_then(unescape_name);
    name.map(Some).ok_or(SaslFailure::MalformedRequest)
}

/// `n=user,r=nonce[,extensions]`. A mandatory extension `m=` is not understood by anybody and fails here.
fn first_bare(bare: &str) -> Option<(String, String)> {
    let mut rest = Some(bare);
    let user = unescape_name(attribute(&mut rest, "n")?)?;
    let nonce = attribute(&mut rest, "r")?;
    is_nonce(nonce).then(|| (user, nonce.to_owned()))
}

/// RFC 5802 §7: printable ASCII without the comma.
fn is_nonce(nonce: &str) -> bool {
    !nonce.is_empty() && nonce.len() <= 256 && nonce.bytes().all(|byte| matches!(byte, b'!'..=b'~') && byte != b',')
}

impl ScramChallenged {
    /// The user name that the client gave.
    pub fn user(&self) -> &str {
        &self.start.user
    }

    /// Whom the client wants to act as, if it says so.
    pub fn authzid(&self) -> Option<&str> {
        self.start.authzid()
    }

    /// Checks the client's final message, RFC 5802 §5.
    ///
    /// # Errors
    /// [`SaslFailure::NotAuthorized`] for a wrong proof, nonce or binding; [`SaslFailure::MalformedRequest`].
    pub fn finish(&self, message: &[u8]) -> Result<ScramSuccess, SaslFailure> {
        let text = std::str::from_utf8(message).map_err(|_| SaslFailure::MalformedRequest)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(SaslFailure::MalformedRequest)?;
        let mut rest = Some(without_proof);
        let binding = attribute(&mut rest, "c").ok_or(SaslFailure::MalformedRequest)?;
        let nonce = attribute(&mut rest, "r").ok_or(SaslFailure::MalformedRequest)?;
        let binding = BASE64.decode(binding).map_err(|_| SaslFailure::MalformedRequest)?;
        let proof = BASE64.decode(proof).map_err(|_| SaslFailure::MalformedRequest)?;
        if nonce != self.nonce || binding != self.start.expected_binding || proof.len() != self.start.hash.size() {
            return Err(SaslFailure::NotAuthorized);
        }
        let auth_message = format!("{},{},{without_proof}", self.start.client_first_bare, self.server_first);
        if !self.proves(&proof, auth_message.as_bytes()) {
            return Err(SaslFailure::NotAuthorized);
        }
        let signature = self.start.hash.hmac(self.keys.server_key.as_slice(), auth_message.as_bytes());
        let message = format!("v={}", BASE64.encode(signature.as_slice())).into_bytes();
        Ok(ScramSuccess { message, user: self.start.user.clone(), authzid: self.start.authzid.clone() })
    }

    /// RFC 5802 §3: H(ClientProof XOR ClientSignature) must be StoredKey.
    fn proves(&self, proof: &[u8], auth_message: &[u8]) -> bool {
        let hash = self.start.hash;
        let signature: Digested = hash.hmac(self.keys.stored_key.as_slice(), auth_message);
        let client_key = signature.xor(proof);
        hash.digest(client_key.as_slice()).same(&self.keys.stored_key)
    }
}
