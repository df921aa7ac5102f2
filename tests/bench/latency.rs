//! P3 and P4: commit acknowledged to key gone, on an idle server and at a thousand commits a
//! second, against the two clients of [`peer`](crate::peer).
//!
//! Each has a table, a publication and a slot of its own; they run in turn, block by block, each
//! alone. Each commit is to another row, so that no second removal meets a key that a later commit
//! waits for. A key's end is heard by a subscription, so nobody has to poll.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use crate::peer::Peer;
use crate::quantile;
use crate::support::{Bed, Settings, Sidecar, Sql};

/// Blocks of each program, and commits of one block.
const BLOCKS: usize = 5;
const IDLE_COMMITS: usize = 600;
const BUSY_COMMITS: usize = 3_000;

const WRITERS: usize = 4;
/// Of each writer, so that together they make a thousand commits a second.
const WRITER_PERIOD: Duration = Duration::from_millis(4);

const NAMES: [&str; 3] = ["walsweep", "least", "unsafe"];

type Ends = mpsc::Receiver<(String, Instant)>;

pub(crate) async fn run() {
    let bed = Bed::new(&["fsync = on"]).await;
    let rows = BLOCKS * (IDLE_COMMITS + BUSY_COMMITS);
    for name in NAMES {
        bed.sql
            .run(&format!(
                "create table {name} (id int primary key, version int);
                 insert into {name} select id, 0 from generate_series(0, {rows} - 1) id;
                 create publication {name} for table {name};"
            ))
            .await;
        let slot = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
        bed.sql.run(&slot).await;
    }
    let ends = listen(&bed).await;
    let mut sidecar = sidecar(&bed);
    let (mut idle, mut busy) = (HashMap::new(), HashMap::new());
    let mut first = 0;
    for _ in 0..BLOCKS {
        for name in NAMES {
            let running = Running::start(&bed, &mut sidecar, name).await;
            let some = idle_block(&bed, name, first, &ends).await;
            idle.entry(name).or_insert_with(Vec::new).extend(some);
            let some = busy_block(&bed, name, first + IDLE_COMMITS, &ends).await;
            busy.entry(name).or_insert_with(Vec::new).extend(some);
            running.stop(&mut sidecar).await;
        }
        first += IDLE_COMMITS + BUSY_COMMITS;
    }
    print("P3", "idle", &mut idle);
    print("P4", "1 000 commits/s of 4 writers", &mut busy);
}

fn print(number: &str, when: &str, samples: &mut HashMap<&str, Vec<Duration>>) {
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let [own, least, hasty] = NAMES
            .map(|one| quantile(samples.get_mut(one).expect("it ran"), share).as_secs_f64() * 1e6);
        println!(
            "| {number} | commit acknowledged to key gone, {when}, {name} | {own:.0} µs | least \
             right client {least:.0} µs (unsafe {hasty:.0} µs) | {:.2} × |",
            own / least.max(1e-3)
        );
    }
}

fn sidecar(bed: &Bed) -> Sidecar {
    let rules = "[[rule]]\nname = \"own\"\ntable = \"public.walsweep\"\n\
                 keys = [\"walsweep:{id}\"]\n";
    let mut settings = Settings::new(&bed.postgres, &bed.redis, rules);
    settings.level = "info".to_owned();
    settings.refill = "1s".to_owned();
    Sidecar::new(settings)
}

/// The one program that runs.
enum Running {
    Own,
    Peer(Peer),
}

impl Running {
    async fn start(bed: &Bed, sidecar: &mut Sidecar, name: &str) -> Running {
        if name != "walsweep" {
            let peer = Peer::start(bed, name, name == "least");
            sleep(Duration::from_millis(500)).await;
            return Running::Peer(peer);
        }
        sidecar.start();
        sidecar.wait_ready().await;
        // A first start sweeps everything, and again after the refill window.
        bed.settled().await;
        Running::Own
    }

    async fn stop(self, sidecar: &mut Sidecar) {
        match self {
            Running::Own => drop(sidecar.sigterm().await),
            Running::Peer(peer) => drop(peer),
        }
        // The server notices, and lets go of the slot.
        sleep(Duration::from_millis(500)).await;
    }
}

async fn fill(bed: &Bed, name: &str, ids: std::ops::Range<usize>) {
    let mut pipeline = redis::pipe();
    for id in ids {
        pipeline.set(format!("{name}:{id}"), "cached").ignore();
    }
    let () = pipeline.query_async(&mut bed.cache.clone()).await.unwrap();
}

/// One commit after the other; how long after each acknowledgement the key was gone.
async fn idle_block(bed: &Bed, name: &str, first: usize, ends: &Ends) -> Vec<Duration> {
    let ids = first..first + IDLE_COMMITS;
    fill(bed, name, ids.clone()).await;
    let mut times = Vec::new();
    for id in ids {
        // Between two commits the servers and the client come to rest.
        sleep(Duration::from_millis(2)).await;
        while ends.try_recv().is_ok() {}
        bed.sql.run(&format!("update {name} set version = 1 where id = {id}")).await;
        let acknowledged = Instant::now();
        let gone = ends.recv_timeout(Duration::from_secs(10));
        let (key, gone) = gone.expect("the key goes");
        assert_eq!(key, format!("{name}:{id}"));
        times.push(gone.saturating_duration_since(acknowledged));
    }
    times
}

/// Lets several writers commit at a steady pace; gives how long after each acknowledgement the key
/// was gone.
async fn busy_block(bed: &Bed, name: &str, first: usize, ends: &Ends) -> Vec<Duration> {
    fill(bed, name, first..first + BUSY_COMMITS).await;
    sleep(Duration::from_millis(500)).await;
    while ends.try_recv().is_ok() {}
    let start = Instant::now();
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let sql = Sql::connect(&bed.postgres).await;
        let update = format!("update {name} set version = 1 where id = $1");
        let update = sql.client().prepare(&update).await.unwrap();
        let mut clock = interval_at(
            start + WRITER_PERIOD * u32::try_from(number).unwrap() / 4 + WRITER_PERIOD,
            WRITER_PERIOD,
        );
        clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
        writers.push(tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for id in (first + number..first + BUSY_COMMITS).step_by(WRITERS) {
                clock.tick().await;
                sql.client().execute(&update, &[&i32::try_from(id).unwrap()]).await.unwrap();
                acknowledged.push((id, Instant::now()));
            }
            acknowledged
        }));
    }
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    let mut gone = HashMap::new();
    while gone.len() < BUSY_COMMITS {
        let (key, at) = ends.recv_timeout(Duration::from_secs(10)).expect("the keys go");
        gone.insert(key, at);
    }
    let time_of =
        |(id, at): (usize, Instant)| gone[&format!("{name}:{id}")].saturating_duration_since(at);
    acknowledged.into_iter().map(time_of).collect()
}

/// The names of keys that are removed and the moments, by a thread that does nothing but listen.
async fn listen(bed: &Bed) -> Ends {
    let mut config = redis::cmd("CONFIG");
    config.arg("SET").arg("notify-keyspace-events").arg("Eg");
    config.exec_async(&mut bed.cache.clone()).await.unwrap();
    let (sender, ends) = mpsc::channel();
    let mut stream = TcpStream::connect(("127.0.0.1", bed.redis.port())).unwrap();
    stream.write_all(b"SUBSCRIBE __keyevent@0__:del\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines();
    // `*3`, and a length and a text for each of: subscribe, the channel; and a number.
    assert_eq!(lines.by_ref().take(6).filter(Result::is_ok).count(), 6, "subscribed");
    thread::spawn(move || {
        // Of each message the seventh line is the key.
        while let Some(Ok(key)) = lines.nth(6) {
            if sender.send((key, Instant::now())).is_err() {
                return;
            }
        }
    });
    ends
}
