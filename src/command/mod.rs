//! The commands: from arguments to an exit status.
//!
//! [`cli`] is the grammar of the arguments. [`load`] reads the configuration with all its problems
//! at once. The others are what the commands do; [`check`] ends with a verdict.

pub mod check;
pub mod cli;
pub mod commands;
pub mod explain;
pub mod forecast;
pub mod load;
pub mod setup_commands;
mod verdict;
