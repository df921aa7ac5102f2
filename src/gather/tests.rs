//! News that the gatherer hands on, and messages that it refuses.

use std::sync::Arc;

use crate::decode::tests::{decode_all, golden};
use crate::decode::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, Message, OldKind, OldTuple, Origin,
    Relation, ReplicaIdentity, StreamAbort, StreamCommit, StreamStart, Truncate, Tuple, Type,
    Update, Value,
};
use crate::lsn::Lsn;

use super::{Change, Error, Gathered, Gatherer, Row, Transaction};

fn begin(xid: u32, lsn: u64) -> Message {
    Message::Begin(Begin { final_lsn: Lsn(lsn), commit_time: 7, xid })
}

fn commit(lsn: u64) -> Message {
    let (commit_lsn, end_lsn) = (Lsn(lsn), Lsn(lsn + 48));
    Message::Commit(Commit { flags: 0, commit_lsn, end_lsn, commit_time: 7 })
}

fn relation(id: u32, columns: &[&str]) -> Arc<Relation> {
    let column = |name: &&str| Column {
        is_key: true,
        name: (*name).to_owned(),
        type_id: 25,
        type_modifier: -1,
    };
    Arc::new(Relation {
        id,
        namespace: "public".to_owned(),
        name: format!("t{id}"),
        replica_identity: ReplicaIdentity::Default,
        columns: columns.iter().map(column).collect(),
    })
}

fn row(values: &[&str]) -> Tuple {
    let values: Vec<_> = values.iter().map(|text| Value::Text(text.as_bytes())).collect();
    Tuple::from_values(&values)
}

fn old(values: &[&str]) -> OldTuple {
    OldTuple { kind: OldKind::Full, tuple: row(values) }
}

fn insert(relation_id: u32, values: &[&str]) -> Message {
    Message::Insert(Insert { relation_id, new: row(values) })
}

fn truncate(relation_ids: &[u32]) -> Message {
    let relation_ids = relation_ids.to_vec();
    Message::Truncate(Truncate { cascade: true, restart_identity: false, relation_ids })
}

fn logical(transactional: bool) -> Message {
    let (prefix, content) = ("app".to_owned(), Some("x".into()));
    Message::Logical(LogicalMessage { transactional, lsn: Lsn(1), prefix, content })
}

/// A gatherer that took all of `messages`.
fn after(messages: impl IntoIterator<Item = Message>) -> Gatherer {
    let mut gatherer = Gatherer::new();
    for message in messages {
        gatherer.push(message).unwrap();
    }
    gatherer
}

/// A gatherer inside transaction 9, which commits at 100 and has described `t1 (a, b)`.
fn inside() -> Gatherer {
    after([begin(9, 100), Message::Relation(relation(1, &["a", "b"]))])
}

#[test]
fn real_transactions_gather_whole() {
    for (path, payloads) in golden() {
        let mut gatherer = Gatherer::new();
        let mut committed = 0_usize;
        for (_, message) in decode_all(&payloads) {
            if let Gathered::Committed(transaction) | Gathered::StreamCommitted(transaction) =
                gatherer.push(message).unwrap()
            {
                committed += 1;
                assert!(transaction.end_lsn > transaction.commit_lsn, "{}", path.display());
            }
        }
        let open = gatherer.in_transaction().or(gatherer.in_block());
        let expected = usize::from(!path.ends_with("streamed_rolled_back.hex"));
        assert_eq!((committed, open), (expected, None), "{}", path.display());
    }
}

#[test]
fn a_transaction_is_open_from_its_begin_to_its_commit() {
    let mut gatherer = Gatherer::new();
    assert_eq!(gatherer.in_transaction(), None);
    gatherer.push(begin(9, 100)).unwrap();
    assert_eq!(gatherer.in_transaction(), Some(9));
    gatherer.push(Message::Relation(relation(1, &["a"]))).unwrap();
    gatherer.push(insert(1, &["x"])).unwrap();
    assert_eq!(gatherer.in_transaction(), Some(9));
    let transaction =
        Transaction { xid: 9, commit_lsn: Lsn(100), end_lsn: Lsn(148), commit_time: 7 };
    assert_eq!(gatherer.push(commit(100)), Ok(Gathered::Committed(transaction)));
    assert_eq!(gatherer.in_transaction(), None);
}

#[test]
fn each_row_comes_at_once_with_its_relation() {
    let mut gatherer = inside();
    let relation = relation(1, &["a", "b"]);
    let mut check = |message, row| {
        let relation = Arc::clone(&relation);
        assert_eq!(gatherer.push(message), Ok(Gathered::Change(Change { relation, row })));
    };
    let new = row(&["1", "x"]);
    check(insert(1, &["1", "x"]), Row::Insert { new: new.clone() });
    for old in [None, Some(old(&["0", "x"]))] {
        let update = Update { relation_id: 1, old: old.clone(), new: new.clone() };
        check(Message::Update(update), Row::Update { old, new: new.clone() });
    }
    let old = old(&["1", "x"]);
    let delete = Delete { relation_id: 1, old: old.clone() };
    check(Message::Delete(delete), Row::Delete { old });
}

#[test]
fn one_truncate_gives_a_change_for_each_relation() {
    let mut gatherer = inside();
    let second = relation(2, &["c"]);
    gatherer.push(Message::Relation(Arc::clone(&second))).unwrap();
    let change = |relation| Change { relation, row: Row::Truncate };
    assert_eq!(
        gatherer.push(truncate(&[2, 1])),
        Ok(Gathered::Truncate(vec![change(second), change(relation(1, &["a", "b"]))]))
    );
}

#[test]
fn a_new_description_counts_from_the_next_change_on() {
    let mut gatherer = inside();
    let gathered = gatherer.push(insert(1, &["1", "x"])).unwrap();
    gatherer.push(Message::Relation(relation(1, &["a"]))).unwrap();
    let Gathered::Change(before) = gathered else { panic!("{gathered:?}") };
    assert_eq!(before.relation, relation(1, &["a", "b"]));
    let gathered = gatherer.push(insert(1, &["1"])).unwrap();
    let Gathered::Change(after) = gathered else { panic!("{gathered:?}") };
    assert_eq!(after.relation, relation(1, &["a"]));
}

#[test]
fn a_description_outlives_its_transaction() {
    let mut gatherer = inside();
    gatherer.push(commit(100)).unwrap();
    gatherer.push(begin(10, 200)).unwrap();
    assert!(matches!(gatherer.push(insert(1, &["1", "x"])), Ok(Gathered::Change(_))));
}

#[test]
fn types_and_origins_bring_nothing() {
    let origin = Message::Origin(Origin { commit_lsn: Lsn(5), name: "elsewhere".to_owned() });
    let (namespace, name) = ("public".to_owned(), "mood".to_owned());
    let mood = Message::Type(Type { id: 70_000, namespace, name });
    let mut gatherer = inside();
    for message in [origin, mood] {
        assert_eq!(gatherer.push(message), Ok(Gathered::Nothing));
        assert_eq!(gatherer.in_transaction(), Some(9));
    }
}

#[test]
fn a_logical_message_is_handed_on_and_one_of_a_transaction_needs_it_open() {
    let handed_on = |transactional| {
        let Message::Logical(message) = logical(transactional) else { unreachable!() };
        Ok(Gathered::Logical(message))
    };
    let mut gatherer = inside();
    assert_eq!(gatherer.push(logical(true)), handed_on(true));
    assert_eq!(gatherer.push(logical(false)), handed_on(false));
    assert_eq!(gatherer.in_transaction(), Some(9));
    let mut idle = Gatherer::new();
    assert_eq!(idle.push(logical(false)), handed_on(false));
    assert_eq!(idle.in_transaction(), None);
    let text = "gather logical message at `0/1`: no transaction is open";
    check_refused(idle, logical(true), text);
}

fn check_refused(mut gatherer: Gatherer, message: Message, text: &str) {
    let open = gatherer.in_transaction();
    let error: Error = gatherer.push(message).unwrap_err();
    assert_eq!(error.to_string(), text);
    assert_eq!(gatherer.in_transaction(), open, "what is refused changes nothing");
}

#[test]
fn begin_inside_a_transaction_is_refused() {
    check_refused(inside(), begin(10, 200), "begin transaction `10`: transaction `9` is open");
}

#[test]
fn commit_without_begin_is_refused() {
    check_refused(Gatherer::new(), commit(100), "commit at `0/64`: no transaction is open");
    let committed = after([begin(9, 100), commit(100)]);
    check_refused(committed, commit(100), "commit at `0/64`: no transaction is open");
}

#[test]
fn commit_at_another_position_than_begin_said_is_refused() {
    let text = "commit transaction `9`: its commit is at `0/64`, not at `0/65`";
    check_refused(inside(), commit(101), text);
}

#[test]
fn a_change_outside_a_transaction_is_refused() {
    for message in [insert(1, &["1", "x"]), truncate(&[1])] {
        let mut gatherer = inside();
        gatherer.push(commit(100)).unwrap();
        let text = "gather change of relation `1`: no transaction is open";
        check_refused(gatherer, message, text);
    }
}

#[test]
fn a_change_of_an_unknown_relation_is_refused() {
    for message in [insert(2, &["1"]), truncate(&[1, 2])] {
        let text = "gather change of relation `2`: it was never described";
        check_refused(inside(), message, text);
    }
}

#[test]
fn a_tuple_of_another_width_than_its_relation_is_refused() {
    let (short, whole) = (["1"], ["1", "x"]);
    let update = |old, new| Message::Update(Update { relation_id: 1, old, new });
    for message in [
        insert(1, &short),
        update(None, row(&short)),
        update(Some(old(&short)), row(&whole)),
        update(Some(old(&whole)), row(&short)),
        Message::Delete(Delete { relation_id: 1, old: old(&short) }),
    ] {
        let text = "gather change of `public.t1`: 1 column, the relation has 2";
        check_refused(inside(), message, text);
    }
}

fn start(xid: u32, first_segment: bool) -> Message {
    Message::StreamStart(StreamStart { xid, first_segment })
}

fn stream_commit(xid: u32) -> Message {
    let (commit_lsn, end_lsn) = (Lsn(100), Lsn(148));
    Message::StreamCommit(StreamCommit { xid, flags: 0, commit_lsn, end_lsn, commit_time: 7 })
}

fn abort(xid: u32, subxid: u32) -> Message {
    Message::StreamAbort(StreamAbort { xid, subxid, at: None })
}

/// How many columns relation 1 has for whoever changes it next: that many fit, no other number.
fn width(gatherer: &mut Gatherer) -> Option<usize> {
    let values = ["1", "2", "3", "4"];
    (1..=4).find(|count| gatherer.push(insert(1, &values[..*count])).is_ok())
}

#[test]
fn blocks_of_transactions_stand_between_whole_ones() {
    let mut gatherer = after([start(7, true), Message::Relation(relation(1, &["a"]))]);
    assert_eq!(gatherer.in_block(), Some(7));
    assert!(matches!(gatherer.push(insert(1, &["x"])), Ok(Gathered::Change(_))));
    assert_eq!(gatherer.push(Message::StreamStop), Ok(Gathered::Pause));
    assert_eq!(gatherer.in_block(), None);
    for message in [begin(9, 100), Message::Relation(relation(1, &["a"])), commit(100)] {
        gatherer.push(message).unwrap();
    }
    assert_eq!(gatherer.push(start(8, true)), Ok(Gathered::Block(8)));
    gatherer.push(Message::StreamStop).unwrap();
    assert_eq!(gatherer.push(start(7, false)), Ok(Gathered::Block(7)));
    gatherer.push(Message::StreamStop).unwrap();
    assert_eq!(gatherer.push(abort(8, 8)), Ok(Gathered::Aborted { xid: 8, subxid: 8 }));
    let Ok(Gathered::StreamCommitted(transaction)) = gatherer.push(stream_commit(7)) else {
        panic!("not committed")
    };
    assert_eq!((transaction.xid, transaction.end_lsn), (7, Lsn(148)));
}

#[test]
fn a_relation_of_a_block_is_valid_for_all_once_its_transaction_commits() {
    let mut gatherer = after([
        begin(9, 100),
        Message::Relation(relation(1, &["a"])),
        commit(100),
        start(7, true),
        Message::Relation(relation(1, &["a", "b"])),
    ]);
    assert_eq!(width(&mut gatherer), Some(2));
    for message in [Message::StreamStop, begin(10, 100)] {
        gatherer.push(message).unwrap();
    }
    assert_eq!(width(&mut gatherer), Some(1), "the other transaction may be undone");
    for message in [commit(100), start(8, true)] {
        gatherer.push(message).unwrap();
    }
    assert_eq!(width(&mut gatherer), None, "each describes for itself");
    for message in [Message::StreamStop, stream_commit(7), begin(11, 100)] {
        gatherer.push(message).unwrap();
    }
    assert_eq!(width(&mut gatherer), Some(2));
}

#[test]
fn a_relation_described_later_outlives_the_commit_of_an_earlier_block() {
    let mut gatherer = after([
        start(7, true),
        Message::Relation(relation(1, &["a", "b"])),
        Message::StreamStop,
        begin(9, 100),
        Message::Relation(relation(1, &["a"])),
        commit(100),
        stream_commit(7),
        begin(10, 100),
    ]);
    assert_eq!(width(&mut gatherer), Some(1));
}

/// Relation 1 has one column for all; transaction 7 describes it with these, and this follows.
fn described(columns: &[&str], end: Message) -> (Gatherer, Gathered) {
    let mut gatherer = after([
        begin(9, 100),
        Message::Relation(relation(1, &["a"])),
        commit(100),
        start(7, true),
        Message::Relation(relation(1, columns)),
        Message::StreamStop,
    ]);
    let gathered = gatherer.push(end).unwrap();
    (gatherer, gathered)
}

#[test]
fn what_is_undone_has_described_nothing() {
    let (mut whole, _) = described(&["a", "b"], abort(7, 7));
    whole.push(begin(10, 100)).unwrap();
    assert_eq!(width(&mut whole), Some(1));
    let (mut part, gathered) = described(&["a"], abort(7, 8));
    assert_eq!(gathered, Gathered::Aborted { xid: 7, subxid: 8 });
    part.push(start(7, false)).unwrap();
    assert_eq!(width(&mut part), None, "the server describes again");
    part.push(Message::Relation(relation(1, &["a", "b", "c"]))).unwrap();
    assert_eq!(width(&mut part), Some(3));
}

#[test]
fn a_part_undone_after_a_relation_was_altered_is_told() {
    let (_, gathered) = described(&["a", "b"], abort(7, 8));
    assert_eq!(gathered, Gathered::ShapeUndone { xid: 7 });
    // The same where only the transaction itself has described it, before and after.
    let mut gatherer = after([
        start(7, true),
        Message::Relation(relation(1, &["a"])),
        Message::Relation(relation(1, &["a", "b"])),
        Message::StreamStop,
    ]);
    assert_eq!(gatherer.push(abort(7, 8)), Ok(Gathered::ShapeUndone { xid: 7 }));
}

#[test]
fn a_block_that_has_no_place_is_refused() {
    let open = || after([start(7, true)]);
    let inside_text = "stream transaction `8`: transaction `7` is open";
    for message in [start(8, true), stream_commit(8), abort(8, 8)] {
        check_refused(open(), message, inside_text);
    }
    check_refused(open(), begin(8, 100), "begin transaction `8`: transaction `7` is open");
    check_refused(inside(), start(8, true), "stream transaction `8`: transaction `9` is open");
    check_refused(Gatherer::new(), Message::StreamStop, "end block: none is open");
    for message in [start(7, false), stream_commit(7)] {
        let text = "stream transaction `7`: its first block never came";
        check_refused(Gatherer::new(), message, text);
    }
}
