//! What a role may not do, asked before the first statement changes anything.

use std::collections::{BTreeMap, BTreeSet};

use super::{Error, Hands, Statement, who_may};
use crate::config::{Config, TableName};
use crate::preflight::{Does, Memory, Step};

/// What `sql/setup/rights.sql` tells.
struct Lacking {
    may_create: bool,
    /// The owner of the publication, if the role may not alter it.
    publication: Option<String>,
    /// The tables that the role may not alter, with their owners.
    tables: BTreeMap<TableName, String>,
}

/// Asks for the rights that the owner of the tables and of the publication has. Gives the steps
/// that the server will refuse, none of which is needed.
///
/// # Errors
///
/// When the role may not do all that is needed, or a query's.
pub(super) async fn ask(
    config: &Config,
    hands: &Hands<'_>,
    statements: &[Statement],
) -> Result<Vec<Step>, Error> {
    let tables: BTreeSet<TableName> =
        statements.iter().flat_map(|one| one.step.does.owned()).collect();
    let lacking = lacking(config, hands, tables.into_iter().collect()).await?;
    let denied: Vec<&Statement> =
        statements.iter().filter(|one| lacking.denies(&one.step.does)).collect();
    let needed = denied.iter().filter(|one| one.is_needed).map(|one| &one.step.does);
    let needed: Vec<&Does> = needed.collect();
    if needed.is_empty() {
        return Ok(denied.iter().map(|one| one.step.clone()).collect());
    }
    let (postgres, role) = (&config.postgres, &hands.endpoint.user);
    let (mut lacks, mut who) = (Vec::new(), Vec::new());
    if needed.iter().any(|does| matches!(does, Does::CreatePublication(_))) {
        lacks.push(format!("create a publication in database `{}`", postgres.endpoint.database));
        who.push(who_may(config, hands, &Does::CreatePublication(Memory::default())).await?);
    }
    let altered = needed.iter().any(|does| does.alters_publication());
    let owner = lacking.publication.as_ref().filter(|_| altered);
    let altered =
        owner.map(|owner| format!("change publication `{}` of `{owner}`", postgres.publication));
    lacks.extend(altered);
    // By owner, how many and one of them: whoever is not the owner lacks most of them.
    let tables: BTreeSet<TableName> = needed.iter().flat_map(|does| does.owned()).collect();
    let mut owners: BTreeMap<&String, (usize, TableName)> = BTreeMap::new();
    for table in tables {
        if let Some(owner) = lacking.tables.get(&table) {
            owners.entry(owner).or_insert((0, table)).0 += 1;
        }
    }
    lacks.extend(owners.iter().map(|(owner, (count, first))| match count {
        1 => format!("change table `{first}` of `{owner}`"),
        count => format!("change {count} tables of `{owner}`, such as `{first}`"),
    }));
    if !owners.is_empty() || owner.is_some() {
        let tables = owners.into_values().map(|(_, table)| table).collect();
        who.push(who_may(config, hands, &Does::AddTables(tables)).await?);
    }
    Err(Error::Unentitled { role: role.clone(), lacks, who: who.join("; ") })
}

impl Lacking {
    /// Whether the server would refuse it, as far as ownership tells.
    fn denies(&self, does: &Does) -> bool {
        match does {
            Does::CreatePublication(_) => !self.may_create,
            does => {
                does.alters_publication() && self.publication.is_some()
                    || does.owned().iter().any(|table| self.tables.contains_key(table))
            }
        }
    }
}

async fn lacking(
    config: &Config,
    hands: &Hands<'_>,
    tables: Vec<TableName>,
) -> Result<Lacking, Error> {
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|table| (&*table.schema, &*table.name)).unzip();
    let question = include_str!("../../sql/setup/rights.sql");
    let publication = &config.postgres.publication;
    let row = hands.client.query_one(question, &[publication, &schemas, &names]).await?;
    let (places, owners): (Vec<i64>, Vec<String>) = (row.try_get(2)?, row.try_get(3)?);
    let table = |place: i64| tables.get(usize::try_from(place - 1).ok()?).cloned();
    let denied = places.into_iter().zip(owners);
    Ok(Lacking {
        may_create: row.try_get(0)?,
        publication: row.try_get(1)?,
        tables: denied.filter_map(|(place, owner)| Some((table(place)?, owner))).collect(),
    })
}
