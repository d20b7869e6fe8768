//! What a client gets, and what it acknowledges.

use std::task::{Context, Poll};

use tavi_core::metrics::Outcome;
use tavi_core::permit::Action;
use tavi_store::QueueRow;

use super::{CaughtUp, Client, PAGE, Pending, WRITE_AHEAD, closed};
use crate::error::Fault;
use crate::hub::Seat;
use crate::publish::Head;
use crate::render;
use crate::seat::{Due, KeptSeat, Parcel};
use crate::session::{Answer, Sent, Session};

impl Client {
    /// Writes what may be written; true if more is there than was written now.
    pub(super) fn deliver(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<bool, Fault> {
        loop {
            if !self.write_waiting(out) {
                self.check_open(cx)?;
                return Ok(out.len() >= WRITE_AHEAD);
            }
            // The mailbox first: what is only in the store was refused by it, so it is younger.
            match self.place.mailbox.poll_drain(cx, &mut self.waiting) {
                Poll::Ready(Ok(())) => continue,
                Poll::Ready(Err(why)) => return Err(closed(why)),
                Poll::Pending => {}
            }
            match self.read_rows(cx, out) {
                Poll::Ready(Ok(CaughtUp::Yes)) | Poll::Pending => return Ok(false),
                Poll::Ready(Ok(CaughtUp::NotYet)) => {}
                Poll::Ready(Err(fault)) => return Err(fault),
            }
        }
    }

    /// Writes parcels until none waits (true), the window is full or enough is written (false).
    fn write_waiting(&mut self, out: &mut Vec<u8>) -> bool {
        let before = self.next;
        while let Some(parcel) = self.waiting.get(self.next) {
            if out.len() >= WRITE_AHEAD || !self.session.has_room(parcel.qos) {
                break;
            }
            self.next += 1;
            if let Some(row) = write_parcel(&mut self.session, parcel, self.now.wall_ms, out) {
                self.hub.count(Outcome::Dropped, 1);
                if let (Seat::Kept(seat), true) = (&self.place.seat, row != 0) {
                    self.deletes.extend(seat.taken(row));
                }
            }
        }
        self.hub.count(Outcome::Delivered, (self.next - before) as u64);
        if self.next < self.waiting.len() {
            return false;
        }
        self.waiting.clear();
        self.waiting.shrink_to(16);
        self.next = 0;
        true
    }

    /// Reads what a durable session has in the store, a page at a time, until it has caught up with its mailbox.
    fn read_rows(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Result<CaughtUp, Fault>> {
        let Seat::Kept(seat) = &self.place.seat else { return Poll::Ready(Ok(CaughtUp::Yes)) };
        let seat = seat.clone();
        if self.reading.is_none() {
            let Some(after) = seat.behind(self.cursor) else { return Poll::Ready(Ok(CaughtUp::Yes)) };
            self.cursor = after;
            self.reading = Some(self.hub.read_queue(seat.owner().clone(), after, PAGE));
        }
        let Some(Poll::Ready(page)) = self.reading.as_mut().map(|reading| reading.as_mut().poll(cx)) else {
            return Poll::Pending;
        };
        self.reading = None;
        let Ok(rows) = page else { return Poll::Ready(Err(Fault::Store)) };
        self.take_rows(&seat, rows, out);
        Poll::Ready(Ok(CaughtUp::NotYet))
    }

    fn take_rows(&mut self, seat: &KeptSeat, rows: Vec<QueueRow>, out: &mut Vec<u8>) {
        if rows.is_empty() {
            seat.forget_lost(self.cursor);
        }
        for row in rows {
            self.cursor = row.id;
            match seat.due(row.id, row.value, row.body) {
                Some(Due::Publish(parcel)) if self.may_receive(&parcel) => self.waiting.push(parcel),
                Some(Due::Publish(parcel)) => {
                    self.hub.count(Outcome::Dropped, 1);
                    self.deletes.extend(seat.taken(parcel.publication.id));
                }
                Some(Due::Release { packet_id, row }) => self.session.release_again(packet_id, row, out),
                None => {}
            }
        }
    }

    /// semantics.md, permissions: asked at each delivery; what was kept while it was permitted may not be so any more.
    fn may_receive(&self, parcel: &Parcel) -> bool {
        let permit = &self.hub.node().parts.permit;
        permit.may(self.place.seat.principal(), Action::Subscribe, &parcel.publication.topic)
    }

    pub(super) fn taken(&mut self, row: u64) {
        if let (Seat::Kept(seat), true) = (&self.place.seat, row != 0) {
            self.deletes.extend(seat.taken(row));
        }
    }

    pub(super) fn received(&mut self, row: u64, answer: Answer, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        let op = match &self.place.seat {
            Seat::Kept(seat) if row != 0 => seat.received(row),
            _ => None,
        };
        match op {
            Some(op) => {
                let ticket = self.commit(vec![op]);
                self.after(ticket, Pending::Answer(answer), size, out)
            }
            None => {
                self.session.answer(answer, out);
                Ok(())
            }
        }
    }

    /// Acknowledged rows go in one commit for all that came together. Nobody waits for it: a row that comes back after
    /// a crash is sent again under its packet id.
    pub(super) fn flush_deletes(&mut self) {
        if !self.deletes.is_empty() {
            let ops = std::mem::take(&mut self.deletes);
            drop(self.saver()(ops));
        }
    }
}

/// Writes one parcel; gives its row (0: none) if it went nowhere: expired or over the client's maximum.
fn write_parcel(session: &mut Session, parcel: &Parcel, now_ms: u64, out: &mut Vec<u8>) -> Option<u64> {
    let publication = &*parcel.publication;
    let row = if parcel.packet_id == 0 { 0 } else { publication.id };
    // MQTT 5.0 §3.3.2.3.3: what has expired is not delivered any more.
    if publication.expired(now_ms) {
        return Some(row);
    }
    let Parcel { dup, qos, retain, packet_id, .. } = *parcel;
    let expiry = render::expiry(publication, now_ms);
    let head = Head { dup, qos, retain, packet_id, expiry, ..Head::default() };
    (session.deliver(render::body(publication), head, row, out) == Sent::TooLarge).then_some(row)
}
