//! The time while no session with Postgres stands: the slot goes on to keep WAL, and is looked
//! after all the same.
//!
//! A session may be out of reach for a reason that has nothing to do with the slot: what `check`
//! refuses, another address for the replication connection, a login. The slot then keeps WAL for
//! nobody, and beyond `postgres.max_retained_wal` it is dropped, so that the server's disk does not
//! fill. The next session creates it anew and sweeps everything. A new slot may have to wait then
//! for transactions that run; here that counts only for a while, for nothing is removed anyway.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::{Duration, Instant, sleep, sleep_until};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::config::Config;
use crate::postgres::connect_sql;
use crate::source::holder::{self, Signs, Walsender};
use crate::source::own::{Custody, Over, drop_slot, evidence};
use crate::source::slot_health::{Keeper, SAMPLE_INTERVAL, SAMPLE_TIMEOUT};
use crate::source::slot_server::SlotServer;
use crate::source::{Error, within};
use crate::sweep::Broken;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{Health, Topic};

/// After so long without a session of anybody's, transactions that a new slot would wait for no
/// longer count.
const SPARED: Duration = Duration::from_secs(60);

/// How often it is asked whether another process still has the slot. A stand-in takes over so much
/// later at most.
const IN_USE_INTERVAL: Duration = Duration::from_millis(100);

/// How long the server is given to notice by itself that a session of ours ended.
const OUTLIVED_MAX: Duration = Duration::from_secs(2);

/// The distance of two attempts at ending what has outlived its session.
const END_AGAIN: Duration = Duration::from_secs(10);

/// `application_name` of the connection of who waits for this slot.
fn name_of(slot: &str) -> String {
    format!("walsweep waits for {slot}")
}

/// How long whoever is about to stop waits for the answer whether another one goes on.
const HEIR_TIMEOUT: Duration = Duration::from_millis(500);

/// Whether another walsweep waits for this slot; not, if that cannot be told. `primary` is a
/// connection to the primary, of one that does not wait itself.
pub async fn has_heir(primary: &Client, slot: &str) -> bool {
    let (query, name) = (include_str!("../../sql/stand_in.sql"), name_of(slot));
    let row = within(HEIR_TIMEOUT, primary.query_one(query, &[&name])).await;
    row.is_ok_and(|row| row.try_get(0).unwrap_or(false))
}

/// Since when nobody streams. While another walsweep does, its keys go; that it begins a session
/// anew just now is no reason to take its slot away.
struct Nobody(Instant);

impl Nobody {
    /// Somebody streams at `now`.
    fn is_over(&mut self, now: Instant) {
        self.0 = now;
    }

    /// Whether it lasts, at `now`, for [`SPARED`].
    fn lasts(&self, now: Instant) -> bool {
        now - self.0 >= SPARED
    }
}

/// Looks after the slot between two sessions, over a connection of its own.
pub struct Between {
    config: Config,
    health: Arc<Health>,
    keeper: Keeper,
    server: Option<SlotServer>,
    nobody: Nobody,
    /// Whether another walsweep that has it is alive.
    signs: Signs,
    /// When the slot is looked at next. Most sessions are there before the first time.
    next: Instant,
    custody: Rc<Custody>,
}

impl Between {
    /// Looks after the slot that `config` names, from now on. Once it is dropped, `custody` says
    /// why the next session begins with a new one.
    #[must_use]
    pub fn new(
        config: &Config,
        (health, metrics): (&Arc<Health>, &Arc<Metrics>),
        custody: Rc<Custody>,
    ) -> Between {
        let keeper = Keeper::new(config, &custody, (health, metrics));
        let (config, health) = (config.clone(), Arc::clone(health));
        let now = Instant::now();
        let (nobody, next) = (Nobody(now), now + SAMPLE_INTERVAL);
        let signs = Signs::default();
        Between { config, health, keeper, server: None, nobody, signs, next, custody }
    }

    /// Looks again and again; may be dropped at any time and called again.
    pub async fn watch(&mut self) -> Infallible {
        loop {
            sleep_until(self.next).await;
            self.next = Instant::now() + SAMPLE_INTERVAL;
            if let Err(error) = self.look().await {
                // Why there is no session is told elsewhere.
                tracing::debug!(%error, "look at the slot between sessions");
                self.server = None;
                self.keeper.cannot_look();
            }
        }
    }

    /// Waits while another process streams from the slot; no longer, if that cannot be told. Beside
    /// the sample that is due anyway it is one question each time, which takes no lock and no
    /// transaction id: a whole session, with all its checks, is begun only when it may be had. May
    /// be dropped at any time.
    ///
    /// `outlived` is the server's process of our own last session, if that is who has the slot. A
    /// server that has not noticed the end of a session is told of it: it might not for
    /// `wal_sender_timeout`, or never, and all that time keys would stay.
    pub async fn until_free(&mut self, outlived: Option<&Walsender>) {
        // From now on the one that has the slot sees who waits for it: it may stop at any moment.
        drop(self.is_in_use().await);
        let mut end_at = Instant::now() + OUTLIVED_MAX;
        loop {
            sleep(IN_USE_INTERVAL).await;
            let is_in_use = async {
                if self.next <= Instant::now() {
                    self.next = Instant::now() + SAMPLE_INTERVAL;
                    self.look().await?;
                    if outlived.is_none() {
                        self.look_at_holder().await?;
                    }
                }
                let is_in_use = self.is_in_use().await?;
                match outlived.filter(|_| is_in_use && end_at <= Instant::now()) {
                    Some(own) => {
                        end_at = Instant::now() + END_AGAIN;
                        self.end_outlived(own).await
                    }
                    None => Ok(is_in_use),
                }
            };
            match is_in_use.await {
                Ok(true) => {}
                Ok(false) => {
                    self.health.over(&Topic::Holder);
                    return;
                }
                Err(error) => {
                    // The session that is begun then says it if it lasts.
                    tracing::debug!(%error, "ask whether the slot is in use");
                    self.health.forget(|topic| *topic == Topic::Holder);
                    self.server = None;
                    self.keeper.cannot_look();
                    return;
                }
            }
        }
    }

    async fn is_in_use(&mut self) -> Result<bool, Error> {
        let server = self.reach().await?;
        let query = include_str!("../../sql/slot_in_use.sql");
        let params: [&(dyn ToSql + Sync); 1] = [&self.config.postgres.slot];
        let row = within(SAMPLE_TIMEOUT, server.sql.query_opt(query, &params)).await;
        self.server = Some(server);
        Ok(row?.map(|row| row.try_get(0)).transpose()?.unwrap_or(false))
    }

    /// Ends our own last session on the server, and says so. Returns whether it has the slot: if
    /// another one has it by now, the next attempt at a session finds out whose that is.
    async fn end_outlived(&mut self, own: &Walsender) -> Result<bool, Error> {
        let Walsender { pid, since } = own;
        let server = self.reach().await?;
        let query = include_str!("../../sql/end_own_walsender.sql");
        let params: [&(dyn ToSql + Sync); 3] = [&self.config.postgres.slot, pid, since];
        let row = within(SAMPLE_TIMEOUT, server.sql.query_opt(query, &params)).await;
        self.server = Some(server);
        let Some(row) = row? else { return Ok(false) };
        let text = match since {
            Some(_) => format!(
                "Postgres process {pid} served walsweep's last session and still has the slot: the \
                 server has not noticed that the session ended"
            ),
            None => format!(
                "Postgres process {pid} has the slot, and the number of the one that served \
                 walsweep's last session: the server may not have noticed that the session ended"
            ),
        };
        let hint = match row.try_get::<_, Option<bool>>(0)? {
            Some(_) => format!(
                "walsweep has asked the server to end that process; if it stays, it is stopped or \
                 hangs: look at process {pid} on the server's machine"
            ),
            None if since.is_some() => format!(
                "it belongs to the login of `postgres.replication_url`; as that one, or as a \
                 superuser: select pg_terminate_backend({pid})"
            ),
            None => format!(
                "it belongs to another login than `postgres.url`, which does not see whether it is \
                 still that process: look at it in pg_stat_activity; if it is, as its login or as \
                 a superuser: select pg_terminate_backend({pid})"
            ),
        };
        self.health.trouble(Topic::Session, &text, Some(&hint));
        Ok(true)
    }

    /// Says so if whoever has the slot gives no sign of life: nobody removes anything then.
    async fn look_at_holder(&mut self) -> Result<(), Error> {
        let server = self.reach().await?;
        let slot = &self.config.postgres.slot;
        let sign = within(SAMPLE_TIMEOUT, holder::sign(&server.sql, slot)).await;
        self.server = Some(server);
        match self.signs.look(sign?, Instant::now()) {
            Some(silent) => {
                self.health.sees_nothing();
                self.health.trouble_with(Topic::Holder, &silent.text(), silent.cure());
            }
            None if self.health.nobody_removes() => {
                self.health.over(&Topic::Holder);
                self.health.unconfirmed(None);
            }
            None => {}
        }
        Ok(())
    }

    /// The server that the slot is on, over the connection that is there.
    async fn reach(&mut self) -> Result<SlotServer, Error> {
        match self.server.take() {
            Some(server) => Ok(server),
            None => {
                let name = name_of(&self.config.postgres.slot);
                let sql = connect_sql(&self.config.postgres.endpoint, &name).await?;
                SlotServer::reach(&self.config.postgres, Rc::new(sql)).await
            }
        }
    }

    async fn look(&mut self) -> Result<(), Error> {
        let server = self.reach().await?;
        self.keeper.spares_nobody(self.nobody.lasts(Instant::now()));
        let sampled = self.keeper.sample(&server).await?;
        if sampled.as_ref().is_some_and(|(state, _)| state.active_pid.is_some()) {
            self.nobody.is_over(Instant::now());
        }
        if let Some((state, Some(retained))) = sampled
            && state.active_pid.is_none()
            && let why = "keeps too much WAL, and no session can be had"
            && let Some(own) =
                evidence(&self.config, &self.custody, &self.health, &server, why).await?
        {
            tracing::error!(
                slot = self.config.postgres.slot,
                unconfirmed_bytes = retained.bytes,
                max_retained_wal_bytes = retained.max,
                "the slot keeps too much WAL, and no session can be had: dropping it; the next \
                 session creates it anew and sweeps everything"
            );
            drop_slot(own, Over::Sql(&server.sql)).await?;
            self.custody.give_up.set(Some(Broken::RetainedWal));
        }
        self.server = Some(server);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{Nobody, SPARED};

    #[test]
    fn whoever_stands_by_counts_from_when_the_other_was_last_seen() {
        let start = Instant::now();
        let mut nobody = Nobody(start);
        assert!(!nobody.lasts(start) && nobody.lasts(start + SPARED));
        nobody.is_over(start + SPARED);
        assert!(!nobody.lasts(start + SPARED) && nobody.lasts(start + 2 * SPARED));
    }
}
