//! Several hosts in one URL: the primary among them, and nobody else.

use std::net::TcpListener;
use std::time::Duration;

use tokio::time::sleep;
use walsweep::throwaway::{Postgres, free_port};

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

/// As with libpq: a host that wants another password is not passed over; a person has to see it.
#[tokio::test]
async fn a_login_that_is_refused_ends_the_search() {
    let bed = Bed::new(&[]).await;
    let guarded = walsweep::throwaway::PostgresOptions {
        password: Some("secret".to_owned()),
        ..Default::default()
    };
    let guarded = Postgres::start(guarded).await.unwrap();
    let url = url(&[guarded.port(), bed.postgres.port()], "");
    let sidecar = Sidecar::new(settings(&bed, url));
    let check = sidecar.command(&["check"]);
    let said = text(&check);
    assert!(!check.status.success() && said.contains("postgres_login"), "{said}");
    assert!(said.contains(&format!("127.0.0.1:{}", guarded.port())), "{said}");
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
