//! What a session receives, and the seat of a clean one, which has only a mailbox.

use std::sync::Arc;

use tavi_core::metrics::{Outcome, Protocol};
use tavi_core::publication::Change;
use tavi_core::topics::{SubOptions, Subscriber};
use tavi_core::{Closed, Mailbox, Metrics, Overflow, Principal, Publication, Pushed, Weigh};

use crate::packet::Qos;

/// One publication for one session.
#[derive(Debug)]
pub struct Parcel {
    /// What.
    pub publication: Arc<Publication>,
    /// QoS of the delivery.
    pub qos: Qos,
    /// RETAIN flag of the delivery.
    pub retain: bool,
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
    /// Bytes of its rows.
    pub row_bytes: usize,
}

impl Room {
    /// An empty mailbox of that size.
    pub fn mailbox(self) -> Arc<Mailbox<Parcel>> {
        Arc::new(Mailbox::new(self.parcels, self.bytes))
    }
}

/// QoS and RETAIN flag of a delivery (MQTT 5.0 §3.8.4: the greatest QoS of the matching filters, but not over the
/// publisher's; §3.3.1.3: RETAIN is 0 unless the subscription keeps it).
pub(crate) fn grade(publication: &Publication, options: &[SubOptions]) -> (Qos, bool) {
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

impl LiveSeat {
    /// The connection has ended. Receivers that were found for a topic may hold the seat for long: they hold nothing
    /// that waited, and what still comes is refused.
    pub fn end(&self) {
        self.mailbox.close(Closed::Gone);
        drop(self.mailbox.take());
    }
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
        let parcel = Parcel { publication: publication.clone(), qos, retain };
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

pub(crate) fn drop_count(metrics: &Metrics, count: usize) {
    metrics.messages(Protocol::Mqtt, Outcome::Dropped).add(count as u64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tavi_core::publication::Rendered;

    fn publication() -> Arc<Publication> {
        Arc::new(Publication {
            id: 1,
            time_ms: 1,
            topic: "home/a".into(),
            change: Change::Value,
            payload: vec![0; 100].into(),
            content_type: None,
            qos: Qos::AtMostOnce,
            retain: false,
            from: Principal::Anon { loopback: true },
            from_session: 0,
            item: None,
            properties: None,
            rendered: Rendered::default(),
        })
    }

    #[test]
    fn a_seat_that_is_held_after_its_end_holds_nothing() {
        let room = Room { parcels: 4, bytes: 2_000, rows: 0, row_bytes: 0 };
        let principal = Principal::Anon { loopback: true };
        let seat = LiveSeat { id: 1, principal, mailbox: room.mailbox(), metrics: Arc::default() };
        let (waits, late) = (publication(), publication());
        seat.deliver(&waits, &[SubOptions::default()]);
        assert_eq!((seat.mailbox.len(), Arc::strong_count(&waits)), (1, 2));
        seat.end();
        seat.deliver(&late, &[SubOptions::default()]);
        assert_eq!((seat.mailbox.len(), Arc::strong_count(&waits), Arc::strong_count(&late)), (0, 1, 1));
        assert_eq!(seat.mailbox.closed(), Some(Closed::Gone));
    }

    #[test]
    fn properties_take_room_in_a_mailbox() {
        let room = Room { parcels: 4, bytes: 2_000, rows: 0, row_bytes: 0 };
        let principal = Principal::Anon { loopback: true };
        let seat = LiveSeat { id: 1, principal, mailbox: room.mailbox(), metrics: Arc::default() };
        for _ in 0..3 {
            let mut large = Arc::into_inner(publication()).unwrap();
            let user = vec![("n".into(), "v".repeat(1_500).into())];
            large.properties = Some(Box::new(tavi_core::Properties { user, ..tavi_core::Properties::default() }));
            seat.deliver(&Arc::new(large), &[SubOptions::default()]);
        }
        assert_eq!(seat.mailbox.len(), 1, "the newest");
    }
}
