//! The yardstick: an invalidator as most are written. It removes keys as soon as COMMIT arrives,
//! once, and confirms at once.
//!
//! One that does it twice is the folk remedy: it removes keys once more when the refill window is
//! over, and tries again where a node refuses. While nothing fails that is enough; a failover that
//! loses removals it does not notice.
//!
//! In a cluster it removes keys where they are, and passes over every primary; of a service it asks
//! the Sentinels who the primary is.
//!
//! It is built of walsweep's own parts up to the keys, so that what it lacks is what makes the
//! difference: the gate, the second removal, the watermark.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use redis::{RedisResult, cmd};
use tokio::sync::mpsc;
use tokio::time::sleep;
use walsweep::capture::{Frame, Replication, StreamOptions};
use walsweep::config::{Config, parse};
use walsweep::decode::decode;
use walsweep::gather::{Gathered, Gatherer};
use walsweep::keys::{Binding, Pattern, Rules};

use crate::cache::{Cache, Directory, Mode};
use crate::servers::login;
use crate::shared::RETRY;

/// Patterns that may wait for a pass.
const PATTERNS_MAX: usize = 10_000;

/// Runs until something fails; with `is_twice`, longer.
pub(crate) async fn run(is_twice: bool) {
    let file = std::env::var("PLAIN_CONFIG").expect("the checker names the configuration");
    let text = std::fs::read_to_string(file).unwrap();
    let config: Config =
        parse(&text, &|name| std::env::var(name).ok(), Path::new("")).config.unwrap();
    let rules = Rules::with_lookups(&config.rules, &config.lookups).unwrap();
    let mut bound = rules.bind(Binding::default());
    let endpoint = &config.postgres.replication_endpoint;
    let replication = Replication::connect(endpoint, "naive").await.unwrap();
    let options = StreamOptions::default();
    let started = replication.start(&config.postgres.slot, &config.postgres.publication, options);
    let mut slot = started.await.unwrap();
    let again = config.refill.window;
    let mut remover = Remover::start(is_twice);
    let mut gatherer = Gatherer::new();
    let mut keys = rules.key_set();
    // It looks nothing up and asks for no refresh: all that either could produce goes, at the same
    // moment as the keys.
    let mut more = BTreeSet::new();
    loop {
        let payload = match slot.next().await.unwrap() {
            Frame::Data { payload, .. } => payload,
            Frame::Part { .. } => panic!("the checker writes no large row"),
            Frame::Keepalive { wal_end, .. } => {
                if gatherer.in_transaction().is_none() {
                    slot.confirm(wal_end);
                }
                slot.send_status(false).await.unwrap();
                continue;
            }
        };
        match gatherer.push(decode(payload).unwrap()).unwrap() {
            Gathered::Logical(message) if message.transactional => drop(more.insert("stat:*")),
            // It asks for whole transactions, so nothing comes in blocks.
            Gathered::Nothing
            | Gathered::Logical(_)
            | Gathered::Block(_)
            | Gathered::Pause
            | Gathered::StreamCommitted(_)
            | Gathered::Aborted { .. }
            | Gathered::ShapeUndone { .. } => {}
            Gathered::Change(change) => {
                if change.relation.name == "page" {
                    more.insert("label:*");
                }
                bound.add(&change, &mut keys);
            }
            Gathered::Truncate(all) => all.iter().for_each(|one| bound.add(one, &mut keys)),
            Gathered::Committed(transaction) => {
                let keys = std::mem::replace(&mut keys, rules.key_set());
                let exact = names(keys.exact().map(|(_, key)| key.to_vec()).collect());
                let mut globs: Vec<Pattern> =
                    keys.patterns().map(|(_, pattern)| pattern.clone()).collect();
                let more = std::mem::take(&mut more);
                globs.extend(more.into_iter().map(|glob| Pattern::parse(glob.as_bytes())));
                remover.remove(&exact, &globs).await;
                if is_twice {
                    let mut remover = remover.clone();
                    tokio::spawn(async move {
                        sleep(again).await;
                        remover.remove(&exact, &globs).await;
                    });
                }
                slot.confirm(transaction.end_lsn);
                slot.send_status(false).await.unwrap();
            }
        }
    }
}

/// Whoever removes keys, at once and perhaps again.
#[derive(Clone)]
struct Remover {
    directory: Arc<Directory>,
    cache: Cache,
    /// It tries until it succeeds, instead of ending.
    is_patient: bool,
    patterns: mpsc::Sender<Pattern>,
}

impl Remover {
    fn start(is_patient: bool) -> Remover {
        let directory = Directory::of_environment();
        if directory.mode() != Mode::Standalone {
            tokio::spawn(Arc::clone(&directory).watch());
        }
        let cache = Cache::new(&directory, login());
        let (patterns, received) = mpsc::channel(PATTERNS_MAX);
        let remover = Remover { directory, cache, is_patient, patterns };
        tokio::spawn(remover.clone().sweep(received));
        remover
    }

    async fn remove(&mut self, keys: &[String], patterns: &[Pattern]) {
        self.unlink(keys).await;
        for pattern in patterns {
            self.patterns.send(pattern.clone()).await.unwrap();
        }
    }

    async fn unlink(&mut self, names: &[String]) {
        while let Err(error) = self.try_unlink(names).await {
            assert!(self.is_patient, "remove keys: {error}");
            sleep(RETRY).await;
        }
    }

    /// In a cluster one by one, since a command with keys of several slots is refused.
    async fn try_unlink(&mut self, names: &[String]) -> RedisResult<()> {
        if self.directory.mode() == Mode::Cluster {
            for name in names {
                self.cache.unlink(name).await?;
            }
        } else if !names.is_empty() {
            self.cache.ask::<()>("", cmd("UNLINK").arg(names)).await?;
        }
        Ok(())
    }

    /// Whatever matches a pattern, in one pass over all primaries for all that wait.
    async fn sweep(mut self, mut patterns: mpsc::Receiver<Pattern>) {
        let mut waiting = Vec::new();
        while patterns.recv_many(&mut waiting, PATTERNS_MAX).await > 0 {
            while let Err(error) = self.pass(&waiting).await {
                assert!(self.is_patient, "sweep: {error}");
                sleep(RETRY).await;
            }
            waiting.clear();
        }
    }

    async fn pass(&mut self, patterns: &[Pattern]) -> RedisResult<()> {
        for port in self.directory.primaries().await {
            let mut node = self.cache.connection(port).await?;
            let mut cursor = 0_u64;
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(cursor).arg("COUNT").arg(1000);
                let page: RedisResult<(u64, Vec<Vec<u8>>)> = scan.query_async(&mut node).await;
                let (next, mut page) = page.map_err(|error| self.cache.broken(port, error))?;
                page.retain(|key| patterns.iter().any(|pattern| pattern.matches(key)));
                self.unlink(&names(page)).await;
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn names(keys: Vec<Vec<u8>>) -> Vec<String> {
    keys.into_iter().map(|key| String::from_utf8(key).unwrap()).collect()
}
