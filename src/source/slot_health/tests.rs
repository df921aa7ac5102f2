//! The judgement of a slot: what is told of it, and when it goes.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Judge, Judgement, Replay, Retained, Running, SlotState, forget, lost_because, named, tell,
};
use crate::lsn::Lsn;
use crate::telemetry::metrics::Metrics;

const MB: u64 = 1 << 20;

/// A slot so many MB behind, for which so many are kept.
fn slot(unconfirmed: u64, kept: u64) -> SlotState {
    SlotState {
        confirmed_flush_lsn: Lsn(1 << 40),
        wal_status: "reserved".to_owned(),
        active_pid: None,
        active_name: None,
        active_address: None,
        active_since: None,
        failover: None,
        invalidation: None,
        safe_wal_size: None,
        confirmed_lag: Some((unconfirmed * MB).cast_signed()),
        restart_lag: Some((kept * MB).cast_signed()),
        replayed: None,
    }
}

fn transaction(xid: i64) -> Running {
    let (database, name) = (Some("app".to_owned()), Some("psql".to_owned()));
    Running { pid: Some(7), xid, gid: None, database, name }
}

/// I7: a slot goes for what is not confirmed, and only if another one can be had.
#[test]
fn a_slot_is_given_up_only_for_what_is_unconfirmed_and_if_no_transaction_lasts() {
    let max = Some(100 * MB);
    let judge = |judge: &mut Judge, state: &SlotState, xids: &[i64]| {
        let running = xids.iter().map(|xid| transaction(*xid)).collect();
        judge.judge("s", state, (max, running))
    };
    let give_up = Judgement::GiveUp(Retained { bytes: 101 * MB, max: 100 * MB });
    let mut one = Judge::default();
    let is_held = |judgement: &Judgement| match judgement {
        Judgement::Held(text) => text.contains("Postgres process 7"),
        _ => false,
    };
    assert_eq!(judge(&mut one, &slot(100, 100), &[1]), Judgement::Fine);
    assert_eq!(judge(&mut one, &slot(101, 200), &[1, 2]), Judgement::Unsure, "the first look");
    assert!(is_held(&judge(&mut one, &slot(101, 200), &[2, 3])), "2 lasts");
    assert!(is_held(&judge(&mut one, &slot(101, 200), &[3])), "3 lasts");
    assert_eq!(judge(&mut one, &slot(101, 200), &[4]), give_up, "others come and go");
    let end = Judgement::GiveUp(Retained { bytes: 201 * MB, max: 100 * MB });
    let mut one = Judge::default();
    assert_eq!(judge(&mut one, &slot(101, 200), &[1]), Judgement::Unsure);
    for xid in 1..100 {
        let overlapping = judge(&mut one, &slot(200, 300), &[xid, xid + 1]);
        assert!(is_held(&overlapping), "one after another, and each lasts: {overlapping:?}");
    }
    assert_eq!(judge(&mut one, &slot(201, 300), &[99, 100]), end, "the disk goes first");
    let mut one = Judge::default();
    assert_eq!(judge(&mut one, &slot(1, 200), &[1]), Judgement::Unsure);
    for _ in 0..100 {
        assert!(is_held(&judge(&mut one, &slot(1, 200), &[1])), "a new slot would wait, too");
    }
    assert_eq!(judge(&mut one, &slot(1, 200), &[]), Judgement::Unsure, "it will let go");
    assert_eq!(judge(&mut one, &slot(1, 2), &[]), Judgement::Fine);
    assert_eq!(judge(&mut one, &slot(101, 200), &[]), Judgement::Unsure, "a look of before");
    let unlimited = one.judge("s", &slot(1 << 20, 1 << 20), (None, Vec::new()));
    assert_eq!(unlimited, Judgement::Fine);
    // Without a session nothing is removed anyway.
    let mut one = Judge { spares_nobody: true, ..Judge::default() };
    assert_eq!(judge(&mut one, &slot(101, 200), &[1]), Judgement::Unsure);
    assert_eq!(judge(&mut one, &slot(101, 200), &[1]), give_up);
    assert!(is_held(&judge(&mut one, &slot(1, 200), &[1])), "what is confirmed still counts");
    // What a standby has not replayed nobody can confirm, and a new slot has to wait for it.
    let late = SlotState { replayed: Some(Lsn((1 << 40) + 5)), ..slot(500, 500) };
    let mut one = Judge::default();
    assert_eq!(judge(&mut one, &late, &[]), Judgement::Unsure);
    assert_eq!(judge(&mut one, &late, &[]), Judgement::Unsure, "it is the standby's delay");
}

#[test]
fn whom_a_slot_waits_for_is_named() {
    let prepared =
        Running { pid: None, gid: Some("job 5".to_owned()), name: None, ..transaction(9) };
    let first = "Postgres process 7 (`psql`, database `app`, transaction 1)";
    let last = "prepared transaction `job 5` (database `app`, transaction 9)";
    assert_eq!(named(&[transaction(1), prepared.clone()]), format!("{first}, {last}"));
    let many: Vec<Running> = std::iter::once(prepared).chain((1..6).map(transaction)).collect();
    assert!(named(&many).ends_with(", and 3 more"), "{}", named(&many));
}

#[test]
fn a_standby_is_late_when_it_lacks_what_was_written_half_a_minute_ago() {
    let start = Instant::now();
    let mut replay = Replay::default();
    // Seconds, replayed, the primary's end.
    for (at, replayed, wal_end, is_late) in [
        (0, 90, 100, false),
        (5, 99, 150, false),
        (25, 99, 160, false),
        (30, 99, 160, true),
        (35, 100, 160, false),
        (60, 159, 170, false),
        (65, 159, 170, true),
        (70, 165, 170, false),
        (200, 170, 170, false),
        (900, 170, 170, false),
    ] {
        let now = start + Duration::from_secs(at);
        assert_eq!(replay.look(Lsn(replayed), Lsn(wal_end), now), is_late, "{at}");
    }
}

/// A cause that a later version adds must not pass for none: the slot would be streamed from.
#[test]
fn every_cause_is_a_loss() {
    let removed = "the server removed WAL that it needed";
    for (status, cause, expected) in [
        ("lost", Some("wal_removed"), Some(removed)),
        ("lost", None, Some(removed)),
        ("lost", Some("rows_removed"), Some("the server removed catalog rows that it needed")),
        (
            "lost",
            Some("wal_level_insufficient"),
            Some("the primary's `wal_level` was not `logical`"),
        ),
        ("lost", Some("idle_timeout"), Some("nobody read it for `idle_replication_slot_timeout`")),
        (
            "lost",
            Some("conflict"),
            Some(
                "the primary removed catalog rows that it needed, or its `wal_level` was not \
                 `logical`",
            ),
        ),
        ("lost", Some("something else"), Some("the server invalidated it")),
        // The server marks the slot before its status follows.
        ("reserved", Some("idle_timeout"), lost_because("lost", Some("idle_timeout"))),
        ("reserved", None, None),
        ("extended", None, None),
        ("unreserved", None, None),
    ] {
        assert_eq!(lost_because(status, cause), expected, "{status} {cause:?}");
    }
}

/// 0 bytes until the slot is lost would wake a person.
#[test]
fn of_a_slot_that_was_not_looked_at_nothing_is_told() {
    let metrics = Metrics::new(&[]);
    let told = || {
        let text = metrics.text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let slot = lines.filter(|line| {
            ["walsweep_slot_", "walsweep_confirmed_lag", "walsweep_restart_lag"]
                .iter()
                .any(|name| line.starts_with(name))
        });
        slot.map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(told().is_empty(), "{:?}", told());
    tell(&metrics, Some(&slot(1, 2)));
    for line in [
        "walsweep_slot_safe_wal_bytes -1",
        "walsweep_confirmed_lag_bytes 1048576",
        "walsweep_restart_lag_bytes 2097152",
        "walsweep_slot_wal_status{status=\"reserved\"} 1",
    ] {
        assert!(told().iter().any(|one| one == line), "{line}: {:?}", told());
    }
    let limited = SlotState { safe_wal_size: Some(0), ..slot(1, 2) };
    tell(&metrics, Some(&limited));
    assert!(told().iter().any(|one| one == "walsweep_slot_safe_wal_bytes 0"), "{:?}", told());
    forget(&metrics);
    assert!(told().is_empty(), "{:?}", told());
}
