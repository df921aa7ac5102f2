//! The words for a session that could not be had, or ended.

use std::time::Duration;

use super::error::Error;
use crate::telemetry::{Cure, standstill};

/// Says `what` became of a session, why, and when the next one is tried, in the words of `within`;
/// and the cure. Tells besides for how long this process stood `still` just before.
pub(super) fn told(
    error: &Error,
    (what, within): (&str, &str),
    still: Option<Duration>,
) -> (String, Cure) {
    let (text, own) = (format!("{what}: {}{within}", error.in_words()), error.cure());
    match still.map(|still| still.as_secs()) {
        None => (text, own),
        // Whatever it waited for had no answer from it either.
        Some(still) if own == Cure::default() => {
            let text = format!("this process stood still for {still} s; since then {text}");
            (text, Cure::of_words(Some(standstill::HINT)))
        }
        // The answer is plain, whoever stood still before it came: it stands first, so that
        // `status` leads to the section about it.
        Some(still) => {
            (format!("{text}; before that, this process stood still for {still} s"), own)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::told;
    use crate::postgres::{self, ServerError};
    use crate::run::error::Error;
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::status::{Status, Verdict};
    use crate::telemetry::{Health, Phase, Topic, standstill};
    use crate::{capture, source};

    const STILL: Option<Duration> = Some(Duration::from_secs(84));

    fn refused(code: &str) -> Error {
        let server = ServerError { code: code.to_owned(), message: String::new() };
        let (address, user, database) = ("h:1".into(), "u".into(), "d".into());
        Error::from(postgres::Error::Refused { address, user, database, server })
    }

    /// The verdict of `status` while no session stands for this error.
    fn shown(error: &Error, still: Option<Duration>) -> Verdict {
        let (what, within) = ("no session with postgres", "; trying again within 10 s");
        let (text, cure) = told(error, (what, within), still);
        let health = Health::new(Arc::new(Metrics::new(&[])));
        health.set(Phase::Connecting);
        health.trouble_with(Topic::Session, &text, cure);
        Status::of(&health).verdict
    }

    #[test]
    fn a_plain_answer_keeps_its_cure_after_a_standstill() {
        for error in [refused("28P01"), refused("3D000"), Error::IsStandby] {
            let (before, after) = (shown(&error, None), shown(&error, STILL));
            assert!(before.hint.is_some(), "{before:?}");
            assert_eq!((&after.hint, &after.sql), (&before.hint, &before.sql));
            assert!(after.text.starts_with(&before.text), "{after:?}");
            assert!(after.text.ends_with("this process stood still for 84 s"), "{after:?}");
        }
    }

    #[test]
    fn a_plain_answer_leads_to_its_own_section_after_a_standstill() {
        for error in [refused("28P01"), refused("3D000"), Error::IsStandby] {
            let (before, after) = (shown(&error, None), shown(&error, STILL));
            assert_eq!(before.section.as_deref(), Some("not-ready"), "{before:?}");
            assert_eq!(after.section, before.section, "{after:?}");
        }
    }

    /// Whoever it waited for said nothing that helps, and may have had nothing to do with it.
    #[test]
    fn an_end_without_a_cure_is_told_as_a_standstill() {
        let silent = Error::Source(source::Error::Silent(84));
        for error in [silent, Error::from(capture::Error::Closed)] {
            let after = shown(&error, STILL);
            let begins = "nothing is removed: this process stood still for 84 s; since then no \
                          session with postgres: ";
            assert!(after.text.starts_with(begins), "{after:?}");
            assert_eq!(after.hint.as_deref(), Some(standstill::HINT));
            assert_eq!(after.section.as_deref(), Some("walsweep-does-not-start"));
            assert_eq!(shown(&error, None).hint, None);
        }
    }
}
