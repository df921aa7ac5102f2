//! A throwaway server, with roles and certificates.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;
use walsweep::capture::Replication;
use walsweep::postgres::{Endpoint, Sql, connect_sql};

/// The password of every role that has one, as a URL writes it.
pub(crate) const PASSWORD: &str = "pass%20word%3A%40";

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
pub(crate) struct Server {
    folder: TempDir,
    child: Child,
    pub(crate) port: u16,
}

/// The newest Postgres in Debian's place, or the one in `POSTGRES_BIN`.
fn bin(program: &str) -> PathBuf {
    let newest = || {
        let versions = fs::read_dir("/usr/lib/postgresql").expect("Postgres is installed");
        let version = versions
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .max()
            .expect("Postgres is installed");
        PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"))
    };
    std::env::var_os("POSTGRES_BIN").map_or_else(newest, PathBuf::from).join(program)
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
    pub(crate) async fn start() -> Server {
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn socket_url(&self) -> String {
        format!("postgres://postgres@/postgres?host={}&port={}", self.path("").display(), self.port)
    }

    /// A URL for TCP; `login` is `user` or `user:password`.
    pub(crate) fn url(&self, login: &str, host: &str, parameters: &str) -> String {
        format!("postgres://{login}@{host}:{}/postgres?{parameters}", self.port)
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::parse(&self.url("postgres", "127.0.0.1", "")).unwrap()
    }

    pub(crate) async fn sql(&self) -> Sql {
        let sql = connect_sql(&Endpoint::parse(&self.socket_url()).unwrap(), "test").await.unwrap();
        sql.act_as_role().await.unwrap();
        sql
    }

    pub(crate) async fn version(&self) -> i32 {
        let query = "select current_setting('server_version_num')::int";
        self.sql().await.query_one(query, &[]).await.unwrap().get(0)
    }

    pub(crate) async fn replication(&self) -> Replication {
        Replication::connect(&self.endpoint(), "test").await.unwrap()
    }

    /// Serves another certificate from now on.
    pub(crate) async fn use_certificate(&self, name: &str) {
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

    pub(crate) fn signal(&self, signal: &str) {
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
    let ec = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for name in ["ca", "other"] {
        openssl(&format!("req -x509 {ec} -subj /CN={name} -keyout {name}.key -out {name}.crt"));
    }
    openssl(&format!("req {ec} -subj /CN=localhost -keyout server.key -out server.csr"));
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
