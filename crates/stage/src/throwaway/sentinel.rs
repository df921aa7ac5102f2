//! Throwaway Sentinels, with the servers that they watch
//! (<https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/>).

use std::collections::HashMap;
use std::time::Duration;

use redis::cmd;

use super::{Error, Redis, RedisOptions, wait};

/// How to start [`Sentinels`].
#[derive(Clone, Debug)]
pub struct SentinelsOptions {
    /// The name of the service that they watch.
    pub service: String,
    /// How many Sentinels there are; most of them have to agree on a failover.
    pub sentinels: usize,
    /// How many replicas the primary has.
    pub replicas: usize,
    /// How long a primary may not answer before it counts as down.
    pub down_after: Duration,
    /// How each of the servers is started.
    pub server: RedisOptions,
}

impl Default for SentinelsOptions {
    /// Three Sentinels that wait a second, over a primary with one replica, by the name `cache`.
    fn default() -> SentinelsOptions {
        SentinelsOptions {
            service: "cache".to_owned(),
            sentinels: 3,
            replicas: 1,
            down_after: Duration::from_secs(1),
            server: RedisOptions::default(),
        }
    }
}

/// Running Sentinels and servers, ended and removed when dropped.
#[derive(Debug)]
pub struct Sentinels {
    service: String,
    servers: Vec<Redis>,
    sentinels: Vec<Redis>,
}

impl Sentinels {
    /// Starts a primary, its replicas, and Sentinels who watch it; waits as [`Sentinels::watch`]
    /// does, and fails as that does.
    pub async fn start(options: SentinelsOptions) -> Result<Sentinels, Error> {
        let mut servers = vec![Redis::start(options.server.clone()).await?];
        let port = servers[0].port();
        for _ in 0..options.replicas {
            let mut replica = options.server.clone();
            let follow = ["--replicaof", "127.0.0.1", &port.to_string()].map(str::to_owned);
            replica.args.extend(follow);
            servers.push(Redis::start(replica).await?);
        }
        // Asked of a primary, this one waits for no second replica.
        let mut delay = cmd("CONFIG");
        delay.arg("SET").arg("repl-diskless-sync-delay").arg(0);
        delay.exec_async(&mut servers[0].connect().await?).await?;
        let mut sentinels = Sentinels::watch(options, port).await?;
        sentinels.servers = servers;
        Ok(sentinels)
    }

    /// Starts Sentinels over a primary that stands, at this port of 127.0.0.1, and waits until they
    /// know each other and its replicas: some two seconds. Fails as [`Redis::start`] does, or when
    /// that takes longer than 30 s.
    pub async fn watch(options: SentinelsOptions, primary: u16) -> Result<Sentinels, Error> {
        let SentinelsOptions { service, sentinels: count, replicas, down_after, server } = options;
        let most = count / 2 + 1;
        let conf = format!(
            "sentinel monitor {service} 127.0.0.1 {primary} {most}\n\
             sentinel down-after-milliseconds {service} {}\n\
             sentinel failover-timeout {service} 5000\n",
            down_after.as_millis()
        );
        let mut sentinels = Vec::with_capacity(count);
        for _ in 0..count {
            let options = RedisOptions {
                server: server.server.clone(),
                args: vec!["--sentinel".to_owned()],
                conf: Some(conf.clone()),
            };
            sentinels.push(Redis::start(options).await?);
        }
        let sentinels = Sentinels { service, servers: Vec::new(), sentinels };
        let wanted = [("num-other-sentinels", count - 1), ("num-slaves", replicas)];
        sentinels
            .wait("know all others", async || {
                for sentinel in &sentinels.sentinels {
                    let facts = sentinels.facts(sentinel).await?;
                    let is = |(name, count): &(&str, usize)| {
                        facts.get(*name).is_some_and(|value| *value == count.to_string())
                    };
                    if !wanted.iter().all(is) {
                        return Ok(None);
                    }
                }
                Ok(Some(()))
            })
            .await?;
        Ok(sentinels)
    }

    /// The name of the service.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The servers: the first primary, then its replicas.
    pub fn servers(&mut self) -> &mut [Redis] {
        &mut self.servers
    }

    /// The Sentinels, each of which is a Redis without data.
    pub fn sentinels(&mut self) -> &mut [Redis] {
        &mut self.sentinels
    }

    /// The port of whom the running Sentinels take for the primary; `None` while they do not agree.
    /// Fails when a Sentinel does not answer.
    pub async fn primary(&self) -> Result<Option<u16>, Error> {
        let mut ports = Vec::new();
        for sentinel in self.sentinels.iter().filter(|one| one.is_running()) {
            let mut ask = cmd("SENTINEL");
            ask.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service);
            let mut connection = sentinel.connect().await?;
            let (_host, port): (String, u16) = ask.query_async(&mut connection).await?;
            ports.push(port);
        }
        ports.dedup();
        Ok(if let [port] = ports.as_slice() { Some(*port) } else { None })
    }

    /// Waits until the Sentinels agree on another primary than this one, and gives its port: some
    /// two seconds after the primary is gone.
    pub async fn primary_other_than(&self, port: u16) -> Result<u16, Error> {
        self.wait("elect another primary", async || {
            Ok(self.primary().await?.filter(|other| *other != port))
        })
        .await
    }

    /// Lets a replica take over by hand, without the consent of the others. Fails when no Sentinel
    /// runs, or it refuses, such as during another failover.
    pub async fn fail_over(&self) -> Result<(), Error> {
        let running = self.sentinels.iter().find(|one| one.is_running());
        let sentinel = running.ok_or(Error::Stopped { name: "sentinel" })?;
        let mut order = cmd("SENTINEL");
        order.arg("FAILOVER").arg(&self.service);
        Ok(order.exec_async(&mut sentinel.connect().await?).await?)
    }

    /// The facts that a Sentinel knows of the primary.
    async fn facts(&self, sentinel: &Redis) -> Result<HashMap<String, String>, Error> {
        let mut ask = cmd("SENTINEL");
        ask.arg("MASTER").arg(&self.service);
        Ok(ask.query_async(&mut sentinel.connect().await?).await?)
    }

    async fn wait<T>(
        &self,
        goal: &'static str,
        question: impl AsyncFn() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        let log = || self.sentinels.iter().map(Redis::log).collect::<Vec<_>>().join("\n\n");
        wait("sentinel", goal, log, question).await
    }
}
