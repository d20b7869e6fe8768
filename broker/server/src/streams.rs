//! The file `streams` in the data folder: what XMPP streams need to outlive the process (`tavi_core::journal`).
//!
//! It is written to the kernel and never synced, so its first line names the run of the kernel: after a loss of power it
//! says nothing.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use tavi_core::journal::{Book, Medium};
use tavi_xmpp_proto::BareJid;

const NAME: &str = "streams";
const FORM: &str = "tavi streams 1";

/// The file.
pub struct Streams {
    path: PathBuf,
    head: Vec<u8>,
    file: Option<File>,
}

impl Streams {
    /// That of a data folder; `None` where the kernel does not tell its runs apart.
    pub fn of(data: &Path) -> Option<Streams> {
        let run = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Streams::in_run(data, run.trim()))
    }

    fn in_run(data: &Path, run: &str) -> Streams {
        Streams { path: data.join(NAME), head: format!("{FORM} {run}\n").into_bytes(), file: None }
    }

    /// An account was removed while no broker runs: nothing of its streams goes on.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn forget(mut self, account: &BareJid) -> io::Result<()> {
        let whole = self.read();
        let mut left = whole.clone();
        left.forget(account);
        if left == whole { Ok(()) } else { self.renew(&left.encode()) }
    }

    /// Another store takes the place of the one that the streams belong to.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn discard(data: &Path) -> io::Result<()> {
        match fs::remove_file(data.join(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// What an earlier process left, if it is of this run of the kernel.
    pub fn read(&self) -> Book {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, file = %self.path.display(), "streams of before cannot be resumed");
                }
                return Book::default();
            }
        };
        let Some(notes) = bytes.strip_prefix(&self.head[..]) else { return Book::default() };
        Book::read(notes.to_vec()).unwrap_or_else(|| {
            tracing::warn!(file = %self.path.display(), "the file is damaged; streams of before cannot be resumed");
            Book::default()
        })
    }
}

impl Medium for Streams {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.as_mut().ok_or(io::ErrorKind::NotFound)?.write_all(bytes)
    }

    fn renew(&mut self, bytes: &[u8]) -> io::Result<()> {
        let draft = self.path.with_extension("new");
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&draft)?;
        file.write_all(&self.head)?;
        file.write_all(bytes)?;
        fs::rename(&draft, &self.path)?;
        self.file = Some(file);
        Ok(())
    }

    fn give_up(&mut self) {
        self.file = None;
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::error!(%error, file = %self.path.display(), "remove this file: it is not true any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tavi_core::{Bound, Journal};

    fn journal(data: &Path, run: &str) -> Arc<Journal> {
        let journal = Journal::over(Box::new(Streams::in_run(data, run)));
        journal.open();
        Arc::new(journal)
    }

    fn streams(data: &Path, run: &str) -> usize {
        Streams::in_run(data, run).read().close().0.len()
    }

    #[test]
    fn what_was_flushed_is_there_in_this_run_of_the_kernel_only() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        let journal = journal(data, "one");
        let jid = "romeo@localhost/orchard".parse().unwrap();
        let window = Bound { items: 1, bytes: 1 };
        journal.stream(1).unwrap().begin_new("first", &jid, window);
        assert_eq!(streams(data, "one"), 0);
        journal.flush();
        assert_eq!(streams(data, "one"), 1);
        assert_eq!(streams(data, "two"), 0, "the power was gone");
        // The process is killed in the middle of a write.
        let cut = fs::read(data.join(NAME)).unwrap();
        journal.stream(2).unwrap().begin_new("second", &jid, window);
        journal.flush();
        let whole = fs::read(data.join(NAME)).unwrap();
        assert_eq!(streams(data, "one"), 2);
        for end in cut.len()..whole.len() {
            fs::write(data.join(NAME), &whole[..end]).unwrap();
            assert_eq!(streams(data, "one"), 1, "{end}");
        }
    }

    #[test]
    fn a_damaged_file_lets_the_broker_start() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [&b""[..], b"tavi streams 1 one", b"tavi streams 1 one\n\0\0\0\x02\xff\xff", b"\xff\xff"] {
            fs::write(folder.path().join(NAME), bytes).unwrap();
            assert_eq!(streams(folder.path(), "one"), 0);
        }
    }
}
