//! The bytes of an export.

use super::{Entry, ExportError, Progress};
use crate::{
    Owner, Table,
    limits::{MAX_ITEM, MAX_OWNER, MAX_VALUE},
};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashSet,
    io::{self, ErrorKind, Read, Write},
};

const MAGIC: &[u8; 8] = b"TAVIEXP3";
/// As it was before queued rows could be views of archived stanzas; read only.
pub(super) const SECOND_FORM: &[u8; 8] = b"TAVIEXP2";
/// As it was before queued rows could share a body; read only.
pub(super) const FIRST_FORM: &[u8; 8] = b"TAVIEXP1";
/// A block is written when it has so many bytes.
const BLOCK: usize = 64 << 10;
/// No block is longer: a full one, and one more entry of the greatest size.
const MAX_BLOCK: usize = BLOCK + 2 * MAX_VALUE + MAX_OWNER + MAX_ITEM;
const CHECK: usize = 8;

/// Writes an export.
pub(super) struct Encoder<'a> {
    out: &'a mut (dyn Write + Send),
    hash: Sha256,
    block: Vec<u8>,
    done: Progress,
}

impl<'a> Encoder<'a> {
    pub fn new(out: &'a mut (dyn Write + Send)) -> Result<Encoder<'a>, ExportError> {
        Encoder::of_form(out, MAGIC)
    }

    pub fn of_form(out: &'a mut (dyn Write + Send), magic: &[u8; 8]) -> Result<Encoder<'a>, ExportError> {
        let mut file = Encoder { out, hash: Sha256::new(), block: Vec::new(), done: Progress::default() };
        file.write(magic)?;
        Ok(file)
    }

    pub fn progress(&self) -> Progress {
        self.done
    }

    pub fn push(&mut self, entry: &Entry) -> Result<(), ExportError> {
        encode(entry, &mut self.block);
        self.done.entries += 1;
        if self.block.len() < BLOCK { Ok(()) } else { self.flush() }
    }

    /// Writes the end.
    pub fn finish(mut self, last_id: u64) -> Result<Progress, ExportError> {
        self.flush()?;
        self.write(&0u32.to_be_bytes())?;
        self.write(&self.done.entries.to_be_bytes())?;
        self.write(&last_id.to_be_bytes())?;
        let check = self.hash.clone().finalize();
        self.write(&check)?;
        self.out.flush()?;
        Ok(self.done)
    }

    fn flush(&mut self) -> Result<(), ExportError> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::take(&mut self.block);
        self.write(&(block.len() as u32).to_be_bytes())?;
        self.write(&block)?;
        let check = self.hash.clone().finalize();
        self.write(&check[..CHECK])?;
        self.block = block;
        self.block.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.done.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

fn encode(entry: &Entry, out: &mut Vec<u8>) {
    match entry {
        Entry::Owner(owner) => {
            out.push(1);
            text(out, owner.as_str());
        }
        Entry::Record { table, version, item, value } => {
            out.extend([2, table.code()]);
            out.extend(version.to_be_bytes());
            text(out, item);
            bytes(out, value);
        }
        Entry::Queued { id, value } => {
            out.push(3);
            out.extend(id.to_be_bytes());
            bytes(out, value);
        }
        Entry::Shared { id, head, body, bytes: shared } => {
            out.push(if shared.is_some() { 7 } else { 8 });
            out.extend(id.to_be_bytes());
            out.extend(body.to_be_bytes());
            bytes(out, head);
            shared.iter().for_each(|shared| bytes(out, shared));
        }
        Entry::View { id } => {
            out.push(9);
            out.extend(id.to_be_bytes());
        }
        Entry::Archived { id, retracted, with, value } => {
            out.push(4);
            out.extend(id.to_be_bytes());
            out.push(u8::from(*retracted));
            text(out, with);
            bytes(out, value);
        }
        Entry::Inbox { last, unread, with, preview } => {
            out.push(5);
            out.extend(last.to_be_bytes());
            out.extend(unread.to_be_bytes());
            text(out, with);
            text(out, preview);
        }
        Entry::Outbox { id } => {
            out.push(6);
            out.extend(id.to_be_bytes());
        }
    }
}

/// Keys are shorter than 64 KiB: `limits` saw to it when they were stored.
fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

fn bytes(out: &mut Vec<u8>, value: &Bytes) {
    out.extend((value.len() as u32).to_be_bytes());
    out.extend(&value[..]);
}

/// Reads an export, block by block, each checked before its entries are given.
pub(super) struct Decoder<'a> {
    input: &'a mut (dyn Read + Send),
    hash: Sha256,
    done: Progress,
    last_id: u64,
    /// The shared bodies that were met.
    bodies: HashSet<u64>,
}

impl<'a> Decoder<'a> {
    pub fn new(input: &'a mut (dyn Read + Send)) -> Result<Decoder<'a>, ExportError> {
        let (hash, done) = (Sha256::new(), Progress::default());
        let mut file = Decoder { input, hash, done, last_id: 0, bodies: HashSet::new() };
        match file.array::<8>() {
            Ok(magic) if [MAGIC, SECOND_FORM, FIRST_FORM].contains(&&magic) => Ok(file),
            Ok(_) | Err(ExportError::Damaged { .. }) => Err(ExportError::Foreign),
            Err(error) => Err(error),
        }
    }

    pub fn progress(&self) -> Progress {
        self.done
    }

    /// The greatest id of the exported store; known at the end.
    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    /// The entries of the next block; `None` behind the last, when the whole file was found in order.
    pub fn block(&mut self) -> Result<Option<Vec<Entry>>, ExportError> {
        let len = u32::from_be_bytes(self.array()?) as usize;
        match len {
            0 => return self.end().map(|()| None),
            1..=MAX_BLOCK => {}
            _ => return Err(self.damaged("a block is too long")),
        }
        let block = Bytes::from(self.read(len)?);
        let expected = self.hash.clone().finalize();
        if self.array::<CHECK>()? != expected[..CHECK] {
            return Err(self.damaged("a block's check fails"));
        }
        let mut fields = Fields(block);
        let mut entries = Vec::new();
        while !fields.0.is_empty() {
            let entry = fields.entry().ok_or_else(|| self.damaged("an entry cannot be read"))?;
            self.body_is_known(&entry)?;
            entries.push(entry);
        }
        self.done.entries += entries.len() as u64;
        Ok(Some(entries))
    }

    /// A row whose body stood nowhere before cannot be taken in.
    fn body_is_known(&mut self, entry: &Entry) -> Result<(), ExportError> {
        match entry {
            Entry::Shared { body, bytes: Some(_), .. } => _ = self.bodies.insert(*body),
            Entry::Shared { body, .. } if !self.bodies.contains(body) => {
                return Err(self.damaged("a queued row lacks its body"));
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), ExportError> {
        let entries = u64::from_be_bytes(self.array()?);
        self.last_id = u64::from_be_bytes(self.array()?);
        let expected = self.hash.clone().finalize();
        if self.array::<32>()? != expected[..] || entries != self.done.entries {
            return Err(self.damaged("the check of the whole fails"));
        }
        match self.input.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(self.damaged("something stands behind the end")),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ExportError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads `len` bytes, making room only as they come.
    fn read(&mut self, len: usize) -> Result<Vec<u8>, ExportError> {
        let mut bytes = Vec::with_capacity(len.min(BLOCK));
        (&mut *self.input).take(len as u64).read_to_end(&mut bytes)?;
        self.done.bytes += bytes.len() as u64;
        if bytes.len() < len {
            return Err(self.damaged("it ends too early"));
        }
        self.hash.update(&bytes);
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ExportError> {
        match self.input.read_exact(bytes) {
            Ok(()) => {
                self.hash.update(&*bytes);
                self.done.bytes += bytes.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(self.damaged("it ends too early")),
            Err(error) => Err(error.into()),
        }
    }

    fn damaged(&self, what: &'static str) -> ExportError {
        ExportError::Damaged { at: self.done.bytes, what }
    }
}

/// The entries of a block, taken off from its front; `None` where it has a wrong form.
struct Fields(Bytes);

impl Fields {
    fn entry(&mut self) -> Option<Entry> {
        Some(match self.byte()? {
            1 => Entry::Owner(Owner::from_key(&self.text(MAX_OWNER)?)),
            2 => Entry::Record {
                table: Table::from_code(self.byte()?)?,
                version: self.number()?,
                item: self.text(MAX_ITEM)?,
                value: self.bytes()?,
            },
            3 => Entry::Queued { id: self.number()?, value: self.bytes()? },
            4 => Entry::Archived {
                id: self.number()?,
                retracted: self.flag()?,
                with: self.text(usize::MAX)?,
                value: self.bytes()?,
            },
            5 => Entry::Inbox {
                last: self.number()?,
                unread: u32::from_be_bytes(self.array()?),
                with: self.text(usize::MAX)?,
                preview: self.text(usize::MAX)?,
            },
            6 => Entry::Outbox { id: self.number()? },
            kind @ (7 | 8) => {
                let (id, body, head) = (self.number()?, self.number()?, self.bytes()?);
                let bytes = if kind == 7 { Some(self.bytes()?) } else { None };
                Entry::Shared { id, head, body, bytes }
            }
            9 => Entry::View { id: self.number()? },
            _ => return None,
        })
    }

    fn take(&mut self, len: usize) -> Option<Bytes> {
        (len <= self.0.len()).then(|| self.0.split_to(len))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?[..].try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self, most: usize) -> Option<Box<str>> {
        let len = usize::from(u16::from_be_bytes(self.array()?));
        let text = self.take(len).filter(|_| len <= most)?;
        std::str::from_utf8(&text).ok().map(Box::from)
    }

    /// A copy of its own: a slice would keep the whole block in memory.
    fn bytes(&mut self) -> Option<Bytes> {
        let len = u32::from_be_bytes(self.array()?) as usize;
        self.take(len).filter(|_| len <= MAX_VALUE).map(|value| Bytes::copy_from_slice(&value))
    }
}

/// Adds the hashes of rows up, so that their order does not matter.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum {
    sum: [u64; 4],
    pub progress: Progress,
}

impl PartialEq for Sum {
    fn eq(&self, other: &Sum) -> bool {
        self.sum == other.sum && self.progress.entries == other.progress.entries
    }
}

impl Sum {
    pub fn add(&mut self, owner: &str, entry: &Entry) {
        let mut row = Vec::new();
        text(&mut row, owner);
        encode(entry, &mut row);
        let hash = Sha256::digest(&row);
        for (sum, word) in self.sum.iter_mut().zip(hash.chunks_exact(8)) {
            *sum = sum.wrapping_add(word.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
        }
        self.progress.entries += 1;
        self.progress.bytes += row.len() as u64;
    }
}

/// For the fuzzer: a file of any bytes is read or refused, and entries of any bytes are read as they were written.
pub fn fuzz_export(data: &[u8]) {
    let mut input = data;
    let _ = super::verify(&mut input, &mut |_| ());
    let mut fields = Fields(Bytes::copy_from_slice(data));
    while let Some(entry) = fields.entry() {
        let mut again = Vec::new();
        encode(&entry, &mut again);
        assert_eq!(Fields(again.into()).entry(), Some(entry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_any_kind_are_read_or_refused() {
        let mut state = 1u64;
        for len in 0..2_000usize {
            let mut data: Vec<u8> = (0..len % 300).map(|_| next(&mut state)).collect();
            fuzz_export(&data);
            // With a likely kind in front, entries are reached.
            data.insert(0, next(&mut state) % 10);
            fuzz_export(&data);
            fuzz_export(&[MAGIC, &data[..]].concat());
        }
    }

    fn next(state: &mut u64) -> u8 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*state >> 56) as u8 & if *state & 1 << 40 == 0 { 0x0f } else { 0xff }
    }
}
