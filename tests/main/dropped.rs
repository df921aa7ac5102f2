//! Troubles that somebody else makes: something in Postgres is dropped, the server is away, the
//! process hangs. Each is told with what cures it.

use serde_json::Value;
use walsweep_stage::throwaway::{Signal, StopMode};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

/// Waits until `/readyz` says this, and gives all of it.
async fn says(sidecar: &Sidecar, part: &str) -> String {
    let body = async || sidecar.get("/readyz").await.map(|(_, body)| body).unwrap_or_default();
    eventually(PATIENCE, part, async || body().await.contains(part)).await;
    body().await
}

async fn status(sidecar: &Sidecar) -> Value {
    serde_json::from_str(&sidecar.get("/status").await.unwrap().1).unwrap()
}

#[tokio::test]
async fn a_publication_that_is_dropped_is_told_with_what_makes_it_again() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.sql.run("drop publication walsweep").await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    let reason = "no session with postgres: there is no publication `walsweep`; trying again";
    let body = says(&sidecar, reason).await;
    let cure = "`walsweep setup --as URL` mends it";
    for part in ["\n  hint: ", cure, "\n  sql: begin;\n       set local", "create publication"] {
        assert!(body.contains(part), "{part}: {body}");
    }
    assert!(body.contains(&format!("\n  hint: {cure}")), "what to do comes first: {body}");
    let verdict = &status(&sidecar).await["verdict"];
    assert_eq!(verdict["section"], "something-in-postgres-was-dropped", "{verdict:#}");
    assert!(verdict["sql"].as_str().unwrap().contains("create publication"), "{verdict:#}");
    let output = sidecar.command(&["status"]);
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(1), "a person is needed: {shown}");
    assert!(shown.contains("read: /runbook#something-in-postgres-was-dropped"), "{shown}");
    assert!(shown.contains("\n           sql: begin;\n           set local"), "{shown}");
    assert!(sidecar.command(&["status", "--alive"]).status.success(), "a restart cures nothing");
    let check = text(&sidecar.command(&["check"]));
    assert!(check.contains("the walsweep that runs goes on for now: mend this"), "{check}");
    for told in [&body, &shown, &sidecar.log().join("\n")] {
        assert!(!told.contains("refused to start") && !told.contains(";;"), "{told}");
    }
    sidecar.setup();
    eventually(PATIENCE * 4, "it is ready", async || sidecar.readyz().await == Some(200)).await;
    bed.fill(&["item:2"]).await;
    bed.sql.run("update item set version = 1 where id = 2").await;
    bed.gone("item:2").await;
    assert_eq!(sidecar.sigterm().await, 0);
}

#[tokio::test]
async fn a_table_that_is_taken_out_has_a_reason_and_apart_from_it_a_cure() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.sql.run("alter publication walsweep drop table item").await;
    let reason = "rule `item` is suspended: `public.item` is not in publication `walsweep`\n";
    let body = says(&sidecar, &format!("not ready\n{reason}")).await;
    let add = "alter publication \"walsweep\" add table only \"public\".\"item\";\n";
    for part in ["  hint: `walsweep setup --as URL` mends it", "\n  sql: begin;\n", add] {
        assert!(body.contains(part), "{part}: {body}");
    }
    let told = status(&sidecar).await;
    let troubles = told["troubles"].as_array().unwrap();
    let trouble = troubles.iter().find(|trouble| trouble["text"] == reason.trim_end());
    let trouble = trouble.unwrap_or_else(|| panic!("{told:#}"));
    assert!(trouble["sql"].as_str().unwrap().starts_with("begin;\n"), "{trouble:#}");
    assert!(!trouble["hint"].as_str().unwrap().contains("begin"), "{trouble:#}");
    let shown = text(&sidecar.command(&["status"]));
    assert!(shown.contains("verdict    WRONG: rule item is suspended: "), "{shown}");
    sidecar.setup();
    eventually(PATIENCE, "it is ready", async || sidecar.readyz().await == Some(200)).await;
}

#[tokio::test]
async fn a_slot_that_is_dropped_is_made_anew_without_anybody() {
    let bed = Bed::new(&[]).await;
    let mut sidecar =
        Sidecar::set_up(Settings { level: "info".to_owned(), ..bed.settings() }).await;
    bed.settled().await;
    let drop = "do $$ begin
                  perform pg_terminate_backend(active_pid, 5000) from pg_replication_slots;
                  perform pg_drop_replication_slot('walsweep');
                end $$";
    eventually(PATIENCE, "it is dropped", async || {
        bed.sql.client().batch_execute(drop).await.is_ok()
    })
    .await;
    sidecar.wait_log("creating the slot").await;
    sidecar.wait_ready().await;
    let log = sidecar.log().join("\n");
    assert!(log.contains("reason=\"slot_created\"") && !log.contains(";;"), "{log}");
}

/// A target that is not looked at is not told as broken, and the server that is away has a cure.
#[tokio::test]
async fn a_postgres_that_is_away_says_nothing_of_redis() {
    let mut bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.postgres.stop(StopMode::Fast).await.unwrap();
    let body = says(&sidecar, "no session with postgres").await;
    let cure = "see that Postgres runs, and that `postgres.url` names it";
    let body = if body.contains(cure) { body } else { says(&sidecar, cure).await };
    assert!(body.contains(&format!("\n  hint: {cure}")), "{body}");
    let told = status(&sidecar).await;
    let phase = "not looked at: there is no session with postgres";
    assert_eq!(told["targets"][0]["phase"], phase, "{told:#}");
    let shown = text(&sidecar.command(&["status"]));
    assert!(shown.contains(phase) && !shown.contains("not connected"), "{shown}");
    assert!(shown.contains("do: see that Postgres runs"), "{shown}");
    let check = text(&sidecar.command(&["check"]));
    assert!(check.contains(cure) && check.contains("redis     version "), "{check}");
}

/// A timeout is not a refused connection.
#[tokio::test]
async fn a_process_that_hangs_is_told_from_none() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    sidecar.signal(Signal::Stop);
    for (command, part) in [
        (&["status"][..], "a process listens there, and does not answer within 2 s"),
        (&["reload"], "a process listens there, and does not answer within 2 s"),
        (&["why", "item:1"], ", and does not answer: it is stopped, or hangs"),
    ] {
        let output = sidecar.command(command);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(part), "{command:?}: {}", text(&output));
    }
    sidecar.signal(Signal::Cont);
    sidecar.kill9();
    let output = sidecar.command(&["status"]);
    assert!(text(&output).contains("no walsweep answers there"), "{}", text(&output));
}
