//! Rights that the role lacks to run its lookups: every right of each lookup at once, as SQL.
//!
//! Postgres refuses a query for the first thing that its role may not read, and names one. Here
//! all that a lookup reads is held against the role's rights.

use std::collections::{BTreeMap, BTreeSet};

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Client;

use super::step::Step;
use super::{Code, Context, Error, Finding, cure, lookups};
use crate::config::TableName;
use crate::keys::{Lookup, LookupId};
use crate::postgres::statement::render;
use crate::postgres::{AS_ROLE, again};

/// The findings of the lookups' trials, with what is to be granted where a right is missing. Asks
/// nothing if none was refused, and the session is the role's own.
///
/// # Errors
///
/// When the connection fails.
pub(super) async fn check(
    context: &Context<'_>,
    mut findings: Vec<Finding>,
    client: &Client,
) -> Result<Vec<Finding>, Error> {
    let role = &context.config.postgres.endpoint.user;
    let is_refused = findings.iter().any(|finding| finding.code == Code::LookupPrivilege);
    let is_another = context.catalog.user != *role;
    if context.rules.lookups().is_empty() || !(is_refused || is_another) {
        return Ok(findings);
    }
    for (id, lookup) in (0..=u16::MAX).map(LookupId).zip(context.rules.lookups()) {
        let missing = missing(lookup, role, client).await?;
        if missing.is_empty() {
            continue;
        }
        let (hint, steps) = (who(&missing), missing.into_iter().map(|(step, _)| step).collect());
        let is_of_it = |one: &&mut Finding| {
            one.code == Code::LookupPrivilege && one.at.as_ref() == Some(&lookup.sql.at)
        };
        match findings.iter_mut().find(is_of_it) {
            Some(finding) => *finding = finding.clone().cure(steps).hint(hint),
            // Whoever sets up for the role may read what the role may not.
            None if is_another => {
                let name = &lookup.name;
                let message = format!("role `{role}` may not read what lookup `{name}` reads");
                let finding = Finding::error(Code::LookupPrivilege, message);
                let finding = finding.at(&lookup.sql.at).cure(steps).hint(hint);
                findings.push(finding.of_rules(context.rules.rules_of_lookup(id)));
            }
            None => {}
        }
    }
    Ok(findings)
}

/// Something of which a right is missing, and its owner.
struct Owned {
    what: String,
    owner: String,
}

/// Who may grant what is missing: Postgres refuses others with a mere warning.
fn who(missing: &[(Step, Owned)]) -> String {
    let mut by_owner: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (_, Owned { what, owner }) in missing {
        by_owner.entry(owner).or_default().insert(what);
    }
    let owners = by_owner.into_iter().map(|(owner, what)| {
        format!("`{owner}` owns {}", what.into_iter().collect::<Vec<_>>().join(", "))
    });
    let owners: Vec<String> = owners.collect();
    format!("whoever owns it may grant that, or a superuser: {}", owners.join("; "))
}

/// The rights that one lookup lacks.
async fn missing(
    lookup: &Lookup,
    role: &str,
    client: &Client,
) -> Result<Vec<(Step, Owned)>, Error> {
    client.batch_execute(&lookups::begin("read write", false)).await?;
    // One that cannot be parsed has no function: then the names in its text tell.
    if let Err(error) = describe(lookup, client).await {
        if error.as_db_error().is_none() {
            return Err(error.into());
        }
        client.batch_execute("rollback").await?;
        client.batch_execute(&lookups::begin("read only", false)).await?;
    }
    let question = include_str!("../../sql/lookup_grants.sql");
    let rows = client.query(question, &[&role, &lookup.sql.value]).await;
    client.batch_execute("rollback").await?;
    let mut steps = Vec::new();
    for row in &rows? {
        let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if row.try_get(2)? {
            let what = format!("schema `{schema}`");
            let owned = Owned { what, owner: row.try_get(4)? };
            steps.push((cure::grant_usage(&schema, role), owned));
        }
        if row.try_get(3)? {
            let table = TableName { schema, name };
            let owned = Owned { what: format!("`{table}`"), owner: row.try_get(5)? };
            steps.push((cure::grant_select(&table, role), owned));
        }
    }
    Ok(steps)
}

/// Makes the temporary function from which the catalog tells what the query reads.
async fn describe(lookup: &Lookup, client: &Client) -> Result<(), tokio_postgres::Error> {
    let query = lookup.sql.value.trim().trim_end_matches(';');
    client.batch_execute(AS_ROLE).await?;
    let prepared = client.prepare(query).await?;
    let params = prepared.params().iter().map(|one| {
        let (schema, name) = (escape_identifier(one.schema()), escape_identifier(one.name()));
        format!("{schema}.{name}")
    });
    let params: Vec<String> = params.collect();
    let values = [("params", &*params.join(", ")), ("query", query)];
    client.batch_execute(&render(include_str!("../../sql/lookup_body.sql"), &values)).await?;
    client.batch_execute(&again()).await
}
