//! Software Version (XEP-0092) of the server.

use std::sync::Arc;
use tavi_core::{
    Registry,
    hooks::{BoxFuture, Handle, Iq, IqPayload, Reply, Scope, TwoOwners, Xep},
    principal::Host,
};
use tavi_xmpp_proto::{Condition, Element, StanzaError, ns};

/// The line of the table of extensions.
const XEP: Xep = Xep { number: 92, name: "Software Version", version: "1.1", module: "version" };

/// Registers it.
///
/// # Errors
/// If the payload has an owner already.
pub fn register(registry: &mut Registry) -> Result<(), TwoOwners> {
    registry.xep(XEP);
    registry.feature(Host::Main, ns::VERSION);
    registry.handle::<Query>(Scope::Server, Arc::new(Answer))
}

struct Query;

impl IqPayload for Query {
    const NS: &'static str = ns::VERSION;
    const NAME: &'static str = "query";

    fn parse(_: &Element) -> Result<Query, StanzaError> {
        Ok(Query)
    }
}

struct Answer;

impl Handle<Query> for Answer {
    fn handle(&self, iq: Iq<Query>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            if iq.is_set() {
                return Err(Condition::ServiceUnavailable.into());
            }
            let text = |name: &'static str, text: &'static str| Element::new(ns::VERSION, name).text(text);
            let query = Element::new(ns::VERSION, "query");
            Ok(query.child(text("name", "Tavi")).child(text("version", env!("CARGO_PKG_VERSION"))).into())
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::world::World;

    #[tokio::test]
    async fn the_server_tells_what_it_is() {
        let world = World::new().await;
        let mut romeo = world.bind("romeo/orchard").await;
        romeo.sends("<iq type='get' to='localhost' id='1'><query xmlns='jabber:iq:version'/></iq>").await;
        romeo
            .sees("<iq type='result' id='1'><query xmlns='jabber:iq:version'><name>Tavi</name><version/></query></iq>");
        romeo.sends("<iq type='get' to='juliet@localhost' id='2'><query xmlns='jabber:iq:version'/></iq>").await;
        romeo.sees_error("service-unavailable");
    }
}
