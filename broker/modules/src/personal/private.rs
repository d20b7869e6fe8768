//! Private XML Storage (XEP-0049), which older clients keep things in: each element is an item of one more node, and
//! bookmarks of rooms are those of XEP-0402, so that old and new clients have the same.

use super::{Nodes, config::Config, open, shelf::Shelf};
use crate::pubsub::{unavailable, value::NOWHERE};
use std::{collections::BTreeSet, sync::Arc};
use tavi_core::{
    Account,
    hooks::{BoxFuture, Handle, Iq, IqPayload, Place, Reply},
};
use tavi_store::StoreError;
use tavi_xmpp_proto::{BareJid, Condition, Element, StanzaError, ns};

/// The node of bookmarks (XEP-0402 §3).
const BOOKMARKS: &str = "urn:xmpp:bookmarks:1";
/// Bookmarks as they were before (XEP-0048 §2).
const STORAGE: &str = "storage:bookmarks";
/// The node of everything else.
const PRIVATE: &str = ns::PRIVATE;
/// Elements in one request.
const MAX_ELEMENTS: usize = 10;
/// The longest namespace and name of an element, in bytes.
const MAX_KEY: usize = 1000;

/// `<query xmlns='jabber:iq:private'/>`.
pub(super) struct Query(Vec<Element>);

impl IqPayload for Query {
    const NS: &'static str = ns::PRIVATE;
    const NAME: &'static str = "query";

    fn parse(element: &Element) -> Result<Query, StanzaError> {
        let elements: Vec<Element> = element.elements().cloned().collect();
        let fits =
            |element: &Element| element.ns() != ns::PRIVATE && element.ns().len() + element.name().len() <= MAX_KEY;
        // XEP-0049 §2.2: something is to be stored, in a namespace of its own.
        if elements.is_empty() || elements.len() > MAX_ELEMENTS || !elements.iter().all(fits) {
            let text = "1 to 10 elements are stored, each in a namespace of its own";
            return Err(StanzaError::new(Condition::NotAcceptable).text(text));
        }
        Ok(Query(elements))
    }
}

impl Handle<Query> for Nodes {
    fn handle(&self, iq: Iq<Query>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            let account = iq.account()?;
            open(&self.parts.store, account).await.map_err(unavailable)?;
            if iq.is_set() {
                self.store_all(account, &iq.payload.0).await
            } else {
                self.find_all(account, &iq.payload.0).await
            }
        })
    }

    /// XEP-0049 §2.3: nobody has to do with another's.
    fn not_yours(&self) -> StanzaError {
        Condition::Forbidden.into()
    }
}

/// A bookmark that is there: its room and its payload.
type Bookmark = (Box<str>, Element);

impl Nodes {
    async fn find_all(&self, account: &Arc<Account>, asked: &[Element]) -> Result<Reply, StanzaError> {
        self.settled(account).await.map_err(unavailable)?;
        let mut found = Vec::new();
        for element in asked {
            let stored = self.stored(account, PRIVATE, &key(element)).await.map_err(unavailable)?;
            // XEP-0049 §2.1: what was never stored is empty.
            let mut stored = stored.unwrap_or_else(|| Element::new(element.ns().to_owned(), element.name().to_owned()));
            if is_bookmarks(element) {
                let bookmarks = self.bookmarks(account).await.map_err(unavailable)?;
                bookmarks.iter().for_each(|(room, bookmark)| stored.push(to_old(room, bookmark)));
            }
            found.push(stored);
        }
        Ok(Element::new(ns::PRIVATE, "query").children(found).into())
    }

    async fn store_all(&self, account: &Arc<Account>, elements: &[Element]) -> Result<Reply, StanzaError> {
        let rooms = elements.iter().filter(|element| is_bookmarks(element)).map(conferences);
        let rooms = rooms.collect::<Result<Vec<_>, _>>()?.pop();
        let before = match &rooms {
            None => Vec::new(),
            Some(_) => {
                self.settled(account).await.map_err(unavailable)?;
                self.bookmarks(account).await.map_err(unavailable)?
            }
        };
        self.decide(account, |at| {
            for element in elements {
                let mut bytes = Vec::new();
                rest_of(element).write_to(&mut bytes, NOWHERE);
                self.put(at, PRIVATE, (Some(key(element)), &bytes), |shelf| private_node(shelf, PRIVATE))?;
            }
            if let Some(rooms) = &rooms {
                self.keep_bookmarks(at, &before, rooms)?;
            }
            Ok(None)
        })
    }

    /// What is new or otherwise than before is published; what is not named any more goes.
    fn keep_bookmarks(
        &self,
        at: &mut Place<'_>,
        before: &[Bookmark],
        rooms: &[(BareJid, Element)],
    ) -> Result<(), StanzaError> {
        for (room, old_form) in rooms {
            let known = before.iter().find(|(id, _)| **id == *room.as_str()).map(|(_, bookmark)| bookmark);
            let bookmark = to_new(old_form, known);
            let is_same = known.is_some_and(|known| to_new(&to_old(room.as_str(), known), Some(known)) == bookmark);
            if !is_same {
                let mut bytes = Vec::new();
                bookmark.write_to(&mut bytes, NOWHERE);
                self.put(at, BOOKMARKS, (Some(room.to_string()), &bytes), |shelf| private_node(shelf, BOOKMARKS))?;
            }
        }
        let named: BTreeSet<&str> = rooms.iter().map(|(room, _)| room.as_str()).collect();
        for (room, _) in before.iter().filter(|(room, _)| !named.contains(&**room)) {
            if super::shelf(at.state)?.get(BOOKMARKS).is_some_and(|node| node.items.iter().any(|item| item.id == *room))
            {
                self.take(at, BOOKMARKS, room, true)?;
            }
        }
        Ok(())
    }

    async fn bookmarks(&self, account: &Arc<Account>) -> Result<Vec<Bookmark>, StoreError> {
        let ids = |shelf: &Shelf| -> Vec<Box<str>> {
            let items = shelf.get(BOOKMARKS).map(|node| node.items.iter().map(|item| item.id.clone()).collect());
            items.unwrap_or_default()
        };
        let ids = account.at_home(|state| super::shelf(state).map(|shelf| ids(shelf))).unwrap_or_default();
        let mut bookmarks = Vec::new();
        for id in ids {
            let bookmark = self.stored(account, BOOKMARKS, &id).await?;
            bookmarks.extend(bookmark.filter(|found| found.is(BOOKMARKS, "conference")).map(|found| (id, found)));
        }
        Ok(bookmarks)
    }

    /// The element of an item.
    async fn stored(&self, account: &Arc<Account>, node: &str, id: &str) -> Result<Option<Element>, StoreError> {
        let item = account.at_home(|state| {
            let node = super::shelf(state).ok()?.get(node)?;
            node.items.iter().find(|item| *item.id == *id).cloned()
        });
        let Some(item) = item else { return Ok(None) };
        let payload = self.payload(account, node, &item).await?;
        Ok(payload.and_then(|payload| Element::parse(&payload, "").ok()))
    }
}

/// Makes a node that only its owner sees, unless there is one of that name.
fn private_node(shelf: &mut Shelf, name: &str) -> Result<Option<tavi_store::Op>, StanzaError> {
    match shelf.get(name) {
        Some(_) => Ok(None),
        None => shelf.create(name, Config::private()).map(Some),
    }
}

fn key(element: &Element) -> String {
    format!("{} {}", element.name(), element.ns())
}

fn is_bookmarks(element: &Element) -> bool {
    element.is(STORAGE, "storage")
}

/// An element without what is kept elsewhere: the bookmarks of rooms.
fn rest_of(element: &Element) -> Element {
    if !is_bookmarks(element) {
        return element.clone();
    }
    let rest = element.elements().filter(|child| !child.is(STORAGE, "conference"));
    Element::new(STORAGE, "storage").children(rest.cloned())
}

/// The bookmarks of rooms in the old form.
fn conferences(storage: &Element) -> Result<Vec<(BareJid, Element)>, StanzaError> {
    let conferences = storage.elements().filter(|child| child.is(STORAGE, "conference"));
    conferences
        .map(|conference| {
            let room = conference.get_attr("jid").and_then(|jid| jid.parse().ok());
            Ok((room.ok_or(Condition::JidMalformed)?, conference.clone()))
        })
        .collect()
}

/// A bookmark as XEP-0048 §2.1 writes it.
fn to_old(room: &str, bookmark: &Element) -> Element {
    let text = |name: &'static str| {
        let child = bookmark.get_child(BOOKMARKS, name)?;
        Some(Element::new(STORAGE, name).text(child.text_content()))
    };
    Element::new(STORAGE, "conference")
        .attr("jid", room.to_owned())
        .attr_opt("name", bookmark.get_attr("name").map(str::to_owned))
        .attr_opt("autojoin", bookmark.get_attr("autojoin").map(str::to_owned))
        .child_opt(text("nick"))
        .child_opt(text("password"))
}

/// A bookmark as XEP-0402 §3 writes it: what the old form cannot say stays as it was.
fn to_new(conference: &Element, known: Option<&Element>) -> Element {
    let text = |name: &'static str| {
        let child = conference.get_child(STORAGE, name)?;
        Some(Element::new(BOOKMARKS, name).text(child.text_content()))
    };
    let is_said = |child: &&Element| child.is(BOOKMARKS, "nick") || child.is(BOOKMARKS, "password");
    let others = known.into_iter().flat_map(Element::elements).filter(|child| !is_said(child));
    Element::new(BOOKMARKS, "conference")
        .attr_opt("name", conference.get_attr("name").map(str::to_owned))
        .attr_opt("autojoin", conference.get_attr("autojoin").map(str::to_owned))
        .child_opt(text("nick"))
        .child_opt(text("password"))
        .children(others.cloned())
}
