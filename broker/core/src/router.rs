//! The only routing law: who sees a stanza, who gets it, what is kept.

use crate::{
    effects::{Effect, Effects},
    envelope::{Envelope, Origin, Reach},
    hooks::{Ev, Flow, Place, Registry, Reply, SessionEvent},
    mailbox::{Closed, Overflow, Pushed},
    node::Parts,
    principal::Host,
    sessions::{Account, AccountState, Bound, Inbox, SessionEntry},
    ticket::Ticket,
};
use parking_lot::MutexGuard;
use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};
use tavi_store::{Op, StoreError, id::time_of};
use tavi_xmpp_proto::{
    error::{Condition, StanzaError},
    jid::{BareJid, Jid},
    ns,
    stanza::{IqType, Kind, MessageType, PresenceType, Stanza, StanzaType},
};

/// How long an IQ handler may take.
const HANDLER_DEADLINE: Duration = Duration::from_secs(10);
/// How many kept messages are handed over at once.
const FLUSH_PAGE: usize = 256;

/// Routes stanzas between sessions, modules and services.
pub struct Router {
    parts: Parts,
    registry: Registry,
}

/// One call of `route`: what is still to be applied, and the ticket that grows.
#[derive(Default)]
struct Run {
    /// What the step just taken wants.
    fresh: Vec<Effect>,
    /// What is to be done after that.
    queue: VecDeque<Effect>,
    ticket: Ticket,
}

impl Run {
    fn take(&mut self, fx: Effects) {
        self.fresh.extend(fx.list);
    }

    fn reply(&mut self, reply: Option<Envelope>) {
        self.fresh.extend(reply.map(Effect::Route));
    }

    /// The next effect. What one stanza causes is done before what follows it: so an approval and all that it changes
    /// comes before the presence that it allows to be seen.
    fn next(&mut self) -> Option<Effect> {
        self.settle();
        self.queue.pop_front()
    }

    fn settle(&mut self) {
        self.fresh.drain(..).rev().for_each(|effect| self.queue.push_front(effect));
    }
}

impl Router {
    /// A router with everything that the modules registered.
    pub fn new(parts: Parts, registry: Registry) -> Router {
        Router { parts, registry }
    }

    /// What the modules registered.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Routes a stanza that a session or a service sent; its `from` is stamped already. The ticket completes when
    /// all that must be durable is, and then delivers.
    pub async fn route(self: &Arc<Self>, env: Envelope) -> Ticket {
        let mut run = Run::default();
        match self.sent(env, &mut run) {
            Some(env) if run.fresh.is_empty() => self.received(env, &mut run).await,
            // What the sender's hooks want is done first: a contact is saved before its answer changes it again.
            sent => run.reply(sent),
        }
        self.finish(run).await
    }

    async fn finish(self: &Arc<Self>, mut run: Run) -> Ticket {
        while let Some(effect) = run.next() {
            self.apply(effect, &mut run).await;
        }
        run.ticket
    }

    /// The sender's own chain.
    fn sent(&self, mut env: Envelope, run: &mut Run) -> Option<Envelope> {
        let from = env.from()?.to_bare();
        let Some(account) = self.parts.sessions.known(&from) else { return Some(env) };
        let mut fx = Effects::default();
        let mut state = account.lock();
        let mut flow = Flow::Continue;
        for (_, hook) in &self.registry.on_sent {
            flow = hook.on_sent(&mut self.ev(&mut env, &account, &mut state, &mut fx));
            if !matches!(flow, Flow::Continue) {
                break;
            }
        }
        drop(state);
        run.take(fx);
        self.follow(flow, env, run)
    }

    fn follow(&self, flow: Flow, env: Envelope, run: &mut Run) -> Option<Envelope> {
        match flow {
            Flow::Continue => return Some(env),
            Flow::Stop => {}
            Flow::Refuse(error) => run.reply(env.refuse(&error)),
        }
        None
    }

    /// The recipient's side: an account, the server itself, a service, or nobody here.
    async fn received(self: &Arc<Self>, env: Envelope, run: &mut Run) {
        let Some(to) = env.to().cloned() else { return self.without_recipient(env, run).await };
        let is_request = matches!(env.head().type_, StanzaType::Iq(IqType::Get | IqType::Set));
        match self.parts.hosts.find(to.domain()) {
            None => run.reply(env.refuse(&Condition::RemoteServerNotFound.into())),
            Some(Host::Main | Host::Things | Host::Bots) if to.local().is_some() => {
                if is_request && to.is_bare() {
                    self.ask(env, run).await
                } else {
                    self.to_account(env, to, run).await
                }
            }
            Some(host) => match self.registry.services.get(&host) {
                Some(service) => run.take(service.serve(env).await),
                None if is_request && answers(host) => self.ask(env, run).await,
                None if is_request => run.reply(env.refuse(&Condition::ServiceUnavailable.into())),
                // A host is no recipient of messages and presence.
                None => {}
            },
        }
    }

    /// RFC 6120 §10.3: without `to`, the sender's own account is meant.
    async fn without_recipient(self: &Arc<Self>, env: Envelope, run: &mut Run) {
        match env.head().type_ {
            StanzaType::Iq(IqType::Get | IqType::Set) => self.ask(env, run).await,
            StanzaType::Message(_) => {
                let Some(own) = env.from().map(Jid::to_bare) else { return };
                let env = env.readdressed(own.clone());
                self.to_account(env, own.into(), run).await
            }
            // Presence without `to` is the presence module's, in the sender's chain.
            _ => {}
        }
    }

    /// An IQ that the server answers, for itself or for an account.
    async fn ask(self: &Arc<Self>, env: Envelope, run: &mut Run) {
        let account = env.from().and_then(|from| self.parts.sessions.known(&from.to_bare()));
        let answer = match env.stanza.parse_child(0) {
            // RFC 6120 §8.2.3: a request has exactly one payload.
            Ok(payload) if env.stanza.children().len() == 1 => {
                let answer = self.registry.answer(env.head().clone(), &payload, account);
                let late = || Err(StanzaError::new(Condition::ResourceConstraint).text("the answer took too long"));
                tokio::time::timeout(HANDLER_DEADLINE, answer).await.unwrap_or_else(|_| late())
            }
            _ => Err(StanzaError::new(Condition::BadRequest).text("an IQ request has exactly one child")),
        };
        match answer {
            Err(error) => run.reply(env.refuse(&error)),
            Ok(Reply { payload, fx }) => {
                run.take(fx);
                run.reply(Some(Stanza::iq_result(env.head(), payload).into()));
            }
        }
    }

    async fn to_account(self: &Arc<Self>, mut env: Envelope, to: Jid, run: &mut Run) {
        let account = match self.recipient(&env, &to.to_bare()).await {
            Ok(Some(account)) => account,
            Ok(None) => return self.nobody(env, run),
            Err(error) => return run.ticket.join(Ticket::failed(error)),
        };
        let mut fx = Effects::default();
        let mut state = account.lock();
        let mut flow = Flow::Continue;
        for (_, hook) in &self.registry.on_received {
            flow = hook.on_received(&mut self.ev(&mut env, &account, &mut state, &mut fx));
            if !matches!(flow, Flow::Continue) {
                break;
            }
        }
        if let Some(env) = self.follow(flow, env, run) {
            self.choose(env, &to, (&account, &mut state), &mut fx, run);
        }
        drop(state);
        run.take(fx);
    }

    /// The account that is to get a stanza. Presence concerns only those who have a session, so it reads no store:
    /// who logs in would otherwise load all absent contacts.
    async fn recipient(&self, env: &Envelope, to: &BareJid) -> Result<Option<Arc<Account>>, StoreError> {
        use PresenceType::{Available, Error, Unavailable};
        match env.head().type_ {
            StanzaType::Presence(Available | Unavailable | Error) => Ok(self.parts.sessions.known(to)),
            _ => self.parts.sessions.account(to).await,
        }
    }

    /// RFC 6121 §8.5.1: there is no such account. Presence is ignored.
    fn nobody(&self, env: Envelope, run: &mut Run) {
        if env.stanza.kind() != Kind::Presence {
            run.reply(env.refuse(&Condition::ServiceUnavailable.into()));
        }
    }

    /// RFC 6121 §8.5.2 and §8.5.3: which sessions get it.
    fn choose(
        self: &Arc<Self>,
        mut env: Envelope,
        to: &Jid,
        (account, state): (&Arc<Account>, &mut AccountState),
        fx: &mut Effects,
        run: &mut Run,
    ) {
        if is_lasting(&env) && env.meta.place == 0 {
            // Under the account's lock: so it stays in order, however it goes on.
            env.meta.place = self.parts.ids.next(self.parts.clock.now_ms());
        }
        let exact = state.sessions.iter().find(|s| s.jid == *to && s.inbox.closed().is_none());
        let inboxes: Vec<Arc<Inbox>> = match (exact, env.head().type_) {
            (Some(session), _) => vec![session.inbox.clone()],
            (None, StanzaType::Presence(_)) if to.is_bare() => state.available().map(inbox).collect(),
            // RFC 6121 §8.5.3.2.1: one for a session that went away is ignored.
            (None, StanzaType::Message(MessageType::Headline)) if to.is_bare() => {
                state.receivers().map(inbox).collect()
            }
            (None, StanzaType::Message(MessageType::Chat | MessageType::Normal)) => {
                let inboxes: Vec<_> = state.receivers().map(inbox).collect();
                if inboxes.is_empty() {
                    return self.undelivered(env, (account, state), fx, run);
                }
                inboxes
            }
            (None, StanzaType::Iq(IqType::Get | IqType::Set) | StanzaType::Message(MessageType::Groupchat)) => {
                return run.reply(env.refuse(&Condition::ServiceUnavailable.into()));
            }
            // Results, errors and directed presence for sessions that went away.
            (None, _) => return,
        };
        let mut env = self.keep_row(env, (account, state), run);
        if inboxes.len() > 1 {
            env.meta.reach = Reach::Shared;
        }
        for inbox in inboxes {
            self.deliver(inbox, env.clone(), run);
        }
    }

    /// A message from a sender with stream management gets a row before it counts as handled (semantics.md).
    fn keep_row(
        &self,
        mut env: Envelope,
        (account, state): (&Arc<Account>, &mut AccountState),
        run: &mut Run,
    ) -> Envelope {
        if !is_lasting(&env)
            || env.meta.origin != Origin::Managed
            || env.meta.queued.is_some()
            || env.has(ns::HINTS, "no-store")
        {
            return env;
        }
        let id = env.meta.place;
        let op = Op::QueuePush { id, value: env.to_bytes() };
        run.ticket.wait_for(self.parts.store.commit(&account.owner, vec![op]));
        state.in_flight.insert(id);
        state.stored += 1;
        env.meta.queued = Some(id);
        env
    }

    fn undelivered(
        self: &Arc<Self>,
        mut env: Envelope,
        (account, state): (&Arc<Account>, &mut AccountState),
        fx: &mut Effects,
        run: &mut Run,
    ) {
        if let Some(id) = env.meta.queued {
            // It has its row already: the next session gets it from there. One that is just reading its rows may have
            // missed it.
            state.in_flight.remove(&id);
            if is_passed(state, id) {
                state.landed.push((id, Some(env)));
            }
            return;
        }
        for hook in &self.registry.on_undelivered {
            match hook.on_undelivered(&mut self.ev(&mut env, account, state, fx)) {
                Flow::Continue => {}
                Flow::Stop => return,
                Flow::Refuse(error) => return run.reply(env.refuse(&error)),
            }
        }
        run.reply(env.refuse(&Condition::ServiceUnavailable.into()));
    }

    async fn apply(self: &Arc<Self>, effect: Effect, run: &mut Run) {
        match effect {
            Effect::Deliver { inbox, envelope } => self.deliver(inbox, envelope, run),
            // Routing what the broker made may make more; boxed, since it is this very law again.
            Effect::Route(env) => Box::pin(self.received(env, run)).await,
            Effect::Save { owner, ops } => run.ticket.wait_for(self.parts.store.commit(&owner, ops)),
            Effect::Publish { from, draft } => {
                if let Ok(ticket) = self.parts.topics.publish(&from, draft) {
                    run.ticket.join(ticket);
                }
            }
            Effect::Await(ticket) => run.ticket.join(ticket),
            Effect::Keep { account, envelope } => self.keep(account, envelope, run),
            Effect::Flush { account, session } => self.flush(account, session, run).await,
            Effect::Event { account, session, event } => run.take(self.hear(&account, session, event)),
        }
    }

    fn deliver(self: &Arc<Self>, inbox: Arc<Inbox>, env: Envelope, run: &mut Run) {
        let router = self.clone();
        run.ticket.then(Box::new(move || {
            if let Pushed::Refused(env) = inbox.push(env, Overflow::Detach) {
                router.bounce(env);
            }
        }));
    }

    /// A session ended between choice and delivery: choose again, at once, so that the order stays.
    fn bounce(self: &Arc<Self>, env: Envelope) {
        let Some(account) = env.to().and_then(|to| self.parts.sessions.known(&to.to_bare())) else { return };
        let mut run = Run::default();
        let mut fx = Effects::default();
        self.again(env, (&account, &mut account.lock()), &mut fx, &mut run);
        run.take(fx);
        if run.fresh.is_empty() && run.ticket.is_ready() {
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
    fn again(
        self: &Arc<Self>,
        env: Envelope,
        (account, state): (&Arc<Account>, &mut AccountState),
        fx: &mut Effects,
        run: &mut Run,
    ) {
        let Some(to) = env.to().cloned() else { return };
        match env.head().type_ {
            // RFC 6121 §8.5.3.2.3: the resource is gone.
            StanzaType::Iq(_) => run.reply(env.refuse(&Condition::ServiceUnavailable.into())),
            StanzaType::Presence(_) => {}
            StanzaType::Message(_) if env.meta.reach == Reach::Copy => {}
            // Whoever else got it still has it.
            StanzaType::Message(_) if env.meta.reach == Reach::Shared && state.receivers().next().is_some() => {}
            StanzaType::Message(_) => self.choose(env, &to, (account, state), fx, run),
        }
    }

    /// Keeps a message for an account that is away (XEP-0160).
    fn keep(self: &Arc<Self>, account: Arc<Account>, mut env: Envelope, run: &mut Run) {
        if env.meta.place == 0 {
            env.meta.place = self.parts.ids.next(self.parts.clock.now_ms());
        }
        let id = env.meta.place;
        env.meta.queued = Some(id);
        account.lock().stored += 1;
        run.ticket.wait_for(self.parts.store.commit(&account.owner, vec![Op::QueuePush { id, value: env.to_bytes() }]));
        run.ticket.then(Box::new(move || landed(&account, id, env)));
    }

    /// Hands over what was kept, in order; until it is done, new messages are kept behind it.
    async fn flush(self: &Arc<Self>, account: Arc<Account>, session: u64, run: &mut Run) {
        account.lock().paused.retain(|(paused, _)| *paused != session);
        if let Err(error) = self.flush_from(&account, session, 0).await {
            run.ticket.join(Ticket::failed(error));
        }
    }

    /// Hands over the rows behind `after`, page by page. When the inbox is full it pauses until the session
    /// acknowledges something; the session takes no other messages before all rows are handed over.
    async fn flush_from(&self, account: &Account, session: u64, mut after: u64) -> Result<(), StoreError> {
        account.lock().flushing += 1;
        loop {
            let page = self.kept_page(account, after).await;
            let mut state = account.lock();
            let mut rows = match page {
                Ok(rows) => rows,
                Err(error) => {
                    state.flushing -= 1;
                    return Err(error);
                }
            };
            let last = rows.len() < FLUSH_PAGE;
            if last {
                rows.append(&mut state.landed);
                rows.sort_by_key(|(id, _)| *id);
            }
            let whole = hand_over(&mut state, session, (&mut after, rows));
            if last || !whole {
                state.flushing -= 1;
            }
            if last && whole {
                join_in(&mut state, session);
            }
            if last || !whole {
                return Ok(());
            }
        }
    }

    async fn kept_page(&self, account: &Account, after: u64) -> Result<Vec<(u64, Option<Envelope>)>, StoreError> {
        let rows = self.parts.store.queue(&account.owner, after, FLUSH_PAGE).await?;
        let read = |row: tavi_store::QueueRow| match Stanza::parse(&row.value) {
            Ok(stanza) => (row.id, Some(self.kept_envelope(row.id, stanza))),
            Err(_) => {
                tracing::error!(owner = ?account.owner, id = row.id, "a kept message is damaged");
                (row.id, None)
            }
        };
        Ok(rows.into_iter().map(read).collect())
    }

    /// A session that was given what fits has room again: its hand-over goes on.
    fn resume(self: &Arc<Self>, account: &Arc<Account>) {
        let paused = {
            let mut state = account.lock();
            let state = &mut *state;
            let sessions = &state.sessions;
            let has_room = |id: u64| sessions.iter().any(|s| s.id == id && s.inbox.is_empty());
            let at = state.paused.iter().position(|(session, _)| has_room(*session));
            at.map(|at| state.paused.swap_remove(at))
        };
        let Some((session, after)) = paused else { return };
        let (router, account) = (self.clone(), account.clone());
        tokio::spawn(async move {
            if let Err(error) = router.flush_from(&account, session, after).await {
                tracing::error!(%error, account = %account.jid, "kept messages could not be read");
            }
        });
    }

    fn kept_envelope(&self, id: u64, stanza: Stanza) -> Envelope {
        let mut env: Envelope = stanza.into();
        (env.meta.place, env.meta.queued) = (id, Some(id));
        if !env.has(ns::DELAY, "delay") {
            env.add_delay(self.parts.sessions.domain(), time_of(id));
        }
        env
    }

    /// A session may take messages for the account from now on. For bots; people's sessions get there by presence.
    pub async fn open(self: &Arc<Self>, bound: &Bound) -> Ticket {
        if let Some(session) = bound.account.lock().session(bound.id) {
            session.available = true;
        }
        let mut run = Run::default();
        run.take(self.hear(&bound.account, bound.id, SessionEvent::Available));
        run.fresh.push(Effect::Flush { account: bound.account.clone(), session: bound.id });
        self.finish(run).await
    }

    /// The recipient has these rows for good: they are deleted.
    pub fn acknowledge(self: &Arc<Self>, account: &Arc<Account>, ids: &[u64]) {
        if ids.is_empty() {
            return;
        }
        self.settle(account, ids);
        let ops = ids.iter().map(|id| Op::QueueDelete { id: *id }).collect();
        // Nobody waits for this: if it is lost with the power, the message is delivered once more.
        drop(self.parts.store.commit(&account.owner, ops));
    }

    /// The same for a recipient who deletes the rows in a commit of its own (bots).
    pub fn settle(self: &Arc<Self>, account: &Arc<Account>, ids: &[u64]) {
        let mut state = account.lock();
        for id in ids {
            state.in_flight.remove(id);
        }
        state.stored = state.stored.saturating_sub(ids.len());
        let waits = !state.paused.is_empty();
        drop(state);
        if waits {
            self.resume(account);
        }
    }

    /// A session ended. `unacknowledged` are the messages that it was sent and did not acknowledge; with what still
    /// waits they go, in order, to another session or are kept.
    pub async fn end(self: &Arc<Self>, bound: &Bound, unacknowledged: Vec<Envelope>) -> Ticket {
        bound.inbox.close(Closed::Gone);
        let mut run = Run::default();
        let mut fx = Effects::default();
        {
            let mut state = bound.account.lock();
            if state.session(bound.id).is_some() {
                for hook in &self.registry.on_session {
                    hook.on_session(
                        SessionEvent::Ended,
                        bound.id,
                        &mut self.place(&bound.account, &mut state, &mut fx),
                    );
                }
                state.sessions.retain(|session| session.id != bound.id);
                state.paused.retain(|(session, _)| *session != bound.id);
            }
            // Nothing is kept anew for an account that was removed.
            if bound.inbox.closed() != Some(Closed::Revoked) {
                for env in unacknowledged.into_iter().chain(bound.inbox.take()) {
                    self.again(env, (&bound.account, &mut state), &mut fx, &mut run);
                }
            }
        }
        run.take(fx);
        self.finish(run).await
    }

    /// Runs the session hooks for an event; their effects are in the ticket.
    pub async fn event(self: &Arc<Self>, account: &Arc<Account>, session: u64, event: SessionEvent) -> Ticket {
        let mut run = Run::default();
        run.take(self.hear(account, session, event));
        self.finish(run).await
    }

    fn hear(&self, account: &Arc<Account>, session: u64, event: SessionEvent) -> Effects {
        let mut fx = Effects::default();
        let mut state = account.lock();
        for hook in &self.registry.on_session {
            hook.on_session(event, session, &mut self.place(account, &mut state, &mut fx));
        }
        fx
    }

    fn ev<'a>(
        &'a self,
        env: &'a mut Envelope,
        account: &'a Arc<Account>,
        state: &'a mut AccountState,
        fx: &'a mut Effects,
    ) -> Ev<'a> {
        Ev { env, account, state, fx, hosts: &self.parts.hosts, now_ms: self.parts.clock.now_ms() }
    }

    fn place<'a>(
        &'a self,
        account: &'a Arc<Account>,
        state: &'a mut MutexGuard<'_, AccountState>,
        fx: &'a mut Effects,
    ) -> Place<'a> {
        Place { account, state, fx, hosts: &self.parts.hosts, now_ms: self.parts.clock.now_ms() }
    }

    /// The principal of a bare JID on one of the login hosts.
    pub fn principal(&self, jid: &BareJid) -> Option<crate::principal::Principal> {
        self.parts.hosts.principal(jid)
    }
}

/// The hosts for which the server itself answers requests; the others belong to services, if there are any.
fn answers(host: Host) -> bool {
    matches!(host, Host::Main | Host::Things | Host::Bots)
}

/// Messages that are handed on or kept when they cannot be delivered.
fn is_lasting(env: &Envelope) -> bool {
    matches!(env.head().type_, StanzaType::Message(MessageType::Chat | MessageType::Normal))
}

fn inbox(session: &SessionEntry) -> Arc<Inbox> {
    session.inbox.clone()
}

/// A kept message is durable. If somebody came in the meantime it is for him.
fn landed(account: &Account, id: u64, env: Envelope) {
    let mut state = account.lock();
    // A row that a paused hand-over has passed already, though it landed later, must not be left behind.
    if is_passed(&state, id) {
        state.landed.push((id, Some(env)));
    } else {
        push_row(&mut state, id, &env);
    }
}

/// Gives a durable row to all sessions that take messages, unless a session has it already.
fn push_row(state: &mut AccountState, id: u64, env: &Envelope) {
    let inboxes: Vec<_> = state.receivers().map(inbox).collect();
    if inboxes.is_empty() || !state.in_flight.insert(id) {
        return;
    }
    let mut env = env.clone();
    if inboxes.len() > 1 {
        env.meta.reach = Reach::Shared;
    }
    for inbox in inboxes {
        // A session that cannot take it ends; its successor reads the row again.
        if let Pushed::Refused(_) = inbox.push(env.clone(), Overflow::Detach) {
            state.in_flight.remove(&id);
        }
    }
}

/// Gives rows to a session, in order, as far as its inbox has room; `after` follows. True if all were given.
fn hand_over(state: &mut AccountState, session: u64, (after, rows): (&mut u64, Vec<(u64, Option<Envelope>)>)) -> bool {
    let Some(inbox) = state.session(session).map(|entry| entry.inbox.clone()) else { return false };
    for (id, env) in rows {
        if let Some(env) = env.filter(|_| !state.in_flight.contains(&id)) {
            if inbox.is_half_full() || matches!(inbox.push(env, Overflow::Refuse), Pushed::Refused(_)) {
                // A row that landed late may have a smaller id than those before it.
                state.paused.push((session, id.saturating_sub(1).min(*after)));
                return false;
            }
            state.in_flight.insert(id);
        }
        *after = id.max(*after);
    }
    true
}

/// All that was kept is handed over: the session takes messages for the account, if it still wants any.
fn join_in(state: &mut AccountState, session: u64) {
    if let Some(entry) = state.session(session) {
        entry.receiving = entry.available && entry.priority >= 0;
    }
}

/// Whether a row that becomes free now would be left behind by a hand-over that is under way or pauses behind it.
fn is_passed(state: &AccountState, id: u64) -> bool {
    state.flushing > 0 || state.paused.iter().any(|(_, after)| *after >= id)
}
