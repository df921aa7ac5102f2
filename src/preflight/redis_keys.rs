//! Whether the user may name keys of rules, asked where he may not remove any.

use redis::aio::MultiplexedConnection;
use redis::{Value, cmd};

use super::redis::{Needs, SAMPLE_VALUES, is_about_key};
use super::redis_names::sample;

impl Needs {
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
