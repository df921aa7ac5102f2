//! [`Message`] to pgoutput bytes: the inverse of [`decode`](super::decode()), for tests and for
//! simulations that speak pgoutput. Compiled for those alone. It stands here and not in
//! `crates/stage` because it needs the decoder's types, and the stage needs nothing of walsweep.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Message, OldKind, OldTuple, Relation, ReplicaIdentity, StreamAbort, StreamCommit, Tuple,
};

/// Writes one message as pgoutput does outside of the blocks of streamed transactions
/// (<https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>).
///
/// # Panics
/// With a name that holds a zero byte, content that was left out, or with more columns, relations
/// or content than the
/// protocol can count.
#[must_use]
pub fn encode(message: &Message) -> Bytes {
    let mut out = BytesMut::new();
    match message {
        Message::Begin(begin) => {
            out.put_u8(b'B');
            out.put_u64(begin.final_lsn.0);
            out.put_i64(begin.commit_time);
            out.put_u32(begin.xid);
        }
        Message::Commit(commit) => {
            out.put_slice(&[b'C', commit.flags]);
            out.put_u64(commit.commit_lsn.0);
            out.put_u64(commit.end_lsn.0);
            out.put_i64(commit.commit_time);
        }
        Message::Origin(origin) => {
            out.put_u8(b'O');
            out.put_u64(origin.commit_lsn.0);
            put_text(&mut out, &origin.name);
        }
        Message::Relation(relation) => put_relation(&mut out, relation),
        Message::Type(r#type) => {
            out.put_u8(b'Y');
            out.put_u32(r#type.id);
            put_text(&mut out, &r#type.namespace);
            put_text(&mut out, &r#type.name);
        }
        Message::Insert(insert) => {
            out.put_u8(b'I');
            out.put_u32(insert.relation_id);
            put_tuple(&mut out, b'N', &insert.new);
        }
        Message::Update(update) => {
            out.put_u8(b'U');
            out.put_u32(update.relation_id);
            if let Some(old) = &update.old {
                put_old(&mut out, old);
            }
            put_tuple(&mut out, b'N', &update.new);
        }
        Message::Delete(delete) => {
            out.put_u8(b'D');
            out.put_u32(delete.relation_id);
            put_old(&mut out, &delete.old);
        }
        Message::Truncate(truncate) => {
            out.put_u8(b'T');
            put_length(&mut out, truncate.relation_ids.len());
            out.put_u8(u8::from(truncate.cascade) | u8::from(truncate.restart_identity) << 1);
            truncate.relation_ids.iter().for_each(|id| out.put_u32(*id));
        }
        Message::Logical(message) => {
            out.put_slice(&[b'M', u8::from(message.transactional)]);
            out.put_u64(message.lsn.0);
            put_text(&mut out, &message.prefix);
            let content = message.content.as_ref().expect("no server leaves content out");
            put_length(&mut out, content.len());
            out.put_slice(content);
        }
        Message::StreamStart(start) => {
            out.put_u8(b'S');
            out.put_u32(start.xid);
            out.put_u8(u8::from(start.first_segment));
        }
        Message::StreamStop => out.put_u8(b'E'),
        Message::StreamCommit(commit) => put_stream_commit(&mut out, commit),
        Message::StreamAbort(abort) => put_stream_abort(&mut out, abort),
    }
    out.freeze()
}

/// Writes one message as pgoutput does inside of a block, there with the `xid` of the transaction
/// or subtransaction that it tells of.
///
/// # Panics
/// As [`encode`].
#[must_use]
pub fn encode_in_block(xid: u32, message: &Message) -> Bytes {
    let plain = encode(message);
    let Some((tag, rest)) = plain.split_first() else { return plain };
    if !b"RYIUDTM".contains(tag) {
        return plain;
    }
    let mut out = BytesMut::new();
    out.put_u8(*tag);
    out.put_u32(xid);
    out.put_slice(rest);
    out.freeze()
}

fn put_stream_commit(out: &mut BytesMut, commit: &StreamCommit) {
    out.put_u8(b'c');
    out.put_u32(commit.xid);
    out.put_u8(commit.flags);
    out.put_u64(commit.commit_lsn.0);
    out.put_u64(commit.end_lsn.0);
    out.put_i64(commit.commit_time);
}

fn put_stream_abort(out: &mut BytesMut, abort: &StreamAbort) {
    out.put_u8(b'A');
    out.put_u32(abort.xid);
    out.put_u32(abort.subxid);
    if let Some(at) = abort.at {
        out.put_u64(at.lsn.0);
        out.put_i64(at.time);
    }
}

fn put_relation(out: &mut BytesMut, relation: &Relation) {
    out.put_u8(b'R');
    out.put_u32(relation.id);
    put_text(out, if relation.namespace == "pg_catalog" { "" } else { &relation.namespace });
    put_text(out, &relation.name);
    out.put_u8(match relation.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    out.put_i16(
        i16::try_from(relation.columns.len()).expect("a relation has at most 1600 columns"),
    );
    for column in &relation.columns {
        out.put_u8(u8::from(column.is_key));
        put_text(out, &column.name);
        out.put_u32(column.type_id);
        out.put_i32(column.type_modifier);
    }
}

fn put_old(out: &mut BytesMut, old: &OldTuple) {
    let mark = match old.kind {
        OldKind::Key => b'K',
        OldKind::Full => b'O',
    };
    put_tuple(out, mark, &old.tuple);
}

fn put_tuple(out: &mut BytesMut, mark: u8, tuple: &Tuple) {
    out.put_u8(mark);
    out.put_u16(tuple.column_count);
    out.put_slice(&tuple.body);
}

fn put_text(out: &mut BytesMut, text: &str) {
    assert!(!text.contains('\0'), "a name ends at its first zero byte");
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_length(out: &mut BytesMut, length: usize) {
    out.put_i32(i32::try_from(length).expect("content has at most 1 GB"));
}
