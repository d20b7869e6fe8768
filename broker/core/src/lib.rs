//! Tavi's vocabulary and seams: what every front end and module shares, and the four verbs between them.
//!
//! Front ends translate, modules decide, the router acts. A front end knows `login`, `subscribe`, `publish` and
//! `route` of a [`Node`], and nothing of the other protocols.

pub mod accounts;
mod asking;
pub mod backlog;
pub mod bus;
pub mod clock;
pub mod effects;
pub mod envelope;
mod handover;
pub mod homes;
pub mod hooks;
mod inbox;
pub mod journal;
mod landing;
mod ledger;
pub mod lines;
pub mod link;
pub mod login;
pub mod mailbox;
pub mod metrics;
pub mod node;
pub mod permit;
pub mod principal;
pub mod publication;
pub mod restore;
pub mod router;
mod services;
mod throttle;
pub mod ticket;
pub mod topics;
pub mod trie;

pub use backlog::{Backlog, Bound, Given, Owed};
pub use clock::{Clock, FakeClock, SystemClock};
pub use effects::{Effect, Effects};
pub use envelope::{Envelope, Meta, Origin, Reach};
pub use homes::{Account, AccountPart, AccountState, Homes, SeatId, SessionEntry};
pub use hooks::{Ev, Flow, Registry};
pub use journal::Journal;
pub use lines::Lines;
pub use link::Link;
pub use login::{Denied, Login};
pub use mailbox::{Closed, Mailbox, Overflow, Pushed, Weigh};
pub use metrics::Metrics;
pub use node::Node;
pub use node::Parts;
pub use permit::{Action, Permit};
pub use principal::{Host, Hosts, Principal};
pub use publication::{Change, ContentType, Properties, Publication, Qos};
pub use router::Router;
pub use ticket::{Ticket, TicketQueue};
pub use topics::{Draft, Refusal, SubOptions, Subscriber, Topics};
