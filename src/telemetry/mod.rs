//! All that people and machines see of a running walsweep: the page, metrics, health over HTTP, the
//! log, and what systemd is told.
//!
//! Takes: what each part reports of itself. Gives: `/`, `/status`, `/events`, `/metrics`,
//! `/healthz`, `/readyz`, log lines, messages of `sd_notify(3)`.
//! Never knows: how any part works; it judges only what it is told.

pub mod asker;
mod counted;
mod events;
pub mod health;
pub mod http;
mod labels;
pub mod logging;
pub mod metrics;
pub mod noted;
pub mod notify;
mod page;
pub mod reading;
pub mod reloads;
mod repeats;
mod runbook;
pub mod server_clock;
pub mod standstill;
pub mod status;
mod table;
pub mod trail;
mod trouble;
pub mod why;
#[cfg(test)]
pub(crate) mod health_tests;

pub use health::{Health, Phase};
pub use trail::Trail;
pub(crate) use trouble::Distance;
pub use trouble::{Cure, REFUSES_LOGIN, Topic};
