//! The negotiation of a client's stream: header, STARTTLS, SASL, restart, resource binding (RFC 6120 §4 to §7).
//!
//! One type per state. What needs a store or a socket (keys, passwords, the TLS handshake, the place of a session)
//! is handed out as a [`Next`] that the driver answers.

mod binding;
mod login;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::sasl2::{Asked, Success, Via};
use super::{Framing, Open, features};
use crate::element::Element;
use crate::error::{Condition, StreamCondition, StreamError};
use crate::ingress::{Header, Incoming};
use crate::jid::{BareJid, Jid};
use crate::ns;
use crate::sasl::{ChannelBindings, Exchange, Given, KeysNeeded, Mechanism, SaslFailure};
use crate::sm;
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
            (Negotiation::Binding(state), Incoming::Stanza(stanza)) => {
                state.handle(Arc::unwrap_or_clone(stanza), setting, out)
            }
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
            // XEP-0198 §3: the order is the server's to enforce, with this answer.
            (ns::SM, _) => {
                sm::write_failed(out, Condition::UnexpectedRequest);
                Ok(Next::Wait(Negotiation::Offered(self)))
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
