//! Answers of lookups that are kept: they spare queries, and none is ever older than what the
//! stream told before.

use tokio::time::Instant;
use walsweep_stage::throwaway::{Signal, signal};

use crate::lookups::rows_read;
use crate::streaming::stop_sender;
use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually, text};
use crate::visibility::{GHOST, release, stuck};

/// Matches 1 to 1000; bet 1 is on match 2, and so on.
const TABLES: &str = "
    create table game (id bigint primary key, cup text, home text not null);
    insert into game select id, 'cup ' || id % 10, 'club ' || id from generate_series(1, 1000) id;
    create table bet (id bigint primary key, game_id bigint, points int);
    alter table game replica identity full;
    alter table bet replica identity full;
    insert into bet select id, id % 1000 + 1, 0 from generate_series(1, 1000) id;";

const QUERY: &str = "select cup, home from game where id = $1";

/// No rule looks at `game`.
const RULES: &str = r#"
[lookup.game]
sql = "select cup, home from game where id = $1"
params = ["game_id"]
cache = 100

[[rule]]
name = "bet"
table = "public.bet"
keys = ["club:{game.home}"]
"#;

struct Scene {
    bed: Bed,
    sidecar: Sidecar,
}

impl Scene {
    async fn new(rules: &str) -> Scene {
        let bed = Bed::new(&["logical_decoding_work_mem = 64kB"]).await;
        bed.sql.run(TABLES).await;
        let settings = Settings { rules: rules.to_owned(), ..bed.settings() };
        let mut sidecar = Sidecar::new(settings);
        sidecar.setup();
        bed.sql.run("alter publication walsweep add table game").await;
        sidecar.start();
        sidecar.wait_ready().await;
        bed.settled().await;
        Scene { bed, sidecar }
    }

    /// How many rows keys needed so far, by where they came from.
    async fn rows(&self, source: &str) -> f64 {
        let name = format!("walsweep_lookup_rows_total{{source=\"{source}\"}}");
        self.sidecar.metric(&name).await
    }

    async fn touch(&self, bet: i64) {
        self.bed.sql.run(&format!("update bet set points = points + 1 where id = {bet}")).await;
    }

    /// Changes a bet until the row of its match is a kept one.
    async fn warm(&self, bet: i64) {
        let before = self.rows("cache").await;
        eventually(PATIENCE, "its match's row is kept", || async {
            self.touch(bet).await;
            self.bed.settled().await;
            self.rows("cache").await > before
        })
        .await;
    }

    /// A change of bet 1 takes this key of its match, and nothing wide.
    async fn takes(&self, key: &str) {
        self.bed.fill(&[key, "club:any"]).await;
        self.touch(1).await;
        self.bed.gone(key).await;
        self.bed.settled().await;
        assert!(self.bed.has("club:any").await, "{key}");
    }
}

#[tokio::test]
async fn a_kept_row_needs_no_query() {
    for (cache, bounds) in [(100, 1..=20), (0, 21..=1000)] {
        let scene = Scene::new(&RULES.replace("= 100", &format!("= {cache}"))).await;
        if cache > 0 {
            scene.warm(500).await;
        }
        let before = rows_read(&scene.bed).await;
        let (cached, queried) = (scene.rows("cache").await, scene.rows("query").await);
        scene.bed.fill(&["club:club 2", "club:club 21", "club:any"]).await;
        let began = Instant::now();
        for number in 0..1000 {
            scene.touch(number % 20 + 1).await;
        }
        let took = began.elapsed();
        scene.bed.settled().await;
        let removal = "walsweep_visible_to_removed_seconds";
        let sum = scene.sidecar.metric(&format!("{removal}_sum")).await;
        let mean = sum / scene.sidecar.metric(&format!("{removal}_count")).await;
        for key in ["club:club 2", "club:club 21"] {
            assert!(!scene.bed.has(key).await, "{key}");
        }
        assert!(scene.bed.has("club:any").await);
        let (cached, queried) =
            (scene.rows("cache").await - cached, scene.rows("query").await - queried);
        let scanned = rows_read(&scene.bed).await - before - 1;
        println!(
            "cache = {cache}: 1 000 transactions of one row in {took:?}, {queried} queries, \
             {cached} rows from the cache, {scanned} index scans, {:.0} µs from visible to removed",
            mean * 1e6
        );
        assert!(bounds.contains(&scanned), "{scanned}");
        assert!((cached < 0.5) == (cache == 0));
        scene.sidecar.assert_quiet(&["sweeping everything"]);
    }
}

#[tokio::test]
async fn a_changed_row_is_never_served_old() {
    let scene = Scene::new(RULES).await;
    let sql = &scene.bed.sql;
    scene.warm(1).await;
    for round in 0..40 {
        sql.run(&format!("update game set home = 'a{round}' where id = 2")).await;
        scene.takes(&format!("club:a{round}")).await;
        scene.takes(&format!("club:a{round}")).await;
        // In the transaction that asks.
        let key = format!("club:b{round}");
        scene.bed.fill(&[&key]).await;
        sql.run(&format!(
            "begin; update game set home = 'b{round}' where id = 2;
             update bet set points = 0 where id = 1; commit"
        ))
        .await;
        scene.bed.gone(&key).await;
    }
    assert!(scene.rows("cache").await >= 40.0, "the second of two was served");
    sql.run("delete from game where id = 2").await;
    scene.bed.fill(&["club:any"]).await;
    scene.touch(1).await;
    scene.bed.gone("club:any").await;
    sql.run("insert into game values (2, 'cup', 'again')").await;
    scene.takes("club:again").await;
    scene.warm(1).await;
    sql.run("truncate game").await;
    scene.bed.fill(&["club:any"]).await;
    scene.touch(1).await;
    scene.bed.gone("club:any").await;
    scene.sidecar.assert_quiet(&["sweeping everything"]);
}

/// A table that is read and that no rule looks at: its changes remove nothing, and hold up nothing.
#[tokio::test]
async fn changes_that_only_the_cache_needs_cost_no_sweep() {
    let scene = Scene::new(RULES).await;
    scene.bed.fill(&["club:any", "club:club 2"]).await;
    let removal = "walsweep_visible_to_removed_seconds_count";
    let sweeps = scene.sidecar.metric_sum("walsweep_sweeps_total").await;
    let removals = scene.sidecar.metric(removal).await;
    for _ in 0..20 {
        scene.bed.sql.run("update game set cup = 'c' where id = 2").await;
    }
    scene.bed.settled().await;
    assert!(scene.bed.has("club:any").await && scene.bed.has("club:club 2").await);
    assert!(scene.sidecar.metric_sum("walsweep_sweeps_total").await < sweeps + 0.5);
    assert!(scene.sidecar.metric(removal).await < removals + 0.5, "there was nothing to remove");
    scene.bed.postgres.conf(GHOST).await.unwrap();
    let writer = stuck(&scene.bed, "update game set cup = 'd' where id = 2").await;
    scene
        .bed
        .sql
        .run("set synchronous_commit = local; update bet set points = 5 where id = 7")
        .await;
    scene.bed.settled().await;
    release(&scene.bed).await;
    writer.await.unwrap();
    scene.bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
}

/// I1: a row is changed, the stream told it, and nobody sees it yet. Whoever asks now is told the
/// old row; it must not be kept.
#[tokio::test]
async fn a_row_is_not_kept_while_a_change_of_its_table_is_invisible() {
    let scene = Scene::new(RULES).await;
    scene.warm(1).await;
    scene.bed.postgres.conf(GHOST).await.unwrap();
    let writer = stuck(&scene.bed, "update game set home = 'new' where id = 2").await;
    scene.bed.sql.run("set synchronous_commit = local").await;
    let (cached, queried) = (scene.rows("cache").await, scene.rows("query").await);
    for _ in 0..3 {
        scene.takes("club:club 2").await;
    }
    assert!(scene.rows("query").await > queried + 2.5, "each was asked for");
    assert!(scene.rows("cache").await < cached + 0.5);
    release(&scene.bed).await;
    writer.await.unwrap();
    scene.bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
    scene.takes("club:new").await;
    scene.warm(1).await;
    scene.takes("club:new").await;
}

/// I1: the stream told a change to the session before, which kept no answers, and nobody sees it
/// yet. Whoever asks now is told the old row; it must not be kept, either.
#[tokio::test]
async fn a_session_keeps_nothing_before_all_from_before_it_has_ended() {
    let mut scene = Scene::new(&RULES.replace("= 100", "= 0")).await;
    scene.bed.postgres.conf(GHOST).await.unwrap();
    let writer = stuck(&scene.bed, "update game set home = 'new' where id = 2").await;
    scene.bed.sql.run("set synchronous_commit = local").await;
    scene.takes("club:club 2").await;
    assert_eq!(scene.sidecar.sigterm().await, 0);
    scene.sidecar.change(|settings| settings.rules = RULES.to_owned());
    let streaming = || scene.sidecar.log().iter().filter(|l| l.contains("streaming")).count();
    let before = streaming();
    scene.sidecar.start();
    let streaming = || scene.sidecar.log().iter().filter(|l| l.contains("streaming")).count();
    eventually(PATIENCE, "it streams again", || async { streaming() > before }).await;
    for _ in 0..3 {
        scene.bed.fill(&["club:club 2"]).await;
        scene.touch(1).await;
        scene.bed.gone("club:club 2").await;
    }
    assert!(scene.rows("cache").await < 0.5);
    release(&scene.bed).await;
    writer.await.unwrap();
    scene.bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
    scene.sidecar.wait_ready().await;
    scene.bed.settled().await;
    scene.takes("club:new").await;
    scene.warm(1).await;
}

/// A query takes its time, and meanwhile its row is changed for all to see.
#[tokio::test]
async fn an_answer_that_a_change_overtook_serves_nobody_else() {
    let slow =
        format!("{QUERY} and (select count(*) from game a, game b, game c where c.id < 4) > 0");
    let scene = Scene::new(&RULES.replace(QUERY, &slow)).await;
    scene.warm(500).await;
    let asks = "select exists (select from pg_stat_activity
                 where application_name = 'walsweep lookup' and state = 'active')";
    scene.bed.fill(&["club:club 2"]).await;
    scene.touch(1).await;
    eventually(PATIENCE, "it asks", || async { scene.bed.sql.one(asks).await }).await;
    scene.bed.sql.run("update game set home = 'new' where id = 2").await;
    let overtook: bool = scene.bed.sql.one(asks).await;
    assert!(overtook, "the query was too fast for this test");
    scene.bed.gone("club:club 2").await;
    scene.bed.settled().await;
    scene.takes("club:new").await;
}

/// In blocks, before it is known whether it commits.
#[tokio::test]
async fn a_large_transaction_closes_it_until_it_is_undone_or_seen() {
    let scene = Scene::new(RULES).await;
    let writer = Sql::connect(&scene.bed.postgres).await;
    for (end, key) in [("rollback", "club:club 2"), ("commit", "club:large")] {
        scene.warm(1).await;
        let changes = "walsweep_changes_total{operation=\"update\"}";
        let before = scene.sidecar.metric(changes).await;
        writer
            .run(
                "begin; update game set home = 'large' where id = 2;
                  update game set cup = repeat('x', 1000) where id <> 2",
            )
            .await;
        eventually(PATIENCE, "blocks of it arrive", || async {
            scene.sidecar.metric(changes).await > before + 100.0
        })
        .await;
        let cached = scene.rows("cache").await;
        scene.takes("club:club 2").await;
        scene.takes("club:club 2").await;
        assert!(scene.rows("cache").await < cached + 0.5, "{end}");
        writer.run(end).await;
        scene.bed.settled().await;
        scene.takes(key).await;
        scene.warm(1).await;
        scene.takes(key).await;
    }
}

/// A row that is kept may be older than a transaction whose change of it is still on its way.
#[tokio::test]
async fn keys_that_went_early_by_a_kept_row_go_by_the_new_one_at_the_commit() {
    let scene = Scene::new(RULES).await;
    scene.warm(1).await;
    let changes = "walsweep_changes_total{operation=\"update\"}";
    let before = scene.sidecar.metric(changes).await;
    let writer = Sql::connect(&scene.bed.postgres).await;
    writer.run("begin").await;
    for _ in 0..20 {
        writer.run("update bet set points = points + 1").await;
    }
    eventually(PATIENCE, "blocks of it arrive", || async {
        scene.sidecar.metric(changes).await > before + 5_000.0
    })
    .await;
    let sender = stop_sender(&scene.bed).await;
    scene.bed.fill(&["club:club 2", "club:late", "club:any"]).await;
    writer.run("update game set home = 'late' where id = 2; commit").await;
    scene.bed.gone("club:club 2").await;
    assert!(scene.bed.has("club:late").await, "the change of the row was not received");
    signal(&sender, Signal::Cont).unwrap();
    scene.bed.gone("club:late").await;
    scene.bed.settled().await;
    assert!(scene.bed.has("club:any").await);
}

/// A change that the stream does not tell ends the session, and everything is swept.
#[tokio::test]
async fn a_table_that_is_no_longer_the_same_is_noticed() {
    for (sql, is_kept) in [
        ("alter table game alter column home type text using 'off'", true),
        ("alter publication walsweep drop table game; update game set home = 'off'", false),
        (
            "alter table game rename to gone; create table game (like gone including all);
             insert into game select id, cup, 'off' from gone",
            false,
        ),
    ] {
        let scene = Scene::new(RULES).await;
        scene.warm(1).await;
        let resyncs = scene.sidecar.metric_sum("walsweep_resyncs_total").await;
        scene.bed.fill(&["club:off"]).await;
        scene.bed.sql.run(sql).await;
        scene.touch(1).await;
        scene.bed.gone("club:off").await;
        eventually(PATIENCE, "everything is swept", || async {
            scene.sidecar.metric_sum("walsweep_resyncs_total").await > resyncs
                && scene.sidecar.readyz().await == Some(200)
        })
        .await;
        scene.bed.settled().await;
        scene.takes("club:off").await;
        if is_kept {
            scene.warm(1).await;
        } else {
            let cached = scene.rows("cache").await;
            scene.takes("club:off").await;
            assert!(scene.rows("cache").await < cached + 0.5, "{sql}");
        }
    }
}

#[tokio::test]
async fn a_lost_session_takes_its_answers_with_it() {
    let scene = Scene::new(RULES).await;
    scene.warm(1).await;
    let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                 where application_name = 'walsweep lookup'";
    assert_eq!(scene.bed.sql.one::<i64>(kill).await, 1);
    scene.touch(700).await;
    scene.bed.settled().await;
    let queried = scene.rows("query").await;
    scene.takes("club:club 2").await;
    assert!(scene.rows("query").await > queried + 0.5, "its answer went with it");
    scene.warm(1).await;
}

#[tokio::test]
async fn what_the_stream_does_not_keep_true_is_not_kept_and_check_says_why() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run(
            "create view games as select * from game;
             create table club (name text primary key);
             create role poor login replication; grant select on game, bet, club to poor;
             revoke temporary on database postgres from public",
        )
        .await;
    let settings = Settings { rules: RULES.to_owned(), ..bed.settings() };
    Sidecar::new(settings.clone()).setup();
    let said = |rules: &str, url: &str| {
        let url = settings.postgres_url.replace("postgres@", url);
        let rules = rules.to_owned();
        let sidecar = Sidecar::new(Settings { rules, postgres_url: url, ..settings.clone() });
        let said = text(&sidecar.command(&["check"]));
        assert!(said.contains("0 errors"), "{said}");
        said
    };
    let reason = "answers of lookup `game` are not kept: ";
    let unpublished = said(RULES, "postgres@");
    assert!(unpublished.contains(&format!("{reason}`public.game` is not published")));
    assert!(unpublished.contains("info[lookup_not_cached]"), "{unpublished}");
    assert!(unpublished.contains("add `public.game` to the publication"), "{unpublished}");
    bed.sql.run("alter publication walsweep add table game").await;
    for (rules, why) in [
        (RULES.to_owned(), None),
        (RULES.replace("= 100", "= 0"), None),
        (RULES.replace("from game", "from games"), Some("`public.games` is not an ordinary table")),
        (RULES.replace("$1", "$1 and now() > '2020-01-01'"), Some("it calls `now`, which is not")),
        (
            RULES.replace("$1", "$1 and home not in (select name from club)"),
            Some("`public.club` is not published"),
        ),
    ] {
        let said = said(&rules, "postgres@");
        match why {
            None => assert!(!said.contains(reason), "{said}"),
            Some(why) => assert!(said.contains(&format!("{reason}{why}")), "{why}\n{said}"),
        }
    }
    let poor = said(RULES, "poor@");
    assert!(poor.contains(&format!("{reason}permission denied")), "{poor}");
    bed.sql.run("alter publication walsweep set (publish = 'insert, update, delete')").await;
    let quiet = RULES.replace("keys", "operations = [\"insert\"]\nkeys");
    let partly = said(&quiet, "postgres@");
    assert!(partly.contains("does not publish every operation"), "{partly}");
}
