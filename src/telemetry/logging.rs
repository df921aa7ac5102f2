//! Log lines on standard error.

use std::io::stderr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{Directive, ParseError};

use crate::config::{Log, LogFormat};

/// The target of lines that hold keys.
pub const KEYS: &str = "walsweep::keys_of_transactions";

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
    // Whatever the level says: keys hold values of rows (I9).
    let keys = if log.keys { "debug" } else { "off" };
    let keys: Directive = format!("{KEYS}={keys}").parse()?;
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::try_new(directives)?,
        _ => EnvFilter::try_new(directives(&log.level))?,
    };
    let filter = filter.add_directive(keys);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    // That a line cannot be written would be written to the same place, and end the program there.
    let lines = lines.log_internal_errors(false);
    match log.format {
        LogFormat::Text => lines.with_ansi(false).with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_target(false).init(),
    }
    Ok(())
}
