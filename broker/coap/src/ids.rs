//! Message ids towards each peer, and the random numbers that they and the timeouts start from (RFC 7252 §4.4).

use std::collections::HashMap;
use std::time::Instant;

use crate::exchange::EXCHANGE_LIFETIME;
use crate::peer::PeerId;

/// The last message id used towards each peer, kept for at least EXCHANGE_LIFETIME (RFC 7252 §4.4) in two
/// generations, so that forgetting needs no search.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    young: HashMap<PeerId, u16>,
    old: HashMap<PeerId, u16>,
    turned: Option<Instant>,
}

impl Ids {
    /// Peers in one generation; beyond it the oldest are forgotten early and start at a random id again.
    const GENERATION: usize = 8192;

    /// The next id towards `peer`; the one after `first` if there was none.
    pub(crate) fn draw(&mut self, now: Instant, peer: PeerId, first: u16) -> u16 {
        let turned = *self.turned.get_or_insert(now);
        if self.young.len() >= Self::GENERATION || now.saturating_duration_since(turned) >= EXCHANGE_LIFETIME {
            self.old = std::mem::take(&mut self.young);
            self.turned = Some(now);
        }
        let before = self.young.get(&peer).or(self.old.get(&peer)).copied().unwrap_or(first);
        let id = before.wrapping_add(1);
        self.young.insert(peer, id);
        id
    }
}

/// SplitMix64: spreads a seed over message ids and timeouts, which need no secrecy from a peer on the path.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// A number from 0 to below 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
