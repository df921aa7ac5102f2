//! Real bytes (golden), arbitrary messages (properties), and the text of every kind of error.

#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::lsn::Lsn;

use super::{
    AbortedAt, Begin, Column, Commit, Delete, Error, Fault, Insert, LogicalMessage, Message,
    OldKind, OldTuple, Origin, Relation, ReplicaIdentity, StreamAbort, StreamCommit, StreamStart,
    Truncate, Tuple, Type, Update, Value, decode, decode_in_block, encode, encode_in_block,
};

/// Every `tests/golden/wal/*.hex`: its path and its payloads, each file one transaction. How they
/// were captured stands in `make.sql` beside them.
pub(crate) fn golden() -> Vec<(PathBuf, Vec<Bytes>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/wal");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "hex"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path, text.lines().map(from_hex).collect())
        })
        .collect();
    assert!(files.len() >= 20, "golden files are missing");
    files
}

fn from_hex(line: &str) -> Bytes {
    assert_eq!(line.len() % 2, 0, "a byte has two digits");
    let digits = |at| &line[at..at + 2];
    (0..line.len()).step_by(2).map(|at| u8::from_str_radix(digits(at), 16).unwrap()).collect()
}

fn values_text(tuple: &Tuple) -> String {
    let value_text = |value| match value {
        Value::Null => "NULL".to_owned(),
        Value::Unchanged => "unchanged".to_owned(),
        Value::Text(bytes) => match str::from_utf8(bytes).unwrap() {
            long if long.len() > 80 => format!("{:?} and so on, {} bytes", &long[..8], long.len()),
            text => format!("{text:?}"),
        },
        Value::Binary(bytes) => format!("{bytes:02x?}"),
        Value::LeftOut => "left out".to_owned(),
    };
    tuple.values().map(value_text).collect::<Vec<_>>().join(", ")
}

fn old_text(old: &OldTuple) -> String {
    format!("{:?} ({})", old.kind, values_text(&old.tuple))
}

/// A message with its values, which its `Debug` form leaves out.
fn message_text(message: &Message) -> String {
    match message {
        Message::Begin(Begin { final_lsn, commit_time, xid }) => {
            format!("begin xid={xid} final_lsn={final_lsn} commit_time={commit_time}")
        }
        Message::Commit(Commit { flags, commit_lsn, end_lsn, commit_time }) => format!(
            "commit flags={flags} commit_lsn={commit_lsn} end_lsn={end_lsn} \
             commit_time={commit_time}"
        ),
        Message::Origin(Origin { commit_lsn, name }) => {
            format!("origin {name:?} commit_lsn={commit_lsn}")
        }
        Message::Relation(relation) => {
            let Relation { id, namespace, name, replica_identity, columns } = &**relation;
            let mut text = format!("relation {id} {namespace:?}.{name:?} {replica_identity:?}");
            for Column { is_key, name, type_id, type_modifier } in columns {
                let key = if *is_key { " key" } else { "" };
                write!(text, "\n  {name:?}{key} type={type_id} modifier={type_modifier}").unwrap();
            }
            text
        }
        Message::Type(Type { id, namespace, name }) => format!("type {id} {namespace:?}.{name:?}"),
        Message::Insert(Insert { relation_id, new }) => {
            format!("insert {relation_id} new ({})", values_text(new))
        }
        Message::Update(Update { relation_id, old, new }) => {
            let old = old.as_ref().map_or("nothing".to_owned(), old_text);
            format!("update {relation_id} old {old} new ({})", values_text(new))
        }
        Message::Delete(Delete { relation_id, old }) => {
            format!("delete {relation_id} old {}", old_text(old))
        }
        Message::Truncate(Truncate { cascade, restart_identity, relation_ids }) => format!(
            "truncate {relation_ids:?} cascade={cascade} restart_identity={restart_identity}"
        ),
        Message::Logical(LogicalMessage { transactional, lsn, prefix, content }) => format!(
            "message {prefix:?} transactional={transactional} lsn={lsn} content={:?}",
            content.as_ref().expect("it is whole")
        ),
        Message::StreamStart(StreamStart { xid, first_segment }) => {
            format!("stream start xid={xid} first_segment={first_segment}")
        }
        Message::StreamStop => "stream stop".to_owned(),
        Message::StreamCommit(StreamCommit { xid, flags, commit_lsn, end_lsn, commit_time }) => {
            format!(
                "stream commit xid={xid} flags={flags} commit_lsn={commit_lsn} end_lsn={end_lsn} \
                 commit_time={commit_time}"
            )
        }
        Message::StreamAbort(StreamAbort { xid, subxid, at }) => {
            format!("stream abort xid={xid} subxid={subxid} at={at:?}")
        }
    }
}

/// The messages of a file in order, each with the xid that it has inside of a block.
pub(crate) fn decode_all(payloads: &[Bytes]) -> Vec<(Option<u32>, Message)> {
    let mut in_block = false;
    let decoded = payloads.iter().map(|payload| {
        let (xid, message) = if in_block {
            decode_in_block(payload.clone()).unwrap()
        } else {
            (None, decode(payload.clone()).unwrap())
        };
        in_block = match message {
            Message::StreamStart(_) => true,
            Message::StreamStop => false,
            _ => in_block,
        };
        (xid, message)
    });
    decoded.collect()
}

#[test]
fn golden_bytes_decode_to_their_golden_text_and_encode_back() {
    for (path, payloads) in golden() {
        let mut text = String::new();
        for ((xid, message), payload) in decode_all(&payloads).iter().zip(&payloads) {
            if let Some(xid) = xid {
                write!(text, "{xid}: ").unwrap();
            }
            text += &message_text(message);
            text.push('\n');
            let encoded = xid.map_or_else(|| encode(message), |xid| encode_in_block(xid, message));
            assert_eq!(encoded, payload, "{}", path.display());
            if xid.is_some() || *message == Message::StreamStop {
                check_truncated_and_extended(payload, |payload| {
                    decode_in_block(payload).map(|(_, message)| message)
                });
            } else {
                check_truncated_and_extended(payload, decode);
            }
        }
        let path = path.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, fs::read_to_string(&path).unwrap(), "{}", path.display());
    }
}

fn check_truncated_and_extended(payload: &Bytes, decode: impl Fn(Bytes) -> Result<Message, Error>) {
    for length in 0..payload.len() {
        let result = decode(payload.slice(..length));
        // Of the two forms of an abort the shorter is the beginning of the longer.
        let is_short_abort = payload[0] == b'A' && length == 9;
        assert_eq!(result.is_err(), !is_short_abort, "{length} of {} bytes", payload.len());
    }
    let extended = decode([&payload[..], &[0]].concat().into());
    let is_short_abort = payload[0] == b'A' && payload.len() == 9;
    match extended {
        Err(Error::Trailing { left: 1, .. }) => {}
        Err(Error::Field { field: "StreamAbort.abort_lsn", .. }) if is_short_abort => {}
        other => panic!("{other:?}"),
    }
}

fn any_text() -> impl Strategy<Value = String> {
    "[^\0]{0,12}"
}

pub(super) fn any_lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

#[derive(Clone, Debug)]
enum OwnedValue {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl OwnedValue {
    fn borrow(&self) -> Value<'_> {
        match self {
            OwnedValue::Null => Value::Null,
            OwnedValue::Unchanged => Value::Unchanged,
            OwnedValue::Text(bytes) => Value::Text(bytes),
            OwnedValue::Binary(bytes) => Value::Binary(bytes),
        }
    }
}

fn any_values() -> impl Strategy<Value = Vec<OwnedValue>> {
    let value = prop_oneof![
        Just(OwnedValue::Null),
        Just(OwnedValue::Unchanged),
        vec(any::<u8>(), 0..20).prop_map(OwnedValue::Text),
        vec(any::<u8>(), 0..20).prop_map(OwnedValue::Binary),
    ];
    vec(value, 0..8)
}

fn any_tuple() -> impl Strategy<Value = Tuple> {
    any_values().prop_map(|values| {
        Tuple::from_values(&values.iter().map(OwnedValue::borrow).collect::<Vec<_>>())
    })
}

fn any_old() -> impl Strategy<Value = OldTuple> {
    let kind = prop_oneof![Just(OldKind::Key), Just(OldKind::Full)];
    (kind, any_tuple()).prop_map(|(kind, tuple)| OldTuple { kind, tuple })
}

fn any_relation() -> impl Strategy<Value = Relation> {
    let replica_identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index),
    ];
    let column = (any::<bool>(), any_text(), any::<u32>(), any::<i32>()).prop_map(
        |(is_key, name, type_id, type_modifier)| Column { is_key, name, type_id, type_modifier },
    );
    let namespace = prop_oneof![Just("pg_catalog".to_owned()), "[^\0]{1,12}"];
    (any::<u32>(), namespace, any_text(), replica_identity, vec(column, 0..6)).prop_map(
        |(id, namespace, name, replica_identity, columns)| Relation {
            id,
            namespace,
            name,
            replica_identity,
            columns,
        },
    )
}

fn any_row_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any::<u32>(), any_tuple())
            .prop_map(|(relation_id, new)| Message::Insert(Insert { relation_id, new })),
        (any::<u32>(), proptest::option::of(any_old()), any_tuple())
            .prop_map(|(relation_id, old, new)| Message::Update(Update { relation_id, old, new })),
        (any::<u32>(), any_old())
            .prop_map(|(relation_id, old)| Message::Delete(Delete { relation_id, old })),
        (any::<bool>(), any::<bool>(), vec(any::<u32>(), 0..5)).prop_map(
            |(cascade, restart_identity, relation_ids)| {
                Message::Truncate(Truncate { cascade, restart_identity, relation_ids })
            }
        ),
    ]
}

/// Gives any message that may stand inside of a block, with an xid in front.
pub(super) fn any_content() -> impl Strategy<Value = Message> {
    prop_oneof![
        4 => any_row_message(),
        2 => any_relation().prop_map(|relation| Message::Relation(Arc::new(relation))),
        1 => (any::<u32>(), any_text(), any_text())
            .prop_map(|(id, namespace, name)| Message::Type(Type { id, namespace, name })),
        1 => (any::<bool>(), any_lsn(), any_text(), vec(any::<u8>(), 0..20)).prop_map(
            |(transactional, lsn, prefix, content)| {
                let content = Some(content.into());
                Message::Logical(LogicalMessage { transactional, lsn, prefix, content })
            }
        ),
    ]
}

pub(super) fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        8 => any_content(),
        1 => (any_lsn(), any::<i64>(), any::<u32>()).prop_map(|(final_lsn, commit_time, xid)| {
            Message::Begin(Begin { final_lsn, commit_time, xid })
        }),
        1 => (any::<u8>(), any_lsn(), any_lsn(), any::<i64>()).prop_map(
            |(flags, commit_lsn, end_lsn, commit_time)| {
                Message::Commit(Commit { flags, commit_lsn, end_lsn, commit_time })
            }
        ),
        1 => (any_lsn(), any_text())
            .prop_map(|(commit_lsn, name)| Message::Origin(Origin { commit_lsn, name })),
        1 => (any::<u32>(), any::<bool>()).prop_map(|(xid, first_segment)| {
            Message::StreamStart(StreamStart { xid, first_segment })
        }),
        1 => (any::<u32>(), any::<u8>(), any_lsn(), any_lsn(), any::<i64>()).prop_map(
            |(xid, flags, commit_lsn, end_lsn, commit_time)| {
                let commit = StreamCommit { xid, flags, commit_lsn, end_lsn, commit_time };
                Message::StreamCommit(commit)
            }
        ),
        1 => (any::<u32>(), any::<u32>(), proptest::option::of((any_lsn(), any::<i64>())))
            .prop_map(|(xid, subxid, at)| {
                let at = at.map(|(lsn, time)| AbortedAt { lsn, time });
                Message::StreamAbort(StreamAbort { xid, subxid, at })
            }),
    ]
}

proptest! {
    #[test]
    fn every_message_survives_the_round_trip(message in any_message()) {
        prop_assert_eq!(decode(encode(&message)), Ok(message));
    }

    #[test]
    fn every_message_of_a_block_survives_the_round_trip(
        xid in any::<u32>(),
        message in any_content(),
    ) {
        let payload = encode_in_block(xid, &message);
        prop_assert_eq!(decode_in_block(payload), Ok((Some(xid), message)));
    }

    #[test]
    fn a_payload_too_short_or_too_long_is_an_error(
        message in any_message(),
        content in any_content(),
    ) {
        check_truncated_and_extended(&encode(&message), decode);
        check_truncated_and_extended(&encode_in_block(7, &content), |payload| {
            decode_in_block(payload).map(|(_, message)| message)
        });
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        tag in proptest::sample::select(&b"BCORYIUDTMSEcA"[..]),
        mut bytes in vec(any::<u8>(), 0..200),
    ) {
        drop(decode(bytes.clone().into()));
        bytes.insert(0, tag);
        drop(decode_in_block(bytes.clone().into()));
        drop(decode(bytes.into()));
    }

    #[test]
    fn damaged_bytes_decode_to_what_they_encode_or_not_at_all(
        message in any_message(),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encode(&message).to_vec();
        for (at, byte) in damage {
            *at.get_mut(&mut bytes) = byte;
        }
        if let Ok(message) = decode(bytes.clone().into()) {
            prop_assert_eq!(encode(&message), bytes);
        }
    }

    #[test]
    fn a_tuple_gives_the_values_it_was_made_of(values in any_values()) {
        let values: Vec<_> = values.iter().map(OwnedValue::borrow).collect();
        let tuple = Tuple::from_values(&values);
        prop_assert_eq!(tuple.column_count(), values.len());
        prop_assert_eq!(tuple.values().len(), values.len());
        prop_assert!(tuple.values().eq(values.iter().copied()));
        for (index, value) in values.iter().enumerate() {
            prop_assert_eq!(tuple.value(index), Some(*value));
        }
        prop_assert_eq!(tuple.value(values.len()), None);
    }
}

fn check_error(payload: &[u8], text: &str) {
    let error = decode(Bytes::copy_from_slice(payload)).unwrap_err();
    assert_eq!(error.to_string(), text);
}

#[test]
fn errors_name_field_and_lengths() {
    check_error(b"", "decode `Message.tag`: needs 1 byte, 0 left");
    check_error(b"X", "decode message: unknown tag `X`");
    check_error(b"S\0\0\0\x09\x02", "decode `StreamStart.first_segment`: must be 0 or 1");
    // Only the end of a block that is open has a place, and nothing of another transaction in it.
    check_error(b"E", "decode message: unknown tag `E`");
    let error = decode_in_block(Bytes::from_static(b"B")).unwrap_err();
    assert_eq!(error, Error::UnknownTag { tag: b'B' });
    check_error(b"\xff", r"decode message: unknown tag `\xff`");
    check_error(b"B\0\0\0", "decode `Begin.final_lsn`: needs 8 bytes, 3 left");
    check_error(
        b"O\0\0\0\0\0\0\0\0ab",
        "decode `Origin.name`: is not terminated in the 2 bytes left",
    );
    check_error(b"O\0\0\0\0\0\0\0\0\xe9\0", "decode `Origin.name`: is not UTF-8");
    check_error(b"I\0\0\0\x01K", "decode `Insert.new`: must be marked `N`");
    check_error(b"I\0\0\0\x01N\0\0secret", "decode `Insert`: 6 bytes after its end");
    check_error(b"U\0\0\0\x01X", "decode `Update.old`: must be marked `K`, `O` or `N`");
    check_error(b"U\0\0\0\x01K\0\0X", "decode `Update.new`: must be marked `N`");
    check_error(b"D\0\0\0\x01N", "decode `Delete.old`: must be marked `K` or `O`");
    check_error(
        b"U\0\0\0\x01N\0\x03nut\x01",
        "decode `Update.new`: column 3 needs 4 bytes, 1 left",
    );
    check_error(
        b"D\0\0\0\x01O\0\x01xsecret",
        "decode `Delete.old`: column 1 must be marked `n`, `u`, `t` or `b`",
    );
    check_error(
        b"R\0\0\0\x01\0t\0x\0\0",
        "decode `Relation.replica_identity`: must be `d`, `n`, `f` or `i`",
    );
    check_error(
        b"R\0\0\0\x01\0t\0d\0\x01\x02c\0\0\0\0\x17\xff\xff\xff\xff",
        "decode `Relation.column.flags`: must be 0 or 1",
    );
    check_error(b"T\0\0\0\0\x04", "decode `Truncate.options`: must be 0 to 3");
    check_error(b"M\x02", "decode `LogicalMessage.flags`: must be 0 or 1");
}

#[test]
fn a_length_is_believed_only_as_far_as_there_are_bytes() {
    check_error(
        b"I\0\0\0\x01N\0\x01t\x7f\xff\xff\xffsecret",
        "decode `Insert.new`: column 1 needs 2 147 483 647 bytes, 6 left",
    );
    check_error(
        b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xffsecret",
        "decode `Insert.new`: column 1 has the negative length -1",
    );
    check_error(b"I\0\0\0\x01N\xff\xff", "decode `Insert.new`: has the negative length -1");
    check_error(b"I\0\0\0\x01N\x7f\xff", "decode `Insert.new`: column 1 needs 1 byte, 0 left");
    check_error(
        b"R\0\0\0\x01\0t\0d\x7f\xff",
        "decode `Relation.columns`: needs 327 670 bytes, 0 left",
    );
    check_error(
        b"T\x7f\xff\xff\xff\0",
        "decode `Truncate.relation_ids`: needs 8 589 934 588 bytes, 0 left",
    );
    check_error(
        b"T\x80\0\0\0\0",
        "decode `Truncate.relation_ids`: has the negative length -2147483648",
    );
    check_error(
        b"M\0\0\0\0\0\0\0\0\0p\0\x7f\xff\xff\xffsecret",
        "decode `LogicalMessage.content`: needs 2 147 483 647 bytes, 6 left",
    );
}

#[test]
fn an_empty_schema_of_a_relation_is_pg_catalog() {
    let message = decode(Bytes::from_static(b"R\0\0\0\x01\0t\0f\0\0")).unwrap();
    let Message::Relation(relation) = message else { panic!("{message:?}") };
    assert_eq!((&*relation.namespace, &*relation.name), ("pg_catalog", "t"));
}

#[test]
fn rows_are_slices_of_the_payload() {
    let payload = Bytes::from_static(b"U\0\0\0\x01O\0\x01t\0\0\0\x01aN\0\x01t\0\0\0\x01b");
    let Ok(Message::Update(update)) = decode(payload.clone()) else { panic!("not an update") };
    let old = update.old.unwrap();
    for (tuple, at) in [(&old.tuple, 13), (&update.new, 22)] {
        let Some(Value::Text(text)) = tuple.value(0) else { panic!("not a text") };
        assert!(std::ptr::eq(text, &raw const payload[at..=at]), "copied");
    }
}

#[test]
fn debug_forms_never_hold_a_value() {
    let new = Tuple::from_values(&[Value::Text(b"secret"), Value::Binary(b"secret"), Value::Null]);
    let insert = Message::Insert(Insert { relation_id: 1, new });
    assert_eq!(
        format!("{insert:?}"),
        "Insert(Insert { relation_id: 1, new: Tuple[Text(6 bytes), Binary(6 bytes), Null] })"
    );
    let message = LogicalMessage {
        transactional: true,
        lsn: Lsn::ZERO,
        prefix: "app".to_owned(),
        content: Some(Bytes::from_static(b"secret")),
    };
    assert!(!format!("{message:?}").contains("secret"));
    let short = decode(Bytes::from_static(b"I\0\0\0\x01N\0\x02t\0\0\0\x06secret")).unwrap_err();
    let fault = Fault::Short { needed: 1, left: 0 };
    assert_eq!(short, Error::Column { field: "Insert.new", column: 2, fault });
}
