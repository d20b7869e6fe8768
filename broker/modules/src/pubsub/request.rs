//! What a `<pubsub/>` payload asks for (XEP-0060 §5 to §8), read and checked.

use super::{config, specific, unsupported};
use tavi_xmpp_proto::{Condition, Element, Jid, StanzaError, ns};

/// The longest item id in bytes.
const MAX_ITEM_ID: usize = 1023;

/// One request. Node names are not checked yet: the topics do that.
#[derive(Debug, PartialEq)]
pub(super) enum Request {
    /// §7.1.
    Publish { node: String, item: Option<String>, payload: Element },
    /// §7.2.
    Retract { node: String, item: String },
    /// §6.5; `wanted` is empty for all.
    Items { node: String, wanted: Vec<String> },
    /// §6.1.
    Subscribe { node: String, jid: Jid },
    /// §6.2.
    Unsubscribe { node: String, jid: Jid },
    /// §5.6.
    Subscriptions { node: Option<String> },
    /// §5.7.
    Affiliations { node: Option<String> },
    /// §8.1.
    Create { node: String },
    /// §8.4.
    Delete { node: String },
    /// §8.5.
    Purge { node: String },
    /// §8.3.
    Default,
    /// §8.2, the question.
    Configuration { node: String },
    /// §8.2, the order; its values are those that the node has anyway.
    Configure { node: String },
}

impl Request {
    /// Reads the payload of an IQ of type get.
    pub(super) fn of_get(pubsub: &Element) -> Result<Request, StanzaError> {
        let verb = verb(pubsub)?;
        let owner = pubsub.ns() == ns::PUBSUB_OWNER;
        Ok(match (owner, verb.name()) {
            (false, "items") => Request::Items { node: node(verb)?, wanted: wanted(verb) },
            (false, "subscriptions") => Request::Subscriptions { node: verb.get_attr("node").map(Into::into) },
            (false, "affiliations") => Request::Affiliations { node: verb.get_attr("node").map(Into::into) },
            (false, "default") => return Err(unsupported("subscription-options")),
            (true, "default") => Request::Default,
            (true, "configure") => Request::Configuration { node: node(verb)? },
            (true, "subscriptions") => return Err(unsupported("manage-subscriptions")),
            (true, "affiliations") => return Err(unsupported("modify-affiliations")),
            (_, "options") => return Err(unsupported("subscription-options")),
            _ => return Err(Condition::BadRequest.into()),
        })
    }

    /// Reads the payload of an IQ of type set.
    pub(super) fn of_set(pubsub: &Element) -> Result<Request, StanzaError> {
        let verb = verb(pubsub)?;
        let owner = pubsub.ns() == ns::PUBSUB_OWNER;
        match (owner, verb.name()) {
            (false, "publish") => publish(pubsub, verb),
            (false, "retract") => retract(verb),
            (false, "subscribe") if pubsub.get_child(ns::PUBSUB, "options").is_some() => {
                Err(unsupported("subscription-options"))
            }
            (false, "subscribe") => Ok(Request::Subscribe { node: node(verb)?, jid: subscriber(verb)? }),
            (false, "unsubscribe") => Ok(Request::Unsubscribe { node: node(verb)?, jid: subscriber(verb)? }),
            (false, "create") => create(pubsub, verb),
            (true, "delete") => Ok(Request::Delete { node: node(verb)? }),
            (true, "purge") => Ok(Request::Purge { node: node(verb)? }),
            (true, "configure") => {
                config::check_form(verb)?;
                Ok(Request::Configure { node: node(verb)? })
            }
            (true, "subscriptions") => Err(unsupported("manage-subscriptions")),
            (true, "affiliations") => Err(unsupported("modify-affiliations")),
            (_, "options") => Err(unsupported("subscription-options")),
            _ => Err(Condition::BadRequest.into()),
        }
    }
}

/// The first child says what is wanted.
pub(crate) fn verb(pubsub: &Element) -> Result<&Element, StanzaError> {
    let first = pubsub.elements().find(|child| child.ns() == pubsub.ns());
    first.ok_or_else(|| StanzaError::new(Condition::BadRequest).text("the pubsub element says nothing"))
}

/// XEP-0060 §7.1.3.3 and others: without a node there is nothing to act on.
pub(crate) fn node(verb: &Element) -> Result<String, StanzaError> {
    let node = verb.get_attr("node").filter(|node| !node.is_empty());
    node.map(Into::into).ok_or_else(|| specific(Condition::BadRequest, "nodeid-required"))
}

/// XEP-0060 §6.1.3.1, §6.2.3.
pub(crate) fn subscriber(verb: &Element) -> Result<Jid, StanzaError> {
    let jid = verb.get_attr("jid").ok_or_else(|| specific(Condition::BadRequest, "jid-required"))?;
    jid.parse().map_err(|_| specific(Condition::BadRequest, "invalid-jid"))
}

/// The ids of the items that are asked for; none for all.
pub(crate) fn wanted(items: &Element) -> Vec<String> {
    items
        .elements()
        .filter(|item| item.is(ns::PUBSUB, "item"))
        .filter_map(|item| item.get_attr("id"))
        .map(Into::into)
        .collect()
}

/// XEP-0060 §7.1.
fn publish(pubsub: &Element, verb: &Element) -> Result<Request, StanzaError> {
    if let Some(options) = pubsub.get_child(ns::PUBSUB, "publish-options") {
        // XEP-0060 §7.1.5: options are preconditions.
        config::check_form(options).map_err(|_| specific(Condition::Conflict, "precondition-not-met"))?;
    }
    let (item, payload) = published(verb)?;
    Ok(Request::Publish { node: node(verb)?, item, payload })
}

/// The one item of a publication: its id, if it has one, and its payload (XEP-0060 §7.1.1).
pub(crate) fn published(publish: &Element) -> Result<(Option<String>, Element), StanzaError> {
    let mut items = publish.elements().filter(|item| item.is(ns::PUBSUB, "item"));
    let item = items.next().ok_or_else(|| specific(Condition::BadRequest, "item-required"))?;
    if items.next().is_some() {
        return Err(specific(Condition::NotAllowed, "max-items-exceeded"));
    }
    let mut payloads = item.elements();
    let payload = payloads.next().ok_or_else(|| specific(Condition::BadRequest, "payload-required"))?;
    if payloads.next().is_some() {
        return Err(specific(Condition::BadRequest, "invalid-payload"));
    }
    let id = item.get_attr("id").filter(|id| !id.is_empty());
    if id.is_some_and(|id| id.len() > MAX_ITEM_ID) {
        return Err(StanzaError::new(Condition::BadRequest).text("an item id has at most 1,023 bytes"));
    }
    Ok((id.map(Into::into), payload.clone()))
}

/// XEP-0060 §7.2.
fn retract(verb: &Element) -> Result<Request, StanzaError> {
    Ok(Request::Retract { node: node(verb)?, item: retracted(verb)? })
}

/// The id of the item that is to be retracted.
pub(crate) fn retracted(retract: &Element) -> Result<String, StanzaError> {
    let item = retract.elements().find(|item| item.is(ns::PUBSUB, "item")).and_then(|item| item.get_attr("id"));
    item.map(Into::into).ok_or_else(|| specific(Condition::BadRequest, "item-required"))
}

/// XEP-0060 §8.1.
fn create(pubsub: &Element, verb: &Element) -> Result<Request, StanzaError> {
    if let Some(configure) = pubsub.get_child(ns::PUBSUB, "configure") {
        config::check_form(configure)?;
    }
    // XEP-0060 §8.1.3: there are no nodes without a name.
    let node = node(verb).map_err(|_| specific(Condition::NotAcceptable, "nodeid-required"))?;
    Ok(Request::Create { node })
}
