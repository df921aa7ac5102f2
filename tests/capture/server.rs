//! A throwaway server, with roles and certificates.

use std::fs;
use std::path::PathBuf;

use walsweep::capture::Replication;
use walsweep::postgres::{Endpoint, Sql, connect_sql};
use walsweep_stage::throwaway::{self, Postgres, PostgresOptions, Signal};

use crate::certificates::Certificates;

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
    server: Postgres,
    certificates: Certificates,
    pub(crate) port: u16,
}

impl Server {
    /// Starts it. TLS is by a certificate `server` of the authority `ca`; the manual's self-signed
    /// one (`manual`) and one that names no hash (`ed25519`) wait to be used.
    pub(crate) async fn start() -> Server {
        let server = Postgres::start(PostgresOptions::default()).await.unwrap();
        server.connect().await.unwrap().batch_execute(ROLES).await.unwrap();
        fs::write(server.data_dir().join("pg_hba.conf"), HBA).unwrap();
        let certificates = Certificates::new(&server.new_folder("certificates").unwrap());
        certificates.sign("server", "localhost", "DNS:localhost");
        certificates.sign_itself("manual", "rsa:2048");
        certificates.sign_itself("ed25519", "ed25519");
        server.conf(&certificates.conf()).await.unwrap();
        let port = server.port();
        Server { server, certificates, port }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.certificates.file(name)
    }

    pub(crate) fn socket_url(&self) -> String {
        let folder = self.server.socket_dir();
        format!("postgres://postgres@/postgres?host={}&port={}", folder.display(), self.port)
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
        for kind in ["crt", "key"] {
            let from = self.path(&format!("{name}.{kind}"));
            fs::rename(from, self.path(&format!("server.{kind}"))).unwrap();
        }
        self.server.conf("").await.unwrap();
    }

    /// Signals the server itself, not its sessions.
    pub(crate) fn signal(&self, signal: Signal) {
        let file = fs::read_to_string(self.server.data_dir().join("postmaster.pid")).unwrap();
        let process = file.lines().next().unwrap().parse().unwrap();
        throwaway::signal(&[process], signal).unwrap();
    }
}
