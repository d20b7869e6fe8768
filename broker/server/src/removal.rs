//! Removing an account or a device: one durable decision, and then steps that may be repeated, by the broker alone.
//!
//! The decision is one commit of the owner: its credentials go and a mark comes (`Table::System`, item `removal`).
//! From then on nobody logs in with it, and nobody else gets its name. What follows runs in a task of the broker, not
//! of whoever asked, and once more after a restart that came in between: sessions, grants, contacts' entries, values
//! under its own topics, and at the end everything that is stored for it, with the mark.

use crate::people::store_failed;
use std::{sync::Arc, time::Duration};
use tavi_core::{Draft, Envelope, Node, Origin, accounts::credential_items, permit::own_filter, publication::Change};
use tavi_enrol::{
    admin::{ApiError, ErrorCode, Removed},
    device::{DeviceRecord, DeviceState},
};
use tavi_store::{Expect, Op, Owner, StoreError, Table};
use tavi_xmpp_proto::{
    jid::{BareJid, Jid},
    stanza::{Head, PresenceType, Stanza},
};
use tokio::sync::Mutex;

/// The mark's item, in `Table::System` of the owner who is removed.
const MARK: &str = "removal";
/// How long sessions may take to say that they are gone, before their contacts forget them.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a store that fails is left alone before the next try.
const PAUSE: Duration = Duration::from_secs(5);
/// How long whoever asked waits for the end; the removal stands anyway.
const PATIENCE: Duration = Duration::from_secs(20);

/// All removals of a broker, one after the other.
pub struct Removals {
    node: Node,
    one: Mutex<()>,
}

impl Removals {
    pub fn new(node: Node) -> Arc<Removals> {
        Arc::new(Removals { node, one: Mutex::default() })
    }

    /// Removes a person's account. Goes on when the caller does not.
    pub async fn account(self: &Arc<Self>, jid: BareJid) -> Result<Removed, ApiError> {
        self.detached(jid.clone(), None).await.map(|()| Removed { removed: jid.to_string() })
    }

    /// Removes a device; its record stays, so that its key does not come back.
    pub async fn device(self: &Arc<Self>, jid: BareJid, record: DeviceRecord) -> Result<Removed, ApiError> {
        let removed = record.id.to_string();
        self.detached(jid, Some(record)).await.map(|()| Removed { removed })
    }

    /// Takes up what a former process decided and did not finish.
    pub async fn resume(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut after = None::<(Owner, Box<str>)>;
        loop {
            let from = after.as_ref().map(|(owner, item)| (owner, &**item));
            let rows = self.node.parts.store.scan(Table::System, from, 1000).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some((last.owner.clone(), last.item.clone()));
            let marked = rows.iter().filter(|row| &*row.item == MARK).filter_map(|row| row.owner.name().parse().ok());
            for jid in marked {
                let this = self.clone();
                tokio::spawn(async move { this.finish(&jid).await });
            }
        }
    }

    async fn detached(self: &Arc<Self>, jid: BareJid, record: Option<DeviceRecord>) -> Result<(), ApiError> {
        let (this, (decided, decision)) = (self.clone(), tokio::sync::oneshot::channel());
        let work = tokio::spawn(async move {
            let outcome = this.decide(&jid, record).await;
            let stands = outcome.is_ok();
            // Whoever asked may be gone.
            let _ = decided.send(outcome);
            if stands {
                this.finish(&jid).await;
            }
        });
        let gone = |_| ApiError::new(ErrorCode::Internal, "the removal broke off");
        decision.await.map_err(gone)??;
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(done) => {
                done.map_err(|_| ApiError::new(ErrorCode::Internal, "the removal broke off; the next start goes on"))
            }
            // It stands, and goes on.
            Err(_) => Ok(()),
        }
    }

    /// The one durable decision.
    async fn decide(&self, jid: &BareJid, record: Option<DeviceRecord>) -> Result<(), ApiError> {
        let parts = &self.node.parts;
        if record.is_none() && !parts.accounts.exists(jid).await.map_err(store_failed)? {
            return Err(ApiError::new(ErrorCode::NotFound, format!("there is no account {jid}")));
        }
        let mut ops: Vec<Op> = credential_items().map(|item| delete(Table::Credential, item)).collect();
        if let Some(record) = record {
            ops.push(put_revoked(record)?);
        }
        let value = parts.clock.now_ms().to_string().into();
        ops.push(Op::Put { table: Table::System, item: MARK.into(), value, expect: Expect::Any });
        parts.store.commit(&Owner::account(jid.as_str()), ops).await.map_err(store_failed)
    }

    /// Everything else, as often as it takes.
    pub async fn finish(&self, jid: &BareJid) {
        let _one = self.one.lock().await;
        while let Err(error) = self.steps(jid).await {
            tracing::error!(%jid, %error, "a removal is not finished; it is tried again");
            tokio::time::sleep(PAUSE).await;
        }
        tracing::info!(%jid, "removed, with all that it had");
    }

    async fn steps(&self, jid: &BareJid) -> Result<(), StoreError> {
        let parts = &self.node.parts;
        self.end_sessions(jid).await;
        parts.permit.remove_subject(jid.as_str()).1.await?;
        self.leave_contacts(jid).await?;
        self.clear_values(jid).await?;
        tavi_bots::forget(&parts.store, jid.as_str()).await?;
        let owner = Owner::account(jid.as_str());
        let record = parts.store.load(&owner, Table::Device, "").await?;
        let keep =
            record.map(|r| Op::Put { table: Table::Device, item: "".into(), value: r.value, expect: Expect::Any });
        parts.store.commit(&owner, [Op::Purge].into_iter().chain(keep).collect()).await?;
        // Again: now nothing is left that somebody could have read into memory meanwhile.
        parts.revoke(jid);
        Ok(())
    }

    /// In every protocol; waits until those who saw it were told that it is gone.
    async fn end_sessions(&self, jid: &BareJid) {
        let account = self.node.parts.homes.known(jid);
        self.node.parts.revoke(jid);
        let Some(account) = account else { return };
        let gone = async {
            while account.session_count() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(FAREWELL, gone).await.is_err() {
            tracing::warn!(%jid, "a session of somebody who was removed has not ended yet");
        }
    }

    /// Whoever has it in the roster keeps the entry, without subscription, request or approval (RFC 6121 §3.2, §3.3,
    /// §3.4.3): so no namesake sees their presence.
    async fn leave_contacts(&self, jid: &BareJid) -> Result<(), StoreError> {
        let mut after = None::<(Owner, Box<str>)>;
        loop {
            let from = after.as_ref().map(|(owner, item)| (owner, &**item));
            let rows = self.node.parts.store.scan(Table::Roster, from, 1000).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some((last.owner.clone(), last.item.clone()));
            let holders = rows.iter().filter(|row| *row.item == *jid.as_str());
            for holder in holders.filter_map(|row| row.owner.name().parse::<BareJid>().ok()) {
                self.leave(&holder, jid).await?;
            }
        }
    }

    /// In the contact's name, so that the contact's clients are told as well.
    async fn leave(&self, contact: &BareJid, jid: &BareJid) -> Result<(), StoreError> {
        // While it is in memory its hooks run.
        let Some(_loaded) = self.node.parts.homes.account(contact).await? else { return Ok(()) };
        for type_ in [PresenceType::Unsubscribe, PresenceType::Unsubscribed] {
            let head = Head::presence(type_).from(Jid::from(contact.clone())).to(Jid::from(jid.clone()));
            let now = self.node.parts.clock.now_ms();
            self.node.route(Envelope::received(Stanza::new(head, None), Origin::Broker, now)).await.complete().await?;
        }
        Ok(())
    }

    /// The values of the topics that were its own without any grant.
    async fn clear_values(&self, jid: &BareJid) -> Result<(), StoreError> {
        let parts = &self.node.parts;
        let Some(who) = parts.hosts.principal(jid) else { return Ok(()) };
        let Some(filter) = own_filter(&who) else { return Ok(()) };
        let mut values = parts.topics.read_retained(&filter);
        while let Some(value) = values.next().await? {
            let draft = Draft { topic: value.topic.clone(), change: Change::Clear, retain: true, ..Draft::default() };
            parts.topics.publish_unasked(&who, draft).complete().await?;
            let node = Owner::topic(&value.topic);
            parts.store.commit(&node, vec![delete(Table::Node, "created")]).await?;
        }
        Ok(())
    }

    /// The whole removal where no broker runs: no front end knows the MQTT sessions that are stored.
    pub async fn alone(&self, jid: &BareJid) -> Result<Removed, ApiError> {
        self.decide(jid, None).await?;
        self.purge_mqtt(jid).await.map_err(store_failed)?;
        self.steps(jid).await.map_err(store_failed)?;
        Ok(Removed { removed: jid.to_string() })
    }

    async fn purge_mqtt(&self, jid: &BareJid) -> Result<(), StoreError> {
        let mut after = None::<Owner>;
        loop {
            let owners = self.node.parts.store.owners(after.as_ref(), 1000).await?;
            let Some(last) = owners.last() else { return Ok(()) };
            after = Some(last.clone());
            for owner in owners.iter().filter(|owner| is_mqtt_of(owner, jid)) {
                self.node.parts.store.commit(owner, vec![Op::Purge]).await?;
            }
        }
    }
}

fn is_mqtt_of(owner: &Owner, jid: &BareJid) -> bool {
    let name = owner.as_str().strip_prefix("m:").and_then(|name| name.split_once('\0'));
    name.is_some_and(|(principal, _)| principal == jid.as_str())
}

fn delete(table: Table, item: &str) -> Op {
    Op::Delete { table, item: item.into(), expect: Expect::Any }
}

fn put_revoked(mut record: DeviceRecord) -> Result<Op, ApiError> {
    (record.state, record.name) = (DeviceState::Revoked, None);
    let value = serde_json::to_vec(&record).map_err(|e| ApiError::new(ErrorCode::Internal, e.to_string()))?;
    Ok(Op::Put { table: Table::Device, item: "".into(), value: value.into(), expect: Expect::Any })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tavi_core::{
        Parts, Registry, SystemClock,
        homes::SessionLimits,
        permit::{EVERYONE, Grant},
        principal::Hosts,
    };
    use tavi_modules::contacts::contacts;
    use tavi_store::{MemoryStore, SharedStore};

    async fn node(store: &SharedStore) -> Node {
        let (hosts, limits) = (Hosts::new("localhost", &[]).unwrap(), SessionLimits::default());
        let parts = Parts::load(hosts, store.clone(), Arc::new(SystemClock), limits).await.unwrap();
        let mut registry = Registry::default();
        tavi_modules::register(&mut registry, &parts).unwrap();
        Node::new(parts, registry)
    }

    fn jid(name: &str) -> BareJid {
        format!("{name}@localhost").parse().unwrap()
    }

    /// Dora, whom Ben has in his roster in every way, with a grant, a value and a message. They have blocked each other.
    async fn dora() -> SharedStore {
        let store: SharedStore = Arc::new(MemoryStore::default());
        let node = node(&store).await;
        for name in ["dora", "ben"] {
            node.parts.accounts.create(&jid(name), "secret").await.unwrap();
        }
        let item = "<item xmlns='jabber:iq:roster' jid='dora@localhost' name='D' subscription='both' approved='true'><added/></item>";
        let (item, value) = ("dora@localhost".into(), item.into());
        let put = Op::Put { table: Table::Roster, item, value, expect: Expect::Any };
        let block = |whom: &str| {
            let (item, value) = (whom.into(), Default::default());
            Op::Put { table: Table::Block, item, value, expect: Expect::Any }
        };
        store.commit(&Owner::account("ben@localhost"), vec![put, block("dora@localhost")]).await.unwrap();
        store.commit(&Owner::account("dora@localhost"), vec![block("ben@localhost")]).await.unwrap();
        for (id, subject) in [(1, "dora@localhost"), (2, EVERYONE)] {
            let grant = Grant::new(id, subject, "publish".parse().unwrap(), "x/#").unwrap();
            node.parts.permit.add(grant).await.unwrap();
        }
        let who = node.parts.hosts.principal(&jid("dora")).unwrap();
        let draft = Draft { topic: "u/dora/diary".into(), payload: "secret".into(), retain: true, ..Draft::default() };
        node.parts.topics.publish(&who, draft).unwrap().complete().await.unwrap();
        let push = Op::QueuePush { id: 99, value: "old".into() };
        store.commit(&Owner::account("dora@localhost"), vec![push]).await.unwrap();
        store
    }

    async fn nothing_is_left(store: &SharedStore) {
        let node = node(store).await;
        let owner = Owner::account("dora@localhost");
        assert!(!node.parts.accounts.exists(&jid("dora")).await.unwrap());
        assert!(store.load(&owner, Table::System, MARK).await.unwrap().is_none());
        assert!(store.queue(&owner, 0, 10).await.unwrap().is_empty());
        assert!(store.list(&owner, Table::Block, None, 10).await.unwrap().is_empty());
        assert_eq!(node.parts.permit.list(None).len(), 1, "the other's grant stays");
        assert!(node.parts.topics.retained("u/dora/#").is_empty());
        let ben = node.parts.homes.account(&jid("ben")).await.unwrap().unwrap();
        let contact = ben.at_home(|state| contacts(state).get(&jid("dora")).cloned()).unwrap();
        assert_eq!(contact.name.as_deref(), Some("D"));
        assert!(!contact.subscription.to && !contact.subscription.from && !contact.approved, "{contact:?}");
    }

    #[tokio::test]
    async fn nothing_of_an_account_is_left_for_a_namesake() {
        let store = dora().await;
        let removals = Removals::new(node(&store).await);
        removals.account(jid("dora")).await.unwrap();
        nothing_is_left(&store).await;
        let again = removals.account(jid("dora")).await.unwrap_err();
        assert_eq!(again.error, ErrorCode::NotFound);
    }

    #[tokio::test]
    async fn a_removal_that_broke_off_is_finished_by_the_next_start() {
        let store = dora().await;
        Removals::new(node(&store).await).decide(&jid("dora"), None).await.unwrap();
        let next = node(&store).await;
        assert!(
            next.parts.accounts.scram_keys(&jid("dora"), tavi_xmpp_proto::sasl::Hash::Sha256).await.unwrap().is_none()
        );
        let create = next.parts.accounts.create(&jid("dora"), "other").await;
        assert!(create.is_err(), "the name is not free yet");
        let removals = Removals::new(next);
        removals.resume().await.unwrap();
        while store.load(&Owner::account("dora@localhost"), Table::System, MARK).await.unwrap().is_some() {
            tokio::task::yield_now().await;
        }
        nothing_is_left(&store).await;
    }

    #[tokio::test]
    async fn whoever_hangs_up_stops_nothing() {
        let store = dora().await;
        let removals = Removals::new(node(&store).await);
        // Polled once, then dropped.
        let mut asked = Box::pin(removals.account(jid("dora")));
        std::future::poll_fn(|cx| std::task::Poll::Ready(asked.as_mut().poll(cx).is_pending())).await;
        drop(asked);
        let owner = Owner::account("dora@localhost");
        while store.load(&owner, Table::Account, "").await.unwrap().is_some() {
            tokio::task::yield_now().await;
        }
        nothing_is_left(&store).await;
    }
}
