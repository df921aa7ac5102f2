//! `walsweep check`: everything that is looked at before a start, at both servers and here, and the
//! verdict. It changes nothing, and a walsweep that runs meanwhile does not notice it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::NAME;
use super::failure::{Failure, halted, print};
use super::forecast::{Forecast, forecast};
use super::listener::{Listener, SILENT_HINT, listener, silent};
use super::load::setting;
use super::reload;
use super::verdict::Verdict;
use crate::config::Config;
use crate::keys::Rules;
use crate::postgres::{Obstacle, Sql, connect_sql, identify};
use crate::preflight::{self, Code, Fact, Finding, Report};
use crate::run::reload::Setting;
use crate::run::session::slot_label;
use crate::source::own::{hold_against_redis, hold_lost};
use crate::sweep::redis::connect;
use crate::telemetry::http;
use crate::telemetry::metrics::SlotLabel;
use crate::telemetry::reloads::prints_at_start;

/// `walsweep check`.
///
/// # Errors
///
/// 78 for the configuration; 1 when a finding is an error or a server cannot be asked.
pub async fn check(path: &Path, json: bool) -> Result<(), Failure> {
    let Setting { config, rules, text } =
        setting(path).map_err(|invalid| halted(invalid).with_status(78))?;
    let mut report = preflight::files(&config);
    let (start, slot) = check_postgres(&config, &rules, &mut report).await;
    check_redis(&config, &mut report).await;
    if let Some(address) = config.http.listen {
        let found = check_listen(address, slot).await;
        let is_running = found.as_ref().is_some_and(|one| one.code == Code::ListenRunning);
        // A reload would refuse what is wrong.
        if is_running && !report.has_errors() {
            report.facts.extend(takes_over(address, &text).await);
        }
        report.own.extend(found);
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
    rules: &Rules,
    report: &mut Report,
) -> (Option<Fact>, Option<SlotLabel>) {
    let sql = match connect_sql(&config.postgres.endpoint, NAME).await {
        Ok(sql) => Rc::new(sql),
        Err(error) => {
            let endpoint = &config.postgres.endpoint;
            report.postgres.push(preflight::unreachable(endpoint, &error).await);
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
    let checked = preflight::postgres(config, rules, &sql).await;
    let mut findings = checked.map_or_else(unreadable, |checked| checked.findings);
    hold_against_redis(config, &sql, &mut findings).await;
    hold_lost(config, &sql, &mut findings).await;
    findings.extend(preflight::before_publication(config, &sql).await.unwrap_or_else(unreadable));
    let of_replication = preflight::replication(config, &sql, &findings).await;
    findings.extend(of_replication);
    findings.extend(preflight::replicas(config, &sql).await.unwrap_or_else(unreadable));
    let forecast = forecast(config, rules, &sql, &findings).await;
    report.postgres.extend(findings);
    let start = match forecast {
        Forecast::Unknown => None,
        Forecast::Nothing => Some(Fact::new("start", "the next one sweeps nothing".to_owned())),
        Forecast::Sweeps(findings) => {
            report.postgres.extend(findings);
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
    let mut places = Vec::new();
    let mut servers = Vec::new();
    for target in config.targets() {
        match preflight::redis_servers(&target).await {
            Ok(each) => servers.extend(each),
            Err(finding) => report.redis.push(finding),
        }
    }
    for target in servers {
        match connect::connect(&target.redis).await {
            Ok(mut connection) => {
                let findings = preflight::redis(&target, &mut connection).await;
                let facts = preflight::of_redis(&target, &mut connection, &findings).await;
                let (of_sentinels, fact) = preflight::sentinels(&target).await;
                report.redis.extend(findings.into_iter().chain(of_sentinels));
                report.facts.extend(facts.into_iter().chain(fact));
                let place = preflight::place(&target, &mut connection).await;
                places.extend(place.map(|place| (target, place)));
            }
            Err(error) => report.redis.push(preflight::redis_unreachable(&target, &error)),
        }
    }
    report.redis.extend(preflight::twice(places));
}

/// Tells whether `walsweep reload` is enough for the walsweep that answers at `address` to take a
/// configuration of this text over, as far as that is a matter of options which are read only at
/// its start. One of an older version does not tell.
async fn takes_over(address: SocketAddr, text: &str) -> Option<Fact> {
    let running = reload::ask(address).await?.at_start?;
    let ours = prints_at_start(text);
    let others =
        running.keys().chain(ours.keys()).filter(|key| running.get(*key) != ours.get(*key));
    let others: BTreeSet<String> = others.map(|key| format!("`{key}`")).collect();
    let text = match others.is_empty() {
        true => "`walsweep reload` is enough for the walsweep that runs, if anything is changed"
            .to_owned(),
        false => format!(
            "the walsweep that runs began with another {}: that is read only at the start, so \
             restart it",
            others.into_iter().collect::<Vec<_>>().join(", ")
        ),
    };
    Some(Fact::new("reload", text))
}

/// Tries to listen where `run` would, and stops at once. An address that somebody has is not taken
/// from him; he is asked whether he is a walsweep of this `slot`, which is nothing wrong beside one
/// that runs.
async fn check_listen(address: SocketAddr, slot: Option<SlotLabel>) -> Option<Finding> {
    let error = http::listen(address).await.err()?;
    let message = format!("cannot listen on `http.listen` `{address}`: ");
    Some(match listener(address, slot).await {
        Listener::Own => {
            let message = format!(
                "a walsweep listens at `http.listen` `{address}`, as it does while it runs"
            );
            let hint = "a second one beside it needs an `http.listen` of its own";
            Finding::info(Code::ListenRunning, message).hint(hint)
        }
        Listener::Another(theirs) => {
            let who = another(address, &theirs).await;
            let message = format!("{message}{who} listens there");
            let hint = "if this one is to take its place, stop that one first; else give each \
                        walsweep on this machine an `http.listen` of its own";
            Finding::error(Code::ListenInUse, message).hint(hint)
        }
        Listener::Silent => {
            let message = format!("{message}{}", silent());
            Finding::error(Code::ListenInUse, message).hint(SILENT_HINT)
        }
        Listener::Stranger => {
            let hint = "end the program that listens there, or choose another `http.listen`, or \
                        \"\" for none";
            let message = format!("{message}another program listens there ({error})");
            Finding::error(Code::ListenInUse, message).hint(hint)
        }
    })
}

/// Says who the walsweep of another slot is.
async fn another(address: SocketAddr, theirs: &SlotLabel) -> String {
    let process = reload::ask(address).await.map(|told| format!(" (process {})", told.process.pid));
    let SlotLabel { slot, database, system_id } = theirs;
    format!(
        "another walsweep{}, of slot `{slot}` in database `{database}` of the server with system \
         id {system_id},",
        process.unwrap_or_default()
    )
}
