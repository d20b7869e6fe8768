//! What a client has not acknowledged yet: the in-flight window of outgoing QoS 1 and 2 publishes (MQTT 5.0 §4.4, §4.9).

use std::collections::VecDeque;

use crate::packet::Qos;

/// How far an outgoing publish is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// QoS 1: PUBACK is awaited.
    Acknowledge,
    /// QoS 2: PUBREC is awaited.
    Receive,
    /// QoS 2: PUBREC came and its PUBREL is on its way; PUBCOMP is awaited.
    Complete,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    packet_id: u16,
    stage: Stage,
    row: u64,
}

/// The window. Its size is the smaller of the client's Receive Maximum and the broker's own bound.
#[derive(Debug)]
pub struct Flight {
    slots: VecDeque<Slot>,
    size: u16,
    last_id: u16,
}

/// Rooms of an idle window that are kept.
const KEPT: usize = 8;

impl Flight {
    /// An empty window for `size` publishes, at least one.
    pub fn new(size: u16) -> Self {
        // One id is always free.
        Self { slots: VecDeque::new(), size: size.clamp(1, u16::MAX - 1), last_id: 0 }
    }

    /// Whether another QoS 1 or 2 publish may be sent now (MQTT 5.0 §4.9).
    pub fn has_room(&self) -> bool {
        self.slots.len() < usize::from(self.size)
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether a publish is open under this packet id.
    pub fn is_open(&self, packet_id: u16) -> bool {
        self.slots.iter().any(|slot| slot.packet_id == packet_id)
    }

    /// Opens a publish under a fresh packet id.
    pub fn open(&mut self, qos: Qos) -> u16 {
        let packet_id = self.free_id();
        self.last_id = packet_id;
        self.open_as(packet_id, qos, 0);
        packet_id
    }

    /// Opens a publish whose packet id is kept with its stored row.
    pub fn open_as(&mut self, packet_id: u16, qos: Qos, row: u64) {
        let stage = if qos == Qos::ExactlyOnce { Stage::Receive } else { Stage::Acknowledge };
        self.slots.push_back(Slot { packet_id, stage, row });
    }

    /// Opens one whose PUBREC came on an earlier connection: its PUBREL is sent again (MQTT 5.0 §4.4).
    pub fn open_released(&mut self, packet_id: u16, row: u64) {
        self.slots.push_back(Slot { packet_id, stage: Stage::Complete, row });
    }

    /// PUBACK or PUBCOMP, or a failing PUBREC: closes the publish in that stage and gives its row.
    pub fn close(&mut self, packet_id: u16, stage: Stage) -> Option<u64> {
        let at = self.find(packet_id, stage)?;
        let slot = self.slots.remove(at)?;
        if self.slots.is_empty() {
            self.slots.shrink_to(KEPT);
        }
        Some(slot.row)
    }

    /// PUBREC: moves the publish on and gives its row. A second PUBREC finds it moved already.
    pub fn release(&mut self, packet_id: u16) -> Option<u64> {
        let at = self.find(packet_id, Stage::Receive).or_else(|| self.find(packet_id, Stage::Complete))?;
        let slot = self.slots.get_mut(at)?;
        slot.stage = Stage::Complete;
        Some(slot.row)
    }

    /// Clients mostly acknowledge in order, so the search mostly ends at the front.
    fn find(&self, packet_id: u16, stage: Stage) -> Option<usize> {
        self.slots.iter().position(|slot| slot.packet_id == packet_id && slot.stage == stage)
    }

    /// The next id that is not in flight: there are fewer slots than ids (MQTT 5.0 §2.2.1).
    fn free_id(&self) -> u16 {
        let mut id = successor(self.last_id);
        while self.is_open(id) {
            id = successor(id);
        }
        id
    }
}

/// MQTT 5.0 §2.2.1: packet ids run from 1 to 65,535.
pub(crate) fn successor(id: u16) -> u16 {
    id.checked_add(1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_and_closes() {
        let mut flight = Flight::new(2);
        assert_eq!(flight.open(Qos::AtLeastOnce), 1);
        assert_eq!(flight.open(Qos::ExactlyOnce), 2);
        assert!(!flight.has_room());
        assert_eq!(flight.close(2, Stage::Acknowledge), None, "QoS 2 is not closed by PUBACK");
        assert_eq!(flight.close(1, Stage::Acknowledge), Some(0));
        assert!(flight.has_room());
        assert_eq!(flight.release(2), Some(0));
        assert_eq!(flight.release(2), Some(0), "a repeated PUBREC is answered again");
        assert_eq!(flight.close(2, Stage::Complete), Some(0));
        assert!(flight.is_empty());
    }

    #[test]
    fn ids_wrap_without_zero_and_skip_what_is_open() {
        let mut flight = Flight::new(u16::MAX);
        flight.open(Qos::AtLeastOnce);
        flight.open(Qos::AtLeastOnce);
        for expected in 3..=u16::MAX {
            assert_eq!(flight.open(Qos::AtLeastOnce), expected);
            flight.close(expected, Stage::Acknowledge);
        }
        assert_eq!(flight.open(Qos::AtLeastOnce), 3, "1 and 2 are still open");
    }

    #[test]
    fn an_open_id_is_skipped_wherever_it_stands() {
        let mut flight = Flight::new(10);
        for id in 1..=30 {
            assert_eq!(flight.open(Qos::AtLeastOnce), id);
            if id != 11 && id != 21 {
                flight.close(id, Stage::Acknowledge);
            }
        }
        for _ in 0..65_533 {
            let id = flight.open(Qos::AtLeastOnce);
            assert!(id != 11 && id != 21);
            flight.close(id, Stage::Acknowledge);
        }
    }
}
