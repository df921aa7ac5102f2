//! The part of one key set that goes beyond another.

use super::{Content, KeySet};

impl KeySet {
    /// The keys, patterns and lookups of this set that removing all of `known`, a set of the same
    /// [`Rules`](crate::keys::Rules), would leave. Counts of rules stay out.
    #[must_use]
    pub fn beyond(&self, known: &KeySet) -> KeySet {
        let mut more = self.emptied();
        more.before = known.before.clone();
        more.weigh();
        let is_whole = |template| known.is_whole(template);
        self.content(|content| {
            let is_known = match content {
                Content::Whole(template) => is_whole(template),
                Content::Key(template, key) => is_whole(template) || known.has_key(template, key),
                Content::Pattern(template, pattern) => {
                    is_whole(template) || known.has_pattern(template, pattern.as_bytes())
                }
                Content::Pending(template, bytes) => {
                    is_whole(template) || known.pending.owner(template.0, bytes).is_some()
                }
                Content::Item(template, item) => {
                    is_whole(template) || known.has_item(template, item)
                }
                Content::Before(..) | Content::Lost(..) => false,
                Content::Matches(..) | Content::Widened(..) => true,
            };
            if !is_known {
                more.put(content);
            }
        });
        more
    }
}
