//! Publish-Subscribe (XEP-0060) over topics: a node of the pubsub host is a topic.

use crate::Xep;
use tavi_core::{Parts, Registry, hooks::TwoOwners};

/// The line of the table of extensions.
pub const XEP: Xep = Xep { number: 60, name: "Publish-Subscribe", version: "1.26.0", module: "pubsub" };
/// JSON values in items.
pub const JSON: Xep = Xep { number: 335, name: "JSON Containers", version: "0.1.1", module: "pubsub" };

/// Registers it.
///
/// # Errors
/// If the host has an owner already.
pub fn register(_: &mut Registry, _: &Parts) -> Result<(), TwoOwners> {
    Ok(())
}
