//! The verbs on nodes (XEP-0060 §5 to §8) as verbs on topics.

use super::{
    Answer, Asker, Payload, Pubsub, refused, specific,
    subscribers::{Refused, notice},
    unavailable, value,
};
use tavi_core::{
    Action, Change, Draft, Permit, Principal, Qos, Refusal, Ticket,
    permit::{Actions, Grant, Rights},
};
use tavi_store::{Expect, Op, Owner, StoreError, Table};
use tavi_wire::topic::{check_topic, is_filter};
use tavi_xmpp_proto::{Condition, Element, Jid, StanzaError, error::ErrorType, ns};

/// The row that says who created a node, and by which grant it is theirs.
const CREATED: &str = "created";

impl Pubsub {
    /// XEP-0060 §7.1.
    pub(super) fn publish(
        &self,
        asker: &Asker,
        node: &str,
        item: Option<String>,
        payload: &Element,
    ) -> Result<Answer, StanzaError> {
        let (payload, content_type) = value::read(payload)?;
        // XEP-0060 §7.1.2: the publisher is told which id the item got.
        let item = item.unwrap_or_else(|| self.parts.ids.next(self.parts.clock.now_ms()).to_string());
        let draft = Draft { payload, content_type, item: Some(item.clone().into()), ..draft(node, Change::Value) };
        let ticket = self.parts.topics.publish(&asker.principal, draft).map_err(refused)?;
        let item = Element::new(ns::PUBSUB, "item").attr("id", item);
        let publish = Element::new(ns::PUBSUB, "publish").attr("node", node.to_owned()).child(item);
        Ok(Answer {
            ticket,
            payload: Payload::Element(Element::new(ns::PUBSUB, "pubsub").child(publish)),
            after: Vec::new(),
        })
    }

    /// XEP-0060 §7.2.
    pub(super) fn retract(&self, asker: &Asker, node: &str, item: &str) -> Result<Answer, StanzaError> {
        self.may_clear(asker, node)?;
        let value = self.parts.topics.kept_value(node).map_err(unavailable)?;
        if value.is_none_or(|value| value.item_id() != item) {
            return Err(Condition::ItemNotFound.into());
        }
        let draft = Draft { item: Some(item.into()), ..draft(node, Change::Clear) };
        Ok(self.parts.topics.publish(&asker.principal, draft).map_err(refused)?.into())
    }

    /// XEP-0060 §8.5.
    pub(super) async fn purge(&self, asker: &Asker, node: &str) -> Result<Answer, StanzaError> {
        self.may_clear(asker, node)?;
        self.expect_node(node).await?;
        let draft = Draft { item: Some(value::ALL.into()), ..draft(node, Change::Clear) };
        Ok(self.parts.topics.publish(&asker.principal, draft).map_err(refused)?.into())
    }

    /// A node is there if it has a value, retained or not, a subscriber or somebody who created it. To be asked after the permit: missing
    /// and forbidden answer alike.
    pub(super) async fn expect_node(&self, node: &str) -> Result<(), StanzaError> {
        if self.parts.topics.newest_value(node).map_err(unavailable)?.is_some() {
            return Ok(());
        }
        let rows = self.parts.store.list(&Owner::topic(node), Table::Node, None, 1).await.map_err(unavailable)?;
        if rows.is_empty() { Err(Condition::ItemNotFound.into()) } else { Ok(()) }
    }

    /// Asked before anything is looked up: missing and forbidden answer alike.
    fn may_clear(&self, asker: &Asker, node: &str) -> Result<(), StanzaError> {
        legal(node)?;
        let permit = &self.parts.permit;
        if permit.may(&asker.principal, Action::Delete, node) || permit.may(&asker.principal, Action::Publish, node) {
            return Ok(());
        }
        permit.log_refusal(&asker.principal, Action::Delete, node);
        Err(Condition::Forbidden.into())
    }

    fn clear(&self, who: &Principal, node: &str) -> Result<Ticket, StanzaError> {
        self.parts.topics.publish(who, draft(node, Change::Clear)).map_err(refused)
    }

    /// XEP-0060 §6.5.
    pub(super) async fn items(&self, asker: &Asker, node: &str, wanted: &[String]) -> Result<Answer, StanzaError> {
        let value = self.parts.topics.retained_value(&asker.principal, node).map_err(refused)?;
        if value.is_none() {
            // XEP-0060 §6.5.9.11.
            self.expect_node(node).await?;
        }
        let found = value.as_deref().filter(|p| wanted.is_empty() || wanted.contains(&p.item_id()));
        let items = value::items(node, found.as_slice());
        Ok(Answer { payload: Payload::Written(items), ..Answer::default() })
    }

    /// XEP-0060 §6.1. Where it is permitted, subscribing makes the node.
    pub(super) async fn subscribe(&self, asker: &Asker, node: &str, jid: Jid) -> Result<Answer, StanzaError> {
        if jid.bare() != asker.jid.bare() {
            return Err(specific(Condition::BadRequest, "invalid-jid"));
        }
        let (mut retained, commit) = self.subscribers.add(&jid, &asker.principal, node).map_err(|why| match why {
            Refused::Topics(refusal) => refused(refusal),
            // XEP-0060 §6.1.3.9: of type wait.
            Refused::TooMany => {
                specific(Condition::PolicyViolation, "too-many-subscriptions").with_type(ErrorType::Wait)
            }
            Refused::LongJid => StanzaError::new(Condition::NotAcceptable).text("the address is too long to be kept"),
        })?;
        let mut ticket = Ticket::done();
        ticket.wait_for(commit);
        let pubsub = Element::new(ns::PUBSUB, "pubsub").child(subscription(&jid, node));
        // XEP-0060 §6.1.7: the last item follows the answer; what a filter finds comes as the sessions have room.
        let mut after = Vec::new();
        if is_filter(node) {
            self.subscribers.feed(&jid, &retained);
        } else if let Some(last) = retained.next().await.map_err(unavailable)? {
            after.push(self.subscribers.last_item(&jid, &last));
        }
        Ok(Answer { ticket, payload: Payload::Element(pubsub), after })
    }

    /// XEP-0060 §6.2.
    pub(super) fn unsubscribe(&self, asker: &Asker, node: &str, jid: Jid) -> Result<Answer, StanzaError> {
        if jid.bare() != asker.jid.bare() {
            return Err(Condition::Forbidden.into());
        }
        // XEP-0060 §6.2.3.2: of type cancel.
        let not_subscribed = || specific(Condition::UnexpectedRequest, "not-subscribed").with_type(ErrorType::Cancel);
        let mut ticket = Ticket::done();
        ticket.wait_for(self.subscribers.remove(&jid, node).ok_or_else(not_subscribed)?);
        Ok(ticket.into())
    }

    /// XEP-0060 §5.6.
    pub(super) fn subscriptions(&self, asker: &Asker, node: Option<&str>) -> Element {
        let all = self.subscribers.of_account(&asker.jid.to_bare());
        let wanted = all.iter().filter(|(_, of)| node.is_none_or(|node| node == &**of));
        let list = Element::new(ns::PUBSUB, "subscriptions").attr_opt("node", node.map(str::to_owned));
        Element::new(ns::PUBSUB, "pubsub").child(list.children(wanted.map(|(jid, node)| subscription(jid, node))))
    }

    /// XEP-0060 §5.7: affiliations are grants.
    pub(super) fn affiliations(&self, asker: &Asker, node: Option<&str>) -> Element {
        let grants = self.parts.permit.list(Some(asker.principal.subject()));
        let wanted = grants.iter().filter(|grant| node.is_none_or(|node| node == &*grant.filter));
        let list = Element::new(ns::PUBSUB, "affiliations").attr_opt("node", node.map(str::to_owned));
        Element::new(ns::PUBSUB, "pubsub").child(list.children(wanted.map(|grant| {
            let affiliation = Element::new(ns::PUBSUB, "affiliation").attr("node", grant.filter.to_string());
            affiliation.attr("affiliation", affiliation_name(grant.rights))
        })))
    }

    /// XEP-0060 §8.1: the creator owns the node, by a grant.
    pub(super) async fn create(&self, asker: &Asker, node: &str) -> Result<Answer, StanzaError> {
        legal(node)?;
        self.ask(&asker.principal, Action::Create, node)?;
        let conflict = || StanzaError::new(Condition::Conflict);
        if self.parts.topics.kept_value(node).map_err(unavailable)?.is_some() {
            return Err(conflict());
        }
        let id = self.parts.ids.next(self.parts.clock.now_ms());
        let grant = Grant::new(id, asker.principal.subject(), Rights::allow(Actions::ALL), node)
            .map_err(|error| StanzaError::new(Condition::BadRequest).text(error.to_string()))?;
        // XEP-0060 §8.1.2 leaves the limit's error open; RFC 6120 §8.3.3.18 is made for it.
        self.parts
            .permit
            .room_for(&grant.subject)
            .map_err(|error| StanzaError::new(Condition::ResourceConstraint).text(error.to_string()))?;
        let value = format!("{id}").into();
        let op = Op::Put { table: Table::Node, item: CREATED.into(), value, expect: Expect::Absent };
        match self.parts.store.commit(&Owner::topic(node), vec![op]).await {
            Err(StoreError::Conflict { .. }) => return Err(conflict()),
            done => done.map_err(unavailable)?,
        }
        let mut ticket = Ticket::done();
        ticket.wait_for(self.parts.permit.add(grant));
        Ok(ticket.into())
    }

    /// XEP-0060 §8.4: value, subscriptions and the creator's grant go.
    pub(super) async fn delete(&self, asker: &Asker, node: &str) -> Result<Answer, StanzaError> {
        legal(node)?;
        self.ask(&asker.principal, Action::Delete, node)?;
        let owner = Owner::topic(node);
        let created = self.parts.store.load(&owner, Table::Node, CREATED).await.map_err(unavailable)?;
        let readers = self.subscribers.of_node(node);
        let value = self.parts.topics.kept_value(node).map_err(unavailable)?;
        if created.is_none() && readers.is_empty() && value.is_none() {
            return Err(Condition::ItemNotFound.into());
        }
        let mut ticket = Ticket::done();
        for jid in &readers {
            self.subscribers.remove(jid, node).into_iter().for_each(|commit| ticket.wait_for(commit));
        }
        ticket.join(self.clear(&asker.principal, node)?);
        if let Some(record) = created {
            let op = Op::Delete { table: Table::Node, item: CREATED.into(), expect: Expect::Any };
            ticket.wait_for(self.parts.store.commit(&owner, vec![op]));
            ticket.wait_for(withdraw(&self.parts.permit, &record.value));
        }
        let pubsub = self.parts.hosts.jid(crate::PUBSUB);
        let after = readers.iter().map(|jid| notice(pubsub, jid, deleted(node))).collect();
        Ok(Answer { ticket, after, ..Answer::default() })
    }

    fn ask(&self, who: &Principal, action: Action, node: &str) -> Result<(), StanzaError> {
        if self.parts.permit.may(who, action, node) {
            return Ok(());
        }
        self.parts.permit.log_refusal(who, action, node);
        Err(Condition::Forbidden.into())
    }
}

fn draft(node: &str, change: Change) -> Draft {
    // Semantics: what comes by XMPP is always retained, with QoS 1.
    Draft { topic: node.into(), change, qos: Qos::AtLeastOnce, retain: true, ..Draft::default() }
}

/// A filter is no node that holds a value.
fn legal(node: &str) -> Result<(), StanzaError> {
    if is_filter(node) {
        return Err(StanzaError::new(Condition::BadRequest).text("a filter can only be subscribed to"));
    }
    check_topic(node).map_err(|why| refused(Refusal::IllegalTopic(why)))
}

/// XEP-0060 §6.1.2.
fn subscription(jid: &Jid, node: &str) -> Element {
    Element::new(ns::PUBSUB, "subscription")
        .attr("node", node.to_owned())
        .attr("jid", jid.to_string())
        .attr("subscription", "subscribed")
}

/// XEP-0060 §4.1.
fn affiliation_name(rights: Rights) -> &'static str {
    let actions = rights.actions;
    if rights.deny {
        return "outcast";
    }
    let reads = actions.has(Action::Subscribe) || actions.has(Action::Retrieve);
    match (actions == Actions::ALL, actions.has(Action::Publish), reads) {
        (true, ..) => "owner",
        (_, true, true) => "publisher",
        (_, true, false) => "publish-only",
        (_, false, true) => "member",
        _ => "none",
    }
}

/// Takes the creator's grant back.
fn withdraw(permit: &Permit, record: &[u8]) -> tavi_store::Commit {
    let id = std::str::from_utf8(record).ok().and_then(|id| id.parse::<u64>().ok());
    id.map_or_else(|| tavi_store::Commit::ready(Ok(())), |id| permit.remove_id(id).1)
}

/// XEP-0060 §8.4.2.
fn deleted(node: &str) -> bytes::Bytes {
    let delete = Element::new(ns::PUBSUB_EVENT, "delete").attr("node", node.to_owned());
    Element::new(ns::PUBSUB_EVENT, "event").child(delete).to_xml(ns::CLIENT).into()
}
