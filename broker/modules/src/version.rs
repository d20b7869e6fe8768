//! Software Version (XEP-0092) of the server.

use crate::Xep;
use std::sync::Arc;
use tavi_core::{
    Registry,
    hooks::{BoxFuture, Handle, Iq, IqPayload, Reply, TwoOwners},
    principal::Host,
};
use tavi_xmpp_proto::{Condition, Element, Jid, StanzaError, ns};

/// The line of the table of extensions.
pub const XEP: Xep = Xep { number: 92, name: "Software Version", version: "1.1", module: "version" };

/// Registers it.
///
/// # Errors
/// If the payload has an owner already.
pub fn register(registry: &mut Registry) -> Result<(), TwoOwners> {
    registry.feature(Host::Main, ns::VERSION);
    registry.handle::<Query>(Arc::new(Answer))
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
            // The software of somebody's client is not ours to tell, and nothing can be set.
            if iq.is_set() || iq.head.to.as_ref().and_then(Jid::local).is_some() {
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
