//! Keys of a large transaction that is over, before the stream tells of its end.
//!
//! The server sends a large transaction in blocks while it runs, and is often still busy with them
//! when readers see the commit already. Whether it is committed, and with which subtransactions,
//! can be asked; the keys that are known by then need not wait. Whatever goes early goes again with
//! the commit in the stream, which alone counts for what is confirmed (I2): so an answer that never
//! comes, or keys that are lost on the way, cost time and nothing else.

use super::snapshot::Seen;
use super::{Cause, Error, Gate, Gated, Probe, answer, send};
use crate::channel::{Sender, Weight};
use crate::keys::KeySet;
use crate::lsn::Lsn;

/// A transaction that may have ended while it is still being sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The top-level transaction's id, 32 bit.
    pub xid: u32,
    /// Subtransactions of it, 32 bit.
    pub subxids: Vec<u32>,
}

/// A transaction that is committed and seen by new snapshots. Only the gate makes one (I1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    xid: u32,
    subxids: Vec<u32>,
}

/// An input to the gate about transactions that are still being sent.
#[derive(Debug)]
pub struct Early(Kind);

#[derive(Debug)]
enum Kind {
    /// Whether these have ended.
    Questions(Vec<Question>),
    /// Keys of one that is committed and visible.
    Keys { xid: u32, keys: Box<KeySet> },
}

impl Ended {
    /// The top-level transaction's id, 32 bit.
    #[must_use]
    pub fn xid(&self) -> u32 {
        self.xid
    }

    /// Those of its subtransactions that were asked about and are committed with it, 32 bit.
    #[must_use]
    pub fn subxids(&self) -> &[u32] {
        &self.subxids
    }

    /// Keys of this transaction and these subtransactions, to be removed now.
    #[must_use]
    pub fn with_keys(self, keys: KeySet) -> Early {
        Early(Kind::Keys { xid: self.xid, keys: Box::new(keys) })
    }
}

impl Early {
    /// Asks which of these transactions have ended. The gate tells each that has, where it answers.
    #[must_use]
    pub fn ask(questions: Vec<Question>) -> Early {
        Early(Kind::Questions(questions))
    }

    /// Gives the keys that it brings.
    pub(super) fn keys(&mut self) -> Option<&mut KeySet> {
        match &mut self.0 {
            Kind::Questions(_) => None,
            Kind::Keys { keys, .. } => Some(keys),
        }
    }

    /// The memory that the keys hold, bytes.
    pub(super) fn bytes(&self) -> usize {
        match &self.0 {
            Kind::Questions(_) => 0,
            Kind::Keys { keys, .. } => keys.bytes(),
        }
    }
}

impl<P: Probe + 'static> Gate<P> {
    /// Answers questions, and passes on keys: they are known to be visible.
    pub(super) async fn take_early<T: From<Gated> + Weight>(
        &mut self,
        Early(kind): Early,
        outputs: &Sender<T>,
    ) -> Result<(), Error> {
        match kind {
            Kind::Questions(questions) => self.take_questions(questions, outputs).await,
            Kind::Keys { xid, keys } => {
                send(outputs, Gated::new(Cause::Early(xid), *keys, Lsn::ZERO).into()).await;
                Ok(())
            }
        }
    }

    /// Takes a snapshot, and tells which of these transactions it sees as committed.
    async fn take_questions<T: From<Gated> + Weight>(
        &mut self,
        questions: Vec<Question>,
        outputs: &Sender<T>,
    ) -> Result<(), Error> {
        self.look(outputs).await?;
        let Some(snapshot) = self.latest.as_ref().map(Seen::snapshot) else { return Ok(()) };
        for Question { xid, subxids } in questions {
            if !snapshot.sees(xid) {
                continue;
            }
            let all = std::iter::once(xid).chain(subxids.iter().copied());
            let wide: Option<Vec<u64>> = all.map(|xid| snapshot.widen(xid)).collect();
            let Some(wide) = wide else { continue };
            // An aborted one is not running either.
            let committed = answer(self.probe.committed(&wide)).await?;
            let Some((true, of_subxids)) = committed.split_first().map(|(one, rest)| (*one, rest))
            else {
                continue;
            };
            let subxids = subxids.into_iter().zip(of_subxids).filter(|(_, committed)| **committed);
            let ended = Ended { xid, subxids: subxids.map(|(subxid, _)| subxid).collect() };
            if let Some(answers) = &self.answers {
                // Where there is no room the question comes again.
                drop(answers.try_send(ended));
            }
        }
        Ok(())
    }
}
