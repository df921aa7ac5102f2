//! Filters, which may stand behind a `|` in a placeholder: one variant, one row of [`NAMES`], one
//! arm of [`Filter::apply`] each.

use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use sha2::{Digest, Sha256};

/// A filter of a placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// Lower case, by Unicode.
    Lower,
    /// `a-z`, `0-9` and single dashes, from text in any script.
    Slug,
    /// The result of JavaScript's `encodeURIComponent`.
    UrlEncode,
    /// This many leading hex digits of the SHA-256 sum, 1 to 64.
    Sha256(u8),
    /// This text in the place of NULL.
    Default(String),
}

/// A mistake in a template or a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) message: String,
    pub(super) hint: String,
}

impl Flaw {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Flaw {
        Flaw { message: message.into(), hint: hint.into() }
    }
}

/// The value is not UTF-8, and the filter needs text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotText;

const NAMES: [&str; 5] = ["lower", "slug", "urlencode", "sha256", "default"];

/// `encodeURIComponent` keeps letters, digits and these, by ECMA-262 section 19.2.6.4.
const URL_ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'!')
    .remove(b'~')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')');

impl Filter {
    /// Reads a filter's name and its argument, which stands behind a `:`.
    pub(super) fn parse(name: &str, argument: Option<String>) -> Result<Filter, Flaw> {
        match (name, argument) {
            ("lower", None) => Ok(Filter::Lower),
            ("slug", None) => Ok(Filter::Slug),
            ("urlencode", None) => Ok(Filter::UrlEncode),
            ("sha256", None) => Ok(Filter::Sha256(64)),
            ("sha256", Some(digits)) => match digits.trim().parse() {
                Ok(count @ 1..=64) => Ok(Filter::Sha256(count)),
                _ => Err(Flaw::new(
                    format!("filter `sha256` has an invalid length `{}`", digits.trim()),
                    "give the number of hex digits, 1 to 64, such as `sha256:16`",
                )),
            },
            ("default", Some(text)) => Ok(Filter::Default(text)),
            ("default", None) => Err(Flaw::new(
                "filter `default` has no text",
                "name the text that the application uses for NULL, such as `default:none`",
            )),
            ("", _) => Err(Flaw::new(
                "a filter is empty",
                format!("remove the `|`, or name a filter: {}", list()),
            )),
            (name, Some(_)) if NAMES.contains(&name) => Err(Flaw::new(
                format!("filter `{name}` takes no argument"),
                format!("write `|{name}`"),
            )),
            (name, _) => Err(Flaw::new(format!("unknown filter `{name}`"), meant(name))),
        }
    }

    /// Appends what the filter makes of a known value.
    pub(super) fn apply(&self, value: &[u8], out: &mut Vec<u8>) -> Result<(), NotText> {
        match self {
            Filter::Lower if value.is_ascii() => {
                out.extend(value.iter().map(u8::to_ascii_lowercase));
            }
            Filter::Lower => out.extend_from_slice(text(value)?.to_lowercase().as_bytes()),
            Filter::Slug => out.extend_from_slice(slug::slugify(text(value)?).as_bytes()),
            Filter::UrlEncode => {
                for part in percent_encode(value, URL_ENCODED) {
                    out.extend_from_slice(part.as_bytes());
                }
            }
            Filter::Sha256(digits) => {
                push_hex(out, &Sha256::digest(value), usize::from(*digits));
            }
            Filter::Default(_) => out.extend_from_slice(value),
        }
        Ok(())
    }

    /// The filter as a template writes it, arguments complete.
    pub(super) fn canonical(&self) -> String {
        match self {
            Filter::Lower => "lower".to_owned(),
            Filter::Slug => "slug".to_owned(),
            Filter::UrlEncode => "urlencode".to_owned(),
            Filter::Sha256(digits) => format!("sha256:{digits}"),
            Filter::Default(text) => format!("default:{text}"),
        }
    }
}

fn text(value: &[u8]) -> Result<&str, NotText> {
    std::str::from_utf8(value).ok().ok_or(NotText)
}

/// The first `digits` hex digits of `bytes`.
pub(super) fn push_hex(out: &mut Vec<u8>, bytes: &[u8], digits: usize) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    out.extend(nibbles.take(digits).map(|nibble| HEX[usize::from(nibble)]));
}

fn list() -> String {
    let mut list = String::new();
    for (at, name) in NAMES.into_iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        write!(list, "{comma}`{name}`").expect("a string takes any text");
    }
    list
}

fn meant(name: &str) -> String {
    let name = name.to_lowercase();
    let nearest = NAMES.into_iter().max_by(|one, other| {
        strsim::jaro_winkler(one, &name).total_cmp(&strsim::jaro_winkler(other, &name))
    });
    match nearest.filter(|nearest| strsim::jaro_winkler(nearest, &name) > 0.75) {
        Some(nearest) => format!("did you mean `{nearest}`; the filters are {}", list()),
        None => format!("the filters are {}", list()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Filter, NotText};

    #[track_caller]
    fn check(filter: (&str, Option<&str>), value: &[u8], expected: Result<&str, NotText>) {
        let filter = Filter::parse(filter.0, filter.1.map(str::to_owned)).unwrap();
        let mut out = Vec::new();
        let applied = filter.apply(value, &mut out);
        assert_eq!(
            applied.map(|()| String::from_utf8(out).unwrap().as_str().to_owned()),
            expected.map(str::to_owned)
        );
    }

    #[test]
    fn a_slug_is_ascii_from_any_script() {
        check(("slug", None), "Bodø/Glimt".as_bytes(), Ok("bodo-glimt"));
        check(("slug", None), b"", Ok(""));
        check(("slug", None), b"\xff", Err(NotText));
    }

    #[test]
    fn lower_knows_more_than_ascii() {
        check(("lower", None), b"ABC*", Ok("abc*"));
        check(("lower", None), "BODØ".as_bytes(), Ok("bodø"));
        check(("lower", None), b"\xff", Err(NotText));
    }

    #[test]
    fn urlencode_is_encode_uri_component() {
        check(
            ("urlencode", None),
            "Bodø/Glimt [W]*".as_bytes(),
            Ok("Bod%C3%B8%2FGlimt%20%5BW%5D*"),
        );
        check(("urlencode", None), b"-_.!~*'()", Ok("-_.!~*'()"));
        check(("urlencode", None), b";,/?:@&=+$#", Ok("%3B%2C%2F%3F%3A%40%26%3D%2B%24%23"));
        check(("urlencode", None), b"\xff", Ok("%FF"));
    }

    #[test]
    fn sha256_takes_bytes_and_cuts_to_any_length() {
        let whole = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        check(("sha256", None), b"abc", Ok(whole));
        check(("sha256", Some("1")), b"abc", Ok("b"));
        check(("sha256", Some("16")), b"abc", Ok("ba7816bf8f01cfea"));
        check(("sha256", Some("8")), b"\xff", Ok("a8100ae6"));
    }

    #[test]
    fn a_wrong_filter_names_the_right_one() {
        let flaw = |name: &str, argument: Option<&str>| {
            let flaw = Filter::parse(name, argument.map(str::to_owned)).unwrap_err();
            format!("{} / {}", flaw.message, flaw.hint)
        };
        assert!(flaw("lowr", None).starts_with("unknown filter `lowr` / did you mean `lower`"));
        assert!(flaw("xyz", None).starts_with("unknown filter `xyz` / the filters are `lower`, "));
        assert!(flaw("slug", Some("3")).starts_with("filter `slug` takes no argument"));
        assert!(flaw("sha256", Some("0")).contains("invalid length `0`"));
        assert!(flaw("sha256", Some("65")).contains("invalid length `65`"));
        assert!(flaw("default", None).starts_with("filter `default` has no text"));
    }
}
