//! P3: commit acknowledged to key gone on an idle server, against a deliberately unsafe client that
//! removes the key as soon as COMMIT arrives: no gate, no watermark, no second removal.
//!
//! Each has a table of its own, and both run all the time; commits go to one and the other in
//! turn, each to another row, so that no second removal meets a key that a later commit waits for.
//! A key's end is heard by a subscription, so nobody has to poll.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use redis::AsyncCommands;
use tokio::time::Instant;
use walsweep::capture::{Frame, Replication, StreamOptions};
use walsweep::postgres::Endpoint;

use crate::quantile;
use crate::support::{Bed, Settings, Sidecar};

const COMMITS: usize = 3000;

pub(crate) async fn run() {
    let bed = Bed::new(&["fsync = on"]).await;
    for name in ["gated", "unsafe"] {
        bed.sql
            .run(&format!(
                "create table {name} (id int primary key, version int);
                 insert into {name} select id, 0 from generate_series(1, {COMMITS}) id;
                 create publication {name} for table {name};"
            ))
            .await;
        let slot = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
        bed.sql.run(&slot).await;
    }
    let rules = "[[rule]]\nname = \"gated\"\ntable = \"public.gated\"\nkeys = [\"gated:{id}\"]\n";
    let mut settings = Settings::new(&bed.postgres, &bed.redis, rules);
    settings.name = "gated".to_owned();
    settings.level = "info".to_owned();
    settings.refill = "1s".to_owned();
    let mut sidecar = Sidecar::new(settings);
    sidecar.start();
    sidecar.wait_ready().await;
    // A first start sweeps everything, and again after the refill window.
    bed.settled().await;
    spawn_unsafe_client(bed.postgres.url(), bed.redis.url());
    let ends = listen(&bed).await;
    let (mut gated, mut hasty) = (Vec::new(), Vec::new());
    for id in 1..=COMMITS {
        gated.push(commit(&bed, "gated", id, &ends).await);
        hasty.push(commit(&bed, "unsafe", id, &ends).await);
    }
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let (own, peer) = (quantile(&mut gated, share), quantile(&mut hasty, share));
        println!(
            "| P3 | commit acknowledged to key gone, idle, {name} | {:.0} µs | unsafe client \
             {:.0} µs | {:.2} × |",
            own.as_secs_f64() * 1e6,
            peer.as_secs_f64() * 1e6,
            own.as_secs_f64() / peer.as_secs_f64().max(1e-9)
        );
    }
}

/// One commit; how long after its acknowledgement the key was gone.
async fn commit(bed: &Bed, name: &str, id: usize, ends: &mpsc::Receiver<Instant>) -> Duration {
    let () = bed.cache.clone().set(format!("{name}:{id}"), "cached").await.unwrap();
    // Between two commits the server and both clients come to rest.
    tokio::time::sleep(Duration::from_millis(2)).await;
    while ends.try_recv().is_ok() {}
    bed.sql.run(&format!("update {name} set version = 1 where id = {id}")).await;
    let acknowledged = Instant::now();
    let gone = ends.recv_timeout(Duration::from_secs(10));
    let gone = gone.expect("the key goes");
    gone.saturating_duration_since(acknowledged)
}

/// The moments at which keys are removed, by a thread that does nothing but listen.
async fn listen(bed: &Bed) -> mpsc::Receiver<Instant> {
    let mut config = redis::cmd("CONFIG");
    config.arg("SET").arg("notify-keyspace-events").arg("Eg");
    config.exec_async(&mut bed.cache.clone()).await.unwrap();
    let (sender, ends) = mpsc::channel();
    let mut stream = TcpStream::connect(("127.0.0.1", bed.redis.port())).unwrap();
    stream.write_all(b"SUBSCRIBE __keyevent@0__:del\r\n").unwrap();
    let mut buffer = [0; 4096];
    let subscribed = stream.read(&mut buffer).unwrap();
    assert!(subscribed > 0, "subscribed");
    thread::spawn(move || {
        while stream.read(&mut buffer).is_ok_and(|size| size > 0) {
            if sender.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    ends
}

/// The unsafe client, on a thread and a runtime of its own.
fn spawn_unsafe_client(postgres: String, redis: String) {
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let endpoint = Endpoint::parse(&postgres).unwrap();
            let replication = Replication::connect(&endpoint, "unsafe").await.unwrap();
            let options = StreamOptions::default();
            let mut slot = replication.start("unsafe", "unsafe", options).await.unwrap();
            let info: redis::ConnectionInfo = redis.parse().unwrap();
            let tcp = info.tcp_settings().clone().set_nodelay(true);
            let client = redis::Client::open(info.set_tcp_settings(tcp)).unwrap();
            let mut cache = client.get_multiplexed_async_connection().await.unwrap();
            let mut id = 0;
            loop {
                // The server ends with the benchmark; were it before, a key would not go.
                let Ok(frame) = slot.next().await else { return };
                match frame {
                    Frame::Data { payload, .. } if payload.first() == Some(&b'C') => {
                        id += 1;
                        let () = cache.unlink(format!("unsafe:{id}")).await.unwrap();
                    }
                    Frame::Data { .. } | Frame::Part { .. } => {}
                    Frame::Keepalive { .. } => slot.send_status(false).await.unwrap(),
                }
            }
        });
    });
}
