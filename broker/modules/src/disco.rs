//! Service Discovery (XEP-0030): what the server, its hosts, accounts and bots are and can do.

use crate::{contacts::contacts, personal};
use std::sync::Arc;
use tavi_core::{
    Account, Parts, Principal, Registry,
    hooks::{At, BoxFuture, Feature, Handle, Identity, Iq, IqPayload, Reply, Scope, TwoOwners, Xep},
    principal::Host,
};
use tavi_xmpp_proto::{Condition, Element, StanzaError, ns};

/// The line of the table of extensions.
const XEP: Xep = Xep { number: 30, name: "Service Discovery", version: "2.5.0", module: "disco" };

/// Items in one answer.
const MAX_ITEMS: usize = 1000;

/// Registers it. Call it last: it answers with the features that are registered by then.
///
/// # Errors
/// If a payload has an owner already.
pub fn register(registry: &mut Registry, parts: &Parts) -> Result<(), TwoOwners> {
    registry.xep(XEP);
    for host in Host::OWN {
        registry.feature(host, ns::DISCO_INFO);
        registry.feature(host, ns::DISCO_ITEMS);
    }
    for var in [ns::DISCO_INFO, ns::DISCO_ITEMS] {
        registry.feature(At::Account, var);
    }
    let (features, identities) = (registry.features().to_vec(), registry.identities().to_vec());
    let disco = Arc::new(Disco { features, identities, parts: parts.clone() });
    for scope in [Scope::Server, Scope::Account] {
        registry.handle::<Info>(scope, disco.clone())?;
        registry.handle::<Items>(scope, disco.clone())?;
    }
    Ok(())
}

/// XEP-0030 §3.1.
struct Info(Option<String>);
/// XEP-0030 §4.1.
struct Items(Option<String>);

impl IqPayload for Info {
    const NS: &'static str = ns::DISCO_INFO;
    const NAME: &'static str = "query";

    fn parse(element: &Element) -> Result<Info, StanzaError> {
        Ok(Info(element.get_attr("node").map(str::to_owned)))
    }
}

impl IqPayload for Items {
    const NS: &'static str = ns::DISCO_ITEMS;
    const NAME: &'static str = "query";

    fn parse(element: &Element) -> Result<Items, StanzaError> {
        Ok(Items(element.get_attr("node").map(str::to_owned)))
    }
}

struct Disco {
    features: Vec<Feature>,
    identities: Vec<Identity>,
    parts: Parts,
}

impl Handle<Info> for Disco {
    fn handle(&self, iq: Iq<Info>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            expect_get(&iq)?;
            let node = self.node(&iq, iq.payload.0.as_deref()).await?;
            if let Some((name, _)) = node {
                // XEP-0060 §5.3.
                let leaf = info([plain_identity("pubsub", "leaf")], [ns::PUBSUB, ns::DISCO_INFO, ns::DISCO_ITEMS]);
                return Ok(leaf.attr("node", name).into());
            }
            // XEP-0030 §8: who may not look is told as much as if there were nobody.
            let asked = self.asked(&iq).ok_or(Condition::ServiceUnavailable)?;
            // XEP-0030 §7: there are no other nodes here.
            if iq.payload.0.is_some() {
                return Err(Condition::ItemNotFound.into());
            }
            let query = match asked {
                Asked::Host(host) => self.host_info(host),
                Asked::Account(account) => self.account_info(account),
            };
            Ok(query.into())
        })
    }
}

impl Handle<Items> for Disco {
    fn handle(&self, iq: Iq<Items>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            expect_get(&iq)?;
            if let Some((name, ids)) = self.node(&iq, iq.payload.0.as_deref()).await? {
                // XEP-0060 §5.5.
                let items = ids.into_iter().map(|id| self.own_item(&iq).attr("name", id));
                return Ok(Element::new(ns::DISCO_ITEMS, "query").attr("node", name).children(items).into());
            }
            let Some(asked) = self.asked(&iq) else { return self.open_nodes(iq).await };
            if iq.payload.0.is_some() {
                return Err(Condition::ItemNotFound.into());
            }
            let items = match asked {
                Asked::Host(Host::Main) => {
                    let hosts = [(crate::PUBSUB, "Topics"), (crate::ROOMS, "Rooms"), (Host::Bots, "Bots")];
                    hosts.map(|(host, name)| item(self.parts.hosts.name(host), name)).into()
                }
                Asked::Host(Host::Bots) => {
                    self.parts.homes.bots(None, MAX_ITEMS).iter().map(|jid| bare_item(jid.as_str())).collect()
                }
                Asked::Host(_) => Vec::new(),
                Asked::Account(account) => {
                    let nodes = self.nodes(&iq).await?;
                    resources(account).into_iter().chain(nodes).collect()
                }
            };
            Ok(Element::new(ns::DISCO_ITEMS, "query").children(items).into())
        })
    }

    /// XEP-0030 §8: an account that is closed to the asker, or not there at all, has an empty list.
    fn nobody(&self, iq: Iq<Items>) -> Result<Reply, StanzaError> {
        expect_get(&iq)?;
        Ok(nothing(iq))
    }
}

fn nothing(iq: Iq<Items>) -> Reply {
    Element::new(ns::DISCO_ITEMS, "query").attr_opt("node", iq.payload.0).into()
}

/// Who is asked about.
enum Asked<'a> {
    Host(Host),
    Account(&'a Account),
}

impl Disco {
    /// `None`: an account that is closed to the asker.
    fn asked<'a, T>(&self, iq: &'a Iq<T>) -> Option<Asked<'a>> {
        let host = iq.head.to.as_ref().filter(|to| to.local().is_none());
        if let Some(host) = host {
            return self.parts.hosts.find(host.domain()).map(Asked::Host);
        }
        let (account, from) = (iq.account.as_ref()?, iq.from()?.to_bare());
        // XEP-0030 §8: accounts tell about themselves only to who may see their presence; bots to everybody.
        let open = account.jid == from
            || matches!(account.principal, Principal::Bot(_))
            || account.at_home(|state| contacts(state).get(&from).is_some_and(|contact| contact.subscription.from));
        open.then_some(Asked::Account(account))
    }

    /// A personal node that the asker may see, with the ids of its items.
    async fn node<T>(&self, iq: &Iq<T>, name: Option<&str>) -> Result<Option<(String, Vec<String>)>, StanzaError> {
        let Some((account, name)) = account_of(iq).zip(name) else { return Ok(None) };
        let asker = iq.from().ok_or(Condition::BadRequest)?.to_bare();
        let ids = personal::item_ids(&self.parts.store, account, &asker, name).await?;
        Ok(ids.map(|ids| (name.to_owned(), ids)))
    }

    /// The personal nodes that the asker may see (XEP-0060 §5.2).
    async fn nodes<T>(&self, iq: &Iq<T>) -> Result<Vec<Element>, StanzaError> {
        let Some(account) = account_of(iq) else { return Ok(Vec::new()) };
        let asker = iq.from().ok_or(Condition::BadRequest)?.to_bare();
        let names = personal::names(&self.parts.store, account, &asker).await?;
        Ok(names.into_iter().map(|name| self.own_item(iq).attr("node", name)).collect())
    }

    /// XEP-0030 §8: of an account that is closed to the asker he sees as much as of none, but for what is open to all.
    async fn open_nodes(&self, iq: Iq<Items>) -> Result<Reply, StanzaError> {
        if iq.payload.0.is_some() {
            return Ok(nothing(iq));
        }
        let nodes = self.nodes(&iq).await?;
        Ok(Element::new(ns::DISCO_ITEMS, "query").children(nodes).into())
    }

    fn own_item<T>(&self, iq: &Iq<T>) -> Element {
        bare_item(account_of(iq).map_or("", |account| account.jid.as_str()))
    }

    fn host_info(&self, host: Host) -> Element {
        let own = match host {
            Host::Main => identity("server", "im", "Tavi"),
            Host::Bots => identity("component", "generic", "Bots"),
            _ => identity("component", "generic", "Devices"),
        };
        self.info_of(host.into(), own)
    }

    fn account_info(&self, account: &Account) -> Element {
        let own = match account.principal {
            Principal::Bot(_) => identity("client", "bot", account.jid.local().unwrap_or_default()),
            // XEP-0030 §8.
            _ => plain_identity("account", "registered"),
        };
        self.info_of(At::Account, own)
    }

    fn info_of(&self, at: At, own: Element) -> Element {
        let others = self.identities.iter().filter(|other| other.at == at).map(|other| {
            let element = Element::new(ns::DISCO_INFO, "identity").attr("category", other.category);
            element.attr("type", other.type_).attr_opt("name", other.name.map(str::to_owned))
        });
        let vars = self.features.iter().filter(|feature| feature.at == at).map(|feature| feature.var);
        info([own].into_iter().chain(others), vars)
    }
}

/// The account that is asked, not the server.
fn account_of<T>(iq: &Iq<T>) -> Option<&Arc<Account>> {
    let is_server = iq.head.to.as_ref().is_some_and(|to| to.local().is_none());
    iq.account.as_ref().filter(|_| !is_server)
}

/// XEP-0030 §8: the resources that are there.
fn resources(account: &Account) -> Vec<Element> {
    account.at_home(|state| state.available().map(|session| bare_item(session.jid.as_str())).collect())
}

fn expect_get<T>(iq: &Iq<T>) -> Result<(), StanzaError> {
    if iq.is_set() { Err(Condition::FeatureNotImplemented.into()) } else { Ok(()) }
}

/// The answer of XEP-0030 §3.1.
pub(crate) fn info(
    identities: impl IntoIterator<Item = Element>,
    vars: impl IntoIterator<Item = &'static str>,
) -> Element {
    let features = vars.into_iter().map(|var| Element::new(ns::DISCO_INFO, "feature").attr("var", var));
    Element::new(ns::DISCO_INFO, "query").children(identities).children(features)
}

pub(crate) fn identity(category: &'static str, type_: &'static str, name: &str) -> Element {
    plain_identity(category, type_).attr("name", name.to_owned())
}

fn plain_identity(category: &'static str, type_: &'static str) -> Element {
    Element::new(ns::DISCO_INFO, "identity").attr("category", category).attr("type", type_)
}

pub(crate) fn item(jid: &str, name: &str) -> Element {
    bare_item(jid).attr("name", name.to_owned())
}

fn bare_item(jid: &str) -> Element {
    Element::new(ns::DISCO_ITEMS, "item").attr("jid", jid.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::tests::world::World;

    const INFO: &str = "<query xmlns='http://jabber.org/protocol/disco#info'/>";
    const ITEMS: &str = "<query xmlns='http://jabber.org/protocol/disco#items'/>";

    #[tokio::test]
    async fn the_server_tells_what_it_can_do_and_where_its_services_are() {
        let world = World::new().await;
        let mut romeo = world.bind("romeo/orchard").await;
        romeo.sends(&format!("<iq type='get' to='localhost' id='1'>{INFO}</iq>")).await;
        let seen = romeo.sees(
            "<iq type='result' id='1'><query xmlns='http://jabber.org/protocol/disco#info'>
             <identity category='server' type='im'/><feature var='urn:xmpp:ping'/><feature var='urn:xmpp:carbons:2'/>
             <feature var='msgoffline'/><feature var='http://jabber.org/protocol/disco#info'/></query></iq>",
        );
        assert!(!seen.contains("pubsub#publish"), "that is the service's: {seen}");
        romeo.sends(&format!("<iq type='get' to='localhost' id='2'>{ITEMS}</iq>")).await;
        romeo.sees("<iq id='2'><query xmlns='http://jabber.org/protocol/disco#items'><item jid='pubsub.localhost'/><item jid='bots.localhost'/></query></iq>");
    }

    #[tokio::test]
    async fn an_account_tells_its_friends_and_nobody_else() {
        let world = World::new().await;
        let (mut romeo, _juliet) = world.friends().await;
        let mut paris = world.online("paris/street").await;
        let ask = format!("<iq type='get' to='juliet@localhost' id='1'>{INFO}</iq>");
        romeo.sends(&ask).await;
        romeo.sees("<iq id='1'><query xmlns='http://jabber.org/protocol/disco#info'><identity category='account' type='registered'/></query></iq>");
        romeo.sends(&format!("<iq type='get' to='juliet@localhost' id='2'>{ITEMS}</iq>")).await;
        romeo.sees("<iq id='2'><query xmlns='http://jabber.org/protocol/disco#items'><item jid='juliet@localhost/balcony'/></query></iq>");
        paris.sends(&ask).await;
        paris.sees_error("service-unavailable");
        paris.sends(&ask.replace("juliet", "nobody")).await;
        paris.sees_error("service-unavailable");
        for who in ["juliet", "nobody"] {
            let with_node = INFO.replace("/>", " node='n'/>");
            paris.sends(&format!("<iq type='get' to='{who}@localhost' id='3'>{with_node}</iq>")).await;
            paris.sees_error("service-unavailable");
            paris.sends(&format!("<iq type='get' to='{who}@localhost' id='4'>{ITEMS}</iq>")).await;
            let seen = paris.sees("<iq type='result' id='4'/>");
            assert!(!seen.contains("<item"), "{seen}");
        }
    }

    #[tokio::test]
    async fn bots_are_listed_and_say_that_they_are_bots() {
        let world = World::new().await;
        let _bot = world.bot("pump").await;
        let mut romeo = world.bind("romeo/orchard").await;
        romeo.sends(&format!("<iq type='get' to='bots.localhost' id='1'>{ITEMS}</iq>")).await;
        romeo.sees("<iq id='1'><query xmlns='http://jabber.org/protocol/disco#items'><item jid='pump@bots.localhost'/></query></iq>");
        romeo.sends(&format!("<iq type='get' to='pump@bots.localhost' id='2'>{INFO}</iq>")).await;
        romeo.sees("<iq id='2'><query xmlns='http://jabber.org/protocol/disco#info'><identity category='client' type='bot' name='pump'/></query></iq>");
    }
}
