//! The link: a client's protocol state and the bytes that are written to it. It may be on another node than its seat;
//! all that the two tell each other are words: [`Word`] to the seat, [`Said`] by the seat.
//!
//! The link knows versions, windows of what the client sends, packet sizes and the keep-alive, and decides nothing about topics. What it
//! says to the seat is numbered by whoever carries it, and the seat heeds it in order.

use std::sync::Arc;

use tavi_core::Publication;

use crate::error::Fault;
use crate::packet::{Disconnect, Packet, Publish, Qos, Reason, Subscribe, Unsubscribe, Version};
use crate::publish::Head;
use crate::render;
use crate::reply;
use crate::session::{Answer, Sent, Session, Step};

/// What a link tells its seat.
#[derive(Debug)]
pub enum Word {
    /// The client publishes.
    Publish(Publish),
    /// The same QoS 2 publish again: its PUBREC is to be repeated behind all that is open.
    Repeated(Answer),
    /// The client released this QoS 2 packet id.
    Release(Answer),
    /// The client has the delivery of this row (0: none).
    Taken(u64),
    /// The client does not take packets of that size (MQTT 5.0 §3.1.2.11.4): the same, but it was not delivered.
    Skipped(u64, Qos),
    /// The client sent PUBREC for this row; the PUBREL is to be handed back when that is noted.
    Received(u64, Answer),
    /// The client subscribes.
    Subscribe(Subscribe),
    /// The client unsubscribes.
    Unsubscribe(Unsubscribe),
    /// The client leaves.
    Leave(Disconnect),
}

/// What a seat tells its link, which it writes.
#[derive(Debug)]
pub enum Said {
    /// An acknowledgement whose turn has come.
    Answer(Answer),
    /// SUBACK.
    Subscribed(u16, Vec<Result<Qos, Reason>>),
    /// UNSUBACK: which subscriptions there were.
    Unsubscribed(u16, Vec<bool>),
    /// A publication.
    Deliver(Delivery),
    /// PUBREL for a row whose PUBREC came on an earlier link, and its packet id (MQTT 5.0 §4.4).
    ReleaseAgain(u64, u16),
}

/// A publication for the client.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its row; 0: none.
    pub row: u64,
    /// The packet id that is kept with the row; 0: the link draws one, or needs none.
    pub packet_id: u16,
    /// QoS of the delivery.
    pub qos: Qos,
    /// RETAIN flag of the delivery.
    pub retain: bool,
    /// It may have been sent before.
    pub dup: bool,
    /// What.
    pub publication: Arc<Publication>,
}

/// Where a seat says its words.
pub trait Line {
    /// Says one. False: the client does not take packets of that size, so it was skipped; a link elsewhere tells so later, with
    /// [`Word::Skipped`].
    fn say(&mut self, said: Said) -> bool;

    /// So much waits to be written that deliveries wait.
    fn is_full(&self) -> bool;
}

/// A connected client's end of the line.
pub struct Link {
    session: Session,
}

impl Link {
    /// The link of a client that was let in.
    pub fn new(session: Session) -> Self {
        Self { session }
    }

    /// The version that the client speaks.
    pub fn version(&self) -> Version {
        self.session.version()
    }

    /// Nothing is read from the client now, for reasons of ours: it is not silent.
    pub fn is_not_read(&mut self, now_ms: u64) {
        self.session.is_not_read(now_ms);
    }

    /// When the keep-alive runs out, on the monotonic clock.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.session.deadline_ms()
    }

    /// # Errors
    /// [`Fault::KeepAlive`] if the client was silent for too long.
    pub fn check_alive(&self, now_ms: u64) -> Result<(), Fault> {
        self.session.check_alive(now_ms)
    }

    /// Takes a packet of the client; answers what can be answered at once, and gives what the seat has to know.
    ///
    /// # Errors
    /// The connection is over.
    pub fn take(&mut self, packet: Packet, now_ms: u64, out: &mut Vec<u8>) -> Result<Option<Word>, Fault> {
        Ok(Some(match self.session.receive(packet, now_ms, out)? {
            Step::Idle => return Ok(None),
            Step::Publish(publish) => Word::Publish(publish),
            Step::Repeated(answer) => Word::Repeated(answer),
            Step::Release(answer) => Word::Release(answer),
            Step::Taken { row } => Word::Taken(row),
            Step::Received { row, answer } => Word::Received(row, answer),
            Step::Subscribe(subscribe) => {
                self.check_answer(subscribe.filters.len())?;
                Word::Subscribe(subscribe)
            }
            Step::Unsubscribe(unsubscribe) => {
                self.check_answer(unsubscribe.filters.len())?;
                Word::Unsubscribe(unsubscribe)
            }
            Step::Leave(disconnect) => Word::Leave(disconnect),
        }))
    }

    /// MQTT 5.0 §3.1.2.11.4: an answer that the client does not take must not be sent, so nothing is begun either.
    fn check_answer(&self, filters: usize) -> Result<(), Fault> {
        let fits = self.session.takes(reply::suback_len(self.version(), filters));
        if fits { Ok(()) } else { Err(Fault::AnswerTooLarge) }
    }

    /// Writes what the seat said; false if the client does not take packets of that size.
    pub fn hear(&mut self, said: Said, wall_ms: u64, out: &mut Vec<u8>) -> bool {
        match said {
            Said::Answer(answer) => self.session.answer(answer, out),
            Said::Subscribed(packet_id, grants) => reply::suback(out, self.version(), packet_id, &grants),
            Said::Unsubscribed(packet_id, existed) => reply::unsuback(out, self.version(), packet_id, &existed),
            Said::ReleaseAgain(row, packet_id) => self.session.release_again(packet_id, row, out),
            Said::Deliver(delivery) => return self.deliver(&delivery, wall_ms, out),
        }
        true
    }

    fn deliver(&mut self, delivery: &Delivery, wall_ms: u64, out: &mut Vec<u8>) -> bool {
        let Delivery { row, packet_id, qos, retain, dup, publication } = delivery;
        let head = Head {
            dup: *dup,
            qos: *qos,
            retain: *retain,
            packet_id: *packet_id,
            expiry: render::expiry(publication, wall_ms),
            ..Head::default()
        };
        self.session.deliver(render::body(publication), head, *row, out) == Sent::Written
    }
}
