//! Tables whose partitions have other replica identities: what they count as, message by message.

use std::sync::Arc;

use super::{Gathered, Gatherer};
use crate::decode::{
    Begin, Column, Commit, Insert, Message, Relation, ReplicaIdentity, StreamCommit, StreamStart,
    Truncate, Tuple, Value,
};
use crate::lsn::Lsn;

const ROOT: u32 = 1;

/// A relation of columns `a` and `b`, of which these are its identity.
fn relation(id: u32, keys: &[&str]) -> Message {
    let column = |name: &str| Column {
        is_key: keys.contains(&name),
        name: name.to_owned(),
        type_id: 25,
        type_modifier: -1,
    };
    Message::Relation(Arc::new(Relation {
        id,
        namespace: "public".to_owned(),
        name: format!("t{id}"),
        replica_identity: ReplicaIdentity::Index,
        columns: vec![column("a"), column("b")],
    }))
}

fn insert(relation_id: u32) -> Message {
    let new = Tuple::from_values(&[Value::Text(b"1"), Value::Text(b"2")]);
    Message::Insert(Insert { relation_id, new })
}

fn truncate(relation_ids: &[u32]) -> Message {
    let relation_ids = relation_ids.to_vec();
    Message::Truncate(Truncate { cascade: false, restart_identity: false, relation_ids })
}

fn begin() -> Message {
    Message::Begin(Begin { final_lsn: Lsn(100), commit_time: 7, xid: 9 })
}

fn commit() -> Message {
    let (commit_lsn, end_lsn) = (Lsn(100), Lsn(148));
    Message::Commit(Commit { flags: 0, commit_lsn, end_lsn, commit_time: 7 })
}

/// The identity of the table, as its next change has it.
fn identity(gatherer: &mut Gatherer) -> String {
    let Gathered::Change(change) = gatherer.push(insert(ROOT)).unwrap() else { unreachable!() };
    let keys = change.relation.columns.iter().filter(|column| column.is_key);
    keys.map(|column| column.name.as_str()).collect()
}

/// Checks the table's identity after these messages of one transaction.
#[track_caller]
fn check(messages: &[Message], expected: &str) -> Gatherer {
    let mut gatherer = Gatherer::new();
    for message in std::iter::once(&begin()).chain(messages) {
        gatherer.push(message.clone()).unwrap();
    }
    assert_eq!(identity(&mut gatherer), expected);
    gatherer
}

const BOTH: &[&str] = &["a", "b"];

#[test]
fn a_table_has_the_identity_that_all_its_partitions_have() {
    let root = || relation(ROOT, BOTH);
    check(&[root()], "ab");
    check(&[root(), relation(2, BOTH), insert(ROOT)], "ab");
    check(&[root(), relation(2, &["a"]), insert(ROOT)], "a");
    // One that has all does not make good what another lacks, whichever comes first.
    let (whole, less) = (|| relation(2, BOTH), || relation(3, &["b"]));
    check(&[root(), whole(), insert(ROOT), root(), less(), insert(ROOT)], "b");
    check(&[root(), less(), insert(ROOT), root(), whole(), insert(ROOT)], "b");
    check(&[root(), relation(2, &["a"]), insert(ROOT), root(), less(), insert(ROOT)], "");
    // A partition that is cured.
    check(&[root(), less(), insert(ROOT), root(), relation(3, BOTH), insert(ROOT)], "ab");
}

#[test]
fn only_what_follows_at_once_is_a_partition() {
    let less = || relation(2, &["a"]);
    check(&[relation(ROOT, BOTH), insert(ROOT), less(), insert(2)], "ab");
    let mut later = check(&[relation(ROOT, BOTH)], "ab");
    for message in [commit(), begin(), less(), insert(2)] {
        later.push(message).unwrap();
    }
    assert_eq!(identity(&mut later), "ab");
}

/// One TRUNCATE of several tables describes them one behind the other.
#[test]
fn tables_that_are_truncated_together_are_no_family() {
    let described = [relation(ROOT, BOTH), relation(2, &["a"])];
    let mut gatherer = check(&[&described[..], &[truncate(&[ROOT, 2])]].concat(), "ab");
    assert_eq!(gatherer.smaller_partitions(), []);
    // The partitions of one of them stay what they are.
    let family = [relation(ROOT, BOTH), relation(3, &["b"]), insert(ROOT)];
    let truncated = [relation(ROOT, BOTH), relation(2, &["a"]), truncate(&[ROOT, 2])];
    let mut gatherer = check(&[&family[..], &truncated].concat(), "b");
    let told = gatherer.smaller_partitions();
    assert!(told.iter().all(|(table, partition)| (table.id, partition.id) == (ROOT, 3)));
    assert!(!told.is_empty());
}

/// In a block, a family is that of its transaction until this commits.
#[test]
fn partitions_of_a_streamed_transaction_count_for_all_once_it_commits() {
    let mut gatherer = check(&[relation(ROOT, BOTH)], "ab");
    let start = Message::StreamStart(StreamStart { xid: 7, first_segment: true });
    let block = [relation(ROOT, BOTH), relation(2, &["a"]), insert(ROOT), Message::StreamStop];
    for message in [commit(), start].into_iter().chain(block).chain([begin()]) {
        gatherer.push(message).unwrap();
    }
    assert_eq!(identity(&mut gatherer), "ab");
    let (commit_lsn, end_lsn) = (Lsn(100), Lsn(148));
    let streamed = StreamCommit { xid: 7, flags: 0, commit_lsn, end_lsn, commit_time: 7 };
    for message in [commit(), Message::StreamCommit(streamed), begin()] {
        gatherer.push(message).unwrap();
    }
    assert_eq!(identity(&mut gatherer), "a");
}
