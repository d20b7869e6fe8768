//! What a ticket does when all is saved, said as words: each names its owner or seat and carries what is delivered. The
//! node applies it at the owner's home.

use crate::{
    envelope::Envelope,
    homes::{Account, AccountState, SeatId},
    router::Router,
    topics::{Late, Turn},
};
use std::sync::{Arc, OnceLock, Weak};
use tavi_store::Commit;
use tavi_xmpp_proto::jid::BareJid;

/// A delivery that waits for a commit.
#[derive(Debug)]
pub(crate) enum Landing {
    /// A message has a place among its owner's: whoever it is owed to by now gets it.
    Owed { owner: BareJid, envelope: Envelope },
    /// Something has a place in the backlog of one seat.
    Placed { seat: SeatId, place: u64, envelope: Envelope },
    /// Something goes to the end of a seat's backlog.
    Last { seat: SeatId, envelope: Envelope },
}

/// Where words are applied: this node, once it is put together.
#[derive(Default)]
pub(crate) struct Post(OnceLock<Weak<Router>>);

impl Post {
    pub(crate) fn open(&self, router: Weak<Router>) {
        if self.0.set(router).is_err() {
            tracing::error!("a second router over the same homes");
        }
    }

    /// A headline for somebody who is not home here.
    pub(crate) fn notify(&self, to: &BareJid, envelope: Envelope) {
        if let Some(router) = self.router() {
            router.exchange.notify(to, envelope);
        }
    }

    /// Whether an account, which is locked, lets a headline in.
    pub(crate) fn lets_in(&self, envelope: &mut Envelope, at: (&Arc<Account>, &mut AccountState)) -> bool {
        self.router().is_none_or(|router| router.let_in(envelope, at).is_ok())
    }

    fn router(&self) -> Option<Arc<Router>> {
        self.0.get()?.upgrade()
    }
}

/// A word on its way. Dropped undelivered, it has failed.
pub(crate) struct Posted {
    post: Arc<Post>,
    word: Option<Box<Landing>>,
}

impl Posted {
    pub(crate) fn new(post: &Arc<Post>, word: Landing) -> Posted {
        Posted { post: post.clone(), word: Some(Box::new(word)) }
    }

    fn land(mut self) {
        if let (Some(word), Some(router)) = (self.word.take(), self.post.router()) {
            router.land(*word);
        }
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        if let (Some(word), Some(router)) = (self.word.take(), self.post.router()) {
            router.fail(&word);
        }
    }
}

/// What a [`Ticket`](crate::Ticket) does when all of it is saved. Dropped instead, it has failed.
pub(crate) enum Deed {
    /// A delivery to an account's sessions.
    Word(Posted),
    /// A publication has its turn at its topic's home.
    Turn(Turn),
    /// A publication for somebody who subscribed while it was being saved.
    Late(Late),
    #[cfg(test)]
    Test(Box<dyn FnOnce() + Send>),
}

impl Deed {
    /// Gives what has to be waited for until it has taken its effect, if anything.
    pub(crate) fn run(self) -> Option<Commit> {
        match self {
            Deed::Word(posted) => posted.land(),
            Deed::Turn(turn) => return turn.land(),
            Deed::Late(late) => late.land(),
            #[cfg(test)]
            Deed::Test(run) => run(),
        }
        None
    }
}

impl From<Posted> for Deed {
    fn from(posted: Posted) -> Deed {
        Deed::Word(posted)
    }
}
