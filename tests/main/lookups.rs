//! Keys that need a row which no change tells: read once the commit is visible, once for many, and
//! in nobody else's way.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, always, eventually, text};

/// Matches 1 to 1000 of two clubs each; match 1 is unlike any other.
const TABLES: &str = "
    create table game (id bigint primary key, cup text, home text not null, final boolean);
    insert into game select id, 'cup ' || id % 10, 'club ' || id, id % 2 = 0
      from generate_series(1, 1000) id;
    create table bet (id bigint primary key, game_id bigint, points int);
    alter table bet replica identity full;
    insert into bet select id, id % 1000 + 1, 0 from generate_series(1, 1000) id;";

const RULES: &str = r#"
[lookup.game]
sql = "select cup, home, final from game where id = $1"
params = ["game_id"]

[[rule]]
name = "bet"
table = "public.bet"
keys = ["bet:{id}", "club:{game.home}", "cup:{game.cup|slug}:*", "final:{game.final}:{id}"]

[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}"]
"#;

fn settings(bed: &Bed, rules: &str) -> Settings {
    Settings { rules: rules.to_owned(), ..bed.settings() }
}

async fn bed() -> (Bed, Sidecar) {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let sidecar = Sidecar::set_up(settings(&bed, RULES)).await;
    bed.settled().await;
    (bed, sidecar)
}

async fn widened(sidecar: &Sidecar, reason: &str) -> f64 {
    let label = format!("walsweep_widened_total{{rule=\"bet\",reason=\"{reason}\"}}");
    sidecar.metric(&label).await
}

/// How many rows of `game` lookups have read, by the server's own count of index scans; one more
/// for each time that this is asked.
pub(crate) async fn rows_read(bed: &Bed) -> i64 {
    // A backend tells what it counted when a transaction ends, and at most once a second; before
    // Postgres 15 the rest waits for the next one (pgstat.c). So there is one more, for a row that
    // nobody has asked for.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    bed.sql.run("insert into bet select max(id) + 1, 900 + count(*) % 97, 0 from bet").await;
    bed.settled().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let count = "select idx_scan from pg_stat_user_tables where relname = 'game'";
    bed.sql.run("select pg_stat_clear_snapshot()").await;
    bed.sql.one(count).await
}

#[tokio::test]
async fn the_row_before_and_the_row_after_give_their_own_keys() {
    let (bed, sidecar) = bed().await;
    let stay = ["club:club 4", "cup:cup-4:x", "final:true:5", "final:false:4", "bet:5"];
    bed.fill(&["bet:1", "club:club 2", "cup:cup-2:x", "final:true:1"]).await;
    bed.fill(&["club:club 3", "cup:cup-3:x", "final:false:1"]).await;
    bed.fill(&stay).await;
    bed.sql.run("update bet set game_id = 3 where id = 1").await;
    for key in ["bet:1", "club:club 2", "cup:cup-2:x", "final:true:1"] {
        bed.gone(key).await;
    }
    for key in ["club:club 3", "cup:cup-3:x", "final:false:1"] {
        bed.gone(key).await;
    }
    bed.settled().await;
    for key in stay {
        assert!(bed.has(key).await, "{key} has nothing to do with it");
    }
    sidecar.assert_quiet(&["sweeping everything"]);
    assert!(sidecar.metric_sum("walsweep_widened_total").await < 0.5);
}

/// I5: what is not found is not skipped. A NULL that refers to nothing is known, and gives no key.
#[tokio::test]
async fn no_row_widens_and_null_gives_no_key() {
    let (bed, sidecar) = bed().await;
    bed.fill(&["club:any", "cup:any:x", "other:1"]).await;
    bed.sql.run("insert into bet values (2000, null, 0), (2001, null, 1)").await;
    bed.settled().await;
    assert!(bed.has("club:any").await && bed.has("cup:any:x").await, "NULL refers to no row");
    bed.sql.run("insert into bet values (3000, 4711, 0)").await;
    bed.gone("club:any").await;
    bed.gone("cup:any:x").await;
    assert!(bed.has("other:1").await);
    assert!(widened(&sidecar, "lookup_no_row").await >= 3.0);
    // A row that is NULL in the column refers to nothing either.
    bed.sql.run("update game set cup = null where id = 9").await;
    bed.fill(&["cup:any:x", "club:club 9"]).await;
    bed.sql.run("update bet set points = 1 where game_id = 9").await;
    bed.gone("club:club 9").await;
    bed.settled().await;
    assert!(bed.has("cup:any:x").await);
}

#[tokio::test]
async fn more_than_one_row_is_no_row() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let rules = RULES.replace("where id = $1", "where id in ($1, $1::bigint + 1)");
    let sidecar = Sidecar::set_up(settings(&bed, &rules)).await;
    bed.fill(&["club:any"]).await;
    bed.sql.run("update bet set points = 1 where id = 1").await;
    bed.gone("club:any").await;
    assert!(widened(&sidecar, "lookup_many_rows").await >= 1.0);
}

/// The row comes into being in the transaction that refers to it, and moves in a later one.
#[tokio::test]
async fn a_row_of_the_same_transaction_is_found() {
    let (bed, sidecar) = bed().await;
    for id in 5000..5050 {
        let club = format!("club:new {id}");
        bed.fill(&[&club, "club:any"]).await;
        bed.sql
            .run(&format!(
                "begin; insert into game values ({id}, 'c', 'new {id}', true);
                 insert into bet values ({id}, {id}, 0); commit"
            ))
            .await;
        bed.gone(&club).await;
    }
    assert!(bed.has("club:any").await);
    assert!(sidecar.metric_sum("walsweep_widened_total").await < 0.5);
}

/// The row is as it is when it is read. What its own change makes stale is for rules of its table.
#[tokio::test]
async fn a_row_that_moves_takes_old_keys_only_by_a_rule_of_its_own() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("alter table game replica identity full").await;
    let rule =
        "[[rule]]\nname = \"game\"\ntable = \"public.game\"\nkeys = [\"cup:{cup|slug}:*\"]\n";
    let _sidecar = Sidecar::set_up(settings(&bed, &format!("{RULES}{rule}"))).await;
    bed.fill(&["cup:cup-2:x", "cup:moved:x", "cup:cup-3:x"]).await;
    bed.sql
        .run("update bet set points = 1 where id = 1; update game set cup = 'moved' where id = 2")
        .await;
    bed.gone("cup:cup-2:x").await;
    bed.gone("cup:moved:x").await;
    bed.settled().await;
    bed.fill(&["cup:cup-2:x", "cup:moved:x"]).await;
    bed.sql.run("update bet set points = 2 where id = 1").await;
    bed.gone("cup:moved:x").await;
    bed.settled().await;
    assert!(bed.has("cup:cup-2:x").await && bed.has("cup:cup-3:x").await, "where it is not");
}

/// I1: the row is read when the commit is visible, not before, and its keys go then.
#[tokio::test]
async fn a_commit_that_nobody_sees_is_not_looked_up() {
    let (bed, _sidecar) = bed().await;
    bed.postgres.conf("synchronous_standby_names = 'ghost'").await.unwrap();
    bed.fill(&["club:any", "club:ghost", "item:1"]).await;
    let writer = Sql::connect(&bed.postgres).await;
    let writer = tokio::spawn(async move {
        writer
            .run(
                "begin; insert into game values (7000, 'c', 'ghost', true);
                 insert into bet values (7000, 7000, 0); commit",
            )
            .await;
    });
    let waits = "select exists (select from pg_stat_activity where wait_event = 'SyncRep')";
    eventually(PATIENCE, "the writer waits", || async { bed.sql.one(waits).await }).await;
    bed.sql.run("set synchronous_commit = local; update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    always(Duration::from_secs(2), "its keys stay", || async {
        bed.has("club:ghost").await && bed.has("club:any").await
    })
    .await;
    bed.sql
        .run("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
        .await;
    bed.gone("club:ghost").await;
    writer.await.unwrap();
    assert!(bed.has("club:any").await, "the row was there when it was read");
    bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
}

/// I3: a lookup that does not come delays its own keys, for a bounded time, and nobody else's.
#[tokio::test]
async fn a_locked_table_delays_nobody_else_and_widens_in_time() {
    let (bed, sidecar) = bed().await;
    let locker = Sql::connect(&bed.postgres).await;
    locker.run("begin; lock table game in access exclusive mode").await;
    bed.fill(&["bet:1", "club:any", "item:1", "item:2"]).await;
    let before = bed.position().await;
    bed.sql.run("update bet set points = 1 where id = 1").await;
    let began = Instant::now();
    bed.sql.run("update item set version = 1 where id = 1").await;
    let others = bed.gone("item:1").await;
    println!("another's key went after {others:?}");
    assert!(bed.has("club:any").await, "{:?}", began.elapsed());
    assert!(bed.confirmed().await <= before);
    bed.gone("club:any").await;
    println!("the key that waited for the lock went after {:?}", began.elapsed());
    assert!(widened(&sidecar, "lookup_failed").await >= 1.0);
    bed.settled().await;
    let waiting = "select not exists (select from pg_stat_activity
                    where application_name = 'walsweep lookup' and wait_event_type = 'Lock')";
    // The server ends each after two seconds.
    let limit = Duration::from_secs(6);
    eventually(limit, "no statement is left behind", || async { bed.sql.one(waiting).await }).await;
    locker.run("rollback").await;
    bed.fill(&["club:any", "club:club 2"]).await;
    bed.sql.run("update bet set points = 2 where id = 1").await;
    bed.gone("club:club 2").await;
    bed.settled().await;
    assert!(bed.has("club:any").await, "it finds rows again");
}

/// Two lookups, and keys that need one of them, the other, or both.
const TWO: &str = r#"
[lookup.game]
sql = "select home from game where id = $1"
params = ["game_id"]

[lookup.place]
sql = "select town from place where id = $1"
params = ["place_id"]

[[rule]]
name = "bet"
table = "public.bet"
keys = ["club:{game.home}"]

[[rule]]
name = "trip"
table = "public.trip"
keys = ["town:{place.town}"]

[[rule]]
name = "both"
table = "public.tour"
keys = ["both:{game.home}:{place.town}"]
"#;

/// I3, between lookups: a table that is locked delays transactions with keys that need it, for the
/// same time each, and is named.
#[tokio::test]
async fn a_locked_table_delays_no_other_lookup_and_is_named() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run(
            "create table place (id bigint primary key, town text);
             insert into place select id, 'town ' || id from generate_series(1, 9) id;
             create table trip (id bigint primary key, place_id bigint);
             alter table trip replica identity full;
             create table tour (id bigint primary key, game_id bigint, place_id bigint);
             alter table tour replica identity full",
        )
        .await;
    let sidecar = Sidecar::set_up(settings(&bed, TWO)).await;
    bed.fill(&["town:town 9"]).await;
    bed.sql.run("insert into trip values (9, 9)").await;
    bed.gone("town:town 9").await;
    bed.settled().await;
    let waits = "select exists (select from pg_stat_activity where application_name = \
                 'walsweep lookup' and wait_event_type = 'Lock')";
    let locker = Sql::connect(&bed.postgres).await;
    locker.run("begin; lock table game in access exclusive mode").await;
    for round in 1..=3 {
        let town = format!("town:town {round}");
        let (both, other) = (format!("both:x:town {round}"), format!("both:x:town {}", round + 1));
        bed.fill(&["club:any", "town:any", &town, &both, &other]).await;
        bed.sql.run(&format!("update bet set points = {round} where id = 1")).await;
        // The question of the other lookup comes while this one is not answered.
        eventually(PATIENCE, "it waits for the lock", || async { bed.sql.one(waits).await }).await;
        bed.sql.run(&format!("insert into trip values ({round}, {round})")).await;
        bed.sql.run(&format!("insert into tour values ({round}, 1, {round})")).await;
        bed.gone(&town).await;
        assert!(bed.has("club:any").await, "round {round}: it waited for the lock");
        bed.gone(&both).await;
        bed.gone("club:any").await;
        assert!(bed.has(&other).await && bed.has("town:any").await, "round {round}: exact");
        let (_, body) = sidecar.get("/readyz").await.unwrap();
        assert!(body.contains("lookup `game`") && !body.contains("`place`"), "{body}");
    }
    assert_eq!(sidecar.readyz().await, Some(200), "keys go all the same");
    locker.run("rollback").await;
    eventually(PATIENCE, "it is asked again by itself", || async {
        !sidecar.get("/readyz").await.unwrap().1.contains("lookup `game`")
    })
    .await;
    bed.fill(&["club:any", "club:club 2"]).await;
    bed.sql.run("update bet set points = 9 where id = 1").await;
    bed.gone("club:club 2").await;
    bed.settled().await;
    assert!(bed.has("club:any").await);
}

#[tokio::test]
async fn a_slow_query_keeps_order_for_others_and_is_right_in_the_end() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let rules = RULES.replace("from game where id = $1", "from game, pg_sleep(1) where id = $1");
    let sidecar = Sidecar::set_up(settings(&bed, &rules)).await;
    bed.fill(&["club:any", "club:club 2", "item:1"]).await;
    bed.sql.run("update bet set points = 1 where id = 1").await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    assert!(bed.has("club:club 2").await, "its row takes a second");
    bed.gone("club:club 2").await;
    bed.settled().await;
    assert!(bed.has("club:any").await);
    assert!(sidecar.metric_sum("walsweep_widened_total").await < 0.5);
}

/// A session that is killed in the midst of a query is made again, and nothing is skipped.
#[tokio::test]
async fn a_killed_connection_is_made_again() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let rules = RULES.replace("from game where id = $1", "from game, pg_sleep(0.5) where id = $1");
    let sidecar = Sidecar::set_up(settings(&bed, &rules)).await;
    bed.fill(&["club:any", "club:club 2"]).await;
    bed.sql.run("update bet set points = 1 where id = 1").await;
    let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                 where application_name = 'walsweep lookup' and state = 'active'
                   and wait_event = 'PgSleep'";
    eventually(PATIENCE, "its backend is killed", || async { bed.sql.one::<i64>(kill).await == 1 })
        .await;
    assert!(bed.has("club:club 2").await);
    bed.gone("club:club 2").await;
    bed.settled().await;
    assert!(bed.has("club:any").await);
    sidecar.assert_quiet(&["sweeping everything", "a lookup failed"]);
}

/// A table that is dropped under way: wide keys, and no standstill.
#[tokio::test]
async fn a_query_that_no_longer_works_widens() {
    let (bed, sidecar) = bed().await;
    bed.fill(&["club:club 2"]).await;
    bed.sql.run("update bet set points = 1 where id = 1").await;
    bed.gone("club:club 2").await;
    let session = "select pid from pg_stat_activity where application_name = 'walsweep lookup'";
    let pid: i32 = bed.sql.one(session).await;
    bed.sql.run("alter table game rename column home to host").await;
    bed.fill(&["club:any"]).await;
    bed.sql.run("update bet set points = 2 where id = 1").await;
    bed.gone("club:any").await;
    bed.settled().await;
    assert_eq!(bed.sql.one::<i32>(session).await, pid, "the session is as good as before");
    sidecar.wait_log("SQLSTATE 42703").await;
    bed.sql.run("alter table game rename column host to home").await;
    bed.fill(&["club:any", "club:club 2"]).await;
    bed.sql.run("update bet set points = 3 where id = 1").await;
    bed.gone("club:club 2").await;
    bed.settled().await;
    assert!(bed.has("club:any").await);
    // The statement was made for a parameter of another type.
    bed.sql.run("alter table game alter column id type text").await;
    bed.fill(&["club:any"]).await;
    bed.sql.run("update bet set points = 4 where id = 1").await;
    bed.gone("club:any").await;
    bed.settled().await;
    bed.fill(&["club:any", "club:club 2"]).await;
    bed.sql.run("update bet set points = 5 where id = 1").await;
    bed.gone("club:club 2").await;
    bed.settled().await;
    assert!(bed.has("club:any").await, "it is made anew");
}

#[tokio::test]
async fn a_thousand_rows_are_read_for_a_hundred_thousand_changes() {
    let (bed, sidecar) = bed().await;
    bed.sql
        .run("insert into bet select id, id % 1000 + 1, 0 from generate_series(10001, 110000) id")
        .await;
    bed.settled().await;
    // A query without an answer within 3 s is made again: such a round says nothing.
    for points in 1..=3 {
        let failed = widened(&sidecar, "lookup_failed").await;
        let before = rows_read(&bed).await;
        bed.fill(&["club:club 7", "club:club 1000", "club:any"]).await;
        bed.sql.run(&format!("update bet set points = {points} where id > 10000")).await;
        bed.gone("club:club 7").await;
        bed.gone("club:club 1000").await;
        bed.settled().await;
        let read = rows_read(&bed).await - before - 1;
        if widened(&sidecar, "lookup_failed").await - failed < 0.5 {
            return assert!(read <= 1000 && (read >= 1 || points > 1), "{read} of {points}");
        }
    }
    panic!("no round without a query that failed");
}

/// Checks that `check` says this of a configuration, and that `run --strict` refuses it.
async fn refused(bed: &Bed, rules: &str, code: &str, parts: &[&str]) {
    let mut sidecar = Sidecar::new(settings(bed, rules));
    let output = sidecar.command(&["check"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("error[{code}]")), "{code}\n{said}");
    for part in parts {
        assert!(said.contains(part), "{part}\n{said}");
    }
    sidecar.start_strictly();
    assert_eq!(sidecar.wait_exit().await, 1, "{code}");
    // The reader of the log may be a moment behind the exit.
    sidecar.wait_log("refused to start").await;
}

/// I9: what fails when it is run may fail for the value of a row, and the server's message quotes
/// it. It is told by its SQLSTATE, and its keys widen: the rule goes on.
#[tokio::test]
async fn a_lookup_that_fails_when_tried_suspends_nothing_and_quotes_no_row() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("update game set cup = 'secret 4711' where id = 1").await;
    let query =
        "select (g.cup::int)::text as cup, home, final from game g where id = coalesce($1, 1)";
    let rules = RULES.replace("select cup, home, final from game where id = $1", query);
    let sidecar = Sidecar::set_up(settings(&bed, &rules)).await;
    let output = sidecar.command(&["check"]);
    let said = text(&output);
    assert!(said.contains("warning[lookup_fails]") && said.contains("SQLSTATE 22P02"), "{said}");
    assert!(output.status.success() && !said.contains("4711"), "{said}");
    bed.fill(&["club:club 1"]).await;
    bed.sql.run("update bet set points = 1 where game_id = 1").await;
    bed.gone("club:club 1").await;
    let (status, page) = sidecar.get("/readyz").await.unwrap();
    assert!(status == 200 && !page.contains("4711"), "{status} {page}");
    assert!(!sidecar.log().iter().any(|line| line.contains("4711")), "a value is in the log");
}

#[tokio::test]
async fn a_query_that_cannot_serve_is_refused_with_its_cure() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let good = "select cup, home, final from game where id = $1";
    let sidecar = Sidecar::new(settings(&bed, RULES));
    sidecar.setup();
    let said = text(&sidecar.command(&["check"]));
    assert!(said.contains("0 errors"), "{said}");
    bed.sql
        .run(
            "create function noted(bigint) returns bigint language plpgsql as
               $$ begin insert into item values (-1); return $1; end $$",
        )
        .await;
    let cases: [(&str, &str, &[&str]); 9] = [
        ("select cup from game where", "lookup_sql", &["does not prepare: syntax error"]),
        (
            "select 1; select 2",
            "lookup_sql",
            &["does not prepare: cannot insert multiple commands"],
        ),
        (
            "select cup, home, final from gane where id = $1",
            "lookup_sql",
            &["\"gane\" does not exist"],
        ),
        (
            "select cup, home, final from game",
            "lookup_params",
            &["has 0 parameters and `params` names 1 column"],
        ),
        (
            "select cup, home from game where id = $1",
            "lookup_column",
            &["lookup `game` gives no `final`"],
        ),
        (
            "select cup, home, home, final from game where id = $1",
            "lookup_column",
            &["more than one column `home`"],
        ),
        (
            "update game set cup = cup where id = $1 returning cup, home, final",
            "lookup_sql",
            &["lookup `game` fails: syntax error"],
        ),
        (
            "select cup, home, final from game where id = $1 for update",
            "lookup_writes",
            &["without `for update`"],
        ),
        (
            "select cup, home, final from game, noted(1) where id = $1 or $1 is null",
            "lookup_writes",
            &["INSERT in a read-only transaction"],
        ),
    ];
    for (sql, code, parts) in cases {
        refused(&bed, &RULES.replace(good, sql), code, parts).await;
    }
    let column = RULES.replace("[\"game_id\"]", "[\"gameid\"]");
    refused(&bed, &column, "column_missing", &["lookup.game.params.0", "did you mean `game_id`"])
        .await;
    bed.sql.run("alter table bet replica identity default").await;
    refused(&bed, RULES, "replica_identity", &["`game_id` is not in the replica identity"]).await;
    bed.sql.run("alter table bet replica identity full").await;
}

#[tokio::test]
async fn a_query_without_privileges_is_refused_with_its_cure() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("create role poor login replication; grant select on bet, item to poor").await;
    let poor = Settings {
        postgres_url: bed.postgres.url().replace("postgres@", "poor@"),
        ..settings(&bed, RULES)
    };
    let said = text(&Sidecar::new(poor).command(&["check"]));
    let grant = "sql: grant select on \"public\".\"game\" to \"poor\";";
    assert!(said.contains("error[lookup_privilege]") && said.contains(grant), "{said}");
}

/// The cure of each is its own: who reads of one table is not told to open another.
#[tokio::test]
async fn each_lookup_is_told_with_the_grants_that_it_lacks_itself() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run(
            "create role poor login replication; grant select on bet, item to poor;
             create table cup (id int primary key, name text)",
        )
        .await;
    let rules = format!(
        "{RULES}\n[[rule]]\nname = \"cups\"\ntable = \"public.bet\"\n\
         keys = [\"cup:{{cup.name}}\"]\n[lookup.cup]\n\
         sql = \"select name from public.cup where id = $1\"\n\
         params = [\"game_id\"]\n"
    );
    let poor = Settings {
        postgres_url: bed.postgres.url().replace("postgres@", "poor@"),
        ..settings(&bed, &rules)
    };
    let said = text(&Sidecar::new(poor).command(&["check"]));
    let findings = said.split("error[").filter(|one| one.starts_with("lookup_privilege]"));
    let cures: Vec<(bool, bool)> =
        findings.map(|one| (one.contains("\"game\" to"), one.contains("\"cup\" to"))).collect();
    assert_eq!(cures.len(), 2, "{said}");
    assert!(cures.contains(&(true, false)) && cures.contains(&(false, true)), "{said}");
}

/// A table or schema that it could read before is told by name, with the grant, and not by a
/// number.
#[tokio::test]
async fn a_right_that_is_taken_away_is_told_with_the_grant_that_cures_it() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run(
            "create role poor login replication; grant select on bet, item, game to poor;
             create schema \"Cup\"; create table \"Cup\".games as select * from game;
             grant usage on schema \"Cup\" to poor; grant select on \"Cup\".games to poor",
        )
        .await;
    let query =
        "'select g.cup, g.home, g.final from game join \"Cup\".games g using (id) where id = $1'";
    let rules = RULES.replace("\"select cup, home, final from game where id = $1\"", query);
    let own = settings(&bed, &rules);
    Sidecar::new(settings(&bed, &rules)).setup();
    let postgres_url = bed.postgres.url().replace("postgres@", "poor@");
    let mut sidecar = Sidecar::new(Settings { postgres_url, ..own });
    sidecar.start();
    sidecar.wait_ready().await;
    for (right, said) in [
        ("select on \"public\".\"game\"", "permission denied for `public.game`"),
        ("select on \"Cup\".\"games\"", "permission denied for `Cup.games`"),
        ("usage on schema \"Cup\"", "permission denied for schema `Cup`"),
    ] {
        bed.sql.run(&format!("revoke {right} from poor")).await;
        bed.fill(&["club:any"]).await;
        bed.sql.run("update bet set points = points + 1 where id < 9").await;
        bed.gone("club:any").await;
        sidecar.wait_log(said).await;
        let cure = format!("grant {right} to \"poor\"");
        let (_, page) = sidecar.get("/readyz").await.unwrap();
        assert!(page.contains(said) && page.contains(&cure), "{page}");
        assert!(!page.contains("42501") && !page.contains("lock"), "{page}");
        bed.sql.run(&cure).await;
        eventually(PATIENCE, "it is asked again", || async {
            !sidecar.get("/readyz").await.unwrap().1.contains("lookup `game`")
        })
        .await;
    }
}
