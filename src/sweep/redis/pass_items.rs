//! Items in a pass: keys that SCAN finds are looked into, not removed.

use std::sync::Arc;

use super::inside::{self, How, Why};
use super::node::{Error, Primary};
use super::pace::Pace;
use crate::keys::{Item, Pattern, Reach, RuleId};
use crate::lsn::Lsn;
use crate::sweep::job::Tally;
use crate::sweep::publish::Publisher;

/// An item that a pass looks for.
#[derive(Debug)]
pub(in crate::sweep) struct PassItem {
    pattern: Pattern,
    bytes: Box<[u8]>,
    /// Whether members whose keys are gone are taken out of their sets.
    pub(in crate::sweep) trims: bool,
}

/// Items that a pass looks for, and how fast.
#[derive(Debug, Default)]
pub(in crate::sweep) struct PassItems {
    pub(in crate::sweep) all: Vec<PassItem>,
    /// Hears of keys that are removed because a set names them.
    pub(in crate::sweep) told: Option<Told>,
}

/// Hears of keys that are removed for commits up to an LSN.
#[derive(Debug)]
pub(in crate::sweep) struct Told(pub(in crate::sweep) Arc<Publisher>, pub(in crate::sweep) Lsn);

impl PassItem {
    /// An item whose keys SCAN has to find.
    pub(in crate::sweep) fn of(item: Item<'_>, trims: bool) -> PassItem {
        PassItem { pattern: Pattern::parse(item.key()), bytes: item.bytes().into(), trims }
    }

    /// The bytes that stand for it.
    pub(in crate::sweep) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn item(&self) -> Item<'_> {
        Item::read(&self.bytes)
    }

    /// Bytes that all of its keys begin with.
    pub(super) fn prefix(&self) -> &[u8] {
        self.pattern.literal_prefix()
    }

    pub(super) fn pattern(&self) -> &Pattern {
        &self.pattern
    }
}

/// The outcome for the items of a pass on one page, by their index.
pub(super) struct Done {
    pub(super) removed: Vec<u64>,
    pub(super) matched: Vec<u64>,
    pub(super) refused: Vec<usize>,
}

impl PassItems {
    /// Removes what items mean in the keys of a page.
    pub(super) async fn remove<P: Primary>(
        &self,
        node: &P,
        keys: &[Vec<u8>],
        pace: &mut Pace,
    ) -> Result<Done, Error> {
        let none = vec![0; self.all.len()];
        let mut done = Done { removed: none.clone(), matched: none, refused: Vec::new() };
        for (at, one) in self.all.iter().enumerate() {
            let found = keys.iter().map(Vec::as_slice).filter(|key| one.pattern.matches(key));
            let found: Vec<&[u8]> = found.collect();
            done.matched[at] += found.len() as u64;
            let outcome = match one.item().reach_in_key() {
                Reach::Direct => one.direct(node, &found).await?,
                Reach::Paged | Reach::Scanned => self.paged(node, (one, &found), pace).await?,
            };
            done.removed[at] += outcome.0;
            done.refused.extend(outcome.1.then_some(at));
            tokio::task::yield_now().await;
        }
        Ok(done)
    }

    /// Gives how much was removed, and whether something was refused. What a pattern finds of
    /// another type is not what is meant.
    async fn paged<P: Primary>(
        &self,
        node: &P,
        (one, found): (&PassItem, &[&[u8]]),
        pace: &mut Pace,
    ) -> Result<(u64, bool), Error> {
        let (mut removed, mut is_refused) = (0, false);
        let mut told = |names: &[&[u8]]| {
            self.told.iter().for_each(|Told(publisher, lsn)| publisher.named(names, *lsn));
        };
        for key in found {
            let how = &mut How { pace: &mut *pace, trims: one.trims, told: &mut told };
            let outcome = inside::in_key(node, key, one.item(), how).await?;
            removed += outcome.removed;
            is_refused |= outcome.refused == Some(Why::Forbidden);
        }
        Ok((removed, is_refused))
    }
}

impl PassItem {
    async fn direct<P: Primary>(&self, node: &P, found: &[&[u8]]) -> Result<(u64, bool), Error> {
        let mut tally = Tally::default();
        let items = found.iter().map(|key| (RuleId(0), *key, self.item()));
        inside::direct(node, items.collect(), &mut tally).await?;
        let removed = tally.rows().map(|(_, removed, _)| removed).sum();
        let is_refused = tally.refused_items.values().any(|why| *why == Why::Forbidden);
        Ok((removed, is_refused))
    }
}
