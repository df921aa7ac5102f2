//! The parts that `teardown` leaves: replica identities and roles, with what would take each back.

use std::collections::BTreeSet;
use std::fmt;

use super::{Error, Hands, Mark};
use crate::config::Config;
use crate::preflight::{self, Freed, Identity, Memory, Step, printed};

/// More rights of a role than so many are not listed.
const RIGHTS_MAX: usize = 20;

/// The full replica identity of a relation, which `setup` set.
pub(super) struct Kept {
    identity: Identity,
    /// The step that gives back the one from before, or why it had better stay.
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

/// Gives the steps that take tables which no other walsweep has out of a shared publication, and
/// the identities that are as `setup` left them. Where it `is_unknown` what another needs, all
/// tables stay.
pub(super) async fn kept(
    config: &Config,
    publication: &Mark,
    is_unknown: bool,
    hands: &Hands<'_>,
) -> Result<(Vec<Step>, Vec<Kept>), Error> {
    let Mark::Ours(memory) = publication else { return Ok((Vec::new(), Vec::new())) };
    let Freed { drops, identities } =
        preflight::after_teardown(config, memory, is_unknown, hands.client).await?;
    let kept = identities.into_iter().map(|(identity, back)| Kept { identity, back });
    Ok((drops, kept.collect()))
}

/// A role that stays, with its rights.
pub(super) struct Stays {
    role: String,
    /// Why it is not walsweep's alone.
    is_used: Option<&'static str>,
    /// Statements that take back what it was granted, be it by `setup` or by somebody else.
    rights: Vec<String>,
}

/// The roles of the configuration that are there; another walsweep of a publication that
/// `is_shared` may log in as they do, and needs their rights.
pub(super) async fn roles(
    config: &Config,
    is_shared: bool,
    hands: &Hands<'_>,
) -> Result<Vec<Stays>, Error> {
    let postgres = &config.postgres;
    let users = BTreeSet::from([&postgres.endpoint.user, &postgres.replication_endpoint.user]);
    let question = include_str!("../../sql/setup/role_rights.sql");
    let mut roles = Vec::new();
    for role in users {
        let Some(row) = hands.client.query_opt(question, &[role]).await? else { continue };
        let another = match is_shared {
            true => Some("another walsweep that has the publication may log in as it"),
            false => is_beside(config, role, hands)
                .await?
                .then_some("another walsweep, which has another publication, may log in as it"),
        };
        let is_used = match (another, row.try_get(0)?, row.try_get(1)?) {
            (Some(another), ..) => Some(another),
            (None, true, _) => Some("it is a superuser"),
            (None, false, true) => Some("it owns something"),
            (None, false, false) => None,
        };
        let rights = if another.is_some() { Vec::new() } else { row.try_get(2)? };
        roles.push(Stays { role: role.clone(), is_used, rights });
    }
    Ok(roles)
}

/// Whether another walsweep of this database, or one that runs, may log in as the role.
async fn is_beside(config: &Config, role: &str, hands: &Hands<'_>) -> Result<bool, Error> {
    let question = include_str!("../../sql/setup/beside.sql");
    let row = hands.client.query_one(question, &[&config.postgres.publication, &role]).await?;
    let comments: Vec<String> = row.try_get(0)?;
    let is_walsweeps = |comment: &String| {
        Memory::read(Some(comment)).is_some() || Memory::is_damaged(Some(comment))
    };
    Ok(row.try_get(1)? || comments.iter().any(is_walsweeps))
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
