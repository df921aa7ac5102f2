//! A service that Sentinels watch: keys go from whichever server they name, and nothing is lost
//! over a failover, the old primary of a split brain included (I2, I7).

mod access;
mod doubt;
mod failover;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use redis::aio::MultiplexedConnection;
use redis::cmd;
use walsweep::config::{self, Mode, Sentinel};
use walsweep::password::Source;
use walsweep_stage::throwaway::{Redis, RedisOptions, Sentinels, SentinelsOptions};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually};

/// A primary, which is the bed's Redis, one replica, and three Sentinels.
struct Service {
    bed: Bed,
    replica: Redis,
    sentinels: Sentinels,
}

impl Service {
    async fn start() -> Service {
        let bed = Bed::new(&[]).await;
        // Asked of a primary, this one waits for no second replica.
        let mut delay = cmd("CONFIG");
        delay.arg("SET").arg("repl-diskless-sync-delay").arg(0);
        delay.exec_async(&mut bed.cache.clone()).await.unwrap();
        let port = bed.redis.port().to_string();
        let options = RedisOptions::with_args(&["--replicaof", "127.0.0.1", &port]);
        let replica = Redis::start(options).await.unwrap();
        let sentinels = Sentinels::watch(SentinelsOptions::default(), bed.redis.port()).await;
        Service { bed, replica, sentinels: sentinels.unwrap() }
    }

    /// The addresses of the Sentinels.
    fn ports(&mut self) -> Vec<u16> {
        self.sentinels.sentinels().iter().map(Redis::port).collect()
    }

    fn settings(&mut self) -> Settings {
        let ports = self.ports();
        by_sentinels(self.bed.settings(), &ports)
    }

    /// Waits until the replica has what was written to the primary.
    async fn in_sync(&self) {
        let mut wait = cmd("WAIT");
        wait.arg(1).arg(10_000);
        // It is about the writes of its own connection.
        self.bed.fill(&["other"]).await;
        let reached: u32 = wait.query_async(&mut self.bed.cache.clone()).await.unwrap();
        assert_eq!(reached, 1, "the replica follows");
    }

    async fn cache_rows(&self) {
        self.bed.cache_rows().await;
        self.in_sync().await;
    }

    /// Waits until the Sentinels agree on the replica; the bed's Redis is that from then on. Gives
    /// the old primary.
    async fn failed_over(&mut self) -> Redis {
        let promoted = self.sentinels.primary_other_than(self.bed.redis.port()).await.unwrap();
        assert_eq!(promoted, self.replica.port());
        std::mem::swap(&mut self.bed.redis, &mut self.replica);
        self.bed.cache = self.bed.redis.connect().await.unwrap();
        let old = RedisOptions::default();
        std::mem::replace(&mut self.replica, Redis::start(old).await.unwrap())
    }

    /// Sentinels and replica can no longer log in at the primary; whoever is the user `app` can.
    async fn cut_off(&mut self) {
        let mut cache = self.bed.cache.clone();
        for words in [
            &["AUTH", "app", "hunter2"][..],
            &["ACL", "SETUSER", "default", "off"],
            &["CLIENT", "KILL", "USER", "default"],
        ] {
            run(&mut cache, words).await;
        }
    }

    /// Lets `app` in, at both servers.
    async fn with_app(&mut self) {
        let replica = self.replica.connect().await.unwrap();
        for mut server in [self.bed.cache.clone(), replica] {
            run(&mut server, &["ACL", "SETUSER", "app", "on", ">hunter2", "~*", "&*", "+@all"])
                .await;
        }
    }
}

async fn run(connection: &mut MultiplexedConnection, words: &[&str]) {
    let mut command = cmd(words[0]);
    words[1..].iter().for_each(|word| {
        command.arg(*word);
    });
    command.exec_async(connection).await.unwrap();
}

/// Settings for the service of these Sentinels.
fn by_sentinels(settings: Settings, ports: &[u16]) -> Settings {
    Settings {
        redis_url: "redis://cache/0".to_owned(),
        redis: format!("mode = \"sentinel\"\nsentinels = {:?}", urls(ports, "")),
        ..settings
    }
}

/// Their URLs, with this login.
fn urls(ports: &[u16], login: &str) -> Vec<String> {
    ports.iter().map(|port| format!("redis://{login}127.0.0.1:{port}")).collect()
}

async fn change(bed: &Bed, ids: std::ops::Range<i32>) {
    let (first, last) = (ids.start, ids.end - 1);
    let rows = format!("update item set version = version + 1 where id between {first} and {last}");
    bed.sql.run(&rows).await;
}

/// Everything is removed and confirmed, and nothing stale is left; rows that nobody changed stay.
async fn at_rest(bed: &Bed, sidecar: &Sidecar) {
    eventually(PATIENCE, "ready", || async { sidecar.readyz().await == Some(200) }).await;
    bed.settled().await;
    bed.fresh().await;
    assert!(bed.has("item:100").await, "nothing but what changed is removed");
}

/// The line that says which primary was connected to.
fn named(port: u16) -> String {
    format!("primary=\"127.0.0.1:{port}\"")
}

/// The settings of the program, for a node of it alone.
fn target(ports: &[u16]) -> config::Redis {
    let sentinel = |url: String| Sentinel { url, password: Source::None };
    let list = urls(ports, "").into_iter().map(sentinel).collect();
    config::Redis {
        mode: Mode::Sentinel(config::Sentinels { service: "cache".to_owned(), list }),
        password: Source::Given("hunter2".into()),
        ..config::Redis::at("redis://app@cache/0")
    }
}

/// A Sentinel that says forever that the primary is at this port, as it did at the beginning.
fn stale_sentinel(primary: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || drop(answer(stream, primary)));
        }
    });
    port
}

fn answer(mut stream: TcpStream, primary: u16) -> std::io::Result<()> {
    let array = |words: &[&str]| {
        let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
        format!("*{}\r\n{}", words.len(), words.collect::<String>())
    };
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let count: usize = line[1..].trim_end().parse().unwrap();
        let mut words = Vec::new();
        for _ in 0..count {
            line.clear();
            reader.read_line(&mut line)?;
            let mut word = vec![0; line[1..].trim_end().parse::<usize>().unwrap() + 2];
            reader.read_exact(&mut word)?;
            words.push(String::from_utf8(word).unwrap().trim_end().to_uppercase());
        }
        let port = primary.to_string();
        let reply = match words.get(1).map(String::as_str) {
            Some("GET-MASTER-ADDR-BY-NAME") => array(&["127.0.0.1", &port]),
            Some("MASTER") => array(&["ip", "127.0.0.1", "port", &port, "config-epoch", "0"]),
            _ => "+OK\r\n".to_owned(),
        };
        stream.write_all(reply.as_bytes())?;
        line.clear();
    }
    Ok(())
}
