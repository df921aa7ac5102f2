//! Sessions with Postgres that get nowhere: few are tried, what the slot holds is given up, and
//! whoever watches is told why there is none.

use std::fs;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use walsweep_stage::throwaway::{Signal, StopMode, signal};

use crate::support::{
    Bed, Fault, PATIENCE, Proxy, Settings, Sidecar, Sql, always, eventually, text,
};

/// Sessions that it began.
fn sessions(sidecar: &Sidecar) -> usize {
    sidecar.log().iter().filter(|line| line.contains(" streaming ")).count()
}

async fn given_up(sidecar: &Sidecar) -> f64 {
    sidecar.metric("walsweep_resyncs_total{reason=\"slot_undecodable\"}").await
}

/// Gives the text that `/readyz` answers.
async fn readiness(sidecar: &Sidecar) -> String {
    sidecar.get("/readyz").await.map(|(_, body)| body).unwrap_or_default()
}

/// The slot decodes a stretch of the log in which there was no publication, and fails there for
/// ever, by SQLSTATE 42704 or, on Postgres 18, by a warning.
#[tokio::test]
async fn a_publication_made_anew_by_hand_costs_one_slot_and_few_sessions() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.fill(&["item:77", "list:anything:x", "other"]).await;
    let (began, swept) = (sessions(&sidecar), sidecar.metric_sum("walsweep_resyncs_total").await);
    bed.sql.run("drop publication walsweep").await;
    bed.sql.run("update item set version = 1 where id = 77").await;
    bed.sql.run("create publication walsweep for table item").await;
    eventually(PATIENCE, "the slot is given up and it is ready again", || async {
        given_up(&sidecar).await >= 1.0 && sidecar.readyz().await == Some(200)
    })
    .await;
    bed.gone("item:77").await;
    bed.gone("list:anything:x").await;
    always(Duration::from_secs(3), "it stays", || async { sidecar.readyz().await == Some(200) })
        .await;
    let sessions = sessions(&sidecar) - began;
    // One that fails by the change while there was no publication, perhaps one that began before it
    // was made anew, and the last.
    assert!(sessions <= 3, "{sessions} sessions\n{}", sidecar.log().join("\n"));
    sidecar.wait_log("publication `walsweep` was created anew").await;
    let swept = sidecar.metric_sum("walsweep_resyncs_total").await - swept;
    assert!(swept <= 4.0, "{swept} sweeps of everything");
    assert!((given_up(&sidecar).await - 1.0).abs() < f64::EPSILON, "once");
    bed.fill(&["item:5"]).await;
    bed.sql.run("update item set version = 1 where id = 5").await;
    bed.gone("item:5").await;
    assert!(bed.has("other").await);
    bed.settled().await;
}

/// `check` tells of what was done by hand while it was away, and a start gets over it.
#[tokio::test]
async fn a_slot_that_is_older_than_its_publication_is_told_by_check_and_given_up_by_run() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let checked = text(&sidecar.command(&["check", "--json"]));
    assert!(!checked.contains("publication_younger"), "{checked}");
    bed.sql.run("drop publication walsweep").await;
    bed.sql.run("update item set version = 1 where id = 77").await;
    bed.sql.run("create publication walsweep for table item").await;
    let checked = text(&sidecar.command(&["check", "--json"]));
    assert!(checked.contains("publication_younger"), "{checked}");
    bed.fill(&["item:77"]).await;
    sidecar.start();
    sidecar.wait_ready().await;
    bed.gone("item:77").await;
    eventually(PATIENCE, "given up", || async { given_up(&sidecar).await >= 1.0 }).await;
    sidecar.wait_ready().await;
    bed.settled().await;
    let checked = text(&sidecar.command(&["check", "--json"]));
    assert!(!checked.contains("publication_younger"), "{checked}");
}

/// Whatever ends them: each costs the server two processes and the start of decoding.
#[tokio::test]
async fn sessions_that_end_at_once_do_not_spin() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    let (began, start) = (sessions(&sidecar), Instant::now());
    let terminate = "select pg_terminate_backend(active_pid) from pg_replication_slots";
    while start.elapsed() < Duration::from_secs(8) {
        bed.sql.run(terminate).await;
        sleep(Duration::from_millis(5)).await;
    }
    // Waits of 0.1 to 6.4 s.
    let sessions = sessions(&sidecar) - began;
    assert!((2..=8).contains(&sessions), "{sessions} sessions");
    let said = readiness(&sidecar).await;
    assert!(said.contains("terminating connection"), "{said}");
    assert_eq!(sidecar.get("/healthz").await.unwrap().0, 200, "not for minutes yet");
    let log = sidecar.log();
    let loud = log
        .iter()
        .filter(|line| line.contains("WARN") && line.contains("the session with postgres ended"));
    assert!(loud.count() <= 5, "{log:#?}");
    eventually(PATIENCE, "what was is told as what was", || async {
        readiness(&sidecar).await.contains("those before it ended soon")
    })
    .await;
    sidecar.wait_ready().await;
    bed.fill(&["item:5"]).await;
    bed.sql.run("update item set version = 1 where id = 5").await;
    bed.gone("item:5").await;
}

/// A fault that comes again and again is one trouble, not a line for each attempt.
#[tokio::test]
async fn an_outage_of_postgres_is_named_in_readyz_and_told_seldom() {
    let mut bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.postgres.stop(StopMode::Fast).await.unwrap();
    eventually(PATIENCE, "the cause is named", || async {
        readiness(&sidecar).await.contains("connect to `127.0.0.1:")
    })
    .await;
    let told = sidecar.log().len();
    let age = "walsweep_oldest_unconfirmed_seconds";
    sleep(Duration::from_secs(1)).await;
    let before = sidecar.metric(age).await;
    sleep(Duration::from_secs(4)).await;
    let after = sidecar.metric(age).await;
    assert!(before > 0.5 && after > before + 3.0, "{before} s, then {after} s");
    assert!(sidecar.metric("walsweep_postgres_up").await < 0.5);
    let reconnects = sidecar.metric("walsweep_reconnects_total{peer=\"postgres\"}").await;
    assert!((reconnects - 1.0).abs() < f64::EPSILON, "{reconnects} connections were lost");
    let log = sidecar.log();
    let loud: Vec<_> = log[told..].iter().filter(|line| line.contains("WARN")).collect();
    assert!(loud.len() <= 2, "{loud:#?}");
    assert_eq!(sidecar.get("/healthz").await.unwrap().0, 200, "it does what can be done");
    bed.postgres.start_again().await.unwrap();
    bed.sql = Sql::connect(&bed.postgres).await;
    sidecar.wait_ready().await;
    sidecar.wait_log("resolved after").await;
    assert_eq!(readiness(&sidecar).await, "ready\n");
    bed.settled().await;
    eventually(PATIENCE, "nothing waits any more", || async { sidecar.metric(age).await < 0.5 })
        .await;
}

/// Whether SIGTERM waits for a process that is stopped.
fn is_to_end(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
    u64::from_str_radix(pending.trim(), 16).unwrap() & (1 << 14) != 0
}

/// The server's process that serves the stream is stopped: nothing comes from it, and it outlives
/// the session, so that no other can have the slot.
#[tokio::test]
async fn a_walsender_that_hangs_is_told_of_and_ended_and_is_no_other_walsweep() {
    let bed = Bed::new(&["wal_sender_timeout = '10s'"]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.fill(&["item:7"]).await;
    let pid: i32 = bed.sql.one("select active_pid from pg_replication_slots").await;
    let walsender = [u32::try_from(pid).unwrap()];
    signal(&walsender, Signal::Stop).unwrap();
    bed.sql.run("update item set version = 1 where id = 7").await;
    let says = async |part: &str| readiness(&sidecar).await.contains(part);
    let silent = "not ready\nPostgres has sent nothing for 7 s, though asked to";
    eventually(PATIENCE, "silence is told", || says(silent)).await;
    let age = sidecar.metric("walsweep_oldest_unconfirmed_seconds").await;
    assert!(age >= 7.0, "{age}");
    let holder = format!("Postgres process {pid} served walsweep's last session");
    eventually(PATIENCE, "who has the slot is told", || says(&holder)).await;
    assert!(is_to_end(pid), "the server is asked to end it");
    assert!(says("connecting to postgres").await, "it is no stand-in");
    let log = sidecar.log().join("\n");
    assert!(!log.contains("standing by"), "{log}");
    signal(&walsender, Signal::Cont).unwrap();
    sidecar.wait_ready().await;
    bed.gone("item:7").await;
}

/// The settings of walsweeps that take ten seconds without a sign of life for the end of another.
fn soon_silent(bed: &Bed) -> Settings {
    let env = vec![("WALSWEEP_TEST_SILENT_MS".to_owned(), "10000".to_owned())];
    Settings { env, ..bed.settings() }
}

/// With a login that sees what every session does, also where all others have the least rights.
async fn who_sees_all(bed: &Bed) -> Settings {
    bed.sql.run("create role seer superuser login").await;
    let settings = soon_silent(bed);
    let postgres_url = settings.postgres_url.replace("//postgres@", "//seer@");
    Settings { postgres_url, ..settings }
}

/// The walsender hangs, and its walsweep is started again: the new process knows nothing of either,
/// and takes what has the slot for another walsweep, until it sees that nobody is behind it.
async fn restarted_while_the_walsender_hangs(bed: &Bed, mut sidecar: Sidecar, what: &str) {
    sidecar.setup();
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    bed.fill(&["item:7"]).await;
    let pid: i32 = bed.sql.one("select active_pid from pg_replication_slots").await;
    let walsender = [u32::try_from(pid).unwrap()];
    signal(&walsender, Signal::Stop).unwrap();
    sidecar.kill9();
    bed.sql.run("update item set version = 1 where id = 7").await;
    sidecar.start();
    let says = async |part: &str| readiness(&sidecar).await.contains(part);
    eventually(PATIENCE, "it stands by", || says("standby: Postgres process")).await;
    let told = format!("Postgres process {pid} has the slot, and {what} for 1");
    eventually(PATIENCE, "that nobody is there is told", || says(&told)).await;
    assert!(says(&format!("sql: select pg_terminate_backend({pid})")).await);
    let status = sidecar.command(&["status"]);
    let said = text(&status);
    assert!(!status.status.success() && said.contains("WRONG"), "{said}");
    assert!(said.contains(&told), "{said}");
    assert!(sidecar.metric("walsweep_healthy").await < 0.5);
    assert!(sidecar.metric("walsweep_oldest_unconfirmed_seconds").await > 0.0);
    assert_eq!(sidecar.get("/healthz").await.unwrap().0, 200, "a restart would not help");
    assert!(!is_to_end(pid), "that is for a person to say");
    let log = sidecar.log();
    let loud = log.iter().filter(|line| line.contains("WARN") && line.contains(" has the slot, "));
    let loud: Vec<_> = loud.filter(|line| !line.contains("still, after")).collect();
    assert_eq!(loud.len(), 1, "{loud:#?}");
    bed.sql.run(&format!("select pg_terminate_backend({pid})")).await;
    signal(&walsender, Signal::Cont).unwrap();
    sidecar.wait_ready().await;
    sidecar.wait_log("resolved after").await;
    bed.gone("item:7").await;
    assert_eq!(readiness(&sidecar).await, "ready\n");
    assert!(sidecar.metric("walsweep_healthy").await > 0.5);
}

#[tokio::test]
async fn a_stand_in_says_that_nobody_answers_who_has_the_slot() {
    let bed = Bed::new(&["wal_sender_timeout = '10s'"]).await;
    let sidecar = Sidecar::new(who_sees_all(&bed).await);
    restarted_while_the_walsender_hangs(&bed, sidecar, "nobody has answered it").await;
}

/// A role that `setup` made sees no answers; it sees whether a walsweep with its login works.
#[tokio::test]
async fn a_stand_in_with_the_least_rights_says_that_no_walsweep_has_the_slot() {
    let bed = Bed::new(&["wal_sender_timeout = '10s'"]).await;
    let sidecar = Sidecar::with_least(soon_silent(&bed));
    let what = "no walsweep has been at work with it";
    restarted_while_the_walsender_hangs(&bed, sidecar, what).await;
}

/// Nothing is written, and both walsweeps have nothing to do.
async fn waits_for_a_live_one(bed: &Bed, [mut first, mut second]: [Sidecar; 2]) {
    first.setup();
    first.start();
    first.wait_ready().await;
    bed.settled().await;
    second.start();
    second.wait_log("standing by").await;
    always(Duration::from_secs(25), "it stands by, and all is well", || async {
        let said = readiness(&second).await;
        said.starts_with("standby: ") && said.lines().count() == 1
    })
    .await;
    let status = second.command(&["status"]);
    assert!(status.status.success() && text(&status).contains("BUSY"), "{}", text(&status));
    assert!(second.metric("walsweep_healthy").await > 0.5);
    assert!(second.metric("walsweep_oldest_unconfirmed_seconds").await < 0.5);
}

#[tokio::test]
async fn a_stand_in_beside_a_live_walsweep_stands_by() {
    let bed = Bed::new(&["wal_sender_timeout = '10s'"]).await;
    let settings = who_sees_all(&bed).await;
    let both = [settings.clone(), settings].map(Sidecar::new);
    waits_for_a_live_one(&bed, both).await;
}

#[tokio::test]
async fn a_stand_in_with_the_least_rights_beside_a_live_walsweep_stands_by() {
    let bed = Bed::new(&["wal_sender_timeout = '10s'"]).await;
    let both = [(); 2].map(|()| Sidecar::with_least(soon_silent(&bed)));
    waits_for_a_live_one(&bed, both).await;
}

/// The server answers nobody while it makes a slot, which waits for every transaction that runs.
#[tokio::test]
async fn a_stand_in_beside_a_walsweep_that_makes_the_slot_stands_by() {
    let bed = Bed::new(&["wal_sender_timeout = '10s'"]).await;
    let settings = who_sees_all(&bed).await;
    let mut recorded = Sidecar::set_up(settings.clone()).await;
    assert_eq!(recorded.sigterm().await, 0);
    let holder = Sql::connect(&bed.postgres).await;
    holder.run("begin; update item set version = 1 where id = 99").await;
    let publication = Some("walsweep".to_owned());
    let settings = Settings { name: "second".to_owned(), publication, ..settings };
    let [mut one, mut two] = [settings.clone(), settings].map(Sidecar::new);
    one.start();
    let is_made = "select count(*) = 1 from pg_replication_slots where slot_name = 'second' \
                   and active_pid is not null";
    eventually(PATIENCE, "it is being made", || bed.sql.one::<bool>(is_made)).await;
    two.start();
    two.wait_log("standing by").await;
    always(Duration::from_secs(20), "it stands by, and all is well", || async {
        let said = readiness(&two).await;
        said.starts_with("standby: ") && !said.contains(" has the slot, ")
    })
    .await;
    holder.run("commit").await;
    one.wait_ready().await;
}

/// Process ids are used again: what `run` ends has to have begun when its walsender did.
#[tokio::test]
async fn a_process_that_began_at_another_time_is_not_walsweeps_and_stays() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    let holder = "select {} from pg_replication_slots join pg_stat_activity on pid = active_pid";
    let pid: i32 = bed.sql.one(&holder.replace("{}", "pid")).await;
    let role: String = bed.sql.one(&holder.replace("{}", "quote_ident(usename)")).await;
    let began = holder.replace("{}", "extract(epoch from backend_start)::text");
    let began: String = bed.sql.one(&began).await;
    let later = holder.replace("{}", "(extract(epoch from backend_start) + 0.000001)::text");
    let later: String = bed.sql.one(&later).await;
    let other = Sql::connect(&bed.postgres).await;
    // How a time is printed is of no account.
    other.run(&format!("set role {role}; set timezone = 'Asia/Tokyo'; set datestyle = sql")).await;
    let end = async |slot: &str, pid: i32, since: Option<&str>| {
        let query = include_str!("../../sql/end_own_walsender.sql");
        let row = other.client().query_opt(query, &[&slot, &pid, &since]).await.unwrap();
        row.map(|row| row.get::<_, Option<bool>>(0))
    };
    for (slot, process, since) in [
        ("walsweep", pid, Some(later.as_str())),
        ("walsweep", pid, None),
        ("walsweep", pid + 1, Some(began.as_str())),
        ("another", pid, Some(began.as_str())),
    ] {
        assert_eq!(end(slot, process, since).await, None, "{slot} {process} {since:?}");
    }
    let stays =
        async || bed.sql.one::<Option<i32>>(&holder.replace("{}", "pid")).await == Some(pid);
    always(Duration::from_secs(1), "it stays", &stays).await;
    assert_eq!(end("walsweep", pid, Some(&began)).await, Some(Some(true)));
    sidecar.wait_log("terminating connection due to administrator command").await;
}

/// Between sessions the slot goes on to cost the server WAL.
#[tokio::test]
async fn the_metrics_of_the_slot_stay_true_while_no_session_stands() {
    let bed = Bed::new(&[]).await;
    let proxy = Proxy::to_port(bed.postgres.port());
    let mut settings = bed.settings();
    let url = proxy.url(&settings.postgres_url, bed.postgres.port());
    settings.postgres = format!("replication_url = {url:?}");
    let mut sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    proxy.set(Fault::Refuse);
    proxy.reset();
    bed.sql
        .run("create table ballast as select repeat('x', 9000) from generate_series(1, 9999)")
        .await;
    bed.sql
        .run("insert into ballast select repeat(md5(n::text), 90) from generate_series(1, 2000) n")
        .await;
    for metric in ["walsweep_confirmed_lag_bytes", "walsweep_restart_lag_bytes"] {
        eventually(PATIENCE, metric, || async { sidecar.metric(metric).await > 1e6 }).await;
    }
    assert!(sidecar.metric("walsweep_slot_wal_status{status=\"reserved\"}").await > 0.5);
    assert_eq!(sidecar.readyz().await, Some(503));
    bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
    eventually(PATIENCE, "what is not there costs nothing", || async {
        sidecar.metric("walsweep_restart_lag_bytes").await < 1.0
            && sidecar.metric("walsweep_slot_wal_status{status=\"reserved\"}").await < 0.5
    })
    .await;
    proxy.set(Fault::Nothing);
    sidecar.wait_ready().await;
    let anew = "select count(*) from pg_stat_activity
                 where application_name in ('walsweep slot', 'walsweep waits for walsweep')";
    assert_eq!(bed.sql.one::<i64>(anew).await, 1, "no connection is kept for what is over");
}

/// Whoever is waited for may have no part in it: the server gave an answer that nobody read.
#[tokio::test]
async fn a_process_that_stood_still_says_so() {
    let bed = Bed::new(&["wal_sender_timeout = 1s"]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    let walsender = "select active_pid from pg_replication_slots";
    sidecar.signal(Signal::Stop);
    let shown = text(&sidecar.command(&["status"]));
    assert!(shown.contains("listens there, and does not answer"), "{shown}");
    assert!(shown.contains("read: docs/runbook.md#walsweep-does-not-start"), "{shown}");
    // Longer than a server may be silent.
    sleep(Duration::from_secs(17)).await;
    assert_eq!(bed.sql.one::<Option<i32>>(walsender).await, None, "the session is gone");
    sidecar.signal(Signal::Cont);
    sidecar.wait_log("this process stood still for 1").await;
    sidecar.wait_log("; since then the session with postgres ended: ").await;
    sidecar.wait_ready().await;
    bed.fill(&["item:5"]).await;
    bed.sql.run("update item set version = 1 where id = 5").await;
    bed.gone("item:5").await;
}
