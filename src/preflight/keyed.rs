//! Whose rows the answers of lookups are: of one table, by columns of it, or it is not known.
//!
//! The text of the query says how it compares ([`compared_columns`]), and Postgres, which table its
//! columns are of. What is known so tells what the lookup gave before a change of that table. Only
//! types count whose equal values have one text: what stands in a row is what stands in the
//! parameter.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::lookups::begin;
use super::{Error, lookups};
use crate::keys::{Keyed, Lookup, Rules};
use crate::postgres::{AS_ROLE, again};
use crate::settle::compared_columns;

/// Types whose equal values have the same text.
const PLAIN: [Type; 7] =
    [Type::INT2, Type::INT4, Type::INT8, Type::OID, Type::UUID, Type::TEXT, Type::VARCHAR];

/// Finds it out for every lookup.
///
/// # Errors
///
/// When the connection fails; where the server refuses, nothing is known.
pub(super) async fn look(rules: &Rules, client: &Client) -> Result<Vec<Option<Keyed>>, Error> {
    let (mut all, mut was_locked) = (Vec::new(), false);
    for lookup in rules.lookups() {
        let params = compared_columns(lookup.query());
        let Some(params) = params.filter(|params| params.len() == lookup.params.len()) else {
            all.push(None);
            continue;
        };
        client.batch_execute(&begin("read only", was_locked)).await?;
        let outcome = one(lookup, params, client).await;
        client.batch_execute("rollback").await?;
        was_locked |= outcome.as_ref().is_err_and(lookups::is_locked);
        all.push(match outcome {
            Ok(keyed) => keyed,
            Err(error) if error.as_db_error().is_some() => None,
            Err(error) => return Err(error.into()),
        });
    }
    Ok(all)
}

async fn one(
    lookup: &Lookup,
    params: Vec<String>,
    client: &Client,
) -> Result<Option<Keyed>, tokio_postgres::Error> {
    client.batch_execute(AS_ROLE).await?;
    let prepared = client.prepare(lookup.query()).await?;
    client.batch_execute(&again()).await?;
    if !prepared.params().iter().all(|kind| PLAIN.contains(kind)) {
        return Ok(None);
    }
    let origin = |column: &str| {
        let mut given = prepared.columns().iter().filter(|one| one.name() == column);
        let (found, None) = (given.next()?, given.next()) else { return None };
        found.table_oid().zip(found.column_id())
    };
    let origins = lookup.columns.iter().map(|column| origin(&column.value));
    let Some(origins) = origins.collect::<Option<Vec<(u32, i16)>>>() else { return Ok(None) };
    let Some((table, _)) = origins.first().copied() else { return Ok(None) };
    let rows = client.query(include_str!("../../sql/column_names.sql"), &[&table]).await?;
    let mut names: Vec<(i16, String)> = Vec::new();
    for row in rows {
        names.push((row.try_get(0)?, row.try_get(1)?));
    }
    let name = |(of, number): &(u32, i16)| {
        let found = names.iter().find(|(known, _)| known == number && *of == table);
        found.map(|(_, name)| name.clone())
    };
    let columns: Option<Vec<String>> = origins.iter().map(name).collect();
    let has = |param: &String| names.iter().any(|(_, name)| name == param);
    Ok(columns.filter(|_| params.iter().all(has)).map(|columns| Keyed { table, params, columns }))
}
