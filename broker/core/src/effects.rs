//! What hooks and handlers want done. They do nothing themselves: the router applies it, saves first, deliveries then.

use crate::{
    envelope::Envelope,
    hooks::SessionEvent,
    principal::Principal,
    sessions::{Account, Inbox},
    ticket::Ticket,
    topics::Draft,
};
use std::sync::Arc;
use tavi_store::{Op, Owner};
use tavi_xmpp_proto::stanza::Stanza;

/// One thing to be done.
pub enum Effect {
    /// Put a copy into one session's mailbox, past all hooks (carbons, roster pushes).
    Deliver {
        /// Whose.
        inbox: Arc<Inbox>,
        /// What.
        envelope: Envelope,
    },
    /// Route a stanza that the broker made.
    Route(Envelope),
    /// Save an owner's operations.
    Save {
        /// Whose.
        owner: Owner,
        /// What.
        ops: Vec<Op>,
    },
    /// Publish a value on somebody's behalf. A refusal is logged.
    Publish {
        /// On whose.
        from: Principal,
        /// What.
        draft: Draft,
    },
    /// Wait for a ticket that a handler already has, before the replies go out.
    Await(Ticket),
    /// Keep a message for an account that is away (XEP-0160 §3).
    Keep {
        /// For whom.
        account: Arc<Account>,
        /// What.
        envelope: Envelope,
    },
    /// A session can take messages from now on: hand it what was kept for the account (XEP-0160 §3).
    Flush {
        /// Whose messages.
        account: Arc<Account>,
        /// The session's number.
        session: u64,
    },
    /// Something happened to a session: all [`OnSession`](crate::hooks::OnSession) hooks are to hear of it.
    Event {
        /// Whose session.
        account: Arc<Account>,
        /// The session's number.
        session: u64,
        /// What.
        event: SessionEvent,
    },
}

/// Effects in the order in which they were wanted.
#[derive(Default)]
pub struct Effects {
    pub(crate) list: Vec<Effect>,
    /// What is saved already, and what has its place behind that.
    pub(crate) ticket: Ticket,
}

impl Effects {
    /// Adds one.
    pub fn push(&mut self, effect: Effect) {
        match effect {
            Effect::Deliver { inbox, envelope } if !self.ticket.is_ready() => self.reserve(&inbox, envelope),
            other => self.list.push(other),
        }
    }

    /// Routes a stanza.
    pub fn route(&mut self, stanza: impl Into<Envelope>) {
        self.push(Effect::Route(stanza.into()));
    }

    /// Delivers a stanza to one session. With [`Effects::save_now`] it has its place from now on, and leaves when all is
    /// saved: what is saved in one order is told in that order.
    pub fn deliver(&mut self, inbox: &Arc<Inbox>, stanza: Stanza) {
        self.push(Effect::Deliver { inbox: inbox.clone(), envelope: stanza.into() });
    }

    /// Saves operations of an account that is locked: commits of one account land in the order of its decisions.
    pub fn save_now(&mut self, account: &Account, ops: Vec<Op>) {
        self.ticket.wait_for(account.store().commit(&account.owner, ops));
        // What stands before it goes out before what stands behind it.
        std::mem::take(&mut self.list).into_iter().for_each(|effect| self.push(effect));
    }

    fn reserve(&mut self, inbox: &Arc<Inbox>, envelope: Envelope) {
        if let Some(reserved) = Reserved::new(inbox, envelope) {
            self.ticket.land(reserved.into_landing());
        }
    }

    /// Saves operations of an account.
    pub fn save(&mut self, owner: Owner, ops: Vec<Op>) {
        self.push(Effect::Save { owner, ops });
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.ticket.is_ready()
    }
}

/// An envelope with its place in one session's backlog. Dropped, it gives the place up.
pub(crate) struct Reserved {
    inbox: Arc<Inbox>,
    place: u64,
    envelope: Option<Envelope>,
}

impl Reserved {
    /// `None` if the session is closed.
    pub(crate) fn new(inbox: &Arc<Inbox>, envelope: Envelope) -> Option<Reserved> {
        let place = inbox.reserve()?;
        Some(Reserved { inbox: inbox.clone(), place, envelope: Some(envelope) })
    }

    /// Gives it to the session; back comes what a closed or full one does not take.
    pub(crate) fn land(mut self) -> Result<(), Box<Envelope>> {
        self.envelope.take().map_or(Ok(()), |envelope| self.inbox.landed(self.place, envelope))
    }

    /// For a ticket. A session that does not take it is cut off.
    fn into_landing(self) -> crate::ticket::Deliver {
        Box::new(move || {
            let inbox = self.inbox.clone();
            if self.land().is_err() {
                inbox.close(crate::mailbox::Closed::Overflow);
            }
        })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.envelope.is_some() {
            self.inbox.failed(self.place);
        }
    }
}
