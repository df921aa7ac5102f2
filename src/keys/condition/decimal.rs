//! Numbers in decimal notation, compared digit by digit: a `numeric` has more than a double.

use std::cmp::Ordering;

/// The parts of a number; what is left out is zero.
#[derive(Clone, Copy, Debug)]
struct Digits<'a> {
    is_negative: bool,
    /// Without zeros at the start.
    whole: &'a [u8],
    /// Without zeros at the end.
    fraction: &'a [u8],
}

/// A `numeric` as Postgres prints it, in its order
/// (<https://www.postgresql.org/docs/current/datatype-numeric.html>).
#[derive(Clone, Copy, Debug)]
enum Number<'a> {
    NegativeInfinity,
    Finite(Digits<'a>),
    Infinity,
    NaN,
}

/// Compares two numbers in decimal notation by Postgres's order, in which NaN equals itself and is
/// greater than all else; `None` if a text is no such number.
pub(super) fn compare(one: &[u8], other: &[u8]) -> Option<Ordering> {
    Some(match (read(one)?, read(other)?) {
        (Number::Finite(one), Number::Finite(other)) => finite(one, other),
        (one, other) => rank(one).cmp(&rank(other)),
    })
}

fn rank(number: Number<'_>) -> u8 {
    match number {
        Number::NegativeInfinity => 0,
        Number::Finite(_) => 1,
        Number::Infinity => 2,
        Number::NaN => 3,
    }
}

fn finite(one: Digits<'_>, other: Digits<'_>) -> Ordering {
    let magnitude = || {
        let whole = one.whole.len().cmp(&other.whole.len()).then(one.whole.cmp(other.whole));
        whole.then(one.fraction.cmp(other.fraction))
    };
    match (one.is_negative, other.is_negative) {
        (false, false) => magnitude(),
        (true, true) => magnitude().reverse(),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
    }
}

fn read(text: &[u8]) -> Option<Number<'_>> {
    match text {
        b"NaN" => return Some(Number::NaN),
        b"Infinity" | b"inf" => return Some(Number::Infinity),
        b"-Infinity" | b"-inf" => return Some(Number::NegativeInfinity),
        _ => {}
    }
    let (is_negative, rest) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let dot = rest.iter().position(|byte| *byte == b'.').unwrap_or(rest.len());
    let (whole, fraction) = rest.split_at(dot);
    let fraction = fraction.get(1..).unwrap_or_default();
    let are_digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    if whole.is_empty() && fraction.is_empty() || !are_digits(whole) || !are_digits(fraction) {
        return None;
    }
    let start = whole.iter().position(|digit| *digit != b'0').unwrap_or(whole.len());
    let end = fraction.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
    let (whole, fraction) = (&whole[start..], &fraction[..end]);
    let is_zero = whole.is_empty() && fraction.is_empty();
    Some(Number::Finite(Digits { is_negative: is_negative && !is_zero, whole, fraction }))
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::compare;

    #[test]
    fn numbers_compare_by_value() {
        let ascending =
            ["-Infinity", "-10", "-9.5", "-0.01", "0", "0.001", "0.01", "1", "1.5", "9"];
        let more = ["10", "10.000000000000000000001", "123456789012345678901", "Infinity", "NaN"];
        let all: Vec<&str> = ascending.into_iter().chain(more).collect();
        for (at, one) in all.iter().enumerate() {
            for (place, other) in all.iter().enumerate() {
                let found = compare(one.as_bytes(), other.as_bytes());
                assert_eq!(found, Some(at.cmp(&place)), "{one} {other}");
            }
        }
        for (one, other) in [("1.0", "1.000"), ("-0", "0.00"), ("007", "7"), (".5", "0.50")] {
            assert_eq!(compare(one.as_bytes(), other.as_bytes()), Some(Ordering::Equal), "{one}");
        }
        for wrong in ["", "-", ".", "1e5", "1.2.3", " 1", "x"] {
            assert_eq!(compare(wrong.as_bytes(), b"1"), None, "{wrong}");
        }
    }
}
