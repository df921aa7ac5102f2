//! A position in the write-ahead log.

use std::fmt;
use std::str::FromStr;

/// A log sequence number: a byte position in the write-ahead log, printed as Postgres prints
/// `pg_lsn` (<https://www.postgresql.org/docs/current/datatype-pg-lsn.html>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Position 0, which Postgres calls `InvalidXLogRecPtr`: no position at all.
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes of log between `earlier` and this position; 0 when `earlier` is the later one.
    #[must_use]
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is not of the form `16/B374D848`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a log sequence number of the form `16/B374D848`")]
pub struct ParseError;

impl FromStr for Lsn {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Lsn, ParseError> {
        let (high, low) = text.split_once('/').ok_or(ParseError)?;
        let half = |digits: &str| match digits.len() {
            1..=8 if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                u64::from_str_radix(digits, 16).ok()
            }
            _ => None,
        };
        match (half(high), half(low)) {
            (Some(high), Some(low)) => Ok(Lsn(high << 32 | low)),
            _ => Err(ParseError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Lsn, ParseError};

    #[test]
    fn prints_and_parses_as_postgres_does() {
        for (lsn, text) in [
            (Lsn(0), "0/0"),
            (Lsn(0x16_B374_D848), "16/B374D848"),
            (Lsn(u64::MAX), "FFFFFFFF/FFFFFFFF"),
        ] {
            assert_eq!(lsn.to_string(), text);
            assert_eq!(text.parse(), Ok(lsn));
        }
        for text in ["", "16", "16/", "/B", "16/B374D8480", "+1/2", "1/2/3", "x/1"] {
            assert_eq!(text.parse::<Lsn>(), Err(ParseError), "{text}");
        }
    }
}
