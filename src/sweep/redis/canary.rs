//! The key of a probe: put into a target, and watched until it is gone. It stands among walsweep's
//! own keys, which no pass takes, so that only the probe's own message lets it go.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cmd;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::cluster;
use super::connect::{classify, connect};
use super::node::{Error, Kind};
use crate::config::{Mode, Target};
use crate::keys::canary;
use crate::sweep::proof::evidence::key_name;

/// Redis drops a canary so long after its probe should have ended, whatever became of that.
const SPARE: Duration = Duration::from_secs(60);

/// So many looks follow each other without a pause: a removal is a matter of a millisecond.
const QUICK_LOOKS: u32 = 20;

/// The pause between two later looks: this part of the time that has passed, within bounds.
const PAUSE: (u32, Duration, Duration) = (16, Duration::from_millis(1), Duration::from_millis(20));

/// How long Redis has to take a canary back.
const TAKE_BACK: Duration = Duration::from_secs(1);

/// A canary in one target.
pub struct Canary {
    connection: MultiplexedConnection,
    key: String,
    is_gone: bool,
}

impl Canary {
    /// Puts the canary of a nonce into a target, for a probe that takes so long at most. In a
    /// cluster it is with one primary, which the nonce decides.
    ///
    /// # Errors
    ///
    /// The server is not reached, or does not take it.
    pub async fn place(target: &Target, nonce: &str, limit: Duration) -> Result<Canary, Error> {
        let Target { redis, slot, .. } = target;
        let key = canary(&key_name(&redis.prefix, slot), nonce);
        let server = match redis.mode {
            Mode::Cluster { .. } => cluster::home(redis, &key).await?,
            Mode::Standalone | Mode::Sentinel(_) => redis.clone(),
        };
        let mut connection = connect(&server).await?;
        let lifetime = u64::try_from((limit + SPARE).as_millis()).unwrap_or(u64::MAX);
        let mut set = cmd("SET");
        set.arg(&key).arg("probe").arg("PX").arg(lifetime);
        set.exec_async(&mut connection).await.map_err(|error| classify(&error))?;
        Ok(Canary { connection, key, is_gone: false })
    }

    /// Watches it until it is gone; gives how long after `since` it was, or `None` if it is still
    /// there at `until`.
    ///
    /// # Errors
    ///
    /// The server does not answer, or refuses to.
    pub async fn watch(
        &mut self,
        since: Instant,
        until: Instant,
    ) -> Result<Option<Duration>, Error> {
        let mut get = cmd("GET");
        get.arg(&self.key);
        let (part, least, most) = PAUSE;
        for looks in 0.. {
            let look = get.query_async::<Option<Vec<u8>>>(&mut self.connection);
            let Ok(found) = timeout_at(until, look).await else {
                // That it stays is only known of one that was seen at the end.
                let message = "redis has not answered until the end".to_owned();
                return if looks > 0 { Ok(None) } else { Err(Error::new(Kind::Timeout, message)) };
            };
            let passed = since.elapsed();
            if found.map_err(|error| classify(&error))?.is_none() {
                self.is_gone = true;
                return Ok(Some(passed));
            }
            if Instant::now() >= until {
                break;
            }
            if looks >= QUICK_LOOKS {
                sleep((passed / part).clamp(least, most)).await;
            }
        }
        Ok(None)
    }

    /// Takes it back, if it may be there. What fails is Redis's to drop in time.
    pub async fn take_back(mut self) {
        if !self.is_gone {
            let mut unlink = cmd("UNLINK");
            unlink.arg(&self.key);
            drop(timeout(TAKE_BACK, unlink.exec_async(&mut self.connection)).await);
        }
    }
}
