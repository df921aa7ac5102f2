//! Which server is asked for what, and what is found there.

use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use walsweep_stage::throwaway::free_port;

use super::{Pair, check, confirmed, on_standby, resyncs};
use crate::support::{PATIENCE, Settings, Sidecar, Sql, always, eventually, text};
use crate::visibility::{GHOST, release, stuck};

/// `setup`, `check`, `run` and `teardown` find the slot where it is, and everything else on the
/// primary.
#[tokio::test]
async fn the_slot_is_on_the_standby_and_nothing_of_it_on_the_primary() {
    let Some(pair) = Pair::start(&[]).await else { return };
    let mut sidecar = Sidecar::new(pair.settings());
    let script = text(&sidecar.command(&["setup", "--print"]));
    for part in ["create publication", "-- The slot is created on the standby", "-- and on the"] {
        assert!(script.contains(part), "{script}");
    }
    assert!(!script.contains("\nselect pg_create"), "not on the primary:\n{script}");
    sidecar.setup();
    assert!(confirmed(&pair.standby).await.is_some(), "`setup` created it there");
    let slots = "select count(*) from pg_replication_slots where slot_type = 'logical'";
    assert_eq!(pair.bed.sql.one::<i64>(slots).await, 0, "not on the primary");
    let said = text(&sidecar.command(&["setup"]));
    assert!(said.contains("nothing to do"), "{said}");
    sidecar.start();
    sidecar.wait_ready().await;
    for id in 1..=20 {
        pair.works(id).await;
    }
    pair.settled().await;
    assert_eq!(sidecar.metric("walsweep_slot_safe_wal_bytes").await, -1.0);
    let said = check(&sidecar);
    assert!(said.contains("slot_active") && said.contains("\"ok\": true"), "{said}");
    for code in ["standby_", "slot_missing", "slot_on_primary", "two_servers", "replication_"] {
        assert!(!said.contains(code), "{code}: {said}");
    }
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("streams from it"), "{said}");
    sidecar.assert_quiet(&["sweeping everything"]);
    assert_eq!(sidecar.sigterm().await, 0);
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("dropped slot `walsweep`"), "{said}");
    assert!(said.contains("dropped publication `walsweep`"), "{said}");
    assert_eq!(confirmed(&pair.standby).await, None);
}

/// I1: the standby sends a commit that waits on the primary for another standby, and has shown it
/// to its own readers; on the primary nobody sees it, and its keys stay.
#[tokio::test]
async fn a_commit_that_only_the_standby_shows_keeps_its_keys() {
    let Some(pair) = Pair::start(&[]).await else { return };
    let sidecar = pair.sidecar().await;
    pair.bed.postgres.conf(GHOST).await.unwrap();
    pair.bed.fill(&["item:1", "item:2"]).await;
    let writer = stuck(&pair.bed, "update item set version = 1 where id = 1").await;
    // What comes before the COMMIT may be confirmed.
    let written = pair.bed.position().await;
    let reader = Sql::connect(&pair.standby).await;
    let version = "select version from item where id = 1";
    eventually(PATIENCE, "the standby shows it", || async {
        reader.one::<i64>(version).await == 1
    })
    .await;
    assert_eq!(pair.bed.sql.one::<i64>(version).await, 0, "the primary does not");
    eventually(PATIENCE, "walsweep has it", || async {
        sidecar.metric("walsweep_invisible_at_arrival_total").await >= 1.0
    })
    .await;
    pair.bed.sql.run("set synchronous_commit = local").await;
    let overtaking = pair.update(2).await;
    pair.bed.gone(&overtaking).await;
    always(Duration::from_secs(2), "the key stays, and nothing is confirmed", || async {
        assert!(pair.bed.has("item:1").await, "the key is gone");
        confirmed(&pair.standby).await < Some(written)
    })
    .await;
    release(&pair.bed).await;
    pair.bed.gone("item:1").await;
    writer.await.unwrap();
    pair.bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
    pair.settled().await;
    sidecar.assert_quiet(&["sweeping everything"]);
}

/// WAL that the primary has written is told as lag until it is confirmed: a standby that is late
/// delays keys. The slot's WAL is the standby's.
#[tokio::test]
async fn a_late_standby_shows_as_lag_and_what_it_holds_goes_afterwards() {
    let Some(pair) = Pair::start(&[]).await else { return };
    let sidecar = pair.sidecar().await;
    let reader = Sql::connect(&pair.standby).await;
    reader.run("select pg_wal_replay_pause()").await;
    let state = "select pg_get_wal_replay_pause_state() = 'paused'";
    eventually(PATIENCE, "the replay pauses", || reader.one(state)).await;
    pair.bed.fill(&["item:1"]).await;
    pair.update(1).await;
    let filler = "create table filler as select repeat('x', 1000) from generate_series(1, 9999)";
    pair.bed.sql.run(filler).await;
    let written = 5e6;
    eventually(PATIENCE, "it is told", || async {
        sidecar.metric("walsweep_confirmed_lag_bytes").await > written
            && sidecar.metric("walsweep_restart_lag_bytes").await > written
    })
    .await;
    assert!(pair.bed.has("item:1").await);
    reader.run("select pg_wal_replay_resume()").await;
    pair.bed.gone("item:1").await;
    pair.settled().await;
    eventually(PATIENCE, "the lag ends", || async {
        // The slot lets go of its log when it is told which transactions run, and has confirmed.
        pair.bed.sql.run("select pg_log_standby_snapshot()").await;
        pair.settled().await;
        sidecar.metric("walsweep_confirmed_lag_bytes").await < written
            && sidecar.metric("walsweep_restart_lag_bytes").await < written
    })
    .await;
    // Cut off, it has nothing more on its disk, and knows of nothing.
    let source: String = reader.one("select current_setting('primary_conninfo')").await;
    reader.run("alter system set primary_conninfo = ''").await;
    reader.run("select pg_reload_conf()").await;
    let receives = "select exists (select from pg_stat_wal_receiver)";
    eventually(PATIENCE, "it is cut off", || async { !reader.one::<bool>(receives).await }).await;
    pair.bed.fill(&["item:2"]).await;
    pair.update(2).await;
    pair.bed.sql.run(&filler.replace("filler", "more")).await;
    eventually(PATIENCE, "it is told", || async {
        sidecar.metric("walsweep_confirmed_lag_bytes").await > written
    })
    .await;
    assert!(sidecar.metric("walsweep_restart_lag_bytes").await < written);
    assert!(pair.bed.has("item:2").await);
    let source = source.replace('\'', "''");
    reader.run(&format!("alter system set primary_conninfo = '{source}'")).await;
    reader.run("select pg_reload_conf()").await;
    pair.bed.gone("item:2").await;
    sidecar.assert_quiet(&["sweeping everything"]);
}

/// Each thing that is not as it should be is told, with its cure.
#[tokio::test]
async fn what_the_standby_lacks_is_told() {
    let Some(pair) = Pair::start(&[]).await else { return };
    Sidecar::new(pair.bed.settings()).setup();
    let bare = ["hot_standby_feedback = off", "primary_slot_name = ''", "wal_level = replica"];
    let bare = pair.bed.postgres.standby("bare", &bare).await.unwrap();
    pair.bed.sql.run("create role plain login replication").await;
    let mut settings = on_standby(pair.bed.settings(), &bare.url());
    settings.postgres_url = settings.postgres_url.replace("postgres@", "plain@");
    let mut sidecar = Sidecar::new(settings);
    let said = check(&sidecar);
    for part in [
        "standby_feedback",
        "standby_primary_slot",
        "standby_wal_level",
        "slot_on_primary",
        "standby_snapshot",
        "pg_log_standby_snapshot() to \\\"plain\\\"",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    sidecar.wait_log("`wal_level` of the standby is `replica`").await;
    // A primary is none that the slot could be on.
    let settings = on_standby(pair.bed.settings(), &pair.bed.postgres.url());
    let mut sidecar = Sidecar::new(settings);
    assert!(check(&sidecar).contains("replication_primary"));
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    sidecar.wait_log("reaches a primary").await;
    let gone = on_standby(pair.bed.settings(), "postgres://postgres@127.0.0.1:1/postgres");
    let said = check(&Sidecar::new(gone));
    assert!(said.contains("ask the standby of `postgres.replication_url`"), "{said}");
}

/// A slot that began before the publication could never be read: it is created when the standby has
/// replayed what the checks saw on the primary.
#[tokio::test]
async fn a_slot_on_a_late_standby_begins_after_the_publication() {
    let Some(pair) = Pair::start(&[]).await else { return };
    let reader = Sql::connect(&pair.standby).await;
    reader.run("select pg_wal_replay_pause()").await;
    let state = "select pg_get_wal_replay_pause_state() = 'paused'";
    eventually(PATIENCE, "the replay pauses", || reader.one(state)).await;
    // Where a slot could begin.
    pair.bed.sql.run("select pg_log_standby_snapshot()").await;
    pair.update(1).await;
    pair.bed.sql.run("create publication walsweep for table item").await;
    let mut sidecar = Sidecar::new(pair.settings());
    sidecar.start();
    sidecar.wait_log("creating the slot").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    reader.run("select pg_wal_replay_resume()").await;
    sidecar.wait_ready().await;
    pair.works(2).await;
    sidecar.assert_quiet(&["sweeping everything"]);
}

/// The primary's log tells which transactions run when it is asked to. A role that may not ask is
/// told the cure, and the slot is there as soon as it may.
#[tokio::test]
async fn a_slot_waits_for_a_role_that_may_not_ask_the_primary() {
    let Some(pair) = Pair::start(&[]).await else { return };
    let mut sidecar = Sidecar::new(pair.settings());
    pair.bed.sql.run("create publication walsweep for table item").await;
    pair.bed.sql.run("create role plain login replication").await;
    sidecar.change(|settings| {
        settings.postgres_url = settings.postgres_url.replace("postgres@", "plain@");
    });
    sidecar.start();
    sidecar.wait_log("takes up to a minute").await;
    sidecar.wait_log("grant execute on function pg_log_standby_snapshot()").await;
    pair.bed.sql.run("grant execute on function pg_log_standby_snapshot() to plain").await;
    sidecar.wait_ready().await;
    pair.works(1).await;
    assert!(!check(&sidecar).contains("standby_snapshot"));
}

/// A port that hands its connections to two servers in turn.
async fn balancer(ports: [u16; 2]) -> u16 {
    let port = free_port().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        for target in ports.into_iter().cycle() {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    port
}

/// Two standbys have the same identity. Behind one address the slot would be looked for on one and
/// streamed from another.
#[tokio::test]
async fn two_standbys_behind_one_address_are_refused() {
    let Some(pair) = Pair::start(&[]).await else { return };
    let other = pair.bed.postgres.standby("other", &["hot_standby_feedback = on"]).await.unwrap();
    pair.bed.sql.run("create publication walsweep for table item").await;
    let port = balancer([pair.standby.port(), other.port()]).await;
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let mut sidecar = Sidecar::new(on_standby(pair.bed.settings(), &url));
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    sidecar.wait_log("reaches now one server and now another").await;
    for server in [&pair.standby, &other] {
        assert_eq!(confirmed(server).await, None, "nothing was made");
    }
}

/// A standby of a standby has the slot; the checks in between know only the primary.
#[tokio::test]
async fn a_standby_of_a_standby_may_have_the_slot() {
    // A standby gives base backups only of a log with full pages.
    let Some(pair) = Pair::start(&["full_page_writes = on"]).await else { return };
    let upstream = Sql::connect(&pair.standby).await;
    upstream.run("select pg_create_physical_replication_slot('cascade')").await;
    let conf = ["hot_standby_feedback = on", "primary_slot_name = 'cascade'"];
    let cascade = pair.standby.standby("cascade", &conf).await.unwrap();
    let settings = on_standby(pair.bed.settings(), &cascade.url());
    let sidecar = Sidecar::set_up(settings).await;
    for id in 1..=5 {
        pair.works(id).await;
    }
    let sweeps = resyncs(&sidecar).await;
    // It follows the promoted one without ending a connection; the primary does not.
    upstream.run("select pg_promote()").await;
    upstream.run("update item set version = 77 where id = 7").await;
    sidecar.wait_log("it follows timeline 2, the primary writes 1").await;
    eventually(PATIENCE, "not ready", || async { sidecar.readyz().await != Some(200) }).await;
    assert!(resyncs(&sidecar).await <= sweeps);
    drop(cascade);
}

/// The slot on the standby need not see what the one on the primary has seen removed.
#[tokio::test]
async fn a_slot_moves_to_the_standby_without_a_sweep() {
    let Some(pair) = Pair::start(&[]).await else { return };
    let mut sidecar = Sidecar::set_up(pair.bed.settings()).await;
    pair.update(1).await;
    let position = pair.bed.position().await;
    eventually(PATIENCE, "confirmed on the primary", || async {
        pair.bed.sql.run("select pg_logical_emit_message(false, 'settle', '')").await;
        confirmed(&pair.bed.postgres).await >= Some(position)
    })
    .await;
    let there = Sidecar::new(pair.settings());
    there.setup();
    pair.bed.cache_rows().await;
    pair.works(2).await;
    // What the new slot begins after is removed, by the old one.
    let created = confirmed(&pair.standby).await;
    eventually(PATIENCE, "the watermark is past the new slot", || async {
        pair.bed.sql.run("select pg_logical_emit_message(false, 'settle', '')").await;
        confirmed(&pair.bed.postgres).await >= created
    })
    .await;
    let said = check(&there);
    assert!(said.contains("slot_on_primary") && said.contains("of before, stop it"), "{said}");
    assert!(!said.contains("pg_drop_replication_slot"), "it is read: {said}");
    assert_eq!(sidecar.sigterm().await, 0);
    let Settings { postgres, .. } = pair.settings();
    sidecar.change(|settings| settings.postgres = postgres);
    sidecar.start();
    sidecar.wait_ready().await;
    assert_eq!(resyncs(&sidecar).await, 0.0, "history is unbroken");
    pair.works(3).await;
    pair.bed.fresh().await;
    let said = check(&sidecar);
    assert!(said.contains("slot_on_primary") && said.contains("keeps WAL"), "{said}");
}
