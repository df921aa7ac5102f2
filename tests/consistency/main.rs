//! The stale-read checker: a real Postgres, a real Redis (one server, a cluster, or a service that
//! Sentinels watch), writers, cache-aside readers, faults, and
//! any program that removes keys. `make check-consistency` runs it.
//!
//! At every quiet point each cached value is compared with its row: none may be stale. While the
//! load runs, the life of every stale value that is seen is held against the stated bound: the
//! refill window, an eighth of it (at most 250 ms) by which second removals are gathered, a slack
//! for the machine, and the outages that fall into that life. An outage lasts from the first fault
//! of a mixture until all are mended and everything committed by then is confirmed.
//!
//! What the application does to its tables, a prefix of keys that Redis refuses and a listed
//! standby that is gone are no outage. They lengthen the bound of the keys that they are about: by
//! the time in which walsweep says that it is not ready, and by the time that what no row tells may
//! take to be noticed. The keys of all other rules go as ever, whatever walsweep says.
//!
//! A failover may lose what the application wrote: such a value is absent. What the promoted
//! replica has of the past is stale as any other, and so is what a primary still serves that nobody
//! follows any more; in a cluster a value counts if the owner of its slot has it.
//!
//! The same seed gives the same choices, not the same interleaving of processes.
//!
//! Exit code 0: the promise held. 1: it did not, or nothing was tested; the stale keys are listed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it reports to a person")]

mod application;
mod cache;
mod cached;
mod effects;
mod failover;
mod faults;
mod history;
mod inject;
mod invalidator;
mod naive;
mod readers;
mod reloads;
mod report;
mod reshard;
mod rest;
mod schema;
mod servers;
mod shared;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod writers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::{Parser, Subcommand};
use futures_util::future::join_all;
use rand::RngExt;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::cache::Mode;
use crate::effects::Effects;
use crate::history::History;
use crate::invalidator::Invalidator;
use crate::report::Report;
use crate::servers::{NAME, Servers};
use crate::shared::{PATIENCE, Shared};

/// Looks for stale values in a cache, under load and faults.
#[derive(Debug, Parser)]
#[command(name = "consistency")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct Options {
    /// How Redis is run.
    #[arg(long, value_enum, default_value_t = Mode::default())]
    redis: Mode,
    /// How long to run; the last quiet point comes after it.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Go on until so many replicas took over from their primaries, even if the time is over.
    #[arg(long, default_value_t = 0)]
    failovers: u64,
    /// Tasks that write.
    #[arg(long, default_value_t = 8)]
    writers: u64,
    /// Tasks that read and fill the cache.
    #[arg(long, default_value_t = 4)]
    readers: u64,
    /// Where all random choices come from; another one each time if not given.
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, default_value = "all", value_parser = faults::parse, help = faults::help())]
    faults: FaultList,
    /// `walsweep`, `naive` (removes on arrival), `twice` (and again after the window; give it a
    /// `--grace` beyond that), or a shell command, which finds `DATABASE_URL`, `REPLICATION_URL`,
    /// `REDIS_URL` (of one server, or of one of them), `REDIS_MODE`, `REDIS_NODES` (with commas:
    /// the server, a cluster's nodes, or the Sentinels of the service `cache`), `SLOT`,
    /// `PUBLICATION`, `CONFIG` (a walsweep configuration with the rules) and `WALSWEEP` (the
    /// program) in its environment.
    #[arg(long, default_value = "walsweep")]
    invalidator: String,
    /// `[refill] window`, in milliseconds; readers fill within 0.9 of it.
    #[arg(long, default_value_t = 1000)]
    refill_window: u64,
    /// `[sweep] index = true`.
    #[arg(long)]
    index: bool,
    /// Some fills come up to three windows after their read. What is stale by them is not counted.
    #[arg(long)]
    late_readers: bool,
    /// The time that the bound of a stale life grants the machine, in seconds.
    #[arg(long, default_value_t = 5)]
    slack: u64,
    /// How long what no row tells may take to be noticed (DDL, a refused key), in seconds.
    #[arg(long, default_value_t = 10)]
    notice: u64,
    /// How long everything may take to be confirmed after a fault, in seconds.
    #[arg(long, default_value_t = 60)]
    recovery: u64,
    /// How long a program other than walsweep is given at a quiet point after it confirmed
    /// everything, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    grace: u64,
    /// How far away the synchronous standby is, each way, in milliseconds.
    #[arg(long, default_value_t = 2)]
    standby_delay: u64,
    /// Keys in the cache that no rule covers.
    #[arg(long, default_value_t = 2000)]
    ballast: u32,
    /// End with the first value that is stale at rest, and fail if there is none: to see that the
    /// checker bites.
    #[arg(long)]
    expect_stale: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Write the invalidator's output here, and keep it.
    #[arg(long)]
    log: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Hidden>,
}

/// How often walsweep is asked whether it is ready.
const READY_INTERVAL: Duration = Duration::from_millis(50);

/// The fault kinds of an option.
type FaultList = Vec<faults::Kind>;

#[derive(Clone, Copy, Debug, Subcommand)]
enum Hidden {
    /// The yardstick.
    #[command(hide = true)]
    Naive {
        /// It removes keys again later.
        #[arg(long)]
        twice: bool,
    },
}

/// All that a run has.
pub(crate) struct World {
    /// The state that the tasks share.
    pub(crate) shared: Arc<Shared>,
    /// The servers.
    pub(crate) servers: Arc<Servers>,
    /// The program under test.
    pub(crate) invalidator: Arc<Invalidator>,
    /// The program under test once more, which runs only while a fault wants it.
    pub(crate) stand_in: Option<Invalidator>,
    /// It says when it is ready.
    pub(crate) is_walsweep: bool,
    /// Nothing else goes wrong, so that each reload has to come to what it should.
    pub(crate) only_reloads: bool,
    /// See the option.
    pub(crate) recovery: Duration,
    /// See the option.
    pub(crate) grace: Duration,
    /// Faults so far, by name.
    pub(crate) faults: Mutex<BTreeMap<String, u32>>,
    /// The effects that they showed.
    pub(crate) effects: Mutex<Effects>,
}

impl World {
    /// Lets walsweep add what it needs to the database: the event trigger.
    async fn set_up(&self) {
        let config = self.invalidator.variable("PLAIN_CONFIG");
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_walsweep"));
        let done = command.args(["setup", "--config", config]).output().await.unwrap();
        assert!(done.status.success(), "walsweep setup: {}", support::text(&done));
    }

    /// Counts a fault.
    pub(crate) fn count(&self, fault: &str) {
        *self.faults.lock().unwrap().entry(fault.to_owned()).or_default() += 1;
    }
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(Hidden::Naive { twice }) = options.command {
        runtime.block_on(naive::run(twice));
        return ExitCode::SUCCESS;
    }
    let is_all = options.faults.len() == faults::Kind::ALL.len();
    let (suited, other): (FaultList, FaultList) =
        options.faults.iter().partition(|kind| kind.suits(options.redis));
    if !is_all && !other.is_empty() {
        let names: Vec<&str> = other.iter().map(|kind| kind.name()).collect();
        eprintln!("with --redis {} there is no {}", options.redis.name(), names.join(", "));
        return ExitCode::from(2);
    }
    options.faults = suited;
    let report = runtime.block_on(run(&options));
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).unwrap());
    } else {
        println!("{report}");
    }
    let is_good =
        if options.expect_stale { !report.stale_at_rest.is_empty() } else { report.held() };
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(options: &Options) -> Report {
    let seed = options.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000_000));
    eprintln!("seed {seed}");
    let folder = TempDir::new().unwrap();
    let world = build(options, seed, &folder).await;
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&world.servers).stand_by());
    if options.redis != Mode::Standalone {
        tasks.spawn(Arc::clone(&world.servers.directory).watch());
    }
    world.set_up().await;
    let invalidator = Arc::clone(&world.invalidator);
    tasks.spawn(async move { invalidator.supervise().await });
    let mut report = Report::default();
    if world.servers.settled(world.is_walsweep, PATIENCE).await {
        tasks.spawn(readers::audit(Arc::clone(&world.shared)));
        if world.is_walsweep {
            let (shared, servers) = (Arc::clone(&world.shared), Arc::clone(&world.servers));
            tasks.spawn(async move {
                loop {
                    shared.history.is_ready(servers.is_ready().await);
                    sleep(READY_INTERVAL).await;
                }
            });
        }
        for number in 0..options.writers {
            tasks.spawn(writers::write(Arc::clone(&world.shared), number));
        }
        for number in 0..options.readers {
            tasks.spawn(readers::read(Arc::clone(&world.shared), number));
        }
        let reshard = async {
            if options.faults.contains(&faults::Kind::Reshard) {
                reshard::reshard(&world.servers, &world.shared).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = rounds(&world, options, &mut report) => {}
            () = reshard => {}
        }
    } else {
        report.failures.push("the invalidator does not begin to confirm".to_owned());
    }
    world.shared.stop.store(true, Ordering::Relaxed);
    tasks.shutdown().await;
    if !report.failures.is_empty() {
        if let store::Store::Cluster(cluster) = &*world.servers.redis.lock().await {
            let views = cluster.views().await;
            report.failures.push(views.unwrap_or_else(|error| error.to_string()));
        }
        report.failures.push(format!("last words:\n{}", world.invalidator.last_words()));
    }
    let texts = (bound_text(options), replay(options, seed));
    report.close(&world, started.elapsed(), texts, &options.faults);
    report
}

async fn build(options: &Options, seed: u64, folder: &TempDir) -> World {
    let standby_delay = Duration::from_millis(options.standby_delay);
    let listed = options.faults.iter().any(|kind| kind.is_of_standby());
    let servers =
        Arc::new(Servers::start(options.redis, standby_delay, options.ballast, listed).await);
    let window = Duration::from_millis(options.refill_window);
    let urls = (servers.postgres_url.clone(), Arc::clone(&servers.directory));
    let history = History::new(base(options), Duration::from_secs(options.notice));
    let shared = Arc::new(Shared::new(seed, urls, (window, history), options.late_readers));
    let [config, second, plain] =
        ["config.toml", "second.toml", "plain.toml"].map(|name| folder.path().join(name));
    for (file, port, is_plain) in [
        (&config, servers.http_port, false),
        (&second, servers.second_http_port, false),
        (&plain, servers.http_port, true),
    ] {
        std::fs::write(file, servers.config((window, options.index), port, is_plain).await)
            .unwrap();
    }
    let text = std::fs::read_to_string(&plain).unwrap();
    let own = std::env::current_exe().unwrap();
    let command = match options.invalidator.as_str() {
        "walsweep" => "exec \"$WALSWEEP\" run --config \"$CONFIG\"".to_owned(),
        "naive" => format!("exec '{}' naive", own.display()),
        "twice" => format!("exec '{}' naive --twice", own.display()),
        other => other.to_owned(),
    };
    let is_walsweep = command.contains("$WALSWEEP");
    let url = |name: &str| {
        let line = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        line.map(|url| url.trim_matches('"').to_owned()).collect::<Vec<_>>()
    };
    let environment = [
        ("WALSWEEP", env!("CARGO_BIN_EXE_walsweep").to_owned()),
        ("CONFIG", config.display().to_string()),
        ("PLAIN_CONFIG", plain.display().to_string()),
        ("DATABASE_URL", url("url")[0].clone()),
        ("REDIS_URL", url("url")[1].clone()),
        ("REPLICATION_URL", url("replication_url")[0].clone()),
        ("SLOT", NAME.to_owned()),
        ("PUBLICATION", NAME.to_owned()),
    ];
    let environment = environment.into_iter().chain(servers.way_to_redis().environment());
    let mut environment: Vec<(String, String)> =
        environment.map(|(name, value)| (name.to_owned(), value)).collect();
    let log = options.log.clone().unwrap_or_else(|| folder.path().join("log"));
    let start = |environment: &[(String, String)]| {
        Invalidator::new(command.clone(), environment.to_vec(), (log.clone(), folder.path()))
    };
    let invalidator = Arc::new(start(&environment));
    environment.iter_mut().filter(|(name, _)| name == "CONFIG").for_each(|(_, file)| {
        *file = second.display().to_string();
    });
    let stand_in = is_walsweep.then(|| start(&environment));
    World {
        shared,
        servers,
        invalidator,
        stand_in,
        is_walsweep,
        only_reloads: options.faults == [faults::Kind::Reload],
        recovery: Duration::from_secs(options.recovery),
        grace: Duration::from_millis(options.grace),
        faults: Mutex::default(),
        effects: Mutex::default(),
    }
}

/// Load, faults and quiet points, until the time is over or something is beyond repair.
async fn rounds(world: &World, options: &Options, report: &mut Report) {
    let mut random = world.shared.random(3, 0);
    let mut kinds = options.faults.clone();
    // Another program may have no second one that waits, and no configuration of ours.
    let is_own = |kind| matches!(kind, faults::Kind::StandIn | faults::Kind::Reload);
    kinds.retain(|kind| !is_own(*kind) || world.is_walsweep);
    // It goes on all the time.
    kinds.retain(|kind| *kind != faults::Kind::Reshard);
    let mut mixer = faults::Mixer::new(kinds, world.shared.random(4, 0));
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let failovers = || world.servers.tally.failovers.load(Ordering::Relaxed);
    while Instant::now() < end || failovers() < options.failovers {
        sleep(Duration::from_millis(random.random_range(1000..3000))).await;
        let mixture = mixer.next();
        let is_untold = mixture.iter().any(|planned| planned.kind.is_untold());
        if !mixture.is_empty() {
            if let Err(failure) = break_and_mend(world, options, mixture, report).await {
                return report.failures.push(failure);
            }
            sleep(Duration::from_millis(random.random_range(500..1500))).await;
        }
        let noticed_by = is_untold.then(|| Instant::now() + Duration::from_secs(options.notice));
        match rest::check(world, noticed_by).await {
            Ok(rest) => {
                report.quiet_points += 1;
                report.compared += rest.compared;
                report.late_at_rest += rest.late;
                report.out_of_reach = report.out_of_reach.max(rest.lost);
                rest.stale.iter().for_each(|stale| eprintln!("stale: {stale}"));
                report.stale_at_rest.extend(rest.stale);
                if options.expect_stale && !report.stale_at_rest.is_empty() {
                    return;
                }
            }
            Err(failure) => return report.failures.push(failure),
        }
        world.shared.narrow.store(false, Ordering::Relaxed);
    }
}

/// Lets a mixture of faults strike and waits until walsweep is well again. Fails if it is not in
/// time.
async fn break_and_mend(
    world: &World,
    options: &Options,
    mixture: Vec<faults::Planned>,
    report: &mut Report,
) -> Result<(), String> {
    let names: Vec<String> = mixture.iter().map(ToString::to_string).collect();
    names.iter().for_each(|name| world.count(name));
    let names = names.join(" + ");
    let is_outage = mixture.iter().any(|planned| !planned.kind.is_confined());
    let began = Instant::now();
    if is_outage {
        world.shared.history.outage_begins();
    }
    let all = join_all(mixture.into_iter().map(|planned| inject::inject(world, planned)));
    let mended = timeout(4 * PATIENCE, all).await;
    world.shared.narrow.store(true, Ordering::Relaxed);
    mended.map_err(|_late| format!("the checker could not mend {names}"))?;
    let is_well = world.servers.settled(world.is_walsweep, world.recovery).await;
    eprintln!("{:>8.3} s of {names}", began.elapsed().as_secs_f64());
    if is_outage {
        let outage = world.shared.history.outage_ends().as_secs_f64();
        report.longest_outage = report.longest_outage.max(outage);
    }
    let seconds = options.recovery;
    if is_well { Ok(()) } else { Err(format!("not recovered {seconds} s after {names}")) }
}

/// The bound without outages.
fn base(options: &Options) -> Duration {
    let window = Duration::from_millis(options.refill_window);
    window + (window / 8).min(Duration::from_millis(250)) + Duration::from_secs(options.slack)
}

fn bound_text(options: &Options) -> String {
    let window = Duration::from_millis(options.refill_window);
    let gather = (window / 8).min(Duration::from_millis(250));
    format!(
        "{:.3} s + outages = window {window:?} + gathering {gather:?} + slack {} s + outages; for \
         keys that a change of their tables is about, {} s to notice it, and the time not ready",
        base(options).as_secs_f64(),
        options.slack,
        options.notice
    )
}

/// The command that makes the same choices again.
fn replay(options: &Options, seed: u64) -> String {
    let names = |kinds: &[faults::Kind]| {
        let name =
            |kind| faults::Kind::ALL.iter().find(|(one, _)| one == kind).map(|(_, name)| *name);
        kinds.iter().filter_map(name).collect::<Vec<_>>().join(",")
    };
    let suited = faults::Kind::ALL.iter().filter(|(kind, _)| kind.suits(options.redis));
    let faults = match options.faults.len() {
        0 => "none".to_owned(),
        count if count == suited.count() => "all".to_owned(),
        _ => names(&options.faults),
    };
    let Options { seconds, writers, readers, refill_window, slack, recovery, grace, .. } = options;
    let Options { standby_delay, ballast, notice, failovers, .. } = options;
    let redis = options.redis.name();
    let late = if options.late_readers { " --late-readers" } else { "" };
    let index = if options.index { " --index" } else { "" };
    // Once for make, once for the shell.
    let invalidator = options.invalidator.replace('$', "$$").replace('\'', "'\\''");
    format!(
        "make check-consistency REDIS={redis} SEED={seed} SECONDS={seconds} WRITERS={writers} \
         READERS={readers} FAULTS={faults} INVALIDATOR='{invalidator}' \
         ARGS='--refill-window {refill_window} --slack {slack} --notice {notice} \
         --recovery {recovery} --grace {grace} --standby-delay {standby_delay} \
         --ballast {ballast} --failovers {failovers}{late}{index}'"
    )
}
