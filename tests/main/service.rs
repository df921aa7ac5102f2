//! Those who keep it running see what they need: systemd, a health check, a rollout.

use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

/// A socket as systemd has one for `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
    lines: Mutex<Vec<String>>,
}

impl Manager {
    fn new() -> Manager {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Manager { socket, folder, lines: Mutex::default() }
    }

    /// Settings of a sidecar that it starts, with a watchdog of three seconds.
    fn starts(&self, settings: Settings) -> Settings {
        let path = self.folder.path().join("notify").to_str().unwrap().to_owned();
        let env = [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "3000000".to_owned())];
        let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Settings { env, ..settings }
    }

    /// All that it was told so far.
    fn told(&self) -> Vec<String> {
        let (mut lines, mut buffer) = (self.lines.lock().unwrap(), [0; 4096]);
        while let Ok(count) = self.socket.recv(&mut buffer) {
            let text = str::from_utf8(&buffer[..count]).unwrap();
            lines.extend(text.lines().map(str::to_owned));
        }
        lines.clone()
    }

    async fn wait(&self, line: &str) {
        let is_told = || async { self.told().iter().any(|one| one.starts_with(line)) };
        eventually(PATIENCE, &format!("{line} of {:?}", self.told()), is_told).await;
    }

    fn count(&self, line: &str) -> usize {
        self.told().iter().filter(|one| *one == line).count()
    }
}

/// A start that systemd waits for ends with the first one that streams, and with a second one that
/// stands by: else nobody could start the new one before the old one ends.
#[tokio::test]
async fn systemd_is_told_of_the_start_of_what_is_done_and_of_the_stop() {
    let bed = Bed::new(&[]).await;
    let (one, two) = (Manager::new(), Manager::new());
    let mut first = Sidecar::set_up(one.starts(bed.settings())).await;
    one.wait("STATUS=ready").await;
    let mut second = Sidecar::new(two.starts(bed.settings()));
    second.start();
    two.wait("STATUS=standby: Postgres process ").await;
    for manager in [&one, &two] {
        manager.wait("READY=1").await;
        let signs = manager.count("WATCHDOG=1");
        let goes_on = || async { manager.count("WATCHDOG=1") >= signs + 2 };
        eventually(Duration::from_secs(6), "signs of life", goes_on).await;
        assert_eq!((manager.count("READY=1"), manager.count("STOPPING=1")), (1, 0));
    }
    assert_eq!(first.sigterm().await, 0);
    assert_eq!(one.count("STOPPING=1"), 1);
    two.wait("STATUS=ready").await;
    assert_eq!(second.sigterm().await, 0);
    assert_eq!((two.count("READY=1"), two.count("STOPPING=1")), (1, 1));
}

/// A service that is refused has not started, and systemd says so to whoever started it.
#[tokio::test]
async fn systemd_is_told_of_no_start_that_is_refused() {
    let bed = Bed::new(&[]).await;
    let manager = Manager::new();
    // No publication: every rule is suspended.
    let mut sidecar = Sidecar::new(manager.starts(bed.settings()));
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    assert_eq!(manager.count("READY=1"), 0, "{:?}", manager.told());
}

/// A server that is away may stay away: the start is over.
#[tokio::test]
async fn systemd_is_told_of_a_start_while_a_server_is_away() {
    let bed = Bed::new(&[]).await;
    let manager = Manager::new();
    let settings = manager.starts(bed.settings());
    let postgres_url = "postgres://postgres@127.0.0.1:1/postgres".to_owned();
    let mut sidecar = Sidecar::new(Settings { postgres_url, ..settings });
    sidecar.start();
    // Sooner than whoever starts it would wait at most.
    let is_told = || async { manager.count("READY=1") == 1 };
    eventually(Duration::from_secs(8), "the start is over", is_told).await;
    manager.wait("STATUS=connecting to postgres; ").await;
    // A rollout waits for one that has its server.
    assert_eq!(sidecar.get("/readyz?rollout").await.unwrap().0, 503);
    assert_eq!(sidecar.get("/healthz").await.unwrap().0, 200);
    assert_eq!(sidecar.sigterm().await, 0);
}

/// A container asks `status`, a rollout `/readyz?rollout`: both count one that stands by as well.
#[tokio::test]
async fn a_stand_in_is_well_and_blocks_no_rollout() {
    let bed = Bed::new(&[]).await;
    let first = bed.sidecar().await;
    let mut second = Sidecar::new(bed.settings());
    second.start();
    second.wait_log("standing by").await;
    let standby = "standby: Postgres process ";
    for (sidecar, plain, said) in [(&first, 200, "ready"), (&second, 503, standby)] {
        assert_eq!(sidecar.readyz().await, Some(plain));
        assert_eq!(sidecar.get("/readyz?rollout").await.unwrap().0, 200);
        assert_eq!(sidecar.get("/readyz?rollouts").await.unwrap().0, plain);
        let output = sidecar.command(&["status"]);
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).starts_with(said), "{}", text(&output));
    }
    second.kill9();
    let output = second.command(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("no walsweep answers there"), "{}", text(&output));
}
