//! How each fault strikes, and how it is mended.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep, timeout};
use walsweep::failpoint::{Point, VARIABLE};
use walsweep::throwaway::{Signal, StopMode, signal};

use crate::World;
use crate::cached::{Key, PHANTOMS, Rows};
use crate::faults::{Kind, Planned};
use crate::servers::NAME;
use crate::shared::{PATIENCE, RETRY};
use crate::support::{Fault, Proxy};

/// How long a crash point may take to be reached.
const REACH: Duration = Duration::from_secs(4);

/// Lets a fault strike, and mends it.
pub(crate) async fn inject(world: &World, planned: Planned) {
    sleep(planned.after).await;
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
            servers.redis.lock().await.pause().unwrap();
            sleep(planned.lasts).await;
            servers.redis.lock().await.resume().unwrap();
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
        order(world, "DEL", &[&watermark()]).await;
    }
    let times = if sweeps { 1 } else { planned.choice % 5 + 1 };
    let value = format!("{}:{times}", planned.point.as_str());
    let struck = world.invalidator.doom((VARIABLE, &value), REACH).await;
    world.count(if struck { "(crash points reached)" } else { "(crash points not reached)" });
}

fn watermark() -> String {
    format!("walsweep:{NAME}")
}

/// Runs statements until Postgres takes them.
async fn insist(world: &World, statements: &str) {
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
        if let Ok(rows) = Rows::open(&world.servers.postgres_url).await
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
    let rows = Rows::open(&world.servers.postgres_url).await?;
    let mut cache = world.servers.cache().await?;
    sql.batch_execute("set synchronous_commit = off").await?;
    for id in PHANTOMS {
        let version = shared.next_version();
        let update = format!("update item set version = {version} where id = {id}");
        sql.batch_execute(&update).await?;
        shared.committed(&[id], version);
        let value = rows.value(Key::Item(id)).await?;
        let () = cache.set(Key::Item(id).name(), value).await?;
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

async fn restart_redis(world: &World, planned: Planned) {
    let is_older = planned.kind == Kind::RedisOlder;
    if is_older {
        order(world, "SAVE", &[]).await;
        sleep(planned.lasts).await;
        if planned.choice.is_multiple_of(2) {
            // What was removed for most rows is covered by a watermark before Redis forgets it.
            world.shared.narrow.store(true, Ordering::Relaxed);
            sleep(world.shared.window * 2).await;
        }
    }
    let mut redis = world.servers.redis.lock().await;
    redis.kill9().await.unwrap();
    if !is_older {
        drop(std::fs::remove_file(redis.dir().join("dump.rdb")));
    }
    sleep(planned.lasts / 4).await;
    redis.start_again().await.unwrap();
    world.shared.history.restored();
}

/// Sends a command to Redis, as somebody with a console would. It may be refused.
async fn order(world: &World, command: &str, args: &[&str]) {
    let ask = async {
        let mut cache: MultiplexedConnection = world.servers.cache().await.ok()?;
        redis::cmd(command).arg(args).exec_async(&mut cache).await.ok()
    };
    if !matches!(timeout(PATIENCE, ask).await, Ok(Some(()))) {
        world.count(&format!("({command} was refused)"));
    }
}

/// What a command does and another takes back.
async fn trouble_redis(world: &World, planned: Planned) {
    let dead_port = "1";
    let forbidden = ["-unlink", "-scan", "-eval"][usize::try_from(planned.choice % 3).unwrap()];
    let watermark = watermark();
    let (begin, end): (Vec<&str>, Vec<&str>) = match planned.kind {
        Kind::RedisClients => (vec!["CLIENT", "KILL", "TYPE", "normal"], vec![]),
        Kind::RedisFull => {
            order(world, "CONFIG", &["SET", "maxmemory-policy", "noeviction"]).await;
            (vec!["CONFIG", "SET", "maxmemory", "1"], vec!["CONFIG", "SET", "maxmemory", "0"])
        }
        Kind::RedisForbids => (
            vec!["ACL", "SETUSER", "default", forbidden],
            vec!["ACL", "SETUSER", "default", "+@all"],
        ),
        Kind::RedisReadonly => {
            (vec!["REPLICAOF", "127.0.0.1", dead_port], vec!["REPLICAOF", "NO", "ONE"])
        }
        Kind::WatermarkDeleted => (vec!["DEL", &watermark], vec![]),
        _ => (vec!["SET", &watermark, "by hand"], vec![]),
    };
    if let Some((command, args)) = begin.split_first() {
        order(world, command, args).await;
    }
    if let Some((command, args)) = end.split_first() {
        sleep(planned.lasts).await;
        order(world, command, args).await;
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
