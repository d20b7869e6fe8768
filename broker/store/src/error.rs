//! What can go wrong with a store, and who is to act.

use thiserror::Error;

/// Why a commit or a read failed. Nothing of a failed commit is kept.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// A record was not in the expected state: read again and decide again.
    #[error("the record {item:?} was changed by somebody else")]
    Conflict {
        /// Which record.
        item: Box<str>,
    },
    /// The backend is busy, full or not reachable: try again later.
    #[error("the store is not available: {0}")]
    Unavailable(Box<str>),
    /// The stored data is damaged: stop and restore.
    #[error("the store is damaged: {0}")]
    Corrupt(Box<str>),
    /// The caller asked for something that cannot be stored, such as a key that is too long.
    #[error("not storable: {0}")]
    Invalid(Box<str>),
}
