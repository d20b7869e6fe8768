//! Somebody who gets publications, and what they asked for.

use crate::{
    principal::Principal,
    publication::{Publication, Qos},
};
use std::sync::Arc;
use tavi_store::{Commit, Op, Owner, SharedStore};

/// What a subscriber asked for with one filter (MQTT 5 §3.8.3.1). XMPP, CoAP and bots use the default with QoS 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubOptions {
    /// The best guarantee that it wants.
    pub qos: Qos,
    /// Whether its own publications do not come back.
    pub no_local: bool,
    /// Whether the retain flag stays as it was published.
    pub retain_as_published: bool,
    /// Subscription identifier (MQTT 5 §3.8.2.1.2); 0 for none.
    pub identifier: u32,
}

/// Rows that must be durable before a delivery: whose, and what.
pub type Rows = (Owner, Vec<Op>);

/// A durable seat by its owner and its number at home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeatName {
    /// Whose.
    pub owner: Owner,
    /// Which, since its home began.
    pub number: u64,
}

/// Somebody who gets publications: an MQTT session, a CoAP observation, a JID, a bot.
pub trait Subscriber: Send + Sync {
    /// Its number, from [`Topics::next_subscriber`](super::Topics::next_subscriber); the same as `from_session` of what
    /// it publishes.
    fn id(&self) -> u64;

    /// On whose behalf it receives.
    fn principal(&self) -> &Principal;

    /// The partition of its rows, if it has any: whose durable seat it is.
    fn partition(&self) -> Option<&Owner> {
        None
    }

    /// What has to be saved before [`Subscriber::deliver`]; `None` for a live subscriber.
    fn store(&self, _publication: &Arc<Publication>, _options: &[SubOptions]) -> Option<Rows> {
        None
    }

    /// Saves rows that [`Subscriber::store`] gave for the publication with this id, perhaps some time ago. Whoever may end meanwhile looks here, so that
    /// no row outlives its owner. Must neither block nor wait.
    fn save(&self, store: &SharedStore, _id: u64, (owner, ops): Rows) -> Commit {
        store.commit(&owner, ops)
    }

    /// Takes a publication. `options` are those of all its filters that matched. Must neither block nor wait.
    fn deliver(&self, publication: &Arc<Publication>, options: &[SubOptions]);

    /// A publication that [`Subscriber::store`] gave rows for is not delivered, since something of it could not be
    /// saved: its publisher was told so. Must neither block nor wait.
    fn abandon(&self, _publication: &Arc<Publication>) {}
}
