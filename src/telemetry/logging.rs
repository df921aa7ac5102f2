//! Log lines on standard error.

use std::io::stderr;

use tracing_subscriber::filter::{Directive, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{Log, LogFormat};

/// The target of lines that hold keys.
pub const KEYS: &str = "walsweep::keys_of_transactions";

/// A plain level is ours alone: what libraries log at `debug` may hold the parameters of a query
/// (I9). Whoever writes directives gets what they say.
fn directives(level: &str) -> String {
    if level.contains(['=', ',']) { level.to_owned() } else { format!("warn,walsweep={level}") }
}

/// The filter of the lines that are written: another one may take its place.
#[derive(Clone, Debug)]
pub struct Filter(reload::Handle<EnvFilter, Registry>);

impl Filter {
    /// Lets the lines pass that `[log]` says, from now on; `RUST_LOG`, where set, goes first.
    pub fn set(&self, log: &Log) {
        // The configuration is judged before: a level that is not one never comes here.
        if let Ok(filter) = filter(log) {
            // It fails only where nothing logs any more.
            drop(self.0.reload(filter));
        }
    }
}

fn filter(log: &Log) -> Result<EnvFilter, ParseError> {
    // Whatever the level says: keys hold values of rows (I9).
    let keys = if log.keys { "debug" } else { "off" };
    let keys: Directive = format!("{KEYS}={keys}").parse()?;
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::try_new(directives)?,
        _ => EnvFilter::try_new(directives(&log.level))?,
    };
    Ok(filter.add_directive(keys))
}

/// Starts logging as `[log]` says; `RUST_LOG`, where set, says which lines.
///
/// # Errors
///
/// A level that is not one.
pub fn start(log: &Log) -> Result<Filter, ParseError> {
    let (filter, handle) = reload::Layer::new(filter(log)?);
    // That a line cannot be written would be written to the same place, and end the program there.
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr).log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    match log.format {
        LogFormat::Text => registry.with(lines.with_ansi(false).with_target(false)).init(),
        LogFormat::Json => {
            registry.with(lines.json().flatten_event(true).with_target(false)).init();
        }
    }
    Ok(Filter(handle))
}
