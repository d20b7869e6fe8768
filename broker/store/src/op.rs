//! The operations of a commit.

use crate::StoreError;
use bytes::Bytes;

/// The kinds of versioned records. The names are stored: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// An account, device or bot itself; item `""`.
    Account,
    /// A credential; item = its kind and name, such as `scram-sha-256`.
    Credential,
    /// A contact; item = the contact's bare JID.
    Roster,
    /// A device's registry row; item = the device id.
    Device,
    /// An access rule; owner `s:grants`, item = its id.
    Grant,
    /// A node's configuration, subscriptions and affiliations; owner = the topic.
    Node,
    /// A person's nodes (XEP-0163) and what is published there; owner = the account, item = the node's name, and for what is
    /// published U+0000 and its id behind that.
    Item,
    /// A retained value; owner = the topic, item `""`.
    Retained,
    /// A durable session of MQTT: its subscriptions, will, unfinished QoS 2 rows.
    Session,
    /// A bot's state, journals and outgoing stanzas.
    Bot,
    /// The broker's own: schema version, identity of the data folder.
    System,
    /// Somebody with whom an account does not want to have to do (XEP-0191); item = the JID.
    Block,
    /// A persistent room: item `""` its settings, others what changes by itself.
    Room,
    /// What somebody is to a room; item = the bare JID.
    Affiliation,
    /// What a module keeps for an account in one record; item = the module.
    Setting,
}

/// Which state a record must be in for a put or delete to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Whatever it is.
    Any,
    /// It must not exist.
    Absent,
    /// It must have this version.
    Version(u64),
}

/// A record with its version: 1 when first written, one more with each put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// How often it was put since it was absent.
    pub version: u64,
    /// The bytes.
    pub value: Bytes,
}

/// Bytes that many queue rows share, whoever their owners are: stored once, deleted with the last row that names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The name of the bytes, drawn by the caller: one id, one content.
    pub id: u64,
    /// The bytes. Where the id is stored already (a commit with it has resolved, and a row still names it) they are not
    /// looked at, so they may be left out.
    pub bytes: Bytes,
}

/// What the place of a record holds, as far as conditions ask for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The record's version; 0: there is none.
    pub version: u64,
    /// The id of the [`Op::DeleteOlder`] or [`Op::DeleteThis`] that emptied the place; 0: none did.
    pub deleted: u64,
}

/// One operation. Values of any size are allowed; backends chunk them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a record.
    Put {
        /// Where.
        table: Table,
        /// The key inside the owner's partition, at most 2,048 bytes.
        item: Box<str>,
        /// The new bytes.
        value: Bytes,
        /// The state that it must be in, else the whole commit is refused with a conflict.
        expect: Expect,
    },
    /// Removes a record; removing an absent one is no error under [`Expect::Any`].
    Delete {
        /// Where.
        table: Table,
        /// The key inside the owner's partition.
        item: Box<str>,
        /// The state that it must be in.
        expect: Expect,
    },
    /// Writes a record whose version is `id`, unless one with the same or a greater version stands there or was deleted
    /// by a [`Op::DeleteOlder`] of the same or a greater id: then it is ignored, not refused.
    PutNewer {
        /// Where.
        table: Table,
        /// The key inside the owner's partition.
        item: Box<str>,
        /// Id drawn by the caller: the record's version.
        id: u64,
        /// The new bytes.
        value: Bytes,
    },
    /// Removes a record with a smaller version than `id`, and leaves a mark, so that an older [`Op::PutNewer`] that
    /// comes later is ignored too. Ignored itself where the same or a greater version stands.
    DeleteOlder {
        /// Where.
        table: Table,
        /// The key inside the owner's partition.
        item: Box<str>,
        /// Id drawn by the caller.
        id: u64,
    },
    /// Removes the record that has this version, else the whole commit is refused with a conflict. Leaves a mark as
    /// [`Op::DeleteOlder`] does: an older [`Op::PutNewer`] that comes later is ignored.
    DeleteThis {
        /// Where.
        table: Table,
        /// The key inside the owner's partition.
        item: Box<str>,
        /// Its version.
        id: u64,
    },
    /// Appends to the owner's queue; a repeated id overwrites its row, so a repeated commit changes nothing.
    QueuePush {
        /// Id drawn by the caller.
        id: u64,
        /// The bytes.
        value: Bytes,
    },
    /// Appends a row to the owner's queue whose bytes are a head of its own and a body that it shares with other rows.
    QueueShare {
        /// Id drawn by the caller.
        id: u64,
        /// What is this row's alone.
        head: Bytes,
        /// What it shares.
        body: Body,
    },
    /// Appends a row to the owner's queue that is a view of his archived stanza of the same id: it holds no bytes of its
    /// own, so the stanza is stored once. Ignored where no such stanza stands in the archive, or a tombstone. A
    /// [`Op::Retract`] takes the row out of the queue; one whose stanza expires takes over the bytes.
    QueueArchived {
        /// The id of both.
        id: u64,
    },
    /// Deletes one row of the queue.
    QueueDelete {
        /// Its id.
        id: u64,
    },
    /// Deletes the queue's rows up to and including this id.
    QueueAck {
        /// The greatest id to be deleted.
        upto: u64,
    },
    /// Appends a stanza to the archive, with its index by correspondent.
    Archive {
        /// Id drawn by the caller.
        id: u64,
        /// The correspondent's bare JID.
        with: Box<str>,
        /// The stanza.
        value: Bytes,
    },
    /// Replaces an archived stanza with a tombstone; no error if it is absent. A view of it ([`Op::QueueArchived`])
    /// leaves the queue.
    Retract {
        /// Which.
        id: u64,
        /// What stands in its place.
        tombstone: Bytes,
    },
    /// Moves a conversation to the top of the inbox.
    Inbox {
        /// The correspondent.
        with: Box<str>,
        /// Id of the newest message.
        last: u64,
        /// How many to add to the unread count; `None` sets it to 0.
        unread: Option<u32>,
        /// The beginning of the newest message, at most 256 bytes are kept.
        preview: Box<str>,
    },
    /// A row for the search index.
    Outbox {
        /// The archived id.
        id: u64,
    },
    /// Removes a row that the search index has committed.
    OutboxDelete {
        /// The archived id.
        id: u64,
    },
    /// Tells of an id that the caller keeps inside a record, such as a retained value's: it raises
    /// [`Store::last_id`](crate::Store::last_id) and writes no row.
    Drawn {
        /// The id.
        id: u64,
    },
    /// Writes a record with its version, whatever is there. For import only.
    Restore {
        /// Where.
        table: Table,
        /// The key inside the owner's partition.
        item: Box<str>,
        /// Its version, at least 1.
        version: u64,
        /// Its bytes.
        value: Bytes,
    },
    /// Removes all rows of the owner: records, queue, archive, inbox, outbox.
    Purge,
}

impl Op {
    /// The id that the operation stores, if it stores one: it counts for [`Store::last_id`](crate::Store::last_id).
    pub fn id(&self) -> Option<u64> {
        match self {
            Op::QueuePush { id, .. }
            | Op::QueueArchived { id }
            | Op::Archive { id, .. }
            | Op::Outbox { id }
            | Op::Drawn { id }
            | Op::PutNewer { id, .. }
            | Op::DeleteOlder { id, .. } => Some(*id),
            Op::QueueShare { id, body, .. } => Some((*id).max(body.id)),
            _ => None,
        }
    }

    /// The record that the operation is about, if it is about one.
    pub fn record(&self) -> Option<(Table, &str)> {
        match self {
            Op::Put { table, item, .. }
            | Op::Delete { table, item, .. }
            | Op::Restore { table, item, .. }
            | Op::PutNewer { table, item, .. }
            | Op::DeleteOlder { table, item, .. }
            | Op::DeleteThis { table, item, .. } => Some((*table, item)),
            _ => None,
        }
    }

    /// What its record's place holds behind this operation, if it held `now` before: the same where the operation is
    /// ignored. Other operations than those on records leave it alone. Fails with a conflict if the record is not in
    /// the expected state.
    pub fn place_after(&self, now: Place) -> Result<Place, StoreError> {
        let newest = now.version.max(now.deleted);
        match self {
            Op::Put { item, expect, .. } => {
                expect.check(now.version, item).map(|()| Place { version: now.version + 1, deleted: 0 })
            }
            Op::Delete { item, expect, .. } => expect.check(now.version, item).map(|()| Place { version: 0, ..now }),
            Op::DeleteThis { item, id, .. } => {
                Expect::Version(*id).check(now.version, item).map(|()| Place { version: 0, deleted: *id })
            }
            Op::Restore { version, .. } => Ok(Place { version: *version, deleted: 0 }),
            Op::PutNewer { id, .. } if *id > newest => Ok(Place { version: *id, deleted: 0 }),
            Op::DeleteOlder { id, .. } if *id > newest => Ok(Place { version: 0, deleted: *id }),
            _ => Ok(now),
        }
    }
}

impl Expect {
    /// Whether a record with version `now` (0: absent) is in this state; else a conflict that names `item`.
    pub fn check(self, now: u64, item: &str) -> Result<(), StoreError> {
        let holds = match self {
            Expect::Any => true,
            Expect::Absent => now == 0,
            Expect::Version(version) => now == version && now != 0,
        };
        if holds { Ok(()) } else { Err(StoreError::Conflict { item: item.into() }) }
    }
}

impl Table {
    /// All tables, in the order of their codes.
    pub const ALL: [Table; 15] = [
        Table::Account,
        Table::Credential,
        Table::Roster,
        Table::Device,
        Table::Grant,
        Table::Node,
        Table::Item,
        Table::Retained,
        Table::Session,
        Table::Bot,
        Table::System,
        Table::Block,
        Table::Room,
        Table::Affiliation,
        Table::Setting,
    ];

    /// The tables whose records of topics (item `""`) are found in the order of the topics' names, and counted.
    pub const WALKED: [Table; 2] = [Table::Node, Table::Retained];

    /// The number under which the table is stored, from 1.
    pub fn code(self) -> u8 {
        self as u8 + 1
    }

    /// The table with this number.
    pub fn from_code(code: u8) -> Option<Table> {
        Table::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}
