//! Conditional writes by id: the greatest id stands, whatever the order.

use super::*;

fn newer(id: u64, value: &str) -> Op {
    Op::PutNewer { table: Table::Roster, item: "a".into(), id, value: bytes(value) }
}

fn older(id: u64) -> Op {
    Op::DeleteOlder { table: Table::Roster, item: "a".into(), id }
}

/// What comes late is ignored, also behind a deletion, and never refuses the commit that it stands in.
pub fn newer_writes_win_in_whatever_order_they_come(backend: &dyn Backend) {
    let mut store = backend.fresh();
    let now = |store: &SharedStore| record(store, &juliet(), "a");
    let value = |id, text: &str| Some((id, text.to_owned()));
    must(&store, &juliet(), [newer(20, "second")]);
    must(&store, &juliet(), [newer(10, "first"), newer(20, "again"), older(15), older(20), put("b", "x")]);
    assert_eq!(now(&store), value(20, "second"));
    assert_eq!(record(&store, &juliet(), "b"), Some((1, "x".into())));
    must(&store, &juliet(), [older(30)]);
    store = backend.reopen(store);
    must(&store, &juliet(), [newer(25, "late"), newer(30, "late")]);
    assert_eq!(now(&store), None);
    assert_eq!(read(store.list(&juliet(), Table::Roster, None, 1)).len(), 1);
    assert_eq!(read(store.scan(Table::Roster, None, 9)).len(), 1);
    must(&store, &juliet(), [newer(40, &"x".repeat(9_000)), older(35), newer(41, "third")]);
    assert_eq!(now(&store), value(41, "third"));
    // A deletion stands before the first value came, too, and a purge forgets it.
    must(&store, &romeo(), [older(5)]);
    must(&store, &romeo(), [newer(4, "late")]);
    assert_eq!(record(&store, &romeo(), "a"), None);
    assert_eq!(store.last_id(), 41);
    must(&store, &romeo(), [Op::Purge, newer(4, "anew")]);
    assert_eq!(record(&store, &romeo(), "a"), value(4, "anew"));
    // Unconditional writes know nothing of it.
    must(&store, &juliet(), [older(50), put_if("a", "put", Expect::Absent)]);
    assert_eq!(now(&store), value(1, "put"));
    must(&store, &juliet(), [delete_if("a", Expect::Version(1)), newer(2, "last")]);
    assert_eq!(now(&store), value(2, "last"));
}

/// A deletion of one version touches no other one; its mark goes when it is told to, and the topic with it.
pub fn one_version_is_deleted_and_marks_are_forgotten(backend: &dyn Backend) {
    let mut store = backend.fresh();
    let topic = Owner::topic("t");
    let put = |id| Op::PutNewer { table: Table::Retained, item: "".into(), id, value: bytes(&"v".repeat(5_000)) };
    let this = |id| Op::DeleteThis { table: Table::Retained, item: "".into(), id };
    let version = |store: &SharedStore| read(store.load(&topic, Table::Retained, "")).map(|record| record.version);
    must(&store, &topic, [put(20)]);
    assert!(matches!(wait(store.commit(&topic, vec![this(10)])), Err(StoreError::Conflict { .. })));
    must(&store, &topic, [this(20)]);
    assert!(matches!(wait(store.commit(&topic, vec![this(20)])), Err(StoreError::Conflict { .. })));
    assert_eq!((version(&store), wait(store.count(Table::Retained))), (None, Ok(0)));
    must(&store, &topic, [put(15)]);
    assert_eq!(version(&store), None);
    must(&store, &juliet(), [newer(19, "x"), older(25)]);
    must(&store, &romeo(), [newer(19, "x"), older(26), put_if("b", "stays", Expect::Any)]);
    must(&store, &Owner::topic("other"), [put(20), this(20), put_if("b", "stays", Expect::Any)]);
    must(&store, &Owner::topic("again"), [put(20), this(20), put(30)]);
    must(&store, &Owner::topic("purged"), [put(20), this(20), Op::Purge]);
    store = backend.reopen(store);
    assert_eq!(wait(store.forget(20, 9)), Ok(0));
    let steps: usize = std::iter::from_fn(|| Some(read(store.forget(26, 2))).filter(|count| *count > 0)).sum();
    assert!((3..=4).contains(&steps), "{steps}");
    let owners: Vec<_> = read(store.owners(None, 99)).iter().map(|owner| owner.as_str().to_owned()).collect();
    let has = |name: &str| owners.iter().any(|owner| owner == name);
    assert!(!has("t:t") && has("t:other") && has("t:again") && !has("t:purged"), "{owners:?}");
    must(&store, &juliet(), [newer(20, "late")]);
    must(&store, &romeo(), [newer(20, "late")]);
    assert_eq!(record(&store, &juliet(), "a"), Some((20, "late".into())));
    assert_eq!((record(&store, &romeo(), "a"), record(&store, &romeo(), "b")), (None, Some((1, "stays".into()))));
    must(&store, &topic, [put(5)]);
    assert_eq!((version(&store), wait(store.count(Table::Retained))), (Some(5), Ok(2)));
}
