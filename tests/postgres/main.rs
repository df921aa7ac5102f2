//! Sessions for SQL against a real Postgres: which failures a person has to cure, what is said of
//! them, and when a session ends. Needs `openssl`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

#[path = "../support/certificates.rs"]
mod certificates;

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use walsweep::postgres::{Endpoint, Error, PassfileError, Sql, connect_sql};
use walsweep_stage::throwaway::{Postgres, PostgresOptions, StopMode};

use crate::certificates::Certificates;

/// How long anything may take that should take milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who may come in, and how. `gated` needs TLS, `stranger` the socket.
const HBA: &str = "
local   all all trust
host    all postgres,full 127.0.0.1/32 trust
host    all scram    127.0.0.1/32 scram-sha-256
host    all hashed   127.0.0.1/32 md5
hostssl all gated    127.0.0.1/32 trust
hostssl all shown    127.0.0.1/32 cert
";

const ROLES: &str = "
create role stranger login;
create role gated login;
create role shown login;
create role full login connection limit 0;
create role scram login password 'right';
set password_encryption = 'md5';
create role hashed login password 'right';
";

/// A server with roles, and with TLS by a certificate for `localhost` that `ca.crt` vouches for.
struct Bed {
    server: Postgres,
    certificates: Certificates,
}

impl Bed {
    async fn start() -> Bed {
        let server = Postgres::start(PostgresOptions::default()).await.unwrap();
        server.connect().await.unwrap().batch_execute(ROLES).await.unwrap();
        fs::write(server.data_dir().join("pg_hba.conf"), HBA).unwrap();
        let certificates = Certificates::new(&server.new_folder("certificates").unwrap());
        certificates.sign("server", "localhost", "DNS:localhost");
        certificates.sign("shown", "shown", "DNS:shown");
        server.conf(&certificates.conf()).await.unwrap();
        Bed { server, certificates }
    }

    /// A URL over TCP; `login` is `user` or `user:password`.
    fn url(&self, login: &str, host: &str, rest: &str) -> String {
        format!("postgres://{login}@{host}:{}/{rest}", self.server.port())
    }

    /// The parameter that trusts the certificate `name`.
    fn root(&self, name: &str) -> String {
        format!("sslrootcert={}", self.certificates.file(name).display())
    }
}

async fn open(url: &str) -> Result<Sql, Error> {
    connect_sql(&Endpoint::parse(url).unwrap(), "the test").await
}

async fn refusal(url: &str) -> Error {
    open(url).await.err().unwrap_or_else(|| panic!("{url} was let in"))
}

#[tokio::test]
async fn every_way_in_gives_a_session_under_its_name() {
    let bed = Bed::start().await;
    let folder = bed.server.socket_dir().display().to_string();
    let (encoded, port) = (folder.replace('/', "%2F"), bed.server.port());
    for (url, encrypted) in [
        (bed.url("postgres", "127.0.0.1", "postgres?sslmode=disable"), false),
        (bed.url("postgres", "127.0.0.1", ""), true),
        (bed.url("scram:right", "127.0.0.1", "postgres?sslmode=disable"), false),
        (bed.url("scram:right", "127.0.0.1", "postgres"), true),
        (bed.url("hashed:right", "127.0.0.1", "postgres?sslmode=require"), true),
        (bed.url("gated", "127.0.0.1", "postgres?sslmode=allow"), true),
        (
            bed.url(
                "gated",
                "localhost",
                &format!("postgres?sslmode=verify-full&{}", bed.root("ca.crt")),
            ),
            true,
        ),
        (format!("postgres://scram@{encoded}:{port}/postgres?sslmode=require"), false),
        (format!("postgres://stranger@/postgres?host={folder}&port={port}"), false),
    ] {
        let sql = open(&url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
        let query = "select ssl, current_setting('application_name') from pg_stat_ssl
                     where pid = pg_backend_pid()";
        let row = sql.query_one(query, &[]).await.unwrap();
        assert_eq!((row.get(0), row.get(1)), (encrypted, "the test"), "{url}");
    }
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_is_shown_one() {
    let bed = Bed::start().await;
    let file = |name: &str| bed.certificates.file(name).display().to_string();
    let shown = format!("postgres?sslcert={}&sslkey={}", file("shown.crt"), file("shown.key"));
    let url = bed.url("shown", "127.0.0.1", &shown);
    open(&url).await.unwrap();
    refusal(&bed.url("shown", "127.0.0.1", "postgres")).await;
    fs::set_permissions(bed.certificates.file("shown.key"), Permissions::from_mode(0o644)).unwrap();
    let error = refusal(&url).await;
    assert!(error.is_rejection() && error.to_string().contains("chmod 600"), "{error}");
    fs::remove_file(bed.certificates.file("shown.crt")).unwrap();
    let error = refusal(&url).await;
    assert!(error.is_rejection() && error.to_string().contains("read `sslcert`"), "{error}");
}

/// Each file is replaced while the program runs, as whoever renews certificates does.
#[tokio::test]
async fn certificates_that_change_are_read_at_the_next_login() {
    let bed = Bed::start().await;
    let file = |name: &str| bed.certificates.file(name);
    let put = |from: [&str; 3]| {
        for (from, to) in from.iter().zip(["trusted", "own.crt", "own.key"]) {
            fs::copy(file(from), file(to)).unwrap();
            fs::set_permissions(file(to), Permissions::from_mode(0o600)).unwrap();
        }
    };
    let [trusted, own, key] =
        ["trusted", "own.crt", "own.key"].map(|name| file(name).display().to_string());
    let rest =
        format!("postgres?sslmode=verify-ca&sslrootcert={trusted}&sslcert={own}&sslkey={key}");
    let url = bed.url("shown", "127.0.0.1", &rest);
    for bad in [
        ["other.crt", "shown.crt", "shown.key"],
        ["ca.crt", "other.crt", "other.key"],
        ["ca.crt", "shown.crt", "other.key"],
    ] {
        put(bad);
        refusal(&url).await;
        put(["ca.crt", "shown.crt", "shown.key"]);
        open(&url).await.unwrap_or_else(|error| panic!("after {bad:?}: {error}"));
    }
}

#[tokio::test]
async fn what_a_person_has_mistyped_is_a_rejection_with_its_reason() {
    let bed = Bed::start().await;
    let check = async |login: &str, host: &str, rest: &str, code: Option<&str>, reason: &str| {
        let error = refusal(&bed.url(login, host, rest)).await;
        assert!(error.is_rejection(), "{login} {rest}: {error}");
        assert_eq!(error.sql_state(), code, "{login} {rest}: {error}");
        let text = error.to_string();
        assert!(text.contains(reason), "{login} {rest}: {text}");
        assert!(code.is_none_or(|code| text.contains(code)), "{login} {rest}: {text}");
        assert!(!format!("{text} {error:?}").contains("SECRET"), "{login} {rest}: {text}");
    };
    let here = "127.0.0.1";
    let wrong = "password authentication failed for user";
    check("scram:SECRET", here, "postgres", Some("28P01"), wrong).await;
    check("hashed:SECRET", here, "postgres", Some("28P01"), wrong).await;
    check("absent", here, "postgres", Some("28000"), "no pg_hba.conf entry").await;
    check("stranger", here, "postgres", Some("28000"), "no pg_hba.conf entry").await;
    check("scram", here, "postgres?passfile=", None, "wants a password and there is none").await;
    check("postgres", here, "absent", Some("3D000"), "database \"absent\" does not exist").await;
    let plain = "postgres?sslmode=disable";
    check("gated", here, plain, Some("28000"), "no encryption").await;

    let verify = |mode: &str, root: &str| format!("postgres?sslmode={mode}&{}", bed.root(root));
    let unknown = "UnknownIssuer";
    check("postgres", here, &verify("verify-ca", "other.crt"), None, unknown).await;
    check("postgres", here, &verify("require", "other.crt"), None, unknown).await;
    check("postgres", "localhost", &verify("verify-full", "other.crt"), None, unknown).await;
    check("postgres", here, &verify("verify-full", "ca.crt"), None, "not valid for name").await;
    check("postgres", here, &verify("verify-ca", "absent.crt"), None, "read `sslrootcert`").await;

    bed.server.conf("ssl = off").await.unwrap();
    check("postgres", here, "postgres?sslmode=require", None, "does not offer TLS").await;
    let sql = open(&bed.url("postgres", here, "postgres?sslmode=prefer")).await.unwrap();
    sql.batch_execute("select 1").await.unwrap();
}

#[tokio::test]
async fn a_server_that_may_come_back_is_never_a_rejection() {
    let mut bed = Bed::start().await;
    let url = bed.url("postgres", "127.0.0.1", "postgres?connect_timeout=1");
    let check = |error: &Error, code: Option<&str>| {
        assert!(!error.is_rejection(), "{error}");
        assert_eq!(error.sql_state(), code, "{error}");
    };
    check(&refusal(&bed.url("full", "127.0.0.1", "postgres")).await, Some("53300"));

    // A session that stays keeps the server in its shutdown, in which it answers like one that
    // starts.
    let stays = open(&url).await.unwrap();
    let mut stop = bed.server.command("pg_ctl");
    stop.args(["stop", "--mode=smart", "--no-wait", "-D"]).arg(bed.server.data_dir());
    assert!(stop.output().unwrap().status.success());
    let deadline = Instant::now() + PATIENCE;
    let error = loop {
        match open(&url).await {
            Err(error) => break error,
            Ok(_) => assert!(Instant::now() < deadline, "the server goes on"),
        }
    };
    check(&error, Some("57P03"));

    bed.server.stop(StopMode::Immediate).await.unwrap();
    drop(stays);
    let error = refusal(&url).await;
    check(&error, None);
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");

    // The silent one: it takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let error = refusal(&format!("postgres://u@127.0.0.1:{silent_port}/d?connect_timeout=1")).await;
    check(&error, None);
    assert!(matches!(error, Error::Timeout { seconds: 1, .. }), "{error:?}");
}

#[tokio::test]
async fn a_missing_password_names_the_passfile_that_was_ignored() {
    let bed = Bed::start().await;
    let mut endpoint = Endpoint::parse(&bed.url("scram", "127.0.0.1", "postgres")).unwrap();
    let path = PathBuf::from("/home/somebody/.pgpass");
    endpoint.ignored_passfile = Some(Arc::new(PassfileError::Permissions { path, mode: 0o644 }));
    let text = connect_sql(&endpoint, "the test").await.unwrap_err().to_string();
    assert!(text.contains("there is none: read passfile `/home/somebody/.pgpass`"), "{text}");
    assert!(text.contains("run `chmod 600 /"), "{text}");
    // It is no obstacle where no password is wanted.
    endpoint.user = "postgres".to_owned();
    connect_sql(&endpoint, "the test").await.unwrap();
}

#[tokio::test]
async fn an_error_of_a_query_says_what_the_server_said_without_values() {
    let bed = Bed::start().await;
    let sql = open(&bed.url("postgres", "127.0.0.1", "postgres")).await.unwrap();
    sql.batch_execute(
        "create table public.t (n text primary key); insert into public.t values ('SECRET')",
    )
    .await
    .unwrap();
    let insert = "insert into public.t select n from public.t";
    let error = Error::from(sql.batch_execute(insert).await.unwrap_err());
    let said = "duplicate key value violates unique constraint \"t_pkey\" (SQLSTATE 23505)";
    assert!(error.to_string().ends_with(said), "{error}");
    assert!(!format!("{error} {error:?}").contains("SECRET"), "{error:?}");
    assert_eq!(error.sql_state(), Some("23505"));
    assert!(!error.is_rejection());

    let terminate = "select pg_terminate_backend(pg_backend_pid())";
    let error = Error::from(sql.batch_execute(terminate).await.unwrap_err());
    assert_eq!(error.sql_state(), Some("57P01"), "{error}");
    assert!(!error.is_rejection());
    let error = Error::from(sql.batch_execute("select 1").await.unwrap_err());
    assert!(matches!(error, Error::Lost(_)), "{error:?}");
}

#[tokio::test]
async fn a_session_ends_with_its_value() {
    let bed = Bed::start().await;
    let watcher = bed.server.connect().await.unwrap();
    let count = "select count(*) from pg_stat_activity where application_name = 'the test'";
    let sessions = async || watcher.query_one(count, &[]).await.unwrap().get::<_, i64>(0);
    let url = bed.url("postgres", "127.0.0.1", "postgres");
    for closed in [false, true] {
        let sql = open(&url).await.unwrap();
        assert_eq!(sessions().await, 1);
        if closed {
            sql.close().await;
        } else {
            drop(sql);
        }
        let deadline = Instant::now() + PATIENCE;
        while sessions().await > 0 {
            assert!(Instant::now() < deadline, "the session lives on; closed: {closed}");
            sleep(Duration::from_millis(2)).await;
        }
    }
}
