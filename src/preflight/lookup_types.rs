//! Lookups that take a parameter for another type than its column has: a value that is none of that
//! type fails on the server, each time that a key needs its row.
//!
//! A parameter is sent as the text of its column. The server says which type it takes it for, and
//! the catalog which type the column has. Only types are judged that come with Postgres and whose
//! texts are known here; of any other, nothing is said.

use std::collections::BTreeMap;

use tokio_postgres::Client;
use tokio_postgres::types::{Kind, Type};

use super::lookups::{begin, is_locked};
use super::{Code, Context, Error, Finding};
use crate::config::TableName;
use crate::keys::{Lookup, LookupId};
use crate::postgres::AS_ROLE;

/// Types with a kind of text of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Text,
    Whole,
    Real,
    Bool,
    Uuid,
    Time,
    Json,
    Network,
}

/// Each group with its types.
const GROUPS: [(Group, &[Type]); 8] = [
    (Group::Text, &[Type::TEXT, Type::VARCHAR, Type::BPCHAR, Type::NAME]),
    (Group::Whole, &[Type::INT2, Type::INT4, Type::INT8, Type::OID]),
    (Group::Real, &[Type::NUMERIC, Type::FLOAT4, Type::FLOAT8]),
    (Group::Bool, &[Type::BOOL]),
    (Group::Uuid, &[Type::UUID]),
    (Group::Time, &[Type::DATE, Type::TIMESTAMP, Type::TIMESTAMPTZ, Type::TIME, Type::TIMETZ]),
    (Group::Json, &[Type::JSON, Type::JSONB]),
    (Group::Network, &[Type::INET, Type::CIDR]),
];

/// Whole numbers of one type that another one does not hold.
const BEYOND: [(Type, Type); 6] = [
    (Type::INT4, Type::INT2),
    (Type::INT8, Type::INT2),
    (Type::OID, Type::INT2),
    (Type::INT8, Type::INT4),
    (Type::OID, Type::INT4),
    (Type::INT8, Type::OID),
];

/// Says which lookups may not be able to read their parameters.
///
/// # Errors
///
/// When the connection fails; where the server refuses a query, others tell of it.
pub(super) async fn check(context: &Context<'_>, client: &Client) -> Result<Vec<Finding>, Error> {
    let (mut findings, mut was_locked) = (Vec::new(), false);
    for (id, lookup) in (0..=u16::MAX).map(LookupId).zip(context.rules.lookups()) {
        client.batch_execute(&begin("read only", was_locked)).await?;
        client.batch_execute(AS_ROLE).await?;
        let prepared = client.prepare(lookup.query()).await;
        client.batch_execute("rollback").await?;
        was_locked |= prepared.as_ref().is_err_and(is_locked);
        match prepared {
            Ok(prepared) => findings.extend(judge(context, (id, lookup), prepared.params())),
            Err(error) if error.as_db_error().is_some() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(findings)
}

/// Compares the types of the parameters with those of their columns, in each table whose rules need
/// the lookup.
fn judge(context: &Context<'_>, (id, lookup): (LookupId, &Lookup), types: &[Type]) -> Vec<Finding> {
    if types.len() != lookup.params.len() {
        return Vec::new();
    }
    let mut by_table: BTreeMap<&TableName, Vec<&str>> = BTreeMap::new();
    for table in context.rules.tables() {
        let used = || context.rules.rules_of_lookup(id);
        let of_table = context.rules_of(table).filter(|rule| used().any(|one| one == *rule));
        by_table.insert(table, of_table.collect());
    }
    by_table.retain(|_, rules| !rules.is_empty());
    let mut findings = Vec::new();
    for (table, rules) in by_table {
        let Some(known) = context.catalog.table(table) else { continue };
        for (at, (param, taken)) in lookup.params.iter().zip(types).enumerate() {
            let column = known.columns.iter().find(|column| column.name == param.value);
            let Some(kind) = column.and_then(|column| Type::from_oid(column.type_id)) else {
                continue;
            };
            if !is_read(&kind, taken) {
                let place = (at + 1, &*param.value, table);
                let finding = finding(&lookup.name, place, (&kind, taken));
                findings.push(finding.at(&param.at).of_rules(rules.iter().copied()));
            }
        }
    }
    findings
}

fn finding(
    lookup: &str,
    (number, column, table): (usize, &str, &TableName),
    (kind, taken): (&Type, &Type),
) -> Finding {
    let (has, takes) = (kind.name(), taken.name());
    let text = format!(
        "lookup `{lookup}` takes `${number}` for {takes}, and `{column}` of `{table}` is {has}: a \
         value that is no {takes} cannot be looked up, and `*` stands in its keys"
    );
    let is_number = |kind: &Type| matches!(group(kind), Some(Group::Whole | Group::Real));
    let hint = if is_number(kind) && is_number(base(taken)) {
        format!("write `${number}::{has}` in the query, which takes each value of the column")
    } else {
        format!(
            "compare texts in the query, as in `where id::text = ${number}`, with an index on \
             that; or name a column of type {takes} in `params`"
        )
    };
    Finding::warning(Code::LookupTypes, text).hint(hint)
}

/// Whether each text of a column may well be one of the type that it is taken for.
fn is_read(kind: &Type, taken: &Type) -> bool {
    let taken = base(taken);
    let (Some(from), Some(into)) = (group(kind), group(taken)) else { return true };
    match (from, into) {
        (_, Group::Text)
        | (Group::Whole, Group::Real | Group::Json)
        | (Group::Real, Group::Json) => true,
        // A column of numerics has whole numbers as often as not, and its scale is not asked for.
        (Group::Real, Group::Whole) => *kind == Type::NUMERIC,
        (Group::Whole, Group::Whole) => {
            !BEYOND.iter().any(|(one, other)| (one, other) == (kind, taken))
        }
        (Group::Network, Group::Network) => (kind, taken) != (&Type::INET, &Type::CIDR),
        _ => from == into,
    }
}

/// The type that a domain is made of.
fn base(kind: &Type) -> &Type {
    match kind.kind() {
        Kind::Domain(below) => base(below),
        _ => kind,
    }
}

fn group(kind: &Type) -> Option<Group> {
    GROUPS.iter().find(|(_, types)| types.contains(kind)).map(|(group, _)| *group)
}

#[cfg(test)]
mod tests {
    use tokio_postgres::types::{Kind, Type};

    use super::{finding, is_read};
    use crate::config::TableName;

    fn own(name: &str, kind: Kind) -> Type {
        Type::new(name.to_owned(), 20_000, kind, "public".to_owned())
    }

    #[test]
    fn a_text_that_the_type_of_a_parameter_may_not_have_is_told() {
        for (kind, taken) in [
            (Type::TEXT, Type::INT4),
            (Type::VARCHAR, Type::INT8),
            (Type::BPCHAR, Type::NUMERIC),
            (Type::TEXT, Type::UUID),
            (Type::TEXT, Type::BOOL),
            (Type::TEXT, Type::TIMESTAMPTZ),
            (Type::TEXT, Type::JSONB),
            (Type::TEXT, Type::INET),
            (Type::INT8, Type::INT4),
            (Type::INT4, Type::INT2),
            (Type::INT8, Type::OID),
            (Type::OID, Type::INT4),
            (Type::FLOAT8, Type::INT8),
            (Type::UUID, Type::INT4),
            (Type::INT4, Type::UUID),
            (Type::INT4, Type::BOOL),
            (Type::INT4, Type::DATE),
            (Type::BOOL, Type::INT4),
            (Type::BOOL, Type::JSON),
            (Type::JSONB, Type::INT4),
            (Type::DATE, Type::INT4),
            (Type::INET, Type::CIDR),
            (Type::TEXT, own("small", Kind::Domain(Type::INT4))),
        ] {
            assert!(!is_read(&kind, &taken), "{kind} as {taken}");
        }
    }

    #[test]
    fn nothing_is_said_where_it_is_read_or_in_doubt() {
        for (kind, taken) in [
            (Type::INT4, Type::INT4),
            (Type::TEXT, Type::VARCHAR),
            (Type::VARCHAR, Type::BPCHAR),
            (Type::INT4, Type::TEXT),
            (Type::UUID, Type::TEXT),
            (Type::JSONB, Type::NAME),
            (Type::TIMESTAMPTZ, Type::VARCHAR),
            (Type::INT2, Type::INT4),
            (Type::INT2, Type::INT8),
            (Type::INT4, Type::INT8),
            (Type::INT4, Type::OID),
            (Type::OID, Type::INT8),
            (Type::INT8, Type::NUMERIC),
            (Type::INT8, Type::FLOAT8),
            (Type::NUMERIC, Type::FLOAT8),
            (Type::FLOAT8, Type::NUMERIC),
            (Type::NUMERIC, Type::INT8),
            (Type::INT4, Type::JSONB),
            (Type::JSON, Type::JSONB),
            (Type::DATE, Type::TIMESTAMPTZ),
            (Type::CIDR, Type::INET),
            (Type::TEXT, Type::BYTEA),
            (Type::TEXT, Type::INT4_ARRAY),
            (Type::TEXT, own("citext", Kind::Simple)),
            (Type::TEXT, own("mood", Kind::Enum(vec!["sad".to_owned()]))),
            (Type::INT4, own("large", Kind::Domain(Type::INT8))),
        ] {
            assert!(is_read(&kind, &taken), "{kind} as {taken}");
        }
    }

    #[test]
    fn the_cure_is_a_cast_that_takes_each_value_of_the_column() {
        let table = TableName { schema: "public".to_owned(), name: "match".to_owned() };
        let place = (2, "slug", &table);
        let text = finding("team", place, (&Type::TEXT, &Type::INT4));
        for part in ["`team`", "`$2` for int4", "`slug` of `public.match` is text"] {
            assert!(text.message.contains(part), "{}", text.message);
        }
        assert!(text.hint.unwrap().contains("`where id::text = $2`"));
        let number = finding("team", place, (&Type::INT8, &Type::INT4));
        assert!(number.hint.unwrap().contains("`$2::int8`"));
        assert!(!number.message.is_empty());
    }
}
