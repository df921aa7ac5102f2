//! Keys that wait for rows: within a limit, and never lost.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::rows::ANSWER_TIMEOUT;
use super::{Lookups, Rows, Waiting};
use crate::channel::channel;
use crate::config::{self, Located, Location};
use crate::decode::{Column, Relation, ReplicaIdentity, Tuple, Value};
use crate::gather::{Change, Row, Transaction};
use crate::keys::{Answers, Binding, Found, RuleId, Rules, WidenReason};
use crate::lsn::Lsn;
use crate::postgres::{Endpoint, History};
use crate::settle::{Cause, Gated, Visible};
use crate::telemetry::Health;
use crate::telemetry::health_tests::Log;
use crate::telemetry::metrics::Metrics;

/// One rule, whose key needs a row by column `name`.
fn rules() -> Rules {
    rules_of(&[("r", "t", "k:{team.x}")], &["team"])
}

/// Rules by name, table and key, and lookups that are asked by column `name`.
fn rules_of(rules: &[(&str, &str, &str)], lookups: &[&str]) -> Rules {
    let rule = |(name, table, key): &(&str, &str, &str)| config::Rule {
        name: (*name).to_owned(),
        ..config::Rule::for_tests(table, &[key])
    };
    let lookup = |name: &&str| config::Lookup {
        name: (*name).to_owned(),
        at: Location::default(),
        sql: Located::for_tests("by name"),
        params: vec![Located::for_tests("name")],
        cache: 0,
        rows: config::LookupRows::One,
        limit: 1_000,
        missing: config::Missing::Widen,
    };
    let rules: Vec<_> = rules.iter().map(rule).collect();
    let lookups: Vec<_> = lookups.iter().map(lookup).collect();
    Rules::with_lookups(&rules, &lookups).unwrap()
}

/// Keys that wait for this many rows, each by a name of a kilobyte.
fn waiting(rules: &Rules, count: usize) -> Gated {
    waiting_for(rules, &["t"], count)
}

/// Like [`waiting`], for rows of several tables.
fn waiting_for(rules: &Rules, tables: &[&str], count: usize) -> Gated {
    let (mut keys, mut bound) = (rules.key_set(), rules.bind(Binding::default()));
    for table in tables {
        let (name, type_id) = ("name".to_owned(), 25);
        let relation = Arc::new(Relation {
            id: 1,
            namespace: "public".to_owned(),
            name: (*table).to_owned(),
            replica_identity: ReplicaIdentity::Default,
            columns: vec![Column { is_key: true, name, type_id, type_modifier: -1 }],
        });
        for number in 0..count {
            let name = format!("{number:01000}");
            let new = Tuple::from_values(&[Value::Text(name.as_bytes())]);
            let row = Row::Insert { new };
            bound.add(&Change { relation: Arc::clone(&relation), row }, &mut keys);
        }
    }
    Gated::for_tests(Cause::Resync { last: true }, keys)
}

/// I6: beyond the limit nothing waits, and a round gives back what it held.
#[test]
fn what_waits_is_bounded_and_makes_room_again() {
    let (rules, metrics) = (rules(), Metrics::new(&["r".to_owned()]));
    let mut held = Waiting::new(1, 1);
    for _ in 0..3 {
        let count = (0..100).take_while(|_| held.take(waiting(&rules, 1_000), &metrics).is_none());
        let count = count.count();
        assert!((2..=4).contains(&count), "{count} sets of 1 MB and more wait");
        let wide = held.take(waiting(&rules, 1_000), &metrics).expect("there is no room");
        let (_, keys, _) = wide.into_parts();
        assert!(keys.has_patterns() && keys.exact_len() == 0, "{keys:?}");
        assert_eq!(keys.widened().next(), Some((RuleId(0), WidenReason::Limit, 1)));
        let (ids, wanted, _) = held.begin(0);
        assert_eq!(wanted.len(), 1_000, "each row once");
        let none = (Answers::default(), Answers::default());
        assert_eq!(held.end(0, &ids, none, &metrics).len(), count);
    }
}

/// One that is behind a lock fills what it is given, and widens no key of another.
#[test]
fn a_lookup_that_does_not_answer_leaves_room_for_each_other() {
    let names = ["city", "team", "user"];
    let tables = [("c", "c", "c:{city.x}"), ("t", "t", "t:{team.x}"), ("u", "u", "u:{user.x}")];
    let (rules, metrics) = (rules_of(&tables, &names), Metrics::new(&["c".to_owned()]));
    for sessions in [3, 1] {
        let mut held = Waiting::new(sessions, names.len());
        // What waits for both is kept for the one that does not answer.
        assert!(held.take(waiting_for(&rules, &["c", "t"], 25), &metrics).is_none());
        if sessions == 3 {
            let (ids, ..) = held.begin(1);
            let none = (Answers::default(), Answers::default());
            assert!(held.end(1, &ids, none, &metrics).is_empty());
        }
        let mut fill = |table: &str, rows: usize| {
            let mut takes = || held.take(waiting_for(&rules, &[table], rows), &metrics).is_none();
            (0..1_000).take_while(|_| takes()).count()
        };
        let of_first = fill("c", 25);
        // To the last: else the next has what is left of the room that is nobody's.
        fill("c", 1);
        let counts = [of_first, fill("t", 25), fill("u", 25)];
        assert!((40..200).contains(&counts[0]), "{sessions}: {counts:?} sets of 25 kB and more");
        assert!(counts[1..].iter().all(|count| (8..40).contains(count)), "{sessions}: {counts:?}");
        // Who has answered is not charged for what waits for another.
        assert_eq!(counts[1] == counts[2], sessions == 3, "{sessions}: {counts:?}");
    }
}

/// Where nobody looks rows up, keys that wait are not lost.
#[test]
fn what_nobody_looks_up_widens() {
    let gated = waiting(&rules(), 1);
    assert!(gated.keys.has_pending());
    let (_, keys, _) = Visible::from(gated).into_parts();
    let patterns: Vec<&[u8]> = keys.patterns().map(|(_, pattern)| pattern.as_bytes()).collect();
    assert_eq!(patterns, [b"k:*"]);
}

/// Keys that wait for rows go in time, whatever became of the server.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_is_not_waited_for() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("postgres://u@127.0.0.1:{port}/d?sslmode=disable&connect_timeout=1");
    let rules = rules();
    let wanted: Vec<_> = waiting(&rules, 2).keys.wanted().into_iter().collect();
    let server = History { system_id: "7".to_owned(), timeline: 1 };
    let health = Arc::new(Health::new(Arc::new(Metrics::new(&[]))));
    let endpoint = Endpoint::parse(&url).unwrap();
    let mut rows = Rows::new(endpoint, server, rules.lookups(), Arc::clone(&health));
    let began = Instant::now();
    let found = timeout(Duration::from_secs(600), rows.find(wanted.clone()));
    let answers = LocalSet::new().run_until(found).await.expect("it ends");
    assert!(began.elapsed() <= ANSWER_TIMEOUT + Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(!wanted.iter().any(|one| answers.knows(one)));
    assert!(health.readiness().1.contains("lookup `team` fails"), "{:?}", health.readiness());
}

/// A lookup that is over what failed is judged in a round without questions.
#[tokio::test(start_paused = true)]
async fn a_round_that_asks_nothing_makes_no_session() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("postgres://u@127.0.0.1:{port}/d?sslmode=disable&connect_timeout=1");
    let server = History { system_id: "7".to_owned(), timeline: 1 };
    let health = Arc::new(Health::new(Arc::new(Metrics::new(&[]))));
    let endpoint = Endpoint::parse(&url).unwrap();
    let mut rows = Rows::new(endpoint, server, rules().lookups(), health);
    let began = Instant::now();
    LocalSet::new().run_until(rows.find(Vec::new())).await;
    assert_eq!((began.elapsed(), rows.losses()), (Duration::ZERO, 0));
}

/// One bound for all, whenever they come: what comes while others are asked for waits no longer.
#[tokio::test(start_paused = true)]
async fn keys_that_come_in_the_midst_of_a_round_wait_no_longer_than_others() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("postgres://u@127.0.0.1:{port}/d?sslmode=disable");
    let rules = rules();
    let health = Arc::new(Health::new(Arc::new(Metrics::new(&["r".to_owned()]))));
    let endpoint = Endpoint::parse(&url).unwrap();
    let rows = Rows::new(
        endpoint,
        History { system_id: "7".to_owned(), timeline: 1 },
        rules.lookups(),
        Arc::clone(&health),
    );
    let (inputs, received) = channel(64);
    let (outputs, mut passed) = channel(64);
    let step = Duration::from_millis(400);
    let began = Instant::now();
    let sending = async {
        for number in 0..20 {
            sleep_until(began + step * number).await;
            inputs.send(waiting(&rules, 1)).await.unwrap();
        }
    };
    let receiving = async {
        let mut late: Vec<Duration> = Vec::new();
        for number in 0_u32..20 {
            let visible: Visible = passed.recv().await.unwrap();
            assert!(!visible.keys.has_pending());
            late.push(began.elapsed() - step * number);
        }
        late
    };
    let test = async {
        tokio::task::spawn_local(Lookups::new(rows, None).run(received, outputs));
        tokio::join!(sending, receiving).1
    };
    let late = LocalSet::new().run_until(test).await;
    assert!(
        late.iter().all(|late| *late <= ANSWER_TIMEOUT + Duration::from_millis(50)),
        "{late:?}"
    );
}

/// Whether the lookup works again the next session finds out.
#[tokio::test(start_paused = true)]
async fn with_the_session_a_lookup_that_fails_is_taken_back_and_not_told_as_resolved() {
    let (log, _guard) = Log::start();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("postgres://u@127.0.0.1:{port}/d?sslmode=disable");
    let rules = rules();
    let health = Arc::new(Health::new(Arc::new(Metrics::new(&["r".to_owned()]))));
    let server = History { system_id: "7".to_owned(), timeline: 1 };
    let endpoint = Endpoint::parse(&url).unwrap();
    let rows = Rows::new(endpoint, server, rules.lookups(), Arc::clone(&health));
    let test = async {
        let (inputs, received) = channel(64);
        let (outputs, mut passed) = channel(64);
        tokio::task::spawn_local(Lookups::new(rows, None).run(received, outputs));
        inputs.send(waiting(&rules, 1)).await.unwrap();
        assert!(passed.recv().await.is_some());
        assert!(health.readiness().1.contains("lookup `team` fails"), "{:?}", health.readiness());
    };
    LocalSet::new().run_until(test).await;
    assert!(!health.readiness().1.contains("lookup"), "{:?}", health.readiness());
    let lines = log.lines().concat();
    assert!(lines.contains("lookup `team` fails") && !lines.contains("resolved"), "{lines}");
}

/// Rows that are read ahead of a transaction's commit are for nobody else, even if they never
/// serve.
#[test]
fn nothing_is_noted_for_a_transaction_that_has_passed() {
    let (rules, metrics) = (rules(), Metrics::new(&["r".to_owned()]));
    let mut held = Waiting::new(1, 1);
    let of = |cause: Cause, rules: &Rules| {
        let keys = waiting(rules, 1).keys;
        Gated::for_tests(cause, keys)
    };
    let transaction = Transaction { xid: 5, commit_lsn: Lsn(1), end_lsn: Lsn(2), commit_time: 0 };
    let commit = |rules: &Rules| of(Cause::Transaction(transaction), rules);
    assert!(held.take(of(Cause::Early(5), &rules), &metrics).is_none());
    let (ids, wanted, _) = held.begin(0);
    // The commit passes by what the cache knows, and then the round ends.
    let mut read = Answers::default();
    wanted.iter().for_each(|one| read.insert(one.clone(), Found::row(&[Some("x")])));
    held.resolved(commit(&rules), &read, &metrics);
    assert!(held.end(0, &ids, (Answers::default(), read), &metrics).is_empty());
    assert!(held.is_empty());
    // Long afterwards another transaction has the same 32 bits.
    assert!(held.known(None, &commit(&rules)).is_none());
}
