//! How much one SCAN call may look at: COUNT follows the time that a call takes. And when the next
//! one may be made: see [`Measure`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::measure::Measure;
use super::node::{Error, Primary};

/// The least COUNT: Redis's own default.
const COUNT_MIN: usize = 10;

/// The greatest COUNT. Beyond it a call costs more in stalls than it saves in round trips
/// (measured: the knee is at 1 000, and 5 000 is 15 % faster than that).
const COUNT_MAX: usize = 5_000;

/// COUNT of the first call, about 50 µs of work.
const COUNT_START: usize = 100;

/// Calls that must agree before COUNT falls. On a busy machine most of what a call takes is waiting
/// for a CPU; that a key costs Redis more than the cheapest of these calls says, nobody has seen.
const CALLS: usize = 8;

/// Passes whose shortest round trip counts. The way to a server may become longer: a failover.
const PASSES: usize = 8;

/// PINGs before a pass, the fastest of which counts.
const PINGS: usize = 3;

/// Adapts COUNT so that one call holds Redis for less than a given time, and makes calls wait so
/// that all of them take no more of its time than their share.
#[derive(Clone, Debug)]
pub struct Pace {
    count: usize,
    max_stall: Duration,
    /// The shortest round trip in each of the latest passes: what is left when Redis does nothing.
    round_trips: VecDeque<Duration>,
    /// The cost of a key in each of the latest calls, in nanoseconds.
    costs: VecDeque<u64>,
    pub(in crate::sweep) measure: Measure,
}

impl Pace {
    /// A pace that keeps calls under `max_stall`, and all of them over any ten seconds under the
    /// share `max_load` of the server's time; 1 is no limit.
    #[must_use]
    pub fn new(max_stall: Duration, max_load: f64) -> Pace {
        let (round_trips, costs) = (VecDeque::new(), VecDeque::new());
        Pace { count: COUNT_START, max_stall, round_trips, costs, measure: Measure::new(max_load) }
    }

    /// A pace for pages of single keys of the same server.
    pub(in crate::sweep) fn for_pages(&self) -> Pace {
        let round_trips = self.round_trips.clone();
        Pace { round_trips, ..Pace::new(self.max_stall, 1.0) }
    }

    /// A pass begins: measures the way to the server.
    pub(in crate::sweep) async fn begin<P: Primary>(&mut self, node: &P) -> Result<(), Error> {
        self.measure.begin(node).await?;
        self.next_pass();
        for _ in 0..PINGS {
            let began = Instant::now();
            node.ping().await?;
            self.idle_round_trip(began.elapsed());
        }
        Ok(())
    }

    fn next_pass(&mut self) {
        if self.round_trips.len() == PASSES {
            self.round_trips.pop_front();
        }
        self.round_trips.push_back(Duration::MAX);
    }

    /// Another server may answer from now on.
    pub(in crate::sweep) fn connected(&mut self) {
        self.round_trips.clear();
    }

    /// COUNT for the next call.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// A call that does no work took this long.
    pub fn idle_round_trip(&mut self, took: Duration) {
        if self.round_trips.is_empty() {
            self.round_trips.push_back(Duration::MAX);
        }
        if let Some(latest) = self.round_trips.back_mut() {
            *latest = took.min(*latest);
        }
    }

    /// How much longer a call took than one that does nothing.
    pub(in crate::sweep) fn beyond_round_trip(&self, took: Duration) -> Duration {
        let round_trip = self.round_trips.iter().min().copied().unwrap_or_default();
        took.saturating_sub(round_trip)
    }

    /// A SCAN call with [`count`](Pace::count) took this long; returns how long it held Redis.
    ///
    /// Halves when the limit is passed by what keys cost in the cheapest of the latest calls,
    /// doubles below a third of it: a doubled COUNT then stays below the limit, so that the pace
    /// does not swing.
    pub fn observe(&mut self, took: Duration) -> Duration {
        self.idle_round_trip(took);
        let stall = self.beyond_round_trip(took);
        let count = self.count as u64;
        if self.costs.len() == CALLS {
            self.costs.pop_front();
        }
        self.costs.push_back(u64::try_from(stall.as_nanos()).unwrap_or(u64::MAX) / count);
        let cheapest = self.costs.iter().min().copied().unwrap_or_default();
        if Duration::from_nanos(cheapest.saturating_mul(count)) > self.max_stall {
            self.count = (self.count / 2).max(COUNT_MIN);
        } else if stall < self.max_stall / 3 {
            self.count = (self.count * 2).min(COUNT_MAX);
        }
        self.measure.scanned(took, stall);
        stall
    }
}

/// The pace of each server of a deployment. Each has its own share of its own time.
#[derive(Clone, Debug)]
pub struct Paces {
    /// That of a server that was not looked through before.
    first: Pace,
    by_name: BTreeMap<String, Pace>,
}

impl Paces {
    /// Paces that begin as this one.
    #[must_use]
    pub fn new(first: Pace) -> Paces {
        Paces { first, by_name: BTreeMap::new() }
    }

    /// Takes out the pace of a server.
    pub(super) fn take(&mut self, name: &str) -> Pace {
        self.by_name.remove(name).unwrap_or_else(|| self.first.clone())
    }

    /// Puts it back.
    pub(super) fn put(&mut self, name: &str, pace: Pace) {
        self.by_name.insert(name.to_owned(), pace);
    }

    /// Other servers may answer from now on, or the same ones.
    pub(in crate::sweep) fn connected(&mut self) {
        self.by_name.values_mut().for_each(Pace::connected);
    }

    /// From when on the next pass may begin: see [`Budget`](super::budget). The server that was
    /// paid least decides.
    pub(in crate::sweep) fn begins_at(&self, urgent: bool, now: Instant) -> Option<Instant> {
        let each = self.by_name.values();
        each.filter_map(|pace| pace.measure.budget.begins_at(urgent, now)).max()
    }

    /// The measure of the server on which the latest pass waited longest.
    pub(in crate::sweep) fn slowest(&self) -> &Measure {
        let measures = self.by_name.values().map(|pace| &pace.measure);
        measures.max_by_key(|measure| measure.waited()).unwrap_or(&self.first.measure)
    }

    /// Forgets servers that are none any more.
    pub(super) fn keep(&mut self, names: &[&str]) {
        self.by_name.retain(|name, _| names.contains(&name.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Pace;

    /// A Redis that takes this many nanoseconds a key, 40 µs away.
    fn settle(nanoseconds_per_key: u64, max_stall: Duration) -> (Pace, Duration) {
        let mut pace = Pace::new(max_stall, 1.0);
        pace.idle_round_trip(Duration::from_micros(40));
        let mut longest_at_rest = Duration::ZERO;
        for call in 0..200 {
            let work = Duration::from_nanos(nanoseconds_per_key * pace.count() as u64);
            let stall = pace.observe(Duration::from_micros(40) + work);
            if call > 20 {
                longest_at_rest = longest_at_rest.max(stall);
            }
        }
        (pace, longest_at_rest)
    }

    #[test]
    fn a_call_stays_under_the_limit_on_fast_and_slow_servers() {
        for nanoseconds_per_key in [100, 500, 5_000, 50_000] {
            let limit = Duration::from_millis(1);
            let (_, longest) = settle(nanoseconds_per_key, limit);
            assert!(longest <= limit, "{nanoseconds_per_key} ns a key: {longest:?}");
        }
    }

    #[test]
    fn noise_does_not_make_the_calls_small() {
        let mut pace = Pace::new(Duration::from_micros(100), 1.0);
        pace.idle_round_trip(Duration::from_micros(40));
        // Three calls of four wait some milliseconds for a CPU.
        for call in 0..200 {
            let work = Duration::from_nanos(500 * pace.count() as u64);
            let wait = Duration::from_millis(if call % 4 == 0 { 0 } else { 5 });
            pace.observe(Duration::from_micros(40) + work + wait);
        }
        assert!(pace.count() >= 50, "{}", pace.count());
    }

    #[test]
    fn a_server_that_becomes_slow_is_noticed_after_some_calls() {
        let mut pace = Pace::new(Duration::from_millis(1), 1.0);
        pace.idle_round_trip(Duration::from_micros(40));
        let call = |pace: &mut Pace, nanoseconds| {
            let work = Duration::from_nanos(nanoseconds * pace.count() as u64);
            pace.observe(Duration::from_micros(40) + work)
        };
        for _ in 0..100 {
            call(&mut pace, 500);
        }
        for _ in 0..super::CALLS + 8 {
            call(&mut pace, 20_000);
        }
        assert!(call(&mut pace, 20_000) <= Duration::from_millis(1), "{}", pace.count());
    }

    #[test]
    fn a_call_uses_a_good_part_of_the_limit() {
        let (pace, longest) = settle(500, Duration::from_millis(1));
        assert!(longest >= Duration::from_micros(300), "{longest:?} with {}", pace.count());
    }

    /// A longer way, to another server, is no work of the server's; what the nearer one took is
    /// forgotten after some passes.
    #[test]
    fn a_longer_way_is_noticed() {
        let mut pace = Pace::new(Duration::from_millis(1), 1.0);
        let (near, far) = (Duration::from_micros(40), Duration::from_millis(20));
        pace.idle_round_trip(near);
        for _ in 0..super::PASSES {
            assert_eq!(pace.beyond_round_trip(far), far - near);
            pace.next_pass();
            pace.idle_round_trip(far);
        }
        assert_eq!(pace.beyond_round_trip(far), Duration::ZERO);
        pace.idle_round_trip(near);
        pace.connected();
        pace.idle_round_trip(far);
        assert_eq!(pace.beyond_round_trip(far), Duration::ZERO);
    }

    #[test]
    fn count_stays_within_its_bounds() {
        assert_eq!(settle(1, Duration::from_secs(1)).0.count(), super::COUNT_MAX);
        assert_eq!(settle(10_000_000, Duration::from_millis(1)).0.count(), super::COUNT_MIN);
    }
}
