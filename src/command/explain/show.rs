//! The words of an explanation.

use std::fmt;

use super::table::like;
use super::{Explanation, Inside, Outcome, Supposed};
use crate::keys::WidenReason;

impl fmt::Display for Explanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rules.is_empty() {
            write!(formatter, "no rule looks at `{}`; rules look at", self.table)?;
            for (at, table) in self.tables.iter().enumerate() {
                write!(formatter, "{} `{table}`", if at == 0 { "" } else { "," })?;
            }
            for view in &self.views {
                write!(formatter, "; at `{view}` with `--op refresh`")?;
            }
            let known: Vec<_> = self.tables.iter().chain(&self.views).cloned().collect();
            if let Some(like) = like(&self.table, &known) {
                write!(formatter, "; did you mean `{like}`?")?;
            }
            return writeln!(formatter);
        }
        for (at, explained) in self.rules.iter().enumerate() {
            if at > 0 {
                writeln!(formatter)?;
            }
            writeln!(formatter, "rule `{}` (line {})", explained.rule, explained.at.line)?;
            self.outcome(formatter, &explained.outcome)?;
        }
        if !self.unread.is_empty() {
            writeln!(formatter)?;
        }
        for (column, meant) in &self.unread {
            write!(formatter, "unread     `{column}`: no rule of `{}` reads it", self.table)?;
            match meant {
                Some(meant) => writeln!(formatter, "; did you mean `{meant}`?")?,
                None => writeln!(formatter)?,
            }
        }
        if !self.notes.is_empty() {
            writeln!(formatter)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(formatter, "note       {note}"))
    }
}

impl Explanation {
    fn outcome(&self, formatter: &mut fmt::Formatter<'_>, outcome: &Outcome) -> fmt::Result {
        let (exact, patterns, items, widened, untold, lookups, supposed) = match outcome {
            Outcome::OtherOperation => {
                return writeln!(formatter, "  nothing  it does not look at {}", self.operation);
            }
            Outcome::Unchanged => {
                return writeln!(formatter, "  nothing  no column of `changed` differs");
            }
            Outcome::ConditionFalse => {
                return writeln!(formatter, "  nothing  its `when` is false");
            }
            Outcome::Keys { exact, patterns, items, widened, untold, lookups, supposed } => {
                (exact, patterns, items, widened, untold, lookups, supposed)
            }
        };
        if exact.is_empty() && patterns.is_empty() && items.is_empty() && lookups.is_empty() {
            writeln!(
                formatter,
                "  nothing  every key needs a value that is NULL, or a row that this change has not"
            )?;
        }
        let exact = exact.iter().map(|(key, from)| ("key    ", key.as_slice(), from));
        let patterns = patterns.iter().map(|(one, from)| ("pattern", one.as_bytes(), from));
        for (kind, key, from) in exact.chain(patterns) {
            write!(formatter, "  {kind}  {}", Shown(key))?;
            match from {
                Some(template) => writeln!(formatter, "  from `{template}`")?,
                None => writeln!(formatter)?,
            }
        }
        items.iter().try_for_each(|item| write!(formatter, "{item}"))?;
        for lookup in lookups {
            writeln!(formatter, "  lookup   {lookup}")?;
        }
        for (reason, columns) in widened {
            let why = why(*reason);
            writeln!(formatter, "  widened  {}: {why}{}", reason.as_str(), named(columns))?;
        }
        if !untold.is_empty() {
            let why = "an old value that Postgres sends is not told here; add it to `--old`";
            writeln!(formatter, "  widened  in this answer alone: {why}{}", named(untold))?;
        }
        write!(formatter, "{supposed}")
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = Shown(&self.key);
        match &self.field {
            Some(field) => write!(formatter, "  field    {} of {key}", Shown(field))?,
            None => write!(formatter, "  tag      {key}, and the keys that it names")?,
        }
        match &self.template {
            Some(template) => writeln!(formatter, "  from `{template}`"),
            None => writeln!(formatter),
        }
    }
}

impl fmt::Display for Supposed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Supposed { unsent, untold } = self;
        if !unsent.is_empty() {
            let why = "Postgres does not send the old value, so that every UPDATE counts; set \
                       `replica identity full`, and one that leaves it as it is removes nothing";
            writeln!(formatter, "  changed  counts as met: {why}{}", named(unsent))?;
        }
        if unsent.is_empty() && !untold.is_empty() {
            let why = "whether it differs is not told here; add it to `--old` and `--new`";
            writeln!(
                formatter,
                "  changed  counts as met in this answer alone: {why}{}",
                named(untold)
            )?;
        }
        Ok(())
    }
}

/// The columns that a sentence is about.
fn named(columns: &[String]) -> String {
    match columns {
        [] => String::new(),
        [column] => format!(" (column `{column}`)"),
        columns => format!(" (columns `{}`)", columns.join("`, `")),
    }
}

fn why(reason: WidenReason) -> &'static str {
    match reason {
        WidenReason::ReplicaIdentity => {
            "Postgres does not send an old value, so `*` stands for it; set `replica identity \
             full`, or declare the column `immutable`"
        }
        WidenReason::UnchangedToast => {
            "a large value did not change, and Postgres does not send it"
        }
        WidenReason::Truncate => "every row is gone",
        WidenReason::Limit => "a limit of the key set was reached",
        WidenReason::MissingColumn => "a column is not in the row",
        WidenReason::NotText => "a filter needs text, and the value is not text",
        WidenReason::ConditionUnknown => "`when` depends on what is unknown, and counts as true",
        WidenReason::ConditionFailed => "`when` cannot be evaluated, and counts as true",
        WidenReason::LookupNoRow => "a lookup finds no row",
        WidenReason::LookupManyRows => "a lookup finds more than one row",
        WidenReason::LookupLimit => "a lookup finds more rows than its `limit`",
        WidenReason::LookupOldRow => "a row that a lookup read is another one now",
        WidenReason::LookupFailed => "a lookup fails, or is not answered in time",
        WidenReason::LargeValue => "a value is too large to be kept",
    }
}

/// Bytes for people.
pub(in crate::command) struct Shown<'a>(pub(in crate::command) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) => formatter.write_str(text),
            Err(_) => write!(formatter, "{}", self.0.escape_ascii()),
        }
    }
}
