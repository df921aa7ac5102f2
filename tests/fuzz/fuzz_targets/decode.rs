//! One payload, any bytes: decoding never panics, what decodes encodes back to the same message,
//! and every tuple can be walked. `make fuzz` runs it, with the golden messages as first corpus.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use walsweep::decode::{Message, Tuple, decode, decode_in_block, encode, encode_in_block};

fuzz_target!(|payload: &[u8]| {
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
