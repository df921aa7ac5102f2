//! The in-key lease: its functions in a real Redis, the commands that load them, and readers that
//! use the client of the documentation beside a real walsweep.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test may fail")]

mod functions;
mod library;
mod python;
mod readers;
#[path = "../support/mod.rs"]
mod support;
