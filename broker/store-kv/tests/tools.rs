//! What an operator does with a closed store: check, export, import, migrate; and what keeps two brokers apart.

use bytes::Bytes;
use std::{fs, io::Cursor, path::Path, sync::Arc};
use tavi_store::{
    Body, Expect, Op, Owner, SharedStore, Store, StoreError, Table,
    conformance::{body, dump, fill, wait},
    export::{ExportError, export},
};
use tavi_store_kv::{Engine, KvStore, MigrateError, OpenError, Options, check, engine_of, migrate, open, restore};

fn options(engine: Engine) -> Options {
    Options { engine, cache: 8 << 20, ..Options::default() }
}

fn reopened(path: &Path, engine: Engine) -> Arc<KvStore> {
    open(path, &options(engine)).unwrap()
}

/// A store with rows of all kinds, closed; gives what it shows.
fn filled(path: &Path, engine: Engine) -> String {
    let store: SharedStore = reopened(path, engine);
    fill(&store, 600);
    wait(store.commit(&Owner::topic("large"), vec![Op::QueuePush { id: 9_999, value: body(1, 100_000) }])).unwrap();
    dump(&store)
}

fn shown(path: &Path, engine: Engine) -> String {
    let store: SharedStore = reopened(path, engine);
    dump(&store)
}

#[test]
fn a_whole_store_passes_its_check() {
    for engine in Engine::ALL {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), engine);
        let report = check(dir.path(), 8 << 20, &mut |_| ()).unwrap();
        assert_eq!((report.engine, report.problems, report.described), (engine, 0, vec![]));
        assert!(report.rows > 100);
    }
}

#[test]
fn a_store_that_lacks_rows_fails_its_check() {
    let dir = tempfile::tempdir().unwrap();
    let owner = Owner::account("juliet@example.org");
    let store = reopened(dir.path(), Engine::Sled);
    let inbox = Op::Inbox { with: "w".into(), last: 5, unread: Some(1), preview: "p".into() };
    let archive = Op::Archive { id: 5, with: "w".into(), value: body(5, 20_000) };
    wait(store.commit(&owner, vec![archive, inbox, Op::QueuePush { id: 6, value: body(6, 20_000) }])).unwrap();
    drop(store);
    // Damage that no engine notices: rows are gone.
    with_sled(dir.path(), |db| {
        ["chunk", "arch_with", "inbox_t"].into_iter().for_each(|family| remove_first(db, family, |_| true));
    });
    let report = check(dir.path(), 8 << 20, &mut |_| ()).unwrap();
    let all = report.described.join("\n");
    for expected in ["out of its place", "bytes of 20000", "row in arch_with is missing", "row in inbox_t is missing"] {
        assert!(all.contains(expected), "{expected} is not in:\n{all}");
    }
}

/// Changes sled's files behind the store's back. The families are those of storage.md.
fn with_sled(path: &Path, change: impl FnOnce(&sled::Db)) {
    let db = loop {
        // sled's threads let its lock go a moment after the store is closed.
        if let Ok(db) = sled::open(path.join("sled-1")) {
            break db;
        }
        std::thread::yield_now();
    };
    change(&db);
    db.flush().unwrap();
}

fn remove_first(db: &sled::Db, family: &str, wanted: impl Fn(&[u8]) -> bool) {
    let tree = db.open_tree(family).unwrap();
    let key = tree.iter().keys().map(Result::unwrap).find(|key| wanted(key)).unwrap();
    tree.remove(key).unwrap();
}

#[test]
fn a_store_of_the_first_layout_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let store: SharedStore = reopened(dir.path(), Engine::Sled);
    for number in 0..1_500u64 {
        let retained = Op::Put { table: Table::Retained, item: "".into(), value: body(1, 9), expect: Expect::Any };
        let ops = vec![retained, Op::QueuePush { id: 1 + number, value: body(1, 5_000 * (number as usize % 2)) }];
        drop(store.commit(&Owner::topic(&format!("t/{}", number / 2)), ops));
    }
    wait(store.commit(&Owner::account("a"), vec![Op::QueuePush { id: 9_999, value: body(1, 3) }])).unwrap();
    let shows = dump(&store);
    drop(store);
    with_sled(dir.path(), |db| {
        ["walk", "queue_s"].into_iter().for_each(|family| db.open_tree(family).unwrap().clear().unwrap());
        let system = db.open_tree("system").unwrap();
        system.scan_prefix("count").keys().for_each(|key| drop(system.remove(key.unwrap()).unwrap()));
        system.insert("schema", &1u64.to_be_bytes()).unwrap();
    });
    assert_eq!(shown(dir.path(), Engine::Sled), shows);
    let report = check(dir.path(), 8 << 20, &mut |_| ()).unwrap();
    assert_eq!(report.problems, 0, "{:?}", report.described);
    let set = |layout: u64| {
        with_sled(dir.path(), |db| {
            _ = db.open_tree("system").unwrap().insert("schema", &layout.to_be_bytes()).unwrap()
        });
    };
    for older in [2, 3] {
        set(older);
        assert_eq!(shown(dir.path(), Engine::Sled), shows);
    }
    set(5);
    let newer = open(dir.path(), &options(Engine::Sled)).map(drop);
    assert!(matches!(newer, Err(OpenError::NewerLayout { found: 5, known: 4 })));
}

#[test]
fn a_check_sees_bodies_sizes_and_walks_that_disagree_with_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let store = reopened(dir.path(), Engine::Sled);
    for (id, name) in [(1, "a"), (2, "b"), (3, "c")] {
        let share = Op::QueueShare { id, head: Bytes::new(), body: Body { id, bytes: body(id, 9_000) } };
        let retained = Op::PutNewer { table: Table::Retained, item: "".into(), id, value: body(id, 9) };
        wait(store.commit(&Owner::topic(name), vec![share, retained])).unwrap();
    }
    let archived = Op::Archive { id: 4, with: "w".into(), value: body(4, 9) };
    wait(store.commit(&Owner::topic("d"), vec![archived, Op::QueueArchived { id: 4 }])).unwrap();
    // Only the size of a long queue has a row.
    let many = (10..100).map(|id| Op::QueuePush { id, value: body(id, 9) }).collect();
    wait(store.commit(&Owner::topic("long"), many)).unwrap();
    drop(store);
    with_sled(dir.path(), |db| {
        remove_first(db, "body", |key| key.last() == Some(&0));
        remove_first(db, "body", |key| key[7] == 2 && key.last() == Some(&1));
        remove_first(db, "body", |key| key[7] == 3);
        remove_first(db, "queue_s", |_| true);
        remove_first(db, "walk", |_| true);
        remove_first(db, "arch", |_| true);
    });
    let all = check(dir.path(), 8 << 20, &mut |_| ()).unwrap().described.join("\n");
    let expected = [
        "the number of its rows is missing",
        "body 2: rows name it, but it is missing",
        "there is no row for it",
        "its row in walk is missing",
        "its archived stanza is missing",
    ];
    for expected in expected {
        assert!(all.contains(expected), "{expected} is not in:\n{all}");
    }
}

#[test]
fn an_export_of_one_engine_is_restored_in_the_other() {
    for (from, to) in [(Engine::Sled, Engine::Fjall), (Engine::Fjall, Engine::Sled)] {
        let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let shows = filled(before.path(), from);
        let mut file = Vec::new();
        wait(export(&*reopened(before.path(), from), &mut file, &mut |_| ())).unwrap();
        let mut cut = Cursor::new(&file[..file.len() - 1]);
        let refused = wait(restore(after.path(), &options(to), (&mut cut, &mut |_| ())));
        assert!(matches!(refused, Err(MigrateError::Copy(ExportError::Damaged { .. }))));
        assert_eq!(engine_of(after.path()).unwrap(), None);
        wait(restore(after.path(), &options(to), (&mut Cursor::new(&file), &mut |_| ()))).unwrap();
        assert_eq!(shown(after.path(), to), shows);
        let again = wait(restore(after.path(), &options(to), (&mut Cursor::new(&file), &mut |_| ())));
        assert!(matches!(again, Err(MigrateError::Exists(_))));
        assert_eq!(check(after.path(), 8 << 20, &mut |_| ()).unwrap().problems, 0);
    }
}

#[test]
fn a_migrated_store_shows_the_same_and_keeps_the_old_files() {
    for (from, to) in [(Engine::Sled, Engine::Fjall), (Engine::Fjall, Engine::Sled)] {
        let dir = tempfile::tempdir().unwrap();
        let shows = filled(dir.path(), from);
        let wrong = open(dir.path(), &options(to)).map(drop).unwrap_err();
        assert!(wrong.to_string().contains(&format!("tavi store migrate --to {to}")), "{wrong}");
        let mut steps = 0;
        let moved = wait(migrate(dir.path(), &options(to), &mut |_| steps += 1)).unwrap();
        assert!(steps > 0 && moved.kept.exists());
        assert!(moved.copied.entries > 50, "{} entries", moved.copied.entries);
        assert_eq!(engine_of(dir.path()).unwrap(), Some(to));
        assert_eq!(shown(dir.path(), to), shows);
        assert!(matches!(wait(migrate(dir.path(), &options(to), &mut |_| ())), Err(MigrateError::Same(_))));
        // And back, beside the files that were kept.
        wait(migrate(dir.path(), &options(from), &mut |_| ())).unwrap();
        assert_eq!(shown(dir.path(), from), shows);
    }
}

#[test]
fn a_store_that_is_open_is_refused_to_everyone_else() {
    for engine in Engine::ALL {
        let dir = tempfile::tempdir().unwrap();
        let store = reopened(dir.path(), engine);
        let refused = [
            open(dir.path(), &options(engine)).map(drop).unwrap_err(),
            check(dir.path(), 8 << 20, &mut |_| ()).map(drop).unwrap_err(),
        ];
        for error in refused {
            assert!(matches!(&error, OpenError::Locked { .. }) && error.to_string().contains("another process"));
        }
        drop(store);
        reopened(dir.path(), engine);
    }
}

#[test]
fn tools_say_that_there_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(check(dir.path(), 8 << 20, &mut |_| ()), Err(OpenError::Empty { .. })));
    let moved = wait(migrate(dir.path(), &options(Engine::Sled), &mut |_| ()));
    assert!(matches!(moved, Err(MigrateError::Open(OpenError::Empty { .. }))));
}

#[test]
fn however_many_commits_wait_all_land_and_senders_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let few = Options { queue: 8, ..options(Engine::Sled) };
    let store = open(dir.path(), &few).unwrap();
    let push = |id| vec![Op::QueuePush { id, value: Bytes::from_static(b"x") }];
    let mut told = false;
    let commits = (1..=5_000).map(|id| {
        let commit = store.commit(&Owner::topic("t"), push(id));
        told |= !store.has_room();
        commit
    });
    let commits: Vec<_> = commits.collect();
    assert!(told, "5,000 commits went by without a word");
    wait(store.room());
    assert!(commits.into_iter().all(|commit| wait(commit).is_ok()) && store.has_room());
    let stats = store.stats();
    assert_eq!((stats.latency_us.count(), stats.refused, stats.waiting), (5_000, 0, 0));
    let small = Options { queue_bytes: 10_000, ..options(Engine::Sled) };
    drop(store);
    let store = open(dir.path(), &small).unwrap();
    let large = vec![Op::QueuePush { id: 9_999, value: body(1, 20_000) }];
    assert_eq!(wait(store.commit(&Owner::topic("t"), large)), Ok(()));
}

#[test]
fn a_closed_store_has_committed_what_waited_and_takes_no_more() {
    for engine in Engine::ALL {
        let dir = tempfile::tempdir().unwrap();
        let store = reopened(dir.path(), engine);
        let push = |id| vec![Op::QueuePush { id, value: Bytes::from_static(b"x") }];
        let commits: Vec<_> = (1..=500).map(|id| store.commit(&Owner::topic("t"), push(id))).collect();
        store.close();
        assert!(matches!(wait(store.commit(&Owner::topic("t"), push(501))), Err(StoreError::Unavailable(_))));
        assert!(commits.into_iter().all(|commit| wait(commit).is_ok()));
        assert_eq!(wait(store.queue(&Owner::topic("t"), 499, 9)).unwrap().len(), 1);
        drop(store);
        assert_eq!(reopened(dir.path(), engine).last_id(), 500);
    }
}

#[test]
fn damage_that_sled_sees_leaves_a_copy_and_names_the_way_back() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), Engine::Sled);
    let folder = dir.path().join("sled-1");
    fs::write(folder.join("conf"), b"segment_size: what\n").unwrap();
    let error = open(dir.path(), &options(Engine::Sled)).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("tavi store import"));
    assert!(dir.path().join("sled-1.damaged-1/db").exists());
}

#[test]
fn a_torn_batch_at_the_end_of_fjalls_journal_is_dropped_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let owner = Owner::topic("t");
    let pushes =
        |ids: std::ops::Range<u64>| ids.map(|id| Op::QueuePush { id, value: body(id, 300) }).collect::<Vec<_>>();
    let store = reopened(dir.path(), Engine::Fjall);
    wait(store.commit(&owner, pushes(1..100))).unwrap();
    wait(store.commit(&owner, pushes(100..200))).unwrap();
    drop(store);
    // As if the power had gone in the flush of the second batch: one of its pages never came to the disk.
    let journal = dir.path().join("fjall-1/0.jnl");
    let mut bytes = fs::read(&journal).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end - 5_000..end - 4_900].fill(0);
    fs::write(&journal, bytes).unwrap();
    let store = reopened(dir.path(), Engine::Fjall);
    assert_eq!((wait(store.queue(&owner, 0, 1_000)).unwrap().len(), store.last_id()), (99, 99));
    wait(store.commit(&owner, pushes(300..302))).unwrap();
    drop(store);
    let store = reopened(dir.path(), Engine::Fjall);
    assert_eq!(wait(store.queue(&owner, 0, 1_000)).unwrap().len(), 101);
    drop(store);
    assert_eq!(check(dir.path(), 8 << 20, &mut |_| ()).unwrap().problems, 0);
}

/// What a queue holds is counted while it is short and written down when it is long; either way it is true, also of rows
/// that were deleted, queued under their old id again, flushed to tables and read by a new start.
#[test]
fn queues_that_fill_and_empty_leave_nothing_and_their_sizes_are_true() {
    for engine in Engine::ALL {
        let dir = tempfile::tempdir().unwrap();
        let owners: Vec<Owner> = (0..20).map(|n| Owner::account(&format!("{n}@example.org"))).collect();
        let (mut next, mut left) = (1, vec![Vec::new(); owners.len()]);
        for round in 0..6 {
            let store = reopened(dir.path(), engine);
            for (nth, owner) in owners.iter().enumerate() {
                let ids: Vec<u64> = (next..next + 300).collect();
                next += 300;
                let push = |id: &u64| Op::QueuePush { id: *id, value: body(*id, 300) };
                let delete = |id: &u64| Op::QueueDelete { id: *id };
                wait(store.commit(owner, ids.iter().map(push).collect())).unwrap();
                assert_eq!(wait(store.queue_size(owner)).unwrap().rows, (left[nth].len() + 300) as u64);
                wait(store.commit(owner, ids.iter().map(delete).collect())).unwrap();
                let few = &ids[..(round + nth) % 5];
                wait(store.commit(owner, few.iter().map(push).chain(few.iter().map(delete)).collect())).unwrap();
                wait(store.commit(owner, few.iter().map(push).collect())).unwrap();
                left[nth].extend_from_slice(few);
            }
        }
        let store = reopened(dir.path(), engine);
        for (owner, ids) in owners.iter().zip(&left) {
            let rows = wait(store.queue(owner, 0, 1_000)).unwrap();
            assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), *ids, "{engine:?}");
            let size = wait(store.queue_size(owner)).unwrap();
            assert_eq!((size.rows, size.bytes), (ids.len() as u64, 300 * ids.len() as u64));
        }
        drop(store);
        assert_eq!(check(dir.path(), 8 << 20, &mut |_| ()).unwrap().described, Vec::<String>::new());
    }
}
