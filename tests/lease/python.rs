//! Readers in a Python process of their own, with the client of the documentation.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use walsweep_stage::throwaway::{Reaper, Signal, signal};

use crate::support::{PATIENCE, eventually};

/// Who reads, and how.
pub(crate) struct Readers {
    child: Child,
    reaper: Option<Reaper>,
    orders: ChildStdin,
    said: Arc<Mutex<Vec<String>>>,
    count: usize,
    _folder: tempfile::TempDir,
}

/// One reader's number.
pub(crate) type Id = usize;

impl Readers {
    /// A process that reads from the Redis at `url`; replies are decoded to text, or stay bytes;
    /// who waits for another reader longer than `patience` seconds computes by itself.
    pub(crate) fn start(url: &str, decoded: bool, patience: f64) -> Readers {
        let root = env!("CARGO_MANIFEST_DIR");
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(interpreter())
            .arg(format!("{root}/tests/lease/reader.py"))
            .arg(format!("{root}/docs/lease"))
            .arg(url)
            .arg(if decoded { "text" } else { "bytes" })
            .arg(patience.to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let reaper = Reaper::new(child.id(), Signal::Kill, &[folder.path()]).unwrap();
        let orders = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let said = Arc::<Mutex<Vec<String>>>::default();
        let lines = Arc::clone(&said);
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Readers { child, reaper: Some(reaper), orders, said, count: 0, _folder: folder }
    }

    fn order(&mut self, line: &str) {
        writeln!(self.orders, "{line}").unwrap();
    }

    /// Lets a new reader read `key`: `how` is `lease`, or `plain` for get and set.
    pub(crate) fn read(&mut self, how: &str, key: &str) -> Id {
        self.count += 1;
        let id = self.count;
        self.order(&format!("{how} {id} {key}"));
        id
    }

    /// Ends a computation with this value.
    pub(crate) fn answer(&mut self, id: Id, value: &str) {
        self.order(&format!("value {id} {value}"));
    }

    /// Ends a computation with an exception.
    pub(crate) fn fail(&mut self, id: Id) {
        self.order(&format!("fail {id}"));
    }

    /// Waits until a reader has missed, and asks the database.
    pub(crate) async fn computes(&self, id: Id) {
        self.says(&format!("compute {id}")).await;
    }

    /// Waits until a reader has its value.
    pub(crate) async fn done(&self, id: Id, value: &str) {
        self.says(&format!("done {id} {value}")).await;
    }

    /// Waits for this line.
    pub(crate) async fn says(&self, line: &str) {
        let said = || async { self.said.lock().unwrap().iter().any(|one| one == line) };
        eventually(PATIENCE, &format!("a reader says `{line}`"), said).await;
    }

    /// The readers that have computed, or compute now.
    pub(crate) fn computing(&self) -> Vec<Id> {
        let said = self.said.lock().unwrap();
        let ids = said.iter().filter_map(|line| line.strip_prefix("compute ")?.parse().ok());
        ids.collect()
    }

    /// Freezes the process, or lets it go on.
    pub(crate) fn signal(&self, kind: Signal) {
        signal(&[self.child.id()], kind).unwrap();
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        drop(self.reaper.take());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A Python that has redis-py. The one in `$PATH` may be another than Debian's.
fn interpreter() -> String {
    let named = std::env::var("WALSWEEP_PYTHON").ok();
    let usual = ["/usr/bin/python3", "python3"].map(str::to_owned);
    let mut all = named.into_iter().chain(usual);
    let works = |python: &String| {
        let mut command = Command::new(python);
        command.args(["-c", "import redis; redis.Redis.fcall"]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    all.find(works).expect("no Python has redis-py 4.2 or newer: `make install-deps`")
}
