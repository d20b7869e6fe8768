//! Which tokens were used already: each logs in once (RFC 8392 §3.1.7, `cti`).
//!
//! The memory is lost when the broker ends. So a token that was made before the broker started is refused: its
//! device signs another one. What is left: a device whose clock is ahead by up to a minute could have its token
//! replayed in that minute after a restart, by somebody who had read it on loopback or broken TLS.

use std::collections::HashMap;

use tavi_wire::DeviceId;

use crate::token::{MAX_LIFETIME, TokenError, VerifiedToken};

/// How many tokens one device may use in the lifetime of a token. Counted for each device, so that none can
/// keep out another.
pub const MAX_PER_DEVICE: usize = 128;

/// The tokens that were used and have not expired. Times are seconds since 1970 in UTC.
#[derive(Debug)]
pub struct Replay {
    started: u64,
    sweep_at: u64,
    used: HashMap<DeviceId, Vec<Used>>,
}

#[derive(Debug)]
struct Used {
    nonce: [u8; 16],
    expires: u64,
}

impl Replay {
    /// An empty memory of a broker that starts now.
    pub fn new(now: u64) -> Self {
        Self { started: now, sweep_at: now.saturating_add(MAX_LIFETIME), used: HashMap::new() }
    }

    /// Uses up a verified token. Call it last, when nothing else can refuse the login.
    ///
    /// # Errors
    /// [`TokenError::Replayed`], [`TokenError::BeforeStart`], or [`TokenError::TooMany`] beyond [`MAX_PER_DEVICE`].
    pub fn admit(&mut self, token: &VerifiedToken, now: u64) -> Result<(), TokenError> {
        if token.issued_at < self.started {
            return Err(TokenError::BeforeStart);
        }
        self.sweep(now);
        let used = self.used.entry(token.device).or_default();
        used.retain(|seen| seen.expires > now);
        if used.iter().any(|seen| seen.nonce == token.nonce) {
            return Err(TokenError::Replayed);
        }
        if used.len() >= MAX_PER_DEVICE {
            return Err(TokenError::TooMany);
        }
        used.push(Used { nonce: token.nonce, expires: token.expires });
        Ok(())
    }

    /// Once in a token's lifetime all devices are looked through; in between only the one that logs in.
    fn sweep(&mut self, now: u64) {
        if now < self.sweep_at {
            return;
        }
        self.sweep_at = now.saturating_add(MAX_LIFETIME);
        self.used.retain(|_, used| used.iter().any(|seen| seen.expires > now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PublicKey;

    const NOW: u64 = 1_795_000_000;

    fn token(nonce: u8) -> VerifiedToken {
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let key: PublicKey = key.parse().unwrap();
        VerifiedToken { device: key.device_id(), key, nonce: [nonce; 16], issued_at: NOW, expires: NOW + 300 }
    }

    #[test]
    fn a_token_logs_in_once() {
        let mut replay = Replay::new(NOW);
        assert_eq!(replay.admit(&token(1), NOW), Ok(()));
        assert_eq!(replay.admit(&token(1), NOW + 299), Err(TokenError::Replayed));
        assert_eq!(replay.admit(&token(2), NOW), Ok(()));
        let other = VerifiedToken { device: DeviceId::from_public_key(&[1; 32]), ..token(1) };
        assert_eq!(replay.admit(&other, NOW), Ok(()));
    }

    #[test]
    fn a_token_of_the_last_run_is_refused() {
        let mut replay = Replay::new(NOW + 1);
        assert_eq!(replay.admit(&token(1), NOW + 1), Err(TokenError::BeforeStart));
    }

    #[test]
    fn one_device_can_not_fill_the_memory() {
        let mut replay = Replay::new(NOW);
        let used = (0..=255).filter(|nonce| replay.admit(&token(*nonce), NOW).is_ok()).count();
        assert_eq!(used, MAX_PER_DEVICE);
        assert_eq!(replay.admit(&token(255), NOW), Err(TokenError::TooMany));
        let later = VerifiedToken { expires: NOW + 600, ..token(255) };
        assert_eq!(replay.admit(&later, NOW + 300), Ok(()));
    }

    #[test]
    fn what_expired_is_forgotten() {
        let mut replay = Replay::new(NOW);
        replay.admit(&token(1), NOW).unwrap();
        let other = DeviceId::from_public_key(&[1; 32]);
        let later = NOW + MAX_LIFETIME;
        replay.admit(&VerifiedToken { device: other, expires: later + 9, ..token(2) }, later).unwrap();
        assert_eq!(replay.used.keys().collect::<Vec<_>>(), [&other]);
    }
}
