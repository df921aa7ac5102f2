//! Points in time and spans between them, in microseconds, from Postgres's ISO form and from CEL's
//! texts.

const SECOND: i64 = 1_000_000;

/// Postgres's `infinity`, later than every time; its negative is `-infinity`.
pub(super) const INFINITY: i64 = i64::MAX;

/// The longest text that is a time or a span: `294276-12-31 23:59:59.999999+15:59:59 BC`, or many
/// units.
const LENGTH_MAX: usize = 64;

/// Reads a `timestamptz`, `timestamp` or `date` in ISO form, or RFC 3339, into microseconds since
/// 1970-01-01 00:00 UTC; what names no time zone is UTC. `None` if it is none.
pub(super) fn time(text: &[u8]) -> Option<i64> {
    read(text).map(|(time, _)| time)
}

/// Reads a time like [`time()`], if it names its time zone, as RFC 3339 does.
pub(super) fn rfc3339(text: &[u8]) -> Option<i64> {
    read(text).filter(|(_, has_zone)| *has_zone).map(|(time, _)| time)
}

fn read(text: &[u8]) -> Option<(i64, bool)> {
    match text {
        b"infinity" => return Some((INFINITY, false)),
        b"-infinity" => return Some((-INFINITY, false)),
        _ if text.len() > LENGTH_MAX => return None,
        _ => {}
    }
    let (text, is_bc) = text.strip_suffix(b" BC").map_or((text, false), |text| (text, true));
    let mut cursor = Cursor(text);
    let year = cursor.number(4, 6)?;
    let year = if is_bc { 1 - year } else { year };
    cursor.take(b'-')?;
    let month = cursor.number(2, 2).filter(|month| (1..=12).contains(month))?;
    cursor.take(b'-')?;
    let day = cursor.number(2, 2).filter(|day| (1..=days_of_month(year, month)).contains(day))?;
    let days = days_from_civil(year, month, day);
    if cursor.0.is_empty() {
        return Some((days.checked_mul(86_400 * SECOND)?, false));
    }
    cursor.take(b' ').or_else(|| cursor.take(b'T'))?;
    let (mut seconds, mut unit) = (days * 86_400, 3600);
    for most in [24, 59, 60] {
        if unit < 3600 {
            cursor.take(b':')?;
        }
        seconds += cursor.number(2, 2).filter(|value| *value <= most)? * unit;
        unit /= 60;
    }
    let fraction = if cursor.take(b'.').is_some() { cursor.fraction()? } else { 0 };
    let zone = cursor.zone()?;
    let micros = (seconds - zone.unwrap_or(0)).checked_mul(SECOND)?.checked_add(fraction)?;
    (cursor.0.is_empty()).then_some((micros, zone.is_some()))
}

/// Reads a CEL duration, such as `1h30m` or `-1.5s`, into microseconds.
pub(super) fn span(text: &[u8]) -> Option<i64> {
    if text.len() > LENGTH_MAX {
        return None;
    }
    let (is_negative, text) = text.strip_prefix(b"-").map_or((false, text), |text| (true, text));
    let (mut cursor, mut total) = (Cursor(text), 0_i64);
    if text.is_empty() {
        return None;
    }
    while !cursor.0.is_empty() {
        let whole = cursor.number(1, 12)?;
        let fraction = if cursor.take(b'.').is_some() { cursor.fraction()? } else { 0 };
        let letters = cursor.0.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
        let (unit, rest) = cursor.0.split_at(letters);
        let micros = match unit {
            b"h" => 3600 * SECOND,
            b"m" => 60 * SECOND,
            b"s" => SECOND,
            b"ms" => 1000,
            b"us" => 1,
            _ => return None,
        };
        cursor.0 = rest;
        let part = whole.checked_mul(micros)?.checked_add(fraction * (micros / 1000) / 1000)?;
        total = total.checked_add(part)?;
    }
    Some(if is_negative { -total } else { total })
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take(&mut self, wanted: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[wanted])?;
        Some(())
    }

    /// Digits, at least and at most so many.
    fn number(&mut self, least: usize, most: usize) -> Option<i64> {
        let count = self.0.iter().take(most).take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at(count);
        self.0 = rest;
        (count >= least)
            .then(|| digits.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0')))
    }

    /// Digits behind a point, in millionths; more than six are cut.
    fn fraction(&mut self) -> Option<i64> {
        let count = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at(count);
        self.0 = rest;
        let digit = |at: usize| digits.get(at).map_or(0, |digit| i64::from(digit - b'0'));
        (1..=9).contains(&count).then(|| (0..6).fold(0, |sum, at| sum * 10 + digit(at)))
    }

    /// `Z` or an offset in seconds east of UTC; `None` inside if the text ends.
    fn zone(&mut self) -> Option<Option<i64>> {
        if self.0.is_empty() {
            return Some(None);
        }
        if self.take(b'Z').is_some() {
            return Some(Some(0));
        }
        let sign = if self.take(b'-').is_some() { -1 } else { self.take(b'+').map(|()| 1)? };
        let mut seconds = self.number(2, 2)? * 3600;
        for unit in [60, 1] {
            if self.take(b':').is_some() {
                seconds += self.number(2, 2)? * unit;
            }
        }
        Some(Some(sign * seconds))
    }
}

fn days_of_month(year: i64, month: i64) -> i64 {
    let is_leap =
        year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0);
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the Gregorian calendar, which Postgres uses for all of time
/// (<https://howardhinnant.github.io/date_algorithms.html>).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::{INFINITY, rfc3339, span, time};

    #[test]
    fn times_are_those_of_postgres() {
        // select extract(epoch from …)
        for (text, seconds) in [
            ("1970-01-01", 0),
            ("2000-02-29 12:00:00", 951_825_600),
            ("2026-11-21 13:00:00+01", 1_795_262_400),
            ("2026-11-21 13:00:00+05:30", 1_795_246_200),
            ("1890-01-01 00:00:00+00:53:28", -2_524_524_808),
            ("2026-11-21T13:00:00Z", 1_795_266_000),
            ("0044-03-15 BC", -63_517_824_000),
            ("0001-01-01 00:00:00 BC", -62_167_219_200),
            ("12026-01-01", 317_336_745_600),
        ] {
            assert_eq!(time(text.as_bytes()), Some(seconds * 1_000_000), "{text}");
        }
        assert_eq!(time(b"1969-12-31 23:59:59.5+00"), Some(-500_000));
        assert_eq!(time(b"-infinity"), Some(-INFINITY));
        for wrong in ["", "2026", "2026-13-01", "2026-02-29", "2026-01-01 25:00:00", "x", "now"] {
            assert_eq!(time(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(rfc3339(b"2026-11-21T13:00:00"), None);
        assert_eq!(rfc3339(b"1970-01-01T00:00:01.000001Z"), Some(1_000_001));
    }

    #[test]
    fn spans_are_those_of_cel() {
        for (text, micros) in [
            ("1h30m", Some(5_400_000_000)),
            ("-1.5s", Some(-1_500_000)),
            ("250ms", Some(250_000)),
            ("0.5h", Some(1_800_000_000)),
            ("10", None),
            ("", None),
            ("1d", None),
            ("999999999999h", None),
        ] {
            assert_eq!(span(text.as_bytes()), micros, "{text}");
        }
    }
}
