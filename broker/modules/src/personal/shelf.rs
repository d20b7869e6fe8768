//! What an account keeps in its nodes: configurations, subscribers, and which items there are. The items' payloads stay
//! in the store.
//!
//! Rows lie in the account's partition under [`Table::Item`]: a node under its name, its items under the name, U+0000 and
//! their ids, so that one list reads all, each node before its items.

use super::{MAX_BYTES, MAX_ITEM_BYTES, MAX_NODES, MAX_SUBSCRIBERS, config::Config};
use crate::{form, pubsub::specific};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::BTreeMap;
use tavi_core::hooks::BoxFuture;
use tavi_store::{Expect, Op, Owner, Record, SharedStore, StoreError, Table};
use tavi_xmpp_proto::{BareJid, Condition, Element, Jid, StanzaError, error::ErrorType, ns};

/// The nodes of an account.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Shelf {
    nodes: BTreeMap<Box<str>, Node>,
    /// What all items take, about.
    bytes: usize,
}

/// One node.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Node {
    pub(super) config: Config,
    /// Who subscribed with an IQ of its own; contacts need not (XEP-0163 §4.1).
    pub(super) subscribers: Vec<Jid>,
    /// What is published, the oldest first.
    pub(super) items: Vec<Item>,
}

/// One item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) id: Box<str>,
    /// Its place among all that the account published; holds its time.
    pub(super) place: u64,
    /// Its payload in bytes.
    len: usize,
}

/// Rows that are read at once.
const PAGE: usize = 500;

impl Shelf {
    /// Reads it from the store.
    pub(super) fn load<'a>(store: &'a SharedStore, owner: &'a Owner) -> BoxFuture<'a, Result<Shelf, StoreError>> {
        Box::pin(async move {
            let (mut shelf, mut after) = (Shelf::default(), None::<Box<str>>);
            loop {
                let rows = store.list(owner, Table::Item, after.as_deref(), PAGE).await?;
                let Some((last, _)) = rows.last() else { break };
                after = Some(last.clone());
                rows.iter().for_each(|(key, record)| shelf.take_row(key, record));
            }
            shelf.nodes.values_mut().for_each(|node| node.items.sort_by_key(|item| item.place));
            Ok(shelf)
        })
    }

    /// Takes one stored row; damaged ones are left out, and an item without its node is nobody's.
    fn take_row(&mut self, key: &str, record: &Record) {
        match key.split_once('\0') {
            None => {
                if let Some(node) = Node::read(&record.value) {
                    self.nodes.insert(key.into(), node);
                }
            }
            Some((node, id)) => {
                let (Some(node), Some((place, payload))) = (self.nodes.get_mut(node), read_item(&record.value)) else {
                    return;
                };
                self.bytes += weight(id, payload.len());
                node.items.push(Item { id: id.into(), place, len: payload.len() });
            }
        }
    }

    /// The nodes in the order of their names.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(name, node)| (&**name, node))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The node of that name.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn existing(&self, name: &str) -> Result<&Node, StanzaError> {
        self.get(name).ok_or_else(|| Condition::ItemNotFound.into())
    }

    fn expect_mut(&mut self, name: &str) -> Result<&mut Node, StanzaError> {
        self.nodes.get_mut(name).ok_or_else(|| Condition::ItemNotFound.into())
    }

    /// Makes a node.
    ///
    /// # Errors
    /// There is one of that name, or there are too many.
    pub(super) fn create(&mut self, name: &str, config: Config) -> Result<Op, StanzaError> {
        if self.nodes.contains_key(name) {
            return Err(Condition::Conflict.into());
        }
        if self.nodes.len() >= MAX_NODES {
            let error = specific(Condition::PolicyViolation, "max-nodes-exceeded");
            return Err(error.text(format!("an account has at most {MAX_NODES} nodes")));
        }
        let node = Node { config, ..Node::default() };
        let op = node.save(name);
        self.nodes.insert(name.into(), node);
        Ok(op)
    }

    /// Puts an item on a node, in place of one with the same id and of those that are too many (XEP-0060 §7.1.2).
    ///
    /// # Errors
    /// There is no such node, or the item is too large.
    pub(super) fn publish(&mut self, name: &str, item: (&str, u64), payload: &[u8]) -> Result<Vec<Op>, StanzaError> {
        self.fits(name, item.0, payload.len())?;
        let node = self.expect_mut(name)?;
        let max = node.config.max_items();
        let mut gone = node.remove(item.0).into_iter().collect::<Vec<_>>();
        while node.items.len() + 1 > max && !node.items.is_empty() {
            gone.push(node.items.remove(0));
        }
        let mut ops: Vec<Op> = gone.iter().map(|old| delete(&key(name, &old.id))).collect();
        if max > 0 {
            node.items.push(Item { id: item.0.into(), place: item.1, len: payload.len() });
            ops.push(put(&key(name, item.0), write_item(item.1, payload)));
        }
        let freed: usize = gone.iter().map(Item::weight).sum();
        self.bytes = self.bytes - freed + if max > 0 { weight(item.0, payload.len()) } else { 0 };
        Ok(ops)
    }

    /// Whether an item has room; those that it takes the place of count as gone.
    fn fits(&self, name: &str, id: &str, len: usize) -> Result<(), StanzaError> {
        if len > MAX_ITEM_BYTES {
            let error = specific(Condition::NotAcceptable, "payload-too-big");
            return Err(error.text(format!("an item has at most {MAX_ITEM_BYTES} bytes")));
        }
        let node = self.existing(name)?;
        let (same, others): (Vec<&Item>, Vec<&Item>) = node.items.iter().partition(|item| &*item.id == id);
        let evicted = (others.len() + 1).saturating_sub(node.config.max_items());
        let freed: usize = same.into_iter().chain(others.into_iter().take(evicted)).map(Item::weight).sum();
        if self.bytes - freed + weight(id, len) > MAX_BYTES {
            let text = format!("all items of an account have at most {MAX_BYTES} bytes");
            return Err(StanzaError::new(Condition::ResourceConstraint).text(text));
        }
        Ok(())
    }

    /// Takes an item off a node.
    ///
    /// # Errors
    /// There is no such node or item.
    pub(super) fn retract(&mut self, name: &str, id: &str) -> Result<Op, StanzaError> {
        let node = self.expect_mut(name)?;
        let item = node.remove(id).ok_or(Condition::ItemNotFound)?;
        self.bytes -= item.weight();
        Ok(delete(&key(name, id)))
    }

    /// Takes all items off a node.
    ///
    /// # Errors
    /// There is no such node.
    pub(super) fn purge(&mut self, name: &str) -> Result<Vec<Op>, StanzaError> {
        let gone = std::mem::take(&mut self.expect_mut(name)?.items);
        self.bytes -= gone.iter().map(Item::weight).sum::<usize>();
        Ok(gone.iter().map(|item| delete(&key(name, &item.id))).collect())
    }

    /// Removes a node with all that is on it.
    ///
    /// # Errors
    /// There is no such node.
    pub(super) fn delete(&mut self, name: &str) -> Result<(Node, Vec<Op>), StanzaError> {
        let mut ops = self.purge(name)?;
        ops.push(delete(name));
        let node = self.nodes.remove(name).ok_or(Condition::ItemNotFound)?;
        Ok((node, ops))
    }

    /// Configures a node; items that are too many now are gone.
    ///
    /// # Errors
    /// There is no such node.
    pub(super) fn configure(&mut self, name: &str, config: Config) -> Result<Vec<Op>, StanzaError> {
        let node = self.expect_mut(name)?;
        let too_many = node.items.len().saturating_sub(config.max_items());
        let gone: Vec<Item> = node.items.drain(..too_many).collect();
        node.config = config;
        let mut ops = vec![node.save(name)];
        ops.extend(gone.iter().map(|item| delete(&key(name, &item.id))));
        self.bytes -= gone.iter().map(Item::weight).sum::<usize>();
        Ok(ops)
    }

    /// Subscribes somebody; `None` if he is already.
    ///
    /// # Errors
    /// There is no such node, or it has too many subscribers.
    pub(super) fn subscribe(&mut self, name: &str, jid: &Jid) -> Result<Option<Op>, StanzaError> {
        let node = self.expect_mut(name)?;
        if node.subscribers.contains(jid) {
            return Ok(None);
        }
        if node.subscribers.len() >= MAX_SUBSCRIBERS {
            // XEP-0060 §6.1.3.9.
            let error = specific(Condition::PolicyViolation, "too-many-subscriptions").with_type(ErrorType::Wait);
            return Err(error.text(format!("a node has at most {MAX_SUBSCRIBERS} subscribers")));
        }
        node.subscribers.push(jid.clone());
        Ok(Some(node.save(name)))
    }

    /// Ends a subscription.
    ///
    /// # Errors
    /// There is no such node or subscription.
    pub(super) fn unsubscribe(&mut self, name: &str, jid: &Jid) -> Result<Op, StanzaError> {
        let node = self.expect_mut(name)?;
        let at = node.subscribers.iter().position(|subscriber| subscriber == jid);
        // XEP-0060 §6.2.3.2.
        let none = || specific(Condition::UnexpectedRequest, "not-subscribed").with_type(ErrorType::Cancel);
        node.subscribers.remove(at.ok_or_else(none)?);
        Ok(node.save(name))
    }

    /// All subscriptions of somebody: node and JID.
    pub(super) fn subscriptions_of(&self, asker: &BareJid) -> Vec<(&str, &Jid)> {
        let all = self.nodes().flat_map(|(name, node)| node.subscribers.iter().map(move |jid| (name, jid)));
        all.filter(|(_, jid)| jid.to_bare() == *asker).collect()
    }
}

impl Node {
    fn remove(&mut self, id: &str) -> Option<Item> {
        let at = self.items.iter().position(|item| &*item.id == id)?;
        Some(self.items.remove(at))
    }

    /// The item that was published last.
    pub(super) fn last(&self) -> Option<&Item> {
        self.items.last()
    }

    fn save(&self, name: &str) -> Op {
        let subscribers = self
            .subscribers
            .iter()
            .map(|jid| Element::new(ns::PUBSUB_OWNER, "subscription").attr("jid", jid.to_string()));
        let node = Element::new(ns::PUBSUB_OWNER, "node").child(self.config.form("result")).children(subscribers);
        put(name, node.to_xml(ns::PUBSUB_OWNER).into())
    }

    fn read(value: &[u8]) -> Option<Node> {
        let node = Element::parse(value, ns::PUBSUB_OWNER).ok()?;
        let config = Config::default().with(form::of(&node)?).ok()?;
        let subscribers = node.elements().filter(|child| child.is(ns::PUBSUB_OWNER, "subscription"));
        let subscribers = subscribers.filter_map(|child| child.get_attr("jid")?.parse().ok()).collect();
        Some(Node { config, subscribers, items: Vec::new() })
    }
}

impl Item {
    fn weight(&self) -> usize {
        weight(&self.id, self.len)
    }
}

/// What an item takes: its payload, its key twice and its entry.
fn weight(id: &str, len: usize) -> usize {
    len + 2 * id.len() + 128
}

/// The key of an item; a name and an id of 1,023 bytes each fit into it.
pub(super) fn key(node: &str, id: &str) -> String {
    format!("{node}\0{id}")
}

fn put(key: &str, value: Bytes) -> Op {
    Op::Put { table: Table::Item, item: key.into(), value, expect: Expect::Any }
}

fn delete(key: &str) -> Op {
    Op::Delete { table: Table::Item, item: key.into(), expect: Expect::Any }
}

/// The first byte of an item's row: how it is written.
const FORMAT: u8 = 1;

fn write_item(place: u64, payload: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(9 + payload.len());
    row.put_u8(FORMAT);
    row.put_u64(place);
    row.put_slice(payload);
    row.freeze()
}

/// Place and payload of an item's row.
pub(super) fn read_item(value: &Bytes) -> Option<(u64, Bytes)> {
    let place = value.get(1..9).filter(|_| value[0] == FORMAT)?;
    // Eight bytes, by the range above.
    Some((u64::from_be_bytes(place.try_into().ok()?), value.slice(9..)))
}
