//! The kinds of quotes that a text has in the file, and what is to be typed between them
//! (<https://toml.io/en/v1.1.0#string>).

use super::Location;

/// The quotes of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quotes {
    /// `"…"`: a backslash and a quote need a backslash.
    Basic,
    /// `"""…"""`: a backslash needs one.
    BasicLines,
    /// `'…'` or `'''…'''`: every character stands for itself.
    Literal,
}

impl Quotes {
    /// The quotes that begin at a place of the file; `None` if none do.
    #[must_use]
    pub fn at(file: &str, place: &Location) -> Option<Quotes> {
        let line = file.split('\n').nth(place.line.checked_sub(1)?)?;
        let skipped = place.column.checked_sub(1)?;
        let text: String = line.chars().skip(skipped).take(3).collect();
        match text.chars().next()? {
            '"' if text == "\"\"\"" => Some(Quotes::BasicLines),
            '"' => Some(Quotes::Basic),
            '\'' => Some(Quotes::Literal),
            _ => None,
        }
    }

    /// A hint as it is typed between these quotes: what stands in backticks is text of the file.
    #[must_use]
    pub fn typed(self, hint: &str) -> String {
        let mut typed = String::with_capacity(hint.len());
        let mut is_code = false;
        for character in hint.chars() {
            is_code ^= character == '`';
            let needs_backslash = match self {
                Quotes::Basic => character == '\\' || character == '"',
                Quotes::BasicLines => character == '\\',
                Quotes::Literal => false,
            };
            if is_code && needs_backslash {
                typed.push('\\');
            }
            typed.push(character);
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::{Location, Quotes};

    #[test]
    fn quotes_are_told_by_their_place() {
        let file = "keys = [\"a\", 'ø', \"\"\"c\"\"\",\n  '''d''', 7, \"\"]";
        for (line, column, expected) in [
            (1, 9, Some(Quotes::Basic)),
            (1, 14, Some(Quotes::Literal)),
            (1, 19, Some(Quotes::BasicLines)),
            (2, 3, Some(Quotes::Literal)),
            (2, 12, None),
            (2, 15, Some(Quotes::Basic)),
            (0, 0, None),
            (9, 1, None),
        ] {
            let place = Location { line, column, key: String::new() };
            assert_eq!(Quotes::at(file, &place), expected, "{line}:{column}");
        }
    }

    #[test]
    fn a_hint_is_what_can_be_typed_between_the_quotes() {
        let hint = r#"use \ or `{"A b"}`; write `\{`"#;
        assert_eq!(Quotes::Basic.typed(hint), r#"use \ or `{\"A b\"}`; write `\\{`"#);
        assert_eq!(Quotes::BasicLines.typed(hint), r#"use \ or `{"A b"}`; write `\\{`"#);
        assert_eq!(Quotes::Literal.typed(hint), hint);
    }
}
