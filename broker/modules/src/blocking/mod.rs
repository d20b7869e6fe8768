//! Blocking Command (XEP-0191): with whom an account does not want to have to do. They find nobody there, and hear nothing.

mod list;
#[cfg(test)]
mod tests;

pub use list::{BlockList, block_list};

use crate::{
    presence::{self, Others},
    push,
};
use std::sync::Arc;
use tavi_core::{
    Account, AccountState, Effects, Envelope, Ev, Flow, Origin, Registry,
    hooks::{BoxFuture, Handle, Iq, IqPayload, OnReceived, OnSent, Phase, Reply, Scope, TwoOwners, Xep},
    principal::Host,
};
use tavi_store::Op;
use tavi_xmpp_proto::{
    Condition, Element, Jid, MessageType, Stanza, StanzaError, StanzaType,
    error::ErrorType,
    ns,
    stanza::{Head, IqType},
};

/// The line of the table of extensions.
const XEP: Xep = Xep { number: 191, name: "Blocking Command", version: "1.3", module: "blocking" };

/// Addresses in one block list.
const MAX_BLOCKED: usize = 1000;

/// Registers it. Comes first: what is blocked is nobody else's business.
///
/// # Errors
/// If a payload has an owner already.
pub fn register(registry: &mut Registry) -> Result<(), TwoOwners> {
    registry.xep(XEP);
    registry.feature(Host::Main, ns::BLOCKING);
    registry.feature(Host::Things, ns::BLOCKING);
    registry.part::<BlockList>();
    registry.on_sent(Phase::Filter, Arc::new(Blocking));
    registry.on_received(Phase::Filter, Arc::new(Blocking));
    registry.handle::<Get>(Scope::Own, Arc::new(Blocking))?;
    registry.handle::<Block>(Scope::Own, Arc::new(Blocking))?;
    registry.handle::<Unblock>(Scope::Own, Arc::new(Blocking))
}

struct Blocking;

impl OnSent for Blocking {
    /// XEP-0191 §3.3: nothing goes to whom one has blocked.
    fn on_sent(&self, ev: &mut Ev<'_>) -> Flow {
        let blocked = ev.env.to().is_some_and(|to| block_list(ev.state).covers(to));
        // What the broker does in somebody's name, such as ending the subscriptions of an account that is removed, is done.
        if !blocked || is_of_broker(ev.env) {
            return Flow::Continue;
        }
        let blocked = Element::new(ns::BLOCKING_ERRORS, "blocked");
        // The type is that of the XEP's example: trying again is of no use.
        let error = StanzaError::new(Condition::NotAcceptable).with_type(ErrorType::Cancel).specific(blocked);
        Flow::Refuse(error.text("you have blocked this address"))
    }
}

impl OnReceived for Blocking {
    fn on_received(&self, ev: &mut Ev<'_>) -> Flow {
        let blocked = ev.env.from().is_some_and(|from| block_list(ev.state).covers(from));
        if blocked && !is_refusal(ev.env) { absent(ev.env) } else { Flow::Continue }
    }
}

/// The broker's word on what one has sent: it bears the address to which that was sent.
fn is_refusal(env: &Envelope) -> bool {
    is_of_broker(env) && env.head().type_.is_error()
}

/// Whether no session sent it, nor a bot.
fn is_of_broker(env: &Envelope) -> bool {
    env.meta.origin == Origin::Broker && env.meta.sender == 0
}

/// XEP-0191 §3.3: as if there were no such account. Results and errors are never answered.
fn absent(env: &Envelope) -> Flow {
    match env.head().type_ {
        StanzaType::Presence(_) | StanzaType::Message(MessageType::Headline) => Flow::Stop,
        _ => Flow::Refuse(Condition::ServiceUnavailable.into()),
    }
}

/// `<blocklist/>`, XEP-0191 §3.2.
struct Get;
/// `<block/>`, XEP-0191 §3.3.
struct Block(Vec<Jid>);
/// `<unblock/>`, XEP-0191 §3.4; without addresses all are meant (§3.5).
struct Unblock(Vec<Jid>);

impl IqPayload for Get {
    const NS: &'static str = ns::BLOCKING;
    const NAME: &'static str = "blocklist";

    fn parse(_: &Element) -> Result<Get, StanzaError> {
        Ok(Get)
    }
}

impl IqPayload for Block {
    const NS: &'static str = ns::BLOCKING;
    const NAME: &'static str = "block";

    fn parse(element: &Element) -> Result<Block, StanzaError> {
        match addresses(element)? {
            none if none.is_empty() => Err(bad("there is nobody to be blocked: no item")),
            addresses => Ok(Block(addresses)),
        }
    }
}

impl IqPayload for Unblock {
    const NS: &'static str = ns::BLOCKING;
    const NAME: &'static str = "unblock";

    fn parse(element: &Element) -> Result<Unblock, StanzaError> {
        addresses(element).map(Unblock)
    }
}

fn addresses(element: &Element) -> Result<Vec<Jid>, StanzaError> {
    let items = element.elements().filter(|child| child.is(ns::BLOCKING, "item"));
    items
        .map(|item| {
            let jid = item.get_attr("jid").ok_or_else(|| bad("an item needs a jid"))?;
            jid.parse().map_err(|_| StanzaError::new(Condition::JidMalformed))
        })
        .collect()
}

fn bad(text: &'static str) -> StanzaError {
    StanzaError::new(Condition::BadRequest).text(text)
}

/// A list is its owner's alone, and is asked for with the right type.
fn own<T>(iq: &Iq<T>, type_: IqType) -> Result<&Arc<Account>, StanzaError> {
    let account = iq.account()?;
    if iq.is_set() == (type_ == IqType::Set) { Ok(account) } else { Err(bad("the type is the wrong one")) }
}

impl Handle<Get> for Blocking {
    fn handle(&self, iq: Iq<Get>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            let account = own(&iq, IqType::Get)?;
            Ok(account.at_home(|state| {
                // XEP-0191 §3.3: who asked for the list hears of its changes.
                if let Some(session) = iq.from().and_then(|from| state.session_at(from)) {
                    session.marks.set(ns::BLOCKING);
                }
                listing("blocklist", block_list(state).iter()).into()
            }))
        })
    }
}

impl Handle<Block> for Blocking {
    fn handle(&self, iq: Iq<Block>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            let account = own(&iq, IqType::Set)?;
            let mut fx = Effects::default();
            account.at_home(|state| block(Shut { account, state, fx: &mut fx }, &iq.payload.0))?;
            Ok(Reply { payload: None, fx })
        })
    }
}

impl Handle<Unblock> for Blocking {
    fn handle(&self, iq: Iq<Unblock>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            let account = own(&iq, IqType::Set)?;
            let mut fx = Effects::default();
            account.at_home(|state| unblock(Shut { account, state, fx: &mut fx }, &iq.payload.0));
            Ok(Reply { payload: None, fx })
        })
    }
}

/// A locked account whose block list changes.
struct Shut<'a> {
    account: &'a Arc<Account>,
    state: &'a mut AccountState,
    fx: &'a mut Effects,
}

fn block(mut of: Shut<'_>, jids: &[Jid]) -> Result<(), StanzaError> {
    let before = block_list(of.state).clone();
    let list = of.state.part_mut::<BlockList>();
    let ops: Vec<Op> = jids.iter().filter_map(|jid| list.add(jid)).collect();
    if list.len() > MAX_BLOCKED && !ops.is_empty() {
        *list = before;
        let text = format!("a block list has at most {MAX_BLOCKED} addresses");
        return Err(StanzaError::new(Condition::ResourceConstraint).with_type(ErrorType::Cancel).text(text));
    }
    of.save(ops);
    of.push(&listing("block", jids.iter().map(Jid::as_str)));
    let after = block_list(of.state).clone();
    let are = |jid: &Jid| after.covers(jid) && !before.covers(jid);
    presence::vanish(of.state, &Others { named: jids, are: &are }, of.fx);
    Ok(())
}

fn unblock(mut of: Shut<'_>, jids: &[Jid]) {
    let before = block_list(of.state).clone();
    let named: Vec<&str> =
        if jids.is_empty() { before.iter().collect() } else { jids.iter().map(Jid::as_str).collect() };
    let list = of.state.part_mut::<BlockList>();
    let ops: Vec<Op> = named.iter().filter_map(|jid| list.remove(jid)).collect();
    of.save(ops);
    of.push(&listing("unblock", jids.iter().map(Jid::as_str)));
    let named: Vec<Jid> = named.iter().filter_map(|jid| jid.parse().ok()).collect();
    let are = |jid: &Jid| before.covers(jid) && !block_list(of.state).covers(jid);
    presence::reappear(of.state, &Others { named: &named, are: &are }, of.fx);
}

impl Shut<'_> {
    /// Before anybody hears of it.
    fn save(&mut self, ops: Vec<Op>) {
        if !ops.is_empty() {
            self.fx.save_now(self.account, self.state, ops);
        }
    }

    /// XEP-0191 §3.3, §3.4: to all sessions that asked for the list.
    fn push(&mut self, change: &Element) {
        for session in self.state.sessions.iter().filter(|session| session.marks.has(ns::BLOCKING)) {
            let head = Head::iq(IqType::Set, &push::id()).from(&self.account.jid).to(session.jid.clone());
            self.fx.deliver(session, Stanza::new(head, [change.clone()]));
        }
    }
}

fn listing<'a>(name: &'static str, jids: impl Iterator<Item = &'a str>) -> Element {
    let items = jids.map(|jid| Element::new(ns::BLOCKING, "item").attr("jid", jid.to_owned()));
    Element::new(ns::BLOCKING, name).children(items)
}
