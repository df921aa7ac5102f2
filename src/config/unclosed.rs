//! The bracket of an array that a text forgets to close. A parser takes what follows, tables and
//! all, for a part of the array, and stumbles there over nearly every line.

/// The byte of the innermost `[` that is open where no array goes on: at a `=`, or at the end of
/// the text (<https://toml.io/en/v1.1.0#array>). `None` if each array is closed before.
pub(super) fn bracket(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut open: Vec<(u8, usize)> = Vec::new();
    let (mut at, mut is_value) = (0, false);
    while let Some(byte) = bytes.get(at) {
        let top = open.last().map(|(bracket, _)| *bracket);
        match byte {
            b'#' => at = line_end(text, at),
            b'"' | b'\'' => {
                at = string_end(bytes, at);
                continue;
            }
            b'\n' if top.is_none() => is_value = false,
            b'=' if top == Some(b'[') => break,
            b'=' => is_value = true,
            // A table's header has its own end, and is no value.
            b'[' if top.is_none() && !is_value => at = line_end(text, at),
            b'[' | b'{' => open.push((*byte, at)),
            b']' if top == Some(b'[') => _ = open.pop(),
            b'}' if top == Some(b'{') => _ = open.pop(),
            _ => {}
        }
        at += 1;
    }
    open.last().filter(|(bracket, _)| *bracket == b'[').map(|(_, at)| *at)
}

/// The byte before the line break that follows, or the last one.
fn line_end(text: &str, from: usize) -> usize {
    let length = text.get(from..).and_then(|rest| rest.find('\n'));
    length.map_or(text.len(), |length| from + length - 1)
}

/// The byte after a string that begins here; one of a single line ends with it, closed or not.
fn string_end(bytes: &[u8], from: usize) -> usize {
    let quote = bytes[from];
    let quotes = [quote; 3];
    let is_triple = bytes[from..].starts_with(&quotes);
    let end = &quotes[..if is_triple { 3 } else { 1 }];
    let mut at = from + end.len();
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if quote == b'"' => at += 1,
            b'\n' if !is_triple => return at,
            _ if bytes[at..].starts_with(end) => return at + end.len(),
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::bracket;

    #[track_caller]
    fn check(text: &str) {
        // The place is marked by a bracket of another kind, which is none.
        let marked = text.find('⟦');
        assert_eq!(bracket(&text.replace('⟦', "[")), marked, "{text}");
    }

    #[test]
    fn an_array_that_does_not_end_is_found_where_it_begins() {
        check("a = ⟦\"x\", \"y\"\nb = 1\n");
        check("a = ⟦\"x\"");
        check("[t]\na = ⟦ # ]\n  \"]\", ']', \"\"\"]\"\"\", \"\\\"]\"\n[[rule]]\nb = [1]\n");
        check("a = ⟦[1], [2, 3]\n[u]\nc = 2");
        check("a = [[1], ⟦2, 3\n[u]\nc = 2");
        check("a = [1]\nb = { c = ⟦1, d = 2 }\n");
        check("a = { b = ⟦1 }\nc = [1]\n");
        check("a = ⟦1\nb = [2\n");
        check("a = \"x\nb = ⟦1\nc = 2\n");
    }

    #[test]
    fn arrays_that_end_are_none() {
        for text in [
            "",
            "[t]\n[[rule]]\na = [\"x = [\",\n  '[', # [\n]\nb = { c = [1], d = 2 }\n",
            "a = \"\"\"[\n= [\"\"\"\nb = '''[\n='''",
            "[t\na = [1]\n",
            "a = 1\n[t\nb = [1]\n",
            "a = \"[\nb = [1]\n",
            "a = [1]] \nb = 2",
            "#[",
            "[",
        ] {
            assert_eq!(bracket(text), None, "{text}");
        }
    }
}
