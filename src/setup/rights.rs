//! Steps that a role may not take, asked for before the first statement changes anything.

use super::who::Owners;
use super::{Error, Hands, Statement};
use crate::config::Config;
use crate::preflight::Step;

/// Asks for the rights that the owners have of what the statements are about. Gives the steps that
/// the server will refuse, none of which is needed.
///
/// # Errors
///
/// When the role may not do all that is needed, or a query's.
pub(super) async fn ask(
    config: &Config,
    hands: &Hands<'_>,
    statements: &[Statement],
) -> Result<Vec<Step>, Error> {
    let steps: Vec<&Step> = statements.iter().map(|one| &one.step).collect();
    let owners = Owners::of(config, hands, &steps).await?;
    let needed = statements.iter().filter(|one| one.is_needed).map(|one| &one.step);
    let needed: Vec<&Step> = needed.collect();
    let is_denied = |step: &&&Step| owners.denies(&step.does);
    let lacking: Vec<&Step> = needed.iter().filter(is_denied).copied().collect();
    if lacking.is_empty() {
        return Ok(steps.iter().filter(is_denied).copied().cloned().collect());
    }
    Err(Error::Unentitled {
        role: hands.endpoint.user.clone(),
        lacks: owners.lacks(&lacking),
        who: owners.hint(&lacking, &needed),
    })
}
