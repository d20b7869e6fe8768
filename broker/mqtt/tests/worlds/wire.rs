//! The way between the nodes of two worlds: every word is bytes on it.

use std::sync::{Arc, Mutex};

use tavi_core::bus::{BadWay, BareJid, Bus, Channel, Dice, NodeId, Piece, Word};
use tavi_core::topics::{SeatName, SubOptions};
use tavi_core::{Node, Principal, Qos};

use crate::stage::World;

/// A node's end. No account is home elsewhere: here it is about sessions of clients.
struct End {
    node: NodeId,
    channel: Arc<Mutex<Channel>>,
}

impl Bus for End {
    fn node(&self) -> NodeId {
        self.node
    }

    fn away(&self, _: &BareJid) -> Option<NodeId> {
        None
    }

    fn send(&self, to: NodeId, word: Word) {
        assert_ne!(to, self.node);
        self.channel.lock().unwrap().say(word.encode());
    }
}

/// The two ends, and what is between them.
#[derive(Default)]
pub struct Wire {
    ends: [Arc<Mutex<Channel>>; 2],
    nodes: Vec<Node>,
    pub way: BadWay<(usize, Piece)>,
}

impl Wire {
    pub fn end(&self, node: NodeId) -> Arc<dyn Bus> {
        Arc::new(End { node, channel: self.ends[usize::from(node)].clone() })
    }

    pub fn joins(&mut self, worlds: [&World; 2]) {
        self.nodes = worlds.map(|world| world.hub.node().clone()).into();
    }

    pub fn carries(&mut self, now_ms: u64) {
        for (from, end) in self.ends.iter().enumerate() {
            let pieces = end.lock().unwrap().pieces(now_ms);
            self.way.carry(pieces.into_iter().map(|piece| (1 - from, piece)));
        }
    }

    pub fn arrives(&mut self, dice: &mut Dice) {
        let Some((to, piece)) = self.way.arrive(dice) else { return };
        self.ends[to].lock().unwrap().take(piece);
        loop {
            let Some(word) = self.ends[to].lock().unwrap().hear() else { return };
            self.nodes[to].hear(1 - to as NodeId, Word::decode(word).expect("a word"));
        }
    }

    pub fn is_quiet(&self) -> bool {
        self.ends.iter().all(|end| end.lock().unwrap().open() == 0)
    }
}

/// The second world's topics know of the durable session of this client in the first one.
pub fn knows([home, abroad]: [&World; 2], name: &str, filter: &str) {
    let subject = format!("{name}@localhost");
    let seat = home.hub.kept(&subject, name).expect("a durable session");
    let seat = SeatName { owner: seat.owner().clone(), number: seat.name().id() };
    let abroad = abroad.hub.node();
    let far = abroad.far_seat(0, seat, &Principal::Account(subject.parse().unwrap()));
    let options = SubOptions { qos: Qos::ExactlyOnce, ..SubOptions::default() };
    assert!(!abroad.parts.topics.restore(&far, filter, options));
}
