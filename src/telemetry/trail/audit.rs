//! Writes the audit trail, on a thread of its own.
//!
//! What is to be written waits in a queue of [`budget::AUDIT`]. Where it is
//! full, because the disk is slow, or where the file cannot be written, lines are lost: that is
//! counted, and said. Nothing else ever waits for a line.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::file::{AuditFile, Failed, append_by_hand};
use super::known::Known;
use super::lines::{self, Event, Line, Taken, Took};
use super::name::{Moment, Name};
use super::ring::{self, Scope, What};
use super::told::Transaction;
use crate::budget;
use crate::config::{Audit, TargetId};
use crate::lsn::Lsn;
use crate::telemetry::{Health, Topic};

/// Lines that may wait, at most.
const WAITING_MAX: usize = 2_048;

/// For so long no line may be lost before that is said to be over.
const QUIET: Duration = Duration::from_secs(10);

/// Bytes that are written with one call, about.
const BATCH: usize = 64 * 1024;

/// Advice for a person.
const HINT: &str = "removals go on; `walsweep_audit_lost_total` counts the lines, see docs/why.md";

/// How long a stop waits for what is to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The way to the thread that writes. When it is dropped the thread ends, once all is written.
#[derive(Debug)]
pub(super) struct Outlet {
    sender: SyncSender<Note>,
    waiting: Arc<AtomicUsize>,
    losses: Arc<Losses>,
    health: Arc<Health>,
}

/// When a line was lost last, while that is said.
type Losses = Mutex<Option<Instant>>;

/// An event that becomes a line, where that is written.
#[derive(Debug)]
pub(super) struct Note {
    pub(super) time: Moment,
    /// The rules and targets that it is of.
    pub(super) known: Arc<Known>,
    pub(super) of: NoteOf,
}

#[derive(Debug)]
pub(super) enum NoteOf {
    /// See [`Event::Removed`].
    Removed(TargetId, Box<ring::Record>, Took),
    /// See [`Event::Refused`].
    Refused(TargetId, Box<ring::Record>, Took),
    /// See [`Event::RefusedGone`].
    RefusedGone(TargetId, Vec<Lsn>),
    /// See [`Event::Forgotten`].
    Forgotten(TargetId, Box<ring::Record>),
    /// See [`Event::RemovedAgain`].
    Again(TargetId, Vec<Lsn>),
    /// See [`Event::Swept`] and [`Event::Room`].
    Event(TargetId, Box<ring::Event>),
}

fn taken(known: &Known, target: TargetId, record: &ring::Record, took: Took) -> Taken {
    let (rules, left_out) = lines::of_body(known, &record.body);
    let (target, transaction) = (known.target(target).name.clone(), Transaction::of(record));
    Taken { target, transaction, rules, left_out, took }
}

impl Note {
    fn bytes(&self) -> usize {
        let more = match &self.of {
            NoteOf::Removed(_, record, _)
            | NoteOf::Refused(_, record, _)
            | NoteOf::Forgotten(_, record) => size_of::<ring::Record>() + record.body.bytes(),
            NoteOf::RefusedGone(_, lsns) | NoteOf::Again(_, lsns) => size_of_val(&lsns[..]),
            NoteOf::Event(_, event) => size_of::<ring::Event>() + event.scope.bytes(),
        };
        size_of::<Note>() + more
    }

    fn line(self) -> Line {
        let known = &*self.known;
        let name = |target: TargetId| known.target(target).name.clone();
        let event = match self.of {
            NoteOf::Removed(target, record, took) => {
                Event::Removed(taken(known, target, &record, took))
            }
            NoteOf::Refused(target, record, took) => {
                Event::Refused(taken(known, target, &record, took))
            }
            NoteOf::Forgotten(target, record) => {
                let (rules, left_out) = lines::of_body(known, &record.body);
                let transaction = Transaction::of(&record);
                Event::Forgotten { target: name(target), transaction, rules, left_out }
            }
            NoteOf::RefusedGone(target, lsns) => {
                let lsns = lsns.iter().map(Lsn::to_string).collect();
                Event::RefusedGone { target: name(target), lsns }
            }
            NoteOf::Again(target, lsns) => {
                let lsns = lsns.iter().map(Lsn::to_string).collect();
                Event::RemovedAgain { target: name(target), lsns }
            }
            NoteOf::Event(target, event) => {
                let rules = match &event.scope {
                    Scope::Everything => lines::of_rules(known, |rule| known.goes(rule, target)),
                    Scope::Rules(rules) => lines::of_rules(known, |rule| rules.contains(&rule)),
                    Scope::Keys(body) => lines::of_body(known, body).0,
                };
                match event.what {
                    What::Sweep(reason, why) => Event::Swept {
                        target: name(target),
                        reason: reason.to_owned(),
                        why: why.into(),
                        began: event.began,
                        rules,
                    },
                    What::Room => Event::Room { rules },
                }
            }
        };
        Line { time: self.time, event }
    }
}

impl Outlet {
    /// Lets an event be written; if there is no room, it is lost.
    pub(super) fn send(&self, note: Note) {
        let bytes = note.bytes();
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > budget::AUDIT || self.sender.try_send(note).is_err() {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.health.metrics().audit_lost.inc();
            if lost(&self.losses).replace(Instant::now()).is_none() {
                let text = "lines of the audit trail are lost: more comes than is written";
                self.health.trouble(Topic::Audit, text, Some(HINT));
            }
        }
    }
}

fn lost(losses: &Losses) -> MutexGuard<'_, Option<Instant>> {
    losses.lock().expect("no code panics while it holds this lock")
}

/// The thread that writes.
#[derive(Debug)]
pub struct Writer(JoinHandle<()>);

impl Writer {
    /// Waits a second at most until all is written. The way to it has to be closed before.
    pub async fn join(self) {
        let until = Instant::now() + CLOSE_TIMEOUT;
        while !self.0.is_finished() && Instant::now() < until {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Starts the thread that writes to a file.
pub(super) fn start(
    (audit, path): (&Audit, &Path),
    health: Arc<Health>,
) -> io::Result<(Outlet, Writer)> {
    let (sender, receiver) = sync_channel(WAITING_MAX);
    let waiting = Arc::new(AtomicUsize::new(0));
    let losses = Arc::<Losses>::default();
    let outlet = Outlet {
        sender,
        waiting: Arc::clone(&waiting),
        losses: Arc::clone(&losses),
        health: Arc::clone(&health),
    };
    let file = AuditFile::new(path.to_owned(), audit.max_bytes, audit.keep);
    let path = path.display().to_string();
    let work = move || write(receiver, file, (&waiting, &losses), (&health, &path));
    let thread = thread::Builder::new().name("walsweep-audit".to_owned()).spawn(work)?;
    Ok((outlet, Writer(thread)))
}

/// Writes what comes, until nothing can come any more.
#[expect(clippy::needless_pass_by_value, reason = "the queue ends with the thread")]
fn write(
    receiver: Receiver<Note>,
    mut file: AuditFile,
    (waiting, losses): (&AtomicUsize, &Losses),
    (health, path): (&Health, &str),
) {
    let mut batch = Vec::new();
    loop {
        let first = match receiver.recv_timeout(QUIET / 4) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => {
                say_over(losses, health);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        batch.clear();
        let mut count = 0;
        let mut next = Some(first);
        while let Some(note) = next {
            waiting.fetch_sub(note.bytes(), Ordering::Relaxed);
            // A text in memory takes all that is written.
            drop(serde_json::to_writer(&mut batch, &note.line()));
            batch.push(b'\n');
            count += 1;
            next = if batch.len() < BATCH { receiver.try_recv().ok() } else { None };
        }
        match file.write(&batch) {
            Ok(()) => say_over(losses, health),
            Err(Failed { lines, error }) => {
                *lost(losses) = Some(Instant::now());
                health.metrics().audit_lost.inc_by((count - lines.min(count)) as u64);
                let text = format!("the audit trail cannot be written to `{path}`: {error}");
                health.trouble(Topic::Audit, &text, Some(HINT));
            }
        }
        // A large transaction is rare.
        batch.shrink_to(2 * BATCH);
    }
}

/// Says that no line is lost any more, once none was for a while: a queue that is full comes and
/// goes.
fn say_over(losses: &Losses, health: &Health) {
    let mut last = lost(losses);
    if last.is_some_and(|at| at.elapsed() >= QUIET) {
        *last = None;
        health.over(&Topic::Audit);
    }
}

/// Appends the line of a sweep by hand to a file, beside a process that may write there.
///
/// # Errors
///
/// The file's; that it is no regular one, or is not there and would not be the process's.
pub fn note_by_hand(path: &Path, target: &str, patterns: &[&[u8]], removed: u64) -> io::Result<()> {
    let patterns = patterns.iter().map(|pattern| Name::of(pattern)).collect();
    let event = Event::SweptByHand { target: target.to_owned(), patterns, removed };
    let line = Line { time: Moment::now(), event };
    let mut text = serde_json::to_vec(&line)?;
    text.push(b'\n');
    append_by_hand(path, &text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::{Losses, QUIET, lost, say_over};
    use crate::telemetry::Health;
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::trouble::Topic;

    /// A queue that is full comes and goes: each time it would be said, and said to be over.
    #[test]
    fn a_loss_is_over_once_no_line_was_lost_for_a_while() {
        let health = Health::new(Arc::new(Metrics::new(&[])));
        let losses = Losses::default();
        let is_said = || health.readiness().1.contains("lost");
        health.trouble(Topic::Audit, "lines are lost", None);
        *lost(&losses) = Some(Instant::now() - QUIET / 2);
        say_over(&losses, &health);
        assert!(is_said() && lost(&losses).is_some());
        *lost(&losses) = Some(Instant::now() - QUIET);
        say_over(&losses, &health);
        assert!(!is_said() && lost(&losses).is_none());
    }
}
