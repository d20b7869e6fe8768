//! The only routing law: who sees a stanza, who gets it, what is kept.

use crate::{
    bus::{Bus, Exchange},
    effects::{Effect, Effects},
    envelope::{Envelope, Origin, Reach},
    homes::{Account, AccountState, SeatId, SessionEntry},
    hooks::{Ev, Flow, Place, Registry, SessionEvent},
    inbox::Inbox,
    landing::{Landing, Posted},
    mailbox::Closed,
    metrics::{Outcome, Protocol},
    node::Parts,
    principal::{Host, Principal},
    services::Services,
    ticket::Ticket,
};
use parking_lot::MutexGuard;
use smallvec::SmallVec;
use std::{collections::VecDeque, future::poll_fn, sync::Arc};
use tavi_store::{Commit, Op, StoreError};
use tavi_xmpp_proto::{
    error::{Condition, StanzaError},
    jid::{BareJid, Jid},
    stanza::{IqType, Kind, MessageType, PresenceType, StanzaType},
};

/// Routes stanzas between sessions, modules and services. What sessions are owed is in `handover.rs`.
pub struct Router {
    pub(crate) parts: Parts,
    pub(crate) registry: Registry,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) services: Services,
}

/// Sessions of one account that were chosen for a stanza, by their numbers.
pub(crate) type Chosen = SmallVec<[u64; 2]>;

/// One call of `route`: what is still to be applied, and the ticket that grows.
#[derive(Default)]
pub(crate) struct Run {
    /// What the step just taken wants.
    pub(crate) fresh: Vec<Effect>,
    /// What is to be done after that.
    queue: VecDeque<Effect>,
    pub(crate) ticket: Ticket,
    /// The session that sent the stanza: it waits for room before it makes more for itself.
    origin: Option<(SeatId, Arc<Inbox>)>,
    /// A service sends it.
    serving: bool,
    /// The ticket waits for more than commits of accounts: nobody else is to wait behind it.
    slow: bool,
    /// What hooks want saved for the account in hand, with the stanza's own row if it gets one.
    pub(crate) along: Vec<Op>,
    /// The stanza in hand was refused: it leaves nothing behind.
    refused: bool,
}

impl Run {
    /// What a service sends.
    pub(crate) fn of_service() -> Run {
        Run { serving: true, ..Run::default() }
    }

    /// Somebody deals with a stanza in a task of his own. Whoever sent it waits for that; a service does not: its own mailbox
    /// would wait for what lies behind in it. Nor does anybody wait for what becomes of an answer, on whatever node: whom
    /// it answers may wait for its sender.
    pub(crate) fn handed_over(&mut self, commit: Commit, env: &Envelope) {
        let type_ = env.head().type_;
        if !(self.serving || type_.is_error() || type_ == StanzaType::Iq(IqType::Result)) {
            self.ticket.wait_late(commit);
        }
    }

    pub(crate) fn take(&mut self, fx: Effects) {
        self.fresh.extend(fx.list);
        self.ticket.join(fx.ticket);
    }

    pub(crate) fn reply(&mut self, reply: Option<Envelope>) {
        self.fresh.extend(reply.map(Effect::Route));
    }

    /// The sender gets an error, and nothing of the stanza is saved.
    pub(crate) fn refuse(&mut self, env: &Envelope, error: &StanzaError) {
        self.refused = true;
        self.along.clear();
        self.reply(env.refuse(error));
    }

    pub(crate) fn await_ticket(&mut self, ticket: Ticket) {
        self.slow |= !ticket.is_ready();
        self.ticket.join(ticket);
    }

    fn is_origin(&self, inbox: &Arc<Inbox>) -> bool {
        self.origin.as_ref().is_some_and(|(_, origin)| Arc::ptr_eq(origin, inbox))
    }

    /// Whether it is for the sender itself. What is for others does not wait until the sender reads.
    fn is_own(&self, effect: &Effect) -> bool {
        let Some((seat, _)) = &self.origin else { return false };
        match effect {
            Effect::Deliver { seat: to, .. } => to == seat,
            Effect::Route(env) => env.to().is_none_or(|to| to.to_bare() == seat.owner),
            _ => false,
        }
    }

    /// What the sender makes for itself in one turn may be more than its inbox holds: it is drained as it is made. While it
    /// waits, what has its place with others lands: nobody waits for this sender to read.
    async fn room(&mut self) {
        let Run { origin: Some((_, origin)), ticket, .. } = self else { return };
        poll_fn(|cx| {
            let room = origin.poll_room(cx);
            if room.is_pending() {
                ticket.land_early(cx);
            }
            room
        })
        .await;
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
    pub(crate) fn new(parts: Parts, mut registry: Registry, bus: Arc<dyn Bus>) -> Arc<Router> {
        parts.homes.furnish(std::mem::take(&mut registry.parts), parts.journal.clone());
        for host in registry.hosts().filter(|host| parts.hosts.get(*host).is_none()) {
            tracing::error!(?host, "a service has a host that the broker does not know: nothing reaches it");
        }
        let exchange = Arc::new(Exchange::new(bus));
        let router = Arc::new(Router { parts, registry, exchange, services: Services::default() });
        router.parts.homes.post().open(Arc::downgrade(&router));
        router
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

    /// A stanza from the home of its sender, whose hooks have seen it.
    pub(crate) async fn arrived(self: &Arc<Self>, env: Envelope) -> Ticket {
        let mut run = Run::default();
        self.received(env, &mut run).await;
        self.finish(run).await
    }

    pub(crate) async fn finish(self: &Arc<Self>, mut run: Run) -> Ticket {
        while let Some(effect) = run.next() {
            if run.is_own(&effect) {
                run.room().await;
            }
            self.apply(effect, &mut run).await;
        }
        run.ticket
    }

    /// The sender's own chain.
    fn sent(&self, mut env: Envelope, run: &mut Run) -> Option<Envelope> {
        let from = env.from()?.to_bare();
        let Some(account) = self.parts.homes.known(&from) else { return Some(env) };
        let mut fx = Effects::default();
        let mut state = account.lock();
        if env.meta.sender != 0 {
            // What a session that was replaced had still to send must not act on its successor (RFC 6120 §7.7.2.2). What
            // it told others was told.
            run.origin = state.session(env.meta.sender).map(|session| (session.seat(), session.inbox.clone()));
            let there = run.origin.as_ref().is_some_and(|(_, inbox)| inbox.closed() != Some(Closed::Replaced));
            if !there && env.stanza.kind() != Kind::Message {
                return None;
            }
        }
        let id = self.id_for(&env);
        let mut ops = Vec::new();
        let mut flow = Flow::Continue;
        for (_, hook) in &self.registry.on_sent {
            flow = hook.on_sent(&mut self.ev(&mut env, (&account, &mut state), &mut fx, &mut ops).under(id));
            if !matches!(flow, Flow::Continue) {
                break;
            }
        }
        let mut env = self.follow(flow, env, run);
        if let Some(env) = env.as_mut().filter(|_| !ops.is_empty()) {
            if ops.iter().any(is_archived) {
                self.tell_kept(env, (&account, &mut state), &mut fx, (&mut ops, id));
            }
            run.ticket.wait_for(self.parts.store.commit(&account.owner, ops));
        }
        drop(state);
        run.take(fx);
        env
    }

    fn follow(&self, flow: Flow, env: Envelope, run: &mut Run) -> Option<Envelope> {
        match flow {
            Flow::Continue => return Some(env),
            Flow::Stop => {}
            Flow::Refuse(error) => run.refuse(&env, &error),
        }
        None
    }

    /// A message's place in its order at an account; to be drawn under the account's lock.
    fn id_for(&self, env: &Envelope) -> u64 {
        match env.head().type_ {
            StanzaType::Message(MessageType::Error) => 0,
            StanzaType::Message(_) => self.parts.ids.next(self.parts.clock.now_ms()),
            _ => 0,
        }
    }

    /// A message is archived or kept: those who look on hear of it, once.
    pub(crate) fn tell_kept(
        &self,
        env: &mut Envelope,
        at: (&Arc<Account>, &mut AccountState),
        fx: &mut Effects,
        (ops, id): (&mut Vec<Op>, u64),
    ) {
        let (account, state) = at;
        for hook in &self.registry.on_kept {
            hook.on_kept(&mut self.ev(env, (account, state), fx, ops).under(id));
        }
    }

    /// The recipient's side: an account, the server itself, a service, or nobody here.
    async fn received(self: &Arc<Self>, env: Envelope, run: &mut Run) {
        let Some(to) = env.to().cloned() else { return self.without_recipient(env, run).await };
        let is_request = matches!(env.head().type_, StanzaType::Iq(IqType::Get | IqType::Set));
        match self.parts.hosts.find(to.domain()) {
            None => match self.registry.remote_to(to.domain()) {
                Some(remote) => run.await_ticket(remote.send(env)),
                None => run.reply(env.refuse(&Condition::RemoteServerNotFound.into())),
            },
            Some(Host::Main | Host::Things | Host::Bots) if to.local().is_some() => {
                if let Some(node) = self.exchange.bus().away(&to.to_bare()) {
                    return run.await_ticket(self.exchange.route(node, env));
                }
                if is_request && to.is_bare() { self.ask(env, run).await } else { self.to_account(env, to, run).await }
            }
            Some(host) => match self.registry.service_of(host) {
                Some(service) => match self.services.enqueue(self, (host, service), &env) {
                    Ok(commit) => run.handed_over(commit, &env),
                    Err(error) => run.reply(env.refuse(&error)),
                },
                None if is_request && answers(host) => self.ask(env, run).await,
                None if is_request => run.reply(env.refuse(&Condition::ServiceUnavailable.into())),
                None => run.reply(nobody_at(&env)),
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

    async fn to_account(self: &Arc<Self>, mut env: Envelope, to: Jid, run: &mut Run) {
        let account = match self.recipient(&env, &to.to_bare()).await {
            Ok(Some(account)) => account,
            Ok(None) => return self.nobody(env, run),
            Err(error) => return run.ticket.join(Ticket::failed(error)),
        };
        let (mut fx, mut told) = (Effects::default(), Effects::default());
        let mut state = account.lock();
        let id = self.id_for(&env);
        if env.is_lasting() {
            // However it goes on, it has its place among the account's messages.
            env.meta.place = id;
        }
        let (mut ops, mut flow) = (Vec::new(), Flow::Continue);
        for (_, hook) in &self.registry.on_received {
            flow = hook.on_received(&mut self.ev(&mut env, (&account, &mut state), &mut fx, &mut ops).under(id));
            if !matches!(flow, Flow::Continue) {
                break;
            }
        }
        if let Some(mut env) = self.follow(flow, env, run) {
            if ops.iter().any(is_archived) {
                (env.meta.told, env.meta.archived) = (true, true);
                self.tell_kept(&mut env, (&account, &mut state), &mut told, (&mut ops, id));
            }
            (run.along, run.refused) = (ops, false);
            if !env.is_lasting() {
                self.save_along(&account, run);
            }
            self.choose(env, &to, (&account, &mut state), &mut fx, run);
            self.save_along(&account, run);
        }
        drop(state);
        run.take(fx);
        if !run.refused {
            run.take(told);
        }
    }

    /// Saves what hooks want saved for the account in hand, if the stanza's row has not taken it along.
    fn save_along(&self, account: &Account, run: &mut Run) {
        if !run.along.is_empty() {
            run.ticket.wait_for(self.parts.store.commit(&account.owner, std::mem::take(&mut run.along)));
        }
    }

    /// The account that is to get a stanza. Presence concerns only those who have a session, and so do mere notices: they
    /// read no store, else who logs in or publishes would load all absent contacts.
    async fn recipient(&self, env: &Envelope, to: &BareJid) -> Result<Option<Arc<Account>>, StoreError> {
        use PresenceType::{Available, Error, Unavailable};
        match env.head().type_ {
            StanzaType::Presence(Available | Unavailable | Error) => Ok(self.parts.homes.known(to)),
            StanzaType::Message(MessageType::Headline) if env.meta.reach == Reach::Copy => {
                Ok(self.parts.homes.known(to))
            }
            _ => self.parts.homes.account(to).await,
        }
    }

    /// RFC 6121 §8.5.1: there is no such account. Presence is ignored, and a headline, as by somebody who is away.
    fn nobody(&self, env: Envelope, run: &mut Run) {
        let is_headline = env.head().type_ == StanzaType::Message(MessageType::Headline);
        if env.stanza.kind() != Kind::Presence && !is_headline {
            run.reply(env.refuse(&Condition::ServiceUnavailable.into()));
        }
    }

    /// RFC 6121 §8.5.2 and §8.5.3: which sessions get it.
    pub(crate) fn choose(
        self: &Arc<Self>,
        env: Envelope,
        to: &Jid,
        (account, state): (&Arc<Account>, &mut AccountState),
        fx: &mut Effects,
        run: &mut Run,
    ) {
        let exact = state.sessions.iter().find(|s| s.jid == *to && s.is_open());
        let chosen: Chosen = match (exact, env.head().type_) {
            (Some(session), _) => Chosen::from_elem(seat(session), 1),
            (None, StanzaType::Presence(_)) if to.is_bare() => state.available().map(seat).collect(),
            // RFC 6121 §8.5.3.2.1: one for a session that went away is ignored.
            (None, StanzaType::Message(MessageType::Headline)) if to.is_bare() => state.receivers().map(seat).collect(),
            // RFC 6121 §8.5.3.2.1: a normal one was for that session only, and is refused or ignored. What the session was
            // there to take and did not acknowledge goes to another one or is kept, whoever sent it.
            (None, StanzaType::Message(MessageType::Normal))
                if !(to.is_bare() || env.meta.chosen && env.is_lasting()) =>
            {
                if !env.is_notice() {
                    run.refuse(&env, &Condition::ServiceUnavailable.into());
                }
                return run.along.clear();
            }
            (None, StanzaType::Message(MessageType::Chat | MessageType::Normal)) => {
                let chosen: Chosen = state.receivers().map(seat).collect();
                if chosen.is_empty() {
                    return self.undelivered(env, (account, state), fx, run);
                }
                chosen
            }
            (None, StanzaType::Iq(IqType::Get | IqType::Set) | StanzaType::Message(MessageType::Groupchat)) => {
                return run.refuse(&env, &Condition::ServiceUnavailable.into());
            }
            // Results, errors and directed presence for sessions that went away.
            (None, _) => return,
        };
        if env.is_lasting() {
            return self.owe(env, chosen, (account, state), run);
        }
        if env.stanza.kind() == Kind::Message {
            self.parts.journal.landed(&env);
        }
        for number in chosen {
            let Some(session) = state.session(number) else { continue };
            let (seat, inbox) = (session.seat(), session.inbox.clone());
            if let Err(env) = self.pass((seat, &inbox), env.clone(), run) {
                self.again(*env, (account, state), fx, run);
            }
        }
    }

    fn undelivered(
        self: &Arc<Self>,
        mut env: Envelope,
        (account, state): (&Arc<Account>, &mut AccountState),
        fx: &mut Effects,
        run: &mut Run,
    ) {
        if env.meta.queued.is_some() {
            // It has its row already: the next session gets it from there.
            return;
        }
        let id = env.meta.place;
        for hook in &self.registry.on_undelivered {
            match hook.on_undelivered(&mut self.ev(&mut env, (account, state), fx, &mut run.along).under(id)) {
                Flow::Continue => {}
                Flow::Stop => return self.keep_all(account, state, fx, run),
                Flow::Refuse(error) => return run.refuse(&env, &error),
            }
        }
        run.refuse(&env, &Condition::ServiceUnavailable.into());
    }

    async fn apply(self: &Arc<Self>, effect: Effect, run: &mut Run) {
        match effect {
            Effect::Deliver { seat, envelope } => {
                let passed = match self.parts.homes.inbox(&seat) {
                    Some(inbox) => self.pass((seat, &inbox), envelope, run),
                    None => Err(Box::new(envelope)),
                };
                if let Err(env) = passed {
                    self.bounce(*env);
                }
            }
            // Routing what the broker made may make more; boxed, since it is this very law again.
            Effect::Route(env) => {
                self.count_refusal(&env);
                Box::pin(self.received(env, run)).await
            }
            Effect::Save { owner, ops } => run.ticket.wait_for(self.parts.store.commit(&owner, ops)),
            Effect::Publish { from, draft } => {
                if let Ok(ticket) = self.parts.topics.publish(&from, draft) {
                    run.await_ticket(ticket);
                }
            }
            Effect::Await(ticket) => run.await_ticket(ticket),
            Effect::Keep { account, envelope } => {
                if let Some(account) = self.parts.homes.known(&account) {
                    self.keep(&account, &mut account.lock(), envelope, run);
                }
            }
            Effect::Flush { seat } => self.flush(seat, run).await,
            Effect::Event { seat, event } => run.take(self.hear(&seat, event)),
        }
    }

    /// A message that comes back with an error of the broker's.
    fn count_refusal(&self, env: &Envelope) {
        let ours = env.meta.origin == Origin::Broker && env.meta.sender == 0;
        if ours && matches!(env.head().type_, StanzaType::Message(MessageType::Error)) {
            env.to().iter().for_each(|to| self.count(&to.to_bare(), Outcome::Refused));
        }
    }

    /// Counts a message of this account, device or bot.
    pub(crate) fn count(&self, of: &BareJid, outcome: Outcome) {
        let is_bot = matches!(self.principal(of), Some(Principal::Bot(_)));
        self.parts.metrics.messages(if is_bot { Protocol::Bot } else { Protocol::Xmpp }, outcome).add(1);
    }

    /// Puts something that is not kept into one session's backlog: at once, or with its place when the ticket is
    /// complete. Back comes what the session does not take; one without room goes without what is fleeting, or is cut off.
    fn pass(
        self: &Arc<Self>,
        (seat, inbox): (SeatId, &Arc<Inbox>),
        mut env: Envelope,
        run: &mut Run,
    ) -> Result<(), Box<Envelope>> {
        env.meta.own = run.is_origin(inbox);
        if run.ticket.is_ready() {
            return inbox.push(env).or_else(|env| inbox.give_up(env));
        }
        if run.slow {
            run.ticket.then(self.posted(Landing::Last { seat, envelope: env }));
        } else if let Some(place) = inbox.reserve() {
            run.ticket.land(self.posted(Landing::Placed { seat, place, envelope: env }));
        }
        Ok(())
    }

    pub(crate) fn posted(&self, word: Landing) -> Posted {
        Posted::new(self.parts.homes.post(), word)
    }

    /// All that stood before this delivery is saved.
    pub(crate) fn land(self: &Arc<Self>, word: Landing) {
        match word {
            Landing::Owed { owner, envelope } => self.land_owed(&owner, envelope),
            Landing::Placed { seat, place, envelope } => self.put(&seat, envelope, |inbox, e| inbox.landed(place, e)),
            Landing::Last { seat, envelope } => self.put(&seat, envelope, |inbox, e| inbox.push(e)),
        }
    }

    /// Something before this delivery could not be saved: who waits for it need not wait any more.
    pub(crate) fn fail(&self, word: &Landing) {
        match word {
            Landing::Owed { owner, envelope } => self.fail_owed(owner, envelope.meta.place),
            Landing::Placed { seat, place, .. } => {
                if let Some(inbox) = self.parts.homes.inbox(seat) {
                    inbox.failed(*place);
                }
            }
            Landing::Last { .. } => {}
        }
    }

    fn put(
        self: &Arc<Self>,
        seat: &SeatId,
        env: Envelope,
        put: impl FnOnce(&Inbox, Envelope) -> Result<(), Box<Envelope>>,
    ) {
        let Some(inbox) = self.parts.homes.inbox(seat) else { return self.bounce(env) };
        if let Err(env) = put(&inbox, env).or_else(|env| inbox.give_up(env)) {
            self.bounce(*env);
        }
    }

    /// A client is back after the process was started anew; what it is told waits for room.
    pub(crate) async fn returned(self: &Arc<Self>, seat: &SeatId, inbox: Arc<Inbox>) -> Ticket {
        let mut run = Run { origin: Some((seat.clone(), inbox)), ..Run::default() };
        run.take(self.hear(seat, SessionEvent::Returned));
        self.finish(run).await
    }

    pub(crate) fn hear(&self, seat: &SeatId, event: SessionEvent) -> Effects {
        let mut fx = Effects::default();
        let Some(account) = self.parts.homes.known(&seat.owner) else { return fx };
        let mut state = account.lock();
        for hook in &self.registry.on_session {
            hook.on_session(event, seat.number, &mut self.place(&account, &mut state, &mut fx));
        }
        fx
    }

    pub(crate) fn ev<'a>(
        &'a self,
        env: &'a mut Envelope,
        (account, state): (&'a Arc<Account>, &'a mut AccountState),
        fx: &'a mut Effects,
        ops: &'a mut Vec<Op>,
    ) -> Ev<'a> {
        Ev { env, id: 0, account, state, fx, ops, hosts: &self.parts.hosts }
    }

    pub(crate) fn place<'a>(
        &'a self,
        account: &'a Arc<Account>,
        state: &'a mut MutexGuard<'_, AccountState>,
        fx: &'a mut Effects,
    ) -> Place<'a> {
        Place { account, state, fx, hosts: &self.parts.hosts }
    }

    /// The principal of a bare JID on one of the login hosts.
    pub fn principal(&self, jid: &BareJid) -> Option<Principal> {
        self.parts.hosts.principal(jid)
    }
}

/// The hosts for which the server itself answers requests; the others belong to services, if there are any.
fn answers(host: Host) -> bool {
    Host::OWN.contains(&host)
}

/// RFC 6120 §8.3, §10.5: a message to a host, or to what is not there on one, is answered; so is a presence that asks to
/// be let in, as into a room (XEP-0045 §7.2.2).
fn nobody_at(env: &Envelope) -> Option<Envelope> {
    let is_entry = env.head().type_ == StanzaType::Presence(PresenceType::Available)
        && env.to().is_some_and(|to| to.local().is_some());
    let is_message = env.stanza.kind() == Kind::Message;
    (is_entry || is_message).then(|| env.refuse(&Condition::ServiceUnavailable.into())).flatten()
}

fn seat(session: &SessionEntry) -> u64 {
    session.id
}

/// Whether an operation archives a message.
pub(crate) fn is_archived(op: &Op) -> bool {
    matches!(op, Op::Archive { .. })
}

/// What the sender gets if a handler or a service does not come to an end.
pub(crate) fn too_long() -> StanzaError {
    StanzaError::new(Condition::ResourceConstraint).text("the answer took too long")
}
