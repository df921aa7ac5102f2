//! Whether faults that can show their effect did: one that does nothing tests nothing.

use std::collections::BTreeMap;

/// The effects that each fault showed.
#[derive(Debug, Default)]
pub(crate) struct Effects(BTreeMap<String, Effect>);

#[derive(Debug, Default)]
struct Effect {
    struck: u32,
    shown: u32,
    /// Why the last one that showed nothing did not.
    missing: String,
}

impl Effects {
    /// A fault struck; `Err` says what it did not show.
    pub(crate) fn record(&mut self, fault: &str, shown: Result<(), String>) {
        let effect = self.0.entry(fault.to_owned()).or_default();
        effect.struck += 1;
        match shown {
            Ok(()) => effect.shown += 1,
            Err(missing) => effect.missing = missing,
        }
    }

    /// A line for each fault that struck without effect.
    pub(crate) fn failures(&self) -> Vec<String> {
        let idle = self.0.iter().filter(|(_, effect)| effect.shown < effect.struck);
        let text = |(fault, effect): (&String, &Effect)| {
            let Effect { struck, shown, missing } = effect;
            format!("{fault} had no effect {} of {struck} times: {missing}", struck - shown)
        };
        idle.map(text).collect()
    }
}
