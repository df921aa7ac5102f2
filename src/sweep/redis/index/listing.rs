//! A pass without SCAN: the index says which keys there are.

use futures_util::future::join_all;

use crate::sweep::redis::node::{Error, Node, Page, Primary, Scanned};
use crate::sweep::redis::pass::{Pass, Progress};

/// Names that are matched, and removed, at a time: as many as one UNLINK takes.
const PAGE: usize = 500;

impl Pass {
    /// Removes from all servers of a node what the patterns match, by their indexes. `watch` is
    /// used as with [`Pass::over`]. `None` if some keys may be missing: they are to be scanned for.
    ///
    /// # Errors
    ///
    /// The first error of a server; the others are gone through to their end before.
    pub async fn by_index<N: Node, W: FnMut(&Progress)>(
        &self,
        node: &N,
        mut watch: impl FnMut() -> W,
    ) -> Result<Option<Progress>, Error> {
        let prefixes = self.narrow_prefixes();
        let (mut scanned, mut whole) = (Scanned::nothing(prefixes.clone()), self.progress());
        let primaries = node.primaries(&mut scanned).await?;
        let share = self.refused_bytes_max / primaries.len().max(1);
        let each = primaries.iter().map(|primary| {
            let (mut watch, prefixes) = (watch(), &prefixes);
            async move {
                let mut progress = self.begun(share);
                let outcome = self.list(primary, prefixes, &mut progress).await;
                watch(&progress);
                outcome.map(|is_all| (is_all, progress))
            }
        });
        let (mut failed, mut is_all) = (None, true);
        for outcome in join_all(each).await {
            match outcome {
                Ok((is_all_of_it, progress)) => {
                    is_all &= is_all_of_it;
                    whole.add(progress);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        // Where keys have come to meanwhile, who knows how they were told of.
        is_all = is_all && node.primaries(&mut scanned).await?.is_empty();
        Ok(is_all.then_some(whole))
    }

    /// Removes from one server; says whether that is all.
    async fn list<P: Primary>(
        &self,
        node: &P,
        prefixes: &[Vec<u8>],
        progress: &mut Progress,
    ) -> Result<bool, Error> {
        // The names of all writes until now come before this is through.
        node.fence().await?;
        for prefix in prefixes {
            let mut last: Option<Vec<u8>> = None;
            loop {
                let Some(keys) = node.list(prefix, last.as_deref(), PAGE) else {
                    return Ok(false);
                };
                let Some(name) = keys.last() else { break };
                last = Some(name.clone());
                let page = Page { cursor: 0, keys };
                self.remove_matching(node, &page, progress).await?;
            }
        }
        // As with a pass by SCAN: that nothing was found counts as a removal, too.
        node.unlink(&[]).await?;
        node.fence().await?;
        Ok(true)
    }

    /// The beginnings of all that its patterns match, none the beginning of another.
    fn narrow_prefixes(&self) -> Vec<Vec<u8>> {
        let mut prefixes: Vec<Vec<u8>> = self.prefixes().map(<[u8]>::to_vec).collect();
        // They are sorted: whatever begins with one follows it at once.
        prefixes.dedup_by(|prefix, kept| prefix.starts_with(kept));
        prefixes
    }
}
