//! Which answers of lookups may be kept: those that depend on nothing but rows of tables of whose
//! every change the stream tells.
//!
//! Postgres itself is asked: as the body of a function, a query has its dependencies in the
//! catalog, and its parsed form. The function is a temporary one, in a transaction that is rolled
//! back. Whatever is not known to be harmless means that answers are not kept.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::{Client, Row};

use super::catalog::with_published;
use super::{Code, Error, Finding, keyed, lookups, message};
use crate::config::{Config, TableName};
use crate::keys::{Basis, Lookup, Reads, Rules};
use crate::postgres::statement::render;
use crate::postgres::{AS_ROLE, again};

/// Types with a lower `pg_type.oid` are part of Postgres (`FirstNormalObjectId`, transam.h).
const FIRST_OWN_TYPE: u32 = 16_384;

/// The outcome for one lookup.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nobody asked for it, or the query is not one: that has findings of its own.
    Unasked,
    /// Its answers may be kept.
    Kept(Reads),
    /// They may not.
    NotKept {
        why: String,
        /// The cure for a table that is not published.
        publish: Option<TableName>,
    },
}

/// Finds what the answers of each lookup depend on, and whose rows they are: by
/// [`LookupId`](crate::keys::LookupId).
///
/// # Errors
///
/// When the connection fails; what the server refuses is not kept.
pub async fn find(config: &Config, rules: &Rules, client: &Client) -> Result<Vec<Basis>, Error> {
    let outcomes = look(config, rules, client).await?.into_iter();
    let seen = keyed::look(config, rules, client).await?;
    let both = outcomes.map(Outcome::reads).zip(seen);
    Ok(both.map(|(reads, seen)| Basis { reads, keyed: seen.map(|seen| seen.keyed) }).collect())
}

pub(super) async fn look(
    config: &Config,
    rules: &Rules,
    client: &Client,
) -> Result<Vec<Outcome>, Error> {
    let (mut outcomes, mut was_locked) = (Vec::new(), false);
    for lookup in rules.lookups() {
        if lookup.cache == 0 {
            outcomes.push(Outcome::Unasked);
            continue;
        }
        let begin = lookups::begin("read write", was_locked);
        let outcome = one(lookup, (&begin, &config.postgres.publication), client).await;
        client.batch_execute("rollback").await?;
        was_locked |= outcome.as_ref().is_err_and(lookups::is_locked);
        let refused = |error: tokio_postgres::Error| match error.as_db_error() {
            // That it is locked is said of the lookup itself, and passes.
            Some(_) if lookups::is_locked(&error) => Ok(Outcome::Unasked),
            Some(_) => Ok(Outcome::not_kept(message(&error))),
            None => Err(error),
        };
        outcomes.push(outcome.or_else(refused)?);
    }
    Ok(outcomes)
}

/// Finds the outcome for one lookup, in a transaction that is left open. A standby refuses to
/// `begin`: that it is one the other checks say.
async fn one(
    lookup: &Lookup,
    (begin, publication): (&str, &str),
    client: &Client,
) -> Result<Outcome, tokio_postgres::Error> {
    let query = lookup.query();
    client.batch_execute(begin).await?;
    client.batch_execute(AS_ROLE).await?;
    let prepared = match client.prepare(query).await {
        Ok(prepared) => prepared,
        Err(error) if lookups::is_locked(&error) => return Err(error),
        Err(_) => return Ok(Outcome::Unasked),
    };
    if let Some(own) = prepared.params().iter().find(|one| one.oid() >= FIRST_OWN_TYPE) {
        let why = format!("it has a parameter of type `{}`, which may be altered", own.name());
        return Ok(Outcome::not_kept(why));
    }
    let params = prepared.params().iter().map(|one| {
        let (schema, name) = (escape_identifier(one.schema()), escape_identifier(one.name()));
        format!("{schema}.{name}")
    });
    let params: Vec<String> = params.collect();
    let values = [("params", &*params.join(", ")), ("query", query)];
    client.batch_execute(&render(include_str!("../../sql/lookup_body.sql"), &values)).await?;
    client.batch_execute(&again()).await?;
    let query = with_published(include_str!("../../sql/lookup_reads.sql"));
    let rows = client.query(&query, &[&publication]).await?;
    conclude(&rows)
}

/// Every row of `sql/lookup_reads.sql` is a table, or a reason; without a row there is no table.
fn conclude(rows: &[Row]) -> Result<Outcome, tokio_postgres::Error> {
    let (mut tables, mut path) = (Vec::new(), None);
    for row in rows {
        let table = match (row.try_get(1)?, row.try_get(2)?) {
            (Some(schema), Some(name)) => Some(TableName { schema, name }),
            _ => None,
        };
        if let Some(why) = row.try_get(3)? {
            let publish = table.filter(|_| row.try_get(4).unwrap_or(false));
            return Ok(Outcome::NotKept { why, publish });
        }
        path = Some(row.try_get(5)?);
        tables.extend(row.try_get::<_, Option<u32>>(0)?.zip(table));
    }
    match path {
        Some(search_path) => Ok(Outcome::Kept(Reads { tables, search_path })),
        None => Ok(Outcome::not_kept("it reads no table")),
    }
}

/// The tables on which answers depend that may be kept.
pub(super) fn kept(outcomes: &[Outcome]) -> Vec<TableName> {
    let reads = outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::Kept(reads) => Some(reads.tables.iter().map(|(_, table)| table.clone())),
        Outcome::Unasked | Outcome::NotKept { .. } => None,
    });
    reads.flatten().collect()
}

/// Says what an operator may want to know.
pub(super) fn findings(rules: &Rules, outcomes: &[Outcome]) -> Vec<Finding> {
    let told = rules.lookups().iter().zip(outcomes).filter_map(|(lookup, outcome)| {
        let Outcome::NotKept { why, publish } = outcome else { return None };
        let name = &lookup.name;
        let text = format!("answers of lookup `{name}` are not kept: {why}");
        let finding = Finding::info(Code::LookupNotCached, text).at(&lookup.sql.at);
        Some(match publish {
            Some(table) => {
                let hint = format!(
                    "add `{table}` to the publication, without a row filter, if its changes are few"
                );
                finding.hint(hint)
            }
            None => finding.hint(format!("`lookup.{name}.cache = 0` says that this is meant")),
        })
    });
    told.collect()
}

impl Outcome {
    /// Gives what the answers depend on, if they may be kept.
    pub(super) fn reads(self) -> Option<Reads> {
        if let Outcome::Kept(reads) = self { Some(reads) } else { None }
    }

    fn not_kept(why: impl Into<String>) -> Outcome {
        Outcome::NotKept { why: why.into(), publish: None }
    }
}
