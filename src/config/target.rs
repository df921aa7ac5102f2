//! Which Redis of the configuration something is about.

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
