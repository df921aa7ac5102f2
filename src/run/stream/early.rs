//! Questions to the gate before a transaction is whole: that it will be needed, and, of large ones,
//! which are visible while the rest is still on its way.

use std::time::Duration;

use tokio::time::Instant;

use super::Stream;
use crate::settle::{Early, Ended, Input, Question};

/// Least time between two questions. Each is a look of the gate, some 40 µs, and what arrives in
/// between waits so long.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// Subtransactions of one transaction that are asked about at once; the others later.
const SUBXIDS_MAX: usize = 1_000;

impl Stream<'_> {
    /// The transaction that is being received will need the gate: its commit is flushed, so a look
    /// that begins now may already see it.
    pub(super) fn announce(&mut self) {
        if let Some(xid) = self.gatherer.in_transaction() {
            // A full channel means that looks are under way; this one is not needed.
            drop(self.ends.inputs.try_send(Input::Begin { xid }));
        }
    }

    /// Asks the gate which of the transactions in blocks have ended.
    pub(super) fn ask(&mut self) {
        let now = Instant::now();
        if self.in_progress.is_empty() || now - self.last_asked < ASK_INTERVAL {
            return;
        }
        self.last_asked = now;
        let unreleased = self.in_progress.unreleased(SUBXIDS_MAX);
        let questions: Vec<Question> =
            unreleased.into_iter().map(|(xid, subxids)| Question { xid, subxids }).collect();
        if !questions.is_empty() {
            // Where there is no room, what is before it is more urgent.
            drop(self.ends.inputs.try_send(Input::Early(Early::ask(questions))));
        }
    }

    /// Passes on what is known of a transaction that has ended.
    pub(super) fn release(&mut self, ended: Ended) {
        if let Some(keys) = self.in_progress.release(ended.xid(), ended.subxids()) {
            tracing::debug!(xid = ended.xid(), "visible while it is still being sent");
            self.pass_on(Input::Early(ended.with_keys(keys)));
        }
    }
}
