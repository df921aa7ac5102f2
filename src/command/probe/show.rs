//! A probe's outcome, for people and for programs.

use std::fmt;

use super::{OfTarget, Outcome, State};

impl Outcome {
    /// One object, and a new line.
    pub(super) fn to_json(&self) -> String {
        let shown = serde_json::to_string_pretty(self).expect("texts and numbers are JSON");
        format!("{shown}\n")
    }
}

/// A line for each target, with its name if there are several.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for OfTarget { target, state } in &self.targets {
            if self.targets.len() > 1 {
                write!(f, "{target}: ")?;
            }
            match state {
                State::Gone { after_ms } if *after_ms < 999.95 => {
                    writeln!(f, "gone after {after_ms:.1} ms")?;
                }
                State::Gone { after_ms } => writeln!(f, "gone after {:.2} s", after_ms / 1e3)?,
                State::Stays => writeln!(f, "not gone after {} s", self.timeout_seconds)?,
                State::Unknown { error, .. } => writeln!(f, "not known: {error}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::reason::Reason;
    use super::{OfTarget, Outcome, State};

    fn outcome(states: Vec<(&str, State)>, reason: Option<Reason>) -> Outcome {
        let of = |(target, state): (&str, State)| OfTarget { target: target.to_owned(), state };
        let targets = states.into_iter().map(of).collect();
        Outcome { gone: reason.is_none(), timeout_seconds: 10, targets, reason }
    }

    #[test]
    fn one_target_needs_no_name() {
        for (after_ms, text) in [(1.24, "1.2 ms"), (999.9, "999.9 ms"), (1_234.0, "1.23 s")] {
            let one = outcome(vec![("redis", State::Gone { after_ms })], None);
            assert_eq!(one.to_string(), format!("gone after {text}\n"));
        }
        let unknown = State::Unknown { error: "away".to_owned(), hint: Some("start it") };
        let two = outcome(vec![("a", State::Stays), ("b", unknown)], None);
        assert_eq!(two.to_string(), "a: not gone after 10 s\nb: not known: away\n");
    }

    #[test]
    fn a_program_reads_one_object() {
        let reason = Reason { reason: "why".to_owned(), hint: None };
        let unknown = State::Unknown { error: "away".to_owned(), hint: Some("start it") };
        let gone = State::Gone { after_ms: 1.5 };
        let both = outcome(vec![("a", gone), ("b", unknown)], Some(reason));
        let read: serde_json::Value = serde_json::from_str(&both.to_json()).unwrap();
        let expected = serde_json::json!({
            "gone": false,
            "timeout_seconds": 10,
            "targets": [
                { "target": "a", "state": "gone", "after_ms": 1.5 },
                { "target": "b", "state": "unknown", "error": "away" },
            ],
            "reason": "why",
        });
        assert_eq!(read, expected);
        let well = outcome(vec![("a", State::Gone { after_ms: 1.5 })], None);
        assert!(!well.to_json().contains("reason"), "{}", well.to_json());
    }
}
