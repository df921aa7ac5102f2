//! The wish to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Becomes true with the first SIGTERM or SIGINT.
#[derive(Clone, Debug)]
pub struct Shutdown {
    wish: watch::Receiver<bool>,
}

/// Lets a program of its own, such as a test or the demonstration, ask for the stop.
#[derive(Debug)]
pub struct Trigger {
    wish: watch::Sender<bool>,
}

impl Trigger {
    /// Asks for the stop.
    pub fn stop(&self) {
        self.wish.send_replace(true);
    }
}

impl Shutdown {
    /// A wish that somebody in this process makes.
    #[must_use]
    pub fn by_trigger() -> (Trigger, Shutdown) {
        let (sender, wish) = watch::channel(false);
        (Trigger { wish: sender }, Shutdown { wish })
    }

    /// Listens for SIGTERM and SIGINT; the first is logged with `said`. A second signal ends the
    /// process at once, with status 130: nothing is confirmed that is not done, so that loses
    /// nothing. SIGHUP, which would end it when a terminal is closed or an operator expects a
    /// reload, is answered in the log.
    ///
    /// # Errors
    ///
    /// When the signals cannot be listened for.
    pub fn by_signal(said: &'static str) -> std::io::Result<Shutdown> {
        let (trigger, shutdown) = Shutdown::by_trigger();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                tracing::warn!(
                    "SIGHUP changes nothing: the configuration is read at the start; restart to \
                     apply a new one"
                );
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
        *self.wish.borrow()
    }

    /// Waits for the wish.
    pub async fn requested(&mut self) {
        if self.wish.wait_for(|stop| *stop).await.is_err() {
            // Nobody is left who could ask.
            std::future::pending::<()>().await;
        }
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
