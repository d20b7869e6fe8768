//! Queued rows that are views of archived stanzas.

use super::*;

fn view(id: u64) -> Op {
    Op::QueueArchived { id }
}

fn rows(store: &SharedStore) -> Vec<(u64, String, bool)> {
    let rows = read(store.queue(&juliet(), 0, 99));
    rows.into_iter().map(|row| (row.id, text(&row.value), row.archived)).collect()
}

fn row(id: u64, value: &str, archived: bool) -> (u64, String, bool) {
    (id, value.into(), archived)
}

fn size(store: &SharedStore) -> (u64, u64) {
    let size = read(store.queue_size(&juliet()));
    (size.rows, size.bytes)
}

/// The row has the stanza's bytes, whatever their number; a view of nothing is ignored.
pub fn a_queued_row_shows_the_archived_stanza(backend: &dyn Backend) {
    for len in [0, 10, 4_087, 4_088, 50_000] {
        let store = backend.fresh();
        let stanza = Op::Archive { id: 5, with: "w".into(), value: body(5, len) };
        must(&store, &juliet(), [stanza.clone(), view(5), push(6, "plain"), view(7)]);
        must(&store, &romeo(), [view(5)]);
        // Its stanza came with an earlier commit.
        must(&store, &juliet(), [archive(8, "w", "spoken")]);
        must(&store, &juliet(), [view(8)]);
        must(&store, &juliet(), [stanza, view(5)]);
        let store = backend.reopen(store);
        let shown = read(store.queue(&juliet(), 0, 9));
        assert_eq!(shown[0], QueueRow { id: 5, value: body(5, len), archived: true, ..QueueRow::default() });
        assert_eq!(rows(&store)[1..], [row(6, "plain", false), row(8, "spoken", true)]);
        assert_eq!(size(&store), (3, len as u64 + 11));
        assert_eq!(read(store.queue(&romeo(), 0, 9)), []);
        let bound = PageBound { rows: 9, bytes: 20_000 };
        assert_eq!(read(store.queue_page(&juliet(), 0, bound)).end, len < 20_000);
        // What is said anew is seen anew.
        must(&store, &juliet(), [archive(5, "w", "corrected"), archive(6, "w", "other")]);
        assert_eq!(rows(&store)[..2], [row(5, "corrected", true), row(6, "plain", false)]);
        assert_eq!(size(&store), (3, 20));
        must(&store, &juliet(), [push(5, "pushed")]);
        must(&store, &juliet(), [archive(5, "w", "again")]);
        assert_eq!(rows(&store)[0], row(5, "pushed", false));
        assert_eq!(store.last_id(), 8);
    }
}

/// A tombstone is nothing to be delivered.
pub fn a_retracted_stanza_leaves_the_queue(backend: &dyn Backend) {
    let store = backend.fresh();
    let retract = |id| Op::Retract { id, tombstone: bytes("gone") };
    let all_in_one = [archive(1, "w", "one"), view(1), retract(1)];
    must(&store, &juliet(), all_in_one);
    must(&store, &juliet(), (2..=5).flat_map(|id| [archive(id, "w", &"m".repeat(id as usize * 2_000)), view(id)]));
    must(&store, &juliet(), [push(6, "q"), archive(6, "w", "six")]);
    let refused = [retract(2), put_if("a", "x", Expect::Version(7))];
    assert!(commit(&store, &juliet(), refused).is_err());
    must(&store, &juliet(), [retract(3), retract(6)]);
    must(&store, &juliet(), [view(3), Op::QueueDelete { id: 3 }]);
    let store = backend.reopen(store);
    let ids = |store: &SharedStore| rows(store).into_iter().map(|(id, ..)| id).collect::<Vec<_>>();
    assert_eq!(ids(&store), [2, 4, 5, 6]);
    assert_eq!(size(&store), (4, 22_001));
    assert_eq!(page(&store, &juliet(), all()), [1, 2, 3, 4, 5, 6]);
    must(&store, &juliet(), [archive(3, "w", "said again"), view(3)]);
    assert_eq!(rows(&store)[1], row(3, "said again", true));
}

/// A message that waits longer than stanzas are archived is delivered all the same.
pub fn an_expired_stanza_stays_queued(backend: &dyn Backend) {
    let store = backend.fresh();
    let lens = [0, 10, 4_087, 4_090, 4_095, 4_096, 30_000];
    for (id, len) in (1..).zip(lens) {
        must(&store, &juliet(), [Op::Archive { id, with: "w".into(), value: body(id, len) }, view(id)]);
    }
    let before = size(&store);
    let mut deleted = 0;
    while deleted < 7 {
        match read(store.expire(8, 2)) {
            0 => break,
            more => deleted += more,
        }
    }
    assert_eq!(deleted, 7);
    assert_eq!(page(&store, &juliet(), all()), []);
    let store = backend.reopen(store);
    assert_eq!(size(&store), before);
    for (row, len) in read(store.queue(&juliet(), 0, 99)).iter().zip(lens) {
        assert!(row.value == body(row.id, len) && !row.archived, "{len} bytes");
    }
    // It is by value now: the archive is nothing to it.
    must(&store, &juliet(), [archive(7, "w", "late"), Op::Retract { id: 7, tombstone: bytes("gone") }]);
    must(&store, &juliet(), [Op::QueueDelete { id: 1 }, Op::QueueAck { upto: 6 }]);
    assert_eq!(size(&store), (1, 30_000));
    must(&store, &juliet(), [Op::QueueAck { upto: 99 }]);
    assert_eq!(size(&store), (0, 0));
}

/// Whoever acknowledges a message still finds it in the archive.
pub fn a_view_is_deleted_and_the_stanza_stays(backend: &dyn Backend) {
    let store = backend.fresh();
    must(&store, &juliet(), (1..=9).flat_map(|id| [archive(id, "w", &"m".repeat(id as usize * 1_000)), view(id)]));
    must(&store, &juliet(), [archive(10, "w", "m"), view(10), Op::QueueDelete { id: 10 }]);
    must(&store, &juliet(), [Op::QueueDelete { id: 9 }]);
    assert_eq!(size(&store), (8, 36_000));
    let store = backend.reopen(store);
    must(&store, &juliet(), [Op::QueueDelete { id: 8 }, Op::QueueAck { upto: 5 }]);
    assert_eq!(size(&store), (2, 13_000));
    assert_eq!(page(&store, &juliet(), all()).len(), 10);
    must(&store, &juliet(), [view(3)]);
    assert_eq!(size(&store), (3, 16_000));
    must(&store, &juliet(), [Op::Purge, view(4)]);
    assert_eq!((rows(&store), size(&store)), (vec![], (0, 0)));
}
