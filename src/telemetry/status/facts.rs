//! The configuration, as far as people see it beside the state.

use std::time::Duration;

use crate::config::{Config, Mode, Source};

/// Everything of the configuration that is shown: no URL, no user, no secret.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub(super) slot: String,
    pub(super) database: String,
    pub(super) publication: String,
    pub(super) max_retained_wal: Option<u64>,
    pub(super) window: Duration,
    pub(super) max_load: f64,
    pub(super) has_index: bool,
    /// Whether keys are told.
    pub(super) keys: bool,
    pub(super) targets: Vec<TargetFacts>,
    pub(super) rules: Vec<RuleFacts>,
}

/// A target.
#[derive(Clone, Debug, Default)]
pub(super) struct TargetFacts {
    pub(super) name: String,
    pub(super) mode: &'static str,
    pub(super) rules: usize,
}

/// A rule.
#[derive(Clone, Debug, Default)]
pub(super) struct RuleFacts {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) keys: Vec<String>,
}

impl Facts {
    /// Of a configuration that tells keys, or does not.
    #[cfg(test)]
    pub(in crate::telemetry) fn for_tests(keys: bool) -> Facts {
        Facts { keys, ..Facts::default() }
    }

    /// Whether whoever asks is told keys.
    #[must_use]
    pub fn tells_keys(&self) -> bool {
        self.keys
    }

    /// Takes from the configuration what is shown.
    #[must_use]
    pub fn of(config: &Config) -> Facts {
        let targets = config.redis.iter().map(|redis| TargetFacts {
            name: redis.name.clone(),
            mode: match redis.mode {
                Mode::Standalone => "standalone",
                Mode::Cluster { .. } => "cluster",
                Mode::Sentinel(_) => "sentinel",
            },
            rules: config.rules.iter().filter(|rule| rule.targets.has(redis.id)).count(),
        });
        let rules = config.rules.iter().map(|rule| RuleFacts {
            name: rule.name.clone(),
            source: match &rule.source {
                Source::Table => rule.table.to_string(),
                Source::MaterializedView => format!("materialized view {}", rule.table),
                Source::Message(prefix) => format!("message {prefix}"),
            },
            keys: rule.keys.iter().chain(&rule.tags).map(|key| key.value.clone()).collect(),
        });
        Facts {
            slot: config.postgres.slot.clone(),
            database: config.postgres.endpoint.database.clone(),
            publication: config.postgres.publication.clone(),
            max_retained_wal: config.postgres.max_retained_wal,
            window: config.refill.window,
            max_load: config.sweep.max_load,
            has_index: config.sweep.index.is_some(),
            keys: config.http.keys,
            targets: targets.collect(),
            rules: rules.collect(),
        }
    }
}
