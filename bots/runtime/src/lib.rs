//! Bots written in Rhai: engine, limits, author API, durable conversations.
//!
//! A bot is one script. Its handlers are linear code that may `ask` and wait for days: the runtime keeps a journal of
//! every answer, stops the script at an open question, and runs it again from the top of its handler when the answer
//! comes, with all that was done before skipped ([`journal`]). The layers, from the inside out:
//!
//! - [`engine`] runs one handler call once, under limits; [`prompt`] and [`dispatch`] know what a person's text means.
//! - [`conversation`] turns something heard into a new durable state and actions; [`bot`] is one whole bot without IO.
//! - `pool`, `store`, `loader`, `seat`, `ear` and `actions` put that into the broker: threads, rows, folder, sessions,
//!   topics, routing. [`Bots`] is what the broker starts.

pub mod bot;
pub mod conversation;
pub mod dispatch;
pub mod engine;
pub mod event;
pub mod journal;
pub mod prompt;

mod actions;
mod ear;
mod filter;
mod loader;
mod people;
mod pool;
mod runtime;
mod seat;
mod store;

pub use engine::{Metered, held};
pub use runtime::{Bots, StartError};
pub use store::forget;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: Metered = Metered::system();
