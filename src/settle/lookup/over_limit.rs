//! Says that a lookup finds more rows than it may have: once, and again at growing distances.

use hashbrown::HashMap;
use tokio::time::Instant;

use super::rows::Asked;
use crate::budget;
use crate::keys::{Answers, Found, KeySet};
use crate::telemetry::health::Distance;

/// When each lookup may be told of again, by its place.
#[derive(Debug, Default)]
pub(super) struct OverLimit(HashMap<usize, Distance>);

impl OverLimit {
    /// Tells of the lookups among these that have more rows than their limit in these answers, and
    /// which keys of these sets widen.
    pub(super) fn tell<'a>(
        &mut self,
        lookups: &[Asked],
        answers: &Answers,
        sets: impl Iterator<Item = &'a KeySet>,
    ) {
        if !answers.iter().any(|(_, found)| *found == Found::Beyond) {
            return;
        }
        let mut keys: HashMap<usize, Vec<&str>> = HashMap::new();
        for (text, wanted) in sets.flat_map(KeySet::waiting) {
            for one in wanted.iter().filter(|one| answers.get(one) == Some(&Found::Beyond)) {
                let texts = keys.entry(usize::from(one.lookup.0)).or_default();
                if !texts.contains(&text) {
                    texts.push(text);
                }
            }
        }
        let now = Instant::now();
        for (at, texts) in keys {
            if self.0.entry(at).or_default().is_due(now) {
                say(&lookups[at], &texts);
            }
        }
    }
}

fn say(lookup: &Asked, keys: &[&str]) {
    let (name, limit, room) = (lookup.name(), lookup.most(), budget::ROWS >> 20);
    let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
    let keys = keys.join(", ");
    let hint =
        format!("raise `lookup.{name}.limit`, to at most 10000, or let its query give fewer rows");
    tracing::warn!(
        hint,
        "lookup `{name}` finds more rows than its `limit` of {limit}, or more than {room} MiB of \
         them: {keys} of these rows widen to `*`"
    );
}
