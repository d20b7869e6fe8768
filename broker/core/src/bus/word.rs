//! Words between nodes, as bytes: a version, a kind, the fields. Additive: what follows the known fields is passed over,
//! so that neighbouring releases work together. A damaged word is an error and takes nobody down.

use crate::{
    backlog::Bound,
    envelope::{Envelope, Origin, Reach},
    mailbox::Closed,
    publication::{Publication, Qos},
    topics::{SeatName, SubOptions},
};
use bytes::{Buf, BufMut, Bytes};
use std::sync::Arc;
use tavi_store::Owner;
use tavi_xmpp_proto::{jid::Jid, stanza::Stanza};

/// One word. `link` is a number that the link's node gave it, `number` one that the sender of the word gave it for the
/// answer.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "what the fields are is said once, above")]
pub enum Word {
    /// A client that has logged in wants a seat.
    Attach { link: u64, jid: Jid },
    /// It has this seat, or none.
    Attached { link: u64, seat: Result<u64, NoSeat> },
    /// So much may be in flight from now on.
    Manage { link: u64, window: Bound },
    /// The session sent a stanza.
    Sent { link: u64, number: u64, envelope: Envelope },
    /// All that had to be durable is, or could not be saved.
    Answered { number: u64, saved: bool },
    /// What the client asked for with its binding.
    Begin { link: u64, requests: Vec<Bytes> },
    /// The seat owes this to its link, under this place.
    Deliver { link: u64, place: u64, envelope: Envelope },
    /// The client has these for good.
    Acked { link: u64, places: Vec<u64> },
    /// The connection is gone, or there is one again.
    Detach { link: u64, gone: bool },
    /// The seat is closed: the connection is to go.
    Close { link: u64, why: Closed },
    /// The session is over.
    End { link: u64, number: u64 },
    /// A stanza for somebody who is home where this arrives; the sender's hooks have seen it.
    Route { number: u64, envelope: Envelope },
    /// A headline that the broker made, for the sessions of its `to` that take messages; nothing of it is kept.
    Notice { envelope: Envelope },
    /// A publication has a place in what a durable seat is owed.
    Owe { seat: SeatName, options: Vec<SubOptions>, publication: Arc<Publication> },
    /// What the seat was owed under this id is to be saved now.
    Keep { number: u64, seat: SeatName, id: u64 },
    /// It has its turn in its topic: it is delivered, or it failed.
    Land { seat: SeatName, id: u64, saved: bool },
    /// A publication of which nothing is kept.
    Pass { seat: SeatName, options: Vec<SubOptions>, publication: Arc<Publication> },
}

/// Why somebody has no seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSeat {
    /// There is no such account.
    Nobody,
    /// It has too many sessions.
    TooMany,
    /// The store cannot be read, or the home cannot be reached.
    Unavailable,
}

/// A word that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a damaged word")]
pub struct Damaged;

const VERSION: u8 = 1;
/// The largest stanza or list in a word, in bytes.
const MAX: usize = 16 << 20;

impl Word {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![VERSION, self.kind()];
        match self {
            Word::Attach { link, jid } => {
                out.put_u64(*link);
                put_bytes(&mut out, jid.as_str().as_bytes());
            }
            Word::Attached { link, seat } => {
                out.put_u64(*link);
                out.put_u8(seat.err().map_or(0, |why| why as u8 + 1));
                out.put_u64(seat.unwrap_or(0));
            }
            Word::Manage { link, window } => {
                [*link, window.items as u64, window.bytes as u64].into_iter().for_each(|n| out.put_u64(n));
            }
            Word::Sent { link, number, envelope } | Word::Deliver { link, place: number, envelope } => {
                out.put_u64(*link);
                out.put_u64(*number);
                put_envelope(&mut out, envelope);
            }
            Word::Route { number, envelope } => {
                out.put_u64(*number);
                put_envelope(&mut out, envelope);
            }
            Word::Answered { number, saved } => {
                out.put_u64(*number);
                out.put_u8(u8::from(*saved));
            }
            Word::Acked { link, places } => {
                out.put_u64(*link);
                out.put_u32(places.len() as u32);
                places.iter().for_each(|place| out.put_u64(*place));
            }
            Word::Begin { link, requests } => {
                out.put_u64(*link);
                out.put_u32(requests.len() as u32);
                requests.iter().for_each(|request| put_bytes(&mut out, request));
            }
            Word::Detach { link, gone } => {
                out.put_u64(*link);
                out.put_u8(u8::from(*gone));
            }
            Word::Close { link, why } => {
                out.put_u64(*link);
                out.put_u8(REASONS.iter().position(|reason| reason == why).unwrap_or(0) as u8);
            }
            Word::End { link, number } => {
                out.put_u64(*link);
                out.put_u64(*number);
            }
            Word::Notice { envelope } => put_envelope(&mut out, envelope),
            Word::Owe { seat, options, publication } | Word::Pass { seat, options, publication } => {
                put_seat(&mut out, seat);
                put_publication(&mut out, options, publication);
            }
            Word::Keep { number, seat, id } => {
                put_seat(&mut out, seat);
                [*number, *id].into_iter().for_each(|n| out.put_u64(n));
            }
            Word::Land { seat, id, saved } => {
                put_seat(&mut out, seat);
                out.put_u64(*id);
                out.put_u8(u8::from(*saved));
            }
        }
        out.into()
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Damaged`]: it is cut off, of an unknown version or kind, or says what cannot be.
    pub fn decode(mut bytes: Bytes) -> Result<Word, Damaged> {
        let input = &mut bytes;
        if byte(input)? != VERSION {
            return Err(Damaged);
        }
        Ok(match byte(input)? {
            1 => Word::Attach { link: number(input)?, jid: read_jid(input)? },
            2 => Word::Attached { link: number(input)?, seat: read_seat(input)? },
            3 => {
                let link = number(input)?;
                let (items, bytes) = (number(input)? as usize, number(input)? as usize);
                Word::Manage { link, window: Bound { items, bytes } }
            }
            4 => Word::Sent { link: number(input)?, number: number(input)?, envelope: read_envelope(input)? },
            5 => Word::Answered { number: number(input)?, saved: byte(input)? == 1 },
            6 => Word::Deliver { link: number(input)?, place: number(input)?, envelope: read_envelope(input)? },
            7 => Word::Acked { link: number(input)?, places: read_places(input)? },
            8 => Word::Detach { link: number(input)?, gone: byte(input)? == 1 },
            9 => Word::Close { link: number(input)?, why: *REASONS.get(byte(input)? as usize).ok_or(Damaged)? },
            10 => Word::End { link: number(input)?, number: number(input)? },
            11 => Word::Route { number: number(input)?, envelope: read_envelope(input)? },
            12 => Word::Begin { link: number(input)?, requests: read_list(input)? },
            13 => Word::Notice { envelope: read_envelope(input)? },
            14 => {
                let (seat, (options, publication)) = (read_name(input)?, read_publication(input)?);
                Word::Owe { seat, options, publication }
            }
            15 => Word::Keep { seat: read_name(input)?, number: number(input)?, id: number(input)? },
            16 => Word::Land { seat: read_name(input)?, id: number(input)?, saved: byte(input)? == 1 },
            17 => {
                let (seat, (options, publication)) = (read_name(input)?, read_publication(input)?);
                Word::Pass { seat, options, publication }
            }
            _ => return Err(Damaged),
        })
    }

    fn kind(&self) -> u8 {
        match self {
            Word::Attach { .. } => 1,
            Word::Attached { .. } => 2,
            Word::Manage { .. } => 3,
            Word::Sent { .. } => 4,
            Word::Answered { .. } => 5,
            Word::Deliver { .. } => 6,
            Word::Acked { .. } => 7,
            Word::Detach { .. } => 8,
            Word::Close { .. } => 9,
            Word::End { .. } => 10,
            Word::Route { .. } => 11,
            Word::Begin { .. } => 12,
            Word::Notice { .. } => 13,
            Word::Owe { .. } => 14,
            Word::Keep { .. } => 15,
            Word::Land { .. } => 16,
            Word::Pass { .. } => 17,
        }
    }
}

/// New ones come at the end.
const REASONS: [Closed; 5] = [Closed::Gone, Closed::Overflow, Closed::Replaced, Closed::Shutdown, Closed::Revoked];

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

/// What the hooks did to it is done: the other side gets its text.
fn put_envelope(out: &mut Vec<u8>, envelope: &Envelope) {
    let meta = &envelope.meta;
    let origin = match meta.origin {
        Origin::Plain => 0,
        Origin::Managed => 1,
        Origin::Broker => 2,
    };
    out.put_u8(origin | u8::from(meta.reach == Reach::Copy) << 2);
    out.put_u64(meta.time_ms);
    put_bytes(out, &envelope.to_bytes());
}

fn put_seat(out: &mut Vec<u8>, seat: &SeatName) {
    put_bytes(out, seat.owner.as_str().as_bytes());
    out.put_u64(seat.number);
}

/// The stored form is made once, however many seats it goes to.
fn put_publication(out: &mut Vec<u8>, options: &[SubOptions], publication: &Publication) {
    out.put_u32(options.len() as u32);
    for SubOptions { qos, no_local, retain_as_published, identifier } in options {
        out.put_u8(*qos as u8 | u8::from(*no_local) << 2 | u8::from(*retain_as_published) << 3);
        out.put_u32(*identifier);
    }
    out.put_u64(publication.rendered.replaces.unwrap_or(0));
    put_bytes(out, publication.stored());
}

pub(crate) fn byte(input: &mut Bytes) -> Result<u8, Damaged> {
    input.try_get_u8().map_err(|_| Damaged)
}

pub(crate) fn number(input: &mut Bytes) -> Result<u64, Damaged> {
    input.try_get_u64().map_err(|_| Damaged)
}

pub(crate) fn read_bytes(input: &mut Bytes) -> Result<Bytes, Damaged> {
    let len = input.try_get_u32().map_err(|_| Damaged)? as usize;
    if len > MAX || len > input.len() {
        return Err(Damaged);
    }
    Ok(input.split_to(len))
}

pub(crate) fn read_jid(input: &mut Bytes) -> Result<Jid, Damaged> {
    let text = read_bytes(input)?;
    std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()).ok_or(Damaged)
}

fn read_name(input: &mut Bytes) -> Result<SeatName, Damaged> {
    let key = read_bytes(input)?;
    let owner = std::str::from_utf8(&key).map_err(|_| Damaged)?;
    Ok(SeatName { owner: Owner::from_key(owner), number: number(input)? })
}

fn read_publication(input: &mut Bytes) -> Result<(Vec<SubOptions>, Arc<Publication>), Damaged> {
    let count = input.try_get_u32().map_err(|_| Damaged)? as usize;
    if count > input.len() / 5 {
        return Err(Damaged);
    }
    let options = (0..count).map(|_| read_options(input)).collect::<Result<_, _>>()?;
    let replaces = Some(number(input)?).filter(|id| *id > 0);
    let mut publication = Publication::decode(read_bytes(input)?).ok_or(Damaged)?;
    publication.rendered.replaces = replaces;
    Ok((options, Arc::new(publication)))
}

fn read_options(input: &mut Bytes) -> Result<SubOptions, Damaged> {
    let bits = byte(input)?;
    Ok(SubOptions {
        qos: Qos::from_u8(bits & 3).ok_or(Damaged)?,
        no_local: bits & 4 != 0,
        retain_as_published: bits & 8 != 0,
        identifier: input.try_get_u32().map_err(|_| Damaged)?,
    })
}

fn read_seat(input: &mut Bytes) -> Result<Result<u64, NoSeat>, Damaged> {
    let refused = match byte(input)? {
        0 => None,
        1 => Some(NoSeat::Nobody),
        2 => Some(NoSeat::TooMany),
        3 => Some(NoSeat::Unavailable),
        _ => return Err(Damaged),
    };
    let seat = number(input)?;
    Ok(refused.map_or(Ok(seat), Err))
}

fn read_places(input: &mut Bytes) -> Result<Vec<u64>, Damaged> {
    let count = input.try_get_u32().map_err(|_| Damaged)? as usize;
    if count > input.len() / 8 {
        return Err(Damaged);
    }
    (0..count).map(|_| number(input)).collect()
}

fn read_list(input: &mut Bytes) -> Result<Vec<Bytes>, Damaged> {
    let count = input.try_get_u32().map_err(|_| Damaged)? as usize;
    if count > input.len() / 4 {
        return Err(Damaged);
    }
    (0..count).map(|_| read_bytes(input)).collect()
}

fn read_envelope(input: &mut Bytes) -> Result<Envelope, Damaged> {
    let (flags, time_ms) = (byte(input)?, number(input)?);
    let stanza = Stanza::parse(&read_bytes(input)?).map_err(|_| Damaged)?;
    let mut envelope: Envelope = stanza.into();
    envelope.meta.time_ms = time_ms;
    envelope.meta.origin = match flags & 3 {
        0 => Origin::Plain,
        1 => Origin::Managed,
        2 => Origin::Broker,
        _ => return Err(Damaged),
    };
    envelope.meta.reach = if flags & 4 == 0 { Reach::Owed } else { Reach::Copy };
    Ok(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        principal::Principal,
        publication::{Change, Rendered},
    };
    use proptest::prelude::*;

    fn envelope() -> impl Strategy<Value = Envelope> {
        let origin = prop_oneof![Just(Origin::Plain), Just(Origin::Managed), Just(Origin::Broker)];
        ("[a-z<&' ]{0,20}", any::<u64>(), origin, any::<bool>()).prop_map(|(body, time_ms, origin, copy)| {
            let body = tavi_xmpp_proto::element::Element::new("jabber:client", "body").text(body);
            let head = tavi_xmpp_proto::stanza::Head::message(tavi_xmpp_proto::stanza::MessageType::Chat)
                .to("juliet@localhost/balcony".parse::<Jid>().unwrap());
            let mut envelope = Envelope::received(Stanza::new(head, [body]), origin, time_ms);
            envelope.meta.reach = if copy { Reach::Copy } else { Reach::Owed };
            envelope
        })
    }

    fn seat_name() -> impl Strategy<Value = SeatName> {
        ("[a-zü]{0,9}", any::<u64>())
            .prop_map(|(client, number)| SeatName { owner: Owner::mqtt("pump@localhost", &client), number })
    }

    fn published() -> impl Strategy<Value = (Vec<SubOptions>, Arc<Publication>)> {
        let qos = || (0..3u8).prop_map(|qos| Qos::from_u8(qos).unwrap());
        let options = (qos(), any::<bool>(), any::<bool>(), any::<u32>()).prop_map(
            |(qos, no_local, retain_as_published, identifier)| SubOptions {
                qos,
                no_local,
                retain_as_published,
                identifier,
            },
        );
        let publication = (any::<u64>(), qos(), any::<bool>(), any::<Vec<u8>>(), any::<Option<u64>>()).prop_map(
            |(id, qos, retain, payload, replaces)| Publication {
                id,
                time_ms: 5,
                topic: "home/x".into(),
                change: Change::Value,
                payload: payload.into(),
                content_type: Some("text/plain".into()),
                qos,
                retain,
                from: Principal::Anon { loopback: true },
                from_session: 0,
                item: None,
                properties: None,
                rendered: Rendered { replaces, ..Rendered::default() },
            },
        );
        (prop::collection::vec(options, 0..3), publication.prop_map(Arc::new))
    }

    fn word() -> impl Strategy<Value = Word> {
        let seat = prop_oneof![
            any::<u64>().prop_map(Ok),
            Just(Err(NoSeat::Nobody)),
            Just(Err(NoSeat::TooMany)),
            Just(Err(NoSeat::Unavailable))
        ];
        let jid = "[a-z]{1,9}".prop_map(|name| format!("{name}@localhost/x").parse::<Jid>().unwrap());
        let n = any::<u64>;
        prop_oneof![
            (n(), jid).prop_map(|(link, jid)| Word::Attach { link, jid }),
            (n(), seat).prop_map(|(link, seat)| Word::Attached { link, seat }),
            (n(), any::<usize>(), any::<usize>())
                .prop_map(|(link, items, bytes)| Word::Manage { link, window: Bound { items, bytes } }),
            (n(), n(), envelope()).prop_map(|(link, number, envelope)| Word::Sent { link, number, envelope }),
            (n(), any::<bool>()).prop_map(|(number, saved)| Word::Answered { number, saved }),
            (n(), n(), envelope()).prop_map(|(link, place, envelope)| Word::Deliver { link, place, envelope }),
            (n(), prop::collection::vec(n(), 0..9)).prop_map(|(link, places)| Word::Acked { link, places }),
            (n(), any::<bool>()).prop_map(|(link, gone)| Word::Detach { link, gone }),
            (n(), 0..REASONS.len()).prop_map(|(link, at)| Word::Close { link, why: REASONS[at] }),
            (n(), n()).prop_map(|(link, number)| Word::End { link, number }),
            (n(), prop::collection::vec("[a-z]{0,9}".prop_map(Bytes::from), 0..4))
                .prop_map(|(link, requests)| Word::Begin { link, requests }),
            (n(), envelope()).prop_map(|(number, envelope)| Word::Route { number, envelope }),
            envelope().prop_map(|envelope| Word::Notice { envelope }),
            (seat_name(), published()).prop_map(|(seat, (options, publication))| Word::Owe {
                seat,
                options,
                publication
            }),
            (n(), seat_name(), n()).prop_map(|(number, seat, id)| Word::Keep { number, seat, id }),
            (seat_name(), n(), any::<bool>()).prop_map(|(seat, id, saved)| Word::Land { seat, id, saved }),
            (seat_name(), published()).prop_map(|(seat, (options, publication))| Word::Pass {
                seat,
                options,
                publication
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(word in word(), later in prop::collection::vec(any::<u8>(), 0..9)) {
            let bytes = word.encode();
            let heard = Word::decode(bytes.clone()).unwrap();
            prop_assert_eq!(heard.encode(), &bytes);
            // A newer release says more.
            let more = [&bytes[..], &later].concat();
            prop_assert_eq!(Word::decode(more.into()).unwrap().encode(), bytes);
        }

        #[test]
        fn a_damaged_word_takes_nobody_down(word in word(), cut in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = word.encode().to_vec();
            let at = cut.index(bytes.len());
            let _ = Word::decode(bytes[..at].to_vec().into()).map_err(|_| ());
            prop_assert!(Word::decode(bytes[..at].to_vec().into()).is_err());
            bytes[at] = to;
            let _ = Word::decode(bytes.into());
        }
    }
}
