//! Whose rows the answers of lookups are: of one table, by columns of it, or it is not known.
//!
//! The text of the query says how it compares ([`compared_columns`]), and Postgres, which table its
//! columns are of. A change of that table then tells what the lookup gave before: for which
//! parameters only if what stands in the row is what stands in them. That is so for types whose
//! equal values have one text, in a collation that takes no two texts for equal, if the column of
//! the change that gives the parameter is of the same type: `'007'` finds the row 7 and is another
//! text. Otherwise the change tells no more than that some answer may have been another one.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::catalog::{names, with_published};
use super::cure::set_identity_full;
use super::lookups::begin;
use super::step::Identity;
use super::{Code, Error, Finding, lookups};
use crate::config::{Config, TableName};
use crate::keys::{Keyed, Lookup, LookupId, Rules};
use crate::postgres::{AS_ROLE, again};
use crate::settle::compared_columns;

/// Types whose equal values have the same text, those together of which an equal value of another
/// one has the same text, too.
const PLAIN: [&[Type]; 3] =
    [&[Type::INT2, Type::INT4, Type::INT8, Type::OID], &[Type::UUID], &[Type::TEXT, Type::VARCHAR]];

/// A lookup's table, and the relations under whose names changes of it may come.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) keyed: Keyed,
    relations: Vec<Relation>,
}

/// One under whose name changes of the lookup's table may come.
#[derive(Debug)]
struct Relation {
    name: TableName,
    /// The columns that its identity has, where it counts and is no full one.
    known: Option<Vec<String>>,
    /// Its replica identity as it is, and under whose name it is published.
    identity: Identity,
    /// Why it must not have a full one.
    forbids_full: Option<String>,
}

/// A column of the lookup's table, or of one whose changes give its parameters.
struct Column {
    is_own: bool,
    gives: bool,
    number: i16,
    name: String,
    /// Its place in [`PLAIN`].
    kind: Option<usize>,
    is_deterministic: bool,
}

/// Finds it out for every lookup.
///
/// # Errors
///
/// When the connection fails; where the server refuses, nothing is known.
pub(super) async fn look(
    config: &Config,
    rules: &Rules,
    client: &Client,
) -> Result<Vec<Option<Seen>>, Error> {
    let (mut all, mut was_locked) = (Vec::new(), false);
    for (id, lookup) in (0..=u16::MAX).map(LookupId).zip(rules.lookups()) {
        let params = compared_columns(lookup.query());
        let Some(params) = params.filter(|params| params.len() == lookup.params.len()) else {
            all.push(None);
            continue;
        };
        let used: Vec<&str> = rules.rules_of_lookup(id).collect();
        let used = config.rules.iter().filter(|rule| used.contains(&rule.name.as_str()));
        let used: Vec<&TableName> = used.map(|rule| &rule.table).collect();
        client.batch_execute(&begin("read only", was_locked)).await?;
        let outcome = one((config, &used), lookup, params, client).await;
        client.batch_execute("rollback").await?;
        was_locked |= outcome.as_ref().is_err_and(lookups::is_locked);
        all.push(match outcome {
            Ok(seen) => seen,
            Err(error) if error.as_db_error().is_some() => None,
            Err(error) => return Err(error.into()),
        });
    }
    Ok(all)
}

/// Tells of which lookups the stream does not have old rows: whatever changes such a row together
/// with one that needs it makes keys wide.
///
/// # Errors
///
/// When the connection fails.
pub(super) async fn check(
    config: &Config,
    rules: &Rules,
    client: &Client,
) -> Result<Vec<Finding>, Error> {
    let seen = look(config, rules, client).await?;
    let mut findings = Vec::new();
    for ((id, lookup), seen) in (0..=u16::MAX).map(LookupId).zip(rules.lookups()).zip(&seen) {
        let of_rules = |finding: Finding| finding.of_rules(rules.rules_of_lookup(id));
        let found = seen.iter().flat_map(|seen| seen.unknown(config, lookup));
        findings.extend(found.map(of_rules));
    }
    Ok(findings)
}

impl Seen {
    /// The tables of whose old rows not all is known that is needed: each with the partitions that
    /// are published with it, all of which have to have it.
    fn unknown(&self, config: &Config, lookup: &Lookup) -> Vec<Finding> {
        let of_family = |table: &TableName| self.relations.iter().any(|one| one.name == *table);
        let rules = config.rules.iter().filter(|rule| of_family(&rule.table));
        let immutable: Vec<&str> =
            rules.flat_map(|rule| &rule.immutable).map(|column| column.value.as_str()).collect();
        let read = || self.keyed.params.iter().chain(&self.keyed.columns);
        let unknown = |relation: &Relation| {
            let known = relation.known.as_ref()?;
            let is_unknown =
                |column: &&String| !known.contains(column) && !immutable.contains(&column.as_str());
            read().find(is_unknown).cloned()
        };
        let mut families: BTreeMap<&TableName, Vec<(&Relation, String)>> = BTreeMap::new();
        for relation in &self.relations {
            if let Some(column) = unknown(relation) {
                families.entry(&relation.identity.table).or_default().push((relation, column));
            }
        }
        let finding = |(table, family): (&TableName, Vec<(&Relation, String)>)| {
            let (relation, column) = family.first()?;
            let (name, of) = (&lookup.name, &relation.name);
            let of = if of == table { String::new() } else { format!(" of partition `{of}`") };
            let text = format!(
                "lookup `{name}` reads `{column}` of `{table}`, and the replica identity{of} does \
                 not have it: a transaction that updates or deletes such a row widens keys that \
                 need it to `*`"
            );
            let finding = Finding::warning(Code::LookupIdentity, text).at(&lookup.sql.at);
            let forbidden = family.iter().find_map(|(one, _)| one.forbids_full.as_ref());
            Some(match forbidden {
                None => {
                    let before = family.iter().map(|(one, _)| one.identity.clone());
                    finding.cure(before.map(set_identity_full).collect()).done_by_setup()
                }
                Some(why) => finding.hint(format!(
                    "with a full replica identity the server would refuse the application's own \
                     UPDATE and DELETE: {why}; if `{name}`'s columns never change, name them in \
                     `immutable` of a rule of `{table}`"
                )),
            })
        };
        families.into_iter().filter_map(finding).collect()
    }
}

async fn one(
    (config, used): (&Config, &[&TableName]),
    lookup: &Lookup,
    params: Vec<String>,
    client: &Client,
) -> Result<Option<Seen>, tokio_postgres::Error> {
    client.batch_execute(AS_ROLE).await?;
    let prepared = client.prepare(lookup.query()).await?;
    client.batch_execute(&again()).await?;
    let origin = |column: &str| {
        let mut given = prepared.columns().iter().filter(|one| one.name() == column);
        let (found, None) = (given.next()?, given.next()) else { return None };
        found.table_oid().zip(found.column_id())
    };
    let origins = lookup.columns.iter().map(|column| origin(&column.value));
    let Some(origins) = origins.collect::<Option<Vec<(u32, i16)>>>() else { return Ok(None) };
    let Some((table, _)) = origins.first().copied() else { return Ok(None) };
    let (schemas, tables) = names(used.iter().copied());
    let question = include_str!("../../sql/lookup_columns.sql");
    let rows = client.query(question, &[&table, &schemas, &tables]).await?;
    let all: Vec<Column> = rows.iter().map(Column::read).collect::<Result<_, _>>()?;
    let name = |(of, number): &(u32, i16)| {
        let found = all.iter().find(|one| one.is_own && one.number == *number && *of == table);
        found.map(|one| one.name.clone())
    };
    let Some(columns) = origins.iter().map(name).collect::<Option<Vec<String>>>() else {
        return Ok(None);
    };
    let has = |param: &String| all.iter().any(|one| one.is_own && one.name == *param);
    if !params.iter().all(has) {
        return Ok(None);
    }
    let mut pairs = params.iter().zip(&lookup.params);
    let is_exact = prepared.params().iter().all(|kind| plain(kind.oid()).is_some())
        && pairs.all(|(compared, given)| is_exact(&all, compared, &given.value));
    let question = with_published(include_str!("../../sql/lookup_identity.sql"));
    let rows = client.query(&question, &[&table, &config.postgres.publication]).await?;
    let (mut oids, mut relations) = (Vec::new(), Vec::new());
    for row in &rows {
        oids.push(row.try_get(0)?);
        let name = TableName { schema: row.try_get(1)?, name: row.try_get(2)? };
        let known: Vec<String> = row.try_get(4)?;
        let (was, index): (i8, Option<String>) = (row.try_get(5)?, row.try_get(6)?);
        let was = char::from(was.to_le_bytes()[0]);
        let index = index.filter(|_| was == 'i');
        let table = TableName { schema: row.try_get(8)?, name: row.try_get(9)? };
        let identity = Identity { table, relation: name.clone(), was, index };
        let known = row.try_get::<_, bool>(3)?.then_some(known);
        relations.push(Relation { name, known, identity, forbids_full: row.try_get(7)? });
    }
    Ok(Some(Seen { keyed: Keyed { tables: oids, params, columns, is_exact }, relations }))
}

/// Whether equal values of a column of the lookup's table and of one of changes are equal texts.
fn is_exact(all: &[Column], compared: &str, given: &str) -> bool {
    let own = all.iter().find(|one| one.is_own && one.name == compared);
    let Some(kind) = own.filter(|one| one.is_deterministic).and_then(|one| one.kind) else {
        return false;
    };
    all.iter().filter(|one| one.gives && one.name == given).all(|one| one.kind == Some(kind))
}

/// The place in [`PLAIN`] of a type.
fn plain(oid: u32) -> Option<usize> {
    PLAIN.iter().position(|kinds| kinds.iter().any(|kind| kind.oid() == oid))
}

impl Column {
    /// A row of `sql/lookup_columns.sql`.
    fn read(row: &Row) -> Result<Column, tokio_postgres::Error> {
        Ok(Column {
            is_own: row.try_get(0)?,
            gives: row.try_get(1)?,
            number: row.try_get(2)?,
            name: row.try_get(3)?,
            kind: plain(row.try_get(4)?),
            is_deterministic: row.try_get(5)?,
        })
    }
}
