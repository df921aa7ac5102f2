//! Features that only newer servers have: failover slots, slots that are given up for idleness. On
//! an older server each test holds what walsweep says there instead.

use redis::AsyncCommands;
use walsweep_stage::throwaway::{Postgres, PostgresOptions, StopMode};

use crate::support::{Bed, PATIENCE, Proxy, Settings, Sidecar, Sql, eventually, text};

async fn update(sql: &Sql, id: u32) {
    sql.run(&format!("update item set version = version + 1 where id = {id}")).await;
}

/// A column of walsweep's slot, as text.
async fn slot(sql: &Sql, column: &str) -> Option<String> {
    let query = format!(
        "select to_jsonb(s) ->> '{column}' from pg_replication_slots s where slot_name = 'walsweep'"
    );
    let row = sql.client().query_opt(&query, &[]).await.unwrap();
    row.and_then(|row| row.get(0))
}

fn failover(bed: &Bed, replicas: &[&Postgres]) -> Settings {
    let urls: Vec<String> = replicas.iter().map(|standby| standby.url()).collect();
    Settings { postgres: format!("failover = true\nreplicas = {urls:?}"), ..bed.settings() }
}

fn check(sidecar: &Sidecar) -> String {
    text(&sidecar.command(&["check", "--json"]))
}

/// `run` refuses a server that has no failover slots, and says since when there are some.
async fn refused(bed: &Bed) {
    let mut sidecar = Sidecar::new(failover(bed, &[]));
    let setup = sidecar.command(&["setup"]);
    assert!(text(&setup).contains("`postgres.failover` needs PostgreSQL 17"), "{}", text(&setup));
    assert_eq!(slot(&bed.sql, "slot_name").await, None, "nothing was changed");
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    sidecar.wait_log("needs PostgreSQL 17").await;
}

/// Lets a standby copy failover slots.
async fn synchronize(bed: &Bed, standby: &Postgres) {
    bed.sql.run("select pg_create_physical_replication_slot('standby')").await;
    let sql = Sql::connect(standby).await;
    let source =
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", bed.postgres.port());
    for (name, value) in [
        ("primary_conninfo", &*source),
        ("primary_slot_name", "standby"),
        ("hot_standby_feedback", "on"),
        ("sync_replication_slots", "on"),
    ] {
        sql.run(&format!("alter system set {name} = '{value}'")).await;
    }
    sql.run("select pg_reload_conf()").await;
}

/// `check` tells each thing that keeps a standby from copying the slot.
async fn told_what_is_missing(bed: &Bed, standby_sql: &Sql, sidecar: &Sidecar) {
    // `pg_basebackup` may have written a database.
    let source = format!("host=127.0.0.1 port={} user=postgres", bed.postgres.port());
    standby_sql.run(&format!("alter system set primary_conninfo = '{source}'")).await;
    standby_sql.run("select pg_reload_conf()").await;
    let parts = [
        "failover_not_synced",
        "sync_replication_slots = on",
        "hot_standby_feedback = on",
        "primary_slot_name",
        "dbname",
    ];
    eventually(PATIENCE, "each missing setting is told", || async {
        let said = check(sidecar);
        parts.iter().all(|part| said.contains(part))
    })
    .await;
    // One of the same name that the standby has for itself.
    standby_sql.run("select pg_create_physical_replication_slot('walsweep')").await;
    let said = check(sidecar);
    assert!(
        said.contains("failover_orphan") && said.contains("pg_drop_replication_slot"),
        "{said}"
    );
    standby_sql.run("select pg_drop_replication_slot('walsweep')").await;
}

/// A slot from before the option becomes one that standbys copy, `check` tells each thing that
/// keeps a standby from copying it, and after a promotion walsweep goes on with the copy: every
/// cached row that the new primary disagrees with goes, and the slot is not made anew.
#[tokio::test]
async fn a_promoted_standby_has_the_slot_and_nothing_stays_stale() {
    let mut bed = Bed::new(&[]).await;
    if bed.version().await < 17 {
        return refused(&bed).await;
    }
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    let standby_sql = Sql::connect(&standby).await;
    let front = Proxy::to_port(bed.postgres.port());
    let mut sidecar = Sidecar::set_up(bed.settings()).await;
    assert_eq!(slot(&bed.sql, "failover").await.as_deref(), Some("false"));
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.change(|settings| {
        settings.postgres = failover(&bed, &[&standby]).postgres;
        settings.postgres_url = front.url(&settings.postgres_url, bed.postgres.port());
    });
    told_what_is_missing(&bed, &standby_sql, &sidecar).await;
    synchronize(&bed, &standby).await;

    sidecar.change(|settings| settings.postgres = failover(&bed, &[]).postgres);
    sidecar.start();
    sidecar.wait_ready().await;
    assert_eq!(slot(&bed.sql, "failover").await.as_deref(), Some("true"), "it was altered");
    // What runs has read its configuration; `check` reads it anew.
    sidecar.change(|settings| settings.postgres = failover(&bed, &[&standby]).postgres);
    eventually(PATIENCE, "the standby has a copy", || async {
        // Something to replay brings the copy to its consistent point.
        bed.sql.run("select pg_log_standby_snapshot()").await;
        slot(&standby_sql, "synced").await.as_deref() == Some("true")
            && slot(&standby_sql, "temporary").await.as_deref() == Some("false")
    })
    .await;
    let said = check(&sidecar);
    assert!(!said.contains("failover_"), "{said}");

    bed.settled().await;
    // The standby lacks this commit, of which a reader has seen the new version.
    drop(standby_sql);
    let mut standby = standby;
    standby.stop(StopMode::Fast).await.unwrap();
    bed.fill(&["item:7"]).await;
    update(&bed.sql, 7).await;
    bed.gone("item:7").await;
    bed.cache_rows().await;
    bed.postgres.kill9().await.unwrap();
    standby.start_again().await.unwrap();
    Sql::connect(&standby).await.run("select pg_promote()").await;
    let _old = std::mem::replace(&mut bed.postgres, standby);
    bed.sql = Sql::connect(&bed.postgres).await;
    assert_eq!(bed.stale().await, ["item:7"]);
    let copied = slot(&bed.sql, "confirmed_flush_lsn").await;
    assert!(copied.is_some(), "the slot came with the standby");
    update(&bed.sql, 8).await;
    front.retarget(([127, 0, 0, 1], bed.postgres.port()).into());
    front.reset();
    let timeline = "walsweep_resyncs_total{reason=\"other_timeline\"}";
    eventually(PATIENCE, "the promotion is noticed", || async {
        sidecar.metric(timeline).await > 0.0
    })
    .await;
    sidecar.wait_ready().await;
    bed.fresh().await;
    let created = "walsweep_resyncs_total{reason=\"slot_created\"}";
    assert!(sidecar.metric(created).await < 1.0, "the copy is used");
    bed.fill(&["item:9"]).await;
    update(&bed.sql, 9).await;
    bed.gone("item:9").await;
}

/// While a standby that `synchronized_standby_slots` names is away, the server sends nothing of a
/// failover slot. `check` says so; afterwards everything arrives.
#[tokio::test]
async fn a_standby_that_must_come_first_holds_a_failover_slot() {
    let bed = Bed::new(&[]).await;
    if bed.version().await < 17 {
        return refused(&bed).await;
    }
    let sidecar = Sidecar::set_up(failover(&bed, &[])).await;
    assert_eq!(slot(&bed.sql, "failover").await.as_deref(), Some("true"), "`setup` made it so");
    assert!(check(&sidecar).contains("failover_unknown"));
    assert!(!check(&sidecar).contains("failover_standby_absent"));
    bed.settled().await;
    bed.sql.run("select pg_create_physical_replication_slot('standby')").await;
    bed.postgres.conf("synchronized_standby_slots = 'standby'").await.unwrap();
    let said = check(&sidecar);
    assert!(said.contains("failover_standby_absent") && said.contains("`standby`"), "{said}");
    bed.fill(&["item:1"]).await;
    update(&bed.sql, 1).await;
    let while_away = std::time::Duration::from_secs(1);
    tokio::time::sleep(while_away).await;
    assert!(bed.has("item:1").await, "the server keeps it back");
    bed.postgres.conf("synchronized_standby_slots = ''").await.unwrap();
    bed.gone("item:1").await;
}

/// Taken out of the configuration while it runs, the option changes nothing: the slot stays what it
/// is, with what that costs, until it is dropped.
#[tokio::test]
async fn a_slot_stays_a_failover_slot_without_the_option_until_it_is_dropped() {
    let bed = Bed::new(&[]).await;
    if bed.version().await < 17 {
        return refused(&bed).await;
    }
    let mut sidecar = Sidecar::set_up(failover(&bed, &[])).await;
    bed.settled().await;
    sidecar.change(|settings| settings.postgres.clear());
    let said = text(&sidecar.command(&["setup"]));
    assert!(said.contains("nothing to do"), "{said}");
    bed.cache_rows().await;
    for _ in 0..2 {
        update(&bed.sql, 1).await;
        bed.gone("item:1").await;
        assert_eq!(slot(&bed.sql, "failover").await.as_deref(), Some("true"));
        assert_eq!(sidecar.sigterm().await, 0);
        sidecar.start();
        sidecar.wait_ready().await;
        bed.fill(&["item:1"]).await;
    }
    assert!(sidecar.metric_sum("walsweep_resyncs_total").await < 1.0);
    assert!(bed.has("item:2").await, "nothing was swept");
    bed.sql.run("select pg_create_physical_replication_slot('standby')").await;
    bed.postgres.conf("synchronized_standby_slots = 'standby'").await.unwrap();
    assert!(check(&sidecar).contains("failover_standby_absent"), "it waits for standbys still");
    bed.postgres.conf("synchronized_standby_slots = ''").await.unwrap();
    assert_eq!(sidecar.sigterm().await, 0);
    bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert_eq!(slot(&bed.sql, "failover").await.as_deref(), Some("false"));
}

/// A slot that nobody read for too long is told with its cause, made anew, and everything is swept.
/// One that is streamed never counts as idle.
#[tokio::test]
async fn a_slot_given_up_for_idleness_is_answered_with_a_sweep() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::set_up(bed.settings()).await;
    bed.settled().await;
    if bed.version().await < 18 {
        assert!(!check(&sidecar).contains("idle_slot_timeout"));
        return;
    }
    assert!(!check(&sidecar).contains("idle_slot_timeout"), "off by default");
    bed.postgres.conf("idle_replication_slot_timeout = '2d'").await.unwrap();
    assert!(check(&sidecar).contains("is 172800 s"));
    bed.postgres.conf("idle_replication_slot_timeout = '1s'").await.unwrap();
    let said = check(&sidecar);
    assert!(said.contains("idle_slot_timeout") && said.contains("\"warning\""), "{said}");
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    bed.sql.run("checkpoint").await;
    assert_eq!(slot(&bed.sql, "invalidation_reason").await, None, "it is being streamed");
    assert_eq!(sidecar.sigterm().await, 0);
    update(&bed.sql, 1).await;
    eventually(PATIENCE, "the server gives the slot up", || async {
        bed.sql.run("checkpoint").await;
        slot(&bed.sql, "invalidation_reason").await.as_deref() == Some("idle_timeout")
    })
    .await;
    let said = check(&sidecar);
    assert!(said.contains("slot_lost") && said.contains("nobody read it"), "{said}");
    let _: () = bed.cache.clone().set("item:1", 0).await.unwrap();
    sidecar.start();
    sidecar.wait_ready().await;
    sidecar.wait_log("nobody read it for `idle_replication_slot_timeout`").await;
    bed.gone("item:1").await;
    bed.fresh().await;
    bed.fill(&["item:2"]).await;
    update(&bed.sql, 2).await;
    bed.gone("item:2").await;
}

/// A `PgBouncer` in front of a server, ended when dropped.
struct Pooler {
    child: std::process::Child,
    port: u16,
}

impl Pooler {
    async fn start(server: &Postgres, mode: &str) -> Pooler {
        let folder = server.new_folder(&format!("pooler_{mode}")).unwrap();
        let port = walsweep_stage::throwaway::free_port().unwrap();
        let file = folder.join("pgbouncer.ini");
        let conf = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n\
             pool_mode = {mode}\nunix_socket_dir =\n",
            server.port()
        );
        std::fs::write(&file, conf).unwrap();
        let program = std::env::var("WALSWEEP_PGBOUNCER");
        let program = program.unwrap_or_else(|_| "/usr/sbin/pgbouncer".to_owned());
        let mut command = server.command(&program);
        let child = command.arg(&file).stderr(std::process::Stdio::null()).spawn();
        let pooler = Pooler { child: child.expect("`make install-deps` installs it"), port };
        eventually(PATIENCE, "the pooler listens", || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        pooler
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// `run` ends at once with a message that holds each of `parts`, and `check` finds `code`.
async fn refuses(settings: Settings, code: &str, parts: &[&str]) {
    let mut sidecar = Sidecar::new(settings);
    let said = check(&sidecar);
    assert!(said.contains(&format!("\"code\": \"{code}\"")), "{said}");
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    for part in parts {
        sidecar.wait_log(part).await;
    }
}

#[tokio::test]
async fn a_pooler_is_refused_wherever_it_stands() {
    let bed = Bed::new(&[]).await;
    Sidecar::new(bed.settings()).setup();
    let direct = bed.settings();
    for mode in ["transaction", "session"] {
        let pooler = Pooler::start(&bed.postgres, mode).await;
        let port = format!(":{}", bed.postgres.port());
        let pooled = direct.postgres_url.replace(&port, &format!(":{}", pooler.port));
        let whole = Settings { postgres_url: pooled.clone(), ..direct.clone() };
        refuses(whole, "pooler", &["pooler", "name the server itself"]).await;
        let stream = format!("replication_url = {pooled:?}");
        let stream = Settings { postgres: stream, ..direct.clone() };
        refuses(stream, "pooler", &["replication", "that is a pooler"]).await;
        let stream = format!("replication_url = {:?}", direct.postgres_url);
        let gate = Settings { postgres_url: pooled, postgres: stream, ..direct.clone() };
        if mode == "transaction" {
            refuses(gate, "pooler", &["lends one backend to several sessions"]).await;
            // What it lends the application next is as it was.
            let url = direct.postgres_url.replace(&port, &format!(":{}", pooler.port));
            let connected = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
            let (application, connection) = connected.unwrap();
            drop(tokio::spawn(connection));
            let shown = application.simple_query("show search_path").await.unwrap();
            let shown = shown.iter().find_map(|one| match one {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            });
            assert_eq!(shown, Some("\"$user\", public"));
        } else {
            // One session, one backend: the gate holds.
            let mut sidecar = Sidecar::new(gate);
            sidecar.start();
            sidecar.wait_ready().await;
            bed.fill(&["item:1"]).await;
            update(&bed.sql, 1).await;
            bed.gone("item:1").await;
        }
    }
}

/// Its slots are not the primary's, and a slot that is created there waits for the primary.
#[tokio::test]
async fn a_standby_is_refused_as_the_source_of_the_stream() {
    let bed = Bed::new(&[]).await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    Sidecar::new(bed.settings()).setup();
    let stream = format!("replication_url = {:?}", standby.url());
    let settings = Settings { postgres: stream, ..bed.settings() };
    refuses(settings, "replication_standby", &["reaches a standby", "name the primary"]).await;
    let slots: i64 =
        Sql::connect(&standby).await.one("select count(*) from pg_replication_slots").await;
    assert_eq!(slots, 0, "nothing was made there");
}

/// The state that one server shows would say nothing of what the other one sends.
#[tokio::test]
async fn two_servers_are_refused() {
    let bed = Bed::new(&[]).await;
    Sidecar::new(bed.settings()).setup();
    let other = Postgres::start(PostgresOptions::default()).await.unwrap();
    let stream = format!("replication_url = {:?}", other.url());
    let settings = Settings { postgres: stream, ..bed.settings() };
    let said = ["`postgres.url` reaches system", "name the same primary"];
    refuses(settings, "two_servers", &said).await;
    let slots = "select count(*) from pg_replication_slots";
    assert_eq!(Sql::connect(&other).await.one::<i64>(slots).await, 0, "nothing was made there");
}
