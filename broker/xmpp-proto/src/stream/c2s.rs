//! The negotiation of a client's stream: header, STARTTLS, SASL, restart, resource binding (RFC 6120 §4 to §7).
//!
//! One type per state. What needs a store or a socket (keys, passwords, the TLS handshake, the place of a session)
//! is handed out as a [`Next`] that the driver answers.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD};

use super::sasl2::{Asked, Success, Via, plain_success};
use super::{Framing, Greeting, Open, features};
use crate::element::Element;
use crate::error::{Condition, StanzaError, StreamCondition, StreamError};
use crate::ingress::{Header, Incoming};
use crate::jid::{BareJid, Jid};
use crate::ns;
use crate::sasl::{
    ChannelBindings, Evidence, Exchange, Given, Hash, KeysNeeded, Mechanism, Progress, SaslFailure, ScramKeys,
};
use crate::sm::{self, SmRequest};
use crate::stanza::{Head, IqType, Stanza, StanzaType};

/// How often a client may fail to log in on one stream (RFC 6120 §6.4.5 recommends 2 to 5).
const MAX_FAILURES: u8 = 4;

/// What lies under the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// Bare TCP.
    Clear {
        /// STARTTLS can be offered.
        tls: bool,
        /// The peer is on this machine.
        loopback: bool,
    },
    /// TLS.
    Tls,
}

/// What the negotiation needs to know of the server and of the connection.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// The server's main domain, which speaks when the client wants an unknown host.
    pub domain: &'a str,
    /// Whether clients can log in at a host.
    pub is_login_host: &'a (dyn Fn(&str) -> bool + Sync),
    /// What lies under the stream.
    pub layer: Layer,
    /// What it is wrapped in.
    pub framing: Framing,
    /// What TLS gives to bind to.
    pub bindings: &'a ChannelBindings,
    /// What modules add to the features, before and after login.
    pub offers: [&'a [Element]; 2],
    /// What can be begun while a resource is bound, by its name in service discovery (XEP-0386 §3).
    pub inline: &'a [&'static str],
    /// The client has shown a certificate that may stand for a login (XEP-0178 §2).
    pub external: bool,
    /// Fresh random octets for each call: stream ids, nonces, resources.
    pub entropy: [u8; 18],
}

/// The states.
#[derive(Debug)]
pub enum Negotiation {
    /// A header must come.
    Opening(Opening),
    /// Features were offered: STARTTLS or a login may come.
    Offered(Offered),
    /// A login is under way.
    Authenticating(Authenticating),
    /// Logged in and restarted: a resource must be bound.
    Binding(Binding),
}

/// What is to be done next.
#[derive(Debug)]
pub enum Next {
    /// More must come from the client.
    Wait(Negotiation),
    /// The TLS handshake; nothing that came before it may be used (RFC 6120 §5.4.3.3). Then a new stream.
    StartTls(Negotiation),
    /// The SCRAM keys of a user.
    Keys(KeysWanted),
    /// What the client gave is to be judged.
    Judge(Judgement),
    /// The login failed; the answer is to be held back for a while.
    Failed(Failed),
    /// The login succeeded: a new stream begins (RFC 6120 §6.4.6).
    LoggedIn(BareJid, Negotiation),
    /// A session wants a resource.
    Bind(BindWanted),
    /// The client goes on with an earlier stream (XEP-0198 §5).
    Resume(ResumeWanted),
    /// The client ended the stream.
    Close,
}

/// Expects a stream header.
#[derive(Debug, Default)]
pub struct Opening {
    user: Option<BareJid>,
}

/// Expects STARTTLS, `<auth/>` or `<authenticate/>`.
#[derive(Debug)]
pub struct Offered {
    host: Box<str>,
    lang: Option<Box<str>>,
    failures: u8,
}

/// A login that goes on.
#[derive(Debug)]
struct Login {
    offered: Offered,
    via: Via,
}

/// Expects `<response/>` or `<abort/>`.
#[derive(Debug)]
pub struct Authenticating {
    login: Login,
    exchange: Exchange,
}

/// Expects the request to bind a resource.
#[derive(Debug)]
pub struct Binding {
    user: BareJid,
    lang: Option<Box<str>>,
}

/// Asks for the keys of a user.
#[derive(Debug)]
pub struct KeysWanted {
    login: Login,
    needed: KeysNeeded,
    user: String,
}

/// Asks whether what a client gave is right.
#[derive(Debug)]
pub struct Judgement {
    login: Login,
    given: Given,
    user: String,
}

/// A failed login that was not answered yet.
#[derive(Debug)]
pub struct Failed {
    login: Login,
    failure: SaslFailure,
}

/// A request to bind a resource.
#[derive(Debug)]
pub struct BindWanted {
    binding: Binding,
    jid: Jid,
    answer: Answer,
}

/// How a binding is answered.
#[derive(Debug)]
enum Answer {
    /// To the request of RFC 6120 §7.6.
    Iq(Head),
    /// With the login's success, with what else the client wants to begin (XEP-0386 §4).
    Success(Success, Vec<Element>),
}

/// A request to go on with an earlier stream.
#[derive(Debug)]
pub struct ResumeWanted {
    binding: Binding,
    /// The login that asked for it, if it did.
    login: Option<(Success, Box<Asked>)>,
    /// The stream, as it was named when it was enabled.
    pub previous: Box<str>,
    /// How many of its stanzas the client has handled.
    pub handled: u32,
}

impl Default for Negotiation {
    fn default() -> Negotiation {
        Negotiation::Opening(Opening::default())
    }
}

impl Negotiation {
    /// Takes what the client sent; appends answers to `out`.
    ///
    /// # Errors
    /// The error to end the stream with: [`Negotiation::write_error`] or, as our header is out then, the plain one.
    pub fn handle(self, incoming: Incoming, setting: &Setting<'_>, out: &mut Vec<u8>) -> Result<Next, StreamError> {
        match (self, incoming) {
            (_, Incoming::Close) => Ok(Next::Close),
            // RFC 6120 §4.9.1.1: an error ends the stream, and is not answered with another.
            (_, Incoming::Element(element)) if element.is(ns::STREAM, "error") => Ok(Next::Close),
            (Negotiation::Opening(state), Incoming::Header(header)) => state.handle(&header, setting, out),
            (Negotiation::Offered(state), Incoming::Element(element)) => state.handle(&element, setting, out),
            (Negotiation::Authenticating(state), Incoming::Element(element)) => state.handle(&element, setting),
            (Negotiation::Binding(state), Incoming::Stanza(stanza)) => state.handle(*stanza, setting, out),
            (Negotiation::Binding(state), Incoming::Element(element)) => state.too_early(&element, out),
            // RFC 6120 §4.9.3.12: stanzas before login.
            _ => Err(StreamError::new(StreamCondition::NotAuthorized).text("log in and bind a resource first")),
        }
    }

    /// Appends an error that ends the stream. Our header goes first if it has not been sent (RFC 6120 §4.9.1.2).
    pub fn write_error(&self, error: &StreamError, setting: &Setting<'_>, out: &mut Vec<u8>) {
        if let Negotiation::Opening(_) = self {
            open(setting.domain, None, setting, out);
        }
        setting.framing.write_error(error, out);
    }

    /// The user who logged in, if one has.
    pub fn user(&self) -> Option<&BareJid> {
        match self {
            Negotiation::Opening(Opening { user }) => user.as_ref(),
            Negotiation::Binding(Binding { user, .. }) => Some(user),
            _ => None,
        }
    }
}

fn open(from: &str, to: Option<&str>, setting: &Setting<'_>, out: &mut Vec<u8>) {
    let id = URL_SAFE_NO_PAD.encode(setting.entropy);
    setting.framing.write_open(&Open { from: Some(from), to, id: Some(&id) }, out);
}

impl Opening {
    fn handle(self, header: &Header, setting: &Setting<'_>, out: &mut Vec<u8>) -> Result<Next, StreamError> {
        // RFC 6120 §4.7.1: the host is compared as a domain.
        let host = header.to.as_deref().and_then(|to| BareJid::host(to).ok());
        let host = host.filter(|host| (setting.is_login_host)(host.as_str()));
        // RFC 6120 §4.7.2: whoever says who it is, is addressed so.
        let asker = header.from.as_deref().and_then(|from| BareJid::parse(from).ok());
        open(
            host.as_ref().map_or(setting.domain, BareJid::as_str),
            self.user.as_ref().or(asker.as_ref()).map(BareJid::as_str),
            setting,
            out,
        );
        let Some(host) = host else { return Err(unknown_host(header, setting)) };
        // RFC 6120 §4.7.5: to a higher version we answer with ours, and go on with it. No version means 0.9.
        let major = header.version.as_deref().and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        if major.is_none_or(|major| major < 1) {
            return Err(StreamError::new(StreamCondition::UnsupportedVersion).text("this server speaks XMPP 1.0"));
        }
        // The stream's default language is copied to stanzas: one that can be none is as good as none.
        let lang = header.lang.clone().filter(|lang| is_language(lang));
        match self.user {
            None => {
                features::before_login(setting, out);
                Ok(Next::Wait(Negotiation::Offered(Offered { host: host.as_str().into(), lang, failures: 0 })))
            }
            Some(user) => {
                features::after_login(setting, out);
                Ok(Next::Wait(Negotiation::Binding(Binding { user, lang })))
            }
        }
    }
}

/// RFC 5646 §2.1: letters, digits and hyphens; §4.4.1 allows to bound the length, beyond 35.
fn is_language(tag: &str) -> bool {
    (1..=64).contains(&tag.len()) && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The error is already in place behind our header.
fn unknown_host(header: &Header, setting: &Setting<'_>) -> StreamError {
    let asked = header.to.as_deref().unwrap_or("");
    StreamError::new(StreamCondition::HostUnknown).text(format!("this server is {}, not {asked:?}", setting.domain))
}

impl Offered {
    fn handle(self, element: &Element, setting: &Setting<'_>, out: &mut Vec<u8>) -> Result<Next, StreamError> {
        match (element.ns(), element.name()) {
            (ns::TLS, "starttls") => self.start_tls(setting, out),
            _ if let Some((via, initial)) = Via::of(element) => {
                let mechanism = element.get_attr("mechanism").and_then(Mechanism::from_name);
                Ok(Login { offered: self, via }.begin(mechanism, initial, setting, out))
            }
            _ => Err(StreamError::new(StreamCondition::NotAuthorized).text("log in first")),
        }
    }

    fn start_tls(self, setting: &Setting<'_>, out: &mut Vec<u8>) -> Result<Next, StreamError> {
        if !matches!(setting.layer, Layer::Clear { tls: true, .. }) {
            // RFC 6120 §5.4.2.2: failure ends the stream.
            Element::new(ns::TLS, "failure").write_to(out, ns::CLIENT);
            return Err(StreamError::new(StreamCondition::PolicyViolation).text("TLS was not offered"));
        }
        Element::new(ns::TLS, "proceed").write_to(out, ns::CLIENT);
        Ok(Next::StartTls(Negotiation::default()))
    }
}

impl Login {
    fn begin(
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
    fn handle(self, element: &Element, setting: &Setting<'_>) -> Result<Next, StreamError> {
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

impl Binding {
    /// XEP-0388 §2.6: what was asked for with the login follows: an earlier stream, else a resource, else nothing.
    fn begin(self, mut asked: Box<Asked>, success: Success, setting: &Setting<'_>, out: &mut Vec<u8>) -> Next {
        if let Some(SmRequest::Resume { previous, handled }) = asked.resume.take() {
            return Next::Resume(ResumeWanted { binding: self, login: Some((success, asked)), previous, handled });
        }
        let jid = asked.resource(&self.user, &setting.entropy[..9]);
        if let (Some(inline), Some(jid)) = (asked.inline(), jid) {
            return Next::Bind(BindWanted { binding: self, jid, answer: Answer::Success(success, inline) });
        }
        success.write(self.user.as_str(), out);
        features::after_login(setting, out);
        Next::Wait(Negotiation::Binding(self))
    }

    /// RFC 6120 §7.6 and §7.7: the client gives a resource or lets the server make one.
    fn handle(self, stanza: Stanza, setting: &Setting<'_>, out: &mut Vec<u8>) -> Result<Next, StreamError> {
        let bind = stanza.element(ns::BIND, "bind").filter(|_| stanza.head.type_ == StanzaType::Iq(IqType::Set));
        let Some(bind) = bind else {
            return Err(StreamError::new(StreamCondition::NotAuthorized).text("bind a resource first"));
        };
        let wish = bind.get_child(ns::BIND, "resource").map(Element::text_content).filter(|wish| !wish.is_empty());
        let resource = wish.unwrap_or_else(|| URL_SAFE_NO_PAD.encode(&setting.entropy[..9]));
        match self.user.with_resource(&resource) {
            Ok(jid) => Ok(Next::Bind(BindWanted { binding: self, jid, answer: Answer::Iq(stanza.head) })),
            Err(error) => {
                // RFC 6120 §7.7.2.1.
                let error = StanzaError::new(Condition::BadRequest).text(error.to_string());
                Stanza::error(&stanza.head, &error).write(out);
                Ok(Next::Wait(Negotiation::Binding(self)))
            }
        }
    }

    /// XEP-0198 §3 and §5: stream management is enabled after binding; in its place a stream is resumed.
    fn too_early(self, element: &Element, out: &mut Vec<u8>) -> Result<Next, StreamError> {
        match SmRequest::read(element) {
            Some(SmRequest::Resume { previous, handled }) => {
                Ok(Next::Resume(ResumeWanted { binding: self, login: None, previous, handled }))
            }
            Some(_) => {
                sm::write_failed(out, Condition::UnexpectedRequest);
                Ok(Next::Wait(Negotiation::Binding(self)))
            }
            None => Err(StreamCondition::UnsupportedStanzaType.into()),
        }
    }
}

impl ResumeWanted {
    /// Who logged in.
    pub fn user(&self) -> &BareJid {
        &self.binding.user
    }

    /// The default language of the stream, if its header has one (RFC 6120 §4.7.4).
    pub fn lang(&self) -> Option<&str> {
        self.binding.lang.as_deref()
    }

    /// There is something to go on with, which answers the client in this way.
    pub fn accept(self, setting: &Setting<'_>) -> Greeting {
        let Some((success, _)) = self.login else { return Greeting::default() };
        let mut features = Vec::new();
        features::after_binding(setting, &mut features);
        Greeting::of(success, self.binding.user, features)
    }

    /// There is nothing to go on with: the client binds a resource instead, or has asked for that already.
    pub fn refuse(self, setting: &Setting<'_>, out: &mut Vec<u8>) -> Next {
        match self.login {
            None => {
                sm::write_failed(out, Condition::ItemNotFound);
                Next::Wait(Negotiation::Binding(self.binding))
            }
            Some((success, asked)) => {
                self.binding.begin(asked, success.with(sm::failed(Condition::ItemNotFound)), setting, out)
            }
        }
    }
}

impl BindWanted {
    /// The full JID that is wanted.
    pub fn jid(&self) -> &Jid {
        &self.jid
    }

    /// The default language of the stream, if its header has one (RFC 6120 §4.7.4).
    pub fn lang(&self) -> Option<&str> {
        self.binding.lang.as_deref()
    }

    /// What the client wants to begin with the binding (XEP-0386 §4).
    pub fn inline(&self) -> &[Element] {
        match &self.answer {
            Answer::Iq(_) => &[],
            Answer::Success(_, inline) => inline,
        }
    }

    /// The resource is bound, and `done` with it: tells the client its full JID (RFC 6120 §7.6.1, XEP-0386 §4). The stream
    /// is negotiated.
    pub fn bound(self, done: Vec<Element>, setting: &Setting<'_>, out: &mut Vec<u8>) -> Jid {
        match self.answer {
            Answer::Iq(head) => {
                let jid = Element::new(ns::BIND, "jid").text(self.jid.as_str().to_owned());
                Stanza::iq_result(&head, Some(Element::new(ns::BIND, "bind").child(jid))).write(out);
            }
            Answer::Success(success, _) => {
                success.with(Element::new(ns::BIND2, "bound").children(done)).write(self.jid.as_str(), out);
                features::after_binding(setting, out);
            }
        }
        self.jid
    }

    /// The resource can not be bound (RFC 6120 §7.6.2); the client may try another.
    pub fn refuse(self, error: &StanzaError, setting: &Setting<'_>, out: &mut Vec<u8>) -> Negotiation {
        match self.answer {
            Answer::Iq(head) => Stanza::error(&head, error).write(out),
            Answer::Success(success, _) => {
                let failed = Element::new(ns::BIND2, "failed").child(error.to_element());
                success.with(failed).write(self.binding.user.as_str(), out);
                features::after_login(setting, out);
            }
        }
        Negotiation::Binding(self.binding)
    }
}

/// Stamps a stanza of a session with its sender (RFC 6120 §8.1.2.1), and with the language of its stream if it has none
/// itself (RFC 6120 §4.7.4, §8.1.5).
///
/// # Errors
/// `invalid-from` when the client says that it is somebody else.
pub fn stamp(head: &mut Head, (own, lang): (&Jid, Option<&str>)) -> Result<(), StreamError> {
    if let Some(from) = &head.from
        && from != own
        && from.as_str() != own.bare()
    {
        return Err(StreamError::new(StreamCondition::InvalidFrom).text(format!("this stream is {own}'s")));
    }
    head.from = Some(own.clone());
    if head.lang.is_none() {
        head.lang = lang.map(Into::into);
    }
    Ok(())
}

/// The answer to the session request of RFC 3921 §3, which is a no-op since RFC 6121 §1.4.
pub fn session_reply(stanza: &Stanza) -> Option<Stanza> {
    let is_set = stanza.head.type_ == StanzaType::Iq(IqType::Set);
    // One to somebody else is routed as any request (RFC 6121 §8.5.3.1).
    let for_server = stanza.head.to.as_ref().is_none_or(|to| to.local().is_none());
    (is_set && for_server && stanza.child(ns::SESSION, "session").is_some())
        .then(|| Stanza::iq_result(&stanza.head, None))
}

#[cfg(test)]
mod tests;
