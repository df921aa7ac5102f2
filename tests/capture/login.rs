//! Who gets in, how, and how it is told when not.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tokio::time::Instant;
use walsweep::capture::{self, Replication};
use walsweep::postgres::{self, Endpoint, connect_sql};

use crate::server::{PASSWORD, Server};

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

/// Keys are made of values as the session prints them, and one warning is an error to it.
#[tokio::test]
async fn settings_of_the_role_do_not_show_in_the_stream() {
    let server = Server::start().await;
    let rows = [
        ("client_min_messages", "error", "warning"),
        ("client_encoding", "LATIN1", "UTF8"),
        ("datestyle", "SQL", "ISO, MDY"),
        ("intervalstyle", "iso_8601", "postgres"),
        ("extra_float_digits", "-3", "3"),
        ("timezone", "Asia/Tokyo", "UTC"),
        ("bytea_output", "escape", "hex"),
        ("logical_decoding_work_mem", "64MB", "1MB"),
    ];
    let sql = server.sql().await;
    for (setting, odd, _) in rows {
        sql.batch_execute(&format!("alter role postgres set {setting} = '{odd}'")).await.unwrap();
    }
    let endpoint = Endpoint::parse(&server.url("postgres", "127.0.0.1", "")).unwrap();
    let mut replication = Replication::connect(&endpoint, "test").await.unwrap();
    for (setting, _, expected) in rows {
        let row = replication.query_row("show a setting", &format!("SHOW {setting}")).await;
        assert_eq!(row.unwrap(), [Some(expected.to_owned())], "{setting}");
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
