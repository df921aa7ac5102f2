//! The findings of the checks, and what Redis adds to them.

use super::{Error, Hands};
use crate::config::Config;
use crate::keys::Rules;
use crate::preflight::{self, Code, Does, Finding, Step};
use crate::source::own::hold_against_redis;

/// Asks the checks, and Redis of a slot that nothing claims.
///
/// # Errors
///
/// The checks', and [`Error::SlotUnclaimed`]: what was set up for a slot that `run` refuses would
/// stay remembered when another name is chosen.
pub(super) async fn looked(
    config: &Config,
    rules: &Rules,
    hands: &Hands<'_>,
) -> Result<Vec<Finding>, Error> {
    let mut findings = preflight::postgres(config, rules, hands.client).await?.findings;
    hold_against_redis(config, hands.client, &mut findings).await;
    let claims = |one: &Finding| one.code == Code::SlotUnclaimed && one.is_due();
    if findings.iter().any(claims) {
        // What claims the slot writes all that is to be remembered: written after it, a comment
        // without the claim would take it back.
        let writes = |step: &Step| matches!(step.does, Does::Remember(_));
        for one in findings.iter_mut().filter(|one| one.code == Code::PublicationMemory) {
            one.steps.retain(|step| !writes(step));
        }
    }
    let is_refused = |one: &Finding| one.code == Code::SlotUnclaimed && one.is_error();
    match findings.iter().position(is_refused) {
        Some(at) => Err(Error::SlotUnclaimed(Box::new(findings.swap_remove(at)))),
        None => Ok(findings),
    }
}
