//! `walsweep run`.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::failure::{Failure, halted};
use super::listener::{Listener, SILENT_HINT, listener, silent};
use super::load::{setting, setting_again};
use crate::preflight;
use crate::run::program::Program;
use crate::run::reload::{Handover, Reloader, Setting, now_seconds};
use crate::run::shutdown::Shutdown;
use crate::telemetry::http::Served;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::notify::Manager;
use crate::telemetry::status::Facts;
use crate::telemetry::trail::Known;
use crate::telemetry::{Health, http, logging};

/// `walsweep run`; where it `is_verbose`, it logs at level `debug` whatever `[log]` says.
///
/// # Errors
///
/// 78 for the configuration, 1 for what a person has to look at.
pub async fn run(path: &Path, is_strict: bool, is_verbose: bool) -> Result<(), Failure> {
    let with_level = move |mut setting: Setting| {
        if is_verbose {
            "debug".clone_into(&mut setting.config.log.level);
        }
        setting
    };
    let first = setting(path).map_err(|invalid| halted(invalid).with_status(78))?;
    let first = with_level(first);
    let of_reload = path.to_owned();
    let load = move || setting_again(&of_reload).map(with_level).map_err(|error| error.lines());
    let log = first.config.log.clone();
    let filter = logging::start(&log).map_err(halted)?;
    let reloader = Reloader {
        file: path.display().to_string().into(),
        load: Arc::new(load),
        asked: Arc::new(Notify::new()),
        is_strict,
        health: health_of(&first),
        log: Box::new(move |config| filter.set(&config.log)),
    };
    let outcome = Box::pin(stream(first, reloader)).await;
    outcome.map_err(|failure| failure.in_log(&log))
}

/// The state of a program that begins with this configuration.
fn health_of(setting: &Setting) -> Arc<Health> {
    let targets = setting.config.redis.iter().map(|redis| redis.name.clone()).collect();
    let metrics = Metrics::new(setting.rules.names()).with_targets(targets);
    metrics.config_last_reload_successful.set(1);
    metrics.config_last_reload_success.set(now_seconds());
    let health = Health::new(Arc::new(metrics));
    health.reloads().start_with(&setting.text);
    Arc::new(health)
}

/// That the pages cannot be served; asks whoever has the address whether he is a walsweep, as where
/// two are started with one file.
async fn cannot_listen(address: SocketAddr, error: &io::Error) -> Failure {
    let in_use = error.kind() == io::ErrorKind::AddrInUse;
    let who = if in_use { listener(address, None).await } else { Listener::Stranger };
    let (what, hint) = match who {
        Listener::Own | Listener::Another(_) => (
            "a walsweep listens there".to_owned(),
            "it may be running already with this configuration: end it first; one that stands by, \
             or is of another slot, needs a configuration of its own with another `http.listen`",
        ),
        Listener::Silent => (silent(), SILENT_HINT),
        Listener::Stranger => {
            let who = if in_use { "another program listens there: " } else { "" };
            let hint = "end the program that listens there, or choose another `http.listen`, or \
                        \"\" for none";
            (format!("{who}{error}"), hint)
        }
    };
    let message = format!("listen on `http.listen` `{address}`: {what}");
    Failure::halted(message).with_hint(Some(hint))
}

async fn stream(first: Setting, reloader: Reloader) -> Result<(), Failure> {
    let (health, file) = (Arc::clone(&reloader.health), Arc::clone(&reloader.file));
    let asked = Arc::clone(&reloader.asked);
    health.trail().knows(Known::of(&first.config, &first.rules));
    health.shows(Facts::of(&first.config));
    let shutdown = Shutdown::by_signal("stopping", move || asked.notify_one()).map_err(halted)?;
    let (version, config) = (env!("CARGO_PKG_VERSION"), &first.config);
    tracing::info!(version, rules = first.rules.names().len(), "walsweep starts");
    for finding in preflight::files(config).findings() {
        tracing::warn!(hint = finding.hint, "{}", finding.message);
    }
    if let Some(address) = config.http.listen {
        let listener = match http::listen(address).await {
            Ok(listener) => listener,
            Err(error) => return Err(cannot_listen(address, &error).await),
        };
        tracing::info!(
            %address,
            "serving / /status /events /runbook /metrics /healthz /readyz /reload /why"
        );
        http::serve_apart(listener, Served::new(Arc::clone(&health))).map_err(halted)?;
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
    let (metrics, is_strict) = (health.metrics(), reloader.is_strict);
    let writer = health.trail().write_to(&config.audit, &health).map_err(halted)?;
    let handover = Rc::new(Handover::new(first));
    let told = (Arc::clone(&health), metrics);
    let mut program = Program::new(Rc::clone(&handover), told, shutdown, is_strict);
    let outcome = tokio::select! {
        outcome = program.run() => outcome,
        never = reloader.run(handover) => match never {},
    };
    health.trail().close();
    if let Some(writer) = writer {
        writer.join().await;
    }
    outcome.map_err(|error| {
        let error = error.in_file(&file);
        halted(&error).with_hint(error.hint())
    })
}
