//! Publish-Subscribe (XEP-0060) over topics: a node of the pubsub host is a topic, its last item the retained value.
//!
//! A node whose name holds `+` or `#` is a filter: it can be subscribed to, not published to. What each verb means is
//! the topics' own law; this module reads requests, keeps subscriptions and writes answers.

mod config;
pub(crate) mod listing;
mod nodes;
pub(crate) mod request;
pub(crate) mod subscribers;
pub(crate) mod value;

use crate::PUBSUB;
use bytes::Bytes;
use request::Request;
use std::sync::Arc;
use subscribers::Subscribers;
use tavi_core::{
    Effect, Effects, Envelope, Parts, Principal, Refusal, Registry, Ticket,
    hooks::{BoxFuture, Service, TwoOwners, Xep},
};
use tavi_store::StoreError;
use tavi_xmpp_proto::{Condition, Element, IqType, Jid, Kind, Stanza, StanzaError, StanzaType, ns};

/// The line of the table of extensions.
const XEP: Xep = Xep { number: 60, name: "Publish-Subscribe", version: "1.26.0", module: "pubsub" };
/// Lists of nodes are paged.
const RSM: Xep = Xep { number: 59, name: "Result Set Management", version: "1.0", module: "pubsub" };
/// JSON values in items.
const JSON: Xep = Xep { number: 335, name: "JSON Containers", version: "0.1.1", module: "pubsub" };

/// XEP-0060 §10: what of it is here, and what else the host answers.
const FEATURES: [&str; 19] = [
    ns::DISCO_INFO,
    ns::DISCO_ITEMS,
    ns::PING,
    ns::RSM,
    ns::PUBSUB,
    "http://jabber.org/protocol/pubsub#access-whitelist",
    "http://jabber.org/protocol/pubsub#auto-create",
    "http://jabber.org/protocol/pubsub#create-nodes",
    "http://jabber.org/protocol/pubsub#delete-nodes",
    "http://jabber.org/protocol/pubsub#item-ids",
    "http://jabber.org/protocol/pubsub#last-published",
    "http://jabber.org/protocol/pubsub#persistent-items",
    "http://jabber.org/protocol/pubsub#publish",
    "http://jabber.org/protocol/pubsub#purge-nodes",
    "http://jabber.org/protocol/pubsub#retract-items",
    "http://jabber.org/protocol/pubsub#retrieve-affiliations",
    "http://jabber.org/protocol/pubsub#retrieve-items",
    "http://jabber.org/protocol/pubsub#retrieve-subscriptions",
    "http://jabber.org/protocol/pubsub#subscribe",
];

/// Registers it.
///
/// # Errors
/// If the host has an owner already.
pub fn register(registry: &mut Registry, parts: &Parts) -> Result<(), TwoOwners> {
    [XEP, RSM, JSON].into_iter().for_each(|xep| registry.xep(xep));
    FEATURES.iter().for_each(|var| registry.feature(PUBSUB, var));
    let subscribers = Arc::new(Subscribers::new(parts));
    registry.on_session(subscribers.clone());
    registry.service(PUBSUB, Arc::new(Pubsub { parts: parts.clone(), subscribers }))
}

/// The service that owns the pubsub host.
struct Pubsub {
    parts: Parts,
    subscribers: Arc<Subscribers>,
}

/// Who asks.
struct Asker {
    jid: Jid,
    principal: Principal,
}

/// What a request leads to: the result goes out when the ticket is complete, and then what follows.
#[derive(Default)]
struct Answer {
    ticket: Ticket,
    payload: Payload,
    after: Vec<Envelope>,
}

#[derive(Default)]
enum Payload {
    #[default]
    Empty,
    Element(Element),
    /// Already written: it holds a value as it was published.
    Written(Bytes),
}

impl From<Element> for Answer {
    fn from(element: Element) -> Answer {
        Answer { payload: Payload::Element(element), ..Answer::default() }
    }
}

impl From<Ticket> for Answer {
    fn from(ticket: Ticket) -> Answer {
        Answer { ticket, ..Answer::default() }
    }
}

impl Service for Pubsub {
    /// What is published in one topic has its order there, whoever it is from; here only what one client asks has one.
    fn key(&self, env: &Envelope) -> Box<str> {
        env.from().map(Jid::as_str).unwrap_or_default().into()
    }

    fn serve(&self, env: Envelope) -> BoxFuture<'_, Effects> {
        Box::pin(async move {
            let mut fx = Effects::default();
            match env.head().type_ {
                StanzaType::Iq(IqType::Get | IqType::Set) => match self.answer(&env).await {
                    Ok(answer) => send(&env, answer, &mut fx),
                    Err(error) => refuse(&env, &error, &mut fx),
                },
                // Nobody talks to topics. Presence means nothing here (semantics: the account's own events count).
                type_ if type_.kind() == Kind::Message => refuse(&env, &Condition::ServiceUnavailable.into(), &mut fx),
                _ => {}
            }
            fx
        })
    }

    fn start(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async {
            self.subscribers.restore().await?;
            tokio::spawn(subscribers::forget_removed(self.subscribers.clone(), self.parts.revoked.subscribe()));
            Ok(())
        })
    }
}

fn send(env: &Envelope, answer: Answer, fx: &mut Effects) {
    fx.push(Effect::Await(answer.ticket));
    let result = |payload: Option<Element>| -> Envelope { Stanza::iq_result(env.head(), payload).into() };
    fx.push(Effect::Route(match answer.payload {
        Payload::Empty => result(None),
        Payload::Element(element) => result(Some(element)),
        Payload::Written(bytes) => {
            let mut env = result(None);
            env.add_fragment(bytes);
            env
        }
    }));
    answer.after.into_iter().for_each(|env| fx.push(Effect::Route(env)));
}

fn refuse(env: &Envelope, error: &StanzaError, fx: &mut Effects) {
    if let Some(error) = env.refuse(error) {
        fx.push(Effect::Route(error));
    }
}

impl Pubsub {
    async fn answer(&self, env: &Envelope) -> Result<Answer, StanzaError> {
        let (asker, payload) = self.read(env)?;
        let set = env.head().type_ == StanzaType::Iq(IqType::Set);
        match (payload.ns(), payload.name(), set) {
            (ns::PING, "ping", false) => Ok(Answer::default()),
            (ns::DISCO_INFO, "query", false) => self.info(&asker, payload.get_attr("node")).await,
            (ns::DISCO_ITEMS, "query", false) => self.items_of(&asker, &payload).await,
            (ns::PUBSUB | ns::PUBSUB_OWNER, "pubsub", _) => {
                let request = if set { Request::of_set(&payload)? } else { Request::of_get(&payload)? };
                self.perform(&asker, request).await
            }
            _ => Err(Condition::ServiceUnavailable.into()),
        }
    }

    fn read(&self, env: &Envelope) -> Result<(Asker, Element), StanzaError> {
        if env.to().is_none_or(|to| to.local().is_some()) {
            return Err(Condition::ItemNotFound.into());
        }
        // RFC 6120 §8.2.3: a request has exactly one payload.
        if env.stanza.children().len() != 1 {
            return Err(Condition::BadRequest.into());
        }
        let jid = env.from().cloned().ok_or(Condition::BadRequest)?;
        let principal = self.parts.hosts.principal(&jid.to_bare()).ok_or(Condition::Forbidden)?;
        Ok((Asker { jid, principal }, env.stanza.parse_child(0)?))
    }

    async fn perform(&self, asker: &Asker, request: Request) -> Result<Answer, StanzaError> {
        match request {
            Request::Publish { node, item, payload } => self.publish(asker, &node, item, &payload),
            Request::Retract { node, item } => self.retract(asker, &node, &item),
            Request::Items { node, wanted } => self.items(asker, &node, &wanted).await,
            Request::Subscribe { node, jid } => self.subscribe(asker, &node, jid).await,
            Request::Unsubscribe { node, jid } => self.unsubscribe(asker, &node, jid),
            Request::Subscriptions { node } => Ok(self.subscriptions(asker, node.as_deref()).into()),
            Request::Affiliations { node } => Ok(self.affiliations(asker, node.as_deref()).into()),
            Request::Create { node } => self.create(asker, &node).await,
            Request::Delete { node } => self.delete(asker, &node).await,
            Request::Purge { node } => self.purge(asker, &node).await,
            Request::Default => Ok(config::default_form().into()),
            Request::Configuration { node } => self.configuration(asker, &node).await,
            Request::Configure { node } => self.configuration(asker, &node).await.map(|_| Answer::default()),
        }
    }
}

/// What semantics.md says to a refusal of the core.
fn refused(refusal: Refusal) -> StanzaError {
    match refusal {
        Refusal::Forbidden => Condition::Forbidden.into(),
        Refusal::IllegalTopic(why) => StanzaError::new(Condition::BadRequest).text(why.to_string()),
        // XEP-0060 §7.1.3.3: more than one may keep.
        Refusal::OverQuota(why) => StanzaError::new(Condition::ResourceConstraint).text(why.to_string()),
        Refusal::Unavailable(error) => unavailable(error),
    }
}

pub(crate) fn unavailable(error: StoreError) -> StanzaError {
    StanzaError::new(Condition::InternalServerError).text(error.to_string())
}

/// An error with a condition of XEP-0060 §16.
pub(crate) fn specific(condition: Condition, name: &'static str) -> StanzaError {
    StanzaError::new(condition).specific(Element::new(ns::PUBSUB_ERRORS, name))
}

/// XEP-0060 §16: a feature that is not here.
pub(crate) fn unsupported(feature: &'static str) -> StanzaError {
    let element = Element::new(ns::PUBSUB_ERRORS, "unsupported").attr("feature", feature);
    StanzaError::new(Condition::FeatureNotImplemented).specific(element)
}

#[cfg(test)]
mod tests;
