//! The MQTT session as a state machine without IO: packets in, replies and steps out, time as an argument.
//!
//! It knows packet ids, windows and the keep-alive, and nothing of topics, rights or storage: what those have to do it
//! returns as a [`Step`], and what they decided comes back as an [`Answer`].

use crate::error::Fault;
use crate::flight::{Flight, Stage};
use crate::packet::{Ack, Connect, Disconnect, Packet, Publish, Qos, Reason, Subscribe, Unsubscribe, Version};
use crate::publish::{self, Head};
use crate::reply::{self, AckKind};

/// What a session needs to know of the broker's limits.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How many QoS 1 and 2 publishes of a client may be open; announced as Receive Maximum (MQTT 5.0 §3.2.2.3.3).
    pub receive_maximum: u16,
    /// How many the broker sends unacknowledged, if the client takes that many.
    pub in_flight: u16,
}

/// A connected client's protocol state.
#[derive(Debug)]
pub struct Session {
    version: Version,
    maximum_packet: u32,
    keep_alive_ms: u32,
    heard_ms: u64,
    receive_maximum: u16,
    open: u16,
    held: Held,
    flight: Flight,
}

/// What the session asks of its surroundings. Whatever could be answered at once is in the reply buffer already.
#[derive(Debug)]
pub enum Step {
    /// Nothing.
    Idle,
    /// Publish it, then hand back [`Answer::published`].
    Publish(Publish),
    /// The same QoS 2 publish again: hand back its PUBREC behind all that is open, and publish nothing.
    Repeated(Answer),
    /// The client released this QoS 2 packet id: forget it durably if it was kept so, then hand back the answer.
    Release(Answer),
    /// The client has the publish of this row (0: none): it need not be kept any longer.
    Taken {
        /// The stored row.
        row: u64,
    },
    /// The client received the QoS 2 publish of this row: note that durably, then hand back the answer.
    Received {
        /// The stored row, 0 if there is none.
        row: u64,
        /// The PUBREL.
        answer: Answer,
    },
    /// Subscribe, then write SUBACK.
    Subscribe(Subscribe),
    /// Unsubscribe, then write UNSUBACK.
    Unsubscribe(Unsubscribe),
    /// The client leaves.
    Leave(Disconnect),
}

/// An acknowledgement that waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    kind: Option<AckKind>,
    packet_id: u16,
    reason: Reason,
}

impl Answer {
    /// The answer to a publish: PUBACK, PUBREC or none by its QoS (MQTT 5.0 §4.3).
    pub fn published(qos: Qos, packet_id: u16, reason: Reason) -> Self {
        let kind = match qos {
            Qos::AtMostOnce => None,
            Qos::AtLeastOnce => Some(AckKind::PubAck),
            Qos::ExactlyOnce => Some(AckKind::PubRec),
        };
        Self { kind, packet_id, reason }
    }

    pub(crate) fn parts(&self) -> (Option<AckKind>, u16, Reason) {
        (self.kind, self.packet_id, self.reason)
    }

    pub(crate) fn from_parts(kind: Option<AckKind>, packet_id: u16, reason: Reason) -> Self {
        Self { kind, packet_id, reason }
    }

    /// The packet id of the QoS 2 publish that it confirms, if it is a PUBREC.
    pub fn received_id(&self) -> Option<u16> {
        (self.kind == Some(AckKind::PubRec)).then_some(self.packet_id)
    }

    /// Whether it refuses.
    pub fn is_failure(&self) -> bool {
        self.reason.is_failure()
    }

    /// The packet id that it answers.
    pub fn packet_id(&self) -> u16 {
        self.packet_id
    }
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is in the buffer.
    Written,
    /// The client does not take packets of that size; it was skipped, as if it had been delivered (MQTT 5.0 §3.1.2.11.4).
    TooLarge,
}

impl Session {
    /// The session of a client that was let in at `now_ms`. `held`: packet ids of QoS 2 publishes that an earlier
    /// connection of this session began.
    pub fn new(connect: &Connect, bounds: Bounds, held: &[u16], now_ms: u64) -> Self {
        Self {
            version: connect.version,
            maximum_packet: connect.maximum_packet,
            // MQTT 5.0 §3.1.2.10: one and a half times the keep-alive; 0 turns it off.
            keep_alive_ms: u32::from(connect.keep_alive) * 1500,
            heard_ms: now_ms,
            receive_maximum: bounds.receive_maximum,
            open: 0,
            held: Held { ids: held.iter().map(|id| (*id, true)).collect() },
            flight: Flight::new(bounds.in_flight.min(connect.receive_maximum)),
        }
    }

    /// The version that it speaks.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether the client takes a packet of `size` bytes (MQTT 5.0 §3.1.2.11.4).
    pub fn takes(&self, size: usize) -> bool {
        size <= self.maximum_packet as usize
    }

    /// Takes a packet that arrived at `now_ms`; writes what can be answered at once to `out`.
    ///
    /// # Errors
    /// The client broke the protocol; the connection is over.
    pub fn receive(&mut self, packet: Packet, now_ms: u64, out: &mut Vec<u8>) -> Result<Step, Fault> {
        self.heard_ms = now_ms;
        match packet {
            Packet::Publish(publish) => self.published(publish),
            Packet::PubAck(ack) => Ok(self.acknowledged(ack)),
            Packet::PubRec(ack) => Ok(self.received(ack, out)),
            Packet::PubRel(ack) => Ok(self.released(ack)),
            Packet::PubComp(ack) => Ok(self.completed(ack)),
            Packet::Subscribe(subscribe) => Ok(Step::Subscribe(subscribe)),
            Packet::Unsubscribe(unsubscribe) => Ok(Step::Unsubscribe(unsubscribe)),
            Packet::PingReq => {
                reply::pingresp(out);
                Ok(Step::Idle)
            }
            Packet::Disconnect(disconnect) => Ok(Step::Leave(disconnect)),
            Packet::Connect(_) => Err(Fault::Protocol("a second CONNECT")),
        }
    }

    fn published(&mut self, publish: Publish) -> Result<Step, Fault> {
        if publish.qos == Qos::AtMostOnce {
            return Ok(Step::Publish(publish));
        }
        if publish.qos == Qos::ExactlyOnce {
            // MQTT 5.0 §4.3.3: an id that is still held is the same message again. Its PUBREC is repeated if it was
            // sent; else it comes anyway.
            match self.held.find(publish.packet_id) {
                Some(true) => {
                    let answer = Answer::published(publish.qos, publish.packet_id, Reason::SUCCESS);
                    return Ok(Step::Repeated(answer));
                }
                Some(false) => return Ok(Step::Idle),
                None => self.held.add(publish.packet_id),
            }
        }
        // §3.3.4: 3.1.1 clients know no limit; the ticket window stops reading from them. Only what they never release
        // has to be bounded.
        let open = if self.version == Version::V5 { usize::from(self.open) } else { self.held.ids.len() };
        if open >= usize::from(self.receive_maximum) + usize::from(self.version == Version::V4) {
            return Err(Fault::ReceiveMaximum);
        }
        self.open = self.open.saturating_add(1);
        Ok(Step::Publish(publish))
    }

    /// Writes an answer whose turn has come.
    pub fn answer(&mut self, answer: Answer, out: &mut Vec<u8>) {
        let Some(kind) = answer.kind else { return };
        let failed_receipt = kind == AckKind::PubRec && answer.reason.is_failure();
        if kind == AckKind::PubRec {
            self.held.confirm(answer.packet_id);
        }
        if failed_receipt {
            // §4.3.3: a PUBREC of 0x80 and more ends the exchange; the packet id is free.
            self.held.remove(answer.packet_id);
        }
        // §4.9: each PUBACK and PUBCOMP lets the client send one more, whatever reason it carries.
        if failed_receipt || matches!(kind, AckKind::PubAck | AckKind::PubComp) {
            self.open = self.open.saturating_sub(1);
        }
        // MQTT 3.1.1 has no way to refuse a publish: it is acknowledged and dropped (semantics.md, permissions).
        reply::ack(out, self.version, kind, answer.packet_id, answer.reason);
    }

    fn acknowledged(&mut self, ack: Ack) -> Step {
        self.taken(ack.packet_id, Stage::Acknowledge)
    }

    fn completed(&mut self, ack: Ack) -> Step {
        self.taken(ack.packet_id, Stage::Complete)
    }

    /// An acknowledgement of something unknown is no fault: it may be late.
    fn taken(&mut self, packet_id: u16, stage: Stage) -> Step {
        self.flight.close(packet_id, stage).map_or(Step::Idle, |row| Step::Taken { row })
    }

    fn received(&mut self, ack: Ack, out: &mut Vec<u8>) -> Step {
        // §4.3.3: a PUBREC of 0x80 and more ends the exchange.
        if ack.reason.is_failure() {
            return self.taken(ack.packet_id, Stage::Receive);
        }
        match self.flight.release(ack.packet_id) {
            Some(row) => Step::Received { row, answer: self.pubrel(ack.packet_id, Reason::SUCCESS) },
            None => {
                reply::ack(out, self.version, AckKind::PubRel, ack.packet_id, Reason::PACKET_ID_NOT_FOUND);
                Step::Idle
            }
        }
    }

    fn pubrel(&self, packet_id: u16, reason: Reason) -> Answer {
        Answer { kind: Some(AckKind::PubRel), packet_id, reason }
    }

    fn released(&mut self, ack: Ack) -> Step {
        // A PUBREL that did not wait for PUBREC releases nothing.
        let known = self.held.find(ack.packet_id) == Some(true) && self.held.remove(ack.packet_id);
        let reason = if known { Reason::SUCCESS } else { Reason::PACKET_ID_NOT_FOUND };
        let answer = Answer { kind: Some(AckKind::PubComp), packet_id: ack.packet_id, reason };
        Step::Release(answer)
    }

    /// Whether a delivery of this QoS may be written now; if not, all deliveries wait, so that none overtakes another.
    pub fn has_room(&self, qos: Qos) -> bool {
        qos == Qos::AtMostOnce || self.flight.has_room()
    }

    /// Whether a delivery is open under this packet id.
    pub fn is_open(&self, packet_id: u16) -> bool {
        self.flight.is_open(packet_id)
    }

    /// How many QoS 1 and 2 deliveries are unacknowledged.
    pub fn in_flight(&self) -> usize {
        self.flight.len()
    }

    /// Writes a publish, `body` being its shared bytes, in this session's version. `row` is the stored row and `packet_id` the one kept with it;
    /// 0 and 0 draw a fresh packet id. The caller has asked [`Session::has_room`].
    pub fn deliver(&mut self, body: &[u8], head: Head<'_>, row: u64, out: &mut Vec<u8>) -> Sent {
        let head = Head { version: self.version, ..head };
        if publish::packet_len(body, &head) > self.maximum_packet as usize {
            return Sent::TooLarge;
        }
        let packet_id = match head.qos {
            Qos::AtMostOnce => 0,
            qos if head.packet_id == 0 => self.flight.open(qos),
            qos => {
                self.flight.open_as(head.packet_id, qos, row);
                head.packet_id
            }
        };
        publish::put(out, body, Head { packet_id, ..head });
        Sent::Written
    }

    /// Writes the PUBREL of a row whose PUBREC came on an earlier connection (MQTT 5.0 §4.4).
    pub fn release_again(&mut self, packet_id: u16, row: u64, out: &mut Vec<u8>) {
        self.flight.open_released(packet_id, row);
        self.answer(self.pubrel(packet_id, Reason::SUCCESS), out);
    }

    /// Nothing is read from the client at `now_ms`, so it can not be heard: its silence begins anew (MQTT 5.0 §3.1.2.10).
    pub fn is_not_read(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
    }

    /// When the keep-alive runs out if nothing more is heard; `None`: never. Milliseconds.
    pub fn deadline_ms(&self) -> Option<u64> {
        (self.keep_alive_ms > 0).then(|| self.heard_ms + u64::from(self.keep_alive_ms))
    }

    /// # Errors
    /// [`Fault::KeepAlive`] when the deadline has passed.
    pub fn check_alive(&self, now_ms: u64) -> Result<(), Fault> {
        match self.deadline_ms() {
            Some(deadline) if now_ms >= deadline => Err(Fault::KeepAlive),
            _ => Ok(()),
        }
    }
}

/// Packet ids of the client's QoS 2 publishes whose PUBREL has not come.
#[derive(Debug, Default)]
struct Held {
    /// Sorted by id; with whether PUBREC was sent. At most 65,535.
    ids: Vec<(u16, bool)>,
}

impl Held {
    fn place(&self, id: u16) -> Result<usize, usize> {
        self.ids.binary_search_by_key(&id, |(id, _)| *id)
    }

    fn find(&self, id: u16) -> Option<bool> {
        self.place(id).ok().map(|at| self.ids[at].1)
    }

    fn add(&mut self, id: u16) {
        if let Err(at) = self.place(id) {
            self.ids.insert(at, (id, false));
        }
    }

    fn confirm(&mut self, id: u16) {
        if let Ok(at) = self.place(id) {
            self.ids[at].1 = true;
        }
    }

    fn remove(&mut self, id: u16) -> bool {
        let found = self.place(id);
        if let Ok(at) = found {
            self.ids.remove(at);
        }
        if self.ids.is_empty() {
            self.ids.shrink_to(8);
        }
        found.is_ok()
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
