//! What stands in a row: a head of flags and numbers, and a body that is held inside or in chunks.

use crate::{
    keys::Number,
    kv::{Family, MAX_ROW},
};
use bytes::Bytes;
use tavi_store::{QueueSize, StoreError};

const CHUNKED: u8 = 1;
const RETRACTED: u8 = 2;
const SHARED: u8 = 4;
const DELETED: u8 = 8;
const ARCHIVED: u8 = 16;

/// The whole head of a queued row that holds its value inside, and nothing else.
pub(crate) const PLAIN: u8 = 0;

/// Bytes in one chunk.
pub(crate) const CHUNK: usize = MAX_ROW;

/// A row of the families record (`number` = version), archive (`number` = correspondent), queue or body (no number).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub retracted: bool,
    /// Of a record: nothing is there, but what is older than its number is ignored.
    pub deleted: bool,
    pub number: u64,
    /// Of a queued row: the body that it shares.
    pub share: Option<Share>,
    pub body: Body,
}

/// Which shared body a queued row has, and how long that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub id: u64,
    pub len: u32,
}

const SHARE_LEN: usize = 12;

/// Where the bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Inline(Bytes),
    /// In the chunks 0.. of `blob`, `len` bytes in all.
    Chunked {
        blob: Number,
        len: u32,
    },
    /// Of a queued row: it has none, but is a view of the archived stanza with its owner and id, `len` bytes.
    Archived {
        len: u32,
    },
}

/// How long the number of a family's rows is.
fn number_len(family: Family) -> usize {
    if matches!(family, Family::Queue | Family::Body) { 0 } else { 8 }
}

/// How many chunks hold `len` bytes.
pub(crate) fn chunks(len: u32) -> u32 {
    len.div_ceil(CHUNK as u32)
}

/// Whether a row of the family record is the mark of a deletion.
pub(crate) fn is_deleted(family: Family, row: &[u8]) -> bool {
    family == Family::Record && row.first().is_some_and(|flags| flags & DELETED != 0)
}

impl Cell {
    /// A cell with this number, whose body is still to be written.
    pub fn head(number: u64) -> Cell {
        Cell { retracted: false, deleted: false, number, share: None, body: Body::Inline(Bytes::new()) }
    }

    /// Whether it is a view of an archived stanza.
    pub fn is_view(&self) -> bool {
        matches!(self.body, Body::Archived { .. })
    }

    /// Whether a value of `len` bytes fits into the row of the family.
    pub fn fits(&self, family: Family, len: usize) -> bool {
        self.head_len(family) + len <= MAX_ROW
    }

    /// How many bytes are held inside, in chunks and in the shared body.
    pub fn len(&self) -> u64 {
        let own = match &self.body {
            Body::Inline(value) => value.len() as u64,
            Body::Chunked { len, .. } | Body::Archived { len } => u64::from(*len),
        };
        own + self.share.map_or(0, |share| u64::from(share.len))
    }

    fn head_len(&self, family: Family) -> usize {
        1 + number_len(family) + self.share.map_or(0, |_| SHARE_LEN)
    }

    fn flags(&self) -> u8 {
        let chunked = matches!(self.body, Body::Chunked { .. });
        let flags = [(chunked, CHUNKED), (self.retracted, RETRACTED), (self.share.is_some(), SHARED)];
        let flags = flags.into_iter().chain([(self.deleted, DELETED), (self.is_view(), ARCHIVED)]);
        flags.filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag)
    }

    /// The bytes of the row.
    pub fn encode(&self, family: Family) -> Vec<u8> {
        let body_len = match &self.body {
            Body::Inline(value) => value.len(),
            Body::Chunked { .. } => 12,
            Body::Archived { .. } => 4,
        };
        let mut row = Vec::with_capacity(self.head_len(family) + body_len);
        row.push(self.flags());
        row.extend_from_slice(&self.number.to_be_bytes()[..number_len(family)]);
        if let Some(Share { id, len }) = self.share {
            row.extend_from_slice(&id.to_be_bytes());
            row.extend_from_slice(&len.to_be_bytes());
        }
        match &self.body {
            Body::Inline(value) => row.extend_from_slice(value),
            Body::Chunked { blob, len } => {
                row.extend_from_slice(&blob.to_be_bytes());
                row.extend_from_slice(&len.to_be_bytes());
            }
            Body::Archived { len } => row.extend_from_slice(&len.to_be_bytes()),
        }
        row
    }

    /// Reads a row; damaged ones are [`StoreError::Corrupt`].
    pub fn decode(family: Family, row: Vec<u8>) -> Result<Cell, StoreError> {
        let mut rest = Bytes::from(row);
        let flags = take(&mut rest, 1).ok_or_else(|| short(family))?[0];
        if flags & !(CHUNKED | RETRACTED | SHARED | DELETED | ARCHIVED) != 0 {
            return Err(StoreError::Corrupt(format!("unknown flags {flags:#x} in family {}", family.name()).into()));
        }
        let number = be64(&take(&mut rest, number_len(family)).ok_or_else(|| short(family))?);
        let share = match flags & SHARED {
            0 => None,
            _ => take(&mut rest, SHARE_LEN).map(|share| Share { id: be64(&share[..8]), len: be32(&share[8..]) }),
        };
        if flags & SHARED != 0 && share.is_none() {
            return Err(short(family));
        }
        let body = match flags & (CHUNKED | ARCHIVED) {
            0 => Body::Inline(rest),
            CHUNKED if rest.len() == 12 => Body::Chunked { blob: be64(&rest[..8]), len: be32(&rest[8..]) },
            ARCHIVED if family == Family::Queue && rest.len() == 4 => Body::Archived { len: be32(&rest) },
            _ => return Err(short(family)),
        };
        Ok(Cell { retracted: flags & RETRACTED != 0, deleted: flags & DELETED != 0, number, share, body })
    }
}

fn take(rest: &mut Bytes, len: usize) -> Option<Bytes> {
    (rest.len() >= len).then(|| rest.split_to(len))
}

/// The row of the family queue_s.
pub(crate) fn encode_size(size: QueueSize) -> Vec<u8> {
    [size.rows.to_be_bytes(), size.bytes.to_be_bytes()].concat()
}

/// Reads a row of the family queue_s.
pub(crate) fn decode_size(row: &[u8]) -> Result<QueueSize, StoreError> {
    match row.len() {
        16 => Ok(QueueSize { rows: be64(&row[..8]), bytes: be64(&row[8..]) }),
        _ => Err(short(Family::QueueSize)),
    }
}

/// What the inbox says of one conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InboxCell {
    pub last: u64,
    pub unread: u32,
    pub preview: Box<str>,
}

impl InboxCell {
    /// The bytes of the row.
    pub fn encode(&self) -> Vec<u8> {
        [&self.last.to_be_bytes()[..], &self.unread.to_be_bytes(), self.preview.as_bytes()].concat()
    }

    /// Reads a row; damaged ones are [`StoreError::Corrupt`].
    pub fn decode(row: &[u8]) -> Result<InboxCell, StoreError> {
        let (head, preview) = row.split_at_checked(12).ok_or_else(|| short(Family::Inbox))?;
        let preview = std::str::from_utf8(preview).map_err(|_| short(Family::Inbox))?;
        Ok(InboxCell { last: be64(&head[..8]), unread: be32(&head[8..]), preview: preview.into() })
    }
}

/// A row that is one number.
pub(crate) fn number(family: Family, row: &[u8]) -> Result<u64, StoreError> {
    if row.len() == 8 { Ok(be64(row)) } else { Err(short(family)) }
}

fn short(family: Family) -> StoreError {
    StoreError::Corrupt(format!("a row of family {} has a wrong form", family.name()).into())
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_read_as_they_were_written() {
        for family in [Family::Record, Family::Archive, Family::Queue, Family::Body] {
            let number = if number_len(family) == 0 { 0 } else { 77 };
            let inline = Cell { body: Body::Inline(Bytes::from_static(b"hello")), ..Cell::head(number) };
            let chunked = Cell { retracted: true, body: Body::Chunked { blob: 9, len: 20_000 }, ..Cell::head(number) };
            let shared = Cell { share: Some(Share { id: 5, len: 70_000 }), ..chunked.clone() };
            assert_eq!([inline.len(), chunked.len(), shared.len()], [5, 20_000, 90_000]);
            let deleted = Cell { deleted: true, ..Cell::head(number) };
            assert!(family != Family::Record || is_deleted(family, &deleted.encode(family)));
            for cell in [inline, chunked, shared, deleted] {
                assert_eq!(Cell::decode(family, cell.encode(family)), Ok(cell));
            }
        }
        let view = Cell { body: Body::Archived { len: 300 }, ..Cell::head(0) };
        assert_eq!((view.len(), Cell::decode(Family::Queue, view.encode(Family::Queue))), (300, Ok(view)));
        let size = QueueSize { rows: 3, bytes: 1 << 40 };
        assert_eq!(decode_size(&encode_size(size)), Ok(size));
    }

    #[test]
    fn damaged_rows_are_told_from_whole_ones() {
        for row in [vec![], vec![0; 8], vec![CHUNKED; 20], vec![0x80; 9], vec![SHARED; 20], vec![ARCHIVED; 13]] {
            assert!(matches!(Cell::decode(Family::Record, row), Err(StoreError::Corrupt(_))));
        }
        assert!(matches!(Cell::decode(Family::Queue, vec![ARCHIVED; 4]), Err(StoreError::Corrupt(_))));
        assert!(matches!(InboxCell::decode(&[0; 11]), Err(StoreError::Corrupt(_))));
    }

    #[test]
    fn a_value_moves_to_chunks_when_its_row_would_pass_the_limit() {
        let head = Cell::head(0);
        assert!(head.fits(Family::Record, MAX_ROW - 9) && !head.fits(Family::Record, MAX_ROW - 8));
        assert!(head.fits(Family::Queue, MAX_ROW - 1) && !head.fits(Family::Queue, MAX_ROW));
        assert_eq!((chunks(4_096), chunks(4_097), chunks(20_000)), (1, 2, 5));
    }
}
