//! A throwaway Postgres.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, NoTls};

use super::process::{Process, Signal, signal};
use super::template::{Template, rename};
use super::{Error, PATIENCE, PAUSE, free_port, in_path, io_error, tail};

/// The environment variable that names the folder of `postgres` and `initdb`.
const BIN_VARIABLE: &str = "WALSWEEP_PG_BIN";

/// Settings of every new server: logical decoding, room for many slots, and no wait for the disk,
/// since nothing here outlives the process.
const CONF: &str = "
wal_level = logical
max_wal_senders = 16
max_replication_slots = 16
wal_sender_timeout = 10s
shared_buffers = 64MB
max_wal_size = 4GB
full_page_writes = off
";

/// How to start a [`Postgres`]. The default is a new, empty server that trusts everybody on
/// loopback.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// The folder of `postgres` and `initdb`; `None`: `$WALSWEEP_PG_BIN`, `$PATH`, then the newest
    /// of `/usr/lib/postgresql/*/bin`.
    pub bin_dir: Option<PathBuf>,
    /// Lines for `postgresql.conf`, after the usual ones: a later line wins.
    pub conf: Vec<String>,
    /// Whether commits wait for the disk.
    pub fsync: bool,
    /// The password of user `postgres`, asked for by SCRAM on every connection; `None`: trust.
    pub password: Option<String>,
    /// A data folder that exists, such as a base backup; `None`: a new one. It is the caller's: it
    /// must belong to the user that the server runs as, and it stays.
    pub data_dir: Option<PathBuf>,
}

/// How a [`Postgres`] is stopped
/// (<https://www.postgresql.org/docs/current/server-shutdown.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are ended, a checkpoint is written, log readers get the rest of the log.
    Fast,
    /// Everything ends at once; the next start recovers from the log.
    Immediate,
}

/// A running Postgres, ended and removed when dropped.
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    bin_dir: PathBuf,
    owner: Option<Owner>,
    data_dir: PathBuf,
    password: Option<String>,
    port: u16,
    folder: TempDir,
}

/// The user that the server runs as when the caller is root, whom Postgres refuses.
#[derive(Clone, Copy, Debug)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Postgres {
    /// Starts a server and waits until it accepts connections, at most 30 s. Fails when no Postgres
    /// is installed, or with the end of its log when it does not start.
    pub async fn start(options: PostgresOptions) -> Result<Postgres, Error> {
        let bin_dir = options.bin_dir.clone().or_else(find_bin_dir).ok_or(Error::Missing {
            program: "initdb".to_owned(),
            variable: BIN_VARIABLE,
            elsewhere: ", not in `/usr/lib/postgresql/*/bin`",
            package: "postgresql",
        })?;
        let (folder, owner) = make_folder()?;
        let data_dir = options.data_dir.clone().unwrap_or_else(|| folder.path().join("data"));
        let mut server = Postgres {
            process: None,
            bin_dir,
            owner,
            data_dir,
            password: options.password.clone(),
            port: free_port()?,
            folder,
        };
        server.new_folder("socket")?;
        if options.data_dir.is_none() {
            server.new_folder("data")?;
            server.fill()?;
            let fsync = if options.fsync { "on" } else { "off" };
            server.append_conf(&format!("{CONF}fsync = {fsync}"))?;
        }
        for line in &options.conf {
            server.append_conf(line)?;
        }
        server.start_again().await?;
        Ok(server)
    }

    /// Starts a standby that streams from this server, with these lines for `postgresql.conf`; its
    /// data folder `name` is removed with this server, which must be the one dropped last.
    pub async fn standby(&self, name: &str, conf: &[&str]) -> Result<Postgres, Error> {
        let data_dir = self.new_folder(name)?;
        let mut command = self.command("pg_basebackup");
        command.args(["--checkpoint=fast", "--write-recovery-conf", "--no-sync", "-D"]);
        run("pg_basebackup", command.arg(&data_dir), &self.folder.path().join("basebackup.log"))?;
        Postgres::start(PostgresOptions {
            bin_dir: Some(self.bin_dir.clone()),
            conf: conf.iter().map(|&line| line.to_owned()).collect(),
            password: self.password.clone(),
            data_dir: Some(data_dir),
            ..PostgresOptions::default()
        })
        .await
    }

    /// `postgres://` URL of user and database `postgres`, over TCP.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Gives the URL of another database, for the same user, over TCP.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        let password = self.password.as_ref().map(|word| format!(":{word}")).unwrap_or_default();
        format!("postgres://postgres{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// TCP port on 127.0.0.1; stays over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The data folder.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A program of this server's version, such as `psql` or `pg_recvlogical`.
    #[must_use]
    pub fn bin(&self, program: &str) -> PathBuf {
        self.bin_dir.join(program)
    }

    /// A program of this server's version, ready to run as the server's own user, and so that it
    /// connects to this server.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin(program));
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command.env("PGPASSWORD", self.password.as_deref().unwrap_or_default());
        command.env("LC_ALL", "C").current_dir(self.folder.path()).stdin(Stdio::null());
        // Programs that were moved look for libpq where they were built, and take the system's: a
        // standby of Postgres 17 and later then never connects to its primary.
        let libraries = self.bin_dir.join("../lib");
        if libraries.join("libpq.so.5").exists() {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        if let Some(Owner { uid, gid }) = self.owner {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// A new folder that belongs to the server's user and is removed with the server, such as for a
    /// base backup.
    pub fn new_folder(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.folder.path().join(name);
        make_private(&path, self.owner)?;
        Ok(path)
    }

    /// Gives the last 200 lines that the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        tail(&self.folder.path().join("log"), 0, 200)
    }

    /// A new connection to database `postgres`, served by a task of its own.
    pub async fn connect(&self) -> Result<Client, Error> {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await?;
        // Its error is also the error of every statement that the client still waits for.
        drop(tokio::spawn(connection));
        Ok(client)
    }

    /// Appends `line` to `postgresql.conf` and waits until the server has read it. New connections
    /// see it; older ones do after their next statement. Commits wait for the standbys of
    /// `synchronous_standby_names` from then on.
    pub async fn conf(&self, line: &str) -> Result<(), Error> {
        let loaded = "select pg_conf_load_time()::text";
        let before: String = self.connect().await?.query_one(loaded, &[]).await?.get(0);
        self.append_conf(line)?;
        let process = self.process.as_ref().ok_or(Error::Stopped { name: "postgres" })?;
        process.signal(Signal::Hup)?;
        let deadline = Instant::now() + PATIENCE;
        while self.connect().await?.query_one(loaded, &[]).await?.get::<_, String>(0) == before {
            if Instant::now() > deadline {
                return Err(process.late("read its configuration"));
            }
            sleep(PAUSE).await;
        }
        if line.starts_with("synchronous_standby_names") {
            // The checkpointer tells all others of it (`SyncRepUpdateSyncStandbysDefined`). It may
            // be on its way into the first of two checkpoints when it is told itself.
            self.connect().await?.batch_execute("checkpoint; checkpoint").await?;
        }
        Ok(())
    }

    /// Stops the server and starts it again on the same port and data.
    pub async fn restart(&mut self, mode: StopMode) -> Result<(), Error> {
        self.stop(mode).await?;
        self.start_again().await
    }

    /// Stops the server, and returns when it has ended.
    pub async fn stop(&mut self, mode: StopMode) -> Result<(), Error> {
        let process = self.process.as_mut().ok_or(Error::Stopped { name: "postgres" })?;
        process.signal(match mode {
            StopMode::Fast => Signal::Int,
            StopMode::Immediate => Signal::Quit,
        })?;
        process.ended().await?;
        self.process = None;
        Ok(())
    }

    /// Kills the server and its sessions as a crash would: nobody gets to write another byte.
    pub async fn kill9(&mut self) -> Result<(), Error> {
        let process = self.process.as_mut().ok_or(Error::Stopped { name: "postgres" })?;
        let mut ids = vec![process.id()];
        // Sessions are in process groups of their own. Where the kernel does not list them, they
        // notice by themselves that their parent is gone.
        let children = format!("/proc/{0}/task/{0}/children", process.id());
        let children = fs::read_to_string(children).unwrap_or_default();
        ids.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        // A session that ended in between is no failure; that the server lives on shows below.
        drop(signal(&ids, Signal::Kill));
        process.ended().await?;
        self.process = None;
        Ok(())
    }

    /// Starts the stopped or killed server again on the same port and data, and waits until it
    /// accepts connections.
    pub async fn start_again(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.launch(deadline).await {
                // After a kill the last session may hold the shared memory for some milliseconds.
                Err(Error::Ended { log, .. })
                    if log.contains("shared memory block") && Instant::now() < deadline =>
                {
                    sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// One attempt to start.
    async fn launch(&mut self, deadline: Instant) -> Result<(), Error> {
        let mut command = self.command("postgres");
        command.arg("-D").arg(&self.data_dir);
        // Not in the file, so that a copy of the data folder can run beside this server.
        for setting in [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", self.socket_dir().display()),
        ] {
            command.arg("-c").arg(setting);
        }
        let log = self.folder.path().join("log");
        let folders = [self.folder.path()];
        let mut process = Process::spawn("postgres", command, Signal::Quit, &log, &folders)?;
        // To ask costs the server a process, which takes from its start: first it says so itself.
        while !self.says_ready() || tokio_postgres::connect(&self.url(), NoTls).await.is_err() {
            process.still_runs()?;
            if Instant::now() > deadline {
                return Err(process.late("accept connections"));
            }
            sleep(PAUSE).await;
        }
        // Whoever answered might be another server that was faster to take the port.
        process.still_runs()?;
        self.process = Some(process);
        Ok(())
    }

    /// Whether the server's own file tells that it accepts connections: the last line of
    /// `postmaster.pid` (`LOCK_FILE_LINE_PM_STATUS` of `src/include/utils/pidfile.h`).
    fn says_ready(&self) -> bool {
        let file = fs::read_to_string(self.data_dir.join("postmaster.pid")).unwrap_or_default();
        file.lines().nth(7).is_some_and(|status| status.trim_end() == "ready")
    }

    /// Fills the new data folder. Where no password is asked for, it is the copy of a template.
    fn fill(&mut self) -> Result<(), Error> {
        if self.password.is_some() {
            return self.initdb(&self.data_dir);
        }
        let template = Template::of(&self.bin_dir, || {
            let (folder, owner) = make_folder()?;
            let data_dir = Template::data_in(folder.path());
            make_private(&data_dir, owner)?;
            self.initdb(&data_dir)?;
            Ok(folder)
        })?;
        template.copy(&self.data_dir, self.owner.map(|to| (to.uid, to.gid)))?;
        rename(&self.data_dir)?;
        let mut command = self.command("pg_resetwal");
        command.args(["-f", "-D"]).arg(&self.data_dir);
        run("pg_resetwal", &mut command, &self.folder.path().join("resetwal.log"))
    }

    /// Fills an empty data folder.
    fn initdb(&self, data_dir: &Path) -> Result<(), Error> {
        let mut command = self.command("initdb");
        command.arg("-D").arg(data_dir).args(["-U", "postgres", "-N"]);
        command.args(["-E", "UTF8", "--locale=C"]);
        if let Some(password) = &self.password {
            let file = self.folder.path().join("password");
            fs::write(&file, password).map_err(io_error("write the password"))?;
            let owner = self.owner.map_or(Ok(()), |to| chown(&file, Some(to.uid), Some(to.gid)));
            owner.map_err(io_error("hand over the password"))?;
            command.args(["-A", "scram-sha-256"]).arg("--pwfile").arg(&file);
        } else {
            command.args(["-A", "trust"]);
        }
        run("initdb", &mut command, &self.folder.path().join("initdb.log"))
    }

    /// Appends to `postgresql.conf`.
    fn append_conf(&self, line: &str) -> Result<(), Error> {
        let file = File::options().append(true).open(self.data_dir.join("postgresql.conf"));
        let written = file.and_then(|mut file| writeln!(file, "{line}"));
        written.map_err(io_error("append to `postgresql.conf`"))
    }
}

/// Runs a tool to its end; what it writes goes to `log`.
fn run(name: &'static str, command: &mut Command, log: &Path) -> Result<(), Error> {
    let file = File::create(log).map_err(io_error(format!("open the log of {name}")))?;
    let again = file.try_clone().map_err(io_error("share the log"))?;
    let status = command.stdout(file).stderr(again).status();
    let status = status.map_err(io_error(format!("start {name}")))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Ended { name, status, log: tail(log, 0, 30) })
}

/// The folder of the newest Postgres that is installed.
fn find_bin_dir() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(BIN_VARIABLE) {
        return Some(PathBuf::from(folder));
    }
    // A link in `$PATH` may stand alone; where it leads to, the other programs are.
    let linked = in_path("initdb").and_then(|file| file.canonicalize().ok());
    if let Some(folder) = linked.as_deref().and_then(Path::parent) {
        return Some(folder.to_owned());
    }
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(Result::ok);
    let versions = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let folder = entry.path().join("bin");
        folder.join("initdb").is_file().then_some((version, folder))
    });
    versions.max().map(|(_, folder)| folder)
}

/// Makes a folder that only the server's user can enter.
fn make_private(path: &Path, owner: Option<Owner>) -> Result<(), Error> {
    let made = fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o700)))
        .and_then(|()| owner.map_or(Ok(()), |to| chown(path, Some(to.uid), Some(to.gid))));
    made.map_err(io_error(format!("make folder `{}`", path.display())))
}

/// A new temporary folder that the server's user can enter, and that user.
fn make_folder() -> Result<(TempDir, Option<Owner>), Error> {
    let mut base = std::env::temp_dir();
    // Longest socket path that `sockaddr_un` holds is 107 bytes; ours adds at most 40.
    let open = |path: &Path| path.metadata().is_ok_and(|found| found.mode() & 0o001 != 0);
    if base.as_os_str().len() > 60 || !base.ancestors().all(open) {
        base = PathBuf::from("/tmp");
    }
    let folder = tempfile::Builder::new().prefix("walsweep-").tempdir_in(base);
    let folder = folder.map_err(io_error("make a temporary folder"))?;
    let path = folder.path();
    let mode = fs::set_permissions(path, Permissions::from_mode(0o711));
    mode.map_err(io_error("open the temporary folder to others"))?;
    // The folder belongs to whoever runs this, which is how to ask who that is.
    let uid = path.metadata().map_err(io_error("look at the temporary folder"))?.uid();
    if uid != 0 {
        return Ok((folder, None));
    }
    let users = fs::read_to_string("/etc/passwd").map_err(io_error("read `/etc/passwd`"))?;
    let owner = ["postgres", "nobody"].iter().find_map(|name| find_user(&users, name));
    let missing = || std::io::ErrorKind::NotFound.into();
    let owner = owner.ok_or_else(|| io_error("find user `postgres` or `nobody`")(missing()))?;
    Ok((folder, Some(owner)))
}

/// The user `name` in the text of `/etc/passwd`.
fn find_user(users: &str, name: &str) -> Option<Owner> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let mut numbers = fields.skip(1).map(str::parse);
        Some(Owner { uid: numbers.next()?.ok()?, gid: numbers.next()?.ok()? })
    })
}
