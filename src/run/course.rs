//! Everything that one session with Postgres leaves for the next.

use std::collections::BTreeSet;
use std::mem::replace;
use std::rc::Rc;

use crate::keys::RuleId;
use crate::lsn::Lsn;
use crate::run::attempts::Attempts;
use crate::run::error::Error;
use crate::source::own::Custody;
use crate::sweep::Doubt;

/// Everything that one session leaves for the next.
pub(super) struct Course {
    pub(super) attempts: Attempts,
    /// Whether a session ever began.
    pub(super) established: bool,
    pub(super) standing_by: bool,
    /// Whether this process made the slot, and why the next session gives it up.
    pub(super) custody: Rc<Custody>,
    /// Where a session began that could not read a transaction in blocks; until one begins further
    /// on, transactions are read whole.
    pub(super) whole_at: Option<Lsn>,
    /// How the last session, or attempt at one, ended.
    pub(super) ended: String,
    /// Keys that a session put in doubt which are not swept yet as far as is known.
    pub(super) doubt: Doubt,
    /// The server's process that served the last session's stream, which may outlive it.
    pub(super) walsender: Option<i32>,
    /// That process, while it has the slot though the session ended.
    pub(super) outlived: Option<i32>,
    /// The rules whose `when` failed, which is told once.
    pub(super) failed: BTreeSet<RuleId>,
}

impl Default for Course {
    fn default() -> Course {
        Course {
            attempts: Attempts::default(),
            established: false,
            standing_by: false,
            custody: Rc::default(),
            whole_at: None,
            ended: String::new(),
            doubt: Doubt::none(),
            walsender: None,
            outlived: None,
            failed: BTreeSet::new(),
        }
    }
}

impl Course {
    /// The slot is in use; says whether that is news. What it holds is another's matter from the
    /// second time on, unless that is the end of our own last session, which the server has not
    /// noticed.
    pub(super) fn finds_in_use(&mut self, error: &Error) -> bool {
        let is_news = !replace(&mut self.standing_by, true);
        if !self.walsender.is_some_and(|own| error.is_held_by(own)) {
            self.custody.lost();
            if !is_news {
                self.attempts = self.attempts.stands_by();
                self.custody.give_up.set(None);
            }
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::Course;
    use crate::run::error::Error;
    use crate::sweep::Broken;

    fn held_by(pid: i32) -> Error {
        let name = "walsweep stream".to_owned();
        Error::SlotInUse { pid: pid.to_string(), name, address: None }
    }

    /// A server may take a minute to notice that our last session is gone. What made us give up the
    /// slot then holds as before; of another process's slot we know nothing.
    #[test]
    fn our_own_old_stream_takes_no_decision_back_and_another_process_does() {
        for (holder, stays) in [(7, true), (8, false)] {
            let mut course = Course { walsender: Some(7), ..Course::default() };
            course.custody.give_up.set(Some(Broken::SlotUndecodable));
            assert!(course.finds_in_use(&held_by(holder)), "news");
            assert!(course.custody.give_up.get().is_some(), "it may have been our own");
            for _ in 0..3 {
                assert!(!course.finds_in_use(&held_by(holder)), "no news");
            }
            assert_eq!(course.custody.give_up.get().is_some(), stays, "process {holder}");
        }
    }
}
