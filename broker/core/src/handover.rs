//! What an account's sessions are owed: from the choice of sessions to the acknowledgement, over their ends.
//!
//! A message has its place, drawn under the account's lock, in the backlog of each session that was chosen for it; it
//! leaves when it is durable, if it has to be. The ledger knows who has it. What a session did not acknowledge goes, in
//! order, to another one or stays in the store; what does not fit into a session's memory is stored and read again. One
//! session that acknowledged a message is enough: its row goes, and a session that has it in the store only does not get it.

use crate::{
    effects::{Effect, Effects},
    envelope::{Envelope, Origin, Reach},
    homes::{Account, AccountState, SeatId},
    hooks::SessionEvent,
    inbox::Inbox,
    landing::Landing,
    link::Link,
    mailbox::{Closed, Weigh},
    metrics::Outcome,
    router::{Chosen, Router, Run},
    ticket::Ticket,
};
use smallvec::SmallVec;
use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Context, Waker},
};
use tavi_store::{Commit, Op, PageBound, QueuePage, QueueRow, StoreError, id::time_of};
use tavi_xmpp_proto::{
    error::{Condition, StanzaError},
    jid::{BareJid, Jid},
    ns,
    stanza::{Stanza, StanzaType},
};

/// What is read of a queue at once: little, since a read blocks the thread.
const PAGE: PageBound = PageBound { rows: 256, bytes: 256 * 1024 };

/// Sessions of the account whose backlogs have room again.
type WithRoom = SmallVec<[(u64, Arc<Inbox>); 2]>;

impl Router {
    /// Gives a session a place in its account. A former session with the same resource is closed as replaced (RFC 6120
    /// §7.7.2.2), and what it did not acknowledge comes first. `None` if the account has too many sessions.
    pub fn bind(self: &Arc<Self>, account: &Arc<Account>, jid: Jid) -> Option<Link> {
        let (mut run, mut fx) = (Run::default(), Effects::default());
        let link = {
            let mut state = account.lock();
            let (seat, inbox) = self.parts.homes.enter(&mut state, jid.clone())?;
            let same = state.sessions.iter().filter(|other| other.jid == jid && other.id != seat.number);
            let former: Vec<_> = same.map(|other| (other.id, other.inbox.clone())).collect();
            for (id, inbox) in former {
                self.disown(account, &mut state, (id, &inbox, Vec::new()), &mut fx, &mut run);
            }
            Link::new(self.clone(), account.clone(), (seat, jid), inbox)
        };
        run.take(fx);
        self.finish_soon(run);
        Some(link)
    }

    /// A session may take messages for the account from now on. For bots; people's sessions get there by presence.
    pub(crate) async fn open(self: &Arc<Self>, seat: &SeatId) -> Ticket {
        let mut run = Run::default();
        let Some(account) = self.parts.homes.known(&seat.owner) else { return run.ticket };
        if let Some(session) = account.lock().session(seat.number) {
            session.available = true;
        }
        run.take(self.hear(seat, SessionEvent::Available));
        run.fresh.push(Effect::Flush { seat: seat.clone() });
        self.finish(run).await
    }

    /// A message that these sessions were chosen for. From a sender with stream management it gets a row before it
    /// counts as handled (semantics.md).
    pub(crate) fn owe(
        self: &Arc<Self>,
        mut env: Envelope,
        chosen: Chosen,
        (account, state): (&Arc<Account>, &mut AccountState),
        run: &mut Run,
    ) {
        let (id, size) = (env.meta.place, env.weight());
        if wants_row(&env) {
            if state.kept.is_full() && inboxes(state, &chosen).all(Inbox::is_behind) {
                return run.refuse(&env, &full());
            }
            self.store(account, state, &mut env, run);
        } else if !run.along.is_empty() {
            run.ticket.wait_for(account.store().commit(&account.owner, std::mem::take(&mut run.along)));
        }
        let coming = !run.ticket.is_ready();
        state.ledger.owe(id, &chosen, env.meta.queued.map(|_| size), coming);
        if coming {
            inboxes(state, &chosen).for_each(|inbox| {
                inbox.coming(id);
            });
            run.ticket.land(self.owed(account, env));
        } else {
            self.parts.journal.landed(&env);
            self.give(&chosen, env, (account, state));
        }
    }

    /// It has landed, or needs not to: it is in the backlogs from now on.
    fn give(self: &Arc<Self>, chosen: &Chosen, env: Envelope, (account, state): (&Arc<Account>, &mut AccountState)) {
        let Some((last, others)) = chosen.split_last() else { return };
        for number in others {
            self.give_to(*number, env.clone(), (account, state));
        }
        self.give_to(*last, env, (account, state));
    }

    fn give_to(self: &Arc<Self>, number: u64, env: Envelope, (account, state): (&Arc<Account>, &mut AccountState)) {
        let Some(inbox) = state.session(number).map(|session| session.inbox.clone()) else { return };
        if let Err(env) = inbox.landed(env.meta.place, env) {
            self.turn_away((number, &inbox), *env, (account, state));
        }
    }

    /// Saves a message's row, with what hooks want saved along with it. It is counted from now on.
    pub(crate) fn store(&self, account: &Arc<Account>, state: &mut AccountState, env: &mut Envelope, run: &mut Run) {
        let id = env.meta.place;
        env.meta.queued = Some(id);
        state.kept.add(env.weight());
        let mut ops = std::mem::take(&mut run.along);
        if !std::mem::replace(&mut env.meta.told, true) && !self.registry.on_kept.is_empty() {
            let mut fx = Effects::default();
            self.tell_kept(env, (account, state), &mut fx, (&mut ops, id));
            run.take(fx);
        }
        self.parts.journal.coming(env, &account.jid);
        queue_row(env, &mut ops);
        run.ticket.wait_for(account.store().commit(&account.owner, ops));
    }

    fn owed(&self, account: &Account, envelope: Envelope) -> crate::landing::Posted {
        self.posted(Landing::Owed { owner: account.jid.clone(), envelope })
    }

    /// Whoever it is owed to by now gets it. A stored one that is nobody's waits in the store.
    pub(crate) fn land_owed(self: &Arc<Self>, owner: &BareJid, env: Envelope) {
        self.parts.journal.landed(&env);
        let Some(account) = self.parts.homes.known(owner) else { return };
        let mut state = account.lock();
        let holders = state.ledger.landed(env.meta.place);
        if !holders.is_empty() {
            return self.give(&holders, env, (&account, &mut state));
        }
        drop(state);
        if env.meta.queued.is_none() {
            self.bounce(env);
        }
    }

    /// It could not be saved, or what goes before it could not.
    pub(crate) fn fail_owed(&self, owner: &BareJid, place: u64) {
        let Some(account) = self.parts.homes.known(owner) else { return };
        let mut state = account.lock();
        let Some(settled) = state.ledger.settle(place) else { return };
        settled.row.iter().for_each(|size| state.kept.remove(*size));
        inboxes(&state, &settled.holders).for_each(|inbox| inbox.failed(place));
    }

    /// A session has no room in memory for a message without a row, so it gets one; or the session is closed.
    fn turn_away(
        self: &Arc<Self>,
        (session, inbox): (u64, &Arc<Inbox>),
        mut env: Envelope,
        (account, state): (&Arc<Account>, &mut AccountState),
    ) {
        let mut run = Run::default();
        let (id, size) = (env.meta.place, env.weight());
        let open = inbox.closed().is_none();
        if open && state.ledger.is_being_stored(id) {
            // Another session had no room either: this one gets it with the row, too.
            inbox.coming(id);
            return;
        }
        if open && !env.has(ns::HINTS, "no-store") && !state.kept.is_full() {
            self.count(&account.jid, Outcome::Stored);
            self.store(account, state, &mut env, &mut run);
            state.ledger.store(id, size);
            inbox.coming(id);
            run.ticket.land(self.owed(account, env));
        } else if open {
            // RFC 6121 §8.5.2.1.1: one session that has it is enough. Nothing is lost silently: if nobody has it, the
            // sender hears that there was no room.
            let refusal = state.ledger.release_one(id, session).then(|| env.refuse(&full()));
            run.reply(refusal.flatten());
        } else if state.ledger.release_one(id, session) {
            let mut fx = Effects::default();
            self.again(env, (account, state), &mut fx, &mut run);
            run.take(fx);
        }
        self.finish_soon(run);
    }

    /// A session ended between choice and delivery: choose again, at once, so that the order stays.
    pub(crate) fn bounce(self: &Arc<Self>, env: Envelope) {
        let Some(account) = env.to().and_then(|to| self.parts.homes.known(&to.to_bare())) else { return };
        let (mut run, mut fx) = (Run::default(), Effects::default());
        self.again(env, (&account, &mut account.lock()), &mut fx, &mut run);
        run.take(fx);
        self.finish_soon(run);
    }

    /// Completes what nobody waits for.
    fn finish_soon(self: &Arc<Self>, mut run: Run) {
        if run.fresh.is_empty() && run.ticket.is_done() {
            // With nothing to wait for, the first poll delivers.
            let _ = run.ticket.poll_done(&mut Context::from_waker(Waker::noop()));
            return;
        }
        let router = self.clone();
        tokio::spawn(async move {
            if let Err(error) = router.finish(run).await.complete().await {
                tracing::error!(%error, "a message for a session that went away could not be kept");
            }
        });
    }

    /// What a session did not take goes to another session, is kept or is answered. The hooks have seen it.
    pub(crate) fn again(
        self: &Arc<Self>,
        mut env: Envelope,
        (account, state): (&Arc<Account>, &mut AccountState),
        fx: &mut Effects,
        run: &mut Run,
    ) {
        let Some(to) = env.to().cloned() else { return };
        env.meta.own = false;
        env.meta.chosen = true;
        match env.head().type_ {
            // RFC 6121 §8.5.3.2.3: the resource is gone.
            StanzaType::Iq(_) => run.reply(env.refuse(&Condition::ServiceUnavailable.into())),
            StanzaType::Presence(_) => {}
            StanzaType::Message(_) if env.meta.reach == Reach::Copy => {}
            StanzaType::Message(_) => self.choose(env, &to, (account, state), fx, run),
        }
    }

    /// Keeps what the hooks want kept, still under the lock under which that was decided.
    pub(crate) fn keep_all(
        self: &Arc<Self>,
        account: &Arc<Account>,
        state: &mut AccountState,
        fx: &mut Effects,
        run: &mut Run,
    ) {
        for effect in std::mem::take(&mut fx.list) {
            match effect {
                Effect::Keep { account: of, envelope } if of == account.jid => {
                    self.keep(account, state, envelope, run);
                }
                other => fx.list.push(other),
            }
        }
    }

    /// Keeps a message for an account that is away (XEP-0160). If somebody comes meanwhile it is for him.
    pub(crate) fn keep(
        self: &Arc<Self>,
        account: &Arc<Account>,
        state: &mut AccountState,
        mut env: Envelope,
        run: &mut Run,
    ) {
        if env.meta.place == 0 {
            env.meta.place = self.parts.ids.next(self.parts.clock.now_ms());
        }
        self.count(&account.jid, Outcome::Stored);
        let size = env.weight();
        self.store(account, state, &mut env, run);
        state.ledger.owe(env.meta.place, &[], Some(size), true);
        run.ticket.land(self.owed(account, env));
    }

    /// The account's queue is for this session, from its first row on; newer messages come behind. One that takes no
    /// messages for the account any more gives up what it has not sent of them.
    pub(crate) async fn flush(self: &Arc<Self>, seat: SeatId, run: &mut Run) {
        let (Some(account), session) = (self.parts.homes.known(&seat.owner), seat.number) else { return };
        {
            let mut state = account.lock();
            let Some(entry) = state.session(session).filter(|entry| entry.is_open()) else { return };
            entry.receiving = entry.may_receive();
            let (receiving, inbox) = (entry.receiving, entry.inbox.clone());
            inbox.hand_over(0);
            let coming = if receiving { state.ledger.take_coming(session) } else { Vec::new() };
            for id in coming {
                inbox.coming(id);
            }
        }
        if let Err(error) = self.feed(&account, session).await {
            run.ticket.join(Ticket::failed(error));
        }
    }

    /// Reads the rows that a session has room for.
    async fn feed(self: &Arc<Self>, account: &Arc<Account>, session: u64) -> Result<(), StoreError> {
        loop {
            let Some((inbox, after)) = next_read(account, session) else { return Ok(()) };
            let page = self.parts.store.queue_page(&account.owner, after, PAGE).await;
            self.take_page(account, (session, &inbox), after, page)?;
            // Nobody else on this thread waits for the whole of it.
            tokio::task::yield_now().await;
        }
    }

    /// A page that was read behind `after`.
    fn take_page(
        self: &Arc<Self>,
        account: &Arc<Account>,
        (session, inbox): (u64, &Inbox),
        after: u64,
        page: Result<QueuePage, StoreError>,
    ) -> Result<(), StoreError> {
        let mut state = account.lock();
        state.ledger.end_read();
        let page = page.inspect_err(|_| inbox.page_failed())?;
        // It may have ended, or been replaced, while the page was read: nobody would release what it is owed from here on.
        let Some(entry) = state.session(session).filter(|entry| entry.is_open()) else {
            inbox.page_failed();
            return Ok(());
        };
        let by_name = (!entry.receiving).then(|| entry.jid.clone());
        let upto = page.rows.last().map_or(after, |row| row.id);
        let mut given_up = None;
        let mut rows = Vec::new();
        for row in page.rows {
            if let Some(jid) = &by_name
                && !keeps(&row, (session, inbox, jid), &mut state, &mut given_up)
            {
                continue;
            }
            rows.extend(self.kept_envelope(row, session, &mut state));
        }
        inbox.page(rows, upto, page.end);
        if let Some(first) = given_up {
            self.read_again(account, &state, first);
        }
        Ok(())
    }

    /// A session has room again: more is read for it, if there is more.
    pub(crate) fn feed_soon(self: &Arc<Self>, account: &Arc<Account>, session: u64, inbox: &Inbox) {
        if !inbox.is_behind() {
            return;
        }
        let (router, account) = (self.clone(), account.clone());
        tokio::spawn(async move {
            if let Err(error) = router.feed(&account, session).await {
                tracing::error!(%error, account = %account.jid, "kept messages could not be read");
            }
        });
    }

    /// A row as it goes to this session, unless another one has it.
    fn kept_envelope(&self, row: QueueRow, session: u64, state: &mut AccountState) -> Option<(u64, Envelope)> {
        if !state.ledger.take_row(row.id, session, row.value.len() + 256) {
            return None;
        }
        self.stored(&row).map(|env| (row.id, env))
    }

    /// A row as it goes out.
    pub(crate) fn stored(&self, row: &QueueRow) -> Option<Envelope> {
        let Ok(stanza) = Stanza::parse(&row.value) else {
            tracing::error!(id = row.id, "a kept message is damaged");
            return None;
        };
        let mut env: Envelope = stanza.into();
        (env.meta.place, env.meta.queued) = (row.id, Some(row.id));
        self.add_delay(&mut env);
        Some(env)
    }

    /// XEP-0198 §4, XEP-0203: what does not come at once carries its time.
    fn add_delay(&self, env: &mut Envelope) {
        if !env.has(ns::DELAY, "delay") && !env.was_delayed() {
            env.add_delay(self.parts.homes.domain(), time_of(env.meta.place));
        }
    }

    /// The recipient has these messages for good: their rows are deleted.
    pub(crate) fn acknowledge(self: &Arc<Self>, account: &Arc<Account>, ids: &[u64]) {
        if ids.is_empty() {
            return;
        }
        let mut state = account.lock();
        let (rows, holders) = settle(&mut state, ids);
        if !rows.is_empty() {
            let ops = rows.iter().map(|id| Op::QueueDelete { id: *id }).collect();
            // Nobody waits for this: if it is lost with the power, the message is delivered once more.
            let commit = self.parts.store.commit(&account.owner, ops);
            state.ledger.deleting(rows, commit);
            account.journal().deleted(state.ledger.take_deleted());
        }
        drop(state);
        holders.iter().for_each(|(session, inbox)| self.feed_soon(account, *session, inbox));
    }

    /// The same for a recipient who has deleted the rows in a commit of its own (bots).
    pub fn settle(self: &Arc<Self>, owner: &BareJid, ids: &[u64]) {
        let Some(account) = &self.parts.homes.known(owner) else { return };
        let mut state = account.lock();
        let (rows, holders) = settle(&mut state, ids);
        state.ledger.deleting(rows, Commit::ready(Ok(())));
        drop(state);
        holders.iter().for_each(|(session, inbox)| self.feed_soon(account, *session, inbox));
    }

    /// A session ended. What it did not acknowledge and what still waits go, in order, to another session or are kept;
    /// `left` is what it took without having to acknowledge it and did not deal with.
    pub(crate) async fn end(
        self: &Arc<Self>,
        account: &Arc<Account>,
        (session, inbox): (u64, &Arc<Inbox>),
        left: Vec<Envelope>,
    ) -> Ticket {
        inbox.close(Closed::Gone);
        let (mut run, mut fx) = (Run::default(), Effects::default());
        {
            let mut state = account.lock();
            if state.session(session).is_some() {
                for hook in &self.registry.on_session {
                    hook.on_session(SessionEvent::Ended, session, &mut self.place(account, &mut state, &mut fx));
                }
                state.sessions.retain(|other| other.id != session);
            }
            self.disown(account, &mut state, (session, inbox, left), &mut fx, &mut run);
        }
        run.take(fx);
        self.finish(run).await
    }

    /// What a session was owed is owed to others from now on.
    fn disown(
        self: &Arc<Self>,
        account: &Arc<Account>,
        state: &mut AccountState,
        (session, inbox, left): (u64, &Arc<Inbox>, Vec<Envelope>),
        fx: &mut Effects,
        run: &mut Run,
    ) {
        let free = state.ledger.release(session);
        let items = inbox.end().into_iter().map(|(_, env)| env);
        // Nothing is kept anew for an account that was removed.
        if inbox.closed() == Some(Closed::Revoked) {
            return;
        }
        let mut owed = BTreeMap::new();
        for env in items.chain(left) {
            if env.is_lasting() {
                owed.insert(env.meta.place, env);
            } else {
                self.again(env, (account, state), fx, run);
            }
        }
        let mut unread = None;
        for (id, row, coming) in free {
            match owed.remove(&id) {
                Some(mut env) => {
                    self.add_delay(&mut env);
                    self.again(env, (account, state), fx, run);
                }
                None if coming => pass_on(state, id),
                None => unread = unread.or(row.map(|_| id)),
            }
        }
        if let Some(first) = unread {
            self.read_again(account, state, first);
        }
    }

    /// Rows from `first` on were a session's that is gone, and lie in the store only: another one reads them.
    fn read_again(self: &Arc<Self>, account: &Arc<Account>, state: &AccountState, first: u64) {
        if let Some(heir) = state.receivers().next() {
            heir.inbox.hand_over(first - 1);
            self.feed_soon(account, heir.id, &heir.inbox);
        }
    }
}

/// The seat of a session that has room for a page, and behind which row the page begins.
fn next_read(account: &Account, session: u64) -> Option<(Arc<Inbox>, u64)> {
    let mut state = account.lock();
    let inbox = state.session(session)?.inbox.clone();
    let after = inbox.wants()?;
    state.ledger.begin_read();
    account.journal().deleted(state.ledger.take_deleted());
    Some((inbox, after))
}

/// Whether a row stays with a session that takes no messages for its account any more (RFC 6121 §8.5.2, XEP-0160 §3):
/// what was sent to it by name, or is sent already. It gives up the others, of which `first` becomes the first.
fn keeps(
    row: &QueueRow,
    (session, inbox, jid): (u64, &Inbox, &Jid),
    state: &mut AccountState,
    first: &mut Option<u64>,
) -> bool {
    if !state.ledger.is_owed(row.id, session) {
        return false;
    }
    let named = || Stanza::parse(&row.value).is_ok_and(|stanza| stanza.head.to.as_ref() == Some(jid));
    if inbox.has(row.id) || named() {
        return true;
    }
    if state.ledger.release_one(row.id, session) {
        first.get_or_insert(row.id);
    }
    false
}

/// What is coming and nobody's is for those who take messages now; if there are none, it will wait in the store.
fn pass_on(state: &mut AccountState, id: u64) {
    let heirs: Vec<(u64, Arc<Inbox>)> = state.receivers().map(|s| (s.id, s.inbox.clone())).collect();
    for (session, inbox) in heirs {
        if inbox.coming(id) {
            state.ledger.add_holder(id, session);
        }
    }
}

/// Notes that messages were acknowledged: which of them have rows, and whose backlogs have room by that.
fn settle(state: &mut AccountState, ids: &[u64]) -> (Vec<u64>, WithRoom) {
    let (mut rows, mut with_room) = (Vec::new(), WithRoom::new());
    for id in ids {
        let Some(settled) = state.ledger.settle(*id) else { continue };
        if let Some(size) = settled.row {
            state.kept.remove(size);
            rows.push(*id);
        }
        for holder in settled.holders {
            let Some(session) = state.session(holder) else { continue };
            session.inbox.settled(*id);
            if !with_room.iter().any(|(id, _)| *id == holder) {
                with_room.push((holder, session.inbox.clone()));
            }
        }
    }
    (rows, with_room)
}

/// The backlogs of chosen sessions that are still there.
fn inboxes<'a>(state: &'a AccountState, chosen: &'a [u64]) -> impl Iterator<Item = &'a Inbox> {
    let session = |number: &u64| state.sessions.iter().find(|session| session.id == *number);
    chosen.iter().filter_map(session).map(|session| &*session.inbox)
}

/// The row of a message in the queue: a view of the archive where it is archived, so that it is stored once, and the two
/// are the same.
fn queue_row(env: &mut Envelope, ops: &mut Vec<Op>) {
    let (id, sealed) = (env.meta.place, env.seal());
    for op in ops.iter_mut() {
        match op {
            Op::Archive { id: of, value, .. } if *of == id => *value = sealed.clone(),
            _ => {}
        }
    }
    ops.push(if env.meta.archived { Op::QueueArchived { id } } else { Op::QueuePush { id, value: sealed } });
}

fn wants_row(env: &Envelope) -> bool {
    env.meta.origin == Origin::Managed && env.meta.queued.is_none() && !env.has(ns::HINTS, "no-store")
}

/// XEP-0160 §3: a full store answers as if there were none.
fn full() -> StanzaError {
    StanzaError::new(Condition::ServiceUnavailable).text("too many messages wait for this account")
}
