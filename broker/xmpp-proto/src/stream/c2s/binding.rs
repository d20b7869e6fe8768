//! What follows a login: a resource is bound, or an earlier stream is gone on with (RFC 6120 §7, XEP-0386, XEP-0198 §5).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{Answer, BindWanted, Binding, Negotiation, Next, ResumeWanted, Setting};
use crate::element::Element;
use crate::error::{Condition, StanzaError, StreamCondition, StreamError};
use crate::jid::{BareJid, Jid};
use crate::ns;
use crate::sm::{self, SmRequest};
use crate::stanza::{IqType, Stanza, StanzaType};
use crate::stream::sasl2::{Asked, Success};
use crate::stream::{Greeting, features};

impl Binding {
    /// XEP-0388 §2.6: what was asked for with the login follows: an earlier stream, else a resource, else nothing.
    pub(super) fn begin(
        self,
        mut asked: Box<Asked>,
        success: Success,
        setting: &Setting<'_>,
        out: &mut Vec<u8>,
    ) -> Next {
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
    pub(super) fn handle(self, stanza: Stanza, setting: &Setting<'_>, out: &mut Vec<u8>) -> Result<Next, StreamError> {
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
    pub(super) fn too_early(self, element: &Element, out: &mut Vec<u8>) -> Result<Next, StreamError> {
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

    /// There is something to go on with, which answers the client in this way; if it does after all.
    pub fn accept(&self) -> Greeting {
        let login = self.login.as_ref();
        login.map(|(success, _)| Greeting::of(success.clone(), self.binding.user.clone())).unwrap_or_default()
    }

    /// There is nothing to go on with: the client is told that it `failed` ([`sm::not_resumed`]), and binds a resource
    /// instead, or has asked for that already.
    pub fn refuse(self, failed: Element, setting: &Setting<'_>, out: &mut Vec<u8>) -> Next {
        match self.login {
            None => {
                failed.write_to(out, ns::CLIENT);
                Next::Wait(Negotiation::Binding(self.binding))
            }
            Some((success, asked)) => self.binding.begin(asked, success.with(failed), setting, out),
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
