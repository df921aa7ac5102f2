//! The steps of walsweep, and how they are told.

use std::fmt;

use super::state::{FENCED, SWEEP};

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Connects to both, reads the watermark and judges it.
    Start,
    /// Notices that a table reads otherwise, and begins a session anew.
    Notice,
    /// Connects to Redis again.
    Reconnect,
    /// The next commit arrives.
    Receive(usize),
    /// A snapshot contains it.
    PassGate(usize),
    /// UNLINK, acknowledged.
    Unlink(usize),
    /// A pass begins with every pattern that waits.
    BeginPass,
    /// A pattern is added to the pass that is under way; only without its rule.
    JoinPass(usize),
    /// One page of the pass: scanned, matched, removed.
    Page,
    /// UNLINK, refused.
    Refused(usize),
    /// A job that was refused is to be sent once more.
    Retry(usize),
    /// The window is over.
    SecondDue(usize),
    /// Asks how the rules' tables are, and has to wait.
    Ask,
    /// Is answered.
    Answered,
    WriteWatermark,
    /// The watermark is written over itself, where that shows or changes something.
    Probe,
    Confirm,
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = |job: &usize| match *job {
            SWEEP => "what is owed".to_owned(),
            FENCED => "what is owed, after the fence".to_owned(),
            row => format!("key {row}"),
        };
        match self {
            Step::Start => write!(formatter, "walsweep: starts, judges the watermark"),
            Step::Notice => write!(formatter, "walsweep: notices that a table is altered"),
            Step::Reconnect => write!(formatter, "walsweep: connects again, judges the watermark"),
            Step::Receive(row) => write!(formatter, "walsweep: receives the commit of row {row}"),
            Step::PassGate(job) => write!(formatter, "walsweep: gate lets pass: {}", keys(job)),
            Step::Unlink(job) => write!(formatter, "walsweep: UNLINK acknowledged: {}", keys(job)),
            Step::BeginPass => write!(formatter, "walsweep: begins a pass"),
            Step::JoinPass(job) => write!(formatter, "walsweep: adds to the pass: {}", keys(job)),
            Step::Page => write!(formatter, "walsweep: scans a bucket"),
            Step::Refused(job) => write!(formatter, "walsweep: UNLINK refused: {}", keys(job)),
            Step::Retry(job) => write!(formatter, "walsweep: tries again: {}", keys(job)),
            Step::Ask => write!(formatter, "walsweep: asks about the tables, and waits"),
            Step::Answered => write!(formatter, "walsweep: is answered about the tables"),
            Step::SecondDue(job) => write!(formatter, "walsweep: window over: {}", keys(job)),
            Step::WriteWatermark => write!(formatter, "walsweep: writes the watermark"),
            Step::Probe => write!(formatter, "walsweep: writes the watermark over itself"),
            Step::Confirm => write!(formatter, "walsweep: confirms to postgres"),
        }
    }
}
