//! Events of nodes: to whom they go, and the filter at the home of whoever gets them.
//!
//! An event for a contact goes to his account with a mark of which item it is. At his home the mark is taken off, and
//! those of his sessions get the event whose clients want it: his capabilities are known there and nowhere else.

use super::{Personal, access, config::Config, shelf::Node};
use crate::{
    blocking::block_list,
    capabilities,
    contacts::contacts,
    pubsub::{
        subscribers::notice,
        value::{attr, open_items},
    },
};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
};
use tavi_core::{
    Envelope, Ev, Flow, SessionEntry,
    hooks::{OnReceived, Place},
};
use tavi_xmpp_proto::{Element, Jid, MessageType, Stanza, StanzaError, StanzaType, ns, stanza::Head};

/// Words between the homes of accounts; no client sends or gets them.
pub(super) const PERSONAL: &str = "urn:tavi:personal:0";

/// What is told of a node.
pub(super) struct News<'a> {
    pub(super) node: &'a str,
    /// The item, or nothing for the node itself.
    pub(super) item: &'a str,
    /// Its place among all that its publisher did.
    pub(super) place: u64,
    /// The `<event/>`, written once for all.
    pub(super) event: Bytes,
}

/// Who may hear of a node.
pub(super) struct Audience {
    config: Config,
    subscribers: Vec<Jid>,
}

impl Node {
    pub(super) fn audience(&self) -> Audience {
        Audience { config: self.config.clone(), subscribers: self.subscribers.clone() }
    }
}

/// Tells of an item (XEP-0060 §7.1.2).
///
/// # Errors
/// There is no such node.
pub(super) fn published(
    at: &mut Place<'_>,
    node: &str,
    (item, place): (&str, u64),
    payload: &[u8],
) -> Result<(), StanzaError> {
    let audience = super::shelf(at.state)?.existing(node)?.audience();
    let payload = if audience.config.payloads { payload } else { b"" };
    tell(at, &audience, &News { node, item, place, event: publication(node, item, payload) });
    Ok(())
}

/// Tells all who may see it and want it (XEP-0163 §4).
pub(super) fn tell(at: &mut Place<'_>, audience: &Audience, news: &News<'_>) {
    let Place { account, state, fx, hosts } = at;
    let Audience { config, subscribers } = audience;
    if !config.notifies {
        return;
    }
    let own = Jid::from(&account.jid);
    let subscribed = |jid: &Jid| subscribers.contains(jid);
    let wants = |session: &&SessionEntry| {
        capabilities::wants(state, session.id, news.node) || subscribed(&own) || subscribed(&session.jid)
    };
    for session in state.available().filter(wants) {
        fx.deliver(session, notice(&own, &session.jid, news.event.clone()));
    }
    let may_see = |jid: &Jid| {
        // XEP-0163 §4.3.3: nothing goes to whom one has blocked.
        !block_list(state).covers(jid) && access::may_see((account, state), config, &jid.to_bare())
    };
    // A contact's server elsewhere is to know what his client wants before anything is sent to it.
    let here = contacts(state).iter().filter(|(jid, _)| hosts.find(jid.domain()).is_some());
    for (jid, _) in here.filter(|(jid, contact)| contact.subscription.from && !subscribed(&Jid::from(*jid))) {
        if may_see(&jid.into()) {
            fx.route(marked(&own, jid.into(), news));
        }
    }
    for jid in subscribers.iter().filter(|jid| jid.to_bare() != account.jid) {
        if may_see(jid) {
            fx.route(notice(&own, jid, news.event.clone()));
        }
    }
}

/// A message for somebody's account, with its mark.
pub(super) fn marked(from: &Jid, to: Jid, news: &News<'_>) -> Envelope {
    let mark = Element::new(PERSONAL, "news")
        .attr("node", news.node.to_owned())
        .attr("item", news.item.to_owned())
        .attr("place", news.place.to_string());
    let head = Head::message(MessageType::Headline).from(from.clone()).to(to);
    let mut env: Envelope = Stanza::new(head, [mark]).into();
    env.add_fragment(news.event.clone());
    env.as_copy()
}

/// The event of an item (XEP-0060 §7.1.2); without a payload it names the item alone (§7.1.2.2).
pub(super) fn publication(node: &str, item: &str, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(payload.len() + node.len() + item.len() + 128);
    open_items(&mut out, "event", ns::PUBSUB_EVENT, node);
    out.extend_from_slice(b"<item");
    attr(&mut out, "id", item);
    if payload.is_empty() {
        out.extend_from_slice(b"/></items></event>");
    } else {
        out.push(b'>');
        out.extend_from_slice(payload);
        out.extend_from_slice(b"</item></items></event>");
    }
    out.into()
}

/// The event of XEP-0060 §7.2.2.1.
pub(super) fn retraction(node: &str, item: &str) -> Bytes {
    let retract = Element::new(ns::PUBSUB_EVENT, "retract").attr("id", item.to_owned());
    let items = Element::new(ns::PUBSUB_EVENT, "items").attr("node", node.to_owned()).child(retract);
    Element::new(ns::PUBSUB_EVENT, "event").child(items).to_xml(ns::CLIENT).into()
}

/// The event of XEP-0060 §8.4.2 (`delete`) or §8.5.2 (`purge`).
pub(super) fn change(what: &'static str, node: &str) -> Bytes {
    let change = Element::new(ns::PUBSUB_EVENT, what).attr("node", node.to_owned());
    Element::new(ns::PUBSUB_EVENT, "event").child(change).to_xml(ns::CLIENT).into()
}

/// At the home of whoever gets an event.
pub(super) struct Filter;

impl OnReceived for Filter {
    fn on_received(&self, ev: &mut Ev<'_>) -> Flow {
        let Some(mark) = mark_of(ev.env) else { return Flow::Continue };
        ev.env.drop_children(|child| child.is(PERSONAL, "news"));
        let (Some(from), Some(to)) = (ev.env.from().cloned(), ev.env.to().cloned()) else { return Flow::Stop };
        let text = |name| mark.get_attr(name).unwrap_or_default();
        let (node, item, place) = (text("node"), text("item"), text("place").parse().unwrap_or(0));
        if !ev.state.part_mut::<Personal>().recent.is_news((from.as_str(), node, item), place) {
            return Flow::Stop;
        }
        if !to.is_bare() {
            // The last item for a session that asked for it.
            return Flow::Continue;
        }
        let wants = |session: &&SessionEntry| capabilities::wants(ev.state, session.id, node);
        for session in ev.state.available().filter(wants) {
            ev.fx.deliver(session, ev.env.readdressed(session.jid.clone()));
        }
        Flow::Stop
    }
}

/// The mark of an event: only accounts themselves put it there.
fn mark_of(env: &Envelope) -> Option<Element> {
    let is_event = env.head().type_ == StanzaType::Message(MessageType::Headline) && env.from()?.is_bare();
    if is_event { env.element(PERSONAL, "news") } else { None }
}

/// What was told last: two sessions of one account publish at once, and their events may come in the wrong order.
#[derive(Default)]
pub(super) struct Recent(VecDeque<(u64, u64)>);

/// Items that are remembered.
const MAX_RECENT: usize = 256;

impl Recent {
    /// Whether nothing newer was told of this item of a publisher's node, or of the node itself.
    fn is_news(&mut self, (publisher, node, item): (&str, &str, &str), place: u64) -> bool {
        let hash = |item: &str| {
            let mut hasher = DefaultHasher::new();
            (publisher, node, item).hash(&mut hasher);
            hasher.finish()
        };
        let (item, node) = (hash(item), hash(""));
        if self.0.iter().any(|(of, told)| (*of == item || *of == node) && *told > place) {
            return false;
        }
        self.0.retain(|(of, _)| *of != item);
        self.0.push_back((item, place));
        if self.0.len() > MAX_RECENT {
            self.0.pop_front();
        }
        true
    }
}

/// Puts the time of an item into its message (XEP-0163 §4.3.4).
pub(super) fn dated(mut env: Envelope, host: &str, place: u64) -> Envelope {
    env.add_delay(host, tavi_store::id::time_of(place));
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_comes_late_is_no_news() {
        let mut recent = Recent::default();
        let of = |item: &'static str| ("a@x", "n", item);
        assert!(recent.is_news(of("1"), 5) && recent.is_news(of("2"), 4) && recent.is_news(of("1"), 5));
        assert!(!recent.is_news(of("1"), 4));
        assert!(recent.is_news(of(""), 9), "a purge");
        assert!(!recent.is_news(of("3"), 8) && recent.is_news(of("3"), 10));
        assert!(recent.is_news(("a@x", "m", "3"), 1) && recent.is_news(("b@x", "n", "3"), 1));
        for place in 20..1_000 {
            assert!(recent.is_news(("a@x", "n", &place.to_string()), place));
        }
        assert!(recent.0.len() <= MAX_RECENT);
    }

    #[test]
    fn names_and_ids_are_escaped() {
        let event = String::from_utf8(publication("a'<b", "c'&d", b"<e xmlns='urn:e'/>").to_vec()).unwrap();
        let event = Element::parse(event.as_bytes(), ns::CLIENT).unwrap();
        let items = event.get_child(ns::PUBSUB_EVENT, "items").unwrap();
        assert_eq!(items.get_attr("node"), Some("a'<b"));
        assert_eq!(items.get_child(ns::PUBSUB_EVENT, "item").unwrap().get_attr("id"), Some("c'&d"));
    }
}
