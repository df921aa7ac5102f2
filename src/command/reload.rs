//! `walsweep reload`.

use std::fs::read_link;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::failure::{Failure, halted, print};
use super::listener::page;
use super::load::of_running;
use super::status;
use crate::telemetry::reloads::{Outcome, Process, Told, prints_at_start};

/// How often the process is asked whether the reload has ended.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a reload may take: a server that is slow to answer is waited for, and keys on their way
/// are.
const PATIENCE: Duration = Duration::from_secs(120);

/// `walsweep reload`: lets the running process read its configuration again, and says what came of
/// it. The process is the one that answers at `[http] listen`, or the one of this id.
///
/// # Errors
///
/// 78 for an invalid configuration; 1 where it is refused for another reason, no process is found,
/// or what came of it cannot be known.
pub async fn reload(path: &Path, pid: Option<u32>) -> Result<(), Failure> {
    let setting = of_running(path)?;
    let (config, at_start) = (setting.config, prints_at_start(&setting.text));
    let Some(address) = config.http.listen else { return unheard(pid) };
    let Some(before) = ask(address).await else {
        return Err(page(address, "/healthz").await.failure(address));
    };
    let process = before.process;
    if Process::of(process.pid) != process || pid.is_some_and(|pid| pid != process.pid) {
        return Err(out_of_reach(address, process.pid));
    }
    is_walsweep(address, process.pid)?;
    send(process.pid)?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        // One that began before may have read another file.
        let told = ask(address).await.filter(|told| told.process == process);
        if let Some(told) = told.filter(|told| told.ended > before.begun) {
            let is_of_file = told.at_start.as_ref().is_none_or(|one| *one == at_start);
            return if is_of_file { outcome(&told) } else { of_another_file(address, &told) };
        }
        if Process::of(process.pid) != process {
            return Err(halted("walsweep ended before the reload did; its log says why"));
        }
        sleep(ASK_INTERVAL).await;
    }
    let seconds = PATIENCE.as_secs();
    Err(halted(format!("the reload has not ended after {seconds} s; the log says what of it")))
}

/// Nobody can be asked what came of it.
fn unheard(pid: Option<u32>) -> Result<(), Failure> {
    let Some(pid) = pid else {
        let message = "`http.listen` is \"\", so that the process cannot be found";
        let hint = "name it with `--pid`, or send it SIGHUP; its log says what comes of it";
        return Err(Failure::halted(message.to_owned()).with_hint(Some(hint)));
    };
    send(pid)?;
    print("walsweep was told; `http.listen` is \"\", so that its log alone says what comes of it\n")
}

/// Gives what the process that answers at `address` tells of its reloads.
pub(super) async fn ask(address: SocketAddr) -> Option<Told> {
    let page = page(address, "/reload").await;
    let (_is_well, body) = status::body(page.text())?;
    serde_json::from_str(body).ok()
}

fn out_of_reach(address: SocketAddr, pid: u32) -> Failure {
    let message = format!(
        "the walsweep that answers at `{address}` calls itself process {pid}, and is none that can \
         be reached from here"
    );
    let hint = "in a container, run `walsweep reload` there: `docker exec NAME walsweep reload`, \
                `kubectl exec POD -- walsweep reload`; or send it SIGHUP: `docker kill --signal \
                HUP NAME`";
    Failure::halted(message).with_hint(Some(hint))
}

/// Whoever has the port while walsweep is down may name any process, and a signal ends most
/// programs: so none is sent to another program. One that may not be looked at may not be sent a
/// signal, either.
fn is_walsweep(address: SocketAddr, pid: u32) -> Result<(), Failure> {
    let program = |of: &str| read_link(format!("/proc/{of}/exe")).ok();
    let Some(theirs) = program(&pid.to_string()) else { return Ok(()) };
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // One that was replaced by a newer version is `walsweep (deleted)`, or moved to another name.
    let is_same = program("self").is_some_and(|own| name(&theirs).starts_with(&name(&own)));
    if is_same || name(&theirs).starts_with("walsweep") {
        return Ok(());
    }
    let program = theirs.display();
    let message = format!(
        "who answers at `{address}` calls itself process {pid}, which is no walsweep but \
         `{program}`: it is told nothing"
    );
    let hint = "see who listens there: `ss -ltnp`";
    Err(Failure::halted(message).with_hint(Some(hint)))
}

fn send(pid: u32) -> Result<(), Failure> {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let sent = process.ok_or(Errno::SRCH).and_then(|pid| kill_process(pid, Signal::HUP));
    sent.map_err(|error| {
        let hint = match error {
            Errno::PERM => Some(
                "do it as the user that walsweep runs as, or as root; of a unit of \
                                 systemd with `systemctl reload walsweep`",
            ),
            _ => None,
        };
        Failure::halted(format!("send SIGHUP to process {pid}: {error}")).with_hint(hint)
    })
}

/// Says what came of it where the process began with other options than the file has. It refuses
/// the file for that; if it does not, it has read another one.
fn of_another_file(address: SocketAddr, told: &Told) -> Result<(), Failure> {
    if told.outcome == Some(Outcome::Refused) {
        return outcome(told);
    }
    let message = format!(
        "the walsweep that answers at `{address}` runs with another file than this, which it has \
         read again: this one is not taken over by anybody"
    );
    let hint = "let `http.listen` be the address of the walsweep that you mean; if it is to \
                change, restart that walsweep";
    Err(Failure::halted(message).with_hint(Some(hint)))
}

/// Says what came of it.
fn outcome(told: &Told) -> Result<(), Failure> {
    let lines = told.lines.join("\n");
    match told.outcome {
        Some(Outcome::Applied) => print(&format!("the new configuration is in force:\n{lines}\n")),
        Some(Outcome::Unchanged) => print(&format!("{lines}\n")),
        Some(Outcome::Refused) | None => {
            let status = if told.is_invalid { 78 } else { 1 };
            let end = "the new configuration is refused; the old one stays in force";
            Err(Failure::halted(format!("{lines}\n{end}")).with_status(status))
        }
    }
}
