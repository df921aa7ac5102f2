//! A forecast of what the next start will sweep: what that start finds out, asked for beforehand.
//! It reads from the catalog and from Redis, and changes nothing.

use std::rc::Rc;

use crate::config::{Config, Mode, Redis};
use crate::keys::{Binding, Rules};
use crate::postgres::{History, Sql};
use crate::preflight::{Code, Finding, find_reads};
use crate::run::error::Error;
use crate::run::session::{primary, step};
use crate::source::shape::Watched;
use crate::source::slot_health;
use crate::source::slot_server::SlotServer;
use crate::sweep::{self, Broken, Cluster, Doubt, Standalone, Watermark};

/// A forecast of what the next start would sweep.
#[derive(Debug)]
pub enum Forecast {
    /// Postgres or Redis cannot be asked: that has findings of its own.
    Unknown,
    /// Nothing.
    Nothing,
    /// These keys, of each target of which some are.
    Sweeps(Vec<Finding>),
}

/// Says what a start would sweep, if `found` is what the checks find.
pub async fn forecast(
    config: &Config,
    rules: &Rules,
    sql: &Rc<Sql>,
    found: &[Finding],
) -> Forecast {
    let (mark, wal_end, prints, broken) = match start(config, rules, sql, found).await {
        Ok(start) => start,
        Err(error) => {
            tracing::debug!(%error, "what a start would sweep is not known");
            return Forecast::Unknown;
        }
    };
    let mut findings = Vec::new();
    for redis in &config.redis {
        let slot = &config.postgres.slot;
        let prints = prints.only(|rule| rules.key_set().goes(rule, redis.id));
        let mark = Watermark { rules: prints.digest(), ..mark.clone() };
        let expected = (mark, wal_end);
        let doubt = match redis.mode {
            Mode::Cluster { .. } => {
                sweep::forecast(&Cluster::new(redis, slot), expected, prints, broken).await
            }
            Mode::Standalone | Mode::Sentinel(_) => {
                sweep::forecast(&Standalone::new(redis, slot), expected, prints, broken).await
            }
        };
        match doubt {
            Ok(doubt) if doubt.is_none() => {}
            Ok(doubt) => findings.push(finding(rules, redis, &doubt)),
            Err(_error) => return Forecast::Unknown,
        }
    }
    if findings.is_empty() { Forecast::Nothing } else { Forecast::Sweeps(findings) }
}

type Start = (Watermark, crate::lsn::Lsn, sweep::Prints, Option<Broken>);

/// Gives everything that a session would begin with.
async fn start(
    config: &Config,
    rules: &Rules,
    sql: &Rc<Sql>,
    found: &[Finding],
) -> Result<Start, Error> {
    let lookups = step(find_reads(config, rules, sql)).await?;
    let (publication, slot) = (&config.postgres.publication, &config.postgres.slot);
    let watched = Watched::new(rules, &lookups, publication, slot);
    let suspended = found.iter().flat_map(Finding::suspends).map(str::to_owned).collect();
    let bound = rules.bind(Binding { lookups, suspended, ..Binding::default() });
    let prints = step(watched.look(sql)).await?.prints(config, &bound);
    let server = SlotServer::reach(&config.postgres, Rc::clone(sql)).await?;
    let slot = step(slot_health::look(&server.sql, &config.postgres.slot)).await?;
    let slot = slot.filter(|slot| slot.lost_because().is_none());
    let broken = slot.is_none().then_some(Broken::SlotCreated);
    let lsn = slot.as_ref().map(|slot| slot.confirmed_flush_lsn).unwrap_or_default();
    let wal_end = match slot {
        Some(slot) if slot.active_pid.is_none() && server.is_standby() => {
            step(server.wal_end()).await?
        }
        // Whoever streams moves the watermark after the slot was looked at.
        Some(slot) if slot.active_pid.is_some() => crate::lsn::Lsn(u64::MAX),
        Some(slot) => slot.wal_end(),
        None => lsn,
    };
    let (History { system_id, timeline }, primary) = primary(sql).await?;
    let rules = prints.digest();
    let epoch = primary.epoch;
    let (of_stranger, is_unproven) = (false, false);
    let mark = Watermark { system_id, timeline, epoch, lsn, rules, of_stranger, is_unproven };
    Ok((mark, wal_end, prints, broken))
}

fn finding(rules: &Rules, redis: &Redis, doubt: &Doubt) -> Finding {
    let told = doubt.told(rules.names()).join("; ");
    let keys = rules.part(|place| doubt.is_of(place)).of_target(redis.id);
    let place = if redis.is_alone { String::new() } else { format!(" of {}", redis.title()) };
    let text = format!("the next start will sweep {told}{place}");
    Finding::info(Code::StartSweeps, text).hint(format!("it removes {}", keys.shown()))
}
