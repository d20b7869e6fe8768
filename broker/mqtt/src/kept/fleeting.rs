//! QoS 0 deliveries that wait for a durable session's connected client: in memory only, bounded, in the order of their
//! publications, so that they keep their places among those that are stored.

use std::collections::BTreeMap;

use tavi_core::Weigh;

use crate::seat::{Parcel, Room};

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Fleeting {
    /// By the id of the publication; a retained value may come more than once.
    parcels: BTreeMap<(u64, u64), Parcel>,
    bytes: usize,
    count: u64,
}

impl Fleeting {
    /// Puts one in its place; gives how many others give way to it, the oldest first (semantics.md, order).
    pub(super) fn put(&mut self, parcel: Parcel, room: Room) -> usize {
        let mut dropped = 0;
        while !self.is_empty() && (self.len() >= room.parcels || self.bytes + parcel.weight() > room.bytes) {
            self.take();
            dropped += 1;
        }
        self.bytes += parcel.weight();
        self.count += 1;
        self.parcels.insert((parcel.publication.id, self.count), parcel);
        dropped
    }

    /// The publication of the first.
    pub(super) fn first(&self) -> Option<u64> {
        self.parcels.first_key_value().map(|((id, _), _)| *id)
    }

    /// Takes the first.
    pub(super) fn take(&mut self) -> Option<Parcel> {
        let (_, parcel) = self.parcels.pop_first()?;
        self.bytes -= parcel.weight();
        Some(parcel)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.parcels.len()
    }

    /// Whether none does.
    pub(super) fn is_empty(&self) -> bool {
        self.parcels.is_empty()
    }
}
