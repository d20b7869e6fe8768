//! SASL: the SCRAM family with channel binding, and PLAIN (RFC 6120 §6, RFC 5802, RFC 7677, RFC 4616).

mod binding;
mod client;
mod exchange;
mod keys;
mod plain;
mod server;

pub use binding::{BindingKind, ChannelBindings};
pub use client::{ClientBinding, ClientError, ScramClient, ScramClientFirst};
pub use exchange::{Evidence, Exchange, Given, KeysNeeded, Progress};
pub use keys::{BadPassword, Hash, ScramKeys};
pub use plain::Plain;
pub use server::{ScramChallenged, ScramStart, ScramSuccess};

/// A SASL mechanism that the server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// SCRAM without channel binding.
    Scram(Hash),
    /// SCRAM with channel binding.
    ScramPlus(Hash),
    /// The certificate that the client showed to TLS, RFC 4422 appendix A, XEP-0178 §2.
    External,
    /// The password itself, RFC 4616; only under TLS.
    Plain,
}

impl Mechanism {
    /// Best first.
    pub const ALL: [Mechanism; 6] = [
        Mechanism::External,
        Mechanism::ScramPlus(Hash::Sha256),
        Mechanism::ScramPlus(Hash::Sha1),
        Mechanism::Scram(Hash::Sha256),
        Mechanism::Scram(Hash::Sha1),
        Mechanism::Plain,
    ];

    /// Its name in the IANA registry.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::ScramPlus(Hash::Sha256) => "SCRAM-SHA-256-PLUS",
            Mechanism::ScramPlus(Hash::Sha1) => "SCRAM-SHA-1-PLUS",
            Mechanism::Scram(Hash::Sha256) => "SCRAM-SHA-256",
            Mechanism::Scram(Hash::Sha1) => "SCRAM-SHA-1",
            Mechanism::External => "EXTERNAL",
            Mechanism::Plain => "PLAIN",
        }
    }

    /// The mechanism of that name.
    pub fn from_name(name: &str) -> Option<Mechanism> {
        Mechanism::ALL.into_iter().find(|mechanism| mechanism.name() == name)
    }
}

/// Why an authentication failed, RFC 6120 §6.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SaslFailure {
    /// The client gave up.
    #[error("aborted")]
    Aborted,
    /// The connection must be encrypted first.
    #[error("encryption-required")]
    EncryptionRequired,
    /// The base64 was wrong.
    #[error("incorrect-encoding")]
    IncorrectEncoding,
    /// The client may not act as the identity that it asks for.
    #[error("invalid-authzid")]
    InvalidAuthzid,
    /// The mechanism is not offered.
    #[error("invalid-mechanism")]
    InvalidMechanism,
    /// The message has a wrong form.
    #[error("malformed-request")]
    MalformedRequest,
    /// Wrong user name or password, or somebody between us and the client.
    #[error("not-authorized")]
    NotAuthorized,
    /// Our fault; later may work.
    #[error("temporary-auth-failure")]
    TemporaryAuthFailure,
}

/// Escapes a user name: RFC 5802 §5.1, `n`.
fn escape_name(name: &str) -> String {
    name.replace('=', "=3D").replace(',', "=2C")
}

/// Undoes [`escape_name`]; a `=` that is no such escape is malformed.
fn unescape_name(name: &str) -> Option<String> {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('=') {
        out.push_str(before);
        let (char, tail) = match after.as_bytes() {
            [b'2', b'C', ..] => (',', &after[2..]),
            [b'3', b'D', ..] => ('=', &after[2..]),
            _ => return None,
        };
        out.push(char);
        rest = tail;
    }
    out.push_str(rest);
    (!out.is_empty()).then_some(out)
}

/// The value of attribute `key` when it is the next of a SCRAM message; moves on behind it.
fn attribute<'a>(rest: &mut Option<&'a str>, key: &str) -> Option<&'a str> {
    let text = (*rest)?;
    let (item, tail) = match text.split_once(',') {
        Some((item, tail)) => (item, Some(tail)),
        None => (text, None),
    };
    let value = item.strip_prefix(key)?.strip_prefix('=')?;
    *rest = tail;
    Some(value)
}

#[cfg(test)]
mod tests;
