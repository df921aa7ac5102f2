//! How a stream ends by our own wish: with a stop, or for another session that follows at once.

use std::time::Duration;

use tokio::time::{Instant, interval, sleep_until};

use super::{Stream, room_for};
use crate::lsn::Lsn;
use crate::run::error::Error;
use crate::run::shutdown::{Farewell, Shutdown};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{Health, Phase, Topic};

/// How long a stop waits for keys on their way. What is not through by then is not confirmed, so
/// the next start gets it again.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a session that another one follows waits for first removals on their way. Nothing new
/// is read meanwhile, so that what is stuck must not hold up the rest; and what is not through
/// comes again.
const SOON: Duration = Duration::from_millis(100);

/// How long the server may take to end the stream in order; it does not interrupt a large
/// transaction for it, and nothing is lost without.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// When a session ends for another one.
pub(super) struct Leaving {
    /// As soon as this is confirmed.
    after: Lsn,
    /// In any case.
    pub(super) by: Instant,
}

/// How the end was come by.
enum Drained {
    /// Nothing is left to wait for.
    All,
    /// The time was over.
    Late,
    /// A stop is asked for.
    Stopped,
}

impl Stream<'_> {
    /// Whether something that was removed is not confirmed.
    fn is_unconfirmed(&self) -> bool {
        !self.ledger.is_clear() || self.slot.confirmed() < self.ledger.safe()
    }

    /// Whether a stop has something to wait for: keys on their way, or their confirmation. While a
    /// sweep of everything is owed nothing is confirmed, and the next start owes it, too; it may
    /// wait for a transaction that stays open for hours. Nor is it worth a wait where a replica
    /// that is gone, or a right that Redis does not give, is in the way; or a Redis that is away,
    /// if nothing but the confirmation is left.
    fn is_draining(&self, (health, phase): (&Health, Phase)) -> bool {
        let is_away =
            matches!(phase, Phase::RedisLost | Phase::Connecting) && self.ledger.is_clear();
        let is_in_the_way = self.owes_sweep() || is_away || health.holds_confirmation();
        self.ledger.in_flight() > 0 || !is_in_the_way && self.is_unconfirmed()
    }

    /// Reads no more, waits for what is on its way, confirms it, and leaves in good order.
    /// Where another walsweep waits for the slot, it waits for first removals alone: the other one
    /// gets again what is not confirmed, and keys of new commits wait for it meanwhile.
    pub(super) async fn drain(
        mut self,
        watched: (&Health, &Metrics),
        has_heir: bool,
    ) -> Result<(), Error> {
        let phase = watched.0.phase();
        watched.0.set(Phase::Stopping);
        if has_heir {
            tracing::info!("stopping soon: another walsweep waits for the slot, and goes on");
            let is_left = |stream: &Self| stream.ledger.in_flight() > 0;
            self.finish((SOON, None), watched, is_left).await?;
        } else if self.is_draining((watched.0, phase)) {
            tracing::info!("stopping: waiting until the last keys are removed and confirmed");
        }
        let is_left = |stream: &Self| !has_heir && stream.is_draining((watched.0, phase));
        if let Drained::Late = self.finish((DRAIN_TIMEOUT, None), watched, is_left).await? {
            tracing::warn!(
                transactions = self.ledger.in_flight(),
                "stopping before everything is removed and confirmed; the next start removes it \
                 again"
            );
        }
        let confirmed = self.slot.confirmed();
        if !has_heir && watched.0.holds_confirmation() && self.is_unconfirmed() {
            tracing::info!(
                "what was removed is not confirmed, for what `/readyz` named; the next start \
                 removes it again"
            );
        }
        match self.slot.close(CLOSE_TIMEOUT).await {
            Ok(()) => tracing::info!(%confirmed, "stopped"),
            Err(error) => {
                tracing::warn!(%confirmed, %error, "stopped; the stream did not end in order");
            }
        }
        Ok(())
    }

    /// Another session is to follow. Says when this one ends for it at the latest, and after what
    /// is confirmed it may end sooner.
    pub(super) fn leaves(&self, farewell: Farewell) -> Leaving {
        let now = Instant::now();
        match farewell {
            Farewell::Soon => Leaving { after: Lsn::ZERO, by: now },
            Farewell::Confirmed(limit) => {
                // What comes again to a session that begins only for this counts as received.
                Leaving { after: self.ledger.received().max(self.behind), by: now + limit }
            }
        }
    }

    /// Whether it is time to end for another session. What was not confirmed by then is said.
    pub(super) fn is_to_leave(&self, leaving: &Leaving, health: &Health) -> bool {
        if self.slot.confirmed() >= leaving.after {
            return true;
        }
        let is_received = self.ledger.received() >= leaving.after;
        let is_in_the_way = is_received && !self.is_draining((health, health.phase()));
        let is_late = Instant::now() >= leaving.by;
        if is_in_the_way || is_late {
            tracing::warn!(
                confirmed = %self.slot.confirmed(),
                received = %leaving.after,
                "keys that only the old configuration covers may not be removed, or not for a \
                 second time: {}",
                if is_late { "that took too long" } else { "`/readyz` said what is in the way" }
            );
        }
        is_in_the_way || is_late
    }

    /// Reads no more, and ends for another session that follows at once. A stop that is asked for
    /// meanwhile goes first.
    pub(super) async fn hand_over(
        mut self,
        watched: (&Health, &Metrics),
        shutdown: &mut Shutdown,
    ) -> Result<(), Error> {
        let health = watched.0;
        let text = "the session with postgres ends for another one";
        health.interruption(Topic::Session, text, None);
        let is_left = |stream: &Self| stream.ledger.in_flight() > 0;
        if let Drained::Stopped =
            self.finish((SOON, Some(&mut *shutdown)), watched, is_left).await?
        {
            return self.drain(watched, shutdown.has_heir()).await;
        }
        let was = health.phase();
        health.set(Phase::Connecting);
        if let Err(error) = self.slot.close(CLOSE_TIMEOUT).await {
            tracing::debug!(%error, "the stream did not end in order");
        }
        Err(Error::HandedOver(was))
    }

    /// Reads no more, and waits until nothing is left, or the time is over.
    async fn finish(
        &mut self,
        (limit, mut stop): (Duration, Option<&mut Shutdown>),
        watched: (&Health, &Metrics),
        is_left: impl Fn(&Self) -> bool,
    ) -> Result<Drained, Error> {
        let inputs = self.ends.inputs.clone();
        let deadline = Instant::now() + limit;
        let mut clock = interval(self.timing.status / 2);
        while is_left(self) {
            let stopped = async {
                match &mut stop {
                    Some(stop) => stop.requested().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stopped => return Ok(Drained::Stopped),
                event = self.ends.events.recv() => self.hear(event, watched).await?,
                _ = clock.tick() => self.send_status().await?,
                room = room_for(&inputs, self.held.front()) => self.pass_held(room)?,
                () = sleep_until(deadline) => return Ok(Drained::Late),
            }
        }
        Ok(Drained::All)
    }
}
