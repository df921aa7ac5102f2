//! A key set as one short run of bytes, for the many that only wait.
//!
//! A [`KeySet`] has an index and room to grow: some kilobytes, although a subtransaction often adds
//! a key or two. A transaction may have a million subtransactions.

use super::label::{RuleId, TemplateId, WidenReason};
use super::lookup::LookupId;
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
/// This one and those behind it: one for each reason.
const WIDENED: u8 = 7;

impl Packed {
    /// What is in `keys`.
    pub(super) fn new(keys: &KeySet) -> Packed {
        let mut out = Vec::new();
        keys.content(|content| match content {
            Content::Key(template, bytes) => put(&mut out, KEY, template.0, bytes),
            Content::Pattern(template, bytes) => put(&mut out, PATTERN, template.0, bytes),
            Content::Pending(template, bytes) => put(&mut out, PENDING, template.0, bytes),
            Content::Before(lookup, row) => put(&mut out, BEFORE, lookup.0, row),
            Content::Lost(lookup, why) => put(&mut out, LOST, lookup.0, &[why as u8]),
            Content::Whole(template) => {
                out.push(WHOLE);
                put_number(&mut out, template.0.into());
            }
            Content::Matches(rule, count) => {
                out.push(MATCHES);
                put_number(&mut out, rule.0.into());
                put_number(&mut out, count);
            }
            Content::Widened(rule, reason, count) => {
                out.push(WIDENED + reason as u8);
                put_number(&mut out, rule.0.into());
                put_number(&mut out, count);
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
        while let Some((&kind, after)) = rest.split_first() {
            rest = after;
            let owner = number(&mut rest);
            let id = u16::try_from(owner).expect("ids have 16 bits");
            match kind {
                KEY => keys.add_key(TemplateId(id), text(&mut rest)),
                PATTERN => keys.add_pattern(TemplateId(id), text(&mut rest)),
                PENDING => keys.add_pending(TemplateId(id), text(&mut rest)),
                BEFORE => keys.add_before(LookupId(id), text(&mut rest)),
                LOST => {
                    let why = text(&mut rest).first().map_or(0, |why| usize::from(*why));
                    keys.lose_before(LookupId(id), WidenReason::ALL[why]);
                }
                WHOLE => keys.add_whole(TemplateId(id), None),
                MATCHES => keys.count_matches(RuleId(id), number(&mut rest)),
                widened => {
                    let reason = WidenReason::ALL[usize::from(widened - WIDENED)];
                    keys.count_widenings(RuleId(id), reason, number(&mut rest));
                }
            }
        }
    }
}

fn put(out: &mut Vec<u8>, kind: u8, owner: u16, bytes: &[u8]) {
    out.push(kind);
    put_number(out, owner.into());
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Seven bits a byte, the lowest first; all but the last have the eighth bit.
fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7F).expect("seven bits") | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).expect("seven bits"));
}

fn number(rest: &mut &[u8]) -> u64 {
    let (mut number, mut shift) = (0, 0);
    while let Some((&byte, after)) = rest.split_first() {
        *rest = after;
        number |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            break;
        }
        shift += 7;
    }
    number
}

fn text<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let length = usize::try_from(number(rest)).expect("it was a length");
    let (text, after) = rest.split_at(length);
    *rest = after;
    text
}
