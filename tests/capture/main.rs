//! Both connections against a real Postgres: logins, TLS, and a slot from its creation to its end.
//! Needs Postgres 14 or later and `openssl`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for programs")]

#[path = "../support/certificates.rs"]
mod certificates;
mod login;
mod server;
mod stream;
