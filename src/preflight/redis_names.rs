//! Key templates as names: a key that one could give, and the patterns that an ACL has for all.

/// A key that a template could give, `value` for each placeholder and wildcard. `None` for a class
/// of which no member is at hand.
pub(super) fn sample(template: &str, value: &str) -> Option<String> {
    let mut sample = String::new();
    let mut rest = template.chars();
    while let Some(one) = rest.next() {
        match one {
            '{' => {
                skip_placeholder(&mut rest);
                sample.push_str(value);
            }
            '*' | '?' => sample.push_str(value),
            '\\' => sample.extend(rest.next()),
            '[' => {
                let member = rest.next().filter(|member| !"^]".contains(*member))?;
                sample.push(if member == '\\' { rest.next()? } else { member });
                skip_class(&mut rest);
            }
            plain => sample.push(plain),
        }
    }
    Some(sample)
}

/// A template that gives this text and nothing else.
pub(super) fn literal(text: &str) -> String {
    let escaped = text.chars().flat_map(|one| {
        let escape = r"\*?[]{}".contains(one).then_some('\\');
        escape.into_iter().chain([one])
    });
    escaped.collect()
}

/// An argument as `redis-cli` reads it: in quotes, if it has any (`sdssplitargs`, sds.c), or
/// something that a shell would take for a redirection, a pipe or the like.
pub(super) fn word(argument: &str) -> String {
    if !argument.contains(['"', '\'']) {
        let is_syntax = argument.contains(['|', '&', ';', '<', '>', '(', ')', '$', '`', '#']);
        return if is_syntax { format!("'{argument}'") } else { argument.to_owned() };
    }
    format!("\"{}\"", argument.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The pattern of an ACL for all keys that a template could give. It has no spaces.
pub(super) fn acl_pattern(template: &str) -> String {
    let mut pattern = String::new();
    let mut rest = template.chars();
    while let Some(one) = rest.next() {
        match one {
            '{' => {
                skip_placeholder(&mut rest);
                pattern.push('*');
            }
            '\\' => pattern.extend(['\\'].into_iter().chain(rest.next())),
            space if space.is_whitespace() => pattern.push('?'),
            plain => pattern.push(plain),
        }
        if pattern.ends_with("**") && !pattern.ends_with("\\**") {
            pattern.pop();
        }
    }
    pattern
}

/// Goes behind the `}` of a placeholder. Quotes count in its name alone, where they may hold a `}`,
/// a backslash in its filters alone.
pub(super) fn skip_placeholder(rest: &mut std::str::Chars<'_>) {
    let (mut in_name, mut quoted) = (true, false);
    while let Some(one) = rest.next() {
        match one {
            '}' if !quoted => return,
            '|' if !quoted => in_name = false,
            '"' if in_name => quoted = !quoted,
            '\\' if !in_name => drop(rest.next()),
            _ => {}
        }
    }
}

/// Goes behind the `]` of a class.
fn skip_class(rest: &mut std::str::Chars<'_>) {
    while let Some(one) = rest.next() {
        match one {
            '\\' => drop(rest.next()),
            ']' => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{acl_pattern, literal, sample, word};

    #[test]
    fn a_sample_is_a_key_of_its_template() {
        for (template, expected) in [
            ("a:{b}:c", Some("a:x:c")),
            ("a:*:{b|sha256:16}", Some("a:x:x")),
            ("plain", Some("plain")),
            ("a:[bc]:?", Some("a:b:x")),
            ("a:[\\]b]", Some("a:]")),
            ("a:[^bc]", None),
            ("a\\*\\{", Some("a*{")),
            ("a:{b|default:\\}}:c", Some("a:x:c")),
            ("a:{\"b}|c\"}:{\"d\"\"}\"|default:\"}", Some("a:x:x")),
        ] {
            assert_eq!(sample(template, "x").as_deref(), expected, "{template}");
        }
    }

    #[test]
    fn a_pattern_of_an_acl_covers_its_template() {
        for (template, expected) in [
            ("a:{b}:c", "a:*:c"),
            ("a:{b}*{c}", "a:*"),
            ("plain", "plain"),
            ("a b:[bc]:?", "a?b:[bc]:?"),
            ("a\\**\\{", "a\\**\\{"),
            ("a:{b|default:\\}}:c", "a:*:c"),
            ("a:{\"b}|c\"}:{\"d\"\"}\"|default:\"}", "a:*:*"),
        ] {
            assert_eq!(acl_pattern(template), expected, "{template}");
        }
    }

    #[test]
    fn an_argument_that_a_shell_or_redis_cli_would_cut_is_quoted() {
        for (argument, expected) in [
            ("~a\\*:*", "~a\\*:*"),
            (">PASSWORD", "'>PASSWORD'"),
            ("+client|tracking", "'+client|tracking'"),
            ("~it's:*", "\"~it's:*\""),
            ("~q\"\\x:*", "\"~q\\\"\\\\x:*\""),
        ] {
            assert_eq!(word(argument), expected);
        }
    }

    #[test]
    fn a_literal_is_a_template_of_itself() {
        for text in ["app:", "a[*]{b}\\?:", ""] {
            assert_eq!(sample(&literal(text), "x").as_deref(), Some(text));
        }
        assert_eq!(acl_pattern(&literal("a*:")), "a\\*:");
    }
}
