//! One payload, any bytes: decoding never panics, what decodes encodes back to the same message,
//! every tuple can be walked, and in pieces it is the same message, or it without what is large.
//! `make fuzz` runs it, with the golden messages as first corpus.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use walsweep::decode::{
    Condenser, Error, Limits, Message, Tuple, decode, decode_in_block, encode, encode_in_block,
};

/// Small enough that an input of a few hundred bytes meets each of them.
const LIMITS: Limits =
    Limits { value: 16, values: 64, small_value: 2, content: 16, name: 8, other: 64 };

fuzz_target!(|payload: &[u8]| {
    for in_block in [false, true] {
        in_pieces_it_is_the_same(payload, in_block);
    }
    if let Ok(message) = decode(Bytes::copy_from_slice(payload)) {
        tuples(&message).for_each(|tuple| assert_eq!(tuple.values().count(), tuple.column_count()));
        assert_eq!(decode(encode(&message)), Ok(message));
    }
    if let Ok((xid, message)) = decode_in_block(Bytes::copy_from_slice(payload)) {
        tuples(&message).for_each(|tuple| assert_eq!(tuple.values().count(), tuple.column_count()));
        let encoded = encode_in_block(xid.unwrap_or_default(), &message);
        assert_eq!(decode_in_block(encoded), Ok((xid, message)));
    }
});

/// The tuples of a message, old before new.
fn tuples(message: &Message) -> impl Iterator<Item = &Tuple> {
    let (old, new) = match message {
        Message::Insert(insert) => (None, Some(&insert.new)),
        Message::Update(update) => (update.old.as_ref(), Some(&update.new)),
        Message::Delete(delete) => (Some(&delete.old), None),
        _ => (None, None),
    };
    old.map(|old| &old.tuple).into_iter().chain(new)
}

/// The first byte of the payload says how long the pieces are.
fn in_pieces_it_is_the_same(payload: &[u8], in_block: bool) {
    let condensed = |limits: Limits| {
        let mut condenser = Condenser::with_limits(in_block, limits);
        let size = usize::from(payload.first().copied().unwrap_or_default() % 16) + 1;
        payload.chunks(size).for_each(|piece| condenser.push(piece));
        condenser.finish()
    };
    let whole = if in_block {
        decode_in_block(Bytes::copy_from_slice(payload))
    } else {
        decode(Bytes::copy_from_slice(payload)).map(|message| (None, message))
    };
    let all = condensed(Limits::default());
    assert_eq!(all.is_err(), whole.is_err());
    if let (Ok(all), Ok(whole)) = (all, &whole) {
        assert_eq!(all, *whole);
    }
    match (condensed(LIMITS), &whole) {
        (Ok((xid, message)), Ok((expected, _))) => {
            assert_eq!(xid, *expected);
            tuples(&message)
                .for_each(|tuple| assert_eq!(tuple.values().count(), tuple.column_count()));
        }
        (Err(Error::TooLong { .. }), _) | (Err(_), Err(_)) => {}
        // A name that lost its end may have lost what made it none.
        (Ok((_, Message::Logical(_) | Message::Origin(_))), Err(_)) => {}
        (condensed, whole) => panic!("{condensed:?} of {whole:?}"),
    }
}
