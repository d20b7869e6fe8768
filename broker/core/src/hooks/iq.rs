//! Handlers of IQs: who answers which payload, for whom.

use super::BoxFuture;
use crate::{effects::Effects, homes::Account};
use std::sync::Arc;
use tavi_xmpp_proto::{
    element::Element,
    error::{Condition, StanzaError},
    jid::Jid,
    stanza::{Head, IqType, StanzaType},
};

/// For whom a handler answers. No handler has to find out whose account it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The server: `DOMAIN`, `things.DOMAIN`, `bots.DOMAIN`.
    Server,
    /// The sender's own account: no `to`, or the own bare JID (RFC 6120 §10.3.3).
    Own,
    /// Somebody's account, named by its bare JID; one's own too where nobody answers in [`Scope::Own`]. Hooks of the
    /// [`Filter`](super::Phase::Filter) phase have let the IQ through.
    Account,
}

/// What an IQ carries.
pub trait IqPayload: Sized + Send + 'static {
    /// Namespace of the payload element.
    const NS: &'static str;
    /// Its name.
    const NAME: &'static str;

    /// Reads it.
    ///
    /// # Errors
    /// What the sender gets if it is not well made, usually `<bad-request/>`.
    fn parse(element: &Element) -> Result<Self, StanzaError>;
}

/// An IQ of type get or set, for a handler.
pub struct Iq<T> {
    /// What it carries.
    pub payload: T,
    /// Sender and recipient; `from` is always there.
    pub head: Head,
    /// In [`Scope::Own`] and [`Scope::Account`] the account that is asked; in [`Scope::Server`] the sender's, if it is a
    /// local one.
    pub account: Option<Arc<Account>>,
}

impl<T> Iq<T> {
    /// The sender's full JID.
    pub fn from(&self) -> Option<&Jid> {
        self.head.from.as_ref()
    }

    /// Whether it is of type `set`.
    pub fn is_set(&self) -> bool {
        self.head.type_ == StanzaType::Iq(IqType::Set)
    }

    /// The account that is asked.
    ///
    /// # Errors
    /// `<service-unavailable/>` in [`Scope::Server`], for a sender without an account here.
    pub fn account(&self) -> Result<&Arc<Account>, StanzaError> {
        self.account.as_ref().ok_or_else(|| Condition::ServiceUnavailable.into())
    }
}

/// A handler's answer.
#[derive(Default)]
pub struct Reply {
    /// The result's payload.
    pub payload: Option<Element>,
    /// What else is to be done; saves come before the result goes out.
    pub fx: Effects,
}

impl From<Element> for Reply {
    fn from(element: Element) -> Reply {
        Reply { payload: Some(element), fx: Effects::default() }
    }
}

/// Answers IQs whose payload is a `T`.
pub trait Handle<T: IqPayload>: Send + Sync + 'static {
    /// Answers, under a deadline of ten seconds. If it has to wait, nothing but its own answer waits with it.
    fn handle(&self, iq: Iq<T>) -> BoxFuture<'_, Result<Reply, StanzaError>>;

    /// Answers in [`Scope::Account`] for an account that does not exist.
    ///
    /// # Errors
    /// RFC 6121 §8.5.1: `<service-unavailable/>`, unless the protocol says otherwise.
    fn nobody(&self, _iq: Iq<T>) -> Result<Reply, StanzaError> {
        Err(Condition::ServiceUnavailable.into())
    }

    /// What somebody gets who asks this of an account that is not his own, where only [`Scope::Own`] has a handler.
    fn not_yours(&self) -> StanzaError {
        Condition::ServiceUnavailable.into()
    }
}

/// What a handler is asked, before its payload is read.
pub(super) enum Asked {
    /// Somebody or something that is there.
    Of(Option<Arc<Account>>),
    /// An account that does not exist.
    Nobody,
    /// Somebody else's account, where only one's own is answered for.
    NotYours,
}

/// A handler whose payload type is forgotten.
pub(super) type Erased =
    Box<dyn Fn(Head, &Element, Asked) -> BoxFuture<'static, Result<Reply, StanzaError>> + Send + Sync>;

pub(super) fn erase<T: IqPayload>(handler: Arc<dyn Handle<T>>) -> Erased {
    Box::new(move |head, element, asked| {
        let at_once = |answer| Box::pin(std::future::ready(answer)) as BoxFuture<'static, _>;
        let handler = handler.clone();
        let payload = match T::parse(element) {
            Err(error) if !matches!(asked, Asked::NotYours) => return at_once(Err(error)),
            payload => payload,
        };
        match (payload, asked) {
            (Ok(payload), Asked::Of(account)) => {
                Box::pin(async move { handler.handle(Iq { payload, head, account }).await })
            }
            (Ok(payload), Asked::Nobody) => at_once(handler.nobody(Iq { payload, head, account: None })),
            _ => at_once(Err(handler.not_yours())),
        }
    })
}
