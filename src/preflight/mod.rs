//! Checks before the start: would the promise hold with this database, this Redis.
//!
//! Takes: the configuration, its rules, one connection to each server. Gives: [`Finding`]s, each
//! with the place in the configuration that it is about and with its cure. Never changes anything,
//! except for one key in Redis that lives for a second; the function that `reads` makes is rolled
//! back. What would make keys stay, or widen day by
//! day (I5), is an error, and `run` refuses to start; what costs or delays is a warning; what an
//! operator may want to know is information.
//!
//! The catalog is read in two statements (`catalog`), and another one on the standby if the slot is
//! on one (`slot_standby`). From it and the rules follows how the database is to be (`wanted`);
//! `server`, `slot`, `publication`, `tables`, `identity`, `partitions` and `condition` tell what
//! differs from that, with the steps that lead there (`difference`), and ask nothing more. Rules of
//! materialized views need another one (`views`), `lookups` tries each query, `lookup_types`
//! compares what it takes with the columns, `lookup_index` looks for an index for it, `reads` asks
//! what its answers depend on, and `keyed` whose rows they are, and whether the stream tells them
//! as they were.
//!
//! An error is about everything, or about some rules ([`Scope`]): those are suspended, and the
//! others go on. What is judged of rules before the start is judged again while it runs
//! ([`misfits`], and see [`watch`](crate::source::watch)).

mod catalog;
mod code;
mod condition;
mod cure;
mod difference;
mod facts;
mod failover;
mod files;
mod finding;
mod fitness;
mod forgotten;
mod freed;
mod generated;
mod grants;
mod identity;
mod keyed;
mod lookup_index;
mod lookup_types;
mod lookups;
mod memory;
mod narrowed;
mod partitions;
mod publication;
mod reads;
mod redis;
mod redis_databases;
mod redis_endpoint;
mod redis_inside;
mod redis_login;
mod redis_keys;
mod redis_names;
mod redis_pass;
mod redis_sentinels;
mod redis_servers;
mod redis_tracking;
mod redis_twice;
mod remembered;
mod replicas;
mod replication;
mod server;
mod slot;
mod slot_standby;
mod step;
mod tables;
mod views;
mod wanted;

use std::collections::BTreeSet;

use tokio_postgres::Client;

use crate::config::{Config, Source, TableName};
use crate::keys::{Basis, Binding, Reads, Rules};

pub(crate) use self::catalog::{digest_of, of_many, with_published};
pub use self::code::Code;
pub(crate) use self::cure::{
    MADE, certain, claim, create_role, create_slot_marked, drop_known_slot, drop_publication,
    drop_slot, escaped, forget, grant_connect, hold, identity_as_before, patiently, remember,
    remembering,
};
pub use self::facts::{Fact, of_postgres, of_redis, of_rules};
pub use self::files::files;
pub(crate) use self::finding::told;
pub use self::finding::{Finding, Report, Scope, Severity};
pub use self::fitness::Fitness;
pub use self::lookups::{Trial, trials};
pub use self::memory::{Memory, Record, SENTENCE};
pub use self::reads::find as find_reads;
pub use self::redis::redis;
pub use self::redis_login::{lets_redis, login_refused, unreachable as redis_unreachable};
pub use self::redis_pass::cost as pass_cost;
pub use self::redis_sentinels::sentinels;
pub use self::redis_servers::servers as redis_servers;
pub use self::redis_twice::{Place, place, twice};
pub(crate) use self::remembered::{Freed, after_teardown};
pub use self::replicas::replicas;
pub use self::replication::{
    PASSWORD_HINT, login_hint, replication, replication_hint, unreachable,
};
pub use self::slot::before_publication;
pub(crate) use self::slot::{doubts, lost_because};
pub(crate) use self::step::printed;
pub use self::step::{Does, Grant, Identity, LOCK_TIMEOUT, Object, Step};
pub(crate) use self::views::{drop_trigger, older_trigger_name, trigger_name, trigger_names};

use self::catalog::{Catalog, Name, Relation};
use self::wanted::Wanted;

/// A rule and the code of an error that concerns it.
pub type Misfit = (String, Code);

/// Which rules do not fit, and why.
#[must_use]
pub fn misfits(findings: &[Finding]) -> BTreeSet<Misfit> {
    let of = |finding: &Finding| {
        finding.suspends().map(|rule| (rule.to_owned(), finding.code)).collect::<Vec<_>>()
    };
    findings.iter().flat_map(of).collect()
}

/// Why the checks could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A query failed.
    #[error("read the catalog: {}", message(.0))]
    Query(#[from] tokio_postgres::Error),
    /// The answer is not what the query gives.
    #[error("read the catalog: {0}")]
    Answer(#[from] serde_json::Error),
    /// The standby that the slot is on cannot be asked.
    #[error("ask the standby of `postgres.replication_url`: {0}")]
    Standby(#[source] crate::postgres::Error),
}

/// The driver prints `db error` alone; what Postgres said is in its source.
pub(crate) fn message(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |cause| cause.message().to_owned())
}

/// Everything that the checks conclude from.
struct Context<'a> {
    config: &'a Config,
    rules: &'a Rules,
    catalog: &'a Catalog,
    /// How the catalog is to be.
    wanted: Wanted<'a>,
}

impl<'a> Context<'a> {
    fn new(config: &'a Config, rules: &'a Rules, catalog: &'a Catalog) -> Context<'a> {
        Context { config, rules, catalog, wanted: Wanted::of(rules, catalog) }
    }

    /// The names of the rules of a table.
    fn rules_of(&self, table: &TableName) -> impl Iterator<Item = &str> {
        let rules = self.config.rules.iter();
        let rules = rules.filter(move |rule| rule.source == Source::Table && rule.table == *table);
        rules.map(|rule| rule.name.as_str())
    }
}

/// The outcome of the checks of a database.
#[derive(Debug, Default)]
pub struct Checked {
    /// The findings that are told.
    pub findings: Vec<Finding>,
    /// The partitions of the rules' tables, each with the table.
    partitions: Vec<(TableName, TableName)>,
    /// Everything that the answers of each lookup depend on, by
    /// [`LookupId`](crate::keys::LookupId).
    reads: Vec<Option<Reads>>,
}

impl Checked {
    /// Gives the binding of the rules, if the answers of lookups rested on `bases` before the
    /// checks: what is something else by now is not kept. Relations and rules that do not fit are
    /// not in it.
    #[must_use]
    pub fn binding(&self, mut bases: Vec<Basis>) -> Binding {
        for (basis, now) in bases.iter_mut().zip(&self.reads) {
            basis.reads.take_if(|before| now.as_ref() != Some(before));
        }
        let partitions = self.partitions.clone();
        Binding { partitions, lookups: bases, ..Binding::default() }
    }

    fn only(findings: Vec<Finding>) -> Checked {
        Checked { findings, ..Checked::default() }
    }
}

/// Checks the database behind `client`, which must be a connection to `config.postgres.endpoint`.
/// It judges, and changes nothing of the rules.
///
/// # Errors
///
/// When the catalog cannot be read; a database that is unfit is no error but findings.
pub async fn postgres(config: &Config, rules: &Rules, client: &Client) -> Result<Checked, Error> {
    let (backend_pid, version) = catalog::server(client).await?;
    if let Some(finding) = server::version(version) {
        return Ok(Checked::only(vec![finding]));
    }
    let mut catalog = Catalog::read(config, rules, client, true).await?;
    let mut pids = vec![backend_pid, catalog.backend_pid];
    pids.push(catalog::server(client).await?.0);
    let on_standby = slot_standby::check(&config.postgres, &mut catalog).await?;
    let context = Context::new(config, rules, &catalog);
    let mut findings = server::check(&context, &pids);
    if catalog.is_in_recovery {
        // Whatever else is wrong would have to be cured on the primary.
        return Ok(Checked::only(findings));
    }
    findings.extend(on_standby);
    // The SQL that makes the slot writes into the comment on the publication: it comes after that.
    // What is wrong with a slot comes first: it may be that of another database than was meant.
    let (new_slot, of_slot): (Vec<Finding>, Vec<Finding>) =
        slot::check(&context).into_iter().partition(|one| one.code == Code::SlotMissing);
    findings.extend(of_slot);
    findings.extend(of_tables(&context));
    findings.extend(new_slot);
    findings.extend(failover::check(&context));
    findings.extend(views::check(config, client).await?);
    let tried = trials(config, rules, client).await?.into_iter().filter_map(Trial::finding);
    findings.extend(grants::check(&context, tried.collect(), client).await?);
    findings.extend(lookup_types::check(&context, client).await?);
    // To plan a query runs functions that call themselves immutable.
    if lookups::is_own_login(config, client).await? {
        findings.extend(lookup_index::check(rules, client).await?);
    }
    let outcomes = reads::look(config, rules, client).await?;
    findings.extend(reads::findings(rules, &outcomes));
    findings.extend(freed::check(&context, &reads::kept(&outcomes), client).await?);
    findings.extend(forgotten::check(&context, client).await?);
    findings.extend(forgotten::unread(&context));
    findings.extend(keyed::check(config, rules, client).await?);
    memory::remember(&context, &mut findings);
    let partitions = catalog.tables.iter().flat_map(|table| {
        let of_table = |one: &Relation| (one.table_name(), table.relation.table_name());
        table.partitions.iter().map(of_table)
    });
    let partitions = partitions.collect();
    let reads = outcomes.into_iter().map(reads::Outcome::reads).collect();
    Ok(Checked { findings, partitions, reads })
}

/// Judges tables and publication. Identities come first: whoever runs the cures in this order
/// publishes no table whose writes would then fail.
fn of_tables(context: &Context<'_>) -> Vec<Finding> {
    let checks =
        [tables::check, identity::check, partitions::check, publication::check, condition::check];
    checks.iter().flat_map(|check| check(context)).collect()
}

/// Judges rules, role and settings while it runs, as far as they may come to be an error. Whether
/// the server has room for another slot is nothing to one that streams; lookups are tried by
/// [`trials`].
///
/// # Errors
///
/// When the catalog cannot be read.
pub async fn again(config: &Config, rules: &Rules, client: &Client) -> Result<Vec<Finding>, Error> {
    let catalog = Catalog::read(config, rules, client, true).await?;
    let context = Context::new(config, rules, &catalog);
    let mut findings = server::check(&context, &[]);
    findings.retain(|finding| !finding.code.is_headroom());
    findings.extend(of_tables(&context));
    findings.extend(views::check(config, client).await?);
    findings.retain(Finding::is_error);
    Ok(findings)
}

/// A number that is another one when [`again`] would see another catalog. It locks no table.
///
/// # Errors
///
/// The query's.
pub async fn digest(
    config: &Config,
    rules: &Rules,
    client: &Client,
) -> Result<String, tokio_postgres::Error> {
    let tables = catalog::digest(config, rules, client).await?;
    Ok(format!("{tables} {}", views::digest(config, client).await?))
}

/// The table or view that was perhaps meant: one of that name in another schema, or one of a name
/// like it in the same.
fn likely(wanted: &TableName, others: &[Name]) -> Option<String> {
    let shown = |other: &Name| format!("{}.{}", other.schema, other.name);
    if let Some(namesake) = others.iter().find(|other| other.name == wanted.name) {
        return Some(shown(namesake));
    }
    let beside = others.iter().filter(|other| other.schema == wanted.schema);
    let like = nearest(&wanted.name, beside.map(|other| other.name.as_str()))?;
    Some(format!("{}.{like}", wanted.schema))
}

/// The candidate that is most like `wanted`, if one is like it at all.
pub(crate) fn nearest<'a>(
    wanted: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    /// Two of five characters may differ: more is another word.
    const LIKE: f64 = 0.6;
    candidates
        .map(|candidate| (strsim::normalized_damerau_levenshtein(wanted, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

impl Relation {
    fn table_name(&self) -> TableName {
        TableName { schema: self.schema.clone(), name: self.name.clone() }
    }
}
