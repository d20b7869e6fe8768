//! What a client gets, and what it acknowledges.

use std::sync::Arc;
use std::task::{Context, Poll};

use tavi_core::metrics::Outcome;
use tavi_core::permit::Action;
use tavi_core::{Publication, Ticket};
use tavi_store::{Commit, Op};

use super::{Pending, Sitting, closed};
use crate::error::Fault;
use crate::granted::Batch;
use crate::hub::Seat;
use crate::kept::{KeptSeat, Next, Sending};
use crate::link::{Delivery, Line, Said};
use crate::packet::Qos;
use crate::seat::{Parcel, is_empty_value};
use crate::session::Answer;

/// Rows that are dropped in one turn at most before others get theirs.
const DROPPED_AT_ONCE: usize = 500;

/// Retained values whose rows are being saved.
pub(super) struct Granting {
    commit: Commit,
    rows: Vec<(u64, Arc<Publication>, Qos)>,
}

impl Sitting {
    /// Writes what may be written; true if more is there than was written now.
    pub(super) fn deliver(&mut self, cx: &mut Context<'_>, line: &mut dyn Line) -> Result<bool, Fault> {
        let seat = self.place.seat.kept().cloned();
        loop {
            // What is dropped writes nothing, so it is counted too.
            if line.is_full() || self.deletes.len() >= DROPPED_AT_ONCE {
                self.check_open(cx)?;
                return Ok(true);
            }
            let wrote = match &seat {
                Some(seat) => self.write_kept(seat, line),
                None => self.write_live(line),
            };
            if wrote {
                continue;
            }
            if self.next < self.waiting.len() {
                self.check_open(cx)?;
            } else if let Poll::Ready(drained) = self.place.mailbox.poll_drain(cx, &mut self.waiting) {
                drained.map_err(closed)?;
                continue;
            }
            let more = match &seat {
                Some(seat) => self.read_rows(seat, cx)? || self.grant_kept(seat, cx)?,
                None => self.grant_live(cx)?,
            };
            if !more {
                return Ok(false);
            }
        }
    }

    /// The next parcel of the mailbox, if the window has room for it.
    fn write_live(&mut self, line: &mut dyn Line) -> bool {
        let Some(parcel) = self.waiting.get(self.next).filter(|parcel| self.has_room(parcel.qos)) else {
            return false;
        };
        let parcel = Parcel { publication: parcel.publication.clone(), ..*parcel };
        self.next += 1;
        if self.next == self.waiting.len() {
            self.waiting.clear();
            self.waiting.shrink_to(16);
            self.next = 0;
        }
        self.write_parcel(&parcel, line);
        true
    }

    fn write_parcel(&mut self, parcel: &Parcel, line: &mut dyn Line) {
        let Parcel { publication, qos, retain } = parcel;
        let gone = publication.expired(self.now.wall_ms) || (self.asks() && !self.may_receive(&publication.topic));
        if gone {
            return self.hub.count(Outcome::Dropped, 1);
        }
        self.flying += usize::from(*qos > Qos::AtMostOnce);
        let publication = publication.clone();
        self.say(Delivery { row: 0, packet_id: 0, qos: *qos, retain: *retain, dup: false, publication }, line);
    }

    /// Whether another delivery of a clean session may be under way; those of a durable one are counted at its seat.
    fn has_room(&self, qos: Qos) -> bool {
        qos == Qos::AtMostOnce || self.flying < self.place.window
    }

    /// The next thing that is owed to a durable session, in the order of publication.
    fn write_kept(&mut self, seat: &Arc<KeptSeat>, line: &mut dyn Line) -> bool {
        let asks = self.asks();
        let next = seat.next(|topic, read| !(read || asks) || self.may_receive(topic), self.now.wall_ms);
        match next {
            Next::Live(parcel) => self.write_parcel(&parcel, line),
            Next::Owed(sending) => self.send(sending, line),
            Next::Gone(op) => {
                self.hub.count(Outcome::Dropped, 1);
                self.deletes.push(op);
            }
            Next::Nothing => return false,
        }
        true
    }

    /// Whether grants have changed since the client came: then what waits in memory is asked about again. semantics.md,
    /// permissions: each delivery is permitted when it is made.
    fn asks(&self) -> bool {
        self.hub.node().parts.permit.generation() != self.generation
    }

    fn may_receive(&self, topic: &str) -> bool {
        self.hub.node().parts.permit.may(self.place.seat.principal(), Action::Subscribe, topic)
    }

    fn send(&mut self, sending: Sending, line: &mut dyn Line) {
        let Sending { row, owing, dup } = sending;
        let Some(publication) = owing.publication else {
            line.say(Said::ReleaseAgain(row, owing.packet_id));
            return;
        };
        let (qos, retain, packet_id) = (owing.qos, owing.retain, owing.packet_id);
        self.say(Delivery { row, packet_id, qos, retain, dup, publication }, line);
    }

    fn say(&mut self, delivery: Delivery, line: &mut dyn Line) {
        let (row, qos) = (delivery.row, delivery.qos);
        if line.say(Said::Deliver(delivery)) {
            self.hub.count(Outcome::Delivered, 1);
        } else {
            self.skipped(row, qos);
        }
    }

    /// Reads what a durable session has in the store, a page at a time as there is room for it; true if one came.
    fn read_rows(&mut self, seat: &Arc<KeptSeat>, cx: &mut Context<'_>) -> Result<bool, Fault> {
        if self.reading.is_none() {
            let Some(after) = seat.wants() else { return Ok(false) };
            self.reading = Some((after, self.hub.read_queue(seat.owner().clone(), after)));
        }
        let Some((after, reading)) = &mut self.reading else { return Ok(false) };
        let Poll::Ready(page) = reading.as_mut().poll(cx) else { return Ok(false) };
        let after = *after;
        self.reading = None;
        let page = page.map_err(|error| {
            tracing::error!(%error, "an MQTT session ends because the store failed");
            Fault::Store
        })?;
        self.deletes.extend(seat.page(after, page));
        Ok(true)
    }

    // --- retained values ---

    /// Takes the next retained value that a subscription of a clean session found; true if the subscription went on.
    fn grant_live(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        if self.next < self.waiting.len() {
            return Ok(false);
        }
        let Some(granted) = self.granted.front_mut() else { return Ok(false) };
        let wanted = granted.wanted;
        let Poll::Ready(found) = granted.stream.poll_next(cx) else { return Ok(false) };
        match found.map_err(|_| Fault::Store)? {
            Some(publication) if is_empty_value(&publication) => {}
            Some(publication) => {
                let qos = wanted.min(publication.qos);
                self.waiting.push(Parcel { publication, qos, retain: true });
            }
            None => drop(self.granted.pop_front()),
        }
        Ok(true)
    }

    /// Gives some of the retained values of a durable session their rows, and lands those that have them.
    fn grant_kept(&mut self, seat: &Arc<KeptSeat>, cx: &mut Context<'_>) -> Result<bool, Fault> {
        if self.granting.is_some() {
            return self.land_granted(seat, cx);
        }
        if !seat.wants_granted() {
            return Ok(false);
        }
        let Some(granted) = self.granted.front_mut() else { return Ok(false) };
        let batch = granted.pull(seat, || self.hub.next_id(), cx);
        let Batch { rows, live, mut ops, reached, ended, failed } = batch;
        if failed.is_some() {
            seat.land_retained(rows, false);
            return Err(Fault::Store);
        }
        match reached {
            _ if ended => ops.extend(granted.finished()),
            Some(topic) => ops.extend(granted.reached(&topic)),
            None => return Ok(false),
        }
        if ended {
            self.granted.pop_front();
        }
        live.into_iter().for_each(|parcel| seat.put_fleeting(parcel));
        if !ops.is_empty() {
            self.granting = Some(Box::new(Granting { commit: self.saver()(ops), rows }));
        }
        Ok(true)
    }

    /// Lands the retained values whose rows are saved; true if they were.
    pub(super) fn land_granted(&mut self, seat: &KeptSeat, cx: &mut Context<'_>) -> Result<bool, Fault> {
        let Some(granting) = &mut self.granting else { return Ok(false) };
        let Poll::Ready(saved) = std::pin::Pin::new(&mut granting.commit).poll(cx) else { return Ok(false) };
        let rows = self.granting.take().map(|granting| granting.rows).unwrap_or_default();
        seat.land_retained(rows, saved.is_ok());
        saved.map(|()| true).map_err(|_| Fault::Store)
    }

    // --- acknowledgements ---

    pub(super) fn taken(&mut self, row: u64) {
        match &self.place.seat {
            Seat::Kept(seat) => self.deletes.extend(seat.taken(row)),
            Seat::Live(_) => self.flying = self.flying.saturating_sub(1),
        }
    }

    /// MQTT 5.0 §3.1.2.11.4: what is too large for the client is as if it had been delivered.
    pub(super) fn skipped(&mut self, row: u64, qos: Qos) {
        self.hub.count(Outcome::Dropped, 1);
        if qos > Qos::AtMostOnce {
            self.taken(row);
        }
    }

    pub(super) fn received(&mut self, row: u64, answer: Answer, size: usize, line: &mut dyn Line) -> Result<(), Fault> {
        let ops = match &self.place.seat {
            Seat::Kept(seat) if row != 0 => seat.received(row),
            _ => Vec::new(),
        };
        let ticket = if ops.is_empty() { Ticket::done() } else { self.commit(ops) };
        self.after(ticket, Pending::Answer(answer), size, line)
    }

    /// Acknowledged rows go in one commit for all that came together. No acknowledgement waits for it: a row that comes
    /// back after a crash is sent again under its packet id.
    pub(super) fn flush_deletes(&mut self) {
        if self.deletes.is_empty() {
            return;
        }
        let mut rest = std::mem::take(&mut self.deletes);
        while !rest.is_empty() {
            // One commit takes a bounded number of operations.
            let more = rest.split_off(rest.len().min(1000));
            let rows = rest.iter().filter_map(|op| if let Op::QueueDelete { id } = op { Some(*id) } else { None });
            let rows = rows.collect();
            let commit = self.saver()(rest);
            self.deleting.push_back((commit, rows));
            rest = more;
        }
    }

    /// Tells the seat of rows that are gone; true if some are, so that their packet ids are free.
    pub(super) fn poll_deletes(&mut self, cx: &mut Context<'_>) -> bool {
        let Seat::Kept(seat) = &self.place.seat else { return false };
        let before = self.deleting.len();
        while let Some((commit, rows)) = self.deleting.front_mut() {
            let Poll::Ready(deleted) = std::pin::Pin::new(commit).poll(cx) else { break };
            if let Err(error) = deleted {
                tracing::error!(%error, "acknowledged rows of an MQTT session come again after the next start");
            }
            seat.deleted(rows);
            self.deleting.pop_front();
        }
        self.deleting.shrink_to(4);
        self.deleting.len() < before
    }
}
