//! The data folder: its lock, its first contents.

use crate::config::TEMPLATE;
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    time::{Duration, Instant},
};

/// Where the domain stands that was last served.
const SERVED: &str = "domain";
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
    keep_private(data)?;
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

/// The folder holds credentials and messages: others may not look into it, whoever made it.
fn keep_private(data: &Path) -> Result<()> {
    let mode = fs::metadata(data).with_context(|| format!("cannot read {}", data.display()))?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(data, fs::Permissions::from_mode(0o700)).with_context(|| {
        format!("other users can read the data folder {}, and its mode cannot be changed to 0700", data.display())
    })?;
    tracing::warn!(folder = %data.display(), "other users could read the data folder (mode {:o}); now its mode is 0700", mode & 0o7777);
    Ok(())
}

/// The domain that a broker has last served from this folder, if one has.
pub fn served(data: &Path) -> Option<String> {
    let text = fs::read_to_string(data.join(SERVED)).ok()?;
    Some(text.trim().to_owned()).filter(|domain| !domain.is_empty())
}

/// Notes the domain that a broker serves from this folder, for commands that work on it later.
pub fn note_served(data: &Path, domain: &str) -> Result<()> {
    if served(data).as_deref() == Some(domain) {
        return Ok(());
    }
    write_new(&data.join(SERVED), format!("{domain}\n").as_bytes(), 0o600)
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

    #[test]
    fn a_folder_that_others_made_is_its_owner_s_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let _lock = lock(folder.path()).unwrap();
        assert_eq!(fs::metadata(folder.path()).unwrap().permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn the_domain_that_was_served_is_known_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(served(folder.path()), None);
        note_served(folder.path(), "example.org").unwrap();
        note_served(folder.path(), "example.net").unwrap();
        assert_eq!(served(folder.path()).as_deref(), Some("example.net"));
    }

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
