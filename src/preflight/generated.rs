//! Checks of generated columns, which a publication may have since version 18.
//!
//! Stored ones are sent if it has `publish_generated_columns = stored`, virtual ones never. With
//! that came a refusal of writes: see `wanted`.
//!
//! See <https://www.postgresql.org/docs/18/logical-replication-gencols.html>.

use super::catalog::{Column, Table};
use super::wanted::{GENERATED_VERSION_MIN, about_virtual};
use super::{Code, Context, Finding, cure};
use crate::keys::ColumnUse;

/// A replica identity, as it is or will be, with a generated column that is not published.
pub(super) fn identity(context: &Context<'_>, table: &Table) -> Option<Finding> {
    let column = context.wanted.goal(table).refused_column?;
    let (shown, name) = (table.relation.table_name(), &column.name);
    let message = format!(
        "`{shown}` has the generated column `{name}`, which its replica identity has or must have: \
         published without it, the server refuses the application's own UPDATE and DELETE"
    );
    let finding = Finding::error(Code::GeneratedIdentity, message);
    let finding = finding.of_rules(context.rules_of(&shown));
    Some(if column.is_virtual {
        finding.hint(about_virtual(table, column))
    } else {
        finding.cure(cure::set_generated(&context.config.postgres.publication))
    })
}

/// That a generated column which a rule names is not sent.
pub(super) fn unpublished(
    context: &Context<'_>,
    known: &Column,
    column: &ColumnUse<'_>,
) -> Finding {
    let mut message =
        format!("`{}` of `{}` is generated, and not published", column.column, column.table);
    if known.is_virtual {
        message.push_str(": it is virtual, and no publication can have it");
    }
    let finding = Finding::error(Code::GeneratedColumn, message).at(column.at);
    let hint = "name the columns that it is generated from";
    if context.catalog.version < GENERATED_VERSION_MIN {
        finding.hint(format!("{hint}; since version 18 a publication can have it, too"))
    } else if known.is_virtual {
        finding.hint(hint)
    } else {
        finding.cure(cure::set_generated(&context.config.postgres.publication))
    }
}
