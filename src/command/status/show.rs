//! The state of a running walsweep as lines for a terminal of 80 columns.

use std::time::{Duration, SystemTime};

use humantime::parse_rfc3339;

use super::lines::{Lines, MARGIN, Part, Screen};
use crate::config::printable;
use crate::telemetry::status::{Latency, Level, Pass, Postgres, Rule, Status, Target, Wait};
use crate::telemetry::trail::{Moment, Transaction};
use crate::words::{counted, grouped, is_wall};

/// Rules that are shown; those that removed last go first.
const RULES_MAX: usize = 40;

/// Transactions that are shown.
const TRANSACTIONS_MAX: usize = 8;

/// Columns of the longest bar.
const BAR: u64 = 40;

/// Whether colours are used, beside the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Colour,
}

impl Look {
    fn paint(self, level: Level, text: &str) -> String {
        let code = match level {
            Level::Well => "32",
            Level::Busy => "34",
            Level::Attention => "33",
            Level::Wrong => "31",
        };
        match self {
            Look::Plain => text.to_owned(),
            Look::Colour => format!("\u{1b}[1;{code}m{text}\u{1b}[0m"),
        }
    }
}

/// Gives the lines for a state; rates are of what came since the state `before`.
pub(super) fn shown(status: &Status, before: Option<&Status>, look: Look) -> String {
    let mut lines = Lines::default();
    fill(&mut lines, status, before);
    painted(&lines.into_text(), status.verdict.level, look)
}

/// Gives the text of `/readyz` and the lines for a state, as far as a terminal has room for them.
pub(super) fn fitted(
    readiness: &str,
    (status, before): (&Status, Option<&Status>),
    (look, screen): (Look, Screen),
) -> String {
    let mut lines = Lines::default();
    lines.begin(Part::Readiness);
    readiness.lines().for_each(|line| lines.push("", &printable(line)));
    fill(&mut lines, status, before);
    lines.fit(screen);
    painted(&lines.into_text(), status.verdict.level, look)
}

/// The word for a level, in capitals.
fn word(level: Level) -> &'static str {
    match level {
        Level::Well => "WELL",
        Level::Busy => "BUSY",
        Level::Attention => "LOOK",
        Level::Wrong => "WRONG",
    }
}

/// Paints the word of the verdict.
fn painted(text: &str, level: Level, look: Look) -> String {
    let (name, word) = (format!("{:<MARGIN$}", "verdict"), word(level));
    text.replacen(&format!("{name}{word}"), &format!("{name}{}", look.paint(level, word)), 1)
}

/// Adds all of a state.
fn fill(lines: &mut Lines, status: &Status, before: Option<&Status>) {
    lines.begin(Part::Verdict);
    let word = word(status.verdict.level);
    // A headline quotes no code.
    lines.add("verdict", &format!("{word}: {}", flat(&status.verdict.text).replace('`', "")));
    if let Some(hint) = &status.verdict.hint {
        lines.add("", &format!("do: {}", flat(hint)));
    }
    if let Some(sql) = status.verdict.sql.as_ref().filter(|sql| !is_wall(sql)) {
        format!("sql: {sql};").lines().for_each(|line| lines.add("", &flat(line)));
    }
    if let Some(section) = &status.verdict.section {
        lines.add("", &format!("read: /runbook#{section} of the page, or docs/runbook.md"));
    }
    lines.begin(Part::Flow);
    lines.add("flow", &flow(status, before));
    waiting(lines, &status.waiting);
    passes(lines, &status.passes);
    lines.begin(Part::Servers);
    postgres(lines, &status.postgres, status);
    status.targets.iter().for_each(|target| self::target(lines, target, status));
    lines.begin(Part::Latency);
    latency(lines, &status.latency);
    lines.begin(Part::Rules);
    rules(lines, &status.rules, status);
    if !status.transactions.is_empty() {
        lines.begin(Part::Transactions);
        transactions(lines, status);
    }
    lines.begin(Part::About);
    let uptime = since(&status.started, status).unwrap_or_default();
    lines.add("walsweep", &format!("{}, running for {}", status.version, duration(uptime)));
}

/// Names and errors may hold anything: none begins a line of its own, or acts on the terminal.
fn flat(text: &str) -> String {
    let lines: Vec<&str> = text.split_whitespace().collect();
    printable(&lines.join(" "))
}

fn flow(status: &Status, before: Option<&Status>) -> String {
    let (now, totals) = (seconds_of(&status.now), &status.totals);
    let before = before.filter(|before| before.started == status.started);
    let lasted = before.map(|before| now - seconds_of(&before.now)).filter(|lasted| *lasted > 0.2);
    let (Some(before), Some(lasted)) = (before, lasted) else {
        return format!(
            "{}, {}, {} removed, {} among them",
            counted(totals.transactions, "commit"),
            counted(totals.changes, "row change"),
            counted(totals.keys_removed + totals.refills_removed, "key"),
            counted(totals.refills_removed, "late fill")
        );
    };
    let rate = |now: u64, before: u64| {
        let more = f64::from(u32::try_from(now.saturating_sub(before)).unwrap_or(u32::MAX));
        format!("{:.0}/s", more / lasted)
    };
    let keys = |one: &Status| one.totals.keys_removed + one.totals.refills_removed;
    format!(
        "commits {}, row changes {}, keys removed {}",
        rate(totals.transactions, before.totals.transactions),
        rate(totals.changes, before.totals.changes),
        rate(keys(status), keys(before))
    )
}

fn waiting(lines: &mut Lines, waiting: &[Wait]) {
    let mut name = "waits";
    for wait in waiting {
        let target = wait.target.as_ref().map(|name| format!(" ({})", flat(name)));
        let oldest = wait.oldest_seconds.map(|age| format!("; oldest {}", duration(age)));
        let (target, oldest) = (target.unwrap_or_default(), oldest.unwrap_or_default());
        let (count, what, why) = (grouped(wait.count), flat(&wait.what), flat(&wait.why));
        lines.add(name, &format!("{count} {what} {why}{target}{oldest}"));
        name = "";
    }
    if waiting.is_empty() {
        lines.add(name, "nothing");
    }
}

fn passes(lines: &mut Lines, passes: &[Pass]) {
    for pass in passes {
        let patterns = counted(pass.patterns, "pattern");
        let lasted = duration(pass.seconds);
        let target = flat(&pass.target);
        let head = format!("SCAN of {target}, {patterns} ({}), for {lasted}", pass.reason);
        lines.add("pass", &head);
        for node in &pass.nodes {
            let of = node.share.map(|share| format!(", some {:.0} % done", share * 100.0));
            let (scanned, of) = (counted(node.scanned, "name"), of.unwrap_or_default());
            lines.add("", &format!("{}: {scanned} read{of}", flat(&node.name)));
        }
    }
}

fn postgres(lines: &mut Lines, postgres: &Postgres, status: &Status) {
    let state = if postgres.up { "connected" } else { "no session" };
    let (slot, database) = (flat(&postgres.slot), flat(&postgres.database));
    lines.add("postgres", &format!("{state}; slot {slot} of database {database}"));
    if let Some(slot) = &postgres.state {
        let max = postgres.max_retained_wal_bytes.map(|max| format!(" (at most {})", bytes(max)));
        let unconfirmed = bytes(slot.confirmed_lag_bytes.unsigned_abs());
        let max = max.unwrap_or_default();
        let confirmed = &slot.confirmed_flush_lsn;
        lines.add("", &format!("confirmed up to {confirmed}, {unconfirmed} of WAL behind{max}"));
        let safe = slot.safe_wal_bytes.map_or_else(
            || "no limit is set".to_owned(),
            |safe| format!("{} until it is lost", bytes(u64::try_from(safe).unwrap_or(0))),
        );
        let (kept, state) = (bytes(slot.restart_lag_bytes.unsigned_abs()), &slot.wal_status);
        let age = since(&slot.looked_at, status).map(duration).unwrap_or_default();
        lines.add("", &format!("keeps {kept} of WAL ({state}; {safe}), {age} ago"));
    }
    let age = duration(postgres.oldest_unconfirmed_seconds);
    if postgres.oldest_unconfirmed_seconds > 0.0 {
        lines.add("", &format!("the oldest unconfirmed transaction is {age} old"));
    }
}

fn target(lines: &mut Lines, target: &Target, status: &Status) {
    let node = if target.node.is_empty() { String::new() } else { format!(", {}", target.node) };
    let (name, node) = (flat(&target.name), flat(&node));
    let unproven = if target.proven == Some(false) { "; nothing shows what it keeps" } else { "" };
    let head = format!("{name}: {} ({}{node}){unproven}", target.phase, target.mode);
    lines.add("redis", &head);
    if let Some(index) = target.index {
        let whole = if index.whole { "whole" } else { "not whole" };
        let (keys, memory) = (counted(index.keys, "key"), bytes(index.bytes));
        lines.add("", &format!("index {whole}: {keys} in {memory}"));
    }
    if let Some(why) = &target.unobserved {
        lines.add("", &format!("writes are not observed: {}", flat(why)));
    }
    for node in &target.nodes {
        let name = if target.nodes.len() > 1 { flat(&node.name) + ": " } else { String::new() };
        let (load, most) = (node.load * 100.0, target.max_load * 100.0);
        lines.add("", &format!("{name}SCAN takes {load:.1} % of its time, of {most:.0} % allowed"));
        if let Some(pass) = &node.pass {
            let age = since(&pass.ended, status).map(duration).unwrap_or_default();
            let (names, took) = (counted(pass.keys, "name"), duration(pass.took_seconds));
            lines.add("", &format!("{name}a pass took {took} of it, {names}, {age} ago"));
        }
    }
}

fn latency(lines: &mut Lines, latency: &Latency) {
    if latency.count == 0 {
        return lines.add("gone", "no commit had keys yet");
    }
    let most = latency.buckets.iter().map(|bucket| bucket.count).max().unwrap_or(1).max(1);
    let mut name = "gone";
    for bucket in &latency.buckets {
        let bound = match bucket.up_to_seconds {
            Some(bound) => format!("up to {}", duration(bound)),
            None => "longer".to_owned(),
        };
        let length = (u128::from(bucket.count) * u128::from(BAR)).div_ceil(u128::from(most));
        let bar = "#".repeat(usize::try_from(length).unwrap_or(0));
        let count = grouped(bucket.count);
        let margin = format!("{name:<MARGIN$}");
        lines.push(name, &format!("{margin}{bound:<13} {count:>11} {bar}"));
        name = "";
    }
    let commits = counted(latency.count, "commit");
    let shares = [0.5, 0.99].map(|share| within(latency, share));
    lines.in_short("gone", &format!("half {}, 99 % {}, of {commits}", shares[0], shares[1]));
}

/// Within which time this share of the commits had their keys removed, at most.
fn within(latency: &Latency, share: f64) -> String {
    let few = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let mut so_far = 0;
    let bucket = latency.buckets.iter().find(|bucket| {
        so_far += bucket.count;
        few(so_far) >= few(latency.count) * share
    });
    match bucket.and_then(|bucket| bucket.up_to_seconds) {
        Some(bound) => format!("within {}", duration(bound)),
        None => "later than all bounds".to_owned(),
    }
}

fn rules(lines: &mut Lines, rules: &[Rule], status: &Status) {
    let head = ["rule", "changes", "removed", "absent", "widened", "last"];
    let line = |[name, changes, removed, absent, widened, last]: [&str; 6]| {
        let name: String = name.chars().take(28).collect();
        format!("{name:<28} {changes:>9} {removed:>10} {absent:>9} {widened:>9} {last:>9}")
    };
    lines.push("rule", &line(head));
    let mut order: Vec<&Rule> = rules.iter().collect();
    if rules.len() > RULES_MAX {
        let key = |rule: &&Rule| (!rule.suspended, std::cmp::Reverse(rule.last_removed.clone()));
        order.sort_by_key(key);
    }
    // Not every row may have room.
    order.sort_by_key(|rule| !rule.suspended);
    for rule in order.iter().take(RULES_MAX) {
        let last = rule.last_removed.as_ref().and_then(|last| since(last, status));
        let last = last.map_or_else(|| "-".to_owned(), duration);
        let widened: u64 = rule.widened.iter().map(|one| one.count).sum();
        let [changes, removed, absent, widened] =
            [rule.matches, rule.removed, rule.absent, widened].map(grouped);
        let name = flat(&rule.name);
        lines.push("", &line([&name, &changes, &removed, &absent, &widened, &last]));
        if rule.suspended {
            lines.add("", "SUSPENDED: it does not fit its table, and removes nothing");
        }
    }
    if rules.len() > RULES_MAX {
        lines.add("", &format!("and {} more", grouped((rules.len() - RULES_MAX) as u64)));
    }
}

fn transactions(lines: &mut Lines, status: &Status) {
    let mut name = "last";
    for one in status.transactions.iter().take(TRANSACTIONS_MAX) {
        let Transaction { xid, lsn, committed, .. } = &one.transaction;
        let after =
            |moment: Moment| duration(moment.since(*committed).unwrap_or_default().as_secs_f64());
        let age = since(&committed.to_string(), status).map(duration).unwrap_or_default();
        let rules = one.rules.iter().map(|rule| {
            let (keys, patterns) = (counted(rule.keys, "key"), counted(rule.patterns, "pattern"));
            format!("{} {keys}, {patterns}", flat(&rule.rule))
        });
        let gone = one.targets.iter().map(|target| {
            let name = match one.targets.len() {
                1 => String::new(),
                _ => format!("{} ", flat(&target.target)),
            };
            let gone = match (target.removed, target.refused) {
                (Some(removed), None) => format!("gone after {}", after(removed)),
                (Some(removed), Some(_)) => {
                    format!("gone after {}, refused at first", after(removed))
                }
                (None, Some(refused)) => {
                    let age = since(&refused.to_string(), status).map(duration);
                    format!("refused, owed for {}", age.unwrap_or_default())
                }
                (None, None) => "waits".to_owned(),
            };
            format!("{name}{gone}")
        });
        let (rules, gone) = (rules.collect::<Vec<_>>(), gone.collect::<Vec<_>>());
        let (rules, gone) = (rules.join("; "), gone.join(", "));
        lines.add(name, &format!("transaction {xid} ({lsn}), {age} ago: {rules}; {gone}"));
        name = "";
        if !one.keys.is_empty() {
            let keys: Vec<String> = one.keys.iter().map(ToString::to_string).collect();
            lines.add("", &flat(&keys.join(" ")));
        }
    }
}

fn seconds_of(time: &str) -> f64 {
    let since =
        parse_rfc3339(time).ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.unwrap_or_default().as_secs_f64()
}

/// Seconds between a moment and the state.
fn since(moment: &str, status: &Status) -> Option<f64> {
    let (now, then) = (parse_rfc3339(&status.now).ok()?, parse_rfc3339(moment).ok()?);
    Some(now.duration_since(then).unwrap_or(Duration::ZERO).as_secs_f64())
}

/// Seconds in words, with as many digits as say something.
fn duration(seconds: f64) -> String {
    match seconds {
        few if few < 0.000_95 => format!("{:.0} µs", few * 1e6),
        few if few < 0.009_5 => format!("{:.1} ms", few * 1e3),
        few if few < 0.95 => format!("{:.0} ms", few * 1e3),
        some if some < 9.95 => format!("{some:.1} s"),
        some if some < 99.5 => format!("{some:.0} s"),
        many if many < 5_400.0 => format!("{:.0} min", many / 60.0),
        many if many < 172_800.0 => format!("{:.0} h", many / 3_600.0),
        many => format!("{:.0} days", many / 86_400.0),
    }
}

/// A size in words.
fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut size = f64::from(u32::try_from(count >> 10).unwrap_or(u32::MAX));
    if count < 1024 {
        return format!("{count} B");
    }
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(size < 99.5);
    format!("{size:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::super::lines::{Screen, WIDTH};
    use super::{Look, bytes, duration, fitted, shown};
    use crate::telemetry::status::{
        Bucket, Latency, Level, Node, Pass, PassNode, Postgres, Price, Rule, Slot, Status, Target,
        Totals, Verdict, Wait, Widened,
    };

    fn target() -> Target {
        let ended = "2026-11-30T05:12:27.000Z".to_owned();
        let price = Price { keys: 1_234_567, took_seconds: 0.312, ended, ..Price::default() };
        Target {
            name: "redis".to_owned(),
            mode: "standalone".to_owned(),
            phase: "ready".to_owned(),
            node: "127.0.0.1:6379".to_owned(),
            max_load: 0.25,
            nodes: vec![Node { name: "a".to_owned(), load: 0.021, pass: Some(price) }],
            ..Target::default()
        }
    }

    fn status() -> Status {
        let time = |seconds| format!("2026-11-30T05:12:{seconds}.000Z");
        Status {
            version: "0.1.0".to_owned(),
            now: time(33),
            started: time(10),
            verdict: Verdict {
                level: Level::Wrong,
                text: "rule `list` is suspended: `public.list` has no column `grp`".to_owned(),
                hint: Some("did you mean `grup`?\u{1b}[31m".to_owned()),
                sql: Some("begin;\ncommit".to_owned()),
                section: Some("a-rule-is-suspended".to_owned()),
            },
            totals: Totals { transactions: 4_711, keys_removed: 99, ..Totals::default() },
            waiting: vec![Wait {
                stage: "gate".to_owned(),
                count: 3,
                oldest_seconds: Some(12.3),
                what: "commits".to_owned(),
                why: "not visible to readers yet, as behind a synchronous standby".to_owned(),
                ..Wait::default()
            }],
            postgres: Postgres {
                up: true,
                slot: "walsweep".to_owned(),
                database: "app".to_owned(),
                state: Some(Slot {
                    confirmed_flush_lsn: "0/3000A8".to_owned(),
                    confirmed_lag_bytes: 5_000_000,
                    wal_status: "reserved".to_owned(),
                    looked_at: time(30),
                    ..Slot::default()
                }),
                max_retained_wal_bytes: Some(10 << 30),
                ..Postgres::default()
            },
            targets: vec![target()],
            rules: vec![Rule {
                name: "list\u{1b}[2J".to_owned(),
                suspended: true,
                matches: 12_345,
                widened: vec![Widened { reason: "limit".to_owned(), count: 7 }],
                last_removed: Some(time(32)),
                ..Rule::default()
            }],
            latency: Latency {
                buckets: vec![
                    Bucket { up_to_seconds: Some(0.0025), count: 1_000_000 },
                    Bucket { up_to_seconds: None, count: 1 },
                ],
                count: 1_000_001,
                sum_seconds: 1.0,
            },
            passes: vec![Pass {
                target: "redis".to_owned(),
                reason: "rule".to_owned(),
                patterns: 8,
                seconds: 0.2,
                nodes: vec![PassNode {
                    scanned: 40_000,
                    share: Some(0.444),
                    ..PassNode::default()
                }],
            }],
            ..Status::default()
        }
    }

    #[test]
    fn all_of_it_stands_on_lines_of_eighty_columns_without_a_control_character() {
        let text = shown(&status(), None, Look::Plain);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
            assert!(line.chars().all(|one| !one.is_control()), "{line}");
        }
        for part in [
            "verdict    WRONG: rule list is suspended: public.list has",
            "do: did you mean `grup`?\\u{1b}[31m",
            "           sql: begin;\n           commit;\n           read: /runbook",
            "read: /runbook#a-rule-is-suspended",
            "flow       4 711 commits",
            "waits      3 commits not visible to readers yet",
            "oldest 12 s",
            "pass       SCAN of redis, 8 patterns (rule), for 200 ms",
            "40 000 names read, some 44 % done",
            "postgres   connected; slot walsweep of database app",
            "confirmed up to 0/3000A8, 4.8 MiB of WAL behind (at most 10.0 GiB)",
            "redis      redis: ready (standalone, 127.0.0.1:6379)",
            "SCAN takes 2.1 % of its time, of 25 % allowed",
            "a pass took 312 ms of it, 1 234 567 names, 6.0 s ago",
            "up to 2.5 ms    1 000 000 ########################################\n",
            "longer                  1 #\n",
            "12 345          0         0         7     1.0 s",
            "SUSPENDED: it does not fit its table",
            "walsweep   0.1.0, running for 23 s",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    /// A terminal of a person who watches has 24 lines at least, and scrolls beyond its last one.
    #[test]
    fn a_state_fits_the_height_of_a_terminal_and_keeps_the_verdict() {
        let rule = |at| Rule { name: format!("rule{at}"), ..Rule::default() };
        let mut status = status();
        status.rules.extend((0..60).map(rule));
        status.rules.reverse();
        let readiness = "not ready\nrule `list` is suspended\n  hint: x\u{1b}\n";
        for (rows, columns) in [(24, 80), (24, 60), (40, 132), (12, 80)] {
            let (state, screen) = ((&status, None), Screen { rows, columns });
            let text = fitted(readiness, state, (Look::Plain, screen));
            let taken = text.lines().map(|line| line.chars().count().div_ceil(columns).max(1));
            assert!(taken.sum::<usize>() <= rows, "{rows}: {text}");
            for part in ["verdict    WRONG: rule list", "do: did you mean", " more line"] {
                assert!(text.contains(part), "{part}, {rows}: {text}");
            }
            assert!(!text.contains('\u{1b}'), "{text}");
        }
        let (state, screen) = ((&status, None), Screen { rows: 24, columns: 80 });
        let text = fitted(readiness, state, (Look::Colour, screen));
        for part in [
            "not ready\n",
            "verdict    \u{1b}[1;31mWRONG",
            "waits      3 commits not visible",
            "SUSPENDED",
            "gone       half within 2.5 ms, 99 % within 2.5 ms, of 1 000 001 commits\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let screen = Screen { rows: 200, columns: 80 };
        let whole = fitted(readiness, state, (Look::Plain, screen));
        assert!(whole.ends_with(&format!("\n\n{}", shown(&status, None, Look::Plain))), "{whole}");
    }

    /// The words are there without it, and nothing else is coloured.
    #[test]
    fn colour_is_beside_the_word_of_the_verdict() {
        let text = shown(&status(), None, Look::Colour);
        assert!(text.starts_with("verdict    \u{1b}[1;31mWRONG\u{1b}[0m: rule"), "{text}");
        assert_eq!(text.matches('\u{1b}').count(), 2, "{text}");
    }

    #[test]
    fn rates_are_of_what_came_since_the_state_before() {
        let (before, mut now) = (status(), status());
        now.now = "2026-11-30T05:12:35.000Z".to_owned();
        now.totals.transactions += 4_000;
        let text = shown(&now, Some(&before), Look::Plain);
        assert!(text.contains("flow       commits 2000/s, row changes 0/s"), "{text}");
        // Another process has counted anew.
        now.started = "2026-11-30T05:12:34.000Z".to_owned();
        let text = shown(&now, Some(&before), Look::Plain);
        assert!(text.contains("flow       8 711 commits"), "{text}");
    }

    #[test]
    fn numbers_have_as_many_digits_as_say_something() {
        for (seconds, words) in [
            (0.000_05, "50 µs"),
            (0.002_5, "2.5 ms"),
            (0.25, "250 ms"),
            (2.5, "2.5 s"),
            (61.2, "61 s"),
            (600.0, "10 min"),
            (7_200.0, "2 h"),
            (259_200.0, "3 days"),
        ] {
            assert_eq!(duration(seconds), words);
        }
        for (count, words) in
            [(0, "0 B"), (1_023, "1023 B"), (1 << 20, "1.0 MiB"), (10 << 30, "10.0 GiB")]
        {
            assert_eq!(bytes(count), words);
        }
    }
}
