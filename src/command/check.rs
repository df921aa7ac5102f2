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

use super::commands::{Failure, NAME, configuration, print};
use super::forecast::{Forecast, forecast};
use super::verdict::{RUNNING, Verdict};
use crate::config::Config;
use crate::keys::Rules;
use crate::postgres::{Obstacle, Sql, connect_sql};
use crate::preflight::{self, Fact, Finding, Report};
use crate::sweep::redis::connect;
use crate::telemetry::http;

/// How long whoever listens at `http.listen` has to show that it is a walsweep.
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
    let start = check_postgres(&config, &mut rules, &mut report).await;
    check_redis(&config, &mut report).await;
    if let Some(address) = config.http.listen {
        report.own.extend(check_listen(address).await);
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
/// about the next start, if it sweeps nothing.
async fn check_postgres(config: &Config, rules: &mut Rules, report: &mut Report) -> Option<Fact> {
    let sql = match connect_sql(&config.postgres.endpoint, NAME).await {
        Ok(sql) => Rc::new(sql),
        Err(error) => {
            report.postgres.push(preflight::unreachable(&error));
            return None;
        }
    };
    report.postgres.extend(passed_over(&sql));
    let config = &config.only(sql.address());
    report.facts.extend(preflight::of_postgres(config, &sql).await);
    let unreadable =
        |error: preflight::Error| vec![Finding::error("catalog_unreadable", error.to_string())];
    let mut findings = preflight::postgres(config, rules, &sql).await.unwrap_or_else(unreadable);
    preflight::hold_against_redis(config, &sql, &mut findings).await;
    findings.extend(preflight::before_publication(config, &sql).await.unwrap_or_else(unreadable));
    findings.extend(preflight::replication(config, &sql).await);
    findings.extend(preflight::replicas(config, &sql).await.unwrap_or_else(unreadable));
    let forecast = forecast(config, rules, &sql, &findings).await;
    report.postgres.extend(findings);
    match forecast {
        Forecast::Unknown => None,
        Forecast::Nothing => Some(Fact::new("start", "the next one sweeps nothing".to_owned())),
        Forecast::Sweeps(finding) => {
            report.postgres.push(finding);
            None
        }
    }
}

/// A warning for each host that was tried before the primary and could not be used: after a
/// switchover it may be the primary. A standby is as it should be.
fn passed_over(sql: &Sql) -> impl Iterator<Item = Finding> {
    let unfit = sql.passed_over().iter().filter(|host| host.obstacle != Obstacle::Standby);
    unfit.map(|host| {
        let message = format!("a host of `postgres.url` was passed over: {host}");
        let hint = "once it is the primary, walsweep cannot follow a switchover to it: mend it, or \
                    take the host out";
        Finding::warning("postgres_host", message).hint(hint)
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

/// Tries to listen where `run` would, and stops at once. An address that somebody has is not taken
/// from him; he is asked whether he is a walsweep, which is nothing wrong beside one that runs.
async fn check_listen(address: SocketAddr) -> Option<Finding> {
    let error = http::listen(address).await.err()?;
    let is_walsweep =
        timeout(ANSWER_TIMEOUT, tells_metrics_of_walsweep(address)).await.is_ok_and(|tells| tells);
    if is_walsweep {
        let message =
            format!("a walsweep listens at `http.listen` `{address}`, as it does while it runs");
        let hint = "a second one beside it needs an `http.listen` of its own";
        return Some(Finding::info(RUNNING, message).hint(hint));
    }
    let message = format!("cannot listen on `http.listen` `{address}`: {error}");
    let hint =
        "end the program that listens there, or choose another `http.listen`, or \"\" for none";
    Some(Finding::error("listen_in_use", message).hint(hint))
}

async fn tells_metrics_of_walsweep(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address).await else { return false };
    let request = "GET /metrics HTTP/1.1\r\nHost: walsweep\r\nConnection: close\r\n\r\n";
    if stream.write_all(request.as_bytes()).await.is_err() {
        return false;
    }
    let mut answer = Vec::new();
    // What came before an error counts.
    drop(stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await);
    let sign = b"\n# TYPE walsweep_";
    answer.windows(sign.len()).any(|part| part == sign)
}
