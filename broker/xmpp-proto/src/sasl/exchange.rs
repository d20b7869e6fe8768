//! One SASL exchange, whatever carries its messages: RFC 6120 `<auth/>` now, XEP-0388 `<authenticate/>` alike.
//!
//! An exchange takes the client's messages one by one and says after each what is needed next, until the client has
//! given what is to be judged. How many messages that takes is the mechanism's affair.

use zeroize::Zeroizing;

use super::{ChannelBindings, Hash, Mechanism, Plain, SaslFailure, ScramChallenged, ScramKeys, ScramStart};

/// A login under way: the client must send its next message.
#[derive(Debug)]
pub struct Exchange {
    state: State,
}

#[derive(Debug)]
enum State {
    First(Mechanism),
    Challenged(Box<ScramChallenged>),
}

/// What is needed next.
#[derive(Debug)]
pub enum Progress {
    /// The keys of a user, for a challenge.
    Keys(KeysNeeded),
    /// Somebody who judges what the client gave.
    Given(Given),
}

impl Exchange {
    /// An exchange by `mechanism`, before the client's first message.
    pub fn begin(mechanism: Mechanism) -> Exchange {
        Exchange { state: State::First(mechanism) }
    }

    /// Takes the client's next message, decoded. `bindings` are what this connection offers.
    ///
    /// # Errors
    /// The message is malformed, or somebody tampered with the list of mechanisms.
    pub fn step(self, message: &[u8], bindings: &ChannelBindings) -> Result<Progress, SaslFailure> {
        match self.state {
            State::First(Mechanism::Plain) => Plain::parse(message).map(|plain| Progress::Given(Given::plain(plain))),
            State::First(Mechanism::External) => Given::certificate(message).map(Progress::Given),
            State::First(mechanism) => {
                ScramStart::parse(mechanism, message, bindings).map(|start| Progress::Keys(KeysNeeded(start)))
            }
            State::Challenged(challenge) => Ok(Progress::Given(Given::proof(challenge, message))),
        }
    }
}

/// The client named itself; its keys make the challenge.
#[derive(Debug)]
pub struct KeysNeeded(ScramStart);

impl KeysNeeded {
    /// The user name that the client gave, not normalised.
    pub fn user(&self) -> &str {
        self.0.user()
    }

    /// For which hash.
    pub fn hash(&self) -> Hash {
        self.0.hash()
    }

    /// The challenge to be sent. For an unknown user the keys are dummy ones; `entropy` are fresh random octets.
    pub fn challenge(self, keys: ScramKeys, entropy: [u8; 18]) -> (Vec<u8>, Exchange) {
        let (challenge, challenged) = self.0.challenge(keys, entropy);
        (challenge, Exchange { state: State::Challenged(Box::new(challenged)) })
    }
}

/// All that a client gave to be believed.
pub struct Given {
    user: String,
    authzid: Option<String>,
    evidence: Owned,
}

enum Owned {
    Password(Zeroizing<String>),
    Proof { challenge: Box<ScramChallenged>, answer: Vec<u8> },
    Certificate,
}

/// What is to be judged.
#[derive(Debug)]
pub enum Evidence<'a> {
    /// The password itself.
    Password(&'a str),
    /// The proof of a password.
    Proof {
        /// The challenge that was sent.
        challenge: &'a ScramChallenged,
        /// The client's answer.
        answer: &'a [u8],
    },
    /// The certificate that the client showed in the TLS handshake.
    Certificate,
}

impl Given {
    fn plain(plain: Plain) -> Given {
        let authzid = Some(plain.authzid).filter(|authzid| !authzid.is_empty());
        Given { user: plain.user, authzid, evidence: Owned::Password(plain.password) }
    }

    fn proof(challenge: Box<ScramChallenged>, answer: &[u8]) -> Given {
        let (user, authzid) = (challenge.user().to_owned(), challenge.authzid().map(str::to_owned));
        Given { user, authzid, evidence: Owned::Proof { challenge, answer: answer.to_vec() } }
    }

    /// RFC 4422 appendix A.1: the message is the authorization identity, or empty.
    fn certificate(message: &[u8]) -> Result<Given, SaslFailure> {
        let authzid = std::str::from_utf8(message).ok().filter(|authzid| !authzid.contains('\0'));
        let authzid = authzid.ok_or(SaslFailure::MalformedRequest)?;
        let authzid = Some(authzid.to_owned()).filter(|authzid| !authzid.is_empty());
        Ok(Given { user: authzid.clone().unwrap_or_default(), authzid, evidence: Owned::Certificate })
    }

    /// The user name that the client gave, not normalised; empty if its certificate is to say that.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whom the client wants to act as, if it says so.
    pub fn authzid(&self) -> Option<&str> {
        self.authzid.as_deref()
    }

    /// What is to be judged.
    pub fn evidence(&self) -> Evidence<'_> {
        match &self.evidence {
            Owned::Password(password) => Evidence::Password(password),
            Owned::Proof { challenge, answer } => Evidence::Proof { challenge, answer },
            Owned::Certificate => Evidence::Certificate,
        }
    }

    /// The mechanism's last word to a client that was believed; empty if it has none.
    ///
    /// # Errors
    /// The proof is wrong or malformed.
    pub fn last_word(&self) -> Result<Vec<u8>, SaslFailure> {
        match &self.evidence {
            Owned::Password(_) | Owned::Certificate => Ok(Vec::new()),
            Owned::Proof { challenge, answer } => challenge.finish(answer).map(|success| success.message),
        }
    }
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Given").field("user", &self.user).finish_non_exhaustive()
    }
}
