//! Where a session receives, and a connected client's hold on it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tavi_core::node::Attached;
use tavi_core::topics::{SubOptions, Subscriber};
use tavi_core::{Closed, Mailbox, Principal};
use tavi_store::{Op, Owner};

use crate::entry::{Key, LinkId};
use crate::hub::Hub;
use crate::kept::KeptSeat;
use crate::record;
use crate::seat::{LiveSeat, Parcel};

/// Where publications for a session arrive.
#[derive(Clone)]
pub enum Seat {
    /// Ends with the connection.
    Live(Arc<LiveSeat>),
    /// Durable.
    Kept(Arc<KeptSeat>),
}

impl Seat {
    /// Its subscriber number.
    pub fn id(&self) -> u64 {
        match self {
            Seat::Live(seat) => seat.id,
            Seat::Kept(seat) => Subscriber::id(&**seat),
        }
    }

    /// Whose it is.
    pub fn principal(&self) -> &Principal {
        match self {
            Seat::Live(seat) => &seat.principal,
            Seat::Kept(seat) => Subscriber::principal(&**seat),
        }
    }

    /// The durable one.
    pub fn kept(&self) -> Option<&Arc<KeptSeat>> {
        match self {
            Seat::Live(_) => None,
            Seat::Kept(seat) => Some(seat),
        }
    }

    /// As the topics know it: a durable one by its name; a live one itself, since it ends with its connection and by name
    /// each of its deliveries would cost half as much again.
    pub fn subscriber(&self) -> Arc<dyn Subscriber> {
        match self {
            Seat::Live(seat) => seat.clone(),
            Seat::Kept(seat) => seat.name(),
        }
    }

    /// The connected client's mailbox.
    pub fn mailbox(&self) -> Option<Arc<Mailbox<Parcel>>> {
        match self {
            Seat::Live(seat) => Some(seat.mailbox.clone()),
            Seat::Kept(seat) => seat.mailbox(),
        }
    }

    /// How many publications wait in memory.
    pub fn waiting(&self) -> usize {
        let owed = self.kept().map_or(0, |seat| seat.waiting());
        owed + self.mailbox().map_or(0, |mailbox| mailbox.len())
    }

    /// Tells the connected client, if there is one, that its connection is over.
    pub fn tell(&self, why: Closed) {
        if let Some(mailbox) = self.mailbox() {
            mailbox.close(why);
        }
    }
}

/// A connected client's hold on its session.
pub struct Place {
    /// Where it receives.
    pub seat: Seat,
    /// What waits for it.
    pub mailbox: Arc<Mailbox<Parcel>>,
    /// The session's partition of the store.
    pub owner: Owner,
    /// How many deliveries may be unacknowledged.
    pub window: usize,
    /// Session expiry in seconds.
    pub expiry: u32,
    /// What a clean session subscribes to.
    pub(crate) filters: BTreeSet<Box<str>>,
    pub(crate) attached: Option<Attached>,
    pub(crate) turn: Turn,
}

/// While it lives, what this connection began is not done, and no other one goes on with the session.
pub(crate) struct Turn {
    pub(crate) hub: Arc<Hub>,
    pub(crate) key: Key,
    pub(crate) link: LinkId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.hub.done(&self.key, self.link);
    }
}

impl Place {
    /// How many subscriptions the session has.
    pub fn filter_count(&self) -> usize {
        match &self.seat {
            Seat::Live(_) => self.filters.len(),
            Seat::Kept(seat) => seat.filter_count(),
        }
    }

    /// Whether the session has that subscription.
    pub fn has_filter(&self, filter: &str) -> bool {
        match &self.seat {
            Seat::Live(_) => self.filters.contains(filter),
            Seat::Kept(seat) => seat.has_filter(filter),
        }
    }

    /// Notes a subscription; what has to be saved for it is added to `ops`.
    pub fn add_filter(&mut self, filter: &str, options: SubOptions, ops: &mut Vec<Op>) {
        match &self.seat {
            Seat::Live(_) if self.filters.contains(filter) => {}
            Seat::Live(_) => drop(self.filters.insert(filter.into())),
            Seat::Kept(seat) => {
                seat.add_filter(filter, options);
                ops.push(record::put(&record::subscription_item(filter), record::encode_options(&options)));
            }
        }
    }

    /// Forgets a subscription; what has to be saved for that is added to `ops`.
    pub fn remove_filter(&mut self, filter: &str, ops: &mut Vec<Op>) {
        match &self.seat {
            Seat::Live(_) => drop(self.filters.remove(filter)),
            Seat::Kept(seat) => {
                seat.remove_filter(filter);
                ops.push(record::delete(&record::subscription_item(filter)));
            }
        }
    }
}
