//! The verb `login`: who is behind a user name, and how failed attempts are slowed down.

use crate::{
    accounts::{Accounts, ITERATIONS, ITERATIONS_GENERATED},
    clock::Clock,
    lines::{Lines, shown},
    metrics::Metrics,
    principal::{Host, Hosts, Principal},
    throttle::{Entry, PATIENCE, Place, Throttle, Turn},
};
use parking_lot::Mutex;
use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tavi_store::StoreError;
use tavi_xmpp_proto::{
    jid::BareJid,
    sasl::{Hash, ScramChallenged, ScramKeys},
};
use tokio::{
    sync::{OnceCell, Semaphore},
    time::Instant,
};
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
    /// Too many guesses at this account from this address are under way: it was not looked at, and may be tried again.
    #[error("too many logins at once")]
    Busy,
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is known of the other end of a connection when somebody logs in.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// The certificates that it showed in the TLS handshake, in DER, its own first; none if it showed none.
    pub certificate: Option<Arc<[Vec<u8>]>>,
    /// Keying material that only the two ends of this TLS connection have (RFC 9266).
    pub exporter: Option<[u8; 32]>,
}

impl Peer {
    /// A peer of whom only the address is known.
    pub fn at(address: IpAddr) -> Peer {
        Peer { address, certificate: None, exporter: None }
    }
}

/// By what somebody wants to be believed.
#[non_exhaustive]
pub enum Credential<'a> {
    /// The password itself, or a device's signed token in its place (identity).
    Secret(&'a [u8]),
    /// The proof of a password, given to a challenge with the keys of [`Login::scram`] (RFC 5802 §5).
    Proof {
        /// The challenge.
        challenge: &'a ScramChallenged,
        /// The client's answer to it.
        answer: &'a [u8],
    },
    /// The certificate that the peer showed in the TLS handshake, whose key it proved to have there.
    Certificate,
}

/// Somebody wants to log in.
pub struct Attempt<'a> {
    /// The user name: a device id, a local part, or a bare JID; empty if the certificate is to say who it is.
    pub user: &'a str,
    /// The credential.
    pub credential: Credential<'a>,
    /// Which protocol a token must be for: `mqtt` or `xmpp`.
    pub audience: &'static str,
    /// Who asks.
    pub peer: &'a Peer,
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

/// Knows whose a client's certificate is: enrolment implements it. It compares the whole key with the registry and asks for
/// the device's state there, also after a resumed handshake (identity).
pub trait Certificates: Send + Sync {
    /// The device whose certificate this chain, its own first, is now; `None` for every other.
    fn device<'a>(&'a self, chain: &'a [Vec<u8>]) -> crate::hooks::BoxFuture<'a, Option<Principal>>;
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
    certificates: OnceLock<Arc<dyn Certificates>>,
    throttle: Mutex<Throttle>,
    /// How long one waits for a place behind wrong guesses.
    patience: Duration,
    checks: Semaphore,
    /// What the keys of unknown users come from; made once for a store.
    secret: OnceCell<[u8; 32]>,
    failed: Lines,
    refused: Lines,
}

impl Login {
    /// A login over the accounts of a store.
    pub fn new(hosts: Arc<Hosts>, accounts: Arc<Accounts>, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Login {
        let (tokens, certificates) = (OnceLock::new(), OnceLock::new());
        let (throttle, checks) = (Mutex::default(), Semaphore::new(CHECKS));
        let (secret, failed, refused) = (OnceCell::new(), Lines::new(), Lines::new());
        let patience = PATIENCE;
        Login {
            hosts,
            accounts,
            clock,
            metrics,
            tokens,
            certificates,
            throttle,
            patience,
            checks,
            secret,
            failed,
            refused,
        }
    }

    /// Sets what knows the certificates of devices; once, at start. Without it no certificate lets anybody in.
    pub fn set_certificates(&self, certificates: Arc<dyn Certificates>) {
        // A second call would be a mistake of the start-up list; the first stays.
        let _ = self.certificates.set(certificates);
    }

    /// Whether a peer has shown a certificate that may be a credential.
    pub fn takes_certificate(&self, peer: &Peer) -> bool {
        peer.certificate.is_some() && self.certificates.get().is_some()
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

    /// The verb: checks a credential, a few at a time for one account from one address. Passwords are compared in constant
    /// time, off the network threads. Waits at most six seconds for a place behind wrong guesses.
    ///
    /// # Errors
    /// [`Denied::Wrong`] with the time for which the answer is to be held back.
    pub async fn login(&self, attempt: Attempt<'_>) -> Result<Principal, Denied> {
        if let Credential::Certificate = attempt.credential {
            return self.by_certificate(&attempt).await;
        }
        let name = self.counted_name(attempt.user);
        let turn = self.throttle.lock().begin(&name, attempt.peer.address);
        let jid = self.resolve(attempt.user);
        let until = Instant::now() + self.patience;
        let mut place = None;
        let right = loop {
            if place.is_none() {
                place = self.place(&turn, until).await?;
            }
            match &attempt.credential {
                Credential::Proof { challenge, answer } => break challenge.finish(answer).is_ok(),
                Credential::Certificate => break false,
                Credential::Secret(secret) if let Some((jid, tokens)) = self.device_token(jid.as_ref(), secret) => {
                    break tokens.verify(jid, secret, attempt.audience).await;
                }
                Credential::Secret(password) => {
                    // The semaphore is never closed.
                    let _check = self.checks.acquire().await;
                    // Whoever guessed wrong while this one waited has made it suspect.
                    if place.is_some() || !self.is_suspect(&turn) {
                        break self.is_password(attempt.user, password).await?;
                    }
                }
            }
        };
        if let Some(principal) = jid.and_then(|jid| self.hosts.principal(&jid)).filter(|_| right) {
            self.throttle.lock().succeeded(&turn);
            return Ok(principal);
        }
        self.metrics.login_failures.add(1);
        self.failed.write(|| tracing::info!(user = shown(attempt.user), peer = %attempt.peer.address, "login failed"));
        let delay = self.throttle.lock().failed(&turn, self.clock.now_ms());
        // A wrong guess keeps its place until it is answered, also when the guesser does not wait for that.
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            drop(place);
        });
        Err(Denied::Wrong { delay })
    }

    /// A place in the line, if a guess needs one.
    async fn place(&self, turn: &Turn, until: Instant) -> Result<Option<Place>, Denied> {
        loop {
            // Before the question, so that no answer between is missed.
            let freed = turn.line.freed();
            if !self.is_suspect(turn) {
                return Ok(None);
            }
            match turn.line.enter(freed, until).await {
                Entry::Place(place) => return Ok(Some(place)),
                Entry::Freed => {}
                Entry::Full => return Err(Denied::Busy),
            }
        }
    }

    /// A certificate can not be guessed, so nobody stands in line for it. Whoever gives a name must be that one.
    async fn by_certificate(&self, attempt: &Attempt<'_>) -> Result<Principal, Denied> {
        let known = match (self.certificates.get(), &attempt.peer.certificate) {
            (Some(certificates), Some(chain)) => certificates.device(chain).await,
            _ => None,
        };
        let named = |who: &Principal| attempt.user.is_empty() || self.resolve(attempt.user).as_ref() == who.jid();
        known.filter(|who| matches!(who, Principal::Device(_)) && named(who)).ok_or_else(|| {
            self.metrics.login_failures.add(1);
            let (user, peer) = (shown(attempt.user), attempt.peer.address);
            self.refused.write(|| tracing::info!(user, %peer, "a certificate was refused"));
            Denied::Wrong { delay: Duration::ZERO }
        })
    }

    fn is_suspect(&self, turn: &Turn) -> bool {
        self.throttle.lock().is_suspect(turn, self.clock.now_ms())
    }

    /// Whether a secret is a token of a device, and who checks it.
    fn device_token<'a>(
        &'a self,
        jid: Option<&'a BareJid>,
        secret: &[u8],
    ) -> Option<(&'a BareJid, &'a Arc<dyn Tokens>)> {
        let device = jid.filter(|jid| self.hosts.find(jid.domain()) == Some(Host::Things))?;
        Some((device, self.tokens.get().filter(|_| looks_like_token(secret))?))
    }

    async fn is_password(&self, user: &str, password: &[u8]) -> Result<bool, Denied> {
        // For an unknown user as much work as for a known one, so that time does not tell which names exist.
        let keys = self.scram(user, Hash::Sha256).await?;
        Ok(self.verify(keys, password).await)
    }

    async fn verify(&self, keys: ScramKeys, password: &[u8]) -> bool {
        let Ok(password) = String::from_utf8(password.to_vec()).map(Zeroizing::new) else { return false };
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
        match keys {
            Some(keys) => Ok(keys),
            None => self.nobodys_keys(jid.as_ref().map_or(user, BareJid::as_str), hash).await,
        }
    }

    /// What an unknown name gets must not differ from what a known one gets: the salt stays over a restart, the rounds are
    /// those of the host's real accounts (RFC 5802 §5.1, RFC 6120 §13.11).
    async fn nobodys_keys(&self, name: &str, hash: Hash) -> Result<ScramKeys, StoreError> {
        let secret = self.secret.get_or_try_init(|| self.accounts.secret()).await?;
        let things = name.rsplit_once('@').is_some_and(|(_, host)| self.hosts.find(host) == Some(Host::Things));
        let rounds = if things { ITERATIONS_GENERATED } else { ITERATIONS };
        Ok(ScramKeys::dummy(hash, name, secret, rounds))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FakeClock, accounts::Strength, accounts::credential_ops};
    use std::net::Ipv4Addr;
    use tavi_store::{MemoryStore, Owner, SharedStore, Store};

    const DEVICE: &str = "32dda035-ad8f-8818-9747-e3f78c18cc86";
    const OTHER: &str = "32dda035-ad8f-8818-9747-e3f78c18ccaa";

    fn over(store: &Arc<MemoryStore>) -> Login {
        let (hosts, clock) = (Arc::new(Hosts::new("localhost", &[]).unwrap()), Arc::new(FakeClock::at(1_000_000)));
        let shared: SharedStore = store.clone();
        let accounts = Arc::new(Accounts::new(hosts.clone(), shared, clock.clone()));
        // No machine is so slow that somebody who waits is turned away.
        Login { patience: Duration::from_secs(3_600), ..Login::new(hosts, accounts, clock, Arc::default()) }
    }

    async fn seen(login: &Login, user: &str) -> (u32, Vec<u8>) {
        let keys = login.scram(user, Hash::Sha256).await.unwrap();
        (keys.iterations(), keys.salt().to_vec())
    }

    #[tokio::test]
    async fn a_challenge_does_not_tell_who_exists_also_after_a_restart() {
        let store = Arc::new(MemoryStore::default());
        let login = over(&store);
        login.accounts.create(&"romeo@localhost".parse().unwrap(), "secret").await.unwrap();
        let owner = Owner::account(&format!("{DEVICE}@things.localhost"));
        store.commit(&owner, credential_ops("made", Strength::Generated).await.unwrap()).await.unwrap();
        let rounds = |(rounds, _): (u32, Vec<u8>)| rounds;
        assert_eq!(rounds(seen(&login, "romeo").await), rounds(seen(&login, "nobody").await));
        assert_eq!(rounds(seen(&login, DEVICE).await), rounds(seen(&login, OTHER).await));
        let (known, unknown) = (seen(&login, "romeo").await, seen(&login, "nobody").await);
        assert_eq!(seen(&login, "Nobody@LOCALHOST").await, unknown, "a name in another spelling is the same name");
        let again = over(&store);
        assert_eq!((seen(&again, "romeo").await, seen(&again, "nobody").await), (known, unknown));
    }

    #[tokio::test]
    async fn a_right_password_is_believed_and_a_wrong_one_is_held_back() {
        let login = over(&Arc::new(MemoryStore::default()));
        login.accounts.create(&"romeo@localhost".parse().unwrap(), "secret").await.unwrap();
        let peer = Peer::at(Ipv4Addr::LOCALHOST.into());
        let attempt = |user, secret: &'static str| Attempt {
            user,
            credential: Credential::Secret(secret.as_bytes()),
            audience: "mqtt",
            peer: &peer,
        };
        assert!(matches!(login.login(attempt("romeo", "secret")).await, Ok(Principal::Account(_))));
        for user in ["romeo", "nobody", "a@other.example"] {
            let denied = login.login(attempt(user, "guess")).await;
            assert_eq!(denied, Err(Denied::Wrong { delay: Duration::from_millis(100) }), "{user}");
        }
    }

    /// Takes `good` for the device's.
    struct Registry;

    impl Certificates for Registry {
        fn device<'a>(&'a self, chain: &'a [Vec<u8>]) -> crate::hooks::BoxFuture<'a, Option<Principal>> {
            let known = match chain[0].as_slice() {
                b"good" => Some(Principal::Device(format!("{DEVICE}@things.localhost").parse().unwrap())),
                b"person" => Some(Principal::Account("romeo@localhost".parse().unwrap())),
                _ => None,
            };
            Box::pin(async move { known })
        }
    }

    #[tokio::test]
    async fn a_certificate_lets_its_device_in_and_nobody_else() {
        let login = over(&Arc::new(MemoryStore::default()));
        let showing = |chain: Option<&[u8]>| Peer {
            certificate: chain.map(|one| Arc::from([one.to_vec()])),
            ..Peer::at(Ipv4Addr::LOCALHOST.into())
        };
        let attempt = async |login: &Login, user: &str, peer: &Peer| {
            login.login(Attempt { user, credential: Credential::Certificate, audience: "mqtt", peer }).await
        };
        let good = showing(Some(b"good"));
        assert!(!login.takes_certificate(&good));
        assert!(attempt(&login, "", &good).await.is_err(), "without a registry nobody is known");
        login.set_certificates(Arc::new(Registry));
        assert!(login.takes_certificate(&good) && !login.takes_certificate(&showing(None)));
        for user in ["", DEVICE, &format!("{DEVICE}@things.localhost")] {
            assert!(matches!(attempt(&login, user, &good).await, Ok(Principal::Device(_))), "{user}");
        }
        for (user, shown) in [(OTHER, Some(&b"good"[..])), ("romeo", Some(b"good")), ("", Some(b"bad")), (DEVICE, None)]
        {
            assert!(attempt(&login, user, &showing(shown)).await.is_err(), "{user} {shown:?}");
        }
        assert!(attempt(&login, "", &showing(Some(b"person"))).await.is_err(), "certificates are for devices");
    }

    #[tokio::test]
    async fn a_right_password_frees_those_who_wait_behind_wrong_ones() {
        let login = over(&Arc::new(MemoryStore::default()));
        login.accounts.create(&"romeo@localhost".parse().unwrap(), "secret").await.unwrap();
        let peer = Peer::at(Ipv4Addr::LOCALHOST.into());
        let turn = login.throttle.lock().begin("romeo@localhost", peer.address);
        login.throttle.lock().failed(&turn, login.clock.now_ms());
        // Two wrong ones whose answers are held back have all places.
        let _first = login.place(&turn, Instant::now()).await.unwrap().unwrap();
        let _second = login.place(&turn, Instant::now()).await.unwrap().unwrap();
        let attempt = || {
            let credential = Credential::Secret(b"secret");
            login.login(Attempt { user: "romeo", credential, audience: "mqtt", peer: &peer })
        };
        let waiting = futures_util::future::join_all((0..3).map(|_| attempt()));
        // It is polled after them, so all of them wait.
        let right = async { login.throttle.lock().succeeded(&turn) };
        let (waiting, ()) =
            tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(biased; waiting, right) })
                .await
                .expect("nobody waits for those places");
        assert!(waiting.iter().all(Result::is_ok), "{waiting:?}");
    }

    #[tokio::test]
    async fn many_with_the_right_password_come_in_at_once_beside_a_guess_that_is_held_back() {
        let login = over(&Arc::new(MemoryStore::default()));
        login.accounts.create(&"romeo@localhost".parse().unwrap(), "secret").await.unwrap();
        let peer = Peer::at(Ipv4Addr::LOCALHOST.into());
        let attempt = |secret: &'static str| {
            let credential = Credential::Secret(secret.as_bytes());
            login.login(Attempt { user: "romeo", credential, audience: "mqtt", peer: &peer })
        };
        assert!(matches!(attempt("guess").await, Err(Denied::Wrong { .. })));
        let all = futures_util::future::join_all((0..300).map(|_| attempt("secret"))).await;
        let (right, busy): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
        assert!(busy.iter().all(|denied| *denied == Err(Denied::Busy)), "{busy:?}");
        assert!(right.len() >= 66, "{}", right.len());
        let all = futures_util::future::join_all((0..300).map(|_| attempt("secret"))).await;
        assert!(all.iter().all(Result::is_ok), "nobody guesses any more");
    }
}
