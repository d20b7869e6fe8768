//! What stands in a row: a head of flags and numbers, and a body that is held inside or in chunks.

use crate::{
    keys::Number,
    kv::{Family, MAX_ROW},
};
use bytes::Bytes;
use tavi_store::StoreError;

const CHUNKED: u8 = 1;
const RETRACTED: u8 = 2;

/// Bytes in one chunk.
pub(crate) const CHUNK: usize = MAX_ROW;

/// A row of the families record (`number` = version), archive (`number` = correspondent) or queue (no number).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub retracted: bool,
    pub number: u64,
    pub body: Body,
}

/// Where the bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Inline(Bytes),
    /// In the chunks 0.. of `blob`, `len` bytes in all.
    Chunked {
        blob: Number,
        len: u32,
    },
}

/// How long the number of a family's rows is.
fn number_len(family: Family) -> usize {
    if family == Family::Queue { 0 } else { 8 }
}

/// Whether a value of `len` bytes fits into a row of the family.
pub(crate) fn fits(family: Family, len: usize) -> bool {
    1 + number_len(family) + len <= MAX_ROW
}

/// How many chunks hold `len` bytes.
pub(crate) fn chunks(len: u32) -> u32 {
    len.div_ceil(CHUNK as u32)
}

impl Cell {
    /// The bytes of the row.
    pub fn encode(&self, family: Family) -> Vec<u8> {
        let (chunked, body_len) = match &self.body {
            Body::Inline(value) => (0, value.len()),
            Body::Chunked { .. } => (CHUNKED, 12),
        };
        let mut row = Vec::with_capacity(1 + number_len(family) + body_len);
        row.push(chunked | if self.retracted { RETRACTED } else { 0 });
        row.extend_from_slice(&self.number.to_be_bytes()[..number_len(family)]);
        match &self.body {
            Body::Inline(value) => row.extend_from_slice(value),
            Body::Chunked { blob, len } => {
                row.extend_from_slice(&blob.to_be_bytes());
                row.extend_from_slice(&len.to_be_bytes());
            }
        }
        row
    }

    /// Reads a row; damaged ones are [`StoreError::Corrupt`].
    pub fn decode(family: Family, row: Vec<u8>) -> Result<Cell, StoreError> {
        let row = Bytes::from(row);
        let at = 1 + number_len(family);
        let flags = *row.first().filter(|_| row.len() >= at).ok_or_else(|| short(family))?;
        let number = if at == 1 { 0 } else { be64(&row[1..9]) };
        let body = match flags & CHUNKED {
            0 => Body::Inline(row.slice(at..)),
            _ if row.len() == at + 12 => Body::Chunked { blob: be64(&row[at..at + 8]), len: be32(&row[at + 8..]) },
            _ => return Err(short(family)),
        };
        if flags & !(CHUNKED | RETRACTED) != 0 {
            return Err(StoreError::Corrupt(format!("unknown flags {flags:#x} in family {}", family.name()).into()));
        }
        Ok(Cell { retracted: flags & RETRACTED != 0, number, body })
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
        for family in [Family::Record, Family::Archive, Family::Queue] {
            let number = if family == Family::Queue { 0 } else { 77 };
            let inline = Cell { retracted: false, number, body: Body::Inline(Bytes::from_static(b"hello")) };
            let chunked = Cell { retracted: true, number, body: Body::Chunked { blob: 9, len: 20_000 } };
            for cell in [inline, chunked] {
                assert_eq!(Cell::decode(family, cell.encode(family)), Ok(cell));
            }
        }
    }

    #[test]
    fn damaged_rows_are_told_from_whole_ones() {
        for row in [vec![], vec![0; 8], vec![CHUNKED; 20], vec![0x80; 9]] {
            assert!(matches!(Cell::decode(Family::Record, row), Err(StoreError::Corrupt(_))));
        }
        assert!(matches!(InboxCell::decode(&[0; 11]), Err(StoreError::Corrupt(_))));
    }

    #[test]
    fn a_value_moves_to_chunks_when_its_row_would_pass_the_limit() {
        assert!(fits(Family::Record, MAX_ROW - 9) && !fits(Family::Record, MAX_ROW - 8));
        assert!(fits(Family::Queue, MAX_ROW - 1) && !fits(Family::Queue, MAX_ROW));
        assert_eq!((chunks(4_096), chunks(4_097), chunks(20_000)), (1, 2, 5));
    }
}
