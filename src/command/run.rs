//! `walsweep run`.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::failure::{Failure, halted};
use super::listener::{Listener, listener};
use super::load::configuration;
use crate::config::{self, Config};
use crate::keys::Rules;
use crate::preflight;
use crate::run::program::Program;
use crate::run::shutdown::Shutdown;
use crate::telemetry::http::Served;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::notify::Manager;
use crate::telemetry::status::Facts;
use crate::telemetry::trail::{Known, TargetName};
use crate::telemetry::{Health, http, logging};

/// `walsweep run`; where it `is_verbose`, it logs at level `debug` whatever `[log]` says.
///
/// # Errors
///
/// 78 for the configuration, 1 for what a person has to look at.
pub async fn run(path: &Path, is_strict: bool, is_verbose: bool) -> Result<(), Failure> {
    let (mut config, rules) = configuration(path)?;
    if is_verbose {
        "debug".clone_into(&mut config.log.level);
    }
    logging::start(&config.log).map_err(halted)?;
    let file = path.display().to_string().into();
    let outcome = stream(&config, rules, is_strict, file).await;
    outcome.map_err(|failure| failure.in_log(&config.log))
}

/// That the pages cannot be served; asks whoever has the address whether he is a walsweep, as where
/// two are started with one file.
async fn cannot_listen(address: SocketAddr, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::AddrInUse
        && listener(address, None).await != Listener::Stranger
    {
        let message = format!("listen on `http.listen` `{address}`: a walsweep listens there");
        let hint = "it may be running already with this configuration: end it first; one that \
                    stands by, or is of another slot, needs a configuration of its own with \
                    another `http.listen`";
        return Failure::halted(message).with_hint(Some(hint));
    }
    let hint = "end the program that listens there, or choose another `http.listen`, or \"\" for \
                none";
    Failure::halted(format!("listen on `http.listen` `{address}`: {error}")).with_hint(Some(hint))
}

/// Names of rules and targets, for the trail.
fn known(config: &Config, rules: &Rules) -> Known {
    let target = |redis: &config::Redis| TargetName {
        name: redis.name.clone(),
        prefix: redis.prefix.clone(),
    };
    Known::new(rules, config.redis.iter().map(target).collect())
}

async fn stream(
    config: &Config,
    rules: Rules,
    is_strict: bool,
    file: Arc<str>,
) -> Result<(), Failure> {
    let targets = config.redis.iter().map(|redis| redis.name.clone()).collect();
    let metrics = Arc::new(Metrics::new(rules.names()).with_targets(targets));
    let health = Arc::new(Health::new(Arc::clone(&metrics)));
    health.trail().knows(known(config, &rules));
    let mut shutdown = Shutdown::by_signal("stopping").map_err(halted)?;
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, rules = rules.names().len(), "walsweep starts");
    for finding in preflight::files(config).findings() {
        tracing::warn!(hint = finding.hint, "{}", finding.message);
    }
    if let Some(address) = config.http.listen {
        let listener = match http::listen(address).await {
            Ok(listener) => listener,
            Err(error) => return Err(cannot_listen(address, &error).await),
        };
        tracing::info!(%address, "serving / /status /metrics /healthz /readyz");
        let served = Served::new(Arc::clone(&health), Facts::of(config));
        http::serve_apart(listener, served).map_err(halted)?;
    }
    match Manager::find(|name| std::env::var(name).ok()) {
        Ok(Some(manager)) => {
            let mut shutdown = shutdown.clone();
            let stopping = async move { shutdown.requested().await };
            tokio::spawn(manager.tell(Arc::clone(&health), stopping));
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "systemd is told nothing: `NOTIFY_SOCKET`"),
    }
    let mut program = Program {
        config,
        rules: &rules,
        health: &health,
        metrics: &metrics,
        shutdown: &mut shutdown,
        is_strict,
    };
    let outcome = program.run().await;
    outcome.map_err(|error| {
        let error = error.in_file(&file);
        halted(&error).with_hint(error.hint())
    })
}
