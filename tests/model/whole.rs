//! With every rule in place nothing that can be reached breaks a promise.
//!
//! One test explores one scenario to the end: each gives its faults and reads a small budget, and
//! the checker tries them at every point and in every order.

use super::explore::holds;
use super::state::Shape::{Exact, Pattern};
use super::state::{Budget, Scenario, Shape};

const NONE: Budget = Budget {
    reads: 0,
    crashes: 0,
    rollbacks: 0,
    hidden_rollbacks: 0,
    moved_slots: 0,
    promotions: 0,
    locks: 0,
    refusals: 0,
    alterations: 0,
    absences: 0,
};

/// One transaction on row 0, with all rules.
pub(crate) fn one(name: &'static str, shape: Shape, budget: Budget) -> Scenario {
    Scenario {
        name,
        transactions: 1,
        targets: 1,
        shapes: [shape; 2],
        budget,
        late: false,
        without: None,
        only: None,
    }
}

/// Two transactions, one for each row.
pub(crate) fn two(name: &'static str, shapes: [Shape; 2], budget: Budget) -> Scenario {
    Scenario { transactions: 2, shapes, ..one(name, Exact, budget) }
}

/// Gives the scenario with two targets.
pub(crate) fn both(scenario: Scenario) -> Scenario {
    Scenario { targets: 2, ..scenario }
}

/// I1, I2, I3, I8.
#[test]
fn commits_that_wait_late_fills_and_a_crash() {
    let budget = Budget { reads: 2, crashes: 1, ..NONE };
    assert!(holds(two("an exact key and a pattern", [Exact, Pattern], budget)) > 20_000);
}

/// I2, I3, I8.
#[test]
fn patterns_that_arrive_during_a_pass() {
    let budget = Budget { reads: 2, crashes: 1, ..NONE };
    assert!(holds(two("two patterns", [Pattern; 2], budget)) > 20_000);
}

/// I7: twice, and both times to the same file.
#[test]
fn redis_goes_back() {
    let budget = Budget { reads: 2, crashes: 1, rollbacks: 2, ..NONE };
    assert!(holds(one("redis goes back, exact key", Exact, budget)) > 10_000);
    assert!(holds(one("redis goes back, pattern", Pattern, budget)) > 10_000);
}

/// I7, with another transaction on its way.
#[test]
fn redis_goes_back_between_two_commits() {
    let budget = Budget { crashes: 1, rollbacks: 1, ..NONE };
    assert!(holds(two("redis goes back, two commits, a crash", [Exact; 2], budget)) > 30_000);
    let budget = Budget { reads: 1, rollbacks: 1, ..NONE };
    assert!(holds(two("redis goes back, two commits, a read", [Exact; 2], budget)) > 30_000);
}

/// I7: nothing tells walsweep, but the watermark does.
#[test]
fn redis_goes_back_unseen() {
    let budget = Budget { crashes: 1, hidden_rollbacks: 1, ..NONE };
    assert!(holds(two("redis goes back unseen", [Exact; 2], budget)) > 20_000);
    let budget = Budget { reads: 2, crashes: 1, hidden_rollbacks: 2, ..NONE };
    assert!(holds(one("redis goes back unseen, twice", Pattern, budget)) > 5_000);
}

/// I7, and the commit that is older than the slot.
#[test]
fn the_slot_is_moved() {
    let budget = Budget { reads: 1, crashes: 1, moved_slots: 1, ..NONE };
    assert!(holds(two("the slot is moved", [Exact; 2], budget)) > 30_000);
    let budget = Budget { reads: 2, crashes: 2, moved_slots: 1, rollbacks: 1, ..NONE };
    assert!(holds(one("the slot is moved and redis goes back", Pattern, budget)) > 20_000);
}

/// I7: values of commits that no longer exist.
#[test]
fn a_standby_without_the_last_commits_is_promoted() {
    let budget = Budget { reads: 1, crashes: 1, promotions: 1, ..NONE };
    assert!(holds(two("promoted", [Exact; 2], budget)) > 30_000);
}

/// I7 and I8, every fault in one scenario.
#[test]
fn every_fault_once() {
    let budget = Budget {
        reads: 1,
        crashes: 1,
        rollbacks: 1,
        hidden_rollbacks: 1,
        moved_slots: 1,
        promotions: 1,
        ..NONE
    };
    assert!(holds(one("every fault once", Exact, budget)) > 20_000);
}

/// I10: also where the lock is never given back, and where walsweep has to begin behind it.
#[test]
fn the_rules_tables_are_locked() {
    let budget = Budget { reads: 1, crashes: 1, locks: 1, ..NONE };
    assert!(holds(two("the tables are locked", [Exact, Pattern], budget)) > 20_000);
}

/// I10: also where the right never comes back; I2: the refused key holds what is confirmed.
#[test]
fn redis_refuses_the_keys_of_a_rule() {
    let budget = Budget { crashes: 1, refusals: 1, ..NONE };
    assert!(holds(two("redis refuses a rule, a crash", [Exact, Pattern], budget)) > 5_000);
    let budget = Budget { reads: 1, refusals: 2, ..NONE };
    assert!(holds(two("redis refuses two rules", [Exact, Pattern], budget)) > 10_000);
    let budget = Budget { reads: 1, crashes: 1, rollbacks: 1, refusals: 1, ..NONE };
    assert!(holds(one("redis refuses a rule and goes back", Pattern, budget)) > 5_000);
}

/// I7, I8: what is owed of one table says nothing of the others' keys.
#[test]
fn a_table_is_altered_and_redis_goes_back() {
    let budget = Budget { reads: 1, crashes: 1, alterations: 1, ..NONE };
    assert!(holds(one("a table is altered", Pattern, budget)) > 1_000);
    let budget = Budget { rollbacks: 1, alterations: 1, ..NONE };
    assert!(holds(two("a table is altered and redis goes back", [Exact; 2], budget)) > 30_000);
    let budget = Budget { reads: 1, crashes: 1, hidden_rollbacks: 1, alterations: 1, ..NONE };
    assert!(holds(one("the same, unseen", Exact, budget)) > 5_000);
}

/// I10: a target that is away, perhaps for good, holds up what is confirmed, and no key of another.
#[test]
fn a_target_is_away() {
    let budget = Budget { crashes: 1, absences: 1, ..NONE };
    assert!(holds(both(two("a target is away, a crash", [Exact; 2], budget))) > 30_000);
    let budget = Budget { reads: 1, absences: 2, ..NONE };
    assert!(holds(both(one("targets are away, a read", Pattern, budget))) > 10_000);
}

/// I7: the other target is not swept with it, and nothing that it has not removed is confirmed.
#[test]
fn one_target_of_two_goes_back() {
    let budget = Budget { crashes: 1, rollbacks: 1, ..NONE };
    assert!(holds(both(one("one target goes back", Exact, budget))) > 10_000);
    let budget = Budget { reads: 1, crashes: 1, hidden_rollbacks: 1, ..NONE };
    assert!(holds(both(one("one target goes back unseen", Exact, budget))) > 10_000);
}

/// I7, I8: what breaks history breaks it for both.
#[test]
fn two_targets_and_a_slot_that_is_moved() {
    let budget = Budget { crashes: 1, moved_slots: 1, absences: 1, ..NONE };
    assert!(holds(both(one("two targets, the slot is moved", Exact, budget))) > 10_000);
    let budget = Budget { crashes: 1, refusals: 1, ..NONE };
    assert!(holds(both(one("two targets, one refuses", Exact, budget))) > 1_000);
}
