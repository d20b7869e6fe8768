//! What a commit may contain, checked by every backend before anything is written.

use crate::{Op, Owner, StoreError};

/// Greatest length of an owner's key in bytes.
pub const MAX_OWNER: usize = 4_095;
/// Greatest length of an item's key in bytes.
pub const MAX_ITEM: usize = 2_048;
/// Greatest length of a correspondent in bytes: a bare JID (RFC 7622 §3.1: 1,023 bytes a part) and its `@`.
pub const MAX_WITH: usize = 2_047;
/// Greatest length of one value in bytes.
pub const MAX_VALUE: usize = 16 << 20;
/// Greatest number of operations in one commit.
pub const MAX_OPS: usize = 10_000;
/// Greatest number of rows that one read gives.
pub const MAX_PAGE: usize = 1_000;
/// How many bytes of a preview are kept.
pub const MAX_PREVIEW: usize = 256;

/// Whether `ops` can be stored for `owner`: else [`StoreError::Invalid`] with the reason.
pub fn validate(owner: &Owner, ops: &[Op]) -> Result<(), StoreError> {
    within("owner", owner.as_str().len(), MAX_OWNER)?;
    within("number of operations", ops.len(), MAX_OPS)?;
    ops.iter().try_for_each(validate_op)
}

fn validate_op(op: &Op) -> Result<(), StoreError> {
    match op {
        Op::Put { item, value, .. } | Op::Restore { item, value, .. } => {
            within("item", item.len(), MAX_ITEM)?;
            within("value", value.len(), MAX_VALUE)
        }
        Op::Delete { item, .. } => within("item", item.len(), MAX_ITEM),
        Op::PutNewer { item, id, value, .. } => {
            real(*id)?;
            within("item", item.len(), MAX_ITEM)?;
            within("value", value.len(), MAX_VALUE)
        }
        Op::DeleteOlder { item, id, .. } | Op::DeleteThis { item, id, .. } => {
            real(*id)?;
            within("item", item.len(), MAX_ITEM)
        }
        Op::QueueShare { id, head, body } => {
            real(*id)?;
            real(body.id)?;
            within("head", head.len(), MAX_VALUE)?;
            within("body", body.bytes.len(), MAX_VALUE)
        }
        Op::QueuePush { id, value } => {
            real(*id)?;
            within("value", value.len(), MAX_VALUE)
        }
        Op::Archive { id, with, value } => {
            real(*id)?;
            within("correspondent", with.len(), MAX_WITH)?;
            within("value", value.len(), MAX_VALUE)
        }
        Op::Retract { tombstone, .. } => within("tombstone", tombstone.len(), MAX_VALUE),
        Op::Inbox { with, last, .. } => {
            real(*last)?;
            within("correspondent", with.len(), MAX_WITH)
        }
        Op::Outbox { id } | Op::QueueArchived { id } => real(*id),
        Op::QueueDelete { .. } | Op::QueueAck { .. } | Op::OutboxDelete { .. } | Op::Drawn { .. } | Op::Purge => Ok(()),
    }
}

fn within(what: &str, len: usize, most: usize) -> Result<(), StoreError> {
    if len <= most {
        return Ok(());
    }
    Err(StoreError::Invalid(format!("{what}: {len}, at most {most}").into()))
}

/// Reads start behind id 0, so no row may carry it.
fn real(id: u64) -> Result<(), StoreError> {
    if id == 0 { Err(StoreError::Invalid("id 0".into())) } else { Ok(()) }
}

/// The part of a preview that is kept: at most [`MAX_PREVIEW`] bytes, cut between characters.
pub fn preview(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_PREVIEW)]
}
