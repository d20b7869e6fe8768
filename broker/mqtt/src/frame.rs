//! The fixed header (MQTT 5.0 §2.1): finds a packet's bounds and refuses what a client may not send, before any decoding.

use crate::error::Fault;

/// A control packet type that a client may send (MQTT 5.0 §2.1.2, table 2-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// 1
    Connect = 1,
    /// 3
    Publish = 3,
    /// 4
    PubAck = 4,
    /// 5
    PubRec = 5,
    /// 6
    PubRel = 6,
    /// 7
    PubComp = 7,
    /// 8
    Subscribe = 8,
    /// 10
    Unsubscribe = 10,
    /// 12
    PingReq = 12,
    /// 14
    Disconnect = 14,
}

/// Where one whole packet lies in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: Kind,
    /// The low four bits of its first byte.
    pub flags: u8,
    /// Bytes of the fixed header, 2 to 5.
    pub header: usize,
    /// Bytes of the whole packet.
    pub total: usize,
}

impl Frame {
    /// Looks at the packet that `bytes` begins with. `None`: it is not whole yet. At most `limit` bytes in all.
    /// A wrong type, wrong flags or a length over the limit fail as soon as the header shows them, not when the
    /// packet is whole, so that nothing is buffered for a packet that will be refused.
    pub fn scan(bytes: &[u8], limit: usize) -> Result<Option<Self>, Fault> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        let kind = kind_of(first >> 4)?;
        let flags = first & 0x0F;
        check_flags(kind, flags)?;
        let Some((remaining, width)) = remaining_length(&bytes[1..])? else {
            return Ok(None);
        };
        let (header, total) = (1 + width, 1 + width + remaining);
        if total > limit {
            return Err(Fault::TooLarge);
        }
        let frame = Self { kind, flags, header, total };
        Ok((bytes.len() >= total).then_some(frame))
    }
}

fn kind_of(number: u8) -> Result<Kind, Fault> {
    Ok(match number {
        1 => Kind::Connect,
        3 => Kind::Publish,
        4 => Kind::PubAck,
        5 => Kind::PubRec,
        6 => Kind::PubRel,
        7 => Kind::PubComp,
        8 => Kind::Subscribe,
        10 => Kind::Unsubscribe,
        12 => Kind::PingReq,
        14 => Kind::Disconnect,
        // CONNACK, SUBACK, UNSUBACK, PINGRESP flow from server to client only (MQTT 5.0 table 2-1).
        2 | 9 | 11 | 13 => return Err(Fault::Protocol("a packet that only a server sends")),
        // MQTT 5.0 §4.12: AUTH only after an authentication method was agreed, which this broker never does.
        15 => return Err(Fault::Protocol("AUTH without an authentication method")),
        _ => return Err(Fault::Malformed("packet type 0")),
    })
}

/// MQTT 5.0 §2.1.3: reserved flag bits have fixed values; §3.3.1.2: QoS 3 does not exist, and QoS 0 is never a duplicate.
fn check_flags(kind: Kind, flags: u8) -> Result<(), Fault> {
    let legal = match kind {
        Kind::Publish => flags & 0b0110 != 0b0110 && flags & 0b1110 != 0b1000,
        Kind::PubRel | Kind::Subscribe | Kind::Unsubscribe => flags == 0b0010,
        _ => flags == 0,
    };
    if legal { Ok(()) } else { Err(Fault::Malformed("reserved flag bits")) }
}

/// A variable byte integer (MQTT 5.0 §1.5.5) and its width; `None` if it is cut. Overlong forms are refused.
pub(crate) fn remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    let mut value = 0usize;
    for (at, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            // §1.5.5: the encoded value MUST use the minimum number of bytes.
            let overlong = at > 0 && byte == 0;
            return if overlong { Err(Fault::Malformed("overlong length")) } else { Ok(Some((value, at + 1))) };
        }
    }
    if bytes.len() >= 4 { Err(Fault::Malformed("length of five bytes")) } else { Ok(None) }
}

/// Appends a variable byte integer. `value` is below 268,435,456, as every packet of ours is.
pub(crate) fn put_length(out: &mut Vec<u8>, value: usize) {
    let mut rest = value;
    while rest >= 0x80 {
        out.push((rest & 0x7F) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Bytes that [`put_length`] writes for `value`.
pub(crate) fn length_width(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_found_only_when_whole() {
        assert_eq!(Frame::scan(&[], 100), Ok(None));
        assert_eq!(Frame::scan(&[0xC0], 100), Ok(None));
        let ping = Frame { kind: Kind::PingReq, flags: 0, header: 2, total: 2 };
        assert_eq!(Frame::scan(&[0xC0, 0], 100), Ok(Some(ping)));
        assert_eq!(Frame::scan(&[0x40, 2, 0], 100), Ok(None));
    }

    #[test]
    fn server_packets_are_refused_at_their_first_byte() {
        for number in [2u8, 9, 11, 13, 15] {
            assert!(matches!(Frame::scan(&[number << 4], 100), Err(Fault::Protocol(_))), "{number}");
        }
        assert!(matches!(Frame::scan(&[0x00], 100), Err(Fault::Malformed(_))));
    }

    #[test]
    fn wrong_flags_are_refused_at_the_first_byte() {
        // CONNECT+1, PUBLISH QoS 3, PUBLISH QoS 0 DUP, PUBREL 0, SUBSCRIBE 0, UNSUBSCRIBE 1, PINGREQ 1, DISCONNECT 2
        for first in [0x11u8, 0x36, 0x38, 0x60, 0x80, 0xA1, 0xC1, 0xE2] {
            assert!(matches!(Frame::scan(&[first], 100), Err(Fault::Malformed(_))), "{first:#x}");
        }
    }

    #[test]
    fn lengths_are_bounded_minimal_and_at_most_four_bytes() {
        assert_eq!(Frame::scan(&[0x30, 0x63], 100), Err(Fault::TooLarge));
        assert_eq!(Frame::scan(&[0x30, 0x62], 100), Ok(None));
        assert!(matches!(Frame::scan(&[0x30, 0x80, 0x00], 100), Err(Fault::Malformed(_))));
        assert!(matches!(Frame::scan(&[0x30, 0xFF, 0xFF, 0xFF, 0xFF], 100), Err(Fault::Malformed(_))));
        for value in [0usize, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455] {
            let mut out = Vec::new();
            put_length(&mut out, value);
            assert_eq!(out.len(), length_width(value));
            assert_eq!(remaining_length(&out), Ok(Some((value, out.len()))));
        }
    }
}
