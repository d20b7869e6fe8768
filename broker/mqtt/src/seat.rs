//! Where publications for a session arrive: a live seat has only a mailbox, a kept one has rows in the store first.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tavi_core::metrics::{Outcome, Protocol};
use tavi_core::publication::Change;
use tavi_core::topics::{Rows, SubOptions, Subscriber};
use tavi_core::{Mailbox, Metrics, Overflow, Principal, Publication, Pushed, Weigh};
use tavi_store::{Commit, Op, Owner};

use crate::flight::successor;
use crate::packet::Qos;
use crate::record::RowHead;

/// One publication for one session.
#[derive(Debug)]
pub struct Parcel {
    /// What.
    pub publication: Arc<Publication>,
    /// QoS of the delivery.
    pub qos: Qos,
    /// RETAIN flag of the delivery.
    pub retain: bool,
    /// The packet id kept with its row; 0: there is no row.
    pub packet_id: u16,
    /// It may have been sent on an earlier connection.
    pub dup: bool,
}

impl Weigh for Parcel {
    fn weight(&self) -> usize {
        self.publication.weight()
    }

    fn droppable(&self) -> bool {
        self.qos == Qos::AtMostOnce
    }
}

/// How much may wait for one session.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Parcels in a mailbox.
    pub parcels: usize,
    /// Bytes in a mailbox.
    pub bytes: usize,
    /// Rows of a durable session; what is over is dropped and counted.
    pub rows: usize,
}

impl Room {
    /// An empty mailbox of that size.
    pub fn mailbox(self) -> Arc<Mailbox<Parcel>> {
        Arc::new(Mailbox::new(self.parcels, self.bytes))
    }
}

/// QoS and RETAIN flag of a delivery (MQTT 5.0 §3.8.4: the greatest QoS of the matching filters, but not over the
/// publisher's; §3.3.1.3: RETAIN is 0 unless the subscription keeps it).
fn grade(publication: &Publication, options: &[SubOptions]) -> (Qos, bool) {
    let wanted = options.iter().map(|o| o.qos).max().unwrap_or_default();
    let keeps_flag = options.iter().any(|o| o.retain_as_published);
    (wanted.min(publication.qos), keeps_flag && publication.retain && !is_empty_value(publication))
}

/// A value without bytes, as CoAP and XMPP may keep one. MQTT 3.1.1 §3.3.1.3: to an MQTT client a retained message of zero
/// length says that the value was cleared, so it gets such a value never as retained.
pub fn is_empty_value(publication: &Publication) -> bool {
    publication.change == Change::Value && publication.payload.is_empty()
}

/// The seat of a clean session: what is in its mailbox when the connection ends is lost with it.
pub struct LiveSeat {
    /// Subscriber number.
    pub id: u64,
    /// Who.
    pub principal: Principal,
    /// What waits.
    pub mailbox: Arc<Mailbox<Parcel>>,
    /// Where drops are counted.
    pub metrics: Arc<Metrics>,
}

impl Subscriber for LiveSeat {
    fn id(&self) -> u64 {
        self.id
    }

    fn principal(&self) -> &Principal {
        &self.principal
    }

    fn deliver(&self, publication: &Arc<Publication>, options: &[SubOptions]) {
        let (qos, retain) = grade(publication, options);
        let parcel = Parcel { publication: publication.clone(), qos, retain, packet_id: 0, dup: false };
        push_live(&self.mailbox, parcel, &self.metrics);
    }
}

/// QoS 0 gives way to what is newer; a client that does not take its QoS 1 and 2 is cut off (semantics.md, order).
pub fn push_live(mailbox: &Mailbox<Parcel>, parcel: Parcel, metrics: &Metrics) {
    let overflow = if parcel.qos == Qos::AtMostOnce { Overflow::DropOldest } else { Overflow::Close };
    match mailbox.push(parcel, overflow) {
        Pushed::Queued => {}
        Pushed::Dropped(count) => drop_count(metrics, count),
        Pushed::Refused(_) => drop_count(metrics, 1),
    }
}

fn drop_count(metrics: &Metrics, count: usize) {
    metrics.messages(Protocol::Mqtt, Outcome::Dropped).add(count as u64);
}

/// The seat of a durable session: it stays subscribed while nobody is connected.
pub struct KeptSeat {
    id: u64,
    principal: Principal,
    owner: Owner,
    room: Room,
    metrics: Arc<Metrics>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    rows: BTreeMap<u64, Row>,
    used: HashSet<u16>,
    last_packet_id: u16,
    online: Option<Arc<Mailbox<Parcel>>>,
    /// Rows are read from the store, not taken from the mailbox, until the reader has caught up.
    behind: bool,
    filters: BTreeMap<Box<str>, SubOptions>,
    /// Packet ids of the client's own QoS 2 publishes that it has not released.
    held: BTreeSet<u16>,
    /// Those of which it is not known that everybody has them, with the ids under which they are published.
    begun: BTreeMap<u16, u64>,
    ended: bool,
}

/// What is known of a stored row without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    packet_id: u16,
    stage: RowStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowStage {
    /// Its commit has not landed yet.
    Coming,
    /// Not sent yet.
    Waiting,
    /// Sent, not acknowledged, on an earlier connection.
    Repeat,
    /// Sent on this connection, not acknowledged.
    Sent,
    /// PUBREC came on an earlier connection.
    ReleaseAgain,
    /// PUBREC came on this connection, or its PUBREL was repeated on it.
    Released,
}

/// A row as it has to go to the client that just read it from the store.
pub enum Due {
    /// PUBLISH.
    Publish(Parcel),
    /// PUBREL of this packet id.
    Release {
        /// The packet id.
        packet_id: u16,
        /// The row.
        row: u64,
    },
}

impl KeptSeat {
    /// A new durable session without rows.
    pub fn new(id: u64, principal: Principal, owner: Owner, room: Room, metrics: Arc<Metrics>) -> Self {
        Self { id, principal, owner, room, metrics, kept: Mutex::default() }
    }

    /// The partition of its rows.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The session ends: what is still on its way to the store for it is not saved.
    pub fn end(&self) {
        self.kept.lock().ended = true;
    }

    /// Saves something of the session, unless it has ended: its rows are gone then, or are another session's.
    pub fn save(&self, commit: impl FnOnce() -> Commit) -> Commit {
        let kept = self.kept.lock();
        if kept.ended { Commit::ready(Ok(())) } else { commit() }
    }

    /// Takes up a row found in the store at start-up.
    pub fn recall(&self, id: u64, mut value: Bytes) {
        let Some(head) = RowHead::decode(&mut value) else { return };
        let stage = if head.released { RowStage::ReleaseAgain } else { RowStage::Repeat };
        let mut kept = self.kept.lock();
        kept.used.insert(head.packet_id);
        kept.last_packet_id = head.packet_id;
        kept.rows.insert(id, Row { packet_id: head.packet_id, stage });
    }

    /// A client is connected: its mailbox is given, and what was sent before has to be sent again. Rows come from the
    /// store first.
    pub fn attach(&self) -> Arc<Mailbox<Parcel>> {
        let mailbox = self.room.mailbox();
        let mut kept = self.kept.lock();
        for row in kept.rows.values_mut() {
            row.stage = match row.stage {
                RowStage::Sent => RowStage::Repeat,
                RowStage::Released => RowStage::ReleaseAgain,
                other => other,
            };
        }
        kept.behind = !kept.rows.is_empty();
        kept.online = Some(mailbox.clone());
        mailbox
    }

    /// The client of that mailbox is gone, and `unwritten` never reached it. False if another one is there already.
    pub fn detach(&self, mailbox: &Arc<Mailbox<Parcel>>, unwritten: &[Parcel]) -> bool {
        let mut kept = self.kept.lock();
        if !kept.online.as_ref().is_some_and(|now| Arc::ptr_eq(now, mailbox)) {
            return false;
        }
        kept.online = None;
        for parcel in unwritten.iter().filter(|parcel| parcel.packet_id != 0 && !parcel.dup) {
            if let Some(row) = kept.rows.get_mut(&parcel.publication.id) {
                row.stage = RowStage::Waiting;
            }
        }
        true
    }

    /// Notes a QoS 2 publish of the client.
    pub fn hold(&self, packet_id: u16) {
        self.kept.lock().held.insert(packet_id);
    }

    /// Begins to publish a QoS 2 publish of the client, under `fresh` unless it is `again` what failed before: then under
    /// the same id as before, so that whoever has it already gets it once.
    pub fn begin(&self, packet_id: u16, again: bool, fresh: impl FnOnce() -> u64) -> u64 {
        let mut kept = self.kept.lock();
        kept.held.insert(packet_id);
        let failed = kept.begun.get(&packet_id).copied().filter(|_| again);
        let id = failed.unwrap_or_else(fresh);
        kept.begun.insert(packet_id, id);
        id
    }

    /// Everybody has it.
    pub fn finish(&self, packet_id: u16) {
        self.kept.lock().begun.remove(&packet_id);
    }

    /// The client released it, or it was refused.
    pub fn let_go(&self, packet_id: u16) {
        self.kept.lock().held.remove(&packet_id);
    }

    /// The QoS 2 publishes of the client that it has not released.
    pub fn held(&self) -> Vec<u16> {
        self.kept.lock().held.iter().copied().collect()
    }

    /// The connected client's mailbox.
    pub fn mailbox(&self) -> Option<Arc<Mailbox<Parcel>>> {
        self.kept.lock().online.clone()
    }

    /// Notes a subscription.
    pub fn add_filter(&self, filter: &str, options: SubOptions) {
        self.kept.lock().filters.insert(filter.into(), options);
    }

    /// Forgets a subscription.
    pub fn remove_filter(&self, filter: &str) {
        self.kept.lock().filters.remove(filter);
    }

    /// Whether there is that subscription.
    pub fn has_filter(&self, filter: &str) -> bool {
        self.kept.lock().filters.contains_key(filter)
    }

    /// All subscriptions.
    pub fn filters(&self) -> Vec<(Box<str>, SubOptions)> {
        self.kept.lock().filters.iter().map(|(filter, options)| (filter.clone(), *options)).collect()
    }

    /// How many subscriptions there are.
    pub fn filter_count(&self) -> usize {
        self.kept.lock().filters.len()
    }

    /// Whether rows have to be read from the store; if so, from behind which id. `after` is the last id read.
    pub fn behind(&self, after: u64) -> Option<u64> {
        let mut kept = self.kept.lock();
        if !kept.behind {
            return None;
        }
        let due = kept.rows.iter().find(|(_, row)| row.stage.is_due()).map(|(id, _)| *id);
        if due.is_none() {
            kept.behind = false;
        }
        due.map(|id| after.min(id - 1))
    }

    /// The store has no row behind `after` although one is due: whoever removed it, it can not be delivered any more.
    pub fn forget_lost(&self, after: u64) {
        let mut kept = self.kept.lock();
        let lost: Vec<(u64, u16)> = kept
            .rows
            .range(after + 1..)
            .filter(|(_, row)| row.stage.is_due())
            .map(|(id, row)| (*id, row.packet_id))
            .collect();
        for (id, packet_id) in lost {
            kept.rows.remove(&id);
            kept.used.remove(&packet_id);
        }
    }

    /// What to do with a row that was read from the store; `None`: nothing any more.
    pub fn due(&self, id: u64, mut value: Bytes, body: Option<Bytes>) -> Option<Due> {
        let mut kept = self.kept.lock();
        let row = kept.rows.get_mut(&id)?;
        let repeated = row.stage == RowStage::Repeat;
        match row.stage {
            RowStage::Waiting | RowStage::Repeat => row.stage = RowStage::Sent,
            RowStage::ReleaseAgain => {
                row.stage = RowStage::Released;
                return Some(Due::Release { packet_id: row.packet_id, row: id });
            }
            RowStage::Coming | RowStage::Sent | RowStage::Released => return None,
        }
        drop(kept);
        let head = RowHead::decode(&mut value)?;
        let publication = Arc::new(Publication::decode(body.unwrap_or(value))?);
        let RowHead { packet_id, qos, retain, .. } = head;
        Some(Due::Publish(Parcel { publication, qos, retain, packet_id, dup: repeated }))
    }

    /// The client has it: the row can be deleted.
    pub fn taken(&self, row: u64) -> Option<Op> {
        let mut kept = self.kept.lock();
        let gone = kept.rows.remove(&row)?;
        kept.used.remove(&gone.packet_id);
        Some(Op::QueueDelete { id: row })
    }

    /// PUBREC came: what must be saved before PUBREL goes out.
    pub fn received(&self, row: u64) -> Option<Op> {
        let mut kept = self.kept.lock();
        let found = kept.rows.get_mut(&row)?;
        found.stage = RowStage::Released;
        let head = RowHead { packet_id: found.packet_id, qos: Qos::ExactlyOnce, retain: false, released: true };
        Some(Op::QueuePush { id: row, value: head.encode() })
    }

    /// The row of a retained value that a new subscription asks for.
    pub fn keep_retained(&self, publication: &Publication, qos: Qos) -> Option<Op> {
        self.keep(publication, qos, true)
    }

    /// The row of [`KeptSeat::keep_retained`] has landed.
    pub fn deliver_retained(&self, publication: &Arc<Publication>, qos: Qos) {
        self.land(publication, qos, true);
    }

    /// What to save for a delivery. `None`: it is saved already, for instance when a restart repeats an unfinished
    /// fan-out, or there is no room (counted).
    fn keep(&self, publication: &Publication, qos: Qos, retain: bool) -> Option<Op> {
        let mut kept = self.kept.lock();
        if kept.ended {
            return None;
        }
        let packet_id = match kept.rows.get(&publication.id) {
            Some(row) if row.stage == RowStage::Coming => row.packet_id,
            Some(_) => return None,
            None if kept.rows.len() >= self.room.rows.min(MAX_ROWS) => {
                drop_count(&self.metrics, 1);
                return None;
            }
            None => kept.draw(publication.id),
        };
        drop(kept);
        let head = RowHead { packet_id, qos, retain, released: false };
        Some(publication.queue_row(publication.id, head.encode()))
    }

    fn land(&self, publication: &Arc<Publication>, qos: Qos, retain: bool) {
        let mut kept = self.kept.lock();
        let Kept { rows, online, behind, .. } = &mut *kept;
        if qos == Qos::AtMostOnce {
            let Some(mailbox) = online else { return drop_count(&self.metrics, 1) };
            let parcel = Parcel { publication: publication.clone(), qos, retain, packet_id: 0, dup: false };
            return push_live(mailbox, parcel, &self.metrics);
        }
        let Some(row) = rows.get_mut(&publication.id).filter(|row| row.stage == RowStage::Coming) else {
            return;
        };
        row.stage = RowStage::Waiting;
        let Some(mailbox) = online.as_ref().filter(|_| !*behind) else {
            self.metrics.messages(Protocol::Mqtt, Outcome::Stored).add(1);
            return;
        };
        let parcel = Parcel { publication: publication.clone(), qos, retain, packet_id: row.packet_id, dup: false };
        // Durable QoS 1 and 2 is stored already: a reader that is too slow gets it from there.
        match mailbox.push(parcel, Overflow::Refuse) {
            Pushed::Refused(_) => *behind = true,
            _ => row.stage = RowStage::Sent,
        }
    }
}

/// Packet ids are drawn with the rows, so there are never more rows than ids.
const MAX_ROWS: usize = 60_000;

impl Kept {
    fn draw(&mut self, row: u64) -> u16 {
        let mut packet_id = successor(self.last_packet_id);
        // There are fewer rows than ids, so this ends.
        while !self.used.insert(packet_id) {
            packet_id = successor(packet_id);
        }
        self.last_packet_id = packet_id;
        self.rows.insert(row, Row { packet_id, stage: RowStage::Coming });
        packet_id
    }
}

impl RowStage {
    fn is_due(self) -> bool {
        matches!(self, Self::Waiting | Self::Repeat | Self::ReleaseAgain)
    }
}

impl Subscriber for KeptSeat {
    fn id(&self) -> u64 {
        self.id
    }

    fn principal(&self) -> &Principal {
        &self.principal
    }

    fn store(&self, publication: &Arc<Publication>, options: &[SubOptions]) -> Option<Rows> {
        let (qos, retain) = grade(publication, options);
        if qos == Qos::AtMostOnce {
            return None;
        }
        self.keep(publication, qos, retain).map(|op| (self.owner.clone(), vec![op]))
    }

    fn deliver(&self, publication: &Arc<Publication>, options: &[SubOptions]) {
        let (qos, retain) = grade(publication, options);
        self.land(publication, qos, retain);
    }
}
