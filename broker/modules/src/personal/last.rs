//! The last items of nodes for a session that has come, or whose wishes are known now (XEP-0163 §4.3.4).
//!
//! Its home asks the homes of all whose nodes it may see, its own account's too, and names what the session wants. So
//! nothing that nobody wants is read or sent.

use super::{
    Nodes, Personal, access,
    config::SendLast,
    notify::{self, News, PERSONAL},
    open,
    shelf::Item,
};
use crate::{capabilities, contacts::contacts, pubsub::unavailable};
use bytes::Bytes;
use std::sync::Arc;
use tavi_core::{
    Account, AccountState, Effects,
    hooks::{BoxFuture, Handle, Iq, IqPayload, Place, Reply},
};
use tavi_store::StoreError;
use tavi_xmpp_proto::{BareJid, Condition, Element, IqType, Jid, Stanza, StanzaError, stanza::Head};

/// Nodes in one question; a session wants no more (XEP-0115).
const MAX_WANTED: usize = 100;

/// What a session wants of an account.
pub(super) struct Wants {
    session: Jid,
    nodes: Vec<String>,
}

impl IqPayload for Wants {
    const NS: &'static str = PERSONAL;
    const NAME: &'static str = "wants";

    fn parse(element: &Element) -> Result<Wants, StanzaError> {
        let session = element.get_attr("session").and_then(|jid| jid.parse().ok()).ok_or(Condition::BadRequest)?;
        let nodes = element.elements().filter(|child| child.is(PERSONAL, "node")).take(MAX_WANTED);
        Ok(Wants { session, nodes: nodes.map(Element::text_content).collect() })
    }
}

/// Asks all whom the account sees, and itself, for the last items that a session wants.
pub(crate) fn ask_all(wanted: (&Jid, &[Box<str>]), at: &mut Place<'_>) {
    if wanted.1.is_empty() {
        return;
    }
    ask(at.account, wanted, &at.account.jid, at.fx);
    let seen = contacts(at.state).iter().filter(|(_, contact)| contact.subscription.to);
    for (jid, _) in seen.filter(|(jid, _)| at.hosts.find(jid.domain()).is_some()) {
        ask(at.account, wanted, jid, at.fx);
    }
}

/// Asks a contact whom the account sees from now on for the last items that its sessions want.
pub(crate) fn ask_one(contact: &BareJid, at: &mut Place<'_>) {
    if at.hosts.find(contact.domain()).is_none() {
        return;
    }
    for (jid, interests) in capabilities::wishes(at.state) {
        if !interests.is_empty() {
            ask(at.account, (&jid, &interests), contact, at.fx);
        }
    }
}

/// From the bare JID, which no session has: nobody gets the result.
fn ask(account: &Account, (session, nodes): (&Jid, &[Box<str>]), whom: &BareJid, fx: &mut Effects) {
    let nodes = nodes.iter().map(|node| Element::new(PERSONAL, "node").text(node.to_string()));
    let wants = Element::new(PERSONAL, "wants").attr("session", session.to_string()).children(nodes);
    let head = Head::iq(IqType::Get, "last-items").from(&account.jid).to(whom);
    fx.route(Stanza::new(head, [wants]));
}

impl Handle<Wants> for Nodes {
    fn handle(&self, iq: Iq<Wants>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            let (account, asker) = (iq.account()?, iq.from().ok_or(Condition::BadRequest)?);
            if iq.payload.session.to_bare() != asker.to_bare() {
                return Err(Condition::Forbidden.into());
            }
            let mut reply = Reply::default();
            self.send_wanted(account, &iq.payload, &mut reply.fx).await.map_err(unavailable)?;
            Ok(reply)
        })
    }
}

impl Nodes {
    async fn send_wanted(&self, account: &Arc<Account>, wants: &Wants, fx: &mut Effects) -> Result<(), StoreError> {
        open(&self.parts.store, account).await?;
        let asker = wants.session.to_bare();
        let due = |node: &&String| account.at_home(|state| last_of(account, state, node, &asker).is_some());
        let due: Vec<&String> = wants.nodes.iter().filter(due).collect();
        if due.is_empty() {
            return Ok(());
        }
        self.settled(account).await?;
        for node in due {
            let Some(item) = account.at_home(|state| last_of(account, state, node, &asker)) else { continue };
            if let Some(payload) = self.payload(account, node, &item).await? {
                self.send(account, (node, &item, payload), &wants.session, fx);
            }
        }
        Ok(())
    }

    /// The last item of a node to somebody who subscribed to it.
    pub(super) async fn send_last(
        &self,
        account: &Arc<Account>,
        (node, jid): (&str, &Jid),
        fx: &mut Effects,
    ) -> Result<(), StoreError> {
        let last = account.at_home(|state| item_of(state, node));
        let Some(item) = last else { return Ok(()) };
        self.settled(account).await?;
        if let Some(payload) = self.payload(account, node, &item).await? {
            let host = account.jid.domain();
            let event = notify::publication(node, &item.id, &payload);
            let env = crate::pubsub::subscribers::notice(&Jid::from(&account.jid), jid, event);
            fx.route(notify::dated(env, host, item.place));
        }
        Ok(())
    }

    /// If it is still the last one: else the session was told of the newer one, as it wanted it already.
    fn send(&self, account: &Arc<Account>, (node, item, payload): (&str, &Item, Bytes), to: &Jid, fx: &mut Effects) {
        account.at_home(|state| {
            if item_of(state, node).as_ref() != Some(item) {
                return;
            }
            let payloads =
                state.part::<Personal>().and_then(|own| own.shelf.as_ref()?.get(node)).map(|n| n.config.payloads);
            let payload = if payloads == Some(true) { &payload[..] } else { b"" };
            let event = notify::publication(node, &item.id, payload);
            let news = News { node, item: &item.id, place: item.place, event };
            let own = Jid::from(&account.jid);
            let dated = |env| notify::dated(env, account.jid.domain(), item.place);
            if to.to_bare() == account.jid {
                // Its place among the session's events is that of this moment.
                fx.save_now(account, state, Vec::new());
                let session = state.available().find(|session| session.jid == *to);
                let event = || crate::pubsub::subscribers::notice(&own, to, news.event.clone());
                session.iter().for_each(|session| fx.deliver(session, dated(event())));
            } else {
                fx.route(dated(notify::marked(&own, to.clone(), &news)));
            }
        });
    }
}

fn item_of(state: &AccountState, node: &str) -> Option<Item> {
    state.part::<Personal>()?.shelf.as_ref()?.get(node)?.last().cloned()
}

/// The last item of a node that somebody may see, if it is sent without being asked for.
fn last_of(account: &Account, state: &AccountState, node: &str, asker: &BareJid) -> Option<Item> {
    let config = &state.part::<Personal>()?.shelf.as_ref()?.get(node)?.config;
    let sent = config.send_last == SendLast::OnSubscribeAndPresence && config.notifies;
    let due = sent && access::may_see((account, state), config, asker);
    due.then(|| item_of(state, node)).flatten()
}
