//! Moves a closed store into another engine, and makes a store of an export: always in a new inner folder, which
//! becomes the store in one step when it is whole and durable. What was there before is kept aside.

use crate::{
    Engine, KvStore, OpenError, Options,
    folder::{Current, Folder, io_error},
};
use std::{
    fs::{self, File},
    io::{self, Read, Seek},
    path::{Path, PathBuf},
    sync::Arc,
};
use tavi_store::export::{self, ExportError, Progress};
use thiserror::Error;

/// Why a store could not be moved or restored. The store is as it was.
#[derive(Debug, Error)]
pub enum MigrateError {
    /// A store could not be opened or made.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Copying failed.
    #[error(transparent)]
    Copy(#[from] ExportError),
    /// There is nothing to do.
    #[error("the store is kept in {0} already")]
    Same(Engine),
    /// An import would hide what is there.
    #[error("there is a store in {} already; move that folder away, or import into another one", .0.display())]
    Exists(PathBuf),
}

/// What was moved, and where the files of before are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// How much was copied.
    pub copied: Progress,
    /// The folder with the files of before. It may be deleted when the new ones have proved good.
    pub kept: PathBuf,
}

/// Moves the store in `path`, which no process may have open, into the engine of `options`, and compares the two
/// before the new one takes the old one's place. Blocks while it copies.
pub async fn migrate(
    path: &Path,
    options: &Options,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Migrated, MigrateError> {
    let folder = Arc::new(Folder::lock(path)?);
    let old = folder.current()?.ok_or(OpenError::Empty { path: path.into() })?;
    if old.engine == options.engine {
        return Err(MigrateError::Same(old.engine));
    }
    let kept = folder.inside(&old.folder);
    let from = KvStore::inside(&folder, &old, &Options { engine: old.engine, ..options.clone() })?;
    let mut making = Making::new(&folder, options.engine);
    let to = KvStore::inside(&folder, &making.current, options)?;
    let copied = export::copy(&from, &to, progress).await?;
    from.close();
    to.close();
    drop(to);
    making.finish()?;
    Ok(Migrated { copied, kept })
}

/// Makes a store in `path` of an export. There must be none yet: a damaged one is moved away first. Blocks while it
/// reads.
pub async fn restore<R: Read + Seek + Send>(
    path: &Path,
    options: &Options,
    (input, progress): (&mut R, &mut (dyn FnMut(Progress) + Send)),
) -> Result<Progress, MigrateError> {
    let folder = Arc::new(Folder::lock(path)?);
    if folder.current()?.is_some() {
        return Err(MigrateError::Exists(path.into()));
    }
    let mut making = Making::new(&folder, options.engine);
    let store = KvStore::inside(&folder, &making.current, options)?;
    let copied = export::import(&store, input, progress).await?;
    store.close();
    drop(store);
    making.finish()?;
    Ok(copied)
}

/// A new inner folder: it becomes the store when it is finished, and is removed when it is not.
struct Making<'a> {
    folder: &'a Folder,
    current: Current,
    finished: bool,
}

impl<'a> Making<'a> {
    fn new(folder: &'a Folder, engine: Engine) -> Making<'a> {
        let current = Current { engine, folder: folder.unused(engine) };
        Making { folder, current, finished: false }
    }

    fn finish(&mut self) -> Result<(), OpenError> {
        let path = self.folder.inside(&self.current.folder);
        sync_all(&path).map_err(io_error(&path))?;
        self.folder.set_current(&self.current)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let path = self.folder.inside(&self.current.folder);
        if self.finished || !path.exists() {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(%error, path = %path.display(), "an unfinished copy could not be removed");
        }
    }
}

/// Makes a folder durable with all that is in it.
fn sync_all(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(path)?.sync_all()
}
