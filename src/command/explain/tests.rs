//! Tests of how a change is explained.

use super::{
    Error, Explanation, Identity, Object, Operation, Question, Table, TableColumn, explain,
};
use crate::config::{self, Located, Location, LookupRows, Missing, Operations, Rule, TableName};
use crate::keys::Rules;

fn rule() -> Rule {
    Rule {
        at: Location { line: 12, column: 1, key: "rule.0".to_owned() },
        operations: Operations { insert: false, ..Operations::ALL },
        changed: vec![Located::for_tests("scored")],
        ..Rule::for_tests("predictions", &["p:{match_id}:{model}", "board:*"])
    }
}

fn rules() -> Rules {
    Rules::compile(&[rule()]).unwrap()
}

fn object(json: &str) -> Option<Object> {
    (!json.is_empty()).then(|| serde_json::from_str(json).unwrap())
}

fn ask(operation: &str, old: &str, new: &str) -> Result<String, Error> {
    let question = Question {
        table: TableName::for_tests("predictions"),
        operation: operation.parse()?,
        old: object(old),
        new: object(new),
        identity: vec!["match_id".to_owned()],
    };
    explain(&rules(), &question, None).map(shown)
}

/// The answer without what is noted of every one that no server was asked for.
fn shown(explanation: Explanation) -> String {
    Explanation { notes: Vec::new(), ..explanation }.to_string()
}

#[track_caller]
fn check(operation: &str, old: &str, new: &str, expected: &[&str]) {
    let answer = ask(operation, old, new).unwrap();
    let lines: Vec<&str> = answer.lines().map(str::trim_start).collect();
    assert_eq!(lines[0], "rule `predictions` (line 12)");
    assert_eq!(&lines[1..], expected);
}

#[test]
fn each_operation_is_explained() {
    let row = r#"{"match_id": 7, "model": "o'1", "scored": false}"#;
    let scored = r#"{"scored": true, "model": null}"#;
    check("insert", "", row, &["nothing  it does not look at insert"]);
    check(
        "delete",
        row,
        "",
        &["key      p:7:o'1  from `p:{match_id}:{model}`", "pattern  board:*"],
    );
    check(
        "update",
        row,
        scored,
        &["key      p:7:o'1  from `p:{match_id}:{model}`", "pattern  board:*"],
    );
    check("update", row, row, &["nothing  no column of `changed` differs"]);
    let truncated = [
        "pattern  p:*:*  from `p:{match_id}:{model}`",
        "pattern  board:*",
        "widened  truncate: every row is gone",
    ];
    check("truncate", "", "", &truncated);
}

#[test]
fn what_is_not_given_is_unknown() {
    let why = "widened  replica_identity: Postgres does not send an old value, so `*` stands for \
               it; set `replica identity full`, or declare the column `immutable` (column `model`)";
    let from = "from `p:{match_id}:{model}`";
    let [exact, pattern] =
        ["key      p:7:1.5", "pattern  p:7:*"].map(|one| format!("{one}  {from}"));
    let row = r#"{"match_id": 7, "model": 1.5, "scored": true}"#;
    let met = "changed  counts as met: Postgres does not send the old value, so that every UPDATE \
               counts; set `replica identity full`, and one that leaves it as it is removes \
               nothing (column `scored`)";
    check("update", "", row, &[&exact, &pattern, "pattern  board:*", why, met]);
    check("delete", r#"{"match_id": 7}"#, "", &[&pattern, "pattern  board:*", why]);
    let missing = "widened  missing_column: a column is not in the row (column `model`)";
    let new = r#"{"match_id": 7, "scored": true}"#;
    check("update", "", new, &[&pattern, "pattern  board:*", missing, met]);
}

#[test]
fn a_column_that_no_rule_reads_is_told_with_the_one_that_was_meant() {
    let row = r#"{"match_id": 7, "modle": "a", "colour": 1}"#;
    let answer = ask("delete", row, "").unwrap();
    let told = "\nunread     `colour`: no rule of `public.predictions` reads it\n\
                unread     `modle`: no rule of `public.predictions` reads it; did you mean \
                `model`?\n";
    assert!(answer.ends_with(told), "{answer}");
}

#[test]
fn a_column_that_the_table_has_not_is_told_with_the_option_that_names_it() {
    let question = |old: &str, identity: &str| Question {
        table: TableName::for_tests("predictions"),
        operation: Operation::Update,
        old: object(old),
        new: object(r#"{"model": 1}"#),
        identity: vec![identity.to_owned()],
    };
    let table = known(&[("match_id", 23), ("model", 25)], Identity::Full);
    assert_eq!(table.fits(&question(r#"{"model": 1}"#, "match_id"), false), Ok(()));
    for (question, said, hint) in [
        (question(r#"{"matchid": 1}"#, "match_id"), "read `--old`: ", "did you mean `match_id`?"),
        (question("", "x"), "read `--identity`: ", "its columns are `match_id`, `model`"),
    ] {
        let error = table.fits(&question, false).unwrap_err();
        assert!(error.to_string().starts_with(said), "{error}");
        assert!(error.to_string().contains("`public.predictions` has no column `"), "{error}");
        assert_eq!(error.hint().as_deref(), Some(hint));
    }
}

fn known(columns: &[(&str, u32)], identity: Identity) -> Table {
    let column = |(name, type_id): &(&str, u32)| TableColumn {
        name: (*name).to_owned(),
        type_id: *type_id,
        type_name: None,
    };
    Table { columns: columns.iter().map(column).collect(), identity }
}

/// Columns that the table's replica identity does not send are unknown, even if the question tells
/// them.
#[test]
fn of_the_old_row_there_is_what_the_replica_identity_sends() {
    let ask = |identity: &Identity, operation: &str, old: &str, new: &str| {
        let table = known(&[("match_id", 23), ("model", 25), ("scored", 16)], identity.clone());
        let question = Question {
            table: TableName::for_tests("predictions"),
            operation: operation.parse().unwrap(),
            old: object(old),
            new: object(new),
            identity: Vec::new(),
        };
        explain(&rules(), &question, Some(&table)).unwrap().to_string()
    };
    let row = r#"{"match_id": 7, "model": "a", "scored": "f"}"#;
    let key = Identity::Columns(vec!["match_id".to_owned()]);
    let whole = ask(&Identity::Full, "delete", row, "");
    assert!(whole.contains("key      p:7:a") && !whole.contains("note"), "{whole}");
    let cut = ask(&key, "delete", row, "");
    assert!(cut.contains("pattern  p:7:*") && !cut.contains("p:7:a"), "{cut}");
    let note = "note       of `--old` Postgres sends no `model`, `scored`: the replica identity is \
                `match_id`\n";
    assert!(cut.ends_with(note), "{cut}");
    // Nothing is sent of an old row whose identity stays, so `scored` may have changed.
    let update = ask(&key, "update", row, r#"{"scored": "f"}"#);
    assert!(update.contains("key      p:7:a") && update.contains("pattern  p:7:*"), "{update}");
    let moved = ask(&key, "update", row, r#"{"match_id": 8}"#);
    for part in ["key      p:8:a", "pattern  p:7:*"] {
        assert!(moved.contains(part), "{part}: {moved}");
    }
    let bare = ask(&Identity::Columns(Vec::new()), "delete", row, "");
    assert!(bare.contains("pattern  p:*:*") && bare.contains("refuses this statement"), "{bare}");
    let untold = ask(&Identity::Full, "update", "", row);
    let note = "note       Postgres sends the whole old row; `--old` does not tell `match_id`, \
                `model`, `scored`, which counts as unknown here\n";
    assert!(untold.ends_with(note), "{untold}");
}

/// Whoever asks whether an UPDATE counts reads that the table lets none pass, and the cure; not so
/// where a column differs for sure, or only the question does not tell.
#[test]
fn that_changed_counts_as_met_without_old_values_is_told() {
    let key = Identity::Columns(vec!["match_id".to_owned()]);
    let unsent = "\n  changed  counts as met: Postgres does not send the old value, so that every \
                  UPDATE counts; set `replica identity full`, and one that leaves it as it is \
                  removes nothing (column `scored`)\n";
    let untold = "\n  changed  counts as met in this answer alone: whether it differs is not told \
                  here; add it to `--old` and `--new` (column `scored`)\n";
    let row = r#"{"match_id": 7, "model": "a", "scored": "f"}"#;
    let scored = r#"{"match_id": 7, "model": "a", "scored": "t"}"#;
    for (identity, operation, old, new, told) in [
        (&key, "update", row, row, Some(unsent)),
        (&key, "update", row, scored, Some(unsent)),
        (&key, "delete", row, "", None),
        (&Identity::Full, "update", row, scored, None),
        (&Identity::Full, "update", "", row, Some(untold)),
        (&Identity::Full, "update", r#"{"match_id": 7}"#, r#"{"model": "a"}"#, Some(untold)),
    ] {
        let table = known(&[("match_id", 23), ("model", 25), ("scored", 16)], identity.clone());
        let question = Question {
            table: TableName::for_tests("predictions"),
            operation: operation.parse().unwrap(),
            old: object(old),
            new: object(new),
            identity: Vec::new(),
        };
        let said = explain(&rules(), &question, Some(&table)).unwrap().to_string();
        assert_eq!(said.contains("counts as met"), told.is_some(), "{old} {new}: {said}");
        assert!(said.contains(told.unwrap_or_default()), "{old} {new}: {said}");
    }
    // Of a column that never changes there is nothing to suppose.
    let mut fixed = rule();
    fixed.immutable = vec![Located::for_tests("scored")];
    fixed.changed.push(Located::for_tests("model"));
    let rules = Rules::compile(&[fixed]).unwrap();
    let question = Question {
        table: TableName::for_tests("predictions"),
        operation: Operation::Update,
        old: None,
        new: object(row),
        identity: vec!["match_id".to_owned()],
    };
    let said = shown(explain(&rules, &question, None).unwrap());
    assert!(said.contains("removes nothing (column `model`)\n"), "{said}");
}

/// The full identity is set already: what is not known here is a matter of the question alone.
#[test]
fn an_old_value_that_is_sent_and_not_told_has_no_cure_at_the_table() {
    let ask = |identity: &Identity, old: &str| {
        let table = known(&[("match_id", 23), ("model", 25), ("scored", 16)], identity.clone());
        let question = Question {
            table: TableName::for_tests("predictions"),
            operation: Operation::Delete,
            old: object(old),
            new: None,
            identity: Vec::new(),
        };
        explain(&rules(), &question, Some(&table)).unwrap().to_string()
    };
    let alone = "  widened  in this answer alone: an old value that Postgres sends is not told \
                 here; add it to `--old` (column `model`)\n";
    let said = ask(&Identity::Full, r#"{"match_id": 7}"#);
    assert!(said.contains(alone) && said.contains("pattern  p:7:*"), "{said}");
    assert!(!said.contains("set `replica identity full`"), "{said}");
    // Of two columns one is sent.
    let key = Identity::Columns(vec!["model".to_owned()]);
    let said = ask(&key, r#"{"scored": "t"}"#);
    assert!(said.contains(alone), "{said}");
    let unsent = "`replica identity full`, or declare the column `immutable` (column `match_id`)\n";
    assert!(said.contains(unsent), "{said}");
}

#[test]
fn a_table_is_not_refreshed() {
    let error = ask("refresh", "", "").unwrap_err();
    assert_eq!(error, Error::NotAView(TableName::for_tests("predictions")));
    let hint = "ask for `--op insert`, `update`, `delete` or `truncate`";
    assert_eq!(error.hint().as_deref(), Some(hint));
}

#[test]
fn without_the_table_it_is_said_what_is_supposed() {
    let question = |operation: &str, old: &str, new: &str| Question {
        table: TableName::for_tests("predictions"),
        operation: operation.parse().unwrap(),
        old: object(old),
        new: object(new),
        identity: Vec::new(),
    };
    for (question, notes) in [
        (question("truncate", "", ""), 0),
        (question("insert", "", "{}"), 1),
        (question("delete", "{}", ""), 2),
    ] {
        let answer = explain(&rules(), &question, None).unwrap();
        assert_eq!(answer.notes.len(), notes, "{:?}", answer.notes);
        let said = answer.to_string();
        assert_eq!(said.matches("\nnote       the table was not asked: ").count(), notes, "{said}");
    }
}

#[test]
fn a_question_without_sense_has_no_answer() {
    let missing = ask("delete", "", "").unwrap_err();
    assert_eq!(missing.to_string(), "explain `delete`: its old row is not given");
    assert_eq!(missing.hint().as_deref(), Some("add `--old JSON`"));
    let extra = ask("insert", "{}", "{}").unwrap_err();
    assert_eq!(extra, Error::ExtraRow { operation: Operation::Insert, version: "old" });
    let nested = ask("delete", r#"{"model": [1]}"#, "").unwrap_err();
    assert_eq!(nested, Error::Nested("model".to_owned()));
    assert!(matches!(ask("upsert", "", ""), Err(Error::UnknownOperation(_))));
}

#[test]
fn a_table_without_rules_is_told_with_those_that_have_some() {
    let question = Question {
        table: TableName::for_tests("other"),
        operation: Operation::Truncate,
        old: None,
        new: None,
        identity: Vec::new(),
    };
    let answer = shown(explain(&rules(), &question, None).unwrap());
    assert_eq!(answer, "no rule looks at `public.other`; rules look at `public.predictions`\n");
    let near = Question { table: TableName::for_tests("prediction"), ..question };
    let answer = shown(explain(&rules(), &near, None).unwrap());
    assert!(answer.ends_with("; did you mean `public.predictions`?\n"), "{answer}");
}

/// Rows are not read here, so it says what becomes of each number of them.
#[test]
fn a_lookup_says_what_becomes_of_its_rows() {
    for (rows, missing, said) in [
        (LookupRows::One, Missing::Widen, ""),
        (LookupRows::One, Missing::Skip, " (no row gives no key)"),
        (
            LookupRows::Many,
            Missing::Widen,
            " (each row gives its keys, none gives none, more than 7 widen)",
        ),
    ] {
        let lookup = config::Lookup {
            name: "team".to_owned(),
            at: Location::default(),
            sql: Located::for_tests("select"),
            params: vec![Located::for_tests("id")],
            cache: 0,
            rows,
            limit: 7,
            missing,
        };
        let mut rule = rule();
        rule.keys = vec![Located::for_tests("k:{team.x}")];
        let rules = Rules::with_lookups(&[rule], &[lookup]).unwrap();
        let question = Question {
            table: TableName::for_tests("predictions"),
            operation: Operation::Delete,
            old: object(r#"{"id": 5}"#),
            new: None,
            identity: Vec::new(),
        };
        let answer = shown(explain(&rules, &question, None).unwrap());
        let expected = format!("  lookup   k:{{team.x}}, team: id = 5{said}");
        assert_eq!(answer.lines().nth(1), Some(&*expected));
    }
}
