//! Walks through a whole store, owner by owner, in bounded pages.

use super::Entry;
use crate::{ArchiveQuery, Owner, PageBound, QueueRow, Store, StoreError, Table, limits::MAX_PAGE};
use std::collections::HashSet;

/// How many rows are read at once; their values may be large.
const PAGE: usize = 100;
/// And at most about so many bytes of a queue.
const PAGE_BYTES: usize = 4 << 20;

/// Where the walk stands.
pub(super) struct Walk<'a> {
    store: &'a dyn Store,
    owners: Vec<Owner>,
    last_owner: Option<Owner>,
    step: Step,
    /// The shared bodies that were given.
    bodies: HashSet<u64>,
}

/// The next page of the owner in hand, or of the whole store.
enum Step {
    NextOwner,
    Records {
        table: usize,
        after: Option<Box<str>>,
    },
    Archive {
        after: u64,
    },
    /// Behind the archive, of which rows may be views.
    Queue {
        after: u64,
    },
    Inbox {
        before: Option<u64>,
    },
    Outbox {
        after: u64,
    },
    End,
}

impl<'a> Walk<'a> {
    pub fn new(store: &'a dyn Store) -> Walk<'a> {
        Walk { store, owners: Vec::new(), last_owner: None, step: Step::NextOwner, bodies: HashSet::new() }
    }

    /// The next entries, perhaps none; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, StoreError> {
        let step = std::mem::replace(&mut self.step, Step::End);
        let page = match step {
            Step::NextOwner => self.next_owner().await?,
            Step::Records { table, after } => self.records(table, after).await?,
            Step::Queue { after } => self.queue(after).await?,
            Step::Archive { after } => self.archive(after).await?,
            Step::Inbox { before } => self.inbox(before).await?,
            Step::Outbox { after } => self.outbox(after).await?,
            Step::End => return Ok(None),
        };
        Ok(Some(page))
    }

    async fn next_owner(&mut self) -> Result<Vec<Entry>, StoreError> {
        if self.owners.is_empty() {
            self.owners = self.store.owners(self.last_owner.as_ref(), MAX_PAGE).await?;
            self.owners.reverse();
        }
        let Some(owner) = self.owners.pop() else {
            self.step = Step::Outbox { after: 0 };
            return Ok(Vec::new());
        };
        self.step = Step::Records { table: 0, after: None };
        self.last_owner = Some(owner.clone());
        Ok(vec![Entry::Owner(owner)])
    }

    /// The owner in hand.
    fn owner(&self) -> Owner {
        // Set before the first step that asks for it.
        self.last_owner.clone().unwrap_or_else(|| Owner::from_key(""))
    }

    async fn records(&mut self, index: usize, after: Option<Box<str>>) -> Result<Vec<Entry>, StoreError> {
        let Some(table) = Table::ALL.get(index).copied() else {
            self.step = Step::Archive { after: 0 };
            return Ok(Vec::new());
        };
        let rows = self.store.list(&self.owner(), table, after.as_deref(), PAGE).await?;
        self.step = match rows.last() {
            Some((item, _)) => Step::Records { table: index, after: Some(item.clone()) },
            None => Step::Records { table: index + 1, after: None },
        };
        let entry = |(item, record): (_, crate::Record)| Entry::Record {
            table,
            version: record.version,
            item,
            value: record.value,
        };
        Ok(rows.into_iter().map(entry).collect())
    }

    async fn queue(&mut self, after: u64) -> Result<Vec<Entry>, StoreError> {
        let bound = PageBound { rows: PAGE, bytes: PAGE_BYTES };
        let rows = self.store.queue_page(&self.owner(), after, bound).await?.rows;
        self.step = rows.last().map_or(Step::Inbox { before: None }, |row| Step::Queue { after: row.id });
        Ok(rows.into_iter().map(|row| self.queued(row)).collect())
    }

    fn queued(&mut self, row: QueueRow) -> Entry {
        match row.body_id {
            None if row.archived => Entry::View { id: row.id },
            None => Entry::Queued { id: row.id, value: row.value },
            Some(body) => {
                let bytes = row.body.filter(|_| self.bodies.insert(body));
                Entry::Shared { id: row.id, head: row.value, body, bytes }
            }
        }
    }

    async fn archive(&mut self, after: u64) -> Result<Vec<Entry>, StoreError> {
        let query = ArchiveQuery { after: Some(after), limit: PAGE, ..ArchiveQuery::default() };
        let rows = self.store.archive(&self.owner(), &query).await?;
        self.step = rows.last().map_or(Step::Queue { after: 0 }, |row| Step::Archive { after: row.id });
        let entry = |row: crate::ArchiveRow| Entry::Archived {
            id: row.id,
            retracted: row.retracted,
            with: row.with,
            value: row.value,
        };
        Ok(rows.into_iter().map(entry).collect())
    }

    async fn inbox(&mut self, before: Option<u64>) -> Result<Vec<Entry>, StoreError> {
        let rows = self.store.inbox(&self.owner(), before, MAX_PAGE).await?;
        self.step = rows.last().map_or(Step::NextOwner, |row| Step::Inbox { before: Some(row.last) });
        let entry = |row: crate::InboxRow| Entry::Inbox {
            last: row.last,
            unread: row.unread,
            with: row.with,
            preview: row.preview,
        };
        Ok(rows.into_iter().map(entry).collect())
    }

    async fn outbox(&mut self, after: u64) -> Result<Vec<Entry>, StoreError> {
        let rows = self.store.outbox(after, MAX_PAGE).await?;
        self.step = rows.last().map_or(Step::End, |(id, _)| Step::Outbox { after: *id });
        Ok(rows.into_iter().flat_map(|(id, owner)| [Entry::Owner(owner), Entry::Outbox { id }]).collect())
    }
}
