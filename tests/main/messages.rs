//! Rules of messages: what `pg_logical_emit_message` names goes, within what its rule names.

use std::time::Duration;

use crate::support::{Bed, ITEM_RULES, PATIENCE, Settings, Sidecar, always, eventually};
use crate::visibility::{GHOST, release, stuck};

const RULES: &str = r#"
[[rule]]
name = "app"
message = "app"
keys = ["app:*", "catalog"]
"#;

const KEYS: [&str; 7] = ["app:1", "app:2", "app:x:1", "app:x:2", "app:*", "catalog", "other"];

const MALFORMED: &str = "walsweep_messages_malformed_total";

async fn bed() -> (Bed, Sidecar) {
    let bed = Bed::new(&[]).await;
    let settings = Settings { rules: format!("{ITEM_RULES}{RULES}"), ..bed.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    (bed, sidecar)
}

/// Runs statements, and holds which keys are gone when all of it is confirmed.
async fn check(bed: &Bed, statements: &str, gone: &[&str]) {
    bed.fill(&KEYS).await;
    bed.sql.run(statements).await;
    bed.settled().await;
    for key in KEYS {
        assert_eq!(bed.has(key).await, !gone.contains(&key), "{key} after {statements}");
    }
}

fn message(content: &str) -> String {
    format!("select pg_logical_emit_message(true, 'app', '{content}')")
}

#[tokio::test]
async fn a_message_removes_what_it_names() {
    let (bed, sidecar) = bed().await;
    let all: &[&str] = &["app:1", "app:2", "app:x:1", "app:x:2", "app:*", "catalog"];
    check(&bed, &message(""), all).await;
    check(&bed, &message(r#"{"keys": ["app:1", "catalog"]}"#), &["app:1", "catalog"]).await;
    // I4: a key is literal.
    check(&bed, &message(r#"{"keys": ["app:*"]}"#), &["app:*"]).await;
    check(&bed, &message(r#"{"patterns": ["app:\\*"]}"#), &["app:*"]).await;
    let both = r#"{"keys": ["app:2"], "patterns": ["app:x:?", "catalog"]}"#;
    check(&bed, &message(both), &["app:2", "app:x:1", "app:x:2", "catalog"]).await;
    check(&bed, &message(r#"{"keys": []}"#), &[]).await;
    check(&bed, "select pg_logical_emit_message(true, 'apps', '')", &[]).await;
    // I6: what is too long to read counts as all of it.
    let large = "select pg_logical_emit_message(true, 'app', repeat(' ', 1048577))";
    check(&bed, large, all).await;
    let count = sidecar.metric(r#"walsweep_changes_total{operation="message"}"#).await;
    assert_eq!(count.to_string(), "7");
    let widened = r#"walsweep_widened_total{rule="app",reason="limit"}"#;
    assert_eq!(sidecar.metric(widened).await.to_string(), "2");
    sidecar.assert_quiet(&["watermark_missing"]);
}

/// I9: not a word of the content is logged.
#[tokio::test]
async fn what_is_malformed_is_counted_and_harmless() {
    let (bed, sidecar) = bed().await;
    let rows = [
        ("not_json", message("secret")),
        ("not_json", message(r#"["secret"]"#)),
        ("not_json", message(r#"{"keys": "secret"}"#)),
        ("not_json", message(r#"{"keys": ["app:1", 7], "secret": 1}"#)),
        ("not_json", r"select pg_logical_emit_message(true, 'app', '\xff00'::bytea)".to_owned()),
        ("not_covered", message(r#"{"keys": ["app:1", "other"]}"#)),
        ("not_covered", message(r#"{"keys": [""]}"#)),
        ("not_covered", message(r#"{"patterns": ["app:1", "*"]}"#)),
        ("not_covered", message(r#"{"patterns": ["app*"]}"#)),
        ("not_covered", message(r#"{"patterns": ["cata*"]}"#)),
        ("not_transactional", "select pg_logical_emit_message(false, 'app', '')".to_owned()),
    ];
    for (at, (_, statement)) in rows.iter().enumerate() {
        check(&bed, statement, &[]).await;
        let counted = || async { sidecar.metric_sum(MALFORMED).await > at as f64 };
        eventually(PATIENCE, statement, counted).await;
    }
    for (reason, count) in [("not_json", "5"), ("not_covered", "5"), ("not_transactional", "1")] {
        let name = format!("{MALFORMED}{{reason=\"{reason}\"}}");
        assert_eq!(sidecar.metric(&name).await.to_string(), count, "{reason}");
    }
    check(&bed, &message(r#"{"keys": ["app:1"]}"#), &["app:1"]).await;
    sidecar.wait_log("a message removes nothing").await;
    // Of each reason, however many there are of another.
    for reason in ["not_json", "not_covered", "not_transactional"] {
        sidecar.wait_log(&format!("reason=\"{reason}\"")).await;
    }
    assert!(!sidecar.log().iter().any(|line| line.contains("secret")), "content in the log");
}

#[tokio::test]
async fn a_message_is_part_of_its_transaction() {
    let (bed, _sidecar) = bed().await;
    let one = message(r#"{"keys": ["app:1"]}"#);
    let two = message(r#"{"keys": ["app:2"]}"#);
    check(&bed, &format!("begin; {one}; rollback"), &[]).await;
    check(&bed, &format!("begin; savepoint s; {one}; rollback to s; {two}; commit"), &["app:2"])
        .await;
    bed.sql
        .run(
            "create function tell() returns trigger language plpgsql as $$ begin
                 perform pg_logical_emit_message(true, 'app',
                     json_build_object('keys', json_build_array('app:' || new.id))::text);
                 return null;
             end $$;
             create trigger tell after update on item for each row execute function tell();
             create role plain; grant select, update on item to plain",
        )
        .await;
    let update = "set role plain; update item set version = 3 where id <= 2; reset role";
    check(&bed, update, &["app:1", "app:2"]).await;
}

/// I1 for messages, and I2: what came while nobody listened is not lost.
#[tokio::test]
async fn a_message_removes_keys_when_its_transaction_is_visible_and_not_before() {
    let (bed, mut sidecar) = bed().await;
    bed.settled().await;
    bed.postgres.conf(GHOST).await.unwrap();
    bed.fill(&["app:1", "item:3"]).await;
    let statement = "select pg_logical_emit_message(true, 'app', '{\"keys\": [\"app:1\"]}')";
    let waiting = stuck(&bed, statement).await;
    bed.sql.run("set synchronous_commit = local; update item set version = 1 where id = 3").await;
    bed.gone("item:3").await;
    always(Duration::from_secs(2), "the key stays", || bed.has("app:1")).await;
    release(&bed).await;
    bed.gone("app:1").await;
    waiting.await.unwrap();
    bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();

    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.fill(&["app:1", "app:2"]).await;
    bed.sql.run(statement).await;
    sidecar.start();
    sidecar.wait_ready().await;
    bed.gone("app:1").await;
    assert!(bed.has("app:2").await, "only what was named");
    assert!(sidecar.metric_sum("walsweep_resyncs_total").await < 1.0);
}

/// Nothing but messages: no table is published.
#[tokio::test]
async fn rules_of_messages_alone_need_no_table() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::set_up(Settings { rules: RULES.to_owned(), ..bed.settings() }).await;
    check(&bed, &message(r#"{"keys": ["app:1"]}"#), &["app:1"]).await;
    sidecar.assert_quiet(&["watermark_missing"]);
}
