//! Exact keys: multi-key UNLINKs, one round trip for many.

use super::job::Tally;
use super::node::{Error, Node};
use crate::keys::RuleId;

/// Keys in one UNLINK command. Measured: 500 keys a command cost Redis 0.57 µs a key, one key a
/// command 0.72 µs; a command of 500 small values holds Redis for 0.3 ms.
const COMMAND_KEYS: usize = 500;

/// Commands in one round trip: bounds what is buffered on either side.
const COMMANDS: usize = 16;

/// Removes keys and counts, by rule, how many were there and how many were not.
///
/// # Errors
///
/// The first error of the node. Keys removed before it stay removed; all are tried again.
pub(super) async fn unlink<N: Node>(
    node: &N,
    mut by_rule: Vec<(RuleId, &[u8])>,
) -> Result<Tally, Error> {
    by_rule.sort_by_key(|(rule, _)| rule.0);
    let commands: Vec<(RuleId, Vec<&[u8]>)> = by_rule
        .chunk_by(|one, other| one.0 == other.0)
        .flat_map(|rule| rule.chunks(COMMAND_KEYS))
        .filter_map(|keys| {
            let (rule, _) = keys.first()?;
            Some((*rule, keys.iter().map(|(_, key)| *key).collect()))
        })
        .collect();
    let mut tally = Tally::default();
    let (rules, groups): (Vec<RuleId>, Vec<Vec<&[u8]>>) = commands.into_iter().unzip();
    if groups.is_empty() {
        // That nothing was to be removed is known of this server only.
        node.unlink(&[]).await?;
    }
    for (rules, groups) in rules.chunks(COMMANDS).zip(groups.chunks(COMMANDS)) {
        let removed = node.unlink(groups).await?;
        for ((rule, group), removed) in rules.iter().zip(groups).zip(removed) {
            tally.add(*rule, removed, (group.len() as u64).saturating_sub(removed));
        }
    }
    Ok(tally)
}
