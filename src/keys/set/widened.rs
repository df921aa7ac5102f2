//! How often rules were widened, and why.

use crate::keys::label::{RuleId, WidenReason};

/// Counts, each of a rule and a reason. Few rules are widened, and for few reasons; a set that gave
/// way has a count of each of its rules.
#[derive(Clone, Debug, Default)]
pub(super) struct Widened(Vec<(RuleId, WidenReason, u64)>);

impl Widened {
    /// The memory that it holds, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<(RuleId, WidenReason, u64)>()
    }

    /// Counts so many more.
    pub(super) fn add(&mut self, rule: RuleId, reason: WidenReason, count: u64) {
        match self.place(rule, reason) {
            Ok(at) => self.0[at].2 += count,
            Err(at) => self.0.insert(at, (rule, reason, count)),
        }
    }

    /// Gives the count of a rule and a reason.
    pub(super) fn get(&self, rule: RuleId, reason: WidenReason) -> u64 {
        self.place(rule, reason).map_or(0, |at| self.0[at].2)
    }

    /// Gives each count that is not zero.
    pub(super) fn iter(&self) -> impl Iterator<Item = (RuleId, WidenReason, u64)> {
        self.0.iter().copied().filter(|(.., count)| *count > 0)
    }

    fn place(&self, rule: RuleId, reason: WidenReason) -> Result<usize, usize> {
        self.0
            .binary_search_by_key(&(rule, reason as u8), |(rule, reason, _)| (*rule, *reason as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::{RuleId, WidenReason, Widened};

    #[test]
    fn each_rule_and_reason_has_its_own_count() {
        let (limit, truncate) = (WidenReason::Limit, WidenReason::Truncate);
        let mut widened = Widened::default();
        for (rule, reason) in [(7, limit), (3, truncate), (7, truncate), (7, limit), (3, limit)] {
            widened.add(RuleId(rule), reason, 2);
        }
        assert_eq!(widened.get(RuleId(7), limit), 4);
        assert_eq!(widened.get(RuleId(5), limit), 0);
        let all: Vec<(u16, &str, u64)> =
            widened.iter().map(|(rule, why, count)| (rule.0, why.as_str(), count)).collect();
        let expected = [(3, "truncate", 2), (3, "limit", 2), (7, "truncate", 2), (7, "limit", 4)];
        assert_eq!(all, expected);
    }
}
