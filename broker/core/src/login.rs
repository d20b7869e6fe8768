//! The verb `login`: who is behind a user name, and how failed attempts are slowed down.

use crate::{
    accounts::Accounts,
    clock::Clock,
    metrics::Metrics,
    principal::{Host, Hosts, Principal},
};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tavi_store::StoreError;
use tavi_xmpp_proto::{
    jid::BareJid,
    sasl::{Hash, ScramKeys},
};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// Why a login was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Wrong name, password or token: all answer alike. The answer is to be held back this long.
    #[error("wrong user name or password")]
    Wrong {
        /// How long to wait with the answer.
        delay: Duration,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A password that somebody gave.
pub struct Attempt<'a> {
    /// The user name: a device id, a local part, or a bare JID.
    pub user: &'a str,
    /// The password or token.
    pub password: &'a [u8],
    /// Which protocol a token must be for: `mqtt` or `xmpp`.
    pub audience: &'static str,
    /// From where.
    pub peer: IpAddr,
}

/// Checks signed device tokens; enrolment implements it, so that the core needs to know no device keys.
pub trait Tokens: Send + Sync {
    /// Whether `token` is a device's, valid now for `audience`, and used for the first time.
    fn verify<'a>(
        &'a self,
        device: &'a BareJid,
        token: &'a [u8],
        audience: &'a str,
    ) -> crate::hooks::BoxFuture<'a, bool>;
}

/// Password checks that run at the same time; each costs milliseconds of a core.
const CHECKS: usize = 2;

/// Who may log in.
pub struct Login {
    hosts: Arc<Hosts>,
    accounts: Arc<Accounts>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    tokens: OnceLock<Arc<dyn Tokens>>,
    failures: Mutex<Failures>,
    checks: Semaphore,
    dummy_salt: [u8; 32],
}

impl Login {
    /// A login over the accounts of a store.
    pub fn new(hosts: Arc<Hosts>, accounts: Arc<Accounts>, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Login {
        let mut dummy_salt = [0; 32];
        // Without randomness the salts of unknown users can be told from real ones, and no more.
        let _ = getrandom::fill(&mut dummy_salt);
        let (tokens, failures, checks) = (OnceLock::new(), Mutex::default(), Semaphore::new(CHECKS));
        Login { hosts, accounts, clock, metrics, tokens, failures, checks, dummy_salt }
    }

    /// Sets what checks device tokens; once, at start.
    pub fn set_tokens(&self, tokens: Arc<dyn Tokens>) {
        // A second call would be a mistake of the start-up list; the first stays.
        let _ = self.tokens.set(tokens);
    }

    /// The bare JID that a user name means: a JID as it is, a device id on the things host, else a person.
    pub fn resolve(&self, user: &str) -> Option<BareJid> {
        let jid = if user.contains('@') {
            user.parse().ok()?
        } else if user.parse::<tavi_wire::identity::DeviceId>().is_ok() {
            BareJid::new(user, self.hosts.name(Host::Things)).ok()?
        } else {
            BareJid::new(user, self.hosts.domain()).ok()?
        };
        matches!(self.hosts.principal(&jid)?, Principal::Account(_) | Principal::Device(_)).then_some(jid)
    }

    /// Checks a password or a device's token. The password is compared in constant time, off the network threads.
    ///
    /// # Errors
    /// [`Denied::Wrong`] with the time for which the answer is to be held back.
    pub async fn password(&self, attempt: Attempt<'_>) -> Result<Principal, Denied> {
        let jid = self.resolve(attempt.user);
        let right = match &jid {
            Some(jid) => self.matches(jid, &attempt).await?,
            None => self.burn(&attempt).await,
        };
        match jid.and_then(|jid| self.hosts.principal(&jid)) {
            Some(principal) if right => {
                self.succeeded(attempt.user, attempt.peer);
                Ok(principal)
            }
            _ => Err(Denied::Wrong { delay: self.failed(attempt.user, attempt.peer) }),
        }
    }

    async fn matches(&self, jid: &BareJid, attempt: &Attempt<'_>) -> Result<bool, Denied> {
        let device = self.hosts.find(jid.domain()) == Some(Host::Things);
        if let Some(tokens) = self.tokens.get().filter(|_| device && looks_like_token(attempt.password)) {
            return Ok(tokens.verify(jid, attempt.password, attempt.audience).await);
        }
        match self.accounts.scram_keys(jid, Hash::Sha256).await? {
            Some(keys) => Ok(self.verify(keys, attempt.password).await),
            None => Ok(self.burn(attempt).await),
        }
    }

    /// As much work as a real check, so that time does not tell which names exist.
    async fn burn(&self, attempt: &Attempt<'_>) -> bool {
        let keys = ScramKeys::dummy(Hash::Sha256, attempt.user, &self.dummy_salt, crate::accounts::ITERATIONS);
        self.verify(keys, attempt.password).await;
        false
    }

    async fn verify(&self, keys: ScramKeys, password: &[u8]) -> bool {
        let Ok(password) = String::from_utf8(password.to_vec()).map(Zeroizing::new) else { return false };
        // The semaphore is never closed.
        let Ok(_permit) = self.checks.acquire().await else { return false };
        tokio::task::spawn_blocking(move || keys.verify_password(&password)).await.unwrap_or(false)
    }

    /// The keys for a SCRAM exchange; for an unknown user keys that no password fits, always the same ones.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn scram(&self, user: &str, hash: Hash) -> Result<ScramKeys, StoreError> {
        let jid = self.resolve(user);
        let keys = match &jid {
            Some(jid) => self.accounts.scram_keys(jid, hash).await?,
            None => None,
        };
        Ok(keys.unwrap_or_else(|| ScramKeys::dummy(hash, user, &self.dummy_salt, crate::accounts::ITERATIONS)))
    }

    /// Counts a failed login; gives how long to wait with the answer: 100 ms, doubled with each failure of this name
    /// or address within ten minutes, at most 5 s.
    pub fn failed(&self, user: &str, peer: IpAddr) -> Duration {
        self.metrics.login_failures.add(1);
        tracing::info!(%user, %peer, "login failed");
        self.failures.lock().count(&self.counted_name(user), peer, self.clock.now_ms())
    }

    /// A login succeeded: the name's failures are forgotten.
    pub fn succeeded(&self, user: &str, _peer: IpAddr) {
        self.failures.lock().forget(&self.counted_name(user));
    }

    /// One name in all its spellings, so that a guesser gains nothing from another protocol's.
    fn counted_name(&self, user: &str) -> String {
        self.resolve(user).map_or_else(|| user.to_owned(), |jid| jid.to_string())
    }
}

/// A token is base64url text of a COSE_Sign1, far longer than any generated secret.
fn looks_like_token(password: &[u8]) -> bool {
    password.len() >= 120 && password.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'='))
}

const FORGET_MS: u64 = 600_000;
const MAX_REMEMBERED: usize = 10_000;

/// Failures by user name and by address, forgotten after ten minutes.
#[derive(Default)]
struct Failures {
    counts: HashMap<Box<str>, (u32, u64)>,
}

impl Failures {
    fn count(&mut self, user: &str, peer: IpAddr, now_ms: u64) -> Duration {
        if self.counts.len() >= MAX_REMEMBERED {
            self.counts.retain(|_, (_, last)| now_ms.saturating_sub(*last) < FORGET_MS);
            if self.counts.len() >= MAX_REMEMBERED {
                self.counts.clear();
            }
        }
        let name: String = user.chars().take(128).collect();
        let worst = self.one(name, now_ms).max(self.one(peer.to_string(), now_ms).saturating_sub(4));
        Duration::from_millis((100u64 << worst.saturating_sub(1).min(6)).min(5_000))
    }

    fn one(&mut self, key: String, now_ms: u64) -> u32 {
        let (count, last) = self.counts.entry(key.into()).or_default();
        if now_ms.saturating_sub(*last) >= FORGET_MS {
            *count = 0;
        }
        *last = now_ms;
        *count += 1;
        *count
    }

    fn forget(&mut self, user: &str) {
        self.counts.remove(user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn failures_are_answered_ever_more_slowly_and_forgotten_in_time() {
        let mut failures = Failures::default();
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let delays: Vec<u64> = (0..8).map(|_| failures.count("romeo", peer, 1_000_000).as_millis() as u64).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        failures.forget("romeo");
        assert!(failures.count("romeo", peer, 1_000_000) < Duration::from_secs(5));
        let later = 1_000_000 + FORGET_MS;
        assert_eq!(failures.count("juliet", peer, later).as_millis(), 100);
    }
}
