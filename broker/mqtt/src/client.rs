//! One connected client, without IO: its link and its time at its seat, on one node, so that their words are plain calls.

use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::Fault;
use crate::hub::{Hub, Now, Parting, Place};
use crate::link::{Line, Link, Said};
use crate::packet::{Disconnect, Packet, Version};
use crate::session::Session;
use crate::sitting::Sitting;

/// Deliveries stop while so many bytes wait to be written.
pub const WRITE_AHEAD: usize = 64 * 1024;

/// A client that was let in.
pub struct Client {
    link: Link,
    sitting: Sitting,
}

/// What is said is written at once.
struct Direct<'a> {
    link: &'a mut Link,
    wall_ms: u64,
    out: &'a mut Vec<u8>,
}

impl Line for Direct<'_> {
    fn say(&mut self, said: Said) -> bool {
        self.link.hear(said, self.wall_ms, self.out)
    }

    fn is_full(&self) -> bool {
        self.out.len() >= WRITE_AHEAD
    }
}

impl Client {
    /// A client at its place.
    pub fn new(hub: Arc<Hub>, place: Place, session: Session) -> Self {
        Self { sitting: Sitting::new(hub, place, session.version()), link: Link::new(session) }
    }

    /// The time, once for all that one wake-up brings.
    pub fn set_time(&mut self, now: Now) {
        self.sitting.set_time(now);
    }

    /// Nothing is read from the client now, for reasons of ours: it is not silent.
    pub fn is_not_read(&mut self) {
        self.link.is_not_read(self.sitting.now().monotonic_ms);
    }

    /// The version that it speaks.
    pub fn version(&self) -> Version {
        self.link.version()
    }

    /// Whether reading has to stop until a ticket completes.
    pub fn is_full(&self) -> bool {
        self.sitting.is_full()
    }

    /// When the keep-alive runs out, on the monotonic clock.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.link.deadline_ms()
    }

    /// # Errors
    /// [`Fault::KeepAlive`] if it was silent for too long.
    pub fn check_alive(&self, now_ms: u64) -> Result<(), Fault> {
        self.link.check_alive(now_ms)
    }

    /// Takes a packet of `size` bytes. Gives the DISCONNECT, if it was one.
    ///
    /// # Errors
    /// The connection is over.
    pub fn take(&mut self, packet: Packet, size: usize, out: &mut Vec<u8>) -> Result<Option<Disconnect>, Fault> {
        let Some(word) = self.link.take(packet, self.sitting.now().monotonic_ms, out)? else { return Ok(None) };
        let (sitting, mut line) = self.parts(out);
        sitting.take(word, size, &mut line)
    }

    /// Completes tickets, writes what waits for the client, reads stored rows. `Ready` if there may be more to do at
    /// once; `Pending` when everything that can happen now has happened and the context will be woken.
    ///
    /// # Errors
    /// The connection is over.
    pub fn poll(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Result<(), Fault>> {
        let (sitting, mut line) = self.parts(out);
        sitting.poll(cx, &mut line)
    }

    /// What goes on while the peer takes nothing: what it published is delivered to others, and it is told to go.
    ///
    /// # Errors
    /// The connection is over.
    pub fn poll_stalled(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
        let (sitting, mut line) = self.parts(out);
        sitting.poll_stalled(cx, &mut line)
    }

    /// The connection is over.
    pub fn leave(self, parting: Parting) {
        self.sitting.leave(parting);
    }

    fn parts<'a>(&'a mut self, out: &'a mut Vec<u8>) -> (&'a mut Sitting, Direct<'a>) {
        let wall_ms = self.sitting.now().wall_ms;
        (&mut self.sitting, Direct { link: &mut self.link, wall_ms, out })
    }
}
