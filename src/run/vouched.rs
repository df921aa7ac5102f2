//! How far each target's watermark may go where a witness has to vouch for what was received.
//!
//! One witness speaks for all: it is asked for the furthest that any target is safe, and what it
//! vouches for bounds each of them.

use std::mem::replace;

use futures_util::future::select_all;
use tokio::sync::watch;

use crate::lsn::Lsn;
use crate::run::task::{Task, spawn};

/// Who stands between the ledger and the targets.
pub(super) struct Vouching {
    /// The LSN that the witness is asked to vouch for.
    pub(super) asked: watch::Receiver<Lsn>,
    /// Where it says how far it vouches.
    pub(super) vouched: watch::Sender<Lsn>,
    /// The rest of it: tasks that hold the targets' channels open.
    pub(super) tasks: Vec<Task<()>>,
}

/// Puts a witness before the targets: each of `safe`, which tell how far the ledger lets it go, is
/// exchanged for one that goes no further than the witness vouches. Both begin at `start`. Needs a
/// [`LocalSet`](tokio::task::LocalSet) around it, where there are several targets.
pub(super) fn vouch(start: Lsn, safe: &mut [watch::Receiver<Lsn>]) -> Vouching {
    let (vouched, bound) = watch::channel(start);
    if let [only] = safe {
        return Vouching { asked: replace(only, bound), vouched, tasks: Vec::new() };
    }
    let (furthest, asked) = watch::channel(start);
    let mut tasks = vec![spawn(follow(safe.to_vec(), Lsn::max, furthest))];
    for one in safe {
        let (bounded, receiver) = watch::channel(start);
        let sources = vec![replace(one, receiver), bound.clone()];
        tasks.push(spawn(follow(sources, Lsn::min, bounded)));
    }
    Vouching { asked, vouched, tasks }
}

/// Tells what all `sources` together make, for as long as they tell something.
async fn follow(
    mut sources: Vec<watch::Receiver<Lsn>>,
    fold: fn(Lsn, Lsn) -> Lsn,
    told: watch::Sender<Lsn>,
) {
    loop {
        let now = sources.iter_mut().map(|source| *source.borrow_and_update()).reduce(fold);
        if let Some(now) = now {
            told.send_if_modified(|before| replace(before, now) != now);
        }
        let changes = sources.iter_mut().map(|source| Box::pin(source.changed()));
        if select_all(changes).await.0.is_err() {
            // The session is about to end, and says why.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tokio::task::{LocalSet, yield_now};

    use super::vouch;
    use crate::lsn::Lsn;

    /// The witness is asked for the furthest, and lets each go as far as it is safe itself.
    #[tokio::test]
    async fn one_witness_bounds_every_target() {
        LocalSet::new()
            .run_until(async {
                let (one, first) = watch::channel(Lsn(10));
                let (other, second) = watch::channel(Lsn(10));
                let mut safe = vec![first, second];
                let witness = vouch(Lsn(10), &mut safe);
                let told = async || {
                    for _ in 0..10 {
                        yield_now().await;
                    }
                    let asked = *witness.asked.borrow();
                    (asked.0, safe.iter().map(|safe| safe.borrow().0).collect::<Vec<_>>())
                };
                one.send_replace(Lsn(40));
                other.send_replace(Lsn(20));
                assert_eq!(told().await, (40, vec![10, 10]), "nobody vouches yet");
                witness.vouched.send_replace(Lsn(30));
                assert_eq!(told().await, (40, vec![30, 20]));
                witness.vouched.send_replace(Lsn(50));
                other.send_replace(Lsn(60));
                assert_eq!(told().await, (60, vec![40, 50]));
                drop(one);
                drop(other);
                assert_eq!(told().await, (60, vec![40, 50]), "what was told stands");
                assert!(safe.iter().all(|safe| safe.has_changed().is_ok()), "nobody is ended");
            })
            .await;
    }

    #[tokio::test]
    async fn of_one_target_nothing_is_asked_twice() {
        let (ledger, receiver) = watch::channel(Lsn(10));
        let mut safe = vec![receiver];
        let witness = vouch(Lsn(10), &mut safe);
        ledger.send_replace(Lsn(40));
        assert_eq!((witness.asked.borrow().0, safe[0].borrow().0), (40, 10));
        witness.vouched.send_replace(Lsn(40));
        assert_eq!(safe[0].borrow().0, 40);
        assert!(witness.tasks.is_empty());
    }
}
