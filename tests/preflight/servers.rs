//! Servers, roles and slots that are not as they should be.

use std::fs::File;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use walsweep::keys::Rules;
use walsweep::preflight::{self, Code, Severity};
use walsweep::setup;
use walsweep_stage::throwaway::{Postgres, PostgresOptions, StopMode};

use crate::kit::{
    TABLE, adopt, check, client_program, codes, config, connect, database, find, hands, run, whole,
};

#[tokio::test]
async fn the_slot_is_held_against_its_configuration() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let ddl = format!("{TABLE} create publication walsweep for table t");
    let client = database(&server, "app", &ddl).await;
    let config = config(server.port(), "app", vec![whole("t")]);
    let other = server.connect().await.unwrap();
    let (unread, database) = ("if nobody needs it", "the database at the end of `postgres.url`");
    for (session, arguments, expected, told) in [
        (&client, "'slot_app', 'pgoutput'", &["slot_unclaimed"][..], "if another program reads it"),
        (&client, "'slot_app', 'test_decoding'", &["slot_plugin"], unread),
        (&other, "'slot_app', 'pgoutput'", &["slot_database"], database),
        // The session that made it has it.
        (&client, "'slot_app', 'pgoutput', true", &["slot_temporary"], "has this one"),
        (&client, "'slot_app', 'pgoutput', false, true", &["slot_two_phase"], unread),
    ] {
        run(session, &format!("select pg_create_logical_replication_slot({arguments})")).await;
        let findings = check(&config, &client).await;
        assert_eq!(codes(&findings), expected, "{arguments}");
        let hint = find(&findings, expected[0]).hint.clone().unwrap();
        assert!(hint.contains(told), "{arguments}: {hint}");
        assert_eq!(hint.contains("drop that slot"), told == unread, "{arguments}: {hint}");
        run(session, "select pg_drop_replication_slot('slot_app')").await;
    }
    let findings = check(&config, &client).await;
    assert_eq!(find(&findings, "slot_missing").severity, Severity::Info);
}

#[tokio::test]
async fn a_slot_that_is_in_use_is_told_and_not_dropped() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let ddl = format!("{TABLE} create publication walsweep for table t");
    let client = database(&server, "app", &ddl).await;
    let config = config(server.port(), "app", vec![whole("t")]);
    adopt(&client).await;
    let rules = Rules::compile(&config.rules).unwrap();
    setup::setup(&config, &rules, &hands(&config, &client)).await.unwrap();
    let reader = client_program(&server, "pg_recvlogical")
        .args(["-d", "app", "-S", "slot_app", "--start"])
        .args(["-f", "/dev/null", "-o", "proto_version=1", "-o", "publication_names=walsweep"])
        .stderr(Stdio::null())
        .spawn();
    let mut reader = reader.unwrap();
    let deadline = SystemTime::now() + Duration::from_secs(20);
    let active = "select exists (select from pg_replication_slots where active_pid is not null)";
    while !client.query_one(active, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(SystemTime::now() < deadline, "pg_recvlogical does not start");
    }
    let findings = check(&config, &client).await;
    assert_eq!(codes(&findings), ["slot_active"]);
    let pid = "select active_pid from pg_replication_slots where active_pid is not null";
    let pid: i32 = client.query_one(pid, &[]).await.unwrap().get(0);
    let message = &find(&findings, "slot_active").message;
    assert_eq!(message, &format!("slot `slot_app` is in use by Postgres process {pid}"));
    let error = setup::teardown(&config, &hands(&config, &client)).await.unwrap_err();
    assert!(matches!(&error, setup::Error::SlotActive { name, .. } if name == "pg_recvlogical"));
    reader.kill().unwrap();
    reader.wait().unwrap();
}

#[tokio::test]
async fn a_slot_that_is_lost_or_soon_will_be_is_a_warning() {
    // With a larger `max_wal_size` no checkpoint comes before the one that is asked for.
    let conf = ["max_slot_wal_keep_size = 1MB", "max_wal_size = 1GB", "min_wal_size = 32MB"];
    let conf = conf.map(str::to_owned).to_vec();
    let options = PostgresOptions { conf, ..PostgresOptions::default() };
    let server = Postgres::start(options).await.unwrap();
    let client = database(&server, "app", TABLE).await;
    let config = config(server.port(), "app", vec![whole("t")]);
    let rules = Rules::compile(&config.rules).unwrap();
    setup::setup(&config, &rules, &hands(&config, &client)).await.unwrap();
    for _ in 0..4 {
        run(&client, "create table x (); drop table x; select pg_switch_wal()").await;
    }
    let findings = check(&config, &client).await;
    assert_eq!(codes(&findings), ["slot_unreserved"]);
    assert_eq!(find(&findings, "slot_unreserved").severity, Severity::Warning);
    run(&client, "checkpoint").await;
    let findings = check(&config, &client).await;
    assert_eq!(codes(&findings), ["slot_lost"]);
    assert_eq!(find(&findings, "slot_lost").severity, Severity::Warning);
    assert!(!findings.iter().any(|finding| finding.code == Code::SlotKeepUnlimited));
}

/// It may be another program's; if it is walsweep's, `run` gives it up.
#[tokio::test]
async fn a_publication_made_after_its_slot_leaves_the_slot_and_says_so() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let client = database(&server, "app", TABLE).await;
    let config = config(server.port(), "app", vec![whole("t")]);
    run(&client, "select pg_create_logical_replication_slot('slot_app', 'pgoutput')").await;
    run(&client, "insert into t values (1)").await;
    let stands = async || -> String {
        let row = client.query_one("select to_json(s)::text from pg_replication_slots s", &[]);
        row.await.unwrap().get(0)
    };
    let before = stands().await;
    let findings = check(&config, &client).await;
    assert_eq!(codes(&findings), ["publication_missing", "slot_unclaimed"]);
    assert_eq!(find(&findings, "slot_unclaimed").severity, Severity::Info);
    let hint = find(&findings, "publication_missing").hint.as_deref().unwrap_or_default();
    assert!(hint.contains("`slot_app` is left"), "{hint}");
    let rules = Rules::compile(&config.rules).unwrap();
    setup::setup(&config, &rules, &hands(&config, &client)).await.unwrap();
    assert_eq!(stands().await, before);
    let findings = check(&config, &client).await;
    assert_eq!(codes(&findings), ["slot_unclaimed"]);
    assert_eq!(find(&findings, "slot_unclaimed").severity, Severity::Warning);
    let younger = preflight::before_publication(&config, &client).await.unwrap();
    assert_eq!(codes(&younger), ["publication_younger"]);
    // A new slot takes over the oldest horizon of the cluster, and its own tells nothing then.
    run(&client, "select pg_create_logical_replication_slot('other', 'pgoutput')").await;
    let younger = preflight::before_publication(&config, &client).await.unwrap();
    assert_eq!(codes(&younger), [""; 0]);
}

/// Another slot was there, whose horizon this one took over; that has gone since.
#[tokio::test]
async fn a_set_up_beside_an_older_slot_is_not_said_to_begin_before_its_publication() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let client = database(&server, "app", TABLE).await;
    let other = server.connect().await.unwrap();
    run(&other, "select pg_create_logical_replication_slot('older', 'test_decoding')").await;
    for _ in 0..3 {
        run(&client, "insert into t values (1); delete from t").await;
    }
    let config = config(server.port(), "app", vec![whole("t")]);
    let rules = Rules::compile(&config.rules).unwrap();
    setup::setup(&config, &rules, &hands(&config, &client)).await.unwrap();
    for drop in ["select", "select pg_drop_replication_slot('older')"] {
        run(&client, drop).await;
        let younger = preflight::before_publication(&config, &client).await.unwrap();
        assert_eq!(codes(&younger), [""; 0], "{drop}");
    }
    let age =
        "select age(p.xmin) <= age(s.catalog_xmin) from pg_publication p, pg_replication_slots s";
    assert!(client.query_one(age, &[]).await.unwrap().get::<_, bool>(0), "its horizon is older");
}

#[tokio::test]
async fn a_server_that_cannot_stream_is_refused() {
    let conf = ["wal_level = replica", "max_replication_slots = 1", "synchronous_commit = off"];
    let conf = conf.map(str::to_owned).to_vec();
    let options = PostgresOptions { conf, ..PostgresOptions::default() };
    let mut server = Postgres::start(options).await.unwrap();
    let ddl = format!("{TABLE} create publication walsweep for table t; create role plain login");
    let client = database(&server, "app", &ddl).await;
    let mut config = config(server.port(), "app", vec![whole("t")]);
    run(&client, "select pg_create_physical_replication_slot('other')").await;
    config.postgres.replication_endpoint.user = "plain".to_owned();
    let findings = check(&config, &client).await;
    let expected =
        ["replication_role", "replication_slots_full", "synchronous_commit", "wal_level"];
    assert_eq!(codes(&findings), expected, "{findings:#?}");
    let cure = find(&findings, "replication_role").sql.as_deref();
    assert_eq!(cure, Some("alter role \"plain\" replication"));
    let rules = Rules::compile(&config.rules).unwrap();
    let refused = setup::setup(&config, &rules, &hands(&config, &client)).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("`wal_level` is `replica`"), "{refused}");

    for (role, option) in [
        ("neon_superuser", "project's settings"),
        ("cloudsqlsuperuser", "`cloudsql.logical_decoding = on`"),
        ("azure_pg_admin", "server parameter `wal_level`"),
        ("alloydbsuperuser", "`alloydb.logical_decoding = on`"),
        ("rds_superuser", "`rds.logical_replication = 1`"),
    ] {
        run(&client, &format!("create role {role}")).await;
        let findings = check(&config, &client).await;
        let hint = find(&findings, "wal_level").hint.as_ref().unwrap();
        assert!(hint.contains(option), "{role}: {hint}");
        run(&client, &format!("drop role {role}")).await;
    }

    run(&client, "alter role plain replication").await;
    assert!(!codes(&check(&config, &client).await).contains(&"replication_role"));
    server.stop(StopMode::Fast).await.unwrap();
    let data = server.socket_dir().parent().unwrap().join("data");
    File::create(data.join("standby.signal")).unwrap();
    server.start_again().await.unwrap();
    let client = connect(&server, "app").await;
    assert_eq!(codes(&check(&config, &client).await), ["in_recovery"]);
}

#[tokio::test]
async fn a_server_without_room_for_another_sender_is_refused() {
    let conf = ["max_wal_senders = 0", "wal_level = logical", "max_replication_slots = 0"];
    let conf = conf.map(str::to_owned).to_vec();
    let options = PostgresOptions { conf, ..PostgresOptions::default() };
    let server = Postgres::start(options).await.unwrap();
    let ddl = format!("{TABLE} create publication walsweep for table t");
    let client = database(&server, "app", &ddl).await;
    let config = config(server.port(), "app", vec![whole("t")]);
    let findings = check(&config, &client).await;
    assert_eq!(codes(&findings), ["replication_slots_full", "wal_senders_full"]);
}

#[tokio::test]
async fn a_slot_that_waits_needs_a_sender_and_no_other_slot() {
    let conf = ["max_wal_senders = 0", "wal_level = logical", "max_replication_slots = 1"];
    let conf = conf.map(str::to_owned).to_vec();
    let options = PostgresOptions { conf, ..PostgresOptions::default() };
    let server = Postgres::start(options).await.unwrap();
    let ddl = format!("{TABLE} create publication walsweep for table t");
    let client = database(&server, "app", &ddl).await;
    let config = config(server.port(), "app", vec![whole("t")]);
    run(&client, "select pg_create_logical_replication_slot('slot_app', 'pgoutput')").await;
    assert_eq!(codes(&check(&config, &client).await), ["slot_unclaimed", "wal_senders_full"]);
}

#[tokio::test]
async fn a_session_spread_over_backends_is_a_pooler() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let ddl = format!("{TABLE} create publication walsweep for table t");
    let client = database(&server, "app", &ddl).await;
    let config = config(server.port(), "app", vec![whole("t")]);
    assert_eq!(codes(&check(&config, &client).await), [""; 0]);
    // What a pooler in transaction mode looks like from here: each statement has another backend.
    let ddl = "create schema pooled; create sequence pooled.pids as int;
               create function pooled.pg_backend_pid() returns int language sql
                 as 'select nextval(''pooled.pids'')::int';
               set search_path = pooled, pg_catalog";
    run(&client, ddl).await;
    assert_eq!(codes(&check(&config, &client).await), ["pooler"]);
}

#[tokio::test]
async fn roles_that_do_not_wait_for_the_disk_are_named() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let ddl = "create role batch; alter role batch set synchronous_commit = off;
               create role other; alter role other in database postgres set synchronous_commit = 0;
               create role careful; alter role careful set synchronous_commit = local;
               alter database app set synchronous_commit = False;";
    let client = database(&server, "app", &format!("{TABLE} {ddl}")).await;
    let config = config(server.port(), "app", vec![whole("t")]);
    let findings = check(&config, &client).await;
    let finding = find(&findings, "synchronous_commit");
    assert!(!finding.is_error());
    let said = "`synchronous_commit` is off for role `batch`, every role:";
    assert!(finding.message.starts_with(said), "{}", finding.message);
}
