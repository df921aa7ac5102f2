//! The wish to stop, and the wish that one session ends and the next begins.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// How a session ends that another one follows at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// Soon: what is not removed and confirmed comes again, and the next session removes it.
    Soon,
    /// Once everything that is received by now is confirmed, or so long after: of some of its keys
    /// the next session knows nothing. The stream goes on meanwhile.
    Confirmed(Duration),
}

/// Whether a stop is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    No,
    Stop,
    /// Another walsweep waits for the slot, and goes on.
    StopForHeir,
}

/// Becomes true with the first SIGTERM or SIGINT.
#[derive(Clone, Debug)]
pub struct Shutdown {
    wish: watch::Receiver<Wish>,
    handover: watch::Receiver<Option<Farewell>>,
}

/// Lets a program of its own, such as a test or the demonstration, ask for the stop.
#[derive(Debug)]
pub struct Trigger {
    wish: watch::Sender<Wish>,
}

impl Trigger {
    /// Asks for the stop.
    pub fn stop(&self) {
        self.wish.send_replace(Wish::Stop);
    }

    /// Asks for the stop, after which another walsweep goes on that waits for the slot.
    pub fn stop_for_heir(&self) {
        self.wish.send_replace(Wish::StopForHeir);
    }
}

impl Shutdown {
    /// A wish that somebody in this process makes.
    #[must_use]
    pub fn by_trigger() -> (Trigger, Shutdown) {
        let (sender, wish) = watch::channel(Wish::No);
        let (_nobody, handover) = watch::channel(None);
        (Trigger { wish: sender }, Shutdown { wish, handover })
    }

    /// Gives the same wish to stop; sessions end also when `handover` says so.
    #[must_use]
    pub fn with_handover(self, handover: watch::Receiver<Option<Farewell>>) -> Shutdown {
        Shutdown { handover, ..self }
    }

    /// Listens for SIGTERM and SIGINT; the first is logged with `said`. A second signal ends the
    /// process at once, with status 130: nothing is confirmed that is not done, so that loses
    /// nothing. SIGHUP, which would end it when a terminal is closed, comes to `hangup`.
    ///
    /// # Errors
    ///
    /// When the signals cannot be listened for.
    pub fn by_signal(
        said: &'static str,
        mut hangup: impl FnMut() + Send + 'static,
    ) -> std::io::Result<Shutdown> {
        let (trigger, shutdown) = Shutdown::by_trigger();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangups = signal(SignalKind::hangup())?;
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                hangup();
            }
        });
        tokio::spawn(async move {
            either(&mut terminate, &mut interrupt).await;
            tracing::info!("{said}");
            trigger.stop();
            either(&mut terminate, &mut interrupt).await;
            std::process::exit(130);
        });
        Ok(shutdown)
    }

    /// Whether somebody has asked for the stop.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.wish.borrow() != Wish::No
    }

    /// Whether another walsweep goes on after the stop that was asked for.
    #[must_use]
    pub fn has_heir(&self) -> bool {
        *self.wish.borrow() == Wish::StopForHeir
    }

    /// Waits for the wish.
    pub async fn requested(&mut self) {
        if self.wish.wait_for(|wish| *wish != Wish::No).await.is_err() {
            // Nobody is left who could ask.
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the wish that the session ends and another one begins; says how.
    pub async fn handed_over(&mut self) -> Farewell {
        if let Ok(wish) = self.handover.wait_for(Option::is_some).await
            && let Some(farewell) = *wish
        {
            return farewell;
        }
        // Nobody is left who could ask.
        std::future::pending().await
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
