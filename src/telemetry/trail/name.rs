//! Names of keys, and times, as JSON has them.

use std::fmt;
use std::num::NonZero;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// The name of a key, or a pattern: a text where it is UTF-8, and else its bytes in hexadecimal, as
/// in `{"hex":"ff00"}`. So two names are never written alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Name {
    /// UTF-8.
    Text(String),
    /// Anything else.
    Bytes {
        /// Two digits for each byte.
        hex: String,
    },
}

impl Name {
    /// The name of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Name {
        match std::str::from_utf8(bytes) {
            Ok(text) => Name::Text(text.to_owned()),
            Err(_not_utf8) => {
                Name::Bytes { hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect() }
            }
        }
    }

    /// Its bytes; `None` if it holds no hexadecimal digits.
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Name::Text(text) => Some(text.clone().into_bytes()),
            Name::Bytes { hex } => {
                let digits = hex.as_bytes().chunks(2);
                let byte = |pair: &[u8]| {
                    let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
                    u8::from_str_radix(pair, 16).ok()
                };
                digits.map(byte).collect()
            }
        }
    }
}

/// As a person reads it: what is not printable ASCII is escaped.
impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Text(text) => {
                let shown = text.chars().map(|one| match one {
                    one if one.is_control() => one.escape_default().to_string(),
                    one => one.to_string(),
                });
                formatter.write_str(&shown.collect::<String>())
            }
            Name::Bytes { .. } => {
                let bytes = self.bytes().unwrap_or_default();
                write!(formatter, "{}", bytes.escape_ascii())
            }
        }
    }
}

/// A moment by this machine's clock, microseconds since 1970-01-01 00:00 UTC. In JSON it is a text
/// as in RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Moment(NonZero<u64>);

impl Moment {
    /// Later than any other.
    pub const LAST: Moment = Moment(NonZero::<u64>::MAX);

    /// Now.
    #[must_use]
    pub fn now() -> Moment {
        Moment::at(SystemTime::now())
    }

    /// The moment of a time; what lies before 1970 is 1970.
    #[must_use]
    pub fn at(time: SystemTime) -> Moment {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Moment::of(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    /// The first microsecond stands for what would be none.
    fn of(micros: u64) -> Moment {
        Moment(NonZero::new(micros).unwrap_or(NonZero::<u64>::MIN))
    }

    /// How much later than `earlier` this is; `None` if it is not later.
    #[must_use]
    pub fn since(self, earlier: Moment) -> Option<Duration> {
        self.0.get().checked_sub(earlier.0.get()).map(Duration::from_micros)
    }

    /// The moment so many microseconds later.
    #[must_use]
    pub fn plus(self, micros: i64) -> Moment {
        Moment::of(self.0.get().saturating_add_signed(micros))
    }

    fn time(self) -> SystemTime {
        // Beyond the year 9999 there is no such text.
        SystemTime::UNIX_EPOCH + Duration::from_micros(self.0.get().min(253_402_300_799_000_000))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", humantime::format_rfc3339_micros(self.time()))
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> String {
        moment.to_string()
    }
}

impl TryFrom<String> for Moment {
    type Error = humantime::TimestampError;

    fn try_from(text: String) -> Result<Moment, humantime::TimestampError> {
        humantime::parse_rfc3339(&text).map(Moment::at)
    }
}

#[cfg(test)]
mod tests {
    use super::{Moment, Name};

    #[test]
    fn any_bytes_are_written_so_that_they_are_read_again_and_no_two_alike() {
        let all: [&[u8]; 6] = [b"item:1", b"", "é\n".as_bytes(), b"\xff\x00", b"\xc3", b"ff00"];
        let written: Vec<String> =
            all.iter().map(|bytes| serde_json::to_string(&Name::of(bytes)).unwrap()).collect();
        for (bytes, json) in all.iter().zip(&written) {
            let read: Name = serde_json::from_str(json).unwrap();
            assert_eq!(read.bytes().as_deref(), Some(*bytes), "{json}");
            assert_eq!(written.iter().filter(|other| *other == json).count(), 1, "{json}");
        }
        assert_eq!(written[3], r#"{"hex":"ff00"}"#);
        assert_eq!(Name::Bytes { hex: "f".to_owned() }.bytes(), None);
        assert_eq!(Name::of("a\u{1b}[1A".as_bytes()).to_string(), "a\\u{1b}[1A");
    }

    #[test]
    fn a_moment_is_a_text_of_microseconds() {
        let moment = Moment::of(1_796_000_000_123_456);
        let json = serde_json::to_string(&moment).unwrap();
        assert_eq!(json, "\"2026-11-30T00:53:20.123456Z\"");
        assert_eq!(serde_json::from_str::<Moment>(&json).unwrap(), moment);
        assert_eq!(moment.since(moment.plus(5)), None);
        assert_eq!(moment.plus(5).since(moment).unwrap().as_micros(), 5);
    }
}
