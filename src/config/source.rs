//! The source of the changes that a rule looks at: exactly one of `table`, `materialized_view` and
//! `message`.

use super::reader::{Reader, Section};
use super::{Located, Location, NotATable, TableName};

/// Where the changes come from that a rule looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The rows of the rule's table.
    Table,
    /// `REFRESH MATERIALIZED VIEW` of the view that stands in the place of the rule's table.
    MaterializedView,
    /// Messages of `pg_logical_emit_message` with this prefix; the rule has no table.
    Message(String),
}

impl Source {
    /// Gives the noun for it in a sentence.
    #[must_use]
    pub fn noun(&self) -> &'static str {
        match self {
            Source::Table => "a table",
            Source::MaterializedView => "a materialized view",
            Source::Message(_) => "a message",
        }
    }
}

/// The start of the prefixes that are walsweep's own.
pub(crate) const OWN_PREFIX: &str = "walsweep.";

/// The options that name a source, in the order in which problems speak of them.
const OPTIONS: [&str; 3] = ["table", "materialized_view", "message"];

/// The options that need a row, which only a table has.
const ROW_OPTIONS: [&str; 4] = ["operations", "changed", "immutable", "when"];

/// A source, the relation that it names, and where it stands.
pub(super) struct Named {
    pub(super) source: Source,
    pub(super) table: TableName,
    pub(super) at: Location,
}

/// Reads the source of the rule that starts at `at`. What cannot be read is a problem, and a table
/// without a name is given, so that the rest of the rule is judged, too.
pub(super) fn source(
    reader: &mut Reader<'_>,
    section: &mut Section<'_, '_>,
    at: &Location,
) -> Named {
    let given: Vec<&str> = OPTIONS.into_iter().filter(|option| section.has(option)).collect();
    let table = reader.text(section, "table");
    let view = reader.text(section, "materialized_view");
    let message = reader.text(section, "message");
    if given.is_empty() {
        let place = Location { key: section.key("table"), ..at.clone() };
        let hint = "name it as `schema.table`; or give `materialized_view` or `message` instead";
        reader.problem(place, "is missing".to_owned(), Some(hint));
    }
    for others in given.windows(2) {
        let place = section.place(reader, others[1]);
        let message = format!("`{}` stands here, too: a rule has one source", others[0]);
        reader.problem(place, message, Some("keep one of them, and write another rule"));
    }
    let nowhere = TableName { schema: String::new(), name: String::new() };
    let named = match (table, view, message) {
        (Some(table), ..) => relation(reader, table, Source::Table),
        (None, Some(view), _) => relation(reader, view, Source::MaterializedView),
        (None, None, Some(prefix)) => {
            check_prefix(reader, &prefix);
            Named { source: Source::Message(prefix.value), table: nowhere, at: prefix.at }
        }
        (None, None, None) => Named { source: Source::Table, table: nowhere, at: at.clone() },
    };
    if named.source != Source::Table {
        refuse_row_options(reader, section, &named.source);
    }
    named
}

fn relation(reader: &mut Reader<'_>, text: Located<String>, source: Source) -> Named {
    let table = text.value.parse().unwrap_or_else(|_: NotATable| {
        let (message, hint) = match source {
            Source::Table => ("is not a table name", "name it as `schema.table`"),
            _ => ("is not a view name", "name it as `schema.view`"),
        };
        reader.problem(text.at.clone(), format!("`{}` {message}", text.value), Some(hint));
        TableName { schema: String::new(), name: String::new() }
    });
    Named { source, table, at: text.at }
}

fn check_prefix(reader: &mut Reader<'_>, prefix: &Located<String>) {
    if prefix.value.is_empty() {
        let hint = "name the prefix that is given to `pg_logical_emit_message`";
        reader.problem(prefix.at.clone(), "is empty".to_owned(), Some(hint));
    } else if prefix.value.starts_with(OWN_PREFIX) {
        let message = format!("`{}`: prefixes that start so are walsweep's own", prefix.value);
        reader.problem(prefix.at.clone(), message, Some("choose another prefix"));
    }
}

fn refuse_row_options(reader: &mut Reader<'_>, section: &mut Section<'_, '_>, source: &Source) {
    for option in ROW_OPTIONS {
        if !section.has(option) {
            continue;
        }
        // It is known then, though refused: one problem is enough.
        let place = section.place(reader, option);
        let message = format!("needs the rows of a table, and {} has none", source.noun());
        reader.problem(place, message, Some("leave it out"));
    }
}

impl Section<'_, '_> {
    /// Where a key that stands in the file has its value.
    fn place(&mut self, reader: &Reader<'_>, name: &'static str) -> Location {
        let start = self.take(name).map_or(self.start(), |value| value.span().start);
        reader.location(start, &self.key(name))
    }
}
