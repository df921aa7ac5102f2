//! A text in another language inside of the configuration, whose own problems must point into the
//! file.

use super::Location;

/// A text, and how the file writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The text.
    pub text: String,
    /// Where its quotes begin.
    pub at: Location,
    /// The quoted form.
    raw: String,
}

impl Script {
    /// A text whose quoted form, `raw`, begins at `at`.
    #[must_use]
    pub fn new(text: String, at: Location, raw: &str) -> Script {
        Script { text, at, raw: raw.to_owned() }
    }

    /// Where a byte of the text stands in the file; where the quotes begin if that cannot be told,
    /// as behind an environment variable that was filled in.
    #[must_use]
    pub fn place(&self, offset: usize) -> Location {
        let mut places = Vec::new();
        let text = unquote(&self.raw, &mut places);
        if text.as_deref() != Some(self.text.as_str()) {
            return self.at.clone();
        }
        let Some(raw) = places.get(offset).and_then(|at| self.raw.get(..*at)) else {
            return self.at.clone();
        };
        let Location { line, column, key } = self.at.clone();
        match raw.rfind('\n') {
            None => Location { line, column: column + raw.chars().count(), key },
            Some(end) => {
                let column = raw.get(end + 1..).map_or(0, |rest| rest.chars().count()) + 1;
                Location { line: line + raw.matches('\n').count(), column, key }
            }
        }
    }
}

/// Gives what a TOML string says (<https://toml.io/en/v1.1.0#string>), and for each of its bytes,
/// and its end, where in `raw` that comes from; `None` if it is no string.
fn unquote(raw: &str, places: &mut Vec<usize>) -> Option<String> {
    let quote = raw.chars().next().filter(|quote| ['"', '\''].contains(quote))?;
    let triple = quote.to_string().repeat(3);
    let count = if raw.len() >= 6 && raw.starts_with(&triple) { 3 } else { 1 };
    let body = raw.get(count..raw.len().checked_sub(count)?)?;
    // The line break right behind three quotes does not count.
    let trimmed = if count == 3 {
        body.strip_prefix("\r\n").or(body.strip_prefix('\n')).unwrap_or(body)
    } else {
        body
    };
    let start = count + body.len() - trimmed.len();
    let (mut text, mut rest) = (String::new(), trimmed);
    while let Some(next) = rest.chars().next() {
        let at = start + trimmed.len() - rest.len();
        let (character, used) = match next {
            '\\' if quote == '"' => escape(rest)?,
            // A line break is `\n`, whatever the file has.
            '\r' if rest.starts_with("\r\n") => (Some('\n'), 2),
            other => (Some(other), other.len_utf8()),
        };
        if let Some(character) = character {
            text.push(character);
            places.resize(text.len(), at);
        }
        rest = rest.get(used..)?;
    }
    places.push(start + trimmed.len());
    Some(text)
}

/// Gives the character that an escape stands for, if there is one, and its length in bytes.
fn escape(text: &str) -> Option<(Option<char>, usize)> {
    let code = |digits: usize| {
        let code = u32::from_str_radix(text.get(2..2 + digits)?, 16).ok()?;
        Some((Some(char::from_u32(code)?), 2 + digits))
    };
    let simple = |character| Some((Some(character), 2));
    match text.chars().nth(1)? {
        'b' => simple('\u{8}'),
        't' => simple('\t'),
        'n' => simple('\n'),
        'f' => simple('\u{c}'),
        'r' => simple('\r'),
        'e' => simple('\u{1b}'),
        character @ ('"' | '\\') => simple(character),
        'x' => code(2),
        'u' => code(4),
        'U' => code(8),
        // At the end of a line: the break and all blanks behind it do not count.
        space if space.is_ascii_whitespace() => {
            let rest = text.get(1..)?;
            let kept = rest.trim_start_matches([' ', '\t', '\r', '\n']);
            Some((None, 1 + rest.len() - kept.len()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Location, Script};

    #[track_caller]
    fn check(raw: &str, text: &str, wanted: &str, (line, column): (usize, usize)) {
        let at = Location { line: 3, column: 8, key: "rule.0.when".to_owned() };
        let script = Script::new(text.to_owned(), at.clone(), raw);
        let place = script.place(text.find(wanted).unwrap());
        assert_eq!((place.line, place.column), (line, column), "{raw}");
        assert_eq!(place.key, at.key);
    }

    #[test]
    fn a_place_in_the_text_is_one_in_the_file() {
        check("\"a == b\"", "a == b", "b", (3, 14));
        check("'a == b'", "a == b", "b", (3, 14));
        check("\"ø == \\\"x\\\" && b\"", "ø == \"x\" && b", "b", (3, 23));
        check("\"\\u00f8\\t== b\"", "ø\t== b", "b", (3, 20));
        check("\"\"\"\na ==\n  b\"\"\"", "a ==\n  b", "b", (5, 3));
        check("'''a ==\r\nb'''", "a ==\nb", "b", (4, 1));
        check("\"\"\"a == \\\n   b\"\"\"", "a == b", "b", (4, 4));
        // What stands there is another text than the file's.
        check("\"${A} == b\"", "a == b", "b", (3, 8));
    }

    #[test]
    fn the_end_is_a_place() {
        let script = Script::new("a &&".to_owned(), Location::default(), "\"a &&\"");
        assert_eq!(script.place(4).column, 5);
        assert_eq!(script.place(99), Location::default());
    }
}
