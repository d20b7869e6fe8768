//! What was said in a room lately (XEP-0045 §7.2.13, §7.2.14), bounded in messages and in bytes.

use std::collections::VecDeque;
use tavi_core::Envelope;
use tavi_xmpp_proto::{Element, ns};

/// What a client wants of it when it enters.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    max_stanzas: Option<usize>,
    max_chars: Option<usize>,
    /// Nothing from before this moment, milliseconds since 1970.
    since_ms: u64,
}

impl Wish {
    /// XEP-0045 §7.2.14: what the entering presence says; what cannot be read is not wanted.
    pub(super) fn read(muc: &Element, now_ms: u64) -> Wish {
        let Some(history) = muc.get_child(ns::MUC, "history") else { return Wish::default() };
        let number = |name: &str| history.get_attr(name).and_then(|text| text.trim().parse::<u64>().ok());
        let seconds = number("seconds").map(|seconds| now_ms.saturating_sub(seconds.saturating_mul(1_000)));
        let since = history.get_attr("since").and_then(parse_time);
        Wish {
            max_stanzas: number("maxstanzas").map(|n| n as usize),
            max_chars: number("maxchars").map(|n| n as usize),
            since_ms: seconds.unwrap_or(0).max(since.unwrap_or(0)),
        }
    }
}

/// One message that was said.
struct Line {
    /// With its delay, but for nobody yet.
    told: Envelope,
    time_ms: u64,
    bytes: usize,
    chars: usize,
}

/// The last messages, oldest first.
#[derive(Default)]
pub(super) struct History {
    lines: VecDeque<Line>,
    bytes: usize,
}

impl History {
    /// Adds a message that `room` sent at this time; older ones make way.
    pub(super) fn push(&mut self, room: &str, said: &Envelope, time_ms: u64, (items, bytes): (usize, usize)) {
        let mut told = said.clone();
        told.add_delay(room, time_ms);
        let text = told.to_bytes();
        let chars = String::from_utf8_lossy(&text).chars().count();
        self.bytes += text.len();
        self.lines.push_back(Line { told, time_ms, bytes: text.len(), chars });
        while self.lines.len() > items || self.bytes > bytes {
            let Some(line) = self.lines.pop_front() else { return };
            self.bytes -= line.bytes;
        }
    }

    /// The messages that fit a wish: the last ones, oldest first.
    pub(super) fn told(&self, wish: &Wish) -> impl Iterator<Item = &Envelope> {
        let (mut stanzas, mut chars) = (0, 0_usize);
        let fits = self.lines.iter().rev().take_while(|line| {
            stanzas += 1;
            chars = chars.saturating_add(line.chars);
            line.time_ms >= wish.since_ms
                && wish.max_stanzas.is_none_or(|most| stanzas <= most)
                && wish.max_chars.is_none_or(|most| chars <= most)
        });
        let skip = self.lines.len() - fits.count();
        self.lines.iter().skip(skip).map(|line| &line.told)
    }
}

/// XEP-0082 §3.2 in UTC or with an offset; milliseconds since 1970. Times before that are its beginning.
pub(super) fn parse_time(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = |at: usize, len: usize| text.get(at..at + len)?.parse::<u16>().ok().map(i64::from);
    let signs = [(4, '-'), (7, '-'), (10, 'T'), (13, ':'), (16, ':')];
    if !text.is_ascii() || signs.iter().any(|(at, sign)| text.as_bytes().get(*at) != Some(&(*sign as u8))) {
        return None;
    }
    let (year, month, day) = (digits(0, 4)?, digits(5, 2)?, digits(8, 2)?);
    let (hour, minute, second) = (digits(11, 2)?, digits(14, 2)?, digits(17, 2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 24 || minute > 59 || second > 60 {
        return None;
    }
    let zone = text[19..].trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let minutes = (days(year, month, day) * 24 + hour) * 60 + minute - offset(zone)?;
    u64::try_from((minutes * 60 + second) * 1_000).ok().or(Some(0))
}

/// Minutes east of Greenwich.
fn offset(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone[1..].split_once(':')?;
    let (hours, minutes) = (hours.parse::<u8>().ok()?, minutes.parse::<u8>().ok()?);
    Some(sign * (i64::from(hours) * 60 + i64::from(minutes)))
}

/// Days from 1970-01-01, by the Gregorian calendar; a year begins with March here, so that a leap day is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use tavi_core::clock::xmpp_time;
    use tavi_xmpp_proto::Stanza;

    #[test]
    fn times_are_read_as_they_are_written() {
        for ms in [0, 951_782_400_000, 1_795_359_600_000, 4_102_444_799_000] {
            assert_eq!(parse_time(&xmpp_time(ms)), Some(ms), "{}", xmpp_time(ms));
        }
        assert_eq!(parse_time("1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(parse_time("1969-07-21T02:56:15Z"), Some(0));
        for bad in
            ["", "yesterday", "2026-13-01T00:00:00Z", "2026-11-25T15:00:00", "2026-11-25T15:00:00+1", "٢٠٢٦-11-25"]
        {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    fn history() -> History {
        let mut history = History::default();
        for n in 1..=9_u64 {
            let said =
                Stanza::parse(format!("<message type='groupchat'><body>{n}</body></message>").as_bytes()).unwrap();
            history.push("coven@rooms.localhost", &said.into(), n * 1_000, (5, 10_000));
        }
        history
    }

    fn told(wish: &Wish) -> String {
        history().told(wish).filter_map(|env| env.stanza.body()).collect()
    }

    #[test]
    fn a_newcomer_gets_the_last_ones_that_fit() {
        assert_eq!(told(&Wish::default()), "56789");
        assert_eq!(told(&Wish { max_stanzas: Some(2), ..Wish::default() }), "89");
        assert_eq!(told(&Wish { max_stanzas: Some(0), ..Wish::default() }), "");
        assert_eq!(told(&Wish { max_chars: Some(0), ..Wish::default() }), "");
        assert_eq!(told(&Wish { since_ms: 7_500, ..Wish::default() }), "89");
        let one = history().told(&Wish::default()).next().unwrap().to_bytes().len();
        assert_eq!(told(&Wish { max_chars: Some(2 * one), ..Wish::default() }), "89");
        assert_eq!(told(&Wish { max_chars: Some(2 * one - 1), ..Wish::default() }), "9");
    }

    #[test]
    fn a_wish_is_read() {
        let read = |attributes: &str| {
            let xml = format!("<x xmlns='http://jabber.org/protocol/muc'><history {attributes}/></x>");
            Wish::read(&Element::parse(xml.as_bytes(), "").unwrap(), 100_000)
        };
        assert_eq!(read("maxstanzas='3'"), Wish { max_stanzas: Some(3), ..Wish::default() });
        assert_eq!(read("seconds='40' since='1970-01-01T00:01:10Z'").since_ms, 70_000);
        assert_eq!(read("maxchars='-1' seconds='x'"), Wish::default());
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut history = History::default();
        for n in 0..100 {
            let said =
                Stanza::parse(format!("<message><body>{}</body></message>", "x".repeat(n * 10)).as_bytes()).unwrap();
            history.push("a@b", &said.into(), n as u64, (1_000, 4_000));
            assert!(history.bytes <= 4_000);
        }
        assert_eq!(history.bytes, history.lines.iter().map(|line| line.bytes).sum::<usize>());
        assert!(!history.lines.is_empty());
    }
}
