//! Which Redis of the configuration something is about.

use super::{Redis, Refill, Rule, Sweep};

/// A target: one Redis deployment that keys are removed from, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u8);

impl TargetId {
    /// The target of a configuration that has one.
    pub const FIRST: TargetId = TargetId(0);

    /// The first targets, so many of them, in the order of the configuration.
    pub fn first(count: usize) -> impl Iterator<Item = TargetId> {
        (0..=u8::MAX).take(count).map(TargetId)
    }

    /// Its place, from 0 on.
    #[must_use]
    pub fn place(self) -> usize {
        usize::from(self.0)
    }
}

/// The targets that keys of a rule are removed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Targets(u8);

impl Targets {
    /// So many targets there may be.
    pub const COUNT_MAX: usize = 8;

    /// None of them.
    pub const NONE: Targets = Targets(0);

    /// All that there may be; those of them that there are not do no harm.
    pub const ALL: Targets = Targets(u8::MAX);

    /// These, and this one besides.
    #[must_use]
    pub fn with(self, target: TargetId) -> Targets {
        Targets(self.0 | Targets::bit(target))
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn has(self, target: TargetId) -> bool {
        self.0 & Targets::bit(target) != 0
    }

    /// Whether one of these is among others.
    #[must_use]
    pub fn meets(self, others: Targets) -> bool {
        self.0 & others.0 != 0
    }

    /// A number that is another one for other targets.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0.into()
    }

    fn bit(target: TargetId) -> u8 {
        1_u8.checked_shl(target.0.into()).unwrap_or_default()
    }
}

/// A target, and all of the configuration that is about it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it is.
    pub redis: Redis,
    /// The rules whose keys go there, in the order of the file.
    pub rules: Vec<Rule>,
    /// The slot whose changes its keys are removed for.
    pub slot: String,
    /// How patterns are removed.
    pub sweep: Sweep,
    /// The second removal.
    pub refill: Refill,
}
