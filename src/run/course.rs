//! Everything that one session with Postgres leaves for the next.

use std::collections::BTreeSet;
use std::mem::replace;
use std::rc::Rc;

use crate::keys::RuleId;
use crate::lsn::Lsn;
use crate::run::attempts::Attempts;
use crate::run::error::Error;
use crate::source::holder::Walsender;
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
    pub(super) walsender: Option<Walsender>,
    /// That process, while it has the slot though the session ended.
    pub(super) outlived: Option<Walsender>,
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
        if !self.walsender.as_ref().is_some_and(|own| error.is_held_by(own)) {
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
    use crate::source::holder::Walsender;
    use crate::sweep::Broken;

    fn held_by(pid: i32, since: &str) -> Error {
        let (name, since) = ("walsweep stream".to_owned(), Some(since.to_owned()));
        Error::SlotInUse { pid: pid.to_string(), name, address: None, since }
    }

    /// A server may take a minute to notice that our last session is gone. What made us give up the
    /// slot then holds as before; of another process's slot we know nothing, also where that one
    /// has the number of the one that served us.
    #[test]
    fn our_own_old_stream_takes_no_decision_back_and_another_process_does() {
        for (holder, since, stays) in [(7, "1.5", true), (7, "2.5", false), (8, "1.5", false)] {
            let own = Walsender { pid: 7, since: Some("1.5".to_owned()) };
            let mut course = Course { walsender: Some(own), ..Course::default() };
            course.custody.give_up.set(Some(Broken::SlotUndecodable));
            assert!(course.finds_in_use(&held_by(holder, since)), "news");
            assert!(course.custody.give_up.get().is_some(), "it may have been our own");
            for _ in 0..3 {
                assert!(!course.finds_in_use(&held_by(holder, since)), "no news");
            }
            assert_eq!(
                course.custody.give_up.get().is_some(),
                stays,
                "process {holder} since {since}"
            );
        }
    }
}
