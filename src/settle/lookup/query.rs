//! The text of a lookup's query, cut into tokens as Postgres cuts it.
//!
//! Two things are read of it: where its parameters stand, so that one statement can ask for many
//! rows ([`with_columns`]), and whether it reads rows of one table by columns of it
//! ([`compared_columns`]). A text that could be cut in two ways, by the settings of its session or
//! by the server's version, is not cut at all.
//!
//! <https://www.postgresql.org/docs/current/sql-syntax-lexical.html>

/// A token. Together they are the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// A name or a keyword, as it is written.
    Word(&'a str),
    /// A name in double quotes, with them.
    Quoted(&'a str),
    /// `$1` and so on.
    Param(usize),
    /// Blanks and comments.
    Blank(&'a str),
    /// One character of anything else, or a whole literal.
    Other(&'a str),
}

/// The alias of what a statement asks for, and what the names of its columns begin with, so that no
/// name of a query is taken for one of them; a query that has it in its text is asked alone.
const ASKED: &str = "walsweep asked";

/// The query with a column of what is asked for in the place of each parameter; `None` if the
/// places are not certain.
pub(super) fn with_columns(query: &str) -> Option<String> {
    if query.contains(ASKED) {
        return None;
    }
    let write = |token: &Token<'_>| match token {
        Token::Param(number) => format!("({})", column(*number)),
        Token::Word(text) | Token::Quoted(text) | Token::Blank(text) | Token::Other(text) => {
            (*text).to_owned()
        }
    };
    Some(tokens(query)?.iter().map(write).collect())
}

/// The column that stands for a parameter, with its table.
fn column(number: usize) -> String {
    format!("\"{ASKED}\".{}", column_name(number))
}

/// Names the column that stands for a parameter, without its table.
pub(super) fn column_name(number: usize) -> String {
    format!("\"{ASKED} {number}\"")
}

/// Of a query `select … from one_table where column = $1 and other = $2` the columns that are
/// compared with `$1`, `$2` and so on, in this order; `None` of any other query. Whether the name
/// behind `from` is a table is for the server to say.
#[must_use]
pub(crate) fn compared_columns(query: &str) -> Option<Vec<String>> {
    let tokens = tokens(query)?;
    let tokens: Vec<Token<'_>> =
        tokens.into_iter().filter(|token| !matches!(token, Token::Blank(_))).collect();
    let mut rest = tokens.as_slice();
    take_word(&mut rest, "select").then_some(())?;
    let mut depth = 0_i32;
    while depth != 0 || !is_word(rest.first()?, "from") {
        match rest.split_off_first()? {
            Token::Other("(") => depth += 1,
            Token::Other(")") => depth -= 1,
            Token::Param(_) => return None,
            _ => {}
        }
    }
    rest.split_off_first();
    name(&mut rest)?;
    if !is_word(rest.first()?, "where") {
        take_word(&mut rest, "as");
        identifier(rest.split_off_first()?)?;
    }
    take_word(&mut rest, "where").then_some(())?;
    let mut compared: Vec<(usize, String)> = vec![comparison(&mut rest)?];
    while take_word(&mut rest, "and") {
        compared.push(comparison(&mut rest)?);
    }
    compared.sort_unstable();
    let is_in_order = compared.iter().enumerate().all(|(at, (number, _))| at + 1 == *number);
    (rest.is_empty() && is_in_order).then(|| compared.into_iter().map(|(_, name)| name).collect())
}

/// `column = $1`, or the other way round.
fn comparison(rest: &mut &[Token<'_>]) -> Option<(usize, String)> {
    let param = |rest: &mut &[Token<'_>]| match rest.split_off_first()? {
        Token::Param(number) => Some(*number),
        _ => None,
    };
    let equals =
        |rest: &mut &[Token<'_>]| (*rest.split_off_first()? == Token::Other("=")).then_some(());
    if matches!(rest.first()?, Token::Param(_)) {
        let number = param(rest)?;
        equals(rest)?;
        return Some((number, name(rest)?));
    }
    let name = name(rest)?;
    equals(rest)?;
    Some((param(rest)?, name))
}

/// A name with or without what qualifies it; gives its last part.
fn name(rest: &mut &[Token<'_>]) -> Option<String> {
    let mut last = identifier(rest.split_off_first()?)?;
    while rest.first() == Some(&Token::Other(".")) {
        rest.split_off_first();
        last = identifier(rest.split_off_first()?)?;
    }
    Some(last)
}

/// A name as the catalog has it. Names outside of ASCII are folded by the server's own rules.
fn identifier(token: &Token<'_>) -> Option<String> {
    match token {
        Token::Word(word) if word.is_ascii() => Some(word.to_ascii_lowercase()),
        Token::Quoted(quoted) => {
            Some(quoted.strip_prefix('"')?.strip_suffix('"')?.replace("\"\"", "\""))
        }
        _ => None,
    }
}

fn is_word(token: &Token<'_>, word: &str) -> bool {
    matches!(token, Token::Word(found) if found.eq_ignore_ascii_case(word))
}

fn take_word(rest: &mut &[Token<'_>], word: &str) -> bool {
    let is_it = rest.first().is_some_and(|token| is_word(token, word));
    if is_it {
        rest.split_off_first();
    }
    is_it
}

fn tokens(query: &str) -> Option<Vec<Token<'_>>> {
    let (mut rest, mut tokens) = (query, Vec::new());
    while let Some(first) = rest.chars().next() {
        let length = length(rest, first, tokens.last())?;
        let (text, after) = rest.split_at_checked(length)?;
        tokens.push(match first {
            '"' => Token::Quoted(text),
            '$' if text.as_bytes().get(1).is_some_and(u8::is_ascii_digit) => {
                // `$1from` is a parameter and a word, or an error, by the server's version.
                if after.starts_with(is_name_start) {
                    return None;
                }
                Token::Param(text[1..].parse().ok()?)
            }
            '-' | '/' if length > 1 => Token::Blank(text),
            _ if first.is_ascii_whitespace() => Token::Blank(text),
            _ if is_name_start(first) => Token::Word(text),
            _ => Token::Other(text),
        });
        rest = after;
    }
    Some(tokens)
}

/// The bytes of the token that `rest` begins with.
fn length(rest: &str, first: char, before: Option<&Token<'_>>) -> Option<usize> {
    let until = |is_end: &dyn Fn(char) -> bool| Some(rest.find(is_end).unwrap_or(rest.len()));
    match first {
        '\'' => {
            let is_escaped = matches!(before, Some(Token::Word("e" | "E")));
            literal(rest, is_escaped)
        }
        '"' => quoted(rest),
        '$' => dollar(rest),
        '-' if rest.starts_with("--") => until(&|c| c == '\n' || c == '\r'),
        '/' if rest.starts_with("/*") => comment(rest),
        _ if first.is_ascii_whitespace() => until(&|c| !c.is_ascii_whitespace()),
        _ if is_name_start(first) => {
            until(&|c| !is_name_start(c) && !c.is_ascii_digit() && c != '$')
        }
        _ if first.is_ascii_digit() => {
            until(&|c| !c.is_ascii_alphanumeric() && c != '_' && c != '.')
        }
        _ => Some(first.len_utf8()),
    }
}

fn is_name_start(character: char) -> bool {
    character == '_' || character.is_ascii_alphabetic() || !character.is_ascii()
}

/// `'…'`, in which a quote is written twice. Whether a backslash escapes is a setting of the
/// session, unless the text is `E'…'`.
fn literal(rest: &str, is_escaped: bool) -> Option<usize> {
    let mut bytes = rest.bytes().enumerate().skip(1).peekable();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' if is_escaped => _ = bytes.next(),
            b'\\' => return None,
            b'\'' if bytes.next_if(|(_, next)| *next == b'\'').is_none() => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// `"…"`, in which a quote is written twice.
fn quoted(rest: &str) -> Option<usize> {
    let mut bytes = rest.bytes().enumerate().skip(1).peekable();
    while let Some((at, byte)) = bytes.next() {
        if byte == b'"' && bytes.next_if(|(_, next)| *next == b'"').is_none() {
            return Some(at + 1);
        }
    }
    None
}

/// `$1`, or `$tag$…$tag$`.
fn dollar(rest: &str) -> Option<usize> {
    let inner = &rest[1..];
    let digits = inner.find(|c: char| !c.is_ascii_digit()).unwrap_or(inner.len());
    if digits > 0 {
        return Some(1 + digits);
    }
    let (tag, _) = inner.split_once('$')?;
    if !tag.chars().all(|c| is_name_start(c) || c.is_ascii_digit()) {
        return None;
    }
    let delimiter = &rest[..tag.len() + 2];
    let end = rest[delimiter.len()..].find(delimiter)?;
    Some(end + 2 * delimiter.len())
}

/// `/*…*/`, which nests.
fn comment(rest: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        let ahead = &rest.as_bytes()[at..];
        if ahead.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if ahead.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{compared_columns, with_columns};

    #[track_caller]
    fn changed(query: &str, expected: &str) {
        let mut parts = expected.split('@');
        let mut expected = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (number, rest) = part.split_once(')').unwrap();
            expected.push_str(&format!("\"walsweep asked\".\"walsweep asked {number}\"){rest}"));
        }
        assert_eq!(with_columns(query).as_deref(), Some(&*expected), "{query}");
    }

    #[test]
    fn parameters_are_found_and_nothing_else_is_taken_for_one() {
        changed("select a from t where id = $1", "select a from t where id = (@1)");
        changed("select $1::int+$12, 1$2", "select (@1)::int+(@12), 1(@2)");
        changed("select 'it''s $1', $1", "select 'it''s $1', (@1)");
        changed(r"select E'\'$1', e'\\', $1", r"select E'\'$1', e'\\', (@1)");
        changed("select \"a\"\"$1\", $1", "select \"a\"\"$1\", (@1)");
        changed("select $$ $1 $$, $a$ $1 $$ $a$, $1", "select $$ $1 $$, $a$ $1 $$ $a$, (@1)");
        changed("select $1 -- $1 'it\n, $2 --", "select (@1) -- $1 'it\n, (@2) --");
        changed("select $1 /* $1 /* ' */ $2 */ + $2", "select (@1) /* $1 /* ' */ $2 */ + (@2)");
        changed("select a$1, é$1, $1 from t-$2", "select a$1, é$1, (@1) from t-(@2)");
        changed("select namE'x', B'1', $1", "select namE'x', B'1', (@1)");
        changed("select U&'d!0061' uescape '!', $1/2", "select U&'d!0061' uescape '!', (@1)/2");
    }

    #[test]
    fn what_may_be_read_in_two_ways_is_not_read() {
        for query in [
            r"select '\', $1",
            r"select 'a' '\'', $1",
            "select '$1",
            "select \"$1",
            "select $a$ $1",
            "select /* /* */ $1",
            "select $1from t",
            "select $, $1",
            "select $a-$ $1",
            "select \"walsweep asked\" from t where a = $1",
            "select \"walsweep asked place\" from t where a = $1",
        ] {
            assert_eq!(with_columns(query), None, "{query}");
        }
    }

    #[test]
    fn rows_of_one_table_by_its_columns_are_recognised() {
        for (query, columns) in [
            ("select user_id from orders where id = $1", &["id"][..]),
            ("SELECT o.User_ID AS u FROM shop.Orders AS o WHERE $1 = o.ID", &["id"]),
            ("select * from \"T\" t where \"A\"\"b\" = $2 and t.c = $1 -- all", &["c", "A\"b"]),
            ("select (select 1 from u), f(x) from t where id=$1", &["id"]),
        ] {
            assert_eq!(
                compared_columns(query).as_deref(),
                Some(columns)
                    .map(|names| {
                        names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()
                    })
                    .as_deref(),
                "{query}"
            );
        }
        for query in [
            "with t as (select 1) select a from t where id = $1",
            "select a from t, u where id = $1",
            "select a from t join u using (b) where id = $1",
            "select a from f($1) where id = $1",
            "select a from (select 1) t where id = $1",
            "select a from t where id = $1 limit 1",
            "select a from t where id = $1 or b = $2",
            "select a from t where id = $1 and b = 2",
            "select a from t where id >= $1",
            "select a from t where id = $1 + 1",
            "select a from t where id = $1::int",
            "select a from t where id = $1 and b = $1",
            "select a from t where id = $2",
            "select a + $1 from t where id = $1",
            "select a from t where lower(id) = $1",
            "select a from t where id = $1 union select 1",
            "select a from t",
            "table t",
        ] {
            assert_eq!(compared_columns(query), None, "{query}");
        }
    }
}
