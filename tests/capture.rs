//! Both connections against a real Postgres: logins, TLS, and a slot from its creation to its end.
//! Needs Postgres 14 or later and `openssl`.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use walsweep::capture::{self, Frame, Replication, Slot, SlotProblem, StreamOptions};
use walsweep::lsn::Lsn;
use walsweep::postgres::{self, Endpoint, Sql, connect_sql};

const PASSWORD: &str = "pass%20word%3A%40";

/// Who may come in, and how. `gated` needs TLS, `plain` must not use it.
const HBA: &str = "
local   all all trust
host    all postgres 127.0.0.1/32 trust
host    all clear    127.0.0.1/32 password
host    all hashed   127.0.0.1/32 md5
host    all scram    127.0.0.1/32 scram-sha-256
hostssl all gated    127.0.0.1/32 scram-sha-256
hostnossl all plain  127.0.0.1/32 trust
";

const ROLES: &str = "
set password_encryption = 'md5';
create role hashed login replication password 'pass word:@';
set password_encryption = 'scram-sha-256';
create role clear login replication password 'pass word:@';
create role scram login replication password 'pass word:@';
create role gated login replication password 'pass word:@';
create role plain login replication;
";

/// A throwaway server, which ends with the test.
struct Server {
    folder: TempDir,
    child: Child,
    port: u16,
}

/// The newest Postgres in Debian's place, or the one in `POSTGRES_BIN`.
fn bin(program: &str) -> PathBuf {
    let folder = std::env::var_os("POSTGRES_BIN").map(PathBuf::from).unwrap_or_else(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").expect("Postgres is installed");
        let version = versions
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .max()
            .expect("Postgres is installed");
        PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"))
    });
    folder.join(program)
}

/// A command of Postgres, which refuses to run as root.
fn as_postgres(program: &str) -> Command {
    if !is_root() {
        return Command::new(bin(program));
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--no-new-privs"]);
    command.arg(bin(program));
    command
}

fn is_root() -> bool {
    run(Command::new("id").arg("-u")).trim() == "0"
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the program is installed");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.stderr.escape_ascii());
    text
}

impl Server {
    async fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        if is_root() {
            let id = |flag| run(Command::new("id").args([flag, "postgres"])).trim().parse();
            chown(&path, Some(id("-u").unwrap()), Some(id("-g").unwrap())).unwrap();
        }
        let data = path.join("data");
        run(as_postgres("initdb")
            .args(["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8"])
            .args(["--locale=C", "--pgdata"])
            .arg(&data));
        make_certificates(&path);
        fs::write(data.join("pg_hba.conf"), HBA).unwrap();
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap().port();
        let settings = format!(
            "port={port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories='{}'\n\
             wal_level=logical\nfsync=off\nssl=on\nssl_cert_file='{}'\nssl_key_file='{}'\n",
            path.display(),
            path.join("server.crt").display(),
            path.join("server.key").display(),
        );
        let mut file =
            fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).unwrap();
        file.write_all(settings.as_bytes()).unwrap();
        let log = fs::File::create(path.join("log")).unwrap();
        let child = as_postgres("postgres")
            .arg("-D")
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Server { folder, child, port };
        server.wait_until_up().await;
        server.sql().await.batch_execute(ROLES).await.unwrap();
        server
    }

    async fn wait_until_up(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let endpoint = Endpoint::parse(&self.socket_url()).unwrap();
        while let Err(error) = connect_sql(&endpoint, "test").await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket_url(&self) -> String {
        format!("postgres://postgres@/postgres?host={}&port={}", self.path("").display(), self.port)
    }

    /// A URL for TCP; `login` is `user` or `user:password`.
    fn url(&self, login: &str, host: &str, parameters: &str) -> String {
        format!("postgres://{login}@{host}:{}/postgres?{parameters}", self.port)
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::parse(&self.url("postgres", "127.0.0.1", "")).unwrap()
    }

    async fn sql(&self) -> Sql {
        connect_sql(&Endpoint::parse(&self.socket_url()).unwrap(), "test").await.unwrap()
    }

    async fn replication(&self) -> Replication {
        Replication::connect(&self.endpoint(), "test").await.unwrap()
    }

    /// Serves another certificate from now on.
    async fn use_certificate(&self, name: &str) {
        fs::rename(self.path(&format!("{name}.crt")), self.path("server.crt")).unwrap();
        fs::rename(self.path(&format!("{name}.key")), self.path("server.key")).unwrap();
        let sql = self.sql().await;
        let loaded = "select pg_conf_load_time()::text";
        let before: String = sql.query_one(loaded, &[]).await.unwrap().get(0);
        sql.batch_execute("select pg_reload_conf()").await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let fresh = self.sql().await;
            let after: String = fresh.query_one(loaded, &[]).await.unwrap().get(0);
            if after > before {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the settings were not read again");
    }

    fn signal(&self, signal: &str) {
        run(Command::new("kill").arg(signal).arg(self.child.id().to_string()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal("-QUIT");
        }
        self.child.wait().unwrap();
    }
}

/// An authority and what it signed for `localhost` (`server`), another authority (`other`), the
/// manual's self-signed certificate (`manual`), and one that names no hash (`ed25519`).
fn make_certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        run(Command::new("openssl").args(arguments.split(' ')).current_dir(folder));
    };
    let rsa = "-newkey rsa:2048 -nodes -days 2";
    for name in ["ca", "other"] {
        openssl(&format!("req -x509 {rsa} -subj /CN={name} -keyout {name}.key -out {name}.crt"));
    }
    openssl(&format!("req {rsa} -subj /CN=localhost -keyout server.key -out server.csr"));
    fs::write(folder.join("extensions"), "subjectAltName=DNS:localhost").unwrap();
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
         -extfile extensions -out server.crt",
    );
    openssl(&format!("req -x509 {rsa} -subj /CN=localhost -keyout manual.key -out manual.crt"));
    openssl(
        "req -x509 -newkey ed25519 -nodes -days 2 -subj /CN=localhost \
         -keyout ed25519.key -out ed25519.crt",
    );
    for name in ["server", "manual", "ed25519"] {
        let key = folder.join(format!("{name}.key"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&key));
        }
    }
}

/// Logs in by both connections; they must agree. Gives whether the SQL session is encrypted.
async fn log_in(url: &str) -> Result<bool, postgres::Error> {
    let mut endpoint = Endpoint::parse(url).unwrap();
    endpoint.load_password().unwrap();
    let replication = Replication::connect(&endpoint, "test").await;
    let sql = connect_sql(&endpoint, "test").await;
    match (sql, replication) {
        (Ok(sql), Ok(_)) => {
            let query = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
            Ok(sql.query_one(query, &[]).await?.get(0))
        }
        (Err(sql), Err(capture::Error::Connect(replication))) => {
            assert_eq!(sql.sql_state(), replication.sql_state(), "{sql}; {replication}");
            assert_eq!(std::mem::discriminant(&sql), std::mem::discriminant(&replication));
            Err(replication)
        }
        (sql, replication) => panic!("{url}: {sql:?} but {replication:?}"),
    }
}

#[tokio::test]
async fn every_method_of_authentication_logs_in() {
    let server = Server::start().await;
    assert!(!log_in(&server.socket_url()).await.unwrap());
    for login in [
        "postgres".to_owned(),
        format!("clear:{PASSWORD}"),
        format!("hashed:{PASSWORD}"),
        format!("scram:{PASSWORD}"),
    ] {
        for mode in ["disable", "prefer"] {
            let url = server.url(&login, "127.0.0.1", &format!("sslmode={mode}"));
            assert_eq!(log_in(&url).await.unwrap(), mode == "prefer", "{login} {mode}");
        }
    }
}

#[tokio::test]
async fn a_login_that_fails_says_why_and_never_the_password() {
    let server = Server::start().await;
    for user in ["clear", "hashed", "scram"] {
        let error = log_in(&server.url(&format!("{user}:SECRET"), "127.0.0.1", "")).await;
        let error = error.unwrap_err();
        assert_eq!(error.sql_state(), Some("28P01"), "{error}");
        assert!(!format!("{error} {error:?}").contains("SECRET"), "{error}");

        let error = log_in(&server.url(user, "127.0.0.1", "passfile=")).await.unwrap_err();
        assert!(matches!(error, postgres::Error::Login { .. }), "{error:?}");
        assert!(error.to_string().contains("password"), "{error}");
    }
    let url = format!("postgres://postgres@127.0.0.1:{}/absent", server.port);
    assert_eq!(log_in(&url).await.unwrap_err().sql_state(), Some("3D000"));
}

#[tokio::test]
async fn a_passfile_gives_the_password() {
    let server = Server::start().await;
    let passfile = server.path("pass");
    fs::write(&passfile, format!("127.0.0.1:{}:*:scram:pass word\\:@\n", server.port)).unwrap();
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
    let parameters = format!("passfile={}", passfile.display());
    log_in(&server.url("scram", "127.0.0.1", &parameters)).await.unwrap();
}

#[tokio::test]
async fn sslmode_means_what_it_means_in_libpq() {
    let server = Server::start().await;
    let gated = format!("gated:{PASSWORD}");
    let check = async |host: &str, mode: &str, root: Option<&str>, expected: Result<(), &str>| {
        let root = root.map(|name| format!("&sslrootcert={}", server.path(name).display()));
        let parameters = format!("sslmode={mode}{}", root.unwrap_or_default());
        let result = log_in(&server.url(&gated, host, &parameters)).await;
        match (result, expected) {
            (Ok(encrypted), Ok(())) => assert!(encrypted, "{host} {parameters}"),
            (Err(error), Err(text)) => {
                assert!(error.to_string().contains(text), "{host} {parameters}: {error}");
            }
            (result, _) => panic!("{host} {parameters}: {result:?}"),
        }
    };
    check("127.0.0.1", "prefer", None, Ok(())).await;
    check("127.0.0.1", "require", None, Ok(())).await;
    check("127.0.0.1", "require", Some("ca.crt"), Ok(())).await;
    check("127.0.0.1", "require", Some("other.crt"), Err("UnknownIssuer")).await;
    check("127.0.0.1", "verify-ca", Some("ca.crt"), Ok(())).await;
    check("localhost", "verify-ca", Some("other.crt"), Err("UnknownIssuer")).await;
    check("localhost", "verify-ca", None, Err("")).await;
    check("localhost", "verify-full", Some("ca.crt"), Ok(())).await;
    check("localhost", "verify-full", Some("other.crt"), Err("UnknownIssuer")).await;
    check("127.0.0.1", "verify-full", Some("ca.crt"), Err("not valid for name")).await;
    check("localhost", "verify-full", Some("absent"), Err("read `sslrootcert`")).await;
    check("localhost", "verify-full", Some("ca.key"), Err("no usable certificate")).await;
    check("127.0.0.1", "disable", None, Err("no encryption")).await;
}

#[tokio::test]
async fn prefer_goes_on_without_tls_and_require_does_not() {
    let server = Server::start().await;
    assert!(!log_in(&server.url("plain", "127.0.0.1", "sslmode=prefer")).await.unwrap());
    let error = log_in(&server.url("plain", "127.0.0.1", "sslmode=require")).await.unwrap_err();
    assert_eq!(error.sql_state(), Some("28000"), "{error}");

    let wrong = format!("sslmode=prefer&sslrootcert={}", server.path("other.crt").display());
    assert!(!log_in(&server.url("postgres", "127.0.0.1", &wrong)).await.unwrap());

    let sql = server.sql().await;
    sql.batch_execute("alter system set ssl = off").await.unwrap();
    sql.batch_execute("select pg_reload_conf()").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while log_in(&server.url("postgres", "127.0.0.1", "sslmode=prefer")).await.unwrap() {
        assert!(Instant::now() < deadline);
    }
    let error = log_in(&server.url("postgres", "127.0.0.1", "sslmode=require")).await.unwrap_err();
    assert!(error.to_string().ends_with("the server does not offer TLS"), "{error}");
}

#[tokio::test]
async fn a_self_signed_certificate_by_the_manuals_recipe_is_trusted_as_it_is() {
    let server = Server::start().await;
    let root = format!("sslrootcert={}", server.path("root.crt").display());
    fs::copy(server.path("manual.crt"), server.path("root.crt")).unwrap();
    server.use_certificate("manual").await;
    let login = format!("gated:{PASSWORD}");
    for (host, mode) in [("localhost", "verify-full"), ("127.0.0.1", "verify-ca")] {
        let url = server.url(&login, host, &format!("sslmode={mode}&{root}"));
        assert!(log_in(&url).await.unwrap(), "{mode}");
    }
    let url = server.url(&login, "127.0.0.1", &format!("sslmode=verify-full&{root}"));
    assert!(matches!(log_in(&url).await, Err(postgres::Error::Tls { .. })));
}

#[tokio::test]
async fn channel_binding_is_used_and_can_be_required() {
    let server = Server::start().await;
    let scram = format!("scram:{PASSWORD}");
    let check = async |login: &str, parameters: &str, ok: bool| {
        let parameters = format!("channel_binding=require&{parameters}");
        match log_in(&server.url(login, "127.0.0.1", &parameters)).await {
            Ok(_) => assert!(ok, "{login} {parameters}"),
            Err(postgres::Error::Login { reason, .. }) => {
                assert!(!ok && reason.contains("channel binding"), "{parameters}: {reason}");
            }
            Err(error) => panic!("{login} {parameters}: {error}"),
        }
    };
    check(&scram, "sslmode=require", true).await;
    check(&scram, "sslmode=disable", false).await;
    check("postgres", "sslmode=require", false).await;
    check(&format!("hashed:{PASSWORD}"), "sslmode=require", false).await;
    check(&format!("clear:{PASSWORD}"), "sslmode=require", false).await;
    let disabled = "sslmode=require&channel_binding=disable";
    assert!(log_in(&server.url(&scram, "127.0.0.1", disabled)).await.unwrap());

    // Such a certificate names no hash, so it cannot be bound; a login without binding works.
    server.use_certificate("ed25519").await;
    check(&scram, "sslmode=require", false).await;
    assert!(log_in(&server.url(&scram, "127.0.0.1", "sslmode=require")).await.unwrap());
}

#[tokio::test]
async fn a_server_that_is_silent_or_absent_is_an_error_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("postgres://u@127.0.0.1:{port}/d?connect_timeout=1");
    let error = log_in(&url).await.unwrap_err();
    assert!(matches!(error, postgres::Error::Timeout { seconds: 1, .. }), "{error}");

    drop(silent);
    let error = log_in(&url).await.unwrap_err();
    assert!(matches!(error, postgres::Error::Connect { .. }), "{error}");
    let error = log_in("postgres://u@/d?host=/nonexistent").await.unwrap_err();
    assert!(error.to_string().starts_with("connect to `/nonexistent/.s.PGSQL.5432`"), "{error}");
}

async fn prepare(server: &Server) {
    let sql = server.sql().await;
    sql.batch_execute("create table t (id int primary key)").await.unwrap();
    sql.batch_execute("create publication \"P'ub\\\" for table t").await.unwrap();
    server.replication().await.create_slot("s").await.unwrap();
}

async fn stream(server: &Server) -> Result<Slot, capture::Error> {
    server.replication().await.start("s", "P'ub\\", StreamOptions::default()).await
}

/// Reads to the next commit. Gives the kinds of the messages, and the commit's end.
async fn transaction(slot: &mut Slot) -> (String, Lsn) {
    let mut kinds = String::new();
    loop {
        if let Frame::Data { payload, .. } = slot.next().await.unwrap() {
            kinds.push(char::from(payload[0]));
            if payload[0] == b'C' {
                return (kinds, Lsn(u64::from_be_bytes(payload[10..18].try_into().unwrap())));
            }
        }
    }
}

async fn confirmed_flush_lsn(server: &Server) -> Lsn {
    let query = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = 's'";
    let text: String = server.sql().await.query_one(query, &[]).await.unwrap().get(0);
    text.parse().unwrap()
}

/// Asks for a keepalive and waits for it: the server has read the status update by then.
async fn report(slot: &mut Slot) {
    slot.send_status(true).await.unwrap();
    while !matches!(slot.next().await.unwrap(), Frame::Keepalive { .. }) {}
}

#[tokio::test]
async fn a_slot_is_created_streamed_confirmed_and_dropped() {
    let server = Server::start().await;
    let mut replication = server.replication().await;
    let identity = replication.identify_system().await.unwrap();
    assert_eq!(identity.timeline, 1);
    let query = "select system_identifier::text from pg_control_system()";
    let system_id: String = server.sql().await.query_one(query, &[]).await.unwrap().get(0);
    assert_eq!(identity.system_id, system_id);

    prepare(&server).await;
    let created = confirmed_flush_lsn(&server).await;
    assert!(created >= identity.xlogpos);
    let mut slot = stream(&server).await.unwrap();
    let sql = server.sql().await;
    sql.batch_execute("insert into t values (1)").await.unwrap();
    let (kinds, end) = transaction(&mut slot).await;
    assert_eq!(kinds, "BRIC");

    report(&mut slot).await;
    assert_eq!(confirmed_flush_lsn(&server).await, created, "nothing was confirmed");
    slot.confirm(end);
    report(&mut slot).await;
    assert_eq!(confirmed_flush_lsn(&server).await, end);

    sql.batch_execute("select pg_logical_emit_message(true, 'p', 'x')").await.unwrap();
    let (kinds, end) = transaction(&mut slot).await;
    assert_eq!(kinds, "BMC");
    slot.confirm(end);
    slot.close(Duration::from_secs(10)).await.unwrap();
    assert_eq!(confirmed_flush_lsn(&server).await, end, "close confirms");

    // What was confirmed does not come again, what comes later does.
    let mut slot = stream(&server).await.unwrap();
    sql.batch_execute("delete from t").await.unwrap();
    assert_eq!(transaction(&mut slot).await.0, "BRDC");
    slot.close(Duration::from_secs(10)).await.unwrap();
    replication.drop_slot("s").await.unwrap();
    let left = sql.query("select from pg_replication_slots", &[]).await.unwrap();
    assert!(left.is_empty());
}

#[tokio::test]
async fn an_unconfirmed_transaction_comes_again() {
    let server = Server::start().await;
    prepare(&server).await;
    let mut slot = stream(&server).await.unwrap();
    server.sql().await.batch_execute("insert into t values (1)").await.unwrap();
    let first = transaction(&mut slot).await;
    slot.close(Duration::from_secs(10)).await.unwrap();
    assert_eq!(transaction(&mut stream(&server).await.unwrap()).await, first);
}

#[tokio::test]
async fn what_is_the_matter_with_a_slot_can_be_told_apart() {
    let server = Server::start().await;
    let error = stream(&server).await.unwrap_err();
    assert_eq!(error.slot_problem(), Some(SlotProblem::Missing), "{error}");
    let mut replication = server.replication().await;
    let error = replication.drop_slot("s").await.unwrap_err();
    assert_eq!(error.slot_problem(), Some(SlotProblem::Missing), "{error}");

    // The session survived that, and a second slot of the name is refused.
    prepare(&server).await;
    let error = replication.create_slot("s").await.unwrap_err();
    assert_eq!((error.sql_state(), error.slot_problem()), (Some("42710"), None), "{error}");

    let slot = stream(&server).await.unwrap();
    for error in [stream(&server).await.unwrap_err(), replication.drop_slot("s").await.unwrap_err()]
    {
        assert_eq!(error.sql_state(), Some("55006"), "{error}");
        assert_eq!(error.slot_problem(), Some(SlotProblem::Active));
    }
    slot.close(Duration::from_secs(10)).await.unwrap();

    // A missing publication is not a missing slot.
    let mut slot = replication.start("s", "absent", StreamOptions::default()).await.unwrap();
    server.sql().await.batch_execute("insert into t values (1)").await.unwrap();
    let error = loop {
        if let Err(error) = slot.next().await {
            break error;
        }
    };
    assert_eq!((error.sql_state(), error.slot_problem()), (Some("42704"), None), "{error}");
}

#[tokio::test]
async fn a_slot_whose_log_is_gone_is_told_as_invalidated() {
    let server = Server::start().await;
    prepare(&server).await;
    let sql = server.sql().await;
    for command in [
        "alter system set max_slot_wal_keep_size = '1MB'",
        "select pg_reload_conf()",
        "insert into t values (1)",
    ] {
        sql.batch_execute(command).await.unwrap();
    }
    let query = "select wal_status from pg_replication_slots";
    let deadline = Instant::now() + Duration::from_secs(30);
    while sql.query_one(query, &[]).await.unwrap().get::<_, &str>(0) != "lost" {
        assert!(Instant::now() < deadline);
        for command in ["select pg_switch_wal()", "update t set id = id + 1", "checkpoint"] {
            sql.batch_execute(command).await.unwrap();
        }
    }
    let error = stream(&server).await.unwrap_err();
    assert_eq!(error.slot_problem(), Some(SlotProblem::Invalidated), "{error}");
}

#[tokio::test]
async fn a_server_that_dies_or_stops_ends_the_stream_at_once() {
    for signal in ["-QUIT", "-INT"] {
        let server = Server::start().await;
        prepare(&server).await;
        let mut slot = stream(&server).await.unwrap();
        server.signal(signal);
        let error = loop {
            match tokio::time::timeout(Duration::from_secs(20), slot.next()).await.unwrap() {
                Ok(Frame::Keepalive { wal_end, .. }) => {
                    // A server that stops waits until all of its log is confirmed.
                    slot.confirm(wal_end);
                    drop(slot.send_status(false).await);
                }
                Ok(Frame::Data { .. }) => panic!("nothing was written"),
                Err(error) => break error,
            }
        };
        let expected = match signal {
            "-INT" => matches!(error, capture::Error::Ended | capture::Error::Stream(_)),
            _ => matches!(
                error,
                capture::Error::Stream(_) | capture::Error::Closed | capture::Error::Io(_)
            ),
        };
        assert!(expected, "{signal}: {error:?}");
    }
}

#[tokio::test]
async fn a_walsender_that_is_terminated_is_an_error_of_its_own() {
    let server = Server::start().await;
    prepare(&server).await;
    let mut slot = stream(&server).await.unwrap();
    let query = "select pg_terminate_backend(active_pid) from pg_replication_slots";
    server.sql().await.batch_execute(query).await.unwrap();
    let error = loop {
        if let Err(error) = slot.next().await {
            break error;
        }
    };
    assert_eq!(error.sql_state(), Some("57P01"), "{error}");
}

#[tokio::test]
async fn a_backlog_streams_completely_and_in_order() {
    let server = Server::start().await;
    prepare(&server).await;
    let load = "do $$ begin for i in 0..49 loop
        insert into t select generate_series(i * 1000 + 1, i * 1000 + 1000); commit;
        end loop; end $$";
    server.sql().await.batch_execute(load).await.unwrap();
    let mut slot = stream(&server).await.unwrap();
    let mut expected = 1..=50_000;
    while !expected.is_empty() {
        if let Frame::Data { payload, .. } = slot.next().await.unwrap()
            && payload[0] == b'I'
        {
            // Insert, relation, `N`, one column, text: its length, and the text.
            let text = std::str::from_utf8(&payload[13..]).unwrap();
            assert_eq!(text.parse().ok(), expected.next());
        }
    }
}
