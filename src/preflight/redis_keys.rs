//! Rights that the user lacks: which keys of rules it may name, asked where it may remove none.

use redis::aio::MultiplexedConnection;
use redis::{Value, cmd};

use super::redis::{Missing, Needs, SAMPLE_VALUES, is_about_key};
use super::redis_names::sample;
use super::{Finding, Severity};

/// Words about a user who lacks commands, so that nobody knows which keys or channels he may name.
const NAMES_LATER: &str = "what it may name shows only once it has the commands";

impl Needs {
    /// That the user lacks rights, if he does, with the line that gives them.
    pub(super) fn lacking(&self, missing: Missing) -> Option<Finding> {
        let Missing { mut rights, with_keys, info, .. } = missing;
        let is_error = !rights.is_empty();
        rights.extend(info.then(|| "+info".to_owned()));
        let severity = if is_error { Severity::Error } else { Severity::Warning };
        let mut finding = Finding { severity, ..self.lacks(&rights, with_keys) };
        // Redis looks at the command first. EVAL is what keys are asked by, and PUBLISH shows the
        // channel.
        let has = |begin: &str| rights.iter().any(|right| right.starts_with(begin));
        if !with_keys && has("+eval") || has("+publish") {
            let cure = self.cure(with_keys, has("&"));
            finding =
                finding.hint(format!("{cure}; then run `walsweep check` again: {NAMES_LATER}"));
        }
        (!rights.is_empty()).then_some(finding)
    }

    /// Whether the user may do nothing with keys of some rule, as far as that can be asked.
    pub(super) async fn is_denied_keys(&self, connection: &mut MultiplexedConnection) -> bool {
        for (_rule, template) in &self.templates {
            let samples: Vec<String> =
                SAMPLE_VALUES.iter().filter_map(|value| sample(&template.value, value)).collect();
            let names: Vec<&str> = samples.iter().map(String::as_str).collect();
            let may = may_name(&names, connection).await;
            if !may.is_empty() && may.iter().all(|one| *one == Some(false)) {
                return true;
            }
        }
        false
    }
}

/// Whether keys may be named, on a server that has one right for all that is done with a key: it
/// looks at the keys of a script, and this one does nothing with them.
pub(super) async fn may_name(
    keys: &[&str],
    connection: &mut MultiplexedConnection,
) -> Vec<Option<bool>> {
    let mut answers = Vec::with_capacity(keys.len());
    for key in keys {
        let mut eval = cmd("EVAL");
        eval.arg("return 1").arg(1).arg(key);
        answers.push(match eval.query_async::<Value>(connection).await {
            Ok(_one) => Some(true),
            Err(error) if error.code() == Some("NOPERM") && is_about_key(&error) => Some(false),
            Err(_other) => None,
        });
    }
    answers
}
