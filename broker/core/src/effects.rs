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
}

impl Effects {
    /// Adds one.
    pub fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }

    /// Routes a stanza.
    pub fn route(&mut self, stanza: impl Into<Envelope>) {
        self.push(Effect::Route(stanza.into()));
    }

    /// Delivers a stanza to one session.
    pub fn deliver(&mut self, inbox: &Arc<Inbox>, stanza: Stanza) {
        self.push(Effect::Deliver { inbox: inbox.clone(), envelope: stanza.into() });
    }

    /// Saves operations of an account.
    pub fn save(&mut self, owner: Owner, ops: Vec<Op>) {
        self.push(Effect::Save { owner, ops });
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}
