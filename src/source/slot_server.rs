//! The server that the slot is on: the primary, or one of its standbys (Postgres 16).
//!
//! A standby sends what it has replayed. Whether that is visible to readers only the primary knows,
//! so the gate, the lookups and the checks of tables ask there, and the slot alone is looked after
//! here. What ties the two together: both have the same history. That is looked at when a session
//! begins, and a [`Witness`] says it of everything received before it may be confirmed, because a
//! standby that is promoted, or follows one that was, goes on sending without a pause.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::capture::{self, Run};
use crate::config::{Postgres, SlotOn};
use crate::lsn::Lsn;
use crate::postgres::{History, Sql, connect_sql, identify};
use crate::settle::{SqlStandby, Standby, StandbyError};
use crate::source::slot_health::{Lasting, SAMPLE_TIMEOUT, named, running};
use crate::source::{Error, within};
use crate::telemetry::{Health, Topic};

/// `application_name` of the SQL connections that look after the slot: to the primary, and to the
/// standby if it is there.
pub const NAME: &str = "walsweep slot";

/// How often the primary is asked to tell the standby which transactions run: up to three answers
/// are needed while a slot is created, each of a few dozen bytes.
const NUDGE_PAUSE: Duration = Duration::from_millis(200);

/// A slot whose creation takes longer is waited for with a word about why.
const SLOW: Duration = Duration::from_secs(3);

/// How long a standby may take to replay what the primary has written before a slot is created.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(20);

/// Pause between two looks at how far a standby has replayed.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Pause of the witness while nothing waits for it: how fast a promotion ends an idle session.
const IDLE_PAUSE: Duration = Duration::from_secs(1);

/// A standby that does not answer the witness in this time is taken for dead.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections to the server that the slot is on, and to the primary.
#[derive(Clone)]
pub struct SlotServer {
    /// A connection to the primary, that is not the gate's.
    pub primary: Rc<Sql>,
    /// A connection to the server that the slot is on: the same, or one to the standby.
    pub sql: Rc<Sql>,
    standby: Option<Rc<Side>>,
}

/// The standby, as far as it is known.
struct Side {
    run: Run,
    wal_sender_timeout_ms: i64,
}

impl SlotServer {
    /// Connects to the standby, if the slot is to be on one.
    ///
    /// # Errors
    ///
    /// It cannot be reached or asked, or is no standby.
    pub async fn reach(config: &Postgres, primary: Rc<Sql>) -> Result<SlotServer, Error> {
        if config.slot_on == SlotOn::Primary {
            return Ok(SlotServer { sql: Rc::clone(&primary), primary, standby: None });
        }
        let sql = connect_sql(&config.replication_endpoint, NAME).await?;
        let row =
            within(SAMPLE_TIMEOUT, sql.query_one(include_str!("../../sql/replayed.sql"), &[]))
                .await?;
        let run = Run { in_recovery: row.try_get(0)?, id: row.try_get(2)? };
        let server = within(SAMPLE_TIMEOUT, identify(&sql)).await?;
        if !run.in_recovery {
            return Err(Error::StreamsPrimary);
        }
        let side = Side { run, wal_sender_timeout_ms: server.wal_sender_timeout_ms };
        Ok(SlotServer { primary, sql: Rc::new(sql), standby: Some(Rc::new(side)) })
    }

    /// Judges the server that a replication connection reached.
    ///
    /// # Errors
    ///
    /// It is not the one that the slot is on.
    pub fn accept(&self, found: &Run) -> Result<(), Error> {
        match &self.standby {
            None if found.in_recovery => Err(Error::StreamsStandby),
            Some(_) if !found.in_recovery => Err(Error::StreamsPrimary),
            Some(side) if side.run != *found => Err(Error::ManyStandbys),
            _ => Ok(()),
        }
    }

    /// Whether the slot is on a standby.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.standby.is_some()
    }

    /// `wal_sender_timeout` of a standby, in milliseconds; `None` where the primary sends.
    #[must_use]
    pub fn wal_sender_timeout_ms(&self) -> Option<i64> {
        self.standby.as_ref().map(|side| side.wal_sender_timeout_ms)
    }

    /// Who says that what a standby sends is the primary's history; `None` where
    /// the primary sends.
    #[must_use]
    pub fn witness(&self, config: &Postgres, history: &History) -> Option<Witness<SqlStandby>> {
        let endpoint = config.replication_endpoint.clone();
        let side = self.standby.as_ref()?;
        let standby = SqlStandby::new(endpoint, history.clone());
        Some(Witness { standby, run: side.run.id.clone() })
    }

    /// Where the primary's log ends.
    ///
    /// # Errors
    ///
    /// The query's; an answer that is none.
    pub async fn wal_end(&self) -> Result<Lsn, tokio_postgres::Error> {
        lsn(&self.primary, include_str!("../../sql/wal_end.sql")).await
    }

    /// Lets `creating` create the slot, and does what a standby needs for that.
    ///
    /// # Errors
    ///
    /// What is given; the primary does not answer; the standby does not replay.
    pub async fn create<T>(
        &self,
        creating: impl Future<Output = Result<T, capture::Error>>,
    ) -> Result<T, Error> {
        if !self.is_standby() {
            return Ok(creating.await?);
        }
        if !caught_up(&self.primary, &self.sql).await? {
            return Err(Error::StandbyBehind(CATCH_UP_TIMEOUT.as_secs()));
        }
        tokio::select! {
            biased;
            created = creating => Ok(created?),
            error = nudge(&self.primary) => Err(error.into()),
        }
    }

    /// Tells, while a slot is created, whom that waits for if it takes long. Never ends.
    pub async fn tell_what_a_slot_waits_for(&self, health: &Health) -> Infallible {
        let mut lasting = Lasting::default();
        loop {
            // The primary may not answer; the creation, which does not need it, goes on.
            let running = match timeout(ANSWER_TIMEOUT, running(&self.primary)).await {
                Ok(Ok(running)) => running,
                Ok(Err(_)) | Err(_) => Vec::new(),
            };
            if let Some(lasting) = lasting.look(running) {
                let who = match lasting.as_slice() {
                    [] => "every transaction that runs".to_owned(),
                    lasting => named(lasting),
                };
                let text = format!("creating the slot takes long: the server waits for {who}");
                let hint = "end these transactions: `pg_stat_activity` and `pg_prepared_xacts` \
                            list them; nothing is removed before";
                health.trouble(Topic::NewSlot, &text, Some(hint));
            }
            sleep(SLOW).await;
        }
    }
}

async fn lsn(client: &Client, query: &str) -> Result<Lsn, tokio_postgres::Error> {
    let row = client.query_one(query, &[]).await?;
    Ok(row.try_get::<_, Option<&str>>(0)?.and_then(|lsn| lsn.parse().ok()).unwrap_or_default())
}

/// Waits until a standby has replayed what its primary has written by now; `false` if it has not
/// in 20 s. A slot that is to be created has to begin after the publication and the replica
/// identities that the checks saw on the primary.
///
/// # Errors
///
/// A query's.
pub async fn caught_up(primary: &Client, standby: &Client) -> Result<bool, tokio_postgres::Error> {
    let position = lsn(primary, include_str!("../../sql/position.sql")).await?;
    let deadline = Instant::now() + CATCH_UP_TIMEOUT;
    let replayed = include_str!("../../sql/replayed.sql");
    while Instant::now() < deadline {
        let row = standby.query_one(replayed, &[]).await?;
        let text: Option<&str> = row.try_get(1)?;
        if text.and_then(|lsn| lsn.parse::<Lsn>().ok()).is_some_and(|lsn| lsn >= position) {
            return Ok(true);
        }
        sleep(LOOK_PAUSE).await;
    }
    Ok(false)
}

/// Lets the primary write to its log which transactions run, again and again, and ends only with
/// why it cannot: a slot that is created on a standby waits for that, and the primary does it by
/// itself only now and then.
pub async fn nudge(primary: &Client) -> tokio_postgres::Error {
    let mut told = false;
    loop {
        let nudged =
            primary.batch_execute(include_str!("../../sql/log_standby_snapshot.sql")).await;
        let nudged = match nudged {
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(
                        hint = "let a superuser run `grant execute on function \
                                pg_log_standby_snapshot()` to walsweep's role on the primary",
                        "creating the slot on the standby takes up to a minute: the role may not \
                         let the primary log which transactions run"
                    );
                }
                // With something new in the log, the background writer does it every 15 s.
                primary.batch_execute(include_str!("../../sql/position.sql")).await
            }
            done => done,
        };
        if let Err(error) = nudged {
            return error;
        }
        sleep(NUDGE_PAUSE).await;
    }
}

/// Lets pass what a standby sent as part of the primary's history.
pub struct Witness<S> {
    standby: S,
    run: String,
}

impl<S: Standby> Witness<S> {
    /// Publishes to `safe` what is `received`, once the standby has said afterwards that it still
    /// replays the primary's timeline and has come that far: whatever it had sent by then is of
    /// that timeline. Ends only with why it is not so any more.
    pub async fn run(self, received: watch::Receiver<Lsn>, safe: Rc<watch::Sender<Lsn>>) -> Error {
        let Err(error) = self.testify(received, &safe).await;
        error
    }

    async fn testify(
        mut self,
        mut received: watch::Receiver<Lsn>,
        safe: &watch::Sender<Lsn>,
    ) -> Result<Infallible, Error> {
        self.standby.connect().await.map_err(Error::SlotStandby)?;
        loop {
            let wanted = *received.borrow_and_update();
            let answer = timeout(ANSWER_TIMEOUT, self.standby.replayed()).await;
            let answer = answer.map_err(|_elapsed| Error::SlotStandby(StandbyError::Timeout))?;
            let answer = answer.map_err(Error::SlotStandby)?;
            if answer.run != self.run {
                return Err(Error::ManyStandbys);
            }
            let vouched = wanted.min(answer.replayed);
            safe.send_if_modified(|safe| {
                let is_news = vouched > *safe;
                *safe = vouched.max(*safe);
                is_news
            });
            if vouched == wanted
                && let Ok(Err(_)) = timeout(IDLE_PAUSE, received.changed()).await
            {
                // Nothing will be received any more; the task is about to be ended.
                std::future::pending::<()>().await;
            }
            sleep(LOOK_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use tokio::sync::watch;
    use tokio::task::LocalSet;
    use tokio::time::{sleep, timeout};

    use super::{IDLE_PAUSE, Witness};
    use crate::lsn::Lsn;
    use crate::settle::{Answer, Standby, StandbyError};
    use crate::source::Error;

    /// Answers with what was set last; `None` is a promotion.
    struct Script(watch::Receiver<Option<Answer>>);

    impl Standby for Script {
        fn name(&self) -> &'static str {
            "script"
        }

        async fn connect(&mut self) -> Result<(), StandbyError> {
            Ok(())
        }

        async fn replayed(&mut self) -> Result<Answer, StandbyError> {
            self.0.borrow().clone().ok_or(StandbyError::NotAStandby)
        }
    }

    fn answer(replayed: u64, run: &str) -> Option<Answer> {
        Some(Answer { replayed: Lsn(replayed), run: run.to_owned() })
    }

    /// I7: no more is vouched for than was received and than the standby has replayed; nothing once
    /// it is promoted or another one.
    #[tokio::test(start_paused = true)]
    async fn no_more_is_safe_than_the_standby_says_of_the_primarys_history() {
        for last in [None, answer(900, "other")] {
            let (script, said) = watch::channel(answer(150, "run"));
            let (received, wanted) = watch::channel(Lsn(100));
            let (safe, mut vouched) = watch::channel(Lsn(100));
            let witness = Witness { standby: Script(said), run: "run".to_owned() };
            let local = LocalSet::new();
            let ended = local.spawn_local(witness.run(wanted, Rc::new(safe)));
            let rest = local.run_until(async {
                let mut vouches_at = async |lsn: u64| {
                    timeout(IDLE_PAUSE * 2, vouched.wait_for(|safe| *safe == Lsn(lsn)))
                        .await
                        .is_ok()
                };
                received.send(Lsn(120)).unwrap();
                assert!(vouches_at(120).await);
                received.send(Lsn(200)).unwrap();
                assert!(vouches_at(150).await, "as far as it has replayed");
                assert!(!vouches_at(200).await);
                script.send(answer(900, "run")).unwrap();
                assert!(vouches_at(200).await);
                // It never goes back.
                script.send(answer(50, "run")).unwrap();
                received.send(Lsn(250)).unwrap();
                sleep(Duration::from_secs(3)).await;
                script.send(last.clone()).unwrap();
                ended.await.unwrap()
            });
            let error = rest.await;
            assert_eq!(*vouched.borrow(), Lsn(200));
            match last {
                None => assert!(matches!(error, Error::SlotStandby(StandbyError::NotAStandby))),
                Some(_) => assert!(matches!(error, Error::ManyStandbys), "{error}"),
            }
        }
    }
}
