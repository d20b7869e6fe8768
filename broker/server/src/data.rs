//! The data folder: its lock, its first contents.

use crate::config::TEMPLATE;
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

/// How long a lock is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Held while a broker or a command works on the folder; the kernel gives it back when the process ends.
pub struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Makes the folder if need be and takes its lock.
pub fn lock(data: &Path) -> Result<Lock> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .with_context(|| format!("cannot make {}", data.display()))?;
    let path = data.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match patiently(|| file.try_lock()) {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => bail!(
            "another broker or command is using the data folder {}. Stop it first, or use another folder with --data DIR",
            data.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Tries for a moment: the system may still be clearing away a broker that was killed.
fn patiently(try_lock: impl Fn() -> std::result::Result<(), TryLockError>) -> std::result::Result<(), TryLockError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            decided => return decided,
        }
    }
}

/// Puts the commented configuration and the bots' folder there, if they are not.
pub fn first_contents(data: &Path) -> Result<()> {
    fs::create_dir_all(data.join("bots")).with_context(|| format!("cannot make {}", data.join("bots").display()))?;
    let path = data.join("tavi.toml");
    if !path.exists() {
        write_new(&path, TEMPLATE.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Writes a file as a whole or not at all, with this mode from its first moment.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let draft = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&draft);
        let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_user_of_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        let error = lock(folder.path()).err().unwrap().to_string();
        assert!(error.contains("another broker") && error.contains("--data"), "{error}");
        drop(first);
        lock(folder.path()).unwrap();
    }

    #[test]
    fn files_have_their_mode_and_are_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        write_new(&path, b"one", 0o600).unwrap();
        write_new(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
