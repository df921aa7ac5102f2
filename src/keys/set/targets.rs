//! The part of a key set that goes to one target.
//!
//! Two rules may give one key, or one pattern, and go to different targets. Each then has it: a
//! scope of the set are the rules that go to the same targets.

use super::{Content, KeySet};
use crate::config::TargetId;
use crate::keys::label::{RuleId, TemplateId, TemplateInfo};

impl KeySet {
    /// The part that goes to a target; all of it where every rule goes to the same targets.
    #[must_use]
    pub fn of_target(&self, target: TargetId) -> KeySet {
        let goes = |template: TemplateId| self.info(template).targets.has(target);
        if self.target == Some(target) || self.templates.scopes().len() < 2 {
            return self.clone();
        }
        let mut part = KeySet { target: Some(target), ..self.emptied() };
        self.content(|content| match content {
            Content::Whole(template)
            | Content::Key(template, _)
            | Content::Pattern(template, _)
            | Content::Item(template, _)
            | Content::Pending(template, _)
                if !goes(template) => {}
            content => part.put(content),
        });
        part.weigh();
        part
    }

    /// Whether keys of a rule go to a target.
    #[must_use]
    pub fn goes(&self, rule: RuleId, target: TargetId) -> bool {
        let mut templates = self.templates.iter();
        templates.any(|template| template.rule == rule && template.targets.has(target))
    }

    /// Whether keys of all rules go to a target.
    #[must_use]
    pub fn all_go(&self, target: TargetId) -> bool {
        self.templates.iter().all(|template| template.targets.has(target))
    }

    /// Within a scope the same key is there once.
    pub(super) fn scope(&self, template: TemplateId) -> u16 {
        match self.target {
            Some(_) => 0,
            None => self.info(template).targets.number(),
        }
    }

    /// Gives all scopes that the set may have.
    pub(super) fn scopes(&self) -> &[u16] {
        match self.target {
            Some(_) => &[0],
            None => self.templates.scopes(),
        }
    }

    fn info(&self, template: TemplateId) -> &TemplateInfo {
        &self.templates[usize::from(template.0)]
    }
}
