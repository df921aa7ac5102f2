//! Tells systemd that the start is over, what is being done, and that there is progress.
//!
//! That is `sd_notify(3)`: lines in a datagram to the socket that `NOTIFY_SOCKET` names. The crate
//! `sd-notify` sends through a socket that blocks. One thread does everything here, and a systemd
//! that is slow to read must not hold up a removal: so what cannot be sent at once is dropped, and
//! the next look, a second later, tells it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Health;

/// Pause between two looks at what there is to tell, once the start is over.
const PAUSE: Duration = Duration::from_secs(1);

/// Pause between two looks before that: whoever starts the service waits for it.
const PAUSE_AT_START: Duration = Duration::from_millis(50);

/// Whoever starts the service waits at most so long. A new slot may take hours to be made, and a
/// server that does not answer may stay away: that is no start that failed.
const START_MAX: Duration = Duration::from_secs(10);

/// Signs of life in the time that systemd allows between two of them.
const SIGNS: u32 = 3;

/// The longest status, characters: it is a line of `systemctl status`.
const STATUS_MAX: usize = 300;

/// systemd, as far as it started this process and wants to be told.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    /// How long it lets pass without a sign of life.
    watchdog: Option<Duration>,
}

impl Manager {
    /// Finds it by the variables `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`, which `env`
    /// looks up. Gives `None` where nobody wants to be told.
    ///
    /// # Errors
    ///
    /// There is no socket of that name.
    pub fn find(env: impl Fn(&str) -> Option<String>) -> io::Result<Option<Manager>> {
        let Some(name) = env("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect_addr(&address(&name)?)?;
        let is_meant = env("WATCHDOG_PID").is_none_or(|pid| pid == process::id().to_string());
        let micros = env("WATCHDOG_USEC").and_then(|text| text.parse().ok());
        let watchdog = micros.filter(|micros| is_meant && *micros > 0).map(Duration::from_micros);
        Ok(Some(Manager { socket, watchdog }))
    }

    /// Tells what `health` says until it is dropped, and when `stopping` ends that the process
    /// stops.
    pub async fn tell(self, health: Arc<Health>, stopping: impl Future<Output = ()>) {
        let mut stopping = std::pin::pin!(stopping);
        let (mut told, start) = (Told::default(), Instant::now());
        loop {
            let now = Now {
                is_ready: health.has_begun() || start.elapsed() >= START_MAX,
                is_stopping: told.now.is_stopping,
                status: health.summary().chars().take(STATUS_MAX).collect(),
            };
            told.tell(&self, now, || health.liveness().0);
            let pause = if told.now.is_ready { PAUSE } else { PAUSE_AT_START };
            let pause = self.watchdog.map_or(pause, |watchdog| pause.min(watchdog / SIGNS));
            if told.now.is_stopping {
                sleep(pause).await;
                continue;
            }
            tokio::select! {
                biased;
                () = &mut stopping => {
                    let now = Now { is_stopping: true, ..told.now.clone() };
                    told.tell(&self, now, || false);
                }
                () = sleep(pause) => {}
            }
        }
    }
}

/// The address of a socket: a path, or behind `@` a name without a file.
fn address(name: &str) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = name.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt;
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(OsStr::new(name))
}

/// A state of the process, as systemd sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Now {
    is_ready: bool,
    is_stopping: bool,
    status: String,
}

/// Keeps in mind what was told.
#[derive(Debug, Default)]
struct Told {
    now: Now,
    alive_at: Option<Instant>,
}

impl Told {
    /// Tells what is new, and where it `is_alive` that, if it is time.
    fn tell(&mut self, manager: &Manager, now: Now, is_alive: impl Fn() -> bool) {
        let mut lines = Vec::new();
        if now.is_ready && !self.now.is_ready {
            lines.push("READY=1".to_owned());
        }
        if now.is_stopping && !self.now.is_stopping {
            lines.push("STOPPING=1".to_owned());
        }
        if now.status != self.now.status {
            lines.push(format!("STATUS={}", now.status));
        }
        let is_due = manager.watchdog.is_some_and(|watchdog| {
            self.alive_at.is_none_or(|at| at.elapsed() + PAUSE_AT_START >= watchdog / SIGNS)
        });
        let is_sign = is_due && is_alive();
        if is_sign {
            lines.push("WATCHDOG=1".to_owned());
        }
        if lines.is_empty() || manager.socket.send(lines.join("\n").as_bytes()).is_err() {
            return;
        }
        self.now = now;
        if is_sign {
            self.alive_at = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::Arc;
    use std::time::Duration;

    use tempfile::TempDir;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;
    use tokio::time::{advance, sleep};

    use super::{Manager, START_MAX};
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::{Health, Phase, Topic};

    /// A socket as systemd has one, and who tells it something.
    struct Listener {
        socket: UnixDatagram,
        health: Arc<Health>,
        stop: Option<oneshot::Sender<()>>,
        task: JoinHandle<()>,
        _folder: TempDir,
    }

    impl Listener {
        fn start(watchdog: Option<Duration>) -> Listener {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("notify");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            let env = |name: &str| match name {
                "NOTIFY_SOCKET" => path.to_str().map(str::to_owned),
                "WATCHDOG_USEC" => watchdog.map(|watchdog| watchdog.as_micros().to_string()),
                _ => None,
            };
            let manager = Manager::find(env).unwrap().unwrap();
            let health = Arc::new(Health::new(Arc::new(Metrics::new(&[]))));
            let (stop, stopped) = oneshot::channel();
            let task = tokio::spawn(manager.tell(Arc::clone(&health), async {
                stopped.await.unwrap();
            }));
            Listener { socket, health, stop: Some(stop), task, _folder: folder }
        }

        /// All lines that came, after `seconds` more.
        async fn lines(&self, seconds: f64) -> Vec<String> {
            sleep(Duration::from_secs_f64(seconds)).await;
            let (mut lines, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(count) = self.socket.recv(&mut buffer) {
                let text = str::from_utf8(&buffer[..count]).unwrap();
                lines.extend(text.lines().map(str::to_owned));
            }
            lines
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_start_is_over_when_the_first_session_is_decided_and_a_stand_in_has_started() {
        for (phase, status) in [
            (Phase::Streaming, "ready"),
            (Phase::Sweeping("watermark_missing"), "sweeping: watermark_missing"),
            (Phase::Connecting, "connecting to postgres; nobody is there"),
            (Phase::Standby, "standby: Postgres process 7 has the slot"),
        ] {
            let listener = Listener::start(None);
            assert_eq!(listener.lines(1.0).await, ["STATUS=connecting to postgres"]);
            match phase {
                Phase::Standby => listener.health.stands_by("Postgres process 7".to_owned()),
                Phase::Connecting => {
                    listener.health.set(phase);
                    listener.health.trouble(Topic::Session, "nobody is there", Some("start it"));
                }
                phase => listener.health.set(phase),
            }
            assert_eq!(
                listener.lines(0.1).await,
                ["READY=1".to_owned(), format!("STATUS={status}")],
                "{phase:?}"
            );
            assert_eq!(listener.lines(9.0).await, [""; 0], "once");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_starts_it_does_not_wait_for_a_server_that_is_silent() {
        let listener = Listener::start(None);
        let seconds = START_MAX.as_secs_f64();
        assert_eq!(listener.lines(seconds - 0.1).await, ["STATUS=connecting to postgres"]);
        assert_eq!(listener.lines(0.2).await, ["READY=1"]);
    }

    /// The watchdog bites where `/healthz` is 503, and only there.
    #[tokio::test(start_paused = true)]
    async fn signs_of_life_are_those_of_the_sessions() {
        let listener = Listener::start(Some(Duration::from_secs(30)));
        listener.health.set(Phase::Streaming);
        listener.lines(1.0).await;
        let mut counts = Vec::new();
        for minute in 0..4 {
            for _ in 0..60 {
                if minute < 2 {
                    listener.health.beat();
                }
                sleep(Duration::from_secs(1)).await;
            }
            let lines = listener.lines(0.0).await;
            assert!(lines.iter().all(|line| line == "WATCHDOG=1"), "{lines:?}");
            counts.push(lines.len());
        }
        assert!((5..=6).contains(&counts[0]) && (5..=6).contains(&counts[1]), "{counts:?}");
        assert!(counts[2] >= 5, "`/healthz` is 200 for a minute: {counts:?}");
        assert_eq!(counts[3], 0, "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_is_told_once() {
        let mut listener = Listener::start(None);
        listener.health.set(Phase::Streaming);
        assert_eq!(listener.lines(1.0).await, ["READY=1", "STATUS=ready"]);
        listener.stop.take().unwrap().send(()).unwrap();
        listener.health.set(Phase::Stopping);
        let mut lines = listener.lines(5.0).await;
        lines.sort();
        assert_eq!(lines, ["STATUS=stopping", "STOPPING=1"]);
    }

    /// One thread does everything: it may not wait for systemd.
    #[tokio::test(start_paused = true)]
    async fn a_systemd_that_does_not_read_holds_up_nothing_and_is_told_later() {
        let listener = Listener::start(Some(Duration::from_secs(3)));
        for _ in 0..20_000 {
            listener.health.beat();
            advance(Duration::from_secs(1)).await;
        }
        listener.health.set(Phase::Streaming);
        assert!(!listener.task.is_finished());
        listener.lines(5.0).await;
        let lines = listener.lines(5.0).await;
        assert!(lines.contains(&"WATCHDOG=1".to_owned()), "{lines:?}");
    }

    #[test]
    fn nobody_is_told_where_nobody_asked() {
        assert!(Manager::find(|_| None).unwrap().is_none());
        let gone = |name: &str| (name == "NOTIFY_SOCKET").then(|| "/nonexistent/notify".to_owned());
        assert!(Manager::find(gone).is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_socket_may_have_a_name_without_a_file_and_a_watchdog_may_be_another_process_s() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::SocketAddr;

        let name = format!("walsweep-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _socket = UnixDatagram::bind_addr(&address).unwrap();
        let own = std::process::id().to_string();
        for (pid, is_watched) in [(own.as_str(), true), ("1", false)] {
            let env = |variable: &str| match variable {
                "NOTIFY_SOCKET" => Some(format!("@{name}")),
                "WATCHDOG_USEC" => Some("3000000".to_owned()),
                "WATCHDOG_PID" => Some(pid.to_owned()),
                _ => None,
            };
            let manager = Manager::find(env).unwrap().unwrap();
            assert_eq!(manager.watchdog.is_some(), is_watched, "{pid}");
        }
    }
}
