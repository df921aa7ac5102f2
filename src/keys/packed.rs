//! A key set as one short run of bytes, for the many that only wait.
//!
//! A [`KeySet`] has an index and room to grow: some kilobytes, although a subtransaction often adds
//! a key or two. A transaction may have a million subtransactions.

use super::encoding::{push_number, push_text, reason, take_number, take_text};
use super::label::{LookupId, RuleId, TemplateId};
use super::set::{Content, KeySet};

/// A key set that nothing is added to.
#[derive(Clone, Debug, Default)]
pub(super) struct Packed(Box<[u8]>);

const KEY: u8 = 0;
const PATTERN: u8 = 1;
const WHOLE: u8 = 2;
const MATCHES: u8 = 3;
const PENDING: u8 = 4;
const BEFORE: u8 = 5;
const LOST: u8 = 6;
const ITEM: u8 = 7;
/// This one and those behind it: one for each reason.
const WIDENED: u8 = 8;

impl Packed {
    /// Packs the content of `keys`.
    pub(super) fn new(keys: &KeySet) -> Packed {
        let mut out = Vec::new();
        keys.content(|content| match content {
            Content::Key(template, bytes) => put(&mut out, KEY, template.0, bytes),
            Content::Pattern(template, pattern) => {
                put(&mut out, PATTERN, template.0, pattern.as_bytes());
            }
            Content::Item(template, item) => put(&mut out, ITEM, template.0, item),
            Content::Pending(template, bytes) => put(&mut out, PENDING, template.0, bytes),
            Content::Before(lookup, row) => put(&mut out, BEFORE, lookup.0, row),
            Content::Lost(lookup, why) => put_count(&mut out, LOST, lookup.0, why as u64),
            Content::Whole(template) => {
                out.push(WHOLE);
                push_number(&mut out, template.0.into());
            }
            Content::Matches(rule, count) => put_count(&mut out, MATCHES, rule.0, count),
            Content::Widened(rule, why, count) => {
                put_count(&mut out, WIDENED + why as u8, rule.0, count);
            }
        });
        Packed(out.into())
    }

    /// The memory that it holds, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Adds everything to `keys`, under the limits of that set.
    pub(super) fn add_to(&self, keys: &mut KeySet) {
        let mut rest = &*self.0;
        while let Some(&kind) = rest.split_off_first() {
            let owner = take_number(&mut rest);
            let id = u16::try_from(owner).expect("ids have 16 bits");
            match kind {
                KEY => keys.add_key(TemplateId(id), take_text(&mut rest)),
                PATTERN => keys.add_pattern(TemplateId(id), take_text(&mut rest)),
                ITEM => keys.add_item(TemplateId(id), take_text(&mut rest)),
                PENDING => keys.add_pending(TemplateId(id), take_text(&mut rest)),
                BEFORE => keys.add_before(LookupId(id), take_text(&mut rest)),
                LOST => keys.lose_before(LookupId(id), reason(take_number(&mut rest))),
                WHOLE => keys.add_whole(TemplateId(id), None),
                MATCHES => keys.count_matches(RuleId(id), take_number(&mut rest)),
                widened => {
                    let why = reason((widened - WIDENED).into());
                    keys.count_widenings(RuleId(id), why, take_number(&mut rest));
                }
            }
        }
    }
}

fn put(out: &mut Vec<u8>, kind: u8, owner: u16, text: &[u8]) {
    out.push(kind);
    push_number(out, owner.into());
    push_text(out, text);
}

fn put_count(out: &mut Vec<u8>, kind: u8, owner: u16, count: u64) {
    out.push(kind);
    push_number(out, owner.into());
    push_number(out, count);
}
