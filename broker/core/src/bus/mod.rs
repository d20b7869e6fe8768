//! The bus: how what one node decides reaches the node where an owner is home.
//!
//! A node asks its [`Bus`] where an owner is home. "Here" means plain calls; that is all there is in one process, and
//! costs nothing. Elsewhere a [`Word`] goes to that node, which gives it to [`Node::hear`](crate::Node::hear):
//!
//! - **A session whose seat is elsewhere**: [`Node::bind`](crate::Node::bind) says *attach* and gives a
//!   [`Link`](crate::Link) whose mirror is fed by the home's words *deliver*. What the session sends is the word *sent*; its
//!   ticket completes with *answered*.
//! - **A stanza for an owner who is home elsewhere**: the router says *route*, and its ticket waits for *answered*. A
//!   headline of the broker's own is said and forgotten (*notice*).
//! - **A publication for a durable seat that is home elsewhere** (`Node::far_seat`): it is *owed* in its place, *kept* when
//!   that is its turn, and its ticket waits for *answered*; then it *lands*. What is not kept is *passed*.
//! - **A node that has gone**: [`Node::departed`](crate::Node::departed) ends its guests here and what was awaited of it.
//!
//! A bus keeps the order of words between two nodes and loses none while both live. Over a way that may, a
//! [`Channel`] at each end sees to that. A subsystem with words of its own needs nothing of this but a channel.

mod bad_way;
mod channel;
mod exchange;
mod far_seat;
mod guest;
mod owed;
pub(crate) mod word;

pub use bad_way::{BadWay, Dice};
pub use channel::{Channel, Piece};
pub(crate) use exchange::Exchange;
pub(crate) use exchange::Far;
pub use word::{Damaged, NoSeat, Word};

pub use tavi_xmpp_proto::jid::BareJid;

/// A node's number, 10 bits.
pub type NodeId = u16;

/// The way to other nodes, and who is home where.
pub trait Bus: Send + Sync {
    /// This node.
    fn node(&self) -> NodeId;

    /// The node where an owner is home; `None`: here.
    fn away(&self, owner: &BareJid) -> Option<NodeId>;

    /// Sends a word. It must neither block nor wait; what a sender may have open is bounded by its own window.
    fn send(&self, to: NodeId, word: Word);
}

/// One process: everybody is home here.
#[derive(Debug, Default)]
pub struct InProcess;

impl Bus for InProcess {
    fn node(&self) -> NodeId {
        0
    }

    fn away(&self, _: &BareJid) -> Option<NodeId> {
        None
    }

    fn send(&self, to: NodeId, word: Word) {
        tracing::error!(to, ?word, "there is no other node");
    }
}
