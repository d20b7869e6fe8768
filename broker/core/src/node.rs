//! One running broker: the parts that modules share, and the four verbs that front ends use.

use crate::{
    accounts::Accounts,
    bus::{Bus, InProcess, NoSeat, NodeId},
    clock::Clock,
    envelope::Envelope,
    homes::{Homes, SessionLimits},
    hooks::Registry,
    journal::Journal,
    link::Link,
    login::Login,
    metrics::Metrics,
    permit::Permit,
    principal::{Hosts, Principal},
    router::Router,
    ticket::Ticket,
    topics::{Draft, Topics},
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use tavi_store::{IdSource, SharedStore, StoreError};
use tavi_xmpp_proto::jid::{BareJid, Jid};
use tokio::sync::broadcast;

/// What modules and front ends share. Cloning shares.
#[derive(Clone)]
pub struct Parts {
    /// The broker's host names.
    pub hosts: Arc<Hosts>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Message ids.
    pub ids: Arc<IdSource>,
    /// The store.
    pub store: SharedStore,
    /// Owners in memory and their sessions.
    pub homes: Arc<Homes>,
    /// Topics and their subscribers.
    pub topics: Arc<Topics>,
    /// The access model.
    pub permit: Arc<Permit>,
    /// Accounts and credentials in the store.
    pub accounts: Arc<Accounts>,
    /// Who may log in.
    pub login: Arc<Login>,
    /// The counts.
    pub metrics: Arc<Metrics>,
    /// What streams that can be resumed need to outlive the process; there is none until one is put here, before the
    /// node is made.
    pub journal: Arc<Journal>,
    /// Bare JIDs that were removed or revoked: each front end listens and drops their sessions at once.
    pub revoked: broadcast::Sender<BareJid>,
}

/// How many revocations a front end may lag behind before it looks at all its sessions.
const REVOCATIONS: usize = 1024;

impl Parts {
    /// Reads what has to be in memory from the store.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn load(
        hosts: Hosts,
        store: SharedStore,
        clock: Arc<dyn Clock>,
        limits: SessionLimits,
    ) -> Result<Parts, StoreError> {
        Parts::load_for(0, (hosts, store), clock, limits).await
    }

    /// The same for one of several nodes: ids tell them apart.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn load_for(
        node: NodeId,
        (hosts, store): (Hosts, SharedStore),
        clock: Arc<dyn Clock>,
        limits: SessionLimits,
    ) -> Result<Parts, StoreError> {
        let hosts = Arc::new(hosts);
        let ids = Arc::new(IdSource::new(node, store.last_id()));
        let permit = Arc::new(Permit::load(store.clone()).await?);
        let topics = Topics::load(store.clone(), permit.clone(), ids.clone(), clock.clone()).await?;
        let accounts = Arc::new(Accounts::new(hosts.clone(), store.clone(), clock.clone()));
        let metrics = Arc::new(Metrics::default());
        Ok(Parts {
            homes: Arc::new(Homes::new(
                hosts.clone(),
                (store.clone(), ids.clone()),
                clock.clone(),
                (limits, metrics.clone()),
            )),
            login: Arc::new(Login::new(hosts.clone(), accounts.clone(), clock.clone(), metrics.clone())),
            topics: Arc::new(topics),
            revoked: broadcast::channel(REVOCATIONS).0,
            journal: Arc::new(Journal::none()),
            hosts,
            clock,
            ids,
            store,
            permit,
            accounts,
            metrics,
        })
    }

    /// Ends all sessions of a bare JID, in every protocol, at once.
    pub fn revoke(&self, jid: &BareJid) {
        self.homes.expel(jid);
        // Without a front end nobody listens.
        let _ = self.revoked.send(jid.clone());
    }
}

/// A running broker.
#[derive(Clone)]
pub struct Node {
    /// What modules share too.
    pub parts: Parts,
    /// Routes stanzas.
    pub router: Arc<Router>,
    devices: Arc<Mutex<HashMap<BareJid, usize>>>,
}

impl Node {
    /// Puts the parts and the modules together.
    pub fn new(parts: Parts, registry: Registry) -> Node {
        Node::on(Arc::new(InProcess), parts, registry)
    }

    /// The same beside other nodes.
    pub fn on(bus: Arc<dyn Bus>, parts: Parts, registry: Registry) -> Node {
        let router = Router::new(parts.clone(), registry, bus);
        Node { parts, router, devices: Arc::default() }
    }

    /// The verb `route`: a stanza that a local session sent.
    pub async fn route(&self, env: Envelope) -> Ticket {
        self.router.route(env).await
    }

    /// Gives a session of this full JID its seat, where the account is home. While the guard lives, a device's session
    /// exists.
    ///
    /// # Errors
    /// There is no such account, it has too many sessions, or its home is out of reach.
    pub async fn bind(&self, jid: &Jid) -> Result<(Link, Attached), NoSeat> {
        match self.router.exchange.bus().away(&jid.to_bare()) {
            None => self.bind_here(jid).await,
            Some(node) => {
                let link = self.router.exchange.attach(node, jid.clone(), self.parts.ids.clone()).await?;
                Ok((link, Attached(None)))
            }
        }
    }

    pub(crate) async fn bind_here(&self, jid: &Jid) -> Result<(Link, Attached), NoSeat> {
        let account = self.parts.homes.account(&jid.to_bare()).await.map_err(|error| {
            tracing::error!(%error, "an account could not be read");
            NoSeat::Unavailable
        })?;
        let account = account.ok_or(NoSeat::Nobody)?;
        let attached = self.attach(&account.principal);
        Ok((self.router.bind(&account, jid.clone()).ok_or(NoSeat::TooMany)?, attached))
    }

    /// A device's session in any protocol begins: while the guard lives, its `state` topic says `online`. For other
    /// principals nothing happens.
    pub fn attach(&self, principal: &Principal) -> Attached {
        let Principal::Device(jid) = principal else { return Attached(None) };
        let mut devices = self.devices.lock();
        let count = devices.entry(jid.clone()).or_default();
        *count += 1;
        if *count == 1 {
            self.publish_state(principal, "online");
        }
        drop(devices);
        Attached(Some(Box::new((self.clone(), principal.clone()))))
    }

    fn detach(&self, principal: &Principal) {
        let Some(jid) = principal.jid() else { return };
        let mut devices = self.devices.lock();
        let Some(count) = devices.get_mut(jid) else { return };
        *count -= 1;
        if *count == 0 {
            devices.remove(jid);
            self.publish_state(principal, "offline");
        }
    }

    /// After a crash, devices that were online are not.
    pub async fn correct_states(&self) -> Result<(), StoreError> {
        let mut states = self.parts.topics.read_retained("d/+/state");
        let mut corrected = VecDeque::new();
        while let Some(state) = states.next().await? {
            if &*state.payload == b"online" {
                let offline = state_draft(&state.topic, "offline");
                corrected.push_back(self.parts.topics.publish_unasked(&state.from, offline));
            }
            // Many wait for one sync of the disk.
            while corrected.len() > CORRECTED_AT_ONCE {
                complete_first(&mut corrected).await?;
            }
        }
        while !corrected.is_empty() {
            complete_first(&mut corrected).await?;
        }
        Ok(())
    }

    fn publish_state(&self, device: &Principal, state: &'static str) {
        let Some(id) = device.jid().and_then(|jid| jid.local()) else { return };
        let ticket = self.parts.topics.publish_unasked(device, state_draft(&format!("d/{id}/state"), state));
        // Outside a runtime (the very end of the process) the next start corrects it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = ticket.complete().await {
                    tracing::error!(%error, "a device's state could not be saved");
                }
            });
        }
    }
}

/// At most so many corrections of states are on their way to the disk.
const CORRECTED_AT_ONCE: usize = 1_024;

async fn complete_first(tickets: &mut VecDeque<Ticket>) -> Result<(), StoreError> {
    match tickets.pop_front() {
        Some(ticket) => ticket.complete().await,
        None => Ok(()),
    }
}

fn state_draft(topic: &str, state: &'static str) -> Draft {
    let content_type = Some("text/plain;charset=utf-8".into());
    Draft { topic: topic.into(), payload: state.into(), retain: true, content_type, ..Draft::default() }
}

/// While it lives, a device's session exists.
pub struct Attached(Option<Box<(Node, Principal)>>);

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(boxed) = self.0.take() {
            boxed.0.detach(&boxed.1);
        }
    }
}
