//! Accounts and their credentials in the store: people, and the devices that enrolment adds.

use crate::{
    clock::Clock,
    principal::{Host, Hosts},
};
use bytes::Bytes;
use std::sync::Arc;
use tavi_store::{Expect, Op, Owner, SharedStore, StoreError, Table};
use tavi_xmpp_proto::{
    jid::BareJid,
    sasl::{Hash, ScramKeys},
};

/// Why an account cannot be made or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// There is one already.
    #[error("{0} exists already")]
    Exists(BareJid),
    /// There is none.
    #[error("there is no account {0}")]
    Missing(BareJid),
    /// Nobody can have that JID here.
    #[error("{0} is no address of a person on this broker: use NAME@{1}")]
    NotHere(BareJid, String),
    /// The password cannot be used (RFC 8265 §4).
    #[error("the password is empty or has characters that passwords cannot have")]
    Password,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Rounds of PBKDF2 for people's passwords, made here or chosen: SCRAM tells the number to everybody, so it must not
/// tell one from the other (RFC 7677 §4 asks for at least 4,096).
pub const ITERATIONS: u32 = 10_000;
/// Rounds for the secrets of devices, which are generated and have 128 bits of their own.
pub const ITERATIONS_GENERATED: u32 = 4_096;

/// Whose secret it is, which decides how costly guessing it has to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// A person's, who may have chosen it.
    Chosen,
    /// A device's: the broker made it from 128 random bits.
    Generated,
}

/// The item of the secret from which answers about unknown names are made.
const SECRET: &str = "login-secret";

/// Accounts and credentials.
pub struct Accounts {
    hosts: Arc<Hosts>,
    store: SharedStore,
    clock: Arc<dyn Clock>,
}

impl Accounts {
    /// The accounts of a store.
    pub fn new(hosts: Arc<Hosts>, store: SharedStore, clock: Arc<dyn Clock>) -> Accounts {
        Accounts { hosts, store, clock }
    }

    /// Makes a person's account.
    ///
    /// # Errors
    /// See [`AccountError`]; nothing is changed then.
    pub async fn create(&self, jid: &BareJid, password: &str) -> Result<(), AccountError> {
        if jid.local().is_none() || self.hosts.find(jid.domain()) != Some(Host::Main) {
            return Err(AccountError::NotHere(jid.clone(), self.hosts.domain().into()));
        }
        let mut ops = vec![self.account_op()];
        ops.extend(credential_ops(password, Strength::Chosen).await?);
        match self.store.commit(&Owner::account(jid.as_str()), ops).await {
            Err(StoreError::Conflict { .. }) => Err(AccountError::Exists(jid.clone())),
            other => Ok(other?),
        }
    }

    /// The operation that makes an account exist; refused as a conflict if it does.
    pub fn account_op(&self) -> Op {
        let value = Bytes::from(self.clock.now_ms().to_string());
        Op::Put { table: Table::Account, item: "".into(), value, expect: Expect::Absent }
    }

    /// Changes a password.
    ///
    /// # Errors
    /// See [`AccountError`]; nothing is changed then.
    pub async fn set_password(&self, jid: &BareJid, password: &str) -> Result<(), AccountError> {
        if !self.exists(jid).await? {
            return Err(AccountError::Missing(jid.clone()));
        }
        let ops = credential_ops(password, Strength::Chosen).await?;
        Ok(self.store.commit(&Owner::account(jid.as_str()), ops).await?)
    }

    /// Deletes all that is stored for an account, and nothing else: the last step of its removal.
    ///
    /// # Errors
    /// See [`AccountError`].
    pub async fn remove(&self, jid: &BareJid) -> Result<(), AccountError> {
        if !self.exists(jid).await? {
            return Err(AccountError::Missing(jid.clone()));
        }
        Ok(self.store.commit(&Owner::account(jid.as_str()), vec![Op::Purge]).await?)
    }

    /// Deletes what messages on their way may have left for a name that nobody has: they do not wait for the next
    /// owner.
    ///
    /// # Errors
    /// See [`AccountError`].
    pub async fn sweep(&self, jid: &BareJid) -> Result<(), AccountError> {
        if self.exists(jid).await? {
            return Err(AccountError::Exists(jid.clone()));
        }
        Ok(self.store.commit(&Owner::account(jid.as_str()), vec![Op::Purge]).await?)
    }

    /// Whether there is such an account or device.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn exists(&self, jid: &BareJid) -> Result<bool, StoreError> {
        Ok(self.store.load(&Owner::account(jid.as_str()), Table::Account, "").await?.is_some())
    }

    /// At most `limit` accounts on a host, in a stable order, from behind `after`.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn list(&self, host: Host, after: Option<&BareJid>, limit: usize) -> Result<Vec<BareJid>, StoreError> {
        let mut found = Vec::new();
        let mut from = after.map(|jid| Owner::account(jid.as_str()));
        while found.len() < limit {
            let rows = self.store.scan(Table::Account, from.as_ref().map(|owner| (owner, "")), 500).await?;
            let Some(last) = rows.last() else { break };
            from = Some(last.owner.clone());
            let jids = rows.iter().filter_map(|row| row.owner.name().parse::<BareJid>().ok());
            found.extend(jids.filter(|jid| self.hosts.find(jid.domain()) == Some(host)));
        }
        found.truncate(limit);
        Ok(found)
    }

    /// 32 random octets that belong to this store, drawn at the first need.
    pub(crate) async fn secret(&self) -> Result<[u8; 32], StoreError> {
        let owner = Owner::system("broker");
        loop {
            if let Some(record) = self.store.load(&owner, Table::System, SECRET).await? {
                let damaged = || StoreError::Unavailable("the secret of logins is damaged".into());
                return record.value.as_ref().try_into().map_err(|_| damaged());
            }
            let mut drawn = [0; 32];
            getrandom::fill(&mut drawn).map_err(|_| StoreError::Unavailable("the system has no randomness".into()))?;
            let value = Bytes::copy_from_slice(&drawn);
            let put = Op::Put { table: Table::System, item: SECRET.into(), value, expect: Expect::Absent };
            match self.store.commit(&owner, vec![put]).await {
                // Another node of the same store was faster.
                Err(StoreError::Conflict { .. }) => {}
                other => return other.map(|_| drawn),
            }
        }
    }

    /// The SCRAM keys of an account; `None` if it has none.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn scram_keys(&self, jid: &BareJid, hash: Hash) -> Result<Option<ScramKeys>, StoreError> {
        let owner = Owner::account(jid.as_str());
        let record = self.store.load(&owner, Table::Credential, credential_item(hash)).await?;
        Ok(record.and_then(|record| ScramKeys::decode(&record.value)))
    }
}

/// The operations that set a password: keys for both hashes, made off the network threads.
///
/// # Errors
/// If it cannot be a password.
pub async fn credential_ops(password: &str, strength: Strength) -> Result<Vec<Op>, AccountError> {
    let password = zeroize::Zeroizing::new(password.to_owned());
    let work = tokio::task::spawn_blocking(move || {
        [Hash::Sha1, Hash::Sha256].map(|hash| credential_op(hash, &password, strength)).into_iter().collect()
    });
    work.await.map_err(|_| StoreError::Unavailable("the password could not be hashed".into()))?
}

fn credential_op(hash: Hash, password: &str, strength: Strength) -> Result<Op, AccountError> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|_| StoreError::Unavailable("the system has no randomness".into()))?;
    let rounds = if strength == Strength::Chosen { ITERATIONS } else { ITERATIONS_GENERATED };
    let keys = ScramKeys::derive(hash, password, &salt, rounds).map_err(|_| AccountError::Password)?;
    let (table, item) = (Table::Credential, credential_item(hash).into());
    Ok(Op::Put { table, item, value: keys.encode().into(), expect: Expect::Any })
}

/// The items of an account's credentials in `Table::Credential`: without them nobody logs in with a password.
pub fn credential_items() -> impl Iterator<Item = &'static str> {
    [Hash::Sha1, Hash::Sha256].into_iter().map(credential_item)
}

fn credential_item(hash: Hash) -> &'static str {
    match hash {
        Hash::Sha1 => "scram-sha-1",
        Hash::Sha256 => "scram-sha-256",
    }
}
