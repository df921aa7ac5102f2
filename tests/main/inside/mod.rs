//! More than a key: fields of hashes, keys that sets name, and messages of removals.

mod fields;
mod publish;
mod refused;
mod spread;
mod tags;

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, Pipeline, Value, cmd};
use tokio::time::sleep;
use walsweep_stage::throwaway::Redis;

use crate::support::{Bed, Settings, Sidecar};

/// Runs a command; its words stand between spaces.
async fn run<T: FromRedisValue>(cache: &MultiplexedConnection, words: &str) -> T {
    let mut words = words.split(' ');
    let mut command = cmd(words.next().unwrap());
    command.arg(words.collect::<Vec<_>>());
    command.query_async(&mut cache.clone()).await.unwrap()
}

impl Bed {
    /// Runs a command in Redis; its words stand between spaces.
    async fn run<T: FromRedisValue>(&self, words: &str) -> T {
        run(&self.cache, words).await
    }

    /// Changes an item.
    async fn change(&self, id: u32) {
        let update = format!("update item set version = version + 1 where id = {id}");
        self.sql.run(&update).await;
    }

    /// A sidecar with these rules, and nothing owed of its start.
    async fn with(&self, rules: &str, change: impl FnOnce(&mut Settings)) -> Sidecar {
        let mut settings = Settings { rules: rules.to_owned(), ..self.settings() };
        change(&mut settings);
        let sidecar = Sidecar::set_up(settings).await;
        self.settled().await;
        sidecar
    }
}

/// Runs `one` for each number, in few round trips.
async fn many(cache: &MultiplexedConnection, count: usize, one: impl Fn(usize, &mut Pipeline)) {
    for from in (0..count).step_by(5_000) {
        let mut pipeline = Pipeline::new();
        for number in from..(from + 5_000).min(count) {
            one(number, &mut pipeline);
        }
        let _: Value = pipeline.query_async(&mut cache.clone()).await.unwrap();
    }
}

/// An entry of the slow log: number, time, microseconds, words of the command, address and name of
/// the client (<https://redis.io/docs/latest/commands/slowlog-get/>).
type Logged = (u64, u64, u64, Vec<Vec<u8>>, String, String);

/// How long each call of these commands has held Redis since `watch_stalls`, in microseconds.
async fn stalls(redis: &Redis, commands: &[&str]) -> Vec<u64> {
    let mut cache = redis.connect().await.unwrap();
    let log: Vec<Logged> = cmd("SLOWLOG").arg("GET").arg(-1).query_async(&mut cache).await.unwrap();
    let is_one = |words: &[Vec<u8>]| {
        commands.iter().any(|command| words[0].eq_ignore_ascii_case(command.as_bytes()))
    };
    let of_them = log.into_iter().filter(|(_, _, _, words, ..)| is_one(words));
    of_them.map(|(_, _, took, ..)| took).collect()
}

/// Logs every command from now on.
async fn watch_stalls(bed: &Bed) {
    bed.run::<()>("CONFIG SET slowlog-log-slower-than 0 slowlog-max-len 100000").await;
    bed.run::<()>("SLOWLOG RESET").await;
}

/// How often commands were called in all.
async fn calls(bed: &Bed, commands: &[&str]) -> u64 {
    let mut sum = 0;
    for command in commands {
        sum += bed.calls(command).await;
    }
    sum
}

/// A while in which nothing more is to happen.
async fn rest() {
    sleep(Duration::from_millis(300)).await;
}
