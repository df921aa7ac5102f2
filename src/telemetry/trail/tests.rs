//! The ring of transactions, told of by hand.

use std::sync::Arc;

use super::{
    Answer, By, Cause, How, Known, Moment, Name, Removal, TargetName, Took, Trail, Waited, read,
};
use crate::budget;
use crate::config::{Audit, Rule, TargetId, Targets};
use crate::decode::{Column, OldKind, OldTuple, Relation, ReplicaIdentity, Tuple, Value};
use crate::gather::{Change, Row, Transaction};
use crate::keys::{Binding, KeySet, RuleId, Rules, WidenReason};
use crate::lsn::Lsn;
use crate::telemetry::Health;
use crate::telemetry::metrics::Metrics;

const ONE: TargetId = TargetId(0);
const OTHER: TargetId = TargetId(1);

fn rules() -> Rules {
    let mut list = Rule::for_tests("item", &["list:{team}:*"]);
    "list".clone_into(&mut list.name);
    let mut fields = Rule::for_tests("item", &[]);
    "fields".clone_into(&mut fields.name);
    let located = crate::config::Located::for_tests;
    fields.fields =
        vec![crate::config::Fields { key: located("hash:{id}"), fields: vec![located("name")] }];
    Rules::compile(&[Rule::for_tests("item", &["item:{id}"]), list, fields]).unwrap()
}

fn trail(rules: &Rules, prefixes: &[&str]) -> Trail {
    let trail = Trail::new(prefixes.len());
    trail.knows(known(rules, prefixes));
    trail.begins("7/1");
    trail
}

fn known(rules: &Rules, prefixes: &[&str]) -> Known {
    let target = |(at, prefix): (usize, &&str)| TargetName {
        name: format!("r{at}"),
        prefix: (*prefix).to_owned(),
    };
    Known::new(rules, prefixes.iter().enumerate().map(target).collect())
}

/// The keys of these items.
fn keys(rules: &Rules, rows: impl IntoIterator<Item = (impl AsRef<[u8]>, &'static str)>) -> KeySet {
    let relation = relation();
    let (mut keys, mut bound) = (rules.key_set(), rules.bind(Binding::default()));
    for (id, team) in rows {
        let new = Tuple::from_values(&[Value::Text(id.as_ref()), Value::Text(team.as_bytes())]);
        let row = Row::Insert { new };
        bound.add(&Change { relation: Arc::clone(&relation), row }, &mut keys);
    }
    keys
}

fn relation() -> Arc<Relation> {
    let column = |name: &str| Column {
        is_key: name == "id",
        name: name.to_owned(),
        type_id: 25,
        type_modifier: -1,
    };
    Arc::new(Relation {
        id: 1,
        namespace: "public".to_owned(),
        name: "item".to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: vec![column("id"), column("team")],
    })
}

fn transaction(lsn: u64) -> Transaction {
    let xid = u32::try_from(lsn).unwrap();
    Transaction { xid, commit_lsn: Lsn(lsn), end_lsn: Lsn(lsn), commit_time: 1_000_000 }
}

fn commit(trail: &Trail, lsn: u64, keys: &KeySet) {
    trail.committed(&transaction(lsn), keys, 0);
}

fn gone(trail: &Trail, target: TargetId, lsn: u64) {
    let waited = [Waited::Transaction(Lsn(lsn))].into_iter();
    trail.removed(target, Took::default(), waited);
}

fn find(trail: &Trail, key: impl AsRef<[u8]>) -> Answer {
    trail.find(key.as_ref(), (String::new(), Vec::new()))
}

fn removals(trail: &Trail, key: impl AsRef<[u8]>) -> Vec<Removal> {
    find(trail, key).removals
}

fn name(text: &str) -> Name {
    Name::of(text.as_bytes())
}

fn lsns(removals: &[Removal]) -> Vec<&str> {
    let lsn = |removal: &'_ Removal| match &removal.cause {
        Cause::Transaction(transaction) => &*transaction.lsn.as_str().to_owned().leak(),
        Cause::Sweep { .. } => "sweep",
        Cause::Room { .. } => "room",
        Cause::Hand { .. } => "hand",
    };
    removals.iter().map(lsn).collect()
}

#[test]
fn exact_keys_are_found_by_equality_and_patterns_as_redis_matches() {
    let rules = rules();
    let trail = trail(&rules, &[""]);
    commit(&trail, 10, &keys(&rules, [("1", "a"), ("[x]", "b*")]));
    let by = |key: &str| match removals(&trail, key).as_slice() {
        [] => String::new(),
        [removal] => {
            let how = |by: &By| format!("{} {:?} {}+{}", by.rule, by.how, by.keys, by.patterns);
            removal.by.iter().map(how).collect::<Vec<_>>().join("; ")
        }
        more => panic!("{more:?}"),
    };
    assert_eq!(by("item:1"), "item Key(Text(\"item:1\")) 2+0");
    assert_eq!(by("list:a:"), "list Pattern(Text(\"list:a:*\")) 0+2");
    assert_eq!(by("list:a:x:y"), "list Pattern(Text(\"list:a:*\")) 0+2");
    assert_eq!(by("list:b*:1"), "list Pattern(Text(\"list:b\\\\*:*\")) 0+2");
    assert_eq!(by("hash:1"), "fields Fields(Text(\"name\")) 2+0");
    assert_eq!(by("item:[x]"), "item Key(Text(\"item:[x]\")) 2+0");
    // A value of a row is no syntax (I4), here neither.
    for other in ["item:x", "list:bc:1", "item:", "item:11", "list:a", "hash:1:name", ""] {
        assert_eq!(by(other), "", "{other}");
    }
}

#[test]
fn a_key_of_any_bytes_is_found() {
    let rules = rules();
    let trail = trail(&rules, &[""]);
    let bytes = [b"item:".as_slice(), b"\xff\x00\n"].concat();
    commit(&trail, 10, &keys(&rules, [(&b"\xff\x00\n"[..], "a")]));
    let [removal] = removals(&trail, &bytes).try_into().unwrap();
    assert_eq!(removal.by[0].how, How::Key(Name::of(&bytes)));
    assert!(removals(&trail, b"item:\xff\x00").is_empty());
}

/// A transaction goes through the stages; each is told by itself.
#[test]
fn the_times_of_a_removal_are_told() {
    let rules = rules();
    let trail = trail(&rules, &[""]);
    let set = keys(&rules, [("1", "a")]);
    let began = Moment::now();
    trail.committed(&transaction(10), &set, 2_000_000);
    let told = || {
        let [removal] = removals(&trail, "item:1").try_into().unwrap();
        let Cause::Transaction(transaction) = &removal.cause else { panic!("{removal:?}") };
        assert_eq!((transaction.xid, transaction.lsn.as_str()), (10, "0/A"));
        assert_eq!(transaction.committed.to_string(), "2000-01-01T00:00:03.000000Z");
        (transaction.received, transaction.visible, removal.removed, removal.removed_again)
    };
    let (received, visible, removed, again) = told();
    assert!(received >= began && (visible, removed, again) == (None, None, None));
    trail.visible(Lsn(10));
    let visible = told().1.unwrap();
    assert!(visible >= received && told().2.is_none());
    // The second removal is of a hold, into which another was merged.
    gone(&trail, ONE, 10);
    let removed = told().2.unwrap();
    trail.held(ONE, 0, &[Lsn(10)], &[]);
    trail.held(ONE, 7, &[], &[0]);
    trail.removed_again(ONE, [Waited::Hold(0), Waited::Hold(8)].into_iter());
    assert_eq!(told().3, None, "of other holds");
    trail.removed_again(ONE, [Waited::Hold(7)].into_iter());
    let again = told().3.unwrap();
    assert!(began <= visible && visible <= removed && removed <= again);
    // It is made again for a Redis that came back: the first time counts.
    gone(&trail, ONE, 10);
    assert_eq!(told().2, Some(removed));
}

/// A reload keeps what is gone. All else comes again to the next session, whose rules may give
/// other keys for it: told as the old ones gave it, it would wait for good.
#[test]
fn a_reload_forgets_what_is_to_come_again() {
    let rules = rules();
    let trail = trail(&rules, &["", "b:"]);
    for (lsn, row) in [(10, ("1", "a")), (20, ("2", "a")), (30, ("3", "a"))] {
        commit(&trail, lsn, &keys(&rules, [row]));
    }
    gone(&trail, ONE, 10);
    gone(&trail, OTHER, 10);
    gone(&trail, ONE, 20);
    trail.knows(known(&rules, &["", "b:"]));
    for (key, expected) in [("item:1", &["0/A"][..]), ("item:2", &[]), ("item:3", &[])] {
        assert_eq!(lsns(&removals(&trail, key)), expected, "{key}");
    }
    assert_eq!(lsns(&removals(&trail, "b:item:1")), ["0/A"], "of the other target, too");
    // They come again, and are told once.
    commit(&trail, 20, &keys(&rules, [("2", "a")]));
    assert_eq!(lsns(&removals(&trail, "item:2")), ["0/14"]);
}

/// Transactions that are held before their first removal, by a pass that waits.
#[test]
fn keys_that_wait_for_a_pass_go_with_their_hold() {
    let rules = rules();
    let trail = trail(&rules, &[""]);
    for lsn in [10, 11, 12] {
        commit(&trail, lsn, &keys(&rules, [("1", "a")]));
    }
    trail.held(ONE, 3, &[Lsn(10), Lsn(12), Lsn(99)], &[]);
    trail.removed(ONE, Took::default(), [Waited::Hold(3)].into_iter());
    let gone: Vec<bool> =
        removals(&trail, "item:1").iter().map(|removal| removal.removed.is_some()).collect();
    assert_eq!(gone, [false, true, true], "what is to come is the newest");
    assert_eq!(lsns(&removals(&trail, "item:1"))[0], "0/B");
}

#[test]
fn keys_of_two_targets_have_their_prefixes_and_their_rules() {
    let mut only = Rule::for_tests("item", &["only:{id}"]);
    ("only").clone_into(&mut only.name);
    only.targets = Targets::NONE.with(OTHER);
    let rules = Rules::compile(&[Rule::for_tests("item", &["item:{id}"]), only]).unwrap();
    let trail = trail(&rules, &["eu:", "us:"]);
    commit(&trail, 10, &keys(&rules, [("1", "a")]));
    gone(&trail, OTHER, 10);
    let told = |key: &str| -> Vec<(String, bool)> {
        let all = removals(&trail, key).into_iter();
        all.map(|removal| (removal.target, removal.removed.is_some())).collect()
    };
    assert_eq!(told("eu:item:1"), [("r0".to_owned(), false)]);
    assert_eq!(told("us:item:1"), [("r1".to_owned(), true)]);
    assert_eq!(told("us:only:1"), [("r1".to_owned(), true)]);
    for none in ["item:1", "eu:only:1", "eu:us:item:1"] {
        assert_eq!(told(none), [], "{none}");
    }
}

#[test]
fn widened_rules_say_why_and_each_reason_is_read_as_it_was_written() {
    let (rules, relation) = (rules(), relation());
    let trail = trail(&rules, &[""]);
    let mut bound = rules.bind(Binding::default());
    let mut set = rules.key_set();
    // Of the old version nothing but the identity is known (I5).
    let tuple = Tuple::from_values(&[Value::Text(b"1"), Value::Null]);
    let row = Row::Delete { old: OldTuple { kind: OldKind::Key, tuple } };
    bound.add(&Change { relation, row }, &mut set);
    commit(&trail, 10, &set);
    let [removal] = removals(&trail, "list:anything:1").try_into().unwrap();
    let [by] = removal.by.as_slice() else { panic!("{removal:?}") };
    assert_eq!(by.how, How::Pattern(name("list:*:*")));
    let widened: Vec<(&str, u64)> =
        by.widened.iter().map(|one| (one.reason.as_str(), one.count)).collect();
    assert_eq!(widened, [("replica_identity", 1)]);
    for (at, reason) in WidenReason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, at, "a body has the number");
    }
}

#[test]
fn a_transaction_that_comes_again_keeps_its_times_and_another_history_is_another() {
    let rules = rules();
    let trail = trail(&rules, &[""]);
    let set = keys(&rules, [("1", "a")]);
    for lsn in [10, 20] {
        commit(&trail, lsn, &set);
        gone(&trail, ONE, lsn);
    }
    let before = removals(&trail, "item:1");
    trail.begins("7/1");
    commit(&trail, 10, &set);
    commit(&trail, 15, &set);
    gone(&trail, ONE, 10);
    assert_eq!(lsns(&removals(&trail, "item:1")), ["0/F", "0/14", "0/A"]);
    assert_eq!(removals(&trail, "item:1")[1..], before);
    // A standby is promoted: LSNs may be lower, and are not those of before.
    trail.begins("7/2");
    commit(&trail, 10, &set);
    let latest: Vec<String> =
        trail.latest(9, false).into_iter().map(|one| one.transaction.lsn).collect();
    assert_eq!(latest, ["0/A", "0/14", "0/F", "0/A"]);
    gone(&trail, ONE, 10);
    let all = removals(&trail, "item:1");
    assert_eq!(lsns(&all), ["0/F", "0/A", "0/14", "0/A"]);
    assert_eq!(all[2..], before);
}

#[test]
fn sweeps_and_rules_without_room_are_told_for_what_they_could_produce() {
    let rules = rules();
    let trail = trail(&rules, &["", "us:"]);
    trail.sweeps(OTHER, ("watermark_missing", "it is"), None);
    let told = |key: &str| removals(&trail, key);
    assert_eq!(told("item:1"), [], "the other target's");
    let [sweep] = told("us:list:a:b").try_into().unwrap();
    assert_eq!((sweep.target.as_str(), sweep.removed), ("r1", None));
    assert!(matches!(&sweep.cause, Cause::Sweep { reason, .. } if reason == "watermark_missing"));
    assert_eq!(told("us:other:1"), []);
    trail.swept(ONE, false);
    trail.swept(OTHER, true);
    assert_eq!(told("us:item:1")[0], Removal { by: told("us:item:1")[0].by.clone(), ..sweep });
    trail.swept(OTHER, false);
    trail.swept(OTHER, true);
    let [sweep] = told("us:item:1").try_into().unwrap();
    assert!(sweep.removed.is_some() && sweep.removed_again >= sweep.removed);
    // Of some keys.
    trail.sweeps(ONE, ("rules_changed", "it is"), Some(&keys(&rules, [("1", "a")])));
    assert_eq!(lsns(&told("item:1")), ["sweep"]);
    assert_eq!(told("item:2"), []);
    for _ in 0..3 {
        trail.widened_for_room(&[(RuleId(1), 2), (RuleId(1), 1)]);
    }
    assert_eq!(lsns(&told("list:x:y")), ["room"], "it is told once");
    assert_eq!(told("item:2"), []);
}

/// I6: of one that has more keys than are remembered, the others may be it.
#[test]
fn a_large_transaction_costs_as_much_as_fits_and_is_told_with_doubt() {
    let rules = rules();
    let trail = trail(&rules, &[""]);
    let ids = 0..10_000;
    let set = keys(&rules, ids.map(|id| (format!("{id:0>60}"), "a")));
    commit(&trail, 10, &set);
    assert!(trail.used() < 80 * 1024, "{}", trail.used());
    let how = |key: String| {
        let all = removals(&trail, key);
        all.iter().map(|one| (one.by[0].how.clone(), one.by[0].keys)).collect::<Vec<_>>()
    };
    // Fields come before keys, and take all the room.
    assert_eq!(how(format!("item:{:0>60}", 7)), [(How::Perhaps, 10_000)]);
    assert_eq!(how("list:a:1".to_owned()), [(How::Pattern(name("list:a:*")), 0)]);
    assert_eq!(how("list:b:1".to_owned()), [], "all patterns are remembered");
    assert_eq!(how("other:1".to_owned()), []);
    let latest = trail.latest(1, true).remove(0);
    assert_eq!((latest.keys.len(), latest.rules[0].keys), (super::KEYS_MAX, 10_000));
}

/// I6: whatever comes, the budget holds, and the newest are remembered.
#[test]
fn what_is_remembered_stays_within_its_budget() {
    let rules = rules();
    let (small, large) = (
        keys(&rules, [("1", "a")]),
        keys(&rules, (0..3_000).map(|id| (format!("{id:0>900}"), "a"))),
    );
    for (prefixes, set, count, least) in [
        (&[""; 1][..], &small, 30_000, 5_000),
        (&[""; 8][..], &small, 9_000, 1_000),
        (&[""; 1][..], &large, 60, 10),
    ] {
        let trail = trail(&rules, prefixes);
        for lsn in 1..=count {
            commit(&trail, lsn, set);
            gone(&trail, ONE, lsn);
            trail.sweeps(ONE, ("gap", "it is"), Some(&large));
            assert!(trail.used() <= budget::TRAIL, "{} bytes", trail.used());
        }
        let latest = trail.latest(usize::MAX, false);
        assert!(latest.len() >= least, "{} of {count}", latest.len());
        assert_eq!(latest[0].transaction.lsn, Lsn(count).to_string());
        let since = trail.remembers_since();
        assert_eq!(since, latest.last().unwrap().transaction.received);
        let answer = find(&trail, "item:1");
        assert!(answer.more || answer.removals.is_empty(), "{}", answer.removals.len());
        assert!(answer.removals.len() <= super::TOLD_MAX);
    }
}

/// The time that this thread has had a processor, nanoseconds.
fn processor_time() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

/// P11: the cost of a commit, all that stages note of it, is a small part of what else it costs.
/// The code of this test is not optimized: a tenth is nearer.
#[test]
#[cfg(target_os = "linux")]
fn a_commit_costs_microseconds() {
    let rules = rules();
    let trail = trail(&rules, &[""]);
    let set = keys(&rules, [("1", "a")]);
    let (count, began) = (20_000, processor_time());
    for lsn in 1..=count {
        commit(&trail, lsn, &set);
        trail.visible(Lsn(lsn));
        gone(&trail, ONE, lsn);
        trail.held(ONE, lsn / 500, &[Lsn(lsn)], &[]);
        if lsn % 500 == 0 {
            trail.removed_again(ONE, [Waited::Hold(lsn / 500)].into_iter());
        }
    }
    let each = (processor_time() - began) / count;
    println!("{each} ns for each commit");
    assert!(each < 60_000, "{each} ns");
}

/// Those that are pushed out before their keys are gone are written all the same, if not with that.
#[tokio::test]
async fn the_trail_has_a_line_for_each_transaction_that_is_forgotten() {
    let rules = rules();
    let trail = trail(&rules, &[""]);
    let health = Arc::new(Health::new(Arc::new(Metrics::new(rules.names()))));
    let folder = tempfile::tempdir().unwrap();
    let file = Some(folder.path().join("audit"));
    let audit = Audit { file, max_bytes: 1 << 30, keep: 0 };
    let writer = trail.write_to(&audit, &health).unwrap().unwrap();
    let set = keys(&rules, [("1", "a"), ("2", "b")]);
    let count = 12_000;
    for lsn in 1..=count {
        commit(&trail, lsn, &set);
        if lsn % 2 == 0 {
            gone(&trail, ONE, lsn);
        }
        if lsn % 100 == 0 {
            // The queue is short, the disk of a test as slow as any.
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
    let forgotten = count - u64::try_from(trail.latest(usize::MAX, false).len()).unwrap();
    trail.close();
    writer.join().await;
    let lost = health.metrics().audit_lost.get();
    let known = trail.known();
    let read = read(&audit, &known, b"item:1").unwrap();
    assert_eq!((read.lines + lost, read.torn), (count / 2 + forgotten.div_ceil(2), 0));
    assert!(forgotten > 1_000 && lost < read.lines, "{forgotten} forgotten, {lost} lost");
    assert!(read.more && read.removals.len() == 20);
    let to_come = read.removals.iter().filter(|removal| removal.removed.is_none()).count();
    assert!(to_come > 0 || lost > 0, "{:?}", read.removals);
}

/// A reader amid rotations sees each line once, and none in the middle.
#[test]
fn a_reader_amid_rotations_misses_no_line() {
    let rules = rules();
    let known = trail(&rules, &[""]).known();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit");
    let audit = Audit { file: Some(path.clone()), max_bytes: 4_000, keep: 500 };
    let count = 4_000;
    let writer = std::thread::spawn(move || {
        let mut file = super::file::AuditFile::new(path, 4_000, 500);
        for number in 0..count {
            let patterns = vec![name(&format!("item:{number}"))];
            let event =
                super::AuditEvent::SweptByHand { target: "r0".to_owned(), patterns, removed: 1 };
            let line = super::Line { time: Moment::now(), event };
            let text = serde_json::to_string(&line).unwrap() + "\n";
            file.write(text.as_bytes()).unwrap();
        }
    });
    let (mut before, mut rounds) = (0, 0);
    while before < count {
        let read = read(&audit, &known, b"item:0").unwrap();
        assert!(read.lines >= before && read.torn <= 1, "{before} lines, then {read:?}");
        assert_eq!(read.removals.len(), usize::from(read.lines > 0));
        (before, rounds) = (read.lines, rounds + 1);
    }
    writer.join().unwrap();
    println!("{rounds} readings amid {} files", std::fs::read_dir(&folder).unwrap().count());
    assert!(rounds > 2);
}

/// Redis refused keys of one rule: those are owed, and nothing says that they are gone before.
#[test]
fn what_is_refused_is_owed_until_redis_takes_it() {
    let rules = rules();
    let trail = trail(&rules, &[""]);
    let set = keys(&rules, [("1", "a")]);
    commit(&trail, 10, &set);
    commit(&trail, 20, &set);
    let (list, hold) = (RuleId(1), 7);
    trail.refused(ONE, (list, hold), [Waited::Transaction(Lsn(20))].into_iter());
    gone(&trail, ONE, 10);
    gone(&trail, ONE, 20);
    trail.held(ONE, 3, &[Lsn(10), Lsn(20)], &[]);
    trail.removed_again(ONE, [Waited::Hold(3)].into_iter());
    let times = || trail.latest(9, false).into_iter().map(|one| one.targets[0].clone());
    let [owed, whole] = times().collect::<Vec<_>>().try_into().unwrap();
    assert!(whole.removed.is_some() && whole.refused.is_none() && whole.removed_again.is_some());
    assert!(owed.removed.is_none() && owed.refused.is_some() && owed.removed_again.is_none());
    let told = |key: &str| {
        let Removal { partly_refused, refused_gone, .. } = removals(&trail, key).remove(0);
        (partly_refused, refused_gone.is_some())
    };
    // Of another rule no key was refused.
    assert_eq!((told("list:a:1"), told("item:1")), ((true, false), (false, false)));
    // Redis takes them; the second removal of that comes with those of others.
    trail.removed(ONE, Took::default(), [Waited::Hold(hold)].into_iter());
    let taken = times().next().unwrap();
    assert!(taken.removed > whole.removed && taken.refused == owed.refused, "{taken:?}");
    assert_eq!(told("list:a:1"), (true, true));
    trail.held(ONE, 9, &[], &[hold]);
    trail.removed_again(ONE, [Waited::Hold(9)].into_iter());
    assert!(times().next().unwrap().removed_again >= taken.removed);
    // It is sent again, and nothing was done of it.
    trail.refused(ONE, (list, 8), [Waited::Transaction(Lsn(20))].into_iter());
    assert!(times().next().unwrap().removed.is_none());
    commit(&trail, 20, &set);
    let again = times().next().unwrap();
    assert_eq!((again.removed, again.refused), (None, None));
}
