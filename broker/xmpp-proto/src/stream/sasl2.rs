//! What carries the messages of a login: `<auth/>` (RFC 6120 §6.4) or `<authenticate/>` (XEP-0388), which may ask for a
//! resource (XEP-0386) and more in the same round trip.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD};

use super::c2s::Setting;
use crate::element::Element;
use crate::jid::{BareJid, Jid};
use crate::ns;
use crate::sasl::{Hash, Mechanism, SaslFailure};
use crate::sm::SmRequest;

/// What carries a login.
#[derive(Debug)]
pub(crate) enum Via {
    /// RFC 6120 §6.4: a new stream follows the success.
    Auth,
    /// XEP-0388 §2: the stream goes on behind it.
    Authenticate(Box<Asked>),
}

/// What a client asks for beside its login.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// The client software's own name for this installation of itself (XEP-0388 §2.3).
    agent: Option<Box<str>>,
    /// The request to bind a resource (XEP-0386 §4).
    bind: Option<Element>,
    /// The request to go on with an earlier stream (XEP-0198 §5, inside the login).
    pub(crate) resume: Option<SmRequest>,
}

impl Via {
    /// How a request to log in is carried, with its initial response, if it is one.
    pub(crate) fn of(element: &Element) -> Option<(Via, Option<Element>)> {
        match (element.ns(), element.name()) {
            (ns::SASL, "auth") => Some((Via::Auth, (!element.nodes().is_empty()).then(|| element.clone()))),
            (ns::SASL2, "authenticate") => {
                let agent = element.get_child(ns::SASL2, "user-agent").and_then(|agent| agent.get_attr("id"));
                let bind = element.get_child(ns::BIND2, "bind").cloned();
                let resume = element.get_child(ns::SM, "resume").and_then(SmRequest::read);
                let asked = Asked { agent: agent.map(Into::into), bind, resume };
                let initial = element.get_child(ns::SASL2, "initial-response").cloned();
                Some((Via::Authenticate(Box::new(asked)), initial))
            }
            _ => None,
        }
    }

    /// The namespace of this login's elements.
    pub(crate) fn ns(&self) -> &'static str {
        match self {
            Via::Auth => ns::SASL,
            Via::Authenticate(_) => ns::SASL2,
        }
    }

    /// Appends a challenge; an empty one asks for the first message (RFC 6120 §6.4.2, XEP-0388 §2.4).
    pub(crate) fn write_challenge(&self, challenge: &[u8], out: &mut Vec<u8>) {
        with_text(Element::new(self.ns(), "challenge"), challenge).write_to(out, ns::CLIENT);
    }

    /// Appends a failure: its condition is the same in both (XEP-0388 §2.7).
    pub(crate) fn write_failure(&self, failure: SaslFailure, out: &mut Vec<u8>) {
        let condition = Element::new(ns::SASL, failure.to_string());
        Element::new(self.ns(), "failure").child(condition).write_to(out, ns::CLIENT);
    }
}

fn with_text(element: Element, octets: &[u8]) -> Element {
    if octets.is_empty() { element } else { element.text(BASE64.encode(octets)) }
}

/// RFC 6120 §6.4.6.
pub(crate) fn plain_success(message: &[u8]) -> Element {
    with_text(Element::new(ns::SASL, "success"), message)
}

/// The success of XEP-0388 §2.6. It is written when it is known what else was done with it.
#[derive(Clone, Debug)]
pub(crate) struct Success {
    message: Vec<u8>,
    done: Vec<Element>,
}

impl Success {
    /// With the mechanism's last word; empty if it has none.
    pub(crate) fn new(message: Vec<u8>) -> Success {
        Success { message, done: Vec::new() }
    }

    /// Something was done with the login, or failed.
    pub(crate) fn with(mut self, done: Element) -> Success {
        self.done.push(done);
        self
    }

    /// Appends it; `identifier` is the JID that the stream has now, full if a resource was bound.
    pub(crate) fn write(self, identifier: &str, out: &mut Vec<u8>) {
        let word = || with_text(Element::new(ns::SASL2, "additional-data"), &self.message);
        let word = (!self.message.is_empty()).then(word);
        let identifier = Element::new(ns::SASL2, "authorization-identifier").text(identifier.to_owned());
        let success = Element::new(ns::SASL2, "success").child_opt(word).child(identifier);
        success.children(self.done).write_to(out, ns::CLIENT);
    }
}

/// How a client is told that it goes on with an earlier stream: by itself, or inside the success of its login.
#[derive(Debug, Default)]
pub struct Greeting(Option<(Success, BareJid)>);

impl Greeting {
    pub(crate) fn of(success: Success, user: BareJid) -> Greeting {
        Greeting(Some((success, user)))
    }

    /// Appends `<resumed/>`. XEP-0198 §9.2: the stream goes on right behind it, without features.
    pub fn write(self, resumed: Element, out: &mut Vec<u8>) {
        match self.0 {
            Some((success, user)) => success.with(resumed).write(user.as_str(), out),
            None => resumed.write_to(out, ns::CLIENT),
        }
    }
}

impl Asked {
    /// What else is to be begun with the binding (XEP-0386 §4), if there is to be one.
    pub(crate) fn inline(&self) -> Option<Vec<Element>> {
        let bind = self.bind.as_ref()?;
        Some(bind.elements().filter(|child| !child.is(ns::BIND2, "tag")).cloned().collect())
    }

    /// The resource that is made for it: behind the client's tag (XEP-0386 §5.2) what is its installation's alone, so that
    /// it replaces its own former session, or what was drawn.
    pub(crate) fn resource(&self, user: &BareJid, entropy: &[u8]) -> Option<Jid> {
        let tag = self.bind.as_ref().and_then(|bind| bind.get_child(ns::BIND2, "tag")).map(Element::text_content);
        let own = match &self.agent {
            Some(agent) => {
                let digest = Hash::Sha256.digest(format!("{user}\0{agent}").as_bytes());
                URL_SAFE_NO_PAD.encode(&digest.as_slice()[..9])
            }
            None => URL_SAFE_NO_PAD.encode(entropy),
        };
        let tagged = tag.filter(|tag| !tag.is_empty()).and_then(|tag| user.with_resource(&format!("{tag}~{own}")).ok());
        tagged.or_else(|| user.with_resource(&own).ok())
    }
}

/// The stream feature, XEP-0388 §2.2, with what may be asked for in the same round trip.
pub(crate) fn feature(mechanisms: &[Mechanism], setting: &Setting<'_>) -> Element {
    let item = |mechanism: &Mechanism| Element::new(ns::SASL2, "mechanism").text(mechanism.name());
    let features = setting.inline.iter().map(|var| Element::new(ns::BIND2, "feature").attr("var", *var));
    let bind = Element::new(ns::BIND2, "bind").child(Element::new(ns::BIND2, "inline").children(features));
    let inline = Element::new(ns::SASL2, "inline").child(bind).child(Element::new(ns::SM, "sm"));
    Element::new(ns::SASL2, "authentication").children(mechanisms.iter().map(item)).child(inline)
}
