//! A task that ends with whoever holds it, and the session that ends with its task.

use tokio::task::{JoinHandle, spawn_local};

use crate::run::error::Error;
use crate::run::shutdown::Shutdown;

/// A task of this thread; dropped, it is aborted.
pub(super) struct Task<T>(pub(super) JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts a task.
pub(super) fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    Task(spawn_local(future))
}

/// Runs the stages until they end, or what is beside them does. While a stop is under way, only the
/// stages end it: they have keys on their way to remove, and the next start finds what changed.
pub(super) async fn until_either_ends(
    mut stages: impl Future<Output = Result<(), Error>> + Unpin,
    beside: &mut Task<Error>,
    shutdown: &Shutdown,
) -> Result<(), Error> {
    tokio::select! {
        biased;
        outcome = &mut stages => outcome,
        ended = &mut beside.0 => match ended {
            _ if shutdown.is_requested() => stages.await,
            ended => Err(ended.unwrap_or(Error::Stage("watch"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, Shutdown, spawn, until_either_ends};

    #[tokio::test]
    async fn what_ends_beside_the_stages_ends_a_session_and_no_stop() {
        tokio::task::LocalSet::new()
            .run_until(async {
                for stops in [false, true] {
                    let (trigger, shutdown) = Shutdown::by_trigger();
                    let mut beside = spawn(async { Error::Stage("slot") });
                    let stages = Box::pin(async {
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                        Ok(())
                    });
                    if stops {
                        trigger.stop();
                    }
                    let ended = until_either_ends(stages, &mut beside, &shutdown).await;
                    assert_eq!(ended.is_ok(), stops, "{ended:?}");
                }
            })
            .await;
    }
}
