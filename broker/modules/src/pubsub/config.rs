//! The configuration of nodes (XEP-0060 §8.2): the same for all, so it can be read but not changed.

use super::{Answer, Asker, Pubsub, refused};
use crate::form;
use tavi_core::Action;
use tavi_wire::topic::check_topic;
use tavi_xmpp_proto::{Condition, Element, StanzaError, ns};

/// XEP-0060 §16.4.4; access is the grants' matter (semantics.md).
const FIELDS: [(&str, &str); 9] = [
    ("pubsub#access_model", "whitelist"),
    ("pubsub#publish_model", "publishers"),
    ("pubsub#persist_items", "1"),
    ("pubsub#max_items", "1"),
    ("pubsub#send_last_published_item", "on_sub_and_presence"),
    ("pubsub#deliver_notifications", "1"),
    ("pubsub#deliver_payloads", "1"),
    ("pubsub#notify_retract", "1"),
    ("pubsub#notify_delete", "1"),
];

impl Pubsub {
    /// XEP-0060 §8.2.1: for who may administer the node.
    pub(super) async fn configuration(&self, asker: &Asker, node: &str) -> Result<Answer, StanzaError> {
        check_topic(node).map_err(tavi_core::Refusal::IllegalTopic).map_err(refused)?;
        if !self.parts.permit.may(&asker.principal, Action::Create, node) {
            return Err(Condition::Forbidden.into());
        }
        // XEP-0060 §8.2.3.5.
        self.expect_node(node).await?;
        let configure = Element::new(ns::PUBSUB_OWNER, "configure").attr("node", node.to_owned()).child(node_form());
        Ok(Element::new(ns::PUBSUB_OWNER, "pubsub").child(configure).into())
    }
}

/// XEP-0060 §8.3.
pub(super) fn default_form() -> Element {
    Element::new(ns::PUBSUB_OWNER, "pubsub").child(Element::new(ns::PUBSUB_OWNER, "default").child(node_form()))
}

/// Whether the form in `parent`, if there is one, asks for nothing but what nodes are.
pub(super) fn check_form(parent: &Element) -> Result<(), StanzaError> {
    let Some(form) = form::of(parent) else { return Ok(()) };
    for field in form::fields(form) {
        let (var, value) = (form::var(field), form::value(field));
        if var != form::FORM_TYPE && !FIELDS.iter().any(|(name, fixed)| *name == var && same(fixed, &value)) {
            let text = format!("{var} cannot be set to {value:?} here");
            return Err(StanzaError::new(Condition::NotAcceptable).text(text));
        }
    }
    Ok(())
}

/// XEP-0004 §3.3: `true` and `1` are one. `max` is as many as there can be.
fn same(fixed: &str, value: &str) -> bool {
    fixed == value || (fixed == "1" && matches!(value, "true" | "max"))
}

fn node_form() -> Element {
    let fields = FIELDS.map(|(var, value)| form::field(var, None, [value.to_owned()]));
    form::form("form", "http://jabber.org/protocol/pubsub#node_config", fields)
}
