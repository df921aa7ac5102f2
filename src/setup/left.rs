//! What `teardown` leaves: replica identities and roles, with what would take each back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Error, Hands, Mark};
use crate::config::Config;
use crate::preflight::{self, Identity, Memory, Step, printed};

/// More rights of a role than so many are not listed.
const RIGHTS_MAX: usize = 20;

/// The full replica identity of a relation, which `setup` set.
pub(super) struct Kept {
    identity: Identity,
    /// What gives back the one from before, or why it had better stay.
    back: Result<Step, String>,
}

impl Kept {
    /// A line for all that can go back, and one about each that cannot.
    pub(super) fn told(all: &[Kept]) -> Vec<String> {
        if all.is_empty() {
            return vec![
                "replica identities stay as they are: none is known to be of setup".into(),
            ];
        }
        let steps: Vec<Step> =
            all.iter().filter_map(|one| one.back.as_ref().ok()).cloned().collect();
        let go_back = format!(
            "replica identities stay as they are; those that setup changed go back with: {};",
            printed(&steps).replace('\n', " ")
        );
        let stays = all.iter().filter_map(|one| {
            let why = one.back.as_ref().err()?;
            Some(format!("`{}` keeps its full replica identity: {why}", one.identity.relation))
        });
        (!steps.is_empty()).then_some(go_back).into_iter().chain(stays).collect()
    }
}

/// The identities that are as `setup` left them.
pub(super) async fn kept(
    config: &Config,
    publication: &Mark,
    hands: &Hands<'_>,
) -> Result<Vec<Kept>, Error> {
    let Mark::Ours(memory) = publication else { return Ok(Vec::new()) };
    let identities: BTreeMap<(&str, &str), &Identity> = memory
        .identities
        .iter()
        .map(|one| ((&*one.relation.schema, &*one.relation.name), one))
        .collect();
    let (schemas, names): (Vec<&str>, Vec<&str>) = identities.keys().copied().unzip();
    let question = include_str!("../../sql/setup/identities.sql");
    let name = &config.postgres.publication;
    let rows = hands.client.query(question, &[&schemas, &names, name]).await?;
    let there = indexes(memory, hands).await?;
    let mut kept = Vec::new();
    for row in &rows {
        let (schema, name): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        let (now, is_in_others): (i8, bool) = (row.try_get(3)?, row.try_get(4)?);
        let Some(known) = identities.get(&(schema, name)) else { continue };
        if now.to_le_bytes() != *b"f" {
            continue;
        }
        let has_index = there.contains(&(schema.to_owned(), name.to_owned()));
        let back = back(config, (memory, known), is_in_others, has_index);
        kept.push(Kept { identity: (*known).clone(), back });
    }
    Ok(kept)
}

/// What gives a relation back the identity that it had, or why that had better not be run.
fn back(
    config: &Config,
    (memory, identity): (&Memory, &Identity),
    is_in_others: bool,
    has_index: bool,
) -> Result<Step, String> {
    let slot = &config.postgres.slot;
    let has_table = |(of, tables): (&String, &BTreeSet<_>)| {
        (of != slot && tables.contains(&identity.table)).then(|| of.clone())
    };
    if let Some(other) = memory.tables.iter().find_map(has_table) {
        return Err(format!("the walsweep with slot `{other}` looks at it"));
    }
    if is_in_others {
        return Err("another publication of updates or deletes may need it".to_owned());
    }
    match &identity.index {
        Some(index) if identity.was == 'i' && !has_index => Err(format!(
            "the one from before was index `{index}`, which is gone, or may be none any more"
        )),
        _ => {
            let step = preflight::identity_as_before(identity);
            step.ok_or_else(|| "the one from before is not known".to_owned())
        }
    }
}

/// The relations, by schema and name, whose index from before may be their identity again.
async fn indexes(memory: &Memory, hands: &Hands<'_>) -> Result<BTreeSet<(String, String)>, Error> {
    let with_index = memory.identities.iter().filter_map(|one| Some((one, one.index.as_ref()?)));
    let (mut schemas, mut names, mut indexes) = (Vec::new(), Vec::new(), Vec::new());
    for (identity, index) in with_index {
        schemas.push(identity.relation.schema.as_str());
        names.push(identity.relation.name.as_str());
        indexes.push(index.as_str());
    }
    let question = include_str!("../../sql/setup/identity_indexes.sql");
    let rows = hands.client.query(question, &[&schemas, &names, &indexes]).await?;
    let there = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    Ok(there.collect::<Result<_, tokio_postgres::Error>>()?)
}

/// A role that stays, with its rights.
pub(super) struct Stays {
    role: String,
    /// Why it is not walsweep's alone.
    is_used: Option<&'static str>,
    /// What takes back what it was granted, be it by `setup` or by somebody else.
    rights: Vec<String>,
}

/// The roles of the configuration that are there.
pub(super) async fn roles(config: &Config, hands: &Hands<'_>) -> Result<Vec<Stays>, Error> {
    let postgres = &config.postgres;
    let users = BTreeSet::from([&postgres.endpoint.user, &postgres.replication_endpoint.user]);
    let question = include_str!("../../sql/setup/role_rights.sql");
    let mut roles = Vec::new();
    for role in users {
        let Some(row) = hands.client.query_opt(question, &[role]).await? else { continue };
        let is_used = match (row.try_get(0)?, row.try_get(1)?) {
            (true, _) => Some("it is a superuser"),
            (false, true) => Some("it owns something"),
            (false, false) => None,
        };
        roles.push(Stays { role: role.clone(), is_used, rights: row.try_get(2)? });
    }
    Ok(roles)
}

impl fmt::Display for Stays {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stays { role, is_used, rights } = self;
        write!(formatter, "role `{role}` stays")?;
        if !rights.is_empty() {
            let shown = rights.iter().take(RIGHTS_MAX).map(String::as_str).collect::<Vec<_>>();
            let more = if rights.len() > RIGHTS_MAX { " and more" } else { "" };
            let shown = shown.join("; ");
            write!(formatter, ", with what it was granted in this database: `{shown}`{more}")?;
        }
        match is_used {
            Some(why) => write!(formatter, "; it is not walsweep's alone: {why}"),
            None => write!(
                formatter,
                "; if it is for walsweep alone, and has no rights in other databases, `drop role \
                 {}`",
                preflight::escaped(role)
            ),
        }
    }
}
