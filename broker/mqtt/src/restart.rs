//! Start-up: durable sessions come back from the store, and what the last process left unfinished is finished.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use tavi_core::permit::Action;
use tavi_core::topics::{Draft, SubOptions, Subscriber};
use tavi_core::{Node, Principal, Ticket, TicketQueue};
use tavi_store::id::time_of;
use tavi_store::{Commit, Op, Owner, PageBound, Row, StoreError, Table};

use crate::config::Config;
use crate::entry::NEVER;
use crate::granted::Granted;
use crate::hub::Hub;
use crate::kept::Recalled;
use crate::packet::{Qos, Will};
use crate::record::{self, GrantRecord, Inbound, RowHead, SessionRecord};
use crate::render;

/// Rows that are read at a time.
const PAGE: usize = 1000;

impl Hub {
    /// The hub of a node with the sessions of its store: they are subscribed again before this returns, unfinished
    /// QoS 2 publishes are published under the ids that they had, and wills of sessions that were cut are published.
    /// To be called before anything listens.
    ///
    /// # Errors
    /// If the store can not be read or written.
    pub async fn recall(node: Node, config: Config) -> Result<Arc<Self>, StoreError> {
        let hub = Self::new(node, config);
        let mut found = Found::default();
        let (mut chores, mut saves) = (Vec::new(), Saves::default());
        let mut after: Option<(Owner, Box<str>)> = None;
        loop {
            let store = &hub.node().parts.store;
            let rows = store.scan(Table::Session, after.as_ref().map(|(o, i)| (o, &**i)), PAGE).await?;
            let Some(last) = rows.last() else { break };
            after = Some((last.owner.clone(), last.item.clone()));
            for row in rows {
                if found.owner.as_ref().is_some_and(|owner| *owner != row.owner) {
                    chores.extend(hub.bring_back(std::mem::take(&mut found), &mut saves).await?);
                }
                found.add(row);
            }
        }
        chores.extend(hub.bring_back(found, &mut saves).await?);
        saves.land().await?;
        // Only now is everybody subscribed who has to get what is published here.
        hub.finish_all(chores).await?;
        hub.recount().await?;
        Ok(hub)
    }

    async fn bring_back(self: &Arc<Self>, found: Found, saves: &mut Saves) -> Result<Option<Chore>, StoreError> {
        let Some(owner) = found.owner.clone() else { return Ok(None) };
        let Some((principal, client_id)) = self.parse_owner(&owner) else {
            tracing::warn!(
                session = record::shown(&owner),
                "an MQTT session whose owner belongs to another domain is left alone"
            );
            return Ok(None);
        };
        let record = found.session.filter(|record| !self.has_expired(*record));
        let session = match record {
            Some(record) => self.bring_back_session(&found, record, &owner, (&principal, &client_id), saves).await?,
            None => 0,
        };
        let mut wills = found.parted;
        if record.is_none() {
            wills.extend(found.will.map(|will| (record::WILL.into(), will)));
        }
        let inbound = found.inbound.into_iter().filter(|(_, inbound)| inbound.unfinished.is_some()).collect();
        Ok(Some(Chore { owner, principal, session, inbound, wills, buried: record.is_none() }))
    }

    fn has_expired(&self, record: SessionRecord) -> bool {
        let bounded = SessionRecord { expiry: self.bounded_expiry(record.expiry), ..record };
        bounded.expiry == 0 || bounded.ends_ms().is_some_and(|at| at <= self.now_ms())
    }

    /// Who and which client an owner key names; `None` if no such principal can exist.
    fn parse_owner(&self, owner: &Owner) -> Option<(Principal, String)> {
        let (subject, client_id) = owner.name().split_once('\0')?;
        let principal = self.node().parts.hosts.principal(&subject.parse().ok()?)?;
        Some((principal, client_id.to_owned()))
    }

    async fn bring_back_session(
        self: &Arc<Self>,
        found: &Found,
        mut record: SessionRecord,
        owner: &Owner,
        (principal, client_id): (&Principal, &str),
        saves: &mut Saves,
    ) -> Result<u64, StoreError> {
        let parts = &self.node().parts;
        let recalled = self.recalled(owner, record).await?;
        let seat = self.kept_seat(principal, owner, recalled);
        let (id, subscriber) = (Subscriber::id(&*seat), seat.name());
        for (filter, options) in &found.filters {
            parts.topics.restore(&subscriber, filter, *options);
            seat.add_filter(filter, *options);
        }
        for (packet_id, _) in &found.inbound {
            seat.hold(*packet_id);
        }
        let granted = found.granted.iter().filter_map(|granted| self.grant_again(&subscriber, found, granted));
        seat.leave_granted(granted.collect());
        let now_ms = self.now_ms();
        record.expiry = self.bounded_expiry(record.expiry);
        if record.left_ms == 0 {
            // The process ended under it: its time without a connection begins now.
            (record.left_ms, record.sent) = (now_ms, parts.store.last_id());
            saves.push(parts.store.commit(owner, vec![record::put(record::SESSION, record.encode())]));
        }
        let ends_in = (record.expiry < NEVER).then(|| record.remains_ms(record.expiry, now_ms));
        let will = found.will.clone().map(|will| (record.remains_ms(will.delay, now_ms), will));
        self.seat_again(client_id, seat, ends_in, will);
        Ok(id)
    }

    /// What is in a session's queue. If the process ended under its connection, all of it may have been sent.
    async fn recalled(&self, owner: &Owner, record: SessionRecord) -> Result<Recalled, StoreError> {
        let store = &self.node().parts.store;
        let size = store.queue_size(owner).await?;
        if size.rows == 0 {
            return Ok(Recalled::default());
        }
        let first = store.queue_page(owner, 0, PageBound { rows: 1, bytes: 1 }).await?.rows.pop();
        let head = first.and_then(|mut first| RowHead::decode(&mut first.value));
        let last_id = store.last_id();
        let maybe_sent = if record.left_ms == 0 { last_id } else { record.sent };
        Ok(Recalled { size, first_packet_id: head.map_or(0, |head| head.packet_id), maybe_sent, last_id })
    }

    /// Retained values that had no rows yet are read on; if their subscription is not permitted any more, they are not.
    fn grant_again(
        &self,
        subscriber: &Arc<dyn Subscriber>,
        found: &Found,
        (item, record): &(Box<str>, GrantRecord),
    ) -> Option<Granted> {
        let (filter, options) = found.filters.iter().find(|(filter, _)| *filter == record.filter)?;
        let mut stream = self.node().parts.topics.join(subscriber, filter, *options).ok()?.retained;
        if let Some(after) = &record.after {
            stream = stream.behind((**after).into());
        }
        Some(Granted { stream, wanted: record.wanted, item: Some(item.clone()) })
    }

    /// Many wait for one sync of the disk, in order.
    async fn finish_all(self: &Arc<Self>, chores: Vec<Chore>) -> Result<(), StoreError> {
        let mut open = TicketQueue::default();
        for chore in chores {
            open.push(self.finish(chore), (), 0);
            while open.len() > FINISHED_AT_ONCE {
                finish_first(&mut open).await?;
            }
        }
        while !open.is_empty() {
            finish_first(&mut open).await?;
        }
        Ok(())
    }

    /// Publishes what is left to be published for a session; when that is saved, so is that it is done.
    fn finish(self: &Arc<Self>, chore: Chore) -> Ticket {
        let Chore { owner, principal, session, mut inbound, wills, buried } = chore;
        let (mut ticket, mut ops) = (Ticket::done(), Vec::new());
        inbound.sort_by_key(|(_, inbound)| inbound.id);
        for (packet_id, inbound) in inbound {
            let Some((body, retain)) = inbound.unfinished else { continue };
            // semantics.md, order: what was saved, but perhaps not fanned out, is published under its id again.
            let begun_ms = time_of(inbound.id);
            let mut draft = render::draft(body.topic().into(), &body, Qos::ExactlyOnce, retain, begun_ms);
            (draft.id, draft.from_session) = (Some(inbound.id), session);
            ticket.join(self.publish_again(&principal, draft));
            let done = Inbound { id: inbound.id, unfinished: None };
            ops.push(record::put(&record::inbound_item(packet_id), done.encode()));
        }
        for (item, will) in wills {
            let draft = render::draft(will.body.topic().into(), &will.body, will.qos, will.retain, self.now_ms());
            ticket.join(self.publish_again(&principal, draft));
            ops.push(record::delete(&item));
        }
        if buried {
            // A clean session that the end of the process cut, or a durable one that has expired.
            ops = vec![Op::Purge];
        }
        let hub = self.clone();
        // One commit takes a bounded number of operations.
        let save = move || ops.chunks(1000).map(|ops| hub.node().parts.store.commit(&owner, ops.to_vec())).collect();
        ticket.save_next(Box::new(save));
        ticket
    }

    /// What is not permitted any more is not published any more.
    fn publish_again(&self, principal: &Principal, draft: Draft) -> Ticket {
        self.node().parts.topics.publish_as(principal, Action::Publish, draft).unwrap_or_default()
    }

    /// Rows that the last process had saved already were saved once more.
    async fn recount(&self) -> Result<(), StoreError> {
        for seat in self.kept_seats().into_iter().filter(|seat| seat.is_counted_twice()) {
            seat.recount(self.node().parts.store.queue_size(seat.owner()).await?);
        }
        Ok(())
    }
}

/// Sessions whose last things are on their way to the disk at once.
const FINISHED_AT_ONCE: usize = 1_024;

async fn finish_first(open: &mut TicketQueue<()>) -> Result<(), StoreError> {
    poll_fn(|cx| open.poll_next(cx)).await.map_or(Ok(()), |((), finished)| finished)
}

/// What is saved for all sessions together, so that a start does not wait for the disk once for each.
#[derive(Default)]
struct Saves(Vec<Commit>);

impl Saves {
    fn push(&mut self, commit: Commit) {
        self.0.push(commit);
    }

    async fn land(self) -> Result<(), StoreError> {
        for commit in self.0 {
            commit.await?;
        }
        Ok(())
    }
}

/// What is left to do for a session when all are subscribed.
struct Chore {
    owner: Owner,
    principal: Principal,
    /// Its subscriber number, for "no local"; 0 if it is no more.
    session: u64,
    inbound: Vec<(u16, Inbound)>,
    wills: Vec<(Box<str>, Will)>,
    buried: bool,
}

/// The records of one session.
#[derive(Default)]
struct Found {
    owner: Option<Owner>,
    session: Option<SessionRecord>,
    will: Option<Will>,
    parted: Vec<(Box<str>, Will)>,
    filters: Vec<(Box<str>, SubOptions)>,
    granted: Vec<(Box<str>, GrantRecord)>,
    inbound: Vec<(u16, Inbound)>,
}

impl Found {
    fn add(&mut self, row: Row) {
        self.owner.get_or_insert(row.owner.clone());
        if self.sort(&row.item, row.record.value).is_none() {
            tracing::warn!(
                session = record::shown(&row.owner),
                item = &*row.item,
                "a damaged record of an MQTT session is left out"
            );
        }
    }

    fn sort(&mut self, item: &str, value: Bytes) -> Option<()> {
        if let Some(filter) = item.strip_prefix(record::SUBSCRIPTION) {
            self.filters.push((filter.into(), record::decode_options(&value)?));
        } else if let Some(packet_id) = item.strip_prefix(record::INBOUND) {
            self.inbound.push((packet_id.parse().ok()?, Inbound::decode(value)?));
        } else if item.starts_with(record::GRANTED) {
            self.granted.push((item.into(), GrantRecord::decode(&value)?));
        } else if item.starts_with(record::PARTED) {
            self.parted.push((item.into(), record::decode_will(value)?));
        } else if item == record::WILL {
            self.will = Some(record::decode_will(value)?);
        } else if item == record::SESSION {
            self.session = Some(SessionRecord::decode(&value)?);
        }
        Some(())
    }
}
