//! What stands in a durable session's queue, and what of it is under way: rows with their packet ids, their places, room
//! for them, and what comes next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tavi_core::backlog::{Backlog, Bound, Given};
use tavi_core::topics::SubOptions;
use tavi_core::{Mailbox, Publication};
use tavi_store::id::{first_at, time_of};
use tavi_store::{Op, QueueSize};

use super::expiring::{Due, Expiring};
use super::fleeting::Fleeting;
use super::{Next, Owing, Recalled, Sending};
use crate::flight::successor;
use crate::granted::Granted;
use crate::packet::Qos;
use crate::record::{HEAD, RowHead};
use crate::seat::{Parcel, Room};

/// A durable session's state, under its lock.
pub(super) struct Kept {
    pub(super) backlog: Backlog<Owing>,
    /// QoS 0, while a client is connected.
    pub(super) fleeting: Fleeting,
    /// Rows whose commit has not landed.
    pub(super) coming: BTreeMap<u64, Coming>,
    pub(super) filled: QueueSize,
    /// Rows that may expire before they are sent.
    pub(super) expiring: Expiring,
    /// Rows deleted because they expired, though memory still has them.
    pub(super) evicted: BTreeSet<u64>,
    /// Expired rows that are deleted with a coming one.
    pub(super) clearing: BTreeMap<u64, Vec<u64>>,
    /// Rows whose fan-out failed, so that they are not owed; until they are deleted.
    pub(super) abandoned: BTreeSet<u64>,
    /// Rows in flight whose PUBREC came.
    pub(super) released: BTreeSet<u64>,
    /// Packet ids of what is in flight.
    pub(super) open: BTreeSet<u16>,
    /// Packet ids of QoS 2 rows, and of those that expired, that are being deleted: a crash may bring them back.
    pub(super) leaving: BTreeMap<u64, u16>,
    pub(super) last_packet_id: u16,
    /// The greatest row that was ever sent.
    pub(super) sent: u64,
    /// Rows up to this one may have been sent by an earlier process.
    pub(super) maybe_sent: u64,
    /// Rows up to this one are an earlier process's.
    pub(super) former: u64,
    /// Of those, what this process publishes again: nobody was sent it.
    pub(super) again: BTreeSet<u64>,
    pub(super) online: Option<Arc<Mailbox<Parcel>>>,
    pub(super) filters: BTreeMap<Box<str>, SubOptions>,
    pub(super) granted: VecDeque<Granted>,
    /// Retained values whose rows are on their way to the store.
    pub(super) granting: usize,
    /// Packet ids of the client's own QoS 2 publishes that it has not released.
    pub(super) held: BTreeSet<u16>,
    /// Those of which it is not known that everybody has them, with the ids under which they are published.
    pub(super) begun: BTreeMap<u16, u64>,
    /// The log was told that the queue is full.
    pub(super) full: bool,
    pub(super) ended: bool,
}

/// A row on its way to the store.
#[derive(Clone, Copy)]
pub(super) struct Coming {
    pub(super) packet_id: u16,
    pub(super) size: usize,
}

impl Kept {
    pub(super) fn new(room: Room, recalled: Recalled) -> Self {
        let memory = Bound { items: room.parcels.min(MEMORY.items), bytes: room.bytes.min(MEMORY.bytes) };
        let mut backlog = Backlog::new(memory, Bound { items: 1, bytes: usize::MAX });
        let Recalled { size, first_packet_id, maybe_sent, last_id } = recalled;
        if size.rows > 0 {
            backlog.read_from(0);
        }
        Self {
            backlog,
            fleeting: Fleeting::default(),
            coming: BTreeMap::new(),
            filled: size,
            expiring: Expiring::new(size.rows > 0),
            evicted: BTreeSet::new(),
            clearing: BTreeMap::new(),
            abandoned: BTreeSet::new(),
            released: BTreeSet::new(),
            open: BTreeSet::new(),
            leaving: BTreeMap::new(),
            last_packet_id: nth(first_packet_id, size.rows),
            sent: maybe_sent,
            maybe_sent,
            former: last_id,
            again: BTreeSet::new(),
            online: None,
            filters: BTreeMap::new(),
            granted: VecDeque::new(),
            granting: 0,
            held: BTreeSet::new(),
            begun: BTreeMap::new(),
            full: false,
            ended: false,
        }
    }

    /// The row of a delivery, which is coming from now on.
    pub(super) fn queue(&mut self, place: u64, publication: &Arc<Publication>, (qos, retain): (Qos, bool)) -> Op {
        let packet_id = successor(self.last_packet_id);
        let size = HEAD + publication.stored().len();
        self.last_packet_id = packet_id;
        self.backlog.coming(place);
        self.coming.insert(place, Coming { packet_id, size });
        self.filled.rows += 1;
        self.filled.bytes += size as u64;
        if let Some(at) = publication.properties.as_ref().and_then(|properties| properties.expires_ms) {
            self.expiring.add(at, place, Due { size, packet_id });
        }
        let head = RowHead { packet_id, qos, retain, released: false };
        publication.queue_row(place, head.encode())
    }

    /// A retained value stands where it was published, so that it goes before what is newer. If that place is taken, by
    /// the same publication as a delivery or by an earlier subscription, it stands just before the millisecond of it,
    /// among the ids of the last node, which draws none of its own.
    pub(super) fn place_of(&self, id: u64, fresh: impl FnOnce() -> u64) -> u64 {
        let before = first_at(time_of(id));
        let spare = before.saturating_sub(SPARE).max(1)..before;
        let free = |place: &u64| !self.backlog.has(*place) && !self.backlog.may_have_stored(*place);
        std::iter::once(id).chain(spare).find(free).unwrap_or_else(fresh)
    }

    /// Makes room for a row of `size` bytes; gives the rows to be deleted for it, or `None` if there is no room. What
    /// has expired takes none.
    pub(super) fn make_room(&mut self, size: usize, room: Room, now_ms: u64) -> Option<Vec<u64>> {
        let (mut expired, mut filled) = (Vec::new(), self.filled);
        let is_over = |filled: QueueSize| {
            let over = filled.rows >= room.rows as u64 || filled.bytes + size as u64 > room.row_bytes as u64;
            filled.rows > 0 && over
        };
        while is_over(filled) {
            let Some((at_ms, id, due)) = self.expiring.pop(now_ms) else {
                // They go in the background; if there are others, they do soon.
                expired.into_iter().for_each(|(at_ms, id, due)| self.expiring.add(at_ms, id, due));
                self.expiring.hurry();
                return None;
            };
            filled.rows = filled.rows.saturating_sub(1);
            filled.bytes = filled.bytes.saturating_sub(due.size as u64);
            expired.push((at_ms, id, due));
        }
        expired.iter().for_each(|(_, id, due)| self.evict(*id, *due));
        Some(expired.into_iter().map(|(_, id, _)| id).collect())
    }

    /// Whether the packet id of a row has to wait for another one's end.
    pub(super) fn is_in_use(&self, row: u64, packet_id: u16) -> bool {
        let is_leaving = |(other, leaving): (&u64, &u16)| *other != row && *leaving == packet_id;
        self.open.contains(&packet_id) || self.leaving.iter().any(is_leaving)
    }

    pub(super) fn empty(&mut self, size: usize) {
        self.filled.rows = self.filled.rows.saturating_sub(1);
        self.filled.bytes = self.filled.bytes.saturating_sub(size as u64);
    }

    /// A row is saved, or could not be.
    pub(super) fn came(&mut self, place: u64) -> Option<Coming> {
        for id in self.clearing.remove(&place).unwrap_or_default() {
            self.backlog.deleted(id);
            self.leaving.remove(&id);
        }
        self.coming.remove(&place)
    }

    pub(super) fn fail(&mut self, place: u64) -> bool {
        let Some(Coming { size, .. }) = self.came(place) else { return false };
        self.backlog.failed(place);
        self.expiring.forget(place);
        self.empty(size);
        true
    }

    /// Whether something that is stored goes before the publication `front`: it may be of the same topic.
    pub(super) fn goes_before(&self, front: u64) -> bool {
        self.backlog.is_behind() || self.backlog.first().is_some_and(|first| first < front)
    }

    pub(super) fn give_fleeting(&mut self) -> Next {
        self.fleeting.take().map_or(Next::Nothing, Next::Live)
    }

    pub(super) fn give(&mut self, may: impl Fn(&str, bool) -> bool, now_ms: u64) -> Next {
        let Some(Given { id, item: owing, repeated }) = self.backlog.next() else { return Next::Nothing };
        let again = self.again.remove(&id);
        let dup = repeated || (id <= self.maybe_sent && !again);
        if let Some(publication) = &owing.publication {
            // MQTT 5.0 §3.3.2.3.3: what has expired is not delivered, unless its delivery began before (§4.4).
            let expired = !dup && publication.expired(now_ms);
            let forbidden = !may(&publication.topic, owing.read);
            if (expired || forbidden) && !self.released.contains(&id) {
                return self.taken(id).map_or(Next::Nothing, Next::Gone);
            }
            if let Some(at) = publication.properties.as_ref().and_then(|properties| properties.expires_ms) {
                self.expiring.remove(at, id);
            }
        }
        self.sent = self.sent.max(id);
        self.open.insert(owing.packet_id);
        let released = self.released.contains(&id) || owing.publication.is_none();
        let publication = owing.publication.filter(|_| !released);
        Next::Owed(Sending { row: id, owing: Owing { publication, ..owing }, dup })
    }

    pub(super) fn taken(&mut self, row: u64) -> Option<Op> {
        let owing = self.backlog.acknowledge(row)?;
        self.open.remove(&owing.packet_id);
        let size = if self.released.remove(&row) { HEAD } else { owing.size };
        if let Some(at) = owing.publication.as_ref().and_then(|p| p.properties.as_ref()).and_then(|p| p.expires_ms) {
            self.expiring.remove(at, row);
        }
        if !self.evicted.remove(&row) {
            self.empty(size);
        }
        if owing.qos == Qos::ExactlyOnce {
            self.leaving.insert(row, owing.packet_id);
        }
        Some(Op::QueueDelete { id: row })
    }
}

/// Ids of one node in one millisecond.
const SPARE: u64 = 4096;
/// What of a queue lies in memory at most; the store has the rest.
const MEMORY: Bound = Bound { items: 512, bytes: 512 << 10 };

/// The packet id of the last of so many rows, if none is missing between them and the first.
pub(super) fn nth(first: u16, rows: u64) -> u16 {
    if rows == 0 { 0 } else { ((u64::from(first.max(1)) + rows - 2) % u64::from(u16::MAX) + 1) as u16 }
}
