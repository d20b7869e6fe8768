//! What hooks and handlers want done. They do nothing themselves: the router applies it, saves first, deliveries then.

use crate::{
    envelope::Envelope,
    homes::{Account, AccountState, SeatId, SessionEntry},
    hooks::SessionEvent,
    landing::{Landing, Post, Posted},
    principal::Principal,
    ticket::Ticket,
    topics::Draft,
};
use std::sync::Arc;
use tavi_store::{Op, Owner};
use tavi_xmpp_proto::jid::BareJid;

/// One thing to be done.
pub enum Effect {
    /// Put something into one session's backlog, past all hooks (carbons, roster pushes).
    Deliver {
        /// Whose.
        seat: SeatId,
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
        account: BareJid,
        /// What.
        envelope: Envelope,
    },
    /// A session can take messages from now on: hand it what was kept for the account (XEP-0160 §3).
    Flush {
        /// Which session.
        seat: SeatId,
    },
    /// Something happened to a session: all [`OnSession`](crate::hooks::OnSession) hooks are to hear of it.
    Event {
        /// Which session.
        seat: SeatId,
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
    /// Where that is delivered.
    post: Option<Arc<Post>>,
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

    /// Delivers a stanza to one session. With [`Effects::save_now`] it has its place from now on, and leaves when all is
    /// saved: what is saved in one order is told in that order.
    pub fn deliver(&mut self, session: &SessionEntry, stanza: impl Into<Envelope>) {
        let envelope = stanza.into();
        match self.post.clone() {
            Some(post) => self.reserve(&post, session, envelope),
            None => self.list.push(Effect::Deliver { seat: session.seat(), envelope }),
        }
    }

    /// Saves operations of an account that is locked: commits of one account land in the order of its decisions.
    pub fn save_now(&mut self, account: &Account, state: &AccountState, ops: Vec<Op>) {
        self.ticket.wait_for(account.store().commit(&account.owner, ops));
        self.post = Some(account.post().clone());
        // What stands before it goes out before what stands behind it.
        for effect in std::mem::take(&mut self.list) {
            match effect {
                Effect::Deliver { seat, envelope } if seat.owner == account.jid => {
                    let session = state.sessions.iter().find(|session| session.id == seat.number);
                    session.into_iter().for_each(|session| self.reserve(account.post(), session, envelope.clone()));
                }
                other => self.list.push(other),
            }
        }
    }

    fn reserve(&mut self, post: &Arc<Post>, session: &SessionEntry, envelope: Envelope) {
        if let Some(place) = session.inbox.reserve() {
            self.ticket.land(Posted::new(post, Landing::Placed { seat: session.seat(), place, envelope }));
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
