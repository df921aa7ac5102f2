//! Measures what a pass takes of Redis's time, as far as it can be known from here, and its waiting
//! for a turn.
//!
//! From here a call is seen to take what the way there and back takes, what the server has to do
//! first for others, and what this machine needs until it looks at the reply. So two measures are
//! taken. Each call, less the shortest round trip of a call that does nothing, is at least what it
//! took of the server's time. And the server's own account, `usec` of `cmdstat_scan`
//! (<https://redis.io/docs/latest/commands/info/>), is asked for now and then, where it may be, and
//! always before a pass is made to wait: it corrects the first, as far down as it says, and as far
//! up as the calls lasted, for other clients may scan as well. So neither a far server nor a busy
//! machine is taken for a busy Redis.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::budget::Budget;
use super::node::{Error, Kind, Primary};

/// Least time between two looks at the server's account, some 50 µs of its time each.
const ACCOUNT_INTERVAL: Duration = Duration::from_millis(250);

/// Removing a key takes no more, on a slow machine (measured: 0.6 µs); what the call takes longer
/// it waits for others, our own SCAN among them.
const REMOVAL_MAX: Duration = Duration::from_micros(2);

/// A pass that waits shows that it is there: a server may end connections that are silent for a
/// second.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);

/// Seconds of the server's time that a call takes for each second of the server's own account,
/// which leaves out that the call is read and its reply is sent.
const AROUND_CALL: f64 = 1.2;

/// Measures passes, and holds them to their share.
#[derive(Clone, Debug)]
pub(in crate::sweep) struct Measure {
    pub(in crate::sweep) budget: Budget,
    /// Turns true when the connection is lost.
    lost: Option<watch::Receiver<bool>>,
    /// The server's account and when it was asked for; `None` if it does not tell.
    account: Option<(Duration, Instant)>,
    /// How long the calls since then lasted.
    lasted: Duration,
    /// How long the latest pass has waited.
    waited: Duration,
}

impl Measure {
    /// Holds SCAN to this share of the server's time.
    pub(in crate::sweep) fn new(max_load: f64) -> Measure {
        let budget = Budget::new(max_load);
        let (lasted, waited) = (Duration::ZERO, Duration::ZERO);
        Measure { budget, lost: None, account: None, lasted, waited }
    }

    /// From now on a pass that waits gives up when `lost` turns true.
    pub(in crate::sweep) fn ends_with(&mut self, lost: watch::Receiver<bool>) {
        self.lost = Some(lost);
    }

    /// A pass begins.
    pub(in crate::sweep) async fn begin<P: Primary>(&mut self, node: &P) -> Result<(), Error> {
        self.budget.begin(Instant::now());
        self.waited = Duration::ZERO;
        self.look(node).await
    }

    /// The pass is over; `whole` if it came to its end.
    pub(in crate::sweep) fn end(&mut self, whole: bool) {
        self.budget.end(whole);
    }

    /// A SCAN call lasted this long, and is taken to have held the server for `stall`.
    pub(in crate::sweep) fn scanned(&mut self, lasted: Duration, stall: Duration) {
        self.lasted += lasted;
        self.budget.scanned(Instant::now(), stall);
    }

    /// Calls that removed so many keys lasted this long beyond the round trip.
    pub(in crate::sweep) fn removed(&mut self, keys: u64, lasted: Duration) {
        if keys > 0 {
            let most = REMOVAL_MAX.saturating_mul(u32::try_from(keys).unwrap_or(u32::MAX));
            self.budget.removed(Instant::now(), lasted.min(most));
        }
    }

    /// How long the latest pass has waited for its turns.
    pub(in crate::sweep) fn waited(&self) -> Duration {
        self.waited
    }

    /// Waits until SCAN may be called.
    pub(in crate::sweep) async fn turn<P: Primary>(&mut self, node: &P) -> Result<(), Error> {
        let began = Instant::now();
        let is_due = self.account.is_some_and(|(_, at)| at + ACCOUNT_INTERVAL <= began);
        if is_due || self.budget.waits_until(began).is_some() {
            self.settle(node).await?;
        }
        let waits_from = Instant::now();
        while let Some(until) = self.budget.waits_until(Instant::now()) {
            let pause = sleep_until(until.min(Instant::now() + SIGN_OF_LIFE));
            tokio::select! {
                () = pause => node.ping().await?,
                () = is_lost(&mut self.lost) => {
                    let message = "the connection was lost while a pass waited for its turn";
                    return Err(Error::Lost(message.to_owned(), Kind::Io));
                }
            }
        }
        self.waited += waits_from.elapsed();
        Ok(())
    }

    /// Compares what was measured with the server's account.
    pub(in crate::sweep) async fn settle<P: Primary>(&mut self, node: &P) -> Result<(), Error> {
        let Some((before, _)) = self.account else { return Ok(()) };
        let lasted = self.lasted;
        self.look(node).await?;
        // Less than before: somebody has reset it, or another server tells.
        if let Some((after, at)) = self.account
            && let Some(account) = after.checked_sub(before)
            && !lasted.is_zero()
        {
            self.budget.settle(at, taken(account, lasted));
        }
        Ok(())
    }

    async fn look<P: Primary>(&mut self, node: &P) -> Result<(), Error> {
        self.account = node.scan_time().await?.map(|account| (account, Instant::now()));
        self.lasted = Duration::ZERO;
        Ok(())
    }
}

/// Gives the time of a server that SCAN calls took, by its own `account` of all clients, if these
/// of ours lasted for `lasted`, the way there and back included.
#[must_use]
pub fn taken(account: Duration, lasted: Duration) -> Duration {
    account.mul_f64(AROUND_CALL).min(lasted)
}

/// Comes back when the connection is lost; never, if nobody says so.
async fn is_lost(lost: &mut Option<watch::Receiver<bool>>) {
    if let Some(lost) = lost
        && lost.wait_for(|lost| *lost).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
