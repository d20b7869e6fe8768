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
