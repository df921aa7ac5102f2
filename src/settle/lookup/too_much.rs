//! Says that a lookup finds more rows than it may have, or a value that is too large for a key:
//! once, and again at growing distances.

use hashbrown::HashMap;
use tokio::time::Instant;

use super::rows::{Asked, VALUE_SIZE_MAX};
use crate::budget;
use crate::keys::{Answers, Found, KeySet};
use crate::telemetry::Distance;

const _: () = assert!(VALUE_SIZE_MAX == 64 << 10, "it is said so");

/// When each lookup may be told of again, by its place, for each kind of answer.
#[derive(Debug, Default)]
pub(super) struct TooMuch(HashMap<(usize, Excess), Distance>);

/// The reason why an answer is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Excess {
    Rows,
    Value,
}

impl Excess {
    fn of(found: &Found) -> Option<Excess> {
        match found {
            Found::Beyond => Some(Excess::Rows),
            Found::Large => Some(Excess::Value),
            Found::Rows(_) | Found::None | Found::Many | Found::Failed => None,
        }
    }
}

impl TooMuch {
    /// Tells of the lookups with answers among these that are too much, and which keys of these
    /// sets widen.
    pub(super) fn tell<'a>(
        &mut self,
        lookups: &[Asked],
        answers: &Answers,
        sets: impl Iterator<Item = &'a KeySet>,
    ) {
        if answers.iter().all(|(_, found)| Excess::of(found).is_none()) {
            return;
        }
        let mut keys: HashMap<(usize, Excess), Vec<&str>> = HashMap::new();
        for (text, wanted) in sets.flat_map(KeySet::waiting) {
            for one in wanted {
                let Some(excess) = answers.get(&one).and_then(Excess::of) else { continue };
                let texts = keys.entry((usize::from(one.lookup.0), excess)).or_default();
                if !texts.contains(&text) {
                    texts.push(text);
                }
            }
        }
        let now = Instant::now();
        for (of, texts) in keys {
            if self.0.entry(of).or_default().is_due(now) {
                say(&lookups[of.0], of.1, &texts);
            }
        }
    }
}

fn say(lookup: &Asked, excess: Excess, keys: &[&str]) {
    let (name, limit, room) = (lookup.name(), lookup.most(), budget::ROWS >> 20);
    let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
    let keys = keys.join(", ");
    let (found, hint) = match excess {
        Excess::Rows => (
            format!("finds more rows than its `limit` of {limit}, or more than {room} MiB of them"),
            format!(
                "raise `lookup.{name}.limit`, to at most 10000, or let its query give fewer rows"
            ),
        ),
        Excess::Value => (
            "finds a value above 64 KiB".to_owned(),
            format!(
                "name a shorter column in the key, or let `lookup.{name}.sql` give a shorter value"
            ),
        ),
    };
    tracing::warn!(hint, "lookup `{name}` {found}: {keys} of these rows widen to `*`");
}
