//! The race: the same pages, readers and commits before two invalidators. One removes a key as soon
//! as the commit arrives, the other is walsweep.
//!
//! Commits wait for a synchronous standby here, as where no commit may be lost: Postgres sends them
//! first, and shows them after.

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::show::Show;
use super::stage::Stage;
use super::{Error, io_error};
use crate::throwaway::{Postgres, Redis};

/// The slot of the invalidator that does not wait.
const SLOT: &str = "on_arrival";

/// Pages that are changed, each once.
const PAGES: usize = 100;

/// Readers that look at the page that is being changed.
const READERS: usize = 3;

/// The time that readers have for a page before and after it is changed.
const LOOKS: Duration = Duration::from_millis(4);

/// How long standby, slot and the last removal may take.
const LIMIT: Duration = Duration::from_secs(20);

/// How long to wait between two looks at something that takes its time.
const PAUSE: Duration = Duration::from_millis(20);

/// No page is being changed.
const NONE: i64 = -1;

/// How many pages are wrong for good, once every commit has been seen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    /// Pages that were changed.
    pub(super) pages: usize,
    /// Stale ones, where keys were removed on arrival of the commit.
    pub(super) on_arrival: usize,
    /// Stale ones, where walsweep removed them.
    pub(super) walsweep: usize,
}

/// The keys of a page: that of the invalidator that does not wait, and walsweep's.
fn keys(match_id: i64) -> [String; 2] {
    [format!("on-arrival:roundup:{match_id}"), format!("roundup:{match_id}")]
}

/// Runs the race. Gives nothing where the server lacks `test_decoding`, which the invalidator that
/// does not wait reads commits with.
pub(super) async fn run(stage: &mut Stage, show: &mut Show) -> Result<Option<Tally>, Error> {
    show.step("starting a standby that commits wait for")?;
    let standby = stage.postgres.standby("standby", &["cluster_name = 'standby'"]).await?;
    stage.postgres.conf("synchronous_standby_names = 'standby'").await?;
    let synchronous = include_str!("../../sql/football/race_synchronous.sql");
    wait("the standby is synchronous", async || {
        Ok(stage.sql.query_one(synchronous, &[]).await?.try_get(0)?)
    })
    .await?;
    let tally = match OnArrival::start(&stage.postgres, &stage.redis, &stage.sql).await? {
        Some(other) => Some(race(stage, show, other).await?),
        None => None,
    };
    stage.postgres.conf("synchronous_standby_names = ''").await?;
    drop(standby);
    Ok(tally)
}

/// Changes every page while readers look at it, waits until both invalidators are through, counts.
async fn race(stage: &mut Stage, show: &mut Show, other: OnArrival) -> Result<Tally, Error> {
    let pages = pages(&stage.sql).await?;
    let hot = Arc::new(AtomicI64::new(NONE));
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let (sql, cache) = (stage.postgres.connect().await?, stage.redis.connect().await?);
        readers.push(tokio::spawn(read(sql, cache, Arc::clone(&hot))));
    }
    let writer = stage.postgres.connect().await?;
    // As where readers of the standby have to see their own writes.
    writer.batch_execute("set synchronous_commit = remote_apply").await?;
    let write = writer.prepare(include_str!("../../sql/football/race_write.sql")).await?;
    for (number, (id, _)) in pages.iter().enumerate() {
        show.step(&format!("the race: page {} of {}", number + 1, pages.len()))?;
        hot.store(*id, Ordering::Relaxed);
        sleep(LOOKS).await;
        writer.execute(&write, &[id]).await?;
        sleep(LOOKS).await;
    }
    wait("the last commit has arrived", async || {
        Ok(other.commits.load(Ordering::Relaxed) >= pages.len())
    })
    .await?;
    show.step("the race: every commit is seen to")?;
    stage.wait_confirmed().await?;
    for reader in &readers {
        reader.abort();
    }
    let tally = count(stage).await?;
    other.end(&stage.sql).await?;
    Ok(tally)
}

/// The pages, and what each of them has to show.
async fn pages(sql: &Client) -> Result<Vec<(i64, String)>, Error> {
    let query = include_str!("../../sql/football/race_pages.sql");
    let rows = sql.query(query, &[&i64::try_from(PAGES).unwrap_or(i64::MAX)]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Compares what is cached with the rows, and removes the keys that walsweep does not know.
async fn count(stage: &mut Stage) -> Result<Tally, Error> {
    let pages = pages(&stage.sql).await?;
    let mut stale = [0; 2];
    for (id, shows) in &pages {
        for (key, stale) in keys(*id).iter().zip(&mut stale) {
            let cached: Option<String> =
                redis::cmd("GET").arg(key).query_async(&mut stage.cache).await?;
            *stale += usize::from(cached.is_some_and(|cached| cached != *shows));
        }
        redis::cmd("UNLINK").arg(&keys(*id)[0]).query_async::<()>(&mut stage.cache).await?;
    }
    Ok(Tally { pages: pages.len(), on_arrival: stale[0], walsweep: stale[1] })
}

/// Reads the page that is being changed, as any cache is read: a miss takes the row, and stores it.
async fn read(
    sql: Client,
    mut cache: MultiplexedConnection,
    hot: Arc<AtomicI64>,
) -> Result<(), Error> {
    let row = sql.prepare(include_str!("../../sql/football/race_read.sql")).await?;
    loop {
        let id = hot.load(Ordering::Relaxed);
        if id == NONE {
            sleep(PAUSE).await;
            continue;
        }
        for key in keys(id) {
            let cached: Option<String> =
                redis::cmd("GET").arg(&key).query_async(&mut cache).await?;
            if cached.is_none() {
                let shows: String = sql.query_one(&row, &[&id]).await?.try_get(0)?;
                redis::cmd("SET").arg(&key).arg(shows).query_async::<()>(&mut cache).await?;
            }
        }
    }
}

/// An invalidator that removes a key as soon as the commit arrives, once. Ended when dropped.
struct OnArrival {
    /// `pg_recvlogical`.
    reader: Child,
    /// Commits that it has removed keys for.
    commits: Arc<AtomicUsize>,
}

impl OnArrival {
    /// Starts it, and waits until it reads its slot; nothing if the server cannot decode for it.
    async fn start(
        postgres: &Postgres,
        redis: &Redis,
        sql: &Client,
    ) -> Result<Option<OnArrival>, Error> {
        let mut command = postgres.command("pg_recvlogical");
        command.args(["--dbname=postgres", "--slot", SLOT, "--create-slot", "--start"]);
        command.args(["--no-loop", "--file=-", "--plugin=test_decoding"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let failed = || io_error("start `pg_recvlogical`");
        let mut other = OnArrival { reader: child.map_err(failed())?, commits: Arc::default() };
        let mut redis = redis::Client::open(redis.url())?.get_connection()?;
        let (lines, commits) = (other.reader.stdout.take(), Arc::clone(&other.commits));
        // Blocking, as the fastest that there is: what it loses, it does not lose by being slow.
        thread::spawn(move || {
            let mut match_id = None;
            let lines = lines.into_iter().flat_map(|lines| BufReader::new(lines).lines());
            for line in lines.map_while(Result::ok) {
                match_id = changed(&line).or(match_id);
                if let Some(id) = match_id.filter(|_| line.starts_with("COMMIT")) {
                    let unlink = redis::cmd("UNLINK").arg(&keys(id)[0]).exec(&mut redis);
                    match_id = None;
                    commits.fetch_add(usize::from(unlink.is_ok()), Ordering::Relaxed);
                }
            }
        });
        let there = include_str!("../../sql/football/race_slot_there.sql");
        let deadline = Instant::now() + LIMIT;
        while !sql.query_one(there, &[&SLOT]).await?.try_get::<_, bool>(0)? {
            let ended = other.reader.try_wait().map_err(failed())?;
            if ended.is_some() || Instant::now() > deadline {
                return other.why_not();
            }
            sleep(PAUSE).await;
        }
        Ok(Some(other))
    }

    /// Nothing, if the server lacks the decoding; else what `pg_recvlogical` says.
    fn why_not<T>(mut self) -> Result<Option<T>, Error> {
        let mut said = String::new();
        drop(self.reader.kill());
        if let Some(mut stderr) = self.reader.stderr.take() {
            stderr.read_to_string(&mut said).map_err(io_error("read of `pg_recvlogical`"))?;
        }
        if said.contains("test_decoding") {
            return Ok(None);
        }
        Err(io_error("start `pg_recvlogical`")(io::Error::other(said)))
    }

    /// Ends it, and drops its slot, which would keep WAL.
    async fn end(self, sql: &Client) -> Result<(), Error> {
        drop(self);
        let drop_slot = include_str!("../../sql/football/race_drop_slot.sql");
        wait("the slot is dropped", async || Ok(sql.execute(drop_slot, &[&SLOT]).await? > 0)).await
    }
}

impl Drop for OnArrival {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        drop(self.reader.kill().and_then(|()| self.reader.wait()));
    }
}

/// The match that a line of `test_decoding` tells a change of.
fn changed(line: &str) -> Option<i64> {
    let columns = line.strip_prefix("table public.matches: UPDATE: ")?;
    let (_, id) = columns.split_once("id[bigint]:")?;
    id.split(' ').next()?.parse().ok()
}

/// Waits until something is so; fails after [`LIMIT`].
async fn wait(
    goal: &'static str,
    is_so: impl AsyncFn() -> Result<bool, Error>,
) -> Result<(), Error> {
    let deadline = Instant::now() + LIMIT;
    while !is_so().await? {
        if Instant::now() > deadline {
            return Err(Error::Late { goal, limit: LIMIT, log: String::new() });
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{LIMIT, OnArrival, changed, keys, pages, wait};
    use crate::demo::site;
    use crate::throwaway::{Postgres, PostgresOptions, Redis, RedisOptions};

    /// That is how it loses the race: its key is gone, and readers still see the old row.
    #[tokio::test]
    async fn the_other_one_removes_what_nobody_can_see_yet() {
        let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
        let redis = Redis::start(RedisOptions::default()).await.unwrap();
        let (sql, cache) = (postgres.connect().await.unwrap(), redis.connect().await.unwrap());
        for part in site::SCHEMA {
            sql.batch_execute(part).await.unwrap();
        }
        sql.batch_execute("call generate_season()").await.unwrap();
        let before = pages(&sql).await.unwrap();
        let id = before[0].0;
        let key = keys(id)[0].clone();
        redis::cmd("SET").arg(&key).arg("x").exec_async(&mut cache.clone()).await.unwrap();
        let other = OnArrival::start(&postgres, &redis, &sql).await.unwrap().unwrap();
        postgres.conf("synchronous_standby_names = 'ghost'").await.unwrap();
        let writer = postgres.connect().await.unwrap();
        let write = include_str!("../../sql/football/race_write.sql");
        let waiting = tokio::spawn(async move { writer.execute(write, &[&id]).await });
        wait("the key is gone", async || {
            let exists: bool =
                redis::cmd("EXISTS").arg(&key).query_async(&mut cache.clone()).await?;
            Ok(!exists)
        })
        .await
        .unwrap();
        assert_eq!(pages(&sql).await.unwrap(), before, "nobody sees the commit");
        postgres.conf("synchronous_standby_names = ''").await.unwrap();
        tokio::time::timeout(LIMIT, waiting).await.unwrap().unwrap().unwrap();
        assert_ne!(pages(&sql).await.unwrap(), before);
        other.end(&sql).await.unwrap();
    }

    #[test]
    fn a_change_of_a_match_is_told_from_other_lines() {
        let line = "table public.matches: UPDATE: old-key: id[bigint]:204 competition_id[text]:\
                    'cup' new-tuple: id[bigint]:204 competition_id[text]:'cup'";
        assert_eq!(changed(line), Some(204));
        for other in [
            "BEGIN 7",
            "COMMIT 7",
            "table public.models: UPDATE: id[bigint]:204",
            "table public.matches: INSERT: id[bigint]:204",
            "table public.matches: UPDATE: (no-tuple-data)",
        ] {
            assert_eq!(changed(other), None, "{other}");
        }
    }

    /// Each side has a key of its own, and walsweep's is the one that the rules name.
    #[test]
    fn the_sides_have_different_keys() {
        let [on_arrival, walsweep] = keys(7);
        assert_ne!(on_arrival, walsweep);
        assert_eq!(walsweep, "roundup:7");
    }
}
