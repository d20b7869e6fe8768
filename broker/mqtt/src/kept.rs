//! The seat of a durable session: it stays subscribed while nobody is connected, and what is owed to it stands in the
//! store before it is acknowledged to its publisher.
//!
//! The order of what is owed, and what of it is in memory, is the core's [`Backlog`](tavi_core::backlog::Backlog). Here is what MQTT adds: packet ids
//! that a row keeps for life (MQTT 5.0 §4.4), QoS 2 between PUBREC and PUBCOMP, expiry, and the bounds of the queue.

mod expiring;
mod fleeting;
mod queue;
mod sweep;

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tavi_core::backlog::{Bound, Owed};
use tavi_core::metrics::{Outcome, Protocol};
use tavi_core::topics::{Rows, Seating, SubOptions, Subscriber};
use tavi_core::{Mailbox, Metrics, Principal, Publication, Weigh};
use tavi_store::{Commit, Op, Owner, QueuePage, QueueRow, QueueSize, SharedStore};

use crate::granted::Granted;
use crate::packet::Qos;
use crate::record::{self, HEAD, RowHead};
use crate::seat::{Parcel, Room, drop_count, grade};
use fleeting::Fleeting;
use queue::{Coming, Kept};

/// A QoS 1 or 2 delivery that stands in the session's queue.
#[derive(Clone, Debug)]
pub struct Owing {
    /// Drawn when it was queued, and kept with the row.
    pub packet_id: u16,
    /// QoS of the delivery, 1 or 2.
    pub qos: Qos,
    /// RETAIN flag of the delivery.
    pub retain: bool,
    /// What; `None` when the client sent PUBREC and only PUBREL and PUBCOMP are missing.
    pub publication: Option<Arc<Publication>>,
    /// It was read from the store: what was permitted when it was queued may not be so any more.
    pub read: bool,
    /// Bytes of the row.
    size: usize,
}

impl Weigh for Owing {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.publication.as_ref().map_or(0, |publication| publication.weight())
    }
}

impl Owed for Owing {
    fn is_stored(&self) -> bool {
        true
    }
}

impl Owing {
    /// `None`: the row is damaged.
    fn read(row: QueueRow) -> Option<Self> {
        let size = row.len();
        let mut value = row.value;
        let RowHead { packet_id, qos, retain, released } = RowHead::decode(&mut value)?;
        let stored = row.body.unwrap_or(value);
        let publication = if released { None } else { Some(Arc::new(Publication::decode(stored)?)) };
        Some(Self { packet_id, qos, retain, publication, read: true, size })
    }
}

/// One delivery for the connected client.
pub struct Sending {
    /// Its row.
    pub row: u64,
    /// What.
    pub owing: Owing,
    /// It may have been sent before (MQTT 5.0 §3.3.1.1).
    pub dup: bool,
}

/// What comes next for the connected client.
pub enum Next {
    /// This, of QoS 0.
    Live(Parcel),
    /// This, from the queue.
    Owed(Sending),
    /// The queue had something that is not delivered any more, it has to be deleted.
    Gone(Op),
    /// Nothing just now.
    Nothing,
}

/// The seat of a durable session.
pub struct KeptSeat {
    seating: Seating,
    owner: Owner,
    room: Room,
    metrics: Arc<Metrics>,
    store: SharedStore,
    kept: Mutex<Kept>,
}

/// What an earlier process left in a session's queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recalled {
    /// How much there is.
    pub size: QueueSize,
    /// The packet id of the first row.
    pub first_packet_id: u16,
    /// Rows up to this one may have been sent.
    pub maybe_sent: u64,
    /// The greatest id that was stored.
    pub last_id: u64,
}

impl KeptSeat {
    /// A durable session with what an earlier process left of it.
    pub fn new(
        seating: Seating,
        (owner, store): (Owner, SharedStore),
        (room, metrics): (Room, Arc<Metrics>),
        recalled: Recalled,
    ) -> Self {
        let kept = Mutex::new(Kept::new(room, recalled));
        Self { seating, owner, room, metrics, store, kept }
    }

    /// What the topics know of it.
    pub fn name(&self) -> Arc<dyn Subscriber> {
        self.seating.name()
    }

    /// The partition of its rows.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The session ends: what is still on its way to the store for it is not saved.
    pub fn end(&self) {
        self.kept.lock().ended = true;
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.kept.lock().ended
    }

    /// Saves something of the session, unless it has ended: its rows are gone then, or are another session's.
    pub fn save(&self, commit: impl FnOnce() -> Commit) -> Commit {
        let kept = self.kept.lock();
        if kept.ended { Commit::ready(Ok(())) } else { commit() }
    }

    // --- the connection ---

    /// A client is connected, of which so much may be in flight: its mailbox.
    pub fn attach(&self, window: usize) -> Arc<Mailbox<Parcel>> {
        let mailbox = self.room.mailbox();
        let mut kept = self.kept.lock();
        kept.backlog.attach(Bound { items: window, bytes: usize::MAX });
        kept.online = Some(mailbox.clone());
        mailbox
    }

    /// The client of that mailbox is gone: what it did not acknowledge is owed again. Gives the greatest row that was
    /// ever sent.
    pub fn detach(&self, mailbox: &Arc<Mailbox<Parcel>>) -> u64 {
        let mut kept = self.kept.lock();
        if kept.online.as_ref().is_some_and(|now| Arc::ptr_eq(now, mailbox)) {
            kept.online = None;
            kept.fleeting = Fleeting::default();
            kept.backlog.page_failed();
            kept.backlog.cut();
            kept.open.clear();
            // Nobody reads it now, and it is in the store.
            kept.backlog.shed();
        }
        kept.sent
    }

    /// The connected client's mailbox.
    pub fn mailbox(&self) -> Option<Arc<Mailbox<Parcel>>> {
        self.kept.lock().online.clone()
    }

    /// How many deliveries wait in memory.
    pub fn waiting(&self) -> usize {
        let kept = self.kept.lock();
        kept.backlog.len() + kept.fleeting.len()
    }

    /// Whether this process publishes again what an earlier one began, so that some rows may have been counted twice.
    pub fn is_counted_twice(&self) -> bool {
        !self.kept.lock().again.is_empty()
    }

    /// What the store counts.
    pub fn recount(&self, size: QueueSize) {
        self.kept.lock().filled = size;
    }

    /// How much is kept.
    pub fn size(&self) -> QueueSize {
        self.kept.lock().filled
    }

    // --- the client's own QoS 2 publishes ---

    /// Notes a QoS 2 publish of the client.
    pub fn hold(&self, packet_id: u16) {
        self.kept.lock().held.insert(packet_id);
    }

    /// A QoS 2 publish of the client is published under this id.
    pub fn begin(&self, packet_id: u16, id: u64) {
        let mut kept = self.kept.lock();
        kept.held.insert(packet_id);
        kept.begun.insert(packet_id, id);
    }

    /// The id under which an attempt to publish it failed, or is under way.
    pub fn failed(&self, packet_id: u16) -> Option<u64> {
        self.kept.lock().begun.get(&packet_id).copied()
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

    // --- subscriptions ---

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

    /// Retained values that are still to be read, for the next connection.
    pub fn leave_granted(&self, granted: VecDeque<Granted>) {
        self.kept.lock().granted.extend(granted);
    }

    /// Those that an earlier connection left.
    pub fn take_granted(&self) -> VecDeque<Granted> {
        std::mem::take(&mut self.kept.lock().granted)
    }

    // --- deliveries ---

    /// Whether rows have to be read from the store; if so, from behind which id. The answer is [`KeptSeat::page`].
    pub fn wants(&self) -> Option<u64> {
        self.kept.lock().backlog.wants()
    }

    /// The page that was wanted behind `after`. Gives damaged rows to be deleted.
    pub fn page(&self, after: u64, page: QueuePage) -> Vec<Op> {
        let upto = page.rows.last().map_or(after, |row| row.id);
        let mut kept = self.kept.lock();
        let (mut rows, mut damaged) = (Vec::new(), Vec::new());
        for row in page.rows.into_iter() {
            let (id, size) = (row.id, row.len());
            match Owing::read(row) {
                _ if kept.abandoned.contains(&id) => {}
                Some(owing) => rows.push((id, owing)),
                None => {
                    tracing::warn!(
                        session = record::shown(&self.owner),
                        id,
                        "a damaged row of an MQTT session is left out"
                    );
                    kept.empty(size);
                    damaged.push(Op::QueueDelete { id });
                }
            }
        }
        kept.backlog.page(rows, upto, page.end);
        damaged
    }

    /// What comes next. `may` tells whether the client may receive from a topic.
    pub fn next(&self, may: impl Fn(&str, bool) -> bool, now_ms: u64) -> Next {
        let mut kept = self.kept.lock();
        let owed = kept.backlog.peek().map(|(id, owing)| (id, owing.packet_id));
        match (kept.fleeting.first(), owed) {
            (Some(front), Some((id, _))) if front < id => kept.give_fleeting(),
            (Some(front), None) if !kept.goes_before(front) => kept.give_fleeting(),
            (_, None) => Next::Nothing,
            // The window waits where an id is still in use (MQTT 5.0 §2.2.1).
            (_, Some((id, packet_id))) if kept.is_in_use(id, packet_id) => Next::Nothing,
            _ => kept.give(may, now_ms),
        }
    }

    /// The client has it: the row can be deleted.
    pub fn taken(&self, row: u64) -> Option<Op> {
        self.kept.lock().taken(row)
    }

    /// The rows are gone from the store.
    pub fn deleted(&self, rows: &[u64]) {
        let mut kept = self.kept.lock();
        for row in rows {
            kept.backlog.deleted(*row);
            kept.leaving.remove(row);
        }
    }

    /// PUBREC came: what must be saved before PUBREL goes out.
    pub fn received(&self, row: u64) -> Vec<Op> {
        let mut kept = self.kept.lock();
        let Some(&Owing { packet_id, size, .. }) = kept.backlog.flying(row) else { return Vec::new() };
        if kept.released.insert(row) {
            kept.filled.bytes = kept.filled.bytes.saturating_sub(size.saturating_sub(HEAD) as u64);
        }
        let head = RowHead { packet_id, qos: Qos::ExactlyOnce, retain: false, released: true };
        vec![Op::QueueDelete { id: row }, Op::QueuePush { id: row, value: head.encode() }]
    }

    /// Whether the retained values that a subscription found may be read on: when all before them are on their way.
    pub fn wants_granted(&self) -> bool {
        let kept = self.kept.lock();
        kept.granting == 0 && kept.backlog.is_empty() && !kept.backlog.is_behind() && kept.fleeting.is_empty()
    }

    /// The row of a retained value that a subscription found, and its place. It is not asked whether there is room:
    /// such values are read as the client takes them.
    pub fn keep_retained(&self, publication: &Arc<Publication>, qos: Qos, fresh: impl FnOnce() -> u64) -> (u64, Op) {
        let mut kept = self.kept.lock();
        let place = kept.place_of(publication.id, fresh);
        kept.granting += 1;
        (place, kept.queue(place, publication, (qos, true)))
    }

    /// Rows of [`KeptSeat::keep_retained`] are saved, or could not be.
    pub fn land_retained(&self, rows: Vec<(u64, Arc<Publication>, Qos)>, saved: bool) {
        {
            let mut kept = self.kept.lock();
            kept.granting = kept.granting.saturating_sub(rows.len());
        }
        for (place, publication, qos) in rows {
            if saved {
                self.land(place, &publication, (qos, true));
            } else {
                self.kept.lock().fail(place);
                self.wake();
            }
        }
    }

    /// What was behind something that came, or failed, may go.
    fn wake(&self) {
        self.mailbox().iter().for_each(|mailbox| mailbox.wake());
    }

    /// What to save for a delivery. `None`: it is on its way already, for instance when a restart repeats an unfinished
    /// fan-out, or there is no room (counted).
    fn keep(&self, publication: &Arc<Publication>, grade: (Qos, bool)) -> Option<Vec<Op>> {
        let mut kept = self.kept.lock();
        if kept.ended || kept.backlog.has(publication.id) {
            return None;
        }
        kept.abandoned.remove(&publication.id);
        let size = HEAD + publication.stored().len();
        let Some(expired) = kept.make_room(size, self.room, publication.time_ms) else {
            self.is_full(&mut kept);
            return None;
        };
        kept.full &= kept.filled.rows * 4 > self.room.rows as u64 * 3;
        // An attempt that failed may have left its row; one commit takes that and puts this.
        let gone = expired.iter().copied().chain(publication.rendered.replaces);
        let mut ops: Vec<Op> = gone.map(|id| Op::QueueDelete { id }).collect();
        if !expired.is_empty() {
            kept.clearing.insert(publication.id, expired);
        }
        if publication.id <= kept.former {
            kept.again.insert(publication.id);
        }
        ops.push(kept.queue(publication.id, publication, grade));
        Some(ops)
    }

    fn is_full(&self, kept: &mut Kept) {
        drop_count(&self.metrics, 1);
        if !std::mem::replace(&mut kept.full, true) {
            let QueueSize { rows, bytes } = kept.filled;
            tracing::warn!(
                session = record::shown(&self.owner),
                rows,
                bytes,
                "the queue of an MQTT session is full: what is published for it is dropped until its client takes some"
            );
        }
    }

    /// Something of QoS 0 waits for the client; if none is connected it is dropped.
    pub fn put_fleeting(&self, parcel: Parcel) {
        let (dropped, online) = {
            let mut kept = self.kept.lock();
            match kept.online.clone() {
                Some(mailbox) => (kept.fleeting.put(parcel, self.room), Some(mailbox)),
                None => (1, None),
            }
        };
        drop_count(&self.metrics, dropped);
        online.iter().for_each(|mailbox| mailbox.wake());
    }

    fn land(&self, place: u64, publication: &Arc<Publication>, (qos, retain): (Qos, bool)) {
        let mut kept = self.kept.lock();
        let Some(Coming { packet_id, size }) = kept.came(place) else { return };
        let publication = Some(publication.clone());
        let owing = Owing { packet_id, qos, retain, publication, read: false, size };
        // What is stored is always taken.
        let _ = kept.backlog.landed(place, owing);
        match kept.online.clone() {
            Some(mailbox) => {
                drop(kept);
                mailbox.wake();
            }
            None => {
                kept.backlog.shed();
                self.metrics.messages(Protocol::Mqtt, Outcome::Stored).add(1);
            }
        }
    }
}

/// So many failed rows are remembered until they are deleted.
const ABANDONED: usize = 4096;

impl Subscriber for KeptSeat {
    fn id(&self) -> u64 {
        self.seating.number()
    }

    fn principal(&self) -> &Principal {
        self.seating.principal()
    }

    fn store(&self, publication: &Arc<Publication>, options: &[SubOptions]) -> Option<Rows> {
        let (qos, retain) = grade(publication, options);
        if qos == Qos::AtMostOnce {
            return None;
        }
        self.keep(publication, (qos, retain)).map(|ops| (self.owner.clone(), ops))
    }

    fn partition(&self) -> Option<&Owner> {
        Some(&self.owner)
    }

    fn save(&self, store: &SharedStore, _: u64, (owner, ops): Rows) -> Commit {
        KeptSeat::save(self, || store.commit(&owner, ops))
    }

    fn deliver(&self, publication: &Arc<Publication>, options: &[SubOptions]) {
        let (qos, retain) = grade(publication, options);
        if qos > Qos::AtMostOnce {
            return self.land(publication.id, publication, (qos, retain));
        }
        self.put_fleeting(Parcel { publication: publication.clone(), qos, retain });
    }

    /// Its row may be in the store, though its publisher was told that it failed: it is not delivered, and deleted.
    fn abandon(&self, publication: &Arc<Publication>) {
        let id = publication.id;
        let mut kept = self.kept.lock();
        if !kept.fail(id) || kept.ended {
            return;
        }
        kept.abandoned.insert(id);
        if kept.abandoned.len() > ABANDONED {
            // Deleted long since.
            kept.abandoned.pop_first();
        }
        drop(self.store.commit(&self.owner, vec![Op::QueueDelete { id }]));
    }
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
