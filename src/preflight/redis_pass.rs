//! The cost to a Redis of one pass over all its keys, measured.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value, cmd};
use tokio::time::Instant;

use super::redis_databases::Databases;
use super::redis_inside;
use super::{Code, Finding};
use crate::config::Target;
use crate::sweep;
use crate::words::counted;

/// A pass over fewer keys costs some milliseconds.
pub(super) const KEYS_MIN: u64 = 10_000;

/// SCAN calls that are timed, and what each looks at: some milliseconds of the server's time.
const CALLS: u64 = 20;

/// See [`CALLS`].
const COUNT: u64 = 500;

/// PINGs, of which the fastest is the way there and back.
const PINGS: usize = 5;

/// Tells what a pass costs, if there are keys enough for it to matter, and whether keys of patterns
/// may then stay for longer than they should. `None` where it cannot be measured.
pub async fn cost(target: &Target, connection: &mut MultiplexedConnection) -> Option<Finding> {
    let keys = Databases::read(target, connection).await.ok()?.own;
    if keys < KEYS_MIN {
        return None;
    }
    let (took, seen) = measure(connection).await.ok()?;
    let ratio = f64::from(u32::try_from(keys).unwrap_or(u32::MAX)) / seen;
    let templates = target.rules.iter().flat_map(redis_inside::templates);
    let has_patterns = templates.into_iter().any(|template| is_pattern(&template.value));
    let cost = took.mul_f64(ratio);
    if has_patterns && target.sweep.index.is_some() {
        return Some(told_with_index(keys, cost));
    }
    Some(told(keys, cost, target.sweep.max_load, has_patterns))
}

/// Times some calls; gives what they took of the server's time, and how many keys they looked at.
async fn measure(connection: &mut MultiplexedConnection) -> Result<(Duration, f64), RedisError> {
    let mut way = Duration::MAX;
    for _ in 0..PINGS {
        let began = Instant::now();
        let _pong: Value = cmd("PING").query_async(connection).await?;
        way = way.min(began.elapsed());
    }
    let before = account(connection).await;
    let (mut cursor, mut calls) = (0_u64, 0);
    let (mut lasted, mut beyond) = (Duration::ZERO, Duration::ZERO);
    while calls < CALLS && (calls == 0 || cursor != 0) {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("COUNT").arg(COUNT);
        let began = Instant::now();
        let (next, _names): (u64, Value) = scan.query_async(connection).await?;
        lasted += began.elapsed();
        beyond += began.elapsed().saturating_sub(way);
        (cursor, calls) = (next, calls + 1);
    }
    let account = account(connection).await.zip(before);
    let took = match account.and_then(|(after, before)| after.checked_sub(before)) {
        Some(account) => sweep::taken(account, lasted),
        None => beyond,
    };
    Ok((took, f64::from(u32::try_from(calls * COUNT).unwrap_or(u32::MAX))))
}

/// The server's own account of SCAN, where it may be asked for.
async fn account(connection: &mut MultiplexedConnection) -> Option<Duration> {
    let info: String = cmd("INFO").arg("commandstats").query_async(connection).await.ok()?;
    sweep::scan_time(&info)
}

/// The words for it where an index knows the keys of patterns.
fn told_with_index(keys: u64, cost: Duration) -> Finding {
    let (keys, cost) = (counted(keys, "key"), text(cost.as_secs_f64()));
    let message = format!(
        "one pass over {keys} costs this redis about {cost}; while the index of `sweep.index` is \
         whole (`walsweep_index_whole` is 1), patterns of rules need none: it is made by one pass \
         at each connection, and keys whose placeholders are widened take one; while it is not, \
         as where the names take more than `sweep.index_memory`, patterns take passes"
    );
    Finding::info(Code::RedisPass, message)
}

/// The words for it.
fn told(keys: u64, cost: Duration, max_load: f64, has_patterns: bool) -> Finding {
    let distance = sweep::distance(max_load, cost);
    let [cost_text, distance_text] = [cost, distance].map(|time| text(time.as_secs_f64()));
    let keys = counted(keys, "key");
    let costs = format!("one pass over {keys} costs this redis about {cost_text}");
    if distance.is_zero() {
        return Finding::info(Code::RedisPass, costs);
    }
    let message = format!(
        "{costs}; with `sweep.max_load` {max_load} patterns go at most every {distance_text}"
    );
    let longest = sweep::longest_wait(max_load, cost);
    if !has_patterns || longest <= sweep::GONE_WITHIN {
        return Finding::info(Code::RedisPass, message);
    }
    let message = format!(
        "{message}: their keys may stay for {}, longer than 5 s",
        text(longest.as_secs_f64())
    );
    Finding::warning(Code::RedisPass, message).hint(sweep::THROTTLED_HINT)
}

/// Seconds in words, with as many digits as say something.
fn text(seconds: f64) -> String {
    match seconds {
        few if few < 0.095 => format!("{few:.2} s"),
        some if some < 9.95 => format!("{some:.1} s"),
        many => format!("{many:.0} s"),
    }
}

/// Whether a key template gives patterns even where every value is known.
pub(super) fn is_pattern(template: &str) -> bool {
    let mut rest = template.chars();
    while let Some(one) = rest.next() {
        match one {
            '*' | '?' | '[' => return true,
            '\\' => drop(rest.next()),
            '{' => super::redis_names::skip_placeholder(&mut rest),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{is_pattern, told, told_with_index};

    #[test]
    fn the_cost_is_told_in_words_and_warned_of_where_keys_stay_too_long() {
        let tell = |millis, max_load, has_patterns| {
            let cost = Duration::from_millis(millis);
            let finding = told(1_000_000, cost, max_load, has_patterns);
            (finding.severity.as_str(), finding.message, finding.hint.is_some())
        };
        let begin = "one pass over 1 000 000 keys costs this redis about";
        let expected =
            format!("{begin} 0.3 s; with `sweep.max_load` 0.25 patterns go at most every 1.2 s");
        assert_eq!(tell(300, 0.25, true), ("info", expected, false));
        assert_eq!(tell(300, 1.0, true), ("info", format!("{begin} 0.3 s"), false));
        let (severity, message, has_hint) = tell(2_000, 0.25, true);
        assert_eq!((severity, has_hint), ("warning", true));
        assert!(message.ends_with("every 9.6 s: their keys may stay for 12 s, longer than 5 s"));
        assert_eq!(tell(2_000, 0.25, false).0, "info", "no rule gives patterns");
    }

    /// On call: the index had been given up, and patterns waited for passes.
    #[test]
    fn with_an_index_both_are_told_that_it_is_whole_and_that_it_is_not() {
        let message = told_with_index(1_000_000, Duration::from_millis(300)).message;
        for part in [
            "while the index of `sweep.index` is whole",
            "patterns of rules need none",
            "where the names take more than `sweep.index_memory`, patterns take passes",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }

    #[test]
    fn a_template_with_a_wildcard_of_its_own_gives_patterns() {
        for (template, expected) in [
            ("a:{id}", false),
            ("a:{id}:*", true),
            (r"a\*:{id}", false),
            ("a:{b|default:\\}*}", false),
            ("a:?", true),
            ("a:[bc]", true),
        ] {
            assert_eq!(is_pattern(template), expected, "{template}");
        }
    }
}
