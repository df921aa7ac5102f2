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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::{Error, Node, Page, Pass, Primary, Scanned};
    use crate::keys::Pattern;
    use crate::sweep::redis::node::{Removes, Replaced, ScanCall};

    /// A server whose index knows one key, and everything that is asked of it.
    #[derive(Default)]
    struct Asked {
        asked: RefCell<Vec<&'static str>>,
        /// Whether keys come to it while a pass runs.
        gets_keys: bool,
    }

    impl Removes for Asked {
        async fn unlink(&self, groups: &[Vec<&[u8]>]) -> Result<Vec<Option<u64>>, Error> {
            self.asked.borrow_mut().push(if groups.is_empty() { "count" } else { "unlink" });
            Ok(groups.iter().map(|_| Some(1)).collect())
        }

        async fn fence(&self) -> Result<(), Error> {
            self.asked.borrow_mut().push("fence");
            Ok(())
        }
    }

    impl Primary for Asked {
        fn name(&self) -> &'static str {
            "asked"
        }

        async fn scan(&self, _call: &ScanCall<'_>) -> Result<Page, Error> {
            self.asked.borrow_mut().push("scan");
            Ok(Page::default())
        }

        fn list(&self, _from: &[u8], after: Option<&[u8]>, _most: usize) -> Option<Vec<Vec<u8>>> {
            self.asked.borrow_mut().push("list");
            Some(if after.is_none() { vec![b"list:1".to_vec()] } else { Vec::new() })
        }

        async fn ping(&self) -> Result<(), Error> {
            Ok(())
        }
    }

    impl Node for Asked {
        type Primary<'a> = &'a Asked;

        fn name(&self) -> &'static str {
            "asked"
        }

        async fn connect(&self) -> Result<(), Error> {
            Ok(())
        }

        async fn primaries(&self, scanned: &mut Scanned) -> Result<Vec<&Asked>, Error> {
            let first = scanned.once(self);
            Ok(if self.gets_keys { vec![self] } else { first })
        }

        async fn watermark(&self) -> Result<Option<Vec<u8>>, Error> {
            Ok(None)
        }

        async fn replace_watermark(
            &self,
            _expected: Option<&[u8]>,
            _value: &[u8],
        ) -> Result<Replaced, Error> {
            Ok(Replaced::Yes)
        }
    }

    async fn removed(asked: &Asked) -> Option<u64> {
        let pass = Pass::new(vec![Pattern::parse(b"list:*")]);
        let progress = pass.by_index(asked, || |_: &_| ()).await.unwrap();
        progress.map(|progress| progress.removed.iter().sum())
    }

    /// Before the names are asked for, all that are on their way have come; at the end it is asked
    /// again whether it was that server all the while.
    #[tokio::test]
    async fn a_fence_stands_before_the_names_and_behind_the_removals() {
        let asked = Asked::default();
        assert_eq!(removed(&asked).await, Some(1));
        let steps = asked.asked.take();
        assert_eq!(steps, ["fence", "list", "unlink", "list", "count", "fence"]);
    }

    /// The index need not know keys that came with a slot.
    #[tokio::test]
    async fn where_keys_came_meanwhile_the_pass_is_not_all() {
        assert_eq!(removed(&Asked { gets_keys: true, ..Asked::default() }).await, None);
    }
}
