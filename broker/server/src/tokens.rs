//! Device tokens at login: the registry's keys, and each token once.

use std::sync::{Arc, Mutex};
use tavi_core::{Parts, hooks::BoxFuture, login::Tokens};
use tavi_enrol::{
    device::DeviceRecord,
    key::PublicKey,
    replay::Replay,
    token::{Attempt, Audience, VerifiedToken, verify},
};
use tavi_store::{Owner, Table};
use tavi_xmpp_proto::jid::BareJid;

/// Checks tokens against the registry.
pub struct Registry {
    parts: Parts,
    used: Mutex<Replay>,
}

impl Registry {
    pub fn new(parts: Parts) -> Arc<Registry> {
        let used = Mutex::new(Replay::new(parts.clock.now_ms() / 1000));
        Arc::new(Registry { parts, used })
    }

    async fn check(&self, device: &BareJid, token: &[u8], protocol: &str) -> Option<()> {
        let token = std::str::from_utf8(token).ok()?;
        let record = device_record(&self.parts, device).await?;
        let now = self.parts.clock.now_ms() / 1000;
        let audience = Audience::named(protocol, self.parts.hosts.domain())?;
        let keys: Vec<PublicKey> = record.keys(now).collect();
        let verified = verify(token, &Attempt { device: record.id, audience, now }, &keys);
        let admitted = verified.and_then(|verified| self.admit(&verified, now));
        if let Err(error) = &admitted {
            tracing::info!(%device, %error, "a device's token was refused");
        }
        admitted.ok()
    }

    fn admit(&self, token: &VerifiedToken, now: u64) -> Result<(), tavi_enrol::token::TokenError> {
        // A panic while it was held can only have lost one token; refusing everybody would be worse.
        self.used.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).admit(token, now)
    }
}

impl Tokens for Registry {
    fn verify<'a>(&'a self, device: &'a BareJid, token: &'a [u8], audience: &'a str) -> BoxFuture<'a, bool> {
        Box::pin(async move { self.check(device, token, audience).await.is_some() })
    }
}

/// A device's registry row.
pub async fn device_record(parts: &Parts, device: &BareJid) -> Option<DeviceRecord> {
    let owner = Owner::account(device.as_str());
    let record = parts.store.load(&owner, Table::Device, "").await.ok()??;
    serde_json::from_slice(&record.value).ok()
}
