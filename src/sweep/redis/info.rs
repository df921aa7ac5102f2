//! Facts in what `INFO` says of a server
//! (<https://redis.io/docs/latest/commands/info/>).

use std::time::Duration;

/// The id of the replication history in what a server says. A promotion, a restart and `REPLICAOF`
/// change it; so may, with no loss, the arrival of a first replica.
pub(in crate::sweep) fn history(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("master_replid:")).map(str::trim_end)
}

/// The id of the history that a server had before its promotion, or its restart, and whose data it
/// has; `None` if there is none.
pub(in crate::sweep) fn history_before(info: &str) -> Option<&str> {
    let id = info.lines().find_map(|line| line.strip_prefix("master_replid2:"))?.trim_end();
    (!id.bytes().all(|byte| byte == b'0')).then_some(id)
}

/// Reads how long SCAN calls have held a server, all told, from what `INFO commandstats` says; a
/// server that has run none yet does not name it. `None` where it says nothing of its commands.
#[must_use]
pub fn scan_time(info: &str) -> Option<Duration> {
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    let is_scan = |(name, _): &(&str, &str)| name.eq_ignore_ascii_case("cmdstat_scan");
    let Some((_, scan)) = lines.clone().find(is_scan) else {
        return lines.any(|(name, _)| name.starts_with("cmdstat_")).then_some(Duration::ZERO);
    };
    let usec = scan.split(',').find_map(|field| field.strip_prefix("usec="))?;
    usec.trim_end().parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::scan_time;

    #[test]
    fn the_account_of_scan_is_read() {
        let get = "cmdstat_get:calls=1,usec=2,usec_per_call=2.00";
        let scan = "cmdstat_scan:calls=9,usec=1234,usec_per_call=137.11,failed_calls=0";
        for (info, expected) in [
            (format!("# Commandstats\r\n{get}\r\n{scan}\r\n"), Some(1234)),
            (scan.replace("scan", "SCAN"), Some(1234)),
            (get.to_owned(), Some(0)),
            ("# Commandstats\r\n".to_owned(), None),
            (String::new(), None),
            ("cmdstat_scan:calls=9".to_owned(), None),
        ] {
            assert_eq!(scan_time(&info), expected.map(Duration::from_micros), "{info}");
        }
    }
}
