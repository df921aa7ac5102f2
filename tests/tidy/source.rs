//! A Rust source file as the style test sees it: code without comments and texts, texts, paths.

/// One file.
#[derive(Clone)]
pub(crate) struct Source {
    /// Path from the root, with `/`.
    pub(crate) path: String,
    /// The file.
    pub(crate) text: String,
    /// The file without comments, without the content of texts and characters, and without items
    /// for tests; every line where it was.
    pub(crate) code: String,
    /// The texts of [`Source::code`], each with its line from 1, attributes left out.
    pub(crate) strings: Vec<(usize, String)>,
    /// The items for tests that were taken out of [`Source::code`], comments included.
    pub(crate) tests: String,
}

impl Source {
    /// Reads `text` as the file `path`.
    pub(crate) fn new(path: &str, text: &str) -> Source {
        let (mut code, all_strings) = strip(text);
        let mut tests = String::new();
        while let Some((from, to)) = test_item(&code) {
            tests.push_str(&text[from..to]);
            blank(&mut code, from, to);
        }
        let mut strings = Vec::new();
        for (at, string) in all_strings {
            let quoted = code.as_bytes()[at] == b'"';
            if quoted && !in_attribute(&code, at) {
                strings.push((line_of(&code, at), string));
            }
        }
        if path.starts_with("tests/") || path.ends_with("tests.rs") {
            text.clone_into(&mut tests);
        }
        Source { path: path.to_owned(), text: text.to_owned(), code, strings, tests }
    }

    /// Whether the whole file is for tests.
    pub(crate) fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.ends_with("tests.rs")
    }

    /// Every path of [`Source::code`] with its line: imports one by one, `self`, `super` and groups
    /// resolved, and paths within expressions and types.
    pub(crate) fn paths(&self) -> Vec<(usize, String)> {
        let tokens = tokens(&self.code);
        let mut paths = Vec::new();
        let (mut at, mut line, mut counted) = (0, 1, 0);
        while at < tokens.len() {
            let (offset, word) = tokens[at];
            if !is_word(word) || word.starts_with(|first: char| first.is_ascii_digit()) {
                at += 1;
                continue;
            }
            line += self.code[counted..offset].matches('\n').count();
            counted = offset;
            let mut found = Vec::new();
            let start = if word == "use" { at + 1 } else { at };
            at = tree(&tokens, start, "", &mut found);
            paths.extend(found.into_iter().map(|path| (line, self.resolve(&path))));
            at = at.max(start + 1);
        }
        paths
    }

    /// The path without `self` and `super`, seen from this file's module.
    fn resolve(&self, path: &str) -> String {
        let file = self.path.split_once("src/").map_or(self.path.as_str(), |(_, file)| file);
        let file = file.strip_suffix(".rs").unwrap_or(file);
        let mut module: Vec<&str> = std::iter::once("crate").chain(file.split('/')).collect();
        if matches!(module.last(), Some(&("mod" | "lib" | "main"))) {
            module.pop();
        }
        let mut segments: Vec<&str> = path.split("::").filter(|one| !one.is_empty()).collect();
        if !matches!(segments.first(), Some(&("self" | "super"))) {
            return segments.join("::");
        }
        while let Some(&("self" | "super")) = segments.first() {
            if segments.remove(0) == "super" {
                module.pop();
            }
        }
        module.extend(segments);
        module.join("::")
    }

    /// Name, line and lines of code of each function, tests included when the file is for tests.
    pub(crate) fn functions(&self) -> Vec<(String, usize, usize)> {
        let tokens = tokens(&self.code);
        let mut functions = Vec::new();
        for (at, pair) in tokens.windows(2).enumerate() {
            let [(offset, "fn"), (_, name)] = *pair else { continue };
            let rest = &tokens[at..];
            let Some(&(open, "{")) = rest.iter().find(|(_, token)| matches!(*token, "{" | ";"))
            else {
                continue;
            };
            let body = &self.code[open + 1..closing(&self.code, open)];
            let count = body.lines().filter(|line| !line.trim().is_empty()).count();
            functions.push((name.to_owned(), line_of(&self.code, offset), count));
        }
        functions
    }
}

/// The line, from 1, of a byte.
fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Replaces a part by spaces, line ends kept.
fn blank(text: &mut String, from: usize, to: usize) {
    let keep = |byte: u8| if byte == b'\n' { '\n' } else { ' ' };
    let blanked: String = text[from..to].bytes().map(keep).collect();
    text.replace_range(from..to, &blanked);
}

/// Where the bracket that is opened at `open` is closed, or the end.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' | b'[' | b'(' => depth += 1,
            b'}' | b']' | b')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    code.len()
}

/// The first item that is compiled for tests only: from its attribute to its end.
fn test_item(code: &str) -> Option<(usize, usize)> {
    let from = code.find("#[cfg(test)]")?;
    let first = |text: &str| text.find(['{', ';']).map(|at| from + at);
    let end = first(&code[from..])?;
    let end = if code.as_bytes()[end] == b'{' { closing(code, end) } else { end };
    Some((from, (end + 1).min(code.len())))
}

/// Whether a byte stands within `#[…]`.
fn in_attribute(code: &str, at: usize) -> bool {
    let Some(open) = code[..at].rfind("#[") else { return false };
    closing(code, open + 1) > at
}

/// The text without comments and without the content of strings and characters, byte by byte where
/// it was; and each string with where its first quote stands.
fn strip(text: &str) -> (String, Vec<(usize, String)>) {
    let mut code = text.to_owned();
    let mut strings = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let previous = text[..at].chars().next_back().unwrap_or(' ');
        let after_word = previous.is_alphanumeric() || previous == '_';
        let raw = rest.trim_start_matches(['b', 'c']).strip_prefix('r').filter(|_| !after_word);
        let hashes = raw.map_or(0, |raw| raw.len() - raw.trim_start_matches('#').len());
        let is_raw = raw.is_some_and(|raw| raw[hashes..].starts_with('"'));
        at += if rest.starts_with("//") {
            let length = rest.find('\n').unwrap_or(rest.len());
            blank(&mut code, at, at + length);
            length
        } else if rest.starts_with("/*") {
            let length = rest.find("*/").map_or(rest.len(), |end| end + 2);
            blank(&mut code, at, at + length);
            length
        } else if is_raw {
            let quote = rest.find('"').expect("a raw string has a quote");
            let end = format!("\"{}", "#".repeat(hashes));
            let body = &rest[quote + 1..];
            let length = body.find(&end).unwrap_or(body.len());
            strings.push((at + quote, body[..length].to_owned()));
            blank(&mut code, at + quote + 1, at + quote + 1 + length);
            quote + 1 + length + end.len()
        } else if let Some(body) = rest.strip_prefix('"') {
            let length = string_length(body);
            strings.push((at, body[..length].to_owned()));
            blank(&mut code, at + 1, at + 1 + length);
            length + 2
        } else if let Some(length) = char_length(rest) {
            blank(&mut code, at + 1, at + length - 1);
            length
        } else {
            rest.chars().next().map_or(1, char::len_utf8)
        };
    }
    (code, strings)
}

/// The length of a string's content up to its closing quote.
fn string_length(body: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in body.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at,
            _ => {}
        }
    }
    body.len()
}

/// The length of a character literal with its quotes; none for a lifetime.
fn char_length(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('\'')?;
    let content = if let Some(escape) = body.strip_prefix('\\') {
        1 + escape.chars().next()?.len_utf8() + escape.get(1..)?.find('\'')?
    } else {
        body.chars().next()?.len_utf8()
    };
    body.get(content..)?.starts_with('\'').then_some(content + 2)
}

fn is_word(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphanumeric() || first == '_')
}

/// Words, `::` and single other characters, each with its offset.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = code[at..].chars().next() {
        let rest = &code[at..];
        let length = if is_word(rest) {
            rest.find(|one: char| !one.is_alphanumeric() && one != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        if !first.is_whitespace() {
            tokens.push((at, &rest[..length]));
        }
        at += length;
    }
    tokens
}

/// Reads a path or an import tree from token `at`, under `prefix`; gives the token after it.
fn tree(tokens: &[(usize, &str)], mut at: usize, prefix: &str, found: &mut Vec<String>) -> usize {
    let mut path = prefix.to_owned();
    while let Some((_, token)) = tokens.get(at) {
        match *token {
            "::" => path.push_str("::"),
            "{" if path.ends_with("::") => {
                at += 1;
                while tokens.get(at).is_some_and(|(_, token)| *token != "}") {
                    let next = tree(tokens, at, &path, found);
                    at = next.max(at + 1);
                }
                return at + 1;
            }
            word if is_word(word) && (path.is_empty() || path.ends_with("::")) => {
                path.push_str(word);
            }
            _ => break,
        }
        at += 1;
    }
    if !path.is_empty() && path != prefix {
        found.push(path);
    }
    at
}
