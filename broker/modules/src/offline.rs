//! Offline messages (XEP-0160): which messages are kept for an account that is away, and how many.
//!
//! The router stores them, hands them over in order and stamps them (XEP-0203).

use std::sync::Arc;
use tavi_core::{
    Effect, Envelope, Ev, Flow, Hosts, Registry,
    hooks::{OnSent, OnUndelivered, Phase, Xep},
    principal::Host,
};
use tavi_xmpp_proto::{Condition, Element, Jid, MessageType, StanzaError, StanzaType, ns};

/// The line of the table of extensions.
const XEP: Xep =
    Xep { number: 160, name: "Best Practices for Handling Offline Messages", version: "1.0.1", module: "offline" };
/// Delays are stamped by the router.
const DELAY: Xep = Xep { number: 203, name: "Delayed Delivery", version: "2.0", module: "offline" };
/// The hints `no-store` and `store`, and `no-copy` in carbons.
const HINTS: Xep = Xep { number: 334, name: "Message Processing Hints", version: "0.4.0", module: "offline" };

/// Registers it.
pub fn register(registry: &mut Registry) {
    [XEP, DELAY, HINTS].into_iter().for_each(|xep| registry.xep(xep));
    // XEP-0160 §4.
    registry.feature(Host::Main, "msgoffline");
    registry.on_undelivered(Arc::new(Offline));
    registry.on_sent(Phase::Annotate, Arc::new(Offline));
}

struct Offline;

impl OnSent for Offline {
    /// XEP-0203 §5: only the broker's own hosts say when the broker had something.
    fn on_sent(&self, ev: &mut Ev<'_>) -> Flow {
        if ev.env.has(ns::DELAY, "delay") {
            let hosts = ev.hosts;
            ev.env.drop_elements(|child| child.is(ns::DELAY, "delay"), |delay| is_of(hosts, delay));
        }
        Flow::Continue
    }
}

fn is_of(hosts: &Hosts, delay: &Element) -> bool {
    let from = delay.get_attr("from").and_then(|from| from.parse::<Jid>().ok());
    from.is_some_and(|from| from.local().is_none() && hosts.find(from.domain()).is_some())
}

impl OnUndelivered for Offline {
    fn on_undelivered(&self, ev: &mut Ev<'_>) -> Flow {
        match verdict(ev.env) {
            Verdict::Keep if ev.state.kept.is_full() => {
                // XEP-0160 §3: a full store answers as if there were none.
                Flow::Refuse(
                    StanzaError::new(Condition::ServiceUnavailable).text("too many messages wait for this account"),
                )
            }
            Verdict::Keep => {
                ev.fx.push(Effect::Keep { account: ev.account.jid.clone(), envelope: ev.env.clone() });
                Flow::Stop
            }
            Verdict::Ignore => Flow::Stop,
            Verdict::Refuse => Flow::Continue,
        }
    }
}

/// Whether a message says something that lasts, and may be kept.
pub(crate) fn is_worth_keeping(env: &Envelope) -> bool {
    verdict(env) == Verdict::Keep
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Ignore,
    Refuse,
}

/// XEP-0160 §3: what is worth being kept. What says nothing that lasts is ignored; the rest is answered.
fn verdict(env: &Envelope) -> Verdict {
    let StanzaType::Message(type_) = env.head().type_ else { return Verdict::Refuse };
    if !matches!(type_, MessageType::Chat | MessageType::Normal) {
        return Verdict::Refuse;
    }
    // XEP-0334 §4.3: what must not be stored is lost when nobody is there, and the sender hears of it.
    if env.has(ns::HINTS, "no-store") {
        return if env.has(ns::CLIENT, "body") { Verdict::Refuse } else { Verdict::Ignore };
    }
    if lasts(env) { Verdict::Keep } else { Verdict::Ignore }
}

/// A body, a hint to store (XEP-0334 §4.4), or anything but a mere chat state (XEP-0085 §5.5).
fn lasts(env: &Envelope) -> bool {
    let mut children = env.stanza.children().iter();
    env.has(ns::CLIENT, "body")
        || env.has(ns::HINTS, "store")
        || children.any(|child| !is_fleeting(&child.ns) && !child.is(ns::CLIENT, "thread"))
}

fn is_fleeting(namespace: &str) -> bool {
    matches!(namespace, ns::CHAT_STATES | ns::HINTS | ns::STANZA_ID)
}

#[cfg(test)]
mod tests {
    use super::{Verdict, verdict};
    use crate::tests::world::World;
    use tavi_xmpp_proto::Stanza;

    #[test]
    fn what_lasts_is_kept() {
        let cases = [
            ("<message type='chat'><body>Hi</body></message>", Verdict::Keep),
            ("<message><body>Hi</body></message>", Verdict::Keep),
            ("<message type='chat'><received xmlns='urn:xmpp:receipts' id='1'/></message>", Verdict::Keep),
            (
                "<message type='chat'><encrypted xmlns='urn:example'/><store xmlns='urn:xmpp:hints'/></message>",
                Verdict::Keep,
            ),
            (
                "<message type='chat'><composing xmlns='http://jabber.org/protocol/chatstates'/></message>",
                Verdict::Ignore,
            ),
            (
                "<message type='chat'><composing xmlns='http://jabber.org/protocol/chatstates'/><thread>t</thread></message>",
                Verdict::Ignore,
            ),
            ("<message type='chat'><body>Hi</body><no-store xmlns='urn:xmpp:hints'/></message>", Verdict::Refuse),
            ("<message type='headline'><body>Hi</body></message>", Verdict::Refuse),
            ("<message type='groupchat'><body>Hi</body></message>", Verdict::Refuse),
            ("<message type='error'><body>Hi</body></message>", Verdict::Refuse),
            ("<message type='chat'/>", Verdict::Ignore),
        ];
        for (xml, wanted) in cases {
            assert_eq!(verdict(&Stanza::parse(xml.as_bytes()).unwrap().into()), wanted, "{xml}");
        }
    }

    /// By default.
    const MAX_KEPT: usize = 1000;

    #[tokio::test]
    async fn a_full_store_is_answered() {
        let world = World::new().await;
        world.account("juliet").await;
        let mut romeo = world.online("romeo/orchard").await;
        for n in 0..MAX_KEPT {
            romeo.sends(&format!("<message to='juliet@localhost' type='chat'><body>{n}</body></message>")).await;
        }
        romeo.sees_nothing();
        romeo.sends("<message to='juliet@localhost' type='chat'><body>one more</body></message>").await;
        romeo.sees_error("service-unavailable");
        let mut juliet = world.online("juliet/balcony").await;
        assert_eq!(juliet.takes(MAX_KEPT).len(), MAX_KEPT);
        juliet.acks();
        romeo.sends("<message to='juliet@localhost' type='chat'><body>now</body></message>").await;
        juliet.sees("<message><body>now</body></message>");
    }

    #[tokio::test]
    async fn a_message_to_nobody_and_one_that_must_not_be_stored_are_answered() {
        let world = World::new().await;
        world.account("juliet").await;
        let mut romeo = world.online("romeo/orchard").await;
        romeo.sends("<message to='nobody@localhost' type='chat'><body>Hi</body></message>").await;
        romeo.sees_error("service-unavailable");
        romeo.sends("<message to='juliet@localhost' type='chat'><body>Hi</body><no-store xmlns='urn:xmpp:hints'/></message>").await;
        romeo.sees_error("service-unavailable");
        romeo.sends("<message to='juliet@elsewhere.example' type='chat'><body>Hi</body></message>").await;
        romeo.sees_error("remote-server-not-found");
    }
}
