//! A column's text as a value, by its type, and how two values compare.

use std::cmp::Ordering;
use std::io::Write;

use super::evaluate::Fault;
use super::{decimal, time};

/// The kind of value that a part of the condition gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::keys) enum Kind {
    /// Not known before it is evaluated.
    Any,
    Null,
    Bool,
    Int,
    Double,
    /// `numeric`: compared exactly; nothing is computed with it.
    Decimal,
    Text,
    /// `char(n)`: the blanks at its end do not count.
    Padded,
    /// A type whose text alone is known, as psql shows it: it has no order.
    Label,
    Time,
    Span,
}

/// A value; what comes from the row is borrowed from it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Decimal(&'a [u8]),
    Text(&'a [u8]),
    Label(&'a [u8]),
    Time(i64),
    Span(i64),
}

/// The kind of a built-in type by its oid in `pg_type.dat`, which never changes; a domain has the
/// oid of the type that it is made of.
pub(in crate::keys) fn kind_of(type_id: u32) -> Kind {
    match type_id {
        16 => Kind::Bool,
        // int8, int2, int4, oid.
        20 | 21 | 23 | 26 => Kind::Int,
        700 | 701 => Kind::Double,
        1700 => Kind::Decimal,
        // "char", name, text, varchar.
        18 | 19 | 25 | 1043 => Kind::Text,
        1042 => Kind::Padded,
        // date, timestamp, timestamptz.
        1082 | 1114 | 1184 => Kind::Time,
        _ => Kind::Label,
    }
}

impl Kind {
    /// Gives its name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Any => "a value",
            Kind::Null => "null",
            Kind::Bool => "true or false",
            Kind::Int => "an integer",
            Kind::Double => "a double",
            Kind::Decimal => "a numeric",
            Kind::Text | Kind::Padded => "a text",
            Kind::Label => "a value known by its text alone",
            Kind::Time => "a timestamp",
            Kind::Span => "a duration",
        }
    }
}

/// Reads a column's text, a boolean as it stands in keys.
#[inline]
pub(super) fn read(kind: Kind, text: &[u8]) -> Result<Value<'_>, Fault> {
    let number = |text| std::str::from_utf8(text).ok();
    let value = match kind {
        Kind::Bool => match text {
            b"true" => Some(Value::Bool(true)),
            b"false" => Some(Value::Bool(false)),
            _ => None,
        },
        Kind::Int => number(text).and_then(|text| text.parse().ok()).map(Value::Int),
        Kind::Double => number(text).and_then(|text| text.parse().ok()).map(Value::Double),
        Kind::Decimal => Some(Value::Decimal(text)),
        Kind::Text => Some(Value::Text(text)),
        Kind::Padded => Some(Value::Text(trimmed(text))),
        Kind::Time => time::time(text).map(Value::Time),
        Kind::Any | Kind::Null | Kind::Span | Kind::Label => Some(Value::Label(text)),
    };
    value.ok_or(Fault::Malformed)
}

fn trimmed(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &text[..end]
}

/// Whether two values are the same. NULL is equal to NULL alone.
pub(super) fn equal(one: Value<'_>, other: Value<'_>) -> Result<bool, Fault> {
    match (one, other) {
        (Value::Null, Value::Null) => Ok(true),
        (Value::Null, _) | (_, Value::Null) => Ok(false),
        (Value::Text(one) | Value::Label(one), Value::Text(other) | Value::Label(other)) => {
            Ok(one == other)
        }
        // Not simply different: a column whose type was changed under a rule must not silence it.
        _ => compare(one, other).map(Ordering::is_eq),
    }
}

/// The order of two values. Texts are compared by their bytes, numbers by value.
pub(super) fn compare(one: Value<'_>, other: Value<'_>) -> Result<Ordering, Fault> {
    let decimals = |one: &[u8], other: &[u8]| decimal::compare(one, other).ok_or(Fault::Malformed);
    match (one, other) {
        (Value::Int(one), Value::Int(other))
        | (Value::Time(one), Value::Time(other))
        | (Value::Span(one), Value::Span(other)) => Ok(one.cmp(&other)),
        (Value::Bool(one), Value::Bool(other)) => Ok(one.cmp(&other)),
        (Value::Text(one), Value::Text(other)) => Ok(one.cmp(other)),
        (Value::Double(one), Value::Double(other)) => Ok(doubles(one, other)),
        (Value::Int(one), Value::Double(other)) => Ok(int_and_double(one, other)),
        (Value::Double(one), Value::Int(other)) => Ok(int_and_double(other, one).reverse()),
        (Value::Decimal(one), Value::Decimal(other)) => decimals(one, other),
        (Value::Decimal(one), Value::Int(other)) => decimals(one, Number::of(other).text()),
        (Value::Int(one), Value::Decimal(other)) => decimals(Number::of(one).text(), other),
        (Value::Decimal(one), Value::Double(other)) => decimals(one, Number::of(other).text()),
        (Value::Double(one), Value::Decimal(other)) => decimals(Number::of(one).text(), other),
        (Value::Null, _) | (_, Value::Null) => Err(Fault::Null),
        _ => Err(Fault::Type),
    }
}

/// By Postgres's order: NaN equals itself and is greater than all else.
fn doubles(one: f64, other: f64) -> Ordering {
    one.partial_cmp(&other).unwrap_or_else(|| one.is_nan().cmp(&other.is_nan()))
}

/// Exactly: an integer has more digits than a double.
#[expect(clippy::cast_possible_truncation, reason = "the whole part is in the range")]
fn int_and_double(int: i64, double: f64) -> Ordering {
    /// 2 to the power of 63.
    const END: f64 = 9_223_372_036_854_775_808.0;
    if double.is_nan() || double >= END {
        Ordering::Less
    } else if double < -END {
        Ordering::Greater
    } else {
        let whole = double.trunc();
        int.cmp(&(whole as i64)).then_with(|| doubles(0.0, double - whole))
    }
}

/// A number written out. The longest is a double: 309 digits before the point or 325 behind it.
struct Number {
    buffer: [u8; 344],
    len: usize,
}

impl Number {
    fn of(number: impl std::fmt::Display) -> Number {
        let mut buffer = [0; 344];
        let size = buffer.len();
        let mut rest = &mut buffer[..];
        // What does not fit would leave a text that is no number, and so a fault.
        let is_whole = write!(rest, "{number}").is_ok();
        let len = if is_whole { size - rest.len() } else { 0 };
        Number { buffer, len }
    }

    fn text(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::{Value, compare};

    #[test]
    fn numbers_of_all_kinds_compare_exactly() {
        let big = 9_007_199_254_740_993;
        for (one, other, order) in [
            (Value::Int(big), Value::Double(9_007_199_254_740_992.0), Ordering::Greater),
            (Value::Int(i64::MAX), Value::Double(9.3e18), Ordering::Less),
            (Value::Int(i64::MIN), Value::Double(-9_223_372_036_854_775_808.0), Ordering::Equal),
            (Value::Int(-1), Value::Double(-1.5), Ordering::Greater),
            (Value::Int(1), Value::Double(f64::NAN), Ordering::Less),
            (Value::Double(f64::NAN), Value::Double(f64::INFINITY), Ordering::Greater),
            (Value::Double(-0.0), Value::Double(0.0), Ordering::Equal),
            (Value::Decimal(b"9007199254740993"), Value::Int(big), Ordering::Equal),
            (Value::Decimal(b"0.10"), Value::Double(0.1), Ordering::Equal),
            (Value::Decimal(b"0.1000000000000000055"), Value::Double(0.1), Ordering::Greater),
            (Value::Decimal(b"1"), Value::Double(f64::MIN_POSITIVE), Ordering::Greater),
            (Value::Decimal(b"1"), Value::Double(f64::MAX), Ordering::Less),
            (Value::Decimal(b"NaN"), Value::Double(f64::INFINITY), Ordering::Greater),
        ] {
            assert_eq!(compare(one, other), Ok(order), "{one:?} {other:?}");
            assert_eq!(compare(other, one), Ok(order.reverse()), "{other:?} {one:?}");
        }
    }
}
