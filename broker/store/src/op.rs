//! The operations of a commit.

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
    /// A published item of a node; owner = the topic, item = the item's id.
    Item,
    /// A retained value; owner = the topic, item `""`.
    Retained,
    /// A durable session of MQTT: its subscriptions, will, unfinished QoS 2 rows.
    Session,
    /// A bot's state, journals and outgoing stanzas.
    Bot,
    /// The broker's own: schema version, identity of the data folder.
    System,
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
    /// Appends to the owner's queue; a repeated id overwrites its row, so a repeated commit changes nothing.
    QueuePush {
        /// Id drawn by the caller.
        id: u64,
        /// The bytes.
        value: Bytes,
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
    /// Replaces an archived stanza with a tombstone; no error if it is absent.
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
    /// Removes all rows of the owner: records, queue, archive, inbox.
    Purge,
}
