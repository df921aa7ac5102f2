//! A publication of the rows that the rules can use: setup, what becomes of it under other rules,
//! and that the same keys go with it as without.

use redis::AsyncCommands;
use walsweep::throwaway::{Redis, RedisOptions};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

use super::{checked, expect, rule};

/// By a full identity, by one that is yet to be, and by the primary key.
const TABLES: &str = "
    create table score (id int primary key, match_id int not null, status text, points int);
    alter table score replica identity full;
    create table event (id int primary key, kind varchar not null, team text, note text);
    create table tenancy (tenant bigint, id int, note text, story text, primary key (tenant, id));
    insert into score select i, i % 7, case when i % 4 = 0 then 'scored' else 'open' end, i
      from generate_series(1, 100) i;
    insert into event select i, case when i % 2 = 0 then 'goal' else 'card' end, 't' || i % 5, 'n'
      from generate_series(1, 100) i;
    insert into tenancy select i % 10, i, 'n', repeat('x', 500) from generate_series(1, 100) i;
    analyze;";

const FILTERED: &str = "select coalesce(string_agg(tablename, ' ' order by tablename), 'none')
                          from pg_publication_tables
                         where pubname = 'walsweep' and rowfilter is not null";

fn rules() -> String {
    let when = "when = \"(op != 'insert' && old.status == 'scored') || \
                         (op != 'delete' && new.status == 'scored') || op == 'truncate'\"\n";
    let score = rule("public.score", &["board:{match_id}"]) + "immutable = [\"match_id\"]\n" + when;
    let when = "when = \"op == 'delete' ? old.kind == 'goal' : new.kind == 'goal'\"\n";
    let event = rule("public.event", &["team:{team}"]) + "immutable = [\"kind\"]\n" + when;
    let when = "when = \"op == 'delete' ? old.tenant == 7 : new.tenant == 7\"\n";
    let tenancy = rule("public.tenancy", &["note:{id}"]) + "immutable = [\"tenant\"]\n" + when;
    score + &event + &tenancy
}

/// Versions before 15 have no row filters.
async fn has_filters(bed: &Bed) -> bool {
    bed.version().await >= 15
}

fn sidecar(bed: &Bed, rules: &str) -> Sidecar {
    Sidecar::new(Settings::new(&bed.postgres, &bed.redis, rules))
}

fn narrow(sidecar: &mut Sidecar, narrow: bool) {
    sidecar.change(|settings| settings.postgres = format!("narrow = {narrow}"));
}

#[tokio::test]
async fn setup_publishes_the_rows_that_rules_can_use_and_says_what_that_spares() {
    let bed = Bed::new(&[]).await;
    if !has_filters(&bed).await {
        return;
    }
    bed.sql.run(TABLES).await;
    // What was looked up may be kept, and no row of any table must be missing then.
    let lookup = "[lookup.l]\nsql = \"select points as x from score where id = $1\"\n\
                  params = [\"match_id\"]\n";
    let looking_up = rules().replace("board:{match_id}", "board:{l.x}") + lookup;
    let printed = text(&sidecar(&bed, &looking_up).command(&["setup", "--print"]));
    assert!(printed.contains("create publication") && !printed.contains("where ("), "{printed}");
    let mut sidecar = sidecar(&bed, &rules());
    let printed = text(&sidecar.command(&["setup", "--print"]));
    for part in [
        "rows of `public.score` with `\"status\" = 'scored'`, about 25 % of them",
        "rows of `public.event` with `\"kind\" = 'goal'`, about 50 % of them",
        "2 of 4 columns of `public.tenancy`",
        "rows of `public.tenancy` with `\"tenant\" = 7`, about 10 % of them",
        "\n-- Price: a column that is listed or filtered by cannot be dropped or retyped, and",
        "(`postgres.narrow = false` avoids it); undo: alter publication \"walsweep\" set table",
    ] {
        assert!(printed.contains(part), "`{part}` is not in {printed}");
    }
    let (_, undo) = printed.split_once("undo: ").unwrap();
    let undo = undo.split_once(";\n").unwrap().0.to_owned();
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(FILTERED).await, "event score tenancy");
    bed.sql.run(&undo).await;
    assert_eq!(bed.sql.one::<String>(FILTERED).await, "none");
    bed.sql.run("drop publication walsweep").await;
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(FILTERED).await, "event score tenancy");
    assert!(!checked(&sidecar).contains("row_filter"), "it is walsweep's own");
    sidecar.start();
    sidecar.wait_ready().await;
    let before = sidecar.metric_sum("walsweep_changes_total").await;
    let unseen = "update score set points = 0 where status = 'open';
                  delete from score where id = 1; insert into score values (201, 1, 'open', 0);
                  insert into score values (202, 1, null, 0); update event set note = 'm', id = 300
                  where id = 1; delete from event where id = 3; update tenancy set id = 400,
                  note = 'm' where tenant = 6 and id = 6; delete from tenancy where tenant = 5";
    expect(&bed, unseen, &[], &["board:1", "team:t1", "team:t3", "note:6", "note:5"]).await;
    let seen = sidecar.metric_sum("walsweep_changes_total").await - before;
    assert!(seen < 0.5, "{seen} changes were sent");
    for (statement, gone) in [
        ("update score set points = 1, id = 504 where id = 4", "board:4"),
        ("update score set status = 'scored' where id = 2", "board:2"),
        ("update score set status = null where id = 8", "board:1"),
        ("delete from score where id = 12", "board:5"),
        ("insert into score values (300, 6, 'scored', 0)", "board:6"),
        ("update event set team = 'new' where id = 4", "team:t4"),
        ("update tenancy set note = 'q', id = 700 where id = 7", "note:7"),
        ("truncate score", "board:3"),
    ] {
        expect(&bed, statement, &[gone], &["team:t2", "note:17"]).await;
    }
    sidecar.assert_quiet(&["watermark_missing"]);
}

#[tokio::test]
async fn a_filter_for_other_rules_is_refused_and_made_anew() {
    let bed = Bed::new(&[]).await;
    if !has_filters(&bed).await {
        return;
    }
    bed.sql.run(TABLES).await;
    let mut sidecar = sidecar(&bed, &rules());
    sidecar.setup();
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    // While it runs: another filter is a change of what is published, and its author's.
    bed.fill(&["board:9"]).await;
    let foreign = "alter publication walsweep set table score where (points > 0), event, tenancy";
    bed.sql.run(foreign).await;
    bed.gone("board:9").await;
    assert!(checked(&sidecar).contains("warning[row_filter]"));
    assert_eq!(sidecar.sigterm().await, 0);
    bed.sql.run("drop publication walsweep").await;
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(FILTERED).await, "event score tenancy");

    for (wanted, filtered, change) in [
        ("event score tenancy", "scored", "void"),
        ("event tenancy", "when = \"(op != 'insert' && old.status", "when = \"(old.status"),
    ] {
        let other = rules().replace(filtered, change);
        assert_ne!(other, rules());
        sidecar.change(|settings| settings.rules = other);
        let output = sidecar.command(&["check"]);
        assert!(text(&output).contains("error[row_filter_outdated]"), "{}", text(&output));
        assert!(!output.status.success());
        sidecar.start_strictly();
        assert_eq!(sidecar.wait_exit().await, 1);
        sidecar.setup();
        assert_eq!(bed.sql.one::<String>(FILTERED).await, wanted);
        assert!(!checked(&sidecar).contains("row_filter"));
        sidecar.change(|settings| settings.rules = rules());
        if wanted.contains("score") {
            sidecar.setup();
        }
    }
    // The filter is of the column, not of its name.
    bed.sql.run("drop publication walsweep").await;
    sidecar.setup();
    let swapped = "alter table score rename status to other; alter table score rename points to x;
                   alter table score add status text";
    bed.sql.run(swapped).await;
    let output = text(&sidecar.command(&["check"]));
    assert!(output.contains("error[row_filter_outdated]"), "{output}");
    sidecar.setup();
    bed.sql.run("alter table score drop other").await;
}

#[tokio::test]
async fn whole_tables_are_published_where_the_configuration_says_so() {
    let bed = Bed::new(&[]).await;
    if !has_filters(&bed).await {
        return;
    }
    bed.sql.run(TABLES).await;
    let mut sidecar = sidecar(&bed, &rules());
    sidecar.setup();
    let refused = bed.sql.client().batch_execute("alter table tenancy drop note").await;
    assert!(refused.is_ok(), "a column that is not listed");
    let refused = bed.sql.client().batch_execute("alter table score drop status").await;
    assert!(refused.is_err(), "a column of a filter");
    narrow(&mut sidecar, false);
    let output = checked(&sidecar);
    assert_eq!(output.matches("info[narrowed]").count(), 3, "{output}");
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(FILTERED).await, "none");
    let output = checked(&sidecar);
    for code in ["narrowed", "columns_unneeded", "rows_unneeded", "row_filter"] {
        assert!(!output.contains(code), "{output}");
    }
    bed.sql.run("alter table tenancy alter tenant type numeric, replica identity full").await;
    bed.sql.run("update tenancy set story = 'y'; delete from tenancy where id = 3").await;

    // Narrow again: advised, and left to a person.
    bed.sql.run("alter table tenancy alter tenant type bigint, replica identity default").await;
    narrow(&mut sidecar, true);
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(FILTERED).await, "none");
    let output = checked(&sidecar);
    assert!(output.contains("info[rows_unneeded]"), "{output}");
    let sql = output.split("sql: ").skip(1).filter_map(|part| part.split_once("commit;"));
    for (sql, _) in sql.collect::<Vec<_>>() {
        bed.sql.run(&format!("{sql} commit")).await;
    }
    let output = checked(&sidecar);
    assert!(!output.contains("rows_unneeded") && !output.contains("columns_unneeded"), "{output}");

    // A publication that was made whole stays whole, and nothing is said of it.
    sidecar.command(&["teardown"]);
    narrow(&mut sidecar, false);
    let printed = text(&sidecar.command(&["setup", "--print"]));
    assert!(!printed.contains("Price") && !printed.contains("where ("), "{printed}");
    // A filter of somebody else's is not walsweep's to take away.
    let foreign = "create publication walsweep for table score where (points > 0), event, tenancy";
    bed.sql.run(foreign).await;
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(FILTERED).await, "score");
}

/// Conditions of every form that has a filter, and of some that have none.
const CONDITIONS: [(&str, bool); 16] = [
    ("V.n == 1", true),
    ("V.n != 1", true),
    ("V.n < 1", true),
    ("V.n >= -1 && V.s != 'b'", true),
    ("!(V.n <= 0)", true),
    ("2 > V.n || V.n == 9223372036854775807", true),
    ("V.s == 'a'", true),
    ("V.s == \\\"it's \\\\\\\\ a\\\"", true),
    ("V.s in ['a', null]", true),
    ("!(V.s in ['a', 'b'])", true),
    ("V.s != null", true),
    ("V.b", true),
    ("!V.b", true),
    ("V.b == false || V.b == null", true),
    ("V.n + 0 == 1", false),
    ("V.s > 'a'", false),
];

/// A table for each condition, of one type or another, each with a rule of any operation and one of
/// those that write.
fn history() -> (String, String) {
    let types = [
        "n smallint, s text, b bool",
        "n int, s varchar(9), b bool",
        "n bigint, s text collate \"C\", b bool",
    ];
    let (mut ddl, mut rules) = (String::new(), String::new());
    for ((number, (condition, _)), types) in CONDITIONS.iter().enumerate().zip(types.iter().cycle())
    {
        ddl += &format!(
            "create table t{number} (id int primary key, {types}, f int); \
             alter table t{number} replica identity full;"
        );
        let of = |version| condition.replace('V', version);
        let (old, new) = (of("old"), of("new"));
        for (name, when, more) in [
            ("any", format!("(op != 'insert' && ({old})) || (op != 'delete' && ({new}))"), ""),
            (
                "write",
                new,
                "operations = [\"insert\", \"update\"]\nchanged = [\"n\", \"s\", \"b\"]",
            ),
        ] {
            rules += &format!(
                "[[rule]]\nname = \"{name}-{number}\"\ntable = \"public.t{number}\"\n\
                 keys = [\"{name}:{number}\", \"{name}:{number}:{{f}}\"]\nimmutable = [\"f\"]\n\
                 when = \"{when}\"\n{more}\n"
            );
        }
    }
    (ddl, rules)
}

/// The same history under two sidecars, of which one is sent all rows: the same keys go, round by
/// round, and none of the application's statements fails.
#[tokio::test]
async fn the_same_keys_go_with_row_filters_as_without() {
    let bed = Bed::new(&[]).await;
    if !has_filters(&bed).await {
        return;
    }
    let other = Redis::start(RedisOptions::default()).await.unwrap();
    let mut caches = [bed.cache.clone(), other.connect().await.unwrap()];
    let (ddl, rules) = history();
    bed.sql.run(&ddl).await;
    let narrow = Sidecar::set_up(Settings::new(&bed.postgres, &bed.redis, &rules)).await;
    let (name, postgres) = ("whole".to_owned(), "narrow = false".to_owned());
    let whole = Settings { name, postgres, ..Settings::new(&bed.postgres, &other, &rules) };
    let whole = Sidecar::set_up(whole).await;
    let filtered = CONDITIONS.iter().enumerate().filter(|(_, (_, has))| *has);
    let mut filtered: Vec<String> = filtered.map(|(number, _)| format!("t{number}")).collect();
    filtered.sort();
    assert_eq!(bed.sql.one::<String>(FILTERED).await, filtered.join(" "));
    let mut keys = Vec::new();
    for number in 0..CONDITIONS.len() {
        for name in ["any", "write"] {
            keys.push(format!("{name}:{number}"));
            keys.extend((0..3).map(|f| format!("{name}:{number}:{f}")));
        }
    }
    let (mut gone, mut stayed) = (0, 0);
    for round in 0..60 {
        for cache in &mut caches {
            let mut pipeline = redis::Pipeline::new();
            for key in &keys {
                pipeline.set(key, "cached").ignore();
            }
            pipeline.exec_async(cache).await.unwrap();
        }
        let seed = format!("select setseed({}::float8 / 100)", round + 1);
        bed.sql.run(&seed).await;
        bed.sql.run(&step()).await;
        let position = bed.position().await;
        eventually(PATIENCE, "both are confirmed", || async {
            bed.sql.run("select pg_logical_emit_message(false, 'settle', '')").await;
            let least = "select min(confirmed_flush_lsn)::text from pg_replication_slots";
            bed.sql.one::<String>(least).await.parse::<walsweep::lsn::Lsn>().unwrap() >= position
        })
        .await;
        for key in &keys {
            let here: bool = caches[0].exists(key).await.unwrap();
            let there: bool = caches[1].exists(key).await.unwrap();
            assert_eq!(here, there, "`{key}` in round {round}");
            gone += usize::from(!here);
            stayed += usize::from(here);
        }
    }
    assert!(gone > 1_000 && stayed > 1_000, "{gone} gone, {stayed} stayed");
    let (few, all) = (
        narrow.metric_sum("walsweep_changes_total").await,
        whole.metric_sum("walsweep_changes_total").await,
    );
    assert!(few < all * 0.9, "{few} changes of {all}");
    assert!(few > 100.0, "{few} changes of {all}");
}

/// A few changes of each table, by the server's random numbers; `f` goes with the `id`.
fn step() -> String {
    let mut sql = "do $$ declare what int; who int; n int; s text; b bool; begin".to_owned();
    for number in 0..CONDITIONS.len() {
        sql += &format!(
            "
            for i in 1..1 + floor(random() * 2) loop
              what := floor(random() * 5); who := floor(random() * 6);
              n := (array[-2, -1, 0, 1, 2, null])[1 + floor(random() * 6)];
              s := (array['a', 'b', '', 'it''s \\ a', 'ø', null])[1 + floor(random() * 6)];
              b := (array[true, false, null])[1 + floor(random() * 3)];
              if what = 0 then
                delete from t{number} where id = who;
              elsif what = 1 then
                insert into t{number} values (who, n, s, b, who % 3) on conflict do nothing;
              elsif what = 2 then
                update t{number} set b = t{number}.b where id = who;
              else
                insert into t{number} as t values (who, n, s, b, who % 3)
                  on conflict (id) do update set n = excluded.n, s = case when what = 3
                    then t.s else excluded.s end, b = case when what = 3 then t.b
                    else excluded.b end;
              end if;
            end loop;"
        );
    }
    sql + " end $$"
}
