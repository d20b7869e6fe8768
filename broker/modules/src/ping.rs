//! XMPP Ping (XEP-0199): the server answers for itself and for accounts.

use std::sync::Arc;
use tavi_core::{
    Registry,
    hooks::{BoxFuture, Handle, Iq, IqPayload, Reply, Scope, TwoOwners, Xep},
    principal::Host,
};
use tavi_xmpp_proto::{Element, StanzaError, ns};

/// The line of the table of extensions.
const XEP: Xep = Xep { number: 199, name: "XMPP Ping", version: "2.0.1", module: "ping" };

/// Registers it.
///
/// # Errors
/// If pings have an owner already.
pub fn register(registry: &mut Registry) -> Result<(), TwoOwners> {
    registry.xep(XEP);
    registry.feature(Host::Main, ns::PING);
    registry.handle::<Ping>(Scope::Server, Arc::new(Answer))?;
    // RFC 6121 §8.5.1: of somebody else nothing is told, not even whether there is such an account.
    registry.handle::<Ping>(Scope::Own, Arc::new(Answer))
}

/// `<ping/>`, XEP-0199 §4.1.
struct Ping;

impl IqPayload for Ping {
    const NS: &'static str = ns::PING;
    const NAME: &'static str = "ping";

    fn parse(_: &Element) -> Result<Ping, StanzaError> {
        Ok(Ping)
    }
}

struct Answer;

impl Handle<Ping> for Answer {
    fn handle(&self, _: Iq<Ping>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(std::future::ready(Ok(Reply::default())))
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::world::World;

    #[tokio::test]
    async fn the_server_answers_a_ping() {
        let world = World::new().await;
        let mut romeo = world.bind("romeo/orchard").await;
        romeo.sends("<iq type='get' to='localhost' id='1'><ping xmlns='urn:xmpp:ping'/></iq>").await;
        romeo.sees("<iq type='result' from='localhost' to='romeo@localhost/orchard' id='1'/>");
        romeo.sends("<iq type='get' id='2'><ping xmlns='urn:xmpp:ping'/></iq>").await;
        romeo.sees("<iq type='result' id='2'/>");
        for to in ["juliet@localhost", "nobody@localhost"] {
            romeo.sends(&format!("<iq type='get' to='{to}' id='3'><ping xmlns='urn:xmpp:ping'/></iq>")).await;
            romeo.sees_error("service-unavailable");
        }
    }

    #[tokio::test]
    async fn an_unknown_question_is_refused() {
        let world = World::new().await;
        let mut romeo = world.bind("romeo/orchard").await;
        romeo.sends("<iq type='get' to='localhost' id='1'><odd xmlns='urn:example:odd'/></iq>").await;
        romeo.sees_error("service-unavailable");
    }
}
