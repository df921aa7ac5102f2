//! `[audit]`.

use super::Audit;
use super::reader::{Reader, Section};

/// `max_bytes` unless given: some hundred thousand transactions.
const MAX_BYTES: u64 = 64 << 20;

/// The least that can be given: one line may take half of it.
const MAX_BYTES_LEAST: u64 = 1 << 20;

/// `keep` unless given.
const KEEP: u32 = 5;

/// The most that can be given: each rotation renames them all.
const KEEP_MOST: u32 = 1_000;

/// Reads the section.
pub(super) fn read(reader: &mut Reader<'_>, root: &mut Section<'_, '_>) -> Audit {
    let mut section = reader.section(root, "audit");
    let file = reader.filled_text(&mut section, "file");
    let file = file.map(|file| reader.beside(&file.value));
    let max_bytes = reader.limit(&mut section, "max_bytes", (MAX_BYTES_LEAST, MAX_BYTES));
    let at = section.take("keep").map(|value| value.span().start);
    let at = at.map(|start| reader.location(start, &section.key("keep")));
    let mut keep = reader.count_or(&mut section, "keep", KEEP);
    if let Some(at) = at.filter(|_| keep > KEEP_MOST) {
        let message = format!("`{keep}` is not a number from 0 to {KEEP_MOST}");
        reader.problem(at, message, Some("leave it out for 5"));
        keep = KEEP;
    }
    reader.finish(&section);
    Audit { file, max_bytes, keep: usize::try_from(keep).unwrap_or(usize::MAX) }
}
