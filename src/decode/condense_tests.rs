//! A payload in pieces against the same payload whole.

#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::{any_content, any_message, golden};
use super::{
    Condenser, Delete, Error, Insert, Limits, LogicalMessage, Message, OldTuple, Origin, Tuple,
    Update, Value, decode, decode_in_block, encode, encode_in_block,
};

/// Small enough that messages of these tests meet each of them.
const SMALL: Limits =
    Limits { value: 10, values: 30, small_value: 2, content: 8, name: 6, other: 1 << 10 };

type Read = Result<(Option<u32>, Message), Error>;

/// Reads a payload in pieces that end at these places.
fn condense(payload: &[u8], cuts: &[Index], (in_block, limits): (bool, Limits)) -> Read {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
    ends.push(payload.len());
    ends.sort_unstable();
    let (mut condenser, mut start) = (Condenser::with_limits(in_block, limits), 0);
    for end in ends {
        condenser.push(&payload[start..end]);
        start = end;
    }
    condenser.finish()
}

fn whole(payload: &[u8], in_block: bool) -> Read {
    let payload = Bytes::copy_from_slice(payload);
    if in_block { decode_in_block(payload) } else { decode(payload).map(|one| (None, one)) }
}

/// Gives the part of a message that is kept, by the words of [`Limits`].
fn without_large(message: Message, limits: &Limits) -> Message {
    let mut room = (limits.values, limits.values);
    let mut kept = |tuple: &Tuple| {
        let values: Vec<Value<'_>> = tuple.values().collect();
        let kept = values.into_iter().map(|value| {
            let (Value::Text(bytes) | Value::Binary(bytes)) = value else { return value };
            if bytes.len() <= limits.value.min(room.0) {
                room.0 -= bytes.len();
                value
            } else if bytes.len() <= limits.small_value.min(room.1) {
                room.1 -= bytes.len();
                value
            } else {
                Value::LeftOut
            }
        });
        Tuple::from_values(&kept.collect::<Vec<_>>())
    };
    let name = |name: String| {
        let end = (0..=limits.name.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
        name[..end.unwrap()].to_owned()
    };
    match message {
        Message::Insert(Insert { relation_id, new }) => {
            Message::Insert(Insert { relation_id, new: kept(&new) })
        }
        Message::Update(Update { relation_id, old, new }) => {
            let old = old.map(|old| OldTuple { tuple: kept(&old.tuple), ..old });
            Message::Update(Update { relation_id, old, new: kept(&new) })
        }
        Message::Delete(Delete { relation_id, old }) => {
            let old = OldTuple { tuple: kept(&old.tuple), ..old };
            Message::Delete(Delete { relation_id, old })
        }
        Message::Logical(LogicalMessage { transactional, lsn, prefix, content }) => {
            let content = content.filter(|content| content.len() <= limits.content);
            let prefix = name(prefix);
            Message::Logical(LogicalMessage { transactional, lsn, prefix, content })
        }
        Message::Origin(Origin { commit_lsn, name: long }) => {
            Message::Origin(Origin { commit_lsn, name: name(long) })
        }
        other => other,
    }
}

proptest! {
    #[test]
    fn what_is_small_is_the_same_in_pieces(
        message in any_message(),
        content in any_content(),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let read = condense(&encode(&message), &cuts, (false, Limits::default()));
        prop_assert_eq!(read, Ok((None, message)));
        let payload = encode_in_block(7, &content);
        let read = condense(&payload, &cuts, (true, Limits::default()));
        prop_assert_eq!(read, Ok((Some(7), content)));
    }

    #[test]
    fn what_is_large_is_left_out_and_nothing_else(
        content in any_content(),
        in_block in any::<bool>(),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let xid = in_block.then_some(7);
        let payload = if in_block { encode_in_block(7, &content) } else { encode(&content) };
        let read = condense(&payload, &cuts, (in_block, SMALL));
        prop_assert_eq!(read, Ok((xid, without_large(content, &SMALL))));
    }

    #[test]
    fn what_is_cut_or_goes_on_is_an_error_in_pieces_too(
        content in any_content(),
        end in any::<Index>(),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        for (payload, in_block) in [(encode(&content), false), (encode_in_block(7, &content), true)]
        {
            let cut = &payload[..end.index(payload.len())];
            let extended = [&payload, [0].as_slice()].concat();
            for limits in [SMALL, Limits::default()] {
                prop_assert!(condense(cut, &cuts, (in_block, limits)).is_err());
                prop_assert!(condense(&extended, &cuts, (in_block, limits)).is_err());
            }
        }
    }

    #[test]
    fn damaged_bytes_are_read_in_pieces_as_they_are_whole(
        message in any_message(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
        cuts in vec(any::<Index>(), 0..12),
        in_block in any::<bool>(),
    ) {
        let mut payload = encode(&message).to_vec();
        for (at, byte) in damage {
            *at.get_mut(&mut payload) = byte;
        }
        let (read, whole) =
            (condense(&payload, &cuts, (in_block, Limits::default())), whole(&payload, in_block));
        prop_assert_eq!(read.is_err(), whole.is_err());
        prop_assert!(read.is_err() || read == whole);
        drop(condense(&payload, &cuts, (in_block, SMALL)));
    }
}

#[test]
fn golden_bytes_are_the_same_in_pieces() {
    for (path, payloads) in golden() {
        let mut in_block = false;
        for payload in payloads {
            let read = whole(&payload, in_block);
            let mut condenser = Condenser::new(in_block);
            payload.chunks(1).for_each(|byte| condenser.push(byte));
            assert_eq!(condenser.finish(), read, "{}", path.display());
            match read.unwrap().1 {
                Message::StreamStart(_) => in_block = true,
                Message::StreamStop => in_block = false,
                _ => {}
            }
        }
    }
}

#[test]
fn the_mark_of_what_is_left_out_is_not_believed_from_a_server() {
    let new = Tuple::from_values(&[Value::Text(b"a"), Value::LeftOut]);
    let payload = encode(&Message::Insert(Insert { relation_id: 1, new }));
    let told = "decode `Insert.new`: column 2 must be marked `n`, `u`, `t` or `b`";
    assert_eq!(decode(payload.clone()).unwrap_err().to_string(), told);
    let mut condenser = Condenser::new(false);
    condenser.push(&payload);
    assert_eq!(condenser.finish().unwrap_err().to_string(), told);
}

#[test]
fn memory_does_not_grow_with_what_is_pushed() {
    let pieces = |start: &[u8]| {
        let mut condenser = Condenser::new(false);
        condenser.push(start);
        let megabyte = vec![b'x'; 1 << 20];
        (0..200).for_each(|_| condenser.push(&megabyte));
        condenser
    };
    let limits = Limits::default();
    for (start, kept) in [
        // A value, a prefix, content, a relation, and something that is nothing.
        (b"I\0\0\0\x01N\0\x01t\x40\0\0\0".as_slice(), limits.value),
        (b"M\0\0\0\0\0\0\0\0\0", limits.name),
        (b"M\0\0\0\0\0\0\0\0\0p\0\x40\0\0\0", 0),
        (b"R", limits.other),
        (b"I\0\0\0\x01?", 0),
    ] {
        let condenser = pieces(start);
        assert!(condenser.kept_bytes() <= kept + start.len() + 1, "{}", condenser.kept_bytes());
        assert!(condenser.finish().is_err());
    }
    let told = pieces(b"R").finish().unwrap_err().to_string();
    assert_eq!(told, "decode message `R`: more than 4 194 304 bytes");
}
