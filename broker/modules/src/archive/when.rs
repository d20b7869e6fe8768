//! Reading dates and times of XEP-0082 §3.2.

/// A moment: milliseconds since 1970 in UTC, and whether it lies somewhat behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub ms: u64,
    pub behind: bool,
}

/// `CCYY-MM-DDThh:mm:ss[.sss]TZD`; the zone is `Z` or an offset. One before 1970 is 1970.
pub(super) fn parse(text: &str) -> Option<Moment> {
    let (date, rest) = text.split_once('T')?;
    let mut date = date.splitn(3, '-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let at = rest.find(['Z', '+', '-'])?;
    let (time, zone) = rest.split_at(at);
    let (time, fraction) = time.split_once('.').map_or((time, None), |(time, fraction)| (time, Some(fraction)));
    let mut time = time.splitn(3, ':').map(number);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let is_real = (1..=12).contains(&month) && (1..=days_of(year, month)).contains(&day);
    // A leap second is the next one.
    if !is_real || year > 9_999 || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (ms, behind) = fraction.map_or(Some((0, false)), milliseconds)?;
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset(zone)?;
    match u64::try_from(seconds) {
        Ok(seconds) => Some(Moment { ms: seconds * 1_000 + ms, behind }),
        Err(_) => Some(Moment { ms: 0, behind: false }),
    }
}

/// Digits and nothing else.
fn number(text: &str) -> Option<i64> {
    let plain = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn milliseconds(fraction: &str) -> Option<(u64, bool)> {
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let ms = fraction.bytes().chain([b'0'; 3]).take(3).fold(0, |ms, digit| ms * 10 + u64::from(digit - b'0'));
    Some((ms, fraction.bytes().skip(3).any(|digit| digit != b'0')))
}

/// Seconds that a zone is before UTC.
fn offset(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let (sign, (hours, minutes)) = (&zone[..1], zone[1..].split_once(':')?);
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let seconds = (hours <= 23 && minutes <= 59).then_some(hours * 3_600 + minutes * 60)?;
    Some(if sign == "-" { -seconds } else { seconds })
}

fn days_of(year: i64, month: i64) -> i64 {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// In the Gregorian calendar, with years from 1 March.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, month) = (year.div_euclid(400), (month + 9) % 12);
    let of_era = year.rem_euclid(400);
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use tavi_core::clock::xmpp_time;

    #[test]
    fn what_the_broker_writes_is_read() {
        for ms in (0..4_000_000_000_000).step_by(12_345_678_901).chain([951_782_400_000, 951_868_799_999]) {
            assert_eq!(parse(&xmpp_time(ms)), Some(Moment { ms, behind: false }), "{}", xmpp_time(ms));
        }
    }

    #[test]
    fn zones_and_fractions_are_read_and_what_is_no_time_is_not() {
        let at = |ms, behind| Some(Moment { ms, behind });
        assert_eq!(parse("1969-07-21T02:56:15Z"), at(0, false));
        assert_eq!(parse("1970-01-01T01:00:00+01:00"), at(0, false));
        assert_eq!(parse("1969-12-31T21:56:15-05:00"), at(10_575_000, false));
        assert_eq!(parse("1970-01-01T00:00:00.5Z"), at(500, false));
        assert_eq!(parse("1970-01-01T00:00:00.123000Z"), at(123, false));
        assert_eq!(parse("1970-01-01T00:00:00.1230001Z"), at(123, true));
        let wrong = [
            "",
            "T",
            "Z",
            "1970-01-01",
            "1970-01-01T00:00:00",
            "1970-13-01T00:00:00Z",
            "1970-02-29T00:00:00Z",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00+1",
            "1970-01-01T00:00:00+é:00",
            "+970-01-01T00:00:00Z",
            "19700-01-01T00:00:00Z",
            "1970-01-01T00:00:00ZZ",
            "1970-01-01T00:00Z",
            "1970-01-01T00:00:0é0Z",
            "1970-01-01T00:00:00é",
        ];
        wrong.into_iter().for_each(|text| assert_eq!(parse(text), None, "{text}"));
    }
}
