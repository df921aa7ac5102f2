//! Templates and row versions to keys.

use super::before::{self, ByParams};
use super::compile::{Rule, RuleTemplate};
use super::condition::{Fault, Sources, Undecided};
use super::encoding::push_value;
use super::filter::{Filter, NotText};
use super::item;
use super::known::{Known, Versions};
use super::label::{RuleId, TemplateId, WidenReason};
use super::lookup::{Answers, LookupTemplate, Rows, Told, push_params};
use super::plan::{Plan, PlannedLookup, PlannedRule, PlannedTemplate, Slot};
use super::set::KeySet;
use super::template::{Glob, Kind, Piece, Template, Version};
use crate::config::Operations;
use crate::gather::Row;

/// A longer key is not written out, its template collapses (I6): a value may have 1 GB, a template
/// may hold it several times, and no application names its cache entries with a megabyte.
const KEY_BYTES_MAX: usize = 1 << 20;

/// Buffers that are used again for each row.
#[derive(Debug, Default)]
pub(super) struct Renderer {
    versions: Versions<'static>,
    out: Glob,
    /// Where the field begins in what is written, if it is one of a hash.
    split: Option<usize>,
    filtering: Filtering,
    /// The first failure of each rule's `when`, until somebody asks for them.
    faults: Vec<(RuleId, Fault)>,
    /// An entry of what waits for rows.
    entry: Vec<u8>,
}

/// Whether a rule looks at a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The operation is none of the rule's.
    OtherOperation,
    /// No column of `changed` differs.
    Unchanged,
    /// `when` is false.
    ConditionFalse,
    /// It does.
    Counts,
    /// It does, because `when` cannot be decided.
    Undecided(Undecided),
}

/// The value between two filters.
#[derive(Debug, Default)]
struct Filtering {
    current: Vec<u8>,
    next: Vec<u8>,
}

/// A template for one row version.
struct Source<'a> {
    key: &'a RuleTemplate,
    planned: &'a PlannedTemplate,
    versions: &'a Versions<'a>,
    /// The version of placeholders that are not pinned.
    version: Version,
}

/// The outcome of rendering a template.
enum Rendered {
    /// The buffer holds a key.
    Key,
    /// The buffer holds a pattern; the reason, if a placeholder was widened.
    Pattern(Option<WidenReason>),
    /// Everything the template could give.
    Whole(WidenReason),
    /// A value is NULL.
    Nothing,
}

impl Renderer {
    /// Adds what the rules of a plan make of a row.
    pub(super) fn add(&mut self, row: &Row, plan: &Plan, rules: &[Rule], keys: &mut KeySet) {
        let mut versions = std::mem::take(&mut self.versions).recycle();
        versions.read(row, &plan.slots);
        for planned in &plan.rules {
            let rule = &rules[usize::from(planned.id.0)];
            let verdict = verdict(planned, rule, (row, &versions), plan);
            if let Verdict::Undecided(why) = verdict {
                self.count_doubt(planned.id, why, keys);
            }
            if matches!(verdict, Verdict::Counts | Verdict::Undecided(_)) {
                keys.count_match(planned.id);
                for (planned, key) in planned.templates.iter().zip(&rule.templates) {
                    if !keys.is_whole(planned.id) {
                        self.add_template(key, planned, &versions, keys);
                    }
                }
            }
        }
        for planned in &plan.lookups {
            self.note_before((planned, &plan.slots), (row, &versions), keys);
        }
        self.versions = versions.recycle();
        self.filtering.shrink();
        self.entry.shrink_to(KEY_BYTES_MAX);
    }

    /// Whether the one rule of a plan looks at a row.
    pub(super) fn verdict(row: &Row, plan: &Plan, rules: &[Rule]) -> Option<Verdict> {
        let mut versions = Versions::default();
        versions.read(row, &plan.slots);
        let planned = plan.rules.first()?;
        Some(verdict(planned, &rules[usize::from(planned.id.0)], (row, &versions), plan))
    }

    /// Places in `changed` of columns that count as different only because an UPDATE does not tell
    /// whether they are, for the one rule of a plan; none if one of them differs for sure.
    pub(super) fn supposed(row: &Row, plan: &Plan) -> Vec<usize> {
        let Some(planned) = plan.rules.first() else { return Vec::new() };
        if !matches!(row, Row::Update { .. }) {
            return Vec::new();
        }
        let mut versions = Versions::default();
        versions.read(row, &plan.slots);
        let difference = |slot: &usize| versions.difference(*slot, &plan.slots);
        let found: Vec<Option<bool>> = planned.changed.iter().map(difference).collect();
        if found.contains(&Some(true)) {
            return Vec::new();
        }
        let unknown = found.iter().enumerate().filter(|(_, differs)| differs.is_none());
        unknown.map(|(place, _)| place).collect()
    }

    /// The failures of conditions since the last call, at most one for each rule.
    pub(super) fn take_faults(&mut self) -> Vec<(RuleId, Fault)> {
        std::mem::take(&mut self.faults)
    }

    fn count_doubt(&mut self, rule: RuleId, why: Undecided, keys: &mut KeySet) {
        match why {
            Undecided::Unknown => keys.count_doubt(rule, WidenReason::ConditionUnknown),
            Undecided::Fault(fault) => {
                keys.count_doubt(rule, WidenReason::ConditionFailed);
                if self.faults.iter().all(|(known, _)| *known != rule) {
                    self.faults.push((rule, fault));
                }
            }
        }
    }

    fn add_template(
        &mut self,
        key: &RuleTemplate,
        planned: &PlannedTemplate,
        versions: &Versions<'_>,
        keys: &mut KeySet,
    ) {
        let needs = planned.needs;
        let mut source = Source { key, planned, versions, version: Version::New };
        if planned.sources.is_empty() && planned.lookups.is_empty() {
            keys.add_whole(planned.id, None);
        } else if !versions.has_old && !versions.has_new {
            keys.add_whole(planned.id, Some(WidenReason::Truncate));
        } else if (needs.old && !versions.has_old) || (needs.new && !versions.has_new) {
            // No version has the value: the template asks for no key.
        } else if !needs.each {
            self.add_version(&source, keys);
        } else {
            if versions.has_new {
                self.add_version(&source, keys);
            }
            source.version = Version::Old;
            if versions.has_old && !(versions.has_new && source.is_same_for_both()) {
                self.add_version(&source, keys);
            }
        }
    }

    fn add_version(&mut self, source: &Source<'_>, keys: &mut KeySet) {
        let id = source.planned.id;
        match &source.key.lookup {
            None => self.add_values(id, &source.key.template, source.values(), keys),
            Some(template) if !source.has_null() => self.add_pending(source, template, keys),
            Some(_) => {}
        }
    }

    /// Adds what waits for rows; where the change does not even tell which, what it gives without.
    fn add_pending(&mut self, source: &Source<'_>, template: &LookupTemplate, keys: &mut KeySet) {
        let (id, mut entry) = (source.planned.id, std::mem::take(&mut self.entry));
        entry.clear();
        let mut waits = false;
        for params in &source.planned.lookups {
            waits |= push_params(&mut entry, params.iter().map(|slot| source.each()[*slot]));
        }
        source.values().for_each(|value| push_value(&mut entry, value));
        if waits {
            keys.add_pending(id, &entry);
        } else {
            let (answers, missing) = (&Answers::default(), WidenReason::LookupFailed);
            let rows = Rows { answers, missing, before: ByParams::default() };
            Told::read(template, &entry).each_choice(template, &rows, |values| {
                self.add_values(id, &template.template, values.iter().copied(), keys);
            });
        }
        self.entry = entry;
    }

    /// Notes what a lookup gave before this change of a row of its table, if that may be another
    /// answer than it gives now. What the stream does not tell of the row is unknown (I5): of its
    /// columns, so that they widen; of what its parameters are compared with, so that any answer of
    /// the lookup may have been another one.
    fn note_before(
        &mut self,
        (planned, slots): (&PlannedLookup, &[Slot]),
        (row, versions): (&Row, &Versions<'_>),
        keys: &mut KeySet,
    ) {
        let PlannedLookup { id, params, columns, is_exact } = planned;
        if keys.has_lost(*id) {
            return;
        }
        if matches!(row, Row::Truncate) {
            keys.lose_before(*id, WidenReason::Truncate);
        }
        let mut read = params.iter().chain(columns);
        let differs = |slot: &usize| versions.differs(*slot, slots);
        if !versions.has_old || versions.has_new && !read.any(differs) {
            return;
        }
        let unknown = params.iter().find_map(|slot| match versions.old[*slot] {
            Known::Unknown(why) => Some(why),
            Known::Null | Known::Bytes(_) => None,
        });
        let inexact = (!is_exact).then_some(WidenReason::LookupOldRow);
        if let Some(why) = unknown.or(inexact) {
            keys.lose_before(*id, why);
            return;
        }
        let old = |slot: &usize| versions.old[*slot];
        before::write(&mut self.entry, params.iter().map(old), columns.iter().map(old));
        keys.add_before(*id, &self.entry);
    }

    /// Adds what a template gives for these values of its placeholders.
    pub(super) fn add_values<'a>(
        &mut self,
        id: TemplateId,
        template: &Template,
        values: impl Iterator<Item = Known<'a>> + Clone,
        keys: &mut KeySet,
    ) {
        if keys.is_whole(id) {
            return;
        }
        match self.render(template, values) {
            Rendered::Key => keys.add_key(id, &self.out.bytes),
            Rendered::Pattern(reason) => {
                if let Some(reason) = reason {
                    keys.count_widened(id, reason);
                }
                match template.kind {
                    Kind::Key => keys.add_pattern(id, &self.out.bytes),
                    Kind::Item(kind) => {
                        keys.add_item(id, &item::write(kind, &self.out.bytes, self.split));
                    }
                }
            }
            Rendered::Whole(reason) => keys.add_whole(id, Some(reason)),
            Rendered::Nothing => {}
        }
    }

    fn render<'a>(
        &mut self,
        template: &Template,
        values: impl Iterator<Item = Known<'a>> + Clone,
    ) -> Rendered {
        let (mut known_count, mut reason) = (0, None);
        for (value, placeholder) in values.clone().zip(template.placeholders()) {
            match value {
                Known::Null if !placeholder.has_default() => return Rendered::Nothing,
                Known::Null | Known::Bytes(_) => known_count += 1,
                Known::Unknown(unknown) => {
                    reason.get_or_insert(unknown);
                }
            }
        }
        if let (0, Some(reason)) = (known_count, reason) {
            return Rendered::Whole(reason);
        }
        if !template.is_pattern && reason.is_none() && template.kind == Kind::Key {
            // That a filter lacks text shows only here; then start again as a pattern.
            if let Ok(rendered) = self.write_key(template, values.clone()) {
                return rendered;
            }
        }
        self.write_pattern(template, values, reason)
    }

    fn write_key<'a>(
        &mut self,
        template: &Template,
        mut values: impl Iterator<Item = Known<'a>>,
    ) -> Result<Rendered, NotText> {
        self.out.clear();
        for piece in &template.pieces {
            let part = match piece {
                Piece::Text { exact, .. } => exact.as_slice(),
                Piece::Glob(_) | Piece::Star | Piece::Split => &[],
                Piece::Placeholder(placeholder) => match values.next() {
                    Some(Known::Bytes(value)) => {
                        self.filtering.apply(Some(value), &placeholder.filters)?
                    }
                    _ => self.filtering.apply(None, &placeholder.filters)?,
                },
            };
            if self.out.bytes.len() + part.len() > KEY_BYTES_MAX {
                return Ok(Rendered::Whole(WidenReason::Limit));
            }
            self.out.push_raw(part);
        }
        Ok(Rendered::Key)
    }

    fn write_pattern<'a>(
        &mut self,
        template: &Template,
        mut values: impl Iterator<Item = Known<'a>>,
        mut reason: Option<WidenReason>,
    ) -> Rendered {
        self.out.clear();
        self.split = None;
        for piece in &template.pieces {
            match piece {
                Piece::Text { glob, .. } | Piece::Glob(glob) => self.out.push_raw(glob),
                Piece::Star => self.out.push_star(),
                Piece::Split => self.split = Some(self.out.split()),
                Piece::Placeholder(placeholder) => {
                    let filtered = match values.next() {
                        Some(Known::Bytes(value)) => {
                            self.filtering.apply(Some(value), &placeholder.filters)
                        }
                        Some(Known::Null) => self.filtering.apply(None, &placeholder.filters),
                        Some(Known::Unknown(_)) | None => {
                            self.out.push_star();
                            continue;
                        }
                    };
                    match filtered {
                        Ok(value) if self.out.bytes.len() + value.len() > KEY_BYTES_MAX => {
                            return Rendered::Whole(WidenReason::Limit);
                        }
                        Ok(value) => self.out.push_value(value),
                        Err(NotText) => {
                            reason.get_or_insert(WidenReason::NotText);
                            self.out.push_star();
                        }
                    }
                }
            }
        }
        Rendered::Pattern(reason)
    }
}

/// Whether a rule looks at this change. `when` is asked last: it costs the most.
fn verdict(
    planned: &PlannedRule,
    rule: &Rule,
    (row, versions): (&Row, &Versions<'_>),
    plan: &Plan,
) -> Verdict {
    let Operations { insert, update, delete, truncate } = planned.operations;
    let (looks, operation) = match row {
        Row::Insert { .. } => (insert, "insert"),
        Row::Update { .. } => (update, "update"),
        Row::Delete { .. } => (delete, "delete"),
        Row::Truncate => (truncate, "truncate"),
    };
    if !looks {
        return Verdict::OtherOperation;
    }
    let mut changed = planned.changed.iter();
    if matches!(row, Row::Update { .. })
        && !planned.changed.is_empty()
        && !changed.any(|slot| versions.differs(*slot, &plan.slots))
    {
        return Verdict::Unchanged;
    }
    let Some(when) = &rule.when else { return Verdict::Counts };
    match when.evaluate(&Sources { versions, operation, columns: &planned.when }) {
        Ok(true) => Verdict::Counts,
        Ok(false) => Verdict::ConditionFalse,
        Err(why) => Verdict::Undecided(why),
    }
}

impl<'a> Source<'a> {
    /// The value of each placeholder that is a column of the change.
    fn values(&self) -> impl Iterator<Item = Known<'a>> + Clone + use<'a> {
        let (versions, each) = (self.versions, self.version);
        self.planned.sources.iter().map(move |(version, slot)| {
            let version = if *version == Version::Each { each } else { *version };
            if version == Version::Old { versions.old[*slot] } else { versions.new[*slot] }
        })
    }

    /// Whether both versions of the row give the same.
    fn is_same_for_both(&self) -> bool {
        let mut each = self.planned.sources.iter().filter(|(version, _)| *version == Version::Each);
        let mut params = self.planned.lookups.iter().flatten();
        let is_same = |slot: &usize| self.versions.old[*slot] == self.versions.new[*slot];
        each.all(|(_, slot)| is_same(slot)) && params.all(is_same)
    }

    /// The row version that the template is rendered for.
    fn each(&self) -> &'a [Known<'a>] {
        if self.version == Version::Old { &self.versions.old } else { &self.versions.new }
    }

    /// Whether a value is NULL that must not be, so that no row could make a key of it.
    fn has_null(&self) -> bool {
        let mut values = self.values().zip(self.key.template.own_columns());
        values.any(|(value, placeholder)| value == Known::Null && !placeholder.has_default())
    }
}

impl Filtering {
    /// Applies the filters to a value, `None` being NULL. That gives nothing without a `default`.
    fn apply<'s>(
        &'s mut self,
        value: Option<&'s [u8]>,
        filters: &'s [Filter],
    ) -> Result<&'s [u8], NotText> {
        let (mut value, mut is_own) = (value, false);
        for filter in filters {
            match (filter, value) {
                (Filter::Default(text), None) => value = Some(text.as_bytes()),
                (Filter::Default(_), Some(_)) | (_, None) => {}
                (filter, Some(input)) => {
                    self.next.clear();
                    filter.apply(if is_own { &self.current } else { input }, &mut self.next)?;
                    std::mem::swap(&mut self.current, &mut self.next);
                    is_own = true;
                }
            }
        }
        Ok(if is_own { &self.current } else { value.unwrap_or_default() })
    }

    /// Gives back what an exceptionally long value needed.
    fn shrink(&mut self) {
        self.current.shrink_to(KEY_BYTES_MAX);
        self.next.shrink_to(KEY_BYTES_MAX);
    }
}
