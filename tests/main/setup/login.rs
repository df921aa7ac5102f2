//! A role that cannot log in yet, an owner that is somebody else, and rights for lookups.

use crate::support::{Bed, ITEM_RULES, Settings, Sidecar, Sql, text};
use walsweep_stage::throwaway::{Postgres, PostgresOptions, Redis, RedisOptions};

use super::{psql, rule};

/// The tables of somebody who is no superuser, and what lookups read, in a schema of its own.
const TABLES: &str = "
    create role shopkeeper login;
    create schema shop authorization shopkeeper;
    create table public.cart (id int primary key, club int, name text not null);
    create table shop.club (id int primary key, name text);
    create table shop.town (id int primary key, name text);
    create view shop.towns as select * from shop.town;
    alter table cart owner to shopkeeper; alter table shop.club owner to shopkeeper;
    alter table shop.town owner to shopkeeper; alter view shop.towns owner to shopkeeper;
    insert into cart values (1, 1, 'a'); insert into shop.club values (1, 'x');
    insert into shop.town values (1, 'y');
    grant create on database postgres to shopkeeper;";

const LOOKUPS: &str = r#"
[lookup.club]
sql = "select c.name from shop.club c where c.id = $1"
params = ["club"]

[lookup.town]
sql = "select t.name from \"shop\".towns t where t.id = $1"
params = ["club"]
"#;

fn settings(bed: &Bed) -> Settings {
    let rules = rule("cart", &["cart:{name}", "club:{club.name}", "town:{town.name}"]);
    let rules = format!("{LOOKUPS}{rules}");
    let postgres_url = bed.postgres.url().replace("//postgres@", "//walsweep@");
    Settings { postgres_url, rules, ..bed.settings() }
}

async fn works(bed: &Bed, sidecar: &mut Sidecar) {
    sidecar.start();
    sidecar.wait_ready().await;
    bed.fill(&["cart:a", "club:x", "town:y", "other"]).await;
    bed.sql.run("update cart set name = 'b'").await;
    for key in ["cart:a", "club:x", "town:y"] {
        bed.gone(key).await;
    }
    assert!(bed.has("other").await);
    assert_eq!(sidecar.sigterm().await, 0);
}

/// As the README says, the superuser's part comes first, then the owner's, each by its role.
#[tokio::test]
async fn the_role_is_printed_without_a_login_and_the_rest_for_whoever_owns_the_tables() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let mut sidecar = Sidecar::new(settings(&bed));
    let output = sidecar.command(&["setup", "--print"]);
    assert_eq!(output.status.code(), Some(1), "it is not all: {}", text(&output));
    let script = String::from_utf8(output.stdout).unwrap();
    assert!(script.contains("create role \"walsweep\" login;"), "{script}");
    assert!(script.contains("grant connect on database \"postgres\""), "{script}");
    psql(&bed, "postgres", &script);
    psql(&bed, "postgres", &script);
    let script = String::from_utf8(sidecar.command(&["setup", "--print"]).stdout).unwrap();
    for part in [
        "-- By `shopkeeper`, who owns schema `shop` and the tables:",
        "grant usage on schema \"shop\" to \"walsweep\";",
        "grant select on \"shop\".\"club\" to \"walsweep\";",
        "grant select on \"shop\".\"towns\" to \"walsweep\";",
        "--     select pg_catalog.pg_create_logical_replication_slot",
    ] {
        assert!(script.contains(part), "{part}: {script}");
    }
    assert!(!script.contains("\"town\""), "a view's table is the view's: {script}");
    psql(&bed, "shopkeeper", &script);
    let output = sidecar.command(&["check"]);
    assert!(output.status.success(), "{}", text(&output));
    works(&bed, &mut sidecar).await;
    let said = text(&sidecar.command(&["teardown", "--as", &bed.postgres.url()]));
    assert!(said.contains("dropped publication `walsweep`"), "{said}");
}

#[tokio::test]
async fn setup_as_a_superuser_makes_role_grants_publication_and_slot_at_once() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let url = bed.postgres.url();
    let mut plain = settings(&bed);
    plain.postgres_url = plain.postgres_url.replace("walsweep@", "walsweep:s3cret@");
    let mut sidecar = Sidecar::new(plain);
    let output = sidecar.command(&["setup"]);
    assert!(!output.status.success());
    assert!(text(&output).contains("`walsweep setup --as URL`"), "{}", text(&output));
    let printed = text(&sidecar.command(&["setup", "--print", "--as", &url]));
    assert!(printed.contains("create role \"walsweep\""), "{printed}");
    let roles = "select count(*) from pg_roles where rolname = 'walsweep'";
    assert_eq!(bed.sql.one::<i64>(roles).await, 0);
    let output = sidecar.command(&["setup", "--as", &url]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("-- It has the password of the configuration."), "{output:?}");
    let script = text(&sidecar.command(&["setup", "--print", "--as", &url]));
    assert!(printed.contains("-- A new role has no password: `\\password walsweep`"), "{printed}");
    for said in [printed, text(&output), script] {
        assert!(!said.contains("s3cret") && !said.contains("SCRAM"), "{said}");
    }
    let kept = "select rolpassword from pg_authid where rolname = 'walsweep'";
    assert!(bed.sql.one::<String>(kept).await.starts_with("SCRAM-SHA-256$"));
    let output = sidecar.command(&["check"]);
    assert!(output.status.success(), "{}", text(&output));
    let again = text(&sidecar.command(&["setup", "--as", &url]));
    assert!(again.contains("nothing to do"), "{again}");
    works(&bed, &mut sidecar).await;
    let other = url.replace("/postgres", "/template1");
    let said = text(&sidecar.command(&["setup", "--as", &other]));
    assert!(said.contains("names database `template1`"), "{said}");
}

/// Whatever a lookup calls belongs to others: a superuser who sets up runs none of it, and what it
/// reads is granted to the role alone.
#[tokio::test]
async fn a_superuser_who_sets_up_runs_no_code_of_others_and_grants_nothing_else() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run(
            "create function shop.told() returns text volatile language plpgsql
                 as $$begin raise log 'told by %', current_user; return ''; end$$;
             create function shop.seems() returns text immutable language plpgsql
                 as $$begin return shop.told(); end$$;
             create view shop.trap as select id, name || shop.seems() as name from shop.town;
             alter function shop.told() owner to shopkeeper;
             alter function shop.seems() owner to shopkeeper;
             alter view shop.trap owner to shopkeeper;
             create schema p; create table p.town (id int); create schema h;
             create table h.secret (id int)",
        )
        .await;
    let trap = "select t.name, shop.told() as more from shop.trap t where t.id = $1 \
                /* unlike h.secret */";
    let lookup = format!("[lookup.town]\nsql = \"{trap}\"\nparams = [\"club\"]\n");
    let rules = format!("{lookup}{}", rule("cart", &["cart:{name}", "town:{town.name}"]));
    let sidecar = Sidecar::new(Settings { rules, ..settings(&bed) });
    let url = bed.postgres.url();
    for command in [&["setup", "--print", "--as", &url][..], &["setup", "--as", &url]] {
        let output = sidecar.command(command);
        assert!(output.status.success(), "{}", text(&output));
    }
    let log = bed.postgres.data_dir().parent().unwrap().join("log");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(!log.contains("told by postgres"), "{log}");
    let granted = "select string_agg(n.nspname || '.' || c.relname, ' ' order by 1)::text
                     from pg_class c join pg_namespace n on n.oid = c.relnamespace
                    where c.oid >= 16384 and has_table_privilege('walsweep', c.oid, 'select')
                      and n.nspname in ('shop', 'p', 'h')";
    assert_eq!(bed.sql.one::<Option<String>>(granted).await.as_deref(), Some("shop.trap"));
}

/// An owner sets up for a role that a superuser made, which owns nothing.
#[tokio::test]
async fn setup_as_the_owner_does_all_but_the_slot_that_run_makes() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("create role walsweep login replication").await;
    let mut sidecar = Sidecar::new(settings(&bed));
    let url = bed.postgres.url().replace("//postgres@", "//shopkeeper@");
    let output = sidecar.command(&["setup", "--as", &url]);
    assert!(output.status.success(), "{}", text(&output));
    let check = sidecar.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
    works(&bed, &mut sidecar).await;
    let owner = "select pg_get_userbyid(pubowner)::text from pg_publication";
    assert_eq!(bed.sql.one::<String>(owner).await, "shopkeeper");
    let said = text(&sidecar.command(&["teardown", "--as", &url]));
    for part in [
        "dropped slot `",
        "role `walsweep` stays, with what it was granted in this database: `revoke usage on schema \
         shop from walsweep; revoke select on shop.club from walsweep; ",
        "`drop role \"walsweep\"`",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (_, rights) = said.split_once("in this database: `").unwrap();
    bed.sql.run(rights.split('`').next().unwrap()).await;
    bed.sql.run("drop role walsweep").await;
}

/// A URL of another server, such as one of before a copy was made, does nothing there.
#[tokio::test]
async fn setup_and_teardown_as_a_login_of_another_server_change_nothing_there() {
    let bed = Bed::new(&[]).await;
    let there = Bed::new(&[]).await;
    let made = "select (select count(*) from pg_publication) + (select count(*) from pg_roles
                         where rolname = 'walsweep') + (select count(*) from pg_replication_slots)";
    let postgres_url = bed.postgres.url().replace("//postgres@", "//walsweep@");
    let sidecar = Sidecar::new(Settings { postgres_url, ..bed.settings() });
    let as_other = there.postgres.url();
    // With no login at home there is nothing to compare but the name, and that is said.
    let printed = text(&sidecar.command(&["setup", "--print", "--as", &as_other]));
    assert!(printed.contains("nothing but the name of the database was compared"), "{printed}");
    bed.sql.run("create role walsweep login replication").await;
    for command in [&["setup"][..], &["setup", "--print"], &["teardown"], &["teardown", "--print"]]
    {
        let output = sidecar.command(&[command, &["--as", &as_other]].concat());
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(said.contains("reaches another server"), "{command:?}: {said}");
        assert_eq!(there.sql.one::<i64>(made).await, 0, "{command:?}: {said}");
    }
    // By another address it is still the same one.
    let home = bed.postgres.url().replace("127.0.0.1", "localhost");
    let output = sidecar.command(&["setup", "--as", &home]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains("was compared"), "{}", text(&output));
    assert_eq!(there.sql.one::<i64>(made).await, 0);
}

/// The first `setup` makes the role, so that nobody can log in before to compare the servers.
#[tokio::test]
async fn a_first_setup_as_a_login_of_another_server_ends_with_the_role() {
    let bed = Bed::new(&[]).await;
    let there = Bed::new(&[]).await;
    let postgres_url = bed.postgres.url().replace("//postgres@", "//walsweep@");
    let sidecar = Sidecar::new(Settings { postgres_url, ..bed.settings() });
    let output = sidecar.command(&["setup", "--as", &there.postgres.url()]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["nothing but the name of the database was compared", "another server", "role was"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    let made = "select (select count(*) from pg_publication)
                       + (select count(*) from pg_replication_slots)";
    assert_eq!(there.sql.one::<i64>(made).await, 0, "{said}");
}

/// Lookups of a superuser run what belongs to others, and so `check` sends to a role of its own.
#[tokio::test]
async fn a_superuser_in_the_configuration_is_told_where_lookups_run_with_it() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("create role walsweep login replication").await;
    let mut plain = settings(&bed);
    plain.postgres_url = bed.postgres.url();
    let mut sidecar = Sidecar::new(plain);
    let told = "warning[superuser]: role `postgres` of `postgres.url` is a superuser";
    let check = super::checked(&sidecar);
    assert!(check.contains(told) && check.contains("`walsweep setup --as URL`"), "{check}");
    sidecar.change(|new| *new = settings(&bed));
    let check = super::checked(&sidecar);
    assert!(!check.contains("[superuser]"), "{check}");
    let printed = text(&sidecar.command(&["setup", "--print", "--as", &bed.postgres.url()]));
    assert!(!printed.contains("is a superuser"), "that is not the configuration's: {printed}");
}

/// Every right at once, not one after another as Postgres refuses them.
#[tokio::test]
async fn check_prints_all_grants_for_lookups_at_once() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run(
            "create role walsweep login replication; grant usage on schema shop to walsweep;
             create publication walsweep for table cart; alter table cart replica identity full",
        )
        .await;
    let sidecar = Sidecar::new(settings(&bed));
    let check = super::checked(&sidecar);
    assert!(check.contains("error[lookup_privilege]"), "{check}");
    psql(&bed, "postgres", &super::printed_sql(&check));
    let check = sidecar.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
    drop(Sql::connect(&bed.postgres).await);
}

/// A password that is wrong, or a role that is not there: what to look at, for each login.
#[tokio::test]
async fn a_refused_login_is_told_with_where_its_password_comes_from() {
    let password = Some("s3cret".to_owned());
    let options = PostgresOptions { password, ..PostgresOptions::default() };
    let postgres = Postgres::start(options).await.unwrap();
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let mut settings = Settings::new(&postgres, &redis, ITEM_RULES);
    settings.postgres_url = settings.postgres_url.replace(":s3cret@", ":wr0ng@");
    let wrong = settings.postgres_url.clone();
    let mut sidecar = Sidecar::new(settings);
    let told = ["`walsweep setup --print`", "`postgres.password_file`", "`PGPASSWORD`", "passfile"];
    for command in ["check", "setup", "teardown", "run"] {
        let output = sidecar.command(&[command]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("password authentication failed"), "{command}: {said}");
        for part in told {
            assert!(said.contains(part), "{command} without {part}: {said}");
        }
        assert!(!said.contains("wr0ng"), "{said}");
    }
    for command in ["setup", "teardown"] {
        let said = text(&sidecar.command(&[command, "--as", &wrong]));
        assert!(said.contains("the password in the URL of `--as`"), "{command}: {said}");
    }
    sidecar.change(|new| new.postgres_url = new.postgres_url.replace(":wr0ng@", ":s3cret@"));
    assert!(!super::checked(&sidecar).contains("password_file"));
}

/// Where the login of the configuration fails, nothing shows that another address is the same
/// server: neither command changes anything. The same words are the same server.
#[tokio::test]
async fn setup_and_teardown_change_nothing_where_the_servers_cannot_be_compared() {
    let password = Some("s3cret".to_owned());
    let options = PostgresOptions { password, ..PostgresOptions::default() };
    let postgres = Postgres::start(options).await.unwrap();
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let sql = Sql::connect(&postgres).await;
    Bed::make_items(&sql).await;
    let mut settings = Settings::new(&postgres, &redis, ITEM_RULES);
    settings.postgres_url = settings.postgres_url.replace(":s3cret@", ":wr0ng@");
    let sidecar = Sidecar::new(settings);
    let (same, other) = (postgres.url(), postgres.url().replace("127.0.0.1", "localhost"));
    let made = "select (select count(*) from pg_publication)
                     + (select count(*) from pg_replication_slots)";
    let doubt = "`--as` may reach another server than `postgres.url`";
    let output = sidecar.command(&["setup", "--as", &other]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("nothing was changed: {doubt}")), "{said}");
    assert_eq!(sql.one::<i64>(made).await, 0, "{said}");
    let output = sidecar.command(&["setup", "--print", "--as", &other]);
    assert!(output.status.success(), "to print is no harm: {}", text(&output));
    let output = sidecar.command(&["setup", "--as", &same]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(sql.one::<i64>(made).await, 2);
    let output = sidecar.command(&["teardown", "--as", &other]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("nothing dropped: {doubt}")), "{said}");
    assert_eq!(sql.one::<i64>(made).await, 2, "{said}");
    let output = sidecar.command(&["teardown", "--as", &same]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(sql.one::<i64>(made).await, 0);
}
