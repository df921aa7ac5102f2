//! `walsweep completions` and `walsweep man`: what the command line tells of itself.

use clap::CommandFactory;
use clap_complete::Shell;

use super::cli::Cli;
use super::failure::{Failure, halted, print};

/// `walsweep completions`.
///
/// # Errors
///
/// 1 when standard output is closed.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "walsweep", &mut text);
    print(&String::from_utf8(text).map_err(halted)?)
}

/// `walsweep man`.
///
/// # Errors
///
/// 1 when standard output is closed.
pub fn man() -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut text).map_err(halted)?;
    print(&String::from_utf8(text).map_err(halted)?)
}
