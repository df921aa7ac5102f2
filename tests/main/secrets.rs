//! I9: neither the pages nor `check`, `setup` and the log tell a value, a key or a password, least
//! of all when something fails.

use redis::aio::MultiplexedConnection;
use walsweep_stage::throwaway::{Postgres, PostgresOptions, Redis, RedisOptions, StopMode};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually, text};

/// Part of every password.
const PASSWORD: &str = "Hush";

/// Part of every value of a row, and so of the keys.
const VALUE: &str = "Covert";

const RULES: &str = r#"
[lookup.place]
sql = "select town from place where code = $1::int"
params = ["code"]

[[rule]]
name = "person"
table = "public.person"
keys = ["person:{name}", "town:{place.town}"]

[[rule]]
name = "list"
table = "public.person"
keys = ["list:{name}:*"]

[[rule]]
name = "said"
message = "said"
keys = ["said:*"]
"#;

/// All rights, over keys that are named elsewhere.
const RIGHTS: &str = "+@all";

struct Site {
    bed: Bed,
    sidecar: Sidecar,
}

impl Site {
    /// Servers with passwords, and a replica that is not there with another.
    async fn start() -> Site {
        let password = Some(format!("{PASSWORD}-postgres"));
        let options = PostgresOptions { password, ..PostgresOptions::default() };
        let postgres = Postgres::start(options).await.unwrap();
        let redis = Redis::start(RedisOptions::default()).await.unwrap();
        let (sql, cache) = (Sql::connect(&postgres).await, redis.connect().await.unwrap());
        sql.run(&format!(
            "create table person (id int primary key, name text, code text);
             alter table person replica identity full;
             create table place (code int primary key, town text);
             insert into place values (1, '{VALUE} Town');
             insert into person values (1, '{VALUE} One', '1'), (2, '{VALUE} Two', '1')"
        ))
        .await;
        let bed = Bed { postgres, redis, sql, cache };
        admin(&bed.cache, &format!("ACL SETUSER app on >{PASSWORD}-redis ~* {RIGHTS}")).await;
        let mut settings = Settings::new(&bed.postgres, &bed.redis, RULES);
        let login = format!("redis://app:{PASSWORD}-redis@");
        settings.redis_url = settings.redis_url.replace("redis://", &login);
        settings.level = "trace".to_owned();
        settings.postgres =
            format!("replicas = [\"postgres://reader:{PASSWORD}-replica@127.0.0.1:1/app\"]");
        let sidecar = Sidecar::set_up(settings).await;
        Site { bed, sidecar }
    }

    /// Changes a person, and waits until the key is gone.
    async fn works(&self) {
        let key = format!("person:{VALUE} One");
        self.bed.fill(&[&key]).await;
        self.bed.sql.run("update person set id = id where id = 1").await;
        self.bed.gone(&key).await;
    }

    /// Waits until `/readyz` says this, and then holds that nothing is told anywhere; `check` says
    /// these.
    async fn tells_nothing(&self, part: &str, checked: &[&str]) {
        eventually(PATIENCE, &format!("/readyz says `{part}`"), || async {
            self.sidecar.get("/readyz").await.is_some_and(|(_, body)| body.contains(part))
        })
        .await;
        let mut said = self.sidecar.log();
        for page in ["/metrics", "/readyz", "/healthz", "/"] {
            said.push(self.sidecar.get(page).await.unwrap().1);
        }
        let report = text(&self.sidecar.command(&["check"]));
        for part in checked {
            assert!(report.contains(part), "{part}: {report}");
        }
        said.push(report);
        for command in [&["check", "--json"][..], &["setup", "--print"]] {
            said.push(text(&self.sidecar.command(command)));
        }
        for lines in said {
            let lower = lines.to_lowercase();
            for secret in [PASSWORD, VALUE] {
                assert!(!lower.contains(&secret.to_lowercase()), "{part}: {secret}: {lines}");
            }
        }
    }
}

async fn admin(cache: &MultiplexedConnection, command: &str) {
    let mut words = command.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    command.arg(words.collect::<Vec<_>>());
    command.exec_async(&mut cache.clone()).await.unwrap();
}

#[tokio::test]
async fn no_page_and_no_report_tells_a_value_a_key_or_a_password_whatever_fails() {
    let mut site = Site::start().await;
    site.works().await;
    site.tells_nothing("replica 127.0.0.1:1 cannot be counted on", &["replica"]).await;

    // Values that the server does not take, and messages that are none.
    let statements = [
        format!("update person set code = '{VALUE} code' where id = 2"),
        format!("select pg_logical_emit_message(true, 'said', '{VALUE} words')"),
        format!("select pg_logical_emit_message(true, 'said', '{{\"keys\": [\"{VALUE}:1\"]}}')"),
    ];
    for statement in statements {
        site.bed.sql.run(&statement).await;
    }
    site.sidecar.wait_log("a message removes nothing").await;
    site.tells_nothing("SQLSTATE 22P02", &[]).await;

    // Keys of a rule are refused.
    let narrow = "ACL SETUSER app resetkeys ~walsweep:* ~person:* ~town:* ~said:*";
    admin(&site.bed.cache, narrow).await;
    site.bed.fill(&[&format!("list:{VALUE} One:a")]).await;
    site.works().await;
    site.tells_nothing("keys of rule `list`", &["error[redis_key_permission]"]).await;
    admin(&site.bed.cache, "ACL SETUSER app ~*").await;

    // Each of the passwords is no longer the right one.
    admin(&site.bed.cache, "ACL SETUSER app resetpass >another").await;
    admin(&site.bed.cache, "CLIENT KILL USER app").await;
    site.tells_nothing("authentication failed", &["authentication failed"]).await;
    admin(&site.bed.cache, &format!("ACL SETUSER app resetpass >{PASSWORD}-redis")).await;
    site.works().await;
    site.bed.sql.run("alter role postgres password 'another'").await;
    site.bed
        .sql
        .run(
            "select pg_terminate_backend(pid) from pg_stat_activity
              where application_name like 'walsweep%'",
        )
        .await;
    let refused = "password authentication failed";
    site.tells_nothing(refused, &[refused]).await;
    site.bed.sql.run(&format!("alter role postgres password '{PASSWORD}-postgres'")).await;
    site.works().await;

    // Nobody is there.
    site.bed.redis.kill9().await.unwrap();
    site.bed.postgres.stop(StopMode::Fast).await.unwrap();
    site.tells_nothing("Connection refused", &["Connection refused"]).await;
}
