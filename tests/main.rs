//! The program against real servers: what is promised, as an operator and a reader see it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test may fail")]

mod checker;
mod adversity;
mod continuity;
mod crash;
mod delivery;
mod limits;
mod network;
mod observe;
mod oracle;
mod outage;
mod replicas;
mod shutdown;
mod support;
mod sweeping;
mod versions;
mod visibility;
