//! Typed keys: how rows are found, and the bounds of their ranges. All numbers are big-endian, so that bytes sort as
//! numbers do.

use crate::kv::{Key, Span};
use std::ops::Bound;
use tavi_store::Table;

/// The version of this layout, stored under [`SCHEMA`]. 2 added the families body, queue_s and walk; 3 the log of
/// young rows; 4 queued rows that are views of archived stanzas.
pub(crate) const SCHEMA_VERSION: u64 = 4;

/// System row: the version of the layout.
pub(crate) const SCHEMA: &[u8] = b"schema";
/// System row: the next number to be given to a name or a chunked value.
pub(crate) const NEXT: &[u8] = b"next";
/// System row: the greatest id stored so far.
pub(crate) const LAST: &[u8] = b"last";
/// System rows: `dead` and the number of a purged owner whose rows are still to be swept.
pub(crate) const DEAD: &[u8] = b"dead";

/// System rows: `count` and a table's code: how many topics its walk meets.
const COUNT: &[u8] = b"count";

/// System rows: `mark`, the id of a deletion and the key of the record in whose place it left its mark.
const MARK: &[u8] = b"mark";

/// Whether a name is an owner's or a correspondent's: the two never share a number, because an owner's changes when
/// it is purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Owner = 0,
    With = 1,
}

/// Number of an owner, of a correspondent or of a chunked value.
pub(crate) type Number = u64;

pub(crate) fn dead(owner: Number) -> Key {
    join(&[DEAD, &owner.to_be_bytes()])
}

pub(crate) fn mark(id: u64, record: &[u8]) -> Key {
    join(&[MARK, &id.to_be_bytes(), record])
}

/// The id and the record of a mark.
pub(crate) fn marked(key: &[u8]) -> Option<(u64, &[u8])> {
    Some((number_at(key, MARK.len())?, key.get(MARK.len() + 8..)?))
}

pub(crate) fn count(table: Table) -> Key {
    join(&[COUNT, &[table.code()]])
}

pub(crate) fn name(kind: Kind, name: &str) -> Key {
    join(&[&[kind as u8], name.as_bytes()])
}

pub(crate) fn owner(number: Number) -> Key {
    number.to_be_bytes().to_vec()
}

pub(crate) fn record(table: Table, owner: Number, item: &str) -> Key {
    join(&[&[table.code()], &owner.to_be_bytes(), item.as_bytes()])
}

/// A row of the archive or of a queue.
pub(crate) fn dated(owner: Number, id: u64) -> Key {
    pair(owner, id)
}

/// The key of a queue's row as a number, which sorts as the key does.
pub(crate) type Place = u128;

pub(crate) fn place(owner: Number, id: u64) -> Place {
    Place::from(owner) << 64 | Place::from(id)
}

pub(crate) fn archive_with(owner: Number, with: Number, id: u64) -> Key {
    triple(owner, with, id)
}

pub(crate) fn inbox(owner: Number, with: Number) -> Key {
    pair(owner, with)
}

/// Newer conversations sort first.
pub(crate) fn inbox_time(owner: Number, last: u64, with: Number) -> Key {
    triple(owner, !last, with)
}

pub(crate) fn outbox(id: u64, owner: Number) -> Key {
    pair(id, owner)
}

pub(crate) fn chunk(blob: Number, index: u32) -> Key {
    join(&[&blob.to_be_bytes(), &index.to_be_bytes()])
}

/// A shared body.
pub(crate) fn body(id: u64) -> Key {
    join(&[&id.to_be_bytes(), &[1]])
}

/// How many queued rows name a shared body.
pub(crate) fn body_count(id: u64) -> Key {
    join(&[&id.to_be_bytes(), &[0]])
}

/// A topic that a walk through `table` meets.
pub(crate) fn walk(table: Table, topic: &str) -> Key {
    join(&[&[table.code()], topic.as_bytes()])
}

/// The number that stands at `at` of a key, if the key is so long.
pub(crate) fn number_at(key: &[u8], at: usize) -> Option<u64> {
    let bytes = key.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// All keys that begin with `prefix`; the end is the prefix plus one.
pub(crate) fn end_of(prefix: &[u8]) -> Option<Key> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// The span from `from` to before `to`; `None` means to the end of the family.
pub(crate) fn span<'a>(from: &'a [u8], to: Option<&'a [u8]>) -> Span<'a> {
    (Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded))
}

fn pair(a: u64, b: u64) -> Key {
    join(&[&a.to_be_bytes(), &b.to_be_bytes()])
}

fn triple(a: u64, b: u64, c: u64) -> Key {
    join(&[&a.to_be_bytes(), &b.to_be_bytes(), &c.to_be_bytes()])
}

fn join(parts: &[&[u8]]) -> Key {
    let mut key = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_by_owner_then_id() {
        assert!(dated(1, 256) > dated(1, 255));
        assert!(dated(2, 0) > dated(1, u64::MAX));
        assert!(inbox_time(1, 9, 0) < inbox_time(1, 8, 0));
    }

    #[test]
    fn the_end_of_a_prefix_is_above_all_its_keys_and_nothing_else() {
        assert_eq!(end_of(&[1, 0xff]).as_deref(), Some(&[2][..]));
        assert_eq!(end_of(&[0xff, 0xff]), None);
        assert!(record(Table::Bot, 7, "\u{10ffff}") < end_of(&record(Table::Bot, 7, "")).unwrap());
    }

    #[test]
    fn numbers_are_read_back_and_short_keys_are_refused() {
        assert_eq!(number_at(&archive_with(1, 2, 3), 16), Some(3));
        assert_eq!(number_at(&[0; 7], 0), None);
        assert_eq!(number_at(&[0; 8], usize::MAX), None);
    }
}
