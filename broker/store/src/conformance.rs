//! What every backend must do, as dialogues: a backend's tests run them all with [`conformance_tests!`].
//!
//! The cases panic with what they saw; they are for tests only.

mod archived;
mod newer;
mod sharing;
mod walking;

pub use archived::*;
pub use newer::{newer_writes_win_in_whatever_order_they_come, one_version_is_deleted_and_marks_are_forgotten};
pub use sharing::*;
pub use walking::*;

use crate::*;
use std::{
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

/// How the suite makes stores of one backend.
pub trait Backend {
    /// An empty store.
    fn fresh(&self) -> SharedStore;

    /// Closes `store` and opens it again on the same data. A backend that keeps nothing gives the same store back.
    fn reopen(&self, store: SharedStore) -> SharedStore;
}

/// Makes one `#[test]` of each case of the suite: `conformance_tests!(MyBackend::new())`.
#[macro_export]
macro_rules! conformance_tests {
    ($backend:expr) => {
        $crate::conformance_tests!(@each $backend;
            records_count_their_versions,
            a_conflict_refuses_the_whole_commit,
            operations_of_a_commit_see_those_before_them,
            lists_are_in_key_order_and_bounded,
            a_scan_meets_every_owner_once,
            a_scan_goes_on_behind_a_purged_owner,
            queues_are_in_id_order_and_acknowledged_up_to,
            a_repeated_commit_changes_nothing,
            archives_are_paged_from_both_ends,
            archives_are_paged_by_correspondent,
            a_retracted_stanza_leaves_a_tombstone,
            the_inbox_shows_the_newest_conversation_first,
            the_outbox_keeps_each_owner_of_an_id,
            a_purged_owner_has_nothing_and_begins_anew,
            values_of_any_size_come_back_whole,
            large_values_are_replaced_and_deleted_whole,
            expiry_deletes_old_stanzas_in_bounded_steps,
            the_last_id_outlives_its_row,
            what_cannot_be_stored_is_refused,
            commits_land_in_the_order_of_their_hand_in,
            everything_is_there_after_a_restart,
            rows_share_a_body,
            a_shared_body_outlives_all_but_its_last_row,
            pages_of_a_queue_are_bounded_in_bytes,
            the_size_of_a_queue_is_known,
            newer_writes_win_in_whatever_order_they_come,
            one_version_is_deleted_and_marks_are_forgotten,
            topics_are_walked_in_the_order_of_their_names,
            walked_topics_are_counted,
            a_queued_row_shows_the_archived_stanza,
            a_retracted_stanza_leaves_the_queue,
            an_expired_stanza_stays_queued,
            a_view_is_deleted_and_the_stanza_stays,
            random_commits_do_what_the_memory_store_does,
        );
    };
    (@each $backend:expr; $($case:ident,)*) => {
        $(#[test] fn $case() { $crate::conformance::$case(&$backend) })*
    };
}

/// Waits in this thread until a future is ready.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// What a read gives; no backend may fail one here.
fn read<T>(read: Read<'_, T>) -> T {
    wait(read).unwrap_or_else(|error| panic!("a read failed: {error}"))
}

/// Commits, and waits until it is durable.
fn commit(store: &SharedStore, owner: &Owner, ops: impl IntoIterator<Item = Op>) -> Result<(), StoreError> {
    wait(store.commit(owner, ops.into_iter().collect()))
}

/// As [`commit`], where nothing stands against it.
fn must(store: &SharedStore, owner: &Owner, ops: impl IntoIterator<Item = Op>) {
    assert_eq!(commit(store, owner, ops), Ok(()));
}

fn put(item: &str, value: &str) -> Op {
    put_if(item, value, Expect::Any)
}

fn put_if(item: &str, value: &str, expect: Expect) -> Op {
    Op::Put { table: Table::Roster, item: item.into(), value: bytes(value), expect }
}

fn delete_if(item: &str, expect: Expect) -> Op {
    Op::Delete { table: Table::Roster, item: item.into(), expect }
}

fn push(id: u64, value: &str) -> Op {
    Op::QueuePush { id, value: bytes(value) }
}

fn archive(id: u64, with: &str, value: &str) -> Op {
    Op::Archive { id, with: with.into(), value: bytes(value) }
}

fn inbox(with: &str, last: u64, unread: Option<u32>) -> Op {
    Op::Inbox { with: with.into(), last, unread, preview: format!("message {last}").into() }
}

fn bytes(value: &str) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}

/// Version and text of a record.
fn record(store: &SharedStore, owner: &Owner, item: &str) -> Option<(u64, String)> {
    let record = read(store.load(owner, Table::Roster, item));
    record.map(|record| (record.version, text(&record.value)))
}

fn text(value: &Bytes) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn queue(store: &SharedStore, owner: &Owner, after: u64, limit: usize) -> Vec<(u64, String)> {
    let rows = read(store.queue(owner, after, limit));
    rows.into_iter().map(|row| (row.id, text(&row.value))).collect()
}

/// The ids of a page of an archive.
fn page(store: &SharedStore, owner: &Owner, query: ArchiveQuery) -> Vec<u64> {
    read(store.archive(owner, &query)).into_iter().map(|row| row.id).collect()
}

fn all() -> ArchiveQuery {
    ArchiveQuery { limit: 100, ..ArchiveQuery::default() }
}

fn juliet() -> Owner {
    Owner::account("juliet@example.org")
}

fn romeo() -> Owner {
    Owner::account("romeo@example.net")
}

/// Versions begin at 1, grow with each put, and begin again after a deletion.
pub fn records_count_their_versions(backend: &dyn Backend) {
    let store = backend.fresh();
    assert_eq!(record(&store, &juliet(), "nurse"), None);
    must(&store, &juliet(), [put("nurse", "a")]);
    must(&store, &juliet(), [put("nurse", "b")]);
    assert_eq!(record(&store, &juliet(), "nurse"), Some((2, "b".into())));
    assert_eq!(record(&store, &romeo(), "nurse"), None);
    assert_eq!(wait(store.load(&juliet(), Table::Account, "nurse")), Ok(None));
    must(&store, &juliet(), [delete_if("nurse", Expect::Any), delete_if("nobody", Expect::Any)]);
    assert_eq!(record(&store, &juliet(), "nurse"), None);
    must(&store, &juliet(), [put("nurse", "")]);
    assert_eq!(record(&store, &juliet(), "nurse"), Some((1, "".into())));
    let restored = Op::Restore { table: Table::Roster, item: "old".into(), version: 41, value: bytes("v") };
    must(&store, &juliet(), [restored, put_if("old", "w", Expect::Version(41))]);
    assert_eq!(record(&store, &juliet(), "old"), Some((42, "w".into())));
}

/// A record in another state than expected refuses all operations of its commit.
pub fn a_conflict_refuses_the_whole_commit(backend: &dyn Backend) {
    let store = backend.fresh();
    must(&store, &juliet(), [put_if("nurse", "a", Expect::Absent)]);
    let conflict = Err(StoreError::Conflict { item: "nurse".into() });
    let tries = [
        put_if("nurse", "b", Expect::Absent),
        put_if("nurse", "b", Expect::Version(2)),
        delete_if("nurse", Expect::Version(2)),
        delete_if("nurse", Expect::Absent),
    ];
    for refused in tries {
        let ops = [put("other", "x"), push(5, "x"), archive(6, "w", "x"), inbox("w", 6, Some(1)), refused];
        assert_eq!(commit(&store, &juliet(), ops), conflict);
    }
    let purge = [Op::Purge, put("nurse", "c"), put_if("nurse", "b", Expect::Absent)];
    assert_eq!(commit(&store, &juliet(), purge), conflict);
    assert_eq!(record(&store, &juliet(), "nurse"), Some((1, "a".into())));
    assert_eq!(record(&store, &juliet(), "other"), None);
    assert_eq!(queue(&store, &juliet(), 0, 10), []);
    assert_eq!(page(&store, &juliet(), all()), []);
    assert_eq!(store.last_id(), 0);
    let nobody = Err(StoreError::Conflict { item: "nobody".into() });
    assert_eq!(commit(&store, &romeo(), [delete_if("nobody", Expect::Version(1))]), nobody);
    must(&store, &juliet(), [put_if("nurse", "b", Expect::Version(1)), inbox("w", 7, Some(1))]);
    must(&store, &juliet(), [delete_if("nurse", Expect::Version(2)), delete_if("nurse", Expect::Absent)]);
    assert_eq!(wait(store.inbox(&juliet(), None, 9)).map(|rows| rows[0].unread), Ok(1));
}

/// Inside a commit, each operation stands on those before it.
pub fn operations_of_a_commit_see_those_before_them(backend: &dyn Backend) {
    let store = backend.fresh();
    let ops = [
        put_if("a", "1", Expect::Absent),
        put_if("a", "2", Expect::Version(1)),
        delete_if("a", Expect::Version(2)),
        put_if("a", "3", Expect::Absent),
        push(1, "one"),
        push(2, "two"),
        push(3, "three"),
        Op::QueueAck { upto: 2 },
        archive(4, "w", "spoken"),
        Op::Retract { id: 4, tombstone: bytes("gone") },
    ];
    must(&store, &juliet(), ops);
    assert_eq!(record(&store, &juliet(), "a"), Some((1, "3".into())));
    assert_eq!(queue(&store, &juliet(), 0, 10), [(3, "three".into())]);
    let rows = read(store.archive(&juliet(), &all()));
    assert!(rows[0].retracted && rows[0].value == "gone");
}

/// `list` gives one table of one owner, in the order of its keys' bytes.
pub fn lists_are_in_key_order_and_bounded(backend: &dyn Backend) {
    let store = backend.fresh();
    must(&store, &juliet(), ["b", "", "a\0c", "ä", "a"].map(|item| put(item, item)));
    must(&store, &romeo(), [put("c", "c")]);
    let account = Op::Put { table: Table::Account, item: "x".into(), value: bytes("x"), expect: Expect::Any };
    must(&store, &juliet(), [account]);
    let list = |after: Option<&str>, limit| {
        let rows = read(store.list(&juliet(), Table::Roster, after, limit));
        rows.into_iter().map(|(item, record)| (item.into(), text(&record.value))).collect::<Vec<(String, String)>>()
    };
    let expected = ["", "a", "a\0c", "b", "ä"].map(|item| (item.to_owned(), item.to_owned()));
    assert_eq!(list(None, 9), expected);
    assert_eq!(list(None, 2), expected[..2]);
    assert_eq!(list(Some("a"), 2), expected[2..4]);
    assert_eq!(list(Some("ä"), 2), []);
    assert_eq!(list(None, 0), []);
}

/// A walk through a table in pages of two sees each record of each owner once.
pub fn a_scan_meets_every_owner_once(backend: &dyn Backend) {
    let store = backend.fresh();
    for number in 0..7 {
        let owner = Owner::topic(&format!("d/{number}"));
        must(&store, &owner, (0..number).map(|item| put(&item.to_string(), "x")));
    }
    let mut met: Vec<Row> = Vec::new();
    loop {
        let after = met.last().map(|row| (&row.owner, &*row.item));
        let rows = read(store.scan(Table::Roster, after, 2));
        if rows.is_empty() {
            break;
        }
        met.extend(rows);
    }
    let mut names: Vec<String> = met.iter().map(|row| format!("{} {}", row.owner.name(), row.item)).collect();
    names.sort();
    names.dedup();
    assert_eq!((met.len(), names.len()), (21, 21));
    assert_eq!(wait(store.scan(Table::Bot, None, 9)), Ok(vec![]));
}

/// Whoever deletes owners while walking through them misses none.
pub fn a_scan_goes_on_behind_a_purged_owner(backend: &dyn Backend) {
    let store = backend.fresh();
    for number in 0..9 {
        must(&store, &Owner::topic(&number.to_string()), [put("", "x")]);
    }
    let mut met = Vec::new();
    while let Some(row) = read(store.scan(Table::Roster, met.last().map(|owner| (owner, "")), 1)).pop() {
        must(&store, &row.owner, [Op::Purge]);
        met.push(row.owner);
    }
    assert_eq!(met.len(), 9);
    assert_eq!(wait(store.scan(Table::Roster, None, 9)), Ok(vec![]));
}

/// Rows of a queue come in id order, whatever the order of their pushes, until they are acknowledged.
pub fn queues_are_in_id_order_and_acknowledged_up_to(backend: &dyn Backend) {
    let store = backend.fresh();
    must(&store, &juliet(), [push(30, "c"), push(10, "a")]);
    must(&store, &juliet(), [push(20, "b"), push(u64::MAX, "z")]);
    must(&store, &romeo(), [push(15, "other")]);
    let row = |id, value: &str| (id, value.to_owned());
    assert_eq!(queue(&store, &juliet(), 0, 2), [row(10, "a"), row(20, "b")]);
    assert_eq!(queue(&store, &juliet(), 20, 9), [row(30, "c"), row(u64::MAX, "z")]);
    assert_eq!(queue(&store, &juliet(), u64::MAX, 9), []);
    must(&store, &juliet(), [Op::QueueDelete { id: 10 }, Op::QueueDelete { id: 11 }]);
    must(&store, &juliet(), [Op::QueueAck { upto: 30 }]);
    assert_eq!(queue(&store, &juliet(), 0, 9), [row(u64::MAX, "z")]);
    must(&store, &juliet(), [Op::QueueAck { upto: u64::MAX }]);
    assert_eq!(queue(&store, &juliet(), 0, 9), []);
    assert_eq!(queue(&store, &romeo(), 0, 9), [row(15, "other")]);
    must(&store, &Owner::topic("never seen"), [Op::QueueAck { upto: 9 }, Op::QueueDelete { id: 9 }]);
}

/// Ids are the caller's, so what is handed in twice stands there once.
pub fn a_repeated_commit_changes_nothing(backend: &dyn Backend) {
    let store = backend.fresh();
    for _ in 0..2 {
        must(&store, &juliet(), [push(7, "m"), archive(7, "w", "m"), inbox("w", 7, Some(1)), Op::Outbox { id: 7 }]);
    }
    assert_eq!(queue(&store, &juliet(), 0, 9), [(7, "m".into())]);
    assert_eq!(page(&store, &juliet(), all()), [7]);
    assert_eq!(wait(store.inbox(&juliet(), None, 9)).map(|rows| (rows.len(), rows[0].unread)), Ok((1, 1)));
    assert_eq!(wait(store.outbox(0, 9)).map(|rows| rows.len()), Ok(1));
    must(&store, &juliet(), [archive(7, "v", "n")]);
    assert_eq!(page(&store, &juliet(), ArchiveQuery { with: Some("w".into()), ..all() }), []);
    assert_eq!(page(&store, &juliet(), ArchiveQuery { with: Some("v".into()), ..all() }), [7]);
}

/// Both ends, both bounds, always in ascending order.
pub fn archives_are_paged_from_both_ends(backend: &dyn Backend) {
    let store = backend.fresh();
    must(&store, &juliet(), (1..=10).map(|id| archive(id * 10, "w", "m")));
    must(&store, &romeo(), [archive(55, "w", "other")]);
    let page = |after, before, newest, limit| {
        page(&store, &juliet(), ArchiveQuery { with: None, after, before, newest, limit })
    };
    assert_eq!(page(None, None, false, 3), [10, 20, 30]);
    assert_eq!(page(None, None, true, 3), [80, 90, 100]);
    assert_eq!(page(Some(30), None, false, 2), [40, 50]);
    assert_eq!(page(None, Some(80), true, 2), [60, 70]);
    assert_eq!(page(Some(20), Some(50), false, 9), [30, 40]);
    assert_eq!(page(Some(20), Some(50), true, 9), [30, 40]);
    for nothing in
        [(Some(100), None), (None, Some(10)), (Some(40), Some(50)), (Some(50), Some(20)), (Some(u64::MAX), None)]
    {
        assert_eq!(page(nothing.0, nothing.1, false, 9), []);
        assert_eq!(page(nothing.0, nothing.1, true, 9), []);
    }
    assert_eq!(page(None, None, true, 0), []);
}

/// The index by correspondent pages as the archive does.
pub fn archives_are_paged_by_correspondent(backend: &dyn Backend) {
    let store = backend.fresh();
    let with = |id: u64| if id.is_multiple_of(2) { "even@example.org" } else { "odd@example.org" };
    must(&store, &juliet(), (1..=20).map(|id| archive(id, with(id), "m")));
    must(&store, &romeo(), [archive(30, "even@example.org", "other")]);
    let page = |with: &str, after, before, newest| {
        page(&store, &juliet(), ArchiveQuery { with: Some(with.into()), after, before, newest, limit: 3 })
    };
    assert_eq!(page("even@example.org", None, None, false), [2, 4, 6]);
    assert_eq!(page("even@example.org", None, None, true), [16, 18, 20]);
    assert_eq!(page("odd@example.org", Some(5), None, false), [7, 9, 11]);
    assert_eq!(page("odd@example.org", Some(5), Some(9), true), [7]);
    assert_eq!(page("nobody@example.org", None, None, true), []);
    let rows = read(store.archive(&juliet(), &ArchiveQuery { limit: 2, ..all() }));
    assert_eq!((&*rows[0].with, &*rows[1].with), ("odd@example.org", "even@example.org"));
}

/// A tombstone takes the stanza's place and keeps its correspondent.
pub fn a_retracted_stanza_leaves_a_tombstone(backend: &dyn Backend) {
    let store = backend.fresh();
    must(&store, &juliet(), [archive(1, "w", &"long ".repeat(2_000)), archive(2, "w", "kept")]);
    let tombstone = |id| Op::Retract { id, tombstone: bytes("gone") };
    must(&store, &juliet(), [tombstone(1), tombstone(9)]);
    must(&store, &romeo(), [tombstone(2)]);
    let rows = read(store.archive(&juliet(), &ArchiveQuery { with: Some("w".into()), ..all() }));
    assert_eq!(rows.len(), 2);
    assert!(rows[0].retracted && rows[0].value == "gone" && &*rows[0].with == "w");
    assert!(!rows[1].retracted && rows[1].value == "kept");
}

/// Conversations move up with each message, count what is unread, and keep the beginning of the newest.
pub fn the_inbox_shows_the_newest_conversation_first(backend: &dyn Backend) {
    let store = backend.fresh();
    must(&store, &juliet(), [inbox("nurse", 1, Some(1)), inbox("romeo", 2, Some(1)), inbox("paris", 3, Some(1))]);
    must(&store, &juliet(), [inbox("nurse", 4, Some(2))]);
    must(&store, &romeo(), [inbox("juliet", 9, Some(1))]);
    let inbox_page = |before, limit| {
        let rows = read(store.inbox(&juliet(), before, limit));
        rows.into_iter().map(|row| (row.with.into(), row.last, row.unread)).collect::<Vec<(String, u64, u32)>>()
    };
    let row = |with: &str, last, unread| (with.to_owned(), last, unread);
    assert_eq!(inbox_page(None, 9), [row("nurse", 4, 3), row("paris", 3, 1), row("romeo", 2, 1)]);
    assert_eq!(inbox_page(Some(4), 1), [row("paris", 3, 1)]);
    assert_eq!(inbox_page(Some(2), 9), []);
    // Read, without a newer message; then an older message comes late.
    must(&store, &juliet(), [inbox("nurse", 4, None)]);
    must(&store, &juliet(), [inbox("paris", 2, Some(1))]);
    assert_eq!(inbox_page(None, 2), [row("nurse", 4, 0), row("paris", 3, 2)]);
    let long = Op::Inbox { with: "nurse".into(), last: 5, unread: Some(1), preview: "ä".repeat(200).into() };
    must(&store, &juliet(), [long]);
    assert_eq!(wait(store.inbox(&juliet(), None, 1)).map(|rows| rows[0].preview.clone()), Ok("ä".repeat(128).into()));
}

/// Outbox rows are an owner's own, even under one id.
pub fn the_outbox_keeps_each_owner_of_an_id(backend: &dyn Backend) {
    let store = backend.fresh();
    must(&store, &juliet(), [Op::Outbox { id: 5 }, Op::Outbox { id: 6 }]);
    must(&store, &romeo(), [Op::Outbox { id: 5 }]);
    let outbox = |after, limit| {
        let mut rows = read(store.outbox(after, limit));
        rows.sort();
        rows
    };
    assert_eq!(outbox(0, 9), [(5, juliet()), (5, romeo()), (6, juliet())]);
    assert_eq!(outbox(5, 9), [(6, juliet())]);
    assert_eq!(outbox(0, 2), [(5, juliet()), (5, romeo())]);
    must(&store, &juliet(), [Op::OutboxDelete { id: 5 }, Op::OutboxDelete { id: 77 }]);
    must(&store, &Owner::topic("never seen"), [Op::OutboxDelete { id: 6 }]);
    assert_eq!(outbox(0, 9), [(5, romeo()), (6, juliet())]);
}

/// A purge takes everything of one owner, and what the same commit does behind it stands.
pub fn a_purged_owner_has_nothing_and_begins_anew(backend: &dyn Backend) {
    let store = backend.fresh();
    let fill = || [put("a", "1"), push(1, "q"), archive(2, "w", "m"), inbox("w", 2, Some(1)), Op::Outbox { id: 2 }];
    must(&store, &juliet(), fill());
    must(&store, &romeo(), fill());
    must(&store, &juliet(), [put("b", "2"), Op::Purge]);
    assert_eq!(record(&store, &juliet(), "a"), None);
    assert_eq!(record(&store, &juliet(), "b"), None);
    assert_eq!(queue(&store, &juliet(), 0, 9), []);
    assert_eq!(page(&store, &juliet(), all()), []);
    assert_eq!(wait(store.inbox(&juliet(), None, 9)), Ok(vec![]));
    assert_eq!(wait(store.outbox(0, 9)), Ok(vec![(2, romeo())]));
    assert_eq!(wait(store.owners(None, 9)), Ok(vec![romeo()]));
    assert_eq!(record(&store, &romeo(), "a"), Some((1, "1".into())));
    must(&store, &juliet(), fill());
    must(&store, &juliet(), [Op::Purge, put_if("a", "3", Expect::Absent), push(3, "new")]);
    assert_eq!(record(&store, &juliet(), "a"), Some((1, "3".into())));
    assert_eq!(queue(&store, &juliet(), 0, 9), [(3, "new".into())]);
    assert_eq!(page(&store, &juliet(), all()), []);
    must(&store, &Owner::topic("never seen"), [Op::Purge]);
}

/// Sizes round the limits of rows and chunks, and far above them.
pub fn values_of_any_size_come_back_whole(backend: &dyn Backend) {
    let store = backend.fresh();
    let sizes = [0, 1, 4_086, 4_087, 4_088, 4_095, 4_096, 4_097, 8_192, 8_193, 20_000, 1 << 20];
    for (id, size) in (1..).zip(sizes) {
        let value = body(id, size);
        let (item, with) = (size.to_string().into(), "w".into());
        let ops = [
            Op::Put { table: Table::Retained, item, value: value.clone(), expect: Expect::Any },
            Op::QueuePush { id, value: value.clone() },
            Op::Archive { id, with, value },
        ];
        must(&store, &juliet(), ops);
    }
    let store = backend.reopen(store);
    let queued = read(store.queue(&juliet(), 0, 99));
    let archived = read(store.archive(&juliet(), &all()));
    for (index, size) in sizes.into_iter().enumerate() {
        let value = body(index as u64 + 1, size);
        let record = read(store.load(&juliet(), Table::Retained, &size.to_string()));
        assert!(record.is_some_and(|record| record.value == value), "{size} bytes in a record");
        assert!(queued[index].value == value, "{size} bytes in a queue");
        assert!(archived[index].value == value, "{size} bytes in an archive");
    }
}

/// A value that is recognised: its bytes depend on `id` and on their place.
pub fn body(id: u64, size: usize) -> Bytes {
    let mut body = Vec::with_capacity(size + 8);
    let mut word = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while body.len() < size {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(id);
        body.extend_from_slice(&word.to_be_bytes());
    }
    body.truncate(size);
    body.into()
}

/// A large value leaves nothing of itself in a smaller one that follows, nor the other way round.
pub fn large_values_are_replaced_and_deleted_whole(backend: &dyn Backend) {
    let store = backend.fresh();
    for (id, size) in [(1, 20_000), (2, 5), (3, 9_000), (4, 30_000)] {
        let value = body(id, size);
        let ops = [
            Op::Put { table: Table::Roster, item: "a".into(), value: value.clone(), expect: Expect::Any },
            Op::QueuePush { id: 1, value },
        ];
        must(&store, &juliet(), ops);
        let record = read(store.load(&juliet(), Table::Roster, "a"));
        assert!(record.is_some_and(|record| record.value == body(id, size)));
        let rows = read(store.queue(&juliet(), 0, 9));
        assert!(rows.len() == 1 && rows[0].value == body(id, size));
    }
    must(&store, &juliet(), [delete_if("a", Expect::Version(4)), Op::QueueAck { upto: 1 }]);
    let store = backend.reopen(store);
    assert_eq!(record(&store, &juliet(), "a"), None);
    assert_eq!(queue(&store, &juliet(), 0, 9), []);
}

/// Expiry walks through all owners, however many rows a step may delete.
pub fn expiry_deletes_old_stanzas_in_bounded_steps(backend: &dyn Backend) {
    let store = backend.fresh();
    let owners = [juliet(), romeo(), Owner::account("nurse@example.org")];
    for owner in &owners {
        must(&store, owner, (1..=10).map(|id| archive(id, "w", &"m".repeat(id as usize * 1_000))));
    }
    assert_eq!(wait(store.expire(1, 9)), Ok(0));
    let mut steps = Vec::new();
    loop {
        match read(store.expire(6, 4)) {
            0 => break,
            deleted => steps.push(deleted),
        }
    }
    assert!(steps.iter().all(|step| *step <= 4), "{steps:?}");
    assert_eq!(steps.iter().sum::<usize>(), 15);
    for owner in &owners {
        assert_eq!(page(&store, owner, all()), [6, 7, 8, 9, 10]);
        assert_eq!(page(&store, owner, ArchiveQuery { with: Some("w".into()), ..all() }), [6, 7, 8, 9, 10]);
    }
    must(&store, &juliet(), [archive(2, "w", "late")]);
    assert_eq!(wait(store.expire(6, 100)), Ok(1));
}

/// An id that was stored once is never drawn again, though its row is gone.
pub fn the_last_id_outlives_its_row(backend: &dyn Backend) {
    let store = backend.fresh();
    assert_eq!(store.last_id(), 0);
    must(&store, &juliet(), [push(90, "x")]);
    must(&store, &juliet(), [push(80, "x"), Op::QueueAck { upto: 90 }]);
    assert_eq!(store.last_id(), 90);
    let store = backend.reopen(store);
    assert_eq!(store.last_id(), 90);
    must(&store, &juliet(), [Op::Drawn { id: 95 }]);
    must(&store, &juliet(), [archive(91, "w", "x"), Op::Purge]);
    assert_eq!(store.last_id(), 95);
    must(&store, &juliet(), [Op::Outbox { id: 97 }]);
    assert_eq!(backend.reopen(store).last_id(), 97);
}

/// Keys that are too long and ids that no read would find.
pub fn what_cannot_be_stored_is_refused(backend: &dyn Backend) {
    let store = backend.fresh();
    let long = "x".repeat(5_000);
    let refused =
        [put(&long, "x"), delete_if(&long, Expect::Any), push(0, "x"), archive(0, "w", "x"), archive(1, &long, "x")];
    for op in refused {
        assert!(matches!(commit(&store, &juliet(), [put("a", "x"), op]), Err(StoreError::Invalid(_))));
    }
    assert!(matches!(commit(&store, &Owner::account(&long), [put("a", "x")]), Err(StoreError::Invalid(_))));
    assert_eq!(record(&store, &juliet(), "a"), None);
    must(&store, &Owner::account(&"o".repeat(4_093)), [put(&"i".repeat(2_048), "x")]);
    must(&store, &juliet(), []);
}

/// Handed in without waiting, commits of one caller are applied in that order.
pub fn commits_land_in_the_order_of_their_hand_in(backend: &dyn Backend) {
    let store = backend.fresh();
    let commits: Vec<Commit> = (0..2_000u64)
        .map(|number| {
            let expect = if number == 0 { Expect::Absent } else { Expect::Version(number) };
            store.commit(&juliet(), vec![put_if("counter", &number.to_string(), expect), push(number + 1, "x")])
        })
        .collect();
    for commit in commits {
        assert_eq!(wait(commit), Ok(()));
    }
    assert_eq!(record(&store, &juliet(), "counter"), Some((2_000, "1999".into())));
    assert_eq!(queue(&store, &juliet(), 1_995, 9).len(), 5);
}

/// All kinds of rows, before and after.
pub fn everything_is_there_after_a_restart(backend: &dyn Backend) {
    let store = backend.fresh();
    fill(&store, 300);
    let before = dump(&store);
    let store = backend.reopen(store);
    assert_eq!(dump(&store), before);
    must(&store, &juliet(), [put("later", "x")]);
    assert!(before.len() > 2_000, "the commits left little to compare:\n{before}");
}

/// The memory store is the plainest statement of what a backend must do: 1,500 random commits, compared by all reads.
pub fn random_commits_do_what_the_memory_store_does(backend: &dyn Backend) {
    let mut store = backend.fresh();
    let model: SharedStore = Arc::new(MemoryStore::default());
    let mut random = Random(42);
    for round in 0..15 {
        let mut pending = Vec::new();
        for _ in 0..100 {
            let (owner, ops) = random.commit();
            let expected = commit(&model, &owner, ops.clone());
            pending.push((store.commit(&owner, ops), expected));
        }
        for (commit, expected) in pending {
            assert_eq!(wait(commit), expected);
        }
        if round % 3 == 2 {
            let before = 1 + random.below(15);
            // How many there were may differ: rows of purged owners are swept when there is time.
            read(store.expire(before, 1_000));
            read(model.expire(before, 1_000));
        }
        let (shown, expected) = (dump(&store), dump(&model));
        let differs = shown.lines().zip(expected.lines()).find(|(shown, expected)| shown != expected);
        let cut = |line: &str| line.chars().take(200).collect::<String>();
        let differs = differs.map(|(shown, expected)| (cut(shown), cut(expected)));
        assert!(shown == expected, "round {round}: {differs:?}");
        if round % 5 == 4 {
            store = backend.reopen(store);
        }
    }
}

/// Random commits of all kinds, always the same ones; conflicts are among them.
pub fn fill(store: &SharedStore, commits: usize) {
    let mut random = Random(7);
    for _ in 0..commits {
        let (owner, ops) = random.commit();
        let _ = commit(store, &owner, ops);
    }
}

/// Everything that a store shows, as text, with owners in the order of their names.
pub fn dump(store: &SharedStore) -> String {
    let mut out = format!("last {}\n", store.last_id());
    let mut owners = read(store.owners(None, limits::MAX_PAGE));
    owners.sort();
    for owner in owners {
        let rows = dump_owner(store, &owner);
        if !rows.is_empty() {
            out += &format!("{owner:?}\n{rows}\n");
        }
    }
    for table in Table::WALKED {
        let bound = PageBound { rows: limits::MAX_PAGE, bytes: usize::MAX };
        let names = read(store.walk(table, NameRange::default(), bound));
        let names: Vec<_> = names.into_iter().map(|(name, record)| (name, record.version)).collect();
        out += &format!("{table:?} {} {names:?}\n", read(store.count(table)));
    }
    let mut outbox = read(store.outbox(0, limits::MAX_PAGE));
    outbox.sort();
    out + &format!("outbox {outbox:?}")
}

fn dump_owner(store: &SharedStore, owner: &Owner) -> String {
    let mut out = String::new();
    let mut line = |row: &dyn std::fmt::Debug| out += &format!("  {row:?}\n");
    for table in Table::ALL {
        for row in read(store.list(owner, table, None, limits::MAX_PAGE)) {
            line(&(table, row));
        }
    }
    let queued = read(store.queue(owner, 0, limits::MAX_PAGE));
    queued.iter().for_each(|row| line(row));
    if !queued.is_empty() {
        line(&read(store.queue_size(owner)));
    }
    let mut conversations = read(store.inbox(owner, None, limits::MAX_PAGE));
    // Two of the same moment come in an order of the backend's choice.
    conversations.sort_by(|a, b| (b.last, &a.with).cmp(&(a.last, &b.with)));
    conversations.iter().for_each(|row| line(row));
    let archived = read(store.archive(owner, &ArchiveQuery { limit: limits::MAX_PAGE, ..all() }));
    archived.iter().for_each(|row| line(row));
    for with in ["a", "b", "c"] {
        line(&(with, page(store, owner, ArchiveQuery { with: Some(with.into()), newest: true, limit: 3, ..all() })));
    }
    if archived.is_empty() && out.lines().count() == 3 { String::new() } else { out }
}

/// A small generator of commits (xorshift): few owners and keys, so that they meet often.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn commit(&mut self) -> (Owner, Vec<Op>) {
        let owner = Owner::topic(&format!("t/{}", self.below(5)));
        let count = 1 + self.below(6);
        (owner, (0..count).map(|_| self.op()).collect())
    }

    fn op(&mut self) -> Op {
        let id = 1 + self.below(30);
        let with: Box<str> = ["a", "b", "c"][self.below(3) as usize].into();
        match self.below(52) {
            0..10 => self.put(),
            10..13 => self.delete(),
            13..18 => Op::QueuePush { id, value: self.value() },
            18..20 => Op::QueueDelete { id },
            20 => Op::QueueAck { upto: id },
            21..27 => Op::Archive { id, with, value: self.value() },
            27..29 => Op::Retract { id, tombstone: self.value() },
            29..35 => Op::Inbox { with, last: self.below(1_000) + 1, unread: Some(1), preview: "p".into() },
            35 => Op::Inbox { with, last: self.below(1_000) + 1, unread: None, preview: "q".into() },
            36 => Op::Outbox { id },
            37 => Op::OutboxDelete { id },
            38 => Op::Drawn { id },
            39..43 => self.share(id),
            43..46 => self.put_newer(),
            46 => self.delete_older(),
            47 => Op::Purge,
            _ => Op::QueueArchived { id },
        }
    }

    fn put(&mut self) -> Op {
        let (table, item) = self.place();
        Op::Put { table, item, value: self.value(), expect: self.expectation() }
    }

    /// Few bodies, the content of each always the same.
    fn share(&mut self, id: u64) -> Op {
        let body = 1 + self.below(4);
        let bytes = self::body(body, [0, 100, 5_000, 12_000][body as usize - 1]);
        Op::QueueShare { id, head: self.value(), body: Body { id: body, bytes } }
    }

    fn put_newer(&mut self) -> Op {
        let (table, item) = self.place();
        Op::PutNewer { table, item, id: 1 + self.below(30), value: self.value() }
    }

    fn delete_older(&mut self) -> Op {
        let (table, item) = self.place();
        Op::DeleteOlder { table, item, id: 1 + self.below(30) }
    }

    fn delete(&mut self) -> Op {
        let (table, item) = self.place();
        Op::Delete { table, item, expect: self.expectation() }
    }

    fn place(&mut self) -> (Table, Box<str>) {
        match self.below(3) {
            0 => (Table::Retained, "".into()),
            table => ([Table::Item, Table::Session][table as usize - 1], self.below(4).to_string().into()),
        }
    }

    fn expectation(&mut self) -> Expect {
        match self.below(12) {
            0 => Expect::Absent,
            1 => Expect::Version(1 + self.below(3)),
            _ => Expect::Any,
        }
    }

    fn value(&mut self) -> Bytes {
        let size = [0, 3, 40, 300, 5_000, 12_000][self.below(6) as usize];
        body(self.0, size)
    }
}
