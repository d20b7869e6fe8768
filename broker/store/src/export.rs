//! The export: a store as one stream of bytes, the same for all backends.
//!
//! ```text
//! file  = "TAVIEXP3" block* end
//! block = length (4 bytes, not 0), entries, check (8 bytes)
//! end   = 0 (4 bytes), number of entries (8), last id (8), check (32)
//! entry = kind (1 byte) and its fields:
//!   1 owner    key                               what follows is this owner's
//!   2 record   table (1), version (8), item, value
//!   3 queued   id (8), value
//!   4 archived id (8), retracted (1), with, value
//!   5 inbox    last (8), unread (4), with, preview
//!   6 outbox   id (8)
//!   7 shared   id (8), body id (8), head, body   a queued row, and the body that it shares
//!   8 sharing  id (8), body id (8), head         a queued row whose body stood in an entry before
//!   9 view     id (8)                            a queued row: the archived stanza of an entry before
//! ```
//!
//! "TAVIEXP2" is the same without kind 9, and "TAVIEXP1" without 7 and 8 too; both are read.
//!
//! Numbers are big-endian. Keys, items, correspondents and previews have a length of 2 bytes in front, values one of
//! 4. A check is the beginning of the SHA-256 of all bytes before it, so a file that was cut, changed or put together
//! differently is refused before anything of it is taken in. An export of a running broker has each row whole, and
//! rows that change meanwhile as they were or as they became; one of a stopped broker is the store at that moment.

mod file;
mod load;
mod walk;

pub use file::fuzz_export;

use crate::{Owner, Store, StoreError, Table};
use bytes::Bytes;
use std::io::{self, Read, Seek, Write};
use thiserror::Error;

/// What was done, or is done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows, each owner counted too.
    pub entries: u64,
    /// Bytes of the export.
    pub bytes: u64,
}

/// Why an export or import failed, and who is to act.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The file could not be read or written.
    #[error("the export: {0}")]
    Io(#[from] io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file is not an export, or not of a form that this release knows.
    #[error("this is not an export that this release can read")]
    Foreign,
    /// The file is cut, or was changed.
    #[error("the export is damaged near byte {at}: {what}; nothing was taken in")]
    Damaged {
        /// Where.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The store that was to take the import in is not empty.
    #[error("the store is not empty: import into a new one")]
    NotEmpty,
    /// A copy does not equal its source.
    #[error("the copy differs from its source; nothing was changed")]
    Differs,
}

/// One row on its way. Rows follow the owner that they belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Owner(Owner),
    Record {
        table: Table,
        version: u64,
        item: Box<str>,
        value: Bytes,
    },
    Queued {
        id: u64,
        value: Bytes,
    },
    /// `bytes` stand in the first entry that names the body.
    Shared {
        id: u64,
        head: Bytes,
        body: u64,
        bytes: Option<Bytes>,
    },
    /// A queued row that is a view of the archived stanza.
    View {
        id: u64,
    },
    Archived {
        id: u64,
        retracted: bool,
        with: Box<str>,
        value: Bytes,
    },
    Inbox {
        last: u64,
        unread: u32,
        with: Box<str>,
        preview: Box<str>,
    },
    Outbox {
        id: u64,
    },
}

/// Writes all of `store` to `out`; `progress` is called now and then. The caller makes the file durable.
pub async fn export(
    store: &dyn Store,
    out: &mut (dyn Write + Send),
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Progress, ExportError> {
    let mut file = file::Encoder::new(out)?;
    let mut walk = walk::Walk::new(store);
    while let Some(page) = walk.next().await? {
        page.iter().try_for_each(|entry| file.push(entry))?;
        progress(file.progress());
    }
    file.finish(store.last_id())
}

/// Reads a whole export and checks it, taking nothing in.
pub fn verify(
    input: &mut (dyn Read + Send),
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Progress, ExportError> {
    let mut file = file::Decoder::new(input)?;
    while file.block()?.is_some() {
        progress(file.progress());
    }
    Ok(file.progress())
}

/// Takes an export into an empty store, after checking it from end to end.
pub async fn import<R: Read + Seek + Send>(
    store: &dyn Store,
    input: &mut R,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Progress, ExportError> {
    let start = input.stream_position()?;
    verify(input, &mut |_| ())?;
    input.seek(io::SeekFrom::Start(start))?;
    let mut load = load::Load::new(store).await?;
    let mut file = file::Decoder::new(input)?;
    while let Some(entries) = file.block()? {
        for entry in entries {
            load.push(entry).await?;
        }
        progress(file.progress());
    }
    load.finish(file.last_id()).await?;
    Ok(file.progress())
}

/// Copies all of one store into another, which is empty, and compares the two.
pub async fn copy(
    from: &dyn Store,
    to: &dyn Store,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Progress, ExportError> {
    let mut load = load::Load::new(to).await?;
    let mut walk = walk::Walk::new(from);
    let mut done = Progress::default();
    while let Some(page) = walk.next().await? {
        for entry in page {
            done.entries += 1;
            load.push(entry).await?;
        }
        progress(done);
    }
    load.finish(from.last_id()).await?;
    let (before, copied) = fingerprint(from).await?;
    let (after, _) = fingerprint(to).await?;
    if before == after { Ok(copied) } else { Err(ExportError::Differs) }
}

/// What a store holds, whatever the order of its owners and of conversations of one moment: a sum of one hash a row.
async fn fingerprint(store: &dyn Store) -> Result<(file::Sum, Progress), ExportError> {
    let (mut sum, mut walk) = (file::Sum::default(), walk::Walk::new(store));
    let mut owner = Owner::system("");
    while let Some(page) = walk.next().await? {
        for entry in page {
            match entry {
                Entry::Owner(next) => owner = next,
                // Which of the rows comes first is a matter of order.
                Entry::Shared { id, head, body, bytes } => {
                    if let Some(value) = bytes {
                        sum.add("", &Entry::Queued { id: body, value });
                    }
                    sum.add(&owner, &Entry::Shared { id, head, body, bytes: None });
                }
                entry => sum.add(&owner, &entry),
            }
        }
    }
    Ok((sum, sum.progress))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Body, MemoryStore, Op, SharedStore,
        conformance::{self, wait},
    };
    use std::{io::Cursor, sync::Arc};

    fn memory() -> SharedStore {
        Arc::new(MemoryStore::default())
    }

    fn filled() -> SharedStore {
        let store = memory();
        conformance::fill(&store, 400);
        store
    }

    fn exported(store: &SharedStore) -> Vec<u8> {
        let mut file = Vec::new();
        wait(export(&**store, &mut file, &mut |_| ())).unwrap();
        file
    }

    fn imported(file: &[u8]) -> (SharedStore, Result<Progress, ExportError>) {
        let store = memory();
        let done = wait(import(&*store, &mut Cursor::new(file), &mut |_| ()));
        (store, done)
    }

    #[test]
    fn an_import_shows_what_was_exported() {
        let store = filled();
        let file = exported(&store);
        let (copy, done) = imported(&file);
        assert_eq!(done.unwrap().bytes, file.len() as u64);
        assert_eq!(conformance::dump(&copy), conformance::dump(&store));
        assert_eq!(exported(&copy), file);
    }

    #[test]
    fn an_empty_store_is_exported_too() {
        let (copy, done) = imported(&exported(&memory()));
        assert_eq!(done.unwrap().entries, 0);
        assert_eq!(copy.last_id(), 0);
    }

    #[test]
    fn a_cut_file_is_refused_and_nothing_of_it_is_taken_in() {
        let file = exported(&filled());
        for len in (0..file.len()).step_by(997).chain([file.len() - 1]) {
            let (store, done) = imported(&file[..len]);
            assert!(matches!(done, Err(ExportError::Damaged { .. } | ExportError::Foreign)), "{len} bytes");
            assert_eq!(wait(store.owners(None, 1)), Ok(vec![]));
        }
    }

    #[test]
    fn a_changed_file_is_refused_wherever_the_change_is() {
        let file = exported(&filled());
        for at in (0..file.len()).step_by(1_009).chain([8, 9, file.len() - 1]) {
            let mut changed = file.clone();
            changed[at] ^= 0x10;
            let (store, done) = imported(&changed);
            assert!(matches!(done, Err(ExportError::Damaged { .. } | ExportError::Foreign)), "byte {at}");
            assert_eq!(wait(store.owners(None, 1)), Ok(vec![]));
        }
        let longer = [&file[..], &[0]].concat();
        assert!(matches!(imported(&longer).1, Err(ExportError::Damaged { .. })));
    }

    #[test]
    fn a_shared_body_is_exported_once_and_a_row_without_its_body_is_refused() {
        let store = memory();
        for name in ["a", "b", "c"] {
            let body = Body { id: 7, bytes: conformance::body(7, 30_000) };
            let share = Op::QueueShare { id: 7, head: Bytes::new(), body };
            wait(store.commit(&Owner::topic(name), vec![share])).unwrap();
        }
        let file = exported(&store);
        assert!((30_000..40_000).contains(&file.len()), "{} bytes", file.len());
        let (copy, done) = imported(&file);
        done.unwrap();
        assert_eq!(conformance::dump(&copy), conformance::dump(&store));
        let mut dangling = Vec::new();
        let mut encoder = file::Encoder::new(&mut dangling).unwrap();
        encoder.push(&Entry::Shared { id: 7, head: Bytes::new(), body: 7, bytes: None }).unwrap();
        encoder.finish(7).unwrap();
        assert!(matches!(imported(&dangling).1, Err(ExportError::Damaged { .. })));
    }

    #[test]
    fn exports_of_older_forms_are_read() {
        for form in [file::FIRST_FORM, file::SECOND_FORM] {
            let mut old = Vec::new();
            let mut encoder = file::Encoder::of_form(&mut old, form).unwrap();
            encoder.push(&Entry::Owner(Owner::topic("t"))).unwrap();
            encoder.push(&Entry::Queued { id: 7, value: "v".into() }).unwrap();
            encoder.finish(7).unwrap();
            let (store, done) = imported(&old);
            assert_eq!(done.unwrap().entries, 2);
            assert_eq!(wait(store.queue(&Owner::topic("t"), 0, 9)).unwrap()[0].value, "v");
        }
    }

    #[test]
    fn a_stanza_that_is_archived_and_queued_is_exported_once() {
        let store = memory();
        let archived = Op::Archive { id: 7, with: "w".into(), value: conformance::body(7, 30_000) };
        let push = Op::QueuePush { id: 8, value: "by value".into() };
        wait(store.commit(&Owner::topic("t"), vec![archived, Op::QueueArchived { id: 7 }, push])).unwrap();
        let file = exported(&store);
        assert!((30_000..40_000).contains(&file.len()), "{} bytes", file.len());
        let (copy, done) = imported(&file);
        done.unwrap();
        assert_eq!(conformance::dump(&copy), conformance::dump(&store));
        assert!(wait(copy.queue(&Owner::topic("t"), 0, 9)).unwrap()[0].archived);
    }

    #[test]
    fn a_store_with_rows_takes_no_import_in() {
        let (file, store) = (exported(&filled()), memory());
        wait(store.commit(&Owner::topic("t"), vec![Op::QueuePush { id: 1, value: Bytes::new() }])).unwrap();
        let done = wait(import(&*store, &mut Cursor::new(file), &mut |_| ()));
        assert!(matches!(done, Err(ExportError::NotEmpty)));
    }

    #[test]
    fn a_copy_equals_its_source() {
        let (from, to) = (filled(), memory());
        assert!(wait(copy(&*from, &*to, &mut |_| ())).unwrap().entries > 0);
        assert_eq!(conformance::dump(&to), conformance::dump(&from));
    }
}
