//! Several hosts in one URL: the primary among them, and nobody else.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;
use walsweep_stage::throwaway::{Postgres, free_port};

use crate::large::peak;
use crate::support::{Bed, Fault, PATIENCE, Proxy, Settings, Sidecar, Sql, eventually, text};

/// A rule that needs a row, and so a session of its own.
const LOOKUP_RULES: &str = r#"
[lookup.team]
sql = "select name from public.team where id = $1"
params = ["team"]
cache = 0

[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}", "roster:{team.name}"]
"#;

/// A URL of these ports of 127.0.0.1, in this order.
fn url(ports: &[u16], parameters: &str) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("postgres://postgres@{}/postgres{parameters}", hosts.join(","))
}

fn settings(bed: &Bed, url: String) -> Settings {
    Settings { postgres_url: url, ..bed.settings() }
}

async fn follows(standby: &Postgres, bed: &Bed) {
    let position = bed.position().await;
    eventually(PATIENCE, "the standby follows", || async {
        let Ok(client) = standby.connect().await else { return false };
        let replayed = "select coalesce(pg_last_wal_replay_lsn(), '0/0')::text";
        let row = client.query_one(replayed, &[]).await.unwrap();
        row.get::<_, String>(0).parse::<walsweep::lsn::Lsn>().unwrap() >= position
    })
    .await;
}

/// Nobody listens at the first host, the second is a standby, the third never says a word.
#[tokio::test]
async fn every_command_passes_over_hosts_that_are_no_primary() {
    let bed = Bed::new(&[]).await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    let mute = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let dead = free_port().unwrap();
    let hosts = [dead, standby.port(), mute.local_addr().unwrap().port(), bed.postgres.port()];
    let url = url(&hosts, "?target_session_attrs=read-write&connect_timeout=1");
    let mut sidecar = Sidecar::new(settings(&bed, url.clone()));
    sidecar.setup();
    let check = sidecar.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
    assert!(!text(&check).contains("is a standby"), "as it may be: {}", text(&check));
    sidecar.start();
    sidecar.wait_ready().await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    assert_eq!(sidecar.sigterm().await, 0);
    let teardown = sidecar.command(&["teardown", "--as", &url]);
    assert!(teardown.status.success(), "{}", text(&teardown));
    drop(standby);
}

#[tokio::test]
async fn where_no_host_is_a_primary_each_is_named_with_the_reason() {
    let bed = Bed::new(&[]).await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    let dead = free_port().unwrap();
    let sidecar = Sidecar::new(settings(&bed, url(&[dead, standby.port()], "")));
    let check = sidecar.command(&["check"]);
    let said = text(&check);
    assert!(!check.status.success(), "{said}");
    let both = format!(
        "find the primary among 2 hosts: connect to `127.0.0.1:{dead}`: Connection refused (os \
         error 111); `127.0.0.1:{}` is a standby",
        standby.port()
    );
    assert!(said.contains("postgres_unreachable") && said.contains(&both), "{said}");
    assert!(said.contains("would wait"), "{said}");
    drop(standby);
}

/// A file of ours that cannot be read is no host's fault: it is told once, and of no host.
#[tokio::test]
async fn what_would_fail_with_every_host_ends_the_search() {
    let bed = Bed::new(&[]).await;
    let (dead, port) = (free_port().unwrap(), bed.postgres.port());
    let parameters = "?sslmode=verify-full&sslrootcert=/nowhere/root.crt";
    let sidecar = Sidecar::new(settings(&bed, url(&[port, dead], parameters)));
    let said = text(&sidecar.command(&["check"]));
    assert_eq!(said.matches("read `sslrootcert` `/nowhere/root.crt`").count(), 1, "{said}");
    assert!(!said.contains("find the primary"), "{said}");
}

/// A host that answers each connection with what is not the protocol, for as long as it lives.
fn garbage(words: &'static str) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            drop(stream.write_all(words.as_bytes()));
        }
    });
    port
}

/// Lets nobody log in by TCP as anyone but the tests' own sessions do.
async fn reject(server: &Postgres) {
    let rules = "local all all trust\nhost all all all reject\n\
                 host replication all all reject\n";
    std::fs::write(server.data_dir().join("pg_hba.conf"), rules).unwrap();
    Sql::connect(server).await.run("select pg_reload_conf()").await;
    eventually(PATIENCE, "it refuses sessions", || async { server.connect().await.is_err() }).await;
}

/// libpq would end its search at the first of them: a host that wants another password, one that
/// `pg_hba.conf` closes, and ports that something else has.
#[tokio::test]
async fn a_host_that_cannot_be_used_does_not_hide_the_primary_behind_it() {
    let bed = Bed::new(&[]).await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    reject(&standby).await;
    let guarded = walsweep_stage::throwaway::PostgresOptions {
        password: Some("secret".to_owned()),
        ..Default::default()
    };
    let guarded = Postgres::start(guarded).await.unwrap();
    let dead = free_port().unwrap();
    // The first letter of one is a yes to the question for TLS.
    let (ssh, http) = (garbage("SSH-2.0-x\r\n"), garbage("HTTP/1.1 400 Bad Request\r\n\r\n"));
    let unfit = [dead, guarded.port(), standby.port(), ssh, http];
    let hosts = [&unfit[..], &[bed.postgres.port()]].concat();
    let mut sidecar = Sidecar::new(settings(&bed, url(&hosts, "?connect_timeout=3")));
    sidecar.setup();
    let check = sidecar.command(&["check"]);
    let said = text(&check);
    assert!(check.status.success(), "{said}");
    assert_eq!(said.matches("warning[postgres_host]: ").count(), unfit.len(), "{said}");
    for (port, why) in [
        (dead, "Connection refused"),
        (guarded.port(), "wants a password and there is none"),
        (standby.port(), "pg_hba.conf rejects connection"),
        (ssh, "`127.0.0.1:"),
        (http, "`127.0.0.1:"),
    ] {
        let is_told = |line: &str| {
            line.starts_with("warning[postgres_host]")
                && line.contains(&format!("`127.0.0.1:{port}`"))
                && line.contains(why)
        };
        assert!(said.lines().any(is_told), "{port}: {why}: {said}");
    }
    sidecar.start();
    sidecar.wait_ready().await;
    let log = sidecar.log();
    let told = format!("the primary is `127.0.0.1:{}`; passed over: ", bed.postgres.port());
    let told: Vec<&String> = log.iter().filter(|line| line.contains(&told)).collect();
    assert_eq!(told.len(), 1, "one line for one session: {told:?}");
    for port in unfit {
        assert!(told[0].contains(&format!("`127.0.0.1:{port}`")), "{port}: {told:?}");
    }
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    drop(standby);
}

/// While one of the hosts may come to be the primary there is something to wait for; where each
/// answers, and none can be used, a person has to see it.
#[tokio::test]
async fn a_start_waits_for_a_primary_that_may_come_and_no_other() {
    let bed = Bed::new(&[]).await;
    let [closed, other] = [
        bed.postgres.standby("closed", &[]).await.unwrap(),
        bed.postgres.standby("other", &[]).await.unwrap(),
    ];
    for standby in [&closed, &other] {
        reject(standby).await;
    }
    let mut sidecar = Sidecar::new(settings(&bed, url(&[closed.port(), other.port()], "")));
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    for part in ["pg_hba.conf rejects connection", "the server's pg_hba.conf"] {
        sidecar.wait_log(part).await;
    }
    let dead = free_port().unwrap();
    sidecar.change(|settings| settings.postgres_url = url(&[closed.port(), dead], ""));
    sidecar.start();
    sidecar.wait_log("no session with postgres: find the primary among 2 hosts: ").await;
    let (status, page) = sidecar.get("/readyz").await.unwrap();
    assert_eq!(status, 503, "{page}");
    for part in ["pg_hba.conf rejects connection", "Connection refused"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!sidecar.has_ended());
    drop((closed, other));
}

/// So it is in the middle of a switchover: the old primary lets nobody in, and the new one is not
/// promoted yet.
#[tokio::test]
async fn a_start_waits_until_a_standby_is_promoted() {
    let bed = Bed::new(&[]).await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    let closed = bed.postgres.standby("closed", &[]).await.unwrap();
    reject(&closed).await;
    let hosts = url(&[standby.port(), closed.port()], "");
    let mut sidecar = Sidecar::new(settings(&bed, url(&[bed.postgres.port()], "")));
    sidecar.setup();
    follows(&standby, &bed).await;
    sidecar.change(|settings| settings.postgres_url = hosts);
    let check = text(&sidecar.command(&["check"]));
    let verdict = "`walsweep run` would wait for what cannot be reached\n";
    assert!(check.ends_with(verdict), "{check}");
    sidecar.start();
    sidecar.wait_log("no session with postgres: find the primary among 2 hosts: ").await;
    let (status, page) = sidecar.get("/readyz").await.unwrap();
    assert_eq!(status, 503, "{page}");
    for part in ["is a standby", "pg_hba.conf rejects connection"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    Sql::connect(&standby).await.run("select pg_promote()").await;
    sidecar.wait_ready().await;
    drop((standby, closed));
}

/// walsweep asks what a lookup reads before it judges the server; that must not hide what is wrong.
#[tokio::test]
async fn a_standby_is_named_as_one_whatever_the_rules_need() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create table team (id text primary key, name text)").await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    follows(&standby, &bed).await;
    let rules = LOOKUP_RULES.replace("cache = 0\n", "");
    let settings = Settings { rules, ..settings(&bed, url(&[standby.port()], "")) };
    let mut sidecar = Sidecar::new(settings);
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    sidecar.wait_log("let `postgres.url` name the primary").await;
    let log = sidecar.log().concat();
    for said in [log, text(&sidecar.command(&["check"])), text(&sidecar.command(&["setup"]))] {
        assert!(said.contains("`postgres.url` reaches a standby"), "{said}");
        assert!(said.contains("let `postgres.url` name the primary"), "{said}");
        assert!(!said.contains("cannot set transaction read-write mode"), "{said}");
    }
    drop(standby);
}

/// Leads so many connections to one server, and all that come later to another.
async fn demoted_after(count: usize, first: u16, then: u16) -> u16 {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for at in 0.. {
            let (mut client, _) = listener.accept().await.unwrap();
            let target = if at < count { first } else { then };
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    port
}

/// A start opens some connections, one after another: the gate's is the second, the stream's the
/// fourth.
#[tokio::test]
async fn a_switchover_between_two_connects_of_a_start_is_followed() {
    let bed = Bed::new(&[]).await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    let mut sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    for count in [1, 2, 3] {
        let moved = demoted_after(count, bed.postgres.port(), standby.port()).await;
        let hosts = [moved, bed.postgres.port()];
        sidecar.change(|settings| settings.postgres_url = url(&hosts, ""));
        sidecar.start();
        sidecar.wait_ready().await;
        let primary = format!("the primary is `127.0.0.1:{}`", bed.postgres.port());
        sidecar.wait_log(&primary).await;
        assert_eq!(sidecar.sigterm().await, 0);
    }
    // Where one host is named it is a mistake, as ever.
    let moved = demoted_after(1, bed.postgres.port(), standby.port()).await;
    sidecar.change(|settings| settings.postgres_url = url(&[moved], ""));
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    assert!(sidecar.log().concat().contains("`postgres.url` reaches a standby"));
    drop(standby);
}

/// Two URLs name one server by two addresses, and another server calls itself a primary, too: which
/// is meant the servers tell, and not the texts.
#[tokio::test]
async fn the_stream_comes_from_the_server_that_sql_reaches_whatever_it_is_called() {
    let bed = Bed::new(&[]).await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    Sql::connect(&standby).await.run("select pg_promote()").await;
    let sql = Sql::connect(&standby).await;
    let (old, new) = (bed.postgres.port(), standby.port());
    let mut sidecar = Sidecar::new(settings(&bed, url(&[new], "")));
    sidecar.setup();
    let both = format!("postgres://postgres@localhost:{old},localhost:{new}/postgres");
    sidecar.change(|settings| settings.postgres = format!("replication_url = {both:?}"));
    let check = sidecar.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
    sidecar.start();
    sidecar.wait_ready().await;
    let streams = "select count(*) from pg_stat_replication
                    where application_name = 'walsweep stream'";
    assert_eq!((bed.sql.one::<i64>(streams).await, sql.one::<i64>(streams).await), (0, 1));
    bed.fill(&["item:1"]).await;
    sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    // None of these is it.
    assert_eq!(sidecar.sigterm().await, 0);
    let other =
        format!("postgres://postgres@localhost:{old},localhost:{}/postgres", free_port().unwrap());
    sidecar.change(|settings| settings.postgres = format!("replication_url = {other:?}"));
    let said = text(&sidecar.command(&["check"]));
    assert!(said.contains("is another primary, of system "), "{said}");
    drop(standby);
}

/// The old primary is gone, and the standby is promoted: the next session finds it, and all of its
/// connections do.
#[tokio::test]
async fn a_switchover_is_followed_by_every_connection() {
    let mut bed = Bed::new(&[]).await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    let url = url(&[bed.postgres.port(), standby.port()], "");
    let mut sidecar = Sidecar::set_up(settings(&bed, url)).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    follows(&standby, &bed).await;
    bed.postgres.kill9().await.unwrap();
    Sql::connect(&standby).await.run("select pg_promote()").await;
    // The old one stays as long as its folder is needed: the standby's is in it.
    let mut old = std::mem::replace(&mut bed.postgres, standby);
    bed.sql = Sql::connect(&bed.postgres).await;
    eventually(PATIENCE, "the new primary is streamed from", || async {
        let streams = "select count(*) from pg_stat_replication
                        where application_name = 'walsweep stream'";
        bed.sql.one::<i64>(streams).await == 1
    })
    .await;
    sidecar.wait_ready().await;
    bed.fill(&["item:2"]).await;
    bed.sql.run("update item set version = 2 where id = 2").await;
    bed.gone("item:2").await;
    // The old one comes back, first in the list and a primary by its own word. A session that
    // stands does not ask it.
    old.start_again().await.unwrap();
    let old_sql = Sql::connect(&old).await;
    bed.sql
        .run(
            "select pg_terminate_backend(pid) from pg_stat_activity
          where application_name = 'walsweep lookup'",
        )
        .await;
    sleep(Duration::from_secs(3)).await;
    let sessions = "select count(*) from pg_stat_activity where application_name like 'walsweep%'";
    assert_eq!(old_sql.one::<i64>(sessions).await, 0, "nobody asks the old one");
    bed.fill(&["item:3"]).await;
    bed.sql.run("update item set version = 2 where id = 3").await;
    bed.gone("item:3").await;
}

/// Both hosts lead to one primary, so that nothing but the address tells them apart: what one
/// session began with the first it does not go on with the second.
#[tokio::test]
async fn a_session_keeps_to_the_host_that_it_began_with() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create table team (id text primary key, name text)").await;
    bed.sql
        .run("insert into team select 'team ' || id, 'name' || id from generate_series(0, 9) id")
        .await;
    let (first, second) =
        (Proxy::to_port(bed.postgres.port()), Proxy::to_port(bed.postgres.port()));
    let settings = Settings {
        rules: LOOKUP_RULES.to_owned(),
        ..settings(&bed, url(&[first.port(), second.port()], ""))
    };
    let sidecar = Sidecar::set_up(settings).await;
    bed.fill(&["item:1", "roster:name1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("roster:name1").await;
    assert_eq!(second.accepted(), 0, "the first is a primary");
    // The session of the lookups is lost, and has to be made again.
    first.set(Fault::Refuse);
    bed.sql
        .run(
            "select pg_terminate_backend(pid) from pg_stat_activity
          where application_name = 'walsweep lookup'",
        )
        .await;
    bed.fill(&["item:2", "roster:name2"]).await;
    bed.sql.run("update item set version = 1 where id = 2").await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(second.accepted(), 0, "the session stands, and is the first host's");
    first.set(Fault::Nothing);
    bed.gone("roster:name2").await;
    assert_eq!(sidecar.readyz().await, Some(200));
}

/// A message of this kind that announces so many bytes, with what is there of it.
fn message(tag: u8, length: u32, body: &[u8]) -> Vec<u8> {
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// A host that lets everybody in, answers each question with these bytes, and goes on for as long
/// as somebody reads, up to a gigabyte.
fn flood(login: &'static [u8], more: impl Fn(u32) -> Vec<u8> + Send + Clone + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), more) = (stream, more.clone()) else { return };
            thread::spawn(move || {
                let mut question = [0; 4096];
                let _startup = stream.read(&mut question).unwrap();
                stream.write_all(login).unwrap();
                if !login.is_empty() {
                    let _query = stream.read(&mut question).unwrap();
                }
                let (mut sent, mut round) = (0, 0);
                while sent < 1 << 30 {
                    let bytes = more(round);
                    if stream.write_all(&bytes).is_err() {
                        return;
                    }
                    (sent, round) = (sent + bytes.len(), round + 1);
                }
            });
        }
    });
    port
}

/// I6: before a password is checked, whoever answers at the address is a stranger, and one that
/// lets everybody in is no better known. None of them decides how much memory is used.
#[tokio::test]
async fn a_stranger_at_the_address_costs_no_memory() {
    let bed = Bed::new(&[]).await;
    // A login without a password: `AuthenticationOk`, `BackendKeyData`, `ReadyForQuery`.
    let login = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x01Z\0\0\0\x05I";
    let zeros = || vec![0; 1 << 16];
    let long = |tag: u8| {
        move |round| match round {
            0 => message(tag, i32::MAX.unsigned_abs(), &[]),
            _ => zeros(),
        }
    };
    // Each setting has a name of its own, and would be remembered.
    let settings = |round: u32| {
        if round == 0 {
            return message(b'R', 8, &[0; 4]);
        }
        let named = |at: u32| format!("{round}.{at}{:01000}\0v\0", 0);
        let one =
            |at| message(b'S', 4 + u32::try_from(named(at).len()).unwrap(), named(at).as_bytes());
        (0..64).flat_map(one).collect()
    };
    for (name, port) in [
        ("a question", flood(b"", long(b'R'))),
        ("an error", flood(b"", long(b'E'))),
        ("settings", flood(b"", settings)),
        ("a row", flood(login, long(b'D'))),
    ] {
        let url = url(&[port], "?sslmode=disable&connect_timeout=5");
        let mut sidecar = Sidecar::new(self::settings(&bed, url));
        sidecar.start();
        sidecar.wait_log("no session with postgres: ").await;
        let peak = peak(sidecar.id());
        assert!(peak < 40 << 10, "{name}: {peak} KiB");
        let said = sidecar.log().concat();
        assert!(
            said.contains("it announces a message of") || said.contains("it sends more"),
            "{said}"
        );
        assert!(!sidecar.has_ended(), "{name}");
    }
}
