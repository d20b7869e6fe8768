//! The seams for modules: a typed, closed list of hooks, and the registry that start-up fills.

mod iq;
pub(crate) mod registry;
mod table;

pub use iq::{Handle, Iq, IqPayload, Reply, Scope};
pub use registry::{Registry, TwoOwners};
pub use table::{At, Feature, Identity, Xep};

use crate::{
    effects::Effects,
    envelope::Envelope,
    homes::{Account, AccountState, SessionEntry},
    principal::Hosts,
    ticket::Ticket,
};
use std::{future::Future, pin::Pin, sync::Arc};
use tavi_store::{Op, StoreError};
use tavi_xmpp_proto::{element::Element, error::StanzaError, jid::Jid};

/// A boxed future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where in a chain a hook stands; inside a phase the registry's order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// May end the chain: block lists, subscription logic.
    Filter,
    /// Adds to the stanza.
    Annotate,
    /// Keeps it: archive, offline.
    Store,
    /// Makes copies of it: carbons.
    Copy,
}

/// What a hook wants to happen next.
#[derive(Debug)]
pub enum Flow {
    /// The chain goes on.
    Continue,
    /// The stanza is dealt with; nothing more happens to it.
    Stop,
    /// The sender gets this error.
    Refuse(StanzaError),
}

/// One stanza in one account's chain. The account is locked while its hooks run.
pub struct Ev<'a> {
    /// The stanza.
    pub env: &'a mut Envelope,
    /// A message's place among the rows of this account, drawn under its lock before the chain: its id in archive and
    /// queue. 0 for what is no message, and for an error.
    pub id: u64,
    /// Whose chain it is: the sender's in [`OnSent`], the recipient's in the others.
    pub account: &'a Arc<Account>,
    /// Sessions, roster and the rest of the account.
    pub state: &'a mut AccountState,
    /// What the hook wants done.
    pub fx: &'a mut Effects,
    /// What is saved for this account with the stanza: one commit with the stanza's own row, if it gets one. The sender's
    /// acknowledgement and all deliveries wait for it. A stanza that is refused in the end saves none of it.
    pub ops: &'a mut Vec<Op>,
    /// The broker's host names.
    pub hosts: &'a Hosts,
}

impl Ev<'_> {
    pub(crate) fn under(mut self, id: u64) -> Self {
        self.id = id;
        self
    }
}

/// A local session sent a stanza.
pub trait OnSent: Send + Sync {
    /// Looks at it before it is routed.
    fn on_sent(&self, ev: &mut Ev<'_>) -> Flow;
}

/// An account is about to receive a stanza.
pub trait OnReceived: Send + Sync {
    /// Looks at it before sessions are chosen.
    fn on_received(&self, ev: &mut Ev<'_>) -> Flow;
}

/// No session could take a message.
pub trait OnUndelivered: Send + Sync {
    /// Keeps it (then [`Flow::Stop`]) or lets it be answered with `<service-unavailable/>`.
    fn on_undelivered(&self, ev: &mut Ev<'_>) -> Flow;
}

/// A message is being archived or kept under [`Ev::id`]. For those who look on (an inbox, push, an index): they decide
/// nothing, and what they add to [`Ev::ops`] goes into the same commit.
pub trait OnKept: Send + Sync {
    /// Looks on. Called once for each account and message.
    fn on_kept(&self, ev: &mut Ev<'_>);
}

/// When a stream offers features (RFC 6120 §4.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nobody has logged in yet.
    BeforeLogin,
    /// Somebody has, and a resource is to be bound.
    AfterLogin,
}

/// Something that the streams of clients offer.
pub trait StreamFeature: Send + Sync {
    /// What stands for it among the stream's features at this stage, if anything does.
    fn offer(&self, stage: Stage) -> Option<Element>;

    /// Its name in service discovery, if a client can begin it while it binds its resource (XEP-0386 §3).
    fn inline(&self) -> Option<&'static str> {
        None
    }

    /// A session that is just bound wants to begin something; a request that is not this feature's is left alone.
    fn begin(&self, _request: &Element, _session: &mut SessionEntry) {}
}

/// What happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// It sent its initial presence.
    Available,
    /// Its client is back after the process was started anew: who came and went meanwhile was not told.
    Returned,
    /// It ended, in whatever way; its entry is still in the account's state.
    Ended,
}

/// The life of sessions.
pub trait OnSession: Send + Sync {
    /// `session` is its number in the account's state.
    fn on_session(&self, event: SessionEvent, session: u64, at: &mut Place<'_>);
}

/// An account, locked, outside the chain of a stanza.
pub struct Place<'a> {
    /// Which account.
    pub account: &'a Arc<Account>,
    /// Its state.
    pub state: &'a mut AccountState,
    /// What the hook wants done.
    pub fx: &'a mut Effects,
    /// The broker's host names.
    pub hosts: &'a Hosts,
}

/// A service that owns a host: pubsub, rooms, upload. The core serves one stanza of a key at a time, in the order in
/// which they came, and completes what they lead to in that order. No sender waits for it.
pub trait Service: Send + Sync + 'static {
    /// Which of its things a stanza is about, such as the room: stanzas with different keys do not wait for each other.
    fn key(&self, env: &Envelope) -> Box<str> {
        env.to().map(Jid::bare).unwrap_or_default().into()
    }

    /// Deals with a stanza to the host; answers are routed from the effects. Dropped at its next `await` if it takes
    /// too long: the sender is told.
    fn serve(&self, env: Envelope) -> BoxFuture<'_, Effects>;

    /// Takes up what it keeps in the store. Called once, before anybody can connect.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn start(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Takes stanzas to domains that are not the broker's: other servers, components.
pub trait Remote: Send + Sync {
    /// Whether this domain is its to reach. The first one that says so gets the stanza.
    fn serves(&self, domain: &str) -> bool;

    /// Takes a stanza; the ticket completes when it counts as handled.
    fn send(&self, env: Envelope) -> Ticket;
}
