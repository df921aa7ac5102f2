//! How each fault strikes, and how it is mended.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::cmd;
use tokio::time::{Instant, sleep, timeout};
use walsweep::failpoint::{Point, VARIABLE};
use walsweep_stage::throwaway::{Redis, Signal, StopMode, signal};

use crate::World;
use crate::application::{self, Shown};
use crate::cache::Mode;
use crate::cached::{Key, Rows};
use crate::failover;
use crate::faults::{Kind, Planned};
use crate::invalidator::Invalidator;
use crate::reloads;
use crate::schema::{FAMILIES, PHANTOMS, families_of_rule};
use crate::servers::{NAME, REDIS_USER, readyz};
use crate::shared::{PATIENCE, RETRY};
use crate::store::Store;
use crate::support::{Fault, Proxy};

/// How long a crash point may take to be reached.
const REACH: Duration = Duration::from_secs(4);

/// Lets a fault strike, and mends it. One that can show its effect and does not is counted.
pub(crate) async fn inject(world: &World, planned: Planned) {
    sleep(planned.after).await;
    let shown = match planned.kind {
        kind if kind.is_of_application() => application::inject(world, planned).await,
        Kind::RedisNoperm => refuse_family(world, planned).await,
        Kind::StandbyGone | Kind::StandbyPaused => lose_standby(world, planned).await,
        Kind::StandIn => stand_in(world, planned).await,
        Kind::Reload => reloads::reload(world, planned).await,
        kind if kind.is_of_nodes() => failover::inject(world, planned).await,
        _ => return strike(world, planned).await,
    };
    world.effects.lock().unwrap().record(&planned.to_string(), shown);
}

async fn strike(world: &World, planned: Planned) {
    let World { invalidator, servers, .. } = world;
    match planned.kind {
        Kind::Kill => invalidator.kill(),
        Kind::Crash => crash(world, planned).await,
        Kind::Freeze => {
            invalidator.freeze(true);
            sleep(planned.lasts).await;
            invalidator.freeze(false);
        }
        Kind::SlotDropped | Kind::SlotAdvanced | Kind::SlotLost => {
            invalidator.hold();
            sleep(planned.lasts / 4).await;
            spoil_slot(world, planned.kind).await;
            invalidator.release();
        }
        Kind::PostgresRestart
        | Kind::PostgresImmediate
        | Kind::PostgresCrash
        | Kind::PostgresPhantom => {
            restart_postgres(world, planned).await;
        }
        Kind::WalsenderFreeze => freeze_walsender(world, planned.lasts).await,
        Kind::RedisEmpty | Kind::RedisOlder => restart_redis(world, planned).await,
        Kind::RedisFreeze => {
            let redis = servers.redis.lock().await;
            let server = redis.server(one_of(&redis, planned.choice).await).unwrap();
            server.pause().unwrap();
            sleep(planned.lasts).await;
            server.resume().unwrap();
        }
        Kind::NetworkSql => break_link(&servers.sql_proxy, planned).await,
        Kind::NetworkStream => break_link(&servers.stream_proxy, planned).await,
        Kind::NetworkRedis => break_link(&servers.redis_proxy, planned).await,
        _ => trouble_redis(world, planned).await,
    }
}

async fn crash(world: &World, planned: Planned) {
    let sweeps = matches!(planned.point, Point::ResyncOwed | Point::ResyncShown);
    if sweeps {
        order_watermark(world, planned.choice, "DEL", &[]).await;
    }
    let times = if sweeps { 1 } else { planned.choice % 5 + 1 };
    let value = format!("{}:{times}", planned.point.as_str());
    let struck = world.invalidator.doom((VARIABLE, &value), REACH).await;
    world.count(if struck { "(crash points reached)" } else { "(crash points not reached)" });
}

/// Runs statements until Postgres takes them.
pub(crate) async fn insist(world: &World, statements: &str) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(sql) = world.servers.sql().await {
            // Refused as long as the slot is still in use, for one.
            if let Ok(Ok(())) = timeout(PATIENCE, sql.batch_execute(statements)).await {
                return;
            }
        }
        sleep(RETRY).await;
    }
}

async fn slot_is(world: &World, condition: &str) -> bool {
    let query =
        format!("select 1 from pg_replication_slots where slot_name = '{NAME}' and {condition}");
    let Ok(sql) = world.servers.sql().await else { return false };
    sql.query_opt(&query, &[]).await.is_ok_and(|row| row.is_some())
}

async fn spoil_slot(world: &World, kind: Kind) {
    match kind {
        Kind::SlotDropped => {
            let drop = format!(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots
                  where slot_name = '{NAME}'"
            );
            insist(world, &drop).await;
        }
        Kind::SlotAdvanced => {
            let advance =
                format!("select pg_replication_slot_advance('{NAME}', pg_current_wal_lsn())");
            insist(world, &advance).await;
        }
        _ => {
            insist(world, "alter system set max_slot_wal_keep_size = '1MB'").await;
            insist(world, "select pg_reload_conf()").await;
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline && !slot_is(world, "wal_status = 'lost'").await {
                insist(world, "select pg_switch_wal()").await;
                insist(world, "checkpoint").await;
            }
            insist(world, "alter system reset max_slot_wal_keep_size").await;
            insist(world, "select pg_reload_conf()").await;
        }
    }
}

async fn restart_postgres(world: &World, planned: Planned) {
    let mut phantoms = None;
    if planned.kind == Kind::PostgresPhantom {
        phantoms = timeout(PATIENCE, world.shared.writing.write()).await.ok();
        if let Err(error) = show_phantoms(world).await {
            world.count(&format!("(no phantoms: {error})"));
        }
    }
    {
        let mut postgres = world.servers.postgres.lock().await;
        let stopped = match planned.kind {
            Kind::PostgresRestart => postgres.stop(StopMode::Fast).await,
            Kind::PostgresImmediate => postgres.stop(StopMode::Immediate).await,
            _ => postgres.kill9().await,
        };
        if stopped.is_err() {
            world.count("(postgres did not stop in time)");
            postgres.kill9().await.unwrap();
        }
        drop(phantoms);
        sleep(planned.lasts / 4).await;
        postgres.start_again().await.unwrap();
    }
    // Commits that did not wait for the disk may be lost, though their writers and some readers
    // saw them. Writers pause, so that what is read is all that there is.
    let Ok(paused) = timeout(PATIENCE, world.shared.writing.write()).await else { return };
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(rows) = Rows::open(&world.servers.postgres_url, PATIENCE).await
            && let Ok(all) = rows.all().await
        {
            world.shared.history.recovered(&all);
            break;
        }
        sleep(RETRY).await;
    }
    drop(paused);
}

/// Lets commits be visible that never reach the disk, and caches what they show.
async fn show_phantoms(world: &World) -> Result<(), Box<dyn std::error::Error>> {
    let shared = &world.shared;
    let sql = world.servers.sql().await?;
    let query = "select pid from pg_stat_activity where backend_type = 'walwriter'";
    let writer: i32 = sql.query_one(query, &[]).await?.try_get(0)?;
    // It would write them within milliseconds. The crash that follows ends it.
    signal(&[u32::try_from(writer)?], Signal::Stop)?;
    let rows = Rows::open(&world.servers.postgres_url, PATIENCE).await?;
    let mut cache = world.servers.cache();
    sql.batch_execute("set synchronous_commit = off").await?;
    for id in PHANTOMS {
        let version = shared.next_version();
        let update = format!("update item set version = {version} where id = {id}");
        sql.batch_execute(&update).await?;
        shared.committed(&[id], version);
        let value = rows.value(Key::Item(id)).await?;
        cache.set(&Key::Item(id).name(), &value).await?;
    }
    Ok(())
}

async fn freeze_walsender(world: &World, lasts: Duration) {
    let query = format!("select active_pid from pg_replication_slots where slot_name = '{NAME}'");
    let Ok(sql) = world.servers.sql().await else { return };
    let row = sql.query_opt(&query, &[]).await.ok().flatten();
    let pid = row.and_then(|row| row.try_get::<_, Option<i32>>(0).ok().flatten());
    let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()) else { return };
    if signal(&[pid], Signal::Stop).is_ok() {
        sleep(lasts).await;
        // It may have been ended meanwhile.
        drop(signal(&[pid], Signal::Cont));
    }
}

/// One of the primaries.
async fn one_of(redis: &Store, choice: u32) -> usize {
    let primaries = redis.primaries().await.unwrap_or_default();
    let count = u32::try_from(primaries.len()).unwrap_or_default();
    let at = choice.checked_rem(count).and_then(|at| usize::try_from(at).ok());
    at.and_then(|at| primaries.get(at)).copied().unwrap_or_default()
}

async fn restart_redis(world: &World, planned: Planned) {
    // Locked all the time: what comes back has the slots of its primary.
    let mut redis = world.servers.redis.lock().await;
    let at = one_of(&redis, planned.choice).await;
    let is_older = planned.kind == Kind::RedisOlder;
    if is_older {
        order_node(world, redis.server(at).unwrap(), "SAVE", &[]).await;
        sleep(planned.lasts).await;
        if planned.choice.is_multiple_of(2) {
            // What was removed for most rows is covered by a watermark before Redis forgets it.
            world.shared.narrow.store(true, Ordering::Relaxed);
            sleep(world.shared.window * 2).await;
        }
    }
    let is_alone = world.servers.directory.mode() == Mode::Standalone;
    let server = redis.server_mut(at).unwrap();
    server.kill9().await.unwrap();
    if !is_older {
        drop(std::fs::remove_file(server.dir().join("dump.rdb")));
    }
    // Back before anybody else takes over, as a service manager has it.
    sleep(if is_alone { planned.lasts / 4 } else { planned.lasts / 10 }).await;
    server.start_again().await.unwrap();
    world.shared.history.restored();
    if let Err(error) = redis.settled().await {
        world.count(&format!("(redis did not settle: {error})"));
    }
    world.shared.history.restored();
}

/// Sends a command to a node, as somebody with a console would. It may be refused.
async fn order_node(world: &World, node: &Redis, command: &str, args: &[&str]) {
    let ask =
        async { cmd(command).arg(args).exec_async(&mut node.connect().await.ok()?).await.ok() };
    if !matches!(timeout(PATIENCE, ask).await, Ok(Some(()))) {
        world.count(&format!("({command} was refused)"));
    }
}

/// Sends it to every node that runs.
async fn order(world: &World, command: &str, args: &[&str]) {
    let redis = world.servers.redis.lock().await;
    for at in redis.running() {
        order_node(world, redis.server(at).unwrap(), command, args).await;
    }
}

/// Sends it to one of the primaries.
async fn order_one(world: &World, choice: u32, command: &str, args: &[&str]) {
    let redis = world.servers.redis.lock().await;
    let at = one_of(&redis, choice).await;
    order_node(world, redis.server(at).unwrap(), command, args).await;
}

/// Sends one of the primaries a command about its watermark, whatever its name is there.
async fn order_watermark(world: &World, choice: u32, command: &str, args: &[&str]) {
    let redis = world.servers.redis.lock().await;
    let node = redis.server(one_of(&redis, choice).await).unwrap();
    let find = async {
        let names = format!("walsweep:*{NAME}*");
        let mut scan = cmd("SCAN");
        scan.arg(0).arg("MATCH").arg(names).arg("COUNT").arg(1_000_000);
        let found: (u64, Vec<String>) =
            scan.query_async(&mut node.connect().await.ok()?).await.ok()?;
        Some(found.1)
    };
    let names = timeout(PATIENCE, find).await.ok().flatten().unwrap_or_default();
    if names.is_empty() {
        world.count("(no watermark to strike at)");
    }
    for name in names {
        let args: Vec<&str> = std::iter::once(name.as_str()).chain(args.iter().copied()).collect();
        order_node(world, node, command, &args).await;
    }
}

/// Troubles Redis with a command, and takes it back with another where there is one.
async fn trouble_redis(world: &World, planned: Planned) {
    let choice = planned.choice;
    let rights = |right| ["SETUSER", REDIS_USER, right];
    let limit = |most| ["SET", "maxmemory", most];
    match planned.kind {
        Kind::RedisClients => order(world, "CLIENT", &["KILL", "TYPE", "normal"]).await,
        Kind::RedisFull => {
            order(world, "CONFIG", &["SET", "maxmemory-policy", "noeviction"]).await;
            order_one(world, choice, "CONFIG", &limit("1")).await;
            sleep(planned.lasts).await;
            order(world, "CONFIG", &limit("0")).await;
        }
        Kind::RedisForbids => {
            let forbidden = ["-unlink", "-scan", "-eval"][usize::try_from(choice % 3).unwrap()];
            order(world, "ACL", &rights(forbidden)).await;
            sleep(planned.lasts).await;
            order(world, "ACL", &rights("+@all")).await;
        }
        Kind::RedisReadonly => {
            let dead_port = "1";
            order(world, "REPLICAOF", &["127.0.0.1", dead_port]).await;
            sleep(planned.lasts).await;
            order(world, "REPLICAOF", &["NO", "ONE"]).await;
        }
        Kind::WatermarkDeleted => order_watermark(world, choice, "DEL", &[]).await,
        _ => order_watermark(world, choice, "SET", &["by hand"]).await,
    }
}

async fn break_link(proxy: &Proxy, planned: Planned) {
    match planned.choice % 7 {
        0 => proxy.cut(),
        1 => proxy.reset(),
        _ => {
            proxy.set(planned.link);
            if planned.link == Fault::Refuse {
                proxy.cut();
            }
            sleep(planned.lasts).await;
            proxy.set(Fault::Nothing);
        }
    }
}

/// walsweep may not touch the keys of one family for a while.
async fn refuse_family(world: &World, planned: Planned) -> Shown {
    let refused = planned.family();
    // A rule's keys may go together or not at all; those of other rules are none of it.
    world.shared.history.trouble_begins(families_of_rule(refused));
    let mut rights = vec!["SETUSER".to_owned(), REDIS_USER.to_owned(), "resetkeys".to_owned()];
    rights.extend(["~walsweep:*".to_owned(), "~other:*".to_owned()]);
    rights.extend(FAMILIES.iter().filter(|one| **one != refused).map(|one| format!("~{one}:*")));
    let rights: Vec<&str> = rights.iter().map(String::as_str).collect();
    order(world, "ACL", &rights).await;
    let shown = is_refused(world, refused, true).await;
    sleep(planned.lasts * 4).await;
    let still = is_refused(world, refused, true).await;
    world.shared.history.trouble_goes_on(families_of_rule(refused));
    order(world, "ACL", &["SETUSER", REDIS_USER, "~*"]).await;
    shown.and(still).and(is_refused(world, refused, false).await)
}

/// Whether an UNLINK in this family is refused to walsweep's user, on a key that nobody has.
async fn is_refused(world: &World, family: &str, wanted: bool) -> Shown {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let key = format!("{family}:nobody's");
        let asked = world.servers.cache_as_walsweep().unlink(&key).await;
        let asked = asked.map_err(|error| match error.code() {
            Some(code) => code.to_owned(),
            None => error.to_string(),
        });
        let is_refused = asked == Err("NOPERM".to_owned());
        if is_refused == wanted && (wanted || asked.is_ok()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("UNLINK of `{family}` keys gives {asked:?}"));
        }
        sleep(RETRY).await;
    }
}

impl Planned {
    /// The family of keys that walsweep loses the right to.
    pub(crate) fn family(&self) -> &'static str {
        FAMILIES[usize::try_from(self.choice).unwrap_or(0) % FAMILIES.len()]
    }
}

/// The listed standby stops, or stops to replay, while commits go on.
async fn lose_standby(world: &World, planned: Planned) -> Shown {
    let Some(standby) = &world.servers.standby else { return Err("there is none".to_owned()) };
    let text = |error: walsweep_stage::throwaway::Error| error.to_string();
    let before = world.shared.commits.load(Ordering::Relaxed);
    let mut standby = standby.lock().await;
    let shown = if planned.kind == Kind::StandbyPaused {
        let sql = standby.connect().await.map_err(text)?;
        let run = |statement| sql.query_one(statement, &[]);
        run("select pg_wal_replay_pause()::text").await.map_err(|error| error.to_string())?;
        sleep(planned.lasts * 4).await;
        let late = run("select pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()").await;
        let shown = match late.map(|row| row.try_get(0)) {
            Ok(Ok(true)) => Ok(()),
            other => Err(format!("nothing waits for the replay: {other:?}")),
        };
        run("select pg_wal_replay_resume()::text").await.map_err(|error| error.to_string())?;
        shown
    } else {
        if planned.choice.is_multiple_of(2) {
            standby.stop(StopMode::Fast).await.map_err(text)?;
        } else {
            standby.kill9().await.map_err(text)?;
        }
        sleep(planned.lasts * 4).await;
        let shown = match standby.connect().await {
            Ok(_) => Err("the standby answers".to_owned()),
            Err(_gone) => Ok(()),
        };
        standby.start_again().await.map_err(text)?;
        shown
    };
    if world.shared.commits.load(Ordering::Relaxed) == before {
        return Err("nothing was committed meanwhile".to_owned());
    }
    shown
}

/// Another walsweep waits for the same slot, takes over when this one is killed, and gives it back
/// when it is killed itself.
async fn stand_in(world: &World, planned: Planned) -> Shown {
    let Some(second) = &world.stand_in else {
        return Err("only walsweep has one".to_owned());
    };
    second.start();
    // As any service, it is started again when it ends: it refuses a Redis that is a replica just
    // then.
    let shown = tokio::select! {
        shown = takes_over(world, second, planned) => shown,
        () = second.supervise() => Err("nobody supervised it".to_owned()),
    };
    second.kill();
    match second.exits().into_iter().find(|(how, _)| how != "exit code 1") {
        Some((how, (_, words))) => Err(format!("the second ended by itself: {how}\n{words}")),
        None => shown,
    }
}

async fn takes_over(world: &World, second: &Invalidator, planned: Planned) -> Shown {
    let port = world.servers.second_http_port;
    let stands_by = wait_for(port, |answer| answer.is_some_and(|(is_ready, _)| !is_ready)).await;
    // It has asked for the slot by then, and was refused.
    sleep(planned.lasts / 2).await;
    let waits = readyz(port).await;
    world.invalidator.hold();
    let took_over = wait_for(port, |answer| answer.is_some_and(|(is_ready, _)| is_ready)).await;
    sleep(planned.lasts).await;
    world.invalidator.release();
    let back = wait_for(world.servers.http_port, |answer| answer.is_some()).await;
    let words = || second.last_words();
    match waits {
        Some((false, _)) if stands_by && took_over && back => Ok(()),
        _ => Err(format!(
            "it stood by: {stands_by} ({waits:?}), took over: {took_over}, the first came back: \
             {back}\n{}",
            words()
        )),
    }
}

async fn wait_for(port: u16, is_so: impl Fn(Option<(bool, String)>) -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if is_so(readyz(port).await) {
            return true;
        }
        sleep(RETRY).await;
    }
    false
}
