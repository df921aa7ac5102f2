//! Rules of materialized views: every way to new rows in one removes its keys, once they are
//! visible and not before.

use std::time::Duration;

use crate::support::{Bed, ITEM_RULES, Settings, Sidecar, Sql, always, text};
use crate::visibility::{GHOST, release, stuck};

const RULES: &str = r#"
[[rule]]
name = "totals"
materialized_view = "public.totals"
keys = ["total:*", "totals"]

[[rule]]
name = "named"
materialized_view = 'public."Große ""Sicht"""'
keys = ["named"]
"#;

const VIEWS: &str = r#"
create materialized view totals as
select team, sum(version)::bigint as versions from item group by team;
create unique index on totals (team);
create materialized view "Große ""Sicht""" as select 1;
create materialized view other as select 1;
"#;

const KEYS: [&str; 3] = ["total:a", "totals", "named"];

const REFRESHES: &str = r#"walsweep_changes_total{operation="refresh"}"#;

fn settings(bed: &Bed) -> Settings {
    Settings { rules: format!("{ITEM_RULES}{RULES}"), ..bed.settings() }
}

async fn bed() -> (Bed, Sidecar) {
    let bed = Bed::new(&[]).await;
    bed.sql.run(VIEWS).await;
    let sidecar = Sidecar::set_up(settings(&bed)).await;
    (bed, sidecar)
}

/// Runs statements, and holds which keys are left when all of it is confirmed.
async fn check(bed: &Bed, statements: &str, gone: &[&str]) {
    bed.fill(&KEYS).await;
    bed.fill(&["totalsx", "tota"]).await;
    bed.sql.run(statements).await;
    bed.settled().await;
    for key in KEYS {
        assert_eq!(bed.has(key).await, !gone.contains(&key), "{key} after {statements}");
    }
    assert!(bed.has("totalsx").await && bed.has("tota").await, "{statements}");
}

#[tokio::test]
async fn whatever_gives_a_view_other_rows_removes_its_keys() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(VIEWS).await;
    // Before the start: a schema that is granted counts as one that is altered, and is swept.
    bed.sql
        .run(
            "create role plain; grant create on schema public to plain;
             alter materialized view totals owner to plain; grant select on item to plain;
             do $$ declare one regprocedure; begin
                 for one in select oid from pg_proc where proname = 'pg_logical_emit_message' loop
                     execute 'revoke execute on function ' || one || ' from public';
                 end loop;
             end $$",
        )
        .await;
    // What is altered below would be swept, and the sweep could come before or after a check.
    let env = vec![("WALSWEEP_TEST_UNWATCHED".to_owned(), "1".to_owned())];
    let sidecar = Sidecar::set_up(Settings { env, ..settings(&bed) }).await;
    let totals: &[&str] = &["total:a", "totals"];
    for statements in [
        "refresh materialized view totals",
        "refresh materialized view concurrently totals",
        "refresh materialized view totals with no data; refresh materialized view totals",
        "do $$ begin execute 'refresh materialized view totals'; end $$",
        "begin; savepoint s; refresh materialized view totals; release s; commit",
        "set role plain; refresh materialized view totals; reset role",
        "set session_replication_role = replica; refresh materialized view totals;
         reset session_replication_role",
        "set search_path = ''; refresh materialized view public.totals; reset search_path",
        "create schema aside; alter materialized view totals set schema aside;
         alter materialized view aside.totals set schema public",
        "alter table totals rename to before; alter materialized view before rename to totals",
        "alter materialized view totals rename to before; alter table before rename to totals",
        "drop materialized view totals; create materialized view totals as select 1 as team",
    ] {
        check(&bed, statements, totals).await;
    }
    check(&bed, r#"refresh materialized view "Große ""Sicht""""#, &["named"]).await;
    check(&bed, "refresh materialized view other", &[]).await;
    check(&bed, "alter table item add column more int", &[]).await;
    assert!(sidecar.metric(REFRESHES).await >= 12.0);
    sidecar.assert_quiet(&["watermark_missing"]);
}

#[tokio::test]
async fn a_refresh_that_is_rolled_back_removes_nothing() {
    let (bed, sidecar) = bed().await;
    check(&bed, "begin; refresh materialized view totals; rollback", &[]).await;
    let partly = "begin; savepoint s; refresh materialized view totals; rollback to s;
                  update item set version = 5 where id = 1; commit";
    bed.fill(&["item:1"]).await;
    check(&bed, partly, &[]).await;
    assert!(!bed.has("item:1").await, "the rest of the transaction counts");
    assert!(sidecar.metric(REFRESHES).await < 1.0);
}

/// I1 for views.
#[tokio::test]
async fn the_keys_of_a_view_go_when_readers_see_it_and_not_before() {
    let (bed, _sidecar) = bed().await;
    let writer = Sql::connect(&bed.postgres).await;
    bed.fill(&["total:a"]).await;
    writer.run("begin; refresh materialized view concurrently totals").await;
    bed.fill(&["item:2"]).await;
    bed.sql.run("update item set version = 7 where id = 2").await;
    bed.gone("item:2").await;
    assert!(bed.has("total:a").await, "nothing goes while the transaction is open");
    writer.run("commit").await;
    bed.gone("total:a").await;

    bed.settled().await;
    bed.postgres.conf(GHOST).await.unwrap();
    bed.fill(&["total:a", "item:3"]).await;
    let waiting = stuck(&bed, "refresh materialized view concurrently totals").await;
    bed.sql.run("set synchronous_commit = local; update item set version = 1 where id = 3").await;
    bed.gone("item:3").await;
    always(Duration::from_secs(2), "the key stays while nobody sees the refresh", || async {
        let sum = "select versions from totals where team = 'team 2'";
        bed.has("total:a").await && bed.sql.one::<i64>(sum).await == 0
    })
    .await;
    release(&bed).await;
    bed.gone("total:a").await;
    let sum = bed.sql.one::<i64>("select versions from totals where team = 'team 2'").await;
    assert_eq!(sum, 7);
    waiting.await.unwrap();
    bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
}

#[tokio::test]
async fn a_refresh_while_walsweep_is_down_is_not_lost() {
    let (bed, mut sidecar) = bed().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.fill(&KEYS).await;
    bed.sql.run("refresh materialized view totals").await;
    sidecar.start();
    sidecar.wait_ready().await;
    bed.gone("totals").await;
    bed.gone("total:a").await;
    assert!(bed.has("named").await);
    assert!(sidecar.metric_sum("walsweep_resyncs_total").await < 1.0, "it is the refresh's work");
}

/// ALTER SCHEMA has no command that the trigger could tell of.
#[tokio::test]
async fn a_view_that_takes_the_place_of_another_with_its_schema_is_swept() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create schema stats; create materialized view stats.mv as select 1 as one;
             create schema stats2; create materialized view stats2.mv as select 2 as one;
             create materialized view public.totals as select 1 as one",
        )
        .await;
    let rule = |name: &str, view: &str| {
        format!("[[rule]]\nname = {name:?}\nmaterialized_view = {view:?}\nkeys = [{name:?}]\n")
    };
    let rules = rule("mv", "stats.mv") + &rule("totals", "public.totals");
    let mut sidecar = Sidecar::set_up(Settings { rules, ..bed.settings() }).await;
    let exchange = "begin; alter schema stats rename to old; alter schema stats2 rename to stats;
                    alter schema old rename to stats2; commit";
    bed.settled().await;
    bed.fill(&["mv", "totals"]).await;
    bed.sql.run(exchange).await;
    bed.gone("mv").await;
    sidecar.wait_ready().await;
    bed.settled().await;
    for change in [exchange.to_owned(), format!("{exchange}; {exchange}")] {
        assert_eq!(sidecar.sigterm().await, 0);
        bed.fill(&["mv", "totals"]).await;
        bed.sql.run(&change).await;
        sidecar.start();
        sidecar.wait_ready().await;
        assert!(!bed.has("mv").await, "{change}");
        assert!(bed.has("totals").await);
        bed.settled().await;
    }
    // A refresh is told by the trigger alone, and ends no session.
    let reconnects = "walsweep_reconnects_total{peer=\"postgres\"}";
    bed.fill(&["mv", "totals"]).await;
    bed.sql.run("refresh materialized view stats.mv").await;
    bed.gone("mv").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(sidecar.metric(reconnects).await, 0.0);
    assert!(bed.has("totals").await);
}

#[tokio::test]
async fn check_finds_what_is_wrong_with_the_trigger_and_setup_cures_it() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(VIEWS).await;
    let sidecar = Sidecar::new(settings(&bed));
    let body = "returns event_trigger language plpgsql as 'begin end'";
    let other = |event: &str, tags: &str| {
        format!(
            "drop event trigger walsweep_refresh;
             create event trigger walsweep_refresh on {event} when tag in ({tags})
                 execute function walsweep_refresh();
             alter event trigger walsweep_refresh enable always"
        )
    };
    let tags = "'REFRESH MATERIALIZED VIEW', 'CREATE MATERIALIZED VIEW',
                'ALTER MATERIALIZED VIEW', 'ALTER TABLE'";
    for (damage, what) in [
        (String::new(), "is missing"),
        ("alter event trigger walsweep_refresh disable".to_owned(), "is disabled"),
        ("alter event trigger walsweep_refresh enable".to_owned(), "is not enabled as ALWAYS"),
        (format!("create or replace function walsweep_refresh() {body}"), "is not the one"),
        (
            String::from(
                "create or replace function walsweep_refresh() returns event_trigger
                 language plpgsql security definer set search_path = pg_catalog, pg_temp
                 as 'begin end'",
            ),
            "is not the one",
        ),
        ("alter function walsweep_refresh() reset all".to_owned(), "is not the one"),
        ("alter function walsweep_refresh() security invoker".to_owned(), "is not the one"),
        (other("ddl_command_start", tags), "is not the one"),
        (other("ddl_command_end", "'REFRESH MATERIALIZED VIEW'"), "is not the one"),
    ] {
        bed.sql.run(&damage).await;
        let output = sidecar.command(&["check"]);
        assert_eq!(output.status.code(), Some(1), "{damage}");
        let said = text(&output);
        assert!(said.contains("error[refresh_trigger]") && said.contains(what), "{said}");
        sidecar.setup();
        let output = sidecar.command(&["check"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    let output = text(&sidecar.command(&["explain", "totals", "--op", "refresh"]));
    assert!(output.contains("key      totals") && output.contains("pattern  total:*"), "{output}");
    let output = text(&sidecar.command(&["explain", "totals", "--op", "truncate"]));
    assert!(output.contains("at `public.totals` with `--op refresh`"), "{output}");
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("dropped event trigger `walsweep_refresh`"), "{said}");
    let left = "select (select count(*) from pg_event_trigger)
                     + (select count(*) from pg_proc where proname = 'walsweep_refresh')";
    assert_eq!(bed.sql.one::<i64>(left).await, 0);
    bed.sql.run("drop materialized view totals; create view totals as select 1").await;
    bed.sql.run(r#"alter materialized view "Große ""Sicht""" rename to "Große Sicht""#).await;
    let said = text(&sidecar.command(&["check"]));
    assert!(said.contains("`public.totals` is no materialized view"), "{said}");
    assert!(said.contains("did you mean `public.Große Sicht`"), "{said}");
}

/// Somebody's own trigger of that name is neither taken for ours nor replaced nor removed.
#[tokio::test]
async fn a_trigger_of_somebody_else_is_left_alone() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(VIEWS).await;
    bed.sql
        .run(
            "create function mine() returns event_trigger language plpgsql as 'begin end';
             create event trigger walsweep_refresh on ddl_command_end execute function mine();
             alter event trigger walsweep_refresh enable always",
        )
        .await;
    let sidecar = Sidecar::new(settings(&bed));
    for command in ["check", "setup"] {
        let output = sidecar.command(&[command]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let said = text(&output);
        assert!(said.contains("calls `public.mine`, not its own"), "{command}: {said}");
    }
    text(&sidecar.command(&["teardown"]));
    let kept = "select evtfoid::regproc::text from pg_event_trigger";
    assert_eq!(bed.sql.one::<String>(kept).await, "mine");
}

/// Since version 17 a setting turns all event triggers off.
#[tokio::test]
async fn event_triggers_that_are_off_are_an_error() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(VIEWS).await;
    let sidecar = Sidecar::new(settings(&bed));
    sidecar.setup();
    let has_setting = "select exists (select from pg_settings where name = 'event_triggers')";
    let said = text(&sidecar.command(&["check"]));
    assert!(!said.contains("event_triggers_off"), "{said}");
    if !bed.sql.one::<bool>(has_setting).await {
        return;
    }
    bed.postgres.conf("event_triggers = off").await.unwrap();
    let said = text(&sidecar.command(&["check"]));
    assert!(said.contains("error[event_triggers_off]"), "{said}");
}

/// A refresh never fails for walsweep's sake: a name that is no UTF-8 is told as any view's.
#[tokio::test]
async fn a_view_whose_name_is_no_utf8_is_refreshed_and_counts_as_any() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create database ascii encoding 'SQL_ASCII' template template0
             lc_collate 'C' lc_ctype 'C'",
        )
        .await;
    let (client, connection) =
        tokio_postgres::connect(&bed.postgres.url_of("ascii"), tokio_postgres::NoTls)
            .await
            .unwrap();
    drop(tokio::spawn(connection));
    client.batch_execute("create materialized view totals as select 1 as team").await.unwrap();
    let rules = RULES.split("[[rule]]\nname = \"named\"").next().unwrap().to_owned();
    let settings = Settings { rules, postgres_url: bed.postgres.url_of("ascii"), ..settings(&bed) };
    let sidecar = Sidecar::set_up(settings).await;
    let create = r#"do $$ begin
        execute E'create materialized view "\xe9" as select 1'; end $$"#;
    let refresh = r#"do $$ begin execute E'refresh materialized view "\xe9"'; end $$"#;
    for statement in [create, refresh] {
        bed.fill(&["totals"]).await;
        client.batch_execute(statement).await.unwrap();
        bed.gone("totals").await;
    }
    assert!(sidecar.metric(REFRESHES).await >= 2.0);
}

#[tokio::test]
async fn who_may_not_create_the_trigger_is_told_who_may() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(VIEWS).await;
    bed.sql
        .run("create role plain login replication; grant create on database postgres to plain")
        .await;
    let mut settings = settings(&bed);
    settings.rules = RULES.to_owned();
    settings.postgres_url = settings.postgres_url.replace("postgres@", "plain@");
    let sidecar = Sidecar::new(settings);
    let said = text(&sidecar.command(&["setup"]));
    assert!(said.contains("`walsweep setup --print` shows the SQL"), "{said}");
    let script = sidecar.command(&["setup", "--print"]);
    let script = String::from_utf8(script.stdout).unwrap();
    assert!(script.contains("create event trigger \"walsweep_refresh\""), "{script}");
    let said = text(&sidecar.command(&["check"]));
    assert!(said.contains("a superuser runs it") && said.contains("`message`"), "{said}");
    crate::setup::psql(&bed, "postgres", &script);
    let output = sidecar.command(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

/// Its keys are swept once, and what is suspended stays so.
#[tokio::test]
async fn a_dropped_view_or_trigger_suspends_its_rules_once() {
    let (bed, sidecar) = bed().await;
    bed.settled().await;
    for (statement, rule) in [
        ("drop materialized view totals", "totals"),
        ("drop event trigger walsweep_refresh", "named"),
    ] {
        bed.sql.run(statement).await;
        sidecar.wait_log(&format!("rule `{rule}` is suspended: ")).await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        let reconnects = sidecar.metric("walsweep_reconnects_total{peer=\"postgres\"}").await;
        assert!(reconnects < 2.5, "{reconnects} after {statement}");
    }
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.gone("item:1").await;
}

/// I7: readers may have cached something stale before there was a rule for it. So with a rule of a
/// view that another rule names already, and with one of messages.
#[tokio::test]
async fn a_rule_of_a_view_or_of_messages_that_is_new_is_swept_at_the_next_start() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(VIEWS).await;
    let mut sidecar = Sidecar::set_up(settings(&bed)).await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.fill(&KEYS).await;
    bed.fill(&["more:1", "job:1"]).await;
    let more = "[[rule]]\nname = \"more\"\nmaterialized_view = \"public.totals\"\n\
                keys = [\"more:*\"]\n\
                [[rule]]\nname = \"jobs\"\nmessage = \"jobs\"\nkeys = [\"job:*\"]\n";
    sidecar.change(|settings| settings.rules.push_str(more));
    sidecar.setup();
    sidecar.start();
    sidecar.wait_ready().await;
    for key in ["more:1", "job:1"] {
        bed.gone(key).await;
    }
    for key in KEYS {
        assert!(bed.has(key).await, "{key}: its rule is as it was");
    }
}
