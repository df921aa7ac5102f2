//! The witness, with a standby that says what the test wants.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use super::{IDLE_PAUSE, Witness};
use crate::lsn::Lsn;
use crate::settle::{Answer, Standby, StandbyError};
use crate::source::Error;

/// Answers with what was set last; `None` is a promotion.
struct Script(watch::Receiver<Option<Answer>>);

impl Standby for Script {
    fn name(&self) -> &'static str {
        "script"
    }

    async fn connect(&mut self) -> Result<(), StandbyError> {
        Ok(())
    }

    async fn replayed(&mut self) -> Result<Answer, StandbyError> {
        self.0.borrow().clone().ok_or(StandbyError::NotAStandby)
    }
}

fn answer(replayed: u64, run: &str) -> Option<Answer> {
    Some(Answer { replayed: Lsn(replayed), run: run.to_owned() })
}

/// I7: no more is vouched for than was received and than the standby has replayed; nothing once it
/// is promoted or another one.
#[tokio::test(start_paused = true)]
async fn no_more_is_safe_than_the_standby_says_of_the_primarys_history() {
    for last in [None, answer(900, "other")] {
        let (script, said) = watch::channel(answer(150, "run"));
        let (received, wanted) = watch::channel(Lsn(100));
        let (safe, mut vouched) = watch::channel(Lsn(100));
        let witness = Witness { standby: Script(said), run: "run".to_owned() };
        let local = LocalSet::new();
        let ended = local.spawn_local(witness.run(wanted, Rc::new(safe)));
        let rest = local.run_until(async {
            let mut vouches_at = async |lsn: u64| {
                timeout(IDLE_PAUSE * 2, vouched.wait_for(|safe| *safe == Lsn(lsn))).await.is_ok()
            };
            received.send(Lsn(120)).unwrap();
            assert!(vouches_at(120).await);
            received.send(Lsn(200)).unwrap();
            assert!(vouches_at(150).await, "as far as it has replayed");
            assert!(!vouches_at(200).await);
            script.send(answer(900, "run")).unwrap();
            assert!(vouches_at(200).await);
            // It never goes back.
            script.send(answer(50, "run")).unwrap();
            received.send(Lsn(250)).unwrap();
            sleep(Duration::from_secs(3)).await;
            script.send(last.clone()).unwrap();
            ended.await.unwrap()
        });
        let error = rest.await;
        assert_eq!(*vouched.borrow(), Lsn(200));
        match last {
            None => assert!(matches!(error, Error::SlotStandby(StandbyError::NotAStandby))),
            Some(_) => assert!(matches!(error, Error::ManyStandbys), "{error}"),
        }
    }
}
