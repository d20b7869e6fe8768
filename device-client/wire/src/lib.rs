//! Device identity, the words of grants, and topic rules that both ends agree on, without allocation.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod grant;
pub mod identity;
pub mod topic;

pub use grant::{Action, Actions, Rights, RightsError};
pub use identity::{DeviceId, IdError};
pub use topic::{TopicError, check_filter, check_topic, covers, matches};
