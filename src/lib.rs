//! walsweep reads committed transactions from a Postgres logical replication slot, maps changed
//! rows to cache keys by the rules of one TOML file, and removes those keys from Redis once the
//! commit is visible to readers.
//!
//! This page is the architecture. The folders of `src/` are the flow, in order:
//!
//! ```text
//! Slot::fill(), buffered()      -> Frame              capture     I/O
//! decode(frame.payload)         -> Message            decode      pure
//! Gatherer::push(message)       -> Gathered           gather      pure
//! bound_rules.add(change)       -> KeySet             keys        pure
//! gate: wait until visible      -> Gated              settle::gate        I/O
//! lookup: read rows of keys     -> Visible            settle::lookup      I/O
//! replay: once more, when standbys have replayed      settle::replay      I/O
//! targets: each removes, and again -> Swept           sweep       I/O    (a task each)
//! ledger.advance(target, swept) -> Lsn                ledger      pure   (opened by each COMMIT)
//! watermark: written to a target, then told back      sweep::proof
//! ledger.confirmable()          -> Lsn                ledger      pure   (the least of all)
//! Slot::confirm(lsn)                                  capture again: the loop closes
//! ```
//!
//! So a commit makes two trips back to the stream: *swept* lets the target's side of the ledger
//! advance, up to which its watermark may be written; *covered*, by the watermarks of all targets,
//! lets the slot be confirmed.
//!
//! A target takes what is visible as it comes. Before several stands a [`sweep::FanOut`], which
//! gives each the keys of its rules, and each has a proof, a queue, second removals and tries of
//! its own. One that is slow or away delays its own keys and what is confirmed, never what another
//! removes: what it has no room for becomes one set that is widened at a limit, and is in flight
//! there no longer. One that is new, or lost something, is swept alone. Two rules may give one key
//! and go to different targets: a [`keys::KeySet`] has it for each.
//!
//! A stage takes what the stage before it gives and looks left only: it may import the output of
//! earlier stages, never a later stage and never [`run::pipeline`]. Every other room of the tree
//! stands on a floor, too, and imports from lower ones only, so that there is no circle; the floors
//! are listed, and held, in `tests/tidy/main.rs`. [`settle::Gated`], [`settle::Visible`] and
//! [`sweep::Swept`] have private constructors, so "remove only what is visible, with its rows read"
//! and "advance only over what is removed" are facts of the type system. [`run::pipeline`] is the
//! one file that knows the order.
//!
//! Beside the flow stand: [`run`], sessions one after the other, and the loop of the stream;
//! [`source`], the server with the slot and its tables, watched while the stream runs;
//! [`preflight`], what `check` finds, and [`setup`], which cures it; [`command`], what a person
//! types; [`postgres`], [`config`] and [`telemetry`], which the others use. Servers to show and to
//! test the program on, and the site of its demonstration, are a crate of their own,
//! [`walsweep_stage`].
//!
//! # Where to begin
//!
//! - *A command:* a file in [`command`], a variant in `command/cli.rs`, an arm in `main.rs`, a line
//!   in README's table, an example in `command/manual.rs`.
//! - *A check:* a file in [`preflight`] that compares the catalog with `preflight/wanted.rs`, and a
//!   [`preflight::Code`] with its cure; `setup` cures what an error carries SQL for.
//! - *A kind of rule:* [`config::Source`], and every place that the compiler then names; what its
//!   changes give is for `keys/signal.rs`, what it needs of the database for [`preflight`].
//! - *Another store beside Redis:* [`sweep::Node`], and `run/program.rs`, which makes one for each
//!   target. It has to list its keys: whatever is unknown ends in a pattern.
//! - *A place where keys wait:* a share in [`budget`], and a line in the test that fills all of
//!   them.
//!
//! # Words
//!
//! - **primary**: the Postgres server that commits. **source**: the server whose slot is read, the
//!   primary or a standby of it. **replica**: a standby that readers read from. **stand-in**: a
//!   second walsweep that waits for the slot.
//! - **removal**: the first one of a key; **second removal**: the one after the refill window.
//! - **target**: one Redis deployment that keys are removed from. **node**: that, as its sweeper
//!   sees it: one server, or a cluster, of which a **shard** is a primary with its slots.
//! - **binding**: what a database is to rules: their tables, partitions, lookups, and which of them
//!   do not fit. With it they are **bound** rules, for one session.
//! - **pass**: one turn of SCAN over a Redis. **sweep**: passes for patterns, without a commit that
//!   asks for them; **resync**: a sweep of everything that rules can produce.
//! - **watermark**: the value in Redis. **ledger**: what may be confirmed to Postgres. **proof**:
//!   watermark, chain of removals and ring of the latest ones, together.
//! - **block**: a piece of a transaction that is sent while it runs.
//!
//! # The promise
//!
//! - **I1 post-visible.** No key is removed for a transaction before that transaction is visible to
//!   new snapshots on the primary. Receiving COMMIT on the slot is not that moment.
//! - **I2 confirm last.** The confirmed LSN never reaches the end of a transaction whose keys are
//!   not removed and acknowledged; it never falls; a keepalive counts only when nothing is in
//!   flight or held.
//! - **I3 no head-of-line wait.** A transaction stuck before visibility delays its own keys and the
//!   confirmed LSN, never the keys of later visible transactions.
//! - **I4 data is not syntax.** A value from a row never acts as a glob.
//! - **I5 doubt widens.** A value that cannot be known turns its placeholder into `*`.
//! - **I6 bounded.** Every queue, key set and buffer has a limit. At it a key set collapses to its
//!   rule's pattern, or no more is read; keepalives are still answered. What waits for a second
//!   removal, for a replica or for a right in Redis is bounded by itself, and holds up no first
//!   removal.
//! - **I7 continuity or sweep.** Ready needs a proof that history is unbroken; without it every key
//!   that a rule could produce is swept first.
//! - **I8 late refills are bounded, and can be closed.** Keys are removed again after `[refill]
//!   window`, and the LSN is confirmed only after that. Readers that use the functions of
//!   [the lease](sweep::redis::lease) cannot store what they read before a removal.
//! - **I9 nothing leaks.** No row value and no secret in logs, metrics or errors, except keys at
//!   debug level where `[log] keys` says so, in the audit trail where `[audit]` names a file, and
//!   over HTTP where `[http] keys` says so; without that only this machine's command is told of the
//!   key that it names.
//! - **I10 no harm.** walsweep never makes the application's own statements fail. In two places
//!   they may wait for it: behind a statement of `setup`, 2 s at a time, and DDL behind the query
//!   of a lookup, as behind any reader, 3 s. A rule that no longer fits its table suspends that
//!   rule, never the others. What is removed, and why something is not, can always be seen. SCAN
//!   takes at most a share of Redis's time.

pub mod capture;
pub mod decode;
pub mod gather;
pub mod keys;
pub mod ledger;
pub mod settle;
pub mod sweep;

pub mod run;
pub mod source;

pub mod command;
pub mod config;
pub mod postgres;
pub mod preflight;
pub mod setup;
pub mod telemetry;

pub mod budget;
pub mod channel;
pub mod failpoint;
pub mod file;
pub mod lsn;
pub mod password;
pub mod retry;
pub mod words;
