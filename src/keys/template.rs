//! Key templates: text to pieces, with all that is wrong in the text at once.

use super::filter::{Filter, Flaw};
use super::item::{self, ItemKind};
use super::label::Whole;
use super::pattern::{Pattern, push_escaped};

/// A parsed key template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) pieces: Vec<Piece>,
    /// Whether a wildcard is written in it, so that all it gives are patterns.
    pub(super) is_pattern: bool,
    /// The kind of what it gives.
    pub(super) kind: Kind,
}

/// The kind of what a template gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A key.
    Key,
    /// Something inside of a key: an item.
    Item(ItemKind),
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Text that stands for itself, and the same escaped for a pattern.
    Text { exact: Vec<u8>, glob: Vec<u8> },
    /// `?` or `[…]`, as Redis gets it.
    Glob(Vec<u8>),
    /// `*`; neighbours are one.
    Star,
    /// A value of the row.
    Placeholder(Placeholder),
    /// The end of the name of a hash, before that of a field.
    Split,
}

/// A value of the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placeholder {
    pub(super) version: Version,
    pub(super) column: String,
    pub(super) filters: Vec<Filter>,
    /// The lookup that the column is one of; `None` for the change's own row.
    pub(super) lookup: Option<String>,
}

/// The row version that a placeholder takes its value from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// The one that the template is rendered for.
    Each,
    Old,
    New,
}

impl Placeholder {
    /// Whether NULL gives a text, not no key.
    pub(super) fn has_default(&self) -> bool {
        self.filters.iter().any(|filter| matches!(filter, Filter::Default(_)))
    }
}

impl Template {
    /// Reads a template. Errors: everything that is wrong in it, in the order of the text.
    pub(super) fn parse(text: &str) -> Result<Template, Vec<Flaw>> {
        let template = Template::parse_any(text)?;
        if template.pieces.iter().any(|piece| matches!(piece, Piece::Text { .. })) {
            return Ok(template);
        }
        Err(vec![Flaw::new(
            format!("`{text}` could match every key in Redis"),
            "write some text of the key beside placeholders and wildcards, such as `user:{id}`",
        )])
    }

    /// Reads the template of a field, which may be of any name.
    pub(super) fn parse_any(text: &str) -> Result<Template, Vec<Flaw>> {
        let mut parser = Parser { rest: text, pieces: Vec::new(), flaws: Vec::new() };
        parser.template();
        let Parser { pieces, mut flaws, .. } = parser;
        if text.is_empty() {
            flaws.push(Flaw::new("the template is empty", "write the key, such as `user:{id}`"));
        }
        let is_pattern = pieces.iter().any(|p| matches!(p, Piece::Star | Piece::Glob(_)));
        let kind = Kind::Key;
        if flaws.is_empty() { Ok(Template { pieces, is_pattern, kind }) } else { Err(flaws) }
    }

    /// Lets the template of a key give the members of the sets of this name.
    pub(super) fn of_tag(self) -> Template {
        Template { kind: Kind::Item(ItemKind::Tag), ..self }
    }

    /// Lets the template of a key give fields of the hashes of this name.
    pub(super) fn with_field(mut self, field: Template) -> Template {
        self.pieces.push(Piece::Split);
        self.pieces.extend(field.pieces);
        let is_pattern = self.is_pattern || field.is_pattern;
        Template { is_pattern, kind: Kind::Item(ItemKind::Field), ..self }
    }

    /// The placeholders, in the order of the text.
    pub(super) fn placeholders(&self) -> impl Iterator<Item = &Placeholder> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Placeholder(placeholder) => Some(placeholder),
            Piece::Text { .. } | Piece::Glob(_) | Piece::Star | Piece::Split => None,
        })
    }

    /// The placeholders that are columns of the change.
    pub(super) fn own_columns(&self) -> impl Iterator<Item = &Placeholder> {
        self.placeholders().filter(|placeholder| placeholder.lookup.is_none())
    }

    /// All that the template could ever give.
    pub(super) fn whole(&self) -> Whole {
        let (mut key, mut glob, mut split) = (Vec::new(), Glob::default(), None);
        for piece in &self.pieces {
            match piece {
                Piece::Text { exact, glob: escaped } => {
                    key.extend_from_slice(exact);
                    glob.push_raw(escaped);
                }
                Piece::Glob(raw) => glob.push_raw(raw),
                Piece::Star | Piece::Placeholder(_) => glob.push_star(),
                Piece::Split => split = Some(glob.split()),
            }
        }
        if let Kind::Item(kind) = self.kind {
            return Whole::Item(item::write(kind, &glob.bytes, split).into());
        }
        if self.is_pattern || self.placeholders().next().is_some() {
            Whole::Pattern(Pattern::parse(&glob.bytes))
        } else {
            Whole::Key(key.into())
        }
    }

    /// The template in one way of writing, so that two texts with one meaning have one form.
    pub(super) fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.kind == Kind::Item(ItemKind::Tag) {
            out.extend_from_slice(b"\0tag}");
        }
        for piece in &self.pieces {
            match piece {
                Piece::Text { glob, .. } | Piece::Glob(glob) => out.extend_from_slice(glob),
                Piece::Star => out.push(b'*'),
                Piece::Split => out.extend_from_slice(b"\0field}"),
                Piece::Placeholder(placeholder) => {
                    let filters = placeholder.filters.iter().map(Filter::canonical);
                    let parts: Vec<String> =
                        [format!("{:?}", placeholder.version), placeholder.column.clone()]
                            .into_iter()
                            .chain(placeholder.lookup.iter().map(|name| format!("lookup {name}")))
                            .chain(filters)
                            .collect();
                    // A zero byte stands in no TOML text, and each part tells its length.
                    for part in parts {
                        out.extend_from_slice(format!("\0{}:{part}", part.len()).as_bytes());
                    }
                    out.extend_from_slice(b"\0}");
                }
            }
        }
        out
    }
}

/// A pattern that is being written: stars that meet are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Glob {
    pub(super) bytes: Vec<u8>,
    ends_in_star: bool,
}

impl Glob {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends_in_star = false;
    }

    pub(super) fn push_star(&mut self) {
        if !self.ends_in_star {
            self.bytes.push(b'*');
        }
        self.ends_in_star = true;
    }

    /// Appends what is a pattern already, and not a star.
    pub(super) fn push_raw(&mut self, glob: &[u8]) {
        self.bytes.extend_from_slice(glob);
        self.ends_in_star &= glob.is_empty();
    }

    /// Another text begins here; gives where.
    pub(super) fn split(&mut self) -> usize {
        self.ends_in_star = false;
        self.bytes.len()
    }

    /// Appends a value that stands for itself alone (I4).
    pub(super) fn push_value(&mut self, value: &[u8]) {
        push_escaped(&mut self.bytes, value);
        self.ends_in_star &= value.is_empty();
    }
}

const ESCAPES: &str = "*?[]{}\\";

struct Parser<'a> {
    rest: &'a str,
    pieces: Vec<Piece>,
    flaws: Vec<Flaw>,
}

impl<'a> Parser<'a> {
    fn template(&mut self) {
        while let Some(first) = self.next() {
            match first {
                '*' => {
                    if self.pieces.last() != Some(&Piece::Star) {
                        self.pieces.push(Piece::Star);
                    }
                }
                '?' => self.pieces.push(Piece::Glob(b"?".to_vec())),
                '[' => self.class(),
                '{' => self.placeholder(),
                '}' => self.flaw("a `}` has no `{`", "write `\\}` for the character itself"),
                '\\' => self.escape(),
                other => self.text(other),
            }
        }
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn flaw(&mut self, message: impl Into<String>, hint: impl Into<String>) {
        self.flaws.push(Flaw::new(message, hint));
    }

    fn text(&mut self, character: char) {
        if !matches!(self.pieces.last(), Some(Piece::Text { .. })) {
            self.pieces.push(Piece::Text { exact: Vec::new(), glob: Vec::new() });
        }
        if let Some(Piece::Text { exact, glob }) = self.pieces.last_mut() {
            let mut bytes = [0; 4];
            let bytes = character.encode_utf8(&mut bytes).as_bytes();
            exact.extend_from_slice(bytes);
            push_escaped(glob, bytes);
        }
    }

    fn escape(&mut self) {
        match self.next() {
            Some(escaped) if ESCAPES.contains(escaped) => self.text(escaped),
            Some(other) => self.flaw(
                format!("unknown escape `\\{other}`"),
                "escapes are `\\*`, `\\?`, `\\[`, `\\]`, `\\{`, `\\}` and `\\\\`",
            ),
            None => self.flaw("the template ends in a lone `\\`", "write `\\\\` for a backslash"),
        }
    }

    /// A class, from behind its `[`. Its end is where Redis finds it, see
    /// [`Pattern::parse`]: `[a-]` is a range that ends in `]`, and so has no end.
    fn class(&mut self) {
        let start = self.rest;
        if self.rest.starts_with('^') {
            self.next();
        }
        let (body, mut has_brace) = (self.rest, false);
        let end = loop {
            let before = self.rest;
            let mut ahead = self.rest.chars();
            match (ahead.next(), ahead.next(), ahead.next()) {
                (None, ..) => {
                    self.flaw("a `[` has no `]`", "write `\\[` for the character itself");
                    return;
                }
                (Some(']'), ..) => break before,
                (Some('\\'), Some(_), _) => self.skip(2),
                (Some(start), Some('-'), Some(end)) => {
                    has_brace |= start == '{' || end == '{';
                    self.skip(3);
                }
                (Some(first), ..) => {
                    has_brace |= first == '{';
                    self.skip(1);
                }
            }
        };
        self.skip(1);
        let body = &body[..body.len() - end.len()];
        if has_brace {
            self.flaw(
                "a placeholder stands inside of `[…]`",
                "a class takes no value; write `\\{` for the character itself",
            );
        } else if body.is_empty() {
            self.flaw("a `[…]` is empty", "name its characters; write `?` for any one");
        } else if !body.is_ascii() {
            self.flaw(
                format!("`[{body}]` holds a character that is more than one byte"),
                "Redis compares bytes: write `*` in the place of the class",
            );
        }
        let raw = &start[..start.len() - end.len()];
        self.pieces.push(Piece::Glob(format!("[{raw}]").into_bytes()));
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.next();
        }
    }

    /// A placeholder, from behind its `{`.
    fn placeholder(&mut self) {
        if self.rest.starts_with('{') && self.rest.contains('}') {
            return self.doubled();
        }
        let text = self.rest;
        let Some(parts) = self.placeholder_parts() else {
            let column = name(text).map_or_else(|_unnamed| "column".to_owned(), |(name, _)| name);
            let hint = format!(
                "write `{{{column}}}` for a column's value, or `\\{{` for the character itself"
            );
            self.flaw("a `{` has no `}`", hint);
            self.rest = "";
            return;
        };
        let [name, filters @ ..] = parts.as_slice() else { return };
        let mut parsed = Vec::new();
        for filter in filters {
            let (filter_name, argument) = match filter.split_once(':') {
                Some((filter_name, argument)) => (filter_name, Some(unescape(argument))),
                None => (*filter, None),
            };
            match Filter::parse(filter_name.trim(), argument) {
                Ok(filter) => parsed.push(filter),
                Err(flaw) => self.flaws.push(flaw),
            }
        }
        match column(name.trim()) {
            Ok((version, column, lookup)) => {
                let placeholder = Placeholder { version, column, filters: parsed, lookup };
                self.pieces.push(Piece::Placeholder(placeholder));
            }
            Err(flaw) => self.flaws.push(flaw),
        }
    }

    /// `{{column}}`, as other programs write a placeholder, from behind its first `{`.
    fn doubled(&mut self) {
        let inner = self.rest.trim_start_matches('{');
        let (column, after) = inner.split_once('}').unwrap_or((inner, ""));
        self.rest = after.trim_start_matches('}');
        self.flaw(
            format!("`{{{{{column}}}}}` has two braces on each side"),
            format!("write `{{{column}}}`; a brace that stands for itself is `\\{{`"),
        );
    }

    /// Takes the text up to the closing `}`, cut at each `|`; `None` without a `}`. Quotes count in
    /// the name only, a backslash takes the next character out of the count in a filter only.
    fn placeholder_parts(&mut self) -> Option<Vec<&'a str>> {
        let (mut parts, mut quoted) = (Vec::new(), false);
        let (mut part, mut len) = (self.rest, 0);
        loop {
            let next = self.next()?;
            match next {
                '}' | '|' if !quoted => {
                    parts.push(&part[..len]);
                    if next == '}' {
                        return Some(parts);
                    }
                    (part, len) = (self.rest, 0);
                    continue;
                }
                '"' if parts.is_empty() => quoted = !quoted,
                '\\' if !parts.is_empty() => len += self.next()?.len_utf8(),
                _ => {}
            }
            len += next.len_utf8();
        }
    }
}

/// Takes the backslashes out of an argument.
fn unescape(argument: &str) -> String {
    let (mut out, mut chars) = (String::new(), argument.chars());
    while let Some(next) = chars.next() {
        out.push(if next == '\\' { chars.next().unwrap_or('\\') } else { next });
    }
    out
}

/// Reads `column`, `old.column`, `new.column` or `lookup.column`, each name bare or in quotes. What
/// is no version is the name of a lookup, which is known or not where the rules are compiled.
fn column(text: &str) -> Result<(Version, String, Option<String>), Flaw> {
    if text.is_empty() {
        return Err(Flaw::new("a placeholder is empty", "name a column, such as `{id}`"));
    }
    let (first, rest) = name(text)?;
    let Some(second) = rest.strip_prefix('.') else {
        let column = (Version::Each, first, None);
        return if rest.is_empty() { Ok(column) } else { Err(needs_quotes(text)) };
    };
    let (version, lookup) = match &text[..text.len() - rest.len()] {
        "old" => (Version::Old, None),
        "new" => (Version::New, None),
        _ => (Version::Each, Some(first)),
    };
    match name(second)? {
        (column, "") => Ok((version, column, lookup)),
        _ => Err(needs_quotes(second)),
    }
}

/// Reads one name; gives it and what follows.
fn name(text: &str) -> Result<(String, &str), Flaw> {
    let Some(quoted) = text.strip_prefix('"') else {
        let bare = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let end = text.find(|c| !bare(c)).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        return if name.is_empty() { Err(needs_quotes(text)) } else { Ok((name.to_owned(), rest)) };
    };
    let (mut name, mut rest) = (String::new(), quoted);
    while let Some((part, after)) = rest.split_once('"') {
        name.push_str(part);
        let Some(more) = after.strip_prefix('"') else {
            return if name.is_empty() { Err(needs_quotes(text)) } else { Ok((name, after)) };
        };
        name.push('"');
        rest = more;
    }
    Err(needs_quotes(text))
}

fn needs_quotes(text: &str) -> Flaw {
    Flaw::new(
        format!("`{text}` is not a column name"),
        "put a name that has more than letters, digits, `_` and `$` in quotes: `{\"Weird Col\"}`; \
         write `\\{` for the character itself",
    )
}
