//! The walk through topics in the order of their names, and their number.

use super::*;

fn retained(topic: &str, id: u64, size: usize) -> (Owner, Op) {
    let op = Op::PutNewer { table: Table::Retained, item: "".into(), id, value: body(id, size) };
    (Owner::topic(topic), op)
}

fn filled(backend: &dyn Backend) -> SharedStore {
    let store = backend.fresh();
    for (id, topic) in (1..).zip(["b", "a/c", "a", "", "a/b/c", "ä", "a\u{10ffff}", "a/b"]) {
        let (owner, op) = retained(topic, id, if id == 2 { 9_000 } else { 10 });
        must(&store, &owner, [op]);
    }
    // Neither other tables, nor other items, nor owners that are no topics, nor what was deleted.
    must(&store, &Owner::topic("a/item"), [put("x", "x")]);
    let other = Op::Put { table: Table::Retained, item: "x".into(), value: bytes("x"), expect: Expect::Any };
    must(&store, &Owner::topic("a/other"), [other]);
    must(&store, &Owner::account("a"), [retained("", 20, 1).1]);
    must(&store, &Owner::topic("a/gone"), [retained("", 21, 1).1]);
    must(&store, &Owner::topic("a/gone"), [Op::DeleteOlder { table: Table::Retained, item: "".into(), id: 22 }]);
    must(&store, &Owner::topic("a/purged"), [retained("", 23, 1).1]);
    must(&store, &Owner::topic("a/purged"), [Op::Purge]);
    backend.reopen(store)
}

fn walk(store: &SharedStore, names: NameRange<'_>, rows: usize, bytes: usize) -> Vec<String> {
    let met = read(store.walk(Table::Retained, names, PageBound { rows, bytes }));
    met.into_iter().map(|(name, _)| name.into()).collect()
}

/// By prefix, from behind any name, bounded in rows and bytes, each topic with its record.
pub fn topics_are_walked_in_the_order_of_their_names(backend: &dyn Backend) {
    let store = filled(backend);
    let all = ["", "a", "a/b", "a/b/c", "a/c", "a\u{10ffff}", "b", "ä"];
    assert_eq!(walk(&store, NameRange::default(), 99, usize::MAX), all);
    let below = |after| NameRange { prefix: "a/", after };
    assert_eq!(walk(&store, below(None), 99, usize::MAX), all[2..5]);
    assert_eq!(walk(&store, below(Some("a/b")), 1, usize::MAX), ["a/b/c"]);
    assert_eq!(walk(&store, below(Some("a/b/\u{10ffff}")), 9, usize::MAX), ["a/c"]);
    assert_eq!(walk(&store, below(Some("z")), 9, usize::MAX), [""; 0]);
    assert_eq!(walk(&store, NameRange { prefix: "b", after: Some("a") }, 9, usize::MAX), ["b"]);
    assert_eq!(walk(&store, below(None), 9, 1), ["a/b"]);
    assert_eq!(walk(&store, below(None), 9, 25), ["a/b", "a/b/c", "a/c"]);
    let page = read(store.walk(Table::Retained, below(Some("a/b/c")), PageBound { rows: 9, bytes: 9 }));
    assert!(page.len() == 1 && page[0].1 == Record { version: 2, value: body(2, 9_000) });
    assert_eq!(read(store.walk(Table::Node, NameRange::default(), PageBound { rows: 9, bytes: 9 })), []);
}

/// The number follows first writes, deletions and purges.
pub fn walked_topics_are_counted(backend: &dyn Backend) {
    let store = filled(backend);
    let count = |store: &SharedStore| read(store.count(Table::Retained));
    assert_eq!((count(&store), read(store.count(Table::Node))), (8, 0));
    let clear = |id| Op::DeleteOlder { table: Table::Retained, item: "".into(), id };
    must(&store, &Owner::topic("a"), [retained("", 90, 1).1, clear(30), clear(95), clear(96)]);
    must(&store, &Owner::topic("b"), [Op::Purge, retained("", 90, 1).1]);
    let refused = [retained("", 90, 1).1, put_if("a", "x", Expect::Version(7))];
    assert!(commit(&store, &Owner::topic("new"), refused).is_err());
    assert_eq!(count(&store), 7);
    assert_eq!(count(&backend.reopen(store)), 7);
}
