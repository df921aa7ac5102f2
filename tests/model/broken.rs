//! Without one of the rules a promise breaks. Each test takes one out and shows the shortest way.
//!
//! `cargo test --test model broken -- --nocapture` prints the ways. The last test takes out what
//! walsweep assumes of others.

use super::explore::{I1, I2, I3, I7, I8, I10, SPARING, breaks, stays_right};
use super::rule::Rule;
use super::state::Shape::{Exact, Pattern};
use super::state::{Budget, Scenario};
use super::whole::{both, one, two};

/// Asserts that a scenario without a rule breaks a property, and how: each of `lines` is in the
/// way that leads there, in this order.
fn without(rule: Rule, scenario: Scenario, property: &'static str, lines: &[&str]) {
    goes(&breaks(Scenario { without: Some(rule), ..scenario }, property), lines);
}

fn goes(way: &str, lines: &[&str]) {
    let mut steps = way.lines();
    for line in lines {
        assert!(steps.any(|step| step.trim() == *line), "`{line}` is not in its place:\n{way}");
    }
}

const COMMITTED: &str = "postgres: the commit of row 0 is in the log";
const VISIBLE: &str = "postgres: the commit of row 0 is visible";
const PASSED: &str = "walsweep: gate lets pass: key 0";
const REMOVED: &str = "walsweep: UNLINK acknowledged: key 0";
const BEGINS_PASS: &str = "walsweep: begins a pass";
const SCANS: &str = "walsweep: scans a bucket";
const WRITES: &str = "walsweep: writes the watermark";
const CONFIRMS: &str = "walsweep: confirms to postgres";
const KILLED: &str = "walsweep: is killed";
const STARTS: &str = "walsweep: starts, judges the watermark";
const LOCKED: &str = "application: locks the rules' tables";
const ASKS: &str = "walsweep: asks about the tables, and waits";
const REFUSES: &str = "redis: refuses key 0 from now on";
const REFUSED: &str = "walsweep: UNLINK refused: key 0";
const ACCEPTS: &str = "redis: accepts key 0 from now on";
const READS: &str = "reader: misses key 0, reads row 0";
const FILLS: &str = "reader: writes what it read to redis";
const SAVED: &str = "redis: a replica or a file has all up to here";
const BACK: &str = "redis: goes back to that, connections break";
const UNSEEN: &str = "redis: goes back to that, unseen";
const ALTERED: &str = "postgres: the table of row 0 is altered";
const NOTICES: &str = "walsweep: notices that a table is altered";
const RECONNECTS: &str = "walsweep: connects again, judges the watermark";

/// I1: the key goes early, and the next reader caches the old row for good.
#[test]
fn the_gate() {
    let scenario = || one("a reader", Exact, Budget { reads: 1, ..Budget::default() });
    without(Rule::Gate, scenario(), I1, &[COMMITTED, PASSED, REMOVED]);
    without(Rule::Gate, scenario(), I8, &[COMMITTED, PASSED, REMOVED, READS, VISIBLE, FILLS]);
}

/// I3: the commit of row 0 waits, for a standby perhaps, and that of row 1 waits with it.
#[test]
fn a_gate_for_each() {
    let lines = [
        COMMITTED,
        "postgres: the commit of row 1 is in the log",
        "walsweep: receives the commit of row 1",
        "postgres: the commit of row 1 is visible",
    ];
    let scenario = two("two commits", [Exact; 2], Budget::default());
    without(Rule::GateForEach, scenario, I3, &lines);
}

/// I2: confirmed when sent; whoever crashes now never removes it.
#[test]
fn complete_after_the_acknowledgement() {
    let scenario = one("one commit", Exact, Budget::default());
    let lines = [VISIBLE, PASSED, WRITES, CONFIRMS];
    without(Rule::AfterAcknowledgement, scenario, I2, &lines);
}

/// I8: the late fill, after an UNLINK and behind a pass.
#[test]
fn the_second_removal() {
    let budget = Budget { reads: 1, ..Budget::default() };
    let lines = [READS, VISIBLE, REMOVED, CONFIRMS, FILLS];
    without(Rule::SecondRemoval, one("exact key", Exact, budget), I8, &lines);
    let lines = [READS, VISIBLE, BEGINS_PASS, SCANS, SCANS, CONFIRMS, FILLS];
    without(Rule::SecondRemoval, one("pattern", Pattern, budget), I8, &lines);
}

/// I8: a crash within the window, and nobody removes the key a second time.
#[test]
fn held_until_the_second_removal() {
    let budget = Budget { reads: 1, crashes: 1, ..Budget::default() };
    let lines = [READS, VISIBLE, REMOVED, CONFIRMS, FILLS, KILLED, STARTS];
    without(Rule::HoldUntilSecond, one("a crash", Exact, budget), I8, &lines);
}

/// I8: the later commit joined the hold first, and what the earlier one holds back is confirmed.
#[test]
fn the_smallest_of_a_hold() {
    let budget = Budget { reads: 1, crashes: 1, ..Budget::default() };
    let lines = [
        "postgres: the commit of row 1 is in the log",
        COMMITTED,
        REMOVED,
        "reader: misses key 1, reads row 1",
        "walsweep: UNLINK acknowledged: key 1",
        CONFIRMS,
        FILLS,
        KILLED,
        STARTS,
    ];
    without(Rule::HoldSmallest, two("two commits", [Exact; 2], budget), I8, &lines);
}

/// I8: what was cached before the table was altered stays.
#[test]
fn the_sweep_of_a_part() {
    let scenario = one("a table is altered", Exact, Budget { alterations: 1, ..Budget::default() });
    without(Rule::SweepPart, scenario, I8, &[ALTERED, NOTICES]);
}

/// I7: the sweep that is owed is of key 0; key 1 came back with an older Redis.
#[test]
fn a_part_excuses_nothing_else() {
    let budget = Budget { rollbacks: 1, alterations: 1, ..Budget::default() };
    let lines =
        [SAVED, "walsweep: UNLINK acknowledged: key 1", WRITES, ALTERED, NOTICES, BACK, RECONNECTS];
    without(Rule::JudgeWhilePart, two("redis goes back", [Exact; 2], budget), I7, &lines);
}

/// I10: the question waits behind the lock, and the gate behind the question.
#[test]
fn a_connection_of_the_gates_own() {
    let budget = Budget { locks: 1, ..Budget::default() };
    let lines = [COMMITTED, VISIBLE, LOCKED, ASKS];
    without(Rule::GateAlone, one("the tables are locked", Exact, budget), I10, &lines);
}

/// I10: whoever is started behind the lock is not there.
#[test]
fn a_session_begins_behind_a_lock() {
    let budget = Budget { crashes: 1, locks: 1, ..Budget::default() };
    let lines = [VISIBLE, KILLED, LOCKED];
    without(Rule::StartLocked, one("the tables are locked", Exact, budget), I10, &lines);
}

/// I10: what is refused for one rule takes the room of the other.
#[test]
fn refused_keys_wait_apart() {
    let budget = Budget { refusals: 1, ..Budget::default() };
    for (name, shapes) in [("exact keys", [Exact; 2]), ("a pattern behind", [Exact, Pattern])] {
        let lines = [REFUSES, REFUSED];
        without(Rule::RefusedApart, two(name, shapes, budget), I10, &lines);
    }
}

/// I2: confirmed although Redis still has the key.
#[test]
fn refused_keys_hold_the_confirmation() {
    let budget = Budget { refusals: 1, ..Budget::default() };
    let lines = [VISIBLE, REFUSES, REFUSED, WRITES, CONFIRMS];
    without(Rule::RefusedHeld, one("exact key", Exact, budget), I2, &lines);
    let lines = [VISIBLE, BEGINS_PASS, REFUSES, SCANS, WRITES, CONFIRMS];
    without(Rule::RefusedHeld, one("pattern", Pattern, budget), I2, &lines);
}

/// I3: the right is back, and nobody removes the key.
#[test]
fn refused_keys_are_tried_again() {
    let budget = Budget { refusals: 1, ..Budget::default() };
    let lines = [VISIBLE, REFUSES, REFUSED, ACCEPTS];
    without(Rule::RefusedAgain, one("exact key", Exact, budget), I3, &lines);
}

/// I8: readers trust a cache that holds what was to go.
#[test]
fn not_ready_while_keys_are_refused() {
    let budget = Budget { refusals: 1, ..Budget::default() };
    let lines = [VISIBLE, REFUSES, REFUSED];
    without(Rule::RefusedNotReady, one("exact key", Exact, budget), I8, &lines);
}

/// I8: the bucket of the key was passed when its pattern joined.
#[test]
fn the_next_pass() {
    let lines = [BEGINS_PASS, SCANS, "walsweep: adds to the pass: key 0", SCANS, CONFIRMS];
    let scenario = two("two patterns", [Pattern; 2], Budget::default());
    without(Rule::NextPass, scenario, I8, &lines);
}

/// I7: the watermark survives where the removal does not, and vouches for it.
#[test]
fn the_watermark_after_the_removals() {
    let budget = Budget { rollbacks: 1, ..Budget::default() };
    let lines = [WRITES, SAVED, REMOVED, REMOVED, CONFIRMS, BACK, RECONNECTS];
    let scenario = one("redis goes back", Exact, budget);
    without(Rule::WatermarkAfterRemovals, scenario, I7, &lines);
}

/// I7: the next watermark covers up that an older one stood there.
#[test]
fn compare_and_set() {
    let budget = Budget { crashes: 1, hidden_rollbacks: 1, ..Budget::default() };
    let lines = [SAVED, REMOVED, REMOVED, WRITES, KILLED, STARTS, UNSEEN, WRITES];
    let scenario = two("redis goes back unseen", [Exact; 2], budget);
    without(Rule::CompareAndSet, scenario, I7, &lines);
}

/// I7: what no watermark covers yet is lost while the connection stands.
#[test]
fn the_chain() {
    let budget = Budget { hidden_rollbacks: 1, ..Budget::default() };
    let lines = [SAVED, REMOVED, REMOVED, UNSEEN, WRITES, CONFIRMS];
    without(Rule::Chain, one("redis goes back unseen", Exact, budget), I7, &lines);
    let lines = [SAVED, SCANS, SCANS, SCANS, SCANS, UNSEEN, WRITES, CONFIRMS];
    without(Rule::Chain, one("behind a pass", Pattern, budget), I7, &lines);
}

/// Nothing stale comes of it, which the checker shows, too: a watermark behind the slot asks for a
/// sweep. It comes of every crash in between, and the rule spares it.
#[test]
fn confirmed_after_the_watermark() {
    let budget = Budget { crashes: 1, ..Budget::default() };
    let lines = [REMOVED, REMOVED, CONFIRMS, KILLED, STARTS];
    let scenario = one("a crash", Exact, budget);
    without(Rule::ConfirmAfterWatermark, scenario, SPARING, &lines);
    let budget = Budget { reads: 1, crashes: 1, rollbacks: 1, ..Budget::default() };
    let scenario = one("redis goes back, too", Exact, budget);
    stays_right(Scenario { without: Some(Rule::ConfirmAfterWatermark), ..scenario });
}

/// I7: what the watermark does not cover yet is lost with nothing to show it.
#[test]
fn repeated_on_reconnect() {
    let budget = Budget { rollbacks: 1, ..Budget::default() };
    let lines = [SAVED, REMOVED, REMOVED, BACK, RECONNECTS, WRITES];
    let scenario = one("redis goes back", Exact, budget);
    without(Rule::RepeatOnReconnect, scenario, I7, &lines);
}

/// I7: what was covered when Redis went back is lost.
#[test]
fn repeated_from_memory() {
    let budget = Budget { rollbacks: 1, ..Budget::default() };
    let lines = [SAVED, REMOVED, REMOVED, WRITES, BACK, RECONNECTS];
    let scenario = one("redis goes back", Exact, budget);
    without(Rule::RepeatFromMemory, scenario, I7, &lines);
}

/// I7: a session before this one removed the key, and nobody remembers it.
#[test]
fn only_what_is_remembered() {
    let budget = Budget { crashes: 1, rollbacks: 1, ..Budget::default() };
    let lines = [SAVED, REMOVED, REMOVED, WRITES, KILLED, STARTS, BACK, RECONNECTS];
    let scenario = one("redis goes back", Exact, budget);
    without(Rule::RememberedOnly, scenario, I7, &lines);
}

/// I7: an older watermark is taken for a good one; so is a slot that skipped a commit.
#[test]
fn swept_where_the_watermark_is_behind() {
    let budget = Budget { rollbacks: 1, ..Budget::default() };
    let lines = [SAVED, REMOVED, REMOVED, WRITES, BACK, RECONNECTS];
    let scenario = one("redis goes back", Exact, budget);
    without(Rule::SweepOnWatermark, scenario, I7, &lines);
    let budget = Budget { crashes: 1, moved_slots: 1, ..Budget::default() };
    let lines = [VISIBLE, KILLED, "postgres: the slot is moved to the log's end", STARTS];
    let scenario = one("the slot is moved", Exact, budget);
    without(Rule::SweepOnWatermark, scenario, I7, &lines);
}

/// I7: the value of a commit that does not exist any more stays cached.
#[test]
fn swept_on_another_timeline() {
    let budget = Budget { reads: 1, promotions: 1, ..Budget::default() };
    let lines =
        [VISIBLE, READS, FILLS, "postgres: a standby with the log up to 1 is promoted", STARTS];
    without(Rule::SweepOnTimeline, one("promoted", Exact, budget), I7, &lines);
}

/// I7: the sweep came too early for a commit that the slot never sends.
#[test]
fn swept_again_after_the_fence() {
    let budget = Budget { reads: 1, crashes: 1, moved_slots: 1, ..Budget::default() };
    let moved = "postgres: the slot is moved to the log's end";
    let lines = [COMMITTED, KILLED, moved, STARTS, SCANS, READS, VISIBLE, FILLS];
    without(Rule::SweepAfterFence, one("the slot is moved", Exact, budget), I7, &lines);
}

/// I7: Redis loads the same old file twice, and the second time its watermark looks right.
#[test]
fn the_watermark_after_a_sweep() {
    let budget = Budget { crashes: 1, rollbacks: 2, ..Budget::default() };
    let over = "walsweep: writes the watermark over itself";
    let lines = [SAVED, WRITES, KILLED, STARTS, BACK, RECONNECTS, SCANS, over, BACK, RECONNECTS];
    without(Rule::WatermarkAfterSweep, one("the same file", Exact, budget), I7, &lines);
}

/// I2: what the other target has not removed is confirmed.
#[test]
fn the_least_of_all_targets() {
    let scenario = both(one("two targets", Exact, Budget::default()));
    let lines = [VISIBLE, PASSED, REMOVED, WRITES, CONFIRMS];
    without(Rule::LeastOfTargets, scenario, I2, &lines);
}

/// I10: the other target is away and full, and the first one is not fed.
#[test]
fn a_full_target_stops_no_other() {
    let budget = Budget { absences: 1, ..Budget::default() };
    let away = "redis: goes away (the other target)";
    let lines = [COMMITTED, VISIBLE, "walsweep: gate lets pass: key 1", away];
    without(Rule::FedApart, both(two("a target is away", [Exact; 2], budget)), I10, &lines);
}

/// Nothing stale comes of it; but a target that lost nothing is emptied.
#[test]
fn each_target_is_swept_for_itself() {
    let budget = Budget { crashes: 1, rollbacks: 1, ..Budget::default() };
    let lines = [REMOVED, SAVED, WRITES, KILLED, STARTS, BACK, RECONNECTS];
    without(Rule::OwnSweep, both(one("one goes back", Exact, budget)), SPARING, &lines);
}

/// Not promised: a fill that is later than the window.
#[test]
fn a_fill_later_than_the_window() {
    let budget = Budget { reads: 1, ..Budget::default() };
    let scenario = Scenario { late: true, ..one("later than the window", Exact, budget) };
    goes(&breaks(scenario, I8), &[READS, VISIBLE, REMOVED, REMOVED, CONFIRMS, FILLS]);
}
