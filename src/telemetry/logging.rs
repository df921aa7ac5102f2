//! Log lines on standard error.

use std::io::stderr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{Log, LogFormat};

/// A plain level is ours alone: what libraries log at `debug` may hold the parameters of a query
/// (I9). Whoever writes directives gets what they say.
fn directives(level: &str) -> String {
    if level.contains(['=', ',']) { level.to_owned() } else { format!("warn,walsweep={level}") }
}

/// Starts logging as `[log]` says; `RUST_LOG`, where set, says which lines.
///
/// # Errors
///
/// A level that is not one.
pub fn start(log: &Log) -> Result<(), ParseError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::try_new(directives)?,
        _ => EnvFilter::try_new(directives(&log.level))?,
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match log.format {
        LogFormat::Text => lines.with_ansi(false).with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_target(false).init(),
    }
    Ok(())
}
