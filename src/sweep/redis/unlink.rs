//! Exact keys: multi-key UNLINKs, one round trip for many.
//!
//! Redis refuses a command for one key that the user may not remove. Which keys these are is found
//! out one by one, so that they hold up no other.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::node::{Error, Removes};
use crate::keys::RuleId;
use crate::sweep::job::Tally;

/// Keys in one UNLINK command. Measured: 500 keys a command cost Redis 0.57 µs a key, one key a
/// command 0.72 µs; a command of 500 small values holds Redis for 0.3 ms.
pub(in crate::sweep) const COMMAND_KEYS: usize = 500;

/// Commands in one round trip: bounds what is buffered on either side.
const COMMANDS: usize = 16;

/// Keys of a refused command that are tried alone. If each of them is refused, so are the others
/// taken to be, until the next try: a rule without any right then costs little.
const PROBES: usize = 16;

/// Keys that Redis refused to remove.
pub(in crate::sweep) type Refused = HashSet<Box<[u8]>>;

/// How much is found out about a command that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sweep) enum Search {
    /// Which keys are refused, unless the first ones all are.
    Quick,
    /// Which keys are refused.
    Thorough,
}

/// Removes keys and counts, by rule, how many were there and how many were not; also those that
/// went before an error, which is the first of the node. All are tried again then.
pub(in crate::sweep) async fn unlink<R: Removes>(
    node: &R,
    by_rule: Vec<(RuleId, &[u8])>,
    search: Search,
) -> (Tally, Result<(), Error>) {
    let mut tally = Tally::default();
    let outcome = remove(node, by_rule, search, &mut tally).await;
    (tally, outcome)
}

async fn remove<R: Removes>(
    node: &R,
    mut by_rule: Vec<(RuleId, &[u8])>,
    search: Search,
    tally: &mut Tally,
) -> Result<(), Error> {
    by_rule.sort_by_key(|(rule, _)| rule.0);
    let commands: Vec<(RuleId, Vec<&[u8]>)> = by_rule
        .chunk_by(|one, other| one.0 == other.0)
        .flat_map(|rule| rule.chunks(COMMAND_KEYS))
        .filter_map(|keys| {
            let (rule, _) = keys.first()?;
            Some((*rule, keys.iter().map(|(_, key)| *key).collect()))
        })
        .collect();
    let (rules, groups): (Vec<RuleId>, Vec<Vec<&[u8]>>) = commands.into_iter().unzip();
    if groups.is_empty() {
        // That nothing was to be removed is known of this server only.
        node.unlink(&[]).await?;
    }
    for (rules, groups) in rules.chunks(COMMANDS).zip(groups.chunks(COMMANDS)) {
        let removed = node.unlink(groups).await?;
        for ((rule, group), removed) in rules.iter().zip(groups).zip(removed) {
            let before = tally.refused.len();
            let removed = match removed {
                Some(removed) => removed,
                None => one_by_one(node, group, search, &mut tally.refused).await?,
            };
            // What was refused may be there or not.
            let known = group.len() - (tally.refused.len() - before);
            tally.add(*rule, removed, (known as u64).saturating_sub(removed));
        }
    }
    Ok(())
}

/// Removes the keys of a command that was refused, but for those that are the reason, which it adds
/// to `refused`. Gives how many were there.
///
/// # Errors
///
/// As with [`unlink`].
pub(in crate::sweep) async fn one_by_one<R: Removes>(
    node: &R,
    keys: &[&[u8]],
    search: Search,
    refused: &mut Refused,
) -> Result<u64, Error> {
    let mut removed = 0;
    let before = refused.len();
    let mut rest: Vec<&[u8]> = keys.to_vec();
    if search == Search::Quick && keys.len() > PROBES {
        let (probes, others) = probes(keys);
        removed += alone(node, &probes, refused).await?;
        rest = others;
        if refused.len() - before == probes.len() {
            refused.extend(rest.iter().map(|key| Box::from(*key)));
            return Ok(removed);
        }
    }
    Ok(removed + alone(node, &rest, refused).await?)
}

/// Chooses keys to be tried alone; gives them and the others. One of each sixteenth, since
/// neighbours are often alike; which one, the names themselves say, so that keys that come in turn,
/// such as every second one of another kind, are not all of one kind.
fn probes<'a>(keys: &[&'a [u8]]) -> (Vec<&'a [u8]>, Vec<&'a [u8]>) {
    let (mut probes, mut others) = (Vec::with_capacity(PROBES), Vec::with_capacity(keys.len()));
    for stratum in 0..PROBES {
        let bounds = [stratum, stratum + 1].map(|at| at * keys.len() / PROBES);
        let some = keys.get(bounds[0]..bounds[1]).unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        (stratum, some).hash(&mut hasher);
        let chosen = usize::try_from(hasher.finish() % some.len().max(1) as u64).unwrap_or(0);
        for (at, key) in some.iter().enumerate() {
            if at == chosen { probes.push(*key) } else { others.push(*key) }
        }
    }
    (probes, others)
}

/// A command for each key.
async fn alone<R: Removes>(node: &R, keys: &[&[u8]], refused: &mut Refused) -> Result<u64, Error> {
    let mut removed = 0;
    for keys in keys.chunks(COMMAND_KEYS) {
        let groups: Vec<Vec<&[u8]>> = keys.iter().map(|key| vec![*key]).collect();
        for (key, count) in keys.iter().zip(node.unlink(&groups).await?) {
            match count {
                Some(count) => removed += count,
                None => drop(refused.insert(Box::from(*key))),
            }
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::{PROBES, probes};

    /// Of keys of which every so many-th may be removed, some are tried: whatever the period, and
    /// wherever it begins.
    #[test]
    fn no_order_hides_the_keys_that_may_be_removed() {
        let names: Vec<String> = (0..500).map(|number| format!("key:{number:03}")).collect();
        for count in [17, 100, 496, 500] {
            let keys: Vec<&[u8]> = names.iter().take(count).map(String::as_bytes).collect();
            let (tried, others) = probes(&keys);
            assert_eq!((tried.len(), tried.len() + others.len()), (PROBES, count));
            for period in 2..=8_usize {
                for offset in 0..period {
                    let is_of_it = |key: &&&[u8]| {
                        let at = keys.iter().position(|other| other == *key).unwrap();
                        at % period == offset
                    };
                    let hits = tried.iter().filter(is_of_it).count();
                    let is_seen = hits > 0 && hits < PROBES;
                    assert!(is_seen || period > 3, "{count}: {period} from {offset}: {hits}");
                }
            }
        }
        // Runs of one kind are seen as well.
        let keys: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
        let (tried, _) = probes(&keys);
        for from in (0..500 - 63).step_by(9) {
            assert!(tried.iter().any(|key| keys[from..from + 63].contains(key)), "{from}");
        }
    }
}
