//! Differences between two texts of a configuration, by name; no value is told.

use std::collections::BTreeMap;
use std::fmt;

use toml::de::DeTable;
use toml::{Table, Value};

use super::Location;
use super::reader::Reader;
use super::redis::NAME;

/// Options that are read once, when the program starts: the slot is the position, an address is
/// listened at, and the form of the log cannot change amid it. An option that is not of a section
/// that a reload knows belongs to them.
const AT_START: [&str; 5] =
    ["postgres.slot", "postgres.slot_on", "postgres.publication", "http", "log.format"];

/// Sections that a reload takes over.
const TAKEN_OVER: [&str; 7] = ["postgres", "redis", "sweep", "refill", "log", "rule", "lookup"];

/// Something of the configuration that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// An option of a section: its dotted key.
    Option(String),
    /// A target: its name.
    Target(String),
    /// An option of a target: the target's name, and the option's.
    OfTarget(String, String),
    /// A lookup: its name.
    Lookup(String),
    /// A rule: its name.
    Rule(String),
}

/// How something is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It was not there before.
    Added,
    /// It is not there any more.
    Removed,
    /// It is there, and says something else.
    Changed,
}

/// One thing that is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The thing.
    pub subject: Subject,
    /// How it is another.
    pub how: How,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Subject::Option(key) => write!(formatter, "`{key}`")?,
            Subject::Target(name) => write!(formatter, "redis `{name}`")?,
            Subject::OfTarget(name, option) => write!(formatter, "`{option}` of redis `{name}`")?,
            Subject::Lookup(name) => write!(formatter, "lookup `{name}`")?,
            Subject::Rule(name) => write!(formatter, "rule `{name}`")?,
        }
        formatter.write_str(match self.how {
            How::Added => " added",
            How::Removed => " removed",
            How::Changed => " changed",
        })
    }
}

impl Difference {
    /// The dotted key of an option that is read only when the program starts, if it is one.
    #[must_use]
    pub fn needs_restart(&self) -> Option<&str> {
        let Subject::Option(key) = &self.subject else { return None };
        let is_of = |part: &str| {
            let rest = key.strip_prefix(part);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let is_known = TAKEN_OVER.iter().any(|section| is_of(section));
        (!is_known || AT_START.iter().any(|one| is_of(one))).then_some(key)
    }
}

/// Gives the options of a text, by dotted key, that are read only when the program starts, each
/// with what it says. None of them is a secret, or holds one.
#[must_use]
pub fn at_start(text: &str) -> BTreeMap<String, String> {
    let one = |(subject, value): (Subject, Value)| {
        let difference = Difference { subject, how: How::Changed };
        Some((difference.needs_restart()?.to_owned(), value.to_string()))
    };
    subjects(text).into_iter().filter_map(one).collect()
}

/// Gives everything that `after` says otherwise than `before`, each of which is TOML. Spaces,
/// comments and the order of rules are no difference.
#[must_use]
pub fn differences(before: &str, after: &str) -> Vec<Difference> {
    let (before, after) = (subjects(before), subjects(after));
    let mut differences = Vec::new();
    for (subject, value) in &after {
        let how = match before.get(subject) {
            Some(other) if other == value => continue,
            Some(_) => How::Changed,
            None => How::Added,
        };
        differences.push(Difference { subject: subject.clone(), how });
    }
    let gone = before.into_keys().filter(|subject| !after.contains_key(subject));
    differences.extend(gone.map(|subject| Difference { subject, how: How::Removed }));
    // Of a target that comes or goes, its options do, too.
    let is_whole =
        |name: &str| differences.iter().any(|one| one.subject == Subject::Target(name.to_owned()));
    let is_part =
        |one: &Difference| matches!(&one.subject, Subject::OfTarget(name, _) if is_whole(name));
    let parts: Vec<bool> = differences.iter().map(is_part).collect();
    let mut parts = parts.into_iter();
    differences.retain(|_| parts.next() != Some(true));
    differences.sort_by(|one, other| one.subject.cmp(&other.subject));
    differences
}

/// Everything of a text that has a name, with what it says.
fn subjects(text: &str) -> BTreeMap<Subject, Value> {
    let mut subjects = BTreeMap::new();
    let root: Table = text.parse().unwrap_or_default();
    for (section, value) in root {
        match (section.as_str(), value) {
            ("rule", Value::Array(rules)) => {
                let named = rules.into_iter().map(|rule| (Subject::Rule(name_of(&rule)), rule));
                subjects.extend(named);
            }
            ("lookup", Value::Table(lookups)) => {
                subjects
                    .extend(lookups.into_iter().map(|(name, one)| (Subject::Lookup(name), one)));
            }
            ("redis", Value::Array(targets)) => {
                targets.into_iter().for_each(|one| target(one, &mut subjects));
            }
            ("redis", one @ Value::Table(_)) => target(one, &mut subjects),
            (_, Value::Table(options)) => {
                let key = |option| Subject::Option(format!("{section}.{option}"));
                subjects.extend(options.into_iter().map(|(option, value)| (key(option), value)));
            }
            (_, value) => {
                subjects.insert(Subject::Option(section), value);
            }
        }
    }
    subjects
}

fn name_of(table: &Value) -> String {
    let name = table.get("name").and_then(Value::as_str);
    name.map_or_else(|| NAME.to_owned(), str::to_owned)
}

fn target(target: Value, subjects: &mut BTreeMap<Subject, Value>) {
    let name = name_of(&target);
    subjects.insert(Subject::Target(name.clone()), Value::Boolean(true));
    if let Value::Table(options) = target {
        let of = |option| Subject::OfTarget(name.clone(), option);
        subjects.extend(options.into_iter().map(|(option, value)| (of(option), value)));
    }
}

/// Where an option stands in a text, by its dotted key; the beginning, if it is not there.
#[must_use]
pub fn place(text: &str, key: &str) -> Location {
    let (document, _errors) = DeTable::parse_recoverable(text);
    let mut offset = 0;
    let mut table = Some(document.get_ref());
    for part in key.split('.') {
        let found = table.and_then(|table| table.get_key_value(part));
        let Some((name, value)) = found else { break };
        offset = name.span().start;
        table = value.get_ref().as_table();
    }
    Reader::new(text, &|_| None, "".as_ref()).location(offset, key)
}

#[cfg(test)]
mod tests {
    use super::{at_start, differences, place};

    const BEFORE: &str = r#"
[postgres]
url = "postgres://u:one@h/d"
slot = "s"
[redis]
url = "redis://h"
[lookup.match]
sql = "select 1"
[[rule]]
name = "a"
keys = ["a:{id}"]
[[rule]]
name = "b"
keys = ["b:{id}"]
"#;

    fn told(after: &str) -> Vec<String> {
        differences(BEFORE, after).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn comments_spaces_and_the_order_of_rules_are_no_difference() {
        let (head, rules) = BEFORE.split_once("[[rule]]").unwrap();
        let (one, other) = rules.split_once("[[rule]]").unwrap();
        let after = format!("# new\n{head}\n[[rule]]  # b\n{other}[[rule]]{one}");
        assert_eq!(told(&after), [""; 0]);
    }

    #[test]
    fn what_is_added_removed_and_changed_is_named_and_no_value_is() {
        let after = BEFORE
            .replace("u:one", "u:other")
            .replace("select 1", "select 2")
            .replace("\"b\"", "\"c\"")
            .replace("a:{id}", "x:{id}");
        let expected = [
            "`postgres.url` changed",
            "lookup `match` changed",
            "rule `a` changed",
            "rule `b` removed",
            "rule `c` added",
        ];
        assert_eq!(told(&after), expected);
    }

    #[test]
    fn a_target_that_comes_or_goes_is_told_as_one() {
        let several = BEFORE.replace(
            "[redis]\nurl = \"redis://h\"",
            "[[redis]]\nname = \"redis\"\nurl = \"redis://i\"\n\
             [[redis]]\nname = \"edge\"\nurl = \"u\"",
        );
        assert_eq!(
            told(&several),
            [
                "redis `edge` added",
                "`name` of redis `redis` added",
                "`url` of redis `redis` changed"
            ]
        );
    }

    #[test]
    fn what_is_read_at_the_start_alone_needs_a_restart() {
        for (after, key) in [
            (BEFORE.replace("slot = \"s\"", "slot = \"t\""), Some("postgres.slot")),
            (BEFORE.to_owned() + "[http]\nlisten = \"\"", Some("http.listen")),
            (BEFORE.to_owned() + "[log]\nformat = \"json\"", Some("log.format")),
            (BEFORE.to_owned() + "[unheard]\nof = 1", Some("unheard.of")),
            (BEFORE.to_owned() + "[log]\nlevel = \"debug\"", None),
            (BEFORE.replace("slot =", "failover = true\nslot ="), None),
            (BEFORE.to_owned() + "[sweep]\nmax_load = 0.1", None),
            (BEFORE.replace("select 1", "select 2"), None),
        ] {
            let found = differences(BEFORE, &after);
            assert_eq!(found.len(), 1, "{after}");
            assert_eq!(found[0].needs_restart(), key, "{after}");
        }
    }

    #[test]
    fn what_is_read_at_the_start_alone_is_given_and_nothing_else() {
        let text = BEFORE.to_owned() + "[http]\nlisten = \"a\"\n[audit]\nkeep = 3\n";
        let found = at_start(&text);
        let found: Vec<(&str, &str)> =
            found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let expected = [("audit.keep", "3"), ("http.listen", "\"a\""), ("postgres.slot", "\"s\"")];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_option_has_its_place() {
        let at = place(BEFORE, "postgres.slot");
        assert_eq!((at.line, at.column, at.key.as_str()), (4, 1, "postgres.slot"));
        assert_eq!(place(BEFORE, "http.listen").line, 1);
    }
}
