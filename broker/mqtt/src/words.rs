//! The words of links and seats on two nodes, as bytes: what a node says for its links, and what a home answers.
//!
//! Each word begins with its kind; one that is damaged, or of a newer release, is refused and takes nobody down.
//!
//! They are not the core's `bus::Word`: only attach and detach would be alike, and every delivery and acknowledgement would be
//! decoded twice, out of bytes that the core may not read. What no front end owns, publications for seats, is the core's.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use tavi_core::Publication;

use crate::hub::Parting;
use crate::link::{Delivery, Said, Word};
use crate::packet::{
    Disconnect, Options, Publish, Qos, Reason, RetainHandling, Subscribe, Unsubscribe, Version, Will, Wish,
};
use crate::record;
use crate::reply::AckKind;
use crate::session::Answer;

/// What a home hears of a link.
#[derive(Debug)]
pub enum ToSeat {
    /// A client that has logged in wants its session.
    Attach(Attach),
    /// A word of the link, and the bytes that the client's packet had.
    Word(Word, usize),
    /// The connection has ended.
    Detach(Parting),
}

/// What a link hears of its home.
#[derive(Debug)]
pub enum ToLink {
    /// The client has its session; whether it was there before, and the packet ids of the client's QoS 2 publishes that it has not
    /// released.
    Attached(bool, Vec<u16>),
    /// It has not.
    Refused(Reason),
    /// A word of the seat.
    Said(Said),
    /// The connection is over.
    Close(Reason),
}

/// Who wants which session, and how.
#[derive(Debug)]
pub struct Attach {
    /// The principal's bare JID.
    pub subject: String,
    /// Which client.
    pub client_id: String,
    /// The version that it speaks.
    pub version: Version,
    /// Clean start.
    pub clean: bool,
    /// Seconds that the session may outlive the connection.
    pub expiry: u32,
    /// How many QoS 1 and 2 deliveries the client takes unacknowledged.
    pub receive_maximum: u16,
    /// Its will.
    pub will: Option<Will>,
}

impl ToSeat {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Attach(attach) => {
                out.put_u8(0);
                put_attach(&mut out, attach);
            }
            Self::Word(word, size) => {
                out.put_u8(1);
                out.put_u64(*size as u64);
                put_word(&mut out, word);
            }
            Self::Detach(parting) => out.extend([2, u8::from(*parting == Parting::Cut)]),
        }
        out.into()
    }

    /// From its bytes; `None` if they are damaged.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        let input = &mut bytes;
        let word = match input.try_get_u8().ok()? {
            0 => Self::Attach(get_attach(input)?),
            1 => {
                let size = usize::try_from(input.try_get_u64().ok()?).ok()?;
                Self::Word(get_word(input)?, size)
            }
            2 => Self::Detach(if get_flag(input)? { Parting::Cut } else { Parting::InOrder }),
            _ => return None,
        };
        bytes.is_empty().then_some(word)
    }
}

impl ToLink {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Attached(present, held) => {
                out.extend([0, u8::from(*present)]);
                held.iter().for_each(|id| out.put_u16(*id));
            }
            Self::Refused(reason) => out.extend([1, reason.0]),
            Self::Said(said) => {
                out.put_u8(2);
                put_said(&mut out, said);
            }
            Self::Close(reason) => out.extend([3, reason.0]),
        }
        out.into()
    }

    /// From its bytes; `None` if they are damaged.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        let input = &mut bytes;
        let word = match input.try_get_u8().ok()? {
            0 => Self::Attached(get_flag(input)?, get_rest(input, |input| input.try_get_u16().ok())?),
            1 => Self::Refused(get_reason(input)?),
            2 => Self::Said(get_said(input)?),
            3 => Self::Close(get_reason(input)?),
            _ => return None,
        };
        bytes.is_empty().then_some(word)
    }
}

// --- to the seat ---

fn put_attach(out: &mut Vec<u8>, attach: &Attach) {
    let Attach { subject, client_id, version, clean, expiry, receive_maximum, will } = attach;
    put_text(out, subject);
    put_text(out, client_id);
    out.put_u8(u8::from(*version == Version::V5) | u8::from(*clean) << 1);
    out.put_u32(*expiry);
    out.put_u16(*receive_maximum);
    if let Some(will) = will {
        out.extend_from_slice(&record::encode_will(will));
    }
}

fn get_attach(input: &mut Bytes) -> Option<Attach> {
    let (subject, client_id) = (get_text(input)?, get_text(input)?);
    let bits = input.try_get_u8().ok()?;
    let (expiry, receive_maximum) = (input.try_get_u32().ok()?, input.try_get_u16().ok()?);
    let will = match std::mem::take(input) {
        rest if rest.is_empty() => None,
        rest => Some(record::decode_will(rest)?),
    };
    let version = if bits & 1 != 0 { Version::V5 } else { Version::V4 };
    Some(Attach { subject, client_id, version, clean: bits & 2 != 0, expiry, receive_maximum, will })
}

fn put_word(out: &mut Vec<u8>, word: &Word) {
    match word {
        Word::Publish(publish) => {
            out.extend([0, u8::from(publish.dup)]);
            out.put_u16(publish.packet_id);
            record::put_body(out, &publish.body, publish.qos, publish.retain);
        }
        Word::Repeated(answer) => put_answer(out, 1, answer),
        Word::Release(answer) => put_answer(out, 2, answer),
        Word::Taken(row) => {
            out.put_u8(3);
            out.put_u64(*row);
        }
        Word::Skipped(row, qos) => {
            out.extend([4, *qos as u8]);
            out.put_u64(*row);
        }
        Word::Received(row, answer) => {
            out.put_u8(5);
            out.put_u64(*row);
            put_answer(out, 0, answer);
        }
        Word::Subscribe(subscribe) => {
            out.extend([6, u8::from(subscribe.has_identifier)]);
            out.put_u16(subscribe.packet_id);
            subscribe.filters.iter().for_each(|wish| put_wish(out, wish));
        }
        Word::Unsubscribe(unsubscribe) => {
            out.put_u8(7);
            out.put_u16(unsubscribe.packet_id);
            unsubscribe.filters.iter().for_each(|filter| put_text(out, filter));
        }
        Word::Leave(Disconnect { reason, expiry }) => {
            out.extend([8, reason.0]);
            expiry.iter().for_each(|expiry| out.put_u32(*expiry));
        }
    }
}

fn get_word(input: &mut Bytes) -> Option<Word> {
    Some(match input.try_get_u8().ok()? {
        0 => {
            let (dup, packet_id) = (get_flag(input)?, input.try_get_u16().ok()?);
            let (body, qos, retain) = record::get_body(std::mem::take(input))?;
            Word::Publish(Publish { body, qos, retain, dup, packet_id })
        }
        1 => Word::Repeated(get_answer(input)?),
        2 => Word::Release(get_answer(input)?),
        3 => Word::Taken(input.try_get_u64().ok()?),
        4 => {
            let qos = get_qos(input)?;
            Word::Skipped(input.try_get_u64().ok()?, qos)
        }
        5 => {
            let row = input.try_get_u64().ok()?;
            input.try_get_u8().ok()?;
            Word::Received(row, get_answer(input)?)
        }
        6 => {
            let (has_identifier, packet_id) = (get_flag(input)?, input.try_get_u16().ok()?);
            Word::Subscribe(Subscribe { packet_id, has_identifier, filters: get_rest(input, get_wish)? })
        }
        7 => {
            let packet_id = input.try_get_u16().ok()?;
            Word::Unsubscribe(Unsubscribe { packet_id, filters: get_rest(input, get_text)? })
        }
        8 => {
            let reason = get_reason(input)?;
            let expiry = if input.is_empty() { None } else { Some(input.try_get_u32().ok()?) };
            Word::Leave(Disconnect { reason, expiry })
        }
        _ => return None,
    })
}

fn put_wish(out: &mut Vec<u8>, Wish { filter, options }: &Wish) {
    let handling = match options.retain_handling {
        RetainHandling::Always => 0,
        RetainHandling::IfNew => 1,
        RetainHandling::Never => 2,
    };
    // MQTT 5.0 §3.8.3.1: the byte as it stands in a SUBSCRIBE.
    let flags = u8::from(options.no_local) << 2 | u8::from(options.retain_as_published) << 3;
    out.put_u8(options.qos as u8 | flags | handling << 4);
    put_text(out, filter);
}

fn get_wish(input: &mut Bytes) -> Option<Wish> {
    let bits = input.try_get_u8().ok()?;
    let handling = [RetainHandling::Always, RetainHandling::IfNew, RetainHandling::Never];
    let options = Options {
        qos: Qos::from_u8(bits & 3)?,
        no_local: bits & 4 != 0,
        retain_as_published: bits & 8 != 0,
        retain_handling: *handling.get(usize::from(bits >> 4))?,
    };
    Some(Wish { filter: get_text(input)?, options })
}

// --- to the link ---

fn put_said(out: &mut Vec<u8>, said: &Said) {
    match said {
        Said::Answer(answer) => put_answer(out, 0, answer),
        Said::Subscribed(packet_id, grants) => {
            out.put_u8(1);
            out.put_u16(*packet_id);
            // MQTT 5.0 §3.9.3: a granted QoS is below 0x80, a refusal is not.
            out.extend(grants.iter().map(|grant| grant.map_or_else(|reason| reason.0, |qos| qos as u8)));
        }
        Said::Unsubscribed(packet_id, existed) => {
            out.put_u8(2);
            out.put_u16(*packet_id);
            out.extend(existed.iter().map(|existed| u8::from(*existed)));
        }
        Said::Deliver(Delivery { row, packet_id, qos, retain, dup, publication }) => {
            out.extend([3, *qos as u8 | u8::from(*retain) << 2 | u8::from(*dup) << 3]);
            out.put_u64(*row);
            out.put_u16(*packet_id);
            out.extend_from_slice(publication.stored());
        }
        Said::ReleaseAgain(row, packet_id) => {
            out.put_u8(4);
            out.put_u64(*row);
            out.put_u16(*packet_id);
        }
    }
}

fn get_said(input: &mut Bytes) -> Option<Said> {
    Some(match input.try_get_u8().ok()? {
        0 => Said::Answer(get_answer(input)?),
        1 => {
            let packet_id = input.try_get_u16().ok()?;
            let grant = |input: &mut Bytes| {
                let code = input.try_get_u8().ok()?;
                if code >= 0x80 { Some(Err(Reason(code))) } else { Qos::from_u8(code).map(Ok) }
            };
            Said::Subscribed(packet_id, get_rest(input, grant)?)
        }
        2 => Said::Unsubscribed(input.try_get_u16().ok()?, get_rest(input, get_flag)?),
        3 => {
            let bits = input.try_get_u8().ok()?;
            let (row, packet_id) = (input.try_get_u64().ok()?, input.try_get_u16().ok()?);
            let publication = Arc::new(Publication::decode(std::mem::take(input))?);
            let (qos, retain, dup) = (Qos::from_u8(bits & 3)?, bits & 4 != 0, bits & 8 != 0);
            Said::Deliver(Delivery { row, packet_id, qos, retain, dup, publication })
        }
        4 => Said::ReleaseAgain(input.try_get_u64().ok()?, input.try_get_u16().ok()?),
        _ => return None,
    })
}

// --- parts ---

/// `kind` of the word that the answer belongs to.
fn put_answer(out: &mut Vec<u8>, kind: u8, answer: &Answer) {
    let (ack, packet_id, reason) = answer.parts();
    out.extend([kind, ack.map_or(0, |kind| kind as u8), reason.0]);
    out.put_u16(packet_id);
}

fn get_answer(input: &mut Bytes) -> Option<Answer> {
    let kind = match input.try_get_u8().ok()? {
        0 => None,
        bits => Some(AckKind::from_bits(bits)?),
    };
    let reason = get_reason(input)?;
    Some(Answer::from_parts(kind, input.try_get_u16().ok()?, reason))
}

fn get_flag(input: &mut Bytes) -> Option<bool> {
    match input.try_get_u8().ok()? {
        flag @ 0..=1 => Some(flag == 1),
        _ => None,
    }
}

fn get_qos(input: &mut Bytes) -> Option<Qos> {
    Qos::from_u8(input.try_get_u8().ok()?)
}

fn get_reason(input: &mut Bytes) -> Option<Reason> {
    input.try_get_u8().ok().map(Reason)
}

/// A topic, a filter or a client id: at most 65,535 bytes, as they came in packets.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u16(text.len() as u16);
    out.extend_from_slice(text.as_bytes());
}

fn get_text(input: &mut Bytes) -> Option<String> {
    let length = usize::from(input.try_get_u16().ok()?);
    let text = (length <= input.len()).then(|| input.split_to(length))?;
    String::from_utf8(text.into()).ok()
}

/// All that is left.
fn get_rest<T>(input: &mut Bytes, mut get: impl FnMut(&mut Bytes) -> Option<T>) -> Option<Vec<T>> {
    let mut found = Vec::new();
    while !input.is_empty() {
        found.push(get(input)?);
    }
    Some(found)
}

#[cfg(test)]
#[path = "words_tests.rs"]
mod tests;
