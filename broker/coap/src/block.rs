//! Block-wise transfer of answers: the Block2 option and the slicing of a body (RFC 7959).

use crate::message::{Code, Message, option};

/// A Block option's value (RFC 7959 §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The number of the block, from 0; below 2^20.
    pub number: u32,
    /// Whether more blocks follow.
    pub more: bool,
    /// The size of a block.
    pub size: BlockSize,
}

impl Block {
    /// The first block at the largest size: what a request without the option asks for.
    pub const FIRST: Self = Self { number: 0, more: false, size: BlockSize::MAX };

    /// Reads the option's value.
    ///
    /// # Errors
    /// [`BadBlock`] for the reserved size (RFC 7959 §2.2: 4.00) and for more than 3 bytes.
    pub fn parse(value: &[u8]) -> Result<Self, BadBlock> {
        if value.len() > 3 {
            return Err(BadBlock);
        }
        let bits = value.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let size = BlockSize::from_exponent((bits & 7) as u8).ok_or(BadBlock)?;
        Ok(Self { number: bits >> 4, more: bits & 8 != 0, size })
    }

    /// The option's value as a number.
    pub fn emit(self) -> u64 {
        u64::from(self.number) << 4 | u64::from(self.more) << 3 | u64::from(self.size.0)
    }

    fn start(self) -> usize {
        self.number as usize * self.size.bytes()
    }
}

/// The size of a block: 16 to 1,024 bytes, kept as the exponent SZX (RFC 7959 §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(u8);

impl BlockSize {
    /// 1,024 bytes, the default here.
    pub const MAX: Self = Self(6);

    /// The size 2^(`exponent` + 4); `None` for 7, which is reserved, and above.
    pub fn from_exponent(exponent: u8) -> Option<Self> {
        (exponent <= Self::MAX.0).then_some(Self(exponent))
    }

    /// The size in bytes.
    pub fn bytes(self) -> usize {
        16 << self.0
    }
}

/// A Block option that RFC 7959 §2.2 does not allow: the peer's fault, answered with 4.00.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the block size exponent 7 is reserved")]
pub struct BadBlock;

/// Puts into `response` the part of `body` that the request's Block2 asks for, with Block2 and Size2 where needed.
///
/// The whole body goes without options if it was not asked for by block and fits. A peer may ask for
/// smaller blocks at any time (RFC 7959 §2.4). A block behind the end makes the answer a 4.00; that
/// happens when the value shrank between two requests, and the new ETag of block 0 tells the peer.
pub fn put_body(response: &mut Message, body: &[u8], wanted: Option<Block>) {
    let asked = wanted.unwrap_or(Block::FIRST);
    if asked.start() > 0 && asked.start() >= body.len() {
        *response = Message::new(Code::BAD_REQUEST);
        return response.set_payload(b"there is no such block");
    }
    let rest = &body[asked.start()..];
    let more = rest.len() > asked.size.bytes();
    let part = if more { &rest[..asked.size.bytes()] } else { rest };
    if more || wanted.is_some() {
        response.add_uint(option::BLOCK2, Block { more, ..asked }.emit());
        // RFC 7959 §4: the size stands in the first answer, the later ones need not repeat it.
        if asked.number == 0 {
            response.add_uint(option::SIZE2, body.len() as u64);
        }
    }
    response.set_payload(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(body: &[u8], wanted: Option<Block>) -> Message {
        let mut response = Message::new(Code::CONTENT);
        put_body(&mut response, body, wanted);
        response
    }

    fn block(number: u32, exponent: u8) -> Option<Block> {
        Some(Block { number, more: false, size: BlockSize::from_exponent(exponent).unwrap() })
    }

    #[test]
    fn a_small_body_needs_no_option() {
        let whole = ask(&[7; 1024], None);
        assert_eq!((whole.payload().len(), whole.value(option::BLOCK2)), (1024, None));
    }

    #[test]
    fn an_empty_body_has_one_empty_block() {
        let whole = ask(&[], block(0, 6));
        assert_eq!((whole.code(), whole.payload().len(), whole.uint(option::BLOCK2)), (Code::CONTENT, 0, Some(6)));
    }

    #[test]
    fn a_large_body_is_the_sum_of_its_blocks_at_every_size() {
        let body: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
        for exponent in 0..=6 {
            let mut read = Vec::new();
            for number in 0.. {
                let part = ask(&body, block(number, exponent));
                read.extend_from_slice(part.payload());
                let told = Block::parse(part.value(option::BLOCK2).unwrap()).unwrap();
                assert_eq!((told.number, told.size.0), (number, exponent));
                assert_eq!(part.uint(option::SIZE2), (number == 0).then_some(5000));
                if !told.more {
                    break;
                }
            }
            assert_eq!(read, body);
        }
    }

    #[test]
    fn a_block_behind_the_end_and_a_reserved_size_are_bad_requests() {
        assert_eq!(ask(&[0; 2048], block(2, 6)).code(), Code::BAD_REQUEST);
        assert_eq!(ask(&[], block(1, 6)).code(), Code::BAD_REQUEST);
        assert_eq!(ask(&[0; 16], block(0xF_FFFF, 6)).code(), Code::BAD_REQUEST);
        assert_eq!(Block::parse(&[7]), Err(BadBlock));
        assert_eq!(Block::parse(&[0, 0, 0, 0]), Err(BadBlock));
    }
}
