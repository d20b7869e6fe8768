//! Service Discovery (XEP-0030): what the server, its hosts, accounts and bots are and can do.

use crate::contacts::contacts;
use std::sync::Arc;
use tavi_core::{
    Account, Homes, Hosts, Parts, Principal, Registry,
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
    let disco = Arc::new(Disco { features, identities, hosts: parts.hosts.clone(), homes: parts.homes.clone() });
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
    hosts: Arc<Hosts>,
    homes: Arc<Homes>,
}

impl Handle<Info> for Disco {
    fn handle(&self, iq: Iq<Info>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            expect_get(&iq)?;
            // XEP-0030 §8: who may not look is told as much as if there were nobody.
            let asked = self.asked(&iq).ok_or(Condition::ServiceUnavailable)?;
            // XEP-0030 §7: there are no nodes here.
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
            let Some(asked) = self.asked(&iq) else { return Ok(nothing(iq)) };
            if iq.payload.0.is_some() {
                return Err(Condition::ItemNotFound.into());
            }
            let items = match asked {
                Asked::Host(Host::Main) => {
                    let hosts = [(crate::PUBSUB, "Topics"), (crate::ROOMS, "Rooms"), (Host::Bots, "Bots")];
                    hosts.map(|(host, name)| item(self.hosts.name(host), name)).into()
                }
                Asked::Host(Host::Bots) => {
                    self.homes.bots(None, MAX_ITEMS).iter().map(|jid| bare_item(jid.as_str())).collect()
                }
                Asked::Host(_) => Vec::new(),
                Asked::Account(account) => resources(account),
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
            return self.hosts.find(host.domain()).map(Asked::Host);
        }
        let (account, from) = (iq.account.as_ref()?, iq.from()?.to_bare());
        // XEP-0030 §8: accounts tell about themselves only to who may see their presence; bots to everybody.
        let open = account.jid == from
            || matches!(account.principal, Principal::Bot(_))
            || account.at_home(|state| contacts(state).get(&from).is_some_and(|contact| contact.subscription.from));
        open.then_some(Asked::Account(account))
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
            _ => Element::new(ns::DISCO_INFO, "identity").attr("category", "account").attr("type", "registered"),
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
    let identity = Element::new(ns::DISCO_INFO, "identity").attr("category", category).attr("type", type_);
    identity.attr("name", name.to_owned())
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
