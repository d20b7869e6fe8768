//! Streams that were noted by an earlier process go on in this one (XEP-0198 §5): their sessions have their seats again,
//! without connections, and are owed what they were owed.

use crate::{
    envelope::Envelope,
    homes::Account,
    inbox::Inbox,
    journal::{Book, Noted, Notes, Sent},
    link::Link,
    mailbox::{Closed, Weigh},
    node::{Attached, Node},
    router::{Router, Run},
    ticket::Ticket,
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};
use tavi_store::{Op, Owner, PageBound, QueueRow, StoreError};
use tavi_xmpp_proto::{jid::BareJid, ns, stanza::Stanza};

/// A session that goes on.
pub struct Restored {
    /// The stream's name.
    pub name: Box<str>,
    /// Its seat.
    pub link: Link,
    /// While it lives, a device's session exists.
    pub attached: Attached,
    /// Where it is noted on.
    pub notes: Notes,
    /// Stanzas of its client that are handled, modulo 2³².
    pub handled: u32,
    /// Stanzas behind those, by their numbers, that are handled too: when they come again they are only counted.
    pub landed: BTreeSet<u32>,
    /// Stanzas that its client has acknowledged, modulo 2³².
    pub acknowledged: u32,
    /// The places of what was sent behind those, in order. What another session has dealt with meanwhile is not in
    /// [`Link::in_flight`].
    pub sent: Vec<u64>,
}

/// What is read of a queue at once.
const PAGE: PageBound = PageBound { rows: 1_000, bytes: 1 << 20 };

/// Rows that are deleted in one commit.
const DELETED_AT_ONCE: usize = 512;

impl Node {
    /// All streams of an earlier process, in the order in which they began. Comes before the first client; the caller
    /// opens the journal when it has taken them in.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub async fn restore(&self, book: Book) -> Result<Vec<Restored>, StoreError> {
        let (streams, settled) = book.close();
        self.delete(settled).await?;
        let mut restored = Vec::with_capacity(streams.len());
        for noted in streams {
            restored.extend(self.restore_stream(noted).await?);
        }
        Ok(restored)
    }

    /// What clients had acknowledged must not come again.
    async fn delete(&self, mut settled: Vec<(u64, BareJid)>) -> Result<(), StoreError> {
        settled.sort_unstable_by(|a, b| a.1.cmp(&b.1));
        for rows in settled.chunk_by(|a, b| a.1 == b.1).flat_map(|rows| rows.chunks(DELETED_AT_ONCE)) {
            let ops = rows.iter().map(|(id, _)| Op::QueueDelete { id: *id }).collect();
            self.parts.store.commit(&Owner::account(rows[0].1.as_str()), ops).await?;
        }
        Ok(())
    }

    async fn restore_stream(&self, mut noted: Noted) -> Result<Option<Restored>, StoreError> {
        let Some(account) = self.parts.homes.account(&noted.jid.to_bare()).await? else { return Ok(None) };
        self.look(&mut noted).await?;
        let (handled, landed) = handled(&noted);
        let flight = self.flight(&account, &noted).await?;
        let attached = self.attach(&account.principal);
        let Some(link) = self.router.bind(&account, noted.jid.clone()) else { return Ok(None) };
        let Some(notes) = link.notes() else { return Ok(None) };
        link.manage(noted.window);
        link.detach();
        self.router.resit(&account, (&link, &noted), flight);
        let (name, acknowledged) = (noted.name.clone(), noted.acknowledged);
        let sent = noted.flight.iter().map(Sent::place).collect();
        noted.handled = handled;
        noted.under_way.retain(|stanza| landed.contains(&stanza.number));
        notes.begin(noted);
        Ok(Some(Restored { name, link, attached, notes, handled, landed, acknowledged, sent }))
    }

    /// Which of the stanzas that were under way have landed: those whose rows are there.
    async fn look(&self, noted: &mut Noted) -> Result<(), StoreError> {
        for stanza in &mut noted.under_way {
            if let Some((row, owner)) = stanza.row.take() {
                stanza.landed = self.row(&Owner::account(owner.as_str()), row).await?.is_some();
            }
        }
        Ok(())
    }

    async fn row(&self, owner: &Owner, id: u64) -> Result<Option<QueueRow>, StoreError> {
        let page = self.parts.store.queue_page(owner, id.saturating_sub(1), PageBound { rows: 1, bytes: 1 }).await?;
        Ok(page.rows.into_iter().next().filter(|row| row.id == id))
    }

    /// The rows of what is in flight that are still there: a part of the queue that is read at once.
    async fn rows_in_flight(&self, owner: &Owner, noted: &Noted) -> Result<HashMap<u64, QueueRow>, StoreError> {
        let wanted: BTreeSet<u64> = noted.flight.iter().filter_map(Sent::row).collect();
        let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else { return Ok(HashMap::new()) };
        let (mut rows, mut after) = (HashMap::with_capacity(wanted.len()), first.saturating_sub(1));
        while after < *last {
            let page = self.parts.store.queue_page(owner, after, PAGE).await?;
            after = if page.end { *last } else { page.rows.last().map_or(*last, |row| row.id) };
            rows.extend(page.rows.into_iter().filter(|row| wanted.contains(&row.id)).map(|row| (row.id, row)));
        }
        Ok(rows)
    }

    /// What is in flight and still there.
    async fn flight(&self, account: &Account, noted: &Noted) -> Result<Vec<(u64, Envelope)>, StoreError> {
        let mut rows = self.rows_in_flight(&account.owner, noted).await?;
        let mut flight = Vec::with_capacity(noted.flight.len());
        for sent in &noted.flight {
            // Ids that are drawn from now on must not be the same, wherever the clock stands.
            self.parts.ids.raise(sent.place());
            let envelope = match sent {
                Sent::Row(id) => rows.remove(id).and_then(|row| self.router.stored(&row)),
                Sent::Stanza { place, copy, text } => text.as_ref().and_then(|text| unstored(*place, *copy, text)),
            };
            flight.extend(envelope.map(|envelope| (sent.place(), envelope)));
        }
        Ok(flight)
    }
}

impl Router {
    /// A session stands as it stood, and has in flight what it had.
    fn resit(self: &Arc<Self>, account: &Account, (link, noted): (&Link, &Noted), flight: Vec<(u64, Envelope)>) {
        let number = link.seat().number;
        let mut state = account.lock();
        let Some(session) = state.session(number) else { return };
        noted.standing.restore(session);
        let (inbox, receiving) = (session.inbox.clone(), session.receiving);
        for (place, envelope) in flight {
            let row = envelope.meta.queued.map(|_| envelope.weight());
            if envelope.is_lasting() && !state.ledger.add_holder(place, number) {
                state.ledger.owe(place, &[number], row, false);
            }
            inbox.was_sent(place, envelope);
        }
        if receiving {
            // It is read when its client comes back.
            inbox.hand_over(0);
        }
    }

    /// The broker stops, and the session goes on with the next process: what has no row and was not sent gets one.
    pub(crate) fn suspend(&self, account: &Arc<Account>, (session, inbox): (u64, &Inbox)) -> Ticket {
        inbox.close(Closed::Gone);
        let mut run = Run::default();
        let sent: BTreeSet<u64> = inbox.sent().into_iter().map(|(place, _)| place).collect();
        let mut state = account.lock();
        for (place, mut env) in inbox.end() {
            let waits = env.is_lasting() && env.meta.queued.is_none() && !sent.contains(&place);
            if waits && state.ledger.release_one(place, session) && !env.has(ns::HINTS, "no-store") {
                // Its client comes back for it: nobody else has to hear of it.
                env.meta.told = true;
                self.store(account, &mut state, &mut env, &mut run);
            }
        }
        run.ticket
    }
}

/// How many stanzas are handled without a gap, and which behind it.
fn handled(noted: &Noted) -> (u32, BTreeSet<u32>) {
    let mut landed: BTreeSet<u32> =
        noted.under_way.iter().filter(|stanza| stanza.landed).map(|stanza| stanza.number).collect();
    let mut handled = noted.handled;
    while landed.remove(&handled.wrapping_add(1)) {
        handled = handled.wrapping_add(1);
    }
    (handled, landed)
}

/// A stanza without a row, as it was.
fn unstored(place: u64, copy: bool, text: &[u8]) -> Option<Envelope> {
    let mut envelope: Envelope = Stanza::parse(text).ok()?.into();
    if copy {
        return Some(envelope.as_copy());
    }
    envelope.meta.place = place;
    Some(envelope)
}
