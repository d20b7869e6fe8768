//! The registry: everything that modules can do, filled at start-up.

use super::{
    At, BoxFuture, Feature, Handle, Identity, IqPayload, OnKept, OnReceived, OnSent, OnSession, OnUndelivered, Phase,
    Remote, Reply, Scope, Service, Stage, StreamFeature, Xep,
    iq::{Asked, Erased, erase},
};
use crate::{
    homes::{Account, AccountPart, Loader, SessionEntry, loader},
    principal::Host,
};
use hashbrown::{Equivalent, HashMap};
use std::{sync::Arc, time::Duration};
use tavi_store::StoreError;
use tavi_xmpp_proto::{
    element::Element,
    error::{Condition, StanzaError},
    stanza::Head,
};

/// Why a registration is refused: two owners of one thing are a mistake of the start-up list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} has two owners")]
pub struct TwoOwners(pub String);

/// Everything that modules registered, in order.
#[derive(Default)]
pub struct Registry {
    pub(crate) on_sent: Vec<(Phase, Arc<dyn OnSent>)>,
    pub(crate) on_received: Vec<(Phase, Arc<dyn OnReceived>)>,
    pub(crate) on_undelivered: Vec<Arc<dyn OnUndelivered>>,
    pub(crate) on_kept: Vec<Arc<dyn OnKept>>,
    pub(crate) on_session: Vec<Arc<dyn OnSession>>,
    services: HashMap<Host, Arc<dyn Service>>,
    remotes: Vec<Arc<dyn Remote>>,
    iq: HashMap<(&'static str, &'static str), Handlers>,
    features: Vec<Feature>,
    identities: Vec<Identity>,
    xeps: Vec<Xep>,
    stream_features: Vec<Arc<dyn StreamFeature>>,
    pub(crate) parts: Vec<Loader>,
    deadline: Option<Duration>,
}

/// How long a handler or a service may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The handlers of one payload, by scope.
#[derive(Default)]
struct Handlers {
    server: Option<Erased>,
    own: Option<Erased>,
    account: Option<Erased>,
}

/// Whom an IQ asks.
pub(crate) enum Target {
    /// The server; the sender's account is given.
    Server(Option<Arc<Account>>),
    /// The sender's own account.
    Own(Arc<Account>),
    /// Somebody's account; `None`: there is no such one.
    Account(Option<Arc<Account>>),
}

/// A payload's name, whoever owns the strings.
#[derive(Hash)]
struct Named<'a>(&'a str, &'a str);

impl Equivalent<(&'static str, &'static str)> for Named<'_> {
    fn equivalent(&self, key: &(&'static str, &'static str)) -> bool {
        self.0 == key.0 && self.1 == key.1
    }
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

    /// Adds a hook for messages that are archived or kept.
    pub fn on_kept(&mut self, hook: Arc<dyn OnKept>) {
        self.on_kept.push(hook);
    }

    /// Adds a hook for the life of sessions.
    pub fn on_session(&mut self, hook: Arc<dyn OnSession>) {
        self.on_session.push(hook);
    }

    /// Makes `handler` the owner of the payload `T` in a scope.
    ///
    /// # Errors
    /// If the payload has an owner there already.
    pub fn handle<T: IqPayload>(&mut self, scope: Scope, handler: Arc<dyn Handle<T>>) -> Result<(), TwoOwners> {
        let handlers = self.iq.entry((T::NS, T::NAME)).or_default();
        let place = match scope {
            Scope::Server => &mut handlers.server,
            Scope::Own => &mut handlers.own,
            Scope::Account => &mut handlers.account,
        };
        match place.replace(erase(handler)) {
            None => Ok(()),
            Some(_) => Err(TwoOwners(format!("the IQ payload {{{}}}{} for {scope:?}", T::NS, T::NAME))),
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

    /// Adds a way to other domains. The first that serves a domain gets what is for it.
    pub fn remote(&mut self, remote: Arc<dyn Remote>) {
        self.remotes.push(remote);
    }

    /// How long a handler or a service may take for one stanza, instead of ten seconds.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = Some(deadline);
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline.unwrap_or(DEADLINE)
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

    /// Lists a feature for service discovery; once, however often it is said.
    pub fn feature(&mut self, at: impl Into<At>, var: &'static str) {
        let feature = Feature { var, at: at.into() };
        if !self.features.contains(&feature) {
            self.features.push(feature);
        }
    }

    /// Says what somebody is, for service discovery.
    pub fn identity(&mut self, identity: Identity) {
        self.identities.push(identity);
    }

    /// Adds an extension to the table of what the broker can do; one that several modules share stands under the first.
    pub fn xep(&mut self, xep: Xep) {
        if self.xeps.iter().all(|other| other.number != xep.number) {
            self.xeps.push(xep);
        }
    }

    /// All extensions, by number.
    pub fn xeps(&self) -> Vec<Xep> {
        let mut xeps = self.xeps.clone();
        xeps.sort_by_key(|xep| xep.number);
        xeps
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

    /// All identities, in the order of registration.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }

    /// All hosts that services own.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = Host> {
        self.services.keys().copied()
    }

    pub(crate) fn service_of(&self, host: Host) -> Option<&Arc<dyn Service>> {
        self.services.get(&host)
    }

    pub(crate) fn remote_to(&self, domain: &str) -> Option<&Arc<dyn Remote>> {
        self.remotes.iter().find(|remote| remote.serves(domain))
    }

    /// Whether somebody answers this payload for accounts other than the sender's.
    pub(crate) fn asks_accounts(&self, payload: (&str, &str)) -> bool {
        self.iq.get(&Named(payload.0, payload.1)).is_some_and(|handlers| handlers.account.is_some())
    }

    /// Answers an IQ of type get or set.
    pub(crate) fn answer(
        &self,
        head: Head,
        payload: &Element,
        target: Target,
    ) -> BoxFuture<'static, Result<Reply, StanzaError>> {
        let handlers = self.iq.get(&Named(payload.ns(), payload.name()));
        let found = handlers.and_then(|Handlers { server, own, account: of }| match target {
            Target::Server(account) => server.as_ref().map(|handler| (handler, Asked::Of(account))),
            Target::Own(account) => own.as_ref().or(of.as_ref()).map(|handler| (handler, Asked::Of(Some(account)))),
            Target::Account(Some(account)) if of.is_some() => of.as_ref().map(|h| (h, Asked::Of(Some(account)))),
            Target::Account(None) if of.is_some() => of.as_ref().map(|handler| (handler, Asked::Nobody)),
            Target::Account(_) => own.as_ref().map(|handler| (handler, Asked::NotYours)),
        });
        match found {
            Some((handler, asked)) => handler(head, payload, asked),
            // RFC 6120 §8.4: an unknown payload is answered with service-unavailable.
            None => Box::pin(std::future::ready(Err(Condition::ServiceUnavailable.into()))),
        }
    }
}
