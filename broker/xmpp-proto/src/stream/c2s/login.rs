//! The states of a login: steps of the SASL exchange, keys, judgement, failure (RFC 6120 §6, XEP-0388).

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{
    Authenticating, Binding, Failed, Judgement, KeysWanted, Layer, Login, MAX_FAILURES, Negotiation, Next, Opening,
    Setting,
};
use crate::element::Element;
use crate::error::{StreamCondition, StreamError};
use crate::jid::BareJid;
use crate::ns;
use crate::sasl::{Evidence, Exchange, Hash, Mechanism, Progress, SaslFailure, ScramKeys};
use crate::stream::features;
use crate::stream::sasl2::{Success, Via, plain_success};

impl Login {
    pub(super) fn begin(
        self,
        mechanism: Option<Mechanism>,
        initial: Option<Element>,
        setting: &Setting<'_>,
        out: &mut Vec<u8>,
    ) -> Next {
        let offered = features::mechanisms(setting);
        if setting.layer != Layer::Tls && (mechanism == Some(Mechanism::Plain) || offered.is_empty()) {
            return self.failed(SaslFailure::EncryptionRequired);
        }
        let Some(mechanism) = mechanism.filter(|mechanism| offered.contains(mechanism)) else {
            return self.failed(SaslFailure::InvalidMechanism);
        };
        let exchange = Exchange::begin(mechanism);
        match initial {
            Some(message) => self.step(exchange, &message, setting),
            None => {
                self.via.write_challenge(&[], out);
                Next::Wait(Negotiation::Authenticating(Authenticating { login: self, exchange }))
            }
        }
    }

    /// The client's next message of an exchange.
    fn step(self, exchange: Exchange, element: &Element, setting: &Setting<'_>) -> Next {
        let host = &self.offered.host;
        match decode(element).and_then(|message| exchange.step(&message, setting.bindings)) {
            Ok(Progress::Keys(needed)) => {
                Next::Keys(KeysWanted { user: full_name(needed.user(), host), needed, login: self })
            }
            Ok(Progress::Given(given)) => {
                Next::Judge(Judgement { user: full_name(given.user(), host), given, login: self })
            }
            Err(failure) => self.failed(failure),
        }
    }

    fn failed(self, failure: SaslFailure) -> Next {
        Next::Failed(Failed { login: self, failure })
    }

    /// The client proved who it is; is that one of this host, and may they act as whom they ask for?
    fn proven(
        self,
        (jid, authzid): (&BareJid, Option<&str>),
        message: Vec<u8>,
        setting: &Setting<'_>,
        out: &mut Vec<u8>,
    ) -> Next {
        if jid.domain() != &*self.offered.host || jid.local().is_none() {
            return self.failed(SaslFailure::NotAuthorized);
        }
        // RFC 6120 §6.3.8: the authorization identity is a bare JID, here only the user's own.
        if authzid.is_some_and(|authzid| BareJid::parse(authzid).as_ref() != Ok(jid)) {
            return self.failed(SaslFailure::InvalidAuthzid);
        }
        match self.via {
            Via::Auth => {
                plain_success(&message).write_to(out, ns::CLIENT);
                Next::LoggedIn(jid.clone(), Negotiation::Opening(Opening { user: Some(jid.clone()) }))
            }
            Via::Authenticate(asked) => {
                let binding = Binding { user: jid.clone(), lang: self.offered.lang };
                binding.begin(asked, Success::new(message), setting, out)
            }
        }
    }
}

/// The user name of SASL is the local part (RFC 6120 §6.3.7); some clients give the whole bare JID.
fn full_name(user: &str, host: &str) -> String {
    if user.contains('@') || user.is_empty() { user.to_owned() } else { format!("{user}@{host}") }
}

/// RFC 6120 §6.4.2: base64, where `=` stands for no octets.
fn decode(element: &Element) -> Result<Vec<u8>, SaslFailure> {
    match element.text_content().trim_ascii() {
        "=" => Ok(Vec::new()),
        text => BASE64.decode(text).map_err(|_| SaslFailure::IncorrectEncoding),
    }
}

impl Authenticating {
    pub(super) fn handle(self, element: &Element, setting: &Setting<'_>) -> Result<Next, StreamError> {
        let ns = self.login.via.ns();
        if element.is(ns, "abort") {
            return Ok(self.login.failed(SaslFailure::Aborted));
        }
        if !element.is(ns, "response") {
            return Err(StreamError::new(StreamCondition::NotAuthorized).text("a SASL response was expected"));
        }
        Ok(self.login.step(self.exchange, element, setting))
    }
}

impl KeysWanted {
    /// Whose keys: `local@host`.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// For which hash.
    pub fn hash(&self) -> Hash {
        self.needed.hash()
    }

    /// Sends the challenge. For an unknown user the keys are dummy ones.
    pub fn with(self, keys: ScramKeys, setting: &Setting<'_>, out: &mut Vec<u8>) -> Negotiation {
        let (challenge, exchange) = self.needed.challenge(keys, setting.entropy);
        self.login.via.write_challenge(&challenge, out);
        Negotiation::Authenticating(Authenticating { login: self.login, exchange })
    }

    /// The store can not be read.
    pub fn unavailable(self) -> Failed {
        Failed { login: self.login, failure: SaslFailure::TemporaryAuthFailure }
    }
}

impl Judgement {
    /// Who the client says it is: `local@host`; empty if its certificate is to say that (XEP-0178 §2).
    pub fn user(&self) -> &str {
        &self.user
    }

    /// What is to be judged.
    pub fn evidence(&self) -> Evidence<'_> {
        self.given.evidence()
    }

    /// It is right, and the client is `principal`.
    pub fn accept(self, principal: &BareJid, setting: &Setting<'_>, out: &mut Vec<u8>) -> Next {
        match self.given.last_word() {
            Ok(message) => self.login.proven((principal, self.given.authzid()), message, setting, out),
            Err(failure) => self.login.failed(failure),
        }
    }

    /// It is wrong.
    pub fn refuse(self) -> Failed {
        let failure = self.given.last_word().err().unwrap_or(SaslFailure::NotAuthorized);
        Failed { login: self.login, failure }
    }

    /// The store can not be read.
    pub fn unavailable(self) -> Failed {
        Failed { login: self.login, failure: SaslFailure::TemporaryAuthFailure }
    }
}

impl Failed {
    /// What goes wrong.
    pub fn failure(&self) -> SaslFailure {
        self.failure
    }

    /// Sends `<failure/>`; the client may try again.
    ///
    /// # Errors
    /// It has failed too often (RFC 6120 §6.4.5).
    pub fn answer(mut self, out: &mut Vec<u8>) -> Result<Negotiation, StreamError> {
        self.login.via.write_failure(self.failure, out);
        self.login.offered.failures += 1;
        if self.login.offered.failures > MAX_FAILURES {
            return Err(StreamError::new(StreamCondition::PolicyViolation).text("too many failed logins"));
        }
        Ok(Negotiation::Offered(self.login.offered))
    }
}
