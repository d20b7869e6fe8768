//! Takes entries into an empty store, many in a commit and several commits on their way.

use super::{Entry, ExportError};
use crate::{Body, Commit, Op, Owner, Store, StoreError};
use std::collections::{HashSet, VecDeque};

/// A commit is handed in when it has so many operations, or so many bytes.
const OPS: usize = 256;
const BYTES: usize = 256 << 10;
/// So many commits are on their way.
const IN_FLIGHT: usize = 32;

pub(super) struct Load<'a> {
    store: &'a dyn Store,
    owner: Owner,
    ops: Vec<Op>,
    bytes: usize,
    in_flight: VecDeque<Commit>,
    /// The shared bodies of the commit in the making, and of those on their way.
    making: Vec<u64>,
    flying: HashSet<u64>,
}

impl<'a> Load<'a> {
    /// Begins; fails if `store` is not empty.
    pub async fn new(store: &'a dyn Store) -> Result<Load<'a>, ExportError> {
        if store.last_id() != 0 || !store.owners(None, 1).await?.is_empty() {
            return Err(ExportError::NotEmpty);
        }
        let owner = Owner::system("import");
        let (making, flying) = (Vec::new(), HashSet::new());
        Ok(Load { store, owner, ops: Vec::new(), bytes: 0, in_flight: VecDeque::new(), making, flying })
    }

    pub async fn push(&mut self, entry: Entry) -> Result<(), StoreError> {
        match entry {
            Entry::Owner(owner) => {
                self.flush().await?;
                self.owner = owner;
            }
            Entry::Record { table, version, item, value } => {
                self.bytes += value.len();
                self.ops.push(Op::Restore { table, item, version, value });
            }
            Entry::Queued { id, value } => {
                self.bytes += value.len();
                self.ops.push(Op::QueuePush { id, value });
            }
            Entry::Shared { id, head, body, bytes } => {
                match &bytes {
                    Some(_) => self.making.push(body),
                    // Commits of several owners may overtake each other.
                    None if self.flying.contains(&body) => self.land().await?,
                    None => {}
                }
                let bytes = bytes.unwrap_or_default();
                self.bytes += head.len() + bytes.len();
                self.ops.push(Op::QueueShare { id, head, body: Body { id: body, bytes } });
            }
            Entry::View { id } => self.ops.push(Op::QueueArchived { id }),
            Entry::Archived { id, retracted, with, value } => {
                self.bytes += value.len();
                self.ops.push(Op::Archive { id, with, value: value.clone() });
                if retracted {
                    self.ops.push(Op::Retract { id, tombstone: value });
                }
            }
            Entry::Inbox { last, unread, with, preview } => {
                self.ops.push(Op::Inbox { with, last, unread: Some(unread), preview });
            }
            Entry::Outbox { id } => self.ops.push(Op::Outbox { id }),
        }
        if self.ops.len() < OPS && self.bytes < BYTES { Ok(()) } else { self.flush().await }
    }

    /// Hands in what is left, and the last id; returns when all is durable.
    pub async fn finish(mut self, last_id: u64) -> Result<(), StoreError> {
        self.flush().await?;
        if last_id != 0 {
            let drawn = vec![Op::Drawn { id: last_id }];
            self.in_flight.push_back(self.store.commit(&Owner::system("import"), drawn));
        }
        for commit in self.in_flight {
            commit.await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), StoreError> {
        if self.ops.is_empty() {
            return Ok(());
        }
        self.bytes = 0;
        self.in_flight.push_back(self.store.commit(&self.owner, std::mem::take(&mut self.ops)));
        self.flying.extend(self.making.drain(..));
        while self.in_flight.len() > IN_FLIGHT {
            if let Some(commit) = self.in_flight.pop_front() {
                commit.await?;
            }
        }
        Ok(())
    }

    /// Waits for all commits on their way.
    async fn land(&mut self) -> Result<(), StoreError> {
        while let Some(commit) = self.in_flight.pop_front() {
            commit.await?;
        }
        self.flying.clear();
        Ok(())
    }
}
