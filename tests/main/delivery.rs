//! The right keys, for every kind of change.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually, text};

/// Runs statements; `gone` must go and `stay` must still be there when all is confirmed.
async fn check(bed: &Bed, statements: &str, gone: &[&str], stay: &[&str]) {
    bed.fill(gone).await;
    bed.fill(stay).await;
    bed.sql.run(statements).await;
    bed.settled().await;
    for key in gone {
        assert!(!bed.has(key).await, "`{key}` stayed after: {statements}");
    }
    for key in stay {
        assert!(bed.has(key).await, "`{key}` went after: {statements}");
    }
}

#[tokio::test]
async fn every_kind_of_change_removes_its_keys_and_no_others() {
    let bed = Bed::new(&[]).await;
    let _sidecar = bed.sidecar().await;
    let bystanders = ["item:99", "list:team 9:a", "other"];
    for (statements, gone) in [
        ("insert into item values (200, 'new team')", ["item:200", "list:new team:a"]),
        ("update item set version = 1 where id = 1", ["item:1", "list:team 1:a"]),
        ("update item set id = 300 where id = 2", ["item:2", "item:300"]),
        ("update item set team = 'moved' where id = 3", ["list:team 3:a", "list:moved:a"]),
        ("delete from item where id = 4", ["item:4", "list:team 4:a"]),
        (
            "begin; update item set version = 2 where id = 5; savepoint s;
          update item set version = 2 where id = 99; rollback to s; commit",
            ["item:5", "list:team 5:a"],
        ),
        ("copy item from program 'echo 400,copied,0' csv", ["item:400", "list:copied:a"]),
    ] {
        check(&bed, statements, &gone, &bystanders).await;
    }
    check(&bed, "truncate item", &["item:1", "item:99", "list:team 9:a"], &["other"]).await;
}

#[tokio::test]
async fn what_is_rolled_back_or_not_covered_removes_nothing() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.sql.run("create table elsewhere (id int primary key)").await;
    for statements in [
        "begin; update item set version = 1; rollback",
        "insert into elsewhere values (1)",
        "update item set version = version where false",
    ] {
        check(&bed, statements, &[], &["item:1", "list:team 1:a"]).await;
    }
    sidecar.assert_quiet(&["sweeping everything"]);
}

/// I4: a value never acts as a glob, whatever it looks like.
#[tokio::test]
async fn a_team_named_like_a_glob_invalidates_its_own_keys_only() {
    let bed = Bed::new(&[]).await;
    let _sidecar = bed.sidecar().await;
    bed.sql.run("update item set team = 'Bodø/Glimt [W]*' where id = 1").await;
    bed.settled().await;
    check(
        &bed,
        "update item set version = 5 where id = 1",
        &["item:1", "list:Bodø/Glimt [W]*:a", "list:Bodø/Glimt [W]*:"],
        &["list:Bodø/Glimt W:a", "list:Bodø/Glimt [W]x:a", "list:Bodø/Glimt Wx:a", "list:x:a"],
    )
    .await;
}

/// I5: what the replica identity hides becomes `*`, and `check` says so before.
#[tokio::test]
async fn a_delete_on_default_identity_widens_and_check_says_so() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create table seat (id int primary key, room text not null)").await;
    let rules = "[[rule]]\nname = \"seat\"\ntable = \"public.seat\"\nimmutable = [\"room\"]\n\
                 keys = [\"seat:{id}:{room}\", \"seat:{id}\"]\n";
    let mut sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, rules));
    sidecar.setup();
    let output = sidecar.command(&["check"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("DELETE"), "{}", text(&output));
    assert!(text(&output).contains("replica identity full"), "{}", text(&output));
    // The `setup` cure made the identity wide enough only if it was run; undo it.
    bed.sql.run("alter table seat replica identity default").await;
    sidecar.start();
    sidecar.wait_ready().await;
    check(&bed, "insert into seat values (1, 'a'), (2, 'a')", &["seat:1:a", "seat:2"], &[]).await;
    check(&bed, "update seat set room = room where id = 1", &["seat:1:a"], &["seat:2:a"]).await;
    check(
        &bed,
        "delete from seat where id = 1",
        &["seat:1:a", "seat:1:b", "seat:1"],
        &["seat:2:a"],
    )
    .await;
    let widened = "walsweep_widened_total{rule=\"seat\",reason=\"replica_identity\"}";
    assert!(sidecar.metric(widened).await >= 1.0);
}

/// `changed` alone is worth no larger log: what it costs is said, and what ends that.
#[tokio::test]
async fn changed_without_old_values_counts_every_update_and_is_warned_of() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create table seat (id int primary key, room text, note text);
             insert into seat values (1, 'a', 'x'), (2, 'a', 'x')",
        )
        .await;
    let rules = "[[rule]]\nname = \"seat\"\ntable = \"public.seat\"\nchanged = [\"note\"]\n\
                 keys = [\"seat:{id}\"]\n";
    let sidecar = Sidecar::set_up(Settings::new(&bed.postgres, &bed.redis, rules)).await;
    let identity = "select relreplident::text from pg_class where relname = 'seat'";
    assert_eq!(bed.sql.one::<String>(identity).await, "d", "`setup` changed it");
    let said = text(&sidecar.command(&["check"]));
    let cure = "alter table \"public\".\"seat\" replica identity full";
    assert!(said.contains("warning[changed_unknown]") && said.contains(cure), "{said}");
    let room = "update seat set room = room || 'b' where id = 1";
    check(&bed, room, &["seat:1"], &["seat:2"]).await;
    bed.sql.run(cure).await;
    // It is noticed within seconds; what is sent has the old values at once.
    check(&bed, room, &[], &["seat:1", "seat:2"]).await;
    check(&bed, "update seat set note = 'y' where id = 1", &["seat:1"], &["seat:2"]).await;
    let said = text(&sidecar.command(&["check"]));
    assert!(!said.contains("changed_unknown"), "{said}");
}

#[tokio::test]
async fn a_rule_that_would_widen_every_day_is_refused_with_its_cure() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("alter table item replica identity default").await;
    let mut sidecar = Sidecar::new(bed.settings());
    bed.sql.run("create publication walsweep for table item").await;
    sidecar.start_strictly();
    assert_eq!(sidecar.wait_exit().await, 1);
    let output = sidecar.command(&["check"]);
    assert_eq!(output.status.code(), Some(1));
    for said in [sidecar.log().join("\n"), text(&output)] {
        assert!(said.contains("team") && said.contains("replica identity full"), "{said}");
    }
    // Nothing was touched.
    let slots: i64 = bed.sql.one("select count(*) from pg_replication_slots").await;
    assert_eq!(slots, 0);
    sidecar.setup();
    sidecar.start();
    sidecar.wait_ready().await;
    check(&bed, "update item set version = 1 where id = 1", &["list:team 1:a"], &[]).await;
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    check(&bed, "update item set version = 1 where id <= 3", &["item:1", "item:2"], &[]).await;
    for (name, value) in [
        ("walsweep_transactions_total", 1.0),
        ("walsweep_changes_total{operation=\"update\"}", 3.0),
        ("walsweep_rule_matches_total{rule=\"item\"}", 3.0),
        ("walsweep_keys_removed_total{rule=\"item\"}", 2.0),
        ("walsweep_keys_absent_total{rule=\"item\"}", 1.0),
        ("walsweep_commit_to_removed_seconds_count", 1.0),
        ("walsweep_visible_to_removed_seconds_count", 1.0),
        ("walsweep_visibility_wait_seconds_count", 1.0),
        ("walsweep_ready", 1.0),
        ("walsweep_postgres_up", 1.0),
    ] {
        assert!((sidecar.metric(name).await - value).abs() < f64::EPSILON, "{name}");
    }
    assert!((sidecar.metric_sum("walsweep_redis_up").await - 1.0).abs() < f64::EPSILON);
}

/// Delays that are injected are the delays that the histograms show.
#[tokio::test]
async fn metrics_tell_how_long_it_took() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.fill(&["item:1", "item:2"]).await;
    // A second in which Redis hangs, then two in which nobody sees the commit.
    bed.redis.pause().unwrap();
    bed.sql.run("update item set version = 1 where id = 1").await;
    sleep(Duration::from_secs(1)).await;
    bed.redis.resume().unwrap();
    bed.gone("item:1").await;
    let removed = "walsweep_visible_to_removed_seconds_sum";
    eventually(PATIENCE, "a second is told", || async { sidecar.metric(removed).await >= 0.9 })
        .await;
    assert!(sidecar.metric("walsweep_visibility_wait_seconds_sum").await < 0.9);
    bed.postgres.conf("synchronous_standby_names = 'ghost'").await.unwrap();
    let sql = Sql::connect(&bed.postgres).await;
    let writer = tokio::spawn(async move {
        sql.run("update item set version = 1 where id = 2").await;
    });
    eventually(PATIENCE, "an early arrival is told", || async {
        sidecar.metric("walsweep_invisible_at_arrival_total").await >= 1.0
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    let oldest = sidecar.metric("walsweep_oldest_unconfirmed_seconds").await;
    assert!(oldest >= 0.9, "{oldest}");
    assert!((sidecar.metric("walsweep_in_flight_transactions").await - 1.0).abs() < f64::EPSILON);
    bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
    bed.gone("item:2").await;
    writer.await.unwrap();
    // The key goes before the pattern's pass is through.
    let count = "walsweep_commit_to_removed_seconds_count";
    eventually(PATIENCE, "both are told", || async { sidecar.metric(count).await >= 2.0 }).await;
    let told = async |metric: &str| sidecar.metric(&format!("walsweep_{metric}_seconds_sum")).await;
    assert!(told("visibility_wait").await >= 2.0);
    let removed = told("visible_to_removed").await;
    let committed = told("commit_to_removed").await;
    assert!(committed >= removed + 2.0, "{committed}, of it {removed} after visibility");
}

/// I9: neither a row's values nor a password are ever in the log.
#[tokio::test]
async fn no_value_and_no_secret_is_logged() {
    let bed = Bed::new(&[]).await;
    let mut settings = bed.settings();
    settings.level = "trace".to_owned();
    settings.postgres_url = settings.postgres_url.replace("postgres@", "postgres:hunter2@");
    let mut sidecar = Sidecar::set_up(settings).await;
    let sql = Sql::connect(&bed.postgres).await;
    sql.run("update item set team = 'Confidential United' where id = 1").await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let ours = |line: &&String| line.contains("hunter2") || line.contains("Confidential");
    assert_eq!(sidecar.log().iter().find(ours), None);
}
