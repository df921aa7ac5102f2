//! Connections to Redis: over TLS, a socket, with a user, and what is said when there is none.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Value, cmd};
use tempfile::TempDir;
use walsweep::config;
use walsweep::load::judge;
use walsweep::sweep::connect::{ConnectError, connect};
use walsweep::throwaway::{Redis, RedisOptions};

/// A server with a user, that also listens on a socket and with TLS.
struct Bed {
    server: Redis,
    folder: TempDir,
    tls_port: u16,
}

impl Bed {
    async fn start() -> Bed {
        let folder = tempfile::tempdir().unwrap();
        make_certificates(folder.path());
        let tls_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let file = |name: &str| folder.path().join(name).display().to_string();
        let args = format!(
            "--tls-port {tls_port} --tls-auth-clients no --tls-cert-file {} --tls-key-file {} \
             --tls-ca-cert-file {} --unixsocket {} --user default on nopass ~* &* +@all \
             --user app on >se%cret ~* &* +@all",
            file("server.crt"),
            file("server.key"),
            file("ca.crt"),
            file("socket"),
        );
        let args = args.split(' ').map(str::to_owned).collect();
        let server = Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap();
        Bed { server, folder, tls_port }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tcp(&self, rest: &str) -> String {
        format!("redis://{rest}").replace("HOST", &format!("127.0.0.1:{}", self.server.port()))
    }

    fn tls(&self, host: &str) -> String {
        format!("rediss://{host}:{}/0", self.tls_port)
    }

    fn socket(&self, parameters: &str) -> String {
        format!("redis+unix://{}{parameters}", self.file("socket").display())
    }
}

/// An authority, the certificate for `localhost` that it vouches for, and another authority.
fn make_certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        let output = command.args(arguments.split(' ')).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", output.stderr.escape_ascii());
    };
    let new = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for name in ["ca", "other"] {
        openssl(&format!("{new} -x509 -subj /CN={name} -keyout {name}.key -out {name}.crt"));
    }
    openssl(&format!("{new} -subj /CN=localhost -keyout server.key -out server.csr"));
    fs::write(folder.join("extensions"), "subjectAltName=DNS:localhost").unwrap();
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
         -extfile extensions -out server.crt",
    );
}

/// `[redis]` of a configuration with these lines.
fn redis(lines: &str) -> config::Redis {
    let text = format!(
        "[postgres]\nurl = 'postgres://walsweep@h/app'\n[redis]\n{lines}\n\
         [[rule]]\nname = 'a'\ntable = 'a'\nkeys = ['k']\n"
    );
    judge(&text, &|_| None).unwrap_or_else(|problems| panic!("{problems:#?}")).0.redis
}

async fn client_info(connection: &mut MultiplexedConnection) -> String {
    cmd("CLIENT").arg("INFO").query_async(connection).await.unwrap()
}

#[tokio::test]
async fn every_way_in_gives_a_named_connection_of_its_user_and_database() {
    let bed = Bed::start().await;
    let password = bed.file("password");
    fs::write(&password, "se%cret\n").unwrap();
    let with_file = |url: &str| format!("url = '{url}'\npassword_file = '{}'", password.display());
    let with_ca =
        |url: &str| format!("url = '{url}'\nca_file = '{}'", bed.file("ca.crt").display());
    for (lines, user, database) in [
        (format!("url = '{}'", bed.tcp("HOST")), "default", 0),
        (format!("url = '{}'", bed.tcp("app:se%25cret@HOST/3")), "app", 3),
        (with_file(&bed.tcp("app@HOST/2")), "app", 2),
        (format!("url = '{}'", bed.socket("?db=1&user=app&pass=se%25cret")), "app", 1),
        (with_file(&bed.socket("?user=app")), "app", 0),
        (format!("url = '{}'", bed.socket("")), "default", 0),
        (with_ca(&bed.tls("localhost")), "default", 0),
        (with_ca(&bed.tls("app:se%25cret@localhost")), "app", 0),
    ] {
        let config = redis(&lines);
        assert!(!format!("{config:?}").contains("%cret"), "{config:?}");
        assert!(!config.url.contains("cret"), "{}", config.url);
        let mut connection = connect(&config).await.unwrap_or_else(|e| panic!("{lines}: {e}"));
        let info = client_info(&mut connection).await;
        for part in ["name=walsweep".to_owned(), format!("user={user}"), format!("db={database}")] {
            assert!(info.split(' ').any(|one| one == part), "{lines}: no {part} in {info}");
        }
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_trusted_or_refuses_is_an_error_without_secrets() {
    let bed = Bed::start().await;
    let with_ca = |url: &str, ca: &str| {
        redis(&format!("url = '{url}'\nca_file = '{}'", bed.file(ca).display()))
    };
    let plain = |url: &str| redis(&format!("url = '{url}'"));
    let mut gone = with_ca(&bed.tls("localhost"), "ca.crt");
    gone.ca_file = Some(bed.file("gone.crt"));
    for (what, config, said) in [
        ("other authority", with_ca(&bed.tls("localhost"), "other.crt"), "connect to redis: "),
        ("other name", with_ca(&bed.tls("127.0.0.1"), "ca.crt"), "connect to redis: "),
        ("system's authorities", plain(&bed.tls("localhost")), "connect to redis: "),
        ("wrong password", plain(&bed.tcp("app:hunter2@HOST")), "connect to redis: "),
        ("unknown user", plain(&bed.tcp("hunter2:hunter2@HOST")), "connect to redis: "),
        ("no such database", plain(&bed.tcp(":hunter2@HOST/99")), "connect to redis: "),
        ("file that went away", gone, "read `redis.ca_file` `"),
    ] {
        let error = connect(&config).await.err().unwrap_or_else(|| panic!("{what}: let in"));
        let (shown, debug) = (error.to_string(), format!("{error:?}"));
        assert!(shown.starts_with(said), "{what}: {shown}");
        assert!(!shown.contains("hunter2") && !debug.contains("hunter2"), "{what}: {debug}");
        let is_file = matches!(error, ConnectError::CaFile { .. });
        assert_eq!(is_file, what == "file that went away", "{what}: {debug}");
    }
}

/// The client library's default would give up after half a second.
#[tokio::test]
async fn a_reply_may_take_longer_than_a_second() {
    let bed = Bed::start().await;
    let mut connection = connect(&redis(&format!("url = '{}'", bed.tcp("HOST")))).await.unwrap();
    let mut admin = bed.server.connect().await.unwrap();
    let mut pause = cmd("CLIENT");
    pause.arg("PAUSE").arg(1_200).arg("ALL").exec_async(&mut admin).await.unwrap();
    let start = tokio::time::Instant::now();
    let reply: Value = cmd("PING").query_async(&mut connection).await.unwrap();
    assert_eq!(reply, Value::SimpleString("PONG".to_owned()));
    assert!(start.elapsed() > Duration::from_secs(1), "it did not wait");
}

#[tokio::test]
async fn a_user_who_may_not_name_a_connection_still_connects() {
    let bed = Bed::start().await;
    let mut admin = bed.server.connect().await.unwrap();
    let mut limit = cmd("ACL");
    limit.arg("SETUSER").arg("app").arg("-client|setname");
    limit.exec_async(&mut admin).await.unwrap();
    let config = redis(&format!("url = '{}'", bed.tcp("app:se%25cret@HOST")));
    let mut connection = connect(&config).await.unwrap();
    let info = client_info(&mut connection).await;
    assert!(info.contains("user=app") && info.contains("name= "), "{info}");
}
