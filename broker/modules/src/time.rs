//! Entity Time (XEP-0202) of the server.

use std::sync::Arc;
use tavi_core::{
    Clock, Parts, Registry,
    clock::xmpp_time,
    hooks::{BoxFuture, Handle, Iq, IqPayload, Reply, Scope, TwoOwners, Xep},
    principal::Host,
};
use tavi_xmpp_proto::{Condition, Element, StanzaError, ns};

/// The line of the table of extensions.
const XEP: Xep = Xep { number: 202, name: "Entity Time", version: "2.0", module: "time" };

/// Registers it.
///
/// # Errors
/// If the payload has an owner already.
pub fn register(registry: &mut Registry, parts: &Parts) -> Result<(), TwoOwners> {
    registry.xep(XEP);
    registry.feature(Host::Main, ns::TIME);
    registry.handle::<Query>(Scope::Server, Arc::new(Answer(parts.clock.clone())))
}

struct Query;

impl IqPayload for Query {
    const NS: &'static str = ns::TIME;
    const NAME: &'static str = "time";

    fn parse(_: &Element) -> Result<Query, StanzaError> {
        Ok(Query)
    }
}

struct Answer(Arc<dyn Clock>);

impl Handle<Query> for Answer {
    fn handle(&self, iq: Iq<Query>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            if iq.is_set() {
                return Err(Condition::ServiceUnavailable.into());
            }
            // XEP-0202 §3: the zone apart from the time, which is in UTC. A server has no zone of its own.
            let zone = Element::new(ns::TIME, "tzo").text("+00:00");
            let utc = Element::new(ns::TIME, "utc").text(xmpp_time(self.0.now_ms()));
            Ok(Element::new(ns::TIME, "time").child(zone).child(utc).into())
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::world::World;

    #[tokio::test]
    async fn the_server_tells_the_time() {
        let world = World::new().await;
        let mut romeo = world.bind("romeo/orchard").await;
        romeo.sends("<iq type='get' to='localhost' id='1'><time xmlns='urn:xmpp:time'/></iq>").await;
        romeo.sees("<iq id='1'><time xmlns='urn:xmpp:time'><utc>2026-11-22T15:00:00.000Z</utc></time></iq>");
    }
}
