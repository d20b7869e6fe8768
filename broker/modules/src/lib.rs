//! The XEPs as modules: one file each and one registry.
//!
//! [`register`] is the list of everything that the broker can do with stanzas; [`XEPS`] is the table that the
//! documents are generated from.

use tavi_core::{Node, Parts, Registry, hooks::TwoOwners};
use tavi_store::StoreError;

pub mod blocking;
pub mod carbons;
pub mod contacts;
pub mod disco;
pub mod offline;
pub mod ping;
pub mod presence;
pub mod pubsub;
pub mod roster;
pub mod subscription;
pub mod time;
pub mod version;

mod push;
#[cfg(test)]
mod tests;

/// One protocol extension that is implemented here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xep {
    /// Its number.
    pub number: u16,
    /// Its title.
    pub name: &'static str,
    /// The version that was implemented.
    pub version: &'static str,
    /// The module that implements it.
    pub module: &'static str,
}

/// The front end's: no module has to do with it, but the table is one.
const STREAM_MANAGEMENT: Xep =
    Xep { number: 198, name: "Stream Management", version: "1.6.3", module: "xmpp::session" };

/// All extensions, by number.
pub const XEPS: &[Xep] = &[
    disco::XEP,
    disco::RSM,
    pubsub::XEP,
    version::XEP,
    offline::XEP,
    blocking::XEP,
    STREAM_MANAGEMENT,
    ping::XEP,
    time::XEP,
    offline::DELAY,
    carbons::XEP,
    carbons::FORWARDING,
    offline::HINTS,
    pubsub::JSON,
];

/// Registers all modules: one line each. Inside a phase, hooks run in this order.
///
/// # Errors
/// If two modules claim the same thing, which is a mistake in this list.
pub fn register(registry: &mut Registry, parts: &Parts) -> Result<(), TwoOwners> {
    blocking::register(registry)?;
    subscription::register(registry, parts);
    presence::register(registry);
    roster::register(registry)?;
    carbons::register(registry)?;
    offline::register(registry);
    ping::register(registry)?;
    version::register(registry)?;
    time::register(registry, parts)?;
    pubsub::register(registry, parts)?;
    // Last: it tells what all others have registered.
    disco::register(registry, parts)
}

/// Takes up what modules keep in the store, such as pubsub subscriptions. Called once, before listeners open.
///
/// # Errors
/// If the store cannot be read.
pub async fn start(node: &Node) -> Result<(), StoreError> {
    node.router.registry().start().await
}
