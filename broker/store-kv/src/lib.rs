//! The embedded engines sled and fjall behind one small key-value trait.
//!
//! [`open`] gives a [`KvStore`]: the domain store of `tavi-store` on one of them. The rules that keep what was
//! acknowledged are in `storage.md`; the crash suites under `tests` hold them to it.

mod cache;
mod check;
mod committer;
mod fjall;
mod folder;
mod group;
mod keys;
mod kv;
mod layout;
mod migrate;
mod names;
mod read;
mod sled;
mod stats;
mod store;
mod value;
mod waiting;
mod young;

pub use check::{Report, check};
pub use migrate::{MigrateError, Migrated, migrate, restore};
pub use stats::{BATCH_BOUNDS, CommitStats, Histogram, LATENCY_BOUNDS_US};
pub use store::{KvStore, engine_of, open};
pub(crate) use tavi_store::StoreError;

use std::{fmt, path::PathBuf, str::FromStr};
use thiserror::Error;

/// An embedded engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Engine {
    /// sled 0.34.7.
    Sled,
    /// fjall 3, the default for a new store.
    #[default]
    Fjall,
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The engine for a new folder, and the one that an existing folder must hold.
    pub engine: Engine,
    /// The engine's cache in bytes.
    pub cache: u64,
    /// When so many commits wait, senders are told to stop ([`tavi_store::Store::has_room`]).
    pub queue: usize,
    /// When so many bytes of values wait, senders are told to stop.
    pub queue_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { engine: Engine::default(), cache: 64 << 20, queue: 131_072, queue_bytes: 64 << 20 }
    }
}

/// Why a store could not be opened, and what the operator can do.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the store in {} is in use by another process; stop that one first", path.display())]
    Locked {
        /// The store's folder.
        path: PathBuf,
    },
    /// The folder holds the files of another engine than the configured one.
    #[error("the store in {} is kept in {found}, but {wanted} is configured; set [store] engine = \"{found}\", or move it with `tavi store migrate --to {wanted}`", path.display())]
    OtherEngine {
        /// The store's folder.
        path: PathBuf,
        /// What it holds.
        found: Engine,
        /// What was asked for.
        wanted: Engine,
    },
    /// A newer release has written it.
    #[error(
        "the store has layout {found}, this release knows {known}; use the release that wrote it, or restore an export"
    )]
    NewerLayout {
        /// The stored version.
        found: u64,
        /// The greatest known one.
        known: u64,
    },
    /// There is no store.
    #[error("there is no store in {}", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// The file that names the engine cannot be understood.
    #[error("{} is not of a form that this release knows", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
    },
    /// The engine found damage that it could not mend.
    #[error("the store is damaged ({reason}); a copy is kept in {}; restore the last export into a new folder with `tavi store import FILE`", copy.display())]
    Damaged {
        /// Where the copy is.
        copy: PathBuf,
        /// What the engine says.
        reason: String,
    },
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The engine failed otherwise.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Engine {
    /// Both engines.
    pub const ALL: [Engine; 2] = [Engine::Sled, Engine::Fjall];

    /// The name used in configuration and on disk.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Sled => "sled",
            Engine::Fjall => "fjall",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of an engine that does not exist.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("there is no engine {0:?}; choose sled or fjall")]
pub struct UnknownEngine(pub String);

impl FromStr for Engine {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Engine, UnknownEngine> {
        let engine = Engine::ALL.into_iter().find(|engine| engine.name() == name);
        engine.ok_or_else(|| UnknownEngine(name.into()))
    }
}
