//! How far a standby has replayed, asked for as long as the session lasts.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::capture::{self, Identity, Replication};
use crate::lsn::Lsn;
use crate::postgres::{self, Endpoint, History};
use crate::retry::Backoff;
use crate::telemetry::Health;
use crate::telemetry::metrics::{PeerLabel, ReplicaLabel};

/// `application_name` on the standby.
const NAME: &str = "walsweep replica";

/// A standby that does not answer in this time has not replayed; the connection is made again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Least pause between two questions. A confirmation comes that much later, half of what the
/// watermark costs it anyway.
const PAUSE: Duration = Duration::from_millis(20);

/// Pause while nothing waits: how fast a standby that is gone shows in the metrics.
const IDLE_PAUSE: Duration = Duration::from_secs(1);

/// Tells how far one standby has replayed. The second implementor is the tests'.
pub trait Standby {
    /// Host and port, for logs and metrics.
    fn name(&self) -> &str;

    /// Connects, again if it was connected.
    fn connect(&mut self) -> impl Future<Output = Result<(), StandbyError>>;

    /// Tells what readers of the standby see now, if it is the standby that is meant.
    fn replayed(&mut self) -> impl Future<Output = Result<Answer, StandbyError>>;
}

/// The answer of a standby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// New snapshots on it see every commit that ends here or before.
    pub replayed: Lsn,
    /// Tells one run of the server from another.
    pub run: String,
}

/// Why a standby cannot be counted on. Whatever waits for it goes on waiting.
#[derive(Debug, thiserror::Error)]
pub enum StandbyError {
    /// The connection failed, or the server refused.
    #[error("{0}")]
    Connection(#[from] capture::Error),
    /// It is not in recovery.
    #[error("it is no standby: it was promoted, or always was a primary")]
    NotAStandby,
    /// It replays another cluster's log.
    #[error("it belongs to system {found}, the primary to {expected}")]
    OtherSystem {
        /// The standby's system id.
        found: String,
        /// The primary's.
        expected: String,
    },
    /// It replays another history of the same cluster.
    #[error("it follows timeline {found}, the primary writes {expected}")]
    OtherTimeline {
        /// The standby's timeline.
        found: u32,
        /// The primary's.
        expected: u32,
    },
    /// There was no answer in time.
    #[error("no answer in {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
}

impl StandbyError {
    /// Says what a person can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            StandbyError::Connection(capture::Error::Connect(postgres::Error::Password {
                source,
                ..
            })) => source.hint(),
            StandbyError::Connection(error) if error.is_rejection() => {
                "the role must be able to log in there and have REPLICATION; or take the URL out \
                 of `postgres.replicas` if nobody reads from it"
            }
            StandbyError::Connection(_) | StandbyError::Timeout => {
                "start it; or take it out of `postgres.replicas` if nobody reads from it"
            }
            StandbyError::NotAStandby => {
                "if it is the new primary, let `postgres.url` name it; else take it out of \
                 `postgres.replicas`"
            }
            StandbyError::OtherSystem { .. } | StandbyError::OtherTimeline { .. } => {
                "let it follow the primary that `postgres.url` names, or take it out of \
                 `postgres.replicas`"
            }
        }
    }
}

/// Asks over one replication connection, which can tell the timeline that is being replayed; no
/// function of SQL does so without more privileges.
pub struct SqlStandby {
    endpoint: Endpoint,
    name: String,
    history: History,
    connection: Option<Replication>,
}

impl SqlStandby {
    /// A standby at `endpoint` of the primary with this history.
    #[must_use]
    pub fn new(endpoint: Endpoint, history: History) -> SqlStandby {
        let name = endpoint.address();
        SqlStandby { endpoint, name, history, connection: None }
    }

    fn judge(&self, identity: Identity, in_recovery: bool) -> Result<(), StandbyError> {
        let (found, expected) = (identity.history.system_id, self.history.system_id.clone());
        if found != expected {
            return Err(StandbyError::OtherSystem { found, expected });
        }
        if !in_recovery {
            return Err(StandbyError::NotAStandby);
        }
        let (found, expected) = (identity.history.timeline, self.history.timeline);
        if found != expected {
            return Err(StandbyError::OtherTimeline { found, expected });
        }
        Ok(())
    }
}

impl Standby for SqlStandby {
    fn name(&self) -> &str {
        &self.name
    }

    async fn connect(&mut self) -> Result<(), StandbyError> {
        self.connection = None;
        self.connection = Some(Replication::connect(&self.endpoint, NAME).await?);
        Ok(())
    }

    async fn replayed(&mut self) -> Result<Answer, StandbyError> {
        let connection = self.connection.as_mut().ok_or(capture::Error::Closed)?;
        let sql = include_str!("../../../sql/replayed.sql");
        let row = connection.query_row("ask for the replay position", sql).await?;
        // The timeline is asked for after the position: it only ever rises, and a standby does not
        // follow a new one from beyond its fork, so the position is one of this history.
        let identity = connection.identify_system().await?;
        let mut columns = row.into_iter();
        let mut next = || columns.next().flatten().unwrap_or_default();
        let (in_recovery, replayed, run) = (next(), next(), next());
        self.judge(identity, in_recovery == "t")?;
        // No position at all is told before the first record.
        Ok(Answer { replayed: replayed.parse().unwrap_or_default(), run })
    }
}

/// How far a standby has replayed, and how often it may have shown something older since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) replayed: Lsn,
    /// Restarts seen. A server that crashed replays again what it had replayed; readers come in
    /// before it is through.
    pub(super) restarts: u32,
}

/// Values that one follower shares with the others and with who waits for them.
#[derive(Clone)]
pub(super) struct Board {
    /// The furthest position that something waits for.
    pub(super) wanted: watch::Receiver<Lsn>,
    /// One entry for each standby.
    pub(super) progress: Rc<watch::Sender<Vec<Progress>>>,
    pub(super) health: Arc<Health>,
    /// One entry for each standby: why it cannot be counted on, while it cannot.
    pub(super) failures: Rc<RefCell<Vec<Option<Failure>>>>,
}

/// Why a standby cannot be counted on, and what a person can do.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) text: String,
    pub(super) hint: &'static str,
}

impl Board {
    fn note(&self, at: usize, failure: Option<Failure>) {
        if let Some(one) = self.failures.borrow_mut().get_mut(at) {
            *one = failure;
        }
    }
}

/// Follows one standby for ever, through every loss of it.
pub(super) async fn follow<S: Standby>(mut standby: S, at: usize, mut board: Board) {
    let label = ReplicaLabel { replica: standby.name().to_owned() };
    let up = Up(Arc::clone(&board.health), label);
    up.set(false);
    let (mut backoff, mut known) = (Backoff::postgres(), None);
    loop {
        sleep(backoff.next_wait()).await;
        let Err(error) = watch_one(&mut standby, (at, &up), &mut board, &mut known).await;
        if up.set(false) {
            let peer = PeerLabel { peer: "replica" };
            board.health.metrics().reconnects.get_or_create(&peer).inc();
            backoff = Backoff::postgres();
            // The first wait is none; a connection that ends at once must not spin.
            backoff.next_wait();
        }
        board.note(at, Some(Failure { text: error.to_string(), hint: error.hint() }));
    }
}

/// Asks one connection again and again; ends with why that is over.
async fn watch_one<S: Standby>(
    standby: &mut S,
    (at, up): (usize, &Up),
    board: &mut Board,
    known: &mut Option<Answer>,
) -> Result<std::convert::Infallible, StandbyError> {
    standby.connect().await?;
    loop {
        let answer = timeout(ANSWER_TIMEOUT, standby.replayed());
        let answer = answer.await.map_err(|_elapsed| StandbyError::Timeout)??;
        if !up.set(true) {
            tracing::info!(replica = standby.name(), replayed = %answer.replayed, "following");
            board.note(at, None);
        }
        let is_older = known
            .as_ref()
            .is_some_and(|known| known.run != answer.run || known.replayed > answer.replayed);
        let replayed = answer.replayed;
        *known = Some(answer);
        board.progress.send_if_modified(|all| {
            let Some(one) = all.get_mut(at) else { return false };
            let next = Progress { replayed, restarts: one.restarts + u32::from(is_older) };
            std::mem::replace(one, next) != next
        });
        if *board.wanted.borrow_and_update() <= replayed
            && let Ok(Err(_)) = timeout(IDLE_PAUSE, board.wanted.changed()).await
        {
            // Nobody will want anything any more; the task is about to be ended.
            std::future::pending::<()>().await;
        }
        sleep(PAUSE).await;
    }
}

/// `walsweep_replica_up` of one standby; gone when its follower ends. A reload may have taken the
/// standby out of the list, and it ends after the session's other series are gone.
struct Up(Arc<Health>, ReplicaLabel);

impl Up {
    /// Sets it; says whether it was up before.
    fn set(&self, is_up: bool) -> bool {
        self.0.metrics().replica_up.get_or_create(&self.1).set(i64::from(is_up)) != 0
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.0.metrics().replica_up.remove(&self.1);
    }
}
