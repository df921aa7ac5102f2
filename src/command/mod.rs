//! The commands: from arguments to an exit status, each in a file of its name.
//!
//! [`cli`] is the grammar of the arguments, [`load`] reads the configuration with all its problems
//! at once, [`failure`] is how each of them ends. `setup` and `teardown` share a `login`; what
//! [`check`](mod@check) finds ends in a `verdict` and a [`forecast`](mod@forecast). The grammar and
//! [`manual`] become [`pages`].

pub mod check;
pub mod cli;
pub mod coverage;
pub mod demo;
pub mod explain;
pub mod failure;
pub mod forecast;
pub mod lease;
mod listener;
pub mod load;
mod login;
pub mod manual;
pub mod pages;
pub mod probe;
pub mod reload;
pub mod run;
pub mod setup;
pub mod status;
pub mod sweep;
pub mod teardown;
mod verdict;
pub mod why;

/// `application_name` of connections that commands other than `run` make.
pub(crate) const NAME: &str = "walsweep command";
