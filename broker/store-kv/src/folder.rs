//! The store's folder: its lock, the engine that it holds, and what is done when that engine finds damage.
//!
//! `lock` is held while the store is open. `current` names the engine and the folder with its files, and is replaced
//! in one step, so that a migration either happened or did not.

use crate::{Engine, OpenError, StoreError};
use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

const FIRST_LINE: &str = "tavi store 1";

/// A store's folder that is locked by this process.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    _lock: File,
}

/// Where the rows are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    pub engine: Engine,
    pub folder: String,
}

impl Folder {
    /// Creates the folder if need be and takes its lock.
    pub fn lock(path: &Path) -> Result<Folder, OpenError> {
        fs::create_dir_all(path).map_err(io_error(path))?;
        let at = path.join("lock");
        let lock = File::options().create(true).write(true).truncate(false).open(&at).map_err(io_error(&at))?;
        match lock.try_lock() {
            Ok(()) => Ok(Folder { path: path.into(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: path.into() }),
            Err(TryLockError::Error(error)) => Err(io_error(&at)(error)),
        }
    }

    /// What the folder holds; `None` if it is new.
    pub fn current(&self) -> Result<Option<Current>, OpenError> {
        read_current(&self.path)
    }

    /// Makes `current` name another folder, durably and in one step.
    pub fn set_current(&self, current: &Current) -> Result<(), OpenError> {
        let (new, at) = (self.path.join("current.new"), self.path.join("current"));
        let text = format!("{FIRST_LINE}\nengine {}\nfolder {}\n", current.engine, current.folder);
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &at)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(io_error(&at))
    }

    /// The path of a folder inside.
    pub fn inside(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A name for a folder that does not exist yet, beginning with the engine's name.
    pub fn unused(&self, engine: Engine) -> String {
        let names = (1u32..).map(|number| format!("{engine}-{number}"));
        // The numbers are endless, a folder's entries are not.
        names.into_iter().find(|name| !self.inside(name).exists()).unwrap_or_default()
    }
}

/// What the folder `path` holds, whoever has its lock; `None` if it is new.
pub(crate) fn read_current(path: &Path) -> Result<Option<Current>, OpenError> {
    let at = path.join("current");
    match fs::read_to_string(&at) {
        Ok(text) => parse(&text).map(Some).ok_or(OpenError::Unknown { path: at }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(&at)(error)),
    }
}

fn parse(text: &str) -> Option<Current> {
    let mut lines = text.lines();
    let head = lines.next()? == FIRST_LINE;
    let engine = lines.next()?.strip_prefix("engine ")?.parse().ok()?;
    let folder = lines.next()?.strip_prefix("folder ")?;
    let plain = !folder.is_empty() && folder.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    (head && plain).then(|| Current { engine, folder: folder.into() })
}

/// Opens an engine; where it finds damage, copies its folder aside, lets `mend` take away what may be in the way, and
/// tries once more (storage.md, rule 4). `mend` gets the folder and the copy.
///
/// What could not be mended is remembered beside the folder, so that the next starts neither copy it again nor try the
/// same again.
pub(crate) fn open_or_mend<T>(
    folder: &Path,
    open: impl Fn(&Path) -> Result<T, StoreError>,
    mend: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<T, OpenError> {
    let note = beside(folder, "unmended");
    let reason = match open(folder) {
        Ok(engine) => return forget(&note).map(|()| engine),
        Err(StoreError::Corrupt(reason)) => reason.to_string(),
        Err(error) => return Err(error.into()),
    };
    if let Some(copy) = fs::read_to_string(&note).ok().map(PathBuf::from).filter(|copy| copy.exists()) {
        return Err(OpenError::Damaged { copy, reason });
    }
    let copy = copy_aside(folder, &reason)?;
    mend(folder, &copy).map_err(io_error(folder))?;
    match open(folder) {
        Ok(engine) => {
            tracing::warn!("the store is mended; `tavi store check` tells whether it is whole");
            Ok(engine)
        }
        Err(error) => {
            fs::write(&note, copy.as_os_str().as_encoded_bytes()).map_err(io_error(&note))?;
            Err(OpenError::Damaged { copy, reason: error.to_string() })
        }
    }
}

/// A store that opens is not the one that could not be mended.
fn forget(note: &Path) -> Result<(), OpenError> {
    match fs::remove_file(note) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(note)(error)),
        _ => Ok(()),
    }
}

/// Copies a folder to `FOLDER.damaged-N`, the first that is free; what a cut-off copy left is replaced.
fn copy_aside(folder: &Path, reason: &str) -> Result<PathBuf, OpenError> {
    let names = (1u32..).map(|number| beside(folder, &format!("damaged-{number}")));
    // The numbers are endless, a folder's entries are not.
    let copy = names.into_iter().find(|path| !path.exists()).unwrap_or_else(|| beside(folder, "damaged"));
    tracing::error!(%reason, copy = %copy.display(), "the store is damaged; copying it, then trying to mend it");
    let part = beside(folder, "damaged.part");
    let made = || {
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        copy_all(folder, &part)?;
        fs::rename(&part, &copy)
    };
    made().map_err(io_error(&copy))?;
    Ok(copy)
}

/// `FOLDER.ENDING`.
fn beside(folder: &Path, ending: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OpenError + use<> {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_is_read_as_it_was_written_and_names_no_other_place() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::lock(dir.path()).unwrap();
        assert_eq!(folder.current().unwrap(), None);
        let current = Current { engine: Engine::Fjall, folder: folder.unused(Engine::Fjall) };
        folder.set_current(&current).unwrap();
        assert_eq!(folder.current().unwrap(), Some(current));
        fs::write(dir.path().join("current"), "tavi store 1\nengine sled\nfolder ../elsewhere\n").unwrap();
        assert!(matches!(folder.current(), Err(OpenError::Unknown { .. })));
    }

    #[test]
    fn a_second_lock_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Folder::lock(dir.path()).unwrap();
        assert!(matches!(Folder::lock(dir.path()), Err(OpenError::Locked { .. })));
    }

    #[test]
    fn a_damaged_engine_is_copied_and_tried_once_more_without_its_snapshots() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sled-1");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("db"), "log").unwrap();
        fs::write(folder.join("snap.1"), "bad").unwrap();
        let open = |folder: &Path| match folder.join("snap.1").exists() {
            true => Err(StoreError::Corrupt("snapshot".into())),
            false => Ok(()),
        };
        open_or_mend(&folder, open, crate::sled::move_snapshots).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("sled-1.damaged-1/snap.1")).unwrap(), "bad");
        let broken = open_or_mend(&folder, |_| Err::<(), _>(StoreError::Corrupt("log".into())), |_, _| Ok(()));
        assert!(broken.unwrap_err().to_string().contains("tavi store import"));
        // The next starts leave it at that one copy, until a store opens there again.
        let copies = || {
            fs::read_dir(dir.path())
                .unwrap()
                .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("damaged"))
                .count()
        };
        let again = || open_or_mend(&folder, |_| Err::<(), _>(StoreError::Corrupt("log".into())), |_, _| Ok(()));
        assert!(matches!(again(), Err(OpenError::Damaged { .. })) && copies() == 2);
        open_or_mend(&folder, |_| Ok(()), |_, _| Ok(())).unwrap();
        assert!(matches!(again(), Err(OpenError::Damaged { .. })) && copies() == 3);
    }
}
