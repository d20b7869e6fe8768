//! Personal nodes (XEP-0163): every account is a pubsub service for what its owner publishes: avatars, bookmarks, keys.
//!
//! Whoever may see a node and wants to be notified of it is, without asking: the account's own sessions, and contacts who
//! see its presence (`access.rs`), filtered by what their clients announce (`capabilities`). What is decided under the
//! account's lock is saved before it is answered and told in that order. What an account keeps is read when somebody
//! first has to do with it (`shelf.rs`); payloads are read from the store.

mod access;
mod config;
mod items;
mod last;
mod notify;
mod private;
mod request;
mod shelf;

pub(crate) use last::{ask_all, ask_one};

use crate::pubsub::{specific, unavailable, value::NOWHERE};
use config::{Config, SendLast};
use notify::{News, Recent};
use request::Request;
use shelf::{Node, Shelf};
use std::sync::Arc;
use tavi_core::{
    Account, AccountPart, AccountState, Parts, Registry,
    hooks::{At, BoxFuture, Handle, Identity, Iq, IqPayload, Phase, Place, Reply, Scope, TwoOwners, Xep},
};
use tavi_store::{Op, Owner, SharedStore, StoreError};
use tavi_xmpp_proto::{BareJid, Condition, Element, Jid, StanzaError, ns};

/// The line of the table of extensions.
const XEP: Xep = Xep { number: 163, name: "Personal Eventing Protocol", version: "1.2.2", module: "personal" };
/// Avatars are two nodes that their owner's contacts see.
const AVATARS: Xep = Xep { number: 84, name: "User Avatar", version: "1.1.4", module: "personal" };
/// Bookmarks are a node that nobody else sees.
const BOOKMARKS: Xep = Xep { number: 402, name: "PEP Native Bookmarks", version: "1.2.0", module: "personal" };

/// Older clients keep their bookmarks in it.
const PRIVATE: Xep = Xep { number: 49, name: "Private XML Storage", version: "1.2", module: "personal" };

/// Nodes of one account.
const MAX_NODES: usize = 256;
/// Items of one node.
const MAX_ITEMS: usize = 1000;
/// One item's payload in bytes.
const MAX_ITEM_BYTES: usize = 192 * 1024;
/// All items of one account in bytes, about.
const MAX_BYTES: usize = 4 << 20;
/// Who subscribed to one node with IQs of their own.
const MAX_SUBSCRIBERS: usize = 1000;
/// The longest name of a node in bytes; it and an item's id fit into the key of a row.
const MAX_NAME: usize = 1023;

/// XEP-0163 §6.1, XEP-0060 §10: what accounts can do.
const FEATURES: [&str; 26] = [
    ns::PUBSUB,
    // XEP-0402 §5: old and new clients have the same bookmarks.
    "urn:xmpp:bookmarks:1#compat",
    "http://jabber.org/protocol/pubsub#access-open",
    "http://jabber.org/protocol/pubsub#access-presence",
    "http://jabber.org/protocol/pubsub#access-roster",
    "http://jabber.org/protocol/pubsub#access-whitelist",
    "http://jabber.org/protocol/pubsub#auto-create",
    "http://jabber.org/protocol/pubsub#auto-subscribe",
    "http://jabber.org/protocol/pubsub#config-node",
    "http://jabber.org/protocol/pubsub#config-node-max",
    "http://jabber.org/protocol/pubsub#create-and-configure",
    "http://jabber.org/protocol/pubsub#create-nodes",
    "http://jabber.org/protocol/pubsub#delete-items",
    "http://jabber.org/protocol/pubsub#delete-nodes",
    "http://jabber.org/protocol/pubsub#filtered-notifications",
    "http://jabber.org/protocol/pubsub#item-ids",
    "http://jabber.org/protocol/pubsub#last-published",
    "http://jabber.org/protocol/pubsub#multi-items",
    "http://jabber.org/protocol/pubsub#persistent-items",
    "http://jabber.org/protocol/pubsub#publish",
    "http://jabber.org/protocol/pubsub#publish-options",
    "http://jabber.org/protocol/pubsub#purge-nodes",
    "http://jabber.org/protocol/pubsub#retract-items",
    "http://jabber.org/protocol/pubsub#retrieve-items",
    "http://jabber.org/protocol/pubsub#rsm",
    "http://jabber.org/protocol/pubsub#subscribe",
];

/// Registers it.
///
/// # Errors
/// If a payload has an owner already.
pub fn register(registry: &mut Registry, parts: &Parts) -> Result<(), TwoOwners> {
    [PRIVATE, AVATARS, XEP, BOOKMARKS].into_iter().for_each(|xep| registry.xep(xep));
    registry.identity(Identity { at: At::Account, category: "pubsub", type_: "pep", name: None });
    FEATURES.iter().for_each(|var| registry.feature(At::Account, var));
    registry.part::<Personal>();
    let nodes = Arc::new(Nodes { parts: parts.clone() });
    registry.handle::<Pubsub>(Scope::Account, nodes.clone())?;
    registry.handle::<OwnerPubsub>(Scope::Account, nodes.clone())?;
    registry.handle::<last::Wants>(Scope::Account, nodes.clone())?;
    registry.handle::<private::Query>(Scope::Own, nodes)?;
    registry.on_received(Phase::Annotate, Arc::new(notify::Filter));
    Ok(())
}

/// What an account's home knows of its nodes, and of those of others.
#[derive(Default)]
pub(crate) struct Personal {
    /// `None`: nobody has had to do with them.
    shelf: Option<Shelf>,
    /// One reads them, the others wait.
    reading: Arc<tokio::sync::Mutex<()>>,
    /// When something was last saved.
    saved_ms: u64,
    /// What was told last of others' nodes.
    recent: Recent,
}

impl AccountPart for Personal {
    /// Most who are asked for an account do not ask for its nodes: they are read when somebody does.
    fn load<'a>(_: &'a SharedStore, _: &'a Owner) -> BoxFuture<'a, Result<Personal, StoreError>> {
        Box::pin(async { Ok(Personal::default()) })
    }
}

/// `<pubsub/>`, XEP-0060 §5 to §7.
struct Pubsub(Element);
/// `<pubsub/>` of an owner, XEP-0060 §8.
struct OwnerPubsub(Element);

impl IqPayload for Pubsub {
    const NS: &'static str = ns::PUBSUB;
    const NAME: &'static str = "pubsub";

    fn parse(element: &Element) -> Result<Pubsub, StanzaError> {
        Ok(Pubsub(element.clone()))
    }
}

impl IqPayload for OwnerPubsub {
    const NS: &'static str = ns::PUBSUB_OWNER;
    const NAME: &'static str = "pubsub";

    fn parse(element: &Element) -> Result<OwnerPubsub, StanzaError> {
        Ok(OwnerPubsub(element.clone()))
    }
}

impl Handle<Pubsub> for Nodes {
    fn handle(&self, iq: Iq<Pubsub>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            let request = Request::of(&iq.payload.0, iq.is_set())?;
            self.answer(&iq, request).await
        })
    }
}

impl Handle<OwnerPubsub> for Nodes {
    fn handle(&self, iq: Iq<OwnerPubsub>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            let request = Request::of(&iq.payload.0, iq.is_set())?;
            self.answer(&iq, request).await
        })
    }
}

/// The nodes of all accounts.
pub(crate) struct Nodes {
    parts: Parts,
}

/// A commit that was handed in so long ago has landed.
const LANDED_MS: u64 = 60_000;

impl Nodes {
    async fn answer<T>(&self, iq: &Iq<T>, request: Request) -> Result<Reply, StanzaError> {
        let (account, asker) = (iq.account()?, iq.from().ok_or(Condition::BadRequest)?);
        open(&self.parts.store, account).await.map_err(unavailable)?;
        if asker.to_bare() != account.jid && !request.is_for_others() {
            // XEP-0163 §3.2: the owner alone publishes and decides.
            return Err(Condition::Forbidden.into());
        }
        self.perform(account, asker, request).await
    }

    async fn perform(&self, account: &Arc<Account>, asker: &Jid, request: Request) -> Result<Reply, StanzaError> {
        match request {
            Request::Publish { node, item, payload, options } => {
                self.publish(account, &node, (item, &payload), options.as_ref())
            }
            Request::Retract { node, item, notify } => self.retract(account, &node, &item, notify),
            Request::Items { node, wanted } => self.items(account, &asker.to_bare(), &node, &wanted).await,
            Request::Subscribe { node, jid } => self.subscribe(account, asker, &node, jid).await,
            Request::Unsubscribe { node, jid } => self.unsubscribe(account, asker, &node, &jid),
            Request::Subscriptions { node } => read(account, |shelf| Ok(subscriptions(shelf, asker, node.as_deref()))),
            Request::Affiliations { node } => {
                let own = asker.to_bare() == account.jid;
                read(account, |shelf| Ok(affiliations(shelf, own, node.as_deref())))
            }
            Request::Create { node, form } => self.create(account, &node, form.as_ref()),
            Request::Delete { node } => self.delete(account, &node),
            Request::Purge { node } => self.purge(account, &node),
            Request::Default => {
                Ok(owner_answer(Element::new(ns::PUBSUB_OWNER, "default"), Config::default().form("form")))
            }
            Request::Configuration { node } => read(account, |shelf| {
                let configure = Element::new(ns::PUBSUB_OWNER, "configure").attr("node", node.clone());
                Ok(owner_answer(configure, shelf.existing(&node)?.config.form("form")))
            }),
            Request::Configure { node, form } => self.configure(account, &node, &form),
            Request::Subscribers { node } => read(account, |shelf| Ok(subscribers(shelf.existing(&node)?, &node))),
            Request::Owners { node } => read(account, |shelf| {
                shelf.existing(&node)?;
                let owner = Element::new(ns::PUBSUB_OWNER, "affiliation").attr("jid", account.jid.to_string());
                let list = Element::new(ns::PUBSUB_OWNER, "affiliations").attr("node", node.clone());
                Ok(owner_answer(list, owner.attr("affiliation", "owner")))
            }),
            Request::Nothing => Ok(Reply::default()),
        }
    }

    /// XEP-0060 §7.1, XEP-0163 §4: the node is made if there is none.
    fn publish(
        &self,
        account: &Arc<Account>,
        name: &str,
        (id, payload): (Option<String>, &Element),
        options: Option<&Element>,
    ) -> Result<Reply, StanzaError> {
        let mut bytes = Vec::new();
        payload.write_to(&mut bytes, NOWHERE);
        self.decide(account, |at| {
            let id = self.put(at, name, (id, &bytes), |shelf| made(shelf, name, options))?;
            let item = Element::new(ns::PUBSUB, "item").attr("id", id);
            let node = Element::new(ns::PUBSUB, "publish").attr("node", name.to_owned()).child(item);
            Ok(Some(Element::new(ns::PUBSUB, "pubsub").child(node)))
        })
    }

    /// Puts an item on a node that `make` may make before; gives its id.
    fn put(
        &self,
        at: &mut Place<'_>,
        name: &str,
        (id, payload): (Option<String>, &[u8]),
        make: impl FnOnce(&mut Shelf) -> Result<Option<Op>, StanzaError>,
    ) -> Result<String, StanzaError> {
        let place = self.draw();
        let id = id.unwrap_or_else(|| place.to_string());
        let shelf = shelf(at.state)?;
        let made = make(shelf)?;
        let ops = match shelf.publish(name, (&id, place), payload) {
            Ok(ops) => made.into_iter().chain(ops).collect(),
            Err(error) => {
                if made.is_some() {
                    // Nothing of a publication that is refused stays.
                    shelf.delete(name)?;
                }
                return Err(error);
            }
        };
        self.save(at, ops);
        notify::published(at, name, (&id, place), payload)?;
        Ok(id)
    }

    /// XEP-0060 §7.2.
    fn retract(&self, account: &Arc<Account>, name: &str, id: &str, notify: bool) -> Result<Reply, StanzaError> {
        self.decide(account, |at| self.take(at, name, id, notify).map(|()| None))
    }

    /// Takes an item off a node; it is told if the node is so, or if it is asked for.
    fn take(&self, at: &mut Place<'_>, name: &str, id: &str, notify: bool) -> Result<(), StanzaError> {
        let op = shelf(at.state)?.retract(name, id)?;
        self.save(at, vec![op]);
        let place = self.draw();
        let node = shelf(at.state)?.existing(name)?;
        let (audience, told) = (node.audience(), notify || node.config.tells_retractions);
        if told {
            notify::tell(at, &audience, &News { node: name, item: id, place, event: notify::retraction(name, id) });
        }
        Ok(())
    }

    /// XEP-0060 §8.5.
    fn purge(&self, account: &Arc<Account>, name: &str) -> Result<Reply, StanzaError> {
        self.decide(account, |at| {
            let ops = shelf(at.state)?.purge(name)?;
            self.save(at, ops);
            let news = News { node: name, item: "", place: self.draw(), event: notify::change("purge", name) };
            let node = shelf(at.state)?.existing(name)?;
            let (audience, told) = (node.audience(), node.config.tells_retractions);
            if told {
                notify::tell(at, &audience, &news);
            }
            Ok(None)
        })
    }

    /// XEP-0060 §8.1.
    fn create(&self, account: &Arc<Account>, name: &str, form: Option<&Element>) -> Result<Reply, StanzaError> {
        let config = form.map_or_else(|| Ok(Config::default()), |form| Config::default().with(form))?;
        self.decide(account, |at| {
            let op = shelf(at.state)?.create(name, config)?;
            self.save(at, vec![op]);
            Ok(None)
        })
    }

    /// XEP-0060 §8.4.
    fn delete(&self, account: &Arc<Account>, name: &str) -> Result<Reply, StanzaError> {
        self.decide(account, |at| {
            let (node, ops) = shelf(at.state)?.delete(name)?;
            self.save(at, ops);
            if node.config.tells_deletion {
                let news = News { node: name, item: "", place: self.draw(), event: notify::change("delete", name) };
                notify::tell(at, &node.audience(), &news);
            }
            Ok(None)
        })
    }

    /// XEP-0060 §8.2.
    fn configure(&self, account: &Arc<Account>, name: &str, form: &Element) -> Result<Reply, StanzaError> {
        self.decide(account, |at| {
            let shelf = shelf(at.state)?;
            let config = shelf.existing(name)?.config.with(form)?;
            let ops = shelf.configure(name, config)?;
            self.save(at, ops);
            Ok(None)
        })
    }

    /// XEP-0060 §6.1.
    async fn subscribe(&self, account: &Arc<Account>, asker: &Jid, name: &str, jid: Jid) -> Result<Reply, StanzaError> {
        if jid.to_bare() != asker.to_bare() {
            return Err(specific(Condition::BadRequest, "invalid-jid"));
        }
        let mut send_last = false;
        let mut reply = self.decide(account, |at| {
            let op = {
                let config = shelf(at.state)?.existing(name)?.config.clone();
                access::check((at.account, at.state), &config, &asker.to_bare())?;
                send_last = config.send_last != SendLast::Never;
                shelf(at.state)?.subscribe(name, &jid)?
            };
            if let Some(op) = op {
                self.save(at, vec![op]);
            }
            let subscription = subscription(&jid, name).attr("subscription", "subscribed");
            Ok(Some(Element::new(ns::PUBSUB, "pubsub").child(subscription)))
        })?;
        if send_last {
            // XEP-0060 §6.1.7.
            self.send_last(account, (name, &jid), &mut reply.fx).await.map_err(unavailable)?;
        }
        Ok(reply)
    }

    /// XEP-0060 §6.2.
    fn unsubscribe(&self, account: &Arc<Account>, asker: &Jid, name: &str, jid: &Jid) -> Result<Reply, StanzaError> {
        if jid.to_bare() != asker.to_bare() {
            // XEP-0060 §6.2.3.3.
            return Err(Condition::Forbidden.into());
        }
        self.decide(account, |at| {
            let op = shelf(at.state)?.unsubscribe(name, jid)?;
            self.save(at, vec![op]);
            Ok(None)
        })
    }

    /// Decides something under the account's lock; the answer goes out when all of it is saved.
    fn decide(
        &self,
        account: &Arc<Account>,
        decide: impl FnOnce(&mut Place<'_>) -> Result<Option<Element>, StanzaError>,
    ) -> Result<Reply, StanzaError> {
        let mut reply = Reply::default();
        let fx = &mut reply.fx;
        reply.payload = account.at_home(|state| decide(&mut Place { account, state, fx, hosts: &self.parts.hosts }))?;
        Ok(reply)
    }

    fn save(&self, at: &mut Place<'_>, ops: Vec<Op>) {
        at.state.part_mut::<Personal>().saved_ms = self.parts.clock.now_ms();
        at.fx.save_now(at.account, at.state, ops);
    }

    /// The next place: greater than all before, whatever the clock does.
    fn draw(&self) -> u64 {
        self.parts.ids.next(self.parts.clock.now_ms())
    }

    /// Waits until all that was decided is saved: before that nothing is read from the store to be told.
    async fn settled(&self, account: &Arc<Account>) -> Result<(), StoreError> {
        let saved_ms = account.at_home(|state| state.part_mut::<Personal>().saved_ms);
        if saved_ms + LANDED_MS < self.parts.clock.now_ms() {
            return Ok(());
        }
        // An account's commits land in order, so this one lands behind all before it.
        self.parts.store.commit(&account.owner, Vec::new()).await
    }
}

impl Request {
    /// Whether others than the account's owner may ask it.
    fn is_for_others(&self) -> bool {
        matches!(
            self,
            Request::Items { .. }
                | Request::Subscribe { .. }
                | Request::Unsubscribe { .. }
                | Request::Subscriptions { .. }
                | Request::Affiliations { .. }
        )
    }
}

/// Reads what an account keeps, unless that was done.
async fn open(store: &SharedStore, account: &Arc<Account>) -> Result<(), StoreError> {
    let is_open = |state: &mut AccountState| state.part::<Personal>().is_some_and(|own| own.shelf.is_some());
    if account.at_home(is_open) {
        return Ok(());
    }
    let reading = account.at_home(|state| state.part_mut::<Personal>().reading.clone());
    let _turn = reading.lock().await;
    if !account.at_home(is_open) {
        // Whoever writes comes through here first, so nothing is written meanwhile.
        let shelf = Shelf::load(store, &account.owner).await?;
        account.at_home(|state| state.part_mut::<Personal>().shelf = Some(shelf));
    }
    Ok(())
}

/// What an account keeps, which was read.
fn shelf(state: &mut AccountState) -> Result<&mut Shelf, StanzaError> {
    state.part_mut::<Personal>().shelf.as_mut().ok_or_else(|| Condition::InternalServerError.into())
}

/// Answers from what an account keeps.
fn read<T: Into<Reply>>(
    account: &Account,
    look: impl FnOnce(&mut Shelf) -> Result<T, StanzaError>,
) -> Result<Reply, StanzaError> {
    account.at_home(|state| look(shelf(state)?)).map(Into::into)
}

/// XEP-0060 §7.1.5: the node is as the publisher expects it, or is made like that. Gives what saves it if it was made.
fn made(shelf: &mut Shelf, name: &str, options: Option<&Element>) -> Result<Option<Op>, StanzaError> {
    let unmet = || specific(Condition::Conflict, "precondition-not-met");
    match (shelf.get(name), options) {
        (Some(node), Some(options)) if !node.config.meets(options) => {
            Err(unmet().text("the node is configured otherwise"))
        }
        (Some(_), _) => Ok(None),
        (None, None) => shelf.create(name, Config::default()).map(Some),
        (None, Some(options)) => {
            let config = Config::default().with(options);
            // XEP-0060 §7.1.5: what cannot be met is as what is not met.
            let config = config.map_err(|error| unmet().text(error.text.unwrap_or_default()))?;
            shelf.create(name, config).map(Some)
        }
    }
}

fn owner_answer(list: Element, child: Element) -> Reply {
    Element::new(ns::PUBSUB_OWNER, "pubsub").child(list.child(child)).into()
}

fn subscription(jid: &Jid, node: &str) -> Element {
    Element::new(ns::PUBSUB, "subscription").attr("node", node.to_owned()).attr("jid", jid.to_string())
}

/// XEP-0060 §5.6: what somebody subscribed to here.
fn subscriptions(shelf: &Shelf, asker: &Jid, node: Option<&str>) -> Element {
    let of = shelf.subscriptions_of(&asker.to_bare()).into_iter();
    let of = of.filter(|(name, _)| node.is_none_or(|node| node == *name));
    let list = of.map(|(name, jid)| subscription(jid, name).attr("subscription", "subscribed"));
    let list = Element::new(ns::PUBSUB, "subscriptions").attr_opt("node", node.map(str::to_owned)).children(list);
    Element::new(ns::PUBSUB, "pubsub").child(list)
}

/// XEP-0060 §5.7: an account owns all of its nodes, and none of others'.
fn affiliations(shelf: &Shelf, own: bool, node: Option<&str>) -> Element {
    let owned = shelf.nodes().filter(|(name, _)| own && node.is_none_or(|node| node == *name));
    let list = owned.map(|(name, _)| {
        Element::new(ns::PUBSUB, "affiliation").attr("node", name.to_owned()).attr("affiliation", "owner")
    });
    let list = Element::new(ns::PUBSUB, "affiliations").attr_opt("node", node.map(str::to_owned)).children(list);
    Element::new(ns::PUBSUB, "pubsub").child(list)
}

/// XEP-0060 §8.8.1.
fn subscribers(node: &Node, name: &str) -> Element {
    let list = node.subscribers.iter().map(|jid| {
        let subscription = Element::new(ns::PUBSUB_OWNER, "subscription").attr("jid", jid.to_string());
        subscription.attr("subscription", "subscribed")
    });
    let list = Element::new(ns::PUBSUB_OWNER, "subscriptions").attr("node", name.to_owned()).children(list);
    Element::new(ns::PUBSUB_OWNER, "pubsub").child(list)
}

/// The names of an account's nodes that somebody may see (XEP-0060 §5.2).
pub(crate) async fn names(
    store: &SharedStore,
    account: &Arc<Account>,
    asker: &BareJid,
) -> Result<Vec<String>, StanzaError> {
    open(store, account).await.map_err(unavailable)?;
    Ok(account.at_home(|state| {
        let nodes = state.part::<Personal>().and_then(|own| own.shelf.as_ref()).map(Shelf::nodes);
        let seen =
            nodes.into_iter().flatten().filter(|(_, node)| access::may_see((account, state), &node.config, asker));
        seen.map(|(name, _)| name.to_owned()).collect()
    }))
}

/// The ids of a node's items, the newest first (XEP-0060 §5.5); `None`: there is no such node for this asker.
pub(crate) async fn item_ids(
    store: &SharedStore,
    account: &Arc<Account>,
    asker: &BareJid,
    node: &str,
) -> Result<Option<Vec<String>>, StanzaError> {
    open(store, account).await.map_err(unavailable)?;
    Ok(account.at_home(|state| {
        let node = state.part::<Personal>().and_then(|own| own.shelf.as_ref()?.get(node))?;
        let seen = access::may_see((account, state), &node.config, asker);
        seen.then(|| node.items.iter().rev().map(|item| item.id.to_string()).collect())
    }))
}

#[cfg(test)]
mod tests;
