//! Parts of a configuration as tests want them, who then say only what they are about. Compiled for
//! tests alone.

use super::{Located, Location, Operations, Rule, Source, TableName, Targets};

impl Located<String> {
    /// A text that stands nowhere in a file.
    #[must_use]
    pub fn for_tests(text: &str) -> Located<String> {
        Located { value: text.to_owned(), at: Location::default() }
    }
}

impl TableName {
    /// A table of schema `public`.
    #[must_use]
    pub fn for_tests(table: &str) -> TableName {
        TableName { schema: "public".to_owned(), name: table.to_owned() }
    }
}

impl Rule {
    /// A rule for every change of a table of schema `public`, named as the table, with these keys.
    #[must_use]
    pub fn for_tests(table: &str, keys: &[&str]) -> Rule {
        Rule {
            name: table.to_owned(),
            at: Location::default(),
            table: TableName::for_tests(table),
            table_at: Location::default(),
            operations: Operations::ALL,
            changed: Vec::new(),
            immutable: Vec::new(),
            keys: keys.iter().map(|key| Located::for_tests(key)).collect(),
            tags: Vec::new(),
            fields: Vec::new(),
            source: Source::Table,
            when: None,
            targets: Targets::ALL,
        }
    }
}
