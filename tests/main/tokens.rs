//! Passwords that end: tokens that a command prints, and files that are rotated.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::RngExt;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::{Bed, Load, PATIENCE, Settings, Sidecar, eventually, text};

/// The beginning of every token.
const TOKEN: &str = "s3cret";

/// The role, and the user of Redis, that tokens are for.
const USER: &str = "app";

/// Ends what walsweep has open.
const TERMINATE: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                          where application_name like 'walsweep%'";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// How a token comes to walsweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Command,
    File,
}

/// Two servers that let one user in by tokens alone, and whoever gives them out.
struct Service {
    bed: Bed,
    folder: TempDir,
}

impl Service {
    async fn start() -> Service {
        let bed = Bed::new(&[]).await;
        bed.sql.run(&format!("create role {USER} login superuser")).await;
        let rules = bed.postgres.data_dir().join("pg_hba.conf");
        let trusting = fs::read_to_string(&rules).unwrap();
        let guarded = ["all", "replication"]
            .map(|database| format!("host {database} {USER} 127.0.0.1/32 scram-sha-256\n"));
        fs::write(&rules, guarded.concat() + &trusting).unwrap();
        bed.sql.run("select pg_reload_conf()").await;
        admin(&bed.cache, &["ACL", "SETUSER", USER, "on", "~*", "&*", "+@all"]).await;
        Service { bed, folder: TempDir::new().unwrap() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a script that notes each run of it in `NAME.runs`. Gives the option that names it.
    fn command(&self, name: &str, script: &str) -> String {
        let (file, runs) = (self.file(&format!("{name}.sh")), self.runs_file(name));
        fs::write(&file, format!("echo run >>{}\n{script}\n", runs.display())).unwrap();
        format!("password_command = [\"sh\", {file:?}]")
    }

    /// The option of a command that prints what stands in the file of that name.
    fn printing(&self, name: &str) -> String {
        self.command(name, &format!("cat {}", self.file(name).display()))
    }

    fn runs_file(&self, name: &str) -> PathBuf {
        self.file(&format!("{name}.runs"))
    }

    fn runs(&self, name: &str) -> usize {
        fs::read_to_string(self.runs_file(name)).unwrap_or_default().lines().count()
    }

    fn settings(&self, by: By) -> Settings {
        let mut settings = self.bed.settings();
        settings.postgres_url = settings.postgres_url.replace("postgres@", &format!("{USER}@"));
        settings.redis_url = settings.redis_url.replace("redis://", &format!("redis://{USER}@"));
        let option = |name: &str| match by {
            By::Command => self.printing(name),
            By::File => format!("password_file = {:?}", self.file(name)),
        };
        (settings.postgres, settings.redis) = (option("postgres"), option("redis"));
        settings
    }

    /// Gives out a new token for Postgres and for Redis, which hold for so long and are the only
    /// ones. With `is_late` the servers know them before whoever asks for them.
    async fn rotate(&self, lasting: Duration, is_late: bool) {
        let random: u64 = rand::rng().random();
        let token = format!("{TOKEN}-{random}");
        if !is_late {
            self.tell(&token);
        }
        let seconds = lasting.as_secs_f64();
        self.bed
            .sql
            .run(&format!(
                "do $$ begin execute format('alter role {USER} password ''{token}'' valid until %L',
                     clock_timestamp() + interval '{seconds} seconds'); end $$"
            ))
            .await;
        let new = format!(">{token}");
        admin(&self.bed.cache, &["ACL", "SETUSER", USER, "resetpass", &new]).await;
        if is_late {
            sleep(Duration::from_millis(100)).await;
            self.tell(&token);
        }
    }

    /// Replaces the files as a rotation does, in one step.
    fn tell(&self, token: &str) {
        for name in ["postgres", "redis"] {
            let new = self.file(&format!("{name}.new"));
            fs::write(&new, format!("{token}\n")).unwrap();
            fs::rename(new, self.file(name)).unwrap();
        }
    }

    /// Ends every connection of walsweep to Redis, or to Postgres.
    async fn cut(&self, is_redis: bool) {
        match is_redis {
            true => admin(&self.bed.cache, &["CLIENT", "KILL", "USER", USER]).await,
            false => self.bed.sql.run(TERMINATE).await,
        }
    }

    /// Cuts until it is noticed: on a slow machine there may be no connection when it is cut.
    async fn cut_and_wait(&self, is_redis: bool, sidecar: &Sidecar) {
        let before = reconnects(sidecar, is_redis).await;
        eventually(PATIENCE * 3, "a cut is noticed", async || {
            self.cut(is_redis).await;
            sleep(Duration::from_millis(500)).await;
            reconnects(sidecar, is_redis).await > before
        })
        .await;
    }
}

/// How often a connection was lost.
async fn reconnects(sidecar: &Sidecar, is_redis: bool) -> f64 {
    let peer = if is_redis { "redis" } else { "postgres" };
    sidecar.metric(&format!("walsweep_reconnects_total{{peer=\"{peer}\"}}")).await
}

async fn admin(cache: &MultiplexedConnection, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.exec_async(&mut cache.clone()).await.unwrap();
}

/// With fewer probes nothing is shown.
const PROBES: usize = 100;

/// Commits of one row, one after the other, and how long each key was there after its commit.
struct Probe {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    task: JoinHandle<Vec<Duration>>,
}

impl Probe {
    async fn start(bed: &Bed) -> Probe {
        bed.sql.run("insert into item values (1000, 'probe', 0)").await;
        let stop = Arc::new(AtomicBool::new(false));
        let (mut cache, sql) = (bed.cache.clone(), bed.postgres.connect().await.unwrap());
        let count = Arc::new(AtomicUsize::new(0));
        let (is_over, counter) = (Arc::clone(&stop), Arc::clone(&count));
        let task = tokio::spawn(async move {
            let mut took = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let () = cache.set("item:1000", "cached").await.unwrap();
                let update = "update item set version = version + 1 where id = 1000";
                sql.execute(update, &[]).await.unwrap();
                let committed = Instant::now();
                while cache.exists("item:1000").await.unwrap() {
                    assert!(committed.elapsed() < PATIENCE * 2, "a key stays");
                    sleep(Duration::from_millis(1)).await;
                }
                took.push(committed.elapsed());
                counter.store(took.len(), Ordering::Relaxed);
                sleep(Duration::from_millis(5)).await;
            }
            took
        });
        Probe { stop, count, task }
    }

    /// All the times, in order of length.
    async fn end(self) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut took = self.task.await.unwrap();
        took.sort_unstable();
        took
    }
}

/// Fails if a token is told anywhere.
async fn assert_told_nowhere(sidecar: &Sidecar) {
    let mut said = sidecar.log().join("\n");
    for page in ["/metrics", "/readyz", "/"] {
        said.push_str(&sidecar.get(page).await.unwrap().1);
    }
    for command in [&["check"][..], &["check", "--json"], &["setup", "--print"]] {
        said.push_str(&text(&sidecar.command(command)));
    }
    assert!(!said.contains(TOKEN), "{said}");
}

/// Every connection is cut with its token, under load: `TOKEN_SECONDS=20 ROTATIONS=30` makes it ten
/// minutes.
async fn tokens_end_under_load(by: By) {
    let lasts = Duration::from_millis(number("TOKEN_SECONDS", 3) * 1000);
    let rotations = number("ROTATIONS", 4);
    let service = Service::start().await;
    let bed = &service.bed;
    service.rotate(lasts * 3, false).await;
    let mut settings = service.settings(by);
    settings.refill = "300ms".to_owned();
    let mut sidecar = Sidecar::set_up(settings).await;
    let (mut load, probe) = (Load::paced(bed, Duration::from_millis(5)), Probe::start(bed).await);
    let began = Instant::now();
    for rotation in 1..=rotations {
        // Half of the rotations are half done when the connections are cut.
        let turn = began + lasts * u32::try_from(rotation).unwrap();
        sleep_until(turn).await;
        // A cut while there is no connection would end none.
        sidecar.wait_ready().await;
        // A slow machine takes longer to be ready for the next one.
        let spare = Duration::from_secs(if rotation == rotations { 3600 } else { 60 });
        let rotated = service.rotate(lasts + spare, rotation / 2 % 2 == 1);
        let is_redis_first = rotation % 2 == 1;
        tokio::join!(rotated, async {
            sleep(Duration::from_millis(50)).await;
            service.cut_and_wait(is_redis_first, &sidecar).await;
        });
        // A session with Postgres that ends takes the connections to Redis along.
        sleep_until(turn + lasts / 2).await;
        sidecar.wait_ready().await;
        service.cut_and_wait(!is_redis_first, &sidecar).await;
    }
    sleep(lasts).await;
    // A slow machine gets there later.
    let enough = async || probe.count.load(Ordering::Relaxed) > PROBES;
    eventually(PATIENCE * 3, "there are enough probes", enough).await;
    let (took, commits) = (probe.end().await, load.end_writing().await);
    load.assert_nothing_stale(bed, &mut sidecar).await;
    assert_told_nowhere(&sidecar).await;
    let (postgres, redis) = (reconnects(&sidecar, false).await, reconnects(&sidecar, true).await);
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    let late = took.iter().filter(|took| **took > Duration::from_millis(200)).count();
    println!(
        "{by:?}: {rotations} tokens in {:.0} s, {commits} commits and {} probes: gone after \
         {median:?} (median), {longest:?} at most, {late} above 200 ms; {postgres} reconnects to \
         postgres, {redis} to redis; {} and {} runs",
        began.elapsed().as_secs_f64(),
        took.len(),
        service.runs("postgres"),
        service.runs("redis"),
    );
    assert!(commits > 100 && took.len() > PROBES);
    let least = f64::from(u32::try_from(rotations).unwrap()) / 2.0;
    assert!(postgres >= least && redis >= least, "{postgres} and {redis} reconnects");
    assert!(longest < Duration::from_secs(10), "{longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_command_that_ends_delays_nothing_beyond_a_reconnect() {
    tokens_end_under_load(By::Command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_rotated_delays_nothing_beyond_a_reconnect() {
    tokens_end_under_load(By::File).await;
}

/// Every login of every command and of `run` gets the wrong token first, as where it ends between
/// reading and login.
#[tokio::test]
async fn a_login_that_is_refused_asks_again_at_once() {
    let service = Service::start().await;
    service.rotate(Duration::from_secs(3600), false).await;
    let mut settings = service.settings(By::Command);
    for (name, option) in [("postgres", &mut settings.postgres), ("redis", &mut settings.redis)] {
        let (runs, token) = (service.runs_file(name), service.file(name));
        let script = format!(
            "if [ $(($(wc -l <{}) % 2)) = 1 ]; then echo {TOKEN}-old; else cat {}; fi",
            runs.display(),
            token.display()
        );
        *option = service.command(name, &script);
    }
    let sidecar = Sidecar::set_up(settings).await;
    let bed = &service.bed;
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    sidecar.assert_quiet(&["sweeping everything"]);
    for command in [&["check"][..], &["sweep", "item:*"], &["teardown", "--print"]] {
        let output = sidecar.command(command);
        assert!(output.status.success(), "{command:?}: {}", text(&output));
    }
    assert!(service.runs("postgres") >= 10 && service.runs("redis") >= 10);
    assert_told_nowhere(&sidecar).await;
}

/// A service that gives tokens may be away as a server may: at the start, and later.
#[tokio::test]
async fn a_command_that_fails_is_run_again_until_it_does_not() {
    let service = Service::start().await;
    let bed = &service.bed;
    service.rotate(Duration::from_secs(3600), false).await;
    let mut sidecar = Sidecar::new(service.settings(By::Command));
    sidecar.setup();
    for (name, phase) in
        [("postgres", "starts"), ("redis", "starts"), ("postgres", "runs"), ("redis", "runs")]
    {
        let is_start = phase == "starts";
        if is_start && sidecar.is_running() {
            assert_eq!(sidecar.sigterm().await, 0);
        }
        let script = format!("echo {TOKEN}-error >&2; echo {TOKEN}-half; exit 3");
        service.command(name, &script);
        let before = sidecar.log().len();
        if is_start {
            sidecar.start();
        } else {
            service.cut(name == "redis").await;
        }
        let said = format!("run `{name}.password_command`: `sh` failed with exit status 3");
        eventually(PATIENCE, &said, || async {
            let page = sidecar.get("/readyz").await;
            let log = sidecar.log()[before..].join("\n");
            log.contains(&said)
                && ["run it by hand, as the user", "it is run by hand"]
                    .iter()
                    .any(|hint| log.contains(hint))
                && page.is_some_and(|(status, body)| status == 503 && body.contains(&said))
        })
        .await;
        let report = text(&sidecar.command(&["check"]));
        assert!(report.contains(&said) && report.contains("run it by hand"), "{report}");
        assert_told_nowhere(&sidecar).await;
        service.printing(name);
        sidecar.wait_ready().await;
        let key = "item:7";
        bed.fill(&[key]).await;
        bed.sql.run("update item set version = version + 1 where id = 7").await;
        bed.gone(key).await;
    }
}

/// That is mistyped, which no waiting mends; later it may be a rotation of the program.
#[tokio::test]
async fn a_command_that_is_not_there_ends_the_start() {
    let service = Service::start().await;
    service.rotate(Duration::from_secs(3600), false).await;
    for name in ["postgres", "redis"] {
        let mut settings = service.settings(By::Command);
        let option = "password_command = [\"walsweep-no-such-program\", \"s3cret\"]".to_owned();
        match name {
            "postgres" => settings.postgres = option,
            _ => settings.redis = option,
        }
        let mut sidecar = Sidecar::new(settings);
        sidecar.start();
        assert_eq!(sidecar.wait_exit().await, 1, "{name}");
        let said = sidecar.log().join("\n");
        let why =
            format!("run `{name}.password_command`: `walsweep-no-such-program` does not start");
        assert!(said.contains(&why) && said.contains("is looked for in PATH"), "{said}");
        assert!(!said.contains(TOKEN), "{said}");
        let code = if name == "postgres" { "postgres_login" } else { "redis_login" };
        let report = text(&sidecar.command(&["check"]));
        assert!(report.contains(&format!("error[{code}]")) && report.contains(&why), "{report}");
    }
}

/// A program beside the configuration, named by a path.
#[tokio::test]
async fn a_command_of_a_path_begins_at_the_folder_of_the_configuration() {
    let service = Service::start().await;
    service.rotate(Duration::from_secs(3600), false).await;
    let mut settings = service.settings(By::Command);
    settings.postgres = "password_command = [\"./token\", \"postgres\"]".to_owned();
    let sidecar = Sidecar::new(settings);
    let said = text(&sidecar.command(&["check"]));
    assert!(said.contains("postgres.password_command.0: find `"), "{said}");
    let program = sidecar.folder().join("token");
    let script = format!("#!/bin/sh\ncat {}/$1\n", service.folder.path().display());
    write_program(&program, &script);
    sidecar.setup();
}

/// A process that is started meanwhile by another test must not keep it open for writing.
fn write_program(path: &Path, script: &str) {
    let made = std::process::Command::new("sh")
        .args(["-c", "printf %s \"$1\" >\"$0\" && chmod 700 \"$0\""])
        .arg(path)
        .arg(script)
        .status();
    assert!(made.unwrap().success());
}

/// `AUTH` changes nothing on a connection but its login: writes are observed as before, what was
/// removed is counted as before, and no connection is made anew. Where it is refused, they stand.
#[cfg(feature = "failpoints")]
#[tokio::test]
async fn connections_that_stand_log_in_again_and_go_on() {
    let service = Service::start().await;
    let bed = &service.bed;
    service.rotate(Duration::from_secs(3600), false).await;
    admin(&bed.cache, &["ACL", "SETUSER", USER, "nopass"]).await;
    let mut settings = service.settings(By::Command);
    settings.redis = service.command("redis", &format!("echo {TOKEN}-$$"));
    (settings.refill, settings.observe) = ("500ms".to_owned(), true);
    settings.env = vec![("WALSWEEP_TEST_RENEWAL_MS".to_owned(), "50".to_owned())];
    let sidecar = Sidecar::set_up(settings).await;
    bed.sql.run("update item set version = 0 where id = 100").await;
    bed.settled().await;
    let connections = connection_ids(&bed.cache).await;
    for version in 1..=3 {
        let before = bed.calls("auth").await;
        eventually(PATIENCE, "they log in again", || async {
            bed.calls("auth").await >= before + 20
        })
        .await;
        let refilled = sidecar.metric_sum("walsweep_refills_removed_total").await;
        bed.fill(&["item:1", "list:team 1:a"]).await;
        bed.sql.run(&format!("update item set version = {version} where id = 1")).await;
        bed.gone("item:1").await;
        bed.gone("list:team 1:a").await;
        bed.fill(&["item:1", "list:team 1:a"]).await;
        bed.gone("item:1").await;
        bed.gone("list:team 1:a").await;
        bed.settled().await;
        let removed = sidecar.metric_sum("walsweep_refills_removed_total").await - refilled;
        assert!((removed - 2.0).abs() < 0.5, "{removed} keys were there again");
    }
    assert!(sidecar.metric("walsweep_sweeps_total{reason=\"refill\"}").await < 0.5, "observed");
    admin(&bed.cache, &["ACL", "SETUSER", USER, "resetpass", ">another"]).await;
    let said = "connections to redis were not logged in again, and stand: redis answered WRONGPASS";
    sidecar.wait_log(said).await;
    sleep(Duration::from_millis(300)).await;
    bed.fill(&["item:2"]).await;
    bed.sql.run("update item set version = 1 where id = 2").await;
    bed.gone("item:2").await;
    bed.settled().await;
    let warned = sidecar.log().iter().filter(|line| line.contains(said)).count();
    assert_eq!(warned, 1, "once, until one is not refused");
    assert!(sidecar.metric("walsweep_reconnects_total{peer=\"redis\"}").await < 0.5);
    let now = connection_ids(&bed.cache).await;
    assert!(connections.len() >= 2 && connections.iter().all(|id| now.contains(id)), "{now:?}");
    assert!(!sidecar.log().concat().contains(TOKEN));
}

/// The connections of walsweep that have removed or looked through keys.
#[cfg(feature = "failpoints")]
async fn connection_ids(cache: &MultiplexedConnection) -> Vec<String> {
    let mut list = redis::cmd("CLIENT");
    let list: String = list.arg("LIST").query_async(&mut cache.clone()).await.unwrap();
    let own = list.lines().filter(|line| line.contains(" name=walsweep "));
    own.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}
