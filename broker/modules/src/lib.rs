//! The XEPs as modules: one file each and one registry.
//!
//! [`register`] is the list of everything that the broker can do with stanzas. What modules register is also what service
//! discovery, the table of extensions in the documents and the DOAP file tell.

use tavi_core::{
    Host, Node, Parts, Registry,
    hooks::{TwoOwners, Xep},
};
use tavi_store::StoreError;

pub mod archive;
pub mod blocking;
pub mod capabilities;
pub mod carbons;
pub mod contacts;
pub mod disco;
pub mod offline;
pub mod personal;
pub mod ping;
pub mod presence;
pub mod pubsub;
pub mod rooms;
pub mod roster;
pub mod subscription;
pub mod time;
pub mod version;

mod form;
mod paging;
mod push;
#[cfg(test)]
mod tests;

/// The front end's: no module has to do with it, but the table is one.
const STREAM_MANAGEMENT: Xep =
    Xep { number: 198, name: "Stream Management", version: "1.6.3", module: "xmpp::session" };

/// What stands before the domain in the names of the hosts that modules serve, or will: certificates name them.
pub const HOSTS: [&str; 3] = ["pubsub", "rooms", "upload"];
/// The host of topics.
pub const PUBSUB: Host = Host::Service(HOSTS[0]);
/// The host of rooms.
pub const ROOMS: Host = Host::Service(HOSTS[1]);

/// What the operator can set of modules.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether accounts have archives.
    pub archive: bool,
    /// What rooms may hold.
    pub rooms: rooms::Limits,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { archive: true, rooms: rooms::Limits::default() }
    }
}

/// Registers all modules as they are by default.
///
/// # Errors
/// If two modules claim the same thing, which is a mistake in the list.
pub fn register(registry: &mut Registry, parts: &Parts) -> Result<(), TwoOwners> {
    register_with(registry, parts, &Settings::default())
}

/// Registers all modules: one line each. Inside a phase, hooks run in this order.
///
/// # Errors
/// If two modules claim the same thing, which is a mistake in this list.
pub fn register_with(registry: &mut Registry, parts: &Parts, settings: &Settings) -> Result<(), TwoOwners> {
    registry.xep(STREAM_MANAGEMENT);
    blocking::register(registry)?;
    subscription::register(registry, parts);
    let capabilities = capabilities::register(registry);
    presence::register(registry, capabilities);
    roster::register(registry)?;
    if settings.archive {
        archive::register(registry, parts)?;
    }
    carbons::register(registry)?;
    offline::register(registry);
    ping::register(registry)?;
    version::register(registry)?;
    time::register(registry, parts)?;
    pubsub::register(registry, parts)?;
    rooms::register(registry, parts, settings.rooms.clone())?;
    personal::register(registry, parts)?;
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
