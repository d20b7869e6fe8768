//! A durable seat on another node, as the topics of this one know it: what they tell it goes there as words.

use super::{Exchange, NodeId, Word};
use crate::{
    node::Node,
    principal::Principal,
    publication::{Publication, Qos},
    topics::{Rows, SeatName, SubOptions, Subscriber},
};
use std::sync::Arc;
use tavi_store::{Commit, SharedStore};

struct FarSeat {
    id: u64,
    principal: Principal,
    seat: SeatName,
    node: NodeId,
    exchange: Arc<Exchange>,
}

impl Node {
    /// A durable seat that is home on another node: a subscriber for the topics of this one.
    pub fn far_seat(&self, node: NodeId, seat: SeatName, who: &Principal) -> Arc<dyn Subscriber> {
        let (id, exchange) = (self.parts.topics.next_subscriber(), self.router.exchange.clone());
        Arc::new(FarSeat { id, principal: who.clone(), seat, node, exchange })
    }
}

impl FarSeat {
    fn say(&self, word: Word) {
        self.exchange.bus().send(self.node, word);
    }
}

/// Of what is delivered at most once nothing is saved (MQTT 5 §3.8.4: the lesser of what was asked for and published).
fn is_kept(publication: &Publication, options: &[SubOptions]) -> bool {
    options.iter().any(|options| options.qos.min(publication.qos) > Qos::AtMostOnce)
}

impl Subscriber for FarSeat {
    fn id(&self) -> u64 {
        self.id
    }

    fn principal(&self) -> &Principal {
        &self.principal
    }

    /// It has its place there in the order in which it was begun here, and is saved when that is asked for.
    fn store(&self, publication: &Arc<Publication>, options: &[SubOptions]) -> Option<Rows> {
        if !is_kept(publication, options) {
            return None;
        }
        let (seat, publication) = (self.seat.clone(), publication.clone());
        self.say(Word::Owe { seat, options: options.to_vec(), publication });
        Some((self.seat.owner.clone(), Vec::new()))
    }

    fn save(&self, _: &SharedStore, id: u64, _: Rows) -> Commit {
        self.exchange.ask(self.node, |number| Word::Keep { number, seat: self.seat.clone(), id })
    }

    fn deliver(&self, publication: &Arc<Publication>, options: &[SubOptions]) {
        let (seat, id) = (self.seat.clone(), publication.id);
        if is_kept(publication, options) {
            return self.say(Word::Land { seat, id, saved: true });
        }
        self.say(Word::Pass { seat, options: options.to_vec(), publication: publication.clone() });
    }

    fn abandon(&self, publication: &Arc<Publication>) {
        self.say(Word::Land { seat: self.seat.clone(), id: publication.id, saved: false });
    }
}
