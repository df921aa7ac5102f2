//! Many payloads in a row, as a stream gives them: nothing panics, and what a transaction in blocks
//! asks for at its commit is exactly what its rows that survived ask for. `make fuzz` runs it, with
//! the golden transactions as first corpus.
//!
//! An input is a row of steps. One with a first byte from 128 on is a payload of any bytes behind
//! its length, two bytes; any other stands for a whole message of a few tables, transactions and
//! subtransactions, so that long conversations come about.

#![no_main]

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use libfuzzer_sys::fuzz_target;
use walsweep::config::{Rule, TableName};
use walsweep::decode::{
    Begin, Column, Commit, Insert, Message, Relation, ReplicaIdentity, StreamAbort, StreamCommit,
    StreamStart, Truncate, Tuple, Value, decode, decode_in_block, encode, encode_in_block,
};
use walsweep::gather::{Change, Gathered, Gatherer};
use walsweep::keys::{Binding, Bound, InProgress, KeySet, Rules};
use walsweep::lsn::Lsn;

fuzz_target!(|input: &[u8]| {
    let mut fed = Fed::new();
    let mut input = input;
    while let Some(payload) = next(&mut input, &fed.gatherer) {
        if fed.take(payload).is_none() {
            return;
        }
    }
});

/// The stages up to the keys, as a stream feeds them, and what they should hold.
struct Fed {
    gatherer: Gatherer,
    bound: Bound,
    keys: KeySet,
    in_progress: InProgress,
    /// By transaction in blocks: who asks for which keys and patterns.
    asked: HashMap<u32, Vec<(u32, Wanted)>>,
}

/// Exact keys, and patterns.
type Wanted = (BTreeSet<Vec<u8>>, BTreeSet<Vec<u8>>);

impl Fed {
    fn new() -> Fed {
        let rule = |name: &str, keys: &[&str]| Rule {
            table: TableName { schema: "shop".to_owned(), name: name.to_owned() },
            ..Rule::for_tests(name, keys)
        };
        let rules = Rules::compile(&[
            rule("narrow", &["narrow:{id}", "list:{name}:*"]),
            rule("orders", &["orders:{id}"]),
        ]);
        let bound = rules.expect("the rules are valid").bind(Binding::default());
        Fed {
            gatherer: Gatherer::new(),
            keys: bound.key_set(),
            in_progress: InProgress::new(bound.key_set()),
            bound,
            asked: HashMap::new(),
        }
    }

    /// `None` where a session would end.
    fn take(&mut self, payload: Bytes) -> Option<()> {
        let block = self.gatherer.in_block();
        let (xid, message) = match block {
            Some(_) => decode_in_block(payload).ok()?,
            None => (None, decode(payload).ok()?),
        };
        match self.gatherer.push(message).ok()? {
            Gathered::Nothing => {}
            Gathered::Pause => self.in_progress.leave(),
            Gathered::Change(change) => self.add(block, xid, &[change]),
            Gathered::Truncate(changes) => self.add(block, xid, &changes),
            Gathered::Logical(message) => {
                let xid = xid.filter(|_| message.transactional);
                let keys = xid.map_or(&mut self.keys, |xid| self.in_progress.of(xid));
                self.bound.signal(&message, keys);
                let mut alone = self.bound.key_set();
                self.bound.signal(&message, &mut alone);
                if let (Some(top), Some(xid)) = (block, xid) {
                    self.asked.entry(top).or_default().push((xid, wanted(&alone)));
                }
            }
            Gathered::Block(xid) => self.in_progress.enter(xid),
            Gathered::Committed(_) => self.keys = self.bound.key_set(),
            Gathered::StreamCommitted(transaction) => self.commit(transaction.xid),
            Gathered::Aborted { xid, subxid } => {
                self.in_progress.abort(xid, subxid);
                if xid == subxid {
                    self.asked.remove(&xid);
                } else if let Some(asked) = self.asked.get_mut(&xid) {
                    asked.retain(|(of, _)| *of != subxid);
                }
            }
            Gathered::ShapeUndone { .. } => return None,
        }
        Some(())
    }

    fn add(&mut self, block: Option<u32>, xid: Option<u32>, changes: &[Change]) {
        for change in changes {
            let keys = xid.map_or(&mut self.keys, |xid| self.in_progress.of(xid));
            self.bound.add(change, keys);
            let mut alone = self.bound.key_set();
            self.bound.add(change, &mut alone);
            if let (Some(top), Some(xid)) = (block, xid) {
                self.asked.entry(top).or_default().push((xid, wanted(&alone)));
            }
        }
    }

    fn commit(&mut self, xid: u32) {
        let keys = self.in_progress.commit(xid);
        let (mut exact, mut patterns) = Wanted::default();
        for (_, wanted) in self.asked.remove(&xid).unwrap_or_default() {
            exact.extend(wanted.0);
            patterns.extend(wanted.1);
        }
        let (has_exact, has_patterns) = wanted(&keys);
        assert!(has_exact.is_subset(&exact), "more keys than were asked for");
        assert!(has_patterns.is_subset(&patterns), "more patterns than were asked for");
        for key in exact.difference(&has_exact) {
            assert!(keys.patterns().any(|(_, pattern)| pattern.matches(key)), "a key is lost");
        }
        for lost in patterns.difference(&has_patterns) {
            let lost = walsweep::keys::Pattern::parse(lost);
            assert!(keys.patterns().any(|(_, pattern)| pattern.covers(&lost)), "a pattern is lost");
        }
        assert!(!self.in_progress.is_empty() || self.in_progress.bytes() == 0, "memory leaks");
    }
}

fn wanted(keys: &KeySet) -> Wanted {
    let exact = keys.exact().map(|(_, key)| key.to_vec()).collect();
    (exact, keys.patterns().map(|(_, pattern)| pattern.as_bytes().to_vec()).collect())
}

/// The payload of the next step.
fn next(input: &mut &[u8], gatherer: &Gatherer) -> Option<Bytes> {
    let kind = input.try_get_u8().ok()?;
    if kind >= 128 {
        let length = usize::from(input.try_get_u16().ok()?).min(input.len());
        return Some(input.copy_to_bytes(length));
    }
    let (xid, id) = (u32::from(input.try_get_u8().ok()?), input.try_get_u8().ok()?);
    // Of each of four transactions there are a few subtransactions.
    let (top, sub) = (xid % 4 * 16, xid % 4 * 16 + xid / 4 % 8);
    let lsn = Lsn(u64::from(top) + 1);
    let (commit_lsn, end_lsn, commit_time, flags) = (lsn, lsn, 0, 0);
    let is_inside = gatherer.in_block().is_some();
    let message = match kind % 12 {
        0 | 2 | 3 | 6 | 7 if is_inside => Message::StreamStop,
        0 => Message::StreamStart(StreamStart { xid: top, first_segment: id % 2 == 0 }),
        1 => Message::StreamStop,
        2 => Message::StreamAbort(StreamAbort { xid: top, subxid: sub, at: None }),
        3 => {
            let xid = top;
            Message::StreamCommit(StreamCommit { xid, flags, commit_lsn, end_lsn, commit_time })
        }
        4 => Message::Relation(Arc::new(relation(id % 2 + 1))),
        5 => {
            let (cascade, restart_identity) = (false, false);
            let relation_ids = vec![u32::from(id % 2) + 1];
            Message::Truncate(Truncate { cascade, restart_identity, relation_ids })
        }
        6 => Message::Begin(Begin { final_lsn: lsn, commit_time, xid: top }),
        7 => Message::Commit(Commit { flags, commit_lsn, end_lsn, commit_time }),
        _ => {
            let text = (id / 2).to_string();
            let values = [Value::Text(text.as_bytes()), Value::Text(b"a")];
            let new = Tuple::from_values(&values);
            Message::Insert(Insert { relation_id: u32::from(id % 2) + 1, new })
        }
    };
    // Most often a change is of the transaction whose block is open.
    let sub = gatherer.in_block().map_or(sub, |open| open + sub % 8);
    Some(if is_inside { encode_in_block(sub, &message) } else { encode(&message) })
}

fn relation(id: u8) -> Relation {
    let column = |name: &str, is_key| Column {
        is_key,
        name: name.to_owned(),
        type_id: 25,
        type_modifier: -1,
    };
    Relation {
        id: u32::from(id),
        namespace: "shop".to_owned(),
        name: if id == 1 { "narrow" } else { "orders" }.to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: vec![column("id", true), column("name", false)],
    }
}
