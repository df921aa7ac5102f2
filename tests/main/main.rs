//! The program against real servers: what is promised, as an operator and a reader see it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test may fail")]

mod binary;
mod by_hand;
mod cached;
mod checker;
mod adversity;
mod budget;
mod continuity;
mod crash;
mod credentials;
mod data;
mod delivery;
mod documents;
mod explain;
mod fence;
mod fitness;
mod football;
mod hints;
mod hosts;
mod http;
mod large;
mod limits;
mod locks;
mod messages;
mod lookup_session;
mod lookups;
mod lookups_many;
mod network;
mod observe;
mod oracle;
mod outage;
mod prepared;
mod proxy;
mod refusals;
mod replicas;
mod secrets;
mod sentinel;
mod setup;
mod shop;
mod shutdown;
mod standby_slot;
mod state;
mod streaming;
mod stuck;
#[path = "../support/mod.rs"]
mod support;
mod sweeping;
mod sweeping_load;
mod targets;
mod tokens;
mod views;
mod versions;
mod visibility;
mod watching;
mod when;
