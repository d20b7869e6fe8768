//! Who is at the other end: the peer that a transport knows, and the principal that it acts as.

use std::collections::HashMap;
use std::net::SocketAddr;

use tavi_core::Principal;

/// One peer of an endpoint, as its transport knows it. Ids, deduplication, observations and budgets go by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PeerId {
    /// A peer over plain UDP: whoever sends from this address (RFC 7252 §4). The address may be forged.
    Udp(SocketAddr),
}

impl PeerId {
    /// The address behind the peer.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Udp(address) => *address,
        }
    }
}

impl From<SocketAddr> for PeerId {
    fn from(address: SocketAddr) -> Self {
        Self::Udp(address)
    }
}

impl std::fmt::Display for PeerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "{address}"),
        }
    }
}

/// Which principal each peer acts as. A peer that proved nothing is [`Principal::Anon`].
#[derive(Debug, Default)]
pub struct Principals {
    proven: HashMap<PeerId, Principal>,
}

impl Principals {
    /// The peer has proved that it is `principal`.
    pub fn bind(&mut self, peer: PeerId, principal: Principal) {
        self.proven.insert(peer, principal);
    }

    /// What the peer proved is over: its session ended, or the principal was removed.
    pub fn release(&mut self, peer: PeerId) {
        self.proven.remove(&peer);
    }

    /// Who the peer is.
    pub fn of(&self, peer: PeerId) -> Principal {
        self.proven.get(&peer).cloned().unwrap_or_else(|| {
            let loopback = peer.address().ip().to_canonical().is_loopback();
            Principal::Anon { loopback }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_what_it_proved_and_nameless_before_and_after() {
        let mut principals = Principals::default();
        let peer = PeerId::Udp("192.0.2.1:5683".parse().unwrap());
        let pump = Principal::Device("1@things.localhost".parse().unwrap());
        assert_eq!(principals.of(peer), Principal::Anon { loopback: false });
        principals.bind(peer, pump.clone());
        assert_eq!(principals.of(peer), pump);
        principals.release(peer);
        assert_eq!(principals.of(peer), Principal::Anon { loopback: false });
        let local = PeerId::Udp("[::ffff:127.0.0.1]:5".parse().unwrap());
        assert_eq!(principals.of(local), Principal::Anon { loopback: true });
    }
}
