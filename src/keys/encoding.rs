//! Numbers, texts and values one behind another, as they wait in a set or in an answer.
//!
//! Nothing of it leaves the process. What is taken must have been pushed: behind the end there are
//! only zeros, NULLs and empty texts.

use super::known::Known;
use super::label::WidenReason;

/// A value is a number, behind which its bytes follow: NULL is this one,
const NULL: u64 = 0;
/// what is unknown this one plus the reason,
const UNKNOWN: u64 = 1;
/// and bytes this one plus how many they are.
const BYTES: u64 = UNKNOWN + WidenReason::ALL.len() as u64;

/// Seven bits a byte, the lowest first; all but the last have the eighth bit.
#[inline]
pub(crate) fn push_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7F).expect("seven bits") | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).expect("seven bits"));
}

pub(crate) fn take_number(rest: &mut &[u8]) -> u64 {
    let (mut number, mut shift) = (0, 0);
    while let Some(byte) = rest.split_off_first() {
        number |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            break;
        }
        shift += 7;
    }
    number
}

/// Bytes, behind their number.
pub(crate) fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    push_number(out, text.len() as u64);
    out.extend_from_slice(text);
}

pub(crate) fn take_text<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let length = take_number(rest);
    take_bytes(rest, length)
}

#[inline]
pub(super) fn push_value(out: &mut Vec<u8>, value: Known<'_>) {
    match value {
        Known::Null => push_number(out, NULL),
        Known::Unknown(reason) => push_number(out, UNKNOWN + reason as u64),
        Known::Bytes(bytes) => {
            push_number(out, BYTES + bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
    }
}

pub(super) fn take_value<'a>(rest: &mut &'a [u8]) -> Known<'a> {
    match take_number(rest) {
        NULL => Known::Null,
        bytes @ BYTES.. => Known::Bytes(take_bytes(rest, bytes - BYTES)),
        unknown => Known::Unknown(reason(unknown - UNKNOWN)),
    }
}

/// Values, behind their number.
pub(super) fn push_row<'a>(out: &mut Vec<u8>, values: impl ExactSizeIterator<Item = Known<'a>>) {
    push_number(out, values.len() as u64);
    values.for_each(|value| push_value(out, value));
}

/// The values of a row, still encoded.
pub(super) fn take_row<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let count = take_number(rest);
    take_values(rest, usize::try_from(count).unwrap_or_default())
}

/// So many values, still encoded.
pub(super) fn take_values<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let all = *rest;
    (0..count).for_each(|_| _ = take_value(rest));
    &all[..all.len() - rest.len()]
}

/// The reason of this number.
pub(super) fn reason(number: u64) -> WidenReason {
    let at = usize::try_from(number).unwrap_or(usize::MAX);
    WidenReason::ALL.get(at).copied().unwrap_or(WidenReason::LookupFailed)
}

fn take_bytes<'a>(rest: &mut &'a [u8], length: u64) -> &'a [u8] {
    usize::try_from(length).ok().and_then(|length| rest.split_off(..length)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{Known, WidenReason};
    use super::{push_number, push_row, push_text, push_value};
    use super::{take_number, take_row, take_text, take_value};

    #[test]
    fn what_is_pushed_is_taken() {
        let long = vec![b'x'; 300];
        let texts = [&b""[..], b"a", &long[..112], &long[..113], &long];
        let mut values = vec![Known::Null];
        values.extend(WidenReason::ALL.map(Known::Unknown));
        values.extend(texts.map(Known::Bytes));
        let numbers = [0, 1, 0x7F, 0x80, 0x3FFF, 0x4000, u64::from(u32::MAX), u64::MAX];
        let mut out = Vec::new();
        numbers.iter().for_each(|number| push_number(&mut out, *number));
        texts.iter().for_each(|text| push_text(&mut out, text));
        values.iter().for_each(|value| push_value(&mut out, *value));
        push_row(&mut out, values.iter().copied());
        push_row(&mut out, [].into_iter());
        let mut rest = &*out;
        assert_eq!(numbers.map(|_| take_number(&mut rest)), numbers);
        assert_eq!(texts.map(|_| take_text(&mut rest)), texts);
        values.iter().for_each(|value| assert_eq!(take_value(&mut rest), *value));
        let mut row = take_row(&mut rest);
        values.iter().for_each(|value| assert_eq!(take_value(&mut row), *value));
        assert!(row.is_empty() && take_row(&mut rest).is_empty() && rest.is_empty());
        assert_eq!((take_value(&mut rest), take_text(&mut rest)), (Known::Null, &b""[..]));
    }
}
