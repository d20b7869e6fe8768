//! The roster (RFC 6121 §2): get, set, remove, and pushes to the sessions that asked for it.

use crate::{contacts, contacts::contacts, push::Book, subscription};
use std::sync::Arc;
use tavi_core::{
    Account, Registry,
    hooks::{BoxFuture, Handle, Iq, IqPayload, Reply, Scope, TwoOwners},
};
use tavi_xmpp_proto::{BareJid, Condition, Element, StanzaError, ns};

/// RFC 6121 §2.3.3 lets the server bound names and groups: bytes.
const MAX_TEXT: usize = 1023;
/// Contacts of one account.
pub(crate) const MAX_CONTACTS: usize = 10_000;
/// Groups of one contact.
const MAX_GROUPS: usize = 64;

/// Registers it.
///
/// # Errors
/// If the payload has an owner already.
pub fn register(registry: &mut Registry) -> Result<(), TwoOwners> {
    registry.part::<contacts::Roster>();
    registry.handle::<Query>(Scope::Own, Arc::new(Roster))
}

/// `<query xmlns='jabber:iq:roster'/>`, RFC 6121 §2.1.
struct Query(Vec<Element>);

impl IqPayload for Query {
    const NS: &'static str = ns::ROSTER;
    const NAME: &'static str = "query";

    fn parse(element: &Element) -> Result<Query, StanzaError> {
        Ok(Query(element.elements().filter(|child| child.is(ns::ROSTER, "item")).cloned().collect()))
    }
}

struct Roster;

impl Handle<Query> for Roster {
    fn handle(&self, iq: Iq<Query>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            let account = iq.account()?;
            if iq.is_set() { set(account, &iq.payload.0) } else { Ok(get(account, &iq)) }
        })
    }

    /// RFC 6121 §2.3.3.
    fn not_yours(&self) -> StanzaError {
        Condition::Forbidden.into()
    }
}

/// RFC 6121 §2.2: who asks for the roster gets pushes from now on.
fn get(account: &Account, iq: &Iq<Query>) -> Reply {
    account.at_home(|state| {
        if let Some(session) = iq.from().and_then(|from| state.session_at(from)) {
            session.interested = true;
        }
        let listed = contacts(state).iter().filter(|(_, contact)| contact.listed());
        let mut items: Vec<_> = listed.map(|(jid, contact)| (jid, contact.to_item(jid))).collect();
        items.sort_by_key(|(jid, _)| *jid);
        let items = items.into_iter().map(|(_, item)| item).collect::<Vec<_>>();
        Element::new(ns::ROSTER, "query").children(items).into()
    })
}

fn set(account: &Arc<Account>, items: &[Element]) -> Result<Reply, StanzaError> {
    // RFC 6121 §2.1.5: exactly one item.
    let [item] = items else { return Err(bad("a roster set has exactly one item")) };
    let jid = item.get_attr("jid").ok_or_else(|| bad("the item needs a jid"))?;
    let jid: BareJid = jid.parse().map_err(|_| StanzaError::new(Condition::JidMalformed))?;
    if item.get_attr("subscription") == Some("remove") {
        return remove(account, &jid);
    }
    check(item)?;
    let mut reply = Reply::default();
    account.at_home(|state| {
        if contacts(state).get(&jid).is_none() && contacts(state).len() >= MAX_CONTACTS {
            return Err(StanzaError::new(Condition::ResourceConstraint).text("the roster is full"));
        }
        Book { account, state, fx: &mut reply.fx }.change(&jid, |contact| {
            // RFC 6121 §2.1.2: all other attributes are the server's.
            contact.take_item(item);
            contact.added = true;
        });
        Ok(())
    })?;
    Ok(reply)
}

/// RFC 6121 §2.5: the subscriptions end, then the item goes.
fn remove(account: &Arc<Account>, jid: &BareJid) -> Result<Reply, StanzaError> {
    let mut reply = Reply::default();
    account.at_home(|state| {
        if !contacts(state).get(jid).is_some_and(|contact| contact.listed()) {
            return Err(StanzaError::from(Condition::ItemNotFound));
        }
        subscription::end_both(account, state, jid, &mut reply.fx);
        Book { account, state, fx: &mut reply.fx }.remove(jid);
        Ok(())
    })?;
    Ok(reply)
}

/// RFC 6121 §2.3.3.
fn check(item: &Element) -> Result<(), StanzaError> {
    let groups: Vec<String> =
        item.elements().filter(|child| child.is(ns::ROSTER, "group")).map(Element::text_content).collect();
    let name = item.get_attr("name").unwrap_or_default();
    if name.len() > MAX_TEXT || groups.len() > MAX_GROUPS || groups.iter().any(|g| g.is_empty() || g.len() > MAX_TEXT) {
        return Err(
            StanzaError::new(Condition::NotAcceptable).text("a name or group is too long, or a group has no name")
        );
    }
    let mut sorted = groups;
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(bad("a group stands twice"));
    }
    Ok(())
}

fn bad(text: &'static str) -> StanzaError {
    StanzaError::new(Condition::BadRequest).text(text)
}

#[cfg(test)]
mod tests {
    use crate::tests::world::World;

    const GET: &str = "<iq type='get' id='get'><query xmlns='jabber:iq:roster'/></iq>";

    #[tokio::test]
    async fn a_contact_is_added_changed_and_removed_and_all_interested_sessions_hear_of_it() {
        let world = World::new().await;
        let mut orchard = world.bind("romeo/orchard").await;
        let mut home = world.bind("romeo/home").await;
        let mut deaf = world.bind("romeo/deaf").await;
        for session in [&mut orchard, &mut home] {
            session.sends(GET).await;
            session.sees("<iq type='result' id='get'><query xmlns='jabber:iq:roster'/></iq>");
        }
        let set = "<iq type='set' id='a'><query xmlns='jabber:iq:roster'>
            <item jid='nurse@localhost' name='Nurse' subscription='both'><group>Servants</group></item></query></iq>";
        orchard.sends(set).await;
        let push = "<iq type='set' from='romeo@localhost'><query xmlns='jabber:iq:roster'>
            <item jid='nurse@localhost' name='Nurse' subscription='none'><group>Servants</group></item></query></iq>";
        orchard.sees(push);
        orchard.sees("<iq type='result' id='a'/>");
        home.sees(push);
        deaf.sees_nothing();

        let world = world.restart().await;
        let mut orchard = world.bind("romeo/orchard").await;
        orchard.sends(GET).await;
        orchard.sees(
            "<iq type='result'><query xmlns='jabber:iq:roster'><item jid='nurse@localhost' name='Nurse'/></query></iq>",
        );
        let remove = "<iq type='set' id='r'><query xmlns='jabber:iq:roster'><item jid='nurse@localhost' subscription='remove'/></query></iq>";
        orchard.sends(remove).await;
        orchard.sees("<iq type='set'><query xmlns='jabber:iq:roster'><item jid='nurse@localhost' subscription='remove'/></query></iq>");
        orchard.sees("<iq type='result' id='r'/>");
        orchard.sends(remove).await;
        orchard.sees_error("item-not-found");
    }

    #[tokio::test]
    async fn what_is_no_proper_item_is_refused() {
        let world = World::new().await;
        let mut romeo = world.bind("romeo/orchard").await;
        let cases = [
            ("", "bad-request"),
            ("<item jid='a@x'/><item jid='b@x'/>", "bad-request"),
            ("<item/>", "bad-request"),
            ("<item jid='@'/>", "jid-malformed"),
            ("<item jid='a@x'><group/></item>", "not-acceptable"),
            ("<item jid='a@x'><group>g</group><group>g</group></item>", "bad-request"),
        ];
        for (items, condition) in cases {
            romeo.sends(&format!("<iq type='set' id='1'><query xmlns='jabber:iq:roster'>{items}</query></iq>")).await;
            romeo.sees_error(condition);
        }
    }

    #[tokio::test]
    async fn nobody_reads_or_writes_another_s_roster() {
        let world = World::new().await;
        let _juliet = world.bind("juliet/balcony").await;
        let mut romeo = world.bind("romeo/orchard").await;
        romeo.sends("<iq type='get' to='juliet@localhost' id='1'><query xmlns='jabber:iq:roster'/></iq>").await;
        romeo.sees_error("forbidden");
        romeo.sends("<iq type='set' to='juliet@localhost' id='1'><query xmlns='jabber:iq:roster'><item jid='a@x'/></query></iq>").await;
        romeo.sees_error("forbidden");
    }
}
