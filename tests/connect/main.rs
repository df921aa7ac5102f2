//! Connections to a real Redis as the configuration describes them: logins, databases, TLS.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

#[path = "../support/certificates.rs"]
mod certificates;

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use redis::aio::MultiplexedConnection;
use redis::{Value, cmd};
use tempfile::TempDir;
use tokio::time::Instant;
use walsweep::config::{self, Mode, Sentinel};
use walsweep::password::Source;
use walsweep::sweep::redis::connect::{ConnectError, connect};
use walsweep::sweep::{Error, Kind};
use walsweep_stage::throwaway::{Redis, RedisOptions, free_port};

use crate::certificates::Certificates;

async fn server(args: &[&str]) -> Redis {
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap()
}

fn settings(url: &str, password: Option<&str>, ca_file: Option<&Path>) -> config::Redis {
    let password = password.map_or(Source::None, |text| Source::Given(text.into()));
    let ca_file = ca_file.map(Path::to_owned);
    config::Redis { password, ca_file, ..config::Redis::at(url) }
}

async fn say(connection: &mut MultiplexedConnection, words: &[&str]) -> String {
    let mut command = cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    command.query_async(connection).await.unwrap()
}

/// The failure of a connection that must not come about, and its text.
async fn refused(settings: &config::Redis) -> (ConnectError, String) {
    let error = connect(settings).await.map(|_| ()).unwrap_err();
    let text = error.to_string();
    (error, text)
}

#[tokio::test]
async fn a_password_is_asked_for_and_never_told() {
    let server = server(&["--requirepass", "hunter2"]).await;
    let url = server.url();
    let mut connection = connect(&settings(&url, Some("hunter2"), None)).await.unwrap();
    assert_eq!(say(&mut connection, &["PING"]).await, "PONG");

    let (error, text) = refused(&settings(&url, Some("hunter3"), None)).await;
    assert!(!text.contains("hunter"), "{text}");
    assert!(!format!("{error:?}").contains("hunter"), "{error:?}");
    let error = Error::from(error);
    assert_eq!(error.kind(), Kind::Auth, "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("password")));
}

#[tokio::test]
async fn a_user_of_an_acl_logs_in_with_no_other_right() {
    let server = server(&[]).await;
    let mut root = server.connect().await.unwrap();
    let rights = ["ACL", "SETUSER", "sweeper", "on", ">hunter2", "~*", "+unlink"];
    assert_eq!(say(&mut root, &rights).await, "OK");
    let url = server.url().replace("redis://", "redis://sweeper@");

    let mut connection = connect(&settings(&url, Some("hunter2"), None)).await.unwrap();
    let removed: u64 = cmd("UNLINK").arg("nothing").query_async(&mut connection).await.unwrap();
    assert_eq!(removed, 0);
    // CLIENT SETNAME is not among its rights; the name is all that is missing.
    let clients = say(&mut root, &["CLIENT", "LIST"]).await;
    assert!(clients.contains("user=sweeper"), "{clients}");
    assert!(!clients.contains("name=walsweep"), "{clients}");

    let (error, text) = refused(&settings(&url, Some("hunter3"), None)).await;
    assert!(!text.contains("hunter"), "{text}");
    assert_eq!(Error::from(error).kind(), Kind::Auth);
}

#[tokio::test]
async fn the_database_of_the_url_is_selected_and_the_connection_is_named() {
    let server = server(&[]).await;
    let url = format!("redis://127.0.0.1:{}/3", server.port());
    let mut connection = connect(&settings(&url, None, None)).await.unwrap();
    assert_eq!(say(&mut connection, &["SET", "k", "v"]).await, "OK");
    assert_eq!(say(&mut connection, &["CLIENT", "GETNAME"]).await, "walsweep");

    let mut root = server.connect().await.unwrap();
    let in_zero: bool = cmd("EXISTS").arg("k").query_async(&mut root).await.unwrap();
    assert!(!in_zero);
    say(&mut root, &["SELECT", "3"]).await;
    assert_eq!(say(&mut root, &["GET", "k"]).await, "v");

    let url = format!("redis://127.0.0.1:{}/99", server.port());
    let (_, text) = refused(&settings(&url, None, None)).await;
    let expected = format!(
        "connect to redis at `127.0.0.1:{}`: choose the database: DB index is out of range",
        server.port()
    );
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_unix_socket_is_reached_with_user_and_password() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let server = server(&["--unixsocket", socket.to_str().unwrap()]).await;
    let mut root = server.connect().await.unwrap();
    let rights = ["ACL", "SETUSER", "sweeper", "on", ">hunter2", "~*", "+@all"];
    assert_eq!(say(&mut root, &rights).await, "OK");

    let url = format!("redis+unix://{}?user=sweeper&db=2", socket.display());
    let mut connection = connect(&settings(&url, Some("hunter2"), None)).await.unwrap();
    assert_eq!(say(&mut connection, &["ACL", "WHOAMI"]).await, "sweeper");
    let info = say(&mut connection, &["CLIENT", "INFO"]).await;
    assert!(info.contains(" db=2 "), "{info}");
}

#[tokio::test]
async fn a_lost_connection_stays_lost() {
    let mut server = server(&[]).await;
    let mut connection = connect(&settings(&server.url(), None, None)).await.unwrap();
    server.kill9().await.unwrap();
    server.start_again().await.unwrap();
    for _ in 0..3 {
        let reply: Result<Value, _> = cmd("PING").query_async(&mut connection).await;
        assert!(reply.is_err(), "{reply:?}");
    }
}

#[tokio::test]
async fn a_port_where_nobody_listens_says_so() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (error, text) = refused(&settings(&format!("redis://127.0.0.1:{port}"), None, None)).await;
    let expected = format!("connect to redis at `127.0.0.1:{port}`: Connection refused");
    assert!(text.starts_with(&expected), "{text}");
    assert_eq!(Error::from(error).kind(), Kind::Io);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_given_up_after_five_seconds() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", silent.local_addr().unwrap());
    let begin = Instant::now();
    let (error, _) = refused(&settings(&url, Some("hunter2"), None)).await;
    assert_eq!(Error::from(error).kind(), Kind::Timeout);
    assert_eq!(begin.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn a_reply_may_take_as_long_as_a_busy_server_needs() {
    let server = server(&[]).await;
    let mut connection = connect(&settings(&server.url(), None, None)).await.unwrap();
    // Twice what the client library waits unless told otherwise.
    let blocked: Value =
        cmd("BLPOP").arg("nothing").arg(1).query_async(&mut connection).await.unwrap();
    assert_eq!(blocked, Value::Nil);
}

/// Two certificate authorities, one of which has signed a certificate for 127.0.0.1.
struct Authorities {
    certificates: Certificates,
    _folder: TempDir,
}

impl Authorities {
    fn new() -> Authorities {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::new(folder.path());
        certificates.sign("server", "redis", "IP:127.0.0.1");
        Authorities { certificates, _folder: folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.certificates.file(name)
    }

    /// A server that speaks TLS, and its URL.
    async fn server(&self, asks_for_certificate: &str) -> (Redis, String) {
        let port = free_port().unwrap();
        let args = self.args(port, asks_for_certificate);
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.extend(["--requirepass", "hunter2"]);
        (server(&args).await, format!("rediss://127.0.0.1:{port}/1"))
    }

    /// A Sentinel that speaks TLS and takes the server at this port for the primary of `cache`, and
    /// its port.
    async fn sentinel(&self, primary: u16) -> (Redis, u16) {
        let port = free_port().unwrap();
        let mut args = self.args(port, "no");
        args.push("--sentinel".to_owned());
        let conf = Some(format!("sentinel monitor cache 127.0.0.1 {primary} 1\n"));
        let options = RedisOptions { args, conf, ..RedisOptions::default() };
        (Redis::start(options).await.unwrap(), port)
    }

    /// The arguments for TLS at this port.
    fn args(&self, port: u16, asks_for_certificate: &str) -> Vec<String> {
        let [pem, key, ca] = ["server.crt", "server.key", "ca.crt"].map(|name| self.file(name));
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let args = [
            ("--tls-port", port.to_string()),
            ("--tls-auth-clients", asks_for_certificate.to_owned()),
            ("--tls-cert-file", text(&pem)),
            ("--tls-key-file", text(&key)),
            ("--tls-ca-cert-file", text(&ca)),
        ];
        args.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}

/// `ca_file` is for both; a certificate vouches for the address that is connected to.
#[tokio::test]
async fn sentinels_and_the_server_that_they_name_may_ask_for_tls() {
    let authorities = Authorities::new();
    let (_server, url) = authorities.server("no").await;
    let port = url.rsplit(':').next().unwrap().trim_end_matches("/1").parse().unwrap();
    let (_sentinel, sentinel_port) = authorities.sentinel(port).await;
    let with = |scheme: &str, ca: &str| {
        let url = format!("{scheme}://127.0.0.1:{sentinel_port}");
        let list = vec![Sentinel { url, password: Source::None }];
        let mode = Mode::Sentinel(config::Sentinels { service: "cache".to_owned(), list });
        let url = "rediss://cache/1";
        let ca_file = authorities.file(ca);
        config::Redis { mode, ..settings(url, Some("hunter2"), Some(&ca_file)) }
    };
    let mut connection = connect(&with("rediss", "ca.crt")).await.unwrap();
    assert!(say(&mut connection, &["CLIENT", "INFO"]).await.contains(" db=1 "));
    let (_, text) = refused(&with("rediss", "other.crt")).await;
    assert!(text.contains("ask the Sentinels for the primary of `cache`: `127.0.0.1:"), "{text}");
    assert!(text.contains("invalid peer certificate: UnknownIssuer"), "{text}");
    refused(&with("redis", "ca.crt")).await;
}

#[tokio::test]
async fn tls_trusts_the_authority_of_ca_file_and_no_other() {
    let authorities = Authorities::new();
    let (_server, url) = authorities.server("no").await;
    let trusted = settings(&url, Some("hunter2"), Some(&authorities.file("ca.crt")));
    let mut connection = connect(&trusted).await.unwrap();
    assert_eq!(say(&mut connection, &["PING"]).await, "PONG");
    assert!(say(&mut connection, &["CLIENT", "INFO"]).await.contains(" db=1 "));

    let other = authorities.file("other.crt");
    for ca_file in [Some(other.as_path()), None] {
        let (error, text) = refused(&settings(&url, Some("hunter2"), ca_file)).await;
        assert!(text.contains("invalid peer certificate: UnknownIssuer"), "{ca_file:?} {text}");
        assert_eq!(Error::from(error).kind(), Kind::Io);
    }
    let by_name = config::Redis { url: url.replace("127.0.0.1", "localhost"), ..trusted };
    let (_, text) = refused(&by_name).await;
    assert!(text.contains("not valid for name \"localhost\""), "{text}");
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_is_shown_one() {
    let authorities = Authorities::new();
    let (_server, url) = authorities.server("yes").await;
    let without = settings(&url, Some("hunter2"), Some(&authorities.file("ca.crt")));
    refused(&without).await;
    let files = ["server.crt", "server.key"].map(|name| authorities.file(name));
    let own = Some(files.clone().into());
    let with = config::Redis { client_certificate: own, ..without };
    let mut connection = connect(&with).await.unwrap();
    assert_eq!(say(&mut connection, &["PING"]).await, "PONG");
    std::fs::remove_file(&files[1]).unwrap();
    let (_, text) = refused(&with).await;
    assert!(text.contains("server.key`: No such file"), "{text}");
}

/// Each file is replaced while the program runs, as whoever renews certificates does.
#[tokio::test]
async fn certificates_that_change_are_read_at_the_next_login() {
    let authorities = Authorities::new();
    let (_server, url) = authorities.server("yes").await;
    let files = ["trusted", "own.crt", "own.key"].map(|name| authorities.file(name));
    let put = |from: [&str; 3]| {
        for (from, to) in from.iter().zip(&files) {
            std::fs::copy(authorities.file(from), to).unwrap();
        }
    };
    let with = settings(&url, Some("hunter2"), Some(&files[0]));
    let own = Some((files[1].clone(), files[2].clone()));
    let with = config::Redis { client_certificate: own, ..with };
    let good = ["ca.crt", "server.crt", "server.key"];
    for bad in [
        ["other.crt", "server.crt", "server.key"],
        ["ca.crt", "other.crt", "other.key"],
        ["ca.crt", "server.crt", "other.key"],
    ] {
        put(bad);
        refused(&with).await;
        put(good);
        let mut connection = connect(&with).await.unwrap();
        assert_eq!(say(&mut connection, &["PING"]).await, "PONG", "after {bad:?}");
    }
}

#[tokio::test]
async fn a_ca_file_that_cannot_be_used_is_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authorities.pem");
    let settings = settings("rediss://127.0.0.1:1", None, Some(&path));
    let (_, text) = refused(&settings).await;
    assert!(text.contains("authorities.pem`: No such file"), "{text}");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (content, reason) in [
        ("hello\n", "the file holds no certificate"),
        (broken, "invalid peer certificate: BadEncoding"),
    ] {
        std::fs::write(&path, content).unwrap();
        let (error, text) = refused(&settings).await;
        assert!(matches!(error, ConnectError::CaFile { .. }), "{error:?}");
        assert!(text.starts_with("read `redis.ca_file` `") && text.ends_with(reason), "{text}");
    }
}
