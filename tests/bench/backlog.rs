//! P1 and P2: a backlog of a million row changes, decoded and mapped, against `pg_recvlogical`.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::median;
use crate::support::{Bed, Settings, Sidecar};

const ROWS: f64 = 1_000_000.0;
const ROUNDS: usize = 4;

/// The rules of the root `config.toml` for predictions, by name and shape.
const RULES: &str = r#"
[[rule]]
name = "predictions"
table = "public.predictions"
keys = ["db:predictions:{match_id}", "db:leaderboard:*", "stats:leaderboard:*", "db:stats:overall",
        "db:models:top-performing", "stats:overall:*", "db:model:{model_id}:stats", "stats:model:*"]
"#;

/// Wall and CPU seconds.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
}

pub(crate) async fn run() {
    let bed = Bed::new(&["max_wal_size = 4GB", "wal_sender_timeout = 60s"]).await;
    bed.sql
        .run(
            "create table predictions (id bigint primary key, match_id int, model_id int,
                                       status text, total_points int);
             alter table predictions replica identity full;
             create publication bench for table predictions;",
        )
        .await;
    bed.sql.run("select pg_create_logical_replication_slot('base', 'pgoutput')").await;
    bed.sql
        .run(
            "create procedure load() language plpgsql as $$ begin
               for i in 0..999 loop
                 insert into predictions select i * 1000 + g, i, g % 20, 'scored', g % 7
                   from generate_series(1, 1000) g;
                 commit;
               end loop;
             end $$",
        )
        .await;
    bed.sql.run("call load()").await;
    let end: String = bed.sql.one("select pg_current_wal_lsn()::text").await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for name in [format!("peer{round}"), format!("own{round}")] {
            let copy = format!("select pg_copy_logical_replication_slot('base', '{name}')");
            bed.sql.run(&copy).await;
        }
        theirs.push(pg_recvlogical(&bed, &format!("peer{round}"), &end).await);
        ours.push(walsweep(&bed, &format!("own{round}")).await);
    }
    let wall = |costs: &[Cost]| median(&mut costs.iter().map(|one| one.wall).collect::<Vec<_>>());
    let cpu = |costs: &[Cost]| median(&mut costs.iter().map(|one| one.cpu).collect::<Vec<_>>());
    let (own, peer) = (ROWS / wall(&ours), ROWS / wall(&theirs));
    println!(
        "| P1 | row changes drained per second, backlog of 1 M rows | {:.0} k | `pg_recvlogical` \
         {:.0} k | {:.2} × |",
        own / 1e3,
        peer / 1e3,
        own / peer
    );
    println!(
        "| P2 | client CPU seconds for that backlog | {:.2} | {:.2} | {:.2} × |",
        cpu(&ours),
        cpu(&theirs),
        cpu(&ours) / cpu(&theirs)
    );
}

async fn pg_recvlogical(bed: &Bed, slot: &str, end: &str) -> Cost {
    let mut command = bed.postgres.command("pg_recvlogical");
    command.args(["--dbname", "postgres", "--slot", slot, "--start", "--no-loop"]);
    command.args(["-o", "proto_version=1", "-o", "publication_names=bench"]);
    command.args(["--file", "/dev/null", "--fsync-interval", "0", "--endpos", end]);
    // Over TCP, as walsweep: the tools prefer the socket's folder that the environment names.
    command.args(["--host", "127.0.0.1"]);
    let began = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut cpu = 0.0;
    loop {
        cpu = cpu_seconds(child.id()).unwrap_or(cpu);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "pg_recvlogical: {status}");
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    Cost { wall: began.elapsed().as_secs_f64(), cpu }
}

async fn walsweep(bed: &Bed, slot: &str) -> Cost {
    let mut settings = Settings::new(&bed.postgres, &bed.redis, RULES);
    settings.name = slot.to_owned();
    settings.publication = Some("bench".to_owned());
    settings.level = "info".to_owned();
    settings.refill = "1s".to_owned();
    let mut sidecar = Sidecar::new(settings);
    let began = Instant::now();
    sidecar.start();
    while sidecar.get("/healthz").await.is_none() {
        sleep(Duration::from_millis(1)).await;
    }
    // Whoever asks for metrics has them written by the thread that is measured.
    while sidecar.metric("walsweep_transactions_total").await < 1000.0 {
        sleep(Duration::from_millis(50)).await;
    }
    let wall = began.elapsed().as_secs_f64();
    let cpu = cpu_seconds(sidecar.id()).unwrap();
    sidecar.kill9();
    Cost { wall, cpu }
}

/// User and system time of a process, from `/proc` in ticks of 10 ms.
pub(crate) fn cpu_seconds(id: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}
