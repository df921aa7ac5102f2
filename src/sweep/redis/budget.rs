//! How much of one Redis's time SCAN passes may take: at most a share of any ten seconds. Pure.
//!
//! Two things are decided here. A *call* waits while what the last ten seconds took, with the call
//! itself, is more than the share: that alone holds the promise, however wrong a forecast is. (A
//! bucket of tokens would not: one that is full gives all it has, and what flows in besides.) A
//! *pass* begins when the pass before it is paid for: as many whole passes as fit into the share of
//! ten seconds have the rest of these ten seconds between them, in equal parts. Otherwise a steady
//! stream of patterns would get some passes in a row, and then none until the first of them is ten
//! seconds old.
//!
//! No plan lets patterns that come all the time wait less, at worst: who comes when a pass begins
//! waits until the end of the next, and j such waits in a row hold j + 1 passes. If only j of them
//! fit into the share, they hold all that is no share of a window, too. Passes at `cost / max_load`
//! would look fair, but the last one of a window would stand still on its way until the window has
//! moved on, which is longer.
//!
//! A first removal may begin a distance early: once after quiet, or where the pass before it was
//! for second removals. So second removals do not stand in its way.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Over every stretch of this length the share is kept.
pub(in crate::sweep) const WINDOW: Duration = Duration::from_secs(10);

/// Keys should be gone this long after readers can see why, where `sweep.max_load` allows it.
pub const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Calls that end within this time are noted as one.
const SLOT: Duration = Duration::from_millis(50);

/// Passes, of which the dearest counts. One that is dearer than was thought may find no room for
/// its end, and waits there for the window to move on.
const PASSES: usize = 4;

/// A pass that was cheaper than this share of another says that the keys are no more: what the
/// other took is forgotten.
const ALIKE: f64 = 0.6;

/// The part of the share that a plan uses, for a call may end before its limit and not on it.
const PLANNED: f64 = 0.99;

/// The time that passes have taken, and that they still may take.
#[derive(Clone, Debug)]
pub(in crate::sweep) struct Budget {
    max_load: f64,
    /// The time that was taken in the latest [`WINDOW`], the oldest first.
    slots: VecDeque<Slot>,
    /// The time that the latest call took: the next one will take as much.
    call: Duration,
    /// The time that each of the latest whole passes took.
    passes: VecDeque<Duration>,
    /// When everything that was taken is paid for.
    paid_at: Option<Instant>,
    /// The pass under way: from when on it is paid, and what it took so far.
    under_way: Option<(Instant, Duration)>,
}

/// Calls that were close together.
#[derive(Clone, Debug)]
struct Slot {
    began: Instant,
    ended: Instant,
    /// The time that SCAN took.
    scan: Duration,
    /// The time that removing took.
    rest: Duration,
    /// Whether what SCAN took was compared with the server's own account.
    settled: bool,
}

impl Budget {
    /// A budget of this share, of which nothing is taken; 1 is no limit.
    pub(in crate::sweep) fn new(max_load: f64) -> Budget {
        let (slots, passes) = (VecDeque::new(), VecDeque::new());
        let call = Duration::ZERO;
        Budget { max_load, slots, call, passes, paid_at: None, under_way: None }
    }

    /// The share.
    pub(in crate::sweep) fn max_load(&self) -> f64 {
        self.max_load
    }

    /// Gives the time that the next whole pass may take: as much as the dearest of the latest ones.
    /// Zero before the first.
    pub(in crate::sweep) fn pass_cost(&self) -> Duration {
        self.passes.iter().max().copied().unwrap_or_default()
    }

    /// How far apart passes of this cost begin.
    pub(in crate::sweep) fn distance(&self, cost: Duration) -> Duration {
        distance(self.max_load, cost)
    }

    /// Gives the time that the pass under way took so far.
    pub(in crate::sweep) fn so_far(&self) -> Duration {
        self.under_way.map_or(Duration::ZERO, |(_, so_far)| so_far)
    }

    /// Gives the share of the server's time that was taken in the [`WINDOW`] before `now`.
    pub(in crate::sweep) fn load(&self, now: Instant) -> f64 {
        self.latest(now).map(Slot::took).sum::<Duration>().div_duration_f64(WINDOW)
    }

    /// From when on the next pass may begin, as is known at `now`, `None` for any time; one that is
    /// `urgent` is for more than second removals.
    pub(in crate::sweep) fn begins_at(&self, urgent: bool, now: Instant) -> Option<Instant> {
        let (paid_at, next_call) = (self.paid_at?, self.waits_until(now));
        let cost = self.pass_cost();
        let distance = self.distance(cost);
        // A pass that comes early makes a later one wait for as long as two of them do.
        let is_bearable = distance * 2 + cost <= GONE_WITHIN;
        let taken: Duration = self.latest(now).map(Slot::took).sum();
        let has_room = taken + cost * 2 <= WINDOW.mul_f64(self.max_load);
        let early = urgent && is_bearable && has_room;
        let begins_at = if early { paid_at.checked_sub(distance) } else { Some(paid_at) };
        // Whatever comes while it would wait for its first call can go with it.
        begins_at.max(next_call)
    }

    /// A pass begins.
    pub(in crate::sweep) fn begin(&mut self, now: Instant) {
        let from = self.paid_at.map_or(now, |paid_at| paid_at.max(now));
        self.under_way = Some((from, Duration::ZERO));
    }

    /// The pass is over; `whole` if it came to its end.
    pub(in crate::sweep) fn end(&mut self, whole: bool) {
        let Some((from, took)) = self.under_way.take() else { return };
        if !whole {
            self.paid_at = Some(from + self.distance(took));
            return;
        }
        self.passes.retain(|other| took >= other.mul_f64(ALIKE));
        if self.passes.len() == PASSES {
            self.passes.pop_front();
        }
        self.passes.push_back(took);
        self.paid_at = Some(from + took + rest(self.max_load, self.pass_cost()));
    }

    /// A SCAN call that ends at `now` took this much of the server's time.
    pub(in crate::sweep) fn scanned(&mut self, now: Instant, took: Duration) {
        self.call = took;
        self.slot(now).scan += took;
        if let Some((_, so_far)) = &mut self.under_way {
            *so_far += took;
        }
    }

    /// Removals that end at `now` took this much of the server's time.
    pub(in crate::sweep) fn removed(&mut self, now: Instant, took: Duration) {
        self.slot(now).rest += took;
        if let Some((_, so_far)) = &mut self.under_way {
            *so_far += took;
        }
    }

    /// All SCAN calls since the last time that this was told took so much, as is known at `now`.
    pub(in crate::sweep) fn settle(&mut self, now: Instant, truth: Duration) {
        let noted: Duration = self.slots.iter().map(Slot::unsettled).sum();
        if noted.is_zero() {
            self.scanned(now, truth);
        } else {
            let factor = truth.div_duration_f64(noted);
            for slot in self.slots.iter_mut().filter(|slot| !slot.settled) {
                slot.scan = slot.scan.mul_f64(factor);
            }
            self.call = self.call.mul_f64(factor);
            if let Some((_, so_far)) = &mut self.under_way {
                *so_far = (*so_far + truth).saturating_sub(noted);
            }
        }
        self.slots.iter_mut().for_each(|slot| slot.settled = true);
    }

    /// Until when the next call has to wait, if it may not be made at `now`.
    pub(in crate::sweep) fn waits_until(&self, now: Instant) -> Option<Instant> {
        if self.max_load >= 1.0 {
            return None;
        }
        let share = WINDOW.mul_f64(self.max_load).saturating_sub(self.call);
        let mut taken: Duration = self.latest(now).map(Slot::took).sum();
        let mut until = None;
        for slot in self.latest(now) {
            // Where a single call takes more than the share it goes alone.
            if taken <= share || taken.is_zero() {
                break;
            }
            taken = taken.saturating_sub(slot.took());
            until = Some(slot.ended + WINDOW);
        }
        until
    }

    /// Gives the slots that are not older than [`WINDOW`].
    fn latest(&self, now: Instant) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(move |slot| slot.ended + WINDOW > now)
    }

    /// Where to note what ends at `now`.
    fn slot(&mut self, now: Instant) -> &mut Slot {
        while self.slots.front().is_some_and(|slot| slot.ended + WINDOW <= now) {
            self.slots.pop_front();
        }
        let fits = |slot: &Slot| !slot.settled && now < slot.began + SLOT;
        if !self.slots.back().is_some_and(fits) {
            let (scan, rest) = (Duration::ZERO, Duration::ZERO);
            self.slots.push_back(Slot { began: now, ended: now, scan, rest, settled: false });
        }
        let slot = self.slots.back_mut().expect("one was put there");
        slot.ended = now;
        slot
    }
}

/// How far apart passes begin that take `cost` of a server's time each, if they may take the share
/// `max_load` of it over any ten seconds. Zero where that is no limit.
#[must_use]
pub fn distance(max_load: f64, cost: Duration) -> Duration {
    if max_load >= 1.0 || cost.is_zero() { Duration::ZERO } else { cost + rest(max_load, cost) }
}

/// How long keys stay at most whose patterns come all the time, if a pass takes `cost` of a
/// server's time, and passes may take the share `max_load` of it over any ten seconds: from coming
/// right behind the begin of one pass to the end of the next. A pass that is dearer than the share
/// stands still on its way; patterns after quiet have a pass of their own at once.
#[must_use]
pub fn longest_wait(max_load: f64, cost: Duration) -> Duration {
    let (distance, share) = (distance(max_load, cost), WINDOW.mul_f64(max_load * PLANNED));
    let lasts = if cost <= share { cost } else { distance };
    distance.max(cost) + lasts
}

/// How long Redis rests from passes between two of them.
fn rest(max_load: f64, cost: Duration) -> Duration {
    if max_load >= 1.0 || cost.is_zero() {
        return Duration::ZERO;
    }
    let share = WINDOW.mul_f64(max_load * PLANNED);
    match share.as_nanos().checked_div(cost.as_nanos()) {
        // Each goes as far as its share, and waits for the next ten seconds.
        None | Some(0) => cost.div_f64(max_load).saturating_sub(cost),
        // What a slot holds is free when the whole slot is ten seconds old.
        Some(fits) => (WINDOW + SLOT - share) / u32::try_from(fits).unwrap_or(u32::MAX),
    }
}

impl Slot {
    fn took(&self) -> Duration {
        self.scan + self.rest
    }

    fn unsettled(&self) -> Duration {
        if self.settled { Duration::ZERO } else { self.scan }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::{Budget, GONE_WITHIN, PLANNED, SLOT, WINDOW, distance, longest_wait};

    /// Calls of a pass, where it matters how many.
    const CALLS: u32 = 100;

    /// Calls of passes one after the other, each as early as it may be: when it began, and what it
    /// took.
    fn run(
        max_load: f64,
        passes: &[(u64, bool)],
        cost_of_call: impl Fn(usize) -> Duration,
    ) -> Vec<(Instant, Duration)> {
        let mut budget = Budget::new(max_load);
        let (mut now, mut calls) = (Instant::now(), Vec::new());
        for (length, urgent) in passes {
            now = budget.begins_at(*urgent, now).map_or(now, |at| at.max(now));
            budget.begin(now);
            for _ in 0..*length {
                while let Some(until) = budget.waits_until(now) {
                    assert!(until > now, "it waits for ever");
                    now = until;
                }
                let took = cost_of_call(calls.len());
                calls.push((now, took));
                now += took;
                budget.scanned(now, took);
            }
            budget.end(true);
        }
        calls
    }

    /// The most that was taken in any stretch of [`WINDOW`].
    fn most(calls: &[(Instant, Duration)]) -> Duration {
        // A stretch that takes most begins where a call does, or ends where one does.
        let within = |from: Instant| -> Duration {
            let to = from + WINDOW;
            let part = |(began, took): &(Instant, Duration)| {
                let (begin, end) = ((*began).max(from), (*began + *took).min(to));
                end.saturating_duration_since(begin)
            };
            calls.iter().map(part).sum()
        };
        let starts = calls.iter().map(|(began, _)| *began);
        let ends = calls.iter().filter_map(|(began, took)| (*began + *took).checked_sub(WINDOW));
        starts.chain(ends).map(within).max().unwrap_or_default()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever passes cost, and whoever asks for them: no ten seconds have more than the
        /// share, but for as much as one call takes longer than the one before it.
        #[test]
        fn no_ten_seconds_take_more_than_the_share(
            percent in 1_u32..100,
            passes in prop::collection::vec((1_u64..60, any::<bool>()), 1..12),
            costs in prop::collection::vec(1_u64..200, 1..9),
        ) {
            let cost = |at: usize| Duration::from_millis(costs[at % costs.len()]);
            let max_load = f64::from(percent) / 100.0;
            let calls = run(max_load, &passes, cost);
            let longest = Duration::from_millis(*costs.iter().max().unwrap());
            let share = WINDOW.mul_f64(max_load);
            let most = most(&calls);
            prop_assert!(most <= share + longest, "{most:?} of {share:?}");
        }

        /// The server's word counts, whatever was measured before.
        #[test]
        fn what_is_settled_is_as_good_as_what_was_measured(
            factor in 0.1_f64..10.0,
            costs in prop::collection::vec(1_u64..50, 20..200),
        ) {
            let (mut told, mut measured) = (Budget::new(0.25), Budget::new(0.25));
            let mut now = Instant::now();
            for budget in [&mut told, &mut measured] {
                budget.begin(now);
            }
            let mut since = Duration::ZERO;
            for (at, cost) in costs.iter().enumerate() {
                let cost = Duration::from_millis(*cost);
                now += cost;
                since += cost;
                told.scanned(now, cost.mul_f64(factor));
                measured.scanned(now, cost);
                if at % 7 == 0 || at + 1 == costs.len() {
                    told.settle(now, since);
                    since = Duration::ZERO;
                    measured.settle(now, measured.slots.iter().map(super::Slot::unsettled).sum());
                }
            }
            let taken = |budget: &Budget| -> Duration {
                budget.slots.iter().map(|slot| slot.scan).sum()
            };
            let apart = taken(&told).abs_diff(taken(&measured));
            prop_assert!(apart < Duration::from_micros(1), "{apart:?}");
            told.end(true);
            measured.end(true);
            let apart = told.pass_cost().abs_diff(measured.pass_cost());
            prop_assert!(apart < Duration::from_micros(1), "{apart:?}");
        }
    }

    #[test]
    fn a_pass_after_quiet_does_not_wait() {
        let calls = run(0.25, &[(2_400, true)], |_| Duration::from_millis(1));
        let took = calls[calls.len() - 1].0 - calls[0].0;
        assert!(took < Duration::from_millis(2_400), "{took:?}");
    }

    /// Six fit into ten seconds, and their distances are equal, so that the longest wait is short.
    /// The second one comes early.
    #[test]
    fn a_stream_of_passes_has_equal_distances() {
        let calls = run(0.25, &[(8, true); 30], |_| Duration::from_millis(50));
        let starts: Vec<Instant> = calls.iter().step_by(8).map(|(began, _)| *began).collect();
        let distances: Vec<Duration> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(distances[0], Duration::from_millis(400), "early after quiet");
        let (most, even) = (distances.iter().max().unwrap(), Duration::from_micros(1_662_500));
        assert!(*most <= even * 2 + SLOT, "{distances:?}");
        assert!(distances[10..].iter().all(|one| one.abs_diff(even) <= SLOT * 2), "{distances:?}");
    }

    /// Patterns wait no longer than a bound that no plan betters, worked out apart from the plan:
    /// where j passes fit into the share, j waits in a row hold j + 1 passes and all of ten seconds
    /// that is no share; where none fits, passes go on and on, as fast as the share lets them. A
    /// plan may add what it leaves of the share, and the width of slots and calls. (Equal parts of
    /// ten seconds made it 11.1 s where it is 6.1 s now.)
    #[test]
    fn patterns_that_come_all_the_time_wait_no_longer_than_they_must() {
        for percent in [5, 10, 25, 50, 90] {
            let max_load = f64::from(percent) / 100.0;
            let share = WINDOW.mul_f64(max_load);
            for millis in (300..3_000).step_by(90) {
                let cost = Duration::from_millis(millis);
                let (fits, call) =
                    (share.mul_f64(PLANNED).as_nanos() / cost.as_nanos(), cost / CALLS);
                let (least, more) = match u32::try_from(fits).unwrap() {
                    0 => (cost.div_f64(max_load) * 2, WINDOW),
                    fits => {
                        let left = share - share.mul_f64(PLANNED);
                        let more = (left + SLOT) / fits + SLOT * 2 + call * 4;
                        ((WINDOW - share) / fits + cost * 2, more)
                    }
                };
                let within = waits(max_load, |_| cost);
                let case = format!("{percent} %, {cost:?}: {within:?} of {least:?} and {more:?}");
                assert!(within <= least + more, "{case}");
                // What `check` foretells is no exaggeration, either.
                let told = longest_wait(max_load, cost);
                assert!(told <= least + more, "{case}: told {told:?}");
                assert!(fits == 0 || within + SLOT * 2 >= told, "{case}: told {told:?}");
            }
        }
    }

    /// On a busy machine passes differ by a third: the dearest of the latest ones counts, so that
    /// the next one finds room and does not stand still on its way until the window has moved on.
    #[test]
    fn passes_that_differ_find_room() {
        for (max_load, millis) in [(0.25, 600), (0.25, 1_000), (0.5, 1_000), (0.1, 400)] {
            let cost = Duration::from_millis(millis);
            let differ = |at: usize| cost.mul_f64([1.0, 0.87, 1.13, 0.93][at % 4]);
            let (longest, within) =
                (longest_wait(max_load, cost.mul_f64(1.13)), waits(max_load, differ));
            assert!(within <= longest + SLOT * 2, "{max_load} {cost:?}: {within:?} of {longest:?}");
        }
    }

    /// Keys that went make the next pass cheap: what passes took before says nothing of it.
    #[test]
    fn a_redis_that_was_emptied_is_not_made_to_wait_for_what_it_had() {
        let mut budget = Budget::new(0.25);
        let mut now = Instant::now();
        for millis in [3_000, 3_000, 3_000, 10] {
            now = budget.begins_at(false, now).map_or(now, |at| at.max(now));
            budget.begin(now);
            budget.scanned(now, Duration::from_millis(millis));
            budget.end(true);
        }
        assert_eq!(budget.pass_cost(), Duration::from_millis(10));
    }

    #[test]
    fn the_longest_wait_is_what_the_share_allows() {
        let wait = |max_load, millis| longest_wait(max_load, Duration::from_millis(millis));
        // Two of them fit into 2.5 s, one does, none does.
        assert_eq!(wait(0.25, 1_140), Duration::from_micros(2 * 1_140_000 + 7_575_000 / 2));
        assert_eq!(wait(0.25, 1_300), Duration::from_millis(2 * 1_300 + 7_575));
        assert_eq!(wait(0.25, 3_000), Duration::from_secs(24));
        // One after the other: what comes after the begin of one waits for the next as well.
        assert_eq!(wait(1.0, 1_000), Duration::from_secs(2));
        assert_eq!(wait(0.25, 0), Duration::ZERO);
        // The figures of docs/guarantee.md.
        let is_about = |time: Duration, millis: u64| time.as_millis().abs_diff(millis.into()) < 50;
        assert!(is_about(distance(0.25, Duration::from_millis(500)), 2_400));
        assert!(wait(0.25, 800) <= GONE_WITHIN && wait(0.25, 850) > GONE_WITHIN);
        assert!(is_about(wait(0.25, 1_200), 6_200), "{:?}", wait(0.25, 1_200));
        assert!(wait(0.25, 1_230) < WINDOW && wait(0.25, 1_240) >= WINDOW);
    }

    /// How long patterns that come all the time wait at most, from coming to the end of their pass,
    /// if passes cost so much.
    fn waits(max_load: f64, cost: impl Fn(usize) -> Duration) -> Duration {
        let mut budget = Budget::new(max_load);
        let (mut now, mut passes) = (Instant::now(), Vec::new());
        // After quiet passes come early for a while, and the next ones wait longer for it.
        let (steady, mut at) = (now + WINDOW * 2, 0);
        while passes.len() < 12 {
            at += 1;
            while let Some(until) = budget.begins_at(true, now).filter(|until| *until > now) {
                now = until;
            }
            let began = now;
            budget.begin(now);
            for _ in 0..CALLS {
                while let Some(until) = budget.waits_until(now) {
                    now = until;
                }
                now += cost(at) / CALLS;
                budget.scanned(now, cost(at) / CALLS);
            }
            budget.end(true);
            if began > steady {
                passes.push((began, now));
            }
        }
        let waits = passes.windows(2).map(|pair| pair[1].1 - pair[0].0);
        waits.max().unwrap()
    }

    /// A first removal goes before second ones: theirs wait until all is paid for.
    #[test]
    fn a_first_removal_may_borrow_and_a_second_one_may_not() {
        let mut budget = Budget::new(0.25);
        let now = Instant::now();
        budget.begin(now);
        budget.scanned(now, Duration::from_millis(400));
        budget.end(true);
        let distance = Duration::from_micros(1_662_500);
        assert_eq!(budget.begins_at(true, now), Some(now));
        assert_eq!(budget.begins_at(false, now), Some(now + distance));
        for _ in 0..4 {
            budget.begin(now);
            budget.scanned(now, Duration::from_millis(400));
            budget.end(true);
        }
        // There is room for one more, and it is kept.
        let at = [true, false].map(|urgent| budget.begins_at(urgent, now));
        assert_eq!(at, [Some(now + distance * 5); 2]);
        // So dear that the pass after an early one would come too late.
        let mut budget = Budget::new(0.25);
        budget.begin(now);
        budget.scanned(now, Duration::from_millis(800));
        budget.end(true);
        assert!(budget.begins_at(true, now) > Some(now + Duration::from_secs(3)));
    }

    #[test]
    fn a_call_that_takes_more_than_the_share_goes_alone() {
        let calls = run(0.01, &[(20, true)], |_| Duration::from_millis(500));
        assert_eq!(calls.len(), 20);
        assert!(most(&calls) <= Duration::from_millis(500), "{:?}", most(&calls));
    }

    #[test]
    fn a_load_of_one_is_no_limit() {
        let calls = run(1.0, &[(100, true); 5], |_| Duration::from_millis(100));
        let took = calls[calls.len() - 1].0 - calls[0].0;
        assert_eq!(took, Duration::from_millis(49_900));
    }

    #[test]
    fn a_pass_that_fails_is_paid_for_as_far_as_it_went() {
        let mut budget = Budget::new(0.25);
        let now = Instant::now();
        budget.begin(now);
        budget.scanned(now, Duration::from_millis(500));
        budget.end(true);
        let paid_at = budget.begins_at(false, now).unwrap();
        budget.begin(paid_at);
        budget.scanned(paid_at, Duration::from_millis(100));
        budget.end(false);
        assert_eq!(budget.pass_cost(), Duration::from_millis(500));
        let next = budget.begins_at(false, paid_at).unwrap();
        assert_eq!(next - paid_at, budget.distance(Duration::from_millis(100)));
        assert!(next - paid_at < Duration::from_millis(500));
    }
}
