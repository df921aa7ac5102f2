//! What one key set has beyond another.

use super::{Content, KeySet};

impl KeySet {
    /// The keys, patterns and lookups of this set that removing all of `known`, a set of the same
    /// [`Rules`](crate::keys::Rules), would leave. Counts of rules stay out.
    #[must_use]
    pub fn beyond(&self, known: &KeySet) -> KeySet {
        let mut more = self.emptied();
        self.content(|content| match content {
            Content::Whole(template) if !known.is_whole(template) => {
                more.add_whole(template, None);
            }
            Content::Key(template, key) if !known.is_whole(template) && !known.has_key(key) => {
                more.add_key(template, key);
            }
            Content::Pattern(template, pattern)
                if !known.is_whole(template) && !known.has_pattern(pattern) =>
            {
                more.add_pattern(template, pattern);
            }
            Content::Pending(template, bytes)
                if !known.is_whole(template) && !known.pending.contains(template, bytes) =>
            {
                more.add_pending(template, bytes);
            }
            _ => {}
        });
        more.merge_before(&known.before);
        more.merge_before(&self.before);
        more
    }
}
