//! IQs that are answered here: whom they ask, who answers, and that nothing but its own answer waits for a slow one.

use crate::{
    effects::Effects,
    envelope::Envelope,
    homes::{Account, AccountState},
    hooks::{BoxFuture, Flow, Phase, Reply, registry::Target},
    mailbox::Weigh,
    router::{Router, Run, too_long},
};
use std::{future::poll_fn, sync::Arc, task::Poll};
use tavi_store::{Commit, StoreError};
use tavi_xmpp_proto::{
    element::Element,
    error::{Condition, StanzaError},
    jid::Jid,
    stanza::Stanza,
};

type Answer = Result<Reply, StanzaError>;

impl Router {
    /// An IQ of type get or set that is answered here, for the server or for an account.
    pub(crate) async fn ask(self: &Arc<Self>, env: Envelope, run: &mut Run) {
        let mut answering: BoxFuture<'static, Answer> = Box::pin(self.clone().answering(env.clone()));
        match poll_fn(|cx| Poll::Ready(answering.as_mut().poll(cx))).await {
            Poll::Ready(answer) => conclude(&env, answer, run),
            Poll::Pending => {
                let commit = self.answer_later(env.clone(), answering);
                run.handed_over(commit, &env);
            }
        }
    }

    async fn answering(self: Arc<Self>, env: Envelope) -> Answer {
        let payload = match env.stanza.parse_child(0) {
            // RFC 6120 §8.2.3: a request has exactly one payload.
            Ok(payload) if env.stanza.children().len() == 1 => payload,
            _ => return Err(StanzaError::new(Condition::BadRequest).text("an IQ request has exactly one child")),
        };
        let target = self.target(&env, &payload).await?;
        self.registry.answer(env.head().clone(), &payload, target).await
    }

    /// RFC 6120 §10.3.3, §10.5.
    async fn target(self: &Arc<Self>, env: &Envelope, payload: &Element) -> Result<Target, StanzaError> {
        let from = env.from().map(Jid::to_bare);
        let sender = from.as_ref().and_then(|from| self.parts.homes.known(from));
        let to = match env.to() {
            Some(to) if to.local().is_none() => return Ok(Target::Server(sender)),
            Some(to) if from.as_ref().is_none_or(|from| to.bare() != from.as_str()) => to.to_bare(),
            _ => return sender.map(Target::Own).ok_or_else(|| Condition::ServiceUnavailable.into()),
        };
        if !self.registry.asks_accounts((payload.ns(), payload.name())) {
            return Ok(Target::Account(None));
        }
        let Some(account) = self.parts.homes.account(&to).await.map_err(unreadable)? else {
            return Ok(Target::Account(None));
        };
        let let_in = self.let_in(&mut env.clone(), (&account, &mut account.lock()));
        match let_in {
            Ok(()) => Ok(Target::Account(Some(account))),
            // Whoever is not to know that somebody is there is told what he would be told if there were nobody.
            Err(error) if error.condition == Condition::ServiceUnavailable => Ok(Target::Account(None)),
            Err(error) => Err(error),
        }
    }

    /// Whether an account, which is locked, wants to have to do with what goes past its chain: the filters say it.
    pub(crate) fn let_in(
        &self,
        env: &mut Envelope,
        (account, state): (&Arc<Account>, &mut AccountState),
    ) -> Result<(), StanzaError> {
        let (mut fx, mut ops) = (Effects::default(), Vec::new());
        for (_, hook) in self.registry.on_received.iter().take_while(|(phase, _)| *phase == Phase::Filter) {
            match hook.on_received(&mut self.ev(env, (account, state), &mut fx, &mut ops)) {
                Flow::Continue => {}
                Flow::Stop => return Err(Condition::ServiceUnavailable.into()),
                Flow::Refuse(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The answer comes from a task of its own, when there is room for it at its asker's.
    fn answer_later(self: &Arc<Self>, env: Envelope, answering: BoxFuture<'static, Answer>) -> Commit {
        let (router, (slot, commit)) = (self.clone(), Commit::pending());
        tokio::spawn(async move {
            let answer =
                tokio::time::timeout(router.registry.deadline(), answering).await.unwrap_or_else(|_| Err(too_long()));
            let mut run = Run::default();
            conclude(&env, answer, &mut run);
            router.space_for(&env, run.weight()).await;
            slot.resolve(router.finish(run).await.complete().await);
        });
        commit
    }

    /// A late answer waits until its asker has read so far that there is room for it.
    async fn space_for(&self, env: &Envelope, bytes: usize) {
        let Some(account) = env.from().and_then(|from| self.parts.homes.known(&from.to_bare())) else { return };
        let inbox = account.lock().session(env.meta.sender).map(|session| session.inbox.clone());
        if let Some(inbox) = inbox {
            // One that is closed gets nothing; its answer finds out.
            let _ = poll_fn(|cx| inbox.poll_space(bytes, cx)).await;
        }
    }
}

impl Run {
    /// About how much it routes.
    fn weight(&self) -> usize {
        use crate::effects::Effect::{Deliver, Route};
        let weights = self.fresh.iter().map(|effect| match effect {
            Route(envelope) | Deliver { envelope, .. } => envelope.weight(),
            _ => 0,
        });
        weights.sum()
    }
}

fn conclude(env: &Envelope, answer: Answer, run: &mut Run) {
    match answer {
        Err(error) => run.reply(env.refuse(&error)),
        Ok(Reply { payload, fx }) => {
            run.take(fx);
            run.reply(Some(Stanza::iq_result(env.head(), payload).into()));
        }
    }
}

fn unreadable(error: StoreError) -> StanzaError {
    tracing::error!(%error, "an account could not be read");
    Condition::InternalServerError.into()
}
