//! Queued rows that share a body, and what a queue holds.

use super::*;

fn share(id: u64, head: &str, body: Body) -> Op {
    Op::QueueShare { id, head: bytes(head), body }
}

fn shared_body(id: u64, size: usize) -> Body {
    Body { id, bytes: body(id, size) }
}

fn rows(store: &SharedStore, owner: &Owner) -> Vec<QueueRow> {
    read(store.queue(owner, 0, 99))
}

/// Each row gives its own head and the body, whose bytes count only when they come first.
pub fn rows_share_a_body(backend: &dyn Backend) {
    for size in [0, 10, 4_095, 4_096, 50_000] {
        let store = backend.fresh();
        must(&store, &juliet(), [share(5, "one", shared_body(5, size)), push(6, "plain")]);
        must(&store, &romeo(), [share(7, &"h".repeat(5_000), Body { id: 5, bytes: Bytes::new() })]);
        let store = backend.reopen(store);
        let (hers, his) = (rows(&store, &juliet()), rows(&store, &romeo()));
        assert_eq!((hers.len(), his.len()), (2, 1));
        assert!(hers[0].value == "one" && hers[0].body_id == Some(5) && hers[0].body == Some(body(5, size)));
        assert_eq!(hers[1], QueueRow { id: 6, value: "plain".into(), ..QueueRow::default() });
        assert!(his[0].value.len() == 5_000 && his[0].body == Some(body(5, size)));
        assert_eq!(store.last_id(), 7);
    }
}

/// Deletion, acknowledgement, overwriting and purge leave the others' rows whole; the last row takes the body along.
pub fn a_shared_body_outlives_all_but_its_last_row(backend: &dyn Backend) {
    let store = backend.fresh();
    let owners: Vec<Owner> = (0..5).map(|number| Owner::mqtt("p", &number.to_string())).collect();
    for owner in &owners {
        must(&store, owner, [share(9, "a", shared_body(9, 9_000)), share(10, "b", shared_body(9, 9_000))]);
    }
    must(&store, &owners[0], [Op::QueueDelete { id: 9 }, Op::QueueDelete { id: 10 }]);
    must(&store, &owners[1], [Op::QueueAck { upto: 10 }]);
    must(&store, &owners[2], [push(9, "over"), share(10, "again", shared_body(9, 9_000))]);
    must(&store, &owners[3], [Op::Purge]);
    let store = backend.reopen(store);
    let heads = |owner| rows(&store, owner).into_iter().map(|row| (text(&row.value), row.body)).collect::<Vec<_>>();
    let whole = Some(body(9, 9_000));
    assert_eq!(heads(&owners[2]), [("over".into(), None), ("again".into(), whole.clone())]);
    assert_eq!(heads(&owners[4]), [("a".into(), whole.clone()), ("b".into(), whole)]);
    must(&store, &owners[2], [Op::QueueAck { upto: 99 }]);
    must(&store, &owners[4], [Op::QueueDelete { id: 9 }, Op::QueueDelete { id: 10 }]);
    // The id is free now, so its bytes are taken in anew; a refused commit counts nothing.
    let refused = [share(11, "c", shared_body(12, 20)), put_if("a", "x", Expect::Version(7))];
    assert!(matches!(commit(&store, &owners[0], refused), Err(StoreError::Conflict { .. })));
    must(&store, &owners[0], [share(12, "d", shared_body(12, 30))]);
    assert_eq!(rows(&store, &owners[0])[0].body, Some(body(12, 30)));
}

/// A page ends with the row that fills it, and tells whether more stands behind.
pub fn pages_of_a_queue_are_bounded_in_bytes(backend: &dyn Backend) {
    let store = backend.fresh();
    must(&store, &juliet(), (1..=4).map(|id| share(id, "h", shared_body(1, 20_000))));
    must(&store, &juliet(), (5..=9).map(|id| push(id, "small")));
    let page = |after, rows, bytes| {
        let page = read(store.queue_page(&juliet(), after, PageBound { rows, bytes }));
        (page.rows.iter().map(|row| row.id).collect::<Vec<_>>(), page.end)
    };
    assert_eq!(page(0, 99, 1), (vec![1], false));
    assert_eq!(page(0, 99, 30_000), (vec![1, 2], false));
    assert_eq!(page(2, 2, usize::MAX), (vec![3, 4], false));
    assert_eq!(page(4, 99, 1 << 20), (vec![5, 6, 7, 8, 9], true));
    assert_eq!(page(4, 5, 1 << 20), (vec![5, 6, 7, 8, 9], true));
    assert_eq!(page(9, 5, 1), (vec![], true));
    assert!(read(store.queue_page(&romeo(), 0, PageBound { rows: 9, bytes: 9 })).end);
}

/// Rows and bytes follow every kind of change.
pub fn the_size_of_a_queue_is_known(backend: &dyn Backend) {
    let store = backend.fresh();
    let size = |store: &SharedStore| read(store.queue_size(&juliet()));
    let holds = |rows, bytes| QueueSize { rows, bytes };
    assert_eq!(size(&store), holds(0, 0));
    must(&store, &juliet(), [push(1, "12345"), push(2, &"x".repeat(9_000)), share(3, "head", shared_body(3, 6_000))]);
    must(&store, &romeo(), [share(3, "head", shared_body(3, 6_000))]);
    assert_eq!(size(&store), holds(3, 15_009));
    must(&store, &juliet(), [push(2, "123"), Op::QueueDelete { id: 77 }]);
    assert!(commit(&store, &juliet(), [push(9, "x"), put_if("a", "x", Expect::Version(7))]).is_err());
    assert_eq!(size(&store), holds(3, 6_012));
    let store = backend.reopen(store);
    must(&store, &juliet(), [Op::QueueDelete { id: 3 }]);
    assert_eq!(size(&store), holds(2, 8));
    must(&store, &juliet(), [Op::QueueAck { upto: 1 }]);
    assert_eq!(size(&store), holds(1, 3));
    must(&store, &juliet(), [Op::Purge]);
    assert_eq!(size(&store), holds(0, 0));
    must(&store, &juliet(), [push(20, "1")]);
    assert_eq!(size(&store), holds(1, 1));
}
