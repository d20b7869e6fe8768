//! What a client gets, and what it acknowledges.

use std::sync::Arc;
use std::task::{Context, Poll};

use tavi_core::metrics::Outcome;
use tavi_core::permit::Action;
use tavi_core::{Publication, Ticket};
use tavi_store::{Commit, Op};

use super::{Client, Pending, WRITE_AHEAD, closed};
use crate::error::Fault;
use crate::granted::Batch;
use crate::hub::Seat;
use crate::kept::{KeptSeat, Next, Sending};
use crate::packet::Qos;
use crate::publish::Head;
use crate::render;
use crate::seat::{Parcel, is_empty_value};
use crate::session::{Answer, Sent};

/// Rows that are dropped in one turn at most before others get theirs.
const DROPPED_AT_ONCE: usize = 500;

/// Retained values whose rows are being saved.
pub(super) struct Granting {
    commit: Commit,
    rows: Vec<(u64, Arc<Publication>, Qos)>,
}

impl Client {
    /// Writes what may be written; true if more is there than was written now.
    pub(super) fn deliver(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<bool, Fault> {
        let seat = self.place.seat.kept().cloned();
        loop {
            // What is dropped writes nothing, so it is counted too.
            if out.len() >= WRITE_AHEAD || self.deletes.len() >= DROPPED_AT_ONCE {
                self.check_open(cx)?;
                return Ok(true);
            }
            let wrote = match &seat {
                Some(seat) => self.write_kept(seat, out),
                None => self.write_live(out),
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
    fn write_live(&mut self, out: &mut Vec<u8>) -> bool {
        let Some(parcel) = self.waiting.get(self.next).filter(|parcel| self.session.has_room(parcel.qos)) else {
            return false;
        };
        let parcel = Parcel { publication: parcel.publication.clone(), ..*parcel };
        self.next += 1;
        if self.next == self.waiting.len() {
            self.waiting.clear();
            self.waiting.shrink_to(16);
            self.next = 0;
        }
        self.write_parcel(&parcel, out);
        true
    }

    fn write_parcel(&mut self, parcel: &Parcel, out: &mut Vec<u8>) {
        let Parcel { publication, qos, retain } = parcel;
        let gone = publication.expired(self.now.wall_ms) || (self.asks() && !self.may_receive(&publication.topic));
        let head = Head { qos: *qos, retain: *retain, ..Head::default() };
        if gone || !self.write(publication, head, 0, out) {
            self.hub.count(Outcome::Dropped, 1);
        }
    }

    /// The next thing that is owed to a durable session, in the order of publication.
    fn write_kept(&mut self, seat: &Arc<KeptSeat>, out: &mut Vec<u8>) -> bool {
        let session = &self.session;
        let asks = self.asks();
        let next = seat.next(
            |packet_id| session.has_room(Qos::AtLeastOnce) && !session.is_open(packet_id),
            |topic, read| !(read || asks) || self.may_receive(topic),
            self.now.wall_ms,
        );
        match next {
            Next::Live(parcel) => self.write_parcel(&parcel, out),
            Next::Owed(sending) => self.send(seat, sending, out),
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

    fn send(&mut self, seat: &KeptSeat, sending: Sending, out: &mut Vec<u8>) {
        let Sending { row, owing, dup } = sending;
        let Some(publication) = owing.publication else {
            return self.session.release_again(owing.packet_id, row, out);
        };
        let (qos, retain, packet_id) = (owing.qos, owing.retain, owing.packet_id);
        let head = Head { dup, qos, retain, packet_id, ..Head::default() };
        if !self.write(&publication, head, row, out) {
            self.hub.count(Outcome::Dropped, 1);
            self.deletes.extend(seat.taken(row));
        }
    }

    /// Writes one publish; false if the client does not take packets of that size.
    fn write(&mut self, publication: &Publication, head: Head<'_>, row: u64, out: &mut Vec<u8>) -> bool {
        let head = Head { expiry: render::expiry(publication, self.now.wall_ms), ..head };
        let written = self.session.deliver(render::body(publication), head, row, out) == Sent::Written;
        self.hub.count(Outcome::Delivered, u64::from(written));
        written
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
            self.granting = Some(Granting { commit: self.saver()(ops), rows });
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
        if let (Seat::Kept(seat), true) = (&self.place.seat, row != 0) {
            self.deletes.extend(seat.taken(row));
        }
    }

    pub(super) fn received(&mut self, row: u64, answer: Answer, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        let ops = match &self.place.seat {
            Seat::Kept(seat) if row != 0 => seat.received(row),
            _ => Vec::new(),
        };
        let ticket = if ops.is_empty() { Ticket::done() } else { self.commit(ops) };
        self.after(ticket, Pending::Answer(answer), size, out)
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
