//! Message Archive Management (XEP-0313) of accounts, with stanza ids (XEP-0359) and preferences (XEP-0441).
//!
//! A message is archived in the commit that also has its row in the queue, if it gets one, before its sender's
//! acknowledgement; the row is then a view of the archive. Its id there is its place in the order of the account's
//! commits; the id that others see is made of it by `ids.rs`.

mod answer;
mod ids;
mod query;
mod retention;
mod settings;
#[cfg(test)]
mod tests;
mod when;

pub use retention::Retention;

use crate::offline;
use std::sync::Arc;
use tavi_core::{
    Ev, Flow, Parts, Registry,
    hooks::{At, OnReceived, OnSent, Phase, Scope, TwoOwners, Xep},
};
use tavi_store::{Op, SharedStore};
use tavi_xmpp_proto::{Element, Jid, ns};

const XEPS: [Xep; 3] = [
    Xep { number: 313, name: "Message Archive Management", version: "1.1.3", module: "archive" },
    Xep { number: 359, name: "Unique and Stable Stanza IDs", version: "0.7.0", module: "archive" },
    Xep { number: 441, name: "Message Archive Management Preferences", version: "0.2.0", module: "archive" },
];

/// XEP-0313 §6, XEP-0359 §5.
const FEATURES: [&str; 4] = [ns::MAM, "urn:xmpp:mam:2#extended", "urn:xmpp:mam:2#groupchat-field", ns::STANZA_ID];

/// Registers it.
///
/// # Errors
/// If a payload has an owner already.
pub fn register(registry: &mut Registry, parts: &Parts) -> Result<(), TwoOwners> {
    XEPS.into_iter().for_each(|xep| registry.xep(xep));
    FEATURES.into_iter().for_each(|var| registry.feature(At::Account, var));
    registry.part::<settings::Settings>();
    registry.on_sent(Phase::Annotate, Arc::new(Forged));
    registry.on_received(Phase::Annotate, Arc::new(Forged));
    let archive = Arc::new(Archive { store: parts.store.clone() });
    registry.on_sent(Phase::Store, archive.clone());
    registry.on_received(Phase::Store, archive.clone());
    registry.handle::<query::Query>(Scope::Own, archive.clone())?;
    registry.handle::<answer::Metadata>(Scope::Own, archive.clone())?;
    registry.handle::<settings::Prefs>(Scope::Own, archive)
}

/// Takes away stanza ids that claim to be the account's (XEP-0359 §5, rule 2).
struct Forged;

impl Forged {
    fn strip(&self, ev: &mut Ev<'_>) -> Flow {
        if ev.env.has(ns::STANZA_ID, "stanza-id") {
            let own = ev.account.jid.clone();
            ev.env.drop_elements(
                |child| child.is(ns::STANZA_ID, "stanza-id"),
                |id| {
                    let by = id.get_attr("by").unwrap_or_default();
                    by == own.as_str() || Jid::parse(by).is_ok_and(|by| by.as_str() == own.as_str())
                },
            );
        }
        Flow::Continue
    }
}

impl OnSent for Forged {
    fn on_sent(&self, ev: &mut Ev<'_>) -> Flow {
        self.strip(ev)
    }
}

impl OnReceived for Forged {
    fn on_received(&self, ev: &mut Ev<'_>) -> Flow {
        self.strip(ev)
    }
}

/// The archives of accounts.
struct Archive {
    store: SharedStore,
}

impl OnSent for Archive {
    /// What one sends to oneself is archived once: when it comes.
    fn on_sent(&self, ev: &mut Ev<'_>) -> Flow {
        if let Some(to) = ev.env.to().filter(|to| to.bare() != ev.account.jid.as_str()).cloned()
            && is_wanted(ev, &to)
        {
            keep(ev, &to);
        }
        Flow::Continue
    }
}

impl OnReceived for Archive {
    fn on_received(&self, ev: &mut Ev<'_>) -> Flow {
        if let Some(from) = ev.env.from().cloned()
            && is_wanted(ev, &from)
            && let Some(id) = stanza_id(ev)
        {
            // XEP-0313 §3.4: the recipient learns under which id it is archived.
            ev.env.add_fragment(id.to_xml(ns::CLIENT).into());
            keep(ev, &from);
        }
        Flow::Continue
    }
}

/// XEP-0313 §5.1.1, XEP-0334 §4.1, §4.3: what lasts, unless its sender or the account's owner does not want it archived.
fn is_wanted(ev: &Ev<'_>, with: &Jid) -> bool {
    let archives = !matches!(ev.account.principal, tavi_core::Principal::Bot(_));
    let lasts = ev.id != 0 && offline::is_worth_keeping(ev.env) && !ev.env.has(ns::HINTS, "no-permanent-store");
    archives && lasts && settings::wants(ev.state, with)
}

fn keep(ev: &mut Ev<'_>, with: &Jid) {
    // Whatever is archived can be named.
    if settings::key_of(ev.account, ev.state, ev.fx).is_none() {
        return;
    }
    let (id, with, value) = (ev.id, with.bare().into(), ev.env.to_bytes());
    ev.ops.push(Op::Archive { id, with, value });
}

/// XEP-0359 §3: the id under which the message in hand is archived at the account whose chain it is.
fn stanza_id(ev: &mut Ev<'_>) -> Option<Element> {
    let id = settings::key_of(ev.account, ev.state, ev.fx)?.text(ev.id);
    Some(Element::new(ns::STANZA_ID, "stanza-id").attr("by", ev.account.jid.to_string()).attr("id", id))
}

/// XEP-0313 §3.4: for the copies of a sent message that the sender's other sessions get.
pub(crate) fn sent_id(ev: &mut Ev<'_>) -> Option<Element> {
    let archived = ev.ops.iter().any(|op| matches!(op, Op::Archive { id, .. } if *id == ev.id));
    if archived { stanza_id(ev) } else { None }
}
