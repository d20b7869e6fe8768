//! The admin API's operations on a running broker.

use crate::{
    people::{self, new_secret, store_failed},
    removal::Removals,
    sessions,
    tokens::device_record,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
    time::Instant,
};
use tavi_core::{
    Host, Parts,
    accounts::{AccountError, Strength, credential_ops},
    permit::{Grant as CoreGrant, GrantError, normal_subject},
};
use tavi_enrol::{
    DeviceId,
    admin::{
        AddedDevice, ApiError, DeviceList, DeviceRow, ErrorCode, GrantList, GrantRow, NewDevice, NewGrant, NewPassword,
        NewUser, Removed, SessionDetail, SessionList, Status, UserList, UserPassword,
    },
    device::{DeviceName, DeviceRecord, DeviceState},
    grant::Grant,
    route::ListQuery,
};
use tavi_store::{Expect, Op, Owner, StoreError, Table};
use tavi_web::admin::{Admin, Outcome};
use tavi_xmpp_proto::jid::BareJid;
use tokio::sync::Mutex;

/// Where changes of accounts, devices and grants are told in the log. Who can reach the admin socket is its owner.
const AUDIT: &str = "tavi::audit";

/// The running broker as an administrator sees it.
pub struct Office {
    parts: Parts,
    listeners: BTreeMap<String, String>,
    started: Instant,
    removals: Arc<Removals>,
    /// One registration at a time: names are unique.
    registering: Mutex<Names>,
    /// There from when the front ends have started.
    mqtt: OnceLock<Arc<tavi_mqtt::Hub>>,
}

/// The names of devices and whose they are; read from the store when the first device is added, then kept.
#[derive(Default)]
struct Names(Option<HashMap<DeviceName, DeviceId>>);

impl Office {
    pub fn new(parts: Parts, removals: Arc<Removals>, listeners: BTreeMap<String, String>) -> Office {
        Office {
            parts,
            removals,
            listeners,
            started: Instant::now(),
            registering: Mutex::default(),
            mqtt: OnceLock::new(),
        }
    }

    /// The MQTT front end has started.
    pub fn set_mqtt(&self, hub: Arc<tavi_mqtt::Hub>) {
        // There is one in a process.
        _ = self.mqtt.set(hub);
    }

    fn mqtt(&self) -> Outcome<&Arc<tavi_mqtt::Hub>> {
        self.mqtt.get().ok_or_else(|| ApiError::new(ErrorCode::Unavailable, "the broker is still starting"))
    }

    fn device_jid(&self, id: DeviceId) -> Outcome<BareJid> {
        let host = self.parts.hosts.name(tavi_core::Host::Things);
        BareJid::new(&id.to_string(), host).map_err(|e| ApiError::new(ErrorCode::Internal, e.to_string()))
    }

    async fn records(&self) -> Outcome<Vec<DeviceRecord>> {
        let (mut records, mut after) = (Vec::new(), None::<(Owner, Box<str>)>);
        loop {
            let from = after.as_ref().map(|(owner, item)| (owner, &**item));
            let rows = self.parts.store.scan(Table::Device, from, 1000).await.map_err(store_failed)?;
            let Some(last) = rows.last() else { return Ok(records) };
            after = Some((last.owner.clone(), last.item.clone()));
            records.extend(rows.iter().filter_map(|row| serde_json::from_slice(&row.record.value).ok()));
        }
    }

    fn row(&self, record: DeviceRecord) -> Outcome<DeviceRow> {
        let jid = self.device_jid(record.id)?.to_string();
        let key = record.credentials.iter().find_map(|c| match c.kind {
            tavi_enrol::device::CredentialKind::Ed25519 { key } => Some(key),
            _ => None,
        });
        let public_key =
            key.ok_or_else(|| ApiError::new(ErrorCode::Internal, format!("device {} has no key", record.id)))?;
        Ok(DeviceRow {
            id: record.id,
            jid,
            name: record.name,
            state: record.state,
            public_key,
            created: record.created,
        })
    }

    async fn known_device(&self, id: DeviceId) -> Outcome<DeviceRecord> {
        let record = device_record(&self.parts, &self.device_jid(id)?).await;
        record.ok_or_else(|| {
            ApiError::new(ErrorCode::NotFound, format!("there is no device {id}"))
                .hint("tavi-fleet device list shows them")
        })
    }

    async fn check_new(&self, record: &DeviceRecord, names: &mut Names) -> Outcome<()> {
        let conflict = |message: String| ApiError::new(ErrorCode::Conflict, message);
        match device_record(&self.parts, &self.device_jid(record.id)?).await {
            Some(known) if known.state == DeviceState::Revoked => {
                let error = conflict(format!("the device {} was removed and stays revoked", known.id));
                return Err(error.hint("give the device a new key"));
            }
            Some(known) => return Err(conflict(format!("the device {} exists already", known.id))),
            None => {}
        }
        let Some(name) = &record.name else { return Ok(()) };
        match self.names(names).await?.get(name) {
            Some(other) => Err(conflict(format!("the device {other} has that name already"))),
            None => Ok(()),
        }
    }

    /// What an operator is to know of a grant whose subject is not here.
    async fn unknown(&self, subject: &str) -> Outcome<Option<String>> {
        let Ok(jid) = subject.parse::<BareJid>() else { return Ok(None) };
        if subject.starts_with('@') || jid.local().is_none() {
            return Ok(None);
        }
        let known = match self.parts.hosts.find(jid.domain()) {
            Some(Host::Main | Host::Things) => {
                let account = self.parts.store.load(&Owner::account(subject), Table::Account, "").await;
                account.map_err(store_failed)?.is_some()
            }
            // Bots come and go with their files.
            Some(Host::Bots) => true,
            _ => return Ok(Some(format!("{subject} is not at a domain of this broker"))),
        };
        Ok((!known).then(|| format!("there is no {subject} yet; the grant stands for when there is")))
    }

    async fn names<'a>(&self, names: &'a mut Names) -> Outcome<&'a mut HashMap<DeviceName, DeviceId>> {
        if names.0.is_none() {
            let records = self.records().await?.into_iter();
            names.0 = Some(records.filter_map(|record| Some((record.name?, record.id))).collect());
        }
        Ok(names.0.get_or_insert_default())
    }
}

impl Admin for Office {
    async fn status(&self) -> Outcome<Status> {
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            domain: self.parts.hosts.domain().into(),
            uptime: self.started.elapsed().as_secs(),
            listeners: self.listeners.clone(),
        })
    }

    async fn users(&self, query: ListQuery) -> Outcome<UserList> {
        people::list(&self.parts, &query).await
    }

    async fn add_user(&self, user: NewUser) -> Outcome<UserPassword> {
        let _one = self.registering.lock().await;
        let made = people::add(&self.parts, user).await?;
        tracing::info!(target: AUDIT, account = made.jid, "the administrator made an account");
        Ok(made)
    }

    async fn set_password(&self, jid: String, new: NewPassword) -> Outcome<UserPassword> {
        let changed = people::set_password(&self.parts, &jid, new).await?;
        tracing::info!(target: AUDIT, account = changed.jid, "the administrator changed a password");
        Ok(changed)
    }

    async fn remove_user(&self, jid: String) -> Outcome<Removed> {
        let jid = people::address(&self.parts, &jid)?;
        tracing::info!(target: AUDIT, account = %jid, "the administrator removes an account");
        self.removals.account(jid).await
    }

    async fn devices(&self, query: ListQuery) -> Outcome<DeviceList> {
        let bad = |after: &str| ApiError::new(ErrorCode::BadRequest, format!("{after:?} is no device id"));
        let after = query.after.as_deref().map(|after| after.parse::<DeviceId>().map_err(|_| bad(after)));
        let after = after.transpose()?.map(|id| self.device_jid(id)).transpose()?;
        let after = after.map(|jid| Owner::account(jid.as_str()));
        let after = after.as_ref().map(|owner| (owner, ""));
        let rows = self.parts.store.scan(Table::Device, after, query.rows()).await.map_err(store_failed)?;
        let records = rows.iter().filter_map(|row| serde_json::from_slice::<DeviceRecord>(&row.record.value).ok());
        let devices = records.map(|record| self.row(record)).collect::<Outcome<Vec<_>>>()?;
        let next = devices.last().filter(|_| rows.len() == query.rows()).map(|device| device.id.to_string());
        Ok(DeviceList { devices, next })
    }

    async fn device(&self, id: DeviceId) -> Outcome<DeviceRow> {
        self.row(self.known_device(id).await?)
    }

    async fn add_device(&self, device: NewDevice) -> Outcome<AddedDevice> {
        let mut names = self.registering.lock().await;
        let record = DeviceRecord::added(device.public_key, device.name, self.parts.clock.now_ms() / 1000);
        self.check_new(&record, &mut names).await?;
        let secret = new_secret()?;
        let mut ops = credential_ops(secret.expose(), Strength::Generated).await.map_err(people::refusal)?;
        ops.push(self.parts.accounts.account_op());
        ops.push(put_record(&record)?);
        let jid = self.device_jid(record.id)?;
        match self.parts.store.commit(&Owner::account(jid.as_str()), ops).await {
            Ok(()) => {
                if let (Some(names), Some(name)) = (&mut names.0, &record.name) {
                    names.insert(name.clone(), record.id);
                }
                tracing::info!(target: AUDIT, device = %jid, name = record.name.as_ref().map(tracing::field::display), "the administrator added a device");
                Ok(AddedDevice { device: self.row(record)?, secret })
            }
            Err(StoreError::Conflict { .. }) => Err(people::refusal(AccountError::Exists(jid))),
            Err(error) => Err(store_failed(error)),
        }
    }

    async fn remove_device(&self, id: DeviceId) -> Outcome<Removed> {
        let mut names = self.registering.lock().await;
        let record = self.known_device(id).await?;
        if record.state == DeviceState::Revoked {
            return Err(ApiError::new(ErrorCode::NotFound, format!("the device {id} was removed already")));
        }
        let jid = self.device_jid(id)?;
        tracing::info!(target: AUDIT, device = %jid, "the administrator removes a device");
        // Nothing is awaited in between: a caller who hangs up leaves no name that is taken for ever.
        if let (Some(names), Some(name)) = (&mut names.0, &record.name) {
            names.remove(name);
        }
        drop(names);
        self.removals.device(jid, record).await
    }

    async fn grants(&self, query: ListQuery) -> Outcome<GrantList> {
        let bad = |text: String| ApiError::new(ErrorCode::BadRequest, text);
        let after: u64 = match &query.after {
            Some(id) => id.parse().map_err(|_| bad(format!("{id:?} is no id of a grant")))?,
            None => 0,
        };
        let grants = match &query.subject {
            None => self.parts.permit.page(after, query.rows()),
            Some(subject) => {
                let subject = normal_subject(subject).map_err(|e| bad(e.to_string()))?;
                let behind = self.parts.permit.list(Some(&subject)).into_iter().filter(|grant| grant.id > after);
                behind.take(query.rows()).collect()
            }
        };
        let next = grants.last().filter(|_| grants.len() == query.rows()).map(|grant| grant.id.to_string());
        Ok(GrantList { grants: grants.iter().map(grant_row).collect::<Outcome<_>>()?, next })
    }

    async fn add_grant(&self, new: NewGrant) -> Outcome<GrantRow> {
        let id = self.parts.ids.next(self.parts.clock.now_ms());
        let bad = |e: GrantError| ApiError::new(ErrorCode::BadRequest, e.to_string());
        let grant = CoreGrant::new(id, &new.subject.to_string(), new.rights, new.filter.as_str()).map_err(bad)?;
        // The same rule twice is one: the answer is the row that stands.
        let standing = self.parts.permit.list(Some(&grant.subject)).into_iter().find(|g| g.is_same(&grant));
        let note = self.unknown(&grant.subject).await?;
        if standing.is_none() {
            let full = |e: GrantError| ApiError::new(ErrorCode::Conflict, e.to_string());
            self.parts.permit.room_for(&grant.subject).map_err(full)?;
            self.parts.permit.add(grant.clone()).await.map_err(store_failed)?;
            let (subject, rights, filter) = (&*grant.subject, &grant.rights, &*grant.filter);
            tracing::info!(target: AUDIT, subject, %rights, filter, "the administrator added a grant");
        }
        Ok(GrantRow { note, ..grant_row(&standing.unwrap_or(grant))? })
    }

    async fn remove_grant(&self, id: String) -> Outcome<GrantRow> {
        let none = || {
            ApiError::new(ErrorCode::NotFound, format!("there is no grant {id:?}"))
                .hint("tavi-fleet grant list shows them")
        };
        let (removed, commit) = self.parts.permit.remove_id(id.parse().map_err(|_| none())?);
        commit.await.map_err(store_failed)?;
        let gone = removed.ok_or_else(none)?;
        let (subject, rights, filter) = (&*gone.subject, &gone.rights, &*gone.filter);
        tracing::info!(target: AUDIT, subject, %rights, filter, "the administrator removed a grant");
        grant_row(&gone)
    }

    async fn sessions(&self, query: ListQuery) -> Outcome<SessionList> {
        sessions::list(self.mqtt()?, &query)
    }

    async fn session(&self, subject: String, client: String) -> Outcome<SessionDetail> {
        sessions::show(self.mqtt()?, subject, client)
    }

    async fn end_session(&self, subject: String, client: String) -> Outcome<Removed> {
        let ended = sessions::end(self.mqtt()?, subject.clone(), client.clone()).await?;
        tracing::info!(target: AUDIT, subject, client, "the administrator ended an MQTT session");
        Ok(ended)
    }
}

fn put_record(record: &DeviceRecord) -> Outcome<Op> {
    let value = serde_json::to_vec(record).map_err(|e| ApiError::new(ErrorCode::Internal, e.to_string()))?;
    Ok(Op::Put { table: Table::Device, item: "".into(), value: value.into(), expect: Expect::Any })
}

fn grant_row(grant: &CoreGrant) -> Outcome<GrantRow> {
    let broken = |e: tavi_enrol::grant::GrantError| ApiError::new(ErrorCode::Internal, e.to_string());
    let subject = grant.subject.parse().map_err(broken)?;
    let filter = grant.filter.parse().map_err(broken)?;
    Ok(GrantRow { id: grant.id.to_string(), grant: Grant { subject, rights: grant.rights, filter }, note: None })
}
