//! `when`: which changes a condition lets through, in the stream of a real server.

use crate::support::{Bed, Settings, Sidecar, text};

const PREDICTION: &str = "create table prediction (id int primary key, match_id int not null, \
                          status text, points int, note text);";

/// A rule for `prediction`.
fn rule(when: &str, more: &str) -> String {
    format!(
        "[[rule]]\nname = \"scores\"\ntable = \"public.prediction\"\nwhen = \"{when}\"\n{more}\n\
         immutable = [\"match_id\"]\nkeys = [\"board:{{match_id}}\"]\n"
    )
}

async fn sidecar(bed: &Bed, rules: &str) -> Sidecar {
    Sidecar::set_up(Settings::new(&bed.postgres, &bed.redis, rules)).await
}

/// Sets a sidecar up for a table that is altered: all its columns are published, since a listed one
/// could not be altered, and it is not watched, since what is altered would be swept.
async fn sidecar_unwatched(bed: &Bed, rules: &str) -> Sidecar {
    bed.sql.run("create publication walsweep for table prediction").await;
    let env = vec![("WALSWEEP_TEST_UNWATCHED".to_owned(), "1".to_owned())];
    Sidecar::set_up(Settings { env, ..Settings::new(&bed.postgres, &bed.redis, rules) }).await
}

/// Runs statements and tells whether the key of match 7 is gone when all is confirmed.
async fn removes(bed: &Bed, statements: &str) -> bool {
    bed.fill(&["board:7", "board:8"]).await;
    bed.sql.run(statements).await;
    bed.settled().await;
    !bed.has("board:7").await
}

async fn hold(bed: &Bed, rows: &[(&str, bool)]) {
    for (statements, expected) in rows {
        assert_eq!(removes(bed, statements).await, *expected, "{statements}");
    }
}

#[tokio::test]
async fn an_unscored_prediction_removes_nothing_and_a_scored_one_does() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(PREDICTION).await;
    bed.sql.run("alter table prediction replica identity full").await;
    let when = "op == 'delete' ? old.status == 'scored' : new.status == 'scored'";
    let sidecar = sidecar(&bed, &rule(when, "")).await;
    let rows = [
        ("insert into prediction values (1, 7, 'open')", false),
        ("insert into prediction values (2, 7, null)", false),
        ("insert into prediction values (3, 7, 'scored')", true),
        ("update prediction set points = 1 where id = 1", false),
        ("update prediction set status = 'scored' where id = 1", true),
        ("update prediction set status = null where id = 1", false),
        ("delete from prediction where id = 2", false),
        ("delete from prediction where id = 3", true),
        (
            "begin; insert into prediction values (4, 8, 'scored'); \
          insert into prediction values (5, 7, 'open'); commit",
            false,
        ),
        (
            "begin; insert into prediction select id, 7, 'open' from generate_series(10, 99) id; \
          update prediction set status = 'scored' where id = 50; commit",
            true,
        ),
        // There is no row, so that nothing is known.
        ("truncate prediction", true),
    ];
    hold(&bed, &rows).await;
    let unknown = "walsweep_widened_total{rule=\"scores\",reason=\"condition_unknown\"}";
    assert!((sidecar.metric(unknown).await - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn changed_and_operations_and_when_all_have_to_hold() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(PREDICTION).await;
    bed.sql.run("alter table prediction replica identity full").await;
    let more = "operations = [\"insert\", \"update\"]\nchanged = [\"points\"]";
    let _sidecar = sidecar(&bed, &rule("new.points > old.points || old == null", more)).await;
    let rows = [
        ("insert into prediction values (1, 7, 'open', 9)", true),
        ("update prediction set points = 10 where id = 1", true),
        ("update prediction set points = 9 where id = 1", false),
        ("update prediction set status = 'x' where id = 1", false),
        ("delete from prediction where id = 1", false),
        ("truncate prediction", false),
    ];
    hold(&bed, &rows).await;
}

/// I5: what the default identity does not send is unknown, and counts only where it decides.
#[tokio::test]
async fn the_default_identity_leaves_old_values_unknown_and_check_says_so() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(PREDICTION).await;
    let when = "new.status == 'scored' && old.status != 'scored'";
    let sidecar = sidecar(&bed, &rule(when, "operations = [\"update\", \"delete\"]")).await;
    let output = sidecar.command(&["check"]);
    assert!(output.status.success(), "{}", text(&output));
    for part in
        ["rule.0.when: ", "`status` is not in the replica identity", "replica identity full"]
    {
        assert!(text(&output).contains(part), "{part}\n{}", text(&output));
    }
    bed.sql.run("insert into prediction values (1, 7, 'open')").await;
    let rows = [
        ("update prediction set points = 1 where id = 1", false),
        ("update prediction set status = 'scored' where id = 1", true),
        ("update prediction set points = 2 where id = 1", true),
        ("delete from prediction where id = 1", true),
    ];
    hold(&bed, &rows).await;
}

#[tokio::test]
async fn an_unchanged_toast_value_is_unknown_unless_the_old_row_has_it() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(PREDICTION).await;
    bed.sql.run("alter table prediction alter note set storage external").await;
    bed.sql.run("insert into prediction values (1, 7, 'open', 1, repeat('x', 10000))").await;
    let when = "new.note.startsWith('y') && new.status == 'scored'";
    let _sidecar = sidecar_unwatched(&bed, &rule(when, "operations = [\"update\"]")).await;
    let rows = [
        ("update prediction set points = 2 where id = 1", false),
        ("update prediction set status = 'scored' where id = 1", true),
        (
            "alter table prediction replica identity full; \
          update prediction set points = 3 where id = 1",
            false,
        ),
        ("update prediction set note = repeat('y', 10000) where id = 1", true),
        ("update prediction set points = 4 where id = 1", true),
    ];
    hold(&bed, &rows).await;
}

/// A column, its type, its value, a condition that is true and one that is not.
const TYPES: [(&str, &str, &str, &str); 23] = [
    ("smallint", "-7", "new.c == -7", "new.c > -7"),
    ("int", "10", "new.c > 9", "new.c < 9"),
    ("bigint", "9007199254740993", "new.c == 9007199254740993", "new.c == 9007199254740992"),
    ("oid", "4294967295", "new.c == 4294967295", "new.c < 0"),
    ("boolean", "true", "new.c", "!new.c"),
    ("real", "0.1", "new.c == 0.1", "new.c > 1"),
    ("double precision", "1e300", "new.c > 1e299", "new.c < 1"),
    ("numeric", "10.50000000000000000001", "new.c > 10.5", "new.c == 10.5"),
    ("numeric(10,2)", "10", "new.c == 10", "new.c != 10"),
    ("text", "it''s ø", "new.c == \"it's ø\"", "new.c == ''"),
    ("varchar(9)", "ab", "new.c.endsWith('b')", "new.c.contains('c')"),
    ("char(9)", "ab", "new.c == 'ab'", "new.c != 'ab'"),
    ("\"char\"", "x", "new.c == 'x'", "new.c == 'y'"),
    ("name", "n", "size(new.c) == 1", "size(new.c) == 63"),
    (
        "uuid",
        "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
        "new.c == 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
        "new.c == ''",
    ),
    (
        "timestamptz",
        "2026-07-19 20:00:00+02",
        "new.c == timestamp('2026-07-19T18:00:00Z')",
        "new.c < timestamp('2026-07-19T18:00:00Z')",
    ),
    (
        "timestamp",
        "2026-07-19 18:00:00.000001",
        "new.c > timestamp('2026-07-19T18:00:00Z')",
        "new.c == timestamp('2026-07-19T18:00:00Z')",
    ),
    (
        "date",
        "2026-07-19",
        "new.c == timestamp('2026-07-19T00:00:00Z')",
        "new.c > timestamp('2026-07-19T00:00:00Z')",
    ),
    ("jsonb", "{\"k\":1}", "new.c == '{\"k\": 1}'", "new.c == '{}'"),
    ("int[]", "{1,2}", "new.c == '{1,2}'", "new.c in ['{}', '{1}']"),
    ("bytea", "ab", "new.c == '\\\\x6162'", "new.c == 'ab'"),
    ("mood", "happy", "new.c == 'happy'", "new.c != 'happy'"),
    // As a text `9` would be greater.
    ("score", "10", "new.c > 9", "new.c < 9"),
];

#[tokio::test]
async fn every_type_is_what_its_column_says() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create type mood as enum ('sad', 'happy'); create domain points as int;
             create domain score as points check (value >= 0)",
        )
        .await;
    let mut rules = String::new();
    let (mut yes, mut no) = (Vec::new(), Vec::new());
    for (number, (kind, _, is, is_not)) in TYPES.iter().enumerate() {
        bed.sql.run(&format!("create table t{number} (c {kind})")).await;
        for (name, when, keys) in [("yes", is, &mut yes), ("no", is_not, &mut no)] {
            rules += &format!(
                "[[rule]]\nname = \"{name}-{number}\"\ntable = \"public.t{number}\"\n\
                 operations = [\"insert\"]\nwhen = '''{when}'''\nkeys = [\"{name}:{number}\"]\n"
            );
            keys.push(format!("{name}:{number}"));
        }
    }
    let sidecar = sidecar(&bed, &rules).await;
    let fill: Vec<&str> = yes.iter().chain(&no).map(String::as_str).collect();
    bed.fill(&fill).await;
    for (number, (_, value, ..)) in TYPES.iter().enumerate() {
        bed.sql.run(&format!("insert into t{number} values ('{value}')")).await;
    }
    bed.settled().await;
    for (number, (kind, ..)) in TYPES.iter().enumerate() {
        assert!(!bed.has(&yes[number]).await, "{kind}: a true condition removed nothing");
        assert!(bed.has(&no[number]).await, "{kind}: a false condition removed its key");
    }
    // NULL is equal to nothing, and no type makes it a failure to ask.
    bed.fill(&fill).await;
    bed.sql.run("insert into t1 values (null); insert into t9 values (null)").await;
    bed.settled().await;
    assert!(bed.has("yes:9").await);
    sidecar.wait_log("cannot be evaluated").await;
}

/// I9: what fails is told once, without the value.
#[tokio::test]
async fn a_condition_that_fails_counts_as_true_and_is_told_once() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(PREDICTION).await;
    let rules =
        rule("100 / new.points > 4711 && new.note != 'secret'", "operations = [\"insert\"]");
    let sidecar = sidecar(&bed, &rules).await;
    let rows = [
        ("insert into prediction values (1, 7, '', 1, 'secret')", false),
        ("insert into prediction values (2, 7, '', 0, 'secret')", false),
        ("insert into prediction values (3, 7, '', 0, 'confidential')", true),
        ("insert into prediction values (4, 7, '', null, 'confidential')", true),
    ];
    hold(&bed, &rows).await;
    let failed = "walsweep_widened_total{rule=\"scores\",reason=\"condition_failed\"}";
    assert!((sidecar.metric(failed).await - 2.0).abs() < 0.1);
    let told: Vec<String> =
        sidecar.log().into_iter().filter(|line| line.contains("cannot be evaluated")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("scores") && told[0].contains("division by zero"), "{told:?}");
    assert!(sidecar.log().iter().all(|line| !line.contains("confidential")), "{told:?}");
}

#[tokio::test]
async fn what_does_not_fit_the_table_is_refused_before_the_start() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(PREDICTION).await;
    let rules = rule("new.statuss == 'x' || new.points == '5' || new.points > 'x'", "");
    let mut sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    let output = sidecar.command(&["check"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    for part in [
        "has no column `statuss`",
        "did you mean `status`",
        "rule.0.when: an integer is compared with a text",
        "write a number without quotes",
    ] {
        assert!(text(&output).contains(part), "{part}\n{}", text(&output));
    }
    assert_eq!(text(&output).matches("is compared with").count(), 2, "{}", text(&output));
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
}

/// The rule goes on when the type of its column is changed under it: rather a key too many.
#[tokio::test]
async fn a_column_that_changes_its_type_does_not_silence_the_rule() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(PREDICTION).await;
    let rules = rule("new.points == 5", "operations = [\"insert\"]");
    let _sidecar = sidecar_unwatched(&bed, &rules).await;
    let rows = [
        ("insert into prediction values (1, 7, '', 4)", false),
        ("insert into prediction values (2, 7, '', 5)", true),
        ("alter table prediction alter points type text", false),
        ("insert into prediction values (3, 7, '', '5')", true),
        ("alter table prediction alter points type numeric using points::numeric", false),
        ("insert into prediction values (4, 7, '', 5.00)", true),
        ("insert into prediction values (5, 7, '', 4.99)", false),
        ("alter table prediction drop points", false),
        ("insert into prediction values (6, 7, '')", true),
    ];
    hold(&bed, &rows).await;
}

#[tokio::test]
async fn explain_says_that_the_condition_is_false() {
    let bed = Bed::new(&[]).await;
    let when = "new.status == 'scored' && new.points > 2";
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rule(when, "")));
    let explain = |new: &str| {
        text(&sidecar.command(&[
            "explain",
            "prediction",
            "--op",
            "insert",
            "--new",
            new,
            "--offline",
        ]))
    };
    let scored = explain(r#"{"match_id": 7, "status": "scored", "points": 3}"#);
    assert!(scored.contains("board:7"), "{scored}");
    let open = explain(r#"{"match_id": 7, "status": "open", "points": 3}"#);
    assert!(open.contains("its `when` is false") && !open.contains("board:7"), "{open}");
    let unknown = explain(r#"{"match_id": 7, "status": "scored"}"#);
    assert!(unknown.contains("board:7") && unknown.contains("condition_unknown"), "{unknown}");
    let failed = explain(r#"{"match_id": 7, "status": "scored", "points": null}"#);
    assert!(failed.contains("board:7") && failed.contains("condition_failed"), "{failed}");
}
