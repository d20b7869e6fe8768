//! What a `<pubsub/>` payload to an account asks for (XEP-0060 §5 to §8), read and checked.

use super::MAX_NAME;
use crate::pubsub::{
    request::{node, published, retracted, subscriber, verb, wanted},
    specific, unsupported,
};
use crate::{form, paging};
use tavi_xmpp_proto::{Condition, Element, Jid, StanzaError, ns};

/// One request.
#[derive(Debug, PartialEq)]
pub(super) enum Request {
    /// §7.1; the form holds what the node is expected to be.
    Publish { node: String, item: Option<String>, payload: Element, options: Option<Element> },
    /// §7.2.
    Retract { node: String, item: String, notify: bool },
    /// §6.5.
    Items { node: String, wanted: Wanted },
    /// §6.1.
    Subscribe { node: String, jid: Jid },
    /// §6.2.
    Unsubscribe { node: String, jid: Jid },
    /// §5.6.
    Subscriptions { node: Option<String> },
    /// §5.7.
    Affiliations { node: Option<String> },
    /// §8.1; the form holds what the node is to be.
    Create { node: String, form: Option<Element> },
    /// §8.4.
    Delete { node: String },
    /// §8.5.
    Purge { node: String },
    /// §8.3.
    Default,
    /// §8.2, the question.
    Configuration { node: String },
    /// §8.2, the order.
    Configure { node: String, form: Element },
    /// §8.8.1.
    Subscribers { node: String },
    /// §8.9.1.
    Owners { node: String },
    /// §8.2.5.1: a form that was given up.
    Nothing,
}

/// Which items are asked for.
#[derive(Debug, PartialEq, Default)]
pub(super) struct Wanted {
    /// Those with these ids; none for all.
    pub(super) ids: Vec<String>,
    /// At most so many (§6.5.7).
    pub(super) max: Option<usize>,
    /// A page of them (XEP-0059 §2).
    pub(super) page: Option<paging::Asked>,
}

impl Request {
    /// Reads the payload of an IQ; `set` if it is of that type.
    pub(super) fn of(pubsub: &Element, set: bool) -> Result<Request, StanzaError> {
        let verb = verb(pubsub)?;
        let request = match (pubsub.ns() == ns::PUBSUB_OWNER, set) {
            (false, false) => Request::of_get(pubsub, verb),
            (false, true) => Request::of_set(pubsub, verb),
            (true, false) => Request::of_owner_get(verb),
            (true, true) => Request::of_owner_set(verb),
        }?;
        match request.node() {
            Some(node) if node.len() > MAX_NAME => {
                let text = format!("the name of a node has at most {MAX_NAME} bytes");
                Err(StanzaError::new(Condition::BadRequest).text(text))
            }
            _ => Ok(request),
        }
    }

    fn of_get(pubsub: &Element, verb: &Element) -> Result<Request, StanzaError> {
        let optional = || verb.get_attr("node").map(str::to_owned);
        match verb.name() {
            "items" => Ok(Request::Items { node: node(verb)?, wanted: Wanted::read(pubsub, verb)? }),
            "subscriptions" => Ok(Request::Subscriptions { node: optional() }),
            "affiliations" => Ok(Request::Affiliations { node: optional() }),
            "default" | "options" => Err(unsupported("subscription-options")),
            _ => Err(Condition::BadRequest.into()),
        }
    }

    fn of_set(pubsub: &Element, verb: &Element) -> Result<Request, StanzaError> {
        match verb.name() {
            "publish" => {
                let (item, payload) = published(verb)?;
                let options = pubsub.get_child(ns::PUBSUB, "publish-options").and_then(form::of).cloned();
                Ok(Request::Publish { node: node(verb)?, item, payload, options })
            }
            "retract" => {
                let notify = matches!(verb.get_attr("notify"), Some("1" | "true"));
                Ok(Request::Retract { node: node(verb)?, item: retracted(verb)?, notify })
            }
            "subscribe" if pubsub.get_child(ns::PUBSUB, "options").is_some() => {
                Err(unsupported("subscription-options"))
            }
            "subscribe" => Ok(Request::Subscribe { node: node(verb)?, jid: subscriber(verb)? }),
            "unsubscribe" => Ok(Request::Unsubscribe { node: node(verb)?, jid: subscriber(verb)? }),
            "create" => {
                let form = pubsub.get_child(ns::PUBSUB, "configure").and_then(form::of).cloned();
                // XEP-0060 §8.1.3: there are no nodes without a name.
                let node = node(verb).map_err(|_| specific(Condition::NotAcceptable, "nodeid-required"))?;
                Ok(Request::Create { node, form })
            }
            "options" => Err(unsupported("subscription-options")),
            _ => Err(Condition::BadRequest.into()),
        }
    }

    fn of_owner_get(verb: &Element) -> Result<Request, StanzaError> {
        match verb.name() {
            "default" => Ok(Request::Default),
            "configure" => Ok(Request::Configuration { node: node(verb)? }),
            "subscriptions" => Ok(Request::Subscribers { node: node(verb)? }),
            "affiliations" => Ok(Request::Owners { node: node(verb)? }),
            _ => Err(Condition::BadRequest.into()),
        }
    }

    fn of_owner_set(verb: &Element) -> Result<Request, StanzaError> {
        match verb.name() {
            "delete" => Ok(Request::Delete { node: node(verb)? }),
            "purge" => Ok(Request::Purge { node: node(verb)? }),
            "configure" => {
                let form = form::of(verb).ok_or(Condition::BadRequest)?;
                // XEP-0060 §8.2.5.1.
                let given_up = form.get_attr("type") == Some("cancel");
                let node = node(verb)?;
                Ok(if given_up { Request::Nothing } else { Request::Configure { node, form: form.clone() } })
            }
            "subscriptions" => Err(unsupported("manage-subscriptions")),
            "affiliations" => Err(unsupported("modify-affiliations")),
            _ => Err(Condition::BadRequest.into()),
        }
    }

    /// The node that it is about, if it is about one.
    pub(super) fn node(&self) -> Option<&str> {
        match self {
            Request::Default | Request::Nothing => None,
            Request::Subscriptions { node } | Request::Affiliations { node } => node.as_deref(),
            Request::Publish { node, .. }
            | Request::Retract { node, .. }
            | Request::Items { node, .. }
            | Request::Subscribe { node, .. }
            | Request::Unsubscribe { node, .. }
            | Request::Create { node, .. }
            | Request::Delete { node }
            | Request::Purge { node }
            | Request::Configuration { node }
            | Request::Configure { node, .. }
            | Request::Subscribers { node }
            | Request::Owners { node } => Some(node),
        }
    }
}

impl Wanted {
    /// XEP-0060 §6.5.2, §6.5.7, §6.5.4.
    fn read(pubsub: &Element, items: &Element) -> Result<Wanted, StanzaError> {
        let max = items.get_attr("max_items").map(|max| max.parse().map_err(|_| bad("max_items is a number")));
        let page = pubsub.get_child(ns::RSM, "set").or_else(|| items.get_child(ns::RSM, "set"));
        Ok(Wanted { ids: wanted(items), max: max.transpose()?, page: page.map(paging::Asked::read).transpose()? })
    }
}

fn bad(text: &'static str) -> StanzaError {
    StanzaError::new(Condition::BadRequest).text(text)
}
