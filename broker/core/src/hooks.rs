//! The seams for modules: a typed, closed list of hooks, and the registry that start-up fills.

use crate::{
    effects::Effects,
    envelope::Envelope,
    homes::{Account, AccountPart, AccountState, Loader, SessionEntry, loader},
    principal::{Host, Hosts},
};
use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc};
use tavi_store::StoreError;
use tavi_xmpp_proto::{
    element::Element,
    error::{Condition, StanzaError},
    jid::Jid,
    stanza::{Head, IqType, StanzaType},
};

/// A boxed future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where in a chain a hook stands; inside a phase the registry's order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// May end the chain: block lists, subscription logic.
    Filter,
    /// Adds to the stanza.
    Annotate,
    /// Keeps it: archive, offline.
    Store,
    /// Makes copies of it: carbons.
    Copy,
}

/// What a hook wants to happen next.
#[derive(Debug)]
pub enum Flow {
    /// The chain goes on.
    Continue,
    /// The stanza is dealt with; nothing more happens to it.
    Stop,
    /// The sender gets this error.
    Refuse(StanzaError),
}

/// One stanza in one account's chain. The account is locked while its hooks run.
pub struct Ev<'a> {
    /// The stanza.
    pub env: &'a mut Envelope,
    /// Whose chain it is: the sender's in [`OnSent`], the recipient's in the others.
    pub account: &'a Arc<Account>,
    /// Sessions, roster and the rest of the account.
    pub state: &'a mut AccountState,
    /// What the hook wants done.
    pub fx: &'a mut Effects,
    /// The broker's host names.
    pub hosts: &'a Hosts,
}

/// A local session sent a stanza.
pub trait OnSent: Send + Sync {
    /// Looks at it before it is routed.
    fn on_sent(&self, ev: &mut Ev<'_>) -> Flow;
}

/// An account is about to receive a stanza.
pub trait OnReceived: Send + Sync {
    /// Looks at it before sessions are chosen.
    fn on_received(&self, ev: &mut Ev<'_>) -> Flow;
}

/// No session could take a message.
pub trait OnUndelivered: Send + Sync {
    /// Keeps it (then [`Flow::Stop`]) or lets it be answered with `<service-unavailable/>`.
    fn on_undelivered(&self, ev: &mut Ev<'_>) -> Flow;
}

/// When a stream offers features (RFC 6120 §4.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nobody has logged in yet.
    BeforeLogin,
    /// Somebody has, and a resource is to be bound.
    AfterLogin,
}

/// Something that the streams of clients offer.
pub trait StreamFeature: Send + Sync {
    /// What stands for it among the stream's features at this stage, if anything does.
    fn offer(&self, stage: Stage) -> Option<Element>;

    /// Its name in service discovery, if a client can begin it while it binds its resource (XEP-0386 §3).
    fn inline(&self) -> Option<&'static str> {
        None
    }

    /// A session that is just bound wants to begin something; a request that is not this feature's is left alone.
    fn begin(&self, _request: &Element, _session: &mut SessionEntry) {}
}

/// What happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// It sent its initial presence.
    Available,
    /// Its client is back after the process was started anew: who came and went meanwhile was not told.
    Returned,
    /// It ended, in whatever way; its entry is still in the account's state.
    Ended,
}

/// The life of sessions.
pub trait OnSession: Send + Sync {
    /// `session` is its number in the account's state.
    fn on_session(&self, event: SessionEvent, session: u64, at: &mut Place<'_>);
}

/// An account, locked, outside the chain of a stanza.
pub struct Place<'a> {
    /// Which account.
    pub account: &'a Arc<Account>,
    /// Its state.
    pub state: &'a mut AccountState,
    /// What the hook wants done.
    pub fx: &'a mut Effects,
    /// The broker's host names.
    pub hosts: &'a Hosts,
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
    /// The sender's account, if it is a local one.
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

    /// Whether it is for the sender's own account (RFC 6120 §10.3.3): no `to`, or the own bare JID.
    pub fn is_for_own_account(&self) -> bool {
        match (&self.head.to, &self.head.from) {
            (None, _) => true,
            (Some(to), Some(from)) => to.as_str() == from.bare(),
            _ => false,
        }
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

/// Answers IQs whose payload is a `T`, sent to the server or to an account (whose server answers for it).
pub trait Handle<T: IqPayload>: Send + Sync + 'static {
    /// Answers. Runs in the sender's task, under a deadline.
    fn handle(&self, iq: Iq<T>) -> BoxFuture<'_, Result<Reply, StanzaError>>;
}

/// A service that owns a host: pubsub, rooms, upload.
pub trait Service: Send + Sync {
    /// Deals with a stanza to the host; answers are routed from the effects.
    fn serve(&self, env: Envelope) -> BoxFuture<'_, Effects>;

    /// Takes up what it keeps in the store. Called once, before anybody can connect.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn start(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }
}

type ErasedHandle =
    Box<dyn Fn(Head, &Element, Option<Arc<Account>>) -> BoxFuture<'static, Result<Reply, StanzaError>> + Send + Sync>;

/// Why a registration is refused: two owners of one thing are a mistake of the start-up list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} has two owners")]
pub struct TwoOwners(pub String);

/// One line of the table of what the broker can do: for disco, the docs and the DOAP file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// What service discovery lists (XEP-0030 §3).
    pub var: &'static str,
    /// Which host answers with it.
    pub host: Host,
}

/// Everything that modules registered, in order.
#[derive(Default)]
pub struct Registry {
    pub(crate) on_sent: Vec<(Phase, Arc<dyn OnSent>)>,
    pub(crate) on_received: Vec<(Phase, Arc<dyn OnReceived>)>,
    pub(crate) on_undelivered: Vec<Arc<dyn OnUndelivered>>,
    pub(crate) on_session: Vec<Arc<dyn OnSession>>,
    pub(crate) services: HashMap<Host, Arc<dyn Service>>,
    iq: HashMap<(&'static str, &'static str), ErasedHandle>,
    features: Vec<Feature>,
    stream_features: Vec<Arc<dyn StreamFeature>>,
    pub(crate) parts: Vec<Loader>,
}

impl Registry {
    /// Adds a hook for sent stanzas.
    pub fn on_sent(&mut self, phase: Phase, hook: Arc<dyn OnSent>) {
        self.on_sent.push((phase, hook));
        self.on_sent.sort_by_key(|(phase, _)| *phase);
    }

    /// Adds a hook for received stanzas.
    pub fn on_received(&mut self, phase: Phase, hook: Arc<dyn OnReceived>) {
        self.on_received.push((phase, hook));
        self.on_received.sort_by_key(|(phase, _)| *phase);
    }

    /// Adds a hook for messages that nobody could take.
    pub fn on_undelivered(&mut self, hook: Arc<dyn OnUndelivered>) {
        self.on_undelivered.push(hook);
    }

    /// Adds a hook for the life of sessions.
    pub fn on_session(&mut self, hook: Arc<dyn OnSession>) {
        self.on_session.push(hook);
    }

    /// Makes `handler` the owner of the payload `T`.
    ///
    /// # Errors
    /// If the payload has an owner already.
    pub fn handle<T: IqPayload>(&mut self, handler: Arc<dyn Handle<T>>) -> Result<(), TwoOwners> {
        let erased: ErasedHandle = Box::new(move |head, element, account| match T::parse(element) {
            Err(error) => Box::pin(async move { Err(error) }),
            Ok(payload) => {
                let handler = handler.clone();
                Box::pin(async move { handler.handle(Iq { payload, head, account }).await })
            }
        });
        match self.iq.insert((T::NS, T::NAME), erased) {
            None => Ok(()),
            Some(_) => Err(TwoOwners(format!("the IQ payload {{{}}}{}", T::NS, T::NAME))),
        }
    }

    /// Makes `service` the owner of a host.
    ///
    /// # Errors
    /// If the host has an owner already.
    pub fn service(&mut self, host: Host, service: Arc<dyn Service>) -> Result<(), TwoOwners> {
        match self.services.insert(host, service) {
            None => Ok(()),
            Some(_) => Err(TwoOwners(format!("the host {host:?}"))),
        }
    }

    /// Starts all services.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn start(&self) -> Result<(), StoreError> {
        for service in self.services.values() {
            service.start().await?;
        }
        Ok(())
    }

    /// Has a module's part of an account's state read before anybody sees the account.
    pub fn part<T: AccountPart>(&mut self) {
        self.parts.push(loader::<T>());
    }

    /// Lists a feature for service discovery.
    pub fn feature(&mut self, host: Host, var: &'static str) {
        self.features.push(Feature { var, host });
    }

    /// Adds something that streams offer.
    pub fn stream_feature(&mut self, feature: Arc<dyn StreamFeature>) {
        self.stream_features.push(feature);
    }

    /// What modules add to the features of a stream, in the order of registration.
    pub fn offers(&self, stage: Stage) -> Vec<Element> {
        self.stream_features.iter().filter_map(|feature| feature.offer(stage)).collect()
    }

    /// What a client can begin while it binds its resource, by the names of service discovery.
    pub fn inline(&self) -> Vec<&'static str> {
        self.stream_features.iter().filter_map(|feature| feature.inline()).collect()
    }

    /// Begins what a client asked for while it was bound.
    pub fn begin(&self, requests: &[Element], session: &mut SessionEntry) {
        for request in requests {
            self.stream_features.iter().for_each(|feature| feature.begin(request, session));
        }
    }

    /// All features, in the order of registration.
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// Answers an IQ of type get or set.
    pub(crate) fn answer(
        &self,
        head: Head,
        payload: &Element,
        account: Option<Arc<Account>>,
    ) -> BoxFuture<'static, Result<Reply, StanzaError>> {
        // Both strings are looked up by value: the static keys compare as strings.
        let found = self.iq.iter().find(|((ns, name), _)| payload.is(ns, name));
        match found {
            Some((_, handler)) => handler(head, payload, account),
            // RFC 6120 §8.4: an unknown payload is answered with service-unavailable.
            None => Box::pin(async { Err(StanzaError::new(Condition::ServiceUnavailable)) }),
        }
    }
}
