//! Items for somebody who asks (XEP-0060 §6.5): the newest first, by their ids, the newest few, or page by page
//! (XEP-0059).

use super::{
    Nodes, access,
    request::Wanted,
    shelf::{self, Item, Node},
};
use crate::{paging, pubsub::unavailable};
use bytes::Bytes;
use std::sync::Arc;
use tavi_core::{Account, hooks::Reply};
use tavi_store::{StoreError, Table};
use tavi_xmpp_proto::{BareJid, Condition, Element, StanzaError, ns};

/// What one answer holds in bytes; there is more behind it.
const MAX_ANSWER: usize = 512 * 1024;

/// Items that were chosen, in the order in which they are read.
struct Chosen {
    items: Vec<Item>,
    /// How many there are in all.
    count: usize,
    /// They are read from the end of the page: what has no room is missing at its beginning.
    backwards: bool,
    /// A page was asked for.
    paged: bool,
}

impl Nodes {
    /// XEP-0060 §6.5.
    pub(super) async fn items(
        &self,
        account: &Arc<Account>,
        asker: &BareJid,
        name: &str,
        wanted: &Wanted,
    ) -> Result<Reply, StanzaError> {
        let chosen = account.at_home(|state| {
            let config = super::shelf(state)?.existing(name)?.config.clone();
            access::check((account, state), &config, asker)?;
            choose(super::shelf(state)?.existing(name)?, wanted)
        })?;
        self.settled(account).await.map_err(unavailable)?;
        let (mut found, mut bytes, mut whole) = (Vec::new(), 0, true);
        for item in &chosen.items {
            // What was replaced or retracted just now is left out.
            let Some(payload) = self.payload(account, name, item).await.map_err(unavailable)? else { continue };
            bytes += payload.len() + item.id.len() + 64;
            whole = found.is_empty() || bytes <= MAX_ANSWER;
            if !whole {
                break;
            }
            found.push(answer(item, &payload));
        }
        if chosen.backwards {
            found.reverse();
        }
        let set = (chosen.paged || !whole).then(|| set(&found, chosen.count));
        let items = Element::new(ns::PUBSUB, "items").attr("node", name.to_owned()).children(found);
        Ok(Element::new(ns::PUBSUB, "pubsub").child(items).child_opt(set).into())
    }

    /// An item's payload; `None` if another one has its place by now.
    pub(super) async fn payload(
        &self,
        account: &Arc<Account>,
        node: &str,
        item: &Item,
    ) -> Result<Option<Bytes>, StoreError> {
        let record = self.parts.store.load(&account.owner, Table::Item, &shelf::key(node, &item.id)).await?;
        let row = record.and_then(|record| shelf::read_item(&record.value));
        Ok(row.filter(|(place, _)| *place == item.place).map(|(_, payload)| payload))
    }
}

fn choose(node: &Node, wanted: &Wanted) -> Result<Chosen, StanzaError> {
    let asked = |item: &&Item| wanted.ids.is_empty() || wanted.ids.iter().any(|id| **id == *item.id);
    let all: Vec<&Item> = node.items.iter().rev().filter(asked).take(wanted.max.unwrap_or(usize::MAX)).collect();
    let (count, paged) = (all.len(), wanted.page.is_some());
    let (mut items, backwards): (Vec<&Item>, bool) = match &wanted.page {
        None => (all, false),
        Some(page) => cut(all, page)?,
    };
    if backwards {
        items.reverse();
    }
    Ok(Chosen { items: items.into_iter().cloned().collect(), count, backwards, paged })
}

/// XEP-0059 §2: one page, and whether it was asked for from its end.
fn cut<'a>(all: Vec<&'a Item>, page: &paging::Asked) -> Result<(Vec<&'a Item>, bool), StanzaError> {
    // XEP-0059 §2.1: an item that is gone marks no place.
    let at = |id: &str| all.iter().position(|item| &*item.id == id).ok_or(Condition::ItemNotFound);
    let start = page.after.as_deref().map(at).transpose()?.map_or(0, |at| at + 1);
    let end = page.before.as_deref().filter(|id| !id.is_empty()).map(at).transpose()?.unwrap_or(all.len());
    let max = page.max.unwrap_or(usize::MAX);
    let range = all.get(start..end).unwrap_or_default();
    let backwards = page.before.is_some();
    let part = if backwards { &range[range.len().saturating_sub(max)..] } else { &range[..range.len().min(max)] };
    Ok((part.to_vec(), backwards))
}

fn answer(item: &Item, payload: &[u8]) -> Element {
    let element = Element::new(ns::PUBSUB, "item").attr("id", item.id.to_string());
    // It was written as an element that is complete in itself.
    element.child_opt(Element::parse(payload, "").ok())
}

/// XEP-0059 §2.1.
fn set(found: &[Element], count: usize) -> Element {
    let id = |item: Option<&Element>| item.and_then(|item| item.get_attr("id")).map(str::to_owned);
    paging::ends(id(found.first()), id(found.last())).child(Element::new(ns::RSM, "count").text(count.to_string()))
}
