//! `walsweep check`: everything that is looked at before a start, at both servers and here, and the
//! verdict. It changes nothing, and a walsweep that runs meanwhile does not notice it.

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::NAME;
use super::failure::{Failure, print};
use super::forecast::{Forecast, forecast};
use super::load::configuration;
use super::verdict::Verdict;
use crate::config::Config;
use crate::keys::Rules;
use crate::postgres::{Obstacle, Sql, connect_sql, identify};
use crate::preflight::{self, Code, Fact, Finding, Report};
use crate::run::session::slot_label;
use crate::source::own::hold_against_redis;
use crate::sweep::redis::connect;
use crate::telemetry::http;
use crate::telemetry::metrics::{Metrics, SlotLabel};

/// How long whoever listens at `http.listen` has to show whose walsweep it is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What is read of its metrics for that.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// `walsweep check`.
///
/// # Errors
///
/// 78 for the configuration; 1 when a finding is an error or a server cannot be asked.
pub async fn check(path: &Path, json: bool) -> Result<(), Failure> {
    let (config, mut rules) = configuration(path)?;
    let mut report = preflight::files(&config);
    let (start, slot) = check_postgres(&config, &mut rules, &mut report).await;
    check_redis(&config, &mut report).await;
    if let Some(address) = config.http.listen {
        report.own.extend(check_listen(address, slot).await);
    }
    report.facts.extend(preflight::of_rules(&config));
    report.facts.extend(start);
    let report = report.in_file(&Arc::from(path.display().to_string()));
    let verdict = Verdict::of(&report);
    let shown = if json { report.to_json(&verdict) } else { format!("{report}\n{}", verdict.text) };
    print(&format!("{shown}\n"))?;
    if report.has_errors() {
        let mut failure = Failure::halted(verdict.text);
        failure.is_said = !json;
        return Err(failure);
    }
    Ok(())
}

/// A server that cannot be asked is a finding, so that the other one's are still told. Gives a fact
/// about the next start, if it sweeps nothing, and which slot it is, if a primary answers.
async fn check_postgres(
    config: &Config,
    rules: &mut Rules,
    report: &mut Report,
) -> (Option<Fact>, Option<SlotLabel>) {
    let sql = match connect_sql(&config.postgres.endpoint, NAME).await {
        Ok(sql) => Rc::new(sql),
        Err(error) => {
            report.postgres.push(preflight::unreachable(&error));
            return (None, None);
        }
    };
    let history = identify(&sql).await.ok().and_then(|server| server.history);
    let slot = history.map(|history| slot_label(config, &history));
    report.postgres.extend(passed_over(&sql));
    let config = &config.only(sql.address());
    report.facts.extend(preflight::of_postgres(config, &sql).await);
    let unreadable =
        |error: preflight::Error| vec![Finding::error(Code::CatalogUnreadable, error.to_string())];
    let mut findings = preflight::postgres(config, rules, &sql).await.unwrap_or_else(unreadable);
    hold_against_redis(config, &sql, &mut findings).await;
    findings.extend(preflight::before_publication(config, &sql).await.unwrap_or_else(unreadable));
    findings.extend(preflight::replication(config, &sql).await);
    findings.extend(preflight::replicas(config, &sql).await.unwrap_or_else(unreadable));
    let forecast = forecast(config, rules, &sql, &findings).await;
    report.postgres.extend(findings);
    let start = match forecast {
        Forecast::Unknown => None,
        Forecast::Nothing => Some(Fact::new("start", "the next one sweeps nothing".to_owned())),
        Forecast::Sweeps(finding) => {
            report.postgres.push(finding);
            None
        }
    };
    (start, slot)
}

/// A warning for each host that was tried before the primary and could not be used: after a
/// switchover it may be the primary. A standby is as it should be.
fn passed_over(sql: &Sql) -> impl Iterator<Item = Finding> {
    let unfit = sql.passed_over().iter().filter(|host| host.obstacle != Obstacle::Standby);
    unfit.map(|host| {
        let message = format!("a host of `postgres.url` was passed over: {host}");
        let hint = "once it is the primary, walsweep cannot follow a switchover to it: mend it, or \
                    take the host out";
        Finding::warning(Code::PostgresHost, message).hint(hint)
    })
}

async fn check_redis(config: &Config, report: &mut Report) {
    match connect::connect(&config.redis).await {
        Ok(mut connection) => {
            report.redis.extend(preflight::redis(config, &mut connection).await);
            let facts = preflight::of_redis(config, &mut connection, &report.redis).await;
            report.facts.extend(facts);
        }
        Err(error) => report.redis.push(preflight::redis_unreachable(&error)),
    }
}

/// Who listens at an address.
#[derive(Debug, PartialEq, Eq)]
enum Listener {
    /// A walsweep that streams from this slot, or does not tell yet from which.
    Own,
    /// A walsweep that streams from another slot: its series of `walsweep_slot_info`.
    Another(String),
    /// Something else.
    Stranger,
}

/// Tries to listen where `run` would, and stops at once. An address that somebody has is not taken
/// from him; he is asked whether he is a walsweep of this `slot`, which is nothing wrong beside one
/// that runs.
async fn check_listen(address: SocketAddr, slot: Option<SlotLabel>) -> Option<Finding> {
    let error = http::listen(address).await.err()?;
    let page = timeout(ANSWER_TIMEOUT, metrics(address)).await.unwrap_or_default();
    let message = format!("cannot listen on `http.listen` `{address}`: ");
    Some(match listener(&page, slot) {
        Listener::Own => {
            let message = format!(
                "a walsweep listens at `http.listen` `{address}`, as it does while it runs"
            );
            let hint = "a second one beside it needs an `http.listen` of its own";
            Finding::info(Code::ListenRunning, message).hint(hint)
        }
        Listener::Another(whose) => {
            let message = format!("{message}a walsweep of another slot does, `{whose}`");
            let hint = "give each walsweep on this machine an `http.listen` of its own";
            Finding::error(Code::ListenInUse, message).hint(hint)
        }
        Listener::Stranger => {
            let hint = "end the program that listens there, or choose another `http.listen`, or \
                        \"\" for none";
            Finding::error(Code::ListenInUse, format!("{message}{error}")).hint(hint)
        }
    })
}

/// Who gave this page of metrics. Where it is not known which slot is meant, a walsweep is believed
/// to be of that one.
fn listener(page: &str, slot: Option<SlotLabel>) -> Listener {
    if !page.contains("\n# TYPE walsweep_") {
        return Listener::Stranger;
    }
    let series = |page: &str| {
        let line = page.lines().find(|line| line.starts_with("walsweep_slot_info{"));
        line.and_then(|line| line.strip_suffix(" 1")).map(str::to_owned)
    };
    let own = slot.and_then(|slot| {
        let metrics = Metrics::new(&[]);
        metrics.slot_is(&slot);
        series(&metrics.text())
    });
    match (series(page), own) {
        (Some(whose), Some(own)) if whose != own => Listener::Another(whose),
        _ => Listener::Own,
    }
}

/// The beginning of what is told at `/metrics`; nothing where nobody answers.
async fn metrics(address: SocketAddr) -> String {
    let Ok(mut stream) = TcpStream::connect(address).await else { return String::new() };
    let request = "GET /metrics HTTP/1.1\r\nHost: walsweep\r\nConnection: close\r\n\r\n";
    if stream.write_all(request.as_bytes()).await.is_err() {
        return String::new();
    }
    let mut answer = Vec::new();
    // What came before an error counts.
    drop(stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await);
    answer.utf8_chunks().map(|chunk| chunk.valid()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Listener, listener};
    use crate::telemetry::metrics::{Metrics, SlotLabel};

    fn label(slot: &str, database: &str, system_id: &str) -> SlotLabel {
        let [slot, database, system_id] = [slot, database, system_id].map(str::to_owned);
        SlotLabel { slot, database, system_id }
    }

    /// A name may be `walsweep` everywhere.
    #[test]
    fn a_walsweep_is_known_by_slot_database_and_cluster() {
        let metrics = Metrics::new(&[]);
        let young = format!("HTTP/1.1 200 OK\r\n\r\n{}", metrics.text());
        metrics.slot_is(&label("walsweep", "a\"b", "7"));
        let page = format!("HTTP/1.1 200 OK\r\n\r\n{}", metrics.text());
        assert_eq!(listener(&page, Some(label("walsweep", "a\"b", "7"))), Listener::Own);
        assert_eq!(listener(&page, None), Listener::Own);
        assert_eq!(listener(&young, Some(label("other", "a", "7"))), Listener::Own);
        for other in [("other", "a\"b", "7"), ("walsweep", "a", "7"), ("walsweep", "a\"b", "8")] {
            let other = label(other.0, other.1, other.2);
            let Listener::Another(whose) = listener(&page, Some(other)) else { panic!("{page}") };
            assert!(whose.contains("slot=\"walsweep\"") && whose.contains("\"7\""), "{whose}");
        }
        for page in ["", "HTTP/1.1 200 OK\r\n\r\nhello"] {
            assert_eq!(listener(page, Some(label("walsweep", "a", "7"))), Listener::Stranger);
        }
    }
}
