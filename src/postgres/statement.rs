//! Statements with names in them: a file of `sql/`, filled in.

use postgres_protocol::escape::escape_identifier;

/// The statement of a file of `sql/`: without its comments, with each `{name}` replaced.
pub(crate) fn render(file: &str, values: &[(&str, &str)]) -> String {
    let lines: Vec<&str> = file.lines().filter(|line| !line.starts_with("--")).collect();
    let mut text = String::new();
    let template = lines.join("\n");
    let mut rest = template.as_str();
    // In one pass, so that a brace in a name is not taken for a placeholder.
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let (name, after) = after.split_once('}').expect("the files close their braces");
        let value = values.iter().find(|(known, _)| *known == name);
        text.push_str(value.expect("the files name only what is given").1);
        rest = after;
    }
    text.push_str(rest);
    text
}

/// A name as SQL has it, on one line whatever is in it: a script, a comment or an indented finding
/// that it is printed in means the same name, and no part of it becomes a line of its own.
pub(crate) fn identifier(name: &str) -> String {
    if !name.contains(char::is_control) {
        return escape_identifier(name);
    }
    let escaped = name.chars().map(|one| match one {
        '"' => "\"\"".to_owned(),
        '\\' => "\\\\".to_owned(),
        one if one.is_control() => format!("\\{:04X}", u32::from(one)),
        one => one.to_string(),
    });
    format!("U&\"{}\"", escaped.collect::<String>())
}

/// Lets a role use the names of a schema.
pub(crate) fn grant_usage(schema: &str, role: &str) -> String {
    let (schema, role) = (identifier(schema), identifier(role));
    let file = include_str!("../../sql/setup/grant_usage.sql");
    render(file, &[("schema", &schema), ("role", &role)])
}

/// Lets a role read a table, given as schema and name.
pub(crate) fn grant_select((schema, name): (&str, &str), role: &str) -> String {
    let table = format!("{}.{}", identifier(schema), identifier(name));
    let file = include_str!("../../sql/setup/grant_select.sql");
    render(file, &[("table", &table), ("role", &identifier(role))])
}

#[cfg(test)]
mod tests {
    use super::identifier;

    #[test]
    fn a_name_stays_on_its_line_and_stays_the_same() {
        assert_eq!(identifier("a\"b\\"), "\"a\"\"b\\\"");
        assert_eq!(identifier("a\n\"b\\\r"), "U&\"a\\000A\"\"b\\\\\\000D\"");
    }
}
