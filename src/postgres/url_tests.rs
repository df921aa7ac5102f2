//! URLs: what libpq reads, and what is refused.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::ParseError;
use crate::postgres::{ChannelBinding, Endpoint, SslMode};

/// `user|password|host|port|database`, a dash for no password.
fn summary(url: &str) -> String {
    let endpoint = Endpoint::parse(url).unwrap();
    let password = endpoint.password.given().map_or("-", |password| password.expose_secret());
    let Endpoint { user, host, port, database, .. } = &endpoint;
    format!("{user}|{password}|{host}|{port}|{database}")
}

#[test]
fn a_url_is_read_as_libpq_reads_it() {
    for (url, expected) in [
        ("postgres://u@h", "u|-|h|5432|u"),
        ("postgresql://u:p@h:6543/d", "u|p|h|6543|d"),
        ("postgres://u:@h/", "u|-|h|5432|u"),
        ("postgres://u:p%40%3A%2f%25@h/d%20b", "u|p@:/%|h|5432|d b"),
        ("postgres://u:pa?ss:w@h/d", "u|pa?ss:w|h|5432|d"),
        ("postgres://u@[::1]:6543/d", "u|-|::1|6543|d"),
        ("postgres://u@[fe80::1]/d", "u|-|fe80::1|5432|d"),
        ("postgres://u@%2Frun%2Fpostgresql:6543/d", "u|-|/run/postgresql|6543|d"),
        ("postgres://u@/d?host=/run/postgresql&port=1", "u|-|/run/postgresql|1|d"),
        ("postgres:///d?host=h&user=u&password=p%26", "u|p&|h|5432|d"),
        ("postgres://u@h/d?dbname=e&host=i", "u|-|i|5432|e"),
        ("postgres://h?user=u&", "u|-|h|5432|u"),
    ] {
        assert_eq!(summary(url), expected, "{url}");
    }
}

#[test]
fn several_hosts_are_read_as_libpq_reads_them() {
    for (url, expected) in [
        ("postgres://u@a,b/d", "a:5432,b:5432"),
        ("postgres://u@a:1,b:2/d?target_session_attrs=primary", "a:1,b:2"),
        ("postgres://u@a:1,b/d?target_session_attrs=read-write", "a:1,b:5432"),
        ("postgres://u@a,b:2", "a:5432,b:2"),
        ("postgres://u@[::1]:1,[::2]/d", "[::1]:1,[::2]:5432"),
        ("postgres:///d?user=u&host=a,b&port=1,2", "a:1,b:2"),
        ("postgres:///d?user=u&host=a,b&port=1", "a:1,b:1"),
        ("postgres://u@/d?host=/run/a,/run/b", "/run/a/.s.PGSQL.5432,/run/b/.s.PGSQL.5432"),
        ("postgres://u@%2Frun%2Fa,h/d", "/run/a/.s.PGSQL.5432,h:5432"),
    ] {
        let endpoint = Endpoint::parse(url).unwrap();
        assert_eq!(endpoint.address(), expected, "{url}");
        let each: Vec<String> = endpoint.each().map(|one| one.address()).collect();
        assert_eq!(each.join(","), expected, "{url}");
        assert!(endpoint.is_several() && endpoint.each().all(|one| !one.is_several()), "{url}");
        let last = each.last().unwrap();
        assert_eq!(endpoint.only(last).address(), *last, "{url}");
        assert_eq!(endpoint.only("elsewhere:1").address(), expected, "{url}");
    }
}

#[test]
fn parameters_are_read_and_have_defaults() {
    let endpoint = Endpoint::parse("postgres://u@h").unwrap();
    assert_eq!(endpoint.ssl_mode, SslMode::Prefer);
    assert_eq!(endpoint.ssl_root_cert, None);
    assert_eq!(endpoint.channel_binding, ChannelBinding::Prefer);
    assert_eq!(endpoint.connect_timeout, Duration::from_secs(10));
    assert_eq!(endpoint.passfile, None);

    let endpoint = Endpoint::parse(
        "postgres://u@h?sslmode=verify-ca&sslrootcert=/ca.pem&connect_timeout=3\
         &passfile=/pass&channel_binding=require",
    )
    .unwrap();
    assert_eq!(endpoint.ssl_mode, SslMode::VerifyCa);
    assert_eq!(endpoint.ssl_root_cert, Some("/ca.pem".into()));
    assert_eq!(endpoint.channel_binding, ChannelBinding::Require);
    assert_eq!(endpoint.connect_timeout, Duration::from_secs(3));
    assert_eq!(endpoint.passfile, Some("/pass".into()));

    for (value, mode) in [
        ("disable", SslMode::Disable),
        ("allow", SslMode::Prefer),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("verify-full", SslMode::VerifyFull),
    ] {
        let endpoint = Endpoint::parse(&format!("postgres://u@h?sslmode={value}")).unwrap();
        assert_eq!(endpoint.ssl_mode, mode, "{value}");
    }
}

#[test]
fn the_systems_authorities_are_only_trusted_with_the_name_checked() {
    let endpoint = Endpoint::parse("postgres://u@h?sslrootcert=system").unwrap();
    assert_eq!((endpoint.ssl_mode, endpoint.ssl_root_cert), (SslMode::VerifyFull, None));
    let weak = Endpoint::parse("postgres://u@h?sslrootcert=system&sslmode=require");
    assert!(matches!(weak, Err(ParseError::Value { parameter: "sslmode", .. })));
}

#[test]
fn a_wrong_url_says_which_part_is_wrong() {
    let check = |url: &str, expected: ParseError| {
        assert_eq!(Endpoint::parse(url).map(|_| ()), Err(expected), "{url}");
    };
    check("mysql://u@h", ParseError::Scheme);
    check("host=h user=u", ParseError::Scheme);
    check("postgres://", ParseError::User);
    check("postgres://h/d", ParseError::User);
    check("postgres://u@/d", ParseError::Host);
    check("postgres://u@a,/d", ParseError::Host);
    check("postgres://u@,b/d", ParseError::Host);
    check("postgres://u@a,b/d?port=1,2,3", ParseError::Ports { hosts: 2, ports: 3 });
    check("postgres://u@a/d?port=1,2", ParseError::Ports { hosts: 1, ports: 2 });
    check("postgres://u@[::1,b/d", ParseError::Address);
    check("postgres://u@[::1/d", ParseError::Address);
    check("postgres://u@[::1]x/d", ParseError::Address);
    check("postgres://u@@h", ParseError::At);
    check("postgres://u@h/%zz", ParseError::Percent);
    check("postgres://u@h/%0", ParseError::Percent);
    check("postgres://u@h/%00", ParseError::Percent);
    check("postgres://u@h/%ff", ParseError::Percent);
    check("postgres://u@h?sslmode", ParseError::Parameter);
    check("postgres://u@h?sslmode=a=b", ParseError::Parameter);
    let unknown = ["krbsrvname", "sslcrl"].map(str::to_owned).to_vec();
    check(
        "postgres://u@h?krbsrvname=x&keepalives=1&sslcrl=y&application_name=app",
        ParseError::Parameters { unknown, unsupported: Vec::new() },
    );
    // All at once, whatever is wrong with them.
    let all = "postgres://u@h?krbsrvname=x&options=-cx&gssencmode=require&client_encoding=latin1";
    let said = Endpoint::parse(all).unwrap_err().to_string();
    for part in [
        "unknown parameters: `krbsrvname`; known are: `user`",
        "`options`: ",
        "`gssencmode`: ",
        "`client_encoding`: ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for (url, wrong) in [
        ("postgres://u@h?options=-csearch_path%3Da", "`options`: "),
        ("postgres://u@h?gssencmode=require", "`gssencmode`: "),
        ("postgres://u@h?target_session_attrs=standby", "`target_session_attrs`: "),
        ("postgres://u@h?client_encoding=latin1", "`client_encoding`: "),
        ("postgres://u@h?sslcert=a", "invalid `sslkey`"),
        ("postgres://u@h?sslkey=a", "invalid `sslcert`"),
    ] {
        let error = Endpoint::parse(url).unwrap_err();
        assert!(error.to_string().contains(wrong), "{url}: {error}");
    }
    for (url, wrong) in [
        ("postgres://u@h:0", "port"),
        ("postgres://u@h:65536", "port"),
        ("postgres://u@h:x", "port"),
        ("postgres://u@h:1,i:x", "port"),
        ("postgres://u@h?sslmode=on", "sslmode"),
        ("postgres://u@h?channel_binding=on", "channel_binding"),
        ("postgres://u@h?connect_timeout=0", "connect_timeout"),
        ("postgres://u@h?connect_timeout=-1", "connect_timeout"),
    ] {
        let error = Endpoint::parse(url).unwrap_err();
        assert!(error.to_string().contains(&format!("invalid `{wrong}`")), "{url}: {error}");
    }
}

#[test]
fn no_text_made_of_an_endpoint_holds_its_password() {
    let endpoint = Endpoint::parse("postgres://u:hunter2@h:1/d").unwrap();
    assert_eq!(endpoint.to_string(), "u@h:1/d");
    assert!(!format!("{endpoint:?}").contains("hunter2"));
}

#[test]
fn an_error_never_holds_a_piece_of_a_password_that_is_not_encoded() {
    for url in [
        "postgres://u:SECRET@SECRET@h/d",
        "postgres://u:SEC/SECRET@h/d",
        "postgres://u:SECRET/SECRET@h/d?x=y",
        "postgres://u:SEC%SECRET@h/d",
        "postgres://u:SECRET",
        "postgres://u:x?SECRET=SECRET",
        "postgres://u:SECRET@h?SECRET",
        "postgres:/u:SECRET@h",
    ] {
        let error = Endpoint::parse(url).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("SEC"), "{url}: {error}");
    }
}
