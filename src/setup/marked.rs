//! The publication as it is found: whose it is, and what its comment says.

use super::{Error, Hands, Mark};
use crate::config::Config;
use crate::preflight::Memory;

/// The publication as it is now.
pub(super) struct Marked {
    /// Whose it is.
    pub(super) mark: Mark,
    /// The role that owns it, if there is one.
    pub(super) owner: Option<String>,
    /// The comment on it, as it was written: its memory, if it is walsweep's.
    pub(super) comment: Option<String>,
}

/// Looks whose the publication is.
pub(super) async fn marked(config: &Config, hands: &Hands<'_>) -> Result<Marked, Error> {
    let question = include_str!("../../sql/setup/publication_mark.sql");
    let row = hands.client.query_opt(question, &[&config.postgres.publication]).await?;
    let Some(row) = row else {
        return Ok(Marked { mark: Mark::Missing, owner: None, comment: None });
    };
    let (owner, comment): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    let mark = Memory::read(comment.as_deref());
    let mark = mark.map_or_else(|| Mark::Foreign(owner.clone()), Mark::Ours);
    Ok(Marked { mark, owner: Some(owner), comment })
}
