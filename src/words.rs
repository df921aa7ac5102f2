//! Numbers in sentences, and SQL below them.

/// A count with its noun: `1 key`, `2 keys`, `1 000 prefixes`; digits in groups of three.
#[must_use]
pub fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    format!("{} {}", grouped(count), plural(count, noun))
}

/// A noun for so many: `key` for one, else `keys`.
#[must_use]
pub fn plural(count: impl TryInto<u64>, noun: &str) -> String {
    let ending = match (count.try_into(), noun.ends_with(['s', 'x'])) {
        (Ok(1), _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{noun}{ending}")
}

/// A number in groups of three digits.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// Lines of SQL that a person reads before a command that runs it is the shorter way.
const SQL_LINES_MAX: usize = 12;

/// Whether SQL is a wall of text on a screen: long, or a block of PL/pgSQL, which stands on one
/// line. Such is for a program to run.
#[must_use]
pub fn is_wall(sql: &str) -> bool {
    sql.lines().count() > SQL_LINES_MAX || sql.lines().any(|line| line.starts_with("do $"))
}

/// SQL below a text, which each further line is indented for: nothing for none. Whoever runs it
/// finds an end of the last statement.
#[must_use]
pub fn below(indent: &str, sql: Option<&str>) -> String {
    let lines = |sql: &str| sql.replace('\n', &format!("\n{indent}     "));
    sql.map(|sql| format!("\n{indent}sql: {};", lines(sql))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{below, counted, is_wall, plural};

    #[test]
    fn sql_is_shown_by_lines_unless_it_is_a_wall() {
        assert_eq!(below("  ", Some("a;\nb")), "\n  sql: a;\n       b;");
        assert_eq!(below("  ", None), "");
        assert!(!is_wall("begin;\nalter table a replica identity full;\ncommit"));
        assert!(is_wall("begin;\ndo $setup$ begin null; end $setup$;\ncommit"));
        assert!(is_wall(&"a;\n".repeat(13)));
    }

    #[test]
    fn one_is_one_and_others_are_many() {
        for (count, noun, words) in [
            (0_u64, "key", "0 keys"),
            (1, "key", "1 key"),
            (2, "message prefix", "2 message prefixes"),
            (1_234_567, "key", "1 234 567 keys"),
        ] {
            assert_eq!(counted(count, noun), words);
        }
        assert_eq!(counted(1_usize, "row change"), "1 row change");
        assert_eq!([1, 2].map(|count| plural(count, "address")), ["address", "addresses"]);
    }
}
